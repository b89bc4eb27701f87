//! `registrar explain`: each step from Docker's state to the key in etcd, with the first that says no, and what to do.
//!
//! Everything is read once, then `Explanation` is made of it without asking anybody.

use std::collections::BTreeSet;
use std::fmt;
use std::net::SocketAddr;

use bollard::models::ContainerInspectResponse;
use observe::answer::command;
use observe::escape::escaped;
use registry::{Entry, Record, Status, Store, StoreError, StoreKind};

use crate::ask::{ask_once, healthcheck_says};
use crate::config::ScopeFlags;
use crate::docker::{Client, Docker, DockerError, addresses, healthcheck};
use crate::host;
use crate::list::{shown, status};
use crate::probe::{ProbeError, Prober};
use crate::service::{
    self, AddressSource, Check, CheckKind, DefaultAddress, Expected, Findings, HttpCheck, Reason, Refusal,
    Registration, Scope, network_owner, services,
};

/// How many characters of an id are shown, as Docker does.
const SHORT_ID: usize = 12;

/// What a step says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Says {
    Yes,
    No,
    /// Nothing: it is told by the way.
    Aside,
}

/// Each step, in order.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Explanation {
    steps: Vec<(Says, String)>,
    docker: DockerSays,
}

/// What Docker says of the container.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum DockerSays {
    /// Nothing: it does not answer.
    #[default]
    Nothing,
    /// It knows no such container.
    Unknown,
    /// It knows it.
    Known,
}

/// What was found out about one registration.
struct Evidence {
    registration: Registration,
    answer: Result<(), ProbeError>,
    /// Which of its targets that is about.
    asked: Option<SocketAddr>,
    entry: Result<Option<Entry>, StoreError>,
    /// Where that was looked for.
    store: StoreKind,
}

/// What may have written a key: this host's agent, where its id is known, for one of the containers that run here.
#[derive(Clone, Copy)]
struct Here<'a> {
    agent: Option<&'a str>,
    running: &'a BTreeSet<&'a str>,
}

/// Why nothing can be explained.
#[derive(Debug, thiserror::Error)]
pub enum ExplainError {
    /// No client for etcd.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// No client for the application.
    #[error(transparent)]
    Probe(#[from] ProbeError),
}

/// Follows a container from Docker to the store, judging by the agent's flags, and says who tells the rest. `is_read_here`: as
/// the agent has it.
///
/// # Errors
/// Only for what is wrong with the configuration; a Docker or an etcd that does not answer is a step that says no.
pub async fn run(
    name: &str,
    flags: &ScopeFlags,
    store: &Store,
    is_read_here: bool,
) -> Result<Explanation, ExplainError> {
    let prober = Prober::new()?;
    let mut explanation = Explanation::default();
    let (client, container) = match look_up(name, flags).await {
        Ok((client, Some(container))) => (client, container),
        Ok((_, None)) => {
            explanation.docker = DockerSays::Unknown;
            explanation.no(format!("Docker knows no container {name}: `docker ps --all` shows those that there are"));
            return Ok(explanation);
        }
        Err(error) => {
            explanation.no(error.to_string());
            return Ok(explanation);
        }
    };
    explanation.add_container(&container);
    let id = host::known_id(flags.agent_id.as_deref(), &flags.state_dir);
    let scope = match host::scope(flags, id.clone().unwrap_or_else(|| "unknown".to_owned()), None).await {
        Ok(scope) => scope,
        Err(error) => {
            explanation.no(error.to_string());
            return Ok(explanation);
        }
    };
    let listed = match client.running().await {
        Ok(listed) => listed,
        Err(error) => {
            explanation.no(error.to_string());
            return Ok(explanation);
        }
    };
    // An agent in a container of its own does not take that container's address for the host's.
    let of_containers: BTreeSet<_> = listed.iter().flat_map(addresses).collect();
    let is_usable = scope.default_address.any_of(&of_containers).is_none();
    let default_address = match (is_usable, is_read_here) {
        (true, _) => scope.default_address,
        (false, true) => host::default_gateway(),
        (false, false) => DefaultAddress::default(),
    };
    let scope = Scope { default_address, ..scope };
    explanation.add_scope(&scope, id.as_deref());
    let network_of = match network_owner(&container) {
        Some(owner) => match client.inspect(owner).await {
            Ok(owner) => owner,
            Err(error) => {
                explanation.no(format!("it uses the network of another container: {error}"));
                return Ok(explanation);
            }
        },
        None => None,
    };
    let findings = services(&container, network_of.as_ref(), &scope);
    explanation.add_refusals(&findings);
    let running: BTreeSet<&str> = listed.iter().filter_map(|container| container.id.as_deref()).collect();
    let here = Here { agent: id.as_deref(), running: &running };
    let addresses: BTreeSet<String> = findings.registrations.iter().map(|one| one.key.address().to_string()).collect();
    for registration in findings.registrations {
        let (answer, asked) = ask(&prober, &client, &container, &registration.check).await;
        let mut entry = store.get(&registration.key).await;
        if let Ok(Some(found)) = &mut entry
            && let Err(error) = store.add_times(std::slice::from_mut(found)).await
        {
            entry = Err(error);
        }
        explanation.add_registration(
            &Evidence { registration, answer, asked, entry, store: store.kind() },
            &container,
            here,
        );
    }
    if !is_read_here {
        explanation.add_rest_of_the_way(&addresses);
    }
    Ok(explanation)
}

async fn look_up(name: &str, flags: &ScopeFlags) -> Result<(Client, Option<ContainerInspectResponse>), DockerError> {
    let client = Docker::new(flags.docker.clone()).connect().await?;
    let container = client.inspect(name).await?;
    Ok((client, container))
}

/// Asks once, as the agent does. Gives which address the answer is about, where there is one.
async fn ask(
    prober: &Prober,
    client: &Client,
    container: &ContainerInspectResponse,
    check: &Check,
) -> (Result<(), ProbeError>, Option<SocketAddr>) {
    if check.kind == CheckKind::Docker {
        return (healthcheck_says(healthcheck(container)), None);
    }
    let id = container.id.as_deref().unwrap_or_default();
    let (mut asked, _) = ask_once(prober, Some(client), id, check, 0, None).await;
    if matches!(asked.result, Err(ProbeError::Timeout(_))) && asked.target != asked.asked {
        // Perhaps there is no way to the first: the agent goes on with the next.
        (asked, _) = ask_once(prober, Some(client), id, check, asked.target, None).await;
    }
    (asked.result, check.kind.targets().get(asked.asked).copied())
}

impl Explanation {
    /// Whether no step says no.
    pub fn is_registered(&self) -> bool {
        !self.steps.iter().any(|(says, _)| *says == Says::No)
    }

    /// What Docker says of the container.
    pub fn docker(&self) -> DockerSays {
        self.docker
    }

    /// The same steps, none of which says yes or no: for who knows it better from elsewhere.
    #[must_use]
    pub fn by_the_way(self) -> Self {
        Self { steps: self.steps.into_iter().map(|(_, text)| (Says::Aside, text)).collect(), ..self }
    }

    fn yes(&mut self, text: impl Into<String>) {
        self.steps.push((Says::Yes, text.into()));
    }

    fn no(&mut self, text: impl Into<String>) {
        self.steps.push((Says::No, text.into()));
    }

    fn aside(&mut self, text: impl Into<String>) {
        self.steps.push((Says::Aside, text.into()));
    }

    fn add_container(&mut self, container: &ContainerInspectResponse) {
        self.docker = DockerSays::Known;
        let id: String = container.id.as_deref().unwrap_or_default().chars().take(SHORT_ID).collect();
        let name = container.name.as_deref().unwrap_or_default().trim_start_matches('/');
        let image = container.config.as_ref().and_then(|config| config.image.as_deref()).unwrap_or("unknown");
        self.yes(format!("Docker knows container {name} ({id}), of image {image}"));
        for (label, value) in service::said(container) {
            self.aside(format!("it says {}={value:?}", label.escape_debug()));
        }
    }

    fn add_scope(&mut self, scope: &Scope, id: Option<&str>) {
        let default: Vec<String> = scope.default_address.all().map(|ip| ip.to_string()).collect();
        let address = match scope.ip {
            Some(ip) => format!("{ip} (--ip)"),
            None if default.is_empty() => {
                "not known: there is no default route, or it is that of a container's network, and no --ip".to_owned()
            }
            None => format!("{} (the default route's)", default.join(" or ")),
        };
        let agent = match id {
            Some(id) => format!("its agent is {id}"),
            None => "its agent's id is not known here: give --state-dir or --agent-id as the agent has them".to_owned(),
        };
        self.aside(format!("this host is {}, its address {address}; {agent}", scope.host_name));
    }

    /// What is left out by choice says no only where nothing else is registered, and nothing else is wrong.
    fn add_refusals(&mut self, findings: &Findings) {
        let is_all_by_choice = findings.refusals.iter().all(Refusal::is_by_choice);
        for refusal in &findings.refusals {
            let aside = refusal.reason.is_only_told()
                || refusal.is_by_choice() && !(findings.registrations.is_empty() && is_all_by_choice);
            self.steps.push((if aside { Says::Aside } else { Says::No }, refusal.to_string()));
        }
        if findings.registrations.is_empty()
            && findings.refusals.iter().any(|refusal| refusal.reason == Reason::Ignored)
        {
            let list = command("registrar", "list");
            self.aside(format!("no agent registers it; a sidekick in it may: `{list}` shows its key"));
        }
        if findings.registrations.is_empty() && findings.refusals.is_empty() {
            self.no("nothing of it is to be registered");
        }
    }

    fn add_registration(&mut self, evidence: &Evidence, container: &ContainerInspectResponse, here: Here<'_>) {
        let Evidence { registration, answer, asked, entry, store } = evidence;
        let Registration { key, port, check, record, .. } = registration;
        let source = source(registration.address_from);
        self.yes(format!("port {port} is service {} at {}, {source}", key.service(), key.address()));
        let attributes = record.attributes.iter().map(|(name, value)| format!("{name}={value}"));
        let weight = record.weight.map(|weight| format!("weight {weight}"));
        let tags = (!record.tags.is_empty()).then(|| format!("tags {}", record.tags.join(",")));
        let said: Vec<String> = weight.into_iter().chain(tags).chain(attributes).collect();
        if !said.is_empty() {
            self.aside(format!("port {port}: {}", said.join(" ")));
        }
        let leads_there = ["host", "path", "listen"].iter().any(|name| record.attributes.contains_key(*name));
        if !leads_there {
            self.aside(format!(
                "port {port}: it names no host, path or listen port (SERVICE_HOST, SERVICE_PATH, SERVICE_LISTEN), so that the load balancer \
                 sends it only what nobody else takes"
            ));
        }
        let how = described(check, *asked);
        match answer {
            Ok(()) if check.kind == CheckKind::None => self.yes(format!("port {port}: {how}")),
            Ok(()) => self.yes(format!("port {port}: {how}: it answers")),
            Err(error) => self.no(format!("port {port}: {how}: {error}{}", advice(error, check, *port))),
        }
        let path = key.path();
        let entry = match entry {
            Ok(Some(entry)) => entry,
            Ok(None) if answer.is_err() => {
                return self.no(format!("{path} is not in {store}: it is written when the check is answered"));
            }
            Ok(None) if *store == StoreKind::Memory => {
                return self.no(format!(
                    "{path} is not in {store}: nobody has written it yet. Ask again in a moment; the log says what is in the way"
                ));
            }
            Ok(None) => {
                return self.no(format!(
                    "{path} is not in etcd: no agent has written it. Does one run on this host, with the same flags (--etcd, --key, \
                     --explicit, --ip, --domains)? Its log says what it does"
                ));
            }
            Err(error) => return self.no(format!("{path} cannot be read: {error}")),
        };
        let left = match entry.ttl {
            Some(ttl) => format!("{}s left of its time to live", ttl.as_secs()),
            None => "it does not expire".to_owned(),
        };
        let found = match Record::parse(&entry.value) {
            Ok(found) => found,
            Err(error) => {
                return self
                    .no(format!("{path} is in {store}, {left}, but not as an agent writes it: {}", shown(&error)));
            }
        };
        let writer = found.agent.as_deref().unwrap_or("somebody who is no agent");
        if found.id.is_none() || found.id != container.id {
            let of: String = found.id.as_deref().unwrap_or("not known").chars().take(SHORT_ID).collect();
            // One agent settles by itself which of its containers has a key.
            let runs_here = found.id.as_deref().is_some_and(|id| here.running.contains(id));
            let why = if here.agent == Some(writer) && !runs_here {
                "that one does not run here any more, and the key goes with its time to live. Does the agent run? It removes such a key"
            } else if here.agent == Some(writer) {
                "two containers of this host claim it, and of those that answer the one that was started last has it"
            } else {
                "where that one is gone it goes with its time to live, else two hosts register the same address: see --ip"
            };
            return self.no(format!(
                "{path} is in {store}, {left}, but for another container ({of}), written by {writer}: {why}"
            ));
        }
        let whose =
            if here.agent.is_none_or(|agent| agent == writer) { "" } else { ", which is not this host's agent" };
        let says = format!("{path} is in {store}: {}", status(found.status));
        let who = format!("{left}, written by {writer}{whose}");
        let name = container.name.as_deref().unwrap_or_default().trim_start_matches('/');
        match found.status {
            Status::Running => self.yes(format!("{says}; {who}")),
            Status::Draining if found.stopping => self.no(format!(
                "{says}: Docker has told the container to stop, so that it finishes what it has and gets nothing new; {who}. If it does not \
                 end, its agent takes it back after --kill-grace"
            )),
            Status::Draining => self.no(format!(
                "{says}: somebody has drained it, so that it finishes what it has and gets nothing new; {who}. `registrar undrain {name}` \
                 takes it back"
            )),
        }
    }

    /// What comes behind etcd is another program's to tell.
    fn add_rest_of_the_way(&mut self, addresses: &BTreeSet<String>) {
        let explain = command("discoverer", "explain");
        for address in addresses {
            self.aside(format!("from etcd to HAProxy: `{explain} {address}`, on a load balancer"));
        }
    }
}

fn source(source: AddressSource) -> &'static str {
    match source {
        AddressSource::Label => "as SERVICE_IP says",
        AddressSource::Flag => "as --ip says",
        AddressSource::Published => "where the port is published",
        AddressSource::DefaultRoute => "the address of the default route's interface",
        AddressSource::Container => "the container's own (--internal)",
    }
}

/// How it is asked, in a line.
fn described(check: &Check, asked: Option<SocketAddr>) -> String {
    let time = humantime::format_duration;
    let target = asked.as_ref().map_or_else(String::new, ToString::to_string);
    let how = match &check.kind {
        CheckKind::Http(HttpCheck { tls, path, method, expected, .. }) => {
            let scheme = if *tls { "https" } else { "http" };
            let expected = match expected {
                Expected::Below500 => String::new(),
                Expected::Ranges(ranges) => {
                    let range = |range: &std::ops::RangeInclusive<u16>| format!("{}-{}", range.start(), range.end());
                    format!(" for a status of {}", ranges.iter().map(range).collect::<Vec<_>>().join(","))
                }
            };
            format!("{method} {scheme}://{target}{path}{expected}")
        }
        CheckKind::Tcp { .. } => format!("a connection to {target}"),
        CheckKind::Docker => return "asked by its HEALTHCHECK".to_owned(),
        CheckKind::Exec { command } => format!("{:?} in the container", command.last().map_or("", String::as_str)),
        CheckKind::None => return "it is not asked, and counts as answering while it runs".to_owned(),
    };
    format!("asked by {how}, every {} within {}", time(check.interval), time(check.timeout))
}

/// What to do about a missing answer.
fn advice(error: &ProbeError, check: &Check, port: u16) -> String {
    match error {
        ProbeError::Refused(_) | ProbeError::Closed => {
            format!(". Does the application listen on port {port} yet, and on 0.0.0.0 instead of 127.0.0.1?")
        }
        ProbeError::NoWay(_) | ProbeError::Timeout(_) => {
            ". Is there a firewall between this host and the container, or does the application hang?".to_owned()
        }
        ProbeError::Status(_) if matches!(&check.kind, CheckKind::Http(http) if http.expected == Expected::Below500) => {
            ". The application's log may say why; SERVICE_CHECK_STATUS says which statuses are good".to_owned()
        }
        ProbeError::Status(_) => ". SERVICE_CHECK_STATUS says which statuses are good".to_owned(),
        ProbeError::Tls(_) => ". Does it speak TLS there? SERVICE_CHECK_HTTP asks without".to_owned(),
        ProbeError::Broken(_) => ". Does it speak HTTP there, or TLS (SERVICE_CHECK_HTTPS)?".to_owned(),
        ProbeError::Unhealthy("starting") => ": wait for its HEALTHCHECK".to_owned(),
        ProbeError::Unhealthy(_) => ". `docker inspect` shows what its HEALTHCHECK printed".to_owned(),
        ProbeError::Client(_) | ProbeError::Exit(_) | ProbeError::StillRuns | ProbeError::Exec(_) => String::new(),
    }
}

/// A line for each step; the first that says no has an arrow.
impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let first_no = self.steps.iter().position(|(says, _)| *says == Says::No);
        for (at, (says, text)) in self.steps.iter().enumerate() {
            let mark = match says {
                Says::Yes => "   yes  ",
                Says::No if first_no == Some(at) => "-> NO   ",
                Says::No => "   no   ",
                Says::Aside => "        ",
            };
            writeln!(f, "{mark}{}", escaped(text))?;
        }
        Ok(())
    }
}
