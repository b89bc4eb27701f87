//! The real HAProxy as somebody else's process: master-worker, with a master socket and a pid file, beside the discoverer.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

use crate::http;
use crate::ports::free_address;
use crate::process::{Process, find_program};
use crate::{secs, wait_until};

/// A running `haproxy -W`. Dropping it ends master and workers.
pub struct Haproxy {
    process: Option<Process>,
    http: SocketAddr,
    dir: TempDir,
}

impl Haproxy {
    /// Starts one with a first configuration of its own that answers 503 on [`Haproxy::http`], and waits until it answers.
    pub async fn start() -> Haproxy {
        let dir = tempfile::Builder::new().prefix("e2e-haproxy-").tempdir().unwrap();
        let http = free_address();
        let config = dir.path().join("haproxy.cfg");
        fs::write(&config, first_configuration(http)).unwrap();
        let mut haproxy = Haproxy { process: None, http, dir };
        haproxy.start_again();
        wait_until(secs(10), "haproxy answers", async || match http::get(http, "/").await {
            Ok(reply) if reply.status == 503 => Ok(()),
            other => Err(format!("{other:?}")),
        })
        .await;
        haproxy
    }

    /// Starts it with the configuration file as it is now.
    pub fn start_again(&mut self) {
        assert!(self.process.is_none(), "haproxy runs already");
        let path = |name: &str| self.dir.path().join(name).display().to_string();
        let args = ["-W", "-S", &path("master.sock"), "-p", &path("haproxy.pid"), "-f", &path("haproxy.cfg")]
            .map(str::to_owned);
        let log = self.dir.path().join("log");
        self.process = Some(Process::start("haproxy", &find_haproxy(), &args, &log, self.dir.path()));
    }

    /// Ends master and workers at once.
    pub fn kill(&mut self) {
        drop(self.process.take().expect("haproxy runs"));
    }

    /// Where its frontend listens: the first configuration's, and the one to hand to the discoverer as `http_bind`.
    pub fn http(&self) -> SocketAddr {
        self.http
    }

    /// Its configuration file: the discoverer's `--output`.
    pub fn config(&self) -> PathBuf {
        self.dir.path().join("haproxy.cfg")
    }

    /// The master CLI's socket.
    pub fn master_socket(&self) -> PathBuf {
        self.dir.path().join("master.sock")
    }

    /// The file with the master's process id.
    pub fn pid_file(&self) -> PathBuf {
        self.dir.path().join("haproxy.pid")
    }

    /// Waits until it was reloaded at least `least` times, as its master tells.
    pub async fn wait_reloads(&self, least: u64) {
        wait_until(secs(10), &format!("haproxy was reloaded {least} times"), async || {
            let count = reloads(&self.master_socket()).await?;
            if count >= least { Ok(()) } else { Err(count.to_string()) }
        })
        .await;
    }
}

/// Finds the haproxy program.
pub fn find_haproxy() -> PathBuf {
    find_program("haproxy", "haproxy")
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
    match tokio::time::timeout(secs(5), exchange).await {
        Ok(reply) => reply.map_err(|error| format!("{}: {command}: {error}", socket.display())),
        Err(_) => Err(format!("{}: {command}: no reply in 5 s", socket.display())),
    }
}

/// The reload count of a master: the third column of its own line in `show proc`. While it is reloading, nobody answers.
async fn reloads(master_socket: &Path) -> Result<u64, String> {
    let table = cli(master_socket, "show proc").await?;
    table
        .lines()
        .find(|line| line.split_whitespace().nth(1) == Some("master"))
        .and_then(|line| line.split_whitespace().nth(2)?.parse().ok())
        .ok_or_else(|| format!("no master in show proc:\n{table}"))
}

fn first_configuration(http: SocketAddr) -> String {
    format!(
        "global\n  hard-stop-after 5s\ndefaults\n  mode http\n  timeout connect 1s\n  timeout client 5s\n  timeout server 5s\n\
         frontend _first\n  bind {http}\n"
    )
}
