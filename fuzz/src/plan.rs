//! Configurations of HAProxy's, any text among them, and the ways from one to another.

#[allow(clippy::unwrap_used, reason = "it is a part of tests too")]
#[path = "../../discoverer/tests/plan_texts/carry.rs"]
pub(crate) mod carry;

use discoverer::plan::{Parsed, Plan, ServerId, Version, addition, between, part, removal};
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use self::carry::{carry_out, is_safe};
use crate::plan_texts::stories;
use crate::{is_short, two};

const VERSION: Option<Version> = Some(Version { major: 2, minor: 6 });

/// Two texts, with a byte 0 between them.
pub(crate) fn texts(input: &[u8]) {
    let (a, b) = two(input);
    let (running, wanted) = (Parsed::new(a.as_ref()), Parsed::new(b.as_ref()));
    for (parsed, text) in [(&running, &a), (&wanted, &b)] {
        assert_eq!(parsed.text(), text);
        assert_eq!(between(parsed, &Parsed::new(text.as_ref()), VERSION), Plan::Nothing);
        each_server(parsed);
    }
    on_the_way(&running, &wanted);
    on_the_way(&wanted, &running);
}

/// What is asked of one text.
fn each_server(parsed: &Parsed) {
    let _told = (parsed.binds(), parsed.worker_limits());
    for server in parsed.servers().take(16) {
        let id = ServerId { backend: server.backend.into_owned(), server: server.name.into_owned() };
        let _told = (parsed.tracks(&id), parsed.tells_servers_of(&id.backend));
        if let Ok(change) = removal(parsed, &id, VERSION) {
            assert!(is_safe(&change), "{change:?}");
        }
        let Some(line) = parsed.server_line(&id) else { continue };
        if let Ok(change) = addition(parsed, &id.backend, line, VERSION) {
            assert!(is_safe(&change), "{change:?}");
        }
    }
}

/// Carried out, a plan leads to the wanted text; of what needs a reload a part may be carried out before it.
pub(crate) fn on_the_way(running: &Parsed, wanted: &Parsed) {
    let plan = between(running, wanted, VERSION);
    let part = part(running, wanted, VERSION);
    assert!(part.changes.iter().all(is_safe), "{part:?}");
    let then = running.with_lines(&part.lines);
    match &plan {
        Plan::Nothing => {}
        Plan::Runtime(changes) => {
            assert!(!changes.is_empty());
            // Where servers stand before a `default-server`, the part leaves them as they are.
            let rest = between(&then, wanted, VERSION);
            let is_done = part.changes == *changes;
            assert!(rest == Plan::Nothing || !is_done, "{rest:?}\n{}\n{}", then.text(), wanted.text());
            assert!(!matches!(rest, Plan::Reload(_)), "{rest:?}\n{}\n{}", then.text(), wanted.text());
        }
        Plan::Reload(reason) => is_short(&reason.to_string()),
    }
    assert!(matches!(between(running, wanted, None), Plan::Nothing | Plan::Reload(_)));
}

/// The seed of a story of two states of some backends, and how they are written.
pub(crate) fn model(input: &[u8]) {
    let mut seed = [0; 32];
    seed.iter_mut().zip(input).for_each(|(seed, byte)| *seed = *byte);
    let layout = |at: usize| input.iter().skip(at).take(8).fold(0, |all, byte| all << 8 | u64::from(*byte));
    let config = Config { failure_persistence: None, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &seed));
    let Ok(tree) = stories(2).new_tree(&mut runner) else { return };
    let story = tree.current();
    let (running, wanted) = (story.text(0, layout(32)), story.text(1, layout(40)));
    let (before, after) = (Parsed::new(running.as_str()), Parsed::new(wanted.as_str()));
    let mut model = story.model(0);
    match between(&before, &after, VERSION) {
        Plan::Nothing => {}
        Plan::Runtime(changes) => changes.into_iter().for_each(|change| carry_out(&mut model, change)),
        Plan::Reload(reason) => panic!("only servers differ, but: {reason}\n{running}\n{wanted}"),
    }
    assert_eq!(model, story.model(1), "\n{running}\n{wanted}");
    on_the_way(&before, &after);
}
