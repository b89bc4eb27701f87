//! What comes from HAProxy: the replies of its sockets, and what its program says.

use std::net::SocketAddr;
use std::path::Path;

use discoverer::fuzz;
use discoverer::haproxy::{Stats, parse_healths};
use discoverer::plan::Parsed;
use jiff::Timestamp;

use crate::{is_fit_to_tell, text, two};

/// `show info`.
pub(crate) fn info(input: &[u8]) {
    if let Some(version) = fuzz::show_info(&text(input)).and_then(|worker| worker.version()) {
        is_version(&version);
    }
}

fn is_version(text: &str) {
    assert!(text.starts_with(|c: char| c.is_ascii_digit()), "{text:?}");
    assert!(text.chars().all(|c| c.is_ascii_digit() || c == '.'), "{text:?}");
}

/// `show proc` of the master.
pub(crate) fn proc(input: &[u8]) {
    let workers = fuzz::show_proc(&text(input)).unwrap_or_default();
    assert!(workers.is_sorted_by_key(|(_, is_old)| *is_old), "{workers:?}");
}

/// `show stat` for servers.
pub(crate) fn stat(input: &[u8]) {
    let reply = text(input);
    let loads = fuzz::show_stat(&reply);
    let now: Timestamp = "2026-01-02T03:04:05Z".parse().expect("it is a time");
    let Some(first) = Stats::parse(&reply, now, &Stats::default(), 1) else { return };
    let again = Stats::parse(&reply, now, &first, 2).expect("it was read before");
    let nowhere: SocketAddr = "192.0.2.1:1".parse().expect("it is an address");
    for load in loads.into_iter().flatten() {
        let place = load.address.unwrap_or(nowhere);
        if let Some(stat) = first.find("", &load.name, place) {
            assert!(stat.words.chars().count() <= 200);
            assert_eq!(again.find("", &load.name, place), Some(stat));
        }
    }
}

/// A configuration, and behind a byte 0 `show servers state`.
pub(crate) fn state(input: &[u8]) {
    let (text, state) = two(input);
    let parsed = Parsed::new(text.as_ref());
    let commands = fuzz::repairs(&state, &parsed);
    for command in &commands {
        assert!(!command.text().contains(['\n', ';']), "{command:?}");
    }
    let is_same = fuzz::difference(&state, &parsed).inspect(|difference| assert!(!difference.is_empty())).is_none();
    let sets_weight = commands.iter().any(|command| command.text().contains(" weight "));
    let twice = {
        let mut names: Vec<_> = parsed.servers().map(|server| (server.backend, server.name)).collect();
        let count = names.len();
        names.sort();
        names.dedup();
        names.len() < count
    };
    assert!(
        !is_same || !sets_weight || twice || parsed.servers().any(|server| !parsed.tells_servers_of(&server.backend))
    );
    let kept = fuzz::state_to_keep(&state, &parsed);
    // Of carriage returns, which HAProxy sends none of, the last one of a line goes each time.
    assert!(state.contains('\r') || fuzz::state_to_keep(&kept, &parsed) == kept, "{kept:?}");
    assert!(parse_healths(&kept).count() <= state.lines().count());
}

/// What a connection in prompt mode gives.
pub(crate) fn prompt(input: &[u8]) {
    let text = text(input);
    for reply in fuzz::prompt(&text) {
        assert!(text.contains(&reply));
    }
}

/// What `haproxy -c` and `haproxy -v` say.
pub(crate) fn check(input: &[u8]) {
    let said = text(input);
    let (words, findings) = fuzz::check(&said, Path::new("/etc/haproxy/haproxy.cfg"));
    is_fit_to_tell(&words.chars().take(1000).collect::<String>());
    assert!(words.chars().count() <= 2000);
    assert!(findings.iter().all(|(_, words)| words.chars().count() <= 2000 && !words.contains('\n')));
    if let Some(version) = fuzz::version(&said) {
        is_version(&version);
    }
}
