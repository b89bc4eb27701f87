//! What comes from elsewhere, for a terminal or a log: in the order in which it is written, and on no line of its own making. Pure.

use std::fmt::{self, Write};

/// The text with all that is unsafe to show written out, such as `\n` or `\u{202e}`.
pub fn escaped(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    // A string takes everything.
    let _taken = Escaped(&mut shown).write_str(text);
    shown
}

/// As [`escaped`], but for the line feeds. None, nor any other white space, at the end.
pub fn escaped_lines(text: &str) -> String {
    text.trim_end().lines().map(escaped).collect::<Vec<_>>().join("\n")
}

/// Writes on, as [`escaped`].
pub(crate) struct Escaped<'a>(pub(crate) &'a mut dyn Write);

impl Write for Escaped<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut rest = text;
        while let Some(at) = rest.find(is_unsafe) {
            let (before, from) = rest.split_at(at);
            self.0.write_str(before)?;
            let mut characters = from.chars();
            if let Some(first) = characters.next() {
                write!(self.0, "{}", first.escape_default())?;
            }
            rest = characters.as_str();
        }
        self.0.write_str(rest)
    }
}

/// Control characters; the line and paragraph separators; and what changes the direction of what is read: all of Unicode's
/// `Bidi_Control` (UAX #9, 2).
pub fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_obeys_is_written_out_and_all_else_stays() {
        for bad in "\0\t\n\r\x1b\x7f\u{85}\u{9b}\u{61c}\u{200e}\u{200f}\u{2028}\u{2029}\u{202a}\u{202b}\u{202c}\u{202d}\u{202e}".chars() {
            assert_eq!(escaped(&format!("a{bad}b")), format!("a{}b", bad.escape_default()));
        }
        for bad in '\u{2066}'..='\u{2069}' {
            assert_eq!(escaped(&bad.to_string()), bad.escape_default().to_string());
        }
        let good = "/service/web/[::1]:80 \"Größe\" \\n שלום \u{1f600}";
        assert_eq!(escaped(good), good);
        assert_eq!(escaped_lines("a\u{1b}\r\n  b\u{202e}\n \n"), "a\\u{1b}\n  b\\u{202e}");
    }
}
