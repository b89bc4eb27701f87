//! `discoverer status` and `discoverer explain` against the real etcd and the real HAProxy: whether all is well, and the first
//! step that says no.

use std::net::{Ipv4Addr, SocketAddr};

use e2e::backend::Backend;
use e2e::discoverer::{Discoverer, SOON, TemplateFile};
use e2e::etcd::Etcd;
use e2e::ports::{free_address, free_port};
use e2e::process::Finished;
use e2e::{http, secs, wait_until, within};
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
async fn what_no_rule_leads_to_and_what_no_template_reads_is_noted_and_nothing_is_wrong() {
    within(60, async {
        let etcd = Etcd::start().await;
        let discoverer = Discoverer::supervise(&etcd.url()).args(&["--set", "stats_bnd=:1"]).start();
        let (web, db, queue) = (Backend::start("web").await, Backend::start("db").await, Backend::start("queue").await);
        etcd.put(&web.key_in("web"), &at_host("web", "")).await;
        discoverer.wait_host("web.test", "web").await;
        discoverer
            .wait_logged("no template reads this option", &[("option", "stats_bnd"), ("meant", "stats_bind")])
            .await;
        wait_status(&discoverer, 0, "No template reads the option stats_bnd of --set").await;
        // The only one without a host takes what no rule does; of two neither does.
        etcd.put(&db.key_in("db"), "running").await;
        etcd.put(&queue.key_in("queue"), "running").await;
        wait_status(&discoverer, 0, "No rule leads to services db, queue: no request comes to them.").await;
        wait_status(&discoverer, 0, "All is well besides.").await;
        wait_no(&discoverer, "db", "file", "leads to backend db", "SERVICE_HOST").await;
        etcd.put(&db.key_in("db"), &at_host("db", "")).await;
        discoverer.wait_host("db.test", "db").await;
        wait_until(SOON, "nothing is said of them any more", async || {
            let said = discoverer.ask(&["status"]).await;
            if said.code == Some(0) && !said.stdout.contains("No rule leads") {
                Ok(())
            } else {
                Err(format!("{said:?}"))
            }
        })
        .await;
    })
    .await;
}

/// A template with these rules, and a backend for each service.
fn with_rules(rules: &str) -> String {
    format!(
        "global\n  hard-stop-after 5s\n  stats socket {{{{ haproxy.runtime_socket }}}} level admin\n\
         defaults\n  mode http\n  timeout connect 1s\n  timeout client 5s\n  timeout server 5s\n\
         frontend in\n  bind {{{{ options.http_bind }}}}\n  {rules}\n\
         {{%- for service in services %}}\nbackend {{{{ service.name }}}}\n\
         {{%- for instance in service.instances %}}\n  \
         server {{{{ instance.server }}}} {{{{ instance.address }}}}:{{{{ instance.port }}}} weight {{{{ instance.weight }}}}\n\
         {{%- endfor %}}{{%- endfor %}}\n"
    )
}

/// Waits until neither status, nor the API, nor the page says that no rule leads somewhere.
async fn wait_unnoted(discoverer: &Discoverer, admin: SocketAddr) {
    wait_until(SOON, "nothing is noted of rules", async || {
        let said = discoverer.ask(&["status"]).await;
        let api = http::get(admin, "/api/v1/status").await.map_err(|error| error.to_string())?.body;
        let page = http::get(admin, "/").await.map_err(|error| error.to_string())?.body;
        let told: Value = serde_json::from_str(&api).unwrap();
        let is_silent = ![&said.stdout, &api, &page].iter().any(|text| text.contains("No rule leads"));
        if said.code == Some(0) && is_silent && told["unrouted"] == serde_json::json!([]) {
            Ok(())
        } else {
            Err(format!("{said:?}: {}", told["unrouted"]))
        }
    })
    .await;
}

#[tokio::test]
async fn of_what_an_expression_may_lead_to_nobody_says_that_no_rule_does() {
    within(90, async {
        let etcd = Etcd::start().await;
        let hosts = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(hosts.path(), "web.test web\n").unwrap();
        let map = format!("%[req.hdr(host),lower,map({})]", hosts.path().display());
        let template = TemplateFile::new(&with_rules(&format!("use_backend {map}")));
        let admin = free_address();
        let discoverer = Discoverer::supervise(&etcd.url()).template(template.path()).admin(admin).start();
        let (web, db) = (Backend::start("web").await, Backend::start("db").await);
        etcd.put(&web.key_in("web"), "running").await;
        etcd.put(&db.key_in("db"), "running").await;
        let noted = "No rule leads to service db: no request comes to it.";
        let default = format!("use_backend {map} if {{ path_beg / }}\n  default_backend web");
        for rules in [format!("use_backend {map}"), default] {
            // What is told goes with a rule that names its backend.
            template.replace(&with_rules("use_backend web if { req.hdr(host) -m beg web }"));
            wait_status(&discoverer, 0, noted).await;
            wait_no(&discoverer, "db", "file", "leads to backend db", "SERVICE_HOST").await;
            template.replace(&with_rules(&rules));
            discoverer.wait_config(&rules).await;
            discoverer.wait_host("web.test", "web").await;
            wait_unnoted(&discoverer, admin).await;
            discoverer.wait_same_in_file().await;
            let said = discoverer.ask(&["explain", "db"]).await;
            assert!(said.code == Some(1) && !said.stdout.contains("-> NO"), "{said:?}");
            let may = "names backend db, and an expression or a variable of the environment may lead there";
            let line = said.stdout.lines().find(|line| line.contains(may)).unwrap_or_else(|| panic!("{said:?}"));
            assert!(line.starts_with("   ?    no rule in ") && said.stdout.contains(&map), "{said:?}");
        }
        // Now it does lead there.
        std::fs::write(hosts.path(), "web.test web\ndb.test db\n").unwrap();
        template.replace(&with_rules(&format!("# again\n  use_backend {map}")));
        discoverer.wait_host("db.test", "db").await;
        wait_unnoted(&discoverer, admin).await;
        // Where all rules stand in another file nobody knows them.
        template.replace(&with_rules(""));
        discoverer.wait_host("web.test", "503").await;
        wait_unnoted(&discoverer, admin).await;
        discoverer.wait_same_in_file().await;
        let said = discoverer.ask(&["explain", "db"]).await;
        assert!(
            said.stdout.contains("has no rule: those that may lead to backend db stand in another file"),
            "{said:?}"
        );
        assert!(!said.stdout.contains("-> NO"), "{said:?}");
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
