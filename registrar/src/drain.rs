//! `registrar drain`, `undrain` and `stop`: sets the status in keys that an agent or a sidekick keeps, and waits until the
//! discoverers say that nothing of those instances is left.
//!
//! Whose a key is, and what a discoverer's word means, is decided in `target` and `wait`; here it is asked and done.

mod target;
mod wait;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use bollard::models::ContainerInspectResponse;
use registry::{InstanceKey, Prefix, Record, Status, Store, StoreError};
use serde::Serialize;
use tokio::time::{Instant, sleep};
use tracing::{info, warn};

use crate::config::{DrainConfig, Host, StopConfig, TargetFlags, UndrainConfig, WhichFlags};
use crate::docker::{Client, Docker, DockerError};
use crate::host::{self, ResolveError};
use crate::list::status;

use self::target::{Owner, is_of};
use self::wait::{Pending, judge};

/// How often the discoverers' words are read.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// How often a key is read again that was changed just as it was to be written: its owner refreshes it now and then.
const TRIES: usize = 10;
/// How many agents are named.
const AGENTS_SHOWN: usize = 10;
/// By then the owner of a key has read what it says: an agent does with each refresh, at a third of the time to live. Before that
/// it may write what it knew.
const ADOPTED_AFTER: Duration = Duration::from_secs(10);

/// Why it could not be done.
#[derive(Debug, thiserror::Error)]
pub enum DrainError {
    /// etcd does not say which keys there are.
    #[error("{0}; nothing was changed")]
    NotBegun(#[source] StoreError),
    /// A key could not be set.
    #[error("{key} is not {wanted}: {error}; {so_far}")]
    NotSet {
        /// The key.
        key: String,
        /// What it should say.
        wanted: &'static str,
        /// Why not.
        error: StoreError,
        /// What was done before, and how to undo it.
        so_far: String,
    },
    /// It drains, and it is not known how far that is.
    #[error(
        "it is not known what the discoverers still have to do: {error}; it goes on draining, and `{undo}` takes it back"
    )]
    Unseen {
        /// Why not.
        error: StoreError,
        /// The command.
        undo: String,
    },
    /// The agent's id was given, and no key has it.
    #[error("no key below {prefix} in etcd was written by agent {agent}, so that nothing was changed{}", known(.agents))]
    NoKeys {
        /// The agent's id.
        agent: String,
        /// The directory.
        prefix: String,
        /// Those who have written keys there.
        agents: BTreeSet<String>,
    },
    /// The container runs on.
    #[error("{0}. The container was not stopped")]
    NotStopped(Box<DrainError>),
    /// Docker could not be asked, or refuses.
    #[error(transparent)]
    Docker(#[from] DockerError),
    /// The name in `--ip` does not resolve.
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    /// Docker knows no such container.
    #[error("Docker knows no container {0}: `docker ps --all` shows those that there are")]
    NoContainer(String),
    /// No key is the container's.
    #[error(
        "container {name} has no key below {prefix} in etcd, so that nobody sends it anything: `registrar explain {name}` says why. \
         Is that the --key of its agent or sidekick? The key of a sidekick that was given --ip is found with the same --ip"
    )]
    NotRegistered {
        /// Its name.
        name: String,
        /// The directory.
        prefix: String,
    },
    /// Somebody else's word is another.
    #[error("{0} was set to running again while it was waited for, by `registrar undrain` or by hand: it is left so")]
    TakenBack(String),
    /// It is not known which keys are this host's.
    #[error(
        "it is not known which keys are this host's: its agent's id is not in {0}; give --state-dir or --agent-id as the agent has \
         them"
    )]
    NoAgent(String),
}

/// What was done.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The keys, sorted.
    instances: Vec<Instance>,
    /// Those who were waited for, and what they said last; none where nobody was waited for.
    discoverers: Option<Vec<Discoverer>>,
    /// Who did not say that nothing is left.
    pending: Vec<Pending>,
    /// Whether the container was stopped.
    stopped: bool,
}

/// One key.
#[derive(Debug, Serialize)]
struct Instance {
    service: String,
    address: String,
    key: String,
    /// What it says now.
    status: &'static str,
    /// Whether it said something else before.
    changed: bool,
}

/// One discoverer.
#[derive(Debug, Serialize)]
struct Discoverer {
    id: String,
    /// Whether it says that nothing is left.
    done: bool,
}

impl Report {
    /// Whether nobody was waited for in vain.
    pub fn is_complete(&self) -> bool {
        self.pending.is_empty()
    }

    /// As one JSON object.
    ///
    /// # Errors
    /// None that is known: all of it is text and numbers.
    pub fn to_json(&self) -> Result<String, serde_json::Error> {
        serde_json::to_string_pretty(self)
    }
}

/// A line for each key, and one for each discoverer.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.instances.is_empty() {
            writeln!(f, "Nothing of this host's is registered here.")?;
        }
        for Instance { key, status, changed, .. } in &self.instances {
            writeln!(f, "{key}: {status}{}", if *changed { "" } else { ", as before" })?;
        }
        if self.discoverers.as_ref().is_some_and(Vec::is_empty) && !self.instances.is_empty() {
            writeln!(f, "No discoverer says that it is there: nobody was waited for.")?;
        }
        for Discoverer { id, .. } in self.discoverers.iter().flatten().filter(|discoverer| discoverer.done) {
            writeln!(f, "{id}: nothing is left")?;
        }
        for pending in &self.pending {
            writeln!(f, "{pending}")?;
        }
        if self.stopped {
            let after = if self.is_complete() { "" } else { ", though not all discoverers had done with it" };
            writeln!(f, "The container is stopped{after}.")?;
        }
        Ok(())
    }
}

/// Drains, and waits where that is asked for.
///
/// # Errors
/// Nothing, or not all, was drained.
pub async fn drain(config: &DrainConfig) -> Result<Report, DrainError> {
    let (mut work, _) = Work::begin(&config.target, &config.which).await?;
    work.set(Status::Draining).await?;
    if config.wait {
        work.wait(config.limit.timeout).await?;
    }
    Ok(work.report)
}

/// Takes back.
///
/// # Errors
/// Nothing, or not all, was taken back.
pub async fn undrain(config: &UndrainConfig) -> Result<Report, DrainError> {
    let (mut work, _) = Work::begin(&config.target, &config.which).await?;
    work.set(Status::Running).await?;
    Ok(work.report)
}

/// Drains, waits, and stops.
///
/// # Errors
/// It was not stopped.
pub async fn stop(config: &StopConfig) -> Result<Report, DrainError> {
    let which = WhichFlags { container: Some(config.container.clone()), all: false };
    let (mut work, container) = Work::begin(&config.target, &which).await.map_err(not_stopped)?;
    // Before anything is drained for nothing. Any other trouble may be over by then.
    if let Some((client, _)) = &container
        && let Err(error @ DockerError::NotAllowed { .. }) = client.may_stop(&config.container).await
    {
        return Err(error.into());
    }
    work.set(Status::Draining).await.map_err(not_stopped)?;
    work.wait(config.limit.timeout).await.map_err(not_stopped)?;
    for pending in &work.report.pending {
        warn!("{pending}; the container is stopped all the same");
    }
    if let Some((client, container)) = container {
        client.stop(&container).await?;
        work.report.stopped = true;
    }
    Ok(work.report)
}

/// Says so, where that is not plain.
fn not_stopped(error: DrainError) -> DrainError {
    match error {
        DrainError::Docker(_) | DrainError::Resolve(_) | DrainError::NoContainer(_) => error,
        error => DrainError::NotStopped(Box::new(error)),
    }
}

/// A container, and the Docker that has it.
type Found = (Client, ContainerInspectResponse);

/// A store, and the keys in it.
struct Place {
    store: Store,
    /// Each with the index of etcd at which it began to drain, once it does.
    keys: BTreeMap<InstanceKey, u64>,
}

/// What is being done, and to what.
struct Work {
    /// One for each of etcd's APIs by which the keys are kept.
    places: Vec<Place>,
    prefix: Prefix,
    owner: Owner,
    /// The command that takes it back.
    undo: String,
    /// From then on it is somebody's word where one runs again.
    adopted_at: Instant,
    report: Report,
}

impl Work {
    /// Finds the keys.
    async fn begin(target: &TargetFlags, which: &WhichFlags) -> Result<(Self, Option<Found>), DrainError> {
        let stores = target.etcd.all_store_options().into_iter().map(Store::new).collect::<Result<Vec<_>, _>>();
        let stores = stores.map_err(DrainError::NotBegun)?;
        let (owner, found) = match &which.container {
            Some(name) => {
                let (client, container) = look_up(target, name).await?;
                let ip = resolved(&target.ip).await?;
                (Owner::of_container(&container, ip), Some((client, container)))
            }
            None => {
                let id = host::known_id(target.agent_id.as_deref(), &target.state_dir);
                let id = id.ok_or_else(|| DrainError::NoAgent(target.state_dir.display().to_string()))?;
                (Owner::Agent(id), None)
            }
        };
        let mut agents = BTreeSet::new();
        let mut of_owner = |entry: &registry::Entry| {
            let key = InstanceKey::parse(&target.key, &entry.path).ok()?;
            let record = Record::parse(&entry.value).ok()?;
            agents.extend(record.agent.clone());
            is_of(&owner, &key, &record).then_some((key, 0))
        };
        let mut places = Vec::with_capacity(stores.len());
        for store in stores {
            let listing = store.list(&target.key).await.map_err(DrainError::NotBegun)?;
            let keys = listing.entries.iter().filter_map(&mut of_owner).collect();
            places.push(Place { store, keys });
        }
        let name = |container: &ContainerInspectResponse| {
            container.name.as_deref().unwrap_or_default().trim_start_matches('/').to_owned()
        };
        if places.iter().all(|place| place.keys.is_empty()) {
            let prefix = target.key.path();
            match (&found, &target.agent_id) {
                (Some((_, container)), _) => {
                    return Err(DrainError::NotRegistered { name: name(container), prefix });
                }
                (None, Some(agent)) => return Err(DrainError::NoKeys { agent: agent.clone(), prefix, agents }),
                // A host may have no container.
                (None, None) => {}
            }
        }
        let whom = found.as_ref().map_or_else(|| "--all".to_owned(), |(_, container)| name(container));
        let report = Report { instances: Vec::new(), discoverers: None, pending: Vec::new(), stopped: false };
        let (prefix, adopted_at) = (target.key.clone(), Instant::now() + ADOPTED_AFTER);
        let undo = format!("registrar undrain {whom}");
        Ok((Self { places, prefix, owner, undo, adopted_at, report }, found))
    }

    /// Sets the status of all keys. One that is gone meanwhile needs none.
    async fn set(&mut self, wanted: Status) -> Result<(), DrainError> {
        let mut instances: BTreeMap<InstanceKey, Instance> = BTreeMap::new();
        for place in &mut self.places {
            for key in place.keys.keys().cloned().collect::<Vec<_>>() {
                let done = match set_status(&place.store, &self.owner, &key, wanted).await {
                    Ok(Some(done)) => done,
                    Ok(None) => {
                        place.keys.remove(&key);
                        continue;
                    }
                    Err(error) => return Err(not_set(&key, wanted, error, &instances, &self.undo)),
                };
                let instance = Instance {
                    service: key.service().to_string(),
                    address: key.address().to_string(),
                    key: key.path(),
                    status: status(done.status),
                    changed: done.changed,
                };
                instances.entry(key.clone()).or_insert(instance).changed |= done.changed;
                place.keys.insert(key, done.index);
            }
        }
        self.report.instances = instances.into_values().collect();
        Ok(())
    }

    /// Waits until all discoverers say that nothing is left, or the time is over.
    async fn wait(&mut self, limit: Duration) -> Result<(), DrainError> {
        let deadline = Instant::now() + limit;
        let mut told = Vec::new();
        let mut trouble = None;
        loop {
            let looked = self.look().await;
            let is_over = deadline <= Instant::now();
            match looked {
                Ok(()) if self.report.pending.is_empty() || is_over => return Ok(()),
                Ok(()) => {}
                Err(Trouble::TakenBack(key)) => return Err(DrainError::TakenBack(key)),
                Err(Trouble::Store(error)) if is_over => {
                    return Err(DrainError::Unseen { error, undo: self.undo.clone() });
                }
                Err(Trouble::Store(error)) => {
                    let error = error.to_string();
                    if trouble.as_ref() != Some(&error) {
                        warn!(error, "it is not known how far it is; looking again");
                        trouble = Some(error);
                    }
                }
            }
            if told != self.report.pending {
                told.clone_from(&self.report.pending);
                told.iter().for_each(|pending| info!("waiting: {pending}"));
            }
            sleep(LOOK_EVERY.min(deadline.saturating_duration_since(Instant::now()))).await;
        }
    }

    /// Reads the discoverers' words, and sees to it that the keys still drain.
    async fn look(&mut self) -> Result<(), Trouble> {
        // Who follows the directory above has what is flat here.
        let above = self.prefix.parent();
        let directory = above.as_ref().unwrap_or(&self.prefix);
        let (mut discoverers, mut pending) = (Vec::new(), Vec::new());
        for place in &mut self.places {
            keep_draining(place, &self.owner, self.adopted_at).await?;
            let published = place.store.published(directory).await?;
            for (id, left) in judge(&published, &place.keys, place.store.api().await?) {
                discoverers.push(Discoverer { id: id.to_string(), done: left.is_empty() });
                pending.extend(left);
            }
        }
        (self.report.discoverers, self.report.pending) = (Some(discoverers), pending);
        Ok(())
    }
}

/// Sees to it that the keys still drain. Before `adopted_at` their owner may have written what it knew.
async fn keep_draining(place: &mut Place, owner: &Owner, adopted_at: Instant) -> Result<(), Trouble> {
    for (key, index) in &mut place.keys {
        // Nothing leads to one that is gone; its owner may write it again.
        let Some(entry) = place.store.get(key).await? else { continue };
        if !Record::parse(&entry.value).is_ok_and(|record| record.status == Status::Running) {
            continue;
        }
        if adopted_at <= Instant::now() {
            return Err(Trouble::TakenBack(key.path()));
        }
        if let Some(done) = set_status(&place.store, owner, key, Status::Draining).await? {
            *index = done.index;
        }
    }
    Ok(())
}

/// Why it is not known how far it is.
enum Trouble {
    Store(StoreError),
    TakenBack(String),
}

impl From<StoreError> for Trouble {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

/// Says how far it went.
fn not_set(
    key: &InstanceKey,
    wanted: Status,
    error: StoreError,
    before: &BTreeMap<InstanceKey, Instance>,
    undo: &str,
) -> DrainError {
    let is_known = !matches!(error, StoreError::NoAnswer(_));
    let changed: Vec<String> = before.values().filter(|one| one.changed).map(|one| one.key.clone()).collect();
    let so_far = match (changed.is_empty(), wanted) {
        (true, _) if is_known => "nothing was changed".to_owned(),
        (true, Status::Running) => "it may have been changed all the same: try again".to_owned(),
        (true, Status::Draining) => format!("it may have been changed all the same: `{undo}` takes it back"),
        (false, Status::Running) => format!("before that were set: {}", changed.join(", ")),
        (false, Status::Draining) => format!("before that were set: {}; `{undo}` takes them back", changed.join(", ")),
    };
    DrainError::NotSet { key: key.path(), wanted: status(wanted), error, so_far }
}

/// Who there is, in words.
fn known(agents: &BTreeSet<String>) -> String {
    if agents.is_empty() {
        return ": no agent has written any".to_owned();
    }
    let all: Vec<&str> = agents.iter().map(String::as_str).take(AGENTS_SHOWN).collect();
    let more = if agents.len() > AGENTS_SHOWN { ", and others" } else { "" };
    format!(": these agents have: {}{more}", all.join(", "))
}

/// What became of a key.
struct Done {
    status: Status,
    changed: bool,
    /// The index of etcd at which it says so.
    index: u64,
}

/// Gives a key a status and leaves it to its owner. None where it is gone, or another's by now.
///
/// It is written also where it says so already: what comes after that write has heard of it.
async fn set_status(
    store: &Store,
    owner: &Owner,
    key: &InstanceKey,
    wanted: Status,
) -> Result<Option<Done>, StoreError> {
    let mut last = None;
    for _ in 0..TRIES {
        let Some(entry) = store.get(key).await? else { return Ok(None) };
        let Some(record) = Record::parse(&entry.value).ok().filter(|record| is_of(owner, key, record)) else {
            return Ok(None);
        };
        if wanted == Status::Running && record.status == Status::Draining && record.stopping {
            warn!(%key, "its container was told to stop: it goes on draining");
            return Ok(Some(Done { status: Status::Draining, changed: false, index: 0 }));
        }
        let changed = record.status != wanted;
        // That its container was told to stop is the agent's own word; this is an operator's.
        let record = Record { status: wanted, stopping: false, ..record };
        match store.amend(key, &record.to_value(), &entry).await {
            Ok(index) => return Ok(Some(Done { status: wanted, changed, index })),
            Err(StoreError::Lost { .. }) => return Ok(None),
            Err(error @ StoreError::Contended { .. }) => last = Some(error),
            Err(error) => return Err(error),
        }
    }
    match last {
        Some(error) => Err(error),
        None => Ok(None),
    }
}

async fn look_up(target: &TargetFlags, name: &str) -> Result<Found, DrainError> {
    let client = Docker::new(target.docker.clone()).connect().await?;
    let container = client.inspect(name).await?.ok_or_else(|| DrainError::NoContainer(name.to_owned()))?;
    Ok((client, container))
}

async fn resolved(host: &Host) -> Result<Option<IpAddr>, DrainError> {
    Ok(match host {
        Host::Published => None,
        Host::Address(ip) => Some(*ip),
        Host::Name(name) => Some(host::resolve(name, None).await?),
    })
}
