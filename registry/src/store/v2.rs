//! A client of etcd's v2 API.
//!
//! The time to live is each key's own, and ownership is an index pair: etcd moves `modifiedIndex` with every write,
//! refreshes included, and keeps `createdIndex` until the key is set anew. So what is compared is `modifiedIndex`, and
//! after a mismatch the same `createdIndex` means ours (etcd v2 API, "Atomic Compare-and-Swap").

#[cfg(feature = "fuzz")]
pub(super) mod fuzz;
mod wire;

use std::time::Duration;

use reqwest::StatusCode;
use tracing::debug;

use super::endpoints::{Answer, Content, Endpoints, Reply, Request, Stream};
use super::{COMPARE_TRIES, Deleted, Entry, Kept, Listing, Ownership, Poll, Position, Reason, StoreError};
use crate::key::{InstanceKey, Prefix};
use wire::{Refusal, Said};

/// The largest event that is read. etcd itself takes no request over 1.5 MB.
const EVENT_LIMIT: usize = 1 << 20;

/// What etcd's answer holds.
struct Whole {
    cluster_id: Option<String>,
    /// `X-Etcd-Index`.
    index: u64,
    said: Said,
}

/// As [`Whole`], or the headers of a long poll that waits.
enum Waiting {
    Waits { cluster_id: Option<String>, index: u64, stream: Stream },
    Refused { cluster_id: Option<String>, index: u64, refusal: Refusal },
}

pub(super) async fn list(etcd: &Endpoints, prefix: &Prefix) -> Result<Listing, StoreError> {
    let path = prefix.path();
    let Answer { endpoint, value: whole, .. } = etcd.ask(&wire::list(&path), read_whole).await?;
    let (entries, directories) = match whole.said {
        Said::Change(change) if change.node.dir => {
            let directories = wire::directories(&change.node);
            (wire::entries(change.node), directories)
        }
        Said::Change(_) => return Err(StoreError::NotADirectory { path }),
        Said::Refused(refusal) if refusal.code == wire::KEY_NOT_FOUND => {
            (Vec::new(), wire::parent_beside(&path, &refusal).into_iter().collect())
        }
        Said::Refused(refusal) if refusal.code == wire::NOT_A_DIRECTORY => {
            return Err(StoreError::NotADirectory { path });
        }
        Said::Refused(refusal) => return Err(refusal.into_error(endpoint, path)),
    };
    let position = Position { cluster_id: whole.cluster_id, index: whole.index };
    Ok(Listing { entries, directories: Some(directories), position })
}

pub(super) async fn get(etcd: &Endpoints, key: &InstanceKey) -> Result<Option<Entry>, StoreError> {
    let path = key.path();
    let answer = etcd.ask(&wire::get(&path), read_whole).await?;
    match answer.value.said {
        Said::Change(change) => Ok((!change.node.dir).then(|| change.node.into_entry())),
        Said::Refused(refusal) if matches!(refusal.code, wire::KEY_NOT_FOUND | wire::NOT_A_DIRECTORY) => Ok(None),
        Said::Refused(refusal) => Err(refusal.into_error(answer.endpoint, path)),
    }
}

pub(super) async fn put(
    etcd: &Endpoints,
    key: &InstanceKey,
    value: &str,
    ttl: Duration,
) -> Result<Ownership, StoreError> {
    write(etcd, key.path(), value, ttl).await
}

/// Writes any key.
pub(super) async fn write(etcd: &Endpoints, path: String, value: &str, ttl: Duration) -> Result<Ownership, StoreError> {
    // A second one that comes late would make the key another than the one that was answered with.
    let answer = etcd.ask_one_by_one(&wire::put(&path, value, ttl), read_whole).await?;
    into_entry(answer, path).map(|entry| entry.ownership)
}

pub(super) async fn create(
    etcd: &Endpoints,
    key: &InstanceKey,
    value: &str,
    ttl: Duration,
) -> Result<Ownership, StoreError> {
    let path = key.path();
    let answer = etcd.ask(&wire::create(&path, value, ttl), read_whole).await?;
    match &answer.value.said {
        Said::Refused(refusal) if refusal.code == wire::KEY_EXISTS => match get(etcd, key).await? {
            Some(entry) if answer.uncertain && entry.value == value => Ok(entry.ownership),
            _ => Err(StoreError::Taken { path }),
        },
        _ => into_entry(answer, path).map(|entry| entry.ownership),
    }
}

pub(super) async fn refresh(
    etcd: &Endpoints,
    key: &InstanceKey,
    ttl: Duration,
    owned: &Ownership,
) -> Result<Kept, StoreError> {
    let entry = compare_write(etcd, key, owned, |_| true, |path, index| wire::refresh(path, ttl, index)).await?;
    Ok(Kept { ownership: entry.ownership, value: Some(entry.value) })
}

pub(super) async fn update(
    etcd: &Endpoints,
    key: &InstanceKey,
    value: &str,
    ttl: Duration,
    owned: &Ownership,
    is_own: impl Fn(&str) -> bool,
) -> Result<Ownership, StoreError> {
    let request = |path: &str, index| wire::update(path, value, Some(ttl), index);
    Ok(compare_write(etcd, key, owned, is_own, request).await?.ownership)
}

/// A key that does not expire stays such a key.
pub(super) async fn amend(etcd: &Endpoints, key: &InstanceKey, value: &str, entry: &Entry) -> Result<u64, StoreError> {
    let path = key.path();
    let request = wire::update(&path, value, entry.ttl, entry.ownership.modified_index);
    let answer = etcd.ask(&request, read_whole).await?;
    match answer.value.said {
        Said::Change(change) => Ok(change.node.modified_index),
        Said::Refused(refusal) if refusal.code == wire::KEY_NOT_FOUND => Err(StoreError::Lost { path }),
        Said::Refused(refusal) if refusal.code == wire::COMPARE_FAILED => match get(etcd, key).await? {
            Some(now) if answer.uncertain && now.value == value => Ok(now.ownership.modified_index),
            _ => Err(StoreError::Contended { path }),
        },
        Said::Refused(refusal) => Err(refusal.into_error(answer.endpoint, path)),
    }
}

pub(super) async fn delete(etcd: &Endpoints, key: &InstanceKey, owned: &Ownership) -> Result<Deleted, StoreError> {
    let path = key.path();
    let mut owned = *owned;
    let mut uncertain = false;
    for _ in 0..COMPARE_TRIES {
        let answer = etcd.ask(&wire::delete(&path, owned.modified_index), read_whole).await?;
        uncertain |= answer.uncertain;
        let refusal = match answer.value.said {
            Said::Change(_) => return Ok(Deleted::Done),
            Said::Refused(refusal) => refusal,
        };
        match refusal.code {
            wire::KEY_NOT_FOUND if uncertain => return Ok(Deleted::Done),
            wire::KEY_NOT_FOUND => return Ok(Deleted::AlreadyGone),
            wire::COMPARE_FAILED => match get(etcd, key).await? {
                None => return Ok(Deleted::AlreadyGone),
                Some(entry) if entry.ownership.created_index == owned.created_index => owned = entry.ownership,
                Some(_) => return Ok(Deleted::NotOurs),
            },
            _ => return Err(refusal.into_error(answer.endpoint, path)),
        }
    }
    Err(StoreError::Contended { path })
}

/// One long poll: waits for the next change below the directory after `position`, at most `patience`.
pub(super) async fn poll(
    etcd: &Endpoints,
    prefix: &Prefix,
    position: &Position,
    patience: Duration,
) -> Result<Poll, StoreError> {
    let path = prefix.path();
    let wait_index = position.index.saturating_add(1);
    let answer = etcd.ask(&wire::wait(&path, wait_index), read_waiting).await?;
    let (Waiting::Waits { cluster_id, index, .. } | Waiting::Refused { cluster_id, index, .. }) = &answer.value;
    if *cluster_id != position.cluster_id {
        return Ok(Poll::ListAgain(Reason::OtherCluster));
    }
    if *index < position.index {
        return Ok(Poll::ListAgain(Reason::IndexFell));
    }
    let (cluster_id, index, mut stream) = match answer.value {
        Waiting::Waits { cluster_id, index, stream } => (cluster_id, index, stream),
        Waiting::Refused { refusal, .. } if refusal.code == wire::EVENT_INDEX_CLEARED => {
            return Ok(Poll::ListAgain(Reason::HistoryCleared));
        }
        Waiting::Refused { refusal, .. } => return Err(refusal.into_error(answer.endpoint, path)),
    };
    let Some(body) = stream.whole(patience, EVENT_LIMIT).await? else {
        // The index of the headers is that of the moment the poll began to wait, and nothing came since.
        return Ok(Poll::Quiet(Position { cluster_id, index: index.max(position.index) }));
    };
    let change = match wire::decode(StatusCode::OK, &body).map_err(|error| stream.broken(&error))? {
        Said::Change(change) => change,
        Said::Refused(refusal) => return Err(stream.broken(&refusal.message)),
    };
    let modified_index = change.node.modified_index;
    if modified_index < wait_index {
        return Err(stream.broken(&format!("asked for events from {wait_index} on, got {modified_index}")));
    }
    debug!(action = change.action, path = change.node.key, index = modified_index, "etcd event");
    Ok(match wire::event(prefix, change) {
        Ok(event) => Poll::Events(event.into_iter().collect(), Position { cluster_id, index: modified_index }),
        Err(reason) => Poll::ListAgain(reason),
    })
}

/// A read by quorum that carries nothing.
pub(super) async fn confirm(etcd: &Endpoints, path: String) -> Result<(), StoreError> {
    let answer = etcd.ask(&wire::get(&path), read_whole).await?;
    match answer.value.said {
        Said::Change(_) => Ok(()),
        Said::Refused(refusal) if refusal.code == wire::KEY_NOT_FOUND => Ok(()),
        Said::Refused(refusal) => Err(refusal.into_error(answer.endpoint, path)),
    }
}

/// Asks whether the v2 API is served: a read that needs neither a quorum nor a right. [`is_served`] reads the reply.
pub(super) fn question() -> Request {
    let mut request = wire::get("/_quorum");
    request.query.clear();
    request
}

/// Whether a reply to [`question`] is the v2 API's: yes, or etcd's plain 404 where it serves none.
///
/// # Errors
/// A text, for what says nothing of that: something before etcd does not reach it now.
pub(super) fn is_served(reply: &Reply) -> Result<bool, String> {
    let is_json = match &reply.content {
        Content::Whole(body) => serde_json::from_slice::<serde_json::Value>(body).is_ok(),
        Content::Stream(_) => false,
    };
    match reply.status {
        _ if is_json || reply.index.is_some() || reply.cluster_id.is_some() => Ok(true),
        StatusCode::NOT_FOUND => Ok(false),
        status => Err(format!("answered {status} to /v2/keys without etcd's JSON")),
    }
}

/// Writes with a comparison, and goes on with the key's new index where it moved but is still ours, and says what may be
/// replaced: the reply to an earlier write may have been lost.
async fn compare_write(
    etcd: &Endpoints,
    key: &InstanceKey,
    owned: &Ownership,
    may_replace: impl Fn(&str) -> bool,
    request: impl Fn(&str, u64) -> Request,
) -> Result<Entry, StoreError> {
    let path = key.path();
    let mut owned = *owned;
    for _ in 0..COMPARE_TRIES {
        let answer = etcd.ask(&request(&path, owned.modified_index), read_whole).await?;
        match &answer.value.said {
            Said::Refused(refusal) if refusal.code == wire::KEY_NOT_FOUND => return Err(StoreError::Lost { path }),
            Said::Refused(refusal) if refusal.code == wire::COMPARE_FAILED => match get(etcd, key).await? {
                None => return Err(StoreError::Lost { path }),
                Some(entry) if entry.ownership.created_index != owned.created_index => {
                    return Err(StoreError::Taken { path });
                }
                Some(entry) if !may_replace(&entry.value) => return Err(StoreError::Changed { path }),
                Some(entry) => owned = entry.ownership,
            },
            _ => return into_entry(answer, path),
        }
    }
    Err(StoreError::Contended { path })
}

/// What a write gives back.
fn into_entry(answer: Answer<Whole>, path: String) -> Result<Entry, StoreError> {
    match answer.value.said {
        Said::Change(change) => Ok(change.node.into_entry()),
        Said::Refused(refusal) => Err(refusal.into_error(answer.endpoint, path)),
    }
}

fn read_whole(reply: Reply) -> Result<Whole, String> {
    let Content::Whole(body) = reply.content else { return Err(NOT_ASKED_TO_WAIT.to_owned()) };
    let said = wire::decode(reply.status, &body)?;
    Ok(Whole { cluster_id: reply.cluster_id, index: reply.index.ok_or(NO_INDEX)?, said })
}

fn read_waiting(reply: Reply) -> Result<Waiting, String> {
    let cluster_id = reply.cluster_id;
    match reply.content {
        Content::Stream(stream) => Ok(Waiting::Waits { cluster_id, index: reply.index.ok_or(NO_INDEX)?, stream }),
        Content::Whole(body) => match wire::decode(reply.status, &body)? {
            Said::Refused(refusal) => Ok(Waiting::Refused { cluster_id, index: reply.index.ok_or(NO_INDEX)?, refusal }),
            Said::Change(_) => Err(NOT_ASKED_TO_WAIT.to_owned()),
        },
    }
}

const NO_INDEX: &str = "its reply has no X-Etcd-Index header; is that etcd?";
const NOT_ASKED_TO_WAIT: &str = "the reply does not belong to the request";

impl Refusal {
    fn into_error(self, endpoint: String, path: String) -> StoreError {
        StoreError::Refused { endpoint, path, message: self.message }
    }
}
