//! The agent: from Docker's event to etcd, beside the least that any program could do with the same event; memory, CPU time, and
//! what is left behind after a kill.
//!
//! Real containers where their life is what is measured; a scripted Docker where there are many, or where the moment that an
//! application begins to listen must be known.

mod clocks;
mod scripted;

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use e2e::agent::Agent;
use e2e::docker::Docker;
use e2e::fake_docker::Spec;
use tokio::time::sleep;

use crate::Amount;
use crate::machine::{cpu_ms, memory_mb};
use crate::plot::{Curve, Plot};
use crate::stats::{Measured, Row, Times};
use crate::world::Tools;
use clocks::{EventClock, EventFloor, KeyClock, Seen};
use scripted::Scripted;

/// How long after its start an application listens, where that is measured.
const LATE: Duration = Duration::from_millis(300);
/// So long it is watched at rest: several rounds of probes and refreshes.
const AT_REST: Duration = Duration::from_secs(20);
/// Between two steps of a container's life, so that each is measured alone.
const PAUSE: Duration = Duration::from_millis(100);
/// The limit on one step.
const LIMIT: Duration = Duration::from_secs(15);
/// How many containers, with the target of the memory.
const SIZES: [(usize, &str); 3] = [(1, "9 MB"), (40, "11 MB"), (500, "25 MB")];

pub(crate) async fn measure(tools: &Tools, amount: &Amount) -> anyhow::Result<Measured> {
    let mut rows = vec![binary(tools)?];
    rows.extend(real_life(tools, amount.container_lives).await?);
    rows.extend(scripted_starts(tools, amount.rounds).await?);
    rows.push(late_listeners(tools, amount.rounds / 5).await?);
    let mut points = Vec::new();
    let wanted = amount.sizes(&SIZES.map(|(size, _)| size));
    for (size, target) in SIZES.into_iter().filter(|(size, _)| wanted.contains(size)) {
        let (measured, memory) = at_rest(tools, size, target).await?;
        rows.extend(measured);
        #[allow(clippy::cast_precision_loss)]
        points.push((size as f64, memory));
    }
    rows.push(after_kill_9(tools).await?);
    let plot = Plot {
        file: "agent-memory",
        title: "The agent's memory (RSS) by the number of containers".to_owned(),
        across: "containers",
        up: "MB",
        curves: vec![Curve { name: "agent".to_owned(), points }],
    };
    Ok(Measured { rows, plots: vec![plot] })
}

fn binary(tools: &Tools) -> anyhow::Result<Row> {
    let bytes = std::fs::metadata(tools.registrar()?)?.len();
    Ok(Row::new("registrar, stripped binary", "10 MB", format!("{:.1} MB", bytes as f64 / 1_000_000.0)))
}

/// An agent over a Docker, that writes below `prefix`; asks each 5 s, as the default is.
fn agent(tools: &Tools, prefix: &str, docker: &str) -> anyhow::Result<Agent> {
    let flags = ["--key", prefix, "--docker", docker, "--interval", "5s", "--timeout", "3s"];
    Ok(Agent::start_with(tools.registrar()?, &tools.etcd.url(), &flags))
}

/// One step of a life, for the agent and for the floor.
#[derive(Default)]
struct Step {
    agent: Times,
    floor: Times,
}

impl Step {
    /// Takes the times from `since` to what both clocks see next that is `wanted`.
    fn take(
        &mut self,
        since: Instant,
        agent: &KeyClock,
        floor: &KeyClock,
        wanted: impl Fn(&Seen) -> bool,
    ) -> anyhow::Result<()> {
        self.floor.push(floor.next(LIMIT, &wanted).context("the floor")?.at.saturating_duration_since(since));
        self.agent.push(agent.next(LIMIT, &wanted).context("the agent")?.at.saturating_duration_since(since));
        Ok(())
    }

    fn row(&self, what: &str, target: &str) -> Row {
        Row::new(what, target, format!("{}\nfloor: {}", self.agent.shown(), self.floor.shown()))
    }
}

/// What came before the step that is measured next.
fn forget(agent: &KeyClock, floor: &KeyClock) {
    drop((agent.all(), floor.all()));
}

/// A real container, started and stopped again and again; each time counts from the moment that Docker's event came here.
async fn real_life(tools: &Tools, rounds: usize) -> anyhow::Result<Vec<Row>> {
    const SOCKET: &str = "/var/run/docker.sock";
    let docker = Docker::for_apps().await;
    let app = docker.app("web", &[]).await;
    app.tell("stop").await;
    let (prefix, floor_prefix) = (tools.prefix(), tools.prefix());
    let agent = agent(tools, &prefix, SOCKET)?;
    let _floor = EventFloor::start(SOCKET.as_ref(), tools.etcd.address(), &floor_prefix, app.id())?;
    let service = docker.service("web");
    let keys = KeyClock::start(tools.etcd.address(), &prefix, &service)?;
    let floor_keys = KeyClock::start(tools.etcd.address(), &floor_prefix, "")?;
    let events = EventClock::start(SOCKET.as_ref(), app.id())?;
    let (mut start, mut kill, mut die) = (Step::default(), Step::default(), Step::default());
    for round in 0..rounds {
        sleep(PAUSE).await;
        forget(&keys, &floor_keys);
        app.tell("start").await;
        start.take(events.next(LIMIT, "start")?, &keys, &floor_keys, Seen::is_running)?;
        sleep(PAUSE).await;
        forget(&keys, &floor_keys);
        app.tell("stop").await;
        kill.take(events.next(LIMIT, "kill")?, &keys, &floor_keys, Seen::is_draining)?;
        die.take(events.next(LIMIT, "die")?, &keys, &floor_keys, Seen::is_removal)?;
        eprint!("\rregistrar: {} of {rounds} lives of a container   ", round + 1);
    }
    eprintln!();
    drop(agent);
    Ok(vec![
        start.row("Docker's `start` -> key, checked, real container", "10 ms"),
        kill.row("Docker's `kill` (docker stop) -> draining", "10 ms"),
        die.row("Docker's `die` -> key gone", "5 ms"),
    ])
}

/// Containers whose application listens already: the scripted Docker's `start`, and what follows.
async fn scripted_starts(tools: &Tools, rounds: usize) -> anyhow::Result<Vec<Row>> {
    let scripted = Scripted::start()?;
    let (prefix, floor_prefix) = (tools.prefix(), tools.prefix());
    let agent = agent(tools, &prefix, &scripted.socket())?;
    let _floor = EventFloor::start(scripted.docker.path(), tools.etcd.address(), &floor_prefix, "")?;
    let keys = KeyClock::start(tools.etcd.address(), &prefix, "web")?;
    let floor_keys = KeyClock::start(tools.etcd.address(), &floor_prefix, "")?;
    scripted.wait_followed(2)?;
    let (mut start, mut stop) = (Step::default(), Step::default());
    for round in 0..rounds {
        sleep(PAUSE / 2).await;
        let spec = scripted.spec(u16::try_from(round)?);
        forget(&keys, &floor_keys);
        let since = Instant::now();
        let id = scripted.docker.run(&spec);
        start.take(since, &keys, &floor_keys, Seen::is_running)?;
        sleep(PAUSE / 2).await;
        scripted.docker.says("kill", &id, &[("signal", "15")]);
        keys.next(LIMIT, Seen::is_draining)?;
        let since = Instant::now();
        scripted.docker.says("die", &id, &[("exitCode", "0")]);
        scripted.docker.remove_unseen(&id);
        stop.take(since, &keys, &floor_keys, Seen::is_removal)?;
        eprint!("\rregistrar: {} of {rounds} scripted starts   ", round + 1);
    }
    eprintln!();
    drop(agent);
    Ok(vec![
        start.row("`start` -> key, checked, application listens already (scripted Docker)", "10 ms"),
        stop.row("`die` -> key gone (scripted Docker)", "5 ms"),
    ])
}

/// Containers whose application listens some time after the start: from that moment to the key.
async fn late_listeners(tools: &Tools, rounds: usize) -> anyhow::Result<Row> {
    let scripted = Scripted::start()?;
    let prefix = tools.prefix();
    let agent = agent(tools, &prefix, &scripted.socket())?;
    let keys = KeyClock::start(tools.etcd.address(), &prefix, "late")?;
    scripted.wait_followed(1)?;
    let mut times = Times::default();
    for round in 0..rounds {
        let port = e2e::ports::free_port();
        // As the container's own address it is another one than the host's.
        let own = (Ipv4Addr::new(127, 98, 0, 1), port);
        let id = scripted.docker.run(&Spec::new(&format!("late-{round}"), "late", own, port));
        sleep(LATE).await;
        let since = Instant::now();
        let listener = std::net::TcpListener::bind(own)?;
        times.push(keys.next(LIMIT, Seen::is_running)?.at.saturating_duration_since(since));
        scripted.docker.stop(&id);
        keys.next(LIMIT, Seen::is_removal)?;
        scripted.docker.remove(&id);
        drop(listener);
        eprint!("\rregistrar: {} of {rounds} late listeners   ", round + 1);
    }
    eprintln!();
    drop(agent);
    let what = format!("application listens {} ms after the start -> key", LATE.as_millis());
    Ok(Row::new(&what, "50 ms", format!("{}\nfloor: half of the 30 ms between two probes", times.shown())))
}

/// Memory and CPU time with so many containers that stay as they are; and the memory by itself, in MiB.
async fn at_rest(tools: &Tools, count: usize, target: &str) -> anyhow::Result<(Vec<Row>, f64)> {
    let scripted = Scripted::start()?;
    for number in 0..count {
        scripted.docker.run_unseen(&scripted.spec(u16::try_from(number)?));
    }
    let prefix = tools.prefix();
    let begun = Instant::now();
    let mut agent = agent(tools, &prefix, &scripted.socket())?;
    let registered = tools.wait_count(&prefix, count).await?;
    eprintln!("registrar: {count} containers registered in {:.0} ms", (registered - begun).as_secs_f64() * 1000.0);
    sleep(AT_REST).await;
    let (pid, before) = (agent.process().pid(), Instant::now());
    let cpu = cpu_ms(pid)?;
    sleep(AT_REST).await;
    let share = (cpu_ms(pid)? - cpu) as f64 / before.elapsed().as_secs_f64() / 10.0;
    ensure!(tools.count(&prefix)? == count, "not all of {count} stayed registered");
    let rss = memory_mb(pid, "VmRSS")?;
    let memory = format!("{rss:.1} MB at rest, {:.1} MB at most", memory_mb(pid, "VmHWM")?);
    let mut rows = vec![Row::new(&format!("memory, {count} containers"), target, memory)];
    let target = if count == 500 { "3 %" } else { "" };
    rows.push(Row::new(
        &format!("CPU time, {count} containers asked each 5 s"),
        target,
        format!(
            "{share:.2} % of a core; all registered {:.0} ms after the start",
            (registered - begun).as_secs_f64() * 1000.0
        ),
    ));
    Ok((rows, rss))
}

/// `kill -9` of the agent, two containers removed, the agent started again: what is left of the two.
async fn after_kill_9(tools: &Tools) -> anyhow::Result<Row> {
    let scripted = Scripted::start()?;
    let ids: Vec<String> = (0..4).map(|number| scripted.docker.run_unseen(&scripted.spec(number))).collect();
    let prefix = tools.prefix();
    let mut agent = agent(tools, &prefix, &scripted.socket())?;
    tools.wait_count(&prefix, 4).await?;
    let keys = KeyClock::start(tools.etcd.address(), &prefix, "web")?;
    agent.process().kill_now().await;
    ids[..2].iter().for_each(|id| scripted.docker.remove_unseen(id));
    let begun = Instant::now();
    agent.start_again();
    let gone = tools.wait_count(&prefix, 2).await?;
    sleep(Duration::from_secs(2)).await;
    let stale = tools.count(&prefix)? - 2;
    let removed = keys.all().into_iter().filter(Seen::is_removal).count();
    let measured = format!(
        "{stale}, removed {:.0} ms after the restart; {removed} keys were ever removed",
        (gone - begun).as_secs_f64() * 1000.0
    );
    Ok(Row::new("stale keys after kill -9, two of four containers removed, restart", "0", measured))
}
