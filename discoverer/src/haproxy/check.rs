//! HAProxy's program: which version it is, and whether it takes a file.

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use observe::systemd::Part;
use tokio::process::Command;

use super::without_secrets;

/// A check of 10,000 servers takes 0.6 s; one that takes this long hangs.
const CHECK_LIMIT: Duration = Duration::from_secs(30);
/// How much of what HAProxy says is kept, in characters.
const WORDS_LIMIT: usize = 2000;

/// HAProxy's program on this machine.
#[derive(Debug, Clone)]
pub struct Program {
    path: PathBuf,
    /// Whose step a check is.
    part: Option<Part>,
}

/// Why a file was not found good.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CheckError {
    /// HAProxy read it and refused it.
    #[error("HAProxy refuses it: {words}")]
    Refused {
        /// HAProxy's own words, on one line.
        words: String,
        /// The lines of the file that it named, each with what it said of it.
        findings: Vec<(usize, String)>,
    },
    /// HAProxy could not be asked.
    #[error("{program} -c could not be run: {error}; see --haproxy")]
    Unusable {
        /// The program.
        program: String,
        /// What went wrong.
        error: String,
    },
}

impl Program {
    /// The program at a path, or of a name that `PATH` finds.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), part: None }
    }

    /// The same, as a part of that loop: one turn may take many checks, and each of them says that it lives.
    #[must_use]
    pub fn within(self, part: Part) -> Self {
        Self { part: Some(part), ..self }
    }

    /// Its path, as given.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its version, such as `2.6.12`.
    pub async fn version(&self) -> Result<String, CheckError> {
        let output = self.run(&["-v".as_ref()]).await?;
        let text = String::from_utf8_lossy(&output.stdout);
        parse_version(&text).ok_or_else(|| self.unusable("it does not say its version with -v; is it HAProxy?"))
    }

    /// Lets HAProxy read a file (`haproxy -c -f`).
    pub async fn check(&self, file: &Path) -> Result<(), CheckError> {
        let output = self.run(&["-c".as_ref(), "-f".as_ref(), file]).await;
        if let Some(part) = &self.part {
            part.progress();
        }
        let output = output?;
        if output.status.success() {
            return Ok(());
        }
        let mut said = String::from_utf8_lossy(&output.stderr).into_owned();
        said.push_str(&String::from_utf8_lossy(&output.stdout));
        let words = alerts(&said);
        let words = if words.is_empty() { format!("it ended with {}", output.status) } else { words };
        Err(CheckError::Refused { words, findings: findings(&said, file) })
    }

    async fn run(&self, arguments: &[&Path]) -> Result<Output, CheckError> {
        let mut command = Command::new(&self.path);
        command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
        without_secrets(&mut command);
        match tokio::time::timeout(CHECK_LIMIT, command.output()).await {
            Ok(output) => output.map_err(|error| self.unusable(&error.to_string())),
            Err(_) => Err(self.unusable(&format!("no end within {} s", CHECK_LIMIT.as_secs()))),
        }
    }

    fn unusable(&self, error: &str) -> CheckError {
        CheckError::Unusable { program: self.path.display().to_string(), error: error.to_owned() }
    }
}

/// Reads `HAProxy version 2.6.12-1+deb12u4 2026/10/17 - ...` (older: `HA-Proxy version`).
pub(super) fn parse_version(text: &str) -> Option<String> {
    let (_, rest) = text.lines().next()?.split_once("roxy version ")?;
    version_numbers(rest)
}

/// The numbers that a version begins with: `2.6.12` of `2.6.12-1+deb12u4`; nothing of what begins with none.
pub(super) fn version_numbers(text: &str) -> Option<String> {
    let version: String = text.chars().take_while(|c| c.is_ascii_digit() || *c == '.').collect();
    version.starts_with(|c: char| c.is_ascii_digit()).then_some(version)
}

/// What HAProxy says at level ALERT, without pid and repetition, joined on one line.
pub(super) fn alerts(said: &str) -> String {
    let mut words: Vec<&str> = Vec::new();
    for line in said.lines().filter(|line| line.starts_with("[ALERT]")) {
        // `[ALERT]    (123) : config : parsing [...] : ...`
        let text = line.split_once(" : ").map_or(line, |(_, text)| text).trim();
        let is_summary = text.starts_with("config : Error(s) found") || text.starts_with("config : Fatal errors");
        if !is_summary && !words.contains(&text) {
            words.push(text);
        }
    }
    words.join("; ").chars().filter(|c| !c.is_control()).take(WORDS_LIMIT).collect()
}

/// What it says of single lines: `parsing [file:LINE] : ...` and `[file:LINE] : ...`.
pub(super) fn findings(said: &str, file: &Path) -> Vec<(usize, String)> {
    let start = format!("{}:", file.display());
    let read = |line: &str| {
        let rest = &line[line.find(&start)? + start.len()..];
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        Some((rest[..digits].parse().ok()?, alerts(line)))
    };
    said.lines().filter(|line| line.starts_with("[ALERT]")).filter_map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What HAProxy 2.6.12 said of a bad file.
    const SAID: &str = "[NOTICE]   (8717) : haproxy version is 2.6.12-1+deb12u4\n\
        [ALERT]    (8717) : config : parsing [/tmp/a.cfg:3] : unknown keyword 'bogus' in 'backend' section\n\
        [ALERT]    (8717) : config : Error(s) found in configuration file : /tmp/a.cfg\n\
        [ALERT]    (8717) : config : Fatal errors found in configuration.\n";

    #[test]
    fn the_words_of_a_refusal_are_kept_without_what_says_nothing() {
        assert_eq!(alerts(SAID), "config : parsing [/tmp/a.cfg:3] : unknown keyword 'bogus' in 'backend' section");
        let found = findings(SAID, Path::new("/tmp/a.cfg"));
        assert_eq!(found.iter().map(|(line, _)| *line).collect::<Vec<_>>(), [3]);
        assert!(found[0].1.ends_with("unknown keyword 'bogus' in 'backend' section"), "{found:?}");
    }

    #[test]
    fn the_version_is_read_from_old_and_new_programs() {
        let new = "HAProxy version 2.6.12-1+deb12u4 2026/10/17 - https://haproxy.org/\nStatus: ...";
        assert_eq!(parse_version(new).as_deref(), Some("2.6.12"));
        assert_eq!(parse_version("HA-Proxy version 2.2.9-2 2021").as_deref(), Some("2.2.9"));
        assert_eq!(parse_version("nginx version: 1.2"), None);
    }
}
