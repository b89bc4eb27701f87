//! Keys that expire, and restarts while etcd is away: neither a dead agent nor a lost registry empties a site, a dead host goes,
//! and what somebody removes is gone.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use e2e::agent::{Agent, REGISTERED, wait_instances, wait_none};
use e2e::backend::Backend;
use e2e::discoverer::{Discoverer, SOON, field};
use e2e::docker::Docker;
use e2e::etcd::Etcd;
use e2e::haproxy::{Haproxy, servers};
use e2e::load::Load;
use e2e::{secs, stays_true, wait_until, within};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::output::Tmpfs;
use crate::runtime::{Site, flat};

/// So long a key lives that is to expire soon, in seconds.
const BRIEF: u64 = 1;

/// Longer than HAProxy needs to find out that a server is dead (`inter 2s fall 2`), and than any question after it.
const JUDGED: std::time::Duration = secs(6);

/// How often HAProxy was told of servers, or reloaded, once the log accounts for so many instances: HAProxy serves a moment before
/// that is told.
async fn doings(discoverer: &Discoverer, instances: i64) -> (usize, usize, u64) {
    wait_until(SOON, &format!("the log tells of {instances} instances"), async || {
        let events = discoverer.events();
        if told_instances(&events) == instances { Ok(()) } else { Err(format!("{events:#?}")) }
    })
    .await;
    let changes = discoverer.logged("servers changed").len();
    (changes, discoverer.logged("configuration applied").len(), discoverer.reloads().await)
}

/// How many instances HAProxy has, as the log tells: what was applied as a whole, and what came and went since.
fn told_instances(events: &[Value]) -> i64 {
    let number = |event: &Value, name: &str| field(event, name).parse::<i64>().unwrap_or(0);
    events.iter().fold(0, |count, event| match &*field(event, "message") {
        "configuration applied" => number(event, "instances"),
        "servers changed" => count + number(event, "came") - number(event, "went"),
        _ => count,
    })
}

/// Waits until so many keys have expired whose instances stay, as the log tells.
async fn wait_suspects(discoverer: &Discoverer, count: usize) {
    wait_until(SOON, &format!("{count} instances are suspect"), async || {
        let told = discoverer.logged("keys expired");
        let instances = told.iter().map(|event| field(event, "instances").parse::<usize>().unwrap()).sum::<usize>();
        if instances == count { Ok(()) } else { Err(format!("{told:?}")) }
    })
    .await;
}

async fn wait_removed(discoverer: &Discoverer, key: &str, why: &str) {
    wait_until(secs(60), &format!("{key} is removed, since: {why}"), async || {
        let told = discoverer.logged("suspects removed");
        let is_it = |event: &Value| field(event, "first").contains(key) && field(event, "why").contains(why);
        if told.iter().any(is_it) { Ok(()) } else { Err(format!("{told:?}")) }
    })
    .await;
}

/// So many writes elsewhere that etcd, which keeps 1000 events, has forgotten all before them.
async fn write_elsewhere(etcd: &Arc<Etcd>) {
    let mut writers = tokio::task::JoinSet::new();
    for _ in 0..16 {
        let etcd = Arc::clone(etcd);
        writers.spawn(async move {
            for number in 0..70 {
                etcd.put("/elsewhere/key", &number.to_string()).await;
            }
        });
    }
    while let Some(written) = writers.join_next().await {
        written.unwrap();
    }
}

#[tokio::test]
async fn a_killed_agents_containers_are_served_on_without_a_failed_request() {
    within(90, async {
        let (etcd, docker) = (Etcd::start().await, Docker::for_apps().await);
        let web = docker.service("web");
        let mut agent = Agent::start(&etcd, &["--ttl", "2s"]);
        let same = ["--label", &format!("SERVICE_NAME={web}")];
        let (one, two) = (docker.app("web", &[]).await, docker.app("two", &same).await);
        wait_instances(&etcd, &web, 2, REGISTERED).await;
        let default = format!("default_service={web}");
        let mut discoverer = Discoverer::supervise(&etcd.url()).args(&["--set", &default]).start();
        let (one, two) = (format!("Hello from {}\n", one.short_id()), format!("Hello from {}\n", two.short_id()));
        discoverer.wait_serves(&[&one, &two]).await;
        let load = Load::start(discoverer.http());

        agent.process().kill_now().await;
        wait_none(&etcd, &web, secs(10)).await;
        discoverer.wait_logged("keys expired", &[]).await;
        stays_true(JUDGED, "no request fails", async || match load.failed() {
            0 => Ok(()),
            failed => Err(failed.to_string()),
        })
        .await;
        discoverer.wait_serves(&[&one, &two]).await;

        agent.start_again();
        wait_instances(&etcd, &web, 2, REGISTERED).await;
        discoverer.wait_logged("suspects are registered again", &[]).await;
        discoverer.wait_serves(&[&one, &two]).await;
        load.stop_after(100).await.assert_no_failure(100);
    })
    .await;
}

#[tokio::test]
async fn a_key_that_expires_and_comes_back_tells_haproxy_nothing() {
    within(60, async {
        let site = Site::start(e2e::haproxy::Version::Installed, &[]).await;
        let two = site.second().await;
        let before = doings(&site.discoverer, 2).await;
        site.etcd.put_for(&two.flat_key(), "running", BRIEF).await;
        site.etcd.wait_gone(&two.flat_key()).await;
        wait_suspects(&site.discoverer, 1).await;
        site.discoverer.wait_in_step(&[flat(&site.one), flat(&two)]).await;
        site.etcd.put(&two.flat_key(), "running").await;
        site.discoverer.wait_logged("suspects are registered again", &[("instances", "1")]).await;
        site.etcd.delete(&site.one.flat_key()).await;
        site.discoverer.wait_in_step(&[flat(&two)]).await;
        let (changes, applied, reloads) = doings(&site.discoverer, 1).await;
        assert_eq!((changes, applied, reloads), (before.0 + 1, before.1, before.2), "nothing but the deleted one");
    })
    .await;
}

#[tokio::test]
async fn a_dead_host_goes_when_haproxys_check_has_it_down() {
    within(60, async {
        let mut site = Site::start(e2e::haproxy::Version::Installed, &[]).await;
        let two = Backend::start("two").await;
        site.etcd.put_for(&two.flat_key(), "running", 3).await;
        site.discoverer.wait_serves(&["one", "two"]).await;
        let (key, address) = (two.flat_key(), two.address());
        drop(two);
        site.etcd.wait_gone(&key).await;
        wait_removed(&site.discoverer, &key, "check has it down").await;
        site.discoverer.wait_gone(address).await;
        site.discoverer.wait_in_step(&[flat(&site.one)]).await;

        // One that dies while it is suspect.
        let three = Backend::start("three").await;
        site.etcd.put_for(&three.flat_key(), "running", BRIEF).await;
        site.discoverer.wait_serves(&["one", "three"]).await;
        site.etcd.wait_gone(&three.flat_key()).await;
        site.discoverer.wait_serves(&["one", "three"]).await;
        let key = three.flat_key();
        drop(three);
        wait_removed(&site.discoverer, &key, "check has it down").await;
        site.discoverer.wait_in_step(&[flat(&site.one)]).await;
    })
    .await;
}

#[tokio::test]
async fn etcd_stopped_for_longer_than_the_keys_live_loses_no_instance() {
    within(90, async {
        let mut etcd = Etcd::start().await;
        let mut discoverer = Discoverer::supervise(&etcd.url()).start();
        let (one, two, three) =
            (Backend::start("one").await, Backend::start("two").await, Backend::start("three").await);
        for (backend, seconds) in [(&one, 4), (&two, 5), (&three, 6)] {
            etcd.put_for(&backend.flat_key(), r#"{"agent":"a"}"#, seconds).await;
        }
        discoverer.wait_serves(&["one", "three", "two"]).await;
        etcd.stop().await;
        let before = doings(&discoverer, 3).await;
        let load = Load::start(discoverer.http());
        stays_true(secs(7), "no request fails while etcd is away", async || match load.failed() {
            0 => Ok(()),
            failed => Err(failed.to_string()),
        })
        .await;
        etcd.start_again().await;
        for backend in [&one, &two, &three] {
            etcd.wait_gone(&backend.flat_key()).await;
        }
        wait_suspects(&discoverer, 3).await;
        stays_true(JUDGED, "no request fails", async || match load.failed() {
            0 => Ok(()),
            failed => Err(failed.to_string()),
        })
        .await;
        // The agent is back, and writes one after the other.
        for backend in [&one, &two, &three] {
            etcd.put_for(&backend.flat_key(), r#"{"agent":"a"}"#, 60).await;
            discoverer.wait_serves(&["one", "three", "two"]).await;
        }
        let report = load.stop_after(200).await;
        report.assert_no_failure(200);
        assert_eq!(report.answers.len(), 3, "{:?}", report.answers);
        assert_eq!(doings(&discoverer, 3).await, before, "HAProxy was told nothing");
        assert_eq!(discoverer.logged("suspects removed").len(), 0);
    })
    .await;
}

#[tokio::test]
async fn a_key_that_a_living_agent_does_not_write_again_goes_in_the_end() {
    within(120, async {
        let mut site = Site::start(e2e::haproxy::Version::Installed, &[]).await;
        let (two, three) = (Backend::start("two").await, Backend::start("three").await);
        let record = r#"{"agent":"a"}"#;
        site.etcd.put_for(&two.flat_key(), record, BRIEF).await;
        site.etcd.put_for(&three.flat_key(), record, 20).await;
        site.discoverer.wait_serves(&["one", "three", "two"]).await;
        site.etcd.wait_gone(&two.flat_key()).await;
        wait_suspects(&site.discoverer, 1).await;
        wait_until(secs(90), "it has gone, while its agent goes on refreshing the other one", async || {
            site.etcd.put_for(&three.flat_key(), record, 20).await;
            let removed = site.discoverer.logged("suspects removed");
            if removed.is_empty() { Err("it is still there".to_owned()) } else { Ok(()) }
        })
        .await;
        wait_removed(&site.discoverer, &two.flat_key(), "does not write it again").await;
        site.discoverer.wait_serves(&["one", "three"]).await;
    })
    .await;
}

#[tokio::test]
async fn a_suspect_stays_for_suspect_for_and_no_longer() {
    within(120, async {
        let mut site = Site::start(e2e::haproxy::Version::Installed, &["--suspect-for", "20s"]).await;
        let two = Backend::start("two").await;
        site.etcd.put_for(&two.flat_key(), "running", BRIEF).await;
        site.discoverer.wait_serves(&["one", "two"]).await;
        site.etcd.wait_gone(&two.flat_key()).await;
        site.discoverer.wait_serves(&["one", "two"]).await;
        wait_removed(&site.discoverer, &two.flat_key(), "--suspect-for").await;
        site.discoverer.wait_serves(&["one"]).await;
    })
    .await;
}

#[tokio::test]
async fn one_that_nobody_checks_goes_with_its_key() {
    within(60, async {
        let etcd = Etcd::start().await;
        let discoverer = Discoverer::supervise(&etcd.url()).edit(" check inter 2s fall 2 rise 1", "").start();
        let site = Site::with(etcd, discoverer).await;
        let two = Backend::start("two").await;
        site.etcd.put_for(&two.flat_key(), "running", BRIEF).await;
        wait_removed(&site.discoverer, &two.flat_key(), "does not check it").await;
        site.discoverer.wait_in_step(&[flat(&site.one)]).await;
    })
    .await;
}

#[tokio::test]
async fn one_that_drained_goes_with_its_key() {
    within(60, async {
        let site = Site::start(e2e::haproxy::Version::Installed, &[]).await;
        let two = site.second().await;
        site.etcd.put_for(&two.flat_key(), r#"{"status":"draining"}"#, BRIEF).await;
        site.discoverer.wait_in_step(&[flat(&site.one)]).await;
        assert_eq!(site.discoverer.logged("keys expired").len(), 0);
    })
    .await;
}

#[tokio::test]
async fn a_template_sees_who_is_suspect_and_a_newcomer_takes_the_address_over() {
    within(60, async {
        let etcd = Etcd::start().await;
        let line = " weight {{ instance.weight }}";
        let mut discoverer = Discoverer::supervise(&etcd.url())
            .edit(line, &format!("{line}{{% if instance.suspect %}} maxconn 77{{% endif %}}"))
            .start();
        let one = Backend::start("one").await;
        etcd.put(&one.key_in("old"), "running").await;
        // One that expires before the first listing has never been there.
        discoverer.wait_config("backend old").await;
        etcd.put_for(&one.key_in("old"), "running", BRIEF).await;
        etcd.wait_gone(&one.key_in("old")).await;
        discoverer.wait_config("maxconn 77").await;
        discoverer.wait_serves(&["one"]).await;
        etcd.put(&one.key_in("new"), "running").await;
        wait_until(SOON, "the server is in the new service alone", async || {
            let has = servers(&discoverer.runtime_socket()).await?;
            let seen: Vec<_> = has.iter().filter(|(_, server)| server.ready).map(|(id, _)| id.as_str()).collect();
            if matches!(seen[..], [only] if only.starts_with("new/")) { Ok(()) } else { Err(format!("{seen:?}")) }
        })
        .await;
        etcd.delete(&one.key_in("new")).await;
        wait_until(SOON, "it does not come back to the old one", async || {
            let has = servers(&discoverer.runtime_socket()).await?;
            let seen: Vec<_> = has.iter().filter(|(_, server)| server.ready).collect();
            if seen.is_empty() { Ok(()) } else { Err(format!("{seen:?}")) }
        })
        .await;
    })
    .await;
}

#[tokio::test]
async fn a_deleted_directory_takes_suspects_too_also_when_nobody_saw_it_happen() {
    within(180, async {
        let etcd = Arc::new(Etcd::start().await);
        let mut discoverer = Discoverer::supervise(&etcd.url()).start();
        let (one, two, three) =
            (Backend::start("one").await, Backend::start("two").await, Backend::start("three").await);
        etcd.put(&one.flat_key(), "running").await;
        // One that expires before the first listing has never been there.
        discoverer.wait_host("any.test", "one").await;
        etcd.put_for(&two.key_in("web"), r#"{"attributes":{"host":"web.test"}}"#, BRIEF).await;
        etcd.put_for(&three.key_in("api"), r#"{"attributes":{"host":"api.test"}}"#, BRIEF).await;
        wait_suspects(&discoverer, 2).await;
        discoverer.wait_host("web.test", "two").await;
        discoverer.wait_host("api.test", "three").await;
        etcd.delete("/service/web?recursive=true").await;
        discoverer.wait_host("web.test", "503").await;

        discoverer.process().signal(Signal::SIGSTOP);
        // What the waiting poll brings; all else is forgotten until it asks again.
        etcd.put(&one.flat_key(), "running").await;
        etcd.delete("/service/api?recursive=true").await;
        write_elsewhere(&etcd).await;
        discoverer.process().signal(Signal::SIGCONT);
        discoverer.wait_host("api.test", "503").await;
        discoverer.wait_host("other.test", "one").await;
    })
    .await;
}

#[tokio::test]
async fn without_a_stats_socket_a_suspect_stays_for_suspect_for() {
    within(120, async {
        let haproxy = Haproxy::start().await;
        let etcd = Etcd::start().await;
        let mut discoverer = Discoverer::reload_socket(&etcd.url(), &haproxy).args(&["--suspect-for", "20s"]).start();
        let (one, two) = (Backend::start("one").await, Backend::start("two").await);
        etcd.put(&one.flat_key(), "running").await;
        etcd.put(&two.flat_key(), "running").await;
        // One that expires before the first listing has never been there.
        discoverer.wait_serves(&["one", "two"]).await;
        etcd.put_for(&two.flat_key(), "running", BRIEF).await;
        etcd.wait_gone(&two.flat_key()).await;
        discoverer.wait_serves(&["one", "two"]).await;
        wait_removed(&discoverer, &two.flat_key(), "--suspect-for").await;
        discoverer.wait_serves(&["one"]).await;
    })
    .await;
}

/// A line that only a configuration rendered since has.
const EDITED: &str = "    # edited";

fn edit_template(discoverer: &Discoverer) {
    let file = discoverer.templates().join("backend.tera");
    let text = fs::read_to_string(&file).unwrap().replacen("    mode ", &format!("{EDITED}\n    mode "), 1);
    fs::write(&file, text).unwrap();
}

async fn stop(discoverer: &mut Discoverer) {
    discoverer.process().signal(Signal::SIGTERM);
    discoverer.process().wait(secs(20)).await;
    drop(discoverer.take_process());
}

/// Starts the discoverer anew while etcd is away, with another template: what it applies then it can only have from its
/// own memory.
async fn restarted_without_etcd(etcd: &mut Etcd, discoverer: &mut Discoverer) {
    etcd.stop().await;
    stop(discoverer).await;
    edit_template(discoverer);
    discoverer.start_again();
    discoverer.wait_config(EDITED).await;
    discoverer.wait_logged("HAProxy gets what was last known", &[]).await;
}

#[tokio::test]
async fn restarted_with_etcd_away_it_renders_what_it_knew_and_judges_what_etcd_lost() {
    within(120, async {
        let mut etcd = Etcd::start().await;
        let mut discoverer = Discoverer::supervise(&etcd.url()).start();
        let (one, two) = (Backend::start("one").await, Backend::start("two").await);
        etcd.put(&one.flat_key(), "running").await;
        etcd.put(&two.flat_key(), r#"{"weight":7}"#).await;
        discoverer.wait_serves(&["one", "two"]).await;
        restarted_without_etcd(&mut etcd, &mut discoverer).await;
        discoverer.wait_serves(&["one", "two"]).await;
        discoverer.wait_config("weight 7").await;
        assert_eq!(discoverer.logged("suspects removed").len(), 0);

        etcd.wipe().await;
        wait_suspects(&discoverer, 2).await;
        discoverer.wait_serves(&["one", "two"]).await;
        etcd.put(&one.flat_key(), "running").await;
        let address = two.address();
        drop(two);
        discoverer.wait_gone(address).await;
        discoverer.wait_in_step(&[flat(&one)]).await;
    })
    .await;
}

#[tokio::test]
async fn restarted_with_etcd_away_it_renders_what_it_knew_for_a_haproxy_that_is_only_reloaded() {
    within(90, async {
        let haproxy = Haproxy::start().await;
        let mut etcd = Etcd::start().await;
        // So that the index of an etcd that is new is behind, whatever is written to it before it is followed.
        for number in 0..50 {
            etcd.put("/elsewhere/key", &number.to_string()).await;
        }
        let mut discoverer = Discoverer::reload_socket(&etcd.url(), &haproxy).start();
        let one = Backend::start("one").await;
        etcd.put(&one.flat_key(), "running").await;
        discoverer.wait_serves(&["one"]).await;
        let reloads = discoverer.reloads().await;
        restarted_without_etcd(&mut etcd, &mut discoverer).await;
        haproxy.wait_reloads(reloads + 1).await;
        discoverer.wait_serves(&["one"]).await;
        // Nobody can be asked whether it lives, and nobody removed it.
        etcd.wipe().await;
        wait_suspects(&discoverer, 1).await;
        discoverer.wait_serves(&["one"]).await;
    })
    .await;
}

#[tokio::test]
async fn what_is_deleted_while_no_discoverer_runs_is_gone_as_long_as_etcd_still_knows() {
    within(180, async {
        let etcd = Arc::new(Etcd::start().await);
        let mut discoverer = Discoverer::supervise(&etcd.url()).start();
        let (one, two, three) =
            (Backend::start("one").await, Backend::start("two").await, Backend::start("three").await);
        for backend in [&one, &two, &three] {
            etcd.put(&backend.flat_key(), "running").await;
        }
        discoverer.wait_serves(&["one", "three", "two"]).await;
        stop(&mut discoverer).await;
        etcd.delete(&two.flat_key()).await;
        etcd.put_for("/elsewhere/key", "x", BRIEF).await;
        discoverer.start_again();
        discoverer.wait_in_step(&[flat(&one), flat(&three)]).await;
        assert_eq!(discoverer.logged("keys expired").len(), 0);

        stop(&mut discoverer).await;
        etcd.delete(&three.flat_key()).await;
        write_elsewhere(&etcd).await;
        discoverer.start_again();
        wait_suspects(&discoverer, 1).await;
        discoverer.wait_serves(&["one", "three"]).await;
    })
    .await;
}

#[tokio::test]
async fn a_service_without_instances_answers_503_also_after_a_restart_with_etcd_away() {
    within(60, async {
        let mut etcd = Etcd::start().await;
        let mut discoverer = Discoverer::supervise(&etcd.url()).start();
        let (one, two) = (Backend::start("one").await, Backend::start("two").await);
        etcd.put(&one.key_in("web"), r#"{"attributes":{"host":"web.test"}}"#).await;
        etcd.put(&two.key_in("api"), r#"{"attributes":{"host":"api.test"}}"#).await;
        discoverer.wait_host("web.test", "one").await;
        etcd.delete(&one.key_in("web")).await;
        discoverer.wait_host("web.test", "503").await;
        restarted_without_etcd(&mut etcd, &mut discoverer).await;
        discoverer.wait_host("api.test", "two").await;
        discoverer.wait_host("web.test", "503").await;
        etcd.start_again().await;
        discoverer.wait_logged("registry connected", &[("keys", "1")]).await;
        discoverer.wait_host("web.test", "503").await;
    })
    .await;
}

/// The snapshot's file.
fn snapshot(state_dir: &Path) -> std::path::PathBuf {
    state_dir.join("registry.json")
}

/// Waits until the snapshot holds a text.
async fn wait_snapshot(discoverer: &Discoverer, text: &str) {
    let file = snapshot(&discoverer.state_dir());
    wait_until(SOON, &format!("{} has {text}", file.display()), async || {
        let now = fs::read_to_string(&file).map_err(|error| error.to_string())?;
        if now.contains(text) { Ok(()) } else { Err(now) }
    })
    .await;
}

#[tokio::test]
async fn a_discoverer_that_was_killed_knows_what_it_wrote_a_moment_ago() {
    within(60, async {
        let mut etcd = Etcd::start().await;
        let mut discoverer = Discoverer::supervise(&etcd.url()).start();
        let one = Backend::start("one").await;
        etcd.put(&one.flat_key(), "running").await;
        wait_snapshot(&discoverer, &one.flat_key()).await;
        etcd.stop().await;
        drop(discoverer.take_process());
        fs::remove_file(discoverer.output()).unwrap();
        discoverer.start_again();
        discoverer.wait_serves(&["one"]).await;
    })
    .await;
}

#[tokio::test]
async fn a_snapshot_that_cannot_be_used_is_named_and_written_anew() {
    within(90, async {
        let etcd = Etcd::start().await;
        let mut discoverer = Discoverer::supervise(&etcd.url()).start();
        let one = Backend::start("one").await;
        etcd.put(&one.flat_key(), "running").await;
        wait_snapshot(&discoverer, &one.flat_key()).await;
        let good = fs::read_to_string(snapshot(&discoverer.state_dir())).unwrap();
        let cases = [
            (good[..good.len() / 2].to_owned(), "is damaged"),
            (good.replace("\"version\":1", "\"version\":99"), "is of version 99"),
            (good.replace("\"key\":\"service\"", "\"key\":\"elsewhere\""), "is of --key elsewhere"),
        ];
        for (bad, why) in cases {
            stop(&mut discoverer).await;
            fs::write(snapshot(&discoverer.state_dir()), bad).unwrap();
            discoverer.start_again();
            discoverer.wait_logged("snapshot of the registry not used", &[("error", why)]).await;
            discoverer.wait_serves(&["one"]).await;
            wait_snapshot(&discoverer, "\"version\":1,\"key\":\"service\"").await;
        }
    })
    .await;
}

#[tokio::test]
async fn needs_root_a_state_directory_that_is_full_or_read_only_costs_nothing_but_the_snapshot() {
    within(90, async {
        let place = Tmpfs::mount().await;
        let haproxy = Haproxy::start().await;
        let etcd = Etcd::start().await;
        let mut discoverer = Discoverer::reload_socket(&etcd.url(), &haproxy).state_dir(place.path()).start();
        let (one, two) = (Backend::start("one").await, Backend::start("two").await);
        etcd.put(&one.flat_key(), "running").await;
        discoverer.wait_serves(&["one"]).await;
        wait_snapshot(&discoverer, &one.flat_key()).await;
        for (round, words) in ["Read-only file system", "No space left on device"].into_iter().enumerate() {
            let filler = match round {
                0 => {
                    place.remount("ro").await;
                    None
                }
                _ => Some(place.fill()),
            };
            etcd.put(&two.flat_key(), "running").await;
            discoverer.wait_serves(&["one", "two"]).await;
            discoverer.wait_logged("snapshot of the registry not written", &[("error", words)]).await;
            let written = discoverer.logged("snapshot of the registry written again").len();
            etcd.delete(&two.flat_key()).await;
            discoverer.wait_serves(&["one"]).await;
            match filler {
                None => place.remount("rw").await,
                Some(filler) => fs::remove_file(filler).unwrap(),
            }
            wait_until(SOON, "it is written again after a change", async || {
                etcd.put(&one.flat_key(), "running").await;
                etcd.put(&two.flat_key(), "running").await;
                etcd.delete(&two.flat_key()).await;
                let now = discoverer.logged("snapshot of the registry written again").len();
                if now > written { Ok(()) } else { Err("not yet".to_owned()) }
            })
            .await;
        }
        let complaints = discoverer.logged("snapshot of the registry not written").len();
        assert_eq!(complaints, 2, "each trouble is told once");
    })
    .await;
}
