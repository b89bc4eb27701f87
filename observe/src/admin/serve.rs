//! The server: connections within limits, each request judged before it comes to the router.

use std::convert::Infallible;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::header::{
    ALLOW, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, WWW_AUTHENTICATE,
    X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use axum::http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tower_service::Service;
use tracing::{debug, warn};

use super::access::{Access, Verdict, judge};
use super::address::SocketFile;
use super::stall::Impatient;

/// How many connections there are at once: some browsers, some scrapers, some health checks.
const CONNECTIONS: usize = 64;
/// How long the head of a request may take, from the connection's or the last answer's end on: what is idle goes too.
const HEAD_LIMIT: Duration = Duration::from_secs(5);
/// How long the head of a request may be.
const HEAD_SIZE: usize = 16 * 1024;
/// How long a client may take nothing of what is being sent to it.
const STALL_LIMIT: Duration = Duration::from_secs(30);
/// How much the kernel holds for a client that does not read.
const SEND_BUFFER: usize = 256 * 1024;
/// What a wrong token costs.
const WRONG_TOKEN_DELAY: Duration = Duration::from_millis(300);
/// How often it is told that there were some.
const WRONG_TOKEN_TOLD: Duration = Duration::from_secs(60);
/// The pause after the kernel gave no connection: it has no file for it, as a rule.
const ACCEPT_PAUSE: Duration = Duration::from_millis(500);

/// What one connection more than there may be is told.
const TOO_MANY: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: text/plain; charset=utf-8\r\n\
    content-length: 21\r\nconnection: close\r\n\r\ntoo many connections\n";

/// What was bound.
#[derive(Debug)]
pub(super) enum Bound {
    Tcp(TcpListener),
    Unix(UnixListener, SocketFile),
}

/// The admin address, bound, and not yet served.
#[derive(Debug)]
pub struct Listener {
    bound: Bound,
    access: Access,
}

impl Listener {
    pub(super) fn new(bound: Bound, access: Access) -> Self {
        Self { bound, access }
    }

    /// Where it is, fit for a message: a URL, or `unix:` and the path.
    pub fn address(&self) -> String {
        match &self.bound {
            Bound::Tcp(listener) => match listener.local_addr() {
                Ok(address) => format!("http://{address}/"),
                Err(error) => format!("an address that the kernel does not tell: {error}"),
            },
            Bound::Unix(_, file) => format!("unix:{}", file.path().display()),
        }
    }

    /// Serves for ever. To be spawned; whoever aborts it ends all connections.
    pub async fn serve(self, router: Router) {
        let is_tcp = matches!(self.bound, Bound::Tcp(_));
        let room = Arc::new(Room { access: self.access, is_tcp, router, wrong_tokens: Mutex::default() });
        let places = Arc::new(Semaphore::new(CONNECTIONS));
        let mut connections = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                accepted = self.bound.accept() => accepted,
                Some(_ended) = connections.join_next() => continue,
            };
            let stream = match accepted {
                Ok(stream) => stream,
                Err(error) => {
                    debug!(%error, "no connection at the admin address");
                    if !is_about_one_connection(&error) {
                        sleep(ACCEPT_PAUSE).await;
                    }
                    continue;
                }
            };
            let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
                stream.refuse();
                continue;
            };
            let room = Arc::clone(&room);
            connections.spawn(async move {
                match stream {
                    Stream::Tcp(stream) => talk(stream, room).await,
                    Stream::Unix(stream) => talk(stream, room).await,
                }
                drop(place);
            });
        }
    }
}

impl Bound {
    async fn accept(&self) -> io::Result<Stream> {
        match self {
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                // Without either it works too.
                let _no_delay = stream.set_nodelay(true);
                let _less_memory = SockRef::from(&stream).set_send_buffer_size(SEND_BUFFER);
                Ok(Stream::Tcp(stream))
            }
            Self::Unix(listener, _) => Ok(Stream::Unix(listener.accept().await?.0)),
        }
    }
}

/// A connection.
enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Stream {
    /// Says that there are too many, and waits for nothing.
    fn refuse(self) {
        let _if_there_is_room = match self {
            Self::Tcp(stream) => stream.try_write(TOO_MANY),
            Self::Unix(stream) => stream.try_write(TOO_MANY),
        };
    }
}

/// Whether the next connection may well be accepted at once.
fn is_about_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

async fn talk<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(stream: S, room: Arc<Room>) {
    let service = service_fn(move |request: Request<hyper::body::Incoming>| {
        let room = Arc::clone(&room);
        // The body is never read: who sent one is not listened to any more.
        async move { Ok::<_, Infallible>(room.answer(request.map(|_| Body::empty())).await) }
    });
    let ended = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_LIMIT)
        .max_header_size(HEAD_SIZE)
        .serve_connection(TokioIo::new(Impatient::new(stream, STALL_LIMIT)), service)
        .await;
    if let Err(error) = ended {
        debug!(%error, "a connection at the admin address ended");
    }
}

/// What all connections share.
#[derive(Debug)]
struct Room {
    access: Access,
    is_tcp: bool,
    router: Router,
    /// How many wrong tokens there were since that was told, and when it was. Held for no longer than a look.
    wrong_tokens: Mutex<(u64, Option<Instant>)>,
}

impl Room {
    async fn answer(&self, request: Request<Body>) -> Response<Body> {
        let mut response = match judge(&self.access, self.is_tcp, request.uri(), request.headers()) {
            Verdict::Welcome if !matches!(*request.method(), Method::GET | Method::HEAD) => {
                let mut response = words(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD are answered here\n");
                response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
                response
            }
            Verdict::Welcome => match self.router.clone().call(request).await {
                Ok(response) => response,
                Err(never) => match never {},
            },
            verdict @ (Verdict::NoToken | Verdict::WrongToken) => {
                if verdict == Verdict::WrongToken {
                    self.tell_wrong_token();
                    sleep(WRONG_TOKEN_DELAY).await;
                }
                let mut response = words(
                    StatusCode::UNAUTHORIZED,
                    "a token is needed: as \"Authorization: Bearer TOKEN\", or as the password of any user\n",
                );
                for scheme in ["Basic realm=\"admin\", charset=\"UTF-8\"", "Bearer realm=\"admin\""] {
                    response.headers_mut().append(WWW_AUTHENTICATE, HeaderValue::from_static(scheme));
                }
                response
            }
            Verdict::OtherHost => words(
                StatusCode::FORBIDDEN,
                "this server is asked by its IP address or as localhost; under another name only with a token \
                 (--admin-token-file)\n",
            ),
            Verdict::OtherSite => words(
                StatusCode::FORBIDDEN,
                "a page of another site may lead here by a link, and ask for nothing else\n",
            ),
        };
        complete(&mut response);
        response
    }

    fn tell_wrong_token(&self) {
        let now = Instant::now();
        let mut known = self.wrong_tokens.lock().unwrap_or_else(PoisonError::into_inner);
        known.0 += 1;
        if known.1.is_none_or(|told| now.duration_since(told) >= WRONG_TOKEN_TOLD) {
            warn!(requests = known.0, "somebody asks at the admin address with a wrong token");
            *known = (0, Some(now));
        }
    }
}

fn words(status: StatusCode, text: &'static str) -> Response<Body> {
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

/// Adds the headers that every response has. The router may have said otherwise where its pages need it.
fn complete(response: &mut Response<Body>) {
    const CORP: HeaderName = HeaderName::from_static("cross-origin-resource-policy");
    let headers = response.headers_mut();
    for (name, value) in [
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (REFERRER_POLICY, "no-referrer"),
        (X_FRAME_OPTIONS, "DENY"),
        (CORP, "same-origin"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    for (name, value) in [(CACHE_CONTROL, "no-store"), (CONTENT_SECURITY_POLICY, "default-src 'none'")] {
        headers.entry(name).or_insert(HeaderValue::from_static(value));
    }
}
