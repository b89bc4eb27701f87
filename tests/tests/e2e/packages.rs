//! The Debian packages, on Debian 12 and 13 in containers with systemd: they install, start, upgrade without a gap and purge. What
//! goes into a release beside them.

use std::fs;
use std::path::Path;
use std::time::Duration;

use e2e::commands::{How, compare};
use e2e::deb_host::{Host, packages, script, script_ok};
use e2e::process::{find_program, run};
use e2e::shown::Shown;
use e2e::{app, secs, wait_until, workspace};

/// The exposure that `systemd-analyze security` may show of each service, as docs/packages.md says it.
const EXPOSURE: [(&str, f64); 3] = [("registrar", 1.3), ("discoverer", 2.0), ("standalone", 2.0)];

/// Tells the registrar and the discoverer where etcd and Docker are, and starts them, as docs/packages.md has it.
async fn configure(host: &Host) {
    // The group that has the engine's socket, which is the machine's own, has another number there.
    host.sh("groupmod --non-unique --gid $(stat -c %g /srv/docker.sock) docker").await;
    // The engine has other tests' containers too, and what becomes of those is not this host's business.
    let domain = format!("{}.test", host.docker().service("web"));
    host.sh(&format!(
        "printf '%s\\n' 'docker = \"/srv/docker.sock\"' 'explicit = true' 'domains = [\"{domain}\"]' >>/etc/registrar/registrar.toml
         echo REGISTRAR_INTERNAL=true >/etc/default/registrar"
    ))
    .await;
    for (how, command) in Shown::below("packages.md", "Configure").with("10.1.0.101", "127.0.0.1") {
        let limit = if how == How::Wait { secs(60) } else { Duration::ZERO };
        wait_until(limit, &format!("{} says what is written of it", command.text), async || {
            let said = host.type_in(&format!("if {} 2>&1; then echo done; fi", command.text)).await;
            let Some(said) = said.strip_suffix("done\n") else { return Err(said) };
            let compared = if command.output.is_empty() { Ok(vec![]) } else { compare(&command.output, said) };
            compared.map(drop).map_err(|why| format!("{why}\n{said}"))
        })
        .await;
    }
}

/// From the installation to the purge, with traffic over the upgrade.
async fn lives(suite: &str) {
    let [first, second] = packages().await;
    let host = Host::start(suite).await;

    // Installed, and not configured.
    host.fetch(first).await;
    for (_, command) in Shown::below("packages.md", "Install") {
        host.type_in(&command.text).await;
    }
    host.type_in("apt-get install ./standalone_*.deb").await;
    for service in ["registrar", "discoverer"] {
        assert_eq!(host.sh(&format!("systemctl is-enabled {service}")).await.trim(), "enabled");
        assert_eq!(host.property(service, "ActiveState").await, "inactive");
        let journal = host.journal(service).await;
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

    configure(&host).await;
    for service in ["registrar", "discoverer"] {
        host.is_active(service).await;
        assert_eq!(host.property(service, "Type").await, "notify");
    }
    assert_eq!(
        host.sh("stat -c %U /proc/$(systemctl show --property MainPID --value registrar)").await.trim(),
        "registrar"
    );

    let service = host.docker().service("web");
    let labels = [format!("SERVICE_NAME={service}"), format!("SERVICE_HOST={service}.test")];
    let app =
        host.docker().run("web", &["--expose=8000", "--label", &labels[0], "--label", &labels[1], app::IMAGE]).await;
    let hello = format!("Hello from {}", app.short_id());
    wait_until(secs(30), "HAProxy routes to the container", async || {
        let answer = host.answer(&format!("{service}.test")).await;
        if answer == hello { Ok(()) } else { Err(format!("{answer} {:?}", host.keys().await)) }
    })
    .await;
    for (service, limit) in EXPOSURE.into_iter().filter(|(service, _)| *service != "standalone") {
        let exposure = host.exposure(service).await;
        println!("{suite}: systemd-analyze security {service}: {exposure}");
        assert!(exposure <= limit, "{service}: {exposure}");
    }

    // Upgraded, under load.
    host.sh(&format!(
        "cat >/root/load <<'END'
#!/bin/sh
while ! [ -e /root/stop ]; do
    if said=$(curl -sSf -m 30 -o /dev/null -H 'Host: {service}.test' http://127.0.0.1/ 2>&1); then echo good; else date \"+bad %T $said\"; fi
done >/root/answers
END
        systemd-run --quiet --unit load sh /root/load"
    ))
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
    let keys = host.keys_of(&service).await;
    let pids = [host.property("registrar", "MainPID").await, host.property("discoverer", "MainPID").await];
    assert_eq!(keys.len(), 1);
    let haproxy = host.property("haproxy", "MainPID").await;
    host.fetch(second).await;
    for (_, command) in Shown::below("packages.md", "Upgrade") {
        host.type_in(&command.text).await;
    }
    for (service, pid) in ["registrar", "discoverer"].into_iter().zip(&pids) {
        host.is_active(service).await;
        assert_ne!(host.property(service, "MainPID").await, *pid, "{service} runs the old program");
        let version = host.version(service).await;
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
    assert_eq!(host.keys_of(&service).await, keys, "a key has left etcd");
    many_more(before).await;
    host.sh("touch /root/stop").await;
    assert_eq!(host.sh("grep bad /root/answers || true").await, "");

    // A loop that hangs is started again.
    for service in ["registrar", "discoverer"] {
        host.sh(&format!(
            "mkdir -p /run/systemd/system/{service}.service.d
             printf '[Service]\\nWatchdogSec=2s\\n' >/run/systemd/system/{service}.service.d/watchdog.conf
             systemctl daemon-reload && systemctl restart {service}"
        ))
        .await;
        hangs_and_is_started_again(&host, service).await;
        let journal = host.journal(service).await;
        assert!(journal.contains("Watchdog timeout"), "{journal}");
        // What follows may take longer than that.
        host.sh(&format!(
            "rm -r /run/systemd/system/{service}.service.d && systemctl daemon-reload && systemctl restart {service}"
        ))
        .await;
        host.is_active(service).await;
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
    wait_until(secs(20), "the key is there again", async || match host.keys_of(&service).await.len() {
        1 => Ok(()),
        other => Err(other.to_string()),
    })
    .await;
    host.sh("apt-get remove -y discoverer registrar 2>&1").await;
    assert!(host.keys().await.is_empty(), "keys are left");
    wait_until(secs(30), "HAProxy goes on", async || {
        let answer = host.answer(&format!("{service}.test")).await;
        if answer == hello { Ok(()) } else { Err(answer) }
    })
    .await;
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

/// Lets a service hang, whose watchdog bites after 2 s, and waits until it runs anew.
async fn hangs_and_is_started_again(host: &Host, service: &str) {
    // On a slow machine the watchdog may bite before.
    let stop = format!(
        "pid=$(systemctl show --property MainPID --value {service})
         if [ \"$pid\" != 0 ] && kill -STOP \"$pid\"; then echo \"$pid\"; fi 2>&1"
    );
    let pid = wait_until(secs(60), &format!("{service} hangs"), async || {
        let said = host.sh(&stop).await.trim().to_owned();
        if said.parse::<u32>().is_ok() { Ok(said) } else { Err(said) }
    })
    .await;
    wait_until(secs(60), &format!("{service} is started again"), async || {
        let (now, state) = (host.property(service, "MainPID").await, host.property(service, "ActiveState").await);
        if now != pid && now != "0" && state == "active" { Ok(()) } else { Err(format!("{now} {state}")) }
    })
    .await;
}

/// One host without etcd, with the two other packages beside it: from the installation to the purge.
async fn standalone_lives(suite: &str) {
    let [first, second] = packages().await;
    let host = Host::start(suite).await;
    host.fetch(first).await;
    for (_, command) in Shown::below("packages.md", "One host without etcd") {
        host.type_in(&command.text).await;
    }
    host.is_active("standalone").await;
    host.type_in("systemctl disable --quiet --now standalone").await;
    host.type_in("apt-get install ./registrar_*.deb ./discoverer_*.deb").await;
    for made in ["man/man1/standalone.1.gz", "bash-completion/completions/standalone", "doc/standalone/copyright"] {
        host.sh(&format!("test -s /usr/share/{made}")).await;
    }
    let service = host.docker().service("web");
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
    let journal = host.journal("standalone").await;
    assert!(journal.contains("Not started: discoverer.service runs, and both would write HAProxy's"), "{journal}");
    host.sh("systemctl disable --quiet --now discoverer && systemctl start standalone").await;
    host.is_active("standalone").await;
    assert_eq!(host.property("standalone", "Type").await, "notify");
    host.sh("systemctl start discoverer").await;
    assert_eq!(host.property("discoverer", "ActiveState").await, "inactive");
    let journal = host.sh("journalctl --no-pager --output cat --unit discoverer").await;
    assert!(journal.contains("Not started: standalone.service runs, and both would write HAProxy's"), "{journal}");
    // Whichever is first where both are started at once, it is one.
    for round in 0..5 {
        let (first, second) = if round % 2 == 0 { ("standalone", "discoverer") } else { ("discoverer", "standalone") };
        host.sh(&format!(
            "systemctl stop standalone discoverer; systemctl start {first} & systemctl start {second} & wait"
        ))
        .await;
        let states = [host.property(first, "ActiveState").await, host.property(second, "ActiveState").await];
        assert!(states == ["active", "inactive"] || states == ["inactive", "active"], "{first}, {second}: {states:?}");
    }
    host.sh("systemctl stop discoverer; systemctl start standalone").await;
    host.is_active("standalone").await;

    let labels = [format!("SERVICE_NAME={service}"), format!("SERVICE_HOST={service}.test")];
    let app =
        host.docker().run("web", &["--expose=8000", "--label", &labels[0], "--label", &labels[1], app::IMAGE]).await;
    let is_served = async || {
        let get = "curl -sS -m 10 -w '%{http_code}' -o /dev/null -H";
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
    host.fetch(second).await;
    host.type_in("apt-get install ./registrar_*.deb ./discoverer_*.deb ./standalone_*.deb").await;
    host.is_active("standalone").await;
    assert_ne!(host.property("standalone", "MainPID").await, pid, "it runs the old program");
    wait_until(secs(30), "HAProxy goes on", is_served).await;
    assert_eq!(host.property("haproxy", "MainPID").await, haproxy);

    // A loop that hangs is started again.
    host.sh("mkdir -p /run/systemd/system/standalone.service.d
         printf '[Service]\\nWatchdogSec=2s\\n' >/run/systemd/system/standalone.service.d/watchdog.conf
         systemctl daemon-reload && systemctl restart standalone")
        .await;
    hangs_and_is_started_again(&host, "standalone").await;
    host.sh("rm -r /run/systemd/system/standalone.service.d
         systemctl daemon-reload && systemctl restart standalone")
        .await;
    host.is_active("standalone").await;
    wait_until(secs(30), "HAProxy has the container still, or again", is_served).await;

    // Removed, HAProxy goes on; purged, nothing is left, and the others are.
    host.sh("apt-get remove -y standalone 2>&1").await;
    wait_until(secs(30), "HAProxy goes on", is_served).await;
    host.sh("test -s /etc/standalone/standalone.toml && test -n \"$(ls /var/lib/standalone)\"").await;
    host.sh("apt-get purge -y standalone 2>&1").await;
    let elsewhere = "! -path '/proc/*' ! -path '/sys/*' ! -path '/root/*' ! -path '/var/log/*'";
    let left = host.sh(&format!("find / -xdev -name '*standalone*' {elsewhere}")).await;
    assert_eq!(left, "", "left after the purge");
    host.sh("registrar --version && discoverer --version && test -d /var/lib/discoverer").await;
}

/// Back to a lower revision, away and back, and beside a user that the packages did not make.
#[tokio::test]
async fn the_packages_go_and_come_again_with_what_is_the_administrators() {
    let [first, second] = packages().await;
    let host = Host::start("bookworm").await;
    let names = ["registrar", "discoverer", "standalone"];
    let none_runs = async || {
        for name in names {
            assert_eq!(host.property(name, "ActiveState").await, "inactive", "{name}");
        }
    };
    let versions_end_in = async |revision: &str| {
        for name in names {
            let version = host.version(name).await;
            assert!(version.ends_with(revision), "{name} {version}");
        }
    };

    // Upgraded while nothing is configured.
    host.install(first).await;
    let file = host.sh("sha256sum /etc/haproxy/haproxy.cfg").await;
    host.install(second).await;
    versions_end_in("-2").await;
    none_runs().await;
    let all = names.map(|name| format!("'{name}*'")).join(" ");
    assert_eq!(host.sh(&format!("systemctl --failed --no-legend --plain list-units {all}")).await, "");
    assert_eq!(host.sh("sha256sum /etc/haproxy/haproxy.cfg").await, file);

    let service = host.docker().service("web");
    let labels = [format!("SERVICE_NAME={service}"), format!("SERVICE_HOST={service}.test")];
    let app =
        host.docker().run("web", &["--expose=8000", "--label", &labels[0], "--label", &labels[1], app::IMAGE]).await;
    let is_served = async || {
        let answer = host.answer(&format!("{service}.test")).await;
        if answer == format!("Hello from {}", app.short_id()) { Ok(()) } else { Err(answer) }
    };
    let wait_served = async || wait_until(secs(30), "HAProxy routes to the container", is_served).await;
    configure(&host).await;
    wait_served().await;
    host.sh("echo '# mine' | tee -a /etc/registrar/registrar.toml /etc/discoverer/discoverer.toml \
             /etc/discoverer/templates/haproxy.cfg.tera /etc/standalone/standalone.toml")
        .await;
    let settings = async || {
        let files = "find /etc/registrar /etc/discoverer /etc/standalone /etc/default/registrar -type f";
        host.sh(&format!("{files} -exec sha256sum {{}} + | sort")).await
    };
    let mine = settings().await;

    // Down, and up again.
    let (keys, haproxy) = (host.keys_of(&service).await, host.property("haproxy", "MainPID").await);
    for (revision, packages) in [("-1", first), ("-2", second)] {
        let pids = [host.property("registrar", "MainPID").await, host.property("discoverer", "MainPID").await];
        host.install_with("--allow-downgrades", packages).await;
        versions_end_in(revision).await;
        for (name, pid) in ["registrar", "discoverer"].into_iter().zip(&pids) {
            host.is_active(name).await;
            assert_ne!(host.property(name, "MainPID").await, *pid, "{name} runs the other program");
        }
        wait_served().await;
        assert_eq!(settings().await, mine);
    }
    assert_eq!(host.keys_of(&service).await, keys, "a key has left etcd");
    assert_eq!(host.property("haproxy", "MainPID").await, haproxy);

    // Removed, and installed again: as it was.
    host.sh("apt-get remove -y registrar discoverer standalone 2>&1").await;
    assert!(host.keys_of(&service).await.is_empty(), "keys are left");
    assert_eq!(settings().await, mine);
    host.install(second).await;
    for name in ["registrar", "discoverer"] {
        host.is_active(name).await;
    }
    wait_served().await;
    assert_eq!(settings().await, mine);

    // Purged, and installed again: as new.
    let purge = async || host.sh("apt-get purge -y registrar discoverer standalone 2>&1").await;
    purge().await;
    host.sh("test ! -e /etc/registrar -a ! -e /etc/discoverer -a ! -e /etc/standalone -a ! -e /var/lib/registrar")
        .await;
    host.install(first).await;
    none_runs().await;
    assert!(!host.sh("cat /etc/registrar/* /etc/discoverer/*.toml").await.contains("mine"));
    assert_eq!(host.sh("systemctl is-enabled registrar").await.trim(), "enabled");
    configure(&host).await;
    wait_served().await;

    // A user of that name that was there before is used, and left.
    purge().await;
    host.sh("! getent passwd registrar && useradd --uid 1500 --create-home --comment Somebody registrar").await;
    host.install(first).await;
    configure(&host).await;
    host.is_active("registrar").await;
    let uid = host.sh("stat -c %u /proc/$(systemctl show --property MainPID --value registrar)").await;
    assert_eq!(uid.trim(), "1500");
    wait_served().await;
    let said = purge().await;
    assert!(said.contains("the user registrar stays"), "{said}");
    assert_eq!(host.sh("id -un 1500 && id -gn 1500 && stat -c %U /home/registrar").await, "registrar\n".repeat(3));
    host.sh("test ! -e /etc/registrar -a ! -e /var/lib/registrar").await;
}

#[tokio::test]
async fn the_packages_keep_to_debians_policy() {
    let [first, _] = packages().await;
    let debs: Vec<&str> = first.iter().map(|deb| deb.to_str().unwrap()).collect();
    let flags = ["--fail-on", "error,warning", "--allow-root", "--no-cfg"];
    let judged = run(&find_program("lintian", "lintian"), &[&flags[..], &debs].concat(), &[], secs(300)).await;
    assert_eq!(judged.code, Some(0), "{}{}", judged.stdout, judged.stderr);
    for deb in debs {
        let changelog = format!(
            "dpkg-deb --fsys-tarfile '{deb}' | tar -xO --wildcards './usr/share/doc/*/changelog.Debian.gz' | gzip -d"
        );
        let told = run(Path::new("/bin/sh"), &["-ec", &changelog], &[], secs(60)).await.stdout;
        assert!(
            told.contains("-1) unstable; urgency=medium\n\n  * ") && told.contains("\n -- The maintainers"),
            "{told}"
        );
    }
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
    let mut shown = Shown::below("packages.md", "Releases").with("target/release-files", output);
    let (verify, make) = (shown.next_text(), shown.next_text());
    // The tests' own packages are made in the same place: before, and not meanwhile.
    packages().await;
    let in_directory = async |directory: &str, script: &str| {
        let script = format!("cd '{directory}'\n{script}");
        run(Path::new("/bin/sh"), &["-ec", &script], &[], secs(900)).await
    };
    let made = in_directory(workspace().to_str().unwrap(), &make).await;
    assert_eq!(made.code, Some(0), "{}{}", made.stdout, made.stderr);
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
        assert!(!text.contains(workspace().canonicalize().unwrap().to_str().unwrap()), "it says where it was built");
    }
    let again = tempfile::tempdir().unwrap();
    let archive = script_ok("build-tarball", &["--output", again.path().to_str().unwrap()]).await;
    let archive = Path::new(archive.trim());
    let first = directory.path().join(archive.file_name().unwrap());
    assert!(fs::read(first).unwrap() == fs::read(archive).unwrap(), "the same programs give other bytes");
    let good = in_directory(output, &verify).await;
    assert_eq!(good.code, Some(0), "{}{}", good.stdout, good.stderr);
    // Three packages, one archive, three lists of crates.
    assert_eq!(good.stdout.lines().count(), 7, "{}", good.stdout);
    fs::write(directory.path().join("registrar.cdx.json"), "{}").unwrap();
    assert_eq!(in_directory(output, &verify).await.code, Some(1));
}

/// actionlint is not among Debian's packages: what GitHub itself would refuse in the workflows' vocabulary is not seen here.
#[test]
fn the_workflows_can_be_read_and_call_what_is_there() {
    let directory = workspace().join(".github/workflows");
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
                        assert!(workspace().join(word).is_file(), "{path:?}: {name} calls {word}, which is not there");
                    }
                }
            }
        }
    }
    assert!(calls > 5, "{calls}");
}
