//! Where the file is written: a place that cannot be written for a while costs nothing but the new configuration, for that while.

use std::fs;
use std::path::{Path, PathBuf};

use e2e::backend::Backend;
use e2e::discoverer::{Discoverer, SOON};
use e2e::etcd::Etcd;
use e2e::load::Load;
use e2e::process::{find_program, run};
use e2e::{secs, wait_until, within};
use tempfile::TempDir;

/// A small file system in memory. Dropping it unmounts it.
pub(crate) struct Tmpfs {
    dir: TempDir,
}

impl Tmpfs {
    pub(crate) async fn mount() -> Tmpfs {
        let tmpfs = Tmpfs { dir: tempfile::Builder::new().prefix("e2e-tmpfs-").tempdir().unwrap() };
        mount(&["-t", "tmpfs", "-o", "size=256k", "none", tmpfs.path_text()]).await;
        tmpfs
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    fn path_text(&self) -> &str {
        self.dir.path().to_str().unwrap()
    }

    pub(crate) async fn remount(&self, how: &str) {
        mount(&["-o", &format!("remount,{how}"), self.path_text()]).await;
    }

    /// Fills what is left of it, and gives the file that does.
    pub(crate) fn fill(&self) -> PathBuf {
        let filler = self.path().join("filler");
        let all = vec![0; 1024 * 1024];
        let error = fs::write(&filler, &all).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
        filler
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _gone_with_the_machine = std::process::Command::new("umount").arg("--lazy").arg(self.path()).status();
    }
}

async fn mount(args: &[&str]) {
    let done = run(&find_program("mount", "mount"), args, &[], secs(10)).await;
    assert_eq!(done.code, Some(0), "mount {args:?} needs root: `sudo ./test`\n{}", done.stderr);
}

/// Some complaint in the log that names the place.
async fn wait_complaint(discoverer: &Discoverer, path: &str, words: &str) {
    wait_until(SOON, &format!("a warning or error names {path} and says {words:?}"), async || {
        let events = discoverer.events();
        let complaints: Vec<String> = events
            .iter()
            .filter(|event| matches!(event["level"].as_str(), Some("WARN" | "ERROR")))
            .map(ToString::to_string)
            .collect();
        if complaints.iter().any(|line| line.contains(path) && line.contains(words)) {
            Ok(())
        } else {
            Err(format!("{complaints:#?}"))
        }
    })
    .await;
}

#[tokio::test]
async fn needs_root_a_read_only_directory_is_named_and_written_when_it_can_be() {
    within(90, async {
        let place = Tmpfs::mount().await;
        let etcd = Etcd::start().await;
        let mut discoverer = Discoverer::supervise(&etcd.url()).output(&place.path().join("haproxy.cfg")).start();
        let (one, two) = (Backend::start("one").await, Backend::start("two").await);
        etcd.put(&one.flat_key(), "running").await;
        discoverer.wait_serves(&["one"]).await;
        let load = Load::start(discoverer.http());
        place.remount("ro").await;
        etcd.put(&two.flat_key(), "running").await;
        wait_complaint(&discoverer, place.path_text(), "Read-only file system").await;
        load.wait_served(50).await;
        place.remount("rw").await;
        discoverer.wait_serves(&["one", "two"]).await;
        load.stop_after(50).await.assert_no_failure(50);
        assert!(discoverer.process().ended().is_none());
    })
    .await;
}

#[tokio::test]
async fn needs_root_a_full_disk_is_named_and_written_when_there_is_room() {
    within(90, async {
        let place = Tmpfs::mount().await;
        let etcd = Etcd::start().await;
        let mut discoverer = Discoverer::supervise(&etcd.url()).output(&place.path().join("haproxy.cfg")).start();
        let (one, two) = (Backend::start("one").await, Backend::start("two").await);
        etcd.put(&one.flat_key(), "running").await;
        discoverer.wait_serves(&["one"]).await;
        let good = discoverer.config();
        let load = Load::start(discoverer.http());
        let filler = place.fill();
        etcd.put(&two.flat_key(), "running").await;
        wait_complaint(&discoverer, place.path_text(), "No space left on device").await;
        assert_eq!(discoverer.config(), good, "the file that HAProxy would start with is whole");
        load.wait_served(50).await;
        fs::remove_file(filler).unwrap();
        discoverer.wait_serves(&["one", "two"]).await;
        load.stop_after(50).await.assert_no_failure(50);
        wait_until(secs(20), "the file is whole and alone", async || {
            let left: Vec<_> = fs::read_dir(place.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            let text = discoverer.config();
            let is_whole = [&one, &two].iter().all(|backend| text.contains(&backend.address().to_string()));
            if left == ["haproxy.cfg"] && is_whole { Ok(()) } else { Err(format!("{left:?}: {text}")) }
        })
        .await;
    })
    .await;
}

#[tokio::test]
async fn a_directory_that_is_not_there_yet_is_named_and_used_when_it_is() {
    within(60, async {
        let place = tempfile::tempdir().unwrap();
        let output = place.path().join("later/haproxy.cfg");
        let etcd = Etcd::start().await;
        let one = Backend::start("one").await;
        etcd.put(&one.flat_key(), "running").await;
        let mut discoverer = Discoverer::supervise(&etcd.url()).output(&output).start();
        wait_complaint(&discoverer, output.parent().unwrap().to_str().unwrap(), "No such file or directory").await;
        fs::create_dir(output.parent().unwrap()).unwrap();
        discoverer.wait_serves(&["one"]).await;
    })
    .await;
}
