//! The loop that owns the catalog: updates of the registry and of the templates in, the newest state out.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, bail};
use registry::{Update, watch as follow_registry};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tracing::{info, warn};

use crate::apply::{Applier, ApplyConfig, Reading, Wanted};
use crate::catalog::{Catalog, Outcome};
use crate::config::{Flags, UsageError};
use crate::haproxy::{Layout, Program, Reloader, Supervisor, SupervisorHandle};
use crate::model::Services;
use crate::output::Output;
use crate::{catalog_options, reloader, store, surroundings, templates};

/// How many updates may wait: a burst is worked off in one go, and the registry is not read ahead of that.
const WAITING_UPDATES: usize = 1024;

/// Follows the registry until a signal says stop.
pub(crate) async fn run(flags: Flags) -> anyhow::Result<ExitCode> {
    let store = store(&flags)?;
    let mut stop = Stop::new()?;
    std::fs::create_dir_all(&flags.state_dir)
        .with_context(|| format!("--state-dir {} cannot be made", flags.state_dir.display()))?;
    let program = Program::new(&flags.haproxy);
    let mut tasks = JoinSet::new();
    let (reloader, supervisor) = way_to_haproxy(&flags, &program, &mut tasks)?;
    let config = ApplyConfig {
        program: checker(&program, &flags).await,
        output: Output::new(&flags.output),
        reloader,
        surroundings: surroundings(&flags, &program).await,
        min_interval: flags.min_interval,
    };
    if let Some(supervisor) = &supervisor {
        start_with_last_file(&config, supervisor).await;
    }
    let (updates, mut updated) = mpsc::channel(WAITING_UPDATES);
    tasks.spawn(follow_registry(store, flags.key.clone(), updates));
    let (loaded, mut loads) = mpsc::channel(1);
    tasks.spawn(templates::follow(flags.template.clone(), loaded));
    let (wanted, newest) = watch::channel(None);
    tasks.spawn_local(Applier::new(config).run(newest));
    info!(key = %flags.key, output = %flags.output.display(), "discoverer started");

    let mut state =
        State { catalog: Catalog::new(catalog_options(&flags)), listed: false, unreachable: false, templates: None };
    loop {
        let forget_at = state.catalog.next_forget();
        let changed = tokio::select! {
            Some(update) = updated.recv() => {
                let mut changed = state.update(update);
                // What has come meanwhile goes together.
                while let Ok(update) = updated.try_recv() {
                    changed |= state.update(update);
                }
                changed
            }
            Some(load) = loads.recv() => {
                state.templates = Some(Arc::new(load));
                true
            }
            () = until(forget_at) => state.outcome(|catalog| catalog.forget(Instant::now())),
            Some(ended) = tasks.join_next() => {
                ended.context("a part of the discoverer failed")?;
                bail!("a part of the discoverer ended before it was told to");
            }
            signal = stop.next() => {
                info!(signal, "told to stop");
                break;
            }
        };
        if changed && let Some(newest) = state.wanted() {
            wanted.send_replace(Some(newest));
        }
    }
    if let Some(supervisor) = supervisor {
        tokio::select! {
            () = supervisor.stop(flags.shutdown_grace) => {}
            // Whoever asks twice does not want to wait.
            _ = stop.next() => supervisor.stop(std::time::Duration::ZERO).await,
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The way to HAProxy that the flags name; under `--supervise` its supervisor too, which is started.
fn way_to_haproxy(
    flags: &Flags,
    program: &Program,
    tasks: &mut JoinSet<()>,
) -> anyhow::Result<(Reloader, Option<SupervisorHandle>)> {
    if flags.supervise {
        let layout = Layout {
            file: flags.output.clone(),
            master_socket: flags.state_dir.join("master.sock"),
            pid_file: flags.state_dir.join("haproxy.pid"),
        };
        let (supervisor, handle) = Supervisor::new(program.clone(), layout);
        tasks.spawn(supervisor.run());
        return Ok((Reloader::Supervised(handle.clone()), Some(handle)));
    }
    match reloader(flags) {
        Some(reloader) => Ok((reloader, None)),
        None => bail!(UsageError(
            "nothing says how HAProxy is reached; give --supervise, --reload-socket PATH, --reload-pidfile PATH or \
             --reload-command CMD (--once and --dry-run need none)"
        )),
    }
}

/// The program to check files with: none where the running HAProxy is known to be of another version, since what one
/// takes the other may refuse.
async fn checker(program: &Program, flags: &Flags) -> Option<Program> {
    let own = program.version().await;
    if let Err(error) = &own {
        warn!(%error, "files cannot be checked before they are applied");
    }
    if let (Ok(own), Some(socket)) = (&own, &flags.reload_socket)
        && let Some(running) = crate::haproxy::running_version(socket).await
        && running != *own
    {
        warn!(
            program = own,
            running, "files are not checked: the program is of another version than the running HAProxy"
        );
        return None;
    }
    Some(program.clone())
}

/// After our own restart HAProxy serves the last state at once, also while etcd is away.
async fn start_with_last_file(config: &ApplyConfig, supervisor: &SupervisorHandle) {
    let (Some(program), Some(_)) = (&config.program, config.output.read()) else { return };
    if let Err(error) = program.check(config.output.path()).await {
        return warn!(%error, output = %config.output.path().display(), "the last file is not used");
    }
    if let Err(error) = supervisor.reload().await {
        warn!(%error, "HAProxy did not start with the last file");
    }
}

/// What the loop owns.
struct State {
    catalog: Catalog,
    /// Nothing is published before the first whole list.
    listed: bool,
    unreachable: bool,
    templates: Option<Reading>,
}

impl State {
    /// Takes one update; says whether there is something new to apply.
    fn update(&mut self, update: Update) -> bool {
        let now = Instant::now();
        match update {
            Update::Listing(listing) => {
                if self.unreachable || !self.listed {
                    info!(keys = listing.entries.len(), "registry connected");
                }
                self.unreachable = false;
                let is_first = !std::mem::replace(&mut self.listed, true);
                self.outcome(|catalog| catalog.list(listing, now)) || is_first
            }
            Update::Event { event, .. } => self.outcome(|catalog| catalog.apply(event, now)),
            Update::Unreachable { error } => {
                warn!(error, "registry unreachable; HAProxy keeps what it has");
                self.unreachable = true;
                false
            }
        }
    }

    fn outcome(&mut self, change: impl FnOnce(&mut Catalog) -> Outcome) -> bool {
        let outcome = change(&mut self.catalog);
        for refusal in outcome.refused {
            warn!(key = refusal.key, reason = refusal.reason, "key refused");
        }
        outcome.changed
    }

    fn wanted(&self) -> Option<Wanted> {
        let templates = self.templates.clone().filter(|_| self.listed)?;
        let services: Services = self.catalog.services().clone();
        Some(Wanted { services: Arc::new(services), templates })
    }
}

/// The signals that end the process.
struct Stop {
    terminate: Signal,
    interrupt: Signal,
}

impl Stop {
    fn new() -> anyhow::Result<Self> {
        let listen = |kind| signal(kind).context("signals cannot be received");
        Ok(Self { terminate: listen(SignalKind::terminate())?, interrupt: listen(SignalKind::interrupt())? })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}
