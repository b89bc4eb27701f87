//! What the agent has done in the background: lists, inspections, questions. Edge: each asks, and gives back what it was
//! told.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bollard::models::ContainerSummary;
use jiff::Timestamp;
use tokio::time::Instant;
use tracing::debug;

use super::container::Facts;
use super::containers::{Answer, Inspected, Inspection, Question};
use crate::ask::ask_once;
use crate::docker::events::ContainerId;
use crate::docker::{Client, DockerError, addresses};
use crate::host::ResolveError;
use crate::keepers;
use crate::own::{Candidate, is_this};
use crate::probe::Prober;
use crate::service::{Scope, own_addresses, services};

/// What came of it.
#[derive(Debug)]
pub(super) enum Work {
    /// By what containers are judged.
    Host(Result<Scope, ResolveError>),
    /// What is below the prefix in each store of etcd that was asked.
    Left(Vec<keepers::Listed>),
    /// What runs, as it was asked for at a moment.
    Listed(Instant, Result<Listed, DockerError>),
    /// What a container is; `None` where there is no such container.
    Inspected(Inspection, Result<Option<Box<Inspected>>, DockerError>),
    /// What an instance answered.
    Answered(Question, Answer),
    /// Whether commands may be run in containers.
    MayRun(Result<(), DockerError>),
    /// Nobody follows Docker's events any more.
    EventsEnded,
}

/// All containers that run.
#[derive(Debug)]
pub(super) struct Listed {
    /// Each with a digest of what may change of it.
    pub(super) digests: BTreeMap<ContainerId, u64>,
    /// Their own addresses.
    pub(super) addresses: BTreeSet<IpAddr>,
    /// Docker does not say yet what the container is that this may be.
    pub(super) lacks_own: bool,
}

/// `own`: the ids that may be this container's, where this is one.
pub(super) async fn list(client: Client, begun: Instant, own: Arc<[Candidate]>) -> Work {
    let list = async {
        let mut listed = read_list(&client.running().await?);
        // Docker lists a container some time after its first process has begun, and that asks here. An inspection waits for it. A
        // container of another engine is none of these.
        for candidate in own.iter().filter(|candidate| !listed.digests.contains_key(candidate.name())) {
            match client.inspect(candidate.name()).await {
                Ok(Some(container)) if is_this(candidate, &container) => {
                    listed.addresses.extend(own_addresses(&container));
                }
                Ok(_) => {}
                Err(error) => {
                    debug!(%error, "Docker does not say which container this is");
                    listed.lacks_own = true;
                }
            }
        }
        Ok(listed)
    };
    Work::Listed(begun, list.await)
}

fn read_list(containers: &[ContainerSummary]) -> Listed {
    let mut listed = Listed { digests: BTreeMap::new(), addresses: BTreeSet::new(), lacks_own: false };
    for container in containers {
        let Some(id) = container.id.as_deref() else { continue };
        let addresses = addresses(container);
        listed.digests.insert(id.into(), digest(container, &addresses));
        listed.addresses.extend(addresses);
    }
    listed
}

/// Of what of a container may change while it runs.
fn digest(container: &ContainerSummary, addresses: &BTreeSet<IpAddr>) -> u64 {
    let mut hasher = DefaultHasher::new();
    let mut ports: Vec<_> =
        container.ports.iter().flatten().map(|port| (port.private_port, port.public_port)).collect();
    ports.sort_unstable();
    // "Up 2 minutes (healthy)": the time moves by itself.
    let in_brackets = container.status.as_deref().and_then(|status| Some(status.split_once('(')?.1));
    let state = container.state.map(|state| state.to_string());
    (&container.names, state, in_brackets, ports, addresses).hash(&mut hasher);
    hasher.finish()
}

pub(super) async fn may_run(client: Client) -> Work {
    Work::MayRun(client.may_run().await)
}

pub(super) async fn inspect(client: Client, scope: Arc<Scope>, inspection: Inspection) -> Work {
    let inspected = read_container(&client, &scope, &inspection.container).await;
    Work::Inspected(inspection, inspected)
}

async fn read_container(client: &Client, scope: &Scope, id: &str) -> Result<Option<Box<Inspected>>, DockerError> {
    let Some(container) = client.inspect(id).await? else { return Ok(None) };
    let facts = Facts::read(&container);
    let network_of = match &facts.network_of {
        Some(id) => client.inspect(id).await?,
        None => None,
    };
    let findings = services(&container, network_of.as_ref(), scope);
    let age = facts.started.and_then(|started| Timestamp::now().duration_since(started).try_into().ok());
    Ok(Some(Box::new(Inspected { facts, findings, age: age.unwrap_or(Duration::ZERO) })))
}

pub(super) async fn ask(prober: Arc<Prober>, client: Option<Client>, question: Question) -> Work {
    let check = &question.registration.check;
    let unfinished = question.unfinished.clone();
    let (asked, unfinished) =
        ask_once(&prober, client.as_ref(), &question.container, check, question.target, unfinished).await;
    Work::Answered(question, Answer { result: asked.result, target: asked.target, unfinished })
}
