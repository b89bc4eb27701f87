//! The outside of the HTTP server at the admin address: where it listens, who may ask, and what no client can do to it.
//! What it answers is the router's of who serves it.

mod access;
mod address;
mod serve;
mod stall;

pub use access::{Access, Token, TokenError};
pub use address::{Address, AddressError, BindError, bind};
pub use serve::Listener;
