//! Being process 1 of a container: the real work runs in a child, and the parent only passes signals on and reaps.
//!
//! Process 1 inherits every orphan. Reaping them all in the process that also waits for its own children would take
//! away the exit codes it waits for.

use std::process::{Command, ExitCode};

use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// Signals that are meant for the work.
const PASSED_ON: [Signal; 6] =
    [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGUSR1, Signal::SIGUSR2];

/// Where this is process 1, runs the same command as a child, and gives the exit code for the container. Elsewhere
/// gives nothing, and the work is done right here.
pub fn run_if_first() -> Option<ExitCode> {
    if std::process::id() != 1 {
        // The mask is inherited, and process 1 blocks what it waits for.
        if let Err(error) = SigSet::empty().thread_set_mask() {
            tracing::warn!(%error, "the signal mask cannot be cleared");
        }
        return None;
    }
    Some(run().unwrap_or_else(|error| {
        tracing::error!(%error, "cannot start the child of process 1");
        ExitCode::FAILURE
    }))
}

fn run() -> std::io::Result<ExitCode> {
    let mut signals: SigSet = PASSED_ON.into_iter().collect();
    signals.add(Signal::SIGCHLD);
    // Blocked before the child is there, so that none is lost; the child begins by clearing its mask.
    signals.thread_block()?;
    let mut child = Command::new(std::env::current_exe()?);
    let child = child.args(std::env::args_os().skip(1)).spawn()?;
    let child = Pid::from_raw(i32::try_from(child.id()).map_err(std::io::Error::other)?);
    loop {
        match signals.wait()? {
            Signal::SIGCHLD => {
                if let Some(code) = reap(child) {
                    return Ok(code);
                }
            }
            signal => {
                let _ = kill(child, signal);
            }
        }
    }
}

/// Reaps whatever has ended; gives the exit code once the child is among it.
fn reap(child: Pid) -> Option<ExitCode> {
    let mut code = None;
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, status)) if pid == child => {
                code = Some(ExitCode::from(u8::try_from(status).unwrap_or(1)));
            }
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == child => {
                code = Some(ExitCode::from(128 + u8::try_from(signal as i32).unwrap_or(0)));
            }
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return code,
            Err(Errno::EINTR) | Ok(_) => {}
            Err(_) => return code,
        }
    }
}
