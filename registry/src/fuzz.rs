//! What is read from etcd and is not public otherwise, for the fuzzer (the member `fuzz`). Behind the feature `fuzz`: no program
//! has it.

use std::collections::BTreeSet;

use reqwest::StatusCode;

use crate::key::Prefix;
use crate::store::{self, Entry, Event, Reason};

/// What a whole reply of v2 comes to.
#[derive(Debug, PartialEq, Eq)]
pub enum V2Reply {
    /// Something was done, or read.
    Change {
        /// The keys in it, as a listing.
        entries: Vec<Entry>,
        /// The directories in it, as a listing.
        directories: BTreeSet<String>,
        /// What it means to who watches the prefix.
        event: Result<Option<Event>, Reason>,
    },
    /// etcd's no.
    Refused {
        /// Its words.
        words: String,
        /// The directory above the prefix, where it is there and the prefix is not.
        parent: Option<String>,
    },
    /// It is not etcd's, or trouble of that member's own: in words.
    NotEtcd(String),
}

/// What a whole reply of v3 comes to.
#[derive(Debug, PartialEq, Eq)]
pub enum V3Reply {
    /// What a range, or those of a transaction, read.
    Entries(Vec<Entry>),
    /// What is known of a lease.
    Lease {
        /// What is left of it; none where it is gone.
        seconds: Option<u64>,
        /// What it keeps.
        keys: Vec<String>,
    },
    /// etcd's no.
    Refused(String),
    /// It is not etcd's, or trouble of that member's own: in words.
    NotEtcd(String),
}

/// What one message of a watch of v3 comes to.
#[derive(Debug, PartialEq, Eq)]
pub struct V3Watched {
    /// Why etcd ended it, where it did.
    pub ended: Option<String>,
    /// Each change: whether it is a removal, the lease of what was there before, and the key.
    pub events: Vec<(bool, u64, Entry)>,
}

/// Reads a whole reply of v2, asked for this prefix.
pub fn v2_reply(status: u16, body: &[u8], prefix: &Prefix) -> V2Reply {
    store::fuzz::v2_reply(status_of(status), body, prefix)
}

/// Reads a whole reply of v3, asked for this prefix, as that to a range, a transaction and a question for a lease.
pub fn v3_reply(status: u16, body: &[u8], prefix: &Prefix) -> Vec<V3Reply> {
    store::fuzz::v3_reply(status_of(status), body, prefix)
}

/// Reads one message of a watch of v3.
///
/// # Errors
/// It is none, in words.
pub fn v3_message(line: &[u8]) -> Result<V3Watched, String> {
    store::fuzz::v3_message(line)
}

/// The lines of a stream that comes in these pieces, and what is left when it ends.
pub fn lines<'p>(pieces: impl IntoIterator<Item = &'p [u8]>) -> (Vec<Vec<u8>>, Vec<u8>) {
    store::fuzz::lines(pieces)
}

fn status_of(number: u16) -> StatusCode {
    StatusCode::from_u16(number).unwrap_or(StatusCode::OK)
}
