//! Templates that users write: whatever they do, HAProxy ends as etcd has it; what the runtime API cannot do is a reload that says
//! why.

use std::net::SocketAddr;

use e2e::backend::Backend;
use e2e::discoverer::{Discoverer, TemplateFile, field};
use e2e::etcd::Etcd;
use e2e::haproxy::{Version, servers};
use e2e::load::Load;
use e2e::ports::free_address;
use e2e::{secs, stays_true, wait_until, within};

use crate::runtime::{FLAT, Site, WEIGHT, flat};

/// One backend for the flat layout's service, with `settings` in it and each server as `server` says. There is no
/// `server.tera` beside it.
fn template(settings: &str, server: &str) -> TemplateFile {
    TemplateFile::new(&format!(
        "global\n  hard-stop-after 5s\n  stats socket {{{{ haproxy.runtime_socket }}}} level admin\n\
         defaults\n  mode http\n  timeout connect 1s\n  timeout client 5s\n  timeout server 5s\n  retries 3\n  \
         option redispatch 1\n  option idle-close-on-response\n\
         frontend _in\n  bind {{{{ options.http_bind }}}}\n  default_backend service\n\
         backend service\n  {settings}\n\
         {{%- for service in services %}}{{%- for instance in service.instances %}}\n  {server}\n\
         {{%- endfor %}}{{%- endfor %}}\n"
    ))
}

const PLAIN: &str =
    "server {{ instance.server }} {{ instance.address }}:{{ instance.port }} weight {{ instance.weight }}";

/// A site with that template; whether servers are ready and where they go is all that is looked at.
async fn site(template: &TemplateFile, version: Version) -> Site {
    let etcd = Etcd::start().await;
    let discoverer = Discoverer::supervise(&etcd.url()).haproxy(version).template(template.path()).start();
    Site::with(etcd, discoverer).await
}

#[tokio::test]
async fn without_a_partial_for_a_server_servers_come_and_go_with_no_reload() {
    within(60, without_a_partial(Version::Installed)).await;
}

#[tokio::test]
async fn without_a_partial_for_a_server_servers_come_and_go_with_no_reload_on_haproxy_3_0() {
    within(60, without_a_partial(Version::V3_0)).await;
}

async fn without_a_partial(version: Version) {
    let template = template("balance roundrobin\n  default-server check inter 1s weight 100", PLAIN);
    let mut site = site(&template, version).await;
    follows(&mut site).await;
    site.assert_no_reload().await;
}

#[tokio::test]
async fn server_lines_that_are_not_indented_come_and_go_with_their_neighbours() {
    within(60, async {
        let template = template("balance roundrobin", PLAIN);
        template.overwrite(&std::fs::read_to_string(template.path()).unwrap().replace("\n  server ", "\nserver "));
        let mut site = site(&template, Version::Installed).await;
        let many: Vec<SocketAddr> = (0..6).map(|_| free_address()).collect();
        for _ in 0..3 {
            for address in &many {
                site.etcd.put(&format!("/service/{address}"), "running").await;
            }
            let all = many.iter().map(|address| (FLAT, *address, WEIGHT));
            site.discoverer.wait_in_step(&all.chain([flat(&site.one)]).collect::<Vec<_>>()).await;
            for address in &many {
                site.etcd.delete(&format!("/service/{address}")).await;
            }
            site.discoverer.wait_in_step(&[flat(&site.one)]).await;
        }
        site.assert_no_reload().await;
        assert!(site.discoverer.process().ended().is_none());
    })
    .await;
}

/// Instances come, change and go under load, and no request fails.
async fn follows(site: &mut Site) {
    let load = Load::start(site.discoverer.http());
    let backends = [Backend::start("two").await, Backend::start("three").await, Backend::start("four").await];
    let [two, three, _] = &backends;
    for backend in &backends {
        site.etcd.put(&backend.flat_key(), "running").await;
    }
    site.discoverer.wait_serves(&["one", "two", "three", "four"]).await;
    site.etcd.delete(&three.flat_key()).await;
    site.discoverer.wait_serves(&["one", "two", "four"]).await;
    site.etcd.delete(&site.one.flat_key()).await;
    site.etcd.put(&two.flat_key(), r#"{"weight":50}"#).await;
    site.discoverer.wait_serves(&["two", "four"]).await;
    site.etcd.put(&three.flat_key(), "running").await;
    site.etcd.delete(&two.flat_key()).await;
    site.discoverer.wait_serves(&["three", "four"]).await;
    load.wait_served(20).await;
    load.stop_after(40).await.assert_no_failure(40);
    site.discoverer.wait_same_in_file().await;
}

#[tokio::test]
async fn servers_that_are_named_by_their_place_in_the_list_go_where_the_file_says() {
    within(60, named_by_place(Version::Installed)).await;
}

#[tokio::test]
async fn servers_that_are_named_by_their_place_in_the_list_go_where_the_file_says_on_haproxy_3_0() {
    within(60, named_by_place(Version::V3_0)).await;
}

async fn named_by_place(version: Version) {
    let line = "server s{{ loop.index }} {{ instance.address }}:{{ instance.port }} check weight {{ instance.weight }}";
    let template = template("balance roundrobin", line);
    let mut site = site(&template, version).await;
    follows(&mut site).await;
}

#[tokio::test]
async fn a_balance_that_takes_no_servers_at_run_time_is_reloaded_each_time_and_named() {
    within(60, async {
        let template = template("balance static-rr", PLAIN);
        let mut site = site(&template, Version::Installed).await;
        follows(&mut site).await;
        let reloads = site.discoverer.reloads().await - site.reloads;
        assert!(reloads >= 2, "only {reloads} reloads");
        let applied = site.discoverer.logged("configuration applied");
        let reasons: Vec<_> = applied.iter().map(|event| field(event, "how")).skip(1).collect();
        assert!(reasons.iter().all(|why| why.contains("balance static-rr")), "{reasons:?}");
    })
    .await;
}

#[tokio::test]
async fn a_server_line_that_the_runtime_api_does_not_take_is_reloaded_and_its_keyword_named() {
    within(60, async {
        let template = template("balance roundrobin", &format!("{PLAIN} non-stick"));
        let mut site = site(&template, Version::Installed).await;
        follows(&mut site).await;
        let applied = site.discoverer.logged("configuration applied");
        let reasons: Vec<_> = applied.iter().map(|event| field(event, "how")).skip(1).collect();
        assert!(reasons.iter().any(|why| why.starts_with("by a reload") && why.contains("non-stick")), "{reasons:?}");
    })
    .await;
}

/// What the project's `backend.tera` was, and users' copies may be: it goes through the instances itself.
const LOOP: &str = "{%- for instance in service.instances %}\n    {% include \"server.tera\" -%}\n{%- endfor %}";

#[tokio::test]
async fn a_template_that_goes_through_the_instances_and_includes_the_partial_needs_no_reload() {
    within(60, async {
        let etcd = Etcd::start().await;
        let discoverer = Discoverer::supervise(&etcd.url()).edit("{{ service.servers }}", LOOP).start();
        let mut site = Site::with(etcd, discoverer).await;
        follows(&mut site).await;
        site.assert_no_reload().await;
    })
    .await;
}

#[tokio::test]
async fn a_partial_that_needs_what_only_the_loop_around_it_knows_works_as_it_is_written() {
    within(60, async {
        let etcd = Etcd::start().await;
        let discoverer = Discoverer::supervise(&etcd.url())
            .edit("{{ service.servers }}", &LOOP.replace("{% include", "{% set place = loop.index %}{% include"))
            .edit("server {{ instance.server }} ", "server s{{ place }} ")
            .start();
        let mut site = Site::with(etcd, discoverer).await;
        follows(&mut site).await;
    })
    .await;
}

#[tokio::test]
async fn where_a_template_has_other_lines_than_the_partial_makes_the_template_counts() {
    within(60, async {
        let etcd = Etcd::start().await;
        // Told alone, a server would get another weight than it has in the file.
        let line = LOOP.replace("{% include \"server.tera\" -%}", &format!("{PLAIN} check fall 2"));
        let discoverer = Discoverer::supervise(&etcd.url())
            .edit("{{ service.servers }}", &line)
            .edit("weight {{ instance.weight }} check inter", "weight 9 check inter")
            .start();
        let site = Site::with(etcd, discoverer).await;
        let load = Load::start(site.discoverer.http());
        let mut backends = Vec::new();
        let mut wanted = vec![flat(&site.one)];
        for number in 0..6 {
            let backend = Backend::start(&format!("number{number}")).await;
            site.etcd.put(&backend.flat_key(), "running").await;
            wanted.push(flat(&backend));
            site.discoverer.wait_in_step(&wanted).await;
            backends.push(backend);
        }
        site.etcd.delete(&backends[0].flat_key()).await;
        wanted.remove(1);
        site.discoverer.wait_in_step(&wanted).await;
        load.stop_after(20).await.assert_no_failure(20);
    })
    .await;
}

#[tokio::test]
async fn a_backend_of_another_name_than_its_service_has_its_servers_come_and_go_with_no_reload() {
    within(60, async {
        let etcd = Etcd::start().await;
        let discoverer = Discoverer::supervise(&etcd.url())
            .edit("backend {{ service.name }}", "backend be_{{ service.name }}")
            .edit("{{ default_service }}", "be_{{ default_service }}")
            .start();
        let one = Backend::start("one").await;
        etcd.put(&one.flat_key(), "running").await;
        let there = |backend: &Backend| ("be_service", backend.address(), WEIGHT);
        discoverer.wait_in_step(&[there(&one)]).await;
        let site = Site { reloads: discoverer.reloads().await, etcd, discoverer, one };
        for number in 0..3 {
            let more = Backend::start(&format!("more{number}")).await;
            site.etcd.put(&more.flat_key(), "running").await;
            site.discoverer.wait_in_step(&[there(&site.one), there(&more)]).await;
            site.etcd.delete(&more.flat_key()).await;
            site.discoverer.wait_in_step(&[there(&site.one)]).await;
        }
        site.assert_no_reload().await;
    })
    .await;
}

#[tokio::test]
async fn an_instance_that_the_template_leaves_out_never_gets_a_request() {
    within(60, async {
        let etcd = Etcd::start().await;
        let only_blue = "{%- for instance in service.instances %}{% if instance.name == \"blue\" %}\n    \
                         {% include \"server.tera\" -%}\n{% endif %}{%- endfor %}";
        let discoverer = Discoverer::supervise(&etcd.url()).edit("{{ service.servers }}", only_blue).start();
        let (blue, green) = (Backend::start("blue").await, Backend::start("green").await);
        let is = |name: &str| format!(r#"{{"name":"{name}"}}"#);
        etcd.put(&blue.flat_key(), &is("blue")).await;
        discoverer.wait_in_step(&[flat(&blue)]).await;
        let load = Load::start(discoverer.http());
        for _ in 0..5 {
            etcd.put(&green.flat_key(), &is("green")).await;
            load.wait_served(20).await;
            etcd.delete(&green.flat_key()).await;
        }
        load.stop_after(100).await.assert_no_failure(100);
        assert_eq!(green.requests(), 0);
        assert!(blue.requests() >= 100);
    })
    .await;
}

#[tokio::test]
async fn where_a_template_changes_the_lines_of_the_partial_single_servers_are_told_no_more() {
    within(60, async {
        let etcd = Etcd::start().await;
        // No port has so many digits.
        let other = r#"{{ service.servers | replace(from="0000007", to="50") | safe }}"#;
        // The first one is in the first configuration: what it takes to begin without one counts here.
        let first = Backend::start("number0").await;
        etcd.put(&first.flat_key(), "running").await;
        let discoverer = Discoverer::supervise(&etcd.url())
            .edit("{{ service.servers }}", other)
            .edit("weight {{ instance.weight }}", "weight 0000007")
            .start();
        let mut wanted = vec![(FLAT, first.address(), 50)];
        discoverer.wait_in_step(&wanted).await;
        let mut backends = vec![first];
        for number in 1..6 {
            let backend = Backend::start(&format!("number{number}")).await;
            etcd.put(&backend.flat_key(), "running").await;
            wanted.push((FLAT, backend.address(), 50));
            discoverer.wait_in_step(&wanted).await;
            backends.push(backend);
        }
        assert_eq!(discoverer.logged("servers changed").len(), 2, "{:?}", discoverer.logged("servers changed"));
        assert_eq!(discoverer.reloads().await, 0);
    })
    .await;
}

#[tokio::test]
async fn a_server_that_the_template_puts_in_maintenance_stays_there_over_reloads_and_changes() {
    within(60, async {
        let spare = Backend::start("spare").await;
        let etcd = Etcd::start().await;
        let line = format!("{{{{ service.servers }}}}\n    server spare {} weight 100 disabled\n", spare.address());
        let discoverer = Discoverer::supervise(&etcd.url()).edit("{{ service.servers }}", &line).start();
        let one = Backend::start("one").await;
        etcd.put(&one.flat_key(), "running").await;
        let load = Load::start(discoverer.http());
        discoverer.wait_host("any.test", "one").await;
        for name in ["shop", "more"] {
            let other = Backend::start(name).await;
            etcd.put(&other.key_in(name), &format!(r#"{{"attributes":{{"host":"{name}.test"}}}}"#)).await;
            discoverer.wait_host(&format!("{name}.test"), name).await;
            etcd.put(&other.flat_key(), "running").await;
            load.wait_served(20).await;
            etcd.delete(&other.flat_key()).await;
        }
        load.wait_served(20).await;
        load.stop().await;
        assert_eq!(spare.requests(), 0);
        assert!(discoverer.reloads().await >= 2);
        let servers = servers(&discoverer.runtime_socket()).await.unwrap();
        let spares: Vec<_> = servers.iter().filter(|(name, _)| name.ends_with("/spare")).collect();
        assert!(spares.len() == 3 && spares.iter().all(|(_, server)| !server.ready), "{spares:?}");
    })
    .await;
}

#[tokio::test]
async fn servers_that_haproxy_makes_itself_are_no_reason_to_reload() {
    within(60, async {
        let etcd = Etcd::start().await;
        let pool = free_address();
        let line = format!("{{{{ service.servers }}}}\n\nbackend _pool\n    server-template srv 3 {pool}\n");
        let discoverer = Discoverer::supervise(&etcd.url()).edit("{{ service.servers }}", &line).start();
        let mut site = {
            let one = Backend::start("one").await;
            etcd.put(&one.flat_key(), "running").await;
            discoverer.wait_host("any.test", "one").await;
            Site { reloads: discoverer.reloads().await, etcd, discoverer, one }
        };
        let two = Backend::start("two").await;
        site.etcd.put(&two.flat_key(), "running").await;
        site.discoverer.wait_serves(&["one", "two"]).await;
        // Longer than the file and the comparison behind it take.
        stays_true(secs(2), "no reload", async || match site.discoverer.reloads().await - site.reloads {
            0 => Ok(()),
            count => Err(format!("{count} reloads")),
        })
        .await;
        site.etcd.delete(&two.flat_key()).await;
        site.discoverer.wait_serves(&["one"]).await;
        site.assert_no_reload().await;
    })
    .await;
}

#[tokio::test]
async fn after_an_edit_that_changes_no_line_yet_the_new_partial_makes_the_next_one() {
    within(60, async {
        let etcd = Etcd::start().await;
        let discoverer = Discoverer::supervise(&etcd.url()).start();
        let (one, two) = (Backend::start("one").await, Backend::start("two").await);
        etcd.put(&one.key_in("web"), "running").await;
        discoverer.wait_in_step(&[("web", one.address(), WEIGHT)]).await;
        etcd.delete(&one.key_in("web")).await;
        discoverer.wait_in_step(&[]).await;
        let partial = discoverer.templates().join("server.tera");
        let text = std::fs::read_to_string(&partial).unwrap();
        std::fs::write(&partial, text.replace("weight {{ instance.weight }}", "weight 7")).unwrap();
        let read = "templates read";
        wait_until(secs(10), "the edit is noticed", async || match discoverer.logged(read).len() {
            2.. => Ok(()),
            count => Err(format!("{count} times {read:?}")),
        })
        .await;
        etcd.put(&two.key_in("web"), "running").await;
        discoverer.wait_in_step(&[("web", two.address(), 7)]).await;
    })
    .await;
}
