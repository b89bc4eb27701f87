//! Which options (`--set`) templates read, so that one which none does is told: its name may be mistyped. Pure.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::near::near;

/// The option that is read by us too: it decides what templates get as `default_service`.
const DEFAULT_SERVICE: &str = "default_service";

/// An option that was given, and that no template reads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnreadOption {
    /// Its name.
    pub name: String,
    /// Options that are read, and may be meant.
    pub meant: Vec<String>,
}

/// The options that templates read.
#[derive(Debug, PartialEq, Eq)]
pub struct ReadOptions {
    names: BTreeSet<String>,
    /// A template hands them on, goes through them, or makes up a name: it may read any.
    any: bool,
}

impl ReadOptions {
    /// Looks for them in texts without comments.
    pub fn of<'t>(texts: impl IntoIterator<Item = &'t str>) -> Self {
        let mut read = Self { names: BTreeSet::new(), any: false };
        for tag in texts.into_iter().flat_map(tags) {
            read.look_at(tag);
        }
        read
    }

    fn look_at(&mut self, tag: &str) {
        let mut before = None;
        let mut words = words(tag);
        while let Some(word) = words.next() {
            match word {
                DEFAULT_SERVICE => {
                    self.names.insert(word.to_owned());
                }
                "options" if before != Some(".") => match (words.next(), words.next()) {
                    (Some("."), Some(name)) if is_name(name) => {
                        self.names.insert(name.to_owned());
                    }
                    (Some("["), Some(name)) if name.starts_with(['"', '\'']) => {
                        self.names.insert(name.trim_matches(['"', '\'']).to_owned());
                    }
                    _ => self.any = true,
                },
                _ => {}
            }
            before = Some(word);
        }
    }

    /// Those of the options that no template reads.
    pub fn unread<'o>(&self, options: impl IntoIterator<Item = &'o str>) -> Vec<UnreadOption> {
        let unread = options.into_iter().filter(|name| !self.any && !self.names.contains(*name));
        let meant = |name| near(name, self.names.iter().map(String::as_str)).into_iter().map(str::to_owned).collect();
        unread.map(|name| UnreadOption { name: name.to_owned(), meant: meant(name) }).collect()
    }

    /// The names of those that are read by their names; sorted.
    #[cfg(test)]
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.names.iter().map(String::as_str)
    }
}

/// What stands in `{{ }}` and `{% %}`.
fn tags(text: &str) -> Vec<&str> {
    let mut tags = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find('{') {
        let end = match rest.as_bytes().get(at + 1) {
            Some(b'{') => "}}",
            Some(b'%') => "%}",
            _ => {
                rest = &rest[at + 1..];
                continue;
            }
        };
        let (tag, behind) = rest[at + 2..].split_once(end).unwrap_or((&rest[at + 2..], ""));
        tags.push(tag);
        rest = behind;
    }
    tags
}

fn is_name(word: &str) -> bool {
    word.starts_with(|c: char| c.is_alphabetic() || c == '_')
}

/// Names, strings with their quotes, and all other characters, each by itself, without blanks.
fn words(tag: &str) -> impl Iterator<Item = &str> {
    let mut rest = tag;
    std::iter::from_fn(move || {
        rest = rest.trim_start();
        let first = rest.chars().next()?;
        let is_of_name = |c: char| c.is_alphanumeric() || c == '_';
        let end = match first {
            '"' | '\'' | '`' => rest[1..].find(first).map_or(rest.len(), |end| end + 2),
            c if is_of_name(c) => rest.find(|c| !is_of_name(c)).unwrap_or(rest.len()),
            c => c.len_utf8(),
        };
        let (word, behind) = rest.split_at(end);
        rest = behind;
        Some(word)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unread(text: &str, options: &[&str]) -> Vec<String> {
        let read = ReadOptions::of([text]);
        let unread = read.unread(options.iter().copied());
        unread.into_iter().map(|option| format!("{} {}", option.name, option.meant.join(","))).collect()
    }

    #[test]
    fn an_option_that_no_template_reads_is_found_with_those_that_may_be_meant() {
        let text = "bind {{ options.http_bind | default(value=\":80\") }} {% if options[\"log\"] == 'a' %}{{options['x-y']}}{% endif %}";
        assert_eq!(unread(text, &["http_bind", "log", "x-y"]), [""; 0]);
        assert_eq!(unread(text, &["http_bnd", "log", "zzzzzz"]), ["http_bnd http_bind", "zzzzzz "]);
    }

    #[test]
    fn what_only_looks_like_an_option_is_none() {
        let text = "ssl-default-bind-options {{ service.options.a }} {{ \"options.b\" }} options.c { options.d } {{ my_options.e }}";
        assert_eq!(unread(text, &["a", "b", "c", "d", "e"]).len(), 5, "{:?}", ReadOptions::of([text]));
    }

    #[test]
    fn templates_that_may_read_any_option_say_nothing() {
        for text in [
            "{% for name, value in options %}{% endfor %}",
            "{{ options[service.name] }}",
            "{{ lines::of(options=options) }}",
            "{{ options.a }}{{ options | json_encode }}",
        ] {
            assert_eq!(unread(text, &["b"]), [""; 0], "{text}");
        }
    }

    #[test]
    fn the_option_that_we_read_ourselves_counts_where_a_template_uses_what_it_decides() {
        assert_eq!(unread("{% if default_service %}x{% endif %}", &["default_service"]), [""; 0]);
        assert_eq!(unread("{{ x }}", &["default_service"]), ["default_service "]);
    }
}
