//! Reads the settings again at SIGHUP and when the file changes. Edge: the signal and the file; what the settings do is their
//! owner's business.

use std::future::pending;
use std::path::Path;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tracing::{error, info, warn};

use super::{Loaded, Source, file, print};
use crate::follow::Follower;
use crate::systemd;

/// What came of reading the settings again.
#[derive(Debug)]
pub struct News<T> {
    /// They, or why those from before stay.
    pub settings: Result<T, String>,
    /// Everything is to be read again: somebody has sent SIGHUP.
    pub is_asked: bool,
}

/// Where a daemon's loop hears of it.
#[derive(Debug)]
pub struct Renewals<T> {
    news: Option<mpsc::Receiver<News<T>>>,
    following: JoinSet<()>,
}

impl<T> Default for Renewals<T> {
    /// It never hears anything.
    fn default() -> Self {
        Self { news: None, following: JoinSet::new() }
    }
}

impl<T: Send + 'static> Renewals<T> {
    /// Follows from now on. `loaded` is what the program began with; `read` makes settings of what was read again, and gives a reason
    /// where they do not go together. What takes effect only after a restart is said in the log.
    ///
    /// # Errors
    /// SIGHUP cannot be received.
    pub fn follow(
        source: Source,
        loaded: Loaded,
        read: impl Fn(&Loaded) -> Result<T, String> + Send + Sync + 'static,
    ) -> std::io::Result<Self> {
        let (sender, news) = mpsc::channel(1);
        let mut following = JoinSet::new();
        following.spawn(send(source, loaded, read, signal(SignalKind::hangup())?, sender));
        Ok(Self { news: Some(news), following })
    }

    /// For two daemons in one process: each hears of its part.
    pub fn split<A, B>(mut self, parts: impl Fn(T) -> (A, B) + Send + 'static) -> (Renewals<A>, Renewals<B>)
    where
        A: Send + 'static,
        B: Send + 'static,
    {
        let ((to_first, first), (to_second, second)) = (mpsc::channel(1), mpsc::channel(1));
        let mut following = JoinSet::new();
        following.spawn(async move {
            loop {
                let News { settings, is_asked } = self.next().await;
                let (one, two) = match settings.map(&parts) {
                    Ok((one, two)) => (Ok(one), Ok(two)),
                    Err(error) => (Err(error.clone()), Err(error)),
                };
                // One of them may have ended, and the other goes on until it is told to stop.
                let _ended = to_first.send(News { settings: one, is_asked }).await;
                let _ended = to_second.send(News { settings: two, is_asked }).await;
            }
        });
        // With the first all ends.
        (Renewals { news: Some(first), following }, Renewals { news: Some(second), following: JoinSet::new() })
    }

    /// The next; never, where there is none. To be dropped at any time.
    pub async fn next(&mut self) -> News<T> {
        let Some(receiver) = &mut self.news else { return pending().await };
        match receiver.recv().await {
            Some(news) => news,
            // It only ends by a panic, which goes on here.
            None => match self.following.join_next().await {
                Some(Err(error)) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
                _ => pending().await,
            },
        }
    }
}

async fn send<T>(
    source: Source,
    loaded: Loaded,
    read: impl Fn(&Loaded) -> Result<T, String>,
    mut hangup: Signal,
    sender: mpsc::Sender<News<T>>,
) {
    let file = loaded.file.clone();
    let mut follower = file.as_deref().map(Follower::new);
    // As it was when it was first read, so that a change since then is not missed.
    let mut seen = loaded.text.clone().map(Ok);
    let mut state = State { source, begun: loaded, last: None, told: None };
    loop {
        let is_asked = tokio::select! {
            Some(()) = hangup.recv() => true,
            () = changed(&mut follower, file.as_deref(), &mut seen) => false,
            () = sender.closed() => return,
        };
        if is_asked {
            seen = file.as_deref().map(file::text);
            info!(signal = "SIGHUP", "everything is read again");
            systemd::reloading();
        }
        let settings = state.again(&read, is_asked);
        if is_asked {
            systemd::reloaded();
        }
        if sender.send(News { settings, is_asked }).await.is_err() {
            return;
        }
    }
}

/// Waits until the file has another text; for ever where there is none.
async fn changed(follower: &mut Option<Follower>, file: Option<&Path>, seen: &mut Option<Result<String, String>>) {
    let (Some(follower), Some(file)) = (follower, file) else { return pending().await };
    loop {
        let now = Some(file::text(file));
        if *seen != now {
            *seen = now;
            return;
        }
        follower.next().await;
    }
}

struct State {
    source: Source,
    /// What the program began with, of which it keeps what needs a restart.
    begun: Loaded,
    /// What was read since then.
    last: Option<Loaded>,
    /// What is wrong, told once.
    told: Option<String>,
}

impl State {
    fn again<T>(&mut self, read: &impl Fn(&Loaded) -> Result<T, String>, is_asked: bool) -> Result<T, String> {
        let loaded = self.source.read().map_err(|error| error.to_string());
        let loaded = loaded.and_then(|loaded| Ok((read(&loaded)?, loaded)));
        let (settings, loaded) = match loaded {
            Ok(both) => both,
            Err(error) => {
                let error = error.trim_end().to_owned();
                if is_asked || self.told.as_ref() != Some(&error) {
                    error!(error, "the configuration cannot be used; the former one stays");
                    self.told = Some(error.clone());
                }
                return Err(error);
            }
        };
        let was_wrong = self.told.take().is_some();
        self.say(&loaded, was_wrong);
        self.last = Some(loaded);
        Ok(settings)
    }

    fn say(&self, loaded: &Loaded, was_wrong: bool) {
        let changed = loaded.changed(self.last.as_ref().unwrap_or(&self.begun));
        let (at_once, later): (Vec<_>, Vec<_>) =
            changed.into_iter().partition(|setting| self.source.rules.at_once.contains(&setting.key.as_str()));
        for setting in &at_once {
            let value = print::for_log(setting);
            info!(key = setting.key, value, "the configuration has changed");
        }
        let differs = loaded.changed(&self.begun);
        for setting in &later {
            if differs.iter().any(|other| other.key == setting.key) {
                warn!(key = setting.key, "the configuration has changed; this takes effect after a restart");
            } else {
                info!(key = setting.key, "the configuration is what it was at the start");
            }
        }
        if was_wrong && at_once.is_empty() && later.is_empty() {
            info!("the configuration can be used again");
        }
    }
}
