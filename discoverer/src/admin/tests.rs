use std::collections::BTreeMap;

use axum::http::Request;
use proptest::prelude::*;
use registry::settings::{Balance, Mode, Proto};
use registry::{InstanceAddress, Record, ServiceName, StoreKind};
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tower::ServiceExt;

use super::delta::delta;
use super::*;
use crate::feed::{Note, What};
use crate::model::{Instance, Service, Services};
use crate::report::Report;
use crate::trouble::Level;
use crate::view::{AppliedView, Connection, DiscovererView, HaproxyView, LeftOut, Part, RegistryView, ReloadView};

const HOSTILE: &str = "<script>alert(\"1\")</script>'&amp;";

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn name(text: &str) -> ServiceName {
    text.parse().unwrap()
}

fn address(text: &str) -> InstanceAddress {
    text.parse().unwrap()
}

fn instance(text: &str, change: impl FnOnce(&mut Instance, &mut Record)) -> Arc<Instance> {
    let at = address(text);
    let mut record = Record {
        id: Some("0f3b9b1c7d2e".repeat(5)),
        agent: Some("b5ad2a4d-2f6f-4c1b-8f83-0d2b3b0a51f2".to_owned()),
        name: Some("shop_web_1".to_owned()),
        host: Some("host-1".to_owned()),
        tags: vec!["blue".to_owned()],
        registered: Some("2026-01-01T00:00:00Z".parse().unwrap()),
        ..Record::running()
    };
    let mut instance = Instance {
        server: crate::model::server_name(at),
        address: at.ip(),
        port: at.port(),
        weight: 100,
        draining: false,
        suspect: false,
        record: Arc::default(),
    };
    change(&mut instance, &mut record);
    instance.record = Arc::new(record);
    Arc::new(instance)
}

fn plain(text: &str) -> Arc<Instance> {
    instance(text, |_, _| ())
}

fn service(called: &str, instances: Vec<Arc<Instance>>) -> Arc<Service> {
    Arc::new(Service {
        name: name(called),
        mode: Mode::Http,
        host: "shop.example".parse().ok(),
        path: None,
        listen: None,
        balance: Balance::default(),
        check: "/health".parse().ok(),
        proto: Proto::default(),
        sticky: false,
        maxconn: None,
        slowstart: None,
        flat: false,
        tags: vec!["blue".to_owned()],
        attributes: BTreeMap::from([("host".to_owned(), "shop.example".to_owned())]),
        instances,
    })
}

fn services(all: impl IntoIterator<Item = Arc<Service>>) -> Services {
    all.into_iter().map(|service| (service.name.clone(), service)).collect()
}

fn left_out(what: Part, service: &str, address: Option<&str>, reason: &str) -> LeftOut {
    LeftOut {
        what,
        service: Some(name(service)),
        address: address.map(|text| text.parse().unwrap()),
        subject: service.to_owned(),
        reason: reason.to_owned(),
    }
}

/// Where all is well, with one service of two instances.
fn well() -> View {
    View {
        version: 7,
        at: at("2026-01-01T00:10:00Z"),
        discoverer: DiscovererView {
            id: "lb-1-4f2a".to_owned(),
            version: "0.1.0",
            started: at("2026-01-01T00:00:00Z"),
            output: "/etc/haproxy/haproxy.cfg".to_owned(),
            template: "templates/haproxy.cfg.tera".to_owned(),
            template_error: None,
            config_error: None,
            unread_options: Vec::new(),
        },
        services: Arc::new(services([service("web", vec![plain("10.0.0.1:8000"), plain("10.0.0.2:8000")])])),
        shut_out: Services::new(),
        left_out: Vec::new(),
        more_left_out: 0,
        registry: RegistryView {
            store: StoreKind::Etcd,
            endpoints: vec!["http://etcd-1:2379".to_owned()],
            prefix: "service".to_owned(),
            only: vec!["tag=edge".to_owned()],
            outside: 3,
            connection: Connection::Connected,
            since: at("2026-01-01T00:00:01Z"),
            error: None,
            index: 42,
            last_change: Some(at("2026-01-01T00:09:59Z")),
            docker_error: None,
            stale_since: None,
        },
        haproxy: HaproxyView {
            way: "supervise",
            version: Some("2.6.12".to_owned()),
            worker: Some(12),
            worker_started: Some(at("2026-01-01T00:00:02Z")),
            is_up: Some(true),
            reloads: BTreeMap::from([("services", 2)]),
            last_reload: Some(ReloadView {
                at: at("2026-01-01T00:05:00Z"),
                reason: "a service is new".to_owned(),
                took_ms: 80,
                error: None,
            }),
            applied: Some(AppliedView { at: at("2026-01-01T00:09:59Z"), how: "runtime" }),
            applying_since: None,
            error: None,
            unfiled: None,
            distrust: None,
            unled: Arc::new([]),
        },
        feed: vec![note(1, "the first")],
    }
}

fn note(number: u64, words: &str) -> Arc<Note> {
    let at = at("2026-01-01T00:09:59Z");
    Arc::new(Note { number, at, what: What::Came, service: Some(name("web")), address: None, words: words.to_owned() })
}

/// Everything that can be wrong, with hostile words wherever somebody else writes them.
fn ill() -> View {
    let hostile = |instance: &mut Instance, record: &mut Record| {
        instance.suspect = true;
        record.name = Some(HOSTILE.to_owned());
        record.host = Some(HOSTILE.to_owned());
        record.id = Some(HOSTILE.to_owned());
        record.tags = vec![HOSTILE.to_owned()];
    };
    let mut view = well();
    view.version = 8;
    view.services = Arc::new(services([
        service("aside", vec![plain("10.0.0.5:80")]),
        service("empty", vec![]),
        service(
            "web",
            vec![instance("10.0.0.1:8000", |instance, _| instance.draining = true), instance("10.0.0.3:8000", hostile)],
        ),
    ]));
    view.shut_out = services([service("late", vec![plain("10.0.0.4:8000")])]);
    view.left_out = vec![
        left_out(Part::Key, "nobody", Some("10.0.0.8:1"), HOSTILE),
        left_out(Part::Instance, "web", Some("10.0.0.9:8000"), "a newer container has its address"),
        left_out(Part::Route, "late", None, "it wants shop.example/, which service web has"),
        left_out(Part::Service, "aside", None, HOSTILE),
    ];
    view.registry.connection = Connection::Unreachable;
    view.registry.error = Some(HOSTILE.to_owned());
    view.discoverer.template_error = Some(HOSTILE.to_owned());
    view.haproxy.error = Some(HOSTILE.to_owned());
    view.haproxy.unfiled = Some(HOSTILE.to_owned());
    view.haproxy.distrust = Some(HOSTILE.to_owned());
    view.feed.push(note(2, HOSTILE));
    view
}

/// The server with a daemon that publishes what a test says.
struct Site {
    router: Router,
    views: watch::Sender<Option<Arc<View>>>,
    _hub: JoinHandle<()>,
    _daemon: JoinHandle<()>,
}

impl Site {
    fn new(view: Option<View>) -> Self {
        Self::with(view, None)
    }

    fn with(view: Option<View>, runtime: Option<Runtime>) -> Self {
        let (views, seen) = watch::channel(view.map(Arc::new));
        let (alive, mut asked) = mpsc::channel::<oneshot::Sender<()>>(1);
        let sources = Sources { views: seen, runtime, metrics: Arc::default(), alive, routes: Router::new() };
        let (router, hub) = super::router(sources);
        let daemon = async move {
            while let Some(asked) = asked.recv().await {
                asked.send(()).unwrap();
            }
        };
        Self { router, views, _hub: tokio::spawn(hub), _daemon: tokio::spawn(daemon) }
    }

    async fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> Response {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.router.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap()
    }

    async fn get(&self, path: &str) -> (u16, String) {
        text(self.ask("GET", path, &[]).await).await
    }

    async fn json(&self, path: &str) -> Value {
        let (status, text) = self.get(path).await;
        assert_eq!(status, 200, "{path}: {text}");
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{path}: {error}: {text}"))
    }

    fn publish(&self, change: impl FnOnce(&mut View)) {
        let mut view = self.views.borrow().as_deref().unwrap().clone();
        view.version += 1;
        change(&mut view);
        self.views.send(Some(Arc::new(view))).unwrap();
    }

    async fn follow(&self, last: Option<&str>) -> Stream {
        let headers: Vec<_> = last.map(|id| ("last-event-id", id)).into_iter().collect();
        let response = self.ask("GET", "/api/v1/events", &headers).await;
        assert_eq!(response.headers()["content-type"], "text/event-stream; charset=utf-8");
        let mut stream = Stream { body: Box::pin(response.into_body().into_data_stream()), left: String::new() };
        assert_eq!(stream.next().await.unwrap().raw, "retry: 1000");
        stream
    }
}

async fn text(response: Response) -> (u16, String) {
    let status = response.status().as_u16();
    let body = axum::body::to_bytes(response.into_body(), 64 * 1024 * 1024).await.unwrap();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

/// What a client reads of the stream.
struct Stream {
    body: std::pin::Pin<Box<axum::body::BodyDataStream>>,
    left: String,
}

#[derive(Debug)]
struct Event {
    raw: String,
    name: String,
    id: Option<String>,
    data: Value,
}

impl Stream {
    async fn next(&mut self) -> Option<Event> {
        use futures_util::StreamExt;
        loop {
            if let Some((raw, rest)) = self.left.split_once("\n\n") {
                let (raw, rest) = (raw.to_owned(), rest.to_owned());
                self.left = rest;
                let field = |name: &str| raw.lines().find_map(|line| line.strip_prefix(name)).map(str::to_owned);
                let data = field("data: ").map_or(Value::Null, |data| serde_json::from_str(&data).unwrap());
                let (name, id) = (field("event: ").unwrap_or_default(), field("id: "));
                return Some(Event { name, id, data, raw });
            }
            let bytes = self.body.next().await?.unwrap();
            self.left.push_str(std::str::from_utf8(&bytes).unwrap());
        }
    }

    async fn named(&mut self, name: &str) -> Event {
        let event = self.next().await.unwrap();
        assert_eq!(event.name, name, "{event:?}");
        event
    }
}

#[test]
fn what_haproxy_does_not_get_is_told_with_its_reason() {
    let report = Report::new(&ill(), None);
    let told: Vec<_> = report
        .services
        .iter()
        .flat_map(|service| {
            let head = vec![format!("{} {}", service.head.name, service.head.status.as_str())];
            let rows = service.instances.iter().map(|instance| {
                let reason = instance.reason.as_deref().map(|reason| format!(": {reason}")).unwrap_or_default();
                format!("  {} {}{reason}", instance.address, instance.status.as_str())
            });
            head.into_iter().chain(rows).collect::<Vec<_>>()
        })
        .collect();
    let expected = [
        "aside refused".to_owned(),
        format!("  10.0.0.5:80 refused: {HOSTILE}"),
        "empty empty".to_owned(),
        "late refused".to_owned(),
        "  10.0.0.4:8000 refused: it wants shop.example/, which service web has".to_owned(),
        "web suspect".to_owned(),
        "  10.0.0.1:8000 draining".to_owned(),
        "  10.0.0.3:8000 suspect".to_owned(),
        "  10.0.0.9:8000 refused: a newer container has its address".to_owned(),
    ];
    assert_eq!(told, expected);
    let counts = json!({ "draining": 1, "suspect": 1, "refused": 3 });
    assert_eq!(json!(report.status.instances_by_status), counts);
    let about: Vec<_> = report.status.troubles.iter().map(|trouble| trouble.about.as_str()).collect();
    let expected = ["registry", "template", "haproxy", "haproxy", "haproxy", "left_out", "services", "services"];
    assert_eq!(about, expected, "{:#?}", report.status.troubles);
    assert_eq!(Report::new(&well(), None).status.troubles, []);
}

#[test]
fn a_service_with_instances_that_no_rule_leads_to_is_noted() {
    let mut view = well();
    view.haproxy.unled = ["_nobody", "aside", "empty", "web"].map(str::to_owned).into();
    view.services = Arc::new(services([
        service("aside", vec![plain("10.0.0.5:80")]),
        service("empty", vec![]),
        service("led", vec![plain("10.0.0.6:80")]),
        service("web", vec![plain("10.0.0.1:8000")]),
    ]));
    view.left_out = vec![left_out(Part::Service, "aside", None, "no such luck")];
    let status = Report::new(&view, None).status;
    assert_eq!(status.unrouted, ["web"]);
    assert!(status.troubles.iter().any(|trouble| trouble.level == Level::Note && trouble.about == "routes"));
    view.left_out.clear();
    view.services = Arc::new(services([service("web", vec![plain("10.0.0.1:8000")])]));
    let page: String = page::pieces(Arc::new(view), None, hub::EventId { start: 1, version: 8, stats: 0 }).collect();
    assert!(
        page.contains("All is well, with something to note") && page.contains("No rule leads to service web"),
        "{page}"
    );
}

#[test]
fn a_report_that_was_written_is_read_again() {
    for view in [well(), ill()] {
        let report = Report::new(&view, None);
        let read: Report = serde_json::from_str(&serde_json::to_string(&report).unwrap()).unwrap();
        assert_eq!(read, report);
    }
}

#[tokio::test]
async fn every_route_of_the_api_answers_as_its_description_says() {
    let site = Site::new(Some(ill()));
    let openapi = site.json("/api/v1/openapi.json").await;
    for path in ["/api/v1/status", "/api/v1/services", "/api/v1/services/web", "/api/v1/feed"] {
        let described = if path.ends_with("web") { "/api/v1/services/{name}" } else { path };
        let schema = &openapi["paths"][described]["get"]["responses"]["200"]["content"]["application/json"]["schema"];
        check(&openapi, schema, &site.json(path).await);
    }
    let (status, text) = site.get("/api/v1/services/nobody").await;
    let schema = &openapi["paths"]["/api/v1/services/{name}"]["get"]["responses"]["404"]["content"]["application/json"]
        ["schema"];
    assert_eq!(status, 404);
    check(&openapi, schema, &serde_json::from_str(&text).unwrap());
    // It must be able to refuse.
    assert!(!validator(&openapi, schema).is_valid(&json!({ "status": "ok" })));
    let mut stream = site.follow(None).await;
    stream.named("hello").await;
    site.publish(|view| *view = View { version: view.version, ..well() });
    let change = stream.named("change").await;
    check(&openapi, &json!({ "$ref": "#/components/schemas/Change" }), &change.data);
}

fn validator(openapi: &Value, schema: &Value) -> jsonschema::Validator {
    let mut document = openapi.clone();
    document["$ref"] = schema["$ref"].clone();
    jsonschema::draft202012::new(&json!({
        "$ref": schema["$ref"],
        "components": document["components"],
    }))
    .unwrap()
}

fn check(openapi: &Value, schema: &Value, value: &Value) {
    let validator = validator(openapi, schema);
    let wrong: Vec<_> =
        validator.iter_errors(value).map(|error| format!("{}: {error}", error.instance_path())).collect();
    assert!(wrong.is_empty(), "{schema}: {wrong:#?}");
}

#[tokio::test]
async fn each_path_of_the_description_is_answered_and_no_other_method_is() {
    let site = Site::new(Some(well()));
    let openapi = site.json("/api/v1/openapi.json").await;
    let paths = openapi["paths"].as_object().unwrap();
    assert!(paths.len() >= 10, "{paths:?}");
    for path in paths.keys() {
        let path = path.replace("{name}", "web");
        let response = site.ask("GET", &path, &[]).await;
        assert_eq!(response.status(), 200, "{path}");
        for method in ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"] {
            let refused = site.ask(method, &path, &[]).await;
            assert_eq!(refused.headers()["allow"], "GET, HEAD", "{method} {path}");
            let (status, body) = text(refused).await;
            assert_eq!(status, 405, "{method} {path}");
            assert!(serde_json::from_str::<Value>(&body).unwrap()["error"].is_string(), "{body}");
        }
    }
    let (status, body) = site.get("/nothing").await;
    assert_eq!(status, 404);
    assert!(serde_json::from_str::<Value>(&body).unwrap()["error"].is_string());
}

#[tokio::test]
async fn services_are_chosen_by_name_status_and_tag_and_nothing_else() {
    let mut view = ill();
    Arc::make_mut(&mut view.services)
        .insert(name("db"), service("db", vec![instance("10.0.0.7:5432", |_, record| record.tags = vec![])]));
    let site = Site::new(Some(view));
    for (query, expected) in [
        ("", "aside:1 db:1 empty:0 late:1 web:3"),
        ("?service=web", "web:3"),
        ("?service=late", "late:1"),
        ("?service=nobody", ""),
        ("?status=up", "db:1"),
        ("?status=refused", "aside:1 late:1 web:1"),
        ("?tag=blue", "aside:1 late:1 web:1"),
        ("?tag=blue&status=draining", "web:1"),
        ("?service=web&status=up", ""),
        ("?tag=none", ""),
    ] {
        let all = site.json(&format!("/api/v1/services{query}")).await;
        let told = all["services"].as_array().unwrap().iter().map(|service| {
            format!("{}:{}", service["name"].as_str().unwrap(), service["instances"].as_array().unwrap().len())
        });
        assert_eq!(told.collect::<Vec<_>>().join(" "), expected, "{query}");
    }
    for bad in ["?status=well", "?status=empty", "?service=a/b", "?sort=name"] {
        let (status, body) = site.get(&format!("/api/v1/services{bad}")).await;
        assert_eq!(status, 400, "{bad}: {body}");
    }
    let one: crate::report::ServiceReport = serde_json::from_value(site.json("/api/v1/services/web").await).unwrap();
    assert_eq!(one.instances.len(), 3);
}

#[tokio::test]
async fn the_page_has_a_strict_policy_and_nothing_of_it_is_foreign_html() {
    let site = Site::new(Some(ill()));
    let response = site.ask("GET", "/", &[]).await;
    let policy = response.headers()["content-security-policy"].to_str().unwrap().to_owned();
    for part in ["default-src 'none'", "script-src 'self'", "base-uri 'none'", "frame-ancestors 'none'"] {
        assert!(policy.contains(part), "{policy}");
    }
    assert!(!policy.contains("unsafe"), "{policy}");
    let (_, page) = text(response).await;
    assert!(!page.contains("<script>"), "a foreign text became an element");
    assert!(!page.contains("alert(\"1\")"), "a foreign quote is not escaped");
    // In words of: the trouble of registry, template and HAProxy (twice), the list, the services' reasons, an instance, the feed.
    let told = page.matches("&lt;script&gt;alert(&quot;1&quot;)&lt;/script&gt;").count();
    assert!(told >= 10, "{told} in {page}");
    // Neither of these would be let in by the policy.
    assert!(!page.contains(" style=") && !page.contains("<style") && !page.contains(" onclick="), "{page}");
    assert!(page.trim_end().ends_with("</html>"), "{page}");
    for words in ["10.0.0.9:8000", "a newer container has its address", "10.0.0.4:8000", "Something is wrong"] {
        assert!(page.contains(words), "{words} in {page}");
    }
}

#[tokio::test]
async fn a_file_of_the_page_may_be_kept_by_its_version() {
    let site = Site::new(Some(well()));
    let (_, page) = site.get("/").await;
    for file in ["assets/app.js", "assets/style.css"] {
        let start = page.find(file).unwrap();
        let exact = page[start..].split('"').next().unwrap();
        let response = site.ask("GET", &format!("/{exact}"), &[]).await;
        assert!(response.headers()["cache-control"].to_str().unwrap().contains("immutable"), "{exact}");
        let tag = response.headers()["etag"].to_str().unwrap().to_owned();
        let other = site.ask("GET", &format!("/{file}?v=0"), &[("if-none-match", "\"other\"")]).await;
        assert_eq!((other.status().as_u16(), other.headers()["cache-control"].as_bytes()), (200, &b"no-cache"[..]));
        let same = site.ask("GET", &format!("/{file}"), &[("if-none-match", &tag)]).await;
        assert_eq!(same.status(), 304);
    }
}

#[test]
fn the_script_never_makes_html_of_text() {
    let script = assets::SCRIPT.text;
    for way in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function", ".style."] {
        assert!(!script.contains(way), "{way}");
    }
}

#[tokio::test]
async fn it_is_ready_once_a_configuration_was_applied_and_says_what_is_missing_before() {
    let site = Site::new(None);
    let (status, words) = site.get("/health/ready").await;
    assert_eq!((status, words.contains("only just begun")), (503, true), "{words}");
    assert_eq!(site.get("/").await.0, 200);
    assert_eq!(site.get("/api/v1/services").await.0, 503);
    let mut view = well();
    view.haproxy.applied = None;
    view.registry.connection = Connection::Connecting;
    site.views.send(Some(Arc::new(view))).unwrap();
    let (status, words) = site.get("/health/ready").await;
    assert_eq!((status, words.contains("registry has not answered")), (503, true), "{words}");
    for (what, change) in [
        ("the registry does not answer", (|view| *view = View { haproxy: well().haproxy, ..ill() }) as fn(&mut View)),
        ("HAProxy has not taken", |view| view.haproxy.error = Some(HOSTILE.to_owned())),
        ("the template cannot be used", |view| view.discoverer.template_error = Some(HOSTILE.to_owned())),
    ] {
        site.publish(|view| {
            change(view);
            view.haproxy.applied = None;
            if !what.contains("template") {
                view.discoverer.template_error = None;
            }
        });
        let (status, words) = site.get("/health/ready").await;
        assert_eq!((status, words.contains(what), words.contains("alert")), (503, true, false), "{what}: {words}");
    }
    site.publish(|view| *view = well());
    assert_eq!(site.get("/health/ready").await.0, 200);
}

#[tokio::test(start_paused = true)]
async fn it_does_not_live_where_the_daemon_does_not_answer() {
    let site = Site::new(Some(well()));
    assert_eq!(site.get("/health/live").await.0, 200);
    let (alive, _asked) = mpsc::channel(1);
    let sources =
        Sources { views: site.views.subscribe(), runtime: None, metrics: Arc::default(), alive, routes: Router::new() };
    let router = super::router(sources).0;
    let stuck = Site { router, ..site };
    let begun = Instant::now();
    assert_eq!(stuck.get("/health/live").await.0, 503);
    assert_eq!(begun.elapsed(), LIVE_LIMIT);
}

#[tokio::test(start_paused = true)]
async fn a_change_of_one_instance_is_a_short_event() {
    let site = Site::new(Some(well()));
    let mut stream = site.follow(None).await;
    stream.named("hello").await;
    site.publish(|view| {
        let drains = instance("10.0.0.2:8000", |instance, _| instance.draining = true);
        view.services = Arc::new(services([service("web", vec![plain("10.0.0.1:8000"), drains])]));
        view.registry.index += 1;
        view.registry.last_change = Some(at("2026-01-01T00:10:01.123456Z"));
        view.haproxy.applied = Some(AppliedView { at: at("2026-01-01T00:10:01.234567Z"), how: "runtime" });
        view.feed.push(note(2, "shop_web_1 on host-1"));
    });
    let change = stream.named("change").await;
    assert!(change.raw.len() < 2000, "{} bytes: {}", change.raw.len(), change.raw);
    assert_eq!(change.data["instances"][0]["status"], "draining");
    assert_eq!(change.data["instances"].as_array().unwrap().len(), 1);
    assert_eq!(change.data["registry"], json!({ "index": 43, "last_change": "2026-01-01T00:10:01.123456Z" }));
    assert_eq!(change.data["notes"][0]["number"], 2);
}

/// So many keys of `web` that are no instances.
fn refused(count: usize) -> Vec<LeftOut> {
    let address = |number: usize| format!("10.9.{}.{}:80", number / 250, number % 250);
    let key = |number| LeftOut {
        subject: format!("/service/web/{}", address(number)),
        ..left_out(Part::Key, "web", Some(&address(number)), "weight 999 is over 256")
    };
    let mut all: Vec<_> = (0..count).map(key).collect();
    all.sort();
    all
}

#[tokio::test(start_paused = true)]
async fn what_is_left_out_of_a_service_is_told_only_where_it_changes_and_never_all_of_much() {
    let mut view = well();
    view.left_out = refused(12);
    let site = Site::new(Some(view));
    let mut stream = site.follow(None).await;
    stream.named("hello").await;
    let third = || {
        let all = ["10.0.0.1:8000", "10.0.0.2:8000", "10.0.0.3:8000"].map(plain);
        Arc::new(services([service("web", all.to_vec())]))
    };
    site.publish(|view| view.services = third());
    let change = stream.named("change").await;
    assert!(change.raw.len() < 2000, "{} bytes: {}", change.raw.len(), change.raw);
    assert_eq!(change.data["services"][0]["instances_by_status"], json!({ "up": 3, "refused": 12 }));
    assert_eq!(change.data["services"][0].get("left_out"), None);

    site.publish(|view| view.left_out = refused(499));
    stream.next().await;
    site.publish(|view| view.left_out = refused(500));
    let change = stream.named("change").await;
    let web = &change.data["services"][0];
    assert_eq!((web["left_out"].as_array().unwrap().len(), &web["left_out_total"]), (20, &json!(500)), "{web}");
    let openapi = site.json("/api/v1/openapi.json").await;
    check(&openapi, &json!({ "$ref": "#/components/schemas/Change" }), &change.data);
    assert_eq!(site.json("/api/v1/services/web").await["left_out"].as_array().unwrap().len(), 500);
    let (_, page) = site.get("/").await;
    assert!(page.contains("<li>and 480 more</li>"), "{page}");
}

#[tokio::test(start_paused = true)]
async fn changes_that_follow_each_other_go_together() {
    let site = Site::new(Some(well()));
    let mut stream = site.follow(None).await;
    stream.named("hello").await;
    let begun = Instant::now();
    for _ in 0..50 {
        site.publish(|view| view.registry.index += 1);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let mut events = 0;
    let mut last = 0;
    while last < 92 {
        last = stream.named("change").await.data["registry"]["index"].as_u64().unwrap();
        events += 1;
    }
    assert!(begun.elapsed() < Duration::from_secs(1));
    assert!((2..=6).contains(&events), "{events}");
}

#[tokio::test(start_paused = true)]
async fn who_comes_back_gets_what_was_missed_and_a_stranger_is_told_to_begin_anew() {
    let site = Site::new(Some(well()));
    let mut first = site.follow(None).await;
    let id = first.named("hello").await.id.unwrap();
    for _ in 0..3 {
        site.publish(|view| view.registry.index += 1);
        first.named("change").await;
    }
    let mut again = site.follow(Some(&id)).await;
    assert_eq!(again.named("hello").await.id, None);
    for index in 43..=45 {
        assert_eq!(again.named("change").await.data["registry"]["index"], index);
    }
    // The first time a browser cannot send the header.
    let response = site.ask("GET", &format!("/api/v1/events?last_event_id={id}"), &[]).await;
    let mut by_query = Stream { body: Box::pin(response.into_body().into_data_stream()), left: String::new() };
    by_query.next().await;
    by_query.named("hello").await;
    by_query.named("change").await;
    let start = id.split('-').next().unwrap();
    let other = format!("{:x}-7-0", u64::from_str_radix(start, 16).unwrap() + 1);
    for unknown in [other, format!("{start}-6-0"), format!("{start}-999-0"), "x".to_owned(), String::new()] {
        let reset = site.follow(Some(&unknown)).await.named("reset").await;
        assert!(reset.id.is_some(), "{unknown}: {reset:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn after_too_much_at_once_everything_is_loaded_again() {
    let site = Site::new(Some(well()));
    let mut stream = site.follow(None).await;
    let id = stream.named("hello").await.id.unwrap();
    site.publish(|view| {
        let all = (0..2000).map(|number| plain(&format!("10.1.{}.{}:80", number / 250, number % 250)));
        view.services = Arc::new(services([service("web", all.collect())]));
    });
    let reset = stream.named("reset").await;
    site.publish(|view| view.registry.index += 1);
    assert_eq!(stream.named("change").await.data["registry"]["index"], 43);
    site.follow(Some(&id)).await.named("reset").await;
    let mut resumed = site.follow(reset.id.as_deref()).await;
    resumed.named("hello").await;
    resumed.named("change").await;
}

#[tokio::test(start_paused = true)]
async fn a_client_that_never_reads_is_cut_off_and_holds_up_nobody() {
    let site = Site::new(Some(well()));
    let mut stuck = site.follow(None).await;
    let mut others = Vec::new();
    for _ in 1..STREAMS {
        let mut stream = site.follow(None).await;
        stream.named("hello").await;
        others.push(stream);
    }
    for round in 0..200 {
        site.publish(|view| view.registry.index += 1);
        for stream in &mut others {
            assert_eq!(stream.named("change").await.data["registry"]["index"], 43 + round);
        }
    }
    stuck.named("hello").await;
    let mut last = None;
    while let Some(event) = stuck.next().await {
        last = event.id.or(last);
    }
    assert_eq!(last, None, "it was too far behind, and is told nothing that has a gap before it");
}

#[tokio::test]
async fn streams_leave_room_for_others_and_give_it_back() {
    let site = Site::new(Some(well()));
    let mut streams = Vec::new();
    for _ in 0..STREAMS {
        streams.push(site.follow(None).await);
    }
    let (status, words) = site.get("/api/v1/events").await;
    assert_eq!((status, words.as_str()), (503, "{\"error\":\"too many streams\"}\n"));
    assert_eq!(site.get("/health/live").await.0, 200);
    streams.pop();
    streams.push(site.follow(None).await);
}

#[tokio::test(start_paused = true)]
async fn a_quiet_stream_says_that_it_is_there() {
    let site = Site::new(Some(well()));
    let mut stream = site.follow(None).await;
    stream.named("hello").await;
    let begun = Instant::now();
    assert_eq!(stream.next().await.unwrap().raw, ": still here");
    assert_eq!(begun.elapsed(), KEEP_ALIVE);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_kept_when_nobody_looks() {
    let site = Site::new(Some(well()));
    let mut stream = site.follow(None).await;
    let id = stream.named("hello").await.id.unwrap();
    drop(stream);
    tokio::time::sleep(Duration::from_secs(11)).await;
    site.publish(|view| view.registry.index += 1);
    site.follow(Some(&id)).await.named("reset").await;
}

/// HAProxy's stats socket: it answers once, and then shuts each connection without a word.
fn haproxy_that_answers_once(path: &std::path::Path) -> JoinHandle<()> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let listener = tokio::net::UnixListener::bind(path).unwrap();
    let mut reply = Some(
        "# pxname,svname,qcur,scur,status,weight,lastchg,check_status,last_chk,check_desc,addr,\n\
         web,10.0.0.1_8000,0,3,UP,100,60,L4OK,,,10.0.0.1:8000,\n\n",
    );
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _asked = stream.read(&mut [0; 1024]).await.unwrap();
            if let Some(reply) = reply.take() {
                stream.write_all(reply.as_bytes()).await.unwrap();
            }
        }
    })
}

#[tokio::test(start_paused = true)]
async fn what_haproxy_said_is_forgotten_once_it_does_not_answer() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("runtime.sock");
    let haproxy = haproxy_that_answers_once(&path);
    let site = Site::with(Some(well()), Some(Runtime::new(path)));
    let figures = async || {
        let all = site.json("/api/v1/services").await;
        json!([all["figures"], all["services"][0]["instances"][0]["haproxy"]["check"]])
    };
    assert_eq!(figures().await, json!(["known", "UP"]));
    let known = site.json("/api/v1/services").await["event_id"].as_str().unwrap().to_owned();
    let mut stream = site.follow(None).await;
    stream.named("hello").await;
    assert_eq!(stream.named("stats").await.data["rows"], json!([["web", "10.0.0.1:8000"]]));
    assert_eq!(figures().await, json!(["unknown", null]));
    let without = Site::new(Some(well())).json("/api/v1/services").await;
    assert_eq!(without["figures"], "unknown", "there is nothing to ask");
    let mut again = site.follow(Some(&known)).await;
    again.named("hello").await;
    let rows = again.named("stats").await.data["rows"].clone();
    assert!(rows.as_array().unwrap().contains(&json!(["web", "10.0.0.1:8000"])), "{rows}");
    haproxy.abort();
}

/// What a client makes of an event: the services as the API has them.
fn take_in(services: &mut Value, change: &Value) {
    let list = services.as_array_mut().unwrap();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    for gone in change["services_gone"].as_array().into_iter().flatten() {
        list.retain(|service| service["name"] != *gone);
    }
    for head in change["services"].as_array().into_iter().flatten() {
        let known = list.iter().position(|service| service["name"] == head["name"]);
        let of_known = |field: &str| known.map_or(json!([]), |at| list[at][field].clone());
        let (instances, why) = (of_known("instances"), of_known("left_out"));
        list.retain(|service| service["name"] != head["name"]);
        let mut service = head.clone();
        service.as_object_mut().unwrap().remove("left_out_total");
        if service.get("left_out").is_none() {
            service["left_out"] = why;
        }
        service["instances"] = instances;
        list.push(service);
    }
    list.sort_by_key(|service| text(&service["name"]));
    let of = |list: &mut Vec<Value>, name: &Value, address: &Value, new: Option<Value>| {
        let Some(service) = list.iter_mut().find(|service| service["name"] == *name) else { return };
        let instances = service["instances"].as_array_mut().unwrap();
        instances.retain(|instance| instance["address"] != *address);
        instances.extend(new);
        instances.sort_by_key(|instance| text(&instance["address"]));
    };
    for gone in change["instances_gone"].as_array().into_iter().flatten() {
        of(list, &gone["service"], &gone["address"], None);
    }
    for instance in change["instances"].as_array().into_iter().flatten() {
        let mut new = instance.clone();
        new.as_object_mut().unwrap().remove("service");
        of(list, &instance["service"], &instance["address"], Some(new));
    }
}

fn told(view: &View) -> Value {
    let mut services = serde_json::to_value(Report::new(view, None).services).unwrap();
    for service in services.as_array_mut().unwrap() {
        let instances = service["instances"].as_array_mut().unwrap();
        instances.sort_by_key(|instance| instance["address"].as_str().unwrap().to_owned());
    }
    services
}

fn some_view() -> impl Strategy<Value = View> {
    let instances = prop::collection::btree_map(0_u8..5, (any::<bool>(), any::<bool>(), 0_u16..3), 0..4);
    let standing = prop_oneof![5 => Just("served"), 1 => Just("shut out")];
    let some_services = prop::collection::btree_map("[a-d]", (instances, standing, any::<bool>()), 0..4);
    let part = prop_oneof![Just(Part::Key), Just(Part::Instance), Just(Part::Setting), Just(Part::Service)];
    let some_left_out = prop::collection::vec((part, "[a-d]", 0_u8..7, "[xy]"), 0..4);
    (some_services, some_left_out).prop_map(|(described, refused)| {
        let mut view = well();
        let (mut served, mut shut_out) = (Services::new(), Services::new());
        for (called, (instances, standing, sticky)) in described {
            let instances = instances.into_iter().map(|(last, (draining, suspect, weight))| {
                instance(&format!("10.0.0.{last}:80"), |instance, _| {
                    (instance.draining, instance.suspect, instance.weight) = (draining, suspect, weight);
                })
            });
            let mut made = (*service(&called, instances.collect())).clone();
            made.sticky = sticky;
            let into = if standing == "served" { &mut served } else { &mut shut_out };
            into.insert(name(&called), Arc::new(made));
        }
        view.services = Arc::new(served);
        view.shut_out = shut_out;
        view.left_out = refused
            .into_iter()
            .map(|(part, service, last, reason)| {
                let address = format!("10.0.0.{last}:80");
                left_out(part, &service, (part != Part::Service).then_some(address.as_str()), &reason)
            })
            .collect();
        view.left_out.sort();
        view
    })
}

proptest! {
    #[test]
    fn what_was_told_and_the_change_are_what_is_told_anew(before in some_view(), now in some_view()) {
        let change = serde_json::to_value(delta(&before, &now, None)).unwrap();
        let mut services = told(&before);
        take_in(&mut services, &change);
        prop_assert_eq!(services, told(&now), "{}", change);
    }

    #[test]
    fn a_long_answer_is_what_a_report_is(view in some_view()) {
        let view = Arc::new(view);
        let walked: String = Json::new(Walk::new(Arc::clone(&view), None, Filter::default())).collect();
        let walked: Value = serde_json::from_str(&format!("[{walked}]")).unwrap();
        prop_assert_eq!(walked, serde_json::to_value(Report::new(&view, None).services).unwrap());
    }
}
