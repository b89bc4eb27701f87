//! Asks Docker about containers over its unix socket. Edge: it reads, and changes nothing there, but that it has a check
//! by exec done in a container, and for `registrar stop` ends one.

mod bounded;
pub mod events;

use std::collections::{BTreeSet, HashMap};
use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bollard::errors::Error as Bollard;
use bollard::exec::{StartExecOptions, StartExecResults};
use bollard::models::{ContainerInspectResponse, ContainerSummary, EventMessage, ExecConfig, HealthStatusEnum};
use bollard::query_parameters::EventsOptions;
use futures_util::{Stream, StreamExt};
use tokio::net::UnixStream;
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

use self::bounded::{Allowance, allow};
use self::events::Healthcheck;
use crate::own::{Candidate, Traces, is_this};

/// The limit on one request. Docker inspects in milliseconds, but may be busy with the start of many containers.
const REQUEST_LIMIT: Duration = Duration::from_secs(5);

/// How long an answer may be, in bytes. The longest is about one container: its labels, its environment, and its arguments twice. The
/// kernel lets a process begin with 2 MiB of arguments and environment (execve(2), where a stack may have 8 MiB).
const ANSWER: usize = 8 << 20;
/// What an answer about a container has as a rule, and much more. Longer ones are read one at a time: many short labels take 14 times
/// their bytes once they are read, and many containers are asked after at once.
const USUAL_ANSWER: usize = 256 << 10;
/// How long the list of containers may be. It grows with their number, some KiB for each, and has all labels of all of them: one
/// container that is too long to be inspected is not to hide the others.
const LIST: usize = 32 << 20;
/// How much may come of the events without one among it. An event has the labels of its container; the client reads it from the
/// beginning again with each piece that comes.
pub(crate) const EVENT: usize = 1 << 20;

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
const LIST_ALL: &str = "list containers";
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
    /// It says more than is taken in.
    #[error(
        "Docker at {socket} says more than {} when asked to {asked}, which is not read: {}", size(*limit), too_much(asked)
    )]
    TooLong {
        /// The socket.
        socket: PathBuf,
        /// What it was asked to do.
        asked: String,
        /// How many bytes are read.
        limit: usize,
    },
    /// None of the candidates is this container.
    #[error("Docker knows no container that is this one{}: say its name with `--container NAME`", tried(.0))]
    Unknown(Vec<String>),
}

fn tried(names: &[String]) -> String {
    if names.is_empty() { String::new() } else { format!(" (tried {})", names.join(", ")) }
}

fn size(bytes: usize) -> String {
    format!("{} MiB", bytes >> 20)
}

/// What makes an answer long, and what to do.
fn too_much(asked: &str) -> &'static str {
    match asked {
        LIST_ALL | EVENTS => {
            "the labels of containers are in it. `docker ps --no-trunc --format '{{.ID}} {{.Labels}}' | awk '{print length, $1}' | sort -n` \
             shows which has the most: make that one anew with fewer"
        }
        _ => "a container's labels, environment and arguments are in it: make it anew with fewer",
    }
}

/// What to do where something is not allowed.
fn way_out(asked: &str) -> String {
    if let Some(name) = asked.strip_prefix(STOP).map(str::trim) {
        return format!(
            "Behind a read-only proxy of Docker's socket nothing is stopped: `registrar drain --wait {name}` and then `docker stop {name}`, \
             or give Docker's own socket with `--docker`"
        );
    }
    let way_out = if asked.starts_with(RUN) || asked.starts_with(START) {
        "Behind a read-only proxy of Docker's socket no check by exec is possible: have it asked otherwise (SERVICE_CHECK_HTTP, \
         SERVICE_CHECK_TCP, a HEALTHCHECK), or give the registrar Docker's own socket with `--docker`"
    } else {
        "The registrar needs to GET /version, /events, /containers/json and /containers/ID/json"
    };
    way_out.to_owned()
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
        let docker = bounded::client(&self.socket, REQUEST_LIMIT).map_err(|error| no_answer(&self.socket, &error))?;
        let client = Client { docker, socket: self.socket.clone(), long: Arc::new(Semaphore::new(1)) };
        let request = client.request(VERSION, "");
        // All clones of a client speak the version that one of them has agreed on.
        request.answer(request.docker.clone().negotiate_version()).await?;
        Ok(client)
    }
}

/// A Docker that has answered. Each request goes over a connection of its own.
#[derive(Debug, Clone)]
pub struct Client {
    docker: bollard::Docker,
    socket: PathBuf,
    /// Whoever has it may read a long answer.
    long: Arc<Semaphore>,
}

impl Client {
    /// What Docker knows of a container, by id or name. `None` where there is none of that name.
    ///
    /// # Errors
    /// Docker does not answer in time, or refuses.
    pub async fn inspect(&self, name: &str) -> Result<Option<ContainerInspectResponse>, DockerError> {
        let inspect = async |limit| {
            let request = self.request_of(limit, "show container", name);
            request.answer(request.docker.inspect_container(name, None)).await
        };
        let mut shown = inspect(USUAL_ANSWER).await;
        if matches!(shown, Err(Trouble::Other(DockerError::TooLong { .. }))) {
            let _turn = self.long.acquire().await;
            shown = inspect(ANSWER).await;
        }
        match shown {
            Err(Trouble::NotFound(_)) => Ok(None),
            shown => Ok(Some(shown?)),
        }
    }

    /// All containers that run, paused ones included.
    ///
    /// # Errors
    /// As [`Client::inspect`].
    pub async fn running(&self) -> Result<Vec<ContainerSummary>, DockerError> {
        let request = self.request_of(LIST, LIST_ALL, "");
        Ok(request.answer(request.docker.list_containers(None)).await?)
    }

    /// Ends a container as `docker stop` does, and waits for its end.
    ///
    /// # Errors
    /// As [`Client::inspect`].
    pub async fn stop(&self, container: &ContainerInspectResponse) -> Result<(), DockerError> {
        let id = container.id.as_deref().unwrap_or_default();
        let time = container.config.as_ref().and_then(|config| config.stop_timeout);
        let time = time.map_or(STOP_TIME, |seconds| Duration::from_secs(seconds.try_into().unwrap_or(0)));
        let request = self.request(STOP, id).within(time + STOP_LIMIT);
        Ok(request.answer(request.docker.stop_container(id, None)).await?)
    }

    /// Whether what answers lets us stop containers. Stops none; `name` is the one that is about to be.
    ///
    /// # Errors
    /// [`DockerError::NotAllowed`]; as [`Client::inspect`].
    pub async fn may_stop(&self, name: &str) -> Result<(), DockerError> {
        let request = self.request(STOP, name);
        allowed(request.answer(request.docker.stop_container(NOBODY, None)).await)
    }

    /// Whether what answers lets us run commands in containers. Runs none.
    ///
    /// # Errors
    /// As [`Client::may_stop`].
    pub async fn may_run(&self) -> Result<(), DockerError> {
        let config = ExecConfig { cmd: Some(vec!["true".to_owned()]), ..ExecConfig::default() };
        let request = self.request(RUN, "");
        allowed(request.answer(request.docker.create_exec(NOBODY, config)).await.map(drop))
    }

    /// Prepares to run a command in a container. Gives by what it is known.
    ///
    /// # Errors
    /// As [`Client::inspect`].
    pub async fn prepare(&self, container: &str, command: &[String]) -> Result<String, DockerError> {
        let config = ExecConfig { cmd: Some(command.to_vec()), attach_stdout: Some(true), ..ExecConfig::default() };
        let request = self.request(RUN, container);
        Ok(request.answer(request.docker.create_exec(container, config)).await?.id)
    }

    /// Runs a command that was prepared, and waits for its exit code. The caller sets the limit: Docker has no way to
    /// end a command.
    ///
    /// # Errors
    /// As [`Client::inspect`], and that Docker does not say how it ended.
    pub async fn run(&self, exec: &str) -> Result<i64, DockerError> {
        let request = self.request(START, exec);
        let start = request.docker.start_exec(exec, None::<StartExecOptions>);
        // Nothing of the connection is kept any longer than it is read from.
        if let StartExecResults::Attached { mut output, .. } = request.answer(start).await? {
            while let Some(Ok(_)) = output.next().await {
                request.allowance.renew();
            }
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
        let request = self.request("show command", exec);
        let shown = match request.answer(request.docker.inspect_exec(exec)).await {
            Err(Trouble::NotFound(_)) => return Ok(None),
            shown => shown?,
        };
        let runs = shown.running.unwrap_or_default();
        Ok(if runs { Some(Ran::Runs) } else { shown.exit_code.map(Ran::Ended) })
    }

    /// What happens to containers, and between them and networks, from `since` on: seconds of Unix time, with a
    /// fraction (Docker Engine API 1.41, `/events`). Waits as long as nothing happens.
    fn events(&self, since: String) -> impl Stream<Item = Result<EventMessage, Unread>> + Unpin + use<> {
        let texts = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect::<Vec<_>>();
        let filters = HashMap::from([
            ("type".to_owned(), texts(&["container", "network"])),
            ("event".to_owned(), texts(&events::ASKED_FOR)),
        ]);
        let options = EventsOptions { since: Some(since), until: None, filters: Some(filters) };
        let request = self.request_of(EVENT, EVENTS, "");
        Box::pin(request.docker.events(Some(options)).map(move |message| {
            let message = message.map_err(|error| Unread {
                // What cannot be read cannot be read the next time either.
                is_for_ever: request.allowance.is_exceeded() || matches!(error, Bollard::JsonDataError { .. }),
                error: request.refused(error),
            })?;
            request.allowance.renew();
            Ok(message)
        }))
    }

    fn request(&self, what: &str, name: &str) -> Request {
        self.request_of(ANSWER, what, name)
    }

    /// A request whose answer has at most so many bytes.
    fn request_of(&self, limit: usize, what: &str, name: &str) -> Request {
        let (docker, allowance) = allow(&self.docker, limit);
        let asked = format!("{what} {name}").trim_end().to_owned();
        Request { docker, allowance, socket: self.socket.clone(), asked, within: REQUEST_LIMIT }
    }
}

/// Why there are no more events.
struct Unread {
    error: DockerError,
    /// The event that came is none that can be read.
    is_for_ever: bool,
}

/// One request, to be asked of its own `docker`.
struct Request {
    docker: bollard::Docker,
    /// How long the answer may be.
    allowance: Arc<Allowance>,
    socket: PathBuf,
    asked: String,
    /// How long it may take.
    within: Duration,
}

impl Request {
    fn within(self, limit: Duration) -> Self {
        Self { docker: self.docker.with_timeout(limit), within: limit, ..self }
    }

    async fn answer<T>(&self, answer: impl Future<Output = Result<T, Bollard>>) -> Result<T, Trouble> {
        let answer = timeout(self.within, answer).await;
        answer.map_err(|_| Trouble::Other(too_slow_within(&self.socket, self.within)))?.map_err(|error| {
            let is_unknown = matches!(error, Bollard::DockerResponseServerError { status_code: 404, .. });
            let error = self.refused(error);
            if is_unknown { Trouble::NotFound(error) } else { Trouble::Other(error) }
        })
    }

    /// Why there is no good answer.
    fn refused(&self, error: Bollard) -> DockerError {
        if self.allowance.is_exceeded() {
            let (socket, asked) = (self.socket.clone(), self.asked.clone());
            return DockerError::TooLong { socket, asked, limit: self.allowance.limit };
        }
        refused(&self.socket, &self.asked, error)
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
