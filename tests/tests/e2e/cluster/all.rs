//! What happens to all members: no quorum, a restart, a full disk, time, history that is lost.

use std::time::Instant;

use e2e::secs;
use e2e::within;
use nix::sys::signal::Signal;

use super::{Cluster, MEMBERS, Plan, SETTLED, Site};

/// Keys live for this long, so that an outage can be longer.
const TTL: &[&str] = &["--ttl", "6s"];

#[tokio::test]
#[ignore = "long: run by ./test --full"]
async fn a_quorum_that_is_lost_for_longer_than_keys_live_takes_nobody_out() {
    within(180, async {
        let mut cluster = Cluster::start().await;
        let leader = cluster.leader().await;
        let mut site = Site::start(cluster, Plan { agent: TTL, ..Plan::default() }).await;
        site.churns();
        site.wait_changes(20).await;
        let dead: Vec<usize> = (0..MEMBERS).filter(|member| *member != leader).collect();
        for member in &dead {
            site.cluster.kill(*member).await;
        }
        let before = site.effort().await;
        site.wait_changes(20 * 30).await;
        site.assert_modest(&before).await;
        for member in &dead {
            site.cluster.start_again(*member);
        }
        site.cluster.leader().await;
        site.wait_changes(60).await;
        site.ends_well(SETTLED, &before, 5000).await;
    })
    .await;
}

#[tokio::test]
#[ignore = "long: run by ./test --full"]
async fn a_cluster_that_is_frozen_for_longer_than_keys_live_takes_nobody_out() {
    within(180, async {
        let mut site = Site::start(Cluster::start().await, Plan { agent: TTL, ..Plan::default() }).await;
        site.churns();
        site.wait_changes(20).await;
        for member in 0..MEMBERS {
            site.cluster.freeze(member);
        }
        let before = site.effort().await;
        // Its clock leaps by twice what the keys live.
        site.wait_changes(20 * 12).await;
        for member in 0..MEMBERS {
            site.cluster.thaw(member);
        }
        site.cluster.leader().await;
        site.wait_changes(60).await;
        site.ends_well(SETTLED, &before, 2000).await;
    })
    .await;
}

#[tokio::test]
#[ignore = "long: run by ./test --full"]
async fn an_agent_that_is_frozen_for_longer_than_keys_live_takes_nobody_out() {
    within(180, async {
        let mut site = Site::start(Cluster::start().await, Plan { agent: TTL, ..Plan::default() }).await;
        let before = site.effort().await;
        site.agent.process().signal(Signal::SIGSTOP);
        e2e::stays_true(secs(12), "no request fails while the keys expire", async || match site.load().failed() {
            0 => Ok(()),
            failed => Err(failed.to_string()),
        })
        .await;
        site.agent.process().signal(Signal::SIGCONT);
        site.churns();
        site.wait_changes(40).await;
        site.ends_well(SETTLED, &before, 2000).await;
    })
    .await;
}

#[tokio::test]
async fn a_cluster_that_is_restarted_whole_costs_no_request_and_no_change() {
    within(120, async {
        let mut site = Site::start(Cluster::start().await, Plan::default()).await;
        let before = site.effort().await;
        site.churns();
        site.wait_changes(20).await;
        site.cluster.restart_all().await;
        let start = Instant::now();
        site.wait_changes(20).await;
        site.rests();
        site.wait_in_step(SETTLED).await;
        println!("in step {:?} after the restart", start.elapsed());
        site.ends_well(SETTLED, &before, 500).await;
    })
    .await;
}

#[tokio::test]
async fn events_that_etcd_has_forgotten_are_made_good_by_a_listing() {
    within(120, async {
        let mut site = Site::start(Cluster::start().await, Plan::default()).await;
        let before = site.effort().await;
        site.discoverer.process().signal(Signal::SIGSTOP);
        site.churns();
        site.wait_changes(60).await;
        // v2 keeps 1000 events of all directories together.
        site.cluster.forget_events().await;
        site.rests();
        site.discoverer.process().signal(Signal::SIGCONT);
        site.wait_in_step(SETTLED).await;
        site.churns();
        site.wait_changes(20).await;
        site.ends_well(SETTLED, &before, 500).await;
    })
    .await;
}
