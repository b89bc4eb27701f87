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

/// Whether this is what `./test e2e NAME` runs, tests with NAME in their path, which begins with the file's name; or a test of a crate.
fn is_test(root: &Path, tests: &[String], name: &str) -> bool {
    let has_it = |text: &String| {
        let functions = text.split("fn ").skip(1).filter_map(|rest| rest.split_once('('));
        functions.into_iter().any(|(function, _)| function.contains(name))
    };
    root.join(format!("tests/tests/e2e/{name}.rs")).is_file() || tests.iter().any(has_it)
}

/// The names in the last column of each row of tables that end in one for tests.
fn named_tests(guide: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut is_in_table = false;
    for line in guide.lines() {
        if line.starts_with("| ") && line.ends_with("| test |") {
            is_in_table = true;
        } else if !line.starts_with('|') {
            is_in_table = false;
        } else if is_in_table && line.starts_with("| ") {
            let column = line.trim_end_matches('|').rsplit('|').next().unwrap();
            let before = names.len();
            names.extend(column.split('`').skip(1).step_by(2).map(str::to_owned));
            assert!(names.len() > before, "no test is named: {line}");
        }
    }
    names
}

#[test]
fn each_promise_in_the_guides_to_failures_and_security_names_a_test_that_there_is() {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..");
    let e2e = sources(&root.join("tests/tests/e2e"));
    let of_crates =
        ["discoverer/src", "registrar/src", "registrar/tests"].iter().flat_map(|of| sources(&root.join(of)));
    let all: Vec<String> = e2e.iter().cloned().chain(of_crates).collect();
    for (guide, tests, least) in [("failures", &e2e, 20), ("security", &all, 15)] {
        let names = named_tests(&fs::read_to_string(root.join(format!("docs/{guide}.md"))).unwrap());
        for name in &names {
            assert!(is_test(&root, tests, name), "docs/{guide}.md: {name} is no test");
        }
        assert!(names.len() > least, "docs/{guide}.md: {} tests are named", names.len());
    }
}
