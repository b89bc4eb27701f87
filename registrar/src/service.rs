//! From an inspected container to what is registered for it, and what is not and why. Pure: no I/O, no clock.
//!
//! `labels` is what the container says of itself, `alias` what it says in the words of other schemes; `ports` is how
//! others come to it, `mapping` finds the host's port; `check` is how an instance is asked, `refusal` why something is
//! left out. What a label says wrong leaves its port out, and nothing else.

mod alias;
mod check;
mod domains;
mod labels;
mod mapping;
mod ports;
mod refusal;
mod rule;
mod slip;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use bollard::models::{ContainerInspectResponse, ContainerStateStatusEnum, HealthStatusEnum};
use registry::settings::HostNames;
use registry::{InstanceAddress, InstanceKey, NameError, Prefix, Record, ServiceName, Status, settings};

pub use check::{Check, CheckKind, Expected, HttpCheck};
pub use domains::{DomainError, Domains};
pub use mapping::{MappingError, address};
pub use ports::ContainerPort;
pub(crate) use ports::own_addresses;
pub use refusal::{Reason, Refusal};
pub use rule::RuleError;

use crate::config::CheckFlags;
use alias::Aliases;
use labels::{Labels, PortLabels};
use ports::{First, Ports};

/// How many labels and variables of one container are read, of those that may mean something here. Each may be for a port of its own,
/// and all that hold for a port are gone through for each.
const LABELS_LIMIT: usize = 1000;
/// How long all labels of one container may be, in bytes. Docker repeats them in each event of the container, where a character may
/// take six: an event must stay below the limit on one, or nothing that happens to the container is heard of.
const LABELS_SIZE: usize = 128 << 10;
const _: () = assert!(6 * LABELS_SIZE < crate::docker::EVENT, "with room for what else an event has");

/// What holds for all containers of this host: what the user said, and what the agent found out about its host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scope {
    /// The directory below which each service has one of its own.
    pub prefix: Prefix,
    /// The agent's id.
    pub agent: String,
    /// This host's name.
    pub host_name: String,
    /// This host's address, where the user said it.
    pub ip: Option<IpAddr>,
    /// The addresses of the interface with the default route.
    pub default_address: DefaultAddress,
    /// Only containers that ask for it are registered.
    pub explicit: bool,
    /// The containers' own addresses and ports are registered.
    pub internal: bool,
    /// The network whose addresses are meant then.
    pub network: Option<String>,
    /// The host names that containers may claim.
    pub domains: Domains,
    /// Whether checks may run commands in containers.
    pub allow_exec: bool,
    /// How containers are asked, unless they say otherwise.
    pub check: CheckFlags,
}

/// The addresses of the interface with the default route: one of each family, where there is one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DefaultAddress {
    /// That of IPv4.
    pub v4: Option<Ipv4Addr>,
    /// That of IPv6.
    pub v6: Option<Ipv6Addr>,
}

impl DefaultAddress {
    /// Both, IPv4 first.
    pub fn all(self) -> impl Iterator<Item = IpAddr> {
        self.v4.map(IpAddr::from).into_iter().chain(self.v6.map(IpAddr::from))
    }

    /// The first that is one of these.
    pub fn any_of(self, addresses: &BTreeSet<IpAddr>) -> Option<IpAddr> {
        self.all().find(|address| addresses.contains(address))
    }

    /// These, and of a family of which there is none, the other's.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self { v4: self.v4.or(other.v4), v6: self.v6.or(other.v6) }
    }
}

/// What was found in one container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Findings {
    /// What is to be registered while it answers; sorted by key, each key once.
    pub registrations: Vec<Registration>,
    /// What was left out, and why; sorted by port.
    pub refusals: Vec<Refusal>,
}

/// One instance of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registration {
    /// Its key, in the layout with a directory for each service.
    pub key: InstanceKey,
    /// What is known of it, as running.
    pub record: Record,
    /// The container's port.
    pub port: u16,
    /// Where the address in the key comes from.
    pub address_from: AddressSource,
    /// How it is asked.
    pub check: Check,
}

/// Where the address that is registered comes from; the first of these that there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AddressSource {
    /// `SERVICE_IP`.
    Label,
    /// `--ip`.
    Flag,
    /// The one address that the port is published on.
    Published,
    /// The interface with the default route.
    DefaultRoute,
    /// The container's own (`--internal`).
    Container,
}

/// Reads what is to be registered for a container, and what is not and why.
///
/// `network_of` is the container whose network this one shares (`network_mode: container:X`), where there is one.
pub fn services(
    container: &ContainerInspectResponse,
    network_of: Option<&ContainerInspectResponse>,
    scope: &Scope,
) -> Findings {
    if let Some(state) = standstill(container) {
        return Findings::refused(Refusal::of_container(Reason::NotRunning(state)));
    }
    let (labels, mut refusals) = Labels::of(container);
    let count = labels.all.keys().filter(|label| is_ours(label)).count();
    if count > LABELS_LIMIT {
        return Findings::refused(Refusal::of_container(Reason::TooManyLabels { count, limit: LABELS_LIMIT }));
    }
    let all = container.config.iter().filter_map(|config| config.labels.as_ref()).flatten();
    let size = all.map(|(name, value)| name.len() + value.len()).sum::<usize>();
    if size > LABELS_SIZE {
        return Findings::refused(Refusal::of_container(Reason::LabelsTooLong { size, limit: LABELS_SIZE }));
    }
    if let Some(setting) = labels.general("ignore") {
        return Findings::refused(Refusal::of_setting(setting, Reason::Ignored));
    }
    let mut named = labels.ports();
    for (port, setting) in Aliases::named_ports(&labels) {
        named.entry(port).or_insert(setting);
    }
    let asked = labels.ask() || Aliases::ask(&labels);
    let ports = Ports::of(container, network_of, &named, asked, scope);
    let mut numbers = ports.numbers();
    for port in ports.numbers() {
        if let Some(setting) = labels.ignored(port) {
            numbers.remove(&port);
            refusals.push(Refusal::of_setting(setting, Reason::Ignored).at(ContainerPort::tcp(port)));
        }
    }
    let aliases = Aliases::of(&labels, &numbers);
    if let Some(setting) = aliases.disabled.as_ref().filter(|_| !labels.ask()) {
        return Findings::refused(Refusal::of_setting(setting, Reason::Ignored));
    }
    refusals.extend(labels.slips(asked || !scope.explicit));
    refusals.extend(aliases.refusals.iter().cloned());
    refusals.extend(ports.refusals.iter().cloned());

    let (wanted, not_asked): (Vec<_>, Vec<_>) = numbers
        .into_iter()
        .map(|port| labels.for_port(port, &aliases))
        .partition(|labels| !scope.explicit || labels.asks());
    let not_asked = not_asked.into_iter().map(|labels| ContainerPort::tcp(labels.port));
    refusals.extend(not_asked.map(|port| Refusal::of_port(port, Reason::NotAsked)));
    let has_several_ports = wanted.len() > 1;
    let mut registrations = BTreeMap::new();
    for labels in wanted {
        let mut reader = Reader { container, labels, ports: &ports, has_several_ports, scope, refusals: Vec::new() };
        let found = reader.registrations();
        let is_refused = reader.refusals.iter().any(|refusal| !refusal.reason.is_only_told());
        let port = ContainerPort::tcp(labels.port);
        refusals.extend(reader.refusals.into_iter().map(|refusal| refusal.at(port)));
        let found = found.filter(|_| !is_refused).into_iter().flatten();
        registrations.extend(found.map(|registration| (registration.key.clone(), registration)));
    }
    let mut unique = Vec::new();
    for refusal in refusals {
        if !unique.contains(&refusal) {
            unique.push(refusal);
        }
    }
    unique.sort_by(|a, b| (&a.port, &a.label).cmp(&(&b.port, &b.label)));
    Findings { registrations: registrations.into_values().collect(), refusals: unique }
}

/// Whether a label or variable may mean something here.
fn is_ours(label: &str) -> bool {
    let starts_with = |prefix: &str| label.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix));
    ["service_", "virtual_", "traefik."].into_iter().any(starts_with)
}

/// The labels and variables of a container that mean something here, sorted.
pub fn said(container: &ContainerInspectResponse) -> Vec<(String, String)> {
    let (labels, _) = Labels::of(container);
    let ours = labels.all.into_iter().filter(|(label, _)| is_ours(label));
    ours.map(|(label, setting)| (label, setting.value)).take(LABELS_LIMIT).collect()
}

/// A rule of Traefik's as host names and a path, for [`crate::fuzz`].
#[cfg(feature = "fuzz")]
pub(crate) fn read_rule(text: &str) -> Result<(Vec<String>, Option<String>), RuleError> {
    rule::read(text).map(|route| (route.hosts, route.path))
}

/// The id or name of the container whose network this one shares.
pub fn network_owner(container: &ContainerInspectResponse) -> Option<&str> {
    container.host_config.as_ref()?.network_mode.as_deref()?.strip_prefix("container:")
}

impl Findings {
    fn refused(refusal: Refusal) -> Self {
        Self { registrations: Vec::new(), refusals: vec![refusal] }
    }
}

/// In which state the container is that does not take requests. `None`: it runs.
fn standstill(container: &ContainerInspectResponse) -> Option<String> {
    let state = container.state.as_ref();
    let is = |flag: fn(&bollard::models::ContainerState) -> Option<bool>| state.and_then(flag) == Some(true);
    let runs = is(|state| state.running) && !is(|state| state.paused) && !is(|state| state.restarting);
    let called = state.and_then(|state| state.status).filter(|status| *status != ContainerStateStatusEnum::EMPTY);
    (!runs).then(|| called.map_or_else(|| "in no state that is known".to_owned(), |status| status.to_string()))
}

/// Reads one port. What is wrong is kept, so that all of it is told at once.
struct Reader<'a> {
    container: &'a ContainerInspectResponse,
    labels: PortLabels<'a>,
    ports: &'a Ports,
    has_several_ports: bool,
    scope: &'a Scope,
    refusals: Vec<Refusal>,
}

impl Reader<'_> {
    /// One registration for each name. `None`, or with refusals beside: nothing is registered.
    fn registrations(&mut self) -> Option<Vec<Registration>> {
        let port = self.labels.port;
        self.refusals.extend(check::strangers(&self.labels));
        let http_path = check::http_path(&self.labels);
        let http_path = self.keep(http_path).flatten();
        let attributes = self.attributes(http_path);
        let names = self.names(&attributes);
        let names = self.keep(names);
        let address = self.address();
        let (address, address_from) = self.keep(address)?;
        let surroundings = check::Surroundings {
            own_first: self.ports.targets(port, address, First::Own),
            registered_first: self.ports.targets(port, address, First::Registered),
            proxied: self.ports.is_published(port),
            address,
            has_healthcheck: has_healthcheck(self.container),
            tls: attributes.get("proto").is_some_and(|proto| proto == "https"),
            host: attributes.get("host").and_then(|hosts| Some(hosts.split(',').next()?.to_owned())),
            allow_exec: self.scope.allow_exec,
            defaults: self.scope.check,
        };
        let check = check::read(&self.labels, surroundings);
        let check = self.keep(check);
        if check.as_ref().is_some_and(|check| check.kind == CheckKind::Docker) {
            self.refusals.extend(check::counted_by_docker(&self.labels));
        }
        let record = self.record(attributes);
        let (names, check, record) = (names?, check?, record?);
        let registration = |name| Registration {
            key: InstanceKey::nested(self.scope.prefix.clone(), name, address),
            record: record.clone(),
            port,
            address_from,
            check: check.clone(),
        };
        Some(names.into_iter().map(registration).collect())
    }

    fn keep<T>(&mut self, result: Result<T, Refusal>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(refusal) => {
                if !self.refusals.contains(&refusal) {
                    self.refusals.push(refusal);
                }
                None
            }
        }
    }

    /// The names of the services: those that are said, else the first host name, else the image's.
    fn names(&self, attributes: &BTreeMap<String, String>) -> Result<BTreeSet<ServiceName>, Refusal> {
        let Some(setting) = self.labels.get("name")? else {
            let host = attributes.get("host").and_then(|hosts| hosts.split(',').next());
            let name = match host {
                Some(host) => {
                    let path = attributes.get("path").map_or("", |path| path.trim_end_matches('/'));
                    format!("{host}{}", path.replace(['/', '~'], "-"))
                }
                None => default_name(self.container).ok_or(Refusal::of_container(Reason::NoName))?.to_owned(),
            };
            let is_of_this_port =
                host.is_some() && self.labels.get("host")?.is_some_and(labels::Setting::is_of_one_port);
            let name = if is_of_this_port { name } else { self.with_port(&name) };
            let refused = |error| Refusal::of_container(Reason::DefaultName(name.clone(), error));
            return Ok([name.parse().map_err(refused)?].into());
        };
        let is_of_this_port = setting.is_of_one_port();
        let names = setting.value.split(',').map(|name| {
            let name = name.trim();
            let name = if is_of_this_port { name.to_owned() } else { self.with_port(name) };
            name.parse().map_err(|error: NameError| Refusal::of_setting(setting, error.into()))
        });
        names.collect()
    }

    /// Ports that share what they are called by are told apart.
    fn with_port(&self, name: &str) -> String {
        if self.has_several_ports { format!("{name}-{}", self.labels.port) } else { name.to_owned() }
    }

    fn address(&self) -> Result<(InstanceAddress, AddressSource), Refusal> {
        let said = self.labels.get("ip")?;
        let ip = |setting: &labels::Setting| {
            let ip = setting.value.parse::<IpAddr>().ok();
            ip.ok_or_else(|| Refusal::of_setting(setting, Reason::Value("an IP address such as 10.0.0.1")))
        };
        let ip = said.map(ip).transpose()?;
        self.ports.address(self.labels.port, ip, self.scope).map_err(|reason| match (said, reason) {
            (Some(setting), reason @ Reason::Address(_)) => Refusal::of_setting(setting, reason),
            (_, reason) => Refusal::of_container(reason),
        })
    }

    /// Settings and whatever else is said, in words that the discoverer reads.
    fn attributes(&mut self, http_path: Option<(bool, settings::UrlPath)>) -> BTreeMap<String, String> {
        let mut attributes = BTreeMap::new();
        for name in self.labels.names() {
            if matches!(name, "name" | "tags" | "ignore" | "weight" | "ip") || check::is_about_check(name) {
                continue;
            }
            let setting = self.labels.get(name);
            let Some(setting) = self.keep(setting).flatten() else { continue };
            let attribute = [(name.to_owned(), setting.value.clone())].into();
            // Read as others will, so that it is known which label is to blame.
            let alone = Record { attributes: attribute, ..Record::default() };
            let reason = match settings::check(name, &setting.value) {
                Ok(()) => Record::parse(&alone.to_value()).err().map(Reason::from),
                Err(error) => Some(error.into()),
            };
            match reason {
                None => attributes.extend(alone.attributes),
                Some(reason) => self.refusals.push(Refusal::of_setting(setting, reason)),
            }
        }
        // One form for the same hosts, so that instances agree.
        if let Some(hosts) = attributes.get("host").and_then(|hosts| hosts.parse::<HostNames>().ok()) {
            let outside = hosts.iter().find(|host| !self.scope.domains.contains(host));
            if let Some(host) = outside {
                let reason = Reason::Domain { host: host.to_owned(), domains: self.scope.domains.to_string() };
                self.refuse_setting("host", reason);
            }
            attributes.insert("host".to_owned(), hosts.to_string());
        }
        self.bound(&attributes);
        if let Some((over_tls, path)) = http_path {
            if over_tls {
                attributes.entry("proto".to_owned()).or_insert_with(|| "https".to_owned());
            }
            // HAProxy asks over what the instance is said to speak.
            if !over_tls || attributes.get("proto").is_some_and(|proto| proto == "https") {
                attributes.insert("check_http".to_owned(), path.to_string());
            }
        }
        attributes
    }

    /// With `--domains`, what is registered must name what it claims: without a host name it would be routed on every
    /// host, or become an instance of a service whose other instances name one.
    fn bound(&mut self, attributes: &BTreeMap<String, String>) {
        if self.scope.domains.is_any() {
            return;
        }
        let is_tcp = attributes.get("mode").is_some_and(|mode| mode == "tcp");
        if is_tcp && matches!(self.labels.get("listen"), Ok(None)) {
            self.refusals.push(Refusal::of_container(Reason::NoListen));
        } else if !is_tcp && matches!(self.labels.get("host"), Ok(None)) {
            let domains = self.scope.domains.to_string();
            self.refusals.push(Refusal::of_container(Reason::NoHostName { domains, asked: self.labels.asks() }));
        }
    }

    fn refuse_setting(&mut self, name: &str, reason: Reason) {
        let refusal = match self.labels.get(name) {
            Ok(Some(setting)) => Refusal::of_setting(setting, reason),
            _ => Refusal::of_container(reason),
        };
        self.refusals.push(refusal);
    }

    fn record(&mut self, attributes: BTreeMap<String, String>) -> Option<Record> {
        let weight = self.weight();
        let weight = self.keep(weight)?;
        let tags = self.labels.get("tags");
        let tags = self.keep(tags)?.map(|setting| split_tags(&setting.value)).unwrap_or_default();
        let name = self.container.name.as_deref().map(|name| name.trim_start_matches('/').to_owned());
        let started = self.container.state.as_ref().and_then(|state| state.started_at.as_deref());
        let record = Record {
            status: Status::Running,
            stopping: false,
            id: self.container.id.clone(),
            agent: Some(self.scope.agent.clone()),
            name: name.filter(|name| !name.is_empty()),
            host: Some(self.scope.host_name.clone()),
            weight,
            tags,
            attributes,
            // Docker writes the year 1 for never.
            registered: started
                .filter(|started| !started.starts_with("0001-"))
                .and_then(|started| started.parse().ok()),
        };
        // What goes to etcd is what others will read.
        let read = Record::parse(&record.to_value()).map_err(|error| Refusal::of_container(error.into()));
        self.keep(read)
    }

    fn weight(&self) -> Result<Option<u16>, Refusal> {
        let Some(setting) = self.labels.get("weight")? else { return Ok(None) };
        let weight = setting.value.parse().ok().filter(|weight| *weight <= registry::record::WEIGHT_LIMIT);
        weight.map(Some).ok_or_else(|| Refusal::of_setting(setting, Reason::Value("a number from 0 to 256")))
    }
}

/// What a container is called by that does not say: the last part of its image's name, or its name in Docker Compose.
fn default_name(container: &ContainerInspectResponse) -> Option<&str> {
    let config = container.config.as_ref()?;
    let of_image = config.image.as_deref().and_then(image_name);
    let of_compose = || config.labels.as_ref()?.get("com.docker.compose.service").map(String::as_str);
    of_image.or_else(of_compose)
}

/// `registry.example:5000/team/web:1.2@sha256:...` is called `web`. An image without a name has its id in its place.
fn image_name(image: &str) -> Option<&str> {
    let is_id = image.starts_with("sha256:") || (image.len() == 64 && image.bytes().all(|b| b.is_ascii_hexdigit()));
    let last = image.split('@').next()?.rsplit('/').next()?;
    last.split(':').next().filter(|name| !name.is_empty() && !is_id)
}

/// Words joined by commas; `\,` is a comma in a word.
fn split_tags(text: &str) -> Vec<String> {
    let mut tags = vec![String::new()];
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        match (c, tags.last_mut()) {
            (',', _) => tags.push(String::new()),
            ('\\', Some(tag)) if rest.next_if_eq(&',').is_some() => tag.push(','),
            (c, Some(tag)) => tag.push(c),
            (_, None) => {}
        }
    }
    tags.into_iter().map(|tag| tag.trim().to_owned()).filter(|tag| !tag.is_empty()).collect()
}

fn has_healthcheck(container: &ContainerInspectResponse) -> bool {
    let test = container.config.as_ref().and_then(|config| config.healthcheck.as_ref()?.test.as_deref());
    let is_test = |test: &[String]| test.first().is_some_and(|first| first != "NONE");
    let health = container.state.as_ref().and_then(|state| state.health.as_ref()?.status);
    let has_state = health.is_some_and(|status| !matches!(status, HealthStatusEnum::EMPTY | HealthStatusEnum::NONE));
    test.is_some_and(is_test) || has_state
}

#[cfg(test)]
mod tests;
