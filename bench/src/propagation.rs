//! From the moment at which etcd has answered a write to the first request that the new server answers, and back: the
//! discoverer beside the floor, one change after the other.
//!
//! The service has `balance first`, where HAProxy gives each request to the server with the lowest number. A server
//! that is added gets the lowest free number, and that of the first line is free: so the first request after it has
//! come in is its own, however many servers there are, and the clients, one closing connection after the other,
//! see it to within one request.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use tokio::time::sleep;

use crate::Amount;
use crate::floor::Floor;
use crate::plot::{Curve, Plot};
use crate::stats::{Measured, Row, Times};
use crate::traffic::App;
use crate::wire::{Kept, get_once};
use crate::world::{SERVICE, Subject, Tools, Twin, has_server, keys, record, wait};

const SIZES: [usize; 4] = [1, 1000, 5000, 10_000];
const ATTRIBUTES: &str = "\"balance\":\"first\"";
/// A change that takes longer is lost.
const LIMIT: Duration = Duration::from_secs(5);
/// Between two changes, so that one side's does not fall into the other's work.
const PAUSE: Duration = Duration::from_millis(30);

/// One of the two that are compared.
struct Side {
    key: String,
    http: SocketAddr,
    socket: PathBuf,
    added: Times,
    removed: Times,
}

pub(crate) async fn measure(tools: &Tools, amount: &Amount) -> anyhow::Result<Measured> {
    let mut rows = Vec::new();
    let names = ["discoverer, median", "floor, median", "discoverer, p99", "floor, p99"];
    let mut curves = names.map(|name| Curve { name: name.to_owned(), points: Vec::new() });
    for size in amount.sizes(&SIZES) {
        match at(tools, size, amount.rounds).await {
            Ok((measured, [floor, ours])) => {
                rows.extend(measured);
                let values = [ours.median(), floor.median(), ours.quantile(0.99), floor.quantile(0.99)];
                for (curve, value) in curves.iter_mut().zip(values) {
                    #[allow(clippy::cast_precision_loss)]
                    curve.points.push((size as f64, value));
                }
            }
            Err(error) => {
                rows.push(Row::new(&format!("propagation, {size} servers"), "", format!("not measured: {error:#}")));
            }
        }
    }
    let plot = Plot {
        file: "propagation",
        title: "From the reply to a PUT to the new server's first answer".to_owned(),
        across: "servers",
        up: "milliseconds",
        curves: curves.into(),
    };
    Ok(Measured { rows, plots: vec![plot] })
}

/// The rows, and how long it took until an added server answered: of the floor, and of the discoverer.
async fn at(tools: &Tools, size: usize, rounds: usize) -> anyhow::Result<(Vec<Row>, [Times; 2])> {
    let (old, new) = (App::closing("old")?, App::closing("new")?);
    let (prefix, floor_prefix) = (tools.prefix(), tools.prefix());
    let address = format!("127.0.0.2:{}", new.port());
    let (server, value) = (address.replace(':', "_"), record(999_999, ATTRIBUTES));
    let mut all = keys(&prefix, size, old.port(), ATTRIBUTES);
    let key = |prefix: &str| format!("{prefix}/{SERVICE}/{address}");
    all.extend([(key(&prefix), value.clone()), (key(&floor_prefix), value.clone())]);
    tools.fill(&all)?;
    let subject = Subject::start(tools, &prefix, size + 1).await?;
    let twin = Twin::of(&subject).await?;
    let etcd = tools.etcd.address();
    let mut floor = Floor::start(etcd, floor_prefix.clone(), twin.socket(), SERVICE.to_owned(), twin.words.clone())?;
    let mut connection = Kept::open(etcd)?;
    let side = |key: String, http: SocketAddr, socket: PathBuf| Side {
        key,
        http,
        socket,
        added: Times::default(),
        removed: Times::default(),
    };
    let mut sides =
        [side(key(&floor_prefix), twin.http, twin.socket()), side(key(&prefix), subject.http, subject.socket())];
    let reloads = subject.reloads().await?;
    for round in 0..=rounds {
        for is_in in [false, true] {
            for side in &mut sides {
                sleep(PAUSE.mul_f64(rand::random_range(0.5..1.5))).await;
                if is_in {
                    tools.put(&mut connection, &side.key, &value)?;
                } else {
                    tools.delete(&mut connection, &side.key)?;
                }
                let returned = Instant::now();
                while (get_once(side.http)? == "new") != is_in {
                    ensure!(returned.elapsed() < LIMIT, "a change did not arrive; {}", subject.last_words());
                }
                // The first round warms both up.
                if round > 0 {
                    if is_in { &mut side.added } else { &mut side.removed }.push(returned.elapsed());
                }
            }
            let settled = wait("both are settled", || {
                let text = |error: anyhow::Error| error.to_string();
                let [floor, _] = &sides;
                if has_server(&floor.socket, &server).map_err(text)? != is_in {
                    return Err("the floor is not".to_owned());
                }
                subject.is_settled(&server, is_in).map_err(text)
            })
            .await;
            floor = floor.ensure_runs()?;
            settled.with_context(|| subject.last_words())?;
        }
        let [floor, ours] = &sides;
        eprint!(
            "\r{size} servers, {round} of {rounds}: floor {:.2} ms, discoverer {:.2} ms   ",
            floor.added.median(),
            ours.added.median()
        );
    }
    eprintln!();
    floor.stop();
    let reloads = subject.reloads().await? - reloads;
    let [floor, ours] = sides;
    let row = |what: &str, target: &str, floor: &Times, ours: &Times| {
        let measured = format!(
            "{}; floor {}; ratio of the medians {:.2}, p99 to the floor's median {:.2}, to its p99 {:.2}; {} changes, {reloads} reloads",
            ours.shown(),
            floor.shown(),
            ours.median() / floor.median(),
            ours.quantile(0.99) / floor.median(),
            ours.quantile(0.99) / floor.quantile(0.99),
            ours.len()
        );
        Row::new(&format!("{what}, {size} servers"), target, measured)
    };
    let rows = vec![
        row("PUT returned -> new server answers", "median 1.5 x floor, p99 5 x", &floor.added, &ours.added),
        row("DELETE returned -> no more requests", "", &floor.removed, &ours.removed),
    ];
    Ok((rows, [floor.added, ours.added]))
}
