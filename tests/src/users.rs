//! Users and roles of a real etcd, made by the very commands of docs/etcd.md.

use std::process::{Command, Output};

/// The passwords, as the guide has them.
pub const ROOT: &str = "ROOT-PASSWORD";
/// The registrar's.
pub const REGISTRAR: &str = "REGISTRAR-PASSWORD";
/// The discoverer's.
pub const DISCOVERER: &str = "DISCOVERER-PASSWORD";

const GUIDE: &str = include_str!("../../docs/etcd.md");

/// Makes the guide's users and roles for this API (`v2` or `v3`), and switches authentication on.
pub fn make(endpoint: &str, api: &str) {
    let begin = format!("<!-- roles {api} -->\n```sh\n");
    let commands = GUIDE.split_once(&begin).and_then(|(_, rest)| rest.split_once("```")).map(|(commands, _)| commands);
    run(endpoint, api, commands.unwrap_or_else(|| panic!("docs/etcd.md has no commands for {api}")));
}

/// Runs commands of etcdctl.
pub fn run(endpoint: &str, api: &str, commands: &str) {
    let output = shell(endpoint, api, commands);
    assert!(output.status.success(), "{commands}\n{}\n(etcdctl is Debian's package etcd-client)", said(&output));
}

/// What a command of etcdctl says, whether it succeeds or not.
pub fn output(endpoint: &str, api: &str, command: &str) -> String {
    said(&shell(endpoint, api, command))
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn shell(endpoint: &str, api: &str, commands: &str) -> Output {
    Command::new("sh")
        .args(["-ec", commands])
        .env("ETCDCTL_API", api.trim_start_matches('v'))
        .env("ETCDCTL_ENDPOINTS", endpoint)
        .output()
        .expect("running sh")
}
