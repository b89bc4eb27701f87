//! A member dies, hangs, or loses the others.

use std::time::Instant;

use e2e::within;

use super::{Api, Cluster, LEFT, MEMBERS, Plan, SETTLED, Site};

on! {
    V2 in v2:
        a_leader_that_is_killed_costs_no_request_and_no_change
        needs_root_a_member_that_is_cut_off_is_left_for_another_and_nobody_vanishes;
    V3 in v3:
        a_leader_that_is_killed_costs_no_request_and_no_change;
}

long_on! {
    V2 in long_v2:
        needs_root_a_leader_that_is_cut_off_is_left_for_another_and_nobody_vanishes
        members_that_are_frozen_in_turn_are_left_for_others;
    V3 in long_v3:
        needs_root_a_member_that_is_cut_off_is_left_for_another_and_nobody_vanishes
        needs_root_a_leader_that_is_cut_off_is_left_for_another_and_nobody_vanishes
        members_that_are_frozen_in_turn_are_left_for_others;
}

async fn a_leader_that_is_killed_costs_no_request_and_no_change(api: Api) {
    within(120, async {
        let mut cluster = Cluster::start(api).await;
        // The discoverer follows the leader, and the agent writes to another, which goes on believing in the dead one for a while.
        let leader = cluster.leader().await;
        let plan = Plan { discoverer_at: leader, agent_at: (leader + 1) % MEMBERS, ..Plan::default() };
        let mut site = Site::start(cluster, plan).await;
        let before = site.effort().await;
        site.churns();
        site.wait_changes(20).await;
        let killed = Instant::now();
        site.cluster.kill(leader).await;
        site.cluster.leader().await;
        let elected = Instant::now();
        site.wait_changes(60).await;
        site.rests();
        site.wait_in_step(SETTLED).await;
        println!("{:?} without a leader", elected - killed);
        println!("latest change {:?}", site.lateness(killed, elected).iter().max());
        site.ends_well(SETTLED, &before, 500).await;
    })
    .await;
}

async fn needs_root_a_member_that_is_cut_off_is_left_for_another_and_nobody_vanishes(api: Api) {
    within(120, async {
        let mut cluster = Cluster::on_hosts(api).await;
        // Both ask the one that will be cut off, and it still answers them: it has all that it ever knew.
        let lost = (cluster.leader().await + 1) % MEMBERS;
        let mut site = Site::start(cluster, Plan { discoverer_at: lost, agent_at: lost, ..Plan::default() }).await;
        let before = site.effort().await;
        site.churns();
        site.wait_changes(20).await;
        site.cluster.cut_off(lost);
        let start = Instant::now();
        site.wait_changes(60).await;
        site.rests();
        site.wait_in_step(LEFT).await;
        println!("in step {:?} after the member was cut off", start.elapsed());
        site.churns();
        site.wait_changes(20).await;
        site.cluster.join_again(lost);
        site.wait_changes(20).await;
        site.ends_well(SETTLED, &before, 500).await;
    })
    .await;
}

async fn needs_root_a_leader_that_is_cut_off_is_left_for_another_and_nobody_vanishes(api: Api) {
    within(180, async {
        let mut cluster = Cluster::on_hosts(api).await;
        let lost = cluster.leader().await;
        let mut site = Site::start(cluster, Plan { discoverer_at: lost, agent_at: lost, ..Plan::default() }).await;
        let before = site.effort().await;
        site.churns();
        site.wait_changes(20).await;
        site.cluster.cut_off(lost);
        site.cluster.leader_of_all_but(Some(lost)).await;
        site.wait_changes(60).await;
        site.rests();
        site.wait_in_step(LEFT).await;
        site.churns();
        site.cluster.join_again(lost);
        site.wait_changes(60).await;
        site.ends_well(SETTLED, &before, 500).await;
    })
    .await;
}

async fn members_that_are_frozen_in_turn_are_left_for_others(api: Api) {
    within(240, async {
        let mut site = Site::start(Cluster::start(api).await, Plan::default()).await;
        let before = site.effort().await;
        for member in 0..MEMBERS {
            site.churns();
            site.wait_changes(20).await;
            site.cluster.freeze(member);
            site.wait_changes(60).await;
            site.rests();
            let start = Instant::now();
            site.wait_in_step(LEFT).await;
            println!("in step {:?} later", start.elapsed());
            site.churns();
            site.cluster.thaw(member);
            site.wait_changes(20).await;
            site.rests();
            site.wait_in_step(SETTLED).await;
            site.cluster.leader().await;
        }
        site.ends_well(SETTLED, &before, 1000).await;
    })
    .await;
}
