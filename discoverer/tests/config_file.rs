//! Every key can be given in the file, and none is left out of what is printed.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use clap::{ArgAction, Command};
use observe::config::{Origin, Source};

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
        "FILE" | "PATH" | "DIR" | "CMD" => "\"/somewhere\"",
        "URL" | "URLS" | "URL[,URL]" => "[\"http://127.0.0.1:1\"]",
        "PORT" => "8000",
        "tag=NAME" => "[\"tag=edge\"]",
        "WEIGHT" => "7",
        "PORTS" => "[1, \"5-7\"]",
        "KEY=VALUE" | "NAME=VALUE" => "{ host = \"a.example\" }",
        "ADDRESS" => "\"127.0.0.1:9401\"",
        "TAG" | "TAG=T" | "TAGS" | "NAMES" | "NAME" | "ID" | "NAME|ID" | "SERVICE" | "CONTAINER" | "USER" => {
            "\"name-1\""
        }
        "UNIT" => "\"haproxy.service\"",
        other => panic!("what is a value of --{} {other}? say it here", arg.get_long().unwrap_or_default()),
    }
    .to_owned()
}

#[test]
fn every_key_can_be_given_in_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("discoverer.toml");
    let command: Command = discoverer::config::command();
    let mut seen = BTreeSet::new();
    for arg in command.get_arguments().filter(|arg| arg.get_env().is_some() && arg.get_long() != Some("config")) {
        let key = arg.get_long().unwrap();
        std::fs::write(&file, format!("\n{key} = {}\n", sample(arg))).unwrap();
        let args = ["discoverer", "--print-config", "--config", file.to_str().unwrap()];
        let loaded = Source::new(command.clone(), &discoverer::config::RULES, args).read();
        let loaded = loaded.unwrap_or_else(|error| panic!("{key}: {error}"));
        assert_eq!(loaded.origin(key), Some(&Origin::Line(2)), "{key}");
        let line = format!("\n{key} = ");
        assert!(format!("\n{}", loaded.printed().unwrap()).contains(&line), "{key}");
        seen.insert(key.to_owned());
    }
    assert!(seen.len() > 30, "{seen:?}");
    for key in discoverer::config::RULES.at_once {
        assert!(seen.contains(*key), "{key} is no key");
    }
}
