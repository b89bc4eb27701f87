//! A store within the process, for one host without etcd: the same words as etcd's, and the same behaviour.
//!
//! What is held lies in one place that all clones share, and whoever waits for a change is told of it there. Nothing is
//! kept beyond the process.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use super::{Cause, Deleted, Entry, Event, Kept, Listing, Ownership, Poll, Position, Reason, StoreError};
use crate::key::{InstanceKey, Prefix};

/// How many changes are remembered: as many as etcd's v2 API does.
const HISTORY: usize = 1000;
/// What the name of a cluster begins with that is none. Each store is a cluster of its own: what was known of an earlier
/// one says nothing of when something happened in this one.
pub(super) const CLUSTER: &str = "memory-";

/// What all clones of a store share.
#[derive(Debug)]
pub(super) struct Memory(watch::Sender<State>);

#[derive(Debug, Default)]
struct State {
    cluster: String,
    index: u64,
    keys: BTreeMap<String, Held>,
    /// When keys expire, the next one first.
    ends: BTreeSet<(Instant, String)>,
    /// The last changes, with their index.
    history: VecDeque<(u64, Event)>,
}

#[derive(Debug)]
struct Held {
    value: String,
    ownership: Ownership,
    ends: Instant,
}

impl Memory {
    pub(super) fn new() -> Self {
        let cluster = format!("{CLUSTER}{:016x}", rand::random::<u64>());
        Self(watch::Sender::new(State { cluster, ..State::default() }))
    }

    pub(super) fn list(&self, prefix: &Prefix) -> Listing {
        self.change(|state, now| {
            let below = |(path, held): (&String, &Held)| is_seen(prefix, path).then(|| held.entry(path, now));
            Listing {
                entries: state.keys.iter().filter_map(below).collect(),
                directories: None,
                position: state.position(),
            }
        })
    }

    pub(super) fn get(&self, key: &InstanceKey) -> Option<Entry> {
        let path = key.path();
        self.change(|state, now| state.keys.get(&path).map(|held| held.entry(&path, now)))
    }

    pub(super) fn put(&self, key: &InstanceKey, value: &str, ttl: Duration) -> Ownership {
        self.write(key.path(), value, ttl)
    }

    /// Writes any key.
    pub(super) fn write(&self, path: String, value: &str, ttl: Duration) -> Ownership {
        self.change(|state, now| state.put(path, value, now + ttl, None))
    }

    pub(super) fn create(&self, key: &InstanceKey, value: &str, ttl: Duration) -> Result<Ownership, StoreError> {
        let path = key.path();
        self.change(|state, now| {
            if state.keys.contains_key(&path) {
                return Err(StoreError::Taken { path });
            }
            Ok(state.put(path, value, now + ttl, None))
        })
    }

    pub(super) fn refresh(&self, key: &InstanceKey, ttl: Duration, owned: &Ownership) -> Result<Kept, StoreError> {
        let path = key.path();
        self.change(|state, now| {
            let held = state.owned(&path, owned)?;
            let before = std::mem::replace(&mut held.ends, now + ttl);
            let kept = Kept { ownership: held.ownership, value: Some(held.value.clone()) };
            state.ends.remove(&(before, path.clone()));
            state.ends.insert((now + ttl, path));
            Ok(kept)
        })
    }

    pub(super) fn update(
        &self,
        key: &InstanceKey,
        value: &str,
        ttl: Duration,
        owned: &Ownership,
        is_own: impl Fn(&str) -> bool,
    ) -> Result<Ownership, StoreError> {
        let path = key.path();
        self.change(|state, now| {
            let held = state.owned(&path, owned)?;
            if held.ownership != *owned && !is_own(&held.value) {
                return Err(StoreError::Changed { path });
            }
            let created = held.ownership.created_index;
            Ok(state.put(path, value, now + ttl, Some(created)))
        })
    }

    pub(super) fn amend(&self, key: &InstanceKey, value: &str, entry: &Entry) -> Result<u64, StoreError> {
        let path = key.path();
        self.change(|state, _| {
            let Some(held) = state.keys.get(&path) else { return Err(StoreError::Lost { path }) };
            if held.ownership != entry.ownership {
                return Err(StoreError::Contended { path });
            }
            let (ends, created) = (held.ends, held.ownership.created_index);
            Ok(state.put(path, value, ends, Some(created)).modified_index)
        })
    }

    pub(super) fn delete(&self, key: &InstanceKey, owned: &Ownership) -> Deleted {
        let path = key.path();
        self.change(|state, _| match state.owned(&path, owned) {
            Ok(_) => {
                state.remove(&path, Cause::Deleted);
                Deleted::Done
            }
            Err(StoreError::Lost { .. }) => Deleted::AlreadyGone,
            Err(_) => Deleted::NotOurs,
        })
    }

    /// Waits for the next changes below the directory after `position`, at most `patience`.
    pub(super) async fn poll(&self, prefix: &Prefix, position: &Position, patience: Duration) -> Poll {
        let end = Instant::now() + patience;
        let mut changed = self.0.subscribe();
        loop {
            let (poll, next) =
                self.change(|state, _| (state.since(prefix, position), state.ends.first().map(|(at, _)| *at)));
            match poll {
                Poll::Quiet(_) if Instant::now() < end => {}
                poll => return poll,
            }
            // The end of this wait is a reason to look, and so is a change.
            let _looked = timeout_at(next.map_or(end, |at| at.min(end)), changed.changed()).await;
        }
    }

    /// Does something to the state as it is now, and wakes who waits if that changed a key.
    fn change<T>(&self, act: impl FnOnce(&mut State, Instant) -> T) -> T {
        let now = Instant::now();
        let mut act = Some(act);
        let mut result = None;
        self.0.send_if_modified(|state| {
            let before = state.index;
            state.expire(now);
            result = act.take().map(|act| act(state, now));
            state.index != before
        });
        // `send_if_modified` calls its closure once.
        result.expect("the change was made")
    }
}

impl Held {
    fn entry(&self, path: &str, now: Instant) -> Entry {
        let ttl = Some(self.ends.saturating_duration_since(now));
        Entry { path: path.to_owned(), value: self.value.clone(), ttl, ownership: self.ownership }
    }
}

impl State {
    fn position(&self) -> Position {
        Position { cluster_id: Some(self.cluster.clone()), index: self.index }
    }

    fn put(&mut self, path: String, value: &str, ends: Instant, created: Option<u64>) -> Ownership {
        self.index += 1;
        let ownership =
            Ownership { created_index: created.unwrap_or(self.index), modified_index: self.index, lease: 0 };
        let held = Held { value: value.to_owned(), ownership, ends };
        self.ends.insert((ends, path.clone()));
        self.remember(Event::Put(Entry { path: path.clone(), value: value.to_owned(), ttl: None, ownership }));
        if let Some(before) = self.keys.insert(path.clone(), held).filter(|before| before.ends != ends) {
            self.ends.remove(&(before.ends, path));
        }
        ownership
    }

    fn remove(&mut self, path: &str, cause: Cause) {
        let Some(held) = self.keys.remove(path) else { return };
        self.ends.remove(&(held.ends, path.to_owned()));
        self.index += 1;
        self.remember(Event::Removed { path: path.to_owned(), cause });
    }

    fn expire(&mut self, now: Instant) {
        while self.ends.first().is_some_and(|(at, _)| *at <= now) {
            if let Some((_, path)) = self.ends.pop_first() {
                self.remove(&path, Cause::Expired);
            }
        }
    }

    fn remember(&mut self, event: Event) {
        if self.history.len() == HISTORY {
            self.history.pop_front();
        }
        self.history.push_back((self.index, event));
    }

    /// The key, if it is still the one that was owned.
    fn owned(&mut self, path: &str, owned: &Ownership) -> Result<&mut Held, StoreError> {
        match self.keys.get_mut(path) {
            None => Err(StoreError::Lost { path: path.to_owned() }),
            Some(held) if held.ownership.created_index == owned.created_index => Ok(held),
            Some(_) => Err(StoreError::Taken { path: path.to_owned() }),
        }
    }

    fn since(&self, prefix: &Prefix, position: &Position) -> Poll {
        let here = self.position();
        if position.cluster_id != here.cluster_id {
            return Poll::ListAgain(Reason::OtherCluster);
        }
        if here.index < position.index {
            return Poll::ListAgain(Reason::IndexFell);
        }
        let remembered = self.history.front().map_or(self.index, |(index, _)| index - 1);
        if position.index < remembered {
            return Poll::ListAgain(Reason::HistoryCleared);
        }
        let is_news = |index: u64| index > position.index;
        let events = self.history.iter().rev().take_while(|(index, _)| is_news(*index)).map(|(_, event)| event);
        let mut events: Vec<Event> = events.filter(|event| is_seen(prefix, path(event))).cloned().collect();
        events.reverse();
        if events.is_empty() { Poll::Quiet(here) } else { Poll::Events(events, here) }
    }
}

fn path(event: &Event) -> &str {
    match event {
        Event::Put(entry) => &entry.path,
        Event::Removed { path, .. } | Event::RemovedTree { path, .. } => path,
    }
}

/// Whether the key lies below the directory, and is not hidden from listings by a `_` in front.
fn is_seen(prefix: &Prefix, path: &str) -> bool {
    let below = prefix.below(path).unwrap_or_default();
    !below.is_empty() && !below.split('/').any(|segment| segment.starts_with('_'))
}
