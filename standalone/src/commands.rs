//! What is done once and ends. What is registered is asked of the one that runs, at its admin address, or of etcd.

use std::process::ExitCode;

use anyhow::{Context, anyhow};
use discoverer::client::{ApiError, Client};
use discoverer::config::Flags;
use discoverer::once;
use observe::answer::{self, complain, print};
use registrar::explain::{self, DockerSays};
use registrar::list;
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
            complain(format_args!("without what is registered now: {error}"));
            return once::check(&flags, None).await;
        }
        Err(error) => {
            complain(format_args!("{error}. {}", error.advice()));
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
            let (told, is_well) = whole_way(container, &rest);
            print(told)?;
            return Ok(if is_well { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        // They have ended above.
        Task::Run | Task::Status { .. } | Task::Health { .. } | Task::Completions { .. } | Task::Man { .. } => {}
    }
    Ok(ExitCode::SUCCESS)
}

/// The whole way, and whether it is open. The first step that says no is the answer: nothing behind it is told as another one.
fn whole_way(container: explain::Explanation, rest: &discoverer::explain::Explanation) -> (String, bool) {
    let is_registered = container.is_registered();
    let both = |container: explain::Explanation, rest: &str| {
        format!("From Docker to the registry:\n{container}\nFrom the registry to HAProxy:\n{rest}")
    };
    match container.docker() {
        // It may be a service, or an instance.
        DockerSays::Unknown if rest.known => (rest.to_string(), rest.routed),
        DockerSays::Unknown | DockerSays::Nothing => (both(container.by_the_way(), &rest.to_string()), rest.routed),
        // One of its ports may be served all the same.
        DockerSays::Known if is_registered || rest.routed => {
            (both(container, &rest.to_string()), is_registered && rest.routed)
        }
        DockerSays::Known => (both(container, "        not asked: the way ends before it\n"), false),
    }
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
