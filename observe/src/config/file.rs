//! The file's text as keys and values, each with its line. The reading of the file is bounded; all else is pure.

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::ops::Range;
use std::path::Path;

use toml::de::{DeTable, DeValue};

use super::ConfigError;
use crate::escape::escaped_lines;
use crate::file::read_bytes;

/// The largest file that is read, in bytes.
const SIZE_LIMIT: u64 = 1024 * 1024;
/// How much of a key is shown.
const SHOWN: usize = 60;
/// How alike two names must be to be taken for one.
const ALIKE: f64 = 0.8;

/// A value.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    Text(String),
    Integer(String),
    Switch(bool),
    Array(Vec<Value>),
    Table(Vec<(String, Value)>),
    /// A time, or a number with a fraction: no setting is one.
    Other,
}

impl Value {
    fn of(value: &DeValue<'_>) -> Self {
        match value {
            DeValue::String(text) => Self::Text(text.to_string()),
            DeValue::Integer(integer) => {
                let read = i128::from_str_radix(integer.as_str(), integer.radix());
                read.map_or(Self::Other, |integer| Self::Integer(integer.to_string()))
            }
            DeValue::Boolean(value) => Self::Switch(*value),
            DeValue::Array(values) => Self::Array(values.iter().map(|value| Self::of(value.get_ref())).collect()),
            DeValue::Table(table) => {
                let pair = |(name, value): (&toml::Spanned<std::borrow::Cow<'_, str>>, &toml::Spanned<DeValue<'_>>)| {
                    (name.get_ref().to_string(), Self::of(value.get_ref()))
                };
                Self::Table(table.iter().map(pair).collect())
            }
            DeValue::Float(_) | DeValue::Datetime(_) => Self::Other,
        }
    }

    /// As one element of a list.
    pub(super) fn word(&self) -> Option<String> {
        match self {
            Self::Text(text) | Self::Integer(text) => Some(text.clone()),
            _ => None,
        }
    }

    /// As the value of a name.
    pub(super) fn scalar(&self) -> Option<String> {
        match self {
            Self::Switch(value) => Some(value.to_string()),
            _ => self.word(),
        }
    }
}

/// A key's value, and its line.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Entry {
    pub(super) line: usize,
    pub(super) value: Value,
}

/// Reads the file: no more of it than it may have, and nothing that is no file, which might never end.
pub(super) fn text(path: &Path) -> Result<String, String> {
    let told = |error: std::io::Error| match error.kind() {
        ErrorKind::NotFound => "there is no such file".to_owned(),
        ErrorKind::PermissionDenied => "this user may not read it".to_owned(),
        ErrorKind::FileTooLarge => "it is larger than 1 MiB".to_owned(),
        _ => format!("it cannot be read: {error}"),
    };
    let bytes = read_bytes(path, SIZE_LIMIT).map_err(told)?;
    String::from_utf8(bytes).map_err(|error| {
        let line =
            error.as_bytes()[..error.utf8_error().valid_up_to()].iter().filter(|byte| **byte == b'\n').count() + 1;
        format!("line {line} is not UTF-8")
    })
}

/// Reads a file that has these keys: its text, and what that says.
pub(super) fn read(path: &Path, keys: &BTreeSet<String>) -> Result<(String, BTreeMap<String, Entry>), ConfigError> {
    let text = text(path).map_err(|reason| ConfigError::File { path: path.to_owned(), reason })?;
    let entries = parse(&text, keys);
    let entries = entries.map_err(|(line, reason)| ConfigError::Line { path: path.to_owned(), line, reason })?;
    Ok((text, entries))
}

/// Reads the text; else the line, and what is wrong with it. Nothing of the text but a key is in that.
pub(super) fn parse(text: &str, keys: &BTreeSet<String>) -> Result<BTreeMap<String, Entry>, (usize, String)> {
    let line = |span: Range<usize>| {
        text.as_bytes()[..span.start.min(text.len())].iter().filter(|byte| **byte == b'\n').count() + 1
    };
    let table = DeTable::parse(text).map_err(|error| {
        (line(error.span().unwrap_or_default()), format!("this is no TOML: {}", shown(error.message())))
    })?;
    let mut entries: Vec<_> = table.get_ref().iter().collect();
    entries.sort_by_key(|(key, _)| key.span().start);
    let mut found = BTreeMap::new();
    for (key, value) in entries {
        let (name, at) = (key.get_ref(), line(key.span()));
        if !keys.contains(name.as_ref()) {
            return Err((at, unknown(name, keys)));
        }
        found.insert(name.to_string(), Entry { line: at, value: Value::of(value.get_ref()) });
    }
    Ok(found)
}

fn unknown(name: &str, keys: &BTreeSet<String>) -> String {
    let meant = name.to_ascii_lowercase().replace('_', "-");
    let nearest = keys
        .iter()
        .map(|key| (strsim::jaro_winkler(&meant, key), key))
        .filter(|(alike, _)| *alike >= ALIKE)
        .max_by(|one, other| one.0.total_cmp(&other.0));
    let hint = match (name, nearest) {
        ("config" | "print-config", _) => "; it is for the command line only".to_owned(),
        (_, Some((_, key))) => format!("; is {key} meant?"),
        (_, None) => "; --print-config shows all keys".to_owned(),
    };
    format!("unknown key {}{hint}", shown(name))
}

fn shown(text: &str) -> String {
    let short: String = text.chars().take(SHOWN).collect();
    let cut = if short.len() < text.len() { "..." } else { "" };
    format!("{}{cut}", escaped_lines(&short).replace('\n', "\\n"))
}
