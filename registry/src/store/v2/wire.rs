//! The wire of etcd's v2 API: requests as values, replies into types. Pure: no I/O, no clock.
//!
//! Source: etcd 3.4, Documentation/v2/api.md and errorcode.md; the replies in `tests/fixtures` were recorded from it.

use std::collections::BTreeSet;
use std::time::Duration;

use reqwest::{Method, StatusCode};
use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::key::Prefix;
use crate::store::endpoints::{Body, Request, shown};
use crate::store::trouble::{a_web_page, is_web_page};
use crate::store::{Cause, Entry, Event, Ownership, Reason, whole_seconds};

/// etcd v2 error: the key does not exist.
pub(super) const KEY_NOT_FOUND: u32 = 100;
/// etcd v2 error: a comparison failed.
pub(super) const COMPARE_FAILED: u32 = 101;
/// etcd v2 error: a part of the path is a key with a value.
pub(super) const NOT_A_DIRECTORY: u32 = 104;
/// etcd v2 error: the key exists.
pub(super) const KEY_EXISTS: u32 = 105;
/// etcd v2 error: "Raft Internal Error".
const RAFT_INTERNAL: u32 = 300;
/// etcd v2 error: "During Leader Election".
const LEADER_ELECTION: u32 = 301;
/// etcd v2 error: the events asked for are no longer in the history.
pub(super) const EVENT_INDEX_CLEARED: u32 = 401;

/// One node of etcd's tree, as deep as anything has a meaning here: a directory of services, a service, an instance,
/// and what somebody put below an instance.
pub(super) type Node = Tree<Tree<Tree<Tree<IgnoredAny>>>>;

/// A node with the nodes below it. What lies below the last kind is passed over, however deep it goes: the JSON parser
/// bounds the depth of what it reads, and one deep key must not make the listing unreadable.
#[derive(Debug, Deserialize)]
#[serde(bound(deserialize = "Below: Deserialize<'de>"))]
pub(super) struct Tree<Below> {
    pub(super) key: String,
    #[serde(default)]
    value: String,
    #[serde(default)]
    pub(super) dir: bool,
    ttl: Option<i64>,
    #[serde(default = "Vec::new")]
    nodes: Vec<Below>,
    #[serde(rename = "modifiedIndex")]
    pub(super) modified_index: u64,
    #[serde(rename = "createdIndex")]
    created_index: u64,
}

impl<Below> Tree<Below> {
    pub(super) fn ownership(&self) -> Ownership {
        Ownership { created_index: self.created_index, modified_index: self.modified_index, lease: 0 }
    }

    pub(super) fn into_entry(self) -> Entry {
        // etcd rounds, so that a key about to expire has a TTL of 0 or less.
        let ttl = self.ttl.map(|seconds| Duration::from_secs(seconds.try_into().unwrap_or(0)));
        Entry { ownership: self.ownership(), path: self.key, value: self.value, ttl }
    }
}

/// What was done, or read.
#[derive(Debug, Deserialize)]
pub(super) struct Change {
    pub(super) action: String,
    pub(super) node: Node,
    #[serde(rename = "prevNode")]
    previous: Option<Previous>,
}

/// What of the node before a change is of interest.
#[derive(Debug, Deserialize)]
struct Previous {
    #[serde(default)]
    dir: bool,
}

/// etcd's no.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    /// etcd's error code.
    pub(super) code: u32,
    /// Its words, with the cause, fit for a message.
    pub(super) message: String,
    /// The cause by itself: mostly a path.
    cause: String,
}

/// A reply that is etcd's.
#[derive(Debug)]
pub(super) enum Said {
    Change(Change),
    Refused(Refusal),
}

/// etcd's error as JSON. The proxy and authentication layers leave out all but the message.
#[derive(Deserialize)]
struct ErrorBody {
    #[serde(rename = "errorCode")]
    code: Option<u32>,
    message: String,
    #[serde(default)]
    cause: String,
}

/// Reads a whole reply.
///
/// # Errors
/// A text that says what is wrong, for what is not etcd's, and for the errors that another member may not have:
/// 5xx, "raft internal error", "during leader election".
pub(super) fn decode(status: StatusCode, body: &[u8]) -> Result<Said, String> {
    if status.is_success() {
        let not_etcd = |error| match is_web_page(body) {
            true => a_web_page(status),
            false => format!("answered {status} with what is not etcd's JSON: {}", shown_error(&error)),
        };
        return serde_json::from_slice(body).map(Said::Change).map_err(not_etcd);
    }
    let Ok(ErrorBody { code, message, cause }) = serde_json::from_slice(body) else {
        return Err(match status {
            _ if is_web_page(body) => a_web_page(status),
            StatusCode::NOT_FOUND => format!(
                "answered {status} without etcd's JSON: it does not serve etcd's v2 API (etcd 3.4 and 3.5 do with --enable-v2); --etcd-api v3 speaks the other"
            ),
            _ => format!("answered {status} without etcd's JSON: {:?}", shown(&String::from_utf8_lossy(body))),
        });
    };
    let message = if cause.is_empty() { shown(&message) } else { format!("{} ({})", shown(&message), shown(&cause)) };
    match code {
        _ if status == StatusCode::UNAUTHORIZED => Err(format!("answered {status}: {message}")),
        Some(RAFT_INTERNAL | LEADER_ELECTION) => Err(format!("answered {status}: {message}")),
        Some(code) if !status.is_server_error() => Ok(Said::Refused(Refusal { code, message, cause })),
        _ => Err(format!("answered {status}: {message}")),
    }
}

/// All keys below a directory, sorted by path.
pub(super) fn entries(root: Node) -> Vec<Entry> {
    let mut entries = Vec::new();
    root.collect(&mut entries);
    entries.sort_by(|a, b| a.path.cmp(&b.path));
    entries
}

/// A directory, and the directories right below it, by path.
pub(super) fn directories(root: &Node) -> BTreeSet<String> {
    let below = root.nodes.iter().filter(|node| node.dir).map(|node| node.key.clone());
    below.chain([root.key.clone()]).collect()
}

/// The parent of a directory that was not found, where that is there: etcd names the first part of the path that is missing.
pub(super) fn parent_beside(path: &str, refusal: &Refusal) -> Option<String> {
    let (parent, _) = path.rsplit_once('/').filter(|_| refusal.cause == path)?;
    Some(if parent.is_empty() { "/" } else { parent }.to_owned())
}

/// What can stand below a directory.
trait Collect {
    /// Adds the keys with values, and the directories that lie too deep to be anything.
    fn collect(self, entries: &mut Vec<Entry>);
}

impl<Below: Collect> Collect for Tree<Below> {
    fn collect(self, entries: &mut Vec<Entry>) {
        if self.dir {
            self.nodes.into_iter().for_each(|child| child.collect(entries));
        } else {
            entries.push(self.into_entry());
        }
    }
}

impl Collect for Tree<IgnoredAny> {
    fn collect(self, entries: &mut Vec<Entry>) {
        entries.push(self.into_entry());
    }
}

/// What a change means to who watches the directory; `None` where it is not of it.
///
/// etcd's history gives more than a waiting poll does: changes of hidden keys (a segment with `_` in front), which no
/// listing shows, and the removal of directories whose path only begins with the same characters.
pub(super) fn event(prefix: &Prefix, change: Change) -> Result<Option<Event>, Reason> {
    let Change { action, node, previous } = change;
    let cause = match action.as_str() {
        "set" | "create" | "update" | "compareAndSwap" => None,
        "delete" | "compareAndDelete" => Some(Cause::Deleted),
        "expire" => Some(Cause::Expired),
        _ => return Err(Reason::UnknownAction(shown(&action))),
    };
    let is_parent = format!("{}/", prefix.path()).starts_with(&format!("{}/", node.key));
    let below = prefix.below(&node.key).unwrap_or_default();
    if below.split('/').any(|segment| segment.starts_with('_')) || (below.is_empty() && !is_parent) {
        return Ok(None);
    }
    Ok(match cause {
        Some(cause) if node.dir => Some(Event::RemovedTree { path: node.key, cause }),
        Some(cause) => Some(Event::Removed { path: node.key, cause }),
        None if node.dir => {
            // A directory may be put in place of a key, which then is gone.
            let replaced_key = previous.is_some_and(|previous| !previous.dir);
            replaced_key.then_some(Event::Removed { path: node.key, cause: Cause::Deleted })
        }
        None if below.is_empty() => return Err(Reason::NotADirectory),
        None => Some(Event::Put(node.into_entry())),
    })
}

pub(super) fn list(path: &str) -> Request {
    read(path, vec![("recursive", yes()), ("quorum", yes())])
}

pub(super) fn get(path: &str) -> Request {
    read(path, vec![("quorum", yes())])
}

pub(super) fn wait(path: &str, wait_index: u64) -> Request {
    let query = vec![("wait", yes()), ("recursive", yes()), ("waitIndex", wait_index.to_string())];
    Request { stream: true, ..read(path, query) }
}

pub(super) fn put(path: &str, value: &str, ttl: Duration) -> Request {
    write(path, vec![("value", value.to_owned()), seconds(ttl)])
}

pub(super) fn create(path: &str, value: &str, ttl: Duration) -> Request {
    write(path, vec![("value", value.to_owned()), seconds(ttl), ("prevExist", "false".to_owned())])
}

/// `refresh=true` gives a key its TTL again without an event for those who watch (etcd v2 API, "Refreshing key TTL").
pub(super) fn refresh(path: &str, ttl: Duration, index: u64) -> Request {
    write(path, vec![seconds(ttl), ("refresh", yes()), ("prevExist", yes()), ("prevIndex", index.to_string())])
}

/// Without a time to live the key does not expire.
pub(super) fn update(path: &str, value: &str, ttl: Option<Duration>, index: u64) -> Request {
    let mut form = vec![("value", value.to_owned()), ("prevExist", yes()), ("prevIndex", index.to_string())];
    form.extend(ttl.map(seconds));
    write(path, form)
}

pub(super) fn delete(path: &str, index: u64) -> Request {
    request(Method::DELETE, path, vec![("prevIndex", index.to_string())], Body::Nothing)
}

fn read(path: &str, query: Vec<(&'static str, String)>) -> Request {
    request(Method::GET, path, query, Body::Nothing)
}

fn write(path: &str, form: Vec<(&'static str, String)>) -> Request {
    request(Method::PUT, path, Vec::new(), Body::Form(form))
}

fn request(method: Method, path: &str, query: Vec<(&'static str, String)>, body: Body) -> Request {
    let segments = path.split('/').filter(|segment| !segment.is_empty());
    let path = ["v2", "keys"].into_iter().chain(segments).map(str::to_owned).collect();
    Request { method, path, query, body, stream: false }
}

fn yes() -> String {
    "true".to_owned()
}

/// etcd v2 counts a TTL in whole seconds, and takes 0 for an expired key.
fn seconds(ttl: Duration) -> (&'static str, String) {
    ("ttl", whole_seconds(ttl).to_string())
}

fn shown_error(error: &serde_json::Error) -> String {
    shown(&error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix() -> Prefix {
        "service".parse().unwrap()
    }

    fn fixture(text: &str) -> Change {
        match decode(StatusCode::OK, text.as_bytes()).unwrap() {
            Said::Change(change) => change,
            Said::Refused(refusal) => panic!("{refusal:?}"),
        }
    }

    fn recorded(name: &str) -> String {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/etcd-3.4.23");
        std::fs::read_to_string(format!("{path}/{name}.json")).unwrap()
    }

    #[test]
    fn a_recorded_listing_gives_all_keys_of_both_layouts_as_they_are() {
        let change = fixture(&recorded("list"));
        assert!(change.node.dir);
        let entries = entries(change.node);
        let shown: Vec<_> = entries.iter().map(|e| (e.path.as_str(), e.value.as_str(), e.ttl)).collect();
        let twenty = Some(Duration::from_secs(20));
        assert_eq!(
            shown,
            [
                ("/service/10.0.0.1:80", "running2", twenty),
                ("/service/[::1]:80", "x", None),
                ("/service/evil 127.0.0.1:1 #\na", "x", None),
                ("/service/web/10.0.0.1:80", "x", None),
            ]
        );
    }

    #[test]
    fn a_listing_tells_which_directories_there_are_and_of_a_missing_one_whether_its_parent_is() {
        let root = r#"{"action":"get","node":{"key":"/service","dir":true,"modifiedIndex":1,"createdIndex":1,"nodes":[
            {"key":"/service/web","dir":true,"modifiedIndex":2,"createdIndex":2},
            {"key":"/service/10.0.0.1:80","value":"running","modifiedIndex":3,"createdIndex":3}]}}"#;
        let shown: Vec<_> = directories(&fixture(root).node).into_iter().collect();
        assert_eq!(shown, ["/service", "/service/web"]);
        let refusal = |cause: &str| Refusal { code: KEY_NOT_FOUND, message: String::new(), cause: cause.to_owned() };
        assert_eq!(parent_beside("/apps/web", &refusal("/apps/web")).as_deref(), Some("/apps"));
        assert_eq!(parent_beside("/apps/web", &refusal("/apps")), None);
        assert_eq!(parent_beside("/service", &refusal("/service")).as_deref(), Some("/"));
        // etcd 3.4.23.
        let Ok(Said::Refused(recorded)) = decode(StatusCode::NOT_FOUND, recorded("error-key-not-found").as_bytes())
        else {
            panic!("it is no refusal");
        };
        assert_eq!(parent_beside("/nothing", &recorded).as_deref(), Some("/"));
    }

    #[test]
    fn recorded_events_become_what_they_mean() {
        let removed = |path: &str, cause| Ok(Some(Event::Removed { path: path.into(), cause }));
        let tree = |path: &str, cause| Ok(Some(Event::RemovedTree { path: path.into(), cause }));
        let cases = [
            ("delete", removed("/service/10.0.0.1:80", Cause::Deleted)),
            ("compare-and-delete", removed("/service/10.0.0.1:80", Cause::Deleted)),
            ("expire", removed("/service/1.1.1.1:1", Cause::Expired)),
            ("expire-directory", tree("/service/d", Cause::Expired)),
            ("delete-tree", tree("/service", Cause::Deleted)),
            ("directory-in-place-of-key", removed("/service/1.1.1.1:2", Cause::Deleted)),
            ("directory", Ok(None)),
            ("delete-other-tree", Ok(None)),
            ("set-hidden", Ok(None)),
        ];
        for (name, expected) in cases {
            assert_eq!(event(&prefix(), fixture(&recorded(name))), expected, "{name}");
        }
        for (name, value) in [("set", "running"), ("update", "blue"), ("compare-and-swap", "draining"), ("create", "x")]
        {
            let Ok(Some(Event::Put(entry))) = event(&prefix(), fixture(&recorded(name))) else {
                panic!("{name} is no Put");
            };
            assert_eq!(entry.value, value, "{name}");
        }
    }

    #[test]
    fn events_on_the_directory_itself_its_parents_and_its_neighbours_are_told_apart() {
        let prefix: Prefix = "a/b".parse().unwrap();
        let meant = |action: &str, key: &str, dir: bool| {
            let text = format!(
                r#"{{"action":"{action}","node":{{"key":"{key}","dir":{dir},"modifiedIndex":9,"createdIndex":1}}}}"#
            );
            event(&prefix, fixture(&text))
        };
        for path in ["/a/b", "/a"] {
            let expected = Event::RemovedTree { path: path.into(), cause: Cause::Deleted };
            assert_eq!(meant("delete", path, true), Ok(Some(expected)));
        }
        for path in ["/a/bc", "/ab", "/a/bc/10.0.0.1:80", "/x"] {
            assert_eq!(meant("delete", path, true), Ok(None), "{path}");
            assert_eq!(meant("set", path, false), Ok(None), "{path}");
        }
        assert_eq!(meant("set", "/a/b", false), Err(Reason::NotADirectory));
        assert_eq!(meant("transmogrify", "/a/b/x", false), Err(Reason::UnknownAction("transmogrify".into())));
    }

    #[test]
    fn refusals_and_what_another_member_may_not_have_are_told_apart() {
        let code = |name| match decode(StatusCode::BAD_REQUEST, recorded(name).as_bytes()) {
            Ok(Said::Refused(refusal)) => refusal.code,
            other => panic!("{name}: {other:?}"),
        };
        assert_eq!(code("error-key-not-found"), KEY_NOT_FOUND);
        assert_eq!(code("error-compare-failed"), COMPARE_FAILED);
        assert_eq!(code("error-not-a-directory"), NOT_A_DIRECTORY);
        assert_eq!(code("error-key-exists"), KEY_EXISTS);
        assert_eq!(code("error-event-index-cleared"), EVENT_INDEX_CLEARED);

        let raft =
            r#"{"errorCode":300,"message":"Raft Internal Error","cause":"etcdserver: request timed out","index":0}"#;
        let cases: [(u16, &str, &str); 8] = [
            (500, raft, "Raft Internal Error (etcdserver: request timed out)"),
            (400, r#"{"errorCode":301,"message":"During Leader Election","cause":"","index":0}"#, "Election"),
            (503, r#"{"message":"etcdserver: no leader"}"#, "no leader"),
            (401, r#"{"message":"Insufficient credentials"}"#, "Insufficient credentials"),
            (404, "404 page not found\n", "--enable-v2"),
            (200, "<html>welcome</html>", "not etcd's JSON"),
            (200, r#"{"action":"get","node":{"key":"/service","modifiedIndex":"4"#, "EOF"),
            (200, r#"{"action":"get","node":{"key":"/service","modifiedIndex":"4","createdIndex":4}}"#, "invalid type"),
        ];
        for (status, body, expected) in cases {
            let error = decode(StatusCode::from_u16(status).unwrap(), body.as_bytes()).unwrap_err();
            assert!(error.contains(expected), "{status} {body}: {error}");
            assert!(!error.contains('\n'), "{error}");
        }
    }

    #[test]
    fn a_time_to_live_is_rounded_up_to_whole_seconds() {
        for (ttl, expected) in [(0, "1"), (300, "1"), (1000, "1"), (1001, "2"), (20_000, "20")] {
            assert_eq!(seconds(Duration::from_millis(ttl)).1, expected);
        }
    }
}
