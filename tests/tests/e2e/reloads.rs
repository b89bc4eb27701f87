//! Where a reload must be: one, with its reason, that loses nothing. What servers are is set from the registry after it, and only
//! their health is carried over.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use e2e::backend::Backend;
use e2e::discoverer::{Builder, Discoverer, SOON, field};
use e2e::etcd::Etcd;
use e2e::haproxy::{Haproxy, Version, cli, servers, worker};
use e2e::load::Load;
use e2e::ports::free_address;
use e2e::{secs, wait_until, within};

use crate::runtime::{FLAT, Site, WEIGHT, flat};

const SHOP: &str = r#"{"attributes":{"host":"shop.test"}}"#;

/// Waits until HAProxy was reloaded since `before`, and gives how often.
async fn wait_reloaded(site: &Site, before: u64) -> u64 {
    wait_until(SOON, "HAProxy is reloaded", async || {
        let reloads = site.discoverer.reloads().await - before;
        if reloads > 0 { Ok(reloads) } else { Err("not yet".to_owned()) }
    })
    .await
}

/// The reasons that the log gives for reloads, in order.
fn reasons(discoverer: &Discoverer) -> Vec<String> {
    let applied = discoverer.logged("configuration applied");
    let how = applied.iter().map(|event| field(event, "how"));
    how.filter_map(|how| how.strip_prefix("by a reload: ").map(str::to_owned)).collect()
}

#[tokio::test]
async fn a_new_service_takes_one_reload_which_says_why_and_fails_no_request() {
    within(60, new_service(Version::Installed)).await;
}

#[tokio::test]
async fn a_new_service_takes_one_reload_which_says_why_and_fails_no_request_on_haproxy_3_0() {
    within(60, new_service(Version::V3_0)).await;
}

async fn new_service(version: Version) {
    let site = Site::start(version, &[]).await;
    let load = Load::start(site.discoverer.http());
    let (shop, more) = (Backend::start("shop").await, Backend::start("more").await);
    site.etcd.put(&shop.key_in("shop"), SHOP).await;
    site.discoverer.wait_host("shop.test", "shop").await;
    site.etcd.put(&more.key_in("shop"), SHOP).await;
    site.discoverer
        .wait_in_step(&[flat(&site.one), ("shop", shop.address(), WEIGHT), ("shop", more.address(), WEIGHT)])
        .await;
    load.wait_served(40).await;
    load.stop_after(40).await.assert_no_failure(40);
    assert_eq!(site.discoverer.reloads().await, site.reloads + 1, "{:?}", reasons(&site.discoverer));
    let reasons = reasons(&site.discoverer);
    // Its rule in the frontend, or its backend: either says what is new.
    assert!(reasons.last().is_some_and(|why| why.contains("use_backend") || why.contains("shop")), "{reasons:?}");
}

#[tokio::test]
async fn services_that_come_together_share_their_reloads_and_no_request_fails() {
    within(120, async {
        // A reload waits for as long as a slow machine may need for all ten.
        let site = Site::start(Version::Installed, &["--min-interval", "10s"]).await;
        let load = Load::start(site.discoverer.http());
        let mut wanted = vec![flat(&site.one)];
        for service in ["s0", "s1", "s2", "s3", "s4", "s5", "s6", "s7", "s8", "s9"] {
            let address = free_address();
            site.etcd.put(&format!("/service/{service}/{address}"), "running").await;
            wanted.push((service, address, WEIGHT));
        }
        site.discoverer.wait_servers(secs(60), &wanted).await;
        site.discoverer.wait_in_step(&wanted).await;
        load.stop_after(10).await.assert_no_failure(10);
        let reloads = site.discoverer.reloads().await - site.reloads;
        assert!((1..=3).contains(&reloads), "{reloads} reloads for ten services: {:?}", reasons(&site.discoverer));
    })
    .await;
}

#[tokio::test]
async fn a_dead_server_does_not_start_up_after_a_reload() {
    within(60, dead_stays_down(Version::Installed)).await;
}

#[tokio::test]
async fn a_dead_server_does_not_start_up_after_a_reload_on_haproxy_3_0() {
    within(60, dead_stays_down(Version::V3_0)).await;
}

async fn dead_stays_down(version: Version) {
    let site = Site::start(version, &[]).await;
    let dead = free_address();
    site.etcd.put(&format!("/service/{dead}"), "running").await;
    let socket = site.discoverer.runtime_socket();
    let is_up = async || {
        let servers = servers(&socket).await?;
        let server = servers.values().find(|server| server.address == dead).ok_or("it is missing")?;
        // One that has just been added is not up either, and not ready.
        if server.ready { Ok(server.up) } else { Err(format!("{server:?}")) }
    };
    wait_until(SOON, "the check has it down", async || match is_up().await {
        Ok(false) => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    let load = Load::start(site.discoverer.http());
    for number in 0..3 {
        let (before, old) = (site.discoverer.reloads().await, worker(&socket).await.unwrap());
        site.etcd.put(&format!("/service/new{number}/{}", free_address()), "running").await;
        wait_reloaded(&site, before).await;
        // The very first thing that the new worker says: its own check needs 2 s to find out anew.
        let up = wait_until(SOON, "a new worker tells its servers", async || {
            if worker(&socket).await? == old { Err("the old one answers".to_owned()) } else { is_up().await }
        })
        .await;
        assert!(!up, "reload {number}: a dead server is up");
        load.wait_served(20).await;
    }
    load.stop_after(60).await.assert_no_failure(60);
}

#[tokio::test]
async fn what_somebody_set_by_hand_is_as_the_registry_says_after_a_reload() {
    within(60, set_by_hand(Version::Installed)).await;
}

#[tokio::test]
async fn what_somebody_set_by_hand_is_as_the_registry_says_after_a_reload_on_haproxy_3_0() {
    within(60, set_by_hand(Version::V3_0)).await;
}

async fn set_by_hand(version: Version) {
    let site = Site::start(version, &[]).await;
    let (two, three) = (Backend::start("two").await, Backend::start("three").await);
    site.etcd.put(&two.flat_key(), r#"{"weight":20}"#).await;
    site.etcd.put(&three.flat_key(), r#"{"status":"draining"}"#).await;
    let wanted = [flat(&site.one), (FLAT, two.address(), 20), (FLAT, three.address(), 0)];
    site.discoverer.wait_in_step(&wanted).await;
    let socket = site.discoverer.runtime_socket();
    let before = site.discoverer.reloads().await;
    let names = servers(&socket).await.unwrap();
    for (name, server) in &names {
        let by_hand: &[&str] = match server.weight {
            WEIGHT => &["state maint"],
            20 => &["weight 0", "state drain"],
            _ => &["weight 200"],
        };
        for what in by_hand {
            assert_eq!(cli(&socket, &format!("set server {name} {what}")).await.unwrap().trim(), "");
        }
    }
    let shop = Backend::start("shop").await;
    site.etcd.put(&shop.key_in("shop"), SHOP).await;
    wait_reloaded(&site, before).await;
    let [a, b, c] = wanted;
    site.discoverer.wait_in_step(&[a, b, c, ("shop", shop.address(), WEIGHT)]).await;
    site.discoverer.wait_host("shop.test", "shop").await;
}

#[tokio::test]
async fn a_tunnel_lives_through_a_reload_until_the_drain_timeout() {
    within(120, async {
        let site = Site::start(Version::Installed, &["--drain-timeout", "15s"]).await;
        let mut tunnel = site.tunnel_to(&site.one).await;
        let shop = Backend::start("shop").await;
        let asked = Instant::now();
        site.etcd.put(&shop.key_in("shop"), SHOP).await;
        wait_reloaded(&site, site.reloads).await;
        site.discoverer.wait_host("shop.test", "shop").await;
        tunnel.echo().await.unwrap();
        tunnel.ended().await;
        let lasted = asked.elapsed();
        let fits = (Duration::from_millis(14_900)..Duration::from_secs(60)).contains(&lasted);
        assert!(fits, "the tunnel was cut {lasted:?} after the change that cost it");
    })
    .await;
}

#[tokio::test]
async fn however_many_reloads_follow_no_tunnel_is_cut_before_the_drain_timeout() {
    within(90, async {
        // HAProxy ends the oldest worker where there would be more than this many: reloads have to wait for that.
        let args = ["--drain-timeout", "3s", "--set", "mworker_max_reloads=2"];
        let site = Site::start(Version::Installed, &args).await;
        let mut wanted = vec![flat(&site.one)];
        let mut tunnels = Vec::new();
        for service in ["s0", "s1", "s2", "s3", "s4"] {
            let mut tunnel = site.tunnel_to(&site.one).await;
            let before = site.discoverer.reloads().await;
            let (address, asked) = (free_address(), Instant::now());
            site.etcd.put(&format!("/service/{service}/{address}"), "running").await;
            wait_reloaded(&site, before).await;
            wanted.push((service, address, WEIGHT));
            tunnels.push(tokio::spawn(async move {
                tunnel.ended().await;
                asked.elapsed()
            }));
        }
        site.discoverer.wait_in_step(&wanted).await;
        for tunnel in tunnels {
            let lasted = tunnel.await.unwrap();
            assert!(lasted > Duration::from_millis(2900), "a tunnel was cut {lasted:?} after the change that cost it");
        }
    })
    .await;
}

#[tokio::test]
async fn a_removal_that_waits_is_not_forgotten_over_a_reload_and_its_request_ends_well() {
    within(60, async {
        let site = Site::start(Version::Installed, &[]).await;
        let two = site.second().await;
        let request = site.held_by(&two).await;
        site.etcd.delete(&two.flat_key()).await;
        site.wait_not_ready(&two).await;
        let shop = Backend::start("shop").await;
        site.etcd.put(&shop.key_in("shop"), SHOP).await;
        wait_reloaded(&site, site.reloads).await;
        site.discoverer.wait_in_step(&[flat(&site.one), ("shop", shop.address(), WEIGHT)]).await;
        two.release();
        assert_eq!(request.await.unwrap(), "two");
        site.etcd.put(&two.flat_key(), "running").await;
        site.discoverer.wait_in_step(&[flat(&site.one), flat(&two), ("shop", shop.address(), WEIGHT)]).await;
        assert_eq!(site.discoverer.reloads().await, site.reloads + 1, "{:?}", reasons(&site.discoverer));
    })
    .await;
}

#[tokio::test]
async fn while_a_reload_is_not_possible_servers_come_and_go_and_it_is_made_up_for() {
    within(90, async {
        let site = Site::start(Version::Installed, &[]).await;
        let load = Load::start(site.discoverer.http());
        // A port that another program has: `haproxy -c` does not notice, and the new worker cannot start.
        let holder = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let taken = holder.local_addr().unwrap();
        let path = site.discoverer.templates().join("haproxy.cfg.tera");
        let good = std::fs::read_to_string(&path).unwrap();
        let with_second_bind = good.replace("frontend _stats\n", &format!("frontend _stats\n    bind {taken}\n"));
        std::fs::write(&path, &with_second_bind).unwrap();
        wait_until(SOON, "the log names the port", async || {
            let told: Vec<_> = site.discoverer.events().into_iter().filter(|e| e["level"] == "ERROR").collect();
            if told.iter().any(|e| e.to_string().contains(&taken.to_string())) {
                Ok(())
            } else {
                Err(format!("{told:?}"))
            }
        })
        .await;
        let two = Backend::start("two").await;
        for _ in 0..3 {
            site.etcd.put(&two.flat_key(), "running").await;
            site.discoverer.wait_in_step(&[flat(&site.one), flat(&two)]).await;
            site.etcd.delete(&two.flat_key()).await;
            site.discoverer.wait_in_step(&[flat(&site.one)]).await;
        }
        assert!(!site.discoverer.config().contains(&taken.to_string()), "the file is one that HAProxy can start with");
        assert_eq!(load.failed(), 0, "listeners never pause");
        drop(holder);
        // It is tried again now and then, and at once when it is another one.
        std::fs::write(&path, format!("{with_second_bind}\n# Once more.\n")).unwrap();
        site.discoverer.wait_config(&taken.to_string()).await;
        site.etcd.put(&two.flat_key(), "running").await;
        site.discoverer.wait_in_step(&[flat(&site.one), flat(&two)]).await;
        load.stop_after(100).await.assert_no_failure(100);
    })
    .await;
}

#[tokio::test]
async fn an_haproxy_that_somebody_else_reloads_with_an_older_file_is_brought_to_what_etcd_has() {
    within(90, somebody_reloads(Version::Installed)).await;
}

#[tokio::test]
async fn an_haproxy_that_somebody_else_reloads_with_an_older_file_is_brought_to_what_etcd_has_on_haproxy_3_0() {
    within(90, somebody_reloads(Version::V3_0)).await;
}

async fn somebody_reloads(version: Version) {
    let haproxy = Haproxy::start_version(version).await;
    let site = Site::beside(&haproxy, &[]).await;
    let older = site.discoverer.config();
    let two = site.second().await;
    let load = Load::start(site.discoverer.http());
    let told = || site.discoverer.logged("HAProxy was restarted or reloaded by somebody else");
    for _ in 0..2 {
        std::fs::write(haproxy.config(), &older).unwrap();
        let before = told().len();
        // While the master starts itself anew, it refuses; and it may take one whose answer is lost.
        wait_until(SOON, "somebody's reload is taken", async || cli(&haproxy.master_socket(), "reload").await).await;
        wait_until(SOON, "it notices", async || {
            let told = told();
            if told.len() > before { Ok(()) } else { Err(format!("{told:?}")) }
        })
        .await;
        site.discoverer.wait_in_step(&[flat(&site.one), flat(&two)]).await;
    }
    let three = Backend::start("three").await;
    site.etcd.put(&three.flat_key(), "running").await;
    site.discoverer.wait_in_step(&[flat(&site.one), flat(&two), flat(&three)]).await;
    load.stop_after(50).await.assert_no_failure(50);
}

#[tokio::test]
async fn an_haproxy_that_somebody_else_reloads_while_servers_change_ends_as_etcd_has_it() {
    within(90, async {
        let haproxy = Haproxy::start().await;
        let site = Site::beside(&haproxy, &[]).await;
        let two = Backend::start("two").await;
        let load = Load::start(site.discoverer.http());
        for round in 1..=6_u16 {
            site.etcd.put(&two.flat_key(), &format!(r#"{{"weight":{round}}}"#)).await;
            // While the master starts itself anew, it refuses.
            wait_until(SOON, "somebody's reload is taken", async || cli(&haproxy.master_socket(), "reload").await)
                .await;
            if round % 2 == 0 {
                site.etcd.delete(&two.flat_key()).await;
                site.discoverer.wait_in_step(&[flat(&site.one)]).await;
            } else {
                site.discoverer.wait_in_step(&[flat(&site.one), (FLAT, two.address(), round)]).await;
            }
        }
        load.stop_after(50).await.assert_no_failure(50);
    })
    .await;
}

#[tokio::test]
async fn an_haproxy_that_somebody_else_restarts_is_brought_to_what_etcd_has() {
    within(90, async {
        let mut haproxy = Haproxy::start().await;
        let site = Site::beside(&haproxy, &[]).await;
        let older = site.discoverer.config();
        let two = site.second().await;
        for file in [&older, &site.discoverer.config()] {
            haproxy.kill();
            site.etcd.delete(&site.one.flat_key()).await;
            std::fs::write(haproxy.config(), file).unwrap();
            haproxy.start_again();
            site.discoverer.wait_in_step(&[flat(&two)]).await;
            site.etcd.put(&site.one.flat_key(), "running").await;
            site.discoverer.wait_in_step(&[flat(&site.one), flat(&two)]).await;
        }
    })
    .await;
}

#[tokio::test]
async fn an_haproxy_that_reads_another_file_is_not_said_to_run_what_it_was_reloaded_for() {
    let by_socket = |etcd: &str, haproxy: &Haproxy| Discoverer::reload_socket(etcd, haproxy);
    within(90, reads_another_file(Haproxy::start().await, by_socket)).await;
    let by_command = |etcd: &str, haproxy: &Haproxy| Discoverer::reload_command(etcd, haproxy, &signal_to(haproxy));
    within(90, reads_another_file(Haproxy::start().await, by_command)).await;
}

/// A command that ends before the new worker is there.
fn signal_to(haproxy: &Haproxy) -> String {
    format!("kill -USR2 $(cat {})", haproxy.pid_file().display())
}

#[tokio::test]
async fn a_reload_command_that_does_not_wait_is_judged_by_the_worker_that_comes_of_it() {
    within(90, async {
        let (etcd, haproxy, one) = (Etcd::start().await, Haproxy::start().await, Backend::start("one").await);
        let discoverer =
            Discoverer::reload_command(&etcd.url(), &haproxy, &signal_to(&haproxy)).runtime(&haproxy).start();
        for number in 0..6 {
            let record = format!(r#"{{"attributes":{{"host":"s{number}.test"}}}}"#);
            etcd.put(&one.key_in(&format!("s{number}")), &record).await;
            discoverer.wait_host(&format!("s{number}.test"), "one").await;
        }
        // One of somebody else's just before.
        wait_until(SOON, "its master listens again", async || cli(&haproxy.master_socket(), "reload").await).await;
        etcd.put(&one.key_in("last"), r#"{"attributes":{"host":"last.test"}}"#).await;
        discoverer.wait_host("last.test", "one").await;
        discoverer.wait_logged("configuration applied", &[("services", "7")]).await;
        for trouble in ["not applied", "reload failed"] {
            assert_eq!(discoverer.logged(trouble), Vec::<serde_json::Value>::new());
        }
    })
    .await;
}

#[tokio::test]
async fn a_reload_command_that_reloads_nobody_is_told_and_what_needs_no_reload_goes_on() {
    within(180, async {
        let (etcd, haproxy) = (Etcd::start().await, Haproxy::start().await);
        let (one, two) = (Backend::start("one").await, Backend::start("two").await);
        let gate = haproxy.config().with_file_name("gate");
        let command = format!("if test -e {}; then {}; fi", gate.display(), signal_to(&haproxy));
        e2e::process::touch(&gate);
        let discoverer = Discoverer::reload_command(&etcd.url(), &haproxy, &command).runtime(&haproxy).start();
        etcd.put(&one.key_in("web"), r#"{"attributes":{"host":"web.test"}}"#).await;
        discoverer.wait_host("web.test", "one").await;
        std::fs::remove_file(&gate).unwrap();
        etcd.put(&one.key_in("shop"), r#"{"attributes":{"host":"shop.test"}}"#).await;
        let error = wait_until(secs(45), "it is told", async || {
            discoverer.logged("reload failed").pop().ok_or_else(|| "not yet".to_owned())
        })
        .await;
        assert!(error.to_string().contains("is still the same 30 s later"), "{error}");
        // Meanwhile that worker is told of what it can be told.
        etcd.put(&two.key_in("web"), r#"{"attributes":{"host":"web.test"}}"#).await;
        wait_until(secs(45), "the other instance is served too", async || {
            match discoverer.answer("web.test").await.as_str() {
                "two" => Ok(()),
                other => Err(other.to_owned()),
            }
        })
        .await;
        let status = discoverer.ask(&["status"]).await;
        assert!(status.code == Some(1) && status.stdout.contains("is still the same"), "{status:?}");
        e2e::process::touch(&gate);
        wait_until(secs(45), "it is reloaded when it can be", async || {
            match discoverer.answer("shop.test").await.as_str() {
                "one" => Ok(()),
                other => Err(other.to_owned()),
            }
        })
        .await;
    })
    .await;
}

async fn reads_another_file(haproxy: Haproxy, by: impl Fn(&str, &Haproxy) -> Builder) {
    let socket = haproxy.runtime_socket();
    let mut elsewhere = std::fs::read_to_string(haproxy.config()).unwrap();
    writeln!(elsewhere, "global\n stats socket {} level admin", socket.display()).unwrap();
    std::fs::write(haproxy.config(), elsewhere).unwrap();
    cli(&haproxy.master_socket(), "reload").await.unwrap();
    wait_until(SOON, "it has its stats socket", async || worker(&socket).await).await;

    let (etcd, one) = (Etcd::start().await, Backend::start("one").await);
    etcd.put(&one.flat_key(), "running").await;
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("haproxy.cfg");
    let mut discoverer = by(&etcd.url(), &haproxy).output(&output).runtime(&haproxy).start();
    let error = discoverer.wait_logged("not applied", &[]).await;
    let error = field(&error, "error");
    for part in ["has not read", &output.display().to_string(), "is missing", "start it with -f"] {
        assert!(error.contains(part), "{part:?} in {error}");
    }
    assert!(discoverer.logged("configuration applied").is_empty());
    let status = discoverer.ask(&["status"]).await;
    assert!(status.stdout.contains("has not read"), "{status:?}");

    std::fs::copy(&output, haproxy.config()).unwrap();
    discoverer.wait_serves(&["one"]).await;
    // The worker that serves is looked at before it is said to run what is wanted.
    wait_until(SOON, "status says that all is well", async || {
        let status = discoverer.ask(&["status"]).await;
        if status.code == Some(0) { Ok(()) } else { Err(status.stdout) }
    })
    .await;
}

#[tokio::test]
async fn a_discoverer_killed_at_any_moment_finds_the_right_state_when_it_is_back() {
    within(120, async {
        let haproxy = Haproxy::start().await;
        let mut site = Site::beside(&haproxy, &[]).await;
        let (two, three) = (Backend::start("two").await, Backend::start("three").await);
        let load = Load::start(site.discoverer.http());
        for round in 0..8_u64 {
            let (comes, goes) = if round % 2 == 0 { (&two, &three) } else { (&three, &two) };
            let churn = async {
                for weight in 0..10 {
                    site.etcd.put(&comes.flat_key(), &format!(r#"{{"weight":{weight}}}"#)).await;
                    site.etcd.put(&goes.flat_key(), "running").await;
                    site.etcd.delete(&goes.flat_key()).await;
                }
                site.etcd.put(&comes.flat_key(), "running").await;
            };
            let discoverer = &mut site.discoverer;
            let kill = async {
                // The point is to meet it in the middle of something, each time of something else.
                tokio::time::sleep(Duration::from_millis(3 + 13 * round)).await;
                discoverer.process().kill_now().await;
                drop(discoverer.take_process());
            };
            tokio::join!(churn, kill);
            site.discoverer.start_again();
            site.discoverer.wait_in_step(&[flat(&site.one), flat(comes)]).await;
        }
        load.stop_after(100).await.assert_no_failure(100);
        let beside: Vec<_> = std::fs::read_dir(haproxy.config().parent().unwrap())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.starts_with("haproxy.cfg") && name != "haproxy.cfg")
            .collect();
        assert!(beside.iter().all(|name| name == "haproxy.cfg.candidate"), "{beside:?}");
    })
    .await;
}

#[tokio::test]
async fn a_killed_discoverer_that_was_haproxys_parent_finds_the_right_file_when_it_is_back() {
    within(90, async {
        let Site { etcd, mut discoverer, one, .. } = Site::start(Version::Installed, &[]).await;
        let two = Backend::start("two").await;
        for round in 0..4_u64 {
            for _ in 0..=round {
                etcd.put(&two.flat_key(), "running").await;
                etcd.delete(&two.flat_key()).await;
            }
            if round % 2 == 0 {
                etcd.put(&two.flat_key(), "running").await;
            }
            discoverer.process().kill_now().await;
            drop(discoverer.take_process());
            discoverer.start_again();
            let mut wanted = vec![flat(&one)];
            wanted.extend((round % 2 == 0).then(|| flat(&two)));
            discoverer.wait_in_step(&wanted).await;
        }
    })
    .await;
}

#[tokio::test]
async fn what_a_reload_changes_of_a_server_is_not_undone_by_the_state_that_it_hands_over() {
    within(60, handed_over(Version::Installed)).await;
}

#[tokio::test]
async fn what_a_reload_changes_of_a_server_is_not_undone_by_the_state_that_it_hands_over_on_haproxy_3_0() {
    within(60, handed_over(Version::V3_0)).await;
}

async fn handed_over(version: Version) {
    let site = Site::start(version, &[]).await;
    let socket = site.discoverer.runtime_socket();
    let uses_tls = async || {
        let table = cli(&socket, "show servers state").await?;
        let line = table.lines().find(|line| line.contains(" service ")).ok_or("no server")?.to_owned();
        // Management guide, 9.3: srv_use_ssl.
        line.split(' ').nth(20).map(|field| field == "1").ok_or(line)
    };
    assert_eq!(uses_tls().await, Ok(false));
    for (proto, tls) in [("https", true), ("http", false)] {
        let record = format!(r#"{{"attributes":{{"proto":"{proto}"}}}}"#);
        site.etcd.put(&site.one.flat_key(), &record).await;
        wait_until(SOON, &format!("HAProxy speaks {proto}"), async || match uses_tls().await {
            Ok(now) if now == tls => Ok(()),
            other => Err(format!("{other:?}")),
        })
        .await;
    }
    assert!(site.discoverer.reloads().await - site.reloads >= 2);
}
