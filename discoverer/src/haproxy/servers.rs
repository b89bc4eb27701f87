//! What `show servers state` says, read into types, and what of it a new worker is to take over. Pure.

use ahash::AHashMap;

/// One line of `show servers state`, as far as we use it (management guide, section 9.3).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerState<'t> {
    /// The backend.
    pub backend: &'t str,
    /// The server.
    pub server: &'t str,
    /// What an operator, or we, made of it.
    pub admin: AdminState,
    /// Its check has it up.
    pub up: bool,
    /// Its weight now.
    pub weight: u16,
    /// The weight that the file gave it.
    pub initial_weight: u16,
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
}

/// Where the fields stand in a line.
const BACKEND: usize = 1;
const SERVER: usize = 3;
const OPERATIONAL: usize = 5;
const ADMIN: usize = 6;
const WEIGHT: usize = 7;
const INITIAL_WEIGHT: usize = 8;

/// Reads the reply to `show servers state`. A line that is not understood is left out.
pub fn parse_servers(reply: &str) -> Vec<ServerState<'_>> {
    fn read(line: &str) -> Option<ServerState<'_>> {
        let mut fields = line.split(' ').skip(BACKEND);
        let backend = fields.next()?;
        let server = fields.nth(SERVER - BACKEND - 1)?;
        let up = fields.nth(OPERATIONAL - SERVER - 1)? == "2";
        let admin = AdminState(fields.nth(ADMIN - OPERATIONAL - 1)?.parse().ok()?);
        let weight = fields.nth(WEIGHT - ADMIN - 1)?.parse().ok()?;
        let initial_weight = fields.nth(INITIAL_WEIGHT - WEIGHT - 1)?.parse().ok()?;
        Some(ServerState { backend, server, admin, up, weight, initial_weight })
    }
    reply.lines().filter(|line| !line.starts_with('#')).filter_map(read).collect()
}

/// The state to hand to a new worker: of the old worker's state only health is carried over. Administration is
/// "ready", and the weight that of the new file, given by (backend, server); servers that it does not name go.
pub fn with_wanted_states(reply: &str, weights: &AHashMap<(&str, &str), u16>) -> String {
    let mut text = String::with_capacity(reply.len());
    for line in reply.lines() {
        let mut fields: Vec<&str> = line.split(' ').collect();
        if line.starts_with('#') || fields.len() <= INITIAL_WEIGHT {
            text.push_str(line);
            text.push('\n');
            continue;
        }
        let Some(weight) = weights.get(&(fields[BACKEND], fields[SERVER])) else { continue };
        let weight = weight.to_string();
        fields[ADMIN] = "0";
        fields[WEIGHT] = &weight;
        fields[INITIAL_WEIGHT] = &weight;
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
        let servers = parse_servers(STATE);
        let seen: Vec<_> = servers.iter().map(|s| (s.server, s.up, s.admin.is_ready(), s.weight)).collect();
        assert_eq!(seen, [("s1", true, true, 1), ("s2", false, false, 100), ("s3", true, false, 0)]);
        assert_eq!(parse_servers("rubbish\n1 2 3\n"), []);
    }

    #[test]
    fn a_new_worker_gets_health_and_nothing_else_of_the_old_one() {
        let weights = AHashMap::from([(("b", "s2"), 7), (("b", "s3"), 100)]);
        let text = with_wanted_states(STATE, &weights);
        assert!(text.starts_with("1\n# be_id"), "{text}");
        let servers = parse_servers(&text);
        let seen: Vec<_> = servers.iter().map(|s| (s.server, s.up, s.admin.is_ready(), s.weight)).collect();
        assert_eq!(seen, [("s2", false, true, 7), ("s3", true, true, 100)]);
    }
}
