//! The Debian packages, and a Debian host in a container with systemd, HAProxy and etcd to install them on.

use std::collections::BTreeMap;
use std::path::PathBuf;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use tokio::sync::OnceCell;

use crate::docker::{Container, Docker, SOCKET, SYSTEMD_FLAGS, docker_ok};
use crate::process::{Finished, find_program, run, target_dir};
use crate::{secs, wait_until, workspace};

/// Runs one of the scripts in packaging/.
pub async fn script(name: &str, args: &[&str]) -> Finished {
    // The tool that it wants may have to be built.
    run(&workspace().join("packaging").join(name), args, &[], secs(600)).await
}

/// [`script`], which must succeed; gives what it printed.
pub async fn script_ok(name: &str, args: &[&str]) -> String {
    let finished = script(name, args).await;
    assert_eq!(finished.code, Some(0), "packaging/{name}: {}{}", finished.stdout, finished.stderr);
    finished.stdout
}

/// The packages in two versions, made once: those of the first revision, then those of the second.
pub async fn packages() -> &'static [Vec<PathBuf>; 2] {
    static PACKAGES: OnceCell<[Vec<PathBuf>; 2]> = OnceCell::const_new();
    PACKAGES
        .get_or_init(async || {
            let mut made = [Vec::new(), Vec::new()];
            for (revision, made) in ["1", "2"].into_iter().zip(&mut made) {
                // A directory holds one version of a package: cargo-deb removes others.
                let output = target_dir().join("e2e-packages").join(revision);
                let output = output.to_str().unwrap();
                let printed = script_ok("build-deb", &["--revision", revision, "--output", output]).await;
                *made = printed.lines().map(PathBuf::from).collect();
                assert_eq!(made.len(), 3, "{printed}");
            }
            made
        })
        .await
}

/// A Debian host in a container. Docker's socket is at /srv/docker.sock there.
pub struct Host {
    docker: Docker,
    host: Container,
}

impl Host {
    /// Starts one of a suite (bookworm, trixie), and waits until it has booted.
    pub async fn start(suite: &str) -> Host {
        let image = format!("e2e/deb-host:{suite}");
        script_ok("images/base", &[suite]).await;
        let context = workspace().join("packaging/images/deb-host");
        let build = ["build", "--quiet", "--tag", &image, "--build-arg", &format!("SUITE={suite}")];
        let docker = find_program("docker", "docker.io");
        let built = run(&docker, &[&build[..], &[context.to_str().unwrap()]].concat(), &[], secs(600)).await;
        assert_eq!(built.code, Some(0), "{}", built.stderr);

        let docker = Docker::for_apps().await;
        let socket = SOCKET.split(':').next().unwrap();
        // Beside the place where systemd mounts its own /run.
        let volume = format!("--volume={socket}:/srv/docker.sock");
        let flags = [&SYSTEMD_FLAGS[..], &[&volume, &image]].concat();
        let host = docker.run("host", &flags).await;
        let host = Host { docker, host };
        wait_until(secs(60), "the host has booted", async || {
            match host.sh("systemctl is-system-running || true").await.trim() {
                "running" | "degraded" => Ok(()),
                other => Err(other.to_owned()),
            }
        })
        .await;
        host
    }

    /// The containers that the host reaches.
    pub fn docker(&self) -> &Docker {
        &self.docker
    }

    /// What a shell script prints there, which must succeed.
    pub async fn sh(&self, script: &str) -> String {
        let docker = find_program("docker", "docker.io");
        // What apt-get unpacks is written to a disk that others use too.
        let done = run(&docker, &["exec", self.host.id(), "sh", "-ec", script], &[], secs(300)).await;
        assert_eq!(done.code, Some(0), "{script}: {}{}", done.stdout, done.stderr);
        done.stdout
    }

    /// As docs/packages.md has it done, in a directory with these packages.
    pub async fn install(&self, packages: &[PathBuf]) -> String {
        self.install_with("", packages).await
    }

    /// [`Host::install`] with more flags of apt-get.
    pub async fn install_with(&self, flags: &str, packages: &[PathBuf]) -> String {
        self.fetch(packages).await;
        let all = "./registrar_*.deb ./discoverer_*.deb ./standalone_*.deb";
        self.type_in(&format!("apt-get install {flags} {all} 2>&1")).await
    }

    /// These packages, and no others, are where commands are typed in.
    pub async fn fetch(&self, packages: &[PathBuf]) {
        self.sh("rm -rf /root/packages && mkdir /root/packages").await;
        for package in packages {
            docker_ok(&["cp", package.to_str().unwrap(), &format!("{}:/root/packages/", self.host.id())]).await;
        }
    }

    /// A command as docs/packages.md has it, beside the packages. Nobody is here to answer apt-get.
    pub async fn type_in(&self, command: &str) -> String {
        self.sh(
            "printf '%s\\n' 'APT::Get::Assume-Yes \"true\";' 'APT::Install-Recommends \"false\";' >/etc/apt/apt.conf.d/nobody",
        )
        .await;
        self.sh(&format!("cd /root/packages && export DEBIAN_FRONTEND=noninteractive\n{command}")).await
    }

    /// The version of a package that is installed.
    pub async fn version(&self, package: &str) -> String {
        self.sh(&format!("dpkg-query --show --showformat '${{Version}}' {package}")).await
    }

    /// A property of a service, as systemd has it.
    pub async fn property(&self, service: &str, property: &str) -> String {
        self.sh(&format!("systemctl show --property {property} --value {service}")).await.trim().to_owned()
    }

    /// All that a service has written to the journal.
    pub async fn journal(&self, service: &str) -> String {
        self.sh(&format!("journalctl --no-pager --output cat --unit {service}")).await
    }

    /// Waits until a service is active.
    pub async fn is_active(&self, service: &str) {
        wait_until(secs(30), &format!("{service} is active"), async || {
            match self.property(service, "ActiveState").await.as_str() {
                "active" => Ok(()),
                other => Err(format!(
                    "{other}\n{}",
                    self.sh(&format!("journalctl --no-pager --lines 20 --unit {service}")).await
                )),
            }
        })
        .await;
    }

    /// What HAProxy answers for a host: the body of a 200, else the status, else why there is none.
    pub async fn answer(&self, host: &str) -> String {
        let get = format!("curl -sS -m 10 -w '%{{http_code}}' -H 'Host: {host}' http://127.0.0.1/ 2>&1 || true");
        let said = self.sh(&get).await;
        match said.strip_suffix("200") {
            Some(body) => body.trim().to_owned(),
            None => said.lines().next_back().unwrap_or_default().to_owned(),
        }
    }

    /// The revisions at which the keys in etcd were made: a key that left etcd and came back has another one.
    pub async fn keys(&self) -> BTreeMap<String, u64> {
        let json = self.sh("ETCDCTL_API=3 etcdctl get --prefix /service/ --write-out json").await;
        let all: serde_json::Value = serde_json::from_str(&json).unwrap();
        let kvs = all["kvs"].as_array().cloned().unwrap_or_default();
        let key = |kv: &serde_json::Value| BASE64_STANDARD.decode(kv["key"].as_str().unwrap()).unwrap();
        kvs.iter().map(|kv| (String::from_utf8(key(kv)).unwrap(), kv["create_revision"].as_u64().unwrap())).collect()
    }

    /// The keys of a service: those of others on this engine come and go meanwhile.
    pub async fn keys_of(&self, service: &str) -> BTreeMap<String, u64> {
        let mut keys = self.keys().await;
        keys.retain(|key, _| key.starts_with(&format!("/service/{service}/")));
        keys
    }

    /// What `systemd-analyze security` says of a service, 0 to 10.
    pub async fn exposure(&self, service: &str) -> f64 {
        let report = self.sh(&format!("systemd-analyze security --no-pager {service}.service || true")).await;
        let last =
            report.lines().rfind(|line| line.contains("Overall exposure level")).unwrap_or_else(|| panic!("{report}"));
        let figure = last.split_whitespace().find_map(|word| word.parse().ok());
        figure.unwrap_or_else(|| panic!("{last}"))
    }
}
