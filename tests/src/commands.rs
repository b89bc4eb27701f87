//! What the documentation's pages tell a reader to run. Pure: text in, blocks out.
//!
//! Commands stand in fenced blocks: in ```` ```console ```` each behind a `$ `, its output below it; in ```` ```sh ```` a whole script.
//! Blocks in other languages hold no commands. Comments of HTML right before a block, which no reader sees, say what is special about it:
//!
//! | comment | the block's commands |
//! |---|---|
//! | `<!-- wait -->` | are repeated until they succeed and say what is shown: they only look |
//! | `<!-- background -->` | do not end by themselves; they run until the page's end |
//! | `<!-- exits: N -->` | end with N |
//! | `<!-- setup: COMMAND -->` | need this before, which a reader's machine has already |
//! | `<!-- run by: TEST -->` | are run by that end-to-end test, which takes them from the page: [`crate::shown`] |
//! | `<!-- all run by: TEST -->` | the same, for all blocks from here to the end of the page |
//! | `<!-- shown only: REASON -->` | are not run at all |

use std::sync::LazyLock;

use regex::Regex;

/// One fenced block with commands.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Block {
    /// The line of the page on which it begins, from 1.
    pub line: usize,
    /// The heading that it stands below.
    pub heading: String,
    /// How its commands are run.
    pub how: How,
    /// The end-to-end test that runs them; where none is named, they are run in the stage.
    pub by: Option<String>,
    /// What is run before them.
    pub setup: Vec<String>,
    /// The commands.
    pub commands: Vec<Command>,
}

/// How the commands of a block are run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum How {
    /// Each once, with this exit code.
    Once(i32),
    /// Until they succeed.
    Wait,
    /// Until the page's end.
    Background,
    /// Not at all, for this reason.
    ShownOnly(String),
}

impl Default for How {
    fn default() -> Self {
        Self::Once(0)
    }
}

/// One command, or one script.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Command {
    /// Its line of the page, from 1.
    pub line: usize,
    /// The host whose prompt it stands behind, where that names one: `host-1$ ls`.
    pub host: Option<String>,
    /// What the shell gets; may have several lines.
    pub text: String,
    /// What is shown of its output; nothing shown is nothing compared.
    pub output: Vec<String>,
    /// Whether it is a script, none of whose commands may fail.
    pub is_script: bool,
}

/// Languages of blocks that hold no commands.
const OTHERS: [&str; 12] =
    ["text", "json", "yaml", "toml", "ini", "haproxy", "dockerfile", "jinja", "js", "rust", "html", "dns"];

/// Comments that mark a place for another test.
const MARKS: [&str; 8] =
    ["help", "end of", "measured", "soak", "roles", "discoverer keys", "registrar keys", "standalone keys"];

/// The blocks with commands of a page.
///
/// # Errors
/// The first line that is not as this module's comment says, with the way out.
pub fn blocks(page: &str) -> Result<Vec<Block>, String> {
    let mut blocks = Vec::new();
    let mut rest: Option<String> = None;
    let mut heading = String::new();
    let mut comments: Vec<(usize, String)> = Vec::new();
    let lines: Vec<&str> = page.lines().collect();
    let mut index = 0;
    while index < lines.len() {
        let line = lines[index].trim();
        let number = index + 1;
        index += 1;
        if let Some(comment) = line.strip_prefix("<!--") {
            let comment =
                comment.strip_suffix("-->").ok_or(format!("line {number}: a comment must end on its line"))?;
            comments.push((number, comment.trim().to_owned()));
            continue;
        }
        let Some(language) = line.strip_prefix("```") else {
            if !line.is_empty() && !comments.is_empty() {
                rest = read_comments(&std::mem::take(&mut comments), &mut Block::default(), rest, true)?;
            }
            if line.starts_with('#') {
                line.trim_start_matches('#').trim().clone_into(&mut heading);
            }
            continue;
        };
        let end = lines[index..].iter().position(|line| line.trim() == "```");
        let end = index + end.ok_or(format!("line {number}: this block does not end"))?;
        let indent = lines[number - 1].len() - lines[number - 1].trim_start().len();
        let inside: Vec<&str> = lines[index..end].iter().map(|line| line.get(indent..).unwrap_or_default()).collect();
        let mut block = Block { line: number, heading: heading.clone(), ..Block::default() };
        rest = read_comments(&std::mem::take(&mut comments), &mut block, rest, false)?;
        match language {
            "console" => block.commands = commands(&inside, index + 1)?,
            "sh" | "bash" => {
                let text = inside.join("\n");
                block.commands = vec![Command { line: index + 1, text, is_script: true, ..Command::default() }];
            }
            _ if OTHERS.contains(&language) => {
                if let Some(at) = inside.iter().position(|line| line.starts_with("$ ")) {
                    return Err(format!("line {}: commands stand in ```console blocks", index + at + 1));
                }
            }
            "" => return Err(format!("line {number}: a block says what it holds: ```console, ```sh, ```text, ...")),
            other => return Err(format!("line {number}: no block is of {other:?}; known are {OTHERS:?}")),
        }
        if !block.commands.is_empty() {
            blocks.push(block);
        }
        index = end + 1;
    }
    Ok(blocks)
}

/// What comments say of the block behind them, or `is_text`: of the page. Gives the test that runs the rest of the page.
fn read_comments(
    comments: &[(usize, String)],
    block: &mut Block,
    mut rest: Option<String>,
    is_text: bool,
) -> Result<Option<String>, String> {
    for (number, comment) in comments {
        let (name, value) =
            comment.split_once(':').map_or((comment.as_str(), ""), |(name, value)| (name, value.trim()));
        match (name, value) {
            ("all run by", test) if !test.is_empty() => rest = Some(test.to_owned()),
            _ if MARKS.iter().any(|mark| name.starts_with(mark)) => {}
            _ if is_text => return Err(format!("line {number}: <!-- {comment} --> stands before no block")),
            ("setup", command) if !command.is_empty() => block.setup.push(command.to_owned()),
            ("wait", "") => block.how = How::Wait,
            ("background", "") => block.how = How::Background,
            ("exits", code) => {
                let code = code.parse().map_err(|_| format!("line {number}: {code:?} is no exit code"))?;
                block.how = How::Once(code);
            }
            ("run by", test) if !test.is_empty() => block.by = Some(test.to_owned()),
            ("shown only", reason) if !reason.is_empty() => block.how = How::ShownOnly(reason.to_owned()),
            _ => return Err(format!("line {number}: <!-- {comment} --> means nothing; see tests/src/commands.rs")),
        }
    }
    if !matches!(block.how, How::ShownOnly(_)) {
        block.by = block.by.take().or(rest.clone());
    }
    Ok(rest)
}

/// The command behind a prompt: `$ ls`, or as another host shows it `host-1$ ls`; before it, that host.
fn behind_prompt(line: &str) -> Option<(Option<String>, &str)> {
    static PROMPT: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"^([a-z0-9-]+)?\$ (.+)$").unwrap());
    let found = PROMPT.captures(line)?;
    Some((found.get(1).map(|host| host.as_str().to_owned()), found.get(2).unwrap().as_str()))
}

/// The word that ends a here-document which a line begins.
fn here_document(line: &str) -> Option<&str> {
    static BEGIN: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"<<-?'?([A-Z]+)'?").unwrap());
    BEGIN.captures(line).map(|found| found.get(1).unwrap().as_str())
}

fn commands(lines: &[&str], first: usize) -> Result<Vec<Command>, String> {
    let mut commands: Vec<Command> = Vec::new();
    let mut lines = lines.iter().copied().enumerate().peekable();
    while let Some((at, line)) = lines.next() {
        let Some((host, begin)) = behind_prompt(line) else {
            match commands.last_mut() {
                Some(command) => command.output.push(line.to_owned()),
                None => return Err(format!("line {}: a ```console block begins with `$ `", first + at)),
            }
            continue;
        };
        let mut text = begin.to_owned();
        while text.ends_with('\\')
            && let Some((_, more)) = lines.next()
        {
            text.push('\n');
            text.push_str(more);
        }
        if let Some(end) = here_document(&text).map(str::to_owned) {
            loop {
                let Some((_, more)) = lines.next() else {
                    return Err(format!("line {}: the here-document does not end with {end}", first + at));
                };
                text.push('\n');
                text.push_str(more);
                if more == end {
                    break;
                }
            }
        }
        commands.push(Command { line: first + at, host, text, ..Command::default() });
    }
    // A blank line before the next prompt is there for the eye.
    for command in &mut commands {
        while command.output.last().is_some_and(|line| line.trim().is_empty()) {
            command.output.pop();
        }
    }
    Ok(commands)
}

/// Whether an output is what a page shows: its lines in their order. Gives what it says where the page shows ids of containers and addresses
/// with ports, in pairs of both.
///
/// What differs from one run to the next need not be equal: ids of containers and agents, times, numbers of four digits or more (ports),
/// numbers with a unit (`18s`, `4.5 MB`), what etcd counts (`"ttl":17`), and how many blanks there are. `...` stands for any text, on a line
/// of its own for any lines.
///
/// # Errors
/// The line that is not there.
pub fn compare(shown: &[String], output: &str) -> Result<Vec<(String, String)>, String> {
    let mut rest: &[&str] = &output.lines().map(str::trim_end).filter(|line| !line.is_empty()).collect::<Vec<_>>();
    let mut may_skip = false;
    let mut pairs = Vec::new();
    for line in shown.iter().map(|line| line.trim_end()).filter(|line| !line.is_empty()) {
        if line.trim() == "..." {
            may_skip = true;
            continue;
        }
        let (pattern, names) = pattern(line);
        let found = if may_skip {
            rest.iter().position(|seen| pattern.is_match(seen))
        } else {
            rest.first().and_then(|seen| pattern.is_match(seen).then_some(0))
        };
        let Some(at) = found else { return Err(format!("not said where the page shows it: {line}")) };
        let seen = pattern.captures(rest[at]).unwrap();
        let seen = seen.iter().skip(1).map(|group| group.unwrap().as_str().to_owned());
        pairs.extend(names.into_iter().map(str::to_owned).zip(seen));
        rest = &rest[at + 1..];
        may_skip = false;
    }
    match rest.first() {
        Some(more) if !may_skip => Err(format!("said, but not on the page (a line `...` stands for more): {more}")),
        _ => Ok(pairs),
    }
}

/// What matches a line that is shown, with a group for each of these: ids of containers, and addresses with ports.
fn pattern(line: &str) -> (Regex, Vec<&str>) {
    // Each alternative is a group; what is between is taken by the letter.
    static SHAPES: LazyLock<Regex> = LazyLock::new(|| {
        Regex::new(
            r#"(?<time>\d{4}-\d\d-\d\dT[0-9:.]+(?:Z|[+-]\d\d:\d\d))|(?<count>"(?:ttl|modifiedIndex|createdIndex)":)\d+|(?<place>\d+\.\d+\.\d+\.\d+:)\d{4,}|(?<id>\b[0-9a-f]{12,64}\b)|(?<unit>\b\d+(?:\.\d+)?(?<blank> ?)(?<word>µs|ms|s|m|kB|MB|%))|(?<number>\d{4,})|(?<any>\.\.\.|…)|(?<space>\s+)"#,
        )
        .unwrap()
    });
    let mut pattern = String::from("^");
    let mut names = Vec::new();
    let mut from = 0;
    for found in SHAPES.captures_iter(line) {
        let whole = found.get(0).unwrap();
        pattern.push_str(&regex::escape(&line[from..whole.start()]));
        from = whole.end();
        if found.name("time").is_some() {
            pattern.push_str(r"\d{4}-\d\d-\d\dT[0-9:.]+(?:Z|[+-]\d\d:\d\d)");
        } else if let Some(name) = found.name("count") {
            pattern.push_str(&format!(r"{}\d+", regex::escape(name.as_str())));
        } else if let Some(address) = found.name("place") {
            names.push(whole.as_str());
            pattern.push_str(&format!(r"({}\d+)", regex::escape(address.as_str())));
        } else if found.name("id").is_some() {
            names.push(whole.as_str());
            pattern.push_str("([0-9a-f]{12,64})");
        } else if let Some(word) = found.name("word") {
            pattern.push_str(&format!(r"\d+(?:\.\d+)?{}{}", &found["blank"], regex::escape(word.as_str())));
        } else if found.name("number").is_some() {
            pattern.push_str(r"\d+");
        } else if found.name("any").is_some() {
            pattern.push_str(".*");
        } else {
            pattern.push_str(r"\s+");
        }
    }
    pattern.push_str(&regex::escape(&line[from..]));
    pattern.push_str(r"\s*$");
    (Regex::new(&pattern).unwrap(), names)
}

/// A text without its fenced blocks and without `code` in its lines.
pub fn outside_of_code(text: &str) -> String {
    let mut outside = String::new();
    let mut is_fenced = false;
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            is_fenced = !is_fenced;
        } else if !is_fenced {
            outside.extend(line.split('`').step_by(2));
            outside.push('\n');
        }
    }
    outside
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(line: usize, text: &str, output: &[&str]) -> Command {
        let output = output.iter().map(|&line| line.to_owned()).collect();
        Command { line, text: text.to_owned(), output, ..Command::default() }
    }

    #[test]
    fn links_in_code_are_no_links() {
        let text = "a [b](c)\n```sh\n[d](e)\n```\n`[f](g)` and [h](i)\n";
        assert_eq!(outside_of_code(text), "a [b](c)\n and [h](i)\n");
    }

    #[test]
    fn a_console_block_has_commands_each_with_its_output() {
        let page = "# Head\n\n```console\n$ ls \\\n  -l\na\nb\n\nhost-1$ cat >x <<'END'\n$ 1\nEND\n```\n";
        let block = Block {
            line: 3,
            heading: "Head".to_owned(),
            commands: vec![
                command(4, "ls \\\n  -l", &["a", "b"]),
                Command { host: Some("host-1".to_owned()), ..command(9, "cat >x <<'END'\n$ 1\nEND", &[]) },
            ],
            ..Block::default()
        };
        assert_eq!(blocks(page).unwrap(), [block]);
    }

    #[test]
    fn a_script_is_one_command_and_other_languages_have_none() {
        let page = "- list\n  ```sh\n  set -e\n    true\n  ```\n```json\n{}\n```\n";
        let found = blocks(page).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].commands[0].text, "set -e\n  true");
        assert!(found[0].commands[0].is_script);
    }

    #[test]
    fn comments_before_a_block_say_how_it_is_run() {
        let page = "<!-- setup: true -->\n<!-- wait -->\n\n```console\n$ a\n```\n<!-- exits: 3 -->\n```console\n$ b\n```\n\
                    <!-- all run by: x -->\nText.\n```console\n$ c\n```\n<!-- shown only: why -->\n```sh\nd\n```\n\
                    <!-- run by: y -->\n<!-- wait -->\n```sh\ne\n```\n";
        let how: Vec<_> = blocks(page).unwrap().into_iter().map(|block| (block.how, block.by)).collect();
        let by = |test: &str| Some(test.to_owned());
        let expected = [
            (How::Wait, None),
            (How::Once(3), None),
            (How::Once(0), by("x")),
            (How::ShownOnly("why".to_owned()), None),
            (How::Wait, by("y")),
        ];
        assert_eq!(how, expected);
        assert_eq!(blocks(page).unwrap()[0].setup, ["true"]);
    }

    #[test]
    fn what_is_not_understood_is_an_error_with_its_line() {
        for (page, words) in [
            ("```\n$ a\n```\n", "line 1: a block says what it holds"),
            ("```text\n$ a\n```\n", "line 2: commands stand in"),
            ("```perl\n```\n", "line 1: no block is of \"perl\""),
            ("```console\nfirst\n```\n", "line 2: a ```console block begins with"),
            ("```console\n$ a\n", "line 1: this block does not end"),
            ("\n<!-- wiat -->\n```console\n$ a\n```\n", "line 2: <!-- wiat --> means nothing"),
            ("<!-- wait -->\nText.\n", "line 1: <!-- wait --> stands before no block"),
            ("<!-- exits: x -->\n```sh\na\n```\n", "line 1: \"x\" is no exit code"),
            ("<!-- run by: -->\n```sh\na\n```\n", "means nothing"),
            ("```console\n$ cat <<END\n```\n", "line 2: the here-document"),
        ] {
            let error = blocks(page).expect_err(page);
            assert!(error.contains(words), "{page:?}: {error}");
        }
    }

    #[test]
    fn what_differs_from_run_to_run_need_not_be_equal() {
        let shown = |text: &str| text.lines().map(str::to_owned).collect::<Vec<_>>();
        for (page, output) in [
            ("Hello from 2d151d56f838", "Hello from 9bcb2f750594\n"),
            ("a  10.1.0.101:32787  running  18s", "a 10.1.0.101:49153   running   9s"),
            ("at 2026-01-02T03:04:05Z", "at 2027-11-12T13:14:15.5Z"),
            ("a\n...\nd", "a\nb\nc\nd\n"),
            ("...\nd\n...", "a\nd\ne\n"),
            ("key ... ttl", "key value ttl"),
            ("took 3 ms", "took 12.5 ms"),
            (r#"{"ttl":17,"createdIndex":4}"#, r#"{"ttl":8,"createdIndex":12}"#),
        ] {
            assert!(compare(&shown(page), output).is_ok(), "{page:?} and {output:?}");
        }
        for (page, output) in [
            ("Hello from 2d151d56f838", "Hello from nobody"),
            ("10.1.0.101:32787", "10.1.0.102:32787"),
            ("status 503", "status 404"),
            ("a\nb", "a\n"),
            ("a", "a\nb\n"),
            ("...\na", "b\n"),
            ("3s", "three s"),
            ("a.b", "axb"),
            (r#""nodes":17"#, r#""nodes":8"#),
        ] {
            assert!(compare(&shown(page), output).is_err(), "{page:?} and {output:?}");
        }
    }
}
