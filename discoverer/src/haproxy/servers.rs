//! What `show servers state` says, read into types, and what of it a new worker is to take over. Pure.

use crate::suspect::Health;

/// One line of `show servers state`, as far as we use it (management guide, section 9.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServerState<'t> {
    /// The backend.
    pub backend: &'t str,
    /// The server.
    pub server: &'t str,
    /// What an operator, or we, made of it.
    pub admin: AdminState,
    /// Its weight now.
    pub weight: u16,
}

/// `srv_admin_state`, a mask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AdminState(u8);

impl AdminState {
    /// Whether it takes traffic as far as administration goes: neither maintenance nor drain.
    pub fn is_ready(self) -> bool {
        // 0x01 forced maintenance, 0x08 forced drain (HAProxy, srv_admin_state in "show servers state").
        self.0 & (0x01 | 0x08) == 0
    }

    /// Whether it is in maintenance for any reason: then its health is not known.
    fn is_in_maintenance(self) -> bool {
        // Forced, inherited, configured, by name resolution, by a host name that is gone.
        self.0 & (0x01 | 0x02 | 0x04 | 0x20 | 0x40) != 0
    }
}

/// A server's address and health, of one line of `show servers state`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServerHealth<'t> {
    /// The backend.
    pub backend: &'t str,
    /// The server.
    pub server: &'t str,
    /// Its IP address.
    pub address: &'t str,
    /// Its port.
    pub port: &'t str,
    /// What its checks say.
    pub health: Health,
}

/// Where the fields stand in a line.
const BACKEND: usize = 1;
const SERVER: usize = 3;
const ADDRESS: usize = 4;
const OPERATION: usize = 5;
const ADMIN: usize = 6;
const WEIGHT: usize = 7;
const INITIAL_WEIGHT: usize = 8;
const CHECK: usize = 13;
const AGENT: usize = 14;
const PORT: usize = 18;
/// A state line has at least so many fields.
const LEAST_FIELDS: usize = 20;

/// Reads the reply to `show servers state`. A line that is not understood is left out.
pub fn parse_servers(reply: &str) -> impl Iterator<Item = ServerState<'_>> {
    fn read(line: &str) -> Option<ServerState<'_>> {
        let mut fields = line.split_ascii_whitespace().skip(BACKEND);
        let backend = fields.next()?;
        let server = fields.nth(SERVER - BACKEND - 1)?;
        let admin = AdminState(fields.nth(ADMIN - SERVER - 1)?.parse().ok()?);
        let weight = fields.nth(WEIGHT - ADMIN - 1)?.parse().ok()?;
        Some(ServerState { backend, server, admin, weight })
    }
    reply.lines().filter(|line| !line.starts_with('#')).filter_map(read)
}

/// Reads of each server whether HAProxy's checks reach it. A line that is not understood is left out.
pub fn parse_healths(reply: &str) -> impl Iterator<Item = ServerHealth<'_>> {
    fn read(line: &str) -> Option<ServerHealth<'_>> {
        let fields: Vec<&str> = line.split(' ').collect();
        let field = |at: usize| fields.get(at).copied();
        let number = |at: usize| field(at)?.parse::<u8>().ok();
        // 0x02 configured, 0x04 enabled (HAProxy, srv_check_state and srv_agent_state in "show servers state").
        let is_on = |state: u8| state & 0x06 == 0x06;
        let (check, agent) = (number(CHECK)?, number(AGENT)?);
        let health = match number(OPERATION)? {
            _ if AdminState(number(ADMIN)?).is_in_maintenance() => Health::Unknown,
            // Also where it only follows the check of another server, which is down.
            0 => Health::Down,
            _ if is_on(check) || is_on(agent) => Health::Up,
            _ => Health::Unchecked,
        };
        let (backend, server, address, port) = (field(BACKEND)?, field(SERVER)?, field(ADDRESS)?, field(PORT)?);
        Some(ServerHealth { backend, server, address, port, health })
    }
    reply.lines().filter(|line| !line.starts_with('#')).filter_map(read)
}

/// What a new worker is to be told of a server besides its health, because HAProxy takes it from the state rather than
/// from its new file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kept {
    /// Its weight, 0 to 256; none: what it was, which counts only where the new file has the same.
    pub weight: Option<u16>,
    /// Its port.
    pub port: u16,
}

/// The state to hand to a new worker: of the old worker's state only health is carried over. Administration is
/// "ready", weight and port are what `kept` says by backend and server; servers of which it says nothing go. So does a server
/// whose administration is not understood, and one in maintenance, which has no health to tell: without a line the new worker takes it for up and checks it, with one it would
/// be down, for ever where nothing checks it. The fields behind the port (TLS, the check's port, the agent) may be left
/// out, and the file's count then.
pub fn with_wanted_states(reply: &str, kept: impl Fn(&str, &str) -> Option<Kept>) -> String {
    let mut text = String::with_capacity(reply.len());
    for line in reply.lines() {
        let mut fields: Vec<&str> = line.split(' ').collect();
        if line.starts_with('#') || fields.len() < LEAST_FIELDS {
            text.push_str(line);
            text.push('\n');
            continue;
        }
        if !fields[ADMIN].parse().is_ok_and(|admin| !AdminState(admin).is_in_maintenance()) {
            continue;
        }
        let Some(Kept { weight, port }) = kept(fields[BACKEND], fields[SERVER]) else { continue };
        let (weight, port) = (weight.map(|weight| weight.to_string()), port.to_string());
        if let Some(weight) = &weight {
            fields[WEIGHT] = weight;
            fields[INITIAL_WEIGHT] = weight;
        }
        fields[ADMIN] = "0";
        fields[PORT] = &port;
        fields.truncate(LEAST_FIELDS);
        text.push_str(&fields.join(" "));
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// HAProxy 2.6.12: one server up, one in maintenance, one that drains.
    const STATE: &str = "1\n\
        # be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state srv_uweight srv_iweight srv_time_since_last_change\n\
        3 b 1 s1 127.0.0.1 2 0 1 1 1 6 3 4 6 0 0 0 - 9001 - 0 0 - - 0\n\
        3 b 2 s2 127.0.0.1 0 1 100 100 0 1 0 2 6 0 0 0 - 9002 - 0 0 - - 0\n\
        3 b 3 s3 127.0.0.1 2 8 0 100 0 1 0 2 6 0 0 0 - 9003 - 0 0 - - 0\n\n";

    #[test]
    fn states_are_read() {
        let seen: Vec<_> = parse_servers(STATE).map(|s| (s.backend, s.server, s.admin.is_ready(), s.weight)).collect();
        assert_eq!(seen, [("b", "s1", true, 1), ("b", "s2", false, 100), ("b", "s3", false, 0)]);
        assert_eq!(parse_servers("rubbish\n1 2 3\n").count(), 0);
    }

    #[test]
    fn healths_are_read() {
        // HAProxy 2.6.12: checked and up, checked and down, not checked, in maintenance, following one that is down, asked by
        // an agent alone, added at run time before its check was enabled.
        let state = "1\n\
            # be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state srv_uweight srv_iweight\n\
            2 one 1 up 127.0.0.1 2 0 1 1 2 6 3 4 6 0 0 0 - 17777 - 0 0 - - 0\n\
            2 one 2 down 127.0.0.1 0 0 1 1 2 8 2 0 6 0 0 0 - 81 - 0 0 - - 0\n\
            2 one 3 unchecked 127.0.0.1 2 0 1 1 2 1 0 2 0 0 0 0 - 82 - 0 0 - - 0\n\
            2 one 4 maint 127.0.0.1 0 5 1 1 2 1 0 0 14 0 0 0 - 83 - 0 0 - - 0\n\
            2 one 5 tracks 127.0.0.1 0 0 1 1 2 1 0 2 0 0 0 0 - 84 - 0 0 - - 0\n\
            2 one 6 agent 127.0.0.1 2 0 1 1 2 1 0 2 0 22 0 0 - 17777 - 0 0 - - 17777\n\
            2 one 7 added 127.0.0.1 0 1 1 1 0 1 0 0 2 0 0 0 - 17777 - 0 0 - - 0\n\n";
        let seen: Vec<_> = parse_healths(state).map(|seen| (seen.server, seen.health)).collect();
        let expected = [
            ("up", Health::Up),
            ("down", Health::Down),
            ("unchecked", Health::Unchecked),
            ("maint", Health::Unknown),
            ("tracks", Health::Down),
            ("agent", Health::Up),
            ("added", Health::Unknown),
        ];
        assert_eq!(seen, expected);
        let first = parse_healths(state).next().unwrap();
        assert_eq!((first.backend, first.address, first.port), ("one", "127.0.0.1", "17777"));
        assert_eq!(parse_healths("rubbish\n1 2 3\n").count(), 0);
    }

    #[test]
    fn a_new_worker_gets_health_and_nothing_else_of_the_old_one() {
        let kept = |s1: Option<Kept>, s3: Option<Kept>| {
            let text = with_wanted_states(STATE, |_, server| if server == "s1" { s1 } else { s3 });
            let (head, servers) = text.split_at(text.find("3 b").unwrap());
            assert!(head.starts_with("1\n# be_id") && head.lines().count() == 2, "{head}");
            servers.to_owned()
        };
        // Of the one in maintenance nothing is told.
        let s1 = "3 b 1 s1 127.0.0.1 2 0 1 1 1 6 3 4 6 0 0 0 - 9001 -\n";
        let s3 = "3 b 3 s3 127.0.0.1 2 0 7 7 0 1 0 2 6 0 0 0 - 99 -\n";
        let other = Some(Kept { weight: Some(7), port: 99 });
        assert_eq!(kept(Some(Kept { weight: None, port: 9001 }), other), format!("{s1}{s3}\n"));
        assert_eq!(kept(None, other), format!("{s3}\n"));
    }
}
