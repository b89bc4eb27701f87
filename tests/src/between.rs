//! Somebody between the discoverer and HAProxy's stats socket: a unix socket of its own that passes everything on, or falls ill
//! when a test says so.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::{JoinHandle, JoinSet};

/// What can be wrong with a stats socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sickness {
    /// There is no file at its path.
    Absent,
    /// There is one, and nobody listens.
    Refuses,
    /// It passes a few bytes of the reply on, and closes.
    ClosesHalfWay,
    /// It answers with bytes that mean nothing.
    Rubbish,
    /// HAProxy does what it is told, and each reply says that it did not.
    SaysNo,
    /// It takes connections and commands, and never answers.
    Silent,
}

/// The socket. Dropping it closes it.
pub struct Between {
    real: PathBuf,
    path: PathBuf,
    asked: Arc<AtomicU64>,
    task: Option<JoinHandle<()>>,
    _dir: TempDir,
}

impl Between {
    /// One that passes everything on to the stats socket `real`, which need not be there yet.
    pub fn start(real: &Path) -> Between {
        let dir = tempfile::Builder::new().prefix("e2e-between-").tempdir().unwrap();
        let path = dir.path().join("runtime.sock");
        let mut between = Between { real: real.to_path_buf(), path, asked: Arc::default(), task: None, _dir: dir };
        between.listen(None);
        between
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How many connections it has taken.
    pub fn asked(&self) -> u64 {
        self.asked.load(Ordering::Relaxed)
    }

    /// Falls ill; connections that are open end.
    pub fn falls_ill(&mut self, sickness: Sickness) {
        self.listen(Some(sickness));
    }

    /// Is well again.
    pub fn recovers(&mut self) {
        self.listen(None);
    }

    fn listen(&mut self, sickness: Option<Sickness>) {
        if let Some(task) = self.task.take() {
            task.abort();
        }
        let _absent_already = std::fs::remove_file(&self.path);
        if sickness == Some(Sickness::Absent) {
            return;
        }
        let listener = UnixListener::bind(&self.path).unwrap();
        if sickness == Some(Sickness::Refuses) {
            // The file stays when its listener is gone.
            return drop(listener);
        }
        let (real, asked) = (self.real.clone(), Arc::clone(&self.asked));
        self.task = Some(tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                while connections.try_join_next().is_some() {}
                asked.fetch_add(1, Ordering::Relaxed);
                connections.spawn(serve(client, real.clone(), sickness));
            }
        }));
    }
}

impl Drop for Between {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

async fn serve(mut client: UnixStream, real: PathBuf, sickness: Option<Sickness>) -> io::Result<()> {
    match sickness {
        Some(Sickness::Silent) => {
            let mut taken = Vec::new();
            client.read_to_end(&mut taken).await?;
            std::future::pending().await
        }
        Some(Sickness::Rubbish) => {
            // What is not read before the end would make it a reset.
            let mut taken = vec![0; 64 * 1024];
            let _count = client.read(&mut taken).await?;
            client.write_all(b"\n> \0\xff\xfe{}\n\n> 17\n\n> ").await?;
            client.shutdown().await?;
            client.read_to_end(&mut taken).await.map(drop)
        }
        _ => pass_on(client, UnixStream::connect(real).await?, sickness).await,
    }
}

/// Passes bytes on, both ways, until HAProxy closes.
async fn pass_on(client: UnixStream, server: UnixStream, sickness: Option<Sickness>) -> io::Result<()> {
    let ((mut from_client, mut to_client), (mut from_server, mut to_server)) =
        (client.into_split(), server.into_split());
    let there = async {
        tokio::io::copy(&mut from_client, &mut to_server).await?;
        to_server.shutdown().await?;
        // The rest is for the other direction to end.
        std::future::pending::<io::Result<()>>().await
    };
    let back = async {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let count = from_server.read(&mut buffer).await?;
            let bytes = &buffer[..count];
            match sickness {
                _ if count == 0 => return to_client.shutdown().await,
                Some(Sickness::ClosesHalfWay) => {
                    to_client.write_all(&bytes[..count.min(4)]).await?;
                    return to_client.shutdown().await;
                }
                Some(Sickness::SaysNo) => {
                    let text = String::from_utf8_lossy(bytes).replace("New server registered.", "Permission denied.");
                    to_client.write_all(text.as_bytes()).await?;
                }
                _ => to_client.write_all(bytes).await?,
            }
        }
    };
    tokio::select! {
        result = there => result,
        result = back => result,
    }
}
