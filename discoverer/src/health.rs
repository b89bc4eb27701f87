//! `discoverer health`: whether HAProxy takes connections, asked of HAProxy itself and not of the discoverer. So cheap that it may
//! be asked each second, by Docker and by keepalived.
//!
//! It says nothing of etcd, templates or services: a load balancer that serves its last state is to be neither restarted nor
//! left for another one, which has the same trouble.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::client::reached_at;
use crate::config::Flags;
use crate::haproxy::{Runtime, RuntimeError};
use crate::output::Output;
use crate::plan::Parsed;

/// The limit on an answer, and on a connection to the machine that we are on: keepalived waits for both.
const LIMIT: Duration = Duration::from_secs(1);

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
fn bound(file: &std::path::Path) -> Result<SocketAddr, Unhealthy> {
    let shown = || file.display().to_string();
    let text = Output::new(file).read().ok_or_else(|| Unhealthy::NoFile { file: shown() })?;
    let binds = Parsed::new(text).binds();
    let first =
        binds.into_iter().find(|bind| !bind.transparent).ok_or_else(|| Unhealthy::NoAddress { file: shown() })?;
    Ok(reached_at(first.address))
}

#[cfg(test)]
mod tests {
    use super::*;

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
