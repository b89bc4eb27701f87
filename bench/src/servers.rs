//! What etcd, HAProxy and the file say of the servers, to compare them.

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context as _, ensure};
use serde_json::Value;

use crate::wire::{Kept, cli};

/// A server as `service/10.0.0.1_8000`.
pub(crate) type Names = BTreeSet<String>;

/// What etcd holds below a prefix.
pub(crate) fn in_etcd(etcd: SocketAddr, prefix: &str) -> anyhow::Result<Names> {
    let answer = Kept::open(etcd)?.ask("GET", &format!("/v2/keys/{prefix}?recursive=true"), "", true)?;
    ensure!(answer.status == 200, "etcd: {}: {}", answer.status, answer.body);
    let tree: Value = serde_json::from_str(&answer.body)?;
    let mut names = Names::new();
    collect(&tree["node"], &mut names);
    Ok(names)
}

fn collect(node: &Value, names: &mut Names) {
    for child in node["nodes"].as_array().into_iter().flatten() {
        collect(child, names);
    }
    let mut path = node["key"].as_str().unwrap_or_default().rsplit('/');
    if let (true, Some(address), Some(service)) = (node.get("value").is_some(), path.next(), path.next()) {
        names.insert(format!("{service}/{}", address.replace(':', "_")));
    }
}

/// What HAProxy has, less what it has in maintenance, which is on its way out.
pub(crate) fn in_haproxy(socket: &Path) -> anyhow::Result<Names> {
    let reply = cli(socket, "show servers state")?;
    ensure!(reply.starts_with('1'), "show servers state: {:?}", reply.lines().next());
    let names = reply.lines().filter(|line| !line.starts_with('#')).filter_map(|line| {
        let fields: Vec<&str> = line.split(' ').collect();
        let in_maintenance = fields.get(6)?.parse::<u8>().ok()? & 1 != 0;
        (!in_maintenance).then(|| Some(format!("{}/{}", fields.get(1)?, fields.get(3)?)))?
    });
    Ok(names.collect())
}

/// What the file has.
pub(crate) fn in_file(file: &Path) -> anyhow::Result<Names> {
    let text = fs::read_to_string(file).with_context(|| file.display().to_string())?;
    let mut backend = "";
    let mut names = Names::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        match (words.next(), words.next()) {
            (Some("backend"), Some(name)) => backend = name,
            (Some("server"), Some(name)) => {
                names.insert(format!("{backend}/{name}"));
            }
            _ => {}
        }
    }
    Ok(names)
}
