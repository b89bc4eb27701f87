//! The signals that end the process, as wishes to stop.

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

/// So many may wait: whoever asks a third time is not in more of a hurry than at the second.
const WAITING: usize = 4;

/// Listens from now on; each wish to stop has the signal's name. SIGUSR2 is taken and does nothing, nor does SIGHUP but for who reads flags again: their default
/// would end HAProxy's parent.
///
/// # Errors
/// The kernel gives none.
pub fn listen() -> anyhow::Result<mpsc::Receiver<&'static str>> {
    let listen = |kind| signal(kind).context("signals cannot be received");
    for kind in [SignalKind::hangup(), SignalKind::user_defined2()] {
        let mut ignored = listen(kind)?;
        tokio::spawn(async move { while ignored.recv().await.is_some() {} });
    }
    let (wishes, stop) = mpsc::channel(WAITING);
    let signals = [
        (SignalKind::terminate(), "SIGTERM"),
        (SignalKind::interrupt(), "SIGINT"),
        (SignalKind::quit(), "SIGQUIT"),
        // The signal by which images of HAProxy are stopped.
        (SignalKind::user_defined1(), "SIGUSR1"),
    ];
    for (kind, name) in signals {
        let (mut signal, wishes) = (listen(kind)?, wishes.clone());
        tokio::spawn(async move { while signal.recv().await.is_some() && wishes.send(name).await.is_ok() {} });
    }
    Ok(stop)
}
