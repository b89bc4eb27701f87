//! What is known of this host's containers, and what follows from it: which to inspect, which to ask, and what each key
//! in etcd should say. Pure: no I/O, no clock; `now` and chance come in.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use registry::{InstanceKey, Record, Status};
use tracing::{info, warn};

use super::container::{Container, Facts, Instance};
use crate::docker::events::{ContainerId, Event, What};
use crate::probe::ProbeError;
use crate::service::{CheckKind, Findings, Registration};

/// The pauses before a container is inspected again that could not be.
const INSPECT_PAUSES: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(10));

/// What an inspection gave: what the container is, and what is to be registered for it.
#[derive(Debug)]
pub(super) struct Inspected {
    /// What it is.
    pub(super) facts: Facts,
    /// What is to be registered.
    pub(super) findings: Findings,
    /// How long ago it was started.
    pub(super) age: Duration,
}

/// A container to inspect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Inspection {
    /// Which.
    pub(super) container: ContainerId,
    /// To be given back with the result.
    pub(super) serial: u64,
}

/// An instance to ask.
#[derive(Debug, Clone)]
pub(super) struct Question {
    /// In which container.
    pub(super) container: ContainerId,
    /// To be given back with the result.
    pub(super) serial: u64,
    /// How.
    pub(super) registration: Arc<Registration>,
    /// Which of its targets is to be asked first.
    pub(super) target: usize,
}

/// What should be in etcd for a key: its value, or nothing.
pub(super) type Wish = (InstanceKey, Option<Arc<str>>);

/// All containers of this host, as far as they are known.
#[derive(Debug)]
pub(super) struct Containers {
    kill_grace: Duration,
    known: BTreeMap<ContainerId, Container>,
    /// Which containers claim a key.
    claims: BTreeMap<InstanceKey, BTreeSet<ContainerId>>,
    /// Keys of an earlier run of this agent that nobody has claimed yet.
    left: BTreeMap<InstanceKey, Record>,
    /// Whether all containers were listed at least once.
    listed: bool,
    /// Keys whose wish may be another now.
    touched: BTreeSet<InstanceKey>,
    to_inspect: VecDeque<ContainerId>,
    /// What is to be done when. May hold moments that have lost their meaning.
    timers: BTreeSet<(Instant, Timer)>,
    last_serial: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    Ask(ContainerId, u64),
    Inspect(ContainerId),
    GraceOver(ContainerId),
}

impl Containers {
    /// None are known yet. `kill_grace`: how long one may live on after it was told to stop.
    pub(super) fn new(kill_grace: Duration) -> Self {
        Self {
            kill_grace,
            known: BTreeMap::new(),
            claims: BTreeMap::new(),
            left: BTreeMap::new(),
            listed: false,
            touched: BTreeSet::new(),
            to_inspect: VecDeque::new(),
            timers: BTreeSet::new(),
            last_serial: 0,
        }
    }

    /// Takes an event of Docker.
    pub(super) fn event(&mut self, event: &Event, now: Instant) {
        let id = &event.container;
        if event.what == What::Start {
            let container = self.known.entry(Arc::clone(id)).or_insert_with(|| Container::new(now));
            container.seen_at = now;
            self.inspect(id, true);
            self.inspect_sharers(id);
            return;
        }
        let Some(container) = self.known.get_mut(id) else { return };
        // What is just being read may be older than this event.
        container.inspect |= container.inspecting.is_some();
        match event.what {
            What::Start => {}
            What::Die => self.remove(id),
            What::Kill(signal) => self.kill(id, signal, now),
            What::Pause => self.pause(id, true, now),
            What::Unpause => self.pause(id, false, now),
            What::Health(says) => {
                container.docker_says(says);
                self.touched.extend(container.keys());
            }
            What::Changed => self.inspect(id, true),
        }
    }

    /// Takes the list of all running containers, each with a digest of what it says, as it was asked for at `begun`.
    pub(super) fn listed(&mut self, list: &BTreeMap<ContainerId, u64>, begun: Instant) {
        for (id, digest) in list {
            let container = self.known.entry(Arc::clone(id)).or_insert_with(|| Container::new(begun));
            let before = container.digest.replace(*digest);
            if container.facts.is_none() || before.is_some_and(|before| before != *digest) {
                self.inspect(id, false);
            }
        }
        let gone = |(id, container): (&ContainerId, &Container)| {
            (!list.contains_key(id) && container.seen_at <= begun).then(|| Arc::clone(id))
        };
        for id in self.known.iter().filter_map(gone).collect::<Vec<_>>() {
            self.remove(&id);
        }
        self.listed = true;
        self.settle_left();
    }

    /// Has every container inspected again: what holds for all of them has changed.
    pub(super) fn inspect_all(&mut self) {
        for id in self.known.keys().cloned().collect::<Vec<_>>() {
            self.inspect(&id, false);
        }
    }

    /// Takes what an inspection gave; `None` where Docker knows no such container.
    pub(super) fn inspected(&mut self, inspection: &Inspection, result: Option<Inspected>, now: Instant) {
        let id = &inspection.container;
        let Some(container) = self.known.get_mut(id).filter(|known| known.inspecting == Some(inspection.serial)) else {
            return;
        };
        container.inspecting = None;
        container.failures = 0;
        if container.inspect {
            // Something happened meanwhile.
            self.to_inspect.push_front(Arc::clone(id));
            return;
        }
        match result {
            Some(inspected) if inspected.facts.running => self.update(id, inspected, now),
            _ => self.remove(id),
        }
        self.settle_left();
    }

    /// Docker could not be asked about a container: what is known of it stays. Says whether that is news.
    pub(super) fn not_inspected(&mut self, inspection: &Inspection, now: Instant) -> bool {
        let id = &inspection.container;
        let Some(container) = self.known.get_mut(id).filter(|known| known.inspecting == Some(inspection.serial)) else {
            return false;
        };
        container.inspecting = None;
        container.inspect = true;
        let pause = INSPECT_PAUSES.0.saturating_mul(1 << container.failures.min(16)).min(INSPECT_PAUSES.1);
        container.failures += 1;
        self.timers.insert((now + pause, Timer::Inspect(Arc::clone(id))));
        container.failures == 1
    }

    /// Takes the keys below the prefix that carry this agent's mark: what an earlier run of it has left.
    pub(super) fn found_left(&mut self, left: BTreeMap<InstanceKey, Record>) {
        self.left.extend(left);
        self.settle_left();
    }

    /// Takes what stands in a key of ours that we did not write just now.
    pub(super) fn found(&mut self, key: &InstanceKey, record: &Record) {
        let drained = record.status == Status::Draining;
        let is_killed = |known: &&Container| known.killed.is_some();
        if record.id.as_deref().and_then(|id| self.known.get(id)).filter(is_killed).is_some() {
            // It is we who drain it.
            return;
        }
        if let Some(instance) = self.instance_of(key, record).filter(|instance| instance.drained != drained) {
            info!(%key, drained, "an operator has set the status of the key");
            instance.drained = drained;
            self.touched.insert(key.clone());
        }
    }

    /// Takes what came of a question.
    pub(super) fn answered(
        &mut self,
        question: &Question,
        result: &Result<(), ProbeError>,
        target: usize,
        now: Instant,
    ) {
        let Some(container) = self.known.get_mut(&question.container) else { return };
        let is_to_be_asked = container.is_to_be_asked();
        let Some(instance) = container.instances.iter_mut().find(|known| known.serial == question.serial) else {
            return;
        };
        instance.asking = false;
        instance.target = target;
        if instance.answered(result) {
            self.touched.insert(instance.registration.key.clone());
        }
        if is_to_be_asked {
            let at = instance.ask_at.max(now);
            self.timers.insert((at, Timer::Ask(Arc::clone(&question.container), instance.serial)));
        }
    }

    /// The containers to inspect next, at most so many.
    pub(super) fn inspections(&mut self, limit: usize) -> Vec<Inspection> {
        let mut inspections = Vec::new();
        while inspections.len() < limit
            && let Some(id) = self.to_inspect.pop_front()
        {
            let Some(container) = self.known.get_mut(&id) else { continue };
            if container.inspecting.is_none() && std::mem::take(&mut container.inspect) {
                self.last_serial += 1;
                container.inspecting = Some(self.last_serial);
                inspections.push(Inspection { container: id, serial: self.last_serial });
            }
        }
        inspections
    }

    /// The instances to ask now, at most so many. `chance` gives numbers from 0 to 1: questions in the long run are
    /// spread by it.
    pub(super) fn questions(&mut self, now: Instant, limit: usize, mut chance: impl FnMut() -> f64) -> Vec<Question> {
        let mut questions = Vec::new();
        while questions.len() < limit && self.timers.first().is_some_and(|(at, _)| *at <= now) {
            let Some((_, timer)) = self.timers.pop_first() else { break };
            match timer {
                Timer::Ask(id, serial) => questions.extend(self.ask(&id, serial, now, &mut chance)),
                Timer::Inspect(id) => self.to_inspect.push_back(id),
                Timer::GraceOver(id) => self.grace_over(&id, now),
            }
        }
        questions
    }

    /// When there is something to do by the passing of time alone.
    pub(super) fn due(&self) -> Option<Instant> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// What should be in etcd, for all keys for which that may have changed.
    pub(super) fn wishes(&mut self) -> Vec<Wish> {
        let touched = std::mem::take(&mut self.touched);
        let settled = touched.into_iter().filter(|key| !self.left.contains_key(key));
        settled.map(|key| (key.clone(), self.wish(&key))).collect()
    }

    fn wish(&self, key: &InstanceKey) -> Option<Arc<str>> {
        let container = self.known.get(self.winner(key)?)?;
        let instance = container.instances.iter().find(|instance| instance.registration.key == *key)?;
        if !container.answers_at(key) {
            return None;
        }
        if container.killed.is_none() && !instance.drained {
            return Some(Arc::clone(&instance.value));
        }
        let draining = Record { status: Status::Draining, ..instance.registration.record.clone() };
        Some(draining.to_value().into())
    }

    /// The container that has the key: of several that claim it, the one of those that answer that was started last. One
    /// that does not answer takes nothing from one that does.
    fn winner(&self, key: &InstanceKey) -> Option<&ContainerId> {
        let rank = |id: &ContainerId| {
            let container = self.known.get(id);
            (container.is_some_and(|known| known.answers_at(key)), container.and_then(Container::started))
        };
        self.claims.get(key)?.iter().max_by_key(|id| (rank(id), *id))
    }

    /// Takes what a container is now, and keeps what is known of those of its instances that stay.
    fn update(&mut self, id: &ContainerId, inspected: Inspected, now: Instant) {
        let Some(container) = self.known.get_mut(id) else { return };
        let Inspected { facts, findings, age } = inspected;
        let is_new_run = container.started() != facts.started;
        let goes_on = container.is_paused() && !facts.paused;
        // A signal may come before the first inspection.
        if is_new_run && container.facts.is_some() {
            container.killed = None;
        }
        let mut before = std::mem::take(&mut container.instances);
        let mut to_ask = Vec::new();
        for registration in findings.registrations {
            let key = registration.key.clone();
            let known = before.iter().position(|instance| instance.registration.key == key);
            let known = known.map(|at| before.swap_remove(at)).filter(|_| !is_new_run);
            let mut instance = if let Some(mut instance) = known {
                instance.replace(registration, now);
                instance
            } else {
                self.last_serial += 1;
                Instance::new(self.last_serial, registration, now.checked_sub(age).unwrap_or(now), now)
            };
            if goes_on {
                instance.begin(now);
            }
            to_ask.push((instance.ask_at, Timer::Ask(Arc::clone(id), instance.serial)));
            container.instances.push(instance);
            self.touched.insert(key.clone());
            let claims = self.claims.entry(key.clone()).or_default();
            if claims.insert(Arc::clone(id)) && claims.len() > 1 {
                let name = &facts.name;
                warn!(%key, container = name, "several containers claim one key: the one that was started last has it");
            }
        }
        container.tell_refusals(&facts.name, findings.refusals);
        let healthcheck = facts.healthcheck;
        container.facts = Some(facts);
        if let Some(says) = healthcheck {
            container.docker_says(says);
        }
        if container.is_to_be_asked() {
            self.timers.extend(to_ask);
        }
        for instance in before {
            self.unclaim(&instance.registration.key, id);
        }
    }

    fn unclaim(&mut self, key: &InstanceKey, id: &ContainerId) {
        // Of the same key there may be one instance less than before, and still one.
        let is_there = |container: &Container| container.instances.iter().any(|known| known.registration.key == *key);
        if !self.known.get(id).is_some_and(is_there)
            && let Some(claims) = self.claims.get_mut(key)
        {
            claims.remove(id);
            if claims.is_empty() {
                self.claims.remove(key);
            }
        }
        self.touched.insert(key.clone());
    }

    fn remove(&mut self, id: &ContainerId) {
        let Some(container) = self.known.remove(id) else { return };
        for instance in container.instances {
            self.unclaim(&instance.registration.key, id);
        }
        self.inspect_sharers(id);
        self.settle_left();
    }

    fn kill(&mut self, id: &ContainerId, signal: Option<i32>, now: Instant) {
        let Some(container) = self.known.get_mut(id).filter(|known| known.is_ended_by(signal)) else { return };
        let until = now + self.kill_grace;
        if container.killed.replace(until).is_none() {
            let name = container.name();
            info!(container = name, signal, "it is told to stop; no new work for it");
        }
        self.touched.extend(container.keys());
        self.timers.insert((until, Timer::GraceOver(Arc::clone(id))));
    }

    fn grace_over(&mut self, id: &ContainerId, now: Instant) {
        let Some(container) = self.known.get_mut(id) else { return };
        if container.killed.take_if(|until| *until <= now).is_some() {
            info!(container = container.name(), "it was told to stop and runs on; it counts as running again");
            self.touched.extend(container.keys());
            self.ask_now(id, now);
        }
    }

    fn pause(&mut self, id: &ContainerId, paused: bool, now: Instant) {
        let Some(container) = self.known.get_mut(id) else { return };
        let Some(facts) = &mut container.facts else { return };
        facts.paused = paused;
        self.touched.extend(container.keys());
        if !paused {
            container.instances.iter_mut().for_each(|instance| instance.begin(now));
            // Its HEALTHCHECK says something else, perhaps.
            self.inspect(id, true);
            self.ask_now(id, now);
        }
    }

    fn ask_now(&mut self, id: &ContainerId, now: Instant) {
        let Some(container) = self.known.get_mut(id) else { return };
        for instance in &mut container.instances {
            instance.ask_at = now;
            self.timers.insert((now, Timer::Ask(Arc::clone(id), instance.serial)));
        }
    }

    fn ask(&mut self, id: &ContainerId, serial: u64, now: Instant, chance: impl FnOnce() -> f64) -> Option<Question> {
        let container = self.known.get_mut(id).filter(|known| known.is_to_be_asked())?;
        let instance = container.instances.iter_mut().find(|known| known.serial == serial)?;
        let by_us = !matches!(instance.registration.check.kind, CheckKind::Docker | CheckKind::None);
        if instance.asking || instance.ask_at > now || !by_us {
            return None;
        }
        let gap = instance.health.gap(now);
        let gap = if instance.health.was_up() { gap.mul_f64(1.0 - chance() / 5.0) } else { gap };
        instance.ask_at = now + gap;
        instance.asking = true;
        let registration = Arc::clone(&instance.registration);
        Some(Question { container: Arc::clone(id), serial, registration, target: instance.target })
    }

    fn inspect(&mut self, id: &ContainerId, soon: bool) {
        let Some(container) = self.known.get_mut(id) else { return };
        if !std::mem::replace(&mut container.inspect, true) && container.inspecting.is_none() {
            if soon {
                self.to_inspect.push_front(Arc::clone(id));
            } else {
                self.to_inspect.push_back(Arc::clone(id));
            }
        }
    }

    /// Those that share the network of this one are reached elsewhere now.
    fn inspect_sharers(&mut self, id: &ContainerId) {
        let shares =
            |container: &Container| container.facts.as_ref().is_some_and(|facts| facts.network_of.as_ref() == Some(id));
        let sharers: Vec<_> =
            self.known.iter().filter(|(_, container)| shares(container)).map(|(id, _)| Arc::clone(id)).collect();
        sharers.iter().for_each(|id| self.inspect(id, true));
    }

    /// Gives what an earlier run has left to the containers that claim it, and up what none will claim.
    fn settle_left(&mut self) {
        for key in self.left.keys().cloned().collect::<Vec<_>>() {
            let Some(record) = self.left.get(&key) else { continue };
            let of = record.id.as_deref().and_then(|id| self.known.get(id));
            let undecided = of.map_or(!self.listed, |container| container.facts.is_none() || container.inspect);
            if undecided && !self.claims.contains_key(&key) {
                continue;
            }
            let Some(record) = self.left.remove(&key) else { continue };
            if let Some(instance) = self.instance_of(&key, &record) {
                instance.take_over(&record);
            }
            self.touched.insert(key);
        }
    }

    /// The instance that this record of this key is about, in the same run of its container.
    fn instance_of(&mut self, key: &InstanceKey, record: &Record) -> Option<&mut Instance> {
        let container = self.known.get_mut(record.id.as_deref()?)?;
        let is_same_run = container.started() == record.registered;
        container.instances.iter_mut().find(|instance| is_same_run && instance.registration.key == *key)
    }
}
