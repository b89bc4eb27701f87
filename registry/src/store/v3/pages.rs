//! A listing by pages, all of one moment: the first page's. Pure.
//!
//! A whole listing of 100,000 keys takes etcd longer than a request may, and holds it up meanwhile; a page does neither.

use std::fmt;

use super::wire::{self, Answered, Header};
use super::{below, is_hidden, position};
use crate::key::Prefix;
use crate::store::endpoints::{REPLY_LIMIT, Request, TOO_MUCH};
use crate::store::{Entry, Listing};

/// How many keys the first page has. It is soon there, or etcd is not well: what it costs etcd is little also while many list at
/// once.
const FIRST_PAGE: u32 = 200;
/// How many keys each later page has: as the agent writes them, some 1 MB of etcd's JSON.
const PAGE: u32 = 2000;

/// What has come of a listing.
pub(super) struct Pages<'p> {
    prefix: &'p Prefix,
    /// Where the next page begins. In bytes: a key need not be a text.
    next: Vec<u8>,
    /// The moment, once it is known.
    at: Option<Header>,
    entries: Vec<Entry>,
    /// What it took, in bytes of etcd's JSON.
    size: usize,
    /// Pages are asked of who knows the newest.
    of_the_newest: bool,
}

/// Why a page does not go with those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Misfit {
    /// Another cluster answers now.
    OtherCluster,
    /// It says that there is more and does not lead there.
    LeadsNowhere,
    /// A listing may not be that large.
    TooMuch,
}

impl fmt::Display for Misfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OtherCluster => {
                f.write_str("a page of the listing came from another etcd cluster than the first one")
            }
            Self::LeadsNowhere => {
                f.write_str("a page of the listing says that there is more, and has no key after the last one")
            }
            Self::TooMuch => write!(f, "its listing has {TOO_MUCH}"),
        }
    }
}

impl<'p> Pages<'p> {
    pub(super) fn new(prefix: &'p Prefix) -> Self {
        Self { prefix, next: below(prefix).into_bytes(), at: None, entries: Vec::new(), size: 0, of_the_newest: false }
    }

    /// Whether there is a page already.
    pub(super) fn is_begun(&self) -> bool {
        self.at.is_some()
    }

    /// Asks for the next page.
    pub(super) fn request(&self) -> Request {
        let limit = if self.is_begun() { PAGE } else { FIRST_PAGE };
        wire::page(&self.next, &below(self.prefix), limit, self.at.map(|at| at.revision.0), self.of_the_newest)
    }

    /// From now on pages are asked of members that have come as far as the others. Says whether that is new.
    pub(super) fn ask_the_newest(&mut self) -> bool {
        !std::mem::replace(&mut self.of_the_newest, true)
    }

    /// Takes the page, of so many bytes. Says whether there is more.
    pub(super) fn take(&mut self, page: Answered, size: usize) -> Result<bool, Misfit> {
        let at = *self.at.get_or_insert(page.header);
        if page.header.cluster_id != at.cluster_id {
            return Err(Misfit::OtherCluster);
        }
        self.size += size;
        if self.size > REPLY_LIMIT {
            return Err(Misfit::TooMuch);
        }
        if page.more {
            let last = page.kvs.last().map(|kv| kv.key.as_bytes()).filter(|last| *last >= self.next.as_slice());
            // The first key after that one.
            self.next = [last.ok_or(Misfit::LeadsNowhere)?, &[0]].concat();
        }
        // What is hidden from listings of v2 is hidden here.
        let shown = page.kvs.into_iter().filter(|kv| !is_hidden(self.prefix, &kv.key.text));
        self.entries.extend(shown.map(wire::KeyValue::into_entry));
        Ok(page.more)
    }

    /// All that came. Asked for when there is no more.
    pub(super) fn into_listing(self) -> Listing {
        let mut entries = self.entries;
        // etcd sorts by bytes, of which what is no UTF-8 was replaced.
        entries.sort_by(|a, b| a.path.cmp(&b.path));
        Listing { entries, directories: None, position: position(self.at.unwrap_or_default()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix() -> Prefix {
        "service".parse().unwrap()
    }

    fn page(cluster: u64, revision: u64, keys: &[&[u8]], more: bool) -> Answered {
        let kvs = keys.iter().map(|key| wire::KeyValue::made_up(key)).collect();
        Answered { header: Header::made_up(cluster, revision), kvs, more }
    }

    #[test]
    fn the_pages_of_a_listing_are_asked_for_at_the_moment_of_the_first_and_each_begins_behind_the_last_key() {
        let prefix = prefix();
        let mut pages = Pages::new(&prefix);
        let asked = |pages: &Pages<'_>, from: &[u8], at: Option<u64>| {
            let limit = if at.is_none() { FIRST_PAGE } else { PAGE };
            let expected = wire::page(from, "/service/", limit, at, false);
            assert_eq!(format!("{:?}", pages.request()), format!("{expected:?}"));
            assert_eq!(pages.is_begun(), at.is_some());
        };
        asked(&pages, b"/service/", None);
        assert_eq!(pages.take(page(1, 7, &[b"/service/a", b"/service/a/_c"], true), 10), Ok(true));
        asked(&pages, b"/service/a/_c\0", Some(7));
        // A key that is no text leads on as it came, and not as what it is shown as.
        assert_eq!(pages.take(page(1, 9, &[b"/service/\xff"], true), 10), Ok(true));
        asked(&pages, b"/service/\xff\0", Some(7));
        assert_eq!(pages.take(page(1, 11, &[], false), 10), Ok(false));
        let listing = pages.into_listing();
        let paths: Vec<&str> = listing.entries.iter().map(|entry| entry.path.as_str()).collect();
        assert_eq!(paths, ["/service/a", "/service/\u{fffd}"]);
        assert_eq!((listing.position.index(), listing.position.cluster_id()), (7, Some("1")));
    }

    #[test]
    fn a_page_that_does_not_go_with_those_before_it_is_refused() {
        let prefix = prefix();
        for (second, size, expected) in [
            (page(2, 7, &[b"/service/c"], false), 10, Misfit::OtherCluster),
            (page(1, 7, &[], true), 10, Misfit::LeadsNowhere),
            (page(1, 7, &[b"/service/b"], true), 10, Misfit::LeadsNowhere),
            (page(1, 7, &[b"/service/a"], true), 10, Misfit::LeadsNowhere),
            (page(1, 7, &[b"/service/c"], true), REPLY_LIMIT, Misfit::TooMuch),
        ] {
            let mut pages = Pages::new(&prefix);
            assert_eq!(pages.take(page(1, 7, &[b"/service/b"], true), 10), Ok(true));
            assert_eq!(pages.take(second, size), Err(expected));
        }
    }
}
