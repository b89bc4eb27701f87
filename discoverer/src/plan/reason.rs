//! Why a difference needs a reload. Pure.
//!
//! A reason names the section, the line's number and its keyword, never a line's values: a configuration holds
//! passwords, and reasons are logged.

use super::{ServerId, Version};

/// Why the runtime API does not reach what is wanted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// HAProxy's version is not known, or older than what this knows.
    #[error("{}", match .0 {
        Some(version) => format!("HAProxy {version} is older than 2.6, the first whose servers change at run time here"),
        None => "HAProxy's version is not known".to_owned(),
    })]
    Version(Option<Version>),
    /// A section that is not in the running configuration.
    #[error("{section} is new")]
    NewSection {
        /// The section's keyword and name.
        section: String,
    },
    /// A section that is not in the wanted configuration.
    #[error("{section} is gone")]
    GoneSection {
        /// The section's keyword and name.
        section: String,
    },
    /// The sections stand in another order, or the head of one is another.
    #[error("{section} does not stand where it stood, or its first line differs")]
    Sections {
        /// The section's keyword and name.
        section: String,
    },
    /// A line that is no server's.
    #[error("{section}: {keyword:?} differs (line {line})")]
    Setting {
        /// The section's keyword and name.
        section: String,
        /// The line's first word.
        keyword: String,
        /// The line's number in the wanted text, or in the running one where it is gone.
        line: usize,
    },
    /// What holds in the section cannot be told from the text.
    #[error("{section} is in a conditional block, or has quotes or variables that only HAProxy resolves")]
    Unclear {
        /// The section's keyword and name.
        section: String,
    },
    /// A setting of the backend with which HAProxy does not change servers at run time.
    #[error("backend {backend} has \"{setting}\", with which servers do not change at run time")]
    Proxy {
        /// The backend.
        backend: String,
        /// The setting.
        setting: String,
    },
    /// The backend is named by more than one section, or by none.
    #[error("there is not exactly one section with the servers of {backend:?}")]
    Backend {
        /// The backend.
        backend: String,
    },
    /// Something about one server.
    #[error("server {id}: {why}")]
    Server {
        /// The server.
        id: ServerId,
        /// What.
        why: String,
    },
    /// What was given as a server's line is not one.
    #[error("backend {backend}: not one server line, or `default-server` lines behind the servers")]
    NotALine {
        /// The backend.
        backend: String,
    },
}

impl Reason {
    /// All kinds.
    pub const KINDS: [&'static str; 10] = [
        "version",
        "new_section",
        "gone_section",
        "sections",
        "setting",
        "unclear",
        "backend_setting",
        "backend",
        "server",
        "not_a_line",
    ];

    /// Its kind, as metrics tell it.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Version(_) => "version",
            Self::NewSection { .. } => "new_section",
            Self::GoneSection { .. } => "gone_section",
            Self::Sections { .. } => "sections",
            Self::Setting { .. } => "setting",
            Self::Unclear { .. } => "unclear",
            Self::Proxy { .. } => "backend_setting",
            Self::Backend { .. } => "backend",
            Self::Server { .. } => "server",
            Self::NotALine { .. } => "not_a_line",
        }
    }
}
