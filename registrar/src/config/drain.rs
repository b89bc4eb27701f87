//! The flags of the commands that take instances out of the load balancers, and back in: drain, undrain and stop.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use clap::builder::BoolishValueParser;
use registry::Prefix;

use super::agent::agent_id;
use super::sidekick::container_name;
use super::{EtcdFlags, Host, LogFlags, duration};

/// Takes a container out of the load balancers: it finishes what it has, and gets nothing new.
///
/// Its keys in etcd get the status `draining`, which its agent or sidekick keeps until `undrain` or the container's next
/// start. With --wait it ends when every discoverer says that the container has nothing more of its HAProxy: then it can be
/// stopped, and no request is lost.
#[derive(Debug, Clone, Args)]
pub struct DrainConfig {
    #[command(flatten)]
    #[allow(missing_docs, reason = "its fields have them")]
    pub which: WhichFlags,

    #[command(flatten)]
    #[allow(missing_docs, reason = "its fields have them")]
    pub target: TargetFlags,

    /// Wait until every discoverer says that nothing of it is left; ends with 1 when the time is over before that, and says
    /// who did not.
    #[arg(long, env = "REGISTRAR_WAIT", value_parser = BoolishValueParser::new())]
    pub wait: bool,

    #[command(flatten)]
    #[allow(missing_docs, reason = "its fields have them")]
    pub limit: LimitFlags,
}

/// Takes a container back into the load balancers: its keys in etcd get the status `running`.
#[derive(Debug, Clone, Args)]
pub struct UndrainConfig {
    #[command(flatten)]
    #[allow(missing_docs, reason = "its fields have them")]
    pub which: WhichFlags,

    #[command(flatten)]
    #[allow(missing_docs, reason = "its fields have them")]
    pub target: TargetFlags,
}

/// Drains a container, waits until every discoverer says that nothing of it is left, and has Docker stop it.
///
/// An application that ends at once when it is told to loses no request then. When the time is over before all discoverers
/// have said so, it says who did not, and stops the container all the same. What cannot be drained is not stopped.
#[derive(Debug, Clone, Args)]
pub struct StopConfig {
    /// The container's name or id.
    #[arg(value_name = "CONTAINER", value_parser = container_name)]
    pub container: String,

    #[command(flatten)]
    #[allow(missing_docs, reason = "its fields have them")]
    pub target: TargetFlags,

    #[command(flatten)]
    #[allow(missing_docs, reason = "its fields have them")]
    pub limit: LimitFlags,
}

/// Whom it is about.
#[derive(Debug, Clone, Args)]
#[group(required = true, multiple = false)]
pub struct WhichFlags {
    /// The container's name or id.
    #[arg(value_name = "CONTAINER", value_parser = container_name)]
    pub container: Option<String>,

    /// All that this host's agent has registered now, as before a reboot. A container that is started afterwards is
    /// registered as ever.
    #[arg(long)]
    pub all: bool,
}

/// Where its keys are, and which are its own.
#[derive(Debug, Clone, Args)]
pub struct TargetFlags {
    #[command(flatten)]
    #[allow(missing_docs, reason = "its fields have them")]
    pub etcd: EtcdFlags,

    /// The directory in etcd with the keys: the one of the agent, or of the sidekick.
    #[arg(long, env = "REGISTRAR_KEY", value_name = "PATH", default_value = "service")]
    pub key: Prefix,

    /// Docker's socket, or Podman's.
    #[arg(long, env = "REGISTRAR_DOCKER", value_name = "SOCKET", default_value = "/var/run/docker.sock")]
    pub docker: PathBuf,

    /// The host's address as the container's sidekick was given it. Only a sidekick's key is found by it; an agent's says
    /// itself whose it is.
    #[arg(long, env = "REGISTRAR_IP", value_name = "ADDRESS|NAME", default_value = "", hide_default_value = true)]
    pub ip: Host,

    /// For --all: where this host's agent keeps its id.
    #[arg(long, env = "REGISTRAR_STATE_DIR", value_name = "DIR", default_value = "/var/lib/registrar")]
    pub state_dir: PathBuf,

    /// For --all: the agent's id, instead of the one in --state-dir. It is an error when no key is that agent's.
    #[arg(long, env = "REGISTRAR_AGENT_ID", value_name = "ID", value_parser = agent_id)]
    pub agent_id: Option<String>,

    /// Print one JSON object with what was done, instead of lines for people.
    #[arg(long, env = "REGISTRAR_JSON", value_parser = BoolishValueParser::new())]
    pub json: bool,

    #[command(flatten)]
    #[allow(missing_docs, reason = "its fields have them")]
    pub log: LogFlags,
}

/// How long is waited.
#[derive(Debug, Clone, Copy, Args)]
pub struct LimitFlags {
    /// How long to wait for the discoverers; `drain` takes it with --wait only. As long as the longest request, and as HAProxy's old workers live after a
    /// reload.
    #[arg(long, env = "REGISTRAR_DRAIN_TIMEOUT", value_name = "TIME", default_value = "60s", value_parser = duration)]
    pub timeout: Duration,
}
