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

/// Whether only `./test --full` runs it: each of these tests with the name in theirs is marked as long.
fn is_long(tests: &[String], name: &str) -> bool {
    let of_it = |text: &String| {
        let begins: Vec<&str> = text.split_inclusive("fn ").collect();
        let pairs = begins.windows(2).filter(|pair| pair[1].split('(').next().unwrap().contains(name));
        pairs.map(|pair| pair[0].rsplit("}\n").next().unwrap().contains("#[ignore")).collect::<Vec<_>>()
    };
    let of_all: Vec<bool> = tests.iter().flat_map(of_it).collect();
    !of_all.is_empty() && of_all.into_iter().all(|is_long| is_long)
}

/// The names in the last column of each row of tables that end in one for tests, each with that column.
fn named_tests(guide: &str) -> Vec<(String, &str)> {
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
            let quoted = column.split('`').skip(1).step_by(2).filter(|name| !name.starts_with("./test"));
            names.extend(quoted.map(|name| (name.to_owned(), column)));
            assert!(names.len() > before, "no test is named: {line}");
        }
    }
    names
}

#[test]
fn a_test_is_long_where_all_of_its_name_are() {
    let source = "#[test]\n#[ignore = \"long\"]\nfn a_long_one() {\n}\n\n#[test]\nfn one() {\n}\n".to_owned();
    let long = |name| is_long(std::slice::from_ref(&source), name);
    assert_eq!([long("a_long"), long("one"), long("fn_none")], [true, false, false]);
}

#[test]
fn each_promise_in_the_guides_to_failures_and_security_names_a_test_that_there_is() {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..");
    let e2e = sources(&root.join("tests/tests/e2e"));
    let of_crates = [
        "discoverer/src",
        "observe/src",
        "observe/tests",
        "registrar/src",
        "registrar/tests",
        "registry/src",
        "registry/tests",
    ];
    let of_crates = of_crates.iter().flat_map(|of| sources(&root.join(of)));
    let all: Vec<String> = e2e.iter().cloned().chain(of_crates).collect();
    for (guide, tests, least) in [("failures", &e2e, 20), ("security", &all, 15)] {
        let text = fs::read_to_string(root.join(format!("docs/{guide}.md"))).unwrap();
        let names = named_tests(&text);
        for (name, column) in &names {
            assert!(is_test(&root, tests, name), "docs/{guide}.md: {name} is no test");
            let says_so = column.contains("`./test --full`") || column.contains(&format!("`{name}`*"));
            assert!(says_so || !is_long(tests, name), "docs/{guide}.md: only ./test --full runs {name}, say so");
        }
        assert!(names.len() > least, "docs/{guide}.md: {} tests are named", names.len());
    }
}
