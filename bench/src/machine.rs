//! What the figures were measured on, and what a process takes of it.

use std::fs;

use anyhow::Context as _;
use e2e::process::memory_kib;
use nix::unistd::Pid;

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
        // What is behind the version names the machine.
        kernel.trim().split('-').next().unwrap_or_default(),
        tools.versions().await,
        load_average()
    )
}

/// The load averages over 1, 5 and 15 minutes.
pub(crate) fn load_average() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().take(3).collect::<Vec<_>>().join(" ")
}

/// User and system time of a process itself, without its children, in milliseconds (proc(5), fields 14 and 15 of `stat`,
/// in ticks of 10 ms).
pub(crate) fn cpu_ms(pid: Pid) -> anyhow::Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, fields) = stat.rsplit_once(") ").context("/proc/PID/stat")?;
    let ticks: Vec<u64> = fields.split(' ').skip(11).take(2).filter_map(|field| field.parse().ok()).collect();
    Ok(ticks.iter().sum::<u64>() * 10)
}

/// A size of its memory in MiB: `VmRSS` or `VmHWM`.
pub(crate) fn memory_mb(pid: Pid, name: &str) -> anyhow::Result<f64> {
    let kib = memory_kib(pid, name).with_context(|| format!("/proc/{pid}/status does not tell {name}"))?;
    Ok(kib as f64 / 1024.0)
}
