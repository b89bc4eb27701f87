//! One container and its instances: what is known of them, and what an answer means. Pure: `now` comes in.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bollard::models::ContainerInspectResponse;
use jiff::Timestamp;
use registry::{InstanceKey, Record, Status};
use tracing::{debug, info, warn};

use crate::ask::healthcheck_says;
use crate::docker::events::{ContainerId, Healthcheck, Late, signal_number};
use crate::docker::healthcheck;
use crate::health::{Answer, Change, Health};
use crate::probe::{CONNECT_LIMIT, ProbeError};
use crate::service::{CheckKind, Reason, Refusal, Registration};

/// Docker's signals to end a container, beside the container's own (`docker stop`, `docker kill`).
const SIGKILL: i32 = 9;
const SIGTERM: i32 = 15;

/// How long an address is asked that was not the best one, before that one is tried again.
const BEST_AGAIN_AFTER: Duration = Duration::from_secs(60);

/// What the agent must remember of a container beside what is registered for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Facts {
    /// Its name, without the slash.
    pub(super) name: String,
    /// Whether it runs; a paused one does.
    pub(super) running: bool,
    /// Whether it is paused.
    pub(super) paused: bool,
    /// When it was started.
    pub(super) started: Option<Timestamp>,
    /// The signal by which `docker stop` ends it.
    pub(super) stop_signal: i32,
    /// What its HEALTHCHECK says, where it has one.
    pub(super) healthcheck: Option<Healthcheck>,
    /// The container whose network it shares.
    pub(super) network_of: Option<ContainerId>,
}

impl Facts {
    /// Reads them from what Docker says of a container (Docker Engine API 1.41, `/containers/{id}/json`).
    pub(super) fn read(container: &ContainerInspectResponse) -> Self {
        let state = container.state.as_ref();
        let is = |field: Option<bool>| field.unwrap_or_default();
        let stop_signal = container.config.as_ref().and_then(|config| config.stop_signal.as_deref());
        let network = container.host_config.as_ref().and_then(|config| config.network_mode.as_deref());
        Self {
            name: container.name.as_deref().unwrap_or_default().trim_start_matches('/').to_owned(),
            running: state.is_some_and(|state| is(state.running) && !is(state.restarting)),
            paused: state.is_some_and(|state| is(state.paused)),
            started: state.and_then(|state| state.started_at.as_deref()?.parse().ok()),
            stop_signal: stop_signal.and_then(signal_number).unwrap_or(SIGTERM),
            healthcheck: healthcheck(container),
            network_of: network.and_then(|network| network.strip_prefix("container:")).map(Into::into),
        }
    }
}

/// A signal that was sent to a container.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kill {
    /// Its number, where Docker says it.
    pub(super) signal: Option<i32>,
    /// When it was sent, where that is told late.
    pub(super) late: Option<Late>,
    /// By this moment the container has stopped of it, or runs on.
    pub(super) until: Instant,
}

/// What is done for a container, as it is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// It was not inspected yet.
    Unread,
    /// It stands still.
    Paused,
    /// It was told to stop.
    Stopping,
    /// At least one of its instances answers.
    Answering,
    /// None does.
    NotAnswering,
    /// Something is wrong with what it asks for, so that nothing is registered.
    Refused,
    /// There is nothing to register.
    Ignored,
}

impl State {
    /// All of them.
    pub(super) const ALL: [Self; 7] =
        [Self::Unread, Self::Paused, Self::Stopping, Self::Answering, Self::NotAnswering, Self::Refused, Self::Ignored];

    /// Its name in a metric's label.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Unread => "unread",
            Self::Paused => "paused",
            Self::Stopping => "stopping",
            Self::Answering => "answering",
            Self::NotAnswering => "not_answering",
            Self::Refused => "refused",
            Self::Ignored => "ignored",
        }
    }
}

/// One container.
#[derive(Debug)]
pub(super) struct Container {
    /// When it was heard of, or started, last.
    pub(super) seen_at: Instant,
    /// As it was inspected last.
    pub(super) facts: Option<Facts>,
    pub(super) instances: Vec<Instance>,
    refusals: Vec<Refusal>,
    /// It was told to stop; by this moment it has, or counts as running again.
    pub(super) killed: Option<Instant>,
    /// It is to be inspected.
    pub(super) inspect: bool,
    /// It stands in the queue for that.
    pub(super) queued: bool,
    /// It is being inspected.
    pub(super) inspecting: Option<u64>,
    /// How often that failed in a row.
    pub(super) failures: u32,
    /// A digest of what the list of containers said of it.
    pub(super) digest: Option<u64>,
    /// The instances whose turn it is as soon as fewer questions to this container go on.
    pub(super) waiting: VecDeque<u64>,
}

impl Container {
    pub(super) fn new(seen_at: Instant) -> Self {
        Self {
            seen_at,
            facts: None,
            instances: Vec::new(),
            refusals: Vec::new(),
            killed: None,
            inspect: false,
            queued: false,
            inspecting: None,
            failures: 0,
            digest: None,
            waiting: VecDeque::new(),
        }
    }

    /// What is done for it.
    pub(super) fn state(&self) -> State {
        if self.facts.is_none() {
            State::Unread
        } else if self.instances.is_empty() {
            let is_refused = self.refusals.iter().any(|refusal| !refusal.is_by_choice());
            if is_refused { State::Refused } else { State::Ignored }
        } else if self.killed.is_some() {
            State::Stopping
        } else if self.is_paused() {
            State::Paused
        } else if self.instances.iter().any(|instance| instance.health.is_up()) {
            State::Answering
        } else {
            State::NotAnswering
        }
    }

    pub(super) fn name(&self) -> &str {
        self.facts.as_ref().map_or("", |facts| &facts.name)
    }

    pub(super) fn started(&self) -> Option<Timestamp> {
        self.facts.as_ref().and_then(|facts| facts.started)
    }

    pub(super) fn is_paused(&self) -> bool {
        self.facts.as_ref().is_some_and(|facts| facts.paused)
    }

    /// Whether the instance with this key is there and answers.
    pub(super) fn answers_at(&self, key: &InstanceKey) -> bool {
        let instance = self.instances.iter().find(|instance| instance.registration.key == *key);
        !self.is_paused() && instance.is_some_and(|instance| instance.health.is_up())
    }

    pub(super) fn is_to_be_asked(&self) -> bool {
        self.killed.is_none() && !self.is_paused()
    }

    /// Takes what it is now. Says whether that is another run than before.
    pub(super) fn takes(&mut self, facts: Facts) -> bool {
        let is_new_run = self.started() != facts.started;
        if is_new_run {
            self.killed = None;
        }
        self.facts = Some(facts);
        is_new_run
    }

    /// Takes a signal. Says whether it is one that is to end the container.
    pub(super) fn takes_signal(&mut self, kill: &Kill, now: Instant) -> bool {
        let is_of_this_run = kill.late.is_none_or(|late| self.started().is_none_or(|started| late.at >= started));
        if !is_of_this_run || !self.is_ended_by(kill.signal) {
            return false;
        }
        if kill.until > now {
            self.killed = self.killed.max(Some(kill.until));
        }
        true
    }

    /// Whether this signal is to end it.
    fn is_ended_by(&self, signal: Option<i32>) -> bool {
        let own = self.facts.as_ref().map(|facts| facts.stop_signal);
        signal.is_some_and(|signal| signal == SIGTERM || signal == SIGKILL || own == Some(signal))
    }

    /// An earlier run of the agent had this instance registered: it goes on from there. Says whether it goes on to wait
    /// `until` then for a container that was told to stop: when that was is not known.
    pub(super) fn take_over(&mut self, key: &InstanceKey, record: &Record, until: Instant) -> bool {
        let is_same_run = self.started() == record.registered;
        let is_meant = |instance: &&mut Instance| is_same_run && instance.registration.key == *key;
        let Some(instance) = self.instances.iter_mut().find(is_meant) else { return false };
        instance.take_over(record);
        let waits = self.killed.is_none() && record.status == Status::Draining && record.stopping;
        if waits {
            self.killed = Some(until);
        }
        // Whom Docker judges is not asked: what it says is known already.
        if let Some(says) = self.facts.as_ref().and_then(|facts| facts.healthcheck)
            && self.is_to_be_asked()
        {
            self.docker_says(says);
        }
        waits
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = InstanceKey> {
        self.instances.iter().map(|instance| instance.registration.key.clone())
    }

    /// Takes what its HEALTHCHECK says, for the instances that are judged by it.
    pub(super) fn docker_says(&mut self, says: Healthcheck) {
        let result = healthcheck_says(Some(says));
        for instance in
            self.instances.iter_mut().filter(|instance| instance.registration.check.kind == CheckKind::Docker)
        {
            instance.answered(&result);
        }
    }

    /// Tells what is left out of it, each once.
    pub(super) fn tell_refusals(&mut self, name: &str, refusals: Vec<Refusal>) {
        for refusal in refusals.iter().filter(|refusal| !self.refusals.contains(refusal)) {
            if let Reason::Slip(meant) = &refusal.reason {
                let label = refusal.label.as_ref().map_or("", |(label, _)| label);
                warn!(container = name, label, meant, "label is no setting, at most an attribute; is another meant?");
            } else if refusal.is_by_choice() {
                debug!(container = name, %refusal, "not registered");
            } else {
                warn!(container = name, %refusal, "not registered");
            }
        }
        self.refusals = refusals;
    }
}

/// One service on one port of a container.
#[derive(Debug)]
pub(super) struct Instance {
    pub(super) serial: u64,
    pub(super) registration: Arc<Registration>,
    /// Its value in etcd while it runs.
    pub(super) value: Arc<str>,
    pub(super) health: Health,
    /// It is being asked.
    pub(super) asking: bool,
    pub(super) ask_at: Instant,
    /// Which of its targets is to be asked first.
    pub(super) target: usize,
    /// When that is to be the best one again, where it is another one now.
    best_again_at: Option<Instant>,
    /// An operator drains it.
    pub(super) drained: bool,
    /// A command in the container that had not ended when it should have.
    pub(super) unfinished: Option<String>,
    /// Whether a missing answer was told since the start or the last answer.
    told_missing: bool,
}

impl Instance {
    /// Nothing is known of it yet, but when its container was started.
    pub(super) fn new(serial: u64, registration: Registration, started: Instant, now: Instant) -> Self {
        let mut instance = Self {
            serial,
            value: registration.record.to_value().into(),
            health: health(&registration, started),
            registration: Arc::new(registration),
            asking: false,
            ask_at: now,
            target: 0,
            best_again_at: None,
            drained: false,
            unfinished: None,
            told_missing: false,
        };
        instance.assume_up_where_not_asked();
        instance
    }

    /// Begins anew with what is known of it, as after its start. What it is just being asked has lost its meaning: the
    /// serial number is another one.
    pub(super) fn begin(&mut self, serial: u64, now: Instant) {
        (self.serial, self.asking) = (serial, false);
        self.health = health(&self.registration, now);
        self.ask_at = now;
        self.told_missing = false;
        self.assume_up_where_not_asked();
    }

    /// Goes on with what is known, by the limits of this registration.
    fn judge_as(&mut self, registration: &Registration) {
        let check = &registration.check;
        self.health.adjust(check.rise, check.fall, check.interval);
    }

    fn assume_up_where_not_asked(&mut self) {
        if self.registration.check.kind == CheckKind::None {
            self.health.assume_up();
        }
    }

    /// The same instance, of which something is another now.
    pub(super) fn replace(&mut self, registration: Registration, now: Instant) {
        if *self.registration == registration {
            return;
        }
        if self.registration.check != registration.check {
            (self.target, self.best_again_at) = (0, None);
            self.ask_at = now;
            self.judge_as(&registration);
            debug!(key = %registration.key, "it is asked as other settings say from now on");
        }
        self.value = registration.record.to_value().into();
        self.registration = Arc::new(registration);
    }

    /// An earlier run of the agent had it registered.
    fn take_over(&mut self, record: &Record) {
        if !self.health.was_up() {
            self.health.assume_up();
        }
        self.drained = is_drained(record);
    }

    /// Whether another one is asked the same: a port has one answer for all its names.
    pub(super) fn is_asked_like(&self, registration: &Registration) -> bool {
        self.registration.port == registration.port && self.registration.check == registration.check
    }

    /// Takes which of its targets is to be asked first. The best one is tried again now and then, unless that alone could
    /// cost it its key: where a missing answer counts at once, and the question has not the time to go on to the next.
    pub(super) fn aim(&mut self, target: usize, now: Instant) {
        let check = &self.registration.check;
        let targets = u32::try_from(check.kind.targets().len()).unwrap_or(u32::MAX);
        let has_time = check.timeout >= CONNECT_LIMIT.saturating_mul(targets) || check.fall > 1;
        (self.target, self.best_again_at) = match self.best_again_at {
            _ if target == 0 => (0, None),
            Some(at) if at <= now && has_time => (0, None),
            Some(at) => (target, Some(at)),
            None => (target, Some(now + BEST_AGAIN_AFTER)),
        };
    }

    /// Whether it is known to answer, or not to.
    pub(super) fn has_said(&self) -> bool {
        self.health.was_up() || self.told_missing
    }

    /// Takes an answer. Says whether it changes anything.
    pub(super) fn answered(&mut self, result: &Result<(), ProbeError>) -> bool {
        let key = &self.registration.key;
        let answer = match result {
            Ok(()) => Answer::Good,
            Err(ProbeError::Exec(_)) => {
                debug!(%key, "Docker cannot be asked to run the check; what is known stays");
                return false;
            }
            Err(error) => error.answer(),
        };
        let change = self.health.record(answer);
        match (change, result) {
            (Some(Change::Up), _) => {
                self.told_missing = false;
                info!(%key, "it answers");
            }
            (Some(Change::Down), Err(error)) => {
                self.told_missing = true;
                warn!(%key, %error, "it no longer answers");
            }
            (_, Err(error)) if !self.told_missing => {
                self.told_missing = true;
                info!(%key, %error, "it does not answer");
            }
            (_, Err(error)) => debug!(%key, %error, "it does not answer"),
            (_, Ok(())) => debug!(%key, "it answered"),
        }
        change.is_some()
    }
}

/// Whether an operator drains it: that its container was told to stop is the agent's own word.
pub(super) fn is_drained(record: &Record) -> bool {
    record.status == Status::Draining && !record.stopping
}

fn health(registration: &Registration, started: Instant) -> Health {
    let check = &registration.check;
    Health::new(check.rise, check.fall, check.interval, started)
}
