//! Starts the real etcd for a test: own data directory, free ports, ended when it is dropped.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

#[path = "../../../tests/src/ports.rs"]
#[allow(unreachable_pub, dead_code, reason = "a module of a library, of which the tests here take a part")]
mod ports;

pub(crate) use ports::free_port;

/// How long etcd may take to answer after its start.
const START_LIMIT: Duration = Duration::from_secs(30);

/// A running etcd.
pub(crate) struct Etcd {
    process: Option<Child>,
    directory: PathBuf,
    client_port: u16,
    peer_port: u16,
    /// Part of what the cluster's id is made from.
    token: u32,
    with_v2: bool,
    /// Where it speaks TLS, and the flags for that.
    tls: Option<(u16, Vec<String>)>,
}

impl Etcd {
    /// Starts one and waits until it answers.
    pub(crate) fn start() -> Self {
        Self::start_as(true, None)
    }

    /// Starts one that serves v3 alone, as it does where nobody says otherwise.
    pub(crate) fn start_without_v2() -> Self {
        Self::start_as(false, None)
    }

    /// Starts one that speaks TLS too, at [`Etcd::tls_url`], with these flags.
    pub(crate) fn start_with_tls(flags: &[&str]) -> Self {
        let flags: Vec<String> = flags.iter().map(|flag| (*flag).to_owned()).collect();
        Self::start_as(true, Some(&flags))
    }

    fn start_as(with_v2: bool, tls: Option<&[String]>) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let directory = std::env::temp_dir().join(format!("registry-test-{}-{count}", std::process::id()));
        let mut etcd = Self { process: None, directory, client_port: 0, peer_port: 0, token: 0, with_v2, tls: None };
        let mut tries = 3;
        loop {
            (etcd.client_port, etcd.peer_port) = (free_port(), free_port());
            etcd.tls = tls.map(|flags| (free_port(), flags.to_vec()));
            tries -= 1;
            match etcd.try_run() {
                Ok(()) => return etcd,
                // Someone else may have taken a port in between.
                Err(error) => assert!(tries > 0, "{error}"),
            }
            etcd.stop();
        }
    }

    /// The endpoint, such as `http://127.0.0.1:2379`.
    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.client_port)
    }

    /// The endpoint where it speaks TLS.
    pub(crate) fn tls_url(&self) -> String {
        format!("https://127.0.0.1:{}", self.tls.as_ref().expect("etcd speaks TLS").0)
    }

    /// Ends the process and keeps its data.
    pub(crate) fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _already_ended = process.kill();
            process.wait().expect("waiting for etcd");
        }
    }

    /// Stops the process where it is: it takes connections and answers nothing. [`Etcd::thaw`] lets it go on.
    pub(crate) fn freeze(&self) {
        self.signal("-STOP");
    }

    /// Ends [`Etcd::freeze`].
    pub(crate) fn thaw(&self) {
        self.signal("-CONT");
    }

    /// The file with what it says, beside its data.
    fn log(&self) -> PathBuf {
        self.directory.with_extension("log")
    }

    fn signal(&self, signal: &str) {
        let pid = self.process.as_ref().expect("etcd runs").id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().expect("running kill").success());
    }

    /// Starts it again on the same ports, with the data it had.
    pub(crate) fn run(&mut self) {
        if let Err(error) = self.try_run() {
            panic!("{error}");
        }
    }

    fn try_run(&mut self) -> Result<(), String> {
        let client = self.url();
        let peer = format!("http://127.0.0.1:{}", self.peer_port);
        let clients = if self.tls.is_some() { format!("{client},{}", self.tls_url()) } else { client.clone() };
        let mut command = Command::new("etcd");
        command
            .arg(format!("--enable-v2={}", self.with_v2))
            .args(["--name", "one", "--log-level", "error"])
            .arg("--data-dir")
            .arg(&self.directory)
            .args(["--listen-client-urls", &clients, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("one={peer}")])
            .args(["--initial-cluster-token", &format!("token-{}", self.token)])
            .args(self.tls.iter().flat_map(|(_, flags)| flags))
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(self.log()).expect("creating etcd's log"));
        let process = match command.spawn() {
            Ok(process) => process,
            Err(error) => panic!("etcd cannot be started ({error}); install it: apt-get install etcd-server"),
        };
        self.process = Some(process);
        let deadline = Instant::now() + START_LIMIT;
        while !self.answers() {
            let ended = self.process.as_mut().map(|process| process.try_wait().expect("asking after etcd"));
            if !matches!(ended, Some(None)) {
                let said = std::fs::read_to_string(self.log()).unwrap_or_default();
                return Err(format!("etcd ended at its start: {ended:?}; it said:\n{said}"));
            }
            if Instant::now() > deadline {
                return Err(format!("etcd does not answer within {START_LIMIT:?}"));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Ends it, forgets everything, and starts it anew on the same ports. With `same_id` the new cluster has the id of
    /// the old one, as when an operator repeats the same command.
    pub(crate) fn wipe(&mut self, same_id: bool) {
        self.stop();
        std::fs::remove_dir_all(&self.directory).expect("removing etcd's data");
        self.token += u32::from(!same_id);
        self.run();
    }

    /// Whether it has a leader and serves a read by quorum.
    fn answers(&self) -> bool {
        use std::io::{Read, Write};
        let address = std::net::SocketAddr::from(([127, 0, 0, 1], self.client_port));
        let Ok(mut stream) = std::net::TcpStream::connect_timeout(&address, Duration::from_secs(1)) else {
            return false;
        };
        let mut reply = String::new();
        let request = b"GET /health HTTP/1.0\r\nHost: etcd\r\n\r\n";
        stream.set_read_timeout(Some(Duration::from_secs(2))).is_ok()
            && stream.write_all(request).is_ok()
            && stream.read_to_string(&mut reply).is_ok()
            && reply.starts_with("HTTP/1.0 200")
            && reply.contains(r#""health":"true""#)
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.stop();
        let _already_gone = std::fs::remove_dir_all(&self.directory);
        let _never_written = std::fs::remove_file(self.log());
    }
}
