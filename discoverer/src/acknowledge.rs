//! Says in etcd that this discoverer is there, how far it has come, and how what drains stands with its HAProxy. A task of its
//! own: neither etcd nor HAProxy holds up the loop, which only leaves the newest word here.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use registry::acknowledgement::Drain;
use registry::watch::Backoff;
use registry::{Acknowledgement, DiscovererId, InstanceAddress, Lease, Prefix, Store, StoreError};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tracing::{debug, info, warn};

use crate::drain::{Draining, Wanted, states};
use crate::haproxy::Workers;

/// How long the key lives after the last write: what one that has died is still waited for.
const TTL: Duration = Duration::from_secs(20);
/// HAProxy is asked, and etcd told, at most this often while something drains.
const EVERY: Duration = Duration::from_secs(1);
/// The same for what has been draining for long: an operator's drain may last for days.
const EVERY_AFTER_LONG: Duration = Duration::from_secs(5);
/// What "for long" is.
const LONG: Duration = Duration::from_secs(120);
/// The pauses while etcd takes nothing.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(5));

/// What the loop leaves here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Told {
    /// Every change up to this index of etcd was taken in, and HAProxy was told of it or could not be.
    pub(crate) index: u64,
    /// What drains since then.
    pub(crate) draining: Draining,
}

/// Who says it, and where.
pub(crate) struct Speaker {
    pub(crate) store: Store,
    pub(crate) prefix: Prefix,
    pub(crate) id: DiscovererId,
    pub(crate) workers: Workers,
}

/// What was written last.
struct Written {
    /// When it is to be written again, if nothing changes.
    refresh_at: Instant,
    draining: BTreeMap<InstanceAddress, Drain>,
    changes: u64,
}

impl Speaker {
    /// Goes on until nobody is left to tell it anything.
    pub(crate) async fn run(self, mut told: watch::Receiver<Told>) {
        // Before the first listing there is nothing to say, and whoever was here before has said what it knew.
        if told.changed().await.is_err() {
            return;
        }
        let mut written: Option<Written> = None;
        let mut lease = None;
        let mut pause = Backoff::new(PAUSES.0, PAUSES.1);
        let (mut store_trouble, mut haproxy_trouble) = (None, None);
        let mut draining_since = Instant::now();
        loop {
            let begun = Instant::now();
            let now = told.borrow_and_update().clone();
            let is_news = written.as_ref().is_none_or(|before| before.changes != now.draining.changes);
            if is_news {
                draining_since = begun;
            }
            let draining = self.ask(&now.draining, &mut haproxy_trouble).await;
            let is_due = is_news
                || written.as_ref().is_none_or(|before| before.draining != draining || before.refresh_at <= begun);
            let mut retry_at = None;
            if is_due {
                match self.publish(&mut lease, now.index, &draining).await {
                    Ok(()) => {
                        if store_trouble.take().is_some() {
                            info!("etcd takes again what this discoverer says of itself");
                        }
                        pause.reset();
                        debug!(index = now.index, draining = draining.len(), "acknowledged");
                        // Shortened by chance, so that many discoverers do not write in step.
                        let refresh_at = begun + (TTL / 3).mul_f64(rand::random_range(0.8..=1.0));
                        let changes = now.draining.changes;
                        written = Some(Written { refresh_at, draining: draining.clone(), changes });
                    }
                    Err(error) => {
                        if store_trouble.as_ref() != Some(&error) {
                            warn!(
                                error,
                                id = %self.id,
                                "etcd does not take what this discoverer says of itself, so that `registrar drain --wait` and \
                                 `registrar stop` do not know of it; trying again"
                            );
                            store_trouble = Some(error);
                        }
                        retry_at = Some(Instant::now() + pause.pause());
                    }
                }
            }
            let is_open = draining.values().any(|drain| !drain.is_done());
            let every = if draining_since + LONG <= begun { EVERY_AFTER_LONG } else { EVERY };
            let ask_at = is_open.then_some(begun + every);
            // What could not be written has a moment of its own.
            let refresh_at = written.as_ref().map(|written| written.refresh_at).filter(|_| retry_at.is_none());
            let next = [retry_at, ask_at, refresh_at].into_iter().flatten().min().unwrap_or(begun + EVERY);
            // The first word about what drains does not wait, the ones after it do.
            let soonest = if draining.is_empty() { begun } else { begun + EVERY };
            tokio::select! {
                changed = told.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    sleep_until(soonest).await;
                }
                () = sleep_until(next) => {}
            }
        }
    }

    /// Asks HAProxy how what drains stands; nobody where nothing does.
    async fn ask(&self, draining: &Draining, trouble: &mut Option<String>) -> BTreeMap<InstanceAddress, Drain> {
        if draining.instances.is_empty() {
            return BTreeMap::new();
        }
        let wanted = Wanted::of(draining);
        let loads = match self.workers.loads(|name, address| wanted.is_meant(name, address)).await {
            Ok(loads) => {
                *trouble = None;
                loads
            }
            Err(error) => {
                let error = error.to_string();
                if trouble.as_ref() != Some(&error) {
                    warn!(error, "HAProxy does not say how many sessions the draining instances have; asking again");
                    *trouble = Some(error);
                }
                None
            }
        };
        states(draining, loads.as_deref())
    }

    async fn publish(
        &self,
        lease: &mut Option<Lease>,
        index: u64,
        draining: &BTreeMap<InstanceAddress, Drain>,
    ) -> Result<(), String> {
        let write = async |lease: &mut Option<Lease>| {
            let says = Acknowledgement {
                api: self.store.api().await?,
                index,
                at: Some(Timestamp::now()),
                version: Some(env!("CARGO_PKG_VERSION").to_owned()),
                draining: draining.clone(),
            };
            let kept = match *lease {
                Some(kept) => kept,
                None => *lease.insert(self.store.grant(TTL).await?),
            };
            // What etcd does not take must not keep alive what was said before: then nobody is waited for in vain.
            self.store.publish(&self.prefix, &self.id, &says.to_value(), &kept).await?;
            self.store.keep(&[], &kept).await.map(drop)
        };
        let mut written = write(lease).await;
        if written == Err(StoreError::LeaseGone) {
            *lease = None;
            written = write(lease).await;
        }
        written.map_err(|error| error.to_string())
    }
}
