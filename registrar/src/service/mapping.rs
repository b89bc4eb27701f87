//! Which address and port of the host lead to a port of a container. Pure: no I/O, no clock.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use bollard::models::ContainerInspectResponse;
use registry::{AddressError, InstanceAddress};

use super::refusal::family;

/// Why a container has no address that other hosts can use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MappingError {
    /// No host port leads to the port.
    #[error("port {0} of this container is not published: start it with `-p {0}` (or `-p HOSTADDRESS::{0}`)")]
    NotPublished(u16),
    /// It is published on all addresses of the host, and none is known.
    #[error(
        "port {0} is published on every address of the host (0.0.0.0), and which one others use is not known: say it with \
         `--ip ADDRESS`, or publish the port with `-p HOSTADDRESS::{0}`"
    )]
    NoHostAddress(u16),
    /// It is published for the other family of addresses only.
    #[error(
        "port {port} of this container is not published for {}, and {ip} is such an address: publish it with `-p {ip}::{port}`, or say another address with `--ip`",
        family(*.ip)
    )]
    Family {
        /// The host's address.
        ip: IpAddr,
        /// The container's port.
        port: u16,
    },
    /// The container shares the host's network, which has no mappings.
    #[error("this container uses the host's network: say the host's address with `--ip ADDRESS`")]
    HostNetwork,
    /// An address that nobody else can use.
    #[error("port {port} cannot be registered: {error}")]
    Address {
        /// The container's port.
        port: u16,
        /// What is wrong.
        error: AddressError,
    },
}

/// One way in from the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Binding {
    /// IPv4 sorts before IPv6.
    pub(super) ip: IpAddr,
    pub(super) port: u16,
}

/// Where other hosts reach this port of the container: the Docker host's address and the mapped port.
///
/// `ip` is the host's address if the user said it. Else the port must be published on one address
/// (Docker Engine API 1.41, `NetworkSettings.Ports`). Of several mappings IPv4 goes first.
pub fn address(
    container: &ContainerInspectResponse,
    port: u16,
    ip: Option<IpAddr>,
) -> Result<InstanceAddress, MappingError> {
    let new = |ip, mapped| InstanceAddress::new(ip, mapped).map_err(|error| MappingError::Address { port, error });
    let network = container.host_config.as_ref().and_then(|config| config.network_mode.as_deref());
    if network == Some("host") {
        return new(ip.ok_or(MappingError::HostNetwork)?, port);
    }
    let bindings = bindings(container, port);
    if bindings.is_empty() {
        return Err(MappingError::NotPublished(port));
    }
    match ip {
        Some(ip) => new(ip, choose(&bindings, ip).ok_or(MappingError::Family { ip, port })?.port),
        None => {
            let of_one_address = bindings.iter().find(|binding| !binding.ip.is_unspecified());
            let binding = of_one_address.ok_or(MappingError::NoHostAddress(port))?;
            new(binding.ip, binding.port)
        }
    }
}

/// The mapping that leads from this address of the host: its own, else one of all addresses of its family, else the first
/// of its family (the address may be another host's, in front of this one). From another address the loopback's are
/// reached only where that is meant: there is no other mapping.
pub(super) fn choose(bindings: &[Binding], ip: IpAddr) -> Option<Binding> {
    let of_this_address = bindings.iter().find(|binding| binding.ip == ip);
    let of_family = |binding: &&Binding| binding.ip.is_ipv4() == ip.is_ipv4();
    let of_all = || bindings.iter().filter(of_family).find(|binding| binding.ip.is_unspecified());
    let with_loopback = ip.is_loopback() || bindings.iter().all(|binding| binding.ip.is_loopback());
    let of_another = || bindings.iter().filter(of_family).find(|binding| with_loopback || !binding.ip.is_loopback());
    of_this_address.or_else(of_all).or_else(of_another).copied()
}

/// The mappings of a TCP port, in an order that does not depend on Docker's. What cannot be read is left out.
pub(super) fn bindings(container: &ContainerInspectResponse, port: u16) -> Vec<Binding> {
    let ports = container.network_settings.as_ref().and_then(|settings| settings.ports.as_ref());
    let of_port = ports.and_then(|ports| ports.get(&format!("{port}/tcp"))?.as_ref());
    let read = |binding: &bollard::models::PortBinding| {
        let ips = match binding.host_ip.as_deref() {
            // Every address, of both families.
            None | Some("") => vec![Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()],
            Some(text) => vec![text.parse().ok()?],
        };
        let port = binding.host_port.as_deref()?.parse().ok().filter(|port| *port != 0)?;
        Some(ips.into_iter().map(move |ip| Binding { ip, port }))
    };
    let mut bindings: Vec<Binding> = of_port.into_iter().flatten().filter_map(read).flatten().collect();
    bindings.sort();
    bindings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recorded(name: &str) -> ContainerInspectResponse {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/docker-20.10.24");
        serde_json::from_str(&std::fs::read_to_string(format!("{path}/inspect-{name}.json")).unwrap()).unwrap()
    }

    fn with_ports(bindings: &str) -> ContainerInspectResponse {
        serde_json::from_str(&format!(r#"{{"NetworkSettings":{{"Ports":{{"8000/tcp":{bindings}}}}}}}"#)).unwrap()
    }

    fn found(container: &ContainerInspectResponse, ip: Option<&str>) -> String {
        match address(container, 8000, ip.map(|ip| ip.parse().unwrap())) {
            Ok(address) => address.to_string(),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn the_mapped_port_of_recorded_containers_is_found() {
        let cases = [
            ("any", Some("10.1.0.101"), "10.1.0.101:49153"),
            ("named", None, "127.0.0.6:"),
            ("named", Some("10.1.0.101"), "10.1.0.101:"),
            ("two", None, "127.0.0.5:8001"),
            ("two", Some("127.0.0.5"), "127.0.0.5:8001"),
            ("host", Some("10.1.0.101"), "10.1.0.101:8000"),
        ];
        for (name, ip, expected) in cases {
            let container = recorded(name);
            let expected = match expected.rsplit_once(':') {
                // Docker chose the port.
                Some((host, "" | "49153")) => {
                    let ports = container.network_settings.clone().unwrap().ports.unwrap();
                    format!("{host}:{}", ports["8000/tcp"].as_ref().unwrap()[0].host_port.as_ref().unwrap())
                }
                _ => expected.to_owned(),
            };
            assert_eq!(found(&container, ip), expected, "{name} {ip:?}");
        }
    }

    #[test]
    fn a_port_that_leads_nowhere_is_an_error_that_says_the_way_out() {
        let cases = [
            ("none", None, "`-p 8000`"),
            ("exposed", Some("10.1.0.101"), "`-p 8000`"),
            ("any", None, "`--ip ADDRESS`"),
            ("any", None, "`-p HOSTADDRESS::8000`"),
            ("host", None, "`--ip ADDRESS`"),
        ];
        for (name, ip, expected) in cases {
            let error = found(&recorded(name), ip);
            assert!(error.contains(expected), "{name}: {error}");
        }
    }

    #[test]
    fn ipv4_goes_first_and_what_cannot_be_read_is_left_out() {
        let both = r#"[{"HostIp":"::","HostPort":"2"},{"HostIp":"0.0.0.0","HostPort":"1"}]"#;
        let cases = [
            (both, Some("10.0.0.1"), "10.0.0.1:1"),
            (both, Some("2001:db8::1"), "[2001:db8::1]:2"),
            (both, None, "--ip ADDRESS"),
            (r#"[{"HostIp":"2001:db8::1","HostPort":"2"},{"HostIp":"10.0.0.1","HostPort":"1"}]"#, None, "10.0.0.1:1"),
            (r#"[{"HostIp":"2001:db8::1","HostPort":"2"}]"#, None, "[2001:db8::1]:2"),
            (r#"[{"HostIp":"","HostPort":"7"}]"#, Some("10.0.0.1"), "10.0.0.1:7"),
            (r#"[{"HostIp":"","HostPort":"7"}]"#, Some("2001:db8::1"), "[2001:db8::1]:7"),
            (r#"[{"HostPort":"7"}]"#, Some("2001:db8::1"), "[2001:db8::1]:7"),
            (r#"[{"HostPort":"7"}]"#, None, "--ip ADDRESS"),
            (r#"[{"HostIp":"10.0.0.1","HostPort":""},{"HostIp":"x","HostPort":"1"}]"#, None, "not published"),
            (r#"[{"HostIp":"10.0.0.1","HostPort":"0"}]"#, None, "not published"),
            (r#"[{"HostIp":"10.0.0.1","HostPort":"99999"}]"#, None, "not published"),
            (r#"[{"HostIp":"224.0.0.1","HostPort":"80"}]"#, None, "not the address of one host"),
            (r#"[{"HostIp":"::","HostPort":"2"}]"#, Some("10.0.0.1"), "publish it with `-p 10.0.0.1::8000`"),
            (r#"[{"HostIp":"0.0.0.0","HostPort":"1"}]"#, Some("2001:db8::1"), "is not published for IPv6"),
            ("[]", None, "not published"),
            ("null", None, "not published"),
        ];
        for (bindings, ip, expected) in cases {
            let found = found(&with_ports(bindings), ip);
            assert!(found.contains(expected), "{bindings} {ip:?}: {found}");
        }
        let with_loopback = r#"[{"HostIp":"127.0.0.1","HostPort":"1"},{"HostIp":"192.0.2.9","HostPort":"2"}]"#;
        let other_family = r#"[{"HostIp":"127.0.0.1","HostPort":"1"},{"HostIp":"::","HostPort":"2"}]"#;
        let loopback = r#"[{"HostIp":"127.0.0.1","HostPort":"1"}]"#;
        let cases = [
            (with_loopback, "10.0.0.1", "10.0.0.1:2"),
            (with_loopback, "127.0.0.1", "127.0.0.1:1"),
            (with_loopback, "127.0.0.5", "127.0.0.5:1"),
            (other_family, "10.0.0.1", "not published for IPv4"),
            (loopback, "10.0.0.1", "10.0.0.1:1"),
        ];
        for (bindings, ip, expected) in cases {
            let found = found(&with_ports(bindings), Some(ip));
            assert!(found.contains(expected), "{bindings} {ip}: {found}");
        }
        assert!(found(&ContainerInspectResponse::default(), None).contains("not published"));
    }
}
