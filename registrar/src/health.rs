//! Whether the application answers, from the results of asking it. Pure: `now` comes in.

use std::time::{Duration, Instant};

/// The shortest gap between two questions.
const SHORTEST_GAP: Duration = Duration::from_millis(25);

/// A change of mind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// It answers now.
    Up,
    /// It no longer answers.
    Down,
}

/// What came of one question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// It answered well.
    Good,
    /// It answered badly, or not in time: that may be a bad moment.
    Bad,
    /// Nobody is there to answer: no need to ask again.
    Refused,
}

/// What is known of an application.
#[derive(Debug, Clone)]
pub struct Health {
    rise: u32,
    fall: u32,
    interval: Duration,
    started: Instant,
    up: bool,
    was_up: bool,
    /// How many results in a row spoke against `up`.
    against: u32,
}

impl Health {
    /// Nothing is known yet: it counts as not answering. It takes `rise` answers in a row to be up, and `fall`
    /// missing ones to be down again; `interval` is the gap between questions in the long run.
    pub fn new(rise: u32, fall: u32, interval: Duration, started: Instant) -> Self {
        Self { rise, fall, interval, started, up: false, was_up: false, against: 0 }
    }

    /// Goes on with other limits, and with what it has counted.
    pub fn adjust(&mut self, rise: u32, fall: u32, interval: Duration) {
        (self.rise, self.fall, self.interval) = (rise, fall, interval);
    }

    /// Takes somebody's word that it answers.
    pub fn assume_up(&mut self) {
        (self.up, self.was_up, self.against) = (true, true, 0);
    }

    /// Whether it answers.
    pub fn is_up(&self) -> bool {
        self.up
    }

    /// Whether it has ever answered.
    pub fn was_up(&self) -> bool {
        self.was_up
    }

    /// Takes the result of one question. A refusal counts at once, whatever `fall` says.
    pub fn record(&mut self, answer: Answer) -> Option<Change> {
        let answered = answer == Answer::Good;
        if answered == self.up {
            self.against = 0;
            return None;
        }
        self.against += 1;
        let needed = match answer {
            Answer::Good => self.rise,
            Answer::Bad => self.fall,
            Answer::Refused => 1,
        };
        if self.against < needed {
            return None;
        }
        self.against = 0;
        self.up = answered;
        self.was_up |= answered;
        Some(if answered { Change::Up } else { Change::Down })
    }

    /// From the beginning of one question to that of the next. Until it is up for the first time: a tenth of the time
    /// since the start, so that an application that is quick to start is quick to be registered, and one that is slow
    /// is not flooded.
    pub fn gap(&self, now: Instant) -> Duration {
        if self.was_up {
            return self.interval;
        }
        let since_start = now.saturating_duration_since(self.started);
        (since_start / 10).max(SHORTEST_GAP).min(self.interval)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn answer(answered: bool) -> Answer {
        if answered { Answer::Good } else { Answer::Bad }
    }

    fn health(rise: u32, fall: u32) -> Health {
        Health::new(rise, fall, Duration::from_secs(5), Instant::now())
    }

    #[test]
    fn it_takes_rise_answers_in_a_row_to_be_up_and_fall_missing_ones_to_be_down() {
        let mut health = health(2, 3);
        let results = [true, false, true, true, false, false, true, false, false, false, false, true, true];
        let changes: Vec<_> = results.map(|answered| health.record(answer(answered))).into_iter().collect();
        let expected: Vec<_> = [(3, Change::Up), (9, Change::Down), (12, Change::Up)].into();
        let told: Vec<_> = changes.into_iter().enumerate().filter_map(|(at, change)| Some((at, change?))).collect();
        assert_eq!(told, expected);
    }

    #[test]
    fn a_refusal_counts_at_once_and_a_bad_answer_does_not() {
        let mut health = health(1, 3);
        let answers = [Answer::Good, Answer::Bad, Answer::Refused, Answer::Good, Answer::Bad, Answer::Bad, Answer::Bad];
        let changes = answers.map(|answer| health.record(answer));
        let (up, down) = (Some(Change::Up), Some(Change::Down));
        assert_eq!(changes, [up, None, down, up, None, None, down]);
        health.assume_up();
        assert!(health.is_up() && health.was_up());
    }

    #[test]
    fn the_gap_grows_with_the_time_since_the_start_until_it_is_up_for_the_first_time() {
        let start = Instant::now();
        let mut health = Health::new(1, 1, Duration::from_secs(5), start);
        let gap = |health: &Health, after: u64| health.gap(start + Duration::from_millis(after)).as_millis();
        let cases = [(0, 25), (100, 25), (1000, 100), (20_000, 2000), (50_000, 5000), (500_000, 5000)];
        for (after, expected) in cases {
            assert_eq!(gap(&health, after), expected, "after {after} ms");
        }
        health.record(Answer::Good);
        assert_eq!(gap(&health, 1000), 5000);
        health.record(Answer::Bad);
        assert_eq!(gap(&health, 2000), 5000);
    }

    #[test]
    fn an_interval_below_the_shortest_gap_is_kept() {
        let start = Instant::now();
        let health = Health::new(1, 1, Duration::from_millis(10), start);
        assert_eq!(health.gap(start), Duration::from_millis(10));
    }

    proptest! {
        #[test]
        fn it_is_up_exactly_as_its_changes_say(results in proptest::collection::vec(any::<bool>(), 0..60), rise in 1..4u32, fall in 1..4u32) {
            let mut health = health(rise, fall);
            let mut up = false;
            for (at, answered) in results.iter().copied().enumerate() {
                if let Some(change) = health.record(answer(answered)) {
                    prop_assert_eq!(up, change == Change::Down);
                    up = !up;
                    let needed = if up { rise } else { fall } as usize;
                    prop_assert!(at + 1 >= needed && results[at + 1 - needed..=at].iter().all(|result| *result == up));
                }
                prop_assert_eq!(health.is_up(), up);
            }
        }
    }
}
