//! Keeps a set of keys in etcd: writes them, renews them, and takes away what is no longer wanted. It owns what it
//! writes, and leaves alone what others have written.
//!
//! What to do about a key is decided in `reconcile`; here it is done: several requests at once, never two for one key,
//! so that a slow one delays no other key, and what is wanted meanwhile is done after it. Where one lease keeps all keys,
//! they are renewed together.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use registry::watch::Backoff;
use registry::{Api, Deleted, Entry, InstanceKey, Kept, Lease, Ownership, Prefix, Record, Status, Store, StoreError};
use tokio::task::{AbortHandle, JoinError, JoinSet};
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};
use tracing::{debug, error, info, warn};

use crate::metrics::{EtcdOverview, Metrics, Written};
use crate::pace::due_after;
use crate::reconcile::{Holding, Step, due, reconcile};

/// How many requests go on at once: enough that one that hangs does not hold up the others, and few enough that many
/// registrars do not fall upon an etcd that has just come back.
const REQUESTS_AT_ONCE: usize = 16;
/// The pauses while etcd cannot be asked: the longest is what a registration may be late by once it is back.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
/// The pauses before one key is tried again that etcd refuses: as a rule until somebody has put etcd in order.
const KEY_PAUSES: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(10));
/// A trouble with etcd that was over and is back within this is not told again.
const SAME_TROUBLE: Duration = Duration::from_secs(60);
/// How often a key that someone else wrote is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// After how many times to live it is looked for keys that live by our lease without our knowing: as seldom as is bearable for
/// an address that leads nowhere.
const STRAYS_EVERY: u32 = 3;
/// The limit on removing the keys when told to stop. With the linger it leaves room in the 10 s of `docker stop`.
pub(crate) const WITHDRAW_LIMIT: Duration = Duration::from_secs(3);
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
    /// It was ours, was gone, and has not been written again.
    is_lost: bool,
}

/// A request that goes on.
#[derive(Debug)]
struct Doing {
    step: Step,
    begun: Instant,
    /// None where it is about other keys too.
    request: Option<AbortHandle>,
}

impl Doing {
    /// Breaks it off, or lets it end without anybody who listens.
    fn leave(self) {
        if let Some(request) = self.request {
            request.abort();
        }
    }
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

/// What became of a request.
enum Answer {
    /// To get a lease.
    Granted(Result<Lease, StoreError>),
    /// To keep many keys.
    Kept {
        keys: Vec<(InstanceKey, Ownership)>,
        lease: Lease,
        begun: Instant,
        result: Result<Vec<Result<Kept, StoreError>>, StoreError>,
    },
    /// To look for keys that the lease keeps without our knowing.
    Strays(Result<Vec<(InstanceKey, Entry)>, StoreError>),
    /// To say whether it is there.
    There { begun: Instant, result: Result<(), StoreError> },
    /// To do a step.
    Done(Done),
}

/// What became of a step.
struct Done {
    key: InstanceKey,
    step: Step,
    /// What it was done with.
    lease: Option<Lease>,
    /// What was written, or was to be.
    value: Arc<str>,
    result: Result<Effect, StoreError>,
}

enum Effect {
    /// The key is ours, with this value; none where that is what it was.
    Owned(Ownership, Option<Arc<str>>),
    /// Nothing of ours is there any more.
    Gone,
    /// What was there.
    Seen(Option<Entry>),
}

/// Keeps keys in etcd.
#[derive(Debug)]
pub struct Keeper {
    store: Store,
    /// Below this etcd is asked whether it is there.
    prefix: Prefix,
    claim: Claim,
    ttl: Duration,
    /// The limit on a request in a hurry: one member that hangs must leave time to ask the others.
    hurried: Duration,
    keys: BTreeMap<InstanceKey, Key>,
    /// Those about which there may be something to do now.
    dirty: BTreeSet<InstanceKey>,
    /// When there is something to do by the passing of time alone. May hold moments that have lost their meaning.
    due: BTreeSet<(Instant, InstanceKey)>,
    requests: JoinSet<Answer>,
    /// What is to be told, after what was.
    told: VecDeque<Told>,
    lease: Option<Lease>,
    /// Another one is being got.
    is_granting: bool,
    /// Not before this moment is etcd to be asked for one again that it refused.
    grant_at: Instant,
    grant_pause: Backoff,
    /// Why it was, told once.
    lease_trouble: Option<String>,
    /// When the lease was got, or renewed last.
    kept_at: Instant,
    /// When a shared lease is to be renewed.
    keep_at: Instant,
    /// The last request that began was to renew it.
    has_renewed: bool,
    /// When to look for keys that it keeps without our knowing.
    strays_at: Instant,
    /// When etcd is to be asked whether it is there, unless something else is asked before.
    ask_at: Instant,
    /// That goes on.
    asking: Option<AbortHandle>,
    /// Not before this moment is etcd to be asked again.
    write_at: Instant,
    pause: Backoff,
    /// What is wrong with etcd as a whole, told once.
    trouble: Option<String>,
    /// What of it was told last, and when.
    told_trouble: Option<(String, Instant)>,
    /// It was told, and its end was not.
    is_trouble_told: bool,
    /// When etcd answered last, whatever it said.
    answered_at: Option<Instant>,
    /// When a key was written or renewed last.
    refreshed_at: Option<Instant>,
    /// How many requests got no answer.
    unanswered: u64,
    key_pauses: (Duration, Duration),
    /// See [`due_after`].
    epoch: std::time::Instant,
    metrics: Metrics,
}

impl Keeper {
    /// Prepares to keep keys below `prefix` that live for `ttl` after their last refresh. Asks nobody anything. `hurried` is
    /// the limit on one request to one member of etcd when the keys are removed at the end.
    pub fn new(store: Store, prefix: Prefix, hurried: Duration, claim: Claim, ttl: Duration) -> Self {
        let now = Instant::now();
        Self {
            store,
            prefix,
            claim,
            ttl,
            hurried,
            keys: BTreeMap::new(),
            dirty: BTreeSet::new(),
            due: BTreeSet::new(),
            requests: JoinSet::new(),
            told: VecDeque::new(),
            lease: None,
            is_granting: false,
            grant_at: now,
            grant_pause: Backoff::new(KEY_PAUSES.0, KEY_PAUSES.1),
            lease_trouble: None,
            kept_at: now,
            keep_at: now,
            has_renewed: false,
            strays_at: now + ttl * STRAYS_EVERY,
            ask_at: now,
            asking: None,
            write_at: now,
            pause: Backoff::new(PAUSES.0, PAUSES.1),
            trouble: None,
            told_trouble: None,
            is_trouble_told: false,
            answered_at: None,
            refreshed_at: None,
            unanswered: 0,
            key_pauses: KEY_PAUSES,
            epoch: now.into_std(),
            metrics: Metrics::default(),
        }
    }

    /// Counts into these what it does.
    #[must_use]
    pub fn counting(mut self, metrics: Metrics) -> Self {
        self.metrics = metrics;
        self
    }

    /// The store, to read from.
    pub fn store(&self) -> &Store {
        &self.store
    }

    fn api(&self) -> Option<Api> {
        self.store.known_api()
    }

    /// Takes it that etcd has answered somebody else who asked there.
    pub(crate) fn heard(&mut self) {
        self.answered(Instant::now());
    }

    /// Whether every key is as it is wanted, or belongs to somebody else, and nothing is under way.
    pub(crate) fn is_settled(&self) -> bool {
        self.dirty.is_empty()
            && self.keys.values().all(|key| {
                let is_there = match &key.held {
                    Some(Holding::Ours { value, .. }) => value.is_some() && *value == key.wanted,
                    Some(Holding::Foreign { .. }) => true,
                    Some(Holding::Unknown) => false,
                    None => key.wanted.is_none(),
                };
                is_there && key.doing.is_none()
            })
    }

    /// How it stands; the keys only `with_counts`, since they are gone through one by one.
    pub(crate) fn overview(&self, with_counts: bool) -> EtcdOverview {
        let (mut registered, mut draining, mut foreign, mut not_written) = (0, 0, 0, 0);
        for key in self.keys.values().filter(|_| with_counts) {
            match &key.held {
                Some(Holding::Ours { value, .. }) if value.as_deref().is_some_and(is_draining) => draining += 1,
                Some(Holding::Ours { .. }) => registered += 1,
                Some(Holding::Foreign { .. }) => foreign += 1,
                Some(Holding::Unknown) | None => not_written += i64::from(key.wanted.is_some()),
            }
        }
        let keys =
            [("registered", registered), ("draining", draining), ("foreign", foreign), ("not_written", not_written)];
        let ago = |at: Option<Instant>| at.map(|at| at.elapsed());
        EtcdOverview {
            api: self.api(),
            is_connected: self.answered_at.is_some() && self.trouble.is_none(),
            answered: ago(self.answered_at),
            refreshed: ago(self.refreshed_at),
            keys,
        }
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

    /// Renews the key no more, and thinks no more of it: it goes with its time to live. A lease that others share with it is
    /// renewed no more either: they get another one.
    pub fn let_go(&mut self, key: &InstanceKey) {
        let Some(known) = self.keys.remove(key) else { return };
        if let Some(doing) = known.doing {
            doing.leave();
        }
        self.lease = self.lease.filter(|lease| !lease.is_shared());
    }

    /// Does what there is to do until there is something to tell. Nothing is lost when it is dropped.
    pub async fn next(&mut self) -> Told {
        loop {
            if let Some(told) = self.told.pop_front() {
                return told;
            }
            self.start();
            self.finish_one().await;
        }
    }

    /// Removes what is ours, within a limit, and lingers where anything was there to remove: who watches is to know of it
    /// first.
    pub async fn withdraw(mut self, linger: Duration) {
        let limit = Instant::now() + WITHDRAW_LIMIT;
        self.store = self.store.with_request_timeout(self.hurried);
        self.pause = Backoff::new(WITHDRAW_PAUSE, WITHDRAW_PAUSE);
        self.key_pauses = (WITHDRAW_PAUSE, WITHDRAW_PAUSE);
        self.write_at = Instant::now();
        self.ask_at = limit + self.ttl;
        if let Some(asking) = self.asking.take() {
            asking.abort();
        }
        for (key, known) in &mut self.keys {
            known.wanted = None;
            known.trouble = None;
            // A key that is just being written, or tied to another lease with others, must be known to be removed; any other
            // request may be broken off.
            if let Some(doing) = known.doing.take_if(|doing| doing.step != Step::Put && doing.request.is_some()) {
                doing.leave();
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
        if any {
            // A lease whose keys were just deleted ends by itself: who hears of them late must still find it, or takes the
            // deletion for an expiry.
            sleep(linger).await;
        } else if let Some(lease) = self.lease.filter(|_| self.keys.is_empty()) {
            let _given_back = timeout(self.hurried, self.store.give_back(&lease)).await;
        }
    }

    /// Begins what is to be done now, or asks etcd whether it is there where nothing has told that for a while.
    fn start(&mut self) {
        let now = Instant::now();
        self.start_steps(now);
        if self.is_quiet() && self.ask_at <= now && self.write_at <= now {
            self.ask_at = self.next_asking(now);
            let (store, prefix) = (self.store.clone(), self.prefix.clone());
            let asking =
                self.requests.spawn(async move { Answer::There { begun: now, result: store.confirm(&prefix).await } });
            self.asking = Some(asking);
        }
    }

    /// Nothing goes on that will tell whether etcd is there.
    fn is_quiet(&self) -> bool {
        self.requests.is_empty()
    }

    /// When etcd is to be asked whether it is there, where nothing else is asked from now on. Keys are renewed more often.
    fn next_asking(&self, now: Instant) -> Instant {
        Instant::from_std(due_after(self.ttl / 2, now.into_std(), self.epoch))
    }

    /// Begins what is to be done now, the most urgent first.
    fn start_steps(&mut self, now: Instant) {
        while self.due.first().is_some_and(|(at, _)| *at <= now) {
            self.dirty.extend(self.due.pop_first().map(|(_, key)| key));
        }
        let at_once = self.at_once();
        if self.dirty.is_empty() || self.write_at > now || self.requests.len() >= at_once {
            return;
        }
        let lease = self.lease_at(now);
        let mut steps: Vec<(Step, InstanceKey)> = Vec::new();
        let mut renewals: Vec<(InstanceKey, Ownership)> = Vec::new();
        for key in std::mem::take(&mut self.dirty) {
            let Some(known) = self.keys.get(&key).filter(|known| known.doing.is_none()) else { continue };
            if let Some(at) = known.trouble.as_ref().map(|trouble| trouble.retry_at).filter(|at| *at > now) {
                self.due.insert((at, key));
                continue;
            }
            match reconcile(known.wanted.as_deref(), known.held.as_ref(), now.into_std()) {
                Some(Step::Forget) => drop(self.keys.remove(&key)),
                Some(Step::Refresh(owned)) if lease.is_some_and(|lease| lease.is_shared()) => {
                    renewals.push((key, owned));
                }
                Some(step) => steps.push((step, key)),
                None => match &known.held {
                    Some(held) => self.due.extend(due(held).map(|at| (Instant::from_std(at), key))),
                    None => drop(self.keys.remove(&key)),
                },
            }
        }
        // While one request feels the way, renewals and all others take turns at it.
        let must_wait = at_once == 1 && std::mem::take(&mut self.has_renewed) && !steps.is_empty();
        if let Some(lease) = lease.filter(|_| !renewals.is_empty()) {
            if must_wait {
                self.dirty.extend(renewals.into_iter().map(|(key, _)| key));
            } else {
                self.has_renewed = true;
                self.renew(lease, renewals, now);
            }
        }
        // While one request feels the way, it is another one each time: none can keep the others from being tried.
        let unanswered = |key: &InstanceKey| self.keys.get(key).map_or(0, |known| known.unanswered);
        steps.sort_by_key(|(step, key)| (unanswered(key), step.rank()));
        let mut free = at_once.saturating_sub(self.requests.len());
        for (step, key) in steps {
            let needs_lease = matches!(step, Step::Put | Step::Update(_) | Step::Refresh(_));
            if needs_lease && lease.is_none() && self.grant_at > now {
                self.due.insert((self.grant_at, key));
                continue;
            }
            if free > 0 && needs_lease && lease.is_none() {
                free -= usize::from(self.grant());
            }
            let may_begin = free > 0 && !(needs_lease && lease.is_none());
            let Some(known) = self.keys.get_mut(&key).filter(|_| may_begin) else {
                self.dirty.insert(key);
                continue;
            };
            free -= 1;
            let value = known.wanted.clone().unwrap_or_default();
            let own = known.own_words();
            let request = carry_out(self.store.clone(), self.claim.clone(), key, step, value, lease, own);
            known.doing = Some(Doing { step, begun: now, request: Some(self.requests.spawn(request)) });
        }
    }

    /// The lease, unless it may have ended by now.
    fn lease_at(&mut self, now: Instant) -> Option<Lease> {
        self.lease = self.lease.filter(|lease| !lease.is_shared() || now < self.kept_at + self.ttl * 2 / 3);
        self.lease
    }

    /// Gets a lease. Gives whether that is a request more.
    fn grant(&mut self) -> bool {
        if std::mem::replace(&mut self.is_granting, true) {
            return false;
        }
        let (store, ttl) = (self.store.clone(), self.ttl);
        self.requests.spawn(async move { Answer::Granted(store.grant(ttl).await) });
        true
    }

    /// Renews all these keys with one request.
    fn renew(&mut self, lease: Lease, keys: Vec<(InstanceKey, Ownership)>, now: Instant) {
        self.keep_at = self.renewal(now);
        for (key, owned) in &keys {
            if let Some(known) = self.keys.get_mut(key) {
                known.doing = Some(Doing { step: Step::Refresh(*owned), begun: now, request: None });
            }
        }
        let store = self.store.clone();
        if self.strays_at <= now && self.trouble.is_none() {
            self.strays_at = now + self.ttl * STRAYS_EVERY;
            let (store, keys) = (store.clone(), keys.clone());
            self.requests.spawn(async move { Answer::Strays(store.strays(&lease, &keys).await) });
        }
        self.requests.spawn(async move {
            let result = store.keep(&keys, &lease).await;
            Answer::Kept { keys, lease, begun: now, result }
        });
    }

    /// Looks whose a key is that was found changed while it was renewed with others: that shows in its value.
    fn look(&mut self, key: InstanceKey, owned: Ownership, now: Instant) {
        let Some(known) = self.keys.get_mut(&key) else { return };
        if known.doing.take_if(|doing| doing.step == Step::Refresh(owned)).is_some() {
            let (store, claim) = (self.store.clone(), self.claim.clone());
            let request = carry_out(store, claim, key, Step::Look, Arc::default(), self.lease, Vec::new());
            known.doing = Some(Doing { step: Step::Look, begun: now, request: Some(self.requests.spawn(request)) });
        }
    }

    /// When what is renewed now is to be renewed again.
    fn renewal(&self, now: Instant) -> Instant {
        Instant::from_std(due_after(refresh_after(self.ttl), now.into_std(), self.epoch))
    }

    /// When a key that was written or renewed with this lease is to be renewed: with the lease, which is at once where that has
    /// kept nothing for a while, and at once where it is kept no more.
    fn renewal_of_key(&self, lease: Option<Lease>, now: Instant) -> Instant {
        match lease.filter(Lease::is_shared) {
            Some(shared) if self.lease == Some(shared) => self.keep_at,
            Some(_) => now,
            None => self.renewal(now),
        }
    }

    /// How many requests may go on. After a failure one feels its way.
    fn at_once(&self) -> usize {
        if self.trouble.is_some() { 1 } else { REQUESTS_AT_ONCE }
    }

    /// Waits until a request is done or another may begin.
    async fn finish_one(&mut self) {
        let waits_for_lease = self.is_granting;
        let next = match self.dirty.is_empty() || waits_for_lease {
            true => self.due.first().map(|(at, _)| *at),
            false => Some(self.write_at),
        };
        let next = next.into_iter().chain(self.is_quiet().then_some(self.ask_at)).min();
        let free = self.requests.len() < self.at_once();
        tokio::select! {
            biased;
            Some(answer) = self.requests.join_next() => if let Some(answer) = ended(answer) {
                self.answer(answer);
            },
            () = until(next.filter(|_| free).map(|at| at.max(self.write_at))) => {}
        }
    }

    fn answer(&mut self, answer: Answer) {
        let now = Instant::now();
        match answer {
            Answer::Done(done) => {
                let told = self.done(done);
                self.told.extend(told);
            }
            Answer::Granted(result) => {
                self.is_granting = false;
                match result {
                    Ok(lease) => {
                        self.answered(now);
                        self.grant_pause.reset();
                        if self.lease_trouble.take().is_some() {
                            info!("etcd gives a lease again");
                        }
                        (self.lease, self.kept_at, self.keep_at) = (Some(lease), now, self.renewal(now));
                    }
                    Err(error) => {
                        self.metrics.etcd_failed(self.api(), error.trouble());
                        self.no_lease(error, now);
                    }
                }
            }
            Answer::Strays(Ok(found)) => found.into_iter().for_each(|(key, entry)| self.stray(key, &entry, now)),
            Answer::Strays(Err(error)) => {
                self.metrics.etcd_failed(self.api(), error.trouble());
                debug!(%error, "etcd does not say what the lease keeps");
            }
            Answer::Kept { keys, lease, begun, result } => self.kept(keys, lease, begun, result),
            Answer::There { begun, result } => self.there(begun, result),
        }
    }

    /// Takes it whether etcd answers at all, whatever it says.
    fn there(&mut self, begun: Instant, result: Result<(), StoreError>) {
        self.asking = None;
        let now = Instant::now();
        let Err(error) = result else { return self.answered(now) };
        self.metrics.etcd_failed(self.api(), error.trouble());
        match Failure::from(error) {
            Failure::OfKey(_) => self.answered(now),
            // Others were answered meanwhile.
            Failure::NoAnswer(_) if self.answered_at.is_some_and(|at| at >= begun) => {}
            Failure::NoAnswer(what) => self.no_answer(&what),
        }
    }

    /// Takes away a key that lives by our lease, unless it is one that we know by now.
    fn stray(&mut self, key: InstanceKey, entry: &Entry, now: Instant) {
        if self.keys.contains_key(&key) {
            return;
        }
        warn!(%key, "etcd wrote the key after it had been given up; it is removed");
        let value = Some(entry.value.as_str().into());
        let held = Holding::Ours { ownership: entry.ownership(), value, refresh_at: now.into_std() };
        self.keys.insert(key.clone(), Key { held: Some(held), ..Key::default() });
        self.dirty.insert(key);
    }

    /// Takes what became of keys that were renewed together.
    fn kept(
        &mut self,
        keys: Vec<(InstanceKey, Ownership)>,
        lease: Lease,
        begun: Instant,
        result: Result<Vec<Result<Kept, StoreError>>, StoreError>,
    ) {
        let now = Instant::now();
        let is_current = self.lease == Some(lease);
        let error = match result {
            Ok(results) => {
                if is_current {
                    self.kept_at = now;
                }
                for ((key, owned), result) in keys.into_iter().zip(results) {
                    if matches!(result, Err(StoreError::Taken { .. })) {
                        self.metrics.wrote(self.api(), Step::Refresh(owned), Written::Taken);
                        self.look(key, owned, now);
                        continue;
                    }
                    let result = result.map(|kept| Effect::Owned(kept.ownership, kept.value.map(Arc::from)));
                    let (step, lease) = (Step::Refresh(owned), Some(lease));
                    let told = self.done(Done { key, step, lease, value: Arc::default(), result });
                    self.told.extend(told);
                }
                return;
            }
            Err(error) => error,
        };
        let is_gone = error == StoreError::LeaseGone;
        let api = self.api();
        self.metrics.etcd_failed(api, error.trouble());
        if is_gone {
            warn!(keys = keys.len(), "the lease was gone from etcd, and with it the keys; they are written again");
            self.lease = self.lease.filter(|_| !is_current);
            self.answered(now);
        }
        let was_answered = self.answered_at.is_some_and(|at| at >= begun);
        let failure = Failure::from(error);
        for (at, (key, owned)) in keys.into_iter().enumerate() {
            let Some(known) = self.keys.get_mut(&key) else { continue };
            if known.doing.take_if(|doing| doing.step == Step::Refresh(owned)).is_none() {
                continue;
            }
            self.dirty.insert(key.clone());
            self.metrics.wrote(api, Step::Refresh(owned), if is_gone { Written::Lost } else { Written::Failed });
            match &failure {
                _ if is_gone => {
                    known.is_lost = true;
                    self.metrics.lost(api);
                    known.held = None;
                }
                Failure::NoAnswer(what) if !was_answered => {
                    if at == 0 {
                        self.no_answer(what);
                    }
                }
                Failure::OfKey(what) | Failure::NoAnswer(what) => self.trouble_of(&key, what, at == 0),
            }
        }
    }

    /// The lease that a request was made with is gone, and with it its keys: all that are ours are renewed at once, and found
    /// gone. Of several requests with that lease the first one tells.
    fn lease_is_gone(&mut self, lease: Option<Lease>, now: Instant) {
        if self.lease != lease {
            return;
        }
        (self.lease, self.write_at) = (None, now + self.pause.pause());
        for (key, known) in &mut self.keys {
            if let Some(Holding::Ours { refresh_at, .. }) = &mut known.held {
                *refresh_at = now.into_std();
                self.dirty.insert(key.clone());
            }
        }
    }

    fn done(&mut self, done: Done) -> Option<Told> {
        let Done { key, step, lease, value: written, result } = done;
        let now = Instant::now();
        // A request that was broken off may have been done already.
        let api = self.api();
        self.metrics.wrote(api, step, written_as(&result));
        if let Err(error) = &result {
            self.metrics.etcd_failed(api, error.trouble());
        }
        let known = self.keys.get_mut(&key)?;
        let begun = known.doing.take_if(|doing| doing.step == step)?.begun;
        self.dirty.insert(key.clone());
        let result = match result {
            Err(StoreError::LeaseGone) => {
                self.lease_is_gone(lease, now);
                return None;
            }
            Err(StoreError::Lost { .. }) => {
                warn!(%key, "the key was gone from etcd; it is written again");
                known.is_lost = true;
                self.metrics.lost(api);
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
                self.refreshed_at = Some(now);
                if std::mem::take(&mut known.is_lost) {
                    self.metrics.regained(api);
                }
                match step {
                    Step::Put => info!(%key, "registered"),
                    Step::Update(_) => info!(%key, "changed"),
                    _ => {}
                }
                let refreshed = matches!(step, Step::Refresh(_));
                let before = match &known.held {
                    Some(Holding::Ours { value, .. }) => value.clone(),
                    _ => None,
                };
                let changed = value.as_ref().filter(|value| before.as_ref().is_some_and(|before| before != *value));
                if let Some(value) = changed.filter(|_| refreshed && self.claim != Claim::Any) {
                    return self.seen(key, ownership, value);
                }
                // Who takes any key keeps its own word in mind, whatever others write into it.
                let kept = before.filter(|_| refreshed).or(value);
                let refresh_at = self.renewal_of_key(lease, now).into_std();
                let known = self.keys.get_mut(&key)?;
                known.held = Some(Holding::Ours { ownership, value: kept, refresh_at });
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
        // What keeps it may be an earlier run's, and end soon.
        let refresh_at = (now + (refresh_after(self.ttl) / 2).min(LOOK_EVERY)).into_std();
        known.held = Some(Holding::Ours { ownership, value: Some(value.into()), refresh_at });
        // Written by a request of ours whose answer was lost, it is nobody's word.
        let is_news = !std::mem::take(&mut known.tried).iter().any(|tried| **tried == *value);
        is_news.then(|| Told::Found(key, Box::new(record)))
    }

    /// etcd has answered, whatever it said.
    fn answered(&mut self, now: Instant) {
        (self.answered_at, self.ask_at) = (Some(now), self.next_asking(now));
        self.pause.reset();
        if self.trouble.take().is_some() && std::mem::take(&mut self.is_trouble_told) {
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
        if is_of_key {
            return self.trouble_of(key, &what, true);
        }
        self.unanswered += 1;
        if let Some(known) = self.keys.get_mut(key) {
            known.unanswered = self.unanswered;
        }
        self.no_answer(&what);
    }

    /// What is wrong with one key alone; told once, and not where it is told of others.
    fn trouble_of(&mut self, key: &InstanceKey, what: &str, is_told: bool) {
        let now = Instant::now();
        let pauses = self.key_pauses;
        let Some(known) = self.keys.get_mut(key) else { return };
        let trouble = known.trouble.get_or_insert_with(|| KeyTrouble {
            what: String::new(),
            pause: Backoff::new(pauses.0, pauses.1),
            retry_at: now,
        });
        trouble.retry_at = now + trouble.pause.pause();
        if trouble.what == what || !is_told {
            debug!(%key, error = what, "etcd does not take the key");
        } else {
            error!(%key, error = what, "etcd does not take the key; the others go on, and it is tried again");
        }
        what.clone_into(&mut trouble.what);
    }

    /// There is no lease to write with. What etcd refuses is told once, and what needs none goes on.
    fn no_lease(&mut self, error: StoreError, now: Instant) {
        let failure = Failure::from(error);
        let (Failure::OfKey(what) | Failure::NoAnswer(what)) = &failure;
        if matches!(failure, Failure::NoAnswer(_)) {
            return self.no_answer(what);
        }
        self.grant_at = now + self.grant_pause.pause();
        if self.lease_trouble.as_ref() != Some(what) {
            error!(error = what, "etcd gives no lease, so that no key can be written; trying again");
            self.lease_trouble = Some(what.clone());
        }
    }

    /// etcd gives no answer, to any key; told once.
    fn no_answer(&mut self, what: &str) {
        let now = Instant::now();
        (self.write_at, self.ask_at) = (now + self.pause.pause(), self.next_asking(now));
        // What comes and goes, such as answers to some requests and not to others, is told now and then.
        let is_known = self.told_trouble.as_ref().is_some_and(|(told, at)| told == what && now < *at + SAME_TROUBLE);
        if self.trouble.as_deref() == Some(what) || is_known {
            debug!(error = what, "etcd cannot be written to");
        } else {
            error!(error = what, "etcd cannot be written to; trying again");
            (self.told_trouble, self.is_trouble_told) = (Some((what.to_owned(), now)), true);
        }
        self.trouble = Some(what.to_owned());
    }
}

impl Key {
    /// What became of a write is not known.
    fn is_in_doubt(&mut self, step: Step, written: Arc<str>, claim: &Claim) {
        let before = match (step, &mut self.held) {
            (Step::Put, held) if *claim != Claim::Any => {
                *held = Some(Holding::Unknown);
                None
            }
            (Step::Update(_), Some(Holding::Ours { value, .. })) => value.take(),
            _ => return,
        };
        for value in [Some(written), before].into_iter().flatten() {
            if !self.tried.contains(&value) {
                self.tried.push(value);
            }
        }
    }

    /// What may stand there by our own hand.
    fn own_words(&self) -> Vec<Arc<str>> {
        let mut own = self.tried.clone();
        if let Some(Holding::Ours { value, .. }) = &self.held {
            own.extend(value.clone());
        }
        own
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
            | StoreError::LeaseGone
            | StoreError::Changed { .. }
            | StoreError::Contended { .. } => Self::OfKey(what),
        }
    }
}

/// What a result means for the key, as it is counted.
fn written_as(result: &Result<Effect, StoreError>) -> Written {
    match result {
        Ok(Effect::Owned(..) | Effect::Gone) => Written::Ok,
        Ok(Effect::Seen(_)) => Written::Taken,
        Err(StoreError::Lost { .. } | StoreError::LeaseGone) => Written::Lost,
        Err(_) => Written::Failed,
    }
}

fn is_draining(value: &str) -> bool {
    Record::parse(value).is_ok_and(|record| record.status == Status::Draining)
}

/// etcd says that there is something, and there is no key.
fn in_the_way(key: &InstanceKey) -> Failure {
    let path = key.path();
    Failure::OfKey(format!("{path} is taken, and not by a key: a directory of that name must be deleted"))
}

/// Does a step. Without a lease nothing can be written. `own` is what the key may say by our own hand.
async fn carry_out(
    store: Store,
    claim: Claim,
    key: InstanceKey,
    step: Step,
    value: Arc<str>,
    lease: Option<Lease>,
    own: Vec<Arc<str>>,
) -> Answer {
    let result = match (&step, lease) {
        (Step::Put, Some(lease)) => match claim {
            Claim::Any => store.put(&key, &value, &lease).await,
            Claim::Own(_) => store.create(&key, &value, &lease).await,
        }
        .map(|ownership| Effect::Owned(ownership, Some(Arc::clone(&value)))),
        (Step::Update(owned), Some(lease)) => {
            // Who takes any key has the last word.
            let own = (claim != Claim::Any).then_some(&*own);
            let updated = store.update(&key, &value, &lease, owned, own).await;
            updated.map(|ownership| Effect::Owned(ownership, Some(Arc::clone(&value))))
        }
        (Step::Refresh(owned), Some(lease)) => {
            let kept = store.keep(&[(key.clone(), *owned)], &lease).await.and_then(|mut kept| kept.remove(0));
            kept.map(|kept| Effect::Owned(kept.ownership, kept.value.map(Arc::from)))
        }
        (Step::Put | Step::Update(_) | Step::Refresh(_), None) => Err(StoreError::LeaseGone),
        (Step::Delete(owned), _) => match store.delete(&key, owned).await {
            Ok(Deleted::NotOurs) => store.get(&key).await.map(Effect::Seen),
            deleted => deleted.map(|_| Effect::Gone),
        },
        (Step::Look, _) => store.get(&key).await.map(Effect::Seen),
        (Step::Forget, _) => Ok(Effect::Gone),
    };
    // Whose it is now, and whose word it is, shows in its value.
    let result = match result {
        Err(StoreError::Taken { .. } | StoreError::Changed { .. }) => store.get(&key).await.map(Effect::Seen),
        result => result,
    };
    Answer::Done(Done { key, step, lease, value, result })
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
