//! A picture in which all is well, for tests.

use std::collections::BTreeMap;

use jiff::Timestamp;
use registry::StoreKind;

use crate::report::{
    AppliedReport, Connection, DiscovererReport, HaproxyReport, InstanceReport, LeftOutReport, RegistryView, Report,
    ServerReport, ServiceHead, ServiceReport, Status, StatusReport,
};

/// When all began.
pub(crate) fn then() -> Timestamp {
    "2026-11-27T12:00:00Z".parse().unwrap()
}

/// 100 s later.
pub(crate) fn now() -> Timestamp {
    "2026-11-27T12:01:40Z".parse().unwrap()
}

/// A key that is no instance's.
pub(crate) fn bad_key() -> LeftOutReport {
    LeftOutReport {
        what: "key".to_owned(),
        service: None,
        address: None,
        subject: "/service/web/nonsense".to_owned(),
        reason: "\"nonsense\" is not an address".to_owned(),
    }
}

/// Service `web` with one instance.
pub(crate) fn report() -> Report {
    let status = StatusReport {
        version: 1,
        at: then(),
        is_ready: true,
        discoverer: DiscovererReport {
            id: "lb-1:ab".to_owned(),
            version: "0.1.0".to_owned(),
            started: then(),
            output: "/etc/haproxy/haproxy.cfg".to_owned(),
            template: "templates/haproxy.cfg.tera".to_owned(),
            template_error: None,
            config_error: None,
            unread_options: Vec::new(),
        },
        registry: RegistryView {
            store: StoreKind::Etcd,
            endpoints: vec!["http://10.0.0.9:2379".to_owned()],
            prefix: "service".to_owned(),
            only: Vec::new(),
            outside: 0,
            connection: Connection::Connected,
            since: then(),
            error: None,
            index: 7,
            last_change: Some(then()),
            docker_error: None,
            stale_since: None,
        },
        haproxy: HaproxyReport {
            way: "supervise".to_owned(),
            version: Some("2.6.12".to_owned()),
            worker: Some(9),
            worker_started: Some(then()),
            is_up: Some(true),
            reloads: BTreeMap::new(),
            last_reload: None,
            applied: Some(AppliedReport { at: then(), how: "reload".to_owned() }),
            applying_since: None,
            error: None,
            unfiled: None,
            distrust: None,
        },
        services_by_status: BTreeMap::from([("up".to_owned(), 1)]),
        instances_by_status: BTreeMap::from([("up".to_owned(), 1)]),
        left_out: Vec::new(),
        more_left_out: 0,
        unrouted: Vec::new(),
        troubles: Vec::new(),
    };
    Report { status, services: vec![service("web", &["10.0.0.1:80"])] }
}

/// A service all of whose instances are up.
pub(crate) fn service(name: &str, addresses: &[&str]) -> ServiceReport {
    let head = ServiceHead {
        name: name.to_owned(),
        mode: "http".to_owned(),
        host: Some(format!("{name}.example")),
        path: None,
        listen: None,
        balance: "roundrobin".to_owned(),
        check: None,
        proto: "http".to_owned(),
        sticky: false,
        maxconn: None,
        slowstart: None,
        flat: false,
        tags: Vec::new(),
        attributes: BTreeMap::new(),
        status: Status::Up,
        instances_by_status: BTreeMap::new(),
        left_out: Vec::new(),
    };
    ServiceReport { head, instances: addresses.iter().map(|address| instance(address)).collect() }
}

fn instance(address: &str) -> InstanceReport {
    InstanceReport {
        address: address.parse().unwrap(),
        server: address.replace(':', "_"),
        status: Status::Up,
        reason: None,
        weight: 100,
        name: Some("web-1".to_owned()),
        host: Some("host-1".to_owned()),
        id: Some("2d15cafe".to_owned()),
        agent: Some("a1".to_owned()),
        tags: Vec::new(),
        attributes: BTreeMap::new(),
        started: None,
        haproxy: Some(ServerReport {
            check: "UP".to_owned(),
            is_down: false,
            check_status: Some("L4OK".to_owned()),
            last_check: None,
            weight: 100,
            sessions: 3,
            queued: 0,
            since: None,
        }),
    }
}
