//! Where a program's settings come from: flags, the environment, and a file (TOML) whose keys are the flags' names.
//!
//! A flag wins over its environment variable, that over the file, and that over the default. The file's values are given to the
//! program's own command line where nothing else names them, so that they are judged by the same rules as flags. It knows no key
//! itself: keys, types and defaults are those of the command (`reference` writes them down), the rest is in [`Rules`].
//!
//! `file` reads the file, `print` shows what is in force, `follow` reads again when told to, or when the file changes.

mod file;
mod follow;
mod print;
mod reference;

use std::any::TypeId;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};

use crate::answer::hide_values;
use crate::escape::escaped_lines;
use file::{Entry, Value};

pub use follow::{News, Renewals};
pub use reference::reference;

/// The flag that names the file, and the one that shows what is in force.
const CONFIG: &str = "config";
const PRINT: &str = "print_config";

/// What of a program's settings its flags do not say.
#[derive(Debug)]
pub struct Rules {
    /// The environment variable that may name the file.
    pub variable: &'static str,
    /// Keys whose one value holds several, joined by commas: the file may have an array for them.
    pub lists: &'static [&'static str],
    /// Keys whose values are NAME=VALUE: the file may have a table for them.
    pub tables: &'static [&'static str],
    /// Keys of which only one may be given: a flag or a variable puts those that the file has of them out of force.
    pub exclusive: &'static [&'static [&'static str]],
    /// Keys whose change takes effect at once when the file is read again.
    pub at_once: &'static [&'static str],
    /// Subcommands that go on without the file where it cannot be used: the daemon does so too, with what it has read before.
    pub lenient: &'static [&'static str],
}

/// Why there are no settings.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// What is wrong with the command line, or `--help`.
    #[error(transparent)]
    CommandLine(#[from] clap::Error),
    /// The file cannot be used.
    #[error("--config {}: {reason}", shown(.path))]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A line of the file is wrong.
    #[error("{} line {line}: {reason}", shown(.path))]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// What is wrong with it, and what is right. No value stands in it: that may be a secret.
        reason: String,
    },
}

impl ConfigError {
    /// Prints it, and ends the process as clap does: with 2, or with 0 after `--help`.
    pub fn exit(&self) -> ! {
        if let Self::CommandLine(error) = self {
            error.exit();
        }
        eprintln!("error: {self}");
        std::process::exit(2);
    }
}

fn shown(path: &Path) -> String {
    escaped_lines(&path.display().to_string()).replace('\n', "\\n")
}

/// Adds `--config` and `--print-config` to a command and to those of its subcommands that have keys. Where the command's own flags
/// are for its subcommands too, so are these.
pub fn with_flags(command: Command, rules: &Rules) -> Command {
    let is_global = command.get_arguments().any(Arg::is_global_set);
    let config = Arg::new(CONFIG).long("config").value_name("FILE").env(rules.variable);
    let config = config.value_parser(value_parser!(PathBuf)).global(is_global).help(
        "A file (TOML) with settings: its keys are the names of these flags. A flag wins over its environment variable, and that \
         over the file. It is read again when it changes, and at SIGHUP; the log says what takes effect only after a restart",
    );
    let print = Arg::new(PRINT).long("print-config").action(ArgAction::SetTrue).global(is_global).help(
        "Print the settings that are in force, as such a file, each with where it comes from, and end. Passwords are not shown",
    );
    let has_keys = is_global || key_arguments(&command).next().is_some();
    let command = if has_keys { command.arg(config).arg(print) } else { command };
    if is_global { command } else { command.mut_subcommands(|subcommand| with_flags(subcommand, rules)) }
}

/// An empty variable counts as absent: compose files pass those on.
fn without_empty_variables(command: Command) -> Command {
    let is_empty = |name: &OsStr| std::env::var_os(name).is_some_and(|value| value.is_empty());
    let command = command.mut_args(|arg| if arg.get_env().is_some_and(is_empty) { arg.env(None) } else { arg });
    command.mut_subcommands(without_empty_variables)
}

/// The name by which the file has what this argument says: that of its environment variable, without the program's name. That is the
/// flag's, but for one that says something else than a flag of that name does elsewhere. None for what is only said when a
/// program is called.
fn key(arg: &Arg) -> Option<String> {
    let (_, name) = arg.get_env()?.to_str()?.split_once('_')?;
    (arg.get_id() != CONFIG && arg.get_long().is_some()).then(|| name.to_ascii_lowercase().replace('_', "-"))
}

fn key_arguments(command: &Command) -> impl Iterator<Item = (String, &Arg)> {
    command.get_arguments().filter_map(|arg| Some((key(arg)?, arg)))
}

/// All keys of a command and its subcommands.
fn all_keys(command: &Command) -> BTreeSet<String> {
    let own = key_arguments(command).map(|(key, _)| key);
    own.chain(command.get_subcommands().flat_map(all_keys)).collect()
}

/// What a key's value is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Switch,
    Integer,
    Text,
    /// Several values, each given by itself.
    List,
    /// Several values in one, joined by commas.
    Joined,
    /// Several NAME=VALUE.
    Table,
}

impl Kind {
    fn of(key: &str, arg: &Arg, rules: &Rules) -> Self {
        let of = arg.get_value_parser().type_id();
        let integers = [TypeId::of::<u8>(), TypeId::of::<u16>(), TypeId::of::<u32>(), TypeId::of::<u64>()];
        match arg.get_action() {
            ArgAction::SetTrue => Self::Switch,
            _ if rules.tables.contains(&key) => Self::Table,
            _ if rules.lists.contains(&key) => Self::Joined,
            ArgAction::Append => Self::List,
            _ if integers.iter().any(|integer| of == *integer) => Self::Integer,
            _ => Self::Text,
        }
    }

    fn form(self) -> &'static str {
        match self {
            Self::Switch => "true or false, without quotes",
            Self::Integer => "a whole number, without quotes",
            Self::Text => "a text in quotes",
            Self::List | Self::Joined => "an array of texts, or one text in quotes",
            Self::Table => "a table of names and values, or an array of texts \"NAME=VALUE\"",
        }
    }

    /// What the flag is given for a value of the file; none where that is not of this kind.
    fn words(self, value: &Value) -> Option<Vec<String>> {
        let each = |values: &[Value]| values.iter().map(Value::word).collect::<Option<Vec<_>>>();
        match (self, value) {
            (Self::Switch, Value::Switch(value)) => Some(vec![value.to_string()]),
            (Self::Integer, Value::Integer(value)) => Some(vec![value.clone()]),
            (Self::Text, Value::Text(text)) => Some(vec![text.clone()]),
            (Self::List | Self::Table, Value::Array(values)) => each(values),
            (Self::Joined, Value::Array(values)) => Some(vec![each(values)?.join(",")]),
            (Self::List | Self::Joined | Self::Table, Value::Text(_) | Value::Integer(_)) => Some(vec![value.word()?]),
            (Self::Table, Value::Table(values)) => {
                let pair = |(name, value): &(String, Value)| Some(format!("{name}={}", value.scalar()?));
                values.iter().map(pair).collect()
            }
            _ => None,
        }
    }
}

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// A flag of this name.
    Flag(String),
    /// This environment variable.
    Variable(String),
    /// This line of the file.
    Line(usize),
    /// Nothing names it.
    Default,
}

/// One key with what is in force.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Setting {
    key: String,
    kind: Kind,
    /// None where there is no value.
    values: Option<Vec<OsString>>,
    origin: Origin,
}

/// The settings of one call.
#[derive(Debug)]
pub struct Loaded {
    /// What the command line comes to, with the file's values.
    pub matches: ArgMatches,
    /// The file, where one is named.
    pub file: Option<PathBuf>,
    /// What the file held.
    text: Option<String>,
    settings: Vec<Setting>,
    is_to_be_printed: bool,
}

impl Loaded {
    /// The settings as a file, where they were asked for instead of anything else.
    pub fn printed(&self) -> Option<String> {
        self.is_to_be_printed.then(|| print::print(&self.settings, self.file.as_deref()))
    }

    /// Where the value of a key comes from; none for what is no key here.
    pub fn origin(&self, key: &str) -> Option<&Origin> {
        self.settings.iter().find(|setting| setting.key == key).map(|setting| &setting.origin)
    }

    /// Whether a flag of the command line gives a key its value.
    pub fn is_flag(&self, key: &str) -> bool {
        matches!(self.origin(key), Some(Origin::Flag(_)))
    }

    /// The keys that have another value than before.
    fn changed<'s>(&'s self, before: &Self) -> Vec<&'s Setting> {
        let is_same = |setting: &&Setting| {
            before.settings.iter().any(|old| old.key == setting.key && old.values == setting.values)
        };
        self.settings.iter().filter(|setting| !is_same(setting)).collect()
    }
}

/// How a program was called: what its settings can be read from, again and again.
#[derive(Debug, Clone)]
pub struct Source {
    command: Command,
    rules: &'static Rules,
    args: Vec<OsString>,
}

impl Source {
    /// From the command, which has had [`with_flags`], and the command line, with the program's name first.
    pub fn new<T: Into<OsString>>(command: Command, rules: &'static Rules, args: impl IntoIterator<Item = T>) -> Self {
        Self { command: hide_values(command), rules, args: args.into_iter().map(Into::into).collect() }
    }

    /// Reads the command line, the environment and the file.
    ///
    /// # Errors
    /// The first thing that is wrong with any of them; `--help` and `--version` come as one too.
    pub fn read(&self) -> Result<Loaded, ConfigError> {
        match self.read_all() {
            Err(error @ (ConfigError::File { .. } | ConfigError::Line { .. })) if self.is_lenient() => {
                eprintln!("{error}; what it has is left out");
                let mut command = without_empty_variables(self.command.clone());
                let matches = command.try_get_matches_from_mut(&self.args).map_err(without_users)?;
                Ok(self.loaded(matches, None, &BTreeMap::new()))
            }
            other => other,
        }
    }

    fn is_lenient(&self) -> bool {
        let command = without_empty_variables(self.command.clone()).ignore_errors(true);
        let matches = command.try_get_matches_from(&self.args).ok();
        let called = matches.as_ref().and_then(ArgMatches::subcommand_name);
        called.is_some_and(|name| self.rules.lenient.contains(&name))
    }

    fn read_all(&self) -> Result<Loaded, ConfigError> {
        let mut command = without_empty_variables(self.command.clone());
        // What the file is to give may be missing here, so that only what is there is of interest.
        let early = command.clone().ignore_errors(true).try_get_matches_from(&self.args)?;
        let (path, given) = deepest(&command, &early);
        let Some(file) = given.try_get_one::<PathBuf>(CONFIG).ok().flatten().cloned() else {
            let matches = command.try_get_matches_from_mut(&self.args).map_err(without_users)?;
            return Ok(self.loaded(matches, None, &BTreeMap::new()));
        };
        let (text, entries) = file::read(&file, &all_keys(&self.command))?;
        let injected = self.injected(&path, given, &entries, &file)?;
        let args = self.with(path.last().map(|command| command.get_name()), &injected);
        let matches =
            command.clone().try_get_matches_from(args).map_err(|error| self.judged(error, &file, &injected))?;
        let lines = injected.into_iter().map(|injected| (injected.id, injected.line)).collect();
        Ok(self.loaded(matches, Some((file, text)), &lines))
    }

    /// What of the file is in force: nothing else names it, nor anything that excludes it.
    fn injected(
        &self,
        path: &[&Command],
        given: &ArgMatches,
        entries: &BTreeMap<String, Entry>,
        file: &Path,
    ) -> Result<Vec<Injected>, ConfigError> {
        let source = |arg: &Arg| given.value_source(arg.get_id().as_str());
        let is_given = |arg: &Arg| matches!(source(arg), Some(ValueSource::CommandLine | ValueSource::EnvVariable));
        // A switch that is off is no choice.
        let is_chosen = |arg: &Arg| {
            is_given(arg) && (!matches!(arg.get_action(), ArgAction::SetTrue) || given.get_flag(arg.get_id().as_str()))
        };
        let mut injected = Vec::new();
        for (command, arg) in arguments(path) {
            // Those of the command as it is, with all its variables.
            let Some((key, arg)) = self.named(arg) else { continue };
            let Some(Entry { line, value }) = entries.get(&key) else { continue };
            let kind = Kind::of(&key, arg, self.rules);
            let words = kind.words(value).filter(|words| words.iter().all(|word| !word.contains('\0')));
            let words = words.ok_or_else(|| ConfigError::Line {
                path: file.to_owned(),
                line: *line,
                reason: format!("{key}: the value must be {}", kind.form()),
            })?;
            let others = self.rules.exclusive.iter().filter(|group| group.contains(&key.as_str()));
            let others: BTreeSet<&str> = others.flat_map(|group| group.iter().copied()).collect();
            let excludes = |other: &Arg| {
                let key = self.named(other).map(|(key, _)| key);
                other.get_id() != arg.get_id() && key.is_some_and(|key| others.contains(key.as_str()))
            };
            let is_excluded = arguments(path).any(|(_, other)| is_chosen(other) && excludes(other))
                || conflicts(command, arg).iter().any(|other| is_chosen(other));
            if !is_given(arg) && !is_excluded {
                let (id, long) = (arg.get_id().to_string(), arg.get_long().unwrap_or_default().to_owned());
                injected.push(Injected { id, long, key, line: *line, kind, words });
            }
        }
        Ok(injected)
    }

    /// The argument as the command has it, with its key.
    fn named(&self, arg: &Arg) -> Option<(String, &Arg)> {
        fn all(command: &Command) -> Box<dyn Iterator<Item = &Arg> + '_> {
            Box::new(command.get_arguments().chain(command.get_subcommands().flat_map(all)))
        }
        // Two of one name have different keys: theirs may be the help and the variable, so that both must be equal.
        let is_same = |other: &&Arg| {
            other.get_id() == arg.get_id() && (arg.get_env().is_none() || other.get_env() == arg.get_env())
        };
        let found = all(&self.command).find(is_same)?;
        Some((key(found)?, found))
    }

    /// The command line with the file's values before everything else that the subcommand is given.
    fn with(&self, subcommand: Option<&str>, injected: &[Injected]) -> Vec<OsString> {
        let is_global = self.command.get_arguments().any(Arg::is_global_set);
        let named = |name: &str| self.args.iter().skip(1).position(|arg| arg == name).map(|at| at + 2);
        let own = subcommand.filter(|name| !is_global && *name != self.command.get_name());
        let at = own.and_then(named).unwrap_or(1).min(self.args.len());
        let mut args = self.args.clone();
        args.splice(at..at, injected.iter().flat_map(Injected::flags));
        args
    }

    /// Says of a value that the file has in which line it stands, and not what it is.
    fn judged(&self, error: clap::Error, file: &Path, injected: &[Injected]) -> ConfigError {
        let text = |kind: ContextKind| match error.get(kind) {
            Some(ContextValue::String(text)) => vec![text.clone()],
            Some(ContextValue::Strings(texts)) => texts.clone(),
            _ => Vec::new(),
        };
        let of = |kind: ContextKind| {
            let named = text(kind);
            let is_named = |name: &str, long: &str| {
                name.strip_prefix("--").is_some_and(|rest| rest.split([' ', '=', '[']).next() == Some(long))
            };
            injected.iter().find(|injected| named.iter().any(|name| is_named(name, &injected.long)))
        };
        let at = |injected: &Injected, reason: String| ConfigError::Line {
            path: file.to_owned(),
            line: injected.line,
            reason: format!("{}: {reason}", injected.key),
        };
        let Some(first) = of(ContextKind::InvalidArg) else {
            return ConfigError::CommandLine(without_users(error));
        };
        match error.kind() {
            ErrorKind::InvalidValue => at(first, {
                let valid = text(ContextKind::ValidValue);
                if valid.is_empty() { "it is empty".to_owned() } else { format!("write one of {}", valid.join(", ")) }
            }),
            ErrorKind::ValueValidation => at(first, {
                let reason = std::error::Error::source(&error).map(ToString::to_string);
                let reason = reason.unwrap_or_else(|| "this is no value for it".to_owned());
                first.without_values(&reason)
            }),
            ErrorKind::ArgumentConflict => match of(ContextKind::PriorArg) {
                Some(other) => {
                    at(first, format!("it cannot be given together with {} (line {})", other.key, other.line))
                }
                None => at(first, "it cannot be given together with a flag of the command line".to_owned()),
            },
            _ => ConfigError::CommandLine(without_users(error)),
        }
    }

    fn loaded(&self, matches: ArgMatches, file: Option<(PathBuf, String)>, lines: &BTreeMap<String, usize>) -> Loaded {
        let mut settings = Vec::new();
        let (path, deepest) = deepest(&self.command, &matches);
        for (_, arg) in arguments(&path) {
            let Some(key) = key(arg) else { continue };
            let id = arg.get_id().as_str();
            let variable = || arg.get_env().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            let origin = match (lines.get(id), deepest.value_source(id)) {
                (Some(line), _) => Origin::Line(*line),
                (None, Some(ValueSource::CommandLine)) => Origin::Flag(arg.get_long().unwrap_or_default().to_owned()),
                (None, Some(ValueSource::EnvVariable)) => Origin::Variable(variable()),
                _ => Origin::Default,
            };
            let kind = Kind::of(&key, arg, self.rules);
            let values = match kind {
                Kind::Switch => Some(vec![deepest.get_flag(id).to_string().into()]),
                _ => deepest.get_raw(id).map(|values| values.map(OsStr::to_owned).collect()),
            };
            settings.push(Setting { key, kind, values, origin });
        }
        let is_to_be_printed = deepest.try_get_one::<bool>(PRINT).ok().flatten().copied().unwrap_or(false);
        let (file, text) = file.unzip();
        Loaded { matches, file, text, settings, is_to_be_printed }
    }
}

/// A value of the file, on its way to the command line.
struct Injected {
    id: String,
    long: String,
    key: String,
    line: usize,
    kind: Kind,
    words: Vec<String>,
}

impl Injected {
    fn flags(&self) -> Vec<OsString> {
        let flag = |word: &String| match (self.kind, word.as_str()) {
            (Kind::Switch, "false") => None,
            (Kind::Switch, _) => Some(format!("--{}", self.long)),
            _ => Some(format!("--{}={word}", self.long)),
        };
        self.words.iter().filter_map(flag).map(OsString::from).collect()
    }

    /// A reason may quote a value, which may be a secret.
    fn without_values(&self, reason: &str) -> String {
        let mut reason = reason.to_owned();
        for word in self.words.iter().filter(|word| word.contains('@')) {
            for part in word.split(',').map(str::trim).chain([word.as_str()]).filter(|part| !part.is_empty()) {
                reason = reason.replace(part, "...");
            }
        }
        reason
    }
}

/// What clap quotes of the command line and of variables may be a URL with a user and a password, well written or not.
fn without_users(mut error: clap::Error) -> clap::Error {
    let clean = |text: &String| match text.rsplit_once('@') {
        Some((user, rest)) => {
            let scheme = user.split_once("://").map(|(scheme, _)| format!("{scheme}://")).unwrap_or_default();
            format!("{scheme}...@{rest}")
        }
        None => text.clone(),
    };
    let cleaned: Vec<_> = error
        .context()
        .filter_map(|(kind, value)| match value {
            ContextValue::String(text) => Some((kind, ContextValue::String(clean(text)))),
            ContextValue::Strings(texts) => Some((kind, ContextValue::Strings(texts.iter().map(clean).collect()))),
            // A hint quotes what it is about.
            ContextValue::StyledStrs(texts) if texts.iter().any(|text| text.to_string().contains('@')) => {
                Some((kind, ContextValue::None))
            }
            _ => None,
        })
        .collect();
    for (kind, value) in cleaned {
        error.insert(kind, value);
    }
    error
}

/// The command and those of its subcommands that were called, and what the last one was given.
fn deepest<'c, 'm>(command: &'c Command, matches: &'m ArgMatches) -> (Vec<&'c Command>, &'m ArgMatches) {
    let (mut path, mut matches) = (vec![command], matches);
    while let Some((name, of)) = matches.subcommand() {
        let Some(called) = path.last().and_then(|command| command.find_subcommand(name)) else { break };
        path.push(called);
        matches = of;
    }
    (path, matches)
}

/// The arguments that the last of these commands takes, each with the command that it is of.
fn arguments<'c>(path: &[&'c Command]) -> impl Iterator<Item = (&'c Command, &'c Arg)> {
    let last = path.len().saturating_sub(1);
    let of = move |(at, command): (usize, &&'c Command)| {
        let command: &'c Command = command;
        command.get_arguments().filter(move |arg| at == last || arg.is_global_set()).map(move |arg| (command, arg))
    };
    path.iter().enumerate().flat_map(of).collect::<Vec<_>>().into_iter()
}

/// What clap refuses beside this argument.
fn conflicts<'c>(command: &'c Command, arg: &Arg) -> Vec<&'c Arg> {
    let of = |arg: &Arg| -> Vec<&'c Arg> { command.get_arg_conflicts_with(arg) };
    let mut found = of(arg);
    found.extend(command.get_arguments().filter(|other| of(other).iter().any(|third| third.get_id() == arg.get_id())));
    found
}

#[cfg(test)]
mod tests;
