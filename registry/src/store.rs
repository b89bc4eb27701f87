//! The store: what the other parts may ask of etcd, in words that are not those of one etcd API.
//!
//! `endpoints` carries a request to one of several etcd members, `v2` knows the wire. Nothing here judges what a
//! key or a value means: both come back exactly as stored, and are hostile until `key` and `record` read them.

mod endpoints;
mod v2;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use reqwest::Method;
use tracing::debug;
use url::Url;

pub use endpoints::{EndpointError, EndpointList, parse_endpoints, use_ring};

use crate::key::{InstanceKey, Prefix};
use endpoints::{Answer, Content, Endpoints, Request};

/// How often a compare-write is tried again on a key that is ours but moved in between.
const COMPARE_TRIES: usize = 3;

/// How the store reaches etcd.
#[derive(Debug, Clone)]
pub struct StoreOptions {
    /// The members to ask, as [`parse_endpoints`] gives them. They are tried in this order until one answers,
    /// which is then asked first.
    pub endpoints: Vec<Url>,
    /// The limit on one attempt at one endpoint, from connecting to the last byte of the reply.
    pub request_timeout: Duration,
    /// How long one long poll waits before it is asked anew. Shorter than the idle limits that firewalls and
    /// NAT tables put on a silent connection.
    pub watch_timeout: Duration,
}

impl StoreOptions {
    /// These endpoints with the default limits: 3 s for an attempt, 20 s for a long poll.
    pub fn new(endpoints: Vec<Url>) -> Self {
        Self { endpoints, request_timeout: Duration::from_secs(3), watch_timeout: Duration::from_secs(20) }
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
    NoAnswer(String),
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
    /// The key is ours, but others changed it each time it was to be written.
    #[error("key {path} was changed {COMPARE_TRIES} times while it was written; it is tried again later")]
    Contended {
        /// The key.
        path: String,
    },
}

/// What shows later that a key is still the one we wrote.
///
/// etcd v2 moves `modifiedIndex` with every write, refreshes included, and keeps `createdIndex` until the key is
/// set anew: the same `createdIndex` means ours (etcd v2 API, "Atomic Compare-and-Swap").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ownership {
    created_index: u64,
    modified_index: u64,
}

/// One key with its value, exactly as stored: both are hostile until parsed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The absolute path.
    pub path: String,
    /// The value.
    pub value: String,
    /// What is left of its life; `None` for a key that does not expire.
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
        let ownership = Ownership { created_index: index, modified_index: index };
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
    /// etcd keeps 1000 events, and those asked for are no longer among them (etcd v2 error 401).
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
const NO_KEY: &str = "/_quorum";

/// A client of one etcd cluster. Clones share their connections and the memory of which endpoint answers.
#[derive(Debug, Clone)]
pub struct Store {
    endpoints: Arc<Endpoints>,
    watch_timeout: Duration,
}

impl Store {
    /// Prepares the client. Asks nobody anything: an etcd that is away is met at the first request.
    ///
    /// # Errors
    /// [`StoreError::Client`] without an endpoint, or with an `https` endpoint on a machine without CA certificates.
    pub fn new(options: StoreOptions) -> Result<Self, StoreError> {
        let StoreOptions { endpoints, request_timeout, watch_timeout } = options;
        Ok(Self { endpoints: Arc::new(Endpoints::new(endpoints, request_timeout)?), watch_timeout })
    }

    /// The same client with another limit on one attempt at one endpoint, for one who is in a hurry.
    #[must_use]
    pub fn with_request_timeout(&self, limit: Duration) -> Self {
        Self { endpoints: Arc::new(self.endpoints.with_request_timeout(limit)), watch_timeout: self.watch_timeout }
    }

    /// Reads all that is below the directory, by quorum. A directory that does not exist is an empty one.
    pub async fn list(&self, prefix: &Prefix) -> Result<Listing, StoreError> {
        let path = prefix.path();
        let answer = self.ask(v2::list(&path)).await?;
        let Answer { endpoint, cluster_id, index, content, .. } = answer;
        let entries = match content {
            Content::Change(change) if change.node.dir => v2::entries(change.node),
            Content::Change(_) => return Err(StoreError::NotADirectory { path }),
            Content::Refused(refusal) if refusal.code == v2::KEY_NOT_FOUND => Vec::new(),
            Content::Refused(refusal) if refusal.code == v2::NOT_A_DIRECTORY => {
                return Err(StoreError::NotADirectory { path });
            }
            Content::Refused(refusal) => return Err(refusal.into_error(endpoint, path)),
            Content::Waiting(_) => return Err(not_asked_to_wait(&endpoint)),
        };
        Ok(Listing { entries, position: Position { cluster_id, index } })
    }

    /// Reads one key, by quorum. `None` where it does not exist or is a directory.
    pub async fn get(&self, key: &InstanceKey) -> Result<Option<Entry>, StoreError> {
        let path = key.path();
        let answer = self.ask(v2::get(&path)).await?;
        match answer.content {
            Content::Change(change) => Ok((!change.node.dir).then(|| change.node.into_entry())),
            Content::Refused(refusal) if matches!(refusal.code, v2::KEY_NOT_FOUND | v2::NOT_A_DIRECTORY) => Ok(None),
            Content::Refused(refusal) => Err(refusal.into_error(answer.endpoint, path)),
            Content::Waiting(_) => Err(not_asked_to_wait(&answer.endpoint)),
        }
    }

    /// Writes the key, whoever had it before, and takes it.
    ///
    /// `ttl` counts in whole seconds, rounded up, at least one; here as in the other writes.
    pub async fn put(&self, key: &InstanceKey, value: &str, ttl: Duration) -> Result<Ownership, StoreError> {
        let path = key.path();
        let answer = self.ask(v2::put(&path, value, ttl)).await?;
        answer.into_entry(path).map(|entry| entry.ownership)
    }

    /// Writes the key only if there is none.
    ///
    /// # Errors
    /// [`StoreError::Taken`] where there is one. The reply to an attempt may be lost though the key was written: a
    /// key that is there after such an attempt and holds exactly `value` counts as written by it.
    pub async fn create(&self, key: &InstanceKey, value: &str, ttl: Duration) -> Result<Ownership, StoreError> {
        let path = key.path();
        let answer = self.ask(v2::create(&path, value, ttl)).await?;
        match &answer.content {
            Content::Refused(refusal) if refusal.code == v2::KEY_EXISTS => match self.get(key).await? {
                Some(entry) if answer.uncertain && entry.value == value => Ok(entry.ownership),
                _ => Err(StoreError::Taken { path }),
            },
            _ => answer.into_entry(path).map(|entry| entry.ownership),
        }
    }

    /// Gives the key its full time to live again. Wakes nobody who watches. Its value comes back: others may have
    /// changed it in place, which leaves the key ours.
    ///
    /// # Errors
    /// [`StoreError::Lost`] where the key is gone, [`StoreError::Taken`] where it is someone else's now.
    pub async fn refresh(&self, key: &InstanceKey, ttl: Duration, owned: &Ownership) -> Result<Entry, StoreError> {
        self.compare_write(key, owned, |path, index| v2::refresh(path, ttl, index)).await
    }

    /// Gives the key another value and its full time to live.
    ///
    /// # Errors
    /// As [`Store::refresh`].
    pub async fn update(
        &self,
        key: &InstanceKey,
        value: &str,
        ttl: Duration,
        owned: &Ownership,
    ) -> Result<Ownership, StoreError> {
        let entry = self.compare_write(key, owned, |path, index| v2::update(path, value, ttl, index)).await?;
        Ok(entry.ownership)
    }

    /// Deletes the key if it is still ours.
    pub async fn delete(&self, key: &InstanceKey, owned: &Ownership) -> Result<Deleted, StoreError> {
        let path = key.path();
        let mut owned = *owned;
        let mut uncertain = false;
        for _ in 0..COMPARE_TRIES {
            let answer = self.ask(v2::delete(&path, owned.modified_index)).await?;
            uncertain |= answer.uncertain;
            let refusal = match answer.content {
                Content::Change(_) => return Ok(Deleted::Done),
                Content::Waiting(_) => return Err(not_asked_to_wait(&answer.endpoint)),
                Content::Refused(refusal) => refusal,
            };
            match refusal.code {
                v2::KEY_NOT_FOUND if uncertain => return Ok(Deleted::Done),
                v2::KEY_NOT_FOUND => return Ok(Deleted::AlreadyGone),
                v2::COMPARE_FAILED => match self.get(key).await? {
                    None => return Ok(Deleted::AlreadyGone),
                    Some(entry) if entry.ownership.created_index == owned.created_index => owned = entry.ownership,
                    Some(_) => return Ok(Deleted::NotOurs),
                },
                _ => return Err(refusal.into_error(answer.endpoint, path)),
            }
        }
        Err(StoreError::Contended { path })
    }

    /// One long poll: waits for the next change below the directory after `position`, at most
    /// [`StoreOptions::watch_timeout`].
    ///
    /// # Errors
    /// [`StoreError::NoAnswer`] also where an answer broke off or was not etcd's.
    pub async fn poll(&self, prefix: &Prefix, position: &Position) -> Result<Poll, StoreError> {
        let path = prefix.path();
        let wait_index = position.index.saturating_add(1);
        let answer = self.ask(v2::wait(&path, wait_index)).await?;
        if answer.cluster_id != position.cluster_id {
            return Ok(Poll::ListAgain(Reason::OtherCluster));
        }
        if answer.index < position.index {
            return Ok(Poll::ListAgain(Reason::IndexFell));
        }
        let Answer { endpoint, cluster_id, index, content, .. } = answer;
        let waiting = match content {
            Content::Waiting(waiting) => waiting,
            Content::Refused(refusal) if refusal.code == v2::EVENT_INDEX_CLEARED => {
                return Ok(Poll::ListAgain(Reason::HistoryCleared));
            }
            Content::Refused(refusal) => return Err(refusal.into_error(endpoint, path)),
            Content::Change(_) => return Err(not_asked_to_wait(&endpoint)),
        };
        let Some(change) = self.endpoints.await_change(&endpoint, waiting, self.watch_timeout).await? else {
            // The index of the headers is that of the moment the poll began to wait, and nothing came since.
            return Ok(Poll::Quiet(Position { cluster_id, index: index.max(position.index) }));
        };
        let modified_index = change.node.modified_index;
        if modified_index < wait_index {
            let what = format!("{endpoint}: asked for events from {wait_index} on, got {modified_index}");
            return Err(StoreError::NoAnswer(what));
        }
        debug!(action = change.action, path = change.node.key, index = modified_index, "etcd event");
        Ok(match v2::event(prefix, change) {
            Ok(event) => Poll::Events(event.into_iter().collect(), Position { cluster_id, index: modified_index }),
            Err(reason) => Poll::ListAgain(reason),
        })
    }

    /// Makes sure that whoever answers belongs to a cluster that has a quorum: a member that is cut off from the others
    /// lets polls wait for ever.
    pub async fn confirm(&self) -> Result<(), StoreError> {
        let answer = self.ask(v2::get(NO_KEY)).await?;
        match answer.content {
            Content::Change(_) => Ok(()),
            Content::Refused(refusal) if refusal.code == v2::KEY_NOT_FOUND => Ok(()),
            Content::Refused(refusal) => Err(refusal.into_error(answer.endpoint, NO_KEY.to_owned())),
            Content::Waiting(_) => Err(not_asked_to_wait(&answer.endpoint)),
        }
    }

    async fn ask(&self, request: Request) -> Result<Answer, StoreError> {
        self.endpoints.ask(&request).await
    }

    /// Writes with a comparison, and goes on with the key's new index where it moved but is still ours: the reply to
    /// an earlier write may have been lost.
    async fn compare_write(
        &self,
        key: &InstanceKey,
        owned: &Ownership,
        request: impl Fn(&str, u64) -> Request,
    ) -> Result<Entry, StoreError> {
        let path = key.path();
        let mut owned = *owned;
        for _ in 0..COMPARE_TRIES {
            let answer = self.ask(request(&path, owned.modified_index)).await?;
            match &answer.content {
                Content::Refused(refusal) if refusal.code == v2::KEY_NOT_FOUND => {
                    return Err(StoreError::Lost { path });
                }
                Content::Refused(refusal) if refusal.code == v2::COMPARE_FAILED => match self.get(key).await? {
                    None => return Err(StoreError::Lost { path }),
                    Some(entry) if entry.ownership.created_index == owned.created_index => owned = entry.ownership,
                    Some(_) => return Err(StoreError::Taken { path }),
                },
                _ => return answer.into_entry(path),
            }
        }
        Err(StoreError::Contended { path })
    }
}

/// A reply of a kind that does not belong to the request; the transport gives `Waiting` to long polls and nothing else.
fn not_asked_to_wait(endpoint: &str) -> StoreError {
    StoreError::NoAnswer(format!("{endpoint}: the reply does not belong to the request"))
}

impl Answer {
    /// What a write gives back.
    fn into_entry(self, path: String) -> Result<Entry, StoreError> {
        match self.content {
            Content::Change(change) => Ok(change.node.into_entry()),
            Content::Refused(refusal) => Err(refusal.into_error(self.endpoint, path)),
            Content::Waiting(_) => Err(not_asked_to_wait(&self.endpoint)),
        }
    }
}

impl v2::Refusal {
    fn into_error(self, endpoint: String, path: String) -> StoreError {
        StoreError::Refused { endpoint, path, message: self.message }
    }
}

impl Request {
    fn new(method: Method, path: &str) -> Self {
        Self { method, path: path.to_owned(), query: Vec::new(), form: Vec::new(), wait: false }
    }
}
