//! Questions for the fuzzer: see [`crate::fuzz`].

use super::hub::EventId;
use super::walk::Filter;

/// Reads a query.
pub(crate) fn filter(query: &str) -> Result<(), String> {
    let read = Filter::parse(query)?;
    assert_eq!(Filter::parse(query), Ok(read));
    Ok(())
}

/// Reads an event's id, and writes it.
pub(crate) fn event_id(text: &str) -> Option<String> {
    text.parse().ok().map(|id: EventId| id.to_string())
}
