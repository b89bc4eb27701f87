//! `discoverer explain`: each step from the key in etcd over the discoverer and HAProxy's file to HAProxy itself, with the
//! first that says no, and what to do.
//!
//! Everything is read once, then the explanation is made of it without asking anybody. A part that does not answer is a step,
//! and the others are read all the same.

mod file;
#[cfg(test)]
pub(crate) mod sample;
mod steps;
#[cfg(test)]
mod tests;
mod way;

use std::io;
use std::path::Path;

use registry::{Prefix, Store};

pub(crate) use self::steps::shown;
pub use self::steps::{Explanation, Part, Says, Step, Way};

use self::file::File;
use self::way::{Away, Etcd, Evidence};
use crate::client::Client;
use crate::config::Flags;
use crate::haproxy::{Runtime, Stats};
use crate::output;
use crate::report::Report;

/// The stats socket under `--supervise`, in the state directory.
const OWN_SOCKET: &str = "runtime.sock";

/// Follows what is meant by a name. The registry is only asked where there is a way to it.
///
/// # Errors
/// Only for what is wrong with the flags.
pub async fn run(flags: &Flags, store: Option<&Store>, name: &str) -> anyhow::Result<Explanation> {
    let registered_in = store.map(Store::kind).unwrap_or_default();
    let etcd = match store {
        None => Etcd::NotAsked,
        Some(store) => read_etcd(store, &flags.key).await,
    };
    let stats = read_stats(flags).await;
    let discoverer = read_discoverer(flags, matches!(stats, Some(Ok(_)))).await?;
    let evidence = Evidence {
        name: name.to_owned(),
        prefix: flags.key.clone(),
        share: flags.share(),
        store: registered_in,
        etcd,
        discoverer,
        output: flags.output.display().to_string(),
        file: read_file(&flags.output),
        stats,
    };
    Ok(way::explain(&evidence))
}

async fn read_etcd(store: &Store, prefix: &Prefix) -> Etcd {
    let listed = async {
        let mut entries = store.list(prefix).await?.entries;
        store.add_times(&mut entries).await?;
        let api = store.api().await?.map(registry::Api::as_str);
        Ok::<_, registry::StoreError>(Etcd::Lists { api, entries })
    };
    listed.await.unwrap_or_else(|error| Etcd::Away(error.to_string()))
}

async fn read_discoverer(flags: &Flags, has_stats: bool) -> anyhow::Result<Result<Report, Away>> {
    let client = match Client::new(flags)? {
        Ok(client) => client,
        Err(error) => return Ok(Err(Away::no(error.to_string(), error.advice()))),
    };
    let report = if has_stats { client.report().await } else { client.report_with_stats().await };
    Ok(report.map_err(|error| Away::no(error.to_string(), error.advice())))
}

fn read_file(path: &Path) -> Result<File, Away> {
    let shown = path.display();
    match output::read(path) {
        Ok(text) => Ok(File::read(&text)),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            Err(Away::unknown(format!("{shown} cannot be read: {error}"), "Ask as the discoverer's user, or as root"))
        }
        Err(error) => Err(Away::no(
            format!("{shown} cannot be read: {error}"),
            "Is that the discoverer's --output, and is this its host, or its container?",
        )),
    }
}

/// None where no socket is named, and none is where the discoverer has it by default.
async fn read_stats(flags: &Flags) -> Option<Result<Stats, Away>> {
    let own = || Some(flags.state_directory().join(OWN_SOCKET)).filter(|socket| socket.exists());
    let socket = flags.runtime_socket().or_else(own)?;
    let may = nix::unistd::access(&socket, nix::unistd::AccessFlags::W_OK);
    if may == Err(nix::errno::Errno::EACCES) {
        let why = format!("HAProxy's socket {}: permission denied", socket.display());
        return Some(Err(Away::unknown(why, "Ask as the discoverer's user, or as root")));
    }
    let stats = Stats::ask(&Runtime::new(socket), &Stats::default(), 0).await;
    let advice = "Does HAProxy run? Is that its `stats socket`, and is this its host, or its container?";
    Some(stats.map_err(|error| Away::no(error.to_string(), advice)))
}
