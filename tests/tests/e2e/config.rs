//! The configuration file, and reading it again.

use std::fs;
use std::path::{Path, PathBuf};

use e2e::agent::{Agent, REGISTERED, wait_at, wait_none};
use e2e::backend::Backend;
use e2e::discoverer::{Discoverer, SOON, run_discoverer};
use e2e::docker::Docker;
use e2e::etcd::Etcd;
use e2e::ports::free_address;
use e2e::process::{Finished, find_workspace_binary, run};
use e2e::registrar::run_registrar;
use e2e::{http, wait_until, within};
use nix::sys::signal::Signal;
use tempfile::TempDir;

/// A configuration file, which is replaced as editors do.
pub(crate) struct File(TempDir);

impl File {
    pub(crate) fn new(text: &str) -> Self {
        let file = Self(tempfile::Builder::new().prefix("e2e-config-").tempdir().unwrap());
        file.write(text);
        file
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("config.toml")
    }

    pub(crate) fn shown(&self) -> String {
        self.path().display().to_string()
    }

    pub(crate) fn write(&self, text: &str) {
        let other = self.0.path().join("config.toml~");
        fs::write(&other, text).unwrap();
        fs::rename(other, self.path()).unwrap();
    }
}

pub(crate) async fn wait_metric_at(admin: std::net::SocketAddr, path: &str, line: &str) {
    wait_until(SOON, &format!("the metrics have {line}"), async || {
        let text = http::get(admin, path).await.map_err(|error| error.to_string())?.body;
        if text.lines().any(|one| one == line) { Ok(()) } else { Err(http_tail(&text)) }
    })
    .await;
}

async fn wait_metric(admin: std::net::SocketAddr, line: &str) {
    wait_metric_at(admin, "/metrics", line).await;
}

/// How often the registry was listed.
async fn lists_total(admin: std::net::SocketAddr) -> Result<u64, String> {
    let text = http::get(admin, "/metrics").await.map_err(|error| error.to_string())?.body;
    let value = text.lines().find_map(|line| line.strip_prefix("discoverer_registry_lists_total ")?.parse().ok());
    value.ok_or(text)
}

/// Waits until a health check says that all is well, and gives what it said: HAProxy of a busy machine may answer late.
async fn wait_healthy(check: impl AsyncFn() -> Finished) -> Finished {
    wait_until(SOON, "it is healthy", async || {
        let told = check().await;
        if told.code == Some(0) { Ok(told) } else { Err(format!("{told:?}")) }
    })
    .await
}

fn http_tail(text: &str) -> String {
    text.lines().filter(|line| line.contains("config")).collect::<Vec<_>>().join("; ")
}

#[tokio::test]
async fn the_discoverer_takes_what_its_file_says_at_once_and_keeps_what_was_good() {
    within(120, async {
        let (etcd, admin) = (Etcd::start().await, free_address());
        let file = File::new("log-level = \"info\"\n");
        let template = e2e::discoverer::TemplateFile::new(super::templates::TEMPLATE);
        let mut discoverer = Discoverer::supervise(&etcd.url())
            .admin(admin)
            .template(template.path())
            .args(&["--config", &file.shown()])
            .start();
        let web = Backend::start("web").await;
        etcd.put(&web.key_in("web"), "running").await;
        discoverer.wait_host("web.test", "web").await;
        wait_metric(admin, "discoverer_config_good 1").await;

        // A file of which one key takes effect at once and one does not.
        file.write("log-level = \"debug\"\nlisten-ports = [6000]\nhaproxy = \"elsewhere\"\nwatch-timeout = \"4s\"\n");
        discoverer.wait_logged("the configuration has changed", &[("key", "log-level"), ("value", "debug")]).await;
        let later = "the configuration has changed; this takes effect after a restart";
        discoverer.wait_logged(later, &[("key", "watch-timeout")]).await;
        assert!(discoverer.logged(later).iter().all(|event| event["key"] != "haproxy"), "a flag wins");

        // One that is wrong changes nothing, and is shown.
        file.write("log-level = \"debug\"\nmin-interval = 5\n");
        discoverer.wait_logged("the configuration cannot be used", &[("error", "line 2: min-interval")]).await;
        wait_metric(admin, "discoverer_config_good 0").await;
        let status = http::get(admin, "/api/v1/status").await.unwrap().body;
        assert!(status.contains("line 2: min-interval") && status.contains("The former one goes on"), "{status}");
        // Whoever asks for HAProxy's health is told of HAProxy.
        let output = discoverer.output().display().to_string();
        let told =
            wait_healthy(async || run_discoverer(&["health", "--config", &file.shown(), "--output", &output]).await)
                .await;
        assert!(told.stderr.contains("line 2: min-interval"), "{told:?}");
        // Nor is one taken with which a start would fail.
        file.write("etcd-ca = \"/no/such/file\"\n");
        discoverer.wait_logged("the configuration cannot be used", &[("error", "/no/such/file")]).await;
        wait_metric(admin, "discoverer_config_good 0").await;
        let two = Backend::start("two").await;
        etcd.put(&two.key_in("two"), "running").await;
        discoverer.wait_host("two.test", "two").await;
        file.write("log-level = \"debug\"\n");
        wait_metric(admin, "discoverer_config_good 1").await;

        // SIGHUP ends nobody, and everything is read again.
        let lists = discoverer.logged("everything is read again").len();
        let listed = lists_total(admin).await.unwrap();
        discoverer.process().signal(Signal::SIGHUP);
        discoverer.wait_logged("everything is read again", &[("signal", "SIGHUP")]).await;
        assert_eq!(lists, 0);
        // A busy machine may have needed more than one before.
        wait_until(SOON, "the registry was listed once more", async || {
            let now = lists_total(admin).await?;
            if now > listed { Ok(()) } else { Err(now.to_string()) }
        })
        .await;
        discoverer.wait_host("web.test", "web").await;
    })
    .await;
}

#[tokio::test]
async fn a_health_check_that_knows_none_of_the_flags_finds_haproxy_by_the_state_directory() {
    within(60, async {
        let etcd = Etcd::start().await;
        let discoverer = Discoverer::supervise(&etcd.url()).start();
        let web = Backend::start("web").await;
        etcd.put(&web.key_in("web"), "running").await;
        discoverer.wait_host("web.test", "web").await;
        let binary = find_workspace_binary("discoverer");
        let state = discoverer.state_dir().display().to_string();
        let env = [("DISCOVERER_STATE_DIR", state.as_str()), ("DISCOVERER_CONFIG", "/no/such/file")];
        wait_healthy(async || run(&binary, &["health"], &env, SOON).await).await;
        let moved = run(&binary, &["health", "--output", "/no/such/file"], &env, SOON).await;
        assert!(moved.code == Some(1) && moved.stderr.contains("/no/such/file"), "{moved:?}");
    })
    .await;
}

#[tokio::test]
async fn options_of_the_file_change_what_haproxy_runs_and_bad_ones_leave_the_last_good_file() {
    within(120, async {
        let etcd = Etcd::start().await;
        let (http, file) = (free_address(), File::new(""));
        let options = |more: &str| format!("[set]\nhttp_bind = \"{http}\"\nmark = \"{more}\"\n");
        file.write(&options("first"));
        let text = super::templates::TEMPLATE.replace("defaults\n", "# mark {{ options.mark }}\n{{ options.mark | replace(from=\"bad\", to=\"nonsense\") | replace(from=\"first\", to=\"\") | replace(from=\"second\", to=\"\") }}\ndefaults\n");
        let template = e2e::discoverer::TemplateFile::new(&text);
        let state = tempfile::tempdir().unwrap();
        let output = state.path().join("haproxy.cfg");
        let program = e2e::process::find_workspace_binary("discoverer");
        let args = [
            "--etcd", &etcd.url(), "--config", &file.shown(), "--supervise", "--admin", "off", "--log-format", "json",
            "--state-dir", &state.path().display().to_string(), "--output", &output.display().to_string(),
            "--template", &template.path().display().to_string(),
        ]
        .map(str::to_owned);
        let log = state.path().join("log");
        let _process = e2e::process::Process::start("discoverer", &program, &args, &log, state.path());
        let has = async |text: &str| {
            wait_until(SOON, &format!("the file has {text}"), async || {
                let config = fs::read_to_string(&output).unwrap_or_default();
                if config.contains(text) { Ok(()) } else { Err(e2e::process::tail(&fs::read_to_string(&log).unwrap_or_default())) }
            })
            .await;
        };
        let answers = async |host: &str, name: &str| {
            wait_until(SOON, &format!("{host} is served"), async || {
                let reply = http::get_host(http, host).await.map_err(|error| error.to_string())?;
                if reply.body.contains(name) { Ok(()) } else { Err(reply.body) }
            })
            .await;
        };
        let web = Backend::start("web").await;
        etcd.put(&web.key_in("web"), "running").await;
        has("# mark first").await;
        file.write(&options("second"));
        has("# mark second").await;
        file.write(&options("bad"));
        wait_until(SOON, "HAProxy refuses it", async || {
            let log = fs::read_to_string(&log).unwrap_or_default();
            if log.contains("file refused") { Ok(()) } else { Err(e2e::process::tail(&log)) }
        })
        .await;
        // The last good options go on, with new instances.
        let two = Backend::start("two").await;
        etcd.put(&two.key_in("two"), "running").await;
        answers("two.test", "two").await;
        has("# mark second").await;
        file.write(&options("first"));
        has("# mark first").await;
        answers("web.test", "web").await;
    })
    .await;
}

#[tokio::test]
async fn the_agent_takes_what_its_file_says_at_once_and_sighup_does_not_end_it() {
    within(120, async {
        let (etcd, docker) = (Etcd::start().await, Docker::for_apps().await);
        let file = File::new("explicit = true\n");
        let mut agent = Agent::start(&etcd, &["no --explicit", "--admin", "127.0.0.1:0", "--config", &file.shown()]);
        let admin = agent.admin().await;
        let (app, web) = (docker.app("web", &[]).await, docker.service("web"));
        let published = app.published(8000).await;
        wait_at(&etcd, &web, published, REGISTERED).await;
        wait_metric(admin, "registrar_config_good 1").await;

        file.write("explicit = true\ndomains = [\"nobody.example\"]\nttl = \"30s\"\n");
        let later = "the configuration has changed; this takes effect after a restart";
        agent.wait_logged(SOON, &[later, "ttl"]).await;
        wait_none(&etcd, &web, SOON).await;

        file.write("explicit = tru\n");
        agent.wait_logged(SOON, &["ERROR", "the configuration cannot be used", "line 1"]).await;
        wait_metric(admin, "registrar_config_good 0").await;

        file.write("explicit = true\n");
        wait_at(&etcd, &web, published, REGISTERED).await;
        wait_metric(admin, "registrar_config_good 1").await;

        // One with which a start would fail.
        file.write("explicit = true\netcd-ca = \"/no/such/file\"\n");
        agent.wait_logged(SOON, &["the configuration cannot be used", "/no/such/file"]).await;
        wait_metric(admin, "registrar_config_good 0").await;
        file.write("explicit = true\n");
        wait_metric(admin, "registrar_config_good 1").await;

        agent.process().signal(Signal::SIGHUP);
        agent.wait_logged(SOON, &["everything is read again"]).await;
        wait_at(&etcd, &web, published, REGISTERED).await;
        agent.assert_runs();
    })
    .await;
}

async fn both(args: &[&str], file: &Path) -> [Finished; 2] {
    let file = file.display().to_string();
    let all: Vec<&str> = args.iter().copied().chain(["--config", &file]).collect();
    let agent: Vec<&str> = ["agent"].into_iter().chain(all.iter().copied()).collect();
    [run_discoverer(&all).await, run_registrar(&agent).await]
}

#[tokio::test]
async fn a_file_that_cannot_be_used_ends_the_programs_with_2_and_the_place() {
    within(60, async {
        let file = File::new("etcd = \"http://u:hunter2@127.0.0.1:1\"\n\nintervall = \"1s\"\n");
        for end in both(&[], &file.path()).await {
            assert_eq!(end.code, Some(2), "{end:?}");
            assert!(end.stderr.contains("config.toml line 3: unknown key intervall"), "{end:?}");
        }
        file.write("etcd = \"ftp://u:hunter2@127.0.0.1:1\"\n");
        for end in both(&[], &file.path()).await {
            assert!(end.code == Some(2) && end.stderr.contains("line 1: etcd:"), "{end:?}");
            assert!(!end.stderr.contains("hunter2"), "{end:?}");
        }
        for end in both(&["--print-config"], &file.path().with_file_name("missing.toml")).await {
            assert!(end.code == Some(2) && end.stderr.contains("there is no such file"), "{end:?}");
        }
    })
    .await;
}

#[tokio::test]
async fn what_a_program_prints_as_its_configuration_is_one_and_has_no_password() {
    within(60, async {
        let file = File::new("etcd = [\"http://127.0.0.1:1\", \"http://127.0.0.1:2\"]\n");
        let first = both(&["--print-config", "--key", "a"], &file.path()).await;
        for (first, at) in first.into_iter().zip(0..) {
            assert_eq!(first.code, Some(0), "{first:?}");
            assert!(first.stdout.contains("key = \"a\"  # --key\n"), "{first:?}");
            let printed = File::new(&first.stdout);
            let again = &both(&["--print-config"], &printed.path()).await[at];
            let plain = |text: &str| {
                text.lines().map(|line| line.split("  # ").next().unwrap_or_default().to_owned()).collect::<Vec<_>>()
            };
            assert_eq!((plain(&again.stdout), again.code), (plain(&first.stdout), Some(0)), "{again:?}");
        }
        let program = e2e::process::find_workspace_binary("discoverer");
        let env =
            [("DISCOVERER_ETCD", "http://u:hunter2@127.0.0.1:1"), ("DISCOVERER_ADMIN_TOKEN", "hunter2hunter2hunter2")];
        let hidden = run(&program, &["--print-config"], &env, SOON).await;
        assert!(hidden.code == Some(0) && hidden.stdout.contains("# etcd = \"http://...@127.0.0.1:1\""), "{hidden:?}");
        assert!(!hidden.stdout.contains("hunter2"), "{hidden:?}");
    })
    .await;
}
