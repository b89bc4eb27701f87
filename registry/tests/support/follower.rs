//! A consumer of a watch, as the discoverer is one.

use std::collections::BTreeMap;

use registry::{Event, Listing, Prefix, Store, Update, watch};
use tokio::sync::mpsc;

use super::next;

/// What a consumer of updates knows.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Known(pub(crate) BTreeMap<String, String>);

impl Known {
    /// Takes a listing: what is not in it is gone.
    pub(crate) fn list(&mut self, listing: Listing) {
        self.0 = listing.entries.into_iter().map(|entry| (entry.path, entry.value)).collect();
    }

    /// Takes an event.
    pub(crate) fn event(&mut self, event: Event) {
        match event {
            Event::Put(entry) => drop(self.0.insert(entry.path, entry.value)),
            Event::Removed { path, .. } => drop(self.0.remove(&path)),
            Event::RemovedTree { path, .. } => self.0.retain(|key, _| !key.starts_with(&format!("{path}/"))),
        }
    }
}

/// A watch, and what it has told so far.
pub(crate) struct Follower {
    pub(crate) updates: mpsc::Receiver<Update>,
    pub(crate) known: Known,
    pub(crate) outages: Vec<String>,
    pub(crate) listings: usize,
}

impl Follower {
    /// Follows the directory. Of what it is told, one update waits.
    pub(crate) fn start(store: &Store, prefix: Prefix) -> Self {
        let (sender, updates) = mpsc::channel(1);
        tokio::spawn(watch(store.clone(), prefix, sender));
        Self { updates, known: Known::default(), outages: Vec::new(), listings: 0 }
    }

    async fn step(&mut self) {
        match next(&mut self.updates).await {
            Update::Listing(listing) => {
                self.listings += 1;
                self.known.list(listing);
            }
            Update::Event { event, .. } => self.known.event(event),
            Update::Unreachable { error } => self.outages.push(error),
        }
    }

    /// Takes updates until the condition holds.
    pub(crate) async fn until(&mut self, condition: impl Fn(&Self) -> bool) {
        while !condition(self) {
            self.step().await;
        }
    }

    /// Whether a key has this value.
    pub(crate) fn knows(&self, path: &str, value: &str) -> bool {
        self.known.0.get(path).is_some_and(|known| known == value)
    }
}
