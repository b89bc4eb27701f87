//! Certificates that HAProxy reads, and that are renewed where they lie (`--watch`).

use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use e2e::backend::Backend;
use e2e::discoverer::{Discoverer, SOON};
use e2e::etcd::Etcd;
use e2e::load::Load;
use e2e::ports::free_address;
use e2e::process::{find_program, run};
use e2e::{http, secs, wait_until, within};
use rcgen::{CertificateParams, KeyPair};

/// What is asked for without TLS is sent on to it, but for this.
const CHALLENGE: &str = "/.well-known/acme-challenge/x";

/// A certificate that is valid by itself, and the same with its key behind it, as HAProxy takes them.
fn certificate() -> (String, String) {
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(["a.localhost".to_owned()]).unwrap().self_signed(&key).unwrap().pem();
    (certificate.clone(), format!("{certificate}{}", key.serialize_pem()))
}

/// Whether HAProxy shows this certificate there.
async fn shows(address: SocketAddr, certificate: &Path) -> Result<(), String> {
    let connect = format!("::{address}");
    let ca = certificate.display().to_string();
    let args =
        ["-sS", "--max-time", "5", "--noproxy", "*", "--connect-to", &connect, "--cacert", &ca, "https://a.localhost/"];
    let got = run(&find_program("curl", "curl"), &args, &[], secs(10)).await;
    if got.code == Some(0) { Ok(()) } else { Err(format!("{:?} {}", got.code, got.stderr)) }
}

/// Waits until the one instance is in HAProxy, and answers.
async fn wait_applied(discoverer: &Discoverer) {
    discoverer.wait_logged("configuration applied", &[("instances", "1")]).await;
    wait_until(SOON, "it answers", async || match http::get(discoverer.http(), CHALLENGE).await {
        Ok(reply) if reply.status == 200 => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
}

#[tokio::test]
async fn a_renewed_certificate_is_served_by_itself_and_a_half_written_one_harms_nobody() {
    within(180, async {
        let (etcd, secure) = (Etcd::start().await, free_address());
        let dir = tempfile::tempdir().unwrap();
        let (live, cas) = (dir.path().join("live"), dir.path().join("cas"));
        fs::create_dir(&live).unwrap();
        fs::create_dir(&cas).unwrap();
        let file = live.join("web.pem");
        let made = |name: &str| {
            let (certificate, whole) = certificate();
            let ca = cas.join(name);
            fs::write(&ca, certificate).unwrap();
            (ca, whole)
        };
        let (first, whole) = made("first");
        fs::write(&file, whole).unwrap();
        let shown = live.display().to_string();
        let (one, two) = (Backend::start("one").await, Backend::start("two").await);
        etcd.put(&one.flat_key(), "running").await;
        let discoverer = Discoverer::supervise(&etcd.url())
            .args(&[
                "--set",
                &format!("certificates={shown}"),
                "--set",
                &format!("https_bind={secure}"),
                "--watch",
                &shown,
            ])
            .start();
        wait_until(SOON, "it is served over TLS", async || shows(secure, &first).await).await;
        wait_applied(&discoverer).await;
        let load = Load::of(discoverer.http(), CHALLENGE, 4);
        load.wait_served(20).await;

        let (second, whole) = made("second");
        let new = live.join(".new");
        fs::write(&new, whole).unwrap();
        fs::rename(&new, &file).unwrap();
        wait_until(SOON, "the renewed certificate is served", async || shows(secure, &second).await).await;
        discoverer.wait_logged("watched files have changed", &[("path", &shown)]).await;
        discoverer.wait_logged("configuration applied", &[("how", "(--watch)")]).await;

        // Written in place, and cut off: the old one goes on, and so does all else.
        let (third, whole) = made("third");
        fs::write(&file, &whole[..whole.len() / 2]).unwrap();
        discoverer.wait_logged("file refused", &[("output", "web.pem")]).await;
        shows(secure, &second).await.unwrap();
        etcd.put(&two.flat_key(), "running").await;
        wait_until(SOON, "an instance that comes meanwhile is asked", async || match two.requests() {
            0 => Err("not yet".to_owned()),
            _ => Ok(()),
        })
        .await;
        shows(secure, &second).await.unwrap();
        fs::write(&file, &whole).unwrap();
        wait_until(SOON, "the whole certificate is served", async || shows(secure, &third).await).await;

        // What comes later is in the file again, and HAProxy was started once.
        discoverer.wait_config(&two.address().to_string()).await;
        load.stop_after(200).await.assert_no_failure(200);
        assert_eq!(discoverer.logged("HAProxy died").len(), 0);
    })
    .await;
}

#[tokio::test]
async fn a_certificate_that_is_bad_by_now_keeps_no_server_from_coming_and_the_file_follows_when_it_is_good() {
    within(180, async {
        let (etcd, secure) = (Etcd::start().await, free_address());
        let live = tempfile::tempdir().unwrap();
        let file = live.path().join("web.pem");
        let (_, whole) = certificate();
        fs::write(&file, &whole).unwrap();
        let (one, two, three) =
            (Backend::start("one").await, Backend::start("two").await, Backend::start("three").await);
        etcd.put(&one.flat_key(), "running").await;
        let mut discoverer = Discoverer::supervise(&etcd.url())
            .args(&["--set", &format!("certificates={}", live.path().display())])
            .args(&["--set", &format!("https_bind={secure}")])
            .start();
        let reaches = async |backend: &Backend| {
            let before = backend.requests();
            let load = Load::of(discoverer.http(), CHALLENGE, 4);
            load.wait_served(20).await;
            load.stop_after(20).await.assert_no_failure(20);
            if backend.requests() > before { Ok(()) } else { Err("not asked".to_owned()) }
        };
        wait_applied(&discoverer).await;
        discoverer.wait_config(&one.address().to_string()).await;
        let reloads = discoverer.reloads().await;

        fs::write(&file, &whole[..whole.len() / 2]).unwrap();
        for next in [&two, &three] {
            etcd.put(&next.flat_key(), "running").await;
            wait_until(SOON, "an instance that comes is asked", async || reaches(next).await).await;
        }
        discoverer
            .wait_logged("file not written", &[("error", "now also the one that it took before"), ("error", "web.pem")])
            .await;
        wait_until(SOON, "status says so", async || {
            let told = discoverer.ask(&["status"]).await.stdout;
            let is_it = told.contains("the file does not hold what it runs") && told.contains("web.pem");
            if is_it { Ok(()) } else { Err(told) }
        })
        .await;
        fs::write(&file, &whole).unwrap();
        discoverer.wait_config(&three.address().to_string()).await;
        assert_eq!(discoverer.reloads().await, reloads);
        wait_until(SOON, "status says so no more", async || {
            let told = discoverer.ask(&["status"]).await;
            let is_it = told.code == Some(0) && !told.stdout.contains("the file does not hold");
            if is_it { Ok(()) } else { Err(format!("{told:?}")) }
        })
        .await;
        assert!(discoverer.process().ended().is_none());
    })
    .await;
}
