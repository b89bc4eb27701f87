//! The store: what the other parts may ask of etcd, in words that are not those of one etcd API.
//!
//! `endpoints` carries a request to one of several etcd members, `v2` and `v3` speak the two APIs, `memory` is a store within
//! the process. Nothing here judges what a key or a value means: both come back exactly as stored, and are hostile until
//! `key` and `record` read them.

mod api;
mod connector;
mod endpoints;
#[cfg(feature = "fuzz")]
pub(crate) mod fuzz;
mod login;
mod members;
mod memory;
mod names;
mod security;
mod trouble;
mod v2;
mod v3;

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::OnceCell;
use url::Url;

pub use api::{Api, ApiChoice};
pub use endpoints::{EndpointError, EndpointList, parse_endpoints, use_ring};
pub use names::only_by_files_and_dns;
pub use security::{Password, Secret, Security, SecurityError};
pub use trouble::Trouble;

use crate::acknowledgement::{self, DiscovererId};
use crate::key::{InstanceKey, Prefix};
use endpoints::Endpoints;
use memory::Memory;

/// How often a compare-write is tried again on a key that is ours but moved in between.
const COMPARE_TRIES: usize = 3;

/// How the store reaches etcd. What `Debug` prints has no passwords.
#[derive(Clone)]
pub struct StoreOptions {
    /// The members to ask, as [`parse_endpoints`] gives them. They are tried in this order until one answers,
    /// which is then asked first.
    pub endpoints: Vec<Url>,
    /// Which of etcd's APIs is spoken.
    pub api: ApiChoice,
    /// What they are reached with.
    pub security: Security,
    /// The limit on one attempt at one endpoint, from connecting to the last byte of the reply. By v3 a page of a listing has eight
    /// times as long, but for the first one.
    pub request_timeout: Duration,
    /// How long one long poll waits before the quorum is confirmed and it is asked anew: so long goes a member unnoticed
    /// that is cut off from the others. Shorter than the idle limits that firewalls and NAT tables put on a silent
    /// connection.
    pub watch_timeout: Duration,
}

impl fmt::Debug for StoreOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreOptions")
            .field("endpoints", &EndpointList(self.endpoints.clone()))
            .field("api", &self.api)
            .field("security", &self.security)
            .field("request_timeout", &self.request_timeout)
            .field("watch_timeout", &self.watch_timeout)
            .finish()
    }
}

impl StoreOptions {
    /// These endpoints with the default limits: 3 s for an attempt, 5 s for a long poll. The API that they serve is
    /// found out.
    pub fn new(endpoints: Vec<Url>) -> Self {
        let (request_timeout, watch_timeout) = (Duration::from_secs(3), Duration::from_secs(5));
        Self { endpoints, api: ApiChoice::Auto, security: Security::default(), request_timeout, watch_timeout }
    }
}

/// What came of asking every endpoint in vain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unanswered {
    /// Each endpoint with what was wrong.
    pub words: String,
    /// What was wrong with the first of them.
    pub cause: Trouble,
}

impl fmt::Display for Unanswered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.words)
    }
}

impl StoreError {
    /// By what it failed.
    pub fn trouble(&self) -> Trouble {
        match self {
            Self::Client(_) => Trouble::Client,
            Self::NoAnswer(unanswered) => unanswered.cause,
            Self::Refused { .. } | Self::NotADirectory { .. } => Trouble::Refused,
            Self::Taken { .. }
            | Self::Lost { .. }
            | Self::LeaseGone
            | Self::Changed { .. }
            | Self::Contended { .. } => Trouble::Conflict,
        }
    }

    /// Nobody gave an answer that can be used.
    fn unanswered(words: impl Into<String>, cause: Trouble) -> Self {
        Self::NoAnswer(Unanswered { words: words.into(), cause })
    }
}

/// Why the store could not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The HTTP client cannot be built from the options.
    #[error("no etcd client can be made: {0}")]
    Client(String),
    /// Every endpoint was tried; the text names each with what was wrong.
    #[error("no usable answer from etcd: {0}")]
    NoAnswer(Unanswered),
    /// etcd answered that it will not do it.
    #[error("etcd at {endpoint} refuses {path}: {message}")]
    Refused {
        /// Who said so.
        endpoint: String,
        /// The key or directory.
        path: String,
        /// etcd's own words.
        message: String,
    },
    /// A key with a value stands where the directory of instances, or one of its parents, should be.
    #[error("{path} in etcd is a key with a value, not a directory: delete that key or choose another --key")]
    NotADirectory {
        /// The directory that was asked for.
        path: String,
    },
    /// The key is there and belongs to someone else.
    #[error("key {path} was written by someone else")]
    Taken {
        /// The key.
        path: String,
    },
    /// The key is no longer there: it expired or was deleted.
    #[error("key {path} is gone")]
    Lost {
        /// The key.
        path: String,
    },
    /// The lease is no longer there, and with it the keys that it kept.
    #[error("the lease in etcd is gone, and with it all keys that it kept; they are written again")]
    LeaseGone,
    /// The key is ours, and somebody has changed what it says.
    #[error("key {path} says what we have not written: somebody has changed it")]
    Changed {
        /// The key.
        path: String,
    },
    /// The key is ours, but others changed it each time it was to be written.
    #[error("key {path} was changed {COMPARE_TRIES} times while it was written; it is tried again later")]
    Contended {
        /// The key.
        path: String,
    },
}

/// What shows later that a key is still the one we wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ownership {
    created_index: u64,
    modified_index: u64,
    /// The lease that keeps the key (v3); 0 for none.
    lease: u64,
}

/// What keeps keys alive: a lease of etcd's v3 API, which keeps all keys that are tied to it; else a time to live that
/// each key has for itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease {
    ttl: Duration,
    /// 0 where there is no such thing.
    id: u64,
}

impl Lease {
    /// Whether one request keeps all keys.
    pub fn is_shared(&self) -> bool {
        self.id != 0
    }
}

/// A key that was kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// By what to compare it from now on.
    pub ownership: Ownership,
    /// What it says; `None` where that is known to be what it said before.
    pub value: Option<String>,
}

/// One key with its value, exactly as stored: both are hostile until parsed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The absolute path.
    pub path: String,
    /// The value.
    pub value: String,
    /// What is left of its life; `None` for a key that does not expire, and where a listing does not tell
    /// ([`Store::add_times`]).
    pub ttl: Option<Duration>,
    /// By what to compare it.
    ownership: Ownership,
}

impl Entry {
    /// A key that does not expire, made up: for a trial of a template, or a test.
    pub fn new(path: impl Into<String>, value: impl Into<String>) -> Self {
        Self::created(path, value, 0)
    }

    /// As [`Entry::new`], created at an index of etcd.
    pub fn created(path: impl Into<String>, value: impl Into<String>, index: u64) -> Self {
        let ownership = Ownership { created_index: index, modified_index: index, lease: 0 };
        Self { path: path.into(), value: value.into(), ttl: None, ownership }
    }

    /// What shows later that the key is still this one, for a key that carries one's own mark.
    pub fn ownership(&self) -> Ownership {
        self.ownership
    }

    /// When the key was created, as a number that rises with every change in this cluster.
    pub fn created_index(&self) -> u64 {
        self.ownership.created_index
    }
}

/// What keeps the registry.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StoreKind {
    /// A cluster of etcd.
    #[default]
    Etcd,
    /// The memory of one process.
    Memory,
}

impl fmt::Display for StoreKind {
    /// As it is called within a sentence.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Etcd => "etcd",
            Self::Memory => "the registry in memory",
        })
    }
}

/// Where in the life of which cluster a listing or an event stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Position {
    cluster_id: Option<String>,
    index: u64,
}

impl Position {
    /// A position from its parts.
    pub fn new(cluster_id: Option<String>, index: u64) -> Self {
        Self { cluster_id, index }
    }

    /// The cluster, as its `X-Etcd-Cluster-Id` header names it.
    pub fn cluster_id(&self) -> Option<&str> {
        self.cluster_id.as_deref()
    }

    /// Whether it is one of a store within a process.
    pub fn is_in_memory(&self) -> bool {
        self.cluster_id().is_some_and(|cluster| cluster.starts_with(memory::CLUSTER))
    }

    /// The last index that is known: the next event to ask for has a higher one.
    pub fn index(&self) -> u64 {
        self.index
    }
}

/// Everything below a directory at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing {
    /// The keys, sorted by path.
    pub entries: Vec<Entry>,
    /// The directories that were there, by absolute path: the one that was listed and those right below it; where that one is
    /// missing, its parent if that is there. None where the store has no directories.
    pub directories: Option<BTreeSet<String>>,
    /// The moment.
    pub position: Position,
}

/// Why a key is no longer there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// Someone deleted it.
    Deleted,
    /// Its time to live ran out.
    Expired,
}

/// One change below a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The key has this value now.
    Put(Entry),
    /// The key is gone.
    Removed {
        /// Its path.
        path: String,
        /// Why.
        cause: Cause,
    },
    /// The directory is gone with all that was below it. It may be one below the watched directory, that
    /// directory itself, or one of its parents.
    RemovedTree {
        /// The directory's path.
        path: String,
        /// Why.
        cause: Cause,
    },
}

/// What one long poll brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Poll {
    /// Changes, in order (none where what changed is not of this directory), and where to go on.
    Events(Vec<Event>, Position),
    /// Nothing happened while the poll lived; go on from here.
    Quiet(Position),
    /// What happened since cannot be told any more: list again and compare.
    ListAgain(Reason),
}

/// Why a directory must be listed again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// The events asked for are no longer kept: v2 keeps 1000 (error 401), v3 those since the last compaction.
    HistoryCleared,
    /// Another cluster answers now: etcd was built anew, or the endpoints are of two clusters.
    OtherCluster,
    /// etcd's index is lower than what we have seen: it was built anew, or this member lags behind.
    IndexFell,
    /// A change of a kind that is not known here.
    UnknownAction(String),
    /// A key with a value was set where the directory was.
    NotADirectory,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::HistoryCleared => f.write_str("etcd no longer has the events since the last one seen"),
            Self::OtherCluster => f.write_str("another etcd cluster answers"),
            Self::IndexFell => f.write_str("etcd's index is lower than the last one seen"),
            Self::UnknownAction(action) => write!(f, "etcd told of an unknown action {action:?}"),
            Self::NotADirectory => f.write_str("a key with a value was set in place of the directory"),
        }
    }
}

/// What became of a key that was to be deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deleted {
    /// It was ours and is gone.
    Done,
    /// It was gone before.
    AlreadyGone,
    /// Someone else has written it since; it was left alone.
    NotOurs,
}

/// A key that nobody writes, for a read by quorum that carries nothing.
const NO_KEY: &str = "_quorum";

/// A client of one etcd cluster, or a store within the process. Clones share their connections, the memory of which endpoint
/// answers, and what is held in memory.
#[derive(Debug, Clone)]
pub struct Store {
    place: Place,
    watch_timeout: Duration,
}

#[derive(Debug, Clone)]
enum Place {
    Etcd { endpoints: Arc<Endpoints>, choice: ApiChoice, decided: Arc<OnceCell<Api>> },
    Memory(Arc<Memory>),
}

/// Where a request goes.
enum Way<'a> {
    V2(&'a Endpoints),
    V3(&'a Endpoints),
    Memory(&'a Memory),
}

impl Store {
    /// Prepares the client. Asks nobody anything: an etcd that is away is met at the first request.
    ///
    /// # Errors
    /// [`StoreError::Client`] without an endpoint, with an `https` endpoint and no CA certificates, or where a file of
    /// [`Security`] is of no use.
    pub fn new(options: StoreOptions) -> Result<Self, StoreError> {
        let (choice, watch_timeout) = (options.api, options.watch_timeout);
        let endpoints = Arc::new(Endpoints::new(options)?);
        Ok(Self { place: Place::Etcd { endpoints, choice, decided: Arc::default() }, watch_timeout })
    }

    /// An empty store within the process. `watch_timeout` is how long one wait for changes lasts.
    pub fn in_memory(watch_timeout: Duration) -> Self {
        Self { place: Place::Memory(Arc::new(Memory::new())), watch_timeout }
    }

    /// As [`Store::in_memory`], with keys that live for so long in it, written in this order.
    pub fn in_memory_with<'k>(
        watch_timeout: Duration,
        keys: impl IntoIterator<Item = (&'k InstanceKey, &'k str, Duration)>,
    ) -> Self {
        let memory = Memory::new();
        for (key, value, ttl) in keys {
            memory.put(key, value, ttl);
        }
        Self { place: Place::Memory(Arc::new(memory)), watch_timeout }
    }

    /// The same client with another limit on one attempt at one endpoint, for one who is in a hurry.
    #[must_use]
    pub fn with_request_timeout(&self, limit: Duration) -> Self {
        let mut store = self.clone();
        if let Place::Etcd { endpoints, .. } = &mut store.place {
            *endpoints = Arc::new(endpoints.with_request_timeout(limit));
        }
        store
    }

    /// What it is.
    pub fn kind(&self) -> StoreKind {
        match self.place {
            Place::Etcd { .. } => StoreKind::Etcd,
            Place::Memory(_) => StoreKind::Memory,
        }
    }

    /// Which API is spoken; `None` in memory. Where that is to be found out, it is, once.
    pub async fn api(&self) -> Result<Option<Api>, StoreError> {
        Ok(match self.way().await? {
            Way::V2(_) => Some(Api::V2),
            Way::V3(_) => Some(Api::V3),
            Way::Memory(_) => None,
        })
    }

    /// Which API is spoken, as far as that is known without asking anybody.
    pub fn known_api(&self) -> Option<Api> {
        match &self.place {
            Place::Memory(_) => None,
            Place::Etcd { choice: ApiChoice::Only(api), .. } => Some(*api),
            Place::Etcd { decided, .. } => decided.get().copied(),
        }
    }

    async fn way(&self) -> Result<Way<'_>, StoreError> {
        let (endpoints, choice, decided) = match &self.place {
            Place::Memory(memory) => return Ok(Way::Memory(memory)),
            Place::Etcd { endpoints, choice, decided } => (endpoints, *choice, decided),
        };
        let api = match choice {
            ApiChoice::Only(api) => api,
            ApiChoice::Auto => *decided.get_or_try_init(|| api::decide(endpoints)).await?,
        };
        Ok(match api {
            Api::V2 => Way::V2(endpoints),
            Api::V3 => Way::V3(endpoints),
        })
    }

    /// Reads all that is below the directory, by quorum. A directory that does not exist is an empty one.
    pub async fn list(&self, prefix: &Prefix) -> Result<Listing, StoreError> {
        match self.way().await? {
            Way::V2(etcd) => v2::list(etcd, prefix).await,
            Way::V3(etcd) => v3::list(etcd, prefix).await,
            Way::Memory(memory) => Ok(memory.list(prefix)),
        }
    }

    /// Adds to listed keys how long they will live, where the listing did not tell.
    pub async fn add_times(&self, entries: &mut [Entry]) -> Result<(), StoreError> {
        match self.way().await? {
            Way::V3(etcd) => v3::times_to_live(etcd, entries).await,
            Way::V2(_) | Way::Memory(_) => Ok(()),
        }
    }

    /// Reads one key, by quorum. `None` where it does not exist or is a directory.
    pub async fn get(&self, key: &InstanceKey) -> Result<Option<Entry>, StoreError> {
        match self.way().await? {
            Way::V2(etcd) => v2::get(etcd, key).await,
            Way::V3(etcd) => v3::get(etcd, key).await,
            Way::Memory(memory) => Ok(memory.get(key)),
        }
    }

    /// Gets what is to keep keys alive for `ttl` after it was last renewed. Only v3 is asked for anything.
    ///
    /// `ttl` counts in whole seconds, rounded up, at least one.
    pub async fn grant(&self, ttl: Duration) -> Result<Lease, StoreError> {
        let id = match self.way().await? {
            Way::V3(etcd) => v3::grant(etcd, ttl).await?,
            Way::V2(_) | Way::Memory(_) => 0,
        };
        Ok(Lease { ttl, id })
    }

    /// Gives a lease back, when the keys that it kept have been deleted: those that are left go with it, and count as
    /// expired.
    pub async fn give_back(&self, lease: &Lease) -> Result<(), StoreError> {
        match self.way().await? {
            Way::V3(etcd) => v3::revoke(etcd, lease.id).await,
            Way::V2(_) | Way::Memory(_) => Ok(()),
        }
    }

    /// Writes the key, whoever had it before, and takes it.
    ///
    /// # Errors
    /// [`StoreError::LeaseGone`]: get another one; here as in the other writes.
    pub async fn put(&self, key: &InstanceKey, value: &str, lease: &Lease) -> Result<Ownership, StoreError> {
        match self.way().await? {
            Way::V2(etcd) => v2::put(etcd, key, value, lease.ttl).await,
            Way::V3(etcd) => v3::put(etcd, key, value, lease.id).await,
            Way::Memory(memory) => Ok(memory.put(key, value, lease.ttl)),
        }
    }

    /// Writes the key only if there is none.
    ///
    /// # Errors
    /// [`StoreError::Taken`] where there is one. The reply to an attempt may be lost though the key was written: a
    /// key that is there after such an attempt and holds exactly `value` counts as written by it.
    pub async fn create(&self, key: &InstanceKey, value: &str, lease: &Lease) -> Result<Ownership, StoreError> {
        match self.way().await? {
            Way::V2(etcd) => v2::create(etcd, key, value, lease.ttl).await,
            Way::V3(etcd) => v3::create(etcd, key, value, lease.id).await,
            Way::Memory(memory) => memory.create(key, value, lease.ttl),
        }
    }

    /// Gives the keys their full time to live again, and looks whether they are still ours. Wakes nobody who watches, unless a
    /// key that was taken over is tied to our lease. A value comes back where it may have changed: others may have changed it
    /// in place, which leaves the key ours.
    ///
    /// Where the lease is not shared, each key is a request of its own, one after another.
    ///
    /// # Errors
    /// For one key: [`StoreError::Lost`] where it is gone, [`StoreError::Taken`] where it is someone else's now. For all:
    /// [`StoreError::LeaseGone`], and what kept etcd from answering.
    pub async fn keep(
        &self,
        keys: &[(InstanceKey, Ownership)],
        lease: &Lease,
    ) -> Result<Vec<Result<Kept, StoreError>>, StoreError> {
        let mut kept = Vec::with_capacity(keys.len());
        match self.way().await? {
            Way::V3(etcd) => return v3::keep(etcd, lease.id, keys).await,
            Way::V2(etcd) => {
                for (key, owned) in keys {
                    kept.push(v2::refresh(etcd, key, lease.ttl, owned).await);
                }
            }
            Way::Memory(memory) => {
                kept.extend(keys.iter().map(|(key, owned)| memory.refresh(key, lease.ttl, owned)));
            }
        }
        Ok(kept)
    }

    /// What a shared lease keeps beside these keys, of the same prefix: keys that are being written now, and what etcd wrote when we
    /// had given it up, since a member stood still with the request. Such a key lives as long as the lease does, and nobody
    /// knows of it. Nothing where each key has a time to live of its own. At most 100 at once.
    pub async fn strays(
        &self,
        lease: &Lease,
        kept: &[(InstanceKey, Ownership)],
    ) -> Result<Vec<(InstanceKey, Entry)>, StoreError> {
        match self.way().await? {
            Way::V3(etcd) => v3::strays(etcd, lease.id, kept).await,
            Way::V2(_) | Way::Memory(_) => Ok(Vec::new()),
        }
    }

    /// Gives the key another value and its full time to live. Where it has changed since it was compared last, what it says must be
    /// `value` or among `own`, what we may have written ourselves; any word is replaced where that is `None`.
    ///
    /// # Errors
    /// As [`Store::keep`] for one key, and [`StoreError::Changed`] where it says something else: an operator's word is to be
    /// read before it is replaced.
    pub async fn update(
        &self,
        key: &InstanceKey,
        value: &str,
        lease: &Lease,
        owned: &Ownership,
        own: Option<&[Arc<str>]>,
    ) -> Result<Ownership, StoreError> {
        let is_own = |found: &str| found == value || own.is_none_or(|own| own.iter().any(|own| **own == *found));
        match self.way().await? {
            Way::V2(etcd) => v2::update(etcd, key, value, lease.ttl, owned, is_own).await,
            Way::V3(etcd) => v3::update(etcd, key, value, lease.id, owned, is_own).await,
            Way::Memory(memory) => memory.update(key, value, lease.ttl, owned, is_own),
        }
    }

    /// Changes the value of somebody's key, as it was read, and leaves the key to whoever keeps it: its owner finds the new
    /// value when it keeps the key the next time. Gives the index of the change.
    ///
    /// # Errors
    /// [`StoreError::Lost`] where it is gone, [`StoreError::Contended`] where it is no longer as it was read.
    pub async fn amend(&self, key: &InstanceKey, value: &str, entry: &Entry) -> Result<u64, StoreError> {
        match self.way().await? {
            Way::V2(etcd) => v2::amend(etcd, key, value, entry).await,
            Way::V3(etcd) => v3::amend(etcd, key, value, entry).await,
            Way::Memory(memory) => memory.amend(key, value, entry),
        }
    }

    /// Says what a discoverer of this prefix has to say (see [`acknowledgement`]), for as long as the lease lives; nobody who
    /// follows the prefix is woken.
    pub async fn publish(
        &self,
        prefix: &Prefix,
        id: &DiscovererId,
        value: &str,
        lease: &Lease,
    ) -> Result<(), StoreError> {
        let path = acknowledgement::path(prefix, id);
        match self.way().await? {
            Way::V2(etcd) => v2::write(etcd, path, value, lease.ttl).await.map(drop),
            Way::V3(etcd) => v3::write(etcd, &path, value, lease.id).await.map(drop),
            Way::Memory(memory) => {
                memory.write(path, value, lease.ttl);
                Ok(())
            }
        }
    }

    /// What the discoverers say that are there now, of those who follow this prefix or a longer one that begins with it: what
    /// each follows, who it is, and its value as stored; sorted by path.
    pub async fn published(&self, prefix: &Prefix) -> Result<Vec<(Prefix, DiscovererId, String)>, StoreError> {
        let listing = self.list(&acknowledgement::directory(prefix)).await?;
        let read = |entry: Entry| {
            let (prefix, id) = acknowledgement::parse_path(&entry.path)?;
            Some((prefix, id, entry.value))
        };
        Ok(listing.entries.into_iter().filter_map(read).collect())
    }

    /// Deletes the key if it is still ours.
    pub async fn delete(&self, key: &InstanceKey, owned: &Ownership) -> Result<Deleted, StoreError> {
        match self.way().await? {
            Way::V2(etcd) => v2::delete(etcd, key, owned).await,
            Way::V3(etcd) => v3::delete(etcd, key, owned).await,
            Way::Memory(memory) => Ok(memory.delete(key, owned)),
        }
    }

    /// What changes below the directory after `position`.
    pub fn changes(&self, prefix: &Prefix, position: Position) -> Changes {
        Changes { store: self.clone(), prefix: prefix.clone(), position, watch: v3::Watch::new(prefix.clone()) }
    }

    /// Makes sure that whoever answers belongs to a cluster that has a quorum: a member that is cut off from the others
    /// lets polls wait for ever.
    pub async fn confirm(&self, prefix: &Prefix) -> Result<(), StoreError> {
        let path = format!("{}/{NO_KEY}", prefix.path());
        match self.way().await? {
            Way::V2(etcd) => v2::confirm(etcd, path).await,
            Way::V3(etcd) => v3::confirm(etcd, &path).await,
            Way::Memory(_) => Ok(()),
        }
    }
}

/// The changes below a directory, from a position on.
#[derive(Debug)]
pub struct Changes {
    store: Store,
    prefix: Prefix,
    position: Position,
    /// v3 keeps a stream open from one wait to the next.
    watch: v3::Watch,
}

impl Changes {
    /// Up to where the changes have been told.
    pub fn position(&self) -> &Position {
        &self.position
    }

    /// Waits for the next change, at most [`StoreOptions::watch_timeout`]. After [`Poll::ListAgain`] and after an error the
    /// directory must be listed, and followed from there.
    ///
    /// # Errors
    /// [`StoreError::NoAnswer`] also where an answer broke off or was not etcd's.
    pub async fn next(&mut self) -> Result<Poll, StoreError> {
        let patience = self.store.watch_timeout;
        let poll = match self.store.way().await? {
            Way::V2(etcd) => v2::poll(etcd, &self.prefix, &self.position, patience).await?,
            Way::V3(etcd) => self.watch.next(etcd, &self.position, patience).await?,
            Way::Memory(memory) => memory.poll(&self.prefix, &self.position, patience).await,
        };
        if let Poll::Events(_, position) | Poll::Quiet(position) = &poll {
            self.position.clone_from(position);
        }
        Ok(poll)
    }
}

/// A time to live as etcd counts it: in whole seconds, rounded up, at least one.
fn whole_seconds(ttl: Duration) -> u64 {
    (ttl.as_secs() + u64::from(ttl.subsec_nanos() > 0)).max(1)
}
