//! What an agent tells an operator: metrics and health, with the real Docker and etcd, and whoever hammers at the address.

use std::net::SocketAddr;

use e2e::agent::{Agent, REGISTERED, wait_one};
use e2e::docker::Docker;
use e2e::etcd::Etcd;
use e2e::http::{self, get};
use e2e::{secs, wait_until, within};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

const ADMIN: &[&str] = &["--admin", "127.0.0.1:0"];

/// The value of a metric with these labels.
fn value(text: &str, name: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
}

async fn metrics(address: SocketAddr) -> Result<String, String> {
    let reply = get(address, "/metrics").await.map_err(|error| error.to_string())?;
    if reply.status == 200 { Ok(reply.body) } else { Err(format!("{} {}", reply.status, reply.body)) }
}

/// Waits until a metric is at least that.
async fn wait_at_least(address: SocketAddr, name: &str, least: f64) -> String {
    wait_until(secs(30), &format!("{name} is at least {least}"), async || {
        let text = metrics(address).await?;
        if value(&text, name).is_some_and(|value| value >= least) { Ok(text) } else { Err(text) }
    })
    .await
}

#[tokio::test]
async fn an_agent_counts_its_containers_probes_and_keys_and_a_key_that_it_regained() {
    within(90, async {
        let (etcd, docker) = (Etcd::start().await, Docker::for_apps().await);
        let agent = Agent::start(&etcd, ADMIN);
        let admin = agent.admin().await;
        let (_app, web) = (docker.app("web", &[]).await, docker.service("web"));
        let one = wait_one(&etcd, &web, REGISTERED).await;
        let registered = r#"registrar_keys{api="v2",state="registered"}"#;
        let text = wait_at_least(admin, registered, 1.0).await;
        assert!(value(&text, r#"registrar_containers{state="answering"}"#).unwrap() >= 1.0, "{text}");
        assert!(
            value(&text, r#"registrar_key_writes_total{api="v2",operation="register",result="ok"}"#).unwrap() >= 1.0
        );
        assert_eq!(value(&text, r#"registrar_etcd_connected{api="v2"}"#), Some(1.0), "{text}");
        assert_eq!(value(&text, "registrar_docker_connected"), Some(1.0), "{text}");
        assert!(value(&text, r#"registrar_docker_events_total{event="start"}"#).unwrap() >= 1.0, "{text}");
        assert!(
            value(&text, r#"registrar_docker_requests_total{request="list",result="ok"}"#).unwrap() >= 1.0,
            "{text}"
        );
        let probes = ["http", "tcp"].map(|kind| format!(r#"registrar_probes_total{{kind="{kind}",result="ok"}}"#));
        assert!(probes.iter().filter_map(|name| value(&text, name)).sum::<f64>() >= 1.0, "{text}");
        assert!(value(&text, "process_resident_memory_bytes").unwrap() > 1e6, "{text}");
        assert!(text.ends_with("# EOF\n"));
        let reply = get(admin, "/health/ready").await.unwrap();
        assert_eq!((reply.status, &*reply.body), (200, "it is ready\n"));
        let reply = get(admin, "/").await.unwrap();
        assert!(reply.status == 200 && reply.body.contains("/health/ready"), "{reply:?}");

        etcd.delete(&one.key).await;
        let text = wait_at_least(admin, r#"registrar_keys_regained_total{api="v2"}"#, 1.0).await;
        assert!(value(&text, r#"registrar_keys_lost_total{api="v2"}"#).unwrap() >= 1.0, "{text}");
        wait_one(&etcd, &web, secs(30)).await;
    })
    .await;
}

#[tokio::test]
async fn an_agent_is_alive_and_not_ready_while_etcd_is_away_and_says_what_is_missing() {
    within(60, async {
        let mut etcd = Etcd::absent();
        let agent = Agent::start(&etcd, ADMIN);
        let admin = agent.admin().await;
        let missing = "etcd has not answered yet";
        wait_until(REGISTERED, "only etcd is missing", async || {
            let reply = get(admin, "/health/ready").await.map_err(|error| error.to_string())?;
            let is_it = reply.status == 503 && reply.body == format!("it is not ready:\n{missing}\n");
            if is_it { Ok(()) } else { Err(reply.body) }
        })
        .await;
        assert_eq!(get(admin, "/health/live").await.unwrap().status, 200);
        let text = wait_at_least(admin, r#"registrar_etcd_failures_total{api="unknown",cause="connect"}"#, 1.0).await;
        assert_eq!(value(&text, r#"registrar_etcd_connected{api="unknown"}"#), Some(0.0), "{text}");
        etcd.start_again().await;
        wait_until(secs(20), "it is ready", async || {
            let reply = get(admin, "/health/ready").await.map_err(|error| error.to_string())?;
            if reply.status == 200 { Ok(()) } else { Err(reply.body) }
        })
        .await;
    })
    .await;
}

#[tokio::test]
async fn a_flood_of_slow_clients_keeps_no_container_from_being_registered() {
    within(90, async {
        let (etcd, docker) = (Etcd::start().await, Docker::for_apps().await);
        let mut agent = Agent::start(&etcd, ADMIN);
        let admin = agent.admin().await;
        let mut slow = Vec::new();
        for _ in 0..300 {
            let mut stream = TcpStream::connect(admin).await.unwrap();
            // One that is one too many may be closed already.
            let _closed = stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: local").await;
            slow.push(stream);
        }
        let (_app, web) = (docker.app("web", &[]).await, docker.service("web"));
        wait_one(&etcd, &web, REGISTERED).await;
        // They are sent away, and others are answered again.
        wait_until(secs(20), "metrics are there", async || metrics(admin).await.map(drop)).await;
        drop(slow);
        agent.assert_runs();
    })
    .await;
}

#[tokio::test]
async fn a_taken_address_costs_the_metrics_alone_and_is_tried_again() {
    within(60, async {
        let (etcd, docker) = (Etcd::start().await, Docker::for_apps().await);
        let taken = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = taken.local_addr().unwrap();
        let agent = Agent::start(&etcd, &["--admin", &address.to_string()]);
        agent.wait_logged(REGISTERED, &["no metrics and no health", "another process listens there"]).await;
        let (_app, web) = (docker.app("web", &[]).await, docker.service("web"));
        wait_one(&etcd, &web, REGISTERED).await;
        drop(taken);
        assert_eq!(agent.admin().await, address);
        let headers = [("Host", "evil.example")];
        assert_eq!(http::request(address, "GET", "/metrics", &headers, "").await.unwrap().status, 403);
    })
    .await;
}
