//! Whoever can write to etcd can write anything: none of it reaches HAProxy's configuration, and none of it stops the others.

use e2e::backend::Backend;
use e2e::discoverer::{Discoverer, SOON, field};
use e2e::etcd::Etcd;
use e2e::http::encode;
use e2e::process::{find_workspace_binary, run};
use e2e::{wait_until, within};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

/// A word that is in each hostile text and must be in no configuration.
const MARK: &str = "hostile";

/// Names of instances that are none. `{}` is the mark.
fn hostile_addresses() -> Vec<String> {
    let mut keys: Vec<String> = [
        "evil-{} 127.0.0.1:1 #",
        "x-{}\nhttp-request deny #",
        "x-{}\r\n  http-request deny\r\n#",
        "{}${HOME}:80",
        "${HOME}:80",
        "0.0.0.0:80",
        "[::]:80",
        "a:0",
        "{}:0",
        "127.0.0.1:0",
        "127.0.0.1:65536",
        "127.0.0.1:-1",
        "127.0.0.1:+80",
        "127.0.0.1:080x{}",
        "[::1]:99999",
        "::1:80",
        "localhost:80",
        "{}.test:80",
        "127.0.0.1:80 check-{} inter 1",
        "127.0.0.1:80;{}",
        "127.0.0.1:80 <<{}",
        "unix@{}.sock",
        "abns@{}:80",
        "fd@1:80",
        "\"127.0.0.1:80\"{}",
        "127.0.0.1\\:80{}",
        "{{ options.{} }}:80",
        "{% raw %}{}:80",
        "127.1:80",
        "0x7f000001:80",
        "256.256.256.256:80",
        "127.0.0.1:٨٠",
        "\u{202e}{}:80",
        "127.0.0.1:80\u{0}{}",
        " ",
        ":",
        ":80",
    ]
    .iter()
    .map(|key| key.replace("{}", MARK))
    .collect();
    keys.push("a".repeat(300));
    keys.push(format!("{}:80", "1".repeat(300)));
    keys
}

/// Names of services that are none.
fn hostile_services() -> Vec<String> {
    let mut names: Vec<String> = [
        "{} web",
        "{}\n  http-request deny",
        "{}${HOME}",
        "{}#",
        "\"{}\"",
        "{};",
        "{}\\",
        "{}{{ options }}",
        "web:{}",
        "wéb{}",
        "-{}\tx",
        "...",
    ]
    .iter()
    .map(|name| name.replace("{}", MARK))
    .collect();
    names.push(format!("{MARK}{}", "s".repeat(300)));
    names
}

/// The part of a configuration that HAProxy acts on; comments and empty lines away.
fn acted_on(config: &str) -> Vec<&str> {
    config.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')).collect()
}

#[tokio::test]
async fn hostile_keys_never_reach_the_file_and_the_others_go_on() {
    within(120, async {
        let etcd = Etcd::start().await;
        let one = Backend::start("one").await;
        // Some are there before it starts, and all of them are written again while it runs.
        etcd.put_encoded(&format!("/service/{}", encode("x\nhttp-request deny #")), "running").await;
        etcd.put(&one.key_in("web"), r#"{"attributes":{"host":"web.test"}}"#).await;
        let discoverer = Discoverer::supervise(&etcd.url()).start();
        discoverer.wait_host("web.test", "one").await;
        let clean = discoverer.config();

        let mut written = Vec::new();
        for key in hostile_addresses() {
            for path in [format!("/service/{}", encode(&key)), format!("/service/web/{}", encode(&key))] {
                // etcd itself refuses some, and cleans the path of others.
                if etcd.try_put_encoded(&path, "running").await.status < 300 {
                    written.push(key.clone());
                }
            }
        }
        for name in hostile_services() {
            let path = format!("/service/{}/127.0.0.1:9", encode(&name));
            if etcd.try_put_encoded(&path, "running").await.status < 300 {
                written.push(name);
            }
        }
        assert!(written.len() > 80, "etcd took only {} of them", written.len());

        let two = Backend::start("two").await;
        etcd.put(&two.key_in("blog"), r#"{"attributes":{"host":"blog.test"}}"#).await;
        discoverer.wait_host("blog.test", "two").await;
        assert_eq!(discoverer.answer("web.test").await, "one");
        let config = discoverer.config();
        for text in [
            MARK,
            "http-request deny",
            "${HOME}",
            "0.0.0.0:80",
            "[::]:80",
            "localhost:80",
            "127.0.0.1:9\n",
            "aaaaaaaa",
            "99999",
        ] {
            assert_eq!(config.contains(text), clean.contains(text), "{text:?} in\n{config}");
        }
        etcd.delete(&two.key_in("blog")).await;
        discoverer.wait_host("blog.test", "503").await;

        let refused = discoverer.logged("key refused");
        assert!(refused.iter().all(|event| !field(event, "reason").is_empty()), "{refused:?}");
        for text in [
            "evil-hostile 127.0.0.1:1 #",
            "${HOME}:80",
            "0.0.0.0:80",
            "a:0",
            "[::1]:99999",
            "http-request deny",
            "aaaaaaaa",
        ] {
            let named = refused.iter().any(|event| field(event, "key").contains(text));
            assert!(named, "{text:?} is not named in {refused:#?}");
        }
    })
    .await;
}

#[tokio::test]
async fn hostile_values_never_reach_the_file_unescaped_and_the_others_go_on() {
    within(120, async {
        let etcd = Etcd::start().await;
        let one = Backend::start("one").await;
        etcd.put(&one.key_in("web"), r#"{"attributes":{"host":"web.test"}}"#).await;
        let mut discoverer = Discoverer::supervise(&etcd.url()).start();
        discoverer.wait_host("web.test", "one").await;

        let injection = format!("x\n  http-request deny # {MARK}");
        let mut values = vec![
            String::new(),
            "Running".to_owned(),
            format!("running\n  http-request deny # {MARK}"),
            "null".to_owned(),
            "[]".to_owned(),
            "17".to_owned(),
            r#"{"status":"running""#.to_owned(),
            r#"{"status":"asleep"}"#.to_owned(),
            r#"{"status":["running"]}"#.to_owned(),
            r#"{"weight":-1}"#.to_owned(),
            r#"{"weight":257}"#.to_owned(),
            r#"{"weight":1e9}"#.to_owned(),
            r#"{"weight":"10 backup"}"#.to_owned(),
            r#"{"attributes":["host"]}"#.to_owned(),
            r#"{"tags":"blue"}"#.to_owned(),
            r#"{"registered":"tomorrow"}"#.to_owned(),
            "[".repeat(5000),
            format!(r#"{{"name":"{}"}}"#, "n".repeat(200_000)),
        ];
        for field in ["id", "agent", "name", "host"] {
            values.push(json!({ field: injection }).to_string());
        }
        let settings = [
            "host",
            "path",
            "mode",
            "listen",
            "balance",
            "check",
            "check_http",
            "proto",
            "sticky",
            "maxconn",
            "slowstart",
            "colour",
            "x y",
            "x\ny",
        ];
        for setting in settings {
            values.push(json!({ "attributes": { setting: injection } }).to_string());
            values.push(json!({ "attributes": { setting: "${HOME}" } }).to_string());
            values.push(json!({ "attributes": { setting: "\" quoted 'and' \\ # ; {{ options }}" } }).to_string());
        }
        values.push(json!({ "tags": [injection, "", "\u{0}"] }).to_string());
        for (number, value) in values.iter().enumerate() {
            etcd.put(&format!("/service/s{number}/127.0.0.1:{}", 7000 + number), value).await;
        }

        let two = Backend::start("two").await;
        etcd.put(&two.key_in("blog"), r#"{"attributes":{"host":"blog.test"}}"#).await;
        discoverer.wait_host("blog.test", "two").await;
        assert_eq!(discoverer.answer("web.test").await, "one");
        let config = discoverer.config();
        for line in acted_on(&config) {
            assert!(!line.starts_with("http-request deny"), "{line:?} in\n{config}");
            assert!(!line.contains("${HOME}"), "{line:?} in\n{config}");
        }
        assert!(discoverer.process().ended().is_none());
        let named: Vec<String> = discoverer.logged("key refused").iter().map(|event| field(event, "key")).collect();
        for (number, value) in values.iter().enumerate().take(18) {
            let key = format!("/service/s{number}/");
            assert!(named.iter().any(|name| name.contains(&key)), "{key} ({value}) is not named in {named:#?}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_hostile_value_in_the_same_service_leaves_the_services_other_instances() {
    within(60, async {
        let etcd = Etcd::start().await;
        let mut discoverer = Discoverer::supervise(&etcd.url()).start();
        let (one, bad) = (Backend::start("one").await, Backend::start("bad").await);
        etcd.put(&one.flat_key(), "running").await;
        etcd.put(&bad.flat_key(), "running").await;
        discoverer.wait_serves(&["bad", "one"]).await;
        etcd.put(&bad.flat_key(), r#"{"weight":"heavy"}"#).await;
        discoverer.wait_logged("key refused", &[("key", &bad.flat_key())]).await;
        let other = Backend::start("other").await;
        etcd.put(&other.flat_key(), "running").await;
        wait_until(SOON, "the good ones are served", async || {
            let seen = e2e::load::requests(discoverer.http(), 6).await;
            if seen.contains_key("one") && seen.contains_key("other") { Ok(()) } else { Err(format!("{seen:?}")) }
        })
        .await;
        etcd.put(&bad.flat_key(), "running").await;
        discoverer.wait_serves(&["bad", "one", "other"]).await;
    })
    .await;
}

#[tokio::test]
async fn services_named_like_the_templates_own_sections_and_haproxys_words_do_not_disturb() {
    within(90, async {
        let etcd = Etcd::start().await;
        let one = Backend::start("one").await;
        etcd.put(&one.key_in("web"), r#"{"attributes":{"host":"web.test"}}"#).await;
        let mut discoverer = Discoverer::supervise(&etcd.url()).start();
        discoverer.wait_host("web.test", "one").await;
        let mut names: Vec<String> = acted_on(&discoverer.config())
            .into_iter()
            .filter_map(|line| {
                let mut words = line.split_whitespace();
                let is_section =
                    matches!(words.next()?, "frontend" | "backend" | "listen" | "resolvers" | "peers" | "defaults");
                words.next().filter(|name| is_section && *name != "web").map(str::to_owned)
            })
            .collect();
        assert!(names.iter().any(|name| name.starts_with('_')), "the template's own sections begin with _: {names:?}");
        let words = [
            "global",
            "defaults",
            "frontend",
            "backend",
            "listen",
            "stats",
            "http",
            "in",
            "admin",
            "none",
            "MASTER",
            "GLOBAL",
            "-",
            ".x",
            "default_backend",
        ];
        names.extend(words.map(str::to_owned));
        let mut allowed = Vec::new();
        for (number, name) in names.iter().enumerate() {
            let backend = Backend::start(&format!("b{number}")).await;
            etcd.put(&backend.key_in(name), &format!(r#"{{"attributes":{{"host":"h{number}.test"}}}}"#)).await;
            if !name.starts_with('_') {
                allowed.push((number, backend));
            } else {
                assert_ne!(discoverer.answer(&format!("h{number}.test")).await, backend.name());
            }
        }
        for (number, backend) in &allowed {
            discoverer.wait_host(&format!("h{number}.test"), backend.name()).await;
        }
        assert_eq!(discoverer.answer("web.test").await, "one");
        assert!(discoverer.logged("file refused").is_empty() && discoverer.logged("service left out").is_empty());
        assert!(discoverer.process().ended().is_none());
    })
    .await;
}

/// A server that answers everything with an error, in words that a terminal would obey. Another user of the host may listen where the
/// admin address or etcd is looked for.
async fn hostile_server() -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _head = stream.read(&mut [0; 4096]).await;
            let words = format!("{MARK}\x1b[2J\x07\u{9b}31m\u{202e}\rAll is well.");
            let head = format!("HTTP/1.1 500 x\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", words.len());
            let _gone = stream.write_all(format!("{head}{words}").as_bytes()).await;
        }
    });
    address
}

#[tokio::test]
async fn no_command_passes_on_to_a_terminal_what_that_would_obey() {
    within(120, async {
        let server = hostile_server().await;
        let (admin, etcd) = (server.to_string(), format!("http://{server}"));
        let mut quoted = 0;
        for (program, args) in [
            ("standalone", &["list", "--admin", &admin] as &[&str]),
            ("standalone", &["explain", "web", "--admin", &admin]),
            ("standalone", &["status", "--admin", &admin]),
            ("standalone", &["render", "--admin", &admin]),
            ("discoverer", &["status", "--admin", &admin]),
            ("discoverer", &["explain", "web", "--admin", &admin]),
            ("discoverer", &["explain", "web", "--admin", &admin, "--etcd", &etcd]),
            ("discoverer", &["render", "--etcd", &etcd]),
            ("registrar", &["list", "--etcd", &etcd]),
            ("registrar", &["explain", "web", "--etcd", &etcd, "--docker", "/nonexistent/docker.sock"]),
        ] {
            let done = run(&find_workspace_binary(program), args, &[], SOON).await;
            assert_ne!(done.code, Some(0), "{program} {args:?}: {done:?}");
            for text in [&done.stdout, &done.stderr] {
                let obeyed = |c: char| c.is_control() && c != '\n' || matches!(c, '\u{202a}'..='\u{202e}');
                assert!(!text.contains(obeyed), "{program} {args:?}: {done:?}");
                quoted += usize::from(text.contains(MARK));
            }
        }
        assert!(quoted >= 5, "what the server says was quoted by {quoted} only");
    })
    .await;
}
