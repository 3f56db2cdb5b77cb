//! The NBD frontend: serves VDIs to qemu, the Linux kernel, libnbd and whoever else speaks the protocol.
//!
//! Called by the composition root; calls the [`Exports`] it is given, never the gateway by name. A
//! connection in path order:
//!
//! | module | step |
//! |---|---|
//! | [`server`] | accept, limits, stop |
//! | `listen` | binding TCP and unix sockets |
//! | `handshake` | fixed newstyle negotiation, up to an open [`Export`] |
//! | `option` | the bytes of a negotiation option |
//! | `transmission` | one task per connection: reads, starts, finishes and answers requests |
//! | `input` | the read buffer and write payloads |
//! | `request` | the bytes of a request; `validate` decides its errno before anything acts |
//! | `budget` | how much memory requests may hold, per connection and in all |
//! | `output` | replies queued for one vectored write |
//! | `reply` | the bytes of a reply |
//! | [`errno`] | from [`IoError`] to what the client sees |
//! | [`memory`] | exports in memory, to test and measure the server by itself |
//!
//! Invariants: an [`Export`] only sees ranges inside its size; [`Export::close`] comes after the last of
//! the connection's requests, also when the socket died first; memory is bounded by [`Config`], not by what
//! clients do. A client that is slow is slowed down, not dropped: a paused guest or a frozen kernel client is
//! legitimate. It is dropped only when others wait for the memory it holds (see `transmission`).

mod budget;
pub mod errno;
mod export;
#[cfg(any(test, feature = "fuzz"))]
pub(crate) mod fuzz;
mod handshake;
mod input;
mod listen;
pub mod memory;
mod option;
mod output;
mod reply;
mod request;
pub mod server;
mod transmission;

pub use export::{
    BlockExtent, ClientInfo, Export, ExportInfo, Exports, IoError, OpenError, Segment, WriteFlags, ZeroFlags,
};
pub use server::{Config, Server, StartError};
