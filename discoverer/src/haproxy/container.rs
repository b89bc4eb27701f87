//! The way to an HAProxy in a container of its own, through Docker: a signal to it, and a look at its processes. The discoverer's
//! only room that knows Docker; nothing is read from containers but this one's processes.

use std::collections::BTreeSet;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bollard::errors::Error as Bollard;
use bollard::models::ContainerTopResponse;
use bollard::query_parameters::KillContainerOptions;
use tokio::net::UnixStream;
use tokio::time::timeout;

/// The limit on one request.
const REQUEST_LIMIT: Duration = Duration::from_secs(5);
/// The signal by which a master reloads (management guide, section 4). SIGUSR2 does too, but ends whatever is no master; SIGHUP
/// does nothing to an HAProxy that runs without one.
const SIGNAL: &str = "SIGHUP";

/// A container, by its name. It is found anew each time: it may have been started again, or made anew.
#[derive(Debug, Clone)]
pub struct Container {
    /// Docker's socket.
    pub socket: PathBuf,
    /// The container's name or id.
    pub name: String,
}

/// HAProxy in a container, as it was when it was looked at.
pub(super) struct Master {
    docker: bollard::Docker,
    /// By what it is the same container.
    id: String,
    /// Its master's pid, as Docker tells pids.
    pid: i32,
}

impl Container {
    /// Finds HAProxy's master in it.
    ///
    /// # Errors
    /// What is wrong, and what to do.
    pub(super) async fn master(&self) -> Result<Master, String> {
        let docker = self.connect().await?;
        let name = &self.name;
        let shown = self.ask("show", docker.inspect_container(name, None)).await?;
        let state = shown.state.unwrap_or_default();
        if state.running != Some(true) {
            let status = state.status.map_or_else(|| "not running".to_owned(), |status| status.to_string());
            return Err(format!("it is {status}; start it with `docker start {name}`: it begins with the new file"));
        }
        let id = shown.id.unwrap_or_default();
        let top = self.ask("list the processes of", docker.top_processes(&id, None)).await?;
        let pid = master(&processes(&top)).ok_or("no HAProxy runs in it")?;
        Ok(Master { docker, id, pid })
    }

    /// Tells the master to reload.
    pub(super) async fn signal(&self, master: &Master) -> Result<(), String> {
        let options = KillContainerOptions { signal: SIGNAL.to_owned() };
        self.ask("send SIGHUP to", master.docker.kill_container(&master.id, Some(options))).await
    }

    /// The workers of a master; none where it is gone, or Docker does not tell.
    pub(super) async fn workers(&self, of: &Master) -> Option<BTreeSet<i32>> {
        let top = self.ask("list the processes of", of.docker.top_processes(&of.id, None)).await.ok()?;
        let all = processes(&top);
        all.iter().find(|process| process.pid == of.pid)?;
        Some(all.iter().filter(|process| process.parent == of.pid).map(|process| process.pid).collect())
    }

    /// The workers that run in it now; none where that cannot be told.
    pub(super) async fn workers_now(&self) -> Option<BTreeSet<i32>> {
        let master = self.master().await.ok()?;
        self.workers(&master).await
    }

    /// Opens the socket once by hand, since that tells why it cannot be opened.
    async fn connect(&self) -> Result<bollard::Docker, String> {
        let at = self.socket.display();
        let opened = timeout(REQUEST_LIMIT, UnixStream::connect(&self.socket)).await;
        opened.map_err(|_| too_slow(&self.socket))?.map_err(|error| {
            format!("Docker's socket {at}: {error}; is it there, shared with this container, and open to this user? See --docker")
        })?;
        let path = self.socket.to_string_lossy();
        let docker = bollard::Docker::connect_with_unix(&path, REQUEST_LIMIT.as_secs(), bollard::API_DEFAULT_VERSION)
            .map_err(|error| format!("Docker at {at}: {}", shown(&error.to_string())))?;
        let agreed = timeout(REQUEST_LIMIT, docker.negotiate_version()).await.map_err(|_| too_slow(&self.socket))?;
        agreed.map_err(|error| format!("Docker at {at} does not answer: {}", shown(&error.to_string())))
    }

    async fn ask<T>(&self, what: &str, answer: impl Future<Output = Result<T, Bollard>>) -> Result<T, String> {
        let answer = timeout(REQUEST_LIMIT, answer).await.map_err(|_| too_slow(&self.socket))?;
        let (at, name) = (self.socket.display(), &self.name);
        answer.map_err(|error| match error {
            Bollard::DockerResponseServerError { status_code: 404, .. } => {
                format!("Docker at {at} has no container of that name; `docker ps -a` shows what there is")
            }
            Bollard::DockerResponseServerError { status_code: status @ (401 | 403 | 405), message } => format!(
                "Docker at {at} does not let the discoverer {what} it ({status}: {}); a proxy in front of it has to allow GET \
                 /version, /containers/{name}/json and /containers/{name}/top, and POST /containers/{name}/kill",
                shown(&message)
            ),
            Bollard::DockerResponseServerError { status_code, message } => {
                format!("Docker at {at} refuses to {what} it: {status_code} {}", shown(&message))
            }
            error => format!("Docker at {at} does not answer: {}", shown(&error.to_string())),
        })
    }
}

fn too_slow(socket: &Path) -> String {
    format!("Docker at {} did not answer within {} s", socket.display(), REQUEST_LIMIT.as_secs())
}

/// A foreign text for a message: on one line, and not too long.
fn shown(text: &str) -> String {
    text.trim().chars().take(200).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// A line of `ps`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Process {
    pid: i32,
    parent: i32,
    is_haproxy: bool,
}

/// Reads the reply to `/containers/{id}/top` (Docker Engine API 1.41): columns as `ps -ef` has them.
fn processes(top: &ContainerTopResponse) -> Vec<Process> {
    let titles = top.titles.as_deref().unwrap_or_default();
    let column = |names: &[&str]| titles.iter().position(|title| names.contains(&title.as_str()));
    let (Some(pid), Some(parent), Some(command)) = (column(&["PID"]), column(&["PPID"]), column(&["CMD", "COMMAND"]))
    else {
        return Vec::new();
    };
    let read = |line: &Vec<String>| {
        let program = line.get(command)?.split_whitespace().next().unwrap_or_default();
        Some(Process {
            pid: line.get(pid)?.trim().parse().ok()?,
            parent: line.get(parent)?.trim().parse().ok()?,
            is_haproxy: program.rsplit('/').next().is_some_and(|name| name.starts_with("haproxy")),
        })
    };
    top.processes.iter().flatten().filter_map(read).collect()
}

/// The HAProxy that no HAProxy has started.
fn master(all: &[Process]) -> Option<i32> {
    let is_worker = |of: &Process| all.iter().any(|process| process.is_haproxy && process.pid == of.parent);
    all.iter().find(|process| process.is_haproxy && !is_worker(process)).map(|process| process.pid)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn top(lines: &[[&str; 3]]) -> ContainerTopResponse {
        let line = |[pid, parent, command]: &[&str; 3]| {
            ["root", pid, parent, "0", "00:00", command].map(str::to_owned).to_vec()
        };
        ContainerTopResponse {
            titles: Some(["UID", "PID", "PPID", "C", "TIME", "CMD"].map(str::to_owned).to_vec()),
            processes: Some(lines.iter().map(line).collect()),
        }
    }

    #[test]
    fn the_master_is_found_also_behind_an_init_and_nobody_else_is() {
        let direct =
            top(&[["812", "790", "haproxy -W -db -f /haproxy.cfg"], ["830", "812", "haproxy -W -db -f /haproxy.cfg"]]);
        assert_eq!(master(&processes(&direct)), Some(812));
        let behind = top(&[
            ["900", "790", "/sbin/docker-init -- /usr/sbin/haproxy -W"],
            ["930", "912", "/usr/sbin/haproxy -sf 7 -W"],
            ["912", "900", "/usr/sbin/haproxy -sf 7 -W"],
        ]);
        assert_eq!(master(&processes(&behind)), Some(912));
        assert_eq!(master(&processes(&top(&[["1", "0", "sh -c haproxy"]]))), None);
        assert_eq!(master(&processes(&top(&[["x", "0", "haproxy"]]))), None);
        assert_eq!(processes(&ContainerTopResponse::default()), []);
    }
}
