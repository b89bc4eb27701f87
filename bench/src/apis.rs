//! etcd's two APIs beside each other: a discoverer that follows v2 and one that follows v3, of the same etcd, with the same servers;
//! one change after the other. And what the start costs with v3.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use e2e::cluster::Api;
use tokio::time::sleep;

use crate::Amount;
use crate::stats::{Row, Times};
use crate::traffic::App;
use crate::wire::{Kept, get_once};
use crate::world::{SERVICE, Subject, Tools, keys, record, wait};

const SIZES: [usize; 3] = [1, 1000, 10_000];
const ATTRIBUTES: &str = "\"balance\":\"first\"";
/// A change that takes longer is lost.
const LIMIT: Duration = Duration::from_secs(5);
/// Between two changes, so that one side's does not fall into the other's work.
const PAUSE: Duration = Duration::from_millis(30);

struct Side {
    api: Api,
    key: String,
    subject: Subject,
    start: String,
    added: Times,
    removed: Times,
}

pub(crate) async fn measure(tools: &Tools, amount: &Amount) -> anyhow::Result<Vec<Row>> {
    let mut rows = Vec::new();
    for size in amount.sizes(&SIZES) {
        rows.extend(at(tools, size, amount.rounds).await?);
    }
    Ok(rows)
}

async fn at(tools: &Tools, size: usize, rounds: usize) -> anyhow::Result<Vec<Row>> {
    let (old, new) = (App::closing("old")?, App::closing("new")?);
    let address = format!("127.0.0.2:{}", new.port());
    let (server, value) = (address.replace(':', "_"), record(999_999, ATTRIBUTES));
    let mut sides = Vec::new();
    for api in [Api::V2, Api::V3] {
        let prefix = tools.prefix();
        let key = format!("{prefix}/{SERVICE}/{address}");
        let mut all = keys(&prefix, size, old.port(), ATTRIBUTES);
        all.push((key.clone(), value.clone()));
        tools.fill_by(api, &all)?;
        let subject = Subject::start_by(tools, api, &prefix, size + 1).await?;
        let start = format!("{} ms of CPU time, RSS {:.1} MiB", subject.cpu_ms()?, subject.memory_mb("VmRSS")?);
        sides.push(Side { api, key, subject, start, added: Times::default(), removed: Times::default() });
    }
    let mut connection = Kept::open(tools.etcd.address())?;
    for round in 0..=rounds {
        for is_in in [false, true] {
            for side in &mut sides {
                sleep(PAUSE.mul_f64(rand::random_range(0.5..1.5))).await;
                if is_in {
                    tools.put_by(side.api, &mut connection, &side.key, &value)?;
                } else {
                    tools.delete_by(side.api, &mut connection, &side.key)?;
                }
                let returned = Instant::now();
                while (get_once(side.subject.http)? == "new") != is_in {
                    ensure!(returned.elapsed() < LIMIT, "a change did not arrive; {}", side.subject.last_words());
                }
                // The first round warms both up.
                if round > 0 {
                    if is_in { &mut side.added } else { &mut side.removed }.push(returned.elapsed());
                }
            }
            for side in &sides {
                let settled = wait("it is settled", || {
                    side.subject.is_settled(&server, is_in).map_err(|error| error.to_string())
                });
                settled.await.with_context(|| side.subject.last_words())?;
            }
        }
        let [v2, v3] = &sides[..] else { unreachable!("there are two") };
        eprint!(
            "\r{size} servers, {round} of {rounds}: v2 {:.2} ms, v3 {:.2} ms   ",
            v2.added.median(),
            v3.added.median()
        );
    }
    eprintln!();
    let [v2, v3] = &sides[..] else { unreachable!("there are two") };
    let row = |what: &str, target: &str, v2: &Times, v3: &Times| {
        let more = v3.median() - v2.median();
        let measured = format!("{}; v2 {}; {more:+.2} ms of the medians; {} changes", v3.shown(), v2.shown(), v3.len());
        Row::new(&format!("v3: {what}, {size} servers"), target, measured)
    };
    Ok(vec![
        row("PUT returned -> new server answers", "v2 + 1 ms", &v2.added, &v3.added),
        row("DELETE returned -> no more requests", "", &v2.removed, &v3.removed),
        Row::new(
            &format!("v3: list, first configuration and start of HAProxy, {size} servers"),
            "1 s of its own time, 30 MB",
            format!("{}; v2 {}", v3.start, v2.start),
        ),
    ])
}
