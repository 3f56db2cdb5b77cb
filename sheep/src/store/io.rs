//! The file-system seam: every access of the store to its directory goes through [`FileSystem`].
//!
//! Called by everything in [`crate::store`]; implemented by [`RealFs`](super::RealFs) and, with faults and
//! power cuts, by [`SimFs`](super::SimFs). What the store may assume of either, and no more:
//!
//! - a write is durable once `sync_data` of its file has returned, a name once `sync_dir` of its directory has;
//! - before that a power cut keeps or loses each 512-byte sector and each name on its own.

use std::any::Any;
use std::io;
use std::path::Path;
use std::sync::Arc;

/// A name in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirEntry {
    /// The name, without the directory. Names that are not UTF-8 are shown with replacement characters.
    pub name: String,
    /// Whether it names a directory.
    pub is_dir: bool,
}

/// Bytes of a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Space {
    /// All there are.
    pub total: u64,
    /// Those an ordinary process may still take.
    pub free: u64,
    /// Those taken, by the store or anything else.
    pub used: u64,
}

/// A directory tree that can be made durable.
pub trait FileSystem: Send + Sync + 'static {
    /// Opens an existing file for reading and writing.
    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>>;
    /// Creates a file that must not exist.
    fn create(&self, path: &Path) -> io::Result<Arc<dyn File>>;
    /// Creates a directory whose parent exists; says whether it is new.
    fn create_dir(&self, path: &Path) -> io::Result<bool>;
    /// Renames a file, replacing what has the new name.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// The names in a directory, in no order.
    fn list(&self, dir: &Path) -> io::Result<Vec<DirEntry>>;
    /// Whether the path names anything.
    fn exists(&self, path: &Path) -> io::Result<bool>;
    /// Makes the names in a directory durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
    /// The space of the file system that holds `dir`.
    fn space(&self, dir: &Path) -> io::Result<Space>;
    /// Locks the file at `path`, creating it when missing, against every other holder until the guard is dropped.
    /// [`io::ErrorKind::WouldBlock`] when another has it.
    fn lock(&self, path: &Path) -> io::Result<LockGuard>;
}

/// Holds a lock taken with [`FileSystem::lock`].
pub type LockGuard = Box<dyn Any + Send + Sync>;

/// An open file.
pub trait File: Send + Sync {
    /// Which file of its file system it is, whatever it is called now: device and number.
    fn id(&self) -> io::Result<(u64, u64)>;
    /// Its length in bytes.
    fn size(&self) -> io::Result<u64>;
    /// Fills `buf` from `offset`; [`io::ErrorKind::UnexpectedEof`] when the file ends before.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;
    /// Fills `buf` from memory alone; [`io::ErrorKind::WouldBlock`] when a device would have to be read.
    fn try_read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;
    /// Writes all of `data` at `offset`.
    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()>;
    /// Sets the length; what is new reads as zeros.
    fn set_size(&self, size: u64) -> io::Result<()>;
    /// Frees a range, which then reads as zeros. [`io::ErrorKind::Unsupported`] where files have no holes.
    fn punch_hole(&self, offset: u64, len: u64) -> io::Result<()>;
    /// Makes the data, and the length, durable.
    fn sync_data(&self) -> io::Result<()>;
}
