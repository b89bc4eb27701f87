//! What the documentation says of tests is true.

use std::fs;
use std::path::{Path, PathBuf};

/// The texts of all Rust files below a directory.
fn sources(directory: &Path) -> Vec<String> {
    let mut texts = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            texts.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            texts.push(fs::read_to_string(path).unwrap());
        }
    }
    texts
}

#[test]
fn each_promise_in_the_guide_to_failures_names_a_test_that_there_is() {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..");
    let guide = fs::read_to_string(root.join("docs/failures.md")).unwrap();
    let tests = sources(&root.join("tests/tests/e2e"));
    let is_row = |line: &&str| line.starts_with("| ") && !line.starts_with("| failure");
    let mut count = 0;
    for row in guide.lines().filter(is_row) {
        let column = row.trim_end_matches('|').rsplit('|').next().unwrap();
        let names: Vec<&str> = column.split('`').skip(1).step_by(2).collect();
        assert!(!names.is_empty(), "no test is named: {row}");
        for name in names {
            // What `./test e2e NAME` runs: tests with NAME in their path, which begins with the file's name.
            let is_test = |text: &String| {
                let functions = text.split("fn ").skip(1).filter_map(|rest| rest.split_once('('));
                functions.into_iter().any(|(function, _)| function.contains(name))
            };
            let is_file = root.join(format!("tests/tests/e2e/{name}.rs")).is_file();
            assert!(is_file || tests.iter().any(is_test), "{name} is no test: {row}");
            count += 1;
        }
    }
    assert!(count > 20, "{count} tests are named");
}
