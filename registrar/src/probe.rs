//! Asks the application whether it answers. Edge: it opens connections, and judges nothing beyond one question.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use reqwest::{Client, StatusCode};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::config::Check;

/// How long a TCP connection must stay open to count as an answer: what accepts on behalf of an application that is
/// not there closes at once.
const STAYS_OPEN: Duration = Duration::from_millis(50);

/// Why there was no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProbeError {
    /// Nobody took the connection.
    #[error("no connection: {0}")]
    Connect(String),
    /// It took longer than the limit.
    #[error("no answer within {}", humantime::format_duration(*.0))]
    Timeout(Duration),
    /// The connection ended without an answer.
    #[error("the connection broke off: {0}")]
    Broken(String),
    /// The application says itself that it is not well.
    #[error("status {0}")]
    Status(StatusCode),
    /// The HTTP client cannot be made.
    #[error("no HTTP client can be made: {0}")]
    Client(String),
}

/// A question that can be asked again and again.
#[derive(Debug, Clone)]
pub struct Probe {
    target: Target,
    limit: Duration,
}

#[derive(Debug, Clone)]
enum Target {
    Http { client: Client, url: String },
    Tcp(SocketAddr),
}

impl Probe {
    /// A question to this port of 127.0.0.1: for [`Check::Http`] a GET of `path`.
    pub fn new(check: Check, port: u16, path: &str, limit: Duration) -> Result<Self, ProbeError> {
        let target = match check {
            Check::Tcp => Target::Tcp((Ipv4Addr::LOCALHOST, port).into()),
            Check::Http => {
                registry::store::use_ring();
                let client = Client::builder()
                    .no_proxy()
                    .redirect(reqwest::redirect::Policy::none())
                    .http1_only()
                    .pool_max_idle_per_host(0)
                    .tls_certs_only([])
                    .build()
                    .map_err(|error| ProbeError::Client(root_cause(&error)))?;
                Target::Http { client, url: format!("http://127.0.0.1:{port}{path}") }
            }
        };
        Ok(Self { target, limit })
    }

    /// Asks once. The connection is a new one each time: an application that takes no more connections is not well.
    pub async fn ask(&self) -> Result<(), ProbeError> {
        let question = async {
            match &self.target {
                Target::Http { client, url } => ask_http(client, url).await,
                Target::Tcp(address) => ask_tcp(*address).await,
            }
        };
        timeout(self.limit, question).await.unwrap_or(Err(ProbeError::Timeout(self.limit)))
    }
}

/// The headers are the answer; the body is not read.
async fn ask_http(client: &Client, url: &str) -> Result<(), ProbeError> {
    let response = client.get(url).send().await.map_err(|error| {
        let cause = root_cause(&error);
        if error.is_connect() { ProbeError::Connect(cause) } else { ProbeError::Broken(cause) }
    })?;
    let status = response.status();
    if status.is_server_error() || status.as_u16() >= 600 { Err(ProbeError::Status(status)) } else { Ok(()) }
}

async fn ask_tcp(address: SocketAddr) -> Result<(), ProbeError> {
    let stream = TcpStream::connect(address).await.map_err(|error| ProbeError::Connect(error.to_string()))?;
    match timeout(STAYS_OPEN, stream.peek(&mut [0])).await {
        Ok(Ok(0)) => Err(ProbeError::Broken("closed at once".to_owned())),
        Ok(Err(error)) => Err(ProbeError::Broken(error.to_string())),
        // It speaks first, or waits for us to speak.
        Ok(Ok(_)) | Err(_) => Ok(()),
    }
}

/// The innermost cause: the outer ones only say that a request failed.
fn root_cause(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}
