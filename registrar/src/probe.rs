//! Asks an application whether it answers. Edge: it opens connections, and judges nothing beyond one question.

use std::io;
use std::net::SocketAddr;
use std::sync::OnceLock;
use std::time::Duration;

use reqwest::{Client, StatusCode};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};

use crate::health::Answer;
use crate::metrics::Metrics;
use crate::service::{CheckKind, HttpCheck};

/// How long a TCP connection must stay open to count as an answer: what accepts on behalf of an application that is
/// not there closes at once.
const STAYS_OPEN: Duration = Duration::from_millis(50);
/// The limit on connecting to one address where there is another to try. On one host it takes microseconds.
pub(crate) const CONNECT_LIMIT: Duration = Duration::from_secs(1);

/// Why there was no good answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProbeError {
    /// Nobody listens there.
    #[error("no connection: {0}")]
    Refused(String),
    /// There is no way there.
    #[error("no connection: {0}")]
    NoWay(String),
    /// It took longer than the limit.
    #[error("no answer within {}", humantime::format_duration(*.0))]
    Timeout(Duration),
    /// The connection was taken and closed: by Docker, on behalf of an application that is not there.
    #[error("the connection broke off: closed at once")]
    Closed,
    /// There is a connection, and no TLS on it.
    #[error("no TLS there: {0}")]
    Tls(String),
    /// The connection ended without an answer.
    #[error("the connection broke off: {0}")]
    Broken(String),
    /// The application says itself that it is not well.
    #[error("status {0}")]
    Status(StatusCode),
    /// The HTTP client cannot be made.
    #[error("no HTTP client can be made: {0}")]
    Client(String),
    /// Docker says that it is not well.
    #[error("Docker's HEALTHCHECK says {0}")]
    Unhealthy(&'static str),
    /// The command in the container failed.
    #[error("the command in the container ended with {0}")]
    Exit(i64),
    /// The command of an earlier question has not ended.
    #[error("the command of an earlier check still runs in the container, and no other is started beside it")]
    StillRuns,
    /// The command in the container cannot be run.
    #[error("{0}")]
    Exec(String),
}

impl ProbeError {
    /// Its name in a metric's label.
    pub(crate) fn label(&self) -> &'static str {
        match self {
            Self::Refused(_) => "refused",
            Self::NoWay(_) => "no_way",
            Self::Timeout(_) => "timeout",
            Self::Closed => "closed",
            Self::Tls(_) => "tls",
            Self::Broken(_) => "broken",
            Self::Status(_) => "status",
            Self::Exit(_) => "exit",
            Self::StillRuns => "still_runs",
            Self::Client(_) | Self::Unhealthy(_) | Self::Exec(_) => "error",
        }
    }

    /// What this means for its health.
    pub fn answer(&self) -> Answer {
        match self {
            Self::Refused(_) | Self::Closed | Self::Unhealthy(_) => Answer::Refused,
            _ => Answer::Bad,
        }
    }
}

/// What asks: one for all applications.
#[derive(Debug)]
pub struct Prober {
    /// One for each combination of what it is for, made when it is needed for the first time.
    clients: [OnceLock<Client>; 4],
    metrics: Metrics,
}

/// What an HTTP client is for.
#[derive(Debug, Clone, Copy)]
struct Purpose {
    tls: bool,
    /// Whether there is another address to try where there is no way to this one.
    hurried: bool,
}

/// What came of one question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// The answer.
    pub result: Result<(), ProbeError>,
    /// Which of the targets it is about.
    pub asked: usize,
    /// Which of the targets is to be asked first the next time.
    pub target: usize,
}

impl Prober {
    /// Prepares to ask.
    ///
    /// # Errors
    /// [`ProbeError::Client`].
    pub fn new() -> Result<Self, ProbeError> {
        registry::store::use_ring();
        let prober = Self { clients: Default::default(), metrics: Metrics::default() };
        prober.client(Purpose { tls: false, hurried: false })?;
        Ok(prober)
    }

    /// Counts into these what it asks.
    #[must_use]
    pub fn counting(mut self, metrics: Metrics) -> Self {
        self.metrics = metrics;
        self
    }

    /// Counts a question that others ask.
    pub(crate) fn count(&self, kind: &'static str, begun: Instant, result: &Result<(), ProbeError>) {
        self.metrics.probed(kind, begun.elapsed(), result);
    }

    /// Asks once, by HTTP or TCP; other means are not its business and count as answered. The connection is a new one
    /// each time: an application that takes no more connections is not well.
    ///
    /// The targets are tried from `first` on, until there is a way to one.
    pub async fn ask(&self, check: &CheckKind, first: usize, limit: Duration) -> Asked {
        let begun = Instant::now();
        let asked = self.ask_in_turn(check, first, limit).await;
        match check {
            CheckKind::Http(_) => self.count("http", begun, &asked.result),
            CheckKind::Tcp { .. } => self.count("tcp", begun, &asked.result),
            CheckKind::Docker | CheckKind::Exec { .. } | CheckKind::None => {}
        }
        asked
    }

    async fn ask_in_turn(&self, check: &CheckKind, first: usize, limit: Duration) -> Asked {
        let targets = check.targets();
        let is_proxied = matches!(check, CheckKind::Tcp { proxied: true, .. });
        let deadline = Instant::now() + limit;
        for turn in 0..targets.len() {
            let at = (first + turn) % targets.len();
            let is_last = turn + 1 == targets.len();
            let question = async {
                match check {
                    CheckKind::Http(check) => self.ask_http(check, at, !is_last, deadline).await,
                    _ => ask_tcp(targets[at], is_proxied && at + 1 == targets.len(), !is_last).await,
                }
            };
            match timeout_at(deadline, question).await {
                Err(_) => {
                    // Perhaps there is no way to this one, where the time was too short to tell that from a slow answer.
                    let next = if limit <= CONNECT_LIMIT { (at + 1) % targets.len() } else { at };
                    return Asked { result: Err(ProbeError::Timeout(limit)), asked: at, target: next };
                }
                Ok(Err(ProbeError::NoWay(_))) if !is_last => {}
                Ok(result) => return Asked { result, asked: at, target: at },
            }
        }
        Asked { result: Ok(()), asked: first, target: first }
    }

    /// The headers are the answer; the body is not read.
    async fn ask_http(&self, check: &HttpCheck, at: usize, hurried: bool, deadline: Instant) -> Result<(), ProbeError> {
        let target = check.targets[at];
        let client = self.client(Purpose { tls: check.tls, hurried })?;
        let scheme = if check.tls { "https" } else { "http" };
        let request = client.request(check.method.clone(), format!("{scheme}://{target}{}", check.path));
        let error = match request.headers(check.headers.clone()).send().await {
            Ok(response) if check.expected.contains(response.status()) => return Ok(()),
            Ok(response) => return Err(ProbeError::Status(response.status())),
            Err(error) => error,
        };
        let (cause, kind) = root_cause(&error);
        let (error, may_be_closed) = match kind {
            Some(io::ErrorKind::ConnectionRefused) if error.is_connect() => (ProbeError::Refused(cause), false),
            // Connected, and no handshake of TLS came of it: what says something else there is no proxy of Docker's.
            Some(kind) if check.tls && error.is_connect() && is_of_handshake(kind) => {
                (ProbeError::Tls(cause), matches!(kind, io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset))
            }
            _ if error.is_connect() => (ProbeError::NoWay(cause), false),
            _ => (ProbeError::Broken(cause), true),
        };
        let refused =
            if check.proxied && at == 0 && may_be_closed { behind_the_proxy(check, deadline).await } else { None };
        Err(refused.unwrap_or(error))
    }

    fn client(&self, purpose: Purpose) -> Result<&Client, ProbeError> {
        let place = &self.clients[usize::from(purpose.tls) * 2 + usize::from(purpose.hurried)];
        if let Some(client) = place.get() {
            return Ok(client);
        }
        let client = client(purpose)?;
        Ok(place.get_or_init(|| client))
    }
}

/// What is behind a port that Docker publishes and that closed the connection: its proxy takes connections for an
/// application that is not there, while at the container's own address they are refused.
async fn behind_the_proxy(check: &HttpCheck, deadline: Instant) -> Option<ProbeError> {
    let own = check.targets.get(1)?;
    let until = deadline.min(Instant::now() + CONNECT_LIMIT);
    match timeout_at(until, TcpStream::connect(own)).await.ok()? {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            Some(ProbeError::Refused(format!("{own} behind Docker's proxy: {error}")))
        }
        _ => None,
    }
}

/// A client that keeps no connection. Over TLS it takes any certificate: it asks an address, not a name, and whether
/// somebody answers, not who.
fn client(purpose: Purpose) -> Result<Client, ProbeError> {
    let builder = Client::builder()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .http1_only()
        .pool_max_idle_per_host(0)
        .tls_certs_only([])
        .tls_danger_accept_invalid_certs(purpose.tls);
    let builder = if purpose.hurried { builder.connect_timeout(CONNECT_LIMIT) } else { builder };
    builder.build().map_err(|error| ProbeError::Client(root_cause(&error).0))
}

async fn ask_tcp(target: SocketAddr, may_be_fooled: bool, hurried: bool) -> Result<(), ProbeError> {
    let limit = if hurried { CONNECT_LIMIT } else { Duration::MAX };
    let connected = timeout(limit, TcpStream::connect(target)).await;
    let stream = match connected {
        Err(_) => return Err(ProbeError::NoWay(format!("{target} does not answer"))),
        Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => {
            return Err(ProbeError::Refused(error.to_string()));
        }
        Ok(Err(error)) => return Err(ProbeError::NoWay(error.to_string())),
        Ok(Ok(stream)) => stream,
    };
    if !may_be_fooled {
        return Ok(());
    }
    match timeout(STAYS_OPEN, stream.peek(&mut [0])).await {
        Ok(Ok(0)) => Err(ProbeError::Closed),
        Ok(Err(error)) => Err(ProbeError::Broken(error.to_string())),
        // It speaks first, or waits for us to speak.
        Ok(Ok(_)) | Err(_) => Ok(()),
    }
}

/// Whether an error of this kind comes when there is a connection, and no TLS on it: what TLS itself says is `Other`.
fn is_of_handshake(kind: io::ErrorKind) -> bool {
    use io::ErrorKind::{ConnectionReset, InvalidData, Other, UnexpectedEof};
    matches!(kind, Other | InvalidData | UnexpectedEof | ConnectionReset)
}

/// The innermost cause, since the outer ones only say that a request failed; and its kind, where it is one of the
/// system.
fn root_cause(error: &reqwest::Error) -> (String, Option<io::ErrorKind>) {
    let mut cause: &dyn std::error::Error = error;
    let mut kind = None;
    while let Some(inner) = cause.source() {
        cause = inner;
        kind = cause.downcast_ref::<io::Error>().map(innermost_kind).or(kind);
    }
    (cause.to_string(), kind)
}

/// An error of the system may be wrapped in another one, which does not name it as its source.
fn innermost_kind(error: &io::Error) -> io::ErrorKind {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<io::Error>());
    inner.map_or(error.kind(), innermost_kind)
}
