//! The settings in force as a file (`--print-config`). Pure.

use std::ffi::OsString;
use std::path::Path;

use super::{Kind, Origin, Setting, shown};
use crate::escape::is_unsafe;

/// What stands for a password.
const HIDDEN: &str = "...";

/// Whether there is a URL in it with a user and a password, as `http://user:password@host`.
pub(super) fn is_secret(text: &str) -> bool {
    hidden(text) != text
}

/// The text without what stands before the `@` of its URLs.
fn hidden(text: &str) -> String {
    let part = |part: &str| {
        let Some((scheme, rest)) = part.split_once("://") else { return part.to_owned() };
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        // A password may have a slash that was not written as %2F.
        let at = rest[..end].rfind('@').or_else(|| rest.rfind('@'));
        at.map_or_else(|| part.to_owned(), |at| format!("{scheme}://{HIDDEN}{}", &rest[at..]))
    };
    text.split(',').map(part).collect::<Vec<_>>().join(",")
}

/// All settings, each with where it comes from. What has no value, or a secret one, is a comment, so that what is printed is a file
/// that can be read.
pub(super) fn print(settings: &[Setting], file: Option<&Path>) -> String {
    let mut text = String::new();
    for setting in settings {
        let origin = match &setting.origin {
            Origin::Flag(name) => format!("--{name}"),
            Origin::Variable(name) => format!("environment variable {name}"),
            Origin::Line(line) => format!("{} line {line}", file.map(shown).unwrap_or_default()),
            Origin::Default => "default".to_owned(),
        };
        let line = match &setting.values {
            None => format!("# {} is not set", setting.key),
            Some(values) => match values.iter().map(|value| value.to_str()).collect::<Option<Vec<_>>>() {
                None => format!("# {} is not UTF-8, which no file can have  # {origin}", setting.key),
                Some(values) if values.iter().any(|value| is_secret(value)) => {
                    let values: Vec<String> = values.into_iter().map(hidden).collect();
                    let values: Vec<&str> = values.iter().map(String::as_str).collect();
                    let why = "a password, which is not shown; give it here, or in a file of its own";
                    format!("# {} = {}  # {origin}; it has {why}", setting.key, literal(setting.kind, &values))
                }
                Some(values) => format!("{} = {}  # {origin}", setting.key, literal(setting.kind, &values)),
            },
        };
        text.push_str(&line);
        text.push('\n');
    }
    text
}

fn literal(kind: Kind, values: &[&str]) -> String {
    let text = |value: &&str| quoted(value);
    match kind {
        Kind::Switch => values.concat(),
        Kind::Integer => values.first().and_then(|value| value.parse::<i64>().ok()).unwrap_or_default().to_string(),
        Kind::Text | Kind::Joined => text(&values.first().copied().unwrap_or_default()),
        Kind::List | Kind::Table => format!("[{}]", values.iter().map(text).collect::<Vec<_>>().join(", ")),
    }
}

/// As a basic string of TOML, on one line: what stands in the comment behind it ends with the line.
fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if is_unsafe(c) => out.push_str(&format!("\\u{:04X}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// A value as a log may show it. Of those with names, which are the user's own, only the names.
pub(super) fn for_log(setting: &Setting) -> String {
    let shown = |value: &OsString| {
        let text = hidden(&value.to_string_lossy());
        let name = text.split('=').next().unwrap_or_default().to_owned();
        if setting.kind == Kind::Table { name } else { text }
    };
    setting.values.iter().flatten().map(shown).collect::<Vec<_>>().join(", ")
}
