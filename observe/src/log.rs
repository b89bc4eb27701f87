//! The log: one line an event, to the standard error or to journald.
//!
//! What comes from elsewhere stands in fields. In a line for people its control characters are written out, so that none
//! makes a second line, or does anything to the terminal; JSON and journald have ways of their own.

mod journal;
mod text;

use std::fs::File;
use std::io::{self, IsTerminal};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::OnceLock;

use clap::ValueEnum;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};
use tracing_subscriber::{EnvFilter, Registry, reload};

use journal::Journal;
use text::OneLine;

/// Where journald listens (systemd-journald.service(8)).
const JOURNALD: &str = "/run/systemd/journal/socket";

/// How the log is written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// To journald where it reads the standard error, else as text.
    #[default]
    Auto,
    /// Lines for people.
    Text,
    /// One JSON object a line.
    Json,
    /// To journald, with the fields of each event as its own.
    Journald,
}

/// Why there is no log.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The level is none.
    #[error("--log-level {0:?} is no level and no filter: {1}")]
    Filter(String, tracing_subscriber::filter::ParseError),
    /// There is no journald.
    #[error("--log-format journald: {JOURNALD} cannot be written to: {0}")]
    Journald(io::Error),
    /// There is one already.
    #[error("the log was started before: {0}")]
    Twice(#[from] TryInitError),
}

/// Starts the log. `filter`: a level, or tracing's filters such as `info,discoverer=debug`.
///
/// # Errors
/// Where the filter is none, or journald was asked for and is not there.
pub fn start(format: Format, filter: &str) -> Result<(), LogError> {
    let filter = read(filter)?;
    let journal = match format {
        Format::Journald => Some(Journal::open(Path::new(JOURNALD)).map_err(LogError::Journald)?),
        Format::Auto if journald_reads(std::env::var("JOURNAL_STREAM").ok().as_deref(), io::stderr()) => {
            Journal::open(Path::new(JOURNALD)).ok()
        }
        _ => None,
    };
    let (filter, handle) = reload::Layer::new(filter);
    let log = tracing_subscriber::registry().with(filter);
    if let Some(journal) = journal {
        log.with(journal).try_init()?;
    } else {
        let lines = tracing_subscriber::fmt::layer().with_writer(io::stderr).with_target(false);
        if format == Format::Json {
            log.with(lines.json().flatten_event(true)).try_init()?;
        } else {
            log.with(lines.fmt_fields(OneLine).with_ansi(is_coloured())).try_init()?;
        }
    }
    // There is no second one: that would have failed above.
    let _first = FILTER.set(handle);
    Ok(())
}

/// By what the log is filtered.
static FILTER: OnceLock<reload::Handle<EnvFilter, Registry>> = OnceLock::new();

/// Filters the log otherwise from now on; see [`start`].
///
/// # Errors
/// Where the filter is none.
pub fn filter_by(filter: &str) -> Result<(), LogError> {
    let filter = read(filter)?;
    if let Some(handle) = FILTER.get() {
        // It fails only where there is no log any more.
        let _gone = handle.reload(filter);
    }
    Ok(())
}

fn read(filter: &str) -> Result<EnvFilter, LogError> {
    let read = |text: &str| EnvFilter::try_new(text).map_err(|error| LogError::Filter(filter.to_owned(), error));
    read(filter)?;
    // What is wrong with a certificate is told by the programs themselves, once.
    read(&format!("{filter},rustls_platform_verifier=off"))
}

/// Colour is for a terminal, unless its user wants none (no-color.org).
fn is_coloured() -> bool {
    let is_set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    io::stderr().is_terminal() && !is_set("NO_COLOR") && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// Whether this file is what systemd connected to journald: `$JOURNAL_STREAM` has its device and inode
/// (systemd.exec(5)). A variable that was inherited by a process whose output goes elsewhere says nothing.
fn journald_reads(stream: Option<&str>, file: impl AsFd) -> bool {
    let Some((device, inode)) = stream.and_then(|stream| stream.split_once(':')) else { return false };
    let metadata = file.as_fd().try_clone_to_owned().and_then(|file| File::from(file).metadata());
    let is = |text: &str, number: u64| text.parse() == Ok(number);
    metadata.is_ok_and(|file| is(device, file.dev()) && is(inode, file.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn journald_reads_what_its_variable_names_and_nothing_else() {
        let file = tempfile::tempfile().unwrap();
        let metadata = file.metadata().unwrap();
        let named = format!("{}:{}", metadata.dev(), metadata.ino());
        assert!(journald_reads(Some(&named), &file));
        assert!(!journald_reads(Some(&named), tempfile::tempfile().unwrap()));
        for other in [None, Some(""), Some(":"), Some("1:2"), Some("x:y")] {
            assert!(!journald_reads(other, &file), "{other:?}");
        }
    }
}
