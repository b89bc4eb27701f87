//! Keeps one set of keys by one of etcd's APIs, or by both at once while a cluster is moved from one to the other: each API
//! holds its own keys.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use registry::{Entry, InstanceKey, Listing, Prefix, Store, StoreError, StoreKind};
use tracing::info;

use crate::config::EtcdFlags;
use crate::keeper::{Claim, Keeper, Told, WITHDRAW_LIMIT};
use crate::metrics::{EtcdOverview, Metrics};

/// Where keys are kept.
#[derive(Debug)]
pub struct Stores {
    /// What is written and read.
    pub first: Store,
    /// The other API, which is written as well.
    pub second: Option<Store>,
    /// The limit on a request to one member when the keys are removed at the end.
    pub hurried: Duration,
}

impl Stores {
    /// Those that the flags name; asks nobody anything.
    ///
    /// # Errors
    /// As [`Store::new`].
    pub fn new(etcd: &EtcdFlags) -> Result<Self, StoreError> {
        let second = etcd.second_store_options().map(Store::new).transpose()?;
        let hurried = etcd.etcd_timeout.min(WITHDRAW_LIMIT / etcd.endpoints.likely_members());
        Ok(Self { first: Store::new(etcd.store_options())?, second, hurried })
    }
}

impl From<Store> for Stores {
    /// One store, whose requests may take as long as all of the end may.
    fn from(first: Store) -> Self {
        Self { first, second: None, hurried: WITHDRAW_LIMIT }
    }
}

/// The keys, once or twice.
#[derive(Debug)]
pub struct Keepers {
    first: Keeper,
    /// The other API.
    second: Option<Keeper>,
}

impl Keepers {
    /// Prepares to keep keys below `prefix` that live for `ttl` after their last refresh, and counts what is done. Asks nobody anything.
    pub fn new(stores: Stores, prefix: &Prefix, claim: &Claim, ttl: Duration, metrics: &Metrics) -> Self {
        let keeper =
            |store| Keeper::new(store, prefix.clone(), stores.hurried, claim.clone(), ttl).counting(metrics.clone());
        Self { first: keeper(stores.first), second: stores.second.map(keeper) }
    }

    /// Whether nothing is left to be written, as far as the stores take it.
    pub(crate) fn is_settled(&self) -> bool {
        self.all().all(Keeper::is_settled)
    }

    /// The stores, to read from.
    pub fn stores(&self) -> Vec<Store> {
        self.all().map(|keeper| keeper.store().clone()).collect()
    }

    /// What keeps the keys.
    pub(crate) fn kind(&self) -> StoreKind {
        self.first.store().kind()
    }

    fn all(&self) -> impl Iterator<Item = &Keeper> {
        [Some(&self.first), self.second.as_ref()].into_iter().flatten()
    }

    fn all_mut(&mut self) -> impl Iterator<Item = &mut Keeper> {
        [Some(&mut self.first), self.second.as_mut()].into_iter().flatten()
    }

    /// As [`Keeper::want`].
    pub fn want(&mut self, key: &InstanceKey, value: Option<&Arc<str>>) {
        for keeper in self.all_mut() {
            keeper.want(key, value.cloned());
        }
    }

    /// As [`Keeper::take_over`], of an entry that the store of this number held.
    pub fn take_over(&mut self, store: usize, key: &InstanceKey, entry: &Entry) {
        if let Some(keeper) = self.all_mut().nth(store) {
            keeper.take_over(key, entry);
        }
    }

    /// Takes it that the store of this number has answered somebody else who asked there.
    pub(crate) fn heard(&mut self, store: usize) {
        if let Some(keeper) = self.all_mut().nth(store) {
            keeper.heard();
        }
    }

    /// How it stands with each store.
    pub(crate) fn overview(&self, with_counts: bool) -> Vec<EtcdOverview> {
        self.all().map(|keeper| keeper.overview(with_counts)).collect()
    }

    /// As [`Keeper::let_go`].
    pub fn let_go(&mut self, key: &InstanceKey) {
        for keeper in self.all_mut() {
            keeper.let_go(key);
        }
    }

    /// As [`Keeper::next`].
    pub async fn next(&mut self) -> Told {
        match &mut self.second {
            None => self.first.next().await,
            Some(second) => tokio::select! {
                told = self.first.next() => told,
                told = second.next() => told,
            },
        }
    }

    /// As [`Keeper::withdraw`].
    pub async fn withdraw(self, linger: Duration) {
        match self.second {
            None => self.first.withdraw(linger).await,
            Some(second) => {
                tokio::join!(self.first.withdraw(linger), second.withdraw(linger));
            }
        }
    }
}

/// What came of reading a store, by its number.
pub type Listed = (usize, Result<Listing, StoreError>);

/// Reads all that is below the prefix in each of these stores, at once: one that is away keeps no other waiting for longer
/// than its limits.
pub async fn list(stores: Vec<(usize, Store)>, prefix: Prefix) -> Vec<Listed> {
    let prefix = &prefix;
    let list = async |(number, store): (usize, Store)| {
        let listing = store.list(prefix).await;
        if listing.is_ok()
            && let Ok(Some(api)) = store.api().await
        {
            info!(%api, "etcd answers");
        }
        (number, listing)
    };
    join_all(stores.into_iter().map(list)).await
}
