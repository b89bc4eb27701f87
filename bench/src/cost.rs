//! What the discoverer takes: memory by the number of instances, CPU time for each change.

use std::time::Duration;

use tokio::time::sleep;

use crate::Amount;
use crate::plot::{Curve, Plot};
use crate::stats::{Measured, Row};
use crate::traffic::App;
use crate::wire::Kept;
use crate::world::{SERVICE, Subject, Tools, keys, record, wait};

const SIZES: [(usize, &str); 4] = [(1, ""), (1000, "12 MB"), (5000, "20 MB"), (10_000, "30 MB")];
/// So long it is watched while nothing changes.
const IDLE: Duration = Duration::from_secs(5);

pub(crate) async fn measure(tools: &Tools, amount: &Amount) -> anyhow::Result<Measured> {
    let app = App::start("old")?;
    let mut rows = Vec::new();
    let (mut memory, mut time) = (Vec::new(), Vec::new());
    let wanted = amount.sizes(&SIZES.map(|(size, _)| size));
    for (size, target) in SIZES.into_iter().filter(|(size, _)| wanted.contains(size)) {
        let prefix = tools.prefix();
        tools.fill(&keys(&prefix, size, app.port(), ""))?;
        let subject = Subject::start(tools, &prefix, size).await?;
        sleep(IDLE).await;
        let at_rest = subject.memory_mb("VmRSS")?;
        let cpu = subject.cpu_ms()?;
        sleep(IDLE).await;
        let idle = subject.cpu_ms()? - cpu;
        let (per_change, took) = cpu_per_change(tools, &subject, &prefix, app.port(), amount.cost_changes).await?;
        #[allow(clippy::cast_precision_loss)]
        let instances = size as f64;
        memory.push((instances, subject.memory_mb("VmRSS")?));
        time.push((instances, per_change));
        let measured = format!(
            "{at_rest:.1} MB at rest, {:.1} MB after {} changes, {:.1} MB at most",
            subject.memory_mb("VmRSS")?,
            amount.cost_changes,
            subject.memory_mb("VmHWM")?
        );
        rows.push(Row::new(&format!("memory, {size} instances"), target, measured));
        let target = if size == 5000 { "5 ms" } else { "" };
        let measured = format!(
            "{per_change:.1} ms ({} changes in {:.0} s; {idle} ms in {} s without a change)",
            amount.cost_changes,
            took.as_secs_f64(),
            IDLE.as_secs()
        );
        rows.push(Row::new(&format!("CPU for each change, {size} instances"), target, measured));
    }
    let plot = |file, title: &str, up, points| Plot {
        file,
        title: title.to_owned(),
        across: "instances",
        up,
        curves: vec![Curve { name: "discoverer".to_owned(), points }],
    };
    let plots = vec![
        plot("memory", "Memory (RSS) by the number of instances", "MB", memory),
        plot("cpu", "CPU time for one change, file and registry's copy included", "milliseconds", time),
    ];
    Ok(Measured { rows, plots })
}

/// Single changes, each settled before the next, file and all: milliseconds of the discoverer's own time for each.
async fn cpu_per_change(
    tools: &Tools,
    subject: &Subject,
    prefix: &str,
    port: u16,
    changes: u32,
) -> anyhow::Result<(f64, Duration)> {
    let mut connection = Kept::open(tools.etcd.address())?;
    let address = format!("127.200.0.1:{port}");
    let (key, server) = (format!("{prefix}/{SERVICE}/{address}"), address.replace(':', "_"));
    let before = subject.cpu_ms()?;
    let start = std::time::Instant::now();
    for change in 0..changes {
        let is_in = change % 2 == 0;
        if is_in {
            tools.put(&mut connection, &key, &record(999_999, ""))?;
        } else {
            tools.delete(&mut connection, &key)?;
        }
        wait("the discoverer is settled", || subject.is_settled(&server, is_in).map_err(|error| error.to_string()))
            .await?;
        eprint!("\rcost: {} of {changes} changes   ", change + 1);
    }
    eprintln!();
    let cpu = subject.cpu_ms()? - before;
    #[allow(clippy::cast_precision_loss)]
    let per_change = cpu as f64 / f64::from(changes);
    Ok((per_change, start.elapsed()))
}
