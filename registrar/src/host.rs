//! What this host is: its name, its addresses, and the agent's id on it. Edge: it asks the kernel and the resolver, and
//! keeps one small file.

use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::timeout;

use crate::config::{Host, ScopeFlags};
use crate::service::{DefaultAddress, Scope};

/// The file with the agent's id, in its state directory.
const ID_FILE: &str = "agent-id";
/// The largest such file that is read, in bytes.
const ID_LIMIT: u64 = 4096;
/// The limit on resolving a name.
const RESOLVE_LIMIT: Duration = Duration::from_secs(5);

/// The name in --ip does not resolve.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name}, which --ip names, does not lead to this host's address: {what}")]
pub struct ResolveError {
    name: String,
    what: String,
}

/// The address of a name by which other hosts reach it: the `former` one while it is among the name's addresses, so that a
/// resolver that takes turns moves nothing; else the first IPv4 address, else the first IPv6 address. The loopback's are
/// none: on many systems the host's own name leads to one.
///
/// # Errors
/// What the resolver says, that it takes too long, or that there is no such address.
pub async fn resolve(name: &str, former: Option<IpAddr>) -> Result<IpAddr, ResolveError> {
    let failed = |what: String| ResolveError { name: name.to_owned(), what };
    registry::store::only_by_files_and_dns();
    let found = timeout(RESOLVE_LIMIT, tokio::net::lookup_host((name, 0))).await;
    let too_slow = |_| failed(format!("no answer within {}", humantime::format_duration(RESOLVE_LIMIT)));
    let addresses = found.map_err(too_slow)?.map_err(|error| failed(error.to_string()))?;
    let addresses: Vec<IpAddr> = addresses.map(|address| address.ip()).collect();
    choose(&addresses, former).ok_or_else(|| {
        failed(match addresses.first() {
            Some(loopback) => {
                format!("it leads to {loopback}, where only this host reaches it: give --ip the address itself")
            }
            None => "it has no address".to_owned(),
        })
    })
}

fn choose(addresses: &[IpAddr], former: Option<IpAddr>) -> Option<IpAddr> {
    let mut usable: Vec<IpAddr> = addresses.iter().copied().filter(|ip| !ip.is_loopback()).collect();
    // Sorted by family alone: within it the resolver's order is kept.
    usable.sort_by_key(IpAddr::is_ipv6);
    former.filter(|former| usable.contains(former)).or(usable.first().copied())
}

/// The addresses of the interface with the default route, as the kernel chooses them for a packet to somewhere else.
/// Nothing is sent.
fn default_address() -> DefaultAddress {
    let chosen = |any: IpAddr, somewhere: IpAddr| {
        let socket = UdpSocket::bind((any, 0)).ok()?;
        socket.connect((somewhere, 9)).ok()?;
        Some(socket.local_addr().ok()?.ip()).filter(|ip| !ip.is_loopback() && !ip.is_unspecified())
    };
    // Addresses that no network of one's own has (RFC 5737, "TEST-NET-3"; any global address of IPv6).
    let v4 = chosen(Ipv4Addr::UNSPECIFIED.into(), [203, 0, 113, 1].into());
    let v6 = chosen(Ipv6Addr::UNSPECIFIED.into(), [0x2600, 0, 0, 0, 0, 0, 0, 1].into());
    let mut found = DefaultAddress::default();
    for ip in v4.into_iter().chain(v6) {
        match ip {
            IpAddr::V4(ip) => found.v4 = Some(ip),
            IpAddr::V6(ip) => found.v6 = Some(ip),
        }
    }
    found
}

/// The gateways of the default routes, from the kernel's tables (proc_net(5), `/proc/net/route` and `ipv6_route`): from within a
/// container on a bridge, that is the host.
pub(crate) fn default_gateway() -> DefaultAddress {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    DefaultAddress { v4: gateway_v4(&read("/proc/net/route")), v6: gateway_v6(&read("/proc/net/ipv6_route")) }
}

/// Of lines with the interface, the destination, the gateway and flags, in the byte order of the machine.
fn gateway_v4(table: &str) -> Option<Ipv4Addr> {
    let gateway = |line: &str| {
        let mut words = line.split_whitespace().skip(1);
        let (destination, gateway) = (words.next()?, words.next()?);
        let number = u32::from_str_radix(gateway, 16).ok()?;
        (destination == "00000000" && number != 0).then(|| Ipv4Addr::from(number.to_ne_bytes()))
    };
    table.lines().find_map(gateway)
}

/// Of lines with the destination, its length, the source, its length and the next hop.
fn gateway_v6(table: &str) -> Option<Ipv6Addr> {
    let gateway = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [destination, length, _, _, hop, ..] = words[..] else { return None };
        let number = u128::from_str_radix(hop, 16).ok()?;
        let is_default = length == "00" && destination.bytes().all(|byte| byte == b'0');
        // A link-local address says nothing without its interface.
        let hop = Some(Ipv6Addr::from(number)).filter(|hop| !hop.is_unspecified() && !hop.is_unicast_link_local());
        hop.filter(|_| is_default)
    };
    table.lines().find_map(gateway)
}

/// The kernel's name for this host.
pub(crate) fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    name.trim().to_owned()
}

/// Why there is no id for the agent.
#[derive(Debug, thiserror::Error)]
pub enum IdError {
    /// The file cannot be read or written.
    #[error(
        "the agent's id cannot be {what} {path}: {error}; make --state-dir a directory that it may write to and that \
         outlives it (in a container: a volume), or give it an id of its own with --agent-id"
    )]
    File {
        /// What was tried.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// What is in the file is no id.
    #[error("{0} holds no agent's id; remove it, and the agent takes a new one")]
    Content(PathBuf),
}

/// By what the agent of this host judges its containers. `former`: the address that `--ip` came to the last time.
///
/// # Errors
/// The name in `--ip` does not resolve.
pub async fn scope(flags: &ScopeFlags, agent: String, former: Option<IpAddr>) -> Result<Scope, ResolveError> {
    let ip = match &flags.ip {
        Host::Published => None,
        Host::Address(ip) => Some(*ip),
        Host::Name(name) => Some(resolve(name, former).await?),
    };
    Ok(Scope {
        prefix: flags.key.clone(),
        agent,
        host_name: flags.host.clone().unwrap_or_else(host_name),
        ip,
        default_address: default_address(),
        explicit: flags.explicit,
        internal: flags.internal,
        network: flags.network.clone(),
        domains: flags.domains.clone(),
        allow_exec: flags.allow_exec,
        check: flags.check,
    })
}

/// The agent's id: `--agent-id`, else the one in `--state-dir`.
///
/// # Errors
/// The directory cannot be used.
pub fn id(flags: &ScopeFlags) -> Result<String, IdError> {
    flags.agent_id.clone().map_or_else(|| agent_id(&flags.state_dir), Ok)
}

/// The id of the agent on this host, as far as it is known: the one `given`, else the one in the directory. Nothing is written.
pub fn known_id(given: Option<&str>, state_dir: &Path) -> Option<String> {
    let read = || observe::file::read(&state_dir.join(ID_FILE), ID_LIMIT).ok().map(|text| text.trim().to_owned());
    given.map(str::to_owned).or_else(read).filter(|id| crate::config::is_agent_id(id))
}

/// The id by which the agent on this host knows its own keys: from the directory, where a new one is put the first time.
fn agent_id(state_dir: &Path) -> Result<String, IdError> {
    let path = state_dir.join(ID_FILE);
    match observe::file::read(&path, ID_LIMIT) {
        Ok(text) if crate::config::is_agent_id(text.trim()) => return Ok(text.trim().to_owned()),
        Ok(_) => return Err(IdError::Content(path)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(IdError::File { what: "read from", path, error }),
    }
    let id = format!("{:016x}", rand::random::<u64>());
    // Another agent that starts at the same moment must not read half of it.
    let written = || {
        std::fs::create_dir_all(state_dir)?;
        let draft = state_dir.join(format!(".agent-id.{id}"));
        let mut file = std::fs::File::create_new(&draft)?;
        writeln!(file, "{id}")?;
        file.sync_all()?;
        std::fs::rename(&draft, &path)
    };
    match written() {
        Ok(()) => Ok(id),
        Err(error) => Err(IdError::File { what: "written to", path, error }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn the_gateway_is_that_of_the_default_route() {
        // As Linux 6 writes them on a little-endian machine, from within containers of Docker 20.10.
        let v4 = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
            eth0\t000011AC\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0\n\
            eth0\t00000000\t010011AC\t0003\t0\t0\t0\t00000000\t0\t0\t0\n";
        if cfg!(target_endian = "little") {
            assert_eq!(gateway_v4(v4), Some([172, 17, 0, 1].into()));
        }
        let none = "00000000000000000000000000000000";
        let v6 = |hop: &str| format!("{none} 00 {none} 00 {hop} 00000400 00000001 00000000 00000003 eth0\n");
        assert_eq!(gateway_v6(&v6("fd000000000000000000000000000001")), Some("fd00::1".parse().unwrap()));
        assert_eq!(gateway_v6(&v6("fe800000000000000000000000000001")), None);
        for garbage in ["", "eth0", "\u{0}", "eth0\t00000000\tzz", "eth0\t00000000\t00000000"] {
            assert_eq!((gateway_v4(garbage), gateway_v6(garbage)), (None, None), "{garbage:?}");
        }
    }

    #[test]
    fn an_agent_keeps_its_id() {
        let directory = tempfile::tempdir().unwrap();
        let state_dir = directory.path().join("state");
        let id = agent_id(&state_dir).unwrap();
        assert_eq!(agent_id(&state_dir).unwrap(), id);
        std::fs::write(state_dir.join("agent-id"), "a b").unwrap();
        assert!(agent_id(&state_dir).unwrap_err().to_string().contains("remove it"));
    }

    #[test]
    fn a_pipe_in_the_ids_place_is_named_and_not_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        nix::unistd::mkfifo(&directory.path().join(ID_FILE), nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert_eq!(known_id(None, directory.path()), None);
        let error = agent_id(directory.path()).unwrap_err().to_string();
        assert!(error.contains("it is no regular file"), "{error}");
    }

    #[test]
    fn a_directory_that_cannot_be_written_is_said_with_the_way_out() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file");
        std::fs::write(&file, "").unwrap();
        std::fs::set_permissions(&file, PermissionsExt::from_mode(0o600)).unwrap();
        let error = agent_id(&file).unwrap_err().to_string();
        assert!(error.contains("--agent-id") && error.contains("--state-dir"), "{error}");
    }

    #[test]
    fn the_default_address_is_no_loopback() {
        assert!(default_address().all().all(|ip| !ip.is_loopback()));
    }

    #[test]
    fn a_name_leads_to_no_loopback_and_stays_where_it_led_before() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let cases = [
            (vec!["127.0.1.1", "10.0.0.2", "10.0.0.1"], None, Some("10.0.0.2")),
            (vec!["10.0.0.2", "10.0.0.1"], Some("10.0.0.1"), Some("10.0.0.1")),
            (vec!["10.0.0.2", "10.0.0.1"], Some("10.0.0.3"), Some("10.0.0.2")),
            (vec!["2001:db8::1", "10.0.0.1"], None, Some("10.0.0.1")),
            (vec!["2001:db8::1", "::1"], None, Some("2001:db8::1")),
            (vec!["127.0.1.1", "::1"], Some("127.0.1.1"), None),
            (vec![], None, None),
        ];
        for (addresses, former, expected) in cases {
            let addresses: Vec<IpAddr> = addresses.into_iter().map(ip).collect();
            assert_eq!(choose(&addresses, former.map(ip)), expected.map(ip), "{addresses:?} {former:?}");
        }
    }

    #[tokio::test]
    async fn a_name_that_leads_to_this_host_alone_is_an_error_with_the_way_out() {
        let error = resolve("localhost", None).await.unwrap_err().to_string();
        assert!(error.contains("localhost") && error.contains("give --ip the address itself"), "{error}");
    }
}
