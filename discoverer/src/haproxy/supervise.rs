//! HAProxy as our own child: started when there is a file, started again when it dies, stopped gently.
//!
//! One task owns the child. The others send it orders.

use std::collections::VecDeque;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use prometheus_client::metrics::counter::Counter;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, ChildStderr, Command};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tracing::{debug, error, info, warn};

use super::without_secrets;
use crate::until;

use super::check::{Program, alerts};
use super::reload::{ReloadError, parse_processes, through_socket};
use super::socket::ask;

/// HAProxy with 10,000 servers is up within 1 s.
const START_LIMIT: Duration = Duration::from_secs(30);
/// How often a starting HAProxy is asked whether it is up.
const ASK_EVERY: Duration = Duration::from_millis(10);
/// The pause before HAProxy is started again: doubled each time it dies young.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// The longest pause before HAProxy is started again.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// HAProxy that lived this long did not die of its start.
const GROWN_UP: Duration = Duration::from_secs(10);
/// How long HAProxy may take to end after SIGTERM.
const TERMINATION_LIMIT: Duration = Duration::from_secs(2);
/// How long to wait for what HAProxy says of its failure.
const LAST_WORDS_LIMIT: Duration = Duration::from_millis(200);
/// How many of HAProxy's last lines are kept, to say why it died.
const KEPT_LINES: usize = 30;

/// Where HAProxy under supervision keeps its things.
#[derive(Debug, Clone)]
pub struct Layout {
    /// Its configuration.
    pub file: PathBuf,
    /// The master CLI.
    pub master_socket: PathBuf,
    /// The master's pid.
    pub pid_file: PathBuf,
    /// How long HAProxy may fail to stay up before that is an end; none where it never is.
    pub give_up_after: Option<Duration>,
    /// Counts its deaths.
    pub deaths: Counter,
}

/// Sends orders to the supervisor.
#[derive(Debug, Clone)]
pub struct SupervisorHandle {
    orders: mpsc::Sender<Order>,
    master_socket: PathBuf,
    is_up: watch::Receiver<bool>,
    gave_up: watch::Receiver<bool>,
}

/// What a supervisor is told; only a [`SupervisorHandle`] makes any.
#[derive(Debug)]
pub struct Order(Kind);

#[derive(Debug)]
enum Kind {
    /// Start, or read the file anew.
    Reload {
        /// Where it does not start: go on trying.
        persist: bool,
        reply: oneshot::Sender<Result<(), ReloadError>>,
    },
    /// End within the grace, then end.
    Stop { grace: Duration, done: oneshot::Sender<()> },
}

impl SupervisorHandle {
    /// Starts HAProxy, or makes the running one read its file anew; says how that ended. An HAProxy that does not start
    /// is not started again until the next call.
    pub async fn reload(&self) -> Result<(), ReloadError> {
        self.order(false).await
    }

    /// Starts HAProxy, and goes on trying where it does not start.
    pub async fn start(&self) -> Result<(), ReloadError> {
        self.order(true).await
    }

    async fn order(&self, persist: bool) -> Result<(), ReloadError> {
        let gone = || ReloadError::Start("its supervisor is gone".to_owned());
        let (reply, result) = oneshot::channel();
        self.orders.send(Order(Kind::Reload { persist, reply })).await.map_err(|_| gone())?;
        result.await.map_err(|_| gone())?
    }

    /// The master CLI of the HAProxy that is supervised.
    pub fn master_socket(&self) -> &Path {
        &self.master_socket
    }

    /// Whether no HAProxy of ours runs.
    pub fn is_down(&self) -> bool {
        !*self.is_up.borrow()
    }

    /// Ends when HAProxy has failed to stay up for too long. It is tried again all the same, until it is told to stop.
    pub async fn gave_up(&self) {
        let mut gave_up = self.gave_up.clone();
        if gave_up.wait_for(|&gave_up| gave_up).await.is_err() {
            // The supervisor has ended, which is told otherwise.
            std::future::pending::<()>().await;
        }
    }

    /// Lets HAProxy finish its requests, at most for the grace; then ends it.
    pub async fn stop(&self, grace: Duration) {
        let (done, stopped) = oneshot::channel();
        if self.orders.send(Order(Kind::Stop { grace, done })).await.is_ok() {
            let _ = stopped.await;
        }
    }
}

/// Owns the HAProxy process.
#[derive(Debug)]
pub struct Supervisor {
    program: Program,
    layout: Layout,
    running: Option<Running>,
    is_up: watch::Sender<bool>,
    gave_up: watch::Sender<bool>,
    /// Since when HAProxy has not stayed up; none while it does, and before the first failure.
    failing_since: Option<Instant>,
    /// When to start it again, after it died.
    start_at: Option<Instant>,
    pause: Duration,
    said: VecDeque<String>,
    lines: (mpsc::Sender<String>, mpsc::Receiver<String>),
}

#[derive(Debug)]
struct Running {
    child: Child,
    since: Instant,
}

impl Supervisor {
    /// A supervisor that has started nothing yet, the way to give it orders, and the orders for it to run on.
    pub fn new(program: Program, layout: Layout) -> (Self, SupervisorHandle, mpsc::Receiver<Order>) {
        let (sender, orders) = mpsc::channel(4);
        let master_socket = layout.master_socket.clone();
        let (is_up, seen) = watch::channel(false);
        let (gave_up, end) = watch::channel(false);
        let supervisor = Self {
            program,
            layout,
            running: None,
            is_up,
            gave_up,
            failing_since: None,
            start_at: None,
            pause: FIRST_PAUSE,
            said: VecDeque::new(),
            lines: mpsc::channel(256),
        };
        let handle = SupervisorHandle { orders: sender, master_socket, is_up: seen, gave_up: end };
        (supervisor, handle, orders)
    }

    /// Runs until it is told to stop, or nobody can give it orders any more. An order to stop is heard at any time.
    pub async fn run(mut self, mut orders: mpsc::Receiver<Order>) {
        let mut waiting = None;
        loop {
            let start_at = self.start_at;
            let next = async {
                match waiting.take() {
                    Some(order) => Some(order),
                    None => orders.recv().await,
                }
            };
            let stop = tokio::select! {
                order = next => match order {
                    Some(Order(Kind::Reload { persist, reply })) => {
                        let (result, stop) = until_stop(&mut orders, self.reload()).await;
                        if !persist && self.running.is_none() {
                            self.start_at = None;
                        }
                        if let Some(result) = result {
                            let _ = reply.send(result);
                        }
                        stop
                    }
                    Some(Order(Kind::Stop { grace, done })) => Some((grace, Some(done))),
                    None => Some((Duration::ZERO, None)),
                },
                status = exit(self.running.as_mut()) => {
                    self.died(status);
                    None
                }
                Some(line) = self.lines.1.recv() => {
                    self.keep(line);
                    None
                }
                () = until(start_at) => {
                    tokio::select! {
                        result = self.start() => if let Err(error) = result {
                            error!(%error, "HAProxy did not start");
                        },
                        // Whoever gives an order knows better: it may be another file by now.
                        order = orders.recv() => {
                            waiting = order;
                            self.give_up_start().await;
                            if waiting.is_none() {
                                return;
                            }
                        }
                    }
                    None
                }
            };
            let Some((mut grace, mut done)) = stop else { continue };
            // A second order to stop replaces the first: whoever asks twice does not want to wait.
            loop {
                let (stopped, again) = until_stop(&mut orders, self.stop(grace)).await;
                if stopped.is_some() {
                    break;
                }
                (grace, done) = again.unwrap_or((Duration::ZERO, done));
            }
            if let Some(done) = done {
                let _ = done.send(());
            }
            return;
        }
    }

    async fn reload(&mut self) -> Result<(), ReloadError> {
        if self.running.is_none() {
            return self.start().await;
        }
        self.forget_words();
        let socket = self.layout.master_socket.clone();
        let result = tokio::select! {
            result = through_socket(&socket) => result,
            status = exit(self.running.as_mut()) => {
                self.died(status);
                return Err(ReloadError::Failed(self.last_words().await));
            }
        };
        match result {
            // HAProxy 2.6 does not say why over the socket, but it did on its standard error.
            Err(ReloadError::Failed(_)) => Err(ReloadError::Failed(self.last_words().await)),
            other => other,
        }
    }

    /// Starts HAProxy and waits until it serves, or is dead.
    async fn start(&mut self) -> Result<(), ReloadError> {
        self.start_at = None;
        self.forget_words();
        let child = self.spawn().map_err(|error| {
            self.start_at = Some(Instant::now() + self.longer_pause());
            self.failed();
            ReloadError::Start(format!("{}: {error}; see --haproxy", self.program.path().display()))
        })?;
        let running = self.running.insert(Running { child, since: Instant::now() });
        let status = tokio::select! {
            result = tokio::time::timeout(START_LIMIT, is_up(&self.layout.master_socket)) => match result {
                Ok(()) => {
                    self.is_up.send_replace(true);
                    info!(pid = running.child.id(), "HAProxy started");
                    return Ok(());
                }
                Err(_) => return Err(ReloadError::Unfinished),
            },
            status = exit(Some(&mut *running)) => status,
        };
        self.died(status);
        Err(ReloadError::Start(self.last_words().await))
    }

    fn spawn(&mut self) -> std::io::Result<Child> {
        let mut command = Command::new(self.program.path());
        let mut master = self.layout.master_socket.clone().into_os_string();
        master.push(",mode,600");
        command.arg("-W").arg("-S").arg(master);
        command.arg("-p").arg(&self.layout.pid_file).arg("-f").arg(&self.layout.file);
        // A group of its own: Ctrl-C at a terminal is meant for us, and we let HAProxy finish.
        command.stdin(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true).process_group(0);
        without_secrets(&mut command);
        if let Some(own) = own_stdout() {
            command.stdout(own);
        }
        die_with_parent(&mut command);
        let mut child = command.spawn()?;
        if let Some(stderr) = child.stderr.take() {
            tokio::spawn(pass_on(stderr, self.lines.0.clone()));
        }
        Ok(child)
    }

    fn died(&mut self, status: std::io::Result<ExitStatus>) {
        self.is_up.send_replace(false);
        let status = status.map_or_else(|error| error.to_string(), |status| status.to_string());
        if self.running.take().is_some_and(|running| running.since.elapsed() >= GROWN_UP) {
            self.pause = FIRST_PAUSE;
            self.failing_since = None;
        }
        self.layout.deaths.inc();
        self.failed();
        let pause = self.longer_pause();
        self.start_at = Some(Instant::now() + pause);
        warn!(status, again_in = ?pause, "HAProxy died");
    }

    /// HAProxy has just failed once more. That it does so for long is an end only here: the newest file, and whatever else may
    /// have changed meanwhile, have been tried then.
    fn failed(&mut self) {
        let since = *self.failing_since.get_or_insert_with(Instant::now);
        if self.layout.give_up_after.is_some_and(|limit| since.elapsed() >= limit) {
            self.gave_up.send_replace(true);
        }
    }

    /// The pause before the next start; the one after it will be longer.
    fn longer_pause(&mut self) -> Duration {
        let pause = self.pause;
        self.pause = (pause * 2).min(LONGEST_PAUSE);
        pause
    }

    fn keep(&mut self, line: String) {
        if self.said.len() == KEPT_LINES {
            self.said.pop_front();
        }
        self.said.push_back(line);
    }

    fn forget_words(&mut self) {
        while self.lines.1.try_recv().is_ok() {}
        self.said.clear();
    }

    /// What HAProxy said at level ALERT since the last order. Its words come through a pipe, maybe a little late.
    async fn last_words(&mut self) -> String {
        let deadline = Instant::now() + LAST_WORDS_LIMIT;
        while let Ok(Some(line)) = tokio::time::timeout_at(deadline, self.lines.1.recv()).await {
            let is_last = line.contains("Loading failure") || line.contains("Fatal errors");
            self.keep(line);
            if is_last {
                break;
            }
        }
        let said = self.said.drain(..).collect::<Vec<_>>().join("\n");
        let words = alerts(&said);
        if words.is_empty() { "it did not say why".to_owned() } else { words }
    }

    /// Ends an HAProxy that is not up yet.
    async fn give_up_start(&mut self) {
        if let Some(mut running) = self.running.take() {
            let _ = running.child.kill().await;
        }
        self.start_at = None;
    }

    /// SIGUSR1 lets HAProxy finish; SIGTERM ends it (management guide, section 4). Can be called again when it was dropped.
    async fn stop(&mut self, grace: Duration) {
        let Some(running) = &mut self.running else { return };
        for (signal, limit) in [(Signal::SIGUSR1, grace), (Signal::SIGTERM, TERMINATION_LIMIT)] {
            if let Some(pid) = running.child.id().and_then(|pid| i32::try_from(pid).ok()) {
                let _ = kill(Pid::from_raw(pid), signal);
            }
            if let Ok(status) = tokio::time::timeout(limit, running.child.wait()).await {
                let status = status.map_or_else(|error| error.to_string(), |status| status.to_string());
                info!(status, "HAProxy stopped");
                return;
            }
        }
        let _ = running.child.kill().await;
        warn!("HAProxy had to be killed");
    }
}

/// How long HAProxy is asked to stop for, and whom to tell.
type StopOrder = (Duration, Option<oneshot::Sender<()>>);

/// Does something until it is done, or there is an order to stop: then it is dropped half way.
async fn until_stop<T>(
    orders: &mut mpsc::Receiver<Order>,
    work: impl Future<Output = T>,
) -> (Option<T>, Option<StopOrder>) {
    tokio::pin!(work);
    loop {
        tokio::select! {
            result = &mut work => return (Some(result), None),
            order = orders.recv() => match order {
                Some(Order(Kind::Stop { grace, done })) => return (None, Some((grace, Some(done)))),
                // Whoever asked sees the reply's channel closed.
                Some(Order(Kind::Reload { .. })) => {}
                None => return (None, Some((Duration::ZERO, None))),
            }
        }
    }
}

/// Ends when the child does; never, where there is none.
async fn exit(running: Option<&mut Running>) -> std::io::Result<ExitStatus> {
    match running {
        Some(running) => running.child.wait().await,
        None => std::future::pending().await,
    }
}

/// Ends when the master names a worker.
async fn is_up(master_socket: &Path) {
    loop {
        if let Ok(reply) = ask(master_socket, "show proc", START_LIMIT).await
            && parse_processes(&reply).is_some_and(|processes| processes.has_worker)
        {
            return;
        }
        tokio::time::sleep(ASK_EVERY).await;
    }
}

/// Passes HAProxy's words on to our log, and to the supervisor.
async fn pass_on(stderr: ChildStderr, lines: mpsc::Sender<String>) {
    let mut reader = BufReader::new(stderr).split(b'\n');
    while let Ok(Some(line)) = reader.next_segment().await {
        let line = String::from_utf8_lossy(&line);
        let shown: String = line.chars().filter(|c| !c.is_control()).take(1000).collect();
        if shown.starts_with("[ALERT]") || shown.starts_with("[WARNING]") && !is_daily(&shown) {
            warn!(line = shown, "HAProxy says");
        } else {
            debug!(line = shown, "HAProxy says");
        }
        let _ = lines.try_send(shown);
    }
}

/// What HAProxy warns of at every good reload, and at every removal of a server.
fn is_daily(line: &str) -> bool {
    let daily = [
        " stopped (cumulated conns:",
        "exited with code 0 (Exit)",
        " is going DOWN for maintenance",
        " is UP/READY (leaving forced maintenance)",
    ];
    daily.iter().any(|words| line.contains(words))
}

/// Our standard output, opened anew. With `log stdout` HAProxy makes it one that does not block, which holds for all who share
/// what is open: us, and whoever started us. None where it cannot be opened, and for a file: there HAProxy also forgets to
/// append, so that two who do not share the place would write over each other.
fn own_stdout() -> Option<File> {
    let own = File::options().append(true).open("/proc/self/fd/1").ok()?;
    let is_file = own.metadata().ok()?.is_file();
    (!is_file).then_some(own)
}

/// The kernel ends HAProxy's master when we die, however that happens: an orphan would go on sharing the port with
/// the HAProxy that is started after it.
#[allow(unsafe_code)]
fn die_with_parent(command: &mut Command) {
    let parent = std::process::id();
    let before_exec = move || {
        nix::sys::prctl::set_pdeathsig(Signal::SIGTERM)?;
        // The parent may have died before the line above.
        if nix::unistd::getppid().as_raw().unsigned_abs() != parent {
            return Err(std::io::Error::other("the parent is gone"));
        }
        Ok(())
    };
    // SAFETY: the closure runs between fork and exec; it makes two system calls and allocates only on the way out
    // of a process that has lost its parent.
    unsafe { command.pre_exec(before_exec) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_program_that_cannot_be_run_is_tried_again_and_has_not_died() {
        let deaths = Counter::default();
        let layout = Layout {
            file: "/no/such.cfg".into(),
            master_socket: "/no/such.sock".into(),
            pid_file: "/no/such.pid".into(),
            give_up_after: None,
            deaths: deaths.clone(),
        };
        let (mut supervisor, _handle, _orders) = Supervisor::new(Program::new("/no/such/haproxy"), layout);
        for _ in 0..2 {
            let error = supervisor.start().await.unwrap_err().to_string();
            assert!(error.contains("/no/such/haproxy") && supervisor.start_at.is_some(), "{error}");
        }
        assert_eq!(deaths.get(), 0);
        // One that could be run, and ended.
        supervisor.program = Program::new("/bin/false");
        supervisor.start().await.unwrap_err();
        assert_eq!(deaths.get(), 1);
    }
}
