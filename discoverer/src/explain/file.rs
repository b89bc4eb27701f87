//! What HAProxy's file says of a server, and which rules lead to it. Pure.
//!
//! It reads any file, also one of a template that is the user's own: a server is known by its address.

use std::net::SocketAddr;
use std::sync::Arc;

use crate::plan::{Parsed, first_word, is_rule, is_section, named_backend, second_word, words};

/// A file, as far as it says where requests go.
#[derive(Debug, Default)]
pub(super) struct File {
    sections: Vec<Section>,
    /// The backends to which no rule leads; sorted.
    unled: Arc<[String]>,
}

/// One section.
#[derive(Debug, Default)]
pub(super) struct Section {
    /// `frontend`, `backend` or `listen`, or another.
    keyword: String,
    pub(super) name: String,
    servers: Vec<Server>,
    /// Its `use_backend` and `default_backend`, each with the backend that it names; none where that is not known from the text.
    rules: Vec<(Option<String>, Line)>,
    binds: Vec<String>,
}

/// A server of a section.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) name: String,
    pub(super) line: Line,
    pub(super) weight: Option<u16>,
    pub(super) is_disabled: bool,
    address: Option<SocketAddr>,
}

/// A line, with its number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Line {
    pub(super) number: usize,
    pub(super) text: String,
}

/// What leads to a backend.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Way<'f> {
    /// The section with the rule.
    pub(super) section: &'f str,
    pub(super) line: &'f Line,
    /// Where that takes connections.
    pub(super) binds: &'f [String],
}

impl Way<'_> {
    /// The rule as it stands in the file of that name.
    pub(super) fn shown(&self, file: &str) -> String {
        let binds = if self.binds.is_empty() { String::new() } else { format!(" ({})", self.binds.join(", ")) };
        format!("{file}:{}: {}{binds}: {}", self.line.number, self.section, self.line.text)
    }
}

impl File {
    pub(super) fn read(text: &str) -> Self {
        let mut file = Self { sections: Vec::new(), unled: Parsed::new(text).unled() };
        for (at, text) in text.lines().enumerate() {
            let line = || Line { number: at + 1, text: text.trim().to_owned() };
            let first = first_word(text);
            if let Some(section) = file.sections.last_mut() {
                // An environment variable in one does not make it none.
                if is_rule(&first) {
                    section.rules.push((named_backend(text).map(Into::into), line()));
                } else if first == "bind" {
                    section.binds.push(second_word(text).into_owned());
                }
            }
            let Ok(words) = words(text) else { continue };
            let second = words.get(1).map(ToString::to_string);
            if is_section(&first) {
                let name = second.unwrap_or_default();
                file.sections.push(Section { keyword: first.into_owned(), name, ..Section::default() });
                continue;
            }
            let Some(section) = file.sections.last_mut() else { continue };
            if let ("server", Some(name)) = (first.as_ref(), second) {
                let weight = words.iter().position(|word| word == "weight").and_then(|at| words.get(at + 1));
                section.servers.push(Server {
                    name,
                    line: line(),
                    weight: weight.and_then(|weight| weight.parse().ok()),
                    is_disabled: words.iter().skip(3).any(|word| word == "disabled"),
                    address: words.get(2).and_then(|word| word.parse().ok()),
                });
            }
        }
        file
    }

    /// The sections that have servers at an address, with these.
    pub(super) fn servers_at(&self, address: SocketAddr) -> impl Iterator<Item = (&Section, &Server)> {
        let of = move |section: &'_ Section| -> Vec<usize> {
            let is_it = |(at, server): (usize, &Server)| (server.address == Some(address)).then_some(at);
            section.servers.iter().enumerate().filter_map(is_it).collect()
        };
        self.sections
            .iter()
            .flat_map(move |section| of(section).into_iter().map(move |at| (section, &section.servers[at])))
    }

    /// Whether there is such a backend.
    pub(super) fn has_backend(&self, name: &str) -> bool {
        self.sections.iter().any(|section| section.takes_servers() && section.name == name)
    }

    /// The rules that name a backend. A `listen` section takes connections itself.
    pub(super) fn ways_to<'f>(&'f self, backend: &str) -> Vec<Way<'f>> {
        self.ways(|to| to == Some(backend))
    }

    /// The rules that may lead to any backend.
    pub(super) fn ways_to_any(&self) -> Vec<Way<'_>> {
        self.ways(|to| to.is_none())
    }

    /// Whether no rule leads to a backend, as `discoverer status` judges it too.
    pub(super) fn is_unled(&self, backend: &str) -> bool {
        self.unled.binary_search_by(|unled| unled.as_str().cmp(backend)).is_ok()
    }

    fn ways(&self, is_meant: impl Fn(Option<&str>) -> bool) -> Vec<Way<'_>> {
        let rules = self.sections.iter().flat_map(|section| section.rules.iter().map(move |rule| (section, rule)));
        let meant = rules.filter(|(_, (to, _))| is_meant(to.as_deref()));
        meant.map(|(section, (_, line))| Way { section: &section.name, line, binds: &section.binds }).collect()
    }

    /// Where a `listen` section of that name takes connections; none where it is none, or takes none.
    pub(super) fn listens(&self, name: &str) -> Option<&[String]> {
        let section = self.sections.iter().find(|section| section.keyword == "listen" && section.name == name)?;
        (!section.binds.is_empty()).then_some(section.binds.as_slice())
    }
}

impl Section {
    fn takes_servers(&self) -> bool {
        matches!(self.keyword.as_str(), "backend" | "listen")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "global\n    log stdout format raw local0\n\nfrontend _http\n    bind :80\n    \
        use_backend web if { path /a }\n    default_backend other\n\nbackend web\n    server s1 10.0.0.1:80 weight 7 check\n    \
        server \"s 2\" [::1]:80 disabled # weight 3\n\nlisten db\n    bind :5432\n    server s1 10.0.0.1:80\n\nbackend aside\n";

    #[test]
    fn a_server_is_known_by_its_address_and_a_backend_by_what_leads_to_it() {
        let file = File::read(TEXT);
        let at = |address: &str| {
            let servers = file.servers_at(address.parse().unwrap());
            servers
                .map(|(section, server)| (section.name.as_str(), server.line.number, server.weight))
                .collect::<Vec<_>>()
        };
        assert_eq!(at("10.0.0.1:80"), [("web", 10, Some(7)), ("db", 15, None)]);
        assert_eq!(at("[::1]:80"), [("web", 11, None)]);
        assert!(at("10.0.0.1:8").is_empty());
        let [way] = &file.ways_to("web")[..] else { panic!("{file:?}") };
        assert_eq!((way.section, way.line.number, way.binds), ("_http", 6, &[":80".to_owned()][..]));
        assert_eq!(file.ways_to("other")[0].line.text, "default_backend other");
        assert!(file.ways_to("db").is_empty());
        assert_eq!(file.listens("db"), Some(&[":5432".to_owned()][..]));
        assert!(file.has_backend("web") && file.has_backend("db") && !file.has_backend("_http"));
        assert!(file.servers_at("[::1]:80".parse().unwrap()).next().unwrap().1.is_disabled);
        assert!(
            file.is_unled("aside") && !file.is_unled("web") && !file.is_unled("db") && file.ways_to_any().is_empty()
        );
    }

    #[test]
    fn a_rule_that_does_not_name_its_backend_may_lead_to_any() {
        for rule in ["use_backend %[req.hdr(host),lower] if { path / }", "use_backend \"$WHERE\""] {
            let file = File::read(&TEXT.replace("default_backend other", rule));
            let [way] = &file.ways_to_any()[..] else { panic!("{rule}: {file:?}") };
            assert_eq!(way.shown("h.cfg"), format!("h.cfg:7: _http (:80): {rule}"));
            assert!(!file.is_unled("aside") && file.ways_to("aside").is_empty(), "{rule}");
        }
    }

    #[test]
    fn a_listen_section_takes_connections_where_it_binds_whatever_the_address() {
        for (bind, expected) in [("bind :5432", Some(":5432")), ("bind \"$IP:1\"", Some("bind \"$IP:1\"")), ("", None)]
        {
            let file = File::read(&TEXT.replace("bind :5432", bind));
            let binds = expected.map(|bind| vec![bind.to_owned()]);
            assert_eq!(file.listens("db"), binds.as_deref(), "{bind}");
            assert_eq!(file.is_unled("db"), binds.is_none(), "{bind}");
        }
    }
}
