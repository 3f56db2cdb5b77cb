//! The source's side of catching up: what a slot holds, and copies of its objects; and settling patches.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::BytesMut;
use wire::frame::Payload;
use wire::id::{Generation, SlotIndex, VdiId, Version};
use wire::peer::{
    AppliedRequest, CatchUpRequest, LendReply, ListReply, Listed, PatchRequest, PullReply, Status,
};
use wire::policy::Copies;

use super::fill::newest;
use super::serve::unpack_blocks;
use super::{Replica, key_of, ref_of};
use crate::cluster::state::ClusterState;
use crate::store::{self, BlockCopy, BlockEntry, ObjectKey};

/// Bytes of blocks in one answer to PULL; one lane stands still for as long as it takes to read them.
const PULL_BYTES_MAX: usize = 8 << 20;
/// Damaged blocks that are remembered because a write waits for them.
const WANTED_MAX: usize = 1024;

impl Replica {
    fn check_source(&self, request: &CatchUpRequest) -> Result<(Copies, SlotIndex), Status> {
        let applied = self.view.applied();
        self.standing(&applied.state).check_source(applied.index, request)
    }

    fn check_settled(&self, state: &ClusterState, vdi: VdiId) -> Result<(), Status> {
        let settled = self.vdi(vdi).settled.load(std::sync::atomic::Ordering::Acquire);
        self.standing(state).check_settled(vdi, Generation(settled))
    }

    /// The slot's objects with their versions, in order.
    pub(super) fn list_slot(&self, request: &CatchUpRequest, limit: usize) -> Result<ListReply, Status> {
        let (copies, slot) = self.check_source(request)?;
        // Whoever began under an older configuration has ended once this has been held.
        drop(self.slot_gate(slot).write());
        let mut listed = self.store.list_slot(copies, slot).map_err(|e| self.status(e))?;
        listed.sort_unstable_by_key(|o| (o.oid, o.birth));
        let state = self.view.state();
        let vdis: BTreeSet<VdiId> = listed.iter().map(|o| o.oid.creator()).collect();
        vdis.iter().try_for_each(|vdi| self.check_settled(&state, *vdi))?;
        let after = request.after.map(|o| (o.oid(), o.birth()));
        let mut reply = ListReply::default();
        for stat in listed.into_iter().filter(|o| after.is_none_or(|a| (o.oid, o.birth) > a)) {
            if reply.objects.len() == limit {
                reply.more = true;
                break;
            }
            let key = ObjectKey { copies, slot, oid: stat.oid, birth: stat.birth };
            // A copy whose head is damaged is listed by whoever else is in sync; its owner mends it.
            let Some((version, size)) = stat.content else { return Err(Status::Damaged) };
            reply.objects.push(Listed { object: ref_of(&key, size), version: version.into() });
        }
        Ok(reply)
    }

    /// A copy of an object between two writes, without the blocks that the asker has. In its lane. Blocks.
    pub(super) fn pull(
        &self,
        request: &CatchUpRequest,
        key: &ObjectKey,
    ) -> Result<(PullReply, Payload), Status> {
        let (copies, slot) = self.check_source(request)?;
        if (key.copies, key.slot) != (copies, slot) {
            return Err(Status::Invalid);
        }
        let state = self.view.state();
        self.check_settled(&state, key.oid.creator())?;
        let version = self.store.version(key).map_err(|e| self.status(e))?;
        if request.at_least.is_some_and(|v| version < Version::from(v)) {
            // What is missing may be a write of a part of a block that is damaged here.
            let damaged = if request.lends { self.wanted(key)? } else { Vec::new() };
            return if damaged.is_empty() { Err(Status::Busy) } else { Ok(damaged_reply(version, damaged)) };
        }
        let table = self.store.table(key).map_err(|e| self.status(e))?;
        let theirs: Vec<BlockEntry> =
            request.entries.chunks_exact(2).map(|e| BlockEntry { crc: e[0], stamp: e[1] }).collect();
        let mut reply = PullReply { version: version.into(), ..PullReply::default() };
        let mut present = Vec::new();
        for (index, entry) in (0u32..).zip(&table) {
            if theirs.get(index as usize) == Some(entry) {
                continue;
            }
            if present.len() * wire::checksum::BLOCK_SIZE >= PULL_BYTES_MAX {
                reply.more = true;
                break;
            }
            reply.blocks.extend([index, entry.crc, entry.stamp]);
            if entry.is_present() {
                present.push(index);
            }
        }
        let blocks = match self.store.read_blocks(key, &present) {
            Err(error @ store::Error::Damaged { .. }) if request.lends => {
                _ = self.status(error);
                return Ok(damaged_reply(version, self.damaged_of(key, &present)?));
            }
            blocks => blocks.map_err(|e| self.status(e))?,
        };
        if !reply.more {
            let gate = self.vdi(key.oid.creator());
            reply.applied = gate.recent.lock().of_object((key.oid, key.birth));
        }
        let mut data = BytesMut::with_capacity(present.len() * wire::checksum::BLOCK_SIZE);
        blocks.iter().filter_map(|b| b.data.as_ref()).for_each(|b| data.extend_from_slice(b));
        Ok((reply, Payload::new(0, data.freeze())))
    }

    /// Those of some blocks that are damaged.
    fn damaged_of(&self, key: &ObjectKey, blocks: &[u32]) -> Result<Vec<u32>, Status> {
        let mut damaged = Vec::new();
        for index in blocks {
            match self.store.read_blocks(key, &[*index]) {
                Ok(_) => {}
                Err(store::Error::Damaged { .. }) => damaged.push(*index),
                Err(error) => return Err(self.status(error)),
            }
        }
        Ok(damaged)
    }

    /// Notes the damaged block that a write could not be merged with.
    pub(super) fn note_wanted(&self, error: &store::Error) {
        if let store::Error::Damaged { key, part: store::Part::Block(index) } = error {
            let mut wanted = self.wanted.lock();
            if wanted.len() < WANTED_MAX {
                wanted.insert((*key, *index));
            }
        }
    }

    /// Blocks of an object that a write waits for and that are damaged still.
    fn wanted(&self, key: &ObjectKey) -> Result<Vec<u32>, Status> {
        let noted: Vec<u32> = {
            let mut wanted = self.wanted.lock();
            let of_object: Vec<_> = wanted.range((*key, 0)..=(*key, u32::MAX)).copied().collect();
            of_object.iter().for_each(|noted| _ = wanted.remove(noted));
            of_object.into_iter().map(|(_, index)| index).collect()
        };
        let damaged = self.damaged_of(key, &noted)?;
        self.wanted.lock().extend(damaged.iter().map(|index| (*key, *index)));
        Ok(damaged)
    }

    /// Takes from a copy that catches up what is damaged in this one, if that copy can only have the same: see
    /// [`LocalStore::borrow`](store::LocalStore::borrow). In the object's lane. Blocks.
    pub(super) fn borrow(
        &self,
        request: &CatchUpRequest,
        key: &ObjectKey,
        payload: &Payload,
    ) -> Result<LendReply, Status> {
        if (key.copies, key.slot) != self.check_source(request)? {
            return Err(Status::Invalid);
        }
        // Until then a block may be torn that the owner is about to settle.
        self.check_settled(&self.view.state(), key.oid.creator())?;
        let offered = unpack_copies(&request.lent, payload)?;
        let taken = self.store.borrow(key, &offered).map_err(|e| self.status(e))?;
        if taken > 0 {
            tracing::info!(object = %key, blocks = taken, "damaged blocks were mended from a copy that catches up");
        }
        Ok(LendReply { taken })
    }

    /// Brings blocks to what the settled copy has. In the object's lane. Blocks.
    pub(super) fn patch(&self, request: &PatchRequest, payload: &Payload) -> Result<(), Status> {
        let key = key_of(&request.object)?;
        let gate = self.vdi(request.fence.vdi());
        let _sealed = gate.gate.read();
        self.check(&self.view.state(), &request.fence, Some((key.copies, key.slot)))?;
        if self.store.reinstate(&key).map_err(|e| self.status(e))? {
            tracing::warn!(object = %key, "put a file back that was not on disk as it is in use");
        }
        if !request.accept.is_empty() {
            self.store.accept_torn(&key, &request.accept).map_err(|e| self.status(e))?;
        }
        self.put_blocks(&key, &request.blocks, payload)?;
        if let Some(list) = &request.applied {
            self.adopt_requests(&key, &list.applied)?;
        }
        self.store.set_version(&key, request.version.into()).map_err(|e| self.status(e))
    }

    /// Writes packed blocks, whose present ones are in the payload in order.
    pub(crate) fn put_blocks(
        &self,
        key: &ObjectKey,
        packed: &[u32],
        payload: &Payload,
    ) -> Result<(), Status> {
        let blocks = unpack_copies(packed, payload)?;
        self.store.patch(key, &blocks).map_err(|e| self.status(e))
    }

    /// Ends a pull in the object's lane: the copy has the source's `version`; writes that came meanwhile
    /// are applied after it.
    pub(crate) async fn finish_pull(
        self: &Arc<Self>,
        key: ObjectKey,
        since: u64,
        version: Version,
        applied: Vec<AppliedRequest>,
    ) -> Result<(), Status> {
        let finish = move |replica: &Self| replica.finish_pull_now(&key, since, version, &applied);
        self.while_catching_up(key, since, finish).await
    }

    pub(super) fn finish_pull_now(
        &self,
        key: &ObjectKey,
        since: u64,
        version: Version,
        applied: &[AppliedRequest],
    ) -> Result<(), Status> {
        // Before the version: who has it is taken for equal, and believed what it says of requests.
        self.adopt_requests(key, applied)?;
        self.store.set_version(key, version).map_err(|e| self.status(e))?;
        self.store.clear_suspect(key);
        let name = (key.oid, key.birth);
        let kept = self.with_fill(key.copies, key.slot, since, |fill| fill.finish(name));
        let kept = kept.flatten().unwrap_or_default();
        let newest = newest(&kept);
        for write in kept {
            if Version::from(write.request.version) <= version {
                continue;
            }
            let gate = self.vdi(write.request.fence.vdi());
            if let Err(status) = self.apply(&gate, key, &write.request, write.data, write.crcs) {
                self.with_fill(key.copies, key.slot, since, |fill| fill.gap(name, newest));
                if !matches!(status, Status::Gap | Status::NotFound) {
                    return Err(status);
                }
                break;
            }
        }
        Ok(())
    }
}

fn damaged_reply(version: Version, damaged: Vec<u32>) -> (PullReply, Payload) {
    let reply = PullReply { version: version.into(), more: true, damaged, ..PullReply::default() };
    (reply, Payload::empty())
}

/// Blocks from their entries and a payload that holds the present ones in order.
fn unpack_copies(packed: &[u32], payload: &Payload) -> Result<Vec<BlockCopy>, Status> {
    payload.verify().map_err(|_| Status::BadChecksum)?;
    let mut at = 0;
    let mut blocks = Vec::with_capacity(packed.len() / 3);
    for (index, entry) in unpack_blocks(packed) {
        let data = if entry.is_present() {
            let end = at + wire::checksum::BLOCK_SIZE;
            let block = payload.data().get(at..end).ok_or(Status::Invalid)?;
            at = end;
            Some(payload.data().slice_ref(block))
        } else {
            None
        };
        blocks.push(BlockCopy { index, entry, data });
    }
    Ok(blocks)
}
