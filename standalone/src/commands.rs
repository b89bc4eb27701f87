//! What is done once and ends. What is registered is asked of the one that runs, at its admin address, or of etcd.

use std::process::ExitCode;

use anyhow::{Context, anyhow};
use discoverer::client::{ApiError, Client};
use discoverer::config::Flags;
use discoverer::once;
use observe::answer::{self, print};
use registrar::{explain, list};
use registry::Store;

use crate::flags::{Program, Task};
use crate::held::{Held, PATH};

/// The exit code where nobody can be asked.
const AWAY: u8 = 3;

/// Does what the command line asks for.
///
/// # Errors
/// What is in the way of it.
pub async fn run(program: Program) -> anyhow::Result<ExitCode> {
    let Program { task, agent, discoverer: flags } = program;
    flags.check()?;
    match &task {
        Task::Run => return Err(anyhow!("it is no command that ends")),
        Task::Status { json } => return once::status(&flags, *json).await,
        Task::Health { connect } => return once::health(&flags, *connect).await,
        Task::Completions { shell } => {
            print(answer::completions(Program::command(), "standalone", *shell))?;
            return Ok(ExitCode::SUCCESS);
        }
        Task::Man { directory } => {
            answer::write_pages(Program::command(), directory)
                .with_context(|| format!("writing to {}", directory.display()))?;
            return Ok(ExitCode::SUCCESS);
        }
        Task::List { .. } | Task::Explain { .. } | Task::Render | Task::Check => {}
    }
    let store = match registered(&flags).await? {
        Ok(store) => store,
        Err(error) if task == Task::Check => {
            eprintln!("standalone: without what is registered now: {error}");
            return once::check(&flags, None).await;
        }
        Err(error) => {
            eprintln!("standalone: {error}. {}", error.advice());
            return Ok(if error.is_answer() { ExitCode::FAILURE } else { ExitCode::from(AWAY) });
        }
    };
    match task {
        Task::Render => return once::render(&flags, &store).await,
        Task::Check => return once::check(&flags, Some(&store)).await,
        Task::List { json } => {
            let list = list::run(&flags.key, &store).await?;
            print(if json { list.to_json()? + "\n" } else { list.to_string() })?;
        }
        Task::Explain { name } => {
            let is_read_here = flags.etcd.is_none();
            let container = explain::run(&name, &agent.scope, &store, is_read_here).await?;
            let rest = discoverer::explain::run(&flags, Some(&store), &name).await?;
            // What Docker does not know may be a service, or an instance.
            let is_about_container = container.has_container() || !rest.routed;
            if is_about_container {
                print(format!("From Docker to the registry:\n{container}\nFrom the registry to HAProxy:\n"))?;
            }
            print(rest.to_string())?;
            let is_well = rest.routed && (!is_about_container || container.is_registered());
            return Ok(if is_well { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        // They have ended above.
        Task::Run | Task::Status { .. } | Task::Health { .. } | Task::Completions { .. } | Task::Man { .. } => {}
    }
    Ok(ExitCode::SUCCESS)
}

/// The store, or one that holds the same.
async fn registered(flags: &Flags) -> anyhow::Result<Result<Store, ApiError>> {
    if flags.etcd.is_some() {
        return discoverer::store(flags).map(Ok);
    }
    let client = match Client::new(flags)? {
        Ok(client) => client,
        Err(error) => return Ok(Err(error)),
    };
    let held = client.get::<Held>(PATH).await;
    Ok(held.map(|held| held.to_store(&flags.key, flags.watch_timeout)))
}
