//! What is known of this host's containers, and what follows from it: which to inspect, which to ask, and what each key
//! in etcd should say. Pure: no I/O, no clock; `now` and chance come in.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use registry::{InstanceKey, Record, Status};
use tracing::{info, warn};

use super::container::{Container, Facts, Instance, Kill, State, is_drained};
use crate::docker::events::{ContainerId, Event, What};
use crate::pace::due_after;
use crate::probe::ProbeError;
use crate::service::{CheckKind, Findings, Registration};

/// The pauses before a container is inspected again that could not be.
const INSPECT_PAUSES: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(10));

/// How many questions to one container go on at once: enough for its ports, and too few to take the slots of the others.
const QUESTIONS_AT_ONCE: usize = 8;

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
    /// The command of an earlier question that had not ended.
    pub(super) unfinished: Option<String>,
}

/// What came of a question.
#[derive(Debug)]
pub(super) struct Answer {
    /// The answer.
    pub(super) result: Result<(), ProbeError>,
    /// Which of the targets is to be asked first the next time.
    pub(super) target: usize,
    /// A command in the container that has not ended.
    pub(super) unfinished: Option<String>,
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
    /// Signals to containers that were not inspected yet.
    early: BTreeMap<ContainerId, Vec<Kill>>,
    /// Which instance is to be asked when. May hold moments that have lost their meaning.
    to_ask: BTreeSet<(Instant, ContainerId, u64)>,
    /// How many questions to a container go on, those that were overtaken included.
    asking: BTreeMap<ContainerId, usize>,
    /// What else is to be done when. May hold moments that have lost their meaning.
    timers: BTreeSet<(Instant, Timer)>,
    last_serial: u64,
    /// When the first question was asked; see [`due_after`].
    epoch: Option<Instant>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
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
            early: BTreeMap::new(),
            to_ask: BTreeSet::new(),
            asking: BTreeMap::new(),
            timers: BTreeSet::new(),
            last_serial: 0,
            epoch: None,
        }
    }

    /// How long one may live on that is told to stop from now on.
    pub(super) fn set_kill_grace(&mut self, kill_grace: Duration) {
        self.kill_grace = kill_grace;
    }

    /// Takes an event of Docker.
    pub(super) fn event(&mut self, event: &Event, now: Instant) {
        let id = &event.container;
        match event.what {
            What::Start => {
                self.early.remove(id);
                let container = self.known.entry(Arc::clone(id)).or_insert_with(|| Container::new(now));
                container.seen_at = now;
                self.inspect(id, true);
                self.inspect_sharers(id);
                return;
            }
            What::Kill(signal) => {
                let grace = event.late.map_or(self.kill_grace, |late| self.kill_grace.saturating_sub(late.ago));
                self.kill(id, Kill { signal, late: event.late, until: now + grace }, now);
                return;
            }
            What::Die => drop(self.early.remove(id)),
            What::Pause | What::Unpause | What::Health(_) | What::Changed => {}
        }
        let Some(container) = self.known.get_mut(id) else { return };
        if event.late.is_some() {
            // What is known may be newer than that.
            self.inspect(id, true);
            self.inspect_sharers(id);
            return;
        }
        // What is just being read may be older than this event.
        container.inspect |= container.inspecting.is_some();
        match event.what {
            What::Start | What::Kill(_) => {}
            What::Die => self.remove(id, now),
            What::Pause => self.pause(id, true, now),
            What::Unpause => self.pause(id, false, now),
            What::Health(says) => {
                if let Some(facts) = &mut container.facts {
                    facts.healthcheck = Some(says);
                }
                // One that is told to stop finishes its work, whatever its HEALTHCHECK makes of that.
                if container.killed.is_none() {
                    container.docker_says(says);
                    self.touched.extend(container.keys());
                }
            }
            What::Changed => {
                self.inspect(id, true);
                self.inspect_sharers(id);
            }
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
            self.remove(&id, begun);
        }
        self.early.retain(|id, _| self.known.contains_key(id));
        self.listed = true;
        self.settle_left(begun);
    }

    /// Whether each container was inspected and has said whether it answers, so far as it is asked.
    pub(super) fn is_whole(&self) -> bool {
        let is_read =
            |container: &Container| container.facts.is_some() && !container.inspect && container.inspecting.is_none();
        let has_said =
            |container: &Container| !container.is_to_be_asked() || container.instances.iter().all(Instance::has_said);
        self.listed && self.known.values().all(|container| is_read(container) && has_said(container))
    }

    /// How many there are in each state.
    pub(super) fn count(&self) -> Vec<(&'static str, i64)> {
        let mut counts = State::ALL.map(|state| (state, 0));
        for container in self.known.values() {
            let state = container.state();
            counts.iter_mut().filter(|(known, _)| *known == state).for_each(|(_, count)| *count += 1);
        }
        counts.into_iter().map(|(state, count)| (state.as_str(), count)).collect()
    }

    /// Has every container inspected again: what holds for all of them has changed.
    pub(super) fn inspect_all(&mut self) {
        for id in self.known.keys().cloned().collect::<Vec<_>>() {
            self.inspect(&id, false);
        }
    }

    /// Has those inspected again at once that could not be inspected the last time: Docker may be well again.
    pub(super) fn inspect_failed(&mut self) {
        let failed = self.known.iter().filter(|(_, container)| container.inspect);
        for id in failed.map(|(id, _)| Arc::clone(id)).collect::<Vec<_>>() {
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
            self.inspect(id, true);
            return;
        }
        match result {
            Some(inspected) if inspected.facts.running => self.update(id, inspected, now),
            _ => self.remove(id, now),
        }
        self.settle_left(now);
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
    pub(super) fn found_left(&mut self, left: BTreeMap<InstanceKey, Record>, now: Instant) {
        self.left.extend(left);
        self.settle_left(now);
    }

    /// Gives up what an earlier run has left and nobody has claimed, since Docker does not say whose it is: these keys are
    /// to be renewed no more.
    pub(super) fn give_up_left(&mut self) -> Vec<InstanceKey> {
        std::mem::take(&mut self.left).into_keys().collect()
    }

    /// Takes what stands in a key of ours that we did not write just now. Says whether it is to stay as it is, since no
    /// container has claimed it yet.
    pub(super) fn found(&mut self, key: &InstanceKey, record: &Record) -> bool {
        if let Some(left) = self.left.get_mut(key) {
            left.clone_from(record);
            return true;
        }
        self.found_claimed(key, record);
        false
    }

    fn found_claimed(&mut self, key: &InstanceKey, record: &Record) {
        let drained = is_drained(record);
        let Some(container) = record.id.as_deref().and_then(|id| self.known.get_mut(id)) else { return };
        if container.killed.is_some() && !drained {
            // It is we who drain it.
            return;
        }
        let is_same_run = container.started() == record.registered;
        let is_meant = |known: &&mut Instance| known.registration.key == *key && known.drained != drained;
        if let Some(instance) = container.instances.iter_mut().find(is_meant).filter(|_| is_same_run) {
            info!(%key, drained, "an operator has set the status of the key");
            instance.drained = drained;
            self.touched.insert(key.clone());
        }
    }

    /// Takes what came of a question. It holds for all names of the port.
    pub(super) fn answered(&mut self, question: &Question, answer: Answer, now: Instant) {
        let id = &question.container;
        if let Some(going_on) = self.asking.get_mut(id) {
            *going_on -= 1;
            if *going_on == 0 {
                self.asking.remove(id);
            }
        }
        let Some(container) = self.known.get_mut(id) else { return };
        while let Some(serial) = container.waiting.pop_front() {
            let is_due = |known: &&Instance| known.serial == serial && !known.asking && known.ask_at <= now;
            if let Some(waits) = container.instances.iter().find(is_due) {
                // Since that moment, so that none of those that are asked already is asked again before it.
                self.to_ask.insert((waits.ask_at, Arc::clone(id), serial));
                break;
            }
        }
        let is_to_be_asked = container.is_to_be_asked();
        let Some(asked) = container.instances.iter_mut().find(|known| known.serial == question.serial) else { return };
        (asked.asking, asked.unfinished) = (false, answer.unfinished);
        asked.aim(answer.target, now);
        if !is_to_be_asked {
            // One that is told to stop, or stands still, says nothing that counts.
            return;
        }
        self.to_ask.insert((asked.ask_at.max(now), Arc::clone(id), asked.serial));
        let registration = Arc::clone(&asked.registration);
        for instance in container.instances.iter_mut().filter(|known| known.is_asked_like(&registration)) {
            if instance.answered(&answer.result) {
                self.touched.insert(instance.registration.key.clone());
            }
        }
    }

    /// The containers to inspect next, at most so many.
    pub(super) fn inspections(&mut self, limit: usize) -> Vec<Inspection> {
        let mut inspections = Vec::new();
        while inspections.len() < limit
            && let Some(id) = self.to_inspect.pop_front()
        {
            let Some(container) = self.known.get_mut(&id) else { continue };
            container.queued = false;
            if container.inspecting.is_none() && std::mem::take(&mut container.inspect) {
                self.last_serial += 1;
                container.inspecting = Some(self.last_serial);
                inspections.push(Inspection { container: id, serial: self.last_serial });
            }
        }
        inspections
    }

    /// Does what is to be done by the passing of time alone, but for the questions.
    pub(super) fn pass(&mut self, now: Instant) {
        while self.timers.first().is_some_and(|(at, _)| *at <= now)
            && let Some((_, timer)) = self.timers.pop_first()
        {
            match timer {
                Timer::Inspect(id) if self.known.get(&id).is_some_and(|known| known.inspect) => {
                    self.inspect(&id, false);
                }
                Timer::Inspect(_) => {}
                Timer::GraceOver(id) => self.grace_over(&id, now),
            }
        }
    }

    /// The instances to ask now, at most so many. `chance` gives numbers from 0 to 1: questions in the long run are
    /// spread by it.
    pub(super) fn questions(&mut self, now: Instant, limit: usize, mut chance: impl FnMut() -> f64) -> Vec<Question> {
        let mut questions = Vec::new();
        while questions.len() < limit && self.to_ask.first().is_some_and(|(at, ..)| *at <= now) {
            let Some((_, id, serial)) = self.to_ask.pop_first() else { break };
            questions.extend(self.ask(&id, serial, now, &mut chance));
        }
        questions
    }

    /// When there is something to do by the passing of time alone; `may_ask`: whether another question may be asked.
    pub(super) fn due(&self, may_ask: bool) -> Option<Instant> {
        let to_ask = self.to_ask.first().filter(|_| may_ask).map(|(at, ..)| *at);
        [to_ask, self.timers.first().map(|(at, _)| *at)].into_iter().flatten().min()
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
        // An operator's word outlasts ours.
        let stopping = !instance.drained;
        let draining = Record { status: Status::Draining, stopping, ..instance.registration.record.clone() };
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
        let (name, healthcheck) = (facts.name.clone(), facts.healthcheck);
        let was_paused = container.is_paused();
        let is_new_run = container.takes(facts);
        for kill in self.early.remove(id).into_iter().flatten() {
            if container.takes_signal(&kill, now) {
                self.timers.insert((kill.until, Timer::GraceOver(Arc::clone(id))));
            }
        }
        if container.is_paused() && !is_new_run {
            // It goes on as what it was.
            self.touched.extend(container.keys());
            return;
        }
        let mut before = std::mem::take(&mut container.instances);
        for registration in findings.registrations {
            let key = registration.key.clone();
            let known = before.iter().position(|instance| instance.registration.key == key);
            let known = known.map(|at| before.swap_remove(at)).filter(|_| !is_new_run);
            self.last_serial += 1;
            let mut instance = if let Some(mut instance) = known {
                instance.replace(registration, now);
                instance
            } else {
                // What a port answers is known, under whatever name it is registered.
                let mut others = before.iter().chain(&container.instances);
                let alike = others.find(|known| !is_new_run && known.is_asked_like(&registration));
                let health = alike.map(|known| known.health.clone());
                let started = now.checked_sub(age).unwrap_or(now);
                let mut instance = Instance::new(self.last_serial, registration, started, now);
                instance.health = health.unwrap_or(instance.health);
                instance
            };
            if was_paused {
                instance.begin(self.last_serial, now);
            }
            container.instances.push(instance);
            self.touched.insert(key.clone());
            let claims = self.claims.entry(key.clone()).or_default();
            if claims.insert(Arc::clone(id)) && claims.len() > 1 {
                warn!(%key, container = name, "several containers claim one key: the one that was started last has it");
            }
        }
        container.tell_refusals(&name, findings.refusals);
        if container.is_to_be_asked() {
            if let Some(says) = healthcheck {
                container.docker_says(says);
            }
            let to_ask = container.instances.iter().map(|known| (known.ask_at, Arc::clone(id), known.serial));
            self.to_ask.extend(to_ask);
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

    fn remove(&mut self, id: &ContainerId, now: Instant) {
        let Some(container) = self.known.remove(id) else { return };
        for instance in container.instances {
            self.unclaim(&instance.registration.key, id);
        }
        self.inspect_sharers(id);
        self.settle_left(now);
    }

    fn kill(&mut self, id: &ContainerId, kill: Kill, now: Instant) {
        let Some(container) = self.known.get_mut(id).filter(|known| known.facts.is_some()) else {
            // By which signal it is stopped, and whether it has been started since, is not known yet.
            self.early.entry(Arc::clone(id)).or_default().push(kill);
            return;
        };
        let before = container.killed;
        if !container.takes_signal(&kill, now) {
            return;
        }
        if before.is_none() && container.killed.is_some() {
            info!(container = container.name(), signal = kill.signal, "it is told to stop; no new work for it");
        }
        self.touched.extend(container.keys());
        self.timers.insert((kill.until, Timer::GraceOver(Arc::clone(id))));
    }

    fn grace_over(&mut self, id: &ContainerId, now: Instant) {
        let Some(container) = self.known.get_mut(id) else { return };
        if container.killed.take_if(|until| *until <= now).is_some() {
            info!(container = container.name(), "it was told to stop and runs on; it counts as running again");
            // What it said meanwhile counts now.
            if let Some(says) = container.facts.as_ref().and_then(|facts| facts.healthcheck) {
                container.docker_says(says);
            }
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
            for instance in &mut container.instances {
                self.last_serial += 1;
                instance.begin(self.last_serial, now);
            }
            // Its HEALTHCHECK says something else, perhaps.
            self.inspect(id, true);
            self.ask_now(id, now);
        }
    }

    fn ask_now(&mut self, id: &ContainerId, now: Instant) {
        let Some(container) = self.known.get_mut(id) else { return };
        for instance in &mut container.instances {
            instance.ask_at = now;
            self.to_ask.insert((now, Arc::clone(id), instance.serial));
        }
    }

    fn ask(&mut self, id: &ContainerId, serial: u64, now: Instant, chance: impl FnOnce() -> f64) -> Option<Question> {
        let container = self.known.get_mut(id).filter(|known| known.is_to_be_asked())?;
        let at = container.instances.iter().position(|known| known.serial == serial)?;
        let (before, rest) = container.instances.split_at_mut(at);
        let instance = rest.first_mut()?;
        // The first of those that are asked alike is asked for all of them.
        let is_asked_with_another = before.iter().any(|known| known.is_asked_like(&instance.registration));
        let by_us = !matches!(instance.registration.check.kind, CheckKind::Docker | CheckKind::None);
        if instance.asking || instance.ask_at > now || !by_us || is_asked_with_another {
            return None;
        }
        let going_on = self.asking.entry(Arc::clone(id)).or_default();
        if *going_on >= QUESTIONS_AT_ONCE {
            if !container.waiting.contains(&serial) {
                container.waiting.push_back(serial);
            }
            return None;
        }
        *going_on += 1;
        let gap = instance.health.gap(now);
        let gap = if instance.health.was_up() { gap.mul_f64(1.0 - chance() / 5.0) } else { gap };
        instance.ask_at = due_after(gap, now, *self.epoch.get_or_insert(now));
        instance.asking = true;
        let registration = Arc::clone(&instance.registration);
        let (target, unfinished) = (instance.target, instance.unfinished.clone());
        Some(Question { container: Arc::clone(id), serial, registration, target, unfinished })
    }

    fn inspect(&mut self, id: &ContainerId, soon: bool) {
        let Some(container) = self.known.get_mut(id) else { return };
        container.inspect = true;
        if container.inspecting.is_none() && !std::mem::replace(&mut container.queued, true) {
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
    fn settle_left(&mut self, now: Instant) {
        for key in self.left.keys().cloned().collect::<Vec<_>>() {
            let Some(record) = self.left.get(&key) else { continue };
            let of = record.id.as_deref().and_then(|id| self.known.get(id));
            let undecided = of.map_or(!self.listed, |container| container.facts.is_none() || container.inspect);
            if undecided && !self.claims.contains_key(&key) {
                continue;
            }
            let Some(record) = self.left.remove(&key) else { continue };
            if let Some(container) = record.id.as_deref().and_then(|id| self.known.get_mut(id)) {
                let until = now + self.kill_grace;
                if container.take_over(&key, &record, until)
                    && let Some(id) = record.id.as_deref()
                {
                    self.timers.insert((until, Timer::GraceOver(id.into())));
                }
            }
            self.touched.insert(key);
        }
    }
}
