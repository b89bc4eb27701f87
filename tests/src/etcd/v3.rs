//! What the tests ask of an etcd that serves v3 alone, told as the v2 API tells it: the same test reads both.

use std::net::SocketAddr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};

use crate::http::{self, Connection};

/// One request; panics where etcd refuses it.
pub(super) async fn ask(address: SocketAddr, method: &str, body: &Value) -> Value {
    let path = format!("/v3/{method}");
    let reply = http::request(address, "POST", &path, &[("Content-Type", "application/json")], &body.to_string()).await;
    let reply = reply.unwrap_or_else(|error| panic!("etcd: {path}: {error}"));
    assert_eq!(reply.status, 200, "{path} {body}: {reply:?}");
    serde_json::from_str(&reply.body).unwrap()
}

/// Writes a key, without a lease.
pub(super) async fn put(address: SocketAddr, key: &str, value: &str) {
    ask(address, "kv/put", &json!({"key": bytes(key), "value": bytes(value)})).await;
}

/// Removes a key, or all below a directory.
pub(super) async fn delete(address: SocketAddr, key: &str, is_directory: bool) {
    let range = if is_directory { below(key) } else { json!({"key": bytes(key)}) };
    let reply = ask(address, "kv/deleterange", &range).await;
    assert!(reply["deleted"].is_string(), "{key} was not there");
}

/// A key, or the directory that keys below it make, as v2 tells of it.
pub(super) async fn get_node(address: SocketAddr, key: &str) -> Option<Value> {
    let found = ask(address, "kv/range", &json!({"key": bytes(key)})).await;
    if let Some(kv) = found["kvs"].get(0) {
        return Some(node(address, kv).await);
    }
    let found = ask(address, "kv/range", &below(key)).await;
    let mut nodes = Vec::new();
    for kv in found["kvs"].as_array().into_iter().flatten() {
        nodes.push(node(address, kv).await);
    }
    tree(key, nodes)
}

/// Directories of nodes that lie below a path.
fn tree(path: &str, nodes: Vec<Value>) -> Option<Value> {
    if nodes.is_empty() {
        return None;
    }
    let mut children: Vec<Value> = Vec::new();
    let mut deeper: std::collections::BTreeMap<String, Vec<Value>> = std::collections::BTreeMap::new();
    for node in nodes {
        let key = node["key"].as_str().unwrap_or_default();
        let rest = key[path.len()..].trim_start_matches('/').to_owned();
        match rest.split_once('/') {
            Some((directory, _)) => {
                deeper.entry(format!("{}/{directory}", path.trim_end_matches('/'))).or_default().push(node);
            }
            None => children.push(node),
        }
    }
    children.extend(deeper.into_iter().filter_map(|(path, nodes)| tree(&path, nodes)));
    Some(json!({"key": path, "dir": true, "nodes": children}))
}

async fn node(address: SocketAddr, kv: &Value) -> Value {
    let mut node = json!({
        "key": text(&kv["key"]),
        "value": text(&kv["value"]),
        "createdIndex": number(&kv["create_revision"]),
        "modifiedIndex": number(&kv["mod_revision"]),
    });
    if number(&kv["lease"]) > 0 {
        let lease = ask(address, "lease/timetolive", &json!({"ID": kv["lease"]})).await;
        node["ttl"] = json!(number(&lease["TTL"]));
    }
    node
}

/// Follows what lies below a directory from a revision on; the first line comes at once.
pub(crate) async fn watch(address: SocketAddr, directory: &str, revision: u64) -> std::io::Result<Connection> {
    let mut connection = Connection::open(address).await?;
    let mut create = below(directory);
    create["start_revision"] = json!(revision.to_string());
    create["prev_kv"] = json!(true);
    let body = json!({"create_request": create}).to_string();
    connection.stream_of("POST", "/v3/watch", &body).await?;
    Ok(connection)
}

/// The events of one line of a watch, as v2 tells of them, and the last index.
pub(crate) async fn events(address: SocketAddr, line: &str) -> (Vec<Value>, Option<u64>) {
    let message: Value = serde_json::from_str(line).unwrap_or_default();
    let mut events = Vec::new();
    let mut last = None;
    for event in message["result"]["events"].as_array().into_iter().flatten() {
        last = Some(number(&event["kv"]["mod_revision"]));
        let action = match event["type"].as_str() {
            Some("DELETE") => {
                let lease = &event["prev_kv"]["lease"];
                let gone = match number(lease) {
                    0 => false,
                    _ => number(&ask(address, "lease/timetolive", &json!({"ID": lease})).await["TTL"]) == 0,
                };
                if gone { "expire" } else { "delete" }
            }
            _ => "set",
        };
        let node = json!({"key": text(&event["kv"]["key"]), "value": text(&event["kv"]["value"])});
        events.push(json!({"action": action, "node": node}));
    }
    (events, last)
}

/// The index that etcd is at.
pub(crate) async fn index(address: SocketAddr) -> u64 {
    number(&ask(address, "kv/range", &json!({"key": bytes("/_")})).await["header"]["revision"])
}

fn below(directory: &str) -> Value {
    let from = format!("{}/", directory.trim_end_matches('/'));
    // The byte after `/`.
    json!({"key": bytes(&from), "range_end": bytes(&format!("{}0", directory.trim_end_matches('/')))})
}

fn bytes(text: &str) -> String {
    BASE64.encode(text)
}

fn text(value: &Value) -> String {
    let bytes = BASE64.decode(value.as_str().unwrap_or_default()).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}

fn number(value: &Value) -> u64 {
    value.as_str().and_then(|text| text.parse().ok()).unwrap_or(0)
}
