//! The files that the page needs, within the program.

/// A file.
#[derive(Debug)]
pub(super) struct Asset {
    /// What is in it.
    pub(super) text: &'static str,
    /// Its media type.
    pub(super) kind: &'static str,
    hash: u64,
}

pub(super) static SCRIPT: Asset = Asset::new(include_str!("files/app.js"), "text/javascript; charset=utf-8");
pub(super) static STYLE: Asset = Asset::new(include_str!("files/style.css"), "text/css; charset=utf-8");
pub(super) const OPENAPI: &str = include_str!("files/openapi.json");

impl Asset {
    const fn new(text: &'static str, kind: &'static str) -> Self {
        Self { text, kind, hash: hash(text.as_bytes()) }
    }

    /// Another text has another one.
    pub(super) fn version(&self) -> String {
        format!("{:016x}", self.hash)
    }

    /// Its entity tag (RFC 9110, section 8.8.3).
    pub(super) fn tag(&self) -> String {
        format!("\"{:016x}\"", self.hash)
    }
}

/// FNV-1a, 64 bits: it only tells one build's file from another's.
const fn hash(bytes: &[u8]) -> u64 {
    let (mut hash, mut at) = (0xcbf2_9ce4_8422_2325_u64, 0);
    while at < bytes.len() {
        hash = (hash ^ bytes[at] as u64).wrapping_mul(0x0100_0000_01b3);
        at += 1;
    }
    hash
}
