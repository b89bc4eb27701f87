//! The command line: the flags of the agent and of the discoverer, put together by their names, so that a new flag of either is
//! one here too. Knows nothing of what is done with them.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Args, Command, FromArgMatches, value_parser};
use clap_complete::Shell;
use discoverer::config::{Flags, Secrets};
use observe::config::{Loaded, Rules, Source};
use registrar::config::AgentFlags;

/// Where state is kept.
const STATE_DIR: &str = "/var/lib/standalone";
/// Where templates are looked for when no flag names one.
const TEMPLATES: [&str; 3] = [
    "templates/haproxy.cfg.tera",
    "/etc/standalone/templates/haproxy.cfg.tera",
    "/etc/discoverer/templates/haproxy.cfg.tera",
];

const ABOUT: &str =
    "One host without etcd: registers its containers and keeps HAProxy in step with them, in one process";
const LONG_ABOUT: &str = "\
One host without etcd: registers its containers and keeps HAProxy in step with them, in one process.

It is the registrar's agent and the discoverer over a registry in its own memory: the same labels, the same templates, the same \
page. It runs HAProxy itself, unless a --reload flag says how one is reached that runs already. With --etcd the registry is in \
etcd, where other hosts are too.

Every flag can be given as an environment variable too; the flag wins, an empty variable counts as absent.";

/// What the flags do not say of the configuration file.
pub const RULES: Rules = Rules {
    variable: "STANDALONE_CONFIG",
    lists: &["etcd", "domains"],
    tables: &["set"],
    exclusive: discoverer::config::RULES.exclusive,
    lenient: &["health"],
    at_once: &[
        "allow-exec",
        "domains",
        "drain-timeout",
        "explicit",
        "fall",
        "forget-after",
        "host",
        "internal",
        "interval",
        "ip",
        "keep-on-exit",
        "kill-grace",
        "linger",
        "listen-ports",
        "log-level",
        "max-delay",
        "min-interval",
        "network",
        "rise",
        "set",
        "shutdown-grace",
        "suspect-for",
        "timeout",
    ],
};

/// What the program was called to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Task {
    /// To keep HAProxy in step until it is told to stop.
    Run,
    /// To say what is registered.
    List {
        /// As JSON.
        json: bool,
    },
    /// To say how the one that runs stands.
    Status {
        /// As JSON.
        json: bool,
    },
    /// To say why something is routed to, or why not.
    Explain {
        /// A container, a service or an instance.
        name: String,
    },
    /// To say whether HAProxy takes connections.
    Health {
        /// Where to connect, instead of to what the file binds.
        connect: Option<SocketAddr>,
    },
    /// To print what lets a shell complete the flags.
    Completions {
        /// The shell.
        shell: Shell,
    },
    /// To write the manual pages.
    Man {
        /// Where.
        directory: PathBuf,
    },
    /// To print the configuration.
    Render,
    /// To check the template.
    Check,
}

/// The whole command line, read.
#[derive(Debug)]
pub struct Program {
    /// What to do.
    pub task: Task,
    /// What the agent is told.
    pub agent: AgentFlags,
    /// What the discoverer is told.
    pub discoverer: Flags,
}

impl Program {
    /// The command line, for the help and whatever else is made from it.
    pub fn command() -> Command {
        let mut command = Command::new("standalone")
            .version(env!("CARGO_PKG_VERSION"))
            .about(ABOUT)
            .long_about(LONG_ABOUT)
            .disable_help_subcommand(true);
        let discoverer = Flags::augment_args(Command::new("discoverer"));
        let agent = AgentFlags::augment_args(Command::new("agent"));
        // A flag of both is the discoverer's: their values are of one type.
        let is_shared = |arg: &&Arg| !discoverer.get_arguments().any(|other| other.get_id() == arg.get_id());
        for arg in agent.get_arguments().filter(is_shared) {
            command = command.arg(own(arg).help_heading("Containers"));
        }
        for arg in discoverer.get_arguments() {
            command = command.arg(own(arg).help_heading("Registry and HAProxy"));
        }
        let json = || Arg::new("json").long("json").action(clap::ArgAction::SetTrue).help("Print JSON");
        let name = Arg::new("name").value_name("CONTAINER|SERVICE|HOST:PORT").required(true);
        let connect = Arg::new("connect")
            .long("connect")
            .value_name("ADDRESS")
            .value_parser(value_parser!(SocketAddr))
            .help("Connect here, instead of to the first address that --output binds");
        let shell = Arg::new("shell").required(true).value_parser(value_parser!(Shell)).help("The shell");
        let directory = Arg::new("directory")
            .value_name("DIR")
            .required(true)
            .value_parser(value_parser!(PathBuf))
            .help("The directory");
        let no_such = |name| Command::new(name).hide(true).arg(Arg::new("rest").num_args(..).allow_hyphen_values(true));
        let command = command
            .mut_arg("state_dir", |arg| {
                arg.default_value(STATE_DIR).help(
                    "Where sockets, the servers' state, the agent's id and the registry as it was last known (registry.json) are kept. In a \
                     container: a volume, so that a restart takes nothing out of HAProxy",
                )
            })
            .mut_arg("template", |arg| {
                arg.default_value(template()).hide_default_value(true).help(
                    "The template of haproxy.cfg; all *.tera files beside it are its partials. It is read again when it changes. Without \
                     this flag, haproxy.cfg.tera in the first of these directories that has one: templates, \
                     /etc/standalone/templates, /etc/discoverer/templates",
                )
            })
            .mut_arg("supervise", |arg| {
                arg.help(
                    "Run HAProxy as a child (haproxy -W): start it, start it again when it dies, stop it gently. The default where no \
                     --reload flag is given",
                )
            })
            .mut_arg("etcd", |arg| {
                arg.help(
                    "Keep the registry in etcd instead of this process's memory, so that other hosts have part in it: etcd's client \
                     URLs, joined by commas. The host then needs an address that the others reach: see --ip",
                )
            })
            .mut_arg("keep_on_exit", |arg| {
                arg.help("With --etcd: leave the keys to their time to live when told to stop, for a restart of this host alone")
            })
            .subcommand(Command::new("list").about("List what is registered").arg(json()))
            .subcommand(
                Command::new("status")
                    .about("Say how the one that runs at --admin stands: HAProxy, what is left out, each service with its instances")
                    .arg(json()),
            )
            .subcommand(
                Command::new("explain")
                    .about("Say why something is routed to, or why not: the whole way from Docker to HAProxy, with the first step that says no")
                    .arg(name.help("A container's name or id, a service, or an instance as host:port")),
            )
            .subcommand(Command::new("render").about("Print the configuration for what is registered now, and change nothing"))
            .subcommand(
                Command::new("check").about(
                    "Check the template with HAProxy: for made-up services of every kind and, where one runs at --admin, for what is \
                     registered now; change nothing",
                ),
            )
            .subcommand(
                Command::new("health")
                    .about(
                        "Say whether HAProxy takes connections, for a container's health check: HAProxy itself is asked, whatever else \
                         is wrong",
                    )
                    .arg(connect),
            )
            .subcommand(Command::new("completions").about("Print what lets a shell complete this program's flags").arg(shell))
            .subcommand(Command::new("man").about("Write the manual pages, one for each command").arg(directory))
            .subcommands(["drain", "undrain", "stop"].map(no_such));
        observe::config::with_flags(command, &RULES)
    }

    /// What settings are read from: the command line, program name first, the environment, and the file that they name.
    pub fn source<T: Into<OsString>>(args: impl IntoIterator<Item = T>) -> Source {
        Source::new(Self::command(), &RULES, args)
    }

    /// What was read, as the program's own.
    ///
    /// # Errors
    /// Flags that do not go together.
    pub fn from_loaded(loaded: &Loaded) -> Result<Self, clap::Error> {
        let usage = |kind, words: &str| Self::command().error(kind, words);
        let matches = &loaded.matches;
        let (name, given) = matches.subcommand().unwrap_or(("", matches));
        let json = || given.get_flag("json");
        let task = match name {
            "" => Task::Run,
            "list" => Task::List { json: json() },
            "status" => Task::Status { json: json() },
            "explain" => Task::Explain { name: given.get_one::<String>("name").cloned().unwrap_or_default() },
            "render" => Task::Render,
            "check" => Task::Check,
            "health" => Task::Health { connect: given.get_one("connect").copied() },
            "completions" => Task::Completions { shell: given.get_one("shell").copied().unwrap_or(Shell::Bash) },
            "man" => Task::Man { directory: given.get_one("directory").cloned().unwrap_or_default() },
            other => return Err(usage(ErrorKind::InvalidSubcommand, &no_etcd(other))),
        };
        let mut agent = AgentFlags::from_arg_matches(given)?;
        let mut discoverer = Flags::from_arg_matches(given)?;
        if discoverer.once || discoverer.dry_run {
            let words = "--once and --dry-run are the discoverer's: a registry in memory is empty when this begins";
            return Err(usage(ErrorKind::ArgumentConflict, words));
        }
        discoverer.secrets = Secrets { password: "STANDALONE_ETCD_PASSWORD", token: "STANDALONE_ADMIN_TOKEN" };
        discoverer.supervise |= !has_reload(given);
        // Each keeps files of its own there.
        agent.scope.state_dir = discoverer.state_dir.join("registrar");
        // Nobody else keeps what is in memory, and HAProxy is not to be emptied by our own end.
        agent.keep_on_exit |= discoverer.etcd.is_none();
        Ok(Self { task, agent, discoverer })
    }
}

/// The flag as it is called here, in every subcommand too.
fn own(arg: &Arg) -> Arg {
    let long = arg.get_long().unwrap_or_default();
    let variable = format!("STANDALONE_{}", long.to_uppercase().replace('-', "_"));
    let words = |text: String| text.replace("DISCOVERER_", "STANDALONE_").replace("REGISTRAR_", "STANDALONE_");
    let (short, full) = (arg.get_help(), arg.get_long_help());
    let mut arg = arg.clone().global(true).hide_env_values(true);
    if let Some(text) = short {
        arg = arg.help(words(text.to_string()));
    }
    if let Some(text) = full {
        arg = arg.long_help(words(text.to_string()));
    }
    if matches!(long, "once" | "dry-run") {
        return arg.hide(true).env(None::<&'static str>);
    }
    // The names of flags are few, and needed until the end.
    let variable: &'static str = variable.leak();
    arg.env(variable)
}

/// Whether a flag names the way to a HAProxy that somebody else runs.
fn has_reload(matches: &ArgMatches) -> bool {
    let is_given =
        |id: &str| matches!(matches.value_source(id), Some(ValueSource::CommandLine | ValueSource::EnvVariable));
    matches.ids().any(|id| id.as_str().starts_with("reload_") && is_given(id.as_str()))
}

fn no_etcd(command: &str) -> String {
    format!(
        "there is no `standalone {command}`: it changes keys that others keep, and a registry in memory is read-only from outside. \
         `docker stop CONTAINER` drains the container and then stops it; with --etcd, `registrar {command}` does it in etcd"
    )
}

/// The first template that there is; read with the flags, since it is a default.
fn template() -> &'static str {
    TEMPLATES.into_iter().find(|path| Path::new(path).exists()).unwrap_or(TEMPLATES[0])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &str) -> Result<Program, String> {
        let args = format!("standalone {args}");
        let loaded = Program::source(args.split_whitespace()).read().map_err(|error| error.to_string())?;
        Program::from_loaded(&loaded).map_err(|error| error.to_string())
    }

    #[test]
    fn the_flags_do_not_contradict_each_other() {
        Program::command().debug_assert();
    }

    #[test]
    fn what_takes_effect_at_once_in_one_of_both_programs_does_here() {
        let command = Program::command();
        let is_here = |key: &&&str| command.get_arguments().any(|arg| arg.get_long() == Some(**key));
        let both = [registrar::config::RULES.at_once, discoverer::config::RULES.at_once].concat();
        let mut expected: Vec<&str> = both.iter().filter(is_here).copied().collect();
        expected.sort_unstable();
        expected.dedup();
        assert_eq!(RULES.at_once, expected);
    }

    #[test]
    fn every_flag_of_both_programs_is_one_here_with_a_variable_of_its_own() {
        let command = Program::command();
        let registrar = registrar::config::Program::command();
        let agent = registrar.find_subcommand("agent").expect("the agent");
        let discoverer = Flags::augment_args(Command::new("discoverer"));
        for arg in agent.get_arguments().chain(discoverer.get_arguments()) {
            let Some(long) = arg.get_long().filter(|long| !matches!(*long, "help" | "version" | "print-config")) else {
                continue;
            };
            let own = command.get_arguments().find(|own| own.get_long() == Some(long));
            let own = own.unwrap_or_else(|| panic!("--{long} is missing"));
            if matches!(long, "once" | "dry-run") {
                continue;
            }
            let variable = format!("STANDALONE_{}", long.to_uppercase().replace('-', "_"));
            assert_eq!(own.get_env().and_then(|name| name.to_str()), Some(variable.as_str()));
            let help = own.get_help().map(ToString::to_string).unwrap_or_default();
            assert!(!help.is_empty() && !help.contains("DISCOVERER_") && !help.contains("REGISTRAR_"), "{help}");
        }
    }

    #[test]
    fn one_flag_goes_to_both_and_haproxy_is_ours_unless_said_otherwise() {
        let program =
            parse("--docker /d.sock --key site --state-dir /s --interval 1s --min-interval 2s").expect("good");
        assert_eq!(program.task, Task::Run);
        assert_eq!(program.agent.scope.key, program.discoverer.key);
        assert_eq!(program.agent.scope.state_dir, Path::new("/s/registrar"));
        assert_eq!((program.agent.scope.check.interval.as_secs(), program.discoverer.min_interval.as_secs()), (1, 2));
        assert!(program.discoverer.supervise && program.agent.keep_on_exit);
        let program = parse("explain web --reload-socket /m.sock --etcd http://h:2379").expect("good");
        assert_eq!(program.task, Task::Explain { name: "web".to_owned() });
        assert!(!program.discoverer.supervise && !program.agent.keep_on_exit);
    }

    #[test]
    fn what_makes_no_sense_says_so() {
        for (args, expected) in [
            ("drain --wait web", "docker stop"),
            ("stop web", "registrar stop"),
            ("--once", "the discoverer's"),
            ("--interval 5", "write 500ms"),
            ("--min-interval 5", "write 500ms"),
            ("--no-such", "unexpected argument"),
            ("--network n", "--internal"),
        ] {
            let error = parse(args).expect_err(args);
            assert!(error.contains(expected), "{args}: {error}");
        }
    }
}
