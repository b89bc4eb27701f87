//! The registrar's process: flags, log, signals, exit code. Everything else is in the library.

use std::process::ExitCode;

use anyhow::Context;
use jiff::Timestamp;
use observe::answer::{self, complain, print, print_and_end};
use observe::arguments;
use observe::config::{Loaded, Renewals, Source};
use observe::log::{self, LogError};
use registrar::config::{Command, LogFlags, Program};
use registrar::{Ending, Traces, agent, docker, drain, explain, fixed, list, run};
use registry::Store;
use tokio::signal::unix::{SignalKind, signal};
use tracing::{error, info, warn};

fn main() -> ExitCode {
    let hidden = arguments::hide("--etcd", "REGISTRAR_ETCD");
    let source = Program::source(std::env::args_os());
    let loaded = source.read().unwrap_or_else(|error| error.exit());
    if let Some(text) = loaded.printed() {
        return print_and_end(text);
    }
    let program = Program::from_loaded(&loaded).unwrap_or_else(|error| error.exit());
    let is_daemon = program.is_daemon();
    if let Err(error) = program.log().map_or(Ok(()), start_log).map_err(Into::into).and_then(|()| check(&program)) {
        complain(error);
        // As clap ends after a flag that it refuses.
        return ExitCode::from(2);
    }
    if let Err(error) = hidden {
        warn!(%error, "the password in --etcd is to be seen with ps: give --etcd-password-file, or REGISTRAR_ETCD");
    }
    match serve(program, source, loaded) {
        Ok(code) => code,
        Err(error) => {
            if is_daemon {
                error!(error = format!("{error:#}"), "the registrar cannot run");
            } else {
                complain(format_args!("{error:#}"));
            }
            ExitCode::FAILURE
        }
    }
}

/// Refuses flags that nothing can be done with.
fn check(program: &Program) -> anyhow::Result<()> {
    if let Some(etcd) = program.etcd() {
        etcd.security.security().check()?;
    }
    if let Some((address, flags)) = program.admin() {
        flags.access(address)?;
    }
    Ok(())
}

fn serve(program: Program, source: Source, loaded: Loaded) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting the runtime")?;
    let result = runtime.block_on(async {
        match program {
            Program::Sidekick(config) => {
                let traces: Traces = docker::traces_of_this_process();
                let renewals = follow(source, loaded, |program| match program {
                    Program::Sidekick(config) => Some(*config),
                    Program::Command(_) => None,
                })?;
                run(*config, traces, renewals, told_to_stop()?).await?;
            }
            Program::Command(command) => match *command {
                Command::Agent(config) => {
                    let renewals = follow(source, loaded, |program| match subcommand(program)? {
                        Command::Agent(config) => Some(config.flags),
                        _ => None,
                    })?;
                    let deps = agent::Deps { renewals, ..agent::Deps::new(&config)? };
                    agent::run(config.flags, deps, told_to_stop()?).await?;
                }
                Command::Static(config) => {
                    let renewals = follow(source, loaded, |program| match subcommand(program)? {
                        Command::Static(config) => Some(config),
                        _ => None,
                    })?;
                    fixed::run(config, Timestamp::now(), renewals, told_to_stop()?).await?;
                }
                Command::List(config) => {
                    let store = Store::new(config.etcd.store_options())?;
                    let list = list::run(&config.key, &store).await?;
                    print(if config.json { list.to_json()? + "\n" } else { list.to_string() })?;
                }
                Command::Explain(config) => {
                    let store = Store::new(config.etcd.store_options())?;
                    let explanation = explain::run(&config.container, &config.scope, &store, false).await?;
                    print(explanation.to_string())?;
                    return Ok(if explanation.is_registered() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
                }
                Command::Drain(config) => return done(&drain::drain(&config).await?, config.target.json),
                Command::Undrain(config) => return done(&drain::undrain(&config).await?, config.target.json),
                Command::Stop(config) => {
                    done(&drain::stop(&config).await?, config.target.json)?;
                }
                Command::Completions(config) => {
                    print(answer::completions(Program::command(), "registrar", config.shell))?;
                }
                Command::Man(config) => {
                    let directory = config.directory;
                    answer::write_pages(Program::command(), &directory)
                        .with_context(|| format!("writing to {}", directory.display()))?;
                }
            },
        }
        Ok(ExitCode::SUCCESS)
    });
    // A name that is still being resolved must not hold up the end.
    runtime.shutdown_background();
    result
}

fn subcommand(program: Program) -> Option<Command> {
    match program {
        Program::Sidekick(_) => None,
        Program::Command(command) => Some(*command),
    }
}

/// Has a daemon's settings read again at SIGHUP and when the file changes.
fn follow<T: Send + 'static>(
    source: Source,
    loaded: Loaded,
    of: impl Fn(Program) -> Option<T> + Send + Sync + 'static,
) -> anyhow::Result<Renewals<T>> {
    let read = move |loaded: &Loaded| {
        let program = Program::from_loaded(loaded).map_err(|error| error.to_string())?;
        // A start with them would fail.
        check(&program).map_err(|error| format!("{error:#}"))?;
        if let Some(flags) = program.log() {
            log::filter_by(&filter(flags)).map_err(|error| error.to_string())?;
        }
        // The command is the same each time.
        of(program).ok_or_else(|| "the command line has changed".to_owned())
    };
    Renewals::follow(source, loaded, read).context("listening for SIGHUP")
}

/// Prints what was done. Fails where somebody was waited for in vain.
fn done(report: &drain::Report, as_json: bool) -> anyhow::Result<ExitCode> {
    print(if as_json { report.to_json()? + "\n" } else { report.to_string() })?;
    Ok(if report.is_complete() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Waits for SIGTERM, SIGINT or SIGUSR2, from now on.
fn told_to_stop() -> anyhow::Result<impl Future<Output = Ending>> {
    let mut terminate = signal(SignalKind::terminate()).context("listening for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listening for SIGINT")?;
    let mut replaced = signal(SignalKind::user_defined2()).context("listening for SIGUSR2")?;
    Ok(async move {
        let (signal, ending) = tokio::select! {
            _ = terminate.recv() => ("SIGTERM", Ending::Good),
            _ = interrupt.recv() => ("SIGINT", Ending::Good),
            _ = replaced.recv() => ("SIGUSR2", Ending::Successor),
        };
        info!(signal, "told to stop");
        ending
    })
}

fn start_log(flags: &LogFlags) -> Result<(), LogError> {
    log::start(flags.log_format, &filter(flags))
}

/// Our own lines from the level asked for, those of libraries from `warn`.
fn filter(flags: &LogFlags) -> String {
    let level = flags.log_level.as_str();
    let others = if level == "error" { "error" } else { "warn" };
    format!("{others},registrar={level},registry={level},observe={level}")
}
