//! The error numbers of the protocol: the only ones that may cross the socket.

use super::export::IoError;

/// What a reply says went wrong. The protocol fixes the values; they are Linux's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Errno {
    /// Not permitted.
    Perm = 1,
    /// Input/output error.
    Io = 5,
    /// Invalid argument.
    Inval = 22,
    /// No space left, which includes writing beyond the end.
    NoSpc = 28,
    /// Not supported: a fast zero that would be slow.
    NotSup = 95,
    /// The server is stopping.
    Shutdown = 108,
}

impl Errno {
    /// As it goes on the wire.
    pub fn number(self) -> u32 {
        self as u32
    }
}

impl From<IoError> for Errno {
    fn from(error: IoError) -> Self {
        match error {
            IoError::Io => Self::Io,
            IoError::NoSpace => Self::NoSpc,
            IoError::ReadOnly => Self::Perm,
            // It may not write any more; nothing is wrong with the storage, so not EIO.
            IoError::Fenced => Self::Perm,
            IoError::Shutdown => Self::Shutdown,
            IoError::Unsupported => Self::NotSup,
            IoError::Invalid => Self::Inval,
        }
    }
}
