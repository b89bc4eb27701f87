//! The applications behind HAProxy: tiny HTTP servers in the test process that answer with their name.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

use crate::http::read_head;

/// How long a request for `/slow` takes.
pub const SLOW: Duration = Duration::from_secs(2);

/// A server on a port of its own. Dropping it closes the port and every connection.
pub struct Backend {
    name: String,
    address: SocketAddr,
    requests: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl Backend {
    /// Starts one on 127.0.0.1 that answers every request with `name` as the body; for the path `/slow` it takes [`SLOW`].
    pub async fn start(name: &str) -> Backend {
        Backend::start_at(name, SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).await
    }

    /// The same on a given address.
    pub async fn start_at(name: &str, address: SocketAddr) -> Backend {
        let listener =
            TcpListener::bind(address).await.unwrap_or_else(|error| panic!("backend {name} on {address}: {error}"));
        let address = listener.local_addr().unwrap();
        let requests = Arc::new(AtomicU64::new(0));
        let task = tokio::spawn(serve(listener, name.to_owned(), Arc::clone(&requests)));
        Backend { name: name.to_owned(), address, requests, task }
    }

    /// What it answers.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its key in the flat layout, `/service/127.0.0.1:PORT`.
    pub fn flat_key(&self) -> String {
        format!("/service/{}", self.address)
    }

    /// Its key as an instance of a service, `/service/NAME/127.0.0.1:PORT`.
    pub fn key_in(&self, service: &str) -> String {
        format!("/service/{service}/{}", self.address)
    }

    /// How many requests it has answered, HAProxy's own checks included.
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(listener: TcpListener, name: String, requests: Arc<AtomicU64>) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        while connections.try_join_next().is_some() {}
        connections.spawn(answer(stream, name.clone(), Arc::clone(&requests)));
    }
}

async fn answer(stream: TcpStream, name: String, requests: Arc<AtomicU64>) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let (first, headers) = read_head(&mut stream).await?;
        requests.fetch_add(1, Ordering::Relaxed);
        if first.contains(" /slow ") {
            tokio::time::sleep(SLOW).await;
        }
        let closing = headers.iter().any(|(n, v)| n == "connection" && v.eq_ignore_ascii_case("close"));
        let connection = if closing { "Connection: close\r\n" } else { "" };
        let body = if first.starts_with("HEAD ") { "" } else { name.as_str() };
        let reply = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n{connection}\r\n{body}", name.len());
        stream.get_mut().write_all(reply.as_bytes()).await?;
        if closing {
            return stream.get_mut().shutdown().await;
        }
    }
}
