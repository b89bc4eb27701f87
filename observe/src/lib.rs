//! What both daemons offer an operator: `admin` is the outside of the HTTP server at the admin address, `log` the log,
//! `metrics` the text that Prometheus reads, `escape` how text from elsewhere is shown, `config` where settings come from, `file` how files are
//! read, `follow` when they change, `arguments` keeps passwords out of `ps`, `answer` what a command answers, `systemd` what systemd is told. It knows nothing of services, containers, etcd or HAProxy: what is served
//! and measured comes from who uses it.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod admin;
pub mod answer;
pub mod arguments;
pub mod config;
pub mod escape;
pub mod file;
pub mod follow;
pub mod log;
pub mod metrics;

pub mod systemd;
