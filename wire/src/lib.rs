//! Types and protocols that cross a sheepdog socket.
//!
//! | module | holds |
//! |---|---|
//! | [`id`] | identifiers and their bit layouts |
//! | [`name`] | VDI names and export names: what is allowed in them |
//! | [`policy`] | how many copies an object has |
//! | [`admin`] | admin API: messages, clients, server traits, errors |
//! | [`checksum`] | CRC32C per 4 KiB block, as carried by payloads and kept on disk |

pub mod admin;
pub mod checksum;
pub mod id;
pub mod name;
pub mod policy;
