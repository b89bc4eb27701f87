//! What the tests of this crate share: the real etcd, and servers that answer by script.

#![allow(dead_code, reason = "each test binary uses a part")]

pub(crate) mod etcd;
pub(crate) mod script;

use std::time::Duration;

use registry::{Store, StoreOptions};
use tokio::sync::mpsc::Receiver;
use tokio::time::timeout;

/// The limit on everything a test waits for.
pub(crate) const DEADLINE: Duration = Duration::from_secs(10);

/// A store over these endpoints with limits fit for a test: 500 ms for an attempt, 1 s for a long poll.
pub(crate) fn store(endpoints: &[&str]) -> Store {
    let mut options = StoreOptions::new(registry::parse_endpoints(&endpoints.join(",")).unwrap());
    options.request_timeout = Duration::from_millis(500);
    options.watch_timeout = Duration::from_secs(1);
    Store::new(options).unwrap()
}

/// The next message, or the end of the test.
pub(crate) async fn next<T>(receiver: &mut Receiver<T>) -> T {
    timeout(DEADLINE, receiver.recv()).await.expect("nothing came in time").expect("the sender is gone")
}
