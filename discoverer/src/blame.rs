//! Which services make a configuration unusable? Found by asking about parts of the whole. It knows neither Tera
//! nor HAProxy: both are behind the question.

use std::collections::BTreeMap;

use registry::ServiceName;

use crate::model::Services;

/// The most questions asked for one configuration: each may cost HAProxy half a second.
const QUESTIONS_LIMIT: usize = 200;

/// The answer to a question about some services.
pub type Verdict = Result<(), String>;

/// The services that have to be left out, each with the reason that was given.
///
/// `suspected` are services that were named with the fault, each with what was said of it: where leaving out just those
/// helps, nothing more is asked. Gives `None` where no selection of services helps: the fault lies elsewhere, or it
/// cannot be found with a bounded number of questions.
pub async fn find<Ask>(
    services: &Services,
    suspected: &BTreeMap<ServiceName, String>,
    mut ask: Ask,
) -> Option<BTreeMap<ServiceName, String>>
where
    Ask: AsyncFnMut(&Services) -> Verdict,
{
    if ask(&Services::new()).await.is_err() {
        return None;
    }
    let without = |left_out: &BTreeMap<ServiceName, String>| -> Services {
        let kept = services.iter().filter(|(name, _)| !left_out.contains_key(*name));
        kept.map(|(name, service)| (name.clone(), service.clone())).collect()
    };
    let suspected: BTreeMap<_, _> = suspected
        .iter()
        .filter(|(name, _)| services.contains_key(*name))
        .map(|(n, r)| (n.clone(), r.clone()))
        .collect();
    if !suspected.is_empty() && ask(&without(&suspected)).await.is_ok() {
        return Some(suspected);
    }
    let mut blamed = BTreeMap::new();
    let mut questions = 0;
    loop {
        let good = without(&blamed);
        let Err(mut reason) = ask(&good).await else { return Some(blamed) };
        // The shortest run of services, in order, that fails: its last one is to blame.
        let names: Vec<ServiceName> = good.keys().cloned().collect();
        let (mut works, mut fails) = (0, names.len());
        while fails - works > 1 {
            questions += 1;
            if questions > QUESTIONS_LIMIT {
                return None;
            }
            let middle = works.midpoint(fails);
            let part = names[..middle].iter().map(|name| (name.clone(), good[name].clone())).collect();
            match ask(&part).await {
                Ok(()) => works = middle,
                Err(why) => (fails, reason) = (middle, why),
            }
        }
        let guilty = names.get(fails.checked_sub(1)?)?;
        blamed.insert(guilty.clone(), reason);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::tests::services_named;
    use proptest::prelude::*;

    async fn blame(services: &Services, bad: &[&str], suspected: &[&str]) -> Option<Vec<String>> {
        let suspected = suspected.iter().map(|name| (name.parse().unwrap(), format!("{name} is bad"))).collect();
        let found = find(services, &suspected, async |part: &Services| {
            match part.keys().find(|name| bad.contains(&name.as_str())) {
                Some(name) => Err(format!("{name} is bad")),
                None => Ok(()),
            }
        });
        let found = found.await?;
        assert!(found.iter().all(|(name, reason)| *reason == format!("{name} is bad")), "{found:?}");
        Some(found.keys().map(ToString::to_string).collect())
    }

    #[tokio::test]
    async fn nothing_is_blamed_where_the_fault_lies_elsewhere() {
        let services = services_named(&["a", "b"]);
        let found = find(&services, &BTreeMap::new(), async |_: &Services| Err("the template".to_owned())).await;
        assert_eq!(found, None);
    }

    #[tokio::test]
    async fn a_suspect_that_is_good_is_let_go() {
        let services = services_named(&["a", "b", "c"]);
        assert_eq!(blame(&services, &["c"], &["a"]).await.unwrap(), ["c"]);
        assert_eq!(blame(&services, &["a", "c"], &["a", "c"]).await.unwrap(), ["a", "c"]);
        assert_eq!(blame(&services, &["a"], &["gone"]).await.unwrap(), ["a"]);
    }

    #[tokio::test]
    async fn of_two_that_do_not_go_together_one_is_blamed() {
        let services = services_named(&["a", "b", "c", "d"]);
        let together = async |part: &Services| {
            let has = |name: &str| part.keys().any(|key| key.as_str() == name);
            if has("b") && has("d") { Err("b and d".to_owned()) } else { Ok(()) }
        };
        let found = find(&services, &BTreeMap::new(), together).await.unwrap();
        assert_eq!(found.keys().map(ServiceName::as_str).collect::<Vec<_>>(), ["d"]);
    }

    proptest! {
        #[test]
        fn just_the_bad_ones_are_blamed(bad in proptest::collection::btree_set(0..40usize, 0..5)) {
            let names: Vec<String> = (0..40).map(|number| format!("s{number:02}")).collect();
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            let bad: Vec<&str> = bad.into_iter().map(|number| names[number]).collect();
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let found = runtime.block_on(blame(&services_named(&names), &bad, &[])).unwrap();
            prop_assert_eq!(found, bad);
        }
    }
}
