//! The admin server of a discoverer that does its work: what its page and API tell is what etcd and HAProxy have.

use std::net::SocketAddr;

use e2e::backend::Backend;
use e2e::discoverer::{Discoverer, SOON, run_discoverer};
use e2e::etcd::Etcd;
use e2e::http::{self, Connection};
use e2e::ports::free_address;
use e2e::{wait_until, within};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

async fn json(admin: SocketAddr, path: &str) -> Result<Value, String> {
    let reply = http::get(admin, path).await.map_err(|error| error.to_string())?;
    if reply.status != 200 {
        return Err(format!("{path}: {}: {}", reply.status, reply.body));
    }
    serde_json::from_str(&reply.body).map_err(|error| format!("{path}: {error}: {}", reply.body))
}

async fn instance(admin: SocketAddr, service: &str, address: SocketAddr) -> Result<Value, String> {
    let service = json(admin, &format!("/api/v1/services/{service}")).await?;
    let instances = service["instances"].as_array().cloned().unwrap_or_default();
    let found = instances.into_iter().find(|instance| instance["address"] == address.to_string());
    found.ok_or_else(|| service.to_string())
}

async fn wait_check(admin: SocketAddr, service: &str, address: SocketAddr, check: &str) -> Value {
    wait_until(SOON, &format!("HAProxy's check of {address} is {check}"), async || {
        let instance = instance(admin, service, address).await?;
        let is_it = instance["haproxy"]["check"].as_str().is_some_and(|words| words.starts_with(check));
        if is_it { Ok(instance) } else { Err(instance.to_string()) }
    })
    .await
}

#[tokio::test]
async fn what_is_registered_is_shown_with_haproxys_check_and_what_is_refused_with_its_reason() {
    within(90, async {
        let etcd = Etcd::start().await;
        let admin = free_address();
        let discoverer = Discoverer::supervise(&etcd.url()).admin(admin).start();
        let web = Backend::start("web").await;
        let record = r#"{"name":"<i>web</i>","host":"host-1","attributes":{"host":"web.test","check_http":"/"}}"#;
        etcd.put(&web.key_in("web"), record).await;
        etcd.put("/service/web/127.0.0.1:1", r#"{"weight":999}"#).await;
        let up = wait_check(admin, "web", web.address(), "UP").await;
        assert_eq!((&up["status"], &up["name"]), (&Value::from("up"), &Value::from("<i>web</i>")), "{up}");
        discoverer.wait_host("web.test", "web").await;

        let refused = wait_until(SOON, "the refused one is shown", async || {
            instance(admin, "web", "127.0.0.1:1".parse().unwrap()).await
        })
        .await;
        assert_eq!(refused["status"], "refused", "{refused}");
        assert!(refused["reason"].as_str().unwrap().contains("999"), "{refused}");
        let status = json(admin, "/api/v1/status").await.unwrap();
        assert!(status["left_out"][0]["reason"].as_str().unwrap().contains("999"), "{status}");
        assert_eq!(status["registry"]["connection"], "connected");

        let page = http::get(admin, "/").await.unwrap();
        assert!(page.body.contains("&lt;i&gt;web&lt;/i&gt;"), "{}", page.body);
        assert!(!page.body.contains("<i>web</i>"), "{}", page.body);
        assert!(page.header("content-security-policy").unwrap().contains("default-src 'none'"));
        let metrics = http::get(admin, "/metrics").await.unwrap();
        assert!(
            metrics.body.contains("discoverer_applied_total") && metrics.body.ends_with("# EOF\n"),
            "{}",
            metrics.body
        );

        // Its check, not its key, says that it is down.
        let address = web.address();
        drop(web);
        let down = wait_check(admin, "web", address, "DOWN").await;
        assert_eq!((&down["status"], &down["haproxy"]["is_down"]), (&Value::from("up"), &Value::from(true)), "{down}");
    })
    .await;
}

#[tokio::test]
async fn it_is_ready_only_after_the_first_configuration() {
    within(60, async {
        let mut etcd = Etcd::absent();
        let admin = free_address();
        let _discoverer = Discoverer::supervise(&etcd.url()).admin(admin).start();
        let words = wait_until(SOON, "it says that the registry is missing", async || {
            let reply = http::get(admin, "/health/ready").await.map_err(|error| error.to_string())?;
            assert_eq!(reply.status, 503, "{}", reply.body);
            if reply.body.contains("the registry") { Ok(reply.body) } else { Err(reply.body) }
        })
        .await;
        assert!(words.starts_with("not ready"), "{words}");
        assert_eq!(http::get(admin, "/health/live").await.unwrap().status, 200);
        etcd.start_again().await;
        wait_until(SOON, "it is ready", async || {
            let reply = http::get(admin, "/health/ready").await.map_err(|error| error.to_string())?;
            if reply.status == 200 { Ok(()) } else { Err(reply.body) }
        })
        .await;
    })
    .await;
}

/// The next event of that name whose data fits.
async fn event(stream: &mut Connection, name: &str, fits: impl Fn(&Value) -> bool) -> Value {
    loop {
        // One chunk, which is one event.
        let event = stream.line().await.unwrap();
        let field = |name: &str| event.lines().find_map(|line| line.strip_prefix(name));
        if field("event: ") == Some(name) {
            let data = serde_json::from_str(field("data: ").unwrap()).unwrap();
            if fits(&data) {
                return data;
            }
        }
    }
}

#[tokio::test]
async fn a_change_comes_over_the_stream_and_a_client_that_never_reads_slows_nothing() {
    within(120, async {
        let etcd = Etcd::start().await;
        let admin = free_address();
        let mut discoverer = Discoverer::supervise(&etcd.url()).admin(admin).start();
        let first = Backend::start("first").await;
        etcd.put(&first.flat_key(), "running").await;
        discoverer.wait_serves(&["first"]).await;

        let mut stuck = Vec::new();
        for _ in 0..20 {
            let mut connection = Connection::open_narrow(admin).await.unwrap();
            assert_eq!(connection.stream("/api/v1/events").await.unwrap(), 200);
            stuck.push(connection);
        }
        let mut stream = Connection::open(admin).await.unwrap();
        assert_eq!(stream.stream("/api/v1/events").await.unwrap(), 200);
        for round in 0..3 {
            let next = Backend::start(&format!("next-{round}")).await;
            etcd.put(&next.flat_key(), "running").await;
            let address = next.address().to_string();
            event(&mut stream, "change", |data| {
                let mut came = data["instances"].as_array().into_iter().flatten();
                came.any(|instance| instance["address"] == address && instance["status"] == "up")
            })
            .await;
            discoverer.wait_serves(&["first", next.name()]).await;
            etcd.delete(&next.flat_key()).await;
            event(&mut stream, "change", |data| {
                data["instances_gone"].as_array().into_iter().flatten().any(|gone| gone["address"] == address)
            })
            .await;
        }
        // More than the kernel and the server hold for a client that does not read: some 35 KB each time.
        const ROUNDS: usize = 120;
        let address = first.address().to_string();
        let weight = |change: &Value| {
            let mut all = change["instances"].as_array().into_iter().flatten();
            all.find(|instance| instance["address"] == address.as_str()).and_then(|it| it["weight"].as_u64())
        };
        let filling: Vec<_> = (0..20).map(|number| format!("\"a{number}\":\"{}\"", "x".repeat(900))).collect();
        for round in 1..=ROUNDS {
            let (filling, turn) = (filling.join(","), round % 2);
            let record = format!(r#"{{"weight":{round},"attributes":{{{filling},"turn":"{turn}"}}}}"#);
            etcd.put(&first.flat_key(), &record).await;
            let change = event(&mut stream, "change", |data| weight(data) == u64::try_from(round).ok()).await;
            assert!(change.to_string().len() > 30_000, "{change}");
        }
        assert_eq!(http::get(admin, "/health/live").await.unwrap().status, 200);
        discoverer.wait_serves(&["first"]).await;
        for mut connection in stuck {
            let mut last = None;
            while let Ok(event) = connection.line().await {
                let data = event.lines().find_map(|line| line.strip_prefix("data: "));
                last = data.and_then(|data| weight(&serde_json::from_str(data).unwrap())).or(last);
            }
            let last = last.expect("it got something before it was stuck");
            assert!((1..100).contains(&last), "it was never stuck: it got weight {last}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_token_is_asked_for_and_an_open_address_without_one_is_a_usage_error() {
    within(60, async {
        let etcd = Etcd::absent();
        let url = etcd.url();
        let open = run_discoverer(&["--etcd", &url, "--admin", "0.0.0.0:0"]).await;
        assert_eq!(open.code, Some(2), "{open:?}");
        assert!(open.stderr.contains("--admin-token-file"), "{open:?}");
        let missing = run_discoverer(&["--etcd", &url, "--admin-token-file", "/nonexistent/token"]).await;
        assert_eq!(missing.code, Some(2), "{missing:?}");

        let dir = tempfile::tempdir().unwrap();
        let token = dir.path().join("token");
        std::fs::write(&token, "s3cret-word\n").unwrap();
        let admin = free_address();
        let discoverer = Discoverer::supervise(&url)
            .admin(admin)
            .args(&["--admin-token-file", &token.display().to_string(), "--log-level", "debug"])
            .start();
        let status = wait_until(SOON, "it answers", async || {
            http::get(admin, "/api/v1/status").await.map(|reply| reply.status).map_err(|error| error.to_string())
        })
        .await;
        assert_eq!(status, 401);
        assert_eq!(http::get(admin, "/health/live").await.unwrap().status, 200);
        assert!(!format!("{:?}", discoverer.events()).contains("s3cret-word"));
    })
    .await;
}

#[tokio::test]
async fn a_port_that_is_taken_is_told_and_haproxy_is_served_nevertheless() {
    within(60, async {
        let etcd = Etcd::start().await;
        let admin = free_address();
        let taken = std::net::TcpListener::bind(admin).unwrap();
        let mut discoverer = Discoverer::supervise(&etcd.url()).admin(admin).start();
        discoverer.wait_logged("no admin server", &[("error", "is taken")]).await;
        let web = Backend::start("web").await;
        etcd.put(&web.flat_key(), "running").await;
        discoverer.wait_serves(&["web"]).await;
        drop(taken);
        wait_until(SOON, "it has the address as soon as it is free", async || {
            let reply = http::get(admin, "/health/ready").await.map_err(|error| error.to_string())?;
            if reply.status == 200 { Ok(()) } else { Err(reply.body) }
        })
        .await;
    })
    .await;
}

#[tokio::test]
async fn what_is_there_at_the_beginning_has_not_come_and_what_comes_later_is_timed() {
    within(60, async {
        let (etcd, admin) = (Etcd::start().await, free_address());
        let (one, two) = (Backend::start("one").await, Backend::start("two").await);
        let record = |from: jiff::Timestamp| format!(r#"{{"registered":"{from}"}}"#);
        etcd.put(&one.key_in("web"), &record(jiff::Timestamp::now())).await;
        let discoverer = Discoverer::supervise(&etcd.url()).admin(admin).start();
        instance_is_up(admin, one.address()).await;
        let told = async |what: &str| {
            let feed = json(admin, "/api/v1/feed").await.unwrap();
            let notes = feed["notes"].as_array().cloned().unwrap_or_else(|| panic!("{feed}"));
            notes.iter().filter(|note| note["what"] == what).cloned().collect::<Vec<_>>()
        };
        assert_eq!(told("came").await, Vec::<Value>::new());
        assert_eq!(told("registry_connected").await.len(), 1);
        let count = async || {
            let text = http::get(admin, "/metrics").await.unwrap().body;
            let line = text.lines().find_map(|line| line.strip_prefix("discoverer_propagation_seconds_count "));
            line.unwrap().to_owned()
        };
        assert_eq!(count().await, "0", "what started before this process is no measure");

        etcd.put(&two.key_in("web"), &record(jiff::Timestamp::now())).await;
        instance_is_up(admin, two.address()).await;
        let came = told("came").await;
        assert_eq!(came.len(), 1, "{came:?}");
        assert_eq!(came[0]["address"], two.address().to_string());
        assert_eq!(count().await, "1");
        drop(discoverer);
    })
    .await;
}

async fn instance_is_up(admin: SocketAddr, address: SocketAddr) {
    wait_check(admin, "web", address, "UP").await;
}

/// The value of a series, as `/metrics` has it.
async fn metric(admin: SocketAddr, series: &str) -> Result<String, String> {
    let text = http::get(admin, "/metrics").await.map_err(|error| error.to_string())?.body;
    let value = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')).map(str::to_owned);
    value.ok_or_else(|| format!("no {series} in\n{text}"))
}

async fn wait_metric(admin: SocketAddr, series: &str, wanted: &str) {
    wait_until(SOON, &format!("{series} is {wanted}"), async || {
        let value = metric(admin, series).await?;
        if value == wanted { Ok(()) } else { Err(value) }
    })
    .await;
}

#[tokio::test]
async fn a_refused_key_that_is_deleted_is_left_out_no_more() {
    within(60, async {
        let (etcd, admin) = (Etcd::start().await, free_address());
        let _discoverer = Discoverer::supervise(&etcd.url()).admin(admin).start();
        etcd.put("/service/web/nonsense", "running").await;
        etcd.put("/service/web/127.0.0.1:1", "{").await;
        wait_metric(admin, "discoverer_left_out{part=\"key\"}", "2").await;
        etcd.delete("/service/web/nonsense").await;
        wait_metric(admin, "discoverer_left_out{part=\"key\"}", "1").await;
        etcd.put("/service/web/127.0.0.1:1", "running").await;
        wait_metric(admin, "discoverer_left_out{part=\"key\"}", "0").await;
        wait_metric(admin, "discoverer_instances{service=\"web\",status=\"up\"}", "1").await;
    })
    .await;
}

#[tokio::test]
async fn what_waits_for_a_reload_is_shown_at_once_and_timed_until_haproxy_has_it() {
    within(90, async {
        let (etcd, admin) = (Etcd::start().await, free_address());
        let discoverer = Discoverer::supervise(&etcd.url()).admin(admin).args(&["--min-interval", "6s"]).start();
        let (one, two, three) = (Backend::start("1").await, Backend::start("2").await, Backend::start("3").await);
        let at_host = |host: &str| format!(r#"{{"attributes":{{"host":"{host}"}}}}"#);
        etcd.put(&one.key_in("one"), &at_host("one.test")).await;
        discoverer.wait_host("one.test", "1").await;
        // This reload has to wait, or the next one has to.
        etcd.put(&two.key_in("two"), &at_host("two.test")).await;
        discoverer.wait_host("two.test", "2").await;
        etcd.put(&three.key_in("three"), &at_host("three.test")).await;
        wait_until(SOON, "it is shown", async || instance(admin, "three", three.address()).await).await;
        assert_ne!(discoverer.answer("three.test").await, "3", "it did not have to wait");
        discoverer.wait_host("three.test", "3").await;
        // One that waited took more than a second.
        wait_until(SOON, "it is timed", async || {
            let quick = metric(admin, "discoverer_apply_seconds_bucket{le=\"1.0\"}").await?;
            let all = metric(admin, "discoverer_apply_seconds_count").await?;
            let is_timed = quick.parse::<u64>().unwrap() < all.parse::<u64>().unwrap();
            if is_timed { Ok(()) } else { Err(format!("{quick} of {all} within a second")) }
        })
        .await;
    })
    .await;
}

#[tokio::test]
async fn a_haproxy_that_hangs_is_not_up_and_a_template_that_is_mended_is_in_use() {
    within(90, async {
        let (etcd, admin) = (Etcd::start().await, free_address());
        let discoverer = Discoverer::supervise(&etcd.url()).admin(admin).start();
        let web = Backend::start("web").await;
        etcd.put(&web.key_in("web"), r#"{"attributes":{"host":"web.test"}}"#).await;
        discoverer.wait_host("web.test", "web").await;
        wait_metric(admin, "discoverer_haproxy_up", "1").await;
        let template = discoverer.templates().join("haproxy.cfg.tera");
        let good = std::fs::read_to_string(&template).unwrap();
        std::fs::write(&template, format!("{good}\n{{{{ nobody.knows }}}}\n")).unwrap();
        wait_metric(admin, "discoverer_template_good", "0").await;
        std::fs::write(&template, good).unwrap();
        wait_metric(admin, "discoverer_template_good", "1").await;

        let worker = e2e::haproxy::worker(&discoverer.runtime_socket()).await.unwrap();
        let worker = Pid::from_raw(i32::try_from(worker).unwrap());
        kill(worker, Signal::SIGSTOP).unwrap();
        wait_metric(admin, "discoverer_haproxy_up", "0").await;
        kill(worker, Signal::SIGCONT).unwrap();
        wait_metric(admin, "discoverer_haproxy_up", "1").await;
    })
    .await;
}
