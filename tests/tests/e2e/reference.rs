//! The reference in docs/ names what the code has: labels, fields of templates, errors.

use std::collections::BTreeSet;
use std::fs;

use e2e::workspace;
use regex::Regex;

fn read(path: &str) -> String {
    fs::read_to_string(workspace().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// What a constant of a source file holds, up to its `;`.
fn constant<'a>(source: &'a str, name: &str) -> &'a str {
    let (_, rest) = source.split_once(&format!("const {name}:")).unwrap_or_else(|| panic!("no constant {name}"));
    let (_, value) = rest.split_once('=').unwrap();
    value.split_once("];").unwrap().0
}

/// What a pattern's first group finds.
fn found(source: &str, pattern: &str) -> BTreeSet<String> {
    let pattern = Regex::new(pattern).unwrap();
    pattern.captures_iter(source).map(|found| found[1].to_owned()).collect()
}

#[test]
fn each_label_that_the_registrar_reads_is_in_the_reference() {
    let page = read("docs/labels.md");
    let check = read("registrar/src/service/check.rs");
    let service = read("registrar/src/service.rs");
    let mut names = BTreeSet::new();
    for constant_name in ["WORDS", "DETAILS", "INERT"] {
        names.extend(found(constant(&check, constant_name), r#""(check_[a-z_]+)""#));
    }
    names.extend(found(&service, r#"(?:get|general|own)\("([a-z_]+)"\)"#));
    let settings = read("registry/src/settings.rs");
    let (_, settings) = settings.split_once("pub fn check(name").unwrap();
    names.extend(found(settings.split_once("_ => Ok").unwrap().0, r#""([a-z_]+)""#));
    assert!(names.len() > 25, "{names:?}");
    let lacks: Vec<String> = names
        .iter()
        .map(|name| name.to_ascii_uppercase())
        .filter(|name| !page.contains(&format!("SERVICE_{name}`")) && !page.contains(&format!("SERVICE_{name}=")))
        .collect();
    assert!(lacks.is_empty(), "docs/labels.md lacks SERVICE_... of {lacks:?}");

    let alias = read("registrar/src/service/alias.rs");
    let mut others = found(&alias, r#""(VIRTUAL_[A-Z]+)""#);
    others.extend(found(&alias, r#""healthcheck(\.[a-z]+)""#));
    others.extend(found(&alias, r#""(server\.[a-z]+)""#));
    others.remove(".port"); // It is refused.
    let lacks: Vec<&String> = others.iter().filter(|name| !page.contains(name.as_str())).collect();
    assert!(lacks.is_empty() && others.len() > 9, "docs/labels.md lacks {lacks:?}");
}

/// The messages of an error type, with `...` for what changes. Those that only pass on another one's are none.
fn messages(path: &str, name: &str) -> Vec<String> {
    let source = read(path);
    let begin = Regex::new(&format!(r"pub(?:\(crate\))? enum {name} \{{")).unwrap();
    let begin = begin.find(&source).unwrap_or_else(|| panic!("{path} has no enum {name}")).end();
    let body = source[begin..].split_once("\n}").unwrap().0;
    let literal = Regex::new(r#"#\[error\(\s*"((?:[^"\\]|\\[\s\S])*)""#).unwrap();
    let broken = Regex::new(r"\\\n\s*").unwrap();
    let argument = Regex::new(r"\{[^{}]*\}").unwrap();
    literal
        .captures_iter(body)
        .map(|found| argument.replace_all(&broken.replace_all(&found[1], "").replace("\\\"", "\""), "...").into_owned())
        .filter(|message| message.chars().any(char::is_alphabetic))
        .collect()
}

#[test]
fn each_error_and_refusal_is_in_the_reference() {
    let page = read("docs/errors.md");
    let types = [
        ("registrar/src/service/refusal.rs", "Reason"),
        ("registrar/src/service/rule.rs", "RuleError"),
        ("registrar/src/service/mapping.rs", "MappingError"),
        ("registrar/src/docker.rs", "DockerError"),
        ("registrar/src/drain.rs", "DrainError"),
        ("registry/src/key.rs", "NameError"),
        ("registry/src/key.rs", "AddressError"),
        ("registry/src/key.rs", "KeyError"),
        ("registry/src/record.rs", "RecordError"),
        ("registry/src/store.rs", "StoreError"),
        ("discoverer/src/compose.rs", "ComposeError"),
        ("discoverer/src/haproxy/check.rs", "CheckError"),
        ("discoverer/src/apply.rs", "ApplyError"),
        ("discoverer/src/haproxy/reload.rs", "ReloadError"),
        ("discoverer/src/snapshot.rs", "SnapshotError"),
        ("discoverer/src/client.rs", "ApiError"),
        ("observe/src/admin/address.rs", "AddressError"),
        ("observe/src/admin/address.rs", "BindError"),
    ];
    let row = |message: &str| format!("| `` {} `` | ", message.replace('|', "\\|"));
    let mut wanted = BTreeSet::new();
    let mut lacks = Vec::new();
    for (path, name) in types {
        let messages = messages(path, name);
        assert!(!messages.is_empty(), "{path}: {name} has no messages");
        lacks.extend(messages.iter().map(|message| row(message)).filter(|row| !page.contains(row)));
        wanted.extend(messages.iter().map(|message| row(message)));
    }
    assert!(lacks.is_empty(), "docs/errors.md lacks these rows, each with what to do:\n{}", lacks.join("\n"));
    let rows = page.lines().filter(|line| line.starts_with("| `` "));
    let old: Vec<&str> = rows.filter(|line| !wanted.iter().any(|row| line.starts_with(row.as_str()))).collect();
    assert!(old.is_empty(), "docs/errors.md has rows that no program says any more:\n{}", old.join("\n"));
    assert!(wanted.len() > 80, "{} messages", wanted.len());
}
