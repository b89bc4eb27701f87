//! Random configurations for the tests of `plan`: what they hold as a structure, and as texts in any layout.
//!
//! What a text means is known here from the structure, without the reader that is under test.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::SocketAddr;

use proptest::prelude::*;

/// Backends that stay, and the states that their servers go through.
#[derive(Debug, Clone)]
pub(crate) struct Story {
    pub(crate) default_server: Vec<&'static str>,
    pub(crate) backends: Vec<Backend>,
    /// For each state and backend: the servers there.
    pub(crate) states: Vec<Vec<Vec<Server>>>,
}

#[derive(Debug, Clone)]
pub(crate) struct Backend {
    pub(crate) name: String,
    pub(crate) keyword: &'static str,
    pub(crate) balance: &'static str,
    pub(crate) default_servers: Vec<&'static str>,
}

#[derive(Debug, Clone)]
pub(crate) struct Server {
    pub(crate) name: String,
    pub(crate) address: SocketAddr,
    pub(crate) weight: Option<u16>,
    /// The rest of its line.
    pub(crate) words: &'static str,
}

/// What HAProxy knows of one server: its address, its weight, and its other settings by keyword.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Known {
    pub(crate) address: SocketAddr,
    pub(crate) weight: u16,
    pub(crate) settings: BTreeMap<String, Option<String>>,
}

/// All servers, by backend and name.
pub(crate) type Model = BTreeMap<(String, String), Known>;

const SERVER_WORDS: &[&str] = &[
    "",
    "check inter 60s",
    "check fall 2 rise 1 inter 60s",
    "maxconn 10",
    "ssl verify none",
    "ssl verify none sni req.hdr(host) alpn h2,http/1.1",
    "slowstart 5s",
    "send-proxy",
    "proto h2",
    "init-addr none",
    "check inter 60s port 9 observe layer4 on-error mark-down error-limit 3",
];
const DEFAULT_SERVERS: &[&str] =
    &["inter 30s", "inter 31s fall 4", "weight 7", "maxconn 100", "init-addr last,none", "slowstart 9s weight 9"];
const BALANCES: &[&str] = &[
    "",
    "balance roundrobin",
    "balance leastconn",
    "balance random(2)",
    "balance first",
    "balance source\n hash-type consistent",
];

/// A story with so many states.
pub(crate) fn stories(states: usize) -> impl Strategy<Value = Story> {
    let one_of = |words: &'static [&'static str]| proptest::sample::select(words);
    let few = |words: &'static [&'static str]| prop::collection::vec(proptest::sample::select(words), 0..3);
    let backend = (prop_oneof![Just("backend"), Just("listen")], one_of(BALANCES), few(DEFAULT_SERVERS));
    let pool = prop::collection::vec((backend, prop::collection::vec(one_of(SERVER_WORDS), 12)), 1..4);
    (few(DEFAULT_SERVERS), pool).prop_flat_map(move |(default_server, pool)| {
        let server = |words: &'static str, slot: usize| {
            let ip = prop_oneof![(1u8..4).prop_map(|n| format!("127.0.0.{n}")), Just("[::1]".to_owned())];
            let weight = prop_oneof![Just(None), (0u16..=256).prop_map(Some), Just(Some(1))];
            (any::<bool>(), ip, 1u16..9, weight).prop_map(move |(present, ip, port, weight)| {
                let address = format!("{ip}:{port}").parse().unwrap();
                present.then(|| Server { name: format!("s-{slot}_1.2:3"), address, weight, words })
            })
        };
        let servers: Vec<_> = pool
            .iter()
            .map(|(_, words)| {
                let slots: Vec<_> = words.iter().enumerate().map(|(slot, words)| server(words, slot)).collect();
                slots.prop_map(|slots| slots.into_iter().flatten().collect::<Vec<_>>()).prop_shuffle()
            })
            .collect();
        let backends: Vec<_> = pool
            .into_iter()
            .enumerate()
            .map(|(index, ((keyword, balance, default_servers), _))| Backend {
                name: format!("b{index}.x"),
                keyword,
                balance,
                default_servers,
            })
            .collect();
        prop::collection::vec(servers, states).prop_map(move |states| Story {
            default_server: default_server.clone(),
            backends: backends.clone(),
            states,
        })
    })
}

impl Story {
    /// A state as a text. The layout says how it is written, never what it means.
    pub(crate) fn text(&self, state: usize, layout: u64) -> String {
        let mut writer = Writer { text: String::new(), layout };
        writer.line("", "defaults");
        for line in ["mode http", "timeout connect 1s", "timeout client 1s", "timeout server 1s"] {
            writer.line("  ", line);
        }
        for words in &self.default_server {
            writer.line("  ", &format!("default-server {words}"));
        }
        for (backend, servers) in self.backends.iter().zip(&self.states[state]) {
            writer.line("", &format!("{} {}", backend.keyword, backend.name));
            for line in backend.balance.lines().filter(|line| !line.is_empty()) {
                writer.line("  ", line);
            }
            for words in &backend.default_servers {
                writer.line("  ", &format!("default-server {words}"));
            }
            for server in servers {
                writer.line("  ", &server.line());
            }
        }
        writer.text
    }

    /// What HAProxy knows once it runs a state.
    pub(crate) fn model(&self, state: usize) -> Model {
        let mut model = Model::new();
        for (backend, servers) in self.backends.iter().zip(&self.states[state]) {
            let defaults = [self.default_server.join(" "), backend.default_servers.join(" ")].join(" ");
            for server in servers {
                let weight = server.weight.map(|weight| format!("weight {weight}")).unwrap_or_default();
                let words = format!("{} {defaults} {} {weight}", server.address, server.words);
                model.insert((backend.name.clone(), server.name.clone()), known(&words));
            }
        }
        model
    }
}

impl Server {
    pub(crate) fn line(&self) -> String {
        let weight = self.weight.map(|weight| format!(" weight {weight}")).unwrap_or_default();
        format!("server {} {} {}{weight}", self.name, self.address, self.words)
    }
}

/// Reads the words behind a server's name as HAProxy does: the last of the same keyword holds.
pub(crate) fn known(arguments: &str) -> Known {
    const FLAGS: &[&str] = &["check", "ssl", "send-proxy"];
    let mut words = arguments.split_whitespace();
    let address = words.next().unwrap().parse().unwrap();
    let mut settings = BTreeMap::new();
    while let Some(keyword) = words.next() {
        let value = (!FLAGS.contains(&keyword)).then(|| words.next().unwrap().to_owned());
        settings.insert(keyword.to_owned(), value);
    }
    let weight = settings.remove("weight").flatten().map_or(1, |weight| weight.parse().unwrap());
    // It says how a name is resolved, and these servers have addresses.
    settings.remove("init-addr");
    Known { address, weight, settings }
}

struct Writer {
    text: String,
    layout: u64,
}

impl Writer {
    /// A number below another, from the layout.
    fn pick(&mut self, below: u64) -> u64 {
        // A linear congruential generator (Knuth, MMIX).
        self.layout = self.layout.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.layout >> 33) % below
    }

    fn one_of(&mut self, texts: &[&str]) {
        let index = self.pick(texts.len() as u64) as usize;
        self.text.push_str(texts[index]);
    }

    fn line(&mut self, indent: &str, line: &str) {
        if self.pick(8) == 0 {
            self.one_of(&["\n", "# server x 1.2.3.4:5\n", "  \t# it's a comment\n", "\r\n"]);
        }
        self.one_of(&[indent, indent, "\t "]);
        for word in line.split_whitespace() {
            let style = self.pick(24);
            let first = word.as_bytes()[0];
            let text = &mut self.text;
            match style {
                0 => write!(text, "\"{word}\""),
                1 => write!(text, "'{word}'"),
                2 => write!(text, "\\x{first:02x}{}", &word[1..]),
                3 => write!(text, "{}\"\"{}", &word[..1], &word[1..]),
                _ => write!(text, "{word}"),
            }
            .unwrap();
            self.one_of(&[" ", " ", "\t  "]);
        }
        self.one_of(&["\n", "\n", "\n", "# a comment with \"quotes\n", "\r\n"]);
    }
}
