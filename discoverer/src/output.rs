//! The edge to the configuration file: written whole, next to its place, and put there in one step.

use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::Mutex;

/// Who may read a new file: HAProxy often reads it as another user.
const MODE: u32 = 0o644;
/// The same for what nobody else has to read.
const PRIVATE_MODE: u32 = 0o600;
/// The largest file that is read, in bytes: four times what templates may render.
const READ_LIMIT: u64 = 256 << 20;

/// Why a file could not be written.
#[derive(Debug, thiserror::Error)]
#[error("{path} cannot be written: {error}")]
pub struct OutputError {
    path: String,
    error: std::io::Error,
}

/// The place of a file that is always whole.
#[derive(Debug, Clone)]
pub struct Output {
    path: PathBuf,
    candidate: PathBuf,
    /// Of a new file.
    mode: u32,
    /// Held while the disk is being written: who gave up waiting for that has not ended it.
    writing: Arc<Mutex<()>>,
}

impl Output {
    /// The file at a path. What is being prepared lies beside it, under the same name with `.candidate` behind it.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        let mut candidate = path.clone().into_os_string();
        candidate.push(".candidate");
        Self { path, candidate: candidate.into(), mode: MODE, writing: Arc::default() }
    }

    /// The same for a file that nobody else has to read.
    pub fn private(path: impl Into<PathBuf>) -> Self {
        Self { mode: PRIVATE_MODE, ..Self::new(path) }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the file holds; none where it is absent, unreadable or no file.
    pub fn read(&self) -> Option<String> {
        read(&self.path).ok()
    }

    /// Writes a text beside the file and gives where.
    pub async fn prepare(&self, text: impl Into<Arc<str>>) -> Result<&Path, OutputError> {
        let text = text.into();
        self.prepare_by(move |file| file.write_all(text.as_bytes())).await
    }

    /// As [`Output::prepare`], with a text that is made while it is written.
    pub async fn prepare_by(
        &self,
        write: impl FnOnce(&mut dyn Write) -> std::io::Result<()> + Send + 'static,
    ) -> Result<&Path, OutputError> {
        let output = self.clone();
        let written = self.off_the_loop(move || output.write_candidate(write)).await;
        written.map_err(|error| {
            self.discard();
            OutputError { path: self.candidate.display().to_string(), error }
        })?;
        Ok(&self.candidate)
    }

    /// Puts what was prepared in the file's place: whoever opens the file finds the old text or the new one, whole,
    /// also after the power failed. What was prepared is gone from its place then.
    pub async fn promote(&self) -> Result<(), OutputError> {
        let output = self.clone();
        let done = self.off_the_loop(move || output.put_in_place()).await;
        done.map_err(|error| OutputError { path: self.path.display().to_string(), error })
    }

    /// Takes away what was prepared.
    pub fn discard(&self) {
        // Nobody reads it, so that one that stays does no harm.
        let _ = std::fs::remove_file(&self.candidate);
    }

    fn write_candidate(&self, write: impl FnOnce(&mut dyn Write) -> std::io::Result<()>) -> std::io::Result<()> {
        let mode = std::fs::metadata(&self.path).map_or(self.mode, |metadata| metadata.permissions().mode() & 0o777);
        // Always a new file: one that is there may be a link, or be held open by whoever put it there (in a directory that
        // others may write to, such as /tmp).
        match std::fs::remove_file(&self.candidate) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&self.candidate)?;
        let mut file = BufWriter::new(file);
        write(&mut file)?;
        file.flush()
    }

    fn put_in_place(&self) -> std::io::Result<()> {
        observe::file::open(&self.candidate)?.sync_all()?;
        std::fs::rename(&self.candidate, &self.path)?;
        let directory = self.path.parent().filter(|parent| !parent.as_os_str().is_empty());
        File::open(directory.unwrap_or(Path::new(".")))?.sync_all()
    }

    /// Does something that may wait for the disk on a thread of its own, after what was begun there before.
    async fn off_the_loop(&self, work: impl FnOnce() -> std::io::Result<()> + Send + 'static) -> std::io::Result<()> {
        let alone = Arc::clone(&self.writing).lock_owned().await;
        let work = move || {
            let _alone = alone;
            work()
        };
        tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(std::io::Error::other(error)))
    }
}

/// What such a file holds.
pub(crate) fn read(path: &Path) -> std::io::Result<String> {
    observe::file::read(path, READ_LIMIT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_pipe_in_the_files_place_is_not_waited_for_and_gives_way_to_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let output = Output::new(directory.path().join("file"));
        nix::unistd::mkfifo(output.path(), nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert_eq!(output.read(), None);
        output.prepare("text").await.unwrap();
        output.promote().await.unwrap();
        assert_eq!(output.read().as_deref(), Some("text"));
        // Somebody else's, in the place of what was prepared.
        output.prepare("other").await.unwrap();
        output.discard();
        nix::unistd::mkfifo(&output.candidate, nix::sys::stat::Mode::S_IRWXU).unwrap();
        output.promote().await.unwrap_err();
        assert_eq!(output.read().as_deref(), Some("text"));
    }

    #[tokio::test]
    async fn a_file_is_replaced_whole_and_keeps_its_permissions() {
        let directory = tempfile::tempdir().unwrap();
        let output = Output::new(directory.path().join("haproxy.cfg"));
        assert_eq!(output.read(), None);
        output.prepare("one\n").await.unwrap();
        output.promote().await.unwrap();
        std::fs::set_permissions(output.path(), std::fs::Permissions::from_mode(0o600)).unwrap();
        output.prepare("two\n").await.unwrap();
        assert_eq!(output.read().as_deref(), Some("one\n"));
        output.promote().await.unwrap();
        assert_eq!(output.read().as_deref(), Some("two\n"));
        let mode = std::fs::metadata(output.path()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[tokio::test]
    async fn what_others_put_in_the_candidates_place_is_neither_followed_nor_written_to_nor_used() {
        let directory = tempfile::tempdir().unwrap();
        let (victim, candidate) = (directory.path().join("victim"), directory.path().join("haproxy.cfg.candidate"));
        std::fs::write(&victim, "precious").unwrap();
        let output = Output::new(directory.path().join("haproxy.cfg"));
        let soft = || std::os::unix::fs::symlink(&victim, &candidate).unwrap();
        let hard = || std::fs::hard_link(&victim, &candidate).unwrap();
        let pipe = || nix::unistd::mkfifo(&candidate, nix::sys::stat::Mode::S_IRWXU).unwrap();
        for put in [&soft as &dyn Fn(), &hard, &pipe] {
            put();
            output.prepare("x").await.unwrap();
            output.promote().await.unwrap();
            assert!(std::fs::symlink_metadata(output.path()).unwrap().file_type().is_file());
            assert_eq!(output.read().as_deref(), Some("x"));
            assert_eq!(std::fs::read_to_string(&victim).unwrap(), "precious");
        }
        // Who holds the file open that was there writes into nothing.
        let mut held = File::create(&candidate).unwrap();
        output.prepare("good").await.unwrap();
        held.write_all(b"evil").unwrap();
        output.promote().await.unwrap();
        assert_eq!(output.read().as_deref(), Some("good"));
        std::fs::create_dir(&candidate).unwrap();
        let error = output.prepare("x").await.unwrap_err().to_string();
        assert!(error.contains("haproxy.cfg.candidate cannot be written"), "{error}");
    }

    #[tokio::test]
    async fn who_gives_up_waiting_for_the_disk_does_not_write_into_what_comes_next() {
        let directory = tempfile::tempdir().unwrap();
        let output = Output::new(directory.path().join("haproxy.cfg"));
        let (slow, goes_on) = std::sync::mpsc::channel::<()>();
        let late = output.clone();
        let given_up = output.off_the_loop(move || {
            goes_on.recv().map_err(std::io::Error::other)?;
            late.write_candidate(|file| file.write_all(b"late\n"))?;
            late.put_in_place()
        });
        let waited = tokio::time::timeout(std::time::Duration::from_millis(20), given_up).await;
        waited.unwrap_err();
        let next = tokio::spawn(async move {
            output.prepare("next\n").await.unwrap();
            output.promote().await.unwrap();
            output.read()
        });
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        assert!(!next.is_finished());
        slow.send(()).unwrap();
        assert_eq!(next.await.unwrap().as_deref(), Some("next\n"));
    }

    #[tokio::test]
    async fn an_absent_directory_is_named() {
        let error = Output::new("/nonexistent/haproxy.cfg").prepare("x").await.unwrap_err().to_string();
        assert!(error.contains("/nonexistent/haproxy.cfg.candidate"), "{error}");
    }
}
