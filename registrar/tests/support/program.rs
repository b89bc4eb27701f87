//! The program as a process: started, read, ended.

use std::io::{BufRead, BufReader, ErrorKind};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{DEADLINE, eventually};

/// The program, without the variables that the machine may have for it.
pub(crate) fn registrar() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_registrar"));
    let ours =
        std::env::vars_os().map(|(name, _)| name).filter(|name| name.to_string_lossy().starts_with("REGISTRAR_"));
    for name in ours {
        command.env_remove(name);
    }
    command
}

/// A run of the program; ended when dropped.
pub(crate) struct Program {
    pub(crate) child: Child,
    log: mpsc::Receiver<String>,
}

impl Program {
    pub(crate) fn start(command: &mut Command) -> Self {
        command.stdin(Stdio::null()).stderr(Stdio::piped());
        let deadline = Instant::now() + DEADLINE;
        let mut child = loop {
            match command.spawn() {
                // A test beside this one forked while the program's copy was still open for writing.
                Err(error) if error.kind() == ErrorKind::ExecutableFileBusy && Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                spawned => break spawned.unwrap(),
            }
        };
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let (sender, log) = mpsc::channel();
        std::thread::spawn(move || stderr.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        Self { child, log }
    }

    /// Waits for a line of the log with this text.
    pub(crate) async fn says(&self, text: &str) -> String {
        let deadline = Instant::now() + DEADLINE;
        let mut lines = Vec::new();
        loop {
            match self.log.try_recv() {
                Ok(line) if line.contains(text) => return line,
                Ok(line) => lines.push(line),
                Err(_) if Instant::now() < deadline => tokio::time::sleep(Duration::from_millis(5)).await,
                Err(_) => panic!("no line with {text:?} in: {lines:#?}"),
            }
        }
    }

    /// Waits until it has ended, and gives its exit code.
    pub(crate) async fn ended(&mut self) -> Option<i32> {
        let mut status = None;
        eventually("its end", async || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        })
        .await;
        status.and_then(|status| status.code())
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).unwrap();
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _already_ended = self.child.kill();
        let _status = self.child.wait();
    }
}

/// All that it wrote.
pub(crate) fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}
