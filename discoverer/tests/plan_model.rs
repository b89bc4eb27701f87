//! Carrying out a plan on a model of HAProxy reaches the servers of the wanted text, for random pairs of texts.

#![allow(clippy::unwrap_used)]

#[path = "plan_texts/carry.rs"]
mod carry;
mod plan_texts;

use carry::{carry_out, is_safe};
use discoverer::plan::{Change, Parsed, Plan, Version, addition, between, part, plan, removal};
use plan_texts::{Model, stories};
use proptest::prelude::*;

const VERSION: Option<Version> = Some(Version { major: 2, minor: 6 });

fn changes(plan: Plan) -> Vec<Change> {
    match plan {
        Plan::Nothing => Vec::new(),
        Plan::Runtime(changes) => {
            assert!(!changes.is_empty());
            changes
        }
        Plan::Reload(reason) => panic!("only servers differ, but: {reason}"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 250, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn carrying_out_a_plan_reaches_the_wanted_servers(story in stories(2), a in any::<u64>(), b in any::<u64>()) {
        let (running, wanted) = (story.text(0, a), story.text(1, b));
        let mut model = story.model(0);
        for change in changes(plan(&running, &wanted, VERSION)) {
            carry_out(&mut model, change);
        }
        prop_assert_eq!(model, story.model(1), "\n{}\n{}", running, wanted);
    }

    #[test]
    fn layout_is_no_difference(story in stories(1), a in any::<u64>(), b in any::<u64>()) {
        let (running, wanted) = (story.text(0, a), story.text(0, b));
        prop_assert_eq!(plan(&running, &running, None), Plan::Nothing);
        prop_assert_eq!(plan(&running, &wanted, None), Plan::Nothing, "\n{}\n{}", running, wanted);
    }

    #[test]
    fn one_line_on_its_own_gives_the_change_of_the_whole_plan(story in stories(2), a in any::<u64>()) {
        let (running, wanted) = (Parsed::new(story.text(0, a)), Parsed::new(story.text(1, a)));
        for change in changes(between(&running, &wanted, VERSION)) {
            let Change::Add { id, .. } = &change else { continue };
            let backend = story.backends.iter().position(|backend| backend.name == id.backend).unwrap();
            let server = story.states[1][backend].iter().find(|server| server.name == id.server).unwrap();
            prop_assert_eq!(addition(&running, &id.backend, &server.line(), VERSION), Ok(change));
        }
    }

    #[test]
    fn a_removal_on_its_own_is_the_one_of_the_whole_plan(story in stories(2), a in any::<u64>()) {
        let (running, wanted) = (Parsed::new(story.text(0, a)), Parsed::new(story.text(1, a)));
        for change in changes(between(&running, &wanted, VERSION)) {
            match &change {
                Change::Remove { id } => prop_assert_eq!(removal(&running, id, VERSION), Ok(change)),
                Change::Add { id, .. } => prop_assert!(removal(&running, id, VERSION).is_err()),
                _ => {}
            }
        }
    }

    #[test]
    fn what_needs_no_reload_is_reached_while_the_rest_waits(story in stories(2), a in any::<u64>(), b in any::<u64>()) {
        let (running, wanted) = (Parsed::new(story.text(0, a)), story.text(1, b));
        let with_more = Parsed::new(format!("{wanted}\nbackend new.x\n  server n 1.1.1.1:1\nfrontend new\n  bind :1\n"));
        prop_assert!(matches!(between(&running, &with_more, VERSION), Plan::Reload(_)));
        let part = part(&running, &with_more, VERSION);
        let mut model = story.model(0);
        for change in part.changes {
            carry_out(&mut model, change);
        }
        // Each backend is as it was (where a `default-server` stands behind servers) or as it is wanted.
        let of = |model: &Model, name: &str| -> Model {
            let servers = model.iter().filter(|((backend, _), _)| backend == name);
            servers.map(|(key, server)| (key.clone(), server.clone())).collect()
        };
        for backend in &story.backends {
            let now = of(&model, &backend.name);
            let is_either = [0, 1].iter().any(|&state| now == of(&story.model(state), &backend.name));
            prop_assert!(is_either, "{:?}\n{}\n{}", now, running.text(), with_more.text());
        }
        let now = running.with_lines(&part.lines);
        for change in changes(between(&now, &Parsed::new(wanted), VERSION)) {
            carry_out(&mut model, change);
        }
        prop_assert_eq!(model, story.model(1), "\n{}", now.text());
    }

    #[test]
    fn a_line_that_is_no_servers_needs_a_reload(story in stories(2), a in any::<u64>(), at in any::<prop::sample::Index>()) {
        let (running, wanted) = (story.text(0, a), story.text(1, a));
        let heads: Vec<usize> = wanted.match_indices("timeout").map(|(place, _)| place).collect();
        for insert in ["option httplog\n", "backend new\n", "default-server weight 3\n", "server-template x 2 a:80\n"] {
            // Somewhere before the first section with servers, and at the end.
            for place in [wanted.len(), heads[..heads.len().min(1)].first().map_or(0, |&place| line_start(&wanted, place))] {
                let (before, behind) = wanted.split_at(place);
                let changed = format!("{before}{insert}{behind}");
                prop_assert!(matches!(plan(&running, &changed, VERSION), Plan::Reload(_)), "\n{}\n{}", running, changed);
                prop_assert!(matches!(plan(&changed, &running, VERSION), Plan::Reload(_)), "\n{}\n{}", changed, running);
            }
        }
        // And whatever line is taken away: a reload, or the servers only.
        let lines: Vec<&str> = running.split_inclusive('\n').collect();
        let gone = at.index(lines.len());
        let cut: String = lines.iter().enumerate().filter(|(index, _)| *index != gone).map(|(_, line)| *line).collect();
        let found = plan(&running, &cut, VERSION);
        let removes_one = matches!(&found, Plan::Runtime(changes) if matches!(changes[..], [Change::Remove { .. }]));
        prop_assert!(matches!(found, Plan::Nothing | Plan::Reload(_)) || removes_one, "{:?}", found);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_text_has_a_plan(
        story in stories(2), a in any::<u64>(), cut in any::<prop::sample::Index>(), junk in ".*", control in "[\\x00-\\x7f]{0,9}",
    ) {
        let (running, wanted) = (story.text(0, a), story.text(1, a));
        let place = (0..=cut.index(wanted.len())).rev().find(|&place| wanted.is_char_boundary(place)).unwrap();
        let (before, behind) = wanted.split_at(place);
        let texts = [
            running.clone(), before.to_owned(), behind.to_owned(), junk.clone(), format!("{before}{junk}{behind}"),
            format!("{before}{control}{behind}"), format!("{before}\nserver {control}{behind}"),
            format!("{running}{}", "x".repeat(20_000)), format!("{running}server {} 1.1.1.1:1", "x ".repeat(3_000)),
        ];
        for old in &texts {
            prop_assert_eq!(plan(old, old, VERSION), Plan::Nothing);
            for new in [&running, &wanted, &texts[5]] {
                let Plan::Runtime(changes) = plan(old, new, VERSION) else { continue };
                for change in changes {
                    prop_assert!(is_safe(&change), "{:?}", change);
                }
            }
            let _ = addition(&Parsed::new(old.as_str()), "b0.x", &junk, VERSION);
            if let Ok(change) = addition(&Parsed::new(old.as_str()), "b0.x", &format!("server n 1.1.1.1:1 sni {control}"), VERSION) {
                prop_assert!(is_safe(&change), "{:?}", change);
            }
        }
    }
}

fn line_start(text: &str, place: usize) -> usize {
    text[..place].rfind('\n').map_or(0, |end| end + 1)
}
