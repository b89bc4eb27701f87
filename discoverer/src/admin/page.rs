//! The page as HTML: the same picture as the API's, for a browser that runs no script. Tera escapes every value.

use std::sync::{Arc, LazyLock};

use jiff::{SignedDuration, Timestamp};
use registry::StoreKind;
use serde::Serialize;
use tera::{Context, Kwargs, State, Tera, Value};
use tracing::error;

use super::assets::{SCRIPT, STYLE};
use super::delta::{LEFT_OUT_SHOWN, OF_SERVICE_SHOWN};
use super::hub::EventId;
use super::walk::{Filter, Piece, Walk};
use crate::report::{HaproxyReport, NoteReport, RegistryView, ServiceHead, Stats, Status, StatusReport};
use crate::trouble::Level;
use crate::view::{Connection, View};

/// How many notes the page begins with.
const NOTES: usize = 60;
/// How much of a container's id is shown, as Docker does.
const SHORT_ID: usize = 12;

/// What there is to see before the first picture.
pub(super) const BEGINNING: &str = "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta http-equiv=\"refresh\" content=\"1\">\
    <title>discoverer</title></head><body><p>The discoverer has only just begun. This page loads again by itself.</p></body></html>\n";

/// Read when the first page is asked for.
static TEMPLATES: LazyLock<Tera> = LazyLock::new(|| {
    let mut tera = Tera::new();
    tera.autoescape_on([".html"]);
    tera.register_filter("moment", |text: &str, _: Kwargs, _: &State<'_>| moment(text));
    tera.register_filter("short", |id: &str, _: Kwargs, _: &State<'_>| id.chars().take(SHORT_ID).collect::<String>());
    tera.register_filter("spaced", |word: &str, _: Kwargs, _: &State<'_>| word.replace('_', " "));
    tera.register_filter("health", |server: &tera::Map, _: Kwargs, _: &State<'_>| health(server));
    let files = [
        ("head.html", include_str!("files/head.html")),
        ("service.html", include_str!("files/service.html")),
        ("rows.html", include_str!("files/rows.html")),
        ("foot.html", include_str!("files/foot.html")),
    ];
    if let Err(error) = tera.add_raw_templates(files) {
        error!(%error, "the page's templates cannot be read");
    }
    tera
});

/// A field of a card.
#[derive(Debug, Serialize)]
struct Field {
    name: &'static str,
    key: &'static str,
    text: String,
    /// A moment, which stands in place of the text.
    time: Option<Timestamp>,
    /// Its colour, where it says whether all is well.
    class: &'static str,
}

/// A number above the list.
#[derive(Debug, Serialize)]
struct Total {
    name: &'static str,
    status: &'static str,
    count: usize,
}

/// The page, piece by piece.
pub(super) fn pieces(
    view: Arc<View>,
    stats: Option<Arc<Stats>>,
    id: EventId,
) -> impl Iterator<Item = String> + Send + 'static {
    let mut of_foot = Some(Arc::clone(&view));
    let mut of_head = Some((Arc::clone(&view), stats.clone()));
    let mut walk = Walk::new(view, stats, Filter::default());
    let (mut service, mut part) = (String::new(), 0_u64);
    std::iter::from_fn(move || {
        if let Some((view, stats)) = of_head.take() {
            return Some(head(&view, stats.as_deref(), id));
        }
        match walk.next() {
            Some(Piece::Service(head)) => {
                (service, part) = (head.name.clone(), 0);
                Some(begin(&head))
            }
            Some(Piece::Instances(instances)) => {
                part += 1;
                let instances = Value::from_serializable(&instances);
                let values =
                    [("service", Value::from(&*service)), ("part", Value::from(part)), ("instances", instances)];
                Some(render("rows.html", &values))
            }
            Some(Piece::End) => Some("</section>\n".to_owned()),
            None => of_foot.take().map(|view| foot(&view)),
        }
    })
}

fn head(view: &View, stats: Option<&Stats>, id: EventId) -> String {
    let mut status = StatusReport::new(view);
    let total_left_out = status.left_out.len() + status.more_left_out;
    let left_out: Vec<_> = status.left_out.drain(..).take(LEFT_OUT_SHOWN).collect();
    let (level, verdict) = match status.troubles.iter().map(|trouble| trouble.level).max() {
        None => ("ok", "All is well"),
        Some(Level::Note) => ("note", "All is well, with something to note"),
        Some(Level::Warning) => ("warning", "Running, with something to look at"),
        Some(Level::Error) => ("error", "Something is wrong"),
    };
    let count = |wanted: Status| status.instances_by_status.get(wanted.as_str()).copied().unwrap_or_default();
    let services = status.services_by_status.values().sum();
    let mut totals = vec![
        Total { name: "services", status: "services", count: services },
        Total { name: "instances", status: "instances", count: status.instances_by_status.values().sum() },
    ];
    let words = [Status::Up, Status::Draining, Status::Suspect, Status::Refused];
    totals.extend(words.map(|word| Total { name: word.as_str(), status: word.as_str(), count: count(word) }));
    let down = stats.map_or(0, |stats| down(view, stats));
    totals.push(Total { name: "down by HAProxy's check", status: "down", count: down });
    let values = [
        ("event_id", Value::from(id.to_string())),
        ("style", Value::from(STYLE.version())),
        ("script", Value::from(SCRIPT.version())),
        ("level", Value::from(level)),
        ("verdict", Value::from(verdict)),
        ("registry", Value::from_serializable(&registry_fields(&status.registry))),
        ("haproxy", Value::from_serializable(&haproxy_fields(&status.haproxy))),
        ("left_out", Value::from_serializable(&left_out)),
        ("total_left_out", Value::from(total_left_out as u64)),
        ("shown_left_out", Value::from(LEFT_OUT_SHOWN as u64)),
        ("totals", Value::from_serializable(&totals)),
        ("status", Value::from_serializable(&status)),
    ];
    render("head.html", &values)
}

/// How many of the instances that HAProxy has it sends nothing, since its check fails.
fn down(view: &View, stats: &Stats) -> usize {
    let is_down = |(name, server, address): (&str, &str, std::net::SocketAddr)| {
        stats.find(name, server, address).is_some_and(crate::report::ServerStat::is_down)
    };
    let all = view.services.values().flat_map(|service| {
        service.instances.iter().map(|instance| {
            (
                service.name.as_str(),
                instance.server.as_str(),
                std::net::SocketAddr::new(instance.address, instance.port),
            )
        })
    });
    all.filter(|one| is_down(*one)).count()
}

fn text(name: &'static str, key: &'static str, text: impl Into<String>) -> Field {
    Field { name, key, text: text.into(), time: None, class: "" }
}

fn time(name: &'static str, key: &'static str, time: Option<Timestamp>, none: &str) -> Field {
    Field { name, key, text: none.to_owned(), time, class: "" }
}

fn registry_fields(registry: &RegistryView) -> Vec<Field> {
    let store = match registry.store {
        StoreKind::Etcd => "etcd",
        StoreKind::Memory => "in memory",
    };
    let connection = match registry.connection {
        Connection::Connecting => Field { class: "", ..text(store, "connection", "connecting") },
        Connection::Connected => Field { class: "good", ..text(store, "connection", "connected") },
        Connection::Unreachable => Field { class: "bad", ..text(store, "connection", "unreachable") },
    };
    let mut fields = vec![
        connection,
        time("since", "since", Some(registry.since), ""),
        text("endpoints", "endpoints", registry.endpoints.join(", ")),
        text("directory", "prefix", registry.prefix.clone()),
        text("index", "index", registry.index.to_string()),
        time("last change", "last_change", registry.last_change, "none yet"),
        time("stale since", "stale_since", registry.stale_since, "not stale"),
    ];
    if !registry.only.is_empty() {
        fields.push(text("only", "only", registry.only.join(", ")));
        fields.push(text("instances outside", "outside", registry.outside.to_string()));
    }
    fields
}

fn haproxy_fields(haproxy: &HaproxyReport) -> Vec<Field> {
    let is_up = match haproxy.is_up {
        Some(true) => Field { class: "good", ..text("HAProxy", "is_up", "running") },
        Some(false) => Field { class: "bad", ..text("HAProxy", "is_up", "not running") },
        None => text("HAProxy", "is_up", "not known"),
    };
    let applied = haproxy.applied.as_ref();
    let reload = haproxy.last_reload.as_ref();
    let reloads = haproxy.reloads.iter().map(|(reason, count)| format!("{count} {}", reason.replace('_', " ")));
    let reloads = reloads.collect::<Vec<_>>().join(", ");
    vec![
        is_up,
        text("version", "version", haproxy.version.as_deref().unwrap_or("not known")),
        text("reached by", "way", haproxy.way.clone()),
        time("worker since", "worker_started", haproxy.worker_started, "not known"),
        time("applied", "applied", applied.map(|applied| applied.at), "not yet"),
        time("last reload", "last_reload", reload.map(|reload| reload.at), "none"),
        text("its reason", "reload_reason", reload.map(|reload| reload.reason.clone()).unwrap_or_default()),
        text("reloads", "reloads", if reloads.is_empty() { "none".to_owned() } else { reloads }),
    ]
}

fn begin(service: &ServiceHead) -> String {
    let shown = service.left_out.len().min(OF_SERVICE_SHOWN);
    let values = [
        ("why", Value::from_serializable(&service.left_out[..shown])),
        ("more", Value::from((service.left_out.len() - shown) as u64)),
        ("meta", Value::from(meta(service))),
        ("sum", Value::from(sum(service))),
        ("service", Value::from_serializable(service)),
    ];
    render("service.html", &values)
}

/// A service's settings in a line.
fn meta(service: &ServiceHead) -> String {
    let mut parts = vec![service.mode.clone()];
    let pairs = [
        ("", &service.host),
        ("", &service.path),
        ("port ", &service.listen.map(|port| port.to_string())),
        ("", &Some(service.balance.clone())),
        ("check ", &service.check),
        ("slowstart ", &service.slowstart),
        ("maxconn ", &service.maxconn.map(|most| most.to_string())),
    ];
    parts.extend(pairs.iter().filter_map(|(word, value)| value.as_ref().map(|value| format!("{word}{value}"))));
    if service.proto != "http" {
        parts.push(service.proto.clone());
    }
    if service.sticky {
        parts.push("sticky".to_owned());
    }
    parts.join(" · ")
}

/// A service's instances in a line.
fn sum(service: &ServiceHead) -> String {
    let of = |status: Status| {
        service.instances_by_status.get(status.as_str()).map(|count| format!("{count} {}", status.as_str()))
    };
    let parts: Vec<_> = Status::ALL.into_iter().filter_map(of).collect();
    if parts.is_empty() { "no instance".to_owned() } else { parts.join(" · ") }
}

fn foot(view: &View) -> String {
    let notes: Vec<_> = view.feed.iter().rev().take(NOTES).map(|note| NoteReport::new(note)).collect();
    render("foot.html", &[("notes", Value::from_serializable(&notes))])
}

fn render(template: &str, values: &[(&'static str, Value)]) -> String {
    let mut context = Context::new();
    for (name, value) in values {
        context.insert_value(*name, value.clone());
    }
    TEMPLATES.render(template, &context).unwrap_or_else(|error| {
        error!(%error, template, "a part of the page cannot be made");
        "<p>A part of this page could not be made; the log has the reason.</p>".to_owned()
    })
}

/// A moment as an element: how long ago it is, with the moment itself in its attributes. What it is made of needs no escape.
fn moment(text: &str) -> Value {
    let Ok(at) = text.parse::<Timestamp>() else { return Value::from("") };
    let at = at.round(jiff::Unit::Second).unwrap_or(at);
    Value::safe_string(&format!(
        "<time datetime=\"{at}\" title=\"{at}\">{}</time>",
        ago(Timestamp::now().duration_since(at))
    ))
}

/// How long ago, in one word. The script says it in the same way.
fn ago(since: SignedDuration) -> String {
    match since.as_secs() {
        ..1 => "now".to_owned(),
        seconds @ 1..60 => format!("{seconds} s"),
        seconds @ 60..3600 => format!("{} min", seconds / 60),
        seconds @ 3600..172_800 => format!("{} h", seconds / 3600),
        seconds => format!("{} d", seconds / 86_400),
    }
}

/// The class of what HAProxy says of a server.
fn health(server: &tera::Map) -> &'static str {
    let check = server.get(&"check".into()).and_then(Value::as_str).unwrap_or_default();
    if server.get(&"is_down".into()).and_then(Value::as_bool) == Some(true) {
        "no"
    } else if check.starts_with("UP") {
        "yes"
    } else {
        "off"
    }
}

/// What is still missing until it is ready. Whoever asks is told, also without the token: no foreign words, and no names.
pub(super) fn missing(view: &View) -> &'static str {
    if view.discoverer.template_error.is_some() {
        return "the template cannot be used";
    }
    if view.haproxy.error.is_some() {
        return "HAProxy has not taken the configuration";
    }
    match view.registry.connection {
        Connection::Connecting => "the registry has not answered yet",
        Connection::Unreachable => "the registry does not answer",
        Connection::Connected => "the first configuration is being applied",
    }
}
