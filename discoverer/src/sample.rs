//! Made-up services of every kind, to try a template on before anything is registered. Pure.

use std::time::Instant;

use registry::{Entry, Listing, Position};

use crate::catalog::{Catalog, Options};
use crate::model::Services;

/// Keys below the prefix, and their values.
const SAMPLE: [(&str, &str); 9] = [
    ("192.0.2.1:8000", "running"),
    ("plain/192.0.2.7:8000", r#"{"attributes":{"check_http":"/health"}}"#),
    ("192.0.2.2:8000", r#"{"status":"draining"}"#),
    (
        "shop/192.0.2.1:8001",
        r#"{"attributes":{"host":"shop.example,www.shop.example","check_http":"/health","sticky":"true"}}"#,
    ),
    (
        "shop/[2001:db8::1]:8001",
        r#"{"weight":50,"tags":["blue"],"attributes":{"balance":"leastconn","maxconn":"100","slowstart":"30s"}}"#,
    ),
    ("api/192.0.2.3:8002", r#"{"attributes":{"host":"shop.example","path":"/api","balance":"uri"}}"#),
    ("files/192.0.2.4:8003", r#"{"attributes":{"path":"/files/","proto":"https"}}"#),
    ("grpc/192.0.2.5:8004", r#"{"attributes":{"host":"grpc.example","proto":"h2","balance":"random"}}"#),
    (
        "db/192.0.2.6:5432",
        r#"{"name":"db-1","host":"host-1","attributes":{"mode":"tcp","listen":"5432","balance":"source","sticky":"true"}}"#,
    ),
];

/// The made-up services, and one of them without instances.
pub(crate) fn services(options: &Options) -> Services {
    let mut options = options.clone();
    options.listen_ports = vec![1..=u16::MAX];
    let prefix = options.prefix.path();
    let entries = SAMPLE.into_iter().map(|(key, value)| Entry::new(format!("{prefix}/{key}"), value));
    let mut catalog = Catalog::new(options);
    let listing = Listing { entries: entries.collect(), directories: None, position: Position::new(None, 0) };
    catalog.list(listing, Instant::now());
    catalog.apply(
        registry::Event::Removed { path: format!("{prefix}/grpc/192.0.2.5:8004"), cause: registry::Cause::Deleted },
        Instant::now(),
    );
    catalog.services().clone()
}
