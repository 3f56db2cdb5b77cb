//! cluster

pub mod clock;
pub mod detector;
pub mod lease;
pub mod log;
