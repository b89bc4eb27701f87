//! Drained on an operator's word: what is still done is waited for, by the word of every discoverer that is there.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use e2e::agent::{Agent, REGISTERED, instances, wait_at, wait_instances, wait_none};
use e2e::app::IMAGE;
use e2e::backend::Backend;
use e2e::discoverer::{Builder, Discoverer, SOON};
use e2e::docker::{Container, Docker};
use e2e::etcd::Etcd;
use e2e::haproxy::{Haproxy, Version};
use e2e::http::{self, Connection};
use e2e::load::Load;
use e2e::ports::free_port;
use e2e::process::{Finished, find_workspace_binary, run};
use e2e::registrar::Registrar;
use e2e::users;
use e2e::{secs, stays_true, wait_until, within};
use nix::sys::signal::Signal;
use serde_json::Value;
use tokio::task::JoinHandle;

/// The agent that stands in keys written by hand.
const MINE: &str = r#"{"agent":"mine","id":"one"}"#;
const OTHERS: &str = r#"{"agent":"others","id":"two"}"#;

/// Runs a command of the registrar to its end.
async fn registrar(etcd: &Etcd, args: &[&str]) -> Finished {
    let url = etcd.url();
    let (command, rest) = args.split_first().unwrap();
    let all = [&[*command, "--etcd", &url], rest].concat();
    run(&find_workspace_binary("registrar"), &all, &[], secs(90)).await
}

/// Begins `drain --all --wait` of what is [`MINE`].
fn begin_drain(etcd: &Etcd) -> JoinHandle<Finished> {
    let url = etcd.url();
    tokio::spawn(async move {
        let args = ["drain", "--etcd", &url, "--all", "--agent-id", "mine", "--wait", "--json"];
        run(&find_workspace_binary("registrar"), &args, &[], secs(90)).await
    })
}

/// `drain --all --wait` of what is [`MINE`], for at most so long.
async fn drain(etcd: &Etcd, timeout: &str) -> Finished {
    registrar(etcd, &["drain", "--all", "--agent-id", "mine", "--wait", "--timeout", timeout]).await
}

async fn undrain(etcd: &Etcd) {
    let said = registrar(etcd, &["undrain", "--all", "--agent-id", "mine"]).await;
    assert!(said.code == Some(0) && said.stdout.contains(": running"), "{said:?}");
}

/// What the discoverers of `/service` say of themselves, by their ids.
async fn acknowledgements(etcd: &Etcd) -> BTreeMap<String, Value> {
    let directory = etcd.get("/_discoverers/service").await.unwrap_or_default();
    let nodes = directory["nodes"].as_array().cloned().unwrap_or_default();
    let read = |node: Value| {
        let id = node["key"].as_str()?.rsplit('/').next()?.to_owned();
        Some((id, serde_json::from_str(node["value"].as_str()?).ok()?))
    };
    nodes.into_iter().filter_map(read).collect()
}

/// Waits until so many discoverers have taken in what is there.
async fn wait_discoverers(etcd: &Etcd, count: usize) {
    wait_until(SOON, &format!("{count} discoverers say that they are there"), async || {
        let seen = acknowledgements(etcd).await;
        if seen.len() == count { Ok(()) } else { Err(format!("{seen:?}")) }
    })
    .await;
}

/// Waits until a discoverer says this of an instance.
async fn wait_says(etcd: &Etcd, backend: &Backend, state: &str, sessions: u64) {
    wait_until(SOON, &format!("{state} with {sessions} sessions is said of {}", backend.name()), async || {
        let seen = acknowledgements(etcd).await;
        let is_it = |says: &Value| {
            let drain = &says["draining"][backend.address().to_string()];
            drain["state"] == state && drain["sessions"] == sessions
        };
        if seen.values().any(is_it) { Ok(()) } else { Err(format!("{seen:?}")) }
    })
    .await;
}

/// The id that a discoverer keeps.
fn mark(discoverer: &Discoverer) -> String {
    std::fs::read_to_string(discoverer.state_dir().join("discoverer-id")).unwrap().trim().to_owned()
}

/// Sends a request that is held for however long a busy machine takes to let it go: [`http::get`] would give it up.
fn hold(http: SocketAddr) -> JoinHandle<std::io::Result<http::Reply>> {
    tokio::spawn(async move { Connection::open(http).await?.exchange("GET", "/hold", &[], "").await })
}

/// The line of an answer that is about a discoverer.
fn line_of<'a>(said: &'a Finished, discoverer: &Discoverer) -> &'a str {
    let mark = mark(discoverer);
    said.stdout.lines().find(|line| line.contains(&mark)).unwrap_or_else(|| panic!("nothing of {mark}: {said:?}"))
}

/// With HAProxy keeping a connection on which nothing is asked for longer than a busy machine takes over what follows.
fn keeps_long(discoverer: Builder) -> Builder {
    discoverer.edit("timeout http-keep-alive 10s", "timeout http-keep-alive 60s")
}

/// An etcd, an HAProxy with its discoverer, and two instances that are served, of which one is [`MINE`].
struct Site {
    etcd: Etcd,
    discoverer: Discoverer,
    mine: Backend,
    others: Backend,
}

impl Site {
    async fn start(version: Version) -> Site {
        let etcd = Etcd::start().await;
        let discoverer = keeps_long(Discoverer::supervise(&etcd.url()).haproxy(version)).start();
        Site::with(etcd, discoverer).await
    }

    async fn with(etcd: Etcd, discoverer: Discoverer) -> Site {
        let site = Site::unheard(etcd, discoverer).await;
        wait_discoverers(&site.etcd, 1).await;
        site
    }

    /// As [`Site::with`], of a discoverer that cannot say that it is there.
    async fn unheard(etcd: Etcd, mut discoverer: Discoverer) -> Site {
        let (mine, others) = (Backend::start("mine").await, Backend::start("others").await);
        etcd.put(&mine.flat_key(), MINE).await;
        etcd.put(&others.flat_key(), OTHERS).await;
        discoverer.wait_serves(&["mine", "others"]).await;
        Site { etcd, discoverer, mine, others }
    }

    /// Sends requests that are held until both instances have one.
    async fn hold(&self) -> Vec<JoinHandle<std::io::Result<http::Reply>>> {
        let http = self.discoverer.http();
        let mut held = Vec::new();
        while self.mine.open() == 0 || self.others.open() == 0 {
            let open = self.mine.open() + self.others.open();
            held.push(hold(http));
            wait_until(SOON, "the request is held", async || {
                let now = self.mine.open() + self.others.open();
                if now > open { Ok(()) } else { Err(format!("{now} are")) }
            })
            .await;
        }
        held
    }
}

#[tokio::test]
async fn a_request_that_goes_on_holds_a_drain_until_it_ends() {
    within(90, what_goes_on_is_waited_for(Version::Installed)).await;
}

#[tokio::test]
async fn a_request_that_goes_on_holds_a_drain_until_it_ends_on_haproxy_3_0() {
    within(90, what_goes_on_is_waited_for(Version::V3_0)).await;
}

async fn what_goes_on_is_waited_for(version: Version) {
    let mut site = Site::start(version).await;
    let held = site.hold().await;
    let draining = begin_drain(&site.etcd);
    wait_says(&site.etcd, &site.mine, "drained", 1).await;
    site.discoverer.wait_serves(&["others"]).await;
    // An agent that knew nothing of it yet writes what it knew.
    site.etcd.put(&site.mine.flat_key(), MINE).await;
    wait_until(SOON, "it drains again", async || {
        let node = site.etcd.get(&site.mine.flat_key()).await.unwrap();
        if node["value"].as_str().unwrap().contains("draining") { Ok(()) } else { Err(node.to_string()) }
    })
    .await;
    wait_says(&site.etcd, &site.mine, "drained", 1).await;
    stays_true(secs(2), "it is waited for", async || match draining.is_finished() {
        false => Ok(()),
        true => Err("it has ended".to_owned()),
    })
    .await;
    site.mine.release();
    let said = draining.await.unwrap();
    assert_eq!(said.code, Some(0), "{said:?}");
    let json: Value = serde_json::from_str(&said.stdout).unwrap();
    assert_eq!(json["instances"][0]["key"], site.mine.flat_key());
    assert_eq!((&json["instances"][0]["status"], &json["discoverers"][0]["done"]), (&"draining".into(), &true.into()));
    assert_eq!(json["pending"], Value::Array(vec![]));
    // Nobody else's is touched.
    assert_eq!(site.etcd.get(&site.others.flat_key()).await.unwrap()["value"], OTHERS);
    undrain(&site.etcd).await;
    site.discoverer.wait_serves(&["mine", "others"]).await;
    site.others.release();
    for request in held {
        assert_eq!(request.await.unwrap().unwrap().status, 200);
    }
}

#[tokio::test]
async fn one_that_is_taken_back_while_it_is_waited_for_stays_so() {
    within(60, async {
        let mut site = Site::start(Version::Installed).await;
        let held = site.hold().await;
        let draining = begin_drain(&site.etcd);
        wait_says(&site.etcd, &site.mine, "drained", 1).await;
        // Longer than an agent's own word may come in between.
        stays_true(secs(11), "it is waited for", async || match draining.is_finished() {
            false => Ok(()),
            true => Err("it has ended".to_owned()),
        })
        .await;
        undrain(&site.etcd).await;
        let said = draining.await.unwrap();
        assert!(said.code == Some(1) && said.stderr.contains("was set to running again"), "{said:?}");
        site.discoverer.wait_serves(&["mine", "others"]).await;
        drop(held);
    })
    .await;
}

#[tokio::test]
async fn a_discoverer_that_follows_the_directory_above_or_below_is_asked_too() {
    within(90, async {
        let etcd = Etcd::start().await;
        let (mine, others) = (Backend::start("mine").await, Backend::start("others").await);
        etcd.put(&mine.key_in("shop"), MINE).await;
        etcd.put(&others.key_in("shop"), OTHERS).await;
        let mut above = Discoverer::supervise(&etcd.url()).start();
        let mut below = Discoverer::supervise(&etcd.url()).key("service/shop").start();
        for discoverer in [&mut above, &mut below] {
            discoverer.wait_serves(&["mine", "others"]).await;
        }
        wait_discoverers(&etcd, 1).await;
        wait_until(SOON, "the one below says that it is there", async || {
            etcd.get("/_discoverers/service/shop").await.ok_or_else(|| "not yet".to_owned())
        })
        .await;
        for key in ["service", "service/shop"] {
            let args = ["drain", "--all", "--agent-id", "mine", "--wait", "--timeout", "20s", "--key", key];
            let said = registrar(&etcd, &args).await;
            assert_eq!(said.code, Some(0), "{said:?}");
            for discoverer in [&above, &below] {
                assert!(line_of(&said, discoverer).ends_with(": nothing is left"), "{said:?}");
            }
        }
    })
    .await;
}

/// Keeps the key of an instance until it is dropped.
fn keep(etcd: &Etcd, api: &str, backend: &Backend, agent: &str) -> Registrar {
    let (url, address) = (etcd.url(), backend.address().to_string());
    let args =
        ["static", "--etcd", &url, "--etcd-api", api, "--address", &address, "--name", "shop", "--agent-id", agent];
    Registrar::start(&[&args[..], &["--ttl", "8s"]].concat())
}

/// One discoverer follows v2, the other v3; whoever keeps the keys writes both.
#[tokio::test]
async fn a_discoverer_of_another_share_is_not_waited_for() {
    within(120, async {
        let etcd = Etcd::start().await;
        let mut edge = Discoverer::supervise(&etcd.url()).args(&["--only", "tag=edge"]).start();
        let (one, two) = (Backend::start("one").await, Backend::start("two").await);
        etcd.put(&one.flat_key(), r#"{"tags":["edge"]}"#).await;
        etcd.put(&two.flat_key(), r#"{"agent":"mine","tags":["inner"]}"#).await;
        edge.wait_serves(&["one"]).await;
        wait_discoverers(&etcd, 1).await;
        // It says so at once, and not when its key is due to be written again, a quarter of 20 s later: so each try begins when it
        // has just been written. A busy machine may need more than one.
        for last in [false, false, true] {
            wait_until(SOON, "what it says was just written", async || {
                let directory = etcd.get("/_discoverers/service").await.unwrap_or_default();
                if directory["nodes"][0]["ttl"] == 20 { Ok(()) } else { Err(directory.to_string()) }
            })
            .await;
            let said = drain(&etcd, "4s").await;
            if said.code == Some(0) {
                break;
            }
            assert!(!last, "{said:?}");
            undrain(&etcd).await;
        }
        edge.wait_serves(&["one"]).await;
    })
    .await;
}

#[tokio::test]
async fn by_whichever_api_discoverers_follow_they_are_asked() {
    within(150, async {
        let etcd = Etcd::start().await;
        let (mine, others) = (Backend::start("mine").await, Backend::start("others").await);
        let _kept = [keep(&etcd, "v2,v3", &mine, "mine"), keep(&etcd, "v2,v3", &others, "others")];
        let discoverer = |api: &str| Discoverer::supervise(&etcd.url()).args(&["--etcd-api", api]).start();
        let (mut v2, mut v3) = (discoverer("v2"), discoverer("v3"));
        v2.wait_serves(&["mine", "others"]).await;
        v3.wait_serves(&["mine", "others"]).await;
        let (held, other_held) = (hold(v3.http()), hold(v3.http()));
        wait_until(SOON, "one is held there", async || match mine.open() {
            0 => Err("not yet".to_owned()),
            _ => Ok(()),
        })
        .await;
        let command = |timeout: &'static str| {
            let args = ["drain", "--all", "--agent-id", "mine", "--etcd-api", "v2,v3", "--wait", "--timeout", timeout];
            let etcd = &etcd;
            async move { registrar(etcd, &args).await }
        };
        let said = command("6s").await;
        assert!(said.code == Some(1) && line_of(&said, &v3).ends_with("still has 1 session"), "{said:?}");
        assert!(line_of(&said, &v2).ends_with(": nothing is left"), "{said:?}");
        mine.release();
        others.release();
        let said = command("20s").await;
        assert_eq!(said.code, Some(0), "{said:?}");
        for discoverer in [&mut v2, &mut v3] {
            assert!(line_of(&said, discoverer).ends_with(": nothing is left"), "{said:?}");
            discoverer.wait_serves(&["others"]).await;
        }
        // Longer than its key lives: who keeps it has taken that in, in both.
        stays_true(secs(10), "it stays drained", async || {
            let said = registrar(&etcd, &["list", "--etcd-api", "v3"]).await;
            let line = said.stdout.lines().find(|line| line.contains(&mine.address().to_string()));
            if line.is_some_and(|line| line.contains("draining")) { Ok(()) } else { Err(format!("{said:?}")) }
        })
        .await;
        let said = registrar(&etcd, &["undrain", "--all", "--agent-id", "mine", "--etcd-api", "v2,v3"]).await;
        assert_eq!(said.code, Some(0), "{said:?}");
        for discoverer in [&mut v2, &mut v3] {
            discoverer.wait_serves(&["mine", "others"]).await;
        }
        for request in [held, other_held] {
            assert_eq!(request.await.unwrap().unwrap().status, 200);
        }
    })
    .await;
}

#[tokio::test]
async fn of_two_discoverers_one_that_is_frozen_is_named_and_one_that_is_dead_is_waited_for_as_long_as_its_key_lives() {
    within(120, async {
        let site = Site::start(Version::Installed).await;
        let mut second = Discoverer::supervise(&site.etcd.url()).start();
        second.wait_serves(&["mine", "others"]).await;
        wait_discoverers(&site.etcd, 2).await;
        let said = drain(&site.etcd, "20s").await;
        assert!(said.code == Some(0) && said.stdout.matches(": nothing is left").count() == 2, "{said:?}");
        undrain(&site.etcd).await;

        second.process().signal(Signal::SIGSTOP);
        let said = drain(&site.etcd, "6s").await;
        assert_eq!(said.code, Some(1), "{said:?}");
        assert!(line_of(&said, &second).ends_with(&format!("{} has no answer yet", site.mine.address())), "{said:?}");
        assert!(line_of(&said, &site.discoverer).ends_with(": nothing is left"), "{said:?}");
        second.process().signal(Signal::SIGCONT);
        let said = drain(&site.etcd, "20s").await;
        assert!(said.code == Some(0) && line_of(&said, &second).ends_with(": nothing is left"), "{said:?}");

        let dead = mark(&second);
        second.take_process().kill_now().await;
        let said = drain(&site.etcd, "60s").await;
        assert!(said.code == Some(0) && !said.stdout.contains(&dead), "{said:?}");
        assert!(said.stderr.contains(&dead) && said.stderr.contains("has no answer yet"), "{said:?}");
    })
    .await;
}

#[tokio::test]
async fn the_last_instance_of_a_service_is_kept_and_that_is_said() {
    within(90, async {
        let etcd = Etcd::start().await;
        let mut discoverer = Discoverer::supervise(&etcd.url()).start();
        let mine = Backend::start("mine").await;
        etcd.put(&mine.flat_key(), MINE).await;
        discoverer.wait_serves(&["mine"]).await;
        wait_discoverers(&etcd, 1).await;
        let said = drain(&etcd, "6s").await;
        assert!(said.code == Some(1) && line_of(&said, &discoverer).contains("somebody has to answer"), "{said:?}");
        discoverer.wait_serves(&["mine"]).await;
        // Another one comes, and it may go.
        let draining = begin_drain(&etcd);
        let other = Backend::start("other").await;
        etcd.put(&other.flat_key(), "running").await;
        let said = draining.await.unwrap();
        assert_eq!(said.code, Some(0), "{said:?}");
        discoverer.wait_serves(&["other"]).await;
    })
    .await;
}

#[tokio::test]
async fn where_no_discoverer_is_nobody_is_waited_for() {
    within(90, async {
        let etcd = Etcd::start().await;
        etcd.put("/service/10.9.9.9:80", MINE).await;
        // One that follows another directory is no concern.
        let _other = Discoverer::supervise(&etcd.url()).key("service/deep").start();
        wait_until(SOON, "the other one is there", async || {
            etcd.get("/_discoverers/service/deep").await.ok_or_else(|| "not yet".to_owned())
        })
        .await;
        let said = drain(&etcd, "20s").await;
        assert!(said.code == Some(0) && said.stdout.contains("No discoverer says that it is there"), "{said:?}");
        assert_eq!(etcd.get("/service/10.9.9.9:80").await.unwrap().get("ttl"), None, "it lives on without an end");
        let said = registrar(&etcd, &["drain", "--all", "--agent-id", "nobody"]).await;
        let words = "no key below /service in etcd was written by agent nobody, so that nothing was changed: these agents have: mine";
        assert!(said.code == Some(1) && said.stderr.contains(words) && said.stdout.is_empty(), "{said:?}");
        // A host whose agent has no container has nothing to drain.
        let state = tempfile::tempdir().unwrap();
        std::fs::write(state.path().join("agent-id"), "idle\n").unwrap();
        let said = registrar(&etcd, &["drain", "--all", "--state-dir", state.path().to_str().unwrap()]).await;
        assert!(said.code == Some(0) && said.stdout.contains("Nothing of this host's"), "{said:?}");
    })
    .await;
}

#[tokio::test]
async fn an_old_worker_that_may_still_send_requests_is_waited_for() {
    within(150, old_workers(Version::Installed)).await;
}

#[tokio::test]
async fn an_old_worker_that_may_still_send_requests_is_waited_for_on_haproxy_3_0() {
    within(150, old_workers(Version::V3_0)).await;
}

/// Through the worker's own socket they cannot be asked, but under a pid file they are seen.
#[tokio::test]
async fn old_workers_that_cannot_be_asked_are_waited_for() {
    within(90, async {
        let (etcd, haproxy) = (Etcd::start().await, Haproxy::start().await);
        let discoverer = keeps_long(Discoverer::reload_pidfile(&etcd.url(), &haproxy).runtime(&haproxy)).start();
        let site = Site::with(etcd, discoverer).await;
        an_old_worker_is_waited_for(site, "cannot be counted").await;
    })
    .await;
}

async fn old_workers(version: Version) {
    an_old_worker_is_waited_for(Site::start(version).await, "an old worker").await;
}

async fn an_old_worker_is_waited_for(site: Site, words: &str) {
    let mut kept = Connection::open(site.discoverer.http()).await.unwrap();
    assert_eq!(kept.exchange("GET", "/", &[], "").await.unwrap().status, 200);
    let reloads = site.discoverer.reloads().await;
    let shop = Backend::start("shop").await;
    site.etcd.put(&shop.key_in("shop"), r#"{"attributes":{"host":"shop.test"}}"#).await;
    site.discoverer.wait_host("shop.test", "shop").await;
    assert!(site.discoverer.reloads().await > reloads);
    let said = drain(&site.etcd, "6s").await;
    assert!(said.code == Some(1) && line_of(&said, &site.discoverer).contains(words), "{said:?}");
    drop(kept);
    let said = drain(&site.etcd, "20s").await;
    assert_eq!(said.code, Some(0), "{said:?}");
}

#[tokio::test]
async fn an_haproxy_that_cannot_be_asked_is_said_to_be_one() {
    within(60, async {
        let (etcd, haproxy) = (Etcd::start().await, Haproxy::start().await);
        let discoverer = Discoverer::reload_pidfile(&etcd.url(), &haproxy).start();
        let site = Site::with(etcd, discoverer).await;
        let said = drain(&site.etcd, "6s").await;
        assert!(said.code == Some(1) && line_of(&said, &site.discoverer).contains("cannot be counted"), "{said:?}");
    })
    .await;
}

#[tokio::test]
async fn an_etcd_that_does_not_take_what_it_says_holds_up_no_discoverer() {
    within(90, async {
        let etcd = Etcd::start().await;
        etcd.put("/_discoverers", "in the way").await;
        let discoverer = Discoverer::supervise(&etcd.url()).start();
        let mut site = Site::unheard(etcd, discoverer).await;
        site.discoverer.wait_logged("etcd does not take what this discoverer says of itself", &[]).await;
        let said = drain(&site.etcd, "6s").await;
        assert!(said.code == Some(1) && said.stderr.contains("/_discoverers/service"), "{said:?}");
        site.discoverer.wait_serves(&["others"]).await;
        site.etcd.delete("/_discoverers").await;
        site.discoverer.wait_logged("etcd takes again", &[]).await;
        let said = drain(&site.etcd, "20s").await;
        assert!(said.code == Some(0) && line_of(&said, &site.discoverer).ends_with(": nothing is left"), "{said:?}");
    })
    .await;
}

#[tokio::test]
async fn without_a_runtime_socket_the_master_tells_what_is_left() {
    within(60, async {
        let (etcd, haproxy) = (Etcd::start().await, Haproxy::start().await);
        let discoverer = Discoverer::reload_socket(&etcd.url(), &haproxy).start();
        let site = Site::with(etcd, discoverer).await;
        let held = site.hold().await;
        let draining = begin_drain(&site.etcd);
        // The drain itself was a reload: what is held is the old worker's, which knows nothing of it.
        wait_says(&site.etcd, &site.mine, "old-worker", 1).await;
        site.mine.release();
        site.others.release();
        let said = draining.await.unwrap();
        assert_eq!(said.code, Some(0), "{said:?}");
        for request in held {
            assert_eq!(request.await.unwrap().unwrap().status, 200);
        }
    })
    .await;
}

fn hello(container: &Container) -> String {
    format!("Hello from {}\n", container.short_id())
}

/// In a network of their own, as where `docker stop` alone is tried (see `agent_way`), but with an application that ends at once
/// when it is told to, whatever it is doing.
#[tokio::test]
async fn an_application_that_dies_at_once_loses_no_request_to_registrar_stop_and_some_to_docker_stop() {
    within(180, async {
        let (etcd, docker) = (Etcd::start().await, Docker::for_apps().await);
        let network = docker.network("net").await;
        let mut discoverer = Discoverer::supervise(&etcd.url()).start();
        let _agent = Agent::start(&etcd, &["no --ip", "--internal", "--network", &network]);
        let web = docker.service("web");
        let name = format!("SERVICE_8000_NAME={web}");
        let flags = ["--network", &network, "--expose", "8000", "--label", &name, IMAGE];
        let (one, two) = (docker.run("one", &flags).await, docker.run("two", &flags).await);
        let both = [hello(&one), hello(&two)];
        let both = [both[0].as_str(), both[1].as_str()];
        wait_instances(&etcd, &web, 2, REGISTERED).await;
        discoverer.wait_serves(&both).await;
        wait_discoverers(&etcd, 1).await;

        let load = Load::of(discoverer.http(), "/slow/500", 12);
        for _ in 0..3 {
            load.wait_served(30).await;
            let said = registrar(&etcd, &["stop", one.id()]).await;
            assert!(said.code == Some(0) && said.stdout.contains("The container is stopped."), "{said:?}");
            wait_none_of(&etcd, &web, &one).await;
            load.wait_served(30).await;
            one.tell("start").await;
            wait_instances(&etcd, &web, 2, REGISTERED).await;
            discoverer.wait_serves(&both).await;
        }
        load.stop().await.assert_no_failure(100);

        // The same without it.
        let load = Load::of(discoverer.http(), "/slow/500", 12);
        load.wait_served(30).await;
        one.tell("stop").await;
        load.wait_served(30).await;
        let report = load.stop().await;
        assert!(!report.failures.is_empty(), "the check sees nothing: {report:?}");
    })
    .await;
}

async fn wait_none_of(etcd: &Etcd, service: &str, container: &Container) {
    wait_until(SOON, "its key is gone", async || {
        let found = instances(etcd.address(), service).await;
        if found.iter().all(|instance| instance.record["id"] != container.id()) {
            Ok(())
        } else {
            Err(format!("{found:?}"))
        }
    })
    .await;
}

#[tokio::test]
async fn who_may_not_read_what_discoverers_say_is_told_that_it_drains_and_how_to_undo_it() {
    within(60, async {
        let etcd = Etcd::start_with_both().await;
        users::make(&etcd.url(), "v3");
        let root = format!("etcdctl --user root:{} ", users::ROOT);
        let revoke = "role revoke-permission registrar /_discoverers/service/ --prefix";
        users::run(&etcd.url(), "v3", &format!("{root} {revoke}\n{root} put /service/10.9.9.9:80 '{MINE}'"));
        let password = [("REGISTRAR_ETCD_PASSWORD", users::REGISTRAR)];
        let program = find_workspace_binary("registrar");
        let url = etcd.url();
        let flags = ["--etcd", &url, "--etcd-api", "v3", "--etcd-user", "registrar", "--all", "--agent-id", "mine"];
        let drain = [&["drain"], &flags[..], &["--wait", "--timeout", "1s"]].concat();
        let said = run(&program, &drain, &password, secs(20)).await;
        assert!(
            said.code == Some(1) && said.stderr.contains("no role of the user allows that there (docs/etcd.md)"),
            "{said:?}"
        );
        assert!(said.stderr.contains("it goes on draining, and `registrar undrain --all` takes it back"), "{said:?}");
        let undrain = [&["undrain"], &flags[..]].concat();
        let said = run(&program, &undrain, &password, secs(20)).await;
        assert!(said.code == Some(0) && said.stdout == "/service/10.9.9.9:80: running\n", "{said:?}");
    })
    .await;
}

#[tokio::test]
async fn a_container_is_drained_by_its_name_and_stays_so_over_a_restart_of_the_agent() {
    within(150, async {
        let (etcd, docker) = (Etcd::start().await, Docker::for_apps().await);
        let mut agent = Agent::start(&etcd, &["--ttl", "10s", "--keep-on-exit"]);
        let (app, web) = (docker.app("web", &[]).await, docker.service("web"));
        let running = wait_at(&etcd, &web, app.published(8000).await, REGISTERED).await;
        let is = async |status: &str| {
            let found = instances(etcd.address(), &web).await;
            match found.as_slice() {
                [one] if one.status() == status && one.created_index == running.created_index => Ok(()),
                _ => Err(format!("{found:?}")),
            }
        };
        let name = format!("{}-web", docker.name());
        let said = registrar(&etcd, &["drain", &name]).await;
        assert!(said.code == Some(0) && said.stdout == format!("{}: draining\n", running.key), "{said:?}");
        stays_true(secs(12), "its agent keeps it so", async || is("draining").await).await;
        agent.stop().await;
        agent.start_again();
        stays_true(secs(12), "so does the next", async || is("draining").await).await;
        let said = registrar(&etcd, &["drain", &app.id()[..12]]).await;
        assert!(said.code == Some(0) && said.stdout.contains("draining, as before"), "{said:?}");
        let said = registrar(&etcd, &["undrain", &name]).await;
        assert!(said.code == Some(0) && said.stdout == format!("{}: running\n", running.key), "{said:?}");
        stays_true(secs(12), "it runs again", async || is("running").await).await;

        // All of the host, by the agent's own id.
        let state = agent.dir().join("state").display().to_string();
        let said = registrar(&etcd, &["drain", "--all", "--state-dir", &state]).await;
        assert!(said.code == Some(0) && said.stdout.contains(&format!("{}: draining", running.key)), "{said:?}");
        is("draining").await.unwrap();
        let said = registrar(&etcd, &["undrain", "--all", "--state-dir", &state]).await;
        assert!(said.code == Some(0) && said.stdout.contains(&format!("{}: running", running.key)), "{said:?}");

        // What cannot be done says what to do.
        let other = docker.run("other", &["--publish", "127.0.0.1::8000", "--label", "SERVICE_IGNORE=1", IMAGE]).await;
        let cases: [(&[&str], &str); 4] = [
            (&["drain", "no-such"], "Docker knows no container no-such"),
            (&["stop", other.id()], "registrar explain"),
            (&["drain", "--all", "--state-dir", "/nonexistent"], "--agent-id"),
            (&["drain", &name, "--docker", "/nonexistent"], "no Docker socket"),
        ];
        for (args, words) in cases {
            let said = registrar(&etcd, args).await;
            assert!(
                said.code == Some(1) && said.stderr.contains(words) && said.stdout.is_empty(),
                "{args:?}: {said:?}"
            );
        }
        assert_eq!(
            e2e::docker::docker_ok(&["inspect", "--format", "{{.State.Running}}", other.id()]).await.trim(),
            "true"
        );
        app.tell("kill").await;
        wait_none(&etcd, &web, SOON).await;
    })
    .await;
}

#[tokio::test]
async fn a_sidekicks_key_is_found_by_its_address_and_stays_drained_while_the_sidekick_keeps_it() {
    within(120, async {
        let (etcd, docker) = (Etcd::start().await, Docker::for_apps().await);
        // The same port inside and outside, so that a sidekick outside asks it where one inside would.
        let port = free_port().to_string();
        let published = format!("127.0.0.1:{port}:{port}");
        let listen = format!("LISTEN={port}");
        let app = docker.run("app", &["--publish", &published, "--env", &listen, IMAGE]).await;
        let flags = [
            "--port",
            &port,
            "--container",
            app.id(),
            "--ttl",
            "8s",
            "--interval",
            "500ms",
            "--timeout",
            "3s",
            "--fall",
            "3",
        ];
        let url = etcd.url();
        let mut sidekick = Registrar::start(&[&["--etcd", &url], &flags[..]].concat());
        let key = format!("/service/127.0.0.1:{port}");
        let value = async || etcd.get(&key).await.map(|node| node["value"].as_str().unwrap_or_default().to_owned());
        let is = async |wanted: &str| {
            let seen = value().await;
            if seen.as_deref() == Some(wanted) { Ok(()) } else { Err(format!("{seen:?}")) }
        };
        wait_until(SOON, "it is registered", async || is("running").await).await;
        let said = registrar(&etcd, &["drain", app.id(), "--wait"]).await;
        assert_eq!(said.code, Some(0), "{said:?}");
        stays_true(secs(10), "the sidekick refreshes it as it is", async || is(r#"{"status":"draining"}"#).await).await;
        let said = registrar(&etcd, &["undrain", app.id()]).await;
        assert_eq!(said.code, Some(0), "{said:?}");
        stays_true(secs(10), "and so again", async || is("running").await).await;
        // Drained or not, it goes with its sidekick.
        registrar(&etcd, &["drain", app.id()]).await;
        sidekick.process().signal(Signal::SIGTERM);
        sidekick.process().wait(SOON).await;
        assert_eq!(value().await, None);
    })
    .await;
}
