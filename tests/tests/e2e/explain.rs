//! `discoverer status` and `discoverer explain` against the real etcd and the real HAProxy: whether all is well, and the first
//! step that says no.

use std::net::{Ipv4Addr, SocketAddr};

use e2e::backend::Backend;
use e2e::discoverer::{Discoverer, SOON};
use e2e::etcd::Etcd;
use e2e::ports::{free_address, free_port};
use e2e::process::Finished;
use e2e::{secs, wait_until, within};
use nix::sys::signal::Signal;
use serde_json::Value;
use tokio::net::TcpListener;

/// A service with a host of its own, so that a rule leads to it.
fn at_host(host: &str, more: &str) -> String {
    format!(r#"{{"name":"{host}-1","host":"host-1","agent":"a1"{more},"attributes":{{"host":"{host}.test"}}}}"#)
}

/// The first step that says no, as `(part, text, advice)`.
fn first_no(said: &Finished) -> Option<(String, String, String)> {
    let told: Value = serde_json::from_str(&said.stdout).unwrap_or_else(|error| panic!("{error}: {said:?}"));
    let steps = told["ways"].as_array().unwrap().iter().flat_map(|way| way["steps"].as_array().unwrap());
    let step = steps.into_iter().find(|step| step["says"] == "no")?;
    let text = |name: &str| step[name].as_str().unwrap_or_default().to_owned();
    Some((text("part"), text("text"), text("advice")))
}

/// Waits until the first step that says no is this one.
async fn wait_no(discoverer: &Discoverer, name: &str, part: &str, text: &str, advice: &str) {
    wait_until(SOON, &format!("explain {name} says {text:?} at {part}"), async || {
        let said = discoverer.ask(&["explain", name, "--json"]).await;
        let seen = first_no(&said);
        let is_it = seen.as_ref().is_some_and(|(in_part, says, how)| {
            in_part == part && says.contains(text) && how.contains(advice) && said.code == Some(1)
        });
        if is_it { Ok(()) } else { Err(format!("{seen:?}: {said:?}")) }
    })
    .await;
}

/// Waits until `status` ends so and says that.
async fn wait_status(discoverer: &Discoverer, code: i32, words: &str) {
    wait_until(SOON, &format!("status ends with {code} and says {words:?}"), async || {
        let said = discoverer.ask(&["status"]).await;
        let has = said.stdout.contains(words) || said.stderr.contains(words);
        if said.code == Some(code) && has { Ok(()) } else { Err(format!("{said:?}")) }
    })
    .await;
}

#[tokio::test]
async fn what_is_served_says_yes_at_each_step_and_status_says_that_all_is_well() {
    within(60, async {
        let etcd = Etcd::start().await;
        let mut discoverer = Discoverer::supervise(&etcd.url()).start();
        let web = Backend::start("web").await;
        let key = web.key_in("web");
        etcd.put(&key, &at_host("web", r#","id":"2d15cafe0123""#)).await;
        discoverer.wait_host("web.test", "web").await;
        wait_status(&discoverer, 0, "All is well.").await;
        let said = discoverer.ask(&["status", "--json"]).await;
        let told: Value = serde_json::from_str(&said.stdout).unwrap();
        assert_eq!(told["registry"]["connection"], "connected", "{told}");
        assert_eq!(told["services"][0]["instances"][0]["address"], web.address().to_string(), "{told}");

        discoverer.wait_same_in_file().await;
        let address = web.address().to_string();
        for name in ["web", &address, "web-1", "2d15cafe", &key] {
            let said = discoverer.ask(&["explain", name]).await;
            assert_eq!(said.code, Some(0), "{name}: {said:?}");
            for expected in [
                &format!("{key} is in etcd: running; it does not expire; container web-1"),
                "service web is known: http, host web.test",
                "use_backend web if",
                &format!("backend web: server 127.0.0.1_{}", web.address().port()),
                &format!("HAProxy's server web/127.0.0.1_{} is UP", web.address().port()),
            ] {
                assert!(said.stdout.contains(expected), "{name}: {expected:?} in {}", said.stdout);
            }
        }
        let pid = discoverer.process().pid();
        assert!(e2e::process::is_alive(pid), "asking does it no harm");
    })
    .await;
}

#[tokio::test]
async fn each_cause_is_the_first_no_with_what_to_do() {
    within(150, async {
        let mut etcd = Etcd::start().await;
        let taken = free_port();
        let holder = TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, taken))).await.unwrap();
        let mut discoverer = Discoverer::supervise(&etcd.url()).args(&["--listen-ports", &taken.to_string()]).start();
        let web = Backend::start("web").await;
        etcd.put(&web.key_in("web"), &at_host("web", "")).await;
        discoverer.wait_host("web.test", "web").await;
        wait_status(&discoverer, 0, "All is well.").await;

        wait_no(&discoverer, "wbe", "etcd", "no key below /service is of", "one of these meant: web").await;
        wait_no(&discoverer, "wbe", "etcd", "no key below /service is of", "`registrar explain wbe`").await;
        etcd.put("/service/bad/10.9.9.9:80", "nonsense").await;
        wait_no(&discoverer, "bad", "etcd", "/service/bad/10.9.9.9:80 is in etcd", "Whoever wrote it").await;
        // Of a key it is told, and that nothing else is wrong.
        wait_status(&discoverer, 0, "key /service/bad/10.9.9.9:80: its value is neither").await;

        let late = Backend::start("late").await;
        etcd.put(&late.key_in("late"), &at_host("web", "")).await;
        wait_no(&discoverer, "late", "discoverer", "service late is left out: it wants", "another SERVICE_HOST").await;
        wait_status(&discoverer, 1, "Service late is left out.").await;
        etcd.delete(&late.key_in("late")).await;

        let db = Backend::start("db").await;
        let listens = format!(r#"{{"attributes":{{"mode":"tcp","listen":"{taken}"}}}}"#);
        etcd.put(&db.key_in("db"), &listens).await;
        wait_no(&discoverer, "db", "discoverer", &taken.to_string(), "free what it asks for").await;
        drop(holder);
        etcd.delete(&db.key_in("db")).await;

        let old = Backend::start("old").await;
        etcd.put(&old.key_in("old"), &at_host("old", r#","status":"draining""#)).await;
        wait_no(&discoverer, "old", "etcd", "is in etcd: draining", "`registrar undrain old-1`, on host-1").await;
        wait_status(&discoverer, 1, "all drain").await;

        let nobody = free_address();
        etcd.put(&format!("/service/down/{nobody}"), &at_host("down", "")).await;
        wait_no(&discoverer, "down", "haproxy", "is DOWN (L4CON", "Nothing takes connections at").await;
        wait_no(&discoverer, &nobody.to_string(), "haproxy", "is DOWN", "curl").await;
        wait_status(&discoverer, 1, "Service down has no instance that is up: HAProxy's checks fail.").await;

        // Its registrar is gone, and it answers still.
        let lost = Backend::start("lost").await;
        etcd.put_for(&lost.key_in("lost"), &at_host("lost", ""), 1).await;
        discoverer.wait_logged("keys expired", &[]).await;
        let at = lost.address().to_string();
        wait_no(&discoverer, &at, "etcd", "no key of service lost in etcd is of", "`registrar explain lost-1`").await;
        let said = discoverer.ask(&["explain", &at]).await;
        assert!(said.stdout.contains("   no   it is suspect"), "{said:?}");

        etcd.stop().await;
        wait_no(&discoverer, "web", "etcd", "no usable answer from etcd", "Does etcd run").await;
        wait_status(&discoverer, 1, "The registry does not answer.").await;
        let said = discoverer.ask(&["explain", "web"]).await;
        assert!(
            said.stdout.contains("   no   discoverer ") && said.stdout.contains("gets no answer of etcd"),
            "{said:?}"
        );
        assert!(said.stdout.contains("   yes  HAProxy's server web/"), "HAProxy goes on: {said:?}");

        etcd.start_again().await;
        let mut process = discoverer.take_process();
        process.signal(Signal::SIGTERM);
        process.wait(secs(20)).await;
        wait_no(&discoverer, "web", "discoverer", "no discoverer answers at unix:", "Does the discoverer run").await;
        wait_status(&discoverer, 3, "Does the discoverer run").await;
    })
    .await;
}

#[tokio::test]
async fn a_token_is_asked_for_and_sent() {
    within(60, async {
        let etcd = Etcd::start().await;
        let dir = tempfile::tempdir().unwrap();
        let (token, other) = (dir.path().join("token"), dir.path().join("other"));
        std::fs::write(&token, "hunter2hunter2\n").unwrap();
        std::fs::write(&other, "hunter3\n").unwrap();
        let address = free_address();
        let (admin, flags) = (address.to_string(), ["--admin-token-file", token.to_str().unwrap()]);
        let discoverer = Discoverer::supervise(&etcd.url()).admin(address).args(&flags).start();
        let web = Backend::start("web").await;
        etcd.put(&web.key_in("web"), &at_host("web", "")).await;
        wait_status(&discoverer, 0, "All is well.").await;
        let ask = async |more: &[&str]| {
            let args = [&["status", "--admin", &admin], more].concat();
            e2e::discoverer::run_discoverer(&args).await
        };
        let said = ask(&[]).await;
        assert!(said.code == Some(3) && said.stderr.contains("Give its token: --admin-token-file"), "{said:?}");
        let said = ask(&["--admin-token-file", other.to_str().unwrap()]).await;
        assert!(said.code == Some(3) && said.stderr.contains("It has another token"), "{said:?}");
        assert!(!said.stderr.contains("hunter"), "{said:?}");
        let said = e2e::discoverer::run_discoverer(&["status", "--admin", "off"]).await;
        assert!(said.code == Some(3) && said.stderr.contains("--admin is off"), "{said:?}");
    })
    .await;
}

#[tokio::test]
async fn without_a_name_the_usage_is_shown_with_an_example() {
    within(20, async {
        let said = e2e::discoverer::run_discoverer(&["explain"]).await;
        assert!(said.code == Some(2) && said.stderr.contains("For example: discoverer explain web"), "{said:?}");
    })
    .await;
}
