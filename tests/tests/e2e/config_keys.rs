//! Each key of a configuration file that is read again does what it says from then on.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::SocketAddr;

use e2e::agent::{Agent, REGISTERED, instances, stays, wait_at, wait_none, wait_one};
use e2e::app::IMAGE;
use e2e::backend::Backend;
use e2e::discoverer::{Discoverer, SOON, field};
use e2e::docker::{Container, Docker, docker_ok};
use e2e::etcd::Etcd;
use e2e::http::{self, Tunnel};
use e2e::ports::free_port;
use e2e::{secs, wait_until, within};
use nix::sys::signal::Signal;

use crate::agent_checks::tell;
use crate::config::File;
use crate::listen::{listening, wait_answers};

/// A configuration file whose keys are changed one by one.
struct Keys {
    file: File,
    values: BTreeMap<&'static str, String>,
}

impl Keys {
    /// Each value as TOML has it.
    fn new(values: &[(&'static str, &str)]) -> Self {
        let values = values.iter().map(|&(key, value)| (key, value.to_owned())).collect();
        let keys = Self { file: File::new(""), values };
        keys.write();
        keys
    }

    fn write(&self) {
        let mut text = String::new();
        for (key, value) in &self.values {
            writeln!(text, "{key} = {value}").unwrap();
        }
        self.file.write(&text);
    }

    /// Changes some at once, and waits until the program has said so of each; `told` says how often it did of one key.
    async fn set(&mut self, values: &[(&'static str, &str)], told: impl Fn(&str) -> usize) {
        let before: Vec<usize> = values.iter().map(|(key, _)| told(key)).collect();
        self.values.extend(values.iter().map(|&(key, value)| (key, value.to_owned())));
        self.write();
        for ((key, value), before) in values.iter().zip(before) {
            wait_until(SOON, &format!("{key} = {value} is told"), async || match told(key) > before {
                true => Ok(()),
                false => Err("not yet".to_owned()),
            })
            .await;
        }
    }
}

const CHANGED: &str = "the configuration has changed";

#[tokio::test]
async fn each_key_of_the_discoverer_that_is_read_again_takes_effect() {
    within(240, async {
        let etcd = Etcd::start().await;
        let mut keys = Keys::new(&[
            ("log-level", r#""info""#),
            ("max-delay", r#""1h""#),
            ("drain-timeout", r#""1h""#),
            ("forget-after", r#""1h""#),
            ("suspect-for", r#""1h""#),
            ("shutdown-grace", r#""1h""#),
        ]);
        let mut discoverer = Discoverer::supervise(&etcd.url()).args(&["--config", &keys.file.shown()]).start();
        let told = |discoverer: &Discoverer, key: &str| {
            discoverer.logged(CHANGED).iter().filter(|event| field(event, "key") == key).count()
        };
        let any = Backend::start("any").await;
        etcd.put(&any.flat_key(), "running").await;
        discoverer.wait_serves(&["any"]).await;

        assert!(discoverer.events().iter().all(|event| field(event, "level") != "DEBUG"));
        keys.set(&[("log-level", r#""debug""#)], |key| told(&discoverer, key)).await;
        let web = Backend::start("web").await;
        etcd.put(&web.key_in("web"), r#"{"attributes":{"host":"web.test"}}"#).await;
        discoverer.wait_host("web.test", "web").await;
        assert!(discoverer.events().iter().any(|event| field(event, "level") == "DEBUG"));

        let (port, db) = (free_port(), Backend::start("db").await);
        etcd.put(&db.key_in("db"), &listening(port)).await;
        discoverer.wait_logged("key refused", &[("key", "db"), ("reason", &port.to_string())]).await;
        keys.set(&[("listen-ports", &format!("[{port}]"))], |key| told(&discoverer, key)).await;
        wait_answers(port, "db").await;

        // Instances come without a pause. The file gets none of them before the whole text was made, which waits for a pause or for
        // this long.
        let more = |number: usize| format!("127.0.{}.{}:9", 1 + number / 200, 1 + number % 200);
        let mut number = 0;
        let mut come = async |many: usize| {
            for _ in 0..many {
                etcd.put(&format!("/service/more/{}", more(number)), "running").await;
                number += 1;
            }
        };
        come(1).await;
        discoverer.wait_config(&more(0)).await;
        come(100).await;
        keys.set(&[("max-delay", r#""100ms""#)], |key| told(&discoverer, key)).await;
        let first = more(101);
        for round in 0.. {
            come(10).await;
            if discoverer.config().contains(&first) {
                break;
            }
            assert!(round < 300, "the file has to hold {first} while instances come");
        }

        etcd.delete(&web.key_in("web")).await;
        discoverer.wait_host("web.test", "503").await;
        keys.set(&[("forget-after", r#""1s""#)], |key| told(&discoverer, key)).await;
        discoverer.wait_host("web.test", "any").await;

        let shop = Backend::start("shop").await;
        etcd.put_for(&shop.key_in("shop"), r#"{"attributes":{"host":"shop.test"}}"#, 2).await;
        discoverer.wait_host("shop.test", "shop").await;
        etcd.wait_gone(&shop.key_in("shop")).await;
        discoverer.wait_logged("keys expired", &[]).await;
        assert_eq!(discoverer.answer("shop.test").await, "shop");
        keys.set(&[("suspect-for", r#""1s""#)], |key| told(&discoverer, key)).await;
        discoverer.wait_logged("suspects removed", &[("first", &shop.key_in("shop"))]).await;

        let other = Backend::start("other").await;
        let tunnel = async |backend: &Backend| {
            let tunnel = Tunnel::open(discoverer.http()).await.unwrap();
            wait_until(SOON, "the tunnel is there", async || match backend.open() {
                0 => Err("none".to_owned()),
                _ => Ok(()),
            })
            .await;
            tunnel
        };
        keys.set(&[("drain-timeout", r#""1s""#)], |key| told(&discoverer, key)).await;
        // An old worker has what it was told when it began.
        let loaded = async |times: usize| {
            wait_until(SOON, "HAProxy has it", async || {
                let applied = discoverer.logged("configuration applied");
                let loaded = applied.iter().filter(|event| field(event, "how").contains("hard-stop-after"));
                let loaded = loaded.count();
                if loaded >= times { Ok(()) } else { Err(loaded.to_string()) }
            })
            .await;
        };
        loaded(1).await;
        let mut long = tunnel(&any).await;
        etcd.put(&other.flat_key(), "running").await;
        discoverer.wait_host("nobody.test", "other").await;
        etcd.delete(&any.flat_key()).await;
        long.ended().await;

        // HAProxy ends what it holds after the shorter of the two.
        keys.set(&[("drain-timeout", r#""1h""#)], |key| told(&discoverer, key)).await;
        loaded(2).await;
        // What reads the file tells of it before the discoverer has taken it in: another key of the same file shows that it has.
        let (next_port, next) = (free_port(), Backend::start("next").await);
        etcd.put(&next.key_in("next"), &listening(next_port)).await;
        discoverer.wait_logged("key refused", &[("key", "next"), ("reason", &next_port.to_string())]).await;
        let ports = format!("[{port}, {next_port}]");
        keys.set(&[("shutdown-grace", r#""1s""#), ("listen-ports", &ports)], |key| told(&discoverer, key)).await;
        wait_answers(next_port, "next").await;
        let held = tokio::spawn(http::get(discoverer.http(), "/hold"));
        wait_until(SOON, "a request is held", async || match other.open() {
            0 => Err("none".to_owned()),
            _ => Ok(()),
        })
        .await;
        discoverer.process().signal(Signal::SIGTERM);
        discoverer.process().wait(SOON).await;
        let reply = held.await.unwrap();
        assert!(reply.as_ref().is_ok_and(|reply| reply.status != 200) || reply.is_err(), "it was held: {reply:?}");
    })
    .await;
}

/// The agent with such a file, and what it registers for.
struct Site {
    etcd: Etcd,
    docker: Docker,
    agent: Agent,
    keys: Keys,
}

impl Site {
    async fn start(values: &[(&'static str, &str)]) -> Self {
        let (etcd, docker) = (Etcd::start().await, Docker::for_apps().await);
        let mut all = vec![
            ("explicit", "true"),
            ("ip", r#""127.0.0.1""#),
            ("host", r#""host-1""#),
            ("interval", r#""200ms""#),
            ("timeout", r#""400ms""#),
            ("linger", r#""0s""#),
        ];
        all.extend(values);
        let keys = Keys::new(&all);
        let without = ["no --explicit", "no --ip", "no --host", "no --interval", "no --timeout", "no --linger"];
        let agent = Agent::start(&etcd, &[&without[..], &["--config", &keys.file.shown()]].concat());
        Self { etcd, docker, agent, keys }
    }

    async fn set(&mut self, values: &[(&'static str, &str)]) {
        let agent = &self.agent;
        self.keys.set(values, |key| agent.logged(&[CHANGED, &format!("key=\"{key}\"")]).len()).await;
    }

    /// As [`Self::set`], and waits until the service's one instance is asked and judged so: what reads the file tells of it before
    /// the agent has taken it in.
    async fn set_checks(&mut self, values: &[(&'static str, &str)], service: &str) {
        let words = ["it is asked as other settings say from now on", service];
        let before = self.agent.logged(&words).len();
        self.set(values).await;
        wait_until(SOON, "it is judged by them", async || match self.agent.logged(&words).len() > before {
            true => Ok(()),
            false => Err("not yet".to_owned()),
        })
        .await;
    }

    async fn app(&self, alias: &str, flags: &[&str]) -> (Container, String, SocketAddr) {
        let app = self.docker.app(alias, flags).await;
        let published = app.published(8000).await;
        (app, self.docker.service(alias), published)
    }
}

#[tokio::test]
async fn each_key_of_the_agents_checks_that_is_read_again_takes_effect() {
    within(240, async {
        let mut site = Site::start(&[("fall", "1000"), ("rise", "1"), ("log-level", r#""debug""#)]).await;
        let (app, web, at) = site.app("web", &["--label", "SERVICE_CHECK_HTTP=/well"]).await;
        wait_at(&site.etcd, &web, at, REGISTERED).await;
        let (slow, asleep, slow_at) = site.app("slow", &["--label", "SERVICE_CHECK_HTTP=/slow/1000"]).await;
        let (_script, exec, exec_at) = site.app("exec", &["--label", "SERVICE_CHECK_SCRIPT=/e2e-app is-well"]).await;

        tell(&app, "/become/503").await;
        stays(&site.etcd, &web, 1, secs(1)).await;
        site.set(&[("fall", "1")]).await;
        wait_none(&site.etcd, &web, SOON).await;

        site.set_checks(&[("rise", "1000")], &web).await;
        tell(&app, "/become/200").await;
        stays(&site.etcd, &web, 0, secs(1)).await;
        // From here on one answer that came late on a busy machine takes it out no more: it would stay out for an hour.
        site.set(&[("rise", "1"), ("fall", "1000")]).await;
        wait_at(&site.etcd, &web, at, SOON).await;

        site.set_checks(&[("interval", r#""1h""#)], &web).await;
        // Once more at once, since it is another check, and then no more for long.
        let asked = async || app.logs().await.matches("asked for /well").count();
        let mut last = asked().await;
        wait_until(SOON, "it is asked no more", async || {
            tokio::time::sleep(secs(1)).await;
            let now = asked().await;
            if std::mem::replace(&mut last, now) == now { Ok(()) } else { Err(now.to_string()) }
        })
        .await;
        tell(&app, "/become/503").await;
        stays(&site.etcd, &web, 1, secs(1)).await;
        site.set(&[("interval", r#""200ms""#), ("fall", "3")]).await;
        wait_none(&site.etcd, &web, SOON).await;

        stays(&site.etcd, &asleep, 0, secs(1)).await;
        site.set(&[("timeout", r#""20s""#)]).await;
        wait_at(&site.etcd, &asleep, slow_at, SOON).await;
        assert!(slow.logs().await.contains("listening"));

        assert_eq!(instances(site.etcd.address(), &exec).await.len(), 0);
        site.set(&[("allow-exec", "true")]).await;
        wait_at(&site.etcd, &exec, exec_at, SOON).await;
    })
    .await;
}

/// Where a container listens in a network.
async fn inside(container: &Container, network: &str) -> SocketAddr {
    let format = format!("{{{{(index .NetworkSettings.Networks {network:?}).IPAddress}}}}");
    let ip = docker_ok(&["inspect", "--format", &format, container.id()]).await;
    SocketAddr::new(ip.trim().parse().unwrap(), 8000)
}

#[tokio::test]
async fn each_key_of_what_the_agent_registers_that_is_read_again_takes_effect() {
    within(240, async {
        let mut site = Site::start(&[]).await;
        let (one, two) = (site.docker.network("one").await, site.docker.network("two").await);
        let name = site.docker.service("web");
        let label = format!("SERVICE_NAME={name}");
        let flags =
            ["--network", &one, "--publish", "8000", "--label", &label, "--label", "SERVICE_HOST=web.test", IMAGE];
        let app = site.docker.run("web", &flags).await;
        docker_ok(&["network", "connect", &two, app.id()]).await;
        let port = app.published(8000).await.port();
        wait_at(&site.etcd, &name, SocketAddr::from(([127, 0, 0, 1], port)), REGISTERED).await;

        site.set(&[("ip", r#""127.0.0.2""#)]).await;
        wait_at(&site.etcd, &name, SocketAddr::from(([127, 0, 0, 2], port)), SOON).await;

        site.set(&[("host", r#""host-2""#)]).await;
        wait_until(SOON, "the record names the host", async || {
            let instance = wait_one(&site.etcd, &name, SOON).await;
            if instance.record["host"] == "host-2" { Ok(()) } else { Err(instance.record.to_string()) }
        })
        .await;

        for (values, network) in
            [(vec![("internal", "true"), ("network", &*one)], &one), (vec![("network", &*two)], &two)]
        {
            let values: Vec<_> = values
                .into_iter()
                .map(|(key, value)| (key, if key == "network" { format!("{value:?}") } else { value.to_owned() }))
                .collect();
            let values: Vec<_> = values.iter().map(|(key, value)| (*key, value.as_str())).collect();
            site.set(&values).await;
            wait_at(&site.etcd, &name, inside(&app, network).await, SOON).await;
        }

        site.set(&[("domains", r#"["other.test"]"#)]).await;
        wait_none(&site.etcd, &name, SOON).await;
        site.set(&[("domains", r#"["web.test"]"#)]).await;
        wait_one(&site.etcd, &name, SOON).await;

        // One that nobody named is named by its host; the domains keep the containers of other tests out.
        let host = format!("{}.test", site.docker.service("unnamed"));
        let flags = ["--network", &two, "--publish", "8000", "--label", &format!("SERVICE_HOST={host}"), IMAGE];
        let unnamed = site.docker.run("unnamed", &flags).await;
        site.set(&[("domains", &format!("[{host:?}]"))]).await;
        wait_none(&site.etcd, &name, SOON).await;
        stays(&site.etcd, &host, 0, secs(1)).await;
        site.set(&[("explicit", "false")]).await;
        wait_at(&site.etcd, &host, inside(&unnamed, &two).await, SOON).await;
    })
    .await;
}

#[tokio::test]
async fn each_key_of_how_the_agent_lets_go_that_is_read_again_takes_effect() {
    within(240, async {
        let mut site =
            Site::start(&[("log-level", r#""info""#), ("linger", r#""1h""#), ("kill-grace", r#""1h""#)]).await;
        let (app, web, at) = site.app("web", &["--env", "LINGER_MS=600000"]).await;
        wait_at(&site.etcd, &web, at, REGISTERED).await;

        assert_eq!(site.agent.logged(&["DEBUG"]).len(), 0);
        site.set(&[("log-level", r#""debug""#)]).await;
        let status = async |wanted: &str, site: &Site| {
            wait_until(SOON, &format!("it is {wanted}"), async || {
                let instance = wait_one(&site.etcd, &web, SOON).await;
                if instance.status() == wanted { Ok(()) } else { Err(instance.record.to_string()) }
            })
            .await;
        };
        docker_ok(&["kill", "--signal", "TERM", app.id()]).await;
        status("draining", &site).await;
        assert!(!site.agent.logged(&["DEBUG"]).is_empty());

        // The grace of one that was told to stop is what it was then.
        site.set(&[("kill-grace", r#""1s""#)]).await;
        let (second, other, at) = site.app("other", &["--env", "LINGER_MS=600000"]).await;
        let before = wait_at(&site.etcd, &other, at, REGISTERED).await;
        docker_ok(&["kill", "--signal", "TERM", second.id()]).await;
        site.agent.wait_logged(SOON, &["it is told to stop", &other]).await;
        wait_until(SOON, "it is taken for running again", async || {
            let now = wait_one(&site.etcd, &other, SOON).await;
            if now.status() == before.status() { Ok(()) } else { Err(now.record.to_string()) }
        })
        .await;
        status("draining", &site).await;

        // What reads the file tells of it before the agent has taken it in.
        let has_taken_in = async |host: &str, site: &Site| {
            wait_until(SOON, &format!("its records name {host}"), async || {
                let instance = wait_one(&site.etcd, &other, SOON).await;
                if instance.record["host"] == host { Ok(()) } else { Err(instance.record.to_string()) }
            })
            .await;
        };
        // Told to stop, it would linger for an hour.
        site.set(&[("linger", r#""0s""#), ("keep-on-exit", "true"), ("host", r#""host-2""#)]).await;
        has_taken_in("host-2", &site).await;
        site.agent.stop().await;
        assert_eq!(instances(site.etcd.address(), &other).await.len(), 1, "it keeps its keys");
        site.agent.start_again();
        wait_until(SOON, "it has read its file", async || {
            // Those of other tests are among them.
            let looked = site.agent.logged(&["looked for keys of an earlier run"]);
            if looked.iter().any(|line| !line.ends_with("keys=0")) { Ok(()) } else { Err(format!("{looked:?}")) }
        })
        .await;
        site.set(&[("keep-on-exit", "false"), ("host", r#""host-3""#)]).await;
        has_taken_in("host-3", &site).await;
        site.agent.stop().await;
        assert_eq!(instances(site.etcd.address(), &other).await.len(), 0, "it takes them out");
    })
    .await;
}
