//! What etcd holds, as a model: a listing and the events after it become services with their instances. Pure:
//! no I/O, and time comes in as `now`.
//!
//! A key or value that is no instance is set aside and named, and the others go on. The cost of an event grows
//! with its service, not with the whole registry, unless it changes what the service is reached by.

mod gone;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use registry::settings::{HostNames, Mode, SettingError, UrlPath, parse_maxconn, parse_port, parse_switch};
use registry::{
    Cause, Entry, Event, InstanceAddress, InstanceKey, Listing, Position, Prefix, Record, ServiceName, Status,
};

use crate::drain::Draining;
use crate::model::{self, Instance, Service, Services};
use crate::share::Share;
use crate::view::{LeftOut, Part};

pub use self::gone::{Judged, Kept, KeptEntry, KeptService};

/// The weight of an instance whose record names none: HAProxy's own default is 1, which leaves no room below it.
const DEFAULT_WEIGHT: u16 = 100;
/// How many characters of a refused key are shown.
const SHOWN_LIMIT: usize = 200;
/// How many refused keys are told one by one.
const SHOWN_KEYS: usize = 1000;

/// What the catalog is told at its start.
#[derive(Debug, Clone)]
pub struct Options {
    /// The directory that is followed.
    pub prefix: Prefix,
    /// Whose instances are routed to.
    pub share: Share,
    /// The ports that TCP services may ask HAProxy to listen on.
    pub listen_ports: Vec<RangeInclusive<u16>>,
    /// How long a service with no instance stays known.
    pub forget_after: Duration,
    /// How long an instance whose key expired may stay.
    pub suspect_for: Duration,
    /// What the time to live of keys is taken for at least.
    pub least_life: Duration,
}

/// Something that was left out, and why.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Refusal {
    /// The key in etcd, or the service, with control characters escaped.
    pub key: String,
    /// What is wrong with it.
    pub reason: String,
}

/// What an update did.
#[derive(Debug, Default, PartialEq)]
pub struct Outcome {
    /// The services are not what they were before.
    pub changed: bool,
    /// Nothing changed but `steps`, and which instances are suspect: no setting, no weight of another instance.
    pub in_short: bool,
    /// The instances that came or went, where nothing else changed; see `in_short`.
    pub steps: Vec<Step>,
    /// What was newly left out.
    pub refused: Vec<Refusal>,
    /// A key that was left out is so no more: it is gone, or it is an instance now.
    pub has_fewer_refused: bool,
    /// The keys that expired and whose instances stay for now.
    pub suspected: Vec<InstanceKey>,
    /// How many keys are back whose instances had stayed.
    pub returned: usize,
}

/// An instance that came or went, with everything else as it was.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// Its service, without its instances: a batch of steps holds up none of their lists.
    pub settings: Service,
    /// What it is.
    pub instance: Arc<Instance>,
    /// It came; else it went.
    pub came: bool,
}

/// The registry's state as far as it is known.
#[derive(Debug)]
pub struct Catalog {
    options: Options,
    /// Every key with an instance of the share in it, by service.
    known: BTreeMap<ServiceName, Known>,
    /// The other instances: nobody is told of them, but they have their addresses, and say that their registrars live.
    outside: BTreeMap<InstanceKey, Member>,
    /// The keys that name an address: more than one where two services, or both layouts, claim it.
    claims: HashMap<InstanceAddress, Vec<InstanceKey>>,
    /// The addresses that more than one key names.
    contested: BTreeSet<InstanceAddress>,
    /// What was refused, by the key's path.
    refused: BTreeMap<String, String>,
    /// The service that holds each route; it keeps it while it asks for it.
    routes: BTreeMap<Route, ServiceName>,
    /// What templates get.
    services: Services,
    /// Services left out because another one holds their route.
    shut_out: BTreeMap<ServiceName, String>,
    /// The keys whose records drain.
    draining: BTreeSet<InstanceKey>,
    /// Rises with each change of such a record.
    drain_changes: u64,
    /// The keys that expired and whose instances stay for now.
    suspects: BTreeSet<InstanceKey>,
    /// What is known is the registry's state of then.
    position: Option<Position>,
    /// Since when the registry has been followed without a break; none while it cannot be.
    followed: Option<Instant>,
    /// The store tells the time to live of each key.
    tells_lives: bool,
}

/// One service, seen from the registry.
#[derive(Debug, Default)]
struct Known {
    members: BTreeMap<InstanceKey, Member>,
    built: Option<Arc<Service>>,
    refusals: Vec<String>,
    empty_since: Option<Instant>,
    /// What all members have in common, where it is all that the service is made of.
    common: Option<Common>,
}

/// What a service gets from its members, where each of them gives the same.
#[derive(Debug, Clone, PartialEq)]
struct Common {
    attributes: BTreeMap<String, String>,
    tags: Vec<String>,
    is_flat: bool,
}

impl Common {
    fn of(key: &InstanceKey, member: &Member) -> Self {
        let Record { attributes, tags, .. } = member.record.as_ref();
        Self { attributes: attributes.clone(), tags: tags.clone(), is_flat: key.is_flat() }
    }

    fn is_of(&self, key: &InstanceKey, member: &Member) -> bool {
        let Record { attributes, tags, .. } = member.record.as_ref();
        self.attributes == *attributes && self.tags == *tags && self.is_flat == key.is_flat()
    }

    /// What all have in common; none where they differ, or where one drains: then others' weights depend on it.
    fn of_all(members: &[(&InstanceKey, &Member)]) -> Option<Self> {
        let (key, member) = members.first()?;
        let common = Self::of(key, member);
        let is_plain = |(key, member): &(&InstanceKey, &Member)| {
            member.record.status == Status::Running && common.is_of(key, member)
        };
        members.iter().all(is_plain).then_some(common)
    }
}

#[derive(Debug, Clone)]
struct Member {
    record: Arc<Record>,
    age: Age,
    /// The longest that its key was seen to have to live.
    life: Option<Duration>,
    /// Since when its key has been there without a break.
    since: Instant,
    /// Since when its key is gone, where it stays nevertheless.
    suspect: Option<Instant>,
}

impl Member {
    fn new(entry: &Entry, record: Record, now: Instant) -> Self {
        let age = (record.registered, entry.created_index());
        Self { age, record: Arc::new(record), life: entry.ttl, since: now, suspect: None }
    }

    /// Whether its key said the same.
    fn says_the_same(&self, other: &Self) -> bool {
        self.record == other.record && self.age == other.age
    }

    /// Whether both are of one start of one container.
    fn is_same_start(&self, other: &Self) -> bool {
        let start = |member: &Self| (member.record.id.clone(), member.record.registered);
        self.record.id.is_some() && start(self) == start(other)
    }

    /// Takes over what is known of the key from before.
    fn follow(&mut self, before: &Self) {
        self.life = self.life.max(before.life);
        if before.suspect.is_none() {
            self.since = before.since;
        }
    }
}

/// The order of containers, oldest first: by the container's start, and where that is unknown or equal by the
/// key's creation in etcd.
type Age = (Option<Timestamp>, u64);

/// The order of keys that name one address, oldest first: by their creation in etcd, which a sidekick's key has too.
fn key_age((start, created): Age) -> (u64, Option<Timestamp>) {
    (created, start)
}

/// What only one service can have.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Route {
    Http { host: Option<String>, path: Option<UrlPath> },
    Port(u16),
}

impl Catalog {
    /// An empty catalog: nothing is known before the first listing.
    pub fn new(options: Options) -> Self {
        Self {
            options,
            known: BTreeMap::new(),
            outside: BTreeMap::new(),
            claims: HashMap::new(),
            contested: BTreeSet::new(),
            refused: BTreeMap::new(),
            routes: BTreeMap::new(),
            services: Services::new(),
            shut_out: BTreeMap::new(),
            draining: BTreeSet::new(),
            drain_changes: 0,
            suspects: BTreeSet::new(),
            position: None,
            followed: None,
            tells_lives: false,
        }
    }

    /// Takes other options than those that it was made with; the directory and the share stay.
    pub fn set_options(&mut self, options: Options, now: Instant) -> Outcome {
        let mut outcome = Outcome::default();
        let before = std::mem::replace(&mut self.options, options);
        (self.options.prefix, self.options.share) = (before.prefix, before.share);
        if before.listen_ports != self.options.listen_ports {
            self.rebuild(self.known.keys().cloned().collect(), now, &mut outcome);
        }
        outcome
    }

    /// The services, for templates.
    pub fn services(&self) -> &Services {
        &self.services
    }

    /// How many instances are outside of the share that is followed.
    pub fn outside(&self) -> usize {
        self.outside.len()
    }

    /// What is left out at the moment, sorted; of keys that are no instances the first [`SHOWN_KEYS`].
    pub fn left_out(&self) -> Vec<LeftOut> {
        let of_service = |what, name: &ServiceName, reason: &str| {
            let (service, subject) = (Some(name.clone()), name.to_string());
            LeftOut { what, service, address: None, subject, reason: reason.to_owned() }
        };
        let keys = self.refused.iter().take(SHOWN_KEYS).map(|(path, reason)| {
            let Refusal { key, reason } = refusal(path, reason);
            let known = InstanceKey::parse(&self.options.prefix, path).ok();
            let (service, address) = known.map(|key| (key.service().clone(), key.address())).unzip();
            LeftOut { what: Part::Key, service, address, subject: key, reason }
        });
        let settings = self
            .known
            .iter()
            .flat_map(|(name, known)| known.refusals.iter().map(move |reason| of_service(Part::Setting, name, reason)));
        // One that has gone is not kept out of anything.
        let has_instances = |name: &ServiceName| {
            self.known.get(name).and_then(|known| known.built.as_ref()).is_some_and(|built| !built.instances.is_empty())
        };
        let shut_out = self.shut_out.iter().filter(|(name, _)| has_instances(name));
        let routes = shut_out.map(|(name, reason)| of_service(Part::Route, name, reason));
        let outdone = self.contested.iter().flat_map(|address| self.outdone(*address));
        let mut all: Vec<_> = keys.chain(settings).chain(routes).chain(outdone).collect();
        all.sort();
        all
    }

    /// How many refused keys are left out besides those that [`Catalog::left_out`] tells.
    pub fn more_left_out(&self) -> usize {
        self.refused.len().saturating_sub(SHOWN_KEYS)
    }

    /// The services that templates do not get, since others hold all their routes.
    pub fn shut_out(&self) -> Services {
        let names = self.shut_out.keys().filter(|name| !self.services.contains_key(*name));
        names.filter_map(|name| Some((name.clone(), self.known.get(name)?.built.clone()?))).collect()
    }

    /// The keys of an address that another key names for a newer container.
    fn outdone(&self, address: InstanceAddress) -> impl Iterator<Item = LeftOut> {
        let keys = self.claims.get(&address).into_iter().flatten();
        let with_members: Vec<_> = keys.filter_map(|key| Some((key, self.member(key)?))).collect();
        let (newest, older): (Vec<_>, Vec<_>) =
            with_members.into_iter().partition(|(key, member)| self.is_newest(key, member));
        // One start of one container may be the newest under several keys: the same one is named whatever came first.
        let winner = newest.iter().map(|(key, _)| *key).min().map_or_else(String::new, ToString::to_string);
        let of_the_share = older.into_iter().filter(|(key, _)| !self.outside.contains_key(*key));
        of_the_share.map(move |(key, _)| LeftOut {
            what: Part::Instance,
            service: Some(key.service().clone()),
            address: Some(address),
            subject: key.to_string(),
            reason: format!("a newer container has this address: {winner}"),
        })
    }

    /// The instances that drain, without those whose address a newer container has.
    pub fn draining(&self) -> Draining {
        let instance = |key: &InstanceKey| {
            let members = &self.known.get(key.service())?.members;
            let member = members.get(key).filter(|member| self.is_newest(key, member))?;
            debug_assert_eq!(member.record.status, Status::Draining);
            let is_running = |(key, member): (&InstanceKey, &Member)| {
                member.record.status == Status::Running && self.is_newest(key, member)
            };
            Some((key.address(), !members.iter().any(is_running)))
        };
        let mut instances = BTreeMap::new();
        for (address, is_last) in self.draining.iter().filter_map(instance) {
            // Of a container in several services it is said where it is the last in one of them.
            *instances.entry(address).or_insert(false) |= is_last;
        }
        Draining { instances, changes: self.drain_changes }
    }

    /// Takes a whole listing: what is not in it has expired, or was removed with its directory.
    pub fn list(&mut self, mut listing: Listing, now: Instant) -> Outcome {
        let mut outcome = Outcome::default();
        let removed = self.follow(&mut listing, now);
        let listed: BTreeSet<&str> = listing.entries.iter().map(|entry| entry.path.as_str()).collect();
        let mut touched = BTreeSet::new();
        let gone: Vec<InstanceKey> = self.keys().filter(|key| !listed.contains(key.path().as_str())).cloned().collect();
        for key in gone {
            if removed.holds(&key) {
                self.remove_key(&key, &mut touched);
            } else {
                self.expire_key(&key, now, &mut touched, &mut outcome);
            }
        }
        let before = self.refused.len();
        self.refused.retain(|path, _| listed.contains(path.as_str()));
        outcome.has_fewer_refused = self.refused.len() < before;
        for entry in listing.entries {
            self.put(&entry, now, &mut touched, &mut outcome);
        }
        self.rebuild(touched, now, &mut outcome);
        outcome
    }

    /// Takes one event.
    pub fn apply(&mut self, event: Event, now: Instant) -> Outcome {
        let mut outcome = Outcome::default();
        if let Some(step) = self.step(&event, now) {
            return Outcome { changed: true, in_short: true, steps: vec![step], ..outcome };
        }
        if self.mark(&event, now, &mut outcome) {
            return outcome;
        }
        let mut touched = BTreeSet::new();
        match event {
            Event::Put(entry) => self.put(&entry, now, &mut touched, &mut outcome),
            Event::Removed { path, cause } => {
                outcome.has_fewer_refused = self.refused.remove(&path).is_some();
                let key = InstanceKey::parse(&self.options.prefix, &path);
                key.iter().for_each(|key| self.lose_key(key, cause, now, &mut touched, &mut outcome));
            }
            Event::RemovedTree { path, cause } => {
                let root = format!("{}/", path.trim_end_matches('/'));
                let before = self.refused.len();
                self.refused.retain(|path, _| !path.starts_with(&root));
                outcome.has_fewer_refused = self.refused.len() < before;
                let gone: Vec<_> = self.keys().filter(|key| key.path().starts_with(&root)).cloned().collect();
                gone.iter().for_each(|key| self.lose_key(key, cause, now, &mut touched, &mut outcome));
            }
        }
        self.rebuild(touched, now, &mut outcome);
        outcome
    }

    /// Takes an event that lets one instance come or go and changes nothing else; gives nothing, and does nothing,
    /// where it is not such an event. Its cost does not grow with the service.
    fn step(&mut self, event: &Event, now: Instant) -> Option<Step> {
        match event {
            Event::Put(entry) => {
                let key = InstanceKey::parse(&self.options.prefix, &entry.path).ok()?;
                let record = Record::parse(&entry.value).ok()?;
                let member = Member::new(entry, record, now);
                let known = self.known.get_mut(key.service())?;
                let is_new = !self.claims.contains_key(&key.address()) && !self.refused.contains_key(&entry.path);
                let is_plain = known.common.as_ref()?.is_of(&key, &member) && member.record.status == Status::Running;
                let published = self.services.get_mut(key.service())?;
                let built = known.built.as_mut()?;
                if !is_new || !is_plain || !Arc::ptr_eq(built, published) {
                    return None;
                }
                let at = position(built, key.address()).err()?;
                let instance = Arc::new(instance(key.address(), &member, false));
                alter(built, published, |instances| instances.insert(at, Arc::clone(&instance)));
                self.claims.insert(key.address(), vec![key.clone()]);
                known.members.insert(key, member);
                Some(Step { settings: published.settings(), instance, came: true })
            }
            Event::Removed { path, cause: Cause::Deleted } => {
                let key = InstanceKey::parse(&self.options.prefix, path).ok()?;
                let known = self.known.get_mut(key.service())?;
                let is_sole_claim = *self.claims.get(&key.address())? == [key.clone()];
                let published = self.services.get_mut(key.service())?;
                let built = known.built.as_mut()?;
                let is_last = known.members.len() < 2;
                if !is_sole_claim || known.common.is_none() || is_last || !Arc::ptr_eq(built, published) {
                    return None;
                }
                let at = position(built, key.address()).ok()?;
                let instance = alter(built, published, |instances| instances.remove(at));
                self.claims.remove(&key.address());
                known.members.remove(&key);
                self.suspects.remove(&key);
                Some(Step { settings: published.settings(), instance, came: false })
            }
            Event::Removed { .. } | Event::RemovedTree { .. } => None,
        }
    }

    /// When [`Catalog::forget`] has something to do next.
    pub fn next_forget(&self) -> Option<Instant> {
        let empty = self.known.values().filter_map(|known| known.empty_since).min()?;
        Some(empty + self.options.forget_after)
    }

    /// Forgets the services that have had no instance for long enough.
    pub fn forget(&mut self, now: Instant) -> Outcome {
        let mut outcome = Outcome::default();
        let limit = self.options.forget_after;
        let is_over = |known: &Known| known.empty_since.is_some_and(|since| now >= since + limit);
        let over: BTreeSet<_> =
            self.known.iter().filter(|(_, known)| is_over(known)).map(|(name, _)| name.clone()).collect();
        for name in &over {
            self.known.remove(name);
        }
        self.publish(over, &mut outcome);
        outcome
    }

    fn keys(&self) -> impl Iterator<Item = &InstanceKey> {
        self.known.values().flat_map(|known| known.members.keys()).chain(self.outside.keys())
    }

    /// What a key says, in the share or outside of it.
    fn member(&self, key: &InstanceKey) -> Option<&Member> {
        let of_the_share = self.known.get(key.service()).and_then(|known| known.members.get(key));
        of_the_share.or_else(|| self.outside.get(key))
    }

    fn put(&mut self, entry: &Entry, now: Instant, touched: &mut BTreeSet<ServiceName>, outcome: &mut Outcome) {
        let key = match InstanceKey::parse(&self.options.prefix, &entry.path) {
            Ok(key) => key,
            Err(error) => return self.refuse(&entry.path, &error.to_string(), outcome),
        };
        let record = match Record::parse(&entry.value) {
            Ok(record) => record,
            Err(error) => {
                self.remove_key(&key, touched);
                return self.refuse(&entry.path, &error.to_string(), outcome);
            }
        };
        outcome.has_fewer_refused |= self.refused.remove(&entry.path).is_some();
        let is_outside = !self.options.share.holds(&record);
        if is_outside != self.outside.contains_key(&key) {
            // It comes into the share, or leaves it, as if it were another one.
            self.remove_key(&key, touched);
        }
        self.note_drain(&key, record.status == Status::Draining, is_outside);
        let mut member = Member::new(entry, record, now);
        if is_outside {
            return self.put_outside(&key, member, touched);
        }
        let known = self.known.entry(key.service().clone()).or_default();
        let before = known.members.get_mut(&key);
        let was_live = before.as_ref().is_some_and(|before| before.suspect.is_none());
        if let Some(before) = before {
            member.follow(before);
            if was_live && before.says_the_same(&member) {
                before.life = member.life;
                return;
            }
        }
        if known.members.insert(key.clone(), member).is_none() {
            self.claim(&key);
        }
        if !was_live {
            outcome.returned += usize::from(self.suspects.remove(&key));
            self.take_over(&key, touched);
        }
        self.touch(key.address(), touched);
        touched.insert(key.service().clone());
    }

    /// Takes in an instance that is outside of the share.
    fn put_outside(&mut self, key: &InstanceKey, mut member: Member, touched: &mut BTreeSet<ServiceName>) {
        let before = self.outside.get(key);
        if let Some(before) = before {
            member.follow(before);
        }
        let (is_new, is_same) = (before.is_none(), before.is_some_and(|before| before.says_the_same(&member)));
        self.outside.insert(key.clone(), member);
        if is_new {
            self.claim(key);
            self.take_over(key, touched);
        }
        if !is_same {
            self.touch(key.address(), touched);
        }
    }

    /// Notes that a key names its address.
    fn claim(&mut self, key: &InstanceKey) {
        let claims = self.claims.entry(key.address()).or_default();
        claims.push(key.clone());
        if claims.len() > 1 {
            self.contested.insert(key.address());
        }
    }

    /// Keeps in mind which records drain. Of one outside of the share only that there was such a change: nothing of it is
    /// routed to, and whoever waits for it is told so at once.
    fn note_drain(&mut self, key: &InstanceKey, drains: bool, is_outside: bool) {
        let did = if drains && !is_outside { !self.draining.insert(key.clone()) } else { self.draining.remove(key) };
        self.drain_changes += u64::from(drains || did);
    }

    fn refuse(&mut self, path: &str, reason: &str, outcome: &mut Outcome) {
        if self.refused.insert(path.to_owned(), reason.to_owned()).as_deref() != Some(reason) {
            outcome.refused.push(refusal(path, reason));
        }
    }

    fn remove_key(&mut self, key: &InstanceKey, touched: &mut BTreeSet<ServiceName>) {
        let known = self.known.get_mut(key.service());
        let is_of_the_share = known.is_some_and(|known| known.members.remove(key).is_some());
        if !is_of_the_share && self.outside.remove(key).is_none() {
            return;
        }
        if is_of_the_share {
            self.suspects.remove(key);
            touched.insert(key.service().clone());
            self.note_drain(key, false, false);
        }
        self.touch(key.address(), touched);
        if let Some(keys) = self.claims.get_mut(&key.address()) {
            keys.retain(|other| other != key);
            if keys.len() < 2 {
                self.contested.remove(&key.address());
            }
            if keys.is_empty() {
                self.claims.remove(&key.address());
            }
        }
    }

    /// Every service that names an address is looked at again when one of them changes.
    fn touch(&self, address: InstanceAddress, touched: &mut BTreeSet<ServiceName>) {
        let keys = self.claims.get(&address).into_iter().flatten();
        touched.extend(keys.map(|key| key.service().clone()));
    }

    /// Whether no other key names the same address for a newer container; one that is there counts as newer than one that
    /// expired. A container may be in several services.
    fn is_newest(&self, key: &InstanceKey, member: &Member) -> bool {
        let others = self.claims.get(&key.address()).into_iter().flatten().filter(|other| *other != key);
        others.filter_map(|other| Some((self.member(other)?, other))).all(|(other_member, other)| {
            let rank = |member: &Member| (member.suspect.is_none(), key_age(member.age));
            member.is_same_start(other_member) || (rank(other_member), other) < (rank(member), key)
        })
    }

    fn rebuild(&mut self, touched: BTreeSet<ServiceName>, now: Instant, outcome: &mut Outcome) {
        let mut changed = BTreeSet::new();
        for name in touched {
            let Some(known) = self.known.get(&name) else { continue };
            let newest: Vec<_> = known.members.iter().filter(|(key, member)| self.is_newest(key, member)).collect();
            let built = if newest.is_empty() {
                // Its last settings stay, so that HAProxy says 503 (nobody there) and not 404 (no such thing).
                known.built.as_ref().map(|last| (last.settings(), known.refusals.clone()))
            } else {
                Some(build(&name, &newest, known.built.as_deref(), &self.options))
            };
            let is_empty = newest.is_empty();
            let common = Common::of_all(&newest).filter(|_| newest.len() == known.members.len());
            let Some((service, refusals)) = built else {
                // Nothing of it was ever served.
                self.drop_if_unused(&name);
                continue;
            };
            let Some(known) = self.known.get_mut(&name) else { continue };
            known.empty_since = if is_empty { known.empty_since.or(Some(now)) } else { None };
            for reason in refusals.iter().filter(|reason| !known.refusals.contains(reason)) {
                outcome.refused.push(refusal(name.as_str(), reason));
            }
            known.refusals = refusals;
            known.common = common;
            if known.built.as_deref() != Some(&service) {
                known.built = Some(Arc::new(service));
                changed.insert(name);
            }
        }
        self.publish(changed, outcome);
    }

    fn drop_if_unused(&mut self, name: &ServiceName) {
        if self.known.get(name).is_some_and(|known| known.members.is_empty() && known.built.is_none()) {
            self.known.remove(name);
        }
    }

    /// Brings `services` up to date for the services that changed.
    fn publish(&mut self, changed: BTreeSet<ServiceName>, outcome: &mut Outcome) {
        if changed.is_empty() {
            return;
        }
        let built = |name: &ServiceName| self.known.get(name).and_then(|known| known.built.as_ref());
        let same_routes = changed.iter().all(|name| {
            let before = self.services.get(name).map(|service| routes(service));
            before.is_some() && before == built(name).map(|service| routes(service))
        });
        // Where a service waits for a route, one that lost its last instance gives its own away.
        if same_routes && self.shut_out.is_empty() {
            for name in changed {
                if let Some(service) = self.known.get(&name).and_then(|known| known.built.clone()) {
                    self.services.insert(name, service);
                }
            }
            outcome.changed = true;
            return;
        }
        let before = std::mem::take(&mut self.services);
        self.share_routes(outcome);
        outcome.changed = self.services != before;
    }

    /// Gives each route to one service: to one that has instances before one that has only suspects, to that before one that
    /// has none, then to the one that has the route already, then to the one with the oldest container. Where a service gets only some of its hosts
    /// it goes on with those; where it gets none of its routes it is left out.
    fn share_routes(&mut self, outcome: &mut Outcome) {
        let mut claims: BTreeMap<Route, Vec<(Standing, bool, Age, &ServiceName)>> = BTreeMap::new();
        for (name, known) in &self.known {
            let Some(service) = &known.built else { continue };
            let oldest = known.members.values().map(|member| member.age).min().unwrap_or_default();
            let standing = Standing::of(service);
            for route in routes(service) {
                let is_held = self.routes.get(&route) == Some(name);
                claims.entry(route).or_default().push((standing, !is_held, oldest, name));
            }
        }
        let mut held: BTreeMap<Route, ServiceName> = BTreeMap::new();
        for (route, claims) in claims {
            if let Some((_, _, _, name)) = claims.into_iter().min() {
                held.insert(route, name.clone());
            }
        }
        let mut shut_out = BTreeMap::new();
        let mut services = Services::new();
        for (name, known) in &self.known {
            let Some(service) = &known.built else { continue };
            let (won, lost): (Vec<_>, Vec<_>) =
                routes(service).into_iter().partition(|route| held.get(route) == Some(name));
            if let Some(route) = lost.first() {
                let holder = held.get(route).map_or("another", ServiceName::as_str);
                let reason = format!("it wants {route}, which service {holder} has; the older claim wins");
                if self.shut_out.get(name) != Some(&reason) {
                    outcome.refused.push(refusal(name.as_str(), &reason));
                }
                shut_out.insert(name.clone(), reason);
            }
            if lost.is_empty() {
                services.insert(name.clone(), Arc::clone(service));
            } else if let Some(host) = HostNames::of(won.iter().filter_map(Route::host)) {
                let instances = service.instances.clone();
                let less = Service { host: Some(host), instances, ..service.settings() };
                services.insert(name.clone(), Arc::new(less));
            }
        }
        (self.routes, self.shut_out, self.services) = (held, shut_out, services);
    }
}

/// What a service's claim is worth; the least comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Standing {
    Live,
    /// All its instances are suspect.
    Suspect,
    Empty,
}

impl Standing {
    fn of(service: &Service) -> Self {
        match service.instances.iter().find(|instance| !instance.suspect) {
            Some(_) => Self::Live,
            None if service.instances.is_empty() => Self::Empty,
            None => Self::Suspect,
        }
    }
}

impl Route {
    fn host(&self) -> Option<&str> {
        match self {
            Self::Http { host, .. } => host.as_deref(),
            Self::Port(_) => None,
        }
    }
}

impl std::fmt::Display for Route {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Port(port) => write!(f, "port {port}"),
            Self::Http { host, path } => {
                let path = path.as_ref().map_or("/", UrlPath::as_str);
                write!(f, "{}{path}", host.as_deref().unwrap_or("any host"))
            }
        }
    }
}

fn routes(service: &Service) -> Vec<Route> {
    match service.mode {
        Mode::Tcp => service.listen.map(Route::Port).into_iter().collect(),
        Mode::Http if service.host.is_none() && service.path.is_none() => Vec::new(),
        Mode::Http => {
            let route = |host: Option<&str>| Route::Http { host: host.map(str::to_owned), path: service.path.clone() };
            match &service.host {
                Some(hosts) => hosts.iter().map(|host| route(Some(host))).collect(),
                None => vec![route(None)],
            }
        }
    }
}

fn refusal(key: &str, reason: &str) -> Refusal {
    let mut shown: String = key.chars().take(SHOWN_LIMIT).flat_map(char::escape_debug).collect();
    if key.chars().count() > SHOWN_LIMIT {
        shown.push_str("...");
    }
    Refusal { key: shown, reason: reason.to_owned() }
}

/// Changes the instances of a service that two places share. Nothing is copied unless a third one holds it.
fn alter<T>(
    built: &mut Arc<Service>,
    published: &mut Arc<Service>,
    change: impl FnOnce(&mut Vec<Arc<Instance>>) -> T,
) -> T {
    let mut service = std::mem::replace(built, Arc::new(published.settings()));
    published.clone_from(built);
    let result = change(&mut Arc::make_mut(&mut service).instances);
    published.clone_from(&service);
    *built = service;
    result
}

/// Where in a service's instances an address is, or belongs.
fn position(service: &Service, address: InstanceAddress) -> Result<usize, usize> {
    service
        .instances
        .binary_search_by_key(&(address.ip(), address.port()), |instance| (instance.address, instance.port))
}

/// Builds a service from its members; gives what of their settings was refused too.
fn build(
    name: &ServiceName,
    members: &[(&InstanceKey, &Member)],
    last: Option<&Service>,
    options: &Options,
) -> (Service, Vec<String>) {
    let mut by_age: Vec<_> = members.iter().collect();
    by_age.sort_by_key(|(key, member)| (member.age, *key));
    // The newest comes last and overwrites.
    let mut attributes = BTreeMap::new();
    for (_, member) in &by_age {
        attributes.extend(member.record.attributes.iter().map(|(name, value)| (name.as_str(), value.as_str())));
    }
    let tags: BTreeSet<_> = members.iter().flat_map(|(_, member)| member.record.tags.clone()).collect();
    let flat = members.iter().any(|(key, _)| key.is_flat());
    let (settings, refusals) = build_settings(name, &attributes, tags.into_iter().collect(), flat, options);
    (Service { instances: instances(members, last), ..settings }, refusals)
}

/// Builds a service without its instances; gives what of its settings was refused too.
fn build_settings(
    name: &ServiceName,
    attributes: &BTreeMap<&str, &str>,
    tags: Vec<String>,
    flat: bool,
    options: &Options,
) -> (Service, Vec<String>) {
    let mut settings = Settings { attributes, refusals: Vec::new() };
    let mut service = Service {
        name: name.clone(),
        mode: settings.read("mode", str::parse).unwrap_or_default(),
        host: settings.read("host", str::parse::<HostNames>),
        path: settings.read("path", str::parse::<UrlPath>).and_then(UrlPath::without_last_slash),
        listen: settings.read("listen", parse_port),
        balance: settings.read("balance", str::parse).unwrap_or_default(),
        check: settings.read("check_http", str::parse),
        proto: settings.read("proto", str::parse).unwrap_or_default(),
        sticky: settings.read("sticky", parse_switch).unwrap_or_default(),
        maxconn: settings.read("maxconn", parse_maxconn),
        slowstart: settings.read("slowstart", str::parse),
        flat,
        tags,
        attributes: attributes.iter().map(|(&name, &value)| (name.to_owned(), value.to_owned())).collect(),
        instances: Vec::new(),
    };
    let mut refusals = settings.refusals;
    if let Some(port) = service.listen.filter(|port| !options.listen_ports.iter().any(|range| range.contains(port))) {
        refusals.push(format!("attribute listen: port {port} is outside --listen-ports"));
        service.listen = None;
    }
    match (service.mode, service.listen) {
        (Mode::Http, Some(port)) => {
            refusals
                .push(format!("attribute listen: port {port} is not opened; only a service with mode=tcp has its own"));
            service.listen = None;
        }
        (Mode::Tcp, None) => refusals.push("attribute mode: tcp without a listen port; nothing leads to it".to_owned()),
        _ => {}
    }
    (service, refusals)
}

/// The instances, sorted by address. Those that did not change are shared with the last build.
fn instances(members: &[(&InstanceKey, &Member)], last: Option<&Service>) -> Vec<Arc<Instance>> {
    let all_drain = members.iter().all(|(_, member)| member.record.status == Status::Draining);
    let mut instances: Vec<(InstanceAddress, Arc<Instance>)> = members
        .iter()
        .map(|(key, member)| (key.address(), Arc::new(instance(key.address(), member, all_drain))))
        .collect();
    instances.sort_by_key(|(address, _)| *address);
    let last = last.map(|service| service.instances.as_slice()).unwrap_or_default();
    let mut last = last.iter().peekable();
    for (_, instance) in &mut instances {
        let before = |other: &&Arc<Instance>| (other.address, other.port) < (instance.address, instance.port);
        while last.next_if(before).is_some() {}
        if let Some(same) = last.next_if(|other| *other == instance) {
            *instance = Arc::clone(same);
        }
    }
    instances.into_iter().map(|(_, instance)| instance).collect()
}

fn instance(address: InstanceAddress, member: &Member, all_drain: bool) -> Instance {
    let record = &member.record;
    let draining = record.status == Status::Draining;
    let weight = record.weight.unwrap_or(DEFAULT_WEIGHT);
    Instance {
        server: model::server_name(address),
        address: address.ip(),
        port: address.port(),
        // Where every instance drains, somebody still has to answer.
        weight: if draining && !all_drain { 0 } else { weight },
        draining,
        suspect: member.suspect.is_some(),
        record: Arc::clone(record),
    }
}

/// Reads typed settings from attributes and keeps what it refuses.
struct Settings<'a> {
    attributes: &'a BTreeMap<&'a str, &'a str>,
    refusals: Vec<String>,
}

impl Settings<'_> {
    fn read<T>(&mut self, name: &str, parse: impl Fn(&str) -> Result<T, SettingError>) -> Option<T> {
        let value = self.attributes.get(name).filter(|value| !value.is_empty())?;
        match parse(value) {
            Ok(value) => Some(value),
            Err(error) => {
                self.refusals.push(format!("attribute {name}: {error}"));
                None
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::suspect::Health;
    use proptest::prelude::*;

    pub(crate) fn options() -> Options {
        Options {
            prefix: "service".parse().unwrap(),
            share: Share::default(),
            listen_ports: vec![5000..=5999],
            forget_after: Duration::from_secs(60),
            suspect_for: Duration::from_secs(600),
            least_life: crate::suspect::LEAST_LIFE,
        }
    }

    /// Services of the given names, with one instance each.
    pub(crate) fn services_named(names: &[&str]) -> Services {
        let mut catalog = Catalog::new(options());
        for (number, name) in names.iter().enumerate() {
            catalog.apply(put(&format!("{name}/10.0.0.1:{}", 2000 + number), "running"), Instant::now());
        }
        catalog.services().clone()
    }

    pub(crate) fn put(below: &str, value: &str) -> Event {
        Event::Put(Entry::new(format!("/service/{below}"), value))
    }

    pub(crate) fn removed(below: &str) -> Event {
        Event::Removed { path: format!("/service/{below}"), cause: Cause::Deleted }
    }

    #[test]
    fn what_drains_is_told_with_whether_somebody_else_answers_and_counted_also_where_nothing_changes() {
        const DRAINING: &str = r#"{"status":"draining"}"#;
        let mut catalog = Catalog::new(options());
        let now = Instant::now();
        let seen = |catalog: &Catalog| {
            let Draining { instances, changes } = catalog.draining();
            (instances.iter().map(|(address, last)| format!("{address} {last}")).collect::<Vec<_>>(), changes)
        };
        catalog.apply(put("web/10.0.0.1:80", "running"), now);
        catalog.apply(put("web/10.0.0.2:80", "running"), now);
        assert_eq!(seen(&catalog), (vec![], 0));
        catalog.apply(put("web/10.0.0.1:80", DRAINING), now);
        assert_eq!(seen(&catalog), (vec!["10.0.0.1:80 false".to_owned()], 1));
        // An operator says it again, to know of whom it is heard.
        catalog.apply(put("web/10.0.0.1:80", DRAINING), now);
        assert_eq!(seen(&catalog).1, 2);
        catalog.apply(put("web/10.0.0.2:80", DRAINING), now);
        assert_eq!(seen(&catalog), (vec!["10.0.0.1:80 true".to_owned(), "10.0.0.2:80 true".to_owned()], 3));
        catalog.apply(put("web/10.0.0.2:80", "running"), now);
        assert_eq!(seen(&catalog), (vec!["10.0.0.1:80 false".to_owned()], 4));
        // A newer container has the address: what drains there is not routed to. It is counted all the same.
        let newer = r#"{"id":"b","registered":"2026-01-02T03:04:05Z"}"#;
        catalog.apply(Event::Put(Entry::created("/service/other/10.0.0.1:80", newer, 7)), now);
        assert_eq!(seen(&catalog), (vec![], 4));
        catalog.apply(put("web/10.0.0.1:80", DRAINING), now);
        assert_eq!(seen(&catalog), (vec![], 5));
        catalog.apply(removed("other/10.0.0.1:80"), now);
        assert_eq!(seen(&catalog).0, ["10.0.0.1:80 false"]);
        // Gone, refused, or not listed any more, it drains no longer.
        catalog.apply(put("web/10.0.0.1:80", "rubbish"), now);
        assert_eq!(seen(&catalog), (vec![], 6));
        catalog.apply(put("web/10.0.0.1:80", DRAINING), now);
        catalog.apply(removed("web/10.0.0.1:80"), now);
        assert_eq!(seen(&catalog), (vec![], 8));
        catalog.apply(put("web/10.0.0.1:80", DRAINING), now);
        catalog.list(listing(&[("web/10.0.0.2:80", "running")]), now);
        assert_eq!(seen(&catalog), (vec![], 10));
    }

    pub(crate) fn expired(below: &str) -> Event {
        Event::Removed { path: format!("/service/{below}"), cause: Cause::Expired }
    }

    pub(crate) fn listing(entries: &[(&str, &str)]) -> Listing {
        let entries = entries.iter().map(|(below, value)| Entry::new(format!("/service/{below}"), *value)).collect();
        Listing { entries, directories: None, position: Position::new(None, 1) }
    }

    pub(crate) fn catalog(entries: &[(&str, &str)]) -> Catalog {
        let mut catalog = Catalog::new(options());
        catalog.list(listing(entries), Instant::now());
        catalog
    }

    pub(crate) fn addresses(catalog: &Catalog, service: &str) -> Vec<String> {
        let service = &catalog.services()[&service.parse::<ServiceName>().unwrap()];
        service.instances.iter().map(|instance| format!("{}:{}", instance.address, instance.port)).collect()
    }

    #[test]
    fn both_layouts_are_read_at_once_and_sorted() {
        let catalog = catalog(&[("web/10.0.0.2:80", "running"), ("10.0.0.9:1", "running"), ("web/10.0.0.1:80", "{}")]);
        assert_eq!(addresses(&catalog, "web"), ["10.0.0.1:80", "10.0.0.2:80"]);
        assert_eq!(addresses(&catalog, "service"), ["10.0.0.9:1"]);
        assert!(catalog.services()[&"service".parse().unwrap()].flat);
    }

    #[test]
    fn bad_keys_and_values_are_named_and_the_others_go_on() {
        let mut catalog = Catalog::new(options());
        let bad = [
            ("evil 127.0.0.1:1 #", "running"),
            ("x\n  http-request deny #", "running"),
            ("web/${HOME}:80", "running"),
            ("_http/10.0.0.1:80", "running"),
            ("web/10.0.0.3:80", "{\"weight\":1000}"),
        ];
        let mut entries = bad.to_vec();
        entries.push(("web/10.0.0.1:80", "running"));
        let outcome = catalog.list(listing(&entries), Instant::now());
        assert_eq!(outcome.refused.len(), bad.len());
        assert!(outcome.refused.iter().all(|refusal| !refusal.key.contains('\n')), "{:?}", outcome.refused);
        assert_eq!(catalog.services().len(), 1);
        assert_eq!(addresses(&catalog, "web"), ["10.0.0.1:80"]);
        let again = catalog.list(listing(&entries), Instant::now());
        assert_eq!(again, Outcome::default(), "the same again is nothing new");
        for (key, _) in bad {
            catalog.apply(removed(key), Instant::now());
        }
        assert_eq!(catalog.left_out(), []);
    }

    #[test]
    fn a_value_that_turns_bad_takes_its_instance_out_and_the_repaired_one_is_back() {
        let mut catalog = catalog(&[("web/10.0.0.1:80", "running"), ("web/10.0.0.2:80", "running")]);
        assert!(catalog.apply(put("web/10.0.0.1:80", "garbage"), Instant::now()).changed);
        assert_eq!(addresses(&catalog, "web"), ["10.0.0.2:80"]);
        catalog.apply(put("web/10.0.0.1:80", "running"), Instant::now());
        assert_eq!(addresses(&catalog, "web").len(), 2);
        assert_eq!(catalog.left_out(), []);
    }

    #[test]
    fn a_service_that_lost_its_last_instance_stays_known_until_it_is_forgotten() {
        let mut catalog = catalog(&[("web/10.0.0.1:80", r#"{"attributes":{"host":"a.example"}}"#)]);
        let start = Instant::now();
        assert!(catalog.apply(removed("web/10.0.0.1:80"), start).changed);
        let service = &catalog.services()[&"web".parse().unwrap()];
        assert_eq!(service.host.as_ref().unwrap().as_str(), "a.example");
        assert!(service.instances.is_empty());
        assert_eq!(catalog.next_forget(), Some(start + Duration::from_secs(60)));
        assert!(!catalog.forget(start + Duration::from_secs(59)).changed);
        assert!(catalog.forget(start + Duration::from_secs(60)).changed);
        assert!(catalog.services().is_empty());
        assert_eq!(catalog.next_forget(), None);
    }

    #[test]
    fn a_service_that_is_back_is_not_forgotten() {
        let mut catalog = catalog(&[("web/10.0.0.1:80", "running")]);
        let start = Instant::now();
        catalog.apply(removed("web/10.0.0.1:80"), start);
        catalog.apply(put("web/10.0.0.2:80", "running"), start);
        assert_eq!(catalog.next_forget(), None);
    }

    #[test]
    fn a_deleted_directory_takes_all_below_it() {
        let mut catalog =
            catalog(&[("web/10.0.0.1:80", "running"), ("api/10.0.0.2:80", "running"), ("10.0.0.3:1", "running")]);
        catalog.apply(Event::RemovedTree { path: "/service/web".to_owned(), cause: Cause::Deleted }, Instant::now());
        assert!(addresses(&catalog, "web").is_empty());
        assert_eq!(addresses(&catalog, "api").len(), 1);
        catalog.apply(Event::RemovedTree { path: "/service".to_owned(), cause: Cause::Deleted }, Instant::now());
        assert!(addresses(&catalog, "api").is_empty() && addresses(&catalog, "service").is_empty());
    }

    fn started(second: u32) -> String {
        format!(r#"{{"registered":"2026-01-01T00:00:{second:02}Z"}}"#)
    }

    #[test]
    fn of_two_services_that_claim_one_address_the_newer_container_has_it() {
        let mut catalog = catalog(&[("old/10.0.0.1:80", &started(1)), ("new/10.0.0.1:80", &started(2))]);
        assert_eq!(addresses(&catalog, "new"), ["10.0.0.1:80"]);
        assert!(!catalog.services().contains_key(&"old".parse().unwrap()));
        catalog.apply(removed("new/10.0.0.1:80"), Instant::now());
        assert_eq!(addresses(&catalog, "old"), ["10.0.0.1:80"]);
        catalog.apply(put("new/10.0.0.1:80", &started(3)), Instant::now());
        assert!(addresses(&catalog, "old").is_empty());
    }

    #[test]
    fn where_instances_disagree_the_newest_container_wins() {
        let value = |second: u32, balance: &str| {
            format!(r#"{{"registered":"2026-01-01T00:00:{second:02}Z","attributes":{{"balance":"{balance}"}}}}"#)
        };
        let entries = [("web/10.0.0.1:80", value(9, "leastconn")), ("web/10.0.0.2:80", value(3, "first"))];
        let catalog = catalog(&[(entries[0].0, &entries[0].1), (entries[1].0, &entries[1].1)]);
        assert_eq!(catalog.services()[&"web".parse().unwrap()].balance.as_str(), "leastconn");
    }

    #[test]
    fn a_bad_setting_is_named_and_the_service_goes_on_without_it() {
        let catalog = catalog(&[("web/10.0.0.1:80", r#"{"attributes":{"balance":"static-rr","host":"a b"}}"#)]);
        assert_eq!(addresses(&catalog, "web").len(), 1);
        let reasons: Vec<_> = catalog.left_out().into_iter().map(|refusal| refusal.reason).collect();
        assert!(reasons[0].contains("attribute balance: \"static-rr\""), "{reasons:?}");
        assert!(reasons[1].contains("attribute host"), "{reasons:?}");
    }

    #[test]
    fn a_port_is_listened_on_only_where_it_is_allowed_and_by_one_service() {
        let listen = |port: u16| format!(r#"{{"attributes":{{"mode":"tcp","listen":"{port}"}}}}"#);
        let mut catalog = catalog(&[("a/10.0.0.1:1", &listen(5432)), ("b/10.0.0.2:1", &listen(22))]);
        assert_eq!(catalog.services()[&"a".parse().unwrap()].listen, Some(5432));
        assert_eq!(catalog.services()[&"b".parse().unwrap()].listen, None);
        let outcome = catalog.apply(put("c/10.0.0.3:1", &listen(5432)), Instant::now());
        assert!(outcome.refused[0].reason.contains("port 5432, which service a has"), "{outcome:?}");
        assert!(!catalog.services().contains_key(&"c".parse().unwrap()));
    }

    #[test]
    fn of_two_services_on_one_host_and_path_the_older_claim_wins_and_the_other_waits() {
        let host = r#"{"attributes":{"host":"a.example,b.example"}}"#;
        let other = r#"{"attributes":{"host":"b.example"}}"#;
        let mut catalog = catalog(&[("z/10.0.0.1:1", host)]);
        let outcome = catalog.apply(put("a/10.0.0.2:1", other), Instant::now());
        assert!(outcome.refused[0].reason.contains("b.example/, which service z has"), "{outcome:?}");
        assert_eq!(catalog.services().len(), 1);
        catalog.apply(removed("z/10.0.0.1:1"), Instant::now());
        assert_eq!(addresses(&catalog, "a").len(), 1, "a service without instances gives its route away");
        assert_eq!(hosts(&catalog, "z"), "a.example");
        catalog.apply(put("z/10.0.0.1:1", host), Instant::now());
        assert_eq!((hosts(&catalog, "z"), hosts(&catalog, "a")), ("a.example".to_owned(), "b.example".to_owned()));
        catalog.apply(removed("a/10.0.0.2:1"), Instant::now());
        catalog.forget(Instant::now() + Duration::from_secs(61));
        assert_eq!(hosts(&catalog, "z"), "a.example,b.example");
        assert_eq!(catalog.left_out(), []);
    }

    fn hosts(catalog: &Catalog, service: &str) -> String {
        catalog.services()[&service.parse::<ServiceName>().unwrap()].host.as_ref().unwrap().to_string()
    }

    #[test]
    fn a_service_that_asks_for_one_host_more_keeps_what_it_had() {
        let host = |hosts: &str| format!(r#"{{"attributes":{{"host":"{hosts}"}}}}"#);
        let mut catalog = catalog(&[("z/10.0.0.1:1", &host("a.example")), ("y/10.0.0.2:1", &host("b.example"))]);
        catalog.apply(put("z/10.0.0.1:1", &host("a.example,b.example")), Instant::now());
        assert_eq!((hosts(&catalog, "z"), hosts(&catalog, "y")), ("a.example".to_owned(), "b.example".to_owned()));
    }

    #[test]
    fn a_slash_at_the_end_of_a_path_makes_no_other_path() {
        let path = |path: &str| format!(r#"{{"attributes":{{"path":"{path}"}}}}"#);
        let mut catalog = catalog(&[("old/10.0.0.1:1", &path("/api"))]);
        let outcome = catalog.apply(put("new/10.0.0.2:1", &path("/api/")), Instant::now());
        assert!(outcome.refused[0].reason.contains("any host/api, which service old has"), "{outcome:?}");
        assert!(catalog.services().len() == 1);
    }

    #[test]
    fn settings_that_come_to_nothing_are_named() {
        let catalog = catalog(&[
            ("a/10.0.0.1:1", r#"{"attributes":{"listen":"5001"}}"#),
            ("b/10.0.0.2:1", r#"{"attributes":{"mode":"tcp"}}"#),
        ]);
        let reasons: Vec<_> = catalog.left_out().into_iter().map(|refusal| refusal.reason).collect();
        assert!(
            reasons[0].contains("only a service with mode=tcp") && reasons[1].contains("without a listen port"),
            "{reasons:?}"
        );
    }

    #[test]
    fn a_container_may_be_in_several_services_and_a_newer_one_takes_its_address_in_all() {
        let value = |id: &str, second: u8| format!(r#"{{"id":"{id}","registered":"2026-01-01T00:00:0{second}Z"}}"#);
        let mut catalog = catalog(&[("a/10.0.0.1:80", &value("x", 1)), ("b/10.0.0.1:80", &value("x", 1))]);
        assert_eq!((addresses(&catalog, "a").len(), addresses(&catalog, "b").len()), (1, 1));
        catalog.apply(put("c/10.0.0.1:80", &value("y", 2)), Instant::now());
        assert_eq!((addresses(&catalog, "a").len(), addresses(&catalog, "b").len()), (0, 0));
        catalog.apply(removed("c/10.0.0.1:80"), Instant::now());
        assert_eq!((addresses(&catalog, "a").len(), addresses(&catalog, "b").len()), (1, 1));
        catalog.apply(put("b/10.0.0.1:80", &value("x", 2)), Instant::now());
        assert_eq!((addresses(&catalog, "a").len(), addresses(&catalog, "b").len()), (0, 1), "started anew");
    }

    #[test]
    fn a_sidekicks_key_that_is_newer_wins_over_an_agents() {
        let (old, new) = ("/service/agent/10.0.0.1:80", "/service/10.0.0.1:80");
        let mut catalog = Catalog::new(options());
        let started = started(5);
        let entries = vec![Entry::created(old, &started, 7), Entry::created(new, "running", 9)];
        catalog.list(Listing { entries, directories: None, position: Position::new(None, 9) }, Instant::now());
        assert_eq!(addresses(&catalog, "service"), ["10.0.0.1:80"]);
        assert!(!catalog.services().contains_key(&"agent".parse().unwrap()));
    }

    /// Only those with the tag `edge`.
    fn edge() -> Catalog {
        Catalog::new(Options { share: Share::of(["edge".to_owned()]), ..options() })
    }

    fn tagged(tags: &str, rest: &str) -> String {
        format!(r#"{{"tags":[{tags}]{rest}}}"#)
    }

    const EDGE: &str = r#"{"tags":["edge"]}"#;
    const INNER: &str = r#"{"tags":["inner"]}"#;

    #[test]
    fn outside_of_the_share_nothing_is_routed_to_named_or_kept() {
        let mut catalog = edge();
        let with =
            |tags: &str, host: &str| tagged(tags, &format!(r#","attributes":{{"host":"{host}","balance":"bad"}}"#));
        let (inner, outer) = (with(r#""inner""#, "a.example"), with(r#""edge","x""#, "a.example"));
        catalog.list(
            listing(&[
                ("in/10.0.0.1:80", &inner),
                ("web/10.0.0.2:80", &outer),
                ("web/10.0.0.3:80", "running"),
                ("web/bad", "x"),
            ]),
            Instant::now(),
        );
        assert_eq!((addresses(&catalog, "web"), catalog.services().len()), (vec!["10.0.0.2:80".to_owned()], 1));
        assert_eq!(catalog.outside(), 2);
        let named: Vec<_> = catalog.left_out().into_iter().map(|left_out| left_out.subject).collect();
        assert_eq!(named, ["/service/web/bad", "web"], "the older claim of a.example is not in the share");
        let kept = catalog.kept(Instant::now()).unwrap();
        assert_eq!(
            kept.entries.iter().map(|kept| kept.key.to_string()).collect::<Vec<_>>(),
            ["/service/web/10.0.0.2:80"]
        );
    }

    #[test]
    fn a_tag_that_is_changed_in_place_lets_an_instance_come_or_go() {
        let mut catalog = edge();
        let now = Instant::now();
        catalog.list(listing(&[("web/10.0.0.1:80", EDGE), ("web/10.0.0.2:80", INNER)]), now);
        assert!(catalog.apply(put("web/10.0.0.2:80", EDGE), now).changed);
        assert_eq!((addresses(&catalog, "web").len(), catalog.outside()), (2, 0));
        assert!(catalog.apply(put("web/10.0.0.1:80", INNER), now).changed);
        assert_eq!((addresses(&catalog, "web"), catalog.outside()), (vec!["10.0.0.2:80".to_owned()], 1));
        // It is no suspect, and one that was is none any more.
        catalog.apply(expired("web/10.0.0.1:80"), now);
        catalog.apply(expired("web/10.0.0.2:80"), now);
        assert_eq!((catalog.suspects.len(), catalog.outside()), (1, 0));
        catalog.apply(put("web/10.0.0.2:80", INNER), now);
        assert!(catalog.suspects.is_empty() && addresses(&catalog, "web").is_empty());
        assert!(catalog.services().contains_key(&"web".parse().unwrap()), "503, not 404");
        catalog.apply(Event::RemovedTree { path: "/service/web".to_owned(), cause: Cause::Deleted }, now);
        assert_eq!((catalog.outside(), catalog.claims.len()), (0, 0));
    }

    #[test]
    fn an_address_that_a_newer_container_outside_of_the_share_has_is_not_routed_to() {
        let mut catalog = edge();
        let edge = tagged(r#""edge""#, r#","id":"a","registered":"2026-01-01T00:00:01Z""#);
        let inner = tagged(r#""inner""#, r#","id":"b","registered":"2026-01-01T00:00:02Z""#);
        catalog.list(listing(&[("old/10.0.0.1:80", &edge)]), Instant::now());
        assert!(catalog.apply(put("new/10.0.0.1:80", &inner), Instant::now()).changed);
        assert!(addresses(&catalog, "old").is_empty());
        let left_out = catalog.left_out();
        assert!(left_out.len() == 1 && left_out[0].reason.contains("/service/new/10.0.0.1:80"), "{left_out:?}");
        assert!(catalog.apply(removed("new/10.0.0.1:80"), Instant::now()).changed);
        assert_eq!(addresses(&catalog, "old"), ["10.0.0.1:80"]);
    }

    #[test]
    fn whoever_drains_an_instance_outside_of_the_share_is_told_at_once_that_nothing_of_it_is_routed_to() {
        let mut catalog = edge();
        catalog.list(listing(&[("web/10.0.0.1:80", EDGE), ("web/10.0.0.2:80", INNER)]), Instant::now());
        let before = catalog.draining();
        catalog.apply(put("web/10.0.0.2:80", &tagged(r#""inner""#, r#","status":"draining""#)), Instant::now());
        let after = catalog.draining();
        assert!(after.instances.is_empty() && after.changes > before.changes);
        // One that leaves the share while it drains drains here no more.
        catalog.apply(put("web/10.0.0.1:80", &tagged(r#""edge""#, r#","status":"draining""#)), Instant::now());
        assert_eq!(catalog.draining().instances.len(), 1);
        catalog.apply(put("web/10.0.0.1:80", &tagged(r#""inner""#, r#","status":"draining""#)), Instant::now());
        assert!(catalog.draining().instances.is_empty());
    }

    #[test]
    fn what_was_kept_of_another_share_does_not_come_back() {
        let now = Instant::now();
        let mut all = Catalog::new(options());
        all.list(
            listing(&[
                ("web/10.0.0.1:80", EDGE),
                ("api/10.0.0.2:80", INNER),
                ("gone/10.0.0.3:80", INNER),
                ("left/10.0.0.4:80", EDGE),
            ]),
            now,
        );
        all.apply(removed("gone/10.0.0.3:80"), now);
        all.apply(removed("left/10.0.0.4:80"), now);
        let mut catalog = edge();
        catalog.restore(all.kept(now).unwrap(), now);
        let names: Vec<_> = catalog.services().keys().map(ServiceName::as_str).collect();
        assert_eq!(names, ["left", "web"]);
    }

    #[test]
    fn a_draining_instance_has_no_weight_unless_all_drain() {
        let drain = r#"{"status":"draining","weight":30}"#;
        let mut catalog = catalog(&[("web/10.0.0.1:1", drain), ("web/10.0.0.2:1", "running")]);
        let weights = |catalog: &Catalog| -> Vec<u16> {
            catalog.services()[&"web".parse().unwrap()].instances.iter().map(|instance| instance.weight).collect()
        };
        assert_eq!(weights(&catalog), [0, 100]);
        catalog.apply(removed("web/10.0.0.2:1"), Instant::now());
        assert_eq!(weights(&catalog), [30]);
    }

    #[derive(Debug, Clone)]
    enum Step {
        Put(usize, usize),
        Remove(usize),
        Expire(usize),
        /// The directory of one service, or of all.
        RemoveTree(&'static str),
        List,
        /// Suspects that HAProxy has up stay.
        Judge,
    }

    const KEYS: [&str; 8] = [
        "10.0.0.1:80",
        "a/10.0.0.1:80",
        "a/10.0.0.2:80",
        "b/10.0.0.2:80",
        "b/10.0.0.3:80",
        "bad key",
        "_x/10.0.0.1:80",
        "service/10.0.0.1:80",
    ];
    const VALUES: [&str; 10] = [
        "running",
        "garbage",
        r#"{"status":"draining"}"#,
        r#"{"attributes":{"host":"x.example"}}"#,
        r#"{"registered":"2026-01-01T00:00:01Z","weight":3}"#,
        r#"{"registered":"2026-01-01T00:00:02Z","attributes":{"host":"x.example","path":"/p"}}"#,
        r#"{"attributes":{"mode":"tcp","listen":"5000"}}"#,
        r#"{"id":"x","registered":"2026-01-01T00:00:01Z","tags":["edge"]}"#,
        r#"{"tags":["edge"]}"#,
        r#"{"status":"draining","tags":["edge"]}"#,
    ];

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            6 => (0..KEYS.len(), 0..VALUES.len()).prop_map(|(key, value)| Step::Put(key, value)),
            3 => (0..KEYS.len()).prop_map(Step::Remove),
            3 => (0..KEYS.len()).prop_map(Step::Expire),
            1 => prop_oneof![Just("/service/a"), Just("/service")].prop_map(Step::RemoveTree),
            1 => Just(Step::List),
            1 => Just(Step::Judge),
        ];
        proptest::collection::vec(step, 0..40)
    }

    /// The instances of each service, as text.
    fn picture(catalog: &Catalog) -> BTreeMap<String, Vec<String>> {
        let mut picture = BTreeMap::new();
        for (name, known) in &catalog.known {
            let Some(service) = known.built.as_ref().filter(|service| !service.instances.is_empty()) else { continue };
            let line = |instance: &Arc<Instance>| {
                let Instance { server, weight, draining, suspect, .. } = instance.as_ref();
                format!("{server} {weight} {draining} {suspect}")
            };
            picture.insert(name.to_string(), service.instances.iter().map(line).collect());
        }
        picture
    }

    proptest! {
        #[test]
        fn a_share_after_events_is_what_it_is_after_a_listing(steps in steps()) {
            let (mut catalog, now) = (edge(), Instant::now());
            let mut held: BTreeMap<usize, usize> = BTreeMap::new();
            let list = |held: &BTreeMap<usize, usize>| {
                listing(&held.iter().map(|(&key, &value)| (KEYS[key], VALUES[value])).collect::<Vec<_>>())
            };
            for step in steps {
                match step {
                    Step::Put(key, value) => {
                        held.insert(key, value);
                        catalog.apply(put(KEYS[key], VALUES[value]), now);
                    }
                    Step::Remove(key) => {
                        held.remove(&key);
                        catalog.apply(removed(KEYS[key]), now);
                    }
                    Step::Expire(key) => {
                        held.remove(&key);
                        catalog.apply(expired(KEYS[key]), now);
                    }
                    Step::RemoveTree(root) => {
                        held.retain(|key, _| !format!("/service/{}", KEYS[*key]).starts_with(&format!("{root}/")));
                        catalog.apply(Event::RemovedTree { path: root.to_owned(), cause: Cause::Deleted }, now);
                    }
                    Step::Judge | Step::List => {
                        catalog.list(list(&held), now);
                    }
                }
            }
            catalog.list(list(&held), now);
            catalog.judge(now, |_, _| Health::Down);
            let mut fresh = edge();
            fresh.list(list(&held), now);
            prop_assert_eq!(picture(&catalog), picture(&fresh));
            prop_assert_eq!(catalog.outside.keys().collect::<Vec<_>>(), fresh.outside.keys().collect::<Vec<_>>());
            prop_assert_eq!(&catalog.draining, &fresh.draining);
            prop_assert_eq!(&catalog.contested, &fresh.contested);
            let claims = |catalog: &Catalog| catalog.claims.values().map(Vec::len).sum::<usize>();
            prop_assert_eq!(claims(&catalog), claims(&fresh));
        }

        #[test]
        fn events_lead_to_what_a_listing_of_the_same_keys_gives_when_the_suspects_have_gone(steps in steps()) {
            let mut held: BTreeMap<usize, usize> = BTreeMap::new();
            // Those that nobody deleted, and whose address nobody else has taken.
            let mut suspects: BTreeSet<usize> = BTreeSet::new();
            let address = |key: usize| KEYS[key].rsplit('/').next();
            let is_instance = |key: usize, value: usize| !matches!(key, 5 | 6) && !matches!(value, 1 | 2 | 9);
            let mut catalog = Catalog::new(options());
            let now = Instant::now();
            let list = |held: &BTreeMap<usize, usize>| {
                let entries: Vec<_> = held.iter().map(|(&key, &value)| (KEYS[key], VALUES[value])).collect();
                listing(&entries)
            };
            for step in steps {
                match step {
                    Step::Put(key, value) => {
                        suspects.remove(&key);
                        if held.insert(key, value).is_none_or(|before| !is_instance(key, before)) {
                            suspects.retain(|&other| address(other) != address(key));
                        }
                        catalog.apply(put(KEYS[key], VALUES[value]), now);
                    }
                    Step::Remove(key) => {
                        held.remove(&key);
                        suspects.remove(&key);
                        catalog.apply(removed(KEYS[key]), now);
                    }
                    Step::Expire(key) => {
                        if held.remove(&key).is_some_and(|value| is_instance(key, value)) {
                            suspects.insert(key);
                        }
                        catalog.apply(expired(KEYS[key]), now);
                    }
                    Step::RemoveTree(root) => {
                        let is_below = |key: &usize| format!("/service/{}", KEYS[*key]).starts_with(&format!("{root}/"));
                        held.retain(|key, _| !is_below(key));
                        suspects.retain(|key| !is_below(key));
                        catalog.apply(Event::RemovedTree { path: root.to_owned(), cause: Cause::Deleted }, now);
                    }
                    Step::Judge => {
                        let judged = catalog.judge(now, |_, _| Health::Up);
                        prop_assert!(judged.removed.is_empty() && !judged.outcome.changed);
                    }
                    Step::List => {
                        let outcome = catalog.list(list(&held), now);
                        prop_assert!(!outcome.changed, "a listing after the events tells nothing new");
                    }
                }
            }
            for &key in &suspects {
                let key = InstanceKey::parse(&options().prefix, &format!("/service/{}", KEYS[key])).unwrap();
                prop_assert!(catalog.suspects.contains(&key), "{} is lost", key);
            }
            catalog.list(list(&held), now);
            catalog.judge(now, |_, _| Health::Down);
            prop_assert!(catalog.suspects.is_empty());
            let mut fresh = Catalog::new(options());
            fresh.list(list(&held), now);
            prop_assert_eq!(picture(&catalog), picture(&fresh));
            // A service with no instance keeps its last settings, and its claims, which a fresh catalog does not know.
            let outlasts = |part| matches!(part, Part::Key | Part::Instance);
            let of_keys = |catalog: &Catalog| -> Vec<_> {
                catalog.left_out().into_iter().filter(|left_out| outlasts(left_out.what)).collect()
            };
            prop_assert_eq!(of_keys(&catalog), of_keys(&fresh));
            let contested = catalog.claims.iter().filter(|(_, keys)| keys.len() > 1).map(|(address, _)| *address);
            prop_assert_eq!(&catalog.contested, &contested.collect::<BTreeSet<_>>());
        }
    }
}
