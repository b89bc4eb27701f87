//! The harness itself: a test that leans on it must be able to believe it.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use e2e::backend::Backend;
use e2e::between::{Between, Sickness};
use e2e::docker::{Docker, docker_ok};
use e2e::etcd::{Etcd, get_node};
use e2e::fake_etcd::{FakeEtcd, Illness};
use e2e::haproxy::{Haproxy, Version, cli, servers, servers_of, worker};
use e2e::http::{self, Connection, Tunnel};
use e2e::load::{Load, requests};
use e2e::ports::{free_address, free_port};
use e2e::process::{Process, command_line, find_program, is_alive};
use e2e::{secs, wait_until, within};
use nix::unistd::Pid;

#[tokio::test]
async fn etcd_keeps_its_keys_over_a_restart_and_loses_them_when_wiped() {
    within(60, async {
        let mut etcd = Etcd::start().await;
        etcd.put("/service/127.0.0.1:8000", "running").await;
        etcd.stop().await;
        etcd.start_again().await;
        assert_eq!(etcd.get("/service/127.0.0.1:8000").await.unwrap()["value"], "running");
        let before = cluster_id(&etcd).await;
        etcd.wipe().await;
        assert!(etcd.get("/service/127.0.0.1:8000").await.is_none());
        assert_eq!(cluster_id(&etcd).await, before);
        etcd.wipe_as_another_cluster().await;
        assert_ne!(cluster_id(&etcd).await, before);
    })
    .await;
}

async fn cluster_id(etcd: &Etcd) -> String {
    let reply = http::get(etcd.address(), "/v2/keys/").await.unwrap();
    reply.header("x-etcd-cluster-id").unwrap().to_owned()
}

#[tokio::test]
async fn etcd_takes_hostile_names_as_they_are() {
    within(90, async {
        let etcd = Etcd::start().await;
        etcd.put_encoded("/service/x%0Ahttp-request%20deny%20%23", "running").await;
        let nodes = etcd.get("/service").await.unwrap();
        assert_eq!(nodes["nodes"][0]["key"], "/service/x\nhttp-request deny #");
        etcd.delete("/service?recursive=true").await;
        assert!(etcd.get("/service").await.is_none());
    })
    .await;
}

#[tokio::test]
async fn a_backend_answers_its_name_on_fresh_and_kept_connections() {
    within(60, async {
        let backend = Backend::start("one").await;
        let seen = requests(backend.address(), 3).await;
        assert_eq!(seen["one"], 3);
        let mut connection = Connection::open(backend.address()).await.unwrap();
        for _ in 0..3 {
            assert_eq!(connection.exchange("GET", "/", &[], "").await.unwrap().body, backend.name());
        }
        assert_eq!(backend.requests(), 6);
    })
    .await;
}

#[tokio::test]
async fn the_load_counts_what_is_served_and_what_fails() {
    within(60, async {
        let backend = Backend::start("one").await;
        let address = backend.address();
        let load = Load::start(address);
        load.wait_served(50).await;
        load.stop_after(50).await.assert_no_failure(50);

        let load = Load::start(address);
        load.wait_served(10).await;
        drop(backend);
        wait_until(secs(20), "eight requests failed", async || {
            if load.failed() >= 8 { Ok(()) } else { Err(load.failed().to_string()) }
        })
        .await;
        let report = load.stop().await;
        assert!(report.failures.len() >= 8, "{report:?}");
    })
    .await;
}

#[tokio::test]
async fn each_illness_of_the_fake_etcd_shows() {
    within(90, async {
        for illness in Illness::ALL {
            let fake = FakeEtcd::start(illness).await;
            let address: SocketAddr = fake.url().trim_start_matches("http://").parse().unwrap();
            let limit = if illness == Illness::Hangs { secs(1) } else { secs(10) };
            let reply = tokio::time::timeout(limit, http::get(address, "/v2/keys/service")).await;
            match (illness, reply) {
                (Illness::Says500, Ok(Ok(reply))) => assert_eq!((reply.status, reply.body.len()), (500, 26)),
                (Illness::WrongType, Ok(Ok(reply))) => {
                    let json: serde_json::Value = serde_json::from_str(&reply.body).unwrap();
                    assert_eq!((reply.status, &json["action"]), (200, &serde_json::json!(17)));
                }
                (Illness::Hangs, Err(_)) | (Illness::HalfJson | Illness::Closes, Ok(Err(_))) => {}
                (_, other) => panic!("{illness:?}: {other:?}"),
            }
            assert_eq!(fake.requests(), 1, "{illness:?}");
        }
    })
    .await;
}

#[tokio::test]
async fn haproxy_tells_its_reloads() {
    within(90, async {
        let haproxy = Haproxy::start().await;
        haproxy.wait_reloads(0).await;
        let pid: i32 = std::fs::read_to_string(haproxy.pid_file()).unwrap().trim().parse().unwrap();
        assert!(command_line(Pid::from_raw(pid)).contains("haproxy -W"));
        cli(&haproxy.master_socket(), "reload").await.unwrap();
        haproxy.wait_reloads(1).await;
    })
    .await;
}

#[tokio::test]
async fn haproxy_3_0_runs_with_its_own_libraries_and_reloads() {
    within(90, async {
        let haproxy = Haproxy::start_version(Version::V3_0).await;
        let processes = cli(&haproxy.master_socket(), "show proc").await.unwrap();
        assert!(processes.contains(" 3.0."), "{processes}");
        // From 3.0 on the reply says how it ended.
        let reply = cli(&haproxy.master_socket(), "reload").await.unwrap();
        assert!(reply.starts_with("Success=1"), "{reply}");
        haproxy.wait_reloads(1).await;
    })
    .await;
}

#[tokio::test]
async fn what_haproxy_has_is_read_as_the_file_says_it() {
    within(90, async {
        let dir = tempfile::tempdir().unwrap();
        let (file, socket) = (dir.path().join("haproxy.cfg"), dir.path().join("runtime.sock"));
        let config = format!(
            "global\n  stats socket {} level admin\ndefaults\n  mode http\n  timeout connect 1s\n  timeout client 1s\n  \
             timeout server 1s\nlisten one\n  bind {}\n  server a 127.0.0.1:81 check weight 7\nserver b [::1]:82\n\
             backend two\n  server a 127.0.0.1:83 disabled weight 0\n",
            socket.display(),
            free_address()
        );
        std::fs::write(&file, &config).unwrap();
        let args = ["-W".to_owned(), "-f".to_owned(), file.display().to_string()];
        let program = Version::Installed.program();
        let _haproxy = Process::start("haproxy", &program, &args, &dir.path().join("log"), dir.path());
        let has = wait_until(secs(10), "HAProxy tells its servers", async || servers(&socket).await).await;
        let seen: BTreeMap<_, _> =
            has.iter().map(|(id, server)| (id.clone(), (server.address, server.weight))).collect();
        assert_eq!(seen, servers_of(&config));
        assert_eq!(seen.keys().collect::<Vec<_>>(), ["one/a", "one/b", "two/a"]);
        let ready: Vec<bool> = has.values().map(|server| server.ready).collect();
        assert_eq!(ready, [true, true, false]);
        let pid = worker(&socket).await.unwrap();
        assert!(command_line(Pid::from_raw(i32::try_from(pid).unwrap())).contains("haproxy"));
    })
    .await;
}

#[tokio::test]
async fn a_backend_holds_requests_until_they_are_released_and_echoes_in_a_tunnel() {
    within(60, async {
        let backend = Backend::start("one").await;
        let address = backend.address();
        let held = tokio::spawn(async move { http::get(address, "/hold").await.unwrap().body });
        let mut tunnel = Tunnel::open(address).await.unwrap();
        tunnel.echo().await.unwrap();
        wait_until(secs(20), "both are open", async || match backend.open() {
            2 => Ok(()),
            other => Err(other.to_string()),
        })
        .await;
        assert!(!held.is_finished());
        backend.release();
        assert_eq!(held.await.unwrap(), "one");
        drop(backend);
        tunnel.ended().await;
        assert!(tunnel.echo().await.is_err());
    })
    .await;
}

#[tokio::test]
async fn each_sickness_of_the_socket_between_shows() {
    within(90, async {
        let haproxy = Haproxy::start().await;
        // The master's socket answers commands as the statistics' does.
        let mut between = Between::start(&haproxy.master_socket());
        let path = between.path().to_path_buf();
        let ask =
            async |limit| tokio::time::timeout(limit, cli(&path, "show proc")).await.map_err(|_| "silence".to_owned());
        let well = async || ask(secs(10)).await.is_ok_and(|reply| reply.is_ok_and(|table| table.contains("# workers")));
        assert!(well().await);
        for (sickness, words) in [
            (Sickness::Absent, "No such file"),
            (Sickness::Refuses, "refused"),
            (Sickness::ClosesHalfWay, "#<PI"),
            (Sickness::Rubbish, "17"),
            (Sickness::Silent, "silence"),
        ] {
            between.falls_ill(sickness);
            let limit = if sickness == Sickness::Silent { secs(1) } else { secs(10) };
            let seen = match ask(limit).await {
                Ok(Ok(reply)) | Ok(Err(reply)) | Err(reply) => reply,
            };
            assert!(seen.contains(words) && !seen.contains("# workers"), "{sickness:?}: {seen:?}");
            between.recovers();
            assert!(well().await, "{sickness:?} is over");
        }
        assert!(between.asked() >= 9, "{}", between.asked());
    })
    .await;
}

#[tokio::test]
async fn dropping_a_process_ends_what_it_started() {
    within(60, async {
        let dir = tempfile::tempdir().unwrap();
        let args = ["-c", "setsid sleep 77 & sleep 78"].map(str::to_owned);
        let shell = Process::start("shell", &find_program("sh", "dash"), &args, &dir.path().join("log"), dir.path());
        let family = wait_until(secs(20), "both sleeps run", async || {
            let family = shell.descendants();
            if family.iter().filter(|pid| command_line(**pid).starts_with("sleep")).count() == 2 {
                Ok(family)
            } else {
                Err(format!("{:?}", family.iter().map(|pid| command_line(*pid)).collect::<Vec<_>>()))
            }
        })
        .await;
        drop(shell);
        wait_until(secs(20), "none is left", async || {
            let left: Vec<_> = family.iter().filter(|pid| is_alive(**pid)).collect();
            if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
        })
        .await;
    })
    .await;
}

#[test]
fn a_free_port_is_given_once() {
    let mut ports: Vec<u16> = (0..50).map(|_| free_port()).collect();
    ports.sort_unstable();
    ports.dedup();
    assert_eq!(ports.len(), 50);
}

#[tokio::test]
#[should_panic(expected = "last seen: only 3 of 4")]
async fn a_wait_that_fails_says_what_it_saw() {
    wait_until::<()>(std::time::Duration::from_millis(50), "four are there", async || Err("only 3 of 4".to_owned()))
        .await;
}

#[tokio::test]
async fn what_a_test_made_in_docker_is_removed_with_it() {
    within(180, async {
        let docker = Docker::start().await;
        let name = docker.name().to_owned();
        let etcd = docker.etcd().await;
        assert!(get_node(etcd, "/service").await.is_none());
        drop(docker);
        assert_eq!(docker_ok(&["ps", "--all", "--quiet", "--filter", &format!("label=e2e={name}")]).await, "");
        assert_eq!(docker_ok(&["network", "ls", "--quiet", "--filter", &format!("name={name}")]).await, "");
    })
    .await;
}
