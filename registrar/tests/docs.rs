//! The reference in docs/ says what `--help` says.

#![allow(clippy::unwrap_used)]

#[path = "../../observe/tests/support/reference.rs"]
mod reference;

use std::path::Path;

use registrar::config::{Program, RULES};

#[test]
fn the_reference_holds_the_help_of_this_program_and_of_each_subcommand() {
    let mut command = Program::command().term_width(100);
    command.build();
    reference::assert_shown("registrar.md", "help", &reference::help(&mut command));
    for subcommand in command.get_subcommands_mut().filter(|command| command.get_name() != "help") {
        let name = format!("help of {}", subcommand.get_name());
        reference::assert_shown("registrar.md", &name, &reference::help(subcommand));
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
    reference::assert_shown("configuration.md", "registrar keys", &reference::keys(&Program::command(), &RULES));
}
