//! Which host names the containers of this host may claim. Pure.

use std::fmt;
use std::str::FromStr;

/// The host names that containers may claim: all, or those under the given ones.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Domains(Option<Vec<Domain>>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Domain {
    /// `a.example`: this name.
    Exactly(String),
    /// `*.a.example`: every name below it.
    Below(String),
}

/// Why a text is no list of domains.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no domain; write a.example, or *.a.example for all names below it")]
pub struct DomainError(String);

impl Domains {
    /// Every host name.
    pub fn any() -> Self {
        Self(None)
    }

    /// Whether every host name may be claimed.
    pub fn is_any(&self) -> bool {
        self.0.is_none()
    }

    /// Whether this host name, in lower case, may be claimed.
    pub fn contains(&self, host: &str) -> bool {
        let Some(domains) = &self.0 else { return true };
        domains.iter().any(|domain| match domain {
            Domain::Exactly(name) => host == name,
            Domain::Below(name) => host.strip_suffix(name.as_str()).is_some_and(|rest| rest.ends_with('.')),
        })
    }
}

impl FromStr for Domains {
    type Err = DomainError;

    /// Reads names joined by commas. The empty text is every name.
    fn from_str(text: &str) -> Result<Self, DomainError> {
        if text.is_empty() {
            return Ok(Self::any());
        }
        let is_label = |label: &str| {
            !label.is_empty() && label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
        };
        let domain = |text: &str| {
            let text = text.trim().to_ascii_lowercase();
            let (name, is_below) = text.strip_prefix("*.").map_or((text.as_str(), false), |name| (name, true));
            if !name.split('.').all(is_label) {
                return Err(DomainError(text.chars().take(80).collect()));
            }
            Ok(if is_below { Domain::Below(name.to_owned()) } else { Domain::Exactly(name.to_owned()) })
        };
        Ok(Self(Some(text.split(',').map(domain).collect::<Result<_, _>>()?)))
    }
}

impl fmt::Display for Domains {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, domain) in self.0.iter().flatten().enumerate() {
            f.write_str(if at == 0 { "" } else { "," })?;
            match domain {
                Domain::Exactly(name) => f.write_str(name)?,
                Domain::Below(name) => write!(f, "*.{name}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_is_every_name_below_and_not_the_name_itself() {
        let domains: Domains = "a.example, *.B.example".parse().unwrap();
        assert_eq!(domains.to_string(), "a.example,*.b.example");
        let allowed = ["a.example", "x.b.example", "x.y.b.example"];
        let others = ["b.example", "xb.example", "x.a.example", "example", "", "a.example.evil"];
        assert!(allowed.iter().all(|host| domains.contains(host)));
        assert!(!others.iter().any(|host| domains.contains(host)));
        assert!("".parse::<Domains>().unwrap().contains("anything.at.all"));
        for bad in ["*", "*.", "a b", "a..b", ",", "a,", "*.*.example", "x*.example", "https://a.example"] {
            assert!(bad.parse::<Domains>().is_err(), "{bad:?}");
        }
    }
}
