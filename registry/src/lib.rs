//! The contract in etcd: what a key and a value may be, and the store that holds them.
//!
//! `key`, `record`, `settings` and `acknowledgement` are pure: text from etcd becomes a typed value there or is refused with
//! a reason.
//! `store` talks to etcd, `watch` follows it. Nothing here knows Docker or HAProxy.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod acknowledgement;
#[cfg(feature = "fuzz")]
pub mod fuzz;
pub mod key;
pub mod record;
pub mod settings;
pub mod store;
pub mod watch;

pub use acknowledgement::{Acknowledgement, DiscovererId};
pub use key::{AddressError, InstanceAddress, InstanceKey, KeyError, NameError, Prefix, ServiceName};
pub use record::{Record, RecordError, Status};
pub use store::{
    Api, ApiChoice, Cause, Changes, Deleted, EndpointError, EndpointList, Entry, Event, Kept, Lease, Listing,
    Ownership, Password, Poll, Position, Reason, Secret, Security, SecurityError, Store, StoreError, StoreKind,
    StoreOptions, Trouble, Unanswered, parse_endpoints,
};
pub use watch::{Sign, Update, watch, watch_since};
