//! The probe against servers that answer in every way, and in none.

#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::time::{Duration, Instant};

use registrar::config::Check;
use registrar::probe::{Probe, ProbeError};
use support::etcd::free_port;
use support::{Answer, Application};

const LIMIT: Duration = Duration::from_millis(300);

async fn ask(check: Check, port: u16) -> Result<(), ProbeError> {
    Probe::new(check, port, "/", LIMIT).unwrap().ask().await
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
        match (ask(Check::Http, application.port).await, expected) {
            (Ok(()), Ok(())) => {}
            (Err(error), Err(expected)) => assert!(error.to_string().contains(expected), "{answer:?}: {error}"),
            (result, _) => panic!("{answer:?}: {result:?}"),
        }
        assert!(start.elapsed() < LIMIT * 3, "{answer:?} took {:?}", start.elapsed());
        assert_eq!(application.requests(), 1, "{answer:?}");
    }
    let error = ask(Check::Http, free_port()).await.unwrap_err();
    assert!(matches!(error, ProbeError::Connect(_)), "{error}");
    assert!(error.to_string().contains("refused"), "{error}");
}

#[tokio::test]
async fn the_request_is_a_plain_get_of_the_path() {
    let application = Application::start(Answer::status("200 OK")).await;
    let port = application.port;
    Probe::new(Check::Http, port, "/health?full=1", LIMIT).unwrap().ask().await.unwrap();
    let request = application.last_request().to_ascii_lowercase();
    assert!(request.starts_with("get /health?full=1 http/1.1\r\n"), "{request}");
    assert!(request.contains(&format!("host: 127.0.0.1:{port}\r\n")), "{request}");
}

#[tokio::test]
async fn for_tcp_a_connection_that_stays_is_an_answer() {
    for (answer, expected) in [(Answer::Hang, true), (Answer::Close, false)] {
        let application = Application::start(answer.clone()).await;
        assert_eq!(ask(Check::Tcp, application.port).await.is_ok(), expected, "{answer:?}");
    }
    let error = ask(Check::Tcp, free_port()).await.unwrap_err();
    assert!(matches!(error, ProbeError::Connect(_)), "{error}");
}
