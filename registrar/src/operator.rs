//! What a daemon offers an operator at its admin address: metrics and health. Edge. What is told of the daemon's state is
//! asked of its own loop, so that one that hangs is not called alive.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use observe::admin::{self, Access, Address};
use prometheus_client::registry::Registry;
use registry::watch::Backoff;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tracing::{debug, error, info};

use crate::keeper::ended;
use crate::metrics::{Daemon, Metrics, Overview};

/// How long the daemon's loop may take to answer. It never waits for anything, so that this is long.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// How many questions may wait for it.
const QUESTIONS: usize = 8;
/// The pauses before an address is tried again that is taken: as a rule by an earlier run that is about to end.
const PAUSES: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

const INDEX: &str = "registrar\n\n\
    /metrics       what it counts, for Prometheus\n\
    /health/live   200 while it does its work\n\
    /health/ready  200 once Docker and etcd have answered; else what is missing\n";

/// What an operator wants to know of the daemon.
#[derive(Debug)]
pub(crate) struct Question {
    /// With all that can be counted; else only what is missing.
    pub(crate) with_counts: bool,
    answer: oneshot::Sender<Overview>,
}

impl Question {
    /// Gives the answer. Who asked may be gone.
    pub(crate) fn answer(self, overview: Overview) {
        let _gone = self.answer.send(overview);
    }
}

/// Where an operator asks.
#[derive(Debug)]
pub enum Operator {
    /// At an address of the daemon's own, who has access.
    At(Address, Access),
    /// At somebody else's server, who is given what is to be answered.
    Elsewhere(oneshot::Sender<Router>),
}

/// Where the daemon's loop finds what it is asked. The server ends with it.
#[derive(Debug)]
pub(crate) struct Desk {
    questions: mpsc::Receiver<Question>,
    server: JoinSet<()>,
}

impl Desk {
    /// Opens it, at an address or nowhere. What is in the way is told and tried again: the keys matter more.
    pub(crate) fn open(operator: Operator, metrics: Metrics, daemon: Daemon, ttl: Duration) -> Self {
        let (sender, questions) = mpsc::channel(QUESTIONS);
        let mut server = JoinSet::new();
        let routes = || {
            let mut registry = Registry::default();
            metrics.register(&mut registry, daemon, ttl);
            router(Arc::new(Counter { questions: sender, metrics, registry }))
        };
        match operator {
            Operator::At(Address::Off, _) => {}
            Operator::At(address, access) => drop(server.spawn(serve(address, access, routes()))),
            // Who serves it may have gone: then so has the whole process, or nobody is to ask.
            Operator::Elsewhere(server) => drop(server.send(routes())),
        }
        Self { questions, server }
    }

    /// The next question. Never, where nobody can ask.
    pub(crate) async fn asked(&mut self) -> Question {
        loop {
            tokio::select! {
                Some(question) = self.questions.recv() => return question,
                // It never ends by itself; a panic goes on here.
                Some(end) = self.server.join_next() => ended(end).unwrap_or_default(),
                else => std::future::pending().await,
            }
        }
    }
}

async fn serve(address: Address, access: Access, router: Router) {
    let mut pause = Backoff::new(PAUSES.0, PAUSES.1);
    let mut told: Option<String> = None;
    loop {
        match admin::bind(&address, access.clone()).await {
            Ok(None) => return,
            Ok(Some(listener)) => {
                info!(address = listener.address(), "metrics and health are here");
                return listener.serve(router).await;
            }
            Err(error) => {
                let error = error.to_string();
                if told.as_ref() == Some(&error) {
                    debug!(error, "no metrics and no health");
                } else {
                    error!(error, "no metrics and no health; all else goes on, trying again");
                    told = Some(error);
                }
                sleep(pause.pause()).await;
            }
        }
    }
}

/// Behind which the operator's questions are answered.
#[derive(Debug)]
struct Counter {
    questions: mpsc::Sender<Question>,
    metrics: Metrics,
    registry: Registry,
}

impl Counter {
    /// Asks the daemon's loop. `None` where it does not answer in time.
    async fn ask(&self, with_counts: bool) -> Option<Overview> {
        let (answer, answered) = oneshot::channel();
        let asked = async {
            self.questions.send(Question { with_counts, answer }).await.ok()?;
            answered.await.ok()
        };
        timeout(ANSWER_LIMIT, asked).await.ok()?
    }
}

fn router(counter: Arc<Counter>) -> Router {
    Router::new()
        .route("/", get(async || INDEX))
        .route("/metrics", get(metrics))
        .route("/health/live", get(live))
        .route("/health/ready", get(ready))
        .fallback(async || (StatusCode::NOT_FOUND, INDEX))
        .with_state(counter)
}

fn hangs() -> Response {
    let text = "the registrar's loop does not answer: this is a fault of the registrar, please report it\n";
    (StatusCode::SERVICE_UNAVAILABLE, text).into_response()
}

async fn metrics(State(counter): State<Arc<Counter>>) -> Response {
    let Some(overview) = counter.ask(true).await else { return hangs() };
    counter.metrics.show(&overview);
    observe::metrics::response(&counter.registry)
}

async fn live(State(counter): State<Arc<Counter>>) -> Response {
    match counter.ask(false).await {
        Some(_) => "it lives\n".into_response(),
        None => hangs(),
    }
}

async fn ready(State(counter): State<Arc<Counter>>) -> Response {
    match counter.ask(false).await {
        None => hangs(),
        Some(overview) if overview.missing.is_empty() => "it is ready\n".into_response(),
        Some(overview) => {
            let text = format!("it is not ready:\n{}\n", overview.missing.join("\n"));
            (StatusCode::SERVICE_UNAVAILABLE, text).into_response()
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::body::{Body, to_bytes};
    use axum::http::Request;
    use tokio::time::Instant;
    use tower_service::Service;

    use super::*;

    async fn ask(router: &Router, path: &str) -> (u16, String) {
        let request = Request::get(path).body(Body::empty()).unwrap();
        let response = router.clone().call(request).await.unwrap();
        let status = response.status().as_u16();
        let body = to_bytes(response.into_body(), usize::MAX).await.unwrap();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    fn asked_at() -> (Router, mpsc::Receiver<Question>) {
        let (questions, desk) = mpsc::channel(QUESTIONS);
        let (metrics, mut registry) = (Metrics::default(), Registry::default());
        metrics.register(&mut registry, Daemon::Agent, Duration::from_secs(20));
        (router(Arc::new(Counter { questions, metrics, registry })), desk)
    }

    #[tokio::test(start_paused = true)]
    async fn a_loop_that_does_not_answer_is_not_called_alive() {
        let (router, desk) = asked_at();
        let begun = Instant::now();
        for path in ["/health/live", "/health/ready", "/metrics"] {
            let (status, text) = ask(&router, path).await;
            assert!(status == 503 && text.contains("does not answer"), "{path}: {status} {text}");
        }
        assert_eq!(begun.elapsed(), ANSWER_LIMIT * 3);
        // Nor one that is gone.
        drop(desk);
        assert_eq!(ask(&router, "/health/live").await.0, 503);
    }

    #[tokio::test]
    async fn what_is_missing_is_said_and_counts_are_only_asked_for_where_they_are_shown() {
        let (router, mut desk) = asked_at();
        let answers = tokio::spawn(async move {
            let mut with_counts = Vec::new();
            while let Some(question) = desk.recv().await {
                with_counts.push(question.with_counts);
                question.answer(Overview { missing: vec!["one", "two"], ..Overview::default() });
            }
            with_counts
        });
        assert_eq!(ask(&router, "/health/live").await, (200, "it lives\n".to_owned()));
        assert_eq!(ask(&router, "/health/ready").await, (503, "it is not ready:\none\ntwo\n".to_owned()));
        assert!(ask(&router, "/metrics").await.1.contains("registrar_docker_connected 0\n"));
        let (status, text) = ask(&router, "/nothing").await;
        assert!(status == 404 && text.contains("/metrics"), "{status} {text}");
        assert_eq!(ask(&router, "/").await, (200, INDEX.to_owned()));
        drop(router);
        assert_eq!(answers.await.unwrap(), [false, false, true]);
    }
}
