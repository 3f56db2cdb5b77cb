//! What the whole-system tests share: rings of real processes, clients that know what they were promised.
//!
//! | file | what |
//! |---|---|
//! | [`cluster`] | a ring of sheep on loopback: start, kill, stop, wipe, ask |
//! | [`hosts`] | network namespaces for sheep, with ways between them that can be cut |
//! | [`process`] | one sheep's process, directory and logs |
//! | [`tool`] | other people's programs, and dog, with a time limit |
//! | [`wait`] | until something holds, or a deadline with the last state seen |
//! | [`client`] | a raw NBD client |
//! | [`oracle`] | what a client was promised, and whether it was kept |
//! | [`load`] | writers and readers through several gateways, recorded for the oracle |
//! | [`port`], [`turn`] | room on a small machine: ports, and how many rings at once |
//!
//! A test that fails prints the end of every sheep's log. `KEEP=1` leaves the directories.

pub mod client;
pub mod cluster;
pub mod hosts;
pub mod load;
pub mod oracle;
pub mod port;
pub mod process;
pub mod tool;
pub mod turn;
pub mod wait;
