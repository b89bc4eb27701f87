//! Carries a request to one of several etcd members: limits, failover, and words for what went wrong.
//!
//! Edge: the only place of this crate that opens connections. What a reply means is the business of `v2` and `store`.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use reqwest::{Client, Method, Response, StatusCode};
use tokio::time::timeout;
use tracing::warn;
use url::Url;

use super::StoreError;
use super::v2::{self, Change, Refusal, Reply};

/// The limit on connecting. A member that is there accepts within a round trip.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// The largest reply that is read, except to a long poll: a listing of some 300,000 instances.
const REPLY_LIMIT: usize = 64 << 20;
/// The largest event that is read. etcd itself takes no request over 1.5 MB.
const EVENT_LIMIT: usize = 1 << 20;
/// How long an idle connection is kept. Longer than the pause between two refreshes at the default TTL.
const POOL_IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// Why a text is no list of etcd endpoints.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EndpointError {
    /// No endpoint at all.
    #[error("no etcd endpoint given; write http://10.0.0.1:2379,http://10.0.0.2:2379")]
    None,
    /// Not a URL of etcd.
    #[error("{text:?} is no etcd endpoint: {reason}; write {suggestion}")]
    Form {
        /// What was given.
        text: String,
        /// What is wrong with it.
        reason: &'static str,
        /// What may have been meant.
        suggestion: String,
    },
}

/// Reads a comma-separated list of etcd endpoints such as `http://10.0.0.1:2379,http://10.0.0.2:2379`.
///
/// # Errors
/// What is not `http://` or `https://` with a host and nothing after it is refused with the form that is right.
pub fn parse_endpoints(text: &str) -> Result<Vec<Url>, EndpointError> {
    let parts: Vec<&str> = text.split(',').map(str::trim).filter(|part| !part.is_empty()).collect();
    if parts.is_empty() {
        return Err(EndpointError::None);
    }
    parts.into_iter().map(parse_endpoint).collect()
}

/// etcd's endpoints as a flag takes them: at least one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointList(pub Vec<Url>);

impl std::str::FromStr for EndpointList {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, EndpointError> {
        parse_endpoints(text).map(Self)
    }
}

fn parse_endpoint(text: &str) -> Result<Url, EndpointError> {
    const EXAMPLE: &str = "http://10.0.0.1:2379";
    let refuse = |reason, suggestion| Err(EndpointError::Form { text: v2::shown(text), reason, suggestion });
    let Some((scheme, rest)) = text.split_once("://") else {
        let meant = format!("http://{text}");
        let works = Url::parse(&meant).is_ok_and(|url| url.host().is_some());
        return refuse("it has no scheme", if works { v2::shown(&meant) } else { EXAMPLE.to_owned() });
    };
    if !scheme.eq_ignore_ascii_case("http") && !scheme.eq_ignore_ascii_case("https") {
        return refuse("its scheme is neither http nor https", EXAMPLE.to_owned());
    }
    if rest.is_empty() || rest.starts_with('/') {
        return refuse("it has no host", EXAMPLE.to_owned());
    }
    let Ok(url) = Url::parse(text) else {
        return refuse("its host or port is not valid", EXAMPLE.to_owned());
    };
    if url.path() != "/" || url.query().is_some() || url.fragment().is_some() {
        return refuse("something follows host and port", url.origin().ascii_serialization());
    }
    Ok(url)
}

/// Makes ring the crypto provider of this process, once; later calls change nothing.
///
/// Every HTTP client of the project needs it before it is built: the TLS stack comes without a provider of its own.
pub fn use_ring() {
    // An error means that a provider is installed already.
    let _installed_before = rustls::crypto::ring::default_provider().install_default();
}

/// One request, without the endpoint.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) method: Method,
    /// The key or directory, absolute.
    pub(super) path: String,
    pub(super) query: Vec<(&'static str, String)>,
    pub(super) form: Vec<(&'static str, String)>,
    /// A long poll: the headers are the answer, the body comes when something happens.
    pub(super) wait: bool,
}

/// An endpoint's reply.
pub(super) struct Answer {
    /// Who gave it, fit for a message.
    pub(super) endpoint: String,
    pub(super) cluster_id: Option<String>,
    /// `X-Etcd-Index`.
    pub(super) index: u64,
    pub(super) content: Content,
    /// An earlier attempt may have carried the request out, and its reply was lost.
    pub(super) uncertain: bool,
}

pub(super) enum Content {
    /// It was done, or read.
    Change(Change),
    /// etcd says no.
    Refused(Refusal),
    /// The headers of a long poll that waits.
    Waiting(Response),
}

/// What is wrong with one endpoint.
struct Failure {
    what: String,
    progress: Progress,
}

/// How far a request that failed came.
#[derive(PartialEq)]
enum Progress {
    /// It cannot have reached etcd.
    NotSent,
    /// The connection ended before a reply began: a kept one may have been dead already.
    BrokeOff,
    /// It was sent.
    Sent,
}

impl Failure {
    fn after_sending(what: impl Into<String>) -> Self {
        Self { what: what.into(), progress: Progress::Sent }
    }
}

/// The members of one cluster.
#[derive(Debug)]
pub(super) struct Endpoints {
    client: Client,
    urls: Vec<Url>,
    request_timeout: Duration,
    /// Index of the one that answered last: it is asked first.
    preferred: AtomicUsize,
}

impl Endpoints {
    pub(super) fn new(urls: Vec<Url>, request_timeout: Duration) -> Result<Self, StoreError> {
        if urls.is_empty() {
            return Err(StoreError::Client(EndpointError::None.to_string()));
        }
        use_ring();
        let builder = Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT_TIMEOUT.min(request_timeout))
            .pool_idle_timeout(POOL_IDLE_TIMEOUT)
            .http1_only();
        let builder = if urls.iter().any(|url| url.scheme() == "https") {
            builder
        } else {
            // Without https no certificate is read, so that an image without CA certificates will do.
            builder.tls_certs_only([])
        };
        let client = builder.build().map_err(|error| {
            let hint = "for https endpoints the system's CA certificates are needed (package ca-certificates)";
            StoreError::Client(format!("{}; {hint}", root_cause(&error)))
        })?;
        Ok(Self { client, urls, request_timeout, preferred: AtomicUsize::new(0) })
    }

    /// The same members with another limit; the one that answered last is remembered.
    pub(super) fn with_request_timeout(&self, request_timeout: Duration) -> Self {
        let preferred = AtomicUsize::new(self.preferred.load(Ordering::Relaxed));
        Self { client: self.client.clone(), urls: self.urls.clone(), request_timeout, preferred }
    }

    /// Asks the endpoints in turn, beginning with the one that answered last, until one gives an answer. Each is asked
    /// once, and once more where the connection ended before a reply began.
    pub(super) async fn ask(&self, request: &Request) -> Result<Answer, StoreError> {
        let first = self.preferred.load(Ordering::Relaxed);
        let mut uncertain = false;
        let mut failures = Vec::new();
        for turn in 0..self.urls.len() {
            let at = (first + turn) % self.urls.len();
            let url = &self.urls[at];
            let mut attempt = timeout(self.request_timeout, self.attempt(url, request)).await;
            if matches!(&attempt, Ok(Err(failure)) if failure.progress == Progress::BrokeOff) {
                // The connection was kept from before etcd was restarted: that says nothing of the one that is there now.
                uncertain = true;
                attempt = timeout(self.request_timeout, self.attempt(url, request)).await;
            }
            let failure = match attempt {
                Ok(Ok(answer)) => {
                    if self.preferred.swap(at, Ordering::Relaxed) != at {
                        warn!(
                            endpoint = answer.endpoint,
                            failed = failures.join("; "),
                            "went on to another etcd endpoint"
                        );
                    }
                    return Ok(Answer { uncertain, ..answer });
                }
                Ok(Err(failure)) => failure,
                Err(_) => Failure::after_sending(format!("no answer within {:?}", self.request_timeout)),
            };
            uncertain |= failure.progress != Progress::NotSent;
            failures.push(format!("{}: {}", shown_endpoint(url), failure.what));
        }
        Err(StoreError::NoAnswer(failures.join("; ")))
    }

    async fn attempt(&self, endpoint: &Url, request: &Request) -> Result<Answer, Failure> {
        let url = v2::url(endpoint, &request.path, &request.query);
        let mut builder = self.client.request(request.method.clone(), url);
        if !request.form.is_empty() {
            builder = builder.form(&request.form);
        }
        let response = builder.send().await.map_err(|error| {
            let cause = root_cause(&error);
            if error.is_connect() {
                Failure { what: format!("cannot connect: {cause}"), progress: Progress::NotSent }
            } else {
                Failure { what: format!("broke off: {cause}"), progress: Progress::BrokeOff }
            }
        })?;
        let status = response.status();
        let header = |name| response.headers().get(name).and_then(|value| value.to_str().ok());
        let cluster_id = header("X-Etcd-Cluster-Id").map(v2::shown);
        let index = header("X-Etcd-Index").and_then(|value| value.parse().ok());
        let content = if request.wait && status == StatusCode::OK {
            Content::Waiting(response)
        } else {
            let body = read_all(response).await?;
            match v2::decode(status, &body).map_err(Failure::after_sending)? {
                Reply::Change(change) => Content::Change(change),
                Reply::Refused(refusal) => Content::Refused(refusal),
            }
        };
        let Some(index) = index else {
            return Err(Failure::after_sending("its reply has no X-Etcd-Index header; is that etcd?"));
        };
        Ok(Answer { endpoint: shown_endpoint(endpoint), cluster_id, index, content, uncertain: false })
    }

    /// Waits for the event of a long poll whose headers are there. `None` where none came within `patience`.
    pub(super) async fn await_change(
        &self,
        endpoint: &str,
        mut waiting: Response,
        patience: Duration,
    ) -> Result<Option<Change>, StoreError> {
        let broken = |what: String| StoreError::NoAnswer(format!("{endpoint}: {what}"));
        let mut body = Vec::new();
        loop {
            let limit = if body.is_empty() { patience } else { self.request_timeout };
            match timeout(limit, waiting.chunk()).await {
                Err(_) if body.is_empty() => return Ok(None),
                Err(_) => return Err(broken(format!("an event stood still half-way for {limit:?}"))),
                Ok(Err(error)) => return Err(broken(format!("a waiting poll broke off: {}", root_cause(&error)))),
                Ok(Ok(None)) if body.is_empty() => return Err(broken("ended a waiting poll with no event".into())),
                Ok(Ok(None)) => break,
                Ok(Ok(Some(chunk))) => body.extend_from_slice(&chunk),
            }
            if body.len() > EVENT_LIMIT {
                return Err(broken(format!("an event has more than {EVENT_LIMIT} bytes")));
            }
        }
        match v2::decode(StatusCode::OK, &body).map_err(broken)? {
            Reply::Change(change) => Ok(Some(change)),
            Reply::Refused(refusal) => Err(broken(refusal.message)),
        }
    }
}

/// Reads a whole reply, bounded; the limit on its time is the caller's.
async fn read_all(mut response: Response) -> Result<Vec<u8>, Failure> {
    let mut body = Vec::new();
    loop {
        match response.chunk().await {
            Ok(Some(chunk)) => body.extend_from_slice(&chunk),
            Ok(None) => return Ok(body),
            Err(error) => {
                return Err(Failure::after_sending(format!("its reply broke off: {}", root_cause(&error))));
            }
        }
        if body.len() > REPLY_LIMIT {
            return Err(Failure::after_sending(format!("its reply has more than {REPLY_LIMIT} bytes")));
        }
    }
}

/// An endpoint for a message: without user and password.
fn shown_endpoint(url: &Url) -> String {
    url.origin().ascii_serialization()
}

/// The innermost cause: the outer ones only say that a request failed.
fn root_cause(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    match cause.downcast_ref::<reqwest::Error>() {
        Some(error) if error.is_timeout() => "timed out".to_owned(),
        _ => v2::shown(&cause.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_a_comma_list_of_urls() {
        let urls = parse_endpoints("http://h1:2379, https://user:secret@h2:2379/,http://[::1]:4001").unwrap();
        let shown: Vec<_> = urls.iter().map(shown_endpoint).collect();
        assert_eq!(shown, ["http://h1:2379", "https://h2:2379", "http://[::1]:4001"]);
    }

    #[test]
    fn a_wrong_endpoint_is_refused_with_the_form_that_is_right() {
        let cases = [
            ("", "no etcd endpoint given"),
            (" , ", "no etcd endpoint given"),
            ("h1:2379", "no scheme; write http://h1:2379"),
            ("10.0.0.1", "no scheme; write http://10.0.0.1"),
            ("a b", "no scheme; write http://10.0.0.1:2379"),
            ("ftp://h1:2379", "neither http nor https"),
            ("unix:///run/etcd", "neither http nor https"),
            ("http://", "no host"),
            ("http:///v2", "no host"),
            ("http://h1:99999", "host or port is not valid"),
            ("http://h1:2379/v2/keys", "something follows host and port; write http://h1:2379"),
            ("http://h1:2379?a=b", "something follows"),
            ("http://h1:2379,h2:2379", "\"h2:2379\" is no etcd endpoint"),
        ];
        for (text, expected) in cases {
            let error = parse_endpoints(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text:?}: {error}");
        }
    }

    #[test]
    fn a_client_without_endpoints_is_not_built() {
        assert!(matches!(Endpoints::new(Vec::new(), Duration::from_secs(1)), Err(StoreError::Client(_))));
    }
}
