//! The admin address as a flag has it, and what is bound there.

use std::fmt;
use std::fs::{File, Permissions};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use nix::fcntl::OFlag;
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::time::timeout;

use super::access::Access;
use super::serve::{Bound, Listener};

/// Who may connect to a unix socket: its owner and its group.
const SOCKET_MODE: u32 = 0o660;
/// How many connections the kernel holds that were not accepted yet.
const BACKLOG: i32 = 128;
/// How long the path of a unix socket may be, in bytes: what the kernel takes, less the zero at its end (unix(7)).
const PATH_LIMIT: usize = 107;
/// How long whoever listens at a socket may take to accept. The kernel answers for a process that lives.
const PROBE_LIMIT: Duration = Duration::from_secs(1);

/// Where the admin server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// Nowhere.
    Off,
    /// At an address and port.
    Tcp(SocketAddr),
    /// At a unix socket.
    Unix(PathBuf),
}

/// Why a text is no admin address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// It has another form.
    #[error("no admin address: write 127.0.0.1:9401, [::1]:9401, localhost:9401, unix:/run/admin.sock, or off")]
    Form,
    /// No socket can be bound there.
    #[error(
        "the path of a unix socket has at most {PATH_LIMIT} bytes, this one has {0}; choose a shorter one, such as unix:/run/admin.sock"
    )]
    TooLong(usize),
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        if text.is_empty() || text == "off" {
            return Ok(Self::Off);
        }
        if let Some(path) = text.strip_prefix("unix:") {
            return if !path.starts_with('/') || path.ends_with('/') || path.contains('\0') {
                Err(AddressError::Form)
            } else if path.len() > PATH_LIMIT {
                Err(AddressError::TooLong(path.len()))
            } else {
                Ok(Self::Unix(path.into()))
            };
        }
        if let Some(port) = text.strip_prefix("localhost:") {
            let port = port.parse().map_err(|_| AddressError::Form)?;
            return Ok(Self::Tcp((Ipv4Addr::LOCALHOST, port).into()));
        }
        text.parse().map(Self::Tcp).map_err(|_| AddressError::Form)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => f.write_str("off"),
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl Address {
    /// Whether only this machine's processes can come to it.
    pub(super) fn is_local(&self) -> bool {
        match self {
            Self::Off | Self::Unix(_) => true,
            Self::Tcp(address) => address.ip().to_canonical().is_loopback(),
        }
    }
}

/// Why nothing was bound.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Others could come to it, and nothing keeps them out.
    #[error(
        "the admin address {0} is reached from other hosts, and nothing says who may ask there: give --admin-token-file FILE, \
         or --admin unix:PATH; or --admin-without-token, where something else guards it, such as a port that is \
         published on loopback only"
    )]
    Open(Address),
    /// Another process is there, or something that is no socket.
    #[error("the admin address {address} is taken: {what}")]
    Taken {
        /// Where.
        address: Address,
        /// By what.
        what: &'static str,
    },
    /// The kernel does not let us.
    #[error("the admin address {address} cannot be bound: {error}")]
    Refused {
        /// Where.
        address: Address,
        /// What it says.
        error: io::Error,
    },
}

impl BindError {
    /// Whether the flags are wrong, so that trying again is in vain.
    pub fn is_usage(&self) -> bool {
        matches!(self, Self::Open(_))
    }

    fn refused(address: &Address, error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::AddrInUse {
            return Self::Taken { address: address.clone(), what: "another process listens there" };
        }
        Self::Refused { address: address.clone(), error }
    }
}

/// Binds the admin address; `None` where it is off. Nothing is served before [`Listener::serve`].
///
/// # Errors
/// Where others could ask without a token; where the address is taken, or the kernel refuses it.
pub async fn bind(address: &Address, access: Access) -> Result<Option<Listener>, BindError> {
    access.check(address)?;
    let refused = |error| BindError::refused(address, error);
    let bound = match address {
        Address::Off => return Ok(None),
        Address::Tcp(socket) => Bound::Tcp(TcpListener::bind(socket).await.map_err(refused)?),
        Address::Unix(path) => {
            make_room(address, path).await?;
            let (listener, file) = bind_unix(path).map_err(refused)?;
            Bound::Unix(listener, file)
        }
    };
    Ok(Some(Listener::new(bound, access)))
}

/// Takes away a socket that nobody listens at any more. Nothing else is ever removed, and no link followed.
async fn make_room(address: &Address, path: &Path) -> Result<(), BindError> {
    let taken = |what| BindError::Taken { address: address.clone(), what };
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(BindError::refused(address, error)),
        Ok(there) if !there.file_type().is_socket() => return Err(taken("what is there is no socket")),
        Ok(_) => {}
    }
    match timeout(PROBE_LIMIT, UnixStream::connect(path)).await {
        Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(|error| BindError::refused(address, error))
        }
        _ => Err(taken("another process listens there")),
    }
}

/// Binds, and lets nobody connect before the mode is set. `bind` never follows a link.
fn bind_unix(path: &Path) -> io::Result<(UnixListener, SocketFile)> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.bind(&SockAddr::unix(path)?)?;
    let file = SocketFile { identity: open_to_group(path)?, path: path.to_owned() };
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok((UnixListener::from_std(std::os::unix::net::UnixListener::from(socket))?, file))
}

/// Lets the group connect to the socket that was just bound, and says which that is.
fn open_to_group(path: &Path) -> io::Result<(u64, u64)> {
    // By its descriptor: in a directory that others may write to, a link may have taken its place meanwhile.
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW;
    let socket = File::options().read(true).custom_flags(flags.bits()).open(path)?;
    let there = socket.metadata()?;
    if !there.file_type().is_socket() {
        return Err(io::Error::other("somebody has put something else in the socket's place"));
    }
    let by_descriptor = format!("/proc/self/fd/{}", socket.as_raw_fd());
    std::fs::set_permissions(by_descriptor, Permissions::from_mode(SOCKET_MODE))?;
    Ok((there.dev(), there.ino()))
}

/// A socket's file, removed with its owner.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
}

impl SocketFile {
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Another process may have put its own there.
        if identity(&self.path).is_ok_and(|identity| identity == self.identity) {
            let _best_effort = std::fs::remove_file(&self.path);
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    std::fs::symlink_metadata(path).map(|file| (file.dev(), file.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_read_and_shown_alike() {
        for text in ["off", "127.0.0.1:9401", "[::1]:9401", "0.0.0.0:1", "unix:/run/discoverer/admin.sock"] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
        assert_eq!("".parse(), Ok(Address::Off));
        assert_eq!("localhost:9401".parse::<Address>().unwrap().to_string(), "127.0.0.1:9401");
        for text in
            ["on", "127.0.0.1", ":9401", "example.org:80", "unix:", "unix:admin.sock", "unix:/run/", "1.2.3.4:70000"]
        {
            assert_eq!(text.parse::<Address>(), Err(AddressError::Form), "{text}");
        }
    }

    #[tokio::test]
    async fn a_path_that_no_socket_can_have_is_no_address_and_every_other_is_bound() {
        let directory = tempfile::tempdir().unwrap();
        let base = format!("unix:{}/", directory.path().display());
        let of_length = |length: usize| format!("{base}{}", "a".repeat(length + "unix:".len() - base.len()));
        let longest: Address = of_length(PATH_LIMIT).parse().unwrap();
        assert!(bind(&longest, Access::default()).await.unwrap().is_some());
        assert_eq!(of_length(PATH_LIMIT + 1).parse::<Address>(), Err(AddressError::TooLong(PATH_LIMIT + 1)));
    }

    #[test]
    fn only_a_socket_is_opened_to_the_group_and_nothing_that_a_link_leads_to() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let (socket, file) = (at("socket"), at("file"));
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        std::fs::write(&file, "").unwrap();
        for path in [&socket, &file] {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
        }
        for (name, to) in [("link-to-file", &file), ("link-to-socket", &socket)] {
            std::os::unix::fs::symlink(to, at(name)).unwrap();
            open_to_group(&at(name)).unwrap_err();
        }
        open_to_group(&file).unwrap_err();
        assert_eq!((mode(&socket), mode(&file)), (0o600, 0o600));
        assert_eq!(open_to_group(&socket).unwrap(), identity(&socket).unwrap());
        assert_eq!((mode(&socket), mode(&file)), (0o660, 0o600));
    }

    #[test]
    fn only_loopback_and_sockets_are_local() {
        let is_local = |text: &str| text.parse::<Address>().unwrap().is_local();
        assert!(["127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "[::ffff:127.0.0.1]:1", "unix:/a"].into_iter().all(is_local));
        assert!(!["0.0.0.0:1", "[::]:1", "10.0.0.1:1", "[::ffff:10.0.0.1]:1"].into_iter().any(is_local));
    }
}
