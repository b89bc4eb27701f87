//! The agent's decisions, told in events, inspections and answers; no Docker, no etcd, no clock.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use registry::{Entry, InstanceKey, Listing, Position, Prefix, Record, Status, StoreError, Trouble, Unanswered};

use super::container::Facts;
use super::containers::{Answer, Containers, Inspected, Question};
use crate::config::{Command, Program};
use crate::docker::DockerError;
use crate::docker::events::{ContainerId, Event, Healthcheck, Late, News, What};
use crate::keeper::Claim;
use crate::keepers::{Keepers, Stores};
use crate::metrics::Metrics;
use crate::probe::ProbeError;
use crate::probe::Prober;
use crate::service::{AddressSource, Check, CheckKind, DefaultAddress, Findings, Registration, Scope};

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
        self.containers.event(&Event { container: id.into(), what, late: None }, self.now);
    }

    /// What happened so long ago is told only now.
    fn late_event(&mut self, id: &str, what: What, at: &str, ago: Duration) {
        let late = Some(Late { at: at.parse().unwrap(), ago });
        self.containers.event(&Event { container: id.into(), what, late }, self.now);
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

    fn answer(&mut self, question: &Question, result: &Result<(), ProbeError>) {
        let answer = Answer { result: result.clone(), target: 0, unfinished: None };
        self.containers.answered(question, answer, self.now);
    }

    fn questions(&mut self) -> Vec<Question> {
        self.containers.pass(self.now);
        self.containers.questions(self.now, 100, || 0.0)
    }

    /// Asks whom it is time to ask, and has them all give the same answer.
    fn ask(&mut self, answer: &Result<(), ProbeError>) -> usize {
        let questions = self.questions();
        for question in &questions {
            self.answer(question, answer);
        }
        questions.len()
    }

    /// Whom it is time to inspect.
    fn next_to_inspect(&mut self) -> Vec<ContainerId> {
        self.containers.pass(self.now);
        self.containers.inspections(16).into_iter().map(|inspection| inspection.container).collect()
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
fn containers_are_counted_by_what_is_done_for_them() {
    let mut host = Host::with("c1", 8000);
    let counted = |host: &Host| -> Vec<(&'static str, i64)> {
        host.containers.count().into_iter().filter(|(_, count)| *count != 0).collect()
    };
    assert_eq!(counted(&host), [("answering", 1)]);
    host.event("c2", What::Start);
    assert_eq!(counted(&host), [("unread", 1), ("answering", 1)]);
    host.inspect(|id| Some(inspected(id, 8001, FIRST_START)));
    assert_eq!(counted(&host), [("answering", 1), ("not_answering", 1)]);
    host.event("c2", What::Pause);
    host.event("c1", What::Kill(Some(15)));
    assert_eq!(counted(&host), [("paused", 1), ("stopping", 1)]);
    host.event("c1", What::Die);
    host.event("c3", What::Start);
    host.inspect(|id| Some(Inspected { findings: Findings::default(), ..inspected(id, 8002, FIRST_START) }));
    assert_eq!(counted(&host), [("paused", 1), ("ignored", 1)]);
    assert_eq!(host.containers.count().len(), 7, "those that are none are told too");
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
    assert_eq!((host.containers.inspections(16), host.containers.due(true)), (vec![], None));
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
    host.containers.found_left(all.into(), host.now);
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
fn what_an_earlier_run_left_is_judged_by_what_its_healthcheck_says_now() {
    for (says, expected) in [(Healthcheck::Healthy, vec![(1, Status::Running)]), (Healthcheck::Unhealthy, vec![])] {
        for is_docker_quicker in [true, false] {
            let mut host = Host::new();
            let found = |host: &mut Host| {
                host.list(&["c1"]);
                host.inspect(|id| {
                    let mut inspected = checked_by(CheckKind::Docker, id, 1);
                    inspected.facts.healthcheck = Some(says);
                    Some(inspected)
                });
            };
            if is_docker_quicker {
                found(&mut host);
            }
            let left = left("c1", 1, FIRST_START, Status::Running);
            host.etcd.insert(left.0.clone(), left.1.to_value().into());
            host.containers.found_left([left].into(), host.now);
            if !is_docker_quicker {
                found(&mut host);
            }
            assert_eq!(host.registered(), expected, "{says:?}, Docker was quicker: {is_docker_quicker}");
        }
    }
}

#[test]
fn what_an_earlier_run_left_is_found_also_when_docker_was_quicker_than_etcd() {
    let mut host = Host::new();
    host.list(&["c1"]);
    host.inspect(|id| Some(inspected(id, 1, FIRST_START)));
    host.ask(&late());
    let all = [left("c1", 1, FIRST_START, Status::Running), left("dead", 2, FIRST_START, Status::Running)];
    host.etcd = all.iter().map(|(key, record)| (key.clone(), record.to_value().into())).collect();
    host.containers.found_left(all.into(), host.now);
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
    host.answer(&hangs[0], &Ok(()));
    assert_eq!(host.registered(), [(8000, Status::Running), (8002, Status::Running)]);
}

/// A container with so many ports, each under these names.
fn with_ports(id: &str, ports: u16, names: &[&str]) -> Inspected {
    let mut all = inspected(id, 8000, FIRST_START);
    let one = all.findings.registrations.remove(0);
    for port in 1..=ports {
        for name in names {
            let path = format!("/service/{name}/10.0.0.1:{port}");
            let key = InstanceKey::parse(&"service".parse().unwrap(), &path).unwrap();
            all.findings.registrations.push(Registration { key, port, ..one.clone() });
        }
    }
    all.findings.registrations.sort_by(|one, other| one.key.cmp(&other.key));
    all
}

#[test]
fn a_port_is_asked_once_for_all_its_names_and_its_answer_holds_for_all_of_them() {
    let mut host = Host::new();
    host.event("c1", What::Start);
    host.inspect(|id| Some(with_ports(id, 2, &["a", "b", "c"])));
    assert_eq!((host.ask(&Ok(())), host.registered().len()), (2, 6));
    host.later(Duration::from_secs(5));
    assert_eq!((host.ask(&refused()), host.registered().len()), (2, 0));
    host.later(Duration::from_secs(5));
    assert_eq!((host.ask(&Ok(())), host.registered().len()), (2, 6));
    // Another name for it is known to answer, and one that goes takes the question along to the next.
    host.event("c1", What::Changed);
    host.inspect(|id| Some(with_ports(id, 2, &["b", "c", "d"])));
    assert_eq!(host.registered().len(), 6);
    host.later(Duration::from_secs(5));
    assert_eq!((host.ask(&refused()), host.registered().len()), (2, 0));
}

#[test]
fn one_container_takes_few_of_the_places_for_questions_and_all_its_ports_have_their_turn() {
    let mut host = Host::new();
    host.event("many", What::Start);
    host.inspect(|id| Some(with_ports(id, 100, &["a"])));
    let mut going_on = host.questions();
    assert_eq!(going_on.len(), 8);
    host.event("c2", What::Start);
    host.inspect(|id| Some(inspected(id, 8002, FIRST_START)));
    assert_eq!(host.questions().len(), 1, "another container is asked at once");
    let mut asked = 0;
    while let Some(question) = going_on.pop() {
        asked += 1;
        host.answer(&question, &Ok(()));
        going_on.extend(host.questions());
        assert!(going_on.len() <= 8, "{}", going_on.len());
    }
    assert_eq!((asked, host.registered().len()), (100, 100));
}

#[test]
fn ports_that_do_not_answer_in_time_leave_the_others_their_turn() {
    let mut host = Host::new();
    host.event("c1", What::Start);
    host.inspect(|id| {
        let mut all = with_ports(id, 9, &["a"]);
        all.findings.registrations.iter_mut().for_each(|one| one.check.interval = Duration::from_secs(1));
        Some(all)
    });
    let hang = host.questions();
    assert_eq!(hang.len(), 8);
    let ninth = |questions: &[Question]| questions.iter().any(|question| question.registration.port == 9);
    assert!(!ninth(&hang));
    host.later(Duration::from_secs(3));
    host.answer(&hang[0], &late());
    assert!(ninth(&host.questions()), "though the first is to be asked again since long");
}

#[test]
fn the_best_address_is_tried_again_a_minute_after_there_was_no_way_to_it_unless_that_may_cost_the_key() {
    let cases = [(3000, 3, true), (3000, 1, true), (1500, 3, true), (500, 2, true), (1500, 1, false)];
    for (timeout, fall, again) in cases {
        let mut host = Host::new();
        host.event("c1", What::Start);
        host.inspect(|id| {
            let mut inspected = inspected(id, 8000, FIRST_START);
            let check = &mut inspected.findings.registrations[0].check;
            (check.timeout, check.fall) = (Duration::from_millis(timeout), fall);
            let targets = [80, 8000].map(|port| ([127, 0, 0, 1], port).into()).to_vec();
            check.kind = CheckKind::Tcp { targets, proxied: true };
            Some(inspected)
        });
        assert_eq!(host.ask(&Ok(())), 1);
        let mut asked = Vec::new();
        for _ in 0..14 {
            host.later(Duration::from_secs(5));
            let questions = host.questions();
            asked.push(questions[0].target);
            // From wherever it begins, only the second leads there.
            let answer = Answer { result: Ok(()), target: 1, unfinished: None };
            host.containers.answered(&questions[0], answer, host.now);
        }
        let last = usize::from(!again);
        assert_eq!(asked, [[0].as_slice(), &[1; 12], &[last]].concat(), "{timeout} ms, fall {fall}");
    }
}

#[test]
fn inspections_and_the_end_of_a_grace_time_wait_for_no_question() {
    let mut host = Host::with("c1", 8000);
    host.event("c1", What::Kill(Some(15)));
    assert_eq!(host.registered(), [(8000, Status::Draining)]);
    host.later(GRACE);
    assert_eq!(host.containers.due(false), Some(host.now), "no question may be asked now");
    host.containers.pass(host.now);
    assert_eq!(host.registered(), [(8000, Status::Running)]);
}

#[test]
fn what_is_answered_while_a_container_is_told_to_stop_does_not_count() {
    let mut host = Host::with("c1", 8000);
    host.later(Duration::from_secs(5));
    let questions = host.questions();
    host.event("c1", What::Kill(Some(15)));
    host.answer(&questions[0], &refused());
    assert_eq!(host.registered(), [(8000, Status::Draining)]);
    host.later(GRACE);
    assert_eq!((host.ask(&Ok(())), host.registered()), (1, vec![(8000, Status::Running)]));
}

#[test]
fn what_a_healthcheck_says_of_a_container_that_is_told_to_stop_counts_when_that_lives_on() {
    let mut host = Host::new();
    host.event("c1", What::Start);
    host.inspect(|id| Some(checked_by(CheckKind::Docker, id, 8000)));
    host.event("c1", What::Health(Healthcheck::Healthy));
    host.event("c1", What::Kill(Some(15)));
    host.event("c1", What::Health(Healthcheck::Unhealthy));
    // Whatever makes it be inspected meanwhile.
    host.event("c1", What::Changed);
    host.inspect(|id| {
        let mut inspected = checked_by(CheckKind::Docker, id, 8000);
        inspected.facts.healthcheck = Some(Healthcheck::Unhealthy);
        Some(inspected)
    });
    assert_eq!(host.registered(), [(8000, Status::Draining)]);
    host.later(GRACE);
    host.containers.pass(host.now);
    assert_eq!(host.registered(), []);
}

#[test]
fn an_agent_that_ended_while_it_drained_a_container_does_not_take_that_for_an_operators_word() {
    let begin = || {
        let mut host = Host::with("c1", 1);
        host.event("c1", What::Kill(Some(3)));
        assert_eq!(host.registered(), [(1, Status::Draining)]);
        let etcd = host.etcd;
        let left: BTreeMap<_, _> =
            etcd.iter().map(|(key, value)| (key.clone(), Record::parse(value).unwrap())).collect();
        let mut next = Host { etcd, ..Host::new() };
        next.containers.found_left(left, next.now);
        next
    };
    let find = |host: &mut Host, started: &'static str| {
        host.list(&["c1"]);
        host.inspect(|id| Some(inspected(id, 1, started)));
    };
    // Docker need not know of the signal any more: it drains for another grace time, and runs again.
    let mut host = begin();
    find(&mut host, FIRST_START);
    for _ in 0..2 {
        assert_eq!(host.registered(), [(1, Status::Draining)]);
        host.later(GRACE / 2);
        host.containers.pass(host.now);
    }
    assert_eq!(host.registered(), [(1, Status::Running)]);
    // Where it does, no longer than from then on.
    let mut host = begin();
    host.late_event("c1", What::Kill(Some(3)), "2026-11-25T09:10:00Z", GRACE / 2);
    find(&mut host, FIRST_START);
    assert_eq!(host.registered(), [(1, Status::Draining)]);
    host.later(GRACE / 2);
    host.containers.pass(host.now);
    assert_eq!(host.registered(), [(1, Status::Running)]);
    // One that was started anew meanwhile is none that was told to stop.
    let mut host = begin();
    find(&mut host, SECOND_START);
    host.ask(&Ok(()));
    assert_eq!(host.registered(), [(1, Status::Running)]);
}

#[test]
fn an_operators_word_outlasts_a_signal_to_stop_and_the_agent() {
    let operators = || left("c1", 8000, FIRST_START, Status::Draining).1;
    for is_told_first in [true, false] {
        let mut host = Host::with("c1", 8000);
        if is_told_first {
            host.containers.found(&key(8000), &operators());
        }
        host.event("c1", What::Kill(Some(15)));
        assert_eq!(host.registered(), [(8000, Status::Draining)]);
        if !is_told_first {
            host.containers.found(&key(8000), &operators());
            assert_eq!(host.registered(), [(8000, Status::Draining)]);
        }
        assert_eq!(Record::parse(&host.etcd[&key(8000)]), Ok(operators()));
        host.later(GRACE);
        host.containers.pass(host.now);
        assert_eq!(host.registered(), [(8000, Status::Draining)], "told first: {is_told_first}");
    }
}

#[test]
fn a_signal_while_no_agent_ran_drains_within_its_grace_time() {
    let cases = [
        (15, "2026-11-25T09:10:00Z", GRACE / 2, Status::Draining),
        (15, "2026-11-25T09:10:00Z", GRACE * 2, Status::Running),
        (1, "2026-11-25T09:10:00Z", GRACE / 2, Status::Running),
        // Of the run before.
        (15, "2026-11-25T08:59:00Z", GRACE / 2, Status::Running),
    ];
    for (signal, at, ago, expected) in cases {
        let mut host = Host::new();
        host.containers.found_left([left("c1", 1, FIRST_START, Status::Running)].into(), host.now);
        host.late_event("c1", What::Kill(Some(signal)), at, ago);
        host.list(&["c1"]);
        host.inspect(|id| Some(inspected(id, 1, FIRST_START)));
        assert_eq!(host.registered(), [(1, expected)], "{signal} at {at}, {ago:?} ago");
    }
}

#[test]
fn what_is_told_late_removes_nobody_who_lives() {
    let mut host = Host::with("c1", 8000);
    for what in [What::Die, What::Pause, What::Health(Healthcheck::Unhealthy)] {
        host.late_event("c1", what, "2026-11-25T08:59:59Z", Duration::from_secs(1));
        assert_eq!(host.next_to_inspect(), ["c1".into()], "{what:?}: it may be so");
        host.list(&["c1"]);
        assert_eq!(host.registered(), [(8000, Status::Running)], "{what:?}");
        host = Host::with("c1", 8000);
    }
}

fn paused(id: &str) -> Inspected {
    let mut inspected = inspected(id, 8000, FIRST_START);
    inspected.facts.paused = true;
    inspected.findings.registrations.clear();
    inspected
}

#[test]
fn a_paused_container_that_is_inspected_keeps_what_is_known_of_it() {
    let mut host = Host::with("c1", 8000);
    host.list(&["c1"]);
    host.containers.found(&key(8000), &left("c1", 8000, FIRST_START, Status::Draining).1);
    host.later(Duration::from_secs(5));
    let overtaken = host.questions();
    host.event("c1", What::Pause);
    host.containers.listed(&BTreeMap::from([("c1".into(), 1)]), host.now);
    host.inspect(|id| Some(paused(id)));
    assert_eq!(host.registered(), []);
    host.event("c1", What::Unpause);
    host.inspect(|id| Some(inspected(id, 8000, FIRST_START)));
    let questions = host.questions();
    assert_eq!(questions.len(), 1, "it is asked anew, though an older question is not answered yet");
    host.answer(&overtaken[0], &Ok(()));
    assert_eq!(host.registered(), [], "what it was asked before counts no more");
    host.answer(&questions[0], &Ok(()));
    assert_eq!(host.registered(), [(8000, Status::Draining)]);
    // So it is where only the list tells of the pause and its end.
    for (digest, found) in [(2, paused("c1")), (3, inspected("c1", 8000, FIRST_START))] {
        host.containers.listed(&BTreeMap::from([("c1".into(), digest)]), host.now);
        let found = std::cell::Cell::new(Some(found));
        host.inspect(|_| found.take());
    }
    assert_eq!((host.registered(), host.ask(&Ok(()))), (vec![], 1));
    assert_eq!(host.registered(), [(8000, Status::Draining)]);
}

#[test]
fn who_shares_the_network_of_a_container_is_inspected_when_that_network_changes() {
    let mut host = Host::with("c1", 8000);
    host.event("c2", What::Start);
    host.inspect(|id| {
        let mut inspected = inspected(id, 8002, FIRST_START);
        inspected.facts.network_of = Some("c1".into());
        Some(inspected)
    });
    host.event("c1", What::Changed);
    let mut inspected = host.next_to_inspect();
    inspected.sort();
    assert_eq!(inspected, ["c1".into(), "c2".into()]);
}

#[test]
fn an_event_and_a_docker_that_is_back_hurry_an_inspection_that_failed() {
    for is_event in [true, false] {
        let mut host = Host::with("c1", 8000);
        host.event("c1", What::Changed);
        let inspections = host.containers.inspections(16);
        host.containers.not_inspected(&inspections[0], host.now);
        assert_eq!(host.next_to_inspect(), [], "it is tried again after a pause");
        if is_event {
            host.event("c1", What::Changed);
        } else {
            host.containers.inspect_failed();
        }
        assert_eq!(host.next_to_inspect(), ["c1".into()], "by an event: {is_event}");
    }
}

#[test]
fn what_an_earlier_run_left_is_given_up_and_can_be_found_again() {
    let mut host = Host::new();
    let all = || [left("c1", 1, FIRST_START, Status::Running), left("dead", 2, FIRST_START, Status::Running)];
    host.etcd = all().map(|(key, record)| (key, record.to_value().into())).into();
    host.containers.found_left(all().into(), host.now);
    assert_eq!(host.containers.give_up_left(), [key(1), key(2)]);
    assert_eq!(host.registered().len(), 2, "they are not removed");
    host.containers.found_left(all().into(), host.now);
    host.list(&["c1"]);
    host.inspect(|id| Some(inspected(id, 1, FIRST_START)));
    assert_eq!(host.registered(), [(1, Status::Running)]);
}

#[test]
fn an_operators_word_about_a_key_that_nobody_has_claimed_yet_is_kept() {
    let said = |status| left("c1", 1, FIRST_START, status);
    for (before, status) in [(Status::Running, Status::Draining), (Status::Draining, Status::Running)] {
        let mut host = Host::new();
        host.containers.found_left([said(before)].into(), host.now);
        let (key, record) = said(status);
        assert!(host.containers.found(&key, &record), "it is to stay");
        host.list(&["c1"]);
        host.inspect(|id| Some(inspected(id, 1, FIRST_START)));
        assert_eq!(host.registered(), [(1, status)]);
        assert!(!host.containers.found(&key, &record), "it is claimed");
    }
}

#[test]
fn the_view_is_whole_when_each_container_that_is_listed_was_read_and_has_said_whether_it_answers() {
    let mut host = Host::new();
    assert!(!host.containers.is_whole(), "nothing was listed");
    host.list(&["c1", "c2"]);
    assert!(!host.containers.is_whole(), "nothing was read");
    host.inspect(|id| Some(inspected(id, if id == "c1" { 1 } else { 2 }, FIRST_START)));
    let questions = host.questions();
    assert_eq!(questions.len(), 2);
    host.answer(&questions[0], &Ok(()));
    assert!(!host.containers.is_whole(), "one has said nothing");
    host.answer(&questions[1], &Err(ProbeError::Exec("Docker is away".to_owned())));
    assert!(!host.containers.is_whole(), "that is no answer");
    host.later(Duration::from_secs(5));
    host.ask(&Err(ProbeError::Timeout(Duration::from_secs(3))));
    assert!(host.containers.is_whole());
    // One that is told to stop is not asked, and one that has just come is.
    host.event("c3", What::Start);
    assert!(!host.containers.is_whole());
    host.inspect(|id| Some(inspected(id, 3, FIRST_START)));
    assert!(!host.containers.is_whole());
    host.event("c3", What::Kill(Some(15)));
    assert!(host.containers.is_whole());
    let empty = &mut Host::new();
    empty.list(&[]);
    assert!(empty.containers.is_whole());
}

/// An agent with nobody to ask.
fn agent() -> super::Agent {
    let args = ["registrar", "agent", "--etcd", "http://127.0.0.1:1", "--docker", "/no/such.sock", "--agent-id", "a1"];
    let Program::Command(command) = Program::from_args(args).unwrap() else { unreachable!() };
    let Command::Agent(config) = *command else { unreachable!() };
    let metrics = Metrics::default();
    let (stores, flags) = (Stores::new(&config.etcd).unwrap(), config.flags);
    let keeper = Keepers::new(stores, &flags.scope.key, &Claim::Own("a1".to_owned()), flags.ttl, &metrics);
    super::Agent::new(flags, "a1".to_owned(), keeper, Arc::new(Prober::new().unwrap()), metrics)
}

#[tokio::test]
async fn the_default_address_that_was_known_stays_while_there_is_none() {
    let mut agent = agent();
    let scope = crate::host::scope(&agent.config.scope, "a1".to_owned(), None).await.unwrap();
    let with = |v4: Option<u8>, v6: Option<u16>| Scope {
        default_address: DefaultAddress {
            v4: v4.map(|last| [10, 0, 0, last].into()),
            v6: v6.map(|last| [0x2001, 0xdb8, 0, 0, 0, 0, 0, last].into()),
        },
        ..scope.clone()
    };
    let known = |agent: &super::Agent| agent.scope.as_ref().unwrap().default_address;
    for (now, expected) in [
        (with(Some(1), None), with(Some(1), None)),
        (with(None, None), with(Some(1), None)),
        (with(None, Some(6)), with(Some(1), Some(6))),
        (with(Some(2), None), with(Some(2), Some(6))),
    ] {
        agent.judge_by(now);
        assert_eq!(known(&agent), expected.default_address);
    }
    // That of a container is none, also the one before.
    let listed = || super::Listed {
        digests: BTreeMap::new(),
        addresses: ["10.0.0.2".parse().unwrap()].into(),
        lacks_own: false,
    };
    agent.listed(tokio::time::Instant::now(), Ok(listed()));
    assert_eq!(known(&agent), DefaultAddress::default());
    agent.judge_by(with(Some(2), None));
    assert_eq!(known(&agent), DefaultAddress::default());
    // Also where the containers are known before the host is.
    let mut agent = self::agent();
    agent.listed(tokio::time::Instant::now(), Ok(listed()));
    agent.host(Ok(with(Some(2), None)));
    assert_eq!(known(&agent), DefaultAddress::default());
}

#[tokio::test]
async fn what_is_wrong_with_dockers_events_and_with_its_list_is_told_as_long_as_either_is() {
    type Step = Box<dyn FnOnce(&mut super::Agent)>;
    fn at(what: &str) -> DockerError {
        DockerError::NoAnswer { socket: "/docker.sock".into(), what: what.to_owned() }
    }
    let mut agent = agent();
    let heard = agent.docker_trouble.subscribe();
    let list = |result| move |agent: &mut super::Agent| agent.listed(tokio::time::Instant::now(), result);
    let there = || super::Listed { digests: BTreeMap::new(), addresses: [].into(), lacks_own: false };
    let steps: Vec<(Step, Option<&str>)> = vec![
        (Box::new(list(Err(at("no list")))), Some("no list")),
        // The stream may be there all the same.
        (Box::new(super::Agent::docker_is_well), Some("no list")),
        (Box::new(|agent| agent.news(News::Lost(at("no events")))), Some("no events")),
        (Box::new(list(Ok(there()))), Some("no events")),
        (Box::new(list(Err(at("none again")))), Some("no events")),
        (Box::new(super::Agent::docker_is_well), Some("none again")),
        (Box::new(list(Ok(there()))), None),
    ];
    for (number, (step, expected)) in steps.into_iter().enumerate() {
        step(&mut agent);
        let told = heard.borrow().clone();
        let is_so = match (&told, expected) {
            (Some(told), Some(expected)) => told.contains(expected),
            (told, expected) => told.is_none() && expected.is_none(),
        };
        assert!(is_so, "step {number}: {told:?}, not {expected:?}");
    }
}

#[tokio::test]
async fn what_an_earlier_run_left_is_given_up_without_docker_and_looked_for_when_it_is_there() {
    let mut agent = agent();
    let (key, record) = left("c1", 1, FIRST_START, Status::Running);
    let entries = vec![Entry::new(key.path(), record.to_value())];
    agent.left(vec![(0, Ok(Listing { entries, directories: None, position: Position::new(None, 1) }))]);
    agent.left.at = None;
    agent.begin();
    assert!(agent.is_left_asked);
    agent.give_up_left_at = tokio::time::Instant::now();
    agent.begin();
    assert!(!agent.is_left_asked && agent.left.at.is_none(), "it waits for Docker");
    let listed = super::Listed { digests: BTreeMap::new(), addresses: [].into(), lacks_own: false };
    agent.listed(tokio::time::Instant::now(), Ok(listed));
    assert!(agent.left.at.is_some(), "and looks what is still there");
}

#[tokio::test]
async fn what_an_earlier_run_left_in_one_of_two_apis_is_taken_though_the_other_is_away() {
    let mut agent = agent();
    agent.unread = [0, 1].into();
    let (key, record) = left("c1", 1, FIRST_START, Status::Running);
    let entries = vec![Entry::new(key.path(), record.to_value())];
    let listing = Listing { entries, directories: None, position: Position::new(None, 1) };
    let away = StoreError::NoAnswer(Unanswered {
        words: "http://h1:2379: cannot connect".to_owned(),
        cause: Trouble::Connect,
    });
    agent.left(vec![(0, Err(away.clone())), (1, Ok(listing))]);
    assert_eq!(agent.containers.give_up_left(), [key], "it is kept until Docker says whose it is");
    assert_eq!(agent.unread, [0].into(), "only the other is asked again");
    assert!(agent.left.at.is_some());
    agent.left(vec![(0, Err(away))]);
    assert!(agent.left.at.is_some() && agent.unread == [0].into());
}
