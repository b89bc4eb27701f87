//! Who is still to be waited for, from what the discoverers say of themselves. Pure: no I/O, no clock.

use std::collections::BTreeMap;
use std::fmt;

use registry::acknowledgement::{Drain, State};
use registry::{Acknowledgement, Api, DiscovererId, InstanceAddress, InstanceKey, Prefix};
use serde::{Serialize, Serializer};

use crate::list::shown;

/// A discoverer that has not done with an instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Pending {
    #[serde(serialize_with = "as_text")]
    pub(super) discoverer: DiscovererId,
    #[serde(serialize_with = "as_text")]
    pub(super) address: InstanceAddress,
    #[serde(rename = "reason", serialize_with = "as_text")]
    pub(super) why: Why,
}

/// Why not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Why {
    /// It has not heard of it, or not said so.
    NoAnswer,
    /// It follows the other of etcd's stores.
    OtherApi,
    /// What it says cannot be read.
    Unreadable(String),
    /// Something is left.
    Left(Drain),
}

/// What a discoverer says of itself: what it follows, who it is, and its words.
pub(super) type Published = (Prefix, DiscovererId, String);

/// The discoverers that follow one of these keys, each of which drains since an index of etcd: in either layout, since what is
/// flat below one directory is nested below the one above it. With what each still has; sorted.
pub(super) fn judge(
    published: &[Published],
    keys: &BTreeMap<InstanceKey, u64>,
    api: Option<Api>,
) -> Vec<(DiscovererId, Vec<Pending>)> {
    let mut all = Vec::new();
    for (prefix, id, value) in published {
        let mut wanted: BTreeMap<InstanceAddress, u64> = BTreeMap::new();
        for (key, index) in keys.iter().filter(|(key, _)| InstanceKey::parse(prefix, &key.path()).is_ok()) {
            let since = wanted.entry(key.address()).or_default();
            *since = (*since).max(*index);
        }
        if !wanted.is_empty() {
            all.push((id.clone(), pending(id, value, &wanted, api)));
        }
    }
    all.sort_by(|(one, _), (other, _)| one.cmp(other));
    all
}

/// What a discoverer has not done with.
fn pending(id: &DiscovererId, value: &str, wanted: &BTreeMap<InstanceAddress, u64>, api: Option<Api>) -> Vec<Pending> {
    let says = Acknowledgement::parse(value);
    let why = |address: &InstanceAddress, index: u64| match &says {
        Err(error) => Some(Why::Unreadable(shown(error))),
        Ok(says) if says.api != api => Some(Why::OtherApi),
        Ok(says) => match says.of(*address, api, index) {
            None => Some(Why::NoAnswer),
            Some(drain) => (!drain.is_done()).then_some(Why::Left(drain)),
        },
    };
    let pending = |(address, index): (&InstanceAddress, &u64)| {
        Some(Pending { discoverer: id.clone(), address: *address, why: why(address, *index)? })
    };
    wanted.iter().filter_map(pending).collect()
}

impl fmt::Display for Pending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} {}", self.discoverer, self.address, self.why)
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Drain { state, sessions } = match self {
            Self::NoAnswer => return f.write_str("has no answer yet"),
            Self::OtherApi => return f.write_str("has no answer: this discoverer follows etcd by its other API"),
            Self::Unreadable(error) => return write!(f, "has an answer that cannot be read: {error}"),
            Self::Left(drain) => drain,
        };
        let what = match (state, sessions) {
            (State::Drained, Some(1)) => return f.write_str("still has 1 session"),
            (State::Drained, Some(count)) => return write!(f, "still has {count} sessions"),
            (State::Drained | State::Unknown, None) | (State::Unknown, _) => {
                return f.write_str("may have sessions: they cannot be counted there");
            }
            (State::Serving, _) => "still gets new requests",
            (State::Last, _) => {
                "still gets new requests, since all instances of its service drain and somebody has to answer"
            }
            (State::OldWorker, _) => "may still get requests of an old worker of HAProxy, which a reload has left",
        };
        match sessions {
            Some(count) => write!(f, "{what} (sessions: {count})"),
            None => f.write_str(what),
        }
    }
}

fn as_text<S: Serializer>(value: &impl fmt::Display, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ADDRESS: &str = "10.0.0.1:80";

    fn says(draining: &str) -> String {
        format!(r#"{{"api":"v2","index":7,"draining":{{{draining}}}}}"#)
    }

    fn wanted(index: u64) -> BTreeMap<InstanceAddress, u64> {
        BTreeMap::from([(ADDRESS.parse().unwrap(), index)])
    }

    fn told(value: &str, index: u64, api: Api) -> Vec<String> {
        let left = pending(&"lb-1:ab".parse().unwrap(), value, &wanted(index), Some(api));
        left.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_discoverer_is_waited_for_until_it_says_that_nothing_is_left() {
        let state =
            |state: &str, sessions: &str| says(&format!(r#""{ADDRESS}":{{"state":"{state}","sessions":{sessions}}}"#));
        let cases = [
            (state("drained", "0"), ""),
            // It routes to nothing of it.
            (says(""), ""),
            (says(r#""10.0.0.2:80":{"state":"serving","sessions":3}"#), ""),
            (state("drained", "1"), "still has 1 session"),
            (state("drained", "2"), "still has 2 sessions"),
            (state("drained", "null"), "cannot be counted"),
            (state("unknown", "null"), "cannot be counted"),
            (state("serving", "0"), "still gets new requests (sessions: 0)"),
            (state("last", "4"), "somebody has to answer (sessions: 4)"),
            (state("old-worker", "0"), "an old worker of HAProxy"),
            (state("of a later version", "0"), "cannot be counted"),
            ("rubbish".to_owned(), "cannot be read"),
            (r#"{"api":"\u001b[2J"}"#.to_owned(), "cannot be read"),
        ];
        for (value, expected) in cases {
            let told = told(&value, 7, Api::V2);
            assert_eq!(told.is_empty(), expected.is_empty(), "{value}: {told:?}");
            assert!(
                told.iter().all(|line| line.starts_with("lb-1:ab: 10.0.0.1:80 ") && line.contains(expected)),
                "{told:?}"
            );
            assert!(told.iter().all(|line| !line.contains(char::is_control)), "{told:?}");
        }
        assert_eq!(told(&state("drained", "0"), 8, Api::V2), ["lb-1:ab: 10.0.0.1:80 has no answer yet"]);
        assert!(told(&state("drained", "0"), 7, Api::V3)[0].contains("other API"));
    }

    #[test]
    fn those_who_follow_a_key_in_either_layout_are_asked_and_no_others() {
        let prefix = |text: &str| text.parse::<Prefix>().unwrap();
        let key = |path: &str| InstanceKey::parse(&prefix("prod/service"), path).unwrap();
        let published = ["prod", "prod/service", "prod/service/web", "prod/service/other", "prod/other"]
            .map(|follows| (prefix(follows), DiscovererId::new(&follows.replace('/', "-"), "a").unwrap(), says("")));
        let asked = |paths: &[&str]| {
            let keys = paths.iter().map(|path| (key(path), 7)).collect();
            let judged = judge(&published, &keys, Some(Api::V2));
            judged.into_iter().map(|(id, left)| (id.as_str().to_owned(), left.len())).collect::<Vec<_>>()
        };
        let done = |ids: &[&str]| ids.iter().map(|id| ((*id).to_owned(), 0)).collect::<Vec<_>>();
        let nested = "/prod/service/web/10.0.0.1:80";
        assert_eq!(asked(&[nested]), done(&["prod-service-web:a", "prod-service:a"]));
        assert_eq!(asked(&["/prod/service/10.0.0.1:80"]), done(&["prod-service:a", "prod:a"]));
        assert_eq!(asked(&[]), done(&[]));
        // One address in two services is waited for once, until what was said last is heard of.
        let keys = BTreeMap::from([(key(nested), 7), (key("/prod/service/other/10.0.0.1:80"), 8)]);
        let judged = judge(&published[1..2], &keys, Some(Api::V2));
        assert!(matches!(&judged[..], [(_, left)] if left.len() == 1 && left[0].why == Why::NoAnswer), "{judged:?}");
    }

    proptest! {
        /// Whatever is read, nobody counts as done who has not heard of it, or has a session.
        #[test]
        fn nobody_is_done_too_early(
            index in 0..3u64, since in 0..3u64, sessions in proptest::option::of(0..2u64), state in 0..5usize,
        ) {
            let states = [State::Drained, State::Serving, State::Last, State::OldWorker, State::Unknown];
            let drain = Drain { state: states[state], sessions };
            let draining = BTreeMap::from([(ADDRESS.parse().unwrap(), drain)]);
            let says = Acknowledgement { api: Some(Api::V2), index, at: None, version: None, draining };
            let left = told(&says.to_value(), since, Api::V2);
            let is_done = index >= since && state == 0 && sessions == Some(0);
            prop_assert_eq!(left.is_empty(), is_done);
        }
    }
}
