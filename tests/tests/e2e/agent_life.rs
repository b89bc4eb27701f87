//! The agent and a container's life: registered while it lives, draining before it goes.

use std::time::Duration;

use e2e::agent::{Agent, REGISTERED, stays, wait_at, wait_none};
use e2e::docker::{Docker, docker_ok};
use e2e::etcd::Etcd;
use e2e::history::{Event, History};
use e2e::{secs, wait_until, within};

/// What follows an event of Docker's, on a machine that is busy with other tests.
const SOON: Duration = secs(20);

#[tokio::test]
async fn a_container_is_registered_with_its_record_and_refreshed_without_a_word() {
    within(60, async {
        let (etcd, docker) = (Etcd::start().await, Docker::for_apps().await);
        let agent = Agent::start(&etcd, &["--ttl", "10s"]);
        let history = History::start(etcd.address()).await;
        let (app, web) = (docker.app("web", &[]).await, docker.service("web"));
        let published = app.published(8000).await;
        let one = wait_at(&etcd, &web, published, REGISTERED).await;
        assert_eq!(one.key, format!("/service/{web}/{published}"));
        assert_eq!(one.status(), "running");
        assert_eq!(one.record["id"], app.id());
        assert_eq!(one.record["name"], format!("{}-web", docker.name()));
        assert_eq!(one.record["host"], "host-1");
        assert!(one.record["agent"].as_str().is_some_and(|id| !id.is_empty()), "{one:?}");
        let started = docker_ok(&["inspect", "--format", "{{.State.StartedAt}}", app.id()]).await;
        assert_eq!(one.record["registered"], started.trim());
        assert!((1..=10).contains(&one.ttl), "{one:?}");
        // Longer there than its time to live, and nobody is woken.
        stays(&etcd, &web, 1, secs(12)).await;
        assert_eq!(history.of(&web).len(), 1, "{:?}", history.of(&web));
        assert_eq!(agent.logged(&["ERROR"]), Vec::<String>::new());
    })
    .await;
}

#[tokio::test]
async fn what_runs_before_the_agent_is_registered_at_its_start() {
    within(60, async {
        let (etcd, docker) = (Etcd::start().await, Docker::for_apps().await);
        let (one, two) = (docker.app("one", &[]).await, docker.app("two", &[]).await);
        let made = docker.create("made", &["--publish", "127.0.0.1::8000", "e2e/app"]).await;
        two.tell("stop").await;
        let _agent = Agent::start(&etcd, &[]);
        wait_at(&etcd, &docker.service("one"), one.published(8000).await, REGISTERED).await;
        stays(&etcd, &docker.service("two"), 0, secs(1)).await;
        two.tell("start").await;
        wait_at(&etcd, &docker.service("two"), two.published(8000).await, REGISTERED).await;
        drop(made);
    })
    .await;
}

#[tokio::test]
async fn docker_stop_drains_first_and_removes_when_it_is_dead() {
    within(90, async {
        let (etcd, docker) = (Etcd::start().await, Docker::for_apps().await);
        let _agent = Agent::start(&etcd, &[]);
        let history = History::start(etcd.address()).await;
        let (app, web) = (docker.app("web", &["--env", "LINGER_MS=8000"]).await, docker.service("web"));
        let running = wait_at(&etcd, &web, app.published(8000).await, REGISTERED).await;
        app.tell("stop --time 30").await;
        wait_none(&etcd, &web, SOON).await;
        let story = history.of(&web);
        let kinds: Vec<(bool, bool)> = story.iter().map(|event| (event.is_draining(), event.is_removal())).collect();
        assert_eq!(kinds, [(false, false), (true, false), (false, true)], "{story:?}");
        // The application lives on for 8 s after its signal; both may be seen late on a busy machine.
        let drained = story[2].at - story[1].at;
        assert!(drained >= secs(1), "it drains as long as the application lives: {drained:?}");
        // Nothing but the status is another one, and whose word that is.
        let mut record: serde_json::Value = serde_json::from_str(&story[1].value).unwrap();
        record["status"] = "running".into();
        assert_eq!(record.as_object_mut().unwrap().remove("stopping"), Some(true.into()));
        assert_eq!(record, running.record);
    })
    .await;
}

#[tokio::test]
async fn docker_kill_removes_at_once() {
    within(90, async {
        let (etcd, docker) = (Etcd::start().await, Docker::for_apps().await);
        let _agent = Agent::start(&etcd, &[]);
        let (app, web) = (docker.app("web", &[]).await, docker.service("web"));
        wait_at(&etcd, &web, app.published(8000).await, REGISTERED).await;
        app.tell("kill").await;
        wait_none(&etcd, &web, SOON).await;
        app.tell("start").await;
        wait_at(&etcd, &web, app.published(8000).await, REGISTERED).await;
        app.tell("rm --force").await;
        wait_none(&etcd, &web, SOON).await;
    })
    .await;
}

#[tokio::test]
async fn a_signal_that_does_not_stop_drains_nobody() {
    within(60, async {
        let (etcd, docker) = (Etcd::start().await, Docker::for_apps().await);
        let _agent = Agent::start(&etcd, &[]);
        let history = History::start(etcd.address()).await;
        let (app, web) = (docker.app("web", &[]).await, docker.service("web"));
        wait_at(&etcd, &web, app.published(8000).await, REGISTERED).await;
        for signal in ["HUP", "USR1", "1", "WINCH"] {
            app.tell(&format!("kill --signal {signal}")).await;
        }
        stays(&etcd, &web, 1, secs(1)).await;
        assert!(history.of(&web).iter().all(Event::is_running), "{:?}", history.of(&web));
    })
    .await;
}

#[tokio::test]
async fn a_container_that_lives_on_after_its_stop_signal_is_running_again() {
    within(120, async {
        let (etcd, docker) = (Etcd::start().await, Docker::for_apps().await);
        let _agent = Agent::start(&etcd, &["--kill-grace", "3s"]);
        let history = History::start(etcd.address()).await;
        // Both go on after the signal that is meant to stop them.
        let term = docker.app("term", &["--env", "LINGER_MS=60000"]).await;
        let own = docker.app("own", &["--stop-signal", "SIGUSR2"]).await;
        for (app, name, signal) in [(&term, "term", "TERM"), (&own, "own", "USR2")] {
            let service = docker.service(name);
            wait_at(&etcd, &service, app.published(8000).await, REGISTERED).await;
            app.tell(&format!("kill --signal {signal}")).await;
            let draining = history.wait(SOON, &service, "drains", Event::is_draining).await;
            let again =
                history.wait(SOON, &service, "runs again", |event| event.at > draining.at && event.is_running()).await;
            // 3 s, but for how late the first of them was seen.
            let grace = again.at - draining.at;
            assert!(grace >= secs(1), "{signal}: running again after {grace:?}");
            assert!(!history.of(&service).iter().any(Event::is_removal), "{:?}", history.of(&service));
        }
    })
    .await;
}

#[tokio::test]
async fn a_paused_container_goes_and_comes_back() {
    within(60, async {
        let (etcd, docker) = (Etcd::start().await, Docker::for_apps().await);
        let _agent = Agent::start(&etcd, &[]);
        let (app, web) = (docker.app("web", &[]).await, docker.service("web"));
        wait_at(&etcd, &web, app.published(8000).await, REGISTERED).await;
        app.tell("pause").await;
        wait_none(&etcd, &web, SOON).await;
        stays(&etcd, &web, 0, secs(1)).await;
        app.tell("unpause").await;
        wait_at(&etcd, &web, app.published(8000).await, REGISTERED).await;
    })
    .await;
}

#[tokio::test]
async fn another_name_changes_the_record_and_keeps_the_key() {
    within(60, async {
        let (etcd, docker) = (Etcd::start().await, Docker::for_apps().await);
        let _agent = Agent::start(&etcd, &[]);
        let (app, web) = (docker.app("web", &[]).await, docker.service("web"));
        let before = wait_at(&etcd, &web, app.published(8000).await, REGISTERED).await;
        let name = format!("{}-renamed", docker.name());
        docker_ok(&["rename", app.id(), &name]).await;
        let after = wait_until(SOON, "the record has the new name", async || {
            let one = wait_at(&etcd, &web, app.published(8000).await, SOON).await;
            if one.record["name"] == name { Ok(one) } else { Err(format!("{one:?}")) }
        })
        .await;
        assert_eq!(after.created_index, before.created_index, "it was never gone");
    })
    .await;
}

#[tokio::test]
async fn docker_restart_leaves_only_the_new_port() {
    within(90, async {
        let (etcd, docker) = (Etcd::start().await, Docker::for_apps().await);
        let _agent = Agent::start(&etcd, &[]);
        let history = History::start(etcd.address()).await;
        // One that ends at once may be gone before anybody could be told that it is about to.
        let (app, web) = (docker.app("web", &["--env", "LINGER_MS=5000"]).await, docker.service("web"));
        let before = app.published(8000).await;
        wait_at(&etcd, &web, before, REGISTERED).await;
        app.tell("restart").await;
        let after = app.published(8000).await;
        assert_ne!(before, after, "Docker gives another port at each start");
        let one = wait_at(&etcd, &web, after, REGISTERED).await;
        assert_eq!(one.status(), "running");
        let old = history.of(&before.to_string());
        assert!(old.iter().any(Event::is_draining), "it drained before: {old:?}");
        // And it stays so: no late word about the old container's life counts for the new one.
        stays(&etcd, &web, 1, secs(1)).await;
        assert!(history.of(&after.to_string()).iter().all(Event::is_running), "{:?}", history.of(&web));
    })
    .await;
}

#[tokio::test]
async fn an_agent_that_was_killed_while_it_drained_a_container_lets_it_run_again() {
    within(90, async {
        let (etcd, docker) = (Etcd::start().await, Docker::for_apps().await);
        let mut agent = Agent::start(&etcd, &["--kill-grace", "4s", "--ttl", "30s"]);
        let history = History::start(etcd.address()).await;
        let (app, web) = (docker.app("web", &["--env", "LINGER_MS=60000"]).await, docker.service("web"));
        let before = wait_at(&etcd, &web, app.published(8000).await, REGISTERED).await;
        app.tell("kill --signal TERM").await;
        history.wait(SOON, &web, "drains", Event::is_draining).await;
        agent.process().kill_now().await;
        agent.start_again();
        let after = wait_until(SOON, "it runs again", async || {
            let one = wait_at(&etcd, &web, app.published(8000).await, SOON).await;
            if one.status() == "running" { Ok(one) } else { Err(format!("{one:?}")) }
        })
        .await;
        assert_eq!(after.created_index, before.created_index, "it was never gone");
    })
    .await;
}
