//! Asks one instance whether it answers, by whatever means its check names that are ours: over the network, or by a command
//! in its container. Edge; the agent and `explain` ask alike.

use std::time::Duration;

use tokio::time::{Instant, timeout};

use crate::docker::events::Healthcheck;
use crate::docker::{Client, Ran};
use crate::probe::{Asked, ProbeError, Prober};
use crate::service::{Check, CheckKind};

/// Asks once. `target`: which of its targets goes first. `unfinished`: the command of an earlier question that had not
/// ended; such a one is given back too. While it runs no other is started, so that one that hangs does not fill the
/// container with processes.
pub(crate) async fn ask_once(
    prober: &Prober,
    client: Option<&Client>,
    container: &str,
    check: &Check,
    target: usize,
    unfinished: Option<String>,
) -> (Asked, Option<String>) {
    let CheckKind::Exec { command } = &check.kind else {
        return (prober.ask(&check.kind, target, check.timeout).await, None);
    };
    let begun = Instant::now();
    let (result, unfinished) = match client {
        Some(client) => run(client, container, command, check.timeout, unfinished).await,
        None => (Err(ProbeError::Exec("Docker has not answered yet".to_owned())), unfinished),
    };
    prober.count("exec", begun, &result);
    (Asked { result, asked: target, target }, unfinished)
}

/// What a HEALTHCHECK means.
pub(crate) fn healthcheck_says(says: Option<Healthcheck>) -> Result<(), ProbeError> {
    match says {
        Some(Healthcheck::Healthy) => Ok(()),
        Some(Healthcheck::Unhealthy) => Err(ProbeError::Unhealthy("unhealthy")),
        Some(Healthcheck::Starting) => Err(ProbeError::Unhealthy("starting")),
        None => Err(ProbeError::Unhealthy("nothing")),
    }
}

async fn run(
    client: &Client,
    container: &str,
    command: &[String],
    limit: Duration,
    unfinished: Option<String>,
) -> (Result<(), ProbeError>, Option<String>) {
    if let Some(id) = unfinished {
        match client.ran(&id).await {
            Ok(Some(Ran::Runs)) => return (Err(ProbeError::StillRuns), Some(id)),
            // It has ended, late, or Docker has forgotten it with the run of the container that it was in.
            Ok(_) => {}
            Err(error) => return (Err(ProbeError::Exec(error.to_string())), Some(id)),
        }
    }
    let id = match client.prepare(container, command).await {
        Ok(id) => id,
        Err(error) => return (Err(ProbeError::Exec(error.to_string())), None),
    };
    match timeout(limit, client.run(&id)).await {
        Ok(Ok(0)) => (Ok(()), None),
        Ok(Ok(code)) => (Err(ProbeError::Exit(code)), None),
        Ok(Err(error)) => (Err(ProbeError::Exec(error.to_string())), Some(id)),
        Err(_) => (Err(ProbeError::Timeout(limit)), Some(id)),
    }
}
