//! What is told to whoever asks: the picture and HAProxy's own figures as plain data, which JSON carries and templates and
//! other programs read. Pure: no I/O, no clock.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::ops::Bound;

use jiff::Timestamp;
use registry::ServiceName;
use serde::{Deserialize, Serialize};

use crate::feed::Note;
pub use crate::haproxy::{ServerStat, Stats};
use crate::model::{Instance, Service, Services};
use crate::options::UnreadOption;
use crate::trouble::{Trouble, troubles};
pub use crate::view::{Connection, RegistryView, ReloadView};
use crate::view::{LeftOut, Part, View};

/// Everything.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// All but the services.
    #[serde(flatten)]
    pub status: StatusReport,
    /// The services, by name. Those that HAProxy does not get are among them.
    pub services: Vec<ServiceReport>,
}

/// All but the services.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StatusReport {
    /// Rises with each change.
    pub version: u64,
    /// When that was.
    pub at: Timestamp,
    /// Whether HAProxy has had a configuration of this process.
    pub is_ready: bool,
    /// The discoverer.
    pub discoverer: DiscovererReport,
    /// The registry.
    pub registry: RegistryView,
    /// HAProxy.
    pub haproxy: HaproxyReport,
    /// How many services there are, by status.
    pub services_by_status: BTreeMap<String, usize>,
    /// How many instances there are, by status.
    pub instances_by_status: BTreeMap<String, usize>,
    /// What is wrong, the worst first; nothing where all is well.
    pub troubles: Vec<Trouble>,
    /// What HAProxy does not get, and why.
    pub left_out: Vec<LeftOutReport>,
    /// How many keys besides those are no instances.
    pub more_left_out: usize,
    /// The services that have instances, and to which no rule of HAProxy's file leads; none where a rule names its backend by an
    /// expression or a variable of the environment, so that it may lead to any, and where the file has no rule.
    #[serde(default)]
    pub unrouted: Vec<String>,
}

/// The discoverer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiscovererReport {
    /// Its id in the registry.
    pub id: String,
    /// Its version.
    pub version: String,
    /// When it was started.
    pub started: Timestamp,
    /// The file that it writes.
    pub output: String,
    /// The template's file.
    pub template: String,
    /// What is wrong with the template.
    pub template_error: Option<String>,
    /// Why the configuration that was read last is not in use.
    #[serde(default)]
    pub config_error: Option<String>,
    /// The options (`--set`) that no template reads.
    #[serde(default)]
    pub unread_options: Vec<UnreadOption>,
}

/// Whether HAProxy's own figures stand beside the instances.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FiguresReport {
    /// They do, of those servers that HAProxy knows.
    Known,
    /// It is being asked: a moment later they may.
    Asked,
    /// It does not answer, or there is no way to ask it.
    Unknown,
}

/// HAProxy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HaproxyReport {
    /// How it is reached.
    pub way: String,
    /// Its version, as it says it.
    pub version: Option<String>,
    /// The worker's pid.
    pub worker: Option<u64>,
    /// When that worker was started.
    pub worker_started: Option<Timestamp>,
    /// Whether it runs; none where that is not known.
    pub is_up: Option<bool>,
    /// How often it was reloaded by this process, by reason.
    pub reloads: BTreeMap<String, u64>,
    /// The last reload.
    pub last_reload: Option<ReloadView>,
    /// The last time that it came to run what was wanted.
    pub applied: Option<AppliedReport>,
    /// Since when something is being applied, where that takes long.
    pub applying_since: Option<Timestamp>,
    /// Why it does not run what is wanted now.
    pub error: Option<String>,
    /// Why the file does not hold what HAProxy runs, so that one that is started anew begins with an older state.
    pub unfiled: Option<String>,
    /// Why the runtime API is not used until the next reload.
    pub distrust: Option<String>,
}

/// One time that HAProxy came to run what was wanted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppliedReport {
    /// When.
    pub at: Timestamp,
    /// By what: `nothing`, `runtime` or `reload`.
    pub how: String,
}

/// How a service or an instance stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// It is registered, and HAProxy has it. A service: at least one instance of it is.
    Up,
    /// It finishes what it has. A service: nothing of it is up or suspect.
    Draining,
    /// Its key has expired, and HAProxy's check still reaches it. A service: nothing of it is up.
    Suspect,
    /// HAProxy does not get it.
    Refused,
    /// A service that has no instance; where a rule leads to it, it is answered for with 503.
    Empty,
}

impl Status {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Up, Self::Draining, Self::Suspect, Self::Refused, Self::Empty];

    /// Its word, as JSON has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Draining => "draining",
            Self::Suspect => "suspect",
            Self::Refused => "refused",
            Self::Empty => "empty",
        }
    }

    fn of(instance: &Instance) -> Self {
        match (instance.suspect, instance.draining) {
            (_, true) => Self::Draining,
            (true, false) => Self::Suspect,
            (false, false) => Self::Up,
        }
    }
}

/// One service.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ServiceReport {
    /// All but its instances.
    #[serde(flatten)]
    pub head: ServiceHead,
    /// Its instances by address, and behind them those keys that give none.
    pub instances: Vec<InstanceReport>,
}

/// One service without its instances.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceHead {
    /// Its name, which is its backend's name too.
    pub name: String,
    /// `http` or `tcp`.
    pub mode: String,
    /// The host names that it answers to, joined by commas; none: any.
    pub host: Option<String>,
    /// The path that its requests begin with; none: any.
    pub path: Option<String>,
    /// The port of a TCP service.
    pub listen: Option<u16>,
    /// How HAProxy chooses between its instances.
    pub balance: String,
    /// The path that HAProxy's own check asks; none: it only connects.
    pub check: Option<String>,
    /// What its instances speak: `http`, `https` or `h2`.
    pub proto: String,
    /// Whether a client stays with its instance.
    pub sticky: bool,
    /// The most connections for one instance.
    pub maxconn: Option<u32>,
    /// How long a new instance takes to get its full share.
    pub slowstart: Option<String>,
    /// Whether it lies right under the prefix.
    pub flat: bool,
    /// The tags of all its instances.
    pub tags: Vec<String>,
    /// The attributes of its instances; where they disagree the newest container's.
    pub attributes: BTreeMap<String, String>,
    /// How it stands.
    pub status: Status,
    /// How many instances it has, by status.
    pub instances_by_status: BTreeMap<String, usize>,
    /// What of it HAProxy does not get, and why.
    pub left_out: Vec<LeftOutReport>,
}

/// One instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceReport {
    /// Its address and port: the only one of its service with them.
    pub address: SocketAddr,
    /// HAProxy's name for it.
    pub server: String,
    /// How it stands.
    pub status: Status,
    /// Why HAProxy does not get it.
    pub reason: Option<String>,
    /// 0 to 256.
    pub weight: u16,
    /// The container's name.
    pub name: Option<String>,
    /// The Docker host's name.
    pub host: Option<String>,
    /// The container's id.
    pub id: Option<String>,
    /// The id of the registrar that keeps its key.
    pub agent: Option<String>,
    /// Its tags.
    pub tags: Vec<String>,
    /// Its attributes.
    pub attributes: BTreeMap<String, String>,
    /// When its container was started.
    pub started: Option<Timestamp>,
    /// What HAProxy says of it; none where it was not asked or does not know it.
    pub haproxy: Option<ServerReport>,
}

/// What HAProxy says of an instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerReport {
    /// Its state in HAProxy's words: `UP`, `DOWN 1/2`, `MAINT`, `no check`.
    pub check: String,
    /// Its check fails, so that it gets nothing.
    pub is_down: bool,
    /// How the last check ended, such as `L4OK`.
    pub check_status: Option<String>,
    /// The same in words.
    pub last_check: Option<String>,
    /// Its weight now.
    pub weight: u32,
    /// What runs on it.
    pub sessions: u64,
    /// What waits for it.
    pub queued: u64,
    /// Since when its state is that.
    pub since: Option<Timestamp>,
}

/// Something that HAProxy does not get.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftOutReport {
    /// `key`, `instance`, `setting`, `route` or `service`.
    pub what: String,
    /// The service that it belongs to.
    pub service: Option<String>,
    /// The instance's address, where it is about one.
    pub address: Option<SocketAddr>,
    /// The key in etcd, or the service's name.
    pub subject: String,
    /// Why.
    pub reason: String,
}

/// One thing that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NoteReport {
    /// Rises with each of them.
    pub number: u64,
    /// When.
    pub at: Timestamp,
    /// What, in one word: `came`, `went`, `reloaded`.
    pub what: String,
    /// The service that it is about.
    pub service: Option<String>,
    /// The instance that it is about.
    pub address: Option<SocketAddr>,
    /// The rest.
    pub words: String,
}

impl Report {
    /// Everything of a picture, with HAProxy's own figures where it was asked.
    pub fn new(view: &View, stats: Option<&Stats>) -> Self {
        let index = Index::new(view);
        let outline = Outline::new(view, &index);
        Self {
            status: StatusReport::new(view),
            services: outline.names().into_iter().filter_map(|name| outline.service(name, stats)).collect(),
        }
    }
}

impl StatusReport {
    /// All of a picture but its services.
    pub fn new(view: &View) -> Self {
        let index = Index::new(view);
        let outline = Outline::new(view, &index);
        let (mut services, mut instances) = (Counts::default(), Counts::default());
        let mut unrouted = Vec::new();
        let is_unled = |name: &str| view.haproxy.unled.binary_search_by(|unled| unled.as_str().cmp(name)).is_ok();
        for name in outline.names() {
            let Some(counted) = outline.count(name) else { continue };
            services.add(counted.status, 1);
            if !matches!(counted.status, Status::Refused | Status::Empty) && is_unled(name.as_str()) {
                unrouted.push(name.to_string());
            }
            for (status, count) in counted.instances.0 {
                instances.add(status, count);
            }
        }
        let mut status = Self {
            version: view.version,
            at: view.at,
            is_ready: view.is_ready(),
            discoverer: DiscovererReport::new(view),
            registry: view.registry.clone(),
            haproxy: HaproxyReport::new(view),
            services_by_status: services.by_word(),
            instances_by_status: instances.by_word(),
            troubles: Vec::new(),
            left_out: view.left_out.iter().map(LeftOutReport::new).collect(),
            more_left_out: view.more_left_out,
            unrouted,
        };
        status.troubles = troubles(&status);
        status
    }
}

impl DiscovererReport {
    /// The discoverer's part of a picture.
    pub fn new(view: &View) -> Self {
        let of = &view.discoverer;
        Self {
            id: of.id.clone(),
            version: of.version.to_owned(),
            started: of.started,
            output: of.output.clone(),
            template: of.template.clone(),
            template_error: of.template_error.clone(),
            config_error: of.config_error.clone(),
            unread_options: of.unread_options.clone(),
        }
    }
}

impl HaproxyReport {
    /// HAProxy's part of a picture.
    pub fn new(view: &View) -> Self {
        let of = &view.haproxy;
        Self {
            way: of.way.to_owned(),
            version: of.version.clone(),
            worker: of.worker,
            worker_started: of.worker_started,
            is_up: of.is_up,
            reloads: of.reloads.iter().map(|(reason, count)| ((*reason).to_owned(), *count)).collect(),
            last_reload: of.last_reload.clone(),
            applied: of.applied.as_ref().map(|applied| AppliedReport { at: applied.at, how: applied.how.to_owned() }),
            applying_since: of.applying_since,
            error: of.error.clone(),
            unfiled: of.unfiled.clone(),
            distrust: of.distrust.clone(),
        }
    }
}

impl LeftOutReport {
    /// As a picture has it.
    pub fn new(left_out: &LeftOut) -> Self {
        Self {
            what: left_out.what.as_str().to_owned(),
            service: left_out.service.as_ref().map(ToString::to_string),
            address: left_out.address.map(|address| address.socket_addr()),
            subject: left_out.subject.clone(),
            reason: left_out.reason.clone(),
        }
    }
}

impl NoteReport {
    /// As the feed has it.
    pub fn new(note: &Note) -> Self {
        Self {
            number: note.number,
            at: note.at,
            what: note.what.as_str().to_owned(),
            service: note.service.as_ref().map(ToString::to_string),
            address: note.address.map(|address| address.socket_addr()),
            words: note.words.clone(),
        }
    }
}

impl ServerReport {
    /// As HAProxy says it.
    pub fn new(stat: &ServerStat) -> Self {
        let text = |text: &String| (!text.is_empty()).then(|| text.clone());
        Self {
            check: stat.state.clone(),
            is_down: stat.is_down(),
            check_status: text(&stat.check),
            last_check: text(&stat.words),
            weight: stat.weight,
            sessions: stat.sessions,
            queued: stat.queued,
            since: stat.since,
        }
    }
}

/// How many there are of each status.
#[derive(Debug, Default)]
struct Counts(BTreeMap<Status, usize>);

impl Counts {
    fn add(&mut self, status: Status, count: usize) {
        *self.0.entry(status).or_default() += count;
    }

    fn has(&self, status: Status) -> bool {
        self.0.contains_key(&status)
    }

    fn by_word(&self) -> BTreeMap<String, usize> {
        self.0.iter().map(|(status, count)| (status.as_str().to_owned(), *count)).collect()
    }
}

/// A service's status, and its instances'.
struct Counted {
    status: Status,
    instances: Counts,
}

/// Where in a picture's list of what is left out each service's part stands.
#[derive(Debug)]
pub struct Index(HashMap<ServiceName, Vec<usize>>);

impl Index {
    /// The index of a picture.
    pub fn new(view: &View) -> Self {
        let mut index: HashMap<_, Vec<_>> = HashMap::new();
        for (at, entry) in view.left_out.iter().enumerate() {
            if let Some(service) = &entry.service {
                index.entry(service.clone()).or_default().push(at);
            }
        }
        Self(index)
    }
}

/// A picture of which a service, or one instance, can be told by itself.
#[derive(Debug, Clone, Copy)]
pub struct Outline<'v> {
    view: &'v View,
    index: &'v Index,
}

impl<'v> Outline<'v> {
    /// The index must be that picture's own.
    pub fn new(view: &'v View, index: &'v Index) -> Self {
        Self { view, index }
    }

    /// The names of all services, sorted.
    pub fn names(&self) -> Vec<&'v ServiceName> {
        let mut last = None;
        std::iter::from_fn(|| {
            last = self.next_name(last);
            last
        })
        .collect()
    }

    /// What of a service is left out.
    pub fn left_out(&self, name: &ServiceName) -> impl Iterator<Item = &'v LeftOut> + use<'v> {
        let view = self.view;
        self.index.0.get(name).into_iter().flatten().filter_map(|at| view.left_out.get(*at))
    }

    /// The name behind this one; the first where there is none.
    pub fn next_name(&self, after: Option<&ServiceName>) -> Option<&'v ServiceName> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let next = |services: &'v Services| services.range((from, Bound::Unbounded)).next().map(|(name, _)| name);
        let (served, shut_out) = (next(&self.view.services), next(&self.view.shut_out));
        served.into_iter().chain(shut_out).min()
    }

    /// The service of that name, wherever it stands.
    pub fn find(&self, name: &ServiceName) -> Option<&'v Service> {
        let within = |services: &'v Services| services.get(name).map(AsRef::as_ref);
        within(&self.view.services).or_else(|| within(&self.view.shut_out))
    }

    /// Why HAProxy gets nothing of a service; none where it does.
    pub fn refused(&self, name: &ServiceName) -> Option<&'v str> {
        let reason_for =
            |part: Part| self.left_out(name).find(|entry| entry.what == part).map(|entry| entry.reason.as_str());
        if self.view.services.contains_key(name) {
            return reason_for(Part::Service);
        }
        Some(reason_for(Part::Route).or_else(|| reason_for(Part::Service)).unwrap_or("another service has its routes"))
    }

    /// The keys of a service that give no instance: each with an address, and none for that address does.
    fn outdone(&self, service: &Service) -> impl Iterator<Item = (SocketAddr, &'v LeftOut)> {
        let mut last = None;
        let mut entries: Vec<_> = self
            .left_out(&service.name)
            .filter(|entry| matches!(entry.what, Part::Key | Part::Instance))
            .filter_map(|entry| Some((entry.address?.socket_addr(), entry)))
            .filter(|(address, _)| !has_instance(service, *address))
            .collect();
        entries.sort_by_key(|(address, _)| *address);
        entries.into_iter().filter(move |(address, _)| last.replace(*address) != Some(*address))
    }

    fn count(&self, name: &ServiceName) -> Option<Counted> {
        let service = self.find(name)?;
        let mut instances = Counts::default();
        let is_refused = self.refused(name).is_some();
        for instance in &service.instances {
            instances.add(if is_refused { Status::Refused } else { Status::of(instance) }, 1);
        }
        let outdone = self.outdone(service).count();
        if outdone > 0 {
            instances.add(Status::Refused, outdone);
        }
        let first = [Status::Up, Status::Suspect, Status::Draining].into_iter().find(|status| instances.has(*status));
        let status = if is_refused { Status::Refused } else { first.unwrap_or(Status::Empty) };
        Some(Counted { status, instances })
    }

    /// A service without its instances.
    pub fn head(&self, name: &ServiceName) -> Option<ServiceHead> {
        let (service, counted) = (self.find(name)?, self.count(name)?);
        Some(ServiceHead {
            name: service.name.to_string(),
            mode: service.mode.as_str().to_owned(),
            host: service.host.as_ref().map(ToString::to_string),
            path: service.path.as_ref().map(ToString::to_string),
            listen: service.listen,
            balance: service.balance.as_str().to_owned(),
            check: service.check.as_ref().map(ToString::to_string),
            proto: service.proto.as_str().to_owned(),
            sticky: service.sticky,
            maxconn: service.maxconn,
            slowstart: service.slowstart.as_ref().map(ToString::to_string),
            flat: service.flat,
            tags: service.tags.clone(),
            attributes: service.attributes.clone(),
            status: counted.status,
            instances_by_status: counted.instances.by_word(),
            left_out: self.left_out(name).map(LeftOutReport::new).collect(),
        })
    }

    /// The keys of a service that give no instance, as instances that are refused.
    pub fn refused_keys(&self, service: &Service) -> Vec<InstanceReport> {
        self.outdone(service)
            .map(|(address, left_out)| InstanceReport {
                address,
                server: left_out.address.map(crate::model::server_name).unwrap_or_default(),
                status: Status::Refused,
                reason: Some(left_out.reason.clone()),
                weight: 0,
                name: None,
                host: None,
                id: None,
                agent: None,
                tags: Vec::new(),
                attributes: BTreeMap::new(),
                started: None,
                haproxy: None,
            })
            .collect()
    }

    /// One of a service's instances. `refused`: why HAProxy gets nothing of the service.
    pub fn instance(
        &self,
        service: &Service,
        instance: &Instance,
        refused: Option<&str>,
        stats: Option<&Stats>,
    ) -> InstanceReport {
        let record = instance.record.as_ref();
        let address = SocketAddr::new(instance.address, instance.port);
        let stat = stats.and_then(|stats| stats.find(service.name.as_str(), &instance.server, address));
        InstanceReport {
            address,
            server: instance.server.clone(),
            status: if refused.is_some() { Status::Refused } else { Status::of(instance) },
            reason: refused.map(str::to_owned),
            weight: instance.weight,
            name: record.name.clone(),
            host: record.host.clone(),
            id: record.id.clone(),
            agent: record.agent.clone(),
            tags: record.tags.clone(),
            attributes: record.attributes.clone(),
            started: record.registered,
            haproxy: stat.filter(|_| refused.is_none()).map(ServerReport::new),
        }
    }

    /// A service with all its instances; none where there is no such service.
    pub fn service(&self, name: &ServiceName, stats: Option<&Stats>) -> Option<ServiceReport> {
        let (service, head) = (self.find(name)?, self.head(name)?);
        let refused = self.refused(name);
        let instances = service.instances.iter();
        let instances = instances.map(|instance| self.instance(service, instance, refused, stats));
        let instances = instances.chain(self.refused_keys(service)).collect();
        Some(ServiceReport { head, instances })
    }
}

/// Whether a service has an instance at an address: they are sorted by it.
pub fn has_instance(service: &Service, address: SocketAddr) -> bool {
    let place = |instance: &std::sync::Arc<Instance>| (instance.address, instance.port);
    service.instances.binary_search_by_key(&(address.ip(), address.port()), place).is_ok()
}
