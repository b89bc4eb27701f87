//! Where the way ends, by cause: the first step that says no, and its advice.

use registry::{Entry, Prefix, StoreKind};

use super::file::File;
use super::sample;
use super::steps::{Explanation, Part, Says};
use super::way::{Away, Etcd, Evidence, explain};
use crate::haproxy::Stats;
use crate::report::{Connection, InstanceReport, LeftOutReport, Report, ServiceReport, Status};
use crate::share::Share;

const AT: &str = "10.0.0.1:80";
const KEY: &str = "/service/web/10.0.0.1:80";
const VALUE: &str = r#"{"name":"web-1","id":"2d15cafe","host":"host-1","agent":"a1"}"#;
const FILE: &str = "frontend _http\n    bind :80\n    use_backend web if { hdr(host) web.example }\n\
    backend web\n    server 10.0.0.1_80 10.0.0.1:80 weight 100 check\n";

/// What HAProxy says of the server.
fn stat(state: &str, weight: u16, check: &str, words: &str) -> Stats {
    let text = format!(
        "# pxname,svname,qcur,scur,status,weight,lastchg,check_status,check_desc,last_chk,addr,\n\
         web,10.0.0.1_80,0,3,{state},{weight},9,{check},{words},,10.0.0.1:80,\n"
    );
    Stats::parse(&text, sample::now(), &Stats::default(), 0).unwrap()
}

/// All is well.
fn evidence(name: &str) -> Evidence {
    Evidence {
        name: name.to_owned(),
        prefix: "service".parse::<Prefix>().unwrap(),
        share: Share::default(),
        store: StoreKind::Etcd,
        etcd: lists(&[(KEY, VALUE)]),
        discoverer: Ok(sample::report()),
        output: "/etc/haproxy/haproxy.cfg".to_owned(),
        file: Ok(File::read(FILE)),
        stats: Some(Ok(stat("UP", 100, "L4OK", ""))),
    }
}

fn lists(entries: &[(&str, &str)]) -> Etcd {
    Etcd::Lists { api: Some("v2"), entries: entries.iter().map(|(path, value)| Entry::new(*path, *value)).collect() }
}

fn in_memory(entries: &[(&str, &str)]) -> Etcd {
    let Etcd::Lists { entries, .. } = lists(entries) else { unreachable!("they are listed") };
    Etcd::Lists { api: None, entries }
}

fn report(evidence: &mut Evidence) -> &mut Report {
    evidence.discoverer.as_mut().unwrap()
}

fn service(evidence: &mut Evidence) -> &mut ServiceReport {
    &mut report(evidence).services[0]
}

fn instance(evidence: &mut Evidence) -> &mut InstanceReport {
    &mut service(evidence).instances[0]
}

fn left_out(what: &str, reason: &str) -> LeftOutReport {
    let address = (what == "instance").then(|| AT.parse().unwrap());
    let (what, subject, reason) = (what.to_owned(), "web".to_owned(), reason.to_owned());
    LeftOutReport { what, service: Some("web".to_owned()), address, subject, reason }
}

/// The service is left out for that.
fn refuse(evidence: &mut Evidence, what: &str, reason: &str) {
    service(evidence).head.status = Status::Refused;
    service(evidence).head.left_out = vec![left_out(what, reason)];
    (instance(evidence).status, instance(evidence).haproxy) = (Status::Refused, None);
    evidence.file = Ok(File::read("global\n"));
    evidence.stats = Some(Ok(Stats::default()));
}

/// The discoverer follows another share than the one the instance is in.
fn elsewhere(evidence: &mut Evidence, value: &str) {
    report(evidence).status.registry.only = vec!["tag=edge".to_owned()];
    report(evidence).services.clear();
    evidence.etcd = lists(&[(KEY, value)]);
}

#[test]
fn what_another_discoverers_share_has_is_named_with_its_tags() {
    let cases = [
        (r#"{"tags":["blue","inner"]}"#, "10.0.0.1:80 is left out by --only tag=edge: its tags are blue, inner"),
        ("running", "10.0.0.1:80 is left out by --only tag=edge: it has no tags"),
    ];
    for (value, expected) in cases {
        for name in ["web", AT] {
            let mut it = evidence(name);
            elsewhere(&mut it, value);
            let told = explain(&it);
            let text = told.to_string();
            assert!(!told.routed && text.contains(expected), "{name}: {text}");
            let first = told.first_no().unwrap();
            assert!(first.part == Part::Discoverer && first.text.contains("left out by --only tag=edge"), "{text}");
            assert!(!text.contains("does not know it") && !text.contains("knows no service"), "{text}");
        }
    }
    let mut it = evidence(AT);
    elsewhere(&mut it, r#"{"tags":["edge"]}"#);
    assert!(!explain(&it).to_string().contains("left out by"), "it is in the share, and not known yet");
    it.etcd = Etcd::NotAsked;
    assert!(explain(&it).to_string().contains("give --etcd to see it"));
}

fn marks(explanation: &Explanation) -> Vec<Says> {
    let steps = explanation.ways.iter().flat_map(|way| &way.steps);
    steps.map(|step| step.says).filter(|says| *says != Says::Aside).collect()
}

#[test]
fn what_is_meant_by_a_name_is_found_and_followed_to_haproxy() {
    for name in ["web", AT, "web-1", "2d15", "2d15cafe", KEY] {
        let told = explain(&evidence(name));
        assert!(told.routed && told.first_no().is_none(), "{name}: {told}");
        let text = told.to_string();
        for expected in [
            "/service/web/10.0.0.1:80 is in etcd: running; it does not expire; container web-1 (2d15cafe) on host-1; written by a1",
            "service web is known: http, host web.example",
            "/etc/haproxy/haproxy.cfg:3: _http (:80): use_backend web if",
            "/etc/haproxy/haproxy.cfg:5: backend web: server 10.0.0.1_80",
            "HAProxy's server web/10.0.0.1_80 is UP (L4OK), weight 100, with 3 sessions",
        ] {
            assert!(text.contains(expected), "{name}: {expected}\n{text}");
        }
        let parts: Vec<Part> = told.ways[0].steps.iter().map(|step| step.part).collect();
        assert!(parts.is_sorted(), "{text}");
    }
}

#[test]
fn each_cause_is_the_first_no_with_its_advice() {
    type Change = fn(&mut Evidence);
    let cases: &[(Change, Part, &str, &str)] = &[
        (|it| it.etcd = Etcd::Away("no usable answer".to_owned()), Part::Etcd, "no usable answer", "Does etcd run"),
        (
            |it| {
                it.etcd = lists(&[]);
                instance(it).status = Status::Suspect;
            },
            Part::Etcd,
            "no key of service web in etcd is of 10.0.0.1:80",
            "`registrar explain web-1`",
        ),
        (
            |it| {
                it.etcd = lists(&[(KEY, "nonsense")]);
                report(it).services.clear();
            },
            Part::Etcd,
            "and cannot be read: its value is neither",
            "Whoever wrote it",
        ),
        (
            |it| {
                it.etcd = lists(&[(KEY, r#"{"status":"draining","name":"web-1","host":"host-1"}"#)]);
                instance(it).status = Status::Draining;
            },
            Part::Etcd,
            "is in etcd: draining",
            "`registrar undrain web-1`, on host-1",
        ),
        (
            |it| it.etcd = lists(&[(KEY, r#"{"status":"draining","stopping":true}"#)]),
            Part::Etcd,
            "is in etcd: draining",
            "Docker has told the container to stop",
        ),
        (
            |it| it.discoverer = Err(Away::no("no discoverer answers", "Does it run?")),
            Part::Discoverer,
            "no discoverer answers",
            "Does it run?",
        ),
        (
            |it| report(it).status.registry.prefix = "prod/service".to_owned(),
            Part::Discoverer,
            "follows /prod/service, not /service",
            "--key prod/service",
        ),
        (
            |it| report(it).status.registry.connection = Connection::Unreachable,
            Part::Discoverer,
            "gets no answer of etcd since",
            "http://10.0.0.9:2379",
        ),
        (
            |it| report(it).status.registry.connection = Connection::Connecting,
            Part::Discoverer,
            "has not had an answer of etcd yet",
            "Does etcd run",
        ),
        (
            |it| report(it).status.haproxy.error = Some("[ALERT] bad".to_owned()),
            Part::Discoverer,
            "does not run what is wanted: [ALERT] bad",
            "discoverer check",
        ),
        (|it| report(it).status.is_ready = false, Part::Discoverer, "has not had a configuration", "/health/ready"),
        (
            |it| refuse(it, "route", "it wants host a.example, which service old has"),
            Part::Discoverer,
            "service web is left out: it wants host a.example, which service old has",
            "another SERVICE_HOST",
        ),
        (
            |it| refuse(it, "service", "[ALERT] unknown balance"),
            Part::Discoverer,
            "service web is left out: [ALERT] unknown balance",
            "mend its labels",
        ),
        (
            |it| {
                service(it).head.left_out = vec![left_out("instance", "a newer container has this address")];
                instance(it).status = Status::Refused;
            },
            Part::Discoverer,
            "the discoverer leaves it out: a newer container has this address",
            "an --ip of its own",
        ),
        (
            |it| {
                it.etcd = Etcd::NotAsked;
                instance(it).status = Status::Suspect;
            },
            Part::Discoverer,
            "it is suspect",
            "does that run, and reach etcd?",
        ),
        (|it| service(it).instances.clear(), Part::Discoverer, "the discoverer does not know it", "--etcd-api"),
        (
            |it| it.file = Err(Away::no("no such file", "Is that --output?")),
            Part::File,
            "no such file",
            "Is that --output?",
        ),
        (
            |it| {
                it.file = Ok(File::read("global\n"));
                report(it).status.discoverer.output = "/other.cfg".to_owned();
            },
            Part::File,
            "has no backend web",
            "give --output /other.cfg",
        ),
        (
            |it| it.file = Ok(File::read(&FILE.replace("    server ", "    # "))),
            Part::File,
            "has no server at 10.0.0.1:80",
            "discoverer render",
        ),
        (
            |it| it.file = Ok(File::read(&FILE.replace("use_backend web", "use_backend other"))),
            Part::File,
            "no rule in /etc/haproxy/haproxy.cfg leads to backend web",
            "SERVICE_HOST, SERVICE_PATH",
        ),
        (
            |it| it.file = Ok(File::read(&FILE.replace("weight 100", "weight 0"))),
            Part::File,
            "with weight 0 it gets nothing new",
            "SERVICE_WEIGHT",
        ),
        (
            |it| it.file = Ok(File::read(&FILE.replace("weight 100", "disabled"))),
            Part::File,
            "in maintenance from the start",
            "`disabled`",
        ),
        (|it| report(it).status.haproxy.is_up = Some(false), Part::Haproxy, "HAProxy does not run", "Its own log"),
        (
            |it| {
                it.stats = Some(Err(Away::no("no socket", "Does HAProxy run?")));
                instance(it).haproxy = None;
            },
            Part::Haproxy,
            "no socket",
            "Does HAProxy run?",
        ),
        (
            |it| {
                it.stats = Some(Ok(Stats::default()));
                instance(it).haproxy = None;
            },
            Part::Haproxy,
            "HAProxy has no server at 10.0.0.1:80",
            "the last reload",
        ),
        (
            |it| it.stats = Some(Ok(stat("DOWN", 100, "L4CON", "Connection refused"))),
            Part::Haproxy,
            "is DOWN (L4CON: Connection refused)",
            "`curl -v http://10.0.0.1:80/`",
        ),
        (|it| it.stats = Some(Ok(stat("DOWN", 100, "L4TOUT", ""))), Part::Haproxy, "is DOWN (L4TOUT)", "a firewall"),
        (|it| it.stats = Some(Ok(stat("DOWN", 100, "L7STS", ""))), Part::Haproxy, "is DOWN (L7STS)", "200 to 399"),
        (|it| it.stats = Some(Ok(stat("MAINT", 100, "", ""))), Part::Haproxy, "it is in maintenance", "state ready"),
        (|it| it.stats = Some(Ok(stat("UP", 0, "L4OK", ""))), Part::Haproxy, "it gets nothing new", ""),
    ];
    for (change, part, text, advice) in cases {
        let mut it = evidence(AT);
        change(&mut it);
        let told = explain(&it);
        let first = told.first_no().unwrap_or_else(|| panic!("{text}: {told}"));
        assert_eq!(first.part, *part, "{text}: {told}");
        assert!(first.text.contains(text), "{text}: {told}");
        assert!(first.advice.as_deref().unwrap_or_default().contains(advice), "{advice}: {told}");
        assert!(!told.routed && told.to_string().contains("-> NO   "), "{told}");
    }
}

#[test]
fn of_a_registry_in_memory_nothing_is_told_that_is_etcds() {
    type Change = fn(&mut Evidence);
    let cases: [(Change, &str); 8] = [
        (|_| {}, "/service/web/10.0.0.1:80 is in the registry in memory: running;"),
        (|_| {}, "the registry in memory answers: 1 keys below /service"),
        (|it| it.etcd = in_memory(&[(KEY, r#"{"status":"draining"}"#)]), "is in the registry in memory: draining"),
        (
            |it| it.etcd = in_memory(&[(KEY, "{")]),
            "is in the registry in memory, it does not expire, and cannot be read",
        ),
        (|it| it.etcd = in_memory(&[]), "no key of service web in the registry in memory is of 10.0.0.1:80"),
        (|it| service(it).instances.clear(), "ask again"),
        (|it| instance(it).status = Status::Suspect, "unless its container answers"),
        (
            |it| report(it).status.registry.connection = Connection::Connecting,
            "waits until the containers were looked at\n        Does Docker answer",
        ),
    ];
    for (change, expected) in cases {
        let mut it = evidence(AT);
        (it.store, it.etcd) = (StoreKind::Memory, in_memory(&[(KEY, VALUE)]));
        report(&mut it).status.registry.store = StoreKind::Memory;
        change(&mut it);
        let told = explain(&it).to_string();
        assert!(told.contains(expected) && !told.contains("etcd"), "{expected}: {told}");
    }
}

#[test]
fn what_comes_behind_the_first_no_is_told_as_well() {
    let mut it = evidence(AT);
    refuse(&mut it, "route", "another has it");
    use Says::{No, Yes};
    // etcd, the key, the registry; the service, the instance; the backend, the server; HAProxy.
    assert_eq!(marks(&explain(&it)), [Yes, Yes, Yes, No, No, No, No, No]);
}

#[test]
fn where_a_part_may_not_be_read_the_rest_is_and_all_is_not_said_to_be_well() {
    let mut it = evidence(AT);
    it.file = Err(Away::unknown("permission denied", "Ask as root"));
    it.stats = Some(Err(Away::unknown("permission denied too", "Ask as root")));
    let told = explain(&it);
    assert!(!told.routed && told.first_no().is_none(), "{told}");
    let text = told.to_string();
    assert!(text.contains("   ?    permission denied\n        Ask as root\n"), "{text}");
    // The discoverer has asked HAProxy.
    assert!(text.contains("   yes  HAProxy's server is UP (L4OK)") && !text.contains("denied too"), "{text}");
    it.discoverer = Err(Away::no("away", "?"));
    assert!(explain(&it).to_string().contains("denied too"));
}

#[test]
fn where_no_rule_names_the_backend_and_one_may_lead_there_it_is_neither_yes_nor_no() {
    let expression = "use_backend %[req.hdr(host),lower,map(/etc/haproxy/hosts.map)]";
    let cases = [
        (FILE.replace("use_backend web", expression), expression, "an expression or a variable of the environment may"),
        (
            FILE.replace("use_backend", "# "),
            "",
            "has no rule: those that may lead to backend web stand in another file",
        ),
    ];
    for (text, rule, words) in &cases {
        let mut it = evidence("web");
        it.file = Ok(File::read(text));
        let told = explain(&it);
        assert!(!told.routed && told.first_no().is_none(), "{told}");
        let unknown = told.ways.iter().flat_map(|way| &way.steps).find(|step| step.says == Says::Unknown).unwrap();
        assert!(unknown.part == Part::File && unknown.text.contains(words) && unknown.advice.is_some(), "{told}");
        assert!(told.to_string().contains(rule), "{told}");
    }
    let mut it = evidence("web");
    it.file = Ok(File::read(&format!("frontend _more\n    {expression}\n{FILE}")));
    assert!(explain(&it).routed, "a rule that names it is enough");
}

#[test]
fn what_nobody_knows_is_told_with_names_that_are_near_and_the_other_command() {
    let mut it = evidence("wbe");
    let told = explain(&it);
    let first = told.first_no().unwrap();
    assert!(first.text.contains("no key below /service is of a service, an instance or a container wbe"), "{told}");
    let advice = first.advice.as_deref().unwrap();
    assert!(advice.contains("one of these meant: web") && advice.contains("`registrar explain wbe`"), "{told}");
    it.etcd = Etcd::NotAsked;
    assert_eq!(explain(&it).first_no().unwrap().part, Part::Discoverer);
    it.etcd = Etcd::Away("silent".to_owned());
    assert_eq!(explain(&it).first_no().unwrap().text, "silent");
    let mut it = evidence("nonsense");
    it.etcd = lists(&[("/service/web/nonsense", "running")]);
    let told = explain(&it);
    let text = "/service/web/nonsense is in etcd, and is no instance: \"nonsense\" is not an address";
    assert!(told.first_no().unwrap().text.contains(text), "{told}");
}

#[test]
fn a_service_without_instances_says_so_and_one_with_many_tells_of_each() {
    let mut it = evidence("web");
    it.etcd = lists(&[]);
    service(&mut it).instances.clear();
    service(&mut it).head.status = Status::Empty;
    let told = explain(&it);
    assert!(told.first_no().unwrap().text.contains("service web has no instance"), "{told}");
    assert!(told.first_no().unwrap().advice.as_deref().unwrap().contains("registrar list"), "{told}");

    let mut it = evidence("web");
    let drains = r#"{"status":"draining"}"#;
    it.etcd = lists(&[(KEY, VALUE), ("/service/web/10.0.0.2:80", drains), ("/service/shop/10.0.0.3:80", "running")]);
    let told = explain(&it);
    let of: Vec<&str> = told.ways.iter().map(|way| way.of.as_str()).collect();
    assert_eq!(of, ["service web", "10.0.0.1:80", "10.0.0.2:80"]);
    assert!(told.ways[0].is_open() && told.ways[1].is_open() && !told.ways[2].is_open(), "{told}");
}

#[test]
fn nothing_that_a_terminal_would_obey_is_printed() {
    let mut it = evidence("web");
    it.etcd = lists(&[(KEY, "{\"status\":\"\\u001b[2J\\nup\"}"), ("/service/web/\u{1b}[2J\n:1", "running")]);
    report(&mut it).status.haproxy.error = Some("\u{1b}]0;title\u{7}\u{202e}".to_owned());
    let text = explain(&it).to_string();
    assert!(!text.contains(|c: char| c.is_control() && c != '\n') && !text.contains('\u{202e}'), "{text:?}");
    assert!(serde_json::to_string(&explain(&it)).unwrap().contains("\"part\":\"etcd\""));
}
