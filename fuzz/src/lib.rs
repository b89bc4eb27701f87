//! What is read from outside, under any input: one function for each kind of it, which asserts what must hold of whatever comes
//! out, not only that something does.
//!
//! `fuzz/run` lets libFuzzer look for inputs (`main.rs`); what it has found is kept in `corpus/TARGET/`, and `tests/corpus.rs` runs
//! all of that each time. `etcd`, `docker`, `haproxy`, `site` and `operator` are the rooms that inputs come from. Nothing here opens a
//! connection.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod docker;
mod etcd;
mod haproxy;
mod operator;
mod plan;
#[allow(clippy::unwrap_used, dead_code, reason = "it is a part of the discoverer's tests")]
#[path = "../../discoverer/tests/plan_texts/mod.rs"]
mod plan_texts;
mod site;

use std::borrow::Cow;

/// The most that a message may say, in bytes: it goes into a line of a log, and onto a page.
const WORDS_LIMIT: usize = 4096;

/// One kind of input.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Its name, which is that of its directory in `corpus/`.
    pub name: &'static str,
    run: fn(&[u8]),
}

impl Target {
    /// Runs one input.
    ///
    /// # Panics
    /// Something does not hold that must.
    pub fn run(&self, input: &[u8]) {
        (self.run)(input);
    }
}

/// All of them, sorted.
pub const TARGETS: &[Target] = &[
    Target { name: "acknowledgement", run: etcd::acknowledgement },
    Target { name: "admin-query", run: operator::admin_query },
    Target { name: "config-file", run: operator::config_file },
    Target { name: "docker-event", run: docker::event },
    Target { name: "etcd-v2", run: etcd::v2 },
    Target { name: "etcd-v3", run: etcd::v3 },
    Target { name: "haproxy-check", run: haproxy::check },
    Target { name: "haproxy-info", run: haproxy::info },
    Target { name: "haproxy-proc", run: haproxy::proc },
    Target { name: "haproxy-prompt", run: haproxy::prompt },
    Target { name: "haproxy-stat", run: haproxy::stat },
    Target { name: "haproxy-state", run: haproxy::state },
    Target { name: "inspect", run: docker::inspect },
    Target { name: "key", run: etcd::key },
    Target { name: "labels", run: docker::labels },
    Target { name: "own", run: docker::own },
    Target { name: "plan", run: plan::texts },
    Target { name: "plan-model", run: plan::model },
    Target { name: "record", run: etcd::record },
    Target { name: "rule", run: docker::rule },
    Target { name: "setting", run: etcd::setting },
    Target { name: "site", run: site::site },
    Target { name: "snapshot", run: site::snapshot },
    Target { name: "stream", run: etcd::stream },
];

/// The target of a name.
pub fn target(name: &str) -> Option<Target> {
    TARGETS.iter().copied().find(|target| target.name == name)
}

/// An input as text; what is no UTF-8 in it is replaced.
fn text(input: &[u8]) -> Cow<'_, str> {
    String::from_utf8_lossy(input)
}

/// The two parts of an input, before and behind its first byte 0; all of it is the first where there is none.
fn two(input: &[u8]) -> (Cow<'_, str>, Cow<'_, str>) {
    let end = input.iter().position(|byte| *byte == 0);
    let (first, second) = end.map_or((input, &[][..]), |end| (&input[..end], &input[end + 1..]));
    (text(first), text(second))
}

/// What is told has a bound. Who shows it writes out what a terminal would obey.
fn is_short(words: &str) {
    assert!(words.len() <= WORDS_LIMIT, "a message of {} bytes: {:.200}...", words.len(), words);
}

/// What is told of what anybody may have written fits in one line, too.
fn is_fit_to_tell(words: &str) {
    is_short(words);
    assert!(!words.chars().any(char::is_control), "a control character in {words:?}");
}

fn prefix() -> registry::Prefix {
    "service".parse().expect("it is a prefix")
}
