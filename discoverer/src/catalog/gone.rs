//! Keys that are no longer in etcd, and what outlives them: suspects, and what is kept over a restart. Pure.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use registry::{Cause, Entry, Event, InstanceAddress, InstanceKey, Listing, Position, Record, ServiceName, Status};

use super::{Catalog, Member, Outcome, alter, position};
use crate::model::Instance;
use crate::suspect::{Case, Health, Sign, Why, verdict};

/// What came of judging the suspects.
#[derive(Debug, Default, PartialEq)]
pub struct Judged {
    /// What it did.
    pub outcome: Outcome,
    /// The keys whose instances went, sorted.
    pub removed: Vec<(InstanceKey, Why)>,
}

/// What is known of the registry, to be kept over a restart. Cheap to make.
#[derive(Debug, Clone, PartialEq)]
pub struct Kept {
    /// The registry's state of then.
    pub position: Position,
    /// Every key with an instance in it.
    pub entries: Vec<KeptEntry>,
}

/// A key of [`Kept`].
#[derive(Debug, Clone, PartialEq)]
pub struct KeptEntry {
    /// The key.
    pub key: InstanceKey,
    /// Its value.
    pub record: Arc<Record>,
    /// When it was created, as etcd counts.
    pub created: u64,
    /// It had expired, and the instance stayed.
    pub suspect: bool,
}

/// Which of the keys that a listing lacks were removed with their directory.
pub(super) struct RemovedDirectories {
    /// The directories that there are; none where they say nothing.
    directories: Option<BTreeSet<String>>,
}

impl RemovedDirectories {
    /// Whether the topmost of a key's directories that is missing has its parent: etcd was not made anew then, and somebody
    /// removed that directory. Where all are there, the key by itself is gone.
    pub(super) fn holds(&self, key: &InstanceKey) -> bool {
        let Some(directories) = &self.directories else { return false };
        let prefix = key.prefix().path();
        if directories.contains(&prefix) {
            return !key.is_flat() && !directories.contains(&format!("{prefix}/{}", key.service()));
        }
        let parent = prefix.rsplit_once('/').map_or("", |(parent, _)| parent);
        directories.contains(if parent.is_empty() { "/" } else { parent })
    }
}

impl Catalog {
    /// Takes in where a listing stands. What was known before says something about it only where both are of one life of one
    /// cluster.
    pub(super) fn follow(&mut self, listing: &mut Listing, now: Instant) -> RemovedDirectories {
        let goes_on = self.position.as_ref().is_some_and(|before| {
            before.cluster_id() == listing.position.cluster_id() && before.index() <= listing.position.index()
        });
        self.followed = self.followed.filter(|_| goes_on).or(Some(now));
        self.position = Some(listing.position.clone());
        self.tells_lives = listing.directories.is_some();
        RemovedDirectories { directories: listing.directories.take().filter(|_| goes_on) }
    }

    /// To be told how far the registry's events have come.
    pub fn reached(&mut self, index: u64) {
        if let Some(position) = &mut self.position
            && position.index() < index
        {
            *position = Position::new(position.cluster_id().map(str::to_owned), index);
        }
    }

    /// To be told that the registry cannot be followed. Nothing is judged until the next listing: whoever would write a
    /// suspect's key again cannot.
    pub fn lost_registry(&mut self) {
        self.followed = None;
    }

    /// Whether there are suspects to judge.
    pub fn has_suspects(&self) -> bool {
        self.followed.is_some() && !self.suspects.is_empty()
    }

    /// What happens to a key that is gone.
    pub(super) fn lose_key(
        &mut self,
        key: &InstanceKey,
        cause: Cause,
        now: Instant,
        touched: &mut BTreeSet<ServiceName>,
        outcome: &mut Outcome,
    ) {
        match cause {
            Cause::Deleted => self.remove_key(key, touched),
            Cause::Expired => self.expire_key(key, now, touched, outcome),
        }
    }

    /// Lets an instance be suspect. One that drained has nothing to stay for.
    pub(super) fn expire_key(
        &mut self,
        key: &InstanceKey,
        now: Instant,
        touched: &mut BTreeSet<ServiceName>,
        outcome: &mut Outcome,
    ) {
        let member = self.known.get_mut(key.service()).and_then(|known| known.members.get_mut(key));
        let Some(member) = member.filter(|member| member.suspect.is_none()) else { return };
        if member.record.status == Status::Draining {
            return self.remove_key(key, touched);
        }
        member.suspect = Some(now);
        self.suspects.insert(key.clone());
        outcome.suspected.push(key.clone());
        touched.insert(key.service().clone());
        self.touch(key.address(), touched);
    }

    /// A key that is new, or is back, has its address: suspects of other containers there are over.
    pub(super) fn take_over(&mut self, key: &InstanceKey, touched: &mut BTreeSet<ServiceName>) {
        let member = |key: &InstanceKey| self.known.get(key.service()).and_then(|known| known.members.get(key));
        let Some(newcomer) = member(key) else { return };
        let is_over = |other: &Member| other.suspect.is_some() && !other.is_same_start(newcomer);
        let others = self.claims.get(&key.address()).into_iter().flatten();
        let over: Vec<_> =
            others.filter(|other| *other != key && member(other).is_some_and(is_over)).cloned().collect();
        for other in over {
            self.remove_key(&other, touched);
        }
    }

    /// Takes an event by which one instance becomes suspect, or is no more, and nothing else changes; says no, and does nothing,
    /// where it is not such an event. Its cost does not grow with the service.
    pub(super) fn mark(&mut self, event: &Event, now: Instant, outcome: &mut Outcome) -> bool {
        let (path, entry) = match event {
            Event::Put(entry) => (&entry.path, Some(entry)),
            Event::Removed { path, cause: Cause::Expired } => (path, None),
            Event::Removed { .. } | Event::RemovedTree { .. } => return false,
        };
        let Ok(key) = InstanceKey::parse(&self.options.prefix, path) else { return false };
        let is_sole_claim = self.claims.get(&key.address()).is_some_and(|claims| *claims == [key.clone()]);
        // A service that waits for a route may get it from one whose instances are suspect.
        if !is_sole_claim || !self.shut_out.is_empty() || self.refused.contains_key(path) {
            return false;
        }
        let Some(known) = self.known.get_mut(key.service()).filter(|known| known.common.is_some()) else { return false };
        let (Some(member), Some(built)) = (known.members.get_mut(&key), known.built.as_mut()) else { return false };
        let Some(published) = self.services.get_mut(key.service()) else { return false };
        let Ok(at) = position(built, key.address()) else { return false };
        if !Arc::ptr_eq(built, published) || member.suspect.is_some() != entry.is_some() {
            return false;
        }
        match entry {
            Some(entry) => {
                let Ok(record) = Record::parse(&entry.value) else { return false };
                if record != *member.record {
                    return false;
                }
                let mut back = Member::new(entry, record, now);
                back.follow(member);
                back.record = Arc::clone(&member.record);
                *member = back;
                self.suspects.remove(&key);
                outcome.returned += 1;
            }
            None => {
                member.suspect = Some(now);
                self.suspects.insert(key.clone());
                outcome.suspected.push(key);
            }
        }
        let suspect = member.suspect.is_some();
        alter(built, published, |instances| {
            instances[at] = Arc::new(Instance { suspect, ..instances[at].as_ref().clone() });
        });
        (outcome.changed, outcome.in_short) = (true, true);
        true
    }

    /// Judges the suspects by what HAProxy says of them; nobody while the registry cannot be followed.
    pub fn judge(&mut self, now: Instant, health: impl Fn(&ServiceName, InstanceAddress) -> Health) -> Judged {
        let Some(followed) = self.followed else { return Judged::default() };
        let signs = self.signs(followed);
        let judge = |key: &InstanceKey| {
            let member = self.known.get(key.service())?.members.get(key)?;
            let case = Case {
                since: member.suspect?.max(followed),
                health: health(key.service(), key.address()),
                registrar: member.record.agent.as_deref().and_then(|agent| signs.get(agent).copied().flatten()),
            };
            Some((key.clone(), verdict(&case, now, self.options.suspect_for)?))
        };
        let removed: Vec<_> = self.suspects.iter().filter_map(judge).collect();
        let mut outcome = Outcome::default();
        let mut touched = BTreeSet::new();
        for (key, _) in &removed {
            match self.step(&Event::Removed { path: key.path(), cause: Cause::Deleted }, now) {
                Some(step) => outcome.steps.push(step),
                None => self.remove_key(key, &mut touched),
            }
        }
        outcome.in_short = !outcome.steps.is_empty();
        outcome.changed = outcome.in_short;
        if !touched.is_empty() {
            let had_steps = outcome.changed;
            self.rebuild(touched, now, &mut outcome);
            outcome.changed |= had_steps;
            outcome.in_short = false;
            outcome.steps.clear();
        }
        Judged { outcome, removed }
    }

    /// What says that the registrars of the suspects live, by their ids.
    fn signs(&self, followed: Instant) -> HashMap<String, Option<Sign>> {
        let members = || self.known.values().flat_map(|known| known.members.values());
        let suspects = members().filter(|member| member.suspect.is_some());
        let mut signs: HashMap<String, Option<Sign>> =
            suspects.filter_map(|member| Some((member.record.agent.clone()?, None))).collect();
        let mut lives: HashMap<&str, Duration> = HashMap::new();
        for member in members() {
            let Some(agent) = member.record.agent.as_deref().filter(|agent| signs.contains_key(*agent)) else { continue };
            let life = lives.entry(agent).or_insert(self.options.least_life);
            *life = (*life).max(member.life.unwrap_or_default());
        }
        for member in members() {
            // A key that never expires says nothing of who wrote it.
            let is_sign = member.suspect.is_none() && (member.life.is_some() || !self.tells_lives);
            let Some(agent) = member.record.agent.as_deref().filter(|_| is_sign) else { continue };
            let (Some(sign), Some(&life)) = (signs.get_mut(agent), lives.get(agent)) else { continue };
            let since = member.since.max(followed);
            *sign = Some(Sign { since: sign.map_or(since, |sign| sign.since.min(since)), life });
        }
        signs
    }

    /// What is known, to be kept over a restart; nothing before the first listing.
    pub fn kept(&self) -> Option<Kept> {
        let members = self.known.values().flat_map(|known| &known.members);
        let entry = |(key, member): (&InstanceKey, &Member)| KeptEntry {
            key: key.clone(),
            record: Arc::clone(&member.record),
            created: member.age.1,
            suspect: member.suspect.is_some(),
        };
        Some(Kept { position: self.position.clone()?, entries: members.map(entry).collect() })
    }

    /// Takes in what was kept, before the first listing. It was true once: what the listing then lacks has expired.
    pub fn restore(&mut self, kept: Kept, now: Instant) -> Outcome {
        let entry = |kept: &KeptEntry| Entry::created(kept.key.path(), kept.record.to_value(), kept.created);
        let entries = kept.entries.iter().map(entry).collect();
        let mut outcome = self.list(Listing { entries, directories: None, position: kept.position }, now);
        let mut touched = BTreeSet::new();
        for kept in kept.entries.iter().filter(|kept| kept.suspect) {
            self.expire_key(&kept.key, now, &mut touched, &mut outcome);
        }
        self.rebuild(touched, now, &mut outcome);
        self.lost_registry();
        outcome
    }
}
