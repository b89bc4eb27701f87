//! The agent: one task that owns everything known of this host's containers, and one loop in which Docker, the
//! containers' answers and etcd go on side by side, so that none of them waits for another.
//!
//! What to do is decided in `containers`, `service`, `health` and `reconcile`; here it is done.

mod container;
mod containers;
#[cfg(test)]
mod tests;
mod work;

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use observe::config::{self, Renewals};
use observe::systemd::{self, Part};
use registry::watch::Backoff;
use registry::{InstanceKey, Record, Store, StoreError, StoreKind};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::{error, info, warn};

use crate::Ending;
use crate::config::{AdminError, AgentConfig, AgentFlags, ScopeFlags};
use crate::docker::events::{News, WELL_AFTER, follow};
use crate::docker::{self, Client, Docker, DockerError};
use crate::host::{self, IdError, ResolveError};
use crate::keeper::{Claim, Told, ended, until};
use crate::keepers::{self, Keepers, Stores};
use crate::metrics::{Daemon, Metrics, Overview};
use crate::operator::{Desk, Operator};
use crate::own::{Candidate, candidates};
use crate::probe::{ProbeError, Prober};
use crate::service::{DefaultAddress, Scope};
use containers::Containers;
use work::{Listed, Work};

/// How often all containers are listed and compared with what the events told.
const LIST_EVERY: Duration = Duration::from_secs(60);
/// The same where it is not known yet whether this host's address is a container's.
const LIST_SOON: Duration = Duration::from_secs(1);
/// How often the host's address is read again.
const HOST_EVERY: Duration = Duration::from_secs(30);
/// The pauses while Docker or etcd cannot be asked for a list, or the resolver for a name.
const PAUSES: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));
/// How long the keys of an earlier run are renewed while Docker does not say which of their containers still run. A
/// restart of Docker takes less; what has died meanwhile is routed to for as long.
const LEFT_LIMIT: Duration = Duration::from_secs(120);
/// How long after the first list of all containers is waited until each has said whether it answers, for who wants to begin
/// with a view of all: a check that gets no answer has had its time, and was asked again.
const WHOLE_LIMIT: Duration = Duration::from_secs(10);
/// How often is looked whether the stores have it all.
const SETTLED_EVERY: Duration = Duration::from_millis(20);
/// How many inspections go on at once: enough for a host that starts, few enough for Docker to do other things.
const INSPECTIONS_AT_ONCE: usize = 16;
/// How many questions go on at once. One that gets no answer takes its whole limit, so that it must be many.
const QUESTIONS_AT_ONCE: usize = 256;
/// How many events may wait. While they do, Docker keeps those after them.
const EVENTS: usize = 64;

/// Why the agent cannot begin, or go on.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// No client for etcd.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// No client for the applications.
    #[error(transparent)]
    Probe(#[from] ProbeError),
    /// No id.
    #[error(transparent)]
    Id(#[from] IdError),
    /// Nothing can be offered to an operator so.
    #[error(transparent)]
    Admin(#[from] AdminError),
    /// A task that should go on for ever has ended.
    #[error("the task that follows Docker's events has ended: this is a fault of the registrar, please report it")]
    Ended,
}

/// What the agent has from outside.
#[derive(Debug)]
pub struct Deps {
    /// Where the keys are kept.
    pub stores: Stores,
    /// Where an operator asks.
    pub operator: Operator,
    /// Whoever reads the keys runs beside the agent, also where that is in a container of its own: the host is where its
    /// gateway is.
    pub is_read_here: bool,
    /// To be told once, when all containers of the host were looked at, each has said whether it answers, and what follows from
    /// that is in the stores.
    pub whole: Option<oneshot::Sender<()>>,
    /// To be told why Docker does not say what happens, or which containers there are, as long as that is so.
    pub docker_trouble: watch::Sender<Option<String>>,
    /// Who tells of flags that were read again.
    pub renewals: Renewals<AgentFlags>,
    /// What systemd hears of the agent.
    pub part: Part,
}

impl Deps {
    /// As the flags say.
    ///
    /// # Errors
    /// No client can be made from them, or nothing can be offered to an operator.
    pub fn new(config: &AgentConfig) -> Result<Self, AgentError> {
        let access = config.operator.access(&config.admin)?;
        let operator = Operator::At(config.admin.clone(), access);
        let stores = Stores::new(&config.etcd)?;
        Ok(Self {
            stores,
            operator,
            is_read_here: false,
            whole: None,
            docker_trouble: watch::Sender::default(),
            renewals: Renewals::default(),
            part: Part::begin(),
        })
    }
}

/// Runs the agent until `shutdown` is done; then removes its keys, unless it is to keep them or has a successor, and lingers.
///
/// Docker and etcd may each be away at any time: it waits for them, and keeps what is registered.
///
/// # Errors
/// Only for what cannot get better by waiting: no client can be made from the configuration, or there is no id.
pub async fn run(
    config: AgentFlags,
    deps: Deps,
    shutdown: impl Future<Output: Into<Ending>>,
) -> Result<(), AgentError> {
    let id = host::id(&config.scope)?;
    let metrics = Metrics::default();
    let (mut renewals, part) = (deps.renewals, deps.part);
    let keeper = Keepers::new(deps.stores, &config.scope.key, &Claim::Own(id.clone()), config.ttl, &metrics);
    let prober = Arc::new(Prober::new()?.counting(metrics.clone()));
    info!(key = %config.scope.key, agent = id, version = env!("CARGO_PKG_VERSION"), "the agent begins");

    let (sender, mut news) = mpsc::channel(EVENTS);
    // A container that was told to stop while no agent ran is still to be drained.
    let follower = follow(Docker::new(config.scope.docker.clone()), config.kill_grace, sender);
    let mut desk = Desk::open(deps.operator, metrics.clone(), Daemon::Agent, config.ttl);
    let mut agent = Agent::new(config, id, keeper, prober, metrics);
    (agent.is_read_here, agent.whole) = (deps.is_read_here, deps.whole);
    agent.docker_trouble = deps.docker_trouble;
    agent.work.spawn(async move {
        follower.await;
        Work::EventsEnded
    });
    let mut shutdown = pin!(shutdown);
    let ending = loop {
        agent.begin();
        part.turn(|| agent.overview(true).to_string());
        let due = agent.due();
        tokio::select! {
            biased;
            ending = &mut shutdown => break ending.into(),
            question = desk.asked() => {
                let overview = agent.overview(question.with_counts);
                question.answer(overview);
            }
            news = renewals.next() => agent.renew(news),
            Some(news) = news.recv() => agent.news(news),
            told = agent.keeper.next() => agent.told(&told),
            Some(done) = agent.work.join_next() => if let Some(work) = ended(done) {
                agent.done(work)?;
            },
            () = until(due) => {}
            () = part.due() => {}
        }
    };
    systemd::stopping();
    agent.end(ending).await;
    Ok(())
}

/// Something that is done now and then, and told of once when it fails.
#[derive(Debug)]
struct Chore {
    /// When it is to be done next; never, or not while it is being done, where there is none.
    at: Option<Instant>,
    pause: Backoff,
    trouble: Option<String>,
}

impl Chore {
    fn new(at: Option<Instant>) -> Self {
        Self { at, pause: Backoff::new(PAUSES.0, PAUSES.1), trouble: None }
    }

    fn is_due(&mut self, now: Instant) -> bool {
        self.at.take_if(|at| *at <= now).is_some()
    }

    fn done(&mut self, every: Option<Duration>) {
        self.pause.reset();
        self.trouble = None;
        // Shortened by chance, so that many agents do not fall into step.
        self.at = every.map(|every| Instant::now() + every.mul_f64(rand::random_range(0.8..=1.0)));
    }

    /// Whether that is news.
    fn failed(&mut self, trouble: &str) -> bool {
        self.at = Some(Instant::now() + self.pause.pause());
        self.trouble.replace(trouble.to_owned()).as_deref() != Some(trouble)
    }
}

/// All that is known.
struct Agent {
    config: AgentFlags,
    id: String,
    keeper: Keepers,
    prober: Arc<Prober>,
    metrics: Metrics,
    containers: Containers,
    /// All that goes on, but for the writes to etcd.
    work: JoinSet<Work>,
    inspecting: usize,
    asking: usize,
    /// Docker, once it has answered.
    client: Option<Client>,
    /// What is wrong with its events, told once. That of its list is with the list: one may be there without the other.
    events_trouble: Option<String>,
    /// Who hears of both.
    docker_trouble: watch::Sender<Option<String>>,
    /// Why no command may be run in a container, told once.
    exec_trouble: Option<DockerError>,
    /// When its stream of events, just opened, has lived long enough to count as there.
    docker_well_at: Option<Instant>,
    /// By what containers are judged, once that is known.
    scope: Option<Arc<Scope>>,
    /// The address of the default route is that of a container.
    is_in_container: bool,
    /// The addresses of the containers that run, as they were listed last.
    of_containers: BTreeSet<IpAddr>,
    /// The ids that may be this container's, where this is one.
    own: Arc<[Candidate]>,
    host: Chore,
    /// The host is to be read once more when that is done which goes on: it was begun with other settings.
    host_again: bool,
    list: Chore,
    is_listed: bool,
    /// Looking for the keys that an earlier run has left.
    left: Chore,
    /// The stores of etcd that have not answered that yet, by number: one of two APIs may be away for ever.
    unread: BTreeSet<usize>,
    /// Those that have never answered.
    unasked: BTreeSet<usize>,
    is_left_asked: bool,
    /// When these are given up, unless Docker has said whose they are.
    give_up_left_at: Instant,
    /// They were: some may be there still.
    has_given_up: bool,
    is_read_here: bool,
    /// Who is to be told that all is known.
    whole: Option<oneshot::Sender<()>>,
    /// When it is told all the same.
    whole_at: Option<Instant>,
    /// When to look again whether the stores have all of it: the keeper says nothing of a key that was written.
    settled_at: Option<Instant>,
}

impl Agent {
    fn new(config: AgentFlags, id: String, keeper: Keepers, prober: Arc<Prober>, metrics: Metrics) -> Self {
        let (now, stores) = (Instant::now(), keeper.stores().len());
        Self {
            unread: (0..stores).collect(),
            containers: Containers::new(config.kill_grace),
            config,
            id,
            keeper,
            prober,
            metrics,
            unasked: (0..stores).collect(),
            work: JoinSet::new(),
            inspecting: 0,
            asking: 0,
            client: None,
            events_trouble: None,
            docker_trouble: watch::Sender::default(),
            exec_trouble: None,
            docker_well_at: None,
            scope: None,
            is_in_container: false,
            of_containers: BTreeSet::new(),
            own: own_ids(),
            host: Chore::new(Some(now)),
            host_again: false,
            list: Chore::new(None),
            is_listed: false,
            left: Chore::new(Some(now)),
            is_left_asked: false,
            give_up_left_at: now + LEFT_LIMIT,
            has_given_up: false,
            is_read_here: false,
            whole: None,
            whole_at: None,
            settled_at: None,
        }
    }

    /// What an operator is told of it.
    fn overview(&self, with_counts: bool) -> Overview {
        let is_unasked = match self.keeper.kind() {
            StoreKind::Etcd => "etcd has not answered yet",
            StoreKind::Memory => "what was registered before is not known yet",
        };
        let waits = [
            (self.is_listed, "Docker has not listed its containers yet"),
            (self.unasked.is_empty(), is_unasked),
            (self.scope.is_some(), "the host's address is not known yet"),
        ];
        Overview {
            containers: if with_counts { self.containers.count() } else { Vec::new() },
            store: self.keeper.kind(),
            etcd: self.keeper.overview(with_counts),
            missing: waits.into_iter().filter_map(|(is_done, what)| (!is_done).then_some(what)).collect(),
        }
    }

    /// Begins all that is to be done now.
    fn begin(&mut self) {
        let now = Instant::now();
        self.containers.pass(now.into_std());
        if self.docker_well_at.is_some_and(|at| at <= now) {
            self.docker_is_well();
        }
        if self.host.is_due(now) {
            let (flags, id) = (self.config.scope.clone(), self.id.clone());
            let former = self.scope.as_ref().and_then(|scope| scope.ip);
            self.work.spawn(async move { Work::Host(host::scope(&flags, id, former).await) });
        }
        if !self.is_listed && self.give_up_left_at <= now {
            self.give_up_left();
        }
        if self.left.is_due(now) {
            let stores =
                self.keeper.stores().into_iter().enumerate().filter(|(number, _)| self.unread.contains(number));
            let (stores, prefix) = (stores.collect(), self.config.scope.key.clone());
            self.work.spawn(async move { Work::Left(keepers::list(stores, prefix).await) });
        }
        if let Some(client) = &self.client
            && self.list.is_due(now)
        {
            self.work.spawn(work::list(client.clone(), now, Arc::clone(&self.own)));
        }
        // Not before it is known what an earlier run has left, so that this goes on without a gap.
        if let (Some(client), Some(scope), true, true) = (&self.client, &self.scope, self.is_listed, self.is_left_asked)
        {
            for inspection in self.containers.inspections(INSPECTIONS_AT_ONCE - self.inspecting) {
                self.inspecting += 1;
                self.work.spawn(work::inspect(client.clone(), Arc::clone(scope), inspection));
            }
        }
        for question in self.containers.questions(now.into_std(), QUESTIONS_AT_ONCE - self.asking, rand::random) {
            self.asking += 1;
            self.work.spawn(work::ask(Arc::clone(&self.prober), self.client.clone(), question));
        }
        for (key, wish) in self.containers.wishes() {
            self.keeper.want(&key, wish.as_ref());
        }
        self.tell_whole(now);
    }

    /// Tells who waits for it that all is known.
    fn tell_whole(&mut self, now: Instant) {
        if self.whole.is_none() || !self.is_listed || !self.is_left_asked || self.scope.is_none() {
            return;
        }
        let at = *self.whole_at.get_or_insert(now + WHOLE_LIMIT);
        let is_known = self.containers.is_whole();
        let is_whole = is_known && self.keeper.is_settled();
        self.settled_at = (is_known && !is_whole).then_some(now + SETTLED_EVERY);
        if (is_whole || at <= now)
            && let Some(whole) = self.whole.take()
        {
            info!(is_whole, "all containers were looked at");
            (self.whole_at, self.settled_at) = (None, None);
            // Who waited may have gone on.
            let _gone = whole.send(());
        }
    }

    /// When there is something to begin by the passing of time alone.
    fn due(&self) -> Option<Instant> {
        let may_ask = self.asking < QUESTIONS_AT_ONCE;
        let containers = self.containers.due(may_ask).map(Instant::from_std);
        let list = self.list.at.filter(|_| self.client.is_some());
        let give_up = (!self.is_listed).then_some(self.give_up_left_at);
        [containers, self.docker_well_at, self.host.at, list, self.left.at, give_up, self.whole_at, self.settled_at]
            .into_iter()
            .flatten()
            .min()
    }

    /// Takes in settings that were read again: how containers are judged, and what is done at the end.
    fn renew(&mut self, news: config::News<AgentFlags>) {
        self.metrics.configured(news.settings.is_ok());
        let now = Instant::now();
        if let Ok(AgentFlags { scope, kill_grace, keep_on_exit, linger, .. }) = news.settings {
            let begun = &self.config.scope;
            let (key, docker) = (begun.key.clone(), begun.docker.clone());
            let (state_dir, agent_id) = (begun.state_dir.clone(), begun.agent_id.clone());
            self.config.scope = ScopeFlags { key, docker, state_dir, agent_id, ..scope };
            (self.config.keep_on_exit, self.config.linger) = (keep_on_exit, linger);
            self.config.kill_grace = kill_grace;
            self.containers.set_kill_grace(kill_grace);
        }
        if news.is_asked {
            self.containers.inspect_all();
            if self.is_listed {
                self.list.at = self.list.at.map(|_| now);
            }
        }
        self.host_again = self.host.at.is_none();
        self.host.at = self.host.at.map(|_| now);
    }

    fn news(&mut self, news: News) {
        match news {
            News::Open(client) => {
                self.metrics.docker_asked("events", true);
                if self.config.scope.allow_exec {
                    self.work.spawn(work::may_run(client.clone()));
                }
                self.client = Some(client);
                self.docker_well_at = Some(Instant::now() + WELL_AFTER);
                self.list.at = Some(Instant::now());
                self.containers.inspect_failed();
            }
            News::Event(event) => {
                self.docker_is_well();
                self.metrics.docker_told(event.what);
                self.containers.event(&event, Instant::now().into_std());
            }
            News::Lost(error) => {
                self.docker_well_at = None;
                self.metrics.docker_asked("events", false);
                self.metrics.docker_connected(false);
                let trouble = error.to_string();
                if self.events_trouble.as_ref() != Some(&trouble) {
                    error!(
                        error = trouble,
                        "Docker does not tell what happens; what is registered stays, trying again"
                    );
                    self.events_trouble = Some(trouble);
                    self.tell_trouble();
                }
            }
        }
    }

    /// Its stream of events is there, which its opening alone does not say: it may be refused yet.
    fn docker_is_well(&mut self) {
        self.docker_well_at = None;
        self.metrics.docker_connected(true);
        if self.events_trouble.take().is_some() {
            info!("Docker answers again");
            self.tell_trouble();
        }
    }

    /// Tells what is wrong with Docker now: the stream of its events, else its list.
    fn tell_trouble(&self) {
        let trouble = self.events_trouble.as_ref().or(self.list.trouble.as_ref());
        self.docker_trouble.send_if_modified(|told| {
            let is_news = told.as_ref() != trouble;
            if is_news {
                *told = trouble.cloned();
            }
            is_news
        });
    }

    fn told(&mut self, told: &Told) {
        match told {
            Told::Found(key, record) => {
                if self.containers.found(key, record) {
                    self.keeper.want(key, Some(&record.to_value().into()));
                }
            }
            Told::NotWritten(_) => {}
        }
    }

    fn done(&mut self, work: Work) -> Result<(), AgentError> {
        let now = Instant::now().into_std();
        match work {
            Work::EventsEnded => return Err(AgentError::Ended),
            Work::MayRun(result) => self.may_run(result),
            Work::Host(result) => self.host(result),
            Work::Left(result) => self.left(result),
            Work::Listed(begun, result) => self.listed(begun, result),
            Work::Inspected(inspection, result) => {
                self.inspecting -= 1;
                self.metrics.docker_asked("inspect", result.is_ok());
                match result {
                    Ok(inspected) => self.containers.inspected(&inspection, inspected.map(|boxed| *boxed), now),
                    Err(error) => {
                        if self.containers.not_inspected(&inspection, now) {
                            let container = inspection.container;
                            warn!(%container, %error, "the container cannot be read; what is known of it stays, trying again");
                        }
                    }
                }
            }
            Work::Answered(question, answer) => {
                self.asking -= 1;
                self.containers.answered(&question, answer, now);
            }
        }
        Ok(())
    }

    /// Says at the start what every check by exec would end with. Any other trouble is told where it is met.
    fn may_run(&mut self, result: Result<(), DockerError>) {
        let forbidden = result.err().filter(|error| matches!(error, DockerError::NotAllowed { .. }));
        if let Some(error) = &forbidden
            && self.exec_trouble.as_ref() != Some(error)
        {
            error!(%error, "--allow-exec is of no use here: what is checked by exec is not registered");
        }
        self.exec_trouble = forbidden;
    }

    /// Takes what is known of the host.
    fn host(&mut self, result: Result<Scope, ResolveError>) {
        let again = std::mem::take(&mut self.host_again);
        match result {
            Ok(scope) => {
                self.host.done(Some(HOST_EVERY));
                self.judge_by(scope);
                self.doubt_address();
            }
            Err(error) => {
                let error = error.to_string();
                if self.host.failed(&error) {
                    error!(error, "the host's address is not known; trying again");
                }
            }
        }
        if again {
            self.host.at = Some(Instant::now());
        }
    }

    fn judge_by(&mut self, mut scope: Scope) {
        if self.is_in_container {
            scope.default_address = if self.is_read_here { host::default_gateway() } else { DefaultAddress::default() };
        } else if let Some(before) = &self.scope {
            // While the network is being set up anew, the address that others know is still the one.
            scope.default_address = scope.default_address.or(before.default_address);
        }
        if self.scope.as_deref() == Some(&scope) {
            return;
        }
        let address: Vec<String> = match scope.ip {
            Some(ip) => vec![ip.to_string()],
            None => scope.default_address.all().map(|ip| ip.to_string()).collect(),
        };
        info!(host = scope.host_name, address = address.join(" "), "this is the host");
        self.scope = Some(Arc::new(scope));
        self.containers.inspect_all();
    }

    /// Takes all that is below the prefix in each store that answered, of which some is ours.
    fn left(&mut self, listed: Vec<keepers::Listed>) {
        self.is_left_asked = true;
        let mut left = BTreeMap::new();
        let mut trouble = None;
        for (store, result) in listed {
            let listing = match result {
                Ok(listing) => listing,
                Err(error) => {
                    let api = self.keeper.stores().get(store).and_then(Store::known_api);
                    self.metrics.etcd_failed(api, error.trouble());
                    trouble.get_or_insert(error.to_string());
                    continue;
                }
            };
            self.unread.remove(&store);
            self.unasked.remove(&store);
            self.keeper.heard(store);
            for entry in &listing.entries {
                let Ok(key) = InstanceKey::parse(&self.config.scope.key, &entry.path) else { continue };
                let Ok(record) = Record::parse(&entry.value) else { continue };
                if record.agent.as_deref() == Some(&self.id) {
                    self.keeper.take_over(store, &key, entry);
                    left.entry(key).or_insert(record);
                }
            }
        }
        match trouble {
            None => self.left.done(None),
            Some(error) => {
                if self.left.failed(&error) {
                    error!(error, "etcd cannot be asked for the keys of an earlier run; trying again");
                }
                if left.is_empty() {
                    return;
                }
            }
        }
        info!(keys = left.len(), "looked for keys of an earlier run");
        self.containers.found_left(left, Instant::now().into_std());
    }

    /// Leaves to their time to live the keys of which Docker does not say whose they are. Those that are still there when
    /// it does are looked for again.
    fn give_up_left(&mut self) {
        self.give_up_left_at += LEFT_LIMIT;
        let left = self.containers.give_up_left();
        if left.is_empty() {
            return;
        }
        warn!(
            keys = left.len(),
            after = %humantime::format_duration(LEFT_LIMIT),
            "Docker does not say which containers run: the keys of an earlier run are no longer renewed, and go with their time to live"
        );
        for key in &left {
            self.keeper.let_go(key);
        }
        (self.is_left_asked, self.has_given_up) = (false, true);
    }

    fn listed(&mut self, begun: Instant, result: Result<Listed, DockerError>) {
        self.metrics.docker_asked("list", result.is_ok());
        match result {
            Ok(Listed { digests, addresses, lacks_own }) => {
                self.list.done(Some(if lacks_own { LIST_SOON } else { LIST_EVERY }));
                self.is_listed = true;
                if std::mem::take(&mut self.has_given_up) {
                    self.left.at = Some(Instant::now());
                    self.unread = (0..self.keeper.stores().len()).collect();
                }
                self.containers.listed(&digests, begun.into_std());
                self.of_containers = addresses;
                self.doubt_address();
            }
            Err(error) => {
                let error = error.to_string();
                if self.list.failed(&error) {
                    error!(error, "Docker does not list its containers; what is registered stays, trying again");
                }
            }
        }
        self.tell_trouble();
    }

    /// An agent in a container of its own takes that container for the host.
    fn doubt_address(&mut self) {
        let Some(scope) = &self.scope else { return };
        let Some(address) = scope.default_address.any_of(&self.of_containers) else { return };
        if self.is_read_here {
            self.is_in_container = true;
            return self.judge_by(scope.as_ref().clone());
        }
        error!(
            %address,
            "the address of the default route is a container's, where other hosts do not reach this one: run the agent with \
             --network host, or say the host's address with --ip"
        );
        self.is_in_container = true;
        self.judge_by(scope.as_ref().clone());
    }

    /// Removes what is registered, or leaves it to a successor.
    async fn end(self, ending: Ending) {
        if ending == Ending::Successor {
            info!("the keys are left to the successor");
        } else if self.config.keep_on_exit {
            info!("the keys are left to their time to live");
        } else {
            self.keeper.withdraw(self.config.linger).await;
        }
    }
}

/// What the kernel shows of the id of the container that this is in. The host's name is no sign of one.
fn own_ids() -> Arc<[Candidate]> {
    let mut found = candidates(None, &docker::traces_of_this_process());
    found.retain(|candidate| matches!(candidate, Candidate::Id(_)));
    found.into()
}
