//! What comes from Docker and from those who start containers: inspections, labels, events, the kernel's files.

use std::collections::HashMap;
use std::time::Duration;

use bollard::models::{ContainerInspectResponse, EventMessage};
use registrar::config::CheckFlags;
use registrar::own::{Traces, candidates, is_container_name, is_this};
use registrar::service::{CheckKind, DefaultAddress, Domains, Findings, Scope, said, services};
use registry::{InstanceKey, Record, settings};

use crate::{is_fit_to_tell, prefix, text, two};

/// A container that publishes two ports, as Docker 20.10.24 shows it, without what it says of itself.
const PLAIN: &str = include_str!("../../registrar/tests/fixtures/docker-20.10.24/inspect-owner.json");

fn scope(explicit: bool, internal: bool, bounded: bool) -> Scope {
    Scope {
        prefix: prefix(),
        agent: "agent-1".to_owned(),
        host_name: "host-1".to_owned(),
        ip: None,
        default_address: DefaultAddress { v4: Some([10, 1, 0, 101].into()), v6: None },
        explicit,
        internal,
        network: None,
        domains: if bounded { "*.a.example".parse().expect("it is a domain") } else { Domains::any() },
        allow_exec: true,
        check: CheckFlags { interval: Duration::from_secs(5), timeout: Duration::from_secs(3), rise: 1, fall: 3 },
    }
}

/// What others will read of a container: all of it is taken by those who read it.
fn found(container: &ContainerInspectResponse) {
    for bits in 0..8_u8 {
        let scope = scope(bits & 1 != 0, bits & 2 != 0, bits & 4 != 0);
        let findings = services(container, None, &scope);
        assert_eq!(services(container, None, &scope), findings);
        taken(&findings);
        if bits & 2 == 0 {
            taken(&services(container, Some(container), &scope));
        }
    }
    let _shown = said(container);
}

fn taken(findings: &Findings) {
    let Findings { registrations, refusals } = findings;
    assert!(registrations.is_sorted_by(|a, b| a.key < b.key));
    for registration in registrations {
        assert_eq!(InstanceKey::parse(&prefix(), &registration.key.path()).as_ref(), Ok(&registration.key));
        assert_eq!(Record::parse(&registration.record.to_value()).as_ref(), Ok(&registration.record));
        for (name, value) in &registration.record.attributes {
            assert_eq!(settings::check(name, value), Ok(()), "{name}={value:?}");
        }
        let check = &registration.check;
        assert!(!check.interval.is_zero() && !check.timeout.is_zero() && check.rise > 0 && check.fall > 0, "{check:?}");
        match &check.kind {
            CheckKind::Http(http) => assert!(http.path.starts_with('/') && !http.targets.is_empty(), "{http:?}"),
            CheckKind::Exec { command } => assert!(!command.is_empty()),
            CheckKind::Tcp { .. } | CheckKind::Docker | CheckKind::None => {}
        }
    }
    refusals.iter().for_each(|refusal| is_fit_to_tell(&refusal.to_string()));
}

/// Docker's reply to an inspection.
pub(crate) fn inspect(input: &[u8]) {
    if let Ok(container) = serde_json::from_slice::<ContainerInspectResponse>(input) {
        found(&container);
    }
}

/// Labels, and behind a byte 0 variables, each `NAME=VALUE` on a line.
pub(crate) fn labels(input: &[u8]) {
    let (labels, variables) = two(input);
    let mut container: ContainerInspectResponse = serde_json::from_str(PLAIN).expect("Docker's own reply");
    let config = container.config.get_or_insert_default();
    let pair = |line: &str| {
        let (name, value) = line.split_once('=')?;
        Some((name.to_owned(), value.replace("\\n", "\n")))
    };
    config.labels = Some(labels.lines().filter_map(pair).collect::<HashMap<_, _>>());
    config.env = Some(variables.lines().map(str::to_owned).collect());
    found(&container);
}

/// A rule of Traefik's.
pub(crate) fn rule(input: &[u8]) {
    match registrar::fuzz::rule(&text(input)) {
        Ok((hosts, path)) => {
            assert!(hosts.is_sorted() && hosts.windows(2).all(|two| two[0] != two[1]), "{hosts:?}");
            // Said in the same words again it means the same. A text with each of the quotes in it cannot be said.
            let quoted = |text: &String| {
                let quote = ['`', '"', '\''].into_iter().find(|quote| !text.contains(*quote))?;
                Some(format!("{quote}{text}{quote}"))
            };
            let Some(names) = hosts.iter().map(quoted).collect::<Option<Vec<_>>>() else { return };
            let Some(prefix) = path.iter().map(quoted).collect::<Option<Vec<_>>>() else { return };
            let host = (!names.is_empty()).then(|| format!("Host({})", names.join(", ")));
            let path_prefix = prefix.first().map(|path| format!("PathPrefix({path})"));
            let again: Vec<String> = host.into_iter().chain(path_prefix).collect();
            assert_eq!(registrar::fuzz::rule(&again.join(" && ")), Ok((hosts, path)));
        }
        Err(error) => is_fit_to_tell(&error.to_string()),
    }
}

/// An event of Docker's.
pub(crate) fn event(input: &[u8]) {
    let Ok(message) = serde_json::from_slice::<EventMessage>(input) else { return };
    let event = registrar::fuzz::event(&message);
    assert_eq!(registrar::fuzz::event(&message), event);
}

/// The kernel's files as a container sees them: `/proc/self/mountinfo`, and behind a byte 0 `/proc/self/cgroup`.
pub(crate) fn own(input: &[u8]) {
    let (mountinfo, cgroup) = two(input);
    let hostname = cgroup.lines().next().unwrap_or_default().to_owned();
    let traces = Traces { mountinfo: mountinfo.into_owned(), cgroup: cgroup.into_owned(), hostname };
    for candidate in candidates(None, &traces) {
        // It is asked after in a URL.
        assert!(is_container_name(candidate.name()), "{candidate:?}");
        assert!(!is_this(&candidate, &ContainerInspectResponse::default()));
    }
}
