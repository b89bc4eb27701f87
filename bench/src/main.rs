//! The benchmark: how long a change takes, what it costs, and whether a request fails for it. Everything is real (etcd,
//! HAProxy, Docker, the release builds of the programs) and on this machine; every child ends with this process.
//!
//! It judges nothing: it prints what it measured, as rows of a table.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod apis;
mod burst;
mod churn;
mod cost;
mod document;
mod floor;
mod leader;
mod leases;
mod life;
mod machine;
mod many;
mod page;
mod pipeline;
mod plot;
mod propagation;
mod registrar;
mod rolling;
mod scale;
mod servers;
mod startup;
mod stats;
mod traffic;
mod wire;
mod world;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Context as _;
use clap::{Parser, Subcommand, ValueEnum};

use crate::stats::{Measured, Row};

/// Measures the discoverer and the registrar with the real etcd, HAProxy and Docker.
#[derive(Debug, Parser)]
#[command(args_conflicts_with_subcommands = true)]
struct Flags {
    #[command(subcommand)]
    command: Option<Command>,
    /// Fewer rounds: a first look in a few minutes
    #[arg(long, conflicts_with = "full")]
    quick: bool,
    /// More rounds: 20 churn runs, 200 changes for each size
    #[arg(long)]
    full: bool,
    /// Writes the results into docs/performance.md, with curves beside it in docs/plots
    #[arg(long)]
    write: bool,
    /// Only this one; may be given more than once
    #[arg(long, value_enum)]
    only: Vec<Name>,
    /// Only these numbers of servers or containers, where a measurement knows several
    #[arg(long, value_delimiter = ',')]
    sizes: Vec<usize>,
    /// A discoverer that is built already; without it the release build is made first
    #[arg(long, value_name = "PATH")]
    discoverer: Option<PathBuf>,
    /// A registrar that is built already; without it the release build is made first
    #[arg(long, value_name = "PATH")]
    registrar: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Does one step of the discoverer's once, for valgrind, which counts its instructions
    Once {
        /// The step
        part: pipeline::Part,
        /// The number of instances
        instances: usize,
    },
    /// Measures one large site on etcd's v3 API, and where v2 ends: docs/scaling.md
    Scale(scale::Size),
}

impl Flags {
    fn measures(&self, name: Name) -> bool {
        self.only.is_empty() || self.only.contains(&name)
    }
}

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Name {
    /// From a change in etcd to traffic, beside the floor.
    Propagation,
    /// Changes at 20/s under load.
    Churn,
    /// Forced reloads under load.
    Reloads,
    /// Rolling replacement under load.
    Rolling,
    /// Many writers at once.
    Burst,
    /// Memory, and CPU time for each change.
    Cost,
    /// The leader of a cluster killed under changes and load.
    Leader,
    /// The agent: from Docker's events to etcd, memory, CPU time.
    Registrar,
    /// etcd's v3 API beside v2.
    Apis,
    /// Keeping the keys of 100 registrars alive, by each API.
    Leases,
    /// The discoverer's page: first paint in Chromium, and the memory that it takes.
    Page,
    /// The steps from an event to a command, in this process.
    Steps,
    /// From the discoverer's start to HAProxy's first answer.
    Startup,
    /// From `docker run` to the first request, and from `docker stop` to the last.
    Life,
    /// 50 discoverers on one etcd.
    Many,
}

impl Name {
    /// As `--only` and the document have it.
    fn as_flag(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }

    fn needs_discoverer(self) -> bool {
        !matches!(self, Self::Registrar | Self::Steps)
    }

    fn needs_registrar(self) -> bool {
        matches!(self, Self::Registrar | Self::Leader | Self::Life)
    }
}

/// All of it, in the order in which it is measured.
const ALL: [Name; 15] = [
    Name::Steps,
    Name::Startup,
    Name::Life,
    Name::Many,
    Name::Registrar,
    Name::Cost,
    Name::Page,
    Name::Propagation,
    Name::Apis,
    Name::Leases,
    Name::Churn,
    Name::Reloads,
    Name::Rolling,
    Name::Burst,
    Name::Leader,
];

/// How much is measured.
#[derive(Debug, Clone)]
struct Amount {
    rounds: usize,
    churn_runs: usize,
    reloads: usize,
    replacements: usize,
    burst_runs: usize,
    cost_changes: u32,
    container_lives: usize,
    leaders: usize,
    page_runs: usize,
    sizes: Vec<usize>,
}

impl Amount {
    fn of(flags: &Flags) -> Self {
        let sizes = flags.sizes.clone();
        match (flags.quick, flags.full) {
            (true, _) => Self {
                rounds: 20,
                churn_runs: 1,
                reloads: 10,
                replacements: 4,
                burst_runs: 1,
                cost_changes: 30,
                container_lives: 10,
                leaders: 2,
                page_runs: 1,
                sizes,
            },
            (_, true) => Self {
                rounds: 200,
                churn_runs: 20,
                reloads: 50,
                replacements: 20,
                burst_runs: 5,
                cost_changes: 100,
                container_lives: 100,
                leaders: 10,
                page_runs: 5,
                sizes,
            },
            _ => Self {
                rounds: 100,
                churn_runs: 3,
                reloads: 50,
                replacements: 20,
                burst_runs: 3,
                cost_changes: 100,
                container_lives: 40,
                leaders: 4,
                page_runs: 3,
                sizes,
            },
        }
    }

    fn sizes(&self, known: &[usize]) -> Vec<usize> {
        known.iter().copied().filter(|size| self.sizes.is_empty() || self.sizes.contains(size)).collect()
    }
}

fn main() -> anyhow::Result<ExitCode> {
    let flags = Flags::parse();
    if let Some(Command::Once { part, instances }) = flags.command {
        pipeline::once(part, instances)?;
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(Command::Scale(size)) = &flags.command {
        let discoverer = program("discoverer", size.discoverer.as_deref())?;
        let programs = world::Programs { discoverer: Some(discoverer), registrar: None };
        return until_stopped(run_scale(size, programs));
    }
    let any = |needs: fn(Name) -> bool| ALL.into_iter().any(|name| flags.measures(name) && needs(name));
    let programs = world::Programs {
        discoverer: any(Name::needs_discoverer)
            .then(|| program("discoverer", flags.discoverer.as_deref()))
            .transpose()?,
        registrar: any(Name::needs_registrar).then(|| program("registrar", flags.registrar.as_deref())).transpose()?,
    };
    until_stopped(run(&flags, programs))
}

fn until_stopped(work: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        tokio::select! {
            result = work => result.map(|()| ExitCode::SUCCESS),
            _ = tokio::signal::ctrl_c() => {
                eprintln!("stopped");
                Ok(ExitCode::from(130))
            }
        }
    })
}

/// The path of a program: the one that is given, or the release build.
fn program(name: &str, given: Option<&Path>) -> anyhow::Result<PathBuf> {
    match given {
        Some(path) => path.canonicalize().with_context(|| format!("--{name} {}", path.display())),
        None => world::build(name),
    }
}

async fn run(flags: &Flags, programs: world::Programs) -> anyhow::Result<()> {
    let amount = Amount::of(flags);
    let tools = world::Tools::new(programs).await?;
    println!("{}\n", machine::describe(&tools).await);
    let size = if flags.quick {
        " --quick"
    } else if flags.full {
        " --full"
    } else {
        ""
    };
    let mut rows: Vec<Row> = Vec::new();
    for name in ALL.into_iter().filter(|name| flags.measures(*name)) {
        let start = Instant::now();
        let measured = match name {
            Name::Steps => pipeline::measure(&amount),
            Name::Startup => startup::measure(&tools, &amount).await,
            Name::Life => life::measure(&tools, &amount).await,
            Name::Many => many::measure(&tools, &amount).await,
            Name::Propagation => propagation::measure(&tools, &amount).await,
            Name::Cost => cost::measure(&tools, &amount).await,
            Name::Registrar => registrar::measure(&tools, &amount).await,
            Name::Churn => churn::changes(&tools, &amount).await.map(Measured::of),
            Name::Reloads => churn::reloads(&tools, &amount).await.map(Measured::of),
            Name::Rolling => rolling::measure(&tools, &amount).await.map(Measured::of),
            Name::Burst => burst::measure(&tools, &amount).await.map(Measured::of),
            Name::Page => page::measure(&tools, &amount).await.map(Measured::of),
            Name::Leader => leader::measure(&tools, &amount).await.map(Measured::of),
            Name::Apis => apis::measure(&tools, &amount).await.map(Measured::of),
            Name::Leases => leases::measure(&tools).await.map(Measured::of),
        };
        match measured {
            Ok(measured) => {
                if flags.write {
                    let command = format!("cargo run --release -p bench --{size} --only {}", name.as_flag());
                    document::write(&name.as_flag(), &section(&tools, &command, &measured).await?)?;
                }
                rows.extend(measured.rows);
            }
            // What is not measured says so in its place, and the others go on.
            Err(error) => rows.push(Row::new(&format!("{name:?}"), "", format!("not measured: {error:#}"))),
        }
        eprintln!("{name:?}: {:.0} s, load average {}", start.elapsed().as_secs_f64(), machine::load_average());
    }
    println!("\n{}", stats::table(&rows));
    Ok(())
}

async fn run_scale(size: &scale::Size, programs: world::Programs) -> anyhow::Result<()> {
    let tools = world::Tools::new(programs).await?;
    println!("{}\n", machine::describe(&tools).await);
    let measured = Measured::of(scale::measure(&tools, size).await?);
    if size.write {
        let text = section(&tools, &size.command(), &measured).await?;
        document::write_into(&document::scaling(), scale::NAME, &text)?;
    }
    println!("\n{}", stats::table(&measured.rows));
    Ok(())
}

/// What the document says of one measurement: when, where and how, the table, and the curves.
async fn section(tools: &world::Tools, command: &str, measured: &Measured) -> anyhow::Result<String> {
    let plots = document::path().with_file_name("plots");
    let mut text = format!(
        "Measured on {} by `{command}`: {}.\n\n{}",
        jiff::tz::TimeZone::UTC.to_datetime(jiff::Timestamp::now()).date(),
        machine::describe(tools).await,
        stats::table(&measured.rows)
    );
    for plot in &measured.plots {
        if let Some(name) = plot.draw(&plots)? {
            text.push_str(&format!("\n![{}](plots/{name})\n", plot.title));
        }
    }
    Ok(text)
}
