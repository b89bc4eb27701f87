//! A steady trickle of requests that counts every one that fails: bounded in rate, number and time.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::http::{self, Connection, Reply};
use crate::{secs, wait_until};

/// Between two requests of one client.
const PAUSE: Duration = Duration::from_millis(10);
/// A client stops by itself after that many requests, or that long.
const MOST_REQUESTS: usize = 12_000;
const LONGEST: Duration = Duration::from_secs(120);
/// One request, connecting included.
const REQUEST_LIMIT: Duration = Duration::from_secs(10);

/// What the clients of a load saw.
#[derive(Debug, Default)]
pub struct Report {
    /// How many answers of status 200 came, by body.
    pub answers: BTreeMap<String, u64>,
    /// Each request that did not end in a 200.
    pub failures: Vec<Failure>,
}

/// A request that did not end in a 200.
#[derive(Debug, Clone)]
pub struct Failure {
    /// When it was sent, since the start of its client.
    pub after: Duration,
    /// When it was sent.
    pub sent: Instant,
    /// When it was known to have failed.
    pub ended: Instant,
    /// What kind of failure it is.
    pub kind: Kind,
    /// What it got instead.
    pub what: String,
}

/// How a request can fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Nobody listens.
    Refused,
    /// The connection ended before the whole reply was there.
    BrokeOff,
    /// No reply in time.
    Silent,
    /// Another status.
    Status(u16),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.after, self.what)
    }
}

impl Report {
    /// How many answers of status 200 came.
    pub fn served(&self) -> u64 {
        self.answers.values().sum()
    }

    /// Panics unless at least `least` requests were served and none failed.
    pub fn assert_no_failure(&self, least: u64) {
        assert!(
            self.failures.is_empty(),
            "{} failed requests beside {} served:\n{}",
            self.failures.len(),
            self.served(),
            self.failures.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
        );
        assert!(self.served() >= least, "only {} requests were served", self.served());
    }
}

/// Running clients. They stop with [`Load::stop`], or when this is dropped.
pub struct Load {
    stop: watch::Sender<bool>,
    served: Arc<AtomicU64>,
    failed: Arc<AtomicU64>,
    clients: Vec<JoinHandle<Report>>,
}

impl Load {
    /// Starts two clients that open a connection for each request and two that keep theirs, each a request every 10 ms.
    pub fn start(address: SocketAddr) -> Load {
        Load::of(address, "/", 4)
    }

    /// The same with so many clients, of whom every other keeps its connection, and another path.
    pub fn of(address: SocketAddr, path: &'static str, clients: usize) -> Load {
        let (stop, stopped) = watch::channel(false);
        let (served, failed) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let client = |number: usize| {
            let counts = (Arc::clone(&served), Arc::clone(&failed));
            tokio::spawn(client((address, path), number % 2 == 1, stopped.clone(), counts))
        };
        let clients = (0..clients).map(client).collect();
        Load { stop, served, failed, clients }
    }

    /// How many requests failed so far.
    pub fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }

    /// Waits until `count` more requests have been served, by whomever.
    pub async fn wait_served(&self, count: u64) {
        let wanted = self.served.load(Ordering::Relaxed) + count;
        wait_until(secs(10), &format!("{count} more requests are served"), async || {
            let served = self.served.load(Ordering::Relaxed);
            if served >= wanted { Ok(()) } else { Err(format!("{served} of {wanted}, {} failed", self.failed())) }
        })
        .await;
    }

    /// [`Load::stop`] once `least` requests have been served in all.
    pub async fn stop_after(self, least: u64) -> Report {
        self.wait_served(least.saturating_sub(self.served.load(Ordering::Relaxed))).await;
        self.stop().await
    }

    /// Ends the clients after their current request, and gives what they saw together.
    pub async fn stop(self) -> Report {
        let _no_client_left = self.stop.send(true);
        let mut sum = Report::default();
        for client in self.clients {
            let report = client.await.expect("a load client panicked");
            for (body, count) in report.answers {
                *sum.answers.entry(body).or_default() += count;
            }
            sum.failures.extend(report.failures);
        }
        sum
    }
}

async fn client(
    (address, path): (SocketAddr, &str),
    keep_alive: bool,
    mut stop: watch::Receiver<bool>,
    (served, failed): (Arc<AtomicU64>, Arc<AtomicU64>),
) -> Report {
    let start = Instant::now();
    let mut report = Report::default();
    let mut kept = None;
    for _ in 0..MOST_REQUESTS {
        let sent = Instant::now();
        let request = async {
            if keep_alive { ask_kept(address, path, &mut kept).await } else { http::get(address, path).await }
        };
        let late = || io::Error::new(ErrorKind::TimedOut, format!("no reply in {REQUEST_LIMIT:?}"));
        let reply = tokio::time::timeout(REQUEST_LIMIT, request).await.unwrap_or_else(|_| Err(late()));
        let (kind, what) = match reply {
            Ok(reply) if reply.status == 200 => {
                served.fetch_add(1, Ordering::Relaxed);
                *report.answers.entry(reply.body).or_default() += 1;
                (None, String::new())
            }
            Ok(reply) => (Some(Kind::Status(reply.status)), format!("status {}", reply.status)),
            Err(error) => {
                let kind = match error.kind() {
                    ErrorKind::ConnectionRefused => Kind::Refused,
                    ErrorKind::TimedOut => Kind::Silent,
                    _ => Kind::BrokeOff,
                };
                kept = None;
                let which = if keep_alive { "kept" } else { "fresh" };
                (Some(kind), format!("{which} connection: {error}"))
            }
        };
        if let Some(kind) = kind {
            failed.fetch_add(1, Ordering::Relaxed);
            report.failures.push(Failure { after: sent - start, sent, ended: Instant::now(), kind, what });
        }
        if start.elapsed() > LONGEST || tokio::time::timeout(PAUSE, stop.wait_for(|stop| *stop)).await.is_ok() {
            break;
        }
    }
    report
}

async fn ask_kept(address: SocketAddr, path: &str, kept: &mut Option<Connection>) -> io::Result<Reply> {
    let mut connection = match kept.take() {
        Some(connection) => connection,
        None => Connection::open(address).await?,
    };
    let reply = connection.exchange("GET", path, &[], "").await?;
    // A server that announces the end of the connection has broken no promise.
    if reply.header("connection") != Some("close") {
        *kept = Some(connection);
    }
    Ok(reply)
}

/// Sends `count` requests one after another and tells how many answers of status 200 each body gave; anything else is counted
/// under its status or error.
pub async fn requests(address: SocketAddr, count: usize) -> BTreeMap<String, u64> {
    let mut seen = BTreeMap::new();
    for _ in 0..count {
        let what = match http::get(address, "/").await {
            Ok(reply) if reply.status == 200 => reply.body,
            Ok(reply) => format!("status {}", reply.status),
            Err(error) => format!("error: {error}"),
        };
        *seen.entry(what).or_default() += 1;
    }
    seen
}
