//! The whole sidekick against the real etcd, with an application and a Docker that do as they are told.

#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::path::Path;
use std::time::{Duration, Instant};

use clap::Parser;
use observe::config::Renewals;
use registrar::{Config, RunError, Traces, run};
use registry::{InstanceKey, Store};
use support::etcd::{Etcd, free_port};
use support::{Answer, Application, Docker, Inspections, entries, eventually, paths, published, recorded, store};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

const KEY: &str = "/service/127.0.0.6:40001";
const OTHER_KEY: &str = "/service/127.0.0.6:40002";

/// A sidekick that runs.
struct Running {
    stop: oneshot::Sender<()>,
    task: JoinHandle<Result<(), RunError>>,
}

impl Running {
    /// Starts one for the container `app`, which asks every 100 ms.
    fn start(etcd: &str, socket: &Path, port: u16, flags: &str) -> Self {
        let socket = socket.to_str().unwrap();
        let mut all = format!("registrar --etcd {etcd} --port {port} --docker {socket} --container app {flags}");
        for (flag, value) in [("--interval", "100ms"), ("--timeout", "500ms"), ("--linger", "1ms")] {
            if !flags.split(' ').any(|given| given == flag) {
                all += &format!(" {flag} {value}");
            }
        }
        let config = Config::try_parse_from(all.split_whitespace()).unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let shutdown = async {
            stopped.await.unwrap();
        };
        Self { stop, task: tokio::spawn(run(config, Traces::default(), Renewals::default(), shutdown)) }
    }

    /// Tells it to stop and waits until it has.
    async fn stop(self) -> Duration {
        let start = Instant::now();
        self.stop.send(()).unwrap();
        tokio::time::timeout(support::DEADLINE, self.task).await.unwrap().unwrap().unwrap();
        start.elapsed()
    }
}

fn ok() -> Answer {
    Answer::status("200 OK")
}

fn key(path: &str) -> InstanceKey {
    InstanceKey::parse(&"service".parse().unwrap(), path).unwrap()
}

async fn eventually_listed(store: &Store, expected: &[&str]) {
    eventually(&format!("the keys {expected:?}"), async || paths(store).await == expected).await;
}

#[tokio::test]
async fn the_key_comes_when_the_application_answers_and_goes_when_it_does_not_or_the_sidekick_is_stopped() {
    let (etcd, docker, port) = (Etcd::start(), Docker::start(), free_port());
    docker.knows("app", published(port, "127.0.0.6", 40001));
    let store = store(&etcd.url());
    let sidekick = Running::start(&etcd.url(), &docker.socket, port, "--linger 20s");
    // Docker and etcd are asked, the application is not there yet.
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(paths(&store).await, [""; 0]);

    let application = Application::start_on(port, ok()).await;
    eventually_listed(&store, &[KEY]).await;
    let entry = &entries(&store).await[0];
    assert_eq!(entry.value, "running");
    assert!(entry.ttl.is_some_and(|ttl| ttl > Duration::from_secs(10) && ttl <= Duration::from_secs(20)));

    for bad in [Answer::status("500 X"), Answer::Hang, Answer::Close] {
        application.answers(bad);
        eventually_listed(&store, &[]).await;
        application.answers(Answer::status("404 Not Found"));
        eventually_listed(&store, &[KEY]).await;
    }

    let stopping = tokio::spawn(sidekick.stop());
    let start = Instant::now();
    eventually_listed(&store, &[]).await;
    assert!(start.elapsed() < Duration::from_secs(10), "the key goes at once, not after the linger");
    assert!(stopping.await.unwrap() >= Duration::from_secs(20), "it lingers after the key is gone");
}

#[tokio::test]
async fn a_quick_start_is_noticed_before_the_interval_is_over() {
    let (etcd, docker, port) = (Etcd::start(), Docker::start(), free_port());
    docker.knows("app", published(port, "127.0.0.6", 40001));
    let sidekick = Running::start(&etcd.url(), &docker.socket, port, "--interval 1h");
    tokio::time::sleep(Duration::from_millis(200)).await;
    let _application = Application::start_on(port, ok()).await;
    eventually_listed(&store(&etcd.url()), &[KEY]).await;
    sidekick.stop().await;
}

#[tokio::test]
async fn etcd_may_be_away_at_the_start_and_later_and_the_application_is_asked_all_the_while() {
    let (mut etcd, docker) = (Etcd::start(), Docker::start());
    let application = Application::start(ok()).await;
    docker.knows("app", published(application.port, "127.0.0.6", 40001));
    let store = store(&etcd.url());
    etcd.stop();
    let flags = "--ttl 3s --etcd-timeout 500ms";
    let sidekick = Running::start(&etcd.url(), &docker.socket, application.port, flags);
    eventually("some questions", async || application.requests() > 5).await;
    etcd.run();
    eventually_listed(&store, &[KEY]).await;

    // It hangs: the key expires meanwhile, and is written again.
    etcd.freeze();
    let before = application.requests();
    eventually("questions while etcd hangs", async || application.requests() > before + 20).await;
    etcd.thaw();
    eventually_listed(&store, &[KEY]).await;

    // The application stops answering while etcd is away: the key goes as soon as etcd is back.
    etcd.stop();
    application.answers(Answer::status("503 X"));
    let before = application.requests();
    eventually("a question", async || application.requests() > before + 1).await;
    etcd.run();
    eventually_listed(&store, &[]).await;
    sidekick.stop().await;
}

#[tokio::test]
async fn told_to_stop_while_etcd_hangs_it_ends_within_its_limit() {
    let (etcd, docker) = (Etcd::start(), Docker::start());
    let application = Application::start(ok()).await;
    docker.knows("app", published(application.port, "127.0.0.6", 40001));
    let sidekick = Running::start(&etcd.url(), &docker.socket, application.port, "");
    eventually_listed(&store(&etcd.url()), &[KEY]).await;
    etcd.freeze();
    let took = sidekick.stop().await;
    assert!((Duration::from_millis(2900)..Duration::from_secs(15)).contains(&took), "{took:?}");
}

#[tokio::test]
async fn a_member_that_hangs_does_not_keep_the_key_from_being_removed() {
    let (etcd, hanging, docker) = (Etcd::start(), Etcd::start(), Docker::start());
    let application = Application::start(ok()).await;
    docker.knows("app", published(application.port, "127.0.0.6", 40001));
    // Two clusters stand for two members: the key is in the one that answers.
    hanging.freeze();
    let both = format!("{},{}", hanging.url(), etcd.url());
    let sidekick = Running::start(&both, &docker.socket, application.port, "--etcd-timeout 8s");
    let store = store(&etcd.url());
    eventually_listed(&store, &[KEY]).await;
    let took = sidekick.stop().await;
    assert!(took < Duration::from_secs(6), "{took:?}");
    assert_eq!(paths(&store).await, [""; 0]);
}

#[tokio::test]
async fn docker_may_be_away_at_the_start_and_later() {
    let etcd = Etcd::start();
    let application = Application::start(ok()).await;
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("docker.sock");
    let sidekick = Running::start(&etcd.url(), &socket, application.port, "--ttl 3s");
    eventually("some questions", async || application.requests() > 5).await;
    let inspection = published(application.port, "127.0.0.6", 40001);
    let docker = Docker::start_at(&socket, Inspections::from([("app".to_owned(), (200, inspection))]));
    let store = store(&etcd.url());
    eventually_listed(&store, &[KEY]).await;

    drop(docker);
    application.answers(Answer::Close);
    eventually_listed(&store, &[]).await;
    application.answers(ok());
    eventually_listed(&store, &[KEY]).await;
    sidekick.stop().await;
}

#[tokio::test]
async fn when_the_mapped_port_changes_the_old_key_goes_and_the_new_one_comes() {
    let (etcd, docker) = (Etcd::start(), Docker::start());
    let application = Application::start(ok()).await;
    docker.knows("app", published(application.port, "127.0.0.6", 40001));
    let store = store(&etcd.url());
    let sidekick = Running::start(&etcd.url(), &docker.socket, application.port, "");
    eventually_listed(&store, &[KEY]).await;
    docker.knows("app", published(application.port, "127.0.0.6", 40002));
    // It looks again after the application was away.
    application.answers(Answer::Close);
    eventually_listed(&store, &[]).await;
    application.answers(ok());
    eventually_listed(&store, &[OTHER_KEY]).await;
    sidekick.stop().await;
    assert_eq!(paths(&store).await, [""; 0]);
}

#[tokio::test]
async fn a_port_that_is_not_published_is_waited_for() {
    let (etcd, docker) = (Etcd::start(), Docker::start());
    let application = Application::start(ok()).await;
    docker.knows("app", recorded("inspect-none"));
    let store = store(&etcd.url());
    let sidekick = Running::start(&etcd.url(), &docker.socket, application.port, "");
    eventually("some questions", async || application.requests() > 5).await;
    assert_eq!(paths(&store).await, [""; 0]);
    docker.knows("app", published(application.port, "127.0.0.6", 40001));
    eventually_listed(&store, &[KEY]).await;
    sidekick.stop().await;
}

#[tokio::test]
async fn a_key_found_gone_is_written_again_and_one_taken_by_another_is_left_alone() {
    let (etcd, docker) = (Etcd::start(), Docker::start());
    let application = Application::start(ok()).await;
    docker.knows("app", published(application.port, "127.0.0.6", 40001));
    let (store, ttl) = (store(&etcd.url()), Duration::from_secs(60));
    // A run before this one was killed and left its key: it is taken over.
    store.put(&key(KEY), "running", &store.grant(ttl).await.unwrap()).await.unwrap();
    let sidekick = Running::start(&etcd.url(), &docker.socket, application.port, "--ttl 3s");
    eventually("the key with its own time to live", async || {
        entries(&store).await.first().is_some_and(|entry| entry.ttl <= Some(Duration::from_secs(3)))
    })
    .await;

    let found = store.get(&key(KEY)).await.unwrap().unwrap();
    store.delete(&key(KEY), &found.ownership()).await.unwrap();
    eventually_listed(&store, &[KEY]).await;

    let foreign = store.put(&key(KEY), "someone else", &store.grant(ttl).await.unwrap()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert_eq!(entries(&store).await[0].value, "someone else");
    store.delete(&key(KEY), &foreign).await.unwrap();
    eventually("its own key", async || entries(&store).await.first().is_some_and(|entry| entry.value == "running"))
        .await;

    let foreign = store.put(&key(KEY), "someone else", &store.grant(ttl).await.unwrap()).await.unwrap();
    sidekick.stop().await;
    assert_eq!(
        store.get(&key(KEY)).await.unwrap().unwrap().ownership(),
        foreign,
        "a late delete takes no newcomer's key"
    );
}

#[tokio::test]
async fn a_name_for_the_host_is_resolved_and_one_that_leads_to_no_address_of_it_registers_nothing() {
    let (etcd, docker) = (Etcd::start(), Docker::start());
    let application = Application::start(ok()).await;
    docker.knows("app", published(application.port, "0.0.0.0", 40001));
    let store = store(&etcd.url());
    for name in ["no-such-host.invalid", "localhost"] {
        let unknown = Running::start(&etcd.url(), &docker.socket, application.port, &format!("--ip {name}"));
        let before = application.requests();
        eventually("some questions", async || application.requests() > before + 5).await;
        assert_eq!(paths(&store).await, [""; 0], "{name}");
        unknown.stop().await;
    }
    // No address as we read them, and a resolver's old form of one.
    let known = Running::start(&etcd.url(), &docker.socket, application.port, "--ip 0x0a000102");
    eventually_listed(&store, &["/service/10.0.1.2:40001"]).await;
    known.stop().await;
}

#[tokio::test]
async fn with_the_mapped_port_given_no_docker_socket_is_touched() {
    let etcd = Etcd::start();
    let application = Application::start(ok()).await;
    let store = store(&etcd.url());
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("docker.sock");
    // One that is never accepted from: whoever connects is seen all the same.
    let docker = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    docker.set_nonblocking(true).unwrap();
    let is_touched = || docker.accept().is_ok();

    let sidekick = Running::start(&etcd.url(), &socket, application.port, "--mapped-port 40003 --ip 10.0.1.2");
    eventually_listed(&store, &["/service/10.0.1.2:40003"]).await;
    application.answers(Answer::Close);
    eventually_listed(&store, &[]).await;
    application.answers(ok());
    eventually_listed(&store, &["/service/10.0.1.2:40003"]).await;
    sidekick.stop().await;
    assert_eq!(paths(&store).await, [""; 0]);
    assert!(!is_touched());

    // Without the mapped port it is.
    let asks = Running::start(&etcd.url(), &socket, application.port, "--ip 10.0.1.2");
    eventually("a connection to Docker", async || is_touched()).await;
    asks.stop().await;
}
