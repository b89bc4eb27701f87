//! The sidekick: one task that owns everything known of this container, and one loop in which probe, Docker and etcd
//! go on side by side, so that none of them waits for another.
//!
//! What to do is decided in `health`, `service` and `reconcile`; here it is done.

use std::collections::BTreeSet;
use std::future::{Future, pending};
use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::time::Duration;

use registry::watch::Backoff;
use registry::{Entry, InstanceAddress, InstanceKey, Ownership, Record, Store, StoreError, StoreOptions};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::{debug, error, info, warn};

use crate::config::{Config, Host};
use crate::docker::{Docker, DockerError};
use crate::health::{Change, Health};
use crate::own::{Candidate, Traces, candidates};
use crate::probe::{Probe, ProbeError};
use crate::reconcile::{Action, Holding, Registered, due, reconcile};
use crate::service::{self, MappingError};

/// How often the mapped port is read again: it changes when networks are connected and disconnected.
const LOCATE_EVERY: Duration = Duration::from_secs(30);
/// The shortest pause between two readings that something else asked for.
const LOCATE_PAUSE: Duration = Duration::from_secs(1);
/// The pauses while Docker cannot be asked: it is back in seconds after a restart.
const DOCKER_PAUSES: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));
/// The pauses while etcd cannot be asked: the longest is what a registration may be late by once it is back.
const ETCD_PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
/// How often a key that someone else wrote is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// The limit on resolving the name in --ip.
const RESOLVE_LIMIT: Duration = Duration::from_secs(5);
/// The limit on removing the key when told to stop. With the linger it leaves room in the 10 s of `docker stop`.
const WITHDRAW_LIMIT: Duration = Duration::from_secs(3);
/// The pause between two attempts at that.
const WITHDRAW_PAUSE: Duration = Duration::from_millis(100);

/// Why the sidekick cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// No client for etcd.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// No client for the application.
    #[error(transparent)]
    Probe(#[from] ProbeError),
}

/// Why it is not known where this container is reached.
#[derive(Debug, thiserror::Error)]
enum LocateError {
    #[error(transparent)]
    Docker(#[from] DockerError),
    #[error("{name}, which --ip names, does not resolve: {what}")]
    Resolve { name: String, what: String },
    #[error(transparent)]
    Mapping(#[from] MappingError),
}

/// Something that goes on; at most one of its kind.
type Doing<T> = Option<Pin<Box<dyn Future<Output = T> + Send>>>;

/// What became of an action.
struct Done {
    action: Action,
    result: Result<Effect, StoreError>,
}

enum Effect {
    /// The key is ours.
    Owned(Ownership),
    /// Nothing of ours is there any more.
    Gone,
    /// Someone else's key.
    Seen(Option<Entry>),
}

/// Runs the sidekick until `shutdown` is done; then removes the key, lingers and returns.
///
/// Docker, etcd and the application may each be away at any time: it waits for them.
///
/// # Errors
/// Only for what cannot get better by waiting: no client can be made from the configuration.
pub async fn run(config: Config, traces: Traces, shutdown: impl Future<Output = ()>) -> Result<(), RunError> {
    let mut options = StoreOptions::new(config.etcd.0.clone());
    options.request_timeout = config.etcd_timeout;
    let store = Store::new(options)?;
    let probe = Probe::new(config.check, config.port, &config.check_path, config.timeout)?;
    let candidates = candidates(config.container.as_deref(), &traces);
    info!(key = %config.key, port = config.port, version = env!("CARGO_PKG_VERSION"), "the sidekick begins");

    let mut sidekick = Sidekick::new(config, store);
    let mut shutdown = pin!(shutdown);
    let mut probing: Doing<Result<(), ProbeError>> = None;
    let mut locating: Doing<Result<InstanceAddress, LocateError>> = None;
    let mut writing: Doing<Done> = None;
    let mut writes: Option<Action> = None;
    loop {
        let now = Instant::now();
        if probing.is_none() && sidekick.probe_at <= now {
            sidekick.probe_at = now + sidekick.health.gap(now.into_std());
            let probe = probe.clone();
            probing = Some(Box::pin(async move { probe.ask().await }));
        }
        if locating.is_none() && sidekick.locate_at <= now {
            sidekick.located_at = Some(now);
            locating = Some(Box::pin(locate(sidekick.config.clone(), candidates.clone())));
        }
        if writing.is_none() && sidekick.write_at <= now {
            writes = sidekick.next_action(now);
            writing = writes.clone().map(|action| -> Pin<Box<dyn Future<Output = Done> + Send>> {
                Box::pin(carry_out(sidekick.store.clone(), action, sidekick.config.ttl))
            });
        }
        let wake = [
            probing.is_none().then_some(sidekick.probe_at),
            locating.is_none().then_some(sidekick.locate_at),
            if writing.is_none() { sidekick.next_write(now) } else { None },
        ];
        tokio::select! {
            biased;
            () = &mut shutdown => break,
            result = going_on(&mut probing) => sidekick.probed(result),
            result = going_on(&mut locating) => sidekick.located(result),
            done = going_on(&mut writing) => sidekick.written(done),
            () = until(wake.into_iter().flatten().min()) => {}
        }
    }
    // A key that is just being written must be known to be removed; any other write may be broken off.
    let writing = writing.filter(|_| matches!(writes, Some(Action::Put(_))));
    sidekick.withdraw(writing).await;
    Ok(())
}

/// Waits for what goes on, and forgets it when it is done. For ever where nothing goes on.
async fn going_on<T>(doing: &mut Doing<T>) -> T {
    let Some(future) = doing else { return pending().await };
    let result = future.await;
    *doing = None;
    result
}

async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment).await,
        None => pending().await,
    }
}

/// Reads where other hosts reach the application.
async fn locate(config: Config, candidates: Vec<Candidate>) -> Result<InstanceAddress, LocateError> {
    let ip = match &config.ip {
        Host::Published => None,
        Host::Address(ip) => Some(*ip),
        Host::Name(name) => Some(resolve(name).await?),
    };
    let container = Docker::new(config.docker).own_container(&candidates).await?;
    Ok(service::address(&container, config.port, ip)?)
}

/// The first IPv4 address of a name, else its first IPv6 address.
async fn resolve(name: &str) -> Result<IpAddr, LocateError> {
    let failed = |what: String| LocateError::Resolve { name: name.to_owned(), what };
    let found = timeout(RESOLVE_LIMIT, tokio::net::lookup_host((name, 0))).await;
    let too_slow = |_| failed(format!("no answer within {}", humantime::format_duration(RESOLVE_LIMIT)));
    let addresses = found.map_err(too_slow)?.map_err(|error| failed(error.to_string()))?;
    let mut addresses: Vec<IpAddr> = addresses.map(|address| address.ip()).collect();
    // Sorted by family alone: within it the resolver's order is kept.
    addresses.sort_by_key(IpAddr::is_ipv6);
    addresses.into_iter().next().ok_or_else(|| failed("it has no address".to_owned()))
}

async fn carry_out(store: Store, action: Action, ttl: Duration) -> Done {
    let result = match &action {
        Action::Put(key) => store.put(key, &Record::running().to_value(), ttl).await.map(Effect::Owned),
        Action::Refresh(key, ownership) => store.refresh(key, ttl, ownership).await.map(Effect::Owned),
        Action::Delete(key, ownership) => store.delete(key, ownership).await.map(|_| Effect::Gone),
        Action::Look(key) => store.get(key).await.map(Effect::Seen),
        Action::Forget(_) => Ok(Effect::Gone),
    };
    Done { action, result }
}

/// All that is known.
struct Sidekick {
    config: Config,
    store: Store,
    health: Health,
    /// Whether a missing answer was told since the start or the last answer.
    told_missing: bool,
    /// When the application is to be asked next.
    probe_at: Instant,
    /// Where it is reached, as far as is known.
    location: Option<InstanceAddress>,
    /// When that is to be read next, and was begun to be read last.
    locate_at: Instant,
    located_at: Option<Instant>,
    docker_pause: Backoff,
    /// What is wrong with it, told once.
    docker_trouble: Option<String>,
    registered: Registered,
    /// Not before this moment is etcd to be asked again.
    write_at: Instant,
    etcd_pause: Backoff,
    etcd_trouble: Option<String>,
}

impl Sidekick {
    fn new(config: Config, store: Store) -> Self {
        let now = Instant::now();
        Self {
            health: Health::new(config.rise, config.fall, config.interval, now.into_std()),
            config,
            store,
            told_missing: false,
            probe_at: now,
            location: None,
            locate_at: now,
            located_at: None,
            docker_pause: Backoff::new(DOCKER_PAUSES.0, DOCKER_PAUSES.1),
            docker_trouble: None,
            registered: Registered::new(),
            write_at: now,
            etcd_pause: Backoff::new(ETCD_PAUSES.0, ETCD_PAUSES.1),
            etcd_trouble: None,
        }
    }

    /// The key that should be in etcd, if any.
    fn desired(&self) -> BTreeSet<InstanceKey> {
        let address = self.location.filter(|_| self.health.is_up());
        address.map(|address| InstanceKey::flat(self.config.key.clone(), address)).into_iter().collect()
    }

    fn next_action(&self, now: Instant) -> Option<Action> {
        reconcile(&self.desired(), &self.registered, now.into_std()).into_iter().next()
    }

    /// When etcd is to be asked next, if nothing else happens.
    fn next_write(&self, now: Instant) -> Option<Instant> {
        let at = if self.next_action(now).is_some() { Some(now) } else { due(&self.registered).map(Instant::from_std) };
        at.map(|at| at.max(self.write_at))
    }

    /// Has the mapped port read again, but not in a hot loop.
    fn locate_soon(&mut self) {
        let soonest = self.located_at.map_or_else(Instant::now, |at| at + LOCATE_PAUSE);
        self.locate_at = self.locate_at.min(soonest);
    }

    fn probed(&mut self, result: Result<(), ProbeError>) {
        let change = self.health.record(result.is_ok());
        match (change, result) {
            (Some(Change::Up), _) => {
                self.told_missing = false;
                info!(port = self.config.port, "the application answers");
                self.locate_soon();
            }
            (Some(Change::Down), Err(error)) => {
                self.told_missing = true;
                warn!(port = self.config.port, %error, "the application no longer answers");
            }
            (_, Err(error)) if !self.told_missing => {
                self.told_missing = true;
                info!(port = self.config.port, %error, "the application does not answer");
            }
            (_, Err(error)) => debug!(port = self.config.port, %error, "the application does not answer"),
            (_, Ok(())) => debug!(port = self.config.port, "the application answered"),
        }
    }

    fn located(&mut self, result: Result<InstanceAddress, LocateError>) {
        let now = Instant::now();
        match result {
            Ok(address) => {
                self.locate_at = now + LOCATE_EVERY;
                self.docker_pause.reset();
                if self.docker_trouble.take().is_some() || self.location != Some(address) {
                    info!(%address, "found where other hosts reach this container");
                }
                self.location = Some(address);
            }
            Err(trouble) => {
                self.locate_at = now + self.docker_pause.pause();
                // Docker has said that there is no way in; any other trouble leaves what is known as it is.
                if matches!(trouble, LocateError::Mapping(_)) {
                    self.location = None;
                }
                let trouble = trouble.to_string();
                if self.docker_trouble.as_ref() != Some(&trouble) {
                    error!(error = trouble, "it is not known where other hosts reach this container; trying again");
                    self.docker_trouble = Some(trouble);
                }
            }
        }
    }

    fn written(&mut self, done: Done) {
        let Done { action, result } = done;
        let now = Instant::now();
        let key = match &action {
            Action::Put(key) | Action::Look(key) | Action::Forget(key) => key.clone(),
            Action::Refresh(key, _) | Action::Delete(key, _) => key.clone(),
        };
        let result = match result {
            Err(StoreError::Lost { .. }) => {
                warn!(%key, "the key was gone from etcd; it is written again");
                Ok(Effect::Gone)
            }
            Err(StoreError::Taken { .. }) => {
                warn!(%key, "someone else has written the key; it is left alone until it is gone");
                Ok(Effect::Seen(Some(Entry::new(key.path(), ""))))
            }
            result => result,
        };
        match result {
            Ok(effect) => {
                self.etcd_pause.reset();
                if self.etcd_trouble.take().is_some() {
                    info!("etcd answers again");
                }
                match effect {
                    Effect::Owned(ownership) => {
                        if matches!(action, Action::Put(_)) {
                            info!(%key, "registered");
                        }
                        let refresh_at = (now + refresh_after(self.config.ttl)).into_std();
                        self.registered.insert(key, Holding::Ours { ownership, refresh_at });
                    }
                    Effect::Seen(Some(_)) => {
                        let look_at = (now + LOOK_EVERY).into_std();
                        self.registered.insert(key, Holding::Foreign { look_at });
                    }
                    Effect::Seen(None) | Effect::Gone => {
                        if matches!(action, Action::Delete(..)) {
                            info!(%key, "removed");
                        }
                        self.registered.remove(&key);
                    }
                }
            }
            Err(trouble) => {
                self.write_at = now + self.etcd_pause.pause();
                if matches!(action, Action::Put(_)) {
                    self.locate_soon();
                }
                let trouble = trouble.to_string();
                if self.etcd_trouble.as_ref() != Some(&trouble) {
                    error!(%key, error = trouble, "etcd cannot be written to; trying again");
                    self.etcd_trouble = Some(trouble);
                }
            }
        }
    }

    /// Removes what is ours, within its limit, and lingers so that others see it go before the application does.
    async fn withdraw(mut self, writing: Doing<Done>) {
        let limit = Instant::now() + WITHDRAW_LIMIT;
        if let Some(writing) = writing
            && let Ok(done) = tokio::time::timeout_at(limit, writing).await
        {
            self.written(done);
        }
        let ours = |(key, holding): (&InstanceKey, &Holding)| match holding {
            Holding::Ours { ownership, .. } => Some((key.clone(), *ownership)),
            Holding::Foreign { .. } => None,
        };
        let keys: Vec<_> = self.registered.iter().filter_map(ours).collect();
        if keys.is_empty() {
            return;
        }
        // One member that hangs must leave time to ask the others.
        let members = u32::try_from(self.config.etcd.0.len()).unwrap_or(u32::MAX);
        let store = self.store.with_request_timeout(self.config.etcd_timeout.min(WITHDRAW_LIMIT / members));
        for (key, ownership) in keys {
            let delete = async {
                loop {
                    match store.delete(&key, &ownership).await {
                        Ok(deleted) => return deleted,
                        Err(error) => debug!(%key, %error, "the key is not removed yet"),
                    }
                    sleep(WITHDRAW_PAUSE).await;
                }
            };
            match tokio::time::timeout_at(limit, delete).await {
                Ok(deleted) => info!(%key, ?deleted, "removed"),
                Err(_) => {
                    let ttl = humantime::format_duration(self.config.ttl);
                    warn!(%key, %ttl, "etcd did not remove the key in time; it goes with its time to live");
                }
            }
        }
        sleep(self.config.linger).await;
    }
}

/// A third of the time to live, shortened by chance by up to a fifth, so that many sidekicks do not write in step.
fn refresh_after(ttl: Duration) -> Duration {
    (ttl / 3).mul_f64(rand::random_range(0.8..=1.0))
}
