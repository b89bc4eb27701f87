//! The log: to standard error, as text or JSON.

use std::io::IsTerminal;

use anyhow::Context;
use tracing_subscriber::EnvFilter;

use crate::config::{Flags, LogFormat};

/// Starts the log.
pub fn start(flags: &Flags) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(&flags.log_level)
        .with_context(|| format!("--log-level {:?} is no level and no filter", flags.log_level))?
        // What is wrong with a certificate is told by us, once.
        .add_directive("rustls_platform_verifier=off".parse().context("a filter of our own")?);
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    match flags.log_format {
        LogFormat::Text => builder.with_ansi(std::io::stderr().is_terminal()).init(),
        LogFormat::Json => builder.json().flatten_event(true).init(),
    }
    Ok(())
}
