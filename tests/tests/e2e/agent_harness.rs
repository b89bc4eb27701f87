//! The parts of the harness that the agent's tests lean on: the scripted Docker answers as the real one does.

use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use e2e::app::IMAGE;
use e2e::docker::{Docker, docker_ok};
use e2e::etcd::Etcd;
use e2e::fake_docker::{FakeDocker, Sickness, Spec};
use e2e::history::History;
use e2e::http::{self, Connection, Reply, encode};
use e2e::{secs, wait_until, within};
use serde_json::Value;

const REAL: &str = "/var/run/docker.sock";

async fn ask(socket: &Path, path: &str) -> std::io::Result<Reply> {
    Connection::open_unix(socket).await?.exchange("GET", path, &[], "").await
}

async fn ask_json(socket: &Path, path: &str) -> Value {
    let reply = ask(socket, path).await.unwrap();
    assert_eq!(reply.status, 200, "{path}: {reply:?}");
    serde_json::from_str(&reply.body).unwrap()
}

/// What the agent relies on, asked of any Docker that runs a container of this name and id.
async fn says_what_the_agent_relies_on(socket: &Path, id: &str, name: &str) {
    let version = ask_json(socket, "/version").await;
    let version = version["ApiVersion"].as_str().expect("a version").to_owned();
    let too_new = ask(socket, "/v1.99/version").await.unwrap();
    assert!(too_new.status == 400 && too_new.body.contains("client version 1.99 is too new"), "{too_new:?}");

    let list = ask_json(socket, &format!("/v{version}/containers/json")).await;
    let entry = list.as_array().unwrap().iter().find(|entry| entry["Id"] == id).expect("it is in the list");
    assert_eq!(entry["Names"][0], format!("/{name}"));
    assert_eq!((&entry["State"], &entry["Labels"]["SERVICE_NAME"]), (&"running".into(), &"web".into()));
    let filter = encode(r#"{"status":["exited"]}"#);
    let list = ask_json(socket, &format!("/containers/json?all=true&filters={filter}")).await;
    assert!(!list.as_array().unwrap().iter().any(|entry| entry["Id"] == id), "it has not exited: {list}");

    for known_as in [id, &id[..12], name] {
        let container = ask_json(socket, &format!("/v{version}/containers/{known_as}/json")).await;
        assert_eq!(container["Id"], id);
        assert_eq!(container["Name"], format!("/{name}"));
        assert_eq!(container["State"]["Running"], true);
        assert_eq!(container["Config"]["Hostname"], id[..12]);
        let binding = &container["NetworkSettings"]["Ports"]["8000/tcp"][0];
        assert_eq!(binding["HostIp"], "127.0.0.1");
        assert!(binding["HostPort"].as_str().unwrap().parse::<u16>().is_ok(), "{binding}");
        let address = container["NetworkSettings"]["Networks"]["bridge"]["IPAddress"].as_str().unwrap();
        assert!(address.parse::<Ipv4Addr>().is_ok(), "{address}");
    }
    for (path, words) in [("/containers/no-such/json", "No such container: no-such"), ("/x", "page not found")] {
        let reply = ask(socket, path).await.unwrap();
        assert!(reply.status == 404 && reply.body.contains(words), "{path}: {reply:?}");
    }
}

/// The events of a container until it was destroyed: action, and the signal or exit code where one is told.
async fn story(events: &mut Connection<tokio::net::UnixStream>, id: &str) -> Vec<String> {
    let mut story = Vec::new();
    while story.last().is_none_or(|last| last != "destroy") {
        let event: Value = serde_json::from_str(&events.line().await.unwrap()).unwrap();
        if event["Actor"]["ID"] != id {
            continue;
        }
        assert_eq!(
            (&event["Type"], &event["id"], &event["status"]),
            (&"container".into(), &id.into(), &event["Action"])
        );
        assert!(event["timeNano"].as_i64().unwrap() > 1_000_000_000_000_000_000, "{event}");
        let attributes = &event["Actor"]["Attributes"];
        assert_eq!((&attributes["image"], &attributes["SERVICE_NAME"]), (&IMAGE.into(), &"web".into()), "{event}");
        assert!(attributes["name"].as_str().is_some_and(|name| !name.starts_with('/')), "{event}");
        let more = attributes["signal"].as_str().or(attributes["exitCode"].as_str()).unwrap_or_default();
        story.push(format!("{} {more}", event["Action"].as_str().unwrap()).trim_end().to_owned());
    }
    story
}

const STORY: [&str; 6] = ["create", "start", "kill 15", "die 0", "stop", "destroy"];

async fn events(socket: &Path, since: Option<u64>) -> Connection<tokio::net::UnixStream> {
    let mut connection = Connection::open_unix(socket).await.unwrap();
    let since = since.map(|since| format!("&since={since}.000000000")).unwrap_or_default();
    let filters = encode(r#"{"type":["container"],"event":["create","start","kill","die","stop","destroy"]}"#);
    assert_eq!(connection.stream(&format!("/events?filters={filters}{since}")).await.unwrap(), 200);
    connection
}

fn unix_time() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs()
}

#[tokio::test]
async fn the_real_docker_says_what_the_agent_relies_on() {
    within(60, async {
        let docker = Docker::for_apps().await;
        let socket = Path::new(REAL);
        let since = unix_time();
        let mut live = events(socket, None).await;
        let flags = ["--publish", "127.0.0.1::8000", "--label", "SERVICE_NAME=web", IMAGE];
        let web = docker.run("web", &flags).await;
        says_what_the_agent_relies_on(socket, web.id(), &format!("{}-web", docker.name())).await;
        web.tell("stop").await;
        web.tell("rm").await;
        assert_eq!(story(&mut live, web.id()).await, STORY);
        assert_eq!(story(&mut events(socket, Some(since)).await, web.id()).await, STORY, "told again");
    })
    .await;
}

#[tokio::test]
async fn the_scripted_docker_says_what_the_agent_relies_on() {
    within(20, async {
        let fake = FakeDocker::start();
        let since = unix_time();
        let mut live = events(fake.path(), None).await;
        let id = fake.run(&Spec::new("web-1", "web", (Ipv4Addr::new(127, 0, 9, 1), 8000), 32768));
        says_what_the_agent_relies_on(fake.path(), &id, "web-1").await;
        fake.stop(&id);
        let stopped = ask_json(fake.path(), "/v1.41/containers/json").await;
        assert_eq!(stopped, Value::Array(vec![]));
        fake.remove(&id);
        assert_eq!(story(&mut live, &id).await, STORY);
        assert_eq!(story(&mut events(fake.path(), Some(since)).await, &id).await, STORY, "told again");
        assert_eq!(ask(fake.path(), &format!("/v1.41/containers/{id}/json")).await.unwrap().status, 404);
    })
    .await;
}

#[tokio::test]
async fn the_scripted_docker_falls_ill_and_recovers() {
    within(60, async {
        let mut fake = FakeDocker::absent();
        assert!(ask(fake.path(), "/version").await.is_err());
        fake.listen();
        let id = fake.run(&Spec::new("web-1", "web", (Ipv4Addr::new(127, 0, 9, 1), 8000), 32768));
        let path = format!("/v1.41/containers/{id}/json");
        for (sickness, seen) in [
            (Sickness::Slow(Duration::from_secs(2)), "silence"),
            (Sickness::Silent, "silence"),
            (Sickness::Says500, "500 {\"message\":\"layer does not exist\"}"),
            (Sickness::ClosesHalfWay, "early eof"),
            (Sickness::Rubbish, "200 <html>"),
            (Sickness::WrongType, "200 {\"Id\":5"),
        ] {
            fake.falls_ill(&id, sickness);
            let limit = if seen == "silence" { Duration::from_millis(300) } else { secs(10) };
            let answer = match tokio::time::timeout(limit, ask(fake.path(), &path)).await {
                Err(_) => "silence".to_owned(),
                Ok(Ok(reply)) => format!("{} {}", reply.status, reply.body),
                Ok(Err(error)) => error.to_string(),
            };
            assert!(answer.starts_with(seen), "{sickness:?}: {answer}");
            assert_eq!(ask_json(fake.path(), "/v1.41/containers/json").await[0]["Id"], id, "others are well");
            fake.recovers();
            assert_eq!(ask_json(fake.path(), &path).await["Id"], id);
        }
        assert_eq!(fake.requests(&id), 12);

        fake.speaks("1.24");
        assert_eq!(ask(fake.path(), "/v1.41/containers/json").await.unwrap().status, 400);
        assert_eq!(ask_json(fake.path(), "/version").await["ApiVersion"], "1.24");
        assert_eq!(ask_json(fake.path(), "/v1.24/containers/json").await[0]["Id"], id);
        fake.close();
        assert!(ask(fake.path(), "/version").await.is_err());
        fake.listen();
        assert_eq!(ask_json(fake.path(), "/v1.24/containers/json").await[0]["Id"], id);
    })
    .await;
}

#[tokio::test]
async fn the_scripted_dockers_streams_end_or_go_quiet() {
    within(20, async {
        let fake = FakeDocker::start();
        let spec = Spec::new("web-1", "web", (Ipv4Addr::new(127, 0, 9, 1), 8000), 32768);
        let mut stream = events(fake.path(), None).await;
        let id = fake.run(&spec);
        assert!(stream.line().await.unwrap().contains("create"));
        assert!(stream.line().await.unwrap().contains("start"));
        fake.mutes_streams(true);
        fake.stop(&id);
        let quiet = tokio::time::timeout(Duration::from_millis(200), stream.line()).await;
        assert!(quiet.is_err(), "{quiet:?}");
        fake.mutes_streams(false);
        assert!(stream.line().await.unwrap().contains("kill"));
        fake.ends_streams();
        while let Ok(line) = stream.line().await {
            assert!(line.contains("die") || line.contains("stop"), "{line}");
        }
        // The next one lives.
        let mut stream = events(fake.path(), None).await;
        fake.says("rename", &id, &[]);
        fake.says("destroy", &id, &[]);
        assert!(stream.line().await.unwrap().contains("destroy"), "only what the filter lets through");
    })
    .await;
}

#[tokio::test]
async fn the_tests_application_does_as_it_is_told() {
    within(60, async {
        let docker = Docker::for_apps().await;
        let flags = ["--env", "LISTEN=8000,8001", "--publish", "127.0.0.1::8001", "--env", "LINGER_MS=50"];
        let app = docker.app("app", &flags).await;
        let own = std::net::SocketAddr::new(app.own_ip().await, 8000);
        for address in [app.published(8000).await, app.published(8001).await, own] {
            wait_until(secs(20), "it answers", async || match http::get(address, "/").await {
                Ok(reply) if reply.body == format!("Hello from {}\n", app.short_id()) => Ok(()),
                other => Err(format!("{other:?}")),
            })
            .await;
        }
        app.exec(&["/e2e-app", "is-well"]).await;
        app.exec(&["sh", "-c", "exec /e2e-app is-well"]).await;
        assert_eq!(http::get(own, "/become/503").await.unwrap().status, 200);
        assert_eq!(http::get(own, "/").await.unwrap().status, 503);
        assert_ne!(e2e::docker::docker(&["exec", app.id(), "/e2e-app", "is-well"]).await.code, Some(0));
        assert_eq!(http::get(own, "/become/200").await.unwrap().status, 200);
        assert_eq!(http::get(own, "/become/deaf").await.unwrap().status, 200);
        wait_until(secs(20), "its port is closed", async || match http::get(own, "/").await {
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => Ok(()),
            other => Err(format!("{other:?}")),
        })
        .await;
        // Docker's own proxy on the host's address takes the connection all the same.
        let published = app.published(8000).await;
        assert!(tokio::net::TcpStream::connect(published).await.is_ok());
        app.tell("stop").await;
        // One that Docker had to kill has another code.
        let status = docker_ok(&["inspect", "--format", "{{.State.ExitCode}}", app.id()]).await;
        assert_eq!(status.trim(), "0", "it ends when it is told to");
    })
    .await;
}

#[tokio::test]
async fn a_history_tells_of_each_change_in_its_order() {
    within(30, async {
        let etcd = Etcd::start().await;
        let history = History::start(etcd.address()).await;
        let key = "/service/web/127.0.0.1:8000";
        etcd.put(key, "running").await;
        etcd.put(key, r#"{"status":"draining"}"#).await;
        etcd.delete(key).await;
        history.wait(secs(5), key, "removed", e2e::history::Event::is_removal).await;
        let seen = history.of(key);
        assert_eq!(seen.iter().map(|event| event.action.as_str()).collect::<Vec<_>>(), ["set", "set", "delete"]);
        assert!(seen[0].is_running() && seen[1].is_draining() && !seen[2].is_running(), "{seen:?}");
        assert!(seen.windows(2).all(|pair| pair[0].at <= pair[1].at));
        assert_eq!(history.of("/service/other").len(), 0);
    })
    .await;
}
