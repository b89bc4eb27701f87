//! The ways to what is private here, for [`crate::fuzz`].

pub(crate) use super::endpoints::lines_of as lines;
pub(crate) use super::v2::fuzz::read as v2_reply;
pub(crate) use super::v3::fuzz::{read as v3_reply, read_message as v3_message};
