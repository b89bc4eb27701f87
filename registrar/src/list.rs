//! `registrar list`: what is below the prefix in etcd, as a table or as JSON. Pure, but for the one request.

use std::fmt;
use std::time::Duration;

use observe::escape::escaped;
use registry::{Entry, InstanceKey, Prefix, Record, Status, Store, StoreError};
use serde::{Serialize, Serializer};

/// How many characters of a key that is none are shown.
const SHOWN_LIMIT: usize = 200;

/// Everything below a prefix.
#[derive(Debug, Serialize)]
pub struct List {
    /// Sorted by service and address.
    instances: Vec<Instance>,
    /// What is no instance, sorted by key.
    refused: Vec<Refused>,
}

/// One instance.
#[derive(Debug, Serialize)]
struct Instance {
    #[serde(serialize_with = "key_parts", flatten)]
    key: InstanceKey,
    /// In whole seconds; none for a key that does not expire.
    #[serde(serialize_with = "seconds")]
    ttl: Option<Duration>,
    #[serde(flatten)]
    record: Record,
}

/// A key that nobody routes to.
#[derive(Debug, Serialize)]
struct Refused {
    /// Escaped.
    key: String,
    reason: String,
}

/// Reads what is registered.
///
/// # Errors
/// etcd cannot be asked.
pub async fn run(key: &Prefix, store: &Store) -> Result<List, StoreError> {
    let mut entries = store.list(key).await?.entries;
    store.add_times(&mut entries).await?;
    Ok(List::of(key, entries))
}

impl List {
    /// Reads the keys below a prefix.
    fn of(prefix: &Prefix, entries: Vec<Entry>) -> Self {
        let mut list = Self { instances: Vec::new(), refused: Vec::new() };
        for entry in entries {
            match read(prefix, &entry) {
                Ok((key, record)) => list.instances.push(Instance { key, ttl: entry.ttl, record }),
                Err(reason) => {
                    let key = escaped(&entry.path.chars().take(SHOWN_LIMIT).collect::<String>());
                    list.refused.push(Refused { key, reason });
                }
            }
        }
        let place = |instance: &Instance| (instance.key.service().clone(), instance.key.address());
        list.instances.sort_by_cached_key(place);
        list.refused.sort_by(|a, b| a.key.cmp(&b.key));
        list
    }

    /// As one JSON object.
    ///
    /// # Errors
    /// None that is known: all of it is text and numbers.
    pub fn to_json(&self) -> Result<String, serde_json::Error> {
        serde_json::to_string_pretty(self)
    }
}

fn read(prefix: &Prefix, entry: &Entry) -> Result<(InstanceKey, Record), String> {
    let key = InstanceKey::parse(prefix, &entry.path).map_err(|error| shown(&error))?;
    let record = Record::parse(&entry.value).map_err(|error| shown(&error))?;
    Ok((key, record))
}

/// What is wrong with something of etcd's, for a terminal.
pub(crate) fn shown(error: &impl fmt::Display) -> String {
    escaped(&error.to_string())
}

fn key_parts<S: Serializer>(key: &InstanceKey, serializer: S) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    struct Parts<'a> {
        service: &'a str,
        address: String,
        key: String,
    }
    Parts { service: key.service().as_str(), address: key.address().to_string(), key: key.path() }.serialize(serializer)
}

fn seconds<S: Serializer>(ttl: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
    ttl.map(|ttl| ttl.as_secs()).serialize(serializer)
}

/// The word for a status, as it stands in etcd.
pub(crate) fn status(status: Status) -> &'static str {
    match status {
        Status::Running => "running",
        Status::Draining => "draining",
    }
}

/// A table for people. What is not known is a dash.
impl fmt::Display for List {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rows = vec![["SERVICE", "INSTANCE", "STATUS", "TTL", "HOST", "CONTAINER", "AGENT"].map(str::to_owned)];
        let known = |text: &Option<String>| {
            text.as_deref().filter(|text| !text.is_empty()).map_or_else(|| "-".to_owned(), escaped)
        };
        for Instance { key, ttl, record } in &self.instances {
            rows.push([
                key.service().to_string(),
                key.address().to_string(),
                status(record.status).to_owned(),
                ttl.map_or_else(|| "-".to_owned(), |ttl| format!("{}s", ttl.as_secs())),
                known(&record.host),
                known(&record.name),
                known(&record.agent),
            ]);
        }
        let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default();
        let widths: [usize; 7] = std::array::from_fn(width);
        for row in &rows {
            let cells: Vec<String> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
            writeln!(f, "{}", cells.join("  ").trim_end())?;
        }
        if self.instances.is_empty() {
            writeln!(f, "Nothing is registered here.")?;
        }
        if !self.refused.is_empty() {
            writeln!(f, "\nNo instances, so that nothing is routed to them:")?;
        }
        for Refused { key, reason } in &self.refused {
            writeln!(f, "  {key}: {reason}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list() -> List {
        let entry = |path: &str, value: &str, ttl: Option<u64>| {
            let mut entry = Entry::new(path, value);
            entry.ttl = ttl.map(Duration::from_secs);
            entry
        };
        let full = r#"{"id":"2d15","agent":"a1","name":"web-1","host":"host-1","weight":5,"status":"draining"}"#;
        List::of(
            &"service".parse().unwrap(),
            vec![
                entry("/service/web/10.0.0.10:80", full, Some(17)),
                entry("/service/evil\n 127.0.0.1:1 #", "running", None),
                entry("/service/web/10.0.0.9:80", "running", None),
                entry("/service/[::1]:8000", "running", Some(3)),
                entry("/service/web/10.0.0.11:80", "{\"weight\":999}", None),
                // The JSON reader repeats what it does not know.
                entry("/service/web/10.0.0.12:80", r#"{"status":"\u001b[2J\u009b\nup"}"#, None),
            ],
        )
    }

    #[test]
    fn the_table_is_sorted_and_what_is_no_instance_is_named_with_its_reason() {
        let expected = "\
SERVICE  INSTANCE      STATUS    TTL  HOST    CONTAINER  AGENT
service  [::1]:8000    running   3s   -       -          -
web      10.0.0.9:80   running   -    -       -          -
web      10.0.0.10:80  draining  17s  host-1  web-1      a1

No instances, so that nothing is routed to them:
  /service/evil\\n 127.0.0.1:1 #: \"evil\\n 127.0.0.1:1 #\" is not an address; write 10.0.0.1:8000 or [2001:db8::1]:8000
  /service/web/10.0.0.11:80: weight 999 is over 256
  /service/web/10.0.0.12:80: its value is no record: unknown variant `\\u{1b}[2J\\u{9b}\\nup`, expected `running` or `draining` at line 1 column 31
";
        assert_eq!(list().to_string(), expected);
        let nothing = List::of(&"service".parse().unwrap(), Vec::new());
        assert_eq!(
            nothing.to_string(),
            "SERVICE  INSTANCE  STATUS  TTL  HOST  CONTAINER  AGENT\nNothing is registered here.\n"
        );
    }

    #[test]
    fn nothing_in_the_table_turns_the_direction_of_what_follows() {
        let record = r#"{"host":"h\u202e1","name":"w\u2066eb","agent":"a\u200f1","status":"running"}"#;
        let list = List::of(
            &"service".parse().unwrap(),
            vec![
                Entry::new("/service/web/10.0.0.1:80", record),
                Entry::new("/service/web/10.0.0.2:80", r#"{"status":"\u202eup"}"#),
                Entry::new("/service/web/\u{202e}", "running"),
            ],
        );
        let text = list.to_string();
        assert!(!text.contains(['\u{202e}', '\u{2066}', '\u{200f}']), "{text:?}");
        assert!(text.contains(r"h\u{202e}1  w\u{2066}eb  a\u{200f}1"), "{text}");
    }

    #[test]
    fn the_json_holds_all_that_is_known() {
        let json: serde_json::Value = serde_json::from_str(&list().to_json().unwrap()).unwrap();
        let last = &json["instances"][2];
        let expected = serde_json::json!({
            "service": "web", "address": "10.0.0.10:80", "key": "/service/web/10.0.0.10:80", "ttl": 17, "status": "draining",
            "id": "2d15", "agent": "a1", "name": "web-1", "host": "host-1", "weight": 5,
        });
        assert_eq!(*last, expected);
        assert_eq!(json["instances"][1]["ttl"], serde_json::Value::Null);
        assert_eq!(json["refused"][1]["reason"], "weight 999 is over 256");
    }
}
