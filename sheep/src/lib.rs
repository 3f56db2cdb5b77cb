//! The sheepdog storage daemon.

pub(crate) mod admin;
pub mod cli;
pub mod cluster;
pub mod config;
pub(crate) mod gateway;
pub mod nbd;
pub mod peer;
pub mod placement;
pub(crate) mod replica;
pub mod store;
pub(crate) mod vdi;
