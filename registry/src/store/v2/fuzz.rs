//! Replies for the fuzzer: see [`crate::fuzz`].

use reqwest::StatusCode;

use super::wire::{self, Said};
use crate::fuzz::V2Reply;
use crate::key::Prefix;

/// What a reply comes to.
pub(crate) fn read(status: StatusCode, body: &[u8], prefix: &Prefix) -> V2Reply {
    match wire::decode(status, body) {
        Err(words) => V2Reply::NotEtcd(words),
        Ok(Said::Refused(refusal)) => {
            let parent = wire::parent_beside(&prefix.path(), &refusal);
            V2Reply::Refused { words: refusal.message, parent }
        }
        Ok(Said::Change(change)) => {
            let directories = wire::directories(&change.node);
            let event = match wire::decode(status, body) {
                Ok(Said::Change(again)) => wire::event(prefix, again),
                other => panic!("read twice it is another one: {other:?}"),
            };
            V2Reply::Change { entries: wire::entries(change.node), directories, event }
        }
    }
}
