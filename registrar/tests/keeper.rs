//! The keeper against the real etcd: what is wanted comes, stays and goes, whatever happens meanwhile.

#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use prometheus_client::registry::Registry;
use registrar::keeper::{Claim, Keeper, Told};
use registrar::metrics::{Daemon, Metrics};
use registry::{Api, Entry, InstanceKey, Ownership, Record, Status, Store};
use support::etcd::Etcd;
use support::{entries, eventually, paths, store_of, store_within};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};

const TTL: Duration = Duration::from_secs(20);
/// Refreshed three times a second.
const SHORT_TTL: Duration = Duration::from_secs(1);
/// Long enough for keys to be renewed in time on a machine that stands still for seconds.
const BUSY_TTL: Duration = Duration::from_secs(10);
/// After this time a key of [`BUSY_TTL`] is gone where nobody has renewed it.
const OUTLIVED: Duration = Duration::from_secs(12);
/// After this time it has been renewed.
const RENEWED: Duration = Duration::from_secs(4);

fn key(at: u16) -> InstanceKey {
    InstanceKey::parse(&"service".parse().unwrap(), &format!("/service/web/10.0.0.1:{at}")).unwrap()
}

fn record(agent: &str, status: Status) -> Arc<str> {
    Record { agent: Some(agent.to_owned()), status, ..Record::default() }.to_value().into()
}

fn running() -> Arc<str> {
    record("a1", Status::Running)
}

fn draining() -> Arc<str> {
    record("a1", Status::Draining)
}

fn keeper(api: Api, etcd: &Etcd, ttl: Duration) -> Keeper {
    keeper_at(api, &etcd.url(), ttl)
}

fn keeper_at(api: Api, url: &str, ttl: Duration) -> Keeper {
    Keeper::new(
        store_within(Duration::from_secs(1), api, url),
        "service".parse().unwrap(),
        Duration::from_secs(1),
        Claim::Own("a1".to_owned()),
        ttl,
    )
}

/// Writes a key as somebody else does, with a lease of its own.
async fn put(store: &Store, key: &InstanceKey, value: &str, ttl: Duration) -> Ownership {
    store.put(key, value, &store.grant(ttl).await.unwrap()).await.unwrap()
}

/// Runs each test by both of etcd's APIs.
macro_rules! by_both {
    ($($name:ident)*) => {
        mod v2 {
            $(#[tokio::test]
            async fn $name() {
                super::$name(registry::Api::V2).await;
            })*
        }
        mod v3 {
            $(#[tokio::test]
            async fn $name() {
                super::$name(registry::Api::V3).await;
            })*
        }
    };
}

by_both! {
    what_is_wanted_is_written_changed_and_removed
    a_key_that_is_no_longer_wanted_while_it_is_written_is_removed
    what_others_have_written_is_left_alone_until_it_is_gone
    an_operators_word_in_our_key_is_told_whether_it_was_set_or_changed_in_place
    a_key_of_an_earlier_run_is_taken_over_in_place
    after_an_outage_of_etcd_everything_is_there_within_seconds
    all_is_removed_at_the_end_and_what_cannot_be_is_left_in_time
    a_write_whose_answer_was_lost_is_not_taken_for_an_operators_word
    a_key_that_is_let_go_is_left_to_its_time_to_live
    a_key_that_is_let_go_does_not_live_on_with_those_that_are_kept
    an_operators_word_is_told_before_another_value_is_written_over_it
    what_is_written_lost_and_regained_is_counted
}

/// The value of a metric of the registrar's.
fn counted(metrics: &Registry, name: &str) -> Option<f64> {
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, metrics).unwrap();
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
}

async fn what_is_written_lost_and_regained_is_counted(api: Api) {
    let (etcd, metrics, mut registry) = (Etcd::start(), Metrics::default(), Registry::default());
    metrics.register(&mut registry, Daemon::Agent, SHORT_TTL);
    let way = Way::to(&etcd, Fault::None).await;
    let store = store_of(api, &etcd.url());
    let keeper = AtWork::start(keeper_at(api, &way.url, BUSY_TTL).counting(metrics));
    let of = |name: &str, labels: &str| {
        let labels = if labels.is_empty() { String::new() } else { format!(",{labels}") };
        counted(&registry, &format!("registrar_{name}{{api=\"{api}\"{labels}}}")).unwrap_or_default()
    };
    for at in 1..=2 {
        keeper.want(at, Some(running())).await;
    }
    eventually("they are refreshed", async || of("key_writes_total", r#"operation="refresh",result="ok""#) >= 2.0)
        .await;
    assert_eq!(of("key_writes_total", r#"operation="register",result="ok""#), 2.0);
    assert_eq!((of("keys_lost_total", ""), of("keys_regained_total", "")), (0.0, 0.0));
    let owned = store.get(&key(1)).await.unwrap().unwrap().ownership();
    store.delete(&key(1), &owned).await.unwrap();
    eventually("it is regained", async || of("keys_regained_total", "") == 1.0).await;
    assert_eq!(of("keys_lost_total", ""), 1.0);
    keeper.want(1, Some(draining())).await;
    keeper.want(2, None).await;
    let done = async || {
        let ok = |operation: &str| of("key_writes_total", &format!(r#"operation="{operation}",result="ok""#));
        (ok("update"), ok("remove")) == (1.0, 1.0)
    };
    eventually("one is changed and one removed", done).await;
    way.has(Fault::Drops("HTTP"));
    eventually("a failure is counted", async || of("etcd_failures_total", r#"cause="broke_off""#) >= 1.0).await;
    assert!(of("key_writes_total", r#"operation="refresh",result="failed""#) >= 1.0);
}

/// A key of a service whose keys are tried before those of the others.
fn bad_key() -> InstanceKey {
    InstanceKey::parse(&"service".parse().unwrap(), "/service/bad/10.0.0.1:1").unwrap()
}

/// Asks etcd past the store, which would never do such things.
async fn raw(etcd: &Etcd, method: reqwest::Method, path: &str) -> serde_json::Value {
    registry::store::use_ring();
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let reply = client.request(method, format!("{}{path}", etcd.url())).send().await.unwrap();
    serde_json::from_str(&reply.text().await.unwrap()).unwrap()
}

/// What is wrong with the way to etcd.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    /// What is asked is done, and nobody hears of it.
    LosesReplies,
    /// Requests with this text in their head get no answer.
    Drops(&'static str),
}

/// A way to etcd on which things go wrong.
struct Way {
    url: String,
    fault: Arc<Mutex<Fault>>,
    _task: JoinSet<()>,
}

impl Way {
    async fn to(etcd: &Etcd, fault: Fault) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let etcd = etcd.url().strip_prefix("http://").unwrap().to_owned();
        let fault = Arc::new(Mutex::new(fault));
        let shared = Arc::clone(&fault);
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                connections.spawn(pass_on(stream, etcd.clone(), Arc::clone(&shared)));
            }
        });
        Self { url, fault, _task: task }
    }

    fn has(&self, fault: Fault) {
        *self.fault.lock().unwrap() = fault;
    }
}

/// Passes one request on, and its answer back.
async fn pass_on(mut stream: TcpStream, etcd: String, fault: Arc<Mutex<Fault>>) -> Option<()> {
    let mut request = Vec::new();
    let head = loop {
        if stream.read_buf(&mut request).await.ok()? == 0 {
            return None;
        }
        if let Some(end) = request.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
            break String::from_utf8(request[..end + 4].to_vec()).ok()?;
        }
    };
    let length = head.to_ascii_lowercase().lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
    while request.len() < head.len() + length.unwrap_or(0) {
        stream.read_buf(&mut request).await.ok()?;
    }
    let fault = *fault.lock().unwrap();
    if matches!(fault, Fault::Drops(text) if head.contains(text)) {
        return None;
    }
    let mut upstream = TcpStream::connect(etcd).await.ok()?;
    upstream.write_all(head.replacen("\r\n", "\r\nConnection: close\r\n", 1).as_bytes()).await.ok()?;
    upstream.write_all(&request[head.len()..]).await.ok()?;
    let mut reply = Vec::new();
    upstream.read_to_end(&mut reply).await.ok()?;
    if fault != Fault::LosesReplies {
        stream.write_all(&reply).await.ok()?;
    }
    None
}

/// A keeper at work.
struct AtWork {
    wishes: mpsc::Sender<(InstanceKey, Option<Arc<str>>)>,
    told: mpsc::Receiver<Told>,
    task: JoinHandle<Keeper>,
}

impl AtWork {
    fn start(mut keeper: Keeper) -> Self {
        let (wishes, mut wished) = mpsc::channel(1000);
        let (tell, told) = mpsc::channel(1000);
        let task = tokio::spawn(async move {
            loop {
                tokio::select! {
                    biased;
                    wish = wished.recv() => match wish {
                        Some((key, value)) => keeper.want(&key, value),
                        None => return keeper,
                    },
                    told = keeper.next() => tell.send(told).await.unwrap(),
                }
            }
        });
        Self { wishes, told, task }
    }

    async fn want(&self, at: u16, value: Option<Arc<str>>) {
        self.want_at(key(at), value).await;
    }

    async fn want_at(&self, key: InstanceKey, value: Option<Arc<str>>) {
        self.wishes.send((key, value)).await.unwrap();
    }

    async fn stop(self) -> Keeper {
        drop(self.wishes);
        self.task.await.unwrap()
    }
}

async fn value(store: &Store, at: u16) -> Option<String> {
    store.get(&key(at)).await.unwrap().map(|entry| entry.value)
}

async fn eventually_holds(store: &Store, at: u16, expected: Option<&str>) {
    eventually("the value", async || value(store, at).await.as_deref() == expected).await;
}

async fn found(told: &mut mpsc::Receiver<Told>) -> Status {
    loop {
        if let Told::Found(_, record) = tokio::time::timeout(support::DEADLINE, told.recv()).await.unwrap().unwrap() {
            return record.status;
        }
    }
}

async fn what_is_wanted_is_written_changed_and_removed(api: Api) {
    let etcd = Etcd::start();
    let (store, keeper) = (store_of(api, &etcd.url()), AtWork::start(keeper(api, &etcd, TTL)));
    keeper.want(1, Some(running())).await;
    eventually_holds(&store, 1, Some(&running())).await;
    let created = store.get(&key(1)).await.unwrap().unwrap().created_index();
    keeper.want(1, Some(draining())).await;
    eventually_holds(&store, 1, Some(&draining())).await;
    assert_eq!(store.get(&key(1)).await.unwrap().unwrap().created_index(), created);
    keeper.want(1, None).await;
    eventually_holds(&store, 1, None).await;
}

async fn a_key_that_is_no_longer_wanted_while_it_is_written_is_removed(api: Api) {
    let mut etcd = Etcd::start();
    let (store, keeper) = (store_of(api, &etcd.url()), AtWork::start(keeper(api, &etcd, TTL)));
    // Written while etcd stands still, so that the request is on its way when the wish changes.
    etcd.freeze();
    for at in 1..=40 {
        keeper.want(at, Some(running())).await;
    }
    tokio::time::sleep(Duration::from_millis(50)).await;
    for at in 1..=40 {
        keeper.want(at, None).await;
    }
    keeper.want(41, Some(running())).await;
    // Until the limit on a request is over: what became of it is not known.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    etcd.thaw();
    eventually("only the last", async || paths(&store).await == [key(41).path()]).await;
    keeper.stop().await.withdraw(Duration::ZERO).await;
    assert_eq!(paths(&store).await, Vec::<String>::new());
    etcd.stop();
}

async fn what_others_have_written_is_left_alone_until_it_is_gone(api: Api) {
    let etcd = Etcd::start();
    let (store, keeper) = (store_of(api, &etcd.url()), AtWork::start(keeper(api, &etcd, SHORT_TTL)));
    for (at, theirs) in [(1, "running".to_owned()), (2, record("a2", Status::Running).to_string())] {
        let ownership = put(&store, &key(at), &theirs, TTL).await;
        keeper.want(at, Some(running())).await;
        keeper.want(at + 10, Some(running())).await;
        eventually_holds(&store, at + 10, Some(&running())).await;
        assert_eq!(value(&store, at).await.as_ref(), Some(&theirs));
        store.delete(&key(at), &ownership).await.unwrap();
        eventually_holds(&store, at, Some(&running())).await;
        // Taken from us later, it is left alone too, also when we go.
        put(&store, &key(at), &theirs, TTL).await;
        tokio::time::sleep(SHORT_TTL).await;
        keeper.want(at, None).await;
        keeper.want(at + 10, None).await;
        eventually_holds(&store, at + 10, None).await;
        assert_eq!(value(&store, at).await.as_ref(), Some(&theirs));
    }
}

async fn an_operators_word_in_our_key_is_told_whether_it_was_set_or_changed_in_place(api: Api) {
    let etcd = Etcd::start();
    let (store, mut keeper) = (store_of(api, &etcd.url()), AtWork::start(keeper(api, &etcd, BUSY_TTL)));
    keeper.want(1, Some(running())).await;
    eventually_holds(&store, 1, Some(&running())).await;
    // Set anew.
    put(&store, &key(1), &draining(), TTL).await;
    assert_eq!(found(&mut keeper.told).await, Status::Draining);
    keeper.want(1, Some(draining())).await;
    tokio::time::sleep(RENEWED).await;
    // Changed in place.
    let entry = store.get(&key(1)).await.unwrap().unwrap();
    assert_eq!(entry.value, *draining());
    store.amend(&key(1), &running(), &entry).await.unwrap();
    assert_eq!(found(&mut keeper.told).await, Status::Running);
}

async fn a_key_of_an_earlier_run_is_taken_over_in_place(api: Api) {
    let etcd = Etcd::start();
    let store = store_of(api, &etcd.url());
    put(&store, &key(1), &running(), BUSY_TTL).await;
    put(&store, &key(2), &running(), BUSY_TTL).await;
    let before = entries(&store).await;
    let mut keeper = keeper(api, &etcd, BUSY_TTL);
    keeper.take_over(&key(1), &before[0]);
    let mut keeper = AtWork::start(keeper);
    // One that was not found at the start is found when it is written.
    keeper.want(2, Some(running())).await;
    assert_eq!(found(&mut keeper.told).await, Status::Running);
    tokio::time::sleep(OUTLIVED).await;
    let created = |entries: &[Entry]| entries.iter().map(Entry::created_index).collect::<Vec<_>>();
    assert_eq!(created(&entries(&store).await), created(&before));
    keeper.want(1, None).await;
    eventually_holds(&store, 1, None).await;
}

async fn after_an_outage_of_etcd_everything_is_there_within_seconds(api: Api) {
    let mut etcd = Etcd::start();
    let (store, keeper) = (store_of(api, &etcd.url()), AtWork::start(keeper(api, &etcd, SHORT_TTL)));
    keeper.want(1, Some(running())).await;
    eventually_holds(&store, 1, Some(&running())).await;
    etcd.stop();
    for at in 2..=100 {
        keeper.want(at, Some(running())).await;
    }
    keeper.want(1, None).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    etcd.run();
    let back = Instant::now();
    eventually("all of them", async || paths(&store).await.len() == 99).await;
    assert!(back.elapsed() < Duration::from_secs(15), "{:?}", back.elapsed());
    assert_eq!(value(&store, 1).await, None);
}

async fn all_is_removed_at_the_end_and_what_cannot_be_is_left_in_time(api: Api) {
    let etcd = Etcd::start();
    let store = store_of(api, &etcd.url());
    for is_frozen in [false, true] {
        let keeper = AtWork::start(keeper(api, &etcd, TTL));
        for at in 1..=50 {
            keeper.want(at, Some(running())).await;
        }
        eventually("all of them", async || paths(&store).await.len() == 50).await;
        let keeper = keeper.stop().await;
        if is_frozen {
            etcd.freeze();
        }
        let start = Instant::now();
        keeper.withdraw(Duration::ZERO).await;
        assert!(start.elapsed() < Duration::from_secs(15), "{:?}", start.elapsed());
        assert!(is_frozen || paths(&store).await.is_empty());
        etcd.thaw();
    }
}

/// A key that etcd does not take is tried first, and the others are written, renewed and removed all the same.
async fn the_others_go_on(etcd: &Etcd, keeper: &AtWork) {
    let store = store_of(Api::V2, &etcd.url());
    keeper.want_at(bad_key(), Some(running())).await;
    for at in 1..=40 {
        keeper.want(at, Some(running())).await;
    }
    let all =
        async || entries(&store).await.into_iter().filter(|entry| entry.path.starts_with("/service/web/")).collect();
    eventually("all others", async || Vec::len(&all().await) == 40).await;
    let created = |entries: &[Entry]| entries.iter().map(Entry::created_index).collect::<Vec<_>>();
    let before: Vec<Entry> = all().await;
    tokio::time::sleep(OUTLIVED).await;
    assert_eq!(created(&all().await), created(&before), "none was ever gone");
    keeper.want(5, None).await;
    eventually_holds(&store, 5, None).await;
    assert_eq!(store.get(&bad_key()).await.unwrap(), None);
}

#[tokio::test]
async fn a_key_that_etcd_refuses_holds_up_no_other_and_is_written_when_it_may_be() {
    let etcd = Etcd::start();
    // The directory of its service is a key with a value.
    raw(&etcd, reqwest::Method::PUT, "/v2/keys/service/bad?value=x").await;
    let keeper = AtWork::start(keeper(Api::V2, &etcd, BUSY_TTL));
    the_others_go_on(&etcd, &keeper).await;
    raw(&etcd, reqwest::Method::DELETE, "/v2/keys/service/bad").await;
    let store = store_of(Api::V2, &etcd.url());
    eventually("the key", async || store.get(&bad_key()).await.unwrap().is_some()).await;
}

#[tokio::test]
async fn a_key_whose_requests_get_no_answer_holds_up_no_other() {
    let etcd = Etcd::start();
    let way = Way::to(&etcd, Fault::Drops("/service/bad/")).await;
    let keeper = AtWork::start(keeper_at(Api::V2, &way.url, BUSY_TTL));
    the_others_go_on(&etcd, &keeper).await;
    way.has(Fault::None);
    let store = store_of(Api::V2, &etcd.url());
    eventually("the key", async || store.get(&bad_key()).await.unwrap().is_some()).await;
}

#[tokio::test]
async fn a_directory_in_the_place_of_a_key_is_waited_for_with_patience() {
    let etcd = Etcd::start();
    let path = format!("/v2/keys{}", key(1).path());
    raw(&etcd, reqwest::Method::PUT, &format!("{path}?dir=true")).await;
    let keeper = AtWork::start(keeper(Api::V2, &etcd, TTL));
    let failed = async || raw(&etcd, reqwest::Method::GET, "/v2/stats/store").await["createFail"].as_u64().unwrap();
    keeper.want(1, Some(running())).await;
    eventually("an attempt", async || failed().await > 0).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(failed().await <= 10, "{} attempts in 2 s", failed().await);
    raw(&etcd, reqwest::Method::DELETE, &format!("{path}?dir=true")).await;
    eventually_holds(&store_of(Api::V2, &etcd.url()), 1, Some(&running())).await;
}

async fn a_write_whose_answer_was_lost_is_not_taken_for_an_operators_word(api: Api) {
    let etcd = Etcd::start();
    let (store, way) = (store_of(api, &etcd.url()), Way::to(&etcd, Fault::None).await);
    let mut keeper = AtWork::start(keeper_at(api, &way.url, BUSY_TTL));
    keeper.want(1, Some(running())).await;
    eventually_holds(&store, 1, Some(&running())).await;
    way.has(Fault::LosesReplies);
    keeper.want(1, Some(draining())).await;
    // So is the first write of a key.
    keeper.want(2, Some(draining())).await;
    eventually_holds(&store, 1, Some(&draining())).await;
    eventually_holds(&store, 2, Some(&draining())).await;
    keeper.want(1, Some(running())).await;
    keeper.want(2, Some(running())).await;
    way.has(Fault::None);
    eventually_holds(&store, 1, Some(&running())).await;
    eventually_holds(&store, 2, Some(&running())).await;
    tokio::time::sleep(RENEWED).await;
    while let Ok(told) = keeper.told.try_recv() {
        assert!(matches!(told, Told::NotWritten(_)), "{told:?}");
    }
}

async fn a_key_that_is_let_go_is_left_to_its_time_to_live(api: Api) {
    let etcd = Etcd::start();
    let store = store_of(api, &etcd.url());
    for at in [1, 2] {
        put(&store, &key(at), &running(), BUSY_TTL).await;
    }
    let before = entries(&store).await;
    let mut keeper = keeper(api, &etcd, BUSY_TTL);
    for (at, entry) in [1, 2].into_iter().zip(&before) {
        keeper.take_over(&key(at), entry);
    }
    keeper.let_go(&key(1));
    let keeper = AtWork::start(keeper);
    assert_eq!(value(&store, 1).await.as_deref(), Some(&*running()), "it is not removed");
    eventually_holds(&store, 1, None).await;
    assert_eq!(value(&store, 2).await.as_deref(), Some(&*running()));
    drop(keeper);
}

async fn a_key_that_is_let_go_does_not_live_on_with_those_that_are_kept(api: Api) {
    let etcd = Etcd::start();
    let store = store_of(api, &etcd.url());
    let keeper = AtWork::start(keeper(api, &etcd, BUSY_TTL));
    for at in [1, 2] {
        keeper.want(at, Some(running())).await;
        eventually_holds(&store, at, Some(&running())).await;
    }
    let created = async |at| store.get(&key(at)).await.unwrap().map(|entry| entry.created_index());
    let before = created(2).await;
    let mut keeper = keeper.stop().await;
    keeper.let_go(&key(1));
    let keeper = AtWork::start(keeper);
    eventually_holds(&store, 1, None).await;
    tokio::time::sleep(RENEWED).await;
    assert_eq!(created(2).await, before, "the other was never gone");
    drop(keeper);
}

async fn an_operators_word_is_told_before_another_value_is_written_over_it(api: Api) {
    let etcd = Etcd::start();
    let (store, mut keeper) = (store_of(api, &etcd.url()), AtWork::start(keeper(api, &etcd, TTL)));
    keeper.want(1, Some(running())).await;
    eventually_holds(&store, 1, Some(&running())).await;
    let entry = store.get(&key(1)).await.unwrap().unwrap();
    store.amend(&key(1), &draining(), &entry).await.unwrap();
    // What we want has changed too, before the key was renewed.
    let heavier = Record { weight: Some(7), ..Record::parse(&running()).unwrap() }.to_value();
    keeper.want(1, Some(heavier.as_str().into())).await;
    assert_eq!(found(&mut keeper.told).await, Status::Draining);
    eventually_holds(&store, 1, Some(&heavier)).await;
}

/// Asks etcd's v3 API past the store.
async fn raw_v3(etcd: &Etcd, method: &str, body: String) -> serde_json::Value {
    registry::store::use_ring();
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let reply = client.post(format!("{}/v3/{method}", etcd.url())).body(body).send().await.unwrap();
    serde_json::from_str(&reply.text().await.unwrap()).unwrap()
}

#[tokio::test]
async fn a_lease_found_gone_when_a_key_is_written_brings_all_its_keys_back_at_once() {
    let etcd = Etcd::start();
    let store = store_of(Api::V3, &etcd.url());
    // Renewed long after this test.
    let keeper = AtWork::start(keeper(Api::V3, &etcd, TTL * 10));
    for at in 1..=40 {
        keeper.want(at, Some(running())).await;
    }
    eventually("all of them", async || paths(&store).await.len() == 40).await;
    let leases = raw_v3(&etcd, "lease/leases", "{}".to_owned()).await;
    raw_v3(&etcd, "lease/revoke", serde_json::json!({"ID": leases["leases"][0]["ID"]}).to_string()).await;
    assert_eq!(paths(&store).await, Vec::<String>::new());
    for at in 41..=80 {
        keeper.want(at, Some(running())).await;
    }
    eventually("all of them again", async || paths(&store).await.len() == 80).await;
    let leases = raw_v3(&etcd, "lease/leases", "{}".to_owned()).await;
    assert_eq!(leases["leases"].as_array().unwrap().len(), 1, "one lease was got for all: {leases}");
}

#[tokio::test]
async fn a_lease_that_has_kept_nothing_for_a_while_is_renewed_with_the_next_key() {
    let etcd = Etcd::start();
    let store = store_of(Api::V3, &etcd.url());
    let keeper = AtWork::start(keeper(Api::V3, &etcd, TTL));
    keeper.want(1, Some(running())).await;
    eventually_holds(&store, 1, Some(&running())).await;
    keeper.want(1, None).await;
    eventually_holds(&store, 1, None).await;
    // Longer than a third of its time, in which it is renewed where it keeps anything, and shorter than it is used for.
    tokio::time::sleep(TTL * 2 / 5).await;
    keeper.want(2, Some(running())).await;
    eventually_holds(&store, 2, Some(&running())).await;
    let written = store.get(&key(2)).await.unwrap().unwrap().ownership();
    tokio::time::sleep(TTL).await;
    assert_eq!(
        store.get(&key(2)).await.unwrap().unwrap().ownership(),
        written,
        "it was tied to another lease in haste"
    );
}

#[tokio::test]
async fn a_key_that_etcd_writes_late_does_not_live_on_by_the_lease_of_the_others() {
    let etcd = Etcd::start();
    let store = store_of(Api::V3, &etcd.url());
    let keeper = AtWork::start(keeper(Api::V3, &etcd, SHORT_TTL * 3));
    keeper.want(1, Some(running())).await;
    eventually_holds(&store, 1, Some(&running())).await;
    // What a member does that stood still with a request of ours, when its key is no longer wanted.
    let leases = raw_v3(&etcd, "lease/leases", "{}".to_owned()).await;
    let base64 = |text: &str| base64::Engine::encode(&base64::engine::general_purpose::STANDARD, text);
    let late = serde_json::json!({
        "key": base64(&key(2).path()), "value": base64(&running()), "lease": leases["leases"][0]["ID"]
    });
    raw_v3(&etcd, "kv/put", late.to_string()).await;
    assert!(value(&store, 2).await.is_some());
    eventually_holds(&store, 2, None).await;
    eventually_holds(&store, 1, Some(&running())).await;
    drop(keeper);
}
