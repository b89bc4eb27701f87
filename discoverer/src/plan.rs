//! From the configuration that HAProxy runs to the one that is wanted: nothing, commands for the runtime API, or a
//! reload with its reason. Pure: no I/O, no clock, no logging.
//!
//! It works on the texts, so any template will do. Where only `server` lines of existing backends differ, the
//! difference becomes commands; everything else is a reload, and so is all that this is not sure of. What
//! HAProxy refuses all the same is for the caller to notice: it answers each command.

mod context;
mod difference;
mod directives;
pub mod keywords;
mod reason;
mod rules;
mod server;
mod servers;
#[cfg(test)]
mod tests;
mod text;
mod words;

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

pub use self::directives::{Bind, WorkerLimits};
pub use self::reason::Reason;
pub(crate) use self::rules::{is_rule, named_backend};
pub use self::servers::ServerSettings;
pub use self::text::Parsed;
pub(crate) use self::text::is_section;
pub(crate) use self::words::{first_word, second_word, words};

use self::context::Context;
use self::difference::{Difference, references, unnamed_elsewhere};
use self::server::Server;
use self::text::Place;

/// One server of one backend, named as the runtime API names it: `backend/server`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServerId {
    /// The name of a `backend` or `listen` section.
    pub backend: String,
    /// The server's name in it.
    pub server: String,
}

impl fmt::Display for ServerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.backend, self.server)
    }
}

/// What the runtime API does to one server. All text in it is safe to send: it has no character that parts words
/// or commands there.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Change {
    /// `add server`. It comes up in maintenance: what `checked` and `dynamic_cookie` ask for goes before
    /// `enable server`.
    Add {
        /// The server.
        id: ServerId,
        /// The words behind the name, those of `default-server` among them: `10.0.0.1:80 check inter 2s weight 100`.
        arguments: String,
        /// It has a health check, which needs `enable health`; without that it is taken for up.
        checked: bool,
        /// Clients stay with a server by a cookie that HAProxy computes. `add server` forgets that (measured with
        /// 2.6): `enable dynamic-cookie backend` makes up for it, and changes nothing else.
        dynamic_cookie: bool,
    },
    /// `del server`, which HAProxy takes once the server is in maintenance and its connections are gone.
    Remove {
        /// The server.
        id: ServerId,
    },
    /// `set server .. weight`.
    Weight {
        /// The server.
        id: ServerId,
        /// 0 to 256.
        weight: u16,
    },
    /// `set server .. addr .. port`. A health check follows it.
    Address {
        /// The server.
        id: ServerId,
        /// An IP address, IPv6 without brackets.
        address: String,
        /// The port there.
        port: u16,
    },
}

/// The way from one configuration to another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Plan {
    /// They mean the same.
    Nothing,
    /// These changes, at least one: additions first, then addresses and weights, then removals.
    Runtime(Vec<Change>),
    /// A reload, and why nothing less does.
    Reload(Reason),
}

/// A version of HAProxy, as far as it says what the runtime API can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    /// The 2 of 2.6.12.
    pub major: u16,
    /// The 6 of 2.6.12.
    pub minor: u16,
}

/// The first version in which servers of the file can be removed, and servers with checks added.
const FIRST: Version = Version { major: 2, minor: 6 };

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// A text is not a version of HAProxy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a version of HAProxy, such as 2.6.12")]
pub struct VersionError(String);

impl FromStr for Version {
    type Err = VersionError;

    /// Reads `2.6.12`, `3.4-dev2` and the like.
    fn from_str(text: &str) -> Result<Self, VersionError> {
        let mut numbers = text.split(|c: char| !c.is_ascii_digit()).map(str::parse);
        match (numbers.next(), numbers.next()) {
            (Some(Ok(major)), Some(Ok(minor))) if text[major_len(text)..].starts_with('.') => Ok(Self { major, minor }),
            _ => Err(VersionError(text.chars().take(80).collect())),
        }
    }
}

fn major_len(text: &str) -> usize {
    text.bytes().take_while(u8::is_ascii_digit).count()
}

/// The way from the running configuration to the wanted one. Comments, blanks, quotes and the order of server
/// lines are no difference. Without a known version, or before 2.6, every difference is a reload.
pub fn plan(running: &str, wanted: &str, version: Option<Version>) -> Plan {
    if running == wanted { Plan::Nothing } else { between(&Parsed::new(running), &Parsed::new(wanted), version) }
}

/// [`plan`] for texts that are already read.
pub fn between(running: &Parsed, wanted: &Parsed, version: Option<Version>) -> Plan {
    if running.text() == wanted.text() {
        return Plan::Nothing;
    }
    Difference::new(running, wanted, version).plan().unwrap_or_else(Plan::Reload)
}

/// The change that adds one server line to a backend of the running configuration: what [`plan`] says once the
/// line stands behind the backend's other lines, at a cost that does not grow with their number. Whether its name
/// is taken is left to HAProxy, which refuses it then.
pub fn addition(
    running: &Parsed,
    backend: &str,
    server_line: &str,
    version: Option<Version>,
) -> Result<Change, Reason> {
    let version = known(version)?;
    let Some(Place::At(index)) = running.backend(backend) else {
        return Err(Reason::Backend { backend: backend.to_owned() });
    };
    let context = Context::new(running, index)?;
    let section = &running.sections()[index];
    let line = server_line.trim();
    // Which `default-server` lines hold for it would depend on where it is put.
    let behind_defaults =
        section.last_server.is_none_or(|server| context.defaults_at(server).1 == context.all_defaults());
    if first_word(line) != "server" || line.contains('\n') || !behind_defaults {
        return Err(Reason::NotALine { backend: backend.to_owned() });
    }
    Server::read(&context, section.body.end, line)?.addition(&context, version)
}

/// The change that removes one server of the running configuration: what [`plan`] says once its line is out, at a cost
/// of two searches through the text.
pub fn removal(running: &Parsed, id: &ServerId, version: Option<Version>) -> Result<Change, Reason> {
    known(version)?;
    let Some(Place::At(index)) = running.backend(&id.backend) else {
        return Err(Reason::Backend { backend: id.backend.clone() });
    };
    let context = Context::new(running, index)?;
    let Some((place, line)) = running.line_in(index, &id.server) else {
        let why = "the running configuration does not have exactly one line for it".to_owned();
        return Err(Reason::Server { id: id.clone(), why });
    };
    unnamed_elsewhere(id, &references(running.text()))?;
    Server::read(&context, place, line)?.removal()
}

/// What of the way from the running configuration to the wanted one needs no reload: the changes of the servers of
/// backends that both have and that are otherwise the same, and the lines that these servers have then.
pub fn part(running: &Parsed, wanted: &Parsed, version: Option<Version>) -> Part {
    Difference::new(running, wanted, version).part()
}

/// Changes that need no reload, and what they come to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Part {
    /// In the order in which they are to be carried out.
    pub changes: Vec<Change>,
    /// The line of each server that is another one then; nothing for one that is removed.
    pub lines: BTreeMap<ServerId, Option<String>>,
}

fn known(version: Option<Version>) -> Result<Version, Reason> {
    version.filter(|&version| version >= FIRST).ok_or(Reason::Version(version))
}
