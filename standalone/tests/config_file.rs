//! Every key can be given in the file, and none is left out of what is printed.

#![allow(clippy::unwrap_used)]

#[path = "../../observe/tests/support/reference.rs"]
mod reference;

use std::collections::BTreeSet;

use standalone::flags::{Program, RULES};

#[test]
fn every_key_can_be_given_in_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("standalone.toml");
    let command = Program::command();
    let mut seen = BTreeSet::new();
    for arg in reference::in_file(&command) {
        // --network goes with --internal alone.
        let needed: &[&str] =
            if arg.get_long() == Some("network") { &["standalone", "--internal"] } else { &["standalone"] };
        seen.insert(reference::assert_is_key(Program::command(), &RULES, arg, needed, &file));
    }
    assert!(seen.len() > 50, "{seen:?}");
    for key in RULES.at_once {
        assert!(seen.contains(*key), "{key} is no key");
    }
}

#[test]
fn what_standalone_refuses_as_a_flag_is_no_key_either() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("standalone.toml");
    for key in ["once", "dry-run"] {
        std::fs::write(&file, format!("{key} = true\n")).unwrap();
        let args = ["standalone", "--config", file.to_str().unwrap()];
        let error = Program::source(args).read().unwrap_err().to_string();
        assert!(error.contains(&format!("line 1: unknown key {key}")), "{error}");
    }
}
