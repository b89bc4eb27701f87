//! Follows a directory: a listing first, then every change, then a listing again wherever a change may have been missed.
//!
//! A listing cannot tell what was removed from what expired, so that the events that led to it are told before it, where etcd
//! still has them. It only tells; what the changes mean is the consumer's business. A consumer compares each listing with what it has.

use std::time::Duration;

use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, sleep, timeout};
use tracing::info;

use crate::key::Prefix;
use crate::store::{Changes, Event, Listing, Poll, Position, Store, StoreError};

/// The pause after the first failure: an etcd that is restarted or changes its leader is back in a moment.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// The longest pause: what a change may be late by once etcd is back.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// How long events are trusted, at least and at most, before the directory is listed anyway.
const SHORTEST_TRUST: Duration = Duration::from_secs(300);
const LONGEST_TRUST: Duration = Duration::from_secs(3600);
/// For so many times the time that the listing took: of 200 who follow a large directory, each would else ask etcd for all of it each five
/// minutes, and etcd would do nothing else.
const TRUST_FACTOR: u32 = 1000;
/// What a key adds to a listing's time at most: several times what it does on two busy cores.
const KEY_TAKES: Duration = Duration::from_micros(200);

/// The limit on reading what happened before a listing that follows a failure, and on the wait for one event of it: etcd has
/// them all at hand.
const MISSED_LIMIT: Duration = Duration::from_secs(2);
const MISSED_WAIT: Duration = Duration::from_millis(300);

/// What a watch tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Update {
    /// Everything that is there now. Comes first, and again wherever changes may have been missed.
    Listing(Listing),
    /// One change.
    Event {
        /// The change.
        event: Event,
        /// Up to which index of etcd all changes are told with this one.
        index: u64,
    },
    /// etcd cannot be followed now. Told once for an outage, and again when its cause is another; the next
    /// [`Update::Listing`] ends it.
    Unreachable {
        /// What is wrong.
        error: String,
    },
}

/// How the watch itself fares: nothing that a model would need, but what an operator is told.
#[derive(Debug, Clone, Copy)]
pub enum Sign<'e> {
    /// The directory was listed.
    Listed,
    /// A poll was answered, or waited in vain and a quorum stands behind it.
    Watched,
    /// A listing failed.
    ListFailed(&'e StoreError),
    /// A poll failed, or nobody vouches for its silence.
    WatchFailed(&'e StoreError),
}

/// Follows the directory and tells what happens there, until the receiver is dropped.
///
/// Nothing is ever lost: after a listing the poll begins at the listing's own index, never at "now".
pub async fn watch(store: Store, prefix: Prefix, updates: mpsc::Sender<Update>) {
    watch_since(store, prefix, None, updates, &Notify::new(), |_| {}).await;
}

/// As [`watch`] for one who knows what was there at a position: what etcd still knows of the changes since then is told before
/// the first listing, so that what was deleted is told from what expired. `again` has the directory listed at once, whatever is known. `signs` hears how the watch fares, and must not
/// take time. What is sent may be made of an update at once, such as to keep in mind when it came.
pub async fn watch_since<T: From<Update>>(
    store: Store,
    prefix: Prefix,
    since: Option<Position>,
    updates: mpsc::Sender<T>,
    again: &Notify,
    signs: impl Fn(Sign<'_>),
) {
    let pause = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
    let mut watcher = Watcher {
        store,
        prefix,
        state: State::Empty,
        since,
        index: 0,
        trusted: Instant::now(),
        pause,
        outage: None,
        signs,
    };
    loop {
        let told = tokio::select! {
            () = updates.closed() => return,
            () = again.notified() => {
                watcher.list_again();
                continue;
            }
            told = watcher.step() => told,
        };
        for update in told {
            if updates.send(update.into()).await.is_err() {
                return;
            }
        }
        // On one thread the consumer would wait until the next poll is on its way.
        tokio::task::yield_now().await;
    }
}

/// Pauses that double from the first to the longest, each shortened by chance by up to a half, so that many who lost
/// the same server do not come back in step.
#[derive(Debug, Clone)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    next: Option<Duration>,
}

impl Backoff {
    /// Pauses from `first` to `longest`.
    pub fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, next: None }
    }

    /// To be called after a failure: the pause before the next attempt.
    pub fn pause(&mut self) -> Duration {
        let pause = self.next.unwrap_or(self.first).min(self.longest);
        self.next = Some(pause.saturating_mul(2));
        pause.mul_f64(rand::random_range(0.5..=1.0))
    }

    /// To be called after a success: the next failure begins with the first pause again.
    pub fn reset(&mut self) {
        self.next = None;
    }
}

/// Where the watch stands.
enum State {
    /// Nothing is known: list.
    Empty,
    /// As [`State::Empty`], after a pause.
    Failed(Duration),
    /// Listed, or an event was seen: ask for what came after it.
    Watching(Box<Changes>),
}

struct Watcher<S> {
    store: Store,
    prefix: Prefix,
    state: State,
    /// Until when events are trusted.
    trusted: Instant,
    /// Up to where all changes have been told, if there may be a gap behind it.
    since: Option<Position>,
    /// The index up to which all was told.
    index: u64,
    /// Grows with each failure, of a list or a poll; only a poll that worked resets it, so that a server whose
    /// listing is good and whose polls fail at once is not asked in a hot loop.
    pause: Backoff,
    /// The cause told last, until a listing comes.
    outage: Option<String>,
    signs: S,
}

impl<S: Fn(Sign<'_>)> Watcher<S> {
    /// Forgets that all is told.
    fn list_again(&mut self) {
        if let State::Watching(changes) = &self.state {
            self.since = Some(changes.position().clone());
        }
        self.state = State::Empty;
    }

    /// One request, and the state after it. `state` is left as it was when this future is dropped.
    async fn step(&mut self) -> Vec<Update> {
        match &mut self.state {
            State::Failed(pause) => {
                sleep(*pause).await;
                self.state = State::Empty;
                Vec::new()
            }
            State::Empty => {
                let begun = Instant::now();
                match self.store.list(&self.prefix).await {
                    Ok(listing) => {
                        let trust = trust(begun.elapsed(), listing.entries.len());
                        let trust = trust.mul_f64(rand::random_range(0.8..=1.0));
                        self.trusted = Instant::now() + trust;
                        self.listed(listing).await
                    }
                    Err(error) => self.failed(&error),
                }
            }
            State::Watching(changes) => match changes.next().await {
                Ok(Poll::Events(events, position)) => {
                    self.go_on();
                    self.tell(events, position.index())
                }
                Ok(Poll::Quiet(_)) => match self.store.confirm(&self.prefix).await {
                    Ok(()) => {
                        self.go_on();
                        Vec::new()
                    }
                    Err(error) => self.failed(&error),
                },
                Ok(Poll::ListAgain(reason)) => {
                    info!(%reason, prefix = %self.prefix, "listing the directory again");
                    self.since = Some(changes.position().clone());
                    self.state = State::Failed(self.pause.pause());
                    Vec::new()
                }
                Err(error) => self.failed(&error),
            },
        }
    }

    /// After a listing.
    async fn listed(&mut self, listing: Listing) -> Vec<Update> {
        self.outage = None;
        (self.signs)(Sign::Listed);
        let mut told = self.missed(&listing).await;
        self.index = listing.position.index();
        let changes = self.store.changes(&self.prefix, listing.position.clone());
        self.state = State::Watching(Box::new(changes));
        told.push(Update::Listing(listing));
        told
    }

    /// After a poll that worked.
    fn go_on(&mut self) {
        (self.signs)(Sign::Watched);
        self.pause.reset();
        if Instant::now() >= self.trusted
            && let State::Watching(changes) = &self.state
        {
            // What happens until then is told as what it was: a listing does not tell what was removed from what expired.
            self.since = Some(changes.position().clone());
            self.state = State::Empty;
        }
    }

    /// Tells of events after which all is told up to an index. Several may come at once: not before the last one are all of
    /// them told.
    fn tell(&mut self, events: Vec<Event>, index: u64) -> Vec<Update> {
        let before = std::mem::replace(&mut self.index, index);
        let last = events.len().saturating_sub(1);
        let told = events.into_iter().enumerate();
        told.map(|(at, event)| Update::Event { event, index: if at == last { index } else { before } }).collect()
    }

    /// What happened up to a listing, as far as etcd still knows and tells it without a break: a beginning of it is as true as
    /// all of it, since the listing follows. A listing does not tell what was removed from what expired, and when a member dies
    /// many changes may lie between the last poll and the listing.
    async fn missed(&mut self, listing: &Listing) -> Vec<Update> {
        let mut told = Vec::new();
        let listed = &listing.position;
        let Some(from) = self.since.take().filter(|from| from.cluster_id() == listed.cluster_id()) else { return told };
        let mut changes = self.store.changes(&self.prefix, from);
        let has = |path: &str| listing.entries.binary_search_by(|entry| entry.path.as_str().cmp(path)).is_ok();
        let _what_came_in_time = timeout(MISSED_LIMIT, async {
            while changes.position().index() < listed.index() {
                let poll = timeout(MISSED_WAIT, changes.next()).await;
                let Ok(Ok(Poll::Events(mut events, position))) = poll else { return };
                let mut index = position.index();
                if index > listed.index() {
                    // Some of it may have happened after the listing, and is told again after it.
                    events.retain(|event| matches!(event, Event::Removed { path, .. } if !has(path)));
                    index = self.index;
                }
                told.extend(self.tell(events, index));
            }
        })
        .await;
        told
    }

    fn failed(&mut self, error: &StoreError) -> Vec<Update> {
        if let State::Watching(changes) = &self.state {
            self.since = Some(changes.position().clone());
            (self.signs)(Sign::WatchFailed(error));
        } else {
            (self.signs)(Sign::ListFailed(error));
        }
        self.state = State::Failed(self.pause.pause());
        let error = error.to_string();
        if self.outage.as_ref() == Some(&error) {
            return Vec::new();
        }
        self.outage = Some(error.clone());
        vec![Update::Unreachable { error }]
    }
}

/// How long events are trusted after a listing of so many keys that took so long. A short one that was late waited for a member that
/// was ill, which says nothing of the next. It is shortened by chance by up to a fifth, so that many who were started together do
/// not ask together for ever.
fn trust(took: Duration, keys: usize) -> Duration {
    let of_keys = KEY_TAKES.saturating_mul(u32::try_from(keys).unwrap_or(u32::MAX));
    took.min(of_keys).saturating_mul(TRUST_FACTOR).clamp(SHORTEST_TRUST, LONGEST_TRUST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longer_a_listing_took_the_longer_it_holds_within_bounds() {
        for (took_ms, keys, expected_s) in [
            (0, 100_000, 300),
            (1, 100_000, 300),
            (300, 100_000, 300),
            (301, 100_000, 301),
            (1500, 100_000, 1500),
            (3600, 100_000, 3600),
            (9000, 100_000, 3600),
            // Few keys: it was another thing that took the time.
            (9000, 1000, 300),
            (9000, 2000, 400),
            (9000, 0, 300),
        ] {
            let trust = trust(Duration::from_millis(took_ms), keys);
            assert_eq!(trust, Duration::from_secs(expected_s), "{took_ms} ms, {keys} keys");
        }
        assert_eq!(trust(Duration::MAX, usize::MAX), LONGEST_TRUST);
    }

    #[test]
    fn pauses_grow_to_the_longest_stay_there_and_begin_anew_after_a_success() {
        let mut pauses = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
        for _ in 0..2 {
            for full in [50, 100, 200, 400, 800, 1600, 2000, 2000, 2000] {
                let pause = pauses.pause().as_millis();
                assert!((full / 2..=full).contains(&pause), "{pause} is not in the upper half of {full}");
            }
            pauses.reset();
        }
    }
}
