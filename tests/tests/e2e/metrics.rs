//! What the dashboard and the alerts ask for is what the programs export, and each metric is explained.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;

use e2e::agent::Agent;
use e2e::discoverer::Discoverer;
use e2e::etcd::Etcd;
use e2e::http;
use e2e::ports::free_address;
use e2e::{secs, wait_until, within};
use serde_json::Value;

/// What an admin address exports, from when it says this: before the first picture there are no states.
async fn metrics(admin: SocketAddr, said: &str) -> String {
    let text = wait_until(secs(20), "metrics", async || {
        let reply = http::get(admin, "/metrics").await.map_err(|error| error.to_string())?;
        if reply.status == 200 && reply.body.contains(said) { Ok(reply.body) } else { Err(reply.body) }
    })
    .await;
    assert!(text.ends_with("# EOF\n"), "{text}");
    text
}

/// The names of the series in it.
fn series(text: &str) -> BTreeSet<String> {
    let series = text.lines().filter(|line| !line.starts_with('#'));
    series.filter_map(|line| line.split(['{', ' ']).next()).map(str::to_owned).collect()
}

/// The discoverer's own families in it, as its page names them, with their types.
fn families(text: &str) -> BTreeSet<(String, String)> {
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
    let ours = types.filter(|(name, kind)| name.starts_with("discoverer_") && *kind != "info");
    let suffix = |kind: &str| if kind == "counter" { "_total" } else { "" };
    ours.map(|(name, kind)| (format!("{name}{}", suffix(kind)), kind.to_owned())).collect()
}

/// The names and types in the table of a page of the docs.
fn listed(page: &str) -> BTreeSet<(String, String)> {
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs").join(page)).unwrap();
    let rows = text.lines().filter(|line| line.starts_with("| `discoverer_"));
    let cell = |cell: Option<&str>| cell.unwrap_or_default().trim().trim_matches('`').to_owned();
    let pair = |line: &str| {
        let mut cells = line.trim_matches('|').split('|');
        (cell(cells.next()), cell(cells.next()))
    };
    rows.map(pair).collect()
}

/// The words of an expression that name metrics of ours.
fn named(expression: &str) -> BTreeSet<String> {
    let words = expression.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let is_ours = |word: &&str| ["discoverer_", "registrar_", "process_"].iter().any(|prefix| word.starts_with(prefix));
    words.filter(is_ours).map(str::to_owned).collect()
}

fn packaging(file: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging").join(file);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Every text under the name `expr`, and what variables are filled with.
fn expressions(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                match value {
                    Value::String(text) if name == "expr" || name == "definition" => found.push(text.clone()),
                    other => expressions(other, found),
                }
            }
        }
        Value::Array(values) => values.iter().for_each(|value| expressions(value, found)),
        _ => {}
    }
}

#[tokio::test]
async fn the_dashboard_and_the_alerts_ask_for_what_the_programs_export_and_the_docs_list_it() {
    within(90, async {
        let (etcd, admin) = (Etcd::start().await, free_address());
        let discoverer = Discoverer::supervise(&etcd.url()).admin(admin).start();
        etcd.put("/service/web/127.0.0.1:9", "running").await;
        discoverer.wait_config("127.0.0.1:9").await;
        let agent = Agent::start(&etcd, &["--admin", "127.0.0.1:0"]);
        let of_discoverer = metrics(admin, "discoverer_instances{").await;
        let mut exported = series(&of_discoverer);
        exported.extend(series(&metrics(agent.admin().await, "registrar_etcd_connected{").await));
        assert_eq!(listed("metrics.md"), families(&of_discoverer), "docs/metrics.md, and what is exported");

        let mut asked = Vec::new();
        expressions(&serde_json::from_str(&packaging("grafana/dashboard.json")).unwrap(), &mut asked);
        let of_dashboard: BTreeSet<String> = asked.iter().flat_map(|text| named(text)).collect();
        let alerts = packaging("prometheus/alerts.yml");
        // An alert's expression stands before its `for`; what is said to people may name families.
        let expressions = alerts.split("expr:").skip(1).map(|rest| rest.split("for:").next().unwrap_or(rest));
        let of_alerts: BTreeSet<String> = expressions.flat_map(named).collect();
        assert!(of_dashboard.len() > 20 && of_alerts.len() > 12, "{of_dashboard:?} {of_alerts:?}");
        for (file, names) in [("the dashboard", &of_dashboard), ("the alerts", &of_alerts)] {
            let unknown: Vec<_> = names.difference(&exported).collect();
            assert!(unknown.is_empty(), "{file} ask for {unknown:?}, which nobody exports: {exported:#?}");
        }
    })
    .await;
}
