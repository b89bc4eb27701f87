//! docs/performance.md and docs/scaling.md: what was measured goes between two marks, `<!-- measured: NAME -->` and `<!-- end of NAME -->`; all else in it is
//! written by hand, and stays.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};

/// The document, where the benchmark was built.
pub(crate) fn path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/performance.md")
}

/// The document about large sites.
pub(crate) fn scaling() -> PathBuf {
    path().with_file_name("scaling.md")
}

/// Puts what a measurement gave into the text, in place of what it gave before.
///
/// # Errors
/// The text has no such marks, or not in this order.
pub(crate) fn with(text: &str, name: &str, measured: &str) -> anyhow::Result<String> {
    let (begin, end) = (format!("<!-- measured: {name} -->\n"), format!("<!-- end of {name} -->"));
    let missing = || format!("the document has no {begin:?} with {end:?} behind it");
    let (before, rest) = text.split_once(&begin).with_context(missing)?;
    let (_, after) = rest.split_once(&end).with_context(missing)?;
    ensure!(!after.contains(&begin), "the document has {begin:?} twice");
    Ok(format!("{before}{begin}{measured}\n{end}{after}"))
}

/// Writes what a measurement gave into the document.
///
/// # Errors
/// As [`with`]; the document cannot be read or written.
pub(crate) fn write(name: &str, measured: &str) -> anyhow::Result<()> {
    write_into(&path(), name, measured)
}

/// As [`write`], into another document.
pub(crate) fn write_into(path: &Path, name: &str, measured: &str) -> anyhow::Result<()> {
    let shown = || path.display().to_string();
    let text = fs::read_to_string(path).with_context(shown)?;
    fs::write(path, with(&text, name, measured).with_context(shown)?).with_context(shown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_measured_before_is_replaced_and_nothing_else() {
        let text = "a\n<!-- measured: cost -->\nold\n<!-- end of cost -->\nb\n";
        assert_eq!(with(text, "cost", "new").unwrap(), "a\n<!-- measured: cost -->\nnew\n<!-- end of cost -->\nb\n");
        assert!(with(text, "page", "new").is_err());
        assert!(with("<!-- end of cost --><!-- measured: cost -->\n", "cost", "new").is_err());
    }

    #[test]
    fn the_document_has_a_place_for_each_measurement() {
        let text = fs::read_to_string(path()).unwrap();
        for name in crate::ALL {
            with(&text, &name.as_flag(), "").unwrap();
        }
        with(&fs::read_to_string(scaling()).unwrap(), crate::scale::NAME, "").unwrap();
    }

    /// The numbers of a text, such as `0`, `1.75` and `303,933`.
    fn numbers(text: &str) -> Vec<&str> {
        let is_part = |c: char| c.is_ascii_digit() || c == '.' || c == ',';
        let words = text.split(|c| !is_part(c)).map(|word| word.trim_matches(['.', ',']));
        words.filter(|word| !word.is_empty()).collect()
    }

    #[test]
    fn each_figure_beside_a_target_is_one_of_the_measurement_that_is_named() {
        let text = fs::read_to_string(path()).unwrap();
        let (_, table) = text.split_once("| what | target | measured | by |\n|---|---|---|---|\n").unwrap();
        let rows: Vec<&str> = table.lines().take_while(|line| line.starts_with('|')).collect();
        assert!(rows.len() > 20, "{}", rows.len());
        for row in rows {
            let [_, _, _, measured, by, _] = row.split('|').map(str::trim).collect::<Vec<_>>()[..] else {
                panic!("{row}")
            };
            let (_, section) = text.split_once(&format!("<!-- measured: {by} -->")).unwrap_or_else(|| panic!("{row}"));
            let (section, _) = section.split_once(&format!("<!-- end of {by} -->")).unwrap();
            let there = numbers(section);
            for number in numbers(&measured.replace("v2", "")) {
                assert!(there.contains(&number), "{number} of {row}");
            }
        }
    }
}
