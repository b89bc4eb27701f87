//! The reference in docs/ says what the program takes.

#[path = "../../observe/tests/support/reference.rs"]
mod reference;

use standalone::flags::{Program, RULES};

#[test]
fn the_page_on_configuration_has_every_key_of_this_program() {
    // Which template is there differs from host to host.
    let command = Program::command().mut_arg("template", |arg| arg.default_value(None));
    reference::assert_shown("configuration.md", "standalone keys", &reference::keys(&command, &RULES));
}
