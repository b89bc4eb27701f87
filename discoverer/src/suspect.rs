//! Whether an instance whose key expired stays. Pure: no I/O, and time comes in as `now`.
//!
//! A key expires where its registrar or its host died, and where etcd had no quorum for longer than the key's time to
//! live. The first case is told from the second by HAProxy's own check, and by what became of the registrar's other keys.

use std::time::{Duration, Instant};

/// What the time to live of a registrar's keys is taken for where no more is known of it: the registrars' default.
pub const LEAST_LIFE: Duration = Duration::from_secs(20);

/// So many times the keys' time to live a registrar must be back for, before it counts that it did not write a key again. Within the
/// first it may be about to; a key of its own that is still there after the second was refreshed in the second.
const LIVES: u32 = 2;

/// What HAProxy says of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Health {
    /// Its check reaches it.
    Up,
    /// Its check does not.
    Down,
    /// It is not checked.
    Unchecked,
    /// HAProxy has no such server, keeps it in maintenance, or cannot be asked.
    Unknown,
}

/// Another key of the registrar whose key expired.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sign {
    /// Since when one of its keys has been in etcd without a break, seen without a break.
    pub since: Instant,
    /// The time to live of its keys, or more.
    pub life: Duration,
}

/// What is known of an instance whose key expired.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Case {
    /// Since when its key is known to be gone; not before the registry could be followed again.
    pub since: Instant,
    /// What HAProxy says of it.
    pub health: Health,
    /// That its registrar lives, if anything says so.
    pub registrar: Option<Sign>,
}

/// Why an instance whose key expired goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Why {
    /// HAProxy's own check has it down.
    Down,
    /// Nobody would notice that it is dead.
    Unchecked,
    /// Its registrar is there and does not write it again.
    GivenUp,
    /// It was suspect for as long as that may be.
    TooLong,
}

impl Why {
    /// For the log.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Down => "HAProxy's check has it down",
            Self::Unchecked => "HAProxy does not check it",
            Self::GivenUp => "its registrar is there and does not write it again",
            Self::TooLong => "suspect for as long as --suspect-for allows",
        }
    }
}

/// Decides about one instance: nothing while it stays.
pub fn verdict(case: &Case, now: Instant, suspect_for: Duration) -> Option<Why> {
    match case.health {
        Health::Down => return Some(Why::Down),
        Health::Unchecked => return Some(Why::Unchecked),
        Health::Up | Health::Unknown => {}
    }
    let has_given_up = |sign: Sign| now >= case.since.max(sign.since) + LIVES * sign.life;
    if case.registrar.is_some_and(has_given_up) {
        return Some(Why::GivenUp);
    }
    (now >= case.since + suspect_for).then_some(Why::TooLong)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMIT: Duration = Duration::from_secs(600);

    #[test]
    fn each_rule_removes_and_nothing_else_does() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let sign = |seconds| Some(Sign { since: after(seconds), life: LEAST_LIFE });
        let cases = [
            (Health::Up, None, 0, None),
            (Health::Up, None, 599, None),
            (Health::Up, None, 600, Some(Why::TooLong)),
            (Health::Down, None, 0, Some(Why::Down)),
            (Health::Unchecked, None, 0, Some(Why::Unchecked)),
            // Nobody can be asked: what serves goes on.
            (Health::Unknown, None, 599, None),
            (Health::Unknown, None, 600, Some(Why::TooLong)),
            // Another key that was there before says nothing yet: it may be about to expire too.
            (Health::Up, sign(0), 39, None),
            (Health::Up, sign(0), 40, Some(Why::GivenUp)),
            (Health::Unknown, sign(0), 40, Some(Why::GivenUp)),
            // A registrar that is back gets the time to write all its keys again.
            (Health::Up, sign(300), 339, None),
            (Health::Up, sign(300), 340, Some(Why::GivenUp)),
            (Health::Down, sign(300), 1, Some(Why::Down)),
        ];
        for (health, registrar, seconds, expected) in cases {
            let case = Case { since: start, health, registrar };
            assert_eq!(verdict(&case, after(seconds), LIMIT), expected, "{case:?} after {seconds} s");
        }
    }

    fn case(start: Instant) -> impl Strategy<Value = Case> {
        let health = prop_oneof![Just(Health::Up), Just(Health::Down), Just(Health::Unchecked), Just(Health::Unknown)];
        let sign = (0..900u64, 1..60u64).prop_map(move |(since, life)| Sign {
            since: start + Duration::from_secs(since),
            life: Duration::from_secs(life),
        });
        (health, proptest::option::of(sign)).prop_map(move |(health, registrar)| Case {
            since: start,
            health,
            registrar,
        })
    }

    proptest! {
        #[test]
        fn once_it_may_go_it_may_go_at_any_later_time(
            (case, first, later) in (case(Instant::now()), 0..900u64, 0..900u64),
        ) {
            let at = |seconds| verdict(&case, case.since + Duration::from_secs(seconds), LIMIT);
            prop_assert!(at(first).is_none() || at(first + later).is_some());
            prop_assert!(at(LIMIT.as_secs() + later).is_some(), "none stays for ever");
        }

        #[test]
        fn what_answers_stays_until_its_registrar_had_time_to_write_it_again(
            (case, seconds) in (case(Instant::now()), 0..600u64),
        ) {
            let now = case.since + Duration::from_secs(seconds);
            let answers = matches!(case.health, Health::Up | Health::Unknown);
            let is_given_up = case.registrar.is_some_and(|sign| {
                now.saturating_duration_since(sign.since) >= 2 * sign.life && now - case.since >= 2 * sign.life
            });
            prop_assert_eq!(verdict(&case, now, LIMIT).is_none(), answers && !is_given_up);
        }
    }
}
