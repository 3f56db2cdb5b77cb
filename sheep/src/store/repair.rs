//! Whole blocks for recovery, and what to do about those that are torn or damaged.

use bytes::Bytes;
use wire::checksum::BLOCK_SIZE;
use wire::id::Version;

use super::error::{Error, Part};
use super::format::BlockEntry;
use super::intent;
use super::key::ObjectKey;
use super::open::LocalStore;
use super::write::{Change, Fill, Put};

const BLOCK: u64 = BLOCK_SIZE as u64;
/// Blocks verified by one read.
const VERIFY_BLOCKS: usize = 64;

/// A block as one copy of an object gives it to another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockCopy {
    /// Which block.
    pub index: u32,
    /// Its entry, taken over as it is.
    pub entry: BlockEntry,
    /// Its data, one block; `None` when it is absent.
    pub data: Option<Bytes>,
}

impl BlockCopy {
    fn is_whole(&self) -> bool {
        match &self.data {
            Some(data) => {
                let matches = data.len() == BLOCK_SIZE && crc32c::crc32c(data) == self.entry.crc;
                self.entry.is_present() && matches
            }
            None => self.entry.is_absent(self.index),
        }
    }
}

impl LocalStore {
    /// Replaces blocks, damaged or not, by another copy's. Nothing is written unless all match their entries.
    /// The version stays.
    pub fn patch(&self, key: &ObjectKey, blocks: &[BlockCopy]) -> Result<(), Error> {
        self.check_alive()?;
        self.change(key, |_, loaded| {
            let total = loaded.content().table.len() as u32;
            if let Some(bad) = blocks.iter().find(|b| b.index >= total || !b.is_whole()) {
                let reason = format!("the copy of block {} does not match its entry", bad.index);
                return Err(Error::Invalid { key: *key, reason });
            }
            let mut change = Change::default();
            let mut mask = 0;
            for block in blocks {
                let fill = block.data.clone().map_or(Fill::Hole(BLOCK), Fill::Data);
                change.puts.push(Put { offset: u64::from(block.index) * BLOCK, fill });
                change.entries.push((block.index, block.entry));
                mask |= intent::regions(total, block.index, 1);
            }
            Ok((mask, change))
        })
    }

    /// Mends damaged blocks with those of a copy that may be behind, where it is certain that they are what was
    /// here; says how many. Between two writes.
    ///
    /// It is certain in two cases. The entries are equal: a checksum and the number of the write that made the
    /// block name its bytes, for of two writes with one number, of which at most one was ever acknowledged, the
    /// checksums differ. Or the entry is what is damaged here: then the bytes under it are those of the last write
    /// to the block, and if they are also the ones offered, these have a checksum to vouch for them. An entry alone
    /// would not do: who offers it does not know what was written since.
    pub fn borrow(&self, key: &ObjectKey, offered: &[BlockCopy]) -> Result<u32, Error> {
        let mut taken = Vec::new();
        for block in offered {
            match self.read_blocks(key, &[block.index]) {
                Err(Error::Damaged { part: Part::Block(_), .. }) => {}
                Ok(_) | Err(Error::Invalid { .. }) => continue,
                Err(error) => return Err(error),
            }
            if block.is_whole() && self.is_what_was_here(key, block)? {
                taken.push(block.clone());
            }
        }
        self.patch(key, &taken)?;
        Ok(taken.len() as u32)
    }

    fn is_what_was_here(&self, key: &ObjectKey, offered: &BlockCopy) -> Result<bool, Error> {
        let open = self.open_object(key)?;
        let loaded = self.load(&open)?;
        let content = loaded.content();
        if content.table.get(offered.index as usize) == Some(&offered.entry) {
            return Ok(true);
        }
        let Some(data) = &offered.data else { return Ok(false) };
        let mut bytes = vec![0; BLOCK_SIZE];
        let at = super::format::data_offset(content.size) + u64::from(offered.index) * BLOCK;
        match loaded.file().read_at(&mut bytes, at) {
            Ok(()) => Ok(bytes == data[..]),
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Ok(false),
            Err(error) => Err(Error::io(&open.path, error)),
        }
    }

    /// Sets the version without changing data: a copy that was made equal to another takes its version.
    pub fn set_version(&self, key: &ObjectKey, version: Version) -> Result<(), Error> {
        self.check_alive()?;
        // Marked like a write to the first block, so that a copy whose version may be older or newer after
        // a crash is among the suspects.
        self.change(key, |_, loaded| {
            let mask = intent::regions(loaded.content().table.len() as u32, 0, 1);
            Ok((mask, Change { version: Some(version), ..Change::default() }))
        })
    }

    /// Some blocks, verified, for another copy to [`patch`](Self::patch) in.
    pub fn read_blocks(&self, key: &ObjectKey, blocks: &[u32]) -> Result<Vec<BlockCopy>, Error> {
        self.check_alive()?;
        let open = self.open_object(key)?;
        let copy = |index: u32| {
            let out_of_range = || Error::Invalid { key: *key, reason: format!("it has no block {index}") };
            self.view_and(
                &open,
                |content| content.table.get(index as usize).map(|_| (index, 1)).ok_or_else(out_of_range),
                |view| {
                    let data = view.read_block(index)?;
                    Ok(BlockCopy { index, entry: view.entry(index), data })
                },
            )
        };
        blocks.iter().map(|index| copy(*index)).collect()
    }

    /// Reads everything and returns the blocks that are damaged, for a scrub.
    pub fn verify(&self, key: &ObjectKey) -> Result<Vec<u32>, Error> {
        let total = self.table(key)?.len() as u32;
        self.mismatched(key, 0..total)
    }

    fn mismatched(&self, key: &ObjectKey, blocks: impl Iterator<Item = u32>) -> Result<Vec<u32>, Error> {
        let blocks: Vec<u32> = blocks.collect();
        let mut found = Vec::new();
        // Long reads first; only where one fails is it told block by block.
        for run in blocks.chunk_by(|a, b| a + 1 == *b).flat_map(|run| run.chunks(VERIFY_BLOCKS)) {
            let len = run.len() as u32 * BLOCK_SIZE as u32;
            match self.read(key, u64::from(run[0]) * BLOCK, len) {
                Ok(_) => continue,
                Err(Error::Damaged { part: Part::Block(_), .. }) => {}
                Err(error) => return Err(error),
            }
            for index in run {
                match self.read_blocks(key, &[*index]) {
                    Ok(_) => {}
                    Err(Error::Damaged { part: Part::Block(index), .. }) => found.push(index),
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(found)
    }

    /// The regions of every marked object, each a bit of 64: what a crash now would leave in doubt.
    pub fn intents(&self) -> Vec<(ObjectKey, u64)> {
        self.intents.all()
    }

    /// The objects that were marked when the store was opened, and are not [cleared](Self::clear_suspect) since:
    /// blocks in these regions may be torn, and what they hold may be less than was written.
    pub fn suspects(&self) -> Vec<(ObjectKey, u64)> {
        self.intents.suspects()
    }

    /// The blocks in `mask`'s regions that a crash may have torn: data that does not match its checksum.
    /// To be called for every suspect before it is written to.
    ///
    /// A damaged entry of an absent block is not among them, nor is a block that the file is too short for; no torn
    /// write makes one of these. Absent blocks are
    /// cleared on the way: the data of a write whose entry was lost, or from before a trim whose hole was, must
    /// not come to light when a later write of the block is torn.
    pub fn settle_torn(&self, key: &ObjectKey, mask: u64) -> Result<Vec<u32>, Error> {
        self.check_alive()?;
        self.change(key, |_, loaded| {
            let table = &loaded.content().table;
            let marked: Vec<u32> = intent::blocks_in(table.len() as u32, mask).collect();
            let absent = |index: &u32| table[*index as usize].is_absent(*index);
            let mut change = Change::default();
            for run in marked.chunk_by(|a, b| a + 1 == *b && absent(a) == absent(b)) {
                if absent(&run[0]) {
                    let fill = Fill::Hole(run.len() as u64 * BLOCK);
                    change.puts.push(Put { offset: u64::from(run[0]) * BLOCK, fill });
                }
            }
            Ok((mask, change))
        })?;
        let open = self.open_object(key)?;
        let (table, ends) = {
            let loaded = self.load(&open)?;
            let size = loaded.file().size().map_err(|e| Error::io(&open.path, e))?;
            let data = size.saturating_sub(super::format::data_offset(loaded.content().size));
            (loaded.content().table.clone(), data / BLOCK)
        };
        let blocks = intent::blocks_in(table.len() as u32, mask);
        let tearable = |index: &u32| table[*index as usize].is_present() && u64::from(*index) < ends;
        self.mismatched(key, blocks.filter(tearable))
    }

    /// Takes what the disk holds of these blocks for their content: legal when all copies are torn, for then
    /// each sector is old or new. Refused outside the regions in which the object is a suspect.
    pub fn accept_torn(&self, key: &ObjectKey, blocks: &[u32]) -> Result<(), Error> {
        self.check_alive()?;
        self.change(key, |open, loaded| {
            let content = loaded.content();
            let total = content.table.len() as u32;
            let suspect = self.intents.suspect(key);
            let mut change = Change::default();
            let mut mask = 0;
            for index in blocks.iter().copied() {
                let entry = content.table.get(index as usize).filter(|entry| entry.is_present());
                let region = intent::regions(total, index.min(total - 1), 1);
                let Some(entry) = entry.filter(|_| suspect & region == region) else {
                    return Err(Error::block(*key, index));
                };
                let mut block = vec![0; BLOCK_SIZE];
                let at = super::format::data_offset(content.size) + u64::from(index) * BLOCK;
                let read = loaded.file().read_at(&mut block, at);
                read.map_err(|e| Error::reading(open.key, index, &open.path, e))?;
                let entry = BlockEntry { crc: crc32c::crc32c(&block), stamp: entry.stamp };
                change.entries.push((index, entry));
                mask |= region;
            }
            Ok((mask, change))
        })
    }

    /// The object was settled.
    pub fn clear_suspect(&self, key: &ObjectKey) {
        self.intents.clear_suspect(key);
    }
}
