//! Changes and reloads while 24 clients ask: does a request fail, and is the state right in the end?

use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use rand::seq::IndexedRandom as _;
use tokio::time::{sleep, sleep_until};

use crate::Amount;
use crate::servers::{in_etcd, in_file, in_haproxy};
use crate::stats::{Row, Times};
use crate::traffic::{App, Load, Report};
use crate::wire::Kept;
use crate::world::{SERVICE, Subject, Tools, address, keys, record, wait};

const SERVERS: usize = 1000;
const CLIENTS: usize = 24;
const CHANGES: usize = 200;
const EVERY: Duration = Duration::from_millis(50);
/// Clients go on for so long after the last change: what a change did shows late.
const AFTER: Duration = Duration::from_secs(2);
/// All reloads together take no longer than this.
const LONGEST: Duration = Duration::from_secs(120);
const LOOK_AGAIN: Duration = Duration::from_millis(10);
/// What the template is changed in; it means nothing to the traffic.
const SETTING: &str = "timeout queue 10s";

/// 200 changes at 20/s: instances come and go at random.
pub(crate) async fn changes(tools: &Tools, amount: &Amount) -> anyhow::Result<Vec<Row>> {
    let app = App::start("app")?;
    let (mut all, mut right, mut reloads, mut settled) = (Report::default(), 0, Vec::new(), Times::default());
    let (mut wrong, mut why) = (Vec::new(), Vec::new());
    // Of requests while nothing changes: the floor of those while much does.
    let (mut quiet, mut cpu) = (Report::default(), Duration::ZERO);
    for run in 1..=amount.churn_runs {
        let prefix = tools.prefix();
        tools.fill(&keys(&prefix, SERVERS, app.port(), ""))?;
        let subject = Subject::start(tools, &prefix, SERVERS).await?;
        let before = subject.reloads().await?;
        let load = Load::start(subject.http, CLIENTS)?;
        sleep(AFTER).await;
        quiet.add(load.stop()?);
        let load = Load::start(subject.http, CLIENTS)?;
        sleep(AFTER / 2).await;
        let cpu_before = subject.process().cpu_time();
        change_at_random(tools, &prefix, app.port()).await?;
        let wanted = in_etcd(tools.etcd.address(), &prefix)?;
        let end = wait("etcd, HAProxy and the file agree", || {
            let text = |error: anyhow::Error| error.to_string();
            let (haproxy, file) =
                (in_haproxy(&subject.socket()).map_err(text)?, in_file(&subject.file()).map_err(text)?);
            if haproxy == wanted && file == wanted {
                return Ok(true);
            }
            Err(format!(
                "etcd {}, HAProxy {}, file {}; {}",
                wanted.len(),
                haproxy.len(),
                file.len(),
                subject.last_words()
            ))
        })
        .await;
        match end {
            Ok(time) => {
                settled.push(time);
                right += 1;
            }
            Err(error) => wrong.push(error.to_string()),
        }
        sleep(AFTER).await;
        cpu += subject.process().cpu_time() - cpu_before;
        let report = load.stop()?;
        let count = subject.reloads().await? - before;
        reloads.push(count);
        if count > 0 {
            why.push(subject.why_reloaded());
        }
        eprintln!("churn {run}: failed {}, {:?} reloads", report.shown(), reloads.last());
        all.add(report);
    }
    let measured = format!(
        "reloads {reloads:?} {why:?}; failed {}; final state right in {right} of {}, file included {} after the last change {}",
        all.shown(),
        amount.churn_runs,
        settled.shown(),
        wrong.join("; ")
    );
    #[allow(clippy::cast_precision_loss)]
    let each = cpu.as_secs_f64() * 1000.0 / (CHANGES * amount.churn_runs) as f64;
    Ok(vec![
        Row::new("200 changes at 20/s, 1000 servers, 24 clients", "0 reloads, 0 failed, right in 20 of 20", measured),
        Row::new(
            "the requests meanwhile",
            "",
            format!("{}; floor, while nothing changes: {}", all.times.shown(), quiet.times.shown()),
        ),
        Row::new("the discoverer's CPU time for each of these changes", "", format!("{each:.1} ms")),
    ])
}

async fn change_at_random(tools: &Tools, prefix: &str, port: u16) -> anyhow::Result<()> {
    let mut connection = Kept::open(tools.etcd.address())?;
    let mut present: BTreeSet<usize> = (0..SERVERS).collect();
    let mut absent: BTreeSet<usize> = (SERVERS..SERVERS + SERVERS / 10).collect();
    let start = tokio::time::Instant::now();
    for change in 0..CHANGES {
        let (from, to) = if change % 2 == 0 { (&mut absent, &mut present) } else { (&mut present, &mut absent) };
        let choice: Vec<usize> = from.iter().copied().collect();
        let number = *choice.choose(&mut rand::rng()).context("no server to choose")?;
        from.remove(&number);
        to.insert(number);
        let key = format!("{prefix}/{SERVICE}/{}", address(number, port));
        if change % 2 == 0 {
            tools.put(&mut connection, &key, &record(number, ""))?;
        } else {
            tools.delete(&mut connection, &key)?;
        }
        sleep_until(start + EVERY * u32::try_from(change + 1)?).await;
    }
    Ok(())
}

/// Reloads, each by another value of a setting in the template.
pub(crate) async fn reloads(tools: &Tools, amount: &Amount) -> anyhow::Result<Vec<Row>> {
    let app = App::start("app")?;
    let prefix = tools.prefix();
    tools.fill(&keys(&prefix, SERVERS, app.port(), ""))?;
    let subject = Subject::start(tools, &prefix, SERVERS).await?;
    let text = fs::read_to_string(&subject.template)?;
    ensure!(text.contains(SETTING), "the template has no {SETTING:?}");
    let before = subject.reloads().await?;
    let load = Load::start(subject.http, CLIENTS)?;
    sleep(AFTER / 2).await;
    let start = Instant::now();
    for reload in 1..=amount.reloads {
        fs::write(&subject.template, text.replace(SETTING, &format!("timeout queue {}s", 10 + reload)))?;
        let wanted = before + u64::try_from(reload)?;
        while subject.reloads().await? < wanted {
            ensure!(start.elapsed() < LONGEST, "reload {reload} did not come; {}", subject.last_words());
            sleep(LOOK_AGAIN).await;
        }
        eprint!("\rreload {reload} of {}   ", amount.reloads);
    }
    let took = start.elapsed();
    sleep(AFTER).await;
    let report = load.stop()?;
    eprintln!("failed {}", report.shown());
    let measured = format!(
        "failed {}; {} reloads in {:.1} s {}",
        report.shown(),
        subject.reloads().await? - before,
        took.as_secs_f64(),
        subject.last_words()
    );
    Ok(vec![Row::new(&format!("{} forced reloads, 1000 servers, 24 clients", amount.reloads), "0 failed", measured)])
}
