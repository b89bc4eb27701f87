//! Brings HAProxy to what is wanted: over the runtime API where only servers differ, with a reload where it must be.
//!
//! A server that came or went is told to HAProxy first (`step`), the whole text follows and proves it (`apply`), and
//! the file follows right behind (`settle`): validated, written whole, and compared with what HAProxy says. Whatever
//! fails, HAProxy goes on with the last good file, and the failure is named.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::future::pending;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};
use tracing::{debug, error, info, warn};

use crate::catalog::Step;
use crate::compose::{ComposeError, Composer, Wanted, check};
use crate::haproxy::{Command, Program, ReloadError, Reloader, Runtime, RuntimeError, is_deleted};
use crate::output::{Output, OutputError};
use crate::plan::{self, Change, Parsed, Plan, Reason, ServerId, Version};
use crate::readback;

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
/// The first pause before a server that still has connections is tried again; it doubles up to the longest.
const FIRST_REMOVAL_PAUSE: Duration = Duration::from_millis(50);
/// The longest pause before a server that still has connections is tried again.
const LONGEST_REMOVAL_PAUSE: Duration = Duration::from_secs(1);
/// After this many contradictions in a row the short way is closed.
const MOST_CONTRADICTIONS: u32 = 2;
/// The pause where as many old workers live as may.
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
    /// A port that the new file listens on is taken: a reload would make HAProxy refuse connections for seconds.
    #[error("{address} is taken by another program ({error}); free it, or take it out of the template")]
    Bind {
        /// The address of the `bind` line.
        address: String,
        /// What the kernel said.
        error: std::io::Error,
    },
}

impl ApplyError {
    /// Whether HAProxy, or a port that is taken, said no to the file itself.
    fn judges_the_file(&self) -> bool {
        match self {
            Self::Bind { .. } => true,
            Self::Reload(error) => !error.says_nothing_of_the_file(),
            Self::Compose(_) | Self::Output(_) => false,
        }
    }

    /// Whether the same input may do better later.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Compose(error) => error.may_pass(),
            Self::Output(_) | Self::Reload(_) | Self::Bind { .. } => true,
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

/// What applying needs to know.
#[derive(Debug)]
pub struct ApplyConfig {
    /// HAProxy's program; none where its version is not the running one, so that its check would say nothing.
    pub program: Option<Program>,
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
    #[error("{0}")]
    Distrust(String),
    #[error("{0}")]
    Plan(Reason),
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
    leaving: BTreeMap<ServerId, Leaving>,
    /// Counts what was changed over the runtime API.
    changes: u64,
    /// The text that the file on disk holds.
    filed: Option<Arc<str>>,
    settling: Option<JoinHandle<Result<Settled, ComposeError>>>,
    settle_at: Option<Instant>,
    worker: Option<u32>,
    ask_worker_at: Instant,
    /// Why the runtime API cannot be used until the next reload.
    distrust: Option<String>,
    reloads: VecDeque<Instant>,
    again_at: Option<Instant>,
    last_settled: Option<Instant>,
    last_compared: Option<Instant>,
}

#[derive(Debug, Clone)]
struct Leaving {
    /// The words it was added with, or would be; none where they are not known.
    arguments: Option<String>,
    deadline: Instant,
    next: Instant,
    pause: Duration,
}

impl Applier {
    /// An applier that does not know yet what HAProxy runs, so that its first text is always loaded.
    pub fn new(config: ApplyConfig, composer: Composer) -> Self {
        Self {
            config,
            composer,
            running: None,
            ahead: BTreeMap::new(),
            contradictions: 0,
            leaving: BTreeMap::new(),
            changes: 0,
            filed: None,
            settling: None,
            settle_at: None,
            worker: None,
            ask_worker_at: Instant::now(),
            distrust: None,
            reloads: VecDeque::new(),
            again_at: None,
            last_settled: None,
            last_compared: None,
        }
    }

    /// The services that are left out, with the reason.
    pub fn composer(&self) -> &Composer {
        &self.composer
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
            let id = ServerId { backend: step.service.name.to_string(), server: step.instance.server.clone() };
            if self.ahead.contains_key(&id) || self.leaving.contains_key(&id) || changes.contains_key(&id) {
                return false;
            }
            let change = if step.came {
                let Some(line) = self.composer.server_line(&step.service, &step.instance) else { return false };
                let Ok(change) = plan::addition(running, &id.backend, &line, self.config.version) else { return false };
                told.insert(id.clone(), Some(line));
                change
            } else {
                told.insert(id.clone(), None);
                Change::Remove { id: id.clone() }
            };
            changes.insert(id, change);
        }
        let changes: Vec<Change> = changes.into_values().collect();
        let mut script: Vec<Command> = changes.iter().flat_map(commands).collect();
        script.extend(deletions(&changes));
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
        true
    }

    /// Brings HAProxy to one state.
    pub async fn apply(&mut self, wanted: &Wanted) -> Result<Applied, ApplyError> {
        if let Some(text) = self.composer.quick_text(wanted) {
            let (way, text) = self.way_to(text);
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
        let (way, text) = self.way_to(text);
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
                    self.load(text, wanted, &format!("by a reload: {error}")).await?
                }
            },
            Way::Reload(why) => {
                let loaded = match self.try_binds(text.text(), wanted) {
                    Ok(true) => self.load(text, wanted, &format!("by a reload: {why}")).await,
                    Ok(false) => return Box::pin(self.apply(wanted)).await,
                    Err(error) => Err(error),
                };
                match loaded {
                    Ok(applied) => applied,
                    // New templates with which HAProxy does not start: the last good ones go on.
                    Err(error) if error.judges_the_file() && self.composer.reject(&templates) => {
                        error!(%error, again_in = ?BIND_AGAIN, "template not loaded; the last good one goes on");
                        self.again_at = Some(Instant::now() + BIND_AGAIN);
                        return Box::pin(self.apply(wanted)).await;
                    }
                    Err(error) => return Err(error),
                }
            }
        };
        if !self.composer.is_good(&templates) {
            self.contradictions = 0;
        }
        if applied != Applied::Nothing && self.composer.took(&templates, wanted) {
            return Box::pin(self.apply(wanted)).await;
        }
        Ok(applied)
    }

    /// Waits for what has become due. Loses nothing when it is dropped.
    pub async fn wait(&mut self) -> Due {
        let removal_at = self.leaving.values().map(|leaving| leaving.next).min();
        let settle_at = self.settle_at.filter(|_| self.settling.is_none());
        let worker_at = self.config.runtime.as_ref().filter(|_| self.running.is_some()).map(|_| self.ask_worker_at);
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
                self.again_at = None;
                self.composer.try_rejected_again();
                let names: Vec<_> = self.composer.left_out().map(|(name, _)| name.clone()).collect();
                names.iter().for_each(|name| self.composer.take_back(name));
                true
            }
        }
    }

    /// The way from what HAProxy runs to a text, and that text, read.
    fn way_to(&mut self, text: impl AsRef<str> + Into<Arc<str>>) -> (Way, Parsed) {
        let told = std::mem::take(&mut self.ahead);
        if !told.is_empty() {
            self.running = self.running.take().map(|running| running.with_lines(&told));
        }
        // Where it is the text that is known already, it need not be read again.
        let known = self.running.clone().filter(|running| running.text() == text.as_ref());
        let wanted = known.unwrap_or_else(|| Parsed::new(text));
        (self.way_between(&told, &wanted), wanted)
    }

    fn way_between(&mut self, told: &BTreeMap<ServerId, Option<String>>, wanted: &Parsed) -> Way {
        let Some(running) = &self.running else {
            return Way::Reload(self.distrust.clone().map_or(Why::Unknown, Why::Distrust));
        };
        // What HAProxy was told last may have been done or not: the same text alone says nothing.
        if let Some(error) = &self.distrust {
            return Way::Reload(Why::Distrust(error.clone()));
        }
        if running.text() == wanted.text() {
            self.contradictions = 0;
            return Way::Nothing;
        }
        if self.config.runtime.is_none() {
            return Way::Reload(Why::NoRuntime);
        }
        let plan = plan::between(running, wanted, self.config.version);
        let contradicts = matches!(&plan, Plan::Reload(Reason::Server { id, .. }) if told.contains_key(id));
        if !told.is_empty() {
            self.contradictions = if contradicts { self.contradictions + 1 } else { 0 };
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
            let Some(leaving) = self.leaving.remove(id) else {
                script.extend(commands(change));
                continue;
            };
            // It is back before its last connection was done.
            let name = id.to_string();
            let (words, weight) = without_weight(arguments);
            if leaving.arguments.as_deref().is_some_and(|before| without_weight(before).0 == words) {
                script.extend([Command::weight(&name, weight), Command::ready(&name)]);
            } else {
                script.extend([Command::shutdown_sessions(&name), Command::delete(&name)]);
                script.extend(commands(change));
            }
        }
        script.extend(deletions(changes));
        let replies = runtime.run(&script).await?;
        self.leave(changes, &not_deleted(&script, &replies));
        self.changes += 1;
        Ok(())
    }

    /// Remembers the removed servers that HAProxy did not delete yet: each is in maintenance, and goes when its last
    /// connection has gone.
    fn leave(&mut self, changes: &[Change], not_deleted: &BTreeSet<&str>) {
        let now = Instant::now();
        for change in changes {
            let Change::Remove { id } = change else { continue };
            if !not_deleted.contains(id.to_string().as_str()) {
                continue;
            }
            let added_with = match self.running.as_ref().map(|running| self.words_of(running, id)) {
                Some(Some(Change::Add { arguments, .. })) => Some(arguments),
                _ => None,
            };
            let leaving = Leaving {
                arguments: added_with,
                deadline: now + self.config.drain_timeout,
                next: now + FIRST_REMOVAL_PAUSE,
                pause: FIRST_REMOVAL_PAUSE * 2,
            };
            self.leaving.insert(id.clone(), leaving);
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
            warn!(error, "runtime API not used until the next reload");
        }
        self.distrust = Some(error);
    }

    /// When the next reload may be; none where it may be now.
    async fn next_reload(&mut self) -> Option<Instant> {
        let now = Instant::now();
        let (lifetime, most) = self.running.as_ref().map_or((Duration::ZERO, usize::MAX), worker_limits);
        while self.reloads.front().is_some_and(|&at| at + lifetime.max(self.config.min_interval) <= now) {
            self.reloads.pop_front();
        }
        let after_last = self.reloads.back().map(|&at| at + self.config.min_interval).filter(|&at| at > now);
        // One old worker more, and HAProxy would end the oldest before its time.
        if after_last.is_none() && self.reloads.len() >= most {
            let old_workers = self.config.reloader.old_workers().await.unwrap_or(most);
            return (old_workers >= most).then(|| now + CROWDED_PAUSE);
        }
        after_last
    }

    /// What the file on disk holds, as far as it is known or can be read.
    fn file_text(&self) -> Option<Arc<str>> {
        self.filed.clone().or_else(|| self.config.output.read().map(Arc::from))
    }

    /// Puts the prepared text in place and makes HAProxy read it.
    async fn load(&mut self, text: Parsed, wanted: &Wanted, how: &str) -> Result<Applied, ApplyError> {
        let before = self.file_text();
        self.config.output.promote().await?;
        self.filed = Some(text.shared_text());
        self.save_state(&text).await;
        self.reloads.push_back(Instant::now());
        if let Err(error) = self.config.reloader.reload().await {
            if error.says_nothing_of_the_file() {
                // It passed the check, and whoever starts HAProxy next finds it right.
                self.running = None;
                return Err(error.into());
            }
            if !error.keeps_the_old_worker() {
                self.running = None;
            }
            if let Some(before) = before {
                self.config.output.prepare(Arc::clone(&before)).await?;
                self.config.output.promote().await?;
                self.filed = Some(before);
            }
            return Err(error.into());
        }
        self.say_applied(wanted, how);
        self.running = Some(text);
        self.ahead.clear();
        self.leaving.clear();
        self.distrust = None;
        self.settle_at = None;
        self.take_over_worker().await;
        Ok(Applied::Reloaded)
    }

    fn say_applied(&self, wanted: &Wanted, how: &str) {
        let services = wanted.services.len();
        let instances: usize = wanted.services.values().map(|service| service.instances.len()).sum();
        let left_out = self.composer.left_out().count();
        info!(services, instances, left_out, how, "configuration applied");
    }

    /// Sets in a new worker what the model says of each server, whatever it took over from the old one.
    async fn take_over_worker(&mut self) {
        let (Some(runtime), Some(running)) = (&self.config.runtime, &self.running) else { return };
        self.worker = runtime.worker().await.ok();
        self.ask_worker_at = Instant::now() + ASK_WORKER_EVERY;
        let repair = match runtime.servers_state(None).await {
            Ok(state) => readback::repairs(&state, running),
            Err(error) => return self.distrust(&error),
        };
        if repair.is_empty() {
            return;
        }
        let count = repair.len();
        match runtime.run(&repair).await {
            Ok(_) => info!(count, "servers brought to their state after the reload"),
            Err(error) => self.distrust(&error),
        }
    }

    /// Keeps the servers' health over the reload: a new worker would take dead ones for alive.
    async fn save_state(&self, wanted: &Parsed) {
        let haproxy = &self.composer.surroundings().haproxy;
        let (Some(runtime), Some(file)) = (&self.config.runtime, &haproxy.state_file) else { return };
        let file = Output::new(file);
        let state = match runtime.servers_state(None).await {
            Ok(state) => readback::state_to_keep(&state, wanted),
            // Before HAProxy's first start there is nothing to keep; a file with a version only spares its warning.
            Err(_) if file.read().is_none() => "1\n".to_owned(),
            Err(_) => return,
        };
        let kept = match file.prepare(state).await {
            Ok(_) => file.promote().await,
            Err(error) => Err(error),
        };
        if let Err(error) = kept {
            warn!(%error, "servers' state not kept over the reload");
        }
    }

    /// Tries the addresses that only the new text listens on. Where one is taken that a service asks for, that service
    /// is set aside and it says no: another text has to be made.
    fn try_binds(&mut self, text: &str, wanted: &Wanted) -> Result<bool, ApplyError> {
        let mut ports = BTreeMap::new();
        for (_, address) in binds(text) {
            *ports.entry(address.port()).or_insert(0) += 1;
        }
        let is_shared = |port: &u16| ports.get(port).is_some_and(|&count| count > 1);
        let sharing = wanted.services.values().find(|service| service.listen.as_ref().is_some_and(is_shared));
        if let Some(service) = sharing {
            let port = service.listen.unwrap_or_default();
            self.composer.set_aside(service, format!("port {port} stands on another bind line too"));
            return Ok(false);
        }
        // What the HAProxy that runs has bound is its own: by its text, or where that is not known by the file. Where
        // that is not known either, or HAProxy may run on another host, nothing can be said.
        let own = match &self.running {
            _ if self.config.reloader.is_down() => Arc::default(),
            _ if !self.config.reloader.is_here() => return Ok(true),
            Some(running) => running.shared_text(),
            None => match self.file_text() {
                Some(text) => text,
                None => return Ok(true),
            },
        };
        let known: Vec<u16> = binds(&own).map(|(_, address)| address.port()).collect();
        for (shown, address) in binds(text).filter(|(_, address)| !known.contains(&address.port())) {
            let Err(error) = TcpListener::bind(address) else { continue };
            if error.kind() != std::io::ErrorKind::AddrInUse {
                continue;
            }
            let of_service = wanted.services.values().find(|service| service.listen == Some(address.port()));
            let Some(service) = of_service else { return Err(ApplyError::Bind { address: shown, error }) };
            self.composer.set_aside(service, format!("port {} is taken by another program", address.port()));
            self.again_at = Some(Instant::now() + BIND_AGAIN);
            return Ok(false);
        }
        Ok(true)
    }

    async fn remove_leaving(&mut self) {
        let Some(runtime) = self.config.runtime.clone() else { return self.leaving.clear() };
        let now = Instant::now();
        let due: Vec<ServerId> =
            self.leaving.iter().filter(|(_, leaving)| leaving.next <= now).map(|(id, _)| id.clone()).collect();
        let mut commands = Vec::new();
        for id in &due {
            let name = id.to_string();
            if self.leaving.get(id).is_some_and(|leaving| leaving.deadline <= now) {
                commands.push(Command::shutdown_sessions(&name));
            }
            commands.push(Command::delete(&name));
        }
        let replies = match runtime.run(&commands).await {
            Ok(replies) => replies,
            Err(error) => {
                debug!(%error, "servers not removed yet");
                Vec::new()
            }
        };
        let not_deleted = not_deleted(&commands, &replies);
        for id in due {
            if !not_deleted.contains(id.to_string().as_str()) {
                self.leaving.remove(&id);
            } else if let Some(leaving) = self.leaving.get_mut(&id) {
                leaving.next = Instant::now() + leaving.pause;
                leaving.pause = (leaving.pause * 2).min(LONGEST_REMOVAL_PAUSE);
            }
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
        let is_filed = self.filed.as_deref() == Some(&*text);
        let now = Instant::now();
        let runtime = runtime.filter(|_| self.last_compared.is_none_or(|last| last + COMPARE_EVERY <= now));
        if runtime.is_some() {
            self.last_compared = Some(now);
        }
        self.settling = Some(tokio::task::spawn_local(async move {
            if !is_filed {
                check(program.as_ref(), &output, &text).await?;
                output.promote().await?;
            }
            let state = match runtime {
                Some(runtime) => runtime.servers_state(None).await.ok(),
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
        }
    }

    fn settled(&mut self, result: Result<Settled, ComposeError>) -> bool {
        self.last_settled = Some(Instant::now());
        let settled = match result {
            Ok(settled) => settled,
            Err(error) => {
                error!(%error, "file not written; HAProxy runs what it would hold");
                self.settle_at = Some(Instant::now() + SETTLE_EVERY);
                // A text that HAProxy refuses has to be found out about, service by service.
                if matches!(error, ComposeError::Refused { .. }) {
                    self.distrust = Some(error.to_string());
                    self.running = None;
                    return true;
                }
                return false;
            }
        };
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
        match readback::difference(&state, running, |id| self.leaving.contains_key(id)) {
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
        let Ok(now) = runtime.worker().await else { return false };
        let before = self.worker.replace(now);
        if before.is_none_or(|before| before == now) {
            return false;
        }
        warn!(worker = now, "HAProxy was restarted or reloaded by somebody else");
        self.stop_settling();
        self.running = self.config.output.read().map(Parsed::new);
        // It may have read another file than lies there now: the file is written, and its servers are compared.
        self.filed = None;
        self.ahead.clear();
        self.leaving.clear();
        self.take_over_worker().await;
        true
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

/// The servers that were to be deleted and are still there, or may be, where a reply is missing.
fn not_deleted<'c>(script: &'c [Command], replies: &[String]) -> BTreeSet<&'c str> {
    let is_there = |at: usize| replies.get(at).is_none_or(|reply| !is_deleted(reply));
    let asked = script.iter().enumerate().filter_map(|(at, command)| Some((at, command.server_to_delete()?)));
    asked.filter(|&(at, _)| is_there(at)).map(|(_, server)| server).collect()
}

/// How long an old worker may live, and how many may live, by a text's `hard-stop-after` and `mworker-max-reloads`.
fn worker_limits(text: &Parsed) -> (Duration, usize) {
    let value = |name: &str| {
        let lines = text.text().lines().map(str::trim_start);
        lines.filter_map(|line| line.strip_prefix(name)?.split_whitespace().next()).next()
    };
    let lifetime = value("hard-stop-after ").and_then(|value| humantime::parse_duration(value).ok());
    let most = value("mworker-max-reloads ").and_then(|value| value.parse().ok());
    (lifetime.unwrap_or_default(), most.unwrap_or(usize::MAX))
}

/// The TCP addresses that a text binds: as written, and as an address to try.
fn binds(text: &str) -> impl Iterator<Item = (String, std::net::SocketAddr)> {
    let lines = text.lines().filter_map(|line| line.trim_start().strip_prefix("bind "));
    let addresses = lines.flat_map(|line| line.split_whitespace().next().unwrap_or_default().split(','));
    addresses.filter_map(|shown| {
        let shown = shown.trim();
        let (host, port) = shown.rsplit_once(':')?;
        let host = host.trim_start_matches("ipv4@").trim_start_matches("ipv6@").trim_matches(['[', ']']);
        let host = if matches!(host, "" | "*") { "0.0.0.0" } else { host };
        Some((shown.to_owned(), std::net::SocketAddr::new(host.parse().ok()?, port.parse().ok()?)))
    })
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => pending().await,
    }
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
