//! The commands that a page of the documentation gives to another test than that of the pages, by the mark `run by`.
//!
//! The test takes them from the page and runs them as they stand there, but for the addresses of its own hosts: so what is
//! run is what is read. `pages.rs` sees to it that the test which a mark names takes the commands behind it.

use std::collections::{BTreeMap, VecDeque};
use std::fs;

use crate::commands::{Block, Command, How, blocks, compare};
use crate::workspace;

/// So much of an id tells a container, and is what commands are given.
const SHORT: usize = 12;

/// Commands that are to be run, in their order. One that is left over when this is dropped fails the test.
#[derive(Debug)]
pub struct Shown {
    place: String,
    left: VecDeque<(How, Command)>,
}

impl Shown {
    /// Those that a page, named as in docs/, gives to other tests below this heading.
    pub fn below(page: &str, heading: &str) -> Shown {
        let text = fs::read_to_string(workspace().join("docs").join(page)).unwrap();
        let blocks = blocks(&text).unwrap_or_else(|error| panic!("docs/{page}: {error}"));
        let is_meant = |block: &Block| block.heading == heading && block.by.is_some();
        let of_block = |block: Block| block.commands.into_iter().map(move |command| (block.how.clone(), command));
        let left: VecDeque<_> = blocks.into_iter().filter(is_meant).flat_map(of_block).collect();
        let place = format!("docs/{page}, {heading:?}");
        assert!(!left.is_empty(), "{place}: nothing there is run by another test");
        Shown { place, left }
    }

    /// With another text in place of one that is shown, in commands and outputs.
    pub fn with(mut self, shown: &str, here: &str) -> Shown {
        for (_, command) in &mut self.left {
            command.text = command.text.replace(shown, here);
            command.output = command.output.iter().map(|line| line.replace(shown, here)).collect();
        }
        self
    }

    /// The next command, for a test that judges by itself what it does.
    pub fn next_text(&mut self) -> String {
        let (_, command) = self.next().unwrap_or_else(|| panic!("{}: there is no further command", self.place));
        command.text
    }
}

impl Iterator for Shown {
    type Item = (How, Command);

    fn next(&mut self) -> Option<(How, Command)> {
        self.left.pop_front()
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            assert!(self.left.is_empty(), "{}: these were not run: {:#?}", self.place, self.left);
        }
    }
}

/// What stands in this run where a page shows ids of containers, and addresses with ports.
#[derive(Debug, Default)]
pub struct Here(BTreeMap<String, String>);

impl Here {
    /// A command of the page as it has to be here.
    pub fn command(&self, text: &str) -> String {
        self.0.iter().fold(text.to_owned(), |text, (shown, here)| text.replace(shown, here))
    }

    /// Whether an output is what is shown: [`compare`], and where the page shows a container or an address that it has shown
    /// before, it is the same one here. In what order they come is not looked at. What is shown for the first time is kept.
    ///
    /// # Errors
    /// What is otherwise.
    pub fn compare(&mut self, shown: &[String], output: &str) -> Result<(), String> {
        let pairs = compare(shown, output)?.into_iter().map(|(shown, here)| (short(shown), short(here)));
        let (known, new): (Vec<_>, Vec<_>) = pairs.partition(|(shown, _)| self.0.contains_key(shown));
        let sorted = |names: Vec<String>| {
            let mut names = names;
            names.sort_unstable();
            names
        };
        let expected = sorted(known.iter().map(|(shown, _)| self.0[shown].clone()).collect());
        let seen = sorted(known.into_iter().map(|(_, here)| here).collect());
        if expected != seen {
            return Err(format!("said of {seen:?} where the page speaks of {expected:?}"));
        }
        self.0.extend(new);
        Ok(())
    }
}

/// An id as it stands in other places; an address is as it is.
fn short(mut name: String) -> String {
    if !name.contains(':') {
        name.truncate(SHORT);
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_twice_is_the_same_here() {
        let shown = |line: &str| [line.to_owned()];
        let mut here = Here::default();
        here.compare(&shown("7c0f09a594867ae7"), "aaaaaaaaaaaabbbb").unwrap();
        here.compare(&shown("at 10.1.0.101:32768"), "at 10.1.0.101:49153").unwrap();
        assert_eq!(
            here.command("docker stop 7c0f09a59486 10.1.0.101:32768"),
            "docker stop aaaaaaaaaaaa 10.1.0.101:49153"
        );
        here.compare(&shown("Hello from 7c0f09a59486"), "Hello from aaaaaaaaaaaa").unwrap();
        here.compare(&shown("Hello from 7c0f09a59486"), "Hello from cccccccccccc").unwrap_err();
        here.compare(&shown("10.1.0.101:32768"), "10.1.0.101:32768").unwrap_err();
        // Another one, and in another order.
        here.compare(&shown("daa1a1a5d715 7c0f09a59486"), "dddddddddddd aaaaaaaaaaaa").unwrap();
        here.compare(&shown("7c0f09a59486 daa1a1a5d715"), "dddddddddddd aaaaaaaaaaaa").unwrap();
    }

    #[test]
    fn commands_that_are_left_over_are_named() {
        let left = VecDeque::from([(How::Once(0), Command { text: "ls /".to_owned(), ..Command::default() })]);
        let shown = Shown { place: "here".to_owned(), left };
        let error = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(shown))).unwrap_err();
        let error = error.downcast_ref::<String>().unwrap();
        assert!(error.contains("ls /"), "{error}");
    }

    #[test]
    #[should_panic(expected = "nothing there is run by another test")]
    fn a_heading_without_such_commands_is_refused() {
        let _none = Shown::below("quick-start.md", "Nowhere");
    }
}
