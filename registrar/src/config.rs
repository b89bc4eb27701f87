//! The command line: what may be set, its default, and why that default. Knows nothing of what is done with it.
//!
//! Without a subcommand the program is the sidekick. What several of them take is in shared structs of flags.

mod agent;
mod commands;
mod drain;
mod sidekick;

use std::ffi::OsString;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::builder::BoolishValueParser;
use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{Args, CommandFactory, FromArgMatches, Subcommand, ValueEnum};
use observe::admin::{Access, Address, BindError, Token, TokenError};
use observe::config::{ConfigError, Loaded, Origin, Rules, Source};
use observe::log::Format;
use registry::{AddressError, Api, ApiChoice, EndpointList, InstanceAddress, Password, Security, StoreOptions};

pub(crate) use agent::is_agent_id;
pub use agent::{AgentConfig, AgentFlags, CheckFlags, ScopeFlags};
pub use commands::{CompletionsConfig, ExplainConfig, ListConfig, ManConfig, StaticCheck, StaticConfig};
pub use drain::{DrainConfig, LimitFlags, StopConfig, TargetFlags, UndrainConfig, WhichFlags};
pub use sidekick::{Check, Config};

/// What the program was called to do.
#[derive(Debug, Clone)]
pub enum Program {
    /// No subcommand: the sidekick.
    Sidekick(Box<Config>),
    /// A subcommand.
    Command(Box<Command>),
}

/// The subcommands.
#[derive(Debug, Clone, Subcommand)]
#[allow(missing_docs, reason = "the help is that of their structs")]
pub enum Command {
    Agent(AgentConfig),
    List(ListConfig),
    Explain(ExplainConfig),
    Drain(DrainConfig),
    Undrain(UndrainConfig),
    Stop(StopConfig),
    Static(StaticConfig),
    Completions(CompletionsConfig),
    Man(ManConfig),
}

impl Program {
    /// The whole command line, for the help and whatever else is made from it.
    pub fn command() -> clap::Command {
        let sidekick = Config::command();
        let (about, long_about) =
            (sidekick.get_about().cloned().unwrap_or_default(), sidekick.get_long_about().cloned().unwrap_or_default());
        let command = Command::augment_subcommands(sidekick).about(about).long_about(long_about);
        let command = command.args_conflicts_with_subcommands(true).subcommand_negates_reqs(true);
        observe::config::with_flags(command, &RULES)
    }

    /// What settings are read from: the command line, program name first, the environment, and the file that they name.
    pub fn source<T: Into<OsString>>(args: impl IntoIterator<Item = T>) -> Source {
        Source::new(Self::command(), &RULES, args)
    }

    /// Reads the command line, the environment and the file.
    ///
    /// # Errors
    /// What is wrong with them, `--help` included; its `exit` prints that and ends the process, with 2 for a wrong flag.
    pub fn from_args<T: Into<OsString>>(args: impl IntoIterator<Item = T>) -> Result<Self, ConfigError> {
        Ok(Self::from_loaded(&Self::source(args).read()?)?)
    }

    /// What was read, as the program's own.
    ///
    /// # Errors
    /// Flags that do not go together.
    pub fn from_loaded(loaded: &Loaded) -> Result<Self, clap::Error> {
        let matches = &loaded.matches;
        if let Some(("drain", drain)) = matches.subcommand()
            && matches!(loaded.origin("drain-timeout"), Some(Origin::Flag(_)))
            && !drain.get_flag("wait")
        {
            // In the environment, or in the file, it may stand for `stop`.
            let words = "--timeout says how long --wait waits: give both, or neither";
            return Err(Self::command().error(ErrorKind::MissingRequiredArgument, words));
        }
        if matches.subcommand_name().is_some() {
            return Ok(Self::Command(Box::new(Command::from_arg_matches(matches)?)));
        }
        let config = Config::from_arg_matches(matches)?;
        let given = |name| matches.value_source(name).is_some_and(|source| source != ValueSource::DefaultValue);
        if config.mapped_port.is_some() {
            let (kind, words) = match (&config.ip, given("docker"), given("container")) {
                (Host::Published, ..) => (
                    ErrorKind::MissingRequiredArgument,
                    "--mapped-port needs the host's address too: give --ip, or leave out --mapped-port, so that Docker is asked for both",
                ),
                (_, true, _) => (
                    ErrorKind::ArgumentConflict,
                    "with --mapped-port Docker is not asked: leave out --docker, or leave out --mapped-port, so that Docker is asked",
                ),
                (.., true) => (
                    ErrorKind::ArgumentConflict,
                    "with --mapped-port Docker is not asked for the container: leave out --container, or leave out --mapped-port, so \
                     that Docker is asked",
                ),
                _ => return Ok(Self::Sidekick(Box::new(config))),
            };
            return Err(Self::command().error(kind, words));
        }
        Ok(Self::Sidekick(Box::new(config)))
    }

    /// Whether it runs until it is told to stop, and says in its log what happens.
    pub fn is_daemon(&self) -> bool {
        match self {
            Self::Sidekick(_) => true,
            Self::Command(command) => matches!(**command, Command::Agent(_) | Command::Static(_)),
        }
    }

    /// How it reaches etcd; `None` for what has nothing to do with it.
    pub fn etcd(&self) -> Option<&EtcdFlags> {
        match self {
            Self::Sidekick(config) => Some(&config.etcd),
            Self::Command(command) => match &**command {
                Command::Agent(config) => Some(&config.etcd),
                Command::List(config) => Some(&config.etcd),
                Command::Explain(config) => Some(&config.etcd),
                Command::Drain(config) => Some(&config.target.etcd),
                Command::Undrain(config) => Some(&config.target.etcd),
                Command::Stop(config) => Some(&config.target.etcd),
                Command::Static(config) => Some(&config.etcd),
                Command::Completions(_) | Command::Man(_) => None,
            },
        }
    }

    /// What it offers an operator; `None` for what does not run on.
    pub fn admin(&self) -> Option<(&Address, &AdminFlags)> {
        match self {
            Self::Sidekick(config) => Some((&config.admin, &config.operator)),
            Self::Command(command) => match &**command {
                Command::Agent(config) => Some((&config.admin, &config.operator)),
                Command::Static(config) => Some((&config.admin, &config.operator)),
                _ => None,
            },
        }
    }

    /// How it is to log; `None` for what has nothing to log.
    pub fn log(&self) -> Option<&LogFlags> {
        match self {
            Self::Sidekick(config) => Some(&config.log),
            Self::Command(command) => match &**command {
                Command::Agent(config) => Some(&config.log),
                Command::List(config) => Some(&config.log),
                Command::Explain(config) => Some(&config.log),
                Command::Drain(config) => Some(&config.target.log),
                Command::Undrain(config) => Some(&config.target.log),
                Command::Stop(config) => Some(&config.target.log),
                Command::Static(config) => Some(&config.log),
                Command::Completions(_) | Command::Man(_) => None,
            },
        }
    }
}

/// What the flags do not say of the configuration file.
pub const RULES: Rules = Rules {
    variable: "REGISTRAR_CONFIG",
    lists: &["etcd", "etcd-api", "domains"],
    tables: &["attribute"],
    exclusive: &[],
    lenient: &[],
    at_once: &[
        "allow-exec",
        "attribute",
        "check",
        "check-path",
        "domains",
        "explicit",
        "fall",
        "host",
        "internal",
        "interval",
        "ip",
        "keep-on-exit",
        "kill-grace",
        "linger",
        "log-level",
        "network",
        "rise",
        "tags",
        "timeout",
        "weight",
    ],
};

/// How etcd is reached.
#[derive(Debug, Clone, Args)]
pub struct EtcdFlags {
    /// etcd's endpoints, comma-separated: http://10.0.0.1:2379,http://10.0.0.2:2379. One that answers is enough; the
    /// others stand in for it. srv://example.org stands for the endpoints that DNS has for that name (SRV records
    /// _etcd-client-ssl._tcp and _etcd-client._tcp).
    #[arg(long = "etcd", env = "REGISTRAR_ETCD", value_name = "URLS", value_parser = EndpointList::from_str)]
    pub endpoints: EndpointList,

    /// The limit on one request to one etcd endpoint. A member that is well answers in milliseconds; an election of a
    /// new leader takes a second or two. A page of a long listing by v3 has eight times as long.
    #[arg(long, env = "REGISTRAR_ETCD_TIMEOUT", value_name = "TIME", default_value = "3s", value_parser = positive)]
    pub etcd_timeout: Duration,

    /// Which of etcd's APIs is spoken: v2, v3, or auto: v2 where the cluster serves it, else v3. Each holds its own keys, so
    /// that registrars and discoverers must agree. v2,v3 writes both, and reads the first: for moving from one to the other.
    #[arg(long, env = "REGISTRAR_ETCD_API", value_name = "API", default_value = "auto", value_parser = Apis::from_str)]
    pub etcd_api: Apis,

    #[command(flatten)]
    #[allow(missing_docs, reason = "its fields have them")]
    pub security: SecurityFlags,
}

impl EtcdFlags {
    /// What the store is made with.
    pub fn store_options(&self) -> StoreOptions {
        let mut options = StoreOptions::new(self.endpoints.0.clone());
        options.request_timeout = self.etcd_timeout;
        options.api = self.etcd_api.first;
        options.security = self.security.security();
        options
    }

    /// What each store is made with that keys are kept in.
    pub fn all_store_options(&self) -> Vec<StoreOptions> {
        [Some(self.store_options()), self.second_store_options()].into_iter().flatten().collect()
    }

    /// What the store is made with that is written too; `None` where there is only one.
    pub fn second_store_options(&self) -> Option<StoreOptions> {
        let api = ApiChoice::Only(self.etcd_api.second?);
        Some(StoreOptions { api, ..self.store_options() })
    }
}

/// By which of etcd's APIs keys are kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Apis {
    /// What is written and read.
    pub first: ApiChoice,
    /// What is written as well.
    pub second: Option<Api>,
}

impl FromStr for Apis {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const FORM: &str = "write auto, v2, v3, or both as v2,v3";
        let mut parts = text.split(',').map(str::trim);
        let first = parts.next().unwrap_or_default().parse().map_err(|_| FORM)?;
        let second = match parts.next().map(str::parse) {
            None => None,
            Some(Ok(ApiChoice::Only(api))) if first != ApiChoice::Only(api) && first != ApiChoice::Auto => Some(api),
            Some(_) => return Err(FORM),
        };
        if parts.next().is_some() { Err(FORM) } else { Ok(Self { first, second }) }
    }
}

impl fmt::Display for Apis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.first.fmt(f)?;
        self.second.map_or(Ok(()), |second| write!(f, ",{second}"))
    }
}

/// TLS and users.
#[derive(Debug, Clone, Default, Args)]
pub struct SecurityFlags {
    /// The CA certificates (PEM) that etcd's certificate must be of, instead of the system's. Like the other files, it
    /// is read again when it changes.
    #[arg(long, env = "REGISTRAR_ETCD_CA", value_name = "FILE")]
    pub etcd_ca: Option<PathBuf>,

    /// The client certificate (PEM) that is shown to etcd; with --etcd-key.
    #[arg(long, env = "REGISTRAR_ETCD_CERT", value_name = "FILE")]
    pub etcd_cert: Option<PathBuf>,

    /// The key (PEM, not encrypted) of --etcd-cert.
    #[arg(long, env = "REGISTRAR_ETCD_KEY", value_name = "FILE")]
    pub etcd_key: Option<PathBuf>,

    /// The user that etcd is to know us as; its password is in --etcd-password-file, or in the environment variable
    /// REGISTRAR_ETCD_PASSWORD.
    #[arg(long, env = "REGISTRAR_ETCD_USER", value_name = "NAME")]
    pub etcd_user: Option<String>,

    /// The file that holds the password of --etcd-user, alone on one line.
    #[arg(long, env = "REGISTRAR_ETCD_PASSWORD_FILE", value_name = "FILE")]
    pub etcd_password_file: Option<PathBuf>,
}

impl SecurityFlags {
    /// What the store is to use.
    pub fn security(&self) -> Security {
        Security {
            ca: self.etcd_ca.clone(),
            cert: self.etcd_cert.clone(),
            key: self.etcd_key.clone(),
            user: self.etcd_user.clone(),
            password: Password::from_file_or_variable(self.etcd_password_file.clone(), "REGISTRAR_ETCD_PASSWORD"),
        }
    }
}

/// Who may ask at the admin address. Where that is has another default for each that has one.
#[derive(Debug, Clone, Default, Args)]
pub struct AdminFlags {
    /// The file that holds the word that who asks at --admin must know, alone on one line: as a bearer token, or as the
    /// password of any user. Needed for an address that other hosts reach. It may be in REGISTRAR_ADMIN_TOKEN instead.
    #[arg(long, env = "REGISTRAR_ADMIN_TOKEN_FILE", value_name = "FILE")]
    pub admin_token_file: Option<PathBuf>,

    /// Allow an --admin that other hosts reach without a token, where something else guards it, such as a port that is
    /// published on loopback only.
    #[arg(long, env = "REGISTRAR_ADMIN_WITHOUT_TOKEN", value_parser = BoolishValueParser::new(),
          conflicts_with = "admin_token_file")]
    pub admin_without_token: bool,
}

/// Why nothing can be offered to an operator as these flags say.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// The token is none.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// Anybody could ask.
    #[error(transparent)]
    Open(#[from] BindError),
}

impl AdminFlags {
    /// Who may ask at this address.
    ///
    /// # Errors
    /// Where anybody could, or the token is none.
    pub fn access(&self, address: &Address) -> Result<Access, AdminError> {
        if *address == Address::Off {
            return Ok(Access::default());
        }
        let token = Token::from_file_or_variable(self.admin_token_file.as_deref(), "REGISTRAR_ADMIN_TOKEN")?;
        let access = Access { token, without_token: self.admin_without_token };
        access.check(address)?;
        Ok(access)
    }
}

/// How the log is written.
#[derive(Debug, Clone, Args)]
pub struct LogFlags {
    /// How the log is written: on the standard error, or to journald with the fields of each event.
    #[arg(long, env = "REGISTRAR_LOG_FORMAT", value_name = "FORMAT", value_enum, default_value_t = Format::Auto)]
    pub log_format: Format,

    /// What is logged: info is what an operator wants every day.
    #[arg(long, env = "REGISTRAR_LOG_LEVEL", value_name = "LEVEL", value_enum, default_value_t = LogLevel::Info)]
    pub log_level: LogLevel,
}

/// Where other hosts reach this one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Host {
    /// Not said: where the port is published.
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

/// Longer than anybody means.
const LONGEST_TTL: Duration = Duration::from_secs(366 * 24 * 3600);

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
    match duration(text)? {
        time if time < Duration::from_secs(1) => Err("etcd counts it in seconds, at least 1s".into()),
        // Beyond that, moments cannot be reckoned with, and v3 takes no lease.
        time if time > LONGEST_TTL => Err("a key that nobody renews would stay for more than a year".into()),
        time => Ok(time),
    }
}

fn count() -> clap::builder::RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(1..=1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sidekick(args: &str) -> Result<Config, String> {
        let args: Vec<_> = args.split_whitespace().map(|arg| arg.replace("''", "")).collect();
        match Program::from_args(args).map_err(|error| error.to_string())? {
            Program::Sidekick(config) => Ok(*config),
            Program::Command(command) => panic!("not the sidekick: {command:?}"),
        }
    }

    fn parse(args: &str) -> Result<Config, String> {
        sidekick(&format!("registrar --etcd http://h1:2379 --port 8000 {args}"))
    }

    fn agent(args: &str) -> Result<AgentConfig, String> {
        let args = format!("registrar agent --etcd http://h1:2379 {args}");
        match Program::from_args(args.split_whitespace()).map_err(|error| error.to_string())? {
            Program::Command(command) => match *command {
                Command::Agent(config) => Ok(config),
                other => panic!("not the agent: {other:?}"),
            },
            Program::Sidekick(config) => panic!("not the agent: {config:?}"),
        }
    }

    #[test]
    fn the_defaults_are_those_of_the_contract() {
        let config = parse("").unwrap();
        assert_eq!((config.key.path().as_str(), config.port), ("/service", 8000));
        assert_eq!(config.docker, PathBuf::from("/var/run/docker.sock"));
        assert_eq!((config.ip, config.container), (Host::Published, None));
        assert_eq!((config.check, config.check_path.as_str()), (Check::Http, "/"));
        let seconds = [config.interval, config.timeout, config.ttl, config.linger, config.etcd.etcd_timeout];
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
        let too_long = format!("--admin unix:/{}", "a".repeat(107));
        let cases = [
            ("--ip 0.0.0.0", "not the address of one host"),
            ("--ip 10.0.0.1:80", "without a port"),
            ("--ip 10.0.0.999", "neither an IP address"),
            ("--interval 5", "write 500ms, 5s or 2m"),
            ("--interval 0s", "longer than nothing"),
            ("--timeout soon", "write 500ms"),
            ("--ttl 200ms", "at least 1s"),
            ("--ttl 18446744073709551615s", "more than a year"),
            ("--rise 0", "--rise"),
            ("--fall=-1", "--fall"),
            ("--check udp", "possible values: http, tcp"),
            ("--check-path health", "must begin with /"),
            ("--container a/b", "no name or id"),
            ("--key _hidden", "begins with '_'"),
            ("--log-level loud", "possible values"),
            ("--log-format xml", "possible values"),
            ("--nonsense", "--nonsense"),
            (too_long.as_str(), "at most 107 bytes"),
            ("agent", "cannot be used with"),
            ("--mapped-port 0 --ip 10.0.0.1", "--mapped-port"),
            ("--mapped-port 32768", "give --ip, or leave out --mapped-port"),
            ("--mapped-port 32768 --ip 10.0.0.1 --docker /d.sock", "leave out --docker, or leave out --mapped-port"),
            ("--mapped-port 32768 --ip 10.0.0.1 --container web", "leave out --container, or leave out --mapped-port"),
        ];
        for (args, expected) in cases {
            let error = parse(args).unwrap_err();
            assert!(error.contains(expected), "{args}: {error}");
        }
        let errors = [
            ("--etcd h1:2379 --port 1", "write http://h1:2379"),
            ("--etcd http://h1:2379", "--port"),
            ("--port 1", "--etcd"),
            ("--etcd http://h1:2379 --port 0", "--port"),
            ("--etcd http://h1:2379 --port 65536", "--port"),
            ("agnet", "unrecognized subcommand"),
        ];
        for (args, expected) in errors {
            let error = sidekick(&format!("registrar {args}")).unwrap_err();
            assert!(error.contains(expected), "{args}: {error}");
        }
    }

    #[test]
    fn the_agent_has_flags_and_defaults_of_its_own() {
        let config = agent("").unwrap().flags;
        assert_eq!((config.scope.key.path().as_str(), config.scope.ip), ("/service", Host::Published));
        let check = config.scope.check;
        let seconds = [check.interval, check.timeout, config.ttl, config.linger, config.kill_grace];
        assert_eq!(seconds.map(|time| time.as_millis()), [5000, 3000, 20_000, 1000, 30_000]);
        assert_eq!((check.rise, check.fall), (1, 3));
        assert!(!config.scope.explicit && !config.scope.internal && !config.scope.allow_exec && !config.keep_on_exit);
        for (args, expected) in
            [("--port 1", "unexpected argument"), ("--agent-id a/b", "no id"), ("--network n", "--internal")]
        {
            let error = agent(args).unwrap_err();
            assert!(error.contains(expected), "{args}: {error}");
        }
        let error = Program::from_args(["registrar", "agent"]).unwrap_err().to_string();
        assert!(error.contains("--etcd"), "{error}");
    }

    #[test]
    fn every_flag_has_its_environment_variable() {
        fn check(command: &clap::Command) {
            for arg in command.get_arguments() {
                // Whom a command is about is said when it is called.
                let is_plain = |flag: &&str| !matches!(*flag, "help" | "version" | "all" | "print-config");
                let Some(flag) = arg.get_long().filter(is_plain) else { continue };
                let name = match (command.get_name(), flag) {
                    // An agent's variables say something else by that name.
                    ("drain" | "stop", "timeout") => "drain-timeout",
                    (_, flag) => flag,
                };
                let expected = format!("REGISTRAR_{}", name.to_uppercase().replace('-', "_"));
                assert_eq!(arg.get_env().unwrap().to_str(), Some(expected.as_str()));
                assert!(arg.get_help().is_some(), "--{flag} is not explained");
            }
            command.get_subcommands().for_each(check);
        }
        check(&Program::command());
    }
}
