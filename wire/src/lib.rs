//! Types and protocols that cross a sheepdog socket.
//!
//! | module | holds |
//! |---|---|
//! | [`id`] | identifiers and their bit layouts |
//! | [`name`] | VDI names and export names: what is allowed in them |
//! | [`policy`] | how many copies an object has |
//! | [`address`] | where a sheep listens |
//! | [`size`] | sizes as people write them, limits of a VDI's size |
//! | [`admin`] | admin API: messages, clients, server traits, errors |
//! | [`client`] | `AdminClient`: deadlines, and another sheep when one is gone |
//! | [`checksum`] | CRC32C per 4 KiB block, as carried by payloads and kept on disk |

pub mod address;
pub mod admin;
pub mod checksum;
pub mod client;
pub mod id;
pub mod name;
pub mod policy;
pub mod size;
