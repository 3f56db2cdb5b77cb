//! What is here.

use std::collections::BTreeSet;

use wire::id::{Birth, Oid, SlotIndex, VdiId, Version};
use wire::policy::Copies;

use super::error::{Error, Part};
use super::format;
use super::key::ObjectKey;
use super::open::{LocalStore, list_keys};

/// An object in a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ObjectStat {
    /// The object.
    pub oid: Oid,
    /// Which creation of it.
    pub birth: Birth,
    /// Version and size; `None` when header or version record are damaged and a copy is needed from elsewhere.
    pub content: Option<(Version, u32)>,
}

impl LocalStore {
    /// The objects of a slot, by id and birth.
    pub fn list_slot(&self, copies: Copies, slot: SlotIndex) -> Result<Vec<ObjectStat>, Error> {
        self.check_alive()?;
        let mut stats = Vec::new();
        let mut keys: BTreeSet<ObjectKey> = self.keys(copies, slot)?.into_iter().collect();
        // A file that somebody else removed is still ours while it is open: whoever catches up from here must not
        // take its object for deleted.
        keys.extend(self.cache.in_use(copies, slot));
        for key in keys {
            let content = match self.stat(&key) {
                Ok(content) => content,
                Err(Error::Damaged { part: Part::Header, .. }) => None,
                // Removed since it was listed.
                Err(Error::NotFound(_)) => continue,
                Err(error) => return Err(error),
            };
            stats.push(ObjectStat { oid: key.oid, birth: key.birth, content });
        }
        stats.sort_unstable();
        Ok(stats)
    }

    /// Version and size, without giving the object a place in the cache: a long listing would empty it.
    fn stat(&self, key: &ObjectKey) -> Result<Option<(Version, u32)>, Error> {
        if self.cache.peek(key).is_none() {
            let path = key.path(&self.objects);
            let mut header = [0; format::VERSION_OFFSET + format::VERSION_LEN];
            let file = self.fs.open(&path);
            if file.and_then(|file| file.read_at(&mut header, 0)).is_ok()
                && let Some((found, size)) = format::decode_header(&header)
                && let Some(version) = format::decode_version(&header[format::VERSION_OFFSET..])
                && found == *key
            {
                return Ok(Some((version, size)));
            }
        }
        // In use, or not as it should be: looked at with the object's lock.
        let open = self.open_object(key)?;
        let loaded = self.load(&open)?;
        Ok(loaded.content().version.map(|version| (version, loaded.content().size)))
    }

    /// The slots that have, or had, objects here.
    pub fn list_slots(&self) -> Vec<(Copies, SlotIndex)> {
        let mut slots: Vec<_> = self.slots.lock().keys().copied().collect();
        slots.sort_unstable();
        slots
    }

    /// The objects that a VDI created. Reads the names of all objects.
    pub fn list_vdi(&self, creator: VdiId) -> Result<Vec<ObjectKey>, Error> {
        let mut keys = self.all_keys()?;
        keys.retain(|key| key.creator() == creator);
        keys.sort_unstable();
        Ok(keys)
    }

    /// The VDIs that created the objects here. Reads the names of all objects.
    pub fn creators(&self) -> Result<Vec<VdiId>, Error> {
        let creators: BTreeSet<_> = self.all_keys()?.iter().map(ObjectKey::creator).collect();
        Ok(creators.into_iter().collect())
    }

    fn all_keys(&self) -> Result<Vec<ObjectKey>, Error> {
        self.check_alive()?;
        let mut keys = Vec::new();
        for (copies, slot) in self.list_slots() {
            keys.extend(self.keys(copies, slot)?);
        }
        Ok(keys)
    }

    fn keys(&self, copies: Copies, slot: SlotIndex) -> Result<Vec<ObjectKey>, Error> {
        let Some(dir) = self.slot_dir(copies, slot) else { return Ok(Vec::new()) };
        if !*dir.made.lock() {
            return Ok(Vec::new());
        }
        Ok(list_keys(&*self.fs, &dir.path, copies, slot)?.into_iter().collect())
    }
}
