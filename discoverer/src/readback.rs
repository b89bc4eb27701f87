//! What HAProxy says of its servers, beside what a text says of them. Pure.

use std::borrow::Cow;

use ahash::{AHashMap, AHashSet};
use registry::{InstanceAddress, ServiceName};

use crate::haproxy::{Command, Kept, ServerHealth, ServerState, parse_healths, parse_servers, with_wanted_states};
use crate::model::server_name;
use crate::plan::{Parsed, ServerId, ServerSettings};
use crate::suspect::Health;

/// The servers of the backends whose servers a text tells, by backend and name.
struct Wanted<'t>(AHashMap<Cow<'t, str>, AHashMap<Cow<'t, str>, ServerSettings<'t>>>);

impl<'t> Wanted<'t> {
    fn of(text: &'t Parsed) -> Self {
        let mut servers: AHashMap<_, AHashMap<_, _>> = AHashMap::new();
        for server in text.servers() {
            servers.entry(server.backend.clone()).or_default().insert(server.name.clone(), server);
        }
        Self(servers)
    }

    fn get(&self, backend: &str, server: &str) -> Option<&ServerSettings<'t>> {
        self.0.get(backend)?.get(server)
    }
}

/// What HAProxy's checks say of its servers.
#[derive(Debug, Default)]
pub(crate) struct Healths<'s> {
    by_name: AHashMap<(&'s str, &'s str), Health>,
    /// Of several servers at one address the best.
    by_address: AHashMap<(&'s str, &'s str), Health>,
}

impl<'s> Healths<'s> {
    /// Reads them.
    pub(crate) fn of(state: &'s str) -> Self {
        let mut healths = Self::default();
        for ServerHealth { backend, server, address, port, health } in parse_healths(state) {
            healths.by_name.insert((backend, server), health);
            let best = healths.by_address.entry((address, port)).or_insert(health);
            *best = health.min(*best);
        }
        healths
    }

    /// Of an instance: of the server that the shipped templates make of it, else of what else leads to its address. `tracks`
    /// says whether that server may follow another one's check, which HAProxy does not tell.
    pub(crate) fn health(
        &self,
        service: &ServiceName,
        address: InstanceAddress,
        tracks: impl Fn(&ServerId) -> bool,
    ) -> Health {
        let server = server_name(address);
        let by_address = || {
            let (ip, port) = (address.ip().to_string(), address.port().to_string());
            self.by_address.get(&(ip.as_str(), port.as_str())).copied()
        };
        let told = self.by_name.get(&(service.as_str(), server.as_str())).copied();
        match told.or_else(by_address).unwrap_or(Health::Unknown) {
            Health::Unchecked if tracks(&ServerId { backend: service.to_string(), server }) => Health::Unknown,
            health => health,
        }
    }
}

/// What of a state is to be handed to a worker that reads this text; see [`with_wanted_states`].
pub(crate) fn state_to_keep(state: &str, text: &Parsed) -> String {
    let wanted = Wanted::of(text);
    with_wanted_states(state, |backend, server| {
        let settings = wanted.get(backend, server).filter(|settings| settings.disabled != Some(true))?;
        Some(Kept { weight: settings.weight, port: settings.port? })
    })
}

/// How the servers of a worker stand that has read a text.
#[derive(Debug)]
pub(crate) struct Fresh {
    /// What sets them right.
    pub(crate) repairs: Vec<Command>,
    /// A server of the text that the worker does not have, else one that it has beside them; of a worker that has read this text, none.
    pub(crate) other: Option<String>,
}

impl Fresh {
    /// Compares them with the text. Backends whose servers that does not tell have none beside.
    pub(crate) fn of(state: &str, text: &Parsed) -> Self {
        let wanted = Wanted::of(text);
        let mut told = AHashSet::new();
        let (mut repairs, mut beside) = (Vec::new(), None);
        for server in parse_servers(state) {
            told.insert((server.backend, server.server));
            let name = || format!("{}/{}", server.backend, server.server);
            let Some(settings) = wanted.get(server.backend, server.server) else {
                if beside.is_none() && text.tells_servers_of(server.backend) {
                    beside = Some(format!("server {} should not be there", name()));
                }
                continue;
            };
            if !server.admin.is_ready() && settings.disabled == Some(false) {
                repairs.push(Command::ready(&name()));
            }
            if let Some(weight) = settings.weight.filter(|&weight| weight != server.weight) {
                repairs.push(Command::weight(&name(), weight));
            }
        }
        let missing = text.servers().find(|wanted| !told.contains(&(&*wanted.backend, &*wanted.name)));
        let missing = missing.map(|server| format!("server {}/{} is missing", server.backend, server.name));
        Self { repairs, other: missing.or(beside) }
    }
}

/// The first thing in which HAProxy's servers are not those of the text; those that leave may still be there. Backends whose
/// servers the text does not tell are passed over.
pub(crate) fn difference<'s>(state: &'s str, text: &Parsed, is_leaving: impl Fn(&ServerId) -> bool) -> Option<String> {
    let is_same = |told: &ServerState<'_>, wanted: &ServerSettings<'_>| {
        told.server == wanted.name && told.backend == wanted.backend
    };
    // A backend's servers stand together.
    let mut last: (&'s str, bool) = ("", false);
    let is_told_by_text = move |server: &ServerState<'s>| {
        if last.0 != server.backend {
            last = (server.backend, text.tells_servers_of(server.backend));
        }
        last.1
    };
    let mut told = parse_servers(state).filter(is_told_by_text).peekable();
    let mut wanted = text.servers().peekable();
    // Mostly both are in one order. What is not is set aside until all have been seen, so that few need to be searched for.
    let (mut only_told, mut only_wanted) = (Vec::new(), Vec::new());
    loop {
        match (told.next(), wanted.next()) {
            (None, None) => break,
            (Some(told), None) => only_told.push(told),
            (None, Some(wanted)) => only_wanted.push(wanted),
            (Some(server), Some(other)) if is_same(&server, &other) => {
                if let Some(difference) = difference_of(&server, &other) {
                    return Some(difference);
                }
            }
            (Some(server), Some(other)) => {
                if let Some(next) = wanted.next_if(|next| is_same(&server, next)) {
                    only_wanted.push(other);
                    if let Some(difference) = difference_of(&server, &next) {
                        return Some(difference);
                    }
                } else if let Some(next) = told.next_if(|next| is_same(next, &other)) {
                    only_told.push(server);
                    if let Some(difference) = difference_of(&next, &other) {
                        return Some(difference);
                    }
                } else {
                    only_told.push(server);
                    only_wanted.push(other);
                }
            }
        }
    }
    let mut missing: AHashMap<(&str, &str), &ServerSettings<'_>> =
        only_wanted.iter().map(|wanted| ((&*wanted.backend, &*wanted.name), wanted)).collect();
    for server in &only_told {
        match missing.remove(&(server.backend, server.server)) {
            Some(wanted) => {
                if let Some(difference) = difference_of(server, wanted) {
                    return Some(difference);
                }
            }
            None => {
                let id = ServerId { backend: server.backend.to_owned(), server: server.server.to_owned() };
                if !is_leaving(&id) {
                    return Some(format!("server {id} should not be there"));
                }
            }
        }
    }
    missing.into_keys().min().map(|(backend, server)| format!("server {backend}/{server} is missing"))
}

/// In what one server is not as the text says.
fn difference_of(told: &ServerState<'_>, wanted: &ServerSettings<'_>) -> Option<String> {
    let weight = wanted.weight.filter(|&weight| weight != told.weight)?;
    Some(format!("server {}/{} has weight {} instead of {weight}", told.backend, told.server, told.weight))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn state(servers: &[(&str, u16)]) -> String {
        let line =
            |(name, weight): &(&str, u16)| format!("3 b 1 {name} 127.0.0.1 2 0 {weight} 1 1 6 3 4 6 0 0 0 - 80 -\n");
        format!("1\n# be_id be_name\n{}\n", servers.iter().map(line).collect::<String>())
    }

    fn text(servers: &[(&str, u16)]) -> Parsed {
        let line = |(name, weight): &(&str, u16)| format!("  server {name} 127.0.0.1:80 weight {weight}\n");
        Parsed::new(format!("backend b\n{}", servers.iter().map(line).collect::<String>()))
    }

    fn repairs(state: &str, text: &Parsed) -> Vec<Command> {
        Fresh::of(state, text).repairs
    }

    fn found(told: &[(&str, u16)], wanted: &[(&str, u16)]) -> String {
        difference(&state(told), &text(wanted), |id| id.server.starts_with("leaving")).unwrap_or_default()
    }

    #[test]
    fn an_instance_has_the_health_of_its_server_else_of_whatever_leads_to_its_address() {
        let line = |backend, name, address, operation, check| {
            format!("3 {backend} 1 {name} {address} {operation} 0 1 1 1 6 3 4 {check} 0 0 0 - 80 - 0 0 - - 0\n")
        };
        let state: String = [
            line("web", "10.0.0.1_80", "10.0.0.1", 0, 6),
            line("api", "10.0.0.1_80", "10.0.0.1", 2, 6),
            line("other", "x", "10.0.0.2", 2, 0),
            line("other", "y", "10.0.0.2", 0, 6),
            line("other", "z", "2001:db8::1", 2, 6),
            line("web", "10.0.0.4_80", "10.0.0.4", 2, 0),
            line("web", "10.0.0.5_80", "10.0.0.5", 2, 0),
        ]
        .concat();
        let healths = Healths::of(&state);
        let health = |service: &str, address: &str| {
            let tracks = |id: &ServerId| id.to_string() == "web/10.0.0.5_80";
            healths.health(&service.parse().unwrap(), address.parse().unwrap(), tracks)
        };
        assert_eq!(health("web", "10.0.0.1:80"), Health::Down);
        assert_eq!(health("api", "10.0.0.1:80"), Health::Up);
        assert_eq!(health("elsewhere", "10.0.0.1:80"), Health::Up);
        assert_eq!(health("web", "10.0.0.2:80"), Health::Down);
        assert_eq!(health("web", "[2001:db8::1]:80"), Health::Up);
        assert_eq!(health("web", "10.0.0.3:80"), Health::Unknown);
        assert_eq!(health("web", "10.0.0.4:80"), Health::Unchecked);
        assert_eq!(health("web", "10.0.0.5:80"), Health::Unknown);
        let text = Parsed::new("backend web\n  server a 10.0.0.1:80 track other/x\n  server b 10.0.0.2:80 check\n");
        let id = |server: &str| ServerId { backend: "web".to_owned(), server: server.to_owned() };
        assert!(text.tracks(&id("a")) && !text.tracks(&id("b")) && !text.tracks(&id("c")));
    }

    #[test]
    fn the_first_difference_is_named() {
        assert_eq!(found(&[("a", 1), ("b", 2)], &[("a", 1), ("b", 2)]), "");
        assert_eq!(found(&[("a", 1), ("b", 2)], &[("a", 1), ("b", 3)]), "server b/b has weight 2 instead of 3");
        assert_eq!(found(&[("b", 2), ("a", 1)], &[("a", 9), ("b", 2)]), "server b/a has weight 1 instead of 9");
        assert_eq!(found(&[("a", 1)], &[("a", 1), ("b", 2)]), "server b/b is missing");
        assert_eq!(found(&[("b", 2), ("a", 1)], &[("a", 1)]), "server b/b should not be there");
        assert_eq!(found(&[("leaving", 2), ("a", 1)], &[("a", 1)]), "");
    }

    #[test]
    fn a_weight_that_the_text_does_not_tell_is_no_difference() {
        let quoted = Parsed::new("backend 'b'\n  server a 127.0.0.1:80 weight \"$W\"\n  server c \"$C\"\n");
        assert_eq!(difference(&state(&[("a", 5), ("c", 1)]), &quoted, |_| false), None);
        let by_default = Parsed::new("backend b\n  default-server weight 7\n  server a 127.0.0.1:80\n");
        assert_eq!(difference(&state(&[("a", 7)]), &by_default, |_| false), None);
        let found = difference(&state(&[("a", 1)]), &by_default, |_| false);
        assert_eq!(found.as_deref(), Some("server b/a has weight 1 instead of 7"));
    }

    #[test]
    fn what_the_text_leaves_to_haproxy_is_no_difference() {
        let told = state(&[("srv1", 1), ("srv2", 1)]);
        let by_template = Parsed::new("backend b\n  server-template srv 2 127.0.0.1:80\n");
        assert_eq!(difference(&told, &by_template, |_| false), None);
        let conditional = Parsed::new("backend b\n.if defined(X)\n  server x 127.0.0.1:80\n.endif\n");
        assert_eq!(difference(&told, &conditional, |_| false), None);
        let by_variable = Parsed::new("backend \"$NAME\"\n  server x 127.0.0.1:80\n");
        assert_eq!(difference(&told, &by_variable, |_| false), None);
        for text in [by_template, conditional, by_variable] {
            assert!(!state_to_keep(&told, &text).contains("srv"));
            assert!(repairs(&told.replace(" 2 0 ", " 0 5 "), &text).is_empty());
        }
    }

    #[test]
    fn health_is_kept_where_servers_do_not_change_at_run_time() {
        let text = Parsed::new("backend b\n  balance source\n  default-server weight 7\n  server a 127.0.0.1:80\n");
        assert_eq!(state_to_keep(&state(&[("a", 3)]), &text), state(&[("a", 7)]).replace(" 7 1 1 6", " 7 7 1 6"));
        let elsewhere = Parsed::new("backend b\n  server a 127.0.0.1:81\n  server n name:80\n");
        let kept = state_to_keep(&state(&[("a", 1), ("n", 1)]), &elsewhere);
        assert_eq!(kept, state(&[("a", 1)]).replace(" 80 ", " 81 "));
    }

    #[test]
    fn what_the_text_puts_in_maintenance_stays_there() {
        let told = "1\n# be_id\n3 b 1 a 127.0.0.1 0 5 1 1 1 6\n3 b 2 c 127.0.0.1 0 5 1 1 1 6\n";
        let text = Parsed::new(
            "backend b\n  default-server disabled\n  server a 127.0.0.1:80\n  server c 127.0.0.1:80 cookie disabled enabled\n",
        );
        let commands = repairs(told, &text);
        assert_eq!(commands.iter().map(Command::text).collect::<Vec<_>>(), ["set server b/c state ready"]);
        // Where it cannot be told, it is left alone.
        for text in [
            "backend b\n  server a \"${SPARE}:80\" disabled\n",
            "defaults\n.if defined(X)\n  balance first\n.endif\nbackend b\n  server a 127.0.0.1:80 disabled\n",
            "backend b\n  server a 127.0.0.1:80 agent-check agent-port 9 weight 100\n",
        ] {
            assert!(repairs(told, &Parsed::new(text)).is_empty(), "{text}");
            let text = Parsed::new(text);
            assert_eq!(difference("1\n# be_id\n3 b 1 a 127.0.0.1 2 0 75 1 1 6\n", &text, |_| false), None);
        }
    }

    #[test]
    fn a_worker_that_has_read_another_text_is_known_by_its_servers() {
        let other = |told: &[(&str, u16)], wanted: &Parsed| Fresh::of(&state(told), wanted).other.unwrap_or_default();
        let wanted = text(&[("a", 1), ("c", 1)]);
        assert_eq!(other(&[("c", 2), ("a", 1)], &wanted), "");
        assert_eq!(other(&[("x", 1), ("a", 1), ("y", 1)], &wanted), "server b/c is missing");
        assert_eq!(other(&[("x", 1), ("a", 1), ("y", 1), ("c", 1)], &wanted), "server b/x should not be there");
        assert_eq!(other(&[("s1", 1)], &Parsed::new("backend b\n  server-template s 1 127.0.0.1:80\n")), "");
    }

    #[test]
    fn a_worker_is_set_right() {
        let state =
            "1\n# be_id\n3 b 1 a 127.0.0.1 2 1 0 1 1 6\n3 b 1 c 127.0.0.1 2 0 3 1 1 6\n3 x 1 a 127.0.0.1 2 1 3 1 1 6\n";
        let commands = repairs(state, &text(&[("a", 1), ("c", 3)]));
        let texts: Vec<_> = commands.iter().map(Command::text).collect();
        assert_eq!(texts, ["set server b/a state ready", "set server b/a weight 1"]);
        let told = self::state(&[("a", 3), ("c", 3)]);
        assert_eq!(state_to_keep(&told, &text(&[("c", 4)])), self::state(&[("c", 4)]).replace(" 4 1 1 6", " 4 4 1 6"));
    }

    const NAMES: [&str; 6] = ["a", "b", "c", "d", "e", "leaving"];

    fn servers() -> impl Strategy<Value = Vec<(&'static str, u16)>> {
        let names = proptest::sample::subsequence(NAMES.to_vec(), 0..=NAMES.len()).prop_shuffle();
        names.prop_flat_map(|names| {
            let count = names.len();
            (Just(names), proptest::collection::vec(0..2u16, count))
                .prop_map(|(names, weights)| names.into_iter().zip(weights).collect())
        })
    }

    proptest! {
        #[test]
        fn the_order_of_servers_is_no_difference(told in servers(), wanted in servers()) {
            let sorted = |servers: &[(&'static str, u16)]| {
                let mut servers = servers.to_vec();
                servers.sort_unstable();
                servers
            };
            let stays = |server: &(&str, u16)| wanted.iter().any(|(name, _)| *name == server.0) || server.0 != "leaving";
            let without_leaving: Vec<_> = told.iter().copied().filter(stays).collect();
            prop_assert_eq!(found(&told, &wanted).is_empty(), sorted(&without_leaving) == sorted(&wanted));
        }
    }
}
