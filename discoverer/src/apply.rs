//! Brings HAProxy to what is wanted: render, let HAProxy check, write, reload. One task owns all of it, and works on
//! the newest wish only.
//!
//! Whatever fails, HAProxy goes on with the last good file, and the failure is named.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use registry::ServiceName;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{error, info, warn};

use crate::blame;
use crate::haproxy::{CheckError, Program, ReloadError, Reloader, ask};
use crate::model::{Service, Services};
use crate::output::{Output, OutputError};
use crate::render::{Surroundings, TemplateError, Templates};

/// Templates as they were read, or why they could not be; two are the same where they are one reading.
pub type Reading = Arc<Result<Templates, TemplateError>>;

/// The first pause after a failure that another try may mend; it doubles.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest pause after a failure.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// The state of 10,000 servers takes 55 ms.
const STATE_LIMIT: Duration = Duration::from_secs(3);

/// What HAProxy should run: the newest state of the registry and of the template files.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// The services.
    pub services: Arc<Services>,
    /// The templates, or why there are none.
    pub templates: Reading,
}

impl Wanted {
    /// Whether it is the same state of both.
    fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.services, &other.services) && Arc::ptr_eq(&self.templates, &other.templates)
    }
}

/// Why HAProxy does not run what is wanted.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The template is to blame, and there was no good one before.
    #[error("template: {0}")]
    Template(TemplateError),
    /// HAProxy refuses the text.
    #[error("HAProxy refuses the file: {words}")]
    Refused {
        /// HAProxy's own words.
        words: String,
        /// The sections they name that could be services.
        sections: Vec<ServiceName>,
    },
    /// HAProxy could not be asked.
    #[error(transparent)]
    Check(CheckError),
    /// The file could not be written.
    #[error(transparent)]
    Output(#[from] OutputError),
    /// HAProxy did not take the file.
    #[error(transparent)]
    Reload(#[from] ReloadError),
}

impl ApplyError {
    /// Whether the same input may do better later.
    fn may_pass(&self) -> bool {
        matches!(self, Self::Check(_) | Self::Output(_) | Self::Reload(_))
    }
}

/// What was applied.
#[derive(Debug, PartialEq, Eq)]
pub enum Applied {
    /// HAProxy ran it already.
    Nothing,
    /// HAProxy runs the new file.
    Reloaded,
}

/// What applying needs to know.
#[derive(Debug)]
pub struct ApplyConfig {
    /// HAProxy's program; none where its version is not the running one, so that its check would say nothing.
    pub program: Option<Program>,
    /// The file.
    pub output: Output,
    /// The way to make HAProxy read it.
    pub reloader: Reloader,
    /// What templates get besides the services.
    pub surroundings: Surroundings,
    /// The least time between two reloads: each leaves an old worker that finishes its requests.
    pub min_interval: Duration,
}

/// Owns the file and the way to HAProxy.
#[derive(Debug)]
pub struct Applier {
    config: ApplyConfig,
    /// The last templates whose text HAProxy took.
    good: Option<Reading>,
    /// Services that were left out, as they were then, with the reason.
    set_aside: BTreeMap<ServiceName, (Arc<Service>, String)>,
    /// The text that HAProxy runs, as far as we know.
    running: Option<String>,
    /// What was last said about a refused template or file, to say it once.
    said: Option<String>,
}

impl Applier {
    /// An applier that does not know yet what HAProxy runs, so that its first text is always loaded.
    pub fn new(config: ApplyConfig) -> Self {
        Self { config, good: None, set_aside: BTreeMap::new(), running: None, said: None }
    }

    /// Follows what is wanted until nobody wants anything any more.
    pub async fn run(mut self, mut wanted: watch::Receiver<Option<Wanted>>) {
        let mut tried: Option<Wanted> = None;
        let mut retry_at = None;
        let mut pause = FIRST_PAUSE;
        loop {
            let is_new = |newest: &Option<Wanted>| match (newest, &tried) {
                (Some(newest), Some(tried)) => !newest.is_same(tried),
                (newest, _) => newest.is_some(),
            };
            tokio::select! {
                found = wanted.wait_for(is_new) => if found.is_err() { return },
                () = until(retry_at) => {}
            }
            let Some(newest) = wanted.borrow_and_update().clone() else { continue };
            retry_at = None;
            let rest = match self.apply(&newest).await {
                Ok(_) => {
                    pause = FIRST_PAUSE;
                    self.config.min_interval
                }
                Err(error) => {
                    let (again, rest) = match error.may_pass() {
                        // Another state of the registry will not mend a disk or a port: wait, then take the newest.
                        true => (pause, pause),
                        false => (LONGEST_PAUSE, self.config.min_interval),
                    };
                    let message = if matches!(error, ApplyError::Reload(_)) { "reload failed" } else { "not applied" };
                    error!(%error, again_in = ?again, "{message}");
                    retry_at = Some(Instant::now() + again);
                    pause = (pause * 2).min(LONGEST_PAUSE);
                    rest
                }
            };
            // A repaired template is worth another try at once.
            let is_repaired = |newer: &Option<Wanted>| {
                newer.as_ref().is_some_and(|newer| !Arc::ptr_eq(&newer.templates, &newest.templates))
            };
            let _ = tokio::time::timeout(rest, wanted.wait_for(is_repaired)).await;
            tried = Some(newest);
        }
    }

    /// Brings HAProxy to one state.
    pub async fn apply(&mut self, wanted: &Wanted) -> Result<Applied, ApplyError> {
        let (text, templates) = self.settle(wanted).await?;
        let applied = self.load(text, wanted).await?;
        if Arc::ptr_eq(&templates, &wanted.templates) {
            self.said = None;
        }
        let before = self.good.replace(Arc::clone(&templates));
        let is_other = before.is_some_and(|before| !Arc::ptr_eq(&before, &templates));
        if is_other && !self.set_aside.is_empty() {
            // What the old templates made of these services says nothing about the new ones.
            self.set_aside.clear();
            let (text, _) = self.settle(wanted).await?;
            return self.load(text, wanted).await;
        }
        Ok(applied)
    }

    /// The text that would be applied, checked by HAProxy.
    pub async fn preview(&mut self, wanted: &Wanted) -> Result<String, ApplyError> {
        Ok(self.settle(wanted).await?.0)
    }

    /// The services that are left out, with the reason.
    pub fn left_out(&self) -> impl Iterator<Item = (&ServiceName, &str)> {
        self.set_aside.iter().map(|(name, (_, reason))| (name, reason.as_str()))
    }

    /// Puts the prepared text in place and makes HAProxy read it.
    async fn load(&mut self, text: String, wanted: &Wanted) -> Result<Applied, ApplyError> {
        if self.running.as_ref() == Some(&text) {
            return Ok(Applied::Nothing);
        }
        let before = self.running.clone().or_else(|| self.config.output.read());
        self.config.output.promote()?;
        self.save_state().await;
        if let Err(error) = self.config.reloader.reload().await {
            // Whoever starts HAProxy next must find a file that it takes.
            if let Some(before) = before {
                self.config.output.prepare(&before)?;
                self.config.output.promote()?;
            }
            return Err(error.into());
        }
        let instances: usize = wanted.services.values().map(|service| service.instances.len()).sum();
        info!(services = wanted.services.len(), instances, left_out = self.set_aside.len(), "configuration applied");
        self.running = Some(text);
        Ok(Applied::Reloaded)
    }

    /// Finds a text that HAProxy takes, from the new templates, else from the last good ones, and without the
    /// services that HAProxy refuses; leaves it prepared beside the file.
    async fn settle(&mut self, wanted: &Wanted) -> Result<(String, Reading), ApplyError> {
        // A service that was left out is tried again when it is another one.
        self.set_aside.retain(|name, (then, _)| wanted.services.get(name) == Some(then));
        let mut templates = Arc::clone(&wanted.templates);
        if let Some(good) = self.good.clone().filter(|good| !Arc::ptr_eq(good, &templates)) {
            // New templates have to take everything that the good ones do.
            match self.try_text(&self.included(wanted), &templates).await {
                Ok(text) => return Ok((text, templates)),
                Err(error) if error.may_pass() => return Err(error),
                Err(error) => self.say(&error),
            }
            templates = good;
        }
        match self.try_text(&self.included(wanted), &templates).await {
            Ok(text) => return Ok((text, templates)),
            Err(error) if error.may_pass() => return Err(error),
            Err(error) => self.set_aside_guilty(wanted, &templates, error).await?,
        }
        Ok((self.try_text(&self.included(wanted), &templates).await?, templates))
    }

    /// Finds the services that are at fault and sets them aside; gives the error back where none is.
    async fn set_aside_guilty(
        &mut self,
        wanted: &Wanted,
        templates: &Reading,
        error: ApplyError,
    ) -> Result<(), ApplyError> {
        let included = self.included(wanted);
        let suspected = self.suspected(&included, &error);
        let ask = async |part: &Services| match self.try_text(part, templates).await {
            Ok(_) => Ok(()),
            Err(error) => Err(error.to_string()),
        };
        let blamed = blame::find(&included, &suspected, ask).await.unwrap_or_default();
        // Where every service is at fault, the template is: nothing served is worse than something stale.
        let is_everything = blamed.len() == included.len() && (included.len() > 1 || self.running.is_some());
        if blamed.is_empty() || is_everything {
            self.say(&error);
            return Err(error);
        }
        for (name, reason) in blamed {
            error!(service = %name, reason, "service left out");
            if let Some(service) = wanted.services.get(&name) {
                self.set_aside.insert(name, (Arc::clone(service), reason));
            }
        }
        Ok(())
    }

    fn included(&self, wanted: &Wanted) -> Services {
        let is_in = |name: &ServiceName| !self.set_aside.contains_key(name);
        wanted.services.iter().filter(|(name, _)| is_in(name)).map(|(k, v)| (k.clone(), Arc::clone(v))).collect()
    }

    /// Renders, prepares the file and lets HAProxy check it.
    async fn try_text(&self, services: &Services, templates: &Reading) -> Result<String, ApplyError> {
        let templates = templates.as_ref().as_ref().map_err(|error| ApplyError::Template(error.clone()))?;
        let text = templates.render(services, &self.config.surroundings).map_err(ApplyError::Template)?;
        if self.running.as_ref() == Some(&text) {
            return Ok(text);
        }
        let candidate = self.config.output.prepare(&text)?;
        let Some(program) = &self.config.program else { return Ok(text) };
        match program.check(candidate).await {
            Ok(()) => Ok(text),
            Err(CheckError::Refused { words, lines }) => {
                let mut sections: Vec<_> = lines.iter().filter_map(|&line| section_name(&text, line)).collect();
                sections.sort();
                sections.dedup();
                Err(ApplyError::Refused { words, sections })
            }
            Err(error) => Err(ApplyError::Check(error)),
        }
    }

    /// The services in whose sections HAProxy found the errors.
    fn suspected(&self, included: &Services, error: &ApplyError) -> Vec<ServiceName> {
        let ApplyError::Refused { sections, .. } = error else { return Vec::new() };
        sections.iter().filter(|name| included.contains_key(*name)).cloned().collect()
    }

    /// Says what is wrong with a template or a file, once.
    fn say(&mut self, error: &ApplyError) {
        let words = error.to_string();
        if self.said.as_ref() == Some(&words) {
            return;
        }
        match error {
            ApplyError::Template(error) => error!(%error, "template error"),
            ApplyError::Refused { words, .. } => error!(output = words, "file refused"),
            other => error!(error = %other, "not applied"),
        }
        self.said = Some(words);
    }

    /// Keeps the servers' health over the reload: a new worker would take dead ones for alive.
    async fn save_state(&self) {
        let haproxy = &self.config.surroundings.haproxy;
        let (Some(socket), Some(file)) = (&haproxy.runtime_socket, &haproxy.state_file) else { return };
        let file = Output::new(file);
        let state = match ask(socket, "show servers state", STATE_LIMIT).await {
            Ok(state) => state,
            // Before HAProxy's first start there is nothing to keep; a file with a version only spares its warning.
            Err(_) if file.read().is_none() => "1\n".to_owned(),
            Err(_) => return,
        };
        if let Err(error) = file.prepare(&state).and_then(|_| file.promote()) {
            warn!(%error, "servers' state not kept over the reload");
        }
    }
}

impl fmt::Display for Applied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nothing => "HAProxy runs it already",
            Self::Reloaded => "HAProxy runs the new file",
        })
    }
}

/// The name of the section that a line (counted from 1) of the text lies in.
fn section_name(text: &str, line: usize) -> Option<ServiceName> {
    let before: Vec<&str> = text.lines().take(line).collect();
    let head = before.iter().rev().find(|line| !line.starts_with([' ', '\t', '#']) && !line.is_empty())?;
    head.split_whitespace().nth(1)?.parse().ok()
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
