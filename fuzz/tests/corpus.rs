//! Every input that is kept runs through its target, and each target has some.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeSet;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};

/// What all inputs may take together, and one of them, in bytes.
const LIMIT: u64 = 1024 * 1024;
const ONE_LIMIT: u64 = 96 * 1024;

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus")
}

fn names(directory: &Path) -> BTreeSet<String> {
    let entries = std::fs::read_dir(directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn every_target_has_a_corpus_and_every_corpus_a_target() {
    let targets: BTreeSet<String> = fuzz::TARGETS.iter().map(|target| target.name.to_owned()).collect();
    assert_eq!(targets.len(), fuzz::TARGETS.len(), "two of one name");
    assert_eq!(names(&corpus()), targets);
    for target in targets {
        assert!(
            !names(&corpus().join(&target)).is_empty(),
            "corpus/{target} is empty: put inputs into it, or fuzz/run --keep {target}"
        );
    }
}

#[test]
fn the_corpus_stays_small() {
    let mut all = 0;
    for target in fuzz::TARGETS {
        for name in names(&corpus().join(target.name)) {
            let size = corpus().join(target.name).join(&name).metadata().unwrap().len();
            assert!(size <= ONE_LIMIT, "corpus/{}/{name} has {size} bytes, at most {ONE_LIMIT} are kept", target.name);
            all += size;
        }
    }
    assert!(all <= LIMIT, "the corpus has {all} bytes, at most {LIMIT} are kept");
}

#[test]
fn what_was_found_once_still_holds() {
    let mut failed = Vec::new();
    for target in fuzz::TARGETS {
        for name in names(&corpus().join(target.name)) {
            let input = std::fs::read(corpus().join(target.name).join(&name)).unwrap();
            if catch_unwind(|| target.run(&input)).is_err() {
                failed.push(format!("fuzz/corpus/{}/{name}", target.name));
            }
        }
    }
    assert!(failed.is_empty(), "what each says stands above: {failed:#?}");
}
