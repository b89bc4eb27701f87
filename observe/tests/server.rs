//! The admin server by real sockets: who is let in, what a client cannot do to it, and what every response carries.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, PermissionsExt, symlink};
use std::path::Path;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderValue, Response};
use axum::routing::get;
use observe::admin::{Access, Address, BindError, Listener, Token, bind};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// Longer than any limit of the server's but the one for a client that stalls.
const DEADLINE: Duration = Duration::from_secs(20);
/// As many connections as there may be at once.
const CONNECTIONS: usize = 64;

fn router() -> Router {
    let own = || async {
        let mut response = Response::new(Body::from("own"));
        response.headers_mut().insert("cache-control", HeaderValue::from_static("max-age=1"));
        response.headers_mut().insert("content-security-policy", HeaderValue::from_static("default-src 'self'"));
        response.headers_mut().insert("x-frame-options", HeaderValue::from_static("SAMEORIGIN"));
        response
    };
    Router::new().route("/", get(async || "hello")).route("/health/live", get(async || "alive")).route("/own", get(own))
}

fn guarded() -> Access {
    Access { token: Some(Token::new("s3cret", "a test").unwrap()), without_token: false }
}

async fn bound(address: &str, access: Access) -> Result<Listener, BindError> {
    Ok(bind(&address.parse().unwrap(), access).await?.unwrap())
}

/// Serves; ends with the test.
async fn serve(access: Access) -> SocketAddr {
    let listener = bound("127.0.0.1:0", access).await.unwrap();
    let address = listener.address().trim_start_matches("http://").trim_end_matches('/').parse().unwrap();
    tokio::spawn(listener.serve(router()));
    address
}

async fn serve_unix(path: &Path) -> JoinHandle<()> {
    let listener = bound(&format!("unix:{}", path.display()), Access::default()).await.unwrap();
    assert_eq!(listener.address(), format!("unix:{}", path.display()));
    tokio::spawn(listener.serve(router()))
}

/// Sends a request and reads until the server closes the connection.
async fn talk(mut stream: impl AsyncRead + AsyncWrite + Unpin, request: &str) -> String {
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut reply = Vec::new();
    // A server that has not read all of it resets the connection.
    let _end = timeout(DEADLINE, stream.read_to_end(&mut reply)).await.expect("the server closes it");
    String::from_utf8(reply).unwrap()
}

async fn ask(address: SocketAddr, request: &str) -> String {
    talk(TcpStream::connect(address).await.unwrap(), request).await
}

fn request(method: &str, path: &str, headers: &str) -> String {
    format!("{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{headers}\r\n")
}

fn status(reply: &str) -> &str {
    reply.split(' ').nth(1).unwrap_or_default()
}

#[tokio::test]
async fn every_response_carries_the_headers_that_guard_a_browser() {
    let address = serve(Access::default()).await;
    for (path, of) in [("/", "200"), ("/nothing", "404")] {
        let reply = ask(address, &request("GET", path, "")).await;
        assert_eq!(status(&reply), of);
        for header in [
            "x-content-type-options: nosniff",
            "referrer-policy: no-referrer",
            "cache-control: no-store",
            "content-security-policy: default-src 'none'",
            "x-frame-options: DENY",
            "cross-origin-resource-policy: same-origin",
        ] {
            assert_eq!(reply.matches(&format!("{header}\r\n")).count(), 1, "{header} in {reply}");
        }
    }
    let own = ask(address, &request("GET", "/own", "")).await;
    assert!(own.contains("cache-control: max-age=1\r\n") && !own.contains("no-store"), "{own}");
    assert!(own.contains("content-security-policy: default-src 'self'\r\n") && !own.contains("'none'"), "{own}");
    assert!(own.contains("x-frame-options: DENY\r\n") && !own.contains("SAMEORIGIN"), "{own}");
}

#[tokio::test]
async fn only_get_and_head_are_answered_and_no_body_is_waited_for() {
    let address = serve(Access::default()).await;
    let post = ask(address, &request("POST", "/", "content-length: 1000000\r\n")).await;
    assert_eq!(status(&post), "405", "{post}");
    assert!(post.contains("allow: GET, HEAD\r\n"), "{post}");
    assert_eq!(status(&ask(address, &request("DELETE", "/", "")).await), "405");
    let head = ask(address, &request("HEAD", "/", "")).await;
    assert!(status(&head) == "200" && head.ends_with("\r\n\r\n"), "{head}");
    // The body of a GET does not come, and is not waited for.
    let get = ask(address, &request("GET", "/", "content-length: 1000000\r\n")).await;
    assert!(status(&get) == "200" && get.ends_with("hello"), "{get}");
}

#[tokio::test]
async fn with_a_token_only_who_knows_it_is_answered_but_for_health() {
    let address = serve(guarded()).await;
    let none = ask(address, &request("GET", "/", "")).await;
    assert_eq!(status(&none), "401");
    assert!(
        none.contains("www-authenticate: Basic realm=") && none.contains("www-authenticate: Bearer realm="),
        "{none}"
    );
    assert!(none.contains("x-content-type-options: nosniff"), "{none}");
    // "anybody:s3cret", "anybody:other".
    for (given, of) in [
        ("Bearer s3cret", "200"),
        ("Basic YW55Ym9keTpzM2NyZXQ=", "200"),
        ("Bearer s3cre", "401"),
        ("Basic YW55Ym9keTpvdGhlcg==", "401"),
    ] {
        let reply = ask(address, &request("GET", "/", &format!("authorization: {given}\r\n"))).await;
        assert_eq!(status(&reply), of, "{given}: {reply}");
    }
    // Also what the address would not tell otherwise.
    assert_eq!(status(&ask(address, &request("POST", "/", "")).await), "401");
    assert_eq!(status(&ask(address, &request("GET", "/health/live", "")).await), "200");
}

#[tokio::test]
async fn without_a_token_a_page_of_another_name_is_not_answered() {
    let address = serve(Access::default()).await;
    let foreign = "GET / HTTP/1.1\r\nhost: evil.example\r\nconnection: close\r\n\r\n";
    let reply = ask(address, foreign).await;
    assert!(status(&reply) == "403" && reply.contains("--admin-token-file"), "{reply}");
    assert!(!reply.contains("hello"), "{reply}");
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("admin.sock");
    let _server = serve_unix(&path).await;
    assert_eq!(status(&talk(UnixStream::connect(&path).await.unwrap(), foreign).await), "200");
}

#[tokio::test]
async fn a_page_of_another_site_gets_nothing_and_may_lead_here_by_a_link() {
    let fetched = "sec-fetch-site: cross-site\r\nsec-fetch-mode: cors\r\nsec-fetch-dest: empty\r\n";
    let linked = "sec-fetch-site: cross-site\r\nsec-fetch-mode: navigate\r\nsec-fetch-dest: document\r\n";
    for (access, token) in [(Access::default(), ""), (guarded(), "authorization: Bearer s3cret\r\n")] {
        let address = serve(access).await;
        for (path, body) in [("/", "hello"), ("/health/live", "alive")] {
            let reply = ask(address, &request("GET", path, &format!("{fetched}{token}"))).await;
            assert!(status(&reply) == "403" && !reply.contains(body), "{reply}");
            let reply = ask(address, &request("GET", path, &format!("{linked}{token}"))).await;
            assert!(status(&reply) == "200" && reply.contains(body), "{reply}");
        }
    }
}

#[tokio::test]
async fn an_address_that_others_reach_needs_a_token_and_one_that_is_taken_is_said_to_be() {
    let error = bound("0.0.0.0:0", Access::default()).await.unwrap_err();
    assert!(error.is_usage(), "{error}");
    assert!(bound("0.0.0.0:0", guarded()).await.is_ok());
    assert!(bound("0.0.0.0:0", Access { token: None, without_token: true }).await.is_ok());
    let address = serve(Access::default()).await;
    let error = bound(&address.to_string(), Access::default()).await.unwrap_err();
    assert!(!error.is_usage() && error.to_string().contains("another process listens there"), "{error}");
    assert!(bind(&Address::Off, Access::default()).await.unwrap().is_none());
}

#[tokio::test]
async fn a_unix_socket_is_for_its_owner_and_group_and_goes_with_the_server() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("admin.sock");
    let server = serve_unix(&path).await;
    let metadata = std::fs::metadata(&path).unwrap();
    assert!(metadata.file_type().is_socket());
    assert_eq!(metadata.permissions().mode() & 0o777, 0o660);
    let error = bound(&format!("unix:{}", path.display()), Access::default()).await.unwrap_err();
    assert!(error.to_string().contains("another process listens there"), "{error}");
    assert_eq!(status(&talk(UnixStream::connect(&path).await.unwrap(), &request("GET", "/", "")).await), "200");
    server.abort();
    assert!(server.await.unwrap_err().is_cancelled());
    assert!(!path.exists());
}

#[tokio::test]
async fn what_a_dead_process_left_is_replaced_and_nothing_else_is() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("admin.sock");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(path.exists(), "it is left");
    drop(serve_unix(&path).await);
    let (file, link) = (directory.path().join("file"), directory.path().join("link"));
    std::fs::write(&file, "precious").unwrap();
    let dead = directory.path().join("dead");
    drop(std::os::unix::net::UnixListener::bind(&dead).unwrap());
    symlink(&dead, &link).unwrap();
    for other in [&file, &link] {
        let error = bound(&format!("unix:{}", other.display()), Access::default()).await.unwrap_err();
        assert!(error.to_string().contains("no socket"), "{error}");
    }
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "precious");
    assert!(dead.exists() && link.is_symlink());
}

#[tokio::test]
async fn one_connection_too_many_is_told_so_and_slow_ones_make_room() {
    let address = serve(Access::default()).await;
    let mut slow = Vec::new();
    for _ in 0..CONNECTIONS {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nhost: local").await.unwrap();
        slow.push(stream);
    }
    // It is told at once, without being asked anything.
    let mut more = TcpStream::connect(address).await.unwrap();
    let mut reply = String::new();
    timeout(DEADLINE, more.read_to_string(&mut reply)).await.unwrap().unwrap();
    assert!(status(&reply) == "503" && reply.ends_with("too many connections\n"), "{reply}");
    let length: usize = reply.split("content-length: ").nth(1).unwrap().split('\r').next().unwrap().parse().unwrap();
    assert_eq!(reply.split_once("\r\n\r\n").unwrap().1.len(), length);
    // Whoever does not send its request is sent away.
    for stream in &mut slow {
        let mut rest = Vec::new();
        let _reset = timeout(DEADLINE, stream.read_to_end(&mut rest)).await.expect("it is closed");
    }
    assert_eq!(status(&ask(address, &request("GET", "/", "")).await), "200");
}

#[tokio::test]
async fn a_head_that_is_too_long_and_an_idle_connection_are_not_kept() {
    let address = serve(Access::default()).await;
    let long = format!("x: {}\r\n", "a".repeat(17 * 1024));
    let reply = ask(address, &request("GET", "/", &long)).await;
    assert_eq!(status(&reply), "431", "{reply}");
    let path = format!("/{}", "a".repeat(70 * 1024));
    let reply = ask(address, &request("GET", &path, "")).await;
    assert!(reply.is_empty() || matches!(status(&reply), "431" | "414"), "{reply}");
    // Kept for a second request, and closed when none comes.
    let reply = ask(address, "GET / HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
    assert!(status(&reply) == "200" && reply.ends_with("hello"), "{reply}");
}

#[tokio::test]
async fn a_stream_that_its_client_does_not_read_costs_one_connection_and_not_the_server() {
    let endless = || async {
        let chunk = axum::body::Bytes::from(vec![b'x'; 64 * 1024]);
        Body::new(Endless(chunk))
    };
    let listener = bound("127.0.0.1:0", Access::default()).await.unwrap();
    let address: SocketAddr = listener.address().trim_start_matches("http://").trim_end_matches('/').parse().unwrap();
    tokio::spawn(listener.serve(router().route("/endless", get(endless))));
    let mut stuck = TcpStream::connect(address).await.unwrap();
    stuck.write_all(request("GET", "/endless", "").as_bytes()).await.unwrap();
    stuck.readable().await.unwrap();
    assert_eq!(status(&ask(address, &request("GET", "/", "")).await), "200");
}

/// A body that always has more.
struct Endless(axum::body::Bytes);

impl axum::body::HttpBody for Endless {
    type Data = axum::body::Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<hyper::body::Frame<Self::Data>, Self::Error>>> {
        std::task::Poll::Ready(Some(Ok(hyper::body::Frame::data(self.0.clone()))))
    }
}
