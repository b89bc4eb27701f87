//! Child processes with a log file: started, signalled, and never left behind.
//!
//! Each is started through `setpriv --pdeathsig KILL`, so it dies with the test's thread even when the test process is
//! killed, and leads a process group of its own, so whatever it started is found and ended when it is dropped.

use std::fs::{self, File, OpenOptions};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::wait_until;

/// How much of a log is printed when a test fails.
const TAIL_LINES: usize = 60;

/// A running child. Dropping it kills it and everything it started; when the test is failing, its log is printed first.
pub struct Process {
    name: String,
    child: Child,
    ended: Option<ExitStatus>,
    log: PathBuf,
}

impl Process {
    /// Starts `program` with `args`, standard input closed, both outputs appended to the file `log`, in the directory `cwd`.
    ///
    /// Its environment is [`environment`].
    pub fn start(name: &str, program: &Path, args: &[String], log: &Path, cwd: &Path) -> Process {
        let out = OpenOptions::new().create(true).append(true).open(log).unwrap();
        let child = Command::new(find_program("setpriv", "util-linux"))
            .args(["--pdeathsig", "KILL", "--"])
            .arg(program)
            .args(args)
            .env_clear()
            .envs(environment())
            .current_dir(cwd)
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::from(out.try_clone().unwrap()))
            .stderr(Stdio::from(out))
            .spawn()
            .unwrap_or_else(|error| panic!("{name}: {} does not start: {error}", program.display()));
        Process { name: name.to_owned(), child, ended: None, log: log.to_path_buf() }
    }

    /// [`Process::start`] in a network namespace, which has a name (ip-netns(8)).
    pub fn start_in(
        namespace: Option<&str>,
        name: &str,
        program: &Path,
        args: &[String],
        log: &Path,
        cwd: &Path,
    ) -> Process {
        let Some(namespace) = namespace else { return Process::start(name, program, args, log, cwd) };
        // It becomes the program, so that the process is the same.
        let mut words = vec![format!("--net=/run/netns/{namespace}"), "--".to_owned(), program.display().to_string()];
        words.extend_from_slice(args);
        Process::start(name, &find_program("nsenter", "util-linux"), &words, log, cwd)
    }

    /// How much of a processor it has taken so far, its ended children not counted.
    pub fn cpu_time(&self) -> Duration {
        let stat = read_lossy(Path::new(&format!("/proc/{}/stat", self.pid())));
        // After the name in parentheses the 12th and 13th field are user and system time, in ticks of a hundredth of a
        // second on Linux (proc(5)).
        let fields =
            stat.rsplit_once(')').map(|(_, rest)| rest.split_whitespace().collect::<Vec<_>>()).unwrap_or_default();
        let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<u64>().ok());
        let (Some(user), Some(system)) = (ticks(11), ticks(12)) else { panic!("{} is gone", self.name) };
        Duration::from_millis((user + system) * 10)
    }

    /// The most memory that it has had at once, in MiB.
    pub fn peak_memory(&self) -> u64 {
        memory_kib(self.pid(), "VmHWM").unwrap_or_else(|| panic!("{} is gone", self.name)) / 1024
    }

    /// The process id.
    pub fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).unwrap())
    }

    /// All it has written so far.
    pub fn log(&self) -> String {
        read_lossy(&self.log)
    }

    /// Sends a signal to this one process.
    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).unwrap_or_else(|error| panic!("{}: {signal} cannot be sent: {error}", self.name));
    }

    /// How it ended, or `None` while it runs.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().unwrap();
        }
        self.ended
    }

    /// Waits for it to end by itself, at most `limit`.
    pub async fn wait(&mut self, limit: Duration) -> ExitStatus {
        let name = self.name.clone();
        wait_until(limit, &format!("{name} has ended"), async || self.ended().ok_or_else(|| "still running".to_owned()))
            .await
    }

    /// Ends it at once, as a power cut would.
    pub async fn kill_now(&mut self) {
        self.signal(Signal::SIGKILL);
        let status = self.wait(Duration::from_secs(5)).await;
        assert_eq!(status.signal(), Some(Signal::SIGKILL as i32), "{} ended otherwise: {status}", self.name);
    }

    /// Its own children that have ended and that it has not asked about.
    pub fn zombies(&self) -> Vec<Pid> {
        all_processes().into_iter().filter(|p| p.parent == self.pid() && p.zombie).map(|p| p.pid).collect()
    }

    /// The processes that it started, and those that they started, as far as they are alive.
    pub fn descendants(&self) -> Vec<Pid> {
        descendants(self.pid())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let mut family = self.descendants();
        family.extend(
            all_processes().into_iter().filter(|p| p.group == self.pid() && p.pid != self.pid()).map(|p| p.pid),
        );
        if self.ended().is_none() {
            let _already_gone = kill(self.pid(), Signal::SIGKILL);
            let _reaped = self.child.wait();
        }
        for pid in family {
            let _already_gone = kill(pid, Signal::SIGKILL);
        }
        if std::thread::panicking() {
            eprintln!("--- log of {} ({})\n{}", self.name, describe_end(self.ended), tail(&self.log()));
        }
    }
}

fn describe_end(ended: Option<ExitStatus>) -> String {
    ended.map_or_else(|| "was running".to_owned(), |status| status.to_string())
}

/// The last lines of a log, with a word about those that were left out.
pub fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    let left_out = lines.len().saturating_sub(TAIL_LINES);
    let shown = lines[left_out..].join("\n");
    if left_out == 0 { shown } else { format!("({left_out} lines before)\n{shown}") }
}

/// One line of the process table.
struct Entry {
    pid: Pid,
    parent: Pid,
    group: Pid,
    zombie: bool,
}

/// Reads `/proc/*/stat` (proc(5)): after the name in parentheses come state, parent and process group.
fn all_processes() -> Vec<Entry> {
    let Ok(proc) = fs::read_dir("/proc") else { return Vec::new() };
    proc.filter_map(|entry| {
        let pid: i32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
        let zombie = matches!(fields.next()?, "Z" | "X");
        let parent = Pid::from_raw(fields.next()?.parse().ok()?);
        let group = Pid::from_raw(fields.next()?.parse().ok()?);
        Some(Entry { pid: Pid::from_raw(pid), parent, group, zombie })
    })
    .collect()
}

fn descendants(root: Pid) -> Vec<Pid> {
    let table = all_processes();
    let mut found = vec![root];
    let mut next = 0;
    while let Some(parent) = found.get(next).copied() {
        found.extend(table.iter().filter(|p| p.parent == parent && !p.zombie).map(|p| p.pid));
        next += 1;
    }
    found.split_off(1)
}

/// Whether a process lives; a zombie does not.
pub fn is_alive(pid: Pid) -> bool {
    all_processes().iter().any(|p| p.pid == pid && !p.zombie)
}

/// A size of a process's memory in KiB: `VmRSS`, or `VmHWM`, the most that it was (proc_pid_status(5)). None where it is gone.
pub fn memory_kib(pid: Pid, name: &str) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let size = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    size.trim().strip_suffix(" kB")?.parse().ok()
}

/// The command line of a process, blanks between the arguments; empty when it is gone.
pub fn command_line(pid: Pid) -> String {
    read_lossy(Path::new(&format!("/proc/{pid}/cmdline"))).replace('\0', " ").trim().to_owned()
}

/// Finds a program of the system, `/usr/sbin` included; when it is absent the test fails and names Debian's package.
pub fn find_program(program: &str, package: &str) -> PathBuf {
    std::env::split_paths(&search_path()).map(|dir| dir.join(program)).find(|path| path.is_file()).unwrap_or_else(
        || panic!("{program} is not installed: `apt-get install {package}`, or run ./test as root, which does it"),
    )
}

/// Finds a program of this workspace beside the test's own executable, which lies in `deps`, or beside the benchmark's.
pub fn find_workspace_binary(name: &str) -> PathBuf {
    let exe = std::env::current_exe().unwrap();
    let dir = exe.ancestors().skip(1).find(|dir| !dir.ends_with("deps")).unwrap();
    let path = dir.join(name);
    assert!(path.is_file(), "{} is not built: run `cargo build --workspace --bins` first", path.display());
    path
}

/// Cargo's target directory, which the test's own executable lies in.
pub fn target_dir() -> PathBuf {
    let exe = std::env::current_exe().unwrap();
    exe.ancestors().nth(3).unwrap().to_path_buf()
}

/// The environment for every child: the test's own, less what steers the programs under test, and less what cargo sets for a
/// test process, which would make a cargo run below it build everything anew.
fn environment() -> impl Iterator<Item = (String, String)> {
    const STEERING: [&str; 11] = [
        "DISCOVERER_",
        "REGISTRAR_",
        "ETCD",
        "COMPOSE_",
        "HTTP_PORT",
        "STATS_ADDRESS",
        "ADMIN_ADDRESS",
        "SUITE",
        "RUST_LOG",
        "HOSTS_",
        "VAGRANT_",
    ];
    const FROM_CARGO: [&str; 7] = [
        "CARGO_MANIFEST",
        "CARGO_PKG_",
        "CARGO_CRATE_NAME",
        "CARGO_BIN_",
        "CARGO_PRIMARY_",
        "CARGO_TARGET_TMPDIR",
        "LD_LIBRARY_PATH",
    ];
    let is_left_out = |name: &str| {
        name == "CARGO" || name == "PATH" || STEERING.iter().chain(&FROM_CARGO).any(|prefix| name.starts_with(prefix))
    };
    let kept = std::env::vars().filter(move |(name, _)| !is_left_out(name));
    kept.chain([("PATH".to_owned(), search_path())])
}

fn search_path() -> String {
    let path = std::env::var("PATH").unwrap_or_default();
    format!("{path}:/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin")
}

fn read_lossy(path: &Path) -> String {
    fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

/// What a command that ran to its end left.
#[derive(Debug)]
pub struct Finished {
    /// Its exit code; `None` when a signal ended it.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

/// Runs a command to its end, at most `limit`, with standard input closed and `env` in its environment beside [`environment`].
pub async fn run(program: &Path, args: &[&str], env: &[(&str, &str)], limit: Duration) -> Finished {
    let mut command = tokio::process::Command::new(program);
    command.args(args).env_clear().envs(environment()).envs(env.iter().copied());
    command.stdin(Stdio::null()).kill_on_drop(true);
    let shown = format!("{} {}", program.display(), args.join(" "));
    let output = tokio::time::timeout(limit, command.output())
        .await
        .unwrap_or_else(|_| panic!("not finished within {limit:?}: {shown}"))
        .unwrap_or_else(|error| panic!("does not start: {shown}: {error}"));
    Finished {
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// An empty file, its parent directories made.
pub fn touch(path: &Path) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    File::create(path).unwrap();
}
