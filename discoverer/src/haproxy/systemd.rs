//! The way to an HAProxy that systemd runs: `systemctl`, without a shell.

use std::process::Stdio;
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

/// How a unit stands.
///
/// # Errors
/// systemd does not say; in its own words.
pub(super) async fn standing(unit: &str) -> Result<Standing, String> {
    let said = systemctl(SHOW_LIMIT, &["show", "--property=LoadState,ActiveState,MainPID", "--", unit]).await?;
    Ok(Standing::read(&said))
}

/// Tells systemd what to do with a unit, and waits until that is done.
///
/// # Errors
/// systemd refuses, or HAProxy does; in its own words.
pub(super) async fn tell(unit: &str, verb: &str) -> Result<(), String> {
    systemctl(RELOAD_LIMIT, &[verb, "--no-ask-password", "--", unit]).await.map(drop)
}

async fn systemctl(limit: Duration, args: &[&str]) -> Result<String, String> {
    let mut command = Command::new("systemctl");
    command.args(args).env("LC_ALL", "C").stdin(Stdio::null()).kill_on_drop(true);
    without_secrets(&mut command);
    let output = timeout(limit, command.output()).await;
    let output = output.map_err(|_| format!("systemctl {} did not end within {} s", args[0], limit.as_secs()))?;
    let output = output.map_err(|error| format!("systemctl cannot be run: {error}; does systemd run here?"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said: String = said.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(WORDS_LIMIT).collect();
    let said: String = said.chars().filter(|c| !c.is_control()).collect();
    Err(format!("systemctl {}: {said} ({})", args[0], output.status))
}

#[cfg(test)]
mod tests {
    use super::*;

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
