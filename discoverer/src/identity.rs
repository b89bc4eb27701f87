//! By what this discoverer is known among those of its registry: the host's name, and a mark that it keeps in `--state-dir`.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read as _, Write as _};
use std::path::Path;

use nix::fcntl::{Flock, FlockArg, OFlag};
use registry::DiscovererId;
use registry::acknowledgement::IdError;
use tracing::info;

/// The file with the mark.
const FILE: &str = "discoverer-id";

/// The id, and what keeps others from taking the same.
#[derive(Debug)]
pub(crate) struct Identity {
    /// The id.
    pub(crate) id: DiscovererId,
    _alone: Option<Flock<File>>,
}

impl Identity {
    /// The id that is kept in the directory. Where that cannot be, or another process has it, one that holds until the end
    /// of this process.
    pub(crate) fn take(state_dir: &Path) -> Result<Self, IdError> {
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let host = host.trim();
        match kept(state_dir) {
            Ok((mark, alone)) => Ok(Self { id: DiscovererId::new(host, &mark)?, _alone: Some(alone) }),
            Err(error) => {
                let id = DiscovererId::new(host, &new_mark())?;
                let path = state_dir.join(FILE);
                info!(%error, path = %path.display(), %id, "the id is not kept: after a restart this discoverer counts as another one");
                Ok(Self { id, _alone: None })
            }
        }
    }
}

/// The mark in the directory, where a new one is put the first time, or when what is there is none.
fn kept(state_dir: &Path) -> std::io::Result<(String, Flock<File>)> {
    let path = state_dir.join(FILE);
    // A file that is open for writing keeps its file system from being made read-only.
    let file = match open(File::options().read(true), &path) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            std::fs::create_dir_all(state_dir)?;
            open(File::options().append(true).create(true), &path)?;
            open(File::options().read(true), &path)?
        }
        file => file?,
    };
    let locked = Flock::lock(file, FlockArg::LockExclusiveNonblock);
    let mut file = locked.map_err(|(_, error)| std::io::Error::from(error))?;
    let mut mark = String::new();
    // What is no text is no mark.
    let _read = (&mut *file).take(100).read_to_string(&mut mark);
    let mark = mark.trim().to_owned();
    if DiscovererId::new("host", &mark).is_ok() {
        return Ok((mark, file));
    }
    let mark = new_mark();
    let mut written = open(File::options().write(true).truncate(true), &path)?;
    writeln!(written, "{mark}")?;
    written.sync_all()?;
    Ok((mark, file))
}

/// Opens a file, but neither what a link leads to nor a pipe, which may never be written to: in a directory that others may write to (such
/// as one below /tmp) they may have put it there.
fn open(options: &mut OpenOptions, path: &Path) -> std::io::Result<File> {
    observe::file::open_with(options, OFlag::O_NOFOLLOW, path)
}

fn new_mark() -> String {
    format!("{:016x}", rand::random::<u64>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_id_is_kept_and_no_two_have_the_same() {
        let directory = tempfile::tempdir().unwrap();
        let first = Identity::take(directory.path()).unwrap();
        let second = Identity::take(directory.path()).unwrap();
        assert_ne!(first.id, second.id);
        let id = first.id.clone();
        drop((first, second));
        assert_eq!(Identity::take(directory.path()).unwrap().id, id);
        std::fs::write(directory.path().join(FILE), "a b\n").unwrap();
        let other = Identity::take(directory.path()).unwrap().id;
        assert_ne!(other, id);
        assert_eq!(Identity::take(directory.path()).unwrap().id, other);
        // A directory that is not there costs no more than that.
        let absent = directory.path().join("discoverer-id/absent");
        assert_ne!(Identity::take(&absent).unwrap().id, Identity::take(&absent).unwrap().id);
    }

    #[test]
    fn what_others_put_in_the_ids_place_is_neither_followed_nor_written_to_nor_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let (victim, absent) = (directory.path().join("victim"), directory.path().join("absent"));
        let place = directory.path().join(FILE);
        std::fs::write(&victim, "very precious").unwrap();
        let link = |to: &Path| std::os::unix::fs::symlink(to, &place).unwrap();
        let pipe = || nix::unistd::mkfifo(&place, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let (to_victim, to_nothing) = (|| link(&victim), || link(&absent));
        for put in [&to_victim as &dyn Fn(), &to_nothing, &pipe] {
            put();
            let (one, two) = (Identity::take(directory.path()).unwrap(), Identity::take(directory.path()).unwrap());
            assert!(one._alone.is_none() && one.id != two.id);
            assert_eq!(std::fs::read_to_string(&victim).unwrap(), "very precious");
            assert!(!absent.exists());
            std::fs::remove_file(&place).unwrap();
        }
    }
}
