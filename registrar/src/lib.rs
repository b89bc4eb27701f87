//! From Docker to the registry: finds where a container is reached, asks it whether it answers, and keeps its key.
//!
//! Pure rooms, no I/O and no clock: `own` (which container is this), `service` (what is registered for it), `health`
//! (does it answer), `pace` (what is done together), `reconcile` (what to do in etcd). Edges: `docker`, `probe` and `ask`, `host`. `keeper` owns the keys in
//! etcd.
//!
//! The daemons own all state, and do what the pure rooms say: `sidekick` for the container it is in, `agent` for all
//! containers of a host, `fixed` for what does not run in Docker. `list` and `explain` look and change nothing; `drain` changes
//! what others keep; `manual` writes the manual pages. `operator` is what the daemons tell who asks, `metrics` what they count. `config` is the command line.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod agent;
mod ask;
pub mod config;
pub mod docker;
pub mod drain;
pub mod explain;
pub mod fixed;
#[cfg(feature = "fuzz")]
pub mod fuzz;
pub mod health;
pub mod host;
pub mod keeper;
pub mod keepers;
pub mod list;
pub mod metrics;
pub mod operator;
pub mod own;
mod pace;
pub mod probe;
pub mod reconcile;
pub mod service;
pub mod sidekick;

pub use config::Config;
pub use own::Traces;
pub use sidekick::{RunError, run};

/// How a daemon ends that was told to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// For good: its keys go.
    Good,
    /// Another process takes its place at once: the keys stay for it.
    Successor,
}

impl From<()> for Ending {
    fn from((): ()) -> Self {
        Self::Good
    }
}
