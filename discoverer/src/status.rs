//! `discoverer status`: whether all is well, and the table for people. Pure: no I/O, and time comes in.

use std::fmt::{self, Write as _};
use std::time::Duration;

use jiff::Timestamp;
use observe::answer::command;
use registry::StoreKind;

use crate::explain;
use crate::report::{Connection, InstanceReport, Report, ServiceReport, Status};
use crate::trouble::{Level, Trouble, troubles};

/// How many lines of one kind are told.
const SHOWN: usize = 50;

/// What makes the exit code 1: the registry, HAProxy or the template is not well, or a service is left out or has no instance
/// that is up. Of single keys it is only told that they are left out.
pub fn wrongs(report: &Report) -> Vec<Trouble> {
    let status = &report.status;
    let counts = |trouble: &Trouble| match trouble.about.as_str() {
        "registry" | "template" | "configuration" => true,
        "haproxy" => trouble.level == Level::Error || !status.is_ready,
        // These are told one by one.
        _ => false,
    };
    let of_all = troubles(status).into_iter().filter(counts);
    of_all.chain(report.services.iter().filter_map(wrong_service)).collect()
}

fn wrong_service(service: &ServiceReport) -> Option<Trouble> {
    let head = &service.head;
    let reason = head.left_out.iter().find(|left| matches!(left.what.as_str(), "service" | "route"));
    let why = match head.status {
        Status::Refused => "is left out.",
        Status::Empty => {
            "has no instance: where a rule leads to it, HAProxy answers 503, until it is forgotten (--forget-after)."
        }
        Status::Draining => "has no instance that is up: all drain.",
        Status::Suspect => "has no instance that is up: their keys have expired.",
        Status::Up if is_all_down(service) => "has no instance that is up: HAProxy's checks fail.",
        Status::Up => return None,
    };
    Some(Trouble {
        level: Level::Error,
        about: "service".to_owned(),
        what: format!("Service {} {why}", head.name),
        words: reason.filter(|_| head.status == Status::Refused).map(|left| left.reason.clone()),
        advice: format!("`{} {}` says what to do.", command("discoverer", "explain"), head.name),
    })
}

/// Whether HAProxy's checks have all instances down that are to be up.
fn is_all_down(service: &ServiceReport) -> bool {
    let mut up = service.instances.iter().filter(|instance| instance.status == Status::Up).peekable();
    up.peek().is_some() && up.all(|instance| instance.haproxy.as_ref().is_some_and(|server| server.is_down))
}

/// A picture for people, at a time.
#[derive(Debug)]
pub struct Table<'r> {
    /// What is shown.
    pub report: &'r Report,
    /// By what ages are reckoned.
    pub now: Timestamp,
}

impl Table<'_> {
    /// How long ago that was, in the two largest units.
    fn ago(&self, then: Timestamp) -> String {
        let seconds = u64::try_from(self.now.duration_since(then).as_secs()).unwrap_or_default();
        let shown = humantime::format_duration(Duration::from_secs(seconds)).to_string();
        let largest: Vec<&str> = shown.split(' ').take(2).collect();
        format!("{} ago", largest.join(" "))
    }

    fn registry(&self) -> String {
        let registry = &self.report.status.registry;
        let mut text = match registry.connection {
            Connection::Connected => format!("connected, {}", self.ago(registry.since)),
            Connection::Connecting if registry.store == StoreKind::Memory => {
                "waits until the containers were looked at".to_owned()
            }
            Connection::Connecting => "has not answered yet".to_owned(),
            Connection::Unreachable => format!("does not answer, {}", self.ago(registry.since)),
        };
        let prefix = registry.prefix.trim_matches('/');
        let _ = write!(text, "; /{prefix} up to index {}", registry.index);
        if !registry.only.is_empty() {
            let (only, outside) = (registry.only.join(" or "), registry.outside);
            let instances = if outside == 1 { "instance is" } else { "instances are" };
            let _ = write!(text, "; only {only}: {outside} {instances} outside of that");
        }
        if let Some(last) = registry.last_change {
            let _ = write!(text, "; last change {}", self.ago(last));
        }
        if let Some(since) = registry.stale_since {
            let _ = write!(text, "; stale since {since:.0}");
        }
        let _ = write!(text, "; {}", registry.endpoints.join(", "));
        text
    }

    fn haproxy(&self) -> String {
        let haproxy = &self.report.status.haproxy;
        let mut text = match haproxy.is_up {
            Some(true) => "up".to_owned(),
            Some(false) => "does not run".to_owned(),
            None => "not known whether it runs".to_owned(),
        };
        if let Some(version) = &haproxy.version {
            let _ = write!(text, ", version {version}");
        }
        if let Some(started) = haproxy.worker_started {
            let _ = write!(text, ", worker started {}", self.ago(started));
        }
        let reloads: u64 = haproxy.reloads.values().sum();
        let word = if reloads == 1 { "reload" } else { "reloads" };
        let _ = write!(text, "; {reloads} {word} (--{})", haproxy.way);
        if let Some(reload) = &haproxy.last_reload {
            let _ = write!(text, ", the last {}: {}", self.ago(reload.at), reload.reason);
        }
        match &haproxy.applied {
            Some(applied) => {
                let how = match applied.how.as_str() {
                    "nothing" => "it ran it already",
                    "runtime" => "over the runtime API",
                    _ => "by a reload",
                };
                let _ = write!(text, "; applied {} ({how})", self.ago(applied.at));
            }
            None => text.push_str("; nothing applied yet"),
        }
        if let Some(why) = &haproxy.unfiled {
            let _ = write!(text, "; the file does not hold what it runs: {why}");
        }
        if let Some(why) = &haproxy.distrust {
            let _ = write!(text, "; the runtime API is not used until the next reload: {why}");
        }
        text
    }
}

impl fmt::Display for Table<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let status = &self.report.status;
        let discoverer = &status.discoverer;
        let (id, version) = (shown(&discoverer.id), shown(&discoverer.version));
        writeln!(f, "discoverer  {id}, version {version}, started {}", self.ago(discoverer.started))?;
        writeln!(f, "registry    {}", shown(&self.registry()))?;
        writeln!(f, "HAProxy     {}", shown(&self.haproxy()))?;
        writeln!(f)?;
        table(f, &rows(&self.report.services))?;
        if self.report.services.is_empty() {
            writeln!(f, "No service is registered.")?;
        }
        let left_out = status.left_out.len() + status.more_left_out;
        if left_out > 0 {
            writeln!(f, "\nLeft out:")?;
            for left in status.left_out.iter().take(SHOWN) {
                writeln!(f, "  {} {}: {}", shown(&left.what), shown(&left.subject), shown(&left.reason))?;
            }
            more(f, left_out - status.left_out.len().min(SHOWN))?;
        }
        let notes: Vec<_> = troubles(status).into_iter().filter(|trouble| trouble.level == Level::Note).collect();
        if !notes.is_empty() {
            writeln!(f, "\nTo note:")?;
            told(f, &notes)?;
        }
        let wrongs = wrongs(self.report);
        if wrongs.is_empty() {
            let besides = if notes.is_empty() { "" } else { " besides" };
            return writeln!(f, "\nAll is well{besides}.");
        }
        writeln!(f, "\nWrong:")?;
        told(f, &wrongs)
    }
}

fn told(f: &mut fmt::Formatter<'_>, troubles: &[Trouble]) -> fmt::Result {
    for trouble in troubles.iter().take(SHOWN) {
        writeln!(f, "  {}", shown(&trouble.what))?;
        if let Some(words) = &trouble.words {
            writeln!(f, "      {}", shown(words))?;
        }
        writeln!(f, "      {}", shown(&trouble.advice))?;
    }
    more(f, troubles.len().saturating_sub(SHOWN))
}

fn more(f: &mut fmt::Formatter<'_>, count: usize) -> fmt::Result {
    if count > 0 { writeln!(f, "  and {count} more") } else { Ok(()) }
}

/// What a terminal would obey, and what would break a line, is escaped.
fn shown(text: &str) -> String {
    explain::shown(text).replace('\n', "\n      ")
}

const COLUMNS: usize = 7;

fn rows(services: &[ServiceReport]) -> Vec<[String; COLUMNS]> {
    let head = ["SERVICE", "INSTANCE", "STATUS", "HAPROXY", "SESSIONS", "CONTAINER", "HOST"].map(str::to_owned);
    let known = |text: &Option<String>| text.clone().filter(|text| !text.is_empty()).unwrap_or_else(|| "-".to_owned());
    let row = |service: &ServiceReport, instance: &InstanceReport| {
        let server = instance.haproxy.as_ref();
        let check = server.map(|server| {
            let how = server.check_status.as_ref().map_or_else(String::new, |status| format!(" {status}"));
            format!("{}{how}", server.check)
        });
        [
            service.head.name.clone(),
            instance.address.to_string(),
            instance.status.as_str().to_owned(),
            known(&check),
            server.map_or_else(|| "-".to_owned(), |server| server.sessions.to_string()),
            known(&instance.name),
            known(&instance.host),
        ]
    };
    let empty = |service: &ServiceReport| {
        let mut row: [String; COLUMNS] = std::array::from_fn(|_| "-".to_owned());
        row[0].clone_from(&service.head.name);
        service.head.status.as_str().clone_into(&mut row[2]);
        row
    };
    let of = |service: &ServiceReport| -> Vec<[String; COLUMNS]> {
        if service.instances.is_empty() {
            return vec![empty(service)];
        }
        service.instances.iter().map(|instance| row(service, instance)).collect()
    };
    std::iter::once(head).chain(services.iter().flat_map(of)).collect()
}

fn table(f: &mut fmt::Formatter<'_>, rows: &[[String; COLUMNS]]) -> fmt::Result {
    let rows: Vec<[String; COLUMNS]> = rows.iter().map(|row| row.each_ref().map(|cell| shown(cell))).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default();
    let widths: [usize; COLUMNS] = std::array::from_fn(width);
    for row in &rows {
        let cells: Vec<String> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        writeln!(f, "{}", cells.join("  ").trim_end())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::explain::sample;

    #[test]
    fn what_is_wrong_is_told_and_what_is_well_is_not() {
        assert_eq!(wrongs(&sample::report()), []);
        type Change = fn(&mut Report);
        let cases: [(Change, &str); 11] = [
            (|report| report.status.registry.connection = Connection::Unreachable, "The registry does not answer."),
            (|report| report.status.registry.connection = Connection::Connecting, "The registry has not answered yet"),
            (|report| report.status.haproxy.is_up = Some(false), "HAProxy does not run."),
            (|report| report.status.haproxy.error = Some("no such luck".to_owned()), "does not run what is wanted"),
            (|report| report.status.is_ready = false, "has had no configuration"),
            (
                |report| report.status.discoverer.template_error = Some("line 3".to_owned()),
                "The template cannot be used",
            ),
            (|report| report.services[0].head.status = Status::Refused, "Service web is left out"),
            (|report| report.services[0].head.status = Status::Empty, "Service web has no instance:"),
            (|report| report.services[0].head.status = Status::Draining, "no instance that is up: all drain"),
            (|report| report.services[0].head.status = Status::Suspect, "no instance that is up: their keys"),
            (
                |report| {
                    let server = report.services[0].instances[0].haproxy.as_mut().unwrap();
                    (server.is_down, server.check) = (true, "DOWN".to_owned());
                },
                "HAProxy's checks fail",
            ),
        ];
        for (change, expected) in cases {
            let mut report = sample::report();
            change(&mut report);
            let wrongs = wrongs(&report);
            assert!(matches!(&wrongs[..], [wrong] if wrong.what.contains(expected)), "{expected}: {wrongs:?}");
            let told = Table { report: &report, now: sample::now() }.to_string();
            assert!(told.contains(expected) && !told.contains("All is well"), "{told}");
        }
    }

    #[test]
    fn what_is_over_or_may_pass_is_not_wrong() {
        let mut report = sample::report();
        report.status.haproxy.is_up = None;
        report.status.haproxy.distrust = Some("an unknown reply".to_owned());
        report.status.left_out.push(sample::bad_key());
        let other =
            InstanceReport { status: Status::Draining, haproxy: None, ..report.services[0].instances[0].clone() };
        report.services[0].instances.push(other);
        assert_eq!(wrongs(&report), []);
        let told = Table { report: &report, now: sample::now() }.to_string();
        assert!(told.contains("Left out:\n  key /service/web/nonsense: \"nonsense\" is not an address\n\n"), "{told}");
        report.status.more_left_out = 7;
        let told = Table { report: &report, now: sample::now() }.to_string();
        assert!(told.contains("not an address\n  and 7 more\n\n"), "{told}");
    }

    #[test]
    fn a_service_that_no_rule_leads_to_is_noted_and_not_wrong() {
        let mut report = sample::report();
        report.status.unrouted = vec!["web".to_owned()];
        assert_eq!(wrongs(&report), []);
        let told = |report: &Report| Table { report, now: sample::now() }.to_string();
        let text = told(&report);
        assert!(
            text.contains("\nTo note:\n  No rule leads to service web: no request comes to it.\n      Give"),
            "{text}"
        );
        assert!(text.ends_with("\n\nAll is well besides.\n"), "{text}");
        report.status.haproxy.is_up = Some(false);
        let text = told(&report);
        assert!(text.contains("To note:") && text.contains("\n\nWrong:\n  HAProxy does not run."), "{text}");
    }

    #[test]
    fn a_registry_in_memory_waits_for_the_containers() {
        let mut report = sample::report();
        report.status.registry.connection = Connection::Connecting;
        let told = |report: &Report| Table { report, now: sample::now() }.to_string();
        assert!(told(&report).contains("registry    has not answered yet;"), "{}", told(&report));
        report.status.registry.store = StoreKind::Memory;
        assert!(told(&report).contains("registry    waits until the containers"), "{}", told(&report));
    }

    #[test]
    fn a_share_is_told_with_what_is_outside_of_it() {
        let mut report = sample::report();
        let told = |report: &Report| Table { report, now: sample::now() }.to_string();
        assert!(!told(&report).contains("outside"));
        report.status.registry.only = vec!["tag=blue".to_owned(), "tag=edge".to_owned()];
        assert!(told(&report).contains("; only tag=blue or tag=edge: 0 instances are outside of that"));
        report.status.registry.outside = 1;
        assert!(told(&report).contains(": 1 instance is outside of that;"), "{}", told(&report));
    }

    #[test]
    fn the_table_has_a_line_for_each_instance_and_no_control_characters() {
        let mut report = sample::report();
        report.services[0].instances[0].name = Some("web\u{1b}[2J\n1".to_owned());
        let told = Table { report: &report, now: sample::now() }.to_string();
        assert!(told.contains("registry    connected, 1m 40s ago; /service up to index 7"), "{told}");
        assert!(told.contains("web      10.0.0.1:80  up      UP L4OK  3"), "{told}");
        assert!(told.contains("web\\u{1b}[2J") && told.ends_with("All is well.\n"), "{told}");
        assert!(!told.contains('\u{1b}'), "{told}");
    }
}
