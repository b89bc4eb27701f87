//! Keeps a set of keys in etcd: writes them, renews them, and takes away what is no longer wanted. It owns what it
//! writes, and leaves alone what others have written.
//!
//! What to do about a key is decided in `reconcile`; here it is done: several requests at once, never two for one key,
//! so that a slow one delays no other key, and what is wanted meanwhile is done after it.

use std::collections::{BTreeMap, BTreeSet};
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use registry::watch::Backoff;
use registry::{Deleted, Entry, InstanceKey, Ownership, Record, Store, StoreError};
use tokio::task::{AbortHandle, JoinError, JoinSet};
use tokio::time::{Instant, sleep_until, timeout_at};
use tracing::{debug, error, info, warn};

use crate::config::EtcdFlags;
use crate::reconcile::{Holding, Step, due, reconcile};

/// How many requests go on at once: enough that one that hangs does not hold up the others, and few enough that many
/// registrars do not fall upon an etcd that has just come back.
const REQUESTS_AT_ONCE: usize = 16;
/// The pauses while etcd cannot be asked: the longest is what a registration may be late by once it is back.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
/// How often a key that someone else wrote is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// The limit on removing the keys when told to stop. With the linger it leaves room in the 10 s of `docker stop`.
const WITHDRAW_LIMIT: Duration = Duration::from_secs(3);
/// The pause between two attempts at that.
const WITHDRAW_PAUSE: Duration = Duration::from_millis(100);

/// What of the keys that are already there may be taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Claim {
    /// Any: Docker has given this container the port, so that who wrote the key before has it no more.
    Any,
    /// Those that carry this agent's id.
    Own(String),
}

/// What the owner of the wishes must know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    /// The key was not written, and is tried again.
    NotWritten(InstanceKey),
    /// The key was found with our mark and a value that is not what we wrote: an operator changed it, or we did before a
    /// restart. Unless something else is wanted now, it is overwritten.
    Found(InstanceKey, Box<Record>),
}

/// One key.
#[derive(Debug, Default)]
struct Key {
    wanted: Option<Arc<str>>,
    held: Option<Holding>,
    /// The request that goes on.
    doing: Option<(Step, AbortHandle)>,
}

/// What became of a step.
struct Done {
    key: InstanceKey,
    step: Step,
    result: Result<Effect, StoreError>,
}

enum Effect {
    /// The key is ours, with this value.
    Owned(Ownership, Arc<str>),
    /// Nothing of ours is there any more.
    Gone,
    /// What was there.
    Seen(Option<Entry>),
}

/// Keeps keys in etcd.
#[derive(Debug)]
pub struct Keeper {
    store: Store,
    claim: Claim,
    ttl: Duration,
    /// The limit on a request in a hurry: one member that hangs must leave time to ask the others.
    hurried: Duration,
    keys: BTreeMap<InstanceKey, Key>,
    /// Those about which there may be something to do now.
    dirty: BTreeSet<InstanceKey>,
    /// When there is something to do by the passing of time alone. May hold moments that have lost their meaning.
    due: BTreeSet<(Instant, InstanceKey)>,
    requests: JoinSet<Done>,
    /// Not before this moment is etcd to be asked again.
    write_at: Instant,
    pause: Backoff,
    /// What is wrong with etcd, told once.
    trouble: Option<String>,
}

impl Keeper {
    /// Prepares to keep keys that live for `ttl` after their last refresh. Asks nobody anything.
    ///
    /// # Errors
    /// As [`Store::new`].
    pub fn new(etcd: &EtcdFlags, claim: Claim, ttl: Duration) -> Result<Self, StoreError> {
        let members = u32::try_from(etcd.endpoints.0.len()).unwrap_or(u32::MAX);
        Ok(Self {
            store: Store::new(etcd.store_options())?,
            claim,
            ttl,
            hurried: etcd.etcd_timeout.min(WITHDRAW_LIMIT / members),
            keys: BTreeMap::new(),
            dirty: BTreeSet::new(),
            due: BTreeSet::new(),
            requests: JoinSet::new(),
            write_at: Instant::now(),
            pause: Backoff::new(PAUSES.0, PAUSES.1),
            trouble: None,
        })
    }

    /// The store, to read from.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Says what the key should hold; `None` where it should not be.
    pub fn want(&mut self, key: &InstanceKey, value: Option<Arc<str>>) {
        match self.keys.get_mut(key) {
            Some(known) if known.wanted == value => return,
            Some(known) => known.wanted = value,
            None if value.is_none() => return,
            None => drop(self.keys.insert(key.clone(), Key { wanted: value, ..Key::default() })),
        }
        self.dirty.insert(key.clone());
    }

    /// Takes over a key that was found with our mark, and keeps it as it is until something else is wanted.
    pub fn take_over(&mut self, key: &InstanceKey, entry: &Entry) {
        let value: Arc<str> = entry.value.as_str().into();
        let left = entry.ttl.unwrap_or(Duration::ZERO).min(self.ttl / 3) / 2;
        let refresh_at = (Instant::now() + left.mul_f64(rand::random())).into_std();
        let known = self.keys.entry(key.clone()).or_default();
        if known.held.is_none() && known.doing.is_none() {
            known.wanted.get_or_insert_with(|| Arc::clone(&value));
            known.held = Some(Holding::Ours { ownership: entry.ownership(), value, refresh_at });
            self.dirty.insert(key.clone());
        }
    }

    /// Does what there is to do until there is something to tell. Nothing is lost when it is dropped.
    pub async fn next(&mut self) -> Told {
        loop {
            self.start();
            if let Some(told) = self.finish_one().await {
                return told;
            }
        }
    }

    /// Removes what is ours, within a limit. Says whether anything was there to remove.
    pub async fn withdraw(mut self) -> bool {
        let limit = Instant::now() + WITHDRAW_LIMIT;
        self.store = self.store.with_request_timeout(self.hurried);
        self.pause = Backoff::new(WITHDRAW_PAUSE, WITHDRAW_PAUSE);
        self.write_at = Instant::now();
        for (key, known) in &mut self.keys {
            known.wanted = None;
            // A key that is just being written must be known to be removed; any other request may be broken off.
            if let Some((_, request)) = known.doing.take_if(|(step, _)| *step != Step::Put) {
                request.abort();
            }
            self.dirty.insert(key.clone());
        }
        let ours =
            |known: &Key| known.doing.is_some() || matches!(known.held, Some(Holding::Ours { .. } | Holding::Unknown));
        let any = self.keys.values().any(ours);
        let ended = timeout_at(limit, async {
            while !self.keys.is_empty() {
                self.start();
                if !self.keys.is_empty() {
                    self.finish_one().await;
                }
            }
        })
        .await;
        if ended.is_err() {
            let ttl = humantime::format_duration(self.ttl);
            for key in self.keys.keys() {
                warn!(%key, %ttl, "etcd did not remove the key in time; it goes with its time to live");
            }
        }
        any
    }

    /// Begins what is to be done now, the most urgent first.
    fn start(&mut self) {
        let now = Instant::now();
        while self.due.first().is_some_and(|(at, _)| *at <= now) {
            self.dirty.extend(self.due.pop_first().map(|(_, key)| key));
        }
        let at_once = self.at_once();
        if self.dirty.is_empty() || self.write_at > now || self.requests.len() >= at_once {
            return;
        }
        let mut steps: Vec<(Step, InstanceKey)> = Vec::new();
        for key in std::mem::take(&mut self.dirty) {
            let Some(known) = self.keys.get(&key).filter(|known| known.doing.is_none()) else { continue };
            match reconcile(known.wanted.as_deref(), known.held.as_ref(), now.into_std()) {
                Some(Step::Forget) => drop(self.keys.remove(&key)),
                Some(step) => steps.push((step, key)),
                None => match &known.held {
                    Some(held) => self.due.extend(due(held).map(|at| (Instant::from_std(at), key))),
                    None => drop(self.keys.remove(&key)),
                },
            }
        }
        steps.sort_by_key(|(step, _)| step.rank());
        let free = at_once - self.requests.len();
        for (at, (step, key)) in steps.into_iter().enumerate() {
            let Some(known) = self.keys.get_mut(&key).filter(|_| at < free) else {
                self.dirty.insert(key);
                continue;
            };
            let value = known.wanted.clone().unwrap_or_default();
            let request = carry_out(self.store.clone(), self.claim.clone(), key, step, value, self.ttl);
            known.doing = Some((step, self.requests.spawn(request)));
        }
    }

    /// How many requests may go on. After a failure one feels its way.
    fn at_once(&self) -> usize {
        if self.trouble.is_some() { 1 } else { REQUESTS_AT_ONCE }
    }

    /// Waits until a request is done or another may begin.
    async fn finish_one(&mut self) -> Option<Told> {
        let next = if self.dirty.is_empty() { self.due.first().map(|(at, _)| *at) } else { Some(self.write_at) };
        let free = self.requests.len() < self.at_once();
        tokio::select! {
            biased;
            Some(done) = self.requests.join_next() => return self.done(ended(done)?),
            () = until(next.filter(|_| free).map(|at| at.max(self.write_at))) => {}
        }
        None
    }

    fn done(&mut self, done: Done) -> Option<Told> {
        let Done { key, step, result } = done;
        let now = Instant::now();
        // A request that was broken off may have been done already.
        let known = self.keys.get_mut(&key)?;
        known.doing.take_if(|(doing, _)| *doing == step)?;
        self.dirty.insert(key.clone());
        let result = match result {
            Err(StoreError::Lost { .. }) => {
                warn!(%key, "the key was gone from etcd; it is written again");
                Ok(Effect::Gone)
            }
            result => result,
        };
        let effect = match result {
            Ok(effect) => effect,
            Err(trouble) => {
                if step == Step::Put && self.claim != Claim::Any {
                    known.held = Some(Holding::Unknown);
                }
                self.failed(&key, &trouble);
                return (step == Step::Put).then_some(Told::NotWritten(key));
            }
        };
        self.pause.reset();
        if self.trouble.take().is_some() {
            info!("etcd answers again");
        }
        match effect {
            Effect::Owned(ownership, value) => {
                match step {
                    Step::Put => info!(%key, "registered"),
                    Step::Update(_) => info!(%key, "changed"),
                    _ => {}
                }
                let refresh_at = (now + refresh_after(self.ttl)).into_std();
                let refreshed = matches!(step, Step::Refresh(_));
                let changed = matches!(&known.held, Some(Holding::Ours { value: before, .. }) if *before != value);
                if refreshed && changed && self.claim != Claim::Any {
                    return self.seen(key, ownership, &value);
                }
                // Who takes any key keeps its own word in mind, whatever others write into it.
                let kept = match &known.held {
                    Some(Holding::Ours { value, .. }) if refreshed => Arc::clone(value),
                    _ => value,
                };
                known.held = Some(Holding::Ours { ownership, value: kept, refresh_at });
                None
            }
            Effect::Seen(Some(entry)) => self.seen(key, entry.ownership(), &entry.value),
            Effect::Seen(None) | Effect::Gone => {
                if matches!(step, Step::Delete(_)) {
                    info!(%key, "removed");
                }
                known.held = None;
                None
            }
        }
    }

    /// A key is there with a value that we did not just write.
    fn seen(&mut self, key: InstanceKey, ownership: Ownership, value: &str) -> Option<Told> {
        let now = Instant::now();
        let known = self.keys.get_mut(&key)?;
        let record = Record::parse(value).ok();
        let own = record.filter(|record| match &self.claim {
            Claim::Any => false,
            Claim::Own(agent) => record.agent.as_ref() == Some(agent),
        });
        let Some(record) = own else {
            if known.wanted.is_some() && !matches!(known.held, Some(Holding::Foreign { .. })) {
                warn!(%key, "someone else has written the key; it is left alone until it is gone");
            }
            known.held = Some(Holding::Foreign { look_at: (now + LOOK_EVERY).into_std() });
            return None;
        };
        let refresh_at = (now + refresh_after(self.ttl) / 2).into_std();
        known.held = Some(Holding::Ours { ownership, value: value.into(), refresh_at });
        Some(Told::Found(key, Box::new(record)))
    }

    fn failed(&mut self, key: &InstanceKey, trouble: &StoreError) {
        self.write_at = Instant::now() + self.pause.pause();
        let trouble = trouble.to_string();
        if self.trouble.as_ref() == Some(&trouble) {
            debug!(%key, error = trouble, "etcd cannot be written to");
        } else {
            error!(%key, error = trouble, "etcd cannot be written to; trying again");
            self.trouble = Some(trouble);
        }
    }
}

async fn carry_out(store: Store, claim: Claim, key: InstanceKey, step: Step, value: Arc<str>, ttl: Duration) -> Done {
    let result = match &step {
        Step::Put => match claim {
            Claim::Any => store.put(&key, &value, ttl).await,
            Claim::Own(_) => store.create(&key, &value, ttl).await,
        }
        .map(|ownership| Effect::Owned(ownership, value)),
        Step::Update(owned) => {
            store.update(&key, &value, ttl, owned).await.map(|ownership| Effect::Owned(ownership, value))
        }
        Step::Refresh(owned) => {
            let refreshed = store.refresh(&key, ttl, owned).await;
            refreshed.map(|entry| Effect::Owned(entry.ownership(), entry.value.into()))
        }
        Step::Delete(owned) => match store.delete(&key, owned).await {
            Ok(Deleted::NotOurs) => store.get(&key).await.map(Effect::Seen),
            deleted => deleted.map(|_| Effect::Gone),
        },
        Step::Look => store.get(&key).await.map(Effect::Seen),
        Step::Forget => Ok(Effect::Gone),
    };
    // Whose it is now shows in its value.
    let result = match result {
        Err(StoreError::Taken { .. }) => store.get(&key).await.map(Effect::Seen),
        result => result,
    };
    Done { key, step, result }
}

/// What a task came to. `None` where it was broken off; a panic goes on here and ends the process.
pub(crate) fn ended<T>(result: Result<T, JoinError>) -> Option<T> {
    match result.map_err(JoinError::try_into_panic) {
        Ok(value) => Some(value),
        Err(Ok(panic)) => std::panic::resume_unwind(panic),
        Err(Err(_broken_off)) => None,
    }
}

/// Waits for the moment. For ever where there is none.
pub(crate) async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment).await,
        None => pending().await,
    }
}

/// A third of the time to live, shortened by chance by up to a fifth, so that many do not write in step.
fn refresh_after(ttl: Duration) -> Duration {
    (ttl / 3).mul_f64(rand::random_range(0.8..=1.0))
}
