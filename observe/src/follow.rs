//! Tells when files of a directory may have changed. It decides nothing.

use std::path::{Path, PathBuf};
use std::time::Duration;

use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;

/// Editors write a file in several steps; this long after the last of them it is read.
const SETTLE: Duration = Duration::from_millis(50);
/// Notifications are hints: a file that is mounted by itself is replaced without one, so it is read now and then anyway.
const READ_ANYWAY: Duration = Duration::from_secs(5);

/// Follows the directory of one file, so that the file is seen replaced as well as written; or all that is below a directory.
#[derive(Debug)]
pub struct Follower {
    directory: PathBuf,
    mode: RecursiveMode,
    hint: mpsc::Sender<()>,
    hints: mpsc::Receiver<()>,
    /// None where that is not possible, as while the directory is not there.
    watcher: Option<RecommendedWatcher>,
}

impl Follower {
    /// Begins at once.
    pub fn new(file: &Path) -> Self {
        Self::of(directory(file), RecursiveMode::NonRecursive)
    }

    /// The same for what is below a directory, or for one file where the path is none.
    pub fn below(path: &Path) -> Self {
        if path.is_dir() { Self::of(path.to_owned(), RecursiveMode::Recursive) } else { Self::new(path) }
    }

    fn of(directory: PathBuf, mode: RecursiveMode) -> Self {
        let (hint, hints) = mpsc::channel(1);
        let watcher = watcher(&directory, mode, &hint);
        Self { directory, mode, hint, hints, watcher }
    }

    /// Waits until something may have changed, or it is time to look anyway.
    pub async fn next(&mut self) {
        if self.watcher.is_none() {
            self.watcher = watcher(&self.directory, self.mode, &self.hint);
        }
        if tokio::time::timeout(READ_ANYWAY, self.hints.recv()).await.is_ok() {
            tokio::time::sleep(SETTLE).await;
            while self.hints.try_recv().is_ok() {}
        }
    }
}

/// The directory that a file is in.
pub fn directory(file: &Path) -> PathBuf {
    match file.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

fn watcher(directory: &Path, mode: RecursiveMode, hint: &mpsc::Sender<()>) -> Option<RecommendedWatcher> {
    let hint = hint.clone();
    let on_event = move |event: notify::Result<notify::Event>| {
        // Reading the files makes access events of our own.
        if !matches!(&event, Ok(event) if event.kind.is_access()) {
            let _ = hint.try_send(());
        }
    };
    let mut watcher = notify::recommended_watcher(on_event).ok()?;
    watcher.watch(directory, mode).ok()?;
    Some(watcher)
}
