//! `cargo bench`, with the arguments after `--`: hands over to the program of this package, which measures.

use std::env;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

fn main() {
    // cargo's own word to what is to measure: without it, it only tries whether this runs.
    let (words, arguments): (Vec<_>, Vec<_>) = env::args_os().skip(1).partition(|argument| argument == "--bench");
    if words.is_empty() {
        return;
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let error = Command::new(env!("CARGO_BIN_EXE_bench")).args(arguments).current_dir(root).exec();
    panic!("{}: {error}", env!("CARGO_BIN_EXE_bench"));
}
