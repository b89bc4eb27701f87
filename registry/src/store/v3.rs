//! A client of etcd's v3 API, over its HTTP/JSON gateway.
//!
//! One lease keeps all keys of a registrar, so that keeping them costs one request, however many they are. A key is ours
//! while it carries our lease; what is compared is its revision. A removal and an expiry are the same event on the wire: the
//! key has expired where its lease is gone too. There are no directories: keys that begin with `/service/` are what lies in
//! `/service`.

#[cfg(feature = "fuzz")]
pub(super) mod fuzz;
mod pages;
mod wire;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};
use tokio::time::{Instant, timeout};
use tracing::debug;

use super::endpoints::{Answer, Content, Endpoints, REPLY_LIMIT, Reply, Request, Stream};
use super::{
    COMPARE_TRIES, Cause, Deleted, Entry, Event, Kept, Listing, Ownership, Poll, Position, Reason, StoreError, Trouble,
};
use crate::key::{InstanceKey, Prefix};
use pages::{Misfit, Pages};
use wire::{Answered, Compare, Headed, Header, LeaseAnswered, Op, Said, Step, TxnAnswered, WatchEvent, Watched};

/// How often a listing is begun, where etcd forgets its moment meanwhile. It does so once in minutes, unless it was told otherwise
/// (`--auto-compaction-retention`).
const LIST_TRIES: usize = 3;
/// How many times as long as another request a page may take that is not the first of its listing. etcd is well then, and may have
/// many others to serve who list too, as after its restart: what is given up and asked for again makes it longer for all.
const PAGE_TIMES: u32 = 8;
/// How many keys are looked at in one transaction: etcd takes 128 operations (flag `--max-txn-ops`).
const STEPS_AT_ONCE: usize = 100;
/// How many leases are asked after at once.
const LEASES_AT_ONCE: usize = 16;
/// How long one watch is trusted. A member that has lost it, or a middle box that has lost the connection, is silent like one
/// where nothing happens.
const WATCH_LIFETIME: Duration = Duration::from_secs(60);

pub(super) async fn list(etcd: &Endpoints, prefix: &Prefix) -> Result<Listing, StoreError> {
    let mut tries = 0;
    loop {
        tries += 1;
        match list_once(etcd, prefix).await? {
            Ok(listing) => return Ok(listing),
            Err(why) if tries == LIST_TRIES => return Err(why),
            Err(why) => debug!(%why, "the listing begins anew"),
        }
    }
}

/// One listing, page by page. Its inner error says why it must begin anew: the moment of its first page is no longer there.
async fn list_once(etcd: &Endpoints, prefix: &Prefix) -> Result<Result<Listing, StoreError>, StoreError> {
    let from = below(prefix);
    let mut pages = Pages::new(prefix);
    let patient = etcd.with_more_time(PAGE_TIMES);
    loop {
        let etcd = if pages.is_begun() { &patient } else { etcd };
        let Answer { endpoint, value: (said, size), uncertain } = etcd.ask(&pages.request(), read_page).await?;
        if matches!(&said, Said::Refused(refusal) if refusal.is_revision_ahead()) && pages.ask_the_newest() {
            continue;
        }
        let is_gone = matches!(&said, Said::Refused(refusal) if refusal.is_revision_gone());
        let (page, endpoint) = match done(Answer { endpoint, value: said, uncertain }, &from) {
            Ok(done) => done,
            Err(error) if is_gone => return Ok(Err(error)),
            Err(error) => return Err(error),
        };
        let misfit = match pages.take(page, size) {
            Ok(true) => continue,
            Ok(false) => return Ok(Ok(pages.into_listing())),
            Err(misfit) => misfit,
        };
        let error = StoreError::unanswered(format!("{endpoint}: {misfit}"), Trouble::Answer);
        return if misfit == Misfit::OtherCluster { Ok(Err(error)) } else { Err(error) };
    }
}

pub(super) async fn get(etcd: &Endpoints, key: &InstanceKey) -> Result<Option<Entry>, StoreError> {
    let path = key.path();
    let (answer, _) = ask::<Answered>(etcd, &wire::get(&path), &path).await?;
    Ok(answer.kvs.into_iter().next().map(wire::KeyValue::into_entry))
}

/// Asks how long the keys will live, each lease once.
pub(super) async fn times_to_live(etcd: &Endpoints, entries: &mut [Entry]) -> Result<(), StoreError> {
    let mut leases = BTreeMap::new();
    for entry in entries {
        let lease = entry.ownership.lease;
        if lease == 0 {
            continue;
        }
        let ttl = match leases.get(&lease) {
            Some(ttl) => *ttl,
            None => {
                let (answer, _) = ask::<LeaseAnswered>(etcd, &wire::time_to_live(lease), &entry.path).await?;
                *leases.entry(lease).or_insert(Duration::from_secs(answer.ttl.0.unwrap_or(0)))
            }
        };
        entry.ttl = Some(ttl);
    }
    Ok(())
}

/// A new lease.
pub(super) async fn grant(etcd: &Endpoints, ttl: Duration) -> Result<u64, StoreError> {
    let (answer, endpoint) = ask::<LeaseAnswered>(etcd, &wire::grant(ttl), LEASE).await?;
    match answer.id.0 {
        0 => Err(StoreError::unanswered(format!("{endpoint}: granted a lease without an id"), Trouble::Answer)),
        id => Ok(id),
    }
}

/// Gives a lease back, and with it what is still tied to it.
pub(super) async fn revoke(etcd: &Endpoints, lease: u64) -> Result<(), StoreError> {
    match ask::<Answered>(etcd, &wire::revoke(lease), LEASE).await {
        Ok(_) | Err(StoreError::LeaseGone) => Ok(()),
        Err(error) => Err(error),
    }
}

pub(super) async fn put(etcd: &Endpoints, key: &InstanceKey, value: &str, lease: u64) -> Result<Ownership, StoreError> {
    write(etcd, &key.path(), value, lease).await
}

/// Writes any key.
pub(super) async fn write(etcd: &Endpoints, path: &str, value: &str, lease: u64) -> Result<Ownership, StoreError> {
    let (answer, _) = ask::<Answered>(etcd, &wire::put(path, value, lease), path).await?;
    Ok(written(answer.header, lease))
}

pub(super) async fn create(
    etcd: &Endpoints,
    key: &InstanceKey,
    value: &str,
    lease: u64,
) -> Result<Ownership, StoreError> {
    let path = key.path();
    let step = Step { key: &path, compare: Compare::IsAbsent, then: Op::Put { value, lease } };
    let (answer, _) = ask::<TxnAnswered>(etcd, &wire::txn(&[step]), &path).await?;
    let header = answer.header;
    if answer.succeeded {
        return Ok(written(header, lease));
    }
    match answer.read().flatten().next() {
        // Written by an attempt whose reply was lost.
        Some(entry) if entry.ownership.lease == lease && entry.value == value => Ok(entry.ownership),
        _ => Err(StoreError::Taken { path }),
    }
}

/// Keeps the lease alive, and looks whether the keys are as they were.
pub(super) async fn keep(
    etcd: &Endpoints,
    lease: u64,
    keys: &[(InstanceKey, Ownership)],
) -> Result<Vec<Result<Kept, StoreError>>, StoreError> {
    let answer: Answer<Said<LeaseAnswered>> = etcd.ask(&wire::keep_alive(lease), read_message).await?;
    let (kept, _) = done(answer, LEASE)?;
    // Of a lease that is gone a keep-alive tells no time to live.
    if kept.ttl.0.unwrap_or(0) == 0 {
        return Err(StoreError::LeaseGone);
    }
    let mut all = Vec::with_capacity(keys.len());
    for some in keys.chunks(STEPS_AT_ONCE) {
        all.append(&mut keep_some(etcd, lease, some).await?);
    }
    Ok(all)
}

async fn keep_some(
    etcd: &Endpoints,
    lease: u64,
    keys: &[(InstanceKey, Ownership)],
) -> Result<Vec<Result<Kept, StoreError>>, StoreError> {
    let paths: Vec<String> = keys.iter().map(|(key, _)| key.path()).collect();
    let steps: Vec<Step<'_>> = keys
        .iter()
        .zip(&paths)
        .map(|((_, owned), path)| {
            let then = if owned.lease == lease { Op::Nothing } else { Op::Tie { lease } };
            Step { key: path, compare: Compare::ModifiedAt(owned.modified_index), then }
        })
        .collect();
    let (mut answer, mut endpoint) = ask::<TxnAnswered>(etcd, &wire::txn_or_nothing(&steps), &paths[0]).await?;
    if !answer.succeeded {
        (answer, endpoint) = ask::<TxnAnswered>(etcd, &wire::txn(&steps), &paths[0]).await?;
    }
    if answer.succeeded {
        let revision = answer.header.revision.0;
        let kept = |owned: &Ownership| {
            let is_tied_anew = owned.lease != lease;
            let modified_index = if is_tied_anew { revision } else { owned.modified_index };
            Ok(Kept { ownership: Ownership { lease, modified_index, ..*owned }, value: None })
        };
        return Ok(keys.iter().map(|(_, owned)| kept(owned)).collect());
    }
    let found: Vec<Option<Entry>> = answer.read().collect();
    if found.len() != keys.len() {
        let what = format!("{endpoint}: {} keys were read, {} were asked for", found.len(), keys.len());
        return Err(StoreError::unanswered(what, Trouble::Answer));
    }
    let mut all = Vec::with_capacity(keys.len());
    for (((key, owned), path), entry) in keys.iter().zip(paths).zip(found) {
        all.push(match entry {
            None => Err(StoreError::Lost { path }),
            Some(entry) if entry.ownership.lease == lease => {
                let is_changed = entry.ownership.modified_index != owned.modified_index;
                Ok(Kept { ownership: entry.ownership, value: is_changed.then_some(entry.value) })
            }
            // Taken over, and not yet tied to our lease.
            Some(entry) if entry.ownership.lease == owned.lease => tie(etcd, lease, key, entry).await?,
            Some(_) => Err(StoreError::Taken { path }),
        });
    }
    Ok(all)
}

/// The keys that the lease keeps beside these, in the same directory.
pub(super) async fn strays(
    etcd: &Endpoints,
    lease: u64,
    kept: &[(InstanceKey, Ownership)],
) -> Result<Vec<(InstanceKey, Entry)>, StoreError> {
    let Some((first, _)) = kept.first() else { return Ok(Vec::new()) };
    let known: BTreeSet<String> = kept.iter().map(|(key, _)| key.path()).collect();
    let (answer, _) = ask::<LeaseAnswered>(etcd, &wire::keys_of(lease), LEASE).await?;
    let others = answer.keys.into_iter().filter(|path| !known.contains(&path.0));
    let mut strays = Vec::new();
    for key in others.filter_map(|path| InstanceKey::parse(first.prefix(), &path.0).ok()).take(STEPS_AT_ONCE) {
        let entry = get(etcd, &key).await?.filter(|entry| entry.ownership.lease == lease);
        strays.extend(entry.map(|entry| (key, entry)));
    }
    Ok(strays)
}

/// Ties one key to the lease.
async fn tie(
    etcd: &Endpoints,
    lease: u64,
    key: &InstanceKey,
    entry: Entry,
) -> Result<Result<Kept, StoreError>, StoreError> {
    let path = key.path();
    let compare = Compare::ModifiedAt(entry.ownership.modified_index);
    let step = Step { key: &path, compare, then: Op::Tie { lease } };
    let (answer, _) = ask::<TxnAnswered>(etcd, &wire::txn(&[step]), &path).await?;
    if answer.succeeded {
        return Ok(Ok(Kept { ownership: written(answer.header, lease), value: Some(entry.value) }));
    }
    Ok(Err(StoreError::Contended { path }))
}

pub(super) async fn update(
    etcd: &Endpoints,
    key: &InstanceKey,
    value: &str,
    lease: u64,
    owned: &Ownership,
    is_own: impl Fn(&str) -> bool,
) -> Result<Ownership, StoreError> {
    let path = key.path();
    let mut owned = *owned;
    for _ in 0..COMPARE_TRIES {
        let compare = Compare::ModifiedAt(owned.modified_index);
        let step = Step { key: &path, compare, then: Op::Put { value, lease } };
        let (answer, _) = ask::<TxnAnswered>(etcd, &wire::txn(&[step]), &path).await?;
        if answer.succeeded {
            return Ok(written(answer.header, lease));
        }
        match answer.read().flatten().next() {
            None => return Err(StoreError::Lost { path }),
            Some(entry) if !is_ours(&entry, lease, &owned) => return Err(StoreError::Taken { path }),
            Some(entry) if !is_own(&entry.value) => return Err(StoreError::Changed { path }),
            Some(entry) => owned = entry.ownership,
        }
    }
    Err(StoreError::Contended { path })
}

pub(super) async fn amend(etcd: &Endpoints, key: &InstanceKey, value: &str, entry: &Entry) -> Result<u64, StoreError> {
    let path = key.path();
    let compare = Compare::ModifiedAt(entry.ownership.modified_index);
    let step = Step { key: &path, compare, then: Op::Amend { value } };
    let answer = etcd.ask(&wire::txn(&[step]), read_whole).await?;
    let uncertain = answer.uncertain;
    let (answer, _) = done::<TxnAnswered>(answer, &path)?;
    if answer.succeeded {
        return Ok(answer.header.revision.0);
    }
    match answer.read().flatten().next() {
        None => Err(StoreError::Lost { path }),
        Some(now) if uncertain && now.value == value => Ok(now.ownership.modified_index),
        Some(_) => Err(StoreError::Contended { path }),
    }
}

pub(super) async fn delete(etcd: &Endpoints, key: &InstanceKey, owned: &Ownership) -> Result<Deleted, StoreError> {
    let path = key.path();
    let mut owned = *owned;
    let mut uncertain = false;
    for _ in 0..COMPARE_TRIES {
        let compare = Compare::ModifiedAt(owned.modified_index);
        let step = Step { key: &path, compare, then: Op::Delete };
        let answer = etcd.ask(&wire::txn(&[step]), read_whole).await?;
        uncertain |= answer.uncertain;
        let (answer, _) = done::<TxnAnswered>(answer, &path)?;
        if answer.succeeded {
            return Ok(Deleted::Done);
        }
        match answer.read().flatten().next() {
            None if uncertain => return Ok(Deleted::Done),
            None => return Ok(Deleted::AlreadyGone),
            Some(entry) if is_ours(&entry, owned.lease, &owned) => owned = entry.ownership,
            Some(_) => return Ok(Deleted::NotOurs),
        }
    }
    Err(StoreError::Contended { path })
}

/// A linearizable read that carries nothing.
pub(super) async fn confirm(etcd: &Endpoints, path: &str) -> Result<(), StoreError> {
    ask::<Answered>(etcd, &wire::get(path), path).await.map(drop)
}

/// Follows what lies below a directory.
#[derive(Debug)]
pub(super) struct Watch {
    prefix: Prefix,
    open: Option<Open>,
}

/// A watch that etcd has taken.
#[derive(Debug)]
struct Open {
    stream: Stream,
    since: Instant,
}

impl Watch {
    pub(super) fn new(prefix: Prefix) -> Self {
        Self { prefix, open: None }
    }

    /// The next changes after `position`, which must be what the last call gave.
    pub(super) async fn next(
        &mut self,
        etcd: &Endpoints,
        position: &Position,
        patience: Duration,
    ) -> Result<Poll, StoreError> {
        // Put back only where all was well.
        let open = self.open.take().filter(|open| open.since.elapsed() < WATCH_LIFETIME);
        let mut open = match open {
            Some(open) => open,
            None => match self.begin(etcd, position).await? {
                Ok(open) => open,
                Err(reason) => return Ok(Poll::ListAgain(reason)),
            },
        };
        let line = open.stream.line(patience, REPLY_LIMIT).await?;
        // One that is quiet ends here: whoever answers the question for the quorum is asked next.
        let Some(line) = line else { return Ok(Poll::Quiet(position.clone())) };
        let watched: Watched = wire::decode_message(&line).map_err(|error| open.stream.broken(&error))?;
        if watched.canceled {
            return canceled(&watched, &open.stream);
        }
        let Some(index) = watched.events.iter().map(|event| event.kv.mod_revision.0).max() else {
            self.open = Some(open);
            return Ok(Poll::Quiet(position.clone()));
        };
        let first = watched.events.iter().map(|event| event.kv.mod_revision.0).min().unwrap_or(index);
        if first <= position.index {
            return Err(open.stream.broken(&format!("asked for events after {}, got {first}", position.index)));
        }
        debug!(events = watched.events.len(), index, "etcd events");
        let events = self.read(etcd, watched).await?;
        self.open = Some(open);
        Ok(Poll::Events(events, Position { index, ..position.clone() }))
    }

    /// Asks for a watch, and waits until etcd has taken it.
    async fn begin(&self, etcd: &Endpoints, position: &Position) -> Result<Result<Open, Reason>, StoreError> {
        let from = below(&self.prefix);
        let request = wire::watch(&from, position.index.saturating_add(1));
        let mut stream = done(etcd.ask(&request, read_stream).await?, &from)?.0;
        let limit = etcd.request_timeout();
        let line = timeout(limit, stream.line(limit, REPLY_LIMIT)).await;
        let Some(line) = line.ok().transpose()?.flatten() else {
            return Err(stream.broken(&format!("a watch was not begun within {limit:?}")));
        };
        let watched: Watched = wire::decode_message(&line).map_err(|error| stream.broken(&error))?;
        if watched.canceled {
            return match canceled(&watched, &stream)? {
                Poll::ListAgain(reason) => Ok(Err(reason)),
                _ => Err(stream.broken("a watch was not begun")),
            };
        }
        if !watched.created {
            return Err(stream.broken("a watch began without its first message"));
        }
        let begun = self::position(watched.header);
        if begun.cluster_id != position.cluster_id {
            return Ok(Err(Reason::OtherCluster));
        }
        if begun.index < position.index {
            return Ok(Err(Reason::IndexFell));
        }
        Ok(Ok(Open { stream, since: Instant::now() }))
    }

    /// What the changes mean.
    async fn read(&self, etcd: &Endpoints, watched: Watched) -> Result<Vec<Event>, StoreError> {
        let mut seen = watched.events;
        seen.retain(|event| !is_hidden(&self.prefix, &event.kv.key.text));
        let removals = seen.iter().filter(|event| event.is_removal());
        let leases: BTreeMap<u64, String> =
            removals.map(|event| (event.former_lease(), event.kv.key.text.clone())).collect();
        // Where many hosts go at once, one after another would take too long.
        let causes = leases
            .into_iter()
            .map(|(lease, path)| async move { cause(etcd, lease, &path).await.map(|cause| (lease, cause)) });
        let causes: BTreeMap<u64, Cause> = stream::iter(causes).buffer_unordered(LEASES_AT_ONCE).try_collect().await?;
        let read = |event: WatchEvent| match causes.get(&event.former_lease()) {
            Some(cause) if event.is_removal() => Event::Removed { path: event.kv.key.text, cause: *cause },
            _ => Event::Put(event.kv.into_entry()),
        };
        Ok(seen.into_iter().map(read).collect())
    }
}

/// Why keys of this lease went: a key whose lease is gone has expired. A registrar deletes its keys before it gives back its
/// lease.
async fn cause(etcd: &Endpoints, lease: u64, path: &str) -> Result<Cause, StoreError> {
    if lease == 0 {
        return Ok(Cause::Deleted);
    }
    let (answer, _) = ask::<LeaseAnswered>(etcd, &wire::time_to_live(lease), path).await?;
    Ok(if answer.ttl.0.is_none() { Cause::Expired } else { Cause::Deleted })
}

/// What an end that etcd made means.
fn canceled(watched: &Watched, stream: &Stream) -> Result<Poll, StoreError> {
    if watched.compact_revision.0 > 0 {
        return Ok(Poll::ListAgain(Reason::HistoryCleared));
    }
    Err(stream.broken(&format!("ended a watch: {}", watched.cancel_reason())))
}

/// Whether the key is still the one that was owned: tied to our lease, or to the one it was tied to when it was taken over.
fn is_ours(entry: &Entry, lease: u64, owned: &Ownership) -> bool {
    let at = entry.ownership.lease;
    at != 0 && (at == lease || at == owned.lease)
}

/// A key that was just written.
fn written(header: Header, lease: u64) -> Ownership {
    let revision = header.revision.0;
    Ownership { created_index: revision, modified_index: revision, lease }
}

fn position(header: Header) -> Position {
    Position { cluster_id: Some(header.cluster_id.0.to_string()), index: header.revision.0 }
}

/// What the keys of a directory begin with.
fn below(prefix: &Prefix) -> String {
    format!("{}/", prefix.path())
}

/// What a listing of v2 does not show: a segment with `_` in front.
fn is_hidden(prefix: &Prefix, key: &str) -> bool {
    let below = prefix.below(key).unwrap_or_default();
    below.is_empty() || below.split('/').any(|segment| segment.starts_with('_'))
}

/// What a message is about that is about no key.
const LEASE: &str = "a lease";

async fn ask<T: Headed>(etcd: &Endpoints, request: &Request, path: &str) -> Result<(T, String), StoreError> {
    done(etcd.ask(request, read_whole).await?, path)
}

/// What was done, and by whom; what etcd refuses is an error about `path`.
fn done<T>(answer: Answer<Said<T>>, path: &str) -> Result<(T, String), StoreError> {
    match answer.value {
        Said::Done(value) => Ok((value, answer.endpoint)),
        Said::Refused(refusal) if refusal.is_lease_gone() => Err(StoreError::LeaseGone),
        Said::Refused(refusal) => {
            Err(StoreError::Refused { endpoint: answer.endpoint, path: path.to_owned(), message: refusal.message })
        }
    }
}

fn read_whole<T: Headed>(reply: Reply) -> Result<Said<T>, String> {
    match reply.content {
        Content::Whole(body) => wire::decode(reply.status, &body),
        Content::Stream(_) => Err(NOT_ASKED_TO_WAIT.to_owned()),
    }
}

/// As [`read_whole`], with its size in bytes.
fn read_page(reply: Reply) -> Result<(Said<Answered>, usize), String> {
    let size = if let Content::Whole(body) = &reply.content { body.len() } else { 0 };
    Ok((read_whole(reply)?, size))
}

/// As [`read_whole`], of a method that answers with a stream of one message.
fn read_message<T: Headed>(reply: Reply) -> Result<Said<T>, String> {
    match reply.content {
        Content::Whole(body) if reply.status.is_success() => wire::decode_message(&body).map(Said::Done),
        Content::Whole(body) => wire::decode(reply.status, &body),
        Content::Stream(_) => Err(NOT_ASKED_TO_WAIT.to_owned()),
    }
}

fn read_stream(reply: Reply) -> Result<Said<Stream>, String> {
    match reply.content {
        Content::Stream(stream) => Ok(Said::Done(stream)),
        Content::Whole(body) => match wire::decode::<Answered>(reply.status, &body)? {
            Said::Refused(refusal) => Ok(Said::Refused(refusal)),
            Said::Done(_) => Err(NOT_ASKED_TO_WAIT.to_owned()),
        },
    }
}

const NOT_ASKED_TO_WAIT: &str = "the reply does not belong to the request";
