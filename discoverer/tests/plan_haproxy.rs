//! Plans carried out on the real HAProxy: it ends with the servers with which a HAProxy started with the wanted text
//! begins, and it takes every keyword that `plan` believes it takes.

#![allow(clippy::unwrap_used)]

mod plan_texts;

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use discoverer::plan::{Change, Plan, ServerId, Version, keywords, plan};
use plan_texts::stories;
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;

/// How long something is waited for, and how long between two looks at it.
const DEADLINE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(2);

/// A HAProxy with a stats socket, until it is dropped.
struct Haproxy {
    child: Child,
    directory: tempfile::TempDir,
}

impl Haproxy {
    fn start(text: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        // The socket stands in a file of its own, so that two instances can have the same text.
        let head = format!(
            "global\n  stats socket {0}/socket level admin\n  stats timeout 1m\n\
             defaults\n  mode http\n  timeout client 1s\n\
             frontend only_to_start\n  bind unix@{0}/frontend\n",
            directory.path().display()
        );
        std::fs::write(directory.path().join("head.cfg"), head).unwrap();
        std::fs::write(directory.path().join("text.cfg"), text).unwrap();
        let child = Command::new("haproxy")
            .args(["-db", "-f", "head.cfg", "-f", "text.cfg"])
            .current_dir(directory.path())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(directory.path().join("log")).unwrap())
            .spawn();
        let child = match child {
            Err(error) if error.kind() == ErrorKind::NotFound => panic!("no haproxy here: apt-get install haproxy"),
            child => child.unwrap(),
        };
        let mut haproxy = Self { child, directory };
        let deadline = Instant::now() + DEADLINE;
        while UnixStream::connect(haproxy.socket()).is_err() {
            let log = || std::fs::read_to_string(haproxy.directory.path().join("log")).unwrap_or_default();
            assert!(haproxy.child.try_wait().unwrap().is_none(), "HAProxy ended: {}\n{text}", log());
            assert!(Instant::now() < deadline, "no socket after {DEADLINE:?}: {}", log());
            std::thread::sleep(PAUSE);
        }
        haproxy
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("socket")
    }

    fn ask(&self, command: &str) -> String {
        let mut socket = UnixStream::connect(self.socket()).unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        writeln!(socket, "{command}").unwrap();
        let mut reply = String::new();
        socket.read_to_string(&mut reply).unwrap();
        reply.trim().to_owned()
    }

    fn carry_out(&self, change: &Change) {
        let quiet = |command: String| assert_eq!(self.ask(&command), "", "{command}");
        match change {
            Change::Add { id, arguments, checked, dynamic_cookie } => {
                let command = format!("add server {id} {arguments}");
                assert_eq!(self.ask(&command), "New server registered.", "{command}");
                if *dynamic_cookie {
                    quiet(format!("enable dynamic-cookie backend {}", id.backend));
                }
                if *checked {
                    quiet(format!("enable health {id}"));
                }
                quiet(format!("enable server {id}"));
            }
            Change::Remove { id } => {
                quiet(format!("set server {id} state maint"));
                let deadline = Instant::now() + DEADLINE;
                // The connection of a health check can be in the way for a moment.
                loop {
                    let reply = self.ask(&format!("del server {id}"));
                    if reply == "Server deleted." {
                        break;
                    }
                    assert!(
                        reply.starts_with("Server still has connections") && Instant::now() < deadline,
                        "{id}: {reply}"
                    );
                    std::thread::sleep(PAUSE);
                }
            }
            Change::Weight { id, weight } => quiet(format!("set server {id} weight {weight}")),
            Change::Address { id, address, port } => {
                let reply = self.ask(&format!("set server {id} addr {address} port {port}"));
                assert!(reply.ends_with("by 'stats socket command'"), "{id}: {reply}");
            }
        }
    }

    /// Of each server: address, port, weight, whether it speaks TLS, and the port of its check.
    fn servers(&self) -> BTreeMap<String, Vec<String>> {
        let reply = self.ask("show servers state");
        let mut lines = reply.lines().skip(1);
        let names: Vec<&str> = lines.next().unwrap().trim_start_matches("# ").split(' ').collect();
        let column = |name: &str| names.iter().position(|found| *found == name).unwrap();
        let compared =
            ["srv_addr", "srv_port", "srv_uweight", "srv_use_ssl", "srv_check_port", "srv_admin_state"].map(column);
        let id = ["be_name", "srv_name"].map(column);
        let servers = lines.map(|line| line.split(' ').collect::<Vec<_>>());
        servers
            .map(|words| (id.map(|at| words[at]).join("/"), compared.map(|at| words[at].to_owned()).to_vec()))
            .collect()
    }
}

impl Drop for Haproxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn version() -> Version {
    let output = Command::new("haproxy").arg("-v").output();
    let output = output.unwrap_or_else(|error| panic!("haproxy -v: {error}; apt-get install haproxy"));
    let words = String::from_utf8(output.stdout).unwrap();
    words.split_whitespace().nth(2).unwrap().parse().unwrap()
}

#[test]
fn haproxy_follows_the_plans_of_random_texts() {
    let version = version();
    let mut runner = TestRunner::deterministic();
    for _ in 0..4 {
        let story = stories(11).new_tree(&mut runner).unwrap().current();
        let living = Haproxy::start(&story.text(0, 0));
        for state in 1..11 {
            let wanted = story.text(state, state as u64);
            match plan(&story.text(state - 1, state as u64 - 1), &wanted, Some(version)) {
                Plan::Runtime(changes) => changes.iter().for_each(|change| living.carry_out(change)),
                other => assert_eq!(other, Plan::Nothing),
            }
            let servers = living.servers();
            assert_eq!(servers, Haproxy::start(&wanted).servers(), "{wanted}");
            // And both are what the test itself takes the text for.
            let expected = story.model(state).into_iter().map(|((backend, server), known)| {
                let (ip, port) = (known.address.ip().to_string(), known.address.port().to_string());
                (format!("{backend}/{server}"), vec![ip, port, known.weight.to_string()])
            });
            let found = servers.into_iter().map(|(id, words)| (id, words[..3].to_vec()));
            assert_eq!(found.collect::<BTreeMap<_, _>>(), expected.collect(), "{wanted}");
        }
    }
}

#[test]
fn haproxy_takes_every_keyword_that_it_is_believed_to_take() {
    let haproxy = Haproxy::start("backend b\n  timeout connect 1s\n  timeout server 1s\n");
    for (index, (keyword, arguments)) in keywords::taken_by(version()).enumerate() {
        let value = match keyword {
            "addr" | "source" => "127.0.0.1",
            "alpn" | "check-alpn" | "npn" => "h2",
            "ca-file" | "crl-file" | "crt" => "/nonexistent.pem",
            "check-proto" | "proto" => "h2",
            "check-sni" | "ciphers" | "ciphersuites" | "cookie" | "guid" | "verifyhost" => "word",
            "hash-key" => "addr",
            "init-state" => "up",
            "observe" => "layer4",
            "on-error" => "mark-down",
            "on-marked-down" => "shutdown-sessions",
            "on-marked-up" => "shutdown-backup-sessions",
            "proxy-v2-options" => "crc32c",
            "sni" => "str(a)",
            "ssl-max-ver" | "ssl-min-ver" => "TLSv1.2",
            "verify" => "none",
            "ws" => "h1",
            "id" => "1000",
            _ => "5",
        };
        let more = match keyword {
            "ssl" | "check-ssl" | "ca-file" | "crl-file" | "crt" => " ssl verify none",
            "observe" => " check",
            _ => "",
        };
        let words = if arguments == 0 { keyword.to_owned() } else { format!("{keyword} {value}") };
        let reply = haproxy.ask(&format!("add server b/s{index} 127.0.0.1:80 {words}{more}"));
        // A file must have been read at the start; that it is asked for says that the keyword is taken.
        let asks_for_file = value == "/nonexistent.pem" && reply.contains(value);
        assert!(reply.ends_with("New server registered.") || asks_for_file, "{words}: {reply}");
    }
}

#[test]
fn haproxy_refuses_what_is_left_to_a_reload() {
    let haproxy = Haproxy::start(
        "backend b\n  timeout connect 1s\n  timeout server 1s\n  use-server named if { srv_is_up(b/fetched) }\n\
         \x20 server named 127.0.0.1:80\n  server fetched 127.0.0.1:80\n  server tracked 127.0.0.1:80 check\n\
         backend tracking\n  timeout connect 1s\n  timeout server 1s\n  server t 127.0.0.1:80 track b/tracked\n\
         backend static\n  balance static-rr\n  timeout connect 1s\n  timeout server 1s\n\
         backend map\n  balance source\n  timeout connect 1s\n  timeout server 1s\n  server s 127.0.0.1:80\n",
    );
    let before = haproxy.servers();
    let refused = [
        "init-addr none",
        "no-check",
        "non-stick",
        "redir /",
        "log-proto legacy",
        "max-reuse 1",
        "nonsense",
        "\"weight\" 5",
    ];
    for words in refused {
        let reply = haproxy.ask(&format!("add server b/new 127.0.0.1:80 {words}"));
        assert!(!reply.contains("registered"), "{words}: {reply}");
    }
    for backend in ["static", "map", "missing"] {
        let reply = haproxy.ask(&format!("add server {backend}/new 127.0.0.1:80"));
        assert!(!reply.contains("registered"), "{backend}: {reply}");
    }
    assert!(haproxy.ask("set server map/s weight 7").contains("static LB algorithm"));
    for server in ["named", "fetched", "tracked"] {
        haproxy.ask(&format!("set server b/{server} state maint"));
        let reply = haproxy.ask(&format!("del server b/{server}"));
        assert!(reply.contains("cannot be removed at runtime"), "{server}: {reply}");
    }
    assert_eq!(haproxy.servers().keys().collect::<Vec<_>>(), before.keys().collect::<Vec<_>>());
}

#[test]
fn a_checked_server_is_checked_where_its_address_moves() {
    let target = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = target.local_addr().unwrap().port();
    let haproxy = Haproxy::start(
        "backend b\n  timeout connect 1s\n  timeout server 1s\n  server s 127.0.0.2:1 check inter 50ms fall 1 rise 1\n",
    );
    let wait_for = |state: &str| {
        let deadline = Instant::now() + DEADLINE;
        while !haproxy.ask("show servers state b").lines().any(|line| line.split(' ').nth(5) == Some(state)) {
            assert!(Instant::now() < deadline, "it is not in state {state}");
            std::thread::sleep(PAUSE);
        }
    };
    let id = ServerId { backend: "b".to_owned(), server: "s".to_owned() };
    wait_for("0");
    haproxy.carry_out(&Change::Address { id, address: "127.0.0.1".to_owned(), port });
    wait_for("2");
}

#[test]
fn a_server_added_with_a_dynamic_cookie_gets_one() {
    let target = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = target.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for connection in target.incoming() {
            let mut connection = connection.unwrap();
            let mut request = [0; 1024];
            let _ = connection.read(&mut request);
            let _ = connection.write_all(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n");
        }
    });
    let running = "defaults\n  mode http\n  timeout client 1s\n  timeout connect 1s\n  timeout server 1s\n\
                   backend b\n  cookie _s insert indirect nocache dynamic\n  dynamic-cookie-key key\n";
    let wanted = format!("{running}  server s 127.0.0.1:{port}\n");
    let frontend = tempfile::tempdir().unwrap();
    let socket = frontend.path().join("http");
    let behind = format!("frontend f\n  bind unix@{}\n  default_backend b\n", socket.display());
    let haproxy = Haproxy::start(&format!("{running}{behind}"));
    let Plan::Runtime(changes) = plan(&format!("{running}{behind}"), &format!("{wanted}{behind}"), Some(version()))
    else {
        panic!("one server is added");
    };
    changes.iter().for_each(|change| haproxy.carry_out(change));
    let mut client = UnixStream::connect(&socket).unwrap();
    client.set_read_timeout(Some(DEADLINE)).unwrap();
    client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    let cookie =
        answer.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("set-cookie: _s=").map(str::to_owned));
    let value = cookie.unwrap_or_else(|| panic!("no cookie: {answer}"));
    assert!(value.starts_with(|c: char| c.is_ascii_hexdigit()), "an empty cookie: {answer}");
}
