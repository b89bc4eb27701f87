//! What is made from the command line's own description: completions for shells, and manual pages.

use std::io;
use std::path::Path;

use clap_complete::Shell;

use crate::config::Program;

/// What lets a shell complete the flags.
pub fn completions(shell: Shell) -> Vec<u8> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Program::command(), "registrar", &mut script);
    script
}

/// Writes the manual pages, one for each command: `registrar.1`, `registrar-agent.1` and so on.
///
/// # Errors
/// The directory cannot be made or written to.
pub fn write_pages(directory: &Path) -> io::Result<()> {
    std::fs::create_dir_all(directory)?;
    clap_mangen::generate_to(Program::command(), directory)
}
