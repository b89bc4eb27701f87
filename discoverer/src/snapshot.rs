//! The registry as it was last known, in a file of the state directory: what is served after a restart while etcd is away.
//!
//! It is written in the background, and read once, at the start. What is in the file is as hostile as what is in etcd.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use observe::escape::escaped;
use registry::{InstanceKey, Position, Prefix, Record};
use serde::{Deserialize, Serialize};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::catalog::{Kept, KeptEntry, KeptService};
use crate::output::{Output, OutputError};
use crate::until;

/// The file's name in the state directory.
const NAME: &str = "registry.json";
/// The version of its form.
const VERSION: u32 = 1;
/// The largest file that is read, in bytes: 10,000 instances take some 4 MB.
const LIMIT: u64 = 256 * 1024 * 1024;
/// How much of it is shown in a message, in characters.
const SHOWN_LIMIT: usize = 200;
/// It is written so long after a change: HAProxy comes first.
const AFTER: Duration = Duration::from_secs(1);
/// It is written at most this often while changes pour in.
const EVERY: Duration = Duration::from_secs(5);
/// A file that could not be written is tried again after this.
const AGAIN: Duration = Duration::from_secs(30);
/// How long the last one may take when the process is told to stop.
const LAST_LIMIT: Duration = Duration::from_secs(2);

/// Why a snapshot is not used.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// It cannot be read.
    #[error("{path} cannot be read: {error}")]
    Read {
        /// The file.
        path: String,
        /// What the system said.
        error: io::Error,
    },
    /// It is larger than any that is written.
    #[error("{path} has more than {LIMIT} bytes; remove it")]
    TooLarge {
        /// The file.
        path: String,
    },
    /// It is no snapshot, or not a whole one.
    #[error("{path} is damaged: {error}; it is written anew when the registry answers")]
    Damaged {
        /// The file.
        path: String,
        /// What is wrong.
        error: String,
    },
    /// It was written by another version.
    #[error("{path} is of version {found}, this is version {VERSION}; it is written anew when the registry answers")]
    OtherVersion {
        /// The file.
        path: String,
        /// Its version.
        found: u32,
    },
    /// It is of another directory.
    #[error("{path} is of --key {found}; it is written anew when the registry answers")]
    OtherKey {
        /// The file.
        path: String,
        /// Its directory.
        found: String,
    },
}

/// The file, but for its entries.
#[derive(Debug, Serialize, Deserialize)]
struct Head {
    version: u32,
    key: String,
    written: Timestamp,
    cluster: Option<String>,
    index: u64,
    empty: Vec<Empty>,
}

/// A service with no instance.
#[derive(Debug, Serialize, Deserialize)]
struct Empty {
    service: String,
    attributes: BTreeMap<String, String>,
    tags: Vec<String>,
    flat: bool,
    /// How long it had had none.
    seconds: u64,
}

/// The file.
#[derive(Debug, Deserialize)]
struct Whole {
    #[serde(flatten)]
    head: Head,
    entries: Vec<Line<'static>>,
}

/// The file's version, whatever else it holds.
#[derive(Debug, Deserialize)]
struct Version {
    version: u32,
}

/// One key.
#[derive(Debug, Serialize, Deserialize)]
struct Line<'l> {
    path: String,
    value: Cow<'l, Record>,
    created: u64,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    suspect: bool,
}

/// Writes what is known.
pub(crate) fn write(kept: &Kept, prefix: &Prefix, written: Timestamp, file: &mut dyn Write) -> io::Result<()> {
    let empty = kept.empty.iter().map(|kept| Empty {
        service: kept.name.to_string(),
        attributes: kept.attributes.clone(),
        tags: kept.tags.clone(),
        flat: kept.flat,
        seconds: kept.empty_for.as_secs(),
    });
    let head = Head {
        version: VERSION,
        key: prefix.to_string(),
        written,
        cluster: kept.position.cluster_id().map(str::to_owned),
        index: kept.position.index(),
        empty: empty.collect(),
    };
    // One object, with a key a line.
    let head = serde_json::to_string(&head)?;
    file.write_all(head.strip_suffix('}').unwrap_or(&head).as_bytes())?;
    file.write_all(b",\"entries\":[")?;
    for (number, KeptEntry { key, record, created, suspect }) in kept.entries.iter().enumerate() {
        file.write_all(if number == 0 { b"\n" } else { b",\n" })?;
        let line = Line { path: key.path(), value: Cow::Borrowed(record), created: *created, suspect: *suspect };
        serde_json::to_writer(&mut *file, &line)?;
    }
    file.write_all(b"\n]}\n")
}

/// Reads what was known, and when; nothing where there is no file. Keys that are no instances are left out.
///
/// # Errors
/// Where the file is not to be used.
pub fn read(state_directory: &Path, prefix: &Prefix) -> Result<Option<(Kept, Timestamp)>, SnapshotError> {
    let file = state_directory.join(NAME);
    let path = file.display().to_string();
    match observe::file::read(&file, LIMIT) {
        Ok(text) => parse(&text, &path, prefix).map(Some),
        Err(error) if error.kind() == io::ErrorKind::FileTooLarge => Err(SnapshotError::TooLarge { path }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            Err(SnapshotError::Damaged { path, error: error.to_string() })
        }
        Err(error) => Err(SnapshotError::Read { path, error }),
    }
}

pub(crate) fn parse(text: &str, path: &str, prefix: &Prefix) -> Result<(Kept, Timestamp), SnapshotError> {
    let damaged =
        |error: serde_json::Error| SnapshotError::Damaged { path: path.to_owned(), error: shown(&error.to_string()) };
    let Version { version } = serde_json::from_str(text).map_err(damaged)?;
    if version != VERSION {
        return Err(SnapshotError::OtherVersion { path: path.to_owned(), found: version });
    }
    let Whole { head, entries } = serde_json::from_str(text).map_err(damaged)?;
    if head.key != prefix.to_string() {
        return Err(SnapshotError::OtherKey { path: path.to_owned(), found: shown(&head.key) });
    }
    let entry = |line: Line<'_>| {
        let key = InstanceKey::parse(prefix, &line.path).ok()?;
        // What was written in bounds may have been changed since.
        let record = Record::parse(&line.value.to_value()).ok()?;
        Some(KeptEntry { key, record: Arc::new(record), created: line.created, suspect: line.suspect })
    };
    // What was read is as old as the file, unless the clock was set.
    let age = Timestamp::now().duration_since(head.written).try_into().unwrap_or_default();
    let empty = |empty: Empty| {
        let Empty { service, attributes, tags, flat, seconds } = empty;
        let record = Record { attributes, tags, ..Record::running() };
        let Record { attributes, tags, .. } = Record::parse(&record.to_value()).ok()?;
        let empty_for = Duration::from_secs(seconds).saturating_add(age);
        Some(KeptService { name: service.parse().ok()?, attributes, tags, flat, empty_for })
    };
    let empty = head.empty.into_iter().filter_map(empty).collect();
    let mut seen = BTreeSet::new();
    let entries = entries.into_iter().filter_map(entry).filter(|entry| seen.insert(entry.key.clone())).collect();
    Ok((Kept { position: Position::new(head.cluster, head.index), entries, empty }, head.written))
}

/// A part of the file for a message.
fn shown(text: &str) -> String {
    escaped(&text.chars().take(SHOWN_LIMIT).collect::<String>())
}

/// What has become due.
#[derive(Debug)]
pub(crate) enum Due {
    /// What is known is to be written.
    Write,
    /// It has been, or could not be.
    Written(Result<(), OutputError>),
}

/// Keeps the file.
#[derive(Debug)]
pub(crate) struct Snapshots {
    directory: PathBuf,
    prefix: Prefix,
    file: Output,
    write_at: Option<Instant>,
    last: Option<Instant>,
    writing: Option<JoinHandle<Result<(), OutputError>>>,
    /// What was said last of a file that cannot be written, to say it once.
    said: Option<String>,
}

impl Snapshots {
    /// The file in this directory, for what lies under this prefix.
    pub(crate) fn new(directory: PathBuf, prefix: Prefix) -> Self {
        let file = Output::private(directory.join(NAME));
        Self { directory, prefix, file, write_at: None, last: None, writing: None, said: None }
    }

    /// What the file holds, where that is of use; else that is said.
    pub(crate) fn read(&self) -> Option<(Kept, Timestamp)> {
        read(&self.directory, &self.prefix)
            .inspect_err(|error| warn!(%error, "snapshot of the registry not used"))
            .unwrap_or_default()
    }

    /// To be told that what is known has changed.
    pub(crate) fn changed(&mut self) {
        let soon = Instant::now() + AFTER;
        let at = self.last.map_or(soon, |last| soon.max(last + EVERY));
        self.write_at = Some(self.write_at.map_or(at, |planned| planned.min(at)));
    }

    /// Waits for what has become due. Loses nothing when it is dropped.
    pub(crate) async fn wait(&mut self) -> Due {
        let Some(writing) = &mut self.writing else {
            until(self.write_at).await;
            return Due::Write;
        };
        let written = writing.await;
        self.writing = None;
        Due::Written(written.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic())))
    }

    /// Begins to write, in the background.
    pub(crate) fn begin(&mut self, kept: Option<Kept>) {
        self.write_at = None;
        self.last = Some(Instant::now());
        let Some(kept) = kept else { return };
        self.writing =
            Some(tokio::task::spawn_local(save(self.directory.clone(), self.file.clone(), self.prefix.clone(), kept)));
    }

    /// To be told how writing ended. A file that cannot be written is tried again after a while, or with the next change.
    pub(crate) fn ended(&mut self, written: Result<(), OutputError>) {
        match written {
            Ok(()) if self.said.take().is_some() => info!("snapshot of the registry written again"),
            Ok(()) => {}
            Err(error) => {
                let error = error.to_string();
                if self.said.as_ref() != Some(&error) {
                    warn!(
                        error,
                        "snapshot of the registry not written: a restart while etcd is away would not know the services"
                    );
                }
                self.said = Some(error);
                self.write_at.get_or_insert(Instant::now() + AGAIN);
            }
        }
    }

    /// Writes what is known a last time, where the file does not have it.
    pub(crate) async fn finish(mut self, kept: Option<Kept>) {
        if self.writing.is_none() && self.write_at.is_none() {
            return;
        }
        let Some(kept) = kept else { return };
        let last = async {
            if let Some(writing) = &mut self.writing {
                // What it came to does not matter: the file is written anew.
                let _ = writing.await;
            }
            save(self.directory.clone(), self.file.clone(), self.prefix.clone(), kept).await
        };
        match tokio::time::timeout(LAST_LIMIT, last).await {
            Ok(written) => self.ended(written),
            Err(_) => warn!(limit = ?LAST_LIMIT, "snapshot of the registry not written at the end"),
        }
    }
}

async fn save(directory: PathBuf, file: Output, prefix: Prefix, kept: Kept) -> Result<(), OutputError> {
    // Where it cannot be made, the file in it cannot be either, and that is told.
    let _ = tokio::fs::create_dir_all(directory).await;
    file.prepare_by(move |file| write(&kept, &prefix, Timestamp::now(), file)).await?;
    file.promote().await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix() -> Prefix {
        "service".parse().unwrap()
    }

    fn kept() -> Kept {
        let entry = |path: &str, value: &str, suspect| KeptEntry {
            key: InstanceKey::parse(&prefix(), path).unwrap(),
            record: Arc::new(Record::parse(value).unwrap()),
            created: 7,
            suspect,
        };
        Kept {
            position: Position::new(Some("c1".to_owned()), 9),
            empty: vec![KeptService {
                name: "api".parse().unwrap(),
                attributes: BTreeMap::from([("host".to_owned(), "a.example".to_owned())]),
                tags: vec!["blue".to_owned()],
                flat: false,
                empty_for: Duration::from_secs(60),
            }],
            entries: vec![
                entry("/service/10.0.0.1:80", "running", false),
                entry("/service/web/[2001:db8::1]:80", r#"{"agent":"a","weight":3,"attributes":{"host":"x"}}"#, true),
            ],
        }
    }

    fn text() -> String {
        let mut text = Vec::new();
        write(&kept(), &prefix(), later(), &mut text).unwrap();
        String::from_utf8(text).unwrap()
    }

    /// A moment that is not over: what is read then is no older than it was.
    fn later() -> Timestamp {
        Timestamp::from_second(4_000_000_000).unwrap()
    }

    #[test]
    fn what_was_written_is_read_again() {
        let (read, written) = parse(&text(), "file", &prefix()).unwrap();
        assert_eq!((read, written), (kept(), later()));
        let empty = Kept { entries: Vec::new(), empty: Vec::new(), ..kept() };
        let mut text = Vec::new();
        write(&empty, &prefix(), Timestamp::UNIX_EPOCH, &mut text).unwrap();
        assert_eq!(parse(std::str::from_utf8(&text).unwrap(), "file", &prefix()).unwrap().0, empty);
        let mut text = Vec::new();
        write(&kept(), &prefix(), Timestamp::UNIX_EPOCH, &mut text).unwrap();
        let old = parse(std::str::from_utf8(&text).unwrap(), "file", &prefix()).unwrap().0;
        assert!(old.empty[0].empty_for > Duration::from_secs(1_000_000_000), "{old:?}");
    }

    #[test]
    fn what_is_not_to_be_used_is_named_with_the_reason() {
        let good = text();
        for end in 0..good.trim_end().len() {
            let error = parse(&good[..end], "file", &prefix()).unwrap_err().to_string();
            assert!(error.starts_with("file is damaged"), "cut at {end}: {error}");
        }
        let cases = [
            (good.replace("\"version\":1", "\"version\":2"), "file is of version 2, this is version 1"),
            (good.replace("\"key\":\"service\"", "\"key\":\"other\""), "file is of --key other"),
            (good.replace("\"created\":7", "\"created\":-7"), "file is damaged"),
            ("[]".to_owned(), "file is damaged"),
            ("{\"version\":1}".to_owned(), "file is damaged: missing field"),
        ];
        for (text, expected) in cases {
            let error = parse(&text, "file", &prefix()).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn a_key_that_is_no_instance_is_left_out() {
        for (from, to) in [
            ("/service/10.0.0.1:80", "/service/0.0.0.0:80"),
            ("/service/10.0.0.1:80", "/elsewhere/10.0.0.1:80"),
            ("/service/10.0.0.1:80", "/service/web/[2001:db8::1]:80"),
            ("{\"status\":\"running\"}", "{\"weight\":1000}"),
        ] {
            let text = text().replacen(from, to, 1);
            assert_eq!(parse(&text, "file", &prefix()).unwrap().0.entries.len(), 1, "{text}");
        }
    }

    #[test]
    fn a_pipe_in_the_snapshots_place_is_named_and_not_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        nix::unistd::mkfifo(&directory.path().join(NAME), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let error = read(directory.path(), &prefix()).unwrap_err().to_string();
        assert!(error.contains("registry.json cannot be read: it is no regular file"), "{error}");
    }

    #[tokio::test]
    async fn the_file_is_private_and_absent_at_first() {
        use std::os::unix::fs::PermissionsExt as _;
        let directory = tempfile::tempdir().unwrap();
        let state = directory.path().join("state");
        assert!(read(&state, &prefix()).unwrap().is_none());
        let file = Output::private(state.join(NAME));
        save(state.clone(), file.clone(), prefix(), kept()).await.unwrap();
        let mode = std::fs::metadata(file.path()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(read(&state, &prefix()).unwrap().unwrap().0.entries, kept().entries);
        std::fs::write(file.path(), [0xff, 0xfe]).unwrap();
        assert!(matches!(read(&state, &prefix()), Err(SnapshotError::Damaged { .. })));
        std::fs::File::options().write(true).open(file.path()).unwrap().set_len(LIMIT + 1).unwrap();
        // Of a hole nothing is on the disk.
        assert!(matches!(read(&state, &prefix()), Err(SnapshotError::TooLarge { .. })));
    }
}
