//! The sidekick: one task that owns everything known of this container, and one loop in which probe, Docker and etcd
//! go on side by side, so that none of them waits for another.
//!
//! What to do is decided in `health`, `service` and `reconcile`; here it is done.

use std::future::{Future, pending};
use std::net::{IpAddr, Ipv4Addr};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use observe::config::{News, Renewals};
use observe::systemd::{self, Part};
use registry::watch::Backoff;
use registry::{AddressError, InstanceAddress, InstanceKey, Record, StoreError};
use reqwest::Method;
use reqwest::header::HeaderMap;
use tokio::time::Instant;
use tracing::{debug, error, info, warn};

use crate::config::{AdminError, Check, Config, Host};
use crate::docker::{Docker, DockerError};
use crate::health::{Answer, Change, Health};
use crate::host::{ResolveError, resolve};
use crate::keeper::{Claim, Told, until};
use crate::keepers::{Keepers, Stores};
use crate::metrics::{Daemon, Metrics, Overview};
use crate::operator::{Desk, Operator};
use crate::own::{Candidate, Traces, candidates};
use crate::probe::{Asked, ProbeError, Prober};
use crate::service::{self, CheckKind, Expected, HttpCheck, MappingError};

/// How often the mapped port is read again: it changes when networks are connected and disconnected.
const LOCATE_EVERY: Duration = Duration::from_secs(30);
/// The shortest pause between two readings that something else asked for.
const LOCATE_PAUSE: Duration = Duration::from_secs(1);
/// The pauses while Docker cannot be asked: it is back in seconds after a restart.
const DOCKER_PAUSES: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));
/// Why the sidekick cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// No client for etcd.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// No client for the application.
    #[error(transparent)]
    Probe(#[from] ProbeError),
    /// Nothing can be offered to an operator so.
    #[error(transparent)]
    Admin(#[from] AdminError),
}

/// Why it is not known where this container is reached.
#[derive(Debug, thiserror::Error)]
enum LocateError {
    #[error(transparent)]
    Docker(#[from] DockerError),
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    #[error(transparent)]
    Mapping(#[from] MappingError),
    #[error(transparent)]
    Address(#[from] AddressError),
    #[error("--mapped-port is given without the host's address: give --ip")]
    NoAddress,
}

/// Something that goes on; at most one of its kind.
type Doing<T> = Option<Pin<Box<dyn Future<Output = T> + Send>>>;

/// Runs the sidekick until `shutdown` is done; then removes the key, lingers and returns. `renewals` tells of settings that were
/// read again.
///
/// Docker, etcd and the application may each be away at any time: it waits for them.
///
/// # Errors
/// Only for what cannot get better by waiting: no client can be made from the configuration.
pub async fn run(
    config: Config,
    traces: Traces,
    mut renewals: Renewals<Config>,
    shutdown: impl Future,
) -> Result<(), RunError> {
    let metrics = Metrics::default();
    let keeper = Keepers::new(Stores::new(&config.etcd)?, &config.key, &Claim::Any, config.ttl, &metrics);
    let (prober, mut check) = (Arc::new(Prober::new()?.counting(metrics.clone())), Arc::new(self::check(&config)));
    let access = config.operator.access(&config.admin)?;
    let candidates = candidates(config.container.as_deref(), &traces);
    info!(key = %config.key, port = config.port, version = env!("CARGO_PKG_VERSION"), "the sidekick begins");

    // Without Docker there is nothing to be told of it.
    let daemon = if config.mapped_port.is_some() { Daemon::Static } else { Daemon::Sidekick };
    let mut desk = Desk::open(Operator::At(config.admin.clone(), access), metrics.clone(), daemon, config.ttl);
    let mut sidekick = Sidekick::new(config, keeper, metrics);
    let mut shutdown = pin!(shutdown);
    let mut probing: Doing<Asked> = None;
    let mut locating: Doing<Result<InstanceAddress, LocateError>> = None;
    let part = Part::begin();
    loop {
        let now = Instant::now();
        if probing.is_none() && sidekick.probe_at <= now {
            sidekick.probe_at = now + sidekick.health.gap(now.into_std());
            let (prober, check, limit) = (Arc::clone(&prober), Arc::clone(&check), sidekick.config.timeout);
            probing = Some(Box::pin(async move { prober.ask(&check, 0, limit).await }));
        }
        if locating.is_none() && sidekick.locate_at <= now {
            sidekick.located_at = Some(now);
            let former = sidekick.location.map(|address| address.ip());
            locating = Some(Box::pin(locate(sidekick.config.clone(), candidates.clone(), former)));
        }
        sidekick.want();
        part.turn(|| sidekick.overview(true).to_string());
        let wake = [probing.is_none().then_some(sidekick.probe_at), locating.is_none().then_some(sidekick.locate_at)];
        tokio::select! {
            biased;
            _ = &mut shutdown => break,
            question = desk.asked() => {
                let overview = sidekick.overview(question.with_counts);
                question.answer(overview);
            }
            news = renewals.next() => {
                let asked = sidekick.config.clone();
                sidekick.renew(news);
                let now = &sidekick.config;
                if (now.check, &now.check_path, now.timeout) != (asked.check, &asked.check_path, asked.timeout) {
                    // The answer to what is asked now is not what is to be known.
                    probing = None;
                    check = Arc::new(self::check(now));
                    sidekick.probe_at = Instant::now();
                }
            }
            asked = going_on(&mut probing) => sidekick.probed(asked.result),
            result = going_on(&mut locating) => sidekick.located(result),
            told = sidekick.keeper.next() => sidekick.told(&told),
            () = until(wake.into_iter().flatten().min()) => {}
            () = part.due() => {}
        }
    }
    systemd::stopping();
    sidekick.keeper.withdraw(sidekick.config.linger).await;
    Ok(())
}

/// How the application is asked: at its port of 127.0.0.1.
fn check(config: &Config) -> CheckKind {
    let targets = vec![(Ipv4Addr::LOCALHOST, config.port).into()];
    match config.check {
        Check::Tcp => CheckKind::Tcp { targets, proxied: true },
        Check::Http => CheckKind::Http(HttpCheck {
            tls: false,
            targets,
            proxied: false,
            path: config.check_path.clone(),
            method: Method::GET,
            headers: HeaderMap::new(),
            expected: Expected::Below500,
        }),
    }
}

/// Waits for what goes on, and forgets it when it is done. For ever where nothing goes on.
async fn going_on<T>(doing: &mut Doing<T>) -> T {
    let Some(future) = doing else { return pending().await };
    let result = future.await;
    *doing = None;
    result
}

/// Reads where other hosts reach the application. Docker is left alone where the flags say it all.
async fn locate(
    config: Config,
    candidates: Vec<Candidate>,
    former: Option<IpAddr>,
) -> Result<InstanceAddress, LocateError> {
    let ip = match &config.ip {
        Host::Published => None,
        Host::Address(ip) => Some(*ip),
        Host::Name(name) => Some(resolve(name, former).await?),
    };
    if let Some(port) = config.mapped_port {
        let ip = ip.ok_or(LocateError::NoAddress)?;
        return Ok(InstanceAddress::new(ip, port)?);
    }
    let container = Docker::new(config.docker).own_container(&candidates).await?;
    Ok(service::address(&container, config.port, ip)?)
}

/// All that is known.
struct Sidekick {
    config: Config,
    keeper: Keepers,
    metrics: Metrics,
    health: Health,
    /// Whether a missing answer was told since the start or the last answer.
    told_missing: bool,
    /// When the application is to be asked next.
    probe_at: Instant,
    /// Where it is reached, as far as is known.
    location: Option<InstanceAddress>,
    /// When that is to be read next, and was begun to be read last.
    locate_at: Instant,
    located_at: Option<Instant>,
    docker_pause: Backoff,
    /// What is wrong with it, told once.
    docker_trouble: Option<String>,
    /// The key that was wanted last.
    key: Option<InstanceKey>,
}

impl Sidekick {
    fn new(config: Config, keeper: Keepers, metrics: Metrics) -> Self {
        let now = Instant::now();
        Self {
            health: Health::new(config.rise, config.fall, config.interval, now.into_std()),
            config,
            keeper,
            metrics,
            told_missing: false,
            probe_at: now,
            location: None,
            locate_at: now,
            located_at: None,
            docker_pause: Backoff::new(DOCKER_PAUSES.0, DOCKER_PAUSES.1),
            docker_trouble: None,
            key: None,
        }
    }

    /// What an operator is told of it.
    fn overview(&self, with_counts: bool) -> Overview {
        let etcd = self.keeper.overview(with_counts);
        let waits = [
            (self.location.is_some(), "it is not known yet where other hosts reach this container"),
            (self.health.was_up(), "the application has not answered yet"),
            (etcd.iter().all(|etcd| etcd.answered.is_some()), "etcd has not answered yet"),
        ];
        let missing = waits.into_iter().filter_map(|(is_done, what)| (!is_done).then_some(what)).collect();
        Overview { etcd, missing, ..Overview::default() }
    }

    /// Takes in settings that were read again: how the application is asked, the host's address, and what is done at the end.
    fn renew(&mut self, news: News<Config>) {
        self.metrics.configured(news.settings.is_ok());
        if let Ok(Config { ip, check, check_path, interval, timeout, rise, fall, linger, .. }) = news.settings {
            self.health.adjust(rise, fall, interval);
            let begun = self.config.clone();
            self.config = Config { ip, check, check_path, interval, timeout, rise, fall, linger, ..begun };
            self.probe_at = self.probe_at.min(Instant::now() + interval);
        }
        self.locate_soon();
    }

    /// Says which key should be in etcd, if any.
    fn want(&mut self) {
        let address = self.location.filter(|_| self.health.is_up());
        let key = address.map(|address| InstanceKey::flat(self.config.key.clone(), address));
        if key != self.key {
            if let Some(before) = self.key.take() {
                self.keeper.want(&before, None);
            }
            if let Some(key) = &key {
                self.keeper.want(key, Some(&Record::running().to_value().into()));
            }
            self.key = key;
        }
    }

    /// Has the mapped port read again, but not in a hot loop.
    fn locate_soon(&mut self) {
        let soonest = self.located_at.map_or_else(Instant::now, |at| at + LOCATE_PAUSE);
        self.locate_at = self.locate_at.min(soonest);
    }

    fn probed(&mut self, result: Result<(), ProbeError>) {
        // A refusal is one missing answer: `--fall` says how many it takes.
        let change = self.health.record(if result.is_ok() { Answer::Good } else { Answer::Bad });
        match (change, result) {
            (Some(Change::Up), _) => {
                self.told_missing = false;
                info!(port = self.config.port, "the application answers");
                self.locate_soon();
            }
            (Some(Change::Down), Err(error)) => {
                self.told_missing = true;
                warn!(port = self.config.port, %error, "the application no longer answers");
            }
            (_, Err(error)) if !self.told_missing => {
                self.told_missing = true;
                info!(port = self.config.port, %error, "the application does not answer");
            }
            (_, Err(error)) => debug!(port = self.config.port, %error, "the application does not answer"),
            (_, Ok(())) => debug!(port = self.config.port, "the application answered"),
        }
    }

    fn located(&mut self, result: Result<InstanceAddress, LocateError>) {
        let now = Instant::now();
        // What Docker says of the mapping, it has said.
        let is_docker_well = !matches!(result, Err(LocateError::Docker(_)));
        if self.config.mapped_port.is_none() && !matches!(result, Err(LocateError::Resolve(_))) {
            self.metrics.docker_asked("inspect", is_docker_well);
            self.metrics.docker_connected(is_docker_well);
        }
        match result {
            Ok(address) => {
                self.locate_at = now + LOCATE_EVERY;
                self.docker_pause.reset();
                if self.docker_trouble.take().is_some() || self.location != Some(address) {
                    info!(%address, "found where other hosts reach this container");
                }
                self.location = Some(address);
            }
            Err(trouble) => {
                self.locate_at = now + self.docker_pause.pause();
                // Docker has said that there is no way in; any other trouble leaves what is known as it is.
                if matches!(trouble, LocateError::Mapping(_)) {
                    self.location = None;
                }
                let trouble = trouble.to_string();
                if self.docker_trouble.as_ref() != Some(&trouble) {
                    error!(error = trouble, "it is not known where other hosts reach this container; trying again");
                    self.docker_trouble = Some(trouble);
                }
            }
        }
    }

    fn told(&mut self, told: &Told) {
        // Perhaps the port is mapped elsewhere now.
        if matches!(told, Told::NotWritten(_)) {
            self.locate_soon();
        }
    }
}
