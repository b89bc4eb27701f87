//! The image of the tests' own application, which needs no base: the program `e2e-app` of this crate and the libraries it is
//! linked with. It starts in milliseconds.

use std::fs;
use std::hash::{DefaultHasher, Hasher as _};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use tokio::sync::OnceCell;

use crate::docker::{docker, docker_ok};
use crate::process::{find_program, find_workspace_binary, run};
use crate::secs;

/// The image's name.
pub const IMAGE: &str = "e2e/app";

/// Marks the image; its value says what it was made from.
const LABEL: &str = "e2e.inputs";

const DOCKERFILE: &str = "FROM scratch\nCOPY root/ /\nENTRYPOINT [\"/e2e-app\"]\n";

/// Makes the image from the built program, unless it is there and current. Once in each test process.
pub async fn provide_image() {
    static PROVIDED: OnceCell<()> = OnceCell::const_new();
    PROVIDED.get_or_init(|| provide(find_workspace_binary("e2e-app"))).await;
}

/// The same with a program that is given.
pub async fn provide(program: PathBuf) {
    // Another test process may be at it.
    let lock = fs::File::create(std::env::temp_dir().join("e2e-app.lock")).unwrap();
    let lock = tokio::task::spawn_blocking(|| Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, error)| error));
    let _alone = lock.await.unwrap().unwrap();

    let mut files = vec![(program.clone(), PathBuf::from("e2e-app"))];
    for library in libraries(&program).await {
        let inside = library.strip_prefix("/").unwrap().to_path_buf();
        files.push((library, inside));
    }
    let mut hasher = DefaultHasher::new();
    hasher.write(DOCKERFILE.as_bytes());
    files.iter().for_each(|(file, _)| hasher.write(&fs::read(file).unwrap()));
    let inputs = format!("{:016x}", hasher.finish());
    let format = format!("{{{{.Id}}}} {{{{index .Config.Labels \"{LABEL}\"}}}}");
    let found = docker(&["image", "inspect", "--format", &format, IMAGE]).await.stdout;
    let old = found.trim().split_once(' ');
    if old.is_some_and(|(_, made_from)| made_from == inputs) {
        return;
    }

    let context = tempfile::Builder::new().prefix("e2e-app-").tempdir().unwrap();
    fs::write(context.path().join("Dockerfile"), DOCKERFILE).unwrap();
    let root = context.path().join("root");
    for (file, inside) in &files {
        let to = root.join(inside);
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(file, to).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    }
    fs::create_dir_all(root.join("bin")).unwrap();
    symlink("/e2e-app", root.join("bin/sh")).unwrap();
    let label = format!("{LABEL}={inputs}");
    docker_ok(&["build", "--quiet", "--tag", IMAGE, "--label", &label, &context.path().display().to_string()]).await;
    if let Some((id, _)) = old {
        // A container of another test process may still have it.
        docker(&["image", "rm", id]).await;
    }
}

/// What a program is linked with, the loader included: the absolute paths that ldd(1) gives.
async fn libraries(program: &Path) -> Vec<PathBuf> {
    let listed = run(&find_program("ldd", "libc-bin"), &[&program.display().to_string()], &[], secs(20)).await;
    assert_eq!(listed.code, Some(0), "ldd {}: {}", program.display(), listed.stderr);
    listed.stdout.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from).collect()
}
