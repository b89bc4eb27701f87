//! The registrar under test as a plain program of this host, for what needs no container.

use std::path::Path;

use tempfile::TempDir;

use crate::process::{Finished, Process, find_workspace_binary, run};
use crate::secs;

/// A running registrar. Dropping it ends it.
pub struct Registrar {
    process: Process,
    // Holds the log; goes after the process.
    _dir: TempDir,
}

impl Registrar {
    /// Starts it with these arguments.
    pub fn start(args: &[&str]) -> Registrar {
        let dir = tempfile::Builder::new().prefix("e2e-registrar-").tempdir().unwrap();
        let args: Vec<String> = args.iter().map(|&arg| arg.to_owned()).collect();
        let program = find_workspace_binary("registrar");
        let process = Process::start("registrar", &program, &args, &dir.path().join("log"), Path::new("/"));
        Registrar { process, _dir: dir }
    }

    /// Its process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }
}

/// Runs it to its end with these arguments: for `--help` and wrong flags.
pub async fn run_registrar(args: &[&str]) -> Finished {
    run(&find_workspace_binary("registrar"), args, &[], secs(20)).await
}
