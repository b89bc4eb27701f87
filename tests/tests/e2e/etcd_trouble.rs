//! An etcd that is away, ill, wiped, or ahead: traffic goes on, and in the end HAProxy has what etcd has.

use std::fmt::Write as _;

use e2e::backend::Backend;
use e2e::cluster::write_elsewhere;
use e2e::discoverer::{Discoverer, field};
use e2e::etcd::Etcd;
use e2e::fake_etcd::{FakeEtcd, Illness};
use e2e::load::{Load, requests};
use e2e::{secs, stays_true, wait_until, within};
use nix::sys::signal::Signal;
use tokio::net::TcpListener;

#[tokio::test]
async fn etcd_stopped_for_10_s_removes_nothing_and_the_next_key_arrives_by_itself() {
    within(90, async {
        let mut etcd = Etcd::start().await;
        let mut discoverer = Discoverer::supervise(&etcd.url()).start();
        let (one, two, three) =
            (Backend::start("one").await, Backend::start("two").await, Backend::start("three").await);
        etcd.put(&one.flat_key(), "running").await;
        etcd.put(&two.flat_key(), "running").await;
        discoverer.wait_serves(&["one", "two"]).await;
        let before = discoverer.config();
        let load = Load::start(discoverer.http());

        etcd.stop().await;
        stays_true(secs(10), "the file is what it was and no request fails", async || {
            let now = discoverer.config();
            if now != before {
                return Err(now);
            }
            if load.failed() == 0 { Ok(()) } else { Err(format!("{} requests failed", load.failed())) }
        })
        .await;
        discoverer.wait_logged("registry unreachable", &[("error", &etcd.address().to_string())]).await;
        let complaints = discoverer.logged("registry unreachable").len();
        assert!(complaints <= 5, "one outage was told {complaints} times");

        let report = load.stop_after(500).await;
        report.assert_no_failure(500);
        assert_eq!(report.answers.len(), 2, "{:?}", report.answers);

        etcd.start_again().await;
        etcd.put(&three.flat_key(), "running").await;
        discoverer.wait_serves(&["one", "three", "two"]).await;
    })
    .await;
}

#[tokio::test]
async fn started_with_etcd_away_it_waits_and_then_works() {
    within(60, async {
        let mut etcd = Etcd::absent();
        let mut discoverer = Discoverer::supervise(&etcd.url()).start();
        discoverer.wait_logged("registry unreachable", &[("error", &etcd.address().to_string())]).await;
        stays_true(secs(3), "it waits", async || match discoverer.process().ended() {
            Some(status) => Err(status.to_string()),
            None => Ok(()),
        })
        .await;
        etcd.start_again().await;
        let one = Backend::start("one").await;
        etcd.put(&one.flat_key(), "running").await;
        discoverer.wait_serves(&["one"]).await;
        discoverer.wait_logged("registry connected", &[]).await;
    })
    .await;
}

#[tokio::test]
async fn restarted_with_etcd_away_it_goes_on_serving_what_it_knew() {
    within(60, async {
        let mut etcd = Etcd::start().await;
        let mut discoverer = Discoverer::supervise(&etcd.url()).start();
        let (one, two) = (Backend::start("one").await, Backend::start("two").await);
        etcd.put(&one.flat_key(), "running").await;
        discoverer.wait_serves(&["one"]).await;
        etcd.stop().await;
        drop(discoverer.take_process());
        discoverer.start_again();
        discoverer.wait_serves(&["one"]).await;
        etcd.start_again().await;
        etcd.put(&two.flat_key(), "running").await;
        discoverer.wait_serves(&["one", "two"]).await;
    })
    .await;
}

#[tokio::test]
async fn etcd_killed_and_started_again_is_followed() {
    within(60, async {
        let mut etcd = Etcd::start().await;
        let mut discoverer = Discoverer::supervise(&etcd.url()).start();
        let (one, two) = (Backend::start("one").await, Backend::start("two").await);
        etcd.put(&one.flat_key(), "running").await;
        discoverer.wait_serves(&["one"]).await;
        for round in 0..3 {
            let connected = discoverer.logged("registry connected").len();
            etcd.kill().await;
            etcd.start_again().await;
            wait_until(secs(20), "it follows etcd again", async || {
                let now = discoverer.logged("registry connected").len();
                if now > connected { Ok(()) } else { Err(now.to_string()) }
            })
            .await;
            if round % 2 == 0 {
                etcd.put(&two.flat_key(), "running").await;
                discoverer.wait_serves(&["one", "two"]).await;
            } else {
                etcd.delete(&two.flat_key()).await;
                discoverer.wait_serves(&["one"]).await;
            }
        }
    })
    .await;
}

#[tokio::test]
async fn etcd_frozen_for_a_while_is_followed_when_it_thaws() {
    within(60, async {
        let etcd = Etcd::start().await;
        let mut discoverer = Discoverer::supervise(&etcd.url()).start();
        let (one, two) = (Backend::start("one").await, Backend::start("two").await);
        etcd.put(&one.flat_key(), "running").await;
        discoverer.wait_serves(&["one"]).await;
        etcd.freeze();
        stays_true(secs(6), "it is served on", async || {
            let seen = requests(discoverer.http(), 2).await;
            if seen.get("one") == Some(&2) { Ok(()) } else { Err(format!("{seen:?}")) }
        })
        .await;
        etcd.thaw();
        etcd.put(&two.flat_key(), "running").await;
        discoverer.wait_serves(&["one", "two"]).await;
    })
    .await;
}

#[tokio::test]
async fn etcd_wiped_and_started_anew_as_another_cluster_is_followed() {
    within(90, async {
        let mut etcd = Etcd::start().await;
        wiped_is_followed(&mut etcd, true).await;
    })
    .await;
}

#[tokio::test]
async fn etcd_wiped_with_the_same_cluster_id_and_a_lower_index_is_followed() {
    within(90, async {
        let mut etcd = Etcd::start().await;
        wiped_is_followed(&mut etcd, false).await;
    })
    .await;
}

async fn wiped_is_followed(etcd: &mut Etcd, another_cluster: bool) {
    let mut discoverer = Discoverer::supervise(&etcd.url()).start();
    let (one, two) = (Backend::start("one").await, Backend::start("two").await);
    // So that the index falls far, and would need long to be where it was.
    for _ in 0..50 {
        etcd.put("/elsewhere/key", "x").await;
    }
    etcd.put(&one.flat_key(), "running").await;
    discoverer.wait_serves(&["one"]).await;
    if another_cluster {
        etcd.wipe_as_another_cluster().await;
    } else {
        etcd.wipe().await;
    }
    // Nobody removed the first one, and it answers: it is served until somebody writes it again.
    etcd.put(&two.flat_key(), "running").await;
    discoverer.wait_serves(&["one", "two"]).await;
    discoverer.wait_logged("keys expired", &[("first", &one.flat_key())]).await;
    etcd.put(&one.flat_key(), "running").await;
    discoverer.wait_logged("suspects are registered again", &[("instances", "1")]).await;
    discoverer.wait_serves(&["one", "two"]).await;
    assert_eq!(discoverer.logged("suspects removed").len(), 0);
    etcd.delete(&two.flat_key()).await;
    discoverer.wait_serves(&["one"]).await;
}

#[tokio::test]
async fn what_was_missed_during_a_freeze_with_1100_other_writes_is_there_after_it() {
    within(240, async {
        let etcd = Etcd::start().await;
        let mut discoverer = Discoverer::supervise(&etcd.url()).start();
        let (one, two, three) =
            (Backend::start("one").await, Backend::start("two").await, Backend::start("three").await);
        etcd.put(&one.flat_key(), "running").await;
        etcd.put(&two.flat_key(), "running").await;
        discoverer.wait_serves(&["one", "two"]).await;
        discoverer.process().signal(Signal::SIGSTOP);
        etcd.put(&three.flat_key(), "running").await;
        etcd.delete(&one.flat_key()).await;
        // etcd's v2 API remembers 1000 events (api v2, "Waiting for a change").
        write_elsewhere(etcd.address(), 1100).await;
        discoverer.process().signal(Signal::SIGCONT);
        // That somebody deleted a key is no longer to be known: what answers is served on, what does not is gone.
        discoverer.wait_serves(&["one", "three", "two"]).await;
        let address = one.address();
        drop(one);
        discoverer.wait_serves(&["three", "two"]).await;
        discoverer.wait_gone(address).await;
    })
    .await;
}

#[tokio::test]
async fn more_than_1000_writes_elsewhere_while_it_waits_lose_nothing() {
    within(240, async {
        let etcd = Etcd::start().await;
        let mut discoverer = Discoverer::supervise(&etcd.url()).start();
        let (one, two) = (Backend::start("one").await, Backend::start("two").await);
        etcd.put(&one.flat_key(), "running").await;
        discoverer.wait_serves(&["one"]).await;
        write_elsewhere(etcd.address(), 1100).await;
        etcd.put(&two.flat_key(), "running").await;
        discoverer.wait_serves(&["one", "two"]).await;
    })
    .await;
}

#[tokio::test]
async fn an_ill_first_endpoint_costs_an_attempt_and_the_second_one_is_used() {
    within(120, async {
        let etcd = Etcd::start().await;
        let (one, two) = (Backend::start("one").await, Backend::start("two").await);
        for illness in Illness::ALL {
            let fake = FakeEtcd::start(illness).await;
            let endpoints = format!("{},{}", fake.url(), etcd.url());
            let mut discoverer = Discoverer::supervise(&endpoints).start();
            etcd.put(&one.flat_key(), "running").await;
            discoverer.wait_serves(&["one"]).await;
            etcd.put(&two.flat_key(), "running").await;
            discoverer.wait_serves(&["one", "two"]).await;
            etcd.delete(&two.flat_key()).await;
            discoverer.wait_serves(&["one"]).await;
            // It is asked again where the good one does not answer in time either: on a busy machine, and that is told.
            let away = ["registry unreachable", "etcd does not take what this discoverer says of itself"];
            let away: usize = away.iter().map(|message| discoverer.logged(message).len()).sum();
            let (asked, most) = (fake.requests(), 3 + 20 * u64::try_from(away).unwrap());
            assert!(
                asked <= most,
                "{illness:?}: the ill endpoint was asked {asked} times, the good one away {away} times"
            );
        }
    })
    .await;
}

#[tokio::test]
async fn a_first_endpoint_where_nobody_listens_is_passed_over() {
    within(60, async {
        let etcd = Etcd::start().await;
        let absent = Etcd::absent();
        let mut discoverer = Discoverer::supervise(&format!("{},{}", absent.url(), etcd.url())).start();
        let one = Backend::start("one").await;
        etcd.put(&one.flat_key(), "running").await;
        discoverer.wait_serves(&["one"]).await;
    })
    .await;
}

#[tokio::test]
async fn an_etcd_that_falls_ill_is_named_and_followed_again_when_it_is_well() {
    falls_ill_and_is_followed_again(Etcd::start().await).await;
}

#[tokio::test]
async fn an_etcd_of_v3_that_falls_ill_is_named_and_followed_again_when_it_is_well() {
    falls_ill_and_is_followed_again(Etcd::start_v3().await).await;
}

async fn falls_ill_and_is_followed_again(mut etcd: Etcd) {
    within(150, async {
        let mut discoverer = Discoverer::supervise(&etcd.url()).start();
        let (one, two) = (Backend::start("one").await, Backend::start("two").await);
        etcd.put(&one.flat_key(), "running").await;
        discoverer.wait_serves(&["one"]).await;
        for (round, illness) in Illness::ALL.into_iter().enumerate() {
            etcd.stop().await;
            let told = discoverer.logged("registry unreachable").len();
            let fake = FakeEtcd::start_at(etcd.address(), illness).await;
            stays_true(secs(4), "what was known is served", async || {
                let seen = requests(discoverer.http(), 2).await;
                let known = if round % 2 == 0 { "one" } else { "two" };
                if seen.contains_key(known) { Ok(()) } else { Err(format!("{illness:?}: {seen:?}")) }
            })
            .await;
            assert!((1..=60).contains(&fake.requests()), "{illness:?}: asked {} times in 4 s", fake.requests());
            wait_until(secs(20), &format!("{illness:?} is in the log, with the endpoint"), async || {
                let events = discoverer.logged("registry unreachable");
                let mut seen = String::new();
                for event in events.iter().skip(told) {
                    writeln!(seen, "{event}").unwrap();
                }
                if seen.contains(&etcd.address().to_string()) { Ok(()) } else { Err(seen) }
            })
            .await;
            drop(fake);
            // That only asks for its end.
            wait_until(secs(20), "the port is free", async || {
                TcpListener::bind(etcd.address()).await.map(drop).map_err(|error| error.to_string())
            })
            .await;
            etcd.start_again().await;
            let (comes, goes) = if round % 2 == 0 { (&two, &one) } else { (&one, &two) };
            etcd.put(&comes.flat_key(), "running").await;
            discoverer.wait_serves(&["one", "two"]).await;
            etcd.delete(&goes.flat_key()).await;
            discoverer.wait_serves(&[comes.name()]).await;
        }
        let told = discoverer.logged("registry unreachable");
        assert!(told.len() <= 20, "{} complaints: {told:?}", told.len());
        assert!(told.iter().all(|event| !field(event, "error").is_empty()), "{told:?}");
    })
    .await;
}

#[tokio::test]
async fn a_deleted_directory_takes_its_instances_with_it() {
    within(60, async {
        let etcd = Etcd::start().await;
        let mut discoverer = Discoverer::supervise(&etcd.url()).start();
        let (one, two) = (Backend::start("one").await, Backend::start("two").await);
        etcd.put(&one.key_in("web"), "running").await;
        discoverer.wait_serves(&["one"]).await;
        etcd.delete("/service/web?recursive=true").await;
        discoverer.wait_serves(&["status 503"]).await;
        etcd.put(&two.key_in("web"), "running").await;
        discoverer.wait_serves(&["two"]).await;
        etcd.delete("/service?recursive=true").await;
        discoverer.wait_serves(&["status 503"]).await;
        etcd.put(&one.key_in("web"), "running").await;
        discoverer.wait_serves(&["one"]).await;
    })
    .await;
}
