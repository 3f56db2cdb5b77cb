//! Objects in use are known from memory and read by open files: whether the disk still has them, and putting back
//! what it has not.
//!
//! Whatever was done to the directory behind the store's back would otherwise be found only when the object has
//! left the cache, and by then what was in memory is lost.

use std::io::ErrorKind;

use wire::checksum::BLOCK_SIZE;

use super::error::Error;
use super::format;
use super::io::File;
use super::key::{self, ObjectKey};
use super::open::{Loaded, LocalStore};

const BLOCK: u64 = BLOCK_SIZE as u64;
/// Blocks copied by one read.
const COPY_BLOCKS: usize = 64;

/// How the file under an object's name is not the one in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Astray {
    /// There is none.
    Gone,
    /// It is another one, or its header or version are not those in use.
    Other,
}

/// What the disk has of an object, against what is known of it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct OnDisk {
    /// Whether the file is not the one in use.
    pub astray: Option<Astray>,
    /// Blocks whose entries in the table on disk are not those in use.
    pub blocks: Vec<u32>,
}

impl OnDisk {
    /// Whether the disk has what is known.
    pub fn is_same(&self) -> bool {
        self.astray.is_none() && self.blocks.is_empty()
    }
}

impl LocalStore {
    /// Opens the object's file anew and compares its head with what is known, between two writes.
    pub fn on_disk(&self, key: &ObjectKey) -> Result<OnDisk, Error> {
        self.check_alive()?;
        let open = self.open_object(key)?;
        // Held to the end, so that no write is half way.
        let loaded = self.load(&open)?;
        self.compare(key, &loaded)
    }

    fn compare(&self, key: &ObjectKey, loaded: &Loaded<'_>) -> Result<OnDisk, Error> {
        let path = key.path(&self.objects);
        let astray = |how| Ok(OnDisk { astray: Some(how), blocks: Vec::new() });
        let found = match self.fs.open(&path) {
            Ok(found) => found,
            Err(error) if error.kind() == ErrorKind::NotFound => return astray(Astray::Gone),
            Err(error) => return Err(Error::io(&path, error)),
        };
        let id = |file: &dyn File| file.id().map_err(|e| Error::io(&path, e));
        if id(&*found)? != id(&**loaded.file())? {
            return astray(Astray::Other);
        }
        let known = loaded.content();
        match self.read_content(key, &path, &*found) {
            Ok(read) if (read.size, read.version) == (known.size, known.version) => {
                let differing =
                    (0u32..).zip(read.table.iter().zip(&known.table)).filter(|(_, (a, b))| a != b);
                Ok(OnDisk { astray: None, blocks: differing.map(|(index, _)| index).collect() })
            }
            Ok(_) | Err(Error::Damaged { .. }) => astray(Astray::Other),
            Err(error) => Err(error),
        }
    }

    /// Puts the object's file back, from what is known of it and what the open file still has; says whether it
    /// had to. It takes the place of whatever has its name, at once and durably.
    ///
    /// Blocks that do not match their entries stay so; [`patch`](Self::patch) mends them.
    pub fn reinstate(&self, key: &ObjectKey) -> Result<bool, Error> {
        self.check_alive()?;
        let _busy = self.occupy(key);
        let open = self.open_object(key)?;
        let mut loaded = self.load(&open)?;
        // With a damaged version there is nothing to put back that would be right.
        let Some(version) = loaded.content().version else { return Ok(false) };
        if self.compare(key, &loaded)?.is_same() {
            return Ok(false);
        }
        let Some(slot) = self.slot_dir(key.copies, key.slot) else { return Ok(false) };
        let parent = key::copies_dir(&self.objects, key.copies);
        for (dir, above) in [(&parent, &self.objects), (&slot.path, &parent)] {
            if self.fs.create_dir(dir).map_err(|e| Error::io(dir, e))? {
                self.fs.sync_dir(above).map_err(|e| self.poison(&Error::io(above, e)))?;
            }
        }
        let tmp = self.tmp_path();
        let write = || {
            let (file, content) = (self.fs.create(&tmp)?, loaded.content());
            let data = format::data_offset(content.size);
            file.write_at(&format::encode_head(key, content.size, version, &content.table), 0)?;
            file.set_size(data + u64::from(content.size))?;
            let present: Vec<u32> =
                (0..).zip(&content.table).filter(|(_, entry)| entry.is_present()).map(|(i, _)| i).collect();
            for run in present.chunk_by(|a, b| a + 1 == *b).flat_map(|run| run.chunks(COPY_BLOCKS)) {
                copy(&**loaded.file(), &*file, data + u64::from(run[0]) * BLOCK, run.len() * BLOCK_SIZE)?;
            }
            Ok(file)
        };
        let file = write().map_err(|e| self.abandon(&tmp, e))?;
        // Whatever was written to the object is durable with this, flushed or not.
        file.sync_data().map_err(|e| self.poison(&Error::io(&tmp, e)))?;
        self.fs.rename(&tmp, &open.path).map_err(|e| self.abandon(&tmp, e))?;
        slot.names.note();
        loaded.move_to(file);
        drop(loaded);
        self.sync_names(&slot)?;
        Ok(true)
    }
}

/// Copies a range as it is. What the old file does not have any more stays zeros, which match no entry by chance.
fn copy(from: &dyn File, to: &dyn File, at: u64, len: usize) -> std::io::Result<()> {
    let mut bytes = vec![0; len];
    match from.read_at(&mut bytes, at) {
        Ok(()) => to.write_at(&bytes, at),
        Err(error) if error.kind() == ErrorKind::UnexpectedEof && len > BLOCK_SIZE => {
            (0..len).step_by(BLOCK_SIZE).try_for_each(|part| copy(from, to, at + part as u64, BLOCK_SIZE))
        }
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(()),
        Err(error) => Err(error),
    }
}
