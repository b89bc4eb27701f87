//! A cluster of three etcds under traffic and churn, while something happens to one of them, to all, or to a program beside
//! them. Afterwards: no request has failed, no container that runs was left out, all is right, and nobody ran hot.

mod all;
mod members;
mod programs;

use std::time::Duration;

use e2e::cluster::{Cluster, MEMBERS};
use e2e::secs;
use e2e::site::{Plan, Site};

/// All is right so long after the end of a trouble, on a machine that is busy with other tests.
const SETTLED: Duration = secs(20);
/// A member that is of no use is left within this time: it is noticed 8 s after the last answer at the latest, on a machine
/// that is not busy.
const LEFT: Duration = secs(20);
