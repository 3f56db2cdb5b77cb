//! The sheepdog storage daemon.

pub mod cluster;
pub mod nbd;
pub mod peer;
pub mod placement;
pub mod store;
