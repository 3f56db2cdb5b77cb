//! What the NBD server asks of the rest of sheep.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use wire::name::{ExportName, NameError};

/// What the server serves. Implemented by the gateway.
#[async_trait]
pub trait Exports: Send + Sync + 'static {
    /// The names a client may ask for.
    async fn list(&self) -> Vec<String>;

    /// What an export looks like. Claims nothing: clients ask this of exports they never open.
    async fn describe(&self, name: &ExportName) -> Result<ExportInfo, OpenError>;

    /// Opens an export for one connection.
    ///
    /// Returns only when no request of a connection this one replaces (same attach client, lower generation)
    /// can still act: the client resends those requests as soon as the handshake completes. The handshake's
    /// deadline does not run meanwhile. The server may drop this future when it stops, which must leave
    /// nothing claimed.
    async fn open(&self, name: &ExportName, client: ClientInfo) -> Result<Arc<dyn Export>, OpenError>;
}

/// What a client learns about an export.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportInfo {
    /// The canonical name.
    pub name: String,
    /// One line for people; may be empty.
    pub description: String,
    /// In bytes.
    pub size: u64,
    /// Whether writes are refused with EPERM.
    pub read_only: bool,
}

/// Who opens an export.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientInfo {
    /// `127.0.0.1:4444`, or `unix`.
    pub peer: String,
}

/// Why an export cannot be opened. The text reaches the client.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// There is no such VDI.
    #[error("there is no VDI {0:?}")]
    NotFound(String),
    /// The attach generation in the name is not the newest of its client.
    #[error("{client:?} has attached with generation {newest}, so generation {generation} is fenced")]
    Fenced {
        /// Who attaches.
        client: String,
        /// The generation asked for.
        generation: u64,
        /// The newest generation known.
        newest: u64,
    },
    /// The name is not an export name.
    #[error(transparent)]
    Invalid(#[from] NameError),
    /// It exists, but cannot be served now.
    #[error("{0}")]
    Unavailable(String),
    /// This sheep is stopping.
    #[error("this sheep is stopping")]
    ShuttingDown,
}

/// A piece of what a read returns. The pieces are consecutive and cover the range exactly.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Segment {
    /// These bytes.
    Data(Bytes),
    /// That many zeros, from a range that takes no space.
    Hole(u32),
}

impl Segment {
    /// How many bytes of the range it covers.
    pub fn len(&self) -> u64 {
        match self {
            Self::Data(data) => data.len() as u64,
            Self::Hole(len) => u64::from(*len),
        }
    }

    /// Whether it covers nothing.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A run of bytes that are all allocated, or all not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockExtent {
    /// In bytes.
    pub len: u64,
    /// Takes no space and reads as zeros.
    pub hole: bool,
}

/// How a write is done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WriteFlags {
    /// Durable before it is acknowledged.
    pub fua: bool,
}

/// How a range is zeroed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ZeroFlags {
    /// Durable before it is acknowledged.
    pub fua: bool,
    /// Whether the range may become a hole (the client did not say NO_HOLE).
    pub may_punch: bool,
    /// Fail with [`IoError::Unsupported`], having changed nothing, unless this is faster than writing the
    /// zeros: the client would rather do something else than wait.
    pub fast: bool,
}

/// Why a request failed. [`errno`](super::errno) says what the client sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum IoError {
    /// The storage failed.
    #[error("input/output error")]
    Io,
    /// No space left.
    #[error("no space left")]
    NoSpace,
    /// The export is read-only.
    #[error("the export is read-only")]
    ReadOnly,
    /// A newer attachment has taken over.
    #[error("fenced by a newer attachment")]
    Fenced,
    /// This sheep is stopping.
    #[error("this sheep is stopping")]
    Shutdown,
    /// Cannot be done in the way the flags ask.
    #[error("not supported")]
    Unsupported,
    /// The request makes no sense to the export.
    #[error("invalid request")]
    Invalid,
}

/// One VDI, open for one connection.
///
/// Every range is inside the size that [`Export::info`] gave when the connection was made, and not empty.
/// Requests run concurrently, in any order.
#[async_trait]
pub trait Export: Send + Sync + 'static {
    /// As it was when opened.
    fn info(&self) -> ExportInfo;

    /// Reads a range; at most [`PAYLOAD_LEN_MAX`](super::server::PAYLOAD_LEN_MAX) bytes.
    async fn read(&self, offset: u64, len: u32) -> Result<Vec<Segment>, IoError>;

    /// Writes; at most [`PAYLOAD_LEN_MAX`](super::server::PAYLOAD_LEN_MAX) bytes.
    async fn write(&self, offset: u64, data: Bytes, flags: WriteFlags) -> Result<(), IoError>;

    /// Makes every write acknowledged so far durable, whichever connection wrote it: multi-conn is
    /// advertised.
    async fn flush(&self) -> Result<(), IoError>;

    /// The client no longer needs what is in the range.
    async fn trim(&self, offset: u64, len: u64, fua: bool) -> Result<(), IoError>;

    /// Makes the range read as zeros.
    async fn write_zeroes(&self, offset: u64, len: u64, flags: ZeroFlags) -> Result<(), IoError>;

    /// The client will read the range soon.
    async fn cache(&self, offset: u64, len: u64) -> Result<(), IoError>;

    /// What takes space in the range, from its start. May stop early, but says something about at least one
    /// byte; what goes beyond the range is ignored, and so is what comes after
    /// [`EXTENTS_MAX`](super::server::EXTENTS_MAX) extents.
    async fn block_status(&self, offset: u64, len: u64) -> Result<Vec<BlockExtent>, IoError>;

    /// Called once, when the connection has ended and its last request is done.
    async fn close(&self);
}
