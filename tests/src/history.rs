//! All that happens below a directory of etcd, as a watcher sees it, with the moment: what a list shows too late, or never.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::task::JoinHandle;

use crate::etcd::v3;
use crate::http::{Connection, get};
use crate::wait_until;

/// The pause where etcd does not answer.
const TRY_AGAIN: Duration = Duration::from_millis(50);

/// One event.
#[derive(Debug, Clone)]
pub struct Event {
    /// When it came.
    pub at: Instant,
    /// `set`, `create`, `update`, `compareAndSwap`, `delete`, `compareAndDelete`, `expire`.
    pub action: String,
    /// The key's path.
    pub key: String,
    /// Its value; empty where the key is gone.
    pub value: String,
}

impl Event {
    /// Whether the key went.
    pub fn is_removal(&self) -> bool {
        matches!(self.action.as_str(), "delete" | "compareAndDelete" | "expire")
    }

    /// Whether the key is there and its record drains.
    pub fn is_draining(&self) -> bool {
        !self.is_removal() && self.value.contains(r#""status":"draining""#)
    }

    /// Whether the key is there and its record takes work.
    pub fn is_running(&self) -> bool {
        !self.is_removal() && !self.is_draining()
    }
}

/// The events since its start. Dropping it ends the watch.
pub struct History {
    seen: Arc<Mutex<Seen>>,
    task: JoinHandle<()>,
}

#[derive(Default)]
struct Seen {
    events: Vec<Event>,
    /// Why events may be missing: what is not among them may have happened all the same.
    lost: Option<String>,
}

impl History {
    /// Watches everything below `/service`.
    pub async fn start(etcd: SocketAddr) -> History {
        let reply = get(etcd, "/v2/keys/").await.expect("etcd answers");
        let seen = Arc::new(Mutex::new(Seen::default()));
        let into = Arc::clone(&seen);
        if !reply.body.starts_with('{') {
            let index = v3::index(etcd).await;
            return History { seen, task: tokio::spawn(follow_v3(etcd, index, into)) };
        }
        let mut index: u64 = reply.header("x-etcd-index").and_then(|index| index.parse().ok()).expect("an index");
        let task = tokio::spawn(async move {
            let mut connection = None;
            loop {
                let path = format!("/v2/keys/service?wait=true&recursive=true&waitIndex={}", index + 1);
                match poll(etcd, &mut connection, &path).await {
                    Some(body) if !body["node"]["modifiedIndex"].is_null() => {
                        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
                        index = body["node"]["modifiedIndex"].as_u64().unwrap_or(index + 1);
                        let (action, node) = (text(&body["action"]), &body["node"]);
                        let event =
                            Event { at: Instant::now(), action, key: text(&node["key"]), value: text(&node["value"]) };
                        into.lock().unwrap().events.push(event);
                    }
                    // etcd keeps 1000 events, and those after `index` are no longer among them.
                    Some(body) if body["errorCode"] == 401 => {
                        into.lock().unwrap().lost = Some(body.to_string());
                        return;
                    }
                    // The server ended a poll that was quiet for long, or it is away.
                    _ => {
                        connection = None;
                        tokio::time::sleep(TRY_AGAIN).await;
                    }
                }
            }
        });
        History { seen, task }
    }

    /// What happened to keys with `part` in their path, in its order. Panics where that is not known any more.
    pub fn of(&self, part: &str) -> Vec<Event> {
        let (lost, events) = {
            let seen = self.seen.lock().unwrap();
            let events = seen.events.iter().filter(|event| event.key.contains(part)).cloned().collect();
            (seen.lost.clone(), events)
        };
        assert!(lost.is_none(), "etcd no longer has the events that come next: {lost:?}");
        events
    }

    /// Waits for the first event of these keys that is `wanted`, and gives it.
    pub async fn wait(&self, limit: Duration, part: &str, what: &str, wanted: impl Fn(&Event) -> bool) -> Event {
        wait_until(limit, &format!("{part}: {what}"), async || {
            let events = self.of(part);
            events.iter().find(|event| wanted(event)).cloned().ok_or_else(|| format!("{events:?}"))
        })
        .await
    }
}

/// The same by v3.
async fn follow_v3(etcd: SocketAddr, mut index: u64, into: Arc<Mutex<Seen>>) {
    loop {
        if let Ok(mut watch) = v3::watch(etcd, "/service", index + 1).await {
            while let Ok(line) = watch.line().await {
                let (at, (events, last)) = (Instant::now(), v3::events(etcd, &line).await);
                index = last.unwrap_or(index);
                let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
                let events = events.into_iter().map(|event| {
                    let (action, node) = (text(&event["action"]), &event["node"]);
                    Event { at, action, key: text(&node["key"]), value: text(&node["value"]) }
                });
                into.lock().unwrap().events.extend(events);
            }
        }
        tokio::time::sleep(TRY_AGAIN).await;
    }
}

impl Drop for History {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn poll(etcd: SocketAddr, connection: &mut Option<Connection>, path: &str) -> Option<Value> {
    let kept = match connection {
        Some(kept) => kept,
        None => connection.insert(Connection::open(etcd).await.ok()?),
    };
    let reply = kept.exchange("GET", path, &[], "").await.ok()?;
    serde_json::from_str(&reply.body).ok()
}
