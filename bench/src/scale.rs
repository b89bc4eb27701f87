//! One large site on one etcd, by the v3 API: what filling it, listing it, following it and keeping its keys alive cost, what a discoverer
//! takes, and when a change has arrived. And where v2 ends. What does not fit on one machine (200 discoverers, each with a HAProxy) is reckoned
//! from what was measured.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use clap::Args;
use e2e::cluster::Api;
use nix::unistd::Pid;
use registry::{ApiChoice, InstanceKey, Lease, Ownership, Poll, Prefix, Store, StoreOptions};
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep};

use crate::machine;
use crate::stats::{Row, Times};
use crate::traffic::App;
use crate::wire::{Kept, cli, get_once};
use crate::world::{Subject, Tools, address};

/// The name of the measurement in the document.
pub(crate) const NAME: &str = "scale";
/// So many instances a service has.
const PER_SERVICE: usize = 100;
/// The service whose changes are timed; it takes what no rule takes.
const TIMED: &str = "timed";
const TIMED_VALUE: &str = "{\"status\":\"running\",\"attributes\":{\"balance\":\"first\"}}";
/// How many hosts write at once, and renew at once.
const AT_ONCE: usize = 16;
/// Nothing is to expire meanwhile.
const TTL: Duration = Duration::from_secs(3600);
/// The default of `--ttl`, and how often a registrar renews within it: a third of it, shortened by chance by up to a fifth.
const USUAL_TTL: Duration = Duration::from_secs(20);
const RENEWALS: f64 = 3.0 / 0.9;
/// How long renewals are counted.
const SPAN: Duration = Duration::from_secs(10);
/// How often the whole is listed.
const LISTINGS: usize = 3;
/// How many list at once, each with the limit on a request that a discoverer has by itself.
const CROWD: usize = 50;
const REQUEST_LIMIT: Duration = Duration::from_secs(3);
/// How many changes are timed.
const CHANGES: usize = 5;
/// So long it is quiet between two changes: HAProxy's check of the file takes seconds at that size.
const PAUSE: Duration = Duration::from_secs(4);
/// How long a change, or a listing in one reply, may take.
const LIMIT: Duration = Duration::from_secs(60);
/// What a listing is trusted for, as `registry::watch` has it: so many times what it took, within bounds.
const TRUST: (f64, f64, f64) = (1000.0, 300.0, 3600.0);
/// The rates of writes by v2 that are tried.
const V2_RATES: [u32; 2] = [150, 300];
const V2_SPAN: Duration = Duration::from_secs(25);

/// How large a site.
#[derive(Debug, Args)]
pub(crate) struct Size {
    /// How many instances
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(100..=200_000))]
    instances: u32,
    /// On how many hosts, each with one registrar
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=5000))]
    hosts: u32,
    /// How many discoverers are reckoned with; so many watches are open
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=1000))]
    discoverers: u32,
    /// Writes the results into docs/scaling.md
    #[arg(long)]
    pub(crate) write: bool,
    /// A discoverer that is built already; without it the release build is made first
    #[arg(long, value_name = "PATH")]
    pub(crate) discoverer: Option<PathBuf>,
}

impl Size {
    /// The command that measures this.
    pub(crate) fn command(&self) -> String {
        let Self { instances, hosts, discoverers, .. } = self;
        format!(
            "cargo run --release -p bench -- scale --instances {instances} --hosts {hosts} --discoverers {discoverers}"
        )
    }
}

/// What one registrar keeps.
struct Host {
    lease: Lease,
    keys: Vec<(InstanceKey, Ownership)>,
}

/// What was measured of etcd, per piece, in seconds of its processor time: what is reckoned comes from this.
struct Costs {
    /// A listing, and how long it took.
    listing: f64,
    listing_took: f64,
    /// A renewal of one registrar's keys.
    renewal: f64,
    /// A change with all watches open.
    change: f64,
}

pub(crate) async fn measure(tools: &Tools, size: &Size) -> anyhow::Result<Vec<Row>> {
    let instances = size.instances as usize;
    let prefix: Prefix = tools.prefix().parse()?;
    let store = store(tools, registry::Api::V3, LIMIT)?;
    let app = App::closing("old")?;
    let mut rows = Vec::new();
    let (hosts, row) = fill(tools, size, &store, &prefix, app.port()).await?;
    rows.push(row);
    rows.push(in_one_reply(tools, &prefix, instances)?);
    let (listing, listing_took, row) = by_pages(tools, &store, &prefix, instances).await?;
    rows.push(row);
    rows.push(crowd(tools, &prefix, instances).await?);
    let (renewal, row) = renewals(tools, &store, hosts, size).await?;
    rows.push(row);
    let (change, row) = fan_out(tools, &store, &prefix, size).await?;
    rows.push(row);
    rows.extend(discoverer(tools, &prefix, instances).await?);
    rows.extend(reckoned(size, &Costs { listing, listing_took, renewal, change }));
    rows.extend(end_of_v2(tools).await?);
    Ok(rows)
}

fn store(tools: &Tools, api: registry::Api, request_timeout: Duration) -> anyhow::Result<Store> {
    let mut options = StoreOptions::new(registry::parse_endpoints(&tools.etcd.url())?);
    options.api = ApiChoice::Only(api);
    options.request_timeout = request_timeout;
    Ok(Store::new(options)?)
}

fn etcd_rss(tools: &Tools) -> anyhow::Result<f64> {
    machine::memory_mb(tools.etcd.pid(), "VmRSS")
}

/// A value as the agent writes it.
fn value(number: usize, host: usize) -> String {
    format!(
        "{{\"status\":\"running\",\"id\":\"{number:064x}\",\"agent\":\"{host:016x}\",\"name\":\"web-{number}\",\
         \"host\":\"host-{host}\",\"attributes\":{{}},\"registered\":\"2026-01-01T00:00:00Z\"}}"
    )
}

/// Each host gets a lease and writes its keys one after the other, as registrars do.
async fn fill(
    tools: &Tools,
    size: &Size,
    store: &Store,
    prefix: &Prefix,
    port: u16,
) -> anyhow::Result<(Vec<Host>, Row)> {
    let (instances, hosts) = (size.instances as usize, size.hosts as usize);
    let services = instances.div_ceil(PER_SERVICE);
    let (cpu, begun) = (tools.etcd.cpu_time(), Instant::now());
    let mut writers = JoinSet::new();
    for part in 0..AT_ONCE {
        let (store, prefix) = (store.clone(), prefix.clone());
        writers.spawn(async move {
            let mut written = Vec::new();
            for host in (part..hosts).step_by(AT_ONCE) {
                let lease = store.grant(TTL).await?;
                let mut keys = Vec::new();
                for number in (host..instances).step_by(hosts) {
                    let path = format!("{}/s{:04}/{}", prefix.path(), number % services, address(number, port));
                    let key = InstanceKey::parse(&prefix, &path)?;
                    let owned = store.put(&key, &value(number, host), &lease).await?;
                    keys.push((key, owned));
                }
                written.push(Host { lease, keys });
            }
            anyhow::Ok(written)
        });
    }
    let mut all = Vec::new();
    while let Some(written) = writers.join_next().await {
        all.append(&mut written??);
        eprint!("\rscale: {} of {hosts} hosts are written   ", all.len());
    }
    eprintln!();
    let (took, cpu) = (begun.elapsed().as_secs_f64(), (tools.etcd.cpu_time() - cpu).as_secs_f64());
    // The one that is timed has an instance from the beginning.
    let key = InstanceKey::parse(prefix, &format!("{}/{TIMED}/127.250.0.1:{port}", prefix.path()))?;
    let lease = store.grant(TTL).await?;
    store.put(&key, TIMED_VALUE, &lease).await?;
    let row = Row::new(
        &format!("{hosts} registrars write {instances} keys of {services} services, {AT_ONCE} at a time"),
        "",
        format!(
            "{took:.0} s, {:.0} writes/s, {:.2} ms of etcd's CPU time each; etcd's RSS then {:.0} MB",
            instances as f64 / took,
            cpu * 1000.0 / instances as f64,
            etcd_rss(tools)?
        ),
    );
    Ok((all, row))
}

/// The whole directory in one reply, as it was asked for before there were pages.
fn in_one_reply(tools: &Tools, prefix: &Prefix, instances: usize) -> anyhow::Result<Row> {
    let range = json!({
        "key": BASE64.encode(format!("{}/", prefix.path())),
        "range_end": BASE64.encode(format!("{}0", prefix.path())),
    });
    let (cpu, begun) = (tools.etcd.cpu_time(), Instant::now());
    let answer = Kept::open_for(tools.etcd.address(), LIMIT)?.ask("POST", "/v3/kv/range", &range.to_string(), true)?;
    let (took, cpu) = (begun.elapsed(), tools.etcd.cpu_time() - cpu);
    ensure!(answer.status == 200, "{}", answer.status);
    Ok(Row::new(
        &format!("all {instances} keys in one reply of etcd's"),
        "3 s, the limit on a request",
        format!(
            "{:.1} s, {:.1} s of etcd's CPU time, {:.0} MB; etcd's RSS then {:.0} MB",
            took.as_secs_f64(),
            cpu.as_secs_f64(),
            answer.body.len() as f64 / 1e6,
            etcd_rss(tools)?
        ),
    ))
}

/// The same by pages, as discoverers ask for it.
async fn by_pages(tools: &Tools, store: &Store, prefix: &Prefix, instances: usize) -> anyhow::Result<(f64, f64, Row)> {
    let mut times = Times::default();
    let cpu = tools.etcd.cpu_time();
    for _ in 0..LISTINGS {
        let begun = Instant::now();
        let listing = store.list(prefix).await?;
        times.push(begun.elapsed());
        ensure!(listing.entries.len() == instances + 1, "{} keys were listed", listing.entries.len());
    }
    let cpu = (tools.etcd.cpu_time() - cpu).as_secs_f64() / LISTINGS as f64;
    let row = Row::new(
        "the same by pages, all of one revision",
        "",
        format!("{}; {cpu:.1} s of etcd's CPU time; etcd's RSS then {:.0} MB", times.shown(), etcd_rss(tools)?),
    );
    Ok((cpu, times.median() / 1000.0, row))
}

/// Many who list at the same time, as discoverers do when etcd is restarted.
async fn crowd(tools: &Tools, prefix: &Prefix, instances: usize) -> anyhow::Result<Row> {
    let (cpu, begun) = (tools.etcd.cpu_time(), Instant::now());
    let mut listers = JoinSet::new();
    for _ in 0..CROWD {
        let (store, prefix) = (store(tools, registry::Api::V3, REQUEST_LIMIT)?, prefix.clone());
        listers.spawn(async move { (store.list(&prefix).await.map(|listing| listing.entries.len()), begun.elapsed()) });
    }
    let (mut times, mut failed) = (Times::default(), Vec::new());
    while let Some(lister) = listers.join_next().await {
        match lister? {
            (Ok(keys), took) => {
                ensure!(keys == instances + 1, "{keys} keys were listed");
                times.push(took);
            }
            (Err(error), _) => failed.push(error.to_string()),
        }
        eprint!("\rscale: {} of {CROWD} have listed   ", times.len() + failed.len());
    }
    eprintln!();
    for error in &failed {
        eprintln!("scale: {error}");
    }
    let each = (tools.etcd.cpu_time() - cpu).as_secs_f64() / CROWD as f64;
    Ok(Row::new(
        &format!("{CROWD} list at once, with the client on the same cores"),
        "0 fail",
        format!("{} failed; {}; {each:.1} s of etcd's CPU time each", failed.len(), times.shown()),
    ))
}

/// One registrar after the other renews its lease and looks at its keys, as many at a time as etcd is to be kept busy by.
async fn renewals(tools: &Tools, store: &Store, hosts: Vec<Host>, size: &Size) -> anyhow::Result<(f64, Row)> {
    let per_host = hosts.iter().map(|host| host.keys.len()).max().unwrap_or_default();
    let (cpu, begun) = (tools.etcd.cpu_time(), Instant::now());
    let mut renewers = JoinSet::new();
    let mut hosts = hosts.into_iter();
    for _ in 0..AT_ONCE {
        let part: Vec<Host> = hosts.by_ref().take((size.hosts as usize).div_ceil(AT_ONCE)).collect();
        let store = store.clone();
        renewers.spawn(async move {
            let mut count = 0_u32;
            for host in part.iter().cycle() {
                if begun.elapsed() >= SPAN {
                    break;
                }
                for kept in store.keep(&host.keys, &host.lease).await? {
                    kept?;
                }
                count += 1;
            }
            anyhow::Ok(count)
        });
    }
    let mut count = 0;
    while let Some(renewed) = renewers.join_next().await {
        count += renewed??;
    }
    let (took, cpu) = (begun.elapsed().as_secs_f64(), (tools.etcd.cpu_time() - cpu).as_secs_f64());
    let (rate, each) = (f64::from(count) / took, cpu / f64::from(count));
    let row = Row::new(
        &format!("renewals of a lease with {per_host} keys, as many as go"),
        "",
        format!("{rate:.0}/s beside the client on the same cores; {:.1} ms of etcd's CPU time each", each * 1000.0),
    );
    Ok((each, row))
}

/// As many watches as there are discoverers, and one change after the other.
async fn fan_out(tools: &Tools, store: &Store, prefix: &Prefix, size: &Size) -> anyhow::Result<(f64, Row)> {
    let (sender, seen) = mpsc::channel();
    for _ in 0..size.discoverers {
        let watch = open_watch(tools.etcd.address(), prefix)?;
        let sender = sender.clone();
        std::thread::spawn(move || tell(watch, &sender));
    }
    let key = InstanceKey::parse(prefix, &format!("{}/s0000/127.251.0.1:80", prefix.path()))?;
    let lease = store.grant(TTL).await?;
    let (mut first, mut last) = (Times::default(), Times::default());
    let cpu = tools.etcd.cpu_time();
    let rounds = CHANGES * 4;
    for round in 0..rounds {
        store.put(&key, &value(round, 0), &lease).await?;
        let returned = Instant::now();
        let mut at = Vec::new();
        for _ in 0..size.discoverers {
            at.push(seen.recv_timeout(LIMIT).context("a watch did not hear of a change")?);
        }
        let after = |at: Option<&Instant>| at.map_or(Duration::ZERO, |at| at.saturating_duration_since(returned));
        first.push(after(at.iter().min()));
        last.push(after(at.iter().max()));
    }
    let each = (tools.etcd.cpu_time() - cpu).as_secs_f64() / rounds as f64;
    store.give_back(&lease).await?;
    let row = Row::new(
        &format!("a change, with {} watches open: PUT returned -> the first has it, the last has it", size.discoverers),
        "",
        format!("{}; {}; {:.1} ms of etcd's CPU time a change", first.shown(), last.shown(), each * 1000.0),
    );
    Ok((each, row))
}

fn open_watch(etcd: SocketAddr, prefix: &Prefix) -> anyhow::Result<BufReader<TcpStream>> {
    let create = json!({"create_request": {
        "key": BASE64.encode(format!("{}/", prefix.path())),
        "range_end": BASE64.encode(format!("{}0", prefix.path())),
        "prev_kv": true,
    }});
    let body = create.to_string();
    let mut stream = TcpStream::connect(etcd)?;
    stream.set_read_timeout(Some(LIMIT))?;
    let head = format!("POST /v3/watch HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n", body.len());
    stream.write_all(format!("{head}{body}").as_bytes())?;
    let mut watch = BufReader::new(stream);
    let mut line = String::new();
    while !line.contains("\"created\"") {
        line.clear();
        ensure!(watch.read_line(&mut line)? > 0, "etcd ended a watch");
    }
    Ok(watch)
}

/// Says of each change when it came, until nobody listens or the watch ends.
fn tell(mut watch: BufReader<TcpStream>, sender: &mpsc::Sender<Instant>) {
    let mut line = String::new();
    while watch.read_line(&mut line).is_ok_and(|length| length > 0) {
        if line.contains("\"events\"") && sender.send(Instant::now()).is_err() {
            return;
        }
        line.clear();
    }
}

/// A discoverer with its HAProxy: its start, what it takes, and a change in traffic.
async fn discoverer(tools: &Tools, prefix: &Prefix, instances: usize) -> anyhow::Result<Vec<Row>> {
    let new = App::closing("new")?;
    let name = prefix.path().trim_start_matches('/').to_owned();
    // Before the other one, by its address: the service takes the first that is there.
    let key = format!("{name}/{TIMED}/127.249.0.1:{}", new.port());
    let mut connection = Kept::open(tools.etcd.address())?;
    tools.put_by(Api::V3, &mut connection, &key, TIMED_VALUE)?;
    let etcd = tools.etcd.cpu_time();
    let subject = Subject::start_large(tools, &name, TIMED).await?;
    let etcd = tools.etcd.cpu_time() - etcd;
    sleep(PAUSE * 2).await;
    let mut rows = vec![Row::new(
        &format!("a discoverer's start -> HAProxy answers, {instances} servers that are not checked"),
        "",
        format!(
            "{:.1} s; {:.1} s of its own CPU time 8 s later, {:.1} s of etcd's; RSS {:.0} MB, {:.0} MB at most; its file {:.0} MB; HAProxy's RSS {:.0} MB",
            subject.served_after.as_secs_f64(),
            subject.cpu_ms()? as f64 / 1000.0,
            etcd.as_secs_f64(),
            subject.memory_mb("VmRSS")?,
            subject.memory_mb("VmHWM")?,
            std::fs::metadata(subject.file())?.len() as f64 / 1e6,
            haproxy_rss(&subject)?,
        ),
    )];
    let answer = get_once(subject.http)?;
    ensure!(answer == "new", "HAProxy answers {answer}; {}", subject.last_words());
    // One that was quiet for so long is closed.
    let mut connection = Kept::open(tools.etcd.address())?;
    let (mut added, mut removed) = (Times::default(), Times::default());
    let (cpu, reloads) = (subject.cpu_ms()?, subject.reloads().await?);
    for round in 0..CHANGES {
        for (is_in, times) in [(false, &mut removed), (true, &mut added)] {
            if is_in {
                tools.put_by(Api::V3, &mut connection, &key, TIMED_VALUE)?;
            } else {
                tools.delete_by(Api::V3, &mut connection, &key)?;
            }
            let returned = Instant::now();
            while (get_once(subject.http)? == "new") != is_in {
                ensure!(returned.elapsed() < LIMIT, "a change did not arrive; {}", subject.last_words());
            }
            times.push(returned.elapsed());
            sleep(PAUSE).await;
        }
        eprint!("\rscale: {} of {CHANGES} changes   ", round + 1);
    }
    eprintln!();
    let each = (subject.cpu_ms()? - cpu) as f64 / (2 * CHANGES) as f64;
    rows.push(Row::new(
        "PUT returned -> the new server answers; DELETE returned -> no more requests",
        "",
        format!(
            "{}; {}; {each:.0} ms of the discoverer's CPU time a change, with the file and the registry's copy; {} reloads",
            added.shown(),
            removed.shown(),
            subject.reloads().await? - reloads
        ),
    ));
    Ok(rows)
}

/// The memory of its HAProxy's worker, in MiB.
fn haproxy_rss(subject: &Subject) -> anyhow::Result<f64> {
    let info = cli(&subject.socket(), "show info")?;
    let pid = info.lines().find_map(|line| line.strip_prefix("Pid: ")?.trim().parse().ok());
    machine::memory_mb(Pid::from_raw(pid.context("HAProxy does not tell its pid")?), "VmRSS")
}

/// What so many discoverers and registrars come to on one etcd, from what one of each takes.
fn reckoned(size: &Size, costs: &Costs) -> Vec<Row> {
    let (hosts, discoverers) = (f64::from(size.hosts), f64::from(size.discoverers));
    let (factor, shortest, longest) = TRUST;
    let trust = (factor * costs.listing_took).clamp(shortest, longest);
    let renewals = hosts * RENEWALS / USUAL_TTL.as_secs_f64();
    let cores = |count: f64, each: f64| format!("{:.2} of a core", count * each);
    let row = |what: String, measured: String| Row::new(&format!("reckoned: {what}"), "", measured);
    vec![
        row(
            format!("{hosts} registrars renew, TTL {} s", USUAL_TTL.as_secs()),
            format!("{renewals:.0}/s, {}", cores(renewals, costs.renewal)),
        ),
        row(
            format!("{discoverers} discoverers list anew, each {trust:.0} s; were it each {shortest:.0} s"),
            format!("{}; {}", cores(discoverers / trust, costs.listing), cores(discoverers / shortest, costs.listing)),
        ),
        row(format!("10 changes a second reach {discoverers} discoverers"), cores(10.0, costs.change)),
        row(
            format!("{discoverers} discoverers are started at once, one core of etcd's lists for all"),
            format!("{:.0} s until the last has its listing", discoverers * costs.listing),
        ),
    ]
}

/// How often one who follows a quiet directory by v2 must list it anew, while others write elsewhere.
async fn end_of_v2(tools: &Tools) -> anyhow::Result<Vec<Row>> {
    let mut rows = Vec::new();
    for rate in V2_RATES {
        rows.push(at_rate(tools, rate).await?);
    }
    Ok(rows)
}

async fn at_rate(tools: &Tools, rate: u32) -> anyhow::Result<Row> {
    let store = store(tools, registry::Api::V2, Duration::from_secs(3))?;
    let prefix: Prefix = tools.prefix().parse()?;
    let lease = store.grant(TTL).await?;
    let quiet = InstanceKey::parse(&prefix, &format!("{}/10.0.0.1:80", prefix.path()))?;
    store.put(&quiet, "running", &lease).await?;
    let others: Prefix = tools.prefix().parse()?;
    let busy = InstanceKey::parse(&others, &format!("{}/10.0.0.1:80", others.path()))?;
    let owned = store.put(&busy, "running", &lease).await?;
    let writer = store.clone();
    let mut writing = JoinSet::new();
    writing.spawn(async move {
        let mut ticks = interval(Duration::from_secs(1) / rate);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
        let (mut owned, mut count) = (owned, 0_u32);
        let begun = Instant::now();
        while begun.elapsed() < V2_SPAN {
            ticks.tick().await;
            let kept = writer.keep(&[(busy.clone(), owned)], &lease).await?.remove(0)?;
            owned = kept.ownership;
            count += 1;
        }
        anyhow::Ok(f64::from(count) / begun.elapsed().as_secs_f64())
    });
    let (mut listings, mut polls) = (0, 0);
    let begun = Instant::now();
    'listed: while begun.elapsed() < V2_SPAN {
        let mut changes = store.changes(&prefix, store.list(&prefix).await?.position);
        listings += 1;
        while begun.elapsed() < V2_SPAN {
            match changes.next().await? {
                Poll::ListAgain(_) => continue 'listed,
                Poll::Quiet(_) | Poll::Events(..) => polls += 1,
            }
        }
    }
    let written = writing.join_next().await.context("nobody wrote")???;
    Ok(Row::new(
        &format!("v2: {written:.0} refreshes/s elsewhere, and one who follows a directory where nothing happens"),
        "",
        format!("{} listings anew within {} s, {polls} polls that were told nothing", listings - 1, V2_SPAN.as_secs()),
    ))
}
