//! The reference in docs/ says what `--help` says.

#[path = "../../observe/tests/support/reference.rs"]
mod reference;

use discoverer::config::{RULES, command};

#[test]
fn the_reference_holds_the_help_of_this_program() {
    let mut command = command().mut_args(|arg| arg.hide_env_values(true)).term_width(100);
    reference::assert_shown("discoverer.md", "help", &reference::help(&mut command));
}

#[test]
fn the_page_on_configuration_has_every_key_of_this_program() {
    reference::assert_shown("configuration.md", "discoverer keys", &reference::keys(&command(), &RULES));
}
