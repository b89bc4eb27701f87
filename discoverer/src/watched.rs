//! The edge to what HAProxy reads besides its file, such as certificates: tells when it has changed. It decides nothing.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use observe::follow::Follower;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tracing::warn;

/// Whoever writes a file in pieces, or several one after the other, has done so when nothing has changed for this long.
const QUIET: Duration = Duration::from_secs(1);
/// What never rests is taken as it is after this.
const LONGEST_UNREST: Duration = Duration::from_secs(30);
/// How deep directories are looked into: links may lead in circles.
const DEEPEST: usize = 8;
/// How many files are looked at.
const MOST_FILES: usize = 10_000;

/// Files, each with what is another when it was written or replaced.
type Seen = BTreeMap<PathBuf, (u64, u64, u64, i64, i64)>;

/// Follows a file, or what is below a directory: gives the path each time that something there has changed and rests. Ends when nobody
/// listens any more.
pub(crate) async fn follow(path: PathBuf, changed: mpsc::Sender<PathBuf>) {
    let mut follower = Follower::below(&path);
    let mut last = look(&path).await;
    if last.is_empty() {
        warn!(path = %path.display(), "nothing to watch there yet; see --watch");
    }
    loop {
        tokio::select! {
            () = follower.next() => {}
            () = changed.closed() => return,
        }
        let mut now = look(&path).await;
        if now == last {
            continue;
        }
        let began = Instant::now();
        while began.elapsed() < LONGEST_UNREST {
            tokio::time::sleep(QUIET).await;
            let then = look(&path).await;
            if then == now {
                break;
            }
            now = then;
        }
        last = now;
        if changed.send(path.clone()).await.is_err() {
            return;
        }
    }
}

/// The disk may be slow.
async fn look(path: &Path) -> Seen {
    let path = path.to_owned();
    let looked = tokio::task::spawn_blocking(move || {
        let mut seen = Seen::new();
        add(&path, DEEPEST, &mut seen);
        seen
    });
    looked.await.unwrap_or_default()
}

/// Links are followed: what they lead to is what HAProxy reads. It passes over files with a dot in front, and so does this.
fn add(path: &Path, deeper: usize, seen: &mut Seen) {
    let Ok(metadata) = std::fs::metadata(path) else { return };
    if !metadata.is_dir() {
        let mark = (metadata.dev(), metadata.ino(), metadata.size(), metadata.mtime(), metadata.mtime_nsec());
        if seen.len() < MOST_FILES {
            seen.insert(path.to_owned(), mark);
        }
        return;
    }
    let Some(deeper) = deeper.checked_sub(1) else { return };
    for entry in std::fs::read_dir(path).into_iter().flatten().filter_map(Result::ok) {
        if !entry.file_name().as_encoded_bytes().starts_with(b".") {
            add(&entry.path(), deeper, seen);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[tokio::test]
    async fn what_is_written_replaced_added_or_removed_below_is_told_once_it_rests() {
        let dir = tempfile::tempdir().unwrap();
        let (watched, elsewhere) = (dir.path().join("live"), dir.path().join("archive"));
        fs::create_dir_all(watched.join("web")).unwrap();
        fs::create_dir(&elsewhere).unwrap();
        fs::write(elsewhere.join("1.pem"), "first").unwrap();
        let link = watched.join("web/cert.pem");
        symlink("../../archive/1.pem", &link).unwrap();
        let (changed, mut changes) = mpsc::channel(1);
        let following = tokio::spawn(follow(watched.clone(), changed));
        let mut told = async |what: &str| {
            let told = tokio::time::timeout(Duration::from_secs(60), changes.recv()).await;
            assert_eq!(told.unwrap_or_else(|_| panic!("{what} is not told")), Some(watched.clone()));
        };
        // It looks for the first time before anything changes.
        tokio::time::sleep(Duration::from_millis(300)).await;

        fs::write(watched.join("other.pem"), "half").unwrap();
        tokio::time::sleep(Duration::from_millis(300)).await;
        fs::write(watched.join("other.pem"), "half and half").unwrap();
        told("a new file").await;
        fs::write(watched.join("other.pem~"), "another").unwrap();
        fs::rename(watched.join("other.pem~"), watched.join("other.pem")).unwrap();
        told("a file that is replaced").await;
        fs::write(elsewhere.join("2.pem"), "second").unwrap();
        symlink("../../archive/2.pem", watched.join("web/.new")).unwrap();
        fs::rename(watched.join("web/.new"), &link).unwrap();
        told("a link that leads elsewhere").await;
        fs::write(elsewhere.join("2.pem"), "third, where nothing is watched").unwrap();
        told("the end of a link").await;
        fs::remove_file(watched.join("other.pem")).unwrap();
        told("a file that is gone").await;
        assert!(changes.try_recv().is_err(), "each is told once");
        drop(changes);
        tokio::time::timeout(Duration::from_secs(60), following).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn hidden_files_and_links_in_circles_are_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a.pem"), "a").unwrap();
        let before = look(dir.path()).await;
        assert_eq!(before.len(), 1);
        fs::write(dir.path().join(".a.pem.new"), "b").unwrap();
        assert_eq!(look(dir.path()).await, before);
        symlink(".", dir.path().join("circle")).unwrap();
        assert_eq!(look(dir.path()).await.len(), DEEPEST);
        assert_eq!(look(&dir.path().join("a.pem")).await.len(), 1, "a file alone");
        assert!(look(&dir.path().join("nothing")).await.is_empty());
    }
}
