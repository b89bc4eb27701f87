//! The images as docs/images.md promises them: without root, without capabilities, with a root that cannot be written.

use std::time::{Duration, Instant};

use e2e::docker::{Container, Docker, docker, docker_ok};
use e2e::http;
use e2e::load::{Load, requests};
use e2e::process::{find_program, run};
use e2e::{secs, wait_until, within, workspace};
use tokio::sync::OnceCell;

/// The flags that take away what these images do not need.
pub(crate) const HARDENED: [&str; 5] = ["--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"];
const SERVED: Duration = secs(30);
/// Where the containers that share sockets have them.
const SHARED: &str = "/var/lib/discoverer";

/// Builds an image from a text, or from a file of the project; what is in it already costs nothing.
pub(crate) async fn build(name: &str, args: &[&str]) {
    let all = [&["build", "--quiet", "--tag", name], args].concat();
    let built = run(&find_program("docker", "docker.io"), &all, &[], secs(300)).await;
    assert_eq!(built.code, Some(0), "docker {all:?}: {}", built.stderr);
}

/// HAProxy's own image, or what stands for it here, and the discoverer's that is made from it.
async fn two_images() -> (&'static str, &'static str) {
    static BUILT: OnceCell<()> = OnceCell::const_new();
    BUILT
        .get_or_init(|| async {
            let root = workspace().display().to_string();
            build("e2e/haproxy", &[&format!("{root}/tests/images/haproxy")]).await;
            let file = format!("{root}/packaging/images/discoverer/Dockerfile");
            build("e2e/discoverer", &["--build-arg", "HAPROXY=e2e/haproxy", "--file", &file, &root]).await;
        })
        .await;
    ("e2e/haproxy", "e2e/discoverer")
}

async fn wait_served(lb: &Container, body: &str) {
    wait_until(SERVED, "the load balancer serves it", async || {
        // A container that Docker is about to start again has no port.
        let shown = docker(&["port", lb.id(), "80/tcp"]).await.stdout;
        let address =
            shown.lines().next().and_then(|line| line.parse().ok()).ok_or_else(|| format!("port {shown:?}"))?;
        let seen = requests(address, 2).await;
        if seen.len() == 1 && seen.contains_key(body) { Ok(()) } else { Err(format!("{seen:?}")) }
    })
    .await;
}

/// An application that is registered by hand, at its own address in the test's network; gives what it answers.
pub(crate) async fn registered(docker: &Docker, etcd: std::net::SocketAddr) -> (Container, String) {
    let hello = docker.run("hello", &["local/hello"]).await;
    let key = format!("/v2/keys/service/hello/{}:8000", hello.own_ip().await);
    let header = [("content-type", "application/x-www-form-urlencoded")];
    let reply = http::request(etcd, "PUT", &key, &header, "value=running").await.unwrap();
    assert_eq!(reply.status, 201, "{}", reply.body);
    let body = format!("Hello from {}\n", hello.short_id());
    (hello, body)
}

/// Waits until the health check ends with this code and says this: HAProxy of a busy machine may answer late.
async fn wait_health(lb: &Container, program: &str, code: i32, is_said: impl Fn(&str) -> bool) {
    wait_until(SERVED, &format!("{program} health ends with {code}"), async || {
        let told = docker(&["exec", lb.id(), program, "health"]).await;
        let is_it = told.code == Some(code) && is_said(&format!("{}{}", told.stdout, told.stderr));
        if is_it { Ok(()) } else { Err(format!("{told:?}")) }
    })
    .await;
}

/// What it says of one that does.
const TAKES: &str = "HAProxy takes connections at 127.0.0.1:80\n";

#[tokio::test]
async fn the_load_balancer_needs_no_root_and_is_healthy_while_haproxy_takes_connections() {
    within(120, async {
        let docker = Docker::start().await;
        let etcd = docker.etcd().await;
        let (_hello, body) = registered(&docker, etcd).await;
        let args =
            ["--publish", "127.0.0.1::80", "--env", "DISCOVERER_ETCD=http://etcd:2379", "local/haproxy-discoverer"];
        let lb = docker.run("lb", &[&HARDENED[..], &args].concat()).await;
        wait_served(&lb, &body).await;
        assert_eq!(lb.exec(&["id", "-u"]).await.trim(), "99");
        wait_until(secs(30), "Docker finds it healthy", async || {
            let shown = docker_ok(&["inspect", "--format", "{{.State.Health.Status}}", lb.id()]).await;
            if shown.trim() == "healthy" { Ok(()) } else { Err(shown) }
        })
        .await;

        // Without etcd HAProxy serves what it knows, and is to be left alone.
        docker_ok(&["stop", "--time", "2", &format!("{}-etcd", docker.name())]).await;
        lb.wait_log(secs(20), &["registry unreachable"]).await;
        wait_health(&lb, "discoverer", 0, |said| said == TAKES).await;

        // The kernel goes on taking connections for a worker that hangs.
        lb.exec(&["sh", "-c", "kill -STOP $(pidof haproxy)"]).await;
        wait_health(&lb, "discoverer", 1, |said| said.contains("HAProxy does not answer")).await;
        lb.exec(&["sh", "-c", "kill -CONT $(pidof haproxy)"]).await;
        wait_health(&lb, "discoverer", 0, |_| true).await;

        // Started again with etcd still away, it serves from its volume.
        lb.tell("restart").await;
        wait_served(&lb, &body).await;
    })
    .await;
}

#[tokio::test]
async fn what_is_asked_of_the_discoverers_images_needs_no_place_to_write_but_their_volume() {
    within(600, async {
        let docker = Docker::start().await;
        let etcd = docker.etcd().await;
        let (_hello, _) = registered(&docker, etcd).await;
        let (_, beside) = two_images().await;
        for (number, image) in ["local/haproxy-discoverer", beside].into_iter().enumerate() {
            for (what, said) in [("check", "good with the registered services"), ("--dry-run", "nothing was written")] {
                let args = ["--env", "DISCOVERER_ETCD=http://etcd:2379", image, what];
                let asked = docker.run(&format!("asked-{number}{what}"), &[&HARDENED[..], &args].concat()).await;
                asked.wait_log(secs(20), &[said]).await;
                assert_eq!(docker_ok(&["wait", asked.id()]).await.trim(), "0", "{image} {what}");
            }
        }
    })
    .await;
}

#[tokio::test]
async fn a_volume_that_another_user_owns_is_refused_with_the_way_out() {
    within(90, async {
        let docker = Docker::start().await;
        let args = ["--tmpfs", "/var/lib/discoverer:uid=0,mode=755", "--env", "DISCOVERER_ETCD=http://127.0.0.1:1"];
        let lb = docker.run("lb", &[&HARDENED[..], &args, &["local/haproxy-discoverer"]].concat()).await;
        let said = "it belongs to user 0, and this is user 99; give it over: chown -R 99:99 /var/lib/discoverer";
        lb.wait_log(secs(20), &[said]).await;
        assert_eq!(docker_ok(&["wait", lb.id()]).await.trim(), "1");
    })
    .await;
}

/// The flags of both containers of the two-container form.
async fn two_containers(docker: &Docker, haproxy_first: bool) -> (Container, Container) {
    let (haproxy, discoverer) = two_images().await;
    let volume = format!("{}:{SHARED}", docker.name());
    let common = [&HARDENED[..], &["--restart", "unless-stopped", "--volume", &volume]].concat();
    let one = ["--publish", "127.0.0.1::80", haproxy, "-S", "/var/lib/discoverer/master.sock,mode,600", "-f"];
    let one = [&common[..], &one, &["/var/lib/discoverer/haproxy.cfg"]].concat();
    let other = [&common[..], &["--env", "DISCOVERER_ETCD=http://etcd:2379", discoverer]].concat();
    if haproxy_first {
        let haproxy = docker.run("haproxy", &one).await;
        wait_until(secs(20), "Docker has started HAProxy in vain", async || {
            let count = docker_ok(&["inspect", "--format", "{{.RestartCount}}", haproxy.id()]).await;
            if count.trim() == "0" { Err(count) } else { Ok(()) }
        })
        .await;
        (haproxy, docker.run("discoverer", &other).await)
    } else {
        let discoverer = docker.run("discoverer", &other).await;
        discoverer.wait_log(secs(20), &["is HAProxy running with -W -S"]).await;
        (docker.run("haproxy", &one).await, discoverer)
    }
}

#[tokio::test]
async fn haproxy_and_the_discoverer_in_two_containers_start_in_either_order_and_no_request_is_lost_by_the_discoverers_end()
 {
    within(600, async {
        for haproxy_first in [true, false] {
            let docker = Docker::start().await;
            let etcd = docker.etcd().await;
            let (_hello, body) = registered(&docker, etcd).await;
            let (haproxy, discoverer) = two_containers(&docker, haproxy_first).await;
            wait_served(&haproxy, &body).await;
            // From now on both have found each other: changes go over the runtime socket.
            discoverer.wait_log(secs(70), &["configuration applied"]).await;

            let load = Load::start(haproxy.published(80).await);
            load.wait_served(50).await;
            discoverer.tell("restart").await;
            load.wait_served(100).await;
            discoverer.tell("kill").await;
            load.wait_served(100).await;
            discoverer.tell("start").await;
            load.stop_after(400).await.assert_no_failure(400);

            // One HAProxy that is restarted is away meanwhile; it comes back with what it was told at run time.
            let start = Instant::now();
            haproxy.tell("restart --time 30").await;
            wait_served(&haproxy, &body).await;
            eprintln!("HAProxy's container was away for less than {:?}", start.elapsed());
            drop(docker_volume(docker).await);
        }
    })
    .await;
}

/// Removes a test's volume once its containers are gone.
async fn docker_volume(docker: Docker) -> String {
    let name = docker.name().to_owned();
    drop(docker);
    docker_ok(&["volume", "rm", "--force", &name]).await
}

#[tokio::test]
async fn the_sidekicks_image_has_the_program_alone_which_resolves_names_whatever_the_system_says() {
    within(600, async {
        let docker = Docker::start().await;
        let etcd = docker.etcd().await;
        let (_hello, _) = registered(&docker, etcd).await;
        let bare = docker.run("bare", &["local/registrar-sidekick", "list", "--etcd", "http://etcd:2379"]).await;
        bare.wait_log(secs(20), &["hello"]).await;
        assert_eq!(docker_ok(&["wait", bare.id()]).await.trim(), "0");
        // There are no CA certificates in it.
        let secure = docker.run("secure", &["local/registrar-sidekick", "list", "--etcd", "https://etcd:2379"]).await;
        secure.wait_log(secs(20), &["--etcd-ca"]).await;
        // A plug-in of the resolver is a library for another C library than the one in the program.
        build_copied().await;
        let script = "echo 'hosts: mdns4_minimal [NOTFOUND=return] resolve' >/etc/nsswitch.conf; registrar list --etcd http://etcd:2379";
        let copied = docker.run("copied", &["--entrypoint", "sh", "e2e/copied", "-c", script]).await;
        copied.wait_log(secs(20), &["hello"]).await;
    })
    .await;
}

/// An image with the registrar out of `local/registrar-sidekick`, as docs/images.md says.
async fn build_copied() {
    let directory = tempfile::tempdir().unwrap();
    let text = "FROM local/debian:bookworm\nCOPY --from=local/registrar-sidekick /registrar /usr/local/bin/\n";
    std::fs::write(directory.path().join("Dockerfile"), text).unwrap();
    build("e2e/copied", &[&directory.path().display().to_string()]).await;
}

/// The agent in its image, as a user who only has the socket's group, for containers that ask for it by label.
pub(crate) async fn agent(docker: &Docker, variable: &str) -> Container {
    use std::os::unix::fs::MetadataExt;
    let group = std::fs::metadata("/var/run/docker.sock").unwrap().gid().to_string();
    let user = ["--user", "65532", "--group-add", &group, "--volume", e2e::docker::SOCKET];
    let etcd = ["--env", "REGISTRAR_ETCD=http://etcd:2379"];
    let variables = ["--env", "REGISTRAR_EXPLICIT=true", "--env", variable];
    docker.run("agent", &[&HARDENED[..], &user, &etcd, &variables, &["local/registrar"]].concat()).await
}

#[tokio::test]
async fn the_agent_registers_as_a_user_who_only_has_the_sockets_group() {
    within(600, async {
        let docker = Docker::start().await;
        docker.etcd().await;
        let service = docker.service("app");
        let _app = docker
            .run("app", &["--publish", "127.0.0.1::8000", "--label", &format!("SERVICE_NAME={service}"), "local/hello"])
            .await;
        let agent = agent(&docker, "REGISTRAR_IP=127.0.0.1").await;
        wait_until(secs(30), "the agent knows of it", async || {
            let said = docker_ok(&["exec", agent.id(), "registrar", "list"]).await;
            if said.contains(&service) { Ok(()) } else { Err(said) }
        })
        .await;
    })
    .await;
}

#[tokio::test]
async fn standalone_needs_no_root_and_is_healthy_while_haproxy_takes_connections() {
    use std::os::unix::fs::MetadataExt;
    within(120, async {
        let docker = Docker::start().await;
        let group = std::fs::metadata("/var/run/docker.sock").unwrap().gid().to_string();
        let (service, domains) = (docker.service("web"), format!("STANDALONE_DOMAINS=*.{}", docker.name()));
        let labels = [format!("SERVICE_NAME={service}"), format!("SERVICE_HOST=web.{}", docker.name())];
        let web = docker.run("web", &["--label", &labels[0], "--label", &labels[1], "local/hello"]).await;
        let set = format!("STANDALONE_SET=default_service={service}");
        let mut args = [&HARDENED[..], &["--publish", "127.0.0.1::80", "--volume", e2e::docker::SOCKET]].concat();
        for variable in ["STANDALONE_EXPLICIT=true", "STANDALONE_INTERNAL=true", &domains, &set] {
            args.extend(["--env", variable]);
        }
        // Without the socket's group it says what is missing, and HAProxy runs all the same.
        let other = docker.run("other", &[&args[..], &["local/standalone"]].concat()).await;
        other.wait_log(secs(20), &["may not be opened by this user", "--group-add"]).await;

        let lb = docker.run("lb", &[&args[..], &["--group-add", &group, "local/standalone"]].concat()).await;
        wait_served(&lb, &format!("Hello from {}\n", web.short_id())).await;
        assert_eq!(lb.exec(&["id", "-u"]).await.trim(), "99");
        wait_until(secs(30), "Docker finds it healthy", async || {
            let shown = docker_ok(&["inspect", "--format", "{{.State.Health.Status}}", lb.id()]).await;
            if shown.trim() == "healthy" { Ok(()) } else { Err(shown) }
        })
        .await;
        wait_health(&lb, "standalone", 0, |said| said == TAKES).await;
        let checked = lb.exec(&["standalone", "check"]).await;
        assert!(checked.contains("good with the registered services"), "{checked}");

        lb.exec(&["sh", "-c", "kill -STOP $(pidof haproxy)"]).await;
        wait_health(&lb, "standalone", 1, |said| said.contains("HAProxy does not answer")).await;
        lb.exec(&["sh", "-c", "kill -CONT $(pidof haproxy)"]).await;

        // It begins again with what lies in its volume.
        lb.tell("restart").await;
        wait_served(&lb, &format!("Hello from {}\n", web.short_id())).await;
    })
    .await;
}
