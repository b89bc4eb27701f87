//! Names that somebody may have meant who wrote another one. Pure.

use strsim::osa_distance;

/// How many are told.
const SHOWN: usize = 5;

/// Those that begin alike, have the name in them or differ by a few slips of the hand; the nearest first.
pub(crate) fn near<'n>(name: &str, known: impl IntoIterator<Item = &'n str>) -> Vec<&'n str> {
    let wanted = name.to_lowercase();
    let most = 1 + wanted.chars().count() / 4;
    let mut found: Vec<(usize, &str)> = known
        .into_iter()
        .filter_map(|known| {
            let one = known.to_lowercase();
            let is_part = !wanted.is_empty() && !one.is_empty() && (one.contains(&wanted) || wanted.starts_with(&one));
            let slips = osa_distance(&wanted, &one);
            (is_part || slips <= most).then_some((slips, known))
        })
        .collect();
    found.sort_unstable();
    found.dedup();
    found.into_iter().take(SHOWN).map(|(_, known)| known).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_of_the_hand_and_parts_of_a_name_are_near_and_others_are_not() {
        let known = ["web", "web-2", "shop", "shop-api", "db", "10.0.0.1:8000", "shop"];
        let cases: [(&str, &[&str]); 6] = [
            ("wbe", &["web"]),
            ("sohp", &["shop"]),
            ("Shop", &["shop", "shop-api"]),
            ("10.0.0.1:8080", &["10.0.0.1:8000"]),
            ("nothing-like-it", &[]),
            ("web-2-1", &["web-2", "web"]),
        ];
        for (name, expected) in cases {
            assert_eq!(near(name, known), expected, "{name}");
        }
        assert!(near("", known).len() <= SHOWN);
    }
}
