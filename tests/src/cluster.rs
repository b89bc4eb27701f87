//! A cluster of three real etcds, and what can happen to its members.
//!
//! The members run with etcd's own timing (a heartbeat each 100 ms, an election after 1 to 2 s without one): a busy machine holds
//! no elections of its own then, and what a test sees is what a user's cluster does.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::task::JoinSet;

use crate::http::{self, Reply};
use crate::network::Network;
use crate::ports::free_port;
use crate::process::{Process, find_program};
use crate::{secs, wait_until};

/// An election, on a machine that is busy with other tests.
const ELECTED: Duration = secs(20);

/// So much may the members' databases hold of what v3 keeps, where a test fills them up.
const QUOTA: &str = "--quota-backend-bytes=2097152";

/// The API that the programs speak. Each holds keys of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Api {
    /// `/v2/keys`.
    V2,
    /// `/v3/kv`.
    V3,
}

impl Api {
    /// As flags have it.
    pub fn flag(self) -> &'static str {
        match self {
            Api::V2 => "v2",
            Api::V3 => "v3",
        }
    }
}

/// How many members.
pub const MEMBERS: usize = 3;

/// Writes so often to a key that is nobody's, by the v2 API of one etcd: several at a time, since each waits for a disk.
pub async fn write_elsewhere(client: SocketAddr, times: usize) {
    const AT_ONCE: usize = 16;
    let mut writers = JoinSet::new();
    for writer in 0..AT_ONCE {
        writers.spawn(async move {
            for number in (writer..times).step_by(AT_ONCE) {
                write_one_elsewhere(client, number).await;
            }
        });
    }
    writers.join_all().await;
}

/// Tries again where it is refused, as in an election.
async fn write_one_elsewhere(client: SocketAddr, number: usize) {
    let (start, value) = (Instant::now(), format!("value={number}"));
    let form = [("Content-Type", "application/x-www-form-urlencoded")];
    loop {
        match http::request(client, "PUT", "/v2/keys/elsewhere/key", &form, &value).await {
            Ok(reply) if reply.status < 300 => return,
            other => assert!(start.elapsed() < secs(60), "etcd takes no write: {other:?}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The cluster. Its addresses stay the same over stop and start; dropping it ends all members and removes their data.
pub struct Cluster {
    api: Api,
    members: Vec<Member>,
    flags: Vec<String>,
    // Goes after those that live in it.
    network: Option<Network>,
}

struct Member {
    name: String,
    client: SocketAddr,
    peer: SocketAddr,
    namespace: Option<String>,
    process: Option<Process>,
    frozen: bool,
    dir: TempDir,
}

impl Cluster {
    /// Starts one on 127.0.0.1, and waits until it has a leader.
    /// Both APIs are served; `api` is the one that its programs are to speak.
    pub async fn start(api: Api) -> Cluster {
        Cluster::with(api, None, &[]).await
    }

    /// The same with little room for what v3 keeps.
    pub async fn small(api: Api) -> Cluster {
        Cluster::with(api, None, &[QUOTA]).await
    }

    /// Starts one whose members are hosts of their own, so that one can be cut off. Needs root.
    pub async fn on_hosts(api: Api) -> Cluster {
        let hosts = u8::try_from(MEMBERS).unwrap();
        Cluster::with(api, Some(Network::start(hosts)), &[]).await
    }

    async fn with(api: Api, network: Option<Network>, flags: &[&str]) -> Cluster {
        let member = |number: u8| {
            let dir = tempfile::Builder::new().prefix("e2e-member-").tempdir().unwrap();
            let here = IpAddr::from(Ipv4Addr::LOCALHOST);
            let (client, peer) = match &network {
                Some(network) => (network.from_machine(number), network.among_peers(number)),
                None => (here, here),
            };
            Member {
                name: format!("member-{number}"),
                client: SocketAddr::new(client, free_port()),
                peer: SocketAddr::new(peer, free_port()),
                namespace: network.as_ref().map(|network| network.namespace(number)),
                process: None,
                frozen: false,
                dir,
            }
        };
        let members = (0..u8::try_from(MEMBERS).unwrap()).map(member).collect();
        let flags = flags.iter().map(|&flag| flag.to_owned()).collect();
        let mut cluster = Cluster { api, members, flags, network };
        for number in 0..MEMBERS {
            cluster.run(number);
        }
        cluster.leader().await;
        cluster
    }

    /// The API that its programs speak.
    pub fn api(&self) -> Api {
        self.api
    }

    /// The address of a member's clients.
    pub fn address(&self, member: usize) -> SocketAddr {
        self.members[member].client
    }

    /// The members' URLs as `--etcd` wants them, this one first: a program begins with it.
    pub fn urls_from(&self, first: usize) -> String {
        let urls: Vec<_> =
            (0..MEMBERS).map(|turn| format!("http://{}", self.address((first + turn) % MEMBERS))).collect();
        urls.join(",")
    }

    /// Waits until the members that answer agree on a leader, and gives it.
    pub async fn leader(&mut self) -> usize {
        self.leader_of_all_but(None).await
    }

    /// [`Cluster::leader`] of those that are not cut off.
    pub async fn leader_of_all_but(&mut self, cut_off: Option<usize>) -> usize {
        wait_until(ELECTED, "the cluster has a leader", async || {
            let mut seen = Vec::new();
            for (number, member) in self.members.iter_mut().enumerate() {
                let Some(process) = &mut member.process else { continue };
                if let Some(status) = process.ended() {
                    panic!("{} ended: {status}", member.name);
                }
                if !member.frozen && cut_off != Some(number) {
                    seen.push((number, member.leads().await));
                }
            }
            match seen.iter().find(|(_, leads)| *leads == Ok(true)) {
                Some((leader, _)) if seen.iter().all(|(_, leads)| leads.is_ok()) => Ok(*leader),
                _ => Err(format!("{seen:?}")),
            }
        })
        .await
    }

    /// Ends a member at once (SIGKILL).
    pub async fn kill(&mut self, member: usize) {
        self.members[member].process.take().expect("the member runs").kill_now().await;
    }

    /// Starts a member that was ended, with the data it has. Waits for nothing.
    pub fn start_again(&mut self, member: usize) {
        self.run(member);
    }

    /// Freezes a member (SIGSTOP): connections stay open, nothing is answered.
    pub fn freeze(&mut self, member: usize) {
        self.signal(member, Signal::SIGSTOP);
        self.members[member].frozen = true;
    }

    /// Lets a frozen one go on.
    pub fn thaw(&mut self, member: usize) {
        self.signal(member, Signal::SIGCONT);
        self.members[member].frozen = false;
    }

    /// Cuts a member off from the others. Its clients still reach it.
    pub fn cut_off(&self, member: usize) {
        self.network().unplug(u8::try_from(member).unwrap());
    }

    /// Joins it again.
    pub fn join_again(&self, member: usize) {
        self.network().plug(u8::try_from(member).unwrap());
    }

    /// Ends all members at once, and starts them again with the data they have. Waits until they have a leader.
    pub async fn restart_all(&mut self) {
        for member in 0..MEMBERS {
            self.kill(member).await;
        }
        for member in 0..MEMBERS {
            self.run(member);
        }
        self.leader().await;
    }

    /// A request by whichever member answers with a status below 500. Waits for that: the cluster may be in an election.
    pub async fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Reply {
        wait_until(ELECTED, &format!("etcd answers {method} {path}"), async || {
            let mut seen = Vec::new();
            for member in self.members.iter().filter(|member| member.process.is_some() && !member.frozen) {
                let asked = http::request(member.client, method, path, headers, body);
                match tokio::time::timeout(secs(2), asked).await {
                    Ok(Ok(reply)) if reply.status < 500 => return Ok(reply),
                    other => seen.push(format!("{}: {other:?}", member.name)),
                }
            }
            Err(seen.join("; "))
        })
        .await
    }

    /// All keys below a directory with their values, read by quorum; sorted.
    pub async fn keys(&self, directory: &str) -> Vec<(String, String)> {
        let mut found = Vec::new();
        match self.api {
            Api::V2 => {
                let reply = self.ask("GET", &format!("/v2/keys{directory}?recursive=true&quorum=true"), &[], "").await;
                if reply.status != 404 {
                    assert_eq!(reply.status, 200, "{reply:?}");
                    collect(&serde_json::from_str::<Value>(&reply.body).unwrap()["node"], &mut found);
                }
            }
            Api::V3 => {
                // `0` is what comes after `/`.
                let (from, to) = (format!("{directory}/"), format!("{directory}0"));
                let range = json!({ "key": BASE64.encode(from), "range_end": BASE64.encode(to) });
                let reply = self.v3("kv/range", &range).await;
                let text = |value: &Value| {
                    String::from_utf8(BASE64.decode(value.as_str().unwrap_or_default()).unwrap()).unwrap()
                };
                found.extend(
                    reply["kvs"].as_array().into_iter().flatten().map(|kv| (text(&kv["key"]), text(&kv["value"]))),
                );
            }
        }
        found.sort();
        found
    }

    /// Lets etcd forget what happened before: v2 keeps 1000 events of all directories together, v3 what was not compacted.
    pub async fn forget_events(&self) {
        if self.api == Api::V3 {
            self.compact().await;
            return;
        }
        write_elsewhere(self.members[0].client, 1100).await;
    }

    /// Fills the database of v3 up, until etcd refuses whatever makes it grow (alarm NOSPACE).
    pub async fn fill_up(&self) {
        let filler = BASE64.encode(vec![b'x'; 64 << 10]);
        for number in 0..1000 {
            let put = json!({ "key": BASE64.encode(format!("filler/{number}")), "value": &filler });
            let reply = self.ask("POST", "/v3/kv/put", &[], &put.to_string()).await;
            if reply.status != 200 {
                assert!(reply.body.contains("database space exceeded"), "{reply:?}");
                return;
            }
        }
        panic!("the database did not fill up");
    }

    /// Makes room again, as etcd's manual has it ("Maintenance"): compact, defragment, disarm the alarm.
    pub async fn make_room(&self) {
        let range = json!({ "key": BASE64.encode("filler/"), "range_end": BASE64.encode("filler0") });
        self.v3("kv/deleterange", &range).await;
        self.compact().await;
        for member in &self.members {
            let reply = http::request(member.client, "POST", "/v3/maintenance/defragment", &[], "{}").await;
            assert!(reply.as_ref().is_ok_and(|reply| reply.status == 200), "{}: {reply:?}", member.name);
        }
        let raised = self.v3("maintenance/alarm", &json!({ "action": "GET" })).await;
        for alarm in raised["alarms"].as_array().into_iter().flatten() {
            let member = &alarm["memberID"];
            let disarm = json!({ "action": "DEACTIVATE", "memberID": member, "alarm": "NOSPACE" });
            self.v3("maintenance/alarm", &disarm).await;
        }
    }

    async fn compact(&self) {
        let now = self.v3("kv/range", &json!({ "key": BASE64.encode("x") })).await["header"]["revision"].clone();
        self.v3("kv/compaction", &json!({ "revision": now, "physical": true })).await;
    }

    /// A request of v3, which must be answered.
    async fn v3(&self, method: &str, body: &Value) -> Value {
        let reply = self.ask("POST", &format!("/v3/{method}"), &[], &body.to_string()).await;
        assert_eq!(reply.status, 200, "{method} {body}: {reply:?}");
        serde_json::from_str(&reply.body).unwrap()
    }

    /// How many requests of clients each member has received since it was started; `None` where it cannot be asked.
    pub async fn requests(&self) -> [Option<u64>; MEMBERS] {
        let mut counts = [None; MEMBERS];
        for (count, member) in counts.iter_mut().zip(&self.members) {
            if member.process.is_some() && !member.frozen {
                let metrics = http::get(member.client, "/metrics").await.map(|reply| reply.body);
                *count = metrics.ok().map(|metrics| metrics.lines().filter_map(received).sum());
            }
        }
        counts
    }

    fn run(&mut self, number: usize) {
        let all: Vec<_> = self.members.iter().map(|member| format!("{}=http://{}", member.name, member.peer)).collect();
        let member = &mut self.members[number];
        assert!(member.process.is_none(), "{} runs already", member.name);
        let (client, peer) = (format!("http://{}", member.client), format!("http://{}", member.peer));
        let mut args = vec![
            format!("--name={}", member.name),
            "--enable-v2".to_owned(),
            format!("--data-dir={}", member.data().display()),
            format!("--listen-client-urls={client}"),
            format!("--advertise-client-urls={client}"),
            format!("--listen-peer-urls={peer}"),
            format!("--initial-advertise-peer-urls={peer}"),
            format!("--initial-cluster={}", all.join(",")),
            "--logger=zap".to_owned(),
            "--log-level=error".to_owned(),
        ];
        args.extend_from_slice(&self.flags);
        let etcd = find_program("etcd", "etcd-server");
        let log = member.dir.path().join("log");
        let namespace = member.namespace.as_deref();
        member.process = Some(Process::start_in(namespace, &member.name, &etcd, &args, &log, member.dir.path()));
    }

    fn signal(&self, member: usize, signal: Signal) {
        self.members[member].process.as_ref().expect("the member runs").signal(signal);
    }

    fn network(&self) -> &Network {
        self.network.as_ref().expect("a cluster whose members are hosts of their own")
    }
}

impl Member {
    /// Whether it says that it leads. `Err` where it has no leader, or does not answer.
    async fn leads(&self) -> Result<bool, String> {
        let asked = tokio::time::timeout(secs(1), http::get(self.client, "/metrics")).await;
        let metrics = asked.map_err(|_| "no answer".to_owned())?.map_err(|error| error.to_string())?.body;
        let says = |name: &str| metrics.lines().any(|line| line == format!("{name} 1"));
        if says("etcd_server_has_leader") { Ok(says("etcd_server_is_leader")) } else { Err("no leader".to_owned()) }
    }

    fn data(&self) -> PathBuf {
        let data = self.dir.path().join("data");
        // etcd warns of a directory that others may read.
        fs::create_dir_all(&data).unwrap();
        data
    }
}

/// The count in a line of etcd's metrics about requests to the v2 API (`etcd_http_...`) or the v3 API (`grpc_server_...`).
fn received(line: &str) -> Option<u64> {
    let is_count = ["etcd_http_received_total", "grpc_server_started_total"].iter().any(|name| line.starts_with(name));
    line.rsplit(' ').next().filter(|_| is_count)?.parse::<f64>().ok().map(|count| count as u64)
}

fn collect(node: &Value, into: &mut Vec<(String, String)>) {
    match node["nodes"].as_array() {
        Some(nodes) => nodes.iter().for_each(|node| collect(node, into)),
        None if node["dir"] == true => {}
        None => {
            let text = |name: &str| node[name].as_str().unwrap_or_default().to_owned();
            into.push((text("key"), text("value")));
        }
    }
}
