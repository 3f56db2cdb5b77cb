//! A small model, explored in full: takeover, change of configuration and re-admission of three nodes, two of which may own
//! the one VDI, with one object of two blocks and up to three writes.
//!
//! It decides nothing that the product decides: it calls the same functions (`cluster/state`, `cluster/lease`,
//! `replica/right`, `replica/fill`, `vdi/answers`, `vdi/settle`). What it is and what it leaves out is in
//! `docs/simulation.md`.
//!
//! | file | holds |
//! |---|---|
//! | `world` | a state |
//! | `log` | the log: histories of entries and the product's states they lead to |
//! | `step` | the steps, and how they read |
//! | `small` | every step from a state, and what is wrong with one |
//! | `failures` | what fails, and how the log hears of it |
//! | `owning` | an owner: seal, settle, write, answer, flush |
//! | `copying` | a copy: take writes, catch up |
//! | `promise` | what the client is owed |
//! | `explore` | visits every state, the nearest first |

mod copying;
mod explore;
mod failures;
mod log;
mod owning;
mod promise;
mod small;
mod step;
mod tests;
mod world;
