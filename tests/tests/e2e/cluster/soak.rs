//! Churn, and faults of every part in an order that a seed gives, one upon the other. After each round of them all comes to rest,
//! and what must always hold is looked at. `./test --full` takes longer, with another seed each time, which it prints.
//!
//! `E2E_SOAK_SEED` is the seed, `E2E_SOAK_ROUNDS` how many rounds the long one has, and `E2E_SOAK_RECORD` the page into which it writes
//! what came of it.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::fs;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use e2e::haproxy::{cli, reloads};
use e2e::load::{Failure, Kind};
use e2e::process::memory_kib;
use e2e::{http, secs, wait_until, workspace};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use super::{Api, Cluster, MEMBERS, Plan, SETTLED, Site};

/// So many faults begin in one round.
const FAULTS: usize = 8;
/// What a round may take. Its clients go on for two minutes at most.
const ROUND: Duration = secs(150);
/// What has gone while no registrar ran is given up when its registrar is back for twice the time to live of its keys, for which 20 s are
/// taken at least: until then its instance is suspect, and these applications answer for ever.
const GIVEN_UP: Duration = secs(40 + SETTLED.as_secs());
/// How long old workers of HAProxy may finish.
const DRAIN: Duration = secs(3);
/// Keys live so long: some of the faults are longer.
const TTL: &str = "5s";
/// A request may fail that was sent so soon after a killed HAProxy was back: a client that keeps its connection finds only then that it
/// has ended.
const MOMENT: Duration = Duration::from_millis(500);
/// What a program may have more at the end than after the first round: what allocators keep, and connections.
const MORE_MEMORY_KB: u64 = 12 << 10;
const MORE_DESCRIPTORS: usize = 24;

on! {
    V2 in soak_v2: churn_and_faults_of_every_part_lose_no_request_and_leave_nothing_behind;
}

long_on! {
    V2 in long_soak_v2: many_rounds_of_churn_and_faults_lose_no_request_and_leave_nothing_behind;
    V3 in long_soak_v3: many_rounds_of_churn_and_faults_lose_no_request_and_leave_nothing_behind;
}

async fn churn_and_faults_of_every_part_lose_no_request_and_leave_nothing_behind(api: Api) {
    soak(api, variable("E2E_SOAK_SEED").unwrap_or(1), 2).await;
}

async fn many_rounds_of_churn_and_faults_lose_no_request_and_leave_nothing_behind(api: Api) {
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let seed = variable("E2E_SOAK_SEED").unwrap_or_else(now);
    soak(api, seed, variable("E2E_SOAK_ROUNDS").unwrap_or(12)).await;
}

fn variable(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok().filter(|value| !value.is_empty())?;
    Some(value.parse().unwrap_or_else(|error| panic!("{name}={value}: {error}")))
}

/// A part that falls ill.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    Member,
    Agent,
    Discoverer,
    Haproxy,
    Docker,
}

/// What happens to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    /// SIGKILL; it is started again.
    Killed(Part),
    /// SIGTERM; it is started again.
    Stopped(Part),
    /// SIGSTOP, and SIGCONT.
    Frozen(Part),
    /// A member of the cluster is cut off from the others.
    CutOff,
    /// All members are ended at once.
    AllKilled,
    /// etcd forgets the events that are past.
    Forgets,
    /// Somebody else reloads HAProxy.
    Reloaded,
    /// Docker ends the streams of its events.
    Ends,
    /// Docker says nothing on the streams that are open.
    Mute,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Killed(part) => write!(f, "{part:?} killed"),
            Self::Stopped(part) => write!(f, "{part:?} restarted"),
            Self::Frozen(part) => write!(f, "{part:?} frozen"),
            Self::CutOff => f.write_str("Member cut off"),
            Self::AllKilled => f.write_str("all members killed"),
            Self::Forgets => f.write_str("etcd forgets its events"),
            Self::Reloaded => f.write_str("Haproxy reloaded by somebody"),
            Self::Ends => f.write_str("Docker ends its streams"),
            Self::Mute => f.write_str("Docker mute"),
        }
    }
}

const FAULTS_OF_PARTS: [Fault; 15] = [
    Fault::Killed(Part::Member),
    Fault::Frozen(Part::Member),
    Fault::CutOff,
    Fault::AllKilled,
    Fault::Forgets,
    Fault::Killed(Part::Agent),
    Fault::Stopped(Part::Agent),
    Fault::Frozen(Part::Agent),
    Fault::Killed(Part::Discoverer),
    Fault::Stopped(Part::Discoverer),
    Fault::Frozen(Part::Discoverer),
    Fault::Killed(Part::Haproxy),
    Fault::Reloaded,
    Fault::Ends,
    Fault::Mute,
];

impl Fault {
    fn part(self) -> Part {
        match self {
            Self::Killed(part) | Self::Stopped(part) | Self::Frozen(part) => part,
            Self::CutOff | Self::AllKilled | Self::Forgets => Part::Member,
            Self::Reloaded => Part::Haproxy,
            Self::Ends | Self::Mute => Part::Docker,
        }
    }
}

/// What is done in a round, one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Act {
    Begin(Fault, usize),
    /// The fault has lasted so long, without what its begin and those of others took.
    End(Fault, usize, Duration),
    Pause(Duration),
}

/// A fault that has begun, and when it ends, both since the round began.
#[derive(Debug)]
struct Ill {
    fault: Fault,
    member: usize,
    since: Duration,
    until: Duration,
}

/// Takes out what is over by now, and gives how it ends.
fn heal(ill: &mut Vec<Ill>, now: Duration) -> Vec<Act> {
    let over = ill.extract_if(.., |ill| ill.until <= now);
    over.map(|Ill { fault, member, since, .. }| Act::End(fault, member, now - since)).collect()
}

/// Draws what a round does. All of it comes from the numbers, and nothing from how quick the machine is, so that a seed gives the same
/// faults everywhere.
fn draw(rng: &mut StdRng) -> Vec<Act> {
    let (mut acts, mut ill, mut now) = (Vec::new(), Vec::<Ill>::new(), Duration::ZERO);
    for _ in 0..FAULTS {
        acts.extend(heal(&mut ill, now));
        let fault = FAULTS_OF_PARTS[rng.random_range(0..FAULTS_OF_PARTS.len())];
        let member = rng.random_range(0..MEMBERS);
        let lasts = Duration::from_millis(rng.random_range(100..7000));
        let pause = Duration::from_millis(rng.random_range(50..1500));
        if ill.iter().all(|ill| ill.fault.part() != fault.part()) {
            acts.push(Act::Begin(fault, member));
            ill.push(Ill { fault, member, since: now, until: now + lasts });
        }
        acts.push(Act::Pause(pause));
        now += pause;
    }
    let last = ill.iter().map(|ill| ill.until).max().unwrap_or(now).max(now);
    acts.push(Act::Pause(last - now));
    acts.extend(heal(&mut ill, last));
    acts
}

/// From when to when a killed HAProxy was away, as somebody saw it who asked all the time.
#[derive(Debug, Clone, Copy)]
struct Dead {
    since: Instant,
    until: Option<Instant>,
}

impl Dead {
    /// Whether a request was in flight when it was killed, or came before it answered again.
    fn excuses(&self, failure: &Failure) -> bool {
        let is_its_kind = matches!(failure.kind, Kind::Refused | Kind::BrokeOff);
        is_its_kind && failure.ended >= self.since && self.until.is_none_or(|until| failure.sent <= until + MOMENT)
    }
}

/// What a program takes.
#[derive(Debug, Clone, Copy)]
struct Taken {
    memory_kb: u64,
    descriptors: usize,
}

impl Taken {
    fn by(pid: Pid) -> Self {
        Self {
            memory_kb: memory_kib(pid, "VmRSS").unwrap(),
            descriptors: fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count(),
        }
    }
}

/// What came of it.
#[derive(Debug, Default)]
struct Record {
    faults: BTreeMap<Fault, usize>,
    served: u64,
    /// Requests that were in flight when HAProxy was killed, or came before it answered again.
    by_dead_haproxy: usize,
    /// Those that failed besides.
    failed: usize,
    changes: usize,
    /// From the end of the faults until all was right.
    settled: Vec<Duration>,
    /// The agent and the discoverer after each round.
    taken: Vec<[Taken; 2]>,
}

struct Soak {
    site: Site,
    rng: StdRng,
    dead: Vec<Dead>,
    record: Record,
    begun: Instant,
}

async fn soak(api: Api, seed: u64, rounds: u64) {
    println!("seed {seed}: E2E_SOAK_SEED={seed} gives the same faults");
    let flags = ["--drain-timeout", &format!("{}s", DRAIN.as_secs())];
    let plan = Plan { beside: true, discoverer: &flags, agent: &["--ttl", TTL], ..Plan::default() };
    let site = Site::start(Cluster::on_hosts(api).await, plan).await;
    let record = Record::default();
    let mut soak = Soak { site, rng: StdRng::seed_from_u64(seed), dead: Vec::new(), record, begun: Instant::now() };
    for round in 0..rounds {
        println!("round {round}");
        tokio::time::timeout(ROUND, soak.round()).await.expect("a round ends in time");
    }
    soak.grows_no_more();
    let text = soak.text(api, seed, rounds);
    println!("{text}");
    if let Ok(page) = std::env::var("E2E_SOAK_RECORD") {
        write_record(&page, api, &text);
    }
}

impl Soak {
    async fn round(&mut self) {
        self.site.churns();
        let before = self.site.changes();
        for act in draw(&mut self.rng) {
            match act {
                Act::Begin(fault, member) => {
                    println!("{:>8.2?} {fault}, member {member}", self.begun.elapsed());
                    *self.record.faults.entry(fault).or_default() += 1;
                    self.begin(fault, member).await;
                }
                Act::End(fault, member, lasted) => {
                    println!("{:>8.2?} over: {fault}, after {lasted:?}", self.begun.elapsed());
                    self.end(fault, member).await;
                }
                Act::Pause(pause) => tokio::time::sleep(pause).await,
            }
        }
        self.site.rests();
        self.record.changes += self.site.changes() - before;

        let rest = Instant::now();
        self.site.wait_in_step(GIVEN_UP).await;
        self.record.settled.push(rest.elapsed());
        let effort = self.site.effort().await;
        tokio::time::sleep(secs(1)).await;
        self.site.wait_in_step(SETTLED).await;
        self.site.assert_nobody_vanished();
        self.site.assert_modest(&effort).await;
        self.wait_one_worker().await;
        let taken = [self.site.agent.process().pid(), self.site.discoverer.process().pid()].map(Taken::by);
        self.record.taken.push(taken);

        let report = self.site.next_load().await;
        self.record.served += report.served();
        assert!(report.served() > 500, "only {} requests were served", report.served());
        let is_of_dead = |failure: &&Failure| self.dead.iter().any(|dead| dead.excuses(failure));
        let (of_dead, ours): (Vec<_>, Vec<_>) = report.failures.iter().partition(is_of_dead);
        self.record.by_dead_haproxy += of_dead.len();
        self.record.failed += ours.len();
        assert!(ours.is_empty(), "{} requests failed beside {} served: {ours:#?}", ours.len(), report.served());
    }

    async fn begin(&mut self, fault: Fault, member: usize) {
        let site = &mut self.site;
        match fault {
            Fault::Killed(Part::Member) => site.cluster.kill(member).await,
            Fault::Frozen(Part::Member) => site.cluster.freeze(member),
            Fault::CutOff => site.cluster.cut_off(member),
            Fault::AllKilled => site.cluster.restart_all().await,
            Fault::Forgets => site.cluster.forget_events().await,
            Fault::Killed(Part::Agent) => site.agent.process().kill_now().await,
            Fault::Stopped(Part::Agent) => {
                // As its unit does at a restart: the keys stay for the one that comes.
                site.agent.process().signal(Signal::SIGUSR2);
                site.agent.process().wait(secs(15)).await;
            }
            Fault::Frozen(Part::Agent) => site.agent.process().signal(Signal::SIGSTOP),
            Fault::Killed(Part::Discoverer) => {
                site.discoverer.process().kill_now().await;
                drop(site.discoverer.take_process());
            }
            Fault::Stopped(Part::Discoverer) => {
                site.discoverer.process().signal(Signal::SIGTERM);
                site.discoverer.process().wait(secs(15)).await;
                drop(site.discoverer.take_process());
            }
            Fault::Frozen(Part::Discoverer) => site.discoverer.process().signal(Signal::SIGSTOP),
            Fault::Killed(Part::Haproxy) => {
                self.dead.push(Dead { since: Instant::now(), until: None });
                site.haproxy().kill();
            }
            Fault::Reloaded => {
                let socket = site.haproxy().master_socket();
                // It may be busy with another reload.
                println!("{:?}", cli(&socket, "reload").await.map(|reply| reply.lines().count()));
            }
            Fault::Ends => site.docker().ends_streams(),
            Fault::Mute => site.docker().mutes_streams(true),
            Fault::Killed(Part::Docker) | Fault::Stopped(_) | Fault::Frozen(_) => {
                unreachable!("{fault} is none of them")
            }
        }
    }

    async fn end(&mut self, fault: Fault, member: usize) {
        let site = &mut self.site;
        match fault {
            Fault::Killed(Part::Member) => site.cluster.start_again(member),
            Fault::Frozen(Part::Member) => site.cluster.thaw(member),
            Fault::CutOff => site.cluster.join_again(member),
            Fault::Killed(Part::Agent) | Fault::Stopped(Part::Agent) => site.agent.start_again(),
            Fault::Frozen(Part::Agent) => site.agent.process().signal(Signal::SIGCONT),
            Fault::Killed(Part::Discoverer) | Fault::Stopped(Part::Discoverer) => site.discoverer.start_again(),
            Fault::Frozen(Part::Discoverer) => site.discoverer.process().signal(Signal::SIGCONT),
            Fault::Killed(Part::Haproxy) => {
                site.haproxy().start_again();
                let address = site.haproxy().http();
                wait_until(secs(20), "HAProxy answers again", async || {
                    http::get(address, "/").await.map(|_any| ()).map_err(|error| error.to_string())
                })
                .await;
                self.dead.last_mut().expect("it was killed").until = Some(Instant::now());
            }
            Fault::Mute => site.docker().mutes_streams(false),
            _ => {}
        }
    }

    /// Old workers end when what they served has ended.
    async fn wait_one_worker(&mut self) {
        let socket = self.site.haproxy().master_socket();
        wait_until(DRAIN + SETTLED, "HAProxy has one worker", async || {
            let processes = cli(&socket, "show proc").await?;
            let workers = processes.lines().filter(|line| line.split_whitespace().nth(1) == Some("worker"));
            if workers.count() == 1 { Ok(()) } else { Err(processes) }
        })
        .await;
        assert!(reloads(&socket).await.is_ok());
    }

    fn grows_no_more(&self) {
        let [first, .., last] = self.record.taken.as_slice() else { panic!("{:?}", self.record.taken) };
        for (program, (first, last)) in ["agent", "discoverer"].into_iter().zip(first.iter().zip(last)) {
            assert!(
                last.memory_kb <= first.memory_kb + MORE_MEMORY_KB,
                "the {program}'s memory: {:?}",
                self.record.taken
            );
            assert!(last.descriptors <= first.descriptors + MORE_DESCRIPTORS, "the {program}: {:?}", self.record.taken);
        }
    }

    fn text(&self, api: Api, seed: u64, rounds: u64) -> String {
        let Record { faults, served, by_dead_haproxy, failed, changes, settled, taken } = &self.record;
        let mut settled = settled.clone();
        settled.sort();
        let mut text = String::new();
        let mut row = |what: &str, value: String| writeln!(text, "| {what} | {value} |").unwrap();
        row(
            "etcd's API, seed, rounds, time",
            format!("{}, {seed}, {rounds}, {:.0} s", api.flag(), self.begun.elapsed().as_secs_f64()),
        );
        row("containers that came or went", changes.to_string());
        row("requests served", served.to_string());
        row("requests that failed, but for those of a killed HAProxy", failed.to_string());
        row("requests of a killed HAProxy that failed until it answered again", by_dead_haproxy.to_string());
        let (half, most) = (settled[settled.len() / 2], settled[settled.len() - 1]);
        row(
            "from the last fault until etcd and HAProxy had what runs: median, most",
            format!("{half:.1?}, {most:.1?}"),
        );
        for (at, program) in ["agent", "discoverer"].into_iter().enumerate() {
            let of = |taken: &[Taken; 2]| {
                format!("{:.1} MB, {}", taken[at].memory_kb as f64 / 1024.0, taken[at].descriptors)
            };
            row(
                &format!("{program}: memory and descriptors after the first and the last round"),
                format!("{}; {}", of(&taken[0]), of(&taken[taken.len() - 1])),
            );
        }
        let list: Vec<_> = faults.iter().map(|(fault, count)| format!("{count} × {fault}")).collect();
        row("faults", list.join(", "));
        text
    }
}

/// Writes what came of it between the marks of its API.
fn write_record(page: &str, api: Api, rows: &str) {
    let path = workspace().join(page);
    let text = fs::read_to_string(&path).unwrap();
    let (begin, end) = (format!("<!-- soak: {} -->\n", api.flag()), "<!-- end of soak -->");
    let (before, rest) = text.split_once(&begin).unwrap_or_else(|| panic!("{page} has no {begin}"));
    let (_, after) = rest.split_once(end).unwrap_or_else(|| panic!("{page} has no {end}"));
    fs::write(path, format!("{before}{begin}\n| | |\n|---|---|\n{rows}\n{end}{after}")).unwrap();
}

#[test]
fn a_seed_gives_the_same_faults_and_no_two_of_one_part_at_once() {
    for seed in 0..200 {
        let [mut rng, mut again] = [seed, seed].map(StdRng::seed_from_u64);
        for _ in 0..3 {
            let acts = draw(&mut rng);
            assert_eq!(acts, draw(&mut again), "seed {seed}");
            let mut ill = Vec::new();
            for act in acts {
                match act {
                    Act::Begin(fault, member) => {
                        assert!(
                            ill.iter().all(|(other, _): &(Fault, usize)| other.part() != fault.part()),
                            "seed {seed}"
                        );
                        ill.push((fault, member));
                    }
                    Act::End(fault, member, _) => {
                        let at = ill.iter().position(|one| *one == (fault, member)).expect("it has begun");
                        ill.remove(at);
                    }
                    Act::Pause(_) => {}
                }
            }
            assert!(ill.is_empty(), "seed {seed}: {ill:?}");
        }
    }
}

#[test]
fn only_what_a_killed_haproxy_had_or_kept_out_is_excused() {
    let start = Instant::now();
    let at = |millis: u64| start + Duration::from_millis(millis);
    let dead = Dead { since: at(10_000), until: Some(at(12_000)) };
    for (sent, ended, kind, is_excused) in [
        (9_000, 10_000, Kind::BrokeOff, true),
        (11_000, 11_000, Kind::Refused, true),
        (12_400, 12_400, Kind::BrokeOff, true),
        (9_000, 9_500, Kind::BrokeOff, false),
        (12_600, 12_600, Kind::Refused, false),
        (11_000, 11_500, Kind::Status(503), false),
        (9_000, 19_000, Kind::Silent, false),
    ] {
        let failure = Failure { after: secs(0), sent: at(sent), ended: at(ended), kind, what: String::new() };
        assert_eq!(dead.excuses(&failure), is_excused, "{kind:?} from {sent} to {ended}");
    }
}
