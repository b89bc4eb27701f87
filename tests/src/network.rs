//! Hosts on one machine: network namespaces that the test makes itself (ip-netns(8)), so that a cable can be pulled.
//!
//! Each host has two cables. One leads to a switch that only the hosts are plugged into; the switch is a bridge in a namespace
//! of its own, where no packet filter of the machine looks at what it passes on. The other leads to the machine, where
//! the programs under test are. All addresses are of 198.18.0.0/15, which no network uses (RFC 2544).

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::process::find_program;

/// What the names of all namespaces begin with; the process id of the test follows.
const NAME: &str = "e2e-net-";

/// A switch and the hosts at it. Dropping it removes all of it, and ends the connections of whoever is still inside.
pub struct Network {
    name: String,
    /// Of the machine's ends of the cables: an interface has at most 15 characters.
    cable: String,
    subnet: u16,
    hosts: u8,
}

impl Network {
    /// A switch with `hosts` at it. Needs root.
    pub fn start(hosts: u8) -> Network {
        remove_what_dead_tests_left();
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let (pid, number) = (std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        // A process id and a number as 9 bits of an address, and whoever has them already is passed over.
        let subnet = (0..512).map(|step| (pid.wrapping_mul(8) + number + step) % 512).find(|subnet| is_free(*subnet));
        let subnet = u16::try_from(subnet.expect("a free subnet of 198.18.0.0/15")).unwrap();
        // It is there before its first part, so that what a panic leaves is removed.
        let network =
            Network { name: format!("{NAME}{pid}-{number}"), cable: format!("e2e{pid:x}-{number}"), subnet, hosts };
        network.build();
        network
    }

    fn build(&self) {
        let switch = self.switch();
        ip(&format!("netns add {switch}"));
        ip(&format!("-n {switch} link add switch type bridge"));
        ip(&format!("-n {switch} link set switch up"));
        for host in 0..self.hosts {
            let (space, cable) = (self.namespace(host), self.cable(host));
            ip(&format!("netns add {space}"));
            ip(&format!("-n {space} link set lo up"));
            ip(&format!("-n {switch} link add port-{host} type veth peer name peers netns {space}"));
            ip(&format!("-n {switch} link set port-{host} master switch up"));
            ip(&format!("-n {space} addr add {}/24 dev peers", self.among_peers(host)));
            ip(&format!("-n {space} link set peers up"));
            ip(&format!("link add {cable} type veth peer name machine netns {space}"));
            ip(&format!("addr add {}/30 dev {cable}", self.address(128 + 4 * host + 1)));
            ip(&format!("link set {cable} up"));
            ip(&format!("-n {space} addr add {}/30 dev machine", self.address(128 + 4 * host + 2)));
            ip(&format!("-n {space} link set machine up"));
        }
    }

    /// The host's namespace, for [`crate::process::Process::start_in`].
    pub fn namespace(&self, host: u8) -> String {
        format!("{}-{host}", self.name)
    }

    /// The host's address among the hosts.
    pub fn among_peers(&self, host: u8) -> IpAddr {
        self.address(host + 1)
    }

    /// The host's address for the machine.
    pub fn from_machine(&self, host: u8) -> IpAddr {
        self.address(128 + 4 * host + 2)
    }

    /// Pulls the host's cable out of the switch: nothing it sends to the others arrives, and nobody tells it so.
    pub fn unplug(&self, host: u8) {
        ip(&format!("-n {} link set port-{host} down", self.switch()));
    }

    /// Plugs it in again.
    pub fn plug(&self, host: u8) {
        ip(&format!("-n {} link set port-{host} up", self.switch()));
    }

    fn switch(&self) -> String {
        format!("{}-switch", self.name)
    }

    fn cable(&self, host: u8) -> String {
        format!("{}-{host}", self.cable)
    }

    fn address(&self, last: u8) -> IpAddr {
        let [high, low] = self.subnet.to_be_bytes();
        Ipv4Addr::new(198, 18 + high, low, last).into()
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for host in 0..self.hosts {
            // With one end of a cable goes the other.
            let _gone = try_ip(&format!("link del {}", self.cable(host)));
            let _gone = try_ip(&format!("netns del {}", self.namespace(host)));
        }
        let _gone = try_ip(&format!("netns del {}", self.switch()));
    }
}

/// A test process that was killed has removed nothing. Its cables go with its namespaces.
fn remove_what_dead_tests_left() {
    let Ok(names) = std::fs::read_dir("/run/netns") else { return };
    for name in names.filter_map(|entry| entry.ok()?.file_name().into_string().ok()) {
        let pid = name.strip_prefix(NAME).and_then(|rest| rest.split('-').next());
        if pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            let _gone = try_ip(&format!("netns del {name}"));
        }
    }
}

/// Whether no network of this machine has addresses of it.
fn is_free(subnet: u32) -> bool {
    let part = format!("198.{}.{}.", 18 + subnet / 256, subnet % 256);
    !ip("-4 addr show").contains(&part) && !ip("-4 route show table all").contains(&part)
}

/// `ip` with these words; it must succeed. Gives what it said.
fn ip(words: &str) -> String {
    try_ip(words).unwrap_or_else(|error| panic!("ip {words}: {error}; this test needs root: `sudo ./test`"))
}

fn try_ip(words: &str) -> Result<String, String> {
    let output = Command::new(find_program("ip", "iproute2")).args(words.split(' ')).output();
    let output = output.map_err(|error| error.to_string())?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}
