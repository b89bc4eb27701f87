//! What systemd is told of the daemon that it runs (sd_notify(3)): that it is ready, a line on how it stands, and, as its
//! watchdog, that the daemon's own loop still turns. Where no systemd waits for that, nothing is done and nothing wakes up.
//!
//! A process has one systemd. Where several loops run in it, each is a [`Part`]: it is ready when all of them are, and it
//! lives as long as each of them turns.

use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use sd_notify::NotifyState;
use tracing::warn;

use crate::escape::is_unsafe;

/// How often systemd hears of a daemon, unless its watchdog wants to hear of it more often.
const EVERY: Duration = Duration::from_secs(10);

/// How often systemd is to hear of this process; none where it is not waiting for that.
fn period() -> Option<Duration> {
    static PERIOD: OnceLock<Option<Duration>> = OnceLock::new();
    *PERIOD.get_or_init(|| {
        // Any other process that finds the same socket in its environment is a child, of which systemd wants to hear nothing.
        std::env::var_os("NOTIFY_SOCKET").filter(|path| !path.is_empty())?;
        // A quarter: one that comes late does no harm.
        Some(sd_notify::watchdog_enabled().map_or(EVERY, |limit| (limit / 4).min(EVERY)))
    })
}

/// The variables by which systemd is found: nothing that a daemon starts is to have them.
pub const VARIABLES: [&str; 3] = ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"];

/// One loop of this process.
#[derive(Debug, Clone)]
pub struct Part {
    number: usize,
}

impl Part {
    /// The loop that is about to begin.
    pub fn begin() -> Self {
        let mut parts = parts();
        parts.states.push(State::default());
        Self { number: parts.states.len() - 1 }
    }

    /// Says that the loop turns, and how the daemon stands: at every turn. It costs nothing but now and then.
    pub fn turn(&self, status: impl FnOnce() -> String) {
        self.lives(|state| {
            state.is_ready = true;
            state.status = status();
        });
    }

    /// Says that the loop lives, in the midst of a turn that takes long and is healthy: a step of it is done.
    pub fn progress(&self) {
        self.lives(|_| {});
    }

    fn lives(&self, change: impl FnOnce(&mut State)) {
        let Some(period) = period() else { return };
        let now = Instant::now();
        let mut parts = parts();
        let state = &mut parts.states[self.number];
        if state.is_ready && state.said_at.is_some_and(|at| now.duration_since(at) < period / 2) {
            return;
        }
        state.said_at = Some(now);
        change(state);
        state.lives = true;
        let lines = parts.lines();
        drop(parts);
        tell(&lines);
    }

    /// Waits until the loop is to turn, so that systemd hears of it. For ever, where nobody waits for that.
    pub async fn due(&self) {
        let (Some(period), said_at) = (period(), parts().states[self.number].said_at) else {
            return std::future::pending().await;
        };
        let at = said_at.map_or_else(Instant::now, |at| at + period);
        tokio::time::sleep_until(at.into()).await;
    }
}

/// Says that the daemon was told to stop, and does so.
pub fn stopping() {
    if period().is_some() {
        tell(&["STOPPING=1".to_owned(), "STATUS=stopping".to_owned()]);
    }
}

/// Says that the configuration is being read again. Before it is ready for the first time that is part of its start.
pub fn reloading() {
    if period().is_some() && parts().is_ready {
        let now = NotifyState::monotonic_usec_now().map(|now| now.to_string()).unwrap_or_default();
        tell(&["RELOADING=1".to_owned(), now.trim().to_owned()]);
    }
}

/// Says that this is over, however it ended.
pub fn reloaded() {
    if period().is_some() && parts().is_ready {
        tell(&["READY=1".to_owned()]);
    }
}

fn tell(lines: &[String]) {
    if lines.is_empty() {
        return;
    }
    // One datagram: what belongs together is heard together.
    if let Err(error) = sd_notify::notify(&[NotifyState::Custom(&lines.join("\n"))]) {
        static TOLD: OnceLock<()> = OnceLock::new();
        TOLD.get_or_init(|| warn!(%error, "systemd cannot be told how this daemon stands"));
    }
}

/// The loops of this process.
#[derive(Debug, Default)]
struct Parts {
    states: Vec<State>,
    is_ready: bool,
    status: String,
}

#[derive(Debug, Default)]
struct State {
    is_ready: bool,
    /// It has turned since the watchdog was last told of all.
    lives: bool,
    said_at: Option<Instant>,
    status: String,
}

impl Parts {
    /// What systemd is to hear now.
    fn lines(&mut self) -> Vec<String> {
        let mut lines = Vec::new();
        if !self.is_ready && self.states.iter().all(|state| state.is_ready) {
            self.is_ready = true;
            lines.push("READY=1".to_owned());
        }
        if self.states.iter().all(|state| state.lives) {
            self.states.iter_mut().for_each(|state| state.lives = false);
            lines.push("WATCHDOG=1".to_owned());
        }
        let statuses: Vec<&str> =
            self.states.iter().map(|state| state.status.as_str()).filter(|s| !s.is_empty()).collect();
        // A line is a line, whatever is in it, and `systemctl status` shows it on a terminal.
        let status = statuses.join("; ").replace(is_unsafe, " ");
        if status != self.status {
            lines.push(format!("STATUS={status}"));
            self.status = status;
        }
        lines
    }
}

fn parts() -> MutexGuard<'static, Parts> {
    static PARTS: Mutex<Parts> = Mutex::new(Parts { states: Vec::new(), is_ready: false, status: String::new() });
    // It is whole between any two of its statements.
    PARTS.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(is_ready: bool, lives: bool, status: &str) -> State {
        State { is_ready, lives, said_at: None, status: status.to_owned() }
    }

    #[test]
    fn a_process_is_ready_and_lives_when_each_of_its_loops_does() {
        let mut parts = Parts { states: vec![state(true, true, "a"), state(false, false, "")], ..Parts::default() };
        assert_eq!(parts.lines(), ["STATUS=a"]);
        parts.states[1] = state(true, true, "b\nREADY=0\u{202e}");
        assert_eq!(parts.lines(), ["READY=1", "WATCHDOG=1", "STATUS=a; b READY=0 "]);
        assert!(parts.lines().is_empty(), "neither has turned since");
        parts.states[0].lives = true;
        assert!(parts.lines().is_empty(), "the other one hangs");
        parts.states[1].lives = true;
        assert_eq!(parts.lines(), ["WATCHDOG=1"]);
    }
}
