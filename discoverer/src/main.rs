//! Parses the flags, sets up the log, runs, exits.

use std::process::ExitCode;

use discoverer::config::{Cli, UsageError};
use discoverer::init;
use observe::admin::{BindError, TokenError};
use registry::SecurityError;

fn main() -> ExitCode {
    let cli = Cli::read();
    if let Err(error) = observe::log::start(cli.flags.log_format, &cli.flags.log_level) {
        eprintln!("discoverer: {error}");
        return ExitCode::from(2);
    }
    if let Some(code) = init::run_if_first() {
        return code;
    }
    // One thread: the kernel ends HAProxy when the thread that started it ends, and only the main one surely stays.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = runtime.map_err(anyhow::Error::from).and_then(|runtime| {
        let local = tokio::task::LocalSet::new();
        runtime.block_on(local.run_until(discoverer::main(cli)))
    });
    match result {
        Ok(code) => code,
        Err(error) => {
            tracing::error!("{error:#}");
            // As clap ends after a flag that it refuses.
            let is_usage = error.is::<UsageError>()
                || error.is::<SecurityError>()
                || error.is::<TokenError>()
                || error.downcast_ref::<BindError>().is_some_and(BindError::is_usage);
            if is_usage { ExitCode::from(2) } else { ExitCode::FAILURE }
        }
    }
}
