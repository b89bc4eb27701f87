//! Rolling replacement under load, in the registrar's order: the new instance is registered when it answers, the old
//! one's key goes first, and a second later its port is closed and its connections are cut.

use std::time::Duration;

use tokio::time::sleep;

use crate::Amount;
use crate::stats::Row;
use crate::traffic::{App, Load};
use crate::wire::Kept;
use crate::world::{SERVICE, Subject, Tools, record, wait};

const INSTANCES: usize = 10;
const CLIENTS: usize = 24;
/// Between two replacements.
const PAUSE: Duration = Duration::from_millis(100);
/// Between the end of the key and the end of the instance: the registrar's own.
const LINGER: Duration = Duration::from_secs(1);

pub(crate) async fn measure(tools: &Tools, amount: &Amount) -> anyhow::Result<Vec<Row>> {
    let prefix = tools.prefix();
    let mut connection = Kept::open(tools.etcd.address())?;
    let key = |app: &App| format!("{prefix}/{SERVICE}/127.0.0.1:{}", app.port());
    let mut apps = Vec::new();
    for number in 0..INSTANCES {
        let app = App::start("app")?;
        tools.put(&mut connection, &key(&app), &record(number, ""))?;
        apps.push(app);
    }
    let subject = Subject::start(tools, &prefix, INSTANCES).await?;
    let before = subject.reloads().await?;
    let load = Load::start(subject.http, CLIENTS)?;
    let mut number = INSTANCES;
    for round in 1..=amount.replacements {
        for app in &mut apps {
            let new = App::start("app")?;
            number += 1;
            tools.put(&mut connection, &key(&new), &record(number, ""))?;
            let old = std::mem::replace(app, new);
            tools.delete(&mut connection, &key(&old))?;
            tokio::spawn(async move {
                sleep(LINGER).await;
                drop(old);
            });
            sleep(PAUSE).await;
        }
        eprint!("\rrolling: round {round} of {}   ", amount.replacements);
    }
    sleep(LINGER * 2).await;
    let report = load.stop()?;
    eprintln!("failed {}", report.shown());
    let wanted = crate::servers::in_etcd(tools.etcd.address(), &prefix)?;
    let end = wait("HAProxy has what etcd holds", || {
        let seen = crate::servers::in_haproxy(&subject.socket()).map_err(|error| error.to_string())?;
        if seen == wanted { Ok(true) } else { Err(format!("{} of {}", seen.len(), wanted.len())) }
    })
    .await;
    let measured = format!(
        "failed {}; {} reloads; final state {}",
        report.shown(),
        subject.reloads().await? - before,
        end.map_or_else(|error| format!("wrong: {error}"), |_| "right".to_owned())
    );
    let what = format!("rolling replacement of {INSTANCES} instances, {} rounds, 24 clients", amount.replacements);
    Ok(vec![Row::new(&what, "0 failed", measured)])
}
