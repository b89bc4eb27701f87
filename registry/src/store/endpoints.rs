//! Carries a request to one of several etcd members: limits, failover, and words for what went wrong.
//!
//! Edge: the only place of this crate that opens connections. What a reply means is the business of `v2` and `v3`.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt as _};
use reqwest::header::CONTENT_TYPE;
use reqwest::{Method, Response, StatusCode};
use tokio::time::{Instant, timeout, timeout_at};
use tracing::warn;
use url::Url;

use super::api::Api;
use super::connector::{Connector, Current, Trust};
use super::login::{self, Authorization, Login};
use super::members::{self, Members};
use super::trouble::{self, Trouble, root_cause};
use super::{StoreError, StoreOptions};

/// How long an endpoint may be silent before the next one is asked beside it, as a rule. One that is well answers in milliseconds. What is
/// sent to a member whose leader has just died is lost with it, and it says so only after 7 s.
const PATIENCE: Duration = Duration::from_secs(1);
/// The largest reply that is read, except to a long poll of v2: a listing of some 150,000 instances.
pub(super) const REPLY_LIMIT: usize = 64 << 20;
/// What a reply, or a listing, has that is larger.
pub(super) const TOO_MUCH: &str =
    "more than 67108864 bytes, some 150,000 instances; is --key the directory of services?";
const _: () = assert!(REPLY_LIMIT == 67_108_864, "as it is said");
/// How many characters of a foreign text go into a message.
const SHOWN_LIMIT: usize = 200;
const EXAMPLE: &str = "http://10.0.0.1:2379";

/// Why a text is no list of etcd endpoints.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EndpointError {
    /// No endpoint at all.
    #[error("no etcd endpoint given; write http://10.0.0.1:2379,http://10.0.0.2:2379")]
    None,
    /// Not a URL of etcd.
    #[error("{text:?} is no etcd endpoint: {reason}; write {suggestion}")]
    Form {
        /// What was given, without user and password.
        text: String,
        /// What is wrong with it.
        reason: &'static str,
        /// What may have been meant.
        suggestion: String,
    },
}

impl EndpointError {
    fn without_text(self) -> Self {
        match self {
            Self::Form { reason, .. } => Self::Form { text: "...".to_owned(), reason, suggestion: EXAMPLE.to_owned() },
            Self::None => Self::None,
        }
    }
}

/// Reads a comma-separated list of etcd endpoints such as `http://10.0.0.1:2379,http://10.0.0.2:2379`.
///
/// # Errors
/// What is not `http://` or `https://` with a host and nothing after it, or `srv://` with a name that DNS has etcd's
/// endpoints for, is refused with the form that is right.
pub fn parse_endpoints(text: &str) -> Result<Vec<Url>, EndpointError> {
    let parts: Vec<&str> = text.split(',').map(str::trim).filter(|part| !part.is_empty()).collect();
    if parts.is_empty() {
        return Err(EndpointError::None);
    }
    let last_user = parts.iter().rposition(|part| part.contains('@'));
    let read = |(index, part)| {
        // A comma may have been meant to be in a password.
        let may_be_secret = last_user.is_some_and(|last| index < last);
        parse_endpoint(part).map_err(|error| if may_be_secret { error.without_text() } else { error })
    };
    parts.iter().copied().enumerate().map(read).collect()
}

/// An endpoint as somebody wrote it, for a message: without what may be a user and a password.
fn without_user(text: &str) -> String {
    let Some((user, host)) = text.rsplit_once('@') else { return shown(text) };
    let scheme = user.split_once("://").map(|(scheme, _)| format!("{scheme}://")).unwrap_or_default();
    shown(&format!("{scheme}...@{host}"))
}

/// etcd's endpoints as a flag takes them: at least one. What `Debug` prints has no passwords.
#[derive(Clone, PartialEq, Eq)]
pub struct EndpointList(pub Vec<Url>);

impl fmt::Debug for EndpointList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(shown_endpoint)).finish()
    }
}

impl EndpointList {
    /// The endpoints, fit for a message: without users and passwords.
    pub fn shown(&self) -> Vec<String> {
        self.0.iter().map(shown_endpoint).collect()
    }

    /// How many members there are to be asked; a name that DNS is asked for counts as three, as most clusters have.
    pub fn likely_members(&self) -> u32 {
        self.0.iter().map(|url| if members::is_name(url) { 3 } else { 1 }).sum()
    }
}

impl std::str::FromStr for EndpointList {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, EndpointError> {
        parse_endpoints(text).map(Self)
    }
}

fn parse_endpoint(text: &str) -> Result<Url, EndpointError> {
    let refuse = |reason, suggestion| Err(EndpointError::Form { text: without_user(text), reason, suggestion });
    let Some((scheme, rest)) = text.split_once("://") else {
        let meant = format!("http://{text}");
        let works = Url::parse(&meant).is_ok_and(|url| url.host().is_some());
        return refuse("it has no scheme", if works { without_user(&meant) } else { EXAMPLE.to_owned() });
    };
    if scheme.eq_ignore_ascii_case(members::SRV) {
        let name = members::host_name(rest).and_then(|name| Url::parse(&format!("{}://{name}", members::SRV)).ok());
        return name.map_or_else(|| refuse("it is no name that DNS may have", "srv://example.org".to_owned()), Ok);
    }
    if !scheme.eq_ignore_ascii_case("http") && !scheme.eq_ignore_ascii_case("https") {
        return refuse("its scheme is neither http nor https nor srv", EXAMPLE.to_owned());
    }
    if rest.is_empty() || rest.starts_with('/') {
        return refuse("it has no host", EXAMPLE.to_owned());
    }
    let Ok(url) = Url::parse(text) else {
        return refuse("its host or port is not valid", EXAMPLE.to_owned());
    };
    if url.path() != "/" || url.query().is_some() || url.fragment().is_some() {
        // What is taken for the host may be the beginning of a password.
        let meant = if text.contains('@') { EXAMPLE.to_owned() } else { url.origin().ascii_serialization() };
        return refuse("something follows host and port", meant);
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

impl Request {
    /// The API that it is of; `None` for what etcd tells everyone.
    fn api(&self) -> Option<Api> {
        match self.path.first().map(String::as_str) {
            Some("v2") => Some(Api::V2),
            Some("v3") => Some(Api::V3),
            _ => None,
        }
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
pub(super) struct Failure {
    pub(super) what: String,
    cause: Trouble,
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
    fn after_sending(cause: Trouble, what: impl Into<String>) -> Self {
        Self { what: what.into(), cause, progress: Progress::Sent }
    }
}

/// The members of one cluster, and what they are reached with. Clones know of each other which one answered last.
#[derive(Debug, Clone)]
pub(super) struct Endpoints {
    members: Arc<Members>,
    connector: Arc<Connector>,
    login: Arc<Login>,
    request_timeout: Duration,
    patience: Duration,
    /// Index of the one that is asked first: the one that answered last, or the one after it where that has failed or is
    /// silent since.
    preferred: Arc<AtomicUsize>,
}

impl Endpoints {
    pub(super) fn new(options: StoreOptions) -> Result<Self, StoreError> {
        let StoreOptions { endpoints, security, request_timeout, .. } = options;
        if endpoints.is_empty() {
            return Err(StoreError::Client(EndpointError::None.to_string()));
        }
        if let Some(endpoint) = endpoints.iter().find(|url| url.password().is_some()) {
            let endpoint = shown_endpoint(endpoint);
            warn!(
                endpoint,
                "the password in the endpoint is to be read where that was written: in a unit file, the shell's history, `docker inspect`; \
                 --etcd-user and --etcd-password-file keep it secret"
            );
        }
        let trust = match () {
            () if endpoints.iter().any(|url| url.scheme() == "https") => Trust::System,
            () if endpoints.iter().any(members::is_name) => Trust::SystemIfAny,
            () => Trust::Nobody,
        };
        let members = Arc::new(Members::new(endpoints, security.has_tls()));
        let connector = Arc::new(Connector::new(security, trust, request_timeout)?);
        Ok(Self {
            members,
            connector,
            login: Arc::default(),
            request_timeout,
            patience: PATIENCE,
            preferred: Arc::default(),
        })
    }

    /// The limit on one attempt at one endpoint.
    pub(super) fn request_timeout(&self) -> Duration {
        self.request_timeout
    }

    /// The same members with another limit.
    pub(super) fn with_request_timeout(&self, request_timeout: Duration) -> Self {
        Self { request_timeout, ..self.clone() }
    }

    /// The same members, where each may take so many times as long: the next one is asked when another request would have failed.
    pub(super) fn with_more_time(&self, times: u32) -> Self {
        Self {
            request_timeout: self.request_timeout.saturating_mul(times),
            patience: self.request_timeout,
            ..self.clone()
        }
    }

    /// Asks the endpoints in turn, beginning with the one that answered last, until `read` understands an answer; what
    /// it cannot use it says in words. Each is asked once, and once more where the connection ended before a reply began.
    ///
    /// The next one is asked when one has failed, and beside one that is silent for a while ([`PATIENCE`]); those that are still silent
    /// after all were asked, once more: each may have sent the request to a leader that had just died. It may be carried out
    /// more than once then, so that it must be one that does no harm the second time.
    pub(super) async fn ask<T>(
        &self,
        request: &Request,
        read: impl Fn(Reply) -> Result<T, String>,
    ) -> Result<Answer<T>, StoreError> {
        self.ask_with_patience(request, read, Some(self.patience)).await
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
        let members = self.members.now().await;
        let urls = &*members.urls;
        let count = urls.len();
        let rounds = if patience.is_some() && count > 1 { 2 } else { 1 };
        let mut turns = (0..rounds * count).map(|turn| (first + turn) % count);
        let mut asked = FuturesUnordered::new();
        let mut failures: Vec<(usize, Failure)> = Vec::new();
        let mut has_moved = false;
        loop {
            match turns.find(|at| failures.iter().all(|(failed, _)| failed != at)) {
                Some(at) => {
                    // Whoever asks meanwhile, or after this request was given up, does not wait for the silent one again.
                    has_moved |= at != first % count && self.prefer_instead_of(first, at);
                    asked.push(self.ask_member(at, &urls[at], request, &read));
                }
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
                    let endpoint = shown_endpoint(&urls[at]);
                    let is_news = self.preferred.swap(at, Ordering::Relaxed) != at;
                    if at != first % count && (is_news || has_moved) {
                        let silent = || format!("{}: no answer yet", shown_endpoint(&urls[first % count]));
                        let failed = if failures.is_empty() { silent() } else { in_words(urls, &failures).join("; ") };
                        warn!(endpoint, failed, "went on to another etcd endpoint");
                    }
                    return Ok(Answer { endpoint, value, uncertain });
                }
                Err(failure) => failures.push((at, failure)),
            }
        }
        self.members.none_answered();
        let mut words = in_words(urls, &failures);
        words.extend(members.trouble.iter().map(ToString::to_string));
        // Where no endpoint is known, it is a name that does not resolve.
        let cause = failures.iter().min_by_key(|(at, _)| *at).map_or(Trouble::Client, |(_, failure)| failure.cause);
        Err(StoreError::unanswered(words.join("; "), cause))
    }

    /// Lets requests begin with another endpoint than before. Says whether that was still to be done.
    fn prefer_instead_of(&self, before: usize, now: usize) -> bool {
        self.preferred.compare_exchange(before, now, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    /// Asks one, and once more where the connection ended before a reply began. Says of an answer whether it was asked twice.
    async fn ask_member<T>(
        &self,
        at: usize,
        url: &Url,
        request: &Request,
        read: &impl Fn(Reply) -> Result<T, String>,
    ) -> (usize, Result<(T, bool), Failure>) {
        let attempt = self.attempt(url, request, read).await;
        let result = if matches!(&attempt, Err(failure) if failure.progress == Progress::BrokeOff) {
            // The connection was kept from before etcd was restarted: that says nothing of the one that is there now.
            let again = self.attempt(url, request, read).await;
            again.map(|value| (value, true)).map_err(|failure| Failure::after_sending(failure.cause, failure.what))
        } else {
            attempt.map(|value| (value, false))
        };
        (at, result)
    }

    /// Asks every endpoint at once. Gives what came of each, with its name, as it comes: the first at once, and those
    /// that follow it within `grace`.
    pub(super) async fn ask_all<T>(
        &self,
        requests: &[Request],
        read: impl Fn(Vec<Reply>) -> Result<T, String>,
        grace: Duration,
    ) -> Vec<(String, Result<T, (Trouble, String)>)> {
        let ask_one = async |url: &Url| {
            let mut replies = Vec::new();
            for request in requests {
                match self.attempt(url, request, &Ok).await {
                    Ok(reply) => replies.push(reply),
                    Err(failure) => return (shown_endpoint(url), Err((failure.cause, failure.what))),
                }
            }
            (shown_endpoint(url), read(replies).map_err(|what| (Trouble::Answer, what)))
        };
        let members = self.members.now().await;
        let mut asked: FuturesUnordered<_> = members.urls.iter().map(ask_one).collect();
        let mut answers = Vec::new();
        let mut end = None;
        loop {
            let next = async {
                match end {
                    Some(end) => timeout_at(end, asked.next()).await.unwrap_or_default(),
                    None => asked.next().await,
                }
            };
            let Some((endpoint, answer)) = next.await else { break };
            if answer.is_ok() {
                end.get_or_insert_with(|| Instant::now() + grace);
            }
            answers.push((endpoint, answer));
        }
        if end.is_none() {
            self.members.none_answered();
        }
        answers.extend(
            members.trouble.iter().map(|trouble| (trouble.name.clone(), Err((Trouble::Client, trouble.what.clone())))),
        );
        answers
    }

    async fn attempt<T>(
        &self,
        endpoint: &Url,
        request: &Request,
        read: &impl Fn(Reply) -> Result<T, String>,
    ) -> Result<T, Failure> {
        let reply = timeout(self.request_timeout, self.send(endpoint, request)).await;
        let too_late =
            |_| Failure::after_sending(Trouble::Timeout, format!("no answer within {:?}", self.request_timeout));
        let reply = reply.map_err(too_late)??;
        let status = reply.status;
        read(reply).map_err(|what| {
            let user = login::user(&self.connector.current(), endpoint);
            let is_of_rights = matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN);
            let cause = if is_of_rights { Trouble::Refused } else { Trouble::Answer };
            Failure::after_sending(cause, what + &trouble::way_out(status, user.as_deref()))
        })
    }

    /// Sends it, with the user's word where there is a user, and once more where that is no longer valid.
    async fn send(&self, endpoint: &Url, request: &Request) -> Result<Reply, Failure> {
        let current = self.connector.current();
        let shown = self.authorization(&current, endpoint, request).await?;
        let reply = self.send_with(&current, endpoint, request, shown.as_ref()).await?;
        if !login::is_rejected(request.api(), &reply) || !self.login.rejected(shown.as_ref()) {
            return Ok(reply);
        }
        let shown = self.authorization(&current, endpoint, request).await?;
        self.send_with(&current, endpoint, request, shown.as_ref()).await
    }

    async fn authorization(
        &self,
        current: &Current,
        endpoint: &Url,
        request: &Request,
    ) -> Result<Option<Authorization>, Failure> {
        let Some(api) = request.api() else { return Ok(None) };
        self.login
            .authorization(current, endpoint, api)
            .await
            .map_err(|what| Failure::after_sending(Trouble::Refused, what))
    }

    async fn send_with(
        &self,
        current: &Current,
        endpoint: &Url,
        request: &Request,
        shown_login: Option<&Authorization>,
    ) -> Result<Reply, Failure> {
        let builder = current.client.request(request.method.clone(), request.url(&login::without_login(endpoint)));
        let builder = match shown_login {
            Some(authorization) => authorization.add(builder),
            None => builder,
        };
        let builder = match &request.body {
            Body::Nothing => builder,
            Body::Form(form) => builder.form(form),
            Body::Json(json) => builder.header(CONTENT_TYPE, "application/json").body(json.clone()),
        };
        let response = builder.send().await.map_err(|error| {
            let (cause, is_tls) = trouble::of_connection(&error, endpoint, self.connector.security());
            if error.is_connect() || is_tls {
                let kind = if is_tls { Trouble::Tls } else { Trouble::Connect };
                Failure { what: format!("cannot connect: {cause}"), cause: kind, progress: Progress::NotSent }
            } else {
                Failure { what: format!("broke off: {cause}"), cause: Trouble::BrokeOff, progress: Progress::BrokeOff }
            }
        })?;
        let status = response.status();
        let header = |name| response.headers().get(name).and_then(|value| value.to_str().ok());
        let cluster_id = header("X-Etcd-Cluster-Id").map(shown);
        let index = header("X-Etcd-Index").and_then(|value| value.parse().ok());
        let content = if request.stream && status == StatusCode::OK {
            let endpoint = shown_endpoint(endpoint);
            Content::Stream(Stream { endpoint, response, buffer: Buffer::default(), stall_limit: self.request_timeout })
        } else {
            Content::Whole(read_all(response).await?)
        };
        Ok(Reply { status, cluster_id, index, content })
    }
}

/// What is wrong with each, in the order of the endpoints.
fn in_words(urls: &[Url], failures: &[(usize, Failure)]) -> Vec<String> {
    let mut failures: Vec<_> = failures.iter().collect();
    failures.sort_by_key(|(at, _)| *at);
    failures.dedup_by_key(|(at, _)| *at);
    failures.into_iter().map(|(at, failure)| format!("{}: {}", shown_endpoint(&urls[*at]), failure.what)).collect()
}

/// The body of a reply that goes on.
#[derive(Debug)]
pub(super) struct Stream {
    endpoint: String,
    response: Response,
    buffer: Buffer,
    /// How long something that has begun to come may stand still.
    stall_limit: Duration,
}

impl Stream {
    /// Everything to the end. `None` where nothing has come within `patience`.
    pub(super) async fn whole(&mut self, patience: Duration, size_limit: usize) -> Result<Option<Vec<u8>>, StoreError> {
        loop {
            match self.more(patience, size_limit).await? {
                More::Came => {}
                More::Nothing if self.buffer.bytes.is_empty() => return Ok(None),
                More::Nothing => return Err(self.stalled()),
                More::End if self.buffer.bytes.is_empty() => {
                    return Err(self.broken_by(Trouble::BrokeOff, "ended a waiting poll with no event"));
                }
                More::End => return Ok(Some(std::mem::take(&mut self.buffer).bytes)),
            }
        }
    }

    /// The next line. `None` where nothing has come within `patience`.
    pub(super) async fn line(&mut self, patience: Duration, size_limit: usize) -> Result<Option<Vec<u8>>, StoreError> {
        loop {
            if let Some(line) = self.buffer.line() {
                return Ok(Some(line));
            }
            match self.more(patience, size_limit).await? {
                More::Came => {}
                More::Nothing if self.buffer.bytes.is_empty() => return Ok(None),
                More::Nothing => return Err(self.stalled()),
                More::End => return Err(self.broken_by(Trouble::BrokeOff, "ended a watch")),
            }
        }
    }

    async fn more(&mut self, patience: Duration, size_limit: usize) -> Result<More, StoreError> {
        let limit = if self.buffer.bytes.is_empty() { patience } else { self.stall_limit };
        match timeout(limit, self.response.chunk()).await {
            Err(_) => return Ok(More::Nothing),
            Ok(Err(error)) => {
                return Err(
                    self.broken_by(Trouble::BrokeOff, &format!("a waiting poll broke off: {}", root_cause(&error)))
                );
            }
            Ok(Ok(None)) => return Ok(More::End),
            Ok(Ok(Some(chunk))) => self.buffer.bytes.extend_from_slice(&chunk),
        }
        if self.buffer.bytes.len() > size_limit {
            return Err(self.broken_by(Trouble::Answer, &format!("an event has more than {size_limit} bytes")));
        }
        Ok(More::Came)
    }

    fn stalled(&self) -> StoreError {
        self.broken_by(Trouble::Timeout, &format!("an event stood still half-way for {:?}", self.stall_limit))
    }

    /// An error about what it sent.
    pub(super) fn broken(&self, what: &str) -> StoreError {
        self.broken_by(Trouble::Answer, what)
    }

    fn broken_by(&self, cause: Trouble, what: &str) -> StoreError {
        StoreError::unanswered(format!("{}: {what}", self.endpoint), cause)
    }
}

/// What has come of a stream and is not used yet.
#[derive(Debug, Default)]
struct Buffer {
    bytes: Vec<u8>,
    /// So many of them are in no whole line.
    searched: usize,
}

impl Buffer {
    /// Takes out the first line that has come whole, with its line feed.
    fn line(&mut self) -> Option<Vec<u8>> {
        let Some(at) = self.bytes[self.searched..].iter().position(|byte| *byte == b'\n') else {
            self.searched = self.bytes.len();
            return None;
        };
        let rest = self.bytes.split_off(self.searched + at + 1);
        self.searched = 0;
        Some(std::mem::replace(&mut self.bytes, rest))
    }
}

/// The lines of a stream that comes in these pieces, and what is left when it ends.
#[cfg(feature = "fuzz")]
pub(crate) fn lines_of<'p>(pieces: impl IntoIterator<Item = &'p [u8]>) -> (Vec<Vec<u8>>, Vec<u8>) {
    let (mut buffer, mut lines) = (Buffer::default(), Vec::new());
    for piece in pieces {
        buffer.bytes.extend_from_slice(piece);
        lines.extend(std::iter::from_fn(|| buffer.line()));
    }
    (lines, buffer.bytes)
}

enum More {
    Came,
    Nothing,
    End,
}

/// Reads a whole reply, bounded; the limit on its time is the caller's.
pub(super) async fn read_all(mut response: Response) -> Result<Vec<u8>, Failure> {
    let mut body = Vec::new();
    loop {
        match response.chunk().await {
            Ok(Some(chunk)) => body.extend_from_slice(&chunk),
            Ok(None) => return Ok(body),
            Err(error) => {
                return Err(Failure::after_sending(
                    Trouble::BrokeOff,
                    format!("its reply broke off: {}", root_cause(&error)),
                ));
            }
        }
        if body.len() > REPLY_LIMIT {
            return Err(Failure::after_sending(Trouble::Answer, format!("its reply has {TOO_MUCH}")));
        }
    }
}

/// A foreign text for a message: without control characters, and not too long.
pub(super) fn shown(text: &str) -> String {
    text.chars().take(SHOWN_LIMIT).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// An endpoint for a message: without user and password.
pub(super) fn shown_endpoint(url: &Url) -> String {
    if members::is_name(url) { url.to_string() } else { url.origin().ascii_serialization() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_a_comma_list_of_urls() {
        let urls = parse_endpoints("http://h1:2379, https://user:secret@h2:2379/,http://[::1]:4001,SRV://example.org.")
            .unwrap();
        let shown: Vec<_> = urls.iter().map(shown_endpoint).collect();
        assert_eq!(shown, ["http://h1:2379", "https://h2:2379", "http://[::1]:4001", "srv://example.org"]);
    }

    #[test]
    fn what_is_wrong_with_an_endpoint_is_said_without_its_password() {
        let cases = [
            ("http://u:secret@h:2379:99", "http://...@h:2379:99"),
            ("u:secret@h:2379", "http://...@h:2379"),
            ("ftp://u:secret@h", "ftp://...@h"),
            ("http://u:sec,ret@h:2379", "..."),
            ("http://u:s@cret@h:0x1", "http://...@h:0x1"),
            ("http://good:2379,htp://u:secret@h", "htp://...@h"),
            ("http://secret/x@h", "write http://10.0.0.1:2379"),
        ];
        for (text, shown) in cases {
            let said = parse_endpoints(text).unwrap_err().to_string();
            assert!(said.contains(shown) && !said.contains("sec") && !said.contains("cret"), "{text}: {said}");
        }
    }

    #[test]
    fn a_wrong_endpoint_is_refused_with_the_form_that_is_right() {
        let cases = [
            ("", "no etcd endpoint given"),
            (" , ", "no etcd endpoint given"),
            ("h1:2379", "no scheme; write http://h1:2379"),
            ("10.0.0.1", "no scheme; write http://10.0.0.1"),
            ("a b", "no scheme; write http://10.0.0.1:2379"),
            ("ftp://h1:2379", "neither http nor https nor srv"),
            ("srv://", "no name that DNS may have; write srv://example.org"),
            ("srv://example.org:2379", "no name that DNS may have"),
            ("srv://user:secret@example.org", "no name that DNS may have"),
            ("srv://example.org/", "no name that DNS may have"),
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
        assert!(matches!(Endpoints::new(StoreOptions::new(Vec::new())), Err(StoreError::Client(_))));
    }
}
