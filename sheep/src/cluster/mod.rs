//! The cluster: what is ordered by the log, what it adds up to, and who is alive.

pub mod entry;
pub mod slots;
pub mod state;
