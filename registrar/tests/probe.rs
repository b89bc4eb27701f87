//! The probe against servers that answer in every way, and in none.

#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use registrar::probe::{ProbeError, Prober};
use registrar::service::{CheckKind, Expected, HttpCheck};
use reqwest::Method;
use reqwest::header::HeaderMap;
use support::etcd::free_port;
use support::{Answer, Application, eventually};

const LIMIT: Duration = Duration::from_secs(5);
/// The limit where there is no answer.
const BRIEF: Duration = Duration::from_millis(300);

fn local(port: u16) -> SocketAddr {
    ([127, 0, 0, 1], port).into()
}

fn http(port: u16, path: &str) -> CheckKind {
    http_of([local(port)], path)
}

fn http_at(targets: impl IntoIterator<Item = SocketAddr>) -> CheckKind {
    http_of(targets, "/")
}

fn http_of(targets: impl IntoIterator<Item = SocketAddr>, path: &str) -> CheckKind {
    CheckKind::Http(HttpCheck {
        tls: false,
        targets: targets.into_iter().collect(),
        proxied: true,
        path: path.to_owned(),
        method: Method::GET,
        headers: HeaderMap::new(),
        expected: Expected::Below500,
    })
}

fn tcp(targets: impl IntoIterator<Item = SocketAddr>) -> CheckKind {
    CheckKind::Tcp { targets: targets.into_iter().collect(), proxied: true }
}

async fn ask(check: CheckKind) -> Result<(), ProbeError> {
    ask_within(LIMIT, check).await
}

async fn ask_within(limit: Duration, check: CheckKind) -> Result<(), ProbeError> {
    Prober::new().unwrap().ask(&check, 0, limit).await.result
}

#[tokio::test]
async fn any_status_below_500_is_an_answer_and_everything_else_is_none() {
    let body_never_ends = "HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\nx".to_owned();
    let cases = [
        (Answer::status("200 OK"), Ok(())),
        (Answer::status("204 No Content"), Ok(())),
        (Answer::status("302 Found\r\nLocation: http://127.0.0.1:1/"), Ok(())),
        (Answer::status("401 Unauthorized"), Ok(())),
        (Answer::status("404 Not Found"), Ok(())),
        (Answer::status("499 X"), Ok(())),
        (Answer::Bytes(body_never_ends), Ok(())),
        (Answer::status("500 Internal Server Error"), Err("status 500")),
        (Answer::status("503 Service Unavailable"), Err("status 503")),
        (Answer::status("999 X"), Err("status 999")),
        (Answer::Bytes("SSH-2.0-OpenSSH_9.2\r\n".into()), Err("broke off")),
        (Answer::Bytes(String::new()), Err("broke off")),
        (Answer::Close, Err("broke off")),
        (Answer::Hang, Err("no answer within 300ms")),
    ];
    for (answer, expected) in cases {
        let application = Application::start(answer.clone()).await;
        let start = Instant::now();
        let limit = if answer == Answer::Hang { BRIEF } else { LIMIT };
        match (ask_within(limit, http(application.port, "/")).await, expected) {
            (Ok(()), Ok(())) => {}
            (Err(error), Err(expected)) => assert!(error.to_string().contains(expected), "{answer:?}: {error}"),
            (result, _) => panic!("{answer:?}: {result:?}"),
        }
        assert!(start.elapsed() < LIMIT * 3, "{answer:?} took {:?}", start.elapsed());
        assert_eq!(application.requests(), 1, "{answer:?}");
    }
    let error = ask(http(free_port(), "/")).await.unwrap_err();
    assert!(matches!(error, ProbeError::Refused(_)), "{error}");
    assert!(error.to_string().contains("refused"), "{error}");
}

#[tokio::test]
async fn the_request_is_a_plain_get_of_the_path() {
    let application = Application::start(Answer::status("200 OK")).await;
    let port = application.port;
    ask(http(port, "/health?full=1")).await.unwrap();
    let request = application.last_request().to_ascii_lowercase();
    assert!(request.starts_with("get /health?full=1 http/1.1\r\n"), "{request}");
    assert!(request.contains(&format!("host: 127.0.0.1:{port}\r\n")), "{request}");
}

#[tokio::test]
async fn for_tcp_a_connection_that_stays_is_an_answer() {
    let application = Application::start(Answer::Hang).await;
    assert_eq!(ask(tcp([local(application.port)])).await, Ok(()));
    let application = Application::start(Answer::Close).await;
    // On a slow machine it may close when the probe has gone: it has 50 ms.
    eventually("a connection that closes is none", async || ask(tcp([local(application.port)])).await.is_err()).await;
    let error = ask(tcp([local(free_port())])).await.unwrap_err();
    assert!(matches!(error, ProbeError::Refused(_)), "{error}");
}

#[tokio::test]
async fn a_target_with_another_behind_it_is_asked_directly_and_its_refusal_is_the_last_word() {
    let application = Application::start(Answer::Close).await;
    let behind = [local(application.port), local(free_port())];
    assert_eq!(ask(tcp(behind)).await, Ok(()));
    let refused = [local(free_port()), local(application.port)];
    assert!(matches!(ask(tcp(refused)).await, Err(ProbeError::Refused(_))));
}

#[tokio::test]
async fn a_request_that_breaks_off_on_a_published_port_is_refused_where_nobody_listens_in_the_container() {
    let published = Application::start(Answer::Close).await;
    let own = Application::start(Answer::Hang).await;
    for tls in [false, true] {
        let at = |first: u16, second: u16, proxied| {
            let CheckKind::Http(plain) = http_at([local(first), local(second)]) else { unreachable!() };
            CheckKind::Http(HttpCheck { tls, proxied, ..plain })
        };
        let dead = ask(at(published.port, free_port(), true)).await.unwrap_err();
        assert!(matches!(dead, ProbeError::Refused(_)), "{dead}");
        for lives in [at(published.port, own.port, true), at(published.port, free_port(), false)] {
            let error = ask(lives.clone()).await.unwrap_err();
            assert!(matches!(error, ProbeError::Broken(_) | ProbeError::Tls(_)), "{lives:?}: {error}");
        }
    }
    // Whoever answers is there, whatever it says.
    published.answers(Answer::status("500 X"));
    let error = ask(http_at([local(published.port), local(free_port())])).await.unwrap_err();
    assert!(matches!(error, ProbeError::Status(_)), "{error}");
}

#[tokio::test]
async fn where_there_is_no_way_to_the_first_target_the_next_is_asked_and_remembered() {
    let application = Application::start(Answer::Hang).await;
    // TCP has no way to a multicast address.
    let nowhere = ([224, 0, 0, 1], 80).into();
    let check = tcp([nowhere, local(application.port)]);
    let asked = Prober::new().unwrap().ask(&check, 0, LIMIT).await;
    assert_eq!((asked.result, asked.asked, asked.target), (Ok(()), 1, 1));
    application.answers(Answer::status("200 OK"));
    let asked = Prober::new().unwrap().ask(&http_at([nowhere, local(application.port)]), 0, LIMIT).await;
    assert_eq!((asked.result, asked.asked, asked.target), (Ok(()), 1, 1));
}

#[tokio::test]
async fn a_sole_target_has_the_whole_limit_to_take_the_connection() {
    // What a full queue of connections does to the next: nobody answers it. With another target to try a second is enough.
    let listener = tokio::net::TcpSocket::new_v4().unwrap();
    listener.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let full = listener.listen(1).unwrap();
    let address = full.local_addr().unwrap();
    let fill: Vec<_> = (0..4).map(|_| tokio::net::TcpStream::connect(address)).collect();
    let filled = tokio::time::timeout(Duration::from_millis(200), futures_util::future::join_all(fill)).await;
    assert!(filled.is_err(), "the queue takes any number");
    let application = Application::start(Answer::Hang).await;
    let prober = Prober::new().unwrap();
    let limit = Duration::from_millis(1600);
    for kind in [tcp([address]), http_at([address])] {
        let begun = Instant::now();
        let asked = prober.ask(&kind, 0, limit).await;
        assert_eq!(asked.result, Err(ProbeError::Timeout(limit)), "{kind:?}");
        assert!(begun.elapsed() >= limit, "{kind:?}: {:?}", begun.elapsed());
    }
    let begun = Instant::now();
    let asked = prober.ask(&tcp([address, local(application.port)]), 0, limit * 4).await;
    assert_eq!((asked.result, asked.asked, asked.target), (Ok(()), 1, 1));
    assert!(begun.elapsed() >= Duration::from_secs(1), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_slow_answer_does_not_move_the_question_elsewhere_unless_there_may_be_no_way() {
    let (slow, other) = (Application::start(Answer::Hang).await, Application::start(Answer::status("200 OK")).await);
    let check = http_at([local(slow.port), local(other.port)]);
    for (limit, next) in [(BRIEF, 1), (Duration::from_millis(1300), 0)] {
        let asked = Prober::new().unwrap().ask(&check, 0, limit).await;
        assert_eq!((asked.result, asked.asked, asked.target), (Err(ProbeError::Timeout(limit)), 0, next), "{limit:?}");
    }
}

#[tokio::test]
async fn what_speaks_no_tls_is_told_from_what_cannot_be_reached() {
    let plain = "HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n".to_owned();
    for answer in [Answer::ToAnything(plain), Answer::ToAnything(String::new())] {
        let application = Application::start(answer.clone()).await;
        let CheckKind::Http(plain) = http(application.port, "/") else { unreachable!() };
        let error = ask(CheckKind::Http(HttpCheck { tls: true, ..plain })).await.unwrap_err();
        assert!(matches!(error, ProbeError::Tls(_)), "{answer:?}: {error:?}");
    }
}
