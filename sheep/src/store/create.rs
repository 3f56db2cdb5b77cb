//! Objects come into being and go, atomically and durably.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use wire::id::{SlotIndex, Version};
use wire::policy::Copies;

use super::cache::{Open, OpenState};
use super::error::Error;
use super::format;
use super::group::SyncGroup;
use super::intent::ALL;
use super::key::{self, ObjectKey};
use super::open::{LocalStore, SlotDir};

/// Whether [`LocalStore::create`] made the object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Created {
    /// It did; all blocks are absent and the version is zero.
    New,
    /// It was there, with the same size and whatever it holds.
    Existed,
}

/// Makes the names of files being created distinct within a process; each start begins with none.
static TMP: AtomicU64 = AtomicU64::new(0);

impl LocalStore {
    /// A path for a file that is not yet what it will be.
    pub(super) fn tmp_path(&self) -> PathBuf {
        let name = TMP.fetch_add(1, Ordering::Relaxed);
        self.objects.join("tmp").join(name.to_string())
    }
}

impl LocalStore {
    /// Creates an object of `size` bytes, a multiple of 4 KiB up to [`OBJECT_SIZE_MAX`](super::OBJECT_SIZE_MAX).
    ///
    /// Object and name are durable when it returns (rule 11: before its map entry can be), also when the object
    /// was there before. Many at a time share their syncs.
    pub fn create(&self, key: &ObjectKey, size: u32) -> Result<Created, Error> {
        self.check_alive()?;
        if !format::size_fits(size) {
            return Err(Error::Invalid { key: *key, reason: format!("{size} is not a size of objects") });
        }
        let _busy = self.occupy(key);
        let slot = self.make_slot_dir(key.copies, key.slot)?;
        let open = self.open_object(key)?;
        let created = match self.load(&open).map(|loaded| loaded.content().size) {
            Ok(found) if found == size => Created::Existed,
            Ok(found) => {
                return Err(Error::Invalid {
                    key: *key,
                    reason: format!("it has {found} bytes, not {size}"),
                });
            }
            Err(Error::NotFound(_)) => {
                self.create_new(&open, &slot, size)?;
                Created::New
            }
            Err(error) => return Err(error),
        };
        self.sync_names(&slot)?;
        Ok(created)
    }

    fn create_new(&self, open: &Arc<Open>, slot: &SlotDir, size: u32) -> Result<(), Error> {
        // The first write comes soon; marking now lets it go without a sync, and this sync joins the others.
        let pending = self.intents.announce(&open.key, ALL);
        let tmp = self.tmp_path();
        let bytes = format::encode_new(&open.key, size);
        let write = || {
            let file = self.fs.create(&tmp)?;
            file.write_at(&bytes, 0)?;
            // All of it reads as zeros, so the file has its full length: reads never meet its end.
            file.set_size(format::data_offset(size) + u64::from(size))?;
            Ok(file)
        };
        let file = write().map_err(|e| self.abandon(&tmp, e))?;
        file.sync_data().map_err(|e| self.poison(&Error::io(&tmp, e)))?;
        {
            // Held over the rename, so that nobody uses the object before its name is noted as not yet durable.
            let mut state = open.state.lock();
            self.fs.rename(&tmp, &open.path).map_err(|e| self.abandon(&tmp, e))?;
            slot.names.note();
            let table = format::decode_table(&bytes[format::HEADER_LEN..]);
            let table = table.into_iter().take(format::block_count(size) as usize).collect();
            let content = self.cache.content(size, Some(Version::default()), table);
            *state = OpenState { file: Some(file), content: Some(content) };
        }
        let marked = self.intents.wait(&open.key, pending);
        marked.map_err(|e| self.poison_if(e, self.intents.failure()))?;
        Ok(())
    }

    /// Removes what is left of a file whose creation failed; if that fails too, the next start does it.
    pub(super) fn abandon(&self, tmp: &std::path::Path, error: std::io::Error) -> Error {
        if let Err(second) = self.fs.remove(tmp) {
            tracing::debug!(path = %tmp.display(), error = %second, "left for the next start to remove");
        }
        Error::io(tmp, error)
    }

    /// Removes exactly this birth; says whether it was there. Durable when it returns.
    pub fn remove(&self, key: &ObjectKey) -> Result<bool, Error> {
        self.check_alive()?;
        let Some(slot) = self.slot_dir(key.copies, key.slot) else { return Ok(false) };
        let removed = self.unlink(key, &slot)?;
        self.sync_names(&slot)?;
        self.intents.forget(key);
        Ok(removed)
    }

    fn unlink(&self, key: &ObjectKey, slot: &SlotDir) -> Result<bool, Error> {
        let _busy = self.occupy(key);
        let open = self.open_object(key)?;
        // Held over the removal, so that nobody opens the file in between and keeps what is gone.
        let mut state = open.state.lock();
        let removed = match self.fs.remove(&open.path) {
            Ok(()) => true,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => false,
            Err(error) => return Err(Error::io(&open.path, error)),
        };
        // One that somebody else removed may still be open.
        if removed || state.file.is_some() {
            slot.names.note();
            *state = OpenState::default();
        }
        Ok(removed)
    }

    /// Removes up to `limit` objects of a slot; whether those were all. What a crash leaves of it are whole objects.
    pub fn remove_slot(&self, copies: Copies, slot: SlotIndex, limit: usize) -> Result<bool, Error> {
        self.check_alive()?;
        let Some(dir) = self.slot_dir(copies, slot) else { return Ok(true) };
        let keys = super::open::list_keys(&*self.fs, &dir.path, copies, slot)?;
        let mut keys: Vec<ObjectKey> = keys.into_iter().collect();
        keys.sort_unstable();
        let all = keys.len() <= limit;
        keys.truncate(limit);
        for key in &keys {
            self.unlink(key, &dir)?;
        }
        self.sync_names(&dir)?;
        for key in &keys {
            self.intents.forget(key);
        }
        Ok(all)
    }

    /// The slot's directory, made durably if need be.
    fn make_slot_dir(&self, copies: Copies, slot: SlotIndex) -> Result<Arc<SlotDir>, Error> {
        let dir = self
            .slots
            .lock()
            .entry((copies, slot))
            .or_insert_with(|| {
                let path = key::slot_dir(&self.objects, copies, slot);
                Arc::new(SlotDir { path, made: parking_lot::Mutex::new(false), names: SyncGroup::default() })
            })
            .clone();
        let mut made = dir.made.lock();
        if !*made {
            let parent = key::copies_dir(&self.objects, copies);
            let sync = |path: &PathBuf| self.fs.sync_dir(path).map_err(|e| self.poison(&Error::io(path, e)));
            self.fs.create_dir(&parent).map_err(|e| Error::io(&parent, e))?;
            sync(&self.objects)?;
            self.fs.create_dir(&dir.path).map_err(|e| Error::io(&dir.path, e))?;
            sync(&parent)?;
            *made = true;
        }
        drop(made);
        Ok(dir)
    }
}
