//! What happens to all members: no quorum, a restart, a full disk, time, history that is lost.

use std::time::Instant;

use e2e::secs;
use e2e::within;
use nix::sys::signal::Signal;

use super::{Api, Cluster, MEMBERS, Plan, SETTLED, Site};

on! {
    V2 in v2:
        a_cluster_that_is_restarted_whole_costs_no_request_and_no_change
        events_that_etcd_has_forgotten_are_made_good_by_a_listing
        a_cluster_that_is_full_keeps_what_it_has_and_goes_on_when_there_is_room;
    V3 in v3:
        events_that_etcd_has_forgotten_are_made_good_by_a_listing
        a_cluster_that_is_full_keeps_what_it_has_and_goes_on_when_there_is_room;
}

long_on! {
    V2 in long_v2:
        a_quorum_that_is_lost_for_longer_than_keys_live_takes_nobody_out
        a_cluster_that_is_frozen_for_longer_than_keys_live_takes_nobody_out
        an_agent_that_is_frozen_for_longer_than_keys_live_takes_nobody_out;
    V3 in long_v3:
        a_cluster_that_is_restarted_whole_costs_no_request_and_no_change
        a_quorum_that_is_lost_for_longer_than_keys_live_takes_nobody_out
        a_cluster_that_is_frozen_for_longer_than_keys_live_takes_nobody_out
        an_agent_that_is_frozen_for_longer_than_keys_live_takes_nobody_out;
}

/// Keys live for this long, so that an outage can be longer.
const TTL: &[&str] = &["--ttl", "6s"];

async fn a_quorum_that_is_lost_for_longer_than_keys_live_takes_nobody_out(api: Api) {
    within(180, async {
        let mut cluster = Cluster::start(api).await;
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

async fn a_cluster_that_is_frozen_for_longer_than_keys_live_takes_nobody_out(api: Api) {
    within(180, async {
        let mut site = Site::start(Cluster::start(api).await, Plan { agent: TTL, ..Plan::default() }).await;
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

async fn an_agent_that_is_frozen_for_longer_than_keys_live_takes_nobody_out(api: Api) {
    within(180, async {
        let mut site = Site::start(Cluster::start(api).await, Plan { agent: TTL, ..Plan::default() }).await;
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

async fn a_cluster_that_is_restarted_whole_costs_no_request_and_no_change(api: Api) {
    within(120, async {
        let mut site = Site::start(Cluster::start(api).await, Plan::default()).await;
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

async fn events_that_etcd_has_forgotten_are_made_good_by_a_listing(api: Api) {
    within(240, async {
        let mut site = Site::start(Cluster::start(api).await, Plan::default()).await;
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

async fn a_cluster_that_is_full_keeps_what_it_has_and_goes_on_when_there_is_room(api: Api) {
    within(120, async {
        let mut site = Site::start(Cluster::small(api).await, Plan::default()).await;
        let before = site.effort().await;
        site.churns();
        site.wait_changes(20).await;
        site.cluster.fill_up().await;
        site.wait_changes(60).await;
        site.assert_modest(&before).await;
        if api == Api::V2 {
            // The v2 API keeps its keys in memory, and is not concerned.
            site.rests();
            site.wait_in_step(SETTLED).await;
            site.churns();
        }
        site.cluster.make_room().await;
        let start = Instant::now();
        site.wait_changes(20).await;
        site.rests();
        site.wait_in_step(SETTLED).await;
        println!("in step {:?} after there was room", start.elapsed());
        site.ends_well(SETTLED, &before, 500).await;
    })
    .await;
}
