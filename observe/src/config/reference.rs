//! The table of keys for docs/configuration.md, from the command itself. Pure.

use std::collections::BTreeMap;

use clap::{Arg, Command};

use super::{Kind, Rules, key_arguments};

/// A Markdown table with all keys of a command and its subcommands: type, default, environment variable, of which commands, and whether it is
/// read again.
pub fn reference(command: &Command, rules: &Rules) -> String {
    let mut rows: BTreeMap<String, Row> = BTreeMap::new();
    collect(command, "", rules, &mut rows);
    let has_commands = command.get_subcommands().any(|of| key_arguments(of).next().is_some());
    let (title, line) = if has_commands { (" of |", "---|") } else { ("", "") };
    let mut text = format!("| key | type | default | environment |{title} change |\n|---|---|---|---|{line}---|\n");
    for (key, row) in rows {
        let of = if has_commands { format!(" {} |", row.commands.join(", ")) } else { String::new() };
        let default = row.defaults.iter().map(|(default, _)| default.as_str()).collect::<Vec<_>>();
        let default = if default.len() < 2 {
            default.concat()
        } else {
            let each = row.defaults.iter().map(|(default, of)| format!("{} ({})", or_none(default), of.join(", ")));
            each.collect::<Vec<_>>().join("; ")
        };
        let change = if rules.at_once.contains(&key.as_str()) { "at once" } else { "restart" };
        text.push_str(&format!("| `{key}` | {} | {default} | `{}` |{of} {change} |\n", row.kind, row.variable));
    }
    text
}

fn or_none(default: &str) -> &str {
    if default.is_empty() { "none" } else { default }
}

struct Row {
    kind: String,
    variable: String,
    commands: Vec<String>,
    /// Each with the commands that have it.
    defaults: Vec<(String, Vec<String>)>,
}

fn collect(command: &Command, name: &str, rules: &Rules, rows: &mut BTreeMap<String, Row>) {
    let name = if name.is_empty() { "sidekick" } else { name };
    for (key, arg) in key_arguments(command) {
        let row = rows.entry(key.clone()).or_insert_with(|| Row {
            kind: kind(&key, arg, rules),
            variable: arg.get_env().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default(),
            commands: Vec::new(),
            defaults: Vec::new(),
        });
        row.commands.push(name.to_owned());
        let default = default(&key, arg, rules);
        match row.defaults.iter_mut().find(|(other, _)| *other == default) {
            Some((_, of)) => of.push(name.to_owned()),
            None => row.defaults.push((default, vec![name.to_owned()])),
        }
    }
    for subcommand in command.get_subcommands() {
        collect(subcommand, subcommand.get_name(), rules, rows);
    }
}

fn default(key: &str, arg: &Arg, rules: &Rules) -> String {
    let values: Vec<_> = arg.get_default_values().iter().map(|value| value.to_string_lossy()).collect();
    let text = values.join(",");
    match Kind::of(key, arg, rules) {
        Kind::Switch => "`false`".to_owned(),
        _ if text.is_empty() => String::new(),
        Kind::Integer => format!("`{text}`"),
        _ => format!("`\"{text}\"`"),
    }
}

fn kind(key: &str, arg: &Arg, rules: &Rules) -> String {
    let word =
        arg.get_value_names().and_then(|names| names.first()).map(|name| name.to_lowercase().replace('|', " or "));
    let word = word.unwrap_or_else(|| "text".to_owned());
    let possible: Vec<String> =
        arg.get_possible_values().iter().map(|value| format!("`\"{}\"`", value.get_name())).collect();
    match Kind::of(key, arg, rules) {
        Kind::Switch => "switch".to_owned(),
        Kind::Integer => format!("number ({word})"),
        Kind::List | Kind::Joined => format!("text or array ({word})"),
        Kind::Table => format!("table or array ({word})"),
        Kind::Text if possible.is_empty() => format!("text ({word})"),
        Kind::Text => format!("one of {}", possible.join(", ")),
    }
}
