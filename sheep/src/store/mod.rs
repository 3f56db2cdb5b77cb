//! One node's objects on one disk: [`LocalStore`].
//!
//! Called by the peer server and by recovery, on threads that may block. Calls the disk through the seam
//! in [`io`] and nothing else. In a directory:
//!
//! ```text
//! objects/format                                      what this is, and its version
//! objects/r<copies>/<slot, 5 digits>/<oid>.<birth>    one object; its bytes are in `format.rs`
//! objects/tmp/                                        objects being created
//! intents.<n>   seals.<n>                             two small logs, in `intent.rs` and `seal.rs`
//! requests                                            what clients may send again, in `requests.rs`
//! ```
//!
//! What it keeps, whatever crashes, cuts of power and failures of the disk do:
//!
//! 1. A block is served only if it matches its checksum; what does not is [`Error::Damaged`], never zeros.
//! 2. Before data is changed the region it lies in is durably marked (an *intent*). So after a crash what
//!    is not marked is as it was, and a mismatch in a marked region may be a torn write: old or new
//!    in each sector. Such objects are the [`suspects`](LocalStore::suspects) until they are settled.
//! 3. What was flushed is durable: data, table, version and the names that lead to them.
//! 4. A sync that failed ends the store's life ([`Error::Poisoned`]): the kernel may have dropped the data
//!    while saying so only once. A note keeps later processes of the boot from believing it (`sync_note.rs`).
//!
//! In the order of the path: `write.rs` and `read.rs`, under them `cache.rs` (open objects), `format.rs` (bytes),
//! `intent.rs` over `log.rs`, `flush.rs` over `group.rs`; beside them `create.rs` (and remove), `repair.rs`
//! (recovery, settling and scrub), `on_disk.rs` (what was done to files in use), `list.rs` and `seal.rs`.

mod cache;
mod create;
mod error;
mod flush;
mod format;
#[cfg(any(test, feature = "fuzz"))]
pub(crate) mod fuzz;
mod group;
mod intent;
pub mod io;
mod key;
mod list;
pub mod lockfile;
mod log;
mod on_disk;
mod open;
mod read;
mod real;
mod repair;
mod requests;
mod seal;
mod sim;
mod sync_note;
#[cfg(test)]
mod tests;
mod write;

pub use create::Created;
pub use error::{Error, Part};
pub use format::{BlockEntry, OBJECT_SIZE_MAX};
pub use io::{File, FileSystem, Space};
pub use key::ObjectKey;
pub use list::ObjectStat;
pub use on_disk::{Astray, OnDisk};
pub use open::{LocalStore, Options};
pub use read::{ReadOut, Segment};
pub use real::RealFs;
pub use repair::BlockCopy;
pub(crate) use requests::Place;
pub use sim::{SimFs, Verb};
pub(crate) use sync_note::NotedFs;
pub use write::{Write, WriteKind};
