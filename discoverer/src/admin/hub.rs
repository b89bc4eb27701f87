//! The task that knows what those who look have been told. While nobody looks it holds nothing and does nothing: it waits
//! for the first question.
//!
//! Two pictures are compared once for all clients, and HAProxy is asked once for all of them. Events go through one ring:
//! what a slow client keeps from being dropped is bounded by it, and whoever falls behind is cut off, to come back with the id
//! of the last event that it has.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use serde::Serialize;
use serde_json::json;
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until};
use tracing::debug;

use super::delta::{delta, lost_rows, stat_rows, unknown_rows};
use crate::haproxy::{Runtime, RuntimeError, Stats, pause_after};
use crate::report::FiguresReport;
use crate::until;
use crate::view::View;

/// How long somebody counts as looking who has asked once.
const LOOKS_FOR: Duration = Duration::from_secs(10);
/// The least time between two events of changes.
const EVENT_PAUSE: Duration = Duration::from_millis(100);
/// The largest event, in bytes: after more than that it is less to load everything again.
const EVENT_LIMIT: usize = 64 * 1024;
/// How many events a client may be behind.
const BEHIND_LIMIT: usize = 64;
/// How many changes, and how many bytes of them, are kept for clients that come back.
const KEPT_EVENTS: usize = 256;
const KEPT_BYTES: usize = 512 * 1024;
/// The longest pause after HAProxy has not answered: what it says is not known meanwhile.
const FAILURE_PAUSE: Duration = Duration::from_secs(5);
/// How long a question waits for HAProxy's first figures.
const FIGURES_LIMIT: Duration = Duration::from_millis(300);

/// Where a client stands: the id of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct EventId {
    /// The process.
    pub(super) start: u64,
    /// The picture.
    pub(super) version: u64,
    /// HAProxy's figures.
    pub(super) stats: u64,
}

impl std::fmt::Display for EventId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:x}-{}-{}", self.start, self.version, self.stats)
    }
}

impl FromStr for EventId {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let mut parts = text.splitn(3, '-');
        let mut part = |radix| u64::from_str_radix(parts.next().ok_or(())?, radix).map_err(|_| ());
        Ok(Self { start: part(16)?, version: part(10)?, stats: part(10)? })
    }
}

/// A question to the hub.
#[derive(Debug)]
pub(super) enum Ask {
    /// What there is.
    Look(oneshot::Sender<Look>),
    /// What there will be, from the event behind this one on; none: from now on.
    Join { last: Option<String>, joined: oneshot::Sender<Joined> },
}

/// What there is.
#[derive(Debug, Clone)]
pub(super) struct Look {
    /// The picture; none before the first.
    pub(super) view: Option<Arc<View>>,
    /// HAProxy's figures, where it was asked and has answered.
    pub(super) stats: Option<Arc<Stats>>,
    /// Whether it was.
    pub(super) figures: FiguresReport,
    /// What a client knows who has been told of both.
    pub(super) id: EventId,
}

/// What a new client is told first, and what comes then.
#[derive(Debug)]
pub(super) struct Joined {
    pub(super) first: Vec<Bytes>,
    pub(super) rest: broadcast::Receiver<Bytes>,
}

type Asking = Pin<Box<dyn Future<Output = (Instant, Result<Stats, RuntimeError>)> + Send>>;

/// The task.
pub(super) struct Hub {
    views: watch::Receiver<Option<Arc<View>>>,
    runtime: Option<Runtime>,
    start: u64,
    /// The number of the last asking; never the same twice.
    asked: u64,
    live: Option<Live>,
}

/// What there is while somebody looks.
struct Live {
    /// What has been told.
    told: Option<Arc<View>>,
    /// When the next change may be told; none where nothing has changed.
    tell_at: Option<Instant>,
    told_at: Instant,
    /// The last changes; each leads from the version of the one before it to its own.
    kept: VecDeque<(u64, Bytes)>,
    kept_bytes: usize,
    /// The version that the oldest of them begins at.
    kept_from: u64,
    events: broadcast::Sender<Bytes>,
    stats: Option<Arc<Stats>>,
    /// The number of the asking that gave them.
    stats_number: u64,
    /// When HAProxy may be asked again; none where it is being asked.
    ask_at: Option<Instant>,
    asking: Option<Asking>,
    waiting: Vec<oneshot::Sender<Look>>,
    waiting_until: Option<Instant>,
    looked_at: Instant,
}

impl Hub {
    pub(super) fn new(views: watch::Receiver<Option<Arc<View>>>, runtime: Option<Runtime>, start: u64) -> Self {
        Self { views, runtime, start, asked: 0, live: None }
    }

    /// Answers until nobody can ask any more, or there are no pictures any more.
    pub(super) async fn run(mut self, mut asks: mpsc::Receiver<Ask>) {
        loop {
            let Some(live) = &mut self.live else {
                let Some(ask) = asks.recv().await else { return };
                self.begin();
                self.answer(ask);
                continue;
            };
            // Nobody says when the last client goes: it is seen when it is looked for.
            let look_at = (live.looked_at + LOOKS_FOR).max(Instant::now());
            tokio::select! {
                ask = asks.recv() => {
                    let Some(ask) = ask else { return };
                    self.answer(ask);
                }
                changed = self.views.changed(), if live.tell_at.is_none() => {
                    if changed.is_err() {
                        return;
                    }
                    live.tell_at = Some(live.told_at + EVENT_PAUSE);
                }
                () = until(live.tell_at) => self.tell(),
                () = until(live.ask_at) => self.ask(),
                (asked, stats) = asking(&mut live.asking) => self.figures(asked, stats),
                () = until(live.waiting_until) => self.answer_waiting(),
                () = sleep_until(look_at) => {
                    if live.events.receiver_count() > 0 {
                        live.looked_at = Instant::now();
                    } else {
                        self.live = None;
                        give_back();
                    }
                }
            }
        }
    }

    fn begin(&mut self) {
        let now = Instant::now();
        let told = self.views.borrow_and_update().clone();
        let kept_from = told.as_ref().map_or(0, |view| view.version);
        self.live = Some(Live {
            told,
            tell_at: None,
            told_at: now,
            kept: VecDeque::new(),
            kept_bytes: 0,
            kept_from,
            events: broadcast::Sender::new(BEHIND_LIMIT),
            stats: None,
            stats_number: 0,
            ask_at: None,
            asking: None,
            waiting: Vec::new(),
            waiting_until: None,
            looked_at: now,
        });
        self.ask();
    }

    fn id(&self) -> EventId {
        let live = self.live.as_ref();
        let version = live.and_then(|live| live.told.as_ref()).map_or(0, |view| view.version);
        EventId { start: self.start, version, stats: live.map_or(0, |live| live.stats_number) }
    }

    fn answer(&mut self, ask: Ask) {
        let now = Instant::now();
        if self.live.as_ref().is_some_and(|live| live.tell_at.is_some_and(|at| at <= now)) {
            self.tell();
        }
        let id = self.id();
        let Some(live) = &mut self.live else { return };
        live.looked_at = now;
        match ask {
            Ask::Look(sender) if live.stats.is_none() && live.asking.is_some() => {
                live.waiting.push(sender);
                live.waiting_until.get_or_insert(now + FIGURES_LIMIT);
            }
            Ask::Look(sender) => {
                // Who asked may have gone.
                let _ = sender.send(live.look(id));
            }
            Ask::Join { last, joined } => {
                let _ = joined.send(live.join(last.as_deref(), id));
            }
        }
    }

    fn answer_waiting(&mut self) {
        let id = self.id();
        let Some(live) = &mut self.live else { return };
        live.waiting_until = None;
        for sender in std::mem::take(&mut live.waiting) {
            let _ = sender.send(live.look(id));
        }
    }

    /// Tells what has changed since the last time.
    fn tell(&mut self) {
        let now = self.views.borrow_and_update().clone();
        let Some(live) = &mut self.live else { return };
        live.tell_at = None;
        live.told_at = Instant::now();
        let before = std::mem::replace(&mut live.told, now);
        let (before, now) = match (&before, &live.told) {
            (Some(before), Some(now)) if Arc::ptr_eq(before, now) => return,
            (before, now) => (before.as_deref(), now.clone()),
        };
        let id = self.id();
        let Some(live) = &mut self.live else { return };
        let Some(now) = now else { return };
        let change = before.map(|before| event("change", Some(id), &delta(before, &now, live.stats.as_deref())));
        match change.filter(|change| change.len() <= EVENT_LIMIT) {
            Some(change) => {
                live.kept_bytes += change.len();
                live.kept.push_back((now.version, change.clone()));
                while live.kept.len() > KEPT_EVENTS || live.kept_bytes > KEPT_BYTES {
                    let Some((version, dropped)) = live.kept.pop_front() else { break };
                    live.kept_bytes -= dropped.len();
                    live.kept_from = version;
                }
                let _ = live.events.send(change);
            }
            None => {
                live.kept.clear();
                live.kept_bytes = 0;
                live.kept_from = now.version;
                let _ = live.events.send(reset(id));
            }
        }
    }

    fn ask(&mut self) {
        let (Some(live), Some(runtime)) = (&mut self.live, self.runtime.clone()) else { return };
        live.ask_at = None;
        self.asked += 1;
        let (number, before) = (self.asked, live.stats.clone());
        live.asking = Some(Box::pin(async move {
            let asked = Instant::now();
            let before = before.unwrap_or_default();
            (asked, Stats::ask(&runtime, &before, number).await)
        }));
    }

    fn figures(&mut self, asked: Instant, stats: Result<Stats, RuntimeError>) {
        let number = self.asked;
        let Some(live) = &mut self.live else { return };
        live.asking = None;
        let now = Instant::now();
        let pause = pause_after(asked, now);
        live.ask_at = Some(now + if stats.is_ok() { pause } else { pause.min(FAILURE_PAUSE) });
        // What it said before it stopped answering is not what it says now.
        let stats = stats.inspect_err(|error| debug!(%error, "HAProxy's figures are not known")).ok().map(Arc::new);
        let before = std::mem::replace(&mut live.stats, stats.clone());
        let newer_than = live.stats_number;
        if stats.is_some() || before.is_some() {
            live.stats_number = number;
        }
        let (told, someone) = (live.told.clone(), live.events.receiver_count() > 0);
        if let Some(told) = told.filter(|_| someone) {
            let stats = stats.unwrap_or_default();
            let mut rows = stat_rows(&told, &stats, newer_than);
            rows.extend(before.iter().flat_map(|before| lost_rows(&told, before, &stats)));
            let id = self.id();
            if let Some(live) = &self.live {
                for event in stats_events(id, &rows) {
                    let _ = live.events.send(event);
                }
            }
        }
        self.answer_waiting();
    }
}

impl Live {
    fn look(&self, id: EventId) -> Look {
        let figures = match (&self.stats, &self.asking) {
            (Some(_), _) => FiguresReport::Known,
            (None, Some(_)) => FiguresReport::Asked,
            (None, None) => FiguresReport::Unknown,
        };
        Look { view: self.told.clone(), stats: self.stats.clone(), figures, id }
    }

    /// What a client is told that comes now.
    fn join(&self, last: Option<&str>, id: EventId) -> Joined {
        let rest = self.events.subscribe();
        let Some(last) = last else {
            return Joined { first: vec![event("hello", Some(id), &json!({ "version": id.version }))], rest };
        };
        let known = last.parse::<EventId>().ok().filter(|last| {
            last.start == id.start && (self.kept_from..=id.version).contains(&last.version) && last.stats <= id.stats
        });
        let Some(known) = known else { return Joined { first: vec![reset(id)], rest } };
        let mut first = vec![event("hello", None, &json!({ "version": id.version }))];
        first
            .extend(self.kept.iter().filter(|(version, _)| *version > known.version).map(|(_, change)| change.clone()));
        if let Some(told) = self.told.as_deref().filter(|_| known.stats < id.stats) {
            let stats = self.stats.clone().unwrap_or_default();
            let mut rows = stat_rows(told, &stats, known.stats);
            rows.extend(unknown_rows(told, &stats));
            first.extend(stats_events(id, &rows));
        }
        Joined { first, rest }
    }
}

/// Gives the kernel the memory that nobody uses any more. The C library keeps what a thread has freed, but for the end: after a
/// look at thousands of rows that was 10 MB for good.
#[allow(unsafe_code)]
fn give_back() {
    // SAFETY: it touches only what is free, under the C library's own locks.
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    unsafe {
        nix::libc::malloc_trim(0);
    }
}

async fn asking(asking: &mut Option<Asking>) -> (Instant, Result<Stats, RuntimeError>) {
    match asking {
        Some(asking) => asking.await,
        None => std::future::pending().await,
    }
}

/// HAProxy's figures as events of bounded size.
fn stats_events(id: EventId, rows: &[serde_json::Value]) -> Vec<Bytes> {
    /// So many rows stay below the limit of an event, but for very long words.
    const ROWS: usize = 300;
    let events = rows.len().div_ceil(ROWS);
    // Only the last one says that all of them are known.
    let id_of = |at| (at + 1 == events).then_some(id);
    let event_of = |(at, rows): (usize, &[serde_json::Value])| event("stats", id_of(at), &json!({ "rows": rows }));
    rows.chunks(ROWS).enumerate().map(event_of).collect()
}

fn reset(id: EventId) -> Bytes {
    event("reset", Some(id), &json!({ "version": id.version }))
}

/// An event as the stream has it (HTML standard, section 9.2, "Server-sent events"). JSON has no line feed outside of its
/// strings, and none within them.
fn event(name: &str, id: Option<EventId>, data: &impl Serialize) -> Bytes {
    let data = serde_json::to_string(data).unwrap_or_else(|_| "{}".to_owned());
    let id = id.map(|id| format!("id: {id}\n")).unwrap_or_default();
    format!("event: {name}\n{id}data: {data}\n\n").into()
}
