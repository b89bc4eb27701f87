//! The discoverer under test: the built program, run as a user runs it, with its files in a directory of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use crate::haproxy::{Haproxy, Version, reloads, servers, servers_of};
use crate::http;
use crate::load::requests;
use crate::ports::free_address;
use crate::process::{Finished, Process, find_workspace_binary, run, tail};
use crate::{default_template, secs, wait_until};

/// A change is served within this time, a reload included, on a machine that is busy with something else: HAProxy's master was
/// seen to need 8 s for a reload where others had the processors. Where time is the point a test has a limit of its own.
pub const SOON: Duration = Duration::from_secs(20);

/// So many requests in a row reach every server, and do not miss one by chance, beside other clients' requests.
const ENOUGH: usize = 16;

/// What to start, and how. Every setter replaces a default.
pub struct Builder {
    etcd: String,
    key: String,
    template: Option<PathBuf>,
    edits: Vec<(String, String)>,
    output: Option<PathBuf>,
    state_dir: Option<PathBuf>,
    haproxy: Version,
    program: Option<PathBuf>,
    reach: Vec<String>,
    /// The sockets of an HAProxy that is somebody else's: of its master, and of its statistics.
    sockets: Option<(PathBuf, PathBuf)>,
    http: SocketAddr,
    admin: Option<SocketAddr>,
    args: Vec<String>,
}

impl Builder {
    /// `--admin`, where the default is a socket in its state directory.
    #[must_use]
    pub fn admin(mut self, admin: SocketAddr) -> Builder {
        self.admin = Some(admin);
        self
    }

    /// `--key`.
    #[must_use]
    pub fn key(mut self, key: &str) -> Builder {
        self.key = key.to_owned();
        self
    }

    /// `--template`, where the default is a copy of the templates that the project ships.
    #[must_use]
    pub fn template(mut self, template: &Path) -> Builder {
        self.template = Some(template.to_path_buf());
        self
    }

    /// Another text in place of one in the copy of the project's templates.
    #[must_use]
    pub fn edit(mut self, from: &str, to: &str) -> Builder {
        self.edits.push((from.to_owned(), to.to_owned()));
        self
    }

    /// `--haproxy`, where the default is the installed one.
    #[must_use]
    pub fn haproxy(mut self, version: Version) -> Builder {
        self.haproxy = version;
        self
    }

    /// `--runtime-socket` at the place where `haproxy` is to have its stats socket.
    #[must_use]
    pub fn runtime(self, haproxy: &Haproxy) -> Builder {
        let socket = haproxy.runtime_socket();
        self.runtime_through(haproxy, &socket)
    }

    /// `--runtime-socket` at a place of a test's own, with somebody between it and the stats socket of `haproxy`. The copy
    /// of the project's templates still names the latter.
    #[must_use]
    pub fn runtime_through(mut self, haproxy: &Haproxy, between: &Path) -> Builder {
        let real = haproxy.runtime_socket();
        self.args.extend(["--runtime-socket".to_owned(), between.display().to_string()]);
        if between != real {
            self = self.edit("{{ haproxy.runtime_socket }}", &real.display().to_string());
        }
        self
    }

    /// `--output`, where the default is a file in the discoverer's own directory.
    #[must_use]
    pub fn output(mut self, output: &Path) -> Builder {
        self.output = Some(output.to_path_buf());
        self
    }

    /// `--state-dir`, where the default is one in the discoverer's own directory.
    #[must_use]
    pub fn state_dir(mut self, state_dir: &Path) -> Builder {
        self.state_dir = Some(state_dir.to_path_buf());
        self
    }

    /// More flags.
    #[must_use]
    pub fn args(mut self, args: &[&str]) -> Builder {
        self.args.extend(args.iter().map(|&arg| arg.to_owned()));
        self
    }

    /// Another program than the one of the test's own build.
    #[must_use]
    pub fn program(mut self, program: &Path) -> Builder {
        self.program = Some(program.to_path_buf());
        self
    }

    /// Starts it, and waits for nothing.
    pub fn start(self) -> Discoverer {
        let dir = tempfile::Builder::new().prefix("e2e-discoverer-").tempdir().unwrap();
        let output = self.output.clone().unwrap_or_else(|| dir.path().join("haproxy.cfg"));
        let template =
            self.template.clone().unwrap_or_else(|| copy_templates(&dir.path().join("templates"), &self.edits));
        let state = self.state_dir.clone().unwrap_or_else(|| dir.path().join("state"));
        fs::create_dir_all(&state).unwrap();
        let stats = free_address();
        let mut args = [
            "--etcd",
            &self.etcd,
            "--key",
            &self.key,
            "--template",
            &template.display().to_string(),
            "--output",
            &output.display().to_string(),
            "--state-dir",
            &state.display().to_string(),
            "--haproxy",
            &self.haproxy.program().display().to_string(),
            "--set",
            &format!("http_bind={}", self.http),
            "--set",
            &format!("stats_bind={stats}"),
            "--set",
            // HAProxy's errors, without a line for each request.
            "log=stdout format raw local0 err",
            "--log-format",
            "json",
            "--admin",
            // By default its page is at no port, so that two of them do not meet.
            &self.admin.map_or(format!("unix:{}", state.join("admin.sock").display()), |admin| admin.to_string()),
        ]
        .map(str::to_owned)
        .to_vec();
        args.extend(self.reach);
        args.extend(self.args);
        let sockets = self.sockets.unwrap_or_else(|| (state.join("master.sock"), state.join("runtime.sock")));
        let program = self.program.unwrap_or_else(|| find_workspace_binary("discoverer"));
        let (http, sockets) = (self.http, sockets);
        let mut discoverer = Discoverer { process: None, program, args, http, stats, output, state, sockets, dir };
        discoverer.start_again();
        discoverer
    }
}

/// A discoverer and, under `--supervise`, its HAProxy. Dropping it ends both and removes their files.
pub struct Discoverer {
    process: Option<Process>,
    program: PathBuf,
    args: Vec<String>,
    http: SocketAddr,
    stats: SocketAddr,
    output: PathBuf,
    state: PathBuf,
    sockets: (PathBuf, PathBuf),
    dir: TempDir,
}

impl Discoverer {
    /// One that runs HAProxy itself.
    pub fn supervise(etcd: &str) -> Builder {
        Builder {
            etcd: etcd.to_owned(),
            key: "service".to_owned(),
            template: None,
            edits: Vec::new(),
            output: None,
            state_dir: None,
            haproxy: Version::Installed,
            program: None,
            reach: vec!["--supervise".to_owned()],
            sockets: None,
            http: free_address(),
            admin: None,
            args: Vec::new(),
        }
    }

    /// One that reloads `haproxy` over its master socket.
    pub fn reload_socket(etcd: &str, haproxy: &Haproxy) -> Builder {
        Discoverer::reaching(etcd, haproxy, "--reload-socket", &haproxy.master_socket().display().to_string())
    }

    /// One that reloads `haproxy` with a signal to the process in its pid file.
    pub fn reload_pidfile(etcd: &str, haproxy: &Haproxy) -> Builder {
        Discoverer::reaching(etcd, haproxy, "--reload-pidfile", &haproxy.pid_file().display().to_string())
    }

    /// One that reloads `haproxy` with a command.
    pub fn reload_command(etcd: &str, haproxy: &Haproxy, command: &str) -> Builder {
        Discoverer::reaching(etcd, haproxy, "--reload-command", command)
    }

    /// One that reloads the HAProxy in a container, which reads `config` and listens on `http` of this host.
    pub fn reload_container(etcd: &str, name: &str, config: &Path, http: SocketAddr) -> Builder {
        Builder {
            output: Some(config.to_path_buf()),
            reach: vec!["--reload-container".to_owned(), name.to_owned()],
            http,
            ..Discoverer::supervise(etcd)
        }
    }

    fn reaching(etcd: &str, haproxy: &Haproxy, flag: &str, value: &str) -> Builder {
        Builder {
            output: Some(haproxy.config()),
            haproxy: haproxy.version(),
            reach: vec![flag.to_owned(), value.to_owned()],
            sockets: Some((haproxy.master_socket(), haproxy.runtime_socket())),
            http: haproxy.http(),
            ..Discoverer::supervise(etcd)
        }
    }

    /// Starts it once more with the same flags and files.
    pub fn start_again(&mut self) {
        assert!(self.process.is_none(), "the discoverer runs already");
        self.process = Some(Process::start(
            "discoverer",
            &self.program,
            &self.args,
            &self.dir.path().join("log"),
            self.dir.path(),
        ));
    }

    /// Its process.
    pub fn process(&mut self) -> &mut Process {
        self.process.as_mut().expect("the discoverer runs")
    }

    /// Gives the process away, after which [`Discoverer::start_again`] may follow.
    pub fn take_process(&mut self) -> Process {
        self.process.take().expect("the discoverer runs")
    }

    /// Runs one of its commands, such as `status`, with its own flags.
    pub async fn ask(&self, command: &[&str]) -> Finished {
        let all: Vec<&str> = command.iter().copied().chain(self.args.iter().map(String::as_str)).collect();
        run(&self.program, &all, &[], secs(30)).await
    }

    /// The address that the configuration's frontend listens on.
    pub fn http(&self) -> SocketAddr {
        self.http
    }

    /// The address of HAProxy's statistics.
    pub fn stats(&self) -> SocketAddr {
        self.stats
    }

    /// The path of the file it writes.
    pub fn output(&self) -> &Path {
        &self.output
    }

    /// The directory of its copy of the project's templates.
    pub fn templates(&self) -> PathBuf {
        self.dir.path().join("templates")
    }

    /// The text of the file it writes; empty when there is none.
    pub fn config(&self) -> String {
        fs::read_to_string(&self.output).unwrap_or_default()
    }

    /// The directory of `--state-dir`.
    pub fn state_dir(&self) -> PathBuf {
        self.state.clone()
    }

    /// The master socket of its HAProxy.
    pub fn master_socket(&self) -> PathBuf {
        self.sockets.0.clone()
    }

    /// The stats socket of its HAProxy.
    pub fn runtime_socket(&self) -> PathBuf {
        self.sockets.1.clone()
    }

    /// How often its HAProxy was reloaded, as the master tells.
    pub async fn reloads(&self) -> u64 {
        let socket = self.master_socket();
        wait_until(SOON, "HAProxy's master tells its reloads", async || reloads(&socket).await).await
    }

    /// Its log: one JSON object a line; lines of HAProxy's own are left out.
    pub fn events(&self) -> Vec<Value> {
        let log = fs::read(self.dir.path().join("log")).unwrap_or_default();
        String::from_utf8_lossy(&log).lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// The log's events whose message begins so.
    pub fn logged(&self, message: &str) -> Vec<Value> {
        self.events().into_iter().filter(|event| field(event, "message").starts_with(message)).collect()
    }

    /// Waits for an event whose message begins so and of which each given field contains the given text.
    pub async fn wait_logged(&self, message: &str, fields: &[(&str, &str)]) -> Value {
        wait_until(SOON, &format!("the log says {message:?} with {fields:?}"), async || {
            let same = self.logged(message);
            let fits = |event: &&Value| fields.iter().all(|(name, text)| field(event, name).contains(text));
            same.iter().find(fits).cloned().ok_or_else(|| format!("with that message: {same:?}"))
        })
        .await
    }

    /// Waits until HAProxy serves exactly these names, each of them, and nothing else fails.
    pub async fn wait_serves(&mut self, names: &[&str]) {
        let wanted: Vec<&str> = sorted(names);
        let http = self.http;
        wait_until(SOON, &format!("HAProxy serves exactly {wanted:?}"), async || {
            if let Some(process) = &mut self.process
                && let Some(status) = process.ended()
            {
                return Err(format!("the discoverer ended: {status}"));
            }
            let seen = requests(http, ENOUGH).await;
            if seen.keys().map(String::as_str).collect::<Vec<_>>() == wanted {
                Ok(())
            } else {
                Err(format!("{seen:?}"))
            }
        })
        .await;
    }

    /// Waits until a request with this `Host` gets the wanted answer: a backend's name, or a status such as `503`.
    pub async fn wait_host(&self, host: &str, wanted: &str) {
        wait_until(SOON, &format!("HAProxy answers {host} with {wanted}"), async || {
            let seen = self.answer(host).await;
            if seen == wanted { Ok(()) } else { Err(seen) }
        })
        .await;
    }

    /// What a request with this `Host` gets now: the body of a 200, else the status, else the error.
    pub async fn answer(&self, host: &str) -> String {
        match http::get_host(self.http, host).await {
            Ok(reply) if reply.status == 200 => reply.body,
            Ok(reply) => reply.status.to_string(),
            Err(error) => error.to_string(),
        }
    }

    /// Waits until these servers, given as (service, address, weight), and no others take traffic as far as administration
    /// goes. Those that leave may still be there in maintenance, and the file may be behind.
    pub async fn wait_servers(&self, limit: Duration, wanted: &[(&str, SocketAddr, u16)]) {
        let socket = self.runtime_socket();
        let wanted: BTreeSet<_> = wanted.iter().map(|(name, at, weight)| (name.to_string(), *at, *weight)).collect();
        wait_until(limit, "HAProxy has the wanted servers, all ready", async || {
            let ready = ready_servers(&socket).await?;
            let seen: BTreeSet<_> =
                ready.iter().map(|(id, (at, weight))| (backend(id).to_owned(), *at, *weight)).collect();
            let (missing, too_many): (Vec<_>, Vec<_>) =
                (wanted.difference(&seen).collect(), seen.difference(&wanted).collect());
            if seen == wanted { Ok(()) } else { Err(format!("missing {missing:?}, not wanted {too_many:?}")) }
        })
        .await;
    }

    /// [`Discoverer::wait_servers`], and the file has the same, under the same names.
    pub async fn wait_in_step(&self, wanted: &[(&str, SocketAddr, u16)]) {
        self.wait_servers(SOON, wanted).await;
        self.wait_same_in_file().await;
        self.wait_servers(SOON, wanted).await;
    }

    /// Waits until the file has the servers that take traffic in HAProxy, under the same names.
    pub async fn wait_same_in_file(&self) {
        let socket = self.runtime_socket();
        wait_until(SOON, "the file is what HAProxy runs", async || {
            let (ready, file) = (ready_servers(&socket).await?, servers_of(&self.config()));
            if ready == file { Ok(()) } else { Err(format!("HAProxy has {ready:#?}\nthe file has {file:#?}")) }
        })
        .await;
    }

    /// Waits until HAProxy has no server at an address any more, not even in maintenance.
    pub async fn wait_gone(&self, address: SocketAddr) {
        let socket = self.runtime_socket();
        wait_until(SOON, &format!("the server at {address} is gone"), async || {
            let servers = servers(&socket).await?;
            let left: Vec<_> = servers.into_iter().filter(|(_, server)| server.address == address).collect();
            if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
        })
        .await;
    }

    /// Waits until the file contains a text.
    pub async fn wait_config(&self, text: &str) {
        wait_until(SOON, &format!("{} contains {text:?}", self.output.display()), async || {
            let config = self.config();
            if config.contains(text) { Ok(()) } else { Err(tail(&config)) }
        })
        .await;
    }
}

async fn ready_servers(socket: &Path) -> Result<BTreeMap<String, (SocketAddr, u16)>, String> {
    let ready = servers(socket).await?.into_iter().filter(|(_, server)| server.ready);
    Ok(ready.map(|(id, server)| (id, (server.address, server.weight))).collect())
}

fn backend(id: &str) -> &str {
    id.split('/').next().unwrap_or_default()
}

fn sorted<'a>(names: &[&'a str]) -> Vec<&'a str> {
    let mut names = names.to_vec();
    names.sort_unstable();
    names
}

/// Copies the templates that the project ships into a new directory, so that nobody's edit meanwhile is followed by a running
/// test, with a test's own edits; gives the main one.
fn copy_templates(into: &Path, edits: &[(String, String)]) -> PathBuf {
    fs::create_dir(into).unwrap();
    let main = default_template();
    let mut unused: Vec<&str> = edits.iter().map(|(from, _)| from.as_str()).collect();
    for file in fs::read_dir(main.parent().unwrap()).unwrap() {
        let file = file.unwrap();
        let mut text = fs::read_to_string(file.path()).unwrap();
        unused.retain(|from| !text.contains(from));
        for (from, to) in edits {
            text = text.replace(from, to);
        }
        fs::write(into.join(file.file_name()), text).unwrap();
    }
    assert!(unused.is_empty(), "the templates have no such text: {unused:?}");
    into.join(main.file_name().unwrap())
}

/// A field of a log event as text; empty when it has none.
pub fn field(event: &Value, name: &str) -> String {
    match event["fields"].get(name).or_else(|| event.get(name)) {
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
        None => String::new(),
    }
}

/// Runs the program to its end with these arguments: for `render`, `check`, `--once`, `--help` and wrong flags.
pub async fn run_discoverer(args: &[&str]) -> Finished {
    run(&find_workspace_binary("discoverer"), args, &[], secs(20)).await
}

/// A template of a test's own, in a directory of its own.
pub struct TemplateFile {
    path: PathBuf,
    dir: TempDir,
}

impl TemplateFile {
    /// Writes it.
    pub fn new(text: &str) -> TemplateFile {
        let dir = tempfile::Builder::new().prefix("e2e-template-").tempdir().unwrap();
        let path = dir.path().join("haproxy.cfg.tera");
        fs::write(&path, text).unwrap();
        TemplateFile { path, dir }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes it anew in place, as `cat >` does.
    pub fn overwrite(&self, text: &str) {
        fs::write(&self.path, text).unwrap();
    }

    /// Puts a new file in its place, as editors do.
    pub fn replace(&self, text: &str) {
        let new = self.dir.path().join("haproxy.cfg.tera.new");
        fs::write(&new, text).unwrap();
        fs::rename(&new, &self.path).unwrap();
    }
}
