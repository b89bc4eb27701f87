//! A real DNS server (dnsmasq) with a few records of a test's own, and programs that ask it: each in a mount namespace
//! where `/etc/resolv.conf` names it. Both take root: DNS has port 53.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use tempfile::TempDir;

use crate::process::{Process, find_program};

/// A DNS server that can be stopped and started again with other records. Dropping it ends it.
pub struct Dns {
    address: Ipv4Addr,
    process: Option<Process>,
    dir: TempDir,
}

impl Dns {
    /// One that has an address of its own among those of the loopback, and does not run yet.
    pub fn absent() -> Dns {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let [_, _, high, low] = std::process::id().to_be_bytes();
        let next = u8::try_from(NEXT.fetch_add(1, Ordering::Relaxed)).unwrap();
        let dir = tempfile::Builder::new().prefix("e2e-dns-").tempdir().unwrap();
        let address = Ipv4Addr::new(127, 53 + next, high, low.clamp(1, 254));
        std::fs::write(dir.path().join("resolv.conf"), format!("nameserver {address}\n")).unwrap();
        Dns { address, process: None, dir }
    }

    /// Starts it, or starts it anew, with these records: flags of dnsmasq(8).
    pub fn serve(&mut self, records: &[&str]) {
        self.process = None;
        let mut args: Vec<String> = [
            "--keep-in-foreground",
            "--conf-file=/dev/null",
            "--no-resolv",
            "--no-hosts",
            "--bind-interfaces",
            "--user=root",
            "--pid-file=",
            "--log-facility=-",
        ]
        .map(str::to_owned)
        .to_vec();
        args.push(format!("--listen-address={}", self.address));
        args.extend(records.iter().map(|&record| record.to_owned()));
        let program = find_program("dnsmasq", "dnsmasq-base");
        self.process = Some(Process::start("dnsmasq", &program, &args, &self.dir.path().join("log"), self.dir.path()));
    }

    /// The program and arguments that run `program` with `args` where this server is the system's.
    pub fn asked_by(&self, program: &Path, args: &[&str]) -> (PathBuf, Vec<String>) {
        let resolv_conf = self.dir.path().join("resolv.conf").display().to_string();
        let script = r#"mount --bind "$0" /etc/resolv.conf && exec "$@""#;
        let program = program.display().to_string();
        let mut all: Vec<String> = ["--mount", "sh", "-c", script, &resolv_conf, &program].map(str::to_owned).to_vec();
        all.extend(args.iter().map(|&arg| arg.to_owned()));
        (find_program("unshare", "util-linux"), all)
    }
}
