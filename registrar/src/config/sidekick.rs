//! The flags of the sidekick, which is the registrar without a subcommand.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use observe::admin::Address;
use registry::Prefix;

use super::{AdminFlags, EtcdFlags, Host, LogFlags, at_least_a_second, count, duration, positive};

/// Registers this container in etcd as soon as its application answers, and removes it when the application stops
/// answering or the container is stopped.
///
/// Runs beside the application, in the same container. The key is /KEY/HOST:PORT with the Docker host's address and
/// the mapped port; its value is `running`.
///
/// Every flag can be given as an environment variable too; the flag wins, an empty variable counts as absent.
/// Durations have a unit: 500ms, 5s, 2m.
#[derive(Debug, Clone, Parser)]
#[command(name = "registrar", version)]
pub struct Config {
    #[command(flatten)]
    #[allow(missing_docs, reason = "its fields have them")]
    pub etcd: EtcdFlags,

    /// The directory in etcd that the key is written to. Its last segment names the service.
    #[arg(long, env = "REGISTRAR_KEY", value_name = "PATH", default_value = "service")]
    pub key: Prefix,

    /// The application's port in this container. It is asked at 127.0.0.1, and its mapping on the host is registered.
    #[arg(long, env = "REGISTRAR_PORT", value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub port: u16,

    /// Docker's socket, shared into this container with -v /var/run/docker.sock:/var/run/docker.sock. It is only read: a
    /// read-only proxy's socket will do. Not needed with --mapped-port.
    #[arg(long, env = "REGISTRAR_DOCKER", value_name = "SOCKET", default_value = "/var/run/docker.sock")]
    pub docker: PathBuf,

    /// The host's address as other hosts reach it, or a name that resolves to it. Without it, the address that the
    /// port is published on (-p ADDRESS::PORT) is taken; a port published on all addresses (-p PORT) needs this flag.
    #[arg(long, env = "REGISTRAR_IP", value_name = "ADDRESS|NAME", default_value = "", hide_default_value = true)]
    pub ip: Host,

    /// The port of the host that --port is published on, where it is known beforehand (-p 32768:8000). Docker is not asked
    /// then, so that the container needs no socket of Docker's; --ip says the host's address.
    #[arg(long, env = "REGISTRAR_MAPPED_PORT", value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub mapped_port: Option<u16>,

    /// This container's name or id. Needed only where it cannot be found out from /proc and the host name.
    #[arg(long, env = "REGISTRAR_CONTAINER", value_name = "NAME|ID", value_parser = container_name)]
    pub container: Option<String>,

    /// How the application is asked: http takes any status below 500 as an answer and follows no redirect; tcp is for
    /// what speaks no HTTP, and takes a connection that is not closed at once.
    #[arg(long, env = "REGISTRAR_CHECK", value_name = "KIND", value_enum, default_value_t = Check::Http)]
    pub check: Check,

    /// What --check http asks for.
    #[arg(long, env = "REGISTRAR_CHECK_PATH", value_name = "PATH", default_value = "/", value_parser = check_path)]
    pub check_path: String,

    /// How often the application is asked. After the start it is asked more often, until it answers for the first time.
    #[arg(long, env = "REGISTRAR_INTERVAL", value_name = "TIME", default_value = "5s", value_parser = positive)]
    pub interval: Duration,

    /// How long it may take to answer. Shorter than --interval, so that one question ends before the next.
    #[arg(long, env = "REGISTRAR_TIMEOUT", value_name = "TIME", default_value = "3s", value_parser = positive)]
    pub timeout: Duration,

    /// How many answers in a row make it registered. One: it has just shown that it works.
    #[arg(long, env = "REGISTRAR_RISE", value_name = "COUNT", default_value_t = 1, value_parser = count())]
    pub rise: u32,

    /// How many missing answers in a row make it removed. One: no request should go where none is answered.
    #[arg(long, env = "REGISTRAR_FALL", value_name = "COUNT", default_value_t = 1, value_parser = count())]
    pub fall: u32,

    /// How long the key lives after the last refresh, in whole seconds: what a host that dies without a word is still
    /// listed for. Refreshed at a third of it, so that two refreshes may fail.
    #[arg(long, env = "REGISTRAR_TTL", value_name = "TIME", default_value = "20s", value_parser = at_least_a_second)]
    pub ttl: Duration,

    /// How long to stay after the key is removed when told to stop: time for the load balancers to hear of it before
    /// the application is stopped.
    #[arg(long, env = "REGISTRAR_LINGER", value_name = "TIME", default_value = "1s", value_parser = duration)]
    pub linger: Duration,

    /// Where metrics and health are asked for by HTTP, read-only: 127.0.0.1:9402, unix:/run/registrar/admin.sock, or off.
    #[arg(long, env = "REGISTRAR_ADMIN", value_name = "ADDRESS", default_value = "off")]
    pub admin: Address,

    #[command(flatten)]
    #[allow(missing_docs, reason = "its fields have them")]
    pub operator: AdminFlags,

    #[command(flatten)]
    #[allow(missing_docs, reason = "its fields have them")]
    pub log: LogFlags,
}

/// How the application is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Check {
    /// A GET that is answered.
    Http,
    /// A connection that stays.
    Tcp,
}

/// A name by Docker's rule (`[a-zA-Z0-9][a-zA-Z0-9_.-]+`), which an id is too.
pub(super) fn container_name(text: &str) -> Result<String, String> {
    if crate::own::is_container_name(text) {
        Ok(text.to_owned())
    } else {
        Err("no name or id of a container: letters, digits, '_', '.' and '-'".into())
    }
}

pub(super) fn check_path(text: &str) -> Result<String, String> {
    if text.starts_with('/') && text.chars().all(|c| c.is_ascii_graphic()) {
        Ok(text.to_owned())
    } else {
        Err("must begin with / and have no blanks, such as /health".into())
    }
}
