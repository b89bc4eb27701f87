//! What to do in etcd about one key, from what should be there and what we wrote. Pure: `now` comes in, a step goes out.

use std::sync::Arc;
use std::time::Instant;

use registry::Ownership;

/// What is known of a key in etcd.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Holding {
    /// It is ours.
    Ours {
        /// By what to compare.
        ownership: Ownership,
        /// What it says. `None`: we tried to change it, and do not know what became of it.
        value: Option<Arc<str>>,
        /// When its time to live is to be renewed.
        refresh_at: Instant,
    },
    /// Someone else has written it.
    Foreign {
        /// When to see whether it is still there.
        look_at: Instant,
    },
    /// We tried to write it, and do not know what became of it.
    Unknown,
}

/// One thing to do, the most urgent first: what misleads others goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Delete our key.
    Delete(Ownership),
    /// Give our key another value.
    Update(Ownership),
    /// Write the key.
    Put,
    /// Renew the time to live of our key.
    Refresh(Ownership),
    /// See what is there.
    Look,
    /// Think no more of a key that someone else wrote: it is no longer wanted.
    Forget,
}

impl Step {
    /// The lowest is to be done first.
    pub fn rank(self) -> u8 {
        match self {
            Self::Forget => 0,
            Self::Delete(_) => 1,
            Self::Update(_) => 2,
            Self::Put => 3,
            Self::Refresh(_) => 4,
            Self::Look => 5,
        }
    }
}

/// What to do now about a key that should have this value, if any. Nothing where all is as it should be.
pub fn reconcile(wanted: Option<&str>, held: Option<&Holding>, now: Instant) -> Option<Step> {
    let Some(held) = held else { return wanted.map(|_| Step::Put) };
    match (wanted, held) {
        (None, Holding::Ours { ownership, .. }) => Some(Step::Delete(*ownership)),
        (None, Holding::Foreign { .. }) => Some(Step::Forget),
        (None, Holding::Unknown) => Some(Step::Look),
        (Some(wanted), Holding::Ours { ownership, value, .. }) if Some(wanted) != value.as_deref() => {
            Some(Step::Update(*ownership))
        }
        (Some(_), Holding::Ours { ownership, refresh_at, .. }) if *refresh_at <= now => Some(Step::Refresh(*ownership)),
        (Some(_), Holding::Foreign { look_at }) if *look_at <= now => Some(Step::Look),
        (Some(_), Holding::Unknown) => Some(Step::Put),
        (Some(_), _) => None,
    }
}

/// When [`reconcile`] has something to do by the passing of time alone. `None` where never.
pub fn due(held: &Holding) -> Option<Instant> {
    match held {
        Holding::Ours { refresh_at, .. } => Some(*refresh_at),
        Holding::Foreign { look_at } => Some(*look_at),
        Holding::Unknown => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use registry::Entry;
    use std::time::Duration;

    fn ownership() -> Ownership {
        Entry::new("", "").ownership()
    }

    fn ours(value: &str, refresh_at: Instant) -> Holding {
        Holding::Ours { ownership: ownership(), value: Some(value.into()), refresh_at }
    }

    #[test]
    fn what_is_wanted_is_written_renewed_and_looked_after_and_the_rest_goes() {
        let now = Instant::now();
        let later = now + Duration::from_secs(1);
        let in_doubt = Holding::Ours { ownership: ownership(), value: None, refresh_at: later };
        let foreign = |look_at| Some(Holding::Foreign { look_at });
        let cases = [
            (Some("a"), None, Some(Step::Put)),
            (Some("a"), Some(ours("a", later)), None),
            (Some("a"), Some(ours("a", now)), Some(Step::Refresh(ownership()))),
            (Some("b"), Some(ours("a", later)), Some(Step::Update(ownership()))),
            (Some("a"), Some(in_doubt.clone()), Some(Step::Update(ownership()))),
            (None, Some(in_doubt), Some(Step::Delete(ownership()))),
            (Some("a"), foreign(now), Some(Step::Look)),
            (Some("a"), foreign(later), None),
            (Some("a"), Some(Holding::Unknown), Some(Step::Put)),
            (None, None, None),
            (None, Some(ours("a", later)), Some(Step::Delete(ownership()))),
            (None, foreign(later), Some(Step::Forget)),
            (None, Some(Holding::Unknown), Some(Step::Look)),
        ];
        for (wanted, held, expected) in cases {
            assert_eq!(reconcile(wanted, held.as_ref(), now), expected, "{wanted:?} {held:?}");
        }
        assert_eq!(due(&ours("a", later)), Some(later));
        assert_eq!(due(&Holding::Unknown), None);
    }

    proptest! {
        #[test]
        fn after_its_own_steps_there_is_nothing_to_do(
            wanted in proptest::option::of("[ab]"), kind in 0..4u8, value in "[ab]", wait in 0..3u64, somebody in any::<bool>(),
        ) {
            let now = Instant::now();
            let (moment, later) = (now + Duration::from_secs(wait), now + Duration::from_secs(9));
            let mut held = match kind {
                0 => None,
                1 => Some(ours(&value, moment)),
                2 => Some(Holding::Foreign { look_at: moment }),
                _ => Some(Holding::Unknown),
            };
            let mut steps = 0;
            while let Some(step) = reconcile(wanted.as_deref(), held.as_ref(), now) {
                held = match step {
                    Step::Delete(_) | Step::Forget => None,
                    Step::Put | Step::Update(_) | Step::Refresh(_) => wanted.as_deref().map(|wanted| ours(wanted, later)),
                    Step::Look => somebody.then_some(Holding::Foreign { look_at: later }),
                };
                steps += 1;
                prop_assert!(steps <= 3);
            }
            prop_assert!(held.is_some() == wanted.is_some());
            prop_assert!(held.as_ref().and_then(due).is_none_or(|moment| moment > now));
        }
    }
}
