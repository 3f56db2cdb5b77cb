//! How an operation on the store can fail.

use std::io;
use std::path::{Path, PathBuf};

use wire::checksum::ChecksumMismatch;

use super::key::ObjectKey;

/// Which part of an object's file is damaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Part {
    /// The fixed header: nothing of the object can be used.
    #[error("its header")]
    Header,
    /// The version record; [`set_version`](super::LocalStore::set_version) or a write mends it.
    #[error("its version")]
    Version,
    /// A block or its entry in the table; [`patch`](super::LocalStore::patch) mends it.
    #[error("block {0}")]
    Block(u32),
}

/// Why an operation on the store failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The object is not on this node.
    #[error("object {0} is not here")]
    NotFound(ObjectKey),
    /// What is on disk is not what was written; it is never served.
    #[error("object {key}: {part} is damaged")]
    Damaged {
        /// The object.
        key: ObjectKey,
        /// What of it.
        part: Part,
    },
    /// The payload of a write does not match its checksums; nothing was written.
    #[error("object {key}: {source}")]
    Payload {
        /// The object.
        key: ObjectKey,
        /// What does not match.
        source: ChecksumMismatch,
    },
    /// The request does not fit the object; nothing was written.
    #[error("object {key}: {reason}")]
    Invalid {
        /// The object.
        key: ObjectKey,
        /// What does not fit.
        reason: String,
    },
    /// The disk is full.
    #[error("{path}: no space left", path = path.display())]
    NoSpace {
        /// What was being written.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The disk failed to read or write.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// What was being read or written.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A sync failed earlier: what is durable is unknown, and syncing again would not tell.
    #[error("the store no longer works since a sync failed: {0}")]
    Poisoned(String),
    /// A directory that this version cannot use.
    #[error("{path}: {problem}; {way_out}", path = path.display())]
    Format {
        /// What is in the way.
        path: PathBuf,
        /// Why it cannot be used.
        problem: String,
        /// What an operator can do.
        way_out: &'static str,
    },
    /// Another process has the directory.
    #[error("{path}: in use by {holder}", path = path.display())]
    Locked {
        /// The lock file.
        path: PathBuf,
        /// Who holds it, as far as known.
        holder: String,
    },
}

impl Error {
    /// An I/O error at `path`, with a full disk told from the rest.
    pub(super) fn io(path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::NoSpace { path, source },
            _ => Self::Io { path, source },
        }
    }

    /// A block could not be read; a file that ends before it is damaged, and nothing is wrong with the disk.
    pub(super) fn reading(key: ObjectKey, index: u32, path: &Path, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::UnexpectedEof => Self::block(key, index),
            _ => Self::io(path, source),
        }
    }

    pub(super) fn block(key: ObjectKey, index: u32) -> Self {
        Self::Damaged { key, part: Part::Block(index) }
    }
}

/// A second instance of an error that several waiters get.
pub(super) fn same(error: &io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(code) => io::Error::from_raw_os_error(code),
        None => io::Error::new(error.kind(), error.to_string()),
    }
}
