//! The process: flags, log, process 1, signals, exit code. Everything else is in the library.

use std::process::ExitCode;

use anyhow::Context;
use discoverer::{health, init, signals};
use observe::answer::{complain, has_all_commands, print_and_end};
use observe::arguments;
use observe::config::{Loaded, Renewals, Source};
use standalone::flags::{Program, Task};
use standalone::{commands, run};

fn main() -> ExitCode {
    has_all_commands("standalone");
    let hidden = arguments::hide("--etcd", "STANDALONE_ETCD");
    let source = Program::source(std::env::args_os());
    let loaded = source.read().unwrap_or_else(|error| error.exit());
    if let Some(text) = loaded.printed() {
        return print_and_end(text);
    }
    let mut program = Program::from_loaded(&loaded).unwrap_or_else(|error| error.exit());
    if matches!(program.task, Task::Health { .. }) {
        health::find(&mut program.discoverer, |key| loaded.is_flag(key));
    }
    if let Err(error) = observe::log::start(program.discoverer.log_format, &program.discoverer.log_level) {
        complain(error);
        return ExitCode::from(2);
    }
    if let Err(error) = hidden {
        tracing::warn!(%error, "the password in --etcd is to be seen with ps: give --etcd-password-file, or STANDALONE_ETCD");
    }
    if program.task == Task::Run
        && let Some(code) = init::run_if_first()
    {
        return code;
    }
    // One thread: the kernel ends HAProxy when the thread that started it ends, and only the main one surely stays.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = runtime.map_err(anyhow::Error::from).and_then(|runtime| {
        let local = tokio::task::LocalSet::new();
        let result = runtime.block_on(local.run_until(async {
            match program.task {
                Task::Run => run(program, follow(source, loaded)?, signals::listen()?).await,
                _ => commands::run(program).await,
            }
        }));
        // A name that is still being resolved must not hold up the end.
        runtime.shutdown_background();
        result
    });
    discoverer::exit_code(result)
}

/// Has the flags read again when somebody asks for it, or the file changes.
fn follow(source: Source, loaded: Loaded) -> anyhow::Result<Renewals<Program>> {
    let read = |loaded: &Loaded| {
        let program = Program::from_loaded(loaded).map_err(|error| error.to_string())?;
        program.discoverer.check_again()?;
        Ok(program)
    };
    Renewals::follow(source, loaded, read).context("signals cannot be received")
}
