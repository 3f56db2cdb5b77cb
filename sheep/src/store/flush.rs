//! What was written becomes durable.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use wire::id::{SlotIndex, VdiId};
use wire::policy::Copies;

use super::cache::Open;
use super::error::Error;
use super::key::ObjectKey;
use super::open::{LocalStore, SlotDir};
use crate::mutant::{Mutant, planted};

impl LocalStore {
    /// Makes the writes to these objects that have returned durable. Those with none, or gone, cost nothing.
    pub fn flush_objects(&self, keys: &[ObjectKey]) -> Result<(), Error> {
        let open = keys.iter().filter_map(|key| self.cache.peek(key)).filter(|open| open.is_dirty());
        self.sync_objects(&open.collect::<Vec<_>>())
    }

    /// Makes the writes to all objects that `creator` created durable, those of an earlier process too.
    pub fn flush_vdi(&self, creator: VdiId) -> Result<(), Error> {
        self.sync_objects(&self.cache.dirty_of(creator))
    }

    /// Makes the writes to all objects of a slot durable.
    pub fn flush_slot(&self, copies: Copies, slot: SlotIndex) -> Result<(), Error> {
        self.sync_objects(&self.cache.dirty_where(|key| (key.copies, key.slot) == (copies, slot)))
    }

    /// Makes all writes durable.
    pub fn flush_all(&self) -> Result<(), Error> {
        self.sync_objects(&self.cache.dirty_where(|_| true))
    }

    /// Lets time pass for the write intents; the node calls it every few seconds.
    pub fn tick(&self) -> Result<(), Error> {
        self.check_alive()?;
        self.intents.tick().map_err(|e| self.poison_if(e, self.intents.failure()))
    }

    /// Makes everything durable and leaves no suspects but the unsettled: for a clean stop, after the last write.
    pub fn close(&self) -> Result<(), Error> {
        self.flush_all()?;
        self.intents.close().map_err(|e| self.poison_if(e, self.intents.failure()))
    }

    pub(super) fn sync_objects(&self, objects: &[Arc<Open>]) -> Result<(), Error> {
        self.check_alive()?;
        let threads = self.options.flush_threads.min(objects.len());
        if threads <= 1 {
            return objects.iter().try_for_each(|open| self.sync_object(open));
        }
        let next = AtomicUsize::new(0);
        let failure = Mutex::new(None);
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    while let Some(open) = objects.get(next.fetch_add(1, Ordering::Relaxed)) {
                        if let Err(error) = self.sync_object(open) {
                            failure.lock().get_or_insert(error);
                        }
                    }
                });
            }
        });
        failure.into_inner().map_or(Ok(()), Err)
    }

    /// Makes one object durable: the guarantee behind FLUSH and FUA.
    pub(super) fn sync_object(&self, open: &Arc<Open>) -> Result<(), Error> {
        let ended = self.intents.ended(&open.key);
        match self.load(open) {
            // What of it can be opened is synced, damaged or not.
            Ok(_) | Err(Error::NotFound(_) | Error::Damaged { .. }) => {}
            Err(error) => return Err(error),
        }
        // The file of this very moment: what is written to one that takes its place is for the next sync. One that
        // is gone has nothing to lose.
        let sync = || {
            let file = open.state.lock().file.clone();
            file.map_or(Ok(()), |file| file.sync_data())
        };
        open.unsynced.sync(sync).map_err(|e| self.poison(&Error::io(&open.path, e)))?;
        if let Some(slot) = self.slot_dir(open.key.copies, open.key.slot) {
            self.sync_names(&slot)?;
        }
        self.intents.synced(&open.key, ended);
        self.cache.note_synced(open);
        Ok(())
    }

    /// Makes the names in a slot's directory durable.
    pub(super) fn sync_names(&self, slot: &SlotDir) -> Result<(), Error> {
        let sync = || if planted(Mutant::NamesUnsynced) { Ok(()) } else { self.fs.sync_dir(&slot.path) };
        slot.names.sync(sync).map_err(|e| self.poison(&Error::io(&slot.path, e)))
    }
}
