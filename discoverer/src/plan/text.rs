//! A configuration of HAProxy as sections, by their places in its text. Pure.
//!
//! A section begins at a line whose first word is a section's keyword, however far that is indented (HAProxy's
//! configuration manual, section 2.1). Nothing is copied out of the text, and server lines are only passed over:
//! reading a configuration costs about a walk over it.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::Arc;

use super::rules::{Rules, is_rule};
use super::words::{Unclear, Word, first_word, quotes_name, short, words};

/// A configuration's text, read into sections. Cheap to clone.
#[derive(Debug, Clone, PartialEq)]
pub struct Parsed {
    text: Arc<str>,
    sections: Arc<[Section]>,
    /// The lines of all sections that are neither a head, nor a server, nor empty.
    settings: Arc<[Range<usize>]>,
    /// Where the sections with servers are, by name.
    backends: Arc<HashMap<String, Place>>,
    /// The backends to which no rule leads.
    unled: Arc<[String]>,
}

/// Where a backend stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// The section of this index.
    At(usize),
    /// In more than one section.
    Twice,
}

/// What a section is, as far as that matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// `backend` or `listen`: it has servers that can change at run time.
    Backend,
    /// `defaults`.
    Defaults,
    /// Any other.
    Other,
}

/// What happens to the lines of servers of one section.
#[derive(Debug, Default)]
pub(super) struct Edit<'t> {
    /// Lines that go, in their order.
    pub(super) gone: Vec<Range<usize>>,
    /// Lines that come.
    pub(super) added: Vec<&'t str>,
}

/// One section of a text.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Section {
    pub(super) kind: Kind,
    /// Its first line; empty for what stands before the first section.
    pub(super) head: Range<usize>,
    /// The lines behind the head.
    pub(super) body: Range<usize>,
    /// The `defaults` section that it builds on.
    pub(super) parent: Option<usize>,
    /// A conditional block touches it (configuration manual, section 2.4), or its head is not to be read: what
    /// holds in it cannot be told from the text.
    pub(super) unclear: bool,
    settings: Range<usize>,
    /// Where its last server line begins.
    pub(super) last_server: Option<usize>,
    /// A server's name, or the keyword before it, stands in quotes or has an escape.
    pub(super) quotes_servers: bool,
}

impl Parsed {
    /// Reads a text. Any text has sections, whether HAProxy would take it or not.
    pub fn new(text: impl Into<Arc<str>>) -> Self {
        let text = text.into();
        let mut reader = Reader::default();
        reader.begin(Kind::Other, 0..0, "");
        let mut start = 0;
        for line in text.split_inclusive('\n') {
            let range = start..start + line.len();
            start = range.end;
            reader.read(line, range);
        }
        reader.end(text.len());
        let Reader { sections, settings, backends, rules, .. } = reader;
        let unled = rules.unled(backends.keys()).into();
        Self { text, sections: sections.into(), settings: settings.into(), backends: Arc::new(backends), unled }
    }

    /// The text without these lines, and with others behind the last server of their section, or at its end, by the sections'
    /// indices: as [`Parsed::new`] reads it, at the cost of a copy. Only lines of servers may go, and only such may come.
    pub(super) fn edited(&self, edits: &BTreeMap<usize, Edit<'_>>) -> Self {
        let added: usize = edits.values().flat_map(|edit| &edit.added).map(|line| line.len() + 6).sum();
        let mut text = String::with_capacity(self.text.len() + added);
        let mut sections = Vec::with_capacity(self.sections.len());
        let mut settings = Vec::with_capacity(self.settings.len());
        let unchanged = Edit::default();
        for (index, section) in self.sections.iter().enumerate() {
            let edit = edits.get(&index).unwrap_or(&unchanged);
            let head = text.len()..text.len() + section.head.len();
            text.push_str(self.at(&section.head));
            let is_gone = |place: usize| edit.gone.iter().any(|gone| gone.start == place);
            let last = section.last_server.filter(|&last| !is_gone(last));
            let insert_at = last.map_or(section.body.end, |last| self.line_end(last));
            let copy = |text: &mut String, from: usize, to: usize| {
                let mut copied = from;
                for gone in edit.gone.iter().filter(|gone| (from..to).contains(&gone.start)) {
                    text.push_str(&self.text[copied..gone.start]);
                    copied = gone.end;
                }
                text.push_str(&self.text[copied..to]);
            };
            copy(&mut text, section.body.start, insert_at);
            let mut last_server = last.map(|last| text.len() - (insert_at - last));
            let inserted_at = text.len();
            for line in &edit.added {
                if !text.ends_with('\n') {
                    text.push('\n');
                }
                last_server = Some(text.len());
                text.extend(["    ", line.trim(), "\n"]);
            }
            let inserted = text.len() - inserted_at;
            copy(&mut text, insert_at, section.body.end);
            let moved = |place: usize| {
                let gone: usize =
                    edit.gone.iter().take_while(|gone| gone.start < place).map(ExactSizeIterator::len).sum();
                let inserted = if place < insert_at { 0 } else { inserted };
                place - section.body.start + head.end - gone + inserted
            };
            let first_setting = settings.len();
            let of_section = &self.settings[section.settings.clone()];
            settings.extend(of_section.iter().map(|line| moved(line.start)..moved(line.start) + line.len()));
            let mut quotes_servers = section.quotes_servers || edit.added.iter().any(|line| quotes_name(line));
            if !edit.gone.is_empty() && (last_server.is_none() || quotes_servers) {
                let left = || lines(&text[head.end..], head.end).filter(|(_, _, word)| word == "server");
                last_server = left().last().map(|(place, _, _)| place);
                quotes_servers = left().any(|(_, line, _)| quotes_name(line));
            }
            sections.push(Section {
                head: head.clone(),
                body: head.end..text.len(),
                settings: first_setting..settings.len(),
                last_server,
                quotes_servers,
                ..section.clone()
            });
        }
        if !self.text.ends_with('\n') {
            // A line that had no end may have got one.
            return Self::new(text);
        }
        let (backends, unled) = (Arc::clone(&self.backends), Arc::clone(&self.unled));
        Self { text: text.into(), sections: sections.into(), settings: settings.into(), backends, unled }
    }

    /// Where the line that holds a place ends, its line feed included.
    fn line_end(&self, place: usize) -> usize {
        self.text[place..].find('\n').map_or(self.text.len(), |end| place + end + 1)
    }

    /// The text it was read from.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The text it was read from, shared.
    pub fn shared_text(&self) -> Arc<str> {
        Arc::clone(&self.text)
    }

    /// The backends to which no rule leads, sorted. None where a rule does not say in the text where it leads (an expression, a
    /// variable of the environment), so that it may lead to any, and where there is no rule at all.
    pub fn unled(&self) -> Arc<[String]> {
        Arc::clone(&self.unled)
    }

    pub(super) fn sections(&self) -> &[Section] {
        &self.sections
    }

    /// Where the backend of a name stands.
    pub(super) fn backend(&self, name: &str) -> Option<Place> {
        self.backends.get(name).copied()
    }

    /// The part of the text at a place.
    pub(super) fn at(&self, range: &Range<usize>) -> &str {
        &self.text[range.clone()]
    }

    /// The number of the line that begins at a place, counted from 1.
    pub(super) fn line_number(&self, place: usize) -> usize {
        self.text.as_bytes()[..place].iter().filter(|&&b| b == b'\n').count() + 1
    }

    /// The settings of a section, each with the place where it begins.
    pub(super) fn settings<'t>(&'t self, section: &Section) -> impl Iterator<Item = (usize, &'t str)> {
        self.settings[section.settings.clone()].iter().map(|range| (range.start, self.at(range)))
    }

    /// A section's keyword and name, such as `backend web`.
    pub(super) fn title(&self, section: &Section) -> String {
        let head = self.at(&section.head);
        let words = words(head).unwrap_or_default();
        let title = words.iter().take(2).map(AsRef::as_ref).collect::<Vec<_>>().join(" ");
        if title.is_empty() {
            short(if head.is_empty() { "the text before all sections" } else { head.trim() })
        } else {
            short(&title)
        }
    }

    /// A section's name.
    pub(super) fn name(&self, section: &Section) -> Result<String, Unclear> {
        Ok(words(self.at(&section.head))?.into_iter().nth(1).unwrap_or_default().into_owned())
    }

    /// The `defaults` sections that a section builds on, from the first to the nearest, and the section itself.
    pub(super) fn lineage(&self, index: usize) -> Vec<&Section> {
        let mut lineage = Vec::new();
        let mut next = Some(index);
        while let Some(index) = next {
            let section = &self.sections[index];
            lineage.push(section);
            next = section.parent;
        }
        lineage.reverse();
        lineage
    }
}

/// The lines of a part of a text that say something, each with its place and its first word.
pub(super) fn lines(part: &str, mut start: usize) -> impl Iterator<Item = (usize, &str, Word<'_>)> {
    part.split_inclusive('\n').filter_map(move |line| {
        let place = start;
        start += line.len();
        let word = first_word(line);
        (!word.is_empty()).then_some((place, line, word))
    })
}

#[derive(Default)]
struct Reader {
    sections: Vec<Section>,
    settings: Vec<Range<usize>>,
    backends: HashMap<String, Place>,
    rules: Rules,
    /// The name of the `listen` section that is being read, until it binds.
    listen: Option<String>,
    /// The `defaults` sections by name, and the last of all.
    named_defaults: HashMap<String, usize>,
    last_defaults: Option<usize>,
    /// How many `.if` are open.
    depth: usize,
}

impl Reader {
    fn read(&mut self, line: &str, range: Range<usize>) {
        let word = first_word(line);
        if let Some(section) = self.sections.last_mut() {
            section.unclear |= self.depth > 0 && !word.is_empty();
            if word == "server" && section.kind == Kind::Backend {
                section.last_server = Some(range.start);
                section.quotes_servers |= quotes_name(line);
                return;
            }
        }
        if is_rule(&word) {
            self.rules.add(line);
        }
        if word == "bind"
            && let Some(listen) = self.listen.take()
        {
            self.rules.add_listen(listen);
        }
        let kind = self.sections.last().map(|section| section.kind);
        match word.as_ref() {
            "" => {}
            "backend" | "listen" => self.begin_section(Kind::Backend, range, line),
            "defaults" => self.begin_section(Kind::Defaults, range, line),
            word if kind == Some(Kind::Backend) && PROXY_KEYWORDS.binary_search(&word).is_ok() => {
                self.settings.push(range);
            }
            word if SECTIONS.contains(&word) => self.begin_section(Kind::Other, range, line),
            word if word.starts_with('.') => {
                match word {
                    ".if" => self.depth += 1,
                    ".endif" => self.depth = self.depth.saturating_sub(1),
                    _ => {}
                }
                if let Some(section) = self.sections.last_mut() {
                    section.unclear |= matches!(word, ".if" | ".elif" | ".else" | ".endif");
                }
                self.settings.push(range);
            }
            // It may begin a section that is unknown here; what follows it is not taken for the backend's.
            _ if kind == Some(Kind::Backend) => self.begin(Kind::Other, range, line),
            _ => self.settings.push(range),
        }
    }

    fn begin_section(&mut self, kind: Kind, head: Range<usize>, line: &str) {
        self.listen = None;
        self.begin(kind, head, line);
    }

    fn begin(&mut self, kind: Kind, head: Range<usize>, line: &str) {
        self.end(head.start);
        let index = self.sections.len();
        let mut section = Section {
            kind,
            body: head.end..head.end,
            head,
            parent: None,
            unclear: self.depth > 0,
            settings: self.settings.len()..self.settings.len(),
            last_server: None,
            quotes_servers: false,
        };
        if kind != Kind::Other {
            match words(line) {
                Ok(head) => self.relate(index, &head, &mut section),
                Err(_) => section.unclear = true,
            }
        }
        if kind == Kind::Defaults {
            self.last_defaults = Some(index);
        }
        self.sections.push(section);
    }

    /// Finds the section's `defaults` (configuration manual, section 4: the named one, else the last before it;
    /// a `defaults` builds on another only where it names it), and remembers its own name.
    fn relate(&mut self, index: usize, head: &[Word<'_>], section: &mut Section) {
        let from = head.iter().position(|word| word == "from").and_then(|from| head.get(from + 1));
        section.parent = match from {
            Some(name) => {
                let named = self.named_defaults.get(name.as_ref()).copied();
                section.unclear |= named.is_none();
                named
            }
            None if section.kind == Kind::Backend => self.last_defaults,
            None => None,
        };
        let Some(name) = head.get(1).filter(|&name| name != "from") else {
            return;
        };
        if section.kind == Kind::Defaults {
            self.named_defaults.insert(name.clone().into_owned(), index);
        } else {
            let is_listen = head.first().is_some_and(|keyword| keyword == "listen");
            self.listen = is_listen.then(|| name.clone().into_owned());
            let place = self.backends.entry(name.clone().into_owned());
            place.and_modify(|place| *place = Place::Twice).or_insert(Place::At(index));
        }
    }

    fn end(&mut self, place: usize) {
        if let Some(section) = self.sections.last_mut() {
            section.body.end = place;
            section.settings.end = self.settings.len();
        }
    }
}

/// Whether a line that begins with this word begins a section. In a `backend` some of these words are keywords too; those
/// of sections that have servers or take connections are not.
pub(crate) fn is_section(word: &str) -> bool {
    matches!(word, "backend" | "listen" | "defaults") || SECTIONS.contains(&word)
}

/// The keywords that begin a section, of HAProxy 2.6 to 3.4, but for those that [`Kind`] names.
const SECTIONS: &[&str] = &[
    "frontend",
    "global",
    "acme",
    "cache",
    "crt-store",
    "fcgi-app",
    "healthcheck",
    "http-errors",
    "log-forward",
    "log-profile",
    "mailers",
    "namespace_list",
    "peers",
    "program",
    "resolvers",
    "ring",
    "traces",
    "userlist",
];

/// The keywords that may begin a line of a `backend` or `listen` section, of HAProxy 2.6 to 3.4 (configuration
/// manual, section 4.1, "Proxy keywords matrix"), sorted.
const PROXY_KEYWORDS: &[&str] = &[
    "acl",
    "backlog",
    "balance",
    "bind",
    "bind-process",
    "capture",
    "clitcpka-cnt",
    "clitcpka-idle",
    "clitcpka-intvl",
    "compression",
    "cookie",
    "declare",
    "default-server",
    "default_backend",
    "description",
    "disabled",
    "dispatch",
    "dynamic-cookie-key",
    "email-alert",
    "enabled",
    "error-log-format",
    "errorfile",
    "errorfiles",
    "errorloc",
    "errorloc302",
    "errorloc303",
    "external-check",
    "filter",
    "filter-sequence",
    "force-be-switch",
    "force-persist",
    "fullconn",
    "guid",
    "hash-balance-factor",
    "hash-preserve-affinity",
    "hash-type",
    "http-after-response",
    "http-check",
    "http-error",
    "http-request",
    "http-response",
    "http-reuse",
    "http-send-name-header",
    "id",
    "ignore-persist",
    "load-server-state-from-file",
    "log",
    "log-format",
    "log-format-sd",
    "log-steps",
    "log-tag",
    "max-keep-alive-queue",
    "max-session-srv-conns",
    "maxconn",
    "mode",
    "monitor",
    "monitor-uri",
    "no",
    "option",
    "persist",
    "quic-initial",
    "rate-limit",
    "redirect",
    "retries",
    "retry-on",
    "server",
    "server-state-file-name",
    "server-template",
    "source",
    "srvtcpka-cnt",
    "srvtcpka-idle",
    "srvtcpka-intvl",
    "stats",
    "stick",
    "stick-table",
    "tcp-check",
    "tcp-request",
    "tcp-response",
    "timeout",
    "transparent",
    "unique-id-format",
    "unique-id-header",
    "use-fcgi-app",
    "use-server",
    "use_backend",
];

#[cfg(test)]
mod tests {
    use super::*;

    fn titles(text: &str) -> Vec<String> {
        let parsed = Parsed::new(text);
        parsed.sections().iter().skip(1).map(|section| parsed.title(section)).collect()
    }

    #[test]
    fn a_section_begins_at_its_keyword_wherever_that_stands() {
        assert_eq!(
            titles("global\n  maxconn 9\n    backend a # b\nserver a b\n\t\"listen\" 'b'\n"),
            ["global", "backend a", "listen b"]
        );
        assert_eq!(titles("backend a\n  server listen 1.1.1.1:80\n#backend c\n"), ["backend a"]);
        assert_eq!(
            titles("backend a\n  server x y\nfuture b\n  server x y\nbackend c"),
            ["backend a", "future b", "backend c"]
        );
        assert_eq!(titles(""), [""; 0]);
    }

    #[test]
    fn the_keywords_are_sorted() {
        assert!(PROXY_KEYWORDS.is_sorted());
    }

    #[test]
    fn defaults_are_found_by_name_or_as_the_last() {
        let text = "defaults\ndefaults one\ndefaults two from one\nbackend a\nbackend b from one\nbackend c from no\n";
        let parsed = Parsed::new(text);
        let parents: Vec<_> = parsed.sections().iter().map(|section| section.parent).collect();
        assert_eq!(parents, [None, None, None, Some(2), Some(3), Some(2), None]);
        assert!(parsed.sections()[6].unclear);
        let lineage: Vec<_> = parsed.lineage(4).into_iter().map(|section| parsed.title(section)).collect();
        assert_eq!(lineage, ["defaults one", "defaults two", "backend a"]);
    }

    #[test]
    fn what_a_conditional_block_touches_is_unclear() {
        let text = "backend a\n.if defined(X)\n.endif\nbackend b\nbackend c\n.if true\nbackend d\n.endif\nbackend e\n";
        let parsed = Parsed::new(text);
        let unclear: Vec<_> = parsed.sections().iter().map(|section| section.unclear).collect();
        assert_eq!(unclear, [false, true, false, true, true, false]);
    }

    #[test]
    fn a_backend_that_no_rule_names_is_known_unless_a_rule_may_lead_anywhere() {
        let backends = "backend a\n  server x 10.0.0.1:80\nbackend \"b\"\nbackend c\nbackend d\nlisten e\n  bind :1\n";
        let rules = "frontend f\n  use_backend 'a' if { path / }\n  default_backend c # d\n";
        let unled = |text: &str| Parsed::new(text).unled().to_vec();
        assert_eq!(unled(&format!("{rules}{backends}")), ["b", "d"]);
        assert_eq!(unled(backends), [""; 0], "the rules are in another file");
        assert_eq!(unled(&format!("{backends}  default_backend b\n{rules}")), ["d"]);
        assert_eq!(unled(&format!("defaults\n  default_backend d\n{rules}{backends}")), ["b"]);
        let listen = |line: &str| unled(&format!("{rules}{backends}listen f\n  {line}\nbackend a\n  bind :2\n"));
        // What is unknown here may be a keyword of a newer HAProxy, and what it is in takes connections all the same.
        assert_eq!(listen("surprise 1\n  bind :1"), ["b", "d"]);
        assert_eq!(listen("bind \"$IP:1\""), ["b", "d"]);
        assert_eq!(listen("balance first"), ["b", "d", "f"], "it takes no connections itself");
        for dynamic in ["%[req.hdr(host),lower]", "\"$WHERE\"", "be-%HM"] {
            assert_eq!(unled(&format!("{rules}  use_backend {dynamic}\n{backends}")), [""; 0], "{dynamic}");
        }
        let parsed = Parsed::new(format!("{rules}{backends}"));
        let at =
            parsed.sections().iter().position(|section| parsed.at(&section.head).starts_with("backend a")).unwrap();
        let edit = Edit { gone: Vec::new(), added: vec!["server y 10.0.0.2:80"] };
        assert_eq!(parsed.edited(&[(at, edit)].into()).unled(), parsed.unled());
    }

    #[test]
    fn a_backend_is_found_by_its_name() {
        let parsed = Parsed::new("frontend a\nbackend a\nlisten b\nbackend b\n");
        assert_eq!(parsed.backend("a"), Some(Place::At(2)));
        assert_eq!(parsed.backend("b"), Some(Place::Twice));
        assert_eq!(parsed.backend("c"), None);
    }
}
