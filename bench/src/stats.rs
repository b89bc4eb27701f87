//! Medians, percentiles and the table of results. Pure.

use std::time::Duration;

use crate::plot::Plot;

/// Of fewer times than this the 99th percentile is the longest.
const FEW: usize = 100;

/// Measured times.
#[derive(Debug, Clone, Default)]
pub(crate) struct Times(Vec<Duration>);

impl Times {
    pub(crate) fn push(&mut self, time: Duration) {
        self.0.push(time);
    }

    /// Takes in others.
    pub(crate) fn add(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    /// The last one, in milliseconds; 0 where there is none.
    pub(crate) fn last(&self) -> f64 {
        self.0.last().map_or(0.0, |time| time.as_secs_f64() * 1000.0)
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// The time that a share (0 to 1) of all does not exceed, in milliseconds; 0 where there is none.
    pub(crate) fn quantile(&self, share: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort();
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
        let rank = (sorted.len() as f64 * share).ceil() as usize;
        sorted.get(rank.saturating_sub(1)).map_or(0.0, |time| time.as_secs_f64() * 1000.0)
    }

    pub(crate) fn median(&self) -> f64 {
        self.quantile(0.5)
    }

    /// `median 1.23, p99 4.56, longest 5.67 ms`; of few times there is no p99.
    pub(crate) fn shown(&self) -> String {
        if self.len() < FEW {
            return format!("median {:.1}, longest {:.1} ms", self.median(), self.quantile(1.0));
        }
        let [median, p99, longest] = [0.5, 0.99, 1.0].map(|share| self.quantile(share));
        format!("median {median:.2}, p99 {p99:.2}, longest {longest:.2} ms")
    }
}

/// One line of the results.
#[derive(Debug)]
pub(crate) struct Row {
    what: String,
    target: String,
    measured: String,
}

impl Row {
    pub(crate) fn new(what: &str, target: &str, measured: String) -> Self {
        Self { what: what.to_owned(), target: target.to_owned(), measured }
    }
}

/// What one measurement gives.
#[derive(Debug, Default)]
pub(crate) struct Measured {
    pub(crate) rows: Vec<Row>,
    pub(crate) plots: Vec<Plot>,
}

impl Measured {
    pub(crate) fn of(rows: Vec<Row>) -> Self {
        Self { rows, plots: Vec::new() }
    }
}

/// The results as a Markdown table.
pub(crate) fn table(rows: &[Row]) -> String {
    let mut text = String::from("| what | target | measured |\n|---|---|---|\n");
    for row in rows {
        text.push_str(&format!("| {} | {} | {} |\n", row.what, row.target, row.measured.replace('\n', "<br>")));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_times_that_were_measured() {
        let mut times = Times::default();
        (1..=100).rev().for_each(|ms| times.push(Duration::from_millis(ms)));
        assert_eq!([0.5, 0.99, 1.0].map(|share| times.quantile(share)), [50.0, 99.0, 100.0]);
        assert_eq!(Times::default().median(), 0.0);
    }
}
