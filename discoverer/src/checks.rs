//! Asks HAProxy what its checks say, while somebody wants to know. It decides nothing.

use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::Instant;
use tracing::debug;

use crate::haproxy::Runtime;
use crate::until;

/// How often: a dead instance goes within this time after its check has it down.
const EVERY: Duration = Duration::from_secs(1);

/// The question that is asked again and again, in the background.
#[derive(Debug)]
pub(crate) struct Checks {
    runtime: Option<Runtime>,
    at: Option<Instant>,
    asking: Option<JoinHandle<Option<String>>>,
}

impl Checks {
    /// Whom to ask; without a stats socket nobody is.
    pub(crate) fn new(runtime: Option<Runtime>) -> Self {
        Self { runtime, at: None, asking: None }
    }

    /// To be told whether anybody wants to know. Whoever begins to is answered at once.
    pub(crate) fn wanted(&mut self, is_wanted: bool) {
        match is_wanted {
            false => self.at = None,
            true if self.asking.is_none() => self.at = self.at.or_else(|| Some(Instant::now())),
            true => {}
        }
    }

    /// The next answer: the state of all servers, none where HAProxy does not say. Loses nothing when it is dropped.
    pub(crate) async fn wait(&mut self) -> Option<String> {
        if self.asking.is_none() {
            until(self.at).await;
            let runtime = self.runtime.clone();
            self.asking = Some(tokio::task::spawn_local(async move {
                let state = runtime?.servers_state().await;
                state.inspect_err(|error| debug!(%error, "HAProxy does not tell its checks")).ok()
            }));
        }
        let state = match &mut self.asking {
            Some(asking) => asking.await,
            None => return std::future::pending().await,
        };
        self.asking = None;
        self.at = Some(Instant::now() + EVERY);
        state.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
    }
}
