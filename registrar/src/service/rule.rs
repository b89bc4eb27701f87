//! Traefik's rules for routers, as far as they can be said with host names and one path. Pure.
//!
//! Source: Traefik 3, "HTTP Routers, Rules": matchers joined by `&&` and `||`, with `!` and brackets.

/// How many ways a rule may have.
const WAYS_LIMIT: usize = 64;
/// How deep brackets may be nested.
const DEPTH_LIMIT: usize = 16;

/// What a rule lets in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Route {
    /// On these hosts, sorted; none: on any.
    pub(super) hosts: Vec<String>,
    /// What begins with this path; none: any.
    pub(super) path: Option<String>,
}

/// Why a rule cannot be said in our words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RuleError {
    /// Not one of the matchers that have a counterpart.
    #[error(
        "{0} has no counterpart here; Host(`a.example`) and PathPrefix(`/x`) have. Say what is meant with SERVICE_HOST \
         and SERVICE_PATH"
    )]
    Matcher(String),
    /// Hosts and paths that depend on each other.
    #[error(
        "its hosts and paths are no list of hosts with one path for all; say which with SERVICE_HOST and SERVICE_PATH"
    )]
    NotOnePath,
    /// No rule at all.
    #[error("it is not understood at {0:?}; write Host(`a.example`) && PathPrefix(`/x`)")]
    Form(String),
}

/// One way into the router: matchers that all must hold.
#[derive(Debug, Clone, Default)]
struct Way {
    host: Option<String>,
    path: Option<String>,
}

/// Reads a rule.
pub(super) fn read(text: &str) -> Result<Route, RuleError> {
    let mut parser = Parser { rest: text.trim_start(), depth: 0 };
    let ways = parser.any()?;
    if !parser.rest.is_empty() {
        return Err(parser.not_understood());
    }
    let path = ways.first().and_then(|way| way.path.clone());
    let has_host = ways.iter().any(|way| way.host.is_some());
    if ways.iter().any(|way| way.path != path || way.host.is_some() != has_host) {
        return Err(RuleError::NotOnePath);
    }
    let mut hosts: Vec<String> = ways.into_iter().filter_map(|way| way.host).collect();
    hosts.sort();
    hosts.dedup();
    Ok(Route { hosts, path })
}

impl Route {
    /// Lets in what the other does, too.
    pub(super) fn join(&mut self, other: Self) -> Result<(), RuleError> {
        if self.path != other.path || self.hosts.is_empty() != other.hosts.is_empty() {
            return Err(RuleError::NotOnePath);
        }
        self.hosts.extend(other.hosts);
        self.hosts.sort();
        self.hosts.dedup();
        Ok(())
    }
}

struct Parser<'a> {
    rest: &'a str,
    depth: usize,
}

impl<'a> Parser<'a> {
    /// Ways joined by `||`.
    fn any(&mut self) -> Result<Vec<Way>, RuleError> {
        let mut ways = self.all()?;
        while self.take("||") {
            ways.extend(self.all()?);
            if ways.len() > WAYS_LIMIT {
                return Err(RuleError::NotOnePath);
            }
        }
        Ok(ways)
    }

    /// Ways joined by `&&`: each of the left with each of the right.
    fn all(&mut self) -> Result<Vec<Way>, RuleError> {
        let mut ways = self.one()?;
        while self.take("&&") {
            let right = self.one()?;
            let mut both = Vec::new();
            for left in &ways {
                for right in &right {
                    both.push(left.and(right)?);
                }
            }
            if both.len() > WAYS_LIMIT {
                return Err(RuleError::NotOnePath);
            }
            ways = both;
        }
        Ok(ways)
    }

    /// A matcher, or something in brackets.
    fn one(&mut self) -> Result<Vec<Way>, RuleError> {
        if self.rest.starts_with('!') {
            return Err(RuleError::Matcher("!".to_owned()));
        }
        if self.take("(") {
            self.depth += 1;
            if self.depth > DEPTH_LIMIT {
                return Err(self.not_understood());
            }
            let ways = self.any()?;
            self.depth -= 1;
            return if self.take(")") { Ok(ways) } else { Err(self.not_understood()) };
        }
        let end = self.rest.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(self.rest.len());
        let (name, rest) = self.rest.split_at(end);
        if name.is_empty() {
            return Err(self.not_understood());
        }
        self.rest = rest.trim_start();
        let way = |argument: String| match name.to_ascii_lowercase().as_str() {
            "host" => Ok(Way { host: Some(argument.to_ascii_lowercase()), path: None }),
            "pathprefix" => Ok(Way { host: None, path: Some(argument) }),
            _ => Err(RuleError::Matcher(name.chars().take(80).collect())),
        };
        let arguments = self.arguments()?;
        arguments.into_iter().map(way).collect()
    }

    /// Quoted texts in brackets.
    fn arguments(&mut self) -> Result<Vec<String>, RuleError> {
        if !self.take("(") {
            return Err(self.not_understood());
        }
        let mut arguments = Vec::new();
        loop {
            let quote = self.rest.chars().next().filter(|c| matches!(c, '`' | '"' | '\''));
            let quote = quote.ok_or_else(|| self.not_understood())?;
            let (argument, rest) = self.rest[1..].split_once(quote).ok_or_else(|| self.not_understood())?;
            arguments.push(argument.trim().to_owned());
            self.rest = rest.trim_start();
            if self.take(")") {
                return Ok(arguments);
            }
            if !self.take(",") || arguments.len() >= WAYS_LIMIT {
                return Err(self.not_understood());
            }
        }
    }

    fn take(&mut self, token: &str) -> bool {
        let Some(rest) = self.rest.strip_prefix(token) else { return false };
        self.rest = rest.trim_start();
        true
    }

    fn not_understood(&self) -> RuleError {
        RuleError::Form(self.rest.chars().take(40).collect())
    }
}

impl Way {
    fn and(&self, other: &Self) -> Result<Self, RuleError> {
        let both = |left: &Option<String>, right: &Option<String>| match (left, right) {
            (Some(left), Some(right)) if left != right => Err(RuleError::NotOnePath),
            (left, right) => Ok(left.clone().or_else(|| right.clone())),
        };
        Ok(Self { host: both(&self.host, &other.host)?, path: both(&self.path, &other.path)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn rules_of_hosts_and_one_path_are_read() {
        let cases: [(&str, &[&str], Option<&str>); 9] = [
            ("Host(`a.example`)", &["a.example"], None),
            ("Host(`B.example`, `a.example`)", &["a.example", "b.example"], None),
            ("host(\"a.example\") || Host('b.example')", &["a.example", "b.example"], None),
            ("Host(`a.example`) && PathPrefix(`/x`)", &["a.example"], Some("/x")),
            ("PathPrefix(`/x`)&&Host(`a.example`)", &["a.example"], Some("/x")),
            ("(Host(`a`) || Host(`b`)) && PathPrefix(`/x`)", &["a", "b"], Some("/x")),
            ("(Host(`a`) && PathPrefix(`/x`)) || (Host(`b`) && PathPrefix(`/x`))", &["a", "b"], Some("/x")),
            (" PathPrefix(`/x`) ", &[], Some("/x")),
            ("((Host(`a`)))", &["a"], None),
        ];
        for (text, hosts, path) in cases {
            let expected =
                Route { hosts: hosts.iter().map(|&host| host.to_owned()).collect(), path: path.map(str::to_owned) };
            assert_eq!(read(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_has_no_counterpart_is_refused_by_its_name() {
        let deep = "(".repeat(100);
        let cases = [
            ("HostRegexp(`.*`)", "HostRegexp has no counterpart"),
            ("Host(`a`) && !PathPrefix(`/x`)", "! has no counterpart"),
            ("Host(`a`) && Path(`/x`)", "Path has no counterpart"),
            ("Headers(`a`, `b`)", "Headers has no counterpart"),
            ("Host(`a`) || PathPrefix(`/x`)", "one path for all"),
            ("Host(`a`) && (PathPrefix(`/x`) || PathPrefix(`/y`))", "one path for all"),
            ("Host(`a`) && Host(`b`)", "one path for all"),
            ("", "not understood"),
            ("Host(a)", "not understood"),
            ("Host(`a`", "not understood"),
            ("Host(`a`) Host(`b`)", "not understood"),
            ("Host()", "not understood"),
            ("Host(`a`) &&", "not understood"),
            (deep.as_str(), "not understood"),
        ];
        for (text, expected) in cases {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn no_rule_makes_the_parser_panic(text in "[Host(Path`/aé|&!\\\"', ).]{0,60}") {
            let _ = read(&text);
        }
    }
}
