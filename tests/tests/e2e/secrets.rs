//! What is secret is nowhere to be seen: not in `ps`, in logs, metrics, pages, files or what a program that is started gets, however it
//! is given, and whether etcd takes it or not.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use e2e::backend::Backend;
use e2e::etcd::Etcd;
use e2e::http;
use e2e::ports::free_address;
use e2e::process::{Process, find_program, find_workspace_binary, run};
use e2e::{default_template, secs, users, wait_until, within};
use nix::unistd::Pid;
use tempfile::TempDir;

/// One that etcd does not take. The others are those of the guide.
const WRONG: &str = "WRONG-PASSWORD-7f3a";
const TOKEN: &str = "ADMIN-TOKEN-0123456789abcdef";

/// Beginnings of what must be nowhere: also of what HTTP's Basic authentication makes of a user and password.
fn secrets() -> Vec<String> {
    let mut secrets = [WRONG, TOKEN, users::REGISTRAR, users::DISCOVERER].map(str::to_owned).to_vec();
    // `registrar:` and `discoverer:` are 10 and 11 bytes: base64 of what follows begins with these.
    secrets.extend(["cmVnaXN0cmFyO", "ZGlzY292ZXJlcj"].map(str::to_owned));
    secrets
}

fn assert_clean(what: &str, text: &str) {
    for secret in secrets() {
        let at = text.find(&secret);
        let around =
            at.map(|at| text[..at].chars().rev().take(200).collect::<String>().chars().rev().collect::<String>());
        assert_eq!(around, None, "{what} shows {secret}, behind this");
    }
}

/// How a program is given its password.
#[derive(Debug, Clone, Copy)]
enum Way {
    /// `--etcd http://USER:PASSWORD@HOST`, the worst.
    Url,
    /// The same with `=`.
    JoinedUrl,
    /// The same in the environment.
    UrlVariable,
    File,
    Variable,
}

const WAYS: [Way; 5] = [Way::Url, Way::JoinedUrl, Way::UrlVariable, Way::File, Way::Variable];

/// A program that runs with secrets.
struct Subject {
    name: String,
    process: Process,
    /// For asking it by a command: the environment, without the secrets' files, and the flags.
    env: Vec<String>,
    flags: Vec<String>,
    admin: SocketAddr,
    dir: TempDir,
    reloads_by_command: bool,
}

fn start(kind: &str, way: Way, etcd: &Etcd, password: &str, backend: &Backend) -> Subject {
    let (prefix, user) = match kind {
        "discoverer" => ("DISCOVERER", "discoverer"),
        _ => ("REGISTRAR", "registrar"),
    };
    let dir = tempfile::Builder::new().prefix("e2e-secrets-").tempdir().unwrap();
    let admin = free_address();
    let plain = etcd.url();
    let url = plain.replace("://", &format!("://{user}:{password}@"));
    let file = |name: &str, secret: &str| {
        let path = dir.path().join(name);
        fs::write(&path, format!("{secret}\n")).unwrap();
        path.display().to_string()
    };
    let mut env = Vec::new();
    let mut flags: Vec<String> = Vec::new();
    let mut flag = |name: &str, value: &str| flags.extend([name.to_owned(), value.to_owned()]);
    match way {
        Way::Url => flag("--etcd", &url),
        Way::JoinedUrl => flags.push(format!("--etcd={url}")),
        Way::UrlVariable => env.push(format!("{prefix}_ETCD={url}")),
        Way::File => {
            flag("--etcd", &plain);
            flag("--etcd-user", user);
            flag("--etcd-password-file", &file("etcd-password", password));
        }
        Way::Variable => {
            flag("--etcd", &plain);
            flag("--etcd-user", user);
            env.push(format!("{prefix}_ETCD_PASSWORD={password}"));
        }
    }
    let token_in_file = matches!(way, Way::File | Way::Url);
    if token_in_file {
        flags.extend(["--admin-token-file".to_owned(), file("admin-token", TOKEN)]);
    } else {
        env.push(format!("{prefix}_ADMIN_TOKEN={TOKEN}"));
    }
    let asks_with = flags.clone();
    let format = if matches!(way, Way::Url | Way::Variable) { "json" } else { "text" };
    let mut more = vec!["--log-level", "trace", "--log-format", format];
    let admin_text = admin.to_string();
    more.extend(["--admin", &admin_text]);
    let state = dir.path().join("state").display().to_string();
    let address = backend.address().to_string();
    let port = backend.address().port().to_string();
    let output = dir.path().join("haproxy.cfg").display().to_string();
    let template = default_template().display().to_string();
    let binds = ["http_bind", "stats_bind"].map(|name| format!("{name}={}", free_address()));
    let reload = format!("env > {}; false", dir.path().join("environment-of-reload").display());
    let reloads_by_command = kind == "discoverer" && !matches!(way, Way::Url | Way::JoinedUrl);
    match kind {
        "agent" => more.extend(["--state-dir", &state, "--ip", "127.0.0.1", "--explicit", "--interval", "200ms"]),
        "sidekick" => more.extend(["--port", &port, "--mapped-port", &port, "--ip", "127.0.0.1"]),
        "static" => more.extend(["--address", &address, "--name", "web", "--interval", "200ms"]),
        _ => {
            more.extend(["--state-dir", &state, "--output", &output, "--template", &template]);
            more.extend(["--set", &binds[0], "--set", &binds[1]]);
            if reloads_by_command {
                more.extend(["--reload-command", &reload]);
            } else {
                more.push("--supervise");
            }
        }
    }
    flags.extend(more.iter().map(|&flag| flag.to_owned()));
    let program = find_workspace_binary(if kind == "discoverer" { "discoverer" } else { "registrar" });
    let mut args = env.clone();
    args.push(program.display().to_string());
    args.extend(Some(kind.to_owned()).filter(|kind| matches!(kind.as_str(), "agent" | "static")));
    args.extend(flags);
    let log = dir.path().join("log");
    let process = Process::start(kind, &find_program("env", "coreutils"), &args, &log, dir.path());
    let name = format!("{kind}, {way:?}, {}", if password == WRONG { "wrong" } else { "right" });
    Subject { name, process, env, flags: asks_with, admin, dir, reloads_by_command }
}

fn read(path: &str) -> String {
    fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).replace('\0', "\n")).unwrap_or_default()
}

/// All regular files below a directory, but those that were made to hold a secret.
fn files(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let kind = fs::symlink_metadata(&path).unwrap().file_type();
        if kind.is_dir() {
            found.extend(files(&path));
        } else if kind.is_file() && !path.ends_with("etcd-password") && !path.ends_with("admin-token") {
            found.push(path);
        }
    }
    found
}

impl Subject {
    fn is_discoverer(&self) -> bool {
        self.name.starts_with("discoverer")
    }

    async fn ask(&self, path: &str) -> String {
        let token = format!("Bearer {TOKEN}");
        let reply = http::request(self.admin, "GET", path, &[("Authorization", &token)], "").await;
        reply.map_or_else(
            |error| error.to_string(),
            |reply| format!("{} {:?}\n{}", reply.status, reply.headers, reply.body),
        )
    }

    /// Waits until it has had to do with etcd, then looks everywhere.
    async fn assert_clean(&self) {
        let name = &self.name;
        let is_wrong = name.ends_with("wrong");
        wait_until(secs(60), &format!("{name}: it has had to do with etcd"), async || {
            let metrics = self.ask("/metrics").await;
            let log = self.process.log();
            let is_done = match (is_wrong, self.is_discoverer()) {
                (true, _) => log.contains("password") || log.contains("authentication"),
                (false, true) => log.contains("registry connected"),
                (false, false) => log.contains("registered") || log.contains("looked for keys"),
            };
            if is_done && metrics.starts_with("200") { Ok(()) } else { Err(metrics) }
        })
        .await;
        if self.reloads_by_command && !is_wrong {
            let environment = self.dir.path().join("environment-of-reload");
            wait_until(secs(20), &format!("{name}: HAProxy was to be reloaded"), async || {
                let text = fs::read_to_string(&environment).unwrap_or_default();
                if text.contains("PATH=") { Ok(()) } else { Err(self.process.log()) }
            })
            .await;
        }
        let own = self.process.pid();
        let supervises = self.is_discoverer() && !is_wrong && !self.reloads_by_command;
        let children = wait_until(secs(20), &format!("{name}: HAProxy runs"), async || {
            let children = self.process.descendants();
            // One that has not become another program yet is a copy of this one.
            let program = |pid: Pid| fs::read_link(format!("/proc/{pid}/exe")).ok();
            let is_begun = children.iter().all(|&child| program(child) != program(own));
            if is_begun && (!supervises || !children.is_empty()) { Ok(children) } else { Err(self.process.log()) }
        })
        .await;
        for pid in children.iter().copied().chain([own]) {
            assert_clean(&format!("{name}: the arguments of {pid}"), &read(&format!("/proc/{pid}/cmdline")));
        }
        let environment = |pid: &Pid| read(&format!("/proc/{pid}/environ"));
        for pid in &children {
            assert_clean(&format!("{name}: the environment of {pid}"), &environment(pid));
        }
        let comm = read(&format!("/proc/{own}/comm"));
        assert!(["registrar\n", "discoverer\n"].contains(&comm.as_str()), "{name}: it is called {comm}");
        for path in [
            "/",
            "/metrics",
            "/health/live",
            "/health/ready",
            "/api/v1/services",
            "/api/v1/status",
            "/api/v1/openapi.json",
        ] {
            assert_clean(&format!("{name}: {path}"), &self.ask(path).await);
        }
        let without = http::get(self.admin, "/metrics").await.unwrap();
        assert_eq!(without.status, 401, "{name}: the token is asked for");
        assert_clean(&format!("{name}: what it says without a token"), &format!("{without:?}"));
        for file in files(self.dir.path()) {
            assert_clean(&format!("{name}: {}", file.display()), &read(&file.display().to_string()));
        }
    }

    /// What commands say that are given the same secrets.
    async fn assert_commands_clean(&self) {
        let admin = self.admin.to_string();
        let asks: &[&[&str]] = if self.is_discoverer() {
            &[
                &["status", "--admin", &admin],
                &["explain", "web", "--admin", &admin],
                &["--help"],
                &["--nonsense"],
                &["render"],
            ]
        } else {
            &[
                &["list"],
                &["explain", "no-such-container"],
                &["drain", "--all"],
                &["--help"],
                &["--nonsense"],
                &["list", "--json"],
            ]
        };
        let program = find_workspace_binary(if self.is_discoverer() { "discoverer" } else { "registrar" });
        let env: Vec<(&str, &str)> = self.env.iter().filter_map(|pair| pair.split_once('=')).collect();
        for ask in asks {
            let is_token = |flag: &&String| flag.as_str() == "--admin-token-file" || flag.ends_with("/admin-token");
            let takes_token = self.is_discoverer();
            let flags = self.flags.iter().filter(|flag| takes_token || !is_token(flag)).map(String::as_str);
            let args: Vec<&str> = ask.iter().copied().chain(flags).collect();
            let said = run(&program, &args, &env, secs(30)).await;
            assert_clean(&format!("{}: {ask:?}", self.name), &format!("{said:?}"));
            assert!(!(said.stdout + &said.stderr).is_empty(), "{}: {ask:?} says something", self.name);
        }
    }
}

async fn nothing_secret_is_seen(api: &str) {
    let etcd = if api == "v3" { Etcd::start_v3().await } else { Etcd::start().await };
    users::make(&etcd.url(), api);
    for way in WAYS {
        // One of its own, so that nobody finds a key there that is its own already.
        let backend = Backend::start("one").await;
        // One after the other: etcd's check of a password is slow on purpose.
        for is_right in [true, false] {
            let start = |kind| {
                let right = if kind == "discoverer" { users::DISCOVERER } else { users::REGISTRAR };
                start(kind, way, &etcd, if is_right { right } else { WRONG }, &backend)
            };
            let subjects = ["agent", "sidekick", "static", "discoverer"].map(start);
            for subject in &subjects {
                subject.assert_clean().await;
            }
            let asked = |subject: &&Subject| subject.name.starts_with("static") || subject.is_discoverer();
            for subject in subjects.iter().filter(asked) {
                subject.assert_commands_clean().await;
            }
        }
    }
}

#[tokio::test]
async fn no_secret_is_seen_in_ps_logs_metrics_pages_or_files_with_etcd_v2() {
    within(400, nothing_secret_is_seen("v2")).await;
}

#[tokio::test]
async fn no_secret_is_seen_in_ps_logs_metrics_pages_or_files_with_etcd_v3() {
    within(400, nothing_secret_is_seen("v3")).await;
}

/// A password with signs that a URL may not have in it, a port that is none, and other slips of the hand.
const MALFORMED: [&str; 6] = [
    "http://u:SECRET@h:2379:99",
    "u:SECRET@h:2379",
    "ftp://u:SECRET@h:2379",
    "http://u:a/SECRET@h:2379",
    "http://u:a,SECRET@h:2379/v2/keys",
    "http://h1:2379,http://u:SECRET@h2:2379/v2/keys",
];

#[tokio::test]
async fn an_url_that_is_none_is_refused_without_its_password() {
    let dir = tempfile::Builder::new().prefix("e2e-secrets-").tempdir().unwrap();
    let file = dir.path().join("config.toml");
    let config = file.display().to_string();
    let daemons: [(&str, &[&str]); 5] = [
        ("registrar", &["--port", "80"]),
        ("registrar", &["agent"]),
        ("registrar", &["static", "--address", "127.0.0.1:80", "--name", "web"]),
        ("discoverer", &["--supervise"]),
        ("standalone", &[]),
    ];
    for (program, args) in daemons {
        let binary = find_workspace_binary(program);
        for url in MALFORMED.map(|url| url.replace("SECRET", WRONG)) {
            fs::write(&file, format!("etcd = {url:?}\n")).unwrap();
            let joined = format!("--etcd={url}");
            let variable = format!("{}_ETCD", program.to_uppercase());
            let of_the_environment = [(variable.as_str(), url.as_str())];
            for flags in [&["--etcd", url.as_str()][..], &[&joined], &["--ectd", &url], &[], &["--config", &config]] {
                let env = if flags.is_empty() { &of_the_environment[..] } else { &[] };
                let said = run(&binary, &[args, flags].concat(), env, secs(30)).await;
                let what = format!("{program} {args:?} {flags:?} {env:?}");
                assert_eq!(said.code, Some(2), "{what}: {said:?}");
                assert!(said.stderr.contains("etcd") || said.stderr.contains("ectd"), "{what}: {said:?}");
                assert_clean(&what, &format!("{said:?}"));
            }
        }
    }
}
