//! What has come of applying, as an operator is told it. It decides nothing.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;

use crate::feed::What;
use crate::metrics::Metrics;
use crate::view::{AppliedView, ReloadView};

use super::{Applied, ApplyError};

/// The past, as far as somebody asks for it.
#[derive(Debug, Default)]
pub(super) struct History {
    pub(super) metrics: Metrics,
    pub(super) reloads: BTreeMap<&'static str, u64>,
    pub(super) last_reload: Option<ReloadView>,
    pub(super) applied: Option<AppliedView>,
    /// Why HAProxy does not run what is wanted now.
    pub(super) error: Option<String>,
    notes: Vec<(Timestamp, What, String)>,
}

impl History {
    pub(super) fn new(metrics: Metrics) -> Self {
        Self { metrics, ..Self::default() }
    }

    /// A reload has ended.
    pub(super) fn reloaded(&mut self, kind: &'static str, reason: &str, took: Duration, error: Option<String>) {
        let now = Timestamp::now();
        let at = now.checked_sub(took).unwrap_or(now);
        if error.is_none() {
            self.metrics.reloaded(kind, took.as_secs_f64());
            *self.reloads.entry(kind).or_default() += 1;
            self.note(What::Reloaded, reason);
        }
        let took_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        self.last_reload = Some(ReloadView { at, reason: reason.to_owned(), took_ms, error });
    }

    /// HAProxy was told of single servers. It runs what is wanted then, but for where it did not before.
    pub(super) fn stepped(&mut self) {
        if self.error.is_none() && self.applied.is_some() {
            self.success("runtime");
        }
    }

    /// What an attempt to bring HAProxy to what is wanted has led to.
    pub(super) fn ended(&mut self, result: &Result<Applied, ApplyError>) {
        match result {
            Ok(Applied::Later(_)) => {}
            Ok(applied) => {
                if self.error.take().is_some() {
                    self.note(What::Recovered, "");
                }
                self.success(applied.as_str());
            }
            Err(error) => {
                self.metrics.failed(error.kind());
                let words = error.to_string();
                if self.error.as_ref() != Some(&words) {
                    self.note(What::Failed, &words);
                    self.error = Some(words);
                }
            }
        }
    }

    fn success(&mut self, how: &'static str) {
        self.metrics.applied(how);
        self.applied = Some(AppliedView { at: Timestamp::now(), how });
    }

    pub(super) fn note(&mut self, what: What, words: &str) {
        // Nobody takes them before the daemon runs, or where there is none.
        const MOST: usize = 100;
        if self.notes.len() < MOST {
            self.notes.push((Timestamp::now(), what, words.to_owned()));
        }
    }

    pub(super) fn take_notes(&mut self) -> Vec<(Timestamp, What, String)> {
        std::mem::take(&mut self.notes)
    }
}
