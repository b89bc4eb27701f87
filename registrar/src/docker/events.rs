//! What happens to containers, as Docker tells it: events as types, and the task that follows their stream.
//!
//! Events are hints. The stream may end, go deaf or leave something out: it is opened anew from the last event on, and
//! who is told so lists the containers and compares.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bollard::models::{EventMessage, EventMessageTypeEnum};
use futures_util::StreamExt;
use jiff::Timestamp;
use registry::watch::Backoff;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};
use tracing::debug;

use super::{Client, Docker, DockerError, Unread, no_answer};

/// A container's whole id.
pub type ContainerId = Arc<str>;

/// The events that are asked for. Those of checks and of commands in containers come in great numbers, and are not.
pub(super) const ASKED_FOR: [&str; 13] = [
    "start",
    "restart",
    "die",
    "kill",
    "stop",
    "pause",
    "unpause",
    "rename",
    "update",
    "health_status",
    "destroy",
    "connect",
    "disconnect",
];

/// After this long without an event the stream is opened anew: it may have gone deaf.
const IDLE_LIMIT: Duration = Duration::from_secs(120);
/// The pauses while Docker cannot be asked: it is back in seconds after a restart.
const PAUSES: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));
/// A stream that lived this long was no failure.
pub(crate) const WELL_AFTER: Duration = Duration::from_secs(5);
/// For so long after the opening of a stream Docker may be telling of what happened before. What comes later is of now,
/// whatever a clock that was set back makes of it.
const CATCHES_UP: Duration = Duration::from_secs(5);

/// Something that happened to a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// To which.
    pub container: ContainerId,
    /// What.
    pub what: What,
    /// Where it happened before the stream was opened: what is known from elsewhere may be newer.
    pub late: Option<Late>,
}

/// When something happened that is told late.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Late {
    /// When.
    pub at: Timestamp,
    /// How long ago that is.
    pub ago: Duration,
}

/// What happens to a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// It runs now.
    Start,
    /// A signal was sent to its process: its number, where Docker says it.
    Kill(Option<i32>),
    /// It runs no more.
    Die,
    /// It stands still.
    Pause,
    /// It goes on.
    Unpause,
    /// Its HEALTHCHECK says something new.
    Health(Healthcheck),
    /// Something else of it changed: its name, a network.
    Changed,
}

/// What a HEALTHCHECK says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Healthcheck {
    /// Not yet anything.
    Starting,
    /// It is well.
    Healthy,
    /// It is not.
    Unhealthy,
}

/// What the follower tells.
#[derive(Debug)]
pub enum News {
    /// The stream is open: what happened before is in the list of containers.
    Open(Client),
    /// Something happened.
    Event(Event),
    /// The stream ended; it is opened again.
    Lost(DockerError),
}

/// Follows the stream for ever, or until nobody listens. It begins with what happened in the time `before` its start, as
/// far as Docker still knows that.
pub async fn follow(docker: Docker, before: Duration, news: mpsc::Sender<News>) {
    let mut seen = Seen::since(now_in_nanos().saturating_sub(nanos(before)));
    let mut pause = Backoff::new(PAUSES.0, PAUSES.1);
    loop {
        let begun = Instant::now();
        let ended = match docker.connect().await {
            Ok(client) => listen(client, &mut seen, &news).await,
            Err(error) => Some(error),
        };
        if begun.elapsed() >= WELL_AFTER {
            pause.reset();
        }
        if let Some(error) = ended {
            if news.send(News::Lost(error)).await.is_err() {
                return;
            }
            sleep(pause.pause()).await;
        }
        if news.is_closed() {
            return;
        }
    }
}

/// How far the events were seen, in nanoseconds of Unix time.
#[derive(Debug)]
struct Seen {
    until: i64,
    /// What was seen of that very moment: a stream that is opened anew begins with it.
    last: Vec<(ContainerId, What)>,
}

impl Seen {
    fn since(until: i64) -> Self {
        Self { until, last: Vec::new() }
    }

    /// Whether that was seen before. A moment before the last one is none to judge by: the clock may have been set back,
    /// and Docker repeats nothing but what was asked for.
    fn knows(&mut self, event: &Event, at: i64) -> bool {
        if at > self.until {
            *self = Self::since(at);
        }
        let this = (Arc::clone(&event.container), event.what);
        if at < self.until {
            return false;
        }
        let is_known = self.last.contains(&this);
        if !is_known {
            self.last.push(this);
        }
        is_known
    }
}

/// Hands on the events of one stream. `None` where it is to be opened anew at once.
async fn listen(client: Client, seen: &mut Seen, news: &mpsc::Sender<News>) -> Option<DockerError> {
    let (opened, opened_at) = (Instant::now(), now_in_nanos());
    // Docker keeps its last events, so that those between this moment and the opening of the stream come too.
    let mut stream = client.events(format!("{}.{:09}", seen.until / 1_000_000_000, seen.until % 1_000_000_000));
    let socket = client.socket.clone();
    news.send(News::Open(client)).await.ok()?;
    loop {
        let message = match timeout(IDLE_LIMIT, stream.next()).await {
            Err(_) => return None,
            Ok(None) => {
                let ended = std::io::Error::other("it ended its stream of events");
                return Some(no_answer(&socket, &ended));
            }
            Ok(Some(Err(Unread { error, is_for_ever }))) => {
                // It must not come again.
                if is_for_ever {
                    *seen = Seen::since(now_in_nanos().max(seen.until));
                }
                return Some(error);
            }
            Ok(Some(Ok(message))) => message,
        };
        let Some(mut event) = read(&message) else { continue };
        let at = message.time_nano.or_else(|| message.time?.checked_mul(1_000_000_000));
        if let Some(at) = at {
            let is_known = seen.knows(&event, at);
            let ago = u64::try_from(opened_at.saturating_sub(at)).ok().map(Duration::from_nanos);
            event.late = ago
                .filter(|ago| !ago.is_zero() && opened.elapsed() < CATCHES_UP)
                .and_then(|ago| Some(Late { at: Timestamp::from_nanosecond(at.into()).ok()?, ago }));
            // Only what is told late can have been told before.
            if is_known && event.late.is_some() {
                continue;
            }
        }
        debug!(container = %event.container, what = ?event.what, "Docker event");
        news.send(News::Event(event)).await.ok()?;
    }
}

/// What a message means. `None` where it is nothing to the registrar.
pub(crate) fn read(message: &EventMessage) -> Option<Event> {
    let actor = message.actor.as_ref()?;
    let attribute = |name: &str| actor.attributes.as_ref()?.get(name).map(String::as_str);
    if message.typ == Some(EventMessageTypeEnum::NETWORK) {
        return Some(Event { container: attribute("container")?.into(), what: What::Changed, late: None });
    }
    let what = match message.action.as_deref()? {
        "start" => What::Start,
        "die" | "destroy" => What::Die,
        "kill" => What::Kill(attribute("signal").and_then(signal_number)),
        "pause" => What::Pause,
        "unpause" => What::Unpause,
        "restart" | "stop" | "rename" | "update" => What::Changed,
        "health_status: healthy" => What::Health(Healthcheck::Healthy),
        "health_status: unhealthy" => What::Health(Healthcheck::Unhealthy),
        "health_status: starting" => What::Health(Healthcheck::Starting),
        // Podman says it in an attribute.
        "health_status" => What::Changed,
        _ => return None,
    };
    Some(Event { container: actor.id.as_deref()?.into(), what, late: None })
}

/// A signal as Docker takes it: a number, or a name with or without `SIG`, `RTMIN+3` included.
pub fn signal_number(text: &str) -> Option<i32> {
    if let Ok(number) = text.parse() {
        return Some(number);
    }
    let name = text.to_ascii_uppercase();
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    // As Linux numbers them for programs (signal(7)).
    let (first, last) = (34, 64);
    let realtime = |from: i32, rest: &str| {
        let by = if rest.is_empty() { 0 } else { rest.parse::<i32>().ok()? };
        from.checked_add(by).filter(|number| (first..=last).contains(number))
    };
    if let Some(rest) = name.strip_prefix("RTMIN") {
        return realtime(first, rest);
    }
    if let Some(rest) = name.strip_prefix("RTMAX") {
        return realtime(last, rest);
    }
    format!("SIG{name}").parse::<nix::sys::signal::Signal>().ok().map(|signal| signal as i32)
}

fn now_in_nanos() -> i64 {
    nanos(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
}

fn nanos(time: Duration) -> i64 {
    i64::try_from(time.as_nanos()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(text: &str) -> Option<Event> {
        read(&serde_json::from_str(text).unwrap())
    }

    fn of_container(action: &str, attributes: &str) -> Option<What> {
        let text = format!(
            r#"{{"Type":"container","Action":"{action}","Actor":{{"ID":"c1","Attributes":{attributes}}},"scope":"local","time":1,"timeNano":1000000001}}"#
        );
        event(&text).map(|event| event.what)
    }

    #[test]
    fn events_become_what_they_mean() {
        let cases = [
            ("start", Some(What::Start)),
            ("restart", Some(What::Changed)),
            ("die", Some(What::Die)),
            ("destroy", Some(What::Die)),
            ("pause", Some(What::Pause)),
            ("unpause", Some(What::Unpause)),
            ("rename", Some(What::Changed)),
            ("update", Some(What::Changed)),
            ("stop", Some(What::Changed)),
            ("create", None),
            ("exec_create: true", None),
            ("health_status: healthy", Some(What::Health(Healthcheck::Healthy))),
            ("health_status: unhealthy", Some(What::Health(Healthcheck::Unhealthy))),
        ];
        for (action, expected) in cases {
            assert_eq!(of_container(action, "{}"), expected, "{action}");
        }
        assert_eq!(of_container("kill", r#"{"signal":"15"}"#), Some(What::Kill(Some(15))));
        assert_eq!(of_container("kill", "{}"), Some(What::Kill(None)));
    }

    #[test]
    fn a_network_tells_which_container_it_means() {
        let text = r#"{"Type":"network","Action":"connect","Actor":{"ID":"n1","Attributes":{"container":"c1","name":"net","type":"bridge"}},"time":1,"timeNano":1}"#;
        assert_eq!(event(text), Some(Event { container: "c1".into(), what: What::Changed, late: None }));
        assert_eq!(event(r#"{"Type":"network","Action":"create","Actor":{"ID":"n1","Attributes":{}}}"#), None);
        assert_eq!(event(r#"{"Type":"container","Action":"die"}"#), None);
    }

    #[test]
    fn a_signal_is_a_number_or_a_name() {
        let cases = [
            ("15", Some(15)),
            ("SIGTERM", Some(15)),
            ("term", Some(15)),
            ("SIGQUIT", Some(3)),
            ("SIGRTMIN+3", Some(37)),
            ("RTMIN", Some(34)),
            ("RTMAX-1", Some(63)),
            ("RTMIN+2147483647", None),
            ("RTMAX+1", None),
            ("RTMIN-1", None),
            ("nonsense", None),
            ("RTMIN+x", None),
            ("", None),
        ];
        for (text, expected) in cases {
            assert_eq!(signal_number(text), expected, "{text}");
        }
    }

    #[test]
    fn what_was_seen_of_the_last_moment_is_not_seen_again_and_a_clock_set_back_hides_nothing() {
        let of = |container: &str, what| Event { container: container.into(), what, late: None };
        let mut seen = Seen::since(10);
        let cases = [
            ("c1", What::Start, 10, false),
            ("c1", What::Start, 20, false),
            ("c2", What::Start, 20, false),
            // The stream is opened anew.
            ("c1", What::Start, 20, true),
            ("c2", What::Start, 20, true),
            ("c3", What::Start, 20, false),
            // The clock is set back.
            ("c1", What::Die, 5, false),
            ("c1", What::Start, 6, false),
            ("c1", What::Die, 21, false),
            ("c1", What::Die, 21, true),
        ];
        for (at, (container, what, moment, known)) in cases.into_iter().enumerate() {
            assert_eq!(seen.knows(&of(container, what), moment), known, "{at}");
        }
    }
}
