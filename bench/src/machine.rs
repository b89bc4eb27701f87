//! What the figures were measured on.

use std::fs;

use crate::world::Tools;

/// Cores, memory, kernel, versions and how busy the machine is, as one line.
pub(crate) async fn describe(tools: &Tools) -> String {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib: u64 = memory.lines().next().and_then(|line| line.split_whitespace().nth(1)?.parse().ok()).unwrap_or(0);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!(
        "{cores} cores, {:.0} GiB, Linux {}, {}, load average {}",
        kib as f64 / 1_048_576.0,
        kernel.trim(),
        tools.versions().await,
        load_average()
    )
}

/// The load averages over 1, 5 and 15 minutes.
pub(crate) fn load_average() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().take(3).collect::<Vec<_>>().join(" ")
}
