//! The discoverer: what is registered in etcd becomes what HAProxy runs.
//!
//! `catalog`, `suspect`, `render`, `plan`, `readback`, `drain` and `blame` decide and do no I/O; `haproxy`, `output` and `templates`
//! do and decide nothing. `apply` owns the way to HAProxy; the loop in `daemon` owns the catalog, and `acknowledge` says in
//! etcd how far it has come.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod acknowledge;
pub mod admin;
pub mod apply;
pub mod blame;
pub mod catalog;
mod checks;
pub mod client;
pub mod compose;
pub mod config;
mod daemon;
pub mod drain;
pub mod explain;
pub mod feed;
#[cfg(feature = "fuzz")]
pub mod fuzz;
pub mod haproxy;
pub mod health;
mod identity;
pub mod init;
pub mod metrics;
pub mod model;
mod near;
pub mod once;
pub mod options;
pub mod output;
pub mod plan;
mod publish;
mod readback;
pub mod render;
pub mod report;
mod sample;
pub mod share;
pub mod signals;
pub mod snapshot;
pub mod status;
pub mod suspect;
pub mod templates;
pub mod trouble;
pub mod view;
mod watched;

use std::collections::BTreeMap;
use std::pin::Pin;
use std::process::ExitCode;

use anyhow::Context;
use observe::admin::{BindError, TokenError};
use observe::answer;
use observe::config::Renewals;
use observe::systemd::Part;
use registry::{EndpointList, SecurityError, Store, StoreOptions};
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

pub use crate::daemon::run;

use crate::config::{Cli, Command, Flags, UsageError};
use crate::haproxy::{Container, Program, Reloader, Runtime};
use crate::plan::Version;
use crate::render::{HaproxyContext, Surroundings};

/// The exit code of a process that ended so, after what went wrong is in the log: 2 where the flags are wrong, as clap ends after one
/// that it refuses.
pub fn exit_code(result: anyhow::Result<ExitCode>) -> ExitCode {
    let error = match result {
        Ok(code) => return code,
        Err(error) => error,
    };
    tracing::error!("{error:#}");
    let is_usage = error.is::<UsageError>()
        || error.is::<SecurityError>()
        || error.is::<TokenError>()
        || error.downcast_ref::<BindError>().is_some_and(BindError::is_usage);
    if is_usage { ExitCode::from(2) } else { ExitCode::FAILURE }
}

/// Runs what the command line asks for, until it is done or a signal ends it. `renewals` tells of flags that were read again.
pub async fn main(cli: Cli, renewals: Renewals<Flags>) -> anyhow::Result<ExitCode> {
    let flags = cli.flags;
    flags.check()?;
    let named = || flags.etcd.is_some().then(|| store(&flags)).transpose();
    match cli.command {
        Some(Command::Render) => once::render(&flags, &store(&flags)?).await,
        Some(Command::Check) => once::check(&flags, named()?.as_ref()).await,
        Some(Command::Status { json }) => once::status(&flags, json).await,
        Some(Command::Health { connect }) => once::health(&flags, connect).await,
        Some(Command::Explain { name, json }) => once::explain(&flags, named()?.as_ref(), &name, json).await,
        Some(Command::Completions { shell }) => {
            answer::print(answer::completions(config::command(), "discoverer", shell))?;
            Ok(ExitCode::SUCCESS)
        }
        Some(Command::Man { directory }) => {
            answer::write_pages(config::command(), &directory)
                .with_context(|| format!("writing to {}", directory.display()))?;
            Ok(ExitCode::SUCCESS)
        }
        None if flags.dry_run => once::dry_run(&flags).await,
        None if flags.once => once::apply(&flags).await,
        None => {
            let deps = Deps { renewals, ..Deps::new(&flags)? };
            run(flags, deps, signals::listen()?).await
        }
    }
}

/// What the discoverer has from outside.
pub struct Deps {
    /// Where the instances are registered.
    pub store: Store,
    /// Where that is, for people.
    pub endpoints: Vec<String>,
    /// What else is answered at the admin server's address.
    pub routes: axum::Router,
    /// What is waited for before the store is followed; until then HAProxy runs what it ran.
    pub begin: Pin<Box<dyn Future<Output = ()>>>,
    /// To be told when the store is not followed any more: what changes in it from now on HAProxy does not hear of.
    pub unfollowed: Option<oneshot::Sender<()>>,
    /// Why whoever registers in this process does not hear all from Docker, as long as that is so.
    pub docker_trouble: watch::Receiver<Option<String>>,
    /// Who tells of flags that were read again.
    pub renewals: Renewals<Flags>,
    /// What systemd hears of the discoverer.
    pub part: Part,
}

impl Deps {
    /// As the flags say.
    ///
    /// # Errors
    /// No client can be made from them.
    pub fn new(flags: &Flags) -> anyhow::Result<Self> {
        let endpoints = flags.etcd.iter().flat_map(EndpointList::shown).collect();
        let begin = Box::pin(std::future::ready(()));
        Ok(Self {
            store: store(flags)?,
            endpoints,
            routes: axum::Router::new(),
            begin,
            unfollowed: None,
            docker_trouble: watch::channel(None).1,
            renewals: Renewals::default(),
            part: Part::begin(),
        })
    }
}

/// The store that the flags name; asks nobody anything.
///
/// # Errors
/// No client can be made from them.
pub fn store(flags: &Flags) -> anyhow::Result<Store> {
    const MISSING: UsageError =
        UsageError("--etcd is missing; give etcd's client URLs, such as --etcd http://127.0.0.1:2379");
    let endpoints = flags.etcd.clone().ok_or(MISSING)?.0;
    let security = flags.security();
    security.check()?;
    let options = StoreOptions {
        endpoints,
        api: flags.etcd_api,
        security,
        request_timeout: flags.etcd_timeout,
        watch_timeout: flags.watch_timeout,
    };
    Ok(Store::new(options)?)
}

fn catalog_options(flags: &Flags) -> catalog::Options {
    catalog::Options {
        prefix: flags.key.clone(),
        share: flags.share(),
        listen_ports: flags.listen_ports.clone(),
        forget_after: flags.forget_after,
        suspect_for: flags.suspect_for,
        // A registry that hangs is not noticed before that.
        least_life: suspect::LEAST_LIFE.max(flags.watch_timeout),
    }
}

/// The way to a HAProxy that somebody else runs; none where no flag names one.
fn reloader(flags: &Flags, version: Option<Version>) -> Option<Reloader> {
    let forks_first = haproxy::forks_first(version);
    let socket = flags.reload_socket.clone().map(Reloader::Socket);
    let pidfile = || flags.reload_pidfile.clone().map(|path| Reloader::Pidfile { path, forks_first });
    let container = || {
        let container = Container { socket: flags.docker.clone(), name: flags.reload_container.clone()? };
        Some(Reloader::Container { container, forks_first })
    };
    let systemd = || flags.reload_systemd.clone().map(|unit| Reloader::Systemd { unit, forks_first });
    let command = || flags.reload_command.clone().map(Reloader::Command);
    socket.or_else(pidfile).or_else(container).or_else(systemd).or_else(command)
}

/// The program's version; none where it does not say.
async fn version(program: &Program) -> Option<Version> {
    program.version().await.ok()?.parse().ok()
}

/// The version that HAProxy runs, which may be another one than the program's that checks its files; as it says it.
async fn running_version(flags: &Flags) -> Option<String> {
    match (&flags.reload_socket, flags.runtime_socket()) {
        (Some(socket), _) => haproxy::running_version(socket).await,
        (None, Some(socket)) if !flags.supervise => Runtime::new(socket).version().await,
        (None, _) => None,
    }
}

/// By which version a reload is judged: the one that runs. Where it does not say, that of the program here, unless HAProxy is in a container
/// of its own.
fn reloaded_version(flags: &Flags, running: Option<&str>, program: Option<Version>) -> Option<Version> {
    match running {
        Some(running) => running.parse().ok(),
        None => program.filter(|_| flags.reload_container.is_none()),
    }
}

async fn surroundings(flags: &Flags, program: &Program) -> Surroundings {
    let runtime_socket = flags.runtime_socket();
    let haproxy = HaproxyContext {
        version: program.version().await.ok(),
        state_file: runtime_socket.as_ref().map(|_| flags.state_directory().join("servers.state")),
        runtime_socket,
        pid_file: flags.supervise.then(|| flags.state_directory().join("haproxy.pid")),
    };
    Surroundings { haproxy, options: template_options(flags) }
}

fn template_options(flags: &Flags) -> BTreeMap<String, String> {
    let mut options = flags.option_map();
    let drain = format!("{}ms", flags.drain_timeout.as_millis());
    options.entry("hard_stop_after".to_owned()).or_insert(drain);
    options
}

/// Waits until then; for ever where that is never.
async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
