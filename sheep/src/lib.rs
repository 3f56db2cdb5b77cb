//! The sheepdog storage daemon.

pub(crate) mod admin;
pub mod cli;
pub mod cluster;
pub mod config;
#[cfg(any(test, feature = "fuzz"))]
#[doc(hidden)]
pub mod fuzz;
pub(crate) mod gateway;
pub(crate) mod identity;
pub(crate) mod introduce;
pub(crate) mod machine;
pub(crate) mod membership;
#[cfg(test)]
mod model;
pub(crate) mod mutant;
pub mod nbd;
pub mod node;
pub mod peer;
pub mod placement;
pub(crate) mod recovery;
pub(crate) mod replica;
pub(crate) mod service;
#[cfg(test)]
mod sim;
pub mod store;
pub mod telemetry;
pub(crate) mod vdi;

/// What the benches reach of modules that are nobody else's business.
#[doc(hidden)]
pub mod bench {
    pub use crate::vdi::span::spans;
}
