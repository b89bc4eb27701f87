//! `discoverer health`: whether HAProxy takes connections, asked of HAProxy itself and not of the discoverer. So cheap that it may
//! be asked each second, by Docker and by keepalived.
//!
//! It says nothing of etcd, templates or services: a load balancer that serves its last state is to be neither restarted nor
//! left for another one, which has the same trouble.

use std::iter::once;
use std::net::SocketAddr;
use std::path::{Path, PathBuf, absolute};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tracing::info;

use crate::client::reached_at;
use crate::config::Flags;
use crate::haproxy::{Runtime, RuntimeError};
use crate::output::Output;
use crate::plan::Parsed;

/// The limit on an answer, and on a connection to the machine that we are on: keepalived waits for both.
const LIMIT: Duration = Duration::from_secs(1);

/// In the state directory: where the discoverer that runs has HAProxy.
const FILE: &str = "health.json";
/// The variables that name that directory.
const STATE_DIRECTORIES: [&str; 2] = ["DISCOVERER_STATE_DIR", "STANDALONE_STATE_DIR"];

/// By which paths HAProxy is found.
#[derive(Debug, Serialize, Deserialize)]
struct Paths {
    output: PathBuf,
    runtime_socket: Option<PathBuf>,
}

/// Leaves behind where HAProxy is, for whoever asks without the flags of this discoverer or with a file that has changed since: in its state
/// directory, and in the one that the environment names, which is all that a container's health check knows.
pub(crate) async fn leave(flags: &Flags) {
    let whole = |path: PathBuf| absolute(&path).unwrap_or(path);
    let paths = Paths { output: whole(flags.output.clone()), runtime_socket: flags.runtime_socket().map(whole) };
    let named = STATE_DIRECTORIES.into_iter().filter_map(std::env::var_os).filter(|value| !value.is_empty());
    let directories = once(flags.state_directory()).chain(named.map(PathBuf::from));
    for directory in directories {
        if let Err(error) = write(&directory.join(FILE), &paths).await {
            let error = format!("{error:#}");
            info!(error, "the command health is to be given the flags of this process");
        }
    }
}

async fn write(path: &Path, paths: &Paths) -> anyhow::Result<()> {
    let output = Output::new(path);
    output.prepare(serde_json::to_string(paths)?).await?;
    Ok(output.promote().await?)
}

/// Has HAProxy asked where the discoverer that runs has it, unless a flag of the command line, of which `is_given` is told the name, says
/// where it is.
pub fn find(flags: &mut Flags, is_given: impl Fn(&str) -> bool) {
    if ["output", "runtime-socket", "supervise"].into_iter().any(is_given) {
        return;
    }
    let text = Output::new(flags.state_directory().join(FILE)).read();
    if let Some(paths) = text.and_then(|text| serde_json::from_str::<Paths>(&text).ok()) {
        flags.output = paths.output;
        flags.supervise &= paths.runtime_socket.is_some();
        flags.runtime_socket = paths.runtime_socket;
    }
}

/// Why HAProxy is not healthy.
#[derive(Debug, thiserror::Error)]
pub enum Unhealthy {
    /// The worker does not answer as it should.
    #[error("HAProxy does not answer: {0}")]
    Silent(#[from] RuntimeError),
    /// The worker hangs.
    #[error("HAProxy does not answer within {LIMIT:?}")]
    Hangs,
    /// The worker is about to end.
    #[error("HAProxy is stopping")]
    Stopping,
    /// There is no file, and so nothing that HAProxy could listen at.
    #[error("{file} is not there yet: HAProxy has had no configuration")]
    NoFile {
        /// The file of --output.
        file: String,
    },
    /// The file names no TCP address.
    #[error("{file} has no bind line with a TCP address; say where HAProxy listens: health --connect ADDRESS")]
    NoAddress {
        /// The file of --output.
        file: String,
    },
    /// No connection comes about.
    #[error("HAProxy does not take connections at {address}: {error}")]
    Refused {
        /// Where.
        address: SocketAddr,
        /// What the kernel says.
        error: std::io::Error,
    },
}

/// Asks HAProxy's worker over the stats socket, where there is one, and connects to the address, or to the first that the file
/// binds. Gives where that was.
///
/// # Errors
/// What is not as it should be.
pub async fn ask(flags: &Flags, connect: Option<SocketAddr>) -> Result<SocketAddr, Unhealthy> {
    let address = match connect {
        Some(address) => address,
        None => bound(&flags.output)?,
    };
    if let Some(path) = flags.runtime_socket() {
        // Connections are taken by the kernel for a worker that hangs, too; an answer it gives only itself.
        let runtime = Runtime::new(path);
        if timeout(LIMIT, runtime.worker()).await.map_err(|_| Unhealthy::Hangs)??.is_stopping {
            return Err(Unhealthy::Stopping);
        }
    }
    let refused = |error| Unhealthy::Refused { address, error };
    let late = |_| refused(std::io::Error::new(std::io::ErrorKind::TimedOut, format!("not within {LIMIT:?}")));
    timeout(LIMIT, TcpStream::connect(address)).await.map_err(late)?.map_err(refused)?;
    Ok(address)
}

/// The first TCP address that the file binds and this host surely has.
fn bound(file: &Path) -> Result<SocketAddr, Unhealthy> {
    let shown = || file.display().to_string();
    let text = Output::new(file).read().ok_or_else(|| Unhealthy::NoFile { file: shown() })?;
    let binds = Parsed::new(text).binds();
    let first =
        binds.into_iter().find(|bind| !bind.transparent).ok_or_else(|| Unhealthy::NoAddress { file: shown() })?;
    Ok(reached_at(first.address))
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::config::Cli;

    #[tokio::test]
    async fn haproxy_is_found_where_the_discoverer_that_runs_has_it_or_where_a_flag_says() {
        let directory = tempfile::tempdir().unwrap();
        let state = format!("--state-dir={}", directory.path().display());
        let flags = |args: &[&str]| Cli::parse_from(["discoverer", &state].iter().chain(args)).flags;
        let found = |args: &[&str], given: &str| {
            let mut flags = flags(args);
            find(&mut flags, |name| name == given);
            (flags.output.display().to_string(), flags.runtime_socket().map(|path| path.display().to_string()))
        };
        let own = (String::from("/mine"), Some(format!("{}/runtime.sock", directory.path().display())));
        assert_eq!(found(&["--output=/mine", "--supervise"], ""), own, "none runs");
        leave(&flags(&["--output=/a.cfg", "--runtime-socket=/a.sock"])).await;
        let left = ("/a.cfg".to_owned(), Some("/a.sock".to_owned()));
        assert_eq!(found(&["--output=/of-the-environment", "--supervise"], ""), left);
        assert_eq!(found(&["--output=/mine", "--supervise"], "output"), own);
        leave(&flags(&["--output=/b.cfg", "--reload-command=true"])).await;
        assert_eq!(found(&["--supervise"], ""), ("/b.cfg".to_owned(), None));
        std::fs::write(directory.path().join(FILE), "{").unwrap();
        assert_eq!(found(&["--output=/mine", "--supervise"], ""), own, "it cannot be read");
    }

    #[test]
    fn the_first_address_that_this_host_surely_has_is_asked() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("haproxy.cfg");
        assert!(matches!(bound(&file), Err(Unhealthy::NoFile { .. })));
        let cases = [
            ("frontend a\n bind :80\n bind :81\n", Some("127.0.0.1:80")),
            ("frontend a\n bind 10.9.9.9:80 transparent\n bind [::]:81\n", Some("[::1]:81")),
            ("frontend a\n bind /run/a.sock\nfrontend b\n bind 127.0.0.1:82 ssl crt /x\n", Some("127.0.0.1:82")),
            ("frontend a\n bind quic4@:443\n bind :80-90\n", None),
            ("", None),
        ];
        for (text, expected) in cases {
            std::fs::write(&file, text).unwrap();
            let found = bound(&file).ok().map(|address| address.to_string());
            assert_eq!(found.as_deref(), expected, "{text}");
        }
    }
}
