//! Writes: checked, planned, and applied in an order that a crash cannot make a lie of.
//!
//! Intent (durable) → data → table → version. Nothing but the intent is synced here; see `flush.rs`.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use wire::checksum::{self, BLOCK_SIZE};
use wire::id::Version;

use super::cache::Open;
use super::error::Error;
use super::format::{self, BlockEntry, ENTRY_LEN, TABLE_OFFSET, VERSION_OFFSET};
use super::intent::{self, Marked};
use super::io::File;
use super::key::ObjectKey;
use super::open::{Loaded, LocalStore};

const BLOCK: u64 = BLOCK_SIZE as u64;
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// What a write puts into its range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WriteKind {
    /// Bytes, with the CRC32C of each of their [pieces](wire::checksum::pieces).
    Data {
        /// The bytes.
        data: Bytes,
        /// The checksums.
        crcs: Vec<u32>,
    },
    /// Zeros.
    Zero {
        /// How many.
        len: u64,
        /// Whether the space of whole blocks is freed. Otherwise it is taken, so that later writes find it.
        punch: bool,
    },
}

/// A write to one object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Write {
    /// The object's version once it is applied. That it follows the present one is for the caller to check.
    pub version: Version,
    /// Where in the object.
    pub offset: u64,
    /// What.
    pub kind: WriteKind,
}

impl Write {
    /// The length of the range written.
    pub fn len(&self) -> u64 {
        match &self.kind {
            WriteKind::Data { data, .. } => data.len() as u64,
            WriteKind::Zero { len, .. } => *len,
        }
    }

    /// Whether nothing but the version changes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Bytes to go to a place in the object.
pub(super) struct Put {
    pub(super) offset: u64,
    pub(super) fill: Fill,
}

pub(super) enum Fill {
    Data(Bytes),
    Zeros(u64),
    Hole(u64),
}

/// All that a write changes.
#[derive(Default)]
pub(super) struct Change {
    pub(super) puts: Vec<Put>,
    /// By index, ascending.
    pub(super) entries: Vec<(u32, BlockEntry)>,
    pub(super) version: Option<Version>,
}

impl LocalStore {
    /// Applies a write. It survives the process when it returns, and the power once flushed.
    pub fn write(&self, key: &ObjectKey, write: &Write) -> Result<(), Error> {
        self.check_alive()?;
        if let WriteKind::Data { data, crcs } = &write.kind {
            checksum::verify(write.offset, data, crcs)
                .map_err(|source| Error::Payload { key: *key, source })?;
        }
        self.change(key, |open, loaded| {
            let (first, count) = blocks_of(key, loaded.content().size, write.offset, write.len())?;
            let mask = intent::regions(loaded.content().table.len() as u32, first, count);
            Ok((mask, plan(open, loaded, write)?))
        })
    }

    /// Whether [`write`](Self::write) of this range would neither sync nor read, only fill memory.
    pub fn is_quick_write(&self, key: &ObjectKey, offset: u64, len: u64) -> bool {
        let Some(open) = self.cache.peek(key) else { return false };
        let Some(state) = open.state.try_lock() else { return false };
        let (Some(_), Some(content)) = (&state.file, &state.content) else { return false };
        let Ok((first, count)) = blocks_of(key, content.size, offset, len) else { return false };
        // A partial block with data has to be read first.
        let whole = |at: u64| {
            at.is_multiple_of(BLOCK)
                || content.table.get((at / BLOCK) as usize).is_some_and(|entry| !entry.is_present())
        };
        let mask = intent::regions(content.table.len() as u32, first, count);
        whole(offset) && whole(offset + len) && self.intents.covers(key, mask)
    }

    /// Plans a change, marks the regions it says, and applies it.
    ///
    /// `plan` may be called twice: waiting for a mark gives up the object's lock, and what was planned before
    /// may not hold after.
    pub(super) fn change(
        &self,
        key: &ObjectKey,
        plan: impl Fn(&Open, &Loaded<'_>) -> Result<(u64, Change), Error>,
    ) -> Result<(), Error> {
        let open = self.open_object(key)?;
        let mut loaded = self.load(&open)?;
        let (mut mask, mut change) = plan(&open, &loaded)?;
        let marked: Marked<'_> = match self.intents.try_begin(key, mask) {
            Some(marked) => marked,
            None => {
                drop(loaded);
                let marked = self.intents.begin(key, mask);
                let marked = marked.map_err(|e| self.poison_if(e, self.intents.failure()))?;
                loaded = self.load(&open)?;
                let before = mask;
                (mask, change) = plan(&open, &loaded)?;
                assert_eq!(mask, before, "regions follow from the request and the size, which never changes");
                marked
            }
        };
        let result = apply(&open, &mut loaded, &change).map_err(|e| Error::io(&open.path, e));
        self.cache.note_change(&open);
        if result.is_err() {
            loaded.forget();
        }
        drop(marked);
        result
    }
}

/// The blocks that a range touches, first and count; an error when it does not lie in the object.
pub(super) fn blocks_of(key: &ObjectKey, size: u32, offset: u64, len: u64) -> Result<(u32, u32), Error> {
    match offset.checked_add(len) {
        Some(end) if end <= u64::from(size) => {
            let first = (offset / BLOCK) as u32;
            let count = if len == 0 { 0 } else { (end.div_ceil(BLOCK)) as u32 - first };
            Ok((first.min(format::block_count(size) - 1), count))
        }
        _ => Err(Error::Invalid {
            key: *key,
            reason: format!("{len} bytes at {offset} do not lie within its {size}"),
        }),
    }
}

/// Block `index` as it is, verified; `None` when it is absent.
fn old_block(open: &Open, loaded: &Loaded<'_>, index: u32) -> Result<Option<Vec<u8>>, Error> {
    let content = loaded.content();
    let entry = content.table[index as usize];
    if !entry.is_present() {
        return entry.is_absent(index).then_some(None).ok_or(Error::block(open.key, index));
    }
    let mut block = vec![0; BLOCK_SIZE];
    let at = format::data_offset(content.size) + u64::from(index) * BLOCK;
    let read = loaded.file().read_at(&mut block, at);
    read.map_err(|e| Error::reading(open.key, index, &open.path, e))?;
    if crc32c::crc32c(&block) != entry.crc {
        return Err(Error::block(open.key, index));
    }
    Ok(Some(block))
}

/// What a write in a valid range changes. Partial blocks are merged with what they hold.
fn plan(open: &Open, loaded: &Loaded<'_>, write: &Write) -> Result<Change, Error> {
    let seq = write.version.seq;
    let mut change = Change { version: Some(write.version), ..Change::default() };
    // The whole blocks, which are written in one go.
    let mut whole: Option<std::ops::Range<u64>> = None;
    let mut at = write.offset;
    for (piece, len) in checksum::pieces(write.offset, write.len() as usize).enumerate() {
        let index = (at / BLOCK) as u32;
        let from = (at - write.offset) as usize;
        let entry = if len == BLOCK_SIZE {
            let start = whole.as_ref().map_or(at, |range| range.start);
            whole = Some(start..at + BLOCK);
            match &write.kind {
                WriteKind::Data { crcs, .. } => BlockEntry::present(crcs[piece], seq),
                WriteKind::Zero { punch: true, .. } => BlockEntry::absent(index, seq),
                WriteKind::Zero { punch: false, .. } => {
                    BlockEntry::present(crc32c::crc32c(&ZEROS[..BLOCK_SIZE]), seq)
                }
            }
        } else {
            let old = old_block(open, loaded, index)?;
            if old.is_none() && matches!(write.kind, WriteKind::Zero { punch: true, .. }) {
                BlockEntry::absent(index, seq)
            } else {
                // All of it is written, because an absent block may lie on anything after a crash.
                let mut block = old.unwrap_or_else(|| vec![0; BLOCK_SIZE]);
                let part = &mut block[(at % BLOCK) as usize..][..len];
                match &write.kind {
                    WriteKind::Data { data, .. } => part.copy_from_slice(&data[from..from + len]),
                    WriteKind::Zero { .. } => part.fill(0),
                }
                let entry = BlockEntry::present(crc32c::crc32c(&block), seq);
                let fill = Fill::Data(block.into());
                change.puts.push(Put { offset: u64::from(index) * BLOCK, fill });
                entry
            }
        };
        change.entries.push((index, entry));
        at += len as u64;
    }
    if let Some(range) = whole {
        let len = range.end - range.start;
        let fill = match &write.kind {
            WriteKind::Data { data, .. } => {
                let from = (range.start - write.offset) as usize;
                Fill::Data(data.slice(from..from + len as usize))
            }
            WriteKind::Zero { punch: true, .. } => Fill::Hole(len),
            WriteKind::Zero { punch: false, .. } => Fill::Zeros(len),
        };
        change.puts.push(Put { offset: range.start, fill });
    }
    Ok(change)
}

/// Data, then table, then version. After an error the file may hold any part of it.
fn apply(open: &Open, loaded: &mut Loaded<'_>, change: &Change) -> io::Result<()> {
    let file = Arc::clone(loaded.file());
    let data = format::data_offset(loaded.content().size);
    for put in &change.puts {
        if let Err(error) = fill(&*file, data + put.offset, &put.fill) {
            clear_absent(open, loaded, change);
            return Err(error);
        }
    }
    let mut bytes = Vec::with_capacity(change.entries.len() * ENTRY_LEN);
    for run in change.entries.chunk_by(|a, b| a.0 + 1 == b.0) {
        bytes.clear();
        run.iter().for_each(|(_, entry)| bytes.extend_from_slice(&entry.encode()));
        file.write_at(&bytes, TABLE_OFFSET + u64::from(run[0].0) * ENTRY_LEN as u64)?;
    }
    let content = loaded.content_mut();
    for (index, entry) in &change.entries {
        content.table[*index as usize] = *entry;
    }
    if let Some(version) = change.version {
        file.write_at(&format::encode_version(version), VERSION_OFFSET as u64)?;
        content.version = Some(version);
    }
    Ok(())
}

fn fill(file: &dyn File, at: u64, fill: &Fill) -> io::Result<()> {
    match fill {
        Fill::Data(bytes) => file.write_at(bytes, at),
        Fill::Zeros(len) => write_zeros(file, at, *len),
        Fill::Hole(len) => match file.punch_hole(at, *len) {
            // The space stays taken, but what was there must go: under an absent block lie zeros, see below.
            Err(error) if error.kind() == io::ErrorKind::Unsupported => write_zeros(file, at, *len),
            result => result,
        },
    }
}

fn write_zeros(file: &dyn File, at: u64, len: u64) -> io::Result<()> {
    let mut done = 0;
    while done < len {
        let step = (len - done).min(ZEROS.len() as u64);
        file.write_at(&ZEROS[..step as usize], at + done)?;
        done += step;
    }
    Ok(())
}

/// Takes back what a failed write may have put under blocks that stay absent. Left there, a later write that is
/// torn could bring it to light, long after the block had been read as zeros.
fn clear_absent(open: &Open, loaded: &Loaded<'_>, change: &Change) {
    let data = format::data_offset(loaded.content().size);
    for (index, _) in &change.entries {
        if loaded.content().table[*index as usize].is_present() {
            continue;
        }
        if let Err(error) = loaded.file().punch_hole(data + u64::from(*index) * BLOCK, BLOCK) {
            tracing::warn!(key = %open.key, index, %error, "what a failed write left was not cleared");
        }
    }
}
