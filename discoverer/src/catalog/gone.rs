//! Keys that are no longer in etcd, and what outlives them: suspects, and what is kept over a restart. Pure.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use registry::{Cause, Entry, Event, InstanceAddress, InstanceKey, Listing, Position, Record, ServiceName, Status};

use super::{Catalog, Known, Member, Outcome, alter, build_settings, position};
use crate::model::Instance;
use crate::suspect::{Case, Health, Sign, Why, verdict};

/// What came of judging the suspects.
#[derive(Debug, Default, PartialEq)]
pub struct Judged {
    /// What it did.
    pub outcome: Outcome,
    /// The keys whose instances went, sorted.
    pub removed: Vec<(InstanceKey, Why)>,
}

/// What is known of the registry, to be kept over a restart. Cheap to make.
#[derive(Debug, Clone, PartialEq)]
pub struct Kept {
    /// The registry's state of then.
    pub position: Position,
    /// Every key with an instance in it.
    pub entries: Vec<KeptEntry>,
    /// The services with no instance.
    pub empty: Vec<KeptService>,
}

/// A service with no instance of [`Kept`].
#[derive(Debug, Clone, PartialEq)]
pub struct KeptService {
    /// Its name.
    pub name: ServiceName,
    /// From which its settings are read.
    pub attributes: BTreeMap<String, String>,
    /// Its tags.
    pub tags: Vec<String>,
    /// Whether it lies right under the prefix.
    pub flat: bool,
    /// How long it has had no instance.
    pub empty_for: Duration,
}

/// A key of [`Kept`].
#[derive(Debug, Clone, PartialEq)]
pub struct KeptEntry {
    /// The key.
    pub key: InstanceKey,
    /// Its value.
    pub record: Arc<Record>,
    /// When it was created, as etcd counts.
    pub created: u64,
    /// It had expired, and the instance stayed.
    pub suspect: bool,
}

/// Which of the keys that a listing lacks were removed with their directory.
pub(super) struct RemovedDirectories {
    /// The directories that there are; none where they say nothing.
    directories: Option<BTreeSet<String>>,
}

impl RemovedDirectories {
    /// Whether the topmost of a key's directories that is missing has its parent: etcd was not made anew then, and somebody
    /// removed that directory. Where all are there, the key by itself is gone.
    pub(super) fn holds(&self, key: &InstanceKey) -> bool {
        let Some(directories) = &self.directories else { return false };
        let prefix = key.prefix().path();
        if directories.contains(&prefix) {
            return !key.is_flat() && !directories.contains(&format!("{prefix}/{}", key.service()));
        }
        let parent = prefix.rsplit_once('/').map_or("", |(parent, _)| parent);
        directories.contains(if parent.is_empty() { "/" } else { parent })
    }
}

impl Catalog {
    /// Takes in where a listing stands. What was known before says something about it only where both are of one life of one
    /// cluster.
    pub(super) fn follow(&mut self, listing: &mut Listing, now: Instant) -> RemovedDirectories {
        let goes_on = self.position.as_ref().is_some_and(|before| {
            before.cluster_id() == listing.position.cluster_id() && before.index() <= listing.position.index()
        });
        self.followed = self.followed.filter(|_| goes_on).or(Some(now));
        self.position = Some(listing.position.clone());
        self.tells_lives = listing.directories.is_some();
        RemovedDirectories { directories: listing.directories.take().filter(|_| goes_on) }
    }

    /// To be told how far the registry's events have come.
    pub fn reached(&mut self, index: u64) {
        if let Some(position) = &mut self.position
            && position.index() < index
        {
            *position = Position::new(position.cluster_id().map(str::to_owned), index);
        }
    }

    /// To be told that the registry cannot be followed. Nothing is judged until the next listing: whoever would write a
    /// suspect's key again cannot.
    pub fn lost_registry(&mut self) {
        self.followed = None;
    }

    /// Whether there are suspects to judge.
    pub fn has_suspects(&self) -> bool {
        self.followed.is_some() && !self.suspects.is_empty()
    }

    /// What happens to a key that is gone.
    pub(super) fn lose_key(
        &mut self,
        key: &InstanceKey,
        cause: Cause,
        now: Instant,
        touched: &mut BTreeSet<ServiceName>,
        outcome: &mut Outcome,
    ) {
        match cause {
            Cause::Deleted => self.remove_key(key, touched),
            Cause::Expired => self.expire_key(key, now, touched, outcome),
        }
    }

    /// Lets an instance be suspect. One that drained has nothing to stay for.
    pub(super) fn expire_key(
        &mut self,
        key: &InstanceKey,
        now: Instant,
        touched: &mut BTreeSet<ServiceName>,
        outcome: &mut Outcome,
    ) {
        if self.outside.contains_key(key) {
            return self.remove_key(key, touched);
        }
        let member = self.known.get_mut(key.service()).and_then(|known| known.members.get_mut(key));
        let Some(member) = member.filter(|member| member.suspect.is_none()) else { return };
        if member.record.status == Status::Draining {
            return self.remove_key(key, touched);
        }
        member.suspect = Some(now);
        self.suspects.insert(key.clone());
        outcome.suspected.push(key.clone());
        touched.insert(key.service().clone());
        self.touch(key.address(), touched);
    }

    /// A key that is new, or is back, has its address: suspects of other containers there are over.
    pub(super) fn take_over(&mut self, key: &InstanceKey, touched: &mut BTreeSet<ServiceName>) {
        let member = |key: &InstanceKey| self.member(key);
        let Some(newcomer) = member(key) else { return };
        let is_over = |other: &Member| other.suspect.is_some() && !other.is_same_start(newcomer);
        let others = self.claims.get(&key.address()).into_iter().flatten();
        let over: Vec<_> =
            others.filter(|other| *other != key && member(other).is_some_and(is_over)).cloned().collect();
        for other in over {
            self.remove_key(&other, touched);
        }
    }

    /// Takes an event by which one instance becomes suspect, or is no more, and nothing else changes; says no, and does nothing,
    /// where it is not such an event. Its cost does not grow with the service.
    pub(super) fn mark(&mut self, event: &Event, now: Instant, outcome: &mut Outcome) -> bool {
        let (path, entry) = match event {
            Event::Put(entry) => (&entry.path, Some(entry)),
            Event::Removed { path, cause: Cause::Expired } => (path, None),
            Event::Removed { .. } | Event::RemovedTree { .. } => return false,
        };
        let Ok(key) = InstanceKey::parse(&self.options.prefix, path) else { return false };
        let is_sole_claim = self.claims.get(&key.address()).is_some_and(|claims| *claims == [key.clone()]);
        // A service that waits for a route may get it from one whose instances are suspect.
        if !is_sole_claim || !self.shut_out.is_empty() || self.refused.contains_key(path) {
            return false;
        }
        let Some(known) = self.known.get_mut(key.service()).filter(|known| known.common.is_some()) else {
            return false;
        };
        let (Some(member), Some(built)) = (known.members.get_mut(&key), known.built.as_mut()) else { return false };
        let Some(published) = self.services.get_mut(key.service()) else { return false };
        let Ok(at) = position(built, key.address()) else { return false };
        if !Arc::ptr_eq(built, published) || member.suspect.is_some() != entry.is_some() {
            return false;
        }
        match entry {
            Some(entry) => {
                let Ok(record) = Record::parse(&entry.value) else { return false };
                if record != *member.record {
                    return false;
                }
                let mut back = Member::new(entry, record, now);
                back.follow(member);
                back.record = Arc::clone(&member.record);
                *member = back;
                self.suspects.remove(&key);
                outcome.returned += 1;
            }
            None => {
                member.suspect = Some(now);
                self.suspects.insert(key.clone());
                outcome.suspected.push(key);
            }
        }
        let suspect = member.suspect.is_some();
        alter(built, published, |instances| {
            instances[at] = Arc::new(Instance { suspect, ..instances[at].as_ref().clone() });
        });
        (outcome.changed, outcome.in_short) = (true, true);
        true
    }

    /// Judges the suspects by what HAProxy says of them; nobody while the registry cannot be followed.
    pub fn judge(&mut self, now: Instant, health: impl Fn(&ServiceName, InstanceAddress) -> Health) -> Judged {
        let Some(followed) = self.followed else { return Judged::default() };
        let signs = self.signs(followed);
        let judge = |key: &InstanceKey| {
            let member = self.known.get(key.service())?.members.get(key)?;
            let case = Case {
                since: member.suspect?.max(followed),
                health: health(key.service(), key.address()),
                registrar: member.record.agent.as_deref().and_then(|agent| signs.get(agent).copied().flatten()),
            };
            Some((key.clone(), verdict(&case, now, self.options.suspect_for)?))
        };
        let removed: Vec<_> = self.suspects.iter().filter_map(judge).collect();
        let mut outcome = Outcome::default();
        let mut touched = BTreeSet::new();
        for (key, _) in &removed {
            match self.step(&Event::Removed { path: key.path(), cause: Cause::Deleted }, now) {
                Some(step) => outcome.steps.push(step),
                None => self.remove_key(key, &mut touched),
            }
        }
        outcome.in_short = !outcome.steps.is_empty();
        outcome.changed = outcome.in_short;
        if !touched.is_empty() {
            let had_steps = outcome.changed;
            self.rebuild(touched, now, &mut outcome);
            outcome.changed |= had_steps;
            outcome.in_short = false;
            outcome.steps.clear();
        }
        Judged { outcome, removed }
    }

    /// What says that the registrars of the suspects live, by their ids.
    fn signs(&self, followed: Instant) -> HashMap<String, Option<Sign>> {
        let members = || self.known.values().flat_map(|known| known.members.values()).chain(self.outside.values());
        let suspects = members().filter(|member| member.suspect.is_some());
        let mut signs: HashMap<String, Option<Sign>> =
            suspects.filter_map(|member| Some((member.record.agent.clone()?, None))).collect();
        let mut lives: HashMap<&str, Duration> = HashMap::new();
        for member in members() {
            let Some(agent) = member.record.agent.as_deref().filter(|agent| signs.contains_key(*agent)) else {
                continue;
            };
            let life = lives.entry(agent).or_insert(self.options.least_life);
            *life = (*life).max(member.life.unwrap_or_default());
        }
        for member in members() {
            // A key that never expires says nothing of who wrote it.
            let is_sign = member.suspect.is_none() && (member.life.is_some() || !self.tells_lives);
            let Some(agent) = member.record.agent.as_deref().filter(|_| is_sign) else { continue };
            let (Some(sign), Some(&life)) = (signs.get_mut(agent), lives.get(agent)) else { continue };
            let since = member.since.max(followed);
            *sign = Some(Sign { since: sign.map_or(since, |sign| sign.since.min(since)), life });
        }
        signs
    }

    /// What is known, to be kept over a restart; nothing before the first listing.
    pub fn kept(&self, now: Instant) -> Option<Kept> {
        let members = self.known.values().flat_map(|known| &known.members);
        let entry = |(key, member): (&InstanceKey, &Member)| KeptEntry {
            key: key.clone(),
            record: Arc::clone(&member.record),
            created: member.age.1,
            suspect: member.suspect.is_some(),
        };
        let empty = self.known.iter().filter_map(|(name, known)| {
            let (service, since) = known.built.as_ref().zip(known.empty_since)?;
            Some(KeptService {
                name: name.clone(),
                attributes: service.attributes.clone(),
                tags: service.tags.clone(),
                flat: service.flat,
                empty_for: now.saturating_duration_since(since),
            })
        });
        let (entries, empty) = (members.map(entry).collect(), empty.collect());
        Some(Kept { position: self.position.clone()?, entries, empty })
    }

    /// Takes in what was kept, before the first listing. It was true once: what the listing then lacks has expired.
    pub fn restore(&mut self, kept: Kept, now: Instant) -> Outcome {
        let entry = |kept: &KeptEntry| Entry::created(kept.key.path(), kept.record.to_value(), kept.created);
        let entries = kept.entries.iter().map(entry).collect();
        let mut outcome = self.list(Listing { entries, directories: None, position: kept.position }, now);
        let mut touched = BTreeSet::new();
        for kept in kept.entries.iter().filter(|kept| kept.suspect) {
            self.expire_key(&kept.key, now, &mut touched, &mut outcome);
        }
        self.rebuild(touched, now, &mut outcome);
        let names = kept.empty.into_iter().filter_map(|kept| self.restore_empty(kept, now)).collect();
        self.publish(names, &mut outcome);
        self.lost_registry();
        outcome
    }

    fn restore_empty(&mut self, kept: KeptService, now: Instant) -> Option<ServiceName> {
        let KeptService { name, attributes, tags, flat, empty_for } = kept;
        if self.known.contains_key(&name) || !self.options.share.has(&tags) {
            return None;
        }
        let attributes = attributes.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let (settings, refusals) = build_settings(&name, &attributes, tags, flat, &self.options);
        let empty_since = now.checked_sub(empty_for).or(Some(now));
        let known = Known { built: Some(Arc::new(settings)), refusals, empty_since, ..Known::default() };
        self.known.insert(name.clone(), known);
        Some(name)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{addresses, catalog, expired, listing, options, put, removed};
    use super::*;

    const DRAINING: &str = r#"{"status":"draining"}"#;

    fn services_of(catalog: &Catalog, service: &str) -> Vec<(String, u16, bool)> {
        let service = &catalog.services()[&service.parse::<ServiceName>().unwrap()];
        let line = |instance: &Arc<Instance>| (instance.server.clone(), instance.weight, instance.suspect);
        service.instances.iter().map(line).collect()
    }

    fn suspects(catalog: &Catalog) -> Vec<String> {
        catalog.suspects.iter().map(ToString::to_string).collect()
    }

    fn agents(agent: &str, weight: u16) -> String {
        format!(r#"{{"agent":"{agent}","weight":{weight}}}"#)
    }

    /// As etcd v2 writes it, with a time to live.
    fn put_for(below: &str, value: &str, seconds: u64) -> Event {
        let Event::Put(mut entry) = put(below, value) else { unreachable!() };
        entry.ttl = Some(Duration::from_secs(seconds));
        Event::Put(entry)
    }

    #[test]
    fn a_key_that_expired_leaves_its_instance_as_it_was_and_one_that_comes_back_is_in_again() {
        let mut catalog = catalog(&[("web/10.0.0.1:80", "running"), ("web/10.0.0.2:80", r#"{"weight":7}"#)]);
        let now = Instant::now();
        let outcome = catalog.apply(expired("web/10.0.0.2:80"), now);
        assert!(outcome.changed && outcome.in_short && outcome.steps.is_empty(), "{outcome:?}");
        assert_eq!(outcome.suspected.len(), 1);
        let is = |suspect| [("10.0.0.1_80".to_owned(), 100, false), ("10.0.0.2_80".to_owned(), 7, suspect)];
        assert_eq!(services_of(&catalog, "web"), is(true));
        assert!(!catalog.apply(expired("web/10.0.0.2:80"), now).changed);
        let outcome = catalog.apply(put("web/10.0.0.2:80", r#"{"weight":7}"#), now);
        assert!(outcome.changed && outcome.in_short && outcome.steps.is_empty(), "{outcome:?}");
        assert_eq!((outcome.returned, catalog.has_suspects()), (1, false));
        assert_eq!(services_of(&catalog, "web"), is(false));
    }

    #[test]
    fn the_last_instance_of_a_service_stays_too_and_its_deleted_directory_takes_it() {
        let mut catalog = catalog(&[("web/10.0.0.1:80", "running"), ("10.0.0.2:80", "running")]);
        let now = Instant::now();
        catalog.apply(expired("web/10.0.0.1:80"), now);
        catalog.apply(expired("10.0.0.2:80"), now);
        assert_eq!((addresses(&catalog, "web").len(), addresses(&catalog, "service").len()), (1, 1));
        catalog.apply(Event::RemovedTree { path: "/service/web".to_owned(), cause: Cause::Deleted }, now);
        assert_eq!((addresses(&catalog, "web").len(), suspects(&catalog).len()), (0, 1));
        catalog.apply(Event::RemovedTree { path: "/service".to_owned(), cause: Cause::Expired }, now);
        assert_eq!(addresses(&catalog, "service").len(), 1);
        catalog.apply(removed("10.0.0.2:80"), now);
        assert_eq!((addresses(&catalog, "service").len(), suspects(&catalog).len()), (0, 0));
    }

    #[test]
    fn one_that_drained_goes_with_its_key() {
        let mut catalog = catalog(&[("web/10.0.0.1:80", "running"), ("web/10.0.0.2:80", DRAINING)]);
        catalog.apply(expired("web/10.0.0.2:80"), Instant::now());
        assert_eq!(addresses(&catalog, "web"), ["10.0.0.1:80"]);
        assert!(suspects(&catalog).is_empty());
    }

    #[test]
    fn what_a_listing_lacks_is_suspect_and_what_lay_in_a_removed_directory_is_gone() {
        let keys = [("web/10.0.0.1:80", "running"), ("api/10.0.0.2:80", "running"), ("10.0.0.3:80", "running")];
        // The directories that the listing has, its cluster and index; what is still served of web, api and service.
        type Directories = Option<&'static [&'static str]>;
        let cases: [(Directories, &str, u64, [usize; 3]); 8] = [
            (Some(&["/service", "/service/web", "/service/api"]), "one", 8, [1, 1, 1]),
            (Some(&["/service", "/service/api"]), "one", 8, [0, 1, 1]),
            (Some(&["/service"]), "one", 7, [0, 0, 1]),
            (Some(&["/"]), "one", 8, [0, 0, 0]),
            // Made anew, or unknown: nothing says that anybody removed anything.
            (Some(&["/service"]), "one", 6, [1, 1, 1]),
            (Some(&["/service"]), "two", 8, [1, 1, 1]),
            (Some(&[]), "one", 8, [1, 1, 1]),
            (None, "one", 8, [1, 1, 1]),
        ];
        for (directories, cluster, index, expected) in cases {
            let mut catalog = Catalog::new(options());
            let at = |cluster: &str, index| Position::new(Some(cluster.to_owned()), index);
            catalog.list(Listing { position: at("one", 5), ..listing(&keys) }, Instant::now());
            catalog.reached(7);
            let directories = directories.map(|all| all.iter().map(|&path| path.to_owned()).collect());
            let empty = Listing { directories, position: at(cluster, index), entries: Vec::new() };
            catalog.list(empty, Instant::now());
            let seen = ["web", "api", "service"].map(|service| addresses(&catalog, service).len());
            assert_eq!(seen, expected, "{cluster} {index}");
        }
    }

    #[test]
    fn a_suspect_yields_to_a_live_claimant_of_its_address_and_is_over_when_another_container_takes_it() {
        let started = |second: u8| format!(r#"{{"id":"c{second}","registered":"2026-01-01T00:00:0{second}Z"}}"#);
        let now = Instant::now();
        let mut catalog = catalog(&[("old/10.0.0.1:80", &started(1)), ("new/10.0.0.1:80", &started(2))]);
        let served = |catalog: &Catalog| {
            let services = catalog.services().values().filter(|service| !service.instances.is_empty());
            services.map(|service| service.name.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(served(&catalog), ["new"]);
        catalog.apply(expired("new/10.0.0.1:80"), now);
        assert_eq!(served(&catalog), ["old"]);
        catalog.apply(expired("old/10.0.0.1:80"), now);
        assert_eq!(served(&catalog), ["new"], "of two suspects the newer container's");
        catalog.apply(put("third/10.0.0.1:80", &started(3)), now);
        assert_eq!((served(&catalog), suspects(&catalog).len()), (vec!["third".to_owned()], 0));
        catalog.apply(removed("third/10.0.0.1:80"), now);
        assert!(served(&catalog).is_empty());
    }

    #[test]
    fn a_container_in_two_services_stays_in_both_when_one_of_its_keys_expires() {
        let value = r#"{"id":"c","registered":"2026-01-01T00:00:00Z"}"#;
        let mut catalog = catalog(&[("a/10.0.0.1:80", value), ("b/10.0.0.1:80", value)]);
        catalog.apply(expired("a/10.0.0.1:80"), Instant::now());
        assert_eq!((addresses(&catalog, "a").len(), addresses(&catalog, "b").len()), (1, 1));
        catalog.apply(put("b/10.0.0.1:80", value), Instant::now());
        assert_eq!(suspects(&catalog), ["/service/a/10.0.0.1:80"]);
    }

    #[test]
    fn a_route_goes_from_suspects_to_a_live_claimant_and_from_nobody_to_suspects() {
        let host = r#"{"attributes":{"host":"x.example"}}"#;
        let now = Instant::now();
        let mut catalog = catalog(&[("old/10.0.0.1:80", host), ("old/10.0.0.3:80", host), ("new/10.0.0.2:80", host)]);
        let holder = |catalog: &Catalog| catalog.services().keys().next().unwrap().to_string();
        // The one that is named first of equals.
        assert_eq!((holder(&catalog), catalog.services().len()), ("new".to_owned(), 1));
        catalog.apply(expired("new/10.0.0.2:80"), now);
        assert_eq!((holder(&catalog), catalog.services().len()), ("old".to_owned(), 1));
        catalog.apply(removed("old/10.0.0.1:80"), now);
        catalog.apply(removed("old/10.0.0.3:80"), now);
        assert_eq!((holder(&catalog), catalog.services().len()), ("new".to_owned(), 1));
    }

    #[test]
    fn suspects_that_are_judged_go_in_short_where_nothing_else_changes() {
        let keys = ["web/10.0.0.1:80", "web/10.0.0.2:80", "web/10.0.0.3:80", "api/10.0.0.4:80"];
        let mut catalog = catalog(&keys.map(|key| (key, "running")));
        let now = Instant::now();
        assert_eq!(catalog.judge(now, |_, _| Health::Down), Judged::default());
        keys.iter().skip(1).for_each(|key| drop(catalog.apply(expired(key), now)));
        let health = |bad: &'static str, health| {
            move |_: &ServiceName, address: InstanceAddress| {
                if address.ip().to_string() == bad { health } else { Health::Up }
            }
        };
        let judged = catalog.judge(now, health("10.0.0.2", Health::Down));
        assert_eq!(judged.removed.iter().map(|(_, why)| *why).collect::<Vec<_>>(), [Why::Down]);
        assert!(judged.outcome.in_short && judged.outcome.steps.len() == 1, "{judged:?}");
        let judged = catalog.judge(now, health("10.0.0.4", Health::Unchecked));
        assert!(judged.outcome.changed && !judged.outcome.in_short, "a service is empty now: {judged:?}");
        let over = now + options().suspect_for;
        assert!(catalog.judge(over - Duration::from_millis(1), |_, _| Health::Unknown).removed.is_empty());
        assert_eq!(catalog.judge(over, |_, _| Health::Up).removed[0].1, Why::TooLong);
        assert_eq!(addresses(&catalog, "web"), ["10.0.0.1:80"]);
        assert!(!catalog.has_suspects());
    }

    #[test]
    fn while_the_registry_cannot_be_followed_nobody_is_judged_and_the_time_begins_anew_behind_it() {
        let keys = [("web/10.0.0.1:80", "running"), ("web/10.0.0.2:80", "running")];
        let mut catalog = catalog(&keys);
        let now = Instant::now();
        catalog.apply(expired("web/10.0.0.1:80"), now);
        catalog.lost_registry();
        let back = now + 2 * options().suspect_for;
        assert!(!catalog.has_suspects() && catalog.judge(back, |_, _| Health::Down).removed.is_empty());
        catalog.list(listing(&keys[1..]), back);
        assert!(catalog.has_suspects() && catalog.judge(back, |_, _| Health::Up).removed.is_empty());
        let over = back + options().suspect_for;
        assert_eq!(catalog.judge(over, |_, _| Health::Up).removed.len(), 1);
    }

    #[test]
    fn keys_of_one_agent_that_expire_one_after_another_take_nobody_along() {
        let mut catalog = Catalog::new(options());
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        catalog.list(Listing { directories: Some(BTreeSet::new()), ..listing(&[]) }, start);
        let keys: Vec<String> = (1..=9).map(|number| format!("web/10.0.0.{number}:80")).collect();
        for key in &keys {
            catalog.apply(put_for(key, &agents("one", 5), 20), start);
        }
        let dead = |catalog: &mut Catalog, seconds| catalog.judge(after(seconds), |_, _| Health::Up).removed.len();
        // etcd without a quorum tells of nothing for a while, and then of one key each second.
        for (seconds, key) in (100..).zip(&keys) {
            catalog.apply(expired(key), after(seconds));
            assert_eq!(dead(&mut catalog, seconds), 0);
        }
        // The agent is back and needs its time for all of them.
        for (seconds, key) in (300..).step_by(4).zip(&keys[..8]) {
            catalog.apply(put_for(key, &agents("one", 5), 20), after(seconds));
            assert_eq!(dead(&mut catalog, seconds + 3), 0);
        }
        // The ninth it does not write again: that is known when the first was there for two lives.
        assert_eq!((dead(&mut catalog, 339), dead(&mut catalog, 340)), (0, 1));
    }

    #[test]
    fn only_what_says_that_the_agent_lives_counts_against_its_suspects() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let judged = |other: Event, directories: Option<BTreeSet<String>>, seconds| {
            let mut catalog = Catalog::new(options());
            catalog.list(Listing { directories, ..listing(&[]) }, start);
            catalog.apply(put_for("web/10.0.0.1:80", &agents("one", 5), 60), start);
            catalog.apply(other, start);
            catalog.apply(expired("web/10.0.0.1:80"), start);
            catalog.judge(after(seconds), |_, _| Health::Up).removed.len()
        };
        let v2 = || Some(BTreeSet::new());
        assert_eq!(judged(put_for("api/10.0.0.2:80", &agents("one", 5), 60), v2(), 119), 0);
        assert_eq!(judged(put_for("api/10.0.0.2:80", &agents("one", 5), 60), v2(), 120), 1);
        assert_eq!(judged(put_for("api/10.0.0.2:80", &agents("two", 5), 60), v2(), 500), 0, "another agent's");
        assert_eq!(judged(put_for("api/10.0.0.2:80", "running", 60), v2(), 500), 0, "a sidekick's");
        assert_eq!(judged(put("api/10.0.0.2:80", &agents("one", 5)), v2(), 500), 0, "one that never expires");
        assert_eq!(judged(put("api/10.0.0.2:80", &agents("one", 5)), None, 500), 1, "nothing tells times to live");
    }

    #[test]
    fn what_was_kept_is_taken_in_and_what_the_first_listing_lacks_is_suspect() {
        let keys = [("web/10.0.0.1:80", "running"), ("web/10.0.0.2:80", "running"), ("10.0.0.3:80", "running")];
        let mut before = catalog(&keys);
        let now = Instant::now();
        assert_eq!(Catalog::new(options()).kept(now), None);
        before.apply(put("empty/10.0.0.5:80", r#"{"tags":["x"],"attributes":{"host":"e.example"}}"#), now);
        before.apply(removed("empty/10.0.0.5:80"), now);
        before.apply(expired("web/10.0.0.2:80"), Instant::now());
        before.apply(put("web/10.0.0.4:80", &agents("one", 3)), Instant::now());
        let kept = before.kept(now).unwrap();
        assert_eq!((kept.entries.len(), kept.empty.len()), (4, 1));
        let mut after = Catalog::new(options());
        assert_eq!(after.restore(kept.clone(), now).refused, []);
        assert_eq!(after.services(), before.services());
        assert_eq!(after.kept(now), Some(kept));
        assert_eq!(after.next_forget(), before.next_forget());
        assert!(!after.has_suspects(), "nobody is judged before the first listing");
        after.list(listing(&keys[1..]), now);
        assert_eq!(suspects(&after), ["/service/web/10.0.0.1:80", "/service/web/10.0.0.4:80"]);
        assert_eq!(after.judge(now, |_, _| Health::Down).removed.len(), 2);
    }
}
