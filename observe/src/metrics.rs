//! Metrics as Prometheus reads them, and those of the process itself. Which others there are is said by who has them.

use std::fmt;
use std::fs;

use axum::body::Body;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderValue, StatusCode};
use axum::response::Response;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

/// What the text is (OpenMetrics 1.0.0).
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// In what the kernel counts the time of processes for programs (USER_HZ, the same on all of Linux's architectures that count).
const TICKS_PER_SECOND: f64 = 100.0;

/// All metrics of a registry, as the answer to a scrape.
pub fn response(registry: &Registry) -> Response {
    let mut text = String::new();
    let (status, of, body) = match encode(&mut text, registry) {
        Ok(()) => (StatusCode::OK, OPENMETRICS, text),
        Err(_) => {
            (StatusCode::INTERNAL_SERVER_ERROR, "text/plain; charset=utf-8", "a metric cannot be written\n".to_owned())
        }
    };
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(of));
    response
}

/// Registers what Prometheus wants to know of each process, and `<program>_build_info`. It is read when it is asked for.
pub fn add_process(registry: &mut Registry, program: &str, version: &'static str) {
    registry.register(format!("{program}_build"), "Which build this is", Info::new([("version", version)]));
    registry.register_collector(Box::new(Process));
}

/// Reads `/proc/self` (proc(5)). What cannot be read is left out.
#[derive(Debug)]
struct Process;

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut gauge = |name, help, unit, value: Option<f64>| {
            let Some(value) = value else { return Ok(()) };
            let gauge = ConstGauge::new(value);
            gauge.encode(encoder.encode_descriptor(name, help, unit, gauge.metric_type())?)
        };
        let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
        gauge("process_open_fds", "Open files and sockets", None, open_files())?;
        gauge("process_resident_memory", "Memory that is in use (RSS)", Some(&Unit::Bytes), resident())?;
        gauge(
            "process_start_time",
            "When the process was started, in Unix time",
            Some(&Unit::Seconds),
            started(&stat),
        )?;
        if let Some(used) = cpu(&stat) {
            let counter = ConstCounter::new(used);
            let (help, unit) = ("Time of the CPUs used, by user and system", Some(&Unit::Seconds));
            counter.encode(encoder.encode_descriptor("process_cpu", help, unit, counter.metric_type())?)?;
        }
        Ok(())
    }
}

#[allow(clippy::cast_precision_loss, reason = "as Prometheus has it")]
fn resident() -> Option<f64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some((kibibytes * 1024) as f64)
}

#[allow(clippy::cast_precision_loss, reason = "as Prometheus has it")]
fn open_files() -> Option<f64> {
    // One of them is open for this very look.
    Some(fs::read_dir("/proc/self/fd").ok()?.count().saturating_sub(1) as f64)
}

/// A field of `/proc/self/stat`, by its number in proc(5). The second, the program's name, may have anything in it.
fn field(stat: &str, number: usize) -> Option<f64> {
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(number.checked_sub(3)?)?.parse().ok()
}

fn cpu(stat: &str) -> Option<f64> {
    Some((field(stat, 14)? + field(stat, 15)?) / TICKS_PER_SECOND)
}

fn started(stat: &str) -> Option<f64> {
    let of_all = fs::read_to_string("/proc/stat").ok()?;
    let booted: f64 = of_all.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()?;
    Some(booted + field(stat, 22)? / TICKS_PER_SECOND)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_s_name_does_not_move_the_fields() {
        let rest = (3..30).map(|number| number.to_string()).collect::<Vec<_>>().join(" ");
        let stat = format!("1 (a ) (b) {rest}");
        assert_eq!((field(&stat, 14), field(&stat, 22), field(&stat, 99)), (Some(14.0), Some(22.0), None));
        assert_eq!(cpu(&stat), Some(0.29));
        assert_eq!(field("", 14), None);
    }

    #[test]
    fn the_process_is_described_in_the_units_that_prometheus_knows() {
        let mut registry = Registry::default();
        add_process(&mut registry, "program", "1.2.3");
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        let value = |name: &str| -> f64 {
            let line = text.lines().find(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(' ')));
            line.unwrap_or_else(|| panic!("{name} in {text}")).rsplit_once(' ').unwrap().1.parse().unwrap()
        };
        assert!(text.contains("program_build_info{version=\"1.2.3\"} 1\n"), "{text}");
        assert!(value("process_resident_memory_bytes") > 100_000.0);
        assert!(value("process_open_fds") >= 3.0);
        assert!(value("process_cpu_seconds_total") >= 0.0);
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
        let started = value("process_start_time_seconds");
        assert!((now - 24.0 * 3600.0..=now + 2.0).contains(&started), "{started} at {now}");
        assert!(text.ends_with("# EOF\n"));
    }
}
