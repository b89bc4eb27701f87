//! Replies of HAProxy for the fuzzer: see [`crate::fuzz`].

use std::path::Path;
use std::time::Duration;

use super::check::{alerts, findings, parse_version};
use super::loads;
use super::reload::{parse_processes, parse_workers};
use super::runtime::{Command, Worker, parse_worker, split_replies};
use super::{ServerLoad, is_deleted};

/// Reads `show info`, and compares the worker with the one that it says it is.
pub(crate) fn show_info(reply: &str) -> Option<Worker> {
    let worker = parse_worker(reply)?;
    assert!(!worker.is_other_than(&worker, Duration::ZERO), "{worker:?} is another one than itself");
    Some(worker)
}

/// Reads `show proc`: the pids of the workers, and whether each is old.
pub(crate) fn show_proc(reply: &str) -> Option<Vec<(u32, bool)>> {
    let processes = parse_processes(reply)?;
    assert!(!processes.is_started_after(&processes, Duration::ZERO), "{processes:?} was started after itself");
    Some(parse_workers(reply)?.iter().map(|worker| (worker.pid, worker.is_old)).collect())
}

/// Reads `show stat` as of those who wait for servers to be done.
pub(crate) fn show_stat(reply: &str) -> Option<Vec<ServerLoad>> {
    loads::parse_servers(reply, |_, _| true)
}

/// Reads the replies of a connection in prompt mode, as those to each kind of command.
pub(crate) fn prompt(text: &str) -> Vec<String> {
    let replies = split_replies(text);
    for reply in &replies {
        let is_good = Command::add("b/s", "127.0.0.1:80").is_good(reply);
        assert_eq!(is_good, reply == "New server registered.");
        assert!(!is_deleted(reply) || !is_good);
        for command in [Command::maint("b/s"), Command::weight("b/s", 1), Command::shutdown_sessions("b/s")] {
            assert!(!command.is_good(reply) || reply.is_empty() || reply == "No such server.");
        }
    }
    replies
}

/// Reads what `haproxy -c` says of a file: its words, and the lines that it names.
pub(crate) fn check(said: &str, file: &Path) -> (String, Vec<(usize, String)>) {
    (alerts(said), findings(said, file))
}

/// Reads what `haproxy -v` says.
pub(crate) fn version(said: &str) -> Option<String> {
    parse_version(said)
}
