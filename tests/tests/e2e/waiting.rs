//! What goes on while a reload fails or has to wait: servers come, drain and go, and the file follows.

use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;

use e2e::backend::Backend;
use e2e::discoverer::{Discoverer, SOON};
use e2e::etcd::Etcd;
use e2e::haproxy::{Haproxy, Version, cli};
use e2e::load::Load;
use e2e::ports::free_address;
use e2e::{secs, wait_until, within};

use crate::runtime::{FLAT, Site, WEIGHT, flat};

const SHOP: &str = r#"{"attributes":{"host":"shop.test"}}"#;

/// A site whose HAProxy is reloaded by a command that fails while there is no file at `gate`.
struct Gated {
    site: Site,
    haproxy: Haproxy,
    gate: PathBuf,
}

impl Gated {
    async fn start() -> Gated {
        let etcd = Etcd::start().await;
        let haproxy = Haproxy::start().await;
        let gate = haproxy.config().with_file_name("gate");
        e2e::process::touch(&gate);
        // It talks more than is kept of it.
        let command = format!(
            "test -e {} || {{ seq 9999 >&2; exit 3; }}; seq 9999 >&2; kill -USR2 $(cat {}); sleep 0.5",
            gate.display(),
            haproxy.pid_file().display()
        );
        let discoverer = Discoverer::reload_command(&etcd.url(), &haproxy, &command).runtime(&haproxy).start();
        let site = Site::with(etcd, discoverer).await;
        Gated { site, haproxy, gate }
    }

    /// A service is new, and HAProxy cannot be told.
    async fn shut(&self) -> Backend {
        std::fs::remove_file(&self.gate).unwrap();
        let shop = Backend::start("shop").await;
        self.site.etcd.put(&shop.key_in("shop"), SHOP).await;
        self.site.discoverer.wait_logged("reload failed", &[]).await;
        shop
    }

    async fn open(&self, shop: &Backend, others: &[(&str, std::net::SocketAddr, u16)]) {
        e2e::process::touch(&self.gate);
        // It is tried again after a pause, which has grown to a minute at most.
        wait_until(secs(90), "shop is served", async || {
            match self.site.discoverer.answer("shop.test").await.as_str() {
                "shop" => Ok(()),
                other => Err(other.to_owned()),
            }
        })
        .await;
        self.site.discoverer.wait_in_step(&[others, &[("shop", shop.address(), WEIGHT)]].concat()).await;
    }
}

#[tokio::test]
async fn while_a_reload_fails_instances_come_drain_and_go_and_the_file_has_them() {
    within(240, async {
        let gated = Gated::start().await;
        let site = &gated.site;
        let (discoverer, one) = (&site.discoverer, &site.one);
        let load = Load::start(discoverer.http());
        let two = site.second().await;
        let shop = gated.shut().await;
        let three = Backend::start("three").await;
        site.etcd.put(&three.flat_key(), "running").await;
        discoverer.wait_in_step(&[flat(one), flat(&two), flat(&three)]).await;
        site.etcd.put(&two.flat_key(), r#"{"status":"draining"}"#).await;
        discoverer.wait_in_step(&[flat(one), (FLAT, two.address(), 0), flat(&three)]).await;
        site.etcd.delete(&two.flat_key()).await;
        site.etcd.put(&three.flat_key(), r#"{"weight":50}"#).await;
        let left = [flat(one), (FLAT, three.address(), 50)];
        discoverer.wait_in_step(&left).await;
        load.wait_served(20).await;
        // Whoever reads the file now finds what HAProxy does.
        let mut haproxy = gated.haproxy;
        haproxy.kill();
        load.stop().await;
        // What comes while nobody answers.
        let four = Backend::start("four").await;
        site.etcd.put(&four.flat_key(), "running").await;
        haproxy.start_again();
        let left = [left.as_slice(), &[flat(&four)]].concat();
        discoverer.wait_in_step(&left).await;
        site.etcd.put(&four.flat_key(), r#"{"status":"draining"}"#).await;
        let left = [&left[..2], &[(FLAT, four.address(), 0)]].concat();
        discoverer.wait_in_step(&left).await;
        let gated = Gated { haproxy, ..gated };
        gated.open(&shop, &left).await;
    })
    .await;
}

#[tokio::test]
async fn an_instance_that_is_back_during_its_removal_is_served_while_a_reload_fails() {
    within(240, async {
        let gated = Gated::start().await;
        let site = &gated.site;
        let two = site.second().await;
        let shop = gated.shut().await;
        let _tunnel = site.tunnel_to(&two).await;
        site.etcd.delete(&two.flat_key()).await;
        site.wait_not_ready(&two).await;
        site.etcd.put(&two.flat_key(), "running").await;
        let both = [flat(&site.one), flat(&two)];
        site.discoverer.wait_in_step(&both).await;
        gated.open(&shop, &both).await;
    })
    .await;
}

#[tokio::test]
async fn a_leaving_server_that_somebody_makes_ready_is_put_in_maintenance_again() {
    within(60, async {
        let etcd = Etcd::start().await;
        let discoverer = Discoverer::supervise(&etcd.url()).args(&["--drain-timeout", "60s"]).start();
        let site = Site::with(etcd, discoverer).await;
        let two = site.second().await;
        let mut tunnel = site.tunnel_to(&two).await;
        site.etcd.delete(&two.flat_key()).await;
        site.wait_not_ready(&two).await;
        let name = format!("{FLAT}/127.0.0.1_{}", two.address().port());
        let socket = site.discoverer.runtime_socket();
        assert_eq!(cli(&socket, &format!("set server {name} state ready")).await.unwrap().trim(), "");
        site.wait_not_ready(&two).await;
        tunnel.echo().await.unwrap();
        drop(tunnel);
        site.discoverer.wait_gone(two.address()).await;
        site.assert_no_reload().await;
    })
    .await;
}

#[tokio::test]
async fn many_reloads_cut_no_tunnel_of_one_old_worker_before_the_drain_timeout() {
    within(180, async {
        let args = ["--drain-timeout", "20s", "--min-interval", "100ms", "--set", "mworker_max_reloads=2"];
        let etcd = Etcd::start().await;
        let discoverer = Discoverer::supervise(&etcd.url()).args(&args).start();
        let site = Site::with(etcd, discoverer).await;
        let mut tunnel = site.tunnel_to(&site.one).await;
        let opened = std::time::Instant::now();
        let mut wanted = vec![flat(&site.one)];
        // One worker keeps the tunnel; all later ones have nothing to finish.
        for (at, service) in ["s0", "s1", "s2", "s3", "s4", "s5"].into_iter().enumerate() {
            let address = free_address();
            site.etcd.put(&format!("/service/{service}/{address}"), "running").await;
            wanted.push((service, address, WEIGHT));
            // So many reloads the worker survives; the next one has to wait.
            let expected = (at as u64 + 1).min(2);
            wait_until(SOON, "reloads beside the tunnel", async || {
                let reloads = site.discoverer.reloads().await - site.reloads;
                if reloads >= expected { Ok(()) } else { Err(format!("{reloads} reloads")) }
            })
            .await;
        }
        while opened.elapsed() < secs(10) {
            tunnel.echo().await.unwrap();
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        // The last reload comes when the tunnel's time is over.
        site.discoverer.wait_servers(secs(60), &wanted).await;
        site.discoverer.wait_in_step(&wanted).await;
        let reloads = site.discoverer.reloads().await - site.reloads;
        assert!(reloads >= 3, "{reloads} reloads: the limit was never reached");
    })
    .await;
}

#[tokio::test]
async fn a_haproxy_that_is_killed_while_it_reloads_is_known_again_as_soon_as_it_is_back() {
    within(60, async {
        let etcd = Etcd::start().await;
        let mut haproxy = Haproxy::start().await;
        let discoverer = Discoverer::reload_socket(&etcd.url(), &haproxy).runtime(&haproxy).start();
        let site = Site::with(etcd, discoverer).await;
        // Whoever reads it waits for what is never written.
        let own = haproxy.own_config();
        std::fs::remove_file(&own).unwrap();
        nix::unistd::mkfifo(&own, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let shop = Backend::start("shop").await;
        site.etcd.put(&shop.key_in("shop"), SHOP).await;
        let mut writer = std::fs::OpenOptions::new();
        writer.write(true).custom_flags(nix::libc::O_NONBLOCK);
        let held =
            wait_until(SOON, "haproxy reads its files", async || writer.open(&own).map_err(|error| error.to_string()))
                .await;
        haproxy.kill();
        drop(held);
        std::fs::remove_file(&own).unwrap();
        e2e::process::touch(&own);
        haproxy.start_again();
        // Less than the limit on a reload, which it is not to wait for.
        wait_until(secs(10), "shop is served", async || match site.discoverer.answer("shop.test").await.as_str() {
            "shop" => Ok(()),
            other => Err(other.to_owned()),
        })
        .await;
        site.second_beside(&[("shop", shop.address(), WEIGHT)]).await;
        assert_eq!(site.discoverer.logged("reload failed").len(), 0);
    })
    .await;
}

#[tokio::test]
async fn a_haproxy_that_comes_back_as_another_version_has_its_files_checked_no_more_until_it_is_back() {
    within(90, async {
        let etcd = Etcd::start().await;
        let mut haproxy = Haproxy::start().await;
        let discoverer = Discoverer::reload_socket(&etcd.url(), &haproxy).runtime(&haproxy).start();
        let site = Site::with(etcd, discoverer).await;
        for (version, said) in [(Version::V3_0, "files are not checked"), (Version::Installed, "files are checked")] {
            haproxy.kill();
            haproxy.start_again_as(version);
            site.discoverer.wait_logged(said, &[]).await;
            let more = Backend::start("more").await;
            site.etcd.put(&more.flat_key(), "running").await;
            site.discoverer.wait_in_step(&[flat(&site.one), flat(&more)]).await;
            site.etcd.delete(&more.flat_key()).await;
            site.discoverer.wait_in_step(&[flat(&site.one)]).await;
        }
        assert_eq!(site.discoverer.logged("reload failed").len(), 0);
    })
    .await;
}
