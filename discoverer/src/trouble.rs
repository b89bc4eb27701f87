//! What is wrong, in words, and what to do about it: one judgement for the page and for `discoverer status`. Pure.

use registry::StoreKind;
use serde::{Deserialize, Serialize};

use crate::report::{Connection, Status, StatusReport};

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
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
    /// What it is about: `registry`, `haproxy`, `template`, `configuration`, `left_out` or `services`.
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
            "The words below name the cause: mend it. It is tried again by itself.",
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
    for (wanted, words, advice) in [
        (
            Status::Empty,
            "no instance: where a rule leads to it, HAProxy answers 503",
            "It is listed as empty. discoverer explain NAME says where the way ends; on its host, registrar explain CONTAINER.",
        ),
        (Status::Draining, "only instances that drain", "Start another one before they end."),
        (Status::Suspect, "only instances whose keys have expired", "Look whether the registrars on their hosts run."),
    ] {
        let count = of(wanted);
        if count > 0 {
            let services = if count == 1 { "One service has".to_owned() } else { format!("{count} services have") };
            found.push(trouble(Level::Warning, "services", format!("{services} {words}."), None, advice));
        }
    }
    found.sort_by_key(|trouble| std::cmp::Reverse(trouble.level));
    found
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
