//! Labels that may be mistyped: whatever is no setting becomes an attribute, in silence. Pure.

use strsim::osa_distance;

use super::check;

/// Shorter names are left alone: too many words are near to them. `SERVICE_ID` is registrator's own.
const LEAST: usize = 4;

/// What a label may say beside its check, in lower case without `SERVICE_`.
pub(super) const SETTINGS: [&str; 14] = [
    "name",
    "ignore",
    "tags",
    "weight",
    "ip",
    "host",
    "path",
    "mode",
    "listen",
    "balance",
    "proto",
    "sticky",
    "maxconn",
    "slowstart",
];

/// The setting that is meant by a name that is none. It begins with the same letter, since nobody mistypes the first one (a `node`
/// is no `mode`), and differs by one slip of the hand, a long one by two.
pub(super) fn meant(name: &str) -> Option<&'static str> {
    let known = || SETTINGS.into_iter().chain(check::names());
    // What begins like a check and is none is refused already.
    if known().any(|known| known == name) || check::is_about_check(name) {
        return None;
    }
    let slips = |known: &&'static str| {
        let most = if known.len() < 8 { 1 } else { 2 };
        let is_near = known.len() >= LEAST && known.as_bytes().first() == name.as_bytes().first();
        Some((osa_distance(name, known), *known)).filter(|(slips, _)| is_near && *slips <= most)
    };
    known().filter_map(|known| slips(&known)).min().map(|(_, known)| known)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_is_a_slip_away_from_a_setting_is_known_and_others_are_attributes() {
        let cases = [
            ("hosts", Some("host")),
            ("hots", Some("host")),
            ("nmae", Some("name")),
            ("names", Some("name")),
            ("tag", Some("tags")),
            ("ignored", Some("ignore")),
            ("wieght", Some("weight")),
            ("slow_start", Some("slowstart")),
            ("chek_http", Some("check_http")),
            ("checks_interval", Some("check_interval")),
            ("host", None),
            ("check_http", None),
            ("check_htpp", None),
            ("region", None),
            ("node", None),
            ("id", None),
            ("port", None),
            ("hostname", None),
            ("", None),
            ("größe", None),
        ];
        for (name, expected) in cases {
            assert_eq!(meant(name), expected, "{name}");
        }
    }
}
