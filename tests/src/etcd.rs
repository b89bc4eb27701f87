//! The real etcd: one member on ports of its own, and the troubles that a real one has. It serves the v2 API; with
//! `E2E_ETCD_API=v3`, and where a test asks for that, v3 alone, and what the tests ask of it is asked by that.

pub(crate) mod v3;

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::certs::Pair;
use crate::http::{self, Reply, encode};
use crate::ports::free_address;
use crate::process::{Process, find_program};
use crate::{secs, wait_until};

/// One etcd. Its ports stay the same over stop and start; dropping it ends it and removes its data.
pub struct Etcd {
    process: Option<Process>,
    client: SocketAddr,
    peer: SocketAddr,
    token: u32,
    /// v2 is served.
    with_v2: bool,
    /// Where it speaks TLS, and with what.
    tls: Option<(SocketAddr, Pair)>,
    dir: TempDir,
}

impl Etcd {
    /// Starts an empty one and waits until it answers.
    pub async fn start() -> Etcd {
        let mut etcd = Etcd::absent();
        etcd.start_again().await;
        etcd
    }

    /// As [`Etcd::start`], with both APIs whatever `E2E_ETCD_API` says; what the tests ask of it is asked by v2.
    pub async fn start_with_both() -> Etcd {
        let mut etcd = Etcd { with_v2: true, ..Etcd::absent() };
        etcd.start_again().await;
        etcd
    }

    /// As [`Etcd::start`], with v3 alone.
    pub async fn start_v3() -> Etcd {
        let mut etcd = Etcd { with_v2: false, ..Etcd::absent() };
        etcd.start_again().await;
        etcd
    }

    /// One that has its ports and does not run yet; [`Etcd::start_again`] starts it.
    pub fn absent() -> Etcd {
        let dir = tempfile::Builder::new().prefix("e2e-etcd-").tempdir().unwrap();
        let with_v2 = match std::env::var("E2E_ETCD_API").as_deref() {
            Ok("v3") => false,
            Ok("v2" | "") | Err(_) => true,
            Ok(other) => panic!("E2E_ETCD_API={other}: write v2 or v3"),
        };
        Etcd { process: None, client: free_address(), peer: free_address(), token: 0, with_v2, tls: None, dir }
    }

    /// Starts an empty one that speaks TLS too, at [`Etcd::tls_url`], with this certificate. It serves
    /// both APIs.
    pub async fn start_with_tls(server: Pair) -> Etcd {
        let mut etcd = Etcd { tls: Some((free_address(), server)), with_v2: true, ..Etcd::absent() };
        etcd.start_again().await;
        etcd
    }

    /// Its URL where it speaks TLS.
    pub fn tls_url(&self) -> String {
        format!("https://{}", self.tls.as_ref().expect("etcd speaks TLS").0)
    }

    /// The address of its clients.
    pub fn address(&self) -> SocketAddr {
        self.client
    }

    /// The processor time that it has used since it was started.
    pub fn cpu_time(&self) -> Duration {
        self.process.as_ref().expect("etcd runs").cpu_time()
    }

    /// Its process.
    pub fn pid(&self) -> Pid {
        self.process.as_ref().expect("etcd runs").pid()
    }

    /// Its URL, as `--etcd` wants it.
    pub fn url(&self) -> String {
        format!("http://{}", self.client)
    }

    /// Starts it on the same ports with the data it has, and waits until it answers.
    pub async fn start_again(&mut self) {
        assert!(self.process.is_none(), "etcd runs already");
        let (client, peer) = (format!("http://{}", self.client), format!("http://{}", self.peer));
        let mut listen = client.clone();
        let mut args = Vec::new();
        if let Some((address, pair)) = &self.tls {
            listen += &format!(",https://{address}");
            args.push(format!("--cert-file={}", pair.cert.display()));
            args.push(format!("--key-file={}", pair.key.display()));
        }
        args.extend([
            "--name=one".to_owned(),
            format!("--enable-v2={}", self.with_v2),
            format!("--data-dir={}", self.data().display()),
            format!("--listen-client-urls={listen}"),
            format!("--advertise-client-urls={client}"),
            format!("--listen-peer-urls={peer}"),
            format!("--initial-advertise-peer-urls={peer}"),
            format!("--initial-cluster=one={peer}"),
            format!("--initial-cluster-token=token-{}", self.token),
            "--logger=zap".to_owned(),
            "--log-level=error".to_owned(),
        ]);
        let etcd = find_program("etcd", "etcd-server");
        let process =
            self.process.insert(Process::start("etcd", &etcd, &args, &self.dir.path().join("log"), self.dir.path()));
        let address = self.client;
        wait_until(secs(20), "etcd answers as a healthy leader", async || {
            if let Some(status) = process.ended() {
                panic!("etcd ended: {status}");
            }
            match http::get(address, "/health").await {
                Ok(reply) if reply.status == 200 && reply.body.contains("true") => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
    }

    /// Stops it gently (SIGTERM).
    pub async fn stop(&mut self) {
        let mut process = self.process.take().expect("etcd runs");
        process.signal(Signal::SIGTERM);
        process.wait(secs(10)).await;
    }

    /// Ends it at once (SIGKILL).
    pub async fn kill(&mut self) {
        self.process.take().expect("etcd runs").kill_now().await;
    }

    /// Freezes it: connections stay open, nothing is answered.
    pub fn freeze(&self) {
        self.process.as_ref().expect("etcd runs").signal(Signal::SIGSTOP);
    }

    /// Lets a frozen one go on.
    pub fn thaw(&self) {
        self.process.as_ref().expect("etcd runs").signal(Signal::SIGCONT);
    }

    /// Ends it, throws its data away and starts it anew on the same ports: the index begins again, the cluster id is the same,
    /// because etcd derives it from its flags.
    pub async fn wipe(&mut self) {
        if self.process.is_some() {
            self.kill().await;
        }
        fs::remove_dir_all(self.data()).unwrap();
        self.start_again().await;
    }

    /// [`Etcd::wipe`] with another token, so that the cluster id changes too.
    pub async fn wipe_as_another_cluster(&mut self) {
        self.token += 1;
        self.wipe().await;
    }

    /// Writes a key, given as its path below `/v2/keys`, each segment percent-encoded here; answers must be 200 or 201.
    pub async fn put(&self, key: &str, value: &str) {
        if !self.with_v2 {
            return v3::put(self.client, key, value).await;
        }
        self.put_encoded(&encode_path(key), value).await;
    }

    /// [`Etcd::put`] with a time to live, in seconds: what a registrar writes that nobody refreshes.
    pub async fn put_for(&self, key: &str, value: &str, seconds: u64) {
        let body = format!("value={}&ttl={seconds}", encode(value));
        let reply = self.send("PUT", &encode_path(key), &body).await;
        assert!(matches!(reply.status, 200 | 201), "PUT {key}: {reply:?}");
    }

    /// Waits until a key is gone.
    pub async fn wait_gone(&self, key: &str) {
        wait_until(secs(20), &format!("{key} is gone"), async || match self.get(key).await {
            None => Ok(()),
            Some(node) => Err(node.to_string()),
        })
        .await;
    }

    /// [`Etcd::put`] with a path that is percent-encoded already, so a segment may hold `/`, a line end, anything.
    pub async fn put_encoded(&self, path: &str, value: &str) {
        let reply = self.try_put_encoded(path, value).await;
        assert!(matches!(reply.status, 200 | 201), "PUT {path}: {reply:?}");
    }

    /// A PUT whatever the answer.
    pub async fn try_put_encoded(&self, path: &str, value: &str) -> Reply {
        self.send("PUT", path, &format!("value={}", encode(value))).await
    }

    /// Removes a key, or with `?recursive=true` in it a directory.
    pub async fn delete(&self, key: &str) {
        let (path, query) =
            key.split_once('?').map_or((key, String::new()), |(path, query)| (path, format!("?{query}")));
        if !self.with_v2 {
            return v3::delete(self.client, path, !query.is_empty()).await;
        }
        let reply = self.send("DELETE", &format!("{}{query}", encode_path(path)), "").await;
        assert_eq!(reply.status, 200, "DELETE {key}: {reply:?}");
    }

    /// Reads a key; `None` when it is not there.
    pub async fn get(&self, key: &str) -> Option<serde_json::Value> {
        get_node(self.client, key).await
    }

    async fn send(&self, method: &str, path: &str, body: &str) -> Reply {
        let form = [("Content-Type", "application/x-www-form-urlencoded")];
        http::request(self.client, method, &format!("/v2/keys{path}"), &form, body)
            .await
            .unwrap_or_else(|error| panic!("etcd: {method} {path}: {error}"))
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }
}

/// Reads the node of a key from any etcd; `None` when it is not there.
pub async fn get_node(address: SocketAddr, key: &str) -> Option<serde_json::Value> {
    let path = format!("/v2/keys{}?recursive=true", encode_path(key));
    let reply = http::get(address, &path).await.unwrap_or_else(|error| panic!("etcd: GET {path}: {error}"));
    match reply.status {
        200 => Some(serde_json::from_str::<serde_json::Value>(&reply.body).unwrap()["node"].clone()),
        // Without v2 there is no such page; a key that is absent is told of in JSON.
        404 if !reply.body.starts_with('{') => v3::get_node(address, key).await,
        404 => None,
        _ => panic!("etcd: GET {path}: {reply:?}"),
    }
}

fn encode_path(key: &str) -> String {
    key.split('/').map(encode).collect::<Vec<_>>().join("/").replace("%3A", ":")
}
