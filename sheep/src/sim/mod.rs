//! Whole rings in one thread, under seeded faults. See `docs/simulation.md`.
//!
//! | file | holds |
//! |---|---|
//! | `seeds` | many seeds, each in a process of its own; the tests |
//! | `ring` | one seed from founding to the last look |
//! | `fault` | what goes wrong |
//! | `operator` | who removes and retires nodes |
//! | `client`, `oracle` | who uses the ring, and what they were promised |
//! | `world` | machines and time |
//! | `process` | one sheep, on a runtime of its own |
//! | `net` | the network; disks are [`crate::store::SimFs`] |
//! | `chance` | chance that nobody asks for by name |

mod chance;
mod client;
mod fault;
mod net;
mod operator;
mod oracle;
mod process;
mod ring;
mod seeds;
mod world;
