//! A cluster of three etcds under traffic and churn, while something happens to one of them, to all, or to a program beside
//! them. Afterwards: no request has failed, no container that runs was left out, all is right, and nobody ran hot.

/// Makes tests of these cases, with the programs speaking this API.
macro_rules! on {
    ($($api:ident in $module:ident: $($case:ident)*;)*) => {$(
        mod $module {
            $(#[tokio::test]
            async fn $case() {
                super::$case(super::Api::$api).await;
            })*
        }
    )*};
}

/// The same, for `./test --full`.
macro_rules! long_on {
    ($($api:ident in $module:ident: $($case:ident)*;)*) => {$(
        mod $module {
            $(#[tokio::test]
            #[ignore = "long: run by ./test --full"]
            async fn $case() {
                super::$case(super::Api::$api).await;
            })*
        }
    )*};
}

mod all;
mod members;
mod programs;
mod soak;

use std::time::Duration;

use e2e::cluster::{Api, Cluster, MEMBERS};
use e2e::secs;
use e2e::site::{Plan, Site};

/// All is right so long after the end of a trouble, on a machine that is busy with other tests.
const SETTLED: Duration = secs(20);
/// A member that is of no use is left within this time: it is noticed 8 s after the last answer at the latest, on a machine
/// that is not busy.
const LEFT: Duration = secs(20);
