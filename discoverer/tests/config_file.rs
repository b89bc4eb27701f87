//! Every key can be given in the file, and none is left out of what is printed.

#![allow(clippy::unwrap_used)]

#[path = "../../observe/tests/support/reference.rs"]
mod reference;

use std::collections::BTreeSet;

use discoverer::config::{RULES, command};

#[test]
fn every_key_can_be_given_in_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("discoverer.toml");
    let mut seen = BTreeSet::new();
    for arg in reference::in_file(&command()) {
        seen.insert(reference::assert_is_key(command(), &RULES, arg, &["discoverer"], &file));
    }
    assert!(seen.len() > 30, "{seen:?}");
    for key in RULES.at_once {
        assert!(seen.contains(*key), "{key} is no key");
    }
}
