//! Reads: nothing is served that does not match its checksum.

use std::io;
#[cfg(test)]
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use wire::checksum::{self, BLOCK_SIZE};
use wire::id::Version;

use super::cache::{Content, Open};
use super::error::{Error, Part};
use super::format::{self, BlockEntry};
use super::io::File;
use super::key::ObjectKey;
use super::open::LocalStore;
use super::write::blocks_of;
use crate::mutant::{Mutant, planted};

const BLOCK: u64 = BLOCK_SIZE as u64;

/// What a stretch of an object holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Segment {
    /// Bytes.
    Data {
        /// The bytes.
        data: Bytes,
        /// The CRC32C of each of their [pieces](wire::checksum::pieces).
        crcs: Vec<u32>,
    },
    /// So many zeros, which take no space.
    Hole(u64),
}

impl Segment {
    /// How many bytes it stands for.
    pub fn len(&self) -> u64 {
        match self {
            Self::Data { data, .. } => data.len() as u64,
            Self::Hole(len) => *len,
        }
    }

    /// Never so for a segment of a read.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The answer to a read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadOut {
    /// The whole range in order; holes and data take turns.
    pub segments: Vec<Segment>,
}

impl ReadOut {
    /// The bytes, holes filled with zeros.
    pub fn to_vec(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for segment in &self.segments {
            match segment {
                Segment::Data { data, .. } => bytes.extend_from_slice(data),
                Segment::Hole(len) => bytes.resize(bytes.len() + *len as usize, 0),
            }
        }
        bytes
    }
}

/// Why one try at reading has no answer.
pub(super) enum Miss {
    /// A block and its entry do not belong together: damage, or a write between the two looks.
    Mismatch(u32),
    Io(io::Error),
}

/// A look at part of an object's table, to read the data by without the object's lock.
pub(super) struct View {
    file: Arc<dyn File>,
    data_offset: u64,
    first: u32,
    entries: Vec<BlockEntry>,
}

impl View {
    pub(super) fn new(file: &Arc<dyn File>, content: &Content, first: u32, count: u32) -> Self {
        let entries = content.table[first as usize..(first + count) as usize].to_vec();
        Self { file: file.clone(), data_offset: format::data_offset(content.size), first, entries }
    }

    pub(super) fn entry(&self, index: u32) -> BlockEntry {
        self.entries[(index - self.first) as usize]
    }

    /// The blocks from `first` on that have data, in one read, verified. `nowait`: from memory or not at all.
    fn read_run(&self, first: u32, count: u32, nowait: bool) -> Result<Vec<u8>, Miss> {
        let mut bytes = vec![0; count as usize * BLOCK_SIZE];
        let at = self.data_offset + u64::from(first) * BLOCK;
        let read =
            if nowait { self.file.try_read_at(&mut bytes, at) } else { self.file.read_at(&mut bytes, at) };
        read.map_err(|error| match error.kind() {
            // The file is shorter than its header says.
            io::ErrorKind::UnexpectedEof => Miss::Mismatch(first),
            _ => Miss::Io(error),
        })?;
        for (index, block) in (first..).zip(bytes.chunks_exact(BLOCK_SIZE)) {
            if crc32c::crc32c(block) != self.entry(index).crc && !planted(Mutant::CrcUnchecked) {
                return Err(Miss::Mismatch(index));
            }
        }
        Ok(bytes)
    }

    /// One block, verified; `None` when it is absent.
    pub(super) fn read_block(&self, index: u32) -> Result<Option<Bytes>, Miss> {
        let entry = self.entry(index);
        if entry.is_present() {
            return self.read_run(index, 1, false).map(|bytes| Some(bytes.into()));
        }
        if entry.is_absent(index) { Ok(None) } else { Err(Miss::Mismatch(index)) }
    }

    fn read(&self, offset: u64, len: u64, nowait: bool) -> Result<ReadOut, Miss> {
        let mut segments = Vec::new();
        let mut index = self.first;
        for run in self.entries.chunk_by(|a, b| a.is_present() == b.is_present()) {
            let (first, count) = (index, run.len() as u32);
            index += count;
            let start = offset.max(u64::from(first) * BLOCK);
            let end = (offset + len).min(u64::from(index) * BLOCK);
            if run[0].is_present() {
                let bytes = Bytes::from(self.read_run(first, count, nowait)?);
                let skip = (start - u64::from(first) * BLOCK) as usize;
                let data = bytes.slice(skip..skip + (end - start) as usize);
                let crcs = piece_crcs(start, &data, run);
                segments.push(Segment::Data { data, crcs });
            } else {
                let bad = (first..).zip(run).find(|(index, entry)| !entry.is_absent(*index));
                if let Some((index, _)) = bad {
                    return Err(Miss::Mismatch(index));
                }
                segments.push(Segment::Hole(end - start));
            }
        }
        Ok(ReadOut { segments })
    }
}

/// The checksums of data just verified: those of whole blocks are known, only cut ones are computed.
fn piece_crcs(offset: u64, data: &[u8], entries: &[BlockEntry]) -> Vec<u32> {
    let mut from = 0;
    checksum::pieces(offset, data.len())
        .zip(entries)
        .map(|(len, entry)| {
            let piece = &data[from..from + len];
            from += len;
            let known = len == BLOCK_SIZE && !planted(Mutant::CrcUnchecked);
            if known { entry.crc } else { crc32c::crc32c(piece) }
        })
        .collect()
}

impl LocalStore {
    /// Whether the object is here, damaged or not.
    pub fn exists(&self, key: &ObjectKey) -> Result<bool, Error> {
        self.check_alive()?;
        let open = self.cache.peek(key);
        if open.is_some_and(|open| open.state.lock().content.is_some()) {
            return Ok(true);
        }
        let path = key.path(&self.objects);
        self.fs.exists(&path).map_err(|e| Error::io(&path, e))
    }

    /// The version of the last write applied.
    pub fn version(&self, key: &ObjectKey) -> Result<Version, Error> {
        self.with_content(key, |content| content.version)?
            .ok_or(Error::Damaged { key: *key, part: Part::Version })
    }

    /// The object's size in bytes.
    pub fn size(&self, key: &ObjectKey) -> Result<u32, Error> {
        self.with_content(key, |content| content.size)
    }

    /// What the table says of every block, damaged entries included.
    pub fn table(&self, key: &ObjectKey) -> Result<Vec<BlockEntry>, Error> {
        self.with_content(key, |content| content.table.clone())
    }

    /// Reads a range.
    pub fn read(&self, key: &ObjectKey, offset: u64, len: u32) -> Result<ReadOut, Error> {
        self.check_alive()?;
        let len = u64::from(len);
        let open = self.open_object(key)?;
        self.view_and(
            &open,
            |content| blocks_of(key, content.size, offset, len),
            |view| view.read(offset, len, false),
        )
    }

    /// Reads a range from memory; `None` when the disk would have to be asked, or a lock waited for.
    pub fn read_nowait(&self, key: &ObjectKey, offset: u64, len: u32) -> Option<Result<ReadOut, Error>> {
        if let Err(error) = self.check_alive() {
            return Some(Err(error));
        }
        let len = u64::from(len);
        let open = self.cache.peek(key)?;
        let view = {
            let state = open.state.try_lock()?;
            let (file, content) = (state.file.as_ref()?, state.content.as_ref()?);
            match blocks_of(key, content.size, offset, len) {
                Ok((first, count)) => View::new(file, content, first, count),
                Err(error) => return Some(Err(error)),
            }
        };
        // Whatever else goes wrong is better told by a read that may look twice.
        view.read(offset, len, true).ok().map(Ok)
    }

    /// The file of an object, and where in it a block lies.
    #[cfg(test)]
    pub(crate) fn place_of(&self, key: &ObjectKey, block: u32) -> Result<(PathBuf, u64), Error> {
        let size = self.size(key)?;
        Ok((key.path(&self.objects), format::data_offset(size) + u64::from(block) * BLOCK))
    }

    fn with_content<T>(&self, key: &ObjectKey, get: impl FnOnce(&Content) -> T) -> Result<T, Error> {
        self.check_alive()?;
        let open = self.open_object(key)?;
        let loaded = self.load(&open)?;
        Ok(get(loaded.content()))
    }

    /// Reads by a view of the blocks that `range` names: without the object's lock, and once more with it if a
    /// write came between looking at the table and at the data.
    pub(super) fn view_and<T>(
        &self,
        open: &Open,
        range: impl Fn(&Content) -> Result<(u32, u32), Error>,
        read: impl Fn(&View) -> Result<T, Miss>,
    ) -> Result<T, Error> {
        let look = |content: &Content, file: &Arc<dyn File>| {
            let (first, count) = range(content)?;
            Ok(View::new(file, content, first, count))
        };
        let loaded = self.load(open)?;
        let view = look(loaded.content(), loaded.file())?;
        drop(loaded);
        match read(&view) {
            Ok(out) => return Ok(out),
            Err(Miss::Io(error)) => return Err(Error::io(&open.path, error)),
            Err(Miss::Mismatch(_)) => {}
        }
        let loaded = self.load(open)?;
        let view = look(loaded.content(), loaded.file())?;
        read(&view).map_err(|miss| match miss {
            Miss::Io(error) => Error::io(&open.path, error),
            Miss::Mismatch(index) => Error::block(open.key, index),
        })
    }
}
