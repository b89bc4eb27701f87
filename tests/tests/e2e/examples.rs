//! What docs/examples.md shows, with the real HAProxy, keepalived and traffic.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use e2e::backend::Backend;
use e2e::discoverer::{Discoverer, SOON};
use e2e::docker::{Container, Docker, docker_ok};
use e2e::etcd::Etcd;
use e2e::http;
use e2e::load::Load;
use e2e::process::{Finished, find_program, run};
use e2e::{secs, wait_until, within, workspace};
use rcgen::{CertificateParams, KeyPair};
use tokio::net::{UdpSocket, UnixDatagram};
use tokio::sync::mpsc;

use crate::images::{HARDENED, agent, build, registered};

/// So long the address may be nobody's on a machine that is busy with other tests. VRRP's three missed advertisements, or two
/// checks, and the time to take it over are 6 s, which what the test prints is to be held against.
const FAILOVER: Duration = secs(30);

/// Writes a certificate for a name, valid by itself, with its key behind it, as HAProxy takes them.
fn certificate(directory: &Path, name: &str) -> String {
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new([name.to_owned()]).unwrap().self_signed(&key).unwrap().pem();
    // In one step: HAProxy may be reading.
    let file = directory.join(format!("{name}.pem"));
    let new = directory.join(".new");
    std::fs::write(&new, format!("{certificate}{}", key.serialize_pem())).unwrap();
    std::fs::rename(new, file).unwrap();
    certificate
}

async fn curl(address: std::net::SocketAddr, ca: &Path, more: &[&str]) -> Finished {
    let connect = format!("::{address}");
    let ca = ca.display().to_string();
    let args = [
        &[
            "--silent",
            "--show-error",
            "--include",
            "--max-time",
            "5",
            "--noproxy",
            "*",
            "--connect-to",
            &connect,
            "--cacert",
            &ca,
        ],
        more,
    ]
    .concat();
    run(&find_program("curl", "curl"), &args, &[], secs(10)).await
}

fn lines_of(log: &str) -> Vec<serde_json::Value> {
    log.lines()
        .filter(|line| line.starts_with("{\"time\":"))
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect()
}

#[tokio::test]
async fn tls_ends_at_haproxy_and_a_renewed_certificate_is_served_with_no_request_lost_and_each_request_is_a_line_of_json()
 {
    within(120, async {
        let docker = Docker::start().await;
        let etcd = docker.etcd().await;
        let (hello, body) = registered(&docker, etcd).await;
        let directory = tempfile::tempdir().unwrap();
        let certificates = directory.path().join("certificates");
        std::fs::create_dir(&certificates).unwrap();
        let ca = directory.path().join("ca.pem");
        std::fs::write(&ca, certificate(&certificates, "a.localhost")).unwrap();
        let world_readable = run(
            &find_program("chmod", "coreutils"),
            &["-R", "a+rX", &directory.path().display().to_string()],
            &[],
            secs(5),
        )
        .await;
        assert_eq!(world_readable.code, Some(0), "{}", world_readable.stderr);
        let volume = format!("{}:/etc/certificates:ro", certificates.display());
        let args = [
            "--publish",
            "127.0.0.1::80",
            "--publish",
            "127.0.0.1::443",
            "--volume",
            &volume,
            "--env",
            "DISCOVERER_ETCD=http://etcd:2379",
            "local/haproxy-discoverer",
            "--set",
            "certificates=/etc/certificates",
            "--set",
            "log_format=json",
        ];
        // One has to be told of a new certificate, the other one watches.
        let lb = docker.run("lb", &[&HARDENED[..], &args].concat()).await;
        let watch = ["--watch", "/etc/certificates"];
        let watching = docker.run("watching", &[&HARDENED[..], &args, &watch].concat()).await;
        let (plain, secure) = (lb.published(80).await, lb.published(443).await);
        let (watching_plain, watching_secure) = (watching.published(80).await, watching.published(443).await);
        for address in [secure, watching_secure] {
            wait_until(secs(30), "it is served over TLS and HTTP/2", async || {
                let got = curl(address, &ca, &["https://a.localhost/a%22b?\u{e9}"]).await;
                if got.stdout.starts_with("HTTP/2 200") && got.stdout.ends_with(&body) {
                    Ok(())
                } else {
                    Err(format!("{}{}", got.stdout, got.stderr))
                }
            })
            .await;
        }
        let old = curl(secure, &ca, &["--http1.1", "https://a.localhost/"]).await;
        assert!(old.stdout.starts_with("HTTP/1.1 200"), "{}", old.stdout);
        let older = curl(secure, &ca, &["--tls-max", "1.1", "https://a.localhost/"]).await;
        assert_ne!(older.code, Some(0), "TLS 1.1: {}", older.stdout);
        let led = http::get_host(plain, "a.localhost").await.unwrap();
        assert_eq!((led.status, led.header("location")), (301, Some("https://a.localhost/")));
        let challenge =
            http::request(plain, "GET", "/.well-known/acme-challenge/x", &[("host", "a.localhost")], "").await.unwrap();
        assert_eq!(challenge.status, 200, "a challenge goes through by HTTP");

        // Another certificate in the same place: read at a reload, of which the one that watches thinks by itself.
        let loads = [plain, watching_plain].map(|address| Load::of(address, "/.well-known/acme-challenge/x", 4));
        for load in &loads {
            load.wait_served(50).await;
        }
        let renewed = directory.path().join("renewed.pem");
        std::fs::write(&renewed, certificate(&certificates, "a.localhost")).unwrap();
        let shows_renewed = async |address| {
            wait_until(secs(20), "the new certificate is served", async || {
                let got = curl(address, &renewed, &["https://a.localhost/"]).await;
                if got.code == Some(0) { Ok(()) } else { Err(got.stderr) }
            })
            .await;
        };
        shows_renewed(watching_secure).await;
        watching.wait_log(secs(10), &["watched files have changed"]).await;
        assert_eq!(curl(secure, &renewed, &["https://a.localhost/"]).await.code, Some(60), "not told yet");
        lb.exec(&["sh", "-c", "kill -USR2 $(cat /var/lib/discoverer/haproxy.pid)"]).await;
        shows_renewed(secure).await;
        for load in loads {
            load.stop_after(200).await.assert_no_failure(200);
        }

        let log = lb.logs().await;
        let lines = lines_of(&log);
        let first =
            lines.iter().find(|line| line["uri"].as_str().is_some_and(|uri| uri.contains("a%22b"))).expect(&log);
        assert_eq!(first["host"], "a.localhost");
        let server = format!("{}_8000", hello.own_ip().await);
        assert_eq!(
            (first["service"].as_str(), first["server"].as_str(), first["status"].as_u64()),
            (Some("hello"), Some(&*server), Some(200))
        );
        // What a client sends makes no line that is none of JSON.
        let evil = "/\"x\\y";
        let _ = http::request(plain, "GET", evil, &[("host", "a\"b")], "").await;
        lb.wait_log(secs(10), &["a\\\"b"]).await;
        lines_of(&lb.logs().await);
    })
    .await;
}

#[tokio::test]
async fn a_request_that_had_to_go_to_another_server_is_a_line_of_json_too() {
    within(60, async {
        let etcd = Etcd::start().await;
        let log = ["--set", "log_format=json", "--set", "log=stdout format raw local0"];
        let mut discoverer = Discoverer::supervise(&etcd.url()).args(&log).start();
        let (one, two) = (Backend::start("one").await, Backend::start("two").await);
        etcd.put(&one.key_in("web"), "running").await;
        etcd.put(&two.key_in("web"), "running").await;
        discoverer.wait_host("web.test", "two").await;
        // Before HAProxy's check knows of it.
        drop(two);
        wait_until(SOON, "a request was given to another server", async || {
            discoverer.answer("web.test").await;
            let lines = lines_of(&discoverer.process().log());
            // HAProxy writes `+1` then.
            let is_redispatched = lines.iter().any(|line| line["retries"].as_str().is_some_and(|n| n.starts_with('+')));
            if is_redispatched { Ok(()) } else { Err(format!("{} lines", lines.len())) }
        })
        .await;
    })
    .await;
}

/// One of the two load balancers: the discoverer with HAProxy, and keepalived beside them.
async fn edge(docker: &Docker, alias: &str, config: &Path) -> Container {
    let volume = format!("{}:/etc/keepalived/keepalived.conf:ro", config.display());
    let args = [
        "--cap-add",
        "NET_ADMIN",
        "--cap-add",
        "NET_RAW",
        "--volume",
        &volume,
        "--env",
        "DISCOVERER_ETCD=http://etcd:2379",
        "e2e/edge",
        "--only",
        "tag=edge",
    ];
    let lb = docker.run(alias, &args).await;
    wait_until(secs(30), "HAProxy takes connections", async || {
        let said = e2e::docker::docker(&["exec", lb.id(), "discoverer", "health"]).await;
        if said.code == Some(0) { Ok(()) } else { Err(said.stderr) }
    })
    .await;
    docker_ok(&[
        "exec",
        "--detach",
        lb.id(),
        "sh",
        "-c",
        "exec keepalived --dont-fork --log-console >/proc/1/fd/2 2>&1",
    ])
    .await;
    lb
}

/// An instance of a service at its own address, with these tags, and what it answers; in the registry when this returns.
async fn instance(
    docker: &Docker,
    agent: &Container,
    (alias, service): (&str, &str),
    tags: &str,
) -> (Container, String) {
    let labels =
        [format!("SERVICE_NAME={service}"), format!("SERVICE_HOST={service}.test"), format!("SERVICE_TAGS={tags}")];
    let labels = labels.each_ref().map(|label| ["--label", label]).concat();
    let hello = docker.run(alias, &[&labels[..], &["local/hello"]].concat()).await;
    let address = format!("{}:8000", hello.own_ip().await);
    wait_until(secs(30), "it is registered", async || {
        let list = agent.exec(&["registrar", "list"]).await;
        let is_in = list.lines().any(|line| line.contains(service) && line.contains(&address));
        if is_in { Ok(()) } else { Err(list) }
    })
    .await;
    let body = format!("Hello from {}\n", hello.short_id());
    (hello, body)
}

async fn has(lb: &Container, address: &str) -> bool {
    let shown = e2e::docker::docker(&["exec", lb.id(), "hostname", "-I"]).await;
    shown.stdout.split_whitespace().any(|own| own == address)
}

/// The example's file, for this network.
fn edge_config(directory: &Path, address: &str) -> PathBuf {
    let text = std::fs::read_to_string(workspace().join("packaging/examples/edge/keepalived.conf")).unwrap();
    assert!(text.contains("10.1.0.100/24"), "{text}");
    let file = directory.join("keepalived.conf");
    std::fs::write(&file, text.replace("10.1.0.100/24", &format!("{address}/16"))).unwrap();
    file
}

#[tokio::test]
async fn of_two_load_balancers_at_the_edge_that_know_what_is_for_it_one_has_the_address_and_the_other_takes_it_over() {
    within(600, async {
        let docker = Docker::start().await;
        docker.etcd().await;
        let agent = agent(&docker, "REGISTRAR_INTERNAL=true").await;
        let (web, inside) = (docker.service("web"), docker.service("inside"));
        let (_tagged, body) = instance(&docker, &agent, ("tagged", &web), "blue,edge").await;
        let (untagged, _) = instance(&docker, &agent, ("untagged", &web), "blue").await;
        let (_inside, _) = instance(&docker, &agent, ("inside", &inside), "").await;
        let (web, inside) = (format!("{web}.test"), format!("{inside}.test"));
        let context = tempfile::tempdir().unwrap();
        let text = "FROM local/haproxy-discoverer\nUSER root\nRUN apt-get update -q && \
                    DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends keepalived && rm -rf /var/lib/apt/lists/*\n";
        std::fs::write(context.path().join("Dockerfile"), text).unwrap();
        build("e2e/edge", &[&context.path().display().to_string()]).await;
        // An address at the far end of the test's own network.
        let subnet = docker_ok(&["network", "inspect", "--format", "{{(index .IPAM.Config 0).Gateway}}", docker.name()]).await;
        let address = format!("{}.250", subnet.trim().rsplit_once('.').unwrap().0);
        let config = edge_config(context.path(), &address);
        let lbs = [edge(&docker, "one", &config).await, edge(&docker, "two", &config).await];
        let site = format!("{address}:80").parse().unwrap();
        let owner = async |limit: Duration, not: Option<usize>| {
            let start = Instant::now();
            let found = wait_until(limit, "one has the address and serves", async || {
                let served = tokio::time::timeout(secs(1), http::get_host(site, &web)).await;
                let is_served = matches!(&served, Ok(Ok(reply)) if reply.body == body);
                let owners = [has(&lbs[0], &address).await, has(&lbs[1], &address).await];
                let found = owners.iter().position(|&has| has).filter(|&at| Some(at) != not);
                found.filter(|_| is_served).ok_or_else(|| format!("{owners:?} {served:?}"))
            })
            .await;
            (found, start.elapsed())
        };
        let (first, _) = owner(secs(30), None).await;

        // Of that service's two instances one is for the edge, and of the other service none: as both say.
        for _ in 0..20 {
            assert_eq!(http::get_host(site, &web).await.unwrap().body, body);
        }
        assert_eq!(http::get_host(site, &inside).await.unwrap().status, 404);
        let outside = format!("{}:8000", untagged.own_ip().await);
        for lb in &lbs {
            let told = e2e::docker::docker(&["exec", lb.id(), "discoverer", "explain", &outside]).await;
            let left_out = format!("{outside} is left out by --only tag=edge: its tags are blue");
            assert!(told.code == Some(1) && told.stdout.contains(&left_out), "{told:?}");
        }

        // An HAProxy that hangs: the check fails twice.
        lbs[first].exec(&["sh", "-c", "kill -STOP $(pidof haproxy)"]).await;
        let (second, hung) = owner(FAILOVER, Some(first)).await;
        lbs[first].exec(&["sh", "-c", "kill -CONT $(pidof haproxy)"]).await;
        wait_until(secs(15), "only one has the address, and it stays where it is", async || {
            let owners = (has(&lbs[first], &address).await, has(&lbs[second], &address).await);
            if owners == (false, true) { Ok(()) } else { Err(format!("{owners:?}")) }
        })
        .await;
        lbs[first].wait_log(secs(20), &["succeeded"]).await;
        // A host that dies says nothing: the other one waits for three advertisements.
        lbs[second].tell("kill").await;
        let (third, dead) = owner(FAILOVER, Some(second)).await;
        assert_eq!(third, first);
        eprintln!("failover, 6 s at most where nothing else runs: HAProxy hangs {hung:?}, host dies {dead:?}");

        // Without etcd nobody gives the address away.
        docker_ok(&["stop", "--time", "2", &format!("{}-etcd", docker.name())]).await;
        e2e::stays_true(secs(6), "the address stays", async || {
            if has(&lbs[first], &address).await { Ok(()) } else { Err("gone".to_owned()) }
        })
        .await;
        assert_eq!(http::get_host(site, &web).await.unwrap().body, body);
    })
    .await;
}

/// An application with its own HAProxy, as packaging/examples/beside has it. Dropping it removes both.
struct Beside {
    project: String,
    override_file: PathBuf,
    _directory: tempfile::TempDir,
    application: Container,
    haproxy: Container,
}

impl Beside {
    /// Its application calls the services of this host name all the time.
    async fn start(docker: &Docker, name: &str, host: &str) -> Beside {
        let directory = tempfile::tempdir().unwrap();
        let override_file = directory.path().join("docker-compose.yml");
        let text = format!(
            "version: \"3.4\"\nservices:\n  application:\n    environment:\n      CALLS: {host}\n\
             networks:\n  default:\n    external:\n      name: {}\n",
            docker.name()
        );
        std::fs::write(&override_file, text).unwrap();
        let project = format!("{}-{name}", docker.name());
        let variables =
            [("ETCD", "http://etcd:2379"), ("APPLICATION", "e2e/caller"), ("COMPOSE_PROJECT_NAME", &*project)];
        let args = compose(&override_file, &["up", "--detach"]);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let up = run(&find_program("docker-compose", "docker-compose"), &args, &variables, secs(60)).await;
        assert_eq!(up.code, Some(0), "{}{}", up.stdout, up.stderr);
        let application = Container::of_compose(&project, "application").await;
        let haproxy = Container::of_compose(&project, "haproxy").await;
        let beside = Beside { project, override_file, _directory: directory, application, haproxy };
        beside.wait_listens().await;
        beside
    }

    /// What its application got since it was told to begin.
    async fn got(&self, method: &str) -> serde_json::Value {
        let address = (self.application.own_ip().await, 8000).into();
        let reply = http::request(address, method, "/", &[], "").await.unwrap();
        serde_json::from_str(&reply.body).unwrap_or_else(|error| panic!("{error}: {}", reply.body))
    }

    async fn wait_listens(&self) {
        let address = (self.application.own_ip().await, 8000).into();
        wait_until(secs(30), "the application listens", async || {
            http::get(address, "/").await.map(drop).map_err(|error| error.to_string())
        })
        .await;
    }

    /// From now on its application is answered by these, and each of them answers.
    async fn wait_answers(&self, bodies: &[&str]) {
        wait_until(secs(30), "the application reaches them, and no others", async || {
            self.got("POST").await;
            tokio::time::sleep(Duration::from_millis(200)).await;
            let got = self.got("GET").await;
            let served = got["served"].as_object().unwrap();
            let is_right = served.len() == bodies.len() && bodies.iter().all(|&body| served.contains_key(body));
            if is_right && got["failures"] == serde_json::json!([]) { Ok(()) } else { Err(got.to_string()) }
        })
        .await;
    }
}

/// The arguments of docker-compose for the example beside an application.
fn compose(override_file: &Path, more: &[&str]) -> Vec<String> {
    let example = workspace().join("packaging/examples/beside/docker-compose.yml");
    let files = ["-f".to_owned(), example.display().to_string(), "-f".to_owned(), override_file.display().to_string()];
    files.into_iter().chain(more.iter().map(|&word| word.to_owned())).collect()
}

impl Drop for Beside {
    fn drop(&mut self) {
        let mut down = std::process::Command::new(find_program("docker-compose", "docker-compose"));
        down.args(compose(&self.override_file, &["down", "--volumes", "--timeout", "2"]));
        down.env("COMPOSE_PROJECT_NAME", &self.project).env("ETCD", "-");
        let _tried = down.output();
    }
}

#[tokio::test]
async fn applications_with_an_haproxy_of_their_own_lose_no_call_while_what_they_call_is_replaced() {
    within(300, async {
        let docker = Docker::start().await;
        docker.etcd().await;
        build("e2e/caller", &[&workspace().join("tests/images/caller").display().to_string()]).await;
        let agent = agent(&docker, "REGISTRAR_INTERNAL=true").await;
        let web = docker.service("web");
        let (mut old, mut old_body) = instance(&docker, &agent, ("web-0", &web), "").await;
        let (_stays, steady) = instance(&docker, &agent, ("steady", &web), "").await;
        let host = format!("{web}.test");
        let applications = [Beside::start(&docker, "one", &host).await, Beside::start(&docker, "two", &host).await];
        for application in &applications {
            application.wait_answers(&[&old_body, &steady]).await;
            application.got("POST").await;
        }

        // One comes, and one that it replaces goes.
        for number in 1..=3 {
            let (new, body) = instance(&docker, &agent, (&format!("web-{number}"), &web), "").await;
            wait_until(secs(20), "each application reaches the new one", async || {
                for application in &applications {
                    let got = application.got("GET").await;
                    if got["served"][&body].is_null() {
                        return Err(got.to_string());
                    }
                }
                Ok(())
            })
            .await;
            let said = agent.exec(&["registrar", "stop", old.id()]).await;
            assert!(said.contains("The container is stopped."), "{said}");
            (old, old_body) = (new, body);
        }
        for application in &applications {
            let got = application.got("GET").await;
            let served = got["served"].as_object().unwrap();
            assert_eq!(got["failures"], serde_json::json!([]), "{got}");
            assert!(served.len() == 5 && served.values().all(|count| count.as_u64() > Some(0)), "{got}");
            application.wait_answers(&[&old_body, &steady]).await;
            // It is on the loopback of that application, and nobody else's.
            let address = (application.application.own_ip().await, 8080).into();
            assert_eq!(http::get(address, "/").await.unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
        }

        // One HAProxy that dies is its application's loss alone.
        let [one, two] = &applications;
        one.haproxy.tell("kill").await;
        wait_until(secs(10), "its application misses it", async || {
            let got = one.got("GET").await;
            if got["failures"].as_array().unwrap().is_empty() { Err(got.to_string()) } else { Ok(()) }
        })
        .await;
        two.wait_answers(&[&old_body, &steady]).await;
        one.haproxy.tell("start").await;
        one.wait_answers(&[&old_body, &steady]).await;
    })
    .await;
}

#[tokio::test]
async fn the_examples_files_are_taken_by_docker_compose() {
    let root = workspace();
    for example in ["beside", "two-containers"] {
        let file = root.join(format!("packaging/examples/{example}/docker-compose.yml"));
        let shown = run(
            &find_program("docker-compose", "docker-compose"),
            &["-f", &file.display().to_string(), "config", "--quiet"],
            &[("ETCD", "http://etcd:2379")],
            secs(30),
        )
        .await;
        assert_eq!(shown.code, Some(0), "{example}: {}", shown.stderr);
    }
}

#[tokio::test]
async fn each_request_is_a_line_for_syslog_at_its_socket_or_at_another_host() {
    within(120, async {
        let (etcd, directory) = (Etcd::start().await, tempfile::tempdir().unwrap());
        let web = Backend::start("web").await;
        etcd.put(&web.flat_key(), "running").await;
        let path = directory.path().join("log");
        let socket = UnixDatagram::bind(&path).unwrap();
        let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let places = [path.display().to_string(), udp.local_addr().unwrap().to_string()];
        let (lines, mut read) = mpsc::unbounded_channel();
        // Who does not read loses what comes.
        let reader = tokio::spawn(async move {
            loop {
                let (mut local, mut remote) = ([0; 4096], [0; 4096]);
                let line = tokio::select! {
                    read = socket.recv(&mut local) => &local[..read.unwrap()],
                    read = udp.recv(&mut remote) => &remote[..read.unwrap()],
                };
                let _ended = lines.send(String::from_utf8_lossy(line).into_owned());
            }
        });
        for (place, asked) in places.iter().zip(["/at-a-socket", "/at-a-host"]) {
            let log = format!("log={place} local0");
            let mut discoverer = Discoverer::supervise(&etcd.url()).args(&["--set", &log]).start();
            discoverer.wait_serves(&["web"]).await;
            http::get(discoverer.http(), asked).await.unwrap();
            let line = tokio::time::timeout(secs(20), async {
                loop {
                    let line = read.recv().await.unwrap();
                    if line.contains(&format!("GET {asked} ")) {
                        return line;
                    }
                }
            })
            .await
            .unwrap_or_else(|_| panic!("no line at {place}"));
            // Facility local0, severity info.
            assert!(line.starts_with("<134>") && line.contains(" _http ") && line.contains(" 200 "), "{line}");
            let server = format!("/{} ", web.address().to_string().replace(':', "_"));
            assert!(line.contains(&server), "{line}");
        }
        reader.abort();
    })
    .await;
}
