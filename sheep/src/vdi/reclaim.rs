//! Objects that hold nothing any more are taken out of the map and removed.
//!
//! Called by [`super::owners`] every now and then. An object that clients discard as a whole gives its space back at once,
//! as any range does, and stays: its copies know which requests they have applied, and one whose answer was lost comes again.
//! Once none of them can, the object is only a name.

use futures::StreamExt;
use wire::id::ObjectKind;
use wire::peer::ObjectRef;

use super::object::Object;
use super::owner::{IoFailure, Owner, Slot};
use super::settle::Copy;
use crate::mutant::{Mutant, planted};

/// Objects looked at in one turn, and how many at once.
const OBJECTS_MAX: usize = 1024;
const PARALLEL: usize = 8;

impl Owner {
    /// Takes objects that hold nothing and have been told everything out of the map; they are removed with the next flush.
    pub(crate) async fn reclaim(&self) -> Result<(), IoFailure> {
        let some: Vec<u64> = self.emptied.lock().iter().take(OBJECTS_MAX).copied().collect();
        if some.is_empty() {
            return Ok(());
        }
        let _admitted = self.admission.read().await;
        let reclaimed = futures::stream::iter(some).map(async |index| (index, self.reclaim_one(index).await));
        let mut reclaimed = std::pin::pin!(reclaimed.buffer_unordered(PARALLEL));
        let mut all = Ok(());
        while let Some((index, one)) = reclaimed.next().await {
            match one {
                Ok(true) => _ = self.emptied.lock().remove(&index),
                Ok(false) => {}
                Err(failure) => all = Err(failure),
            }
        }
        all
    }

    /// Whether there is nothing more to be done for an object.
    async fn reclaim_one(&self, index: u64) -> Result<bool, IoFailure> {
        let cell = self.cell(index);
        // Who uses it will not wait for this.
        let Ok(mut slot) = cell.gate.try_write() else { return Ok(false) };
        self.resolve(index, &mut slot).await?;
        let Slot::There(object) = &*slot else { return Ok(true) };
        if !self.is_told(object) {
            return Ok(false);
        }
        let name = object.name;
        if !self.table(name).await?.iter().zip(0..).all(|(entry, block)| entry.is_absent(block)) {
            return Ok(true);
        }
        self.set_entry(index, None).await?;
        *slot = Slot::Hole;
        if planted(Mutant::DeleteEarly) {
            self.remove_object(name).await?;
            return Ok(true);
        }
        self.doomed.lock().push(name);
        Ok(true)
    }

    /// Whether no request that was applied to an object can come again.
    fn is_told(&self, object: &Object) -> bool {
        object.last_number() < self.stability.mark() && self.inherited_nothing(&object.name)
            || planted(Mutant::ReclaimSoon)
    }

    /// Takes an object without any copy that could be used out of the map.
    pub(super) async fn drop_lost(&self, index: u64) -> Result<(), IoFailure> {
        let cell = self.cell(index);
        let mut slot = cell.gate.write().await;
        let name = match &*slot {
            Slot::There(object) => Some(object.name),
            Slot::Hole => None,
            Slot::Unknown => self.lookup(index).await?.map(|entry| self.data_name(index, entry)),
        };
        let Some(name) = name else { return Ok(()) };
        self.set_entry(index, None).await?;
        *slot = Slot::Hole;
        self.doomed.lock().push(name);
        Ok(())
    }

    /// Notes an object of an earlier owner if its copies hold nothing.
    pub(super) fn note_emptied(&self, object: &ObjectRef, copies: &[Copy]) {
        let absent = |c: &Copy| c.table.iter().zip(0..).all(|(entry, block)| entry.is_absent(block));
        if object.oid().kind() == Some(ObjectKind::Data) && copies.iter().all(absent) {
            self.emptied.lock().insert(object.oid().index());
        }
    }
}
