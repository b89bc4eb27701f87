//! The agent and a Docker that is away, ill, old or silent, or that runs hundreds of containers: scripted.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use e2e::agent::{Agent, REGISTERED, instances, stays, wait_at, wait_instances, wait_none};
use e2e::backend::Backend;
use e2e::etcd::Etcd;
use e2e::fake_docker::{FakeDocker, Sickness, Spec};
use e2e::history::{Event, History};
use e2e::{secs, wait_until, within};
use nix::sys::signal::Signal;

/// What follows, on a machine that is busy with other tests.
const SOON: Duration = secs(20);
/// Without an event, a change is found by the next list.
const BY_THE_LIST: Duration = secs(100);

/// One application for all containers: all of 127.0.0.0/8 lead to it.
async fn application() -> Backend {
    Backend::start_at("application", SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0))).await
}

fn spec(service: &str, number: u8, application: &Backend) -> Spec {
    let own = (Ipv4Addr::new(127, 77, 0, number), application.address().port());
    Spec::new(&format!("{service}-{number}"), service, own, 40_000 + u16::from(number))
}

fn mapped(number: u8) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, 40_000 + u16::from(number)))
}

fn start(etcd: &Etcd, docker: &FakeDocker) -> Agent {
    Agent::start(etcd, &["--docker", &docker.path().display().to_string()])
}

#[tokio::test]
async fn docker_away_at_the_start_or_later_is_waited_for() {
    within(120, async {
        let (etcd, app, mut docker) = (Etcd::start().await, application().await, FakeDocker::absent());
        let mut agent = start(&etcd, &docker);
        let history = History::start(etcd.address()).await;
        let said = agent.wait_logged(SOON, &["docker.sock"]).await;
        assert!(said.contains("WARN") || said.contains("ERROR"), "{said}");
        docker.listen();
        let one = docker.run(&spec("web", 1, &app));
        wait_at(&etcd, "web", mapped(1), SOON).await;

        docker.close();
        stays(&etcd, "web", 1, secs(2)).await;
        let (_two, _) = (docker.run(&spec("other", 2, &app)), docker.stop(&one));
        docker.listen();
        wait_at(&etcd, "other", mapped(2), SOON).await;
        wait_none(&etcd, "web", SOON).await;
        assert!(history.of("other").iter().all(Event::is_running));
        agent.assert_runs();
    })
    .await;
}

#[tokio::test]
async fn what_docker_says_wrong_is_told_once_and_changes_nothing() {
    within(90, async {
        let (etcd, app, docker) = (Etcd::start().await, application().await, FakeDocker::start());
        let mut agent = start(&etcd, &docker);
        docker.run(&spec("web", 1, &app));
        wait_at(&etcd, "web", mapped(1), REGISTERED).await;
        let sicknesses = [
            Sickness::Says500,
            Sickness::ClosesHalfWay,
            Sickness::Rubbish,
            Sickness::WrongType,
            Sickness::Slow(secs(1)),
        ];
        // Without the time that each line begins with.
        let told = |agent: &mut Agent| {
            let log = agent.process().log();
            let lines = log.lines().filter(|line| line.contains(" WARN ") || line.contains("ERROR "));
            lines.filter_map(|line| Some(line.split_once(' ')?.1.to_owned())).collect::<Vec<_>>()
        };
        for (number, sickness) in (2..).zip(sicknesses) {
            let before = told(&mut agent).len();
            docker.falls_ill("", sickness);
            docker.ends_streams();
            docker.run(&spec("late", number, &app));
            stays(&etcd, "web", 1, Duration::from_millis(1500)).await;
            docker.recovers();
            wait_instances(&etcd, "late", usize::from(number) - 1, SOON).await;
            agent.assert_runs();
            let mut new = told(&mut agent).split_off(before);
            assert!(!new.is_empty(), "{sickness:?}, and the stream has ended");
            new.sort();
            let twice = new.windows(2).find(|pair| pair[0] == pair[1]);
            assert_eq!(twice, None, "{sickness:?}: {new:#?}");
        }
        assert!(!agent.process().log().contains("panicked"));
    })
    .await;
}

#[tokio::test]
async fn a_container_that_is_gone_before_it_is_inspected_is_no_trouble() {
    within(60, async {
        let (etcd, app, docker) = (Etcd::start().await, application().await, FakeDocker::start());
        let mut agent = start(&etcd, &docker);
        for number in 1..=20 {
            let id = docker.run_unseen(&spec("gone", number, &app));
            docker.remove_unseen(&id);
            docker.says("start", &id, &[]);
        }
        docker.run(&spec("web", 99, &app));
        wait_at(&etcd, "web", mapped(99), SOON).await;
        stays(&etcd, "gone", 0, secs(1)).await;
        agent.assert_runs();
        assert_eq!(agent.logged(&["ERROR"]), Vec::<String>::new());
    })
    .await;
}

#[tokio::test]
async fn a_container_of_which_docker_says_too_much_is_named_and_left_out_and_costs_no_memory() {
    within(90, async {
        let (etcd, app, docker) = (Etcd::start().await, application().await, FakeDocker::start());
        let mut agent = start(&etcd, &docker);
        docker.run(&spec("web", 1, &app));
        wait_at(&etcd, "web", mapped(1), REGISTERED).await;
        let much = docker.run_unseen(&spec("much", 2, &app));
        docker.falls_ill(&much, Sickness::Endless);
        docker.says("start", &much, &[]);
        let began = Instant::now();
        agent
            .wait_logged(SOON, &["cannot be read", &much, "more than 8 MiB", "labels, environment and arguments"])
            .await;
        docker.run(&spec("other", 3, &app));
        wait_at(&etcd, "other", mapped(3), SOON).await;
        stays(&etcd, "much", 0, secs(4)).await;
        stays(&etcd, "web", 1, Duration::ZERO).await;
        let (asked, span) = (docker.requests(&much), began.elapsed());
        // Twice each time: first as if it were not long.
        assert!(asked < 20, "the pauses grow: {asked} times in {span:?}");
        assert_eq!(agent.logged(&["cannot be read"]).len(), 1);
        let said = agent.explain(&much).await;
        assert!(said.code == Some(1) && said.stdout.contains("more than 8 MiB"), "{said:?}");
        let peak = agent.process().peak_memory();
        assert!(peak < 100, "{peak} MiB");
        docker.recovers();
        wait_at(&etcd, "much", mapped(2), secs(20)).await;
    })
    .await;
}

#[tokio::test]
async fn a_list_or_an_event_without_end_is_as_a_docker_that_does_not_answer_and_costs_no_memory() {
    within(150, async {
        let (etcd, app, docker) = (Etcd::start().await, application().await, FakeDocker::start());
        let mut agent = start(&etcd, &docker);
        let web = docker.run(&spec("web", 1, &app));
        wait_at(&etcd, "web", mapped(1), REGISTERED).await;
        // Long events, and together more than one may be.
        for _ in 0..8 {
            docker.says("rename", &web, &[("long", &"x".repeat(900_000))]);
        }
        docker.run(&spec("long", 2, &app));
        wait_at(&etcd, "long", mapped(2), SOON).await;
        assert_eq!(agent.logged(&["ERROR"]), Vec::<String>::new());

        // It is not asked for again, though Docker would tell it again.
        docker.says("rename", &web, &[("long", &"x".repeat(2_000_000))]);
        agent.wait_logged(SOON, &["does not tell what happens", "more than 1 MiB", "docker ps --no-trunc"]).await;
        docker.run(&spec("after", 3, &app));
        wait_at(&etcd, "after", mapped(3), SOON).await;
        agent.wait_logged(SOON, &["Docker answers again"]).await;

        docker.falls_ill("/events", Sickness::Endless);
        docker.ends_streams();
        wait_until(SOON, "it is told again", async || {
            let told = agent.logged(&["does not tell what happens", "more than 1 MiB"]);
            if told.len() == 2 { Ok(()) } else { Err(format!("{told:#?}")) }
        })
        .await;
        docker.run_unseen(&spec("listed", 4, &app));
        wait_at(&etcd, "listed", mapped(4), SOON).await;
        let peak = agent.process().peak_memory();
        assert!(peak < 100, "{peak} MiB");
        docker.recovers();

        docker.falls_ill("/containers/json", Sickness::Endless);
        docker.ends_streams();
        agent.wait_logged(SOON, &["does not list its containers", "more than 32 MiB"]).await;
        docker.run(&spec("told", 5, &app));
        wait_at(&etcd, "told", mapped(5), SOON).await;
        stays(&etcd, "web", 1, secs(2)).await;
        let peak = agent.process().peak_memory();
        assert!(peak < 150, "{peak} MiB");
        docker.recovers();
        docker.run_unseen(&spec("unseen", 6, &app));
        wait_at(&etcd, "unseen", mapped(6), SOON).await;
        agent.assert_runs();
    })
    .await;
}

#[tokio::test]
async fn inspections_that_hang_or_fail_delay_nobody_and_are_tried_again() {
    within(90, async {
        let (etcd, app, docker) = (Etcd::start().await, application().await, FakeDocker::start());
        let _agent = start(&etcd, &docker);
        docker.run(&spec("first", 1, &app));
        wait_at(&etcd, "first", mapped(1), REGISTERED).await;
        for number in 2..=4 {
            let hangs = docker.run_unseen(&spec("hangs", number, &app));
            docker.falls_ill(&hangs, Sickness::Silent);
            docker.says("start", &hangs, &[]);
        }
        let fails = docker.run_unseen(&spec("fails", 5, &app));
        docker.falls_ill(&fails, Sickness::Says500);
        docker.says("start", &fails, &[]);
        docker.run(&spec("web", 6, &app));
        // One inspection is given up after 5 s: three, one after the other, would take longer than this.
        wait_at(&etcd, "web", mapped(6), secs(12)).await;
        docker.recovers();
        wait_at(&etcd, "fails", mapped(5), secs(20)).await;
        wait_instances(&etcd, "hangs", 3, secs(20)).await;
    })
    .await;
}

#[tokio::test]
async fn a_stream_that_ended_is_opened_again_and_what_was_missed_is_seen() {
    within(120, async {
        let (etcd, app, docker) = (Etcd::start().await, application().await, FakeDocker::start());
        let _agent = start(&etcd, &docker);
        let one = docker.run(&spec("web", 1, &app));
        wait_at(&etcd, "web", mapped(1), REGISTERED).await;
        for number in 2..=5 {
            docker.ends_streams();
            let next = docker.run(&spec("web", number, &app));
            wait_instances(&etcd, "web", usize::from(number), SOON).await;
            assert!(!next.is_empty());
        }
        // No event at all, but the stream ended: the list is compared.
        docker.remove_unseen(&one);
        docker.ends_streams();
        wait_instances(&etcd, "web", 4, SOON).await;
        let opened = docker.requests("/events");
        assert!((5..=20).contains(&opened), "{opened} streams were opened");
    })
    .await;
}

#[tokio::test]
async fn events_that_docker_refuses_are_told_once_and_the_lists_go_on() {
    within(90, async {
        let (etcd, app, docker) = (Etcd::start().await, application().await, FakeDocker::start());
        docker.falls_ill("/events", Sickness::Says500);
        let agent = start(&etcd, &docker);
        docker.run(&spec("web", 1, &app));
        wait_at(&etcd, "web", mapped(1), SOON).await;
        wait_until(secs(30), "the stream was tried some times", async || match docker.requests("/events") {
            tried if tried >= 5 => Ok(()),
            tried => Err(format!("{tried} times")),
        })
        .await;
        assert_eq!(agent.logged(&["Docker does not tell"]).len(), 1, "{:#?}", agent.logged(&["ocker"]));
        assert_eq!(agent.logged(&["Docker answers again"]), Vec::<String>::new());
        docker.recovers();
        agent.wait_logged(secs(20), &["Docker answers again"]).await;
    })
    .await;
}

#[tokio::test]
async fn a_clock_that_is_set_back_hides_no_event() {
    within(90, async {
        let (etcd, app, docker) = (Etcd::start().await, application().await, FakeDocker::start());
        let _agent = start(&etcd, &docker);
        let one = docker.run(&spec("web", 1, &app));
        wait_at(&etcd, "web", mapped(1), REGISTERED).await;
        // Until then what is told of the past is taken for what Docker tells late.
        tokio::time::sleep(secs(6)).await;
        docker.sets_its_clock_back(secs(3600));
        let lists = docker.requests("/containers/json");
        docker.run(&spec("late", 2, &app));
        wait_at(&etcd, "late", mapped(2), SOON).await;
        docker.stop(&one);
        wait_none(&etcd, "web", SOON).await;
        assert_eq!(docker.requests("/containers/json"), lists, "the events told it, and no list");
    })
    .await;
}

#[tokio::test]
async fn a_stream_that_went_quiet_hides_nothing_for_long() {
    within(240, async {
        let (etcd, app, docker) = (Etcd::start().await, application().await, FakeDocker::start());
        let _agent = start(&etcd, &docker);
        let one = docker.run(&spec("web", 1, &app));
        wait_at(&etcd, "web", mapped(1), REGISTERED).await;
        docker.mutes_streams(true);
        docker.stop(&one);
        docker.run(&spec("late", 2, &app));
        wait_at(&etcd, "late", mapped(2), BY_THE_LIST).await;
        wait_none(&etcd, "web", SOON).await;
    })
    .await;
}

#[tokio::test]
async fn an_old_version_of_the_api_is_spoken() {
    within(60, async {
        let (etcd, app, docker) = (Etcd::start().await, application().await, FakeDocker::start());
        docker.speaks("1.24");
        let agent = start(&etcd, &docker);
        docker.run(&spec("web", 1, &app));
        wait_at(&etcd, "web", mapped(1), REGISTERED).await;
        assert_eq!(agent.logged(&["ERROR"]), Vec::<String>::new());
    })
    .await;
}

#[tokio::test]
async fn of_two_that_claim_one_key_the_newest_has_it_and_the_other_is_told() {
    within(90, async {
        let (etcd, app, docker) = (Etcd::start().await, application().await, FakeDocker::start());
        let agent = start(&etcd, &docker);
        let history = History::start(etcd.address()).await;
        let mut older = spec("web", 1, &app);
        older.name = "older".to_owned();
        let newer = Spec { name: "newer".to_owned(), ip: Ipv4Addr::new(127, 77, 0, 2).into(), ..older.clone() };
        let first = docker.run(&older);
        assert_eq!(wait_at(&etcd, "web", mapped(1), REGISTERED).await.record["id"], first);
        let second = docker.run(&newer);
        wait_until(SOON, "the newer one has it", async || {
            let one = wait_at(&etcd, "web", mapped(1), SOON).await;
            if one.record["id"] == second { Ok(()) } else { Err(format!("{one:?}")) }
        })
        .await;
        agent.wait_logged(SOON, &["claim", &mapped(1).to_string()]).await;
        // The older one's end does not take the newer one's key; the newer one's end gives it back.
        docker.stop(&first);
        stays(&etcd, "web", 1, secs(1)).await;
        assert!(
            !history.of("web").iter().any(|event| event.is_removal() || event.is_draining()),
            "{:?}",
            history.of("web")
        );
        docker.run(&Spec { name: "third".to_owned(), ..older });
        docker.stop(&second);
        wait_until(SOON, "the third one has it", async || {
            let one = wait_at(&etcd, "web", mapped(1), SOON).await;
            if one.record["name"] == "third" { Ok(()) } else { Err(format!("{one:?}")) }
        })
        .await;
    })
    .await;
}

#[tokio::test]
async fn one_that_claims_anothers_key_and_does_not_answer_takes_nothing() {
    within(60, async {
        let (etcd, app, docker) = (Etcd::start().await, application().await, FakeDocker::start());
        let agent = start(&etcd, &docker);
        let history = History::start(etcd.address()).await;
        let honest = docker.run(&spec("web", 1, &app));
        wait_at(&etcd, "web", mapped(1), REGISTERED).await;
        // Nobody listens there.
        let nobody = (Ipv4Addr::new(127, 77, 0, 2), e2e::ports::free_port());
        let thief = docker.run(&Spec::new("thief", "web", nobody, 40_001));
        agent.wait_logged(SOON, &["claim", "thief"]).await;
        stays(&etcd, "web", 1, secs(2)).await;
        docker.stop(&thief);
        docker.remove(&thief);
        stays(&etcd, "web", 1, secs(1)).await;
        let story = history.of("web");
        assert!(story.iter().all(|event| event.is_running() && event.value.contains(&honest)), "{story:?}");
    })
    .await;
}

#[tokio::test]
async fn five_hundred_containers_are_registered_in_seconds_and_removed_in_seconds() {
    within(120, async {
        let (etcd, app, docker) = (Etcd::start().await, application().await, FakeDocker::start());
        let mut ids = Vec::new();
        for number in 0..500_u16 {
            let [high, low] = number.to_be_bytes();
            let own = (Ipv4Addr::new(127, 78, high, low), app.address().port());
            ids.push(docker.run_unseen(&Spec::new(&format!("web-{number}"), "web", own, 41_000 + number)));
        }
        let flags = ["--docker", &docker.path().display().to_string(), "--interval", "5s", "--timeout", "3s"];
        let mut agent = Agent::start(&etcd, &flags);
        let begun = Instant::now();
        wait_instances(&etcd, "web", 500, secs(30)).await;
        println!("500 registered in {:?}", begun.elapsed());
        for id in &ids[..400] {
            docker.stop(id);
        }
        wait_instances(&etcd, "web", 100, secs(30)).await;
        // So many are withdrawn within the time that it gives to this, on a busy machine too.
        agent.process().signal(Signal::SIGTERM);
        assert_eq!(agent.process().wait(secs(15)).await.code(), Some(0));
        assert_eq!(instances(etcd.address(), "web").await.len(), 0);
    })
    .await;
}
