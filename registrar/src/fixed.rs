//! `registrar static`: keeps the key of something that does not run in Docker, for as long as it answers.
//!
//! One task with one loop, in which the question and etcd go on side by side.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;

use jiff::Timestamp;
use observe::config::Renewals;
use observe::systemd::{self, Part};
use registry::{InstanceAddress, InstanceKey, Record, ServiceName, Status, StoreError};
use reqwest::Method;
use reqwest::header::HeaderMap;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use crate::Ending;
use crate::config::{AdminError, StaticCheck, StaticConfig};
use crate::health::{Answer, Change, Health};
use crate::host;
use crate::keeper::{Claim, Told, until};
use crate::keepers::{Keepers, Stores};
use crate::metrics::{Daemon, Metrics, Overview};
use crate::operator::{Desk, Operator};
use crate::probe::{Asked, ProbeError, Prober};
use crate::service::{CheckKind, Expected, HttpCheck};

/// Why it cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum StaticError {
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

/// Keeps the key until `shutdown` is done; then removes it, unless it has a successor, lingers and returns. `now` is what the key says of when it
/// was registered.
///
/// # Errors
/// Only for what cannot get better by waiting: no client can be made from the configuration.
pub async fn run(
    mut config: StaticConfig,
    now: Timestamp,
    mut renewals: Renewals<StaticConfig>,
    shutdown: impl Future<Output: Into<Ending>>,
) -> Result<(), StaticError> {
    let agent = config.agent_id.clone().unwrap_or_else(|| mark(config.address, &config.name));
    let metrics = Metrics::default();
    let mut keeper =
        Keepers::new(Stores::new(&config.etcd)?, &config.key, &Claim::Own(agent.clone()), config.ttl, &metrics);
    let prober = Arc::new(Prober::new()?.counting(metrics.clone()));
    let access = config.operator.access(&config.admin)?;
    let mut desk = Desk::open(Operator::At(config.admin.clone(), access), metrics.clone(), Daemon::Static, config.ttl);
    let key = InstanceKey::nested(config.key.clone(), config.name.clone(), config.address);
    info!(%key, agent, version = env!("CARGO_PKG_VERSION"), "keeping the key while the address answers");

    let begun = now;
    let mut record = record(&config, agent.clone(), begun);
    let asking = config.asking;
    let mut health = Health::new(asking.rise, asking.fall, asking.interval, Instant::now().into_std());
    if config.check == StaticCheck::None {
        health.assume_up();
    }
    let mut told_missing = false;
    let mut shutdown = pin!(shutdown);
    let mut ask_at = (config.check != StaticCheck::None).then(Instant::now);
    let mut question: Option<Pin<Box<dyn Future<Output = Asked>>>> = None;
    let part = Part::begin();
    let ending = loop {
        let now = Instant::now();
        if question.is_none() && ask_at.is_some_and(|at| at <= now) {
            ask_at = Some(now + health.gap(now.into_std()));
            let (prober, check, limit) = (Arc::clone(&prober), check(&config), config.asking.timeout);
            question = Some(Box::pin(async move { prober.ask(&check, 0, limit).await }));
        }
        keeper.want(&key, health.is_up().then(|| record.to_value().into()).as_ref());
        part.turn(|| overview(&keeper, &health, true).to_string());
        let wake = ask_at.filter(|_| question.is_none());
        tokio::select! {
            biased;
            ending = &mut shutdown => break ending.into(),
            question = desk.asked() => {
                let overview = overview(&keeper, &health, question.with_counts);
                question.answer(overview);
            }
            news = renewals.next() => {
                metrics.configured(news.settings.is_ok());
                if let Ok(new) = news.settings {
                    health.adjust(new.asking.rise, new.asking.fall, new.asking.interval);
                    let asks = |config: &StaticConfig| {
                        (config.check, config.check_path.clone(), config.asking.timeout)
                    };
                    if asks(&new) != asks(&config) {
                        // The answer to what is asked now is not what is to be known.
                        question = None;
                        ask_at = (new.check != StaticCheck::None).then(Instant::now);
                    }
                    if new.check == StaticCheck::None {
                        health.assume_up();
                    }
                    config = StaticConfig { address: config.address, name: config.name, key: config.key, ..new };
                    let status = record.status;
                    record = self::record(&config, agent.clone(), begun);
                    record.status = status;
                }
            }
            Some(asked) = going_on(&mut question) => told_missing = answered(&mut health, &asked.result, told_missing),
            told = keeper.next() => if let Told::Found(_, found) = told
                && found.status != record.status
            {
                info!(%key, status = ?found.status, "an operator has set the status of the key");
                record.status = found.status;
            },
            () = until(wake) => {}
            () = part.due() => {}
        }
    };
    systemd::stopping();
    if ending == Ending::Successor {
        info!("the key is left to the successor");
        return Ok(());
    }
    keeper.withdraw(config.linger).await;
    Ok(())
}

/// What an operator is told of it.
fn overview(keeper: &Keepers, health: &Health, with_counts: bool) -> Overview {
    let etcd = keeper.overview(with_counts);
    let waits = [
        (health.was_up(), "the address has not answered yet"),
        (etcd.iter().all(|etcd| etcd.answered.is_some()), "etcd has not answered yet"),
    ];
    let missing = waits.into_iter().filter_map(|(is_done, what)| (!is_done).then_some(what)).collect();
    Overview { etcd, missing, ..Overview::default() }
}

/// Waits for what goes on, and forgets it when it is done. `None` at once where nothing goes on.
async fn going_on<T>(doing: &mut Option<Pin<Box<dyn Future<Output = T> + '_>>>) -> Option<T> {
    let result = doing.as_mut()?.await;
    *doing = None;
    Some(result)
}

/// Takes an answer. Gives whether it was told that there is none.
fn answered(health: &mut Health, result: &Result<(), ProbeError>, told_missing: bool) -> bool {
    let answer = result.as_ref().map_or_else(ProbeError::answer, |()| Answer::Good);
    match (health.record(answer), result) {
        (Some(Change::Up), _) => info!("it answers"),
        (Some(Change::Down), Err(error)) => warn!(%error, "it no longer answers"),
        (_, Err(error)) if !told_missing => info!(%error, "it does not answer"),
        (_, Err(error)) => debug!(%error, "it does not answer"),
        (_, Ok(())) => debug!("it answered"),
    }
    result.is_err()
}

/// By what a key is known that no agent keeps: each has a process of its own, and that another one lives says nothing of it.
fn mark(address: InstanceAddress, name: &ServiceName) -> String {
    let allowed = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_') { c } else { '-' };
    format!("static-{address}-{name}")
        .replace(['[', ']'], "")
        .chars()
        .map(allowed)
        .take(registry::key::NAME_LIMIT)
        .collect()
}

fn check(config: &StaticConfig) -> CheckKind {
    let targets = vec![config.address.socket_addr()];
    match config.check {
        StaticCheck::None => CheckKind::None,
        StaticCheck::Tcp => CheckKind::Tcp { targets, proxied: true },
        StaticCheck::Http | StaticCheck::Https => CheckKind::Http(HttpCheck {
            tls: config.check == StaticCheck::Https,
            targets,
            proxied: false,
            path: config.check_path.clone(),
            method: Method::GET,
            headers: HeaderMap::new(),
            expected: Expected::Below500,
        }),
    }
}

fn record(config: &StaticConfig, agent: String, now: Timestamp) -> Record {
    let host_name = config.host.clone().unwrap_or_else(host::host_name);
    let attributes: BTreeMap<String, String> = config.attribute.iter().cloned().collect();
    Record {
        status: Status::Running,
        agent: Some(agent),
        host: Some(host_name),
        weight: config.weight,
        tags: config.tags.clone(),
        attributes,
        registered: Some(now),
        ..Record::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_key_has_a_mark_of_its_own_and_it_is_an_agents_id() {
        let long = "a".repeat(64);
        let marks: Vec<String> = [
            ("10.0.0.5:8080", "db"),
            ("10.0.0.5:8081", "db"),
            ("10.0.0.5:8080", "web"),
            ("[2001:db8:1111:2222:3333:4444:5555:6666]:65535", long.as_str()),
        ]
        .map(|(address, name)| mark(address.parse().unwrap(), &name.parse().unwrap()))
        .into();
        assert_eq!(marks[0], "static-10.0.0.5-8080-db");
        for mark in &marks {
            assert!(crate::config::is_agent_id(mark), "{mark}");
            assert_eq!(marks.iter().filter(|other| *other == mark).count(), 1, "{mark}");
        }
    }
}
