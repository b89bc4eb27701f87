//! Steps on a way, each of which says yes or no, as text and as JSON. Pure.

use std::fmt;

/// A text with line feeds, and no other control characters.
pub(crate) use observe::escape::escaped_lines as shown;
use serde::Serialize;

use super::way::Away;

/// What a step says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Says {
    /// It is passed.
    Yes,
    /// The way ends here.
    No,
    /// It cannot be told from here.
    Unknown,
    /// Nothing: it is told by the way.
    Aside,
}

/// Where on the way a step is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// The key in etcd.
    Etcd,
    /// What the discoverer makes of it.
    Discoverer,
    /// HAProxy's file.
    File,
    /// HAProxy itself.
    Haproxy,
}

/// One step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Step {
    /// Where on the way.
    pub part: Part,
    /// What it says.
    pub says: Says,
    /// What was found.
    pub text: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
}

/// A way, or a part of one that others share.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Way {
    /// Whose: a service, or an instance of it.
    pub of: String,
    /// In order.
    pub steps: Vec<Step>,
}

impl Way {
    pub(super) fn new(of: impl Into<String>) -> Self {
        Self { of: of.into(), steps: Vec::new() }
    }

    /// Whether each step says yes.
    pub fn is_open(&self) -> bool {
        self.steps.iter().all(|step| matches!(step.says, Says::Yes | Says::Aside))
    }

    /// Where it ends.
    pub fn first_no(&self) -> Option<&Step> {
        self.steps.iter().find(|step| step.says == Says::No)
    }

    pub(super) fn yes(&mut self, part: Part, text: impl AsRef<str>) {
        self.push(part, Says::Yes, text.as_ref(), "");
    }

    pub(super) fn no(&mut self, part: Part, text: impl AsRef<str>, advice: impl AsRef<str>) {
        self.push(part, Says::No, text.as_ref(), advice.as_ref());
    }

    /// What a part does not tell.
    pub(super) fn away(&mut self, part: Part, away: &Away) {
        self.push(part, away.says, &away.why, &away.advice);
    }

    pub(super) fn aside(&mut self, part: Part, text: impl AsRef<str>) {
        self.push(part, Says::Aside, text.as_ref(), "");
    }

    /// Whatever comes from elsewhere may hold what a terminal would obey.
    fn push(&mut self, part: Part, says: Says, text: &str, advice: &str) {
        let advice = (!advice.is_empty()).then(|| shown(advice));
        self.steps.push(Step { part, says, text: shown(text), advice });
    }
}

/// Everything: first what all instances share, then the way of each.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Explanation {
    /// Each step says yes.
    pub routed: bool,
    /// Somebody knows what is meant.
    #[serde(skip)]
    pub known: bool,
    /// The ways.
    pub ways: Vec<Way>,
}

impl Explanation {
    pub(super) fn of(ways: Vec<Way>) -> Self {
        Self { routed: ways.iter().all(Way::is_open), known: true, ways }
    }

    /// Nobody knows what is meant.
    pub(super) fn unknown(way: Way) -> Self {
        Self { known: false, ..Self::of(vec![way]) }
    }

    /// The first step that says no.
    pub fn first_no(&self) -> Option<&Step> {
        self.ways.iter().find_map(Way::first_no)
    }
}

/// How far the text of a step is indented.
const MARGIN: &str = "        ";
/// A service with more instances than this is told in short, as far as all is well.
const FEW: usize = 3;

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is_short = self.ways.len() > FEW + 1;
        for (at, way) in self.ways.iter().enumerate() {
            if is_short && at > 0 && way.is_open() {
                writeln!(f, "   yes  {}: at each step", way.of)?;
                continue;
            }
            if self.ways.len() > 1 {
                writeln!(f, "{}", way.of)?;
            }
            let first_no = way.steps.iter().position(|step| step.says == Says::No);
            for (at, step) in way.steps.iter().enumerate() {
                let mark = match step.says {
                    Says::Yes => "   yes  ",
                    Says::No if first_no == Some(at) => "-> NO   ",
                    Says::No => "   no   ",
                    Says::Unknown => "   ?    ",
                    Says::Aside => MARGIN,
                };
                let indented = |text: &str| text.replace('\n', &format!("\n{MARGIN}  "));
                writeln!(f, "{mark}{}", indented(&step.text))?;
                if let Some(advice) = &step.advice
                    && (first_no == Some(at) || step.says == Says::Unknown)
                {
                    writeln!(f, "{MARGIN}{}", indented(advice))?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_no_is_marked_and_only_its_advice_is_told() {
        let mut way = Way::new("10.0.0.1:80");
        way.yes(Part::Etcd, "its key is there");
        way.aside(Part::Discoverer, "it was told");
        way.no(Part::File, "no server\nline \u{1b}[2J", "look");
        way.no(Part::Haproxy, "no server", "look again");
        let explanation = Explanation::of(vec![way]);
        assert!(!explanation.routed);
        let expected = "   yes  its key is there\n        it was told\n-> NO   no server\n          line \\u{1b}[2J\n        look\n   no   no server\n";
        assert_eq!(explanation.to_string(), expected);
        assert_eq!(explanation.first_no().unwrap().advice.as_deref(), Some("look"));
    }

    #[test]
    fn of_many_instances_those_that_are_well_take_a_line_each() {
        let mut ways = vec![Way::new("service web")];
        ways[0].yes(Part::Discoverer, "it is followed");
        for number in 1..=4 {
            let mut way = Way::new(format!("10.0.0.{number}:80"));
            way.yes(Part::Etcd, "its key is there");
            if number == 3 {
                way.no(Part::Haproxy, "down", "start it");
            }
            ways.push(way);
        }
        let told = Explanation::of(ways).to_string();
        let expected = "service web\n   yes  it is followed\n   yes  10.0.0.1:80: at each step\n   yes  10.0.0.2:80: at each step\n\
            10.0.0.3:80\n   yes  its key is there\n-> NO   down\n        start it\n   yes  10.0.0.4:80: at each step\n";
        assert_eq!(told, expected);
    }
}
