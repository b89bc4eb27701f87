//! What is done once and ends: `render`, `check`, `status`, `explain`, `--once`, `--dry-run`.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;
use jiff::Timestamp;
use observe::answer::{complain, print};
use registry::Store;
use similar::{ChangeTag, TextDiff};
use tracing::{info, warn};

use crate::apply::{Applier, ApplyConfig};
use crate::catalog::Catalog;
use crate::client::Client;
use crate::compose::{Composer, Wanted};
use crate::config::Flags;
use crate::haproxy::{Program, Reloader, Runtime};
use crate::metrics::Metrics;
use crate::model::Services;
use crate::options::UnreadOption;
use crate::output::Output;
use crate::{
    catalog_options, explain, health, reloaded_version, reloader, running_version, sample, status, store, surroundings,
    templates, version,
};

/// The exit code of `status` where no discoverer can be asked.
const AWAY: u8 = 3;

/// Prints the configuration for what the registry holds now.
///
/// # Errors
/// What is in the way of it.
pub async fn render(flags: &Flags, store: &Store) -> anyhow::Result<ExitCode> {
    let services = services(flags, store).await?;
    let templates = templates::load(&flags.template)?;
    let surroundings = surroundings(flags, &Program::new(&flags.haproxy)).await;
    print(templates.render(&services, &surroundings)?)?;
    Ok(ExitCode::SUCCESS)
}

/// Lets HAProxy check what the template makes of made-up services, and of the real ones where etcd is named.
///
/// # Errors
/// What is in the way of it.
pub async fn check(flags: &Flags, store: Option<&Store>) -> anyhow::Result<ExitCode> {
    let mut cases =
        vec![("no service at all", Services::new()), ("made-up services", sample::services(&catalog_options(flags)))];
    if let Some(store) = store {
        cases.push(("the registered services", services(flags, store).await?));
    }
    let templates = templates::load(&flags.template)?;
    let program = Program::new(&flags.haproxy);
    let surroundings = surroundings(flags, &program).await;
    let directory = tempfile::tempdir().context("a directory for the check")?;
    let file = Output::new(directory.path().join("haproxy.cfg"));
    let options = flags.option_map();
    for UnreadOption { name, meant } in templates.unread(options.keys().map(String::as_str)) {
        let meant = meant.join(", ");
        warn!(option = %name, %meant, "no template reads this option (--set)");
    }
    for (name, services) in cases {
        let text = templates.render(&services, &surroundings).with_context(|| format!("with {name}"))?;
        program.check(file.prepare(text).await?).await.with_context(|| format!("with {name}"))?;
        print(format!("{}: good with {name}\n", flags.template.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Says how a running discoverer stands.
///
/// # Errors
/// What is in the way of it.
pub async fn status(flags: &Flags, as_json: bool) -> anyhow::Result<ExitCode> {
    let report = match Client::new(flags)? {
        Ok(client) => client.report_with_stats().await,
        Err(error) => Err(error),
    };
    match report {
        Ok(report) => {
            let is_well = status::wrongs(&report).is_empty();
            if as_json {
                print(serde_json::to_string_pretty(&report)? + "\n")?;
            } else {
                print(status::Table { report: &report, now: Timestamp::now() }.to_string())?;
            }
            Ok(if is_well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        Err(error) => {
            complain(format_args!("{error}. {}", error.advice()));
            Ok(if error.is_answer() { ExitCode::FAILURE } else { ExitCode::from(AWAY) })
        }
    }
}

/// Says whether HAProxy takes connections.
///
/// # Errors
/// The standard output cannot be written to.
pub async fn health(flags: &Flags, connect: Option<SocketAddr>) -> anyhow::Result<ExitCode> {
    match health::ask(flags, connect).await {
        Ok(address) => {
            print(format!("HAProxy takes connections at {address}\n"))?;
            Ok(ExitCode::SUCCESS)
        }
        Err(error) => {
            complain(error);
            Ok(ExitCode::FAILURE)
        }
    }
}

/// Says whether a service or an instance is routed to, or why not.
///
/// # Errors
/// What is in the way of it.
pub async fn explain(flags: &Flags, store: Option<&Store>, name: &str, as_json: bool) -> anyhow::Result<ExitCode> {
    let explanation = explain::run(flags, store, name).await?;
    if as_json {
        print(serde_json::to_string_pretty(&explanation)? + "\n")?;
    } else {
        print(explanation.to_string())?;
    }
    Ok(if explanation.routed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Says what would change in the file.
///
/// # Errors
/// What is in the way of it.
pub async fn dry_run(flags: &Flags) -> anyhow::Result<ExitCode> {
    let directory = tempfile::tempdir().context("a directory for the check")?;
    let now = Output::new(&flags.output).read().unwrap_or_default();
    let (mut composer, wanted) = prepare(flags, Output::new(directory.path().join("haproxy.cfg"))).await?;
    let (text, _) = composer.checked_text(&wanted).await?;
    let mut changes = 0;
    for change in TextDiff::from_lines(&*now, &*text).iter_all_changes() {
        let sign = match change.tag() {
            ChangeTag::Equal => continue,
            ChangeTag::Delete => '-',
            ChangeTag::Insert => '+',
        };
        changes += 1;
        print(format!("{sign}{}{}", change.value(), if change.missing_newline() { "\n" } else { "" }))?;
    }
    print(format!("{}: {changes} lines would change; nothing was written\n", flags.output.display()))?;
    Ok(left_out(&composer))
}

/// Applies what the registry holds now.
///
/// # Errors
/// What is in the way of it.
pub async fn apply(flags: &Flags) -> anyhow::Result<ExitCode> {
    let program = Program::new(&flags.haproxy);
    let reloader =
        reloader(flags, reloaded_version(flags, running_version(flags).await.as_deref(), version(&program).await))
            .unwrap_or(Reloader::Nobody);
    if matches!(reloader, Reloader::Nobody) {
        warn!("no --reload flag is given: the file is written, and HAProxy is not told");
    }
    let output = Output::new(&flags.output);
    let (composer, wanted) = prepare(flags, output.clone()).await?;
    let config = ApplyConfig {
        program: Some(program.clone()),
        installed: program,
        version: None,
        output,
        reloader,
        runtime: flags.runtime_socket().map(Runtime::new),
        min_interval: flags.min_interval,
        drain_timeout: flags.drain_timeout,
        metrics: Metrics::default(),
        part: None,
    };
    let mut applier = Applier::new(config, composer);
    applier.apply(&wanted).await?;
    info!(output = %flags.output.display(), "done");
    Ok(left_out(applier.composer()))
}

/// A service that had to be left out is no success.
fn left_out(composer: &Composer) -> ExitCode {
    if composer.left_out().next().is_some() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

async fn prepare(flags: &Flags, output: Output) -> anyhow::Result<(Composer, Wanted)> {
    let templates = templates::load(&flags.template)?;
    let wanted =
        Wanted { services: Arc::new(services(flags, &store(flags)?).await?), templates: Rc::new(Ok(templates)) };
    let program = Program::new(&flags.haproxy);
    let surroundings = surroundings(flags, &program).await;
    Ok((Composer::new(Some(program), output, surroundings), wanted))
}

/// What the registry holds now; what is refused in it is logged.
async fn services(flags: &Flags, store: &Store) -> anyhow::Result<Services> {
    let listing = store.list(&flags.key).await?;
    let mut catalog = Catalog::new(catalog_options(flags));
    for refusal in catalog.list(listing, Instant::now()).refused {
        warn!(key = refusal.key, reason = refusal.reason, "key refused");
    }
    Ok(catalog.services().clone())
}
