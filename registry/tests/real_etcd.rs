//! What is etcd's v2 API alone, against the real etcd: directories, a history of 1000 events. What holds of every
//! store is in `stores`.

#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use registry::{Api, ApiChoice, Cause, Event, InstanceKey, Poll, Prefix, Reason, Store, StoreError};
use support::etcd::{Etcd, free_port};
use support::follower::Known;
use support::script::{Server, Step};
use support::{LONG_POLL, keep, poll, put, store, store_within};
use tokio::task::JoinSet;

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
                put(&store, &other, &at.to_string()).await.unwrap();
            }
        });
    }
    while let Some(writer) = writers.join_next().await {
        writer.unwrap();
    }
}

#[tokio::test]
async fn a_key_that_lies_very_deep_hides_nothing() {
    let etcd = Etcd::start();
    let store = store(&[&etcd.url()]);
    put(&store, &key("web/10.0.0.1:80"), "running").await.unwrap();
    by_hand("PUT", &etcd, (&format!("/service{}", "/a".repeat(300)), "value=x")).await;
    let listing = store.list(&prefix()).await.unwrap();
    let paths: Vec<&str> = listing.entries.iter().map(|entry| entry.path.as_str()).collect();
    assert_eq!(paths, ["/service/a/a/a", "/service/web/10.0.0.1:80"]);
}

#[tokio::test]
async fn names_come_back_as_they_are_and_a_key_with_a_value_is_no_directory() {
    let etcd = Etcd::start();
    let store = store(&[&etcd.url()]);
    by_hand("PUT", &etcd, ("/service/evil%20127.0.0.1:1%20%23%0a", "value=%00x")).await;
    let listing = store.list(&prefix()).await.unwrap();
    assert_eq!(listing.entries[0].path, "/service/evil 127.0.0.1:1 #\n");
    by_hand("PUT", &etcd, ("/file", "value=x")).await;
    for path in ["file", "file/below"] {
        let error = store.list(&path.parse().unwrap()).await.unwrap_err();
        assert!(matches!(error, StoreError::NotADirectory { .. }), "{path}: {error}");
    }
}

#[tokio::test]
async fn a_dead_first_endpoint_costs_one_attempt_in_all() {
    let etcd = Etcd::start();
    // A server that takes connections and says nothing: an attempt costs its whole limit.
    let dead = Server::start(vec![Step::SendAndHang(String::new())]).await;
    let refused = format!("http://127.0.0.1:{}", free_port());
    let endpoints = [refused, dead.url(), etcd.url()];
    let endpoints = endpoints.each_ref().map(String::as_str);
    let store = store_within(Duration::from_secs(3), LONG_POLL, ApiChoice::Only(Api::V2), &endpoints);
    let owned = put(&store, &key("10.0.0.1:80"), "running").await.unwrap();
    for _ in 0..20 {
        keep(&store, &key("10.0.0.1:80"), &owned).await.unwrap();
    }
    assert_eq!(store.list(&prefix()).await.unwrap().entries.len(), 1);
    // One that works and is silent for a second is not waited for either.
    assert!((1..=3).contains(&dead.requests()), "{}", dead.requests());
}

#[tokio::test]
async fn a_quiet_watch_does_not_fall_out_of_the_history() {
    let etcd = Etcd::start();
    let store = store(&[&etcd.url()]);
    let position = store.list(&prefix()).await.unwrap().position;
    other_writes(&store).await;
    let position = match poll(&store, &prefix(), &position).await.unwrap() {
        Poll::ListAgain(Reason::HistoryCleared) => store.list(&prefix()).await.unwrap().position,
        other => panic!("{other:?}"),
    };
    // 600 writes before each of two polls: the second still has its history, since the first moved on.
    let half = async || {
        let other = InstanceKey::parse(&"other".parse().unwrap(), "/other/10.9.9.9:1").unwrap();
        for _ in 0..600 {
            put(&store, &other, "x").await.unwrap();
        }
    };
    half().await;
    let Poll::Quiet(position) = poll(&store, &prefix(), &position).await.unwrap() else { panic!("not quiet") };
    half().await;
    assert!(matches!(poll(&store, &prefix(), &position).await.unwrap(), Poll::Quiet(_)));
}

#[tokio::test]
async fn a_removed_directory_its_parent_and_a_neighbour_are_told_apart() {
    let etcd = Etcd::start();
    let store = store(&[&etcd.url()]);
    let prefix: Prefix = "a/service".parse().unwrap();
    let web = InstanceKey::parse(&prefix, "/a/service/web/10.0.0.1:80").unwrap();
    for (removed, expected) in [("/a/service/web", true), ("/a/service", true), ("/a", true), ("/a/serv", false)] {
        put(&store, &web, "running").await.unwrap();
        by_hand("PUT", &etcd, ("/a/serv/x", "value=1")).await;
        let position = store.list(&prefix).await.unwrap().position;
        by_hand("DELETE", &etcd, (&format!("{removed}?recursive=true"), "")).await;
        let Poll::Events(events, _) = poll(&store, &prefix, &position).await.unwrap() else { panic!("{removed}") };
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
                put(&store, &marker, "end").await.unwrap();
                while !known.0.contains_key(&marker.path()) {
                    let Poll::Events(events, after) = poll(&store, &prefix(), &position).await.unwrap() else {
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
