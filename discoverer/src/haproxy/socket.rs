//! One question to one of HAProxy's sockets: the master CLI or the stats socket.

use std::path::Path;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// The largest reply that is read, in bytes: the state of 100,000 servers takes some 15 MB.
const REPLY_LIMIT: u64 = 64 * 1024 * 1024;

/// How much is read at once, in bytes: most replies in one go.
const FIRST_READ: usize = 64 * 1024;

/// Why a socket gave no reply.
#[derive(Debug, thiserror::Error)]
#[error("HAProxy's socket {path}: {error}")]
pub struct SocketError {
    path: String,
    error: std::io::Error,
}

impl SocketError {
    /// What went wrong with the socket at a path.
    pub(super) fn new(path: &Path, error: std::io::Error) -> Self {
        Self { path: path.display().to_string(), error }
    }
}

/// Sends one command and gives the whole reply as text.
///
/// The write side is closed behind the command: the master CLI stays open otherwise.
pub async fn ask(path: &Path, command: &str, limit: Duration) -> Result<String, SocketError> {
    let talk = async {
        let mut stream = UnixStream::connect(path).await?;
        stream.write_all(format!("{command}\n").as_bytes()).await?;
        stream.shutdown().await?;
        let mut reply = Vec::with_capacity(FIRST_READ);
        stream.take(REPLY_LIMIT).read_to_end(&mut reply).await?;
        Ok(String::from_utf8(reply).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned()))
    };
    let timed_out = || std::io::Error::new(std::io::ErrorKind::TimedOut, format!("no reply within {limit:?}"));
    let reply = tokio::time::timeout(limit, talk).await.unwrap_or_else(|_| Err(timed_out()));
    reply.map_err(|error| SocketError::new(path, error))
}
