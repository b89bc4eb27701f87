//! Who says when something happened, each on a thread that does nothing else: Docker's events, etcd's keys; and the floor, which
//! is the least that leads from the one to the other.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;

use crate::wire::Kept;

/// An event of a container.
struct DockerEvent {
    at: Instant,
    action: String,
    id: String,
    signal: String,
}

/// Docker's events, one after the other; blocks.
struct Events {
    stream: BufReader<UnixStream>,
}

impl Events {
    fn open(socket: &Path) -> anyhow::Result<Self> {
        let mut stream = UnixStream::connect(socket).with_context(|| socket.display().to_string())?;
        let path = "/events?filters=%7B%22type%22%3A%5B%22container%22%5D%7D";
        stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: docker\r\n\r\n").as_bytes())?;
        let mut stream = BufReader::new(stream);
        let mut line = String::new();
        while line != "\r\n" {
            line.clear();
            ensure!(stream.read_line(&mut line)? > 0, "Docker's events ended");
        }
        Ok(Self { stream })
    }

    fn next(&mut self) -> anyhow::Result<DockerEvent> {
        loop {
            let mut line = String::new();
            ensure!(self.stream.read_line(&mut line)? > 0, "Docker's events ended");
            // What else there is are the sizes of the chunks and their ends.
            if !line.starts_with('{') {
                continue;
            }
            let at = Instant::now();
            let event: Value = serde_json::from_str(&line)?;
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let (action, id) = (text(&event["Action"]), text(&event["Actor"]["ID"]));
            return Ok(DockerEvent { at, action, id, signal: text(&event["Actor"]["Attributes"]["signal"]) });
        }
    }
}

/// Tells when the events of one container came.
pub(crate) struct EventClock {
    seen: Receiver<(Instant, String)>,
}

impl EventClock {
    pub(crate) fn start(socket: &Path, id: &str) -> anyhow::Result<Self> {
        let (mut events, id) = (Events::open(socket)?, id.to_owned());
        let (sender, seen) = channel();
        std::thread::spawn(move || {
            while let Ok(event) = events.next() {
                if event.id == id && sender.send((event.at, event.action)).is_err() {
                    return;
                }
            }
        });
        Ok(Self { seen })
    }

    /// When the next event of this kind came; those before it are passed over.
    pub(crate) fn next(&self, limit: Duration, action: &str) -> anyhow::Result<Instant> {
        loop {
            let (at, seen) = self.seen.recv_timeout(limit).with_context(|| format!("no event {action}"))?;
            if seen == action {
                return Ok(at);
            }
        }
    }
}

/// What happened to a key.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) at: Instant,
    action: String,
    key: String,
    value: String,
}

impl Seen {
    pub(crate) fn is_removal(&self) -> bool {
        matches!(self.action.as_str(), "delete" | "compareAndDelete" | "expire")
    }

    pub(crate) fn is_draining(&self) -> bool {
        !self.is_removal() && self.value.contains("draining")
    }

    pub(crate) fn is_running(&self) -> bool {
        !self.is_removal() && !self.is_draining()
    }
}

/// Tells when keys below a prefix changed.
pub(crate) struct KeyClock {
    seen: Receiver<Seen>,
    part: String,
}

impl KeyClock {
    /// Watches the keys that have `part` in their path.
    pub(crate) fn start(etcd: SocketAddr, prefix: &str, part: &str) -> anyhow::Result<Self> {
        let mut connection = Kept::open(etcd)?;
        let mut index = connection.ask("GET", &format!("/v2/keys/{prefix}"), "", false)?.etcd_index;
        let (sender, seen) = channel();
        let prefix = prefix.to_owned();
        std::thread::spawn(move || follow(etcd, connection, &prefix, &mut index, &sender));
        Ok(Self { seen, part: part.to_owned() })
    }

    /// The next change that is wanted; those before it are passed over.
    pub(crate) fn next(&self, limit: Duration, wanted: impl Fn(&Seen) -> bool) -> anyhow::Result<Seen> {
        let end = Instant::now() + limit;
        loop {
            match self.seen.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(seen) if seen.key.contains(&self.part) && wanted(&seen) => return Ok(seen),
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout) => bail!("no such change of a key in {limit:?}"),
                Err(RecvTimeoutError::Disconnected) => bail!("etcd's events ended"),
            }
        }
    }

    /// All that came by now.
    pub(crate) fn all(&self) -> Vec<Seen> {
        self.seen.try_iter().filter(|seen| seen.key.contains(&self.part)).collect()
    }
}

fn follow(etcd: SocketAddr, mut connection: Kept, prefix: &str, index: &mut u64, sender: &Sender<Seen>) {
    loop {
        let path = format!("/v2/keys/{prefix}?wait=true&recursive=true&waitIndex={}", *index + 1);
        let Ok(answer) = connection.ask("GET", &path, "", false) else {
            // The poll was quiet for long; or etcd is gone.
            let Ok(again) = Kept::open(etcd) else { return };
            connection = again;
            continue;
        };
        let at = Instant::now();
        let Ok(event) = serde_json::from_str::<Value>(&answer.body) else { return };
        let Some(modified) = event["node"]["modifiedIndex"].as_u64() else { return };
        *index = modified;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let (action, key, value) = (text(&event["action"]), text(&event["node"]["key"]), text(&event["node"]["value"]));
        if sender.send(Seen { at, action, key, value }).is_err() {
            return;
        }
    }
}

/// The floor: for each event one request to etcd over a connection that is open. It inspects nothing, asks no application and
/// keeps no state.
pub(crate) struct EventFloor;

impl EventFloor {
    /// Follows the events of the container `id`, or of all where that is empty, on a thread that ends with Docker or etcd.
    pub(crate) fn start(socket: &Path, etcd: SocketAddr, prefix: &str, id: &str) -> anyhow::Result<Self> {
        let (mut events, mut connection) = (Events::open(socket)?, Kept::open(etcd)?);
        let (prefix, wanted) = (prefix.to_owned(), id.to_owned());
        std::thread::spawn(move || -> anyhow::Result<()> {
            loop {
                let event = events.next()?;
                if !wanted.is_empty() && event.id != wanted {
                    continue;
                }
                let path = format!("/v2/keys/{prefix}/web/{}", event.id);
                match (event.action.as_str(), event.signal.as_str()) {
                    ("start", _) => drop(connection.ask("PUT", &path, "value=running", false)?),
                    ("kill", "15" | "9") => drop(connection.ask("PUT", &path, "value=draining", false)?),
                    ("die", _) => drop(connection.ask("DELETE", &path, "", false)?),
                    _ => {}
                }
            }
        });
        Ok(Self)
    }
}
