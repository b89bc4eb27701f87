//! End-to-end tests: the built programs against the real etcd, HAProxy and Docker. One binary, a module for each subject.
#![allow(clippy::unwrap_used)]

mod agent_checks;
mod agent_commands;
mod agent_docker;
mod agent_harness;
mod agent_keys;
mod agent_labels;
mod agent_life;
mod agent_metrics;
mod agent_way;
mod browser;
mod cluster;
mod commands;
mod demo;
mod docs;
mod drain;
mod etcd_secure;
mod etcd_trouble;
mod faults;
mod harness;
mod hostile;
mod listen;
mod outage;
mod output;
mod metrics;
mod own_templates;
mod reload;
mod reloads;
mod runtime;
mod serving;
mod sidekick;
mod supervise;
mod templates;
mod v3;
mod vagrant;
mod waiting;
