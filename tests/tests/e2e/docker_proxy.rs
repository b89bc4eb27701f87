//! A read-only proxy of Docker's socket: what it lets through, and what the registrar and the discoverer say where they are not allowed
//! what they would do.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use e2e::agent::{Agent, REGISTERED, instances, wait_at, wait_none};
use e2e::backend::Backend;
use e2e::discoverer::{Discoverer, field};
use e2e::docker::Docker;
use e2e::docker_proxy::DockerProxy;
use e2e::etcd::Etcd;
use e2e::fake_docker::{FakeDocker, Spec};
use e2e::http::{self, Connection};
use e2e::ports::free_address;
use e2e::registrar::{Registrar, run_registrar};
use e2e::{secs, wait_until, within};

const REAL: &str = "/var/run/docker.sock";
/// An answer that is due, on a machine that is busy with other tests. With [`CLOSE`] the proxy ends the connection behind it.
const ANSWERED: Duration = secs(20);
const CLOSE: &str = "Connection: close\r\n";
/// How long something is waited for where silence is an answer too.
const PATIENCE: Duration = Duration::from_millis(500);

/// An agent behind the proxy of the real Docker.
struct Behind {
    docker: Docker,
    etcd: Etcd,
    proxy: DockerProxy,
    /// The proxy's.
    socket: String,
    agent: Agent,
}

impl Behind {
    async fn start(flags: &[&str]) -> Self {
        let (docker, etcd) = (Docker::for_apps().await, Etcd::start().await);
        let proxy = DockerProxy::start(Path::new(REAL)).await;
        let socket = proxy.path().display().to_string();
        let agent = Agent::start(&etcd, &[&["--docker", &socket], flags].concat());
        Self { docker, etcd, proxy, socket, agent }
    }
}

/// The status of each answer in what came back, and whether it is the proxy's own: Docker says the version of its API in each.
fn answers(reply: &str) -> Vec<(u16, bool)> {
    let heads = reply.split("HTTP/1.").skip(1);
    heads.map(|head| (head[2..5].parse().unwrap(), !head.to_ascii_lowercase().contains("api-version"))).collect()
}

fn request(line: &str, headers: &str, body: &str) -> String {
    format!("{line} HTTP/1.1\r\nHost: docker\r\n{headers}\r\n{body}")
}

#[tokio::test]
async fn the_proxy_lets_through_what_the_registrar_asks_of_the_real_docker() {
    within(90, async {
        let docker = Docker::for_apps().await;
        let app = docker.app("app", &[]).await;
        let proxy = DockerProxy::start(Path::new(REAL)).await;
        for (method, path) in [
            ("GET", "/_ping".to_owned()),
            ("HEAD", "/_ping".to_owned()),
            ("GET", "/version".to_owned()),
            ("GET", "/v1.41/version".to_owned()),
            ("GET", "/containers/json".to_owned()),
            ("GET", "/v1.41/containers/json".to_owned()),
            ("GET", format!("/v1.41/containers/{}/json", app.id())),
            ("GET", format!("/containers/{}-app/json", docker.name())),
        ] {
            let reply = proxy.raw(request(&format!("{method} {path}"), CLOSE, "").as_bytes(), ANSWERED).await;
            assert_eq!(answers(&reply), [(200, false)], "{method} {path}: {reply}");
        }
        let reply = proxy.raw(request("GET /containers/no-such-one/json", CLOSE, "").as_bytes(), ANSWERED).await;
        assert_eq!(answers(&reply), [(404, false)], "{reply}");
        assert!(reply.contains("No such container"), "Docker's own words come through: {reply}");
        assert_eq!(proxy.log(), "", "what is allowed is no news");
    })
    .await;
}

#[tokio::test]
async fn the_proxy_refuses_all_else_and_docker_hears_nothing_of_it() {
    within(120, async {
        let docker = FakeDocker::start();
        let app = Backend::start("app").await;
        let id = docker.run(&Spec::new("web", "web", (Ipv4Addr::LOCALHOST, app.address().port()), 40_001));
        let proxy = DockerProxy::start(docker.path()).await;
        let stop = format!("POST /v1.41/containers/{id}/stop HTTP/1.1\r\nHost: docker\r\n\r\n");
        let mut lines: Vec<String> = [
            // Other things to do.
            "POST /v1.41/containers/ID/stop",
            "POST /v1.41/containers/ID/kill",
            "POST /v1.41/containers/ID/exec",
            "POST /v1.41/containers/create",
            "POST /containers/json",
            "DELETE /v1.41/containers/ID",
            "PUT /v1.41/containers/ID/archive?path=/",
            "HEAD /v1.41/containers/ID/archive?path=/",
            "HEAD /containers/json",
            "PATCH /version",
            "OPTIONS /version",
            "get /version",
            "GETX /version",
            // Other things to read.
            "GET /",
            "GET /info",
            "GET /images/json",
            "GET /v1.41/containers/ID/logs?stdout=1",
            "GET /v1.41/containers/ID/export",
            "GET /v1.41/containers/ID/archive?path=/etc/shadow",
            "GET /v1.41/containers/ID/top",
            "GET /v1.41/containers/ID/attach/ws",
            "GET /v1.41/containers/ID/jsonx",
            "GET /secrets",
            "GET /v1.41/exec/ID/json",
            // What costs Docker much.
            "GET /containers/json?size=1",
            "GET /v1.41/containers/ID/json?size=1",
            "GET /v1.41/containers/ID/json?s%69ze=1",
            // Paths that Docker would read otherwise.
            "GET /v1.41/containers/../images/json",
            "GET /v1.41/../containers/json",
            "GET /containers/./json",
            "GET //containers/json",
            "GET /containers//json",
            "GET /containers/json/",
            "GET /containers/json/../../images/json",
            "GET /containers/%2e%2e/images/json",
            "GET /containers/ID%2fjson",
            "GET /containers/ID/..%2f..%2fimages/json",
            "GET /containers/ID%00/json",
            "GET /containers%2fjson",
            "GET /%63ontainers/json",
            "GET /containers/json#/../../images/json",
            "GET /containers/json;x",
            "GET /containers/ID\\..\\..\\images/json",
            "GET /v1.41/v1.41/containers/json",
            "GET /v2/containers/json",
            "GET /v1.4x/version",
            "GET /CONTAINERS/JSON",
            "GET containers/json",
            "GET *",
            "GET http://docker/containers/json",
            "GET http://docker/images/json",
            "GET http:///containers/json",
            "CONNECT docker:80",
        ]
        .iter()
        .map(|line| request(&line.replace("ID", &id), "", ""))
        .collect();
        lines.push(request(&format!("GET /containers/{}/json", "a".repeat(300)), "", ""));
        lines.push(request(&format!("GET /containers/{}/json", "a".repeat(40_000)), "", ""));
        let with = |headers: &str, body: &str| request("GET /version", headers, body);
        // What follows a request is never a part of it that Docker takes for another one.
        lines.push(with(&format!("Content-Length: {}\r\n", stop.len()), &stop));
        lines.push(with("Transfer-Encoding: chunked\r\n", &format!("0\r\n\r\n{stop}")));
        lines.push(with("Transfer-Encoding: chunked\r\nContent-Length: 4\r\n", &format!("0\r\n\r\n{stop}")));
        lines.push(with("Content-Length: 0\r\nContent-Length: 90\r\n", &stop));
        lines.push(with("Content-Length: 0, 90\r\n", &stop));
        lines.push(with("Content-Length: +0\r\n", &stop));
        lines.push(with("Transfer-Encoding : chunked\r\n", &format!("0\r\n\r\n{stop}")));
        lines.push(with("Transfer-Encoding: xchunked\r\n", &stop));
        lines.push(with("Connection: Upgrade\r\nUpgrade: tcp\r\n", &stop));
        lines.push(with(
            "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n",
            "",
        ));
        lines.push(with("Host: docker\x00\r\n", ""));
        lines.push("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_owned());
        lines.push("GET /containers/json\r\n".to_owned());
        lines.push("GET /images/json\r\n\r\n".to_owned());
        lines.push("\x16\x03\x01\x02\0\x01\0\x01\u{fc}".to_owned());
        for line in &lines {
            let before = docker.requests("/version");
            let reply = proxy.raw(line.as_bytes(), PATIENCE).await;
            let passed: Vec<_> = answers(&reply).into_iter().filter(|(_, is_proxys)| !is_proxys).collect();
            let shown: String = line.chars().take(120).collect();
            assert!(passed.is_empty() && docker.requests("/version") == before, "{shown:?}: {reply}");
        }
        assert_eq!(docker.requests(""), 0, "nothing of all this came to Docker");
        assert!(proxy.log().contains("403 PR \"POST /v1.41/containers/"), "{}", proxy.log());
        for line in proxy.log().lines() {
            let time = line.split(' ').next().unwrap_or_default();
            assert!(time.parse::<jiff::Timestamp>().is_ok(), "it says when: {line}");
        }

        // One behind the other on one connection: each is judged by itself.
        let get = request("GET /version", "", "");
        for ended_by in ["\r\n\r\n", "\n\n", "\r\nX: y\r\n Content-Length: 90\r\n\r\n"] {
            let both = get.trim_end().to_owned() + ended_by + &stop + &request("GET /version", CLOSE, "");
            let reply = proxy.raw(both.as_bytes(), ANSWERED).await;
            assert_eq!(answers(&reply)[..2], [(200, false), (403, true)], "{reply}");
            assert_eq!(docker.requests("stop"), 0);
        }
    })
    .await;
}

#[tokio::test]
async fn behind_the_proxy_the_agent_registers_explains_and_drains() {
    within(120, async {
        let Behind { docker, etcd, proxy, socket, agent } = Behind::start(&["--timeout", "3s"]).await;
        let (app, service) = (docker.app("app", &[]).await, docker.service("app"));
        wait_at(&etcd, &service, app.published(8000).await, REGISTERED).await;
        let explained = agent.explain(app.id()).await;
        assert_eq!(explained.code, Some(0), "{explained:?}");
        let listed = run_registrar(&["list", "--etcd", &etcd.url()]).await;
        assert!(listed.stdout.contains(&service), "{listed:?}");
        let state = agent.dir().join("state").display().to_string();
        let flags = ["--etcd", &etcd.url(), "--docker", &socket, "--state-dir", &state];
        for (command, status) in [("drain", "draining"), ("undrain", "running")] {
            let done = run_registrar(&[&[command, app.id()], &flags[..]].concat()).await;
            assert_eq!(done.code, Some(0), "{done:?}");
            assert_eq!(instances(etcd.address(), &service).await[0].status(), status);
        }
        app.tell("stop").await;
        wait_none(&etcd, &service, secs(20)).await;
        assert_eq!(agent.logged(&["ERROR"]), Vec::<String>::new());
        assert_eq!(proxy.log(), "", "nothing was refused");
    })
    .await;
}

#[tokio::test]
async fn behind_the_proxy_stop_says_no_before_anything_is_drained() {
    within(60, async {
        let Behind { docker, etcd, socket, proxy: _proxy, agent: _agent } = Behind::start(&[]).await;
        let (app, service) = (docker.app("app", &[]).await, docker.service("app"));
        wait_at(&etcd, &service, app.published(8000).await, REGISTERED).await;
        let flags = ["--etcd", &etcd.url(), "--docker", &socket];
        let stopped = run_registrar(&[&["stop", app.id()], &flags[..]].concat()).await;
        assert_eq!(stopped.code, Some(1), "{stopped:?}");
        let (stop, drain) =
            (format!("does not allow to stop container {}:", app.id()), format!("drain --wait {}`", app.id()));
        for words in [&socket, &stop, "403", &drain, "--docker"] {
            assert!(stopped.stderr.contains(words), "{words}: {stopped:?}");
        }
        let left = instances(etcd.address(), &service).await;
        assert!(left.len() == 1 && left[0].status() == "running", "{left:?}");
        // With Docker's own socket it is done.
        let stopped = run_registrar(&["stop", app.id(), "--etcd", &etcd.url(), "--docker", REAL]).await;
        assert_eq!(stopped.code, Some(0), "{stopped:?}");
    })
    .await;
}

#[tokio::test]
async fn behind_the_proxy_reload_container_says_what_is_to_be_allowed_and_the_file_follows() {
    within(60, async {
        let (docker, etcd) = (Docker::for_apps().await, Etcd::start().await);
        let proxy = DockerProxy::start(Path::new(REAL)).await;
        // No HAProxy: it is refused before anybody could see that.
        let _lb = docker.app("lb", &[]).await;
        let (name, socket) = (format!("{}-lb", docker.name()), proxy.path().display().to_string());
        let (dir, admin) = (tempfile::tempdir().unwrap(), free_address());
        let config = dir.path().join("haproxy.cfg");
        let discoverer = Discoverer::reload_container(&etcd.url(), &name, &config, free_address())
            .admin(admin)
            .args(&["--docker", &socket])
            .start();
        etcd.put("/service/web/127.0.0.1:40001", "running").await;
        let said = discoverer.wait_logged("reload failed", &[("error", &socket)]).await;
        let allowed = format!(
            "has to allow GET /version, /containers/{name}/json and /containers/{name}/top, and POST /containers/{name}/kill"
        );
        for words in [&name, "does not let the discoverer list the processes of it (403", &allowed] {
            assert!(field(&said, "error").contains(words), "{words}: {said}");
        }
        assert!(field(&said, "again_in").ends_with('s'), "{said}");
        let status = http::get(admin, "/api/v1/status").await.unwrap().body;
        assert!(status.contains("does not let the discoverer"), "{status}");

        // All else goes on: what comes is in the file that HAProxy will read.
        discoverer.wait_config("127.0.0.1:40001").await;
        etcd.put("/service/db/127.0.0.1:40002", "running").await;
        discoverer.wait_config("127.0.0.1:40002").await;
        etcd.delete("/service/web/127.0.0.1:40001").await;
        wait_until(secs(20), "what has gone is not in the file any more", async || {
            let config = discoverer.config();
            if config.contains("127.0.0.1:40001") { Err(config) } else { Ok(()) }
        })
        .await;
        assert!(proxy.log().contains("/top HTTP/1.1") && !proxy.log().contains("/kill"), "{}", proxy.log());
    })
    .await;
}

#[tokio::test]
async fn behind_the_proxy_checks_by_exec_are_told_at_the_start_and_by_explain() {
    within(90, async {
        let Behind { docker, etcd, agent, proxy: _proxy, .. } = Behind::start(&["--allow-exec"]).await;
        let said = agent.wait_logged(secs(20), &["--allow-exec is of no use here"]).await;
        for words in ["ERROR", "does not allow", "SERVICE_CHECK_HTTP", "--docker"] {
            assert!(said.contains(words), "{words}: {said}");
        }
        let app = docker.app("app", &["--label", "SERVICE_CHECK_SCRIPT=/e2e-app is-well"]).await;
        let explained = wait_until(secs(20), "explain tells it", async || {
            let explained = agent.explain(app.id()).await.stdout;
            if explained.contains("does not allow to run a command") { Ok(explained) } else { Err(explained) }
        })
        .await;
        assert!(explained.contains("SERVICE_CHECK_HTTP"), "{explained}");
        assert_eq!(agent.logged(&["--allow-exec is of no use here"]).len(), 1, "it is told once");
        // With Docker's own socket nothing of the kind is said, and the container is registered.
        let own = Agent::start(&etcd, &["--allow-exec"]);
        wait_at(&etcd, &docker.service("app"), app.published(8000).await, REGISTERED).await;
        assert_eq!(own.logged(&["of no use"]), Vec::<String>::new());
    })
    .await;
}

#[tokio::test]
async fn behind_the_proxy_a_sidekick_finds_its_mapped_port() {
    within(60, async {
        let (docker, etcd, app) = (FakeDocker::start(), Etcd::start().await, Backend::start("app").await);
        let port = app.address().port();
        let id = docker.run(&Spec::new("web", "web", (Ipv4Addr::LOCALHOST, port), 40_001));
        let proxy = DockerProxy::start(docker.path()).await;
        let (socket, port) = (proxy.path().display().to_string(), port.to_string());
        let flags = ["--etcd", &etcd.url(), "--port", &port, "--container", &id, "--docker", &socket];
        let _sidekick = Registrar::start(&flags);
        wait_until(secs(20), "the sidekick's key", async || {
            etcd.get("/service/127.0.0.1:40001").await.map(drop).ok_or_else(|| proxy.log())
        })
        .await;
        assert_eq!(proxy.log(), "");
    })
    .await;
}

#[tokio::test]
async fn docker_away_behind_the_proxy_is_told_as_docker_away_and_waited_for() {
    within(60, async {
        let (etcd, app) =
            (Etcd::start().await, Backend::start_at("app", SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0))).await);
        let mut docker = FakeDocker::absent();
        let proxy = DockerProxy::start(docker.path()).await;
        let agent = Agent::start(&etcd, &["--docker", &proxy.path().display().to_string()]);
        let said = agent.wait_logged(secs(20), &["Docker does not answer at"]).await;
        assert!(said.contains("503") && !said.contains('<'), "{said}");
        docker.listen();
        docker.run(&Spec::new("web", "web", (Ipv4Addr::new(127, 77, 0, 1), app.address().port()), 40_001));
        wait_at(&etcd, "web", SocketAddr::from((Ipv4Addr::LOCALHOST, 40_001)), secs(20)).await;
    })
    .await;
}

/// Longer quiet than any limit of the proxy but the one on events. Takes 40 s.
#[tokio::test]
#[ignore = "long: run by ./test --full"]
async fn events_that_are_quiet_for_long_still_come_through_the_proxy() {
    within(90, async {
        let docker = FakeDocker::start();
        let proxy = DockerProxy::start(docker.path()).await;
        let mut events = Connection::open_unix(&proxy.path()).await.unwrap();
        assert_eq!(events.stream("/v1.41/events").await.unwrap(), 200);
        tokio::time::sleep(secs(40)).await;
        docker.says("start", "0123456789ab", &[]);
        let line = events.line().await.unwrap();
        assert!(line.contains("0123456789ab"), "{line}");
    })
    .await;
}
