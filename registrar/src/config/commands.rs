//! The flags of the commands beside the daemons: list, explain, static, completions and man.

use std::path::PathBuf;
use std::time::Duration;

use clap::builder::BoolishValueParser;
use clap::{Args, ValueEnum};
use clap_complete::Shell;
use observe::admin::Address;
use registry::record::WEIGHT_LIMIT;
use registry::{InstanceAddress, Prefix, ServiceName, settings};

use super::agent::{agent_id, host_name};
use super::sidekick::{check_path, container_name};
use super::{AdminFlags, CheckFlags, EtcdFlags, LogFlags, ScopeFlags, at_least_a_second, duration};

/// Lists what is registered: services, instances, their status, what is left of their time to live, and where they run.
#[derive(Debug, Clone, Args)]
pub struct ListConfig {
    #[command(flatten)]
    #[allow(missing_docs, reason = "its fields have them")]
    pub etcd: EtcdFlags,

    /// The directory in etcd that is listed.
    #[arg(long, env = "REGISTRAR_KEY", value_name = "PATH", default_value = "service")]
    pub key: Prefix,

    /// Print one JSON object with all that is known, instead of a table.
    #[arg(long, env = "REGISTRAR_JSON", value_parser = BoolishValueParser::new())]
    pub json: bool,

    #[command(flatten)]
    #[allow(missing_docs, reason = "its fields have them")]
    pub log: LogFlags,
}

/// Says why a container is registered, or why it is not: each step from Docker's state to the key in etcd, with the
/// first that says no, and what to do about it.
///
/// It judges by the same flags and variables as the agent: run it with those of the agent, or in the agent's container.
/// Ends with 0 when no step says no, else with 1. What happens behind etcd, up to HAProxy, `discoverer explain` says.
#[derive(Debug, Clone, Args)]
#[command(override_usage = "registrar explain [OPTIONS] <CONTAINER>\n       For example: registrar explain web-1")]
pub struct ExplainConfig {
    /// The container's name or id.
    #[arg(value_name = "CONTAINER", value_parser = container_name)]
    pub container: String,

    #[command(flatten)]
    #[allow(missing_docs, reason = "its fields have them")]
    pub etcd: EtcdFlags,

    #[command(flatten)]
    #[allow(missing_docs, reason = "its fields have them")]
    pub scope: ScopeFlags,

    #[command(flatten)]
    #[allow(missing_docs, reason = "its fields have them")]
    pub log: LogFlags,
}

/// Registers something that does not run in Docker, for as long as it answers.
///
/// The key is /KEY/NAME/ADDRESS:PORT, its value a JSON object as the agent writes it.
#[derive(Debug, Clone, Args)]
pub struct StaticConfig {
    #[command(flatten)]
    #[allow(missing_docs, reason = "its fields have them")]
    pub etcd: EtcdFlags,

    /// The directory in etcd below which each service has one of its own.
    #[arg(long, env = "REGISTRAR_KEY", value_name = "PATH", default_value = "service")]
    pub key: Prefix,

    /// Where it is reached, by other hosts too: 10.0.0.5:8080 or [2001:db8::5]:8080.
    #[arg(long, env = "REGISTRAR_ADDRESS", value_name = "ADDRESS:PORT")]
    pub address: InstanceAddress,

    /// The service that it is an instance of.
    #[arg(long, env = "REGISTRAR_NAME", value_name = "SERVICE")]
    pub name: ServiceName,

    /// Its weight among the service's instances, 0 to 256.
    #[arg(long, env = "REGISTRAR_WEIGHT", value_name = "WEIGHT",
          value_parser = clap::value_parser!(u16).range(..=i64::from(WEIGHT_LIMIT)))]
    pub weight: Option<u16>,

    /// Its tags, comma-separated.
    #[arg(long, env = "REGISTRAR_TAGS", value_name = "TAGS", value_delimiter = ',', value_parser = text)]
    pub tags: Vec<String>,

    /// What else is to be known of it, as the labels SERVICE_X say it of a container: host=shop.example. Several: with
    /// the flag given again, or joined by ';'.
    #[arg(long, env = "REGISTRAR_ATTRIBUTE", value_name = "NAME=VALUE", value_delimiter = ';', value_parser = attribute)]
    pub attribute: Vec<(String, String)>,

    /// How it is asked whether it answers.
    #[arg(long, env = "REGISTRAR_CHECK", value_name = "KIND", value_enum, default_value_t = StaticCheck::Tcp)]
    pub check: StaticCheck,

    /// What --check http and https ask for.
    #[arg(long, env = "REGISTRAR_CHECK_PATH", value_name = "PATH", default_value = "/", value_parser = check_path)]
    pub check_path: String,

    #[command(flatten)]
    #[allow(missing_docs, reason = "its fields have them")]
    pub asking: CheckFlags,

    /// How long the key lives after the last refresh, in whole seconds. Refreshed at a third of it, so that two
    /// refreshes may fail.
    #[arg(long, env = "REGISTRAR_TTL", value_name = "TIME", default_value = "20s", value_parser = at_least_a_second)]
    pub ttl: Duration,

    /// How long to stay after the key is removed when told to stop.
    #[arg(long, env = "REGISTRAR_LINGER", value_name = "TIME", default_value = "1s", value_parser = duration)]
    pub linger: Duration,

    /// Whose mark the key carries, by which it is known after a restart. Without it, `static-` with the address and the name.
    /// Not that of an agent, which would take the key for one of its own, nor of another one like this: that one lives is
    /// taken for a sign that all keys of its mark are kept.
    #[arg(long, env = "REGISTRAR_AGENT_ID", value_name = "ID", value_parser = agent_id)]
    pub agent_id: Option<String>,

    /// The host's name in the record. Without it, the kernel's host name.
    #[arg(long, env = "REGISTRAR_HOST", value_name = "NAME", value_parser = host_name)]
    pub host: Option<String>,

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

/// How something that does not run in Docker is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum StaticCheck {
    /// A connection that is not closed at once.
    Tcp,
    /// A GET that is answered with a status below 500.
    Http,
    /// The same over TLS; the certificate is not verified.
    Https,
    /// Not at all: it is registered until this program is told to stop.
    None,
}

/// Prints what lets a shell complete this program's flags.
#[derive(Debug, Clone, Args)]
pub struct CompletionsConfig {
    /// The shell.
    #[arg(value_name = "SHELL", value_enum)]
    pub shell: Shell,
}

/// Writes the manual pages, one for each command.
#[derive(Debug, Clone, Args)]
pub struct ManConfig {
    /// The directory to write to.
    #[arg(value_name = "DIR")]
    pub directory: PathBuf,
}

fn text(text: &str) -> Result<String, String> {
    if text.is_empty() || text.len() > 256 || text.chars().any(char::is_control) {
        return Err("a word of 1 to 256 characters".into());
    }
    Ok(text.to_owned())
}

fn attribute(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("write NAME=VALUE, such as host=shop.example")?;
    let name = self::text(name)?.to_ascii_lowercase();
    settings::check(&name, value).map_err(|error| error.to_string())?;
    if value.len() > 1024 || value.chars().any(char::is_control) {
        return Err("a value has at most 1024 characters, and no control characters".into());
    }
    Ok((name, value.to_owned()))
}
