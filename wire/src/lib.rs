//! Types and protocols that cross a sheepdog socket.
//!
//! | module | holds |
//! |---|---|
//! | [`frame`] | the frame of peer connections |
//! | [`hello`] | how two sheep introduce themselves |
//! | [`id`] | identifiers and their bit layouts |
//! | [`name`] | VDI names and export names: what is allowed in them |
//! | [`policy`] | how many copies an object has |
//! | [`checksum`] | CRC32C per 4 KiB block, as carried by payloads and kept on disk |

pub mod checksum;
pub mod frame;
pub mod hello;
pub mod id;
pub mod name;
pub mod peer;
pub mod policy;
