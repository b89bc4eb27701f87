//! The store and the watch against servers that are broken or rebuilt: each is an error that names the endpoint and
//! what was wrong, within its time limit, and none is asked in a hot loop.

#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::time::{Duration, Instant};

use registry::{Api, ApiChoice, InstanceKey, Poll, Position, Prefix, Reason, Store, StoreError, StoreOptions, Update};
use support::script::{Server, Step, reply, reply_with, waiting};
use support::{DEADLINE, LONG_POLL, next, poll, store, store_of, store_within};
use tokio::sync::mpsc;
use tokio::time::timeout;

const LISTED: &str = r#"{"action":"get","node":{"key":"/service","dir":true,"modifiedIndex":4,"createdIndex":4}}"#;

fn prefix() -> Prefix {
    "service".parse().unwrap()
}

fn here() -> Position {
    Position::new(Some("c1".into()), 7)
}

/// How often a broken server is asked in a row: once more where the connection ended before a reply began, since a kept
/// one may have been dead already.
fn attempts(expected: &str) -> usize {
    if expected == "broke off" { 2 } else { 1 }
}

/// A store that gives this server up, where it is silent, after the 500 ms that the error must tell of. One that answers is not
/// to be given up on a slow machine.
fn store_for(expected: &str, endpoints: &[&str]) -> Store {
    let limit = if expected.contains("500ms") { Duration::from_millis(500) } else { DEADLINE };
    store_within(limit, LONG_POLL, ApiChoice::Only(Api::V2), endpoints)
}

/// What a server does, and a part of the error that must say so.
fn broken() -> Vec<(&'static str, Step, &'static str)> {
    let html = "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 20\r\n\r\n<html>welcome</html>";
    let cut = "HTTP/1.1 200 OK\r\nX-Etcd-Index: 7\r\nContent-Length: 900\r\n\r\n{\"action\":\"get\",";
    let raft = r#"{"errorCode":300,"message":"Raft Internal Error","cause":"timeout","index":0}"#;
    let wrong_type = r#"{"action":"get","node":{"key":"/service","dir":"yes","modifiedIndex":4,"createdIndex":4}}"#;
    let credentials = r#"{"message":"Insufficient credentials"}"#;
    vec![
        ("500", Step::Send(reply_with("500 Internal Server Error", "c1", 7, raft)), "Raft Internal Error"),
        ("503 without JSON", Step::Send(reply_with("503 Service Unavailable", "c1", 7, "busy")), "503"),
        ("hang", Step::SendAndHang(String::new()), "no answer within 500ms"),
        ("slow headers", Step::Drip("HTTP/1.1 200 OK\r\n".into()), "no answer within 500ms"),
        ("half a JSON", Step::Send(reply("c1", 7, r#"{"action":"get","node":{"key"#)), "not etcd's JSON: EOF"),
        ("cut short", Step::Send(cut.into()), "its reply broke off"),
        ("hang in the body", Step::SendAndHang(cut.into()), "no answer within 500ms"),
        ("wrong type", Step::Send(reply("c1", 7, wrong_type)), "invalid type: string \"yes\", expected a boolean"),
        ("HTML", Step::Send(html.into()), "not etcd's JSON"),
        ("401", Step::Send(reply_with("401 Unauthorized", "c1", 7, credentials)), "Insufficient credentials"),
        ("redirect", Step::Send("HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\n\r\n".into()), "302"),
        ("not HTTP", Step::Send("SSH-2.0-OpenSSH_9.2\r\n".into()), "broke off"),
        ("closed", Step::Close, "broke off"),
        (
            "no index",
            Step::Send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{LISTED}", LISTED.len())),
            "X-Etcd-Index",
        ),
    ]
}

#[tokio::test]
async fn a_broken_server_is_named_with_what_is_wrong_and_costs_no_more_than_its_limit() {
    for (name, step, expected) in broken() {
        let server = Server::start(vec![step]).await;
        let start = Instant::now();
        let error = store_for(expected, &[&server.url()]).list(&prefix()).await.unwrap_err();
        assert!(matches!(error, StoreError::NoAnswer(_)), "{name}: {error}");
        let error = error.to_string();
        assert!(error.contains(expected) && error.contains(&server.url()), "{name}: {error}");
        assert!(!error.contains('\n'), "{name}: {error}");
        assert!(start.elapsed() < DEADLINE / 2, "{name} took {:?}", start.elapsed());
        assert_eq!(server.requests(), attempts(expected), "{name}");
    }
}

#[tokio::test]
async fn a_broken_first_server_is_passed_over_and_the_one_that_works_is_asked_from_then_on() {
    for (name, step, expected) in broken() {
        let bad = Server::start(vec![step]).await;
        let good = Server::start(vec![Step::Send(reply("c1", 7, LISTED))]).await;
        let store = store_for(expected, &[&bad.url(), &good.url()]);
        for _ in 0..3 {
            let listing = store.list(&prefix()).await.unwrap();
            assert_eq!(listing.position, here(), "{name}");
        }
        assert_eq!((bad.requests(), good.requests()), (attempts(expected), 3), "{name}");
    }
}

#[tokio::test]
async fn a_silent_endpoint_is_not_waited_for_where_another_answers_unless_doing_it_twice_does_harm() {
    let silent = Server::start(vec![Step::SendAndHang(String::new())]).await;
    let good = Server::start(vec![Step::Send(reply("c1", 7, LISTED))]).await;
    let with_much_time = || {
        let mut options = StoreOptions::new(registry::parse_endpoints(&[silent.url(), good.url()].join(",")).unwrap());
        options.api = ApiChoice::Only(Api::V2);
        options.request_timeout = Duration::from_secs(3600);
        Store::new(options).unwrap()
    };
    let store = with_much_time();
    for _ in 0..3 {
        let listing = timeout(DEADLINE, store.list(&prefix())).await.expect("the silent one is waited for").unwrap();
        assert_eq!(listing.position, here());
    }
    assert_eq!((silent.requests(), good.requests()), (1, 3), "the one that answered is asked first from then on");

    let (store, key) = (with_much_time(), InstanceKey::parse(&prefix(), "/service/10.0.0.1:80").unwrap());
    let written = timeout(Duration::from_secs(2), support::put(&store, &key, "running")).await;
    assert!(written.is_err(), "{written:?}");
    assert_eq!(good.requests(), 3);
}

#[tokio::test]
async fn an_endpoint_that_was_silent_is_not_asked_first_after_a_request_was_given_up() {
    let silent = Server::start(vec![Step::SendAndHang(String::new())]).await;
    let good = Server::start(vec![Step::SendAndHang(String::new()), Step::Send(reply("c1", 7, LISTED))]).await;
    let mut options = StoreOptions::new(registry::parse_endpoints(&[silent.url(), good.url()].join(",")).unwrap());
    options.api = ApiChoice::Only(Api::V2);
    options.request_timeout = Duration::from_secs(3600);
    let (store, prefix) = (Store::new(options).unwrap(), prefix());
    let asked_both = async {
        while good.requests() == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        listed = store.list(&prefix) => panic!("{listed:?}"),
        asked = timeout(DEADLINE, asked_both) => asked.expect("the second one is never asked"),
    }
    let listing = timeout(DEADLINE, store.list(&prefix)).await.expect("nobody answers").unwrap();
    assert_eq!((listing.position, silent.requests()), (here(), 1));
}

#[tokio::test]
async fn a_user_and_password_are_sent_and_never_shown() {
    let server = Server::start(vec![Step::Close]).await;
    let url = server.url().replace("http://", "http://root:secret@");
    let error = store(&[&url]).list(&prefix()).await.unwrap_err().to_string();
    assert!(!error.contains("secret"), "{error}");
}

#[tokio::test]
async fn a_poll_of_another_cluster_or_a_lower_index_means_list_again() {
    let cases = [
        (waiting("c2", 8), Reason::OtherCluster),
        (waiting("c1", 6), Reason::IndexFell),
        (
            reply_with(
                "400 Bad Request",
                "c1",
                2007,
                include_str!("fixtures/etcd-3.4.23/error-event-index-cleared.json"),
            ),
            Reason::HistoryCleared,
        ),
    ];
    for (bytes, reason) in cases {
        let server = Server::start(vec![Step::SendAndHang(bytes)]).await;
        // It hangs after that, and the end of the poll is not waited for.
        let store = store_within(DEADLINE, Duration::from_secs(3600), ApiChoice::Only(Api::V2), &[&server.url()]);
        let seen = timeout(DEADLINE, poll(&store, &prefix(), &here())).await;
        assert_eq!(seen.expect("it is seen before the poll ends").unwrap(), Poll::ListAgain(reason));
    }
}

#[tokio::test]
async fn a_quiet_poll_goes_on_from_the_index_at_its_beginning() {
    for (index, expected) in [(7, 7), (900, 900)] {
        let server = Server::start(vec![Step::SendAndHang(waiting("c1", index))]).await;
        let poll = poll(&store(&[&server.url()]), &prefix(), &here()).await.unwrap();
        assert_eq!(poll, Poll::Quiet(Position::new(Some("c1".into()), expected)));
    }
}

#[tokio::test]
async fn a_member_that_lets_polls_wait_and_has_no_quorum_is_noticed() {
    let raft = r#"{"errorCode":300,"message":"Raft Internal Error","cause":"timeout","index":0}"#;
    let server = Server::start(vec![
        Step::Send(reply("c1", 7, LISTED)),
        Step::SendAndHang(waiting("c1", 7)),
        Step::Send(reply_with("500 Internal Server Error", "c1", 7, raft)),
    ])
    .await;
    let (sender, mut updates) = mpsc::channel(16);
    let watching = tokio::spawn(registry::watch(store(&[&server.url()]), prefix(), sender));
    assert!(matches!(next(&mut updates).await, Update::Listing(_)));
    let Update::Unreachable { error } = next(&mut updates).await else { panic!("not told") };
    assert!(error.contains("Raft Internal Error"), "{error}");
    watching.abort();
}

#[tokio::test]
async fn a_poll_that_breaks_is_an_error() {
    let head = waiting("c1", 7);
    let old =
        r#"{"action":"set","node":{"key":"/service/10.0.0.1:80","value":"x","modifiedIndex":5,"createdIndex":5}}"#;
    let cases = [
        (Step::Send(format!("{head}0\r\n\r\n")), "with no event"),
        (Step::Send(head.clone()), "broke off"),
        (Step::SendAndHang(format!("{head}4\r\n{{\"ac\r\n")), "stood still half-way"),
        (Step::Send(format!("{head}4\r\n{{\"ac\r\n0\r\n\r\n")), "not etcd's JSON"),
        (Step::Send(format!("{head}{:x}\r\n{old}\r\n0\r\n\r\n", old.len())), "asked for events from 8 on, got 5"),
        (Step::Send(format!("{head}200000\r\n{}\r\n0\r\n\r\n", "x".repeat(0x20_0000))), "more than 1048576 bytes"),
    ];
    for (step, expected) in cases {
        let server = Server::start(vec![step]).await;
        let limit = if expected.contains("stood still") { Duration::from_millis(500) } else { DEADLINE };
        let store = store_within(limit, DEADLINE, ApiChoice::Only(Api::V2), &[&server.url()]);
        let error = poll(&store, &prefix(), &here()).await.unwrap_err().to_string();
        assert!(error.contains(expected) && error.contains(&server.url()), "{error}");
    }
}

/// It is asked again, so often at least, and at most so often a second.
async fn is_asked_with_pauses(server: &Server, begun: Instant, least: usize, most_a_second: u32) {
    tokio::time::sleep(Duration::from_secs(1)).await;
    while server.requests() < least {
        assert!(begun.elapsed() < DEADLINE, "{} requests", server.requests());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let (requests, seconds) = (server.requests(), begun.elapsed().as_secs_f64());
    assert!((requests as f64) < f64::from(most_a_second) * seconds, "{requests} requests in {seconds:.1} s");
}

#[tokio::test]
async fn a_server_that_answers_nonsense_at_once_is_not_asked_in_a_hot_loop_and_is_told_once() {
    let cases = [
        vec![Step::Send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi".into())],
        vec![Step::Close],
        vec![Step::Send(reply_with("500 Internal Server Error", "c1", 7, "{}"))],
    ];
    for steps in cases {
        let server = Server::start(steps).await;
        let (sender, mut updates) = mpsc::channel(16);
        let begun = Instant::now();
        let watching = tokio::spawn(registry::watch(store(&[&server.url()]), prefix(), sender));
        assert!(matches!(next(&mut updates).await, Update::Unreachable { .. }));
        is_asked_with_pauses(&server, begun, 3, 15).await;
        assert!(updates.try_recv().is_err(), "the same outage was told twice");
        drop(updates);
        tokio::time::timeout(support::DEADLINE, watching).await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_server_whose_listings_are_good_and_whose_polls_are_not_is_not_asked_in_a_hot_loop() {
    // Every second request is a poll.
    let steps = (0..200).map(|at| Step::Send(if at % 2 == 0 { reply("c1", 7, LISTED) } else { waiting("c2", 7) }));
    let server = Server::start(steps.collect()).await;
    let (sender, mut updates) = mpsc::channel(100);
    let begun = Instant::now();
    let watching = tokio::spawn(registry::watch(store(&[&server.url()]), prefix(), sender));
    assert!(matches!(next(&mut updates).await, Update::Listing(_)));
    is_asked_with_pauses(&server, begun, 4, 24).await;
    watching.abort();
}

/// A key as v2 lists it.
fn listed(name: usize, value: &str) -> String {
    let path = format!("/service/10.{}.{}.{}:80", name >> 16, name >> 8 & 255, name & 255);
    format!(r#"{{"key":"{path}","value":"{value}","modifiedIndex":7,"createdIndex":7}}"#)
}

fn listing(nodes: &[String]) -> String {
    LISTED.replace(r#""dir":true,"#, &format!(r#""dir":true,"nodes":[{}],"#, nodes.join(",")))
}

#[tokio::test]
async fn a_value_of_10_mb_is_refused_by_itself_in_a_listing_and_as_an_event_ends_in_a_listing() {
    let nodes = [listed(1, "running"), listed(2, &"x".repeat(10 << 20)), listed(3, "running")];
    let event = format!(r#"{{"action":"set","node":{}}}"#, listed(4, &"x".repeat(10 << 20)));
    let server = Server::start(vec![
        Step::Send(reply("c1", 7, &listing(&nodes[..1]))),
        Step::Send(format!("{}{:x}\r\n{event}\r\n0\r\n\r\n", waiting("c1", 7), event.len())),
        Step::Send(reply("c1", 8, &listing(&nodes))),
        Step::SendAndHang(waiting("c1", 8)),
    ])
    .await;
    let (sender, mut updates) = mpsc::channel(16);
    let watching = tokio::spawn(registry::watch(store(&[&server.url()]), prefix(), sender));
    let Update::Listing(first) = next(&mut updates).await else { panic!("no listing") };
    assert_eq!(first.entries.len(), 1);
    let Update::Unreachable { error } = next(&mut updates).await else { panic!("not told") };
    assert!(error.contains("an event has more than 1048576 bytes"), "{error}");
    let Update::Listing(second) = next(&mut updates).await else { panic!("no listing") };
    let read: Vec<_> = second.entries.iter().map(|entry| registry::Record::parse(&entry.value).is_ok()).collect();
    assert_eq!(read, [true, false, true]);
    let error = registry::Record::parse(&second.entries[1].value).unwrap_err().to_string();
    assert!(error.contains("10485760 bytes; at most 65536 are read"), "{error}");
    watching.abort();
}

/// A page of a listing of v3 that says that there is more.
fn page(cluster: u64, key: &str) -> Step {
    let key = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, key);
    let body = format!(
        r#"{{"header":{{"cluster_id":"{cluster}","revision":"7"}},"kvs":[{{"key":"{key}","value":"eA=="}}],"more":true,"count":"3"}}"#
    );
    Step::Send(reply("c1", 7, &body))
}

#[tokio::test]
async fn a_listing_of_v3_whose_pages_lead_nowhere_or_are_of_two_clusters_is_an_error_and_ends() {
    let (a, b) = ("/service/10.0.0.1:80", "/service/10.0.0.2:80");
    for (steps, expected, requests) in [
        (vec![page(1, a)], "has no key after the last one", 2),
        (vec![page(1, b), page(1, a)], "has no key after the last one", 2),
        (vec![page(1, a), page(2, b), page(1, a), page(2, b), page(1, a), page(2, b)], "another etcd cluster", 6),
    ] {
        let server = Server::start(steps).await;
        let store = store_of(ApiChoice::Only(Api::V3), &[&server.url()]);
        let error = store.list(&prefix()).await.unwrap_err().to_string();
        assert!(error.contains(expected) && error.contains(&server.url()), "{error}");
        assert_eq!(server.requests(), requests, "{error}");
    }
}

#[tokio::test]
async fn a_million_keys_are_more_than_a_listing_may_have_in_both_apis_and_that_is_said() {
    // As short as they may be: it is still more than the limit.
    let v2: Vec<String> = (0..1_000_000).map(|name| listed(name, "")).collect();
    let key = r#"{"key":"L3NlcnZpY2UvYS8xMC4wLjAuMTo4MDAw","create_revision":"7","mod_revision":"7","version":"1","value":"cnVubmluZw=="}"#;
    let v3 = format!(r#"{{"header":{{"cluster_id":"1","revision":"7"}},"kvs":[{}]}}"#, vec![key; 1_000_000].join(","));
    for (api, body) in [(Api::V2, listing(&v2)), (Api::V3, v3)] {
        let server = Server::start(vec![Step::Send(reply("c1", 7, &body))]).await;
        let mut options = StoreOptions::new(registry::parse_endpoints(&server.url()).unwrap());
        options.api = ApiChoice::Only(api);
        options.request_timeout = DEADLINE;
        let error = Store::new(options).unwrap().list(&prefix()).await.unwrap_err().to_string();
        assert!(error.contains("more than 67108864 bytes") && error.contains("is --key"), "{api:?}: {error}");
    }
}
