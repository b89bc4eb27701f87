//! A cluster of three etcds under traffic and churn, while something happens to one of them, to all, or to a program beside
//! them. Afterwards: no request has failed, no container that runs was left out, all is right, and nobody ran hot.

mod members;

use e2e::cluster::Cluster;
use e2e::secs;
use e2e::site::{Plan, Site};

/// All is right so long after the end of a trouble, on a machine that is busy with other tests.
const SETTLED: std::time::Duration = secs(20);
