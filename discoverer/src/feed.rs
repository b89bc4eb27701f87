//! What has happened, as short notes for people: the last of them are kept. Pure: no I/O, and time comes in.

use std::cmp::Ordering;
use std::collections::VecDeque;
use std::sync::Arc;

use jiff::Timestamp;
use registry::{InstanceAddress, ServiceName};
use serde::Serialize;

use crate::model::{Instance, Service, Services};

/// How many notes are kept.
const KEPT: usize = 200;
/// How many characters of foreign words a note holds: HAProxy says much about a bad file.
const WORDS_LIMIT: usize = 2000;

/// One thing that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Note {
    /// Rises with each note of this process.
    pub number: u64,
    /// When.
    pub at: Timestamp,
    /// What.
    pub what: What,
    /// The service that it is about.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "crate::view::as_text")]
    pub service: Option<ServiceName>,
    /// The instance that it is about.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "crate::view::as_text")]
    pub address: Option<InstanceAddress>,
    /// The rest, in words; may be empty. Hostile text: it is to be escaped where it is shown.
    pub words: String,
}

/// What may happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    /// An instance is there. The words are its container's name and host.
    Came,
    /// An instance is gone.
    Went,
    /// An instance finishes what it has.
    Drains,
    /// An instance that drained takes traffic again.
    Undrained,
    /// An instance's key expired, and HAProxy's check still reaches it.
    Suspect,
    /// A suspect is registered again.
    Returned,
    /// An instance's weight, tags or other things are new.
    InstanceChanged,
    /// A service's settings are new.
    ServiceChanged,
    /// A service is known.
    ServiceCame,
    /// A service is forgotten.
    ServiceWent,
    /// Something is left out, with the reason.
    LeftOut,
    /// Something that was left out is in again.
    BackIn,
    /// HAProxy was reloaded, with the reason.
    Reloaded,
    /// HAProxy does not run what is wanted.
    Failed,
    /// It does again.
    Recovered,
    /// Somebody else restarted or reloaded HAProxy, or it died and was started again.
    HaproxyRestarted,
    /// The registry does not answer.
    RegistryLost,
    /// It answers.
    RegistryConnected,
    /// The template cannot be used.
    TemplateFailed,
    /// New templates are in use.
    TemplateTaken,
}

impl What {
    /// Its word, as JSON has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Came => "came",
            Self::Went => "went",
            Self::Drains => "drains",
            Self::Undrained => "undrained",
            Self::Suspect => "suspect",
            Self::Returned => "returned",
            Self::InstanceChanged => "instance_changed",
            Self::ServiceChanged => "service_changed",
            Self::ServiceCame => "service_came",
            Self::ServiceWent => "service_went",
            Self::LeftOut => "left_out",
            Self::BackIn => "back_in",
            Self::Reloaded => "reloaded",
            Self::Failed => "failed",
            Self::Recovered => "recovered",
            Self::HaproxyRestarted => "haproxy_restarted",
            Self::RegistryLost => "registry_lost",
            Self::RegistryConnected => "registry_connected",
            Self::TemplateFailed => "template_failed",
            Self::TemplateTaken => "template_taken",
        }
    }
}

/// The last notes.
#[derive(Debug, Default)]
pub struct Feed {
    notes: VecDeque<Arc<Note>>,
    last: u64,
}

impl Feed {
    /// Adds a note about no service.
    pub fn say(&mut self, at: Timestamp, what: What, words: &str) {
        self.add(at, what, None, None, words);
    }

    /// Adds a note.
    pub fn add(
        &mut self,
        at: Timestamp,
        what: What,
        service: Option<&ServiceName>,
        address: Option<InstanceAddress>,
        words: &str,
    ) {
        self.last += 1;
        let words = words.chars().take(WORDS_LIMIT).collect();
        if self.notes.len() == KEPT {
            self.notes.pop_front();
        }
        self.notes.push_back(Arc::new(Note { number: self.last, at, what, service: service.cloned(), address, words }));
    }

    /// The last notes, oldest first.
    pub fn notes(&self) -> Vec<Arc<Note>> {
        self.notes.iter().cloned().collect()
    }
}

/// What is different between two states of the services.
#[derive(Debug, Clone, PartialEq)]
pub struct Difference<'s> {
    /// What happened.
    pub what: What,
    /// With which service.
    pub service: &'s Arc<Service>,
    /// With which instance of it; none where it is the service itself. Where it went, as it was.
    pub instance: Option<&'s Arc<Instance>>,
}

/// Compares two states of the services. The cost grows with the services that differ, but for one comparison of pointers for
/// each of the others.
pub fn differences<'s>(before: &'s Services, now: &'s Services) -> Vec<Difference<'s>> {
    let mut found = Vec::new();
    for pair in pairs(before.iter(), now.iter(), |(name, _)| *name) {
        match pair {
            Pair::Both((_, before), (_, now)) if Arc::ptr_eq(before, now) => {}
            Pair::Both((_, before), (_, now)) => compare(before, now, &mut found),
            Pair::Before((_, service)) => {
                let went = |instance| Difference { what: What::Went, service, instance: Some(instance) };
                found.extend(service.instances.iter().map(went));
                found.push(Difference { what: What::ServiceWent, service, instance: None });
            }
            Pair::Now((_, service)) => {
                found.push(Difference { what: What::ServiceCame, service, instance: None });
                let came = |instance| Difference { what: What::Came, service, instance: Some(instance) };
                found.extend(service.instances.iter().map(came));
            }
        }
    }
    found
}

fn compare<'s>(before: &'s Arc<Service>, now: &'s Arc<Service>, found: &mut Vec<Difference<'s>>) {
    if before.settings() != now.settings() {
        found.push(Difference { what: What::ServiceChanged, service: now, instance: None });
    }
    let place = |instance: &&Arc<Instance>| (instance.address, instance.port);
    for pair in pairs(before.instances.iter(), now.instances.iter(), place) {
        let (what, instance) = match pair {
            Pair::Before(instance) => (What::Went, instance),
            Pair::Now(instance) => (What::Came, instance),
            Pair::Both(before, now) => match change(before, now) {
                Some(what) => (what, now),
                None => continue,
            },
        };
        found.push(Difference { what, service: now, instance: Some(instance) });
    }
}

/// What has happened to an instance that is still there.
fn change(before: &Arc<Instance>, now: &Arc<Instance>) -> Option<What> {
    match (before, now) {
        _ if Arc::ptr_eq(before, now) || before == now => None,
        _ if !before.suspect && now.suspect => Some(What::Suspect),
        _ if before.suspect && !now.suspect => Some(What::Returned),
        _ if !before.draining && now.draining => Some(What::Drains),
        _ if before.draining && !now.draining => Some(What::Undrained),
        _ => Some(What::InstanceChanged),
    }
}

enum Pair<T> {
    Before(T),
    Now(T),
    Both(T, T),
}

/// Walks along two sorted sequences at once.
fn pairs<T, K: Ord>(
    before: impl Iterator<Item = T>,
    now: impl Iterator<Item = T>,
    key: impl Fn(&T) -> K,
) -> impl Iterator<Item = Pair<T>> {
    let (mut before, mut now) = (before.peekable(), now.peekable());
    std::iter::from_fn(move || {
        let order = match (before.peek(), now.peek()) {
            (Some(b), Some(n)) => key(b).cmp(&key(n)),
            (None, Some(_)) => Ordering::Greater,
            (_, None) => Ordering::Less,
        };
        match order {
            Ordering::Less => before.next().map(Pair::Before),
            Ordering::Greater => now.next().map(Pair::Now),
            Ordering::Equal => before.next().zip(now.next()).map(|(before, now)| Pair::Both(before, now)),
        }
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use registry::Record;
    use registry::settings::{Balance, Mode, Proto};

    use super::*;

    fn instance(port: u16, weight: u16, draining: bool, suspect: bool) -> Arc<Instance> {
        let address = "10.0.0.1".parse().unwrap();
        let record = Arc::new(Record::parse("running").unwrap());
        Arc::new(Instance { server: format!("10.0.0.1_{port}"), address, port, weight, draining, suspect, record })
    }

    fn service(name: &str, instances: Vec<Arc<Instance>>) -> (ServiceName, Arc<Service>) {
        let name: ServiceName = name.parse().unwrap();
        let service = Service {
            name: name.clone(),
            mode: Mode::default(),
            host: None,
            path: None,
            listen: None,
            balance: Balance::default(),
            check: None,
            proto: Proto::default(),
            sticky: false,
            maxconn: None,
            slowstart: None,
            flat: false,
            tags: Vec::new(),
            attributes: BTreeMap::new(),
            instances,
        };
        (name, Arc::new(service))
    }

    /// Each difference as `what service/port`.
    fn told(before: &Services, now: &Services) -> Vec<String> {
        let line = |Difference { what, service, instance }| {
            let port = instance.map_or_else(String::new, |instance| format!("/{}", instance.port));
            format!("{what:?} {}{port}", service.name)
        };
        differences(before, now).into_iter().map(line).collect()
    }

    #[test]
    fn each_difference_is_told_by_its_name() {
        let before: Services = [
            service("gone", vec![instance(1, 100, false, false)]),
            service(
                "web",
                vec![
                    instance(1, 100, false, false),
                    instance(2, 100, false, false),
                    instance(3, 100, true, false),
                    instance(4, 100, false, false),
                    instance(5, 100, false, true),
                    instance(6, 100, false, false),
                ],
            ),
        ]
        .into();
        let mut web = vec![
            instance(2, 0, true, false),
            instance(3, 100, false, false),
            instance(4, 100, false, true),
            instance(5, 100, false, false),
            instance(6, 7, false, false),
            instance(7, 100, false, false),
        ];
        let now: Services = [service("new", vec![instance(9, 100, false, false)]), service("web", web.clone())].into();
        let expected = [
            "Went gone/1",
            "ServiceWent gone",
            "ServiceCame new",
            "Came new/9",
            "Went web/1",
            "Drains web/2",
            "Undrained web/3",
            "Suspect web/4",
            "Returned web/5",
            "InstanceChanged web/6",
            "Came web/7",
        ];
        assert_eq!(told(&before, &now), expected);
        assert!(differences(&now, &now.clone()).is_empty());

        web.pop();
        let sticky = Service { sticky: true, instances: web, ..now[&"web".parse().unwrap()].settings() };
        let changed: Services = [(sticky.name.clone(), Arc::new(sticky))].into();
        assert_eq!(told(&now, &changed), ["Went new/9", "ServiceWent new", "ServiceChanged web", "Went web/7"]);
    }

    #[test]
    fn the_last_notes_are_kept_and_numbered_and_long_words_are_cut() {
        let mut feed = Feed::default();
        for _ in 0..KEPT + 10 {
            feed.say(Timestamp::UNIX_EPOCH, What::Failed, &"é".repeat(WORDS_LIMIT + 1));
        }
        let notes = feed.notes();
        assert_eq!((notes.len(), notes[0].number, notes[KEPT - 1].number), (KEPT, 11, KEPT as u64 + 10));
        assert!(notes.iter().all(|note| note.words.chars().count() == WORDS_LIMIT));
    }

    fn services() -> impl Strategy<Value = Services> {
        let instances = proptest::collection::btree_map(1..6u16, (0..3u16, any::<bool>(), any::<bool>()), 0..5);
        let one = instances.prop_map(|instances| {
            let make = |(port, (weight, draining, suspect))| instance(port, weight, draining, suspect);
            instances.into_iter().map(make).collect::<Vec<_>>()
        });
        proptest::collection::btree_map("[abc]", one, 0..3)
            .prop_map(|services| services.into_iter().map(|(name, instances)| service(&name, instances)).collect())
    }

    proptest! {
        #[test]
        fn the_differences_lead_from_the_one_to_the_other(before in services(), now in services()) {
            let places = |services: &Services| -> Vec<(ServiceName, Arc<Instance>)> {
                let each = |(name, service): (&ServiceName, &Arc<Service>)| {
                    service.instances.iter().map(|instance| (name.clone(), Arc::clone(instance))).collect::<Vec<_>>()
                };
                services.iter().flat_map(each).collect()
            };
            let mut led = places(&before);
            for Difference { what, service, instance } in differences(&before, &now) {
                let Some(instance) = instance else { continue };
                led.retain(|(name, other)| *name != service.name || other.port != instance.port);
                if what != What::Went {
                    led.push((service.name.clone(), Arc::clone(instance)));
                }
            }
            led.sort_by_key(|(name, instance)| (name.clone(), instance.port));
            prop_assert_eq!(led, places(&now));
        }
    }
}
