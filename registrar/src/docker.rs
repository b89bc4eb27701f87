//! Asks Docker about containers over its unix socket. Edge: it reads, and changes nothing there, but that it has a check
//! by exec done in a container, and for `registrar stop` ends one.

pub mod events;

use std::collections::{BTreeSet, HashMap};
use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bollard::errors::Error as Bollard;
use bollard::exec::{StartExecOptions, StartExecResults};
use bollard::models::{ContainerInspectResponse, ContainerSummary, EventMessage, ExecConfig, HealthStatusEnum};
use bollard::query_parameters::EventsOptions;
use futures_util::{Stream, StreamExt};
use tokio::net::UnixStream;
use tokio::time::{sleep, timeout};

use self::events::Healthcheck;
use crate::own::{Candidate, Traces, is_this};

/// The limit on one request. Docker inspects in milliseconds, but may be busy with the start of many containers.
const REQUEST_LIMIT: Duration = Duration::from_secs(5);

/// How long Docker lets a container end that says nothing of that (Docker Engine API 1.41, `/containers/{id}/stop`).
const STOP_TIME: Duration = Duration::from_secs(10);
/// How long Docker may take beyond that to kill it, and to take its network and file system away.
const STOP_LIMIT: Duration = Duration::from_secs(30);

/// What Docker is asked for, in the words of an error: what everybody may, and what only its own socket allows.
const VERSION: &str = "tell its version";
const EVENTS: &str = "tell what happens";
const STOP: &str = "stop container";
const RUN: &str = "run a command in container";
const START: &str = "start command";
/// No container's id: by it is asked what is allowed, without anything being done.
const NOBODY: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// How often it is looked whether a command has ended that has closed its output.
const EXEC_PAUSE: Duration = Duration::from_millis(50);

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
    #[error("Docker at {socket} refuses to {asked}: {what}")]
    Refused {
        /// The socket.
        socket: PathBuf,
        /// What it was asked to do.
        asked: String,
        /// Docker's words.
        what: String,
    },
    /// It is not for us to ask: a read-only proxy of Docker's socket, or a plugin of Docker's that guards it.
    #[error("what answers at {socket} does not allow to {asked}: {what}. {}", way_out(asked))]
    NotAllowed {
        /// The socket.
        socket: PathBuf,
        /// What it was asked to do.
        asked: String,
        /// Its words.
        what: String,
    },
    /// None of the candidates is this container.
    #[error("Docker knows no container that is this one{}: say its name with `--container NAME`", tried(.0))]
    Unknown(Vec<String>),
}

fn tried(names: &[String]) -> String {
    if names.is_empty() { String::new() } else { format!(" (tried {})", names.join(", ")) }
}

/// What to do where something is not allowed.
fn way_out(asked: &str) -> &'static str {
    if asked.starts_with(STOP) {
        "Behind a read-only proxy of Docker's socket nothing is stopped: `registrar drain --wait NAME` and then `docker stop NAME`, or \
         give Docker's own socket with `--docker`"
    } else if asked.starts_with(RUN) || asked.starts_with(START) {
        "Behind a read-only proxy of Docker's socket no check by exec is possible: have it asked otherwise (SERVICE_CHECK_HTTP, \
         SERVICE_CHECK_TCP, a HEALTHCHECK), or give the registrar Docker's own socket with `--docker`"
    } else {
        "The registrar needs to GET /version, /events, /containers/json and /containers/ID/json"
    }
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
        let client = self.connect().await?;
        for candidate in candidates {
            if let Some(container) = client.inspect(candidate.name()).await?
                && is_this(candidate, &container)
            {
                return Ok(container);
            }
        }
        Err(DockerError::Unknown(candidates.iter().map(|candidate| candidate.name().to_owned()).collect()))
    }

    /// Opens the socket once by hand, since that tells why it cannot be opened, then lets the client agree with
    /// Docker on the version of its API.
    pub async fn connect(&self) -> Result<Client, DockerError> {
        let opened = timeout(REQUEST_LIMIT, UnixStream::connect(&self.socket)).await;
        opened.map_err(|_| too_slow(&self.socket))?.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => DockerError::Absent(self.socket.clone()),
            io::ErrorKind::PermissionDenied => DockerError::Forbidden(self.socket.clone()),
            _ => no_answer(&self.socket, &error),
        })?;
        let path = self.socket.to_string_lossy();
        let docker = bollard::Docker::connect_with_unix(&path, REQUEST_LIMIT.as_secs(), bollard::API_DEFAULT_VERSION)
            .map_err(|error| no_answer(&self.socket, &error))?;
        let agreed = timeout(REQUEST_LIMIT, docker.negotiate_version()).await;
        let docker =
            agreed.map_err(|_| too_slow(&self.socket))?.map_err(|error| refused(&self.socket, VERSION, error))?;
        Ok(Client { docker, socket: self.socket.clone() })
    }
}

/// A Docker that has answered. Each request goes over a connection of its own.
#[derive(Debug, Clone)]
pub struct Client {
    docker: bollard::Docker,
    socket: PathBuf,
}

impl Client {
    /// What Docker knows of a container, by id or name. `None` where there is none of that name.
    ///
    /// # Errors
    /// Docker does not answer in time, or refuses.
    pub async fn inspect(&self, name: &str) -> Result<Option<ContainerInspectResponse>, DockerError> {
        match self.ask("show container", name, self.docker.inspect_container(name, None)).await {
            Err(Trouble::NotFound(_)) => Ok(None),
            result => Ok(Some(result?)),
        }
    }

    /// All containers that run, paused ones included.
    ///
    /// # Errors
    /// As [`Client::inspect`].
    pub async fn running(&self) -> Result<Vec<ContainerSummary>, DockerError> {
        Ok(self.ask("list containers", "", self.docker.list_containers(None)).await?)
    }

    /// Ends a container as `docker stop` does, and waits for its end.
    ///
    /// # Errors
    /// As [`Client::inspect`].
    pub async fn stop(&self, container: &ContainerInspectResponse) -> Result<(), DockerError> {
        let id = container.id.as_deref().unwrap_or_default();
        let time = container.config.as_ref().and_then(|config| config.stop_timeout);
        let time = time.map_or(STOP_TIME, |seconds| Duration::from_secs(seconds.try_into().unwrap_or(0)));
        let limit = time + STOP_LIMIT;
        let patient = self.docker.clone().with_timeout(limit);
        Ok(self.ask_within(limit, STOP, id, patient.stop_container(id, None)).await?)
    }

    /// Whether what answers lets us stop containers. Stops none.
    ///
    /// # Errors
    /// [`DockerError::NotAllowed`]; as [`Client::inspect`].
    pub async fn may_stop(&self) -> Result<(), DockerError> {
        allowed(self.ask(STOP, "", self.docker.stop_container(NOBODY, None)).await)
    }

    /// Whether what answers lets us run commands in containers. Runs none.
    ///
    /// # Errors
    /// As [`Client::may_stop`].
    pub async fn may_run(&self) -> Result<(), DockerError> {
        let config = ExecConfig { cmd: Some(vec!["true".to_owned()]), ..ExecConfig::default() };
        allowed(self.ask(RUN, "", self.docker.create_exec(NOBODY, config)).await.map(drop))
    }

    /// Prepares to run a command in a container. Gives by what it is known.
    ///
    /// # Errors
    /// As [`Client::inspect`].
    pub async fn prepare(&self, container: &str, command: &[String]) -> Result<String, DockerError> {
        let config = ExecConfig { cmd: Some(command.to_vec()), attach_stdout: Some(true), ..ExecConfig::default() };
        let prepared = self.docker.create_exec(container, config);
        Ok(self.ask(RUN, container, prepared).await?.id)
    }

    /// Runs a command that was prepared, and waits for its exit code. The caller sets the limit: Docker has no way to
    /// end a command.
    ///
    /// # Errors
    /// As [`Client::inspect`], and that Docker does not say how it ended.
    pub async fn run(&self, exec: &str) -> Result<i64, DockerError> {
        let start = self.docker.start_exec(exec, None::<StartExecOptions>);
        if let StartExecResults::Attached { mut output, .. } = self.ask(START, exec, start).await? {
            while let Some(Ok(_)) = output.next().await {}
        }
        // It may close its output before it ends, and Docker hears of its end a moment later.
        loop {
            match self.ran(exec).await? {
                Some(Ran::Runs) => sleep(EXEC_PAUSE).await,
                Some(Ran::Ended(code)) => return Ok(code),
                None => {
                    let what = "it does not say how a command in a container ended".to_owned();
                    return Err(DockerError::NoAnswer { socket: self.socket.clone(), what });
                }
            }
        }
    }

    /// What became of a command that was run. `None` where Docker does not know.
    ///
    /// # Errors
    /// As [`Client::inspect`].
    pub async fn ran(&self, exec: &str) -> Result<Option<Ran>, DockerError> {
        let shown = match self.ask("show command", exec, self.docker.inspect_exec(exec)).await {
            Err(Trouble::NotFound(_)) => return Ok(None),
            shown => shown?,
        };
        let runs = shown.running.unwrap_or_default();
        Ok(if runs { Some(Ran::Runs) } else { shown.exit_code.map(Ran::Ended) })
    }

    /// What happens to containers, and between them and networks, from `since` on: seconds of Unix time, with a
    /// fraction (Docker Engine API 1.41, `/events`). Waits as long as nothing happens.
    fn events(&self, since: String) -> impl Stream<Item = Result<EventMessage, Bollard>> + Unpin + use<> {
        let texts = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect::<Vec<_>>();
        let filters = HashMap::from([
            ("type".to_owned(), texts(&["container", "network"])),
            ("event".to_owned(), texts(&events::ASKED_FOR)),
        ]);
        let options = EventsOptions { since: Some(since), until: None, filters: Some(filters) };
        Box::pin(self.docker.events(Some(options)))
    }

    async fn ask<T>(
        &self,
        what: &str,
        name: &str,
        answer: impl Future<Output = Result<T, Bollard>>,
    ) -> Result<T, Trouble> {
        self.ask_within(REQUEST_LIMIT, what, name, answer).await
    }

    async fn ask_within<T>(
        &self,
        limit: Duration,
        what: &str,
        name: &str,
        answer: impl Future<Output = Result<T, Bollard>>,
    ) -> Result<T, Trouble> {
        let answer = timeout(limit, answer).await;
        answer.map_err(|_| Trouble::Other(too_slow_within(&self.socket, limit)))?.map_err(|error| {
            let is_unknown = matches!(error, Bollard::DockerResponseServerError { status_code: 404, .. });
            let error = refused(&self.socket, format!("{what} {name}").trim_end(), error);
            if is_unknown { Trouble::NotFound(error) } else { Trouble::Other(error) }
        })
    }
}

/// What became of a command in a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ran {
    /// It has not ended.
    Runs,
    /// It ended with this code.
    Ended(i64),
}

/// What a container's HEALTHCHECK says, where it has one.
pub fn healthcheck(container: &ContainerInspectResponse) -> Option<Healthcheck> {
    match container.state.as_ref()?.health.as_ref()?.status? {
        HealthStatusEnum::STARTING => Some(Healthcheck::Starting),
        HealthStatusEnum::HEALTHY => Some(Healthcheck::Healthy),
        HealthStatusEnum::UNHEALTHY => Some(Healthcheck::Unhealthy),
        HealthStatusEnum::NONE | HealthStatusEnum::EMPTY => None,
    }
}

/// The containers' own addresses, of one entry of Docker's list.
pub fn addresses(container: &ContainerSummary) -> BTreeSet<IpAddr> {
    let networks = container.network_settings.iter().filter_map(|settings| settings.networks.as_ref()).flatten();
    let texts = networks.flat_map(|(_, network)| [&network.ip_address, &network.global_ipv6_address]);
    texts.filter_map(|text| text.as_deref()?.parse().ok()).collect()
}

/// Why there is no answer to a question.
enum Trouble {
    /// Docker knows no such thing.
    NotFound(DockerError),
    Other(DockerError),
}

impl From<Trouble> for DockerError {
    fn from(trouble: Trouble) -> Self {
        let (Trouble::NotFound(error) | Trouble::Other(error)) = trouble;
        error
    }
}

/// What an answer means about a container that is none.
fn allowed(answer: Result<(), Trouble>) -> Result<(), DockerError> {
    match answer {
        Ok(()) | Err(Trouble::NotFound(_)) => Ok(()),
        Err(Trouble::Other(error)) => Err(error),
    }
}

/// Why there is no good answer to what was asked.
fn refused(socket: &Path, asked: &str, error: Bollard) -> DockerError {
    let Bollard::DockerResponseServerError { status_code, message } = error else { return no_answer(socket, &error) };
    let (socket, asked, what) = (socket.to_owned(), asked.to_owned(), format!("{status_code} {}", shown(&message)));
    match status_code {
        403 => DockerError::NotAllowed { socket, asked, what },
        // In front of Docker, something says so in its place.
        502..=504 => DockerError::NoAnswer { socket, what },
        _ => DockerError::Refused { socket, asked, what },
    }
}

fn no_answer(socket: &Path, error: &(dyn std::error::Error + 'static)) -> DockerError {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    DockerError::NoAnswer { socket: socket.to_owned(), what: shown(&cause.to_string()) }
}

fn too_slow(socket: &Path) -> DockerError {
    too_slow_within(socket, REQUEST_LIMIT)
}

fn too_slow_within(socket: &Path, limit: Duration) -> DockerError {
    let what = format!("nothing came within {}", humantime::format_duration(limit));
    DockerError::NoAnswer { socket: socket.to_owned(), what }
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
