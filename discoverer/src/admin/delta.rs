//! From one picture to the next: what has changed, as those who look are told. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use registry::ServiceName;
use serde::Serialize;
use serde_json::{Map, Value};

use crate::feed::{Difference, What, differences};
use crate::report::{
    HaproxyReport, Index, InstanceReport, LeftOutReport, NoteReport, Outline, ServiceHead, Stats, StatusReport,
};
use crate::view::View;

/// How much of what is left out is told in the stream, and on the page: `/api/v1/status` has all of it.
pub(super) const LEFT_OUT_SHOWN: usize = 100;

/// How much of what is left out of one service is told there: `/api/v1/services` has all of it.
pub(super) const OF_SERVICE_SHOWN: usize = 20;

/// What has changed. Empty parts are not written.
#[derive(Debug, Default, Serialize)]
pub(super) struct Delta {
    /// The new picture's.
    pub(super) version: u64,
    /// When it was made.
    pub(super) at: jiff::Timestamp,
    /// The fields that are new of the status, of the registry and of HAProxy.
    #[serde(skip_serializing_if = "Map::is_empty")]
    status: Map<String, Value>,
    #[serde(skip_serializing_if = "Map::is_empty")]
    registry: Map<String, Value>,
    #[serde(skip_serializing_if = "Map::is_empty")]
    haproxy: Map<String, Value>,
    /// What is left out now, where that is another than before: the first of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    left_out: Option<Vec<LeftOutReport>>,
    /// How much that is in all.
    #[serde(skip_serializing_if = "Option::is_none")]
    left_out_total: Option<usize>,
    /// The services that are new or have changed, as [`head_change`] has them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    services: Vec<Map<String, Value>>,
    /// The instances that are new or have changed, each whole.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    instances: Vec<Placed>,
    /// The services that are gone, with all their instances.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    services_gone: Vec<String>,
    /// The instances that are gone.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    instances_gone: Vec<Gone>,
    /// What happened.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    notes: Vec<NoteReport>,
}

/// An instance, with its service's name.
#[derive(Debug, Serialize)]
struct Placed {
    service: String,
    #[serde(flatten)]
    instance: InstanceReport,
}

/// An instance that is gone.
#[derive(Debug, Serialize)]
struct Gone {
    service: String,
    address: SocketAddr,
}

/// Compares two pictures. The cost grows with what differs; only where something of a service is newly left out or in again
/// it grows with that service.
pub(super) fn delta(before: &View, now: &View, stats: Option<&Stats>) -> Delta {
    let (old_index, new_index) = (Index::new(before), Index::new(now));
    let (old, new) = (Outline::new(before, &old_index), Outline::new(now, &new_index));
    let mut delta = Delta { version: now.version, at: now.at, ..Delta::default() };
    let mut found = differences(&before.services, &now.services);
    found.extend(differences(&before.shut_out, &now.shut_out));
    let mut whole: BTreeSet<&ServiceName> = BTreeSet::new();
    let mut touched: BTreeMap<&ServiceName, Vec<&Difference<'_>>> = BTreeMap::new();
    for difference in &found {
        let name = &difference.service.name;
        if matches!(difference.what, What::ServiceCame | What::ServiceWent) {
            whole.insert(name);
        }
        touched.entry(name).or_default().push(difference);
    }
    if before.left_out != now.left_out || before.more_left_out != now.more_left_out {
        delta.left_out = Some(now.left_out.iter().take(LEFT_OUT_SHOWN).map(LeftOutReport::new).collect());
        delta.left_out_total = Some(now.left_out.len() + now.more_left_out);
        let names: BTreeSet<&ServiceName> =
            before.left_out.iter().chain(&now.left_out).filter_map(|entry| entry.service.as_ref()).collect();
        for name in names {
            if !old.left_out(name).eq(new.left_out(name))
                && let Some(service) = new.find(name).or_else(|| old.find(name))
            {
                whole.insert(&service.name);
                touched.entry(&service.name).or_default();
            }
        }
    }
    for (name, changes) in touched {
        let Some(service) = new.find(name) else {
            delta.services_gone.push(name.to_string());
            continue;
        };
        let (was, head) = (old.head(name), new.head(name));
        if was != head {
            delta.services.extend(head.map(|head| head_change(head, was.as_ref())));
        }
        if whole.contains(name) {
            delta.compare_all(name, old, new, stats);
            continue;
        }
        let refused = new.refused(name);
        for instance in changes.iter().filter_map(|change| Some((change.what, change.instance?))) {
            match instance {
                (What::Went, instance) => {
                    let address = SocketAddr::new(instance.address, instance.port);
                    delta.instances_gone.push(Gone { service: name.to_string(), address });
                }
                (_, instance) => delta.instances.push(Placed {
                    service: name.to_string(),
                    instance: new.instance(service, instance, refused, stats),
                }),
            }
        }
    }
    delta.status = fields_that_differ(&StatusReport::new(before), &StatusReport::new(now));
    for apart in ["version", "at", "registry", "haproxy", "left_out", "unrouted"] {
        delta.status.remove(apart);
    }
    delta.registry = fields_that_differ(&before.registry, &now.registry);
    delta.haproxy = fields_that_differ(&HaproxyReport::new(before), &HaproxyReport::new(now));
    let last = before.feed.last().map_or(0, |note| note.number);
    let news = now.feed.iter().filter(|note| note.number > last);
    delta.notes = news.map(|note| NoteReport::new(note)).collect();
    delta
}

impl Delta {
    fn compare_all(&mut self, name: &ServiceName, old: Outline<'_>, new: Outline<'_>, stats: Option<&Stats>) {
        let all = |outline: Outline<'_>| -> BTreeMap<SocketAddr, InstanceReport> {
            let service = outline.service(name, stats).into_iter();
            service.flat_map(|service| service.instances).map(|instance| (instance.address, instance)).collect()
        };
        let (before, now) = (all(old), all(new));
        for address in before.keys().filter(|address| !now.contains_key(address)) {
            self.instances_gone.push(Gone { service: name.to_string(), address: *address });
        }
        for (address, instance) in now {
            if before.get(&address) != Some(&instance) {
                self.instances.push(Placed { service: name.to_string(), instance });
            }
        }
    }
}

/// A service whole, but for its instances. What is left out of it only where that is another than before, and the first of it.
fn head_change(mut head: ServiceHead, before: Option<&ServiceHead>) -> Map<String, Value> {
    let is_as_before = before.is_some_and(|before| before.left_out == head.left_out);
    let total = head.left_out.len();
    head.left_out.truncate(if is_as_before { 0 } else { OF_SERVICE_SHOWN });
    let Ok(Value::Object(mut fields)) = serde_json::to_value(head) else { return Map::new() };
    if is_as_before {
        fields.remove("left_out");
    } else {
        fields.insert("left_out_total".to_owned(), total.into());
    }
    fields
}

/// The fields that are not as before.
fn fields_that_differ(before: &impl Serialize, now: &impl Serialize) -> Map<String, Value> {
    let (Ok(Value::Object(before)), Ok(Value::Object(mut now))) =
        (serde_json::to_value(before), serde_json::to_value(now))
    else {
        return Map::new();
    };
    now.retain(|name, value| before.get(name) != Some(value));
    now
}

/// HAProxy's figures of those instances for which they are newer than that asking: service, address, state, whether it is
/// down, check, words, weight, sessions, queued, since. Only service and address where HAProxy knows no such server.
pub(super) fn stat_rows(view: &View, stats: &Stats, newer_than: u64) -> Vec<Value> {
    let index = Index::new(view);
    let outline = Outline::new(view, &index);
    let mut rows = Vec::new();
    for (name, service) in view.services.iter() {
        if outline.refused(name).is_some() {
            continue;
        }
        for instance in &service.instances {
            let address = SocketAddr::new(instance.address, instance.port);
            let find = |than| stats.find_newer(name.as_str(), &instance.server, address, than);
            if let Some(stat) = find(newer_than) {
                rows.push(serde_json::json!([
                    name.as_str(),
                    address,
                    stat.state,
                    u8::from(stat.is_down()),
                    stat.check,
                    stat.words,
                    stat.weight,
                    stat.sessions,
                    stat.queued,
                    stat.since
                ]));
            }
        }
    }
    rows
}

/// The instances that HAProxy does not know any more, as [`stat_rows`] has them.
pub(super) fn lost_rows(view: &View, before: &Stats, now: &Stats) -> Vec<Value> {
    rows_without(view, |name, server, address| {
        before.find(name, server, address).is_some() && now.find(name, server, address).is_none()
    })
}

/// The instances that HAProxy does not know, as [`stat_rows`] has them.
pub(super) fn unknown_rows(view: &View, stats: &Stats) -> Vec<Value> {
    rows_without(view, |name, server, address| stats.find(name, server, address).is_none())
}

fn rows_without(view: &View, is_without: impl Fn(&str, &str, SocketAddr) -> bool) -> Vec<Value> {
    let mut rows = Vec::new();
    for (name, service) in view.services.iter() {
        for instance in &service.instances {
            let address = SocketAddr::new(instance.address, instance.port);
            if is_without(name.as_str(), &instance.server, address) {
                rows.push(serde_json::json!([name.as_str(), address]));
            }
        }
    }
    rows
}
