//! A program beside the cluster is killed: the registrar, the discoverer, HAProxy.

use std::time::Duration;

use e2e::discoverer::SOON;
use e2e::haproxy::{master, worker};
use e2e::load::{Kind, Report};
use e2e::process::is_alive;
use e2e::{wait_until, within};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{Api, Cluster, Plan, SETTLED, Site};

on! {
    V2 in v2:
        a_registrar_that_is_killed_and_started_again_takes_nobody_out
        a_discoverer_beside_haproxy_that_is_killed_and_started_again_costs_no_request
        a_worker_or_a_master_of_haproxy_that_is_killed_costs_what_was_in_flight;
}

long_on! {
    V3 in long_v3:
        a_registrar_that_is_killed_and_started_again_takes_nobody_out
        a_discoverer_beside_haproxy_that_is_killed_and_started_again_costs_no_request
        a_worker_or_a_master_of_haproxy_that_is_killed_costs_what_was_in_flight;
}

async fn a_registrar_that_is_killed_and_started_again_takes_nobody_out(api: Api) {
    within(120, async {
        let mut site = Site::start(Cluster::start(api).await, Plan::default()).await;
        site.churns();
        for _ in 0..3 {
            site.wait_changes(20).await;
            site.agent.process().kill_now().await;
            site.wait_changes(10).await;
            site.agent.start_again();
        }
        site.wait_changes(20).await;
        let before = site.effort().await;
        site.wait_changes(20).await;
        site.ends_well(SETTLED, &before, 500).await;
    })
    .await;
}

async fn a_discoverer_beside_haproxy_that_is_killed_and_started_again_costs_no_request(api: Api) {
    within(120, async {
        let mut site = Site::start(Cluster::start(api).await, Plan { beside: true, ..Plan::default() }).await;
        site.churns();
        for _ in 0..3 {
            site.wait_changes(20).await;
            site.discoverer.process().kill_now().await;
            drop(site.discoverer.take_process());
            site.wait_changes(10).await;
            site.discoverer.start_again();
        }
        site.wait_changes(20).await;
        let before = site.effort().await;
        site.wait_changes(20).await;
        site.ends_well(SETTLED, &before, 500).await;
    })
    .await;
}

async fn a_worker_or_a_master_of_haproxy_that_is_killed_costs_what_was_in_flight(api: Api) {
    within(120, async {
        let mut site = Site::start(Cluster::start(api).await, Plan::default()).await;
        let before = site.effort().await;
        site.churns();
        let mut kills = 0;
        for kills_master in [false, true] {
            site.wait_changes(20).await;
            let (cli, stats) = (site.discoverer.master_socket(), site.discoverer.runtime_socket());
            let (master, worker) = wait_until(SOON, "master and worker say who they are", async || {
                let pid = |pid: u32| Pid::from_raw(pid.cast_signed());
                Ok((pid(master(&cli).await?), pid(worker(&stats).await?)))
            })
            .await;
            kill(if kills_master { master } else { worker }, Signal::SIGKILL).unwrap();
            kills += 1;
            wait_haproxy_after(&mut site, &[master, worker]).await;
        }
        site.wait_changes(20).await;
        let clients = site.clients();
        let report = site.comes_to_rest(SETTLED, &before, 500).await;
        assert_only_in_flight(&report, kills * clients);
    })
    .await;
}

/// Waits for another master than the dead ones.
async fn wait_haproxy_after(site: &mut Site, dead: &[Pid]) {
    wait_until(SOON, "another HAProxy serves", async || {
        let alive: Vec<_> = dead.iter().filter(|pid| is_alive(**pid)).collect();
        if !alive.is_empty() {
            return Err(format!("{alive:?} are still alive"));
        }
        match e2e::http::get(site.discoverer.http(), "/").await {
            Ok(reply) if reply.status == 200 => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
}

/// Each client has one request in flight at most when an HAProxy is killed. Those that found nobody listening are reported.
fn assert_only_in_flight(report: &Report, most: usize) {
    let of = |kind: Kind| report.failures.iter().filter(|failure| failure.kind == kind).count();
    let (refused, in_flight) = (of(Kind::Refused), of(Kind::BrokeOff));
    let when = |kind: Kind| {
        let times = report.failures.iter().filter(|failure| failure.kind == kind).map(|failure| failure.after);
        times.max().unwrap_or(Duration::ZERO)
    };
    println!(
        "{in_flight} requests were in flight on a killed HAProxy; {refused} found nobody listening, the last at {:?}; {} served",
        when(Kind::Refused),
        report.served()
    );
    assert_eq!(refused + in_flight, report.failures.len(), "{:#?}", report.failures);
    assert!(in_flight <= most, "{:#?}", report.failures);
}
