//! The admin server: the live page, the API, the stream of what changes, metrics and health. Read-only.
//!
//! It runs on a thread of its own, so that making a page of thousands of rows never holds up HAProxy, and shares with the
//! daemon what that publishes. Nothing is made, asked or kept while nobody looks. `observe` guards the outside.

mod assets;
mod delta;
#[cfg(feature = "fuzz")]
pub(crate) mod fuzz;
mod hub;
mod page;
mod walk;

use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path, RawQuery, State};
use axum::http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, ETAG, IF_NONE_MATCH};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use futures_util::stream;
use jiff::Timestamp;
use observe::admin::{Access, Address, Listener, bind};
use prometheus_client::registry::Registry;
use registry::watch::Backoff;
use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, broadcast, mpsc, oneshot, watch};
use tokio::time::{sleep, timeout};
use tracing::{error, info};

use self::assets::Asset;
use self::hub::{Ask, Hub, Joined, Look};
use self::walk::{Filter, Piece, Walk};
use crate::haproxy::Runtime;
use crate::report::{NoteReport, StatusReport};
use crate::view::View;

/// How long the daemon may take to say that it lives.
const LIVE_LIMIT: Duration = Duration::from_secs(5);
/// How often a stream says something, so that nobody in between takes it for dead.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// How soon a browser comes back when its stream has ended, in milliseconds.
const COME_BACK: u64 = 1000;
/// The pauses between two tries to have the address.
const BIND_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_BIND_PAUSE: Duration = Duration::from_secs(60);
/// How many streams there are at once: fewer than connections, so that health checks, scrapers and pages find room.
const STREAMS: usize = 48;
/// So much of a long answer is made at once, in bytes.
const CHUNK: usize = 32 * 1024;

/// What the admin server tells of.
#[derive(Debug, Clone)]
pub struct Sources {
    /// The daemon's picture; none before the first.
    pub views: watch::Receiver<Option<Arc<View>>>,
    /// HAProxy's stats socket, where there is one.
    pub runtime: Option<Runtime>,
    /// The metrics.
    pub metrics: Arc<Registry>,
    /// The daemon's loop, which answers each that it is sent.
    pub alive: mpsc::Sender<oneshot::Sender<()>>,
    /// What else is answered, at paths of its own.
    pub routes: Router,
}

/// Starts the server on a thread of its own. It tries for the address until it has it, and says in the log what is in the way:
/// HAProxy is served meanwhile. The future ends if the thread does, which it never should.
///
/// # Errors
/// The kernel gives no thread.
pub fn start(address: Address, access: Access, sources: Sources) -> std::io::Result<impl Future<Output = ()> + use<>> {
    let (alive, ended) = oneshot::channel::<()>();
    if address == Address::Off {
        // Never ends: nothing was started that could.
        std::mem::forget(alive);
    } else {
        std::thread::Builder::new().name("admin".to_owned()).spawn(move || {
            let _alive = alive;
            match tokio::runtime::Builder::new_current_thread().enable_all().build() {
                Ok(runtime) => runtime.block_on(serve(&address, &access, sources)),
                Err(error) => error!(%error, "the admin server has no runtime"),
            }
        })?;
    }
    Ok(async {
        let _ = ended.await;
    })
}

async fn serve(address: &Address, access: &Access, sources: Sources) {
    let listener = listener(address, access).await;
    info!(address = listener.address(), "admin server started");
    let (router, hub) = router(sources);
    tokio::join!(hub, listener.serve(router));
}

/// Binds the address, sooner or later.
async fn listener(address: &Address, access: &Access) -> Listener {
    let mut pause = Backoff::new(BIND_PAUSE, LONGEST_BIND_PAUSE);
    loop {
        match bind(address, access.clone()).await {
            Ok(Some(listener)) => return listener,
            Ok(None) => std::future::pending::<()>().await,
            Err(error) => {
                let again_in = pause.pause();
                error!(%error, ?again_in, "no admin server; HAProxy is served nevertheless");
                sleep(again_in).await;
            }
        }
    }
}

/// What the handlers share.
#[derive(Clone)]
struct Desk {
    views: watch::Receiver<Option<Arc<View>>>,
    metrics: Arc<Registry>,
    alive: mpsc::Sender<oneshot::Sender<()>>,
    hub: mpsc::Sender<Ask>,
    streams: Arc<Semaphore>,
}

/// The routes, and the task behind them, which must be polled beside them.
pub fn router(sources: Sources) -> (Router, impl Future<Output = ()> + Send) {
    /// So many questions may wait: there are not that many connections.
    const WAITING: usize = 64;
    let (asks, asked) = mpsc::channel(WAITING);
    let start = u64::try_from(Timestamp::now().as_millisecond()).unwrap_or_default();
    let hub = Hub::new(sources.views.clone(), sources.runtime, start);
    let streams = Arc::new(Semaphore::new(STREAMS));
    let desk = Desk { views: sources.views, metrics: sources.metrics, alive: sources.alive, hub: asks, streams };
    let router = Router::new()
        .route("/", get(page))
        .route("/assets/app.js", get(|query, headers| asset(&assets::SCRIPT, query, headers)))
        .route("/assets/style.css", get(|query, headers| asset(&assets::STYLE, query, headers)))
        .route("/api/v1/status", get(status))
        .route("/api/v1/services", get(services))
        .route("/api/v1/services/{name}", get(service))
        .route("/api/v1/events", get(events))
        .route("/api/v1/feed", get(feed))
        .route("/api/v1/openapi.json", get(|| async { json_text(assets::OPENAPI) }))
        .route("/metrics", get(async |State(desk): State<Desk>| observe::metrics::response(&desk.metrics)))
        .route("/health/live", get(live))
        .route("/health/ready", get(ready))
        .fallback(async || failure(StatusCode::NOT_FOUND, "there is nothing at this path; see /api/v1/openapi.json"))
        .method_not_allowed_fallback(async || {
            let mut response = failure(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD are answered");
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            response
        })
        .with_state(desk)
        .merge(sources.routes);
    (router, hub.run(asked))
}

impl Desk {
    async fn look(&self) -> Option<Look> {
        let (sender, answer) = oneshot::channel();
        self.hub.send(Ask::Look(sender)).await.ok()?;
        answer.await.ok()
    }

    /// The picture with HAProxy's figures, or the answer that there is none yet.
    async fn looked(&self) -> Result<(Arc<View>, Look), Box<Response>> {
        let none = || Box::new(failure(StatusCode::SERVICE_UNAVAILABLE, "the discoverer has only just begun"));
        let look = self.look().await.ok_or_else(none)?;
        Ok((look.view.clone().ok_or_else(none)?, look))
    }
}

async fn page(State(desk): State<Desk>) -> Response {
    const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; \
        base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
    const CSP: HeaderName = HeaderName::from_static("content-security-policy");
    let look = desk.look().await;
    let body = match look.and_then(|look| Some((look.view.clone()?, look))) {
        Some((view, look)) => stream_of(page::pieces(view, look.stats, look.id)),
        None => Body::from(page::BEGINNING),
    };
    let headers =
        [(CSP, HeaderValue::from_static(POLICY)), (CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"))];
    (headers, body).into_response()
}

#[allow(clippy::unused_async, reason = "axum's handlers are")]
async fn asset(asset: &'static Asset, RawQuery(query): RawQuery, headers: HeaderMap) -> Response {
    let tag = asset.tag();
    // Whoever asks for this very version may keep it: another one has another address.
    let is_exact = query.is_some_and(|query| query == format!("v={}", asset.version()));
    let keep = if is_exact { "private, max-age=31536000, immutable" } else { "no-cache" };
    let same = headers.get(IF_NONE_MATCH).is_some_and(|tags| {
        tags.to_str().is_ok_and(|tags| tags.split(',').any(|one| one.trim().trim_start_matches("W/") == tag))
    });
    let headers = [(CACHE_CONTROL, keep.to_owned()), (ETAG, tag), (CONTENT_TYPE, asset.kind.to_owned())];
    if same {
        return (StatusCode::NOT_MODIFIED, headers).into_response();
    }
    (headers, asset.text).into_response()
}

async fn status(State(desk): State<Desk>) -> Response {
    let view = desk.views.borrow().clone();
    match view {
        Some(view) => json(&StatusReport::new(&view)),
        None => failure(StatusCode::SERVICE_UNAVAILABLE, "the discoverer has only just begun"),
    }
}

#[allow(clippy::unused_async, reason = "axum's handlers are")]
async fn feed(State(desk): State<Desk>) -> Response {
    let view = desk.views.borrow().clone();
    let notes = view.iter().flat_map(|view| &view.feed).map(|note| NoteReport::new(note));
    json(&serde_json::json!({ "notes": notes.collect::<Vec<_>>() }))
}

async fn services(State(desk): State<Desk>, RawQuery(query): RawQuery) -> Response {
    let filter = match Filter::parse(&query.unwrap_or_default()) {
        Ok(filter) => filter,
        Err(reason) => return failure(StatusCode::BAD_REQUEST, &reason),
    };
    let (view, look) = match desk.looked().await {
        Ok(looked) => looked,
        Err(response) => return *response,
    };
    let (version, at, event_id) = (view.version, view.at, look.id.to_string());
    let head = serde_json::json!({ "version": version, "at": at, "event_id": event_id, "figures": look.figures });
    let mut head = head.to_string();
    head.pop();
    head.push_str(",\"services\":[");
    let pieces = Json::new(Walk::new(view, look.stats, filter));
    json_body(stream_of(std::iter::once(head).chain(pieces).chain(std::iter::once("]}\n".to_owned()))))
}

async fn service(State(desk): State<Desk>, Path(name): Path<String>) -> Response {
    let unknown = || failure(StatusCode::NOT_FOUND, "there is no service of that name");
    let Ok(name) = name.parse() else { return unknown() };
    let (view, look) = match desk.looked().await {
        Ok(looked) => looked,
        Err(response) => return *response,
    };
    if !view.services.contains_key(&name) && !view.shut_out.contains_key(&name) {
        return unknown();
    }
    let filter = Filter { service: Some(name), ..Filter::default() };
    let pieces = Json::new(Walk::new(view, look.stats, filter));
    json_body(stream_of(pieces.chain(std::iter::once("\n".to_owned()))))
}

async fn events(State(desk): State<Desk>, RawQuery(query): RawQuery, headers: HeaderMap) -> Response {
    let Ok(place) = Arc::clone(&desk.streams).try_acquire_owned() else {
        return failure(StatusCode::SERVICE_UNAVAILABLE, "too many streams");
    };
    // EventSource sends the header when it comes back; the first time a page can only say it in the query.
    let asked = url::form_urlencoded::parse(query.as_deref().unwrap_or_default().as_bytes())
        .find_map(|(name, value)| (name == "last_event_id").then(|| value.into_owned()));
    let last = headers.get("last-event-id").map(|id| String::from_utf8_lossy(id.as_bytes()).into_owned()).or(asked);
    let (joined, answer) = oneshot::channel();
    let gone = || failure(StatusCode::SERVICE_UNAVAILABLE, "the admin server ends");
    if desk.hub.send(Ask::Join { last, joined }).await.is_err() {
        return gone();
    }
    let Ok(joined) = answer.await else { return gone() };
    let headers = [(CONTENT_TYPE, "text/event-stream; charset=utf-8"), (CACHE_CONTROL, "no-store")];
    (headers, Body::from_stream(event_stream(joined, place))).into_response()
}

/// What one client is sent, who has a place as long. It ends for whoever is too far behind.
fn event_stream(
    joined: Joined,
    place: OwnedSemaphorePermit,
) -> impl futures_util::Stream<Item = Result<Bytes, Infallible>> + Send {
    let mut first: Vec<Bytes> = vec![format!("retry: {COME_BACK}\n\n").into()];
    first.extend(joined.first);
    stream::unfold((first.into_iter(), joined.rest, place), async |(mut first, mut rest, place)| {
        if let Some(event) = first.next() {
            return Some((Ok(event), (first, rest, place)));
        }
        match timeout(KEEP_ALIVE, rest.recv()).await {
            Ok(Ok(event)) => Some((Ok(event), (first, rest, place))),
            Err(_) => Some((Ok(Bytes::from_static(b": still here\n\n")), (first, rest, place))),
            Ok(Err(broadcast::error::RecvError::Closed | broadcast::error::RecvError::Lagged(_))) => None,
        }
    })
}

async fn live(State(desk): State<Desk>) -> Response {
    let (sender, answer) = oneshot::channel();
    let asked = async {
        desk.alive.send(sender).await.ok()?;
        answer.await.ok()
    };
    match timeout(LIVE_LIMIT, asked).await {
        Ok(Some(())) => "the discoverer lives\n".into_response(),
        _ => (StatusCode::SERVICE_UNAVAILABLE, "the discoverer's loop has not answered within 5 s\n").into_response(),
    }
}

#[allow(clippy::unused_async, reason = "axum's handlers are")]
async fn ready(State(desk): State<Desk>) -> Response {
    let view = desk.views.borrow().clone();
    let missing = match &view {
        Some(view) if view.is_ready() => return "HAProxy runs what is registered\n".into_response(),
        Some(view) => page::missing(view),
        None => "the discoverer has only just begun",
    };
    (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {missing}; see /api/v1/status\n")).into_response()
}

/// A walk as JSON: services, with a comma between them.
struct Json {
    walk: Walk,
    services: usize,
    instances: usize,
}

impl Json {
    fn new(walk: Walk) -> Self {
        Self { walk, services: 0, instances: 0 }
    }
}

impl Iterator for Json {
    type Item = String;

    fn next(&mut self) -> Option<String> {
        let text = |value: Result<String, serde_json::Error>| value.unwrap_or_else(|_| "null".to_owned());
        Some(match self.walk.next()? {
            Piece::Service(head) => {
                let comma = if self.services > 0 { "," } else { "" };
                (self.services, self.instances) = (self.services + 1, 0);
                let head = text(serde_json::to_string(&head));
                format!("{comma}{},\"instances\":[", head.strip_suffix('}').unwrap_or("{"))
            }
            Piece::Instances(instances) => {
                let comma = if self.instances > 0 { "," } else { "" };
                self.instances += instances.len();
                let list = text(serde_json::to_string(&instances));
                format!("{comma}{}", list.strip_prefix('[').and_then(|list| list.strip_suffix(']')).unwrap_or_default())
            }
            Piece::End => "]}".to_owned(),
        })
    }
}

/// A long answer, made as fast as it is read, and with room for others in between.
fn stream_of(pieces: impl Iterator<Item = String> + Send + 'static) -> Body {
    Body::from_stream(stream::unfold(pieces, async |mut pieces| {
        tokio::task::yield_now().await;
        let mut chunk = pieces.next()?;
        while chunk.len() < CHUNK {
            let Some(piece) = pieces.next() else { break };
            chunk.push_str(&piece);
        }
        Some((Ok::<_, Infallible>(Bytes::from(chunk)), pieces))
    }))
}

fn json(value: &impl Serialize) -> Response {
    match serde_json::to_vec(value) {
        Ok(mut text) => {
            text.push(b'\n');
            json_body(Body::from(text))
        }
        Err(error) => failure(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
    }
}

fn json_text(text: &'static str) -> Response {
    json_body(Body::from(text))
}

fn json_body(body: Body) -> Response {
    ([(CONTENT_TYPE, "application/json")], body).into_response()
}

fn failure(status: StatusCode, error: &str) -> Response {
    let body = serde_json::json!({ "error": error }).to_string() + "\n";
    (status, json_body(Body::from(body))).into_response()
}

#[cfg(test)]
mod tests;
