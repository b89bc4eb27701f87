//! The real HAProxy, in each version under test: as somebody else's process (master-worker, with a master socket and a pid
//! file, beside the discoverer), and what it says of itself.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

use crate::http;
use crate::ports::free_address;
use crate::process::{Process, find_program, target_dir};
use crate::{secs, wait_until};

/// A reply to one command; from 3.0 on that to `reload` comes when it is done.
const CLI_LIMIT: Duration = secs(15);

/// The versions that are tested.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// The one of this machine: 2.6 on Debian 12.
    Installed,
    /// 3.0 of Debian 13, which `tests/install-haproxy-3.0` provides.
    V3_0,
}

impl Version {
    /// Its program; when it is absent the test fails and says how to get it.
    pub fn program(self) -> PathBuf {
        match self {
            Version::Installed => find_program("haproxy", "haproxy"),
            Version::V3_0 => {
                let path = target_dir().join("haproxy-3.0/haproxy");
                assert!(path.is_file(), "{} is not there: run tests/install-haproxy-3.0, or ./test", path.display());
                path
            }
        }
    }
}

/// A running `haproxy -W`. Dropping it ends master and workers.
pub struct Haproxy {
    process: Option<Process>,
    version: Version,
    http: SocketAddr,
    dir: TempDir,
}

impl Haproxy {
    /// Starts one with a first configuration of its own that answers 503 on [`Haproxy::http`], and waits until it
    /// and its master answer.
    pub async fn start() -> Haproxy {
        Haproxy::start_version(Version::Installed).await
    }

    /// [`Haproxy::start`] with a version.
    pub async fn start_version(version: Version) -> Haproxy {
        let dir = tempfile::Builder::new().prefix("e2e-haproxy-").tempdir().unwrap();
        let http = free_address();
        let config = dir.path().join("haproxy.cfg");
        fs::write(&config, first_configuration(http)).unwrap();
        fs::write(dir.path().join("own.cfg"), "").unwrap();
        let mut haproxy = Haproxy { process: None, version, http, dir };
        haproxy.start_again();
        wait_until(secs(10), "haproxy answers", async || match http::get(http, "/").await {
            Ok(reply) if reply.status == 503 => Ok(()),
            other => Err(format!("{other:?}")),
        })
        .await;
        // The master begins to answer a little after its worker.
        haproxy.wait_reloads(0).await;
        haproxy
    }

    /// Starts it with the configuration file as it is now.
    pub fn start_again(&mut self) {
        assert!(self.process.is_none(), "haproxy runs already");
        let path = |name: &str| self.dir.path().join(name).display().to_string();
        let (master, pid_file) = (path("master.sock"), path("haproxy.pid"));
        let files = [path("haproxy.cfg"), path("own.cfg")];
        let args = ["-W", "-S", &master, "-p", &pid_file, "-f", &files[0], "-f", &files[1]].map(str::to_owned);
        let log = self.dir.path().join("log");
        self.process = Some(Process::start("haproxy", &self.version.program(), &args, &log, self.dir.path()));
    }

    /// Starts it as another version, as after an upgrade.
    pub fn start_again_as(&mut self, version: Version) {
        self.version = version;
        self.start_again();
    }

    /// Ends master and workers at once.
    pub fn kill(&mut self) {
        drop(self.process.take().expect("haproxy runs"));
    }

    /// Its version.
    pub fn version(&self) -> Version {
        self.version
    }

    /// Where its frontend listens: the first configuration's, and the one to hand to the discoverer as `http_bind`.
    pub fn http(&self) -> SocketAddr {
        self.http
    }

    /// Its configuration file: the discoverer's `--output`.
    pub fn config(&self) -> PathBuf {
        self.dir.path().join("haproxy.cfg")
    }

    /// The configuration file of somebody else's that it reads behind the discoverer's: empty at first.
    pub fn own_config(&self) -> PathBuf {
        self.dir.path().join("own.cfg")
    }

    /// The master CLI's socket.
    pub fn master_socket(&self) -> PathBuf {
        self.dir.path().join("master.sock")
    }

    /// Where its stats socket is to be; its first configuration has none.
    pub fn runtime_socket(&self) -> PathBuf {
        self.dir.path().join("runtime.sock")
    }

    /// The file with the master's process id.
    pub fn pid_file(&self) -> PathBuf {
        self.dir.path().join("haproxy.pid")
    }

    /// Waits until it was reloaded at least `least` times, as its master tells.
    pub async fn wait_reloads(&self, least: u64) {
        wait_until(secs(30), &format!("haproxy was reloaded {least} times"), async || {
            let count = reloads(&self.master_socket()).await?;
            if count >= least { Ok(()) } else { Err(count.to_string()) }
        })
        .await;
    }
}

/// Sends one command to a CLI socket and returns the whole reply (HAProxy's management guide, 9.3 and 9.4).
pub async fn cli(socket: &Path, command: &str) -> Result<String, String> {
    let exchange = async {
        let mut stream = UnixStream::connect(socket).await?;
        stream.write_all(format!("{command}\n").as_bytes()).await?;
        stream.shutdown().await?;
        let mut reply = Vec::new();
        stream.read_to_end(&mut reply).await?;
        Ok::<_, std::io::Error>(String::from_utf8_lossy(&reply).into_owned())
    };
    match tokio::time::timeout(CLI_LIMIT, exchange).await {
        Ok(reply) => reply.map_err(|error| format!("{}: {command}: {error}", socket.display())),
        Err(_) => Err(format!("{}: {command}: no reply in {CLI_LIMIT:?}", socket.display())),
    }
}

/// The reload count of a master: the third column of its own line in `show proc`. While it is reloading, nobody answers.
pub async fn reloads(master_socket: &Path) -> Result<u64, String> {
    let table = cli(master_socket, "show proc").await?;
    table
        .lines()
        .find(|line| line.split_whitespace().nth(1) == Some("master"))
        .and_then(|line| line.split_whitespace().nth(2)?.parse().ok())
        .ok_or_else(|| format!("no master in show proc:\n{table}"))
}

/// The process id of the master that answers on a master socket: that of its own line in `show proc`.
///
/// Not to be taken from the processes that the discoverer has: `haproxy -c`, its check of a file, may be among them.
pub async fn master(master_socket: &Path) -> Result<u32, String> {
    let table = cli(master_socket, "show proc").await?;
    let mut rows = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let pid = rows.find(|row| row.get(1) == Some(&"master")).and_then(|row| row[0].parse().ok());
    pid.ok_or_else(|| format!("no master in show proc:\n{table}"))
}

/// The process id of the worker that answers on a stats socket.
pub async fn worker(runtime_socket: &Path) -> Result<u32, String> {
    let info = cli(runtime_socket, "show info").await?;
    let pid = info.lines().find_map(|line| line.strip_prefix("Pid: ")?.trim().parse().ok());
    pid.ok_or_else(|| format!("no pid in show info:\n{info}"))
}

/// A server as HAProxy has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Server {
    /// Where requests go.
    pub address: SocketAddr,
    /// Neither in maintenance nor draining.
    pub ready: bool,
    /// Its check has it up.
    pub up: bool,
    /// Its weight.
    pub weight: u16,
}

/// All servers that HAProxy has, by `backend/server` (management guide, 9.3, "show servers state").
pub async fn servers(runtime_socket: &Path) -> Result<BTreeMap<String, Server>, String> {
    let table = cli(runtime_socket, "show servers state").await?;
    if !table.starts_with("1\n#") {
        return Err(format!("not a table of servers: {table}"));
    }
    let read = |line: &str| {
        let fields: Vec<&str> = line.split(' ').collect();
        let field = |at: usize| fields.get(at).copied().unwrap_or_default();
        let address = SocketAddr::new(field(4).parse().ok()?, field(18).parse().ok()?);
        let (up, ready, weight) = (field(5) == "2", field(6).parse::<u8>().ok()? & 9 == 0, field(7).parse().ok()?);
        Some((format!("{}/{}", field(1), field(3)), Server { address, ready, up, weight }))
    };
    let lines = table.lines().skip(2).filter(|line| !line.is_empty());
    lines.map(|line| read(line).ok_or_else(|| format!("not a server: {line}"))).collect()
}

/// The servers of a configuration file, by `backend/server`, with address and weight.
pub fn servers_of(config: &str) -> BTreeMap<String, (SocketAddr, u16)> {
    let mut backend = "";
    let mut servers = BTreeMap::new();
    for line in config.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        if let ["backend" | "listen", name, ..] = words.as_slice() {
            backend = name;
        }
        if let ["server", name, address, rest @ ..] = words.as_slice() {
            let weight = rest.iter().position(|word| *word == "weight").map_or(1, |at| rest[at + 1].parse().unwrap());
            servers.insert(format!("{backend}/{name}"), (address.parse().unwrap(), weight));
        }
    }
    servers
}

fn first_configuration(http: SocketAddr) -> String {
    format!(
        "global\n  hard-stop-after 5s\ndefaults\n  mode http\n  timeout connect 1s\n  timeout client 5s\n  timeout server 5s\n\
         frontend _first\n  bind {http}\n"
    )
}
