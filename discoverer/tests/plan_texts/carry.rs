//! Carries out changes on a model of HAProxy. Also what the fuzzer's target `plan-model` does it with.

use std::net::SocketAddr;

use discoverer::plan::{Change, ServerId};

use crate::plan_texts::{Model, known};

/// Does what HAProxy does at a change.
pub(crate) fn carry_out(model: &mut Model, change: Change) {
    let key = |id: ServerId| (id.backend, id.server);
    match change {
        Change::Add { id, arguments, checked, dynamic_cookie } => {
            let server = known(&arguments);
            assert_eq!(checked, server.settings.contains_key("check"));
            assert!(!dynamic_cookie);
            assert_eq!(model.insert(key(id), server), None, "it is there already");
        }
        Change::Remove { id } => assert!(model.remove(&key(id)).is_some(), "it is not there"),
        Change::Weight { id, weight } => model.get_mut(&key(id)).unwrap().weight = weight,
        Change::Address { id, address, port } => {
            model.get_mut(&key(id)).unwrap().address = SocketAddr::new(address.parse().unwrap(), port);
        }
    }
}

/// Nothing in a change parts words or commands of the runtime API.
pub(crate) fn is_safe(change: &Change) -> bool {
    let name = |id: &ServerId| {
        let good =
            |name: &str| !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.:".contains(c));
        good(&id.backend) && good(&id.server)
    };
    match change {
        Change::Add { id, arguments, .. } => {
            name(id)
                && arguments.bytes().all(|b| b.is_ascii_graphic() || b == b' ')
                && !arguments.contains([';', '\\', '<', '>', '"', '\'', '#', '$', '`'])
        }
        Change::Remove { id } | Change::Weight { id, .. } => name(id),
        Change::Address { id, address, .. } => name(id) && address.parse::<std::net::IpAddr>().is_ok(),
    }
}
