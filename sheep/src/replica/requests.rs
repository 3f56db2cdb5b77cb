//! Which client requests a copy has applied and may get again: part of the copy, in memory and on disk.
//!
//! What it keeps (decision 0015): a request is on disk before the version that it leads to, a record that is not
//! true of its copy is erased before the copy can be taken for another, and a full disk stops no write in place.

use std::sync::Arc;

use wire::id::VdiId;
use wire::peer::{AppliedRequest, Status, WriteRequest};

use super::{Replica, VdiGate, key_of};
use crate::store::{self, ObjectKey, Place};

impl Replica {
    /// Learns what an earlier process of this boot had applied. What its copy does not have is no longer kept.
    pub(super) fn recall(&self) {
        for (place, applied) in self.store.take_found_requests() {
            let held = key_of(&applied.object).ok().and_then(|key| self.store.version(&key).ok());
            if held.is_some_and(|version| version >= applied.version.into()) {
                let gate = self.vdi(applied.object.oid().creator());
                let free = gate.recent.lock().adopt(&applied, Some(place));
                self.store.free_requests(free);
            } else {
                self.erase([place]);
            }
        }
    }

    pub(super) fn erase(&self, places: impl IntoIterator<Item = Place>) {
        for place in places {
            // A disk that fails is noticed by whoever writes to it next; a record that stays is told by its version.
            if let Err(error) = self.store.erase_request(place) {
                _ = self.status(error);
            }
        }
    }

    /// The requests of an object are those of a copy that is no more.
    pub(super) fn forget_requests(&self, key: &ObjectKey) {
        let gate = self.vdi(key.oid.creator());
        let places = gate.recent.lock().take((key.oid, key.birth));
        self.erase(places);
    }

    /// This copy has applied exactly these requests, as far as they may come again.
    pub(super) fn adopt_requests(&self, key: &ObjectKey, applied: &[AppliedRequest]) -> Result<(), Status> {
        self.forget_requests(key);
        let gate = self.vdi(key.oid.creator());
        for one in applied.iter().filter(|a| key_of(&a.object) == Ok(*key)) {
            let place = self.keep(one)?;
            let free = gate.recent.lock().adopt(one, place);
            self.store.free_requests(free);
        }
        Ok(())
    }

    /// Keeps the client request that a write is part of, before the write is applied.
    pub(super) fn keep_request(&self, write: &WriteRequest) -> Result<Option<Place>, Status> {
        let Some(request) = write.request else { return Ok(None) };
        self.keep(&AppliedRequest {
            request,
            object: write.object,
            offset: write.offset,
            version: write.version,
            number: write.number,
        })
    }

    /// Where there is no space left the process remembers it: a write in place needs none and goes on.
    fn keep(&self, applied: &AppliedRequest) -> Result<Option<Place>, Status> {
        match self.store.keep_request(applied) {
            Ok(place) => Ok(Some(place)),
            Err(store::Error::NoSpace { .. }) => Ok(None),
            Err(error) => Err(self.status(error)),
        }
    }

    /// Writes that are remembered because their owners have not called them stable yet.
    pub(crate) fn recent_writes(&self) -> u64 {
        let gates: Vec<Arc<VdiGate>> = self.vdis.lock().values().cloned().collect();
        gates.iter().map(|gate| gate.recent.lock().len() as u64).sum()
    }

    /// Forgets what is known of a deleted VDI.
    pub(crate) fn forget_vdi(&self, vdi: VdiId) {
        let gate = self.vdis.lock().remove(&vdi);
        self.store.free_requests(gate.into_iter().flat_map(|gate| gate.recent.lock().places()));
    }
}
