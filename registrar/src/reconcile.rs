//! What to do in etcd, from what should be there and what we wrote. Pure: `now` comes in, actions go out.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use registry::{InstanceKey, Ownership};

/// What is known of a key that we wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Holding {
    /// It is ours.
    Ours {
        /// By what to compare.
        ownership: Ownership,
        /// When its time to live is to be renewed.
        refresh_at: Instant,
    },
    /// Someone else has written it since.
    Foreign {
        /// When to see whether it is still there.
        look_at: Instant,
    },
}

/// The keys that we wrote.
pub type Registered = BTreeMap<InstanceKey, Holding>;

/// One thing to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Delete our key.
    Delete(InstanceKey, Ownership),
    /// Write the key.
    Put(InstanceKey),
    /// Renew the time to live of our key.
    Refresh(InstanceKey, Ownership),
    /// See whether the key that someone else wrote is still there.
    Look(InstanceKey),
    /// Think no more of a key that someone else wrote: it is no longer wanted.
    Forget(InstanceKey),
}

/// What to do now, in this order: what misleads others goes first. Nothing where all is as it should be.
pub fn reconcile(desired: &BTreeSet<InstanceKey>, registered: &Registered, now: Instant) -> Vec<Action> {
    let unwanted = registered.iter().filter(|(key, _)| !desired.contains(key)).map(|(key, holding)| match holding {
        Holding::Ours { ownership, .. } => Action::Delete(key.clone(), *ownership),
        Holding::Foreign { .. } => Action::Forget(key.clone()),
    });
    let missing = desired.iter().filter(|key| !registered.contains_key(key)).map(|key| Action::Put(key.clone()));
    let due = registered.iter().filter(|(key, _)| desired.contains(key)).filter_map(|(key, holding)| match holding {
        Holding::Ours { ownership, refresh_at } if *refresh_at <= now => Some(Action::Refresh(key.clone(), *ownership)),
        Holding::Foreign { look_at } if *look_at <= now => Some(Action::Look(key.clone())),
        _ => None,
    });
    unwanted.chain(missing).chain(due).collect()
}

/// When [`reconcile`] has something to do by the passing of time alone. `None` where never.
pub fn due(registered: &Registered) -> Option<Instant> {
    let moment = |holding: &Holding| match holding {
        Holding::Ours { refresh_at, .. } => *refresh_at,
        Holding::Foreign { look_at } => *look_at,
    };
    registered.values().map(moment).min()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use registry::Entry;
    use std::time::Duration;

    fn key(at: u8) -> InstanceKey {
        InstanceKey::parse(&"service".parse().unwrap(), &format!("/service/10.0.0.{at}:80")).unwrap()
    }

    fn ownership() -> Ownership {
        Entry::new("", "").ownership()
    }

    #[test]
    fn what_is_wanted_is_written_renewed_and_looked_after_and_the_rest_goes() {
        let now = Instant::now();
        let (past, later) = (now, now + Duration::from_secs(1));
        let ours = |refresh_at| Holding::Ours { ownership: ownership(), refresh_at };
        let registered: Registered = [
            (key(1), ours(later)),
            (key(2), ours(past)),
            (key(3), Holding::Foreign { look_at: past }),
            (key(4), Holding::Foreign { look_at: later }),
            (key(6), ours(past)),
            (key(7), Holding::Foreign { look_at: past }),
        ]
        .into();
        let desired = [1, 2, 3, 4, 5].map(key).into();
        assert_eq!(
            reconcile(&desired, &registered, now),
            [
                Action::Delete(key(6), ownership()),
                Action::Forget(key(7)),
                Action::Put(key(5)),
                Action::Refresh(key(2), ownership()),
                Action::Look(key(3)),
            ]
        );
        assert_eq!(due(&registered), Some(past));
        assert_eq!(due(&Registered::new()), None);
    }

    proptest! {
        #[test]
        fn after_its_own_actions_there_is_nothing_to_do(
            desired in proptest::collection::btree_set(0..8u8, 0..8),
            held in proptest::collection::btree_map(0..8u8, (any::<bool>(), 0..3u64), 0..8),
        ) {
            let now = Instant::now();
            let later = now + Duration::from_secs(9);
            let desired: BTreeSet<_> = desired.into_iter().map(key).collect();
            let mut registered: Registered = held.into_iter().map(|(at, (ours, wait))| {
                let moment = now + Duration::from_secs(wait);
                let holding = if ours {
                    Holding::Ours { ownership: ownership(), refresh_at: moment }
                } else {
                    Holding::Foreign { look_at: moment }
                };
                (key(at), holding)
            }).collect();
            for action in reconcile(&desired, &registered, now) {
                match action {
                    Action::Delete(key, _) | Action::Forget(key) => drop(registered.remove(&key)),
                    Action::Put(key) | Action::Refresh(key, _) => {
                        registered.insert(key, Holding::Ours { ownership: ownership(), refresh_at: later });
                    }
                    Action::Look(key) => drop(registered.insert(key, Holding::Foreign { look_at: later })),
                }
            }
            prop_assert_eq!(reconcile(&desired, &registered, now), []);
            prop_assert_eq!(registered.keys().cloned().collect::<BTreeSet<_>>(), desired);
            prop_assert!(due(&registered).is_none_or(|moment| moment > now));
        }
    }
}
