//! The tests' workshop: starts the real etcd, HAProxy and Docker beside the programs under test, drives them, and cleans up.
//!
//! It knows the programs only from outside (flags, keys, files, replies), so it must not depend on their crates. Everything
//! here panics with the reason when something is not as a test needs it: a panic is how a test says no.
#![allow(clippy::unwrap_used, clippy::missing_panics_doc)]

pub mod agent;
pub mod app;
pub mod backend;
pub mod between;
pub mod browser;
pub mod certs;
pub mod cluster;
pub mod commands;
pub mod deb_host;
pub mod discoverer;
pub mod dns;
pub mod docker;
pub mod docker_proxy;
pub mod etcd;
pub mod fake_docker;
pub mod fake_etcd;
pub mod haproxy;
pub mod history;
pub mod http;
pub mod load;
pub mod network;
pub mod ports;
pub mod process;
pub mod registrar;
pub mod shown;
pub mod site;
pub mod users;

use std::future::Future;
use std::path::PathBuf;
use std::pin::pin;
use std::time::{Duration, Instant};

/// How often a waiting test looks again.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Runs a whole test under its own deadline of `seconds`.
///
/// The body is still alive when the deadline's panic unwinds, so every process of the test prints its log on the way out.
pub async fn within(seconds: u64, body: impl Future<Output = ()>) {
    let mut body = pin!(body);
    if tokio::time::timeout(Duration::from_secs(seconds), body.as_mut()).await.is_err() {
        panic!("the test did not end within its {seconds} s");
    }
}

/// Waits until `condition` gives `Ok`, and returns what it gave; looks again every 20 ms.
///
/// `condition` says in its `Err` what it saw instead; the last of these is in the panic when `limit` is over.
pub async fn wait_until<T>(limit: Duration, what: &str, mut condition: impl AsyncFnMut() -> Result<T, String>) -> T {
    let start = Instant::now();
    loop {
        match condition().await {
            Ok(found) => return found,
            Err(seen) if start.elapsed() >= limit => {
                panic!("waited {limit:?}, but not: {what}\nlast seen: {seen}");
            }
            Err(_) => tokio::time::sleep(LOOK_AGAIN).await,
        }
    }
}

/// Looks for the whole of `span` that `condition` stays `Ok`; panics with what it saw when it does not.
///
/// For the few tests whose point is that something does *not* happen.
pub async fn stays_true(span: Duration, what: &str, mut condition: impl AsyncFnMut() -> Result<(), String>) {
    let start = Instant::now();
    while start.elapsed() < span {
        if let Err(seen) = condition().await {
            panic!("after {:?} no longer true: {what}\nseen: {seen}", start.elapsed());
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// Seconds as a duration: `secs(5)` reads better in a test than the long form.
pub const fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// The root of the workspace, where `demo` and `templates/` are.
pub fn workspace() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

/// The template that the project ships.
pub fn default_template() -> PathBuf {
    workspace().join("templates/haproxy.cfg.tera")
}
