//! A Docker that does as a test tells it, on a unix socket of its own: for what the real one cannot be made to do, and for more
//! containers than a machine runs.
//!
//! It answers with the recorded replies of Docker 20.10.24 in `tests/fixtures/`, with ids, names, addresses, labels and times in
//! their places. It knows its version, the list, inspections and the events; anything else is a page that is not found.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use crate::http::{decode, read_head};

const VERSION: &str = include_str!("../fixtures/docker-20.10.24/version.json");
const LISTED: &str = include_str!("../fixtures/docker-20.10.24/listed.json");
const INSPECTED: &str = include_str!("../fixtures/docker-20.10.24/inspect.json");
const EVENTS: &str = include_str!("../fixtures/docker-20.10.24/events.jsonl");
const NOT_FOUND: &str = include_str!("../fixtures/docker-20.10.24/not-found.json");
const PAGE_NOT_FOUND: &str = include_str!("../fixtures/docker-20.10.24/page-not-found.json");
const TOO_NEW: &str = include_str!("../fixtures/docker-20.10.24/too-new.json");

/// What can be wrong with an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sickness {
    /// It comes late.
    Slow(Duration),
    /// It never comes.
    Silent,
    /// It has status 500 and Docker's way to say so.
    Says500,
    /// It ends in the middle of its body.
    ClosesHalfWay,
    /// It is no JSON.
    Rubbish,
    /// It is JSON in which the fields have the wrong types.
    WrongType,
    /// It never ends.
    Endless,
}

/// A container to be.
#[derive(Debug, Clone)]
pub struct Spec {
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: Vec<(String, String)>,
    /// Its own address.
    pub ip: IpAddr,
    /// The port that its application listens on.
    pub port: u16,
    /// The port of 127.0.0.1 that this one is published on.
    pub host_port: u16,
}

impl Spec {
    /// One whose application, at `ip` and `port`, is the service `service`.
    pub fn new(name: &str, service: &str, (ip, port): (Ipv4Addr, u16), host_port: u16) -> Spec {
        let labels = vec![("SERVICE_NAME".to_owned(), service.to_owned())];
        Spec { name: name.to_owned(), labels, ip: ip.into(), port, host_port }
    }

    /// With one more label.
    #[must_use]
    pub fn label(mut self, name: &str, value: &str) -> Spec {
        self.labels.push((name.to_owned(), value.to_owned()));
        self
    }
}

/// The server. Dropping it closes its socket.
pub struct FakeDocker {
    shared: Shared,
    path: PathBuf,
    task: Option<JoinHandle<()>>,
    _dir: TempDir,
}

#[derive(Clone)]
struct Shared {
    state: Arc<Mutex<State>>,
    /// Wakes the event streams: how many events there are, which streams are to end, and whether they are mute.
    streams: watch::Sender<Streams>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Streams {
    events: usize,
    ended: u64,
    mute: bool,
}

struct State {
    api_version: String,
    /// The inspections, by id.
    containers: BTreeMap<String, Value>,
    events: Vec<Event>,
    sicknesses: Vec<(String, Sickness)>,
    requests: BTreeMap<String, u64>,
    next_id: u64,
    /// How far its clock is behind.
    behind: Duration,
}

struct Event {
    nanoseconds: i128,
    kind: String,
    action: String,
    line: String,
}

impl FakeDocker {
    /// One that answers, and has no container.
    pub fn start() -> FakeDocker {
        let mut fake = FakeDocker::absent();
        fake.listen();
        fake
    }

    /// One that has the path of its socket, and is not there yet.
    pub fn absent() -> FakeDocker {
        let dir = tempfile::Builder::new().prefix("e2e-docker-").tempdir().unwrap();
        let state = State {
            api_version: "1.41".to_owned(),
            containers: BTreeMap::new(),
            events: Vec::new(),
            sicknesses: Vec::new(),
            requests: BTreeMap::new(),
            next_id: 1,
            behind: Duration::ZERO,
        };
        let shared = Shared { state: Arc::new(Mutex::new(state)), streams: watch::Sender::new(Streams::default()) };
        FakeDocker { shared, path: dir.path().join("docker.sock"), task: None, _dir: dir }
    }

    /// The path of its socket.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Answers from now on.
    pub fn listen(&mut self) {
        let listener = UnixListener::bind(&self.path).unwrap();
        let shared = self.shared.clone();
        self.task = Some(tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                while connections.try_join_next().is_some() {}
                connections.spawn(serve(stream, shared.clone()));
            }
        }));
    }

    /// Ends, with its socket and every connection; it still knows its containers when it listens again.
    pub fn close(&mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
        }
        let _absent_already = std::fs::remove_file(&self.path);
    }

    /// Speaks no newer version of the API than this one, such as `1.24`.
    pub fn speaks(&self, api_version: &str) {
        self.state().api_version = api_version.to_owned();
    }

    /// Runs a container: its events `create` and `start` come. Gives its id.
    pub fn run(&self, spec: &Spec) -> String {
        let id = self.run_unseen(spec);
        self.says("create", &id, &[]);
        self.says("start", &id, &[]);
        id
    }

    /// Runs a container of which no event tells.
    pub fn run_unseen(&self, spec: &Spec) -> String {
        let mut state = self.state();
        let id = format!("{:064x}", 0xe2e_u128 << 116 | u128::from(state.next_id));
        state.next_id += 1;
        state.containers.insert(id.clone(), inspection(&id, spec));
        id
    }

    /// `docker stop`: the events `kill`, `die` and `stop` come, and the container is there, stopped.
    pub fn stop(&self, id: &str) {
        self.says("kill", id, &[("signal", "15")]);
        self.change(id, |container| {
            container["State"]["Status"] = json!("exited");
            container["State"]["Running"] = json!(false);
            container["NetworkSettings"]["Ports"] = json!({});
        });
        self.says("die", id, &[("exitCode", "0")]);
        self.says("stop", id, &[]);
    }

    /// `docker rm`: the container is gone, and `destroy` tells of it.
    pub fn remove(&self, id: &str) {
        self.says("destroy", id, &[]);
        self.remove_unseen(id);
    }

    /// A container goes, and no event tells of it.
    pub fn remove_unseen(&self, id: &str) {
        self.state().containers.remove(id);
    }

    /// Another inspection of a container, and no event.
    pub fn change(&self, id: &str, edit: impl FnOnce(&mut Value)) {
        edit(self.state().containers.get_mut(id).expect("a container"));
    }

    /// An event of a container, which need not be there, with more attributes than all have.
    pub fn says(&self, action: &str, id: &str, attributes: &[(&str, &str)]) {
        let mut state = self.state();
        let recorded = EVENTS.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let plain = action.split(':').next().unwrap_or_default();
        let is_alike =
            |event: &Value| event["Action"].as_str().is_some_and(|action| action.split(':').next() == Some(plain));
        let mut event = recorded.into_iter().find(is_alike).unwrap_or_else(|| panic!("no {action} was recorded"));
        let now = Timestamp::now() - state.behind;
        event["status"] = json!(action);
        event["Action"] = json!(action);
        event["id"] = json!(id);
        event["Actor"]["ID"] = json!(id);
        event["time"] = json!(now.as_second());
        event["timeNano"] = json!(i64::try_from(now.as_nanosecond()).unwrap());
        if let Some(container) = state.containers.get(id) {
            let mut all = container["Config"]["Labels"].clone();
            all["image"] = container["Config"]["Image"].clone();
            all["name"] = json!(container["Name"].as_str().unwrap_or_default().trim_start_matches('/'));
            event["Actor"]["Attributes"] = all;
        }
        for (name, value) in attributes {
            event["Actor"]["Attributes"][name] = json!(value);
        }
        let kind = event["Type"].as_str().unwrap_or_default().to_owned();
        let event =
            Event { nanoseconds: now.as_nanosecond(), kind, action: plain.to_owned(), line: format!("{event}\n") };
        state.events.push(event);
        let count = state.events.len();
        drop(state);
        self.shared.streams.send_modify(|streams| streams.events = count);
    }

    /// Answers each request with `part` in its path like this from now on; an empty part is in every path.
    pub fn falls_ill(&self, part: &str, sickness: Sickness) {
        self.state().sicknesses.push((part.to_owned(), sickness));
    }

    /// Is well again.
    pub fn recovers(&self) {
        self.state().sicknesses.clear();
    }

    /// Its clock is set back: what happens from now on happened before what it has told already.
    pub fn sets_its_clock_back(&self, by: Duration) {
        self.state().behind = by;
    }

    /// Ends the event streams that are open.
    pub fn ends_streams(&self) {
        self.shared.streams.send_modify(|streams| streams.ended += 1);
    }

    /// Whether event streams, those to come too, stay open and say nothing.
    pub fn mutes_streams(&self, mute: bool) {
        self.shared.streams.send_modify(|streams| streams.mute = mute);
    }

    /// How many requests had `part` in their path.
    pub fn requests(&self, part: &str) -> u64 {
        self.state().requests.iter().filter(|(path, _)| path.contains(part)).map(|(_, count)| count).sum()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state()
    }
}

impl Drop for FakeDocker {
    fn drop(&mut self) {
        self.close();
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

/// The recorded inspection, of another container.
fn inspection(id: &str, spec: &Spec) -> Value {
    let recorded: Value = serde_json::from_str(INSPECTED).unwrap();
    let recorded_id = recorded["Id"].as_str().unwrap();
    // Paths and the host name have the id in them too.
    let text = INSPECTED.replace(recorded_id, id).replace(&recorded_id[..12], &id[..12]);
    let mut container: Value = serde_json::from_str(&text).unwrap();
    let port = format!("{}/tcp", spec.port);
    let labels: BTreeMap<&str, &str> = spec.labels.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
    container["Name"] = json!(format!("/{}", spec.name));
    container["Created"] = json!(Timestamp::now().to_string());
    container["State"]["StartedAt"] = json!(Timestamp::now().to_string());
    container["Config"]["Labels"] = json!(labels);
    container["Config"]["ExposedPorts"] = json!({ &port: {} });
    container["HostConfig"]["PortBindings"] = json!({ &port: [{ "HostIp": "127.0.0.1", "HostPort": "" }] });
    container["NetworkSettings"]["Ports"] =
        json!({ &port: [{ "HostIp": "127.0.0.1", "HostPort": spec.host_port.to_string() }] });
    container["NetworkSettings"]["IPAddress"] = json!(spec.ip);
    container["NetworkSettings"]["Networks"]["bridge"]["IPAddress"] = json!(spec.ip);
    container
}

/// The recorded entry of a list, of another container.
fn listed(container: &Value) -> Value {
    let mut entry: Value = serde_json::from_str(LISTED).unwrap();
    let binding = |(port, hosts): (&String, &Value)| {
        let private: Option<u16> = port.split('/').next().and_then(|port| port.parse().ok());
        let public: Option<u16> = hosts[0]["HostPort"].as_str().and_then(|port| port.parse().ok());
        json!({ "IP": hosts[0]["HostIp"], "PrivatePort": private, "PublicPort": public, "Type": "tcp" })
    };
    let ports: Vec<Value> =
        container["NetworkSettings"]["Ports"].as_object().into_iter().flatten().map(binding).collect();
    entry["Id"] = container["Id"].clone();
    entry["Names"] = json!([container["Name"]]);
    entry["Labels"] = container["Config"]["Labels"].clone();
    entry["State"] = container["State"]["Status"].clone();
    entry["NetworkSettings"]["Networks"] = container["NetworkSettings"]["Networks"].clone();
    entry["Ports"] = json!(ports);
    entry
}

/// A request's path, without the version before it, and its parameters.
struct Target {
    version: Option<String>,
    path: String,
    query: BTreeMap<String, String>,
}

impl Target {
    fn parse(text: &str) -> Target {
        let (path, query) = text.split_once('?').unwrap_or((text, ""));
        let query =
            query.split('&').filter_map(|pair| pair.split_once('=')).map(|(n, v)| (n.to_owned(), decode(v))).collect();
        let versioned = path.strip_prefix("/v").and_then(|rest| rest.split_once('/'));
        match versioned.filter(|(version, _)| version.starts_with(|c: char| c.is_ascii_digit())) {
            Some((version, rest)) => Target { version: Some(version.to_owned()), path: format!("/{rest}"), query },
            None => Target { version: None, path: path.to_owned(), query },
        }
    }

    /// The values of a filter: a list, or an object with each of them as a key.
    fn filter(&self, name: &str) -> Option<Vec<String>> {
        let filters: Value = serde_json::from_str(self.query.get("filters")?).ok()?;
        match &filters[name] {
            Value::Array(values) => Some(values.iter().filter_map(|value| value.as_str().map(str::to_owned)).collect()),
            Value::Object(values) => Some(values.keys().cloned().collect()),
            _ => None,
        }
    }
}

async fn serve(stream: UnixStream, shared: Shared) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let (first, headers) = read_head(&mut stream).await?;
        let length =
            headers.iter().find(|(name, _)| name == "content-length").and_then(|(_, value)| value.parse().ok());
        let mut body = vec![0; length.unwrap_or(0)];
        stream.read_exact(&mut body).await?;
        let target = Target::parse(first.split(' ').nth(1).unwrap_or_default());
        let sickness = {
            let mut state = shared.state();
            *state.requests.entry(target.path.clone()).or_default() += 1;
            state.sicknesses.iter().find(|(part, _)| target.path.contains(part.as_str())).map(|(_, sickness)| *sickness)
        };
        match sickness {
            Some(Sickness::Slow(time)) => tokio::time::sleep(time).await,
            Some(Sickness::Silent) => std::future::pending().await,
            Some(Sickness::Endless) => return never_end(stream).await,
            _ => {}
        }
        if target.path == "/events" && matches!(sickness, None | Some(Sickness::Slow(_))) {
            return stream_events(stream, &target, shared).await;
        }
        let (status, body) = match sickness {
            Some(Sickness::Says500) => (500, "{\"message\":\"layer does not exist\"}\n".to_owned()),
            Some(Sickness::Rubbish) => (200, "<html>\u{0}]]}".to_owned()),
            Some(Sickness::WrongType) => (200, "{\"Id\":5,\"State\":[],\"ApiVersion\":{}}".to_owned()),
            _ => answer(&target, &shared.state()),
        };
        let head = format!(
            "HTTP/1.1 {status} It is so\r\nApi-Version: 1.41\r\nContent-Type: application/json\r\nServer: Docker/20.10.24+dfsg1 \
             (linux)\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        let sent = if sickness == Some(Sickness::ClosesHalfWay) { body.len() / 2 } else { body.len() };
        stream.get_mut().write_all(head.as_bytes()).await?;
        stream.get_mut().write_all(&body.as_bytes()[..sent]).await?;
        if sent < body.len() {
            return stream.get_mut().shutdown().await;
        }
    }
}

/// Begins with an id, as long as it is read.
async fn never_end(mut stream: BufReader<UnixStream>) -> io::Result<()> {
    let head = "HTTP/1.1 200 OK\r\nApi-Version: 1.41\r\nContent-Type: application/json\r\n\r\n{\"Id\":\"";
    stream.get_mut().write_all(head.as_bytes()).await?;
    let piece = [b'x'; 1 << 16];
    loop {
        stream.get_mut().write_all(&piece).await?;
    }
}

/// Status and body.
fn answer(target: &Target, state: &State) -> (u16, String) {
    if let Some(version) = target.version.as_ref().filter(|version| minor(version) > minor(&state.api_version)) {
        return (400, TOO_NEW.replace("1.99", version).replace("1.41", &state.api_version));
    }
    if target.path == "/version" {
        return (200, VERSION.replace("1.41", &state.api_version));
    }
    if target.path == "/containers/json" {
        let is_asked_for = |container: &&Value| {
            let status = container["State"]["Status"].as_str().unwrap_or_default();
            let all = matches!(target.query.get("all").map(String::as_str), Some("true" | "1"));
            match target.filter("status") {
                Some(wanted) => wanted.iter().any(|wanted| wanted == status),
                None => all || matches!(status, "running" | "paused"),
            }
        };
        let list: Vec<Value> = state.containers.values().filter(is_asked_for).map(listed).collect();
        return (200, json!(list).to_string());
    }
    let name = target.path.strip_prefix("/containers/").and_then(|rest| rest.strip_suffix("/json"));
    let Some(name) = name else { return (404, PAGE_NOT_FOUND.to_owned()) };
    let is_meant = |container: &&Value| {
        let id = container["Id"].as_str().unwrap_or_default();
        container["Name"] == format!("/{name}").as_str() || (!name.is_empty() && id.starts_with(name))
    };
    match state.containers.get(name).or_else(|| state.containers.values().find(is_meant)) {
        Some(container) => (200, container.to_string()),
        None => (404, NOT_FOUND.replace("nope", name)),
    }
}

/// `1.41` as 41: all versions begin with 1.
fn minor(version: &str) -> u32 {
    version.split('.').nth(1).and_then(|minor| minor.parse().ok()).unwrap_or(0)
}

/// Sends the events there are since the moment that was asked for, and those to come.
async fn stream_events(mut stream: BufReader<UnixStream>, target: &Target, shared: Shared) -> io::Result<()> {
    let head =
        "HTTP/1.1 200 OK\r\nApi-Version: 1.41\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n";
    stream.get_mut().write_all(head.as_bytes()).await?;
    let (kinds, actions) = (target.filter("type"), target.filter("event"));
    let mut streams = shared.streams.subscribe();
    let ended = streams.borrow_and_update().ended;
    let mut next = match target.query.get("since").and_then(|since| nanoseconds(since)) {
        Some(since) => shared.state().events.partition_point(|event| event.nanoseconds < since),
        None => shared.state().events.len(),
    };
    let is_in = |wanted: &Option<Vec<String>>, what: &str| {
        wanted.as_ref().is_none_or(|wanted| wanted.iter().any(|wanted| wanted == what))
    };
    loop {
        let now = *streams.borrow_and_update();
        if now.ended != ended {
            stream.get_mut().write_all(b"0\r\n\r\n").await?;
            return stream.get_mut().shutdown().await;
        }
        if !now.mute {
            let mut chunk = String::new();
            for event in &shared.state().events[next..] {
                if is_in(&kinds, &event.kind) && is_in(&actions, &event.action) {
                    chunk.push_str(&format!("{:x}\r\n{}\r\n", event.line.len(), event.line));
                }
            }
            next = now.events.max(next);
            stream.get_mut().write_all(chunk.as_bytes()).await?;
        }
        let mut nothing = [0];
        tokio::select! {
            changed = streams.changed() => if changed.is_err() { return Ok(()) },
            _closed = stream.read(&mut nothing) => return Ok(()),
        }
    }
}

/// A moment as Docker's `since` takes it: seconds since 1970, with or without a fraction, or RFC 3339.
fn nanoseconds(text: &str) -> Option<i128> {
    if let Ok(moment) = text.parse::<Timestamp>() {
        return Some(moment.as_nanosecond());
    }
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let fraction = format!("{fraction:0<9}");
    Some(seconds.parse::<i128>().ok()? * 1_000_000_000 + fraction.get(..9)?.parse::<i128>().ok()?)
}
