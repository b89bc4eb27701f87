//! Reloading somebody else's HAProxy: over the master socket, with a signal, with a command; and knowing when it failed.

use std::net::{Ipv4Addr, SocketAddr};

use e2e::backend::Backend;
use e2e::discoverer::{Discoverer, SOON, TemplateFile};
use e2e::etcd::Etcd;
use e2e::haproxy::Haproxy;
use e2e::http;
use e2e::load::Load;
use e2e::{wait_until, within};
use tokio::net::TcpListener;

use crate::templates::TEMPLATE;

#[tokio::test]
async fn the_master_socket_reloads_and_no_request_fails() {
    within(60, async {
        let etcd = Etcd::start().await;
        let haproxy = Haproxy::start().await;
        follows_without_a_failed_request(&etcd, Discoverer::reload_socket(&etcd.url(), &haproxy).start()).await;
        haproxy.wait_reloads(3).await;
    })
    .await;
}

#[tokio::test]
async fn the_pid_file_reloads_and_no_request_fails() {
    within(60, async {
        let etcd = Etcd::start().await;
        let haproxy = Haproxy::start().await;
        follows_without_a_failed_request(&etcd, Discoverer::reload_pidfile(&etcd.url(), &haproxy).start()).await;
    })
    .await;
}

#[tokio::test]
async fn a_command_reloads_and_no_request_fails() {
    within(60, async {
        let etcd = Etcd::start().await;
        let haproxy = Haproxy::start().await;
        let command = format!("kill -USR2 $(cat {})", haproxy.pid_file().display());
        follows_without_a_failed_request(&etcd, Discoverer::reload_command(&etcd.url(), &haproxy, &command).start())
            .await;
    })
    .await;
}

async fn follows_without_a_failed_request(etcd: &Etcd, mut discoverer: Discoverer) {
    let (one, two) = (Backend::start("one").await, Backend::start("two").await);
    etcd.put(&one.flat_key(), "running").await;
    discoverer.wait_serves(&["one"]).await;
    let load = Load::start(discoverer.http());
    etcd.put(&two.flat_key(), "running").await;
    discoverer.wait_serves(&["one", "two"]).await;
    load.wait_served(20).await;
    etcd.delete(&one.flat_key()).await;
    discoverer.wait_serves(&["two"]).await;
    load.wait_served(20).await;
    load.stop_after(40).await.assert_no_failure(40);
}

/// A port that another program has: `haproxy -c` does not notice, the new worker cannot start.
async fn port_in_use() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

fn with_second_bind(address: SocketAddr) -> String {
    TEMPLATE.replace("frontend _in\n", &format!("frontend _in\n  bind {address}\n"))
}

#[tokio::test]
async fn a_reload_that_fails_over_the_master_socket_is_known_and_made_good_when_its_cause_is_gone() {
    within(90, async {
        let etcd = Etcd::start().await;
        let haproxy = Haproxy::start().await;
        let template = TemplateFile::new(TEMPLATE);
        let mut discoverer = Discoverer::reload_socket(&etcd.url(), &haproxy).template(template.path()).start();
        let (one, two) = (Backend::start("one").await, Backend::start("two").await);
        etcd.put(&one.key_in("web"), "running").await;
        discoverer.wait_host("web.test", "one").await;

        let (holder, taken) = port_in_use().await;
        template.overwrite(&with_second_bind(taken));
        discoverer.wait_logged("template not loaded", &[("error", &taken.to_string())]).await;
        discoverer.wait_host("web.test", "one").await;
        // A fault that only HAProxy's own start finds.
        template.overwrite(&TEMPLATE.replacen("bind ", "bind /nonexistent/haproxy.sock\n    bind ", 1));
        discoverer.wait_logged("template not loaded", &[("error", "HAProxy could not start with the new file")]).await;
        discoverer.wait_host("web.test", "one").await;

        drop(holder);
        template.overwrite(TEMPLATE);
        etcd.put(&two.key_in("blog"), "running").await;
        discoverer.wait_host("blog.test", "two").await;
        assert_eq!(discoverer.answer("web.test").await, "one");
        assert!(discoverer.process().ended().is_none());
    })
    .await;
}

#[tokio::test]
async fn a_reload_that_fails_under_supervision_is_known_with_haproxys_words() {
    within(90, async {
        let etcd = Etcd::start().await;
        let template = TemplateFile::new(TEMPLATE);
        let mut discoverer = Discoverer::supervise(&etcd.url()).template(template.path()).start();
        let (one, two) = (Backend::start("one").await, Backend::start("two").await);
        etcd.put(&one.key_in("web"), "running").await;
        discoverer.wait_host("web.test", "one").await;
        let (holder, taken) = port_in_use().await;
        template.overwrite(&with_second_bind(taken));
        discoverer.wait_logged("template not loaded", &[("error", &taken.to_string())]).await;
        discoverer.wait_host("web.test", "one").await;
        // A fault that only HAProxy's own start finds, and says on its standard error.
        template.overwrite(&TEMPLATE.replacen("bind ", "bind /nonexistent/haproxy.sock\n    bind ", 1));
        discoverer.wait_logged("template not loaded", &[("error", "/nonexistent/haproxy.sock")]).await;
        discoverer.wait_host("web.test", "one").await;
        drop(holder);
        template.overwrite(TEMPLATE);
        etcd.put(&two.key_in("blog"), "running").await;
        discoverer.wait_host("blog.test", "two").await;
        assert!(discoverer.process().ended().is_none());
    })
    .await;
}

#[tokio::test]
async fn a_reload_command_that_fails_is_reported_with_what_it_said_and_tried_again() {
    within(90, async {
        let etcd = Etcd::start().await;
        let haproxy = Haproxy::start().await;
        let gate = haproxy.config().with_file_name("gate");
        let command = format!(
            "test -e {} || {{ echo the gate is shut >&2; exit 3; }}; kill -USR2 $(cat {})",
            gate.display(),
            haproxy.pid_file().display()
        );
        let mut discoverer = Discoverer::reload_command(&etcd.url(), &haproxy, &command).start();
        let one = Backend::start("one").await;
        etcd.put(&one.flat_key(), "running").await;
        let words = [("error", "the gate is shut"), ("error", "3")];
        discoverer.wait_logged("reload failed", &words).await;
        e2e::process::touch(&gate);
        discoverer.wait_serves(&["one"]).await;
    })
    .await;
}

#[tokio::test]
async fn a_pid_file_that_names_nobody_is_reported() {
    within(60, async {
        let etcd = Etcd::start().await;
        let haproxy = Haproxy::start().await;
        let pid_file = haproxy.pid_file();
        let pid = std::fs::read_to_string(&pid_file).unwrap();
        std::fs::write(&pid_file, "not a number\n").unwrap();
        let mut discoverer = Discoverer::reload_pidfile(&etcd.url(), &haproxy).start();
        let one = Backend::start("one").await;
        etcd.put(&one.flat_key(), "running").await;
        discoverer.wait_logged("reload failed", &[("error", &pid_file.display().to_string())]).await;
        std::fs::write(&pid_file, pid).unwrap();
        discoverer.wait_serves(&["one"]).await;
    })
    .await;
}

#[tokio::test]
async fn an_haproxy_that_is_away_is_reported_and_finds_its_file_right_when_it_is_back() {
    within(90, async {
        let etcd = Etcd::start().await;
        let mut haproxy = Haproxy::start().await;
        let mut discoverer = Discoverer::reload_socket(&etcd.url(), &haproxy).start();
        let (one, two, three) =
            (Backend::start("one").await, Backend::start("two").await, Backend::start("three").await);
        etcd.put(&one.flat_key(), "running").await;
        discoverer.wait_serves(&["one"]).await;
        discoverer.wait_logged("configuration applied", &[("instances", "1")]).await;
        haproxy.kill();
        etcd.put(&two.flat_key(), "running").await;
        let socket = haproxy.master_socket().display().to_string();
        discoverer.wait_logged("reload failed", &[("error", &socket)]).await;
        haproxy.start_again();
        discoverer.wait_serves(&["one", "two"]).await;
        etcd.put(&three.flat_key(), "running").await;
        discoverer.wait_serves(&["one", "three", "two"]).await;
    })
    .await;
}

#[tokio::test]
async fn a_stop_of_the_discoverer_leaves_somebody_elses_haproxy_alone() {
    within(60, async {
        let etcd = Etcd::start().await;
        let haproxy = Haproxy::start().await;
        let mut discoverer = Discoverer::reload_socket(&etcd.url(), &haproxy).start();
        let one = Backend::start("one").await;
        etcd.put(&one.flat_key(), "running").await;
        discoverer.wait_serves(&["one"]).await;
        discoverer.process().signal(nix::sys::signal::Signal::SIGTERM);
        let status = discoverer.process().wait(SOON).await;
        assert_eq!(status.code(), Some(0), "{status}");
        wait_until(SOON, "HAProxy serves on", async || match http::get(haproxy.http(), "/").await {
            Ok(reply) if reply.body == "one" => Ok(()),
            other => Err(format!("{other:?}")),
        })
        .await;
    })
    .await;
}
