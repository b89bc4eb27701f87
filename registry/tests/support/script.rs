//! A TCP server that answers each request by a script, to play servers that are broken.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// What the server does after it has read a request.
#[derive(Debug, Clone)]
pub(crate) enum Step {
    /// Sends these bytes and closes.
    Send(String),
    /// Sends these bytes, whatever comes, and closes.
    Greet(String),
    /// Sends these bytes and then nothing more, with the connection open.
    SendAndHang(String),
    /// Sends these bytes one by one, with a pause of 100 ms between them.
    Drip(String),
    /// Closes without a byte.
    Close,
    /// Hands the request to this address, and the reply back; before that it does something else there.
    Forward(String, Meanwhile),
    /// Hands the request to this address and closes without the reply, once the reply is there.
    ForwardAndLoseReply(String),
}

/// What is done at an etcd between one request and its reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Meanwhile {
    Nothing,
    /// Time passes.
    Wait(Duration),
    /// A key of v3 is written: `/service/meanwhile`.
    Write,
    /// And etcd forgets all before that.
    WriteAndCompact,
}

impl Meanwhile {
    async fn happen(self, etcd: &str) {
        match self {
            Self::Nothing => return,
            Self::Wait(time) => return tokio::time::sleep(time).await,
            Self::Write | Self::WriteAndCompact => {}
        }
        // "/service/meanwhile" and "x"
        let put = r#"{"key":"L3NlcnZpY2UvbWVhbndoaWxl","value":"eA=="}"#;
        let reply = ask(etcd, &post("/v3/kv/put", put)).await;
        let reply = String::from_utf8_lossy(&reply);
        let revision = reply.split(r#""revision":""#).nth(1).and_then(|rest| rest.split('"').next()).expect(&reply);
        if self == Self::WriteAndCompact {
            let body = format!(r#"{{"revision":"{revision}"}}"#);
            let reply = ask(etcd, &post("/v3/kv/compaction", &body)).await;
            assert!(reply.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&reply));
        }
    }
}

fn post(path: &str, body: &str) -> Vec<u8> {
    format!("POST {path} HTTP/1.1\r\nHost: etcd\r\nContent-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

/// One request, and the whole reply.
async fn ask(address: &str, request: &[u8]) -> Vec<u8> {
    let head = request.windows(2).position(|window| window == b"\r\n").expect("a request line");
    let mut server = TcpStream::connect(address).await.unwrap();
    server.write_all(&request[..head]).await.unwrap();
    server.write_all(b"\r\nConnection: close").await.unwrap();
    server.write_all(&request[head..]).await.unwrap();
    let mut reply = Vec::new();
    server.read_to_end(&mut reply).await.unwrap();
    reply
}

/// A running server. It answers the first request by the first step, and so on; the last step stays.
pub(crate) struct Server {
    port: u16,
    requests: Arc<AtomicUsize>,
    _task: JoinSet<()>,
}

impl Server {
    /// Starts one on a free port of 127.0.0.1.
    pub(crate) async fn start(steps: Vec<Step>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let requests = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&requests);
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (count, steps) = (Arc::clone(&count), steps.clone());
                connections.spawn(serve(stream, count, steps));
            }
        });
        Self { port, requests, _task: task }
    }

    /// The endpoint.
    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// How many requests came so far.
    pub(crate) fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }
}

/// Serves one connection: one request, since every step ends or holds it.
async fn serve(mut stream: TcpStream, count: Arc<AtomicUsize>, steps: Vec<Step>) {
    if let [Step::Greet(bytes)] = &steps[..] {
        // The peer reads it before the connection is closed.
        let _peer_gone = stream.write_all(bytes.as_bytes()).await;
        let _until_it_closes = stream.read_to_end(&mut Vec::new()).await;
        return;
    }
    let Some(request) = read_request(&mut stream).await else { return };
    let at = count.fetch_add(1, Ordering::SeqCst);
    // The peer may be gone before everything is sent; that is its right.
    let _peer_gone = match &steps[at.min(steps.len() - 1)] {
        Step::Send(bytes) => stream.write_all(bytes.as_bytes()).await,
        Step::SendAndHang(bytes) => {
            let sent = stream.write_all(bytes.as_bytes()).await;
            std::future::pending::<()>().await;
            sent
        }
        Step::Drip(bytes) => {
            for byte in bytes.as_bytes() {
                if stream.write_all(&[*byte]).await.is_err() {
                    return;
                }
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
            Ok(())
        }
        Step::Close | Step::Greet(_) => Ok(()),
        Step::Forward(address, meanwhile) => {
            let reply = ask(address, &request).await;
            meanwhile.happen(address).await;
            stream.write_all(&reply).await
        }
        Step::ForwardAndLoseReply(address) => {
            let mut server = TcpStream::connect(address).await.unwrap();
            server.write_all(&request).await.unwrap();
            let mut reply = [0; 1];
            server.read_exact(&mut reply).await.map(|_| ())
        }
    };
}

/// Reads one request to the end of its body.
async fn read_request(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    loop {
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
            let length = head.lines().find_map(|line| line.strip_prefix("content-length:"));
            let length: usize = length.map_or(0, |length| length.trim().parse().unwrap());
            if bytes.len() >= end + 4 + length {
                return Some(bytes);
            }
        }
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    }
}

/// A reply of etcd's: 200, with the headers that go with it.
pub(crate) fn reply(cluster: &str, index: u64, body: &str) -> String {
    reply_with("200 OK", cluster, index, body)
}

/// A reply of etcd's with another status.
pub(crate) fn reply_with(status: &str, cluster: &str, index: u64, body: &str) -> String {
    let length = body.len();
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nX-Etcd-Cluster-Id: {cluster}\r\nX-Etcd-Index: {index}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    )
}

/// The headers of a long poll that waits.
pub(crate) fn waiting(cluster: &str, index: u64) -> String {
    format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nX-Etcd-Cluster-Id: {cluster}\r\nX-Etcd-Index: {index}\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
}
