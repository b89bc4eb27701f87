//! What is wrong, in words, and what to do about it: one judgement for the page and for `discoverer status`. Pure.

use observe::answer::command;
use registry::StoreKind;
use serde::{Deserialize, Serialize};

use crate::options::UnreadOption;
use crate::report::{Connection, Status, StatusReport};

/// How many services are named in one sentence.
const NAMED: usize = 5;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// Nothing is wrong, and perhaps somebody has forgotten something.
    Note,
    /// What is served is right as far as that is known, but somebody should look.
    Warning,
    /// What is served may not be what is wanted.
    Error,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trouble {
    /// How bad it is.
    pub level: Level,
    /// What it is about: `registry`, `haproxy`, `template`, `configuration`, `left_out`, `services`,
    /// `routes` or `options`.
    pub about: String,
    /// What is wrong, in a sentence.
    pub what: String,
    /// The words of etcd, HAProxy or the template engine: hostile text.
    pub words: Option<String>,
    /// What to do.
    pub advice: String,
}

fn trouble(level: Level, about: &str, what: impl Into<String>, words: Option<&String>, advice: &str) -> Trouble {
    Trouble { level, about: about.to_owned(), what: what.into(), words: words.cloned(), advice: advice.to_owned() }
}

/// All that is wrong, the worst first.
pub fn troubles(status: &StatusReport) -> Vec<Trouble> {
    let mut found = Vec::new();
    let (registry, haproxy) = (&status.registry, &status.haproxy);
    // Before the first success there is nothing good to go on with: HAProxy may run what an earlier process gave it, or not run.
    let goes_on =
        |words: &'static str| if status.is_ready { words } else { "This process has given HAProxy nothing yet." };
    match registry.connection {
        Connection::Connected => {}
        Connection::Connecting if registry.store == StoreKind::Memory => found.push(trouble(
            Level::Warning,
            "registry",
            "Nothing is registered before the containers were looked at. HAProxy keeps what it has.",
            registry.error.as_ref(),
            "Wait a moment; if it stays so, look whether Docker answers at --docker.",
        )),
        Connection::Connecting => found.push(trouble(
            Level::Warning,
            "registry",
            "The registry has not answered yet.",
            registry.error.as_ref(),
            "Wait a moment; if it stays so, look whether etcd runs at these endpoints.",
        )),
        Connection::Unreachable => found.push(trouble(
            Level::Error,
            "registry",
            format!("The registry does not answer. {}", goes_on("HAProxy keeps what it has.")),
            registry.error.as_ref(),
            "Look whether etcd runs, and whether it is reached from here. Nothing that is served is removed meanwhile.",
        )),
    }
    if registry.docker_error.is_some() {
        found.push(trouble(
            Level::Error,
            "registry",
            "Docker does not tell which containers run. What is registered stays.",
            registry.docker_error.as_ref(),
            "Look whether Docker runs, and whether this process may open --docker. It is tried again by itself.",
        ));
    }
    if let Some(error) = &status.discoverer.template_error {
        found.push(trouble(
            Level::Error,
            "template",
            format!("The template cannot be used. {}", goes_on("The last good one goes on.")),
            Some(error),
            "Repair the template's file; it is read again by itself.",
        ));
    }
    if let Some(error) = &status.discoverer.config_error {
        found.push(trouble(
            Level::Error,
            "configuration",
            "The configuration cannot be used. The former one goes on.",
            Some(error),
            "Repair the file of --config; it is read again by itself. A restart would fail until then.",
        ));
    }
    if haproxy.is_up == Some(false) {
        found.push(trouble(
            Level::Error,
            "haproxy",
            "HAProxy does not run.",
            haproxy.error.as_ref(),
            "Look into its log. Under --supervise it is started again by itself.",
        ));
    } else if haproxy.error.is_some() {
        found.push(trouble(
            Level::Error,
            "haproxy",
            format!("HAProxy does not run what is wanted. {}", goes_on("It serves the last good state.")),
            haproxy.error.as_ref(),
            "The error names the cause: mend it. It is tried again by itself.",
        ));
    } else if !status.is_ready {
        found.push(trouble(
            Level::Warning,
            "haproxy",
            "HAProxy has had no configuration of this process yet.",
            None,
            "Wait until the registry has answered and the template is read.",
        ));
    }
    if haproxy.unfiled.is_some() {
        found.push(trouble(
            Level::Error,
            "haproxy",
            "The file does not hold what HAProxy runs. An HAProxy that is started anew begins with an older state.",
            haproxy.unfiled.as_ref(),
            "The error names the cause: mend it. It is tried again by itself.",
        ));
    }
    if haproxy.distrust.is_some() {
        found.push(trouble(
            Level::Warning,
            "haproxy",
            "HAProxy's runtime API is not used until the next reload.",
            haproxy.distrust.as_ref(),
            "Nothing to do: changes go by reloads meanwhile.",
        ));
    }
    let count = status.left_out.len() + status.more_left_out;
    if count > 0 {
        let what = if count == 1 {
            "One thing in the registry is left out.".to_owned()
        } else {
            format!("{count} things in the registry are left out.")
        };
        let advice = "See what is left out, and why; mend the labels or the key.";
        found.push(trouble(Level::Warning, "left_out", what, None, advice));
    }
    let of = |wanted: Status| status.services_by_status.get(wanted.as_str()).copied().unwrap_or_default();
    let explain = format!(
        "It is listed as empty. {} NAME says where the way ends; on its host, {} CONTAINER.",
        command("discoverer", "explain"),
        command("registrar", "explain")
    );
    for (wanted, words, advice) in [
        (Status::Empty, "no instance: where a rule leads to it, HAProxy answers 503", explain.as_str()),
        (Status::Draining, "only instances that drain", "Start another one before they end."),
        (Status::Suspect, "only instances whose keys have expired", "Look whether the registrars on their hosts run."),
    ] {
        let count = of(wanted);
        if count > 0 {
            let services = if count == 1 { "One service has".to_owned() } else { format!("{count} services have") };
            found.push(trouble(Level::Warning, "services", format!("{services} {words}."), None, advice));
        }
    }
    found.extend(unrouted(&status.unrouted));
    found.extend(status.discoverer.unread_options.iter().take(NAMED).map(unread));
    found.sort_by_key(|trouble| std::cmp::Reverse(trouble.level));
    found
}

fn unread(UnreadOption { name, meant }: &UnreadOption) -> Trouble {
    let what = format!("No template reads the option {name} of --set: it has no effect.");
    let meant = if meant.is_empty() { String::new() } else { format!("Is one of these meant: {}? ", meant.join(", ")) };
    let advice = format!("{meant}docs/template-context.md lists those of the shipped template.");
    trouble(Level::Note, "options", what, None, &advice)
}

/// Services that no request can come to: it may be meant so, of a database for instance.
fn unrouted(names: &[String]) -> Option<Trouble> {
    let shown = names.iter().take(NAMED).map(String::as_str).collect::<Vec<_>>().join(", ");
    let what = match names.len() {
        0 => return None,
        1 => format!("No rule leads to service {shown}: no request comes to it."),
        count if count > NAMED => {
            format!("No rule leads to {count} services: no request comes to {shown} and {} more.", count - NAMED)
        }
        _ => format!("No rule leads to services {shown}: no request comes to them."),
    };
    let advice = "Give the containers a label SERVICE_HOST or SERVICE_PATH; for TCP, SERVICE_MODE=tcp and SERVICE_LISTEN. One service may get \
                  what no rule takes: --set default_service=NAME. Where it is meant so, there is nothing to do; SERVICE_IGNORE keeps a \
                  container out of the registry.";
    Some(trouble(Level::Note, "routes", what, None, advice))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::explain::sample;

    #[test]
    fn a_registry_in_memory_waits_for_docker_and_not_for_etcd() {
        let mut status = sample::report().status;
        status.registry.connection = Connection::Connecting;
        assert!(troubles(&status)[0].advice.contains("etcd"));
        status.registry.store = StoreKind::Memory;
        let [trouble] = &troubles(&status)[..] else { panic!("{status:?}") };
        assert!(trouble.advice.contains("--docker") && !trouble.advice.contains("etcd"), "{trouble:?}");
    }

    #[test]
    fn an_option_that_no_template_reads_is_a_note_with_what_may_be_meant() {
        let mut status = sample::report().status;
        let option = |meant: &[&str]| UnreadOption {
            name: "http_bnd".to_owned(),
            meant: meant.iter().map(|&name| name.to_owned()).collect(),
        };
        status.discoverer.unread_options = vec![option(&["http_bind"]), option(&[])];
        let [one, other] = &troubles(&status)[..] else { panic!("{status:?}") };
        assert_eq!((one.level, one.about.as_str()), (Level::Note, "options"));
        assert!(
            one.what.contains("option http_bnd of --set")
                && one.advice.starts_with("Is one of these meant: http_bind? ")
        );
        assert!(other.advice.starts_with("docs/"), "{other:?}");
    }

    #[test]
    fn services_without_a_rule_are_a_note_that_names_them() {
        let told = |names: &[&str]| {
            let mut status = sample::report().status;
            status.unrouted = names.iter().map(|&name| name.to_owned()).collect();
            troubles(&status).into_iter().map(|trouble| (trouble.level, trouble.what)).collect::<Vec<_>>()
        };
        assert_eq!(told(&[]), []);
        let one = "No rule leads to service db: no request comes to it.";
        assert_eq!(told(&["db"]), [(Level::Note, one.to_owned())]);
        assert!(told(&["a", "b"])[0].1.contains("services a, b: no request comes to them."));
        assert!(
            told(&["a", "b", "c", "d", "e", "f", "g"])[0]
                .1
                .contains("to 7 services: no request comes to a, b, c, d, e and 2 more.")
        );
    }

    #[test]
    fn before_the_first_success_nothing_good_goes_on() {
        type Change = fn(&mut StatusReport);
        let cases: [(Change, &str); 3] = [
            (|status| status.registry.connection = Connection::Unreachable, "HAProxy keeps what it has."),
            (|status| status.discoverer.template_error = Some("line 3".to_owned()), "The last good one goes on."),
            (|status| status.haproxy.error = Some("no such luck".to_owned()), "It serves the last good state."),
        ];
        for (change, goes_on) in cases {
            let mut status = sample::report().status;
            change(&mut status);
            assert!(troubles(&status)[0].what.ends_with(goes_on), "{status:?}");
            status.is_ready = false;
            let what = troubles(&status)[0].what.clone();
            assert!(what.ends_with("This process has given HAProxy nothing yet."), "{what}");
        }
    }
}
