//! Which backends the rules of a configuration lead to: the one judgement for `status`, the page, the API and `explain`. Pure.
//!
//! A rule is a `use_backend` or a `default_backend` (configuration manual, section 4.2). A `listen` section that binds takes
//! connections itself.

use std::collections::HashSet;

use super::words::{Word, quotes_name, second_word, words};

/// Whether a line that begins with this word is a rule.
pub(crate) fn is_rule(word: &str) -> bool {
    matches!(word, "use_backend" | "default_backend")
}

/// The backend that a rule names; none where its text does not tell: an expression (`%[...]`) names it when a request comes, or it
/// stands in an environment variable. A backend's own name has no `%` (section 2.5, "Proxy names").
pub(crate) fn named_backend(rule: &str) -> Option<Word<'_>> {
    let is_clear = !quotes_name(rule) || words(rule).is_ok();
    is_clear.then(|| second_word(rule)).filter(|backend| !backend.is_empty() && !backend.contains('%'))
}

/// All rules of a text, as far as they say where they lead.
#[derive(Debug, Default)]
pub(super) struct Rules {
    led: HashSet<String>,
    /// A rule does not say where it leads: it may lead to any backend.
    may_lead_anywhere: bool,
    has_rules: bool,
}

impl Rules {
    pub(super) fn add(&mut self, rule: &str) {
        self.has_rules = true;
        match named_backend(rule) {
            Some(backend) => {
                self.led.insert(backend.into_owned());
            }
            None => self.may_lead_anywhere = true,
        }
    }

    /// A `listen` section of this name binds.
    pub(super) fn add_listen(&mut self, name: String) {
        self.led.insert(name);
    }

    /// Those of the backends to which no rule leads, sorted. None where a rule may lead anywhere, and none where there is no rule at
    /// all: they stand in another file then.
    pub(super) fn unled<'b>(&self, backends: impl Iterator<Item = &'b String>) -> Vec<String> {
        if !self.has_rules || self.may_lead_anywhere {
            return Vec::new();
        }
        let mut unled: Vec<String> = backends.filter(|&name| !self.led.contains(name)).cloned().collect();
        unled.sort_unstable();
        unled
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_names_its_backend_unless_that_is_known_only_when_it_runs() {
        for (rule, expected) in [
            ("use_backend web if { path / }", Some("web")),
            ("  default_backend 'w'eb # %[str(x)]", Some("web")),
            ("use_backend web if { hdr(x) -m str %[y] }", Some("web")),
            ("use_backend web if { path \"$WHERE\" }", Some("web")),
            ("use_backend %[req.hdr(host),lower,map(/etc/haproxy/hosts.map)]", None),
            ("use_backend %[path,field(2,/)] if { path_beg /a }", None),
            ("use_backend \"%[req.hdr(host), lower]\"", None),
            ("use_backend \\%[str(web)]", None),
            ("use_backend be-%HM", None),
            ("default_backend \"$WHERE\"", None),
            ("use_backend", None),
        ] {
            assert_eq!(named_backend(rule).as_deref(), expected, "{rule}");
        }
    }
}
