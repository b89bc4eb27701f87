//! What a change costs does not grow with the number of instances. Counted in instructions by valgrind, which are the same whatever else
//! the machine does; a ratio of two counts is the same for each compiler, too.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::process::Command;

/// The instructions of one step among so many instances.
fn instructions(part: &str, instances: u32) -> u64 {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("counts");
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--collect-atstart=no", "--toggle-collect=*counted*"])
        .arg(format!("--callgrind-out-file={}", out.display()))
        .args([env!("CARGO_BIN_EXE_bench"), "once", part, &instances.to_string()])
        .output()
        .unwrap_or_else(|error| panic!("valgrind: {error}; `apt-get install valgrind`, or ./test, provides it"));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let counts = fs::read_to_string(out).unwrap();
    let total = counts.lines().find_map(|line| line.strip_prefix("summary: ")).expect("callgrind's summary");
    let total: u64 = total.trim().parse().unwrap();
    assert!(total > 1000, "{part}: {total} instructions: nothing was counted");
    total
}

/// How many times as much a step takes with ten times as many instances.
fn growth(part: &str) -> f64 {
    let (few, many) = (instructions(part, 300), instructions(part, 3000));
    #[allow(clippy::cast_precision_loss)]
    let growth = many as f64 / few as f64;
    println!("{part}: {few} instructions with 300 instances, {many} with 3000: {growth:.2} times");
    growth
}

#[test]
fn an_instance_that_comes_costs_the_same_among_many_as_among_few() {
    let growth = growth("change");
    assert!(growth < 1.2, "{growth:.2} times as much among 3000 as among 300");
}

#[test]
fn what_goes_through_all_instances_costs_no_more_than_their_number_says() {
    for part in ["list", "render", "render-again", "parse", "plan"] {
        let growth = growth(part);
        assert!(growth < 12.0, "{part}: {growth:.2} times as much among 3000 as among 300");
    }
}
