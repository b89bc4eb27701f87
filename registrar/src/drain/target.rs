//! Whose a key is. Pure: no I/O, no clock.

use std::collections::BTreeSet;
use std::net::IpAddr;

use bollard::models::ContainerInspectResponse;
use registry::{InstanceAddress, InstanceKey, Record};

use crate::service::address;

/// Whose keys are meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Owner {
    /// One container's.
    Container {
        /// Its id, which is in the keys that an agent writes.
        id: String,
        /// Where a sidekick in it registers it: such a key says nothing of itself.
        addresses: BTreeSet<InstanceAddress>,
    },
    /// All of an agent's.
    Agent(String),
}

impl Owner {
    /// A container; `ip` is the host's address as its sidekick was given it.
    pub(super) fn of_container(container: &ContainerInspectResponse, ip: Option<IpAddr>) -> Self {
        let ports = container.network_settings.as_ref().and_then(|settings| settings.ports.as_ref());
        let port = |name: &String| name.strip_suffix("/tcp")?.parse().ok();
        let published = ports.into_iter().flat_map(|ports| ports.keys()).filter_map(port);
        let addresses = published.filter_map(|port| address(container, port, ip).ok()).collect();
        Self::Container { id: container.id.clone().unwrap_or_default(), addresses }
    }
}

/// Whether a key is theirs.
pub(super) fn is_of(owner: &Owner, key: &InstanceKey, record: &Record) -> bool {
    match owner {
        Owner::Agent(agent) => record.agent.as_ref() == Some(agent),
        Owner::Container { id, addresses } => match &record.id {
            Some(of) => of == id && !id.is_empty(),
            None => record.agent.is_none() && addresses.contains(&key.address()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container(bindings: &str) -> ContainerInspectResponse {
        let text = format!(r#"{{"Id":"2d15","NetworkSettings":{{"Ports":{bindings}}}}}"#);
        serde_json::from_str(&text).unwrap()
    }

    fn is_its(owner: &Owner, path: &str, value: &str) -> bool {
        let key = InstanceKey::parse(&"service".parse().unwrap(), path).unwrap();
        is_of(owner, &key, &Record::parse(value).unwrap())
    }

    #[test]
    fn an_agents_key_says_whose_it_is_and_a_sidekicks_lies_where_the_container_is_reached() {
        let bindings = r#"{"8000/tcp":[{"HostIp":"10.1.0.101","HostPort":"32768"}],
            "8001/tcp":[{"HostIp":"0.0.0.0","HostPort":"32769"}],"8002/udp":[{"HostIp":"10.1.0.101","HostPort":"32770"}],"9/tcp":null}"#;
        let container = container(bindings);
        let owner = Owner::of_container(&container, None);
        let id = r#"{"id":"2d15","agent":"a1"}"#;
        assert!(is_its(&owner, "/service/web/10.9.9.9:1", id));
        assert!(!is_its(&owner, "/service/web/10.1.0.101:32768", r#"{"id":"2d16","agent":"a1"}"#));
        assert!(!is_its(&owner, "/service/web/10.1.0.101:32768", r#"{"agent":"static-host-1"}"#));
        assert!(is_its(&owner, "/service/10.1.0.101:32768", "running"));
        assert!(is_its(&owner, "/service/10.1.0.101:32768", r#"{"status":"draining"}"#));
        for path in ["/service/10.1.0.101:32769", "/service/10.1.0.101:32770", "/service/10.1.0.102:32768"] {
            assert!(!is_its(&owner, path, "running"), "{path}");
        }
        let with_ip = Owner::of_container(&container, "10.1.0.101".parse().ok());
        assert!(is_its(&with_ip, "/service/10.1.0.101:32769", "running"));
        let nobody = Owner::of_container(&ContainerInspectResponse::default(), None);
        assert!(!is_its(&nobody, "/service/web/10.9.9.9:1", r#"{"id":"","agent":"a1"}"#));
    }

    #[test]
    fn a_host_has_what_its_agent_wrote() {
        let owner = Owner::Agent("a1".to_owned());
        assert!(is_its(&owner, "/service/web/10.9.9.9:1", r#"{"id":"2d15","agent":"a1"}"#));
        assert!(!is_its(&owner, "/service/web/10.9.9.9:1", r#"{"id":"2d15","agent":"a2"}"#));
        assert!(!is_its(&owner, "/service/10.9.9.9:1", "running"));
    }
}
