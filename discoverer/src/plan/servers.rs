//! The servers that a text names, one by one. Pure.

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

    /// The line of a server.
    pub fn server_line(&self, id: &ServerId) -> Option<&str> {
        let Some(Place::At(index)) = self.backend(&id.backend) else { return None };
        let section = &self.sections()[index];
        let mut servers = lines(self.at(&section.body), section.body.start).filter(|(_, _, word)| word == "server");
        servers.find(|(_, line, _)| second_word(line) == id.server.as_str()).map(|(_, line, _)| line)
    }
}
