//! Every key can be given in the file, and none is left out of what is printed.

#![allow(clippy::unwrap_used)]

#[path = "../../observe/tests/support/reference.rs"]
mod reference;

use std::collections::BTreeSet;

use clap::Command;
use registrar::config::{Program, RULES};

/// What a command must be given besides.
fn needed(command: &str, key: &str) -> Vec<&'static str> {
    let all = match command {
        "registrar" => vec!["--port=80", "--etcd=http://127.0.0.1:2"],
        "explain" | "stop" | "drain" | "undrain" => vec!["--etcd=http://127.0.0.1:2", "web-1"],
        "static" => vec!["--etcd=http://127.0.0.1:2", "--name=web", "--address=10.0.0.1:80"],
        _ => vec!["--etcd=http://127.0.0.1:2"],
    };
    let own = format!("--{key}=");
    let mut all: Vec<_> = all.into_iter().filter(|flag| !flag.starts_with(&own)).collect();
    if key == "network" {
        all.insert(0, "--internal");
    }
    all
}

fn check(command: &Command, file: &std::path::Path, seen: &mut BTreeSet<String>) {
    let name = command.get_name();
    for arg in reference::in_file(command) {
        let mut args = if name == "registrar" { vec!["registrar"] } else { vec!["registrar", name] };
        args.extend(needed(name, arg.get_long().unwrap()));
        seen.insert(reference::assert_is_key(Program::command(), &RULES, arg, &args, file));
    }
    command.get_subcommands().for_each(|command| check(command, file, seen));
}

#[test]
fn every_key_of_every_command_can_be_given_in_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let mut seen = BTreeSet::new();
    check(&Program::command(), &directory.path().join("registrar.toml"), &mut seen);
    assert!(seen.len() > 30, "{seen:?}");
    for key in RULES.at_once {
        assert!(seen.contains(*key), "{key} is no key");
    }
}

#[test]
fn a_limit_for_stop_in_the_file_is_no_wrong_use_of_drain() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("registrar.toml");
    std::fs::write(&file, "drain-timeout = \"9s\"\ntimeout = \"2s\"\netcd = \"http://127.0.0.1:1\"\n").unwrap();
    let config = ["--config", file.to_str().unwrap()];
    Program::from_args(["registrar", "drain", "web-1"].into_iter().chain(config)).unwrap();
    let error = Program::from_args(["registrar", "drain", "web-1", "--timeout", "3s"].into_iter().chain(config));
    assert!(error.unwrap_err().to_string().contains("--wait"));
}
