//! What comes from operators and from those who look: the configuration's file, and questions to the admin server.

use std::io::Write as _;

use observe::config::{ConfigError, Source};

use crate::{is_fit_to_tell, text};

/// The file of both programs.
pub(crate) fn config_file(input: &[u8]) {
    let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
    file.write_all(input).expect("it is written");
    let path = file.path().to_str().expect("its name is UTF-8");
    let discoverer =
        Source::new(discoverer::config::command(), &discoverer::config::RULES, ["discoverer", "--config", path]);
    let agent = registrar::config::Program::source(["registrar", "agent", "--config", path]);
    for source in [discoverer, agent] {
        match source.read() {
            Ok(loaded) => assert!(loaded.printed().is_none()),
            Err(error @ (ConfigError::File { .. } | ConfigError::Line { .. })) => {
                let words = error.to_string();
                is_fit_to_tell(&words);
            }
            Err(ConfigError::CommandLine(_)) => {}
        }
    }
}

/// The query of a question to the API, and the id of an event of the stream.
pub(crate) fn admin_query(input: &[u8]) {
    let text = text(input);
    if let Err(words) = discoverer::fuzz::filter(&text) {
        is_fit_to_tell(&words);
    }
    if let Some(id) = discoverer::fuzz::event_id(&text) {
        assert_eq!(discoverer::fuzz::event_id(&id), Some(id));
    }
    let shown = observe::escape::escaped(&text);
    assert!(!shown.chars().any(char::is_control), "{shown:?}");
    assert_eq!(observe::escape::escaped(&shown), shown);
}
