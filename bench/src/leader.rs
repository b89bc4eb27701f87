//! The leader of a cluster of three is killed under changes and traffic: how late the changes are in HAProxy, beside the floor,
//! which is etcd's own time without a leader.

use std::time::{Duration, Instant};

use e2e::cluster::{Api, Cluster, MEMBERS};
use e2e::site::{Plan, Site};

use crate::Amount;
use crate::stats::{Row, Times};
use crate::world::Tools;

/// Changes before the leader dies, and after there is another: 20 a second.
const BEFORE: usize = 40;
const AFTER: usize = 100;
/// What is never reached unless something is wrong.
const LIMIT: Duration = Duration::from_secs(30);

pub(crate) async fn measure(tools: &Tools, amount: &Amount) -> anyhow::Result<Vec<Row>> {
    let mut rows = Vec::new();
    for api in [Api::V2, Api::V3] {
        let (mut without, mut latest) = (Times::default(), Times::default());
        let (mut served, mut failed, mut changes) = (0, 0, 0);
        for run in 0..amount.leaders {
            let mut cluster = Cluster::start(api).await;
            let leader = cluster.leader().await;
            // One program at the leader and the other beside it, in turn.
            let other = (leader + 1) % MEMBERS;
            let (discoverer_at, agent_at) = if run % 2 == 0 { (leader, other) } else { (other, leader) };
            let programs = Some((tools.registrar()?.to_path_buf(), tools.discoverer()?.to_path_buf()));
            let mut site = Site::start(cluster, Plan { discoverer_at, agent_at, programs, ..Plan::default() }).await;
            let before = site.effort().await;
            site.churns();
            site.wait_changes(BEFORE).await;
            let killed = Instant::now();
            site.cluster.kill(leader).await;
            site.cluster.leader().await;
            let elected = Instant::now();
            site.wait_changes(AFTER).await;
            site.rests();
            site.wait_in_step(LIMIT).await;
            let late = site.lateness(killed, elected);
            without.push(elected - killed);
            changes += late.len();
            latest.push(late.into_iter().max().unwrap_or_default());
            let report = site.comes_to_rest(LIMIT, &before, 1).await;
            served += report.served();
            failed += report.failures.len();
            eprintln!(
                "{} run {run}: without a leader {:.0} ms, latest change {:.0} ms after",
                api.flag(),
                without.last(),
                latest.last()
            );
        }
        rows.push(Row::new(
            &format!("leader killed under 20 changes/s and 500 requests/s, {}, {} runs", api.flag(), amount.leaders),
            "0 failed requests, everything applied within 3 s of the new leader",
            format!(
                "failed {failed} of {}; the latest of {changes} changes after the new leader: {}; without a leader: {}",
                served + failed as u64,
                latest.shown(),
                without.shown()
            ),
        ));
    }
    Ok(rows)
}
