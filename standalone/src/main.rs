//! The process: flags, log, process 1, signals, exit code. Everything else is in the library.

use std::process::ExitCode;

use discoverer::config::UsageError;
use discoverer::{init, signals};
use observe::admin::{BindError, TokenError};
use registry::SecurityError;
use standalone::flags::{Program, Task};
use standalone::{commands, run};

fn main() -> ExitCode {
    let program = Program::from_args(std::env::args_os()).unwrap_or_else(|error| error.exit());
    if let Err(error) = observe::log::start(program.discoverer.log_format, &program.discoverer.log_level) {
        eprintln!("standalone: {error}");
        return ExitCode::from(2);
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
                Task::Run => run(program, signals::listen()?).await,
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
