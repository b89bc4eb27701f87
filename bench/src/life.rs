//! A container's life as its users see it: from `docker run` to the first request that HAProxy gives it, and from `docker stop` to the
//! last, through the agent, etcd, the discoverer and HAProxy.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use e2e::agent::Agent;
use e2e::docker::{Docker, docker_ok};
use e2e::ports::free_address;
use tokio::time::sleep;

use crate::Amount;
use crate::stats::{Measured, Row, Times};
use crate::wire::{get_once, get_within};
use crate::world::{Subject, Tools, wait};

/// The limit on one step.
const LIMIT: Duration = Duration::from_secs(20);
/// How long an application that is told to stop goes on, as one does that ends what it has begun.
const LINGER: &str = "LINGER_MS=500";
/// How long the first answer is waited for before another client asks.
const PATIENCE: Duration = Duration::from_millis(20);
/// Between two questions of a client.
const PAUSE: Duration = Duration::from_micros(200);

/// A client that asks without end, and notes the last answer of one container.
struct Client {
    stop: Arc<AtomicBool>,
    failed: Arc<AtomicUsize>,
    thread: JoinHandle<Option<Instant>>,
}

impl Client {
    fn start(http: SocketAddr, wanted: String) -> Self {
        let (stop, failed) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let thread = std::thread::spawn({
            let (stop, failed) = (Arc::clone(&stop), Arc::clone(&failed));
            move || {
                let mut last = None;
                while !stop.load(Ordering::Relaxed) {
                    match get_once(http) {
                        Ok(body) if body.contains(&wanted) => last = Some(Instant::now()),
                        Ok(body) if body.starts_with("Hello") => {}
                        _ => {
                            failed.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                    std::thread::sleep(PAUSE);
                }
                last
            }
        });
        Self { stop, failed, thread }
    }

    /// When the container answered last, and how many requests failed.
    fn stop(self) -> anyhow::Result<(Instant, usize)> {
        self.stop.store(true, Ordering::Relaxed);
        let Ok(last) = self.thread.join() else { bail!("a client panicked") };
        Ok((last.context("the container never answered")?, self.failed.load(Ordering::Relaxed)))
    }
}

/// Waits, on a thread of its own, for the first answer with a text.
fn first_answer(address: SocketAddr, wanted: String) -> JoinHandle<Option<Instant>> {
    std::thread::spawn(move || {
        let start = Instant::now();
        while start.elapsed() < LIMIT {
            // What is sent to a container whose network is not up yet is lost, and the kernel of Docker's proxy sends it again only after
            // a second.
            if get_within(address, PATIENCE).is_ok_and(|body| body.contains(&wanted)) {
                return Some(Instant::now());
            }
            std::thread::sleep(PAUSE);
        }
        None
    })
}

pub(crate) async fn measure(tools: &Tools, amount: &Amount) -> anyhow::Result<Measured> {
    let docker = Docker::for_apps().await;
    docker.app("web", &[]).await;
    let prefix = tools.prefix();
    let flags = ["--key", &prefix, "--docker", "/var/run/docker.sock"];
    let _agent = Agent::start_with(tools.registrar()?, &tools.etcd.url(), &flags);
    tools.wait_count(&prefix, 1).await?;
    let subject = Subject::start(tools, &prefix, 1).await?;
    let label = format!("SERVICE_NAME={}", docker.service("web"));
    let [mut started, mut answered, mut drained] = [(); 3].map(|()| Times::default());
    let mut failed = 0;
    for round in 1..=amount.container_lives {
        let (own, name) = (free_address(), format!("new-{round}"));
        let publish = format!("{own}:8000");
        let flags = ["--hostname", &name, "--publish", &publish, "--label", &label, "--env", LINGER, e2e::app::IMAGE];
        let hello = format!("Hello from {name}");
        let (direct, through) = (first_answer(own, hello.clone()), first_answer(subject.http, hello.clone()));
        let begun = Instant::now();
        let container = docker.run(&name, &flags).await;
        let moment = |answer: JoinHandle<Option<Instant>>| match answer.join() {
            Ok(Some(at)) => Ok(at.saturating_duration_since(begun)),
            _ => bail!("{name} did not answer within {LIMIT:?}; {}", subject.last_words()),
        };
        // Neither waits for the other: each has a thread of its own.
        let (direct, through) = (moment(direct)?, moment(through)?);
        started.push(direct);
        answered.push(through);
        let client = Client::start(subject.http, hello);
        sleep(Duration::from_millis(200)).await;
        let begun = Instant::now();
        container.tell("stop").await;
        wait("the container's key is gone", || match tools.count(&prefix) {
            Ok(1) => Ok(true),
            seen => Err(format!("{seen:?}")),
        })
        .await?;
        let (last, lost) = client.stop()?;
        failed += lost;
        drained.push(last.saturating_duration_since(begun));
        docker_ok(&["rm", container.id()]).await;
        eprint!("\rlife: {round} of {} containers   ", amount.container_lives);
    }
    eprintln!();
    ensure!(started.len() == amount.container_lives);
    let more = answered.median() - started.median();
    Ok(Measured::of(vec![
        Row::new(
            "`docker run` -> first request through HAProxy",
            "",
            format!(
                "{}; floor: its own port answers {}; {more:+.1} ms of the medians",
                answered.shown(),
                started.shown()
            ),
        ),
        Row::new(
            "`docker stop` -> its last request, while it is asked without end",
            "0 failed",
            format!("{}; {failed} requests failed", drained.shown()),
        ),
    ]))
}
