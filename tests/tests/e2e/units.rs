//! The discoverer under its package's service, beside Debian's haproxy.service, in a container with systemd: another
//! way to HAProxy, and trouble that a service has with a sandbox and a watchdog around it.

use std::fs;
use std::process::Command;

use e2e::deb_host::{Host, packages};
use e2e::docker::Container;
use e2e::{app, secs, wait_until, within, workspace};

/// A service may be served this long after its key was written, and what is wrong told.
const SOON: std::time::Duration = secs(30);

/// A host with the packages, whose discoverer is told where etcd is, and not started yet.
async fn prepared_host() -> Host {
    let [first, _] = packages().await;
    let host = Host::start("bookworm").await;
    host.install(first).await;
    host.sh("sed -i '/^#etcd/s/.*/etcd = [\"http:\\/\\/127.0.0.1:2379\"]/' /etc/discoverer/discoverer.toml").await;
    host
}

/// An application at an address of its own: where two services share one, the newer takes it from the older.
async fn start_app(host: &Host, alias: &str) -> Container {
    host.docker().run(alias, &[app::IMAGE]).await
}

/// Registers an application for a service, which is asked for as `SERVICE.test`.
async fn register(host: &Host, service: &str, app: &Container) {
    let key = format!("/service/{service}/{}:8000", app.own_ip().await);
    let value = format!(r#"{{"attributes":{{"host":"{service}.test"}}}}"#);
    host.sh(&format!("ETCDCTL_API=3 etcdctl put {key} '{value}'")).await;
}

/// Waits until each of these applications answers for a service.
async fn wait_served(host: &Host, service: &str, apps: &[&Container]) {
    let mut missing: Vec<String> = apps.iter().map(|app| format!("Hello from {}", app.short_id())).collect();
    wait_until(SOON, &format!("{service} is served by {missing:?}"), async || {
        let answer = host.answer(&format!("{service}.test")).await;
        missing.retain(|wanted| *wanted != answer);
        if missing.is_empty() { Ok(()) } else { Err(format!("{answer:?}; {}", status(host).await)) }
    })
    .await;
}

async fn status(host: &Host) -> String {
    host.sh("discoverer status 2>&1 || true").await
}

/// Waits until `discoverer status` says all of this.
async fn wait_status(host: &Host, limit: std::time::Duration, words: &[&str]) {
    wait_until(limit, &format!("the status says {words:?}"), async || {
        let told = status(host).await;
        if words.iter().all(|word| told.contains(word)) { Ok(()) } else { Err(told) }
    })
    .await;
}

/// Three applications, where all is well with the first one as the service `one`.
async fn apps_of_which_one_is_served(host: &Host) -> [Container; 3] {
    let apps = [start_app(host, "one").await, start_app(host, "more").await, start_app(host, "two").await];
    register(host, "one", &apps[0]).await;
    wait_served(host, "one", &[&apps[0]]).await;
    wait_status(host, SOON, &["All is well."]).await;
    apps
}

/// By which the file that HAProxy starts with is known.
async fn sum(host: &Host) -> String {
    host.sh("sha256sum </etc/haproxy/haproxy.cfg").await
}

#[test]
fn discoverer_and_standalone_do_not_start_beside_each_other_whatever_state_the_other_is_in() {
    for (unit, other) in [("discoverer", "standalone"), ("standalone", "discoverer")] {
        let text = fs::read_to_string(workspace().join(format!("packaging/systemd/{unit}.service"))).unwrap();
        let conditions =
            text.lines().filter_map(|line| line.strip_prefix("ExecCondition=/bin/sh -c '")?.strip_suffix('\''));
        let [condition] = conditions.filter(|script| script.contains("systemctl show")).collect::<Vec<_>>()[..] else {
            panic!("{text}")
        };
        // As systemd reads it.
        let condition = condition.replace("\\'", "'").replace("$$", "$");
        // The discoverer waits for one that only asks whether it may start.
        let (property, states) = if unit == "discoverer" {
            let refused = &["running", "reload", "start", "auto-restart", "stop-sigterm", "final-sigkill", "condition"];
            ("SubState", [&["dead", "failed"][..], refused])
        } else {
            let refused = &["active", "reloading", "activating", "deactivating", "maintenance"];
            ("ActiveState", [&["inactive", "failed"][..], refused])
        };
        let asked = format!("show --property {property} --value {other}.service");
        let ask = |state: &str| {
            let script = format!(
                "sleep() {{ slept=1; }}\nsystemctl() {{ [ \"$*\" = '{asked}' ] && echo {state}; }}\n{condition}"
            );
            Command::new("sh").args(["-c", &script]).output().unwrap()
        };
        if unit == "discoverer" {
            let done = ask("$(if [ \"$slept\" ]; then echo dead; else echo condition; fi)");
            assert!(done.status.success(), "{done:?}");
        }
        for (state, starts) in
            states[0].iter().map(|state| (state, true)).chain(states[1].iter().map(|state| (state, false)))
        {
            let done = ask(state);
            assert_eq!(done.status.success(), starts, "{unit} beside {other}, {state}: {done:?}");
            let said = String::from_utf8_lossy(&done.stdout).into_owned();
            let words = format!("Not started: {other}.service runs, and both would write HAProxy's configuration.");
            assert_eq!(said.contains(&words), !starts, "{said}");
        }
    }
}

#[tokio::test]
async fn haproxys_unit_is_reloaded_by_systemd_alone_and_met_as_it_stands() {
    within(300, async {
        let host = prepared_host().await;
        // HAProxy has no master socket at all.
        host.sh("echo EXTRAOPTS= >>/etc/default/haproxy && systemctl restart haproxy && rm -f /run/haproxy-master.sock
             sed -i 's/^reload-socket.*/reload-systemd = \"haproxy.service\"/' /etc/discoverer/discoverer.toml
             systemctl start discoverer")
            .await;
        let mut apps = Vec::new();
        for alias in ["one", "two", "three", "four"] {
            apps.push(start_app(&host, alias).await);
        }
        let [one, two, three, four] = &apps[..] else { unreachable!() };
        let haproxy = host.property("haproxy", "MainPID").await;
        register(&host, "one", one).await;
        wait_served(&host, "one", &[one]).await;
        register(&host, "two", two).await;
        wait_served(&host, "two", &[two]).await;
        wait_served(&host, "one", &[one]).await;
        wait_status(&host, SOON, &["(--reload-systemd)", "All is well."]).await;
        assert!(host.journal("haproxy").await.matches("Reloaded haproxy.service").count() >= 2);
        assert_eq!(host.property("haproxy", "MainPID").await, haproxy, "it was reloaded, not restarted");

        // It passes `haproxy -c`, and the port is HAProxy's own but for the address: only HAProxy itself finds it taken.
        host.sh("systemd-run --quiet --unit holder --socket-property=ListenStream=127.0.0.2:8404 sleep infinity
             printf '[set]\\nstats_bind = \"127.0.0.2:8404\"\\n' >>/etc/discoverer/discoverer.toml")
            .await;
        wait_status(&host, secs(90), &["The template cannot be used.", "HAProxy could not start with the new file"])
            .await;
        assert!(host.journal("haproxy").await.contains("cannot bind socket"));
        for (service, app) in [("one", one), ("two", two)] {
            assert_eq!(host.answer(&format!("{service}.test")).await, format!("Hello from {}", app.short_id()));
        }
        let file = host.sh("cat /etc/haproxy/haproxy.cfg").await;
        assert!(file.contains("bind 127.0.0.1:8404") && !file.contains("127.0.0.2"), "{file}");
        host.sh("systemctl stop holder.socket && systemctl reload discoverer").await;
        wait_status(&host, secs(90), &["All is well."]).await;
        host.sh("curl -sf -o /dev/null http://127.0.0.2:8404/").await;

        // Somebody stops HAProxy: that is not undone, but told with the way out.
        host.sh("systemctl stop haproxy").await;
        wait_status(&host, SOON, &["HAProxy does not run."]).await;
        register(&host, "three", three).await;
        wait_status(&host, SOON, &["it is inactive", "start it with `systemctl start haproxy.service`"]).await;
        assert_eq!(host.property("haproxy", "ActiveState").await, "inactive");
        host.sh("systemctl start haproxy").await;
        for (service, app) in [("one", one), ("two", two), ("three", three)] {
            wait_served(&host, service, &[app]).await;
        }
        wait_status(&host, secs(90), &["All is well."]).await;
        register(&host, "four", four).await;
        wait_served(&host, "four", &[four]).await;
        host.sh("test ! -e /run/haproxy-master.sock").await;
    })
    .await;
}

#[tokio::test]
async fn under_the_service_a_full_disk_keeps_the_last_good_file_and_servers_come_all_the_same() {
    within(300, async {
        let host = prepared_host().await;
        // Before both services start, whose sandboxes have a view of their own.
        host.sh("systemctl stop haproxy && cp -a /etc/haproxy /root/haproxy
             mount -t tmpfs -o size=256k none /etc/haproxy && cp -a /root/haproxy/. /etc/haproxy/
             systemctl start haproxy discoverer")
            .await;
        let [one, more, two] = apps_of_which_one_is_served(&host).await;
        let (good, pid) = (sum(&host).await, host.property("discoverer", "MainPID").await);

        // A server needs no file, a service does.
        host.sh("! dd if=/dev/zero of=/etc/haproxy/filler bs=4k 2>/dev/null").await;
        register(&host, "one", &more).await;
        wait_served(&host, "one", &[&one, &more]).await;
        wait_until(SOON, "the journal says that the file is behind", async || {
            let journal = host.journal("discoverer").await;
            let complaint = journal.lines().find(|line| line.contains("file not written")).map(str::to_owned);
            complaint.filter(|line| line.contains("No space left on device")).ok_or(journal)
        })
        .await;
        register(&host, "two", &two).await;
        let wrong = ["HAProxy does not run what is wanted.", "/etc/haproxy/haproxy.cfg", "No space left on device"];
        wait_status(&host, SOON, &wrong).await;
        wait_until(SOON, "the status line says it too", async || {
            let line = host.property("discoverer", "StatusText").await;
            if line.contains("No space left on device") { Ok(()) } else { Err(line) }
        })
        .await;
        assert_eq!(sum(&host).await, good, "the file that HAProxy would start with is the last good one");

        // So it is also for an HAProxy that is started anew.
        host.sh("systemctl restart haproxy").await;
        wait_served(&host, "one", &[&one, &more]).await;
        assert_eq!(sum(&host).await, good);

        host.sh("rm /etc/haproxy/filler").await;
        wait_served(&host, "two", &[&two]).await;
        wait_served(&host, "one", &[&one, &more]).await;
        wait_status(&host, SOON, &["All is well."]).await;
        wait_until(SOON, "the file has all of them, and lies there alone", async || {
            let file = host.sh("cat /etc/haproxy/haproxy.cfg; ls /etc/haproxy").await;
            let mut addresses = Vec::new();
            for app in [&one, &more, &two] {
                addresses.push(format!("{}:8000", app.own_ip().await));
            }
            let is_whole = addresses.iter().all(|address| file.contains(address));
            if is_whole && file.ends_with("\nerrors\nhaproxy.cfg\n") { Ok(()) } else { Err(file) }
        })
        .await;
        assert_eq!(host.property("discoverer", "MainPID").await, pid);
        assert_eq!(host.property("discoverer", "NRestarts").await, "0");
    })
    .await;
}

#[tokio::test]
async fn under_the_service_a_check_that_hangs_is_named_after_its_limit_and_no_watchdog_bites() {
    within(400, async {
        let host = prepared_host().await;
        // The watchdog has less time than two checks take, so that each of them has to be followed by a sign of life.
        host.sh(r#"cat >/usr/local/bin/checker <<'END'
#!/bin/sh
if [ "$1" = -c ] && [ -e /srv/hang ]; then exec sleep infinity; fi
exec haproxy "$@"
END
             chmod 755 /usr/local/bin/checker
             echo 'DISCOVERER_HAPROXY=/usr/local/bin/checker' >/etc/default/discoverer
             mkdir -p /run/systemd/system/discoverer.service.d
             printf '[Service]\nWatchdogSec=45s\n' >/run/systemd/system/discoverer.service.d/watchdog.conf
             systemctl daemon-reload && systemctl start discoverer"#)
            .await;
        let [one, more, two] = apps_of_which_one_is_served(&host).await;
        let (good, pid) = (sum(&host).await, host.property("discoverer", "MainPID").await);

        host.sh("touch /srv/hang").await;
        register(&host, "one", &more).await;
        wait_served(&host, "one", &[&one, &more]).await;
        register(&host, "two", &two).await;
        let late = "/usr/local/bin/checker -c could not be run: no end within 30 s";
        wait_status(&host, secs(60), &["HAProxy does not run what is wanted.", late]).await;
        wait_until(secs(120), "it hangs for longer than the watchdog waits", async || {
            let journal = host.journal("discoverer").await;
            let hung = journal.lines().filter(|line| line.contains("not applied") && line.contains(late)).count();
            if hung >= 3 { Ok(()) } else { Err(journal) }
        })
        .await;
        wait_served(&host, "one", &[&one, &more]).await;
        assert_eq!(sum(&host).await, good);
        let left: u32 = host.sh("pgrep -c -x sleep || true").await.trim().parse().unwrap();
        assert!(left <= 1, "{left} checks that were given up go on");

        host.sh("rm /srv/hang").await;
        wait_until(secs(90), "the service that waited is served", async || {
            let answer = host.answer("two.test").await;
            if answer == format!("Hello from {}", two.short_id()) { Ok(()) } else { Err(answer) }
        })
        .await;
        wait_served(&host, "one", &[&one, &more]).await;
        wait_status(&host, SOON, &["All is well."]).await;
        assert_eq!(host.property("discoverer", "MainPID").await, pid);
        assert_eq!(host.property("discoverer", "NRestarts").await, "0");
    })
    .await;
}
