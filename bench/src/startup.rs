//! From the discoverer's start to HAProxy's first answer, with so many instances in etcd: beside the least that could come to the same, which
//! is one listing, HAProxy's check of the file, and the start of HAProxy with it.

use std::time::Instant;

use anyhow::ensure;

use crate::Amount;
use crate::stats::{Measured, Row, Times};
use crate::traffic::App;
use crate::wire::Kept;
use crate::world::{Subject, Tools, Twin, check_file, keys};

const SIZES: [usize; 3] = [1, 1000, 10_000];
const RUNS: usize = 3;

pub(crate) async fn measure(tools: &Tools, amount: &Amount) -> anyhow::Result<Measured> {
    let app = App::start("app")?;
    let mut rows = Vec::new();
    for size in amount.sizes(&SIZES) {
        let prefix = tools.prefix();
        tools.fill(&keys(&prefix, size, app.port(), ""))?;
        let (mut ours, mut floor) = (Times::default(), Times::default());
        let mut cpu = 0;
        for run in 1..=RUNS {
            let subject = Subject::start(tools, &prefix, size).await?;
            ours.push(subject.served_after);
            cpu = subject.cpu_ms()?;
            let begun = Instant::now();
            let path = format!("/v2/keys/{prefix}?recursive=true&quorum=true");
            let listed = Kept::open(tools.etcd.address())?.ask("GET", &path, "", true)?;
            ensure!(listed.status == 200, "{}", listed.status);
            check_file(&subject.file())?;
            let before = begun.elapsed();
            let twin = Twin::of(&subject).await?;
            floor.push(before + twin.served_after);
            eprint!("\rstart: {size} instances, {run} of {RUNS}   ");
        }
        eprintln!();
        let measured = format!(
            "{}; floor {}; ratio of the medians {:.2}; {cpu} ms of its own CPU time by then",
            ours.shown(),
            floor.shown(),
            ours.median() / floor.median()
        );
        rows.push(Row::new(&format!("start -> HAProxy answers, {size} instances"), "", measured));
    }
    Ok(Measured::of(rows))
}
