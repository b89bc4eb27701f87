//! The store against a real etcd with TLS and users: what works, and what each kind of bad input is told.

#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use registry::{
    Api, ApiChoice, Deleted, Event, InstanceKey, Ownership, Password, Poll, Prefix, Secret, Security, Store,
    StoreError, StoreOptions,
};
use support::DEADLINE;
use support::certs::{Ca, Pair};
use support::etcd::Etcd;
use support::follower::Follower;
use support::script::{Server, Step};
use support::users;

fn prefix() -> Prefix {
    "service".parse().unwrap()
}

fn key() -> InstanceKey {
    InstanceKey::parse(&prefix(), "/service/web/10.0.0.1:8000").unwrap()
}

fn secure(url: &str, security: Security) -> Result<Store, StoreError> {
    let mut options = StoreOptions::new(registry::parse_endpoints(url).unwrap());
    options.security = security;
    Store::new(options)
}

async fn put(store: &Store) -> Ownership {
    support::put(store, &key(), "running").await.unwrap()
}

/// What the store says of an etcd that cannot be used.
async fn trouble(url: &str, security: Security) -> String {
    let store = secure(url, security).unwrap();
    let first = store.list(&prefix()).await.unwrap_err().to_string();
    let second = store.get(&key()).await.unwrap_err().to_string();
    assert_eq!(first, second, "one trouble has one text, whatever was asked");
    assert!(first.contains(url), "it names the endpoint: {first}");
    assert!(!first.contains('\n'), "{first}");
    first
}

fn with_ca(ca: &Ca) -> Security {
    Security { ca: Some(ca.path()), ..Security::default() }
}

fn with_client(ca: &Ca, client: &Pair) -> Security {
    Security { cert: Some(client.cert.clone()), key: Some(client.key.clone()), ..with_ca(ca) }
}

fn with_user(user: &str, password: &str) -> Security {
    let password = Some(Password::Given(Secret(password.to_owned())));
    Security { user: Some(user.to_owned()), password, ..Security::default() }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn etcd_with(server: &Pair) -> Etcd {
    Etcd::start_with_tls(&["--cert-file", text(&server.cert), "--key-file", text(&server.key)])
}

#[tokio::test]
async fn etcd_is_reached_over_tls_with_a_ca_and_a_client_certificate() {
    let ca = Ca::new("Ours");
    let server = ca.server("server", &["127.0.0.1"]);
    let client = ca.client("client", "registrar");
    let ca_file = ca.path();
    let etcd = Etcd::start_with_tls(&[
        "--cert-file",
        text(&server.cert),
        "--key-file",
        text(&server.key),
        "--client-cert-auth",
        "--trusted-ca-file",
        text(&ca_file),
    ]);
    let store = secure(&etcd.tls_url(), with_client(&ca, &client)).unwrap();
    put(&store).await;
    assert_eq!(store.list(&prefix()).await.unwrap().entries.len(), 1);

    let none = trouble(&etcd.tls_url(), with_ca(&ca)).await;
    assert!(none.contains("client certificate") && none.contains("--etcd-cert"), "{none}");
    let theirs = Ca::new("Theirs");
    let others = theirs.client("client", "registrar");
    let wrong = trouble(&etcd.tls_url(), with_client(&ca, &others)).await;
    assert!(wrong.contains(text(&others.cert)) && wrong.contains("--trusted-ca-file"), "{wrong}");
}

#[tokio::test]
async fn a_wrong_ca_an_expired_certificate_and_one_for_another_host_are_told_apart() {
    let (ca, other) = (Ca::new("Ours"), Ca::new("Theirs"));
    let twin = Ca::new("Ours");
    let etcd = etcd_with(&ca.server("server", &["127.0.0.1"]));
    for wrong in [&other, &twin] {
        let error = trouble(&etcd.tls_url(), with_ca(wrong)).await;
        assert!(error.contains("not of the CA in") && error.contains(text(&wrong.path())), "{error}");
    }
    let system = trouble(&etcd.tls_url(), Security::default()).await;
    assert!(system.contains("no CA that this system knows") && system.contains("--etcd-ca"), "{system}");

    let etcd = etcd_with(&ca.expired("expired", &["127.0.0.1"]));
    let error = trouble(&etcd.tls_url(), with_ca(&ca)).await;
    assert!(error.contains("has expired, 2020-01-01T00:00:00Z; renew it"), "{error}");

    let etcd = etcd_with(&ca.server("elsewhere", &["etcd-1.example.org"]));
    let error = trouble(&etcd.tls_url(), with_ca(&ca)).await;
    assert!(error.contains("not for 127.0.0.1 but for") && error.contains("etcd-1.example.org"), "{error}");
    assert!(error.contains("subject alternative names"), "{error}");
}

#[tokio::test]
async fn http_and_https_in_each_others_place_are_told() {
    let ca = Ca::new("Ours");
    let etcd = etcd_with(&ca.server("server", &["127.0.0.1"]));
    let plain = trouble(&etcd.tls_url().replace("https", "http"), Security::default()).await;
    assert!(plain.contains("broke off") && plain.contains("is it https://?"), "{plain}");
    let tls = trouble(&etcd.url().replace("http", "https"), with_ca(&ca)).await;
    assert!(tls.contains("handshake eof; is it http://?"), "{tls}");
    // Of a server that closes before it has read what was sent, a reset comes in place of an end.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let unread = format!("https://{}", listener.local_addr().unwrap());
    let server = tokio::spawn(async move {
        loop {
            let (connection, _) = listener.accept().await.unwrap();
            connection.readable().await.unwrap();
        }
    });
    let tls = trouble(&unread, with_ca(&ca)).await;
    assert!(tls.contains("handshake eof; is it http://?"), "{tls}");
    server.abort();
    let server = Server::start(vec![Step::Greet("SSH-2.0-OpenSSH_9.2\r\n".into())]).await;
    let tls = trouble(&server.url().replace("http", "https"), with_ca(&ca)).await;
    assert!(tls.contains("does not speak TLS; is it http://127.0.0.1"), "{tls}");
}

#[tokio::test]
async fn a_web_page_and_an_etcd_without_v2_are_told() {
    for status in ["200 OK", "404 Not Found", "403 Forbidden"] {
        let page = "<!DOCTYPE html><html>Welcome</html>";
        let reply = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{page}", page.len());
        let server = Server::start(vec![Step::Send(reply)]).await;
        let error = trouble(&server.url(), Security::default()).await;
        assert!(
            error.contains(status) && error.contains("without etcd's JSON; --etcd wants etcd's client URL"),
            "{error}"
        );
    }
}

#[tokio::test]
async fn files_are_of_use_or_the_store_says_why_not() {
    let ca = Ca::new("Ours");
    let (client, other) = (ca.client("client", "a"), ca.client("other", "b"));
    let file = |name: &str, content: &[u8]| {
        let path = ca.dir().join(name);
        fs::write(&path, content).unwrap();
        path
    };
    let empty = file("empty.pem", b"");
    let cut = file("cut.pem", &fs::read(ca.path()).unwrap()[..200]);
    let rubbish = file("rubbish.pem", b"-----BEGIN CERTIFICATE-----\nYWJj\n-----END CERTIFICATE-----\n");
    let encrypted =
        file("encrypted.pem", b"-----BEGIN ENCRYPTED PRIVATE KEY-----\nYWJj\n-----END ENCRYPTED PRIVATE KEY-----\n");
    let two_lines = file("password", b"a\nb\n");
    let of_ca = |ca: PathBuf| Security { ca: Some(ca), ..Security::default() };
    let pair = |cert: &Path, key: &Path| Security {
        cert: Some(cert.to_owned()),
        key: Some(key.to_owned()),
        ..Security::default()
    };
    let of_password = |path: &Path| Security {
        user: Some("u".into()),
        password: Some(Password::File(path.to_owned())),
        ..Security::default()
    };
    let cases = [
        (of_ca(ca.dir().join("none.pem")), "--etcd-ca", "there is no such file"),
        (of_ca(ca.dir().to_owned()), "--etcd-ca", "cannot be read"),
        (of_ca("/dev/zero".into()), "--etcd-ca /dev/zero", "too large"),
        (of_ca(empty.clone()), "empty.pem", "no whole certificate as PEM"),
        (of_ca(cut), "cut.pem", "no whole certificate as PEM"),
        (of_ca(rubbish), "rubbish.pem", "no CA certificate"),
        (of_ca(client.key.clone()), "client-key.pem", "no whole certificate as PEM"),
        (pair(&client.cert, &other.key), "--etcd-key", "not the key of the certificate in"),
        (pair(&client.cert, &client.cert), "--etcd-key", "no private key as PEM"),
        (pair(&client.key, &client.key), "--etcd-cert", "no whole certificate as PEM"),
        (pair(&client.cert, &encrypted), "--etcd-key", "decrypt it first"),
        (Security { cert: Some(client.cert.clone()), ..Security::default() }, "--etcd-cert needs", "--etcd-key"),
        (Security { key: Some(client.key.clone()), ..Security::default() }, "--etcd-key needs", "--etcd-cert"),
        (of_password(&empty), "--etcd-password-file", "it is empty"),
        (of_password(&two_lines), "--etcd-password-file", "alone, on one line"),
        (Security { user: Some("u".into()), ..Security::default() }, "--etcd-user needs", "--etcd-password-file"),
        (Security { user: None, ..with_user("", "p") }, "no user", "--etcd-user"),
        (with_user("a:b", "p"), "--etcd-user", "no ':'"),
    ];
    for (security, what, why) in cases {
        let error = security.check().unwrap_err().to_string();
        assert!(error.contains(what) && error.contains(why), "{security:?}: {error}");
        let error = secure("https://127.0.0.1:1", security).unwrap_err();
        assert!(matches!(error, StoreError::Client(_)), "{error}");
    }
    pair(&client.cert, &client.key).check().unwrap();
}

#[tokio::test]
async fn what_is_secret_is_in_no_message() {
    let options = StoreOptions {
        security: with_user("someone", "hunter2"),
        ..StoreOptions::new(registry::parse_endpoints("http://someone:hunter3@127.0.0.1:1").unwrap())
    };
    let shown = format!("{options:?} {:?}", options.security);
    let store = Store::new(options).unwrap();
    let error = store.list(&prefix()).await.unwrap_err();
    for text in [shown, format!("{store:?}"), format!("{error:?} {error}")] {
        assert!(!text.contains("hunter"), "{text}");
    }
}

/// Asks until it is so.
async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let start = Instant::now();
    while !is_so().await {
        assert!(start.elapsed() < DEADLINE, "{what}: not within {DEADLINE:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn certificates_that_change_are_read_again_and_half_a_file_changes_nothing() {
    let (old, new) = (Ca::new("Old"), Ca::new("New"));
    let server = old.server("server", &["127.0.0.1"]);
    let mut etcd = etcd_with(&server);
    let ca_file = old.dir().join("in-use.pem");
    fs::copy(old.path(), &ca_file).unwrap();
    let security = Security { ca: Some(ca_file.clone()), ..Security::default() };
    let store = secure(&etcd.tls_url(), security).unwrap();
    store.list(&prefix()).await.unwrap();

    // Half-way written: etcd is still reached, by new connections too.
    let whole = fs::read(new.path()).unwrap();
    fs::write(&ca_file, &whole[..whole.len() / 2]).unwrap();
    let start = Instant::now();
    until("two looks at half a file", async || {
        store.list(&prefix()).await.unwrap();
        start.elapsed() > Duration::from_secs(5)
    })
    .await;
    etcd.stop();
    etcd.run();
    store.list(&prefix()).await.unwrap();

    // etcd's certificate is of another CA now, and then ours is too.
    let renewed = new.server("server", &["127.0.0.1"]);
    fs::copy(&renewed.cert, &server.cert).unwrap();
    fs::copy(&renewed.key, &server.key).unwrap();
    etcd.stop();
    etcd.run();
    store.list(&prefix()).await.unwrap_err();
    fs::write(&ca_file, &whole).unwrap();
    until("the new CA is believed", async || store.list(&prefix()).await.is_ok()).await;
}

fn speaking(api: Api, url: &str, security: Security) -> Store {
    let mut options = StoreOptions::new(registry::parse_endpoints(url).unwrap());
    options.api = ApiChoice::Only(api);
    options.security = security;
    Store::new(options).unwrap()
}

/// A real etcd with the users and roles of docs/etcd.md.
fn etcd_with_users(api: Api) -> Etcd {
    let etcd = Etcd::start();
    users::make(&etcd.url(), api.as_str());
    etcd
}

#[tokio::test]
async fn the_roles_of_the_guide_are_enough_and_no_more_than_that() {
    for api in [Api::V2, Api::V3] {
        let etcd = etcd_with_users(api);
        let registrar = speaking(api, &etcd.url(), with_user("registrar", users::REGISTRAR));
        let discoverer = speaking(api, &etcd.url(), with_user("discoverer", users::DISCOVERER));
        let listed = discoverer.list(&prefix()).await.unwrap();
        let mut changes = discoverer.changes(&prefix(), listed.position);
        discoverer.confirm(&prefix()).await.unwrap();

        let lease = registrar.grant(Duration::from_secs(20)).await.unwrap();
        let owned = registrar.create(&key(), "running", &lease).await.unwrap();
        assert!(matches!(changes.next().await.unwrap(), Poll::Events(events, _) if events.len() == 1), "{api}");
        let kept = registrar.keep(&[(key(), owned)], &lease).await.unwrap().remove(0).unwrap();
        let owned = registrar.update(&key(), "running again", &lease, &kept.ownership, None).await.unwrap();
        changes.next().await.unwrap();
        assert_eq!(discoverer.get(&key()).await.unwrap().unwrap().value, "running again");
        assert_eq!(registrar.delete(&key(), &owned).await.unwrap(), Deleted::Done);
        let gone = changes.next().await.unwrap();
        assert!(matches!(&gone, Poll::Events(events, _) if matches!(events[..], [Event::Removed { .. }])), "{gone:?}");
        registrar.give_back(&lease).await.unwrap();

        let lease = discoverer.grant(Duration::from_secs(20)).await.unwrap();
        let error = discoverer.put(&key(), "running", &lease).await.unwrap_err().to_string();
        assert!(error.contains("no role") && error.contains("docs/etcd.md"), "{api}: {error}");
        let elsewhere: Prefix = "secrets".parse().unwrap();
        let error = registrar.list(&elsewhere).await.unwrap_err().to_string();
        assert!(error.contains(&etcd.url()) && error.contains("no role"), "{api}: {error}");
    }
}

#[tokio::test]
async fn a_wrong_password_and_a_missing_user_are_told() {
    for api in [Api::V2, Api::V3] {
        let etcd = etcd_with_users(api);
        let trouble = async |security| {
            let store = speaking(api, &etcd.url(), security);
            let first = store.list(&prefix()).await.unwrap_err().to_string();
            assert_eq!(first, store.get(&key()).await.unwrap_err().to_string(), "one trouble has one text");
            assert!(first.contains(&etcd.url()), "{first}");
            first
        };
        for (user, password) in [("registrar", "hunter2"), ("nobody", "hunter2")] {
            let error = trouble(with_user(user, password)).await;
            assert!(error.contains(&format!("user {user}")) && error.contains("password"), "{api}: {error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
        let error = trouble(Security::default()).await;
        assert!(error.contains("it wants a user: --etcd-user"), "{api}: {error}");
    }
}

#[tokio::test]
async fn a_user_in_the_url_and_one_that_etcd_does_not_ask_for_work_too() {
    for api in [Api::V2, Api::V3] {
        let etcd = etcd_with_users(api);
        let login = format!("http://registrar:{}@", users::REGISTRAR);
        let store = speaking(api, &etcd.url().replace("http://", &login), Security::default());
        put(&store).await;
        let open = Etcd::start();
        put(&speaking(api, &open.url(), with_user("registrar", "x"))).await;
    }
}

#[tokio::test]
async fn a_password_file_that_is_mended_is_used_from_then_on() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("password");
    for api in [Api::V2, Api::V3] {
        let etcd = etcd_with_users(api);
        fs::write(&file, "wrong\n").unwrap();
        let security = Security {
            user: Some("registrar".to_owned()),
            password: Some(Password::File(file.clone())),
            ..Security::default()
        };
        let store = speaking(api, &etcd.url(), security);
        store.list(&prefix()).await.unwrap_err();
        fs::write(&file, format!("{}\n", users::REGISTRAR)).unwrap();
        until("the right password is used", async || store.list(&prefix()).await.is_ok()).await;
    }
}

#[tokio::test]
async fn who_follows_with_a_token_goes_on_when_etcd_has_forgotten_it() {
    let mut etcd = etcd_with_users(Api::V3);
    let registrar = speaking(Api::V3, &etcd.url(), with_user("registrar", users::REGISTRAR));
    put(&registrar).await;
    let discoverer = speaking(Api::V3, &etcd.url(), with_user("discoverer", users::DISCOVERER));
    let mut follower = Follower::start(&discoverer, prefix());
    follower.until(|f| f.listings == 1).await;
    etcd.stop();
    follower.until(|f| !f.outages.is_empty()).await;
    etcd.run();
    let lease = registrar.grant(Duration::from_secs(20)).await.unwrap();
    registrar.put(&key(), "after", &lease).await.unwrap();
    follower.until(|f| f.knows(&key().path(), "after")).await;
}

#[tokio::test]
async fn a_token_that_etcd_no_longer_takes_is_changed_for_another() {
    let mut etcd = etcd_with_users(Api::V3);
    let store = speaking(Api::V3, &etcd.url(), with_user("registrar", users::REGISTRAR));
    let owned = put(&store).await;
    // A change of users makes all tokens old, and an etcd that is started anew has forgotten them.
    users::run(&etcd.url(), "v3", &format!("etcdctl --user root:{} role add another", users::ROOT));
    store.get(&key()).await.unwrap();
    etcd.stop();
    etcd.run();
    assert_eq!(store.delete(&key(), &owned).await.unwrap(), Deleted::Done);
    etcd.stop();
    etcd.run();
    let prefix = prefix();
    let many = (0..10).map(|_| store.list(&prefix));
    for listed in futures_util::future::join_all(many).await {
        listed.unwrap();
    }
}
