//! What the commands beside the agent say of the real Docker and the real etcd, and where what they register is reached.

use e2e::agent::{Agent, REGISTERED, wait_at, wait_none, wait_one};
use e2e::app::IMAGE;
use e2e::discoverer::Discoverer;
use e2e::docker::{Docker, docker_ok};
use e2e::etcd::Etcd;
use e2e::http;
use e2e::process::{Process, find_workspace_binary};
use e2e::registrar::run_registrar;
use e2e::{secs, wait_until, within};
use nix::sys::signal::Signal;
use serde_json::Value;

#[tokio::test]
async fn explain_and_list_agree_with_what_the_agent_has_done() {
    within(90, async {
        let (etcd, docker) = (Etcd::start().await, Docker::for_apps().await);
        let agent = Agent::start(&etcd, &["--timeout", "3s"]);
        let web = docker.service("web");
        let name = format!("SERVICE_NAME={web}");
        let app = docker.app("web", &["--label", &name, "--label", "SERVICE_CHECK_HTTP=/well"]).await;
        let registered = wait_at(&etcd, &web, app.published(8000).await, REGISTERED).await;

        let said = agent.explain(app.id()).await;
        let expected = format!("{} is in etcd: running", registered.key);
        assert!(said.code == Some(0) && said.stdout.contains(&expected), "{said:?}");
        assert!(!said.stdout.contains("NO") && !said.stdout.contains("is not this host's agent"), "{said:?}");

        let list = run_registrar(&["list", "--etcd", &etcd.url()]).await;
        let row = list.stdout.lines().find(|line| line.starts_with(&web)).unwrap_or_else(|| panic!("{list:?}"));
        let cells: Vec<&str> = row.split_whitespace().collect();
        assert_eq!(cells[1..3], [registered.address.as_str(), "running"], "{row}");
        assert_eq!(cells[4..6], ["host-1", &format!("{}-web", docker.name())], "{row}");
        let list = run_registrar(&["list", "--json", "--etcd", &etcd.url()]).await;
        let list: Value = serde_json::from_str(&list.stdout).unwrap();
        let of_web = list["instances"].as_array().unwrap().iter().find(|instance| instance["service"] == web.as_str());
        assert_eq!(of_web.unwrap()["id"], app.id());

        app.tell("pause").await;
        wait_none(&etcd, &web, secs(20)).await;
        let said = agent.explain(app.id()).await;
        assert!(said.code == Some(1) && said.stdout.contains("-> NO   it is not running: it is paused"), "{said:?}");
        app.tell("unpause").await;
        wait_one(&etcd, &web, REGISTERED).await;
        http::get(app.published(8000).await, "/become/503").await.unwrap();
        let said = agent.explain(app.id()).await;
        assert!(said.code == Some(1) && said.stdout.contains("status 503"), "{said:?}");
    })
    .await;
}

#[tokio::test]
async fn a_container_in_two_services_is_a_server_of_both() {
    within(90, async {
        let (etcd, docker) = (Etcd::start().await, Docker::for_apps().await);
        let discoverer = Discoverer::supervise(&etcd.url()).start();
        let _agent = Agent::start(&etcd, &[]);
        let (web, other) = (docker.service("web"), docker.service("other"));
        let names = format!("SERVICE_NAME={web},{other}");
        let app = docker.app("web", &["--label", &names]).await;
        let address = app.published(8000).await;
        wait_at(&etcd, &web, address, REGISTERED).await;
        wait_at(&etcd, &other, address, REGISTERED).await;
        let server = format!("server 127.0.0.1_{} ", address.port());
        wait_until(secs(20), "both backends have the server", async || {
            let config = discoverer.config();
            let has = |name: &str| {
                let backend = config.split_once(&format!("\nbackend {name}\n")).map(|(_, rest)| rest);
                backend
                    .and_then(|rest| rest.split("\nbackend ").next())
                    .is_some_and(|backend| backend.contains(&server))
            };
            if has(&web) && has(&other) { Ok(()) } else { Err(config) }
        })
        .await;
    })
    .await;
}

#[tokio::test]
async fn what_does_not_run_in_docker_is_routed_to_as_long_as_it_answers() {
    within(90, async {
        let (etcd, docker) = (Etcd::start().await, Docker::for_apps().await);
        let discoverer = Discoverer::supervise(&etcd.url()).start();
        // A container that no agent looks after stands for it.
        let app = docker.run("old", &["--publish", "127.0.0.1::8000", "--label", "SERVICE_IGNORE=1", IMAGE]).await;
        let address = app.published(8000).await.to_string();
        let dir = tempfile::tempdir().unwrap();
        let args = ["static", "--etcd", &etcd.url(), "--address", &address, "--name", "old", "--check", "http"];
        let more = ["--attribute", "host=old.example", "--interval", "200ms", "--linger", "0s"];
        let args: Vec<String> = args.iter().chain(&more).map(|&arg| arg.to_owned()).collect();
        let program = find_workspace_binary("registrar");
        let mut fixed = Process::start("registrar static", &program, &args, &dir.path().join("log"), dir.path());
        discoverer.wait_host("old.example", &format!("Hello from {}\n", app.short_id())).await;
        docker_ok(&["stop", app.id()]).await;
        wait_none(&etcd, "old", secs(20)).await;
        app.tell("start").await;
        fixed.signal(Signal::SIGTERM);
        assert_eq!(fixed.wait(secs(20)).await.code(), Some(0));
    })
    .await;
}
