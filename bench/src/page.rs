//! The discoverer's page with many instances: when a browser shows something of it, and what memory the admin server takes while
//! nobody looks, while somebody does, and after that.

use std::time::Duration;

use anyhow::Context as _;
use e2e::browser::Browser;
use e2e::ports::free_address;
use tokio::time::sleep;

use crate::Amount;
use crate::stats::{Row, Times};
use crate::traffic::App;
use crate::world::{Subject, Tools, keys};

const SIZES: [usize; 1] = [5000];
/// So long it is left alone before its memory is read.
const IDLE: Duration = Duration::from_secs(5);
/// So long after the last look what was held for it has to be gone.
const AFTER: Duration = Duration::from_secs(30);
/// How often a browser loads the page in a run.
const LOADS: usize = 5;
/// How long a page may take to be painted at all.
const PAINT_LIMIT: Duration = Duration::from_secs(20);

/// The memory of one run, in MiB.
struct Memory {
    off: f64,
    idle: f64,
    looked_at: f64,
    after: f64,
}

pub(crate) async fn measure(tools: &Tools, amount: &Amount) -> anyhow::Result<Vec<Row>> {
    let app = App::start("old")?;
    let mut rows = Vec::new();
    for size in amount.sizes(&SIZES) {
        let prefix = tools.prefix();
        tools.fill(&keys(&prefix, size, app.port(), ""))?;
        let (mut painted, mut whole, mut memory) = (Times::default(), Times::default(), Vec::new());
        for run in 0..amount.page_runs {
            eprintln!("page: run {} of {}", run + 1, amount.page_runs);
            memory.push(one_run(tools, &prefix, size, &mut painted, &mut whole).await?);
        }
        let median = |of: fn(&Memory) -> f64| {
            let mut all: Vec<f64> = memory.iter().map(of).collect();
            all.sort_by(f64::total_cmp);
            all.get(all.len() / 2).copied().unwrap_or_default()
        };
        let what = |what: &str| format!("page, {size} instances: {what}");
        rows.push(Row::new(&what("first paint"), "500 ms", painted.shown()));
        rows.push(Row::new(&what("all of it loaded"), "", whole.shown()));
        let more = median(|run| run.idle - run.off);
        let measured = format!("{more:+.1} MB ({:.1} MB without it)", median(|run| run.off));
        rows.push(Row::new(&what("memory while nobody looks"), "1 MB", measured));
        let measured = format!("{:+.1} MB", median(|run| run.looked_at - run.off));
        rows.push(Row::new(&what("memory while a browser looks, at most"), "", measured));
        let measured = format!("{:+.1} MB", median(|run| run.after - run.off));
        rows.push(Row::new(&what("memory 30 s after that"), "", measured));
    }
    Ok(rows)
}

async fn one_run(
    tools: &Tools,
    prefix: &str,
    size: usize,
    painted: &mut Times,
    whole: &mut Times,
) -> anyhow::Result<Memory> {
    let off = {
        let subject = Subject::start(tools, prefix, size).await?;
        sleep(IDLE).await;
        subject.memory_mb("VmRSS")?
    };
    let page = free_address();
    let subject = Subject::start_with_page(tools, prefix, size, page).await?;
    sleep(IDLE).await;
    let idle = subject.memory_mb("VmRSS")?;
    let mut looked_at = idle;
    {
        let browser = Browser::start(1280, 900).await;
        for _ in 0..LOADS {
            browser.open(&format!("http://{page}/")).await;
            browser.wait_for_text("#live", "live").await;
            painted.push(mark(&browser, "paint", "startTime").await?);
            whole.push(mark(&browser, "navigation", "loadEventEnd").await?);
            looked_at = looked_at.max(subject.memory_mb("VmRSS")?);
        }
        sleep(IDLE).await;
        looked_at = looked_at.max(subject.memory_mb("VmRSS")?);
    }
    sleep(AFTER).await;
    Ok(Memory { off, idle, looked_at, after: subject.memory_mb("VmRSS")? })
}

/// When that was, from the navigation's start on, as the browser has it (W3C Paint Timing and Navigation Timing).
async fn mark(browser: &Browser, kind: &str, field: &str) -> anyhow::Result<Duration> {
    let script = format!("return performance.getEntriesByType('{kind}')[0]?.{field} ?? 0");
    let seen = e2e::wait_until(PAINT_LIMIT, &format!("the browser's {kind}"), async || {
        let seen = browser.run(&script).await;
        if seen.as_f64().is_some_and(|ms| ms > 0.0) { Ok(seen) } else { Err(seen.to_string()) }
    })
    .await;
    Ok(Duration::from_secs_f64(seen.as_f64().context("no number")? / 1000.0))
}
