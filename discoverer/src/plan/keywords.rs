//! What may stand on a server line, and what of it HAProxy takes at run time. Pure.
//!
//! From the management manual ("add server") and the configuration manual, section 5.2, of 2.6 to 3.4, and
//! measured with 2.6, 3.0, 3.2 and 3.4. A keyword that is not here, or is here as never, costs a reload and nothing
//! else; so the list may stay behind HAProxy.

use super::Version;

/// How a keyword behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Runtime {
    /// `add server` takes it from this version on.
    Since(Version),
    /// It says how the name of a server is resolved, and nothing where an address stands: it can be left out.
    Names,
    /// Not at run time: HAProxy refuses it there, or it would take more than adding and enabling the server.
    Never,
}

/// How many words follow a keyword of a server line, and whether it is taken at run time; none for one that is
/// not known.
pub(super) fn of(keyword: &str) -> Option<(usize, Runtime)> {
    let found = KEYWORDS.iter().find(|(words, ..)| words.contains(&keyword));
    found.map(|&(_, arguments, runtime)| (arguments, runtime))
}

/// The keywords that `add server` takes in a version, with the number of words that follow each.
pub fn taken_by(version: Version) -> impl Iterator<Item = (&'static str, usize)> {
    let taken =
        KEYWORDS.iter().filter(move |(.., runtime)| matches!(runtime, Runtime::Since(since) if *since <= version));
    taken.flat_map(|&(words, arguments, _)| words.iter().map(move |&word| (word, arguments)))
}

const V2_6: Runtime = Runtime::Since(Version { major: 2, minor: 6 });
const V3_0: Runtime = Runtime::Since(Version { major: 3, minor: 0 });
const V3_2: Runtime = Runtime::Since(Version { major: 3, minor: 2 });

const KEYWORDS: &[(&[&str], usize, Runtime)] = &[
    (
        &[
            "allow-0rtt",
            "check",
            "check-send-proxy",
            "check-ssl",
            "check-via-socks4",
            "force-sslv3",
            "force-tlsv10",
            "force-tlsv11",
            "force-tlsv12",
            "force-tlsv13",
            "no-ssl-reuse",
            "no-sslv3",
            "no-tls-tickets",
            "no-tlsv10",
            "no-tlsv11",
            "no-tlsv12",
            "no-tlsv13",
            "send-proxy",
            "send-proxy-v2",
            "send-proxy-v2-ssl",
            "send-proxy-v2-ssl-cn",
            "ssl",
            "tfo",
            "tls-tickets",
        ],
        0,
        V2_6,
    ),
    (
        &[
            "addr",
            "alpn",
            "ca-file",
            "check-alpn",
            "check-proto",
            "check-sni",
            "ciphers",
            "ciphersuites",
            "crl-file",
            "crt",
            "downinter",
            "error-limit",
            "fall",
            "fastinter",
            "id",
            "inter",
            "maxconn",
            "maxqueue",
            "minconn",
            "npn",
            "observe",
            "on-error",
            "on-marked-down",
            "on-marked-up",
            "pool-low-conn",
            "pool-max-conn",
            "pool-purge-delay",
            "port",
            "proto",
            "proxy-v2-options",
            "rise",
            "slowstart",
            "sni",
            "source",
            "ssl-max-ver",
            "ssl-min-ver",
            "verify",
            "verifyhost",
            "weight",
            "ws",
        ],
        1,
        V2_6,
    ),
    (&["cookie", "guid", "hash-key", "shard"], 1, V3_0),
    (&["strict-maxconn"], 0, V3_2),
    (&["idle-ping", "init-state"], 1, V3_2),
    (&["init-addr", "resolve-net", "resolve-opts", "resolve-prefer", "resolvers"], 1, Runtime::Names),
    (
        &[
            // Not refused, but the agent needs enabling by itself, and can undo the maintenance before a removal.
            "agent-check",
            // These come up in a state of their own.
            "backup",
            "disabled",
            "enabled",
            "no-agent-check",
            "no-backup",
            "no-check",
            "no-check-send-proxy",
            "no-check-ssl",
            "no-send-proxy",
            "no-send-proxy-v2",
            "no-send-proxy-v2-ssl",
            "no-send-proxy-v2-ssl-cn",
            "no-ssl",
            "no-tfo",
            "no-verifyhost",
            "non-stick",
            "ssl-reuse",
            "stick",
        ],
        0,
        Runtime::Never,
    ),
    (
        &[
            "agent-addr",
            "agent-inter",
            "agent-port",
            "agent-send",
            "client-sigalgs",
            "curves",
            // Only behind `source`, whose further words they are.
            "interface",
            "log-proto",
            "max-reuse",
            "namespace",
            "pool-conn-name",
            "redir",
            "sigalgs",
            "socks4",
            "tcp-ut",
            // A server that was added at run time cannot be tracked, and which were is not in the text.
            "track",
            "usesrc",
        ],
        1,
        Runtime::Never,
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_keyword_stands_in_the_table_twice() {
        let mut words: Vec<_> = KEYWORDS.iter().flat_map(|(words, ..)| words.iter()).collect();
        let count = words.len();
        words.sort();
        words.dedup();
        assert_eq!(words.len(), count);
    }

    #[test]
    fn a_later_version_takes_more() {
        let taken = |major, minor| taken_by(Version { major, minor }).map(|(word, _)| word).collect::<Vec<_>>();
        assert!(!taken(2, 6).contains(&"cookie") && taken(3, 0).contains(&"cookie"));
        assert!(!taken(3, 1).contains(&"init-state") && taken(3, 4).contains(&"init-state"));
        assert!(!taken(3, 4).contains(&"track"));
        assert_eq!(of("weight"), Some((1, V2_6)));
        assert_eq!(of("nonsense"), None);
    }
}
