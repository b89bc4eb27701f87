//! What is read from Docker and is not public otherwise, for the fuzzer (the member `fuzz`). Behind the feature `fuzz`: no program
//! has it.

use bollard::models::EventMessage;

use crate::docker::events::{self, Event};
use crate::service::{self, RuleError};

/// A rule of Traefik's as host names and a path.
///
/// # Errors
/// It cannot be said so.
pub fn rule(text: &str) -> Result<(Vec<String>, Option<String>), RuleError> {
    service::read_rule(text)
}

/// What an event of Docker's means; `None` where it is nothing to the registrar.
pub fn event(message: &EventMessage) -> Option<Event> {
    events::read(message)
}
