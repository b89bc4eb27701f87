//! The whole way with the agent: Docker, agent, etcd, discoverer, HAProxy, requests.

use e2e::agent::{Agent, REGISTERED, wait_instances};
use e2e::app::IMAGE;
use e2e::discoverer::Discoverer;
use e2e::docker::{Container, Docker};
use e2e::etcd::Etcd;
use e2e::load::Load;
use e2e::{http, secs, wait_until, within};

fn hello(container: &Container) -> String {
    format!("Hello from {}\n", container.short_id())
}

async fn wait_answers(discoverer: &mut Discoverer, containers: &[&Container]) {
    let names: Vec<String> = containers.iter().map(|container| hello(container)).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    discoverer.wait_serves(&names).await;
}

/// In a network of their own, so that nothing else comes to this HAProxy: the agent sees the containers of other tests too. Without
/// Docker's proxy, which takes connections for a container that is dead already.
#[tokio::test]
async fn docker_stop_under_load_loses_no_request() {
    within(180, async {
        let (etcd, docker) = (Etcd::start().await, Docker::for_apps().await);
        let network = docker.network("net").await;
        let mut discoverer = Discoverer::supervise(&etcd.url()).start();
        let _agent = Agent::start(&etcd, &["no --ip", "--internal", "--network", &network]);
        let web = docker.service("web");
        let name = format!("SERVICE_8000_NAME={web}");
        let flags = ["--network", &network, "--expose", "8000", "--label", &name, "--env", "LINGER_MS=5000", IMAGE];
        let (one, two) = (docker.run("one", &flags).await, docker.run("two", &flags).await);
        wait_instances(&etcd, &web, 2, REGISTERED).await;
        wait_answers(&mut discoverer, &[&one, &two]).await;

        let load = Load::start(discoverer.http());
        load.wait_served(100).await;
        for _ in 0..2 {
            one.tell("stop").await;
            wait_instances(&etcd, &web, 1, secs(20)).await;
            wait_answers(&mut discoverer, &[&two]).await;
            load.wait_served(100).await;
            one.tell("start").await;
            wait_instances(&etcd, &web, 2, REGISTERED).await;
            wait_answers(&mut discoverer, &[&one, &two]).await;
            load.wait_served(100).await;
        }
        let report = load.stop_after(500).await;
        report.assert_no_failure(500);
        assert_eq!(report.answers.len(), 2, "{:?}", report.answers);
    })
    .await;
}

#[tokio::test]
async fn labels_route_by_host_and_path() {
    within(120, async {
        let (etcd, docker) = (Etcd::start().await, Docker::for_apps().await);
        let discoverer = Discoverer::supervise(&etcd.url()).start();
        let _agent = Agent::start(&etcd, &[]);
        let one = docker.app("one", &["--label", "SERVICE_HOST=one.example"]).await;
        let two =
            docker.app("two", &["--label", "VIRTUAL_HOST=two.example", "--label", "SERVICE_CHECK_HTTP=/well"]).await;
        let api = docker.app("api", &["--label", "SERVICE_HOST=one.example", "--label", "SERVICE_PATH=/api"]).await;
        for (host, path, container) in
            [("one.example", "/", &one), ("two.example", "/", &two), ("one.example", "/api/x", &api)]
        {
            wait_until(secs(20), &format!("{host}{path} is answered by its container"), async || {
                let reply = http::request(discoverer.http(), "GET", path, &[("Host", host)], "").await;
                match reply {
                    Ok(reply) if reply.status == 200 && reply.body == hello(container) => Ok(()),
                    other => Err(format!("{other:?}")),
                }
            })
            .await;
        }
    })
    .await;
}
