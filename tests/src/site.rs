//! A whole site under way: a cluster, an agent whose containers come and go, a discoverer with its HAProxy, clients that never
//! rest, and somebody who looks at HAProxy all the time. For tests of what may happen to any of them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;

use crate::agent::Agent;
use crate::backend::Backend;
use crate::cluster::{Cluster, MEMBERS};
use crate::discoverer::{Discoverer, SOON};
use crate::fake_docker::{FakeDocker, Spec};
use crate::haproxy::{Haproxy, servers};
use crate::load::{Load, Report};
use crate::process::find_workspace_binary;
use crate::wait_until;

/// How long all must have been served before the look at them begins.
const SETTLED: Duration = Duration::from_secs(1);
/// The service that all containers are instances of.
pub const SERVICE: &str = "web";
/// Containers that run from the beginning to the end.
const STEADY: usize = 4;
/// Containers of which one comes or goes at each change: each every 5 s, so that no trouble is overtaken by the next change.
const CHANGING: usize = 100;
/// Between two changes: 20 a second.
const CHANGE_EVERY: Duration = Duration::from_millis(50);
/// How often HAProxy is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// So many clients ask some 500 times a second in all.
const CLIENTS: usize = 6;
/// Between two looks at what a program takes, it may take so much of one processor. The programs of a test are not optimised,
/// and 20 changes a second are a sixth of a processor then; a loop that does not pause takes all of one.
const MOST_CPU: f64 = 0.5;
/// The same for the requests that the members receive, in one second. 20 changes are some 30 writes and as many polls.
const MOST_REQUESTS: f64 = 300.0;

/// A site. Dropping it ends all of it.
pub struct Site {
    /// The registry.
    pub cluster: Cluster,
    /// The discoverer, with an HAProxy below it.
    pub discoverer: Discoverer,
    /// The registrar.
    pub agent: Agent,
    docker: Arc<FakeDocker>,
    steady: Vec<Backend>,
    changing: Arc<Vec<Backend>>,
    churn: Churn,
    eye: Eye,
    load: Load,
    /// Where it is somebody else's.
    haproxy: Option<Haproxy>,
}

/// The member that each program asks first, and its flags.
#[derive(Debug, Default)]
pub struct Plan<'a> {
    /// The discoverer's first member.
    pub discoverer_at: usize,
    /// The agent's first member.
    pub agent_at: usize,
    /// HAProxy is somebody else's, and not the discoverer's child.
    pub beside: bool,
    /// More flags of the discoverer.
    pub discoverer: &'a [&'a str],
    /// More flags of the agent.
    pub agent: &'a [&'a str],
    /// Other programs than those of the test's own build.
    pub programs: Option<(PathBuf, PathBuf)>,
}

impl Site {
    /// Starts everything at this cluster, and waits until the steady containers are served. No container comes or goes yet.
    pub async fn start(cluster: Cluster, plan: Plan<'_>) -> Site {
        let docker = Arc::new(FakeDocker::start());
        // Applications that run are asked as often as users have it.
        let api = cluster.api().flag();
        let mut flags = ["--interval", "5s", "--etcd-api", api, "--docker", &docker.path().display().to_string()]
            .map(str::to_owned)
            .to_vec();
        flags.extend(plan.agent.iter().map(|&flag| flag.to_owned()));
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        let (registrar, discoverer) = plan.programs.unzip();
        let registrar = registrar.unwrap_or_else(|| find_workspace_binary("registrar"));
        let agent = Agent::start_with(&registrar, &cluster.urls_from(plan.agent_at), &flags);
        let mut steady = Vec::new();
        for number in 0..STEADY {
            steady.push(Backend::start(&format!("steady-{number}")).await);
            docker.run(&spec(&steady[number]));
        }
        let mut changing = Vec::new();
        for number in 0..CHANGING {
            changing.push(Backend::start(&format!("changing-{number}")).await);
        }
        let urls = cluster.urls_from(plan.discoverer_at);
        let haproxy = if plan.beside { Some(Haproxy::start().await) } else { None };
        let builder = match &haproxy {
            Some(haproxy) => Discoverer::reload_socket(&urls, haproxy).runtime(haproxy),
            None => Discoverer::supervise(&urls),
        };
        let builder = builder.args(&["--etcd-api", api]).args(plan.discoverer);
        let builder = match discoverer {
            Some(program) => builder.program(&program),
            None => builder,
        };
        let discoverer = builder.start();
        let wanted: BTreeSet<_> = steady.iter().map(Backend::address).collect();
        // The reload that brings the first of a service may come when the others are there already; the new worker is told of them
        // right behind it.
        let settled = Mutex::new(Instant::now());
        wait_until(SOON, "the steady containers are served, and are for a while", async || {
            let seen = in_rotation(&discoverer).await;
            let mut since = settled.lock().unwrap();
            if seen.as_ref() != Ok(&wanted) {
                *since = Instant::now();
            }
            if since.elapsed() >= SETTLED { Ok(()) } else { Err(format!("{seen:?}")) }
        })
        .await;
        let eye = Eye::open(discoverer.runtime_socket(), wanted);
        let load = Load::of(discoverer.http(), "/", CLIENTS);
        load.wait_served(100).await;
        let (churn, changing) = (Churn::default(), Arc::new(changing));
        Site { cluster, discoverer, agent, docker, steady, changing, churn, eye, load, haproxy }
    }

    /// From now on containers come and go, 20 changes a second, until [`Site::rests`].
    pub fn churns(&mut self) {
        assert!(self.churn.task.is_none(), "it churns already");
        let (docker, backends) = (Arc::clone(&self.docker), Arc::clone(&self.changing));
        let log = Arc::clone(&self.churn.log);
        let running = Arc::clone(&self.churn.running);
        self.churn.task = Some(tokio::spawn(async move {
            let mut ticks = tokio::time::interval(CHANGE_EVERY);
            for turn in 0.. {
                ticks.tick().await;
                let backend = &backends[turn % backends.len()];
                let before = running.lock().unwrap().remove(&backend.address());
                let comes = before.is_none();
                match before {
                    Some(id) => {
                        docker.stop(&id);
                        docker.remove(&id);
                    }
                    None => {
                        let id = docker.run(&spec(backend));
                        running.lock().unwrap().insert(backend.address(), id);
                    }
                }
                log.lock().unwrap().push(Change { at: Instant::now(), address: backend.address(), comes });
            }
        }));
    }

    /// No container comes or goes any more. The applications of those that have gone go on answering: that HAProxy asks them no
    /// more is by the registry alone.
    pub fn rests(&mut self) {
        if let Some(task) = self.churn.task.take() {
            task.abort();
        }
    }

    /// Waits until so many more containers have come or gone.
    pub async fn wait_changes(&self, count: usize) {
        let wanted = self.churn.count() + count;
        let limit = SOON + CHANGE_EVERY * u32::try_from(count).unwrap();
        wait_until(limit, &format!("{count} changes"), async || {
            let seen = self.churn.count();
            if seen >= wanted { Ok(()) } else { Err(seen.to_string()) }
        })
        .await;
    }

    /// Waits until the registry holds the containers that run, and HAProxy sends requests to these and no others.
    pub async fn wait_in_step(&self, limit: Duration) {
        wait_until(limit, "the containers that run are registered, and in HAProxy, and no others", async || {
            let wanted = self.wanted();
            let keys = self.cluster.keys(&format!("/service/{SERVICE}")).await;
            let registered: BTreeSet<SocketAddr> =
                keys.iter().filter_map(|(key, _)| key.rsplit('/').next()?.parse().ok()).collect();
            let served = in_rotation(&self.discoverer).await?;
            if registered == wanted && served == wanted {
                return Ok(());
            }
            Err(format!("run: {wanted:?}\nregistered: {registered:?}\nserved: {served:?}"))
        })
        .await;
    }

    /// The addresses of the containers that run.
    pub fn wanted(&self) -> BTreeSet<SocketAddr> {
        let changing: Vec<_> = self.churn.running.lock().unwrap().keys().copied().collect();
        self.steady.iter().map(Backend::address).chain(changing).collect()
    }

    /// What is being taken by whom, to be compared with [`Site::assert_modest`].
    pub async fn effort(&mut self) -> Effort {
        Effort {
            at: Instant::now(),
            agent: self.agent.process().cpu_time(),
            discoverer: self.discoverer.process().cpu_time(),
            requests: self.cluster.requests().await,
        }
    }

    /// Panics where agent or discoverer were in a hot loop since then: by what they took, and by what the members received.
    pub async fn assert_modest(&mut self, since: &Effort) {
        let now = self.effort().await;
        let seconds = (now.at - since.at).as_secs_f64();
        let share = |now: Duration, before: Duration| now.saturating_sub(before).as_secs_f64() / seconds;
        let (agent, discoverer) = (share(now.agent, since.agent), share(now.discoverer, since.discoverer));
        let received = |member: usize| match (now.requests[member], since.requests[member]) {
            // One that was started anew counts from the beginning.
            (Some(now), Some(before)) if now >= before => now - before,
            (Some(now), _) => now,
            (None, _) => 0,
        };
        let requests = (0..MEMBERS).map(received).sum::<u64>() as f64 / seconds;
        println!(
            "over {seconds:.1} s: the agent took {:.1} % of a processor, the discoverer {:.1} %; {requests:.0} requests a second",
            agent * 100.0,
            discoverer * 100.0
        );
        assert!(agent < MOST_CPU, "the agent takes {agent:.2} of a processor");
        assert!(discoverer < MOST_CPU, "the discoverer takes {discoverer:.2} of a processor");
        assert!(requests < MOST_REQUESTS, "the members receive {requests:.0} requests a second");
    }

    /// How late the changes since `from` were seen in HAProxy, counted from `able` where they happened before it. Those
    /// that the next change of the same container overtook are not among them.
    pub fn lateness(&self, from: Instant, able: Instant) -> Vec<Duration> {
        let log = self.churn.log.lock().unwrap();
        let seen = self.eye.seen.lock().unwrap();
        let late = |(number, change): (usize, &Change)| {
            let next = log[number + 1..].iter().find(|next| next.address == change.address).map(|next| next.at);
            let is_done = |(at, now): &&(Instant, BTreeSet<SocketAddr>)| {
                *at >= change.at && now.contains(&change.address) == change.comes
            };
            let done = seen.states.iter().find(is_done).map(|(at, _)| *at)?;
            next.is_none_or(|next| next > done).then(|| done.saturating_duration_since(change.at.max(able)))
        };
        log.iter().enumerate().filter(|(_, change)| change.at >= from).filter_map(late).collect()
    }

    /// How many clients there are: so many requests are in flight at most.
    pub fn clients(&self) -> usize {
        CLIENTS
    }

    /// The HAProxy that is somebody else's.
    pub fn haproxy(&mut self) -> &mut Haproxy {
        self.haproxy.as_mut().expect("HAProxy is beside the discoverer")
    }

    /// What the agent takes for Docker.
    pub fn docker(&self) -> &FakeDocker {
        &self.docker
    }

    /// How many containers have come or gone.
    pub fn changes(&self) -> usize {
        self.churn.count()
    }

    /// Goes on with new clients, and gives what those before them saw.
    pub async fn next_load(&mut self) -> Report {
        let next = Load::of(self.discoverer.http(), "/", CLIENTS);
        std::mem::replace(&mut self.load, next).stop().await
    }

    /// The clients.
    pub fn load(&self) -> &Load {
        &self.load
    }

    /// Panics where a steady container was ever not served, as far as HAProxy could be asked.
    pub fn assert_nobody_vanished(&self) {
        let seen = self.eye.seen.lock().unwrap();
        assert!(
            seen.vanished.is_empty(),
            "HAProxy did not send requests to a container that runs: {:#?}",
            seen.vanished
        );
    }

    /// [`Site::comes_to_rest`] where no request may fail.
    pub async fn ends_well(self, limit: Duration, before: &Effort, least: u64) -> Report {
        let report = self.comes_to_rest(limit, before, least).await;
        report.assert_no_failure(least);
        report
    }

    /// Comes to rest: all is right within `limit`, nobody vanished, nobody ran hot since `before`. Gives what
    /// the clients saw, when `least` requests or more have been served.
    pub async fn comes_to_rest(mut self, limit: Duration, before: &Effort, least: u64) -> Report {
        self.rests();
        self.wait_in_step(limit).await;
        self.assert_nobody_vanished();
        self.assert_modest(before).await;
        self.load.stop_after(least).await
    }
}

impl Drop for Churn {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

/// See [`Site::effort`].
#[derive(Debug)]
pub struct Effort {
    at: Instant,
    agent: Duration,
    discoverer: Duration,
    requests: [Option<u64>; MEMBERS],
}

/// The containers that come and go.
#[derive(Default)]
struct Churn {
    task: Option<JoinHandle<()>>,
    log: Arc<Mutex<Vec<Change>>>,
    /// Those that run now, with their ids.
    running: Arc<Mutex<BTreeMap<SocketAddr, String>>>,
}

impl Churn {
    fn count(&self) -> usize {
        self.log.lock().unwrap().len()
    }
}

/// A container came or went.
#[derive(Debug)]
struct Change {
    at: Instant,
    address: SocketAddr,
    comes: bool,
}

/// Looks at HAProxy all the time. Dropping it closes it.
struct Eye {
    seen: Arc<Mutex<Seen>>,
    task: JoinHandle<()>,
}

#[derive(Default)]
struct Seen {
    /// To whom requests are sent, at each change of that.
    states: Vec<(Instant, BTreeSet<SocketAddr>)>,
    /// When one was missing that must never be.
    vanished: Vec<String>,
}

impl Eye {
    fn open(socket: PathBuf, steady: BTreeSet<SocketAddr>) -> Eye {
        let seen = Arc::new(Mutex::new(Seen::default()));
        let into = Arc::clone(&seen);
        let start = Instant::now();
        let task = tokio::spawn(async move {
            loop {
                // A worker that has just begun, or that dies, says nothing.
                if let Ok(now) = rotation(&socket).await {
                    let mut seen = into.lock().unwrap();
                    let missing: Vec<_> = steady.difference(&now).collect();
                    if !missing.is_empty() {
                        seen.vanished.push(format!("{missing:?} after {:?}", start.elapsed()));
                    }
                    if seen.states.last().is_none_or(|(_, last)| *last != now) {
                        seen.states.push((Instant::now(), now));
                    }
                }
                tokio::time::sleep(LOOK_EVERY).await;
            }
        });
        Eye { seen, task }
    }
}

impl Drop for Eye {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn spec(backend: &Backend) -> Spec {
    // The container's own address is the one it is published at.
    let port = backend.address().port();
    Spec::new(backend.name(), SERVICE, (Ipv4Addr::LOCALHOST, port), port)
}

async fn in_rotation(discoverer: &Discoverer) -> Result<BTreeSet<SocketAddr>, String> {
    rotation(&discoverer.runtime_socket()).await
}

/// To whom HAProxy sends requests as far as administration goes.
async fn rotation(socket: &std::path::Path) -> Result<BTreeSet<SocketAddr>, String> {
    let taking = |server: &crate::haproxy::Server| server.ready && server.weight > 0;
    Ok(servers(socket).await?.into_values().filter(taking).map(|server| server.address).collect())
}
