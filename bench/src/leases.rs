//! What it costs etcd to keep the keys of many registrars alive, by each of its APIs: real keepers, many in one process, over the
//! real etcd. Nothing else happens meanwhile.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use e2e::cluster::Api;
use registrar::keeper::{Claim, Keeper};
use registry::{ApiChoice, InstanceKey, Prefix, Store, StoreOptions};
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::stats::Row;
use crate::wire::Kept;
use crate::world::Tools;

const REGISTRARS: usize = 100;
const KEYS: usize = 100;
/// The default of `--ttl`.
const TTL: Duration = Duration::from_secs(20);
/// How long it is looked at: several renewals of each key.
const SPAN: Duration = Duration::from_secs(30);
/// The limit on writing all keys.
const LIMIT: Duration = Duration::from_secs(120);

pub(crate) async fn measure(tools: &Tools) -> anyhow::Result<Vec<Row>> {
    let mut rows = Vec::new();
    for api in [Api::V2, Api::V3] {
        rows.push(by(tools, api).await?);
    }
    Ok(rows)
}

async fn by(tools: &Tools, api: Api) -> anyhow::Result<Row> {
    let prefix: Prefix = tools.prefix().parse()?;
    let mut options = StoreOptions::new(registry::parse_endpoints(&tools.etcd.url())?);
    options.api = ApiChoice::Only(if api == Api::V2 { registry::Api::V2 } else { registry::Api::V3 });
    let store = Store::new(options.clone())?;
    let begun = Instant::now();
    let mut keepers = JoinSet::new();
    for registrar in 0..REGISTRARS {
        let claim = Claim::Own(format!("agent-{registrar}"));
        let mut keeper = Keeper::new(Store::new(options.clone())?, prefix.clone(), Duration::from_secs(1), claim, TTL);
        for key in 0..KEYS {
            let path = format!("{}/web/127.{registrar}.0.1:{}", prefix.path(), 1000 + key);
            let value = format!("{{\"agent\":\"agent-{registrar}\"}}");
            keeper.want(&InstanceKey::parse(&prefix, &path)?, Some(value.into()));
        }
        keepers.spawn(async move {
            loop {
                keeper.next().await;
            }
        });
    }
    loop {
        if store.list(&prefix).await?.entries.len() == REGISTRARS * KEYS {
            break;
        }
        ensure!(begun.elapsed() < LIMIT, "not all keys were written within {LIMIT:?}");
        sleep(Duration::from_millis(500)).await;
    }
    let written = begun.elapsed();
    let (before, cpu_before, start) = (Counts::read(tools)?, tools.etcd.cpu_time(), Instant::now());
    sleep(SPAN).await;
    let (after, cpu_after, span) = (Counts::read(tools)?, tools.etcd.cpu_time(), start.elapsed().as_secs_f64());
    ensure!(store.list(&prefix).await?.entries.len() == REGISTRARS * KEYS, "keys were lost");
    keepers.shutdown().await;
    let rate = |before: f64, after: f64| (after - before) / span;
    let cpu = 100.0 * rate(cpu_before.as_secs_f64(), cpu_after.as_secs_f64());
    Ok(Row::new(
        &format!("{}: {REGISTRARS} registrars keep {KEYS} keys each, TTL {} s", api.flag(), TTL.as_secs()),
        if api == Api::V3 { "100 leases, at most 20 keep-alives/s" } else { "" },
        format!(
            "{:.0} leases, {:.1} keep-alives/s, {:.1} writes/s, etcd at {cpu:.1} % of a core; all written in {:.1} s",
            after.leases,
            rate(before.renewed, after.renewed),
            rate(before.writes, after.writes),
            written.as_secs_f64()
        ),
    ))
}

/// What etcd counts.
struct Counts {
    /// Leases that were granted and live.
    leases: f64,
    renewed: f64,
    /// Proposals that the cluster has agreed on: each write is one.
    writes: f64,
}

impl Counts {
    fn read(tools: &Tools) -> anyhow::Result<Self> {
        let metrics = Kept::open(tools.etcd.address())?.ask("GET", "/metrics", "", true)?.body;
        let value = |name: &str| {
            let line = metrics.lines().find(|line| line.split_whitespace().next() == Some(name));
            let value = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<f64>().ok());
            value.with_context(|| format!("etcd counts no {name}"))
        };
        Ok(Self {
            leases: value("etcd_debugging_lease_granted_total")? - value("etcd_debugging_lease_revoked_total")?,
            renewed: value("etcd_debugging_lease_renewed_total")?,
            writes: value("etcd_server_proposals_committed_total")?,
        })
    }
}
