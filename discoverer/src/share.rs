//! Which share of the registry is followed: `--only`. Pure.

use std::collections::BTreeSet;

use registry::Record;

/// The instances that have one of some tags; all, where no tag is named.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Share(BTreeSet<String>);

impl Share {
    /// What has one of these tags.
    pub fn of(tags: impl IntoIterator<Item = String>) -> Self {
        Self(tags.into_iter().collect())
    }

    /// Whether an instance with these tags is in it.
    pub fn has(&self, tags: &[String]) -> bool {
        self.0.is_empty() || tags.iter().any(|tag| self.0.contains(tag))
    }

    /// Whether an instance with this record is in it.
    pub fn holds(&self, record: &Record) -> bool {
        self.has(&record.tags)
    }

    /// The values of `--only` that ask for it, such as `tag=edge`; sorted.
    pub fn shown(&self) -> Vec<String> {
        self.0.iter().map(|tag| format!("tag={tag}")).collect()
    }
}

/// Reads one value of `--only`: the tag.
///
/// # Errors
/// It is not `tag=` and one tag as labels give them.
pub fn parse_tag(text: &str) -> Result<String, String> {
    let tag = text.strip_prefix("tag=").ok_or("write tag=NAME, such as tag=edge")?;
    if tag.trim().is_empty() {
        return Err("the tag is missing; write tag=NAME, such as tag=edge".to_owned());
    }
    if tag != tag.trim() || tag.chars().any(|c| c == ',' || c.is_control()) {
        return Err(
            "a tag has no comma, no space around it and no control character; give --only once for each tag".to_owned()
        );
    }
    Ok(tag.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_of_the_tags_is_enough_and_without_any_everything_is_in() {
        let tags = |tags: &[&str]| tags.iter().map(|&tag| tag.to_owned()).collect::<Vec<_>>();
        let share = Share::of(tags(&["edge", "blue"]));
        assert!(share.has(&tags(&["x", "blue"])) && share.has(&tags(&["edge"])));
        assert!(!share.has(&tags(&["edges"])) && !share.has(&[]));
        assert!(Share::default().has(&[]));
        assert_eq!(share.shown(), ["tag=blue", "tag=edge"]);
    }

    #[test]
    fn what_is_no_tag_is_refused() {
        assert_eq!(parse_tag("tag=a=b").as_deref(), Ok("a=b"));
        for bad in ["edge", "tags=edge", "tag", "tag=", "tag= ", "tag=a,b", "tag= a", "tag=a\nb", "Tag=a", ""] {
            assert!(parse_tag(bad).is_err(), "{bad:?}");
        }
    }
}
