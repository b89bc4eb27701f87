//! A member dies, hangs, or loses the others.

use e2e::{secs, within};

use super::{Cluster, Plan, SETTLED, Site};

#[tokio::test]
async fn a_leader_that_is_killed_costs_no_request_and_no_change() {
    within(120, async {
        let mut cluster = Cluster::start().await;
        // The discoverer follows the leader, and the agent writes to another, which goes on believing in the dead one for a while.
        let leader = cluster.leader().await;
        let plan = Plan { discoverer_at: leader, agent_at: (leader + 1) % 3, ..Plan::default() };
        let mut site = Site::start(cluster, plan).await;
        let before = site.effort().await;
        site.churns();
        site.wait_changes(20).await;
        let killed = std::time::Instant::now();
        site.cluster.kill(leader).await;
        let _new = site.cluster.leader().await;
        let elected = std::time::Instant::now();
        site.wait_changes(60).await;
        println!("elected after {:?}", elected - killed);
        site.rests();
        site.wait_in_step(SETTLED).await;
        println!("late {:?}", site.lateness(killed, elected).iter().max());
        site.ends_well(SETTLED, &before, 500).await;
    })
    .await;
}
