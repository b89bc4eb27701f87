//! The applications behind HAProxy: tiny HTTP servers in the test process that answer with their name, at once or when they
//! are told to, and that echo what comes over a tunnel.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use crate::http::read_head;

/// How long a request for `/slow` takes.
pub const SLOW: Duration = Duration::from_secs(2);

/// A server on a port of its own. Dropping it closes the port and every connection.
pub struct Backend {
    address: SocketAddr,
    shared: Shared,
    released: watch::Sender<bool>,
    task: JoinHandle<()>,
}

/// What all connections of one server have in common.
#[derive(Clone)]
struct Shared {
    name: String,
    requests: Arc<AtomicU64>,
    /// How many requests and tunnels are open now.
    open: Arc<AtomicU64>,
    released: watch::Receiver<bool>,
}

impl Backend {
    /// Starts one on 127.0.0.1 that answers every request with `name` as the body: for the path `/slow` after [`SLOW`], for
    /// `/hold` after [`Backend::release`], and where the request asks for an upgrade, with a tunnel that echoes.
    pub async fn start(name: &str) -> Backend {
        Backend::start_at(name, SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).await
    }

    /// The same on a given address.
    pub async fn start_at(name: &str, address: SocketAddr) -> Backend {
        let listener =
            TcpListener::bind(address).await.unwrap_or_else(|error| panic!("backend {name} on {address}: {error}"));
        let address = listener.local_addr().unwrap();
        let (released, is_released) = watch::channel(false);
        let shared =
            Shared { name: name.to_owned(), requests: Arc::default(), open: Arc::default(), released: is_released };
        let task = tokio::spawn(serve(listener, shared.clone()));
        Backend { address, shared, released, task }
    }

    /// What it answers.
    pub fn name(&self) -> &str {
        &self.shared.name
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
        self.shared.requests.load(Ordering::Relaxed)
    }

    /// How many requests and tunnels it has open now.
    pub fn open(&self) -> u64 {
        self.shared.open.load(Ordering::Relaxed)
    }

    /// Answers all requests for `/hold`, those to come too.
    pub fn release(&self) {
        self.released.send_replace(true);
    }
}

/// Counts what is open, until it is dropped.
struct Open(Arc<AtomicU64>);

impl Open {
    fn new(count: &Arc<AtomicU64>) -> Open {
        count.fetch_add(1, Ordering::Relaxed);
        Open(Arc::clone(count))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(listener: TcpListener, shared: Shared) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        while connections.try_join_next().is_some() {}
        connections.spawn(answer(stream, shared.clone()));
    }
}

async fn answer(stream: TcpStream, mut shared: Shared) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut stream = BufReader::new(stream);
    loop {
        let (first, headers) = read_head(&mut stream).await?;
        shared.requests.fetch_add(1, Ordering::Relaxed);
        let _open = Open::new(&shared.open);
        if headers.iter().any(|(name, _)| name == "upgrade") {
            return echo(stream).await;
        }
        if first.contains(" /slow ") {
            tokio::time::sleep(SLOW).await;
        } else if first.contains(" /hold ") && !held(&mut stream, &mut shared.released).await {
            return Ok(());
        }
        let closing = headers.iter().any(|(n, v)| n == "connection" && v.eq_ignore_ascii_case("close"));
        let connection = if closing { "Connection: close\r\n" } else { "" };
        let body = if first.starts_with("HEAD ") { "" } else { shared.name.as_str() };
        let reply = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n{connection}\r\n{body}", shared.name.len());
        stream.get_mut().write_all(reply.as_bytes()).await?;
        if closing {
            return stream.get_mut().shutdown().await;
        }
    }
}

/// Waits for the release; says no where the connection ends before.
async fn held(stream: &mut BufReader<TcpStream>, released: &mut watch::Receiver<bool>) -> bool {
    tokio::select! {
        released = released.wait_for(|released| *released) => released.is_ok(),
        _ended = stream.fill_buf() => false,
    }
}

/// Takes the upgrade, and gives back what comes.
async fn echo(mut stream: BufReader<TcpStream>) -> io::Result<()> {
    let head = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n";
    stream.get_mut().write_all(head.as_bytes()).await?;
    loop {
        let bytes = stream.fill_buf().await?.to_vec();
        if bytes.is_empty() {
            return Ok(());
        }
        stream.consume(bytes.len());
        stream.get_mut().write_all(&bytes).await?;
    }
}
