//! What comes from etcd: keys, values, replies, streams.

use registry::acknowledgement::{parse_path, path};
use registry::fuzz::{V2Reply, V3Reply, lines, v2_reply, v3_message, v3_reply};
use registry::record::VALUE_LIMIT;
use registry::{Acknowledgement, DiscovererId, Entry, Event, InstanceKey, Prefix, Record, settings};

use crate::{is_fit_to_tell, is_short, prefix, text, two};

/// The statuses that a reply is read with: each of them is judged in a way of its own.
const STATUSES: [u16; 6] = [200, 400, 401, 404, 500, 503];

/// A prefix, and a path below it.
pub(crate) fn key(input: &[u8]) {
    let (given, path) = two(input);
    match given.parse::<Prefix>() {
        Ok(prefix) => {
            let again: Prefix = prefix.path().parse().expect("a prefix is read back");
            assert_eq!(again, prefix);
            let whole = format!("{}/{path}", prefix.path());
            one_key(&prefix, &whole);
            acknowledged(&whole);
        }
        Err(error) => is_fit_to_tell(&error.to_string()),
    }
    one_key(&prefix(), &path);
    acknowledged(&path);
}

fn one_key(prefix: &Prefix, path: &str) {
    match InstanceKey::parse(prefix, path) {
        Ok(key) => {
            // Two paths of one instance would be two keys in etcd that are taken for one.
            assert_eq!(key.path(), path);
            assert_eq!(InstanceKey::parse(prefix, &key.path()).as_ref(), Ok(&key));
            assert!(!key.service().as_str().starts_with('_'));
        }
        Err(error) => is_fit_to_tell(&error.to_string()),
    }
}

fn acknowledged(text: &str) {
    if let Some((prefix, id)) = parse_path(text) {
        assert_eq!(parse_path(&path(&prefix, &id)), Some((prefix, id)));
    }
    if let Ok(id) = text.parse::<DiscovererId>() {
        assert_eq!(id.as_str(), text);
    }
}

/// An instance's value.
pub(crate) fn record(input: &[u8]) {
    let text = text(input);
    match Record::parse(&text) {
        Ok(record) => {
            let value = record.to_value();
            assert!(value.len() <= VALUE_LIMIT, "{} bytes came of {}", value.len(), text.len());
            assert_eq!(Record::parse(&value).as_ref(), Ok(&record));
            // What is done to it before it is written again.
            let draining = Record { status: registry::Status::Draining, stopping: true, ..record };
            assert_eq!(Record::parse(&draining.to_value()), Ok(draining));
        }
        Err(error) => is_short(&error.to_string()),
    }
}

/// What a discoverer says of itself.
pub(crate) fn acknowledgement(input: &[u8]) {
    match Acknowledgement::parse(&text(input)) {
        Ok(read) => assert_eq!(Acknowledgement::parse(&read.to_value()), Ok(read)),
        Err(error) => is_short(&error.to_string()),
    }
}

/// An attribute: its name, and its value.
pub(crate) fn setting(input: &[u8]) {
    let (name, value) = two(input);
    if let Err(error) = settings::check(&name, &value) {
        is_fit_to_tell(&error.to_string());
    }
    // Each type takes what it writes, and that is one word of a configuration.
    let is_word = |text: &str| {
        assert!(
            !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic() && !b"\"'\\#$;{}".contains(&b)),
            "{text:?}"
        );
    };
    if let Ok(hosts) = value.parse::<settings::HostNames>() {
        is_word(hosts.as_str());
        assert_eq!(hosts.as_str().parse().as_ref(), Ok(&hosts));
        assert_eq!(settings::HostNames::of(hosts.iter()).as_ref(), Some(&hosts));
    }
    if let Ok(path) = value.parse::<settings::UrlPath>() {
        is_word(path.as_str());
        assert_eq!(path.as_str().parse().as_ref(), Ok(&path));
        if let Some(shorter) = path.without_last_slash() {
            assert_eq!(shorter.as_str().parse().as_ref(), Ok(&shorter));
        }
    }
    if let Ok(span) = value.parse::<settings::Span>() {
        is_word(span.as_str());
        assert_eq!(span.as_str(), value);
    }
    if let Ok(balance) = value.parse::<settings::Balance>() {
        assert_eq!(balance.as_str(), value);
    }
    if let Ok(port) = settings::parse_port(&value) {
        assert_ne!(port, 0);
    }
    if let Ok(most) = settings::parse_maxconn(&value) {
        assert!((1..=1_000_000).contains(&most));
    }
}

/// A whole reply of the v2 API.
pub(crate) fn v2(input: &[u8]) {
    for status in STATUSES {
        let reply = v2_reply(status, input, &prefix());
        match &reply {
            V2Reply::NotEtcd(words) | V2Reply::Refused { words, .. } => is_fit_to_tell(words),
            V2Reply::Change { entries, event, .. } => {
                assert_eq!(status, 200);
                assert!(entries.is_sorted_by(|a, b| a.path <= b.path));
                entries.iter().for_each(taken);
                match event {
                    Ok(Some(Event::Put(entry))) => {
                        assert!(prefix().below(&entry.path).is_some_and(|below| !below.is_empty()), "{entry:?}");
                        taken(entry);
                    }
                    Ok(Some(Event::Removed { .. } | Event::RemovedTree { .. }) | None) => {}
                    Err(reason) => is_fit_to_tell(&reason.to_string()),
                }
                // Half a reply is none.
                let end = input.trim_ascii_end().len();
                for cut in [end / 2, end.saturating_sub(1)] {
                    let half = v2_reply(status, &input[..cut], &prefix());
                    assert!(matches!(half, V2Reply::NotEtcd(_)), "{half:?}");
                }
            }
        }
        assert_eq!(v2_reply(status, input, &prefix()), reply);
    }
}

/// A whole reply of the v3 API, or a message of a watch.
pub(crate) fn v3(input: &[u8]) {
    for status in STATUSES {
        for reply in v3_reply(status, input, &prefix()) {
            match reply {
                V3Reply::NotEtcd(words) | V3Reply::Refused(words) => is_fit_to_tell(&words),
                V3Reply::Entries(entries) => entries.iter().for_each(taken),
                V3Reply::Lease { keys, .. } => {
                    assert_eq!(status, 200);
                    keys.iter().for_each(|key| one_key(&prefix(), key));
                }
            }
        }
    }
    match v3_message(input) {
        Ok(watched) => {
            watched.events.iter().for_each(|(_, _, entry)| taken(entry));
            watched.ended.iter().for_each(|words| is_fit_to_tell(words));
        }
        Err(words) => is_fit_to_tell(&words),
    }
}

/// A key that was read is an instance, or is refused in words.
fn taken(entry: &Entry) {
    one_key(&prefix(), &entry.path);
    if let Err(error) = Record::parse(&entry.value) {
        is_short(&error.to_string());
    }
}

/// A stream. Its first byte says in which pieces it comes, which must make no difference.
pub(crate) fn stream(input: &[u8]) {
    let (&first, bytes) = input.split_first().unwrap_or((&0, &[]));
    let whole = lines([bytes]);
    assert_eq!(lines(bytes.chunks(usize::from(first).max(1))), whole);
    assert_eq!(lines(bytes.chunks(1)), whole);
    let (lines, rest) = whole;
    assert!(lines.iter().all(|line| line.iter().position(|byte| *byte == b'\n') == Some(line.len() - 1)));
    assert!(!rest.contains(&b'\n'));
    assert_eq!([lines.concat(), rest].concat(), bytes);
    for line in lines {
        if let Err(words) = v3_message(&line) {
            is_fit_to_tell(&words);
        }
    }
}
