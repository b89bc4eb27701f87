//! What has happened, as short notes for people: the last of them are kept. Pure: no I/O, and time comes in.

use std::cmp::Ordering;
use std::collections::VecDeque;
use std::sync::Arc;

use jiff::Timestamp;
use registry::{InstanceAddress, ServiceName};
use serde::Serialize;

use crate::model::{Instance, Service, Services};

/// How many notes are kept.
const KEPT: usize = 200;
/// How many characters of foreign words a note holds: HAProxy says much about a bad file.
const WORDS_LIMIT: usize = 2000;

/// One thing that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Note {
    /// Rises with each note of this process.
    pub number: u64,
    /// When.
    pub at: Timestamp,
    /// What.
    pub what: What,
    /// The service that it is about.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "crate::view::as_text")]
    pub service: Option<ServiceName>,
    /// The instance that it is about.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "crate::view::as_text")]
    pub address: Option<InstanceAddress>,
    /// The rest, in words; may be empty. Hostile text: it is to be escaped where it is shown.
    pub words: String,
}

/// What may happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    /// An instance is there. The words are its container's name and host.
    Came,
    /// An instance is gone.
    Went,
    /// An instance finishes what it has.
    Drains,
    /// An instance that drained takes traffic again.
    Undrained,
    /// An instance's key expired, and HAProxy's check still reaches it.
    Suspect,
    /// A suspect is registered again.
    Returned,
    /// An instance's weight, tags or other things are new.
    InstanceChanged,
    /// A service's settings are new.
    ServiceChanged,
    /// A service is known.
    ServiceCame,
    /// A service is forgotten.
    ServiceWent,
    /// Something is left out, with the reason.
    LeftOut,
    /// Something that was left out is in again.
    BackIn,
    /// HAProxy was reloaded, with the reason.
    Reloaded,
    /// HAProxy does not run what is wanted.
    Failed,
    /// It does again.
    Recovered,
    /// Somebody else restarted or reloaded HAProxy, or it died and was started again.
    HaproxyRestarted,
    /// The registry does not answer.
    RegistryLost,
    /// It answers.
    RegistryConnected,
    /// The template cannot be used.
    TemplateFailed,
    /// New templates are in use.
    TemplateTaken,
}

/// The last notes.
#[derive(Debug, Default)]
pub struct Feed {
    notes: VecDeque<Arc<Note>>,
    last: u64,
}

impl Feed {
    /// Adds a note about no service.
    pub fn say(&mut self, at: Timestamp, what: What, words: &str) {
        self.add(at, what, None, None, words);
    }

    /// Adds a note.
    pub fn add(
        &mut self,
        at: Timestamp,
        what: What,
        service: Option<&ServiceName>,
        address: Option<InstanceAddress>,
        words: &str,
    ) {
        self.last += 1;
        let words = words.chars().take(WORDS_LIMIT).collect();
        if self.notes.len() == KEPT {
            self.notes.pop_front();
        }
        self.notes.push_back(Arc::new(Note { number: self.last, at, what, service: service.cloned(), address, words }));
    }

    /// The last notes, oldest first.
    pub fn notes(&self) -> Vec<Arc<Note>> {
        self.notes.iter().cloned().collect()
    }
}

/// What is different between two states of the services.
#[derive(Debug, Clone, PartialEq)]
pub struct Difference<'s> {
    /// What happened.
    pub what: What,
    /// With which service.
    pub service: &'s Arc<Service>,
    /// With which instance of it; none where it is the service itself. Where it went, as it was.
    pub instance: Option<&'s Arc<Instance>>,
}

/// Compares two states of the services. The cost grows with the services that differ, but for one comparison of pointers for
/// each of the others.
pub fn differences<'s>(before: &'s Services, now: &'s Services) -> Vec<Difference<'s>> {
    let mut found = Vec::new();
    for pair in pairs(before.iter(), now.iter(), |(name, _)| *name) {
        match pair {
            Pair::Both((_, before), (_, now)) if Arc::ptr_eq(before, now) => {}
            Pair::Both((_, before), (_, now)) => compare(before, now, &mut found),
            Pair::Before((_, service)) => {
                let went = |instance| Difference { what: What::Went, service, instance: Some(instance) };
                found.extend(service.instances.iter().map(went));
                found.push(Difference { what: What::ServiceWent, service, instance: None });
            }
            Pair::Now((_, service)) => {
                found.push(Difference { what: What::ServiceCame, service, instance: None });
                let came = |instance| Difference { what: What::Came, service, instance: Some(instance) };
                found.extend(service.instances.iter().map(came));
            }
        }
    }
    found
}

fn compare<'s>(before: &'s Arc<Service>, now: &'s Arc<Service>, found: &mut Vec<Difference<'s>>) {
    if before.settings() != now.settings() {
        found.push(Difference { what: What::ServiceChanged, service: now, instance: None });
    }
    let place = |instance: &&Arc<Instance>| (instance.address, instance.port);
    for pair in pairs(before.instances.iter(), now.instances.iter(), place) {
        let (what, instance) = match pair {
            Pair::Before(instance) => (What::Went, instance),
            Pair::Now(instance) => (What::Came, instance),
            Pair::Both(before, now) => match change(before, now) {
                Some(what) => (what, now),
                None => continue,
            },
        };
        found.push(Difference { what, service: now, instance: Some(instance) });
    }
}

/// What has happened to an instance that is still there.
fn change(before: &Arc<Instance>, now: &Arc<Instance>) -> Option<What> {
    match (before, now) {
        _ if Arc::ptr_eq(before, now) || before == now => None,
        _ if !before.suspect && now.suspect => Some(What::Suspect),
        _ if before.suspect && !now.suspect => Some(What::Returned),
        _ if !before.draining && now.draining => Some(What::Drains),
        _ if before.draining && !now.draining => Some(What::Undrained),
        _ => Some(What::InstanceChanged),
    }
}

enum Pair<T> {
    Before(T),
    Now(T),
    Both(T, T),
}

/// Walks along two sorted sequences at once.
fn pairs<T, K: Ord>(
    before: impl Iterator<Item = T>,
    now: impl Iterator<Item = T>,
    key: impl Fn(&T) -> K,
) -> impl Iterator<Item = Pair<T>> {
    let (mut before, mut now) = (before.peekable(), now.peekable());
    std::iter::from_fn(move || {
        let order = match (before.peek(), now.peek()) {
            (Some(b), Some(n)) => key(b).cmp(&key(n)),
            (None, Some(_)) => Ordering::Greater,
            (_, None) => Ordering::Less,
        };
        match order {
            Ordering::Less => before.next().map(Pair::Before),
            Ordering::Greater => now.next().map(Pair::Now),
            Ordering::Equal => before.next().zip(now.next()).map(|(before, now)| Pair::Both(before, now)),
        }
    })
}
