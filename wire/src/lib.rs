//! Types and protocols that cross a sheepdog socket.
//!
//! | module | holds |
//! |---|---|
//! | [`address`] | where a sheep listens |
//! | [`admin`] | the admin API: generated types, errors that carry their way out |
//! | [`checksum`] | CRC32C per 4 KiB block, as carried by payloads and kept on disk |
//! | [`client`] | the admin API's client: deadlines, retries on another sheep |
//! | [`frame`] | what sheep send each other: header, message, payload |
//! | [`hello`] | how a connection between sheep begins |
//! | [`id`] | identifiers and their bit layouts |
//! | [`mesh`] | introductions between sheep that know each other's admin address |
//! | [`name`] | VDI names and export names: what is allowed in them |
//! | [`peer`] | operations between sheep and their messages |
//! | [`policy`] | how many copies an object has |
//! | [`size`] | sizes as people write them |

pub mod address;
pub mod admin;
pub mod checksum;
pub mod client;
pub mod frame;
#[cfg(test)]
mod golden;
pub mod hello;
pub mod id;
pub mod mesh;
pub mod name;
pub mod peer;
pub mod policy;
pub mod size;
