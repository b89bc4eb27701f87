//! The reference in docs/ says what `--help` says.

#![allow(clippy::unwrap_used)]

use std::path::Path;

#[test]
fn the_reference_holds_the_help_of_this_program() {
    let mut command = discoverer::config::command().mut_args(|arg| arg.hide_env_values(true)).term_width(100);
    let help = command.render_long_help().to_string();
    let help: Vec<&str> = help.lines().map(str::trim_end).collect();
    let help = format!("```text\n{}\n```\n", help.join("\n").trim_end());
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/discoverer.md");
    let page = std::fs::read_to_string(&path).unwrap();
    let (start, end) = ("<!-- help -->\n", "<!-- end of help -->\n");
    let (before, rest) = page.split_once(start).unwrap();
    let (shown, after) = rest.split_once(end).unwrap();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, format!("{before}{start}{help}{end}{after}")).unwrap();
        return;
    }
    assert_eq!(
        shown, help,
        "docs/discoverer.md is out of date; run UPDATE_DOCS=1 cargo test -p discoverer --test docs"
    );
}

#[test]
fn the_page_on_configuration_has_every_key_of_this_program() {
    let table = observe::config::reference(&discoverer::config::command(), &discoverer::config::RULES);
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/configuration.md");
    let page = std::fs::read_to_string(&path).unwrap();
    let (start, end) = ("<!-- discoverer keys -->\n", "<!-- end of discoverer keys -->\n");
    let (before, rest) = page.split_once(start).unwrap();
    let (shown, after) = rest.split_once(end).unwrap();
    let table = format!("\n{table}\n");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, format!("{before}{start}{table}{end}{after}")).unwrap();
        return;
    }
    let how = "docs/configuration.md is out of date; run UPDATE_DOCS=1 cargo test -p discoverer --test docs";
    assert_eq!(shown, table, "{how}");
}
