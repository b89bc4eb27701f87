//! HAProxy's stats socket or the disk fails: HAProxy is reloaded instead, or goes on with what it is told, the log says what is
//! wrong, traffic goes on, and all is right when the fault is gone.

use e2e::backend::Backend;
use e2e::between::{Between, Sickness};
use e2e::discoverer::{Discoverer, SOON, field};
use e2e::etcd::Etcd;
use e2e::haproxy::{Haproxy, Version};
use e2e::load::Load;
use e2e::{secs, stays_true, wait_until, within};

use crate::output::Tmpfs;
use crate::runtime::{FLAT, Site, flat};

#[tokio::test]
async fn a_stats_socket_that_is_absent_costs_reloads_and_no_request() {
    within(90, falls_ill(Version::Installed, Sickness::Absent, "No such file")).await;
}

#[tokio::test]
async fn a_stats_socket_that_refuses_costs_reloads_and_no_request() {
    within(90, falls_ill(Version::Installed, Sickness::Refuses, "refused")).await;
}

#[tokio::test]
async fn a_stats_socket_that_closes_half_way_costs_reloads_and_no_request() {
    within(90, falls_ill(Version::Installed, Sickness::ClosesHalfWay, "closed after 0 of")).await;
}

#[tokio::test]
async fn a_stats_socket_that_answers_rubbish_costs_reloads_and_no_request() {
    within(90, falls_ill(Version::Installed, Sickness::Rubbish, "HAProxy answered")).await;
}

#[tokio::test]
async fn a_stats_socket_that_answers_rubbish_costs_reloads_and_no_request_on_haproxy_3_0() {
    within(90, falls_ill(Version::V3_0, Sickness::Rubbish, "HAProxy answered")).await;
}

#[tokio::test]
async fn a_stats_socket_that_does_it_and_says_no_costs_reloads_and_no_request() {
    within(90, falls_ill(Version::Installed, Sickness::SaysNo, "Permission denied.")).await;
}

#[tokio::test]
async fn a_stats_socket_that_is_silent_costs_time_and_reloads_and_no_request() {
    within(150, falls_ill(Version::Installed, Sickness::Silent, "no ")).await;
}

/// While it is ill each change is made by a reload whose reason is that illness; when it is well again there are no more reloads.
async fn falls_ill(version: Version, sickness: Sickness, words: &str) {
    let haproxy = Haproxy::start_version(version).await;
    let mut between = Between::start(&haproxy.runtime_socket());
    let etcd = Etcd::start().await;
    let discoverer = Discoverer::reload_socket(&etcd.url(), &haproxy).runtime_through(&haproxy, between.path()).start();
    let site = Site::with(etcd, discoverer).await;
    let two = site.second().await;
    assert_eq!(site.discoverer.reloads().await, site.reloads, "the way through the test's own socket works");
    assert!(between.asked() > 0, "and is used");
    let load = Load::start(site.discoverer.http());

    between.falls_ill(sickness);
    let three = Backend::start("three").await;
    site.etcd.put(&three.flat_key(), "running").await;
    // HAProxy is given 10 s for a batch, and 3 s for a question.
    let limit = if sickness == Sickness::Silent { secs(40) } else { SOON };
    site.discoverer.wait_servers(limit, &[flat(&site.one), flat(&two), flat(&three)]).await;
    wait_until(limit, "the reload's reason is what is wrong with the socket", async || {
        let applied = site.discoverer.logged("configuration applied");
        let reason = applied.last().map(|event| field(event, "how")).unwrap_or_default();
        if reason.starts_with("by a reload: ") && reason.contains(words) { Ok(()) } else { Err(reason) }
    })
    .await;
    site.etcd.delete(&two.flat_key()).await;
    site.discoverer.wait_servers(limit, &[flat(&site.one), flat(&three)]).await;
    let complaints = site.discoverer.logged("runtime API not used until the next reload");
    assert!(complaints.iter().any(|event| field(event, "error").contains(words)), "{complaints:?}");
    assert!(site.discoverer.reloads().await > site.reloads);

    between.recovers();
    // The first change may still be made by a reload, which makes HAProxy's state known again.
    site.etcd.put(&two.flat_key(), "running").await;
    site.discoverer.wait_servers(limit, &[flat(&site.one), flat(&two), flat(&three)]).await;
    site.discoverer.wait_in_step(&[flat(&site.one), flat(&two), flat(&three)]).await;
    let reloads = site.discoverer.reloads().await;
    site.etcd.put(&three.flat_key(), r#"{"weight":3}"#).await;
    site.etcd.delete(&two.flat_key()).await;
    site.discoverer.wait_in_step(&[flat(&site.one), (FLAT, three.address(), 3)]).await;
    assert_eq!(site.discoverer.reloads().await, reloads, "{:#?}", site.discoverer.logged("configuration applied"));
    load.stop_after(50).await.assert_no_failure(50);
}

#[tokio::test]
async fn a_stats_socket_that_stays_away_is_complained_about_now_and_then_and_never_in_a_rush() {
    within(60, async {
        let haproxy = Haproxy::start().await;
        let mut between = Between::start(&haproxy.runtime_socket());
        let etcd = Etcd::start().await;
        let discoverer =
            Discoverer::reload_socket(&etcd.url(), &haproxy).runtime_through(&haproxy, between.path()).start();
        let site = Site::with(etcd, discoverer).await;
        between.falls_ill(Sickness::Refuses);
        let two = Backend::start("two").await;
        site.etcd.put(&two.flat_key(), "running").await;
        site.discoverer.wait_servers(SOON, &[flat(&site.one), flat(&two)]).await;
        let (reloads, lines) = (site.discoverer.reloads().await, site.discoverer.events().len());
        stays_true(secs(5), "it is quiet while nothing changes", async || {
            let now = site.discoverer.reloads().await - reloads;
            let said = site.discoverer.events().len() - lines;
            if now <= 1 && said <= 10 { Ok(()) } else { Err(format!("{now} reloads, {said} lines")) }
        })
        .await;
    })
    .await;
}

#[tokio::test]
async fn needs_root_changes_of_servers_reach_haproxy_while_the_directory_is_read_only_and_the_file_follows() {
    within(
        180,
        disk_fails(
            "Read-only file system",
            async |place: &Tmpfs| place.remount("ro").await,
            async |place| {
                place.remount("rw").await;
            },
        ),
    )
    .await;
}

#[tokio::test]
async fn needs_root_changes_of_servers_reach_haproxy_while_the_disk_is_full_and_the_file_follows() {
    within(
        180,
        disk_fails(
            "No space left on device",
            async |place: &Tmpfs| drop(place.fill()),
            async |place| {
                std::fs::remove_file(place.path().join("filler")).unwrap();
            },
        ),
    )
    .await;
}

async fn disk_fails(words: &str, breaks: impl AsyncFn(&Tmpfs), heals: impl AsyncFn(&Tmpfs)) {
    let place = Tmpfs::mount().await;
    let etcd = Etcd::start().await;
    let discoverer = Discoverer::supervise(&etcd.url()).output(&place.path().join("haproxy.cfg")).start();
    let mut site = Site::with(etcd, discoverer).await;
    let load = Load::start(site.discoverer.http());
    let good = site.discoverer.config();
    breaks(&place).await;
    let (two, three) = (Backend::start("two").await, Backend::start("three").await);
    site.etcd.put(&two.flat_key(), "running").await;
    site.discoverer.wait_servers(SOON, &[flat(&site.one), flat(&two)]).await;
    site.discoverer.wait_logged("file not written", &[("error", words)]).await;
    wait_until(SOON, "the status tells it", async || {
        let told = site.discoverer.ask(&["status"]).await.stdout;
        let is_it = told.contains("the file does not hold what it runs") && told.contains(words);
        if is_it { Ok(()) } else { Err(told) }
    })
    .await;
    // It goes on like that, however long it lasts.
    for weight in [1, 2] {
        site.etcd.put(&three.flat_key(), &format!(r#"{{"weight":{weight}}}"#)).await;
        site.discoverer.wait_servers(SOON, &[flat(&site.one), flat(&two), (FLAT, three.address(), weight)]).await;
    }
    site.etcd.delete(&two.flat_key()).await;
    site.discoverer.wait_servers(SOON, &[flat(&site.one), (FLAT, three.address(), 2)]).await;
    assert_eq!(site.discoverer.config(), good, "the file that HAProxy would start with is whole");
    load.wait_served(20).await;
    heals(&place).await;
    // Nothing changes any more: the file follows by itself.
    site.discoverer.wait_in_step(&[flat(&site.one), (FLAT, three.address(), 2)]).await;
    load.stop_after(50).await.assert_no_failure(50);
    site.assert_no_reload().await;
    wait_until(SOON, "the status tells it no more", async || {
        let asked = site.discoverer.ask(&["status"]).await;
        let is_well = asked.code == Some(0) && !asked.stdout.contains("the file does not hold");
        if is_well { Ok(()) } else { Err(format!("{asked:?}")) }
    })
    .await;
    let complaints = site.discoverer.logged("file not written").len();
    assert!(complaints <= 10, "{complaints} complaints");
    assert!(site.discoverer.process().ended().is_none());
}
