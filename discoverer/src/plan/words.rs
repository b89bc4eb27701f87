//! One line of HAProxy's configuration as words. Pure.
//!
//! The rules are those of the configuration manual, section 2.2, "Quoting and escaping". A line does not go on
//! behind a backslash at its end: HAProxy takes that for a word (measured with 2.6).

use std::borrow::Cow;

/// A word with its quotes and escapes resolved.
pub(crate) type Word<'t> = Cow<'t, str>;

/// Why the words of a line cannot be told from its text alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unclear {
    #[error("an environment variable stands in it")]
    Environment,
    #[error("a quote in it has no end")]
    Quote,
    #[error("a \\x escape in it stands for no ASCII character")]
    Escape,
    #[error("a NUL character stands in it")]
    Nul,
}

/// The words of a line, without its comment.
pub(crate) fn words(line: &str) -> Result<Vec<Word<'_>>, Unclear> {
    let (mut end, mut comment, mut special) = (line.len(), None, false);
    for (place, byte) in line.bytes().enumerate() {
        match byte {
            // HAProxy stops reading at a carriage return, wherever it stands.
            b'\r' | b'\n' => {
                end = place;
                break;
            }
            b'#' if comment.is_none() => comment = Some(place),
            b'\\' | b'"' | b'\'' => special = true,
            0 => return Err(Unclear::Nul),
            _ => {}
        }
    }
    if special {
        return quoted_words(&line[..end]);
    }
    let line = &line[..comment.unwrap_or(end)];
    Ok(line.split(is_space).filter(|word| !word.is_empty()).map(Cow::Borrowed).collect())
}

/// The first word of a line, or the empty text for a line that says nothing.
pub(crate) fn first_word(line: &str) -> Word<'_> {
    let start = skip_space(line.as_bytes(), 0);
    let (end, special) = skip_word(line.as_bytes(), start);
    if special && let Ok(words) = words(line) {
        return words.into_iter().next().unwrap_or_default();
    }
    Cow::Borrowed(&line[start..end])
}

/// The second word of a line, or the line itself where its words are unclear: still a text that no other line has.
pub(crate) fn second_word(line: &str) -> Word<'_> {
    let bytes = line.as_bytes();
    let (first_end, first_special) = skip_word(bytes, skip_space(bytes, 0));
    let start = skip_space(bytes, first_end);
    let (end, special) = skip_word(bytes, start);
    if !first_special && !special {
        return Cow::Borrowed(&line[start..end]);
    }
    match words(line) {
        Ok(words) => words.into_iter().nth(1).unwrap_or_default(),
        Err(_) => Cow::Borrowed(line.trim()),
    }
}

/// The third word of a line; none where it has none, or its words are unclear.
pub(super) fn third_word(line: &str) -> Option<Word<'_>> {
    let bytes = line.as_bytes();
    let (mut place, mut start) = (0, 0);
    for _ in 0..3 {
        start = skip_space(bytes, place);
        let (end, special) = skip_word(bytes, start);
        if special {
            return words(line).ok()?.into_iter().nth(2);
        }
        place = end;
    }
    (start < place).then(|| Cow::Borrowed(&line[start..place]))
}

/// Whether the first or the second word of a line has a quote or an escape.
pub(super) fn quotes_name(line: &str) -> bool {
    let bytes = line.as_bytes();
    let (first_end, first_special) = skip_word(bytes, skip_space(bytes, 0));
    first_special || skip_word(bytes, skip_space(bytes, first_end)).1
}

/// The word behind a keyword, where that stands behind the first `skipped` words of a line; of several the last.
pub(super) fn argument<'t>(line: &'t str, keyword: &str, skipped: usize) -> Result<Option<Word<'t>>, Unclear> {
    let bytes = line.as_bytes();
    let (mut place, mut count, mut is_next, mut found) = (0, 0, false, None);
    loop {
        let start = skip_space(bytes, place);
        let (end, special) = skip_word(bytes, start);
        if special {
            let words = words(line)?;
            let at = words.iter().skip(skipped).rposition(|word| word == keyword);
            return Ok(at.and_then(|at| words.into_iter().nth(skipped + at + 1)));
        }
        if start == end {
            return Ok(found);
        }
        let word = &line[start..end];
        if is_next {
            found = Some(Cow::Borrowed(word));
        }
        is_next = count >= skipped && word == keyword;
        count += 1;
        place = end;
    }
}

/// What a byte does to the word that it stands in: nothing, it ends the word, or it may hide such an end.
const PLAIN: u8 = 0;
const END: u8 = 1;
const SPECIAL: u8 = 2;

/// By a table, because each plan looks at each line's beginning.
static EFFECTS: [u8; 256] = {
    let mut effects = [PLAIN; 256];
    let mut index = 0;
    while index < 256 {
        effects[index] = match index as u8 {
            b' ' | b'\t' | 0x0b | 0x0c | b'#' | b'\r' | b'\n' => END,
            b'\\' | b'"' | b'\'' => SPECIAL,
            _ => PLAIN,
        };
        index += 1;
    }
    effects
};

/// Where the space that begins at a place ends.
fn skip_space(line: &[u8], mut place: usize) -> usize {
    while line.get(place).is_some_and(|&byte| is_space(char::from(byte))) {
        place += 1;
    }
    place
}

/// Where the word that begins at a place ends, and whether it has a quote or an escape, so that it may go on there.
fn skip_word(line: &[u8], mut place: usize) -> (usize, bool) {
    let mut seen = PLAIN;
    while let Some(&byte) = line.get(place) {
        let effect = EFFECTS[usize::from(byte)];
        if effect == END {
            break;
        }
        seen |= effect;
        place += 1;
    }
    (place, seen == SPECIAL)
}

/// A text for a message: no longer than a message should be.
pub(super) fn short(text: &str) -> String {
    text.chars().take(60).collect()
}

/// Whether two lines say the same. Where the words of one are unclear, only the same text is the same.
pub(super) fn same(a: &str, b: &str) -> bool {
    a.trim() == b.trim() || matches!((words(a), words(b)), (Ok(a), Ok(b)) if a == b)
}

/// What parts words: the C library's `isspace` without the ends of a line.
fn is_space(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\x0b' | '\x0c')
}

fn quoted_words(line: &str) -> Result<Vec<Word<'_>>, Unclear> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut rest = line.chars();
    while let Some(c) = rest.next() {
        match (c, quote) {
            ('#', None) => break,
            (c, None) if is_space(c) => words.extend(word.take().map(Cow::Owned)),
            ('"' | '\'', None) => {
                quote = Some(c);
                // A pair of quotes with nothing between them is a word too.
                word.get_or_insert_default();
            }
            (c, Some(open)) if c == open => quote = None,
            ('$', Some('"')) => return Err(Unclear::Environment),
            ('\\', None | Some('"')) => word.get_or_insert_default().push(escaped(&mut rest)?),
            (c, _) => word.get_or_insert_default().push(c),
        }
    }
    if quote.is_some() {
        return Err(Unclear::Quote);
    }
    words.extend(word.map(Cow::Owned));
    Ok(words)
}

/// The character that a backslash and what follows it stand for. Before any other character a backslash is itself.
fn escaped(rest: &mut std::str::Chars<'_>) -> Result<char, Unclear> {
    let character = match rest.as_str().as_bytes().first() {
        Some(&b @ (b' ' | b'\\' | b'#' | b'\'' | b'"' | b'$')) => char::from(b),
        Some(b'n') => '\n',
        Some(b'r') => '\r',
        Some(b't') => '\t',
        Some(b'x') => {
            let digits = rest.as_str().get(1..3).filter(|digits| digits.bytes().all(|b| b.is_ascii_hexdigit()));
            let code = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok());
            // Above ASCII it is a part of a character, which another escape or a plain byte may complete.
            let code = code.filter(|&code| code != 0 && code.is_ascii()).ok_or(Unclear::Escape)?;
            rest.nth(1);
            char::from(code)
        }
        _ => return Ok('\\'),
    };
    rest.next();
    Ok(character)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_cut_into_words_as_the_manual_says() {
        let cases: &[(&str, Result<&[&str], Unclear>)] = &[
            ("", Ok(&[])),
            (" \t # nothing", Ok(&[])),
            ("  server a 10.0.0.1:80\tcheck # why", Ok(&["server", "a", "10.0.0.1:80", "check"])),
            ("server a#b", Ok(&["server", "a"])),
            ("server a\r b", Ok(&["server", "a"])),
            ("a\x0bb\x0cc", Ok(&["a", "b", "c"])),
            (r"log-format %{+Q}o\ %t\ %s", Ok(&["log-format", "%{+Q}o %t %s"])),
            (r#"log-format "%{+Q}o %t"' %s'"#, Ok(&["log-format", "%{+Q}o %t %s"])),
            (r##"a "# no comment" '#' \# b # c"##, Ok(&["a", "# no comment", "#", "#", "b"])),
            (r#"a "" ''"#, Ok(&["a", "", ""])),
            (r#""server" we'igh't \x35 "\x36""#, Ok(&["server", "weight", "5", "6"])),
            (r"'a\x35' \a \", Ok(&[r"a\x35", r"\a", r"\"])),
            (r#"a '"' "'" \" \' \\ \$ $X '$X' "\$X""#, Ok(&["a", "\"", "'", "\"", "'", "\\", "$", "$X", "$X", "$X"])),
            (r"a\n\r\tb", Ok(&["a\n\r\tb"])),
            (r#"a "$X""#, Err(Unclear::Environment)),
            (r#"a "b"#, Err(Unclear::Quote)),
            (r"a 'b", Err(Unclear::Quote)),
            (r"a \xe9", Err(Unclear::Escape)),
            (r"a \x00", Err(Unclear::Escape)),
            (r"a \x4", Err(Unclear::Escape)),
            ("a \\x4é", Err(Unclear::Escape)),
            ("a\0b", Err(Unclear::Nul)),
        ];
        for (line, expected) in cases {
            let found = words(line);
            let found = found.as_ref().map(|words| words.iter().map(AsRef::as_ref).collect::<Vec<&str>>());
            assert_eq!(found.as_deref().map_err(|&&error| error), *expected, "{line:?}");
            if let Ok(expected) = expected {
                assert_eq!(first_word(line), *expected.first().unwrap_or(&""), "{line:?}");
                assert_eq!(second_word(line), *expected.get(1).unwrap_or(&""), "{line:?}");
            }
        }
    }

    #[test]
    fn a_keywords_argument_is_found_behind_the_words_before_it() {
        let weight = |line| argument(line, "weight", 3).map(|found| found.map(Cow::into_owned));
        let found = |text: &str| Ok(Some(text.to_owned()));
        assert_eq!(weight("server weight 10.0.0.1:80 weight 5 check # weight 7\n"), found("5"));
        assert_eq!(weight("server a b weight 5 check weight 7"), found("7"));
        assert_eq!(weight("server 'a' b \"weight\" \\x35"), found("5"));
        assert_eq!(weight("server a b check weight"), Ok(None));
        assert_eq!(weight("server weight weight"), Ok(None));
        assert_eq!(weight("server a \"$B\" weight 5"), Err(Unclear::Environment));
    }

    #[test]
    fn lines_are_the_same_when_their_words_are() {
        assert!(same("  server a b # one\n", "server\ta 'b'"));
        assert!(same("log-format \"$X\"", "  log-format \"$X\"\n"));
        assert!(!same("log-format \"$X\"", "log-format '$X'"));
        assert!(!same("server a b", "server ab"));
        assert!(!same("log-format 'a b'", "log-format a b"));
    }
}
