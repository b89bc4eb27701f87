//! The wire of etcd's v3 API as its HTTP/JSON gateway speaks it: requests as values, replies into types. Pure: no I/O, no
//! clock.
//!
//! Source: etcd 3.4, "gRPC gateway" and api/etcdserverpb/rpc.proto. The gateway writes bytes as base64, 64-bit numbers as
//! strings, and leaves out what is empty or zero; the replies in `tests/fixtures` were recorded from it.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use reqwest::{Method, StatusCode};
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};

use crate::store::endpoints::{Body, Request, shown};
use crate::store::trouble::{a_web_page, is_web_page};
use crate::store::{Entry, Ownership, whole_seconds};

/// gRPC status: the deadline passed. Another member may be faster.
const DEADLINE_EXCEEDED: u32 = 4;
/// gRPC status: not found; of a lease.
const NOT_FOUND: u32 = 5;
/// gRPC status: the user has no role for that.
const PERMISSION_DENIED: u32 = 7;
/// gRPC status: out of range; of a revision.
const OUT_OF_RANGE: u32 = 11;
/// gRPC status: a quota is used up, or the member has too much to do.
const RESOURCE_EXHAUSTED: u32 = 8;
/// gRPC status: the member cannot do it now, such as without a leader.
const UNAVAILABLE: u32 = 14;
/// gRPC status: the token is not valid, or there is none.
pub(super) const UNAUTHENTICATED: u32 = 16;

/// A number of 64 bits, which the gateway writes as a string.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Number(pub(super) u64);

/// How numbers come.
#[derive(Deserialize)]
#[serde(untagged)]
enum Form {
    Number(i64),
    Text(String),
}

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Form::deserialize(deserializer)? {
            Form::Number(number) => number.try_into().map(Self).map_err(D::Error::custom),
            Form::Text(text) => text.parse().map(Self).map_err(D::Error::custom),
        }
    }
}

/// What is left of a lease. None where it is gone, which etcd writes as -1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Seconds(pub(super) Option<u64>);

impl Default for Seconds {
    fn default() -> Self {
        Self(Some(0))
    }
}

impl<'de> Deserialize<'de> for Seconds {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Form::deserialize(deserializer)? {
            Form::Number(number) => Ok(Self(number.try_into().ok())),
            Form::Text(text) if text.starts_with('-') => Ok(Self(None)),
            Form::Text(text) => text.parse().map(|seconds| Self(Some(seconds))).map_err(D::Error::custom),
        }
    }
}

/// A text, which the gateway writes as base64. What is no UTF-8 is no key and no value of ours either way.
fn text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    Key::deserialize(deserializer).map(|read| read.text)
}

/// A key's name.
#[derive(Debug)]
pub(super) struct Key {
    pub(super) text: String,
    /// As it came, where that is no text.
    raw: Option<Vec<u8>>,
}

impl Key {
    fn new(bytes: Vec<u8>) -> Self {
        match String::from_utf8(bytes) {
            Ok(text) => Self { text, raw: None },
            Err(error) => {
                Self { text: String::from_utf8_lossy(error.as_bytes()).into_owned(), raw: Some(error.into_bytes()) }
            }
        }
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        self.raw.as_deref().unwrap_or(self.text.as_bytes())
    }
}

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let encoded = String::deserialize(deserializer)?;
        BASE64.decode(&encoded).map(Self::new).map_err(D::Error::custom)
    }
}

/// Who answered, and when.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(default)]
pub(super) struct Header {
    pub(super) cluster_id: Number,
    pub(super) revision: Number,
}

#[cfg(test)]
impl Header {
    pub(super) fn made_up(cluster: u64, revision: u64) -> Self {
        Self { cluster_id: Number(cluster), revision: Number(revision) }
    }
}

/// What each reply of etcd's begins with. JSON without it is somebody else's: all its other parts may be left out, so that `{}` would
/// be a directory with nothing in it.
pub(super) trait Headed: DeserializeOwned {
    fn header(&self) -> Header;
}

macro_rules! headed {
    ($($answer:ident)*) => {$(
        impl Headed for $answer {
            fn header(&self) -> Header {
                self.header
            }
        }
    )*};
}

headed!(Answered TxnAnswered LeaseAnswered Watched);

/// A key with its value.
#[derive(Debug, Deserialize)]
pub(super) struct KeyValue {
    pub(super) key: Key,
    #[serde(default, deserialize_with = "text")]
    value: String,
    #[serde(default)]
    create_revision: Number,
    #[serde(default)]
    pub(super) mod_revision: Number,
    #[serde(default)]
    pub(super) lease: Number,
}

#[cfg(test)]
impl KeyValue {
    pub(super) fn made_up(key: &[u8]) -> Self {
        let (key, number) = (Key::new(key.to_vec()), Number::default());
        Self { key, value: String::new(), create_revision: number, mod_revision: number, lease: number }
    }
}

impl KeyValue {
    pub(super) fn into_entry(self) -> Entry {
        let ownership = Ownership {
            created_index: self.create_revision.0,
            modified_index: self.mod_revision.0,
            lease: self.lease.0,
        };
        Entry { path: self.key.text, value: self.value, ttl: None, ownership }
    }
}

/// The answer to a range, a put or a deletion; each uses a part.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Answered {
    pub(super) header: Header,
    pub(super) kvs: Vec<KeyValue>,
    /// There are more keys than were asked for at once.
    pub(super) more: bool,
}

/// The answer to a transaction.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct TxnAnswered {
    pub(super) header: Header,
    pub(super) succeeded: bool,
    pub(super) responses: Vec<OpAnswered>,
}

impl TxnAnswered {
    /// What the ranges of the transaction read, in their order.
    pub(super) fn read(self) -> impl Iterator<Item = Option<Entry>> {
        let ranges = self.responses.into_iter().filter_map(|response| response.response_range);
        ranges.map(|range| range.kvs.into_iter().next().map(KeyValue::into_entry))
    }
}

/// The answer to one operation of a transaction.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct OpAnswered {
    response_range: Option<Answered>,
}

/// What is known of a lease.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct LeaseAnswered {
    header: Header,
    #[serde(rename = "ID")]
    pub(super) id: Number,
    /// In seconds, 0 in its last one.
    #[serde(rename = "TTL")]
    pub(super) ttl: Seconds,
    /// What it keeps, where that was asked for.
    pub(super) keys: Vec<Text>,
}

/// A text by itself.
#[derive(Debug, Deserialize)]
pub(super) struct Text(#[serde(deserialize_with = "text")] pub(super) String);

/// A message of a stream.
#[derive(Debug, Deserialize)]
struct Message<T> {
    result: Option<T>,
    error: Option<ErrorBody>,
}

/// What a watch tells.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Watched {
    pub(super) header: Header,
    pub(super) created: bool,
    pub(super) canceled: bool,
    pub(super) compact_revision: Number,
    cancel_reason: String,
    pub(super) events: Vec<WatchEvent>,
}

impl Watched {
    /// Why etcd ended the watch, fit for a message.
    pub(super) fn cancel_reason(&self) -> String {
        if self.cancel_reason.is_empty() { "without a reason".to_owned() } else { shown(&self.cancel_reason) }
    }
}

/// One change.
#[derive(Debug, Deserialize)]
pub(super) struct WatchEvent {
    #[serde(rename = "type", default)]
    kind: EventKind,
    pub(super) kv: KeyValue,
    /// What was there before.
    pub(super) prev_kv: Option<KeyValue>,
}

impl WatchEvent {
    pub(super) fn is_removal(&self) -> bool {
        self.kind == EventKind::Delete
    }

    /// The lease that kept what was there before; 0 for none.
    pub(super) fn former_lease(&self) -> u64 {
        self.prev_kv.as_ref().map_or(0, |before| before.lease.0)
    }
}

#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
enum EventKind {
    #[default]
    Put,
    Delete,
}

/// etcd's no.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    /// gRPC's status.
    code: u32,
    /// Its words, fit for a message.
    pub(super) message: String,
}

impl Refusal {
    /// The lease that was named is gone.
    pub(super) fn is_lease_gone(&self) -> bool {
        self.code == NOT_FOUND && self.message.contains("lease not found")
    }

    /// What was asked for is of a revision to which this member has not come yet; or of an etcd that was wiped since.
    pub(super) fn is_revision_ahead(&self) -> bool {
        self.is_revision_gone() && self.message.contains("future revision")
    }

    /// What was asked for is of a revision that is not there: compacted since, or of an etcd that was wiped since.
    pub(super) fn is_revision_gone(&self) -> bool {
        self.code == OUT_OF_RANGE && self.message.contains("required revision")
    }
}

/// A reply that is etcd's.
#[derive(Debug)]
pub(super) enum Said<T> {
    Done(T),
    Refused(Refusal),
}

#[derive(Debug, Deserialize)]
struct ErrorBody {
    #[serde(alias = "grpc_code")]
    code: u32,
    message: String,
}

impl ErrorBody {
    /// etcd's no, or, as a text, an error that another member may not have.
    fn read(self) -> Result<Refusal, String> {
        let message = shown(&self.message);
        let is_full = message.contains("space exceeded");
        match self.code {
            RESOURCE_EXHAUSTED if is_full => {
                let hint = "etcd's database is full: compact and defragment it, then `etcdctl alarm disarm`";
                Ok(Refusal { code: self.code, message: format!("{message}; {hint}") })
            }
            PERMISSION_DENIED => Err(format!("{message}; no role of the user allows that there (docs/etcd.md)")),
            // etcd's word for a request without a token (ErrUserEmpty).
            _ if message.contains("user name is empty") => {
                Err(format!("{message}; it wants a user: --etcd-user and --etcd-password-file (docs/etcd.md)"))
            }
            UNAUTHENTICATED | UNAVAILABLE | DEADLINE_EXCEEDED | RESOURCE_EXHAUSTED => Err(message),
            // Unknown, aborted, internal, data loss: trouble of that member's own.
            2 | 10 | 13 | 15 => Err(message),
            code => Ok(Refusal { code, message }),
        }
    }
}

/// Reads a whole reply.
///
/// # Errors
/// A text that says what is wrong, for what is not etcd's, and for the errors that another member may not have.
pub(super) fn decode<T: Headed>(status: StatusCode, body: &[u8]) -> Result<Said<T>, String> {
    if is_web_page(body) {
        return Err(a_web_page(status));
    }
    if status.is_success() {
        let value = from_json(body).and_then(with_header);
        return value.map(Said::Done).map_err(|error| format!("answered {status} with {error}"));
    }
    let Ok(error) = serde_json::from_slice::<ErrorBody>(body) else {
        return Err(match status {
            StatusCode::NOT_FOUND => {
                format!(
                    "answered {status} without etcd's JSON: it does not serve etcd's v3 API (etcd 3.4 and later do)"
                )
            }
            _ => format!("answered {status} without etcd's JSON: {:?}", shown(&String::from_utf8_lossy(body))),
        });
    };
    error.read().map(Said::Refused).map_err(|message| format!("answered {status}: {message}"))
}

/// Reads one message of a stream.
///
/// # Errors
/// As [`decode`]; etcd's no comes as a text too: it ends the stream.
pub(super) fn decode_message<T: Headed>(line: &[u8]) -> Result<T, String> {
    let message: Message<T> = from_json(line)?;
    match (message.result, message.error) {
        (Some(result), None) => with_header(result),
        (_, Some(error)) => Err(error.read().map_or_else(|message| message, |refusal| refusal.message)),
        (None, None) => Err("a message with neither result nor error".to_owned()),
    }
}

fn with_header<T: Headed>(value: T) -> Result<T, String> {
    match value.header().cluster_id.0 {
        0 => Err("JSON without etcd's header; is that etcd?".to_owned()),
        _ => Ok(value),
    }
}

fn from_json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    serde_json::from_slice(bytes).map_err(|error| format!("what is not etcd's JSON: {}", shown(&error.to_string())))
}

/// Reads the keys that begin with `all`, from one on: at most so many, as they were at a revision; without one, as they are. A
/// member that has come as far as the revision tells by itself, with a leader or without; `of_the_newest` has it come as far as the
/// others before it answers.
pub(super) fn page(from: &[u8], all: &str, limit: u32, revision: Option<u64>, of_the_newest: bool) -> Request {
    let mut range = json!({"key": BASE64.encode(from), "range_end": end(all), "limit": limit.to_string()});
    if let Some(revision) = revision {
        range["revision"] = revision.to_string().into();
        range["serializable"] = (!of_the_newest).into();
    }
    request("kv/range", &range)
}

pub(super) fn get(key: &str) -> Request {
    request("kv/range", &json!({"key": bytes(key)}))
}

pub(super) fn put(key: &str, value: &str, lease: u64) -> Request {
    request("kv/put", &put_op(key, value, lease))
}

/// A condition of a transaction on one key.
pub(super) enum Compare {
    /// There is no such key.
    IsAbsent,
    /// It was last written at this revision.
    ModifiedAt(u64),
}

/// What a transaction does to one key.
pub(super) enum Op<'a> {
    Put {
        value: &'a str,
        lease: u64,
    },
    /// Changes the value and leaves the key its lease.
    Amend {
        value: &'a str,
    },
    /// Ties the key to another lease and leaves its value.
    Tie {
        lease: u64,
    },
    Delete,
    /// Nothing: the conditions are all that is asked for.
    Nothing,
}

/// One step of a transaction: what must hold of the key, and what is done then.
pub(super) struct Step<'a> {
    pub(super) key: &'a str,
    pub(super) compare: Compare,
    pub(super) then: Op<'a>,
}

/// All steps or none: where one condition does not hold, each key is read instead.
pub(super) fn txn(steps: &[Step<'_>]) -> Request {
    let reads: Vec<Value> = steps.iter().map(|step| json!({"request_range": {"key": bytes(step.key)}})).collect();
    txn_or(steps, &reads)
}

/// As [`txn`], but no key is read where one condition does not hold: of 100 keys that saves etcd two fifths of its time. One is
/// counted: a transaction that neither writes nor reads is answered by a member alone, from what it has (etcd's `isTxnSerializable`).
pub(super) fn txn_or_nothing(steps: &[Step<'_>]) -> Request {
    let counted = steps.first().map(|step| json!({"request_range": {"key": bytes(step.key), "count_only": true}}));
    txn_or(steps, counted.as_slice())
}

fn txn_or(steps: &[Step<'_>], otherwise: &[Value]) -> Request {
    let compares: Vec<Value> = steps
        .iter()
        .map(|step| match step.compare {
            Compare::IsAbsent => {
                json!({"result": "EQUAL", "target": "CREATE", "key": bytes(step.key), "create_revision": "0"})
            }
            Compare::ModifiedAt(revision) => {
                json!({"result": "EQUAL", "target": "MOD", "key": bytes(step.key), "mod_revision": revision.to_string()})
            }
        })
        .collect();
    let then: Vec<Value> = steps
        .iter()
        .filter_map(|step| match step.then {
            Op::Put { value, lease } => Some(json!({"request_put": put_op(step.key, value, lease)})),
            Op::Amend { value } => Some(json!({"request_put": {
                "key": bytes(step.key), "value": bytes(value), "ignore_lease": true
            }})),
            Op::Tie { lease } => Some(json!({"request_put": {
                "key": bytes(step.key), "lease": lease.to_string(), "ignore_value": true
            }})),
            Op::Delete => Some(json!({"request_delete_range": {"key": bytes(step.key)}})),
            Op::Nothing => None,
        })
        .collect();
    request("kv/txn", &json!({"compare": compares, "success": then, "failure": otherwise}))
}

pub(super) fn grant(ttl: Duration) -> Request {
    request("lease/grant", &json!({"TTL": whole_seconds(ttl).to_string()}))
}

pub(super) fn keep_alive(lease: u64) -> Request {
    request("lease/keepalive", &json!({"ID": lease.to_string()}))
}

pub(super) fn revoke(lease: u64) -> Request {
    request("lease/revoke", &json!({"ID": lease.to_string()}))
}

pub(super) fn time_to_live(lease: u64) -> Request {
    request("lease/timetolive", &json!({"ID": lease.to_string()}))
}

/// As [`time_to_live`], with the keys that the lease keeps.
pub(super) fn keys_of(lease: u64) -> Request {
    request("lease/timetolive", &json!({"ID": lease.to_string(), "keys": true}))
}

/// All changes of keys that begin with `from`, from a revision on.
pub(super) fn watch(from: &str, revision: u64) -> Request {
    let create = json!({
        "key": bytes(from), "range_end": end(from), "start_revision": revision.to_string(), "prev_kv": true
    });
    Request { stream: true, ..request("watch", &json!({"create_request": create})) }
}

fn put_op(key: &str, value: &str, lease: u64) -> Value {
    json!({"key": bytes(key), "value": bytes(value), "lease": lease.to_string()})
}

fn request(method: &str, body: &Value) -> Request {
    let path = ["v3"].into_iter().chain(method.split('/')).map(str::to_owned).collect();
    Request { method: Method::POST, path, query: Vec::new(), body: Body::Json(body.to_string()), stream: false }
}

fn bytes(text: &str) -> String {
    BASE64.encode(text)
}

/// The end of the range of keys that begin with `from`: the first text after them (etcd's `clientv3.GetPrefixRangeEnd`). `from` ends
/// with `/`, whose successor is one byte.
fn end(from: &str) -> String {
    let mut end = from.as_bytes().to_vec();
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    BASE64.encode(end)
}

#[cfg(test)]
mod tests;
