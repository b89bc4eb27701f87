//! Reloading an HAProxy that runs in a container of its own, through Docker.

use std::fs;
use std::net::SocketAddr;

use e2e::backend::Backend;
use e2e::discoverer::Discoverer;
use e2e::docker::Docker;
use e2e::etcd::Etcd;
use e2e::load::{Load, requests};
use e2e::ports::free_address;
use e2e::{secs, wait_until, within};

/// Waits until this one answers where a reload has failed before: it is tried again after a pause, which has grown to a minute at
/// most.
async fn wait_served(http: SocketAddr, name: &str) {
    wait_until(secs(90), &format!("{name} is served"), async || {
        let seen = requests(http, 16).await;
        if seen.contains_key(name) { Ok(()) } else { Err(format!("{seen:?}")) }
    })
    .await;
}

#[tokio::test]
async fn an_haproxy_in_a_container_is_reloaded_without_a_failed_request_and_met_again_when_it_is_restarted() {
    within(360, async {
        let (etcd, docker) = (Etcd::start().await, Docker::start().await);
        let dir = tempfile::Builder::new().prefix("e2e-container-").tempdir().unwrap();
        let (http, config) = (free_address(), dir.path().join("haproxy.cfg"));
        fs::write(&config, format!("defaults\n  mode http\n  timeout client 5s\n  timeout server 5s\n  timeout connect 1s\nfrontend f\n  bind {http}\n")).unwrap();
        let name = format!("{}-lb", docker.name());
        let mut discoverer = Discoverer::reload_container(&etcd.url(), &name, &config, http).start();
        let (one, two, three) =
            (Backend::start("one").await, Backend::start("two").await, Backend::start("three").await);
        etcd.put(&one.flat_key(), "running").await;
        discoverer.wait_logged("reload failed", &[("error", "has no container of that name")]).await;

        let volume = format!("{0}:{0}", dir.path().display());
        let path = config.display().to_string();
        let haproxy = docker
            .run("lb", &["--user", "0", "--network", "host", "--volume", &volume, "--entrypoint", "haproxy", "local/haproxy-discoverer", "-W", "-db", "-f", &path])
            .await;
        wait_served(http, "one").await;
        discoverer.wait_serves(&["one"]).await;
        // Once the file has failed to be loaded, the next change is tried at once only after the pause.
        etcd.put(&two.flat_key(), "running").await;
        discoverer.wait_serves(&["one", "two"]).await;
        let load = Load::start(http);
        load.wait_served(20).await;
        etcd.delete(&one.flat_key()).await;
        discoverer.wait_serves(&["two"]).await;
        load.wait_served(20).await;
        load.stop_after(40).await.assert_no_failure(40);

        haproxy.tell("kill").await;
        etcd.put(&three.flat_key(), "running").await;
        discoverer.wait_logged("reload failed", &[("error", "start it with `docker start")]).await;
        haproxy.tell("start").await;
        wait_served(http, "three").await;
        discoverer.wait_serves(&["three", "two"]).await;
        etcd.put(&one.flat_key(), "running").await;
        discoverer.wait_serves(&["one", "three", "two"]).await;
    })
    .await;
}
