//! What is made from the command line's own description: completions for shells, and manual pages.

use std::io::{self, Write};
use std::path::Path;

use clap::CommandFactory;
use clap_complete::Shell;

use crate::config::Cli;

fn command() -> clap::Command {
    // A user and password may be part of --etcd, so that values stay out.
    Cli::command().mut_args(|arg| arg.hide_env_values(true))
}

/// Prints what lets a shell complete the flags.
///
/// # Errors
/// The standard output cannot be written to.
pub fn print_completions(shell: Shell) -> io::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command(), "discoverer", &mut script);
    match io::stdout().lock().write_all(&script) {
        // Who reads it may have seen enough.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error),
        _ => Ok(()),
    }
}

/// Writes the manual pages, one for each command: `discoverer.1`, `discoverer-status.1` and so on.
///
/// # Errors
/// The directory cannot be made or written to.
pub fn write_pages(directory: &Path) -> io::Result<()> {
    std::fs::create_dir_all(directory)?;
    clap_mangen::generate_to(command(), directory)
}
