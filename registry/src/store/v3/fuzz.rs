//! Replies for the fuzzer: see [`crate::fuzz`].

use reqwest::StatusCode;

use super::pages::Pages;
use super::wire::{self, Answered, Headed, LeaseAnswered, Said, TxnAnswered, Watched};
use crate::fuzz::{V3Reply, V3Watched};
use crate::key::Prefix;
use crate::store::Entry;

/// What a reply comes to, as that of one of the methods that are asked.
pub(crate) fn read(status: StatusCode, body: &[u8], prefix: &Prefix) -> Vec<V3Reply> {
    let range = said::<Answered>(status, body, |answer| {
        let mut pages = Pages::new(prefix);
        match pages.take(answer, body.len()) {
            Ok(_) => V3Reply::Entries(pages.into_listing().entries),
            Err(misfit) => V3Reply::NotEtcd(misfit.to_string()),
        }
    });
    let txn = said::<TxnAnswered>(status, body, |answer| {
        let read: Vec<Option<Entry>> = answer.read().collect();
        V3Reply::Entries(read.into_iter().flatten().collect())
    });
    let lease = said::<LeaseAnswered>(status, body, |answer| V3Reply::Lease {
        seconds: answer.ttl.0,
        keys: answer.keys.into_iter().map(|key| key.0).collect(),
    });
    vec![range, txn, lease]
}

fn said<T: Headed>(status: StatusCode, body: &[u8], read: impl Fn(T) -> V3Reply) -> V3Reply {
    match wire::decode::<T>(status, body) {
        Err(words) => V3Reply::NotEtcd(words),
        Ok(Said::Refused(refusal)) => V3Reply::Refused(refusal.message),
        Ok(Said::Done(answer)) => read(answer),
    }
}

/// What one line of a watch comes to.
pub(crate) fn read_message(line: &[u8]) -> Result<V3Watched, String> {
    let watched: Watched = wire::decode_message(line)?;
    let ended = watched.canceled.then(|| watched.cancel_reason());
    let event = |event: wire::WatchEvent| {
        let former_lease = event.former_lease();
        let removal = event.is_removal();
        (removal, former_lease, event.kv.into_entry())
    };
    Ok(V3Watched { ended, events: watched.events.into_iter().map(event).collect() })
}
