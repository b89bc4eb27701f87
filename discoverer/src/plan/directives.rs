//! Lines of a configuration that say something about HAProxy as a whole. Pure.

use std::net::SocketAddr;
use std::time::Duration;

use super::text::Parsed;
use super::words::words;

/// An address that a text binds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bind {
    /// The section, counted from the first.
    pub section: usize,
    /// As it is written.
    pub shown: String,
    /// As it can be tried.
    pub address: SocketAddr,
    /// It may be an address that this host does not have.
    pub transparent: bool,
}

/// How long a worker may finish what it has after a reload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WorkerLimits {
    /// `hard-stop-after`.
    pub lifetime: Duration,
    /// `mworker-max-reloads`: how many reloads it survives; at the next one HAProxy's master ends it.
    pub most_survived: u64,
}

impl Parsed {
    /// The TCP addresses that its `bind` lines name; those of sockets and those that cannot be told are left out.
    pub fn binds(&self) -> Vec<Bind> {
        let mut binds = Vec::new();
        for (index, section) in self.sections().iter().enumerate() {
            for (_, line) in self.settings(section) {
                let Ok(words) = words(line) else { continue };
                let transparent = words.iter().any(|word| word == "transparent");
                let addresses = words.get(1).filter(|_| words[0] == "bind");
                binds.extend(addresses.iter().flat_map(|addresses| addresses.split(',')).filter_map(|shown| {
                    Some(Bind { section: index, shown: shown.to_owned(), address: address(shown)?, transparent })
                }));
            }
        }
        binds
    }

    /// How long old workers live; none where the text does not bound both their time and their number of reloads, so that
    /// there is nothing to wait for.
    pub fn worker_limits(&self) -> Option<WorkerLimits> {
        let (mut lifetime, mut most_survived) = (None, None);
        for section in self.sections() {
            for (_, line) in self.settings(section) {
                let Ok(words) = words(line) else { continue };
                match words.iter().map(AsRef::as_ref).collect::<Vec<_>>().as_slice() {
                    ["hard-stop-after", value, ..] => lifetime = duration(value),
                    ["mworker-max-reloads", value, ..] => most_survived = value.parse().ok(),
                    _ => {}
                }
            }
        }
        Some(WorkerLimits { lifetime: lifetime?, most_survived: most_survived? })
    }
}

/// The address of a `bind` line: `:80`, `*:80`, `10.0.0.1:80`, `ipv6@[::]:80`.
fn address(shown: &str) -> Option<SocketAddr> {
    let (host, port) = shown.rsplit_once(':')?;
    let host = host.trim_start_matches("ipv4@").trim_start_matches("ipv6@").trim_matches(['[', ']']);
    let host = if matches!(host, "" | "*") { "0.0.0.0" } else { host };
    Some(SocketAddr::new(host.parse().ok()?, port.parse().ok()?))
}

/// A time as HAProxy reads it: milliseconds, or a number and its unit (configuration manual, section 2.5, "Time format").
fn duration(value: &str) -> Option<Duration> {
    match value.parse() {
        Ok(milliseconds) => Some(Duration::from_millis(milliseconds)),
        Err(_) => humantime::parse_duration(value).ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn binds_are_told_with_their_sections() {
        let text = Parsed::new(
            "frontend a\n  bind :80,127.0.0.1:81 ssl\n  bind /run/socket\nlisten b\n  bind ipv6@[::1]:90\n  server bind :1\n",
        );
        let told: Vec<_> =
            text.binds().into_iter().map(|bind| (bind.section, bind.shown, bind.address.to_string())).collect();
        let bind = |section, shown: &str, address: &str| (section, shown.to_owned(), address.to_owned());
        assert_eq!(
            told,
            [
                bind(1, ":80", "0.0.0.0:80"),
                bind(1, "127.0.0.1:81", "127.0.0.1:81"),
                bind(2, "ipv6@[::1]:90", "[::1]:90")
            ]
        );
    }

    #[test]
    fn the_limits_of_old_workers_need_both_lines() {
        let limits =
            |text: &str| Parsed::new(text).worker_limits().map(|limits| (limits.lifetime, limits.most_survived));
        let both = |time: &str| limits(&format!("global\n  hard-stop-after {time}\n  mworker-max-reloads 20\n"));
        assert_eq!(both("60s"), Some((Duration::from_secs(60), 20)));
        assert_eq!(both("30000"), Some((Duration::from_secs(30), 20)));
        assert_eq!(both("1500ms"), Some((Duration::from_millis(1500), 20)));
        assert_eq!(limits("global\n  mworker-max-reloads 20\n"), None);
        assert_eq!(limits("global\n  hard-stop-after 60s\n"), None);
    }
}
