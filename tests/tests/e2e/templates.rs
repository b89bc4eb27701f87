//! Templates and files that are wrong: what is good goes on, and the error says where to look.

use e2e::backend::Backend;
use e2e::discoverer::{Discoverer, TemplateFile};
use e2e::etcd::Etcd;
use e2e::load::Load;
use e2e::within;

/// Routes by the host `SERVICE.test`; what a service's attribute `extra` says is written out as it is.
pub(crate) const TEMPLATE: &str = r#"global
  hard-stop-after 5s
defaults
  mode http
  timeout connect 1s
  timeout client 5s
  timeout server 5s
  option idle-close-on-response
frontend _in
  bind {{ options.http_bind }}
{%- for service in services %}
  use_backend {{ service.name }} if { hdr(host) -i {{ service.name }}.test }
{%- endfor %}
{%- for service in services %}
backend {{ service.name }}
  {%- if service.attributes.extra is defined %}
  {{ service.attributes.extra | safe }}
  {%- endif %}
  {%- for instance in service.instances %}
  server {{ instance.server }} {{ instance.address }}:{{ instance.port }}
  {%- endfor %}
{%- endfor %}
"#;

#[tokio::test]
async fn a_broken_template_leaves_the_last_good_one_rendering_until_it_is_repaired() {
    within(90, async {
        let etcd = Etcd::start().await;
        let template = TemplateFile::new(TEMPLATE);
        let discoverer = Discoverer::supervise(&etcd.url()).template(template.path()).start();
        let (one, two, three) =
            (Backend::start("one").await, Backend::start("two").await, Backend::start("three").await);
        etcd.put(&one.key_in("web"), "running").await;
        discoverer.wait_host("web.test", "one").await;

        template.overwrite(&TEMPLATE.replace("{{ options.http_bind }}", "{{ options.http_bind | | }}"));
        discoverer.wait_logged("template error", &[("error", "haproxy.cfg.tera"), ("error", "line 10")]).await;
        etcd.put(&two.key_in("blog"), "running").await;
        discoverer.wait_host("blog.test", "two").await;

        template.overwrite(&format!("# repaired\n{TEMPLATE}"));
        discoverer.wait_config("# repaired").await;
        etcd.put(&three.key_in("shop"), "running").await;
        discoverer.wait_host("shop.test", "three").await;
        discoverer.wait_host("web.test", "one").await;
    })
    .await;
}

#[tokio::test]
async fn a_template_that_fails_only_when_it_renders_leaves_the_last_good_one_rendering() {
    within(60, async {
        let etcd = Etcd::start().await;
        let template = TemplateFile::new(TEMPLATE);
        let mut discoverer = Discoverer::supervise(&etcd.url()).template(template.path()).start();
        let (one, two) = (Backend::start("one").await, Backend::start("two").await);
        etcd.put(&one.key_in("web"), "running").await;
        discoverer.wait_host("web.test", "one").await;
        template.replace(&format!("# first\n{{{{ options.there_is_none.such }}}}\n{TEMPLATE}"));
        discoverer.wait_logged("template error", &[("error", "haproxy.cfg.tera"), ("error", "line 2")]).await;
        etcd.put(&two.key_in("blog"), "running").await;
        discoverer.wait_host("blog.test", "two").await;
        template.replace(&format!("# repaired\n{TEMPLATE}"));
        discoverer.wait_config("# repaired").await;
        discoverer.wait_host("blog.test", "two").await;
        assert!(discoverer.process().ended().is_none());
    })
    .await;
}

#[tokio::test]
async fn a_template_that_is_gone_for_a_while_leaves_the_last_good_one_rendering() {
    within(60, async {
        let etcd = Etcd::start().await;
        let template = TemplateFile::new(TEMPLATE);
        let discoverer = Discoverer::supervise(&etcd.url()).template(template.path()).start();
        let (one, two) = (Backend::start("one").await, Backend::start("two").await);
        etcd.put(&one.key_in("web"), "running").await;
        discoverer.wait_host("web.test", "one").await;
        std::fs::remove_file(template.path()).unwrap();
        discoverer.wait_logged("template error", &[("error", &template.path().display().to_string())]).await;
        etcd.put(&two.key_in("blog"), "running").await;
        discoverer.wait_host("blog.test", "two").await;
        template.replace(&format!("# back\n{TEMPLATE}"));
        discoverer.wait_config("# back").await;
    })
    .await;
}

#[tokio::test]
async fn each_way_to_save_a_template_is_noticed() {
    within(60, async {
        let etcd = Etcd::start().await;
        let template = TemplateFile::new(TEMPLATE);
        let mut discoverer = Discoverer::supervise(&etcd.url()).template(template.path()).start();
        let one = Backend::start("one").await;
        etcd.put(&one.key_in("web"), "running").await;
        discoverer.wait_host("web.test", "one").await;
        template.overwrite(&format!("# written in place\n{TEMPLATE}"));
        discoverer.wait_config("# written in place").await;
        template.replace(&format!("# renamed over it\n{TEMPLATE}"));
        discoverer.wait_config("# renamed over it").await;
        template.replace(&format!("# renamed once more\n{TEMPLATE}"));
        discoverer.wait_config("# renamed once more").await;
        assert!(discoverer.process().ended().is_none());
    })
    .await;
}

#[tokio::test]
async fn a_service_that_haproxy_refuses_is_left_out_and_named_and_the_others_go_on() {
    within(90, async {
        let etcd = Etcd::start().await;
        let template = TemplateFile::new(TEMPLATE);
        let discoverer = Discoverer::supervise(&etcd.url()).template(template.path()).start();
        let (one, two, bad) = (Backend::start("one").await, Backend::start("two").await, Backend::start("bad").await);
        etcd.put(&one.key_in("web"), "running").await;
        discoverer.wait_host("web.test", "one").await;

        etcd.put(&bad.key_in("shop"), r#"{"attributes":{"extra":"balance nonsense"}}"#).await;
        let words = [("service", "shop"), ("reason", "balance only supports")];
        discoverer.wait_logged("service left out", &words).await;
        etcd.put(&two.key_in("blog"), "running").await;
        discoverer.wait_host("blog.test", "two").await;
        assert_eq!(discoverer.answer("web.test").await, "one");
        assert!(!discoverer.config().contains("nonsense"), "{}", discoverer.config());
        for other in ["web", "blog"] {
            let left_out = discoverer.logged("service left out");
            assert!(left_out.iter().all(|event| e2e::discoverer::field(event, "service") != other), "{left_out:?}");
        }

        etcd.put(&bad.key_in("shop"), r#"{"attributes":{"extra":"balance leastconn"}}"#).await;
        discoverer.wait_host("shop.test", "bad").await;
        assert_eq!(discoverer.answer("web.test").await, "one");
    })
    .await;
}

#[tokio::test]
async fn two_refused_services_among_many_are_both_left_out() {
    within(90, async {
        let etcd = Etcd::start().await;
        let template = TemplateFile::new(TEMPLATE);
        let one = Backend::start("one").await;
        for number in 0..20 {
            let extra = if number % 10 == 3 { r#"{"attributes":{"extra":"balance nonsense"}}"# } else { "running" };
            etcd.put(&format!("/service/s{number}/127.0.0.1:{}", 7000 + number), extra).await;
        }
        etcd.put(&one.key_in("web"), "running").await;
        let discoverer = Discoverer::supervise(&etcd.url()).template(template.path()).start();
        discoverer.wait_host("web.test", "one").await;
        discoverer.wait_logged("service left out", &[("service", "s3")]).await;
        discoverer.wait_logged("service left out", &[("service", "s13")]).await;
        let config = discoverer.config();
        for number in 0..20 {
            let is_there = config.contains(&format!("backend s{number}\n"));
            assert_eq!(is_there, number % 10 != 3, "s{number} in\n{config}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_template_that_haproxy_refuses_whatever_leaves_the_last_good_file() {
    within(90, async {
        let etcd = Etcd::start().await;
        let template = TemplateFile::new(TEMPLATE);
        let mut discoverer = Discoverer::supervise(&etcd.url()).template(template.path()).start();
        let (one, two) = (Backend::start("one").await, Backend::start("two").await);
        etcd.put(&one.key_in("web"), "running").await;
        discoverer.wait_host("web.test", "one").await;
        let good = discoverer.config();
        template.overwrite(&TEMPLATE.replace("  mode http\n", "  mode telepathy\n"));
        discoverer.wait_logged("file refused", &[("output", "telepathy")]).await;
        assert_eq!(discoverer.config(), good);
        assert_eq!(discoverer.answer("web.test").await, "one");
        template.overwrite(TEMPLATE);
        etcd.put(&two.key_in("blog"), "running").await;
        discoverer.wait_host("blog.test", "two").await;
        assert!(discoverer.process().ended().is_none());
    })
    .await;
}

#[tokio::test]
async fn a_changed_template_is_applied_under_load_and_no_request_fails() {
    within(90, async {
        let etcd = Etcd::start().await;
        // The load reaches the service by any name.
        let text = TEMPLATE.replace("frontend _in\n", "frontend _in\n  default_backend web\n");
        let template = TemplateFile::new(&text);
        let one = Backend::start("one").await;
        etcd.put(&one.key_in("web"), "running").await;
        let mut discoverer = Discoverer::supervise(&etcd.url()).template(template.path()).start();
        discoverer.wait_serves(&["one"]).await;
        let load = Load::start(discoverer.http());
        for number in 0..5 {
            template.replace(&format!("# edit {number}.\n{text}"));
            discoverer.wait_config(&format!("# edit {number}.")).await;
            load.wait_served(20).await;
        }
        load.stop_after(100).await.assert_no_failure(100);
    })
    .await;
}
