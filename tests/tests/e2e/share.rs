//! A share of the registry: `--only tag=T`.

use e2e::backend::Backend;
use e2e::discoverer::Discoverer;
use e2e::etcd::Etcd;
use e2e::{secs, wait_until, within};

const EDGE: &str = r#"{"tags":["edge"]}"#;
const INNER: &str = r#"{"tags":["inner","blue"]}"#;

#[tokio::test]
async fn two_discoverers_follow_their_shares_and_a_tag_that_is_changed_moves_an_instance() {
    within(90, async {
        let etcd = Etcd::start().await;
        let only = |tag: &str| Discoverer::supervise(&etcd.url()).args(&["--only", tag]).start();
        let (mut edge, mut inner) = (only("tag=edge"), only("tag=inner"));
        let (one, two) = (Backend::start("one").await, Backend::start("two").await);
        let plain = Backend::start("plain").await;
        etcd.put(&one.flat_key(), EDGE).await;
        etcd.put(&two.flat_key(), INNER).await;
        etcd.put(&plain.flat_key(), "running").await;
        edge.wait_serves(&["one"]).await;
        inner.wait_serves(&["two"]).await;

        // It serves a moment before it shows that it does.
        let address = two.address().to_string();
        let expected = format!("{address} is left out by --only tag=edge: its tags are inner, blue");
        let outside = "only tag=edge: 2 instances are outside of that";
        for (words, code, text) in [(&["status"][..], 0, outside), (&["explain", &address], 1, &expected)] {
            wait_until(secs(10), "it says what is outside of its share", async || {
                let told = edge.ask(words).await;
                if told.code == Some(code) && told.stdout.contains(text) { Ok(()) } else { Err(format!("{told:?}")) }
            })
            .await;
        }

        etcd.put(&two.flat_key(), EDGE).await;
        edge.wait_serves(&["one", "two"]).await;
        etcd.put(&one.flat_key(), INNER).await;
        edge.wait_serves(&["two"]).await;
        inner.wait_serves(&["one"]).await;
    })
    .await;
}
