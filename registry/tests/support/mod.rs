//! What the tests of this crate share: the real etcd, and servers that answer by script.

#![allow(dead_code, reason = "each test binary uses a part")]

#[path = "../../../tests/src/certs.rs"]
#[allow(unreachable_pub, reason = "a module of a library")]
pub(crate) mod certs;
pub(crate) mod etcd;
pub(crate) mod follower;
pub(crate) mod gate;
pub(crate) mod script;
#[path = "../../../tests/src/users.rs"]
#[allow(unreachable_pub, reason = "a module of a library")]
pub(crate) mod users;

use std::time::Duration;

use registry::{Api, ApiChoice, InstanceKey, Kept, Ownership, Poll, Position, Prefix, Store, StoreError, StoreOptions};
use tokio::sync::mpsc::Receiver;
use tokio::time::timeout;

/// The limit on everything a test waits for, on a machine that is busy with something else.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

/// The time to live of keys that are not to expire.
pub(crate) const TTL: Duration = Duration::from_secs(20);

/// How long a poll waits that stays quiet; what has happened already comes sooner.
pub(crate) const LONG_POLL: Duration = Duration::from_secs(3);

/// A store over these endpoints, by v2.
pub(crate) fn store(endpoints: &[&str]) -> Store {
    store_of(ApiChoice::Only(Api::V2), endpoints)
}

/// A store over these endpoints. An attempt has [`DEADLINE`]: the real etcd stands still while a slow disk writes.
pub(crate) fn store_of(api: ApiChoice, endpoints: &[&str]) -> Store {
    store_within(DEADLINE, LONG_POLL, api, endpoints)
}

/// A store over these endpoints with limits on an attempt and on a long poll.
pub(crate) fn store_within(request: Duration, watch: Duration, api: ApiChoice, endpoints: &[&str]) -> Store {
    let mut options = StoreOptions::new(registry::parse_endpoints(&endpoints.join(",")).unwrap());
    options.api = api;
    options.request_timeout = request;
    options.watch_timeout = watch;
    Store::new(options).unwrap()
}

/// [`Store::put`] with a lease of its own.
pub(crate) async fn put(store: &Store, key: &InstanceKey, value: &str) -> Result<Ownership, StoreError> {
    store.put(key, value, &store.grant(TTL).await?).await
}

/// [`Store::keep`] of one key, with a lease of its own.
pub(crate) async fn keep(store: &Store, key: &InstanceKey, owned: &Ownership) -> Result<Kept, StoreError> {
    store.keep(&[(key.clone(), *owned)], &store.grant(TTL).await?).await?.remove(0)
}

/// The next change after this position.
pub(crate) async fn poll(store: &Store, prefix: &Prefix, position: &Position) -> Result<Poll, StoreError> {
    store.changes(prefix, position.clone()).next().await
}

/// The next message, or the end of the test.
pub(crate) async fn next<T>(receiver: &mut Receiver<T>) -> T {
    timeout(DEADLINE, receiver.recv()).await.expect("nothing came in time").expect("the sender is gone")
}
