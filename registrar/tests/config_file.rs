//! Every key can be given in the file, and none is left out of what is printed.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use clap::{ArgAction, Command};
use observe::config::{Origin, Source};
use registrar::config::{Program, RULES};

/// A value for the file, by what the help calls it.
fn sample(arg: &clap::Arg) -> String {
    if matches!(arg.get_action(), ArgAction::SetTrue) {
        return "true".to_owned();
    }
    if let Some(default) =
        arg.get_default_values().first().map(|default| default.to_str().unwrap()).filter(|text| !text.is_empty())
    {
        return if default.parse::<u32>().is_ok() { default.to_owned() } else { format!("{default:?}") };
    }
    if let Some(value) = arg.get_possible_values().first() {
        return format!("{:?}", value.get_name());
    }
    let name = arg.get_value_names().unwrap()[0].as_str();
    match name {
        "FILE" | "PATH" | "DIR" | "CMD" | "UNIT" => "\"/somewhere\"",
        "URL" | "URLS" | "URL[,URL]" => "[\"http://127.0.0.1:1\"]",
        "PORT" => "8000",
        "WEIGHT" => "7",
        "PORTS" => "[1, \"5-7\"]",
        "KEY=VALUE" | "NAME=VALUE" => "{ host = \"a.example\" }",
        "ADDRESS|NAME" => "\"10.0.0.1\"",
        "ADDRESS:PORT" => "\"10.0.0.1:80\"",
        "TAG" | "TAG=T" | "TAGS" | "NAMES" | "NAME" | "ID" | "NAME|ID" | "SERVICE" | "CONTAINER" | "USER" => {
            "\"name-1\""
        }
        other => panic!("what is a value of --{} {other}? say it here", arg.get_long().unwrap_or_default()),
    }
    .to_owned()
}

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
    for arg in command.get_arguments().filter(|arg| arg.get_env().is_some() && arg.get_long() != Some("config")) {
        let variable = arg.get_env().unwrap().to_str().unwrap();
        let key = variable.strip_prefix("REGISTRAR_").unwrap().to_lowercase().replace('_', "-");
        let long = arg.get_long().unwrap();
        std::fs::write(file, format!("\n{key} = {}\n", sample(arg))).unwrap();
        let name = command.get_name();
        let mut args = if name == "registrar" { vec!["registrar"] } else { vec!["registrar", name] };
        args.extend(["--print-config", "--config", file.to_str().unwrap()]);
        args.extend(needed(name, long));
        let loaded = Source::new(Program::command(), &RULES, args).read();
        let loaded = loaded.unwrap_or_else(|error| panic!("{name} {key}: {error}"));
        assert_eq!(loaded.origin(&key), Some(&Origin::Line(2)), "{name} {key}");
        let line = format!("\n{key} = ");
        assert!(format!("\n{}", loaded.printed().unwrap()).contains(&line), "{name} {key}");
        seen.insert(key);
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
