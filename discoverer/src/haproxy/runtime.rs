//! HAProxy's stats socket: commands in a batch over one connection, each reply kept apart.
//!
//! What a reply means is said here too, against the few that are known to be good: anything else is an error, and
//! whoever asked falls back to a reload.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use super::check::version_numbers;
use super::socket::{SocketError, ask};

/// The limit on one batch: 10,000 servers take 2.5 s.
const BATCH_LIMIT: Duration = Duration::from_secs(10);
/// The limit on a question: the state of 10,000 servers takes 55 ms.
const QUESTION_LIMIT: Duration = Duration::from_secs(3);
/// The largest reply to a batch, in bytes: each good reply is one short line.
const REPLY_LIMIT: u64 = 16 * 1024 * 1024;
/// How many commands go over one connection: it bounds what is lost when the connection breaks.
const BATCH_SIZE: usize = 2000;
/// How much of a reply that is not understood is shown, in characters.
const SHOWN_LIMIT: usize = 200;

/// Why a batch was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// The socket cannot be used.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// HAProxy closed before it had answered everything.
    #[error("HAProxy's socket {path} closed after {answered} of {asked} replies")]
    Cut {
        /// The socket.
        path: String,
        /// The replies that came.
        answered: usize,
        /// The commands that were sent.
        asked: usize,
    },
    /// A reply that is not one of the good ones.
    #[error("HAProxy answered {reply:?} to {command:?}")]
    Reply {
        /// What was asked.
        command: String,
        /// What it said.
        reply: String,
    },
}

/// One command, and what a good reply to it looks like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    text: String,
    good: Good,
}

/// The replies that mean success.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Good {
    /// A blank line.
    Blank,
    /// One of these texts.
    One(&'static [&'static str]),
    /// A text that ends so.
    Ending(&'static str),
    /// Whatever it is, the caller looks at it.
    Any,
}

impl Command {
    fn new(text: String, good: Good) -> Self {
        Self { text, good }
    }

    /// `add server`, with the words behind the name.
    pub fn add(server: &str, arguments: &str) -> Self {
        Self::new(format!("add server {server} {arguments}"), Good::One(&["New server registered."]))
    }

    /// `enable health`: a new server's check is off until then.
    pub fn enable_health(server: &str) -> Self {
        Self::new(format!("enable health {server}"), Good::Blank)
    }

    /// `enable dynamic-cookie backend`: a new server's cookie is not computed until then.
    pub fn enable_dynamic_cookie(backend: &str) -> Self {
        Self::new(format!("enable dynamic-cookie backend {backend}"), Good::Blank)
    }

    /// `set server ... state ready`: it takes traffic.
    pub fn ready(server: &str) -> Self {
        Self::new(format!("set server {server} state ready"), Good::Blank)
    }

    /// `set server ... state maint`: it takes none; one that is gone already is as good.
    pub fn maint(server: &str) -> Self {
        Self::new(format!("set server {server} state maint"), Good::One(&["", "No such server."]))
    }

    /// `set server ... weight`, 0 to 256.
    pub fn weight(server: &str, weight: u16) -> Self {
        Self::new(format!("set server {server} weight {weight}"), Good::Blank)
    }

    /// `set server ... addr ... port`.
    pub fn address(server: &str, address: &str, port: u16) -> Self {
        let good = Good::Ending("by 'stats socket command'");
        Self::new(format!("set server {server} addr {address} port {port}"), good)
    }

    /// `shutdown sessions server`: ends what still runs on it.
    pub fn shutdown_sessions(server: &str) -> Self {
        Self::new(format!("shutdown sessions server {server}"), Good::One(&["", "No such server."]))
    }

    /// `del server`; the reply says whether it is gone (see [`is_deleted`]).
    pub fn delete(server: &str) -> Self {
        Self::new(format!("del server {server}"), Good::Any)
    }

    /// The server that [`Command::delete`] is for; none of any other command.
    pub fn server_to_delete(&self) -> Option<&str> {
        self.text.strip_prefix("del server ")
    }

    /// The text that is sent.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether a reply means success.
    pub(super) fn is_good(&self, reply: &str) -> bool {
        match self.good {
            Good::Blank => reply.is_empty(),
            Good::One(texts) => texts.contains(&reply),
            Good::Ending(ending) => reply == "nothing changed" || reply.ends_with(ending),
            Good::Any => true,
        }
    }
}

/// Whether a reply to `del server` means that the server is gone.
pub fn is_deleted(reply: &str) -> bool {
    matches!(reply, "Server deleted." | "No such server.")
}

/// The process behind a stats socket, as it says itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Worker {
    /// Its pid, in its own namespace: in a container of its own it may be the same after each start.
    pub pid: u64,
    /// How long it has been running, in whole seconds.
    pub uptime: Duration,
    /// Its version as it says it, such as `2.6.12-1+deb12u4`.
    pub version: Option<String>,
    /// It takes no more connections, and ends when it has none.
    pub is_stopping: bool,
}

/// HAProxy's processes tell their uptime in whole seconds.
const UPTIME_ERROR: Duration = Duration::from_secs(2);

impl Worker {
    /// Its version without what its packager adds, such as `2.6.12`.
    pub fn version(&self) -> Option<String> {
        version_numbers(self.version.as_ref()?)
    }

    /// Whether it is another process than the one that answered so long before: it has another pid, or has not been running
    /// for as long as that one must have been by now.
    pub fn is_other_than(&self, before: &Self, elapsed: Duration) -> bool {
        is_another((self.pid, self.uptime), (before.pid, before.uptime), elapsed)
    }
}

/// Whether a process, by its pid and uptime, is another one than that which said of itself so long before what stands behind it.
pub(super) fn is_another(now: (u64, Duration), before: (u64, Duration), elapsed: Duration) -> bool {
    let least = before.1.saturating_add(elapsed);
    now.0 != before.0 || now.1.saturating_add(UPTIME_ERROR) < least
}

/// The way to one HAProxy's stats socket.
#[derive(Debug, Clone)]
pub struct Runtime {
    path: PathBuf,
}

impl Runtime {
    /// The socket at a path; nobody is asked yet.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Carries out commands in order, in batches of one connection each, and gives their replies.
    ///
    /// # Errors
    /// The first reply that is not known to be good ends it; commands behind it may have been carried out too.
    pub async fn run(&self, commands: &[Command]) -> Result<Vec<String>, RuntimeError> {
        let mut replies = Vec::with_capacity(commands.len());
        for batch in commands.chunks(BATCH_SIZE) {
            let text = self.talk(batch).await?;
            let answered = split_replies(&text);
            for (command, reply) in batch.iter().zip(&answered) {
                if !command.is_good(reply) {
                    let reply = reply.chars().take(SHOWN_LIMIT).collect();
                    return Err(RuntimeError::Reply { command: command.text.clone(), reply });
                }
            }
            if answered.len() < batch.len() {
                let path = self.path.display().to_string();
                return Err(RuntimeError::Cut { path, answered: answered.len(), asked: batch.len() });
            }
            replies.extend(answered.into_iter().take(batch.len()));
        }
        Ok(replies)
    }

    /// The worker that answers (management guide, section 9.3, "show info").
    pub async fn worker(&self) -> Result<Worker, RuntimeError> {
        let reply = ask(&self.path, "show info", QUESTION_LIMIT).await?;
        parse_worker(&reply).ok_or_else(|| unknown("show info", &reply))
    }

    /// The version of the HAProxy that answers, such as `2.6.12`; none where it does not say.
    pub async fn version(&self) -> Option<String> {
        self.worker().await.ok()?.version()
    }

    /// The state of all servers as text (management guide, section 9.3, "show servers state").
    pub async fn servers_state(&self) -> Result<String, RuntimeError> {
        const COMMAND: &str = "show servers state";
        let reply = ask(&self.path, COMMAND, QUESTION_LIMIT).await?;
        if reply.starts_with("1\n#") { Ok(reply) } else { Err(unknown(COMMAND, &reply)) }
    }

    /// One connection in prompt mode: everything is written at once, and each reply ends with a prompt.
    async fn talk(&self, commands: &[Command]) -> Result<String, RuntimeError> {
        let mut script = String::from("prompt\n");
        for command in commands {
            script.push_str(&command.text);
            script.push('\n');
        }
        script.push_str("quit\n");
        let talk = async {
            let stream = UnixStream::connect(&self.path).await?;
            let (reader, mut writer) = stream.into_split();
            let write = async move {
                writer.write_all(script.as_bytes()).await?;
                // Kept open until HAProxy closes: it drops what it has not read of a half-closed connection.
                Ok::<_, std::io::Error>(writer)
            };
            let mut reply = Vec::new();
            let mut reader = reader.take(REPLY_LIMIT);
            let (written, read) = tokio::join!(write, reader.read_to_end(&mut reply));
            // A connection that HAProxy closed early shows in the replies that are missing.
            let _writer = written;
            let _bytes = read;
            Ok::<_, std::io::Error>(String::from_utf8_lossy(&reply).into_owned())
        };
        let timed_out = || std::io::Error::new(std::io::ErrorKind::TimedOut, format!("no end within {BATCH_LIMIT:?}"));
        let reply = tokio::time::timeout(BATCH_LIMIT, talk).await.unwrap_or_else(|_| Err(timed_out()));
        Ok(reply.map_err(|error| SocketError::new(&self.path, error))?)
    }
}

pub(super) fn unknown(command: &str, reply: &str) -> RuntimeError {
    RuntimeError::Reply { command: command.to_owned(), reply: reply.chars().take(SHOWN_LIMIT).collect() }
}

/// Reads the reply to `show info`. None where it is not one.
pub(super) fn parse_worker(reply: &str) -> Option<Worker> {
    let value = |name: &str| reply.lines().find_map(|line| Some(line.strip_prefix(name)?.trim()));
    let number = |name: &str| value(name).and_then(|value| value.parse().ok());
    Some(Worker {
        pid: number("Pid: ")?,
        uptime: Duration::from_secs(number("Uptime_sec: ")?),
        version: value("Version: ").map(str::to_owned),
        is_stopping: number("Stopping: ").is_some_and(|stopping| stopping != 0),
    })
}

/// The replies in what a connection in prompt mode gave: `\n> reply\n\n> reply\n\n> `, each without its line feeds.
pub(super) fn split_replies(text: &str) -> Vec<String> {
    let mut parts: Vec<&str> = text.split("\n> ").collect();
    // Before the first prompt nothing was asked.
    if parts.is_empty() || !text.starts_with("\n> ") {
        return Vec::new();
    }
    parts.remove(0);
    // Behind the last prompt nothing was answered.
    parts.pop();
    parts.into_iter().map(|part| part.trim_matches('\n').to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_are_kept_apart() {
        // HAProxy 2.6.12.
        let text = "\n> New server registered.\n\n> \n> 1 (initial 1)\n\n> \n> Server deleted.\n\n> ";
        assert_eq!(split_replies(text), ["New server registered.", "", "1 (initial 1)", "", "Server deleted."]);
        assert_eq!(split_replies("\n> New server reg"), Vec::<String>::new());
        assert_eq!(split_replies(""), Vec::<String>::new());
        assert_eq!(split_replies("rubbish"), Vec::<String>::new());
    }

    #[test]
    fn a_restarted_worker_is_another_one_also_where_its_pid_is_the_same() {
        let worker = |pid, uptime| Worker {
            is_stopping: false,
            pid,
            uptime: Duration::from_secs(uptime),
            version: Some("2.6.12-1+deb12u4".to_owned()),
        };
        let (old, elapsed) = (worker(8, 100), Duration::from_millis(2300));
        assert_eq!(old.version().as_deref(), Some("2.6.12"));
        assert!(!worker(8, 102).is_other_than(&old, elapsed));
        assert!(!worker(8, 103).is_other_than(&old, elapsed));
        assert!(!worker(8, 101).is_other_than(&old, elapsed));
        assert!(worker(9, 102).is_other_than(&old, elapsed));
        assert!(worker(8, 2).is_other_than(&old, elapsed));
    }

    #[test]
    fn only_known_replies_are_good() {
        let add = Command::add("b/s", "127.0.0.1:80");
        assert!(add.is_good("New server registered."));
        assert!(!add.is_good("") && !add.is_good("Already exists a server with the same name in backend."));
        assert!(Command::weight("b/s", 3).is_good(""));
        assert!(!Command::weight("b/s", 3).is_good("No such server."));
        let address = Command::address("b/s", "127.0.0.1", 81);
        assert!(address.is_good("port changed from '80' to '81' by 'stats socket command'"));
        assert!(address.is_good("nothing changed"));
        assert!(!address.is_good("No such server."));
        assert!(is_deleted("Server deleted.") && is_deleted("No such server."));
        assert!(!is_deleted("Server still has connections attached to it, cannot remove it."));
    }
}
