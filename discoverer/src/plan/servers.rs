//! The servers that a text names, one by one. Pure.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;

use memchr::memmem;

use super::context::Context;
use super::keywords;
use super::server::socket_address;
use super::text::{Edit, Kind, Parsed, Place, lines};
use super::words::{Word, argument, first_word, second_word, third_word, words};
use super::{Change, ServerId};

/// Up to so many servers are searched for one by one; more are found faster in one walk over all lines.
const FEW: usize = 16;

/// A server of a text, as far as its state goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerSettings<'t> {
    /// The name of its `backend` or `listen` section.
    pub backend: Cow<'t, str>,
    /// Its name.
    pub name: Cow<'t, str>,
    /// Its weight, 0 to 256, where the text tells it and no agent does.
    pub weight: Option<u16>,
    /// Its port, where the text tells an IP address with a port.
    pub port: Option<u16>,
    /// Whether the text itself puts it in maintenance, where it tells that and no agent does.
    pub disabled: Option<bool>,
}

impl Change {
    /// The server that is changed.
    pub fn id(&self) -> &ServerId {
        match self {
            Self::Add { id, .. } | Self::Remove { id } | Self::Weight { id, .. } | Self::Address { id, .. } => id,
        }
    }
}

impl Parsed {
    /// Whether the text tells which servers a backend has: not where it has no such backend, or two, where a conditional
    /// block or `server-template` leaves it to HAProxy.
    pub fn tells_servers_of(&self, backend: &str) -> bool {
        matches!(self.backend(backend), Some(Place::At(index)) if self.tells_servers(index))
    }

    fn tells_servers(&self, index: usize) -> bool {
        let section = &self.sections()[index];
        let is_template = |(_, line): (usize, &str)| first_word(line) == "server-template";
        section.kind == Kind::Backend && !section.unclear && !self.settings(section).any(is_template)
    }

    /// The servers of the backends whose servers it tells; see [`Parsed::tells_servers_of`].
    pub fn servers(&self) -> impl Iterator<Item = ServerSettings<'_>> {
        let backends = self.sections().iter().enumerate().filter(|(index, _)| self.tells_servers(*index));
        backends.flat_map(|(index, section)| {
            let backend = words(self.at(&section.head)).ok().and_then(|words| words.into_iter().nth(1));
            let backend = backend.filter(|name| matches!(self.backend(name), Some(Place::At(_))));
            let context = Context::of_any(self, index).ok();
            let servers = lines(self.at(&section.body), section.body.start).filter(|(_, _, word)| word == "server");
            servers.filter_map(move |(place, line, _)| {
                // Before it stand `server`, the name and the address.
                let weight = match argument(line, "weight", 3) {
                    Ok(Some(own)) => own.parse().ok(),
                    Ok(None) => context.as_ref().and_then(|context| context.default_weight(place)),
                    Err(_) => None,
                };
                let port = third_word(line).and_then(|address| socket_address(&address)).map(|address| address.port());
                let settings =
                    ServerSettings { backend: backend.clone()?, name: second_word(line), weight, port, disabled: None };
                let Some(context) = context.as_ref() else { return Some(settings) };
                Some(match Said::of(context, place, line) {
                    Said { agent: true, .. } => ServerSettings { weight: None, ..settings },
                    Said { disabled, .. } => ServerSettings { disabled, ..settings },
                })
            })
        })
    }

    /// The text with these servers' lines in place of those it has: a server with no line is left out, one that is new
    /// comes last in its backend. Servers of backends that the text does not have are passed over.
    #[must_use]
    pub fn with_lines(&self, told: &BTreeMap<ServerId, Option<String>>) -> Self {
        let mut by_section: BTreeMap<usize, BTreeMap<&str, Option<&str>>> = BTreeMap::new();
        for (id, line) in told {
            if let Some(Place::At(index)) = self.backend(&id.backend) {
                by_section.entry(index).or_default().insert(&id.server, line.as_deref());
            }
        }
        let mut edits = BTreeMap::new();
        for (index, servers) in by_section {
            let mut gone = self.lines_of(index, |name| servers.contains_key(name), || servers.keys().copied());
            gone.sort_unstable_by_key(|line| line.start);
            edits.insert(index, Edit { gone, added: servers.into_values().flatten().collect() });
        }
        self.edited(&edits)
    }

    /// Whether a server may follow another one's check, by its own line.
    pub fn tracks(&self, id: &ServerId) -> bool {
        self.server_line(id).is_some_and(|line| !matches!(argument(line, "track", 3), Ok(None)))
    }

    /// The line of a server; none where it has none, or two.
    pub fn server_line(&self, id: &ServerId) -> Option<&str> {
        let Some(Place::At(index)) = self.backend(&id.backend) else { return None };
        self.line_in(index, &id.server).map(|(_, line)| line)
    }

    /// The line of a server of a section, with the place where it begins; none where it has none, or two.
    pub(super) fn line_in(&self, index: usize, server: &str) -> Option<(usize, &str)> {
        let lines = self.lines_of(index, |name| name == server, || std::iter::once(server));
        match lines.as_slice() {
            [line] => Some((line.start, self.at(line))),
            _ => None,
        }
    }

    /// Where the lines of servers with these names stand in a section.
    fn lines_of<'n, I>(&self, index: usize, is_one: impl Fn(&str) -> bool, names: impl Fn() -> I) -> Vec<Range<usize>>
    where
        I: Iterator<Item = &'n str>,
    {
        let section = &self.sections()[index];
        let (body, start) = (self.at(&section.body), section.body.start);
        let is_server =
            |line: &str, is_one: &dyn Fn(&str) -> bool| first_word(line) == "server" && is_one(&second_word(line));
        if section.quotes_servers || names().nth(FEW).is_some() {
            let all = lines(body, start).filter(|(_, line, _)| is_server(line, &is_one));
            return all.map(|(place, line, _)| place..place + line.len()).collect();
        }
        // Where no name is quoted, each stands in its line as it is.
        let found = names().flat_map(|name| {
            memmem::find_iter(body.as_bytes(), name).filter_map(move |place| {
                let line_start = body[..place].rfind('\n').map_or(0, |end| end + 1);
                let line_end = body[place..].find('\n').map_or(body.len(), |end| place + end + 1);
                let line = &body[line_start..line_end];
                is_server(line, &|other| other == name).then_some(start + line_start..start + line_end)
            })
        });
        let mut found: Vec<_> = found.collect();
        // A name may stand twice in its line.
        found.dedup();
        found
    }
}

/// What a server line, with the `default-server` lines before it, says of who changes the server's state.
struct Said {
    /// `disabled`, and nothing behind that says `enabled`; none where that cannot be told.
    disabled: Option<bool>,
    /// An agent sets its weight and its state.
    agent: bool,
}

impl Said {
    fn of(context: &Context<'_>, place: usize, line: &str) -> Self {
        let is_one = |word: &Word<'_>| word == "disabled" || word == "agent-check";
        let mentions = |word: &str| memmem::find(line.as_bytes(), word.as_bytes()).is_some();
        // Hardly ever, so that few lines have to be read whole.
        if !mentions("disabled") && !mentions("agent-check") && !context.defaults_at(place).0.any(is_one) {
            return Self { disabled: Some(false), agent: false };
        }
        let Ok(own) = words(line) else { return Self { disabled: None, agent: mentions("agent-check") } };
        let mut all = context.defaults_at(place).0.cloned().chain(own.into_iter().skip(3));
        let (mut disabled, mut agent) = (false, false);
        while let Some(word) = all.next() {
            match &*word {
                "disabled" => disabled = true,
                "enabled" => disabled = false,
                "agent-check" => agent = true,
                "no-agent-check" => agent = false,
                keyword => {
                    let count = keywords::of(keyword).map_or(0, |(count, _)| count);
                    all.by_ref().take(count).for_each(drop);
                }
            }
        }
        Self { disabled: Some(disabled), agent }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TEXT: &str = "backend a\n  balance roundrobin\n  server s1 10.0.0.1:80 weight 5\n  server s2 10.0.0.2:80\n\n\
        backend b\n  server s1 10.0.1.1:80 check weight 256\nfrontend f\n  bind :80\n";

    fn id(backend: &str, server: &str) -> ServerId {
        ServerId { backend: backend.to_owned(), server: server.to_owned() }
    }

    fn servers(text: &Parsed) -> Vec<(String, u16)> {
        text.servers().map(|server| (format!("{}/{}", server.backend, server.name), server.weight.unwrap())).collect()
    }

    fn expected(servers: &[(&str, u16)]) -> Vec<(String, u16)> {
        servers.iter().map(|(name, weight)| ((*name).to_owned(), *weight)).collect()
    }

    #[test]
    fn servers_are_told_with_their_weights() {
        assert_eq!(servers(&Parsed::new(TEXT)), expected(&[("a/s1", 5), ("a/s2", 1), ("b/s1", 256)]));
    }

    #[test]
    fn names_and_weights_are_told_as_haproxy_reads_them() {
        let text = "defaults\n default-server weight 3\nbackend 'a'\n server \"s1\" 10.0.0.1:80 # weight 5\n server s2 \"$ADDRESS\" weight 4\n";
        let text = Parsed::new(text);
        let servers: Vec<_> = text.servers().map(|server| (server.backend, server.name, server.weight)).collect();
        let expected = [("s1", Some(3)), ("s2", None)].map(|(name, weight)| ("a".into(), name.into(), weight));
        assert_eq!(servers, expected);
        assert_eq!(text.server_line(&id("a", "s1")), Some(" server \"s1\" 10.0.0.1:80 # weight 5\n"));
        assert_eq!(text.server_line(&id("a", "s3")), None);
    }

    #[test]
    fn a_server_is_found_though_its_name_is_part_of_another() {
        let text = Parsed::new("backend a\n  server s11 s1:80\n  server xs1 s1\n\n  server s1 s1:80\n");
        assert_eq!(text.server_line(&id("a", "s1")), Some("  server s1 s1:80\n"));
    }

    proptest! {
        #[test]
        fn an_edited_text_is_what_it_would_be_read_as(
            text in proptest::collection::vec(proptest::sample::select(LINES), 0..30), ended: bool,
            told in proptest::collection::btree_map(
                (proptest::sample::select(&["a", "b", "c"][..]), 0..30u8), proptest::option::of(0..9u8), 0..30,
            ),
        ) {
            let text = text.join("\n") + if ended { "\n" } else { "" };
            let line = |name: u8, port| format!("server s{name} 10.0.0.1:{port}");
            let told: BTreeMap<_, _> = told
                .into_iter()
                .map(|((backend, name), port)| (id(backend, &format!("s{name}")), port.map(|port| line(name, port))))
                .collect();
            let before = Parsed::new(text);
            let after = before.with_lines(&told);
            prop_assert_eq!(&after, &Parsed::new(after.text()));
            for (id, line) in told.iter().filter(|(id, _)| matches!(before.backend(&id.backend), Some(Place::At(_)))) {
                prop_assert_eq!(after.server_line(id).map(str::trim), line.as_deref());
            }
        }
    }

    const LINES: &[&str] = &[
        "backend a",
        "listen b",
        "backend c",
        "frontend f",
        "defaults",
        "  mode http",
        "",
        "# server s1",
        ".if true",
        ".endif",
        "  default-server check",
        "  server s1 10.0.0.1:80 weight 5",
        "\tserver s2 10.0.0.2:80",
        "  \"server\" s3 10.0.0.3:80",
        "  server 's4' 10.0.0.4:80",
        "  server s5 s1:80",
        "  server s12 s1:80",
        "  server s1 10.0.0.9:80",
    ];

    #[test]
    fn lines_are_put_in_and_taken_out() {
        let told = BTreeMap::from([
            (id("a", "s1"), None),
            (id("b", "s1"), Some("server s1 10.0.1.9:80 weight 7".to_owned())),
            (id("b", "s2"), Some("server s2 10.0.1.2:80".to_owned())),
            (id("gone", "s1"), Some("server s1 10.0.1.2:80".to_owned())),
        ]);
        let text = Parsed::new(TEXT).with_lines(&told);
        assert_eq!(servers(&text), expected(&[("a/s2", 1), ("b/s1", 7), ("b/s2", 1)]));
        assert!(text.text().ends_with("frontend f\n  bind :80\n"), "{}", text.text());
        assert_eq!(Parsed::new(TEXT).with_lines(&BTreeMap::new()).text(), TEXT);
        let neighbours = BTreeMap::from([(id("a", "s1"), None), (id("a", "s2"), None)]);
        let left = "backend a\n  balance roundrobin\n\nbackend b\n  server s1 10.0.1.1:80 check weight 256\nfrontend f\n  bind :80\n";
        assert_eq!(Parsed::new(TEXT).with_lines(&neighbours).text(), left);
        let unended = Parsed::new("backend a\nserver s1 10.0.0.1:80\nserver s2 10.0.0.2:80");
        assert_eq!(unended.with_lines(&neighbours).text(), "backend a\n");
    }
}
