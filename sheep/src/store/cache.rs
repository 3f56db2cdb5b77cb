//! Open objects: their files, tables and versions, and which of them have unsynced writes.
//!
//! There is one [`Open`] for a key at a time: it leaves the cache only when nobody else holds it, so two
//! threads never work with two tables of one object. An object with unsynced writes is held by the set
//! of dirty ones and so stays open, which keeps the descriptor that a failed writeback is reported to.

use std::collections::{HashMap, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use parking_lot::{Mutex, RwLock};
use wire::id::{SlotIndex, VdiId, Version};
use wire::policy::Copies;

use super::format::BlockEntry;
use super::group::SyncGroup;
use super::io::File;
use super::key::ObjectKey;

/// How many dirty objects are synced together when nothing else can be let go of.
const SYNC_BATCH: usize = 64;

/// An object that is, or was, in use.
pub(super) struct Open {
    pub(super) key: ObjectKey,
    pub(super) path: PathBuf,
    /// Guards the table and the version, and makes writes to the object follow one another.
    /// Not held while syncing, and not while reading data unless a first try met a write.
    pub(super) state: Mutex<OpenState>,
    /// The file's unsynced changes.
    pub(super) unsynced: SyncGroup,
    /// Whether the set of dirty objects has this one.
    in_dirty: AtomicBool,
    /// Whether it was used since the eviction hand passed.
    used: AtomicBool,
}

#[derive(Default)]
pub(super) struct OpenState {
    pub(super) file: Option<Arc<dyn File>>,
    /// `None` until read, and again after a failed write, which leaves the disk's content unknown.
    pub(super) content: Option<Content>,
}

/// What is known of an object without reading data.
pub(super) struct Content {
    pub(super) size: u32,
    /// `None` when the record is damaged.
    pub(super) version: Option<Version>,
    pub(super) table: Vec<BlockEntry>,
    _charge: Charge,
}

/// Counts a table's bytes while it is in memory.
struct Charge {
    bytes: usize,
    total: Arc<AtomicUsize>,
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.total.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

pub(super) struct Cache {
    entries_max: usize,
    table_bytes_max: usize,
    table_bytes: Arc<AtomicUsize>,
    objects: PathBuf,
    open: RwLock<HashMap<ObjectKey, Arc<Open>>>,
    /// The keys of `open` in the order the eviction hand takes them. A key may be listed after it has gone.
    hand: Mutex<VecDeque<ObjectKey>>,
    dirty: Mutex<HashMap<VdiId, HashMap<ObjectKey, Arc<Open>>>>,
}

impl Open {
    /// Whether it has changes, or names, that no finished flush has covered.
    pub(super) fn is_dirty(&self) -> bool {
        self.in_dirty.load(Ordering::SeqCst)
    }
}

impl Cache {
    pub(super) fn new(objects: PathBuf, entries_max: usize, table_bytes_max: usize) -> Self {
        Self {
            entries_max,
            table_bytes_max,
            table_bytes: Arc::default(),
            objects,
            open: RwLock::default(),
            hand: Mutex::default(),
            dirty: Mutex::default(),
        }
    }

    /// The object if it is in the cache.
    pub(super) fn peek(&self, key: &ObjectKey) -> Option<Arc<Open>> {
        let open = self.open.read().get(key).cloned()?;
        open.used.store(true, Ordering::Relaxed);
        Some(open)
    }

    /// The object, opened when its content is first asked for.
    pub(super) fn get(&self, key: &ObjectKey) -> Arc<Open> {
        if let Some(open) = self.peek(key) {
            return open;
        }
        let mut map = self.open.write();
        let open = map.entry(*key).or_insert_with(|| {
            self.hand.lock().push_back(*key);
            Arc::new(Open {
                key: *key,
                path: key.path(&self.objects),
                state: Mutex::default(),
                unsynced: SyncGroup::default(),
                in_dirty: AtomicBool::new(false),
                used: AtomicBool::new(true),
            })
        });
        open.clone()
    }

    pub(super) fn content(&self, size: u32, version: Option<Version>, table: Vec<BlockEntry>) -> Content {
        let bytes = table.len() * size_of::<BlockEntry>();
        self.table_bytes.fetch_add(bytes, Ordering::Relaxed);
        Content { size, version, table, _charge: Charge { bytes, total: self.table_bytes.clone() } }
    }

    /// Notes that the object's file was changed. Called after the change.
    pub(super) fn note_change(&self, open: &Arc<Open>) {
        open.unsynced.note();
        if !open.in_dirty.swap(true, Ordering::SeqCst) {
            let mut dirty = self.dirty.lock();
            dirty.entry(open.key.creator()).or_default().insert(open.key, open.clone());
        }
    }

    /// Takes the object out of the dirty ones unless it was changed again.
    pub(super) fn note_synced(&self, open: &Arc<Open>) {
        let mut dirty = self.dirty.lock();
        open.in_dirty.store(false, Ordering::SeqCst);
        if !open.unsynced.is_clean() {
            open.in_dirty.store(true, Ordering::SeqCst);
            return;
        }
        if let Some(of_creator) = dirty.get_mut(&open.key.creator()) {
            of_creator.remove(&open.key);
            if of_creator.is_empty() {
                dirty.remove(&open.key.creator());
            }
        }
    }

    /// The objects of a slot whose files are open.
    pub(super) fn in_use(&self, copies: Copies, slot: SlotIndex) -> Vec<ObjectKey> {
        let open: Vec<Arc<Open>> = {
            let map = self.open.read();
            map.values().filter(|o| (o.key.copies, o.key.slot) == (copies, slot)).cloned().collect()
        };
        open.iter().filter(|o| o.state.lock().file.is_some()).map(|o| o.key).collect()
    }

    pub(super) fn dirty_of(&self, creator: VdiId) -> Vec<Arc<Open>> {
        self.dirty.lock().get(&creator).map(|of| of.values().cloned().collect()).unwrap_or_default()
    }

    pub(super) fn dirty_where(&self, wanted: impl Fn(&ObjectKey) -> bool) -> Vec<Arc<Open>> {
        let dirty = self.dirty.lock();
        dirty.values().flat_map(HashMap::values).filter(|open| wanted(&open.key)).cloned().collect()
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.open.read().len()
    }

    /// Whether something has to go before another object is opened.
    pub(super) fn is_full(&self) -> bool {
        self.table_bytes.load(Ordering::Relaxed) >= self.table_bytes_max
            || self.open.read().len() >= self.entries_max
    }

    /// Lets go of objects that nobody uses until there is room for another. Returns some dirty objects that
    /// should be synced, and the call repeated, when that was not enough.
    pub(super) fn shrink(&self) -> Vec<Arc<Open>> {
        let mut steps = 2 * self.hand.lock().len();
        while self.is_full() && steps > 0 {
            steps -= 1;
            let Some(key) = self.hand.lock().pop_front() else { break };
            let mut map = self.open.write();
            let Some(open) = map.get(&key) else { continue };
            let recently = open.used.swap(false, Ordering::Relaxed);
            // One holder is the map itself; with the map locked nobody can become another.
            if !recently && Arc::strong_count(open) == 1 {
                let gone = map.remove(&key);
                drop(map);
                // Closing the file may take a while.
                drop(gone);
            } else {
                self.hand.lock().push_back(key);
            }
        }
        if !self.is_full() {
            return Vec::new();
        }
        let dirty = self.dirty.lock();
        dirty.values().flat_map(HashMap::values).take(SYNC_BATCH).cloned().collect()
    }
}
