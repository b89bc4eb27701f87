//! The edge to the template files: reads them, and tells when they changed. It decides nothing.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use observe::follow::{Follower, directory};
use tokio::sync::{Notify, mpsc};

use crate::render::{TemplateError, Templates};

/// The largest template that is read, in bytes.
const SIZE_LIMIT: u64 = 1024 * 1024;

/// Reads and parses the template and its partials: all `*.tera` files of its directory.
pub fn load(main: &Path) -> Result<Templates, TemplateError> {
    let Sources { main, texts } = sources(main)?;
    Templates::parse(&main, &texts)
}

/// The texts of a template and its partials, by their names.
#[derive(Debug, Clone, PartialEq)]
struct Sources {
    /// The template's name.
    main: String,
    texts: BTreeMap<String, String>,
}

fn sources(main: &Path) -> Result<Sources, TemplateError> {
    let unreadable = |path: &Path, error: &std::io::Error| {
        TemplateError::new(format!("template {} cannot be read: {error}; see --template", path.display()))
    };
    let name = main
        .file_name()
        .and_then(OsStr::to_str)
        .ok_or_else(|| TemplateError::new(format!("template {} is no file name; see --template", main.display())))?;
    let mut texts = BTreeMap::new();
    texts.insert(name.to_owned(), read(main).map_err(|error| unreadable(main, &error))?);
    let directory = directory(main);
    let files = std::fs::read_dir(&directory).map_err(|error| unreadable(&directory, &error))?;
    for file in files.filter_map(Result::ok) {
        let path = file.path();
        let Some(name) = path.file_name().and_then(OsStr::to_str).map(str::to_owned) else { continue };
        let is_partial = path.extension() == Some(OsStr::new("tera")) && !name.starts_with('.');
        if is_partial && !texts.contains_key(&name) {
            texts.insert(name, read(&path).map_err(|error| unreadable(&path, &error))?);
        }
    }
    Ok(Sources { main: name.to_owned(), texts })
}

fn read(path: &Path) -> std::io::Result<String> {
    observe::file::read(path, SIZE_LIMIT)
}

/// Follows the template's directory: sends what [`load`] gives whenever that differs from what was sent before,
/// beginning with the first, and when it is told to do so again. Ends when nobody listens any more.
pub async fn follow(main: PathBuf, again: Arc<Notify>, loaded: mpsc::Sender<Result<Templates, TemplateError>>) {
    let mut follower = Follower::new(&main);
    let mut last = None;
    loop {
        let now = sources(&main);
        if last.as_ref() != Some(&now) {
            let templates = now.as_ref().map_err(Clone::clone).and_then(|now| Templates::parse(&now.main, &now.texts));
            if loaded.send(templates).await.is_err() {
                return;
            }
            last = Some(now);
        }
        tokio::select! {
            () = follower.next() => {}
            () = again.notified() => last = None,
            () = loaded.closed() => return,
        }
    }
}
