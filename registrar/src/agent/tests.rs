//! The agent's decisions, told in events, inspections and answers; no Docker, no etcd, no clock.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use registry::{InstanceKey, Prefix, Record, Status};

use super::container::Facts;
use super::containers::{Containers, Inspected, Question};
use crate::docker::events::{ContainerId, Event, Healthcheck, What};
use crate::probe::ProbeError;
use crate::service::{AddressSource, Check, CheckKind, Findings, Registration};

const GRACE: Duration = Duration::from_secs(30);
const FIRST_START: &str = "2026-11-25T09:00:00Z";
const SECOND_START: &str = "2026-11-25T09:30:00Z";

fn key(port: u16) -> InstanceKey {
    let prefix: Prefix = "service".parse().unwrap();
    InstanceKey::parse(&prefix, &format!("/service/web/10.0.0.1:{port}")).unwrap()
}

/// A host whose containers are inspected by hand.
struct Host {
    containers: Containers,
    now: Instant,
    /// What is in etcd, as the wishes were so far.
    etcd: BTreeMap<InstanceKey, Arc<str>>,
}

impl Host {
    fn new() -> Self {
        Self { containers: Containers::new(GRACE), now: Instant::now(), etcd: BTreeMap::new() }
    }

    fn event(&mut self, id: &str, what: What) {
        self.containers.event(&Event { container: id.into(), what }, self.now);
    }

    fn list(&mut self, ids: &[&str]) {
        let list = ids.iter().map(|&id| (ContainerId::from(id), 0)).collect();
        self.containers.listed(&list, self.now);
    }

    fn later(&mut self, by: Duration) {
        self.now += by;
    }

    /// Inspects what is to be inspected, and finds each of it as it is told.
    fn inspect(&mut self, found: impl Fn(&str) -> Option<Inspected>) {
        for inspection in self.containers.inspections(16) {
            let result = found(&inspection.container);
            self.containers.inspected(&inspection, result, self.now);
        }
    }

    fn questions(&mut self) -> Vec<Question> {
        self.containers.questions(self.now, 100, || 0.0)
    }

    /// Asks whom it is time to ask, and has them all give the same answer.
    fn ask(&mut self, answer: &Result<(), ProbeError>) -> usize {
        let questions = self.questions();
        for question in &questions {
            self.containers.answered(question, answer, 0, self.now);
        }
        questions.len()
    }

    /// What is in etcd now: ports and whether they drain.
    fn registered(&mut self) -> Vec<(u16, Status)> {
        for (key, wish) in self.containers.wishes() {
            match wish {
                Some(value) => drop(self.etcd.insert(key, value)),
                None => drop(self.etcd.remove(&key)),
            }
        }
        let status = |value: &str| Record::parse(value).unwrap().status;
        self.etcd.iter().map(|(key, value)| (key.address().port(), status(value))).collect()
    }

    /// A container that is started, inspected and answers.
    fn with(id: &str, port: u16) -> Self {
        let mut host = Self::new();
        host.event(id, What::Start);
        host.inspect(|id| Some(inspected(id, port, FIRST_START)));
        assert_eq!(host.ask(&Ok(())), 1);
        assert_eq!(host.registered(), [(port, Status::Running)]);
        host
    }
}

fn inspected(id: &str, port: u16, started: &str) -> Inspected {
    let check = Check {
        kind: CheckKind::Tcp { targets: vec![([127, 0, 0, 1], port).into()], proxied: false },
        interval: Duration::from_secs(5),
        timeout: Duration::from_secs(3),
        rise: 1,
        fall: 3,
    };
    let record = Record {
        id: Some(id.to_owned()),
        agent: Some("a1".to_owned()),
        registered: Some(started.parse().unwrap()),
        ..Record::default()
    };
    let registration = Registration { key: key(port), record, port: 80, address_from: AddressSource::Flag, check };
    let facts = Facts {
        name: format!("name-of-{id}"),
        running: true,
        paused: false,
        started: Some(started.parse().unwrap()),
        stop_signal: 3,
        healthcheck: None,
        network_of: None,
    };
    let findings = Findings { registrations: vec![registration], refusals: Vec::new() };
    Inspected { facts, findings, age: Duration::ZERO }
}

fn checked_by(kind: CheckKind, id: &str, port: u16) -> Inspected {
    let mut inspected = inspected(id, port, FIRST_START);
    inspected.findings.registrations[0].check.kind = kind;
    inspected
}

fn refused() -> Result<(), ProbeError> {
    Err(ProbeError::Refused("refused".to_owned()))
}

fn late() -> Result<(), ProbeError> {
    Err(ProbeError::Timeout(Duration::from_secs(3)))
}

#[test]
fn a_container_is_registered_when_it_answers_and_gone_when_it_dies() {
    let mut host = Host::new();
    host.event("c1", What::Start);
    host.inspect(|id| Some(inspected(id, 8000, FIRST_START)));
    assert_eq!((host.ask(&refused()), host.registered()), (1, vec![]));
    assert_eq!(host.ask(&Ok(())), 0);
    host.later(Duration::from_millis(25));
    assert_eq!((host.ask(&Ok(())), host.registered()), (1, vec![(8000, Status::Running)]));
    host.event("c1", What::Die);
    assert_eq!(host.registered(), []);
    assert_eq!(host.containers.inspections(16), []);
}

#[test]
fn a_refusal_removes_at_once_and_a_late_answer_only_the_third_time() {
    let mut host = Host::with("c1", 8000);
    let expected = [(8000, Status::Running)];
    for _ in 0..2 {
        host.later(Duration::from_secs(5));
        assert_eq!((host.ask(&late()), host.registered().as_slice()), (1, expected.as_slice()));
    }
    host.later(Duration::from_secs(5));
    assert_eq!((host.ask(&late()), host.registered()), (1, vec![]));
    host.later(Duration::from_secs(5));
    assert_eq!((host.ask(&Ok(())), host.registered().as_slice()), (1, expected.as_slice()));
    host.later(Duration::from_secs(5));
    assert_eq!((host.ask(&refused()), host.registered()), (1, vec![]));
}

#[test]
fn a_signal_to_stop_drains_without_a_question_and_another_one_does_not() {
    for signal in [3, 9, 15] {
        let mut host = Host::with("c1", 8000);
        for other in [1, 10, 12] {
            host.event("c1", What::Kill(Some(other)));
            assert_eq!(host.registered(), [(8000, Status::Running)], "{other}");
        }
        host.event("c1", What::Kill(None));
        host.event("c1", What::Kill(Some(signal)));
        assert_eq!(host.registered(), [(8000, Status::Draining)], "{signal}");
        assert_eq!(host.containers.inspections(16), []);
        // Who stops accepting while it finishes its work is not to be cut off.
        host.later(Duration::from_secs(10));
        assert_eq!(host.ask(&refused()), 0);
        host.event("c1", What::Die);
        assert_eq!(host.registered(), []);
    }
}

#[test]
fn who_does_not_die_of_a_signal_is_running_again_after_the_grace_time() {
    let mut host = Host::with("c1", 8000);
    host.event("c1", What::Kill(Some(15)));
    host.later(GRACE / 2);
    host.event("c1", What::Kill(Some(9)));
    host.later(GRACE / 2);
    host.ask(&Ok(()));
    assert_eq!(host.registered(), [(8000, Status::Draining)]);
    host.later(GRACE / 2);
    host.ask(&Ok(()));
    assert_eq!(host.registered(), [(8000, Status::Running)]);
}

#[test]
fn a_signal_before_the_first_answer_keeps_it_from_being_registered_as_running() {
    let mut host = Host::new();
    host.event("c1", What::Start);
    host.event("c1", What::Kill(Some(15)));
    host.inspect(|id| Some(inspected(id, 8000, FIRST_START)));
    host.ask(&Ok(()));
    assert_eq!(host.registered(), []);
}

#[test]
fn a_paused_container_is_not_registered_and_is_asked_anew_when_it_goes_on() {
    let mut host = Host::with("c1", 8000);
    host.event("c1", What::Pause);
    assert_eq!(host.registered(), []);
    host.later(Duration::from_secs(60));
    assert_eq!(host.ask(&Ok(())), 0);
    host.event("c1", What::Unpause);
    assert_eq!(host.registered(), []);
    assert_eq!(host.ask(&Ok(())), 1);
    assert_eq!(host.registered(), [(8000, Status::Running)]);
}

#[test]
fn a_restart_that_maps_another_port_moves_the_key() {
    let mut host = Host::with("c1", 8000);
    for what in [What::Kill(Some(15)), What::Die] {
        host.event("c1", what);
    }
    assert_eq!(host.registered(), []);
    host.event("c1", What::Start);
    host.event("c1", What::Changed);
    host.inspect(|id| Some(inspected(id, 8001, SECOND_START)));
    assert_eq!(host.registered(), []);
    host.ask(&Ok(()));
    assert_eq!(host.registered(), [(8001, Status::Running)]);
}

#[test]
fn what_happens_during_an_inspection_makes_it_worthless() {
    let mut host = Host::new();
    host.event("c1", What::Start);
    let inspections = host.containers.inspections(16);
    host.event("c1", What::Die);
    host.event("c1", What::Start);
    host.containers.inspected(&inspections[0], Some(inspected("c1", 8000, FIRST_START)), host.now);
    assert_eq!(host.questions().len(), 0);
    host.inspect(|id| Some(inspected(id, 8001, SECOND_START)));
    host.ask(&Ok(()));
    assert_eq!(host.registered(), [(8001, Status::Running)]);

    host.event("c1", What::Changed);
    let inspections = host.containers.inspections(16);
    host.event("c1", What::Pause);
    host.containers.inspected(&inspections[0], Some(inspected("c1", 8001, SECOND_START)), host.now);
    assert_eq!(host.registered(), []);
}

#[test]
fn a_container_that_vanished_before_it_was_inspected_is_forgotten() {
    let mut host = Host::new();
    host.event("c1", What::Start);
    host.inspect(|_| None);
    host.later(Duration::from_secs(60));
    assert_eq!((host.containers.inspections(16), host.containers.due()), (vec![], None));
}

#[test]
fn a_container_that_cannot_be_inspected_stays_as_it_is_and_is_tried_again() {
    let mut host = Host::with("c1", 8000);
    host.event("c1", What::Changed);
    for is_news in [true, false] {
        let inspections = host.containers.inspections(16);
        assert_eq!(host.containers.not_inspected(&inspections[0], host.now), is_news);
        host.later(Duration::from_secs(1));
        host.ask(&Ok(()));
    }
    assert_eq!(host.registered(), [(8000, Status::Running)]);
    host.inspect(|id| Some(inspected(id, 8001, FIRST_START)));
    host.ask(&Ok(()));
    assert_eq!(host.registered(), [(8001, Status::Running)]);
}

#[test]
fn a_list_finds_what_the_events_did_not_tell() {
    let mut host = Host::with("c1", 8000);
    host.later(Duration::from_secs(1));
    host.list(&["c2"]);
    host.inspect(|id| Some(inspected(id, 8002, FIRST_START)));
    host.ask(&Ok(()));
    assert_eq!(host.registered(), [(8002, Status::Running)]);
    // One that was started after the list was asked for is not missing from it.
    let begun = host.now;
    host.later(Duration::from_secs(1));
    host.event("c3", What::Start);
    host.inspect(|id| Some(inspected(id, 8003, FIRST_START)));
    host.ask(&Ok(()));
    host.containers.listed(&BTreeMap::from([("c2".into(), 0)]), begun);
    assert_eq!(host.registered(), [(8002, Status::Running), (8003, Status::Running)]);
    // What is listed with another digest is inspected.
    host.containers.listed(&BTreeMap::from([("c2".into(), 1), ("c3".into(), 0)]), host.now);
    let inspections = host.containers.inspections(16);
    assert_eq!(inspections.iter().map(|inspection| &*inspection.container).collect::<Vec<_>>(), ["c2"]);
}

#[test]
fn of_two_containers_that_claim_one_key_the_last_started_that_answers_has_it() {
    let mut host = Host::with("c2", 8000);
    let value = |host: &mut Host| {
        host.registered();
        host.etcd.get(&key(8000)).and_then(|value| Record::parse(value).unwrap().id)
    };
    host.event("c1", What::Start);
    host.inspect(|id| Some(inspected(id, 8000, SECOND_START)));
    assert_eq!(value(&mut host).as_deref(), Some("c2"));
    host.ask(&Ok(()));
    assert_eq!(value(&mut host).as_deref(), Some("c1"));
    host.event("c1", What::Die);
    assert_eq!(value(&mut host).as_deref(), Some("c2"));
}

#[test]
fn a_healthcheck_is_believed_and_nobody_is_asked() {
    let mut host = Host::new();
    host.event("c1", What::Start);
    host.inspect(|id| Some(checked_by(CheckKind::Docker, id, 8000)));
    assert_eq!((host.questions().len(), host.registered()), (0, vec![]));
    host.event("c1", What::Health(Healthcheck::Healthy));
    assert_eq!(host.registered(), [(8000, Status::Running)]);
    host.event("c1", What::Health(Healthcheck::Unhealthy));
    assert_eq!(host.registered(), []);
    host.event("c2", What::Start);
    host.inspect(|id| Some(checked_by(CheckKind::None, id, 8002)));
    assert_eq!((host.questions().len(), host.registered()), (0, vec![(8002, Status::Running)]));
}

#[test]
fn what_docker_cannot_say_changes_nothing() {
    let mut host = Host::with("c1", 8000);
    for _ in 0..5 {
        host.later(Duration::from_secs(5));
        host.ask(&Err(ProbeError::Exec("Docker is away".to_owned())));
    }
    assert_eq!(host.registered(), [(8000, Status::Running)]);
}

fn left(id: &str, port: u16, started: &str, status: Status) -> (InstanceKey, Record) {
    let inspected = inspected(id, port, started);
    (key(port), Record { status, ..inspected.findings.registrations[0].record.clone() })
}

#[test]
fn what_an_earlier_run_left_goes_on_without_an_answer_and_the_dead_go() {
    let mut host = Host::new();
    let all = [
        left("same", 1, FIRST_START, Status::Running),
        left("drained", 2, FIRST_START, Status::Draining),
        left("restarted", 3, FIRST_START, Status::Running),
        left("dead", 4, FIRST_START, Status::Running),
        left("same", 5, FIRST_START, Status::Running),
    ];
    host.etcd = all.iter().map(|(key, record)| (key.clone(), record.to_value().into())).collect();
    host.containers.found_left(all.into());
    // Nothing is known of Docker yet.
    assert_eq!(host.registered().len(), 5);
    host.list(&["same", "drained", "restarted"]);
    assert_eq!(host.registered().len(), 4);
    host.inspect(|id| {
        Some(match id {
            "same" => inspected(id, 1, FIRST_START),
            "drained" => inspected(id, 2, FIRST_START),
            _ => inspected(id, 3, SECOND_START),
        })
    });
    assert_eq!(host.registered(), [(1, Status::Running), (2, Status::Draining)]);
    host.ask(&Ok(()));
    assert_eq!(host.registered(), [(1, Status::Running), (2, Status::Draining), (3, Status::Running)]);
}

#[test]
fn what_an_earlier_run_left_is_found_also_when_docker_was_quicker_than_etcd() {
    let mut host = Host::new();
    host.list(&["c1"]);
    host.inspect(|id| Some(inspected(id, 1, FIRST_START)));
    host.ask(&late());
    let all = [left("c1", 1, FIRST_START, Status::Running), left("dead", 2, FIRST_START, Status::Running)];
    host.etcd = all.iter().map(|(key, record)| (key.clone(), record.to_value().into())).collect();
    host.containers.found_left(all.into());
    assert_eq!(host.registered(), [(1, Status::Running)]);
}

#[test]
fn an_operators_word_holds_until_it_is_taken_back_or_the_container_is_restarted() {
    let mut host = Host::with("c1", 8000);
    let said = |status| left("c1", 8000, FIRST_START, status).1;
    host.containers.found(&key(8000), &said(Status::Draining));
    assert_eq!(host.registered(), [(8000, Status::Draining)]);
    host.later(Duration::from_secs(5));
    host.ask(&refused());
    assert_eq!(host.registered(), []);
    host.later(Duration::from_secs(5));
    host.ask(&Ok(()));
    assert_eq!(host.registered(), [(8000, Status::Draining)]);
    host.containers.found(&key(8000), &said(Status::Running));
    assert_eq!(host.registered(), [(8000, Status::Running)]);

    host.containers.found(&key(8000), &said(Status::Draining));
    for what in [What::Die, What::Start] {
        host.event("c1", what);
    }
    host.inspect(|id| Some(inspected(id, 8000, SECOND_START)));
    // A late word about the run before.
    host.containers.found(&key(8000), &said(Status::Draining));
    host.ask(&Ok(()));
    assert_eq!(host.registered(), [(8000, Status::Running)]);
}

#[test]
fn who_shares_the_network_of_a_container_is_inspected_when_that_is_restarted() {
    let mut host = Host::with("c1", 8000);
    host.event("c2", What::Start);
    host.inspect(|id| {
        let mut inspected = inspected(id, 8002, FIRST_START);
        inspected.facts.network_of = Some("c1".into());
        Some(inspected)
    });
    host.event("c1", What::Die);
    let inspections = host.containers.inspections(16);
    assert_eq!(inspections.iter().map(|inspection| &*inspection.container).collect::<Vec<_>>(), ["c2"]);
}

#[test]
fn a_slow_answer_delays_nobody_else() {
    let mut host = Host::with("c1", 8000);
    host.event("c2", What::Start);
    host.inspect(|id| Some(inspected(id, 8002, FIRST_START)));
    let hangs = host.questions();
    assert_eq!(hangs.len(), 1);
    host.later(Duration::from_secs(5));
    assert_eq!(host.ask(&Ok(())), 1);
    host.containers.answered(&hangs[0], &Ok(()), 0, host.now);
    assert_eq!(host.registered(), [(8000, Status::Running), (8002, Status::Running)]);
}
