//! The agent and its keys: it owns what it wrote, over its own end and etcd's, and touches nothing else.

use std::time::Duration;

use e2e::agent::{Agent, REGISTERED, instances, stays, wait_at, wait_instances, wait_none, wait_one};
use e2e::docker::Docker;
use e2e::etcd::Etcd;
use e2e::history::{Event, History};
use e2e::{secs, stays_true, wait_until, within};
use nix::sys::signal::Signal;

/// What follows, on a machine that is busy with other tests.
const SOON: Duration = secs(20);

/// Keys that others wrote: by hand, by a sidekick, by another host's agent, and what is no instance.
const FOREIGN: [(&str, &str); 4] = [
    ("/service/10.9.9.9:8000", "running"),
    ("/service/other/10.9.9.9:8001", r#"{"status":"running","agent":"another","id":"feed"}"#),
    ("/service/other/10.9.9.9:8002", r#"{"status":"draining","id":"feed"}"#),
    ("/service/other/nonsense", "nonsense"),
];

async fn assert_foreign_keys(etcd: &Etcd) {
    for (key, value) in FOREIGN {
        assert_eq!(etcd.get(key).await.expect(key)["value"], value, "{key}");
    }
}

#[tokio::test]
async fn sigterm_removes_the_own_keys_and_no_others() {
    within(60, async {
        let (etcd, docker) = (Etcd::start().await, Docker::for_apps().await);
        for (key, value) in FOREIGN {
            etcd.put(key, value).await;
        }
        let mut agent = Agent::start(&etcd, &[]);
        let (one, two) = (docker.app("one", &[]).await, docker.app("two", &[]).await);
        wait_at(&etcd, &docker.service("one"), one.published(8000).await, REGISTERED).await;
        wait_at(&etcd, &docker.service("two"), two.published(8000).await, REGISTERED).await;
        agent.stop().await;
        for service in ["one", "two"] {
            assert_eq!(instances(etcd.address(), &docker.service(service)).await.len(), 0, "{service}");
        }
        assert_foreign_keys(&etcd).await;
    })
    .await;
}

#[tokio::test]
async fn an_upgrade_with_keep_on_exit_leaves_no_gap() {
    within(60, async {
        let (etcd, docker) = (Etcd::start().await, Docker::for_apps().await);
        let mut agent = Agent::start(&etcd, &["--keep-on-exit", "--ttl", "10s"]);
        let history = History::start(etcd.address()).await;
        let (app, web) = (docker.app("web", &[]).await, docker.service("web"));
        let before = wait_at(&etcd, &web, app.published(8000).await, REGISTERED).await;
        agent.stop().await;
        assert_eq!(instances(etcd.address(), &web).await.len(), 1);
        agent.start_again();
        // Longer than its time to live: the new one refreshes it.
        stays(&etcd, &web, 1, secs(12)).await;
        let after = wait_one(&etcd, &web, SOON).await;
        assert_eq!((after.created_index, after.record), (before.created_index, before.record));
        assert!(!history.of(&web).iter().any(Event::is_removal), "{:?}", history.of(&web));
    })
    .await;
}

#[tokio::test]
async fn after_kill_9_the_keys_of_the_dead_go_and_those_of_the_living_were_never_gone() {
    within(90, async {
        let (etcd, docker) = (Etcd::start().await, Docker::for_apps().await);
        for (key, value) in FOREIGN {
            etcd.put(key, value).await;
        }
        let mut agent = Agent::start(&etcd, &["--ttl", "60s"]);
        let history = History::start(etcd.address()).await;
        let mut apps = Vec::new();
        for name in ["a", "b", "c", "d"] {
            let app = docker.app(name, &[]).await;
            apps.push((wait_at(&etcd, &docker.service(name), app.published(8000).await, REGISTERED).await, app));
        }
        agent.process().kill_now().await;
        let (gone, living) = apps.split_at(2);
        for (_, app) in gone {
            app.tell("rm --force").await;
        }
        agent.start_again();
        for (instance, _) in gone {
            history.wait(REGISTERED, &instance.key, "is removed", Event::is_removal).await;
        }
        stays_true(secs(2), "the living are there as before", async || {
            for (instance, _) in living {
                let node = etcd.get(&instance.key).await.ok_or_else(|| format!("{} is gone", instance.key))?;
                if node["createdIndex"] != instance.created_index {
                    return Err(format!("{} was gone", instance.key));
                }
            }
            Ok(())
        })
        .await;
        for (instance, _) in living {
            assert!(!history.of(&instance.key).iter().any(Event::is_removal), "{:?}", history.of(&instance.key));
        }
        assert_foreign_keys(&etcd).await;
        // It owns them again.
        living[0].1.tell("kill").await;
        wait_none(&etcd, &docker.service("c"), SOON).await;
    })
    .await;
}

#[tokio::test]
async fn etcd_away_and_back_and_everything_is_registered_within_seconds() {
    within(180, async {
        let (mut etcd, docker) = (Etcd::start().await, Docker::for_apps().await);
        let mut agent = Agent::start(&etcd, &[]);
        let (one, two) = (docker.app("one", &[]).await, docker.app("two", &[]).await);
        wait_at(&etcd, &docker.service("one"), one.published(8000).await, REGISTERED).await;
        wait_at(&etcd, &docker.service("two"), two.published(8000).await, REGISTERED).await;
        etcd.stop().await;
        // One comes, one goes, and one gets another port meanwhile.
        let three = docker.app("three", &[]).await;
        one.tell("kill").await;
        two.tell("restart").await;
        agent.wait_logged(SOON, &["etcd cannot be"]).await;
        etcd.start_again().await;
        wait_at(&etcd, &docker.service("three"), three.published(8000).await, SOON).await;
        wait_at(&etcd, &docker.service("two"), two.published(8000).await, SOON).await;
        wait_none(&etcd, &docker.service("one"), SOON).await;
        // Everything lost: written again.
        etcd.wipe().await;
        wait_at(&etcd, &docker.service("two"), two.published(8000).await, secs(30)).await;
        wait_at(&etcd, &docker.service("three"), three.published(8000).await, secs(30)).await;
        agent.assert_runs();
    })
    .await;
}

#[tokio::test]
async fn started_before_etcd_it_waits_and_stopped_without_etcd_it_ends() {
    within(60, async {
        let (mut etcd, docker) = (Etcd::absent(), Docker::for_apps().await);
        let mut agent = Agent::start(&etcd, &[]);
        let (app, web) = (docker.app("web", &[]).await, docker.service("web"));
        agent.wait_logged(SOON, &["etcd cannot be"]).await;
        etcd.start_again().await;
        wait_at(&etcd, &web, app.published(8000).await, SOON).await;
        etcd.kill().await;
        // It tries to remove its keys, and does not try for ever.
        agent.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_key_that_is_gone_is_written_again_and_one_that_is_anothers_is_left_alone() {
    within(60, async {
        let (etcd, docker) = (Etcd::start().await, Docker::for_apps().await);
        let agent = Agent::start(&etcd, &["--ttl", "3s"]);
        let (app, web) = (docker.app("web", &[]).await, docker.service("web"));
        let one = wait_at(&etcd, &web, app.published(8000).await, REGISTERED).await;
        etcd.delete(&one.key).await;
        wait_at(&etcd, &web, app.published(8000).await, SOON).await;

        etcd.put(&one.key, "running").await;
        agent.wait_logged(SOON, &["WARN", &one.address]).await;
        stays_true(secs(3), "the other's key is there as it was", async || match etcd.get(&one.key).await {
            Some(node) if node["value"] == "running" => Ok(()),
            other => Err(format!("{other:?}")),
        })
        .await;
        app.tell("kill").await;
        stays(&etcd, &web, 1, secs(1)).await;
    })
    .await;
}

#[tokio::test]
async fn an_operators_draining_record_is_adopted_and_kept() {
    within(120, async {
        let (etcd, docker) = (Etcd::start().await, Docker::for_apps().await);
        let mut agent = Agent::start(&etcd, &["--ttl", "10s", "--keep-on-exit"]);
        let (app, web) = (docker.app("web", &[]).await, docker.service("web"));
        let one = wait_at(&etcd, &web, app.published(8000).await, REGISTERED).await;
        let mut record = one.record.clone();
        record["status"] = "draining".into();
        etcd.put(&one.key, &record.to_string()).await;
        let is_kept = async || {
            let found = instances(etcd.address(), &web).await;
            match found.as_slice() {
                [kept] if kept.status() == "draining" && kept.ttl > 0 => Ok(()),
                // The operator's own write has no time to live until it is adopted.
                [kept] if kept.status() == "draining" => Err("not adopted".to_owned()),
                _ => Err(format!("{found:?}")),
            }
        };
        wait_until(SOON, "it is adopted", is_kept).await;
        stays_true(secs(12), "it is refreshed as it is", is_kept).await;
        // So does the agent's successor keep it.
        agent.stop().await;
        agent.start_again();
        stays_true(secs(12), "the next one keeps it", is_kept).await;
        record["status"] = "running".into();
        etcd.put(&one.key, &record.to_string()).await;
        stays_true(secs(12), "it runs again", async || {
            let found = instances(etcd.address(), &web).await;
            if found.len() == 1 && found[0].status() == "running" { Ok(()) } else { Err(format!("{found:?}")) }
        })
        .await;
        app.tell("kill").await;
        wait_none(&etcd, &web, SOON).await;
    })
    .await;
}

#[tokio::test]
async fn an_agent_that_was_frozen_for_longer_than_the_time_to_live_goes_on() {
    within(120, async {
        let (etcd, docker) = (Etcd::start().await, Docker::for_apps().await);
        let mut agent = Agent::start(&etcd, &["--ttl", "2s"]);
        let (one, two) = (docker.app("one", &[]).await, docker.app("two", &[]).await);
        wait_at(&etcd, &docker.service("one"), one.published(8000).await, REGISTERED).await;
        wait_at(&etcd, &docker.service("two"), two.published(8000).await, REGISTERED).await;
        agent.process().signal(Signal::SIGSTOP);
        wait_none(&etcd, &docker.service("one"), SOON).await;
        wait_none(&etcd, &docker.service("two"), SOON).await;
        one.tell("kill").await;
        agent.process().signal(Signal::SIGCONT);
        wait_at(&etcd, &docker.service("two"), two.published(8000).await, SOON).await;
        // It may write what it knew before it is told of the kill.
        wait_none(&etcd, &docker.service("one"), SOON).await;
        stays(&etcd, &docker.service("one"), 0, secs(1)).await;
        agent.assert_runs();
    })
    .await;
}

#[tokio::test]
async fn its_id_outlives_it_and_a_state_directory_that_cannot_be_used_is_an_error_with_the_way_out() {
    within(60, async {
        let (etcd, docker) = (Etcd::start().await, Docker::for_apps().await);
        let mut agent = Agent::start(&etcd, &[]);
        let (app, web) = (docker.app("web", &[]).await, docker.service("web"));
        let published = app.published(8000).await;
        let first = wait_at(&etcd, &web, published, REGISTERED).await.record["agent"].clone();
        agent.stop().await;
        agent.start_again();
        assert_eq!(wait_at(&etcd, &web, published, REGISTERED).await.record["agent"], first);
        agent.stop().await;

        let given = Agent::start(&etcd, &["--agent-id", "host-1.example"]);
        assert_eq!(wait_at(&etcd, &web, published, REGISTERED).await.record["agent"], "host-1.example");
        drop(given);
        let mut bad = Agent::start(&etcd, &["--state-dir", "/proc/no-such-directory"]);
        assert_ne!(bad.process().wait(SOON).await.code(), Some(0));
        let log = bad.process().log();
        assert!(log.contains("/proc/no-such-directory") && log.contains("--agent-id"), "{log}");
    })
    .await;
}

#[tokio::test]
async fn two_agents_on_one_etcd_leave_each_others_keys_alone() {
    within(60, async {
        let (etcd, docker) = (Etcd::start().await, Docker::for_apps().await);
        let mut one = Agent::start(&etcd, &["--ip", "127.0.0.1"]);
        let two = Agent::start(&etcd, &["--ip", "127.0.0.2", "--host", "host-2"]);
        let (app, web) = (docker.app("web", &["--publish", "127.0.0.2::8000"]).await, docker.service("web"));
        wait_instances(&etcd, &web, 2, REGISTERED).await;
        one.stop().await;
        let left = wait_one(&etcd, &web, SOON).await;
        assert!(left.address.starts_with("127.0.0.2:") && left.record["host"] == "host-2", "{left:?}");
        one.start_again();
        wait_instances(&etcd, &web, 2, REGISTERED).await;
        app.tell("kill").await;
        wait_none(&etcd, &web, SOON).await;
        drop(two);
    })
    .await;
}
