//! What HAProxy says of its servers to those who look: `show stat` of the worker that takes the traffic.

use std::collections::HashMap;
use std::net::SocketAddr;

use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;

use super::loads::{QUESTION_LIMIT, Records, SHOW_SERVERS};
use super::runtime::{Runtime, RuntimeError, unknown};

/// How many characters of a check's words are kept.
const WORDS_LIMIT: usize = 200;
/// HAProxy tells since when a state lasts in whole seconds: two such moments that lie closer are one.
const SAME_MOMENT: SignedDuration = SignedDuration::from_secs(2);

/// One server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerStat {
    /// Its state in HAProxy's words: `UP`, `DOWN 1/2`, `MAINT`, `no check`.
    pub state: String,
    /// How the last check ended, such as `L4OK` or `L7STS`; empty where it is not checked.
    pub check: String,
    /// What that means, and what the server said: hostile text.
    pub words: String,
    /// Its weight now.
    pub weight: u32,
    /// What runs on it.
    pub sessions: u64,
    /// What waits for it.
    pub queued: u64,
    /// Since when its state is that; none where it never was another.
    pub since: Option<Timestamp>,
}

impl ServerStat {
    /// Whether HAProxy sends nothing there since its check fails.
    pub fn is_down(&self) -> bool {
        self.state.starts_with("DOWN") || self.state.starts_with("NOLB")
    }
}

/// All servers, by backend and name.
#[derive(Debug, Clone, Default)]
pub struct Stats {
    servers: HashMap<String, HashMap<String, Server>>,
    /// The servers at each address: templates of one's own may call them otherwise.
    places: HashMap<SocketAddr, Vec<(String, String)>>,
}

#[derive(Debug, Clone)]
struct Server {
    stat: ServerStat,
    /// The number of the asking that first found it so.
    changed: u64,
}

impl Stats {
    /// Asks HAProxy's stats socket. `number` rises with each asking; what did not change since `before` keeps its own.
    ///
    /// # Errors
    /// HAProxy does not answer, or in a way that is not known.
    pub async fn ask(runtime: &Runtime, before: &Self, number: u64) -> Result<Self, RuntimeError> {
        let reply = super::socket::ask(runtime.path(), SHOW_SERVERS, QUESTION_LIMIT).await?;
        Self::parse(&reply, Timestamp::now(), before, number).ok_or_else(|| unknown(SHOW_SERVERS, &reply))
    }

    /// Reads the reply to `show stat` for servers. None where it is not one. A line that is not understood is left out.
    pub fn parse(reply: &str, now: Timestamp, before: &Self, number: u64) -> Option<Self> {
        let mut records = Records::of(reply)?;
        let head = records.next()?;
        let column = |name: &str| head.iter().position(|field| *field == name);
        let (backend, name, state) = (column("pxname")?, column("svname")?, column("status")?);
        let (weight, sessions, queued) = (column("weight")?, column("scur")?, column("qcur")?);
        let (since, check, address) = (column("lastchg")?, column("check_status")?, column("addr"));
        let (meaning, said) = (column("check_desc"), column("last_chk"));
        let mut stats = Self::default();
        for record in records {
            let field = |at: usize| record.get(at).copied().filter(|field| !field.is_empty());
            let number_of = |at: usize| field(at).and_then(|field| field.parse::<u64>().ok());
            let (Some(backend), Some(name), Some(state)) = (field(backend), field(name), field(state)) else {
                continue;
            };
            let words = |at: Option<usize>| at.and_then(field).map(unquoted).unwrap_or_default();
            let (meaning, said) = (words(meaning), words(said));
            let words = if said.is_empty() || said == meaning { meaning } else { format!("{meaning}: {said}") };
            let since = number_of(since).and_then(|seconds| i64::try_from(seconds).ok());
            let mut stat = ServerStat {
                state: state.to_owned(),
                // A star says that a check is under way.
                check: field(check).unwrap_or_default().trim_start_matches("* ").to_owned(),
                words: words.chars().take(WORDS_LIMIT).collect(),
                weight: number_of(weight).and_then(|weight| u32::try_from(weight).ok()).unwrap_or_default(),
                sessions: number_of(sessions).unwrap_or_default(),
                queued: number_of(queued).unwrap_or_default(),
                since: since.and_then(|seconds| now.checked_sub(SignedDuration::from_secs(seconds)).ok()),
            };
            let mut changed = number;
            if let Some(known) = before.servers.get(backend).and_then(|servers| servers.get(name)) {
                if let (Some(then), Some(since)) = (known.stat.since, stat.since)
                    && then.duration_since(since).abs() <= SAME_MOMENT
                {
                    stat.since = Some(then);
                }
                if known.stat == stat {
                    changed = known.changed;
                }
            }
            if let Some(address) = address.and_then(field).and_then(|address| address.parse().ok()) {
                stats.places.entry(address).or_default().push((backend.to_owned(), name.to_owned()));
            }
            let servers = stats.servers.entry(backend.to_owned()).or_default();
            servers.insert(name.to_owned(), Server { stat, changed });
        }
        Some(stats)
    }

    /// The server of an instance: by its names, else the only one at its address.
    pub fn find(&self, backend: &str, server: &str, address: SocketAddr) -> Option<&ServerStat> {
        self.server(backend, server, address).map(|server| &server.stat)
    }

    /// The same, where it has changed since the asking of that number.
    pub fn find_newer(&self, backend: &str, server: &str, address: SocketAddr, than: u64) -> Option<&ServerStat> {
        self.server(backend, server, address).filter(|server| server.changed > than).map(|server| &server.stat)
    }

    fn server(&self, backend: &str, server: &str, address: SocketAddr) -> Option<&Server> {
        let named = |backend: &str, server: &str| self.servers.get(backend)?.get(server);
        named(backend, server).or_else(|| match self.places.get(&address)?.as_slice() {
            [(backend, server)] => named(backend, server),
            _ => None,
        })
    }
}

/// A field of a CSV record without its quotes.
fn unquoted(field: &str) -> String {
    match field.strip_prefix('"').and_then(|field| field.strip_suffix('"')) {
        Some(inner) => inner.replace("\"\"", "\""),
        None => field.to_owned(),
    }
}

/// How long to wait after an asking that took so long: HAProxy is busy with us a twentieth of its time at most.
pub fn pause_after(asked: Instant, now: Instant) -> std::time::Duration {
    (19 * now.duration_since(asked)).max(std::time::Duration::from_secs(2))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// HAProxy 2.6.12, without the columns in between.
    const STAT: &str = "# pxname,svname,qcur,scur,status,weight,lastchg,check_status,last_chk,check_desc,addr,\n\
        web,10.0.0.1_80,2,3,UP,100,60,* L7OK,\"OK, \"\"well\"\"\",Layer7 check passed,10.0.0.1:80,\n\
        web,10.0.0.2_80,0,0,DOWN 1/2,100,5,L4CON,Connection refused,Layer4 connection problem,10.0.0.2:80,\n\
        mine,srv1,0,0,no check,1,5,,,,[::1]:81,\n\
        mine,srv2,0,0,MAINT,1,5,,,,10.0.0.9:80,\n\
        other,srv2,0,0,MAINT,1,5,,,,10.0.0.9:80,\n\
        ,,,\n\n";

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn read(text: &str, now: &str, before: &Stats, number: u64) -> Stats {
        Stats::parse(text, at(now), before, number).unwrap()
    }

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn the_words_of_haproxy_are_read_as_it_says_them() {
        let stats = read(STAT, "2026-01-01T00:01:00Z", &Stats::default(), 1);
        let up = stats.find("web", "10.0.0.1_80", address("10.0.0.1:80")).unwrap();
        let expected = ServerStat {
            state: "UP".to_owned(),
            check: "L7OK".to_owned(),
            words: "Layer7 check passed: OK, \"well\"".to_owned(),
            weight: 100,
            sessions: 3,
            queued: 2,
            since: Some(at("2026-01-01T00:00:00Z")),
        };
        assert_eq!(*up, expected);
        let down = stats.find("web", "10.0.0.2_80", address("10.0.0.2:80")).unwrap();
        assert_eq!((down.is_down(), up.is_down()), (true, false));
        assert_eq!(down.words, "Layer4 connection problem: Connection refused");
        assert!(Stats::parse("Unknown command", at("2026-01-01T00:01:00Z"), &Stats::default(), 1).is_none());
    }

    #[test]
    fn a_server_of_another_name_is_found_by_its_address_where_it_is_the_only_one() {
        let stats = read(STAT, "2026-01-01T00:01:00Z", &Stats::default(), 1);
        assert_eq!(stats.find("db", "--1_81", address("[::1]:81")).unwrap().state, "no check");
        assert_eq!(stats.find("db", "10.0.0.9_80", address("10.0.0.9:80")), None);
    }

    #[test]
    fn only_what_has_changed_is_newer() {
        let first = read(STAT, "2026-01-01T00:01:00Z", &Stats::default(), 1);
        // A second later, by HAProxy's own count of whole seconds: no change.
        let same = read(STAT, "2026-01-01T00:01:01Z", &first, 2);
        let (one, two) = (("web", "10.0.0.1_80"), ("web", "10.0.0.2_80"));
        let newer = |stats: &Stats, (backend, name): (&str, &str), than| {
            stats.find_newer(backend, name, address("10.1.1.1:1"), than).is_some()
        };
        assert!(newer(&first, one, 0) && !newer(&same, one, 1) && newer(&same, one, 0));
        let busy = read(&STAT.replace(",2,3,UP", ",2,4,UP"), "2026-01-01T00:01:02Z", &same, 3);
        assert!(newer(&busy, one, 2) && !newer(&busy, two, 2));
    }
}
