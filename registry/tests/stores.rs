//! What holds of every store: etcd by v2, etcd by v3, and the one in memory.

#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::time::{Duration, Instant};

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use registry::{
    Api, ApiChoice, Cause, Deleted, DiscovererId, Event, InstanceKey, Lease, Poll, Prefix, Reason, Store, StoreError,
    Update, watch, watch_since,
};
use support::etcd::Etcd;
use support::follower::{Follower, Known};
use support::gate::Gate;
use support::script::{Meanwhile, Server, Step};
use support::{DEADLINE, TTL, keep, next, poll, put, store_of};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

/// Which store is tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    V2,
    V3,
    Memory,
}

/// A store, and the etcd behind it.
struct World {
    kind: Kind,
    etcd: Option<Etcd>,
    store: Store,
}

impl World {
    fn start(kind: Kind) -> Self {
        let etcd = (kind != Kind::Memory).then(Etcd::start);
        let store = match &etcd {
            Some(etcd) => store_of(choice(kind), &[&etcd.url()]),
            None => Store::in_memory(Duration::from_secs(1)),
        };
        Self { kind, etcd, store }
    }

    fn etcd(&mut self) -> &mut Etcd {
        self.etcd.as_mut().unwrap()
    }

    /// Someone else's client.
    fn other(&self) -> Store {
        match &self.etcd {
            Some(etcd) => store_of(choice(self.kind), &[&etcd.url()]),
            None => self.store.clone(),
        }
    }

    async fn lease(&self) -> Lease {
        self.store.grant(TTL).await.unwrap()
    }

    /// Lets etcd forget what happened up to now.
    async fn forget_history(&self) {
        if let (Kind::V3, Some(etcd)) = (self.kind, &self.etcd) {
            let position = self.store.list(&prefix()).await.unwrap().position;
            v3(etcd, "kv/compaction", &format!(r#"{{"revision":"{}"}}"#, position.index())).await;
            return;
        }
        let other = InstanceKey::parse(&"other".parse().unwrap(), "/other/10.9.9.9:1").unwrap();
        let mut writers = JoinSet::new();
        for _ in 0..8 {
            let (store, other) = (self.store.clone(), other.clone());
            writers.spawn(async move {
                for at in 0..150 {
                    put(&store, &other, &at.to_string()).await.unwrap();
                }
            });
        }
        while let Some(writer) = writers.join_next().await {
            writer.unwrap();
        }
    }
}

fn choice(kind: Kind) -> ApiChoice {
    ApiChoice::Only(if kind == Kind::V3 { Api::V3 } else { Api::V2 })
}

/// A request of v3 by hand.
async fn v3(etcd: &Etcd, method: &str, body: &str) -> String {
    let client = reqwest::Client::builder().no_proxy().tls_certs_only([]).build().unwrap();
    let request = client.post(format!("{}/v3/{method}", etcd.url())).body(body.to_owned());
    request.send().await.unwrap().error_for_status().unwrap().text().await.unwrap()
}

fn prefix() -> Prefix {
    "service".parse().unwrap()
}

fn key(below: &str) -> InstanceKey {
    InstanceKey::parse(&prefix(), &format!("/service/{below}")).unwrap()
}

fn removed(below: &str, cause: Cause) -> Event {
    Event::Removed { path: format!("/service/{below}"), cause }
}

/// Runs each test on every store that it names.
macro_rules! on {
    ($($kind:ident in $module:ident: $($name:ident)*;)*) => {$(
        mod $module {
            $(#[tokio::test]
            async fn $name() {
                super::$name(super::World::start(super::Kind::$kind)).await;
            })*
        }
    )*};
}

on! {
    V2 in v2:
        a_value_that_somebody_amends_is_one_event_at_the_index_that_is_given
        a_word_that_is_not_our_own_is_replaced_only_where_any_may_be
        what_discoverers_publish_is_seen_by_those_who_ask_for_it_and_wakes_nobody_else
        what_is_put_is_listed_and_read_and_an_absent_directory_is_empty
        create_takes_only_an_absent_key_and_keep_and_update_only_an_own_one
        keeping_a_key_wakes_nobody
        a_key_whose_time_ran_out_is_expired
        a_key_that_is_kept_does_not_expire
        two_puts_5_ms_apart_are_both_seen_again_and_again
        a_history_that_is_gone_means_list_again_and_nothing_is_lost
        what_was_missed_is_told_with_its_cause_before_the_first_listing
        what_is_hidden_is_not_seen
        a_watch_begun_while_etcd_is_away_waits_and_one_that_lost_it_goes_on
        what_happened_while_etcd_was_out_of_reach_is_told_as_it_happened_before_the_listing
        an_etcd_wiped_and_started_anew_is_noticed_and_followed
        a_write_whose_reply_was_lost_is_known_as_ones_own;
    V3 in v3:
        a_value_that_somebody_amends_is_one_event_at_the_index_that_is_given
        a_word_that_is_not_our_own_is_replaced_only_where_any_may_be
        what_discoverers_publish_is_seen_by_those_who_ask_for_it_and_wakes_nobody_else
        what_is_put_is_listed_and_read_and_an_absent_directory_is_empty
        create_takes_only_an_absent_key_and_keep_and_update_only_an_own_one
        keeping_a_key_wakes_nobody
        a_key_whose_time_ran_out_is_expired
        a_key_that_is_kept_does_not_expire
        two_puts_5_ms_apart_are_both_seen_again_and_again
        a_history_that_is_gone_means_list_again_and_nothing_is_lost
        what_was_missed_is_told_with_its_cause_before_the_first_listing
        what_is_hidden_is_not_seen
        a_watch_begun_while_etcd_is_away_waits_and_one_that_lost_it_goes_on
        what_happened_while_etcd_was_out_of_reach_is_told_as_it_happened_before_the_listing
        an_etcd_wiped_and_started_anew_is_noticed_and_followed
        a_write_whose_reply_was_lost_is_known_as_ones_own;
    Memory in memory:
        a_value_that_somebody_amends_is_one_event_at_the_index_that_is_given
        a_word_that_is_not_our_own_is_replaced_only_where_any_may_be
        what_discoverers_publish_is_seen_by_those_who_ask_for_it_and_wakes_nobody_else
        what_is_put_is_listed_and_read_and_an_absent_directory_is_empty
        create_takes_only_an_absent_key_and_keep_and_update_only_an_own_one
        keeping_a_key_wakes_nobody
        a_key_whose_time_ran_out_is_expired
        a_key_that_is_kept_does_not_expire
        two_puts_5_ms_apart_are_both_seen_again_and_again
        a_history_that_is_gone_means_list_again_and_nothing_is_lost
        what_was_missed_is_told_with_its_cause_before_the_first_listing
        what_is_hidden_is_not_seen;
}

async fn what_is_put_is_listed_and_read_and_an_absent_directory_is_empty(world: World) {
    let store = &world.store;
    let empty = store.list(&prefix()).await.unwrap();
    assert_eq!((empty.entries.len(), empty.position.cluster_id().is_some()), (0, true));
    assert_eq!(store.get(&key("10.0.0.1:80")).await.unwrap(), None);

    for below in ["web/10.0.0.1:80", "[::1]:80", "10.0.0.1:80"] {
        put(store, &key(below), "running").await.unwrap();
    }
    // Neighbours that begin alike.
    for other in ["services", "servic", "service-2"] {
        let other: Prefix = other.parse().unwrap();
        let path = format!("{}/10.0.0.1:80", other.path());
        put(store, &InstanceKey::parse(&other, &path).unwrap(), "running").await.unwrap();
    }
    let mut listing = world.other().list(&prefix()).await.unwrap();
    let paths: Vec<_> = listing.entries.iter().map(|entry| entry.path.as_str()).collect();
    assert_eq!(paths, ["/service/10.0.0.1:80", "/service/[::1]:80", "/service/web/10.0.0.1:80"]);
    assert!(listing.position.index() >= empty.position.index() + 3);
    let entry = store.get(&key("web/10.0.0.1:80")).await.unwrap().unwrap();
    assert_eq!(entry.value, "running");
    store.add_times(&mut listing.entries).await.unwrap();
    for entry in &listing.entries {
        assert!(entry.ttl.is_some_and(|ttl| ttl > Duration::from_secs(15) && ttl <= TTL), "{:?}", entry.ttl);
    }
}

async fn create_takes_only_an_absent_key_and_keep_and_update_only_an_own_one(world: World) {
    let (store, other) = (&world.store, world.other());
    let key = key("10.0.0.1:80");
    let keys = |owned| [(key.clone(), owned)];
    let lease = world.lease().await;
    let first = store.create(&key, "first", &lease).await.unwrap();
    let others = other.grant(TTL).await.unwrap();
    assert!(matches!(other.create(&key, "first", &others).await, Err(StoreError::Taken { .. })));
    let kept = store.keep(&keys(first), &lease).await.unwrap().remove(0).unwrap();
    assert!(kept.value.is_none_or(|value| value == "first"));
    // Someone sets another value in place: the key stays ours, and what it says now comes back.
    let read = other.get(&key).await.unwrap().unwrap();
    other.amend(&key, "draining", &read).await.unwrap();
    assert!(matches!(other.amend(&key, "x", &read).await, Err(StoreError::Contended { .. })));
    let kept = store.keep(&keys(kept.ownership), &lease).await.unwrap().remove(0).unwrap();
    assert_eq!(kept.value.as_deref(), Some("draining"));
    let first = store.update(&key, "changed", &lease, &kept.ownership, None).await.unwrap();
    assert_eq!(other.get(&key).await.unwrap().unwrap().value, "changed");

    let second = other.put(&key, "second", &others).await.unwrap();
    let kept = store.keep(&keys(first), &lease).await.unwrap().remove(0);
    assert!(matches!(kept, Err(StoreError::Taken { .. })), "{kept:?}");
    assert!(matches!(store.update(&key, "x", &lease, &first, None).await, Err(StoreError::Taken { .. })));
    assert_eq!(store.delete(&key, &first).await.unwrap(), Deleted::NotOurs);
    assert_eq!(store.get(&key).await.unwrap().unwrap().value, "second");

    assert_eq!(other.delete(&key, &second).await.unwrap(), Deleted::Done);
    assert_eq!(other.delete(&key, &second).await.unwrap(), Deleted::AlreadyGone);
    let kept = other.keep(&keys(second), &others).await.unwrap().remove(0);
    assert!(matches!(kept, Err(StoreError::Lost { .. })), "{kept:?}");
    assert!(matches!(other.update(&key, "x", &others, &second, None).await, Err(StoreError::Lost { .. })));
    assert!(matches!(other.amend(&key, "x", &read).await, Err(StoreError::Lost { .. })));
}

async fn a_value_that_somebody_amends_is_one_event_at_the_index_that_is_given(world: World) {
    let (store, other) = (&world.store, world.other());
    let key = key("web/10.0.0.1:80");
    put(store, &key, "one").await.unwrap();
    let from = store.list(&prefix()).await.unwrap().position;
    let mut before = from.index();
    for value in ["two", "two"] {
        let entry = other.get(&key).await.unwrap().unwrap();
        let index = other.amend(&key, value, &entry).await.unwrap();
        assert!(index > before, "also where it says so already");
        before = index;
    }
    let mut changes = store.changes(&prefix(), from);
    let mut seen = Vec::new();
    while seen.len() < 2 {
        let Poll::Events(events, position) = changes.next().await.unwrap() else { panic!("no event") };
        seen.extend(events);
        assert!(position.index() <= before && (seen.len() < 2 || position.index() == before), "{position:?}");
    }
    assert!(seen.iter().all(|event| matches!(event, Event::Put(entry) if entry.value == "two")), "{seen:?}");
}

async fn a_word_that_is_not_our_own_is_replaced_only_where_any_may_be(world: World) {
    let (store, lease) = (&world.store, world.lease().await);
    let key = key("web/10.0.0.1:80");
    let owned = store.put(&key, "running", &lease).await.unwrap();
    let entry = store.get(&key).await.unwrap().unwrap();
    world.other().amend(&key, "draining", &entry).await.unwrap();
    let own = ["running".into()];
    let changed = store.update(&key, "heavier", &lease, &owned, Some(&own)).await;
    assert!(matches!(changed, Err(StoreError::Changed { .. })), "{changed:?}");
    assert_eq!(store.get(&key).await.unwrap().unwrap().value, "draining");
    let own = ["running".into(), "draining".into()];
    let owned = store.update(&key, "heavier", &lease, &owned, Some(&own)).await.unwrap();
    let entry = store.get(&key).await.unwrap().unwrap();
    assert_eq!(entry.value, "heavier");
    world.other().amend(&key, "draining", &entry).await.unwrap();
    store.update(&key, "lighter", &lease, &owned, None).await.unwrap();
    assert_eq!(store.get(&key).await.unwrap().unwrap().value, "lighter");
}

async fn what_discoverers_publish_is_seen_by_those_who_ask_for_it_and_wakes_nobody_else(world: World) {
    let store = &world.store;
    let (short, long): (Prefix, Prefix) = ("prod".parse().unwrap(), "prod/web".parse().unwrap());
    assert_eq!(store.published(&short).await, Ok(Vec::new()));
    let [one, two] = ["lb-1:a", "lb-2:b"].map(|id| id.parse::<DiscovererId>().unwrap());
    let from = store.list(&short).await.unwrap().position;
    let lease = world.lease().await;
    store.publish(&short, &two, "2", &lease).await.unwrap();
    store.publish(&short, &one, "1", &lease).await.unwrap();
    store.publish(&long, &one, "other", &lease).await.unwrap();
    store.publish(&short, &one, "1 again", &lease).await.unwrap();
    // Nothing else need be kept with that lease.
    assert_eq!(store.keep(&[], &lease).await, Ok(Vec::new()));
    let said = |prefix: &Prefix, id: &DiscovererId, value: &str| (prefix.clone(), id.clone(), value.to_owned());
    let all = vec![said(&short, &one, "1 again"), said(&short, &two, "2"), said(&long, &one, "other")];
    assert_eq!(store.published(&short).await, Ok(all));
    assert_eq!(store.published(&long).await, Ok(vec![said(&long, &one, "other")]));
    assert_eq!(store.published(&"pro".parse().unwrap()).await, Ok(Vec::new()));
    assert_eq!(store.list(&short).await.unwrap().entries, Vec::new());
    let key = InstanceKey::parse(&short, "/prod/10.0.0.1:80").unwrap();
    put(store, &key, "running").await.unwrap();
    let mut changes = store.changes(&short, from);
    let events = loop {
        match changes.next().await.unwrap() {
            Poll::Events(events, _) if events.is_empty() => {}
            Poll::Quiet(_) => {}
            Poll::Events(events, _) => break events,
            Poll::ListAgain(reason) => panic!("{reason}"),
        }
    };
    assert!(matches!(&events[..], [Event::Put(entry)] if entry.path == key.path()), "{events:?}");

    // One who says nothing any more is gone.
    let short_lived = store.grant(Duration::from_secs(1)).await.unwrap();
    store.publish(&short, &two, "2", &short_lived).await.unwrap();
    let deadline = Instant::now() + DEADLINE;
    while store.published(&short).await.unwrap().len() == 3 {
        assert!(Instant::now() < deadline, "it does not go");
        tokio::task::yield_now().await;
    }
}

async fn keeping_a_key_wakes_nobody(world: World) {
    let store = &world.store;
    let lease = world.lease().await;
    let key = key("10.0.0.1:80");
    let owned = store.put(&key, "running", &lease).await.unwrap();
    let mut changes = store.changes(&prefix(), store.list(&prefix()).await.unwrap().position);
    let (poll, kept) = tokio::join!(changes.next(), async {
        let kept = store.keep(&[(key.clone(), owned)], &lease).await?.remove(0)?;
        store.keep(&[(key.clone(), kept.ownership)], &lease).await?.remove(0)
    });
    assert!(matches!(poll.unwrap(), Poll::Quiet(_)));
    let changed = store.update(&key, "draining", &lease, &kept.unwrap().ownership, None).await.unwrap();
    let Poll::Events(events, _) = changes.next().await.unwrap() else { panic!("no event") };
    assert!(matches!(&events[..], [Event::Put(entry)] if entry.value == "draining"), "{events:?}");
    store.delete(&key, &changed).await.unwrap();
    let Poll::Events(events, _) = changes.next().await.unwrap() else { panic!("no event") };
    assert_eq!(events, [removed("10.0.0.1:80", Cause::Deleted)]);
    assert!(matches!(changes.next().await.unwrap(), Poll::Quiet(_)));
}

async fn a_key_whose_time_ran_out_is_expired(world: World) {
    let store = &world.store;
    let mut follower = Follower::start(store, prefix());
    let lease = store.grant(Duration::from_millis(200)).await.unwrap();
    store.put(&key("10.0.0.1:80"), "running", &lease).await.unwrap();
    loop {
        if let Update::Event { event: event @ Event::Removed { .. }, .. } = next(&mut follower.updates).await {
            assert_eq!(event, removed("10.0.0.1:80", Cause::Expired));
            break;
        }
    }
}

async fn a_key_that_is_kept_does_not_expire(world: World) {
    let store = &world.store;
    let lease = store.grant(Duration::from_secs(10)).await.unwrap();
    let (kept, left) = (key("10.0.0.1:80"), key("10.0.0.2:80"));
    let mut owned = store.put(&kept, "running", &lease).await.unwrap();
    put_for(store, &left, Duration::from_secs(10)).await;
    let mut changes = store.changes(&prefix(), store.list(&prefix()).await.unwrap().position);
    let mut keeping = JoinSet::new();
    let (at_work, by, key) = (store.clone(), lease, kept.clone());
    keeping.spawn(async move {
        loop {
            owned = at_work.keep(&[(key.clone(), owned)], &by).await.unwrap().remove(0).unwrap().ownership;
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    });
    // Until the other one has gone, and some time after it.
    let mut after = 0;
    while after < 2 {
        match changes.next().await.unwrap() {
            Poll::Quiet(_) => after += usize::from(after > 0),
            Poll::Events(events, _) => {
                assert_eq!(events, [removed("10.0.0.2:80", Cause::Expired)]);
                after = 1;
            }
            Poll::ListAgain(reason) => panic!("{reason}"),
        }
    }
    assert!(keeping.try_join_next().is_none(), "it could not be kept");
    assert!(store.get(&kept).await.unwrap().is_some());
}

async fn put_for(store: &Store, key: &InstanceKey, ttl: Duration) {
    store.put(key, "running", &store.grant(ttl).await.unwrap()).await.unwrap();
}

async fn two_puts_5_ms_apart_are_both_seen_again_and_again(world: World) {
    let store = &world.store;
    let mut follower = Follower::start(store, prefix());
    follower.until(|f| f.listings == 1).await;
    for round in 0..20 {
        let value = round.to_string();
        let (a, b) = (key("10.0.0.1:80"), key("web/10.0.0.2:80"));
        tokio::join!(
            async {
                put(store, &a, &value).await.unwrap();
                tokio::time::sleep(Duration::from_millis(5)).await;
                put(store, &b, &value).await.unwrap();
            },
            follower.until(|f| f.knows("/service/10.0.0.1:80", &value) && f.knows("/service/web/10.0.0.2:80", &value)),
        );
    }
    assert_eq!((follower.listings, follower.outages.len()), (1, 0));
}

async fn a_history_that_is_gone_means_list_again_and_nothing_is_lost(world: World) {
    let store = &world.store;
    let gone = put(store, &key("10.0.0.1:80"), "before").await.unwrap();
    let position = store.list(&prefix()).await.unwrap().position;
    for at in 2..6 {
        put(store, &key(&format!("10.0.0.{at}:80")), "before").await.unwrap();
    }
    world.forget_history().await;
    store.delete(&key("10.0.0.1:80"), &gone).await.unwrap();
    put(store, &key("10.0.0.9:80"), "after").await.unwrap();
    assert_eq!(poll(store, &prefix(), &position).await.unwrap(), Poll::ListAgain(Reason::HistoryCleared));

    let listing = store.list(&prefix()).await.unwrap();
    let mut changes = store.changes(&prefix(), listing.position.clone());
    let mut known = Known::default();
    known.list(listing);
    assert_eq!(known.0.len(), 5);
    put(store, &key("10.0.0.8:80"), "later").await.unwrap();
    let Poll::Events(events, _) = changes.next().await.unwrap() else { panic!("no event") };
    events.into_iter().for_each(|event| known.event(event));
    let mut expected = Known::default();
    expected.list(store.list(&prefix()).await.unwrap());
    assert_eq!(known, expected);
}

async fn what_was_missed_is_told_with_its_cause_before_the_first_listing(world: World) {
    let store = &world.store;
    let gone = put(store, &key("10.0.0.1:80"), "x").await.unwrap();
    // It is there while the listing is made, and when the other one is deleted.
    put_for(store, &key("10.0.0.2:80"), Duration::from_secs(6)).await;
    let since = store.list(&prefix()).await.unwrap().position;
    store.delete(&key("10.0.0.1:80"), &gone).await.unwrap();
    while store.get(&key("10.0.0.2:80")).await.unwrap().is_some() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    put(store, &key("10.0.0.3:80"), "x").await.unwrap();
    let told = async |since| {
        let (sender, mut updates) = mpsc::channel(1);
        let store = store.clone();
        tokio::spawn(
            async move { watch_since(store, prefix(), since, sender, &tokio::sync::Notify::new(), |_| {}).await },
        );
        let mut told = Vec::new();
        loop {
            match next(&mut updates).await {
                Update::Event { event: Event::Removed { path, cause }, .. } => told.push(format!("{path} {cause:?}")),
                Update::Event { event: Event::Put(entry), .. } => told.push(entry.path),
                Update::Listing(listing) => {
                    told.push(format!("{} listed", listing.entries.len()));
                    return told;
                }
                other => panic!("{other:?}"),
            }
        }
    };
    let all = ["/service/10.0.0.1:80 Deleted", "/service/10.0.0.2:80 Expired", "/service/10.0.0.3:80", "1 listed"];
    assert_eq!(told(Some(since.clone())).await, all);
    assert_eq!(told(None).await, ["1 listed"]);
    world.forget_history().await;
    assert_eq!(told(Some(since)).await, ["1 listed"], "it has been forgotten");
}

async fn what_is_hidden_is_not_seen(world: World) {
    let store = &world.store;
    let hidden: Prefix = "service".parse().unwrap();
    let mut changes = store.changes(&prefix(), store.list(&prefix()).await.unwrap().position);
    // No key of an instance has such a name; somebody may write one all the same.
    match (&world.etcd, world.kind) {
        (Some(etcd), Kind::V3) => {
            // "/service/_x/10.0.0.1:80" and "x"
            v3(etcd, "kv/put", r#"{"key":"L3NlcnZpY2UvX3gvMTAuMC4wLjE6ODA=","value":"eA=="}"#).await;
        }
        (Some(etcd), _) => {
            let client = reqwest::Client::builder().no_proxy().tls_certs_only([]).build().unwrap();
            let url = format!("{}/v2/keys/service/_x/10.0.0.1:80", etcd.url());
            client.put(url).form(&[("value", "x")]).send().await.unwrap().error_for_status().unwrap();
        }
        // Nobody else can write to it.
        (None, _) => assert!(InstanceKey::parse(&hidden, "/service/_x/10.0.0.1:80").is_err()),
    }
    put(store, &key("10.0.0.1:80"), "running").await.unwrap();
    let seen = loop {
        match changes.next().await.unwrap() {
            Poll::Events(events, _) if events.is_empty() => {}
            Poll::Events(events, _) => break events,
            other => panic!("{other:?}"),
        }
    };
    assert!(matches!(&seen[..], [Event::Put(entry)] if entry.path == "/service/10.0.0.1:80"), "{seen:?}");
    assert_eq!(store.list(&prefix()).await.unwrap().entries.len(), 1);
}

async fn a_watch_begun_while_etcd_is_away_waits_and_one_that_lost_it_goes_on(mut world: World) {
    let store = world.store.clone();
    world.etcd().stop();
    let mut follower = Follower::start(&store, prefix());
    follower.until(|f| f.outages.len() == 1).await;
    assert!(follower.outages[0].contains(&world.etcd().url()), "{:?}", follower.outages);
    world.etcd().run();
    follower.until(|f| f.listings == 1).await;
    put(&store, &key("10.0.0.1:80"), "before").await.unwrap();
    follower.until(|f| f.knows("/service/10.0.0.1:80", "before")).await;

    world.etcd().stop();
    follower.until(|f| f.outages.len() > 1).await;
    assert!(follower.knows("/service/10.0.0.1:80", "before"), "an outage removes nothing");
    world.etcd().run();
    put(&store, &key("10.0.0.2:80"), "after").await.unwrap();
    follower.until(|f| f.knows("/service/10.0.0.2:80", "after") && f.knows("/service/10.0.0.1:80", "before")).await;
}

async fn what_happened_while_etcd_was_out_of_reach_is_told_as_it_happened_before_the_listing(world: World) {
    let url = world.etcd.as_ref().unwrap().url();
    let mut gate = Gate::open(&url).await;
    let removed_later = put(&world.store, &key("10.0.0.1:80"), "goes").await.unwrap();
    put_for(&world.store, &key("10.0.0.2:80"), Duration::from_secs(8)).await;
    let (sender, mut updates) = mpsc::channel(16);
    tokio::spawn(watch(store_of(choice(world.kind), &[&gate.url()]), prefix(), sender));
    assert!(matches!(next(&mut updates).await, Update::Listing(listing) if listing.entries.len() == 2));
    gate.shut();
    assert!(matches!(next(&mut updates).await, Update::Unreachable { .. }));
    world.store.delete(&key("10.0.0.1:80"), &removed_later).await.unwrap();
    put(&world.store, &key("10.0.0.3:80"), "comes").await.unwrap();
    while world.store.get(&key("10.0.0.2:80")).await.unwrap().is_some() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    gate.open_again().await;
    let mut told = Vec::new();
    let listing = loop {
        match next(&mut updates).await {
            Update::Event { event: Event::Put(entry), .. } => told.push((entry.path, None)),
            Update::Event { event: Event::Removed { path, cause }, .. } => told.push((path, Some(cause))),
            Update::Listing(listing) => break listing,
            Update::Unreachable { .. } => {}
            other => panic!("{other:?}"),
        }
    };
    let path = |number: u8| format!("/service/10.0.0.{number}:80");
    assert_eq!(told, [(path(1), Some(Cause::Deleted)), (path(3), None), (path(2), Some(Cause::Expired))]);
    assert_eq!(listing.entries.iter().map(|entry| entry.path.clone()).collect::<Vec<_>>(), [path(3)]);

    // What etcd has forgotten is not waited for.
    gate.shut();
    assert!(matches!(next(&mut updates).await, Update::Unreachable { .. }));
    put(&world.store, &key("10.0.0.4:80"), "comes").await.unwrap();
    world.forget_history().await;
    gate.open_again().await;
    let listing = loop {
        match next(&mut updates).await {
            Update::Listing(listing) => break listing,
            Update::Unreachable { .. } => {}
            // A compaction keeps the revision that it names.
            Update::Event { event: Event::Put(_), .. } if world.kind == Kind::V3 => {}
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(listing.entries.len(), 2);
}

async fn an_etcd_wiped_and_started_anew_is_noticed_and_followed(mut world: World) {
    let store = world.store.clone();
    for same_id in [true, false] {
        put(&store, &key("10.0.0.1:80"), "older").await.unwrap();
        put(&store, &key("10.0.0.1:80"), "old").await.unwrap();
        let old = store.list(&prefix()).await.unwrap().position;
        let mut follower = Follower::start(&store, prefix());
        follower.until(|f| f.listings == 1).await;
        world.etcd().wipe(same_id);
        let new = store.list(&prefix()).await.unwrap().position;
        assert_eq!(new.cluster_id() == old.cluster_id(), same_id);
        assert!(new.index() < old.index());
        let reason = if same_id { Reason::IndexFell } else { Reason::OtherCluster };
        assert_eq!(poll(&store, &prefix(), &old).await.unwrap(), Poll::ListAgain(reason));
        follower.until(|f| f.known == Known::default()).await;
        put(&store, &key("10.0.0.2:80"), "new").await.unwrap();
        follower.until(|f| f.knows("/service/10.0.0.2:80", "new")).await;
    }
}

async fn a_write_whose_reply_was_lost_is_known_as_ones_own(world: World) {
    let url = world.etcd.as_ref().unwrap().url();
    let address = url.replace("http://", "");
    // Each store sends its first request to a server that hands it on and loses the reply, twice, then goes on to etcd.
    let losing = async || {
        let server = Server::start(vec![Step::ForwardAndLoseReply(address.clone())]).await;
        let store = store_of(choice(world.kind), &[&server.url(), &url]);
        (server, store)
    };
    let direct = &world.store;
    let key = key("10.0.0.1:80");
    let keys = |owned| [(key.clone(), owned)];
    let lease = world.lease().await;
    let others = direct.grant(TTL).await.unwrap();

    let (server, store) = losing().await;
    let owned = store.create(&key, "agent-1", &lease).await.unwrap();
    assert_eq!(server.requests(), 2);
    let (_server, store) = losing().await;
    assert!(matches!(store.create(&key, "agent-2", &others).await, Err(StoreError::Taken { .. })));
    let (_server, store) = losing().await;
    let owned = store.keep(&keys(owned), &lease).await.unwrap().remove(0).unwrap().ownership;
    let (_server, store) = losing().await;
    let owned = store.update(&key, "other", &lease, &owned, None).await.unwrap();
    let (_server, store) = losing().await;
    assert_eq!(store.delete(&key, &owned).await.unwrap(), Deleted::Done);
    assert_eq!(direct.get(&key).await.unwrap(), None);

    let (_server, store) = losing().await;
    let owned = store.put(&key, "running", &lease).await.unwrap();
    let owned = direct.keep(&keys(owned), &lease).await.unwrap().remove(0).unwrap().ownership;

    // With no other endpoint the write fails; the next one finds it done.
    let lost = Server::start(vec![Step::ForwardAndLoseReply(address.clone())]).await;
    let alone = store_of(choice(world.kind), &[&lost.url()]);
    assert!(matches!(alone.update(&key, "b", &lease, &owned, None).await, Err(StoreError::NoAnswer(_))));
    let owned = direct.update(&key, "b", &lease, &owned, None).await.unwrap();
    assert_eq!(direct.delete(&key, &owned).await.unwrap(), Deleted::Done);
}

/// What happens to keys.
#[derive(Debug, Clone)]
enum Deed {
    Put(usize, u8),
    Remove(usize),
    ListAgain,
}

const PLACES: [&str; 5] = ["10.0.0.1:80", "10.0.0.2:80", "web/10.0.0.1:80", "web/10.0.0.2:80", "db/10.0.0.1:80"];

fn deeds() -> impl Strategy<Value = Vec<Deed>> {
    let deed = prop_oneof![
        6 => (0..PLACES.len(), any::<u8>()).prop_map(|(at, value)| Deed::Put(at, value)),
        3 => (0..PLACES.len()).prop_map(Deed::Remove),
        2 => Just(Deed::ListAgain),
    ];
    proptest::collection::vec(deed, 0..25)
}

#[test]
fn a_listing_and_the_events_after_it_give_the_later_listing_with_a_new_listing_at_any_point() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    for kind in [Kind::V2, Kind::V3, Kind::Memory] {
        let world = World::start(kind);
        let store = &world.store;
        let config = Config { cases: 25, failure_persistence: None, ..Config::default() };
        TestRunner::new(config)
            .run(&deeds(), |deeds| {
                runtime.block_on(async {
                    let mut known = Known::default();
                    let listing = store.list(&prefix()).await.unwrap();
                    let mut changes = store.changes(&prefix(), listing.position.clone());
                    known.list(listing);
                    for deed in &deeds {
                        match deed {
                            Deed::Put(at, value) => {
                                put(store, &key(PLACES[*at]), &value.to_string()).await.unwrap();
                            }
                            Deed::Remove(at) => {
                                if let Some(entry) = store.get(&key(PLACES[*at])).await.unwrap() {
                                    store.delete(&key(PLACES[*at]), &entry.ownership()).await.unwrap();
                                }
                            }
                            Deed::ListAgain => {
                                let listing = store.list(&prefix()).await.unwrap();
                                changes = store.changes(&prefix(), listing.position.clone());
                                known.list(listing);
                            }
                        }
                    }
                    let marker = key("10.255.255.255:1");
                    let owned = put(store, &marker, "end").await.unwrap();
                    while !known.0.contains_key(&marker.path()) {
                        let Poll::Events(events, _) = changes.next().await.unwrap() else {
                            panic!("{kind:?}: the marker did not come");
                        };
                        events.into_iter().for_each(|event| known.event(event));
                    }
                    let mut expected = Known::default();
                    expected.list(store.list(&prefix()).await.unwrap());
                    assert_eq!(known, expected, "{kind:?} after {deeds:?}");
                    store.delete(&marker, &owned).await.unwrap();
                });
                Ok(())
            })
            .unwrap();
    }
}

#[tokio::test]
async fn v3_keeps_all_keys_of_a_lease_with_two_requests_and_says_what_became_of_each() {
    let world = World::start(Kind::V3);
    let store = &world.store;
    let lease = world.lease().await;
    let mut keys = Vec::new();
    for at in 0..90 {
        let key = key(&format!("web/10.0.0.1:{}", 1000 + at));
        let owned = store.put(&key, "running", &lease).await.unwrap();
        keys.push((key, owned));
    }
    let kept = store.keep(&keys, &lease).await.unwrap();
    assert!(kept.iter().all(|kept| kept.as_ref().unwrap().value.is_none()));
    // One is gone, one was changed in place, one was taken, one was found with the lease of an earlier run.
    store.delete(&keys[0].0, &keys[0].1).await.unwrap();
    store.update(&keys[1].0, "draining", &lease, &keys[1].1, None).await.unwrap();
    put(&world.other(), &keys[2].0, "other").await.unwrap();
    let former = store.grant(Duration::from_secs(1)).await.unwrap();
    keys[3].1 = store.put(&keys[3].0, "former", &former).await.unwrap();

    let kept = store.keep(&keys, &lease).await.unwrap();
    assert!(matches!(kept[0], Err(StoreError::Lost { .. })), "{:?}", kept[0]);
    assert_eq!(kept[1].as_ref().unwrap().value.as_deref(), Some("draining"));
    assert!(matches!(kept[2], Err(StoreError::Taken { .. })), "{:?}", kept[2]);
    assert_eq!(kept[3].as_ref().unwrap().value.as_deref(), Some("former"));
    assert!(kept[4..].iter().all(|kept| kept.as_ref().unwrap().value.is_none()));
    // It no longer goes with its former lease.
    store.give_back(&former).await.unwrap();
    assert_eq!(store.get(&keys[3].0).await.unwrap().unwrap().value, "former");
    // And with no trouble at all it is tied anew without a look at each.
    let newer = store.grant(TTL).await.unwrap();
    let again = [(keys[5].0.clone(), keys[5].1), (keys[6].0.clone(), keys[6].1)];
    let tied = store.keep(&again, &newer).await.unwrap();
    let tied: Vec<_> = again.iter().zip(tied).map(|((key, _), kept)| (key.clone(), kept.unwrap().ownership)).collect();
    store.give_back(&lease).await.unwrap();
    let found = store.keep(&tied, &newer).await.unwrap();
    assert!(found.iter().all(|kept| kept.as_ref().unwrap().value.is_none()), "{found:?}");
}

#[tokio::test]
async fn v3_reads_what_a_lease_keeps_only_where_something_has_changed() {
    let etcd = Etcd::start();
    let address = etcd.url().strip_prefix("http://").unwrap().to_owned();
    let server = Server::start(vec![Step::Forward(address, Meanwhile::Nothing)]).await;
    let store = store_of(ApiChoice::Only(Api::V3), &[&server.url()]);
    let lease = store.grant(TTL).await.unwrap();
    let owned = store.put(&key("10.0.0.1:80"), "running", &lease).await.unwrap();
    let keys = [(key("10.0.0.1:80"), owned)];
    let before = server.requests();
    assert_eq!(store.keep(&keys, &lease).await.unwrap()[0].as_ref().unwrap().value, None);
    assert_eq!(server.requests() - before, 2, "the lease, and a look");
    store.update(&keys[0].0, "draining", &lease, &owned, None).await.unwrap();
    let before = server.requests();
    let kept = store.keep(&keys, &lease).await.unwrap();
    assert_eq!(kept[0].as_ref().unwrap().value.as_deref(), Some("draining"));
    assert_eq!(server.requests() - before, 3, "the lease, a look, and what is there");
}

#[tokio::test]
async fn of_several_changes_at_once_only_the_last_one_says_that_all_are_told() {
    let etcd = Etcd::start();
    let store = store_of(ApiChoice::Only(Api::V3), &[&etcd.url()]);
    let (sender, mut updates) = tokio::sync::mpsc::channel(1);
    tokio::spawn(registry::watch(store, prefix(), sender));
    let Update::Listing(listing) = next(&mut updates).await else { panic!("no listing") };
    let put = |key: &str| format!(r#"{{"request_put":{{"key":"{}","value":"eA=="}}}}"#, base64(key));
    let puts = format!(r#"{{"success":[{},{}]}}"#, put("/service/10.0.0.1:80"), put("/service/10.0.0.2:80"));
    v3(&etcd, "kv/txn", &puts).await;
    let mut told = Vec::new();
    for _ in 0..2 {
        let Update::Event { index, .. } = next(&mut updates).await else { panic!("no event") };
        told.push(index);
    }
    let before = listing.position.index();
    assert_eq!(told, [before, before + 1]);
}

fn base64(text: &str) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(text)
}

#[tokio::test]
async fn v3_says_that_a_lease_is_gone_and_removal_by_a_range_is_no_expiry() {
    let world = World::start(Kind::V3);
    let store = &world.store;
    let lease = world.lease().await;
    let owned = store.put(&key("web/10.0.0.1:80"), "running", &lease).await.unwrap();
    store.put(&key("web/10.0.0.2:80"), "running", &lease).await.unwrap();
    let mut changes = store.changes(&prefix(), store.list(&prefix()).await.unwrap().position);
    // "/service/web/" to "/service/web0"
    let range = r#"{"key":"L3NlcnZpY2Uvd2ViLw==","range_end":"L3NlcnZpY2Uvd2ViMA=="}"#;
    v3(world.etcd.as_ref().unwrap(), "kv/deleterange", range).await;
    let Poll::Events(events, _) = changes.next().await.unwrap() else { panic!("no event") };
    assert_eq!(events, [removed("web/10.0.0.1:80", Cause::Deleted), removed("web/10.0.0.2:80", Cause::Deleted)]);

    store.put(&key("web/10.0.0.1:80"), "running", &lease).await.unwrap();
    store.give_back(&lease).await.unwrap();
    let mut seen = Vec::new();
    while seen.len() < 2 {
        let Poll::Events(events, _) = changes.next().await.unwrap() else { panic!("no event") };
        seen.extend(events);
    }
    assert_eq!(seen[1], removed("web/10.0.0.1:80", Cause::Expired));
    let error = store.keep(&[(key("web/10.0.0.1:80"), owned)], &lease).await.unwrap_err();
    assert_eq!(error, StoreError::LeaseGone);
    let written = store.put(&key("web/10.0.0.1:80"), "running", &lease).await;
    assert_eq!(written.unwrap_err(), StoreError::LeaseGone);
    store.give_back(&lease).await.unwrap();
}

#[tokio::test]
async fn a_key_that_v3_finds_without_a_lease_of_ours_is_taken() {
    let world = World::start(Kind::V3);
    let store = &world.store;
    let owned = put(store, &key("10.0.0.1:80"), "running").await.unwrap();
    // "/service/10.0.0.1:80" and "x", as `etcdctl put` writes it: with no lease.
    v3(world.etcd.as_ref().unwrap(), "kv/put", r#"{"key":"L3NlcnZpY2UvMTAuMC4wLjE6ODA=","value":"eA=="}"#).await;
    assert!(matches!(keep(store, &key("10.0.0.1:80"), &owned).await, Err(StoreError::Taken { .. })));
    assert_eq!(store.delete(&key("10.0.0.1:80"), &owned).await.unwrap(), Deleted::NotOurs);
}

#[tokio::test]
async fn the_api_is_found_out_and_v2_is_spoken_where_it_is_served() {
    let (with, without) = (Etcd::start(), Etcd::start_without_v2());
    let api = async |endpoints: &[&str]| store_of(ApiChoice::Auto, endpoints).api().await;
    assert_eq!(api(&[&with.url()]).await, Ok(Some(Api::V2)));
    assert_eq!(api(&[&without.url()]).await, Ok(Some(Api::V3)));
    assert_eq!(api(&[&without.url(), &with.url()]).await, Ok(Some(Api::V2)), "they disagree");
    let dead = format!("http://127.0.0.1:{}", support::etcd::free_port());
    assert_eq!(api(&[&dead, &without.url()]).await, Ok(Some(Api::V3)));
    let error = api(&[&dead]).await.unwrap_err().to_string();
    assert!(error.contains(&dead) && error.contains("cannot connect"), "{error}");
    let page = Server::start(vec![Step::Send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi".into())]).await;
    let error = api(&[&page.url()]).await.unwrap_err().to_string();
    assert!(error.contains("--etcd wants etcd's client URL"), "{error}");
    assert_eq!(api(&[&page.url(), &without.url()]).await, Ok(Some(Api::V3)));
    // Something before etcd that cannot reach it now says nothing of what etcd serves.
    let version = r#"{"etcdserver":"3.4.23","etcdcluster":"3.4.0"}"#;
    let version = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{version}", version.len());
    let bad = "HTTP/1.1 502 Bad Gateway\r\nContent-Length: 3\r\nConnection: close\r\n\r\nbad".to_owned();
    let proxy = Server::start(vec![Step::Send(version), Step::Send(bad)]).await;
    let error = api(&[&proxy.url()]).await.unwrap_err().to_string();
    assert!(error.contains("502"), "{error}");
    // Asked for what an etcd does not serve, it says so.
    let error = store_of(ApiChoice::Only(Api::V2), &[&without.url()]).list(&prefix()).await.unwrap_err().to_string();
    assert!(error.contains("--enable-v2") && error.contains(&without.url()), "{error}");
}

#[tokio::test]
async fn an_etcd_that_was_away_when_it_was_first_asked_is_asked_again_for_its_api() {
    let mut etcd = Etcd::start_without_v2();
    etcd.stop();
    let store = store_of(ApiChoice::Auto, &[&etcd.url()]);
    let mut follower = Follower::start(&store, prefix());
    follower.until(|f| f.outages.len() == 1).await;
    etcd.run();
    put(&store, &key("10.0.0.1:80"), "running").await.unwrap();
    follower.until(|f| f.knows("/service/10.0.0.1:80", "running")).await;
}

/// Writes so many keys of v3, most of them at once: more than a page of a listing holds.
async fn write_many(etcd: &Etcd, count: usize) {
    let keys: Vec<usize> = (0..count).collect();
    // etcd takes 128 operations at once.
    for some in keys.chunks(125) {
        let put = |at: &usize| {
            format!(
                r#"{{"request_put":{{"key":"{}","value":"eA=="}}}}"#,
                base64(&format!("/service/web/10.0.0.1:{at}"))
            )
        };
        let puts: Vec<String> = some.iter().map(put).collect();
        v3(etcd, "kv/txn", &format!(r#"{{"success":[{}]}}"#, puts.join(","))).await;
    }
}

/// What a listing takes of requests that gives so many keys of v3.
const MANY: usize = 5000;
const PAGES: usize = 4;

/// An etcd with [`MANY`] keys, and a store that reaches it through a server that does this between a request and its reply.
async fn through(meanwhile: &[Meanwhile]) -> (Etcd, Server, Store) {
    through_within(registry::StoreOptions::new(Vec::new()).request_timeout, meanwhile).await
}

/// As [`through`], with a limit on a request.
async fn through_within(limit: Duration, meanwhile: &[Meanwhile]) -> (Etcd, Server, Store) {
    let etcd = Etcd::start();
    write_many(&etcd, MANY).await;
    let address = etcd.url().strip_prefix("http://").unwrap().to_owned();
    let steps = meanwhile.iter().map(|meanwhile| Step::Forward(address.clone(), *meanwhile)).collect();
    let server = Server::start(steps).await;
    let mut options = registry::StoreOptions::new(registry::parse_endpoints(&server.url()).unwrap());
    options.api = ApiChoice::Only(Api::V3);
    options.request_timeout = limit;
    (etcd, server, Store::new(options).unwrap())
}

#[tokio::test]
async fn v3_lists_by_pages_and_all_are_of_the_moment_of_the_first_one() {
    let (etcd, server, store) = through(&[Meanwhile::Write, Meanwhile::Nothing]).await;
    let direct = store_of(ApiChoice::Only(Api::V3), &[&etcd.url()]);
    let before = direct.list(&prefix()).await.unwrap();
    assert_eq!(before.entries.len(), MANY);
    let listing = store.list(&prefix()).await.unwrap();
    // `/service/meanwhile` was written after the first page.
    assert_eq!(listing, before);
    assert_eq!(server.requests(), PAGES);
    // It is told after the listing.
    let Poll::Events(events, _) = poll(&direct, &prefix(), &listing.position).await.unwrap() else {
        panic!("no event")
    };
    let [Event::Put(entry)] = &events[..] else { panic!("{events:?}") };
    assert_eq!(entry.path, "/service/meanwhile");
}

#[tokio::test]
async fn a_page_may_take_longer_than_another_request_where_the_first_one_of_its_listing_came_in_time() {
    let late = Meanwhile::Wait(Duration::from_secs(4));
    let (_etcd, server, store) =
        through_within(Duration::from_secs(3), &[Meanwhile::Nothing, late, Meanwhile::Nothing]).await;
    assert_eq!(store.list(&prefix()).await.unwrap().entries.len(), MANY);
    assert_eq!(server.requests(), PAGES, "a page was asked for twice");

    let (_etcd, server, store) = through_within(Duration::from_secs(1), &[late, Meanwhile::Nothing]).await;
    let error = store.list(&prefix()).await.unwrap_err().to_string();
    assert!(error.contains("no answer within 1s"), "{error}");
    assert_eq!(server.requests(), 1);
}

#[tokio::test]
async fn a_member_that_falls_silent_amid_a_listing_is_left_for_the_next_one_before_its_page_is_given_up() {
    let (etcd, server, _) = through(&[Meanwhile::Nothing, Meanwhile::Wait(Duration::from_secs(3600))]).await;
    let endpoints = format!("{},{}", server.url(), etcd.url());
    let mut options = registry::StoreOptions::new(registry::parse_endpoints(&endpoints).unwrap());
    options.api = ApiChoice::Only(Api::V3);
    // A page has eight times as long.
    options.request_timeout = Duration::from_secs(5);
    let (store, prefix) = (Store::new(options).unwrap(), prefix());
    let listing = tokio::time::timeout(Duration::from_secs(30), store.list(&prefix)).await.expect("a listing in time");
    assert_eq!(listing.unwrap().entries.len(), MANY);
    assert_eq!(server.requests(), 2);
}

#[tokio::test]
async fn a_member_that_has_not_come_so_far_as_the_first_page_is_asked_for_the_next_one_again() {
    let etcd = Etcd::start();
    write_many(&etcd, MANY).await;
    let forward = || Step::Forward(etcd.url().strip_prefix("http://").unwrap().to_owned(), Meanwhile::Nothing);
    let behind = || {
        let body = include_str!("fixtures/etcd-3.4.23/v3-error-future-revision.json");
        let length = body.len();
        Step::Send(format!("HTTP/1.1 400 Bad Request\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"))
    };
    for (steps, requests, why) in [
        (vec![forward(), behind(), forward()], PAGES + 1, "one page more"),
        (vec![forward(), behind(), behind(), forward()], 3 + PAGES, "that is another etcd: all of them anew"),
    ] {
        let server = Server::start(steps).await;
        let store = store_of(ApiChoice::Only(Api::V3), &[&server.url()]);
        assert_eq!(store.list(&prefix()).await.unwrap().entries.len(), MANY);
        assert_eq!(server.requests(), requests, "{why}");
    }
}

#[tokio::test]
async fn a_listing_whose_moment_v3_forgets_between_two_pages_begins_anew() {
    let (_etcd, server, store) = through(&[Meanwhile::WriteAndCompact, Meanwhile::Nothing]).await;
    let listing = store.list(&prefix()).await.unwrap();
    assert_eq!(listing.entries.len(), MANY + 1);
    assert!(listing.entries.iter().any(|entry| entry.path == "/service/meanwhile"));
    assert_eq!(server.requests(), 2 + PAGES, "a page, its refused successor, and all of them");
}

#[tokio::test]
async fn a_listing_whose_moment_v3_forgets_each_time_is_an_error_in_the_end() {
    let (_etcd, server, store) = through(&[Meanwhile::WriteAndCompact]).await;
    let error = store.list(&prefix()).await.unwrap_err().to_string();
    assert!(error.contains("required revision has been compacted"), "{error}");
    assert_eq!(server.requests(), 3 * 2, "a page and its refused successor, three times");
}

#[tokio::test]
async fn a_listing_is_sorted_whatever_the_keys_are() {
    let world = World::start(Kind::V3);
    // No UTF-8, which comes after all that is.
    for bytes in [&b"/service/\xff"[..], "/service/\u{1f600}".as_bytes(), b"/service/10.0.0.1:80"] {
        let key = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, bytes);
        v3(world.etcd.as_ref().unwrap(), "kv/put", &format!(r#"{{"key":"{key}","value":"eA=="}}"#)).await;
    }
    let entries = world.store.list(&prefix()).await.unwrap().entries;
    assert_eq!(entries.len(), 3);
    assert!(entries.is_sorted_by(|a, b| a.path <= b.path), "{entries:?}");
}
