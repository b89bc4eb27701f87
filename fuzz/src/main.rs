//! What libFuzzer drives: the target that the variable `FUZZ_TARGET` names. Built and run by `fuzz/run`.

#![no_main]

use std::sync::LazyLock;

static TARGET: LazyLock<fuzz::Target> = LazyLock::new(|| {
    let name = std::env::var("FUZZ_TARGET").unwrap_or_default();
    fuzz::target(&name).unwrap_or_else(|| panic!("FUZZ_TARGET is {name:?}: it names no target (fuzz/run --list)"))
});

libfuzzer_sys::fuzz_target!(|input: &[u8]| TARGET.run(input));
