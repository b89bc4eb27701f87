//! The flags of the agent. What it judges containers by is a struct of its own, so that others can judge as it does.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::Args;
use clap::builder::BoolishValueParser;
use observe::admin::Address;
use registry::Prefix;

use super::{AdminFlags, EtcdFlags, Host, LogFlags, at_least_a_second, count, duration, positive};
use crate::service::Domains;

/// Registers all containers of this host that publish ports, as soon as they answer, and removes them before they go.
///
/// One agent per host. The key of a container's port is /KEY/SERVICE/HOST:PORT with the host's address and the mapped
/// port; its value is a JSON object. What is registered, and how it is asked, can be said with labels on the
/// container: SERVICE_NAME, SERVICE_TAGS, SERVICE_CHECK_HTTP and others.
///
/// Every flag can be given as an environment variable too; the flag wins, an empty variable counts as absent.
/// Durations have a unit: 500ms, 5s, 2m.
#[derive(Debug, Clone, Args)]
pub struct AgentConfig {
    #[command(flatten)]
    #[allow(missing_docs, reason = "its fields have them")]
    pub etcd: EtcdFlags,

    #[command(flatten)]
    #[allow(missing_docs, reason = "its fields have them")]
    pub flags: AgentFlags,

    /// Where metrics and health are asked for by HTTP, read-only: 127.0.0.1:9402, unix:/run/registrar/admin.sock, or off.
    #[arg(long, env = "REGISTRAR_ADMIN", value_name = "ADDRESS", default_value = "127.0.0.1:9402")]
    pub admin: Address,

    #[command(flatten)]
    #[allow(missing_docs, reason = "its fields have them")]
    pub operator: AdminFlags,

    #[command(flatten)]
    #[allow(missing_docs, reason = "its fields have them")]
    pub log: LogFlags,
}

/// What the agent does, wherever its keys are kept.
#[derive(Debug, Clone, Args)]
pub struct AgentFlags {
    #[command(flatten)]
    #[allow(missing_docs, reason = "its fields have them")]
    pub scope: ScopeFlags,

    /// How long the keys live after the last refresh, in whole seconds: what a host that dies without a word is still
    /// listed for. Refreshed at a third of it, so that two refreshes may fail.
    #[arg(long, env = "REGISTRAR_TTL", value_name = "TIME", default_value = "20s", value_parser = at_least_a_second)]
    pub ttl: Duration,

    /// How long a container may live on after Docker sent it the signal to stop before it counts as running again.
    /// Until then its keys say `draining`. Longer than the longest `docker stop --time`.
    #[arg(long, env = "REGISTRAR_KILL_GRACE", value_name = "TIME", default_value = "30s", value_parser = positive)]
    pub kill_grace: Duration,

    /// Leave the keys to their time to live when told to stop, for an upgrade of the agent: its successor takes them
    /// over without a gap.
    #[arg(long, env = "REGISTRAR_KEEP_ON_EXIT", value_parser = BoolishValueParser::new())]
    pub keep_on_exit: bool,

    /// How long to stay after the keys are removed when told to stop: time for the load balancers to hear of it before
    /// Docker is stopped.
    #[arg(long, env = "REGISTRAR_LINGER", value_name = "TIME", default_value = "1s", value_parser = duration)]
    pub linger: Duration,
}

/// By what the agent judges a container.
#[derive(Debug, Clone, Args)]
pub struct ScopeFlags {
    /// The directory in etcd below which each service has one of its own.
    #[arg(long, env = "REGISTRAR_KEY", value_name = "PATH", default_value = "service")]
    pub key: Prefix,

    /// Docker's socket, or Podman's. It is only read, except for checks by exec.
    #[arg(long, env = "REGISTRAR_DOCKER", value_name = "SOCKET", default_value = "/var/run/docker.sock")]
    pub docker: PathBuf,

    /// This host's address as other hosts reach it, or a name that resolves to it. Without it, the address that a port
    /// is published on (-p ADDRESS::PORT) is taken, else the address of the interface with the default route.
    #[arg(long, env = "REGISTRAR_IP", value_name = "ADDRESS|NAME", default_value = "", hide_default_value = true)]
    pub ip: Host,

    /// Register only containers that ask for it with a label: SERVICE_NAME, SERVICE_<port>_NAME, VIRTUAL_HOST or
    /// traefik.enable=true.
    #[arg(long, env = "REGISTRAR_EXPLICIT", value_parser = BoolishValueParser::new())]
    pub explicit: bool,

    /// Register the containers' own addresses and ports instead of the host's, for networks that other hosts reach:
    /// overlay, macvlan.
    #[arg(long, env = "REGISTRAR_INTERNAL", value_parser = BoolishValueParser::new())]
    pub internal: bool,

    /// With --internal: the network whose addresses are registered, for containers that are in several.
    #[arg(long, env = "REGISTRAR_NETWORK", value_name = "NAME", requires = "internal")]
    pub network: Option<String>,

    /// The host names that containers may claim (SERVICE_HOST and its like), comma-separated: a.example,*.b.example. What
    /// names none is not registered then; nor is a tcp service without SERVICE_LISTEN. Without this flag, any.
    #[arg(long, env = "REGISTRAR_DOMAINS", value_name = "NAMES", default_value = "", hide_default_value = true)]
    pub domains: Domains,

    /// Allow checks that run a command in the container (SERVICE_CHECK_SCRIPT). Off, because whoever may set a label
    /// could then have commands run again and again.
    #[arg(long, env = "REGISTRAR_ALLOW_EXEC", value_parser = BoolishValueParser::new())]
    pub allow_exec: bool,

    #[command(flatten)]
    #[allow(missing_docs, reason = "its fields have them")]
    pub check: CheckFlags,

    /// Where the agent keeps its id, by which it knows its own keys after a restart. In a container: a volume.
    #[arg(long, env = "REGISTRAR_STATE_DIR", value_name = "DIR", default_value = "/var/lib/registrar")]
    pub state_dir: PathBuf,

    /// The agent's id, instead of the one in --state-dir. Each host needs one of its own.
    #[arg(long, env = "REGISTRAR_AGENT_ID", value_name = "ID", value_parser = agent_id)]
    pub agent_id: Option<String>,

    /// This host's name in the records. Without it, the kernel's host name.
    #[arg(long, env = "REGISTRAR_HOST", value_name = "NAME", value_parser = host_name)]
    pub host: Option<String>,
}

/// How containers are asked, unless their labels say otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Args)]
pub struct CheckFlags {
    /// How often it is asked. After the start it is asked more often, until it answers for the first time.
    #[arg(long, env = "REGISTRAR_INTERVAL", value_name = "TIME", default_value = "5s", value_parser = positive)]
    pub interval: Duration,

    /// How long it may take to answer.
    #[arg(long, env = "REGISTRAR_TIMEOUT", value_name = "TIME", default_value = "3s", value_parser = positive)]
    pub timeout: Duration,

    /// How many answers in a row make it registered. One: it has just shown that it works. A HEALTHCHECK of Docker's
    /// counts by itself.
    #[arg(long, env = "REGISTRAR_RISE", value_name = "COUNT", default_value_t = 1, value_parser = count())]
    pub rise: u32,

    /// How many late or bad answers in a row make it removed. A refused connection counts at once.
    #[arg(long, env = "REGISTRAR_FALL", value_name = "COUNT", default_value_t = 3, value_parser = count())]
    pub fall: u32,
}

/// Whether this may be an agent's id: it gets into every record.
pub(crate) fn is_agent_id(text: &str) -> bool {
    registry::ServiceName::from_str(text).is_ok()
}

pub(super) fn agent_id(text: &str) -> Result<String, String> {
    if is_agent_id(text) {
        Ok(text.to_owned())
    } else {
        Err("no id: at most 64 letters, digits, '_', '.' and '-', such as host-1".into())
    }
}

/// A name as it gets into records.
pub(super) fn host_name(text: &str) -> Result<String, String> {
    if !text.is_empty() && text.len() <= 253 && !text.chars().any(|c| c.is_control() || c.is_whitespace()) {
        Ok(text.to_owned())
    } else {
        Err("no host name: without blanks, at most 253 characters".into())
    }
}
