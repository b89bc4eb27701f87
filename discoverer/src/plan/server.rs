//! One server line, with its `default-server` words: what it would take to add it, or to turn it into another. Pure.

use std::iter;
use std::net::SocketAddr;

use super::context::Context;
use super::keywords::{self, Runtime};
use super::reason::Reason;
use super::words::{Word, second_word, short, words};
use super::{Change, ServerId, Version};

/// A line of the runtime API holds 64 words, three of them `add server backend/name` (measured with 2.6).
const MOST_WORDS: usize = 61;
/// From 3.2 on a line is limited by `tune.bufsize`, 16,384 bytes unless set.
const MOST_BYTES: usize = 8000;

/// A server line, read.
#[derive(Debug)]
pub(super) struct Server<'t> {
    id: ServerId,
    address: Word<'t>,
    /// Each keyword with the words that belong to it, those of `default-server` first.
    settings: Vec<Setting<'t>>,
}

#[derive(Debug)]
struct Setting<'t> {
    keyword: Word<'t>,
    arguments: Vec<Word<'t>>,
    runtime: Runtime,
}

impl<'t> Server<'t> {
    /// Reads a server line that stands at a place in a section.
    pub(super) fn read(context: &Context<'t>, place: usize, line: &'t str) -> Result<Self, Reason> {
        let id = ServerId { backend: context.backend.clone(), server: second_word(line).into_owned() };
        if !is_name(&id.backend) || !is_name(&id.server) {
            let id = ServerId { backend: id.backend, server: short(&id.server) };
            return Err(refused(&id, "its line or its name has characters that only HAProxy resolves"));
        }
        let own = words(line).map_err(|why| refused(&id, why.to_string()))?;
        let mut all = own.into_iter().skip(2);
        let address = all.next().ok_or_else(|| refused(&id, "it has no address"))?;
        let mut all = context.defaults_at(place).0.cloned().chain(all);
        let mut settings = Vec::new();
        while let Some(keyword) = all.next() {
            let (count, runtime) = keywords::of(&keyword)
                .ok_or_else(|| refused(&id, format!("{:?} is not a keyword known here", short(&keyword))))?;
            let arguments: Vec<_> = all.by_ref().take(count).collect();
            if arguments.len() < count {
                return Err(refused(&id, format!("{keyword:?} has no value")));
            }
            settings.push(Setting { keyword, arguments, runtime });
        }
        // Where an address stands there is no name to resolve.
        if socket_address(&address).is_some() {
            settings.retain(|setting| setting.runtime != Runtime::Names);
        }
        Ok(Self { id, address, settings })
    }

    /// What adds it.
    pub(super) fn addition(self, context: &Context<'_>, version: Version) -> Result<Change, Reason> {
        self.fixed_address()?;
        let taken = |setting: &Setting<'_>| matches!(setting.runtime, Runtime::Since(since) if since <= version);
        if let Some(setting) = self.settings.iter().find(|setting| !taken(setting)) {
            let why = format!("{:?} is not for servers added at run time (HAProxy {version})", setting.keyword);
            return Err(refused(&self.id, why));
        }
        self.weight()?;
        let checked = self.settings.iter().any(|setting| setting.keyword == "check");
        if checked && context.external_check {
            return Err(refused(&self.id, "its check is a program"));
        }
        let settings = self.settings.iter().flat_map(|setting| iter::once(&setting.keyword).chain(&setting.arguments));
        let words: Vec<&str> = iter::once(&self.address).chain(settings).map(AsRef::as_ref).collect();
        if let Some(word) = words.iter().find(|word| !is_plain(word)) {
            return Err(refused(
                &self.id,
                format!("{:?} has characters that the runtime API reads otherwise", short(word)),
            ));
        }
        let arguments = words.join(" ");
        if words.len() > MOST_WORDS || arguments.len() > MOST_BYTES {
            return Err(refused(&self.id, "its line is too long for the runtime API"));
        }
        Ok(Change::Add { id: self.id, arguments, checked, dynamic_cookie: context.dynamic_cookie })
    }

    /// What removes it.
    pub(super) fn removal(self) -> Result<Change, Reason> {
        let has = |keyword: &str| self.settings.iter().any(|setting| setting.keyword == keyword);
        if has("agent-check") {
            return Err(refused(&self.id, "its agent could end the maintenance that comes before its removal"));
        }
        // A worker that is left behind by a reload finishes them.
        if has("on-marked-down") {
            return Err(refused(&self.id, "the maintenance that comes before its removal would end its sessions"));
        }
        Ok(Change::Remove { id: self.id })
    }

    /// What makes it another of the same name: nothing, its address, its weight.
    pub(super) fn changes(self, wanted: &Self) -> Result<Vec<Change>, Reason> {
        let without_weight = |server: &Self| -> Vec<String> {
            let settings = server.settings.iter().filter(|setting| setting.keyword != "weight");
            settings.map(|setting| format!("{:?} {:?}", setting.keyword, setting.arguments)).collect()
        };
        if without_weight(&self) != without_weight(wanted) {
            return Err(refused(&self.id, "more than its weight and its address differs"));
        }
        let mut changes = Vec::new();
        if self.address != wanted.address {
            let (old, new) = (self.fixed_address()?, wanted.fixed_address()?);
            if old != new {
                changes.push(Change::Address { id: self.id.clone(), address: new.ip().to_string(), port: new.port() });
            }
        }
        let weight = wanted.weight()?;
        if self.weight()? != weight {
            changes.push(Change::Weight { id: self.id, weight });
        }
        Ok(changes)
    }

    /// The weight, 0 to 256; 1 where none is given (configuration manual, section 5.2).
    fn weight(&self) -> Result<u16, Reason> {
        let Some(setting) = self.settings.iter().rfind(|setting| setting.keyword == "weight") else {
            return Ok(1);
        };
        let weight = setting.arguments.first().and_then(|weight| weight.parse().ok()).filter(|&weight| weight <= 256);
        weight.ok_or_else(|| refused(&self.id, "its weight is not 0 to 256"))
    }

    fn fixed_address(&self) -> Result<SocketAddr, Reason> {
        socket_address(&self.address)
            .ok_or_else(|| refused(&self.id, format!("{:?} is not an IP address with a port", short(&self.address))))
    }
}

fn refused(id: &ServerId, why: impl Into<String>) -> Reason {
    Reason::Server { id: id.clone(), why: why.into() }
}

/// `10.0.0.1:80` or `[::1]:80`. What else HAProxy takes (names, sockets, no port, a range) is left to a reload; so
/// is port 0, which stands for the port that the client asked for.
pub(super) fn socket_address(word: &str) -> Option<SocketAddr> {
    word.parse().ok().filter(|address: &SocketAddr| {
        let scoped = matches!(address, SocketAddr::V6(v6) if v6.scope_id() != 0);
        address.port() != 0 && !address.ip().is_unspecified() && !scoped
    })
}

/// A name as HAProxy itself takes it, and as the runtime API can say it.
fn is_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.:".contains(&b))
}

/// A word that means the same in the configuration and in a line of the runtime API: nothing in it parts words
/// or commands, escapes, quotes, or names a variable of the environment.
fn is_plain(word: &str) -> bool {
    !word.is_empty() && word.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.:/,@+=%()[]*~^".contains(&b))
}
