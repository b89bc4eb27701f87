//! Flags and environment variables; the text of `--help` is the reference.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use observe::admin::{Access, Address, Token, TokenError};
use observe::config::{Loaded, Rules};
use observe::log::Format;
use registry::{ApiChoice, EndpointList, Password, Prefix, Security};

use crate::share::{Share, parse_tag};

/// Keeps HAProxy in step with the instances registered in etcd.
///
/// It lists the service directory and follows it, renders haproxy.cfg from a template, lets HAProxy check it,
/// writes it, and makes HAProxy read it. Whatever fails, HAProxy goes on with the last good file.
#[derive(Debug, Parser)]
#[command(version, about, args_conflicts_with_subcommands = false, disable_help_subcommand = true)]
pub struct Cli {
    /// What to do instead of following.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// The flags, which every subcommand takes too.
    #[command(flatten)]
    pub flags: Flags,
}

/// The environment variable that may hold etcd's password.
pub const PASSWORD_VARIABLE: &str = "DISCOVERER_ETCD_PASSWORD";
/// The environment variable that may hold the admin server's token.
pub const TOKEN_VARIABLE: &str = "DISCOVERER_ADMIN_TOKEN";
/// The environment variable that holds etcd's endpoints, with a user and password perhaps.
pub const ETCD_VARIABLE: &str = "DISCOVERER_ETCD";
/// The variables that no program gets which is started: those of all programs that the discoverer may be a part of, or may run beside
/// in one container.
pub const SECRET_VARIABLES: [&str; 9] = [
    ETCD_VARIABLE,
    PASSWORD_VARIABLE,
    TOKEN_VARIABLE,
    "STANDALONE_ETCD",
    "STANDALONE_ETCD_PASSWORD",
    "STANDALONE_ADMIN_TOKEN",
    "REGISTRAR_ETCD",
    "REGISTRAR_ETCD_PASSWORD",
    "REGISTRAR_ADMIN_TOKEN",
];

/// The environment variables that may hold secrets.
#[derive(Debug, Clone, Copy)]
pub struct Secrets {
    /// etcd's password.
    pub password: &'static str,
    /// The admin server's token.
    pub token: &'static str,
}

impl Default for Secrets {
    fn default() -> Self {
        Self { password: PASSWORD_VARIABLE, token: TOKEN_VARIABLE }
    }
}

/// What to do instead of following.
#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub enum Command {
    /// Print the configuration for what the registry holds now, and change nothing
    Render,
    /// Check the template with HAProxy: for made-up services of every kind and, with --etcd, for what the registry
    /// holds now; change nothing
    Check,
    /// Say how the discoverer that runs at --admin stands: etcd, HAProxy, what is left out, each service with its instances
    ///
    /// Ends with 0 where all is well; with 1 where something is wrong: etcd does not answer, HAProxy does not run or not what is
    /// wanted, the template cannot be used, a service is left out or has no instance that is up; with 2 for wrong flags; with 3
    /// where the discoverer cannot be reached.
    Status {
        /// Print the API's JSON, instead of a table
        #[arg(long)]
        json: bool,
    },
    /// Say whether HAProxy takes connections: for a container's health check, or keepalived's
    ///
    /// HAProxy itself is asked, over --runtime-socket where that is known, and connected to at the first TCP address that --output
    /// binds. Whether etcd answers and the discoverer runs makes no difference: HAProxy serves its last state meanwhile. Ends with 0
    /// when it takes connections; with 1 when it does not; with 2 for wrong flags.
    Health {
        /// Connect here, instead of to the first address that --output binds
        #[arg(long, value_name = "ADDRESS")]
        connect: Option<SocketAddr>,
    },
    /// Say why something is routed to, or why not: each step from its key in etcd over the discoverer and the file to HAProxy,
    /// with the first that says no, and what to do about it
    ///
    /// Give the flags of the discoverer, or ask in its container: etcd is asked at --etcd, the discoverer at --admin, the file is
    /// --output, and HAProxy is asked at --runtime-socket, else over the discoverer. What happens before etcd, on the container's
    /// host, `registrar explain` says. Ends with 0 when each step says yes, else with 1; with 2 for wrong flags.
    #[command(
        override_usage = "discoverer explain [OPTIONS] <NAME>\n       For example: discoverer explain web, or discoverer explain 10.0.0.1:8000"
    )]
    Explain {
        /// A service, an instance as host:port, a container's name, or the beginning of its id
        #[arg(value_parser = clap::builder::NonEmptyStringValueParser::new())]
        name: String,
        /// Print the steps as JSON
        #[arg(long)]
        json: bool,
    },
    /// Print what lets a shell complete this program's flags
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Write the manual pages, one for each command
    Man {
        /// The directory
        #[arg(value_name = "DIR")]
        directory: PathBuf,
    },
}

/// Flags that do not go together, or are missing for what is asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct UsageError(pub &'static str);

/// All flags. Each is also an environment variable: DISCOVERER_ and the flag's name.
#[derive(Debug, Clone, Args)]
pub struct Flags {
    /// etcd's client URLs, joined by commas: http://h1:2379,http://h2:2379; or srv://example.org for those that DNS has
    /// for that name (SRV records _etcd-client-ssl._tcp and _etcd-client._tcp)
    #[arg(long, global = true, value_name = "URL[,URL]", env = "DISCOVERER_ETCD", value_parser = EndpointList::from_str)]
    pub etcd: Option<EndpointList>,

    /// Which of etcd's APIs is spoken: v2, v3, or auto: v2 where the cluster serves it, else v3. Each holds its own keys, so
    /// that registrars and discoverers must agree
    #[arg(long, global = true, value_name = "API", env = "DISCOVERER_ETCD_API", default_value_t, value_parser = ApiChoice::from_str)]
    pub etcd_api: ApiChoice,

    /// The directory in etcd that is followed. Instances lie in it as <host>:<port>, or in one directory a service
    #[arg(long, global = true, value_name = "PREFIX", env = "DISCOVERER_KEY", default_value = "service")]
    pub key: Prefix,

    /// Follow only the instances that have this tag (SERVICE_TAGS): a share of the registry. May be given more than once: an
    /// instance that has one of the tags is in. In the environment: one a line
    #[arg(long, global = true, value_name = "tag=NAME", env = "DISCOVERER_ONLY", value_delimiter = '\n', value_parser = parse_tag)]
    pub only: Vec<String>,

    /// The template of haproxy.cfg; all *.tera files beside it are its partials. It is read again when it changes
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "DISCOVERER_TEMPLATE",
        default_value = "templates/haproxy.cfg.tera"
    )]
    pub template: PathBuf,

    /// The file that HAProxy reads. What is being checked lies beside it as <FILE>.candidate
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "DISCOVERER_OUTPUT",
        default_value = "/etc/haproxy/haproxy.cfg"
    )]
    pub output: PathBuf,

    /// A file, or a directory with all that is below it, that HAProxy reads besides its own file, such as certificates: when something there
    /// changes, HAProxy checks its file anew and is reloaded. May be given more than once. In the environment: one a line
    #[arg(long, global = true, value_name = "PATH", env = "DISCOVERER_WATCH", value_delimiter = '\n')]
    pub watch: Vec<PathBuf>,

    /// Run HAProxy as a child (haproxy -W): start it, start it again when it dies, stop it gently. For a container
    /// in which this is process 1
    #[arg(long, global = true, env = "DISCOVERER_SUPERVISE")]
    pub supervise: bool,

    /// Reload over the master CLI of a running HAProxy: the socket given to it with -S
    #[arg(long, global = true, value_name = "PATH", env = "DISCOVERER_RELOAD_SOCKET")]
    pub reload_socket: Option<PathBuf>,

    /// Reload by SIGUSR2 to the master of a running HAProxy, whose pid is in this file (haproxy -W -p)
    #[arg(long, global = true, value_name = "PATH", env = "DISCOVERER_RELOAD_PIDFILE")]
    pub reload_pidfile: Option<PathBuf>,

    /// Reload by a command, run with sh -c; it must end with 0 when HAProxy runs the new file
    #[arg(long, global = true, value_name = "CMD", env = "DISCOVERER_RELOAD_COMMAND")]
    pub reload_command: Option<String>,

    /// Reload by SIGHUP to the master of an HAProxy that runs in the container of this name (haproxy -W), through Docker
    #[arg(long, global = true, value_name = "NAME", env = "DISCOVERER_RELOAD_CONTAINER", value_parser = parse_container)]
    pub reload_container: Option<String>,

    /// Docker's socket, for --reload-container
    #[arg(long, global = true, value_name = "PATH", env = "DISCOVERER_DOCKER", default_value = "/var/run/docker.sock")]
    pub docker: PathBuf,

    /// Reload by `systemctl reload UNIT`; a unit that has failed is started
    #[arg(long, global = true, value_name = "UNIT", env = "DISCOVERER_RELOAD_SYSTEMD", value_parser = parse_unit)]
    pub reload_systemd: Option<String>,

    /// HAProxy's stats socket, level admin. With it servers come and go without a reload, and their health is kept over
    /// one. Under --supervise it lies in the state directory by default
    #[arg(long, global = true, value_name = "PATH", env = "DISCOVERER_RUNTIME_SOCKET")]
    pub runtime_socket: Option<PathBuf>,

    /// HAProxy's program, for its check of the file and for --supervise
    #[arg(long, global = true, value_name = "PATH", env = "DISCOVERER_HAPROXY", default_value = "haproxy")]
    pub haproxy: PathBuf,

    /// Where sockets, HAProxy's pid, the servers' state, this discoverer's id and the registry as it was last known
    /// (registry.json) are kept
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        env = "DISCOVERER_STATE_DIR",
        default_value = "/var/lib/discoverer"
    )]
    pub state_dir: PathBuf,

    /// An option for the template, as options.<key>; may be given more than once. In the environment: one a line
    #[arg(long = "set", global = true, value_name = "KEY=VALUE", env = "DISCOVERER_SET", value_delimiter = '\n', value_parser = parse_option)]
    pub options: Vec<(String, String)>,

    /// Ports on which a TCP service may ask HAProxy to listen: 5432,6000-6099. None by default, since a port taken by
    /// another program makes HAProxy refuse connections for seconds
    #[arg(long, global = true, value_name = "PORTS", env = "DISCOVERER_LISTEN_PORTS", value_delimiter = ',', value_parser = parse_ports)]
    pub listen_ports: Vec<RangeInclusive<u16>>,

    /// The least time between two reloads. The first change is applied at once; those that come meanwhile go together.
    /// Each reload leaves an old worker until its requests are done. Changes over the runtime API do not wait
    #[arg(long, global = true, value_name = "TIME", env = "DISCOVERER_MIN_INTERVAL", default_value = "200ms", value_parser = parse_duration)]
    pub min_interval: Duration,

    /// How long changes of servers, which HAProxy is told of at once, may pour in before the whole file is rendered and
    /// compared; without a pause between them
    #[arg(long, global = true, value_name = "TIME", env = "DISCOVERER_MAX_DELAY", default_value = "1s", value_parser = parse_duration)]
    pub max_delay: Duration,

    /// How long a server that is removed may finish its connections before they are ended; also how long an old worker
    /// may after a reload, unless the template's option hard_stop_after says otherwise
    #[arg(long, global = true, value_name = "TIME", env = "DISCOVERER_DRAIN_TIMEOUT", default_value = "60s", value_parser = parse_duration)]
    pub drain_timeout: Duration,

    /// How long a service with no instance stays known, with its last settings, so that HAProxy answers 503 and not 404
    #[arg(long, global = true, value_name = "TIME", env = "DISCOVERER_FORGET_AFTER", default_value = "24h", value_parser = parse_duration)]
    pub forget_after: Duration,

    /// How long an instance stays whose key expired while HAProxy's own check still reaches it: its registrar may be dead, or
    /// etcd may have been. It goes before that when the check has it down or nobody checks it
    #[arg(long, global = true, value_name = "TIME", env = "DISCOVERER_SUSPECT_FOR", default_value = "10m", value_parser = parse_duration)]
    pub suspect_for: Duration,

    /// How long one request to etcd may take before the next endpoint is asked; a page of a long listing by v3 may take eight
    /// times as long where there is no other
    #[arg(long, global = true, value_name = "TIME", env = "DISCOVERER_ETCD_TIMEOUT", default_value = "3s", value_parser = parse_positive)]
    pub etcd_timeout: Duration,

    /// The CA certificates (PEM) that etcd's certificate must be of, instead of the system's. Like the other files, it is
    /// read again when it changes
    #[arg(long, global = true, value_name = "FILE", env = "DISCOVERER_ETCD_CA")]
    pub etcd_ca: Option<PathBuf>,

    /// The client certificate (PEM) that is shown to etcd; with --etcd-key
    #[arg(long, global = true, value_name = "FILE", env = "DISCOVERER_ETCD_CERT")]
    pub etcd_cert: Option<PathBuf>,

    /// The key (PEM, not encrypted) of --etcd-cert
    #[arg(long, global = true, value_name = "FILE", env = "DISCOVERER_ETCD_KEY")]
    pub etcd_key: Option<PathBuf>,

    /// The user that etcd is to know us as; its password is in --etcd-password-file, or in the environment variable
    /// DISCOVERER_ETCD_PASSWORD
    #[arg(long, global = true, value_name = "NAME", env = "DISCOVERER_ETCD_USER")]
    pub etcd_user: Option<String>,

    /// The file that holds the password of --etcd-user, alone on one line
    #[arg(long, global = true, value_name = "FILE", env = "DISCOVERER_ETCD_PASSWORD_FILE")]
    pub etcd_password_file: Option<PathBuf>,

    /// How long one long poll waits before the next one. In between the quorum is confirmed: it bounds how long an endpoint
    /// goes unnoticed that is frozen, or cut off from the other members
    #[arg(long, global = true, value_name = "TIME", env = "DISCOVERER_WATCH_TIMEOUT", default_value = "5s", value_parser = parse_positive)]
    pub watch_timeout: Duration,

    /// With --supervise: how long HAProxy may finish its requests when we are told to stop. Two seconds less than the
    /// ten that `docker stop` gives
    #[arg(long, global = true, value_name = "TIME", env = "DISCOVERER_SHUTDOWN_GRACE", default_value = "8s", value_parser = parse_duration)]
    pub shutdown_grace: Duration,

    /// With --supervise: how long HAProxy may fail to stay up, though it is started again and again, before the discoverer ends
    /// too, with exit code 4, so that whoever runs the container sees it; 0s: never. HAProxy that lives for 10 s is up
    #[arg(long, global = true, value_name = "TIME", env = "DISCOVERER_GIVE_UP_AFTER", default_value = "5m", value_parser = parse_duration)]
    pub give_up_after: Duration,

    /// Apply what the registry holds now, and end: 0 when HAProxy runs it
    #[arg(long, global = true, env = "DISCOVERER_ONCE")]
    pub once: bool,

    /// Say what would change in the file, change nothing, and end
    #[arg(long, global = true, env = "DISCOVERER_DRY_RUN")]
    pub dry_run: bool,

    /// Where the live page, the API, metrics and health are asked for by HTTP, read-only: 127.0.0.1:9401,
    /// unix:/run/discoverer/admin.sock, or off. An address that other hosts reach needs a token
    #[arg(long, global = true, value_name = "ADDRESS", env = "DISCOVERER_ADMIN", default_value = "127.0.0.1:9401", value_parser = Address::from_str)]
    pub admin: Address,

    /// The file that holds the token for --admin, alone on one line; or it is in the environment variable
    /// DISCOVERER_ADMIN_TOKEN. It is sent as a bearer token, or by a browser as the password of any user
    #[arg(long, global = true, value_name = "FILE", env = "DISCOVERER_ADMIN_TOKEN_FILE")]
    pub admin_token_file: Option<PathBuf>,

    /// Answer at --admin without a token though other hosts reach it: where something else guards it, such as a port that is
    /// published on loopback only
    #[arg(long, global = true, env = "DISCOVERER_ADMIN_WITHOUT_TOKEN")]
    pub admin_without_token: bool,

    /// How the log is written: to standard error, or to journald with the fields of each event
    #[arg(
        long,
        global = true,
        value_name = "FORMAT",
        value_enum,
        env = "DISCOVERER_LOG_FORMAT",
        default_value = "auto"
    )]
    pub log_format: Format,

    /// What is logged: error, warn, info, debug, trace, or tracing's filters such as info,discoverer=debug
    #[arg(long, global = true, value_name = "LEVEL", env = "DISCOVERER_LOG_LEVEL", default_value = "info", value_parser = parse_filter)]
    pub log_level: String,

    /// Where secrets are that are in no file.
    #[arg(skip)]
    pub secrets: Secrets,
}

/// What the flags do not say of the configuration file.
pub const RULES: Rules = Rules {
    variable: "DISCOVERER_CONFIG",
    lists: &["etcd"],
    tables: &["set"],
    exclusive: &[&WAYS],
    lenient: &["health"],
    at_once: &[
        "drain-timeout",
        "forget-after",
        "listen-ports",
        "log-level",
        "max-delay",
        "min-interval",
        "set",
        "shutdown-grace",
        "suspect-for",
    ],
};

/// How HAProxy is reached: one of them.
const WAYS: [&str; 6] =
    ["supervise", "reload-socket", "reload-pidfile", "reload-command", "reload-container", "reload-systemd"];

/// The command line, for the help and whatever else is made from it.
pub fn command() -> clap::Command {
    observe::config::with_flags(Cli::command(), &RULES)
}

impl Cli {
    /// What the flags, the environment and the file come to.
    ///
    /// # Errors
    /// As clap says.
    pub fn from_loaded(loaded: &Loaded) -> Result<Self, clap::Error> {
        Self::from_arg_matches(&loaded.matches)
    }
}

impl Flags {
    /// Refuses flags that were read again where they do not go together, or a start with them would fail, in words for the log; else the log is at their level from now on.
    pub fn check_again(&self) -> Result<(), String> {
        self.check().map_err(|error| error.to_string())?;
        self.security().check().map_err(|error| error.to_string())?;
        let access = self.access().map_err(|error| error.to_string())?;
        access.check(&self.admin).map_err(|error| error.to_string())?;
        observe::log::filter_by(&self.log_level).map_err(|error| error.to_string())
    }

    /// Refuses flags that do not go together, wherever they were given.
    pub fn check(&self) -> Result<(), UsageError> {
        let ways: [bool; WAYS.len()] = [
            self.supervise,
            self.reload_socket.is_some(),
            self.reload_pidfile.is_some(),
            self.reload_command.is_some(),
            self.reload_container.is_some(),
            self.reload_systemd.is_some(),
        ];
        if ways.into_iter().filter(|&given| given).count() > 1 {
            return Err(UsageError(
                "give only one of --supervise, --reload-socket, --reload-pidfile, --reload-command, --reload-container and --reload-systemd",
            ));
        }
        if self.supervise && self.once && !self.dry_run {
            return Err(UsageError(
                "--once ends at once, and --supervise would take HAProxy with it; give one of them",
            ));
        }
        Ok(())
    }

    /// What etcd is reached with.
    pub fn security(&self) -> Security {
        Security {
            ca: self.etcd_ca.clone(),
            cert: self.etcd_cert.clone(),
            key: self.etcd_key.clone(),
            user: self.etcd_user.clone(),
            password: Password::from_file_or_variable(self.etcd_password_file.clone(), self.secrets.password),
        }
    }

    /// Who may ask at the admin address.
    ///
    /// # Errors
    /// The token cannot be read, or is none.
    pub fn access(&self) -> Result<Access, TokenError> {
        let token = Token::from_file_or_variable(self.admin_token_file.as_deref(), self.secrets.token)?;
        Ok(Access { token, without_token: self.admin_without_token })
    }

    /// The share of the registry that is followed.
    pub fn share(&self) -> Share {
        Share::of(self.only.iter().cloned())
    }

    /// The options as a map; the last of a name counts.
    pub fn option_map(&self) -> BTreeMap<String, String> {
        self.options.iter().cloned().collect()
    }

    /// The state directory as an absolute path, since HAProxy reads paths in its file in another way than we do.
    pub fn state_directory(&self) -> PathBuf {
        std::path::absolute(&self.state_dir).unwrap_or_else(|_| self.state_dir.clone())
    }

    /// The stats socket: as given, or under --supervise in the state directory.
    pub fn runtime_socket(&self) -> Option<PathBuf> {
        let own = || self.supervise.then(|| self.state_directory().join("runtime.sock"));
        self.runtime_socket.clone().or_else(own)
    }
}

fn parse_option(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or_else(|| format!("{text:?} is not key=value"))?;
    let is_name = !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    if !is_name {
        return Err(format!("{name:?} is no name; letters, digits and _ are"));
    }
    if value.chars().any(char::is_control) {
        return Err(format!("the value of {name} has a control character"));
    }
    Ok((name.to_owned(), value.to_owned()))
}

/// A container's name or id (Docker Engine API 1.41, `/containers/create`): it becomes part of a path.
fn parse_container(text: &str) -> Result<String, String> {
    let is_good = text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c));
    if is_good { Ok(text.to_owned()) } else { Err("no container's name; letters, digits, _, . and - are".to_owned()) }
}

/// A unit's name (systemd.unit(5)).
fn parse_unit(text: &str) -> Result<String, String> {
    let is_good = !text.is_empty()
        && !text.starts_with('-')
        && text.len() < 256
        && text.chars().all(|c| c.is_ascii_alphanumeric() || ":-_.\\@".contains(c));
    if is_good { Ok(text.to_owned()) } else { Err("no unit's name, such as haproxy.service".to_owned()) }
}

fn parse_duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|error| format!("{error}; write 500ms, 5s or 2m"))
}

/// A duration below which a request could never succeed, or would be repeated without a pause.
fn parse_positive(text: &str) -> Result<Duration, String> {
    let least = Duration::from_millis(100);
    parse_duration(text)
        .and_then(|duration| if duration < least { Err("less than 100ms".to_owned()) } else { Ok(duration) })
}

/// What the log is filtered by: a level, or tracing's directives, of which a word alone would name a part of a program.
fn parse_filter(text: &str) -> Result<String, String> {
    let is_level = |word: &str| ["off", "error", "warn", "info", "debug", "trace"].contains(&word);
    let is_directive = |part: &str| is_level(part) || part.contains('=');
    if text.split(',').map(str::trim).all(is_directive) {
        Ok(text.to_owned())
    } else {
        Err("neither a level (error, warn, info, debug, trace, off) nor filters such as info,discoverer=debug"
            .to_owned())
    }
}

fn parse_ports(text: &str) -> Result<RangeInclusive<u16>, String> {
    let port = |text: &str| text.trim().parse::<u16>().ok().filter(|&port| port != 0);
    let range = match text.split_once('-') {
        Some((first, last)) => port(first).zip(port(last)).map(|(first, last)| first..=last),
        None => port(text).map(|port| port..=port),
    };
    range
        .filter(|range| !range.is_empty())
        .ok_or_else(|| format!("{text:?} is neither a port nor a range such as 6000-6099"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flags_do_not_contradict_each_other() {
        Cli::command().debug_assert();
    }

    #[test]
    fn flags_may_stand_before_and_behind_a_subcommand() {
        let before = Cli::parse_from(["discoverer", "--etcd", "http://a:1", "render"]);
        let behind = Cli::parse_from(["discoverer", "render", "--etcd", "http://a:1"]);
        assert_eq!((before.command, before.flags.etcd), (behind.command, behind.flags.etcd));
    }

    #[test]
    fn bad_values_are_refused() {
        let bad = [
            ["--set", "novalue"],
            ["--set", "a b=c"],
            ["--set", "a=b\nc"],
            ["--listen-ports", "0"],
            ["--listen-ports", "9-8"],
            ["--key", "_hidden"],
            ["--min-interval", "5"],
            ["--reload-container", "a/b"],
            ["--reload-container", "-a"],
            ["--reload-systemd", "--now"],
            ["--reload-systemd", "a b"],
            ["--only", "edge"],
            ["--only", "tag="],
            ["--only", "tag=a,b"],
            ["--log-format", "xml"],
            ["--log-level", "loud"],
            ["--log-level", "info,discoverer"],
        ];
        for pair in bad {
            assert!(Cli::try_parse_from(["discoverer", pair[0], pair[1]]).is_err(), "{pair:?}");
        }
        let good =
            Cli::parse_from(["discoverer", "--set", "http_bind=:80 v4v6", "--set", "a=b=c", "--listen-ports", "1,5-7"]);
        assert_eq!(good.flags.option_map()["a"], "b=c");
        assert_eq!(good.flags.listen_ports, [1..=1, 5..=7]);
        let both = Cli::parse_from(["discoverer", "--supervise", "--reload-command", "true"]);
        assert!(both.flags.check().is_err());
        let both = Cli::parse_from(["discoverer", "--reload-container", "lb", "--reload-systemd", "haproxy"]);
        assert!(both.flags.check().is_err());
        assert!(Cli::parse_from(["discoverer", "--supervise", "--once"]).flags.check().is_err());
        assert!(Cli::parse_from(["discoverer", "--supervise"]).flags.check().is_ok());
        assert!(Cli::try_parse_from(["discoverer", "--watch-timeout", "0s"]).is_err());
    }
}
