//! What the tests of each program's settings have in common: a value for every key, and pages that are written by the code.

#![allow(dead_code, clippy::unwrap_used, reason = "each of the tests takes what it needs")]

use std::path::Path;

use clap::{Arg, ArgAction, Command};
use observe::config::{Origin, Rules, Source};

/// A value for the file, by what the help calls it.
fn sample(arg: &Arg) -> String {
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
        "WEIGHT" => "7",
        "PORTS" => "[1, \"5-7\"]",
        "KEY=VALUE" | "NAME=VALUE" => "{ host = \"a.example\" }",
        "ADDRESS" => "\"127.0.0.1:9401\"",
        "ADDRESS|NAME" => "\"10.0.0.1\"",
        "ADDRESS:PORT" => "\"10.0.0.1:80\"",
        "tag=NAME" => "[\"tag=edge\"]",
        "UNIT" => "\"haproxy.service\"",
        "TAG" | "TAG=T" | "TAGS" | "NAMES" | "NAME" | "ID" | "NAME|ID" | "SERVICE" | "CONTAINER" | "USER" => {
            "\"name-1\""
        }
        other => panic!("what is a value of --{} {other}? say it here", arg.get_long().unwrap_or_default()),
    }
    .to_owned()
}

/// The flags of a command that the file may give.
pub(crate) fn in_file(command: &Command) -> impl Iterator<Item = &Arg> {
    command.get_arguments().filter(|arg| arg.get_env().is_some() && arg.get_long() != Some("config"))
}

/// The file gives a flag's key to the program that is called so, and what is printed has it. Gives the key.
pub(crate) fn assert_is_key(program: Command, rules: &'static Rules, arg: &Arg, args: &[&str], file: &Path) -> String {
    let variable = arg.get_env().unwrap().to_str().unwrap();
    let (_, name) = variable.split_once('_').unwrap();
    let key = name.to_lowercase().replace('_', "-");
    std::fs::write(file, format!("\n{key} = {}\n", sample(arg))).unwrap();
    let args = args.iter().copied().chain(["--print-config", "--config", file.to_str().unwrap()]);
    let loaded = Source::new(program, rules, args).read();
    let loaded = loaded.unwrap_or_else(|error| panic!("{key}: {error}"));
    assert_eq!(loaded.origin(&key), Some(&Origin::Line(2)), "{key}");
    let line = format!("\n{key} = ");
    assert!(format!("\n{}", loaded.printed().unwrap()).contains(&line), "{key}");
    key
}

/// The help as a page shows it.
pub(crate) fn help(command: &mut Command) -> String {
    let help = command.render_long_help().to_string();
    let help: Vec<&str> = help.lines().map(str::trim_end).collect();
    format!("```text\n{}\n```\n", help.join("\n").trim_end())
}

/// All keys, as docs/configuration.md shows them.
pub(crate) fn keys(command: &Command, rules: &Rules) -> String {
    format!("\n{}\n", observe::config::reference(command, rules))
}

/// What stands between `<!-- NAME -->` and `<!-- end of NAME -->` in a page of docs/ is this text; with UPDATE_DOCS it is written there.
pub(crate) fn assert_shown(page: &str, name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs").join(page);
    let all = std::fs::read_to_string(&path).unwrap();
    let (start, end) = (format!("<!-- {name} -->\n"), format!("<!-- end of {name} -->\n"));
    let (before, rest) = all.split_once(&start).unwrap_or_else(|| panic!("docs/{page} has no {start:?}"));
    let (shown, after) = rest.split_once(&end).unwrap_or_else(|| panic!("docs/{page} has no {end:?}"));
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, format!("{before}{start}{text}{end}{after}")).unwrap();
        return;
    }
    let program = env!("CARGO_PKG_NAME");
    assert_eq!(
        shown, text,
        "{name}: docs/{page} is out of date; run UPDATE_DOCS=1 cargo test -p {program} --test docs"
    );
}
