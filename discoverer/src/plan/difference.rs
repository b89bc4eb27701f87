//! Two configurations, section by section: what differs, and whether servers are all that does. Pure.

use std::collections::{HashMap, HashSet};

use super::context::Context;
use super::reason::Reason;
use super::server::Server;
use super::text::{Kind, Parsed, Place, Section, lines};
use super::words::{Word, first_word, same, second_word, short};
use super::{Change, Part, Plan, ServerId, Version, known};

/// A running configuration and a wanted one, and what is found on the way from one to the other.
pub(super) struct Difference<'t> {
    running: &'t Parsed,
    wanted: &'t Parsed,
    version: Option<Version>,
    additions: Vec<Change>,
    alterations: Vec<Change>,
    removals: Vec<Change>,
    /// The words by which lines of the running text may name a server; found when they are first asked for.
    references: Option<HashSet<&'t str>>,
}

impl<'t> Difference<'t> {
    pub(super) fn new(running: &'t Parsed, wanted: &'t Parsed, version: Option<Version>) -> Self {
        let (additions, alterations, removals) = Default::default();
        Self { running, wanted, version, additions, alterations, removals, references: None }
    }

    /// The way over; the reason where it needs a reload.
    pub(super) fn plan(mut self) -> Result<Plan, Reason> {
        self.compare_heads()?;
        for index in 0..self.running.sections().len() {
            self.compare_section(index, index)?;
        }
        let changes = self.changes();
        Ok(if changes.is_empty() { Plan::Nothing } else { Plan::Runtime(changes) })
    }

    /// The changes of servers of sections that both texts have, are otherwise the same and stand under the same defaults.
    pub(super) fn part(mut self) -> Part {
        let (running, wanted) = (self.running, self.wanted);
        for index in 0..running.sections().len() {
            let section = &running.sections()[index];
            let name = running.name(section).unwrap_or_default();
            let is_alone = running.backend(&name) == Some(Place::At(index));
            let (true, Some(Place::At(other))) = (is_alone, wanted.backend(&name)) else { continue };
            // Where a `default-server` line stands behind servers, a line that moves would mean something else.
            let in_order = |side: &Side<'_>| {
                let first = lines(side.body, side.section.body.start).find(|(_, _, word)| word == "server");
                first.is_none_or(|(first, ..)| side.default_places().iter().all(|&place| place < first))
            };
            let sides = [Side::of(running, index), Side::of(wanted, other)];
            if !same_lineage(running, index, wanted, other) || !sides.iter().all(in_order) {
                continue;
            }
            let before = (self.additions.len(), self.alterations.len(), self.removals.len());
            if self.compare_section(index, other).is_err() {
                self.additions.truncate(before.0);
                self.alterations.truncate(before.1);
                self.removals.truncate(before.2);
            }
        }
        let changes = self.changes();
        let line = |change: &Change| wanted.server_line(change.id()).map(|line| line.trim().to_owned());
        let lines = changes.iter().map(|change| (change.id().clone(), line(change))).collect();
        Part { changes, lines }
    }

    fn changes(self) -> Vec<Change> {
        let mut changes = self.additions;
        changes.extend(self.alterations);
        changes.extend(self.removals);
        changes
    }

    /// Makes sure that both have the same sections in the same order.
    fn compare_heads(&self) -> Result<(), Reason> {
        let (running, wanted) = (self.running, self.wanted);
        let (old, new) = (running.sections(), wanted.sections());
        let equal = old.iter().zip(new).take_while(|(old, new)| same(running.at(&old.head), wanted.at(&new.head)));
        let equal = equal.count();
        if equal == old.len() && equal == new.len() {
            return Ok(());
        }
        let titles =
            |parsed: &Parsed| parsed.sections().iter().map(|section| parsed.title(section)).collect::<Vec<_>>();
        let (old, new) = (titles(running), titles(wanted));
        let lacks = |some: &[String], others: &[String]| {
            let others: HashSet<&String> = others.iter().collect();
            some.iter().find(|title| !others.contains(title)).cloned()
        };
        Err(if let Some(section) = lacks(&new, &old) {
            Reason::NewSection { section }
        } else if let Some(section) = lacks(&old, &new) {
            Reason::GoneSection { section }
        } else {
            Reason::Sections { section: new.get(equal).or(old.get(equal)).cloned().unwrap_or_default() }
        })
    }

    /// Compares two sections, by their indices in the running text and in the wanted one.
    fn compare_section(&mut self, index: usize, new_index: usize) -> Result<(), Reason> {
        let old = Side::of(self.running, index);
        let new = Side::of(self.wanted, new_index);
        if old.body == new.body {
            return Ok(());
        }
        // Both bodies are mostly the same lines: only what is between them is looked at.
        let (before, behind) = common_lines(old.body, new.body);
        let (old_lines, new_lines) = (old.lines(before, behind), new.lines(before, behind));
        compare_settings(&old, &old_lines.settings, &new, &new_lines.settings)?;

        let old_servers = by_name(&old, &old_lines.servers)?;
        let new_servers = by_name(&new, &new_lines.servers)?;
        let (old_defaults, new_defaults) = (old.default_places(), new.default_places());
        let unchanged = |&(old_place, old_line): &ServerLine<'_>, &(new_place, new_line): &ServerLine<'_>| {
            let is_before = |place: usize| move |&default: &usize| default < place;
            same(old_line, new_line)
                && old_defaults.partition_point(is_before(old_place))
                    == new_defaults.partition_point(is_before(new_place))
        };
        let differing: Vec<_> = new_lines
            .servers
            .iter()
            .map(|line| (old_servers.get(&second_word(line.1)), line))
            .filter(|(old, new)| !old.is_some_and(|old| unchanged(old, new)))
            .collect();
        let gone: Vec<_> =
            old_lines.servers.iter().filter(|line| !new_servers.contains_key(&second_word(line.1))).collect();
        if differing.is_empty() && gone.is_empty() {
            return Ok(());
        }

        let version = known(self.version)?;
        let (old_context, new_context) = (Context::new(self.running, index)?, Context::new(self.wanted, new_index)?);
        if self.wanted.backend(&new_context.backend).is_none_or(|place| place != Place::At(new_index)) {
            return Err(Reason::Backend { backend: new_context.backend });
        }
        let mut new_names: Vec<Word<'_>> =
            differing.iter().filter(|(old, _)| old.is_none()).map(|(_, (_, line))| second_word(line)).collect();
        new_names.sort_unstable();
        for rest in [&new.body[..before], &new.body[new.body.len() - behind..]] {
            defined_in(rest, &new_names, &new_context.backend)?;
        }
        for (old, &(place, line)) in differing {
            let wanted = Server::read(&new_context, place, line)?;
            match old {
                None => self.additions.push(wanted.addition(&new_context, version)?),
                Some(&(place, line)) => {
                    self.alterations.extend(Server::read(&old_context, place, line)?.changes(&wanted)?);
                }
            }
        }
        for &(place, line) in gone {
            let removal = Server::read(&old_context, place, line)?.removal()?;
            let running = self.running;
            unnamed_elsewhere(removal.id(), self.references.get_or_insert_with(|| references(running.text())))?;
            self.removals.push(removal);
        }
        Ok(())
    }
}

/// A line with the place where it begins.
type ServerLine<'t> = (usize, &'t str);

/// One section in one of the texts.
struct Side<'t> {
    parsed: &'t Parsed,
    section: &'t Section,
    body: &'t str,
}

/// The lines of a part of a section.
struct Lines<'t> {
    settings: Vec<ServerLine<'t>>,
    servers: Vec<ServerLine<'t>>,
}

impl<'t> Side<'t> {
    fn of(parsed: &'t Parsed, index: usize) -> Self {
        let section = &parsed.sections()[index];
        Self { parsed, section, body: parsed.at(&section.body) }
    }

    /// The lines but for so many bytes at the beginning and the end.
    fn lines(&self, before: usize, behind: usize) -> Lines<'t> {
        let mut found = Lines { settings: Vec::new(), servers: Vec::new() };
        let part = &self.body[before..self.body.len() - behind];
        for (place, line, word) in lines(part, self.section.body.start + before) {
            let is_server = self.section.kind == Kind::Backend && word == "server";
            if is_server { &mut found.servers } else { &mut found.settings }.push((place, line));
        }
        found
    }

    /// Where its `default-server` lines begin.
    fn default_places(&self) -> Vec<usize> {
        let settings = self.parsed.settings(self.section);
        settings.filter(|(_, line)| first_word(line) == "default-server").map(|(place, _)| place).collect()
    }
}

fn compare_settings(
    old: &Side<'_>,
    old_settings: &[ServerLine<'_>],
    new: &Side<'_>,
    new_settings: &[ServerLine<'_>],
) -> Result<(), Reason> {
    let equal = old_settings.iter().zip(new_settings).take_while(|((_, old), (_, new))| same(old, new)).count();
    let wanted = new_settings.get(equal).map(|line| (new.parsed, line));
    let Some((parsed, (place, line))) = wanted.or(old_settings.get(equal).map(|line| (old.parsed, line))) else {
        return Ok(());
    };
    Err(Reason::Setting {
        section: new.parsed.title(new.section),
        keyword: short(&first_word(line)),
        line: parsed.line_number(*place),
    })
}

fn by_name<'t>(side: &Side<'t>, servers: &[ServerLine<'t>]) -> Result<HashMap<Word<'t>, ServerLine<'t>>, Reason> {
    let mut found = HashMap::with_capacity(servers.len());
    for &(place, line) in servers {
        let name = second_word(line);
        if found.insert(name.clone(), (place, line)).is_some() {
            return Err(twice(side.parsed.name(side.section).unwrap_or_default(), &name));
        }
    }
    Ok(found)
}

/// An error if one of the names, which are sorted, is a server's in this part of a section.
fn defined_in(part: &str, names: &[Word<'_>], backend: &str) -> Result<(), Reason> {
    if names.is_empty() {
        return Ok(());
    }
    // Not by a hash: there are few names and many lines.
    let mut servers = lines(part, 0).filter(|(_, _, word)| word == "server").map(|(_, line, _)| second_word(line));
    servers.find(|name| names.binary_search(name).is_ok()).map_or(Ok(()), |name| Err(twice(backend.to_owned(), &name)))
}

fn twice(backend: String, name: &str) -> Reason {
    let id = ServerId { backend, server: short(name) };
    Reason::Server { id, why: "its name stands twice in the section".to_owned() }
}

/// Whether two sections are the same but for their lines, and so are the `defaults` sections that they build on.
fn same_lineage(running: &Parsed, index: usize, wanted: &Parsed, other: usize) -> bool {
    let (old, new) = (running.lineage(index), wanted.lineage(other));
    let same_head = |(old, new): (&&Section, &&Section)| same(running.at(&old.head), wanted.at(&new.head));
    let same_body = |(old, new): (&&Section, &&Section)| running.at(&old.body) == wanted.at(&new.body);
    let defaults = old.len().saturating_sub(1);
    old.len() == new.len() && old.iter().zip(&new).all(same_head) && old.iter().zip(&new).take(defaults).all(same_body)
}

/// An error if a line that is not its own seems to name a server.
pub(super) fn unnamed_elsewhere(id: &ServerId, references: &HashSet<&str>) -> Result<(), Reason> {
    if !references.contains(id.server.as_str()) {
        return Ok(());
    }
    let why = "another line seems to name it, and HAProxy does not remove such a server".to_owned();
    Err(Reason::Server { id: id.clone(), why })
}

/// All words of the lines that could name a server outside its own line: `use-server`, `track`, and the fetches
/// `srv_is_up(backend/server)` and the like. HAProxy does not remove a server that one of them names (measured).
pub(super) fn references(text: &str) -> HashSet<&str> {
    let may_refer = |text: &str| text.contains("use-serv") || text.contains("srv_") || text.contains("track");
    if !may_refer(text) {
        return HashSet::new();
    }
    let is_name = |c: char| c.is_ascii_alphanumeric() || "-_.:".contains(c);
    text.lines().filter(|line| may_refer(line)).flat_map(|line| line.split(move |c| !is_name(c))).collect()
}

/// How many bytes at the beginning and at the end of both texts are the same whole lines.
fn common_lines(a: &str, b: &str) -> (usize, usize) {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    let same_start = common_start(a, b);
    // Cut back to the end of a line.
    let before = a[..same_start].iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1);
    let (a, b) = (&a[before..], &b[before..]);
    let same_end = common_end(a, b);
    // What is the same at the end begins in the middle of a line, or seems to: up to the next line it stays out.
    let cut = a[a.len() - same_end..].iter().position(|&byte| byte == b'\n').map_or(same_end, |end| end + 1);
    (before, same_end - cut)
}

/// How much is compared at once: comparing slices is much faster than comparing bytes.
const STRIDE: usize = 256;

fn common_start(a: &[u8], b: &[u8]) -> usize {
    let strides = a.chunks_exact(STRIDE).zip(b.chunks_exact(STRIDE)).take_while(|(a, b)| a == b).count() * STRIDE;
    strides + a[strides..].iter().zip(&b[strides..]).take_while(|(a, b)| a == b).count()
}

fn common_end(a: &[u8], b: &[u8]) -> usize {
    let strides = a.rchunks_exact(STRIDE).zip(b.rchunks_exact(STRIDE)).take_while(|(a, b)| a == b).count() * STRIDE;
    let rest = a[..a.len() - strides].iter().rev().zip(b[..b.len() - strides].iter().rev());
    strides + rest.take_while(|(a, b)| a == b).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn common_lines_are_whole_and_do_not_overlap() {
        let long = "x".repeat(1000);
        let cases: &[(&str, &str, usize, usize)] = &[
            ("", "", 0, 0),
            ("a\nb\n", "a\nc\n", 2, 0),
            ("a\nb\nc\nd\n", "a\nx\nc\nd\n", 2, 4),
            ("a\nb\n", "a\na\nb\n", 2, 0),
            ("a\na\na\n", "a\na\n", 4, 0),
            ("aa\nb\nc\n", "ba\nb\nc\n", 0, 4),
            ("é\nb\n", "è\nb\n", 0, 2),
            ("no end", "no End", 0, 0),
        ];
        for &(a, b, before, behind) in cases {
            assert_eq!(common_lines(a, b), (before, behind), "{a:?} {b:?}");
            let (a, b) = (format!("{long}\n{a}{long}\n{long}\n"), format!("{long}\n{b}{long}\n{long}\n"));
            let (before, behind) = common_lines(&a, &b);
            assert!(a[..before] == b[..before] && a[a.len() - behind..] == b[b.len() - behind..]);
            let least = long.len() + 1;
            assert!(before >= least && before + behind >= 2 * least, "{before} {behind}");
            assert!(before + behind <= a.len().min(b.len()));
        }
    }
}
