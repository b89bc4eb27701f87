//! What the registrar counts, as handles that cost a few atomic operations. What is counted is said where it happens; what can
//! be read off the daemon's state at any time is not counted, but written here when somebody asks ([`Overview`]).
//!
//! Labels have few values, and all of them are from this program's text: none comes from Docker or etcd.

use std::fmt;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use registry::{Api, StoreKind, Trouble};

use crate::docker::events::What;
use crate::probe::ProbeError;
use crate::reconcile::Step;

/// The upper bounds of the histogram's buckets, in seconds: a process on this host answers in a fraction of a millisecond, and the
/// default limit is 3 s.
const BUCKETS: [f64; 11] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 3.0, 10.0];

/// By what is asked, and what may come of it.
const PROBES: [(&str, &[&str]); 3] = [
    ("http", &["ok", "refused", "no_way", "timeout", "closed", "tls", "status", "broken", "error"]),
    ("tcp", &["ok", "refused", "no_way", "timeout", "closed", "broken", "error"]),
    ("exec", &["ok", "timeout", "exit", "still_runs", "error"]),
];
/// What may become of a key.
const WRITES: [&str; 4] = ["register", "update", "refresh", "remove"];
const RESULTS: [&str; 4] = ["ok", "lost", "taken", "failed"];
/// What Docker tells.
const EVENTS: [&str; 7] = ["start", "kill", "die", "pause", "unpause", "health", "changed"];
/// What Docker is asked.
const REQUESTS: [&str; 3] = ["events", "list", "inspect"];

type Labels<const N: usize> = [(&'static str, &'static str); N];
type FloatGauge = Gauge<f64, AtomicU64>;

/// Which of the daemons it is: they do not all have the same to tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Daemon {
    /// It knows of all containers.
    Agent,
    /// It knows of one.
    Sidekick,
    /// It knows nothing of Docker.
    Static,
}

/// The handles. Clones count into the same.
#[derive(Debug, Clone)]
pub struct Metrics {
    probes: Family<Labels<2>, Counter>,
    probe_duration: Family<Labels<1>, Histogram, fn() -> Histogram>,
    writes: Family<Labels<3>, Counter>,
    lost: Family<Labels<1>, Counter>,
    regained: Family<Labels<1>, Counter>,
    etcd_failures: Family<Labels<2>, Counter>,
    config_good: Gauge,
    docker_connected: Gauge,
    docker_success: FloatGauge,
    docker_events: Family<Labels<1>, Counter>,
    docker_requests: Family<Labels<2>, Counter>,
    containers: Family<Labels<1>, Gauge>,
    keys: Family<Labels<2>, Gauge>,
    etcd_connected: Family<Labels<1>, Gauge>,
    etcd_success: Family<Labels<1>, FloatGauge>,
    refreshed: Family<Labels<1>, FloatGauge>,
}

impl Default for Metrics {
    fn default() -> Self {
        let metrics = Self {
            probes: Family::default(),
            probe_duration: Family::new_with_constructor(|| Histogram::new(BUCKETS)),
            writes: Family::default(),
            lost: Family::default(),
            regained: Family::default(),
            etcd_failures: Family::default(),
            config_good: Gauge::default(),
            docker_connected: Gauge::default(),
            docker_success: Gauge::default(),
            docker_events: Family::default(),
            docker_requests: Family::default(),
            containers: Family::default(),
            keys: Family::default(),
            etcd_connected: Family::default(),
            etcd_success: Family::default(),
            refreshed: Family::default(),
        };
        // What it began with is in use.
        metrics.config_good.set(1);
        // What was never counted is 0: Prometheus sees the first one only as a difference.
        for (kind, results) in PROBES {
            for result in results {
                drop(metrics.probes.get_or_create(&[("kind", kind), ("result", result)]));
            }
            drop(metrics.probe_duration.get_or_create(&[("kind", kind)]));
        }
        for event in EVENTS {
            drop(metrics.docker_events.get_or_create(&[("event", event)]));
        }
        for request in REQUESTS {
            for result in ["ok", "failed"] {
                drop(metrics.docker_requests.get_or_create(&[("request", request), ("result", result)]));
            }
        }
        metrics
    }
}

impl Metrics {
    /// Has them told by the registry. `ttl` is how long keys live after their last refresh.
    #[allow(clippy::too_many_lines, reason = "a table")]
    pub fn register(&self, registry: &mut Registry, daemon: Daemon, ttl: Duration) {
        let seconds = || Unit::Seconds;
        observe::metrics::add_process(registry, "registrar", env!("CARGO_PKG_VERSION"));
        let of_registrar = registry.sub_registry_with_prefix("registrar");
        let (help, good) =
            ("Whether the configuration is in use as it was read last: 1 or 0", self.config_good.clone());
        of_registrar.register("config_good", help, good);
        if daemon == Daemon::Agent {
            of_registrar.register(
                "containers",
                "Containers that run, by what is done for them",
                self.containers.clone(),
            );
            of_registrar.register("docker_events", "What Docker told of containers", self.docker_events.clone());
        }
        if daemon != Daemon::Static {
            let (connected, requests) = (self.docker_connected.clone(), self.docker_requests.clone());
            of_registrar.register("docker_connected", "Whether Docker answers: 1 or 0", connected);
            of_registrar.register("docker_requests", "What Docker was asked, and whether it answered", requests);
            of_registrar.register_with_unit(
                "docker_last_success_timestamp",
                "When Docker answered last, in Unix time; 0: never",
                seconds(),
                self.docker_success.clone(),
            );
        }
        of_registrar.register(
            "probes",
            "Questions whether an instance answers, by means and result",
            self.probes.clone(),
        );
        let (help, duration) = ("How long such a question took", self.probe_duration.clone());
        of_registrar.register_with_unit("probe_duration", help, seconds(), duration);
        of_registrar.register("keys", "Keys that should be in etcd, by how they stand", self.keys.clone());
        of_registrar.register("key_writes", "Keys written to etcd, by what for and result", self.writes.clone());
        of_registrar.register("keys_lost", "Keys of ours that were gone from etcd", self.lost.clone());
        of_registrar.register("keys_regained", "Lost keys that were written again", self.regained.clone());
        let time_to_live = FloatGauge::default();
        time_to_live.set(ttl.as_secs_f64());
        of_registrar.register_with_unit(
            "key_ttl",
            "How long a key lives that is not refreshed",
            seconds(),
            time_to_live,
        );
        let (help, refreshed) =
            ("When a key was written or refreshed last, in Unix time; 0: never", self.refreshed.clone());
        of_registrar.register_with_unit("last_refresh_timestamp", help, seconds(), refreshed);
        let (connected, failures) = (self.etcd_connected.clone(), self.etcd_failures.clone());
        of_registrar.register("etcd_connected", "Whether the last request to etcd was answered: 1 or 0", connected);
        of_registrar.register("etcd_failures", "Requests to etcd that failed, by cause", failures);
        let (help, success) = ("When etcd answered last, in Unix time; 0: never", self.etcd_success.clone());
        of_registrar.register_with_unit("etcd_last_success_timestamp", help, seconds(), success);
    }

    /// The configuration was read again: it is in use, or the former one is.
    pub(crate) fn configured(&self, is_good: bool) {
        self.config_good.set(is_good.into());
    }

    /// Counts a question and what came of it.
    pub(crate) fn probed(&self, kind: &'static str, took: Duration, result: &Result<(), ProbeError>) {
        let result = result.as_ref().map_or_else(ProbeError::label, |()| "ok");
        self.probes.get_or_create(&[("kind", kind), ("result", result)]).inc();
        self.probe_duration.get_or_create(&[("kind", kind)]).observe(took.as_secs_f64());
    }

    /// Counts what became of one key.
    pub(crate) fn wrote(&self, api: Option<Api>, step: Step, result: Written) {
        let operation = match step {
            Step::Put => "register",
            Step::Update(_) => "update",
            Step::Refresh(_) => "refresh",
            Step::Delete(_) => "remove",
            Step::Look | Step::Forget => return,
        };
        let result = match result {
            Written::Ok => "ok",
            Written::Lost => "lost",
            Written::Taken => "taken",
            Written::Failed => "failed",
        };
        self.writes.get_or_create(&[("api", label(api)), ("operation", operation), ("result", result)]).inc();
    }

    /// Counts a key that was gone.
    pub(crate) fn lost(&self, api: Option<Api>) {
        self.lost.get_or_create(&[("api", label(api))]).inc();
    }

    /// Counts one that is there again.
    pub(crate) fn regained(&self, api: Option<Api>) {
        self.regained.get_or_create(&[("api", label(api))]).inc();
    }

    /// Counts a request that etcd did not answer, or not well.
    pub(crate) fn etcd_failed(&self, api: Option<Api>, trouble: Trouble) {
        if trouble != Trouble::Conflict {
            self.etcd_failures.get_or_create(&[("api", label(api)), ("cause", trouble.as_str())]).inc();
        }
    }

    /// Counts what Docker told.
    pub(crate) fn docker_told(&self, what: What) {
        let event = match what {
            What::Start => "start",
            What::Kill(_) => "kill",
            What::Die => "die",
            What::Pause => "pause",
            What::Unpause => "unpause",
            What::Health(_) => "health",
            What::Changed => "changed",
        };
        self.docker_events.get_or_create(&[("event", event)]).inc();
    }

    /// Counts what Docker was asked: `events`, `list` or `inspect`.
    pub(crate) fn docker_asked(&self, request: &'static str, answered: bool) {
        let result = if answered { "ok" } else { "failed" };
        self.docker_requests.get_or_create(&[("request", request), ("result", result)]).inc();
        if answered {
            self.docker_success.set(unix_time(SystemTime::now()));
        }
    }

    /// Says whether Docker answers.
    pub(crate) fn docker_connected(&self, is_connected: bool) {
        self.docker_connected.set(is_connected.into());
    }

    /// Writes what was read off the state. Nothing stays of what it said before.
    pub(crate) fn show(&self, overview: &Overview) {
        for (state, count) in &overview.containers {
            self.containers.get_or_create(&[("state", state)]).set(*count);
        }
        let now = SystemTime::now();
        let moment = |ago: Option<Duration>| ago.and_then(|ago| now.checked_sub(ago)).map_or(0.0, unix_time);
        // The API may have been found out since.
        self.keys.clear();
        self.etcd_connected.clear();
        self.etcd_success.clear();
        self.refreshed.clear();
        for etcd in &overview.etcd {
            let api = ("api", label(etcd.api));
            for (state, count) in etcd.keys {
                self.keys.get_or_create(&[api, ("state", state)]).set(count);
            }
            self.etcd_connected.get_or_create(&[api]).set(etcd.is_connected.into());
            self.etcd_success.get_or_create(&[api]).set(moment(etcd.answered));
            self.refreshed.get_or_create(&[api]).set(moment(etcd.refreshed));
            drop(self.lost.get_or_create(&[api]));
            drop(self.regained.get_or_create(&[api]));
            for operation in WRITES {
                for result in RESULTS {
                    drop(self.writes.get_or_create(&[api, ("operation", operation), ("result", result)]));
                }
            }
            for cause in Trouble::ALL.into_iter().filter(|cause| *cause != Trouble::Conflict) {
                drop(self.etcd_failures.get_or_create(&[api, ("cause", cause.as_str())]));
            }
        }
    }
}

/// What became of a key that was to be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Written {
    /// It is as it was to be.
    Ok,
    /// It was gone.
    Lost,
    /// Somebody else wrote it, or into it.
    Taken,
    /// etcd did not do it.
    Failed,
}

/// What a daemon's state says at one moment.
#[derive(Debug, Default)]
pub(crate) struct Overview {
    /// How many containers are in which state; the agent's.
    pub(crate) containers: Vec<(&'static str, i64)>,
    /// What keeps the keys.
    pub(crate) store: StoreKind,
    /// How it stands with that, for each API that keys are kept by.
    pub(crate) etcd: Vec<EtcdOverview>,
    /// What must still come before it is ready, in words.
    pub(crate) missing: Vec<&'static str>,
}

impl fmt::Display for Overview {
    /// In one line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sum = |of: fn(&EtcdOverview) -> i64| self.etcd.iter().map(of).sum::<i64>();
        let count = sum(|etcd| {
            etcd.keys.iter().filter(|(state, _)| matches!(*state, "registered" | "draining")).map(|(_, n)| n).sum()
        });
        write!(f, "{count} {} in {}", if count == 1 { "key" } else { "keys" }, self.store)?;
        if self.etcd.iter().any(|etcd| etcd.answered.is_some() && !etcd.is_connected) {
            write!(f, ", which does not answer")?;
        }
        self.missing.iter().try_for_each(|missing| write!(f, "; {missing}"))
    }
}

/// How it stands with the keys in one store.
#[derive(Debug)]
pub(crate) struct EtcdOverview {
    pub(crate) api: Option<Api>,
    pub(crate) is_connected: bool,
    /// How long ago etcd answered last.
    pub(crate) answered: Option<Duration>,
    /// How long ago a key was written or refreshed last.
    pub(crate) refreshed: Option<Duration>,
    pub(crate) keys: [(&'static str, i64); 4],
}

fn label(api: Option<Api>) -> &'static str {
    api.map_or("unknown", Api::as_str)
}

fn unix_time(at: SystemTime) -> f64 {
    at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::Path;

    use super::*;

    /// Each metric's name as Prometheus knows it, with its type.
    fn exported(daemon: Daemon) -> BTreeMap<String, String> {
        let (metrics, mut registry) = (Metrics::default(), Registry::default());
        metrics.register(&mut registry, daemon, Duration::from_secs(20));
        let etcd = EtcdOverview {
            api: None,
            is_connected: false,
            answered: None,
            refreshed: None,
            keys: [("registered", 0); 4],
        };
        metrics.show(&Overview { containers: vec![("answering", 1)], etcd: vec![etcd], ..Overview::default() });
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
        let suffix = |kind: &str| match kind {
            "counter" => "_total",
            "info" => "_info",
            _ => "",
        };
        types.map(|(name, kind)| (format!("{name}{}", suffix(kind)), kind.to_owned())).collect()
    }

    #[test]
    fn the_page_lists_exactly_the_metrics_that_the_agent_exports() {
        let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/metrics-registrar.md");
        let page = std::fs::read_to_string(page).unwrap();
        let (_, table) = page.split_once("\n## Metrics\n").unwrap();
        let cell = |text: &str| text.trim().trim_matches('`').to_owned();
        let listed: BTreeMap<String, String> = table
            .lines()
            .filter(|line| line.starts_with("| `"))
            .map(|line| {
                let cells: Vec<&str> = line.trim_matches('|').split('|').collect();
                assert_eq!(cells.len(), 5, "name, type, labels, what it means, what to do: {line}");
                (cell(cells[0]), cell(cells[1]))
            })
            .collect();
        assert_eq!(listed, exported(Daemon::Agent));
    }

    #[test]
    fn names_have_the_form_that_prometheus_asks_for_and_the_others_export_a_part() {
        let all = exported(Daemon::Agent);
        for (name, kind) in &all {
            assert!(name.starts_with("registrar_") || name.starts_with("process_"), "{name}");
            assert_eq!(name.ends_with("_total"), kind == "counter", "{name} {kind}");
        }
        for daemon in [Daemon::Sidekick, Daemon::Static] {
            assert!(exported(daemon).iter().all(|metric| all.get(metric.0) == Some(metric.1)), "{daemon:?}");
        }
        assert!(!exported(Daemon::Static).keys().any(|name| name.contains("docker")));
    }

    #[test]
    fn what_was_found_out_of_etcd_leaves_nothing_of_what_was_not_known() {
        let metrics = Metrics::default();
        let etcd = |api| EtcdOverview {
            api,
            is_connected: true,
            answered: None,
            refreshed: None,
            keys: [("registered", 1); 4],
        };
        for api in [None, Some(Api::V2)] {
            metrics.show(&Overview { etcd: vec![etcd(api)], ..Overview::default() });
        }
        assert!(metrics.keys.get(&[("api", "unknown"), ("state", "registered")]).is_none());
        assert!(metrics.keys.get(&[("api", "v2"), ("state", "registered")]).is_some());
    }
}
