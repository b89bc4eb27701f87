//! What a discoverer says of itself in etcd: that it is there, how far it has come, and what the instances that drain still
//! have of it. Pure: no I/O, no clock.
//!
//! Its key is `/_discoverers/<prefix>/<id>`, beside the prefix, so that writing it wakes nobody who follows instances. A
//! key is there as long as its discoverer lives, also while nothing drains: otherwise "no discoverer" could not be told from
//! "one that has not answered yet".

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::key::{InstanceAddress, NameError, Prefix, ServiceName};
use crate::record::{RecordError, TEXT_LIMIT, VALUE_LIMIT, check_text};
use crate::store::Api;

/// The directory beside the prefixes.
const DIRECTORY: &str = "_discoverers";
/// The most characters of the second part of an id.
const MARK_LIMIT: usize = 32;

/// Why a text is no discoverer's id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// Not two parts.
    #[error("a discoverer's id is <host>:<mark>, such as lb-1:0f1d9a3be1c2a4d7")]
    Form,
    /// A part that cannot stand in a path.
    #[error("a discoverer's id is <host>:<mark>: {0}")]
    Name(#[from] NameError),
}

/// A discoverer's id: `<host>:<mark>`, both of the characters of a name. The `:` stands in no segment of a prefix, so that
/// a path tells where the prefix ends, however many segments it has. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DiscovererId(Arc<str>);

impl DiscovererId {
    /// The id of a discoverer on a host, with a mark that no other one there has. What of the host's name cannot stand in a
    /// path is replaced.
    ///
    /// # Errors
    /// The mark is no name, or too long.
    pub fn new(host: &str, mark: &str) -> Result<Self, IdError> {
        let allowed = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '.' | '-') { c } else { '-' };
        let host: String = host.chars().map(allowed).take(crate::key::NAME_LIMIT).collect();
        let host = if host.parse::<ServiceName>().is_ok() { host } else { "unknown".to_owned() };
        format!("{host}:{mark}").parse()
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for DiscovererId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let (host, mark) = text.split_once(':').ok_or(IdError::Form)?;
        host.parse::<ServiceName>()?;
        mark.parse::<ServiceName>()?;
        if mark.len() > MARK_LIMIT {
            return Err(NameError::TooLong(mark.len()).into());
        }
        Ok(Self(text.into()))
    }
}

impl fmt::Display for DiscovererId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The directory of those who follow a prefix. Those of a longer prefix that begins with it lie below it too.
pub(crate) fn directory(prefix: &Prefix) -> Prefix {
    prefix.below_hidden(DIRECTORY)
}

/// The key of one of them.
pub fn path(prefix: &Prefix, id: &DiscovererId) -> String {
    format!("{}/{id}", directory(prefix).path())
}

/// Whose key a path is, and what that one follows. None where it is no such key.
pub fn parse_path(path: &str) -> Option<(Prefix, DiscovererId)> {
    let (prefix, id) = path.strip_prefix('/')?.strip_prefix(DIRECTORY)?.strip_prefix('/')?.rsplit_once('/')?;
    Some((prefix.parse().ok()?, id.parse().ok()?))
}

/// How an instance that drains stands with one discoverer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// HAProxy gives it nothing new, by its own word: its weight is 0, or it is not there.
    Drained,
    /// HAProxy still gives it new requests.
    Serving,
    /// HAProxy still gives it new requests, since all instances of its service drain and somebody has to answer.
    Last,
    /// HAProxy gives it nothing new, but for an old worker of HAProxy that a reload has left and that still has clients.
    OldWorker,
    /// HAProxy cannot be asked, or could not be.
    #[serde(other)]
    Unknown,
}

/// An instance that drains, as one discoverer sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drain {
    /// Whether it may get anything new.
    pub state: State,
    /// The sessions that it has of this HAProxy, those included that wait for it; not the idle connections in HAProxy's
    /// pool. None where they cannot be counted.
    #[serde(default)]
    pub sessions: Option<u64>,
}

impl Drain {
    /// It has nothing of this HAProxy, and will get nothing.
    pub const DONE: Self = Self { state: State::Drained, sessions: Some(0) };
    /// Nothing is known.
    pub const UNKNOWN: Self = Self { state: State::Unknown, sessions: None };

    /// Whether it has nothing of this HAProxy, and will get nothing.
    pub fn is_done(self) -> bool {
        self == Self::DONE
    }
}

/// What a discoverer writes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Acknowledgement {
    /// Which of etcd's APIs, and so which of its two stores, `index` belongs to; none for a store in memory.
    pub api: Option<Api>,
    /// Every change up to this index of etcd was taken in, and HAProxy was told of it or could not be.
    pub index: u64,
    /// When it was written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<Timestamp>,
    /// The version of the discoverer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// The instances that drain and that it routes to.
    #[serde(default, with = "addresses")]
    pub draining: BTreeMap<InstanceAddress, Drain>,
}

impl Acknowledgement {
    /// Reads a value.
    ///
    /// # Errors
    /// It is no such JSON object.
    pub fn parse(value: &str) -> Result<Self, RecordError> {
        if value.len() > VALUE_LIMIT * 16 {
            return Err(RecordError::TooLarge(value.len()));
        }
        if !value.trim_start().starts_with('{') {
            return Err(RecordError::Form);
        }
        let read: Self = serde_json::from_str(value).map_err(|error| RecordError::json(&error))?;
        check_text("version", read.version.as_deref().unwrap_or_default(), TEXT_LIMIT)?;
        Ok(read)
    }

    /// The value to write.
    pub fn to_value(&self) -> String {
        // All of it is text and numbers.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// How an instance stands that an operator drains with the change at `index` of the same API; none where nothing is known
    /// of that change yet. Whom the discoverer does not route to has nothing of it.
    pub fn of(&self, address: InstanceAddress, api: Option<Api>, index: u64) -> Option<Drain> {
        let knows = self.api == api && self.index >= index;
        knows.then(|| self.draining.get(&address).copied().unwrap_or(Drain::DONE))
    }
}

/// Addresses as the keys of a JSON object.
mod addresses {
    use super::{BTreeMap, Drain, InstanceAddress};
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(
        draining: &BTreeMap<InstanceAddress, Drain>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_map(draining.iter().map(|(address, drain)| (address.to_string(), drain)))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<BTreeMap<InstanceAddress, Drain>, D::Error> {
        let texts = BTreeMap::<String, Drain>::deserialize(deserializer)?;
        texts.into_iter().map(|(text, drain)| Ok((text.parse().map_err(D::Error::custom)?, drain))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn prefix(text: &str) -> Prefix {
        text.parse().unwrap()
    }

    fn id(text: &str) -> DiscovererId {
        text.parse().unwrap()
    }

    fn address(text: &str) -> InstanceAddress {
        text.parse().unwrap()
    }

    #[test]
    fn a_key_lies_beside_the_prefix_and_tells_whose_it_is() {
        let (short, long) = (prefix("prod"), prefix("prod/web"));
        let (of_short, of_long) = (path(&short, &id("lb-1:0f1d")), path(&long, &id("lb-1:0f1d")));
        assert_eq!(
            (of_short.as_str(), of_long.as_str()),
            ("/_discoverers/prod/lb-1:0f1d", "/_discoverers/prod/web/lb-1:0f1d")
        );
        assert_eq!(parse_path(&of_short), Some((short, id("lb-1:0f1d"))));
        assert_eq!(parse_path(&of_long), Some((long, id("lb-1:0f1d"))));
        for path in [
            "/_discoverers/prod/web",
            "/_discoverers/prod",
            "/_discoverers/prod/",
            "/_discoverers/lb-1:0f1d",
            "/_discoverers//lb-1:0f1d",
            "/_discoverers/_x/lb-1:0f1d",
            "/_discoverers/prod/a:b/c",
            "/_discoverersprod/lb-1:0f1d",
            "/prod/lb-1:0f1d",
        ] {
            assert_eq!(parse_path(path), None, "{path}");
        }
    }

    #[test]
    fn an_id_is_made_of_any_host_name_and_nothing_else_is_one() {
        assert_eq!(DiscovererId::new("lb-1.example", "ab12").unwrap().as_str(), "lb-1.example:ab12");
        assert_eq!(DiscovererId::new("läb_1/x", "ab12").unwrap().as_str(), "l-b-1-x:ab12");
        assert_eq!(DiscovererId::new("", "ab12").unwrap().as_str(), "unknown:ab12");
        assert_eq!(DiscovererId::new(&"a".repeat(100), "a").unwrap().as_str().len(), 66);
        let long = format!("a:{}", "b".repeat(33));
        for text in ["", "a", ":", "a:", ":b", "_a:b", "a:b:c", "a/b:c", "a:b/c", "a:\n", "a:..", &long] {
            assert!(text.parse::<DiscovererId>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_value_says_how_far_it_has_come_and_what_still_drains() {
        let value = r#"{"api":"v2","index":42,"at":"2026-01-02T03:04:05Z","version":"0.1.0","draining":
            {"10.0.0.1:8000":{"state":"drained","sessions":3},"[::1]:80":{"state":"old-worker"},
             "10.0.0.2:1":{"state":"something new","sessions":0}},"later":1}"#;
        let read = Acknowledgement::parse(value).unwrap();
        assert_eq!((read.api, read.index), (Some(Api::V2), 42));
        let three = Drain { state: State::Drained, sessions: Some(3) };
        assert_eq!(read.of(address("10.0.0.1:8000"), Some(Api::V2), 42), Some(three));
        assert!(!three.is_done());
        let old = Drain { state: State::OldWorker, sessions: None };
        assert_eq!(read.of(address("[::1]:80"), Some(Api::V2), 1), Some(old));
        // What a later version says is no promise.
        assert!(!read.of(address("10.0.0.2:1"), Some(Api::V2), 42).unwrap().is_done());
        // Who is not routed to has nothing of it.
        assert_eq!(read.of(address("10.0.0.9:8000"), Some(Api::V2), 42), Some(Drain::DONE));
        // It has not seen that change, or counts otherwise.
        assert_eq!(read.of(address("10.0.0.9:8000"), Some(Api::V2), 43), None);
        assert_eq!(read.of(address("10.0.0.1:8000"), Some(Api::V3), 42), None);
    }

    #[test]
    fn bad_values_are_refused_with_their_reason() {
        let cases = [
            ("", "neither"),
            ("running", "neither"),
            ("[]", "neither"),
            ("{", "no record"),
            ("{}", "no record"),
            (r#"{"api":"v2"}"#, "no record"),
            (r#"{"api":"v4","index":1}"#, "no record"),
            (r#"{"api":"v2","index":-1}"#, "no record"),
            (r#"{"api":"v2","index":1,"draining":{"10.0.0.1":{"state":"drained"}}}"#, "is not an address"),
            (r#"{"api":"v2","index":1,"draining":{"10.0.0.1:1":{"state":"drained","sessions":-1}}}"#, "no record"),
            (r#"{"api":"v2","index":1,"version":"a\nb"}"#, "control character"),
        ];
        for (value, reason) in cases {
            let error = Acknowledgement::parse(value).unwrap_err().to_string();
            assert!(error.contains(reason), "{value}: {error}");
        }
    }

    fn drain() -> impl Strategy<Value = Drain> {
        let states = [State::Drained, State::Serving, State::Last, State::OldWorker, State::Unknown];
        (proptest::sample::select(states.to_vec()), proptest::option::of(0..5u64))
            .prop_map(|(state, sessions)| Drain { state, sessions })
    }

    proptest! {
        #[test]
        fn an_acknowledgement_read_back_from_its_value_is_the_same(
            v3 in any::<Option<bool>>(), index: u64, second in proptest::option::of(0..4_000_000_000i64),
            draining in proptest::collection::btree_map((any::<[u8; 4]>(), 1..u16::MAX), drain(), 0..4),
        ) {
            let draining = draining.into_iter().filter_map(|((ip, port), drain)| {
                Some((InstanceAddress::new(ip.into(), port).ok()?, drain))
            });
            let written = Acknowledgement {
                api: v3.map(|v3| if v3 { Api::V3 } else { Api::V2 }),
                index,
                at: second.map(|second| Timestamp::from_second(second).unwrap()),
                version: None,
                draining: draining.collect(),
            };
            prop_assert_eq!(Acknowledgement::parse(&written.to_value()).unwrap(), written);
        }

        #[test]
        fn a_path_tells_where_its_prefix_ends(text in "[a-c](/[a-c]){0,2}", host in "[a-c]", mark in "[a-c]") {
            let (prefix, id) = (prefix(&text), DiscovererId::new(&host, &mark).unwrap());
            prop_assert_eq!(parse_path(&path(&prefix, &id)), Some((prefix, id)));
        }

        #[test]
        fn no_text_makes_the_parser_panic(value in ".{0,200}") {
            let _ = (Acknowledgement::parse(&value), value.parse::<DiscovererId>(), parse_path(&value));
        }
    }
}
