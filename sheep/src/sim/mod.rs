//! Whole rings in one thread, under seeded faults. See `docs/simulation.md`.
//!
//! | file | holds |
//! |---|---|
//! | `seeds` | many seeds, each in a process of its own; the tests |
//! | `ring` | one seed from founding to the last look |
//! | `fault`, `directories` | what goes wrong |
//! | `operator` | who removes and retires nodes |
//! | `disks` | the VDIs, and who creates and deletes them |
//! | `client`, `oracle` | who uses them, and what they were promised |
//! | `last_look` | what has to hold once all is well |
//! | `world`, `story` | machines and time; what is told of them |
//! | `process` | one sheep, on a runtime of its own |
//! | `net` | the network; disks are [`crate::store::SimFs`] |
//! | `chance` | chance that nobody asks for by name |

mod chance;
mod client;
mod directories;
mod disks;
mod fault;
mod last_look;
mod net;
mod operator;
mod oracle;
mod process;
mod ring;
mod seeds;
mod story;
mod world;
