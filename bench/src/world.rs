//! The programs that are measured, each with a directory of its own: etcd, the discoverer with its HAProxy, and a second
//! HAProxy of the same configuration.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use e2e::cluster::Api;
use e2e::etcd::Etcd;
use e2e::ports::free_address;
use e2e::process::{Process, find_program, run};
use serde_json::json;
use tempfile::TempDir;
use tokio::time::sleep;

use crate::machine;
use crate::wire::{Kept, cli, get_once, master_cli};

/// The limit on anything that is waited for between two measurements.
const LIMIT: Duration = Duration::from_secs(60);
/// How often it is looked at.
const LOOK_AGAIN: Duration = Duration::from_millis(10);
/// How many write to etcd at once when it is filled.
const FILLERS: usize = 8;
/// The name of the service that is measured.
pub(crate) const SERVICE: &str = "web";

/// Builds a program as it is released, and gives its path. With the registrar comes the application of its containers.
pub(crate) fn build(name: &str) -> anyhow::Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let packages: &[&[&str]] = if name == "registrar" { &[&[name], &["e2e", "--bin", "e2e-app"]] } else { &[&[name]] };
    for package in packages {
        let status = Command::new(&cargo).args(["build", "--release", "--package"]).args(*package).status();
        ensure!(status.context("cargo")?.success(), "{} cannot be built", package.join(" "));
    }
    let bench = std::env::current_exe()?;
    let target = bench.parent().and_then(Path::parent).context("the benchmark does not lie in cargo's directory")?;
    let path = target.join("release").join(name);
    ensure!(path.is_file(), "{} is absent", path.display());
    Ok(path)
}

/// Waits until a condition holds; it says what is there instead.
pub(crate) async fn wait(what: &str, condition: impl FnMut() -> Result<bool, String>) -> anyhow::Result<Duration> {
    wait_within(LIMIT, what, condition).await
}

/// As [`wait`], with another limit.
pub(crate) async fn wait_within(
    limit: Duration,
    what: &str,
    mut condition: impl FnMut() -> Result<bool, String>,
) -> anyhow::Result<Duration> {
    let start = Instant::now();
    loop {
        let seen = match condition() {
            Ok(true) => return Ok(start.elapsed()),
            Ok(false) => String::new(),
            Err(seen) => seen,
        };
        ensure!(start.elapsed() < limit, "waited {limit:?}, but not: {what}; {seen}");
        sleep(LOOK_AGAIN).await;
    }
}

/// The programs that are measured, as far as they are.
pub(crate) struct Programs {
    pub(crate) discoverer: Option<PathBuf>,
    pub(crate) registrar: Option<PathBuf>,
}

/// What every measurement uses: etcd and the programs' paths.
pub(crate) struct Tools {
    pub(crate) etcd: Etcd,
    programs: Programs,
    prefixes: AtomicUsize,
}

impl Tools {
    pub(crate) async fn new(programs: Programs) -> anyhow::Result<Self> {
        Ok(Self { etcd: Etcd::start().await, programs, prefixes: AtomicUsize::new(0) })
    }

    pub(crate) fn registrar(&self) -> anyhow::Result<&Path> {
        self.programs.registrar.as_deref().context("the registrar was not built")
    }

    pub(crate) fn discoverer(&self) -> anyhow::Result<&Path> {
        self.programs.discoverer.as_deref().context("the discoverer was not built")
    }

    /// A prefix that nobody has used.
    pub(crate) fn prefix(&self) -> String {
        format!("bench{}", self.prefixes.fetch_add(1, Ordering::Relaxed))
    }

    pub(crate) async fn versions(&self) -> String {
        let first = |text: &str| text.lines().next().unwrap_or_default().to_owned();
        let etcd = run(&find_program("etcd", "etcd-server"), &["--version"], &[], LIMIT).await.stdout;
        let version = run(&haproxy(), &["-v"], &[], LIMIT).await.stdout;
        let haproxy: Vec<&str> = version.split_whitespace().take(3).collect();
        format!("{}, {}", first(&etcd).replace(" Version:", ""), haproxy.join(" ").replace(" version", ""))
    }

    /// As [`Tools::put`], by one of etcd's APIs.
    pub(crate) fn put_by(&self, api: Api, connection: &mut Kept, key: &str, value: &str) -> anyhow::Result<()> {
        if api == Api::V2 {
            return self.put(connection, key, value);
        }
        let body = json!({"key": BASE64.encode(format!("/{key}")), "value": BASE64.encode(value)});
        let answer = connection.ask("POST", "/v3/kv/put", &body.to_string(), false)?;
        ensure!(answer.status == 200, "PUT {key}: {answer:?}");
        Ok(())
    }

    /// As [`Tools::delete`], by one of etcd's APIs.
    pub(crate) fn delete_by(&self, api: Api, connection: &mut Kept, key: &str) -> anyhow::Result<()> {
        if api == Api::V2 {
            return self.delete(connection, key);
        }
        let body = json!({"key": BASE64.encode(format!("/{key}"))});
        let answer = connection.ask("POST", "/v3/kv/deleterange", &body.to_string(), false)?;
        ensure!(answer.status == 200 && answer.body.contains("deleted"), "DELETE {key}: {answer:?}");
        Ok(())
    }

    /// Writes a key at once, as the clock wants it: the answer has been read whole when this returns.
    pub(crate) fn put(&self, connection: &mut Kept, key: &str, value: &str) -> anyhow::Result<()> {
        let body = format!("value={}", e2e::http::encode(value));
        let answer = connection.ask("PUT", &format!("/v2/keys/{key}"), &body, false)?;
        ensure!(matches!(answer.status, 200 | 201), "PUT {key}: {answer:?}");
        Ok(())
    }

    /// Removes a key.
    pub(crate) fn delete(&self, connection: &mut Kept, key: &str) -> anyhow::Result<()> {
        let answer = connection.ask("DELETE", &format!("/v2/keys/{key}"), "", false)?;
        ensure!(answer.status == 200, "DELETE {key}: {answer:?}");
        Ok(())
    }

    /// How many instances there are below a prefix.
    pub(crate) fn count(&self, prefix: &str) -> anyhow::Result<usize> {
        let path = format!("/v2/keys/{prefix}?recursive=true");
        let answer = Kept::open(self.etcd.address())?.ask("GET", &path, "", true)?;
        Ok(answer.body.matches("\"value\":").count())
    }

    /// Waits until there are so many, and gives the moment.
    pub(crate) async fn wait_count(&self, prefix: &str, count: usize) -> anyhow::Result<Instant> {
        wait(&format!("{count} instances below {prefix}"), || match self.count(prefix) {
            Ok(seen) if seen == count => Ok(true),
            seen => Err(format!("{seen:?}")),
        })
        .await?;
        Ok(Instant::now())
    }

    /// Writes many keys.
    pub(crate) fn fill(&self, keys: &[(String, String)]) -> anyhow::Result<()> {
        self.fill_by(Api::V2, keys)
    }

    /// As [`Tools::fill`], by one of etcd's APIs.
    pub(crate) fn fill_by(&self, api: Api, keys: &[(String, String)]) -> anyhow::Result<()> {
        let address = self.etcd.address();
        std::thread::scope(|scope| {
            let parts = keys.chunks(keys.len().div_ceil(FILLERS).max(1));
            let fillers: Vec<_> = parts
                .map(|part| {
                    scope.spawn(move || {
                        let mut connection = Kept::open(address)?;
                        part.iter().try_for_each(|(key, value)| self.put_by(api, &mut connection, key, value))
                    })
                })
                .collect();
            fillers.into_iter().try_for_each(|filler| filler.join().unwrap_or_else(|_| bail!("a writer panicked")))
        })
    }
}

/// The value of an instance, as the agent writes it.
pub(crate) fn record(number: usize, attributes: &str) -> String {
    format!(
        "{{\"status\":\"running\",\"id\":\"{number:064x}\",\"agent\":\"4f1c9c1e7a3b4d0e\",\"name\":\"web-{number}\",\
         \"host\":\"host-{}\",\"attributes\":{{{attributes}}},\"registered\":\"2026-01-01T00:00:00Z\"}}",
        number % 50
    )
}

/// The address of a server: all of 127.1.0.0/16 and on are one application.
pub(crate) fn address(number: usize, port: u16) -> String {
    format!("127.{}.{}.{}:{port}", 1 + number / 62_500, number / 250 % 250, number % 250 + 1)
}

/// The keys of so many servers.
pub(crate) fn keys(prefix: &str, count: usize, port: u16, attributes: &str) -> Vec<(String, String)> {
    (0..count).map(|n| (format!("{prefix}/{SERVICE}/{}", address(n, port)), record(n, attributes))).collect()
}

/// A discoverer that supervises its own HAProxy, with the templates that the project ships.
pub(crate) struct Subject {
    process: Process,
    pub(crate) http: SocketAddr,
    /// How long after its start HAProxy answered.
    pub(crate) served_after: Duration,
    stats: SocketAddr,
    pub(crate) template: PathBuf,
    dir: TempDir,
}

impl Subject {
    /// Starts it and waits until its HAProxy has `count` servers and its file too.
    pub(crate) async fn start(tools: &Tools, prefix: &str, count: usize) -> anyhow::Result<Self> {
        Self::start_by(tools, Api::V2, prefix, count).await
    }

    /// As [`Subject::start`], by one of etcd's APIs.
    pub(crate) async fn start_by(tools: &Tools, api: Api, prefix: &str, count: usize) -> anyhow::Result<Self> {
        Self::start_with(tools, api, prefix, count, "off").await
    }

    /// As [`Subject::start`], with its page at an address.
    pub(crate) async fn start_with_page(
        tools: &Tools,
        prefix: &str,
        count: usize,
        page: SocketAddr,
    ) -> anyhow::Result<Self> {
        Self::start_with(tools, Api::V2, prefix, count, &page.to_string()).await
    }

    /// One of a large site, with v3, whose file checks no server: HAProxy has no file descriptors for so many checks. What no rule takes
    /// goes to `service`. It is there once HAProxy answers.
    pub(crate) async fn start_large(tools: &Tools, prefix: &str, service: &str) -> anyhow::Result<Self> {
        Self::launch(tools, Api::V3, prefix, "off", Some(service)).await
    }

    async fn start_with(tools: &Tools, api: Api, prefix: &str, count: usize, admin: &str) -> anyhow::Result<Self> {
        let subject = Self::launch(tools, api, prefix, admin, None).await?;
        wait("the discoverer's HAProxy has all servers", || match subject.count() {
            Ok(seen) if seen == count => Ok(true),
            seen => Err(format!("{seen:?} of {count}; {}", subject.last_words())),
        })
        .await?;
        Ok(subject)
    }

    async fn launch(tools: &Tools, api: Api, prefix: &str, admin: &str, large: Option<&str>) -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new().prefix("bench-discoverer-").tempdir()?;
        let (http, stats) = (free_address(), free_address());
        let template = copy_templates(&dir.path().join("templates"))?;
        if large.is_some() {
            let server = template.with_file_name("server.tera");
            let text = fs::read_to_string(&server)?;
            ensure!(text.contains(CHECK), "server.tera has no {CHECK:?}");
            fs::write(server, text.replace(CHECK, ""))?;
        }
        let path = |name: &str| dir.path().join(name).display().to_string();
        fs::create_dir_all(dir.path().join("state"))?;
        let mut args = [
            "--supervise",
            "--etcd",
            &tools.etcd.url(),
            "--etcd-api",
            api.flag(),
            "--key",
            prefix,
            "--template",
            &template.display().to_string(),
            "--output",
            &path("haproxy.cfg"),
            "--state-dir",
            &path("state"),
            "--haproxy",
            &haproxy().display().to_string(),
            "--set",
            &format!("http_bind={http}"),
            "--set",
            &format!("stats_bind={stats}"),
            "--set",
            "log=stdout format raw local0 err",
            "--admin",
            admin,
        ]
        .map(str::to_owned)
        .to_vec();
        if let Some(service) = large {
            args.extend(["--set".to_owned(), format!("default_service={service}")]);
        }
        let log = dir.path().join("log");
        let process = Process::start("discoverer", tools.discoverer()?, &args, &log, dir.path());
        let mut subject = Self { process, http, served_after: Duration::ZERO, stats, template, dir };
        let limit = if large.is_some() { LIMIT * 5 } else { LIMIT };
        let answers = || get_once(http).map(|_| true).map_err(|error| format!("{error}; {}", subject.last_words()));
        subject.served_after = wait_within(limit, "HAProxy answers", answers).await?;
        Ok(subject)
    }

    fn count(&self) -> anyhow::Result<usize> {
        Ok(crate::servers::in_haproxy(&self.socket())?.len())
    }

    /// HAProxy's stats socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("state/runtime.sock")
    }

    pub(crate) fn file(&self) -> PathBuf {
        self.dir.path().join("haproxy.cfg")
    }

    pub(crate) fn process(&self) -> &Process {
        &self.process
    }

    /// How often its HAProxy was reloaded: the third column of the master's line in `show proc` (management guide, 9.4).
    /// While it reloads, the master does not answer; then this waits.
    pub(crate) async fn reloads(&self) -> anyhow::Result<u64> {
        let mut count = None;
        let socket = self.dir.path().join("state/master.sock");
        wait("HAProxy's master answers", || {
            let table = master_cli(&socket, "show proc").map_err(|error| error.to_string())?;
            let master = table.lines().find(|line| line.split_whitespace().nth(1) == Some("master"));
            count = master.and_then(|line| line.split_whitespace().nth(2)?.parse().ok());
            if count.is_some() { Ok(true) } else { Err(table) }
        })
        .await?;
        count.context("no count of reloads")
    }

    /// What the log says of the last reloads.
    pub(crate) fn why_reloaded(&self) -> String {
        let log = self.process.log();
        let lines: Vec<&str> = log.lines().filter(|line| line.contains("by a reload")).collect();
        let last = &lines[lines.len().saturating_sub(3)..];
        last.iter()
            .filter_map(|line| line.split_once("by a reload").map(|(_, why)| why.trim_matches(['"', ':', ' '])))
            .collect::<Vec<_>>()
            .join(" / ")
    }

    /// Whether a server is (or is not) in HAProxy and in the file, and nothing is being written.
    pub(crate) fn is_settled(&self, server: &str, is_in: bool) -> anyhow::Result<bool> {
        if self.dir.path().join("haproxy.cfg.candidate").exists() || has_server(&self.socket(), server)? != is_in {
            return Ok(false);
        }
        Ok(fs::read_to_string(self.file())?.contains(&format!(" {server} ")) == is_in)
    }

    /// The discoverer's own time, in milliseconds.
    pub(crate) fn cpu_ms(&self) -> anyhow::Result<u64> {
        machine::cpu_ms(self.process.pid())
    }

    /// A size of its memory in MiB: `VmRSS` or `VmHWM`.
    pub(crate) fn memory_mb(&self, name: &str) -> anyhow::Result<f64> {
        machine::memory_mb(self.process.pid(), name)
    }

    /// The warnings and errors of its log, the last ones.
    pub(crate) fn last_words(&self) -> String {
        let log = self.process.log();
        let bad: Vec<&str> = log.lines().filter(|line| line.contains("WARN") || line.contains("ERROR")).collect();
        bad[bad.len().saturating_sub(3)..].join(" / ")
    }
}

/// What the template has for a server's check.
const CHECK: &str = " check inter 2s fall 2 rise 1";

/// Waits until HAProxy answers.
async fn served(http: SocketAddr) -> anyhow::Result<Duration> {
    wait("HAProxy answers", || get_once(http).map(|_| true).map_err(|error| error.to_string())).await
}

/// Whether HAProxy has a server of the measured service.
pub(crate) fn has_server(socket: &Path, server: &str) -> anyhow::Result<bool> {
    let reply = cli(socket, &format!("get weight {SERVICE}/{server}"))?;
    Ok(reply.contains("(initial"))
}

/// A second HAProxy of the same configuration, on addresses and sockets of its own.
pub(crate) struct Twin {
    _process: Process,
    pub(crate) http: SocketAddr,
    /// How long after its start it answered.
    pub(crate) served_after: Duration,
    /// The words behind a server's address.
    pub(crate) words: String,
    dir: TempDir,
}

impl Twin {
    pub(crate) async fn of(subject: &Subject) -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new().prefix("bench-floor-").tempdir()?;
        let (http, stats) = (free_address(), free_address());
        let path = |name: &str| dir.path().join(name).display().to_string();
        fs::create_dir_all(dir.path().join("state"))?;
        let text = fs::read_to_string(subject.file())?
            .replace(&subject.http.to_string(), &http.to_string())
            .replace(&subject.stats.to_string(), &stats.to_string())
            .replace(&subject.dir.path().display().to_string(), &dir.path().display().to_string());
        let server = text.lines().find(|line| line.trim_start().starts_with("server ")).context("no server line")?;
        let words = server.split_whitespace().skip(3).collect::<Vec<_>>().join(" ");
        fs::write(path("haproxy.cfg"), text)?;
        let args = ["-W", "-S", &path("state/master.sock"), "-f", &path("haproxy.cfg")].map(str::to_owned);
        let process = Process::start("haproxy", &haproxy(), &args, &dir.path().join("log"), dir.path());
        let served_after = served(http).await?;
        Ok(Self { _process: process, http, served_after, words, dir })
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("state/runtime.sock")
    }
}

/// Lets HAProxy check a file.
pub(crate) fn check_file(file: &Path) -> anyhow::Result<()> {
    let output = Command::new(haproxy()).arg("-c").arg("-f").arg(file).output().context("haproxy")?;
    ensure!(output.status.success(), "haproxy -c: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// Copies the project's templates, so that nobody's edit meanwhile is followed; gives the main one.
pub(crate) fn copy_templates(into: &Path) -> anyhow::Result<PathBuf> {
    fs::create_dir(into)?;
    let main = e2e::default_template();
    let from = main.parent().context("the templates' directory")?;
    for file in fs::read_dir(from)? {
        let file = file?;
        fs::copy(file.path(), into.join(file.file_name()))?;
    }
    Ok(into.join(main.file_name().context("the template's name")?))
}

fn haproxy() -> PathBuf {
    find_program("haproxy", "haproxy")
}
