//! Names and keys as types that refuse bad input. Pure: no I/O.
//!
//! An instance's key is `/<prefix>/<service>/<host>:<port>` (nested), or `/<prefix>/<host>:<port>` (flat),
//! where the prefix is the service's own directory and its last segment names the service.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;

/// The most characters a name may have. HAProxy has no limit of its own for names, so we set one.
pub const NAME_LIMIT: usize = 64;

/// The most segments a prefix may have.
const PREFIX_LIMIT: usize = 8;

/// How many characters of a refused text are shown in an error.
const SHOWN_LIMIT: usize = 80;

/// Why a text is no name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// The text is empty.
    #[error("a name must not be empty")]
    Empty,
    /// The text is longer than [`NAME_LIMIT`].
    #[error("a name has at most {NAME_LIMIT} characters, this one has {0}")]
    TooLong(usize),
    /// A character outside `[A-Za-z0-9_.-]`.
    #[error("{0:?} is not allowed in a name; letters, digits, '_', '.' and '-' are")]
    Character(char),
    /// The text begins with `_`, which marks what is not a service.
    #[error("a name that begins with '_' is not a service")]
    Reserved,
    /// The text is `.` or `..`, which a path would swallow.
    #[error("\".\" and \"..\" are not names")]
    Dots,
}

/// Why a text is no address of an instance.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// Not `IPv4:port` or `[IPv6]:port`.
    #[error("{0:?} is not an address; write 10.0.0.1:8000 or [2001:db8::1]:8000")]
    Form(String),
    /// Port 0.
    #[error("port 0 is no port to connect to")]
    PortZero,
    /// `0.0.0.0`, `::`, a multicast or the broadcast address.
    #[error("{0} is not the address of one host")]
    NotOneHost(IpAddr),
    /// An IPv6 zone such as `%1`, which means something only on the host that wrote it.
    #[error("an IPv6 address with a zone means nothing on another host")]
    Zone,
}

/// Why a path under the prefix is no instance's key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The path lies outside the prefix.
    #[error("it lies outside /{0}")]
    Outside(String),
    /// More than one directory below the prefix.
    #[error("it lies too deep: an instance is <service>/<host>:<port> or <host>:<port>")]
    TooDeep,
    /// The directory is no service's name.
    #[error("its directory is no service name: {0}")]
    Service(#[from] NameError),
    /// The last segment is no address.
    #[error("{0}")]
    Address(#[from] AddressError),
    /// The address is written in another way than ours: beside the key that is, it would be a second one of one instance, and the
    /// end of one would be taken for that of the other.
    #[error("an address has one spelling in a key: write {0}")]
    Spelling(InstanceAddress),
}

/// A service's name: `[A-Za-z0-9_.-]{1,64}`, not beginning with `_`, neither `.` nor `..`.
///
/// These are the characters that HAProxy takes in the name of a backend, without those that mean something
/// in a path. The template's own sections begin with `_`, so no service can be called like one of them. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceName(Arc<str>);

impl ServiceName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ServiceName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        if text.is_empty() {
            return Err(NameError::Empty);
        }
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
        if let Some(bad) = text.chars().find(|&c| !allowed(c)) {
            return Err(NameError::Character(bad));
        }
        if text.len() > NAME_LIMIT {
            return Err(NameError::TooLong(text.len()));
        }
        if text.starts_with('_') {
            return Err(NameError::Reserved);
        }
        if text == "." || text == ".." {
            return Err(NameError::Dots);
        }
        Ok(Self(text.into()))
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The directory under which instances are registered, such as `service` or `prod/web`.
///
/// Every segment is a name by the rules of [`ServiceName`]: etcd hides keys that begin with `_` from listings
/// and watches (etcd v2 API, "Creating a hidden node"), so such a prefix could never be followed. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix {
    /// The segments joined by `/`, with no slash at either end.
    text: Arc<str>,
    /// The last segment.
    service: ServiceName,
}

impl Prefix {
    /// The absolute path, such as `/prod/web`.
    pub fn path(&self) -> String {
        format!("/{}", self.text)
    }

    /// The directory of the same name below one that is hidden, which nobody can give as a prefix.
    pub(crate) fn below_hidden(&self, hidden: &str) -> Self {
        Self { text: format!("{hidden}/{}", self.text).into(), service: self.service.clone() }
    }

    /// The directory that this one lies in; none where it is the first.
    pub fn parent(&self) -> Option<Self> {
        self.text.rsplit_once('/').and_then(|(parent, _)| parent.parse().ok())
    }

    /// The service that instances in the flat layout belong to: the last segment.
    pub fn service_name(&self) -> &ServiceName {
        &self.service
    }

    /// What of `path` lies below this prefix, without a slash in front; `None` where it lies elsewhere.
    /// The prefix itself gives the empty text.
    pub fn below<'p>(&self, path: &'p str) -> Option<&'p str> {
        let rest = path.strip_prefix('/')?.strip_prefix(&*self.text)?;
        if rest.is_empty() { Some(rest) } else { rest.strip_prefix('/') }
    }
}

impl FromStr for Prefix {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let text = text.strip_prefix('/').unwrap_or(text);
        let text = text.strip_suffix('/').unwrap_or(text);
        let segments = text.split('/').map(ServiceName::from_str).collect::<Result<Vec<_>, _>>()?;
        if segments.len() > PREFIX_LIMIT {
            return Err(NameError::TooLong(text.len()));
        }
        let service = segments.into_iter().next_back().ok_or(NameError::Empty)?;
        Ok(Self { text: text.into(), service })
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Where one instance is reached: the address of one host and a port that is not 0.
///
/// HAProxy would take port 0, `0.0.0.0`, a unix path and `${ENVIRONMENT}` as a server's address; none of them
/// gets through this type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InstanceAddress {
    ip: IpAddr,
    port: u16,
}

impl InstanceAddress {
    /// An address from its parts. IPv4 written as IPv6 (`::ffff:10.0.0.1`) becomes IPv4.
    pub fn new(ip: IpAddr, port: u16) -> Result<Self, AddressError> {
        let ip = ip.to_canonical();
        if port == 0 {
            return Err(AddressError::PortZero);
        }
        let broadcast = matches!(ip, IpAddr::V4(v4) if v4.is_broadcast());
        if ip.is_unspecified() || ip.is_multicast() || broadcast {
            return Err(AddressError::NotOneHost(ip));
        }
        Ok(Self { ip, port })
    }

    /// The host's address.
    pub fn ip(&self) -> IpAddr {
        self.ip
    }

    /// The port, 1 to 65535.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Both, for a connection.
    pub fn socket_addr(&self) -> SocketAddr {
        SocketAddr::new(self.ip, self.port)
    }
}

impl FromStr for InstanceAddress {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        match SocketAddr::from_str(text) {
            Ok(SocketAddr::V6(v6)) if v6.scope_id() != 0 => Err(AddressError::Zone),
            Ok(address) => Self::new(address.ip(), address.port()),
            Err(_) => Err(AddressError::Form(text.chars().take(SHOWN_LIMIT).collect())),
        }
    }
}

impl fmt::Display for InstanceAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.socket_addr().fmt(f)
    }
}

/// The key of one instance.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InstanceKey {
    prefix: Prefix,
    service: Option<ServiceName>,
    address: InstanceAddress,
}

impl InstanceKey {
    /// `/<prefix>/<host>:<port>`: the prefix is the service's own directory.
    pub fn flat(prefix: Prefix, address: InstanceAddress) -> Self {
        Self { prefix, service: None, address }
    }

    /// `/<prefix>/<service>/<host>:<port>`.
    pub fn nested(prefix: Prefix, service: ServiceName, address: InstanceAddress) -> Self {
        Self { prefix, service: Some(service), address }
    }

    /// Reads the path of a key as etcd gives it, such as `/service/web/10.0.0.1:8000`.
    pub fn parse(prefix: &Prefix, path: &str) -> Result<Self, KeyError> {
        let below = prefix.below(path).ok_or_else(|| KeyError::Outside(prefix.to_string()))?;
        match below.split_once('/') {
            None => Ok(Self::flat(prefix.clone(), spelled(below)?)),
            Some((_, rest)) if rest.contains('/') => Err(KeyError::TooDeep),
            Some((service, address)) => Ok(Self::nested(prefix.clone(), service.parse()?, spelled(address)?)),
        }
    }

    /// The prefix it lies under.
    pub fn prefix(&self) -> &Prefix {
        &self.prefix
    }

    /// The service it belongs to.
    pub fn service(&self) -> &ServiceName {
        self.service.as_ref().unwrap_or(self.prefix.service_name())
    }

    /// What other hosts connect to.
    pub fn address(&self) -> InstanceAddress {
        self.address
    }

    /// Whether it lies right below the prefix.
    pub fn is_flat(&self) -> bool {
        self.service.is_none()
    }

    /// The absolute path in etcd.
    pub fn path(&self) -> String {
        self.to_string()
    }
}

/// An address as it is written in keys: neither `10.0.0.1:080` nor `[::ffff:10.0.0.1]:80`.
fn spelled(text: &str) -> Result<InstanceAddress, KeyError> {
    let address: InstanceAddress = text.parse()?;
    if address.to_string() == text { Ok(address) } else { Err(KeyError::Spelling(address)) }
}

impl fmt::Display for InstanceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/{}", self.prefix)?;
        if let Some(service) = &self.service {
            write!(f, "/{service}")?;
        }
        write!(f, "/{}", self.address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn prefix() -> Prefix {
        "service".parse().unwrap()
    }

    #[test]
    fn hostile_keys_are_refused_with_their_reason() {
        let long = "a".repeat(300);
        let cases = [
            ("evil 127.0.0.1:1 #", "is not an address"),
            ("x\nhttp-request deny #", "is not an address"),
            ("${HOME}:80", "is not an address"),
            ("0.0.0.0:80", "not the address of one host"),
            ("[::]:80", "not the address of one host"),
            ("[::ffff:0.0.0.0]:80", "not the address of one host"),
            ("255.255.255.255:80", "not the address of one host"),
            ("224.0.0.1:80", "not the address of one host"),
            ("a:0", "is not an address"),
            ("10.0.0.1:0", "port 0"),
            ("[::1]:99999", "is not an address"),
            ("[fe80::1%3]:80", "zone"),
            ("10.0.0.1", "is not an address"),
            ("", "is not an address"),
            (long.as_str(), "is not an address"),
            ("_stats/10.0.0.1:80", "begins with '_'"),
            ("a b/10.0.0.1:80", "not allowed in a name"),
            ("x\n/10.0.0.1:80", "not allowed in a name"),
            ("../10.0.0.1:80", "not names"),
            ("/10.0.0.1:80", "must not be empty"),
            ("web/blue/10.0.0.1:80", "too deep"),
            ("10.0.0.1:080", "one spelling in a key: write 10.0.0.1:80"),
            ("web/[::ffff:10.0.0.1]:80", "one spelling in a key: write 10.0.0.1:80"),
            ("[0:0::1]:80", "one spelling in a key: write [::1]:80"),
        ];
        for (below, reason) in cases {
            let error = InstanceKey::parse(&prefix(), &format!("/service/{below}")).unwrap_err().to_string();
            assert!(error.contains(reason), "{below:?}: {error}");
            assert!(!error.contains('\n') && error.len() < 300, "{below:?}: {error}");
        }
        let name = format!("/service/{long}/10.0.0.1:80");
        assert!(InstanceKey::parse(&prefix(), &name).unwrap_err().to_string().contains("has 300"));
    }

    #[test]
    fn a_path_outside_the_prefix_is_no_key_of_it() {
        for path in ["/services/10.0.0.1:80", "service/10.0.0.1:80", "/servic", "/other/10.0.0.1:80"] {
            assert!(matches!(InstanceKey::parse(&prefix(), path), Err(KeyError::Outside(_))), "{path}");
        }
    }

    #[test]
    fn both_layouts_are_read() {
        let flat = InstanceKey::parse(&prefix(), "/service/10.0.0.1:8000").unwrap();
        assert!(flat.is_flat());
        assert_eq!(flat.service().as_str(), "service");
        let nested = InstanceKey::parse(&prefix(), "/service/web/[2001:db8::1]:8000").unwrap();
        assert_eq!((nested.service().as_str(), nested.address().port()), ("web", 8000));
    }

    #[test]
    fn a_prefix_takes_slashes_at_its_ends_and_no_hidden_segment() {
        assert_eq!("/a/b/".parse::<Prefix>().unwrap().path(), "/a/b");
        assert_eq!("/a/b/".parse::<Prefix>().unwrap().service_name().as_str(), "b");
        for bad in ["", "/", "a//b", "_a", "a/_b", "a b", "a/../b", "//a"] {
            assert!(bad.parse::<Prefix>().is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn a_key_read_back_from_its_path_is_the_same(
            name in "[A-Za-z0-9.-][A-Za-z0-9_.-]{0,63}", v4 in any::<[u8; 4]>(), v6 in any::<[u8; 16]>(),
            port in any::<u16>(), kind in 0..4u8,
        ) {
            let ip = if kind % 2 == 0 { IpAddr::from(v4) } else { IpAddr::from(v6) };
            let (Ok(address), Ok(service)) = (InstanceAddress::new(ip, port), name.parse::<ServiceName>()) else {
                return Ok(());
            };
            let key = if kind < 2 {
                InstanceKey::flat(prefix(), address)
            } else {
                InstanceKey::nested(prefix(), service, address)
            };
            prop_assert_eq!(InstanceKey::parse(&prefix(), &key.path()).unwrap(), key);
        }

        #[test]
        fn no_text_gets_through_that_is_not_written_out_as_a_plain_address(text in ".{0,40}") {
            if let Ok(address) = text.parse::<InstanceAddress>() {
                prop_assert!(address.to_string().chars().all(|c| c.is_ascii_hexdigit() || ".:[]".contains(c)));
                prop_assert!(address.port() != 0 && !address.ip().is_unspecified());
            }
        }
    }
}
