//! The ways to make a running HAProxy read its file anew, and to know how that ended.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::AsyncReadExt;
use tokio::process::Command;
use tokio::time::Instant;

use super::check::version_numbers;
use super::container::Container;
use super::runtime::is_another;
use super::socket::{SocketError, ask};
use super::supervise::SupervisorHandle;
use super::{systemd, without_secrets};
use crate::plan::Version;

/// A reload with 10,000 servers takes 1 s, a bind conflict 2.4 s; one that takes this long hangs.
pub const RELOAD_LIMIT: Duration = Duration::from_secs(30);
/// A master that is idle answers in a millisecond.
const VERSION_LIMIT: Duration = Duration::from_secs(3);
/// A master with 10,000 servers is silent for 1 s while it reads its file, on a busy machine for some more; one that is
/// silent this long is dead.
const SILENCE_LIMIT: Duration = Duration::from_secs(15);
/// How often HAProxy's master is asked how an asynchronous reload goes.
const ASK_EVERY: Duration = Duration::from_millis(10);
/// How often Docker is asked for a container's processes while it reloads: it starts a `ps` each time.
const LIST_EVERY: Duration = Duration::from_millis(50);
/// A worker that is forked after the file was read stays, but for a fault of its own.
const WORKER_STAYS: Duration = Duration::from_millis(50);
/// A worker that is forked before the file is read tries to bind for 2.4 s.
const WORKER_TRIES: Duration = Duration::from_secs(4);
/// How much of what a command or HAProxy says is kept, in characters.
const WORDS_LIMIT: usize = 2000;
/// The largest pid file that is read, in bytes.
const PID_FILE_LIMIT: u64 = 4096;

/// Why HAProxy does not run the new file.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// The master CLI could not be asked.
    #[error("{0}; is HAProxy running with -W -S, and is that its socket?")]
    Socket(#[from] SocketError),
    /// HAProxy tried and kept its old worker.
    #[error("HAProxy could not start with the new file: {0}")]
    Failed(String),
    /// Its master has not answered for long since it was told to reload.
    #[error("HAProxy's master has been silent since it was told to reload: {0}")]
    Silent(SocketError),
    /// It never said how it ended.
    #[error("HAProxy did not finish the reload within {} s", RELOAD_LIMIT.as_secs())]
    Unfinished,
    /// A reply that is none of the known ones.
    #[error("HAProxy's master answered {0:?}, which is no reply to a reload")]
    Reply(String),
    /// The pid file does not lead to HAProxy's master.
    #[error("pid file {path}: {error}")]
    Pidfile {
        /// The file.
        path: String,
        /// What is wrong.
        error: String,
    },
    /// HAProxy's container cannot be reached.
    #[error("container {name}: {error}")]
    Container {
        /// The container.
        name: String,
        /// What is wrong, and what to do.
        error: String,
    },
    /// systemd does not reload HAProxy's unit.
    #[error("unit {unit}: {error}")]
    Unit {
        /// The unit.
        unit: String,
        /// What is wrong, and what to do.
        error: String,
        /// Whether HAProxy may have been told.
        is_told: bool,
    },
    /// The operator's command failed.
    #[error("reload command {command:?} {error}")]
    Command {
        /// The command.
        command: String,
        /// How it ended, and what it said.
        error: String,
    },
    /// The operator's command did not end, and what it began may still come.
    #[error("reload command {command:?} did not end within {} s", RELOAD_LIMIT.as_secs())]
    CommandUnfinished {
        /// The command.
        command: String,
    },
    /// HAProxy runs under us and does not start.
    #[error("HAProxy does not start: {0}")]
    Start(String),
    /// It was told, by a way that says no more, and its worker is still the same.
    #[error(
        "HAProxy was told to reload, and the worker behind --runtime-socket is still the same {} s later: is it that HAProxy \
         which is told, and does its log say why it does not take the file?",
        RELOAD_LIMIT.as_secs()
    )]
    SameWorker,
}

impl ReloadError {
    /// HAProxy was not reached: nothing is known of what it makes of the file.
    pub fn says_nothing_of_the_file(&self) -> bool {
        matches!(
            self,
            Self::Socket(_)
                | Self::Silent(_)
                | Self::Pidfile { .. }
                | Self::Reply(_)
                | Self::SameWorker
                | Self::Container { .. }
                | Self::Unit { is_told: false, .. }
        )
    }

    /// The reload is over: nothing of it can still come.
    pub fn is_an_end(&self) -> bool {
        !matches!(self, Self::Unfinished | Self::Silent(_) | Self::CommandUnfinished { .. } | Self::SameWorker)
    }

    /// The old worker goes on, as HAProxy itself says or shows.
    pub fn keeps_the_old_worker(&self) -> bool {
        matches!(self, Self::Failed(_) | Self::SameWorker)
    }
}

/// What is known when HAProxy was told to reload, and nothing went wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reloaded {
    /// Its new worker is there.
    Done,
    /// It was told: whoever can has to wait for the new worker.
    Told,
}

/// How HAProxy is made to read its file.
#[derive(Debug, Clone)]
pub enum Reloader {
    /// `reload` on the master CLI.
    Socket(PathBuf),
    /// SIGUSR2 to the master named in a pid file.
    Pidfile {
        /// The file.
        path: PathBuf,
        /// HAProxy forks its worker before it reads the file (3.1 and later): a new worker alone says nothing.
        forks_first: bool,
    },
    /// A signal to the master in a container of its own.
    Container {
        /// The container.
        container: Container,
        /// As for the pid file.
        forks_first: bool,
    },
    /// `systemctl reload`.
    Systemd {
        /// The unit.
        unit: String,
        /// As for the pid file.
        forks_first: bool,
    },
    /// A command of the operator's, run by `sh -c`.
    Command(String),
    /// HAProxy is our own child.
    Supervised(SupervisorHandle),
    /// Nobody is told; the file is all.
    Nobody,
}

/// Whether HAProxy of this version forks its worker before it reads the file: 3.1 and later do, and one that is not known may.
pub fn forks_first(version: Option<Version>) -> bool {
    const FORKS_FIRST: Version = Version { major: 3, minor: 1 };
    version.is_none_or(|version| version >= FORKS_FIRST)
}

impl Reloader {
    /// HAProxy runs this version now.
    pub fn runs(&mut self, version: Option<Version>) {
        if let Self::Pidfile { forks_first: known, .. }
        | Self::Container { forks_first: known, .. }
        | Self::Systemd { forks_first: known, .. } = self
        {
            *known = forks_first(version);
        }
    }

    /// Makes HAProxy read its file and waits until it is known how that ended, where this way lets that be seen. After an error
    /// the old worker goes on serving the old configuration.
    pub async fn reload(&self) -> Result<Reloaded, ReloadError> {
        match self {
            Self::Socket(path) => through_socket(path).await.map(|()| Reloaded::Done),
            Self::Pidfile { path, forks_first } => through_pidfile(path, *forks_first).await,
            Self::Container { container, forks_first } => through_container(container, *forks_first).await,
            Self::Systemd { unit, forks_first } => through_systemd(unit, *forks_first).await,
            Self::Command(command) => through_command(command).await.map(|()| Reloaded::Told),
            Self::Supervised(supervisor) => supervisor.reload().await.map(|()| Reloaded::Done),
            Self::Nobody => Ok(Reloaded::Done),
        }
    }

    /// Which way this is, by the flag that asks for it.
    pub fn way(&self) -> &'static str {
        match self {
            Self::Socket(_) => "reload-socket",
            Self::Pidfile { .. } => "reload-pidfile",
            Self::Container { .. } => "reload-container",
            Self::Systemd { .. } => "reload-systemd",
            Self::Command(_) => "reload-command",
            Self::Supervised(_) => "supervise",
            Self::Nobody => "none",
        }
    }

    /// HAProxy is reached on this machine, with its addresses; a command may reach it anywhere, and a container has its own.
    pub fn is_here(&self) -> bool {
        matches!(self, Self::Socket(_) | Self::Pidfile { .. } | Self::Systemd { .. } | Self::Supervised(_))
    }

    /// HAProxy is known not to run.
    pub fn is_down(&self) -> bool {
        matches!(self, Self::Supervised(supervisor) if supervisor.is_down())
    }

    /// How many reloads the oldest of the old workers has survived; none where HAProxy's master cannot be asked.
    pub async fn most_survived(&self) -> Option<u64> {
        let socket = match self {
            Self::Socket(path) => path,
            Self::Supervised(supervisor) => supervisor.master_socket(),
            Self::Pidfile { .. } | Self::Container { .. } | Self::Systemd { .. } => {
                return (workers(self).await?.len() <= 1).then_some(0);
            }
            Self::Command(_) | Self::Nobody => return None,
        };
        let reply = ask(socket, "show proc", VERSION_LIMIT).await.ok()?;
        parse_processes(&reply).map(|processes| processes.most_survived)
    }
}

/// What `show proc` says of the master.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Processes {
    /// The master's pid, in its own namespace: in a container of its own it is the same after each start.
    pid: u32,
    /// How long it has been running, in whole seconds. A reload does not begin it anew.
    uptime: Duration,
    /// How many reloads the oldest of the old workers has survived.
    pub(super) most_survived: u64,
    pub(super) reloads: u64,
    pub(super) failed: u64,
    pub(super) has_worker: bool,
}

impl Processes {
    /// Whether this master was started after the one that answered so long before, rather than by its reload.
    pub(super) fn is_started_after(&self, before: &Self, elapsed: Duration) -> bool {
        is_another((self.pid.into(), self.uptime), (before.pid.into(), before.uptime), elapsed)
    }
}

/// Reads the reply to `show proc` of the master CLI (management guide, section 9.4.1).
pub(super) fn parse_processes(reply: &str) -> Option<Processes> {
    let mut words = reply.lines().find(|line| line.split_whitespace().nth(1) == Some("master"))?.split_whitespace();
    let pid = words.next()?.parse().ok()?;
    let reloads = words.nth(1)?.parse().ok()?;
    let mut failed = 0;
    let mut uptime = words.next()?;
    if uptime == "[failed:" {
        failed = words.next()?.strip_suffix(']')?.parse().ok()?;
        uptime = words.next()?;
    }
    let uptime = parse_uptime(uptime)?;
    let workers = |lines: &str| {
        let lines = lines.lines().map(|line| line.split_whitespace().skip(1));
        let survived = lines.filter_map(|mut words| (words.next() == Some("worker")).then(|| words.next()));
        survived.map(|reloads| reloads.and_then(|reloads| reloads.parse().ok()).unwrap_or(0)).collect::<Vec<u64>>()
    };
    let (current, old) = reply.split_once("# old workers").unwrap_or((reply, ""));
    let most_survived = workers(old).into_iter().max().unwrap_or(0);
    Some(Processes { pid, uptime, most_survived, reloads, failed, has_worker: !workers(current).is_empty() })
}

/// Reads a time such as `0d00h01m05s`.
fn parse_uptime(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut seconds = 0_u64;
    for (unit, length) in [('d', 86_400), ('h', 3600), ('m', 60), ('s', 1)] {
        let (count, behind) = rest.split_once(unit)?;
        seconds = seconds.checked_add(count.parse::<u64>().ok()?.checked_mul(length)?)?;
        rest = behind;
    }
    rest.is_empty().then(|| Duration::from_secs(seconds))
}

/// A worker in what the master says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct WorkerProcess {
    pub(super) pid: u32,
    /// A reload has left it.
    pub(super) is_old: bool,
}

/// The workers in the reply to `show proc` of the master CLI; none where it is no such reply.
pub(super) fn parse_workers(reply: &str) -> Option<Vec<WorkerProcess>> {
    parse_processes(reply)?;
    let (current, old) = reply.split_once("# old workers").unwrap_or((reply, ""));
    let mut workers = Vec::new();
    for (lines, is_old) in [(current, false), (old, true)] {
        for mut words in lines.lines().map(str::split_whitespace) {
            if let (Some(pid), Some("worker")) = (words.next(), words.next()) {
                workers.push(WorkerProcess { pid: pid.parse().ok()?, is_old });
            }
        }
    }
    Some(workers)
}

/// Whether a reload has left workers that cannot be asked through HAProxy's master, as far as that can be seen.
pub(super) async fn old_workers(reloader: &Reloader) -> bool {
    workers(reloader).await.is_some_and(|workers| workers.len() > 1)
}

/// The workers of a master that is known by its processes alone; none where there is none, or they cannot be seen.
async fn workers(reloader: &Reloader) -> Option<BTreeSet<i32>> {
    match reloader {
        Reloader::Pidfile { path, .. } => children(master_in(path).ok()?),
        Reloader::Container { container, .. } => container.workers_now().await,
        Reloader::Systemd { unit, .. } => children(systemd::standing(unit).await.ok()?.main_pid?),
        _ => None,
    }
}

/// The version of the master behind a master CLI, such as `2.6.12`; none where it does not say.
pub async fn running_version(master_socket: &Path) -> Option<String> {
    let reply = ask(master_socket, "show proc", VERSION_LIMIT).await.ok()?;
    let master = reply.lines().find(|line| line.split_whitespace().nth(1) == Some("master"))?;
    version_numbers(master.split_whitespace().next_back()?)
}

/// Reloads over the master CLI. HAProxy 2.6 gives an empty reply and goes on by itself, so `show proc` is asked until
/// the number of reloads has risen; 3.0 and later reply with the result. A master that somebody started meanwhile has read
/// the file by itself.
pub(super) async fn through_socket(path: &Path) -> Result<(), ReloadError> {
    let deadline = Instant::now() + RELOAD_LIMIT;
    let before = ask(path, "show proc", RELOAD_LIMIT).await?;
    let before = parse_processes(&before).ok_or_else(|| ReloadError::Reply(first_line(&before)))?;
    let asked = Instant::now();
    // The old master may close without a reply, or reset the connection, while it executes itself anew.
    let reply = ask(path, "reload", RELOAD_LIMIT).await.unwrap_or_default();
    match reply.trim().split_once('\n').map_or(reply.trim(), |(first, _)| first) {
        "Success=1" => return Ok(()),
        "Success=0" => return Err(ReloadError::Failed(startup_words(&reply))),
        "" => {}
        other => return Err(ReloadError::Reply(first_line(other))),
    }
    let mut last_answer = Instant::now();
    while Instant::now() < deadline {
        match ask(path, "show proc", RELOAD_LIMIT).await {
            Ok(reply) => {
                last_answer = Instant::now();
                if let Some(now) = parse_processes(&reply) {
                    let is_another = now.is_started_after(&before, asked.elapsed());
                    if is_another && now.has_worker {
                        return Ok(());
                    }
                    if !is_another && now.reloads > before.reloads {
                        return match now.failed {
                            0 => Ok(()),
                            _ => Err(ReloadError::Failed("its log says why".to_owned())),
                        };
                    }
                }
            }
            // While the new master reads its file, nobody answers.
            Err(error) if last_answer.elapsed() > SILENCE_LIMIT => return Err(ReloadError::Silent(error)),
            Err(_) => {}
        }
        tokio::time::sleep(ASK_EVERY).await;
    }
    Err(ReloadError::Unfinished)
}

/// The alerts in `Success=0\n--\n<startup logs>`.
fn startup_words(reply: &str) -> String {
    let words = super::check::alerts(reply);
    if words.is_empty() { "its log says why".to_owned() } else { words }
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().chars().take(120).collect()
}

/// Signals the master and waits for its new worker.
async fn through_pidfile(path: &Path, forks_first: bool) -> Result<Reloaded, ReloadError> {
    let wrong = |error: String| ReloadError::Pidfile { path: path.display().to_string(), error };
    let pid = master_in(path).map_err(wrong)?;
    let before = children(pid);
    kill(Pid::from_raw(pid), Signal::SIGUSR2).map_err(|error| wrong(format!("process {pid}: {error}")))?;
    let Some(before) = before else { return Ok(Reloaded::Told) };
    let now = async || children(pid).ok_or_else(|| wrong(format!("HAProxy's master {pid} is gone")));
    new_worker(before, now, ASK_EVERY, forks_first).await.map(|()| Reloaded::Done)
}

/// Signals the master in a container, and waits as for the pid file.
async fn through_container(container: &Container, forks_first: bool) -> Result<Reloaded, ReloadError> {
    let wrong = |error: String| ReloadError::Container { name: container.name.clone(), error };
    let master = container.master().await.map_err(wrong)?;
    let before = container.workers(&master).await;
    container.signal(&master).await.map_err(wrong)?;
    let Some(before) = before else { return Ok(Reloaded::Told) };
    let now = async || {
        let workers = container.workers(&master).await;
        workers
            .ok_or_else(|| wrong("HAProxy's master is gone, or Docker does not show its processes any more".to_owned()))
    };
    new_worker(before, now, LIST_EVERY, forks_first).await.map(|()| Reloaded::Done)
}

/// Lets systemd reload a unit, and waits as for the pid file.
async fn through_systemd(unit: &str, forks_first: bool) -> Result<Reloaded, ReloadError> {
    let failed = |error: String, is_told: bool| ReloadError::Unit { unit: unit.to_owned(), error, is_told };
    let standing = systemd::standing(unit).await.map_err(|error| failed(error, false))?;
    let before = standing.main_pid.and_then(|pid| Some((pid, children(pid)?)));
    let verb = standing.verb(unit).map_err(|error| failed(error, false))?;
    systemd::tell(unit, verb).await.map_err(|error| {
        let is_told = error.began_a_job();
        failed(error.to_string(), is_told)
    })?;
    if verb != systemd::RELOAD {
        // One that was started has read its file when systemd says so.
        return Ok(Reloaded::Done);
    }
    let Some((pid, before)) = before else { return Ok(Reloaded::Told) };
    let now = async || children(pid).ok_or_else(|| failed(format!("HAProxy's master {pid} is gone"), true));
    new_worker(before, now, ASK_EVERY, forks_first).await.map(|()| Reloaded::Done)
}

/// Waits for a worker that was not there before, and that stays.
async fn new_worker(
    before: BTreeSet<i32>,
    workers: impl AsyncFn() -> Result<BTreeSet<i32>, ReloadError>,
    ask_every: Duration,
    forks_first: bool,
) -> Result<(), ReloadError> {
    let deadline = Instant::now() + RELOAD_LIMIT;
    let mut new_since: Option<(i32, Instant)> = None;
    while Instant::now() < deadline {
        tokio::time::sleep(ask_every).await;
        let now = workers().await?;
        let Some((new, since)) = new_since else {
            new_since = now.difference(&before).next().map(|&new| (new, Instant::now()));
            continue;
        };
        if !now.contains(&new) {
            return Err(ReloadError::Failed("its log says why".to_owned()));
        }
        // Before the file is read, the old workers do not go.
        let old_goes = !before.is_subset(&now);
        let stays = if forks_first { WORKER_TRIES } else { WORKER_STAYS };
        if since.elapsed() >= stays || forks_first && old_goes {
            return Ok(());
        }
    }
    Err(ReloadError::Failed(format!("no new worker within {} s; its log says why", RELOAD_LIMIT.as_secs())))
}

/// The pid of HAProxy's master that a file names; else what is wrong with it.
fn master_in(path: &Path) -> Result<i32, String> {
    let text = observe::file::read(path, PID_FILE_LIMIT).map_err(|error| error.to_string())?;
    let first = text.split_whitespace().next().unwrap_or_default();
    let pid: i32 = first.parse().ok().filter(|&pid| pid > 0).ok_or_else(|| format!("{first:?} is no pid"))?;
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    if name.contains("haproxy") { Ok(pid) } else { Err(format!("process {pid} is not HAProxy; is the file stale?")) }
}

/// The children of a process; `None` where the kernel does not tell, or it is gone.
fn children(pid: i32) -> Option<BTreeSet<i32>> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    Some(text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect())
}

async fn through_command(command: &str) -> Result<(), ReloadError> {
    let failed = |error: String| ReloadError::Command { command: command.to_owned(), error };
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", command]).stdin(Stdio::null()).kill_on_drop(true);
    shell.stdout(Stdio::null()).stderr(Stdio::piped());
    without_secrets(&mut shell);
    let mut child = shell.spawn().map_err(|error| failed(error.to_string()))?;
    let stderr = child.stderr.take();
    let mut said = Vec::new();
    let read = async {
        if let Some(stderr) = stderr {
            let mut stderr = stderr.take(WORDS_LIMIT as u64);
            let _ = stderr.read_to_end(&mut said).await;
            // What goes on talking is not to be ended by a pipe that nobody reads.
            let _ = tokio::io::copy(&mut stderr.into_inner(), &mut tokio::io::sink()).await;
        }
        std::future::pending::<()>().await;
    };
    // What the command leaves running may hold its standard error open: its own end counts.
    let status = tokio::select! {
        status = child.wait() => status.map_err(|error| failed(error.to_string()))?,
        () = read => return Err(failed("has no end".to_owned())),
        () = tokio::time::sleep(RELOAD_LIMIT) => {
            return Err(ReloadError::CommandUnfinished { command: command.to_owned() });
        }
    };
    if status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&said);
    let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
    let said: String = said.chars().filter(|c| !c.is_control()).collect();
    Err(failed(format!("ended with {status}: {said}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// HAProxy 2.6.12 after a failed reload.
    const SHOW_PROC_2_6: &str = "#<PID>          <type>          <reloads>       <uptime>        <version>      \n\
         8676            master          2 [failed: 1]   0d00h00m01s     2.6.12-1+deb12u4\n\
         # workers\n\
         8690            worker          1               0d00h00m00s     2.6.12-1+deb12u4\n\
         # programs\n\n";

    #[test]
    fn the_masters_counters_are_read() {
        let processes = parse_processes(SHOW_PROC_2_6).unwrap();
        let uptime = Duration::from_secs(1);
        let wanted = Processes { pid: 8676, uptime, most_survived: 0, reloads: 2, failed: 1, has_worker: true };
        assert_eq!(processes, wanted);
        let old =
            format!("{SHOW_PROC_2_6}# old workers\n9 worker 12 0d00h00m09s 2.6.12\n8 worker 3 0d00h00m05s 2.6.12\n");
        assert_eq!(parse_processes(&old).unwrap().most_survived, 12);
        let workers: Vec<_> = parse_workers(&old).unwrap().iter().map(|worker| (worker.pid, worker.is_old)).collect();
        assert_eq!(workers, [(8690, false), (9, true), (8, true)]);
        assert_eq!(parse_workers("Unknown command"), None);
        assert_eq!(parse_processes("Unknown command"), None);
        assert_eq!(parse_processes(""), None);
        assert_eq!(parse_processes(&SHOW_PROC_2_6.replace("0d00h00m01s", "1s")), None);
    }

    #[test]
    fn a_master_that_was_started_anew_is_told_from_one_that_was_reloaded() {
        let at = |pid: u32, uptime: &str, reloads: u32| {
            let line = format!("{pid} master {reloads} [failed: 0] {uptime} 2.6.12\n# workers\n");
            parse_processes(&line).unwrap()
        };
        let before = at(1, "2d03h04m05s", 0);
        assert_eq!(before.uptime, Duration::from_secs(2 * 86_400 + 3 * 3600 + 4 * 60 + 5));
        let soon = Duration::from_secs(3);
        assert!(!at(1, "2d03h04m08s", 1).is_started_after(&before, soon));
        assert!(!at(1, "2d03h04m07s", 0).is_started_after(&before, soon), "whole seconds");
        assert!(at(1, "0d00h00m01s", 0).is_started_after(&before, soon), "in a container");
        assert!(at(9, "2d03h04m08s", 0).is_started_after(&before, soon));
    }
}
