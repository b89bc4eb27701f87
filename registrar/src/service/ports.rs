//! The ports of a container, and the way to each: published on the host, on the host's own network, or at the
//! container's own address. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use bollard::models::{ContainerInspectResponse, EndpointSettings};
use registry::InstanceAddress;

use super::labels::Setting;
use super::mapping::{Binding, bindings, choose};
use super::refusal::{Reason, Refusal};
use super::{AddressSource, Scope};

/// A port of a container. Written as Docker does, without `/tcp`: `8000`, `53/udp`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ContainerPort {
    /// Its number.
    pub number: u16,
    /// What is spoken on it.
    pub protocol: Protocol,
}

/// What is spoken on a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

impl ContainerPort {
    pub(super) fn tcp(number: u16) -> Self {
        Self { number, protocol: Protocol::Tcp }
    }

    /// Reads `8000/tcp`. `None` for what Docker does not write.
    fn read(text: &str) -> Option<Self> {
        let (number, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
        let protocol = match protocol {
            "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            "sctp" => Protocol::Sctp,
            _ => return None,
        };
        Some(Self { number: number.parse().ok().filter(|number| *number != 0)?, protocol })
    }
}

impl fmt::Display for ContainerPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol = match self.protocol {
            Protocol::Tcp => "",
            Protocol::Udp => "/udp",
            Protocol::Sctp => "/sctp",
        };
        write!(f, "{}{protocol}", self.number)
    }
}

/// How other hosts come to a port.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Way {
    /// The host passes on what comes to these.
    Published(Vec<Binding>),
    /// It is the host's own port.
    Host,
    /// At the container's own address.
    Container(IpAddr),
}

/// The TCP ports of a container that others can come to.
#[derive(Debug, Default)]
pub(super) struct Ports {
    ways: BTreeMap<u16, Way>,
    /// The container's own addresses, as this host sees them.
    own: Vec<IpAddr>,
    /// Whether a label asks that the container be registered.
    asked: bool,
    /// What has no way, and why.
    pub(super) refusals: Vec<Refusal>,
}

impl Ports {
    /// The ports of a container that shares the network of `owner`, or has its own. `named` are the ports that labels
    /// name, each with one of them; `asked` says whether a label asks that the container be registered.
    pub(super) fn of(
        container: &ContainerInspectResponse,
        owner: Option<&ContainerInspectResponse>,
        named: &BTreeMap<u16, &Setting>,
        asked: bool,
        scope: &Scope,
    ) -> Self {
        let shares = network_mode(container).starts_with("container:");
        let Some(network) = (if shares { owner } else { Some(container) }) else {
            return Self::refused(Refusal::of_container(Reason::NetworkOwner));
        };
        let (exposed, mut refusals) = exposed(container);
        let mut wanted: BTreeSet<u16> = exposed;
        wanted.extend(named.keys());
        if network_mode(network) == "host" {
            if wanted.is_empty() {
                refusals.push(Refusal::of_container(Reason::NoPortSaid { asked }));
            }
            let ways = wanted.into_iter().map(|port| (port, Way::Host)).collect();
            return Self { ways, own: Vec::new(), asked, refusals };
        }
        let own = own_addresses(network);
        if !shares {
            // Whoever shares the network of another container has only the ports that it names itself.
            wanted.extend(mapped_ports(network, &mut refusals));
        }
        if scope.internal {
            return match internal_address(network, scope.network.as_deref()) {
                Ok(_) if wanted.is_empty() => Self::refused(Refusal::of_container(Reason::NoPortSaid { asked })),
                Ok(ip) => Self {
                    ways: wanted.into_iter().map(|port| (port, Way::Container(ip))).collect(),
                    own,
                    asked,
                    refusals,
                },
                Err(reason) => Self::refused(Refusal::of_container(reason)),
            };
        }
        let mut ways = BTreeMap::new();
        let mut unpublished = Vec::new();
        for port in wanted {
            let bindings = bindings(network, port);
            if bindings.is_empty() {
                unpublished.push(port);
            } else {
                ways.insert(port, Way::Published(bindings));
            }
        }
        let published: Vec<u16> = ways.keys().copied().collect();
        let known = known_ports(container, network);
        for port in unpublished {
            refusals.push(match named.get(&port) {
                Some(setting) if !known.contains(&port) => {
                    Refusal::of_setting(setting, Reason::NoSuchPort(published.clone()))
                }
                // Images expose more than they are run for: where another port is published, only a label asks for this one.
                is_named => {
                    let asked = asked && (is_named.is_some() || published.is_empty());
                    Refusal::of_port(ContainerPort::tcp(port), Reason::NotPublished { port, asked })
                }
            });
        }
        if ways.is_empty() && refusals.is_empty() {
            let reason = if shares { Reason::NoPortSaid { asked } } else { Reason::NoPorts { asked } };
            refusals.push(Refusal::of_container(reason));
        }
        Self { ways, own, asked, refusals }
    }

    fn refused(refusal: Refusal) -> Self {
        Self { refusals: vec![refusal], ..Self::default() }
    }

    /// The ports that there is a way to.
    pub(super) fn numbers(&self) -> BTreeSet<u16> {
        self.ways.keys().copied().collect()
    }

    /// Where other hosts reach the port, and how that is known. `said` is what the container's label says.
    pub(super) fn address(
        &self,
        port: u16,
        said: Option<IpAddr>,
        scope: &Scope,
    ) -> Result<(InstanceAddress, AddressSource), Reason> {
        let way = self.ways.get(&port).ok_or(Reason::NotPublished { port, asked: true })?;
        // The host's addresses that come into question, the best first.
        let hosts: Vec<(IpAddr, AddressSource)> = match (said, scope.ip) {
            (Some(ip), _) => vec![(ip, AddressSource::Label)],
            (None, Some(ip)) => vec![(ip, AddressSource::Flag)],
            (None, None) => scope.default_address.all().map(|ip| (ip, AddressSource::DefaultRoute)).collect(),
        };
        let host = hosts.first().copied().ok_or(Reason::NoHostAddress);
        let (ip, source, port) = match way {
            Way::Host => {
                let (ip, source) = host?;
                (ip, source, port)
            }
            Way::Container(own) => {
                let (ip, source) = said.map_or((*own, AddressSource::Container), |ip| (ip, AddressSource::Label));
                (ip, source, port)
            }
            Way::Published(bindings) => {
                let everywhere = bindings.iter().any(|binding| binding.ip.is_unspecified());
                let is_specific = |binding: &&Binding| !binding.ip.is_unspecified() && !binding.ip.is_loopback();
                let specific = bindings.iter().find(is_specific);
                let loopback = bindings.first().filter(|_| !everywhere && specific.is_none());
                // What is published on the loopback alone is reached by this host alone, whatever its address is.
                let contradicts = said.is_none() && scope.ip.is_none_or(|ip| !ip.is_loopback());
                if let Some(binding) = loopback.filter(|_| contradicts) {
                    return Err(Reason::Loopback { ip: binding.ip, port, asked: self.asked });
                }
                match specific.filter(|_| said.or(scope.ip).is_none()) {
                    Some(binding) => (binding.ip, AddressSource::Published, binding.port),
                    None => {
                        let (first, _) = host?;
                        let published = |(ip, source)| Some((ip, source, choose(bindings, ip)?.port));
                        hosts.into_iter().find_map(published).ok_or(Reason::Family { ip: first, port })?
                    }
                }
            }
        };
        Ok((InstanceAddress::new(ip, port)?, source))
    }

    /// Whether the port is one that Docker publishes on the host.
    pub(super) fn is_published(&self, port: u16) -> bool {
        matches!(self.ways.get(&port), Some(Way::Published(_)))
    }

    /// Where this host asks the port, the best first.
    pub(super) fn targets(&self, port: u16, registered: InstanceAddress, first: First) -> Vec<SocketAddr> {
        let own = self.own.iter().map(|ip| SocketAddr::new(*ip, port));
        let mut targets: Vec<_> = own.filter(|target| *target != registered.socket_addr()).collect();
        match (self.ways.get(&port), first) {
            (Some(Way::Published(_)), First::Own) => targets.push(registered.socket_addr()),
            _ => targets.insert(0, registered.socket_addr()),
        }
        targets
    }
}

/// Which address goes first where a published port is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum First {
    /// The container's own.
    Own,
    /// What is registered.
    Registered,
}

fn network_mode(container: &ContainerInspectResponse) -> &str {
    container.host_config.as_ref().and_then(|config| config.network_mode.as_deref()).unwrap_or_default()
}

/// The TCP ports that the image or `--expose` names; the others are refused.
fn exposed(container: &ContainerInspectResponse) -> (BTreeSet<u16>, Vec<Refusal>) {
    let exposed = container.config.as_ref().and_then(|config| config.exposed_ports.as_deref()).unwrap_or_default();
    let mut refusals = Vec::new();
    (tcp(exposed.iter().map(String::as_str), &mut refusals), refusals)
}

/// The ports of Docker's table of mappings, published or not.
fn mapped_ports(container: &ContainerInspectResponse, refusals: &mut Vec<Refusal>) -> BTreeSet<u16> {
    let ports = container.network_settings.as_ref().and_then(|settings| settings.ports.as_ref());
    tcp(ports.into_iter().flat_map(|ports| ports.keys().map(String::as_str)), refusals)
}

fn tcp<'a>(ports: impl Iterator<Item = &'a str>, refusals: &mut Vec<Refusal>) -> BTreeSet<u16> {
    let (tcp, others): (BTreeSet<_>, _) =
        ports.filter_map(ContainerPort::read).partition(|port| port.protocol == Protocol::Tcp);
    for port in others {
        let refusal = Refusal::of_port(port, Reason::NotTcp);
        if !refusals.contains(&refusal) {
            refusals.push(refusal);
        }
    }
    tcp.into_iter().map(|port| port.number).collect()
}

/// The ports that Docker knows of, whatever labels say.
fn known_ports(container: &ContainerInspectResponse, network: &ContainerInspectResponse) -> BTreeSet<u16> {
    let mut known = exposed(container).0;
    known.extend(mapped_ports(network, &mut Vec::new()));
    known
}

/// The networks by name, in an order that does not depend on Docker's.
fn networks(container: &ContainerInspectResponse) -> BTreeMap<&str, &EndpointSettings> {
    let networks = container.network_settings.as_ref().and_then(|settings| settings.networks.as_ref());
    networks.into_iter().flatten().map(|(name, network)| (name.as_str(), network)).collect()
}

/// The addresses in one network, IPv4 first.
fn addresses(network: &EndpointSettings) -> impl Iterator<Item = IpAddr> {
    let texts = [&network.ip_address, &network.global_ipv6_address];
    texts.into_iter().flatten().filter_map(|text| text.parse().ok()).filter(|ip: &IpAddr| !ip.is_unspecified())
}

pub(crate) fn own_addresses(container: &ContainerInspectResponse) -> Vec<IpAddr> {
    networks(container).values().flat_map(|network| addresses(network)).collect()
}

fn internal_address(container: &ContainerInspectResponse, network: Option<&str>) -> Result<IpAddr, Reason> {
    let networks = networks(container);
    let there = || networks.keys().map(|&name| name.to_owned()).collect::<Vec<_>>();
    let chosen = match network {
        Some(name) => {
            let not_there = || Reason::NotInNetwork { network: name.to_owned(), there: there() };
            networks.get(name).ok_or_else(not_there)?
        }
        None if networks.len() > 1 => return Err(Reason::SeveralNetworks(there())),
        None => networks.values().next().ok_or(Reason::NoNetwork)?,
    };
    addresses(chosen).next().ok_or(Reason::NoNetwork)
}
