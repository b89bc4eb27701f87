//! The commands beside the daemons: list, explain, static, completions and man, as processes against the real etcd.

#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use registry::{InstanceKey, Record, Store};
use serde_json::{Value, json};
use support::etcd::{Etcd, free_port};
use support::program::{Program, registrar, text};
use support::{Answer, Application, Docker, entries, eventually, paths, recorded, store};

/// Runs a command to its end: its exit code, and all that it wrote.
async fn run(etcd: &str, args: &[&str]) -> (i32, String) {
    let mut command = registrar();
    command.env("REGISTRAR_ETCD", etcd).args(args);
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    (output.status.code().unwrap(), text(&output))
}

async fn put(store: &Store, below: &str, value: &str) {
    let key = InstanceKey::parse(&"service".parse().unwrap(), &format!("/service/{below}")).unwrap();
    store.put(&key, value, &store.grant(Duration::from_secs(60)).await.unwrap()).await.unwrap();
}

#[tokio::test]
async fn list_shows_what_is_registered_as_a_table_and_as_json() {
    let etcd = Etcd::start();
    let store = store(&etcd.url());
    put(&store, "web/10.0.0.1:80", r#"{"name":"web-1","host":"host-1","agent":"a1","status":"draining"}"#).await;
    put(&store, "10.0.0.2:8000", "running").await;
    put(&store, "web/10.0.0.3:80", "nonsense").await;
    let (code, table) = run(&etcd.url(), &["list"]).await;
    assert_eq!(code, 0, "{table}");
    let lines: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[1][..3], ["service", "10.0.0.2:8000", "running"], "{table}");
    assert_eq!(lines[2][..3], ["web", "10.0.0.1:80", "draining"], "{table}");
    assert_eq!(lines[2][4..], ["host-1", "web-1", "a1"], "{table}");
    assert!(table.contains("/service/web/10.0.0.3:80: its value is neither"), "{table}");
    let (code, json) = run(&etcd.url(), &["list", "--json"]).await;
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!((code, json["instances"][1]["address"].as_str()), (0, Some("10.0.0.1:80")));
    assert!((50..=60).contains(&json["instances"][1]["ttl"].as_u64().unwrap()), "{json}");
    let (code, error) = run(&format!("http://127.0.0.1:{}", free_port()), &["list"]).await;
    assert!(code == 1 && error.contains("no usable answer from etcd"), "{code} {error}");
}

/// A container whose own address is 127.0.0.1, so that an application of the test stands for the one in it, or for what
/// is published of it.
fn container(port: u16, published: u16, labels: &[(&str, &str)]) -> Value {
    let mut container: Value = serde_json::from_str(&recorded("inspect-owner")).unwrap();
    let binding = json!([{ "HostIp": "0.0.0.0", "HostPort": published.to_string() }]);
    container["NetworkSettings"]["Ports"] = json!({ format!("{port}/tcp"): binding, "53/udp": null });
    container["NetworkSettings"]["Networks"]["bridge"]["IPAddress"] = json!("127.0.0.1");
    container["Config"]["ExposedPorts"] = json!({});
    container["Config"]["Env"] = json!([]);
    container["Config"]["Labels"] = labels.iter().map(|(label, value)| ((*label).to_owned(), json!(value))).collect();
    container
}

/// The marks at the beginning of the lines.
fn marks(explanation: &str) -> Vec<&str> {
    explanation.lines().map(|line| line.get(..8).unwrap_or_default().trim()).filter(|mark| !mark.is_empty()).collect()
}

#[tokio::test]
async fn explain_follows_a_container_from_docker_to_its_key_and_marks_the_first_no() {
    let (etcd, docker) = (Etcd::start(), Docker::start());
    let store = store(&etcd.url());
    let application = Application::start(Answer::status("200 OK")).await;
    let (own, published) = (free_port(), application.port);
    let (at, below) = (format!("127.0.0.1:{published}"), format!("shop/127.0.0.1:{published}"));
    let state = tempfile::tempdir().unwrap();
    let url = etcd.url();
    let explain = async |name: &str, more: &[&str]| {
        let args = ["explain", name, "--ip", "127.0.0.1", "--docker", docker.socket.to_str().unwrap()];
        let state = ["--state-dir", state.path().to_str().unwrap()];
        run(&url, &[&args[..], &state[..], more].concat()).await
    };

    let (code, text) = explain("nobody", &[]).await;
    assert!(code == 1 && text.contains("-> NO   Docker knows no container nobody"), "{text}");

    let labels = [("SERVICE_NAME", "shop"), ("SERVICE_CHECK_HTTP", "/health"), ("SERVICE_REGION", "eu")];
    docker.knows("web", container(own, published, &labels).to_string());
    let (code, text) = explain("web", &[]).await;
    let key = format!("/service/{below}");
    assert_eq!((code, marks(&text)), (1, vec!["yes", "yes", "yes", "-> NO"]), "{text}");
    for expected in [
        "it says SERVICE_NAME=\"shop\"",
        "port 53/udp: only TCP ports are registered",
        &format!("port {own} is service shop at {at}, as --ip says"),
        "check_http=/health region=eu",
        &format!("asked by GET http://{at}/health, every 5s within 3s: it answers"),
        &format!("{key} is not in etcd: no agent has written it"),
    ] {
        assert!(text.contains(expected), "{expected}: {text}");
    }
    assert!(std::fs::read_dir(state.path()).unwrap().next().is_none(), "it only looks");

    std::fs::write(state.path().join("agent-id"), "agent-1\n").unwrap();
    let id = container(1, 1, &[])["Id"].as_str().unwrap().to_owned();
    put(&store, &below, &json!({ "id": id, "agent": "agent-1" }).to_string()).await;
    let (code, text) = explain("web", &[]).await;
    assert_eq!((code, marks(&text)), (0, vec!["yes"; 4]), "{text}");
    assert!(text.contains(&format!("{key} is in etcd: running;")), "{text}");
    assert!(
        text.ends_with(&format!("from etcd to HAProxy: `discoverer explain {at}`, on a load balancer\n")),
        "{text}"
    );
    for (stopping, way_out) in [(false, "`registrar undrain web-owner` takes it back"), (true, "after --kill-grace")] {
        let record = json!({ "id": id, "agent": "agent-1", "status": "draining", "stopping": stopping });
        put(&store, &below, &record.to_string()).await;
        let (code, text) = explain("web", &[]).await;
        assert_eq!((code, marks(&text)), (1, vec!["yes", "yes", "yes", "-> NO"]), "{text}");
        assert!(text.contains(&format!("{key} is in etcd: draining: ")) && text.contains(way_out), "{text}");
    }
    put(&store, &below, &json!({ "id": id, "agent": "agent-1" }).to_string()).await;
    let (_, text) = explain("web", &["--agent-id", "other"]).await;
    assert!(text.contains("written by agent-1, which is not this host's agent"), "{text}");

    application.answers(Answer::status("503 Unavailable"));
    let (code, text) = explain("web", &[]).await;
    assert_eq!((code, marks(&text)), (1, vec!["yes", "yes", "-> NO", "yes"]), "{text}");
    assert!(text.contains("status 503"), "{text}");
    // Nobody speaks TLS there, which is no matter of firewalls.
    let over_tls = [("SERVICE_NAME", "shop"), ("SERVICE_CHECK_HTTPS", "/health")];
    docker.knows("web", container(own, published, &over_tls).to_string());
    application.answers(Answer::ToAnything("HTTP/1.1 400 Bad Request\r\n\r\n".to_owned()));
    let (code, text) = explain("web", &[]).await;
    assert!(code == 1 && text.contains("no TLS there") && text.contains("SERVICE_CHECK_HTTP"), "{text}");
    assert!(!text.contains("firewall"), "{text}");
    docker.knows("web", container(own, published, &labels).to_string());
    application.answers(Answer::status("200 OK"));

    put(&store, &below, "{\"id\":\"0123456789abcdef\",\"agent\":\"a2\"}").await;
    let (code, text) = explain("web", &[]).await;
    assert!(code == 1 && text.contains("for another container (0123456789ab), written by a2"), "{text}");
    assert!(text.contains("two hosts register the same address"), "{text}");
    put(&store, &below, "{\"id\":\"0123456789abcdef\",\"agent\":\"agent-1\"}").await;
    let (code, text) = explain("web", &[]).await;
    assert!(code == 1 && text.contains("Does the agent run?"), "{text}");
    assert!(!text.contains("two hosts") && !text.contains("two containers"), "{text}");
    docker.lists(200, r#"[{"Id":"0123456789abcdef"}]"#);
    let (code, text) = explain("web", &[]).await;
    assert!(code == 1 && text.contains("two containers of this host claim it"), "{text}");
    assert!(!text.contains("two hosts") && !text.contains("Does the agent run?"), "{text}");

    let (code, text) = explain("web", &["--domains", "a.example", "--explicit"]).await;
    let expected = format!("-> NO   port {own}: it names no host, and with --domains it must");
    assert!(code == 1 && text.contains(&expected), "{text}");
    docker.knows("web", container(own, published, &[("SERVICE_WEIGHT", "heavy")]).to_string());
    let (code, text) = explain("web", &["--explicit"]).await;
    assert!(code == 1 && text.contains("--explicit, and no label asks for it"), "{text}");
    let (code, text) = explain("web", &[]).await;
    assert!(code == 1 && text.contains("SERVICE_WEIGHT=\"heavy\": it must be a number from 0 to 256"), "{text}");

    // A label that may be mistyped is told by the way.
    docker.knows("web", container(own, published, &[("SERVICE_NAMES", "shop")]).to_string());
    let (code, text) = explain("web", &["--explicit"]).await;
    assert_eq!((code, marks(&text)), (1, vec!["yes", "-> NO", "no"]), "{text}");
    assert!(
        text.contains("        SERVICE_NAMES=\"shop\": no setting is called so")
            && text.contains("is SERVICE_NAME meant?"),
        "{text}"
    );

    docker.knows("web", recorded("inspect-exited"));
    let (code, text) = explain("web", &[]).await;
    assert!(code == 1 && text.contains("-> NO   it is not running: it is exited"), "{text}");
}

#[tokio::test]
async fn explain_says_which_of_docker_and_etcd_does_not_answer() {
    let docker = Docker::start();
    let application = Application::start(Answer::status("200 OK")).await;
    docker.knows("web", container(application.port, 40001, &[]).to_string());
    let dead = format!("http://127.0.0.1:{}", free_port());
    let (code, text) = run(&dead, &["explain", "web", "--docker", "/no/such.sock"]).await;
    assert!(code == 1 && text.contains("-> NO   there is no Docker socket at /no/such.sock"), "{text}");
    let socket = docker.socket.to_str().unwrap();
    let (code, text) = run(&dead, &["explain", "web", "--docker", socket, "--ip", "127.0.0.1"]).await;
    assert_eq!((code, marks(&text)), (1, vec!["yes", "yes", "yes", "-> NO"]), "{text}");
    assert!(text.contains("cannot be read: no usable answer from etcd"), "{text}");

    // Docker answers, and not to every question: what it did not say is not made up.
    let mut shares = container(application.port, 40001, &[]);
    shares["HostConfig"]["NetworkMode"] = json!("container:owner");
    docker.knows("web", shares.to_string());
    docker.says("owner", 500, "{\"message\":\"broken\"}".to_owned());
    let (code, text) = run(&dead, &["explain", "web", "--docker", socket, "--ip", "127.0.0.1"]).await;
    assert!(code == 1 && text.contains("refuses to show container owner: 500 broken"), "{text}");
    docker.lists(500, "{\"message\":\"broken too\"}");
    let (code, text) = run(&dead, &["explain", "web", "--docker", socket, "--ip", "127.0.0.1"]).await;
    assert!(code == 1 && text.contains("-> NO   ") && text.contains("list containers: 500 broken too"), "{text}");
}

#[tokio::test]
async fn where_etcd_is_away_a_container_is_neither_drained_nor_stopped_and_that_is_said() {
    let docker = Docker::start();
    docker.knows("web", container(8000, 40001, &[]).to_string());
    let dead = format!("http://127.0.0.1:{}", free_port());
    let socket = docker.socket.to_str().unwrap();
    for command in ["drain", "undrain", "stop"] {
        let (code, text) = run(&dead, &[command, "web", "--docker", socket]).await;
        assert!(code == 1 && text.contains("no usable answer from etcd"), "{text}");
        assert!(text.contains("; nothing was changed"), "{text}");
        assert_eq!(text.contains(". The container was not stopped"), command == "stop", "{text}");
    }
}

#[tokio::test]
async fn static_keeps_a_key_while_its_address_answers_and_takes_it_over_after_a_kill() {
    let etcd = Etcd::start();
    let store = store(&etcd.url());
    let application = Application::start(Answer::status("200 OK")).await;
    let address = format!("127.0.0.1:{}", application.port);
    let mut command = registrar();
    command.env("REGISTRAR_ETCD", etcd.url()).env("REGISTRAR_TAGS", "blue,v1").env("REGISTRAR_HOST", "host-1");
    command.args([
        "static",
        "--address",
        &address,
        "--name",
        "db",
        "--check",
        "http",
        "--interval",
        "100ms",
        "--fall",
        "1",
    ]);
    command.args([
        "--attribute",
        "mode=tcp;listen=5432",
        "--attribute",
        "region=eu",
        "--weight",
        "7",
        "--linger",
        "0s",
    ]);
    let mut program = Program::start(&mut command);
    program.says("registered").await;
    let before = entries(&store).await.remove(0);
    assert_eq!(before.path, format!("/service/db/{address}"));
    let record = Record::parse(&before.value).unwrap();
    let mark = format!("static-{}-db", address.replace(':', "-"));
    let attributes: Vec<_> = record.attributes.iter().map(|(name, value)| format!("{name}={value}")).collect();
    assert_eq!(attributes, ["listen=5432", "mode=tcp", "region=eu"]);
    assert_eq!((record.tags, record.weight), (vec!["blue".to_owned(), "v1".to_owned()], Some(7)));
    assert_eq!((record.agent.as_deref(), record.host.as_deref()), (Some(mark.as_str()), Some("host-1")));
    assert!(record.registered.is_some());

    application.answers(Answer::status("500 X"));
    eventually("the key removed", async || paths(&store).await.is_empty()).await;
    application.answers(Answer::status("200 OK"));
    eventually("the key back", async || paths(&store).await.len() == 1).await;

    let before = entries(&store).await.remove(0);
    program.child.kill().unwrap();
    program.child.wait().unwrap();
    let mut program = Program::start(&mut command);
    eventually("the key taken over", async || entries(&store).await[0].value != before.value).await;
    assert_eq!(entries(&store).await[0].created_index(), before.created_index(), "it was there all the time");
    program.signal(Signal::SIGTERM);
    assert_eq!(program.ended().await, Some(0));
    assert_eq!(paths(&store).await, [""; 0]);
}

#[tokio::test]
async fn static_leaves_alone_what_someone_else_has_written_and_needs_no_answer_without_a_check() {
    let etcd = Etcd::start();
    let store = store(&etcd.url());
    put(&store, "db/127.0.0.1:1", "running").await;
    let mut command = registrar();
    command.env("REGISTRAR_ETCD", etcd.url()).args(["static", "--check", "none", "--linger", "0s", "--name", "db"]);
    let mut first = Program::start(command.env("REGISTRAR_ADDRESS", "127.0.0.1:1"));
    first.says("someone else has written the key").await;
    let mut second = Program::start(command.env("REGISTRAR_ADDRESS", "127.0.0.1:2"));
    second.says("registered").await;
    assert_eq!(paths(&store).await, ["/service/db/127.0.0.1:1", "/service/db/127.0.0.1:2"]);
    for program in [&mut first, &mut second] {
        program.signal(Signal::SIGTERM);
        assert_eq!(program.ended().await, Some(0));
    }
    assert_eq!(paths(&store).await, ["/service/db/127.0.0.1:1"]);
}

#[tokio::test]
async fn static_whose_check_is_taken_away_does_not_hear_of_the_question_that_was_asked_before() {
    let etcd = Etcd::start();
    let store = store(&etcd.url());
    // The kernel takes connections, and nobody ever answers.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap().to_string();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("registrar.toml");
    std::fs::write(&file, "check = \"http\"\n").unwrap();
    let mut command = registrar();
    command.args(["static", "--etcd", &etcd.url(), "--name", "db", "--address", &address, "--linger", "0s"]);
    command.args(["--timeout", "2s", "--interval", "100ms", "--fall", "1", "--config"]).arg(&file);
    let program = Program::start(&mut command);
    let asked = tokio::task::spawn_blocking(move || silent.accept().map(|(asked, _)| (silent, asked)));
    let _asked = asked.await.unwrap().unwrap();
    std::fs::write(&file, "check = \"none\"\n").unwrap();
    program.says("registered").await;
    // Longer than the question may take.
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(3) {
        assert_eq!(paths(&store).await, [format!("/service/db/{address}")]);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Where a program with `--admin` is asked.
async fn admin(program: &Program) -> String {
    let line = program.says("metrics and health are here").await;
    line.split('"').find(|part| part.starts_with("http://")).unwrap().to_owned()
}

/// What is said there.
async fn got(url: &str, path: &str) -> String {
    registry::store::use_ring();
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    client.get(format!("{url}{path}")).send().await.unwrap().text().await.unwrap()
}

#[tokio::test]
async fn whether_etcd_is_there_is_known_also_while_there_is_no_key_to_keep() {
    let mut etcd = Etcd::start();
    let args = ["--name", "db", "--address", "127.0.0.1:1", "--check", "tcp", "--ttl", "2s", "--admin", "127.0.0.1:0"];
    for api in ["v2", "v3"] {
        let mut command = registrar();
        let program = Program::start(command.arg("static").args(args).args(["--etcd", &etcd.url(), "--etcd-api", api]));
        let url = admin(&program).await;
        let is_told = async |what: u8| {
            let line = format!("registrar_etcd_connected{{api=\"{api}\"}} {what}\n");
            eventually(&line, async || got(&url, "metrics").await.contains(&line)).await;
        };
        is_told(1).await;
        assert_eq!(got(&url, "health/ready").await, "it is not ready:\nthe address has not answered yet\n");
        etcd.stop();
        is_told(0).await;
        etcd.run();
        is_told(1).await;
    }
}

#[tokio::test]
async fn static_and_the_sidekick_tell_an_operator_what_is_missing_where_that_is_asked_for() {
    let etcd = format!("http://127.0.0.1:{}", free_port());
    let ask = async |program: &Program| {
        let url = admin(program).await;
        (got(&url, "health/live").await, got(&url, "health/ready").await, got(&url, "metrics").await)
    };
    let mut command = registrar();
    command.args(["static", "--check", "none", "--name", "db", "--address", "127.0.0.1:1"]);
    let (live, ready, metrics) = ask(&Program::start(command.args(["--admin", "127.0.0.1:0", "--etcd", &etcd]))).await;
    assert_eq!((&*live, &*ready), ("it lives\n", "it is not ready:\netcd has not answered yet\n"));
    assert!(metrics.contains("registrar_keys{") && !metrics.contains("registrar_docker"), "{metrics}");
    let mut command = registrar();
    command.args(["--port", "1", "--docker", "/no/such.sock", "--admin", "127.0.0.1:0", "--etcd", &etcd]);
    let (live, ready, metrics) = ask(&Program::start(&mut command)).await;
    assert_eq!(live, "it lives\n");
    assert_eq!(ready.lines().count(), 4, "{ready}");
    assert!(
        metrics.contains("registrar_docker_connected 0\n") && !metrics.contains("registrar_containers"),
        "{metrics}"
    );
}

#[test]
fn completions_and_manual_pages_know_every_command() {
    for shell in ["bash", "zsh", "fish"] {
        let output = registrar().args(["completions", shell]).output().unwrap();
        let script = text(&output);
        assert!(output.status.success() && script.contains("explain") && script.contains("kill-grace"), "{shell}");
    }
    let directory = tempfile::tempdir().unwrap();
    let pages = directory.path().join("man1");
    assert!(registrar().arg("man").arg(&pages).status().unwrap().success());
    for page in ["registrar", "registrar-agent", "registrar-list", "registrar-explain", "registrar-static"] {
        let page = std::fs::read_to_string(pages.join(format!("{page}.1"))).unwrap();
        assert!(page.contains("REGISTRAR_ETCD"), "{page}");
    }
    let output = registrar().args(["man", "/proc/none"]).output().unwrap();
    assert!(output.status.code() == Some(1) && text(&output).contains("writing to /proc/none"), "{}", text(&output));
}

#[test]
fn what_is_known_to_be_a_limit_for_stop_may_stand_in_the_environment_of_drain() {
    let mut command = registrar();
    let args = ["drain", "--all", "--etcd", "http://127.0.0.1:1", "--etcd-timeout", "100ms", "--agent-id", "a1"];
    let output = command.env("REGISTRAR_DRAIN_TIMEOUT", "5s").args(args).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(text(&output).contains("nothing was changed"), "{}", text(&output));
}

#[test]
fn a_wrong_value_is_refused_with_what_is_right() {
    let etcd = ["--etcd", "http://h1:2379"];
    let cases: [(&[&str], &str); 11] = [
        (&["list", "--key", "_x"], "begins with '_'"),
        (&["explain"], "For example: registrar explain web-1"),
        (&["drain", "web", "--timeout", "5s"], "--timeout says how long --wait waits"),
        (&["stop"], "<CONTAINER>"),
        (&["explain", "a/b"], "no name or id"),
        (&["explain", "web", "--domains", "*"], "write a.example"),
        (&["static", "--name", "db"], "--address"),
        (&["static", "--name", "db", "--address", "0.0.0.0:1"], "not the address of one host"),
        (&["static", "--name", "a b", "--address", "10.0.0.1:1"], "not allowed in a name"),
        (
            &["static", "--name", "db", "--address", "10.0.0.1:1", "--attribute", "maxconn=lots"],
            "a number of connections",
        ),
        (&["static", "--name", "db", "--address", "10.0.0.1:1", "--weight", "257"], "256"),
    ];
    for (args, expected) in cases {
        let started = Instant::now();
        let output = registrar().args(args).args(etcd).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{args:?}: {}", text(&output));
        assert!(text(&output).contains(expected), "{args:?}: {}", text(&output));
        assert!(started.elapsed() < Duration::from_secs(5), "{args:?}");
    }
}
