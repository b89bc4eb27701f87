//! `standalone`: one host without etcd. Docker, agent, memory, HAProxy, requests.

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex};

use e2e::docker::{Container, Docker};
use e2e::etcd::Etcd;
use e2e::fake_docker::{FakeDocker, Sickness, Spec};
use e2e::haproxy::{Haproxy, servers};
use e2e::load::Load;
use e2e::ports::free_address;
use e2e::process::{Finished, Process, find_program, find_workspace_binary, run};
use e2e::{default_template, http, secs, wait_until, within};
use nix::sys::signal::Signal;
use tempfile::TempDir;
use tokio::net::UnixDatagram;

use super::config::{File, wait_metric_at};

/// From the start of an application to its answers, on a machine that is busy with other tests.
const SERVED: std::time::Duration = secs(30);

/// One that reloads an HAProxy that is somebody else's, or runs one. It registers only what names a host of the test's own.
struct Standalone {
    process: Option<Process>,
    args: Vec<String>,
    http: SocketAddr,
    dir: TempDir,
}

impl Standalone {
    fn start(domain: &str, http: SocketAddr, flags: &[&str]) -> Standalone {
        let mut standalone = Standalone::prepare(domain, http, flags);
        standalone.start_again(&[]);
        standalone
    }

    fn prepare(domain: &str, http: SocketAddr, flags: &[&str]) -> Standalone {
        let dir = tempfile::Builder::new().prefix("e2e-standalone-").tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).display().to_string();
        let mut args = [
            "--explicit",
            "--domains",
            &format!("*.{domain}"),
            "--ip",
            "127.0.0.1",
            "--host",
            "host-1",
            "--interval",
            "500ms",
            "--timeout",
            "400ms",
            "--linger",
            "0s",
            "--state-dir",
            &path("state"),
            "--template",
            &default_template().display().to_string(),
            "--set",
            &format!("http_bind={http}"),
            "--set",
            &format!("stats_bind={}", free_address()),
            "--set",
            "log=stdout format raw local0 err",
            "--set",
            &format!("default_service=web-{domain}"),
            "--admin",
            &format!("unix:{}", path("admin.sock")),
        ]
        .map(str::to_owned)
        .to_vec();
        args.extend(flags.iter().map(|&flag| flag.to_owned()));
        if !flags.contains(&"--output") {
            args.extend(["--output".to_owned(), path("haproxy.cfg")]);
        }
        Standalone { process: None, args, http, dir }
    }

    /// Leaves out a flag, each time that it is given; `has_value` says whether a value follows it.
    fn without(mut self, flag: &str, has_value: bool) -> Standalone {
        while let Some(at) = self.args.iter().position(|arg| arg == flag) {
            self.args.drain(at..=at + usize::from(has_value));
        }
        self
    }

    fn beside(domain: &str, haproxy: &Haproxy) -> Standalone {
        let flags = [
            ("--output", haproxy.config()),
            ("--reload-socket", haproxy.master_socket()),
            ("--runtime-socket", haproxy.runtime_socket()),
        ];
        let flags: Vec<String> =
            flags.into_iter().flat_map(|(flag, path)| [flag.to_owned(), path.display().to_string()]).collect();
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        Standalone::start(domain, haproxy.http(), &flags)
    }

    /// Starts it with these flags too.
    fn start_again(&mut self, more: &[&str]) {
        let args: Vec<String> = self.args.iter().cloned().chain(more.iter().map(|&flag| flag.to_owned())).collect();
        let program = find_workspace_binary("standalone");
        self.process =
            Some(Process::start("standalone", &program, &args, &self.dir.path().join("log"), self.dir.path()));
    }

    async fn kill(&mut self) {
        self.process.take().unwrap().kill_now().await;
    }

    async fn stop(&mut self) {
        let mut process = self.process.take().unwrap();
        process.signal(Signal::SIGTERM);
        let status = process.wait(secs(20)).await;
        assert_eq!(status.code(), Some(0), "it ended with {status}");
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// Waits until the log has this text once more than `before`.
    async fn wait_logged(&self, text: &str, before: usize) {
        wait_until(SERVED, &format!("the log says {text:?}"), async || {
            if self.log().matches(text).count() > before { Ok(()) } else { Err(self.log()) }
        })
        .await;
    }

    async fn tell(&self, words: &[&str]) -> Finished {
        let mut args: Vec<&str> = words.to_vec();
        args.extend(self.args.iter().map(String::as_str));
        run(&find_workspace_binary("standalone"), &args, &[], secs(20)).await
    }

    async fn wait_serves(&self, containers: &[&Container]) {
        let wanted: BTreeSet<String> =
            containers.iter().map(|one| format!("Hello from {}\n", one.short_id())).collect();
        wait_until(SERVED, "exactly these containers answer", async || {
            let mut seen = BTreeSet::new();
            for _ in 0..16 {
                match http::get(self.http, "/").await {
                    Ok(reply) if reply.status == 200 => drop(seen.insert(reply.body)),
                    other => return Err(format!("{other:?}")),
                }
            }
            if seen == wanted { Ok(()) } else { Err(format!("{seen:?}")) }
        })
        .await;
    }
}

/// An application of the service `web-DOMAIN`, which takes everything.
async fn web(docker: &Docker, alias: &str) -> Container {
    let domain = docker.name().to_owned();
    let (name, host) = (format!("SERVICE_NAME=web-{domain}"), format!("SERVICE_HOST=web.{domain}"));
    docker.app(alias, &["--label", &name, "--label", &host, "--env", "LINGER_MS=5000"]).await
}

/// Two applications behind an HAProxy of its own that a standalone keeps right; they answer.
struct Site {
    docker: Docker,
    haproxy: Haproxy,
    standalone: Standalone,
    one: Container,
    two: Container,
}

impl Site {
    async fn start() -> Site {
        let docker = Docker::for_apps().await;
        let haproxy = Haproxy::start().await;
        let standalone = Standalone::beside(docker.name(), &haproxy);
        let (one, two) = (web(&docker, "one").await, web(&docker, "two").await);
        standalone.wait_serves(&[&one, &two]).await;
        Site { docker, haproxy, standalone, one, two }
    }
}

/// Looks at HAProxy's servers until it is dropped, and keeps the fewest that were there.
struct Watched {
    fewest: Arc<Mutex<Option<usize>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Watched {
    fn begin(haproxy: &Haproxy) -> Watched {
        let (socket, fewest) = (haproxy.runtime_socket(), Arc::new(Mutex::new(None)));
        let seen = Arc::clone(&fewest);
        let task = tokio::spawn(async move {
            loop {
                if let Ok(found) = servers(&socket).await {
                    let mut seen = seen.lock().unwrap();
                    *seen = Some(seen.unwrap_or(usize::MAX).min(found.len()));
                }
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
        });
        Watched { fewest, task }
    }

    fn end(self) -> usize {
        self.task.abort();
        self.fewest.lock().unwrap().expect("HAProxy was looked at")
    }
}

#[tokio::test]
async fn standalone_that_is_killed_and_started_again_takes_nothing_out_of_haproxy() {
    within(240, async {
        let Site { docker, haproxy, mut standalone, one, two } = Site::start().await;

        let load = Load::start(haproxy.http());
        load.wait_served(100).await;
        // Also where all that it knew is lost, and where the last container came right before its end.
        for loses_its_state in [false, true] {
            let watched = Watched::begin(&haproxy);
            standalone.kill().await;
            if loses_its_state {
                fs::remove_dir_all(standalone.dir.path().join("state")).unwrap();
            }
            load.wait_served(100).await;
            let before = standalone.log().matches("registry connected").count();
            standalone.start_again(&[]);
            standalone.wait_logged("registry connected", before).await;
            standalone.wait_serves(&[&one, &two]).await;
            load.wait_served(200).await;
            assert_eq!(watched.end(), 2, "a server left HAProxy\n{}", standalone.log());
        }
        let three = web(&docker, "three").await;
        standalone.wait_serves(&[&one, &two, &three]).await;
        let watched = Watched::begin(&haproxy);
        standalone.kill().await;
        let before = standalone.log().matches("registry connected").count();
        standalone.start_again(&[]);
        standalone.wait_logged("registry connected", before).await;
        load.wait_served(200).await;
        assert_eq!(watched.end(), 3, "a server left HAProxy\n{}", standalone.log());
        load.stop_after(700).await.assert_no_failure(700);

        // What has gone while nobody looked goes, and `docker stop` drains.
        standalone.kill().await;
        two.tell("stop").await;
        standalone.start_again(&[]);
        standalone.wait_serves(&[&one, &three]).await;
        let load = Load::start(haproxy.http());
        load.wait_served(100).await;
        three.tell("stop").await;
        standalone.wait_serves(&[&one]).await;
        load.stop_after(200).await.assert_no_failure(200);
    })
    .await;
}

#[tokio::test]
async fn standalone_that_is_told_to_stop_leaves_haproxy_as_it_is() {
    within(120, async {
        let Site { docker: _docker, haproxy, mut standalone, one, two } = Site::start().await;
        let (load, watched) = (Load::start(haproxy.http()), Watched::begin(&haproxy));
        standalone.stop().await;
        load.wait_served(100).await;
        standalone.wait_serves(&[&one, &two]).await;
        standalone.start_again(&[]);
        standalone.wait_logged("registry connected", 1).await;
        load.wait_served(100).await;
        assert_eq!(watched.end(), 2, "a server left HAProxy\n{}", standalone.log());
        load.stop_after(300).await.assert_no_failure(300);
    })
    .await;
}

#[tokio::test]
async fn from_one_host_to_etcd_and_back_no_instance_leaves_haproxy() {
    within(180, async {
        let etcd = Etcd::start().await;
        let Site { docker, haproxy, mut standalone, one, two } = Site::start().await;
        let (load, watched) = (Load::start(haproxy.http()), Watched::begin(&haproxy));
        standalone.stop().await;
        let url = etcd.url();
        standalone.start_again(&["--etcd", &url]);
        standalone.wait_logged("registry connected", 1).await;
        let keys = e2e::agent::instances(etcd.address(), &format!("web-{}", docker.name())).await;
        assert_eq!(keys.len(), 2, "{keys:?}");
        standalone.wait_serves(&[&one, &two]).await;
        load.wait_served(200).await;
        standalone.stop().await;
        standalone.start_again(&[]);
        standalone.wait_logged("registry connected", 2).await;
        standalone.wait_serves(&[&one, &two]).await;
        load.wait_served(200).await;
        assert_eq!(watched.end(), 2, "a server left HAProxy\n{}", standalone.log());
        load.stop_after(500).await.assert_no_failure(500);
    })
    .await;
}

#[tokio::test]
async fn a_supervised_standalone_says_what_it_has_and_why_from_its_memory() {
    within(180, async {
        let docker = Docker::for_apps().await;
        let mut standalone = Standalone::start(docker.name(), free_address(), &[]);
        let one = web(&docker, "one").await;
        standalone.wait_serves(&[&one]).await;
        let service = format!("web-{}", docker.name());
        let container = format!("{}-one", docker.name());
        // It serves a moment before it shows that it does.
        for (words, texts) in [
            (&["list"][..], &[service.as_str(), "running", &container][..]),
            (&["status"], &[&service, "memory of this process", "All is well."]),
            (&["render"], &[&format!("backend {service}")]),
            (&["check"], &["good with the registered services"]),
        ] {
            wait_until(secs(20), &format!("{words:?} says {texts:?}"), async || {
                let said = standalone.tell(words).await;
                assert!(!said.stdout.contains("etcd"), "{words:?}: there is none: {}", said.stdout);
                let has_all = texts.iter().all(|text| said.stdout.contains(*text));
                if said.code == Some(0) && has_all { Ok(()) } else { Err(format!("{said:?}")) }
            })
            .await;
        }
        wait_until(secs(20), "the whole way is explained", async || {
            let said = standalone.tell(&["explain", &container]).await;
            let texts =
                ["From Docker", "it answers", "is in the registry in memory: running", "From the registry", "HAProxy"];
            let has_all = texts.iter().all(|text| said.stdout.contains(text)) && !said.stdout.contains("NO");
            assert!(!said.stdout.contains("etcd"), "there is none: {}", said.stdout);
            if said.code == Some(0) && has_all { Ok(()) } else { Err(said.stdout) }
        })
        .await;
        let said = standalone.tell(&["explain", &service]).await;
        assert!(said.code == Some(0) && !said.stdout.contains("From Docker"), "{}", said.stdout);
        let said = standalone.tell(&["explain", "nobody"]).await;
        assert!(said.code == Some(1) && said.stdout.contains("Docker knows no container"), "{}", said.stdout);
        let said = standalone.tell(&["drain"]).await;
        assert!(said.code == Some(2) && said.stderr.contains("docker stop"), "{}", said.stderr);

        // A health check that knows none of the flags, with a file that is not good any more.
        let bad = File::new("no-such-key = 1\n");
        let state = standalone.dir.path().join("state").display().to_string();
        let env = [("STANDALONE_STATE_DIR", state.as_str()), ("STANDALONE_CONFIG", &bad.shown())];
        let asks = async |args: &[&str]| run(&find_workspace_binary("standalone"), args, &env, secs(20)).await;
        let said = asks(&["health"]).await;
        assert!(said.code == Some(0) && said.stdout.contains(&standalone.http.to_string()), "{said:?}");
        let said = asks(&["health", "--output", "/no/such/file"]).await;
        assert!(said.code == Some(1) && said.stderr.lines().any(|line| line.starts_with("standalone: ")), "{said:?}");

        // HAProxy goes with it, and there is nobody to ask.
        standalone.stop().await;
        let said = standalone.tell(&["status"]).await;
        assert!(said.code == Some(3) && said.stderr.starts_with("standalone: "), "{said:?}");
        assert!(http::get(standalone.http, "/").await.is_err());
        let said = standalone.tell(&["list"]).await;
        assert!(said.code == Some(3) && said.stderr.contains("admin"), "{}", said.stderr);
        let said = standalone.tell(&["check"]).await;
        assert!(said.code == Some(0) && said.stderr.contains("without what is registered now"), "{}", said.stderr);
    })
    .await;
}

#[tokio::test]
async fn a_standalone_whose_docker_does_not_answer_says_so_until_it_does() {
    within(120, async {
        let mut docker = FakeDocker::absent();
        let path = docker.path().display().to_string();
        let standalone = Standalone::start("nobody.test", free_address(), &["--docker", &path]);
        let says = async |code: i32, text: &str| {
            wait_until(secs(30), &format!("status says {text:?}"), async || {
                let said = standalone.tell(&["status"]).await;
                if said.code == Some(code) && said.stdout.contains(text) { Ok(()) } else { Err(format!("{said:?}")) }
            })
            .await;
        };
        let trouble = "Docker does not tell which containers run. What is registered stays.";
        says(1, trouble).await;
        // It has a stream of events, which is only half of it.
        docker.falls_ill("/containers/json", Sickness::Says500);
        docker.listen();
        says(1, "layer does not exist").await;
        docker.recovers();
        says(0, "All is well.").await;
        docker.close();
        says(1, trouble).await;
    })
    .await;
}

#[tokio::test]
async fn what_a_standalone_explains_says_no_once_names_its_own_commands_and_says_where_docker_is_away() {
    within(120, async {
        let mut docker = FakeDocker::start();
        // HAProxy's check is content with one that is not spoken to.
        let application = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = application.local_addr().unwrap().port();
        let spec = |name: &str, port: u16| {
            let spec = Spec::new(name, name, (std::net::Ipv4Addr::LOCALHOST, 8000), port);
            spec.label("SERVICE_HOST", &format!("{name}.nobody.test")).label("SERVICE_CHECK_NONE", "true")
        };
        docker.run(&spec("good", port));
        docker.run(&spec("heavy", port + 1).label("SERVICE_WEIGHT", "heavy"));
        let path = docker.path().display().to_string();
        let standalone = Standalone::start("nobody.test", free_address(), &["--docker", &path]);
        let explain = async |name: &str| standalone.tell(&["explain", name]).await;
        let wait_good = async |text: &str| {
            wait_until(SERVED, &format!("it is served, and explained with {text:?}"), async || {
                let said = explain("good").await;
                let is_it = said.code == Some(0) && said.stdout.contains(text) && !said.stdout.contains("-> NO");
                if is_it { Ok(()) } else { Err(format!("{said:?}")) }
            })
            .await;
        };
        wait_good("From Docker to the registry:\n   yes  Docker knows container good").await;
        let said = explain("heavy").await;
        assert_eq!((said.code, said.stdout.matches("-> NO").count()), (Some(1), 1), "{}", said.stdout);
        assert!(said.stdout.contains("-> NO   port 8000: SERVICE_WEIGHT"), "{}", said.stdout);
        assert!(
            said.stdout.ends_with("From the registry to HAProxy:\n        not asked: the way ends before it\n"),
            "{}",
            said.stdout
        );
        let said = explain("goood").await;
        assert_eq!((said.code, said.stdout.matches("-> NO").count()), (Some(1), 1), "{}", said.stdout);
        assert!(
            said.stdout.contains("one of these meant: good") && said.stdout.contains("`standalone list`"),
            "{}",
            said.stdout
        );
        for text in ["`discoverer", "`registrar"] {
            assert!(!said.stdout.contains(text), "its image has no {text}: {}", said.stdout);
        }
        docker.close();
        wait_good("From Docker to the registry:\n        there is no Docker").await;
    })
    .await;
}

#[tokio::test]
async fn systemd_hears_that_a_standalone_is_ready_when_both_halves_are() {
    within(90, async {
        let dir = tempfile::Builder::new().prefix("e2e-standalone-").tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).display().to_string();
        // The discoverer's half begins when HAProxy has told its version.
        let haproxy = find_program("haproxy", "haproxy").display().to_string();
        let slow = format!("#!/bin/sh\nuntil [ -e {} ]; do sleep 0.1; done\nexec {haproxy} \"$@\"\n", path("go"));
        fs::write(path("haproxy"), slow).unwrap();
        fs::set_permissions(path("haproxy"), fs::Permissions::from_mode(0o755)).unwrap();
        let systemd = UnixDatagram::bind(path("notify")).unwrap();
        let mut args = vec![
            format!("NOTIFY_SOCKET={}", path("notify")),
            find_workspace_binary("standalone").display().to_string(),
            format!("--docker={}", path("no-docker.sock")),
        ];
        args.extend(["--admin=off", "--ip=127.0.0.1", "--host=host-1"].map(str::to_owned));
        args.push(format!("--set=http_bind={}", free_address()));
        args.push(format!("--set=stats_bind={}", free_address()));
        for (flag, value) in [
            ("haproxy", path("haproxy")),
            ("state-dir", path("state")),
            ("output", path("haproxy.cfg")),
            ("template", default_template().display().to_string()),
        ] {
            args.push(format!("--{flag}={value}"));
        }
        let env = find_program("env", "coreutils");
        fs::create_dir(path("state")).unwrap();
        let mut process = Process::start("standalone", &env, &args, Path::new(&path("log")), dir.path());

        let hear = async |wanted: &str| {
            let mut heard = String::new();
            while !heard.contains(wanted) {
                let mut text = [0; 4096];
                let Ok(length) = tokio::time::timeout(secs(40), systemd.recv(&mut text)).await else {
                    panic!("{wanted}: {heard}\n{}", fs::read_to_string(path("log")).unwrap_or_default());
                };
                heard += &String::from_utf8_lossy(&text[..length.unwrap()]);
                heard.push('\n');
            }
            heard
        };
        // The agent turns, and a SIGHUP changes nothing of it.
        let heard = hear("STATUS=0 keys in the registry in memory").await;
        assert!(!heard.contains("READY=1") && !heard.contains("WATCHDOG=1"), "{heard}");
        process.signal(Signal::SIGHUP);
        wait_until(secs(20), "the settings are read again", async || {
            let log = fs::read_to_string(path("log")).unwrap();
            if log.contains("everything is read again") { Ok(()) } else { Err(log) }
        })
        .await;
        fs::write(path("go"), "").unwrap();
        let heard = hear("READY=1").await;
        assert!(!heard.contains("RELOADING=1"), "{heard}");
        let heard = hear("; ").await;
        assert!(heard.contains("the registry in memory") && !heard.contains("etcd"), "{heard}");
        process.signal(Signal::SIGTERM);
        hear("STOPPING=1").await;
        assert_eq!(process.wait(secs(20)).await.code(), Some(0));
    })
    .await;
}

#[tokio::test]
async fn what_the_file_of_a_standalone_says_both_halves_take_at_once() {
    within(150, async {
        let docker = Docker::for_apps().await;
        let (http, admin, stats) = (free_address(), free_address(), free_address());
        let text = |domains: &str, stats: SocketAddr, more: &str| {
            format!(
                "explicit = true\ndomains = [\"{domains}\"]\n{more}\n[set]\nhttp_bind = \"{http}\"\nstats_bind = \"{stats}\"\n\
                 log = \"stdout format raw local0 err\"\ndefault_service = \"web-{}\"\n",
                docker.name()
            )
        };
        let own = format!("*.{}", docker.name());
        let file = File::new(&text(&own, stats, ""));
        let mut standalone = Standalone::prepare(docker.name(), http, &["--config", &file.shown()])
            .without("--explicit", false)
            .without("--domains", true)
            .without("--set", true)
            .without("--admin", true);
        standalone.args.extend(["--admin".to_owned(), admin.to_string()]);
        standalone.start_again(&[]);
        let is_good = async |value: u8| {
            wait_metric_at(admin, "/metrics", &format!("discoverer_config_good {value}")).await;
            wait_metric_at(admin, "/registrar/metrics", &format!("registrar_config_good {value}")).await;
        };
        let one = web(&docker, "one").await;
        standalone.wait_serves(&[&one]).await;
        is_good(1).await;

        // The discoverer's half: HAProxy listens somewhere else. What needs a restart is said so.
        let other = free_address();
        file.write(&text(&own, other, "ttl = \"30s\"\nwatch-timeout = \"4s\""));
        wait_until(SERVED, "HAProxy has its statistics where the file says", async || {
            http::get(other, "/").await.map(|_| ()).map_err(|error| error.to_string())
        })
        .await;
        let log = standalone.log();
        for key in ["ttl", "watch-timeout"] {
            let is_it = |line: &&str| line.contains("this takes effect after a restart") && line.contains(key);
            assert_eq!(log.lines().filter(is_it).count(), 1, "{key}: {log}");
        }
        let restart = log.lines().find(|line| line.contains("stats_bind") && line.contains("after a restart"));
        assert_eq!(restart, None);

        // The agent's half: the application names no host that counts.
        file.write(&text("nobody.example", other, ""));
        wait_until(SERVED, "the application is not routed to", async || match http::get(http, "/").await {
            Ok(reply) if reply.status == 503 || reply.status == 404 => Ok(()),
            reply => Err(format!("{reply:?}")),
        })
        .await;

        // A key that is none changes nothing, and ends nobody.
        file.write(&text(&own, stats, "intervall = \"1s\""));
        standalone.wait_logged("unknown key intervall", 0).await;
        is_good(0).await;
        assert!(http::get(other, "/").await.is_ok() && http::get(http, "/").await.unwrap().status != 200);
        file.write(&text(&own, other, ""));
        is_good(1).await;
        standalone.wait_serves(&[&one]).await;
        standalone.stop().await;

        // At its start it does.
        file.write(&text(&own, other, "intervall = \"1s\""));
        let said = standalone.tell(&[]).await;
        assert!(said.code == Some(2) && said.stderr.contains("line 3: unknown key intervall"), "{said:?}");
    })
    .await;
}
