//! How instances that drain stand, from what the registry wants and what HAProxy says of its servers. Pure.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use registry::InstanceAddress;
use registry::acknowledgement::{Drain, State};

use crate::haproxy::{ServerLoad, WorkerLoad};
use crate::model::server_name;

/// The instances that drain, as the catalog has them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Draining {
    /// Each with whether it keeps its weight, since all instances of its service drain.
    pub instances: BTreeMap<InstanceAddress, bool>,
    /// Rises with each change of a record that drains, or did, also where nothing of it is routed to, or it says the same.
    pub changes: u64,
}

/// By what servers of HAProxy are known to be an instance: by where they are, or by their names.
pub struct Wanted(Vec<(InstanceAddress, SocketAddr, String)>);

impl Wanted {
    /// Those that stand for an instance that drains.
    pub fn of(draining: &Draining) -> Self {
        let of = |address: &InstanceAddress| (*address, address.socket_addr(), server_name(*address));
        Self(draining.instances.keys().map(of).collect())
    }

    /// Whether a server is one of them.
    pub fn is_meant(&self, name: &str, address: Option<SocketAddr>) -> bool {
        self.0.iter().any(|(_, socket, server)| Some(*socket) == address || server == name)
    }
}

/// How they stand with HAProxy: by all its workers, or unknown where not all could be asked.
pub fn states(draining: &Draining, workers: Option<&[WorkerLoad]>) -> BTreeMap<InstanceAddress, Drain> {
    let state = |(address, is_last): (&InstanceAddress, &bool)| {
        let drain = workers.map_or(Drain::UNKNOWN, |workers| drain(*address, *is_last, workers));
        (*address, drain)
    };
    draining.instances.iter().map(state).collect()
}

fn drain(address: InstanceAddress, is_last: bool, workers: &[WorkerLoad]) -> Drain {
    let (socket, name) = (address.socket_addr(), server_name(address));
    let is_it = |server: &&ServerLoad| server.address == Some(socket) || server.name == name;
    let (mut in_current, mut in_old, mut sessions) = (false, false, 0u64);
    for worker in workers {
        for server in worker.servers.iter().filter(is_it) {
            sessions = sessions.saturating_add(server.sessions);
            *(if worker.is_old { &mut in_old } else { &mut in_current }) |= server.gets_new;
        }
    }
    let state = match (in_current, in_old) {
        (true, _) if is_last => State::Last,
        (true, _) => State::Serving,
        (false, true) => State::OldWorker,
        (false, false) => State::Drained,
    };
    Drain { state, sessions: Some(sessions) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> InstanceAddress {
        text.parse().unwrap()
    }

    fn draining(is_last: bool) -> Draining {
        Draining { instances: BTreeMap::from([(address("10.0.0.1:80"), is_last)]), changes: 1 }
    }

    fn worker(is_old: bool, servers: &[(&str, &str, bool, u64)]) -> WorkerLoad {
        let server = |&(name, address, gets_new, sessions): &(&str, &str, bool, u64)| ServerLoad {
            name: name.to_owned(),
            address: address.parse().ok(),
            gets_new,
            sessions,
        };
        WorkerLoad { is_old, servers: servers.iter().map(server).collect() }
    }

    fn state(is_last: bool, workers: &[WorkerLoad]) -> (State, Option<u64>) {
        let drain = states(&draining(is_last), Some(workers))[&address("10.0.0.1:80")];
        (drain.state, drain.sessions)
    }

    #[test]
    fn nothing_is_done_before_every_worker_has_done_with_it() {
        let one = ("10.0.0.1_80", "10.0.0.1:80");
        let cases: [(bool, Vec<WorkerLoad>, (State, u64)); 9] = [
            (false, vec![worker(false, &[(one.0, one.1, false, 0)])], (State::Drained, 0)),
            (false, vec![worker(false, &[(one.0, one.1, false, 3)])], (State::Drained, 3)),
            (false, vec![worker(false, &[(one.0, one.1, true, 0)])], (State::Serving, 0)),
            (true, vec![worker(false, &[(one.0, one.1, true, 2)])], (State::Last, 2)),
            // In two backends, under the template's own name in one of them.
            (false, vec![worker(false, &[(one.0, one.1, false, 1), ("srv1", one.1, true, 1)])], (State::Serving, 2)),
            // By its name alone, where HAProxy does not tell the address, or the template wrote another.
            (false, vec![worker(false, &[(one.0, "", true, 1)])], (State::Serving, 1)),
            // HAProxy has no such server.
            (false, vec![worker(false, &[])], (State::Drained, 0)),
            (
                false,
                vec![worker(false, &[(one.0, one.1, false, 0)]), worker(true, &[(one.0, one.1, true, 0)])],
                (State::OldWorker, 0),
            ),
            (
                false,
                vec![worker(false, &[(one.0, one.1, false, 1)]), worker(true, &[(one.0, one.1, false, 2)])],
                (State::Drained, 3),
            ),
        ];
        for (is_last, workers, (expected, sessions)) in cases {
            assert_eq!(state(is_last, &workers), (expected, Some(sessions)), "{workers:?}");
        }
        let unknown = states(&draining(false), None)[&address("10.0.0.1:80")];
        assert_eq!((unknown.state, unknown.sessions), (State::Unknown, None));
    }

    #[test]
    fn only_servers_of_what_drains_are_looked_at() {
        let wanted = Wanted::of(&draining(false));
        assert!(wanted.is_meant("10.0.0.1_80", None) && wanted.is_meant("x", "10.0.0.1:80".parse().ok()));
        assert!(!wanted.is_meant("10.0.0.1_8", "10.0.0.1:8".parse().ok()));
    }
}
