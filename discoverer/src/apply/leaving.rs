//! Servers that are out of the text and finish their connections. No I/O; the caller tells the time.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;
use tracing::warn;

use crate::haproxy::{Command, is_deleted};
use crate::plan::ServerId;

/// The first pause before a server that still has connections is tried again; it doubles up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// The longest pause before a server that still has connections is tried again.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// How long a server may stay after its connections were ended, before that is said.
const OVERDUE: Duration = Duration::from_secs(5);

/// Each is in maintenance, and goes when its last connection has gone, or when its time is over.
#[derive(Debug, Default)]
pub(super) struct Leaving(BTreeMap<ServerId, Server>);

#[derive(Debug, Clone)]
struct Server {
    /// The words it was added with, or would be; none where they are not known.
    arguments: Option<String>,
    deadline: Instant,
    next: Instant,
    pause: Duration,
    /// It was said that it does not go.
    told: bool,
}

impl Leaving {
    /// Takes in a server that HAProxy did not delete at once. It may finish its connections until the deadline.
    pub(super) fn add(&mut self, id: ServerId, arguments: Option<String>, now: Instant, deadline: Instant) {
        let (next, pause) = (now + FIRST_PAUSE, FIRST_PAUSE * 2);
        self.0.insert(id, Server { arguments, deadline, next, pause, told: false });
    }

    /// Forgets a server that is wanted again. Gives the words it was added with, where they are known.
    pub(super) fn take(&mut self, id: &ServerId) -> Option<Option<String>> {
        self.0.remove(id).map(|server| server.arguments)
    }

    /// Whether a server is one of them.
    pub(super) fn contains(&self, id: &ServerId) -> bool {
        self.0.contains_key(id)
    }

    /// Forgets all of them: HAProxy has been reloaded.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// When the next one is to be tried.
    pub(super) fn next(&self) -> Option<Instant> {
        self.0.values().map(|server| server.next).min()
    }

    /// What deletes those whose turn it is. Maintenance is said again: somebody may have ended it.
    pub(super) fn script(&self, now: Instant) -> Vec<Command> {
        let due = self.0.iter().filter(|(_, server)| server.next <= now);
        let commands = due.flat_map(|(id, server)| {
            let name = id.to_string();
            let end = (server.deadline <= now).then(|| Command::shutdown_sessions(&name));
            [Some(Command::maint(&name)), end, Some(Command::delete(&name))]
        });
        commands.flatten().collect()
    }

    /// Takes in what came of a script: those that were deleted are forgotten, the others tried again later. Gives how many
    /// were deleted.
    pub(super) fn tried(&mut self, script: &[Command], replies: &[String], now: Instant) -> usize {
        let left = not_deleted(script, replies);
        let before = self.0.len();
        let asked: BTreeSet<&str> = script.iter().filter_map(Command::server_to_delete).collect();
        self.0.retain(|id, server| {
            let name = id.to_string();
            if !asked.contains(name.as_str()) {
                return true;
            }
            let Some(&reply) = left.get(name.as_str()) else { return false };
            server.next = now + server.pause;
            server.pause = (server.pause * 2).min(LONGEST_PAUSE);
            if server.deadline + OVERDUE <= now && !server.told {
                server.told = true;
                warn!(
                    server = name,
                    reply, "server does not go, though its connections were ended; it gets no traffic"
                );
            }
            true
        });
        before - self.0.len()
    }
}

/// The servers that a script was to delete and that are still there, or may be, each with what HAProxy answered; the empty
/// text where a reply is missing.
pub(super) fn not_deleted<'c>(script: &'c [Command], replies: &'c [String]) -> BTreeMap<&'c str, &'c str> {
    let reply = |at: usize| replies.get(at).map_or("", String::as_str);
    let asked = script.iter().enumerate().filter_map(|(at, command)| Some((command.server_to_delete()?, reply(at))));
    asked.filter(|(_, reply)| !is_deleted(reply)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAYS: &str = "Server still has connections attached to it, cannot remove it.";

    fn id(server: &str) -> ServerId {
        ServerId { backend: "b".to_owned(), server: server.to_owned() }
    }

    fn texts(script: &[Command]) -> Vec<&str> {
        script.iter().map(Command::text).collect()
    }

    #[test]
    fn a_server_is_tried_again_until_it_is_deleted() {
        let now = Instant::now();
        let mut leaving = Leaving::default();
        leaving.add(id("a"), None, now, now + Duration::from_secs(10));
        leaving.add(id("c"), Some("x".to_owned()), now, now + Duration::from_secs(10));
        assert!(leaving.script(now).is_empty());
        let later = leaving.next().unwrap();
        let script = leaving.script(later);
        assert_eq!(
            texts(&script),
            ["set server b/a state maint", "del server b/a", "set server b/c state maint", "del server b/c"]
        );
        let replies = ["", "Server deleted.", "", STAYS].map(str::to_owned);
        assert_eq!(leaving.tried(&script, &replies, later), 1);
        assert!(!leaving.contains(&id("a")) && leaving.contains(&id("c")));
        assert!(leaving.next().unwrap() > later && leaving.script(later).is_empty());
        // No reply says nothing.
        let later = leaving.next().unwrap();
        assert_eq!(leaving.tried(&leaving.script(later), &[], later), 0);
        assert_eq!(leaving.take(&id("c")), Some(Some("x".to_owned())));
        assert_eq!(leaving.next(), None);
    }

    #[test]
    fn when_its_time_is_over_its_connections_are_ended() {
        let now = Instant::now();
        let mut leaving = Leaving::default();
        leaving.add(id("a"), None, now, now + Duration::from_secs(10));
        let script = leaving.script(now + Duration::from_secs(10));
        assert_eq!(texts(&script), ["set server b/a state maint", "shutdown sessions server b/a", "del server b/a"]);
    }
}
