//! A service's settings, which are attributes of its instances: the types they are read into. Pure: no I/O.
//!
//! Anyone who can write to etcd can set them. Each has a type whose parser refuses whatever HAProxy's configuration
//! could misread. Who writes attributes reads them first with the same parsers: [`check`].

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};

/// The longest time that is taken, in milliseconds. HAProxy itself takes up to 2^31 - 1 of them, some 24.8 days; a longer one makes it
/// refuse the whole file (measured with 2.6.12: `2147483s` is taken, `2147484s` is refused). Whole days are easier to say.
const SPAN_LIMIT: u64 = 24 * 24 * 3_600_000;

/// Why a setting was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{value:?} is not {expected}")]
pub struct SettingError {
    value: String,
    expected: &'static str,
}

impl SettingError {
    fn new(value: &str, expected: &'static str) -> Self {
        Self { value: value.chars().take(80).collect(), expected }
    }
}

/// An enum whose words are those of HAProxy's manual.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident, $expected:literal, $($(#[$word_doc:meta])* $variant:ident = $word:literal),+ $(,)?) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
        pub enum $name { $($(#[$word_doc])* $variant),+ }

        impl $name {
            /// The word of HAProxy's manual.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }
        }

        impl FromStr for $name {
            type Err = SettingError;

            fn from_str(text: &str) -> Result<Self, SettingError> {
                match text {
                    $($word => Ok(Self::$variant),)+
                    _ => Err(SettingError::new(text, $expected)),
                }
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }
    };
}

words!(
    /// What HAProxy takes a service for.
    Mode, "a mode; http and tcp are",
    /// Requests are read, and routed by host and path.
    #[default]
    Http = "http",
    /// Bytes are passed on; it needs a port of its own.
    Tcp = "tcp",
);

words!(
    /// How HAProxy chooses a server: the algorithms that take servers at run time.
    Balance, "a balance algorithm; roundrobin, leastconn, first, random, source and uri are",
    /// In turn, by weight.
    #[default]
    Roundrobin = "roundrobin",
    /// The one with the fewest connections.
    Leastconn = "leastconn",
    /// The first with a free connection.
    First = "first",
    /// By chance.
    Random = "random",
    /// By the client's address.
    Source = "source",
    /// By the path of the request.
    Uri = "uri",
);

words!(
    /// What the instances of an HTTP service speak.
    Proto, "a protocol; http, https and h2 are",
    /// HTTP/1.1 in the clear.
    #[default]
    Http = "http",
    /// HTTP/1.1 over TLS; the certificate is not verified.
    Https = "https",
    /// HTTP/2 in the clear.
    H2 = "h2",
);

/// A text that has been parsed; what is inside is safe to write out.
macro_rules! checked_text {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
        #[serde(transparent)]
        pub struct $name(String);

        impl $name {
            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

checked_text!(
    /// One or more host names, in lower case, sorted, joined by commas: `a.example.com,b.example.com`.
    HostNames
);

impl HostNames {
    /// The names in order; none where there are none. They must come from a value of this type.
    pub fn of<'t>(names: impl Iterator<Item = &'t str>) -> Option<Self> {
        let names: Vec<&str> = names.collect();
        (!names.is_empty()).then(|| Self(names.join(",")))
    }

    /// Each name.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.split(',')
    }
}

impl FromStr for HostNames {
    type Err = SettingError;

    fn from_str(text: &str) -> Result<Self, SettingError> {
        let expected = "a host name, or several joined by commas";
        let mut names: Vec<String> = text.split(',').map(|name| name.trim().to_ascii_lowercase()).collect();
        names.sort();
        names.dedup();
        let is_label = |label: &str| {
            !label.is_empty()
                && label.len() <= 63
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
        };
        // A line of HAProxy's configuration holds 64 words (configuration manual, section 2).
        if names.len() > 32 || names.iter().any(|name| name.len() > 253 || !name.split('.').all(is_label)) {
            return Err(SettingError::new(text, expected));
        }
        Ok(Self(names.join(",")))
    }
}

checked_text!(
    /// The path of a URL: it begins with `/`, has no query, and only characters that need no escape.
    UrlPath
);

impl UrlPath {
    /// The path without a slash at its end; none for `/` alone, which is every path.
    pub fn without_last_slash(self) -> Option<Self> {
        let text = self.0.trim_end_matches('/');
        (!text.is_empty()).then(|| Self(text.to_owned()))
    }
}

impl FromStr for UrlPath {
    type Err = SettingError;

    fn from_str(text: &str) -> Result<Self, SettingError> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b"/_.~-".contains(&b);
        if !text.starts_with('/') || text.len() > 256 || !text.bytes().all(allowed) {
            return Err(SettingError::new(text, "a path; it begins with / and has letters, digits and /_.~- only"));
        }
        Ok(Self(text.to_owned()))
    }
}

checked_text!(
    /// A length of time as HAProxy writes it, such as `30s` (configuration manual, section 2, "Time format"), and no longer than it takes.
    Span
);

impl FromStr for Span {
    type Err = SettingError;

    fn from_str(text: &str) -> Result<Self, SettingError> {
        let unit = text.trim_start_matches(|c: char| c.is_ascii_digit());
        let number = &text[..text.len() - unit.len()];
        let unit = match unit {
            "ms" => Some(1),
            "s" => Some(1000),
            "m" => Some(60_000),
            "h" => Some(3_600_000),
            _ => None,
        };
        let number = Some(number).filter(|number| number.len() <= 6).and_then(|number| number.parse::<u64>().ok());
        let taken = number.zip(unit).filter(|(number, unit)| number * unit <= SPAN_LIMIT);
        taken
            .map(|_| Self(text.to_owned()))
            .ok_or_else(|| SettingError::new(text, "a length of time such as 500ms, 30s or 5m, at most 24 days"))
    }
}

/// Reads `true`, `false`, `1`, `0`, `yes`, `no`.
pub fn parse_switch(text: &str) -> Result<bool, SettingError> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "1" | "yes" => Ok(true),
        "false" | "0" | "no" => Ok(false),
        _ => Err(SettingError::new(text, "true or false")),
    }
}

/// Reads a number of connections, 1 to a million.
pub fn parse_maxconn(text: &str) -> Result<u32, SettingError> {
    let number = text.parse().ok().filter(|number| (1..=1_000_000).contains(number));
    number.ok_or_else(|| SettingError::new(text, "a number of connections, 1 to 1000000"))
}

/// Reads a port, 1 to 65535.
pub fn parse_port(text: &str) -> Result<u16, SettingError> {
    let number = text.parse().ok().filter(|&port| port != 0);
    number.ok_or_else(|| SettingError::new(text, "a port, 1 to 65535"))
}

/// Reads an attribute's value by the type that its name stands for, and gives nothing but what is wrong with it. A
/// name that is no setting's takes any value.
pub fn check(name: &str, value: &str) -> Result<(), SettingError> {
    match name {
        "mode" => value.parse::<Mode>().map(drop),
        "host" => value.parse::<HostNames>().map(drop),
        "path" | "check_http" => value.parse::<UrlPath>().map(drop),
        "listen" => parse_port(value).map(drop),
        "balance" => value.parse::<Balance>().map(drop),
        "proto" => value.parse::<Proto>().map(drop),
        "sticky" => parse_switch(value).map(drop),
        "maxconn" => parse_maxconn(value).map(drop),
        "slowstart" => value.parse::<Span>().map(drop),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_take_only_what_haproxy_cannot_misread() {
        assert!("x\n  http-request deny".parse::<HostNames>().is_err());
        assert!("a b".parse::<HostNames>().is_err());
        assert!("".parse::<HostNames>().is_err());
        assert!("a..b".parse::<HostNames>().is_err());
        assert!("${HOME}".parse::<HostNames>().is_err());
        assert_eq!("B.example, a.example".parse::<HostNames>().unwrap().as_str(), "a.example,b.example");
        assert!("/a b".parse::<UrlPath>().is_err());
        assert!("a".parse::<UrlPath>().is_err());
        assert!("/a#".parse::<UrlPath>().is_err());
        assert!("/%[env(HOME)]".parse::<UrlPath>().is_err());
        assert_eq!("/health/live".parse::<UrlPath>().unwrap().as_str(), "/health/live");
        assert!("10".parse::<Span>().is_err());
        assert!("s".parse::<Span>().is_err());
        assert!("1s\n".parse::<Span>().is_err());
        assert!("30s".parse::<Span>().is_ok() && "576h".parse::<Span>().is_ok() && "999999ms".parse::<Span>().is_ok());
        assert!(
            "577h".parse::<Span>().is_err() && "999999h".parse::<Span>().is_err() && "+1s".parse::<Span>().is_err()
        );
        assert!("static-rr".parse::<Balance>().is_err());
        assert!("roundrobin\n".parse::<Balance>().is_err());
        assert_eq!("leastconn".parse(), Ok(Balance::Leastconn));
        assert!(parse_port("0").is_err() && parse_port("65536").is_err() && parse_port("80").is_ok());
        assert!(parse_maxconn("0").is_err() && parse_maxconn("-1").is_err() && parse_maxconn("10").is_ok());
        assert!(parse_switch("maybe").is_err() && parse_switch("Yes").unwrap());
    }

    #[test]
    fn an_attribute_is_read_by_the_type_that_its_name_stands_for() {
        let names =
            ["mode", "host", "path", "check_http", "listen", "balance", "proto", "sticky", "maxconn", "slowstart"];
        assert!(names.iter().all(|name| check(name, "a b").is_err()));
        assert_eq!(check("region", "a b"), Ok(()));
        let error = check("maxconn", "lots").unwrap_err().to_string();
        assert!(error.contains("\"lots\" is not a number of connections"), "{error}");
    }
}
