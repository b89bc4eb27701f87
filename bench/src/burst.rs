//! 3000 changes by 16 writers at once: how long after the last PUT's return HAProxy has what etcd holds.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::bail;
use e2e::process::Process;

use crate::Amount;
use crate::servers::{in_etcd, in_haproxy};
use crate::stats::{Row, Times};
use crate::traffic::App;
use crate::wire::Kept;
use crate::world::{Subject, Tools, address, record, wait};

const WRITERS: usize = 16;
const CHANGES: usize = 3000;
/// How many instances there are before, in how many services.
const SERVERS: usize = 300;
const SERVICES: usize = 3;

pub(crate) async fn measure(tools: &Tools, amount: &Amount) -> anyhow::Result<Vec<Row>> {
    let mut rows = Vec::new();
    for frozen in [false, true] {
        let mut times = Times::default();
        let (mut reloads, mut listings, mut writing) = (Vec::new(), Vec::new(), Times::default());
        for run in 1..=amount.burst_runs {
            let seen = once(tools, frozen).await?;
            writing.push(seen.wrote);
            times.push(seen.took);
            reloads.push(seen.reloads);
            listings.push(seen.listings);
            eprintln!("burst {run}{}: {:?} after the last PUT", if frozen { ", frozen" } else { "" }, seen.took);
        }
        let what = format!(
            "{CHANGES} changes by {WRITERS} writers -> HAProxy has what etcd holds{}",
            if frozen { "; the discoverer stands still until 1500 events are past (error 401)" } else { "" }
        );
        let measured = format!(
            "{}; reloads {reloads:?}; listed anew {listings:?} times; writing took {:.0} ms",
            times.shown(),
            writing.median()
        );
        rows.push(Row::new(&what, "2 s", measured));
    }
    Ok(rows)
}

/// What one run showed.
struct Seen {
    /// How long the writers took.
    wrote: Duration,
    /// From the last answer to a writer until HAProxy had everything.
    took: Duration,
    reloads: u64,
    /// How often etcd no longer had the events that were asked for (error 401).
    listings: usize,
}

async fn once(tools: &Tools, frozen: bool) -> anyhow::Result<Seen> {
    let app = App::start("app")?;
    let prefix = tools.prefix();
    let key = |number: usize| format!("{prefix}/web{}/{}", number % SERVICES, address(number, app.port()));
    // The services differ in their host, or two of them would claim every request.
    let value = |number: usize| record(number, &format!("\"host\":\"web{}.example\"", number % SERVICES));
    let first: Vec<_> = (0..SERVERS).map(|number| (key(number), value(number))).collect();
    tools.fill(&first)?;
    let subject = Subject::start(tools, &prefix, SERVERS).await?;
    let before = subject.reloads().await?;
    let start = Instant::now();
    if frozen {
        signal(subject.process(), "STOP").await;
    }
    let half = CHANGES / WRITERS / 2;
    write(tools, &key, &value, 0..half)?;
    if frozen {
        signal(subject.process(), "CONT").await;
    }
    write(tools, &key, &value, half..CHANGES / WRITERS + 1)?;
    let wrote = start.elapsed();
    let (etcd, returned): (SocketAddr, Instant) = (tools.etcd.address(), Instant::now());
    let wanted = in_etcd(etcd, &prefix)?;
    wait("HAProxy has what etcd holds", || {
        let seen = in_haproxy(&subject.socket()).map_err(|error| error.to_string())?;
        if seen == wanted {
            return Ok(true);
        }
        Err(format!("HAProxy {}, etcd {}; {}", seen.len(), wanted.len(), subject.last_words()))
    })
    .await?;
    let took = returned.elapsed();
    let listings = subject.process().log().matches("listing the directory again").count();
    Ok(Seen { wrote, took, reloads: subject.reloads().await? - before, listings })
}

/// Each writer has instances of its own, and writes or removes one of them at each step.
fn write(
    tools: &Tools,
    key: &(impl Fn(usize) -> String + Sync),
    value: &(impl Fn(usize) -> String + Sync),
    steps: std::ops::Range<usize>,
) -> anyhow::Result<()> {
    let etcd = tools.etcd.address();
    std::thread::scope(|scope| {
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let steps = steps.clone();
                scope.spawn(move || {
                    let mut connection = Kept::open(etcd)?;
                    for step in steps {
                        // Two come, then the first of them goes: what remains grows by one for three changes.
                        let number = |step: usize| 1000 + step * WRITERS + writer;
                        if step % 3 == 2 {
                            tools.delete(&mut connection, &key(number(step - 2)))?;
                        } else {
                            tools.put(&mut connection, &key(number(step)), &value(number(step)))?;
                        }
                    }
                    Ok(())
                })
            })
            .collect();
        writers.into_iter().try_for_each(|writer| writer.join().unwrap_or_else(|_| bail!("a writer panicked")))
    })
}

async fn signal(process: &Process, name: &str) {
    let kill = e2e::process::find_program("kill", "procps");
    e2e::process::run(&kill, &[&format!("-{name}"), &process.pid().to_string()], &[], Duration::from_secs(5)).await;
}
