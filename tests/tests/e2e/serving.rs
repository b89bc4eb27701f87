//! What is in etcd is what HAProxy serves: keys written by hand, one by one and in a rush.

use std::time::Duration;

use e2e::backend::Backend;
use e2e::discoverer::Discoverer;
use e2e::etcd::Etcd;
use e2e::load::Load;
use e2e::within;

#[tokio::test]
async fn a_key_written_by_hand_is_served_and_a_deleted_one_is_not() {
    within(60, async {
        let etcd = Etcd::start().await;
        let mut discoverer = Discoverer::supervise(&etcd.url()).start();
        let (one, two) = (Backend::start("one").await, Backend::start("two").await);
        etcd.put(&one.flat_key(), "running").await;
        discoverer.wait_serves(&["one"]).await;
        etcd.put(&two.flat_key(), "running").await;
        discoverer.wait_serves(&["one", "two"]).await;
        etcd.delete(&one.flat_key()).await;
        discoverer.wait_serves(&["two"]).await;
        etcd.delete(&two.flat_key()).await;
        discoverer.wait_serves(&["status 503"]).await;
        etcd.put(&one.flat_key(), "running").await;
        discoverer.wait_serves(&["one"]).await;
    })
    .await;
}

#[tokio::test]
async fn two_keys_written_5_ms_apart_are_both_served_in_each_of_20_rounds() {
    within(120, async {
        let etcd = Etcd::start().await;
        let mut discoverer = Discoverer::supervise(&etcd.url()).start();
        let (one, two) = (Backend::start("one").await, Backend::start("two").await);
        for _ in 0..20 {
            etcd.put(&one.flat_key(), "running").await;
            tokio::time::sleep(Duration::from_millis(5)).await;
            etcd.put(&two.flat_key(), "running").await;
            discoverer.wait_serves(&["one", "two"]).await;
            etcd.delete(&one.flat_key()).await;
            tokio::time::sleep(Duration::from_millis(5)).await;
            etcd.delete(&two.flat_key()).await;
            discoverer.wait_serves(&["status 503"]).await;
        }
    })
    .await;
}

#[tokio::test]
async fn instances_come_and_go_under_load_and_no_request_fails() {
    within(90, async {
        let etcd = Etcd::start().await;
        let mut discoverer = Discoverer::supervise(&etcd.url()).start();
        let stays = Backend::start("stays").await;
        etcd.put(&stays.flat_key(), "running").await;
        discoverer.wait_serves(&["stays"]).await;
        let load = Load::start(discoverer.http());
        let comes = Backend::start("comes").await;
        for _ in 0..5 {
            etcd.put(&comes.flat_key(), "running").await;
            discoverer.wait_serves(&["comes", "stays"]).await;
            load.wait_served(20).await;
            etcd.delete(&comes.flat_key()).await;
            discoverer.wait_serves(&["stays"]).await;
            load.wait_served(20).await;
        }
        let report = load.stop_after(200).await;
        report.assert_no_failure(200);
        assert!(report.answers["comes"] > 0 && report.answers["stays"] > 0, "{:?}", report.answers);
    })
    .await;
}

#[tokio::test]
async fn services_of_both_layouts_are_routed_by_host_and_path() {
    within(60, async {
        let etcd = Etcd::start().await;
        let mut discoverer = Discoverer::supervise(&etcd.url()).start();
        let (flat, shop, blog) =
            (Backend::start("flat").await, Backend::start("shop").await, Backend::start("blog").await);
        etcd.put(&flat.flat_key(), "running").await;
        etcd.put(&shop.key_in("shop"), r#"{"attributes":{"host":"shop.test"}}"#).await;
        etcd.put(&blog.key_in("blog"), r#"{"attributes":{"path":"/blog"}}"#).await;
        discoverer.wait_host("shop.test", "shop").await;
        discoverer.wait_serves(&["flat"]).await;
        e2e::wait_until(e2e::discoverer::SOON, "/blog is answered by blog", async || {
            match e2e::http::get(discoverer.http(), "/blog/today").await {
                Ok(reply) if reply.body == "blog" => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
        assert_eq!(discoverer.answer("other.test").await, "flat");
        let statistics = e2e::http::get(discoverer.stats(), "/").await.unwrap();
        assert!(statistics.status == 200 && statistics.body.contains("shop"), "{statistics:?}");
        discoverer.wait_logged("configuration applied", &[("services", "3"), ("instances", "3")]).await;
    })
    .await;
}

#[tokio::test]
async fn another_prefix_is_followed_and_its_last_segment_names_the_service() {
    within(60, async {
        let etcd = Etcd::start().await;
        let mut discoverer = Discoverer::supervise(&etcd.url()).key("/apps/web/").start();
        let (inside, beside) = (Backend::start("inside").await, Backend::start("beside").await);
        etcd.put(&beside.flat_key(), "running").await;
        etcd.put(&format!("/apps/other/{}", beside.address()), "running").await;
        etcd.put(&format!("/apps/web/{}", inside.address()), "running").await;
        discoverer.wait_serves(&["inside"]).await;
        discoverer.wait_config("backend web").await;
        assert!(!discoverer.config().contains(&beside.address().to_string()), "{}", discoverer.config());
    })
    .await;
}

#[tokio::test]
async fn an_ipv6_instance_is_in_the_file_beside_the_others() {
    within(60, async {
        let etcd = Etcd::start().await;
        let mut discoverer = Discoverer::supervise(&etcd.url()).start();
        let one = Backend::start("one").await;
        etcd.put("/service/[2001:db8::1]:8000", "running").await;
        etcd.put(&one.flat_key(), "running").await;
        discoverer.wait_config("[2001:db8::1]:8000").await;
        etcd.delete("/service/[2001:db8::1]:8000").await;
        discoverer.wait_serves(&["one"]).await;
    })
    .await;
}

#[tokio::test]
async fn a_draining_instance_gets_no_new_request_while_another_runs() {
    within(60, async {
        let etcd = Etcd::start().await;
        let mut discoverer = Discoverer::supervise(&etcd.url()).start();
        let (one, two) = (Backend::start("one").await, Backend::start("two").await);
        etcd.put(&one.flat_key(), "running").await;
        etcd.put(&two.flat_key(), "running").await;
        discoverer.wait_serves(&["one", "two"]).await;
        etcd.put(&one.flat_key(), r#"{"status":"draining"}"#).await;
        discoverer.wait_serves(&["two"]).await;
        etcd.put(&one.flat_key(), r#"{"status":"running"}"#).await;
        discoverer.wait_serves(&["one", "two"]).await;
    })
    .await;
}
