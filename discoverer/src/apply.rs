//! Brings HAProxy to what is wanted: over the runtime API where only servers differ, with a reload where it must be.
//!
//! A server that came or went is told to HAProxy first (`step`), the whole text follows and proves it (`apply`), and
//! the file follows right behind (`settle`): validated, written whole, and compared with what HAProxy says. Whatever
//! fails, HAProxy goes on with the last good file, and the failure is named.

mod history;
mod leaving;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::future::pending;
use std::io::ErrorKind;
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use observe::systemd::Part;
use registry::watch::Backoff;
use registry::{InstanceAddress, ServiceName};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tracing::{debug, error, info, warn};

use crate::catalog::Step;
use crate::compose::{ComposeError, Composer, Wanted, replace};
use crate::feed::What;
use crate::haproxy::{Command, Program, RELOAD_LIMIT, ReloadError, Reloaded, Reloader, Runtime, RuntimeError, Worker};
use crate::metrics::Metrics;
use crate::model::Service;
use crate::output::{Output, OutputError};
use crate::plan::{self, Bind, Change, Parsed, Plan, Reason, ServerId, Version, WorkerLimits};
use crate::readback::{Fresh, Healths};
use crate::suspect::Health;
use crate::view::HaproxyView;
use crate::{readback, until};

use self::history::History;
use self::leaving::{Leaving, not_deleted};

/// The file is written at once after a change, and then at most this often while changes pour in: each time costs
/// `haproxy -c`, up to 0.6 s for 10,000 servers.
const SETTLE_EVERY: Duration = Duration::from_secs(1);
/// HAProxy's own list of its servers is compared at once after a change, and then at most this often while changes pour in:
/// every command's reply has been read already.
const COMPARE_EVERY: Duration = Duration::from_secs(5);
/// The pause before the file is written while steps wait for their text.
const AFTER_STEPS: Duration = Duration::from_millis(100);
/// How often HAProxy is asked whether it is still the worker that we know.
const ASK_WORKER_EVERY: Duration = Duration::from_secs(2);
/// How often it is asked while another worker is waited for.
const ASK_WORKER_AGAIN: Duration = Duration::from_millis(10);
/// How often the servers of a worker are looked at again that may be another one in a moment.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// How long after a reload what answers may be the former worker, or one of somebody else's reload.
const FORMER_ANSWERS: Duration = Duration::from_millis(500);
/// The longest pause before the file is tried again where it could not be written.
const LONGEST_SETTLE_PAUSE: Duration = Duration::from_secs(10);
/// After this many contradictions in a row the short way is closed.
const MOST_CONTRADICTIONS: u32 = 2;
/// The pause where one reload more would end an old worker before its time.
const CROWDED_PAUSE: Duration = Duration::from_secs(1);
/// A service that was left out because its port was taken is tried again after this.
const BIND_AGAIN: Duration = Duration::from_secs(60);

/// Why HAProxy does not run what is wanted.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// There is no text to run.
    #[error(transparent)]
    Compose(#[from] ComposeError),
    /// The file could not be written.
    #[error(transparent)]
    Output(#[from] OutputError),
    /// HAProxy did not take the file.
    #[error(transparent)]
    Reload(#[from] ReloadError),
    /// An address that the new file listens on cannot be had: a reload would make HAProxy refuse connections for seconds.
    #[error("{address} cannot be listened on ({error}); free it, or take it out of the template")]
    Bind {
        /// The address of the `bind` line.
        address: String,
        /// What the kernel said.
        error: std::io::Error,
    },
    /// HAProxy has read something, and it was not the file.
    #[error("HAProxy was reloaded, but has not read {}: {difference}; start it with -f and that file, as HAProxy itself sees it", .output.display())]
    Elsewhere {
        /// The file.
        output: PathBuf,
        /// In what HAProxy's servers are not those of the file.
        difference: String,
    },
}

impl ApplyError {
    /// Whether HAProxy, or a port that is taken, said no to the file itself.
    fn judges_the_file(&self) -> bool {
        match self {
            Self::Bind { .. } => true,
            Self::Reload(error) => !error.says_nothing_of_the_file(),
            Self::Compose(_) | Self::Output(_) | Self::Elsewhere { .. } => false,
        }
    }

    /// Its kind, as metrics tell it.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Compose(error) => error.kind(),
            Self::Output(_) => "output",
            Self::Reload(_) => "reload",
            Self::Elsewhere { .. } => "elsewhere",
            Self::Bind { .. } => "bind",
        }
    }

    /// Whether the same input may do better later.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Compose(error) => error.may_pass(),
            Self::Output(_) | Self::Reload(_) | Self::Bind { .. } | Self::Elsewhere { .. } => true,
        }
    }
}

/// How HAProxy came to what is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Applied {
    /// HAProxy ran it already.
    Nothing,
    /// Its servers were changed over the runtime API.
    Runtime,
    /// It read the new file.
    Reloaded,
    /// It needs a reload, and the last one was too short ago: ask again then.
    Later(Instant),
}

impl Applied {
    /// Its name, as the API and metrics have it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::Runtime => "runtime",
            Self::Reloaded => "reload",
            Self::Later(_) => "later",
        }
    }
}

/// What applying needs to know.
#[derive(Debug)]
pub struct ApplyConfig {
    /// HAProxy's program; none where its version is not the running one, so that its check would say nothing.
    pub program: Option<Program>,
    /// The same, whatever its version.
    pub installed: Program,
    /// The running version, where it is known.
    pub version: Option<Version>,
    /// The file.
    pub output: Output,
    /// The way to make HAProxy read it.
    pub reloader: Reloader,
    /// The stats socket; without it every change is a reload.
    pub runtime: Option<Runtime>,
    /// The least time between two reloads.
    pub min_interval: Duration,
    /// How long a server that is removed may finish its connections.
    pub drain_timeout: Duration,
    /// What counts what is done.
    pub metrics: Metrics,
    /// Who tells systemd that the loop lives; nobody, where that does not watch it.
    pub part: Option<Part>,
}

/// Something that has become due while nothing was wanted; see [`Applier::wait`].
#[derive(Debug)]
pub enum Due {
    /// Servers in maintenance may have lost their last connection.
    Removals,
    /// The file is behind.
    Settle,
    /// The file has been written, or could not be.
    Settled(Result<Settled, ComposeError>),
    /// HAProxy is to be asked who it is.
    Worker,
    /// Services and templates that could not be loaded are to be tried again.
    Again,
}

/// What came of writing the file behind the runtime API.
#[derive(Debug)]
pub struct Settled {
    /// How many changes had been made when it began.
    changes: u64,
    /// The text.
    text: Arc<str>,
    /// What HAProxy said of its servers then, where it was asked and answered.
    state: Option<String>,
}

/// The way from what HAProxy runs to what it should run.
enum Way {
    Nothing,
    Runtime(Vec<Change>),
    Reload(Why),
}

/// Why it takes a reload.
#[derive(Debug, thiserror::Error)]
enum Why {
    #[error("it is not known what HAProxy runs")]
    Unknown,
    #[error("no --runtime-socket is given")]
    NoRuntime,
    #[error("{} has changed (--watch)", .0.display())]
    Watched(PathBuf),
    #[error("{0}")]
    Distrust(String),
    #[error("{0}")]
    Plan(Reason),
}

impl Why {
    /// Its kind, as metrics tell it.
    fn kind(&self) -> &'static str {
        match self {
            Self::Unknown => "start",
            Self::NoRuntime => "no_runtime_socket",
            Self::Watched(_) => "watch",
            Self::Distrust(_) => "runtime_api",
            Self::Plan(reason) => reason.kind(),
        }
    }
}

/// Owns the file and the way to HAProxy.
#[derive(Debug)]
pub struct Applier {
    config: ApplyConfig,
    composer: Composer,
    /// The text that HAProxy runs, as far as we know.
    running: Option<Parsed>,
    /// What HAProxy was told of single servers since then: the line of one that was added, nothing for one removed.
    ahead: BTreeMap<ServerId, Option<String>>,
    /// How often in a row what `server.tera` said of a server was not what the whole text said: the short way is closed
    /// to templates that do not keep to it.
    contradictions: u32,
    /// Servers that are out of the text and finish their connections.
    leaving: Leaving,
    /// Counts what was changed over the runtime API.
    changes: u64,
    /// How long old workers live, by the last text that HAProxy loaded.
    limits: Option<WorkerLimits>,
    /// The text that the file on disk holds.
    filed: Option<Arc<str>>,
    settling: Option<JoinHandle<Result<Settled, ComposeError>>>,
    settle_at: Option<Instant>,
    settle_pause: Backoff,
    /// Why the file on disk does not hold what HAProxy runs; it is tried again.
    unfiled: Option<String>,
    /// Who answers on the stats socket, and when that was asked.
    worker: Option<(Worker, Instant)>,
    ask_worker_at: Instant,
    /// Why a new worker's servers could not be set right; it is tried again.
    unrepaired: Option<String>,
    /// Why the runtime API cannot be used until the next reload.
    distrust: Option<String>,
    /// Where something has changed that HAProxy has read besides its file.
    stale: Option<PathBuf>,
    reloads: VecDeque<Instant>,
    /// It was said that the next reload has to wait.
    said_crowded: bool,
    again_at: Option<Instant>,
    last_settled: Option<Instant>,
    last_compared: Option<Instant>,
    history: History,
    /// Whether the stats socket answered when it was asked last.
    answers: Option<bool>,
    worker_started: Option<Timestamp>,
}

impl Applier {
    /// An applier that does not know yet what HAProxy runs, so that its first text is always loaded.
    pub fn new(config: ApplyConfig, composer: Composer) -> Self {
        let history = History::new(config.metrics.clone());
        Self {
            config,
            composer,
            running: None,
            ahead: BTreeMap::new(),
            contradictions: 0,
            leaving: Leaving::default(),
            changes: 0,
            limits: None,
            filed: None,
            settling: None,
            settle_at: None,
            settle_pause: Backoff::new(SETTLE_EVERY, LONGEST_SETTLE_PAUSE),
            unfiled: None,
            worker: None,
            ask_worker_at: Instant::now(),
            unrepaired: None,
            distrust: None,
            stale: None,
            reloads: VecDeque::new(),
            said_crowded: false,
            again_at: None,
            last_settled: None,
            last_compared: None,
            history,
            answers: None,
            worker_started: None,
        }
    }

    /// Goes on with other settings. New options are for templates that are read from now on.
    pub fn renew(&mut self, min_interval: Duration, drain_timeout: Duration, options: BTreeMap<String, String>) {
        (self.config.min_interval, self.config.drain_timeout) = (min_interval, drain_timeout);
        self.composer.set_options(options);
    }

    /// What HAProxy has read there besides its file is another: it has to read it again, and may take what it refused before.
    pub fn outdated(&mut self, path: PathBuf) {
        self.stale = Some(path);
        self.try_all_again();
    }

    fn try_all_again(&mut self) {
        self.again_at = None;
        self.composer.try_rejected_again();
        let names: Vec<_> = self.composer.left_out().map(|(name, _)| name.clone()).collect();
        names.iter().for_each(|name| self.composer.take_back(name));
    }

    /// The services that are left out, with the reason.
    pub fn composer(&self) -> &Composer {
        &self.composer
    }

    /// How HAProxy stands.
    pub fn view(&self) -> HaproxyView {
        let worker = self.worker.as_ref().map(|(worker, _)| worker);
        let is_up = match &self.config.reloader {
            Reloader::Supervised(_) => Some(!self.config.reloader.is_down() && self.answers != Some(false)),
            _ => self.answers,
        };
        HaproxyView {
            way: self.config.reloader.way(),
            version: worker.and_then(|worker| worker.version.clone()),
            worker: worker.map(|worker| worker.pid),
            worker_started: self.worker_started,
            is_up,
            reloads: self.history.reloads.clone(),
            last_reload: self.history.last_reload.clone(),
            applied: self.history.applied.clone(),
            applying_since: None,
            error: self.history.error.clone(),
            unfiled: self.unfiled.clone(),
            distrust: self.distrust.clone(),
            unled: self.running.as_ref().map(Parsed::unled).unwrap_or_default(),
        }
    }

    /// Why HAProxy does not run what is wanted. None where it does.
    pub(crate) fn trouble(&self) -> Option<&str> {
        self.history.error.as_deref()
    }

    /// What has happened since that was asked last.
    pub fn take_notes(&mut self) -> Vec<(Timestamp, What, String)> {
        self.history.take_notes()
    }

    /// What HAProxy's checks say of an instance, by what it says of all servers.
    pub(crate) fn health(&self, healths: &Healths<'_>, service: &ServiceName, address: InstanceAddress) -> Health {
        let tracks = |id: &ServerId| self.running.as_ref().is_some_and(|running| running.tracks(id));
        healths.health(service, address, tracks)
    }

    /// Tells HAProxy of servers that came or went, before the whole text is made. Says whether it did: if not, nothing
    /// is lost, and [`Applier::apply`] has to do it at once.
    pub async fn step(&mut self, steps: &[Step]) -> bool {
        let (Some(runtime), Some(running)) = (&self.config.runtime, &self.running) else { return false };
        if self.contradictions >= MOST_CONTRADICTIONS || self.distrust.is_some() || steps.is_empty() {
            return false;
        }
        let mut changes = BTreeMap::new();
        let mut told = BTreeMap::new();
        for step in steps {
            let id = ServerId { backend: step.settings.name.to_string(), server: step.instance.server.clone() };
            if self.ahead.contains_key(&id) || self.leaving.contains(&id) || changes.contains_key(&id) {
                return false;
            }
            let (change, line) = if step.came {
                let Some(line) = self.composer.server_line(&step.settings, &step.instance) else { return false };
                (plan::addition(running, &id.backend, &line, self.config.version), Some(line))
            } else {
                (plan::removal(running, &id, self.config.version), None)
            };
            let Ok(change) = change else { return false };
            told.insert(id.clone(), line);
            changes.insert(id, change);
        }
        let mut changes: Vec<Change> = changes.into_values().collect();
        // No backend is empty in between.
        changes.sort_by_key(|change| matches!(change, Change::Remove { .. }));
        let mut script: Vec<Command> = changes.iter().flat_map(commands).collect();
        script.extend(deletions(&changes));
        self.history.metrics.commands(script.len());
        match runtime.run(&script).await {
            Ok(replies) => self.leave(&changes, &not_deleted(&script, &replies)),
            Err(error) => {
                self.distrust(&error);
                return false;
            }
        }
        self.ahead.extend(told);
        self.changes += 1;
        let came = steps.iter().filter(|step| step.came).count();
        info!(came, went = steps.len() - came, "servers changed");
        self.history.stepped();
        true
    }

    /// Lets the file have what HAProxy was told of single servers, where the whole text is not about to come.
    pub fn keep_steps(&mut self) {
        self.merge_told();
    }

    /// While the whole has to wait for a reload, or could not be loaded: carries out what needs none.
    pub async fn meanwhile(&mut self, wanted: &Wanted) {
        self.merge_told();
        let Some(running) = self.running.clone().filter(|_| self.config.runtime.is_some()) else { return };
        let Some(text) = self.composer.good_text(wanted).filter(|_| self.distrust.is_none()) else { return };
        let part = plan::part(&running, &Parsed::new(text), self.config.version);
        if part.changes.is_empty() {
            return;
        }
        match self.change(&part.changes).await {
            Ok(()) => {
                self.now_runs(running.with_lines(&part.lines));
                info!(servers = part.lines.len(), "servers changed; the rest waits for a reload");
            }
            Err(error) => self.distrust(&error),
        }
    }

    /// Brings HAProxy to one state.
    pub async fn apply(&mut self, wanted: &Wanted) -> Result<Applied, ApplyError> {
        let result = self.bring(wanted).await;
        self.history.ended(&result);
        result
    }

    async fn bring(&mut self, wanted: &Wanted) -> Result<Applied, ApplyError> {
        if let Some(text) = self.composer.quick_text(wanted) {
            let (way, text) = self.way_to(text, wanted);
            match way {
                Way::Nothing => {
                    self.now_runs(text);
                    return Ok(Applied::Nothing);
                }
                Way::Runtime(changes) => match self.change(&changes).await {
                    Ok(()) => {
                        self.now_runs(text);
                        self.say_applied(wanted, "over the runtime API");
                        return Ok(Applied::Runtime);
                    }
                    Err(error) => self.distrust(&error),
                },
                Way::Reload(why) => debug!(%why, "a reload is needed"),
            }
        }
        if let Some(at) = self.next_reload().await {
            return Ok(Applied::Later(at));
        }
        self.stop_settling();
        let (text, templates) = self.composer.checked_text(wanted).await?;
        let (way, text) = self.way_to(text, wanted);
        let applied = match way {
            Way::Nothing => {
                self.config.output.discard();
                self.now_runs(text);
                Applied::Nothing
            }
            Way::Runtime(changes) => match self.change(&changes).await {
                Ok(()) => {
                    self.config.output.discard();
                    self.now_runs(text);
                    self.say_applied(wanted, "over the runtime API");
                    Applied::Runtime
                }
                Err(error) => {
                    self.distrust(&error);
                    self.load(text, wanted, &Why::Distrust(error.to_string())).await?
                }
            },
            Way::Reload(why) => {
                let loaded = match self.try_binds(&text, wanted) {
                    Ok(true) => self.load(text, wanted, &why).await,
                    Ok(false) => return Box::pin(self.bring(wanted)).await,
                    Err(error) => Err(error),
                };
                match loaded {
                    Ok(applied) => applied,
                    // New templates with which HAProxy does not start: the last good ones go on.
                    Err(error) if error.judges_the_file() && self.composer.reject(&templates, &error.to_string()) => {
                        error!(%error, again_in = ?BIND_AGAIN, "template not loaded; the last good one goes on");
                        self.again_at = Some(Instant::now() + BIND_AGAIN);
                        self.history.metrics.failed(error.kind());
                        return Box::pin(self.bring(wanted)).await;
                    }
                    Err(error) => return Err(error),
                }
            }
        };
        if !self.composer.is_good(&templates) {
            self.contradictions = 0;
            self.history.note(What::TemplateTaken, "");
        }
        if self.composer.took(&templates, wanted) {
            return Box::pin(self.bring(wanted)).await;
        }
        Ok(applied)
    }

    /// Waits for what has become due. Loses nothing when it is dropped.
    pub async fn wait(&mut self) -> Due {
        let removal_at = self.leaving.next();
        let settle_at = self.settle_at.filter(|_| self.settling.is_none());
        let worker_at = self.worker.as_ref().map(|_| self.ask_worker_at);
        tokio::select! {
            () = until(removal_at) => Due::Removals,
            () = until(settle_at) => Due::Settle,
            () = until(worker_at) => Due::Worker,
            () = until(self.again_at) => Due::Again,
            settled = ended(self.settling.as_mut()) => {
                self.settling = None;
                Due::Settled(settled)
            }
        }
    }

    /// Does what has become due. Says whether HAProxy has to be brought to what is wanted anew.
    pub async fn handle(&mut self, due: Due) -> bool {
        match due {
            Due::Removals => {
                self.remove_leaving().await;
                false
            }
            Due::Settle => {
                self.settle();
                false
            }
            Due::Settled(result) => self.settled(result),
            Due::Worker => self.ask_worker().await,
            Due::Again => {
                self.try_all_again();
                true
            }
        }
    }

    /// The way from what HAProxy runs to a text, and that text, read.
    fn way_to(&mut self, text: impl AsRef<str> + Into<Arc<str>>, wanted: &Wanted) -> (Way, Parsed) {
        let told = self.merge_told();
        // Where it is the text that is known already, it need not be read again.
        let known = self.running.clone().filter(|running| running.text() == text.as_ref());
        let text = known.unwrap_or_else(|| Parsed::new(text));
        let way = self.way_between(&told, &text, wanted);
        (way, text)
    }

    /// Takes what HAProxy was told of single servers into the text that it runs; gives it.
    fn merge_told(&mut self) -> BTreeMap<ServerId, Option<String>> {
        let told = std::mem::take(&mut self.ahead);
        if let Some(running) = self.running.take_if(|_| !told.is_empty()) {
            self.now_runs(running.with_lines(&told));
        }
        told
    }

    fn way_between(&mut self, told: &BTreeMap<ServerId, Option<String>>, text: &Parsed, wanted: &Wanted) -> Way {
        let Some(running) = &self.running else {
            return Way::Reload(self.distrust.clone().map_or(Why::Unknown, Why::Distrust));
        };
        // What HAProxy was told last may have been done or not: the same text alone says nothing.
        if let Some(error) = &self.distrust {
            return Way::Reload(Why::Distrust(error.clone()));
        }
        if let Some(path) = &self.stale {
            return Way::Reload(Why::Watched(path.clone()));
        }
        if self.config.runtime.is_none() && running.text() != text.text() {
            return Way::Reload(Why::NoRuntime);
        }
        let plan = plan::between(running, text, self.config.version);
        if !told.is_empty() {
            self.contradictions = if contradicts(told, &plan, wanted) { self.contradictions + 1 } else { 0 };
        }
        match plan {
            Plan::Nothing => Way::Nothing,
            Plan::Runtime(changes) => Way::Runtime(changes),
            Plan::Reload(reason) => Way::Reload(Why::Plan(reason)),
        }
    }

    /// Carries out changes over the runtime API.
    async fn change(&mut self, changes: &[Change]) -> Result<(), RuntimeError> {
        let Some(runtime) = self.config.runtime.clone() else { return Ok(()) };
        let mut script = Vec::new();
        for change in changes {
            let Change::Add { id, arguments, .. } = change else {
                script.extend(commands(change));
                continue;
            };
            let Some(added_with) = self.leaving.take(id) else {
                script.extend(commands(change));
                continue;
            };
            // It is back before its last connection was done.
            let name = id.to_string();
            let (words, weight) = without_weight(arguments);
            if added_with.as_deref().is_some_and(|before| without_weight(before).0 == words) {
                script.extend([Command::weight(&name, weight), Command::ready(&name)]);
            } else {
                script.extend([Command::shutdown_sessions(&name), Command::delete(&name)]);
                script.extend(commands(change));
            }
        }
        script.extend(deletions(changes));
        self.history.metrics.commands(script.len());
        let replies = runtime.run(&script).await?;
        self.leave(changes, &not_deleted(&script, &replies));
        self.changes += 1;
        Ok(())
    }

    /// Remembers the removed servers that HAProxy did not delete yet: each is in maintenance, and goes when its last
    /// connection has gone.
    fn leave(&mut self, changes: &[Change], not_deleted: &BTreeMap<&str, &str>) {
        let now = Instant::now();
        for change in changes {
            let Change::Remove { id } = change else { continue };
            if !not_deleted.contains_key(id.to_string().as_str()) {
                continue;
            }
            let added_with = match self.running.as_ref().map(|running| self.words_of(running, id)) {
                Some(Some(Change::Add { arguments, .. })) => Some(arguments),
                _ => None,
            };
            self.leaving.add(id.clone(), added_with, now, now + self.config.drain_timeout);
        }
    }

    /// What would add a server of a text to HAProxy.
    fn words_of(&self, text: &Parsed, id: &ServerId) -> Option<Change> {
        plan::addition(text, &id.backend, text.server_line(id)?, self.config.version).ok()
    }

    /// What HAProxy was told is what this text says.
    fn now_runs(&mut self, text: Parsed) {
        self.ahead.clear();
        if self.filed.as_deref() != Some(text.text()) {
            let now = Instant::now();
            let at = self.last_settled.map_or(now, |last| now.max(last + SETTLE_EVERY));
            self.settle_at = Some(self.settle_at.map_or(at, |planned| planned.min(at)));
        }
        self.running = Some(text);
    }

    /// The runtime API did something that we do not understand: only a reload makes HAProxy's state known again.
    fn distrust(&mut self, error: &RuntimeError) {
        let error = error.to_string();
        if self.distrust.as_ref() != Some(&error) {
            self.history.metrics.failed("runtime_api");
            warn!(error, "runtime API not used until the next reload");
        }
        self.distrust = Some(error);
    }

    /// When the next reload may be; none where it may be now.
    async fn next_reload(&mut self) -> Option<Instant> {
        let now = Instant::now();
        let lifetime = self.limits.map_or(Duration::ZERO, |limits| limits.lifetime);
        while self.reloads.front().is_some_and(|&at| at + lifetime.max(self.config.min_interval) <= now) {
            self.reloads.pop_front();
        }
        let after_last = self.reloads.back().map(|&at| at + self.config.min_interval).filter(|&at| at > now);
        let (None, Some(limits)) = (after_last, self.limits) else { return after_last };
        // HAProxy's master counts for each worker the reloads that it has survived, and ends it before its time when it
        // survives one too many. Where the master cannot be asked, all reloads of that time count.
        let most = match self.config.reloader.most_survived().await {
            Some(survived) => survived,
            None => self.reloads.len() as u64,
        };
        let is_crowded = limits.most_survived > 0 && most >= limits.most_survived;
        if is_crowded && !std::mem::replace(&mut self.said_crowded, true) {
            info!(
                reloads = most,
                at_most = ?limits.lifetime,
                "the next reload waits for connections of an old worker, which it would end (mworker-max-reloads)"
            );
        }
        self.said_crowded &= is_crowded;
        is_crowded.then(|| now + CROWDED_PAUSE)
    }

    /// What the file on disk holds, as far as it is known or can be read.
    fn file_text(&self) -> Option<Arc<str>> {
        self.filed.clone().or_else(|| self.config.output.read().map(Arc::from))
    }

    /// Puts the prepared text in place and makes HAProxy read it.
    async fn load(&mut self, text: Parsed, wanted: &Wanted, why: &Why) -> Result<Applied, ApplyError> {
        // The last text that HAProxy took; the file may hold one with which it could not be reached.
        let before = self.running.as_ref().map(Parsed::shared_text).or_else(|| self.file_text());
        self.config.output.promote().await?;
        self.filed = Some(text.shared_text());
        self.unfiled = None;
        self.save_state(&text).await;
        let former = self.look_at_worker().await;
        let begun = Instant::now();
        let reloaded = self.reload(former.as_ref()).await;
        if let Some(part) = &self.config.part {
            part.progress();
        }
        let error = reloaded.as_ref().err().map(ToString::to_string);
        self.history.reloaded(why.kind(), &why.to_string(), begun.elapsed(), error);
        if !matches!(&reloaded, Err(error) if error.says_nothing_of_the_file()) {
            self.reloads.push_back(Instant::now());
        }
        if let Err(error) = reloaded {
            // The same worker as before runs what it ran.
            let goes_on = error.keeps_the_old_worker() || error.is_an_end() && self.is_same_worker().await;
            if !goes_on {
                self.running = None;
                self.leaving.clear();
            }
            if error.says_nothing_of_the_file() {
                // It passed the check, and whoever starts HAProxy next finds it right.
                return Err(error.into());
            }
            if let Some(before) = before {
                self.config.output.prepare(Arc::clone(&before)).await?;
                self.config.output.promote().await?;
                self.filed = Some(before);
            }
            return Err(error.into());
        }
        self.limits = text.worker_limits();
        self.running = Some(text);
        self.ahead.clear();
        self.leaving.clear();
        (self.distrust, self.stale) = (None, None);
        self.settle_at = None;
        if let Some(difference) = self.take_over_new_worker(former).await {
            self.running = None;
            return Err(ApplyError::Elsewhere { output: self.config.output.path().to_owned(), difference });
        }
        self.say_applied(wanted, &format!("by a reload: {why}"));
        Ok(Applied::Reloaded)
    }

    /// Looks who answers, and when, so that it is seen after a reload whether that is another one. That it is another one already than
    /// the one that is known is [`Applier::ask_worker`]'s to find out.
    async fn look_at_worker(&mut self) -> Option<(Worker, Instant)> {
        let worker = self.config.runtime.as_ref()?.worker().await.ok()?;
        if self.worker.is_none() {
            self.saw(worker.clone()).await;
        }
        Some((worker, Instant::now()))
    }

    /// Makes HAProxy read its file, and waits for its new worker, also where the way to tell it does not let that be seen: what is
    /// asked and told next is for that one. For this it must be known who answered before.
    async fn reload(&self, former: Option<&(Worker, Instant)>) -> Result<(), ReloadError> {
        if self.config.reloader.reload().await? == Reloaded::Done {
            return Ok(());
        }
        let (Some(runtime), Some((before, then))) = (&self.config.runtime, former) else { return Ok(()) };
        let deadline = Instant::now() + RELOAD_LIMIT;
        loop {
            let now = runtime.worker().await;
            if now.as_ref().is_ok_and(|now| now.is_other_than(before, then.elapsed())) {
                return Ok(());
            }
            if Instant::now() > deadline {
                // Of one that does not answer nothing is known.
                return now.map_or(Ok(()), |_| Err(ReloadError::SameWorker));
            }
            tokio::time::sleep(ASK_WORKER_AGAIN).await;
        }
    }

    fn say_applied(&self, wanted: &Wanted, how: &str) {
        let services = wanted.services.len();
        let instances: usize = wanted.services.values().map(|service| service.instances.len()).sum();
        let left_out = self.composer.left_out().count();
        info!(services, instances, left_out, how, "configuration applied");
    }

    /// Takes over the worker that came of a reload of ours. Gives in what its servers are not those of the text at all: it has read
    /// something else. The one before it may still answer for a moment, and so may one that somebody else's reload gave meanwhile;
    /// where nobody was known before, nobody is judged.
    async fn take_over_new_worker(&mut self, former: Option<(Worker, Instant)>) -> Option<String> {
        let former = former.filter(|_| !matches!(self.config.reloader, Reloader::Nobody));
        let deadline = Instant::now() + FORMER_ANSWERS;
        loop {
            let difference = self.take_over_worker().await;
            let (Some((before, then)), Some((now, at))) = (&former, &self.worker) else { return None };
            let is_other = now.is_other_than(before, *at - *then);
            if is_other && difference.is_none() || Instant::now() > deadline {
                return difference.filter(|_| is_other);
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// Sets in a new worker what the model says of each server, whatever it took over from the old one. Gives in what its servers are
    /// not those of the text at all.
    async fn take_over_worker(&mut self) -> Option<String> {
        let (Some(runtime), Some(running)) = (self.config.runtime.clone(), self.running.clone()) else { return None };
        if let Ok(worker) = runtime.worker().await {
            self.saw(worker).await;
        }
        self.ask_worker_at = Instant::now() + ASK_WORKER_EVERY;
        match repair(&runtime, &running).await {
            Ok(difference) => {
                // What was not trusted since is another matter.
                if self.unrepaired.take().is_some_and(|error| self.distrust.as_ref() == Some(&error)) {
                    self.distrust = None;
                }
                difference
            }
            Err(error) => {
                self.distrust(&error);
                self.unrepaired = self.distrust.clone();
                None
            }
        }
    }

    /// Whether the worker that answers is the one that we know. If not, [`Applier::ask_worker`] is still to find that out.
    async fn is_same_worker(&self) -> bool {
        let (Some(runtime), Some((before, then))) = (&self.config.runtime, &self.worker) else { return false };
        runtime.worker().await.is_ok_and(|worker| !worker.is_other_than(before, then.elapsed()))
    }

    /// Remembers who answers. Says whether it is another process than before.
    async fn saw(&mut self, worker: Worker) -> bool {
        let now = Instant::now();
        let before = self.worker.replace((worker.clone(), now));
        self.answers = Some(true);
        if before.as_ref().is_none_or(|(before, then)| worker.is_other_than(before, now - *then)) {
            self.worker_started = Timestamp::now().checked_sub(worker.uptime).ok();
        }
        if before.as_ref().is_none_or(|(before, _)| before.version != worker.version) {
            self.runs_version(&worker).await;
        }
        before.is_some_and(|(before, then)| worker.is_other_than(&before, now - then))
    }

    /// Takes in the version that HAProxy runs: whether the program is of the same, so that its check says something.
    async fn runs_version(&mut self, worker: &Worker) {
        let Some(running) = worker.version() else { return };
        self.config.version = running.parse().ok();
        self.config.reloader.runs(self.config.version);
        let installed = self.config.installed.version().await.ok();
        let is_same = installed.as_ref().is_some_and(|installed| *installed == running);
        if !is_same && self.config.program.is_some() {
            warn!(
                program = installed,
                running, "files are not checked: the program is of another version than the running HAProxy"
            );
        } else if is_same && self.config.program.is_none() {
            info!(running, "files are checked: the program is of the version of the running HAProxy");
        }
        self.config.program = is_same.then(|| self.config.installed.clone());
        self.composer.check_with(self.config.program.clone());
    }

    /// Keeps the servers' health over the reload: a new worker would take dead ones for alive.
    async fn save_state(&self, wanted: &Parsed) {
        let haproxy = &self.composer.surroundings().haproxy;
        let (Some(runtime), Some(file)) = (&self.config.runtime, &haproxy.state_file) else { return };
        let file = Output::new(file);
        let state = match runtime.servers_state().await {
            Ok(state) => readback::state_to_keep(&state, wanted),
            // What was true at some time is no more than a guess; a file with a version only spares HAProxy's warning.
            Err(error) => {
                if !self.config.reloader.is_down() && self.worker.is_some() {
                    warn!(%error, "servers' health is not kept over the reload");
                }
                "1\n".to_owned()
            }
        };
        let kept = match file.prepare(state).await {
            Ok(_) => file.promote().await,
            Err(error) => Err(error),
        };
        if let Err(error) = kept {
            warn!(%error, "servers' state not kept over the reload");
            // That of an earlier reload is worse than none.
            let _absent_or_read_only = std::fs::remove_file(file.path());
        }
    }

    /// Tries the addresses that only the new text listens on. Where one is taken that a service asks for, that service
    /// is set aside and it says no: another text has to be made.
    fn try_binds(&mut self, text: &Parsed, wanted: &Wanted) -> Result<bool, ApplyError> {
        let binds = text.binds();
        let mut sections: BTreeMap<u16, BTreeSet<usize>> = BTreeMap::new();
        for bind in &binds {
            sections.entry(bind.address.port()).or_default().insert(bind.section);
        }
        let is_shared = |port: &u16| sections.get(port).is_some_and(|sections| sections.len() > 1);
        let sharing = self.included(wanted).find(|service| service.listen.as_ref().is_some_and(is_shared)).cloned();
        if let Some(service) = &sharing {
            let port = service.listen.unwrap_or_default();
            self.composer.set_aside(service, format!("port {port} is bound by another section too"));
            self.again_at = Some(Instant::now() + BIND_AGAIN);
            return Ok(false);
        }
        // What the HAProxy that runs has bound is its own: by its text, or where that is not known by the file. Where
        // that is not known either, or HAProxy may run on another host, nothing can be said.
        let own = match &self.running {
            _ if self.config.reloader.is_down() => Vec::new(),
            _ if !self.config.reloader.is_here() => return Ok(true),
            Some(running) => running.binds(),
            None => match self.file_text() {
                Some(text) => Parsed::new(text).binds(),
                None => return Ok(true),
            },
        };
        let known: Vec<u16> = own.iter().map(|bind| bind.address.port()).collect();
        // Only of our own child is it known that it has the addresses that we have.
        let is_child = matches!(self.config.reloader, Reloader::Supervised(_));
        for Bind { shown, address, transparent, .. } in
            binds.into_iter().filter(|bind| !known.contains(&bind.address.port()))
        {
            let Err(error) = TcpListener::bind(address) else { continue };
            match error.kind() {
                ErrorKind::AddrInUse => {}
                ErrorKind::AddrNotAvailable if is_child && !transparent => {}
                _ => continue,
            }
            let of_service = self.included(wanted).find(|service| service.listen == Some(address.port())).cloned();
            let Some(service) = of_service else { return Err(ApplyError::Bind { address: shown, error }) };
            self.composer.set_aside(&service, format!("{shown} cannot be listened on: {error}"));
            self.again_at = Some(Instant::now() + BIND_AGAIN);
            return Ok(false);
        }
        Ok(true)
    }

    /// The services that are not left out.
    fn included<'w>(&self, wanted: &'w Wanted) -> impl Iterator<Item = &'w Arc<Service>> {
        let left_out: BTreeSet<&ServiceName> = self.composer.left_out().map(|(name, _)| name).collect();
        wanted.services.values().filter(move |service| !left_out.contains(&service.name))
    }

    async fn remove_leaving(&mut self) {
        let Some(runtime) = self.config.runtime.clone() else { return self.leaving.clear() };
        let script = self.leaving.script(Instant::now());
        let replies = match runtime.run(&script).await {
            Ok(replies) => replies,
            Err(error) => {
                debug!(%error, "servers not removed yet");
                Vec::new()
            }
        };
        if self.leaving.tried(&script, &replies, Instant::now()) > 0 {
            // A list of HAProxy's servers that is being read may still have them.
            self.changes += 1;
        }
    }

    /// Begins to bring the file to what HAProxy runs.
    fn settle(&mut self) {
        if !self.ahead.is_empty() {
            // The text that holds those is about to come.
            self.settle_at = Some(Instant::now() + AFTER_STEPS);
            return;
        }
        self.settle_at = None;
        let Some(running) = &self.running else { return };
        let (program, output, runtime) =
            (self.config.program.clone(), self.config.output.clone(), self.config.runtime.clone());
        let (text, changes) = (running.shared_text(), self.changes);
        let filed = self.filed.clone();
        let is_filed = filed.as_deref() == Some(&*text);
        let now = Instant::now();
        let runtime = runtime.filter(|_| self.last_compared.is_none_or(|last| last + COMPARE_EVERY <= now));
        if runtime.is_some() {
            self.last_compared = Some(now);
        }
        self.settling = Some(tokio::task::spawn_local(async move {
            if !is_filed {
                replace(program.as_ref(), &output, filed.as_deref(), &text).await?;
            }
            let state = match runtime {
                Some(runtime) => runtime.servers_state().await.ok(),
                None => None,
            };
            Ok(Settled { changes, text, state })
        }));
    }

    /// Ends what writes the candidate in the background.
    fn stop_settling(&mut self) {
        if let Some(settling) = self.settling.take() {
            settling.abort();
            self.settle_at = Some(Instant::now());
            // It may have come as far as the file.
            self.filed = None;
        }
    }

    fn settled(&mut self, result: Result<Settled, ComposeError>) -> bool {
        self.last_settled = Some(Instant::now());
        let settled = match result {
            Ok(settled) => settled,
            Err(error) => {
                let again = self.settle_pause.pause();
                error!(%error, again_in = ?again, "file not written; HAProxy runs what it would hold");
                self.history.metrics.failed(error.kind());
                self.unfiled = Some(error.to_string());
                self.settle_at = Some(Instant::now() + again);
                // A text that HAProxy refuses has to be found out about, service by service; but for what is wrong beside it, which the
                // reload that it waits for is about.
                if matches!(error, ComposeError::Refused { .. }) && self.stale.is_none() {
                    self.distrust = Some(error.to_string());
                    self.running = None;
                    return true;
                }
                return false;
            }
        };
        self.settle_pause.reset();
        self.unfiled = None;
        let is_behind = self.running.as_ref().is_some_and(|running| running.text() != &*settled.text);
        self.filed = Some(settled.text);
        if is_behind || settled.changes != self.changes {
            self.settle_at = Some(Instant::now() + SETTLE_EVERY);
            return false;
        }
        if self.distrust.is_some() {
            return false;
        }
        // What was read while nothing changed must be what is wanted.
        let Some(state) = settled.state else {
            self.settle_at = self.config.runtime.as_ref().and(self.last_compared).map(|last| last + COMPARE_EVERY);
            return false;
        };
        let Some(running) = &self.running else { return false };
        match readback::difference(&state, running, |id| self.leaving.contains(id)) {
            None => false,
            Some(difference) => {
                warn!(difference, "HAProxy's servers are not what they were set to; it is reloaded");
                self.distrust = Some(difference);
                self.running = None;
                true
            }
        }
    }

    /// Somebody else may have restarted or reloaded HAProxy: then it runs what the file held.
    async fn ask_worker(&mut self) -> bool {
        self.ask_worker_at = Instant::now() + ASK_WORKER_EVERY;
        let Some(runtime) = &self.config.runtime else { return false };
        let Ok(now) = runtime.worker().await else {
            self.answers = Some(false);
            return false;
        };
        let pid = now.pid;
        if !self.saw(now).await {
            if self.unrepaired.is_some() {
                self.take_over_worker().await;
            }
            return false;
        }
        if matches!(self.config.reloader, Reloader::Supervised(_)) {
            warn!(worker = pid, "HAProxy has another worker");
        } else {
            warn!(worker = pid, "HAProxy was restarted or reloaded by somebody else");
        }
        self.history.note(What::HaproxyRestarted, "");
        self.stop_settling();
        self.running = self.config.output.read().map(Parsed::new);
        // It may have read another file than lies there now: the file is written, and its servers are compared.
        self.filed = None;
        self.limits = self.running.as_ref().and_then(Parsed::worker_limits);
        self.ahead.clear();
        self.leaving.clear();
        // What was not known of the worker before is over; what this one has is compared with the file.
        self.distrust = None;
        self.unrepaired = None;
        self.take_over_worker().await;
        true
    }
}

/// Sets the servers of a worker right that has read a text, and reads back whether they are. Gives in what it has other servers
/// than the text.
async fn repair(runtime: &Runtime, text: &Parsed) -> Result<Option<String>, RuntimeError> {
    let state = runtime.servers_state().await?;
    let Fresh { repairs, other } = Fresh::of(&state, text);
    if repairs.is_empty() {
        return Ok(other);
    }
    runtime.run(&repairs).await?;
    let left = Fresh::of(&runtime.servers_state().await?, text).repairs;
    if let Some(command) = left.first() {
        // Somebody else sets it too, such as an agent: nothing that a reload would end.
        warn!(wanted = command.text(), servers = left.len(), "servers are not what they were set to after the reload");
    } else {
        info!(commands = repairs.len(), "servers brought to their state after the reload");
    }
    Ok(other)
}

/// Whether what HAProxy was told of single servers is not what the whole text says of them, though the registry still does.
fn contradicts(told: &BTreeMap<ServerId, Option<String>>, plan: &Plan, wanted: &Wanted) -> bool {
    let is_registered = |id: &ServerId| {
        let service = wanted.services.iter().find(|(name, _)| name.as_str() == id.backend);
        service.is_some_and(|(_, service)| service.instances.iter().any(|instance| instance.server == id.server))
    };
    let undoes = |change: &Change| match (change, told.get(change.id())) {
        (Change::Remove { id }, Some(Some(_))) => is_registered(id),
        (Change::Weight { id, .. } | Change::Address { id, .. }, Some(Some(_))) => is_registered(id),
        (Change::Add { id, .. }, Some(None)) => !is_registered(id),
        _ => false,
    };
    match plan {
        Plan::Nothing => false,
        Plan::Runtime(changes) => changes.iter().any(undoes),
        Plan::Reload(Reason::Server { id, .. }) => told.contains_key(id),
        Plan::Reload(_) => false,
    }
}

/// What a server was added with, but for its weight; and the weight.
fn without_weight(arguments: &str) -> (Vec<&str>, u16) {
    let mut words = Vec::new();
    let mut weight = 1;
    let mut rest = arguments.split(' ');
    while let Some(word) = rest.next() {
        if word == "weight" {
            weight = rest.next().and_then(|weight| weight.parse().ok()).unwrap_or(weight);
        } else {
            words.push(word);
        }
    }
    (words, weight)
}

/// The commands that carry out a change.
fn commands(change: &Change) -> Vec<Command> {
    let name = change.id().to_string();
    match change {
        Change::Add { id, arguments, checked, dynamic_cookie } => {
            let mut commands = vec![Command::add(&name, arguments)];
            if *dynamic_cookie {
                commands.push(Command::enable_dynamic_cookie(&id.backend));
            }
            if *checked {
                commands.push(Command::enable_health(&name));
            }
            commands.push(Command::ready(&name));
            commands
        }
        Change::Remove { .. } => vec![Command::maint(&name)],
        Change::Weight { weight, .. } => vec![Command::weight(&name, *weight)],
        Change::Address { address, port, .. } => vec![Command::address(&name, address, *port)],
    }
}

/// What deletes the servers that are removed: behind all other commands, so that the last one gets no more traffic either while
/// the first one is deleted.
fn deletions(changes: &[Change]) -> impl Iterator<Item = Command> {
    let removed = changes.iter().filter(|change| matches!(change, Change::Remove { .. }));
    removed.map(|change| Command::delete(&change.id().to_string()))
}

async fn ended(settling: Option<&mut JoinHandle<Result<Settled, ComposeError>>>) -> Result<Settled, ComposeError> {
    match settling {
        Some(handle) => match handle.await {
            Ok(result) => result,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        },
        None => pending().await,
    }
}
