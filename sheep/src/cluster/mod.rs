//! The cluster: what is ordered by the log, what it adds up to, and who is alive.
//!
//! | file | holds |
//! |---|---|
//! | `entry`, `state`, `slots` | what is ordered and what it adds up to; pure |
//! | `log` | the ordered, durable log itself |
//! | `lease`, `detector` | how long a session counts as alive, and who is taken for dead; pure |
//! | `complaints` | who is taken out because others do not reach it; pure |
//! | `clock` | the clock that all of it goes by |
//! | `view` | the newest state, shared |
//! | `session` | this node's lease and membership: joins, renews, leaves |
//! | `leader` | what the log's leader does: grants, evictions, voters |

pub mod clock;
pub mod complaints;
pub mod detector;
pub mod entry;
#[cfg(any(test, feature = "fuzz"))]
pub(crate) mod fuzz;
pub(crate) mod leader;
pub mod lease;
pub mod log;
pub(crate) mod session;
pub mod slots;
pub mod state;
pub(crate) mod view;
