//! The discoverer's own API, asked from without: for `discoverer status` and `discoverer explain`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use observe::admin::{Address, Token};
use reqwest::header::AUTHORIZATION;
use reqwest::{Response, StatusCode};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::time::{Instant, sleep};

use crate::config::Flags;
use crate::report::{FiguresReport, Report, ServiceReport, Status, StatusReport};

/// The limit on one reply: one with 5000 instances takes a fraction of a second.
const LIMIT: Duration = Duration::from_secs(10);
/// The limit on connecting.
const CONNECT_LIMIT: Duration = Duration::from_secs(3);
/// The most bytes of a reply that are read: 10,000 instances are some 10 MB.
const MOST_BYTES: usize = 64 * 1024 * 1024;
/// So long HAProxy's own figures are waited for: the discoverer asks HAProxy only once somebody looks.
const LOOK_LIMIT: Duration = Duration::from_secs(3);
/// How often they are looked for.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// How many characters of a reply that is none are shown.
const SHOWN_LIMIT: usize = 200;

/// Why the discoverer does not tell.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// There is nothing to ask.
    #[error("the discoverer cannot be asked: --admin is off")]
    Off,
    /// Nobody answers.
    #[error("no discoverer answers at {at}: {error}")]
    Away {
        /// Where.
        at: String,
        /// What is wrong.
        error: String,
    },
    /// It wants a token, or another one.
    #[error("the discoverer at {at} does not let us in: {status}")]
    Locked {
        /// Where.
        at: String,
        /// Its answer.
        status: StatusCode,
        /// Whether a token was shown.
        has_token: bool,
        /// The environment variable that may hold it.
        variable: &'static str,
    },
    /// It has no picture yet.
    #[error("the discoverer at {at} has nothing to tell yet: {words}")]
    NotYet {
        /// Where.
        at: String,
        /// Its words.
        words: String,
    },
    /// What answers is no discoverer of this kind.
    #[error("what answers at {at} is no discoverer of this version: {error}")]
    Other {
        /// Where.
        at: String,
        /// What is wrong.
        error: String,
    },
}

impl ApiError {
    /// What to do.
    pub fn advice(&self) -> String {
        match self {
            Self::Off => "Give --admin as the discoverer has it (its default is 127.0.0.1:9401). Where that is off too, start it with one".to_owned(),
            Self::Away { .. } => "Does the discoverer run, and is this its host, or its container? Does it have the same --admin \
                                  (DISCOVERER_ADMIN), or `off`? Its log says where it listens"
                .to_owned(),
            Self::Locked { has_token: false, variable, .. } => {
                format!("Give its token: --admin-token-file, or the environment variable {variable}")
            }
            Self::Locked { variable, .. } => {
                format!("It has another token: see its own --admin-token-file or {variable}")
            }
            Self::NotYet { .. } => "It waits for etcd, for the template or for HAProxy: its log says for which".to_owned(),
            Self::Other { .. } => "Is --admin right? Program and daemon must be of one version".to_owned(),
        }
    }

    /// Whether the discoverer itself has answered.
    pub fn is_answer(&self) -> bool {
        matches!(self, Self::NotYet { .. })
    }
}

/// A way to a discoverer.
#[derive(Debug)]
pub struct Client {
    http: reqwest::Client,
    /// With no slash at its end.
    base: String,
    at: String,
    token: Option<Token>,
    variable: &'static str,
}

/// What `/api/v1/services` says, as far as it is used.
#[derive(Deserialize)]
struct Reply {
    version: u64,
    figures: FiguresReport,
    services: Vec<ServiceReport>,
}

/// What the API says where it does not tell.
#[derive(Deserialize)]
struct Failure {
    error: String,
}

impl Client {
    /// The way that the flags name; asks nobody.
    ///
    /// # Errors
    /// Outer: a token is given that is none. Inner: there is nothing to ask.
    pub fn new(flags: &Flags) -> anyhow::Result<Result<Self, ApiError>> {
        let token = flags.access()?.token;
        // The HTTP client is made with its TLS stack, though nobody speaks that here.
        registry::store::use_ring();
        let builder = reqwest::Client::builder().timeout(LIMIT).connect_timeout(CONNECT_LIMIT).no_proxy();
        let builder = builder.redirect(reqwest::redirect::Policy::none());
        let (builder, base) = match &flags.admin {
            Address::Off => return Ok(Err(ApiError::Off)),
            Address::Tcp(address) => (builder, format!("http://{}", reached_at(*address))),
            Address::Unix(path) => (builder.unix_socket(path.clone()), "http://localhost".to_owned()),
        };
        Ok(Ok(Self { http: builder.build()?, base, at: flags.admin.to_string(), token, variable: flags.secrets.token }))
    }

    /// All that the discoverer knows.
    ///
    /// # Errors
    /// It does not tell.
    pub async fn report(&self) -> Result<Report, ApiError> {
        self.report_when(|_| true).await
    }

    /// The same, with what HAProxy itself says where that can be had.
    ///
    /// # Errors
    /// It does not tell.
    pub async fn report_with_stats(&self) -> Result<Report, ApiError> {
        self.report_when(has_stats).await
    }

    /// The services may be told of a picture that is a moment older than the rest: they are asked for again until they are not,
    /// and all is there that is wanted; or the time is over.
    async fn report_when(&self, is_enough: impl Fn(&Reply) -> bool) -> Result<Report, ApiError> {
        let status: StatusReport = self.get("/api/v1/status").await?;
        let deadline = Instant::now() + LOOK_LIMIT;
        loop {
            let reply: Reply = self.get("/api/v1/services").await?;
            if (reply.version >= status.version && is_enough(&reply)) || deadline <= Instant::now() {
                return Ok(Report { status, services: reply.services });
            }
            sleep(LOOK_EVERY).await;
        }
    }

    /// What stands at a path, as JSON.
    ///
    /// # Errors
    /// It does not tell.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ApiError> {
        let mut request = self.http.get(format!("{}{path}", self.base));
        if let Some(token) = &self.token {
            request = request.header(AUTHORIZATION, token.authorization());
        }
        let away = |error: reqwest::Error| ApiError::Away { at: self.at.clone(), error: cause(&error) };
        let response = request.send().await.map_err(away)?;
        let status = response.status();
        let body = body(response).await.map_err(away)?;
        let (at, words) = (self.at.clone(), String::from_utf8_lossy(&body));
        let words = || {
            let said =
                serde_json::from_slice::<Failure>(&body).map_or_else(|_| words.into_owned(), |failure| failure.error);
            said.chars().take(SHOWN_LIMIT).collect::<String>()
        };
        match status {
            StatusCode::OK => {
                serde_json::from_slice(&body).map_err(|error| ApiError::Other { at, error: error.to_string() })
            }
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                Err(ApiError::Locked { at, status, has_token: self.token.is_some(), variable: self.variable })
            }
            StatusCode::SERVICE_UNAVAILABLE => Err(ApiError::NotYet { at, words: words() }),
            _ => Err(ApiError::Other { at, error: format!("{status} {}", words()) }),
        }
    }
}

/// Whether HAProxy's figures are there of what HAProxy has, or cannot be had.
fn has_stats(reply: &Reply) -> bool {
    let mut served = reply
        .services
        .iter()
        .flat_map(|service| &service.instances)
        .filter(|instance| matches!(instance.status, Status::Up | Status::Suspect | Status::Draining))
        .peekable();
    reply.figures == FiguresReport::Unknown
        || served.peek().is_none()
        || served.any(|instance| instance.haproxy.is_some())
}

/// Who listens at all addresses is reached at loopback.
pub(crate) fn reached_at(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

async fn body(mut response: Response) -> reqwest::Result<Vec<u8>> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        body.extend_from_slice(&chunk);
        if body.len() > MOST_BYTES {
            break;
        }
    }
    Ok(body)
}

/// The innermost cause: what the kernel says.
fn cause(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        return "it does not answer in time".to_owned();
    }
    let mut last: &dyn std::error::Error = error;
    while let Some(source) = last.source() {
        last = source;
    }
    last.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::explain::sample;

    #[test]
    fn who_listens_everywhere_is_asked_here() {
        for (given, expected) in
            [("0.0.0.0:1", "127.0.0.1:1"), ("[::]:1", "[::1]:1"), ("10.0.0.1:1", "10.0.0.1:1"), ("[::1]:1", "[::1]:1")]
        {
            assert_eq!(reached_at(given.parse().unwrap()).to_string(), expected);
        }
    }

    #[test]
    fn figures_are_waited_for_only_of_what_haproxy_has_and_where_they_can_be_had() {
        let figures = FiguresReport::Known;
        let mut reply = Reply { version: 1, figures, services: sample::report().services };
        assert!(has_stats(&reply));
        reply.services[0].instances[0].haproxy = None;
        assert!(!has_stats(&reply));
        for (figures, expected) in [(FiguresReport::Asked, false), (FiguresReport::Unknown, true)] {
            reply.figures = figures;
            assert_eq!(has_stats(&reply), expected, "{figures:?}");
        }
        reply.figures = FiguresReport::Asked;
        reply.services[0].instances[0].status = Status::Refused;
        assert!(has_stats(&reply));
        reply.services.clear();
        assert!(has_stats(&reply));
    }
}
