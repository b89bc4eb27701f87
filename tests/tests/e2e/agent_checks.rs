//! The agent's health checks: who does not answer is not registered, and one who is slow holds up nobody.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use e2e::agent::{Agent, REGISTERED, instances, stays, wait_at, wait_none, wait_one};
use e2e::docker::{Container, Docker, docker_ok};
use e2e::etcd::Etcd;
use e2e::history::{Event, History};
use e2e::{http, secs, within};

/// What follows a check, on a machine that is busy with other tests.
const SOON: Duration = secs(20);

/// Tells the application in a container what to do.
pub(crate) async fn tell(app: &Container, path: &str) {
    let address = SocketAddr::new(app.own_ip().await, 8000);
    assert_eq!(http::get(address, path).await.unwrap().status, 200, "{path}");
}

#[tokio::test]
async fn an_application_is_registered_when_it_listens_and_not_before() {
    within(90, async {
        let (etcd, docker) = (Etcd::start().await, Docker::for_apps().await);
        let _agent = Agent::start(&etcd, &[]);
        // Docker's proxy takes connections on the published port all the while.
        let (never, late) = (docker.app("never", &["--env", "LISTEN="]).await, docker.service("late"));
        assert!(tokio::net::TcpStream::connect(never.published(8000).await).await.is_ok());
        // Long enough that a busy machine has begun to look before it listens.
        let app = docker.app("late", &["--env", "DELAY_MS=6000"]).await;
        stays(&etcd, &late, 0, Duration::from_millis(500)).await;
        wait_at(&etcd, &late, app.published(8000).await, secs(25)).await;
        app.wait_log(SOON, &["listening on 8000"]).await;
        stays(&etcd, &docker.service("never"), 0, secs(1)).await;
    })
    .await;
}

#[tokio::test]
async fn an_application_that_closed_its_port_goes_at_once_although_dockers_proxy_answers() {
    within(90, async {
        let (etcd, docker) = (Etcd::start().await, Docker::for_apps().await);
        // With 100 misses in a row it would take 50 s.
        let _agent = Agent::start(&etcd, &["--fall", "100"]);
        for (name, check) in [("tcp", "SERVICE_CHECK_TCP=true"), ("http", "SERVICE_CHECK_HTTP=/well")] {
            let (app, service) = (docker.app(name, &["--label", check]).await, docker.service(name));
            wait_at(&etcd, &service, app.published(8000).await, REGISTERED).await;
            tell(&app, "/become/deaf").await;
            wait_none(&etcd, &service, SOON).await;
            assert!(tokio::net::TcpStream::connect(app.published(8000).await).await.is_ok());
        }
    })
    .await;
}

#[tokio::test]
async fn a_bad_status_counts_after_some_in_a_row_and_a_good_one_at_once() {
    within(90, async {
        let (etcd, docker) = (Etcd::start().await, Docker::for_apps().await);
        let _agent = Agent::start(&etcd, &["--fall", "4"]);
        let history = History::start(etcd.address()).await;
        let (app, web) = (docker.app("web", &["--label", "SERVICE_CHECK_HTTP=/well"]).await, docker.service("web"));
        wait_at(&etcd, &web, app.published(8000).await, REGISTERED).await;
        let told = Instant::now();
        tell(&app, "/become/503").await;
        let removed = history.wait(SOON, &web, "is removed", Event::is_removal).await.at - told;
        assert!(removed > Duration::from_millis(1200), "four in a row, each half a second: {removed:?}");
        tell(&app, "/become/200").await;
        let one = wait_one(&etcd, &web, SOON).await;
        assert_eq!(one.attribute("check_http"), "/well", "HAProxy is to ask the same");
        let told = Instant::now();
        tell(&app, "/become/mute").await;
        wait_none(&etcd, &web, SOON).await;
        assert!(told.elapsed() > Duration::from_millis(1200), "so do answers that do not come: {:?}", told.elapsed());
    })
    .await;
}

#[tokio::test]
async fn dockers_own_healthcheck_decides_where_there_is_one() {
    within(90, async {
        let (etcd, docker) = (Etcd::start().await, Docker::for_apps().await);
        let _agent = Agent::start(&etcd, &[]);
        let check = ["--health-cmd", "/e2e-app is-well", "--health-interval", "1s", "--health-retries", "1"];
        let bad = ["--health-cmd", "/e2e-app fail", "--health-interval", "1s", "--health-retries", "1"];
        let (app, web) = (docker.app("web", &check).await, docker.service("web"));
        let _never = docker.app("never", &bad).await;
        wait_at(&etcd, &web, app.published(8000).await, REGISTERED).await;
        tell(&app, "/become/503").await;
        wait_none(&etcd, &web, SOON).await;
        tell(&app, "/become/200").await;
        wait_at(&etcd, &web, app.published(8000).await, SOON).await;
        stays(&etcd, &docker.service("never"), 0, secs(1)).await;
    })
    .await;
}

#[tokio::test]
async fn a_check_by_exec_runs_only_where_it_is_allowed() {
    within(150, async {
        let (etcd, docker) = (Etcd::start().await, Docker::for_apps().await);
        let (app, web) =
            (docker.app("web", &["--label", "SERVICE_CHECK_SCRIPT=/e2e-app is-well"]).await, docker.service("web"));
        let hangs = docker.app("hangs", &["--label", "SERVICE_CHECK_SCRIPT=/e2e-app sleep 60000"]).await;
        let talks = docker.app("talks", &["--label", "SERVICE_CHECK_SCRIPT=/e2e-app says 20"]).await;
        let mut agent = Agent::start(&etcd, &["--timeout", "3s"]);
        let other = docker.app("other", &[]).await;
        wait_at(&etcd, &docker.service("other"), other.published(8000).await, REGISTERED).await;
        stays(&etcd, &web, 0, secs(1)).await;
        let said = agent.explain(app.id()).await;
        assert!(said.code == Some(1) && said.stdout.contains("--allow-exec"), "{said:?}");
        agent.stop().await;

        let _agent = Agent::start(&etcd, &["--allow-exec", "--timeout", "3s"]);
        let began = Instant::now();
        wait_at(&etcd, &web, app.published(8000).await, REGISTERED).await;
        tell(&app, "/become/503").await;
        wait_none(&etcd, &web, SOON).await;
        tell(&app, "/become/200").await;
        wait_at(&etcd, &web, app.published(8000).await, SOON).await;
        assert_eq!(instances(etcd.address(), &docker.service("hangs")).await.len(), 0);
        // An answer has a limit, what a command says has none: it is not kept.
        wait_at(&etcd, &docker.service("talks"), talks.published(8000).await, REGISTERED).await;
        // One that hangs is not started again and again, though it was due twice a second.
        tokio::time::sleep(secs(8).saturating_sub(began.elapsed())).await;
        let processes = docker_ok(&["top", hangs.id(), "-eo", "pid,args"]).await;
        let sleeping = processes.lines().filter(|line| line.contains("/e2e-app sleep"));
        assert_eq!(sleeping.count(), 1, "{processes}");
    })
    .await;
}

#[tokio::test]
async fn where_no_check_is_wanted_none_is_made() {
    within(60, async {
        let (etcd, docker) = (Etcd::start().await, Docker::for_apps().await);
        let _agent = Agent::start(&etcd, &[]);
        let flags = ["--env", "LISTEN=", "--label", "SERVICE_CHECK_NONE=true"];
        let (app, web) = (docker.app("web", &flags).await, docker.service("web"));
        wait_at(&etcd, &web, app.published(8000).await, REGISTERED).await;
    })
    .await;
}

#[tokio::test]
async fn slow_containers_delay_nobody() {
    within(90, async {
        let (etcd, docker) = (Etcd::start().await, Docker::for_apps().await);
        let agent = Agent::start(&etcd, &[]);
        // Longer than both waits below together.
        let flags = ["--label", "SERVICE_CHECK_HTTP=/slow/50000", "--label", "SERVICE_CHECK_TIMEOUT=1m"];
        let (_one, _two) = (docker.app("slow-1", &flags).await, docker.app("slow-2", &flags).await);
        let (app, web) = (docker.app("web", &[]).await, docker.service("web"));
        wait_at(&etcd, &web, app.published(8000).await, secs(15)).await;
        app.tell("kill").await;
        wait_none(&etcd, &web, secs(15)).await;
        assert_eq!(instances(etcd.address(), &docker.service("slow-1")).await.len(), 0);
        drop(agent);
    })
    .await;
}

#[tokio::test]
async fn http_is_asked_at_the_address_that_is_registered() {
    within(60, async {
        let (etcd, docker) = (Etcd::start().await, Docker::for_apps().await);
        let agent = Agent::start(&etcd, &["--timeout", "3s"]);
        // The application is well, and at the address that is said of it is nobody.
        let flags = ["--label", "SERVICE_IP=127.0.0.77", "--label", "SERVICE_CHECK_HTTP=/well"];
        let wrong = docker.app("wrong", &flags).await;
        let (app, web) = (docker.app("web", &["--label", "SERVICE_CHECK_HTTP=/well"]).await, docker.service("web"));
        wait_at(&etcd, &web, app.published(8000).await, REGISTERED).await;
        stays(&etcd, &docker.service("wrong"), 0, secs(1)).await;
        let said = agent.explain(wrong.id()).await;
        let asked = format!("GET http://127.0.0.77:{}/well", wrong.published(8000).await.port());
        let no = said.stdout.lines().find(|line| line.starts_with("-> NO"));
        assert!(no.is_some_and(|line| line.contains(&asked) && line.contains("refused")), "{said:?}");
    })
    .await;
}
