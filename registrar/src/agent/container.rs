//! One container and its instances: what is known of them, and what an answer means. Pure: `now` comes in.

use std::sync::Arc;
use std::time::Instant;

use bollard::models::{ContainerInspectResponse, HealthStatusEnum};
use jiff::Timestamp;
use registry::{InstanceKey, Record, Status};
use tracing::{debug, info, warn};

use crate::docker::events::{ContainerId, Healthcheck, signal_number};
use crate::health::{Answer, Change, Health};
use crate::probe::ProbeError;
use crate::service::{CheckKind, Refusal, Registration};

/// Docker's signals to end a container, beside the container's own (`docker stop`, `docker kill`).
const SIGKILL: i32 = 9;
const SIGTERM: i32 = 15;

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
        let healthcheck = match state.and_then(|state| state.health.as_ref()?.status) {
            Some(HealthStatusEnum::STARTING) => Some(Healthcheck::Starting),
            Some(HealthStatusEnum::HEALTHY) => Some(Healthcheck::Healthy),
            Some(HealthStatusEnum::UNHEALTHY) => Some(Healthcheck::Unhealthy),
            Some(HealthStatusEnum::NONE | HealthStatusEnum::EMPTY) | None => None,
        };
        let stop_signal = container.config.as_ref().and_then(|config| config.stop_signal.as_deref());
        let network = container.host_config.as_ref().and_then(|config| config.network_mode.as_deref());
        Self {
            name: container.name.as_deref().unwrap_or_default().trim_start_matches('/').to_owned(),
            running: state.is_some_and(|state| is(state.running) && !is(state.restarting)),
            paused: state.is_some_and(|state| is(state.paused)),
            started: state.and_then(|state| state.started_at.as_deref()?.parse().ok()),
            stop_signal: stop_signal.and_then(signal_number).unwrap_or(SIGTERM),
            healthcheck,
            network_of: network.and_then(|network| network.strip_prefix("container:")).map(Into::into),
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
    /// It is being inspected.
    pub(super) inspecting: Option<u64>,
    /// How often that failed in a row.
    pub(super) failures: u32,
    /// A digest of what the list of containers said of it.
    pub(super) digest: Option<u64>,
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
            inspecting: None,
            failures: 0,
            digest: None,
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

    /// Whether this signal is to end it.
    pub(super) fn is_ended_by(&self, signal: Option<i32>) -> bool {
        let own = self.facts.as_ref().map(|facts| facts.stop_signal);
        signal.is_some_and(|signal| signal == SIGTERM || signal == SIGKILL || own == Some(signal))
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = InstanceKey> {
        self.instances.iter().map(|instance| instance.registration.key.clone())
    }

    /// Takes what its HEALTHCHECK says, for the instances that are judged by it.
    pub(super) fn docker_says(&mut self, says: Healthcheck) {
        let result = match says {
            Healthcheck::Healthy => Ok(()),
            Healthcheck::Unhealthy => Err(ProbeError::Unhealthy("unhealthy")),
            Healthcheck::Starting => Err(ProbeError::Unhealthy("starting")),
        };
        for instance in
            self.instances.iter_mut().filter(|instance| instance.registration.check.kind == CheckKind::Docker)
        {
            instance.answered(&result);
        }
    }

    /// Tells what is left out of it, each once.
    pub(super) fn tell_refusals(&mut self, name: &str, refusals: Vec<Refusal>) {
        for refusal in refusals.iter().filter(|refusal| !self.refusals.contains(refusal)) {
            if refusal.is_by_choice() {
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
    pub(super) target: usize,
    /// An operator drains it.
    pub(super) drained: bool,
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
            drained: false,
            told_missing: false,
        };
        instance.assume_up_where_not_asked();
        instance
    }

    /// Begins anew with what is known of it, as after its start.
    pub(super) fn begin(&mut self, now: Instant) {
        self.health = health(&self.registration, now);
        self.ask_at = now;
        self.told_missing = false;
        self.assume_up_where_not_asked();
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
            self.target = 0;
            self.ask_at = now;
        }
        self.value = registration.record.to_value().into();
        self.registration = Arc::new(registration);
    }

    /// An earlier run of the agent had it registered: it goes on from there.
    pub(super) fn take_over(&mut self, record: &Record) {
        if !self.health.was_up() {
            self.health.assume_up();
        }
        self.drained = record.status == Status::Draining;
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

fn health(registration: &Registration, started: Instant) -> Health {
    let check = &registration.check;
    Health::new(check.rise, check.fall, check.interval, started)
}
