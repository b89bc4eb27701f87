//! The edge to HAProxy: its program, its sockets, its process. It carries out and reports; it decides nothing.

mod check;
mod container;
#[cfg(feature = "fuzz")]
pub(crate) mod fuzz;
mod loads;
mod reload;
mod runtime;
mod servers;
mod socket;
mod stats;
mod supervise;
mod systemd;

pub use check::{CheckError, Program};
pub use container::Container;
pub use loads::{ServerLoad, WorkerLoad, Workers};
pub use reload::{RELOAD_LIMIT, ReloadError, Reloaded, Reloader, forks_first, running_version};
pub use runtime::{Command, Runtime, RuntimeError, Worker, is_deleted};
pub use servers::{AdminState, Kept, ServerHealth, ServerState, parse_healths, parse_servers, with_wanted_states};
pub use socket::{SocketError, ask};
pub use stats::{ServerStat, Stats, pause_after};
pub use supervise::{Layout, Order, Supervisor, SupervisorHandle};

/// No program that is started gets a password or a token of ours.
fn without_secrets(command: &mut tokio::process::Command) {
    for name in crate::config::SECRET_VARIABLES.into_iter().chain(observe::systemd::VARIABLES) {
        command.env_remove(name);
    }
}
