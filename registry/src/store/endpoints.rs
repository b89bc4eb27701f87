//! Carries a request to one of several etcd members: limits, failover, and words for what went wrong.
//!
//! Edge: the only place of this crate that opens connections. What a reply means is the business of `v2` and `v3`.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt as _};
use reqwest::header::CONTENT_TYPE;
use reqwest::{Client, Method, Response, StatusCode};
use tokio::time::{Instant, timeout, timeout_at};
use tracing::warn;
use url::Url;

use super::StoreError;

/// The limit on connecting. A member that is there accepts within a round trip.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// How long an endpoint may be silent before the next one is asked beside it. One that is well answers in milliseconds. What is
/// sent to a member whose leader has just died is lost with it, and it says so only after 7 s.
const PATIENCE: Duration = Duration::from_secs(1);
/// The largest reply that is read, except to a long poll of v2: a listing of some 300,000 instances.
pub(super) const REPLY_LIMIT: usize = 64 << 20;
/// How many characters of a foreign text go into a message.
const SHOWN_LIMIT: usize = 200;
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
    let refuse = |reason, suggestion| Err(EndpointError::Form { text: shown(text), reason, suggestion });
    let Some((scheme, rest)) = text.split_once("://") else {
        let meant = format!("http://{text}");
        let works = Url::parse(&meant).is_ok_and(|url| url.host().is_some());
        return refuse("it has no scheme", if works { shown(&meant) } else { EXAMPLE.to_owned() });
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
    /// The path, segment by segment, not yet encoded.
    pub(super) path: Vec<String>,
    pub(super) query: Vec<(&'static str, String)>,
    pub(super) body: Body,
    /// A long poll or a stream: the headers are the answer, the body comes when something happens.
    pub(super) stream: bool,
}

impl Request {
    fn url(&self, endpoint: &Url) -> Url {
        let mut url = endpoint.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.clear().extend(&self.path);
        }
        if !self.query.is_empty() {
            url.query_pairs_mut().extend_pairs(&self.query);
        }
        url
    }
}

/// What a request carries.
#[derive(Debug)]
pub(super) enum Body {
    Nothing,
    Form(Vec<(&'static str, String)>),
    Json(String),
}

/// What an endpoint sent.
pub(super) struct Reply {
    pub(super) status: StatusCode,
    /// `X-Etcd-Cluster-Id`.
    pub(super) cluster_id: Option<String>,
    /// `X-Etcd-Index`.
    pub(super) index: Option<u64>,
    pub(super) content: Content,
}

pub(super) enum Content {
    Whole(Vec<u8>),
    /// What has been asked for as a stream, and is one.
    Stream(Stream),
}

/// An endpoint's answer, as its reader understood it.
pub(super) struct Answer<T> {
    /// Who gave it, fit for a message.
    pub(super) endpoint: String,
    pub(super) value: T,
    /// An earlier attempt may have carried the request out, and its reply was lost.
    pub(super) uncertain: bool,
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

    /// The limit on one attempt at one endpoint.
    pub(super) fn request_timeout(&self) -> Duration {
        self.request_timeout
    }

    /// The same members with another limit; the one that answered last is remembered.
    pub(super) fn with_request_timeout(&self, request_timeout: Duration) -> Self {
        let preferred = AtomicUsize::new(self.preferred.load(Ordering::Relaxed));
        Self { client: self.client.clone(), urls: self.urls.clone(), request_timeout, preferred }
    }

    /// Asks the endpoints in turn, beginning with the one that answered last, until `read` understands an answer; what
    /// it cannot use it says in words. Each is asked once, and once more where the connection ended before a reply began.
    ///
    /// The next one is asked when one has failed, and beside one that is silent for [`PATIENCE`]; those that are still silent
    /// after all were asked, once more: each may have sent the request to a leader that had just died. It may be carried out
    /// more than once then, so that it must be one that does no harm the second time.
    pub(super) async fn ask<T>(
        &self,
        request: &Request,
        read: impl Fn(Reply) -> Result<T, String>,
    ) -> Result<Answer<T>, StoreError> {
        self.ask_with_patience(request, read, Some(PATIENCE)).await
    }

    /// [`Endpoints::ask`] for a request that must not be carried out a second time when the first one was answered: the
    /// next endpoint is asked when one has failed, which a silent one has after the limit on an attempt.
    pub(super) async fn ask_one_by_one<T>(
        &self,
        request: &Request,
        read: impl Fn(Reply) -> Result<T, String>,
    ) -> Result<Answer<T>, StoreError> {
        self.ask_with_patience(request, read, None).await
    }

    async fn ask_with_patience<T>(
        &self,
        request: &Request,
        read: impl Fn(Reply) -> Result<T, String>,
        patience: Option<Duration>,
    ) -> Result<Answer<T>, StoreError> {
        let first = self.preferred.load(Ordering::Relaxed);
        let count = self.urls.len();
        let rounds = if patience.is_some() && count > 1 { 2 } else { 1 };
        let mut turns = (0..rounds * count).map(|turn| (first + turn) % count);
        let mut asked = FuturesUnordered::new();
        let mut failures: Vec<(usize, Failure)> = Vec::new();
        loop {
            match turns.find(|at| failures.iter().all(|(failed, _)| failed != at)) {
                Some(at) => asked.push(self.ask_member(at, request, &read)),
                None if asked.is_empty() => break,
                None => {}
            }
            let next = async {
                match patience {
                    Some(patience) => timeout(patience, asked.next()).await.ok().flatten(),
                    None => asked.next().await,
                }
            };
            let Some((at, result)) = next.await else { continue };
            match result {
                Ok((value, asked_twice)) => {
                    let uncertain = asked_twice
                        || !asked.is_empty()
                        || failures.iter().any(|(_, failure)| failure.progress != Progress::NotSent);
                    let endpoint = shown_endpoint(&self.urls[at]);
                    if self.preferred.swap(at, Ordering::Relaxed) != at {
                        let silent = || format!("{}: no answer yet", shown_endpoint(&self.urls[first]));
                        let failed = if failures.is_empty() { silent() } else { self.in_words(&failures) };
                        warn!(endpoint, failed, "went on to another etcd endpoint");
                    }
                    return Ok(Answer { endpoint, value, uncertain });
                }
                Err(failure) => failures.push((at, failure)),
            }
        }
        Err(StoreError::NoAnswer(self.in_words(&failures)))
    }

    /// Asks one, and once more where the connection ended before a reply began. Says of an answer whether it was asked twice.
    async fn ask_member<T>(
        &self,
        at: usize,
        request: &Request,
        read: &impl Fn(Reply) -> Result<T, String>,
    ) -> (usize, Result<(T, bool), Failure>) {
        let url = &self.urls[at];
        let attempt = self.attempt(url, request, read).await;
        let result = if matches!(&attempt, Err(failure) if failure.progress == Progress::BrokeOff) {
            // The connection was kept from before etcd was restarted: that says nothing of the one that is there now.
            let again = self.attempt(url, request, read).await;
            again.map(|value| (value, true)).map_err(|failure| Failure::after_sending(failure.what))
        } else {
            attempt.map(|value| (value, false))
        };
        (at, result)
    }

    /// What is wrong with each, in the order of the endpoints.
    fn in_words(&self, failures: &[(usize, Failure)]) -> String {
        let mut failures: Vec<_> = failures.iter().collect();
        failures.sort_by_key(|(at, _)| *at);
        failures.dedup_by_key(|(at, _)| *at);
        let shown =
            failures.into_iter().map(|(at, failure)| format!("{}: {}", shown_endpoint(&self.urls[*at]), failure.what));
        shown.collect::<Vec<_>>().join("; ")
    }

    /// Asks every endpoint at once. Gives what came of each, with its name, as it comes: the first at once, and those
    /// that follow it within `grace`.
    pub(super) async fn ask_all<T>(
        &self,
        requests: &[Request],
        read: impl Fn(Vec<Reply>) -> Result<T, String>,
        grace: Duration,
    ) -> Vec<(String, Result<T, String>)> {
        let ask_one = async |url: &Url| {
            let mut replies = Vec::new();
            for request in requests {
                match self.attempt(url, request, &Ok).await {
                    Ok(reply) => replies.push(reply),
                    Err(failure) => return (shown_endpoint(url), Err(failure.what)),
                }
            }
            (shown_endpoint(url), read(replies))
        };
        let mut asked: FuturesUnordered<_> = self.urls.iter().map(ask_one).collect();
        let mut answers = Vec::new();
        let mut end = None;
        loop {
            let next = async {
                match end {
                    Some(end) => timeout_at(end, asked.next()).await.unwrap_or_default(),
                    None => asked.next().await,
                }
            };
            let Some((endpoint, answer)) = next.await else { return answers };
            if answer.is_ok() {
                end.get_or_insert_with(|| Instant::now() + grace);
            }
            answers.push((endpoint, answer));
        }
    }

    async fn attempt<T>(
        &self,
        endpoint: &Url,
        request: &Request,
        read: &impl Fn(Reply) -> Result<T, String>,
    ) -> Result<T, Failure> {
        let reply = timeout(self.request_timeout, self.send(endpoint, request)).await;
        let too_late = |_| Failure::after_sending(format!("no answer within {:?}", self.request_timeout));
        read(reply.map_err(too_late)??).map_err(Failure::after_sending)
    }

    async fn send(&self, endpoint: &Url, request: &Request) -> Result<Reply, Failure> {
        let builder = self.client.request(request.method.clone(), request.url(endpoint));
        let builder = match &request.body {
            Body::Nothing => builder,
            Body::Form(form) => builder.form(form),
            Body::Json(json) => builder.header(CONTENT_TYPE, "application/json").body(json.clone()),
        };
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
        let cluster_id = header("X-Etcd-Cluster-Id").map(shown);
        let index = header("X-Etcd-Index").and_then(|value| value.parse().ok());
        let content = if request.stream && status == StatusCode::OK {
            let endpoint = shown_endpoint(endpoint);
            Content::Stream(Stream { endpoint, response, buffer: Vec::new(), stall_limit: self.request_timeout })
        } else {
            Content::Whole(read_all(response).await?)
        };
        Ok(Reply { status, cluster_id, index, content })
    }
}

/// The body of a reply that goes on.
#[derive(Debug)]
pub(super) struct Stream {
    endpoint: String,
    response: Response,
    /// What has come and is not used yet.
    buffer: Vec<u8>,
    /// How long something that has begun to come may stand still.
    stall_limit: Duration,
}

impl Stream {
    /// Everything to the end. `None` where nothing has come within `patience`.
    pub(super) async fn whole(&mut self, patience: Duration, size_limit: usize) -> Result<Option<Vec<u8>>, StoreError> {
        loop {
            match self.more(patience, size_limit).await? {
                More::Came => {}
                More::Nothing if self.buffer.is_empty() => return Ok(None),
                More::Nothing => return Err(self.stalled()),
                More::End if self.buffer.is_empty() => return Err(self.broken("ended a waiting poll with no event")),
                More::End => return Ok(Some(std::mem::take(&mut self.buffer))),
            }
        }
    }

    /// The next line. `None` where nothing has come within `patience`.
    pub(super) async fn line(&mut self, patience: Duration, size_limit: usize) -> Result<Option<Vec<u8>>, StoreError> {
        let mut searched = 0;
        loop {
            if let Some(at) = self.buffer[searched..].iter().position(|byte| *byte == b'\n') {
                let rest = self.buffer.split_off(searched + at + 1);
                return Ok(Some(std::mem::replace(&mut self.buffer, rest)));
            }
            searched = self.buffer.len();
            match self.more(patience, size_limit).await? {
                More::Came => {}
                More::Nothing if self.buffer.is_empty() => return Ok(None),
                More::Nothing => return Err(self.stalled()),
                More::End => return Err(self.broken("ended a watch")),
            }
        }
    }

    async fn more(&mut self, patience: Duration, size_limit: usize) -> Result<More, StoreError> {
        let limit = if self.buffer.is_empty() { patience } else { self.stall_limit };
        match timeout(limit, self.response.chunk()).await {
            Err(_) => return Ok(More::Nothing),
            Ok(Err(error)) => return Err(self.broken(&format!("a waiting poll broke off: {}", root_cause(&error)))),
            Ok(Ok(None)) => return Ok(More::End),
            Ok(Ok(Some(chunk))) => self.buffer.extend_from_slice(&chunk),
        }
        if self.buffer.len() > size_limit {
            return Err(self.broken(&format!("an event has more than {size_limit} bytes")));
        }
        Ok(More::Came)
    }

    fn stalled(&self) -> StoreError {
        self.broken(&format!("an event stood still half-way for {:?}", self.stall_limit))
    }

    /// An error about the one who sends it.
    pub(super) fn broken(&self, what: &str) -> StoreError {
        StoreError::NoAnswer(format!("{}: {what}", self.endpoint))
    }
}

enum More {
    Came,
    Nothing,
    End,
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

/// A foreign text for a message: without control characters, and not too long.
pub(super) fn shown(text: &str) -> String {
    text.chars().take(SHOWN_LIMIT).map(|c| if c.is_control() { ' ' } else { c }).collect()
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
        _ => shown(&cause.to_string()),
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
    fn a_path_is_written_into_the_url_so_that_etcd_reads_the_same_key() {
        let endpoint = Url::parse("http://h1:2379").unwrap();
        let address = |segments: &[&str], query: &[(&'static str, String)]| {
            let path = segments.iter().map(|segment| (*segment).to_owned()).collect();
            let request =
                Request { method: Method::GET, path, query: query.to_vec(), body: Body::Nothing, stream: false };
            request.url(&endpoint).to_string()
        };
        let keys = |key: &str| address(&["v2", "keys", "service", key], &[]);
        assert_eq!(keys("10.0.0.1:80"), "http://h1:2379/v2/keys/service/10.0.0.1:80");
        assert_eq!(keys("[::1]:80"), "http://h1:2379/v2/keys/service/[::1]:80");
        assert_eq!(keys("a b/?#%"), "http://h1:2379/v2/keys/service/a%20b%2F%3F%23%25");
        assert_eq!(address(&["a"], &[("wait", "true".to_owned())]), "http://h1:2379/a?wait=true");
    }

    #[test]
    fn a_client_without_endpoints_is_not_built() {
        assert!(matches!(Endpoints::new(Vec::new(), Duration::from_secs(1)), Err(StoreError::Client(_))));
    }
}
