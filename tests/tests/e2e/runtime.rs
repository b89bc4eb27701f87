//! Servers come, change and go over HAProxy's runtime API: no reload, no failed request, and open connections live on.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use e2e::backend::Backend;
use e2e::discoverer::{Discoverer, SOON};
use e2e::etcd::Etcd;
use e2e::haproxy::{Haproxy, Server, Version, servers};
use e2e::http::{Connection, Tunnel};
use e2e::load::{Load, requests};
use e2e::ports::free_address;
use e2e::{secs, stays_true, wait_until, within};
use nix::sys::signal::Signal;

/// The service that keys of the flat layout are in.
pub(crate) const FLAT: &str = "service";
/// The weight of an instance that says nothing of it.
pub(crate) const WEIGHT: u16 = 100;

/// A server as a test wants it: service, address, weight.
pub(crate) type Wanted = (&'static str, SocketAddr, u16);

pub(crate) fn flat(backend: &Backend) -> Wanted {
    (FLAT, backend.address(), WEIGHT)
}

/// An etcd, a discoverer with an HAProxy below it, and the first instance, served.
pub(crate) struct Site {
    pub(crate) etcd: Etcd,
    pub(crate) discoverer: Discoverer,
    pub(crate) one: Backend,
    /// HAProxy's reloads until then.
    pub(crate) reloads: u64,
}

impl Site {
    pub(crate) async fn start(version: Version, args: &[&str]) -> Site {
        let etcd = Etcd::start().await;
        let discoverer = Discoverer::supervise(&etcd.url()).haproxy(version).args(args).start();
        Site::with(etcd, discoverer).await
    }

    /// One whose HAProxy is somebody else's, and is reloaded over its master socket.
    pub(crate) async fn beside(haproxy: &Haproxy, args: &[&str]) -> Site {
        let etcd = Etcd::start().await;
        let discoverer = Discoverer::reload_socket(&etcd.url(), haproxy).runtime(haproxy).args(args).start();
        Site::with(etcd, discoverer).await
    }

    pub(crate) async fn with(etcd: Etcd, discoverer: Discoverer) -> Site {
        let one = Backend::start("one").await;
        etcd.put(&one.flat_key(), "running").await;
        discoverer.wait_in_step(&[flat(&one)]).await;
        let reloads = discoverer.reloads().await;
        Site { etcd, discoverer, one, reloads }
    }

    /// A second instance, served.
    pub(crate) async fn second(&self) -> Backend {
        self.second_beside(&[]).await
    }

    /// A second instance, served beside other services' instances.
    pub(crate) async fn second_beside(&self, others: &[Wanted]) -> Backend {
        let two = Backend::start("two").await;
        self.etcd.put(&two.flat_key(), "running").await;
        self.discoverer.wait_in_step(&[&[flat(&self.one), flat(&two)], others].concat()).await;
        two
    }

    /// A tunnel through HAProxy to this backend, the others being busy with something else.
    pub(crate) async fn tunnel_to(&self, backend: &Backend) -> Tunnel {
        let http = self.discoverer.http();
        wait_until(SOON, &format!("a tunnel to {}", backend.name()), async || {
            let mut tunnel = Tunnel::open(http).await.map_err(|error| error.to_string())?;
            tunnel.echo().await.map_err(|error| error.to_string())?;
            if backend.open() > 0 { Ok(tunnel) } else { Err("it went elsewhere".to_owned()) }
        })
        .await
    }

    /// A request through HAProxy that this backend holds; it gives the answer's body.
    pub(crate) async fn held_by(&self, backend: &Backend) -> tokio::task::JoinHandle<String> {
        let http = self.discoverer.http();
        wait_until(SOON, &format!("{} holds a request", backend.name()), async || {
            let before = backend.open();
            let request = tokio::spawn(async move {
                match tokio::time::timeout(secs(60), hold(http)).await {
                    Ok(Ok(body)) => body,
                    Ok(Err(error)) => error.to_string(),
                    Err(_) => "no whole reply in time".to_owned(),
                }
            });
            let asked = Instant::now();
            while asked.elapsed() < secs(2) {
                if backend.open() > before {
                    return Ok(request);
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            request.abort();
            Err("it went elsewhere".to_owned())
        })
        .await
    }

    /// The state of a backend's server, whether it still finishes something or not.
    pub(crate) async fn state_of(&self, backend: &Backend) -> Option<Server> {
        let all = servers(&self.discoverer.runtime_socket()).await.unwrap();
        all.into_values().find(|server| server.address == backend.address())
    }

    pub(crate) async fn wait_not_ready(&self, backend: &Backend) {
        wait_until(SOON, &format!("{} takes nothing new and is still there", backend.name()), async || {
            match self.state_of(backend).await {
                Some(server) if !server.ready || server.weight == 0 => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
    }

    pub(crate) async fn assert_no_reload(&self) {
        let reloads = self.discoverer.reloads().await - self.reloads;
        assert_eq!(reloads, 0, "HAProxy was reloaded {reloads} times: {:#?}", self.discoverer.logged("configuration"));
    }
}

/// A request that is answered when its backend is told to; gives the answer's body.
async fn hold(http: SocketAddr) -> std::io::Result<String> {
    let reply = Connection::open(http).await?.exchange("GET", "/hold", &[("Connection", "close")], "").await?;
    Ok(reply.body)
}

#[tokio::test]
async fn instances_come_and_go_with_no_reload_and_no_failed_request() {
    within(90, come_and_go(Version::Installed)).await;
}

#[tokio::test]
async fn instances_come_and_go_with_no_reload_and_no_failed_request_on_haproxy_3_0() {
    within(90, come_and_go(Version::V3_0)).await;
}

async fn come_and_go(version: Version) {
    let mut site = Site::start(version, &[]).await;
    let load = Load::start(site.discoverer.http());
    let (two, three) = (Backend::start("two").await, Backend::start("three").await);
    for round in 0..6 {
        let (comes, goes) = if round % 2 == 0 { (&two, &three) } else { (&three, &two) };
        site.etcd.put(&comes.flat_key(), "running").await;
        if round > 0 {
            site.etcd.delete(&goes.flat_key()).await;
        }
        site.discoverer.wait_serves(&["one", comes.name()]).await;
        load.wait_served(40).await;
    }
    // The first one of all, which a reload has brought, goes as well as those that came at run time.
    site.etcd.delete(&site.one.flat_key()).await;
    site.discoverer.wait_in_step(&[flat(&three)]).await;
    load.wait_served(40).await;
    let report = load.stop_after(300).await;
    report.assert_no_failure(300);
    assert!(report.answers["two"] > 0 && report.answers["three"] > 0, "{:?}", report.answers);
    site.assert_no_reload().await;
}

#[tokio::test]
async fn weights_and_draining_reach_haproxy_with_no_reload() {
    within(90, weights_and_draining(Version::Installed)).await;
}

#[tokio::test]
async fn weights_and_draining_reach_haproxy_with_no_reload_on_haproxy_3_0() {
    within(90, weights_and_draining(Version::V3_0)).await;
}

async fn weights_and_draining(version: Version) {
    let mut site = Site::start(version, &[]).await;
    let two = site.second().await;
    let load = Load::start(site.discoverer.http());
    let at = two.address();
    for weight in [1, 256, 0, 50] {
        site.etcd.put(&two.flat_key(), &format!(r#"{{"weight":{weight}}}"#)).await;
        site.discoverer.wait_in_step(&[flat(&site.one), (FLAT, at, weight)]).await;
    }
    site.etcd.put(&two.flat_key(), r#"{"weight":50,"status":"draining"}"#).await;
    site.discoverer.wait_in_step(&[flat(&site.one), (FLAT, at, 0)]).await;
    site.discoverer.wait_serves(&["one"]).await;
    // What is served then goes on the way it does when an instance drains: with its connections.
    site.etcd.put(&two.flat_key(), r#"{"weight":50,"status":"running"}"#).await;
    site.discoverer.wait_in_step(&[flat(&site.one), (FLAT, at, 50)]).await;
    site.discoverer.wait_serves(&["one", "two"]).await;
    load.stop_after(100).await.assert_no_failure(100);
    site.assert_no_reload().await;
}

#[tokio::test]
async fn an_instance_that_returns_while_its_removal_waits_is_in_again_and_its_connections_live_on() {
    within(60, returns_during_its_removal(Version::Installed)).await;
}

#[tokio::test]
async fn an_instance_that_returns_while_its_removal_waits_is_in_again_on_haproxy_3_0() {
    within(60, returns_during_its_removal(Version::V3_0)).await;
}

async fn returns_during_its_removal(version: Version) {
    let mut site = Site::start(version, &[]).await;
    let two = site.second().await;
    let mut tunnel = site.tunnel_to(&two).await;
    for _ in 0..3 {
        site.etcd.delete(&two.flat_key()).await;
        site.wait_not_ready(&two).await;
        site.discoverer.wait_serves(&["one"]).await;
        tunnel.echo().await.unwrap();
        site.etcd.put(&two.flat_key(), "running").await;
        site.discoverer.wait_in_step(&[flat(&site.one), flat(&two)]).await;
        site.discoverer.wait_serves(&["one", "two"]).await;
    }
    // Its removal was tried with growing pauses, and would come now.
    stays_true(secs(2), "it stays in, with its tunnel", async || {
        tunnel.echo().await.map_err(|error| error.to_string())?;
        match site.state_of(&two).await {
            Some(server) if server.ready && server.weight == WEIGHT => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    site.assert_no_reload().await;
}

#[tokio::test]
async fn an_instance_that_returns_with_another_weight_while_its_removal_waits_has_that_weight() {
    within(60, async {
        let site = Site::start(Version::Installed, &[]).await;
        let two = site.second().await;
        let mut tunnel = site.tunnel_to(&two).await;
        site.etcd.delete(&two.flat_key()).await;
        site.wait_not_ready(&two).await;
        site.etcd.put(&two.flat_key(), r#"{"weight":7}"#).await;
        site.discoverer.wait_in_step(&[flat(&site.one), (FLAT, two.address(), 7)]).await;
        tunnel.echo().await.expect("only its weight is another");
        site.assert_no_reload().await;
    })
    .await;
}

#[tokio::test]
async fn a_removed_instance_finishes_its_request_and_goes_then() {
    within(60, finishes_its_request(Version::Installed)).await;
}

#[tokio::test]
async fn a_removed_instance_finishes_its_request_and_goes_then_on_haproxy_3_0() {
    within(60, finishes_its_request(Version::V3_0)).await;
}

async fn finishes_its_request(version: Version) {
    let site = Site::start(version, &[]).await;
    let two = site.second().await;
    let request = site.held_by(&two).await;
    site.etcd.delete(&two.flat_key()).await;
    site.wait_not_ready(&two).await;
    stays_true(secs(2), "it is there while its request runs", async || {
        if request.is_finished() {
            return Err("the request has ended".to_owned());
        }
        site.state_of(&two).await.map(drop).ok_or_else(|| "it is gone".to_owned())
    })
    .await;
    two.release();
    assert_eq!(request.await.unwrap(), "two");
    site.discoverer.wait_gone(two.address()).await;
    site.discoverer.wait_in_step(&[flat(&site.one)]).await;
    site.assert_no_reload().await;
}

#[tokio::test]
async fn what_a_removed_instance_still_does_at_the_drain_timeout_is_cut() {
    within(90, cut_at_the_deadline(Version::Installed)).await;
}

#[tokio::test]
async fn what_a_removed_instance_still_does_at_the_drain_timeout_is_cut_on_haproxy_3_0() {
    within(90, cut_at_the_deadline(Version::V3_0)).await;
}

async fn cut_at_the_deadline(version: Version) {
    let site = Site::start(version, &["--drain-timeout", "10s"]).await;
    let two = site.second().await;
    let mut tunnel = site.tunnel_to(&two).await;
    let start = Instant::now();
    site.etcd.delete(&two.flat_key()).await;
    site.wait_not_ready(&two).await;
    tunnel.echo().await.unwrap();
    tunnel.ended().await;
    let lasted = start.elapsed();
    assert!(
        (Duration::from_millis(9900)..Duration::from_secs(60)).contains(&lasted),
        "the tunnel was cut after {lasted:?}"
    );
    site.discoverer.wait_gone(two.address()).await;
    site.discoverer.wait_in_step(&[flat(&site.one)]).await;
    site.assert_no_reload().await;
}

#[tokio::test]
async fn a_tunnel_lives_through_changes_of_other_servers() {
    within(60, tunnel_lives_on(Version::Installed)).await;
}

#[tokio::test]
async fn a_tunnel_lives_through_changes_of_other_servers_on_haproxy_3_0() {
    within(60, tunnel_lives_on(Version::V3_0)).await;
}

async fn tunnel_lives_on(version: Version) {
    let site = Site::start(version, &["--drain-timeout", "1s"]).await;
    let mut tunnel = site.tunnel_to(&site.one).await;
    for round in 0..10 {
        let two = site.second().await;
        site.etcd.put(&two.flat_key(), &format!(r#"{{"weight":{round}}}"#)).await;
        tunnel.echo().await.unwrap();
        site.etcd.delete(&two.flat_key()).await;
        site.discoverer.wait_gone(two.address()).await;
        site.discoverer.wait_in_step(&[flat(&site.one)]).await;
        tunnel.echo().await.unwrap();
    }
    site.assert_no_reload().await;
}

#[tokio::test]
async fn a_server_that_will_not_go_blocks_no_later_change() {
    within(60, async {
        let mut site = Site::start(Version::Installed, &[]).await;
        let two = site.second().await;
        let mut tunnel = site.tunnel_to(&two).await;
        site.etcd.delete(&two.flat_key()).await;
        site.wait_not_ready(&two).await;
        let three = Backend::start("three").await;
        for _ in 0..5 {
            site.etcd.put(&three.flat_key(), "running").await;
            site.discoverer.wait_serves(&["one", "three"]).await;
            site.etcd.delete(&three.flat_key()).await;
            site.discoverer.wait_serves(&["one"]).await;
        }
        site.etcd.put(&three.flat_key(), r#"{"weight":3}"#).await;
        site.discoverer.wait_config(&format!("{} weight 3 ", three.address())).await;
        tunnel.echo().await.unwrap();
        assert!(site.state_of(&two).await.is_some_and(|server| !server.ready));
        drop(tunnel);
        site.discoverer.wait_gone(two.address()).await;
        site.discoverer.wait_in_step(&[flat(&site.one), (FLAT, three.address(), 3)]).await;
        site.assert_no_reload().await;
    })
    .await;
}

#[tokio::test]
async fn an_address_that_comes_and_goes_many_times_at_once_ends_as_etcd_has_it() {
    within(60, async {
        let site = Site::start(Version::Installed, &[]).await;
        let two = Backend::start("two").await;
        let load = Load::start(site.discoverer.http());
        for round in 0..40 {
            site.etcd.put(&two.flat_key(), "running").await;
            site.etcd.delete(&two.flat_key()).await;
            if round % 8 == 3 {
                site.etcd.put(&two.flat_key(), r#"{"status":"draining"}"#).await;
                site.etcd.put(&two.flat_key(), &format!(r#"{{"weight":{round}}}"#)).await;
                site.etcd.delete(&two.flat_key()).await;
            }
        }
        site.discoverer.wait_in_step(&[flat(&site.one)]).await;
        site.etcd.put(&two.flat_key(), "running").await;
        site.discoverer.wait_in_step(&[flat(&site.one), flat(&two)]).await;
        load.stop_after(50).await.assert_no_failure(50);
        site.assert_no_reload().await;
    })
    .await;
}

#[tokio::test]
async fn many_writers_at_once_end_in_the_right_state() {
    within(90, many_writers(Version::Installed)).await;
}

#[tokio::test]
async fn many_writers_at_once_end_in_the_right_state_on_haproxy_3_0() {
    within(90, many_writers(Version::V3_0)).await;
}

/// 8 writers, each with a service of its own, make 304 changes: the addresses need nobody behind them.
async fn many_writers(version: Version) {
    const SERVICES: [&str; 8] = ["s0", "s1", "s2", "s3", "s4", "s5", "s6", "s7"];
    let Site { etcd, discoverer, one, .. } = Site::start(version, &[]).await;
    let etcd = Arc::new(etcd);
    let mut wanted = vec![flat(&one)];
    let mut writers = Vec::new();
    for service in SERVICES {
        let addresses: Vec<SocketAddr> = (0..6).map(|_| free_address()).collect();
        etcd.put(&key(service, addresses[0]), "running").await;
        wanted.push((service, addresses[0], WEIGHT));
        writers.push((service, addresses));
    }
    discoverer.wait_in_step(&wanted).await;
    let reloads = discoverer.reloads().await;
    let load = Load::start(discoverer.http());

    wanted.truncate(1);
    let running: Vec<_> =
        writers.into_iter().map(|(service, at)| tokio::spawn(write(Arc::clone(&etcd), service, at))).collect();
    for writer in running {
        wanted.extend(writer.await.unwrap());
    }
    discoverer.wait_in_step(&wanted).await;
    load.stop_after(20).await.assert_no_failure(20);
    assert_eq!(discoverer.reloads().await, reloads, "{:#?}", discoverer.logged("configuration"));
}

fn key(service: &str, address: SocketAddr) -> String {
    format!("/service/{service}/{address}")
}

/// 38 changes of one service's instances, one after another; gives what is there in the end.
async fn write(etcd: Arc<Etcd>, service: &'static str, addresses: Vec<SocketAddr>) -> Vec<Wanted> {
    let mut there = BTreeMap::from([(addresses[0], WEIGHT)]);
    for change in 0..38_usize {
        let address = addresses[change * 5 % addresses.len()];
        let weight = u16::try_from(change * 7 % 250 + 1).unwrap();
        if change % 3 == 2 && there.len() > 1 && there.remove(&address).is_some() {
            etcd.delete(&key(service, address)).await;
        } else {
            there.insert(address, weight);
            etcd.put(&key(service, address), &format!(r#"{{"weight":{weight}}}"#)).await;
        }
    }
    there.into_iter().map(|(address, weight)| (service, address, weight)).collect()
}

#[tokio::test]
async fn what_changed_while_the_discoverer_was_frozen_is_right_when_it_thaws() {
    within(60, async {
        let mut site = Site::start(Version::Installed, &[]).await;
        let two = site.second().await;
        let three = Backend::start("three").await;
        let load = Load::start(site.discoverer.http());
        for round in 1..=3_u16 {
            site.discoverer.process().signal(Signal::SIGSTOP);
            site.etcd.delete(&two.flat_key()).await;
            for weight in 0..10 {
                site.etcd.put(&three.flat_key(), &format!(r#"{{"weight":{weight}}}"#)).await;
            }
            site.etcd.put(&three.flat_key(), &format!(r#"{{"weight":{round}}}"#)).await;
            load.wait_served(20).await;
            site.discoverer.process().signal(Signal::SIGCONT);
            site.discoverer.wait_in_step(&[flat(&site.one), (FLAT, three.address(), round)]).await;

            site.discoverer.process().signal(Signal::SIGSTOP);
            site.etcd.delete(&three.flat_key()).await;
            site.etcd.put(&three.flat_key(), "running").await;
            site.etcd.delete(&three.flat_key()).await;
            site.etcd.put(&two.flat_key(), "running").await;
            site.discoverer.process().signal(Signal::SIGCONT);
            site.discoverer.wait_in_step(&[flat(&site.one), flat(&two)]).await;
        }
        load.stop_after(60).await.assert_no_failure(60);
        site.assert_no_reload().await;
    })
    .await;
}

#[tokio::test]
async fn a_service_that_loses_all_its_instances_gets_them_back_with_no_reload() {
    within(60, async {
        let mut site = Site::start(Version::Installed, &[]).await;
        for _ in 0..3 {
            site.etcd.delete(&site.one.flat_key()).await;
            site.discoverer.wait_in_step(&[]).await;
            assert_eq!(requests(site.discoverer.http(), 2).await.get("status 503"), Some(&2));
            site.etcd.put(&site.one.flat_key(), "running").await;
            site.discoverer.wait_in_step(&[flat(&site.one)]).await;
            site.discoverer.wait_serves(&["one"]).await;
        }
        site.assert_no_reload().await;
    })
    .await;
}
