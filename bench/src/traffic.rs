//! Both ends of the traffic: the applications behind HAProxy and the clients before it, on threads of their own, so that
//! they do not wait for who measures.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use e2e::http::Connection;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

use crate::stats::Times;

/// Between two requests of one client.
const PAUSE: Duration = Duration::from_millis(20);
/// The limit on one request, connecting included.
const LIMIT: Duration = Duration::from_secs(10);
/// How many failed requests are told in words.
const TOLD: usize = 5;

/// An application that answers every request with its name, on one port of all addresses: with 127.0.0.0/8 it is as many
/// servers as anyone wants. Dropping it closes its port and every connection.
pub(crate) struct App {
    port: u16,
    // Its thread ends when this is dropped.
    _stop: oneshot::Sender<()>,
}

impl App {
    /// One that keeps its connections.
    pub(crate) fn start(name: &str) -> anyhow::Result<Self> {
        Self::new(name, false)
    }

    /// One that closes each connection with its answer, so that HAProxy has none left that would hold a server back
    /// which is to be deleted.
    pub(crate) fn closing(name: &str) -> anyhow::Result<Self> {
        Self::new(name, true)
    }

    fn new(name: &str, closes: bool) -> anyhow::Result<Self> {
        let port = e2e::ports::free_port();
        let listener = std::net::TcpListener::bind(("0.0.0.0", port)).context("no port for an application")?;
        listener.set_nonblocking(true)?;
        let (stop, stopped) = oneshot::channel();
        let body: Arc<str> = name.into();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        std::thread::spawn(move || {
            runtime.block_on(async {
                let Ok(listener) = TcpListener::from_std(listener) else { return };
                tokio::select! {
                    () = serve(listener, &body, closes) => {}
                    _ = stopped => {}
                }
            });
        });
        Ok(Self { port, _stop: stop })
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }
}

async fn serve(listener: TcpListener, body: &Arc<str>, closes: bool) {
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        tokio::spawn(answer(stream, Arc::clone(body), closes));
    }
}

/// HAProxy's checks connect and close; its requests are small and come whole, one after another.
async fn answer(mut stream: TcpStream, body: Arc<str>, closes: bool) -> io::Result<()> {
    let mut request = Vec::new();
    loop {
        request.clear();
        while !request.ends_with(b"\r\n\r\n") {
            if stream.read_buf(&mut request).await? == 0 {
                return Ok(());
            }
        }
        let is_last = closes || String::from_utf8_lossy(&request).to_ascii_lowercase().contains("connection: close");
        let close = if is_last { "Connection: close\r\n" } else { "" };
        let reply = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n{close}\r\n{body}", body.len());
        stream.write_all(reply.as_bytes()).await?;
        if is_last {
            return stream.shutdown().await;
        }
    }
}

/// What all clients saw.
#[derive(Debug, Default)]
pub(crate) struct Report {
    pub(crate) served: u64,
    pub(crate) failed: u64,
    /// What failed, by kind of client and error.
    pub(crate) failures: BTreeMap<String, u64>,
    /// How long what was served took, connecting included.
    pub(crate) times: Times,
}

impl Report {
    pub(crate) fn add(&mut self, other: Self) {
        self.served += other.served;
        self.failed += other.failed;
        for (what, count) in other.failures {
            *self.failures.entry(what).or_default() += count;
        }
        self.times.add(other.times);
    }

    /// `0 of 12345`, and what failed.
    pub(crate) fn shown(&self) -> String {
        let told: Vec<_> = self.failures.iter().take(TOLD).map(|(what, count)| format!("{count} x {what}")).collect();
        let total = self.served + self.failed;
        let told = if told.is_empty() { String::new() } else { format!(" ({})", told.join("; ")) };
        format!("{} of {total}{told}", self.failed)
    }
}

/// Clients, half of which keep their connection and half of which open one for each request, each a request every 20 ms.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    report: mpsc::Receiver<Report>,
}

impl Load {
    pub(crate) fn start(address: SocketAddr, clients: usize) -> anyhow::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let (tell, report) = mpsc::channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let is_over = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let report = runtime.block_on(async {
                let clients: Vec<_> =
                    (0..clients).map(|n| tokio::spawn(client(address, n % 2 == 0, Arc::clone(&is_over)))).collect();
                let mut report = Report::default();
                for client in clients {
                    report.add(client.await.unwrap_or_default());
                }
                report
            });
            // Whoever does not ask any more has been stopped.
            let _ = tell.send(report);
        });
        Ok(Self { stop, thread: Some(thread), report })
    }

    pub(crate) fn stop(mut self) -> anyhow::Result<Report> {
        self.stop.store(true, Ordering::Relaxed);
        let report = self.report.recv_timeout(LIMIT * 2).context("the clients did not end")?;
        if let Some(thread) = self.thread.take() {
            thread.join().map_err(|_| anyhow::anyhow!("a client panicked"))?;
        }
        Ok(report)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

async fn client(address: SocketAddr, keeps: bool, stop: Arc<AtomicBool>) -> Report {
    let mut report = Report::default();
    let mut kept: Option<Connection> = None;
    // Clients that begin together stay together, and would ask in bursts.
    tokio::time::sleep(PAUSE.mul_f64(rand::random_range(0.0..1.0))).await;
    while !stop.load(Ordering::Relaxed) {
        let began = Instant::now();
        let reply = tokio::time::timeout(LIMIT, ask(address, keeps, &mut kept)).await;
        match reply.unwrap_or_else(|_| Err("no reply in 10 s".to_owned())) {
            Ok(200) => {
                report.served += 1;
                report.times.push(began.elapsed());
            }
            Ok(status) => fail(&mut report, keeps, &format!("status {status}")),
            Err(error) => {
                kept = None;
                fail(&mut report, keeps, &error);
            }
        }
        tokio::time::sleep(PAUSE.saturating_sub(began.elapsed())).await;
    }
    report
}

fn fail(report: &mut Report, keeps: bool, error: &str) {
    report.failed += 1;
    let kind = if keeps { "kept" } else { "fresh" };
    *report.failures.entry(format!("{kind} connection: {error}")).or_default() += 1;
}

async fn ask(address: SocketAddr, keeps: bool, kept: &mut Option<Connection>) -> Result<u16, String> {
    let text = |error: io::Error| error.to_string();
    let mut connection = match kept.take() {
        Some(connection) => connection,
        None => Connection::open(address).await.map_err(text)?,
    };
    let headers: &[(&str, &str)] = if keeps { &[] } else { &[("Connection", "close")] };
    let reply = connection.exchange("GET", "/", headers, "").await.map_err(text)?;
    // A server that announces the end of the connection has broken no promise.
    if keeps && reply.header("connection") != Some("close") {
        *kept = Some(connection);
    }
    Ok(reply.status)
}
