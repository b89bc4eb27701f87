//! Asks Docker about containers over its unix socket. Edge: it reads, and changes nothing there.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bollard::errors::Error as Bollard;
use bollard::models::ContainerInspectResponse;
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::own::{Candidate, Traces, is_this};

/// The limit on one request. Docker inspects in milliseconds, but may be busy with the start of many containers.
const REQUEST_LIMIT: Duration = Duration::from_secs(5);

/// Why Docker could not be asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DockerError {
    /// The socket is not there.
    #[error(
        "there is no Docker socket at {0}: share it with `-v /var/run/docker.sock:{0}`, or say where it is with `--docker`"
    )]
    Absent(PathBuf),
    /// The socket may not be opened.
    #[error(
        "the Docker socket {0} may not be opened by this user: run the registrar as root, or with the socket's group \
         (`docker run --group-add GID`, where GID is what `stat -c %g {0}` says)"
    )]
    Forbidden(PathBuf),
    /// Docker does not answer there.
    #[error("Docker does not answer at {socket}: {what}; is it running?")]
    NoAnswer {
        /// The socket.
        socket: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// Docker refuses.
    #[error("Docker at {socket} refuses to show container {name}: {what}")]
    Refused {
        /// The socket.
        socket: PathBuf,
        /// The container.
        name: String,
        /// Docker's words.
        what: String,
    },
    /// None of the candidates is this container.
    #[error("Docker knows no container that is this one{}: say its name with `--container NAME`", tried(.0))]
    Unknown(Vec<String>),
}

fn tried(names: &[String]) -> String {
    if names.is_empty() { String::new() } else { format!(" (tried {})", names.join(", ")) }
}

/// Docker behind its socket.
#[derive(Debug, Clone)]
pub struct Docker {
    socket: PathBuf,
}

impl Docker {
    /// Docker behind this socket. Asks nothing yet.
    pub fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    /// Finds this container among the candidates. The client is made anew each time, so that a Docker that was
    /// upgraded, or a socket that was replaced, is met as it is.
    pub async fn own_container(&self, candidates: &[Candidate]) -> Result<ContainerInspectResponse, DockerError> {
        let docker = timeout(REQUEST_LIMIT, self.connect()).await.unwrap_or_else(|_| Err(self.too_slow()))?;
        for candidate in candidates {
            let name = candidate.name();
            let inspected = timeout(REQUEST_LIMIT, docker.inspect_container(name, None)).await;
            match inspected.map_err(|_| self.too_slow())? {
                Ok(container) if is_this(candidate, &container) => return Ok(container),
                Ok(_) | Err(Bollard::DockerResponseServerError { status_code: 404, .. }) => {}
                Err(Bollard::DockerResponseServerError { status_code, message }) => {
                    let what = format!("{status_code} {}", shown(&message));
                    return Err(DockerError::Refused { socket: self.socket.clone(), name: name.to_owned(), what });
                }
                Err(error) => return Err(self.no_answer(&error)),
            }
        }
        Err(DockerError::Unknown(candidates.iter().map(|candidate| candidate.name().to_owned()).collect()))
    }

    /// Opens the socket once by hand, since that tells why it cannot be opened, then lets the client agree with
    /// Docker on the version of its API.
    async fn connect(&self) -> Result<bollard::Docker, DockerError> {
        UnixStream::connect(&self.socket).await.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => DockerError::Absent(self.socket.clone()),
            io::ErrorKind::PermissionDenied => DockerError::Forbidden(self.socket.clone()),
            _ => self.no_answer(&error),
        })?;
        let path = self.socket.to_string_lossy();
        let docker = bollard::Docker::connect_with_unix(&path, REQUEST_LIMIT.as_secs(), bollard::API_DEFAULT_VERSION)
            .map_err(|error| self.no_answer(&error))?;
        docker.negotiate_version().await.map_err(|error| self.no_answer(&error))
    }

    fn no_answer(&self, error: &(dyn std::error::Error + 'static)) -> DockerError {
        let mut cause = error;
        while let Some(inner) = cause.source() {
            cause = inner;
        }
        DockerError::NoAnswer { socket: self.socket.clone(), what: shown(&cause.to_string()) }
    }

    fn too_slow(&self) -> DockerError {
        let what = format!("nothing came within {}", humantime::format_duration(REQUEST_LIMIT));
        DockerError::NoAnswer { socket: self.socket.clone(), what }
    }
}

/// What this process can see of the container it is in. What cannot be read counts as empty.
pub fn traces_of_this_process() -> Traces {
    let read = |path: &str| std::fs::read_to_string(Path::new(path)).unwrap_or_default();
    let hostname = std::env::var("HOSTNAME").unwrap_or_default();
    Traces {
        mountinfo: read("/proc/self/mountinfo"),
        cgroup: read("/proc/self/cgroup"),
        // A program that supervises may hand on no environment.
        hostname: if hostname.is_empty() { read("/proc/sys/kernel/hostname") } else { hostname },
    }
}

/// A foreign text for a message: on one line, and not too long.
fn shown(text: &str) -> String {
    text.trim().chars().take(200).map(|c| if c.is_control() { ' ' } else { c }).collect()
}
