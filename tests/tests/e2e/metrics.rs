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

/// The series that an admin address exports, from when it says this: before the first picture there are no states.
async fn exported(admin: SocketAddr, said: &str) -> BTreeSet<String> {
    let text = wait_until(secs(20), "metrics", async || {
        let reply = http::get(admin, "/metrics").await.map_err(|error| error.to_string())?;
        if reply.status == 200 && reply.body.contains(said) { Ok(reply.body) } else { Err(reply.body) }
    })
    .await;
    assert!(text.ends_with("# EOF\n"), "{text}");
    let series = text.lines().filter(|line| !line.starts_with('#'));
    series.filter_map(|line| line.split(['{', ' ']).next()).map(str::to_owned).collect()
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
async fn the_dashboard_and_the_alerts_ask_for_what_the_programs_export() {
    within(90, async {
        let (etcd, admin) = (Etcd::start().await, free_address());
        let discoverer = Discoverer::supervise(&etcd.url()).admin(admin).start();
        etcd.put("/service/web/127.0.0.1:9", "running").await;
        discoverer.wait_config("127.0.0.1:9").await;
        let agent = Agent::start(&etcd, &["--admin", "127.0.0.1:0"]);
        let mut exported = exported(admin, "discoverer_instances{").await;
        exported.extend(self::exported(agent.admin().await, "registrar_etcd_connected{").await);

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
