//! What an operator is shown: one picture of everything at one moment. Pure: no I/O, and time comes in.
//!
//! The daemon makes a picture after each change and swaps it in whole. Whoever shows it holds up nobody.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use registry::{InstanceAddress, ServiceName, StoreKind};
use serde::{Deserialize, Serialize};

use crate::feed::Note;
use crate::model::Services;
use crate::options::UnreadOption;

/// Everything, at one moment. Cheap to clone but for what is left out.
#[derive(Debug, Clone)]
pub struct View {
    /// Rises with each picture of this process.
    pub version: u64,
    /// When it was made.
    pub at: Timestamp,
    /// Who made it.
    pub discoverer: DiscovererView,
    /// The services that templates get. One that is left out of the file nevertheless is named in `left_out`.
    pub services: Arc<Services>,
    /// The services, with their instances, that templates do not get, since others hold all their routes.
    pub shut_out: Services,
    /// What HAProxy does not get of the registry, and why; sorted.
    pub left_out: Vec<LeftOut>,
    /// How many keys besides those are no instances: only so many are told one by one.
    pub more_left_out: usize,
    /// The registry.
    pub registry: RegistryView,
    /// HAProxy.
    pub haproxy: HaproxyView,
    /// What has happened lately, oldest first; bounded.
    pub feed: Vec<Arc<Note>>,
}

impl View {
    /// Whether HAProxy has had a configuration of this process: from then on it serves what is registered.
    pub fn is_ready(&self) -> bool {
        self.haproxy.applied.is_some()
    }
}

/// This process.
#[derive(Debug, Clone, Serialize)]
pub struct DiscovererView {
    /// Its id in the registry.
    pub id: String,
    /// Its version.
    pub version: &'static str,
    /// When it was started.
    pub started: Timestamp,
    /// The file that it writes.
    pub output: String,
    /// The template's file.
    pub template: String,
    /// What is wrong with the template, with the file and the line; none where it is in use.
    pub template_error: Option<String>,
    /// Why the configuration that was read last is not in use; none where it is.
    pub config_error: Option<String>,
    /// The options (`--set`) that no template reads.
    pub unread_options: Vec<UnreadOption>,
}

/// Something of the registry that HAProxy does not get.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct LeftOut {
    /// What is left out.
    pub what: Part,
    /// The service that it belongs to, where that is known.
    #[serde(serialize_with = "as_text")]
    pub service: Option<ServiceName>,
    /// The instance's address, where it is about one.
    #[serde(serialize_with = "as_text")]
    pub address: Option<InstanceAddress>,
    /// The key in etcd, or the service's name; control characters are escaped, and what is too long is cut.
    pub subject: String,
    /// Why.
    pub reason: String,
}

/// How much is left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// One key: it is no instance, or its value is no record.
    Key,
    /// One instance: another key names the same address for a newer container.
    Instance,
    /// One setting of a service: the rest of it goes on.
    Setting,
    /// A route of a service, or all of them: another service holds it.
    Route,
    /// The whole service: HAProxy refuses it, or its port cannot be had.
    Service,
}

impl Part {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Key, Self::Instance, Self::Setting, Self::Route, Self::Service];

    /// Its name, as JSON and metrics have it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Key => "key",
            Self::Instance => "instance",
            Self::Setting => "setting",
            Self::Route => "route",
            Self::Service => "service",
        }
    }
}

/// How the registry stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegistryView {
    /// What keeps it.
    #[serde(default)]
    pub store: StoreKind,
    /// etcd's endpoints as they were given, without passwords.
    pub endpoints: Vec<String>,
    /// The directory that is followed.
    pub prefix: String,
    /// The share of it that is followed, such as `tag=edge`: what has one of these; all, where none is named.
    #[serde(default)]
    pub only: Vec<String>,
    /// How many instances are outside of that share.
    #[serde(default)]
    pub outside: usize,
    /// Whether it answers.
    pub connection: Connection,
    /// Since when that is so.
    pub since: Timestamp,
    /// What is wrong, where it does not answer: each endpoint with its cause.
    pub error: Option<String>,
    /// Why Docker does not tell of the containers that this process registers; none where it does, or others register.
    #[serde(default)]
    pub docker_error: Option<String>,
    /// Up to which index (v2) or revision (v3) all changes are known.
    pub index: u64,
    /// When something changed last.
    pub last_change: Option<Timestamp>,
    /// Since when what is served may be older than the registry; none while it is followed.
    pub stale_since: Option<Timestamp>,
}

/// Whether the registry answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Connection {
    /// It has not answered yet.
    Connecting,
    /// It is followed.
    Connected,
    /// It does not answer; HAProxy keeps what it has.
    Unreachable,
}

/// How HAProxy stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct HaproxyView {
    /// How it is reached: by the flag that says so, such as `supervise` or `reload-socket`.
    pub way: &'static str,
    /// Its version as it says it, such as `2.6.12-1+deb12u4`; none where it is not known.
    pub version: Option<String>,
    /// The worker's pid, in its own namespace.
    pub worker: Option<u64>,
    /// When that worker was started.
    pub worker_started: Option<Timestamp>,
    /// Whether it runs; none where that is not known.
    pub is_up: Option<bool>,
    /// How often it was reloaded by this process, by reason.
    pub reloads: BTreeMap<&'static str, u64>,
    /// The last reload, or what came of the attempt.
    pub last_reload: Option<ReloadView>,
    /// The last time that it came to run what was wanted.
    pub applied: Option<AppliedView>,
    /// Since when something is being applied, where that takes long.
    pub applying_since: Option<Timestamp>,
    /// Why it does not run what is wanted now: the error in the words of HAProxy, the kernel or the template. None where it does.
    pub error: Option<String>,
    /// Why the file does not hold what HAProxy runs, so that one that is started anew begins with an older state.
    pub unfiled: Option<String>,
    /// Why the runtime API is not used until the next reload.
    pub distrust: Option<String>,
    /// The backends of the text that it runs to which no rule leads; sorted.
    pub unled: Arc<[String]>,
}

/// One reload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReloadView {
    /// When it began.
    pub at: Timestamp,
    /// Why there had to be one, in words.
    pub reason: String,
    /// How long it took, in milliseconds.
    pub took_ms: u64,
    /// What went wrong; none where HAProxy runs the new file.
    pub error: Option<String>,
}

/// One time that HAProxy came to run what was wanted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AppliedView {
    /// When.
    pub at: Timestamp,
    /// By what: `nothing` (it ran it already), `runtime` or `reload`.
    pub how: &'static str,
}

pub(crate) fn as_text<T: std::fmt::Display, S: serde::Serializer>(
    value: &Option<T>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match value {
        Some(value) => serializer.collect_str(value),
        None => serializer.serialize_none(),
    }
}
