//! The floor: the least that brings a change from etcd to HAProxy. A long poll, and for each event one connection to the
//! stats socket with the commands that a server needs. It keeps no state, checks nothing and writes no file.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{JoinHandle, sleep};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::Value;

use crate::wire::{Kept, cli};

/// How often a server that does not go at once is tried again, and how long after.
const TRIES: usize = 1000;
const TRY_AGAIN: Duration = Duration::from_millis(20);

/// The loop, on a thread of its own.
pub(crate) struct Floor {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<anyhow::Result<()>>,
}

impl Floor {
    /// Follows `prefix`, and adds servers to `backend` with `words` behind their address.
    pub(crate) fn start(
        etcd: SocketAddr,
        prefix: String,
        socket: PathBuf,
        backend: String,
        words: String,
    ) -> anyhow::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let mut connection = Kept::open(etcd)?;
        let now = connection.ask("GET", &format!("/v2/keys/{prefix}"), "", false)?;
        let mut index = now.etcd_index + 1;
        let is_over = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            while !is_over.load(Ordering::Relaxed) {
                let path = format!("/v2/keys/{prefix}?wait=true&recursive=true&waitIndex={index}");
                let Ok(answer) = connection.ask("GET", &path, "", false) else {
                    // The poll was quiet for long.
                    connection = Kept::open(etcd)?;
                    continue;
                };
                let event: Value = serde_json::from_str(&answer.body).context("etcd's event")?;
                let node = &event["node"];
                index = node["modifiedIndex"].as_u64().context("no modifiedIndex")? + 1;
                let address = node["key"].as_str().and_then(|key| key.rsplit('/').next()).context("no key")?;
                let name = format!("{backend}/{}", address.replace(':', "_"));
                match event["action"].as_str() {
                    Some("set") => {
                        let reply = cli(
                            &socket,
                            &format!(
                                "add server {name} {address} {words}; enable health {name}; set server {name} state ready"
                            ),
                        )?;
                        ensure!(reply.contains("New server registered."), "the floor's HAProxy: {reply:?}");
                    }
                    _ => remove(&socket, &name)?,
                }
            }
            Ok(())
        });
        Ok(Self { stop, thread })
    }

    /// Fails where the loop has ended.
    pub(crate) fn ensure_runs(self) -> anyhow::Result<Self> {
        if !self.thread.is_finished() {
            return Ok(self);
        }
        match self.thread.join() {
            Ok(result) => result.context("the floor's loop ended")?,
            Err(_) => anyhow::bail!("the floor's loop panicked"),
        }
        anyhow::bail!("the floor's loop ended");
    }

    pub(crate) fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn remove(socket: &std::path::Path, name: &str) -> anyhow::Result<()> {
    let mut reply = cli(socket, &format!("set server {name} state maint; del server {name}"))?;
    for _ in 0..TRIES {
        if reply.contains("Server deleted.") || reply.contains("No such server.") {
            return Ok(());
        }
        sleep(TRY_AGAIN);
        reply = cli(socket, &format!("del server {name}"))?;
    }
    anyhow::bail!("the floor's HAProxy keeps {name}: {reply:?}")
}
