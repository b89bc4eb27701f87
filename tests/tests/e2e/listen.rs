//! Ports that TCP services ask HAProxy to listen on: allowed ones only, tried first, and a taken one harms nobody else.

use std::net::{Ipv4Addr, SocketAddr};

use e2e::backend::Backend;
use e2e::discoverer::{Discoverer, SOON};
use e2e::etcd::Etcd;
use e2e::haproxy::{Haproxy, Version};
use e2e::load::{Load, requests};
use e2e::ports::free_port;
use e2e::{secs, stays_true, wait_until, within};
use tokio::net::TcpListener;

use crate::runtime::{FLAT, Site, WEIGHT, flat};

pub(crate) fn listening(port: u16) -> String {
    format!(r#"{{"attributes":{{"mode":"tcp","listen":"{port}"}}}}"#)
}

fn local(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

pub(crate) async fn wait_answers(port: u16, name: &str) {
    wait_until(SOON, &format!("{name} answers on port {port}"), async || {
        let seen = requests(local(port), 1).await;
        if seen.contains_key(name) { Ok(()) } else { Err(format!("{seen:?}")) }
    })
    .await;
}

#[tokio::test]
async fn a_port_is_opened_only_where_it_is_allowed() {
    within(60, async {
        let (allowed, other) = (free_port(), free_port());
        let site = Site::start(Version::Installed, &["--listen-ports", &allowed.to_string()]).await;
        let load = Load::start(site.discoverer.http());
        let (db, cache) = (Backend::start("db").await, Backend::start("cache").await);
        site.etcd.put(&cache.key_in("cache"), &listening(other)).await;
        site.etcd.put(&db.key_in("db"), &listening(allowed)).await;
        wait_answers(allowed, "db").await;
        site.discoverer.wait_logged("key refused", &[("key", "cache"), ("reason", &other.to_string())]).await;
        assert!(tokio::net::TcpStream::connect(local(other)).await.is_err(), "port {other} is open");
        load.stop_after(20).await.assert_no_failure(20);
    })
    .await;
}

/// Nobody loops: while nothing changes HAProxy is not reloaded again.
async fn is_quiet(site: &Site) {
    let reloads = site.discoverer.reloads().await;
    stays_true(secs(4), "HAProxy is left alone", async || {
        let now = site.discoverer.reloads().await - reloads;
        if now == 0 { Ok(()) } else { Err(format!("{now} reloads")) }
    })
    .await;
}

#[tokio::test]
async fn a_service_whose_port_is_taken_is_set_aside_and_the_others_go_on() {
    within(90, set_aside(Version::Installed)).await;
}

#[tokio::test]
async fn a_service_whose_port_is_taken_is_set_aside_and_the_others_go_on_on_haproxy_3_0() {
    within(90, set_aside(Version::V3_0)).await;
}

async fn set_aside(version: Version) {
    let (taken, free) = (free_port(), free_port());
    let holder = TcpListener::bind(local(taken)).await.unwrap();
    let site = Site::start(version, &["--listen-ports", &format!("{taken},{free}")]).await;
    let load = Load::start(site.discoverer.http());
    let (db, queue, shop) = (Backend::start("db").await, Backend::start("queue").await, Backend::start("shop").await);
    site.etcd.put(&db.key_in("db"), &listening(taken)).await;
    site.discoverer.wait_logged("service left out", &[("service", "db"), ("reason", &taken.to_string())]).await;
    site.etcd.put(&queue.key_in("queue"), &listening(free)).await;
    site.etcd.put(&shop.key_in("shop"), r#"{"attributes":{"host":"shop.test"}}"#).await;
    wait_answers(free, "queue").await;
    site.discoverer.wait_host("shop.test", "shop").await;
    let two = site.second_beside(&[("queue", queue.address(), WEIGHT), ("shop", shop.address(), WEIGHT)]).await;
    is_quiet(&site).await;
    assert_eq!(site.discoverer.logged("reload failed").len(), 0);

    drop(holder);
    // It is tried again when it changes.
    site.etcd.put(&db.key_in("db"), &listening(taken).replacen('{', r#"{"weight":5,"#, 1)).await;
    wait_answers(taken, "db").await;
    let wanted = [
        flat(&site.one),
        flat(&two),
        ("db", db.address(), 5),
        ("queue", queue.address(), WEIGHT),
        ("shop", shop.address(), WEIGHT),
    ];
    site.discoverer.wait_in_step(&wanted).await;
    load.stop_after(100).await.assert_no_failure(100);
}

#[tokio::test]
async fn a_port_that_is_taken_when_the_discoverer_starts_harms_nobody() {
    within(90, async {
        let (taken, free) = (free_port(), free_port());
        let haproxy = Haproxy::start().await;
        let ports = format!("{taken},{free}");
        let mut site = Site::beside(&haproxy, &["--listen-ports", &ports]).await;
        let queue = Backend::start("queue").await;
        site.etcd.put(&queue.key_in("queue"), &listening(free)).await;
        wait_answers(free, "queue").await;
        let load = Load::start(site.discoverer.http());
        let _holder = TcpListener::bind(local(taken)).await.unwrap();
        drop(site.discoverer.take_process());
        let db = Backend::start("db").await;
        site.etcd.put(&db.key_in("db"), &listening(taken)).await;
        site.discoverer.start_again();
        site.discoverer.wait_logged("service left out", &[("service", "db"), ("reason", &taken.to_string())]).await;
        let _two = site.second_beside(&[("queue", queue.address(), WEIGHT)]).await;
        is_quiet(&site).await;
        wait_answers(free, "queue").await;
        load.stop_after(50).await.assert_no_failure(50);
    })
    .await;
}

#[tokio::test]
async fn a_haproxy_that_starts_while_a_port_of_its_last_file_is_taken_serves_the_rest() {
    within(90, async {
        let port = free_port();
        let etcd = Etcd::start().await;
        let discoverer = Discoverer::supervise(&etcd.url()).args(&["--listen-ports", &port.to_string()]).start();
        let mut site = Site::with(etcd, discoverer).await;
        let db = Backend::start("db").await;
        site.etcd.put(&db.key_in("db"), &listening(port)).await;
        wait_answers(port, "db").await;
        drop(site.discoverer.take_process());
        let _holder = wait_until(secs(5), "the port is free", async || {
            TcpListener::bind(local(port)).await.map_err(|error| error.to_string())
        })
        .await;
        site.discoverer.start_again();
        site.discoverer.wait_serves(&["one"]).await;
        site.discoverer.wait_logged("service left out", &[("service", "db"), ("reason", &port.to_string())]).await;
        site.discoverer.wait_in_step(&[flat(&site.one)]).await;
    })
    .await;
}

#[tokio::test]
async fn a_port_that_the_template_binds_itself_is_no_services_and_where_it_is_taken_the_rest_goes_on() {
    within(90, async {
        let port = free_port();
        let site = Site::start(Version::Installed, &["--listen-ports", &port.to_string()]).await;
        let db = Backend::start("db").await;
        site.etcd.put(&db.key_in("db"), &listening(port)).await;
        wait_answers(port, "db").await;
        site.etcd.delete(&db.key_in("db")).await;
        site.discoverer.wait_in_step(&[flat(&site.one)]).await;
        let main = site.discoverer.templates().join("haproxy.cfg.tera");
        let text = std::fs::read_to_string(&main).unwrap();
        std::fs::write(
            &main,
            format!("{text}\nfrontend _own\n    bind 127.0.0.1:{port}\n    default_backend service\n"),
        )
        .unwrap();
        // The service asks for it as well.
        site.discoverer.wait_logged("service left out", &[("service", "db"), ("reason", "another section")]).await;
        wait_answers(port, "one").await;
        // And now somebody else has it, while a template is new.
        let other = free_port();
        let _holder = TcpListener::bind(local(other)).await.unwrap();
        let moved = std::fs::read_to_string(&main).unwrap().replace(&format!(":{port}"), &format!(":{other}"));
        std::fs::write(&main, moved).unwrap();
        site.discoverer.wait_logged("template not loaded", &[("error", &other.to_string())]).await;
        let two = site.second().await;
        site.etcd.put(&two.flat_key(), r#"{"status":"draining"}"#).await;
        site.discoverer.wait_in_step(&[flat(&site.one), (FLAT, two.address(), 0)]).await;
    })
    .await;
}
