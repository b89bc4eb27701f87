//! docs/performance.md: what was measured goes between two marks, `<!-- measured: NAME -->` and `<!-- end of NAME -->`; all else in it is
//! written by hand, and stays.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};

/// The document, where the benchmark was built.
pub(crate) fn path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/performance.md")
}

/// Puts what a measurement gave into the text, in place of what it gave before.
///
/// # Errors
/// The text has no such marks, or not in this order.
pub(crate) fn with(text: &str, name: &str, measured: &str) -> anyhow::Result<String> {
    let (begin, end) = (format!("<!-- measured: {name} -->\n"), format!("<!-- end of {name} -->"));
    let missing = || format!("docs/performance.md has no {begin:?} with {end:?} behind it");
    let (before, rest) = text.split_once(&begin).with_context(missing)?;
    let (_, after) = rest.split_once(&end).with_context(missing)?;
    ensure!(!after.contains(&begin), "docs/performance.md has {begin:?} twice");
    Ok(format!("{before}{begin}{measured}\n{end}{after}"))
}

/// Writes what a measurement gave into the document.
///
/// # Errors
/// As [`with`]; the document cannot be read or written.
pub(crate) fn write(name: &str, measured: &str) -> anyhow::Result<()> {
    let path = path();
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    fs::write(&path, with(&text, name, measured)?).with_context(|| path.display().to_string())
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
    }
}
