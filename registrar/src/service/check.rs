//! How an instance is asked whether it answers, as its labels say it. Pure: nothing is asked here.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

use registry::InstanceAddress;
use registry::settings::{UrlPath, parse_switch};
use reqwest::header::{HOST, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Method, StatusCode};

use super::labels::{PortLabels, Setting};
use super::refusal::{Reason, Refusal};
use crate::config::CheckFlags;

/// How often in a row at most.
const COUNT_LIMIT: u32 = 1000;
/// The longest interval, and what to say of a longer one.
const INTERVAL_LIMIT: (Duration, &str) =
    (Duration::from_secs(24 * 60 * 60), "a time with its unit, such as 500ms, 5s or 1m, at most 24h");
/// The longest timeout: a question that waits takes one of the places that all containers share.
const TIMEOUT_LIMIT: (Duration, &str) =
    (Duration::from_secs(60), "a time with its unit, such as 500ms or 5s, at most 1m");
/// The longest command.
const COMMAND_LIMIT: usize = 4096;

/// How one instance is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// By what means.
    pub kind: CheckKind,
    /// How often.
    pub interval: Duration,
    /// How long an answer may take.
    pub timeout: Duration,
    /// How many answers in a row make it registered.
    pub rise: u32,
    /// How many late or bad answers in a row make it removed.
    pub fall: u32,
}

/// By what means an instance is asked.
///
/// `targets`: where it may be reached from this host, the best first; the next is for where there is no way to the one
/// before. For HTTP that is the address that is registered, since it is what others will ask. For a connection it is the
/// container's own: on the other one Docker's proxy takes connections for an application that is not there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CheckKind {
    /// An HTTP request.
    Http(HttpCheck),
    /// A connection that stays.
    Tcp {
        /// Where it may be reached.
        targets: Vec<SocketAddr>,
        /// Whether the last of them is a port that Docker publishes: its proxy takes connections for an application
        /// that is not there, and closes them at once.
        proxied: bool,
    },
    /// What Docker's HEALTHCHECK says.
    Docker,
    /// A command in the container that ends with 0.
    Exec {
        /// The command and its arguments.
        command: Vec<String>,
    },
    /// Not at all: it counts as answering while it runs.
    None,
}

impl CheckKind {
    /// Where it may be reached, the best first; nothing where nobody is asked over the network.
    pub fn targets(&self) -> &[SocketAddr] {
        match self {
            Self::Http(HttpCheck { targets, .. }) | Self::Tcp { targets, .. } => targets,
            Self::Docker | Self::Exec { .. } | Self::None => &[],
        }
    }
}

/// An HTTP request, and which answers are good.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpCheck {
    /// Whether it goes over TLS; the certificate is not verified, since an address is no name.
    pub tls: bool,
    /// Where it may be reached.
    pub targets: Vec<SocketAddr>,
    /// Whether the first of them is a port that Docker publishes.
    pub proxied: bool,
    /// The path, with its query.
    pub path: String,
    /// The method.
    pub method: Method,
    /// The headers, `Host` among them where it matters.
    pub headers: HeaderMap,
    /// Which status is good.
    pub expected: Expected,
}

/// Which HTTP statuses are good.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expected {
    /// Any below 500: the application is there, whatever it thinks of the request.
    Below500,
    /// Those in one of these ranges.
    Ranges(Vec<RangeInclusive<u16>>),
}

impl Expected {
    /// Whether the status is good.
    pub fn contains(&self, status: StatusCode) -> bool {
        match self {
            Self::Below500 => status.as_u16() < 500,
            Self::Ranges(ranges) => ranges.iter().any(|range| range.contains(&status.as_u16())),
        }
    }
}

/// What a check is made of beside its labels.
pub(super) struct Surroundings {
    /// Where this host asks, the container's own address first.
    pub(super) own_first: Vec<SocketAddr>,
    /// The same, what is registered first.
    pub(super) registered_first: Vec<SocketAddr>,
    /// Whether what is registered is a port that Docker publishes.
    pub(super) proxied: bool,
    /// What is registered.
    pub(super) address: InstanceAddress,
    /// Whether the container has a HEALTHCHECK.
    pub(super) has_healthcheck: bool,
    /// Whether the instance speaks TLS, by its settings.
    pub(super) tls: bool,
    /// The name by which it is asked.
    pub(super) host: Option<String>,
    /// Whether commands may be run.
    pub(super) allow_exec: bool,
    /// What holds where labels say nothing.
    pub(super) defaults: CheckFlags,
}

/// The words for what is checked how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Word {
    Http,
    Https,
    Tcp,
    Docker,
    Exec,
    None,
}

const WORDS: [(&str, Word); 7] = [
    ("check_http", Word::Http),
    ("check_https", Word::Https),
    ("check_tcp", Word::Tcp),
    ("check_docker", Word::Docker),
    ("check_script", Word::Exec),
    ("check_exec", Word::Exec),
    ("check_none", Word::None),
];

/// What else may be said of a check. registrator has the methods by the names of their checks.
const DETAILS: [&str; 9] = [
    "check_interval",
    "check_timeout",
    "check_rise",
    "check_fall",
    "check_status",
    "check_method",
    "check_http_method",
    "check_https_method",
    "check_headers",
];

/// What Consul takes from registrator's labels and nothing here does.
const INERT: [&str; 3] = ["check_initial_status", "check_deregister_after", "check_tls_skip_verify"];

/// All that may be said of a check.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    WORDS.into_iter().map(|(name, _)| name).chain(DETAILS).chain(INERT)
}

/// Whether a setting is about the check, and no attribute.
pub(super) fn is_about_check(name: &str) -> bool {
    name == "check" || name.starts_with("check_")
}

/// The one check that is asked for, with the label that does. `None` where none is.
///
/// What was said closest to the port wins; two of equal rank are refused.
fn chosen<'a>(labels: &PortLabels<'a>) -> Result<Option<(Word, &'a Setting)>, Refusal> {
    let mut asked = Vec::new();
    for (name, word) in WORDS {
        let Some(setting) = labels.get(name)? else { continue };
        let is_path = matches!(word, Word::Http | Word::Https | Word::Exec);
        if is_path || parse_switch(&setting.value).map_err(|error| Refusal::of_setting(setting, error.into()))? {
            asked.push((word, setting));
        }
    }
    let Some(best) = asked.iter().map(|(_, setting)| setting.rank).min() else { return Ok(None) };
    asked.retain(|(_, setting)| setting.rank == best);
    match asked.as_slice() {
        [one] => Ok(Some(*one)),
        [(_, first), ..] => {
            let labels = asked.iter().map(|(_, setting)| setting.label.clone()).collect();
            Err(Refusal::of_setting(first, Reason::SeveralChecks(labels)))
        }
        [] => Ok(None),
    }
}

/// Whether the check goes over TLS, and the path that it asks. `None` where it is not HTTP.
pub(super) fn http_path(labels: &PortLabels<'_>) -> Result<Option<(bool, UrlPath)>, Refusal> {
    match chosen(labels)? {
        Some((word @ (Word::Http | Word::Https), setting)) => {
            let path = setting
                .value
                .parse()
                .map_err(|error: registry::settings::SettingError| Refusal::of_setting(setting, error.into()))?;
            Ok(Some((word == Word::Https, path)))
        }
        _ => Ok(None),
    }
}

/// Labels that look like checks and mean nothing here.
pub(super) fn strangers(labels: &PortLabels<'_>) -> Vec<Refusal> {
    let is_known = |name: &str| WORDS.iter().any(|(word, _)| *word == name) || DETAILS.contains(&name);
    let unknown = labels.names().into_iter().filter(|name| is_about_check(name) && !is_known(name));
    let refusal = |name: &str| {
        let setting = labels.get(name).ok().flatten()?;
        let reason = if INERT.contains(&name) { Reason::Inert } else { Reason::UnknownCheck };
        Some(Refusal::of_setting(setting, reason))
    };
    unknown.filter_map(refusal).collect()
}

/// Reads how an instance is asked: as its labels say, else by its HEALTHCHECK, else by a connection.
pub(super) fn read(labels: &PortLabels<'_>, surroundings: Surroundings) -> Result<Check, Refusal> {
    let Surroundings { own_first, registered_first, proxied, address, has_healthcheck, .. } = surroundings;
    let Surroundings { tls, host, allow_exec, defaults, .. } = surroundings;
    let kind = match chosen(labels)? {
        Some((Word::Http | Word::Https, setting)) => {
            let path = http_path(labels)?.map(|(over_tls, path)| (tls || over_tls, path));
            let (tls, path) = path.ok_or_else(|| Refusal::of_setting(setting, Reason::UnknownCheck))?;
            CheckKind::Http(HttpCheck {
                tls,
                targets: registered_first,
                proxied,
                path: path.to_string(),
                method: method(labels)?,
                headers: headers(labels, host)?,
                expected: expected(labels)?,
            })
        }
        Some((Word::Tcp, _)) => CheckKind::Tcp { targets: own_first, proxied },
        Some((Word::Docker, setting)) if !has_healthcheck => {
            return Err(Refusal::of_setting(setting, Reason::NoHealthcheck));
        }
        Some((Word::Docker, _)) => CheckKind::Docker,
        Some((Word::Exec, setting)) => CheckKind::Exec { command: command(setting, allow_exec, address)? },
        Some((Word::None, _)) => CheckKind::None,
        None if has_healthcheck => CheckKind::Docker,
        None => CheckKind::Tcp { targets: own_first, proxied },
    };
    let (rise, fall) = (count(labels, "check_rise")?, count(labels, "check_fall")?);
    // Docker tells of a HEALTHCHECK when it changes its mind, after as many results as it was told to wait for.
    let counted = kind == CheckKind::Docker;
    let number = |said: Option<u32>, default| if counted { 1 } else { said.unwrap_or(default) };
    Ok(Check {
        kind,
        interval: duration(labels, "check_interval", INTERVAL_LIMIT)?.unwrap_or(defaults.interval),
        timeout: duration(labels, "check_timeout", TIMEOUT_LIMIT)?.unwrap_or(defaults.timeout),
        rise: number(rise, defaults.rise),
        fall: number(fall, defaults.fall),
    })
}

/// Labels that count what Docker counts.
pub(super) fn counted_by_docker(labels: &PortLabels<'_>) -> Vec<Refusal> {
    let said = ["check_rise", "check_fall"].into_iter().filter_map(|name| labels.get(name).ok().flatten());
    said.map(|setting| Refusal::of_setting(setting, Reason::CountedByDocker)).collect()
}

/// A command line for the container's shell; registrator puts address and port in it.
fn command(setting: &Setting, allow_exec: bool, address: InstanceAddress) -> Result<Vec<String>, Refusal> {
    if !allow_exec {
        return Err(Refusal::of_setting(setting, Reason::ExecNotAllowed));
    }
    let script = setting.value.replace("$SERVICE_IP", &address.ip().to_string());
    let script = script.replace("$SERVICE_PORT", &address.port().to_string());
    if script.len() > COMMAND_LIMIT || script.contains('\0') {
        return Err(Refusal::of_setting(setting, Reason::Value("a command of at most 4096 bytes")));
    }
    Ok(["/bin/sh", "-c", &script].map(str::to_owned).to_vec())
}

fn method(labels: &PortLabels<'_>) -> Result<Method, Refusal> {
    for name in ["check_method", "check_http_method", "check_https_method"] {
        if let Some(setting) = labels.get(name)? {
            let is_word = setting.value.len() <= 16 && setting.value.bytes().all(|b| b.is_ascii_uppercase());
            let method = Method::from_bytes(setting.value.as_bytes()).ok().filter(|_| is_word);
            return method
                .ok_or_else(|| Refusal::of_setting(setting, Reason::Value("an HTTP method such as GET or HEAD")));
        }
    }
    Ok(Method::GET)
}

/// `Name: value|Other: value`.
fn headers(labels: &PortLabels<'_>, host: Option<String>) -> Result<HeaderMap, Refusal> {
    let mut headers = HeaderMap::new();
    if let Some(host) = host.and_then(|host| HeaderValue::try_from(host).ok()) {
        headers.insert(HOST, host);
    }
    let Some(setting) = labels.get("check_headers")? else { return Ok(headers) };
    for header in setting.value.split('|') {
        let header = header.split_once(':').and_then(|(name, value)| {
            Some((name.trim().parse::<HeaderName>().ok()?, value.trim().parse::<HeaderValue>().ok()?))
        });
        let not_headers =
            || Refusal::of_setting(setting, Reason::Value("headers such as Accept: text/plain|X-Probe: 1"));
        let (name, value) = header.ok_or_else(not_headers)?;
        headers.insert(name, value);
    }
    Ok(headers)
}

/// `200`, `200-299`, or several joined by commas.
fn expected(labels: &PortLabels<'_>) -> Result<Expected, Refusal> {
    let Some(setting) = labels.get("check_status")? else { return Ok(Expected::Below500) };
    let status = |text: &str| text.trim().parse::<u16>().ok().filter(|status| (100..600).contains(status));
    let range = |text: &str| {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let (first, last) = (status(first)?, status(last)?);
        (first <= last).then_some(first..=last)
    };
    let ranges = setting.value.split(',').map(range).collect::<Option<Vec<_>>>();
    let not_statuses = || Refusal::of_setting(setting, Reason::Value("HTTP statuses such as 200 or 200-299,404"));
    Ok(Expected::Ranges(ranges.ok_or_else(not_statuses)?))
}

fn duration(labels: &PortLabels<'_>, name: &str, limit: (Duration, &'static str)) -> Result<Option<Duration>, Refusal> {
    let Some(setting) = labels.get(name)? else { return Ok(None) };
    let (limit, expected) = limit;
    let time = humantime::parse_duration(&setting.value).ok().filter(|time| !time.is_zero() && *time <= limit);
    time.map(Some).ok_or_else(|| Refusal::of_setting(setting, Reason::Value(expected)))
}

fn count(labels: &PortLabels<'_>, name: &str) -> Result<Option<u32>, Refusal> {
    let Some(setting) = labels.get(name)? else { return Ok(None) };
    let count = setting.value.parse().ok().filter(|count| (1..=COUNT_LIMIT).contains(count));
    count.map(Some).ok_or_else(|| Refusal::of_setting(setting, Reason::Value("a number from 1 to 1000")))
}
