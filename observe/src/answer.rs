//! What a command answers, and what is made of its command line.

use std::fmt::Display;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::OnceLock;

use clap::Command;
use clap_complete::Shell;

use crate::escape::escaped_lines;

/// Writes to the standard output. Who reads it may have seen enough: that is no error.
///
/// # Errors
/// It cannot be written to, which is said.
pub fn print(text: impl AsRef<[u8]>) -> io::Result<()> {
    match io::stdout().lock().write_all(text.as_ref()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(io::Error::new(error.kind(), format!("writing to the standard output: {error}")))
        }
        _ => Ok(()),
    }
}

/// Writes it, and says how the process is to end.
pub fn print_and_end(text: impl AsRef<[u8]>) -> ExitCode {
    match print(text) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(error);
            ExitCode::FAILURE
        }
    }
}

/// Writes to the standard error why a command has no answer, with the program's name before it. The words may be those of whoever
/// answered: a terminal obeys nothing in them.
pub fn complain(words: impl Display) {
    let called = std::env::args_os().next().map(PathBuf::from);
    let name = called.as_deref().and_then(Path::file_name).unwrap_or_default().display();
    eprintln!("{name}: {}", escaped_lines(&words.to_string()));
}

/// The program that this process is, where it has the commands of the others. The process's own, as its log is.
static HAS_ALL: OnceLock<&'static str> = OnceLock::new();

/// To be said at the beginning by a program that has the commands of others as its own: theirs may not be installed beside it.
pub fn has_all_commands(program: &'static str) {
    // Whoever says it again says the same.
    let _ = HAS_ALL.set(program);
}

/// How a command of a program is called where this process runs: `discoverer explain`, or `standalone explain`.
pub fn command(program: &str, command: &str) -> String {
    format!("{} {command}", HAS_ALL.get().copied().unwrap_or(program))
}

/// What lets a shell complete the flags of a program of this name.
pub fn completions(mut command: Command, name: &str, shell: Shell) -> Vec<u8> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, name, &mut script);
    script
}

/// Writes the manual pages, one for each command: `registrar.1`, `registrar-agent.1` and so on.
///
/// # Errors
/// The directory cannot be made or written to.
pub fn write_pages(command: Command, directory: &Path) -> io::Result<()> {
    std::fs::create_dir_all(directory)?;
    clap_mangen::generate_to(hide_values(command), directory)
}

/// A user and password may be part of a value, so that values stay out of help and manual.
pub(crate) fn hide_values(command: Command) -> Command {
    command.mut_args(|arg| arg.hide_env_values(true)).mut_subcommands(hide_values)
}

#[cfg(test)]
mod tests {
    use clap::Arg;

    use super::*;

    #[test]
    fn each_command_has_a_page_and_no_value_of_a_variable_is_in_it() {
        let arg = Arg::new("etcd").long("etcd").env("CARGO_PKG_NAME");
        let command = Command::new("tool").arg(arg.clone()).subcommand(Command::new("peek").arg(arg));
        let directory = tempfile::tempdir().unwrap();
        write_pages(command.clone(), directory.path()).unwrap();
        for name in ["tool.1", "tool-peek.1"] {
            let page = std::fs::read_to_string(directory.path().join(name)).unwrap();
            assert!(page.contains("CARGO_PKG_NAME") && !page.contains("observe"), "{page}");
        }
        let script = String::from_utf8(completions(command, "tool", Shell::Bash)).unwrap();
        assert!(script.contains("--etcd"), "{script}");
    }
}
