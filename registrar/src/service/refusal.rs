//! Why something of a container is not registered, in words that say the way out. Pure.

use std::fmt;
use std::net::IpAddr;

use registry::settings::SettingError;
use registry::{AddressError, NameError, RecordError};

use super::labels::Setting;
use super::ports::ContainerPort;
use super::rule::RuleError;

/// How many characters of a value are shown.
const SHOWN_LIMIT: usize = 120;

/// Something that is left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The container's port. `None`: the whole container, or something beside the ports.
    pub port: Option<ContainerPort>,
    /// The label or variable that is to blame, with its value.
    pub label: Option<(String, String)>,
    /// Why, and what to do.
    pub reason: Reason,
}

/// Why something is left out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum Reason {
    #[error("it is not running: it is {0}")]
    NotRunning(String),
    #[error("this label says so")]
    Ignored,
    #[error("{count} of its labels and variables are for the registrar; at most {limit} are read")]
    TooManyLabels { count: usize, limit: usize },
    #[error(
        "its labels have {size} bytes, and Docker repeats them in each of its events, of which no longer ones are read: make it anew with at most {limit}"
    )]
    LabelsTooLong { size: usize, limit: usize },
    #[error(
        "--explicit, and no label asks for it: SERVICE_NAME, SERVICE_<port>_NAME, VIRTUAL_HOST or traefik.enable=true"
    )]
    NotAsked,
    #[error("this means nothing here; the first answer to the check decides")]
    Inert,
    #[error("this means nothing for a HEALTHCHECK, which counts by itself: use `--health-retries`")]
    CountedByDocker,

    #[error("no setting is called so, and it is the attribute that its name says; is {0} meant?")]
    Slip(String),

    #[error("only TCP ports are registered")]
    NotTcp,
    #[error("it is exposed but not published: start the container with `-p {port}`{internal}", internal = internal_way())]
    NotPublished { port: u16, asked: bool },
    #[error("it publishes no port: start it with `-p PORT`{internal}", internal = internal_way())]
    NoPorts { asked: bool },
    #[error("it has no address of its own: it is in no network")]
    NoNetwork,
    #[error("it says no port: name one with a label SERVICE_<port>_NAME, or with EXPOSE in its image")]
    NoPortSaid { asked: bool },
    #[error("it has no such port; {}", ports(.0))]
    NoSuchPort(Vec<u16>),
    #[error("no port number: it must be from 1 to 65535")]
    PortNumber,
    #[error("it uses the network of another container, which Docker does not know (any more)")]
    NetworkOwner,

    #[error(
        "published on {ip} alone, where only this host reaches it: publish it with `-p HOSTADDRESS::{port}`, or say with SERVICE_IP at which address it is reached"
    )]
    Loopback { ip: IpAddr, port: u16, asked: bool },
    #[error(
        "this host's address is not known, since there is no default route, or the agent sees that of a container's network: say it with `--ip ADDRESS`, or run the agent with `--network host`"
    )]
    NoHostAddress,
    #[error(
        "it is not published for {}, and {ip} is such an address: publish it with `-p {ip}::{port}`, or say another address with --ip or SERVICE_IP",
        family(*.ip)
    )]
    Family { ip: IpAddr, port: u16 },
    #[error("it is not in the network {network:?} of --network; it is in {}", list(there))]
    NotInNetwork { network: String, there: Vec<String> },
    #[error("it is in several networks ({}): say which is meant with `--network NAME`", list(.0))]
    SeveralNetworks(Vec<String>),

    #[error("no service can be called so: {0}")]
    Name(#[from] NameError),
    #[error("no service can be called {0:?}, after its host name or image: {1}; name it with SERVICE_NAME")]
    DefaultName(String, NameError),
    #[error("its image has no name: name the service with SERVICE_NAME")]
    NoName,
    #[error("{0}")]
    Address(#[from] AddressError),
    #[error("it must be {0}")]
    Value(&'static str),
    #[error("{0}")]
    Setting(#[from] SettingError),
    #[error("--domains does not allow the host name {host:?}; allowed are {domains}")]
    Domain { host: String, domains: String },
    #[error(
        "it names no host, and with --domains it must, so that it is not routed on every host: say it with SERVICE_HOST; allowed are {domains}"
    )]
    NoHostName { domains: String, asked: bool },
    #[error("it is a tcp service that names no port, and with --domains it must: say it with SERVICE_LISTEN")]
    NoListen,
    #[error("what is said of it is more than a record takes: {0}")]
    Record(#[from] RecordError),

    #[error(
        "no check is called so; SERVICE_CHECK_HTTP, _HTTPS, _TCP, _DOCKER, _SCRIPT (or _EXEC) and _NONE are, with _INTERVAL, _TIMEOUT, _RISE, _FALL, _STATUS, _METHOD and _HEADERS"
    )]
    UnknownCheck,
    #[error("one check is enough, and there are several: {}", list(.0))]
    SeveralChecks(Vec<String>),
    #[error("the container has no HEALTHCHECK: give its image one, or `--health-cmd`, or choose another check")]
    NoHealthcheck,
    #[error(
        "checks that run commands in containers are off: start the agent with --allow-exec, or choose another check"
    )]
    ExecNotAllowed,
    #[error("it is asked on its own port; another port cannot be named")]
    CheckPort,

    #[error("it has several ports: say which one with {0}")]
    WhichPort(&'static str),
    #[error("{0}")]
    Rule(#[from] RuleError),
    #[error(
        "middlewares have no counterpart here, and without them it might be open to all: say with SERVICE_HOST that it is meant"
    )]
    Middlewares,
    #[error(
        "Traefik's routers for TCP and UDP have no counterpart here: use SERVICE_MODE=tcp and SERVICE_LISTEN=<port>"
    )]
    TraefikProtocol,
    #[error("it does not say to which service of this container it leads: add traefik.http.routers.<router>.service")]
    RouterService,
}

/// What kind of address this is.
pub(super) fn family(ip: IpAddr) -> &'static str {
    if ip.is_ipv4() { "IPv4" } else { "IPv6" }
}

fn internal_way() -> &'static str {
    ", or let the agent register containers' own addresses with --internal"
}

fn ports(ports: &[u16]) -> String {
    match ports {
        [] => "it has none".to_owned(),
        _ => format!("it has {}", ports.iter().map(u16::to_string).collect::<Vec<_>>().join(", ")),
    }
}

fn list(names: &[String]) -> String {
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

impl Reason {
    /// Whether it leaves out no more than a label that means nothing.
    pub fn is_only_told(&self) -> bool {
        matches!(self, Self::Inert | Self::CountedByDocker | Self::Slip(_))
    }
}

impl Refusal {
    /// Something about the whole container.
    pub(super) fn of_container(reason: Reason) -> Self {
        Self { port: None, label: None, reason }
    }

    /// Something about one port.
    pub(super) fn of_port(port: ContainerPort, reason: Reason) -> Self {
        Self { port: Some(port), label: None, reason }
    }

    /// Something that a label says.
    pub(super) fn of_setting(setting: &Setting, reason: Reason) -> Self {
        let value = setting.value.chars().take(SHOWN_LIMIT).collect();
        Self { port: None, label: Some((setting.label.clone(), value)), reason }
    }

    /// The same, about this port.
    #[must_use]
    pub(super) fn at(self, port: ContainerPort) -> Self {
        Self { port: Some(port), ..self }
    }

    /// Whether it is as somebody wanted it, or nothing that anybody asked for: nothing to warn of.
    pub fn is_by_choice(&self) -> bool {
        match self.reason {
            Reason::NotRunning(_) | Reason::Ignored | Reason::NotAsked | Reason::NotTcp => true,
            Reason::Inert | Reason::CountedByDocker | Reason::Slip(_) => true,
            Reason::NoHostName { asked, .. } => !asked,
            Reason::NotPublished { asked, .. } | Reason::Loopback { asked, .. } => !asked,
            Reason::NoPorts { asked } | Reason::NoPortSaid { asked } => !asked,
            _ => false,
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(port) = &self.port {
            write!(f, "port {port}: ")?;
        }
        if let Some((label, value)) = &self.label {
            write!(f, "{}={value:?}: ", label.escape_debug())?;
        }
        self.reason.fmt(f)
    }
}
