//! The way to an HAProxy that systemd runs: `systemctl`, without a shell.

use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::process::Command;
use tokio::time::timeout;

use super::without_secrets;

/// How long systemd may take to say how a unit stands.
const SHOW_LIMIT: Duration = Duration::from_secs(5);
/// How long a reload may take: HAProxy's own unit checks the file first.
const RELOAD_LIMIT: Duration = Duration::from_secs(30);
/// What a unit that runs is told.
pub(super) const RELOAD: &str = "reload";
/// How much of what systemctl says is kept, in characters.
const WORDS_LIMIT: usize = 500;

/// How a unit stands.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Standing {
    /// `loaded`, `not-found`, `masked`, ...
    load: String,
    /// `active`, `failed`, `inactive`, ...
    active: String,
    /// Its main process: HAProxy's master.
    pub(super) main_pid: Option<i32>,
}

impl Standing {
    /// Reads `systemctl show -p LoadState,ActiveState,MainPID`.
    fn read(text: &str) -> Self {
        let value = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
            line.unwrap_or_default().to_owned()
        };
        let main_pid = value("MainPID").parse().ok().filter(|&pid: &i32| pid > 0);
        Self { load: value("LoadState"), active: value("ActiveState"), main_pid }
    }

    /// What is to be done so that HAProxy reads its file. One that has failed is started: nobody wanted that. One that somebody
    /// has stopped stays so.
    pub(super) fn verb(&self, unit: &str) -> Result<&'static str, String> {
        match (self.load.as_str(), self.active.as_str()) {
            ("loaded", "active" | "reloading") => Ok(RELOAD),
            ("loaded", "failed") => Ok("start"),
            ("loaded", active) => {
                Err(format!("it is {active}; start it with `systemctl start {unit}`: it begins with the new file"))
            }
            ("not-found", _) => {
                Err("systemd has no such unit; `systemctl list-units --all` shows what there is".to_owned())
            }
            (load, _) => Err(format!("systemd says that it is {load}")),
        }
    }
}

/// Why `systemctl` did not do what it was told.
#[derive(Debug, thiserror::Error)]
pub(super) enum SystemctlError {
    /// There is none, or it cannot be run.
    #[error("systemctl cannot be run: {0}; does systemd run here?")]
    NotRun(std::io::Error),
    /// It did not end.
    #[error("systemctl {verb} did not end within {} s", limit.as_secs())]
    Late {
        /// What it was told.
        verb: String,
        /// The limit.
        limit: Duration,
    },
    /// It says no.
    #[error("systemctl {verb}: {said} ({status})")]
    Refused {
        /// What it was told.
        verb: String,
        /// What it says.
        said: String,
        /// How it ended.
        status: ExitStatus,
    },
}

impl SystemctlError {
    /// Whether systemd has begun what it was told, so that HAProxy may have read its file. systemctl says of a job that it failed, and of
    /// all that is refused before, such as for want of rights, something else.
    pub(super) fn began_a_job(&self) -> bool {
        match self {
            Self::NotRun(_) => false,
            Self::Late { .. } => true,
            Self::Refused { said, .. } => said.contains("Job for "),
        }
    }
}

/// How a unit stands.
///
/// # Errors
/// systemd does not say; in its own words.
pub(super) async fn standing(unit: &str) -> Result<Standing, String> {
    let show = ["show", "--property=LoadState,ActiveState,MainPID", "--", unit];
    let said = systemctl(SHOW_LIMIT, &show).await.map_err(|error| error.to_string())?;
    Ok(Standing::read(&said))
}

/// Tells systemd what to do with a unit, and waits until that is done.
///
/// # Errors
/// systemd refuses, or HAProxy does; in its own words.
pub(super) async fn tell(unit: &str, verb: &str) -> Result<(), SystemctlError> {
    systemctl(RELOAD_LIMIT, &[verb, "--no-ask-password", "--", unit]).await.map(drop)
}

async fn systemctl(limit: Duration, args: &[&str]) -> Result<String, SystemctlError> {
    let verb = args.first().copied().unwrap_or_default().to_owned();
    let mut command = Command::new("systemctl");
    command.args(args).env("LC_ALL", "C").stdin(Stdio::null()).kill_on_drop(true);
    without_secrets(&mut command);
    let output = timeout(limit, command.output()).await;
    let Ok(output) = output else { return Err(SystemctlError::Late { verb, limit }) };
    let output = output.map_err(SystemctlError::NotRun)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said: String = said.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(WORDS_LIMIT).collect();
    let said: String = said.chars().filter(|c| !c.is_control()).collect();
    Err(SystemctlError::Refused { verb, said, status: output.status })
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;

    use super::*;

    #[test]
    fn a_job_that_failed_is_told_from_one_that_was_never_begun() {
        let refused = |said: &str| SystemctlError::Refused {
            verb: RELOAD.to_owned(),
            said: said.to_owned(),
            status: ExitStatus::from_raw(256),
        };
        // systemd 252.
        let failed = "Job for haproxy.service failed. See \"systemctl status haproxy.service\" and \"journalctl -xe\" for details.";
        assert!(refused(failed).began_a_job());
        let late = SystemctlError::Late { verb: RELOAD.to_owned(), limit: RELOAD_LIMIT };
        assert!(late.began_a_job());
        for said in [
            "Failed to reload haproxy.service: Interactive authentication required. See system logs for details.",
            "Failed to connect to bus: No such file or directory",
            "Failed to reload haproxy.service: Unit haproxy.service not found.",
        ] {
            assert!(!refused(said).began_a_job(), "{said}");
        }
        assert!(!SystemctlError::NotRun(std::io::ErrorKind::NotFound.into()).began_a_job());
    }

    #[test]
    fn a_unit_that_runs_is_reloaded_one_that_failed_is_started_and_one_that_was_stopped_is_left() {
        let cases = [
            ("MainPID=812\nLoadState=loaded\nActiveState=active\n", Ok("reload"), Some(812)),
            ("MainPID=0\nLoadState=loaded\nActiveState=failed\n", Ok("start"), None),
            ("MainPID=0\nLoadState=loaded\nActiveState=inactive\n", Err("systemctl start lb.service"), None),
            ("MainPID=0\nLoadState=not-found\nActiveState=inactive\n", Err("no such unit"), None),
            ("MainPID=0\nLoadState=masked\nActiveState=inactive\n", Err("masked"), None),
            ("", Err("systemd says"), None),
        ];
        for (text, expected, pid) in cases {
            let standing = Standing::read(text);
            assert_eq!(standing.main_pid, pid, "{text}");
            match (standing.verb("lb.service"), expected) {
                (Ok(verb), Ok(expected)) => assert_eq!(verb, expected),
                (Err(error), Err(expected)) => assert!(error.contains(expected), "{error}"),
                other => panic!("{text}: {other:?}"),
            }
        }
    }
}
