//! The loop that owns the catalog: updates of the registry and of the templates in, the newest state out.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use jiff::Timestamp;
use nix::errno::Errno;
use nix::unistd::{AccessFlags, access, getegid, geteuid};
use observe::admin::{Access, Address};
use observe::config::{News, Renewals};
use observe::systemd::{self, Part};
use registry::watch::Backoff;
use registry::{
    Cause, Event, InstanceAddress, InstanceKey, ServiceName, StoreKind, Update, watch_since as follow_registry,
};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::{debug, error, info, warn};

use crate::acknowledge::{Speaker, Told};
use crate::apply::{Applied, Applier, ApplyConfig, ApplyError};
use crate::catalog::{Catalog, Kept, Outcome, Refusal, Step};
use crate::checks::Checks;
use crate::compose::{Composer, Reading, Wanted};
use crate::config::{Flags, UsageError};
use crate::haproxy::{Layout, Program, Reloader, Runtime, Supervisor, SupervisorHandle, Workers};
use crate::identity::Identity;
use crate::metrics::{ChangeKind, Metrics};
use crate::model::{Service, Services};
use crate::options::UnreadOption;
use crate::output::Output;
use crate::plan::Version;
use crate::publish::{Publisher, Stage};
use crate::readback::Healths;
use crate::render::{TemplateError, Templates};
use crate::snapshot::{self, Snapshots};
use crate::suspect::{Health, Why};
use crate::view::{Connection, DiscovererView, RegistryView, View};
use crate::{
    Deps, admin, catalog_options, health, reloaded_version, reloader, running_version, surroundings, template_options,
    templates, until, version, watched,
};

/// The pause after the first failure that another try may mend.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The exit code where the HAProxy of `--supervise` does not stay up.
const GAVE_UP: u8 = 4;
/// So many keys that are refused at once are told one by one.
const TOLD_AT_ONCE: usize = 100;
/// The longest pause after a failure.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// The whole text is made this long after the last change that HAProxy was told of in short.
const QUIET: Duration = Duration::from_millis(50);
/// What takes longer is shown while it goes on.
const LONG: Duration = Duration::from_millis(200);
/// What is news, and nothing that HAProxy has to be told of, is shown at most this often: keys that are no instances may come
/// in thousands.
const NEWS_EVERY: Duration = Duration::from_millis(100);
/// How many updates may wait: a burst is worked off in one go, and the registry is not read ahead of that.
const WAITING_UPDATES: usize = 1024;

/// Follows the registry until it is told to stop, which each message is, with the reason for it.
///
/// # Errors
/// What is wrong with the flags, and a part that failed which nothing goes on without.
pub async fn run(flags: Flags, deps: Deps, mut stop: mpsc::Receiver<&'static str>) -> anyhow::Result<ExitCode> {
    let Deps { store, endpoints, routes, begin, unfollowed, mut docker_trouble, mut renewals, part } = deps;
    let access = flags.access()?;
    access.check(&flags.admin)?;
    if flags.runtime_socket().is_some() {
        std::fs::create_dir_all(&flags.state_dir)
            .with_context(|| format!("--state-dir {} cannot be made", flags.state_dir.display()))?;
    }
    if flags.supervise {
        is_writable(&flags.state_dir)?;
    }
    let program = Program::new(&flags.haproxy).within(part.clone());
    let mut tasks = JoinSet::new();
    let version = version(&program).await;
    let running = running_version(&flags).await;
    let metrics = Metrics::default();
    let (reloader, supervisor) =
        way_to_haproxy(&flags, &program, reloaded_version(&flags, running.as_deref(), version), &metrics, &mut tasks)?;
    let checker = checker(&program, &flags, running).await;
    let output = Output::new(&flags.output);
    let identity = Identity::take(&flags.state_dir)?;
    let workers = Workers::new(&reloader, flags.runtime_socket());
    let composer = Composer::new(checker.clone(), output.clone(), surroundings(&flags, &program).await);
    let config = ApplyConfig {
        version: version.filter(|_| checker.is_some()),
        program: checker,
        installed: program.clone(),
        output,
        reloader,
        runtime: flags.runtime_socket().map(Runtime::new),
        min_interval: flags.min_interval,
        drain_timeout: flags.drain_timeout,
        metrics: metrics.clone(),
        part: Some(part.clone()),
    };
    health::leave(&flags).await;
    let mut told_to_stop = None;
    if let Some(supervisor) = &supervisor {
        tokio::select! {
            () = start_with_last_file(&config, supervisor) => {}
            signal = next(&mut stop) => told_to_stop = Some(signal),
        }
    }
    let (updates, updated) = mpsc::channel(WAITING_UPDATES);
    let (told, hears) = watch::channel(Told::default());
    let (id, prefix) = (identity.id.clone(), flags.key.clone());
    let speaker = Speaker { store: store.clone(), prefix, id, workers };
    tasks.spawn(speaker.run(hears));
    let (loaded, loads) = mpsc::channel(1);
    let (touched, touches) = mpsc::channel(1);
    for path in flags.watch.clone() {
        tasks.spawn(watched::follow(path, touched.clone()));
    }
    let again = Again::default();
    tasks.spawn(templates::follow(flags.template.clone(), Arc::clone(&again.templates), loaded));
    info!(key = %flags.key, output = %flags.output.display(), id = %identity.id, "discoverer started");

    let mut since = None;
    let snapshots = Snapshots::new(flags.state_directory(), flags.key.clone());
    let discoverer = DiscovererView {
        id: identity.id.to_string(),
        version: env!("CARGO_PKG_VERSION"),
        started: Timestamp::now(),
        output: flags.output.display().to_string(),
        template: flags.template.display().to_string(),
        template_error: None,
        config_error: None,
        unread_options: Vec::new(),
    };
    let (publisher, views) = Publisher::new(discoverer, metrics.clone(), flags.admin != Address::Off);
    let admin_ended = start_admin(&flags, access, views, &metrics, routes, &mut tasks)?;
    let mut registry = Registry::new(&flags, store.kind(), endpoints, metrics.clone());
    if let Some((kept, written)) = snapshots.read() {
        info!(instances = kept.entries.len(), %written, "snapshot of the registry read");
        since = Some(kept.position.clone());
        registry.restore(kept, written);
    }
    let signs = metrics.clone();
    let (prefix, list_again) = (flags.key.clone(), Arc::clone(&again.registry));
    tasks.spawn_local(async move {
        begin.await;
        follow_registry(store, prefix, since, updates, &list_again, move |sign| signs.sign(sign)).await;
    });
    let mut daemon = Daemon {
        registry,
        publisher,
        metrics,
        services: Arc::default(),
        snapshots,
        checks: Checks::new(flags.runtime_socket().map(Runtime::new)),
        told,
        templates: None,
        applier: Applier::new(config, composer),
        pause: Backoff::new(FIRST_PAUSE, LONGEST_PAUSE),
        apply_at: None,
        news_at: None,
        untold_since: None,
        first_unproven: None,
        again,
        flags,
        part,
    };
    if let Some(signal) = told_to_stop {
        info!(signal, "told to stop");
        stopped(supervisor, daemon.flags.shutdown_grace, stop).await;
        return Ok(ExitCode::SUCCESS);
    }
    let give_up_after = daemon.flags.give_up_after;
    let mut code = ExitCode::SUCCESS;
    tokio::select! {
        () = daemon.run(updated, loads, touches, &mut docker_trouble, &mut renewals) => bail!("the discoverer ended before it was told to"),
        Some(ended) = tasks.join_next() => {
            ended.context("a part of the discoverer failed")?;
            bail!("a part of the discoverer ended before it was told to");
        }
        () = admin_ended => bail!("the admin server ended before it was told to"),
        signal = next(&mut stop) => info!(signal, "told to stop"),
        () = gave_up(supervisor.as_ref()) => {
            error!(?give_up_after, "HAProxy does not stay up; the discoverer gives up, with exit code {GAVE_UP}");
            code = ExitCode::from(GAVE_UP);
        }
    }
    if let Some(unfollowed) = unfollowed {
        // Who wanted to know may have gone.
        let _gone = unfollowed.send(());
    }
    systemd::stopping();
    // It may have been busy with what is not kept yet.
    if daemon.registry.is_to_be_kept() {
        daemon.snapshots.changed();
    }
    let kept = daemon.registry.kept();
    tokio::join!(stopped(supervisor, daemon.flags.shutdown_grace, stop), daemon.snapshots.finish(kept));
    Ok(code)
}

/// Ends when HAProxy, where it is ours, has failed to stay up for too long.
async fn gave_up(supervisor: Option<&SupervisorHandle>) {
    match supervisor {
        Some(supervisor) => supervisor.gave_up().await,
        None => std::future::pending().await,
    }
}

/// Starts the admin server on its own thread. This one says that it lives as often as it is asked.
fn start_admin(
    flags: &Flags,
    access: Access,
    views: watch::Receiver<Option<Arc<View>>>,
    metrics: &Metrics,
    routes: axum::Router,
    tasks: &mut JoinSet<()>,
) -> anyhow::Result<impl Future<Output = ()> + use<>> {
    let mut all = prometheus_client::registry::Registry::default();
    observe::metrics::add_process(&mut all, "discoverer", env!("CARGO_PKG_VERSION"));
    metrics.register(&mut all, views.clone());
    let (alive, mut asked) = mpsc::channel::<oneshot::Sender<()>>(1);
    tasks.spawn(async move {
        while let Some(asked) = asked.recv().await {
            // Who asked may have gone.
            let _ = asked.send(());
        }
        std::future::pending::<()>().await;
    });
    let runtime = flags.runtime_socket().map(Runtime::new);
    let sources = admin::Sources { views, runtime, metrics: Arc::new(all), alive, routes };
    admin::start(flags.admin.clone(), access, sources).context("the admin server has no thread")
}

/// Waits for the next wish to stop; for ever where nobody can have one any more.
async fn next(stop: &mut mpsc::Receiver<&'static str>) -> &'static str {
    match stop.recv().await {
        Some(reason) => reason,
        None => std::future::pending().await,
    }
}

/// HAProxy's sockets lie in the state directory: it would not start, and could not say why.
fn is_writable(directory: &Path) -> anyhow::Result<()> {
    let error = match access(directory, AccessFlags::W_OK | AccessFlags::X_OK) {
        Ok(()) => return Ok(()),
        Err(Errno::EACCES) => {
            let (us, group) = (geteuid(), getegid());
            let owner = std::fs::metadata(directory)
                .map_or_else(|_| "another user".to_owned(), |dir| format!("user {}", dir.uid()));
            format!(
                "it belongs to {owner}, and this is user {us}; give it over: chown -R {us}:{group} {}",
                directory.display()
            )
        }
        Err(Errno::EROFS) => "it is read-only; mount a volume there, or a tmpfs that is this user's".to_owned(),
        Err(error) => error.desc().to_owned(),
    };
    bail!("--state-dir {} cannot be written: {error}", directory.display())
}

/// Lets HAProxy finish, where it is ours.
async fn stopped(supervisor: Option<SupervisorHandle>, grace: Duration, mut stop: mpsc::Receiver<&'static str>) {
    if let Some(supervisor) = supervisor {
        tokio::select! {
            () = supervisor.stop(grace) => {}
            // Whoever asks twice does not want to wait.
            _ = next(&mut stop) => supervisor.stop(Duration::ZERO).await,
        }
    }
}

/// The way to HAProxy that the flags name; under `--supervise` its supervisor too, which is started.
fn way_to_haproxy(
    flags: &Flags,
    program: &Program,
    version: Option<Version>,
    metrics: &Metrics,
    tasks: &mut JoinSet<()>,
) -> anyhow::Result<(Reloader, Option<SupervisorHandle>)> {
    if flags.supervise {
        let layout = Layout {
            file: flags.output.clone(),
            master_socket: flags.state_directory().join("master.sock"),
            pid_file: flags.state_directory().join("haproxy.pid"),
            give_up_after: Some(flags.give_up_after).filter(|limit| !limit.is_zero()),
            deaths: metrics.deaths(),
        };
        let (supervisor, handle, orders) = Supervisor::new(program.clone(), layout);
        tasks.spawn(supervisor.run(orders));
        return Ok((Reloader::Supervised(handle.clone()), Some(handle)));
    }
    match reloader(flags, version) {
        Some(reloader) => Ok((reloader, None)),
        None => bail!(UsageError(
            "nothing says how HAProxy is reached; give --supervise, --reload-socket PATH, --reload-pidfile PATH, \
             --reload-container NAME, --reload-systemd UNIT or --reload-command CMD (--once and --dry-run need none)"
        )),
    }
}

/// The program to check files with: none where the running HAProxy is known to be of another version, since what one
/// takes the other may refuse.
async fn checker(program: &Program, flags: &Flags, running: Option<String>) -> Option<Program> {
    let own = program.version().await;
    if let Err(error) = &own
        && !flags.supervise
    {
        warn!(%error, "files are not checked before they are applied");
        return None;
    }
    if let (Ok(own), Some(running)) = (&own, running)
        && running != *own
    {
        warn!(
            program = own,
            running, "files are not checked: the program is of another version than the running HAProxy"
        );
        return None;
    }
    Some(program.clone())
}

/// After our own restart HAProxy serves the last state at once, also while etcd is away.
async fn start_with_last_file(config: &ApplyConfig, supervisor: &SupervisorHandle) {
    let (Some(program), Some(_)) = (&config.program, config.output.read()) else { return };
    if let Err(error) = program.check(config.output.path()).await {
        return warn!(%error, output = %config.output.path().display(), "the last file is not used");
    }
    if let Err(error) = supervisor.start().await {
        warn!(%error, "HAProxy did not start with the last file");
    }
}

/// What the loop owns.
struct Daemon {
    registry: Registry,
    publisher: Publisher,
    metrics: Metrics,
    /// The services as they were when they were last wanted, or shown.
    services: Arc<Services>,
    /// Who hears how far this has come.
    told: watch::Sender<Told>,
    snapshots: Snapshots,
    checks: Checks,
    templates: Option<Reading>,
    applier: Applier,
    pause: Backoff,
    /// When the whole text is to be made.
    apply_at: Option<Instant>,
    /// When what is news is to be shown.
    news_at: Option<Instant>,
    /// When the first change came that HAProxy has not been told of.
    untold_since: Option<std::time::Instant>,
    /// Since when HAProxy has been told of changes that no whole text has proved.
    first_unproven: Option<Instant>,
    again: Again,
    /// As they were read last; of most of them only what they were at the start counts.
    flags: Flags,
    part: Part,
}

/// How the others are told to read all again.
#[derive(Debug, Default)]
struct Again {
    templates: Arc<Notify>,
    registry: Arc<Notify>,
}

impl Daemon {
    /// Runs for ever. While HAProxy is being told something, updates wait, and go together afterwards.
    async fn run(
        &mut self,
        mut updated: mpsc::Receiver<Arrived>,
        mut loads: mpsc::Receiver<Result<Templates, TemplateError>>,
        mut touches: mpsc::Receiver<PathBuf>,
        docker_trouble: &mut watch::Receiver<Option<String>>,
        renewals: &mut Renewals<Flags>,
    ) {
        // Who looks at once sees that nothing is known yet.
        self.publish(self.registry.services(&self.services), false);
        loop {
            let forget_at = self.registry.catalog.next_forget().map(Instant::from_std);
            self.checks.wanted(self.registry.catalog.has_suspects());
            if self.registry.is_news {
                self.news_at.get_or_insert_with(|| Instant::now() + NEWS_EVERY);
            }
            if self.registry.is_to_be_kept() {
                self.snapshots.changed();
            }
            self.part.turn(|| self.status());
            tokio::select! {
                () = self.part.due() => {}
                update = updated.recv() => {
                    let Some(Arrived { at, update }) = update else { return };
                    let mut change = self.registry.update(update);
                    while let Ok(Arrived { update, .. }) = updated.try_recv() {
                        change.add(self.registry.update(update));
                    }
                    self.registry.say_suspects();
                    if !matches!(change, Change::Nothing) {
                        self.untold_since.get_or_insert(at);
                    }
                    self.changed(change).await;
                    self.tell();
                }
                load = loads.recv() => {
                    let Some(load) = load else { return };
                    if let Ok(templates) = &load {
                        info!("templates read");
                        self.compare_options(templates);
                    }
                    self.templates = Some(Rc::new(load));
                    self.apply().await;
                }
                // None come where nothing is watched.
                Some(path) = touches.recv() => {
                    info!(path = %path.display(), "watched files have changed");
                    self.applier.outdated(path);
                    self.apply().await;
                }
                news = renewals.next() => self.renew(news).await,
                // Nobody tells, where nobody registers in this process.
                Ok(()) = docker_trouble.changed() => {
                    self.registry.view.docker_error = docker_trouble.borrow_and_update().clone();
                    self.registry.is_news = true;
                }
                () = until(forget_at) => {
                    let change = self.registry.change(|catalog| catalog.forget(std::time::Instant::now()));
                    self.changed(change).await;
                }
                due = self.applier.wait() => {
                    if self.applier.handle(due).await {
                        self.apply().await;
                    } else {
                        self.publisher.publish_haproxy(&mut self.applier);
                    }
                }
                () = until(self.apply_at) => self.apply().await,
                () = until(self.news_at) => {
                    self.publish(self.registry.services(&self.services), false);
                }
                state = self.checks.wait() => {
                    let healths = state.as_deref().map(Healths::of).unwrap_or_default();
                    let applier = &self.applier;
                    let change = self.registry.judge(|service, address| applier.health(&healths, service, address));
                    self.changed(change).await;
                }
                due = self.snapshots.wait() => match due {
                    snapshot::Due::Write => self.snapshots.begin(self.registry.kept()),
                    snapshot::Due::Written(written) => self.snapshots.ended(written),
                },
            }
        }
    }

    /// Says of options that no template reads, when there are such that were not told yet.
    fn compare_options(&mut self, templates: &Templates) {
        let options = self.flags.option_map();
        let unread = templates.unread(options.keys().map(String::as_str));
        let told = self.publisher.has_read(unread.clone());
        for UnreadOption { name, meant } in unread.iter().filter(|option| !told.contains(option)) {
            let meant = meant.join(", ");
            warn!(option = %name, %meant, "no template reads this option (--set)");
        }
    }

    /// Takes in flags that were read again.
    async fn renew(&mut self, news: News<Flags>) {
        if news.is_asked {
            self.again.registry.notify_one();
            self.again.templates.notify_one();
        }
        self.publisher.configured(news.settings.as_ref().err().map(String::as_str));
        self.registry.is_news = true;
        let Ok(flags) = news.settings else { return };
        let options = template_options(&flags);
        if options != template_options(&self.flags) {
            self.again.templates.notify_one();
        }
        self.applier.renew(flags.min_interval, flags.drain_timeout, options);
        let of_catalog = catalog_options(&flags);
        if self.is_waiting() && flags.min_interval != self.flags.min_interval {
            self.apply_at = Some(Instant::now());
        }
        self.flags = flags;
        let change = self.registry.change(|catalog| catalog.set_options(of_catalog, std::time::Instant::now()));
        self.changed(change).await;
    }

    /// How it stands, in one line.
    fn status(&self) -> String {
        let RegistryView { store, connection, stale_since, .. } = &self.registry.view;
        let registry = match (connection, stale_since, self.registry.listed) {
            (Connection::Connected, None, true) => format!("follows {store}"),
            (Connection::Connecting, _, _) | (Connection::Connected, _, false) => match store {
                StoreKind::Etcd => "etcd has not answered yet".to_owned(),
                StoreKind::Memory => "waits until the containers were looked at".to_owned(),
            },
            (_, _, true) => format!("{store} does not answer, the last known state is served"),
            (_, _, false) => format!("{store} does not answer, and nothing is known of an earlier run"),
        };
        let services = self.registry.catalog.services();
        let instances: usize = services.values().map(|service| service.instances.len()).sum();
        let haproxy = self.applier.trouble().map(|error| format!("; HAProxy does not run what is wanted: {error}"));
        format!("{registry}: {} services, {instances} instances{}", services.len(), haproxy.unwrap_or_default())
    }

    /// Says how far it has come: to be called when HAProxy was told of what has changed. Nobody is woken where nothing of it is
    /// about what drains.
    fn tell(&self) {
        let draining = self.registry.catalog.draining();
        self.told.send_if_modified(|told| {
            // The first listing is news, whatever is in it.
            let is_news = told.draining != draining || told.index == 0;
            told.index = self.registry.view.index;
            told.draining = draining;
            is_news
        });
    }

    /// HAProxy was told of all that has changed.
    fn all_told(&mut self) {
        if let Some(since) = self.untold_since.take() {
            self.metrics.told(since);
        }
    }

    /// Shows an operator where everything stands.
    fn publish(&mut self, services: Arc<Services>, is_applied: bool) {
        (self.registry.is_news, self.news_at) = (false, None);
        self.services = Arc::clone(&services);
        let stage = Stage { is_listed: self.registry.listed, is_applied };
        let Registry { catalog, view, .. } = &self.registry;
        self.publisher.publish(services, catalog, view, &mut self.applier, stage);
    }

    /// Tells HAProxy of a change: in short where that is possible, and the whole follows right behind.
    async fn changed(&mut self, change: Change) {
        match change {
            Change::Nothing => {}
            // After a failure, or a reload that was too short ago, it is known when to try again. Servers need not wait.
            Change::Steps(steps) if self.is_waiting() => {
                self.registry.is_news = true;
                if steps.is_empty() {
                    // The whole text is waited for, and it has them.
                } else if self.applier.step(&steps).await {
                    self.applier.keep_steps();
                    self.publisher.stepped(&steps);
                    self.all_told();
                } else {
                    self.meanwhile().await;
                }
            }
            Change::More if self.is_waiting() => {
                self.registry.is_news = true;
                self.meanwhile().await;
            }
            Change::Steps(steps) => {
                if !steps.is_empty() && !self.applier.step(&steps).await {
                    return self.apply().await;
                }
                self.publisher.stepped(&steps);
                let now = Instant::now();
                let first = *self.first_unproven.get_or_insert(now);
                self.apply_at = Some((now + QUIET).min(first + self.flags.max_delay));
                self.all_told();
            }
            Change::More => self.apply().await,
        }
    }

    fn is_waiting(&self) -> bool {
        self.apply_at.is_some() && self.first_unproven.is_none()
    }

    /// The newest state; none before there is one.
    fn wanted(&self) -> Option<Wanted> {
        let templates = self.templates.clone().filter(|_| self.registry.listed)?;
        Some(Wanted { services: self.registry.services(&self.services), templates })
    }

    async fn meanwhile(&mut self) {
        if let Some(wanted) = self.wanted() {
            self.applier.meanwhile(&wanted).await;
        }
    }

    /// Brings HAProxy to the newest state.
    async fn apply(&mut self) {
        let Some(wanted) = self.wanted() else { return };
        self.apply_at = None;
        self.first_unproven = None;
        let result = self.apply_and_show(&wanted).await;
        let is_applied = matches!(&result, Ok(applied) if !matches!(applied, Applied::Later(_)));
        match result {
            Ok(Applied::Later(at)) => {
                self.apply_at = Some(at);
                self.applier.meanwhile(&wanted).await;
            }
            Ok(applied) => {
                debug!(?applied, "applied");
                self.pause.reset();
            }
            Err(error) => {
                let message = if matches!(error, ApplyError::Reload(_)) { "reload failed" } else { "not applied" };
                // Another state of the registry will not mend a disk or a port: wait, then take the newest. What is
                // wrong with the input may be right at the next change.
                let again = if error.may_pass() { self.pause.pause() } else { LONGEST_PAUSE };
                error!(%error, again_in = ?again, "{message}");
                self.applier.meanwhile(&wanted).await;
                let at = Instant::now() + again;
                self.apply_at = Some(at);
                // An input that is wrong is tried again as soon as it changes.
                self.first_unproven = (!error.may_pass()).then_some(at);
            }
        }
        if is_applied {
            self.all_told();
        }
        self.publish(wanted.services, is_applied);
    }

    /// Where it takes long, an operator sees that.
    async fn apply_and_show(&mut self, wanted: &Wanted) -> Result<Applied, ApplyError> {
        let begun = Timestamp::now();
        let mut applying = std::pin::pin!(self.applier.apply(wanted));
        match tokio::time::timeout(LONG, &mut applying).await {
            Ok(result) => result,
            Err(_) => {
                self.publisher.publish_applying(begun);
                applying.await
            }
        }
    }
}

/// An update of the registry, and when it came.
struct Arrived {
    at: std::time::Instant,
    update: Update,
}

impl From<Update> for Arrived {
    fn from(update: Update) -> Self {
        Self { at: std::time::Instant::now(), update }
    }
}

/// What has changed in the registry.
enum Change {
    Nothing,
    /// Instances came or went, or are suspect or no more, and nothing else.
    Steps(Vec<Step>),
    More,
}

impl Change {
    fn add(&mut self, other: Self) {
        *self = match (std::mem::replace(self, Self::Nothing), other) {
            (Self::Nothing, change) | (change, Self::Nothing) => change,
            (Self::Steps(mut first), Self::Steps(second)) => {
                first.extend(second);
                Self::Steps(first)
            }
            _ => Self::More,
        };
    }
}

/// What is known of the registry.
struct Registry {
    catalog: Catalog,
    /// Nothing is applied before the first whole list.
    listed: bool,
    /// What was known before our own restart is in the catalog.
    restored: bool,
    unreachable: bool,
    /// How it stands, for an operator.
    view: RegistryView,
    metrics: Metrics,
    /// The view, or what is refused, has changed since it was shown.
    is_news: bool,
    /// The catalog has changed since that was asked last.
    changed: bool,
    /// What is still to be said: the keys that expired, the first of them, and how many are back.
    suspected: (usize, Option<InstanceKey>),
    returned: usize,
}

impl Registry {
    fn new(flags: &Flags, store: StoreKind, endpoints: Vec<String>, metrics: Metrics) -> Self {
        let view = RegistryView {
            store,
            endpoints,
            prefix: flags.key.to_string(),
            only: flags.share().shown(),
            outside: 0,
            connection: Connection::Connecting,
            since: Timestamp::now(),
            error: None,
            docker_error: None,
            index: 0,
            last_change: None,
            stale_since: None,
        };
        Self {
            catalog: Catalog::new(catalog_options(flags)),
            view,
            metrics,
            is_news: true,
            listed: false,
            restored: false,
            unreachable: false,
            changed: false,
            suspected: (0, None),
            returned: 0,
        }
    }

    /// Takes in what was known before our own restart. It is used where the registry does not answer, and compared with the
    /// first listing where it does.
    fn restore(&mut self, kept: Kept, written: Timestamp) {
        self.restored = true;
        self.view.stale_since = Some(written);
        tell_refused(&self.catalog.restore(kept, std::time::Instant::now()).refused);
    }

    fn update(&mut self, update: Update) -> Change {
        let now = std::time::Instant::now();
        match update {
            Update::Listing(listing) => {
                if self.unreachable || !self.listed {
                    info!(keys = listing.entries.len(), "registry connected");
                }
                self.unreachable = false;
                self.stands(Connection::Connected, None);
                self.view.stale_since = None;
                self.view.index = listing.position.index();
                let is_first = !std::mem::replace(&mut self.listed, true);
                self.changed = true;
                let change = self.change(|catalog| catalog.list(listing, now));
                if !is_first && !matches!(change, Change::Nothing) {
                    self.metrics.changed(ChangeKind::Listing);
                }
                if is_first { Change::More } else { change }
            }
            Update::Event { event, index } => {
                self.view.index = index;
                self.view.last_change = Some(Timestamp::now());
                self.is_news = true;
                self.metrics.changed(kind(&event));
                self.catalog.reached(index);
                self.change(|catalog| catalog.apply(event, now))
            }
            Update::Unreachable { error } => {
                warn!(error, "registry unreachable; HAProxy keeps what it has");
                self.unreachable = true;
                self.stands(Connection::Unreachable, Some(error));
                if self.listed || self.restored {
                    self.view.stale_since = self.view.stale_since.or_else(|| Some(Timestamp::now()));
                }
                self.catalog.lost_registry();
                if self.listed || !self.restored {
                    return Change::Nothing;
                }
                info!("HAProxy gets what was last known");
                self.listed = true;
                Change::More
            }
        }
    }

    /// Takes in whether the registry answers.
    fn stands(&mut self, connection: Connection, error: Option<String>) {
        if self.view.connection != connection {
            (self.view.connection, self.view.since) = (connection, Timestamp::now());
        }
        self.view.error = error;
        self.is_news = true;
    }

    /// The services as they are, where they are what they were before not copied.
    fn services(&self, before: &Arc<Services>) -> Arc<Services> {
        let now = self.catalog.services();
        let is_same = |(one, other): ((_, &Arc<Service>), (_, &Arc<Service>))| Arc::ptr_eq(one.1, other.1);
        let are_same = now.len() == before.len() && now.iter().zip(before.iter()).all(is_same);
        if are_same { Arc::clone(before) } else { Arc::new(now.clone()) }
    }

    /// Judges the suspects.
    fn judge(&mut self, health: impl Fn(&ServiceName, InstanceAddress) -> Health) -> Change {
        let judged = self.catalog.judge(std::time::Instant::now(), health);
        let mut by_reason: BTreeMap<Why, (usize, &InstanceKey)> = BTreeMap::new();
        for (key, why) in &judged.removed {
            by_reason.entry(*why).or_insert((0, key)).0 += 1;
        }
        for (why, (instances, first)) in by_reason {
            info!(instances, %first, why = why.as_str(), "suspects removed");
        }
        self.change(|_| judged.outcome)
    }

    /// Says which instances are suspect now, and how many are no more: for many keys at once in one line.
    fn say_suspects(&mut self) {
        if let (instances, Some(first)) = std::mem::take(&mut self.suspected) {
            info!(instances, %first, "keys expired; their instances stay while HAProxy's check reaches them");
        }
        let instances = std::mem::take(&mut self.returned);
        if instances > 0 {
            info!(instances, "suspects are registered again");
        }
    }

    /// What is to be kept over a restart.
    fn kept(&self) -> Option<Kept> {
        self.catalog.kept(std::time::Instant::now())
    }

    /// Whether the catalog has changed since the last time.
    fn is_to_be_kept(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    fn change(&mut self, change: impl FnOnce(&mut Catalog) -> Outcome) -> Change {
        let outcome = change(&mut self.catalog);
        self.view.outside = self.catalog.outside();
        self.metrics.refused(outcome.refused.len());
        self.is_news |= outcome.has_fewer_refused || !outcome.refused.is_empty();
        tell_refused(&outcome.refused);
        self.changed |= outcome.changed;
        let (count, first) = &mut self.suspected;
        *count += outcome.suspected.len();
        *first = first.take().or_else(|| outcome.suspected.into_iter().next());
        self.returned += outcome.returned;
        match (outcome.changed, outcome.in_short) {
            (false, _) => Change::Nothing,
            (true, true) => Change::Steps(outcome.steps),
            (true, false) => Change::More,
        }
    }
}

/// What an event is, as metrics tell it.
fn kind(event: &Event) -> ChangeKind {
    match event {
        Event::Put(_) => ChangeKind::Put,
        Event::Removed { cause: Cause::Deleted, .. } => ChangeKind::Deleted,
        Event::Removed { cause: Cause::Expired, .. } => ChangeKind::Expired,
        Event::RemovedTree { .. } => ChangeKind::Directory,
    }
}
/// Tells which keys were refused; of a great many at once, such as a directory that is not one of services, the first.
fn tell_refused(refused: &[Refusal]) {
    for Refusal { key, reason } in refused.iter().take(TOLD_AT_ONCE) {
        warn!(key, reason, "key refused");
    }
    let more = refused.len().saturating_sub(TOLD_AT_ONCE);
    if more > 0 {
        warn!(more, "as many more keys refused at once; is --key the directory of services?");
    }
}
