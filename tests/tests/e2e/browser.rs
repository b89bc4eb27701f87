//! The discoverer's page in a real browser: it lives, filters, bears hostile names and fits a phone.

use std::net::SocketAddr;
use std::path::PathBuf;

use e2e::agent::Agent;
use e2e::backend::Backend;
use e2e::browser::Browser;
use e2e::discoverer::Discoverer;
use e2e::docker::Docker;
use e2e::etcd::Etcd;
use e2e::ports::free_address;
use e2e::process::target_dir;
use e2e::within;

/// An instance's name that would run, and break out of attributes, were it not escaped.
const HOSTILE: &str = r#"<script>window.hurt=1</script>\"'><img src=x onerror=\"window.hurt=2\">"#;

/// A site with services of several kinds, one refused key, and a page.
struct Site {
    etcd: Etcd,
    _discoverer: Discoverer,
    backends: Vec<Backend>,
    admin: SocketAddr,
}

impl Site {
    async fn start() -> Site {
        let (etcd, admin) = (Etcd::start().await, free_address());
        let discoverer = Discoverer::supervise(&etcd.url()).admin(admin).start();
        let mut backends = Vec::new();
        for (service, tag) in [("shop", "blue"), ("shop", "green"), ("blog", "blue")] {
            let backend = Backend::start(service).await;
            let record = format!(
                r#"{{"name":"{service}-{tag}","host":"host-1","tags":["{tag}"],"attributes":{{"host":"{service}.test"}}}}"#
            );
            etcd.put(&backend.key_in(service), &record).await;
            backends.push(backend);
        }
        etcd.put("/service/shop/127.0.0.1:1", r#"{"weight":999}"#).await;
        discoverer.wait_host("shop.test", "shop").await;
        Site { etcd, _discoverer: discoverer, backends, admin }
    }

    fn page(&self) -> String {
        format!("http://{}/", self.admin)
    }
}

/// Pictures of the page, for the docs: of this run.
fn pictures() -> PathBuf {
    let directory = target_dir().join("pictures");
    std::fs::create_dir_all(&directory).unwrap();
    directory
}

fn row(address: SocketAddr) -> String {
    format!("tr[data-a='{address}']")
}

#[tokio::test]
async fn a_container_started_a_moment_ago_is_shown_without_a_reload_and_goes_when_it_stops() {
    within(120, async {
        let (site, docker) = (Site::start().await, Docker::for_apps().await);
        let _agent = Agent::start(&site.etcd, &[]);
        let browser = Browser::start(1280, 900).await;
        browser.open(&site.page()).await;
        browser.wait_for_text("#live", "live").await;
        browser.run("window.stayed = true").await;

        let (app, web) = (docker.app("web", &[]).await, docker.service("web"));
        let address = app.published(8000).await;
        let shown = browser.wait_for_text(&row(address), "UP").await;
        assert!(shown.contains(&format!("{}-web", docker.name())) && shown.contains(app.short_id()), "{shown}");
        browser.wait_for_text("#feed li", &web).await;

        app.tell("stop").await;
        browser.wait_without_text("tr[data-a]", &address.to_string()).await;
        assert_eq!(browser.run("return window.stayed").await, true, "the page was loaded again");
        assert_eq!(browser.complaints().await, Vec::<String>::new());
    })
    .await;
}

#[tokio::test]
async fn instances_are_found_by_text_status_service_and_tag_and_a_refused_key_stands_with_its_reason() {
    within(120, async {
        let site = Site::start().await;
        let browser = Browser::start(1280, 900).await;
        browser.open(&site.page()).await;
        browser.wait_for_text("#live", "live").await;
        browser.wait_for_text("#left-out-rows tr", "weight").await;
        let refused = browser.wait_for_text(&row("127.0.0.1:1".parse().unwrap()), "refused").await;
        assert!(refused.contains("weight"), "{refused}");
        let all: Vec<String> = site.backends.iter().map(|backend| backend.address().to_string()).collect();
        let shown = async || browser.texts("tr[data-a] th").await;
        assert_eq!(shown().await.len(), 4, "{:?}", shown().await);

        browser.write("input[type=search]", "shop-green").await;
        browser.wait_without_text("tr[data-a]", &all[0]).await;
        assert_eq!(shown().await, [all[1].clone()]);
        // It is written a little after the last key.
        e2e::wait_until(e2e::secs(20), "the view can be passed on", async || {
            let url = browser.run("return location.hash").await;
            if url == "#q=shop-green" { Ok(()) } else { Err(url.to_string()) }
        })
        .await;

        for (hash, expected) in [
            ("#status=refused", vec!["127.0.0.1:1".to_owned()]),
            ("#service=blog", vec![all[2].clone()]),
            ("#tag=blue&service=shop", vec![all[0].clone()]),
        ] {
            browser.run(&format!("location.hash = '{hash}'")).await;
            browser.wait_for_text("tr[data-a]", &expected[0]).await;
            e2e::wait_until(e2e::secs(10), hash, async || {
                let shown = shown().await;
                if shown == expected { Ok(()) } else { Err(format!("{shown:?}")) }
            })
            .await;
        }
        browser.run("location.hash = '#q=nobody-has-this-name'").await;
        browser.wait_for_text("#none", "Nothing").await;
        assert_eq!(browser.complaints().await, Vec::<String>::new());
    })
    .await;
}

#[tokio::test]
async fn a_hostile_name_is_shown_and_never_run() {
    within(120, async {
        let site = Site::start().await;
        let browser = Browser::start(1280, 900).await;
        let put = async |name: &str, port: u16| {
            let record = format!(r#"{{"name":"{name}","host":"{name}","tags":["{name}"]}}"#);
            site.etcd.put(&format!("/service/evil/127.0.0.9:{port}"), &record).await;
        };
        // One by the server's page, one by the script that makes it live.
        put(HOSTILE, 4001).await;
        site.etcd.put("/service/evil/<img src=x onerror=window.hurt=3>", "running").await;
        browser.open(&site.page()).await;
        browser.wait_for_text("#live", "live").await;
        let seen = HOSTILE.replace('\\', "");
        browser.wait_for_text(&row("127.0.0.9:4001".parse().unwrap()), &seen).await;
        put(HOSTILE, 4002).await;
        browser.wait_for_text(&row("127.0.0.9:4002".parse().unwrap()), &seen).await;
        browser.wait_for_text("#feed li", &seen).await;
        browser.wait_for_text("#left-out-rows tr", "onerror").await;
        assert!(browser.run("return window.hurt ?? null").await.is_null());
        let planted = "return document.querySelectorAll('img, main script, aside script, [onerror]').length";
        assert_eq!(browser.run(planted).await, 0);
        assert_eq!(browser.complaints().await, Vec::<String>::new());
    })
    .await;
}

#[tokio::test]
async fn a_phone_shows_all_of_it_in_light_and_dark() {
    within(120, async {
        let site = Site::start().await;
        let wide = Browser::start(1280, 900).await;
        wide.open(&site.page()).await;
        wide.wait_for_text("#live", "live").await;
        wide.wait_for_text("tr[data-a]", "UP").await;
        let phone = Browser::start(360, 740).await;
        phone.open(&site.page()).await;
        phone.wait_for_text("#live", "live").await;
        phone.wait_for_text("tr[data-a]", "UP").await;
        for (browser, name) in [(&wide, "wide"), (&phone, "phone")] {
            let mut backgrounds = Vec::new();
            for scheme in ["light", "dark"] {
                browser.prefer(scheme).await;
                backgrounds.push(browser.run("return getComputedStyle(document.body).backgroundColor").await);
                let overhang = "return document.documentElement.scrollWidth - document.documentElement.clientWidth";
                assert_eq!(browser.run(overhang).await, 0, "{name} in {scheme} scrolls sideways");
                browser.picture(&pictures().join(format!("{name}-{scheme}.png"))).await;
            }
            assert_ne!(backgrounds[0], backgrounds[1], "{name}: light and dark look alike");
            assert_eq!(browser.complaints().await, Vec::<String>::new());
        }
        for text in ["shop-blue", "host-1", "UP"] {
            phone.wait_for_text("tr[data-a]", text).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_link_of_another_site_leads_to_the_page() {
    within(90, async {
        let site = Site::start().await;
        let browser = Browser::start(1280, 900).await;
        // Another port of the same host is the nearest that another site can be. What else it asks for is refused (observe's own tests).
        browser.open(&format!("http://{}/", site.backends[0].address())).await;
        let link = format!(
            "const a = document.createElement('a'); a.href = '{}'; document.body.append(a); a.click()",
            site.page()
        );
        browser.run(&link).await;
        browser.wait_for_text("#live", "live").await;
        assert_eq!(browser.complaints().await, Vec::<String>::new());
    })
    .await;
}

#[tokio::test]
async fn without_scripts_it_is_complete() {
    within(90, async {
        let site = Site::start().await;
        let browser = Browser::without_scripts(1280, 900).await;
        // HAProxy is asked for its figures when somebody looks, and the first look does not wait for them.
        e2e::wait_until(e2e::secs(20), "all of it on the page", async || {
            browser.open(&site.page()).await;
            let text = browser.text().await;
            let wanted = ["shop-blue", "shop-green", "blog-blue", "weight", "refused", "UP", "What happened"];
            let missing: Vec<_> = wanted.iter().filter(|word| !text.contains(**word)).collect();
            if missing.is_empty() { Ok(()) } else { Err(format!("{missing:?} is not in\n{text}")) }
        })
        .await;
    })
    .await;
}

/// Lets a test hold what the page loads, and put words into the mouth of its stream, or keep it from hearing.
const HOLD: &str = r#"
    window.held = []; window.isHolding = false; window.isDeaf = false; window.isDeafToStats = false;
    const real = window.fetch;
    window.fetch = async (...given) => {
        const reply = await real(...given);
        if (window.isHolding) await new Promise((release) => window.held.push(release));
        return reply;
    };
    window.release = () => { window.isHolding = false; window.held.splice(0).forEach((release) => release()); };
    window.EventSource = class extends EventSource {
        constructor(...given) { super(...given); window.stream = this; }
        addEventListener(name, listener) {
            const isDeaf = () => window.isDeaf || (window.isDeafToStats && name === 'stats');
            super.addEventListener(name, (event) => { if (!isDeaf() || !event.isTrusted) listener(event); });
        }
    };
    window.say = (name, data) =>
        window.stream.dispatchEvent(new MessageEvent(name, { data: JSON.stringify(data) }));
"#;

/// Makes the page load everything again, and waits until it holds the services in its hand, as they are now.
async fn begin_to_load(browser: &Browser) {
    browser.run("window.isHolding = true; window.say('reset', { version: 0 })").await;
    e2e::wait_until(e2e::secs(20), "the page loads", async || match browser.run("return window.held.length").await {
        count if count == 0 => Err("it asks for nothing".to_owned()),
        _ => Ok(()),
    })
    .await;
}

async fn open_held(site: &Site) -> Browser {
    let browser = Browser::start(1280, 900).await;
    browser.before_pages(HOLD).await;
    browser.open(&site.page()).await;
    browser.wait_for_text("#live", "live").await;
    browser
}

#[tokio::test]
async fn a_reset_while_everything_is_loaded_again_loses_nothing() {
    within(120, async {
        let site = Site::start().await;
        let browser = open_held(&site).await;
        begin_to_load(&browser).await;
        // So much happens now that the server says `reset` in place of it.
        browser.run("window.isDeaf = true").await;
        let address: SocketAddr = "127.0.0.9:4001".parse().unwrap();
        site.etcd.put(&format!("/service/shop/{address}"), "running").await;
        e2e::wait_until(e2e::secs(20), "the server knows it", async || {
            let known = e2e::http::get(site.admin, "/api/v1/services/shop").await.map_err(|error| error.to_string())?;
            if known.body.contains(&address.to_string()) { Ok(()) } else { Err(known.body) }
        })
        .await;
        browser.run("window.isDeaf = false; window.say('reset', { version: 0 }); window.release()").await;
        browser.wait_for_text("tr[data-a]", &address.to_string()).await;
        assert_eq!(browser.complaints().await, Vec::<String>::new());
    })
    .await;
}

#[tokio::test]
async fn what_comes_while_everything_is_loaded_again_is_taken_in_once() {
    within(120, async {
        let site = Site::start().await;
        let browser = open_held(&site).await;
        browser.wait_for_text(&row(site.backends[0].address()), "UP").await;
        begin_to_load(&browser).await;
        let shop = site.backends[0].address().to_string();
        let rows = serde_json::json!({"rows": [["shop", shop, "DOWN 7/9", 1, "L4TOUT", "words", 1, 0, 0, null]]});
        // HAProxy's own figures would be the later word.
        browser.run(&format!("window.isDeafToStats = true; window.say('stats', {rows})")).await;
        let address: SocketAddr = "127.0.0.9:4001".parse().unwrap();
        browser.run("window.stream.addEventListener('change', () => { window.isChanged = true; })").await;
        site.etcd.put(&format!("/service/later/{address}"), "running").await;
        e2e::wait_until(e2e::secs(20), "the change has come", async || {
            match browser.run("return !!window.isChanged").await {
                is_changed if is_changed == true => Ok(()),
                _ => Err("not yet".to_owned()),
            }
        })
        .await;
        browser.run("window.release()").await;
        browser.wait_for_text("tr[data-a]", &address.to_string()).await;
        browser.wait_for_text(&row(site.backends[0].address()), "DOWN 7/9 L4TOUT").await;
        let notes = browser.texts("#feed li").await;
        let of_it = notes.iter().filter(|note| note.contains(&address.to_string())).count();
        assert_eq!(of_it, 1, "{notes:?}");
        assert_eq!(browser.complaints().await, Vec::<String>::new());
    })
    .await;
}

#[tokio::test]
async fn to_skip_to_the_services_leaves_the_filters_as_they_are() {
    within(120, async {
        let site = Site::start().await;
        let browser = Browser::start(1280, 900).await;
        browser.open(&format!("{}#service=blog", site.page())).await;
        browser.wait_for_text("#live", "live").await;
        browser.run("addEventListener('hashchange', () => { window.isSkipped = true; })").await;
        browser.run("document.querySelector('a.skip').click()").await;
        e2e::wait_until(e2e::secs(20), "it has skipped", async || {
            match browser.run("return !!window.isSkipped").await {
                is_skipped if is_skipped == true => Ok(()),
                _ => Err("not yet".to_owned()),
            }
        })
        .await;
        assert_eq!(browser.texts("tr[data-a] th").await, [site.backends[2].address().to_string()]);
        assert_eq!(browser.run("return location.hash").await, "#service=blog");
    })
    .await;
}
