//! The store in memory: what is in it at the start, and how others see what it holds. Edge.

use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use discoverer::catalog::Kept;
use discoverer::config::Flags;
use registry::{InstanceKey, Prefix, Store};
use serde::{Deserialize, Serialize};
use tracing::info;

/// Where it is told what is registered.
pub(crate) const PATH: &str = "/api/v1/registry";

/// What is registered.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Held {
    entries: Vec<HeldKey>,
}

#[derive(Debug, Serialize, Deserialize)]
struct HeldKey {
    key: String,
    value: String,
    /// What is left of its life.
    ttl_ms: u64,
    created: u64,
}

/// A store in memory. What this agent had registered when the process ended is in it, so that the agent finds it as it would in
/// etcd, and takes it over.
pub(crate) fn store(flags: &Flags, before: Option<(&Kept, &str)>, ttl: Duration) -> Store {
    let Some((kept, agent)) = before else { return Store::in_memory(flags.watch_timeout) };
    let is_own = |record: &registry::Record| record.agent.as_deref() == Some(agent);
    let mut own: Vec<_> = kept.entries.iter().filter(|entry| !entry.suspect && is_own(&entry.record)).collect();
    own.sort_by_key(|entry| entry.created);
    let own: Vec<_> = own.into_iter().map(|entry| (&entry.key, entry.record.to_value())).collect();
    info!(keys = own.len(), "what was registered before is taken over");
    Store::in_memory_with(flags.watch_timeout, own.iter().map(|(key, value)| (*key, value.as_str(), ttl)))
}

/// Says what the store holds below a prefix.
pub(crate) fn routes(store: Store, prefix: Prefix) -> Router {
    Router::new().route(PATH, get(held)).with_state((store, prefix))
}

async fn held(State((store, prefix)): State<(Store, Prefix)>) -> Response {
    let mut entries = match store.list(&prefix).await {
        Ok(listing) => listing.entries,
        Err(error) => return (StatusCode::SERVICE_UNAVAILABLE, error.to_string()).into_response(),
    };
    entries.sort_by_key(registry::Entry::created_index);
    let milliseconds =
        |ttl: Option<Duration>| ttl.map_or(u64::MAX, |ttl| u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX));
    let entries = entries.into_iter().map(|entry| HeldKey {
        created: entry.created_index(),
        ttl_ms: milliseconds(entry.ttl),
        key: entry.path,
        value: entry.value,
    });
    Json(Held { entries: entries.collect() }).into_response()
}

impl Held {
    /// A store that holds the same.
    pub(crate) fn to_store(&self, prefix: &Prefix, watch_timeout: Duration) -> Store {
        /// Nothing lives longer.
        const LONGEST: u64 = 1000 * 60 * 60 * 24 * 365;
        let keys = self.entries.iter().filter_map(|held| Some((InstanceKey::parse(prefix, &held.key).ok()?, held)));
        let mut keys: Vec<_> = keys.collect();
        keys.sort_by_key(|(_, held)| held.created);
        let each =
            keys.iter().map(|(key, held)| (key, held.value.as_str(), Duration::from_millis(held.ttl_ms.min(LONGEST))));
        Store::in_memory_with(watch_timeout, each)
    }
}
