//! The servers that a text names, one by one. Pure.

use std::collections::BTreeMap;

use super::context::Context;
use super::text::{Kind, Parsed, Place, lines};
use super::words::second_word;
use super::{Change, ServerId};

/// A server of a text, as far as its state goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServerWeight<'t> {
    /// The name of its `backend` or `listen` section.
    pub backend: &'t str,
    /// Its name.
    pub name: &'t str,
    /// Its weight, 0 to 256.
    pub weight: u16,
}

impl Change {
    /// The server that is changed.
    pub fn id(&self) -> &ServerId {
        match self {
            Self::Add { id, .. } | Self::Remove { id } | Self::Weight { id, .. } | Self::Address { id, .. } => id,
        }
    }
}

impl Parsed {
    /// The servers of the sections that can have any, with their weights. Those whose section or line is not plain
    /// enough to tell are left out.
    pub fn servers(&self) -> impl Iterator<Item = ServerWeight<'_>> {
        self.sections().iter().enumerate().filter(|(_, section)| section.kind == Kind::Backend).flat_map(
            move |(index, section)| {
                let backend = self.at(&section.head).split_whitespace().nth(1);
                let has_defaults = Context::new(self, index).map_or(true, |context| context.all_defaults() > 0);
                let named = backend.filter(|_| !has_defaults).into_iter();
                named.flat_map(move |backend| {
                    let servers =
                        lines(self.at(&section.body), section.body.start).filter(|(_, _, word)| word == "server");
                    servers.filter_map(move |(_, line, _)| {
                        let mut words = line.split_whitespace().skip(1);
                        let name = words.next()?;
                        let weight =
                            words.skip_while(|word| *word != "weight").nth(1).map_or(Some(1), |w| w.parse().ok())?;
                        Some(ServerWeight { backend, name, weight })
                    })
                })
            },
        )
    }

    /// The text with these servers' lines in place of those it has: a server with no line is left out, one that is new
    /// comes last in its backend. Servers of backends that the text does not have are passed over.
    #[must_use]
    pub fn with_lines(&self, told: &BTreeMap<ServerId, Option<String>>) -> Self {
        let mut text =
            String::with_capacity(self.text().len() + told.values().flatten().map(|l| l.len() + 8).sum::<usize>());
        for section in self.sections() {
            text.push_str(self.at(&section.head));
            let body = self.at(&section.body);
            let backend = self.name(section).unwrap_or_default();
            let of_backend: BTreeMap<&str, &Option<String>> = told
                .iter()
                .filter(|(id, _)| section.kind == Kind::Backend && id.backend == backend)
                .map(|(id, line)| (id.server.as_str(), line))
                .collect();
            if of_backend.is_empty() {
                text.push_str(body);
                continue;
            }
            // What goes is cut out, and the rest copied in one piece.
            let mut copied = 0;
            let start = section.body.start;
            for (place, line, word) in lines(body, start) {
                if word == "server" && of_backend.contains_key(second_word(line).as_ref()) {
                    text.push_str(&body[copied..place - start]);
                    copied = place - start + line.len();
                }
            }
            text.push_str(&body[copied..]);
            for line in of_backend.into_values().flatten() {
                if !text.ends_with('\n') {
                    text.push('\n');
                }
                text.push_str("    ");
                text.push_str(line.trim());
                text.push('\n');
            }
        }
        Self::new(text)
    }

    /// The line of a server.
    pub fn server_line(&self, id: &ServerId) -> Option<&str> {
        let Some(Place::At(index)) = self.backend(&id.backend) else { return None };
        let section = &self.sections()[index];
        let mut servers = lines(self.at(&section.body), section.body.start).filter(|(_, _, word)| word == "server");
        servers.find(|(_, line, _)| second_word(line) == id.server.as_str()).map(|(_, line, _)| line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "backend a\n  balance roundrobin\n  server s1 10.0.0.1:80 weight 5\n  server s2 10.0.0.2:80\n\n\
        backend b\n  server s1 10.0.1.1:80 check weight 256\nfrontend f\n  bind :80\n";

    fn id(backend: &str, server: &str) -> ServerId {
        ServerId { backend: backend.to_owned(), server: server.to_owned() }
    }

    fn servers(text: &Parsed) -> Vec<(String, u16)> {
        text.servers().map(|server| (format!("{}/{}", server.backend, server.name), server.weight)).collect()
    }

    fn expected(servers: &[(&str, u16)]) -> Vec<(String, u16)> {
        servers.iter().map(|(name, weight)| ((*name).to_owned(), *weight)).collect()
    }

    #[test]
    fn servers_are_told_with_their_weights() {
        assert_eq!(servers(&Parsed::new(TEXT)), expected(&[("a/s1", 5), ("a/s2", 1), ("b/s1", 256)]));
    }

    #[test]
    fn lines_are_put_in_and_taken_out() {
        let told = BTreeMap::from([
            (id("a", "s1"), None),
            (id("b", "s1"), Some("server s1 10.0.1.9:80 weight 7".to_owned())),
            (id("b", "s2"), Some("server s2 10.0.1.2:80".to_owned())),
            (id("gone", "s1"), Some("server s1 10.0.1.2:80".to_owned())),
        ]);
        let text = Parsed::new(TEXT).with_lines(&told);
        assert_eq!(servers(&text), expected(&[("a/s2", 1), ("b/s1", 7), ("b/s2", 1)]));
        assert!(text.text().ends_with("frontend f\n  bind :80\n"), "{}", text.text());
        assert_eq!(Parsed::new(TEXT).with_lines(&BTreeMap::new()).text(), TEXT);
        let neighbours = BTreeMap::from([(id("a", "s1"), None), (id("a", "s2"), None)]);
        let left = "backend a\n  balance roundrobin\n\nbackend b\n  server s1 10.0.1.1:80 check weight 256\nfrontend f\n  bind :80\n";
        assert_eq!(Parsed::new(TEXT).with_lines(&neighbours).text(), left);
        let unended = Parsed::new("backend a\nserver s1 10.0.0.1:80\nserver s2 10.0.0.2:80");
        assert_eq!(unended.with_lines(&neighbours).text(), "backend a\n");
    }
}
