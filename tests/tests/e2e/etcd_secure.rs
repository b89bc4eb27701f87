//! etcd with TLS and users, and etcd that is found by DNS: the built programs, from their flags to HAProxy.

use std::fs;
use std::path::Path;

use e2e::backend::Backend;
use e2e::certs::Ca;
use e2e::discoverer::Discoverer;
use e2e::dns::Dns;
use e2e::etcd::Etcd;
use e2e::process::{Process, find_workspace_binary, run};
use e2e::{secs, stays_true, users, wait_until, within};
use tempfile::TempDir;

const APIS: [&str; 2] = ["v2", "v3"];

/// `registrar static` for a backend, with its log.
struct Fixed {
    process: Process,
    _dir: TempDir,
}

/// The flags that register this backend.
fn of(backend: &Backend) -> Vec<String> {
    let address = backend.address().to_string();
    let args = ["static", "--address", &address, "--name", "web", "--interval", "200ms", "--linger", "0s"];
    args.map(str::to_owned).to_vec()
}

impl Fixed {
    fn start(backend: &Backend, flags: &[&str]) -> Fixed {
        let args: Vec<String> = of(backend).into_iter().chain(flags.iter().map(|&flag| flag.to_owned())).collect();
        Fixed::start_as(&find_workspace_binary("registrar"), &args)
    }

    fn start_as(program: &Path, args: &[String]) -> Fixed {
        let dir = tempfile::Builder::new().prefix("e2e-static-").tempdir().unwrap();
        let process = Process::start("registrar static", program, args, &dir.path().join("log"), dir.path());
        Fixed { process, _dir: dir }
    }

    fn logged(&self, text: &str) -> usize {
        self.process.log().lines().filter(|line| line.contains(text)).count()
    }

    async fn wait_logged(&self, text: &str) {
        wait_until(secs(15), &format!("the registrar's log has {text:?}"), async || match self.logged(text) {
            0 => Err(self.process.log()),
            _ => Ok(()),
        })
        .await;
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[tokio::test]
async fn with_tls_and_the_roles_of_the_guide_the_whole_way_works() {
    within(120, async {
        let ca = Ca::new("CA");
        for api in APIS {
            let etcd = Etcd::start_with_tls(ca.server("server", &["127.0.0.1"])).await;
            users::make(&etcd.url(), api);
            let passwords = tempfile::tempdir().unwrap();
            let password = |name: &str, password: &str| {
                let file = passwords.path().join(name);
                fs::write(&file, format!("{password}\n")).unwrap();
                file
            };
            let registrars = password("registrar", users::REGISTRAR);
            let discoverers = password("discoverer", users::DISCOVERER);
            let ca_file = ca.path();
            let flags = |user, file| {
                [
                    "--etcd-ca",
                    text(&ca_file),
                    "--etcd-user",
                    user,
                    "--etcd-password-file",
                    text(file),
                    "--etcd-api",
                    api,
                ]
                .map(str::to_owned)
            };
            let discoverers = flags("discoverer", &discoverers);
            let registrars = flags("registrar", &registrars);
            let discoverers: Vec<&str> = discoverers.iter().map(String::as_str).collect();
            let url = etcd.tls_url();
            let mut discoverer = Discoverer::supervise(&url).args(&discoverers).start();
            let (one, two) = (Backend::start("one").await, Backend::start("two").await);
            let registrars: Vec<&str> =
                ["--etcd", &url].into_iter().chain(registrars.iter().map(String::as_str)).collect();
            let mut first = Fixed::start(&one, &registrars);
            let _second = Fixed::start(&two, &registrars);
            discoverer.wait_serves(&["one", "two"]).await;
            // The discoverer may say how far it has come, and the registrar may read it.
            let read = match api {
                "v3" => "etcdctl --user registrar:REGISTRAR-PASSWORD get --prefix --keys-only /_discoverers/service/",
                _ => "etcdctl --username registrar:REGISTRAR-PASSWORD ls /_discoverers/service",
            };
            wait_until(secs(20), "the discoverer has said how far it has come", async || {
                let said = users::output(&etcd.url(), api, read);
                if said.contains("/_discoverers/service/") { Ok(()) } else { Err(said) }
            })
            .await;
            first.process.signal(nix::sys::signal::Signal::SIGTERM);
            assert_eq!(first.process.wait(secs(10)).await.code(), Some(0));
            discoverer.wait_serves(&["two"]).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_wrong_password_is_told_once_and_when_it_is_mended_all_goes_on_without_a_restart() {
    within(180, async {
        for api in APIS {
            let ca = Ca::new("CA");
            let etcd = Etcd::start_with_tls(ca.server("server", &["127.0.0.1"])).await;
            users::make(&etcd.url(), api);
            let dir = tempfile::tempdir().unwrap();
            let file = |name: &str| dir.path().join(name);
            let with = |user: &'static str| {
                fs::write(file(user), "hunter2\n").unwrap();
                ["--etcd-api", api, "--etcd-user", user, "--etcd-password-file", text(&file(user))].map(str::to_owned)
            };
            let (registrars, discoverers) = (with("registrar"), with("discoverer"));
            let discoverers: Vec<&str> = discoverers.iter().map(String::as_str).collect();
            let mut discoverer = Discoverer::supervise(&etcd.url()).args(&discoverers).start();
            let one = Backend::start("one").await;
            let url = etcd.url();
            let registrars: Vec<&str> =
                ["--etcd", &url].into_iter().chain(registrars.iter().map(String::as_str)).collect();
            let fixed = Fixed::start(&one, &registrars);
            fixed.wait_logged("user registrar").await;
            discoverer.wait_logged("registry unreachable", &[("error", "user discoverer")]).await;
            stays_true(secs(6), "each says it once", async || {
                let said = (fixed.logged("user registrar"), discoverer.logged("registry unreachable").len());
                if said == (1, 1) { Ok(()) } else { Err(format!("{said:?}: {}", fixed.process.log())) }
            })
            .await;
            fs::write(file("registrar"), users::REGISTRAR).unwrap();
            fs::write(file("discoverer"), users::DISCOVERER).unwrap();
            discoverer.wait_serves(&["one"]).await;
            assert_eq!(fixed.logged("hunter2") + fixed.logged(users::REGISTRAR), 0, "{}", fixed.process.log());
            let secrets = |event: &serde_json::Value| event.to_string().contains("hunter2");
            assert!(!discoverer.events().iter().any(secrets));
        }
    })
    .await;
}

#[tokio::test]
async fn files_that_are_of_no_use_end_both_programs_at_the_start_with_2_and_the_reason() {
    within(60, async {
        let dir = tempfile::tempdir().unwrap();
        let empty = dir.path().join("empty");
        fs::write(&empty, "").unwrap();
        let none = dir.path().join("none");
        let url = "https://127.0.0.1:1";
        let cases: [(&[&str], &str); 5] = [
            (&["--etcd-ca", text(&none)], "there is no such file"),
            (&["--etcd-ca", text(&empty)], "no whole certificate as PEM"),
            (&["--etcd-cert", text(&empty)], "--etcd-cert needs the certificate's key: --etcd-key"),
            (&["--etcd-user", "a"], "--etcd-user needs a password"),
            (&["--etcd-user", "a", "--etcd-password-file", text(&empty)], "it is empty"),
        ];
        for (flags, why) in cases {
            for (program, args) in [
                ("registrar", &["--port", "1", "--etcd", url][..]),
                ("registrar", &["list", "--etcd", url]),
                ("discoverer", &["--etcd", url, "render"]),
                ("discoverer", &["--etcd", url, "--supervise", "--state-dir", text(dir.path())]),
            ] {
                let args: Vec<&str> = args.iter().chain(flags).copied().collect();
                let end = run(&find_workspace_binary(program), &args, &[], secs(20)).await;
                let said = format!("{}{}", end.stdout, end.stderr);
                assert_eq!(end.code, Some(2), "{program} {args:?}: {said}");
                assert!(said.contains(why), "{program} {args:?}: {said}");
            }
        }
    })
    .await;
}

#[tokio::test]
async fn the_password_may_be_in_the_environment_and_is_never_shown() {
    within(60, async {
        let ca = Ca::new("CA");
        let etcd = Etcd::start_with_tls(ca.server("server", &["127.0.0.1"])).await;
        users::make(&etcd.url(), "v3");
        let list = ["list", "--etcd", &etcd.url(), "--etcd-api", "v3", "--etcd-user", "registrar"];
        let registrar = find_workspace_binary("registrar");
        let good = run(&registrar, &list, &[("REGISTRAR_ETCD_PASSWORD", users::REGISTRAR)], secs(20)).await;
        assert_eq!(good.code, Some(0), "{}", good.stderr);
        let bad = run(&registrar, &list, &[("REGISTRAR_ETCD_PASSWORD", "hunter2")], secs(20)).await;
        assert_ne!(bad.code, Some(0));
        assert!(bad.stderr.contains("the password is wrong") && !bad.stderr.contains("hunter2"), "{}", bad.stderr);
        for (program, variable) in
            [("registrar", "REGISTRAR_ETCD_PASSWORD"), ("discoverer", "DISCOVERER_ETCD_PASSWORD")]
        {
            let help = run(&find_workspace_binary(program), &["--help"], &[(variable, "hunter2")], secs(20)).await;
            assert!(help.stdout.contains(variable) && !help.stdout.contains("hunter2"), "{}", help.stdout);
        }
    })
    .await;
}

#[tokio::test]
async fn needs_root_endpoints_that_dns_names_are_found_and_looked_up_again_when_none_answers() {
    within(120, async {
        let mut dns = Dns::absent();
        let srv = |etcd: &Etcd, priority: u8| {
            let port = etcd.address().port();
            format!("--srv-host=_etcd-client._tcp.example.test,etcd-1.example.test,{port},{priority},10")
        };
        let host = "--host-record=etcd-1.example.test,127.0.0.1";
        let one = Backend::start("one").await;
        let args = [of(&one), vec!["--etcd".into(), "srv://example.test".into()]].concat();
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let (program, args) = dns.asked_by(&find_workspace_binary("registrar"), &args);
        let fixed = Fixed::start_as(&program, &args);
        // Nobody is there to be asked yet.
        fixed.wait_logged("srv://example.test: DNS does not answer").await;
        let mut first = Etcd::start().await;
        let (dead, second) = (Etcd::absent(), Etcd::start().await);
        dns.serve(&[&srv(&dead, 1), &srv(&first, 2), host]);
        registered(&first, &one).await;
        assert!(fixed.logged("went on to another etcd endpoint") > 0, "the priorities count: {}", fixed.process.log());

        first.stop().await;
        dns.serve(&[&srv(&second, 1), host]);
        registered(&second, &one).await;
    })
    .await;
}

async fn registered(etcd: &Etcd, backend: &Backend) {
    wait_until(secs(30), "the backend is registered", async || {
        etcd.get(&backend.key_in("web")).await.map(drop).ok_or_else(|| "there is no key".to_owned())
    })
    .await;
}
