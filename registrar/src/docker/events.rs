//! What happens to containers, as Docker tells it: events as types, and the task that follows their stream.
//!
//! Events are hints. The stream may end, go deaf or leave something out: it is opened anew from the last event on, and
//! who is told so lists the containers and compares.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bollard::models::{EventMessage, EventMessageTypeEnum};
use futures_util::StreamExt;
use registry::watch::Backoff;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};
use tracing::debug;

use super::{Client, Docker, DockerError, no_answer};

/// A container's whole id.
pub type ContainerId = Arc<str>;

/// The events that are asked for. Those of checks and of commands in containers come in great numbers, and are not.
pub(super) const ASKED_FOR: [&str; 14] = [
    "create",
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
const WELL_AFTER: Duration = Duration::from_secs(5);

/// Something that happened to a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// To which.
    pub container: ContainerId,
    /// What.
    pub what: What,
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

/// Follows the stream for ever, or until nobody listens.
pub async fn follow(docker: Docker, news: mpsc::Sender<News>) {
    let mut since = now_in_nanos();
    let mut pause = Backoff::new(PAUSES.0, PAUSES.1);
    loop {
        let begun = Instant::now();
        let ended = match docker.connect().await {
            Ok(client) => listen(client, &mut since, &news).await,
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

/// Hands on the events of one stream. `None` where it is to be opened anew at once.
async fn listen(client: Client, since: &mut i64, news: &mpsc::Sender<News>) -> Option<DockerError> {
    // Docker keeps its last events, so that those between this moment and the opening of the stream come too.
    let mut stream = client.events(format!("{}.{:09}", *since / 1_000_000_000, *since % 1_000_000_000));
    let socket = client.socket.clone();
    news.send(News::Open(client)).await.ok()?;
    loop {
        let message = match timeout(IDLE_LIMIT, stream.next()).await {
            Err(_) => return None,
            Ok(None) => {
                let ended = std::io::Error::other("it ended its stream of events");
                return Some(no_answer(&socket, &ended));
            }
            Ok(Some(Err(error))) => {
                // What cannot be read must not come again.
                if matches!(error, bollard::errors::Error::JsonDataError { .. }) {
                    *since = now_in_nanos();
                }
                return Some(no_answer(&socket, &error));
            }
            Ok(Some(Ok(message))) => message,
        };
        let at = message.time_nano.or_else(|| message.time?.checked_mul(1_000_000_000));
        if at.is_some_and(|at| at <= *since) {
            // A stream that is opened anew begins with the event that was seen last.
            continue;
        }
        *since = at.unwrap_or(*since);
        if let Some(event) = read(&message) {
            debug!(container = %event.container, what = ?event.what, "Docker event");
            news.send(News::Event(event)).await.ok()?;
        }
    }
}

/// What a message means. `None` where it is nothing to the registrar.
fn read(message: &EventMessage) -> Option<Event> {
    let actor = message.actor.as_ref()?;
    let attribute = |name: &str| actor.attributes.as_ref()?.get(name).map(String::as_str);
    if message.typ == Some(EventMessageTypeEnum::NETWORK) {
        return Some(Event { container: attribute("container")?.into(), what: What::Changed });
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
    Some(Event { container: actor.id.as_deref()?.into(), what })
}

/// A signal as Docker takes it: a number, or a name with or without `SIG`, `RTMIN+3` included.
pub fn signal_number(text: &str) -> Option<i32> {
    if let Ok(number) = text.parse() {
        return Some(number);
    }
    let name = text.to_ascii_uppercase();
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    let realtime = |from: i32, rest: &str| match rest {
        "" => Some(from),
        rest => Some(from + rest.parse::<i32>().ok()?),
    };
    // As Linux numbers them for programs (signal(7)).
    if let Some(rest) = name.strip_prefix("RTMIN") {
        return realtime(34, rest);
    }
    if let Some(rest) = name.strip_prefix("RTMAX") {
        return realtime(64, rest);
    }
    format!("SIG{name}").parse::<nix::sys::signal::Signal>().ok().map(|signal| signal as i32)
}

fn now_in_nanos() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_nanos()).unwrap_or(i64::MAX)
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
        assert_eq!(event(text), Some(Event { container: "c1".into(), what: What::Changed }));
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
            ("nonsense", None),
            ("RTMIN+x", None),
            ("", None),
        ];
        for (text, expected) in cases {
            assert_eq!(signal_number(text), expected, "{text}");
        }
    }
}
