//! Which text HAProxy should run: from the new templates, else from the last good ones, and without the services that
//! make it unusable. It writes only the candidate beside the file, for HAProxy to check.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use registry::ServiceName;
use tracing::error;

use crate::blame;
use crate::haproxy::{CheckError, Program};
use crate::model::{Instance, Service, Services};
use crate::output::{Output, OutputError};
use crate::render::{Surroundings, TemplateError, Templates};

/// Templates as they were read, or why they could not be; two are the same where they are one reading.
pub type Reading = Rc<Result<Templates, TemplateError>>;

/// What HAProxy should run: the newest state of the registry and of the template files.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// The services.
    pub services: Arc<Services>,
    /// The templates, or why there are none.
    pub templates: Reading,
}

/// Why there is no text to run.
#[derive(Debug, thiserror::Error)]
pub enum ComposeError {
    /// The template is to blame, and there was no good one before.
    #[error("template: {0}")]
    Template(TemplateError),
    /// HAProxy refuses the text.
    #[error("HAProxy refuses the file: {words}")]
    Refused {
        /// HAProxy's own words.
        words: String,
        /// The sections they name that could be services, each with what was said of it.
        sections: BTreeMap<ServiceName, String>,
    },
    /// HAProxy refuses the text, and by now the file as well that it took before.
    #[error(
        "HAProxy refuses the file, and now also the one that it took before: {words}; mend what it reads besides, such as a certificate"
    )]
    Beside {
        /// What it says of the one that it took before.
        words: String,
    },
    /// HAProxy could not be asked.
    #[error(transparent)]
    Check(CheckError),
    /// The candidate could not be written.
    #[error(transparent)]
    Output(#[from] OutputError),
}

impl ComposeError {
    /// Its kind, as metrics tell it.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Template(_) => "template",
            Self::Refused { .. } | Self::Beside { .. } | Self::Check(_) => "check",
            Self::Output(_) => "output",
        }
    }

    /// Whether the same input may do better later.
    pub fn may_pass(&self) -> bool {
        matches!(self, Self::Check(_) | Self::Output(_) | Self::Beside { .. })
    }
}

/// Remembers which templates are good and which services had to be left out.
#[derive(Debug)]
pub struct Composer {
    /// HAProxy's program; none where its version is not the running one, so that its check would say nothing.
    program: Option<Program>,
    output: Output,
    surroundings: Surroundings,
    /// The last templates whose text HAProxy took.
    good: Option<Reading>,
    /// What those got besides the services.
    good_surroundings: Surroundings,
    /// Templates whose text passed HAProxy's check and then could not be loaded.
    rejected: Option<Reading>,
    /// Services that were left out, as they were then, with the reason.
    set_aside: BTreeMap<ServiceName, (Arc<Service>, String)>,
    /// What was last said about a refused template or file, to say it once.
    said: Option<String>,
    /// Why the wanted templates are not in use.
    complaint: Option<String>,
}

impl Composer {
    /// A composer to whom no templates are known to be good yet.
    pub fn new(program: Option<Program>, output: Output, surroundings: Surroundings) -> Self {
        Self {
            program,
            output,
            good_surroundings: surroundings.clone(),
            surroundings,
            good: None,
            rejected: None,
            set_aside: BTreeMap::new(),
            said: None,
            complaint: None,
        }
    }

    /// What templates get besides the services.
    pub fn surroundings(&self) -> &Surroundings {
        &self.surroundings
    }

    /// New templates get these options from now on. Those that HAProxy took last keep theirs, so that they stay good: the
    /// templates are to be read again.
    pub fn set_options(&mut self, options: BTreeMap<String, String>) {
        self.surroundings.options = options;
    }

    /// What these templates get.
    fn surroundings_of(&self, templates: &Reading) -> &Surroundings {
        if self.is_good(templates) { &self.good_surroundings } else { &self.surroundings }
    }

    /// Why the templates that are wanted are not in use; none where they are.
    pub fn complaint(&self) -> Option<&str> {
        self.complaint.as_deref()
    }

    /// The services that are left out, with the reason.
    pub fn left_out(&self) -> impl Iterator<Item = (&ServiceName, &str)> {
        self.set_aside.iter().map(|(name, (_, reason))| (name, reason.as_str()))
    }

    /// Leaves a service out until it changes.
    pub fn set_aside(&mut self, service: &Arc<Service>, reason: String) {
        error!(service = %service.name, reason, "service left out");
        self.set_aside.insert(service.name.clone(), (Arc::clone(service), reason));
    }

    /// Takes a service that was left out back in, to try it again.
    pub fn take_back(&mut self, name: &ServiceName) {
        self.set_aside.remove(name);
    }

    /// To be called when HAProxy could not load a text of these templates: where there are good ones, those are used until
    /// the files change or [`Composer::try_rejected_again`]. Says whether there are.
    pub fn reject(&mut self, templates: &Reading, why: &str) -> bool {
        let can = self.good.is_some() && !self.is_good(templates);
        if can {
            self.complaint = Some(why.to_owned());
            self.rejected = Some(Rc::clone(templates));
        }
        can
    }

    /// Gives templates that could not be loaded another chance.
    pub fn try_rejected_again(&mut self) {
        self.rejected = None;
    }

    /// The wanted templates, or the good ones where the wanted could not be loaded.
    fn usable<'r>(&'r self, wanted: &'r Wanted) -> &'r Reading {
        let is_rejected = self.rejected.as_ref().is_some_and(|rejected| Rc::ptr_eq(rejected, &wanted.templates));
        self.good.as_ref().filter(|_| is_rejected).unwrap_or(&wanted.templates)
    }

    /// Whether these templates are the ones that HAProxy took last.
    pub fn is_good(&self, templates: &Reading) -> bool {
        self.good.as_ref().is_some_and(|good| Rc::ptr_eq(good, templates))
    }

    /// To be called when HAProxy runs a text of these templates. Says whether services that were left out because
    /// of other templates are to be tried again.
    pub fn took(&mut self, templates: &Reading, wanted: &Wanted) -> bool {
        if Rc::ptr_eq(templates, &wanted.templates) {
            (self.said, self.complaint) = (None, None);
        }
        if !self.is_good(templates) {
            self.good_surroundings = self.surroundings.clone();
        }
        let before = self.good.replace(Rc::clone(templates));
        let is_other = before.is_some_and(|before| !Rc::ptr_eq(&before, templates));
        let try_again = is_other && !self.set_aside.is_empty();
        if try_again {
            // What the old templates made of these services says nothing about the new ones.
            self.set_aside.clear();
        }
        try_again
    }

    /// The line of one server by itself, from its service's settings and the templates that HAProxy took last; none where
    /// it takes more than that partial to know it.
    pub fn server_line(&self, settings: &Service, instance: &Instance) -> Option<String> {
        if self.set_aside.contains_key(&settings.name) {
            return None;
        }
        self.good.as_ref()?.as_ref().as_ref().ok()?.render_server(settings, instance, &self.good_surroundings)
    }

    /// What the templates that HAProxy took last make of the services, whether they are the wanted ones or not; unchecked.
    pub fn good_text(&self, wanted: &Wanted) -> Option<String> {
        let templates = self.good.as_ref()?.as_ref().as_ref().ok()?;
        templates.render(&self.included(wanted), &self.good_surroundings).ok()
    }

    /// To be called when HAProxy turns out to be of another version: the program whose check says something, if any.
    pub fn check_with(&mut self, program: Option<Program>) {
        self.program = program;
    }

    /// The text that the templates which HAProxy took last make of the services, unchecked; none where they are
    /// not the wanted ones, or do not give a text.
    pub fn quick_text(&mut self, wanted: &Wanted) -> Option<String> {
        self.forget_changed(wanted);
        let templates = self.usable(wanted);
        if !self.is_good(templates) {
            return None;
        }
        let is_wanted = Rc::ptr_eq(templates, &wanted.templates);
        let templates = templates.as_ref().as_ref().ok()?;
        let text = if self.set_aside.is_empty() {
            templates.render(&wanted.services, &self.good_surroundings).ok()?
        } else {
            templates.render(&self.included(wanted), &self.good_surroundings).ok()?
        };
        if is_wanted {
            // What they could not make a text of is gone.
            self.complaint = None;
        }
        Some(text)
    }

    /// Finds a text that HAProxy takes, and leaves it prepared beside the file.
    pub async fn checked_text(&mut self, wanted: &Wanted) -> Result<(Arc<str>, Reading), ComposeError> {
        self.forget_changed(wanted);
        let mut templates = Rc::clone(self.usable(wanted));
        if let Some(good) = self.good.clone().filter(|good| !Rc::ptr_eq(good, &templates)) {
            // New templates have to take everything that the good ones do.
            match self.try_text(&self.included(wanted), &templates).await {
                Ok(text) => return Ok((text, templates)),
                Err(error) if error.may_pass() => return Err(error),
                Err(error) => {
                    self.complaint = Some(error.to_string());
                    self.say(&error);
                }
            }
            templates = good;
        }
        match self.try_text(&self.included(wanted), &templates).await {
            Ok(text) => return Ok((text, templates)),
            Err(error) if error.may_pass() => return Err(error),
            Err(error) => self.set_aside_guilty(wanted, &templates, error).await?,
        }
        // What the new templates were refused for may have been those services.
        if !Rc::ptr_eq(&templates, self.usable(wanted))
            && let Ok(text) = self.try_text(&self.included(wanted), &wanted.templates).await
        {
            return Ok((text, Rc::clone(&wanted.templates)));
        }
        Ok((self.try_text(&self.included(wanted), &templates).await?, templates))
    }

    /// A service that was left out is tried again when it is another one.
    fn forget_changed(&mut self, wanted: &Wanted) {
        self.set_aside.retain(|name, (then, _)| wanted.services.get(name) == Some(then));
    }

    /// Finds the services that are at fault and sets them aside; gives the error back where none is.
    async fn set_aside_guilty(
        &mut self,
        wanted: &Wanted,
        templates: &Reading,
        error: ComposeError,
    ) -> Result<(), ComposeError> {
        let included = self.included(wanted);
        let suspected = match &error {
            ComposeError::Refused { sections, .. } => sections.clone(),
            _ => BTreeMap::new(),
        };
        let ask = async |part: &Services| match self.try_text(part, templates).await {
            Ok(_) => Ok(()),
            Err(error) => Err(error.to_string()),
        };
        let blamed = blame::find(&included, &suspected, ask).await.unwrap_or_default();
        // Where every service is at fault, the template is: nothing served is worse than something stale.
        let is_everything = blamed.len() == included.len() && (included.len() > 1 || self.good.is_some());
        if blamed.is_empty() || is_everything {
            self.say(&error);
            return Err(error);
        }
        for (name, reason) in blamed {
            if let Some(service) = wanted.services.get(&name) {
                self.set_aside(service, reason);
            }
        }
        Ok(())
    }

    fn included(&self, wanted: &Wanted) -> Services {
        let is_in = |name: &ServiceName| !self.set_aside.contains_key(name);
        wanted.services.iter().filter(|(name, _)| is_in(name)).map(|(k, v)| (k.clone(), Arc::clone(v))).collect()
    }

    /// Renders, prepares the file and lets HAProxy check it.
    async fn try_text(&self, services: &Services, templates: &Reading) -> Result<Arc<str>, ComposeError> {
        let surroundings = self.surroundings_of(templates);
        let templates = templates.as_ref().as_ref().map_err(|error| ComposeError::Template(error.clone()))?;
        let text = templates.render(services, surroundings).map_err(ComposeError::Template)?.into();
        check(self.program.as_ref(), &self.output, &text).await?;
        Ok(text)
    }

    /// Says what is wrong with a template or a file, once.
    fn say(&mut self, error: &ComposeError) {
        let words = error.to_string();
        if self.said.as_ref() == Some(&words) {
            return;
        }
        if let ComposeError::Template(_) = error {
            self.complaint = Some(words.clone());
        }
        match error {
            ComposeError::Template(error) => error!(%error, "template error"),
            ComposeError::Refused { words, .. } => error!(output = words, "file refused"),
            other => error!(error = %other, "not applied"),
        }
        self.said = Some(words);
    }
}

/// Prepares a text beside the file and lets HAProxy check it.
pub async fn check(program: Option<&Program>, output: &Output, text: &Arc<str>) -> Result<(), ComposeError> {
    let candidate = output.prepare(Arc::clone(text)).await?;
    let Some(program) = program else { return Ok(()) };
    match program.check(candidate).await {
        Ok(()) => Ok(()),
        Err(CheckError::Refused { words, findings }) => {
            let mut sections = BTreeMap::new();
            for (line, said) in findings {
                if let Some(name) = section_name(text, line) {
                    sections.entry(name).or_insert(said);
                }
            }
            Err(ComposeError::Refused { words, sections })
        }
        Err(error) => Err(ComposeError::Check(error)),
    }
}

/// Puts a text of which HAProxy runs the servers in the place of the file that it took before, which is `filed`; where that is not
/// known, it is what lies there.
pub async fn replace(
    program: Option<&Program>,
    output: &Output,
    filed: Option<&str>,
    text: &Arc<str>,
) -> Result<(), ComposeError> {
    match check(program, output, text).await {
        Ok(()) => Ok(output.promote().await?),
        Err(error @ ComposeError::Refused { .. }) => {
            // What somebody has deleted or changed by hand says nothing of what is beside the file.
            let is_the_one_before = output.read().is_some_and(|lies| filed.is_none_or(|filed| filed == lies));
            let Some(program) = program.filter(|_| is_the_one_before) else { return Err(error) };
            match program.check(output.path()).await {
                Err(CheckError::Refused { words, .. }) => Err(ComposeError::Beside { words }),
                _ => Err(error),
            }
        }
        Err(error) => Err(error),
    }
}

/// The name of the section that a line (counted from 1) of the text lies in.
fn section_name(text: &str, line: usize) -> Option<ServiceName> {
    let before: Vec<&str> = text.lines().take(line).collect();
    let head = before.iter().rev().find(|line| !line.starts_with([' ', '\t', '#']) && !line.is_empty())?;
    head.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file that HAProxy takes, and three that it does not.
    const GOOD: &str = "defaults\n mode http\n timeout client 1s\nfrontend f\n bind 127.0.0.1:1\n";
    const BAD_BY_NOW: &str = "global\n bad by now\n";
    const BAD_BY_HAND: &str = "global\n bad by hand\n";
    const BAD_AND_NEW: &str = "global\n bad and new\n";

    #[tokio::test]
    async fn what_is_wrong_beside_the_file_is_to_blame_only_where_the_file_that_was_filed_is_refused_too() {
        let directory = tempfile::tempdir().unwrap();
        let program = Program::new("haproxy");
        let output = Output::new(directory.path().join("haproxy.cfg"));
        replace(Some(&program), &output, None, &GOOD.into()).await.expect("is haproxy here? apt-get install haproxy");
        for (lies, filed, is_beside) in [
            (Some(BAD_BY_NOW), Some(BAD_BY_NOW), true),
            (Some(BAD_BY_NOW), None, true),
            (Some(GOOD), Some(GOOD), false),
            (Some(BAD_BY_HAND), Some(GOOD), false),
            (None, Some(GOOD), false),
            (None, None, false),
        ] {
            match lies {
                Some(text) => std::fs::write(output.path(), text).unwrap(),
                None => drop(std::fs::remove_file(output.path())),
            }
            let result = replace(Some(&program), &output, filed, &BAD_AND_NEW.into()).await;
            match (&result, is_beside) {
                (Err(ComposeError::Beside { .. }), true) | (Err(ComposeError::Refused { .. }), false) => {}
                _ => panic!("{lies:?}, filed {filed:?}: {result:?}"),
            }
        }
    }
}
