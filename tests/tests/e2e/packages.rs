//! The Debian packages, on Debian 12 and 13 in containers with systemd: they install, start, upgrade without a gap and purge. What
//! goes into a release beside them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use e2e::docker::{Container, Docker, SOCKET, SYSTEMD_FLAGS, docker_ok};
use e2e::process::{Finished, run, target_dir};
use e2e::{app, secs, wait_until};
use tokio::sync::OnceCell;

/// The exposure that `systemd-analyze security` may show of each service, as docs/packages.md says it.
const EXPOSURE: [(&str, f64); 3] = [("registrar", 1.3), ("discoverer", 2.0), ("standalone", 2.0)];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Runs one of the scripts in packaging/.
async fn script(name: &str, args: &[&str]) -> Finished {
    // The tool that it wants may have to be built.
    run(&root().join("packaging").join(name), args, &[], secs(600)).await
}

async fn script_ok(name: &str, args: &[&str]) -> String {
    let finished = script(name, args).await;
    assert_eq!(finished.code, Some(0), "packaging/{name}: {}{}", finished.stdout, finished.stderr);
    finished.stdout
}

/// The packages in two versions, made once: those of the first revision, then those of the second.
async fn packages() -> &'static [Vec<PathBuf>; 2] {
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

/// A Debian host in a container.
struct Host {
    docker: Docker,
    host: Container,
}

impl Host {
    async fn start(suite: &str) -> Host {
        let image = format!("e2e/deb-host:{suite}");
        let base = run(&root().join("packaging/images/base"), &[suite], &[], secs(600)).await;
        assert_eq!(base.code, Some(0), "{}", base.stderr);
        let context = root().join("packaging/images/deb-host");
        let build = ["build", "--quiet", "--tag", &image, "--build-arg", &format!("SUITE={suite}")];
        let docker = e2e::process::find_program("docker", "docker.io");
        let built = run(&docker, &[&build[..], &[context.to_str().unwrap()]].concat(), &[], secs(600)).await;
        assert_eq!(built.code, Some(0), "{}", built.stderr);

        app::provide_image().await;
        let docker = Docker::start().await;
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

    /// What a shell script prints there, which must succeed.
    async fn sh(&self, script: &str) -> String {
        self.host.exec(&["sh", "-ec", script]).await
    }

    /// As docs/packages.md has it done, in a directory with these packages.
    async fn install(&self, packages: &[PathBuf]) -> String {
        self.sh("rm -rf /root/packages && mkdir /root/packages").await;
        for package in packages {
            docker_ok(&["cp", package.to_str().unwrap(), &format!("{}:/root/packages/", self.host.id())]).await;
        }
        self.sh("cd /root/packages && DEBIAN_FRONTEND=noninteractive \
             apt-get install -y --no-install-recommends ./registrar_*.deb ./discoverer_*.deb ./standalone_*.deb 2>&1")
            .await
    }

    /// A property of a service, as systemd has it.
    async fn property(&self, service: &str, property: &str) -> String {
        self.sh(&format!("systemctl show --property {property} --value {service}")).await.trim().to_owned()
    }

    async fn is_active(&self, service: &str) {
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

    /// The revisions at which the keys in etcd were made: a key that left etcd and came back has another one.
    async fn keys(&self) -> BTreeMap<String, u64> {
        let json = self.sh("ETCDCTL_API=3 etcdctl get --prefix /service/ --write-out json").await;
        let all: serde_json::Value = serde_json::from_str(&json).unwrap();
        let kvs = all["kvs"].as_array().cloned().unwrap_or_default();
        let key = |kv: &serde_json::Value| BASE64_STANDARD.decode(kv["key"].as_str().unwrap()).unwrap();
        kvs.iter().map(|kv| (String::from_utf8(key(kv)).unwrap(), kv["create_revision"].as_u64().unwrap())).collect()
    }

    async fn exposure(&self, service: &str) -> f64 {
        let report = self.sh(&format!("systemd-analyze security --no-pager {service}.service || true")).await;
        let last =
            report.lines().rfind(|line| line.contains("Overall exposure level")).unwrap_or_else(|| panic!("{report}"));
        let figure = last.split_whitespace().find_map(|word| word.parse().ok());
        figure.unwrap_or_else(|| panic!("{last}"))
    }
}

/// The keys of a service: those of others on this engine come and go meanwhile.
async fn made_at(host: &Host, service: &str) -> BTreeMap<String, u64> {
    let mut keys = host.keys().await;
    keys.retain(|key, _| key.starts_with(&format!("/service/{service}/")));
    keys
}

/// From the installation to the purge, with traffic over the upgrade.
async fn lives(suite: &str) {
    let [first, second] = packages().await;
    let host = Host::start(suite).await;

    // Installed, and not configured.
    host.install(first).await;
    for service in ["registrar", "discoverer"] {
        assert_eq!(host.sh(&format!("systemctl is-enabled {service}")).await.trim(), "enabled");
        assert_eq!(host.property(service, "ActiveState").await, "inactive");
        let journal = host.sh(&format!("journalctl --no-pager --output cat --unit {service}")).await;
        assert!(journal.contains(&format!("Set etcd in /etc/{service}/{service}.toml")), "{journal}");
        for made in
            [format!("/usr/share/man/man1/{service}.1.gz"), format!("/usr/share/bash-completion/completions/{service}")]
        {
            host.sh(&format!("test -s {made}")).await;
        }
        host.sh(&format!("grep -q MIT /usr/share/doc/{service}/copyright")).await;
    }
    let all = ["registrar", "discoverer", "standalone"].map(|name| format!("'{name}*'")).join(" ");
    assert_eq!(host.sh(&format!("systemctl --failed --no-legend --plain list-units {all}")).await, "");
    assert_eq!(host.sh("systemctl is-enabled standalone || true").await.trim(), "disabled");
    assert_eq!(host.property("standalone", "ActiveState").await, "inactive");

    // The group that has the engine's socket, which is the machine's own, has another number there.
    host.sh("groupmod --non-unique --gid $(stat -c %g /srv/docker.sock) docker").await;
    host.sh(
        "sed -i '/^#etcd/s/.*/etcd = [\"http:\\/\\/127.0.0.1:2379\"]/' /etc/registrar/registrar.toml /etc/discoverer/discoverer.toml
         printf '%s\\n' 'docker = \"/srv/docker.sock\"' 'explicit = true' >>/etc/registrar/registrar.toml
         echo REGISTRAR_INTERNAL=true >/etc/default/registrar
         systemctl start registrar discoverer",
    )
    .await;
    for service in ["registrar", "discoverer"] {
        host.is_active(service).await;
        assert_eq!(host.property(service, "Type").await, "notify");
    }
    assert_eq!(
        host.sh("stat -c %U /proc/$(systemctl show --property MainPID --value registrar)").await.trim(),
        "registrar"
    );

    let service = host.docker.service("web");
    let labels = [format!("SERVICE_NAME={service}"), "SERVICE_HOST=web.test".to_owned()];
    let _app =
        host.docker.run("web", &["--expose=8000", "--label", &labels[0], "--label", &labels[1], app::IMAGE]).await;
    wait_until(secs(30), "HAProxy routes to the container", async || {
        let asked = host
            .sh("curl -sS -m 3 -w '%{http_code}' -o /dev/null -H 'Host: web.test' http://127.0.0.1/ 2>&1 || true")
            .await;
        if asked.trim() == "200" { Ok(()) } else { Err(format!("{asked} {:?}", host.keys().await)) }
    })
    .await;
    for (service, limit) in EXPOSURE.into_iter().filter(|(service, _)| *service != "standalone") {
        let exposure = host.exposure(service).await;
        println!("{suite}: systemd-analyze security {service}: {exposure}");
        assert!(exposure <= limit, "{service}: {exposure}");
    }

    // Upgraded, under load.
    host.sh("cat >/root/load <<'END'
#!/bin/sh
while ! [ -e /root/stop ]; do
    if curl -sf -m 5 -o /dev/null -H 'Host: web.test' http://127.0.0.1/; then echo good; else echo bad; fi
done >/root/answers
END
        systemd-run --quiet --unit load sh /root/load")
        .await;
    let answers = async || host.sh("grep -c good /root/answers || true").await.trim().parse::<u32>().unwrap();
    let many_more = async |than: u32| {
        wait_until(secs(30), "the load goes on", async || {
            let now = answers().await;
            if now > than + 50 { Ok(now) } else { Err(now.to_string()) }
        })
        .await
    };
    let before = many_more(0).await;
    let keys = made_at(&host, &service).await;
    let pids = [host.property("registrar", "MainPID").await, host.property("discoverer", "MainPID").await];
    assert_eq!(keys.len(), 1);
    let haproxy = host.property("haproxy", "MainPID").await;
    host.install(second).await;
    for (service, pid) in ["registrar", "discoverer"].into_iter().zip(&pids) {
        host.is_active(service).await;
        assert_ne!(host.property(service, "MainPID").await, *pid, "{service} runs the old program");
        let version = host.sh(&format!("dpkg-query --show --showformat '${{Version}}' {service}")).await;
        assert!(version.ends_with("-2"), "{version}");
    }
    assert_eq!(host.property("haproxy", "MainPID").await, haproxy);
    // Longer than a key of which nobody takes care would stay.
    wait_until(secs(40), "the successor has renewed the keys for longer than they live", async || {
        let since = host.property("registrar", "ActiveEnterTimestampMonotonic").await.parse::<u64>().unwrap();
        let now = host.sh("cut -d. -f1 /proc/uptime").await.trim().parse::<u64>().unwrap();
        if now > since / 1_000_000 + 21 { Ok(()) } else { Err(format!("{now} {since}")) }
    })
    .await;
    assert_eq!(made_at(&host, &service).await, keys, "a key has left etcd");
    many_more(before).await;
    host.sh("touch /root/stop").await;
    assert_eq!(host.sh("grep -c bad /root/answers || true").await.trim(), "0");

    // A loop that hangs is started again.
    for service in ["registrar", "discoverer"] {
        host.sh(&format!(
            "mkdir -p /run/systemd/system/{service}.service.d
             printf '[Service]\\nWatchdogSec=2s\\n' >/run/systemd/system/{service}.service.d/watchdog.conf
             systemctl daemon-reload && systemctl restart {service}"
        ))
        .await;
        host.is_active(service).await;
        let pid = host.property(service, "MainPID").await;
        host.sh(&format!("kill -STOP {pid}")).await;
        wait_until(secs(30), &format!("{service} is started again"), async || {
            let (now, state) = (host.property(service, "MainPID").await, host.property(service, "ActiveState").await);
            if now != pid && now != "0" && state == "active" { Ok(()) } else { Err(format!("{now} {state}")) }
        })
        .await;
        let journal = host.sh(&format!("journalctl --no-pager --output cat --unit {service}")).await;
        assert!(journal.contains("Watchdog timeout"), "{journal}");
    }

    // Flags that it refuses do not make it start again and again.
    host.sh("echo REGISTRAR_TTL=soon >>/etc/default/registrar; systemctl restart registrar || true").await;
    wait_until(secs(20), "the registrar has failed", async || {
        match host.property("registrar", "ActiveState").await.as_str() {
            "failed" => Ok(()),
            other => Err(other.to_owned()),
        }
    })
    .await;
    host.sh("sed -i /REGISTRAR_TTL/d /etc/default/registrar; systemctl restart registrar").await;
    host.is_active("registrar").await;

    // Removed: the keys go, HAProxy goes on; purged: nothing is left.
    wait_until(secs(20), "the key is there again", async || match made_at(&host, &service).await.len() {
        1 => Ok(()),
        other => Err(other.to_string()),
    })
    .await;
    host.sh("apt-get remove -y discoverer registrar 2>&1").await;
    assert!(host.keys().await.is_empty(), "keys are left");
    host.sh("curl -sf -m 3 -o /dev/null -H 'Host: web.test' http://127.0.0.1/").await;
    host.sh("test -s /etc/registrar/registrar.toml && test -n \"$(ls /var/lib/registrar)\"").await;
    host.sh("apt-get purge -y discoverer registrar standalone 2>&1").await;
    let left = host
        .sh(
            "find / -xdev \\( -name '*registrar*' -o -name '*discoverer*' -o -name '*standalone*' \\) ! -path '/proc/*' ! -path '/sys/*' ! -path '/root/*' \
                 ! -path '/var/log/*'
             getent passwd registrar || true
             getent group registrar || true
             getent group docker | grep registrar || true",
        )
        .await;
    assert_eq!(left, "", "left after the purge");
}

/// One host without etcd, with the two other packages beside it: from the installation to the purge.
async fn standalone_lives(suite: &str) {
    let [first, second] = packages().await;
    let host = Host::start(suite).await;
    host.install(first).await;
    for made in ["man/man1/standalone.1.gz", "bash-completion/completions/standalone", "doc/standalone/copyright"] {
        host.sh(&format!("test -s /usr/share/{made}")).await;
    }
    let service = host.docker.service("web");
    host.sh(&format!(
        "printf '%s\\n' 'docker = \"/srv/docker.sock\"' 'explicit = true' 'internal = true' 'domains = [\"{service}.test\"]' \
             >/root/standalone.toml
         cat /etc/standalone/standalone.toml >>/root/standalone.toml && cp /root/standalone.toml /etc/standalone/standalone.toml"
    ))
    .await;

    // Both would write one file: where a discoverer runs it does not start, and says why.
    host.sh("echo DISCOVERER_ETCD=http://127.0.0.1:2379 >/etc/default/discoverer && systemctl start discoverer").await;
    host.is_active("discoverer").await;
    host.sh("systemctl enable --quiet --now standalone").await;
    assert_eq!(host.property("standalone", "ActiveState").await, "inactive");
    let journal = host.sh("journalctl --no-pager --output cat --unit standalone").await;
    assert!(journal.contains("Not started: discoverer.service runs, and both would write HAProxy's"), "{journal}");
    host.sh("systemctl disable --quiet --now discoverer && systemctl start standalone").await;
    host.is_active("standalone").await;
    assert_eq!(host.property("standalone", "Type").await, "notify");

    let labels = [format!("SERVICE_NAME={service}"), format!("SERVICE_HOST={service}.test")];
    let app =
        host.docker.run("web", &["--expose=8000", "--label", &labels[0], "--label", &labels[1], app::IMAGE]).await;
    let is_served = async || {
        let get = "curl -sS -m 3 -w '%{http_code}' -o /dev/null -H";
        let asked = host.sh(&format!("{get} 'Host: {service}.test' http://127.0.0.1/ 2>&1 || true")).await;
        if asked.trim() == "200" { Ok(()) } else { Err(asked) }
    };
    wait_until(secs(30), "HAProxy routes to the container", is_served).await;
    let explained = host.sh(&format!("standalone explain --config /etc/standalone/standalone.toml {}", app.id())).await;
    assert!(explained.contains("is in the registry in memory: running"), "{explained}");
    wait_until(secs(30), "the status line says what it has", async || {
        let status = host.property("standalone", "StatusText").await;
        let has_all = status.contains("1 key in the registry in memory") && status.contains("1 services");
        if has_all { Ok(()) } else { Err(status) }
    })
    .await;
    let (_, limit) = EXPOSURE[2];
    let exposure = host.exposure("standalone").await;
    println!("{suite}: systemd-analyze security standalone: {exposure}");
    assert!(exposure <= limit, "{exposure}");

    // The new one finds what the old one has left, and HAProxy has not noticed.
    let (pid, haproxy) = (host.property("standalone", "MainPID").await, host.property("haproxy", "MainPID").await);
    host.install(second).await;
    host.is_active("standalone").await;
    assert_ne!(host.property("standalone", "MainPID").await, pid, "it runs the old program");
    is_served().await.unwrap();
    assert_eq!(host.property("haproxy", "MainPID").await, haproxy);

    // A loop that hangs is started again.
    host.sh("mkdir -p /run/systemd/system/standalone.service.d
         printf '[Service]\\nWatchdogSec=2s\\n' >/run/systemd/system/standalone.service.d/watchdog.conf
         systemctl daemon-reload && systemctl restart standalone")
        .await;
    host.is_active("standalone").await;
    let pid = host.property("standalone", "MainPID").await;
    host.sh(&format!("kill -STOP {pid}")).await;
    wait_until(secs(30), "it is started again", async || {
        let (now, state) =
            (host.property("standalone", "MainPID").await, host.property("standalone", "ActiveState").await);
        if now != pid && now != "0" && state == "active" { Ok(()) } else { Err(format!("{now} {state}")) }
    })
    .await;

    // Removed, HAProxy goes on; purged, nothing is left, and the others are.
    host.sh("rm -r /run/systemd/system/standalone.service.d && apt-get remove -y standalone 2>&1").await;
    is_served().await.unwrap();
    host.sh("test -s /etc/standalone/standalone.toml && test -n \"$(ls /var/lib/standalone)\"").await;
    host.sh("apt-get purge -y standalone 2>&1").await;
    let elsewhere = "! -path '/proc/*' ! -path '/sys/*' ! -path '/root/*' ! -path '/var/log/*'";
    let left = host.sh(&format!("find / -xdev -name '*standalone*' {elsewhere}")).await;
    assert_eq!(left, "", "left after the purge");
    host.sh("registrar --version && discoverer --version && test -d /var/lib/discoverer").await;
}

#[tokio::test]
async fn the_package_of_one_host_without_etcd_lives_on_debian_12() {
    standalone_lives("bookworm").await;
}

#[tokio::test]
async fn the_package_of_one_host_without_etcd_lives_on_debian_13() {
    standalone_lives("trixie").await;
}

#[tokio::test]
async fn the_packages_live_on_debian_12() {
    lives("bookworm").await;
}

#[tokio::test]
async fn the_packages_live_on_debian_13() {
    lives("trixie").await;
}

#[tokio::test]
async fn a_package_is_not_made_of_what_is_no_static_program() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path().to_str().unwrap();
    let missing = script("build-deb", &["--programs", directory]).await;
    assert_eq!(missing.code, Some(1));
    assert!(missing.stderr.contains("there is no"), "{}", missing.stderr);
    for name in ["registrar", "discoverer", "standalone"] {
        fs::copy("/bin/true", Path::new(directory).join(name)).unwrap();
    }
    let dynamic = script("build-deb", &["--programs", directory]).await;
    assert_eq!(dynamic.code, Some(1));
    assert!(dynamic.stderr.contains("is not static"), "{}", dynamic.stderr);
}

#[tokio::test]
async fn a_release_says_of_what_it_is_made_and_can_be_verified() {
    let directory = tempfile::Builder::new().prefix("release-files").tempdir().unwrap();
    let output = directory.path().to_str().unwrap();
    script_ok("sbom", &[output]).await;
    for (program, crates) in
        [("registrar", ["bollard", "rustls"]), ("discoverer", ["tera", "rustls"]), ("standalone", ["tera", "bollard"])]
    {
        let text = fs::read_to_string(directory.path().join(format!("{program}.cdx.json"))).unwrap();
        let bill: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(bill["bomFormat"], "CycloneDX");
        let components = bill["components"].as_array().unwrap();
        for wanted in crates {
            let found = components.iter().find(|component| component["name"] == wanted).unwrap();
            assert!(
                found["version"].is_string() && found["licenses"].is_array() && found["hashes"].is_array(),
                "{found}"
            );
        }
        assert!(!text.contains(root().canonicalize().unwrap().to_str().unwrap()), "it says where it was built");
    }
    let again = tempfile::tempdir().unwrap();
    let mut archives = Vec::new();
    for directory in [output, again.path().to_str().unwrap()] {
        let archive = script_ok("build-tarball", &["--output", directory]).await;
        archives.push(fs::read(archive.trim()).unwrap());
    }
    assert!(archives[0] == archives[1], "the same programs give other bytes");
    script_ok("checksums", &[output]).await;
    let check = async || {
        let script = format!("cd '{output}' && sha256sum --check --strict --ignore-missing SHA256SUMS");
        run(Path::new("/bin/sh"), &["-ec", &script], &[], secs(60)).await
    };
    let good = check().await;
    assert_eq!(good.code, Some(0), "{}{}", good.stdout, good.stderr);
    assert_eq!(good.stdout.lines().count(), 4);
    fs::write(directory.path().join("registrar.cdx.json"), "{}").unwrap();
    assert_eq!(check().await.code, Some(1));
}

/// actionlint is not among Debian's packages: what GitHub itself would refuse in the workflows' vocabulary is not seen here.
#[test]
fn the_workflows_can_be_read_and_call_what_is_there() {
    let directory = root().join(".github/workflows");
    let mut calls = 0;
    for entry in fs::read_dir(&directory).unwrap() {
        let path = entry.unwrap().path();
        let text = fs::read_to_string(&path).unwrap();
        let workflow: serde_json::Value =
            serde_saphyr::from_str(&text).unwrap_or_else(|error| panic!("{path:?}: {error}"));
        for (name, job) in workflow["jobs"].as_object().unwrap() {
            assert!(job["timeout-minutes"].is_u64(), "{path:?}: {name} has no end");
            if let Some(needed) = job["needs"].as_str() {
                assert!(workflow["jobs"][needed].is_object(), "{path:?}: {name} needs {needed}");
            }
            for step in job["steps"].as_array().unwrap() {
                assert!(step["run"].is_string() ^ step["uses"].is_string(), "{path:?}: {name}: {step}");
                for word in
                    step["run"].as_str().unwrap_or_default().split(|c: char| c.is_whitespace() || "()\"'$".contains(c))
                {
                    if word.starts_with("packaging/") || word.starts_with("./") {
                        calls += 1;
                        assert!(root().join(word).is_file(), "{path:?}: {name} calls {word}, which is not there");
                    }
                }
            }
        }
    }
    assert!(calls > 5, "{calls}");
}
