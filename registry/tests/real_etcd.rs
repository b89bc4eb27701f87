//! The store and the watch against the real etcd.

#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use registry::{Cause, Deleted, Event, InstanceKey, Listing, Poll, Prefix, Reason, Store, StoreError, Update, watch};
use support::etcd::{Etcd, free_port};
use support::script::{Server, Step};
use support::{next, store};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

const TTL: Duration = Duration::from_secs(20);

fn prefix() -> Prefix {
    "service".parse().unwrap()
}

fn key(below: &str) -> InstanceKey {
    InstanceKey::parse(&prefix(), &format!("/service/{below}")).unwrap()
}

/// A request by hand, as an operator makes it with curl.
async fn by_hand(method: &str, etcd: &Etcd, path_and_form: (&str, &str)) {
    let (path, form) = path_and_form;
    let response = reqwest::Client::builder()
        .no_proxy()
        .tls_certs_only([])
        .build()
        .unwrap()
        .request(method.parse().unwrap(), format!("{}/v2/keys{path}", etcd.url()))
        .header("Content-Type", "application/x-www-form-urlencoded")
        .body(form.to_owned())
        .send()
        .await
        .unwrap();
    assert!(response.status().is_success(), "{method} {path}: {}", response.text().await.unwrap());
}

/// More writes than etcd keeps events.
async fn other_writes(store: &Store) {
    let other = InstanceKey::parse(&"other".parse().unwrap(), "/other/10.9.9.9:1").unwrap();
    let mut writers = JoinSet::new();
    for _ in 0..8 {
        let (store, other) = (store.clone(), other.clone());
        writers.spawn(async move {
            for at in 0..150 {
                store.put(&other, &at.to_string(), TTL).await.unwrap();
            }
        });
    }
    while let Some(writer) = writers.join_next().await {
        writer.unwrap();
    }
}

/// What a consumer of updates knows.
#[derive(Debug, Default, PartialEq, Eq)]
struct Known(BTreeMap<String, String>);

impl Known {
    fn list(&mut self, listing: Listing) {
        self.0 = listing.entries.into_iter().map(|entry| (entry.path, entry.value)).collect();
    }

    fn event(&mut self, event: Event) {
        match event {
            Event::Put(entry) => drop(self.0.insert(entry.path, entry.value)),
            Event::Removed { path, .. } => drop(self.0.remove(&path)),
            Event::RemovedTree { path, .. } => self.0.retain(|key, _| !key.starts_with(&format!("{path}/"))),
        }
    }
}

/// A watch, and what it has told so far.
struct Follower {
    updates: mpsc::Receiver<Update>,
    known: Known,
    outages: Vec<String>,
    listings: usize,
}

impl Follower {
    fn start(store: &Store) -> Self {
        let (sender, updates) = mpsc::channel(1);
        tokio::spawn(watch(store.clone(), prefix(), sender));
        Self { updates, known: Known::default(), outages: Vec::new(), listings: 0 }
    }

    async fn step(&mut self) {
        match next(&mut self.updates).await {
            Update::Listing(listing) => {
                self.listings += 1;
                self.known.list(listing);
            }
            Update::Event { event, .. } => self.known.event(event),
            Update::Unreachable { error } => self.outages.push(error),
        }
    }

    async fn until(&mut self, condition: impl Fn(&Self) -> bool) {
        while !condition(self) {
            self.step().await;
        }
    }

    fn knows(&self, below: &str, value: &str) -> bool {
        self.known.0.get(&format!("/service/{below}")).is_some_and(|known| known == value)
    }
}

#[tokio::test]
async fn a_key_that_lies_very_deep_hides_nothing() {
    let etcd = Etcd::start();
    let store = store(&[&etcd.url()]);
    store.put(&key("web/10.0.0.1:80"), "running", TTL).await.unwrap();
    by_hand("PUT", &etcd, (&format!("/service{}", "/a".repeat(300)), "value=x")).await;
    let listing = store.list(&prefix()).await.unwrap();
    let paths: Vec<&str> = listing.entries.iter().map(|entry| entry.path.as_str()).collect();
    assert_eq!(paths, ["/service/a/a/a", "/service/web/10.0.0.1:80"]);
}

#[tokio::test]
async fn what_is_put_is_listed_and_read_and_an_absent_directory_is_empty() {
    let etcd = Etcd::start();
    let store = store(&[&etcd.url()]);
    let empty = store.list(&prefix()).await.unwrap();
    assert_eq!((empty.entries.len(), empty.position.cluster_id().is_some()), (0, true));
    assert_eq!(store.get(&key("10.0.0.1:80")).await.unwrap(), None);

    for below in ["web/10.0.0.1:80", "[::1]:80", "10.0.0.1:80"] {
        store.put(&key(below), "running", TTL).await.unwrap();
    }
    by_hand("PUT", &etcd, ("/service/evil%20127.0.0.1:1%20%23%0a", "value=%00x")).await;
    let listing = store.list(&prefix()).await.unwrap();
    let paths: Vec<_> = listing.entries.iter().map(|entry| entry.path.as_str()).collect();
    assert_eq!(
        paths,
        ["/service/10.0.0.1:80", "/service/[::1]:80", "/service/evil 127.0.0.1:1 #\n", "/service/web/10.0.0.1:80"]
    );
    assert!(listing.position.index() >= empty.position.index() + 4);
    let entry = store.get(&key("web/10.0.0.1:80")).await.unwrap().unwrap();
    assert_eq!(entry.value, "running");
    assert!(entry.ttl.is_some_and(|ttl| ttl > Duration::from_secs(15) && ttl <= TTL), "{:?}", entry.ttl);

    by_hand("PUT", &etcd, ("/file", "value=x")).await;
    for path in ["file", "file/below"] {
        let error = store.list(&path.parse().unwrap()).await.unwrap_err();
        assert!(matches!(error, StoreError::NotADirectory { .. }), "{path}: {error}");
    }
}

#[tokio::test]
async fn create_takes_only_an_absent_key_and_refresh_and_update_only_an_own_one() {
    let etcd = Etcd::start();
    let store = store(&[&etcd.url()]);
    let key = key("10.0.0.1:80");
    let first = store.create(&key, "first", TTL).await.unwrap();
    assert!(matches!(store.create(&key, "first", TTL).await, Err(StoreError::Taken { .. })));
    let first = store.refresh(&key, TTL, &first).await.unwrap().ownership();
    // Someone sets another value by comparison: the key stays ours.
    by_hand("PUT", &etcd, ("/service/10.0.0.1:80", "value=draining&prevExist=true&ttl=20")).await;
    let refreshed = store.refresh(&key, TTL, &first).await.unwrap();
    assert_eq!((refreshed.value.as_str(), refreshed.ttl), ("draining", Some(TTL)));
    let first = store.update(&key, "changed", TTL, &refreshed.ownership()).await.unwrap();

    let second = store.put(&key, "second", TTL).await.unwrap();
    assert!(matches!(store.refresh(&key, TTL, &first).await, Err(StoreError::Taken { .. })));
    assert!(matches!(store.update(&key, "x", TTL, &first).await, Err(StoreError::Taken { .. })));
    assert_eq!(store.delete(&key, &first).await.unwrap(), Deleted::NotOurs);
    assert_eq!(store.get(&key).await.unwrap().unwrap().value, "second");

    assert_eq!(store.delete(&key, &second).await.unwrap(), Deleted::Done);
    assert_eq!(store.delete(&key, &second).await.unwrap(), Deleted::AlreadyGone);
    assert!(matches!(store.refresh(&key, TTL, &second).await, Err(StoreError::Lost { .. })));
    assert!(matches!(store.update(&key, "x", TTL, &second).await, Err(StoreError::Lost { .. })));
}

#[tokio::test]
async fn a_refresh_wakes_nobody() {
    let etcd = Etcd::start();
    let store = store(&[&etcd.url()]);
    let owned = store.put(&key("10.0.0.1:80"), "running", TTL).await.unwrap();
    let position = store.list(&prefix()).await.unwrap().position;
    let (prefix, key) = (prefix(), key("10.0.0.1:80"));
    let (poll, refreshed) = tokio::join!(store.poll(&prefix, &position), async {
        let owned = store.refresh(&key, TTL, &owned).await?.ownership();
        store.refresh(&key, TTL, &owned).await
    });
    assert!(matches!(poll.unwrap(), Poll::Quiet(_)));
    let changed = store.update(&key, "draining", TTL, &refreshed.unwrap().ownership()).await.unwrap();
    let Poll::Events(events, after) = store.poll(&prefix, &position).await.unwrap() else { panic!("no event") };
    assert!(matches!(&events[..], [Event::Put(entry)] if entry.value == "draining"), "{events:?}");
    store.delete(&key, &changed).await.unwrap();
    let Poll::Events(events, _) = store.poll(&prefix, &after).await.unwrap() else { panic!("no event") };
    assert_eq!(events, [Event::Removed { path: "/service/10.0.0.1:80".into(), cause: Cause::Deleted }]);
}

#[tokio::test]
async fn a_key_whose_time_ran_out_is_expired() {
    let etcd = Etcd::start();
    let store = store(&[&etcd.url()]);
    let mut follower = Follower::start(&store);
    store.put(&key("10.0.0.1:80"), "running", Duration::from_millis(200)).await.unwrap();
    loop {
        if let Update::Event { event: Event::Removed { path, cause }, .. } = next(&mut follower.updates).await {
            assert_eq!((path.as_str(), cause), ("/service/10.0.0.1:80", Cause::Expired));
            break;
        }
    }
}

#[tokio::test]
async fn a_write_whose_reply_was_lost_is_known_as_ones_own() {
    let etcd = Etcd::start();
    let address = etcd.url().replace("http://", "");
    // Each store sends its first request to a server that hands it on and loses the reply, twice, then goes on to etcd.
    let losing = async || {
        let server = Server::start(vec![Step::ForwardAndLoseReply(address.clone())]).await;
        let store = store(&[&server.url(), &etcd.url()]);
        (server, store)
    };
    let direct = store(&[&etcd.url()]);
    let key = key("10.0.0.1:80");

    let (server, store) = losing().await;
    let owned = store.create(&key, "agent-1", TTL).await.unwrap();
    assert_eq!(server.requests(), 2);
    let (_server, store) = losing().await;
    assert!(matches!(store.create(&key, "agent-2", TTL).await, Err(StoreError::Taken { .. })));
    let (_server, store) = losing().await;
    let owned = store.refresh(&key, TTL, &owned).await.unwrap().ownership();
    let (_server, store) = losing().await;
    let owned = store.update(&key, "other", TTL, &owned).await.unwrap();
    let (_server, store) = losing().await;
    assert_eq!(store.delete(&key, &owned).await.unwrap(), Deleted::Done);
    assert_eq!(direct.get(&key).await.unwrap(), None);

    let (_server, store) = losing().await;
    let owned = store.put(&key, "running", TTL).await.unwrap();
    direct.refresh(&key, TTL, &owned).await.unwrap();

    // With no other endpoint the write fails; the next one finds it done.
    let lost = Server::start(vec![Step::ForwardAndLoseReply(address.clone())]).await;
    let alone = support::store(&[&lost.url()]);
    assert!(matches!(alone.refresh(&key, TTL, &owned).await, Err(StoreError::NoAnswer(_))));
    direct.refresh(&key, TTL, &owned).await.unwrap();
}

#[tokio::test]
async fn a_dead_first_endpoint_costs_one_attempt_in_all() {
    let etcd = Etcd::start();
    // A server that takes connections and says nothing: an attempt costs its whole limit.
    let dead = Server::start(vec![Step::SendAndHang(String::new())]).await;
    let refused = format!("http://127.0.0.1:{}", free_port());
    let store = store(&[&refused, &dead.url(), &etcd.url()]);
    let start = Instant::now();
    let owned = store.put(&key("10.0.0.1:80"), "running", TTL).await.unwrap();
    for _ in 0..20 {
        store.refresh(&key("10.0.0.1:80"), TTL, &owned).await.unwrap();
    }
    assert_eq!(store.list(&prefix()).await.unwrap().entries.len(), 1);
    assert!(start.elapsed() < Duration::from_millis(1400), "{:?}", start.elapsed());
    assert_eq!(dead.requests(), 1);
}

#[tokio::test]
async fn two_puts_5_ms_apart_are_both_seen_again_and_again() {
    let etcd = Etcd::start();
    let store = store(&[&etcd.url()]);
    let mut follower = Follower::start(&store);
    for round in 0..20 {
        let value = round.to_string();
        let (a, b) = (key("10.0.0.1:80"), key("web/10.0.0.2:80"));
        tokio::join!(
            async {
                store.put(&a, &value, TTL).await.unwrap();
                tokio::time::sleep(Duration::from_millis(5)).await;
                store.put(&b, &value, TTL).await.unwrap();
            },
            follower.until(|f| f.knows("10.0.0.1:80", &value) && f.knows("web/10.0.0.2:80", &value)),
        );
    }
    assert_eq!((follower.listings, follower.outages.len()), (1, 0));
}

#[tokio::test]
async fn more_other_writes_than_etcd_keeps_events_mean_list_again_and_nothing_is_lost() {
    let etcd = Etcd::start();
    let store = store(&[&etcd.url()]);
    let gone = store.put(&key("10.0.0.1:80"), "before", TTL).await.unwrap();
    let position = store.list(&prefix()).await.unwrap().position;
    // The follower's channel holds one update: it stands still at the second.
    let mut follower = Follower::start(&store);
    follower.until(|f| f.listings == 1).await;
    for at in 2..6 {
        store.put(&key(&format!("10.0.0.{at}:80")), "before", TTL).await.unwrap();
    }
    other_writes(&store).await;
    store.delete(&key("10.0.0.1:80"), &gone).await.unwrap();
    store.put(&key("10.0.0.9:80"), "after", TTL).await.unwrap();
    assert_eq!(store.poll(&prefix(), &position).await.unwrap(), Poll::ListAgain(Reason::HistoryCleared));

    follower.until(|f| f.listings == 2).await;
    let mut expected = Known::default();
    expected.list(store.list(&prefix()).await.unwrap());
    assert_eq!(follower.known, expected);
    assert_eq!(expected.0.len(), 5);
}

#[tokio::test]
async fn a_quiet_watch_does_not_fall_out_of_the_history() {
    let etcd = Etcd::start();
    let store = store(&[&etcd.url()]);
    let position = store.list(&prefix()).await.unwrap().position;
    other_writes(&store).await;
    let position = match store.poll(&prefix(), &position).await.unwrap() {
        Poll::ListAgain(Reason::HistoryCleared) => store.list(&prefix()).await.unwrap().position,
        other => panic!("{other:?}"),
    };
    // 600 writes before each of two polls: the second still has its history, since the first moved on.
    let half = async || {
        let other = InstanceKey::parse(&"other".parse().unwrap(), "/other/10.9.9.9:1").unwrap();
        for _ in 0..600 {
            store.put(&other, "x", TTL).await.unwrap();
        }
    };
    half().await;
    let Poll::Quiet(position) = store.poll(&prefix(), &position).await.unwrap() else { panic!("not quiet") };
    half().await;
    assert!(matches!(store.poll(&prefix(), &position).await.unwrap(), Poll::Quiet(_)));
}

#[tokio::test]
async fn a_watch_begun_while_etcd_is_away_waits_and_one_that_lost_it_goes_on() {
    let mut etcd = Etcd::start();
    let store = store(&[&etcd.url()]);
    etcd.stop();
    let mut follower = Follower::start(&store);
    follower.until(|f| f.outages.len() == 1).await;
    assert!(follower.outages[0].contains(&etcd.url()), "{:?}", follower.outages);
    etcd.run();
    follower.until(|f| f.listings == 1).await;
    store.put(&key("10.0.0.1:80"), "before", TTL).await.unwrap();
    follower.until(|f| f.knows("10.0.0.1:80", "before")).await;

    etcd.stop();
    follower.until(|f| f.outages.len() > 1).await;
    assert!(follower.knows("10.0.0.1:80", "before"), "an outage removes nothing");
    etcd.run();
    store.put(&key("10.0.0.2:80"), "after", TTL).await.unwrap();
    follower.until(|f| f.knows("10.0.0.2:80", "after") && f.knows("10.0.0.1:80", "before")).await;
}

#[tokio::test]
async fn an_etcd_wiped_and_started_anew_is_noticed_and_followed() {
    for same_id in [true, false] {
        let mut etcd = Etcd::start();
        let store = store(&[&etcd.url()]);
        store.put(&key("10.0.0.1:80"), "old", TTL).await.unwrap();
        let old = store.list(&prefix()).await.unwrap().position;
        let mut follower = Follower::start(&store);
        follower.until(|f| f.listings == 1).await;
        etcd.wipe(same_id);
        let new = store.list(&prefix()).await.unwrap().position;
        assert_eq!(new.cluster_id() == old.cluster_id(), same_id);
        assert!(new.index() < old.index());
        let reason = if same_id { Reason::IndexFell } else { Reason::OtherCluster };
        assert_eq!(store.poll(&prefix(), &old).await.unwrap(), Poll::ListAgain(reason));
        follower.until(|f| f.known == Known::default()).await;
        store.put(&key("10.0.0.2:80"), "new", TTL).await.unwrap();
        follower.until(|f| f.knows("10.0.0.2:80", "new")).await;
    }
}

#[tokio::test]
async fn a_removed_directory_its_parent_and_a_neighbour_are_told_apart() {
    let etcd = Etcd::start();
    let store = store(&[&etcd.url()]);
    let prefix: Prefix = "a/service".parse().unwrap();
    let web = InstanceKey::parse(&prefix, "/a/service/web/10.0.0.1:80").unwrap();
    for (removed, expected) in [("/a/service/web", true), ("/a/service", true), ("/a", true), ("/a/serv", false)] {
        store.put(&web, "running", TTL).await.unwrap();
        by_hand("PUT", &etcd, ("/a/serv/x", "value=1")).await;
        let position = store.list(&prefix).await.unwrap().position;
        by_hand("DELETE", &etcd, (&format!("{removed}?recursive=true"), "")).await;
        let Poll::Events(events, _) = store.poll(&prefix, &position).await.unwrap() else { panic!("{removed}") };
        let tree = Event::RemovedTree { path: removed.into(), cause: Cause::Deleted };
        assert_eq!(events, if expected { vec![tree] } else { Vec::new() });
    }
}

/// What an operator or a registrar may do to the tree.
#[derive(Debug, Clone)]
enum Deed {
    Put(usize, u8),
    Remove(usize),
    RemoveTree(usize),
    MakeDirectory(usize),
    ListAgain,
}

const PLACES: [&str; 7] = [
    "10.0.0.1:80",
    "10.0.0.2:80",
    "web/10.0.0.1:80",
    "web/10.0.0.2:80",
    "db/10.0.0.1:80",
    "_hidden/10.0.0.1:80",
    "../serv/x",
];
const TREES: [&str; 4] = ["web", "db", "", "../serv"];

fn steps() -> impl Strategy<Value = Vec<Deed>> {
    let step = prop_oneof![
        6 => (0..PLACES.len(), any::<u8>()).prop_map(|(at, value)| Deed::Put(at, value)),
        3 => (0..PLACES.len()).prop_map(Deed::Remove),
        1 => (0..TREES.len()).prop_map(Deed::RemoveTree),
        1 => (0..PLACES.len()).prop_map(Deed::MakeDirectory),
        2 => Just(Deed::ListAgain),
    ];
    proptest::collection::vec(step, 0..25)
}

#[test]
fn a_listing_and_the_events_after_it_give_the_later_listing_with_a_new_listing_at_any_point() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let etcd = Etcd::start();
    let store = store(&[&etcd.url()]);
    let client = reqwest::Client::builder().no_proxy().tls_certs_only([]).build().unwrap();
    let config = Config { cases: 40, failure_persistence: None, ..Config::default() };
    TestRunner::new(config)
        .run(&steps(), |steps| {
            runtime.block_on(async {
                let url = |below: &str| format!("{}/v2/keys/service/{below}", etcd.url());
                let mut known = Known::default();
                let listing = store.list(&prefix()).await.unwrap();
                let mut position = listing.position.clone();
                known.list(listing);
                for step in &steps {
                    // Some are refused, such as a value in place of a directory; that is part of the game.
                    let request = match step {
                        Deed::Put(at, value) => client.put(url(PLACES[*at])).form(&[("value", value.to_string())]),
                        Deed::Remove(at) => client.delete(url(PLACES[*at])),
                        Deed::RemoveTree(at) => client.delete(format!("{}?recursive=true", url(TREES[*at]))),
                        Deed::MakeDirectory(at) => client.put(url(PLACES[*at])).form(&[("dir", "true")]),
                        Deed::ListAgain => {
                            let listing = store.list(&prefix()).await.unwrap();
                            position = listing.position.clone();
                            known.list(listing);
                            continue;
                        }
                    };
                    request.send().await.unwrap();
                }
                let marker = key("10.255.255.255:1");
                store.put(&marker, "end", TTL).await.unwrap();
                while !known.0.contains_key(&marker.path()) {
                    let Poll::Events(events, after) = store.poll(&prefix(), &position).await.unwrap() else {
                        panic!("the marker did not come");
                    };
                    events.into_iter().for_each(|event| known.event(event));
                    position = after;
                }
                let mut expected = Known::default();
                expected.list(store.list(&prefix()).await.unwrap());
                assert_eq!(known, expected, "after {steps:?}");
                by_hand("DELETE", &etcd, ("/service?recursive=true", "")).await;
            });
            Ok(())
        })
        .unwrap();
}
