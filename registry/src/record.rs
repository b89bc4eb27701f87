//! The value of an instance's key, read into a type or refused with a reason. Pure: no I/O.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// The largest value that is read, in bytes.
pub const VALUE_LIMIT: usize = 64 * 1024;
/// By how much a record may be longer when it is written again, in bytes: a time in another form of ISO 8601, and the status, which is
/// always written.
const GROWTH_LIMIT: usize = 128;
/// How many characters of what is wrong with a value are told.
const SHOWN_LIMIT: usize = 200;
/// The most characters an id, a name, a host or a tag may have.
pub(crate) const TEXT_LIMIT: usize = 256;
/// The most characters the value of an attribute may have.
const ATTRIBUTE_LIMIT: usize = 1024;
/// The most tags, and the most attributes, of one instance.
const COUNT_LIMIT: usize = 128;
/// HAProxy's highest weight (configuration manual, section 5.2, "weight").
pub const WEIGHT_LIMIT: u16 = 256;

/// Whether an instance takes new work.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// It does.
    #[default]
    Running,
    /// It finishes what it has and gets nothing new.
    Draining,
}

/// Why a value is no record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// Longer than [`VALUE_LIMIT`].
    #[error("its value has {0} bytes; at most {VALUE_LIMIT} are read")]
    TooLarge(usize),
    /// Neither `running` nor a JSON object.
    #[error("its value is neither \"running\" nor a JSON object")]
    Form,
    /// A JSON object with a field of another type, or cut short.
    #[error("its value is no record: {0}")]
    Json(String),
    /// A weight over HAProxy's limit.
    #[error("weight {0} is over {WEIGHT_LIMIT}")]
    Weight(u16),
    /// A text with a control character, or too long.
    #[error("{field} has a control character or more than {limit} characters")]
    Text {
        /// The field.
        field: String,
        /// How many characters it may have.
        limit: usize,
    },
    /// More tags or attributes than are read.
    #[error("more than {COUNT_LIMIT} {0}")]
    TooMany(&'static str),
}

impl RecordError {
    /// What serde says of a value, of which it may quote any length.
    pub(crate) fn json(error: &serde_json::Error) -> Self {
        Self::Json(error.to_string().chars().take(SHOWN_LIMIT).collect())
    }
}

/// What is known of one instance beyond its address. Every field is optional in etcd, unknown ones are ignored.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Record {
    /// Whether it takes new work.
    pub status: Status,
    /// It drains because its container was told to stop, and by nobody's wish beside that: its agent's note to itself,
    /// by which it tells its own word from an operator's. Written only where it is so.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub stopping: bool,
    /// The container's id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The id of the agent that wrote it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agent: Option<String>,
    /// The container's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The Docker host's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// The server's weight, 0 to 256.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight: Option<u16>,
    /// Free words, in the order given.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// Settings and free pairs.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub attributes: BTreeMap<String, String>,
    /// When the container was started.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub registered: Option<Timestamp>,
}

impl Record {
    /// The record that the value `running` stands for.
    pub fn running() -> Self {
        Self::default()
    }

    /// Reads a value: `running`, or one JSON object.
    pub fn parse(value: &str) -> Result<Self, RecordError> {
        if value.len() > VALUE_LIMIT {
            return Err(RecordError::TooLarge(value.len()));
        }
        let value = value.trim();
        if value == "running" {
            return Ok(Self::running());
        }
        // serde would also read a struct from a JSON array, by position.
        if !value.starts_with('{') {
            return Err(RecordError::Form);
        }
        let record: Self = serde_json::from_str(value).map_err(|error| RecordError::json(&error))?;
        record.check()?;
        if value.len() + GROWTH_LIMIT > VALUE_LIMIT {
            record.check_length()?;
        }
        Ok(record)
    }

    /// The value to write: `running` where nothing else is known, else the JSON object.
    pub fn to_value(&self) -> String {
        if *self == Self::running() {
            return "running".to_owned();
        }
        serde_json::to_string(self).unwrap_or_else(|_| "running".to_owned())
    }

    /// Refuses what could not be read any more once it is written again, draining.
    fn check_length(&self) -> Result<(), RecordError> {
        let longest = Self { status: Status::Draining, stopping: true, ..self.clone() }.to_value().len();
        if longest > VALUE_LIMIT { Err(RecordError::TooLarge(longest)) } else { Ok(()) }
    }

    fn check(&self) -> Result<(), RecordError> {
        if let Some(weight) = self.weight.filter(|&weight| weight > WEIGHT_LIMIT) {
            return Err(RecordError::Weight(weight));
        }
        let texts = [("id", &self.id), ("agent", &self.agent), ("name", &self.name), ("host", &self.host)];
        for (field, text) in texts {
            check_text(field, text.as_deref().unwrap_or_default(), TEXT_LIMIT)?;
        }
        if self.tags.len() > COUNT_LIMIT {
            return Err(RecordError::TooMany("tags"));
        }
        if self.attributes.len() > COUNT_LIMIT {
            return Err(RecordError::TooMany("attributes"));
        }
        for tag in &self.tags {
            check_text("a tag", tag, TEXT_LIMIT)?;
        }
        for (name, value) in &self.attributes {
            check_text("an attribute's name", name, TEXT_LIMIT)?;
            if is_too_long_or_hidden(value, ATTRIBUTE_LIMIT) {
                let field = format!("attribute {name}");
                return Err(RecordError::Text { field, limit: ATTRIBUTE_LIMIT });
            }
        }
        Ok(())
    }
}

pub(crate) fn check_text(field: &str, text: &str, limit: usize) -> Result<(), RecordError> {
    if is_too_long_or_hidden(text, limit) {
        return Err(RecordError::Text { field: field.to_owned(), limit });
    }
    Ok(())
}

fn is_too_long_or_hidden(text: &str, limit: usize) -> bool {
    text.chars().count() > limit || text.chars().any(char::is_control)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_value_of_the_sidekick_is_a_running_record() {
        assert_eq!(Record::parse("running"), Ok(Record::running()));
        assert_eq!(Record::parse("running\n"), Ok(Record::running()));
        assert_eq!(Record::parse("{}"), Ok(Record::running()));
        assert_eq!(Record::running().to_value(), "running");
    }

    #[test]
    fn a_record_of_the_contract_is_read_whole_and_unknown_fields_are_ignored() {
        let value = r#"{"status":"draining","id":"2d15","agent":"a1","name":"web-1","host":"host-1","weight":100,
            "tags":["blue"],"attributes":{"region":"eu"},"registered":"2026-01-02T03:04:05.5Z","later":[1]}"#;
        let record = Record::parse(value).unwrap();
        assert_eq!((record.status, record.weight), (Status::Draining, Some(100)));
        assert_eq!(record.attributes["region"], "eu");
        assert_eq!(record.registered.unwrap().as_second(), 1_767_323_045);
    }

    #[test]
    fn bad_values_are_refused_with_their_reason() {
        let many = format!(r#"{{"tags":[{}"x"]}}"#, "\"x\",".repeat(200));
        let cases = [
            ("", "neither"),
            ("stopped", "neither"),
            ("[]", "neither"),
            (r#"["running"]"#, "neither"),
            ("{", "no record"),
            (r#"{"weight":"heavy"}"#, "no record"),
            (r#"{"weight":-1}"#, "no record"),
            (r#"{"weight":257}"#, "over 256"),
            (r#"{"status":"asleep"}"#, "no record"),
            (r#"{"attributes":{"a":1}}"#, "no record"),
            (r#"{"registered":"yesterday"}"#, "no record"),
            (r#"{"name":"a\nb"}"#, "name has a control character"),
            (r#"{"tags":["a\u0000"]}"#, "a tag has a control character"),
            (r#"{"attributes":{"a":"x\n  http-request deny"}}"#, "attribute a has a control character"),
            (many.as_str(), "more than 128 tags"),
        ];
        for (value, reason) in cases {
            let error = Record::parse(value).unwrap_err().to_string();
            assert!(error.contains(reason), "{value}: {error}");
        }
        let large = format!(r#"{{"name":"{}"}}"#, "a".repeat(VALUE_LIMIT));
        assert!(matches!(Record::parse(&large), Err(RecordError::TooLarge(_))));
        let quoted = format!(r#"{{"status":"{}"}}"#, "a".repeat(1000));
        let error = Record::parse(&quoted).unwrap_err().to_string();
        assert!(error.contains("unknown variant") && error.len() < 300, "{error}");
    }

    #[test]
    fn a_record_that_is_read_is_read_again_after_it_was_written_with_another_status() {
        let attributes = |last: usize| {
            let full = (0..63).map(|at| format!(r#""a{at:02}":"{}""#, "x".repeat(ATTRIBUTE_LIMIT)));
            full.chain([format!(r#""z":"{}""#, "x".repeat(last))]).collect::<Vec<_>>().join(",")
        };
        let (mut taken, mut refused) = (0, 0);
        for last in 300..500 {
            let value = format!(r#"{{"attributes":{{{}}}}}"#, attributes(last));
            match Record::parse(&value) {
                Ok(record) => {
                    taken += 1;
                    let draining = Record { status: Status::Draining, stopping: true, ..record };
                    assert_eq!(Record::parse(&draining.to_value()), Ok(draining), "{} bytes", value.len());
                }
                Err(error) => {
                    refused += 1;
                    assert!(matches!(error, RecordError::TooLarge(_)), "{error}");
                }
            }
        }
        assert!(taken > 0 && refused > 0, "{taken} taken, {refused} refused");
    }

    fn text() -> impl Strategy<Value = String> {
        "[^\\p{Cc}]{0,40}"
    }

    proptest! {
        #[test]
        fn a_record_read_back_from_its_value_is_the_same(
            draining: bool, stopping: bool, id in proptest::option::of(text()), host in proptest::option::of(text()),
            weight in proptest::option::of(0..=WEIGHT_LIMIT), tags in proptest::collection::vec(text(), 0..5),
            attributes in proptest::collection::btree_map(text(), text(), 0..5), second in 0..4_000_000_000i64,
        ) {
            let record = Record {
                status: if draining { Status::Draining } else { Status::Running },
                stopping, id, host, weight, tags, attributes,
                registered: Some(Timestamp::from_second(second).unwrap()),
                ..Record::default()
            };
            prop_assert_eq!(Record::parse(&record.to_value()).unwrap(), record);
        }

        #[test]
        fn no_text_makes_the_parser_panic(value in ".{0,200}") {
            let _ = Record::parse(&value);
        }
    }
}
