//! The sheepdog storage daemon.

pub mod cli;
pub mod cluster;
pub mod config;
pub mod nbd;
pub mod peer;
pub mod placement;
pub mod store;
