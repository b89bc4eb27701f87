//! The registrar's process: flags, log, signals, exit code. Everything else is in the library.

use std::process::ExitCode;

use anyhow::Context;
use registrar::config::{Config, LogFormat};
use registrar::{Traces, docker, run};
use tokio::signal::unix::{SignalKind, signal};
use tracing::{error, info};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let config = Config::from_args(std::env::args_os()).unwrap_or_else(|error| error.exit());
    start_log(&config);
    match serve(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error!(error = format!("{error:#}"), "the registrar cannot run");
            ExitCode::FAILURE
        }
    }
}

fn serve(config: Config) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting the runtime")?;
    let result = runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).context("listening for SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("listening for SIGINT")?;
        let told_to_stop = async {
            tokio::select! {
                _ = terminate.recv() => info!(signal = "SIGTERM", "told to stop"),
                _ = interrupt.recv() => info!(signal = "SIGINT", "told to stop"),
            }
        };
        let traces: Traces = docker::traces_of_this_process();
        Ok(run(config, traces, told_to_stop).await?)
    });
    // A name that is still being resolved must not hold up the end.
    runtime.shutdown_background();
    result
}

/// Logs to the standard error: our own lines from the level asked for, those of libraries from `warn`.
fn start_log(config: &Config) {
    let level = config.log_level.as_str();
    let others = if level == "error" { "error" } else { "warn" };
    let filter = EnvFilter::new(format!("{others},registrar={level},registry={level}"));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    match config.log_format {
        LogFormat::Text => log.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).init(),
        LogFormat::Json => log.json().flatten_event(true).init(),
    }
}
