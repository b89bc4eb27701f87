//! The registrar as a sidekick, in the demo's image on the real Docker: the key is there while the application answers.

use std::net::SocketAddr;
use std::time::Duration;

use e2e::discoverer::Discoverer;
use e2e::docker::{Container, Docker, SOCKET, docker_ok};
use e2e::etcd::get_node;
use e2e::http;
use e2e::load::Load;
use e2e::registrar::Registrar;
use e2e::{secs, wait_until, within};
use nix::sys::signal::Signal;

/// From the start of a container to its key: the application's start, and a probe.
const REGISTERED: Duration = secs(20);
/// The time to live of a key, and what etcd and Docker take beside it.
const EXPIRED: Duration = secs(30);

/// The keys below `/service` with their values and times to live.
async fn keys(etcd: SocketAddr) -> Vec<(String, String, u64)> {
    let Some(directory) = get_node(etcd, "/service").await else { return Vec::new() };
    let nodes = directory["nodes"].as_array().cloned().unwrap_or_default();
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    nodes.iter().map(|node| (text(&node["key"]), text(&node["value"]), node["ttl"].as_u64().unwrap_or(0))).collect()
}

/// Waits until the registry holds exactly the published addresses of these containers.
async fn wait_registered(etcd: SocketAddr, containers: &[&Container], limit: Duration) {
    let mut wanted = Vec::new();
    for container in containers {
        wanted.push(format!("/service/{}", container.published(8000).await));
    }
    wanted.sort();
    wait_until(limit, &format!("the registry holds exactly {wanted:?}"), async || {
        let seen: Vec<String> = keys(etcd).await.into_iter().map(|(key, ..)| key).collect();
        if seen == wanted { Ok(()) } else { Err(format!("{seen:?}")) }
    })
    .await;
}

async fn wait_nobody(etcd: SocketAddr, limit: Duration) {
    wait_until(limit, "the registry is empty", async || {
        let seen = keys(etcd).await;
        if seen.is_empty() { Ok(()) } else { Err(format!("{seen:?}")) }
    })
    .await;
}

fn hello(container: &Container) -> String {
    format!("Hello from {}\n", container.short_id())
}

async fn wait_answers(discoverer: &mut Discoverer, containers: &[&Container]) {
    let names: Vec<String> = containers.iter().map(|container| hello(container)).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    discoverer.wait_serves(&names).await;
}

/// Sends a signal to the Node.js process in a container.
async fn signal_node(container: &Container, signal: &str) {
    let script = format!(
        "for p in /proc/[0-9]*; do if [ \"$(cat $p/comm 2>/dev/null)\" = node ]; then kill -{signal} ${{p#/proc/}} && echo done; fi; done"
    );
    assert_eq!(container.exec(&["bash", "-c", &script]).await, "done\n");
}

#[tokio::test]
async fn a_container_is_registered_with_a_time_to_live_and_served() {
    within(180, async {
        let docker = Docker::start().await;
        let etcd = docker.etcd().await;
        let mut discoverer = Discoverer::supervise(&format!("http://{etcd}")).start();
        let one = docker.application("one").await;
        wait_registered(etcd, &[&one], REGISTERED).await;
        let (_, value, ttl) = keys(etcd).await.remove(0);
        assert_eq!(value, "running");
        assert!((1..=20).contains(&ttl), "a time to live of {ttl} s");
        wait_answers(&mut discoverer, &[&one]).await;
        // Refreshed: longer there than its time to live, and never changed for those who watch.
        let before = get_node(etcd, "/service").await.unwrap()["nodes"][0]["createdIndex"].clone();
        e2e::stays_true(secs(24), "the key stays", async || {
            let seen = keys(etcd).await;
            if seen.len() == 1 { Ok(()) } else { Err(format!("{seen:?}")) }
        })
        .await;
        assert_eq!(get_node(etcd, "/service").await.unwrap()["nodes"][0]["createdIndex"], before);
        assert!(discoverer.logged("configuration applied").len() <= 2, "a refresh wakes nobody");
    })
    .await;
}

#[tokio::test]
async fn docker_stop_removes_the_key_first_and_no_request_fails_and_docker_start_brings_it_back() {
    within(180, async {
        let docker = Docker::start().await;
        let etcd = docker.etcd().await;
        let mut discoverer = Discoverer::supervise(&format!("http://{etcd}")).start();
        let (one, two) = (docker.application("one").await, docker.application("two").await);
        wait_registered(etcd, &[&one, &two], REGISTERED).await;
        wait_answers(&mut discoverer, &[&one, &two]).await;

        let load = Load::start(discoverer.http());
        load.wait_served(100).await;
        one.tell("stop").await;
        wait_registered(etcd, &[&two], secs(1)).await;
        wait_answers(&mut discoverer, &[&two]).await;
        load.wait_served(100).await;
        one.tell("start").await;
        wait_registered(etcd, &[&one, &two], REGISTERED).await;
        wait_answers(&mut discoverer, &[&one, &two]).await;
        load.wait_served(100).await;
        let report = load.stop_after(300).await;
        report.assert_no_failure(300);
        assert_eq!(report.answers.len(), 2, "{:?}", report.answers);
    })
    .await;
}

#[tokio::test]
async fn a_killed_containers_key_expires() {
    within(180, async {
        let docker = Docker::start().await;
        let etcd = docker.etcd().await;
        let mut discoverer = Discoverer::supervise(&format!("http://{etcd}")).start();
        let (one, two) = (docker.application("one").await, docker.application("two").await);
        wait_registered(etcd, &[&one, &two], REGISTERED).await;
        wait_answers(&mut discoverer, &[&one, &two]).await;
        one.tell("kill").await;
        // HAProxy's own check is faster than the key.
        wait_answers(&mut discoverer, &[&two]).await;
        wait_registered(etcd, &[&two], EXPIRED).await;
        wait_answers(&mut discoverer, &[&two]).await;
    })
    .await;
}

#[tokio::test]
async fn docker_restart_leaves_only_the_new_port() {
    within(180, async {
        let docker = Docker::start().await;
        let etcd = docker.etcd().await;
        let mut discoverer = Discoverer::supervise(&format!("http://{etcd}")).start();
        let one = docker.application("one").await;
        wait_registered(etcd, &[&one], REGISTERED).await;
        wait_answers(&mut discoverer, &[&one]).await;
        let before = one.published(8000).await;
        one.tell("restart").await;
        assert_ne!(one.published(8000).await, before, "Docker gives another port at each start");
        wait_registered(etcd, &[&one], REGISTERED).await;
        wait_answers(&mut discoverer, &[&one]).await;
    })
    .await;
}

#[tokio::test]
async fn an_application_that_stops_answering_loses_its_key_and_gets_it_back() {
    within(180, async {
        let docker = Docker::start().await;
        let etcd = docker.etcd().await;
        let one = docker.application("one").await;
        wait_registered(etcd, &[&one], REGISTERED).await;
        signal_node(&one, "STOP").await;
        // Asked every 5 s, 3 s to answer.
        wait_nobody(etcd, secs(30)).await;
        signal_node(&one, "CONT").await;
        wait_registered(etcd, &[&one], secs(30)).await;
    })
    .await;
}

#[tokio::test]
async fn an_application_that_died_loses_its_key_until_supervisord_has_started_it_again() {
    within(180, async {
        let docker = Docker::start().await;
        let etcd = docker.etcd().await;
        let one = docker.application("one").await;
        wait_registered(etcd, &[&one], REGISTERED).await;
        signal_node(&one, "KILL").await;
        wait_registered(etcd, &[&one], REGISTERED).await;
        let address = one.published(8000).await;
        wait_until(REGISTERED, "the application answers again", async || match http::get(address, "/").await {
            Ok(reply) if reply.status == 200 => Ok(()),
            other => Err(format!("{other:?}")),
        })
        .await;
        wait_registered(etcd, &[&one], REGISTERED).await;
    })
    .await;
}

#[tokio::test]
async fn a_registry_that_lost_everything_gets_the_key_again() {
    within(180, async {
        let docker = Docker::start().await;
        let etcd = docker.etcd().await;
        let one = docker.application("one").await;
        wait_registered(etcd, &[&one], REGISTERED).await;
        docker_ok(&["rm", "--force", "--volumes", &format!("{}-etcd", docker.name())]).await;
        let etcd = docker.etcd().await;
        wait_registered(etcd, &[&one], secs(30)).await;
    })
    .await;
}

#[tokio::test]
async fn a_container_that_starts_before_its_registry_waits_for_it() {
    within(180, async {
        let docker = Docker::start().await;
        let one = docker.application("one").await;
        one.wait_log(REGISTERED, &["etcd:2379"]).await;
        let etcd = docker.etcd().await;
        wait_registered(etcd, &[&one], secs(30)).await;
    })
    .await;
}

#[tokio::test]
async fn the_host_address_0_0_0_0_without_ip_is_an_error_that_says_both_ways_out() {
    within(180, async {
        let docker = Docker::start().await;
        let etcd = docker.etcd().await;
        let one = docker.sidekick("one", &["--publish", "8000", "--volume", SOCKET]).await;
        one.wait_log(REGISTERED, &["every address", "--ip", "::8000"]).await;
        assert_eq!(keys(etcd).await, []);
        // The application itself is not harmed.
        let published = one.published(8000).await;
        let here = SocketAddr::from(([127, 0, 0, 1], published.port()));
        wait_until(REGISTERED, "the application answers", async || match http::get(here, "/").await {
            Ok(reply) if reply.body == hello(&one) => Ok(()),
            other => Err(format!("{other:?}")),
        })
        .await;
        let two = docker.sidekick("two", &["--publish", "8000", "--volume", SOCKET, "--env", "IP=127.0.0.1"]).await;
        let port = two.published(8000).await.port();
        wait_until(REGISTERED, "with an address it is registered", async || {
            let seen = keys(etcd).await;
            if seen.len() == 1 && seen[0].0 == format!("/service/127.0.0.1:{port}") {
                Ok(())
            } else {
                Err(format!("{seen:?}"))
            }
        })
        .await;
    })
    .await;
}

#[tokio::test]
async fn a_name_for_the_address_is_resolved() {
    within(180, async {
        let docker = Docker::start().await;
        let etcd = docker.etcd().await;
        // This machine as containers reach it: a name that leads to the loopback would be of no use to other hosts.
        let host = ["--add-host", "this-host:host-gateway", "--env", "IP=this-host"];
        let flags = [&["--publish", "8000", "--volume", SOCKET], &host[..]].concat();
        let one = docker.sidekick("one", &flags).await;
        let led = docker_ok(&["exec", one.id(), "getent", "hosts", "this-host"]).await;
        let address = led.split_whitespace().next().unwrap();
        let wanted = format!("/service/{address}:{}", one.published(8000).await.port());
        let is_registered = async || {
            let seen: Vec<String> = keys(etcd).await.into_iter().map(|(key, ..)| key).collect();
            if seen == [wanted.as_str()] { Ok(()) } else { Err(format!("{seen:?}, not {wanted}")) }
        };
        wait_until(REGISTERED, "the name's address is registered", is_registered).await;
        let bad = docker
            .sidekick("bad", &["--publish", "8000", "--volume", SOCKET, "--env", "IP=no-such-host.invalid"])
            .await;
        bad.wait_log(REGISTERED, &["no-such-host.invalid"]).await;
        is_registered().await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_container_without_that_port_published_is_an_error_that_names_the_port() {
    within(180, async {
        let docker = Docker::start().await;
        let etcd = docker.etcd().await;
        let none = docker.sidekick("none", &["--volume", SOCKET]).await;
        let other = docker.sidekick("other", &["--publish", "127.0.0.1::9000", "--volume", SOCKET]).await;
        for container in [&none, &other] {
            container.wait_log(REGISTERED, &["8000", "-p 8000"]).await;
        }
        assert_eq!(keys(etcd).await, []);
    })
    .await;
}

#[tokio::test]
async fn a_docker_socket_that_is_absent_or_forbidden_is_an_error_that_names_it() {
    within(180, async {
        let docker = Docker::start().await;
        let etcd = docker.etcd().await;
        let absent = docker.sidekick("absent", &["--publish", "127.0.0.1::8000"]).await;
        absent.wait_log(REGISTERED, &["/var/run/docker.sock"]).await;
        let forbidden = docker
            .run(
                "forbidden",
                &[
                    "--publish",
                    "127.0.0.1::8000",
                    "--volume",
                    SOCKET,
                    "--user",
                    "nobody",
                    "--entrypoint",
                    "registrar",
                    "local/dockreg",
                    "--etcd",
                    "http://etcd:2379",
                    "--port",
                    "8000",
                ],
            )
            .await;
        forbidden.wait_log(REGISTERED, &["/var/run/docker.sock", "may not be opened"]).await;
        assert_eq!(keys(etcd).await, []);
    })
    .await;
}

#[tokio::test]
async fn an_agent_is_told_to_leave_the_sidekicks_image_alone() {
    within(60, async {
        let _docker = Docker::start().await;
        let label = docker_ok(&[
            "image",
            "inspect",
            "--format",
            "{{index .Config.Labels \"SERVICE_IGNORE\"}}",
            "local/dockreg",
        ])
        .await;
        assert_eq!(label, "true\n");
    })
    .await;
}

#[tokio::test]
async fn without_docker_it_waits_and_ends_with_0_when_it_is_told_to_stop() {
    within(60, async {
        let flags =
            ["--etcd", "http://127.0.0.1:1", "--port", "1", "--docker", "/nowhere/docker.sock", "--ip", "127.0.0.1"];
        for signal in [Signal::SIGTERM, Signal::SIGINT] {
            let mut registrar = Registrar::start(&flags);
            wait_until(secs(5), "it says what it lacks", async || {
                let log = registrar.process().log();
                if log.contains("/nowhere/docker.sock") { Ok(()) } else { Err(log) }
            })
            .await;
            assert!(registrar.process().ended().is_none());
            registrar.process().signal(signal);
            assert_eq!(registrar.process().wait(secs(5)).await.code(), Some(0), "{signal}");
        }
    })
    .await;
}
