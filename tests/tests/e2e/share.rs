//! A share of the registry: `--only tag=T`.

use e2e::backend::Backend;
use e2e::discoverer::Discoverer;
use e2e::etcd::Etcd;
use e2e::within;

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

        let told = edge.ask(&["status"]).await;
        assert!(told.stdout.contains("only tag=edge: 2 instances are outside of that"), "{told:?}");
        let address = two.address().to_string();
        let told = edge.ask(&["explain", &address]).await;
        let expected = format!("{address} is left out by --only tag=edge: its tags are inner, blue");
        assert!(told.code == Some(1) && told.stdout.contains(&expected), "{told:?}");

        etcd.put(&two.flat_key(), EDGE).await;
        edge.wait_serves(&["one", "two"]).await;
        etcd.put(&one.flat_key(), INNER).await;
        edge.wait_serves(&["two"]).await;
        inner.wait_serves(&["one"]).await;
    })
    .await;
}
