//! What was read, made into steps: from the key in etcd over the discoverer and the file to HAProxy. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::Duration;

use observe::answer::command;
use registry::{Entry, InstanceAddress, InstanceKey, Prefix, Record, Status as RecordStatus, StoreKind};

use super::file::File;
use super::steps::{Explanation, Part, Says, Way};
use crate::near::near;
use crate::report::{Connection, InstanceReport, LeftOutReport, Report, ServerReport, ServiceReport, Stats, Status};
use crate::share::{Share, parse_tag};

/// How many characters of an id are shown, as Docker does.
const SHORT_ID: usize = 12;
/// So much of an id is no word that somebody may have meant otherwise.
const LEAST_ID: usize = 4;
/// How many rules or keys are told one by one.
const SHOWN: usize = 5;

/// All that was read.
#[derive(Debug)]
pub(super) struct Evidence {
    /// What is to be explained.
    pub(super) name: String,
    /// The directory in etcd.
    pub(super) prefix: Prefix,
    /// The share that the discoverer follows, where it does not say so itself.
    pub(super) share: Share,
    /// What keeps the registry.
    pub(super) store: StoreKind,
    pub(super) etcd: Etcd,
    /// What the discoverer knows, or why it does not say, and what to do.
    pub(super) discoverer: Result<Report, Away>,
    /// The file's name.
    pub(super) output: String,
    pub(super) file: Result<File, Away>,
    /// What HAProxy says itself; none where no socket is named.
    pub(super) stats: Option<Result<Stats, Away>>,
}

/// What etcd says.
#[derive(Debug)]
pub(super) enum Etcd {
    /// No endpoint is given.
    NotAsked,
    /// It does not answer.
    Away(String),
    /// All that is below the prefix.
    Lists {
        /// `v2` or `v3`; none in memory.
        api: Option<&'static str>,
        /// Each with its time to live.
        entries: Vec<Entry>,
    },
}

/// Something that does not answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Away {
    /// Whether the way ends there, or that cannot be told.
    pub(super) says: Says,
    /// Why not.
    pub(super) why: String,
    /// What to do.
    pub(super) advice: String,
}

impl Away {
    /// The way ends there.
    pub(super) fn no(why: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { says: Says::No, why: why.into(), advice: advice.into() }
    }

    /// It may go on there: we have no right to look.
    pub(super) fn unknown(why: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { says: Says::Unknown, why: why.into(), advice: advice.into() }
    }
}

/// One instance, as etcd and the discoverer have it.
#[derive(Debug, Default, Clone, Copy)]
struct Known<'e> {
    entry: Option<&'e Entry>,
    report: Option<&'e InstanceReport>,
}

/// By service and address.
type Instances<'e> = BTreeMap<(String, SocketAddr), Known<'e>>;

/// What is known of a key that is no instance's.
struct NoKey<'e> {
    path: &'e str,
    reason: String,
}

/// Follows what is meant by the name.
pub(super) fn explain(evidence: &Evidence) -> Explanation {
    let (instances, others) = all(evidence);
    let services = services(evidence, &instances);
    let mut meant: Vec<(&(String, SocketAddr), &Known<'_>)> = Vec::new();
    let is_service = services.contains(evidence.name.as_str());
    for (id, known) in &instances {
        if is_meant(evidence, is_service, id, known) {
            meant.push((id, known));
        }
    }
    let below = format!("{}/{}/", evidence.prefix.path(), evidence.name);
    let end = format!("/{}", evidence.name);
    let bad: Vec<&NoKey<'_>> = others
        .iter()
        .filter(|key| key.path == evidence.name || key.path.starts_with(&below) || key.path.ends_with(&end))
        .collect();
    if meant.is_empty() && !is_service {
        return Explanation::unknown(unknown(evidence, &instances, &services, &bad));
    }
    let mut names: BTreeSet<&str> = meant.iter().map(|((service, _), _)| service.as_str()).collect();
    if is_service {
        names.insert(&evidence.name);
    }
    let mut ways = Vec::new();
    for name in names {
        let of: Vec<_> = meant.iter().filter(|((service, _), _)| service == name).collect();
        let mut shared = service_way(evidence, name, &instances);
        for key in &bad {
            add_no_key(&mut shared, evidence.store, key);
        }
        if of.is_empty() && !matches!(evidence.etcd, Etcd::Away(_)) {
            let (list, explain) = (command("registrar", "list"), command("registrar", "explain"));
            let advice = format!(
                "no container of it is registered: `{list}` shows what is, and `{explain} CONTAINER`, on a container's host, why it is not"
            );
            shared.no(Part::Etcd, format!("service {name} has no instance"), advice);
        }
        let own = of.iter().map(|((_, address), known)| instance_way(evidence, name, *address, **known));
        match &of[..] {
            [] => ways.push(in_order(shared)),
            [_] => {
                let own: Vec<Way> = own.collect();
                let label = own.first().map_or_else(String::new, |own| format!("{}, of {}", own.of, shared.of));
                let steps = shared.steps.into_iter().chain(own.into_iter().flat_map(|own| own.steps)).collect();
                ways.push(in_order(Way { of: label, steps }));
            }
            _ => {
                let own: Vec<Way> = own.collect();
                ways.push(in_order(shared));
                ways.extend(own);
            }
        }
    }
    Explanation::of(ways)
}

/// The steps along the way; those of one part stay in their order.
fn in_order(mut way: Way) -> Way {
    way.steps.sort_by_key(|step| step.part);
    way
}

/// All instances that etcd or the discoverer knows, and the keys that are none.
fn all(evidence: &Evidence) -> (Instances<'_>, Vec<NoKey<'_>>) {
    let (mut instances, mut others) = (Instances::new(), Vec::new());
    if let Etcd::Lists { entries, .. } = &evidence.etcd {
        for entry in entries {
            match InstanceKey::parse(&evidence.prefix, &entry.path) {
                Ok(key) => {
                    let id = (key.service().to_string(), key.address().socket_addr());
                    instances.entry(id).or_default().entry = Some(entry);
                }
                Err(error) => others.push(NoKey { path: &entry.path, reason: error.to_string() }),
            }
        }
    }
    if let Ok(report) = &evidence.discoverer {
        for service in &report.services {
            for instance in &service.instances {
                let id = (service.head.name.clone(), instance.address);
                instances.entry(id).or_default().report = Some(instance);
            }
        }
    }
    (instances, others)
}

/// The names of all services.
fn services<'e>(evidence: &'e Evidence, instances: &'e Instances<'_>) -> BTreeSet<&'e str> {
    let reported = evidence.discoverer.iter().flat_map(|report| &report.services);
    let reported = reported.map(|service| service.head.name.as_str());
    instances.keys().map(|(service, _)| service.as_str()).chain(reported).collect()
}

/// Whether the name is this instance's: its service's, its address, its key, its container's name or the beginning of its
/// container's id.
fn is_meant(evidence: &Evidence, is_service: bool, id: &(String, SocketAddr), known: &Known<'_>) -> bool {
    let name = evidence.name.as_str();
    let (service, address) = id;
    if is_service {
        return service == name;
    }
    if let Ok(wanted) = name.parse::<InstanceAddress>() {
        return wanted.socket_addr() == *address;
    }
    if known.entry.is_some_and(|entry| entry.path == name) {
        return true;
    }
    let (container, container_id) = container(known);
    let is_id = |id: &str| name.len() >= LEAST_ID && id.starts_with(name);
    container.as_deref() == Some(name) || container_id.as_deref().is_some_and(is_id)
}

/// The container's name and id.
fn container(known: &Known<'_>) -> (Option<String>, Option<String>) {
    let record = known.entry.and_then(|entry| Record::parse(&entry.value).ok());
    match (record, known.report) {
        (Some(record), _) => (record.name, record.id),
        (None, Some(report)) => (report.name.clone(), report.id.clone()),
        (None, None) => (None, None),
    }
}

/// Nothing is meant by the name that anybody knows.
fn unknown(evidence: &Evidence, instances: &Instances<'_>, services: &BTreeSet<&str>, bad: &[&NoKey<'_>]) -> Way {
    let name = &evidence.name;
    let mut way = Way::new(name.clone());
    add_etcd(&mut way, evidence);
    for key in bad {
        add_no_key(&mut way, evidence.store, key);
    }
    let addresses: Vec<String> = instances.keys().map(|(_, address)| address.to_string()).collect();
    let containers: Vec<String> = instances.values().filter_map(|known| container(known).0).collect();
    let known = services.iter().copied().chain(addresses.iter().map(String::as_str));
    let near = near(name, known.chain(containers.iter().map(String::as_str)));
    let mut advice = String::new();
    if !near.is_empty() {
        let _ = write!(advice, "Is one of these meant: {}? ", near.join(", "));
    }
    if evidence.store == StoreKind::Etcd {
        let explain = command("registrar", "explain");
        let _ = write!(advice, "A container that is not registered is explained on its host: `{explain} {name}`. ");
    }
    let _ = write!(advice, "`{}` shows what is registered", command("registrar", "list"));
    if let (Etcd::NotAsked, Some((_, only))) = (&evidence.etcd, outside_of(evidence)) {
        let _ = write!(advice, ". The discoverer knows nothing outside of {only}: give --etcd to see it");
    }
    match (&evidence.etcd, &evidence.discoverer) {
        (Etcd::Lists { .. }, _) if bad.is_empty() => {
            let prefix = evidence.prefix.path();
            way.no(
                Part::Etcd,
                format!("no key below {prefix} is of a service, an instance or a container {name}"),
                advice,
            );
        }
        (Etcd::NotAsked, Ok(_)) => {
            way.no(Part::Discoverer, format!("the discoverer knows no service, instance or container {name}"), advice);
        }
        _ => {}
    }
    add_discoverer(&mut way, evidence);
    way
}

fn add_no_key(way: &mut Way, store: StoreKind, key: &NoKey<'_>) {
    let advice = "Nobody routes to it. A key is /<prefix>/<service>/<host>:<port>, or /<prefix>/<host>:<port>: delete this one, and let \
                  whoever wrote it write such a one";
    way.no(Part::Etcd, format!("{} is in {store}, and is no instance: {}", key.path, key.reason), advice);
}

fn add_etcd(way: &mut Way, evidence: &Evidence) {
    match &evidence.etcd {
        Etcd::NotAsked => way.aside(
            Part::Etcd,
            "etcd was not asked: no --etcd is given. Give it, or --config as the discoverer has it; in a container, say both once, with \
             DISCOVERER_ETCD or DISCOVERER_CONFIG in its environment",
        ),
        Etcd::Away(why) => way.no(
            Part::Etcd,
            why.clone(),
            "HAProxy goes on with what was registered last. Does etcd run, and is --etcd right? docs/etcd.md says what each trouble means",
        ),
        Etcd::Lists { api, entries } => {
            let by = api.map_or_else(String::new, |api| format!(" by {api}"));
            let (store, count, prefix) = (evidence.store, entries.len(), evidence.prefix.path());
            way.yes(Part::Etcd, format!("{store} answers{by}: {count} keys below {prefix}"));
        }
    }
}

/// Whether the discoverer follows, and HAProxy does what it says.
fn add_discoverer(way: &mut Way, evidence: &Evidence) {
    let report = match &evidence.discoverer {
        Ok(report) => report,
        Err(away) => return way.away(Part::Discoverer, away),
    };
    let (registry, haproxy) = (&report.status.registry, &report.status.haproxy);
    let (id, endpoints) = (&report.status.discoverer.id, registry.endpoints.join(", "));
    let directory = |prefix: &str| prefix.trim_matches('/').to_owned();
    if directory(&registry.prefix) != directory(&evidence.prefix.path()) {
        let theirs = directory(&registry.prefix);
        way.no(
            Part::Discoverer,
            format!("discoverer {id} follows /{theirs}, not {}", evidence.prefix.path()),
            format!(
                "Give --key {theirs} here, or another --key to the discoverer, or --admin of the one that follows it"
            ),
        );
    }
    let error = registry.error.as_deref().map_or_else(String::new, |error| format!(": {error}"));
    match registry.connection {
        Connection::Connected => {
            way.yes(
                Part::Discoverer,
                format!("discoverer {id} follows /{} up to index {}", directory(&registry.prefix), registry.index),
            );
        }
        Connection::Connecting if registry.store == StoreKind::Memory => way.no(
            Part::Discoverer,
            format!("discoverer {id} waits until the containers were looked at"),
            "Does Docker answer at --docker? HAProxy keeps what it has",
        ),
        Connection::Connecting => way.no(
            Part::Discoverer,
            format!("discoverer {id} has not had an answer of etcd yet{error}"),
            format!("Does etcd run, and are these its endpoints: {endpoints}? HAProxy keeps the file that it has"),
        ),
        Connection::Unreachable => way.no(
            Part::Discoverer,
            format!("discoverer {id} gets no answer of etcd since {:.0}{error}", registry.since),
            format!(
                "HAProxy goes on with what was known then. Does etcd run, and can this host reach it at {endpoints}?"
            ),
        ),
    }
    if let Some(error) = &report.status.discoverer.template_error {
        way.aside(Part::Discoverer, format!("the template cannot be used, so that the last good one is: {error}"));
    }
    if let Some(error) = &haproxy.error {
        way.no(
            Part::Discoverer,
            format!("HAProxy does not run what is wanted: {error}"),
            format!(
                "HAProxy goes on with its last good configuration. `{}` tries the template, and `{}` says more",
                command("discoverer", "check"),
                command("discoverer", "status")
            ),
        );
    } else if !report.status.is_ready {
        way.no(
            Part::Discoverer,
            "HAProxy has not had a configuration of this discoverer yet",
            "Its log says what it waits for, and so does /health/ready at its admin address",
        );
    }
}

/// What all instances of a service share.
fn service_way(evidence: &Evidence, name: &str, instances: &Instances<'_>) -> Way {
    let mut way = Way::new(format!("service {name}"));
    add_etcd(&mut way, evidence);
    add_discoverer(&mut way, evidence);
    let service = evidence.discoverer.as_ref().ok().and_then(|report| find(report, name));
    if let Some(service) = service {
        add_service(&mut way, service);
    } else if evidence.discoverer.is_ok() {
        let of = || instances.iter().filter(|((service, _), _)| service == name);
        match outside_of(evidence) {
            Some((share, only))
                if of().next().is_some() && of().all(|(_, known)| tags_outside(&share, known).is_some()) =>
            {
                way.no(
                    Part::Discoverer,
                    format!("service {name} is left out by {only}: none of its instances has such a tag"),
                    OTHER_SHARE,
                );
            }
            _ => way.no(Part::Discoverer, format!("the discoverer knows no service {name}"), ""),
        }
    }
    let addresses = instances.keys().filter(|(service, _)| service == name).map(|(_, address)| *address);
    add_rules(&mut way, evidence, name, addresses);
    if let Ok(report) = &evidence.discoverer
        && report.status.haproxy.is_up == Some(false)
    {
        way.no(Part::Haproxy, "HAProxy does not run", "Its own log, and the discoverer's, say why it ended");
    }
    way
}

/// What to do about an instance that is outside of a discoverer's share.
const OTHER_SHARE: &str = "This discoverer follows a share of the registry. Give the container the tag (label SERVICE_TAGS), or ask the \
                           discoverer of its own share: --admin";

/// The share that is followed, and the flags that ask for it; none where everything is.
fn outside_of(evidence: &Evidence) -> Option<(Share, String)> {
    let share = match &evidence.discoverer {
        Ok(report) => Share::of(report.status.registry.only.iter().filter_map(|only| parse_tag(only).ok())),
        Err(_) => evidence.share.clone(),
    };
    let shown: Vec<String> = share.shown().iter().map(|only| format!("--only {only}")).collect();
    (!shown.is_empty()).then(|| (share, shown.join(" ")))
}

/// The tags of an instance that is outside of the share; none where it is in, or nobody knows.
fn tags_outside(share: &Share, known: &Known<'_>) -> Option<Vec<String>> {
    let record = known.entry.and_then(|entry| Record::parse(&entry.value).ok())?;
    (!share.holds(&record)).then_some(record.tags)
}

fn find<'r>(report: &'r Report, name: &str) -> Option<&'r ServiceReport> {
    report.services.iter().find(|service| service.head.name == name)
}

fn add_service(way: &mut Way, service: &ServiceReport) {
    let head = &service.head;
    let of = |what: &str| head.left_out.iter().filter(move |left| left.what == what).collect::<Vec<_>>();
    let settings = || {
        let host = head.host.as_ref().map(|host| format!("host {host}"));
        let path = head.path.as_ref().map(|path| format!("path {path}"));
        let listen = head.listen.map(|port| format!("port {port}"));
        let all: Vec<String> = [host, path, listen].into_iter().flatten().collect();
        if all.is_empty() { "neither host, path nor listen port".to_owned() } else { all.join(", ") }
    };
    if head.status == Status::Refused {
        match (of("service").first(), of("route").first()) {
            (Some(left), _) => way.no(
                Part::Discoverer,
                format!("service {} is left out: {}", head.name, left.reason),
                "The other services go on. It is tried again when it changes: mend its labels (SERVICE_...), or free what it asks for",
            ),
            (None, Some(left)) => way.no(
                Part::Discoverer,
                format!("service {} is left out: {}", head.name, left.reason),
                "Give one of the two another SERVICE_HOST, SERVICE_PATH or SERVICE_LISTEN, or stop the one that is too many",
            ),
            (None, None) => way.no(
                Part::Discoverer,
                format!("service {} is left out", head.name),
                format!("`{}` says why", command("discoverer", "status")),
            ),
        }
    } else {
        way.yes(Part::Discoverer, format!("service {} is known: {}, {}", head.name, head.mode, settings()));
        for left in of("service").into_iter().chain(of("route")) {
            way.aside(Part::Discoverer, format!("a part of it is left out: {}", left.reason));
        }
    }
    for left in of("setting") {
        way.aside(Part::Discoverer, format!("a setting of it is left out: {}", left.reason));
    }
}

/// Which rules of the file lead to the service.
fn add_rules(way: &mut Way, evidence: &Evidence, name: &str, addresses: impl Iterator<Item = SocketAddr>) {
    let file = match &evidence.file {
        Ok(file) => file,
        Err(away) => return way.away(Part::File, away),
    };
    let output = &evidence.output;
    let mut backends: BTreeSet<&str> = BTreeSet::new();
    for address in addresses {
        backends.extend(file.servers_at(address).map(|(section, _)| section.name.as_str()));
    }
    if file.has_backend(name) {
        backends.insert(name);
    }
    if backends.is_empty() {
        return way.no(Part::File, format!("{output} has no backend {name}"), other_file(evidence));
    }
    let mut told = 0;
    for backend in &backends {
        if let Some(binds) = file.listens(backend) {
            way.yes(
                Part::File,
                format!("{output}: section listen {backend} takes connections at {}", binds.join(", ")),
            );
            told += 1;
        }
        let ways = file.ways_to(backend);
        for rule in ways.iter().take(SHOWN) {
            way.yes(Part::File, rule.shown(output));
        }
        if ways.len() > SHOWN {
            way.aside(Part::File, format!("{} more rules lead to backend {backend}", ways.len() - SHOWN));
        }
        told += ways.len();
    }
    if told == 0 {
        add_unnamed(way, file, output, &backends);
    }
}

/// What may lead to backends that no rule names.
fn add_unnamed(way: &mut Way, file: &File, output: &str, backends: &BTreeSet<&str>) {
    let names = backends.iter().copied().collect::<Vec<_>>().join(", ");
    if backends.iter().all(|backend| file.is_unled(backend)) {
        return way.no(
            Part::File,
            format!("no rule in {output} leads to backend {names}"),
            "Give its containers a label SERVICE_HOST, SERVICE_PATH or, for TCP, SERVICE_LISTEN (a port that the discoverer's --listen-ports \
             allows); or make it the one that gets what no rule takes: --set default_service=NAME",
        );
    }
    let open = file.ways_to_any();
    for rule in open.iter().take(SHOWN) {
        way.aside(Part::File, rule.shown(output));
    }
    if open.len() > SHOWN {
        way.aside(Part::File, format!("{} more rules do not say where they lead", open.len() - SHOWN));
    }
    let (why, advice) = if open.is_empty() {
        (
            format!("{output} has no rule: those that may lead to backend {names} stand in another file"),
            "Look into the other files that HAProxy is started with",
        )
    } else {
        (
            format!(
                "no rule in {output} names backend {names}, and an expression or a variable of the environment may lead there"
            ),
            "What it says at a request is known to HAProxy alone: ask with such a request. Where it reads a map, `show map FILE` at HAProxy's \
             stats socket shows what leads where",
        )
    };
    way.away(Part::File, &Away::unknown(why, advice));
}

/// What to do where the file does not have what the discoverer has.
fn other_file(evidence: &Evidence) -> String {
    match &evidence.discoverer {
        Ok(report) if report.status.discoverer.output != evidence.output => {
            format!("The discoverer writes another file: give --output {}", report.status.discoverer.output)
        }
        Ok(_) => format!(
            "The file follows within seconds. Where it does not: does the template write all services? `{}` prints what it makes",
            command("discoverer", "render")
        ),
        Err(_) => "Is that the discoverer's --output? Without a discoverer nobody writes it".to_owned(),
    }
}

/// The way of one instance, without what its service shares.
fn instance_way(evidence: &Evidence, service: &str, address: SocketAddr, known: Known<'_>) -> Way {
    let mut way = Way::new(address.to_string());
    let is_drained = add_key(&mut way, evidence, service, address, known);
    let outside = outside_of(evidence).and_then(|(share, only)| Some((only, tags_outside(&share, &known)?)));
    if let Some((only, tags)) = &outside {
        let has =
            if tags.is_empty() { "it has no tags".to_owned() } else { format!("its tags are {}", tags.join(", ")) };
        way.no(Part::Discoverer, format!("{address} is left out by {only}: {has}"), OTHER_SHARE);
    } else if let Ok(report) = &evidence.discoverer {
        let head = find(report, service);
        let is_shared = head.is_some_and(|service| service.head.status == Status::Refused);
        let left: &[LeftOutReport] = head.map_or(&[], |service| &service.head.left_out);
        let left = left.iter().chain(&report.status.left_out);
        let left =
            left.into_iter().find(|left| left.address == Some(address) && left.service.as_deref() == Some(service));
        add_instance(&mut way, evidence.store, known, left, is_shared, is_drained);
    }
    let mut servers = Vec::new();
    if let Ok(file) = &evidence.file {
        for (section, server) in file.servers_at(address) {
            let at = format!("{}:{}", evidence.output, server.line.number);
            let text = format!("{at}: backend {}: {}", section.name, server.line.text);
            if server.is_disabled {
                way.no(
                    Part::File,
                    format!("{text}: it is in maintenance from the start"),
                    "The template writes `disabled` there",
                );
            } else if server.weight == Some(0) {
                let advice = if is_drained { "" } else { "Its label SERVICE_WEIGHT is 0, or the template says so" };
                way.no(Part::File, format!("{text}: with weight 0 it gets nothing new"), advice);
            } else {
                way.yes(Part::File, text);
            }
            servers.push((section.name.as_str(), server.name.as_str()));
        }
        if servers.is_empty() {
            way.no(Part::File, format!("{} has no server at {address}", evidence.output), other_file(evidence));
        }
    }
    add_haproxy(&mut way, evidence, address, known, &servers);
    way
}

/// What the key says. Gives whether it drains.
fn add_key(way: &mut Way, evidence: &Evidence, service: &str, address: SocketAddr, known: Known<'_>) -> bool {
    if !matches!(evidence.etcd, Etcd::Lists { .. }) {
        return known.report.is_some_and(|report| report.status == Status::Draining);
    }
    let Some(entry) = known.entry else {
        let (name, _) = container(&known);
        let whom = name.unwrap_or_else(|| "CONTAINER".to_owned());
        let what = format!("no key of service {service} in {} is of {address}", evidence.store);
        let explain = command("registrar", "explain");
        let advice = match evidence.store {
            StoreKind::Etcd => format!(
                "Its key has expired: its registrar has not renewed it. Does the registrar run on its host, and reach etcd? \
                 `{explain} {whom}` there says why it is not registered"
            ),
            StoreKind::Memory => format!("`{explain} {whom}` says why its container is not registered"),
        };
        way.no(Part::Etcd, what, advice);
        return false;
    };
    let (path, store) = (&entry.path, evidence.store);
    let left = match entry.ttl.map(|ttl| Duration::from_secs(ttl.as_secs())) {
        Some(ttl) => format!("{}s left of its time to live", ttl.as_secs()),
        None => "it does not expire".to_owned(),
    };
    let record = match Record::parse(&entry.value) {
        Ok(record) => record,
        Err(error) => {
            way.no(
                Part::Etcd,
                format!("{path} is in {store}, {left}, and cannot be read: {error}"),
                "A value is `running` or one JSON object (docs/keys.md). Whoever wrote it has to write another; an agent writes it anew \
                 when the key is deleted",
            );
            return false;
        }
    };
    let name = record.name.as_ref().map(|name| format!("container {name}"));
    let id = record.id.as_ref().map(|id| format!("({})", id.chars().take(SHORT_ID).collect::<String>()));
    let host = record.host.as_ref().map(|host| format!("on {host}"));
    let of: Vec<String> = [name, id, host].into_iter().flatten().collect();
    let of = if of.is_empty() { String::new() } else { format!("; {}", of.join(" ")) };
    let writer = record.agent.as_ref().map_or_else(String::new, |agent| format!("; written by {agent}"));
    let rest = format!("{left}{of}{writer}");
    match record.status {
        RecordStatus::Running => {
            way.yes(Part::Etcd, format!("{path} is in {store}: running; {rest}"));
            false
        }
        RecordStatus::Draining => {
            let whom = record.name.as_deref().unwrap_or("CONTAINER");
            let at = record.host.as_ref().map_or_else(|| "its host".to_owned(), Clone::clone);
            let advice = if record.stopping {
                format!(
                    "Docker has told the container to stop. If it does not end, its agent takes it back: `{} {whom}` on {at}",
                    command("registrar", "explain")
                )
            } else {
                format!("Somebody has drained it. `registrar undrain {whom}`, on {at}, takes it back")
            };
            let text =
                format!("{path} is in {store}: draining, so that it finishes what it has and gets nothing new; {rest}");
            way.no(Part::Etcd, text, advice);
            true
        }
    }
}

/// What the discoverer makes of an instance.
fn add_instance(
    way: &mut Way,
    store: StoreKind,
    known: Known<'_>,
    left: Option<&LeftOutReport>,
    is_shared: bool,
    is_drained: bool,
) {
    let Some(report) = known.report else {
        let text = match left {
            Some(left) => format!("the discoverer leaves it out: {}", left.reason),
            None => "the discoverer does not know it".to_owned(),
        };
        let advice = match store {
            StoreKind::Etcd => format!(
                "It was written a moment ago, or the discoverer follows another etcd, or the other of etcd's two APIs (--etcd-api): \
                 `{}` shows its endpoints and its index",
                command("discoverer", "status")
            ),
            StoreKind::Memory => "It was written a moment ago: ask again".to_owned(),
        };
        return way.no(Part::Discoverer, text, advice);
    };
    match report.status {
        Status::Up | Status::Empty => way.yes(Part::Discoverer, format!("the discoverer has it, as server {}", report.server)),
        Status::Draining => way.no(
            Part::Discoverer,
            "the discoverer lets it finish what it has",
            if is_drained { "" } else { "It is told so by its key: `registrar undrain CONTAINER` on its host" },
        ),
        Status::Suspect => way.no(
            Part::Discoverer,
            "it is suspect: its key has expired, and HAProxy's own check still reaches it, so that it stays for now (--suspect-for)",
            match store {
                StoreKind::Etcd => "It goes unless its registrar writes the key again: does that run, and reach etcd?",
                StoreKind::Memory => "It goes unless its container answers its check again",
            },
        ),
        Status::Refused if is_shared => way.no(Part::Discoverer, "it is left out with its service", ""),
        Status::Refused => {
            let reason = report.reason.as_deref().or(left.map(|left| left.reason.as_str())).unwrap_or("no reason is told");
            let advice = match left.map(|left| left.what.as_str()) {
                Some("instance") => {
                    "Two keys name one address: the newest container has it. The older key goes with its time to live where its container is \
                     gone; else two hosts register the same address, and each needs an --ip of its own"
                }
                _ => "Whoever wrote its key has to write another",
            };
            way.no(Part::Discoverer, format!("the discoverer leaves it out: {reason}"), advice);
        }
    }
}

/// What HAProxy says of an instance: asked itself, else over the discoverer.
fn add_haproxy(way: &mut Way, evidence: &Evidence, address: SocketAddr, known: Known<'_>, servers: &[(&str, &str)]) {
    let reported = known.report.and_then(|report| report.haproxy.clone());
    let stats = match &evidence.stats {
        Some(Ok(stats)) => stats,
        Some(Err(away)) if reported.is_none() => return way.away(Part::Haproxy, away),
        None if reported.is_none() => {
            let advice =
                "Give --runtime-socket as the discoverer has it (with --supervise: runtime.sock in its --state-dir)";
            return way
                .away(Part::Haproxy, &Away::unknown("HAProxy was not asked: no --runtime-socket is given", advice));
        }
        Some(Err(_)) | None => {
            // The discoverer has asked it.
            return reported.iter().for_each(|server| add_server(way, address, "", server));
        }
    };
    let mut told = false;
    for (backend, server) in servers {
        if let Some(stat) = stats.find(backend, server, address) {
            add_server(way, address, &format!(" {backend}/{server}"), &ServerReport::new(stat));
            told = true;
        }
    }
    if let (false, Some(server)) = (told, reported) {
        add_server(way, address, "", &server);
        told = true;
    }
    if !told {
        let status = command("discoverer", "status");
        let advice =
            format!("What HAProxy runs is not what the file says: `{status}` says what came of the last reload");
        way.no(
            Part::Haproxy,
            format!("HAProxy has no server at {address}"),
            if servers.is_empty() { "" } else { &advice },
        );
    }
}

fn add_server(way: &mut Way, address: SocketAddr, name: &str, server: &ServerReport) {
    let ServerReport { check, is_down, check_status, last_check, weight, sessions, queued, .. } = server;
    let words: Vec<&str> = check_status.iter().chain(last_check).map(String::as_str).collect();
    let words = if words.is_empty() { String::new() } else { format!(" ({})", words.join(": ")) };
    let state = format!(
        "HAProxy's server{name} is {check}{words}, weight {weight}, with {sessions} sessions and {queued} that wait"
    );
    if *is_down {
        way.no(Part::Haproxy, state, check_advice(address, check_status.as_deref().unwrap_or_default()));
    } else if check.starts_with("MAINT") {
        way.no(
            Part::Haproxy,
            format!("{state}: it is in maintenance"),
            "Where it is not on its way out, somebody has set it so: `set server BACKEND/SERVER state ready` at HAProxy's stats socket takes it \
             back, and so does the next reload",
        );
    } else if check.starts_with("DRAIN") || *weight == 0 {
        way.no(Part::Haproxy, format!("{state}: it gets nothing new"), "");
    } else {
        way.yes(Part::Haproxy, state);
    }
}

/// What to do about a check that fails (HAProxy's management guide, section 9.1, "check_status").
fn check_advice(address: SocketAddr, status: &str) -> String {
    match status {
        "L4CON" => format!(
            "Nothing takes connections at {address}, seen from the load balancer. Does the application listen on 0.0.0.0 in its container, is \
             its port still published, and is the address that of its host (--ip)? Try `curl -v http://{address}/` there"
        ),
        "L4TOUT" => format!(
            "{address} does not answer, seen from the load balancer: is the host up, and does a firewall let the load balancer through?"
        ),
        "L6RSP" | "L6TOUT" => "TLS fails there: SERVICE_PROTO says what the application speaks".to_owned(),
        "L7STS" => "The application answers the check with a status that is none of 200 to 399: its log may say why; SERVICE_CHECK_HTTP says \
                    which path is asked"
            .to_owned(),
        "L7RSP" => "What answers speaks no HTTP, or not this one: SERVICE_PROTO says what the application speaks".to_owned(),
        "L7TOUT" => "The application takes the connection and does not answer: does it hang?".to_owned(),
        _ => format!("HAProxy's own check of {address} fails, seen from the load balancer"),
    }
}
