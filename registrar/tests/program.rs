//! The program itself: flags and environment, exit codes, signals, and what it says when something is wrong.

#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use support::etcd::{Etcd, free_port};
use support::program::{Program, registrar, text};
use support::{Answer, Application, Docker, eventually, paths, published, store};

#[test]
fn a_wrong_flag_or_variable_ends_it_with_2_and_says_which() {
    let etcd = ["--etcd", "http://h1:2379", "--port", "8000"];
    let cases: [(&[&str], &str, &str, &str); 10] = [
        (&["--etcd", "h1:2379", "--port", "8000"], "", "", "write http://h1:2379"),
        (&["--port", "8000"], "", "", "--etcd"),
        (&["--port", "8000"], "REGISTRAR_ETCD", "", "--etcd"),
        (&etcd, "REGISTRAR_INTERVAL", "5", "--interval"),
        (&etcd, "REGISTRAR_CHECK", "udp", "possible values: http, tcp"),
        (&["--etcd", "http://h1:2379"], "REGISTRAR_PORT", "http", "--port"),
        (&etcd, "REGISTRAR_ADMIN", "9402", "unix:/run/admin.sock"),
        (&etcd, "REGISTRAR_ADMIN", "0.0.0.0:9402", "--admin-without-token"),
        (
            &["agent", "--etcd", "http://h1:2379", "--admin-token-file", "/no/such", "--admin-without-token"],
            "",
            "",
            "cannot be used with",
        ),
        (&["agent", "--etcd", "http://h1:2379", "--admin-token-file", "/no/such"], "", "", "/no/such"),
    ];
    for (args, name, value, expected) in cases {
        let mut command = registrar();
        if !name.is_empty() {
            command.env(name, value);
        }
        let output = command.args(args).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{args:?} {name}: {}", text(&output));
        assert!(text(&output).contains(expected), "{args:?} {name}: {}", text(&output));
    }
}

#[test]
fn the_help_explains_every_flag_and_shows_no_values_of_the_environment() {
    let output = registrar().arg("--help").env("REGISTRAR_ETCD", "http://root:secret@h1:2379").output().unwrap();
    let help = text(&output);
    assert!(output.status.success());
    for flag in
        ["--etcd", "--key", "--port", "--docker", "--ip", "--container", "--check", "--check-path", "--interval"]
            .into_iter()
            .chain([
                "--timeout",
                "--rise",
                "--fall",
                "--ttl",
                "--linger",
                "--etcd-timeout",
                "--log-format",
                "--log-level",
            ])
    {
        let variable = format!("[env: REGISTRAR_{}]", flag[2..].to_uppercase().replace('-', "_"));
        assert!(help.contains(&format!("{flag} <")) && help.contains(&variable), "{flag}: {help}");
    }
    assert!(!help.contains("secret"), "{help}");
}

#[test]
fn a_token_that_is_none_is_named_and_never_shown() {
    let mut command = registrar();
    command.env("REGISTRAR_ADMIN_TOKEN", "two s3crets").args(["agent", "--etcd", "http://h1:2379"]);
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", text(&output));
    assert!(text(&output).contains("REGISTRAR_ADMIN_TOKEN") && !text(&output).contains("s3crets"), "{}", text(&output));
}

#[tokio::test]
async fn all_of_it_from_the_environment_and_an_empty_variable_counts_as_absent() {
    let (etcd, docker) = (Etcd::start(), Docker::start());
    let application = Application::start(Answer::status("200 OK")).await;
    docker.knows("app", published(application.port, "0.0.0.0", 40001));
    let mut command = registrar();
    command
        .env("REGISTRAR_ETCD", etcd.url())
        .env("REGISTRAR_PORT", application.port.to_string())
        .env("REGISTRAR_DOCKER", &docker.socket)
        .env("REGISTRAR_CONTAINER", "app")
        .env("REGISTRAR_IP", "10.1.0.101")
        .env("REGISTRAR_KEY", "")
        .env("REGISTRAR_INTERVAL", "")
        .env("REGISTRAR_LINGER", "200ms")
        .env("REGISTRAR_LOG_FORMAT", "json");
    let store = store(&etcd.url());
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let mut program = Program::start(&mut command);
        let line = program.says("registered").await;
        assert!(line.starts_with('{') && line.contains("/service/10.1.0.101:40001"), "{line}");
        assert_eq!(paths(&store).await, ["/service/10.1.0.101:40001"]);
        program.signal(signal);
        eventually("the key removed", async || paths(&store).await.is_empty()).await;
        assert_eq!(program.ended().await, Some(0));
    }
}

#[tokio::test]
async fn what_is_wrong_is_said_with_the_way_out_and_it_goes_on() {
    let docker = Docker::start();
    let port = free_port();
    docker.knows("any", published(port, "0.0.0.0", 40001));
    docker.knows("none", published(1, "10.0.0.1", 40001));
    let start = |container: &str, socket: &str| {
        let dead_etcd = format!("http://127.0.0.1:{}", free_port());
        let mut command = registrar();
        let port = port.to_string();
        command.args(["--etcd", &dead_etcd, "--port", &port, "--container", container, "--docker", socket]);
        Program::start(&mut command)
    };
    let socket = docker.socket.to_str().unwrap();
    let cases = [
        ("any", socket, "`--ip ADDRESS`"),
        ("any", socket, &format!("`-p HOSTADDRESS::{port}`")),
        ("none", socket, &format!("`-p {port}`")),
        ("unknown", socket, "--container NAME"),
        ("any", "/no/such.sock", "`-v /var/run/docker.sock:/no/such.sock`"),
    ];
    for (container, socket, expected) in cases {
        let mut program = start(container, socket);
        program.says(expected).await;
        assert!(program.child.try_wait().unwrap().is_none(), "{expected}: it ended");
    }
    let application = Application::start_on(port, Answer::status("200 OK")).await;
    docker.knows("any", published(application.port, "10.0.0.1", 40001));
    let mut program = start("any", socket);
    program.says("etcd cannot be written to").await;
    assert!(program.child.try_wait().unwrap().is_none());
}

#[tokio::test]
async fn a_docker_socket_that_may_not_be_opened_is_said_so() {
    let docker = Docker::start();
    let directory = docker.socket.parent().unwrap();
    std::fs::set_permissions(&docker.socket, PermissionsExt::from_mode(0o000)).unwrap();
    let program = directory.join("registrar");
    std::fs::copy(env!("CARGO_BIN_EXE_registrar"), &program).unwrap();
    let mut command = Command::new(&program);
    if std::os::unix::net::UnixStream::connect(&docker.socket).is_ok() {
        // Root may open everything: the program runs as nobody then.
        std::fs::set_permissions(directory, PermissionsExt::from_mode(0o755)).unwrap();
        command.uid(65534).gid(65534);
    }
    let socket = docker.socket.to_str().unwrap();
    command.args(["--etcd", "http://127.0.0.1:1", "--port", "1", "--container", "app", "--docker", socket]);
    let mut program = Program::start(&mut command);
    program.says("may not be opened by this user").await;
    assert!(program.child.try_wait().unwrap().is_none(), "it ended");
}

#[tokio::test]
async fn without_etcd_and_docker_it_stops_at_once_when_told_to() {
    let etcd = format!("http://127.0.0.1:{}", free_port());
    let mut command = registrar();
    command.args(["--etcd", &etcd, "--port", "1", "--docker", "/no/such.sock"]);
    let mut program = Program::start(&mut command);
    program.says("trying again").await;
    let start = Instant::now();
    program.signal(Signal::SIGTERM);
    assert_eq!(program.ended().await, Some(0));
    assert!(start.elapsed() < Duration::from_secs(8), "{:?}", start.elapsed());
}
