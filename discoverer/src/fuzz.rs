//! What is read from outside and is not public otherwise, for the fuzzer (the member `fuzz`). Behind the feature `fuzz`: no program
//! has it.

use std::path::Path;

use jiff::Timestamp;
use registry::Prefix;

use crate::catalog::Kept;
use crate::haproxy::{Command, ServerLoad, Worker, fuzz};
use crate::plan::Parsed;
use crate::snapshot::SnapshotError;
use crate::{admin, readback, snapshot};

/// Reads `show info`.
pub fn show_info(reply: &str) -> Option<Worker> {
    fuzz::show_info(reply)
}

/// Reads `show proc`: the pids of the workers, and whether each is old.
pub fn show_proc(reply: &str) -> Option<Vec<(u32, bool)>> {
    fuzz::show_proc(reply)
}

/// Reads `show stat` for servers, all of which count.
pub fn show_stat(reply: &str) -> Option<Vec<ServerLoad>> {
    fuzz::show_stat(reply)
}

/// Reads what a connection in prompt mode gave: the replies.
pub fn prompt(text: &str) -> Vec<String> {
    fuzz::prompt(text)
}

/// Reads what `haproxy -c` says of a file: its words, and the lines that it names.
pub fn check(said: &str, file: &Path) -> (String, Vec<(usize, String)>) {
    fuzz::check(said, file)
}

/// Reads what `haproxy -v` says.
pub fn version(said: &str) -> Option<String> {
    fuzz::version(said)
}

/// What sets the servers of a worker right that has read this text, from the reply to `show servers state`.
pub fn repairs(state: &str, text: &Parsed) -> Vec<Command> {
    readback::Fresh::of(state, text).repairs
}

/// What of that reply is handed to a worker that reads this text.
pub fn state_to_keep(state: &str, text: &Parsed) -> String {
    readback::state_to_keep(state, text)
}

/// The first thing in which that reply is not what this text says.
pub fn difference(state: &str, text: &Parsed) -> Option<String> {
    readback::difference(state, text, |_| false)
}

/// Reads a snapshot of the registry.
///
/// # Errors
/// It is of no use.
pub fn snapshot(text: &str, prefix: &Prefix) -> Result<(Kept, Timestamp), SnapshotError> {
    snapshot::parse(text, "registry.json", prefix)
}

/// Writes a snapshot of the registry.
pub fn snapshot_text(kept: &Kept, prefix: &Prefix, written: Timestamp) -> Vec<u8> {
    let mut text = Vec::new();
    snapshot::write(kept, prefix, written, &mut text).expect("memory takes all");
    text
}

/// Reads the query of a question to the API.
///
/// # Errors
/// What is wrong with it, in words.
pub fn filter(query: &str) -> Result<(), String> {
    admin::fuzz::filter(query)
}

/// Reads the id of an event of the stream, and writes it.
pub fn event_id(text: &str) -> Option<String> {
    admin::fuzz::event_id(text)
}
