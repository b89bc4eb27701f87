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
        stream.take(REPLY_LIMIT + 1).read_to_end(&mut reply).await?;
        if reply.len() as u64 > REPLY_LIMIT {
            let words = format!("its reply to {command:?} has more than {REPLY_LIMIT} bytes; is that HAProxy?");
            return Err(std::io::Error::other(words));
        }
        Ok(String::from_utf8(reply).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned()))
    };
    let timed_out = || std::io::Error::new(std::io::ErrorKind::TimedOut, format!("no reply within {limit:?}"));
    let reply = tokio::time::timeout(limit, talk).await.unwrap_or_else(|_| Err(timed_out()));
    reply.map_err(|error| SocketError::new(path, error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::UnixListener;

    #[tokio::test]
    async fn a_reply_without_end_is_an_error_and_not_half_a_reply() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let line = [b'x'; 64 * 1024];
            while stream.write_all(&line).await.is_ok() {}
        });
        let error = ask(&path, "show info", Duration::from_secs(60)).await.unwrap_err().to_string();
        assert!(error.contains("\"show info\" has more than 67108864 bytes"), "{error}");
        server.await.unwrap();
    }
}
