//! The process: flags, log, process 1, signals, exit code. Everything else is in the library.

use std::process::ExitCode;

use anyhow::Context;
use discoverer::config::UsageError;
use discoverer::{init, signals};
use observe::admin::{BindError, TokenError};
use observe::arguments;
use observe::config::{Loaded, Renewals, Source};
use registry::SecurityError;
use standalone::flags::{Program, Task};
use standalone::{commands, run};

fn main() -> ExitCode {
    let hidden = arguments::hide("--etcd", "STANDALONE_ETCD");
    let source = Program::source(std::env::args_os());
    let loaded = source.read().unwrap_or_else(|error| error.exit());
    if let Some(text) = loaded.printed() {
        return match commands::print(&text) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("standalone: {error:#}");
                ExitCode::FAILURE
            }
        };
    }
    let program = Program::from_loaded(&loaded).unwrap_or_else(|error| error.exit());
    if let Err(error) = observe::log::start(program.discoverer.log_format, &program.discoverer.log_level) {
        eprintln!("standalone: {error}");
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
    match result {
        Ok(code) => code,
        Err(error) => {
            tracing::error!("{error:#}");
            let is_usage = error.is::<UsageError>()
                || error.is::<SecurityError>()
                || error.is::<TokenError>()
                || error.downcast_ref::<BindError>().is_some_and(BindError::is_usage);
            // As clap ends after a flag that it refuses.
            if is_usage { ExitCode::from(2) } else { ExitCode::FAILURE }
        }
    }
}

/// Has the flags read again when somebody asks for it, or the file changes.
fn follow(source: Source, loaded: Loaded) -> anyhow::Result<Renewals<Program>> {
    let read = |loaded: &Loaded| {
        let program = Program::from_loaded(loaded).map_err(|error| error.to_string())?;
        program.discoverer.check().map_err(|error| error.to_string())?;
        observe::log::filter_by(&program.discoverer.log_level).map_err(|error| error.to_string())?;
        Ok(program)
    };
    Renewals::follow(source, loaded, read).context("signals cannot be received")
}
