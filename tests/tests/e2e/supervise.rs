//! The discoverer as HAProxy's parent: neither outlives the other, and a dead HAProxy is started again.

use e2e::backend::Backend;
use e2e::discoverer::{Discoverer, SOON};
use e2e::etcd::Etcd;
use e2e::haproxy::{master, worker};
use e2e::http;
use e2e::load::requests;
use e2e::process::{command_line, is_alive};
use e2e::{secs, wait_until, within};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

async fn one_served(etcd: &Etcd) -> (Backend, Discoverer) {
    let mut discoverer = Discoverer::supervise(&etcd.url()).start();
    let one = Backend::start("one").await;
    etcd.put(&one.flat_key(), "running").await;
    discoverer.wait_serves(&["one"]).await;
    (one, discoverer)
}

async fn wait_none_alive(family: &[Pid]) {
    wait_until(SOON, "no haproxy is left", async || {
        let left: Vec<_> = family.iter().filter(|pid| is_alive(**pid)).map(|pid| command_line(*pid)).collect();
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    })
    .await;
}

#[tokio::test]
async fn haproxy_dies_with_a_discoverer_that_is_killed() {
    within(60, async {
        let etcd = Etcd::start().await;
        let (_one, mut discoverer) = one_served(&etcd).await;
        let family = discoverer.process().descendants();
        assert!(family.len() >= 2, "master and worker: {family:?}");
        discoverer.process().kill_now().await;
        wait_none_alive(&family).await;
        let seen = requests(discoverer.http(), 1).await;
        assert!(seen.keys().all(|what| what.starts_with("error")), "somebody still answers: {seen:?}");
        // Nothing of the dead one is in the way of the next.
        drop(discoverer.take_process());
        discoverer.start_again();
        discoverer.wait_serves(&["one"]).await;
    })
    .await;
}

#[tokio::test]
async fn told_to_stop_it_lets_the_open_request_end_and_takes_haproxy_with_it() {
    within(60, async {
        let etcd = Etcd::start().await;
        for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGUSR1, Signal::SIGQUIT] {
            let (one, mut discoverer) = one_served(&etcd).await;
            let family = discoverer.process().descendants();
            let before = one.requests();
            let http = discoverer.http();
            let slow = tokio::spawn(async move { http::get(http, "/slow").await });
            wait_until(SOON, "the slow request has come through", async || {
                if one.requests() > before { Ok(()) } else { Err("not yet".to_owned()) }
            })
            .await;
            discoverer.process().signal(signal);
            let status = discoverer.process().wait(SOON).await;
            assert_eq!(status.code(), Some(0), "{signal}: {status}");
            let reply = slow.await.unwrap();
            assert!(reply.as_ref().is_ok_and(|reply| reply.body == "one"), "{signal}: {reply:?}");
            wait_none_alive(&family).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_killed_haproxy_is_started_again_and_serves_what_etcd_holds_by_then() {
    within(90, async {
        let etcd = Etcd::start().await;
        let (_one, mut discoverer) = one_served(&etcd).await;
        for name in ["two", "three", "four"] {
            let (cli, stats) = (discoverer.master_socket(), discoverer.runtime_socket());
            // Once the master, once the worker: the master gives up when its worker dies.
            let victim = wait_until(SOON, "the victim says who it is", async || match name {
                "three" => worker(&stats).await,
                _ => master(&cli).await,
            })
            .await;
            let victim = Pid::from_raw(victim.cast_signed());
            kill(victim, Signal::SIGKILL).unwrap();
            let backend = Backend::start(name).await;
            etcd.put(&backend.flat_key(), "running").await;
            wait_until(SOON, &format!("{name} is served by a new haproxy"), async || {
                let seen = requests(discoverer.http(), 8).await;
                if seen.contains_key(name) { Ok(()) } else { Err(format!("{seen:?}")) }
            })
            .await;
            assert!(!is_alive(victim));
            etcd.delete(&backend.flat_key()).await;
            discoverer.wait_serves(&["one"]).await;
        }
        assert!(discoverer.process().ended().is_none());
    })
    .await;
}

#[tokio::test]
async fn an_haproxy_that_cannot_start_is_tried_again_with_pauses_and_serves_when_it_can() {
    within(90, async {
        let etcd = Etcd::start().await;
        let one = Backend::start("one").await;
        etcd.put(&one.flat_key(), "running").await;
        let builder = Discoverer::supervise(&etcd.url());
        let mut discoverer = builder.start();
        discoverer.wait_serves(&["one"]).await;
        // The port is taken while HAProxy is down.
        let address = discoverer.http();
        drop(discoverer.take_process());
        let holder = wait_until(SOON, "the port is free", async || {
            tokio::net::TcpListener::bind(address).await.map_err(|error| error.to_string())
        })
        .await;
        discoverer.start_again();
        discoverer.wait_logged("HAProxy died", &[]).await;
        e2e::stays_true(secs(5), "it keeps trying and does not end", async || match discoverer.process().ended() {
            Some(status) => Err(status.to_string()),
            None => Ok(()),
        })
        .await;
        let tries = discoverer.logged("HAProxy died").len();
        assert!(tries <= 10, "{tries} tries in 5 s");
        drop(holder);
        wait_until(secs(20), "HAProxy is up", async || {
            let seen = requests(address, 1).await;
            if seen.contains_key("one") { Ok(()) } else { Err(format!("{seen:?}")) }
        })
        .await;
    })
    .await;
}

#[tokio::test]
async fn an_haproxy_that_does_not_stay_up_is_an_end_with_an_exit_code_of_its_own() {
    within(60, async {
        let etcd = Etcd::start().await;
        let one = Backend::start("one").await;
        etcd.put(&one.flat_key(), "running").await;
        let mut discoverer = Discoverer::supervise(&etcd.url()).args(&["--give-up-after", "2s"]).start();
        discoverer.wait_serves(&["one"]).await;
        let address = discoverer.http();
        drop(discoverer.take_process());
        let _holder = wait_until(SOON, "the port is free", async || {
            tokio::net::TcpListener::bind(address).await.map_err(|error| error.to_string())
        })
        .await;
        discoverer.start_again();
        let status = discoverer.process().wait(secs(40)).await;
        assert_eq!(status.code(), Some(4), "{status}");
        discoverer.wait_logged("HAProxy does not stay up", &[]).await;
        assert!(discoverer.logged("HAProxy died").len() >= 2);
    })
    .await;
}

#[tokio::test]
async fn signals_that_mean_other_things_elsewhere_end_nothing() {
    within(60, async {
        let etcd = Etcd::start().await;
        let (_one, mut discoverer) = one_served(&etcd).await;
        for signal in [Signal::SIGHUP, Signal::SIGUSR2] {
            discoverer.process().signal(signal);
            let two = Backend::start("two").await;
            etcd.put(&two.flat_key(), "running").await;
            discoverer.wait_serves(&["one", "two"]).await;
            etcd.delete(&two.flat_key()).await;
            discoverer.wait_serves(&["one"]).await;
        }
    })
    .await;
}

#[tokio::test]
async fn many_reloads_leave_no_zombie_and_no_crowd_of_workers() {
    within(90, async {
        let etcd = Etcd::start().await;
        let (_one, mut discoverer) = one_served(&etcd).await;
        let two = Backend::start("two").await;
        for _ in 0..5 {
            etcd.put(&two.flat_key(), "running").await;
            discoverer.wait_serves(&["one", "two"]).await;
            etcd.delete(&two.flat_key()).await;
            discoverer.wait_serves(&["one"]).await;
        }
        wait_until(SOON, "one master and one worker are left", async || {
            let family = discoverer.process().descendants();
            let zombies = discoverer.process().zombies();
            if family.len() == 2 && zombies.is_empty() {
                return Ok(());
            }
            Err(format!("{:?}, zombies {zombies:?}", family.iter().map(|pid| command_line(*pid)).collect::<Vec<_>>()))
        })
        .await;
    })
    .await;
}
