//! Makes the picture that an operator is shown, and swaps it in whole. It decides nothing.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use jiff::Timestamp;
use registry::{InstanceAddress, ServiceName};
use tokio::sync::watch;

use crate::apply::Applier;
use crate::catalog::{Catalog, Step};
use crate::feed::{Difference, Feed, What, differences};
use crate::metrics::Metrics;
use crate::model::{Instance, Services};
use crate::options::UnreadOption;
use crate::view::{Connection, DiscovererView, HaproxyView, LeftOut, Part, RegistryView, View};

/// Of so many instances that HAProxy was not told of yet it is kept in mind since when they are there.
const WAITING_LIMIT: usize = 10_000;

/// Where pictures are seen.
pub(crate) type Views = watch::Receiver<Option<Arc<View>>>;

/// What is known of what a picture shows.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stage {
    /// The registry has been listed, or what was kept of it is used.
    pub(crate) is_listed: bool,
    /// HAProxy runs it.
    pub(crate) is_applied: bool,
}

/// Makes pictures, and keeps what is only told by comparing two of them.
#[derive(Debug)]
pub(crate) struct Publisher {
    views: watch::Sender<Option<Arc<View>>>,
    metrics: Metrics,
    discoverer: DiscovererView,
    feed: Feed,
    version: u64,
    /// Whether a picture was shown of a registry that is known.
    is_listed: bool,
    /// Not all keys that are left out were told one by one.
    had_more: bool,
    /// What was shown last.
    services: Arc<Services>,
    left_out: BTreeSet<(Part, String, String)>,
    haproxy: Option<HaproxyView>,
    /// Instances of which HAProxy was told in short since the last picture.
    told: HashSet<(ServiceName, Option<InstanceAddress>)>,
    /// Those that have come and of which HAProxy is still to be told, with their starts.
    waiting: HashMap<(ServiceName, Option<InstanceAddress>), Timestamp>,
    /// Whether anybody can look.
    is_shown: bool,
}

impl Publisher {
    /// One that has shown nothing yet, and where its pictures are seen. Where nobody can look it makes none.
    pub(crate) fn new(discoverer: DiscovererView, metrics: Metrics, is_shown: bool) -> (Self, Views) {
        let (views, seen) = watch::channel(None);
        let publisher = Self {
            views,
            metrics,
            discoverer,
            feed: Feed::default(),
            version: 0,
            is_listed: false,
            had_more: false,
            services: Arc::default(),
            left_out: BTreeSet::new(),
            haproxy: None,
            told: HashSet::new(),
            waiting: HashMap::new(),
            is_shown,
        };
        (publisher, seen)
    }

    /// HAProxy was told of single instances, before the next picture.
    pub(crate) fn stepped(&mut self, steps: &[Step]) {
        if !self.is_shown {
            return;
        }
        let now = Timestamp::now();
        for step in steps.iter().filter(|step| step.came) {
            if let Some(start) = self.start(&step.instance) {
                self.metrics.propagated((now - start).as_secs_f64());
                if self.told.len() < WAITING_LIMIT {
                    self.told.insert((step.settings.name.clone(), address(&step.instance)));
                }
            }
        }
    }

    /// When the instance's container was started; none where that is not known, or was before our own start: the time since
    /// then is no measure of anything.
    fn start(&self, instance: &Instance) -> Option<Timestamp> {
        instance.record.registered.filter(|start| *start >= self.discoverer.started)
    }

    /// HAProxy runs what is wanted.
    fn all_told(&mut self) {
        let now = Timestamp::now();
        for (_, start) in self.waiting.drain() {
            self.metrics.propagated((now - start).as_secs_f64());
        }
    }

    /// Shows how HAProxy stands now, where that is not what was shown last, and nothing else has changed.
    pub(crate) fn publish_haproxy(&mut self, applier: &mut Applier) {
        if !self.is_shown {
            return;
        }
        let has_notes = self.take_notes(applier);
        let haproxy = applier.view();
        if !has_notes && self.haproxy.as_ref() == Some(&haproxy) {
            return;
        }
        self.haproxy = Some(haproxy.clone());
        self.replace(|view| view.haproxy = haproxy);
    }

    /// Shows that something has been being applied since then, which takes long.
    pub(crate) fn publish_applying(&mut self, since: Timestamp) {
        self.replace(|view| view.haproxy.applying_since = Some(since));
    }

    /// Shows the last picture again with a change.
    fn replace(&mut self, change: impl FnOnce(&mut View)) {
        let Some(mut view) = self.views.borrow().as_deref().cloned() else { return };
        self.version += 1;
        (view.version, view.at, view.feed) = (self.version, Timestamp::now(), self.feed.notes());
        change(&mut view);
        self.views.send_replace(Some(Arc::new(view)));
    }

    /// Shows everything. `stage` says what is known of it.
    pub(crate) fn publish(
        &mut self,
        services: Arc<Services>,
        catalog: &Catalog,
        registry: &RegistryView,
        applier: &mut Applier,
        stage: Stage,
    ) {
        if !self.is_shown {
            return;
        }
        let now = Timestamp::now();
        self.take_notes(applier);
        self.compare_registry(registry, now);
        // What is there at the beginning has not come.
        let is_first = !std::mem::replace(&mut self.is_listed, stage.is_listed);
        self.compare_services(&services, is_first, now);
        let left_out = self.compare_left_out(catalog, applier, now);
        self.compare_template(applier.composer().complaint(), now);
        let haproxy = applier.view();
        if stage.is_applied {
            self.all_told();
        }
        self.haproxy = Some(haproxy.clone());
        self.version += 1;
        let view = View {
            version: self.version,
            at: now,
            discoverer: self.discoverer.clone(),
            services,
            shut_out: catalog.shut_out(),
            left_out,
            more_left_out: catalog.more_left_out(),
            registry: registry.clone(),
            haproxy,
            feed: self.feed.notes(),
        };
        self.views.send_replace(Some(Arc::new(view)));
    }

    fn take_notes(&mut self, applier: &mut Applier) -> bool {
        let notes = applier.take_notes();
        for (at, what, words) in &notes {
            self.feed.say(*at, *what, words);
        }
        !notes.is_empty()
    }

    fn compare_registry(&mut self, registry: &RegistryView, now: Timestamp) {
        let before = self.views.borrow().as_ref().map(|view| (view.registry.connection, view.registry.error.clone()));
        let (before, before_error) = before.unwrap_or((Connection::Connecting, None));
        match registry.connection {
            Connection::Connected if before != Connection::Connected => {
                self.feed.say(now, What::RegistryConnected, "");
            }
            Connection::Unreachable if before != Connection::Unreachable || before_error != registry.error => {
                self.feed.say(now, What::RegistryLost, registry.error.as_deref().unwrap_or_default());
            }
            _ => {}
        }
    }

    fn compare_services(&mut self, services: &Arc<Services>, is_first: bool, now: Timestamp) {
        let before = std::mem::replace(&mut self.services, Arc::clone(services));
        let told = std::mem::take(&mut self.told);
        if is_first {
            return;
        }
        for Difference { what, service, instance } in differences(&before, services) {
            let words = match (what, instance) {
                (What::Came | What::Went | What::Drains | What::Suspect, Some(instance)) => who(instance),
                _ => String::new(),
            };
            self.feed.add(now, what, Some(&service.name), instance.and_then(|instance| address(instance)), &words);
            if let (What::Came, Some(instance)) = (what, instance)
                && let Some(start) = self.start(instance)
                && !told.contains(&(service.name.clone(), address(instance)))
                && self.waiting.len() < WAITING_LIMIT
            {
                self.waiting.insert((service.name.clone(), address(instance)), start);
            }
            if let (What::Went, Some(instance)) = (what, instance) {
                self.waiting.remove(&(service.name.clone(), address(instance)));
            }
        }
    }

    fn compare_left_out(&mut self, catalog: &Catalog, applier: &Applier, now: Timestamp) -> Vec<LeftOut> {
        let mut left_out = catalog.left_out();
        left_out.extend(applier.composer().left_out().map(|(name, reason)| LeftOut {
            what: Part::Service,
            service: Some(name.clone()),
            address: None,
            subject: name.to_string(),
            reason: reason.to_owned(),
        }));
        left_out.sort();
        let identity = |left_out: &LeftOut| (left_out.what, left_out.subject.clone(), left_out.reason.clone());
        let now_out: BTreeSet<_> = left_out.iter().map(identity).collect();
        // Where not all keys are told, others are told each time.
        let has_more = catalog.more_left_out() > 0;
        let had_more = std::mem::replace(&mut self.had_more, has_more);
        let is_whole = !has_more && !had_more;
        let is_news = |out: &LeftOut| (is_whole || out.what != Part::Key) && !self.left_out.contains(&identity(out));
        for LeftOut { service, address, subject, reason, .. } in left_out.iter().filter(|out| is_news(out)) {
            self.feed.add(now, What::LeftOut, service.as_ref(), *address, &format!("{subject}: {reason}"));
        }
        // A key is not back in because it is gone, and one that is an instance now has come.
        let still_out: BTreeSet<_> = now_out.iter().map(|(what, subject, _)| (*what, subject)).collect();
        let is_back = |what: Part, subject: &String| {
            matches!(what, Part::Setting | Part::Route | Part::Service)
                && !still_out.contains(&(what, subject))
                && self.services.keys().any(|name| name.as_str() == subject)
        };
        for (what, subject, _) in self.left_out.difference(&now_out) {
            if is_back(*what, subject) {
                self.feed.say(now, What::BackIn, subject);
            }
        }
        self.left_out = now_out;
        left_out
    }

    /// Takes in whether the configuration that was read last is in use.
    pub(crate) fn configured(&mut self, error: Option<&str>) {
        self.discoverer.config_error = error.map(str::to_owned);
    }

    /// Takes in the options that no template reads; gives those of before.
    pub(crate) fn has_read(&mut self, unread: Vec<UnreadOption>) -> Vec<UnreadOption> {
        std::mem::replace(&mut self.discoverer.unread_options, unread)
    }

    fn compare_template(&mut self, error: Option<&str>, now: Timestamp) {
        if self.discoverer.template_error.as_deref() == error {
            return;
        }
        self.discoverer.template_error = error.map(str::to_owned);
        if let Some(error) = error {
            self.metrics.template_failed();
            self.feed.say(now, What::TemplateFailed, error);
        }
    }
}

fn address(instance: &Instance) -> Option<InstanceAddress> {
    InstanceAddress::new(instance.address, instance.port).ok()
}

/// Which container it is, and where.
fn who(instance: &Instance) -> String {
    let words = [instance.record.name.as_deref(), instance.record.host.as_deref()];
    words.into_iter().flatten().collect::<Vec<_>>().join(" on ")
}
