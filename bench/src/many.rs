//! Many discoverers on one etcd: from the reply to a write until the first and the last of them has it in its file, beside as many long
//! polls that know nothing else, and what etcd takes for it.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use e2e::cluster::Api;
use e2e::process::Process;
use tempfile::TempDir;
use tokio::time::sleep;

use crate::Amount;
use crate::stats::{Measured, Row, Times};
use crate::wire::Kept;
use crate::world::{SERVICE, Tools, copy_templates, keys, record, wait};

const DISCOVERERS: usize = 50;
const INSTANCES: usize = 1000;
const LIMIT: Duration = Duration::from_secs(30);
/// Longer than two reloads are apart.
const PAUSE: Duration = Duration::from_millis(1500);
const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// A discoverer that keeps a file; there is no HAProxy behind it, and nothing checks the file: 50 on this machine would measure that.
struct Keeper {
    process: Process,
    file: PathBuf,
    _dir: TempDir,
}

impl Keeper {
    fn start(tools: &Tools, api: Api, prefix: &str) -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new().prefix("bench-many-").tempdir()?;
        let path = |name: &str| dir.path().join(name).display().to_string();
        let template = copy_templates(&dir.path().join("templates"))?.display().to_string();
        let (url, file) = (tools.etcd.url(), path("haproxy.cfg"));
        let args = [
            "--etcd",
            &url,
            "--etcd-api",
            api.flag(),
            "--key",
            prefix,
            "--template",
            &template,
            "--output",
            &file,
            "--state-dir",
            &path("state"),
            "--haproxy",
            &path("absent"),
            "--reload-command",
            "true",
            "--admin",
            "off",
            "--min-interval",
            "100ms",
            // Each change is a reload here, since there is no runtime API; twenty within a minute would be as many as an old worker
            // survives, and the next one would wait for it.
            "--set",
            "mworker_max_reloads=1000",
        ]
        .map(str::to_owned);
        fs::create_dir(dir.path().join("state"))?;
        let process = Process::start("discoverer", tools.discoverer()?, &args, &dir.path().join("log"), dir.path());
        Ok(Self { process, file: file.into(), _dir: dir })
    }
}

/// Whether a file names a server.
fn has(file: &Path, server: &str) -> bool {
    fs::read_to_string(file).is_ok_and(|text| text.contains(server))
}

pub(crate) async fn measure(tools: &Tools, amount: &Amount) -> anyhow::Result<Measured> {
    let mut rows = Vec::new();
    for api in [Api::V2, Api::V3] {
        rows.extend(by(tools, api, amount.rounds.div_ceil(5)).await?);
    }
    Ok(Measured::of(rows))
}

async fn by(tools: &Tools, api: Api, rounds: usize) -> anyhow::Result<Vec<Row>> {
    let prefix = tools.prefix();
    tools.fill_by(api, &keys(&prefix, INSTANCES, 8000, ""))?;
    let keepers: Vec<Keeper> =
        (0..DISCOVERERS).map(|_| Keeper::start(tools, api, &prefix)).collect::<anyhow::Result<_>>()?;
    wait("all have their first file", || Ok(keepers.iter().all(|keeper| has(&keeper.file, "server ")))).await?;
    sleep(PAUSE * 2).await;
    let (mut first, mut last, mut floor) = (Times::default(), Times::default(), Times::default());
    let mut connection = Kept::open(tools.etcd.address())?;
    let cpu = tools.etcd.cpu_time();
    for round in 1..=rounds {
        let server = format!("127.201.0.{round}");
        let polls = polls(tools.etcd.address(), &prefix)?;
        tools.put_by(api, &mut connection, &format!("{prefix}/{SERVICE}/{server}:8000"), &record(round, ""))?;
        let returned = Instant::now();
        let mut left: Vec<&Keeper> = keepers.iter().collect();
        while !left.is_empty() {
            let before = left.len();
            left.retain(|keeper| !has(&keeper.file, &server));
            if before == DISCOVERERS && left.len() < before {
                first.push(returned.elapsed());
            }
            ensure!(returned.elapsed() < LIMIT, "{} of {DISCOVERERS} do not have the change", left.len());
            sleep(LOOK_AGAIN).await;
        }
        last.push(returned.elapsed());
        if api == Api::V2 {
            floor.push(polls.recv_timeout(LIMIT)?.saturating_duration_since(returned));
        }
        eprint!("\rmany: {api:?}, {round} of {rounds} changes   ");
        sleep(PAUSE).await;
    }
    eprintln!();
    let per_change = (tools.etcd.cpu_time() - cpu).as_secs_f64() * 1000.0 / rounds as f64;
    let mut rss = 0.0_f64;
    for keeper in &keepers {
        rss = rss.max(crate::machine::memory_mb(keeper.process.pid(), "VmRSS")?);
    }
    let beside = if api == Api::V2 {
        format!("; floor, {DISCOVERERS} long polls: the last {}", floor.shown())
    } else {
        String::new()
    };
    Ok(vec![
        Row::new(
            &format!(
                "{DISCOVERERS} discoverers, {INSTANCES} instances, {}: PUT returned -> in the first file, in the last",
                api.flag()
            ),
            "",
            format!("{}; {}{beside}", first.shown(), last.shown()),
        ),
        Row::new(
            &format!("what {DISCOVERERS} discoverers take, {}", api.flag()),
            "",
            format!(
                "{per_change:.0} ms of etcd's CPU time a change, 1.5 s of quiet included; at most {rss:.1} MB each"
            ),
        ),
    ])
}

/// As many long polls as there are discoverers: gives the moment at which the last one has its event.
fn polls(etcd: SocketAddr, prefix: &str) -> anyhow::Result<mpsc::Receiver<Instant>> {
    let (done, last) = mpsc::channel();
    let mut threads = Vec::new();
    for _ in 0..DISCOVERERS {
        let mut connection = Kept::open(etcd)?;
        let path = format!("/v2/keys/{prefix}?wait=true&recursive=true");
        threads.push(std::thread::spawn(move || {
            let answer = connection.ask("GET", &path, "", false)?;
            ensure!(answer.status == 200, "{}", answer.status);
            anyhow::Ok(Instant::now())
        }));
    }
    std::thread::spawn(move || {
        let ends: Option<Vec<Instant>> = threads.into_iter().map(|thread| thread.join().ok()?.ok()).collect();
        let Some(latest) = ends.and_then(|ends| ends.into_iter().max()) else { bail!("a long poll failed") };
        done.send(latest).context("nobody waits")
    });
    // Each has to be waiting before anything is written.
    std::thread::sleep(Duration::from_millis(100));
    Ok(last)
}
