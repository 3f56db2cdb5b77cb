//! A node's copies as owners see them: checks of right and order in front of the store.
//!
//! Called by the peer server for other nodes and by [`crate::vdi`] for this one; calls
//! [`crate::store`]. What it keeps:
//!
//! - A request of an older generation or slot configuration than is known changes nothing (rules 2, 6).
//! - A write is applied only after its predecessor; one that is there already is answered as done (1, 9).
//! - Copies that catch up are told apart from those in sync, by the log alone (2).
//!
//! | file | holds |
//! |---|---|
//! | `lanes` | one object's operations run in order |
//! | `recent` | writes not yet called stable by their owner |
//! | `requests` | which client requests a copy has applied, in memory and on disk |
//! | `fill` | how far a slot has come that is catching up; pure |
//! | `filling` | the fills of all slots, and what may still land in them |
//! | `right` | what a request may do here, and whether it is a write's turn; pure |
//! | `serve` | requests from the wire: decode, do, answer |
//! | `catch_up` | the source's side of catching up: list and pull |

#[cfg(any(test, feature = "fuzz"))]
mod alone;
mod catch_up;
pub(crate) mod fill;
mod filling;
#[cfg(any(test, feature = "fuzz"))]
pub(crate) mod fuzz;
mod lanes;
mod recent;
mod requests;
pub(crate) mod right;
mod serve;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use wire::id::{Birth, Generation, Oid, SlotIndex, VdiId, Version};
use wire::peer::{
    Fence, ListReply, Listed, ObjectRef, OnDisk, SealReply, SealRequest, Status, TableReply, Unsettled,
    WriteKind, WriteReply, WriteRequest,
};
use wire::policy::Copies;

use crate::cluster::session::Me;
use crate::cluster::state::ClusterState;
use crate::cluster::view::View;
use crate::mutant::{Mutant, planted};
use crate::store::{self, LocalStore, ObjectKey};
pub(crate) use fill::{Kept, SlotFill};
use filling::fill_of;
use lanes::Lanes;
use recent::{Recent, RecentWrites};
pub(crate) use right::Role;
use right::{Order, Standing};
pub(crate) use serve::{pack, serve, unpack};

/// Locks that order a slot's changes against what catching up lists; a power of two.
const SLOT_GATES: usize = 256;

/// Counters of a replica, for `dog node stat`.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) writes: AtomicU64,
    pub(crate) bytes_written: AtomicU64,
    pub(crate) reads: AtomicU64,
    pub(crate) bytes_read: AtomicU64,
    pub(crate) flushes: AtomicU64,
    pub(crate) refused: AtomicU64,
    pub(crate) damaged: AtomicU64,
}

/// One VDI as a replica knows it.
#[derive(Debug, Default)]
struct VdiGate {
    /// Held shared while a write is checked and applied, exclusively while a generation is sealed: after a
    /// seal has been answered, nothing older lands.
    gate: RwLock<()>,
    recent: Mutex<RecentWrites>,
    /// The generation whose takeover is known to be complete.
    settled: AtomicU64,
}

/// A node's copies.
pub(crate) struct Replica {
    me: Arc<Me>,
    store: Arc<LocalStore>,
    view: View,
    lanes: Arc<Lanes>,
    vdis: Mutex<HashMap<VdiId, Arc<VdiGate>>>,
    fills: Mutex<HashMap<(Copies, SlotIndex), SlotFill>>,
    slot_gates: Vec<RwLock<()>>,
    /// Damaged blocks that writes wait for, since only a part of them is written.
    wanted: Mutex<BTreeSet<(ObjectKey, u32)>>,
    pub(crate) counters: Counters,
    /// The store failed for good; the node must be taken out of all in-sync sets.
    failed: tokio::sync::watch::Sender<Option<String>>,
}

impl Replica {
    pub(crate) fn new(me: Arc<Me>, store: Arc<LocalStore>, view: View) -> Arc<Self> {
        let replica = Arc::new(Self {
            me,
            store,
            view,
            lanes: Lanes::new(),
            vdis: Mutex::default(),
            fills: Mutex::default(),
            wanted: Mutex::default(),
            slot_gates: (0..SLOT_GATES).map(|_| RwLock::new(())).collect(),
            counters: Counters::default(),
            failed: tokio::sync::watch::channel(None).0,
        });
        replica.recall();
        replica
    }

    pub(crate) fn store(&self) -> &Arc<LocalStore> {
        &self.store
    }

    /// Says when the disk has failed, and how.
    pub(crate) fn failure(&self) -> tokio::sync::watch::Receiver<Option<String>> {
        self.failed.subscribe()
    }

    /// The disk is to be taken for failed.
    pub(crate) fn fail(&self, why: String) {
        if planted(Mutant::SyncAgain) {
            return;
        }
        self.failed.send_if_modified(|f| f.is_none() && f.replace(why).is_none());
    }

    fn vdi(&self, id: VdiId) -> Arc<VdiGate> {
        self.vdis.lock().entry(id).or_default().clone()
    }

    fn slot_gate(&self, slot: SlotIndex) -> &RwLock<()> {
        &self.slot_gates[slot.0 as usize % SLOT_GATES]
    }

    fn standing<'a>(&self, state: &'a ClusterState) -> Standing<'a> {
        Standing { me: self.me.session(), state }
    }

    pub(crate) fn role(&self, state: &ClusterState, copies: Copies, slot: SlotIndex) -> Role {
        self.standing(state).role(copies, slot)
    }

    /// Checks a request's right; `slot` where it is about one.
    fn check(
        &self,
        state: &ClusterState,
        fence: &Fence,
        slot: Option<(Copies, SlotIndex)>,
    ) -> Result<Role, Status> {
        self.standing(state).check(fence, self.store.sealed(fence.vdi()), slot)
    }

    /// A generation that was never sealed here is recorded before its first write counts.
    fn seal_if_new(&self, fence: &Fence) -> Result<(), Status> {
        if self.store.sealed(fence.vdi()) < fence.generation() {
            self.store.seal(fence.vdi(), fence.generation()).map_err(|e| self.status(e))?;
        }
        Ok(())
    }

    /// The wire's word for a store error; a broken disk is also reported to the node.
    pub(crate) fn status(&self, error: store::Error) -> Status {
        let status = match &error {
            store::Error::NotFound(_) => Status::NotFound,
            store::Error::Damaged { .. } => Status::Damaged,
            store::Error::NoSpace { .. } => Status::NoSpace,
            store::Error::Payload { .. } => Status::BadChecksum,
            store::Error::Invalid { .. } => Status::Invalid,
            store::Error::Io { .. }
            | store::Error::Poisoned(_)
            | store::Error::Format { .. }
            | store::Error::Locked { .. } => Status::Io,
        };
        match status {
            Status::Io => {
                tracing::error!(%error, "the disk failed");
                self.fail(error.to_string());
            }
            Status::Damaged => {
                self.counters.damaged.fetch_add(1, Ordering::Relaxed);
                tracing::error!(%error, "an object is damaged");
            }
            _ => {}
        }
        status
    }

    /// Creates an object. `done` is called once, perhaps on another thread.
    pub(crate) fn create(
        self: &Arc<Self>,
        fence: Fence,
        object: ObjectRef,
        done: impl FnOnce(Result<(), Status>) + Send + 'static,
    ) {
        let Ok(key) = key_of(&object) else { return done(Err(Status::Invalid)) };
        let replica = self.clone();
        self.lanes.submit(key, false, move || done(replica.create_now(&fence, &key, object.size)));
    }

    fn create_now(&self, fence: &Fence, key: &ObjectKey, size: u32) -> Result<(), Status> {
        let gate = self.vdi(fence.vdi());
        let _sealed = gate.gate.read();
        let _slot = self.slot_gate(key.slot).read();
        let state = self.view.state();
        let role = self.check(&state, fence, Some((key.copies, key.slot)))?;
        self.seal_if_new(fence)?;
        self.store.create(key, size).map_err(|e| self.status(e))?;
        if let Role::CatchingUp(since) = role {
            let mut fills = self.fills.lock();
            fill_of(&mut fills, key, since)?.created((key.oid, key.birth));
        }
        Ok(())
    }

    /// Applies a write in its object's order. `done` is called once, perhaps on another thread.
    pub(crate) fn write(
        self: &Arc<Self>,
        request: WriteRequest,
        data: Bytes,
        crcs: Vec<u32>,
        done: impl FnOnce(Result<WriteReply, Status>) + Send + 'static,
    ) {
        let Ok(key) = key_of(&request.object) else { return done(Err(Status::Invalid)) };
        // Nothing here may wait: the gates are only ever held exclusively for moments, but those may
        // contain a disk's sync.
        let gate = self.vdi(request.fence.vdi());
        let quick = self.store.sealed(request.fence.vdi()) >= request.fence.generation()
            && !gate.gate.is_locked_exclusive()
            && !self.slot_gate(key.slot).is_locked_exclusive()
            && self.store.is_quick_write(&key, u64::from(request.offset), u64::from(request.len));
        let replica = self.clone();
        self.lanes.submit(key, quick, move || done(replica.write_now(&gate, &key, &request, data, crcs)));
    }

    fn write_now(
        &self,
        gate: &VdiGate,
        key: &ObjectKey,
        request: &WriteRequest,
        data: Bytes,
        crcs: Vec<u32>,
    ) -> Result<WriteReply, Status> {
        let _sealed = gate.gate.read();
        let _slot = self.slot_gate(key.slot).read();
        let state = self.view.state();
        let role = self
            .check(&state, &request.fence, Some((key.copies, key.slot)))
            .inspect_err(|_| _ = self.counters.refused.fetch_add(1, Ordering::Relaxed))?;
        self.seal_if_new(&request.fence)?;
        let version = Version::from(request.version);
        let object = (key.oid, key.birth);
        let mut may_gap = false;
        if let Role::CatchingUp(since) = role {
            let mut fills = self.fills.lock();
            let fill = fill_of(&mut fills, key, since)?;
            may_gap = !fill.admitting;
            let kept = || Kept { request: *request, data: data.clone(), crcs: crcs.clone() };
            if fill.arrive(object, version, kept) == fill::Arrival::Deferred {
                return Ok(WriteReply { version: request.version, deferred: true });
            }
        }
        match self.apply(gate, key, request, data, crcs) {
            Err(Status::Gap | Status::NotFound) if may_gap => {
                if let Role::CatchingUp(since) = role {
                    fill_of(&mut self.fills.lock(), key, since)?.gap(object, version);
                }
                Ok(WriteReply { version: request.version, deferred: true })
            }
            Err(status) => Err(status),
            Ok(version) => Ok(WriteReply { version: version.into(), deferred: false }),
        }
    }

    /// Applies a write that follows the copy's version, or finds it applied already.
    fn apply(
        &self,
        gate: &VdiGate,
        key: &ObjectKey,
        request: &WriteRequest,
        data: Bytes,
        crcs: Vec<u32>,
    ) -> Result<Version, Status> {
        let version = Version::from(request.version);
        let have = self.store.version(key).map_err(|e| self.status(e))?;
        if right::order(have, request)? == Order::Done {
            return Ok(have);
        }
        let kind = match WriteKind::try_from(request.kind) {
            Ok(WriteKind::Data) if data.len() == request.len as usize => {
                store::WriteKind::Data { data, crcs }
            }
            Ok(WriteKind::Zero) => store::WriteKind::Zero { len: request.len.into(), punch: false },
            Ok(WriteKind::Punch) => store::WriteKind::Zero { len: request.len.into(), punch: true },
            _ => return Err(Status::Invalid),
        };
        let write = store::Write { version, offset: request.offset.into(), kind };
        // Kept before it is done: who finds a copy with this version finds the request too.
        let place = self.keep_request(request)?;
        self.store.write(key, &write).map_err(|e| {
            self.note_wanted(&e);
            self.erase(place);
            self.status(e)
        })?;
        let free = gate.recent.lock().note(
            request.fence.generation(),
            request.number,
            request.stable,
            request.inherited_done,
            Recent {
                object: request.object,
                offset: request.offset,
                version,
                request: request.request,
                place,
            },
        );
        self.store.free_requests(free);
        self.counters.writes.fetch_add(1, Ordering::Relaxed);
        self.counters.bytes_written.fetch_add(request.len.into(), Ordering::Relaxed);
        Ok(version)
    }

    /// Whether this node may be read for an owner.
    pub(crate) fn check_read(&self, fence: &Fence, object: &ObjectRef) -> Result<ObjectKey, Status> {
        let key = key_of(object)?;
        let state = self.view.state();
        let sealed = self.store.sealed(fence.vdi());
        self.standing(&state).check_read(fence, sealed, (key.copies, key.slot))?;
        Ok(key)
    }

    /// Removes one birth of an object.
    pub(crate) fn remove(
        self: &Arc<Self>,
        fence: Fence,
        object: ObjectRef,
        done: impl FnOnce(Result<(), Status>) + Send + 'static,
    ) {
        let Ok(key) = key_of(&object) else { return done(Err(Status::Invalid)) };
        let replica = self.clone();
        self.lanes.submit(key, false, move || {
            done(replica.remove_now(&fence, &key));
        });
    }

    fn remove_now(&self, fence: &Fence, key: &ObjectKey) -> Result<(), Status> {
        let gate = self.vdi(fence.vdi());
        let _sealed = gate.gate.read();
        let _slot = self.slot_gate(key.slot).read();
        let state = self.view.state();
        if let Role::CatchingUp(since) = self.check(&state, fence, Some((key.copies, key.slot)))? {
            fill_of(&mut self.fills.lock(), key, since)?.removed((key.oid, key.birth));
        }
        self.remove_copy(key)
    }

    /// Removes this node's copy of an object, and what is remembered of it. Blocks.
    pub(crate) fn remove_copy(&self, key: &ObjectKey) -> Result<(), Status> {
        self.forget_requests(key);
        self.store.remove(key).map(drop).map_err(|e| self.status(e))
    }

    /// Records a generation durably and tells what may differ between copies: up to `part` objects and as
    /// many requests, after those that the question names. Blocks.
    pub(crate) fn seal(&self, request: &SealRequest, part: usize) -> Result<SealReply, Status> {
        let vdi = request.fence.vdi();
        let gate = self.vdi(vdi);
        let _exclusive = gate.gate.write();
        self.check(&self.view.state(), &request.fence, None)?;
        self.seal_if_new(&request.fence)?;
        let recent = gate.recent.lock();
        let after = (Generation(request.after_generation), request.after_number);
        let (applied, more_applied) = recent.requests(after, part);
        let mut candidates: BTreeMap<(Oid, Birth), (ObjectKey, bool)> = BTreeMap::new();
        for object in recent.objects() {
            let key = key_of(&object)?;
            candidates.insert((key.oid, key.birth), (key, false));
        }
        drop(recent);
        for (key, _) in self.store.suspects().into_iter().filter(|(k, _)| k.oid.creator() == vdi) {
            candidates.insert((key.oid, key.birth), (key, true));
        }
        let after_object = request.after_object.map(|o| (o.oid(), o.birth()));
        let mut rest = candidates.into_iter().filter(|(name, _)| Some(*name) > after_object);
        let mut unsettled = Vec::new();
        for (_, (key, suspect)) in rest.by_ref() {
            let described = self.object_ref(&key).and_then(|object| {
                let Some(object) = object else { return Ok(None) };
                let version = self.store.version(&key).map_err(|e| self.status(e))?.into();
                Ok(Some(Unsettled { object, version, suspect }))
            });
            match described {
                Ok(found) => unsettled.extend(found),
                // Other copies tell of it, if there are any; whoever reads it is told that it is damaged.
                Err(Status::Damaged) => {}
                Err(status) => return Err(status),
            }
            if unsettled.len() == part {
                break;
            }
        }
        let more = more_applied.is_some() || rest.next().is_some();
        // With none left, the next part of the other list repeats nothing of this one.
        let (generation, number) = more_applied.unwrap_or((Generation(u64::MAX), u64::MAX));
        Ok(SealReply { unsettled, applied, more, generation: generation.0, number })
    }

    /// An object's wire name with its size, if it is there.
    fn object_ref(&self, key: &ObjectKey) -> Result<Option<ObjectRef>, Status> {
        match self.store.size(key) {
            Ok(size) => Ok(Some(ref_of(key, size))),
            Err(store::Error::NotFound(_)) => Ok(None),
            Err(error) => Err(self.status(error)),
        }
    }

    /// The generation's takeover is complete: what was suspect in sync has been compared. What catches up has
    /// not: were it no longer suspect, a copy that lost bytes with the power and kept its version would pass
    /// for equal.
    pub(crate) fn settled(&self, fence: &Fence) -> Result<(), Status> {
        let state = self.view.state();
        self.check(&state, fence, None)?;
        let vdi = fence.vdi();
        self.vdi(vdi).settled.fetch_max(fence.generation, Ordering::AcqRel);
        for (key, _) in self.store.suspects().into_iter().filter(|(k, _)| k.oid.creator() == vdi) {
            if self.role(&state, key.copies, key.slot) == Role::InSync {
                self.store.clear_suspect(&key);
            }
        }
        Ok(())
    }

    /// A copy's version and block table; for a suspect copy also which blocks are damaged. Blocks.
    pub(crate) fn table(&self, fence: &Fence, object: &ObjectRef) -> Result<TableReply, Status> {
        let key = self.check_read(fence, object)?;
        self.table_of(&key)
    }

    fn table_of(&self, key: &ObjectKey) -> Result<TableReply, Status> {
        let version = self.store.version(key).map_err(|e| self.status(e))?.into();
        let entries = self.store.table(key).map_err(|e| self.status(e))?;
        let mask = self.store.suspects().iter().find(|(k, _)| k == key).map(|(_, mask)| *mask);
        let damaged = match mask {
            Some(mask) => self.store.settle_torn(key, mask).map_err(|e| self.status(e))?,
            None => Vec::new(),
        };
        let entries = entries.iter().flat_map(|e| [e.crc, e.stamp]).collect();
        Ok(TableReply { version, entries, damaged, ..TableReply::default() })
    }

    /// Reads a copy in full, and its head from the disk anew. Blocks.
    pub(crate) fn verify(&self, key: &ObjectKey) -> Result<TableReply, Status> {
        let found = self.store.on_disk(key).map_err(|e| self.status(e))?;
        let mut damaged = self.store.verify(key).map_err(|e| self.status(e))?;
        damaged.extend(found.blocks);
        damaged.sort_unstable();
        damaged.dedup();
        let on_disk = match found.astray {
            None => OnDisk::Same,
            Some(store::Astray::Gone) => OnDisk::Gone,
            Some(store::Astray::Other) => OnDisk::Other,
        };
        if on_disk != OnDisk::Same {
            self.counters.damaged.fetch_add(1, Ordering::Relaxed);
            tracing::error!(object = %key, ?on_disk, "the disk does not have the file that is in use");
        }
        let version = self.store.version(key).map_err(|e| self.status(e))?.into();
        Ok(TableReply { version, entries: Vec::new(), damaged, on_disk: on_disk.into() })
    }

    /// Makes everything of a VDI durable. Blocks.
    pub(crate) fn flush(&self, fence: &Fence) -> Result<(), Status> {
        let state = self.view.state();
        self.check(&state, fence, None)?;
        // As with a write: who is left must know who was taken out.
        if state.epoch().0 < fence.epoch {
            return Err(Status::Busy);
        }
        self.counters.flushes.fetch_add(1, Ordering::Relaxed);
        self.store.flush_vdi(fence.vdi()).map_err(|e| self.status(e))
    }

    /// Confirms that nobody has superseded an owner as far as this copy knows.
    pub(crate) fn confirm(&self, fence: &Fence, object: &ObjectRef) -> Result<(), Status> {
        let key = key_of(object)?;
        self.check(&self.view.state(), fence, Some((key.copies, key.slot))).map(drop)
    }

    /// The objects of a VDI that this node holds, from `after` on.
    pub(crate) fn list_vdi(
        &self,
        vdi: VdiId,
        after: Option<(Oid, Birth)>,
        limit: usize,
    ) -> Result<ListReply, Status> {
        let mut keys = self.store.list_vdi(vdi).map_err(|e| self.status(e))?;
        keys.sort_unstable_by_key(|k| (k.oid, k.birth));
        let mut reply = ListReply::default();
        for key in keys.into_iter().filter(|k| after.is_none_or(|a| (k.oid, k.birth) > a)) {
            if reply.objects.len() == limit {
                reply.more = true;
                break;
            }
            let Some(object) = self.object_ref(&key)? else { continue };
            let version = self.store.version(&key).map_err(|e| self.status(e))?.into();
            reply.objects.push(Listed { object, version });
        }
        Ok(reply)
    }
}

/// An object's store key; refused where the wire's numbers are out of range.
pub(crate) fn key_of(object: &ObjectRef) -> Result<ObjectKey, Status> {
    let copies = Copies::new(object.copies.into()).map_err(|_| Status::Invalid)?;
    if object.birth == 0 || object.oid().kind().is_none() {
        return Err(Status::Invalid);
    }
    Ok(ObjectKey { copies, slot: SlotIndex(object.slot), oid: object.oid(), birth: object.birth() })
}

pub(crate) fn ref_of(key: &ObjectKey, size: u32) -> ObjectRef {
    ObjectRef::new(key.oid, key.birth, key.copies, key.slot, size)
}
