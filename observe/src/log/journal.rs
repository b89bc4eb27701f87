//! journald's own protocol (systemd's "Native Journal Protocol"): a datagram an event, its fields apart.
//!
//! The message is the whole line, with its fields: that is what `journalctl` shows, and an event without its key would tell
//! nobody anything. (The crate tracing-journald sends the bare message.)

use std::fmt::{Debug, Write};
use std::io::{self, ErrorKind};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer};

use super::text::Line;

/// How much of a value is sent: a datagram must fit a socket's buffer.
const VALUE_LIMIT: usize = 16 * 1024;
/// How many fields are sent.
const FIELDS: usize = 32;
/// How long journald may take. A line is lost rather than the daemon's time.
const SEND_LIMIT: Duration = Duration::from_millis(200);

/// Sends events to journald.
#[derive(Debug)]
pub(super) struct Journal {
    socket: UnixDatagram,
    path: PathBuf,
    identifier: String,
}

impl Journal {
    /// Opens the way to whoever listens there.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        socket.connect(path)?;
        socket.set_write_timeout(Some(SEND_LIMIT))?;
        let program = std::env::current_exe().ok();
        let name = program.as_deref().and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned());
        Ok(Self { socket, path: path.to_owned(), identifier: name.unwrap_or_default() })
    }

    /// Sends it, also where another socket is in the place of the one that was there: systemd may make it anew.
    fn send(&self, datagram: &[u8]) -> io::Result<usize> {
        match self.socket.send(datagram) {
            Err(error) if matches!(error.kind(), ErrorKind::ConnectionRefused | ErrorKind::NotConnected) => {
                self.socket.connect(&self.path)?;
                self.socket.send(datagram)
            }
            sent => sent,
        }
    }
}

impl<S: Subscriber> Layer<S> for Journal {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut message = String::new();
        event.record(&mut Line::plain(&mut message));
        let mut datagram = Vec::with_capacity(512);
        put(&mut datagram, "MESSAGE", &message);
        put(&mut datagram, "PRIORITY", priority(event.metadata().level()));
        put(&mut datagram, "SYSLOG_IDENTIFIER", &self.identifier);
        put(&mut datagram, "TARGET", event.metadata().target());
        event.record(&mut Fields { datagram: &mut datagram, left: FIELDS });
        // There is nobody to tell.
        let _sent = self.send(&datagram);
    }
}

/// As syslog(3) counts.
fn priority(level: &Level) -> &'static str {
    match *level {
        Level::ERROR => "3",
        Level::WARN => "4",
        Level::INFO => "6",
        _ => "7",
    }
}

struct Fields<'a> {
    datagram: &'a mut Vec<u8>,
    left: usize,
}

impl Fields<'_> {
    fn take(&mut self, field: &Field, value: &str) {
        let name = field.name();
        if name == "message" || name.starts_with("log.") || self.left == 0 {
            return;
        }
        self.left -= 1;
        put(self.datagram, &format!("F_{}", journal_name(name)), value);
    }
}

impl Visit for Fields<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.take(field, value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let mut text = String::new();
        if write!(text, "{value:?}").is_ok() {
            self.take(field, &text);
        }
    }
}

/// A name as journald takes it: capitals, digits and `_`, at most 64.
fn journal_name(name: &str) -> String {
    let allowed = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' };
    name.chars().take(60).map(allowed).collect()
}

/// Adds a field with the length before its value, so that it may hold anything.
fn put(datagram: &mut Vec<u8>, name: &str, value: &str) {
    let end = (0..=VALUE_LIMIT.min(value.len())).rev().find(|&at| value.is_char_boundary(at)).unwrap_or(0);
    let value = &value[..end];
    datagram.extend_from_slice(name.as_bytes());
    datagram.push(b'\n');
    datagram.extend_from_slice(&(value.len() as u64).to_le_bytes());
    datagram.extend_from_slice(value.as_bytes());
    datagram.push(b'\n');
}

#[cfg(test)]
mod tests {
    use tracing::{info, warn};
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    /// Reads a datagram as journald does.
    fn fields(mut datagram: &[u8]) -> Vec<(String, String)> {
        let mut fields = Vec::new();
        while !datagram.is_empty() {
            let end = datagram.iter().position(|&byte| byte == b'\n').unwrap();
            let name = String::from_utf8(datagram[..end].to_vec()).unwrap();
            let (length, rest) = datagram[end + 1..].split_at(8);
            let length = usize::try_from(u64::from_le_bytes(length.try_into().unwrap())).unwrap();
            fields.push((name, String::from_utf8(rest[..length].to_vec()).unwrap()));
            assert_eq!(rest[length], b'\n');
            datagram = &rest[length + 1..];
        }
        fields
    }

    #[test]
    fn events_come_also_to_a_socket_that_was_made_anew() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let bind = || {
            let journald = UnixDatagram::bind(&path).unwrap();
            journald.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            journald
        };
        let message = |journald: &UnixDatagram| {
            let mut buffer = vec![0; 4096];
            let length = journald.recv(&mut buffer).unwrap();
            fields(&buffer[..length]).swap_remove(0).1
        };
        let journald = bind();
        let log = tracing_subscriber::registry().with(Journal::open(&path).unwrap());
        tracing::subscriber::with_default(log, || {
            info!("first");
            assert_eq!(message(&journald), "first");
            drop(journald);
            info!("to nobody");
            std::fs::remove_file(&path).unwrap();
            info!("to nobody, without a socket");
            let journald = bind();
            for text in ["second", "third"] {
                info!("{text}");
                assert_eq!(message(&journald), text);
            }
        });
    }

    #[test]
    fn an_event_comes_with_its_fields_and_none_can_fake_another() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        assert!(Journal::open(&path).is_err());
        let journald = UnixDatagram::bind(&path).unwrap();
        journald.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let log = tracing_subscriber::registry().with(Journal::open(&path).unwrap());
        let long = "\u{e9}".repeat(VALUE_LIMIT);
        tracing::subscriber::with_default(log, || {
            warn!(key = "a\nPRIORITY=0\n", count = 3, "it is refused");
            info!(%long, "long");
        });
        let mut buffer = vec![0; 256 * 1024];
        let length = journald.recv(&mut buffer).unwrap();
        let got = fields(&buffer[..length]);
        let value = |name: &str| {
            let mut values = got.iter().filter(|(known, _)| known == name).map(|(_, value)| value.as_str());
            (values.next(), values.next())
        };
        assert_eq!(value("MESSAGE"), (Some(r#"it is refused key="a\nPRIORITY=0\n" count=3"#), None));
        assert_eq!(value("PRIORITY"), (Some("4"), None));
        assert_eq!(value("F_KEY"), (Some("a\nPRIORITY=0\n"), None));
        assert_eq!(value("F_COUNT"), (Some("3"), None));
        assert!(value("SYSLOG_IDENTIFIER").0.is_some_and(|name| !name.is_empty()));
        let length = journald.recv(&mut buffer).unwrap();
        let got = fields(&buffer[..length]);
        assert!(got.iter().any(|(name, value)| name == "F_LONG" && value.len() == VALUE_LIMIT));
    }
}
