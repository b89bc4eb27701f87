//! What the tests of this crate share: the real etcd, an application and a Docker that do as they are told.

#![allow(dead_code, reason = "each test binary uses a part")]

#[path = "../../../registry/tests/support/etcd.rs"]
pub(crate) mod etcd;
pub(crate) mod program;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use registry::{Api, ApiChoice, Entry, Store, StoreOptions};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UnixListener};
use tokio::task::JoinSet;

/// The limit on everything a test waits for, on a machine that is busy with something else.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

/// Waits until the condition holds.
pub(crate) async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !condition().await {
        assert!(Instant::now() < deadline, "in {DEADLINE:?} it did not come to: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// What the application does with a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answer {
    /// These bytes, then the end.
    Bytes(String),
    /// These bytes as soon as anything comes, a request or not, then the end.
    ToAnything(String),
    /// Nothing, with the connection open.
    Hang,
    /// The end at once, before a request is read.
    Close,
}

impl Answer {
    /// A whole reply with this status line.
    pub(crate) fn status(status: &str) -> Self {
        Self::Bytes(format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"))
    }
}

/// A server that stands for the application.
pub(crate) struct Application {
    pub(crate) port: u16,
    answer: Arc<Mutex<Answer>>,
    requests: Arc<AtomicUsize>,
    last: Arc<Mutex<String>>,
    _task: JoinSet<()>,
}

impl Application {
    /// Starts one on a free port.
    pub(crate) async fn start(answer: Answer) -> Self {
        Self::start_on(0, answer).await
    }

    /// Starts one on this port of 127.0.0.1.
    pub(crate) async fn start_on(port: u16, answer: Answer) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let answer = Arc::new(Mutex::new(answer));
        let requests = Arc::new(AtomicUsize::new(0));
        let last = Arc::new(Mutex::new(String::new()));
        let shared = (Arc::clone(&answer), Arc::clone(&requests), Arc::clone(&last));
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let (answer, requests, last) = shared.clone();
                connections.spawn(async move {
                    requests.fetch_add(1, Ordering::SeqCst);
                    let answer = answer.lock().unwrap().clone();
                    if answer == Answer::Close {
                        return;
                    }
                    if let Answer::ToAnything(bytes) = answer {
                        let _anything = stream.read(&mut [0; 4096]).await;
                        drop(stream.write_all(bytes.as_bytes()).await);
                        return;
                    }
                    let Some(head) = read_head(&mut stream).await else { return };
                    *last.lock().unwrap() = head;
                    match answer {
                        Answer::Bytes(bytes) => drop(stream.write_all(bytes.as_bytes()).await),
                        Answer::Hang | Answer::Close | Answer::ToAnything(_) => std::future::pending().await,
                    }
                });
            }
        });
        Self { port, answer, requests, last, _task: task }
    }

    /// Changes what it does from the next request on.
    pub(crate) fn answers(&self, answer: Answer) {
        *self.answer.lock().unwrap() = answer;
    }

    /// How many connections it has taken.
    pub(crate) fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }

    /// The head of the last request.
    pub(crate) fn last_request(&self) -> String {
        self.last.lock().unwrap().clone()
    }
}

async fn read_head(stream: &mut (impl AsyncRead + Unpin)) -> Option<String> {
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"\r\n\r\n") {
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    }
    String::from_utf8(bytes).ok()
}

/// What Docker says of a container: status and body.
pub(crate) type Inspections = BTreeMap<String, (u16, String)>;

/// What the list is called among the answers: no container has such a name.
const LIST: &str = "/list";

/// A Docker that answers from recorded replies of Docker 20.10.24.
pub(crate) struct Docker {
    pub(crate) socket: PathBuf,
    containers: Arc<Mutex<Inspections>>,
    _directory: tempfile::TempDir,
    _task: JoinSet<()>,
}

impl Docker {
    /// Starts one that knows no container.
    pub(crate) fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("docker.sock");
        let containers = Arc::new(Mutex::new(Inspections::new()));
        let task = serve(UnixListener::bind(&socket).unwrap(), Arc::clone(&containers));
        Self { socket, containers, _directory: directory, _task: task }
    }

    /// Lets it know a container under this name.
    pub(crate) fn knows(&self, name: &str, inspection: String) {
        self.says(name, 200, inspection);
    }

    /// Lets it say this when it is asked for a container.
    pub(crate) fn says(&self, name: &str, status: u16, body: String) {
        self.containers.lock().unwrap().insert(name.to_owned(), (status, body));
    }

    /// Lets it say this when it is asked for the list of all containers.
    pub(crate) fn lists(&self, status: u16, body: &str) {
        self.says(LIST, status, body.to_owned());
    }

    /// Starts one behind a socket that is given.
    pub(crate) fn start_at(socket: &Path, containers: Inspections) -> JoinSet<()> {
        serve(UnixListener::bind(socket).unwrap(), Arc::new(Mutex::new(containers)))
    }
}

fn serve(listener: UnixListener, containers: Arc<Mutex<Inspections>>) -> JoinSet<()> {
    let mut task = JoinSet::new();
    task.spawn(async move {
        let mut connections = JoinSet::new();
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let containers = Arc::clone(&containers);
            connections.spawn(async move {
                let Some(head) = read_head(&mut stream).await else { return };
                let path = head.split(' ').nth(1).unwrap().to_owned();
                // The client agrees on 1.41, and may or may not say so in each path.
                let unversioned = path.strip_prefix("/v1.41").unwrap_or(&path);
                let name = unversioned.strip_prefix("/containers/").and_then(|rest| rest.strip_suffix("/json"));
                let (status, body) = match name {
                    Some(name) => containers.lock().unwrap().get(name).cloned().unwrap_or((404, recorded("not-found"))),
                    None if unversioned.starts_with("/containers/json") => {
                        containers.lock().unwrap().get(LIST).cloned().unwrap_or((200, "[]".to_owned()))
                    }
                    None if path.ends_with("/version") => (200, recorded("version")),
                    None => (500, format!("{{\"message\":\"unexpected request: {path}\"}}")),
                };
                let length = body.len();
                let reply = format!(
                    "HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
                );
                let _peer_gone = stream.write_all(reply.as_bytes()).await;
            });
        }
    });
    task
}

/// A recorded reply of Docker 20.10.24's; the names of the host, its kernel and the image were replaced.
pub(crate) fn recorded(name: &str) -> String {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/docker-20.10.24");
    std::fs::read_to_string(format!("{path}/{name}.json")).unwrap()
}

/// The recorded inspection of a container that publishes its port 8000 on one address, with other ports in their place.
pub(crate) fn published(port: u16, host_ip: &str, host_port: u16) -> String {
    let mut inspection: serde_json::Value = serde_json::from_str(&recorded("inspect-named")).unwrap();
    let binding = serde_json::json!([{ "HostIp": host_ip, "HostPort": host_port.to_string() }]);
    inspection["NetworkSettings"]["Ports"] = serde_json::json!({ format!("{port}/tcp"): binding });
    inspection.to_string()
}

/// A store for the test's own looks at etcd.
pub(crate) fn store(url: &str) -> Store {
    store_of(Api::V2, url)
}

/// As [`store`], by this API. A request has [`DEADLINE`]: etcd stands still while a slow disk writes.
pub(crate) fn store_of(api: Api, url: &str) -> Store {
    store_within(DEADLINE, api, url)
}

/// A store that gives a request up after this time.
pub(crate) fn store_within(limit: Duration, api: Api, url: &str) -> Store {
    let mut options = StoreOptions::new(registry::parse_endpoints(url).unwrap());
    options.api = ApiChoice::Only(api);
    options.request_timeout = limit;
    Store::new(options).unwrap()
}

/// What is below `/service`, or nothing while etcd does not answer.
pub(crate) async fn entries(store: &Store) -> Vec<Entry> {
    store.list(&"service".parse().unwrap()).await.map(|listing| listing.entries).unwrap_or_default()
}

/// The paths below `/service`.
pub(crate) async fn paths(store: &Store) -> Vec<String> {
    entries(store).await.into_iter().map(|entry| entry.path).collect()
}
