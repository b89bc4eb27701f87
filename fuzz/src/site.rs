//! From what etcd holds to HAProxy's configuration, and to the file in the state directory.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use discoverer::catalog::{Catalog, Options};
use discoverer::fuzz::{snapshot as read, snapshot_text};
use discoverer::plan::Parsed;
use discoverer::render::{Surroundings, Templates};
use discoverer::share::Share;
use jiff::Timestamp;
use registry::{Cause, Entry, Event, Listing, Position};

use crate::plan::on_the_way;
use crate::{is_fit_to_tell, prefix, text};

fn catalog() -> Catalog {
    Catalog::new(Options {
        prefix: prefix(),
        share: Share::default(),
        listen_ports: vec![1024..=65535],
        forget_after: Duration::from_secs(24 * 60 * 60),
        suspect_for: Duration::from_secs(600),
        least_life: Duration::from_secs(20),
    })
}

fn templates() -> Templates {
    let sources = [
        ("haproxy.cfg.tera", include_str!("../../templates/haproxy.cfg.tera")),
        ("backend.tera", include_str!("../../templates/backend.tera")),
        ("server.tera", include_str!("../../templates/server.tera")),
    ];
    let sources: BTreeMap<_, _> = sources.into_iter().map(|(name, text)| (name.to_owned(), text.to_owned())).collect();
    Templates::parse("haproxy.cfg.tera", &sources).expect("the shipped templates")
}

/// What happens in etcd, an event a line: `+path value`, `-path`, `xpath` (it expires), `dpath` (a directory), `=` (all is listed).
pub(crate) fn site(input: &[u8]) {
    let text = text(input);
    let (mut catalog, templates, surroundings) = (catalog(), templates(), Surroundings::default());
    let start = Instant::now();
    let mut held: BTreeMap<String, Entry> = BTreeMap::new();
    let mut last: Option<Parsed> = None;
    for (number, line) in text.lines().take(24).enumerate() {
        let now = start + Duration::from_secs(number as u64);
        let index = number as u64 + 1;
        let Some(kind) = line.chars().next() else { continue };
        let rest = &line[kind.len_utf8()..];
        let cause = if kind == 'x' { Cause::Expired } else { Cause::Deleted };
        match kind {
            '+' => {
                let (path, value) = rest.split_once(' ').unwrap_or((rest, "running"));
                let created = held.get(path).map_or(index, Entry::created_index);
                let entry = Entry::created(path.to_owned(), value.to_owned(), created);
                held.insert(path.to_owned(), entry.clone());
                catalog.apply(Event::Put(entry), now);
            }
            '-' | 'x' => {
                held.remove(rest);
                catalog.apply(Event::Removed { path: rest.to_owned(), cause }, now);
            }
            'd' => {
                let root = format!("{}/", rest.trim_end_matches('/'));
                held.retain(|path, _| !path.starts_with(&root));
                catalog.apply(Event::RemovedTree { path: rest.to_owned(), cause }, now);
            }
            '=' => {
                let position = Position::new(Some("c1".to_owned()), index);
                let entries = held.values().cloned().collect();
                catalog.list(Listing { entries, directories: None, position }, now);
            }
            _ => continue,
        }
        for left_out in catalog.left_out() {
            is_fit_to_tell(&left_out.subject);
            is_fit_to_tell(&left_out.reason);
        }
        let _draining = catalog.draining();
        let config = templates.render(catalog.services(), &surroundings).expect("the shipped templates take all");
        assert!(!config.chars().any(|c| c.is_control() && c != '\n'), "{config:?}");
        let parsed = Parsed::new(config);
        let mut told: Vec<String> =
            parsed.servers().map(|server| format!("{}/{}", server.backend, server.name)).collect();
        let instances = catalog.services().values().flat_map(|service| {
            service.instances.iter().map(|instance| format!("{}/{}", service.name, instance.server))
        });
        let mut wanted: Vec<String> = instances.collect();
        told.sort();
        wanted.sort();
        assert_eq!(told, wanted);
        if let Some(last) = &last {
            on_the_way(last, &parsed);
        }
        last = Some(parsed);
    }
    // What was rendered line by line is what is rendered at once.
    if let Some(last) = last {
        assert_eq!(self::templates().render(catalog.services(), &surroundings).ok().as_deref(), Some(last.text()));
    }
    kept(&catalog, start);
}

/// What is kept over a restart is known after it.
fn kept(known: &Catalog, start: Instant) {
    let now = start + Duration::from_secs(60);
    let Some(kept) = known.kept(now) else { return };
    let written = Timestamp::now();
    let text = snapshot_text(&kept, &prefix(), written);
    let text = String::from_utf8(text).expect("JSON is UTF-8");
    let (read, at) = read(&text, &prefix()).expect("what was written is read");
    assert_eq!((&read.entries, &read.position, at), (&kept.entries, &kept.position, written));
    let mut restored = catalog();
    restored.restore(read, now);
    let again = restored.kept(now).expect("it was restored");
    assert_eq!(again.entries, kept.entries);
}

/// The file in the state directory.
pub(crate) fn snapshot(input: &[u8]) {
    match read(&text(input), &prefix()) {
        Ok((kept, written)) => {
            let text = String::from_utf8(snapshot_text(&kept, &prefix(), written)).expect("JSON is UTF-8");
            let (again, at) = read(&text, &prefix()).expect("what was written is read");
            assert_eq!((&again.entries, &again.position, at), (&kept.entries, &kept.position, written));
            let (mut catalog, now) = (catalog(), Instant::now());
            catalog.restore(again, now);
            let _due = catalog.next_forget();
            catalog.forget(now);
            let _config = templates().render(catalog.services(), &Surroundings::default()).expect("they take all");
        }
        Err(error) => is_fit_to_tell(&error.to_string()),
    }
}
