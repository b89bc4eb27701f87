//! The command line: what may be set, its default, and why that default. Knows nothing of what is done with it.

use std::ffi::OsString;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{CommandFactory, FromArgMatches, Parser, ValueEnum};
use registry::{AddressError, EndpointList, InstanceAddress, Prefix};

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
    /// etcd's endpoints, comma-separated: http://10.0.0.1:2379,http://10.0.0.2:2379. One that answers is enough; the
    /// others stand in for it.
    #[arg(long, env = "REGISTRAR_ETCD", value_name = "URLS", value_parser = EndpointList::from_str)]
    pub etcd: EndpointList,

    /// The directory in etcd that the key is written to. Its last segment names the service.
    #[arg(long, env = "REGISTRAR_KEY", value_name = "PATH", default_value = "service")]
    pub key: Prefix,

    /// The application's port in this container. It is asked at 127.0.0.1, and its mapping on the host is registered.
    #[arg(long, env = "REGISTRAR_PORT", value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub port: u16,

    /// Docker's socket, shared into this container with -v /var/run/docker.sock:/var/run/docker.sock. It is only read.
    #[arg(long, env = "REGISTRAR_DOCKER", value_name = "SOCKET", default_value = "/var/run/docker.sock")]
    pub docker: PathBuf,

    /// The host's address as other hosts reach it, or a name that resolves to it. Without it, the address that the
    /// port is published on (-p ADDRESS::PORT) is taken; a port published on all addresses (-p PORT) needs this flag.
    #[arg(long, env = "REGISTRAR_IP", value_name = "ADDRESS|NAME", default_value = "", hide_default_value = true)]
    pub ip: Host,

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

    /// The limit on one request to one etcd endpoint. A member that is well answers in milliseconds; an election of a
    /// new leader takes a second or two.
    #[arg(long, env = "REGISTRAR_ETCD_TIMEOUT", value_name = "TIME", default_value = "3s", value_parser = positive)]
    pub etcd_timeout: Duration,

    /// How the log on the standard error is written.
    #[arg(long, env = "REGISTRAR_LOG_FORMAT", value_name = "FORMAT", value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,

    /// What is logged: info is what an operator wants every day.
    #[arg(long, env = "REGISTRAR_LOG_LEVEL", value_name = "LEVEL", value_enum, default_value_t = LogLevel::Info)]
    pub log_level: LogLevel,
}

impl Config {
    /// Reads the command line, program name first, and the environment.
    ///
    /// # Errors
    /// What clap says of it, `--help` included; its `exit` prints that and ends the process, with 2 for a wrong flag.
    pub fn from_args<T: Into<OsString> + Clone>(args: impl IntoIterator<Item = T>) -> Result<Self, clap::Error> {
        let command = Self::command().mut_args(|arg| {
            let empty = arg.get_env().is_some_and(|name| std::env::var_os(name).is_some_and(|value| value.is_empty()));
            // A user and password may be part of --etcd, so that values stay out of the help.
            let arg = arg.hide_env_values(true);
            if empty { arg.env(None) } else { arg }
        });
        Self::from_arg_matches(&command.try_get_matches_from(args)?)
    }
}

/// Where other hosts reach this one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Host {
    /// Where the port is published.
    Published,
    /// This address.
    Address(IpAddr),
    /// What this name resolves to.
    Name(String),
}

/// Why a text is no host.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HostError {
    /// An address that other hosts cannot connect to.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// Neither an address nor a name.
    #[error("neither an IP address nor a host name; write 10.1.0.101 or host-1.example.org, without a port")]
    Form,
}

impl FromStr for Host {
    type Err = HostError;

    fn from_str(text: &str) -> Result<Self, HostError> {
        if text.is_empty() {
            return Ok(Self::Published);
        }
        if let Ok(ip) = text.parse() {
            // The port stands in for the mapped one.
            return Ok(Self::Address(InstanceAddress::new(ip, 1)?.ip()));
        }
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        let has_letter = text.chars().any(|c| c.is_ascii_alphabetic());
        if text.len() <= 253 && has_letter && text.chars().all(allowed) {
            return Ok(Self::Name(text.to_owned()));
        }
        Err(HostError::Form)
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Published => Ok(()),
            Self::Address(ip) => ip.fmt(f),
            Self::Name(name) => f.write_str(name),
        }
    }
}

/// How the application is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Check {
    /// A GET that is answered.
    Http,
    /// A connection that stays.
    Tcp,
}

/// How the log is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Lines for people.
    Text,
    /// One JSON object a line.
    Json,
}

/// What is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[allow(missing_docs, reason = "the names say it")]
pub enum LogLevel {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

impl LogLevel {
    /// The level as a filter names it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|error| format!("{error}; write 500ms, 5s or 2m"))
}

fn positive(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        Duration::ZERO => Err("must be longer than nothing".into()),
        time => Ok(time),
    }
}

fn at_least_a_second(text: &str) -> Result<Duration, String> {
    let time = duration(text)?;
    if time < Duration::from_secs(1) { Err("etcd counts it in seconds, at least 1s".into()) } else { Ok(time) }
}

fn count() -> clap::builder::RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(1..=1000)
}

/// A name by Docker's rule (`[a-zA-Z0-9][a-zA-Z0-9_.-]+`), which an id is too.
fn container_name(text: &str) -> Result<String, String> {
    if crate::own::is_container_name(text) {
        Ok(text.to_owned())
    } else {
        Err("no name or id of a container: letters, digits, '_', '.' and '-'".into())
    }
}

fn check_path(text: &str) -> Result<String, String> {
    if text.starts_with('/') && text.chars().all(|c| c.is_ascii_graphic()) {
        Ok(text.to_owned())
    } else {
        Err("must begin with / and have no blanks, such as /health".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &str) -> Result<Config, String> {
        let args = format!("registrar --etcd http://h1:2379 --port 8000 {args}");
        let args: Vec<_> = args.split_whitespace().map(|arg| arg.replace("''", "")).collect();
        Config::from_args(args).map_err(|error| error.to_string())
    }

    #[test]
    fn the_defaults_are_those_of_the_contract() {
        let config = parse("").unwrap();
        assert_eq!((config.key.path().as_str(), config.port), ("/service", 8000));
        assert_eq!(config.docker, PathBuf::from("/var/run/docker.sock"));
        assert_eq!((config.ip, config.container), (Host::Published, None));
        assert_eq!((config.check, config.check_path.as_str()), (Check::Http, "/"));
        let seconds = [config.interval, config.timeout, config.ttl, config.linger, config.etcd_timeout];
        assert_eq!(seconds.map(|time| time.as_millis()), [5000, 3000, 20_000, 1000, 3000]);
        assert_eq!((config.rise, config.fall), (1, 1));
    }

    #[test]
    fn an_ip_is_an_address_or_a_name_and_an_empty_one_is_absent() {
        let ip = |text: &str| parse(&format!("--ip={text}")).unwrap().ip;
        assert_eq!(ip("10.1.0.101"), Host::Address([10, 1, 0, 101].into()));
        assert_eq!(ip("::1"), Host::Address("::1".parse().unwrap()));
        assert_eq!(ip("host-1.example.org"), Host::Name("host-1.example.org".into()));
        assert_eq!(ip("''"), Host::Published);
    }

    #[test]
    fn a_wrong_value_is_refused_with_the_flag_and_what_is_right() {
        let cases = [
            ("--ip 0.0.0.0", "not the address of one host"),
            ("--ip 10.0.0.1:80", "without a port"),
            ("--ip 10.0.0.999", "neither an IP address"),
            ("--interval 5", "write 500ms, 5s or 2m"),
            ("--interval 0s", "longer than nothing"),
            ("--timeout soon", "write 500ms"),
            ("--ttl 200ms", "at least 1s"),
            ("--rise 0", "--rise"),
            ("--fall=-1", "--fall"),
            ("--check udp", "possible values: http, tcp"),
            ("--check-path health", "must begin with /"),
            ("--container a/b", "no name or id"),
            ("--key _hidden", "begins with '_'"),
            ("--log-level loud", "possible values"),
            ("--log-format xml", "possible values"),
            ("--nonsense", "--nonsense"),
            ("agent", "unexpected argument"),
        ];
        for (args, expected) in cases {
            let error = parse(args).unwrap_err();
            assert!(error.contains(expected), "{args}: {error}");
        }
        let errors = [
            (vec!["registrar", "--etcd", "h1:2379", "--port", "1"], "write http://h1:2379"),
            (vec!["registrar", "--etcd", "http://h1:2379"], "--port"),
            (vec!["registrar", "--port", "1"], "--etcd"),
            (vec!["registrar", "--etcd", "http://h1:2379", "--port", "0"], "--port"),
            (vec!["registrar", "--etcd", "http://h1:2379", "--port", "65536"], "--port"),
        ];
        for (args, expected) in errors {
            let error = Config::from_args(&args).unwrap_err().to_string();
            assert!(error.contains(expected), "{args:?}: {error}");
        }
    }

    #[test]
    fn every_flag_has_its_environment_variable() {
        for arg in Config::command().get_arguments() {
            let Some(flag) = arg.get_long().filter(|flag| !matches!(*flag, "help" | "version")) else { continue };
            let expected = format!("REGISTRAR_{}", flag.to_uppercase().replace('-', "_"));
            assert_eq!(arg.get_env().unwrap().to_str(), Some(expected.as_str()));
            assert!(arg.get_help().is_some(), "--{flag} is not explained");
        }
    }
}
