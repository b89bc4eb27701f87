//! What is counted and measured, under the names that Prometheus reads. It decides nothing.
//!
//! Counters are raised where the thing happens; what is a state is read off the picture that an operator is shown, when
//! somebody asks. All names begin with `discoverer_`, and no label takes its values from outside but `service`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use registry::{Sign, Trouble};
use tokio::sync::watch;

use crate::plan::Reason;
use crate::view::{Connection, LeftOut, Part, View};

/// One label, and its value.
type Label = [(&'static str, &'static str); 1];

/// From a change that HAProxy is told over its socket to a reload of 10,000 servers, in seconds.
const APPLY_BUCKETS: [f64; 13] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0];
/// From a container that answers at once to one that takes minutes to start, in seconds.
const PROPAGATION_BUCKETS: [f64; 12] = [0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0];
/// From a small file to 10,000 servers, in seconds.
const RELOAD_BUCKETS: [f64; 9] = [0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 30.0];

/// What may fail, as [`crate::apply::ApplyError::kind`] names it, and the runtime API.
const FAILURES: [&str; 7] = ["template", "check", "output", "reload", "elsewhere", "bind", "runtime_api"];

/// The handles. Cheap to clone: all clones count together.
#[derive(Debug, Clone)]
pub struct Metrics {
    lists: Counter,
    registry_errors: Family<[(&'static str, &'static str); 2], Counter>,
    watched: Arc<Watched>,
    changes: Family<Label, Counter>,
    refusals: Counter,
    propagation: Histogram,
    apply: Histogram,
    applied: Family<Label, Counter>,
    commands: Counter,
    reloads: Family<Label, Counter>,
    reload: Histogram,
    failures: Family<Label, Counter>,
    last_success: Gauge<f64, AtomicU64>,
    template_errors: Counter,
    deaths: Counter,
}

impl Default for Metrics {
    fn default() -> Self {
        let metrics = Self {
            lists: Counter::default(),
            registry_errors: Family::default(),
            watched: Arc::default(),
            changes: Family::default(),
            refusals: Counter::default(),
            propagation: Histogram::new(PROPAGATION_BUCKETS),
            apply: Histogram::new(APPLY_BUCKETS),
            applied: Family::default(),
            commands: Counter::default(),
            reloads: Family::default(),
            reload: Histogram::new(RELOAD_BUCKETS),
            failures: Family::default(),
            last_success: Gauge::default(),
            template_errors: Counter::default(),
            deaths: Counter::default(),
        };
        // What has not happened yet is told as 0: of what appears with its first value Prometheus sees no rise.
        for request in ["list", "watch"] {
            for cause in Trouble::ALL {
                drop(metrics.registry_errors.get_or_create(&[("request", request), ("cause", cause.as_str())]));
            }
        }
        for kind in ChangeKind::ALL {
            drop(metrics.changes.get_or_create(&[("kind", kind.as_str())]));
        }
        for how in ["nothing", "runtime", "reload"] {
            drop(metrics.applied.get_or_create(&[("how", how)]));
        }
        for kind in FAILURES {
            drop(metrics.failures.get_or_create(&[("kind", kind)]));
        }
        for reason in ["start", "no_runtime_socket", "runtime_api", "watch"].into_iter().chain(Reason::KINDS) {
            drop(metrics.reloads.get_or_create(&[("reason", reason)]));
        }
        metrics
    }
}

/// A change in etcd, by kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChangeKind {
    /// A key was written.
    Put,
    /// A key was deleted.
    Deleted,
    /// A key expired.
    Expired,
    /// A directory went.
    Directory,
    /// A listing was not what was known.
    Listing,
}

impl ChangeKind {
    const ALL: [Self; 5] = [Self::Put, Self::Deleted, Self::Expired, Self::Directory, Self::Listing];

    fn as_str(self) -> &'static str {
        match self {
            Self::Put => "put",
            Self::Deleted => "deleted",
            Self::Expired => "expired",
            Self::Directory => "directory",
            Self::Listing => "listing",
        }
    }
}

impl Metrics {
    /// Lets them be read. `views` is what states are read off.
    pub fn register(&self, registry: &mut Registry, views: watch::Receiver<Option<Arc<View>>>) {
        let registry = registry.sub_registry_with_prefix("discoverer");
        let Self { lists, registry_errors, watched, changes, refusals, propagation, apply, applied, .. } = self.clone();
        let Self { commands, reloads, reload, failures, last_success, template_errors, deaths, .. } = self.clone();
        registry.register("registry_lists", "Listings of the directory in etcd", lists);
        registry.register(
            "registry_errors",
            "Requests to etcd that failed, by request (list or watch) and cause",
            registry_errors,
        );
        registry.register("changes", "Changes seen in etcd, by kind", changes);
        registry.register("refusals", "Keys, settings and routes that were newly left out", refusals);
        registry.register_with_unit(
            "propagation",
            "From an instance's registered start (by its host's clock) until HAProxy was told of it",
            Unit::Seconds,
            propagation,
        );
        registry.register_with_unit(
            "apply",
            "From a change's arrival from etcd until HAProxy was told of it",
            Unit::Seconds,
            apply,
        );
        registry.register("applied", "Times that HAProxy came to run what was wanted, by how", applied);
        registry.register("runtime_commands", "Commands sent to HAProxy's stats socket to change servers", commands);
        registry.register("reloads", "Reloads that HAProxy carried out, by reason", reloads);
        registry.register_with_unit("reload", "How long a reload took", Unit::Seconds, reload);
        registry.register("failures", "Attempts that did not lead to what was wanted, by kind", failures);
        registry.register_with_unit(
            "last_success_timestamp",
            "When HAProxy last came to run what was wanted, in Unix time",
            Unit::Seconds,
            last_success,
        );
        registry.register("haproxy_deaths", "Times that the HAProxy of --supervise died, or did not start", deaths);
        registry.register("template_errors", "Templates that could not be read or rendered", template_errors);
        registry.register_collector(Box::new(States { views, watched }));
    }

    /// How the watch fares.
    pub fn sign(&self, sign: Sign<'_>) {
        let failed = |request, error: &registry::StoreError| {
            let labels = [("request", request), ("cause", error.trouble().as_str())];
            self.registry_errors.get_or_create(&labels).inc();
        };
        match sign {
            Sign::Listed => {
                self.lists.inc();
                self.watched.now();
            }
            Sign::Watched => self.watched.now(),
            Sign::ListFailed(error) => failed("list", error),
            Sign::WatchFailed(error) => failed("watch", error),
        }
    }

    /// A change in etcd.
    pub fn changed(&self, kind: ChangeKind) {
        self.changes.get_or_create(&[("kind", kind.as_str())]).inc();
    }

    /// Something was newly left out.
    pub fn refused(&self, count: usize) {
        self.refusals.inc_by(count as u64);
    }

    /// An instance is in, so long after its start.
    pub fn propagated(&self, seconds: f64) {
        self.propagation.observe(seconds);
    }

    /// HAProxy was told of a change, so long after it came.
    pub fn told(&self, since: Instant) {
        self.apply.observe(since.elapsed().as_secs_f64());
    }

    /// HAProxy runs what is wanted.
    pub fn applied(&self, how: &'static str) {
        self.applied.get_or_create(&[("how", how)]).inc();
        let now = jiff::Timestamp::now();
        self.last_success.set(now.as_millisecond() as f64 / 1000.0);
    }

    /// Commands were sent.
    pub fn commands(&self, count: usize) {
        self.commands.inc_by(count as u64);
    }

    /// A reload was carried out.
    pub fn reloaded(&self, reason: &'static str, seconds: f64) {
        self.reloads.get_or_create(&[("reason", reason)]).inc();
        self.reload.observe(seconds);
    }

    /// Something did not lead to what was wanted.
    pub fn failed(&self, kind: &'static str) {
        self.failures.get_or_create(&[("kind", kind)]).inc();
    }

    /// What counts the deaths of the HAProxy that is our child.
    pub fn deaths(&self) -> Counter {
        self.deaths.clone()
    }

    /// A template cannot be used.
    pub fn template_failed(&self) {
        self.template_errors.inc();
    }
}

/// When the watch was last known to be alive.
#[derive(Debug)]
struct Watched {
    begun: Instant,
    /// Milliseconds after that; none before the first time.
    at: AtomicU64,
}

impl Default for Watched {
    fn default() -> Self {
        Self { begun: Instant::now(), at: AtomicU64::new(0) }
    }
}

impl Watched {
    fn millis(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn now(&self) {
        self.at.store(self.millis(), Ordering::Relaxed);
    }

    /// Seconds since then, or since the start of the process.
    fn age(&self) -> f64 {
        self.millis().saturating_sub(self.at.load(Ordering::Relaxed)) as f64 / 1000.0
    }
}

/// What is read off the newest picture.
#[derive(Debug)]
struct States {
    views: watch::Receiver<Option<Arc<View>>>,
    watched: Arc<Watched>,
}

impl Collector for States {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let view = self.views.borrow().clone();
        let age = ConstGauge::new(self.watched.age());
        let text = "Since the registry was last heard of, or vouched for its silence";
        let metric = encoder.encode_descriptor("watch_age", text, Some(&Unit::Seconds), MetricType::Gauge)?;
        age.encode(metric)?;
        let ready = view.as_ref().is_some_and(|view| view.is_ready());
        gauge(&mut encoder, "ready", "Whether HAProxy has had a configuration of this process", ready.into())?;
        let Some(view) = view else { return Ok(()) };
        let is_connected = view.registry.connection == Connection::Connected;
        gauge(&mut encoder, "registry_connected", "Whether the registry is followed", is_connected.into())?;
        gauge(&mut encoder, "registry_index", "etcd's index (v2) or revision (v3) up to which changes are known", {
            i64::try_from(view.registry.index).unwrap_or(i64::MAX)
        })?;
        let is_current = view.haproxy.error.is_none() && view.is_ready();
        gauge(&mut encoder, "configuration_current", "Whether HAProxy runs what is wanted", is_current.into())?;
        let is_good = view.discoverer.template_error.is_none();
        gauge(&mut encoder, "template_good", "Whether the template is in use as it is on disk", is_good.into())?;
        let is_good = view.discoverer.config_error.is_none();
        gauge(&mut encoder, "config_good", "Whether the configuration is in use as it was read last", is_good.into())?;
        if let Some(is_up) = view.haproxy.is_up {
            gauge(&mut encoder, "haproxy_up", "Whether HAProxy answers", is_up.into())?;
        }
        gauge(&mut encoder, "services", "Services that are known", count(view.services.len()))?;
        encode_left_out(&mut encoder, &view)?;
        encode_instances(&mut encoder, &view)
    }
}

fn encode_left_out(encoder: &mut DescriptorEncoder<'_>, view: &View) -> fmt::Result {
    let text = "What is left out of the configuration at the moment, by part";
    let mut metric = encoder.encode_descriptor("left_out", text, None, MetricType::Gauge)?;
    for part in Part::ALL {
        let named = view.left_out.iter().filter(|left_out| left_out.what == part).count();
        let unnamed = if part == Part::Key { view.more_left_out } else { 0 };
        let gauge = ConstGauge::new(count(named + unnamed));
        gauge.encode(metric.encode_family(&[("part", part.as_str())])?)?;
    }
    Ok(())
}

fn encode_instances(encoder: &mut DescriptorEncoder<'_>, view: &View) -> fmt::Result {
    let text = "Instances, by service and status (up, draining, suspect, refused)";
    let mut metric = encoder.encode_descriptor("instances", text, None, MetricType::Gauge)?;
    let of = |part| view.left_out.iter().filter(move |l| l.what == part).filter_map(|l| l.service.as_ref());
    let set_aside: BTreeSet<_> = of(Part::Service).collect();
    let mut refused: BTreeMap<_, usize> = BTreeMap::new();
    let with_address = |out: &&LeftOut| matches!(out.what, Part::Instance | Part::Key) && out.address.is_some();
    for name in view.left_out.iter().filter(with_address).filter_map(|out| out.service.as_ref()) {
        *refused.entry(name).or_default() += 1;
    }
    for (name, service) in &view.shut_out {
        *refused.entry(name).or_default() += service.instances.len();
    }
    for (name, service) in view.services.iter() {
        let mut by_status = [("up", 0), ("draining", 0), ("suspect", 0), ("refused", 0)];
        by_status[3].1 = refused.remove(name).unwrap_or(0);
        let is_set_aside = set_aside.contains(name);
        for instance in &service.instances {
            let at = match instance {
                _ if is_set_aside => 3,
                instance if instance.draining => 1,
                instance if instance.suspect => 2,
                _ => 0,
            };
            by_status[at].1 += 1;
        }
        for (status, instances) in by_status {
            let labels = [("service", name.as_str()), ("status", status)];
            ConstGauge::new(count(instances)).encode(metric.encode_family(&labels)?)?;
        }
    }
    for (name, instances) in refused {
        let labels = [("service", name.as_str()), ("status", "refused")];
        ConstGauge::new(count(instances)).encode(metric.encode_family(&labels)?)?;
    }
    Ok(())
}

fn gauge(encoder: &mut DescriptorEncoder<'_>, name: &str, text: &str, value: i64) -> fmt::Result {
    let metric = encoder.encode_descriptor(name, text, None, MetricType::Gauge)?;
    ConstGauge::new(value).encode(metric)
}

fn count(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_not_happened_yet_is_told_as_0_and_every_name_has_our_prefix() {
        let (_views, seen) = watch::channel(None);
        let mut registry = Registry::default();
        let metrics = Metrics::default();
        metrics.register(&mut registry, seen);
        let text = |registry: &Registry| {
            let mut text = String::new();
            prometheus_client::encoding::text::encode(&mut text, registry).unwrap();
            text
        };
        let before = text(&registry);
        for line in [
            "discoverer_registry_errors_total{request=\"watch\",cause=\"timeout\"} 0",
            "discoverer_failures_total{kind=\"bind\"} 0",
            "discoverer_reloads_total{reason=\"start\"} 0",
            "discoverer_propagation_seconds_count 0",
            "discoverer_ready 0",
        ] {
            assert!(before.lines().any(|l| l == line), "{line} is not in\n{before}");
        }
        let names = before.lines().filter_map(|line| line.strip_prefix("# TYPE "));
        assert!(names.clone().count() > 10 && names.clone().all(|name| name.starts_with("discoverer_")), "{before}");

        metrics.sign(Sign::ListFailed(&registry::StoreError::Client("none".to_owned())));
        metrics.commands(3);
        metrics.reloaded("start", 0.2);
        let after = text(&registry);
        for line in [
            "discoverer_registry_errors_total{request=\"list\",cause=\"client\"} 1",
            "discoverer_runtime_commands_total 3",
            "discoverer_reload_seconds_bucket{le=\"0.25\"} 1",
            "discoverer_reload_seconds_bucket{le=\"0.1\"} 0",
        ] {
            assert!(after.lines().any(|l| l == line), "{line} is not in\n{after}");
        }
    }
}
