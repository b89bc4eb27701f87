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
use crate::pace::due_after;
use crate::reconcile::{Holding, Step, due, reconcile};

/// How many requests go on at once: enough that one that hangs does not hold up the others, and few enough that many
/// registrars do not fall upon an etcd that has just come back.
const REQUESTS_AT_ONCE: usize = 16;
/// The pauses while etcd cannot be asked: the longest is what a registration may be late by once it is back.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
/// The pauses before one key is tried again that etcd refuses: as a rule until somebody has put etcd in order.
const KEY_PAUSES: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(10));
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
    doing: Option<Doing>,
    /// What may stand there by our own hand, since what became of it is not known.
    tried: Vec<Arc<str>>,
    /// What is wrong with this key alone.
    trouble: Option<KeyTrouble>,
    /// Its place among those that got no answer; the last is to be tried last.
    unanswered: u64,
}

/// A request that goes on.
#[derive(Debug)]
struct Doing {
    step: Step,
    begun: Instant,
    request: AbortHandle,
}

/// One key that etcd does not take, while it takes others.
#[derive(Debug)]
struct KeyTrouble {
    /// What it is, told once.
    what: String,
    pause: Backoff,
    /// Not before this moment is the key to be tried again.
    retry_at: Instant,
}

/// What became of a step.
struct Done {
    key: InstanceKey,
    step: Step,
    /// What was written, or was to be.
    value: Arc<str>,
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
    /// What is wrong with etcd as a whole, told once.
    trouble: Option<String>,
    /// When etcd answered last, whatever it said.
    answered_at: Option<Instant>,
    /// How many requests got no answer.
    unanswered: u64,
    key_pauses: (Duration, Duration),
    /// See [`due_after`].
    epoch: std::time::Instant,
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
            answered_at: None,
            unanswered: 0,
            key_pauses: KEY_PAUSES,
            epoch: Instant::now().into_std(),
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
            known.held = Some(Holding::Ours { ownership: entry.ownership(), value: Some(value), refresh_at });
            self.dirty.insert(key.clone());
        }
    }

    /// Renews the key no more, and thinks no more of it: it goes with its time to live.
    pub fn let_go(&mut self, key: &InstanceKey) {
        if let Some(doing) = self.keys.remove(key).and_then(|known| known.doing) {
            doing.request.abort();
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
        self.key_pauses = (WITHDRAW_PAUSE, WITHDRAW_PAUSE);
        self.write_at = Instant::now();
        for (key, known) in &mut self.keys {
            known.wanted = None;
            known.trouble = None;
            // A key that is just being written must be known to be removed; any other request may be broken off.
            if let Some(doing) = known.doing.take_if(|doing| doing.step != Step::Put) {
                doing.request.abort();
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
            if let Some(at) = known.trouble.as_ref().map(|trouble| trouble.retry_at).filter(|at| *at > now) {
                self.due.insert((at, key));
                continue;
            }
            match reconcile(known.wanted.as_deref(), known.held.as_ref(), now.into_std()) {
                Some(Step::Forget) => drop(self.keys.remove(&key)),
                Some(step) => steps.push((step, key)),
                None => match &known.held {
                    Some(held) => self.due.extend(due(held).map(|at| (Instant::from_std(at), key))),
                    None => drop(self.keys.remove(&key)),
                },
            }
        }
        // While one request feels the way, it is another one each time: none can keep the others from being tried.
        let unanswered = |key: &InstanceKey| self.keys.get(key).map_or(0, |known| known.unanswered);
        steps.sort_by_key(|(step, key)| (unanswered(key), step.rank()));
        let free = at_once - self.requests.len();
        for (at, (step, key)) in steps.into_iter().enumerate() {
            let Some(known) = self.keys.get_mut(&key).filter(|_| at < free) else {
                self.dirty.insert(key);
                continue;
            };
            let value = known.wanted.clone().unwrap_or_default();
            let request = carry_out(self.store.clone(), self.claim.clone(), key, step, value, self.ttl);
            known.doing = Some(Doing { step, begun: now, request: self.requests.spawn(request) });
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
        let Done { key, step, value: written, result } = done;
        let now = Instant::now();
        // A request that was broken off may have been done already.
        let known = self.keys.get_mut(&key)?;
        let begun = known.doing.take_if(|doing| doing.step == step)?.begun;
        self.dirty.insert(key.clone());
        let result = match result {
            Err(StoreError::Lost { .. }) => {
                warn!(%key, "the key was gone from etcd; it is written again");
                Ok(Effect::Gone)
            }
            // It is there, and a key it is not.
            Ok(Effect::Seen(None)) if step == Step::Put => Err(in_the_way(&key)),
            result => result.map_err(Failure::from),
        };
        let effect = match result {
            Ok(effect) => effect,
            Err(failure) => {
                known.is_in_doubt(step, written, &self.claim);
                self.failed(&key, begun, failure);
                return (step == Step::Put).then_some(Told::NotWritten(key));
            }
        };
        (known.trouble, known.unanswered) = (None, 0);
        self.answered(now);
        let known = self.keys.get_mut(&key)?;
        match effect {
            Effect::Owned(ownership, value) => {
                match step {
                    Step::Put => info!(%key, "registered"),
                    Step::Update(_) => info!(%key, "changed"),
                    _ => {}
                }
                let refresh_at = due_after(refresh_after(self.ttl), now.into_std(), self.epoch);
                let refreshed = matches!(step, Step::Refresh(_));
                let before = match &known.held {
                    Some(Holding::Ours { value, .. }) => value.clone(),
                    _ => None,
                };
                let changed = before.as_ref().is_some_and(|before| *before != value);
                if refreshed && changed && self.claim != Claim::Any {
                    return self.seen(key, ownership, &value);
                }
                // Who takes any key keeps its own word in mind, whatever others write into it.
                let kept = before.filter(|_| refreshed).unwrap_or(value);
                known.held = Some(Holding::Ours { ownership, value: Some(kept), refresh_at });
                known.tried.clear();
                None
            }
            Effect::Seen(Some(entry)) => self.seen(key, entry.ownership(), &entry.value),
            Effect::Seen(None) | Effect::Gone => {
                if matches!(step, Step::Delete(_)) {
                    info!(%key, "removed");
                }
                known.held = None;
                known.tried.clear();
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
        known.held = Some(Holding::Ours { ownership, value: Some(value.into()), refresh_at });
        // Written by a request of ours whose answer was lost, it is nobody's word.
        let is_news = !std::mem::take(&mut known.tried).iter().any(|tried| **tried == *value);
        is_news.then(|| Told::Found(key, Box::new(record)))
    }

    /// etcd has answered, whatever it said.
    fn answered(&mut self, now: Instant) {
        self.answered_at = Some(now);
        self.pause.reset();
        if self.trouble.take().is_some() {
            info!("etcd answers again");
        }
    }

    /// Tells one key's trouble from etcd's: what etcd refuses, and what gets no answer while others do, is tried again
    /// by itself, and keeps nothing else waiting.
    fn failed(&mut self, key: &InstanceKey, begun: Instant, failure: Failure) {
        let now = Instant::now();
        let is_of_key = match failure {
            Failure::OfKey(_) => {
                self.answered(now);
                true
            }
            Failure::NoAnswer(_) => self.answered_at.is_some_and(|at| at >= begun),
        };
        let (Failure::OfKey(what) | Failure::NoAnswer(what)) = failure;
        let Some(known) = self.keys.get_mut(key) else { return };
        if is_of_key {
            let pauses = self.key_pauses;
            let trouble = known.trouble.get_or_insert_with(|| KeyTrouble {
                what: String::new(),
                pause: Backoff::new(pauses.0, pauses.1),
                retry_at: now,
            });
            trouble.retry_at = now + trouble.pause.pause();
            if trouble.what == what {
                debug!(%key, error = what, "etcd does not take the key");
            } else {
                error!(%key, error = what, "etcd does not take the key; the others go on, and it is tried again");
                trouble.what = what;
            }
            return;
        }
        self.unanswered += 1;
        known.unanswered = self.unanswered;
        self.write_at = now + self.pause.pause();
        if self.trouble.as_ref() == Some(&what) {
            debug!(%key, error = what, "etcd cannot be written to");
        } else {
            error!(%key, error = what, "etcd cannot be written to; trying again");
            self.trouble = Some(what);
        }
    }
}

impl Key {
    /// What became of a write is not known.
    fn is_in_doubt(&mut self, step: Step, written: Arc<str>, claim: &Claim) {
        match (step, &mut self.held) {
            (Step::Put, held) if *claim != Claim::Any => *held = Some(Holding::Unknown),
            (Step::Update(_), Some(Holding::Ours { value, .. })) => *value = None,
            _ => return,
        }
        if !self.tried.contains(&written) {
            self.tried.push(written);
        }
    }
}

/// Why a step was not carried out.
enum Failure {
    /// Nobody answered.
    NoAnswer(String),
    /// etcd answered, and the answer is about this key.
    OfKey(String),
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        let what = error.to_string();
        match error {
            StoreError::Client(_) | StoreError::NoAnswer(_) => Self::NoAnswer(what),
            StoreError::Refused { .. }
            | StoreError::NotADirectory { .. }
            | StoreError::Taken { .. }
            | StoreError::Lost { .. }
            | StoreError::Contended { .. } => Self::OfKey(what),
        }
    }
}

/// etcd says that there is something, and there is no key.
fn in_the_way(key: &InstanceKey) -> Failure {
    let path = key.path();
    Failure::OfKey(format!("{path} is taken, and not by a key: a directory of that name must be deleted"))
}

async fn carry_out(store: Store, claim: Claim, key: InstanceKey, step: Step, value: Arc<str>, ttl: Duration) -> Done {
    let result = match &step {
        Step::Put => match claim {
            Claim::Any => store.put(&key, &value, ttl).await,
            Claim::Own(_) => store.create(&key, &value, ttl).await,
        }
        .map(|ownership| Effect::Owned(ownership, Arc::clone(&value))),
        Step::Update(owned) => {
            let updated = store.update(&key, &value, ttl, owned).await;
            updated.map(|ownership| Effect::Owned(ownership, Arc::clone(&value)))
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
    Done { key, step, value, result }
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
