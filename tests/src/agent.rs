//! The agent under test: the built program, as it runs once on each host, with a state directory of its own.
//!
//! It sees every container of the machine, those of other tests too: what a test asks of the registry, it asks of services that
//! have a name of its own.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::etcd::{Etcd, get_node};
use crate::process::{Finished, Process, find_workspace_binary, run};
use crate::{secs, wait_until};

/// From the start of an application to its key, on a machine that is busy with other tests.
pub const REGISTERED: Duration = secs(10);

/// An agent. Dropping it ends it at once, and leaves its keys.
pub struct Agent {
    process: Process,
    args: Vec<String>,
    program: PathBuf,
    dir: TempDir,
}

impl Agent {
    /// Starts one over the machine's Docker that registers at 127.0.0.1 those who ask for it, asks them twice a second, and drains
    /// for at most 30 s; `flags` are more, or others instead, and
    /// `no --ip` goes without that flag.
    pub fn start(etcd: &Etcd, flags: &[&str]) -> Agent {
        Agent::start_with(&find_workspace_binary("registrar"), &etcd.url(), flags)
    }

    /// The same with a program and an etcd that are given.
    pub fn start_with(program: &Path, etcd: &str, flags: &[&str]) -> Agent {
        let dir = tempfile::Builder::new().prefix("e2e-agent-").tempdir().unwrap();
        let state_dir = dir.path().join("state").display().to_string();
        let defaults = [
            ("--etcd", etcd),
            ("--state-dir", &state_dir),
            ("--ip", "127.0.0.1"),
            ("--host", "host-1"),
            ("--interval", "500ms"),
            ("--timeout", "400ms"),
            ("--linger", "0s"),
            // Several run at once on this machine.
            ("--admin", "off"),
        ];
        let mut args = vec!["agent".to_owned()];
        for (name, value) in defaults {
            if !flags.iter().any(|flag| flag.trim_start_matches("no ") == name) {
                args.extend([name.to_owned(), value.to_owned()]);
            }
        }
        if !flags.contains(&"no --explicit") {
            args.push("--explicit".to_owned());
        }
        args.extend(flags.iter().filter(|flag| !flag.starts_with("no ")).map(|&flag| flag.to_owned()));
        let process = start(program, &args, dir.path());
        Agent { process, args, program: program.to_path_buf(), dir }
    }

    /// Starts it again after it has ended, with the same state directory.
    pub fn start_again(&mut self) {
        assert!(self.process.ended().is_some(), "the agent runs already");
        self.process = start(&self.program, &self.args, self.dir.path());
    }

    /// Tells it to stop, and waits for that.
    pub async fn stop(&mut self) {
        self.process.signal(Signal::SIGTERM);
        let status = self.process.wait(secs(15)).await;
        assert_eq!(status.code(), Some(0), "the agent ended with {status}");
    }

    /// Its process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Its directory, with `state` in it.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// `registrar explain` of a container by its name or id, with the flags of this agent by which it judges.
    pub async fn explain(&self, container: &str) -> Finished {
        let mut args = vec!["explain"];
        let mut own = self.args.iter().skip(1).map(String::as_str);
        while let Some(arg) = own.next() {
            match arg {
                "--keep-on-exit" => {}
                "--ttl" | "--kill-grace" | "--linger" | "--admin" => drop(own.next()),
                arg => args.push(arg),
            }
        }
        args.push(container);
        run(&self.program, &args, &[], secs(20)).await
    }

    /// Where an agent that was started with `--admin 127.0.0.1:0` offers metrics and health.
    pub async fn admin(&self) -> SocketAddr {
        let line = self.wait_logged(REGISTERED, &["metrics and health are here"]).await;
        let address = line.split("http://").nth(1).and_then(|rest| rest.split('/').next());
        address.and_then(|address| address.parse().ok()).unwrap_or_else(|| panic!("no address in {line}"))
    }

    /// Panics with its end where it has ended.
    pub fn assert_runs(&mut self) {
        if let Some(status) = self.process.ended() {
            panic!("the agent ended: {status}");
        }
    }

    /// The lines of its log that have all these texts in them.
    pub fn logged(&self, texts: &[&str]) -> Vec<String> {
        let log = self.process.log();
        log.lines().filter(|line| texts.iter().all(|text| line.contains(text))).map(str::to_owned).collect()
    }

    /// Waits until a line of its log has all these texts in it.
    pub async fn wait_logged(&self, limit: Duration, texts: &[&str]) -> String {
        wait_until(limit, &format!("a line of the agent's log has {texts:?}"), async || {
            self.logged(texts).into_iter().next().ok_or_else(|| crate::process::tail(&self.process.log()))
        })
        .await
    }
}

fn start(program: &Path, args: &[String], dir: &Path) -> Process {
    Process::start("registrar agent", program, args, &dir.join("log"), dir)
}

/// An instance in the registry.
#[derive(Debug, Clone)]
pub struct Instance {
    /// `address:port`.
    pub address: String,
    /// The key's path.
    pub key: String,
    /// Its record.
    pub record: Value,
    /// The seconds that it lives without a refresh.
    pub ttl: u64,
    /// etcd's index of its creation: the same as long as the key was never gone.
    pub created_index: u64,
}

impl Instance {
    /// An attribute of its record; empty where it has none of that name.
    pub fn attribute(&self, name: &str) -> &str {
        self.record["attributes"][name].as_str().unwrap_or_default()
    }

    /// The record's status.
    pub fn status(&self) -> &str {
        self.record["status"].as_str().unwrap_or_default()
    }
}

/// The instances of a service, in the order of their addresses.
pub async fn instances(etcd: SocketAddr, service: &str) -> Vec<Instance> {
    let directory = get_node(etcd, &format!("/service/{service}")).await;
    let mut found: Vec<Instance> =
        directory.iter().flat_map(|directory| directory["nodes"].as_array()).flatten().map(instance).collect();
    found.sort_by(|one, other| one.address.cmp(&other.address));
    found
}

fn instance(node: &Value) -> Instance {
    let key = node["key"].as_str().unwrap_or_default().to_owned();
    let value = node["value"].as_str().unwrap_or_default();
    Instance {
        address: key.rsplit('/').next().unwrap_or_default().to_owned(),
        key,
        record: serde_json::from_str(value).unwrap_or(Value::String(value.to_owned())),
        ttl: node["ttl"].as_u64().unwrap_or(0),
        created_index: node["createdIndex"].as_u64().unwrap_or(0),
    }
}

/// Waits until a service has exactly one instance, and gives it.
pub async fn wait_one(etcd: &Etcd, service: &str, limit: Duration) -> Instance {
    wait_instances(etcd, service, 1, limit).await.remove(0)
}

/// Waits until a service has no instance.
pub async fn wait_none(etcd: &Etcd, service: &str, limit: Duration) {
    wait_instances(etcd, service, 0, limit).await;
}

/// Waits until a service has exactly `count` instances, and gives them.
pub async fn wait_instances(etcd: &Etcd, service: &str, count: usize, limit: Duration) -> Vec<Instance> {
    wait_until(limit, &format!("{service} has {count} instances"), async || {
        let found = instances(etcd.address(), service).await;
        if found.len() == count { Ok(found) } else { Err(format!("{found:?}")) }
    })
    .await
}

/// Waits until the only instance of a service is at this address.
pub async fn wait_at(etcd: &Etcd, service: &str, address: SocketAddr, limit: Duration) -> Instance {
    wait_until(limit, &format!("{service} is at {address}"), async || {
        let mut found = instances(etcd.address(), service).await;
        match found.as_slice() {
            [one] if one.address == address.to_string() => Ok(found.remove(0)),
            _ => Err(format!("{found:?}")),
        }
    })
    .await
}

/// Looks for the whole of `span` that a service has exactly `count` instances.
pub async fn stays(etcd: &Etcd, service: &str, count: usize, span: Duration) {
    crate::stays_true(span, &format!("{service} has {count} instances"), async || {
        let found = instances(etcd.address(), service).await;
        if found.len() == count { Ok(()) } else { Err(format!("{found:?}")) }
    })
    .await;
}
