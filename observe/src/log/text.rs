//! The fields of an event on one line. Pure: values to characters, none of which is a control character.

use std::fmt::{self, Debug, Write};

use tracing::field::{Field, Visit};
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::fmt::FormatFields;
use tracing_subscriber::fmt::format::Writer;

use crate::escape::Escaped;

/// Writes fields as `message name=value name=value`.
#[derive(Debug, Clone, Copy)]
pub(super) struct OneLine;

impl<'writer> FormatFields<'writer> for OneLine {
    fn format_fields<R: RecordFields>(&self, mut writer: Writer<'writer>, fields: R) -> fmt::Result {
        let is_coloured = writer.has_ansi_escapes();
        let mut line = Line { out: &mut writer, is_coloured, is_begun: false, result: Ok(()) };
        fields.record(&mut line);
        line.result
    }
}

/// The fields that were written so far.
pub(super) struct Line<'a> {
    out: &'a mut dyn Write,
    is_coloured: bool,
    is_begun: bool,
    result: fmt::Result,
}

impl<'a> Line<'a> {
    /// Without colour.
    pub(super) fn plain(out: &'a mut dyn Write) -> Self {
        Self { out, is_coloured: false, is_begun: false, result: Ok(()) }
    }

    fn put(&mut self, field: &Field, value: fmt::Arguments<'_>) -> fmt::Result {
        if std::mem::replace(&mut self.is_begun, true) {
            self.out.write_char(' ')?;
        }
        if field.name() != "message" {
            let name = field.name().strip_prefix("r#").unwrap_or(field.name());
            if self.is_coloured {
                write!(self.out, "\x1b[3m{name}\x1b[0m\x1b[2m=\x1b[0m")?;
            } else {
                write!(self.out, "{name}=")?;
            }
        }
        Escaped(self.out).write_fmt(value)
    }

    fn take(&mut self, field: &Field, value: fmt::Arguments<'_>) {
        // What the crate `log` adds is the code's place.
        if self.result.is_ok() && !field.name().starts_with("log.") {
            self.result = self.put(field, value);
        }
    }
}

impl Visit for Line<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            self.take(field, format_args!("{value}"));
        } else {
            self.take(field, format_args!("{value:?}"));
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.take(field, format_args!("{value:?}"));
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use tracing::{Level, info};

    use super::*;
    use crate::escape::is_unsafe;

    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(is_coloured: bool, event: impl FnOnce()) -> String {
        let kept = Kept::default();
        let writer = kept.clone();
        let log = tracing_subscriber::fmt()
            .with_max_level(Level::INFO)
            .with_writer(move || writer.clone())
            .with_target(false)
            .without_time()
            .fmt_fields(OneLine)
            .with_ansi(is_coloured)
            .finish();
        tracing::subscriber::with_default(log, event);
        let bytes = kept.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    const HOSTILE: &str = "a\n2026 INFO faked\r\x1b[2J\u{9b}31m\u{202e}\u{2028}\x07b";

    #[test]
    fn an_event_is_one_line_whatever_its_fields_hold() {
        let error = io::Error::other(HOSTILE);
        let line = logged(false, || {
            info!(shown = %HOSTILE, quoted = HOSTILE, debug = ?HOSTILE, error = &error as &dyn std::error::Error, count = 3, "{HOSTILE}");
        });
        assert_eq!(line.matches('\n').count(), 1, "{line:?}");
        assert!(line.ends_with('\n') && !line.trim_end().chars().any(is_unsafe), "{line:?}");
        assert!(line.contains(r"shown=a\n2026 INFO faked\r\u{1b}[2J\u{9b}31m\u{202e}\u{2028}\u{7}b"), "{line}");
        assert!(line.contains(" count=3"), "{line}");
    }

    #[test]
    fn a_line_is_the_message_and_then_the_fields() {
        let line = logged(false, || info!(key = %"/service/web", name = "b c", "it is registered"));
        assert_eq!(line, " INFO it is registered key=/service/web name=\"b c\"\n");
        let line = logged(true, || info!(key = %HOSTILE, "it is registered"));
        assert!(line.contains("\x1b[3mkey\x1b[0m") && !line.contains("\x1b[2J"), "{line:?}");
    }
}
