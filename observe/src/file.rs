//! Files that are read whole: no more of one than it may have, and nothing that is no file. What others have put in a file's place, such as
//! a pipe that nobody writes to, or a device without end, holds up nobody.

use std::fs::{File, OpenOptions};
use std::io::{Error, ErrorKind, Read as _, Result};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use nix::fcntl::OFlag;

/// Opens a regular file for reading. Links are followed.
///
/// # Errors
/// As the system has it; what is there is no regular file.
pub fn open(path: &Path) -> Result<File> {
    open_with(File::options().read(true), OFlag::empty(), path)
}

/// The same with options and flags of the caller's.
///
/// # Errors
/// As [`open`].
pub fn open_with(options: &mut OpenOptions, flags: OFlag, path: &Path) -> Result<File> {
    // A pipe that nobody writes to would hold up the opening. What is read from a file comes as ever.
    let file = options.custom_flags((flags | OFlag::O_NONBLOCK).bits()).open(path)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(Error::other("it is no regular file")) }
}

/// The text of a regular file of at most so many bytes.
///
/// # Errors
/// As [`open`]; [`ErrorKind::FileTooLarge`]; [`ErrorKind::InvalidData`] for what is no UTF-8.
pub fn read(path: &Path, limit: u64) -> Result<String> {
    let bytes = read_bytes(path, limit)?;
    String::from_utf8(bytes).map_err(|error| Error::new(ErrorKind::InvalidData, error))
}

/// The same for what need be no text.
///
/// # Errors
/// As [`read`].
pub fn read_bytes(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let file = open(path)?;
    let too_large = || Error::new(ErrorKind::FileTooLarge, format!("it has more than {limit} bytes"));
    let size = file.metadata()?.len();
    if size > limit {
        return Err(too_large());
    }
    let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or(0));
    // One that grows meanwhile is not read for ever.
    file.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit { Err(too_large()) } else { Ok(bytes) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_regular_file_is_refused_and_not_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        nix::unistd::mkfifo(&at("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        std::os::unix::fs::symlink(at("pipe"), at("link")).unwrap();
        for path in [at("pipe"), at("link"), "/dev/zero".into(), directory.path().to_owned()] {
            let error = read(&path, 10).unwrap_err();
            assert_eq!(error.to_string(), "it is no regular file", "{}", path.display());
        }
        // A socket cannot be opened at all.
        let _listener = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
        read(&at("socket"), 10).unwrap_err();
        assert_eq!(read(&at("absent"), 10).unwrap_err().kind(), ErrorKind::NotFound);
    }

    #[test]
    fn a_file_has_a_text_of_at_most_so_many_bytes() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        for (bytes, text) in [
            (&b"123"[..], Ok("123")),
            (b"", Ok("")),
            (b"1234", Err(ErrorKind::FileTooLarge)),
            (b"\xff", Err(ErrorKind::InvalidData)),
        ] {
            std::fs::write(&path, bytes).unwrap();
            assert_eq!(read(&path, 3).map_err(|error| error.kind()), text.map(str::to_owned), "{bytes:?}");
        }
        // The kernel's own files say no size.
        assert!(read(Path::new("/proc/self/status"), 100_000).unwrap().contains("Name:"));
        assert_eq!(read(Path::new("/proc/self/status"), 3).unwrap_err().kind(), ErrorKind::FileTooLarge);
    }
}
