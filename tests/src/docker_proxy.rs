//! The read-only proxy of Docker's socket, as `packaging/docker-proxy/haproxy.cfg` has it, on the real HAProxy.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

use crate::haproxy::Version;
use crate::process::{Process, find_program};
use crate::{secs, wait_until, workspace};

/// A proxy that runs. Dropping it ends it.
pub struct DockerProxy {
    process: Process,
    dir: TempDir,
}

impl DockerProxy {
    /// Starts one in front of the socket `engine`, which may be absent, and waits until it takes connections.
    pub async fn start(engine: &Path) -> DockerProxy {
        let dir = tempfile::Builder::new().prefix("e2e-docker-proxy-").tempdir().unwrap();
        let args = [
            format!("DOCKER_PROXY_SOCKET={}", dir.path().join("docker.sock").display()),
            format!("DOCKER_PROXY_ENGINE={}", engine.display()),
            Version::Installed.program().display().to_string(),
            "-db".to_owned(),
            "-f".to_owned(),
            workspace().join("packaging/docker-proxy/haproxy.cfg").display().to_string(),
        ];
        let env = find_program("env", "coreutils");
        let process = Process::start("the Docker socket proxy", &env, &args, &dir.path().join("log"), dir.path());
        let proxy = DockerProxy { process, dir };
        wait_until(secs(10), "the proxy takes connections", async || {
            UnixStream::connect(proxy.path()).await.map(drop).map_err(|error| error.to_string())
        })
        .await;
        proxy
    }

    /// Its socket.
    pub fn path(&self) -> PathBuf {
        self.dir.path().join("docker.sock")
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// Sends these bytes as they are, and gives all that comes back until it ends the connection, or says nothing for `patience`.
    pub async fn raw(&self, bytes: &[u8], patience: Duration) -> String {
        let mut stream = UnixStream::connect(self.path()).await.unwrap();
        // It may answer and close before it has read all of it.
        let _refused_early = stream.write_all(bytes).await;
        let mut reply = Vec::new();
        let mut buffer = [0; 4096];
        while let Ok(Ok(read @ 1..)) = tokio::time::timeout(patience, stream.read(&mut buffer)).await {
            reply.extend_from_slice(&buffer[..read]);
        }
        String::from_utf8_lossy(&reply).into_owned()
    }
}
