//! The reference in docs/ says what `--help` says.

#![allow(clippy::unwrap_used)]

use std::path::Path;

use registrar::config::Program;

/// The help as the page shows it.
fn help(command: &mut clap::Command) -> String {
    let help = command.render_long_help().to_string();
    let help: Vec<&str> = help.lines().map(str::trim_end).collect();
    format!("```text\n{}\n```\n", help.join("\n").trim_end())
}

#[test]
fn the_reference_holds_the_help_of_this_program_and_of_each_subcommand() {
    let mut command = Program::command().term_width(100);
    command.build();
    let mut helps = vec![("help".to_owned(), help(&mut command))];
    for subcommand in command.get_subcommands_mut().filter(|command| command.get_name() != "help") {
        let name = format!("help of {}", subcommand.get_name());
        helps.push((name, help(subcommand)));
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/registrar.md");
    let mut page = std::fs::read_to_string(&path).unwrap();
    let update = std::env::var_os("UPDATE_DOCS").is_some();
    for (name, help) in helps {
        let (start, end) = (format!("<!-- {name} -->\n"), format!("<!-- end of {name} -->\n"));
        let (before, rest) = page.split_once(&start).unwrap_or_else(|| panic!("docs/registrar.md has no {start:?}"));
        let (shown, after) = rest.split_once(&end).unwrap_or_else(|| panic!("docs/registrar.md has no {end:?}"));
        if update {
            page = format!("{before}{start}{help}{end}{after}");
        } else {
            let how = "docs/registrar.md is out of date; run UPDATE_DOCS=1 cargo test -p registrar --test docs";
            assert_eq!(shown, help, "{name}: {how}");
        }
    }
    if update {
        std::fs::write(&path, page).unwrap();
    }
}

/// An agent without --explicit would route to them.
#[test]
fn the_projects_images_that_are_no_services_say_so() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let images = std::fs::read_dir(root.join("packaging/images")).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = images.map(|image| image.join("Dockerfile")).filter(|file| file.exists()).collect();
    files.push(root.join("vagrant/Dockerfile"));
    let says =
        |file: &Path| std::fs::read_to_string(file).unwrap().lines().any(|line| line == "LABEL SERVICE_IGNORE=true");
    let (silent, ignored): (Vec<_>, Vec<_>) = files.into_iter().partition(|file| !says(file));
    assert_eq!(silent, [root.join("packaging/images/hello/Dockerfile")], "only the example is meant to be registered");
    assert!(ignored.len() >= 4, "{ignored:?}");
}

#[test]
fn the_page_on_configuration_has_every_key_of_this_program() {
    let table = observe::config::reference(&Program::command(), &registrar::config::RULES);
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/configuration.md");
    let page = std::fs::read_to_string(&path).unwrap();
    let (start, end) = ("<!-- registrar keys -->\n", "<!-- end of registrar keys -->\n");
    let (before, rest) = page.split_once(start).unwrap();
    let (shown, after) = rest.split_once(end).unwrap();
    let table = format!("\n{table}\n");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, format!("{before}{start}{table}{end}{after}")).unwrap();
        return;
    }
    let how = "docs/configuration.md is out of date; run UPDATE_DOCS=1 cargo test -p registrar --test docs";
    assert_eq!(shown, table, "{how}");
}
