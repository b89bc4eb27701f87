//! The whole way over etcd's v3 API: an etcd that serves v3 alone, the registrar, the discoverer, HAProxy, requests.

use std::net::{Ipv4Addr, SocketAddr};

use e2e::agent::{Agent, REGISTERED, instances, stays, wait_instances, wait_none, wait_one};
use e2e::app::IMAGE;
use e2e::backend::Backend;
use e2e::discoverer::Discoverer;
use e2e::docker::Docker;
use e2e::etcd::Etcd;
use e2e::fake_docker::{FakeDocker, Spec};
use e2e::history::{Event, History};
use e2e::load::Load;
use e2e::{secs, within};
use nix::sys::signal::Signal;

#[tokio::test]
async fn docker_stop_under_load_loses_no_request_over_v3() {
    within(180, async {
        let (etcd, docker) = (Etcd::start_v3().await, Docker::for_apps().await);
        let network = docker.network("net").await;
        let mut discoverer = Discoverer::supervise(&etcd.url()).start();
        let _agent = Agent::start(&etcd, &["no --ip", "--internal", "--network", &network]);
        let web = docker.service("web");
        let name = format!("SERVICE_8000_NAME={web}");
        let flags = ["--network", &network, "--expose", "8000", "--label", &name, "--env", "LINGER_MS=5000", IMAGE];
        let (one, two) = (docker.run("one", &flags).await, docker.run("two", &flags).await);
        wait_instances(&etcd, &web, 2, REGISTERED).await;
        let hello = |id: &str| format!("Hello from {id}\n");
        let (one_says, two_says) = (hello(one.short_id()), hello(two.short_id()));
        discoverer.wait_serves(&[&one_says, &two_says]).await;

        let history = History::start(etcd.address()).await;
        let load = Load::start(discoverer.http());
        load.wait_served(100).await;
        one.tell("stop").await;
        let left = wait_one(&etcd, &web, secs(20)).await;
        discoverer.wait_serves(&[&two_says]).await;
        load.wait_served(100).await;
        one.tell("start").await;
        wait_instances(&etcd, &web, 2, REGISTERED).await;
        discoverer.wait_serves(&[&one_says, &two_says]).await;
        let report = load.stop_after(500).await;
        report.assert_no_failure(500);
        assert_eq!(report.answers.len(), 2, "{:?}", report.answers);
        // It drained, then it was deleted: with a lease that lived on, which is how a removal is told from an expiry.
        let events: Vec<Event> = history.of(&web).into_iter().filter(|event| event.key != left.key).collect();
        let is = |wanted: &[fn(&Event) -> bool]| {
            events.len() == wanted.len() && events.iter().zip(wanted).all(|(event, wanted)| wanted(event))
        };
        let went = |event: &Event| event.action == "delete";
        assert!(is(&[Event::is_draining, went, Event::is_running]), "{events:?}");
    })
    .await;
}

#[tokio::test]
async fn one_lease_keeps_the_keys_of_an_agent_over_its_restart_and_what_it_leaves_expires() {
    within(180, async {
        let (etcd, docker) = (Etcd::start_v3().await, FakeDocker::start());
        let socket = docker.path().display().to_string();
        let mut agent = Agent::start(&etcd, &["--docker", &socket, "--ttl", "12s"]);
        let app = Backend::start_at("application", SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0))).await;
        let spec = |service: &str, number: u8| {
            let own = (Ipv4Addr::new(127, 78, 0, number), app.address().port());
            Spec::new(service, service, own, 40_000 + u16::from(number))
        };
        let one = docker.run(&spec("one", 1));
        docker.run(&spec("two", 2));
        wait_instances(&etcd, "one", 1, REGISTERED).await;
        let before = wait_one(&etcd, "two", REGISTERED).await;
        // Longer than they live without being kept.
        stays(&etcd, "one", 1, secs(15)).await;
        agent.process().kill_now().await;
        docker.stop(&one);
        agent.start_again();
        wait_none(&etcd, "one", secs(30)).await;
        stays(&etcd, "two", 1, secs(15)).await;
        assert_eq!(wait_one(&etcd, "two", secs(10)).await.created_index, before.created_index, "it was never gone");

        let history = History::start(etcd.address()).await;
        agent.process().kill_now().await;
        let gone = history.wait(secs(40), "/two/", "it is gone", Event::is_removal).await;
        assert_eq!(gone.action, "expire");
        agent.start_again();
        wait_one(&etcd, "two", REGISTERED).await;
        agent.process().signal(Signal::SIGTERM);
        assert_eq!(agent.process().wait(secs(15)).await.code(), Some(0));
        assert_eq!(instances(etcd.address(), "two").await.len(), 0);
    })
    .await;
}

/// The steps of docs/etcd.md: registrars write both, discoverers change over, registrars leave the old one. The container goes
/// on all the while.
#[tokio::test]
async fn a_site_moves_from_v2_to_v3_without_a_failed_request() {
    within(180, async {
        let (etcd, docker) = (Etcd::start_with_both().await, FakeDocker::start());
        let socket = docker.path().display().to_string();
        let state = tempfile::tempdir().unwrap();
        let state_dir = state.path().display().to_string();
        let agent = |api: &str| {
            let flags =
                ["--docker", &socket, "--state-dir", &state_dir, "--ttl", "5s", "--keep-on-exit", "--etcd-api", api];
            Agent::start(&etcd, &flags)
        };
        // It answers at every address: the container's own, and the one that its port is mapped to.
        let app = Backend::start_at("application", SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0))).await;
        let port = app.address().port();
        docker.run(&Spec::new("web", "web", (Ipv4Addr::new(127, 79, 0, 1), port), port));
        let mut old = agent("v2");
        wait_one(&etcd, "web", REGISTERED).await;
        let mut by_v2 = Discoverer::supervise(&etcd.url()).args(&["--etcd-api", "v2"]).start();
        by_v2.wait_serves(&["application"]).await;
        let load = Load::start(by_v2.http());
        load.wait_served(50).await;

        old.stop().await;
        let mut both = agent("v2,v3");
        let mut by_v3 = Discoverer::supervise(&etcd.url()).args(&["--etcd-api", "v3"]).start();
        by_v3.wait_serves(&["application"]).await;
        let load_by_v3 = Load::start(by_v3.http());
        load_by_v3.wait_served(50).await;
        load.stop_after(200).await.assert_no_failure(200);
        drop(by_v2);

        both.stop().await;
        let _new = agent("v3");
        // What nobody keeps any more goes with its time to live, and what is kept outlives it.
        wait_none(&etcd, "web", secs(20)).await;
        load_by_v3.wait_served(50).await;
        load_by_v3.stop_after(400).await.assert_no_failure(400);
        by_v3.wait_serves(&["application"]).await;
    })
    .await;
}
