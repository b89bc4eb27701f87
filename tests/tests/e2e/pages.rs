//! Each command of the README and of docs/ is run, page by page from top to bottom, on a host made for it: the stage.
//!
//! The stage is a container with systemd and a Docker engine of its own, in which our programs, our images, etcd and HAProxy are, and a
//! checkout of this project in /root/demo. What is special about a block is said before it in comments: `e2e::commands`.
//! `PAGES=etcd.md,tls.md` in the environment runs these pages alone.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use e2e::commands::{Block, Command, How, blocks, compare};
use e2e::docker::{Docker, IMAGE_NAMES, SYSTEMD_FLAGS, docker_ok};
use e2e::process::{find_program, find_workspace_binary, run, tail};
use e2e::{secs, wait_until, within, workspace};
use regex::Regex;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout};

/// What one command may take, unless it is a whole demo.
const LIMIT: Duration = Duration::from_secs(120);

/// How long a command that only looks is repeated.
const WAIT: Duration = Duration::from_secs(40);

/// The last words of each container, for whoever has to find out why a command failed.
const LOGS: &str = "docker ps -a; for name in $(docker ps -a --format '{{.Names}}'); do echo \"--- $name\"; docker logs --tail 30 $name 2>&1; done";

/// As many blocks may be shown without being run anywhere.
const SHOWN_ONLY_LIMIT: usize = 3;

/// One page with its blocks.
struct Page {
    name: String,
    blocks: Vec<Block>,
}

/// The README, and the book's pages in its order.
fn pages() -> Vec<Page> {
    let root = workspace();
    let summary = fs::read_to_string(root.join("docs/SUMMARY.md")).unwrap();
    let links = summary.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    let files = links.map(|name| (name.to_owned(), root.join("docs").join(name)));
    // The last one: it removes the images at its end.
    let readme = ("../README.md".to_owned(), root.join("README.md"));
    files
        .chain([readme])
        .map(|(name, path)| {
            let text = fs::read_to_string(&path).unwrap();
            let blocks = blocks(&text).unwrap_or_else(|error| panic!("docs/{name}: {error}"));
            let prompts = text.lines().filter(|line| line.trim_start().starts_with("$ ")).count();
            let count = blocks.iter().flat_map(|block| &block.commands).filter(|command| !command.is_script).count();
            assert!(count >= prompts, "docs/{name} shows {prompts} prompts, and {count} commands were read");
            Page { name, blocks }
        })
        .collect()
}

/// The sources of the end-to-end tests, by the names of their modules.
fn sources() -> BTreeMap<String, String> {
    let directory = workspace().join("tests/tests/e2e");
    let mut paths: Vec<PathBuf> = vec![directory];
    let mut sources = BTreeMap::new();
    while let Some(path) = paths.pop() {
        if path.is_dir() {
            paths.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else {
            let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
            sources.insert(name, fs::read_to_string(path).unwrap());
        }
    }
    sources
}

/// The functions of a source, by their names: what stands from one to the next, without what is in comments.
fn functions(source: &str) -> BTreeMap<&str, String> {
    static BEGIN: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(r"(?m)^ *(?:pub(?:\([a-z]+\))? )?(?:async )?fn (\w+)").unwrap());
    let begins =
        BEGIN.captures_iter(source).map(|begin| begin.get(1).unwrap()).map(|name| (name.start(), name.as_str()));
    let begins: Vec<_> = begins.collect();
    let ends = begins.iter().skip(1).map(|(start, _)| *start).chain([source.len()]);
    let mut functions: BTreeMap<&str, String> = BTreeMap::new();
    for ((start, name), end) in begins.iter().zip(ends) {
        let code = source[*start..end].lines().filter(|line| !line.trim_start().starts_with("//"));
        // One with the same name, of another type of the file, counts for both.
        functions.entry(name).or_default().extend(code.flat_map(|line| [line, "\n"]));
    }
    functions
}

/// What a test of a source does: its own text, and that of all functions of the source that it comes to.
fn reached(source: &str, test: &str) -> Option<String> {
    static CALL: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"(\w+)\(").unwrap());
    let functions = functions(source);
    let is_test = Regex::new(&format!(r"#\[(?:tokio::)?test\](?:\n *#\[.*\])*\n *(?:async )?fn {test}\(")).unwrap();
    if !is_test.is_match(source) {
        return None;
    }
    let (mut names, mut next) = (vec![test], 0);
    while let Some(name) = names.get(next) {
        next += 1;
        for called in CALL.captures_iter(&functions[name]) {
            let called = functions.get_key_value(called.get(1).unwrap().as_str()).map(|(name, _)| *name);
            names.extend(called.filter(|called| !names.contains(called)));
        }
    }
    Some(names.into_iter().map(|name| functions[name].as_str()).collect())
}

/// Why a block is not run by the test that it names, if so: the test takes the commands that are run from the page.
fn not_run_by(sources: &BTreeMap<String, String>, test: &str, page: &str, block: &Block) -> Option<String> {
    let Some(text) = sources.values().find_map(|source| reached(source, test)) else {
        return Some(format!("there is no test {test}"));
    };
    let call = format!("Shown::below({page:?}, {:?})", block.heading);
    (!text.contains(&call)).then(|| format!("{test} does not take what it runs from here: it has no {call}"))
}

#[test]
fn what_a_test_comes_to_is_found_and_what_stands_beside_it_is_not() {
    let source = "#[tokio::test]\nasync fn one() {\n    two().await;\n}\nfn other() { x }\n\
                  impl A {\n    pub(crate) async fn two(&self) {\n        // no(\n        here\n    }\n}\nfn no() { nowhere }\n";
    let text = reached(source, "one").unwrap();
    assert!(text.contains("here") && !text.contains("nowhere") && !text.contains('x'), "{text}");
    assert_eq!(reached(source, "two"), None, "no test");
}

#[test]
fn each_command_that_another_test_runs_is_taken_from_the_page_by_that_test() {
    let sources = sources();
    let mut wrong = Vec::new();
    let mut shown_only = Vec::new();
    let mut count = 0;
    for page in pages() {
        for block in &page.blocks {
            if let How::ShownOnly(reason) = &block.how {
                shown_only.push(format!("docs/{}:{}: {reason}", page.name, block.line));
            }
            if let Some(test) = &block.by {
                count += 1;
                let why = not_run_by(&sources, test, &page.name, block);
                wrong.extend(why.map(|why| format!("docs/{}:{}: {why}", page.name, block.line)));
            }
        }
    }
    println!("{count} blocks are run by other tests; shown and not run:\n{}", shown_only.join("\n"));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(shown_only.len() <= SHOWN_ONLY_LIMIT, "too many blocks are only shown: {shown_only:#?}");
}

/// A host of its own for pages.
struct Stage {
    docker: Docker,
    id: String,
}

impl Stage {
    async fn start() -> Stage {
        let built = run(&workspace().join("tests/stage/build"), &[], &[], secs(900)).await;
        assert_eq!(built.code, Some(0), "tests/stage/build: {}\n{}", built.stdout, built.stderr);
        let docker = Docker::start().await;
        let flags = [&SYSTEMD_FLAGS[..], &["--hostname=host-1", "local/stage"]].concat();
        let id = docker.run("stage", &flags).await.id().to_owned();
        let stage = Stage { docker, id };
        wait_until(secs(60), "the stage's Docker engine answers", async || {
            let seen = e2e::docker::docker(&["exec", &stage.id, "docker", "version"]).await;
            if seen.code == Some(0) { Ok(()) } else { Err(seen.stderr) }
        })
        .await;
        stage.fill().await;
        stage
    }

    /// Our programs, our images, and a checkout of the project.
    async fn fill(&self) {
        let images =
            docker_ok(&["images", "--format", "{{.Repository}}:{{.Tag}}", "--filter", "reference=local/debian"]).await;
        let images: Vec<&str> = images.split_whitespace().chain(IMAGE_NAMES).collect();
        let id = &self.id;
        let kept = "docker images --format '{{.Repository}}:{{.Tag}}' | sed -n 's|^local/||p' | while read -r image; do docker tag \"local/$image\" \"kept/$image\"; done";
        let programs = find_workspace_binary("registrar");
        let debug = programs.parent().unwrap().display();
        let script = format!(
            "set -euo pipefail
            docker save {images} | docker exec -i {id} docker load >/dev/null
            docker exec {id} sh -c \"$1\"
            {{ git ls-files -z --cached --others --exclude-standard; printf 'target/static/%s\\0' registrar discoverer; }} |
                tar -c --null --files-from - | docker exec -i {id} sh -c 'mkdir /root/demo && tar -x --no-same-owner -C /root/demo'
            for program in registrar discoverer standalone; do
                [ ! -e {debug}/$program ] || docker cp -q {debug}/$program {id}:/usr/local/bin/ 2>/dev/null || docker cp {debug}/$program {id}:/usr/local/bin/
            done",
            images = images.join(" ")
        );
        let args = ["-c", &script, "bash", kept];
        let root = workspace().display().to_string();
        let filled =
            run(&find_program("env", "coreutils"), &[&["-C", &root, "bash"], &args[..]].concat(), &[], secs(200)).await;
        assert_eq!(filled.code, Some(0), "the stage is not filled: {}", filled.stderr);
    }

    /// As it was before the last page.
    async fn reset(&self) {
        let reset = run(&find_program("docker", "docker.io"), &["exec", &self.id, "stage-reset"], &[], secs(100)).await;
        assert_eq!(reset.code, Some(0), "{reset:?}");
    }

    async fn shell(&self) -> Shell {
        let mut child = tokio::process::Command::new(find_program("docker", "docker.io"))
            .args(["exec", "-i", "-w", "/root/demo", "-e", "HOME=/root", "-e", "LC_ALL=C.UTF-8", &self.id, "bash"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let input = child.stdin.take().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut shell = Shell { _child: child, input, output };
        let (code, said) = shell.tell("true", false, LIMIT).await.unwrap();
        assert_eq!(code, 0, "{said}");
        shell
    }
}

/// A reader's shell on the stage.
struct Shell {
    _child: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
}

const MARK: &str = "--- the stage says";

impl Shell {
    /// Runs a command, and gives its exit code and all that it said; a script's code is that of its first command that failed.
    async fn tell(&mut self, text: &str, is_script: bool, limit: Duration) -> Result<(i32, String), String> {
        let traced = if is_script {
            "failed=0; trap 'failed=$?' ERR; . /run/command; trap - ERR; (exit $failed)"
        } else {
            ". /run/command"
        };
        let told = format!(
            "cat >/run/command <<'END OF COMMAND'\n{text}\nEND OF COMMAND\n{{ {traced}\n}} >/run/said 2>&1 </dev/null\ncode=$?\ncat /run/said\nprintf '\\n{MARK} %s\\n' $code\n"
        );
        self.input.write_all(told.as_bytes()).await.map_err(|error| error.to_string())?;
        let mut said = String::new();
        let read = async {
            while let Some(line) = self.output.next_line().await.map_err(|error| error.to_string())? {
                if let Some(code) = line.strip_prefix(MARK) {
                    return Ok(code.trim().parse().unwrap());
                }
                said.push_str(&line);
                said.push('\n');
            }
            Err("the shell has ended".to_owned())
        };
        let code = tokio::time::timeout(limit, read).await.map_err(|_| format!("does not end within {limit:?}"))??;
        Ok((code, said))
    }

    /// Carries out one command as its block says; an error says what is otherwise than on the page.
    async fn carry_out(&mut self, how: &How, command: &Command) -> Result<(), String> {
        match how {
            How::Background => {
                let text = format!("{{ {}\n}} >/run/background-$((++background)) 2>&1 &", command.text);
                self.tell(&text, false, LIMIT).await.map(|_| ())
            }
            How::Once(wanted) => {
                let (code, said) = self.tell(&command.text, command.is_script, LIMIT).await?;
                judge(code, *wanted, command, &said)
            }
            How::Wait => {
                let begin = Instant::now();
                loop {
                    let (code, said) = self.tell(&command.text, command.is_script, LIMIT).await?;
                    let judged = judge(code, 0, command, &said);
                    if judged.is_ok() || begin.elapsed() > WAIT {
                        return judged;
                    }
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
            }
            How::ShownOnly(_) => Ok(()),
        }
    }
}

fn judge(code: i32, wanted: i32, command: &Command, said: &str) -> Result<(), String> {
    if code != wanted {
        return Err(format!("ends with {code} instead of {wanted}; it says\n{}", tail(said)));
    }
    match command.output.as_slice() {
        [] => Ok(()),
        shown => compare(shown, said).map(drop).map_err(|why| format!("{why}\n{}", tail(said))),
    }
}

#[derive(Default)]
struct Count {
    run: usize,
    elsewhere: usize,
    shown: usize,
    wrong: Vec<String>,
}

/// All commands of a page that are not run elsewhere; what comes after one that fails is not tried.
async fn play(stage: &Stage, page: &Page, count: &mut Count) {
    let begin = Instant::now();
    let is_here = |block: &&Block| block.by.is_none() && !matches!(block.how, How::ShownOnly(_));
    let before = count.run;
    if page.blocks.iter().any(|block| is_here(&block)) {
        stage.reset().await;
    }
    let mut shell = stage.shell().await;
    for block in &page.blocks {
        match block.how {
            _ if block.by.is_some() => count.elsewhere += block.commands.len(),
            How::ShownOnly(_) => count.shown += block.commands.len(),
            How::Once(_) | How::Wait | How::Background => {
                let setup = block.setup.iter().map(|text| Command {
                    line: block.line,
                    text: text.clone(),
                    ..Command::default()
                });
                for (command, how) in setup
                    .map(|command| (command, How::Once(0)))
                    .chain(block.commands.iter().map(|command| (command.clone(), block.how.clone())))
                {
                    if let Err(why) = shell.carry_out(&how, &command).await {
                        let logs = shell.tell(LOGS, true, LIMIT).await;
                        count
                            .wrong
                            .push(format!("docs/{}:{}: {}\n{why}\n{logs:?}", page.name, command.line, command.text));
                        return;
                    }
                }
                count.run += block.commands.len();
            }
        }
    }
    let _ended = shell.tell("kill $(jobs -p) 2>/dev/null; wait", false, LIMIT).await;
    if count.run > before {
        println!("{:6.1} s  {:3} commands  docs/{}", begin.elapsed().as_secs_f64(), count.run - before, page.name);
    }
}

#[tokio::test]
async fn each_command_of_the_documentation_does_what_is_written_of_it() {
    let chosen = std::env::var("PAGES").ok();
    let is_chosen =
        |page: &Page| chosen.as_ref().is_none_or(|names| names.split(',').any(|name| page.name.ends_with(name)));
    let pages: Vec<Page> = pages().into_iter().filter(is_chosen).collect();
    let stage = Stage::start().await;
    within(900, async {
        let mut count = Count::default();
        for page in &pages {
            play(&stage, page, &mut count).await;
        }
        println!(
            "{} commands on {} pages: {} run on {}, {} by other tests, {} only shown",
            count.run + count.elsewhere + count.shown,
            pages.len(),
            count.run,
            stage.docker.name(),
            count.elsewhere,
            count.shown
        );
        assert!(count.wrong.is_empty(), "{} pages are wrong:\n\n{}", count.wrong.len(), count.wrong.join("\n\n"));
        let all: usize = pages.iter().flat_map(|page| &page.blocks).map(|block| block.commands.len()).sum();
        assert_eq!(count.run + count.elsewhere + count.shown, all, "a command was passed over");
        assert!(chosen.is_some() || count.run > 100, "only {} commands were run", count.run);
    })
    .await;
}
