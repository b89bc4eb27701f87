//! Something on etcd's port that is not a healthy etcd: a scripted server for what the real one cannot be made to do.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::io::{AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

use crate::http::read_head;

/// How it is ill.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Illness {
    /// Answers every request with status 500 and a page of HTML.
    Says500,
    /// Takes the request and never answers.
    Hangs,
    /// Promises a whole body and closes in the middle of the JSON.
    HalfJson,
    /// Answers 200 with JSON in which the fields have the wrong types.
    WrongType,
    /// Closes each connection at once.
    Closes,
}

impl Illness {
    /// All of them.
    pub const ALL: [Illness; 5] =
        [Illness::Says500, Illness::Hangs, Illness::HalfJson, Illness::WrongType, Illness::Closes];
}

/// The server. Dropping it closes its port.
pub struct FakeEtcd {
    address: SocketAddr,
    requests: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl FakeEtcd {
    /// Starts one on a port of 127.0.0.1.
    pub async fn start(illness: Illness) -> FakeEtcd {
        FakeEtcd::start_at(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), illness).await
    }

    /// Starts one on a given address: where an etcd has just been.
    pub async fn start_at(address: SocketAddr, illness: Illness) -> FakeEtcd {
        let listener =
            TcpListener::bind(address).await.unwrap_or_else(|error| panic!("fake etcd on {address}: {error}"));
        let address = listener.local_addr().unwrap();
        let requests = Arc::new(AtomicU64::new(0));
        let task = tokio::spawn(serve(listener, illness, Arc::clone(&requests)));
        FakeEtcd { address, requests, task }
    }

    /// Its URL, as `--etcd` wants it.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// How many times it was asked; connections that it closed at once count too.
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }
}

impl Drop for FakeEtcd {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(listener: TcpListener, illness: Illness, requests: Arc<AtomicU64>) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        while connections.try_join_next().is_some() {}
        connections.spawn(answer(stream, illness, Arc::clone(&requests)));
    }
}

async fn answer(stream: TcpStream, illness: Illness, requests: Arc<AtomicU64>) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    if illness == Illness::Closes {
        requests.fetch_add(1, Ordering::Relaxed);
        return Ok(());
    }
    loop {
        read_head(&mut stream).await?;
        requests.fetch_add(1, Ordering::Relaxed);
        let (status, body, promised) = match illness {
            Illness::Says500 => ("500 Internal Server Error", "<html><h1>oops</h1></html>", 26),
            Illness::HalfJson => ("200 OK", r#"{"action":"get","node":{"key":"/serv"#, 4000),
            Illness::WrongType => (
                "200 OK",
                r#"{"action":17,"node":{"key":["/service"],"dir":"yes","nodes":{"a":1},"modifiedIndex":"ten"}}"#,
                91,
            ),
            Illness::Hangs | Illness::Closes => std::future::pending().await,
        };
        let head = format!(
            "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nX-Etcd-Cluster-Id: cdf818194e3a8c32\r\nX-Etcd-Index: 7\r\n\
             Content-Length: {promised}\r\n\r\n"
        );
        stream.get_mut().write_all(head.as_bytes()).await?;
        stream.get_mut().write_all(body.as_bytes()).await?;
        if promised != body.len() {
            return stream.get_mut().shutdown().await;
        }
    }
}
