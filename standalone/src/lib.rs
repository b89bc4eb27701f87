//! Registrar's agent and discoverer in one process, over a store in its memory or over etcd. Each does what it does as a program of
//! its own; here they are given one store, one admin server and one end.

pub mod commands;
pub mod flags;
mod held;

use std::pin::Pin;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use axum::Router;
use discoverer::catalog::Kept;
use discoverer::config::Flags;
use discoverer::{Deps, snapshot};
use observe::config::Renewals;
use observe::systemd::Part;
use registrar::keepers::Stores;
use registrar::operator::Operator;
use registrar::{agent, host};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;
use tracing::info;

use crate::flags::Program;

/// Where a registry in memory is, for people.
const MEMORY: &str = "memory of this process";
/// How long HAProxy keeps what it has while Docker does not say which containers run, where it is known what was registered:
/// longer than the agent takes once Docker answers.
const HOLD: Duration = Duration::from_secs(15);
/// The same where HAProxy has nothing yet: it begins to answer after that.
const FIRST: Duration = Duration::from_secs(1);
/// The limit on one request to etcd at the end.
const LAST_REQUEST: Duration = Duration::from_secs(1);

/// Runs both until they are told to stop, which each message is, with the reason for it. `renewals` tells of flags that were read
/// again.
///
/// # Errors
/// What is wrong with the flags, and a part that failed which nothing goes on without.
pub async fn run(
    program: Program,
    renewals: Renewals<Program>,
    mut signals: mpsc::Receiver<&'static str>,
) -> anyhow::Result<ExitCode> {
    let (of_agent, of_discoverer) = renewals.split(|program| (program.agent, program.discoverer));
    let Program { agent: agent_flags, discoverer: flags, .. } = program;
    flags.check()?;
    flags.access()?.check(&flags.admin)?;
    // What is wrong with it the discoverer says, which reads it too.
    let kept = snapshot::read(&flags.state_directory(), &flags.key).ok().flatten().map(|(kept, _)| kept);
    let store = match &flags.etcd {
        Some(_) => discoverer::store(&flags)?,
        None => {
            let id = host::known_id(agent_flags.scope.agent_id.as_deref(), &agent_flags.scope.state_dir);
            held::store(&flags, kept.as_ref().zip(id.as_deref()), agent_flags.ttl)
        }
    };
    let (whole, is_whole) = oneshot::channel();
    // Both from the beginning: it is ready when both are.
    let of_systemd = (Part::begin(), Part::begin());
    let begin = begin(&flags, kept.as_ref(), is_whole);
    drop(kept);

    let (unfollowed, end) = oneshot::channel::<()>();
    let (routes, given) = oneshot::channel();
    let (docker_trouble, heard) = watch::channel(None);
    let deps = agent::Deps {
        stores: Stores { first: store.clone(), second: None, hurried: flags.etcd_timeout.min(LAST_REQUEST) },
        operator: Operator::Elsewhere(routes),
        is_read_here: flags.etcd.is_none(),
        whole: Some(whole),
        docker_trouble,
        renewals: of_agent,
        part: of_systemd.0,
    };
    let mut agent = tokio::task::spawn_local(agent::run(agent_flags, deps, async move {
        // Also where the discoverer has failed: both end.
        let _ended = end.await;
    }));
    let Ok(metrics) = given.await else {
        agent.await.context("the agent failed")??;
        bail!("the agent ended before it was told to");
    };
    let routes = Router::new().nest("/registrar", metrics).merge(held::routes(store.clone(), flags.key.clone()));
    let endpoints = match &flags.etcd {
        Some(etcd) => etcd.shown(),
        None => vec![MEMORY.to_owned()],
    };
    let (stop, stopped) = mpsc::channel(4);
    let signal = stop.clone();
    tokio::task::spawn_local(async move {
        while let Some(reason) = signals.recv().await {
            // Who is told may have ended.
            let _ended = signal.send(reason).await;
        }
    });
    let deps = Deps {
        store,
        endpoints,
        routes,
        begin,
        unfollowed: Some(unfollowed),
        docker_trouble: heard,
        renewals: of_discoverer,
        part: of_systemd.1,
    };
    let mut discoverer = std::pin::pin!(discoverer::run(flags, deps, stopped));
    tokio::select! {
        ended = &mut discoverer => {
            // What it has in etcd it removes also where the discoverer has failed.
            let agent = agent.await.context("the agent failed");
            let code = ended?;
            agent??;
            Ok(code)
        }
        ended = &mut agent => {
            let ended = ended.context("the agent failed").and_then(|ended| Ok(ended?));
            if ended.is_err() {
                let _ended = stop.send("the agent failed").await;
            }
            let code = discoverer.await?;
            ended.map(|()| code)
        }
    }
}

/// What the discoverer waits for before it takes from HAProxy what is not registered: in memory nothing is until the agent has
/// looked. Not for long where HAProxy cannot have anything yet.
fn begin(flags: &Flags, kept: Option<&Kept>, is_whole: oneshot::Receiver<()>) -> Pin<Box<dyn Future<Output = ()>>> {
    let was_in_memory = kept.is_none_or(|kept| kept.position.is_in_memory());
    let has_nothing = kept.is_none() && flags.supervise && !flags.output.exists();
    let limit = if flags.etcd.is_some() && !was_in_memory {
        return Box::pin(std::future::ready(()));
    } else if has_nothing {
        // So that the first configuration has what runs already.
        Some(FIRST)
    } else {
        info!("HAProxy keeps what it has until the containers were looked at");
        (kept.is_some() || flags.etcd.is_some()).then_some(HOLD)
    };
    Box::pin(async move {
        let wait = async {
            if is_whole.await.is_err() {
                // The agent has ended, and all else is about to.
                std::future::pending::<()>().await;
            }
        };
        let Some(limit) = limit else { return wait.await };
        if timeout(limit, wait).await.is_err() && !has_nothing {
            info!(after = ?limit, "the containers could not be looked at; HAProxy is told of what was last known");
        }
    })
}
