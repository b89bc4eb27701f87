//! Parses the flags, sets up the log, runs, exits.

use std::process::ExitCode;

use anyhow::Context;
use discoverer::config::{Cli, Command, ETCD_VARIABLE, Flags, RULES, command};
use discoverer::{health, init};
use observe::answer::{complain, print_and_end};
use observe::arguments;
use observe::config::{Loaded, Renewals, Source};

fn main() -> ExitCode {
    let hidden = arguments::hide("--etcd", ETCD_VARIABLE);
    let source = Source::new(command(), &RULES, std::env::args_os());
    let loaded = source.read().unwrap_or_else(|error| error.exit());
    if let Some(text) = loaded.printed() {
        return print_and_end(text);
    }
    let mut cli = Cli::from_loaded(&loaded).unwrap_or_else(|error| error.exit());
    if matches!(cli.command, Some(Command::Health { .. })) {
        health::find(&mut cli.flags, |key| loaded.is_flag(key));
    }
    if let Err(error) = observe::log::start(cli.flags.log_format, &cli.flags.log_level) {
        complain(error);
        return ExitCode::from(2);
    }
    if let Err(error) = hidden {
        tracing::warn!(%error, "the password in --etcd is to be seen with ps: give --etcd-password-file, or {ETCD_VARIABLE}");
    }
    if let Some(code) = init::run_if_first() {
        return code;
    }
    // One thread: the kernel ends HAProxy when the thread that started it ends, and only the main one surely stays.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = runtime.map_err(anyhow::Error::from).and_then(|runtime| {
        let local = tokio::task::LocalSet::new();
        runtime.block_on(local.run_until(async {
            let is_daemon = cli.command.is_none() && !cli.flags.once && !cli.flags.dry_run;
            let renewals = if is_daemon { follow(source, loaded)? } else { Renewals::default() };
            discoverer::main(cli, renewals).await
        }))
    });
    discoverer::exit_code(result)
}

/// Has the flags read again when somebody asks for it, or the file changes.
fn follow(source: Source, loaded: Loaded) -> anyhow::Result<Renewals<Flags>> {
    let read = |loaded: &Loaded| {
        let flags = Cli::from_loaded(loaded).map_err(|error| error.to_string())?.flags;
        flags.check_again()?;
        Ok(flags)
    };
    Renewals::follow(source, loaded, read).context("signals cannot be received")
}
