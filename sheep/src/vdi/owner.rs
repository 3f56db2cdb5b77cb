//! A VDI at its owner: reads, writes, zeroes and flushes by byte range.
//!
//! Called by [`crate::gateway`] for clients of this node and of others. One owner exists per (vdi,
//! generation); it is born by an `Acquire` in the log, takes over ([`super::takeover`]), serves, and ends
//! when the log names another generation.
//!
//! Locks, outermost first: `admission` (shared by every request, exclusive to hand over), a cell's `gate`
//! (shared by requests to an allocated object, exclusive to create or drop it), the tree's `grow`, an
//! object's turns.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{RwLock, watch};
use wire::frame::Payload;
use wire::id::{Birth, Generation, Oid, Session, VdiId};
use wire::peer::{AppliedRequest, ObjectRef, RequestId};
use wire::policy::Copies;

use super::clients::{Clients, Outcome};
use super::context::{Context, LOOK_AGAIN, RETRY_DELAY};
use super::flush::Dirty;
use super::map::Entry;
use super::object::{Change, Object};
use super::span::{Span, spans};
use super::stability::Stability;
use super::tree::Tree;
use crate::cluster::state::{ClusterState, OBJECT_SIZE};
use crate::store::Segment;

/// Cells kept for objects that nobody uses at the moment; some 300 bytes each.
const CELLS_MAX: usize = 32 << 10;
/// Requests of one client request to different objects at once.
const PARALLEL: usize = 8;

/// Why a request to an owner failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum IoFailure {
    /// The VDI has, or is about to have, another owner: ask that one.
    #[error("not the owner")]
    NotOwner,
    /// A higher attach generation of the client is known.
    #[error("fenced by a later attachment")]
    Fenced,
    /// There is no space for a new object.
    #[error("no space")]
    NoSpace,
    /// All copies are damaged.
    #[error("no undamaged copy")]
    Io,
}

/// Whether an object exists.
pub(super) enum Slot {
    Unknown,
    Hole,
    There(Arc<Object>),
}

pub(super) struct Cell {
    pub(super) gate: RwLock<Slot>,
}

/// A VDI at its owner.
pub(crate) struct Owner {
    pub(crate) context: Arc<Context>,
    pub(crate) vdi: VdiId,
    pub(crate) generation: Generation,
    pub(crate) copies: Copies,
    pub(crate) min_copies: u8,
    pub(crate) size: u64,
    pub(crate) object_count: u64,
    pub(crate) stability: Stability,
    pub(crate) tree: Tree,
    pub(crate) clients: Clients,
    cells: Mutex<HashMap<u64, Arc<Cell>>>,
    births: AtomicU64,
    pub(super) dirty: Mutex<Dirty>,
    pub(super) flush: tokio::sync::Mutex<u64>,
    pub(super) flush_tickets: AtomicU64,
    /// Objects that the map no longer names; removed once that is durable (rule 11).
    pub(super) doomed: Mutex<Vec<ObjectRef>>,
    /// Objects that may hold nothing any more, by index: see [`super::reclaim`].
    pub(super) emptied: Mutex<BTreeSet<u64>>,
    /// Client requests that an earlier owner had applied.
    inherited: Mutex<HashMap<(RequestId, ObjectRef, u32), ()>>,
    /// Whether that is all of them.
    inherited_all: AtomicBool,
    inherited_done: AtomicBool,
    waiting: Arc<AtomicU32>,
    pub(super) admission: RwLock<()>,
    released: AtomicBool,
    serving: watch::Sender<bool>,
    /// Who knows that this generation's takeover is done.
    told: Mutex<HashSet<Session>>,
    damaged: Mutex<HashSet<ObjectRef>>,
}

/// A request of this node's own gateway under way.
pub(crate) struct OwnRequest<'a> {
    owner: &'a Owner,
    request: RequestId,
}

impl OwnRequest<'_> {
    /// Passes on what came of it.
    pub(crate) fn outcome(self, outcome: Outcome) -> Outcome {
        self.owner.stability.ended(self.owner.clients.end_own(self.request), outcome);
        outcome
    }
}

impl Drop for OwnRequest<'_> {
    fn drop(&mut self) {
        // Nobody waits for it any more, unless it has had its outcome.
        self.owner.stability.ended(self.owner.clients.end_own(self.request), Ok(()));
    }
}

/// Counts as long as something waits for copies to come back.
pub(crate) struct Waiting(Arc<AtomicU32>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Owner {
    /// The owner for a generation that this node's session was given in `state`.
    pub(crate) fn new(context: Arc<Context>, vdi: &crate::cluster::state::Vdi) -> Arc<Self> {
        Arc::new(Self {
            vdi: vdi.id,
            generation: vdi.owner.generation,
            copies: vdi.copies,
            min_copies: vdi.min_copies,
            size: vdi.size,
            object_count: vdi.object_count(),
            stability: Stability::new(),
            tree: Tree::default(),
            clients: Clients::default(),
            cells: Mutex::default(),
            births: AtomicU64::new(1),
            dirty: Mutex::new(Dirty { everybody: true, ..Dirty::default() }),
            flush: tokio::sync::Mutex::new(0),
            flush_tickets: AtomicU64::new(0),
            doomed: Mutex::default(),
            emptied: Mutex::default(),
            inherited: Mutex::default(),
            inherited_all: AtomicBool::new(false),
            inherited_done: AtomicBool::new(false),
            waiting: Arc::default(),
            admission: RwLock::new(()),
            released: AtomicBool::new(false),
            serving: watch::channel(false).0,
            told: Mutex::default(),
            damaged: Mutex::default(),
            context,
        })
    }

    /// The newest state, if this owner is still the VDI's.
    pub(crate) fn current(&self) -> Result<Arc<ClusterState>, IoFailure> {
        let state = self.context.view.state();
        if self.is_owner_in(&state) { Ok(state) } else { Err(IoFailure::NotOwner) }
    }

    /// Whether a state names this owner.
    pub(crate) fn is_owner_in(&self, state: &ClusterState) -> bool {
        let owner = state.vdi(self.vdi).map(|v| v.owner);
        owner.is_some_and(|o| o.session == Some(self.context.me()) && o.generation == self.generation)
    }

    /// The takeover is done: requests may go on.
    pub(crate) fn begin_serving(&self) {
        self.serving.send_replace(true);
    }

    /// Notes who has been told that the takeover is done.
    pub(crate) fn note_told(&self, sessions: impl IntoIterator<Item = Session>) {
        self.told.lock().extend(sessions);
    }

    /// Nodes that have come since the takeover and do not know that it is done. Others catch up from them
    /// once they do.
    pub(crate) fn untold(&self, state: &ClusterState) -> Vec<Session> {
        let told = self.told.lock();
        state.holders().filter(|s| !told.contains(s)).collect()
    }

    pub(crate) fn is_serving(&self) -> bool {
        *self.serving.borrow()
    }

    /// Waits for the takeover to be done; an error if the VDI gets another owner first.
    pub(crate) async fn served(&self) -> Result<(), IoFailure> {
        let mut serving = self.serving.subscribe();
        loop {
            if *serving.borrow_and_update() {
                break;
            }
            self.current()?;
            let _either = tokio::time::timeout(LOOK_AGAIN, serving.changed()).await;
        }
        if self.released.load(Ordering::Acquire) { Err(IoFailure::NotOwner) } else { Ok(()) }
    }

    /// Counts a request as waiting for copies until the guard is dropped.
    pub(crate) fn waiting_for_copies(&self) -> Waiting {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        Waiting(self.waiting.clone())
    }

    /// What requests wait for, if any do; for people.
    pub(crate) fn waits_for(&self) -> String {
        let requests = self.waiting.load(Ordering::Relaxed);
        if requests == 0 {
            return String::new();
        }
        let state = self.context.view.state();
        let dead: Vec<String> = state
            .nodes()
            .filter(|n| !n.spec.gateway && n.live_session().is_none())
            .map(|n| format!("{} at {}", n.spec.session.node, n.spec.admin))
            .collect();
        format!(
            "{requests} requests wait for {} copies in sync; not there: {}",
            self.min_copies,
            if dead.is_empty() { "nobody (copies are catching up)".to_owned() } else { dead.join(", ") }
        )
    }

    pub(crate) fn object_name(&self, oid: Oid, birth: Birth, size: u32) -> ObjectRef {
        let slot = self.context.view.state().slot_of(oid);
        ObjectRef::new(oid, birth, self.copies, slot, size)
    }

    /// A birth that was never used before.
    pub(crate) fn next_birth(&self) -> Result<Birth, IoFailure> {
        let counter = self.births.fetch_add(1, Ordering::Relaxed);
        // 16 million creations in one generation: the next generation has as many.
        Birth::new(self.generation, counter).ok_or(IoFailure::NoSpace)
    }

    /// Learns what an earlier owner had applied for clients that may send it again; `complete` if that is all.
    pub(crate) fn inherit(&self, applied: impl IntoIterator<Item = AppliedRequest>, complete: bool) {
        let mut inherited = self.inherited.lock();
        inherited.extend(applied.into_iter().map(|a| ((a.request, a.object, a.offset), ())));
        self.inherited_all.store(complete, Ordering::Release);
        self.inherited_done.store(complete && inherited.is_empty(), Ordering::Release);
    }

    /// Whether an earlier owner has applied this part of a request everywhere.
    pub(crate) fn was_applied(&self, id: RequestId, object: &ObjectRef, offset: u32) -> bool {
        !self.inherited_done() && self.inherited.lock().contains_key(&(id, *object, offset))
    }

    /// Whether nothing that an earlier owner applied to an object can be sent again.
    pub(super) fn inherited_nothing(&self, name: &ObjectRef) -> bool {
        self.inherited_done()
            || self.inherited_all.load(Ordering::Acquire)
                && !self.inherited.lock().keys().any(|(_, object, _)| object == name)
    }

    pub(crate) fn inherited_done(&self) -> bool {
        self.inherited_done.load(Ordering::Acquire)
    }

    /// Forgets inherited requests that can no longer be sent again: answered, or their gateway is dead.
    pub(crate) fn forget_inherited(&self, gone: impl Fn(&RequestId) -> bool) {
        if self.inherited_done() {
            return;
        }
        let mut inherited = self.inherited.lock();
        inherited.retain(|(id, _, _), ()| !gone(id));
        let complete = self.inherited_all.load(Ordering::Acquire);
        self.inherited_done.store(complete && inherited.is_empty(), Ordering::Release);
    }

    /// Processes of gateways whose inherited requests may still come again.
    pub(crate) fn inherited_from(&self) -> HashSet<Session> {
        let inherited = self.inherited.lock();
        inherited.keys().map(|(id, _, _)| id.process()).collect()
    }

    /// A write has come to its end at every member.
    pub(crate) fn finished(&self, number: u64, request: Option<RequestId>) {
        let kept = request.is_some_and(|request| {
            // The gateway may still send it again.
            if self.clients.is_remote(&request, self.context.me()) {
                self.clients.keep_number(request, number)
            } else {
                self.clients.keep_own_number(request, number)
            }
        });
        if !kept {
            self.stability.end(number);
        }
    }

    /// A request of this node's own gateway begins; it ends with what is returned.
    pub(crate) fn begin_own(&self, request: RequestId) -> OwnRequest<'_> {
        self.clients.begin_own(request);
        OwnRequest { owner: self, request }
    }

    pub(super) fn cell(&self, index: u64) -> Arc<Cell> {
        let mut cells = self.cells.lock();
        if let Some(cell) = cells.get(&index) {
            return cell.clone();
        }
        if cells.len() >= CELLS_MAX {
            // Whoever holds a cell relies on its being the only one of its object.
            cells.retain(|_, c| Arc::strong_count(c) > 1);
        }
        cells.entry(index).or_insert_with(|| Arc::new(Cell { gate: RwLock::new(Slot::Unknown) })).clone()
    }

    /// Finds out whether an object exists. With the cell's gate held exclusively.
    pub(super) async fn resolve(&self, index: u64, slot: &mut Slot) -> Result<(), IoFailure> {
        if matches!(slot, Slot::Unknown) {
            *slot = match self.lookup(index).await? {
                Some(entry) => Slot::There(Arc::new(self.open_object(self.data_name(index, entry)).await?)),
                None => Slot::Hole,
            };
        }
        Ok(())
    }

    pub(crate) fn data_name(&self, index: u64, entry: Entry) -> ObjectRef {
        self.object_name(Oid::data(entry.creator, index), entry.birth, OBJECT_SIZE)
    }

    /// Reads a range.
    pub(crate) async fn read(&self, offset: u64, len: u64) -> Result<Vec<Segment>, IoFailure> {
        let _admitted = self.admission.read().await;
        self.served().await?;
        let mut all = spans(offset, len);
        if let (Some(span), None) = (all.next(), all.next()) {
            return self.read_span(span).await;
        }
        use futures::{StreamExt, TryStreamExt};
        let parts: Vec<Vec<Segment>> = futures::stream::iter(spans(offset, len))
            .map(|span| self.read_span(span))
            .buffered(PARALLEL)
            .try_collect()
            .await?;
        Ok(parts.concat())
    }

    async fn read_span(&self, span: Span) -> Result<Vec<Segment>, IoFailure> {
        let cell = self.cell(span.index);
        {
            let slot = cell.gate.read().await;
            match &*slot {
                Slot::There(object) => return self.read_object(object, span.offset, span.len).await,
                Slot::Hole => return self.hole(span.len).await,
                Slot::Unknown => {}
            }
        }
        let mut slot = cell.gate.write().await;
        self.resolve(span.index, &mut slot).await?;
        let slot = slot.downgrade();
        match &*slot {
            Slot::There(object) => self.read_object(object, span.offset, span.len).await,
            Slot::Hole | Slot::Unknown => self.hole(span.len).await,
        }
    }

    /// What was never allocated reads as zeros, as long as it is this owner who knows.
    async fn hole(&self, len: u32) -> Result<Vec<Segment>, IoFailure> {
        while !self.context.lease.is_valid() {
            self.current()?;
            // Nobody in particular could confirm it: there is no object to ask for. The lease comes back
            // with the log's leader, or another owner takes over.
            self.context.view.change(RETRY_DELAY).await;
        }
        self.current()?;
        Ok(vec![Segment::Hole(len.into())])
    }

    /// Writes a range. `payload`'s checksums go with the bytes to the disks.
    pub(crate) async fn write(
        &self,
        offset: u64,
        payload: Payload,
        fua: bool,
        request: RequestId,
    ) -> Result<(), IoFailure> {
        let _admitted = self.admission.read().await;
        self.served().await?;
        let len = payload.len() as u64;
        let mut all = spans(offset, len);
        if let (Some(span), None) = (all.next(), all.next()) {
            self.write_span(span, Change::Data(payload), request).await?;
        } else {
            use futures::StreamExt;
            let parts = futures::stream::iter(split(offset, payload))
                .map(|(span, part)| self.write_span(span, Change::Data(part), request));
            all_done(parts).await?;
        }
        if fua { self.flush_admitted().await } else { Ok(()) }
    }

    /// Writes zeros to a range; with `punch` their space is given back.
    pub(crate) async fn zero(
        &self,
        offset: u64,
        len: u64,
        punch: bool,
        fua: bool,
        request: RequestId,
    ) -> Result<(), IoFailure> {
        use futures::StreamExt;
        let _admitted = self.admission.read().await;
        self.served().await?;
        if punch {
            // Only what exists has anything to give back.
            let first = offset / u64::from(OBJECT_SIZE);
            let last = (offset + len).div_ceil(u64::from(OBJECT_SIZE));
            let there: Vec<u64> = self.allocated(first, last).await?.into_iter().map(|(i, _)| i).collect();
            let within = |index: u64| {
                let start = (index * u64::from(OBJECT_SIZE)).max(offset);
                let end = ((index + 1) * u64::from(OBJECT_SIZE)).min(offset + len);
                Span { index, offset: (start % u64::from(OBJECT_SIZE)) as u32, len: (end - start) as u32 }
            };
            all_done(futures::stream::iter(there).map(|index| self.punch_span(within(index), request)))
                .await?;
        } else {
            let zero =
                |span: Span| self.write_span(span, Change::Zero { len: span.len, punch: false }, request);
            all_done(futures::stream::iter(spans(offset, len)).map(zero)).await?;
        }
        if fua { self.flush_admitted().await } else { Ok(()) }
    }

    async fn write_span(&self, span: Span, change: Change, request: RequestId) -> Result<(), IoFailure> {
        let cell = self.cell(span.index);
        {
            let slot = cell.gate.read().await;
            if let Slot::There(object) = &*slot {
                return self.write_object(object, span.offset, change, Some(request)).await;
            }
        }
        let mut slot = cell.gate.write().await;
        self.resolve(span.index, &mut slot).await?;
        if let Slot::There(object) = &*slot {
            let object = object.clone();
            let _shared = slot.downgrade();
            return self.write_object(&object, span.offset, change, Some(request)).await;
        }
        let birth = self.next_birth()?;
        let entry = Entry { creator: self.vdi, birth };
        let name = self.data_name(span.index, entry);
        let object = match self.create_object(name).await {
            Ok(object) => Arc::new(object),
            Err(failure) => {
                // No map entry names it; what was created of it goes with the next flush.
                self.doomed.lock().push(name);
                return Err(failure);
            }
        };
        // The object is durable everywhere, so its entry may become so at any time; the client hears of
        // the write only when both the bytes and the entry are everywhere.
        let (written, mapped) = tokio::join!(
            self.write_object(&object, span.offset, change, Some(request)),
            self.set_entry(span.index, Some(entry)),
        );
        mapped?;
        *slot = Slot::There(object);
        written
    }

    /// An object that is punched as a whole goes later, by [`super::reclaim`]: with it would go what is known of
    /// requests that may come again.
    async fn punch_span(&self, span: Span, request: RequestId) -> Result<(), IoFailure> {
        let whole = span.covers_object(self.size);
        match self.punch_there(span, request).await {
            Ok(()) if whole => _ = self.emptied.lock().insert(span.index),
            // There is no copy to punch, but the map alone says what goes.
            Err(IoFailure::Io) if whole => self.drop_lost(span.index).await?,
            punched => punched?,
        }
        Ok(())
    }

    async fn punch_there(&self, span: Span, request: RequestId) -> Result<(), IoFailure> {
        let change = Change::Zero { len: span.len, punch: true };
        let cell = self.cell(span.index);
        {
            let slot = cell.gate.read().await;
            if let Slot::There(object) = &*slot {
                return self.write_object(object, span.offset, change, Some(request)).await;
            }
        }
        let mut slot = cell.gate.write().await;
        self.resolve(span.index, &mut slot).await?;
        let Slot::There(object) = &*slot else { return Ok(()) };
        self.write_object(object, span.offset, change, Some(request)).await
    }

    /// Stops taking requests and waits for those under way, at most `patience`. `None` if they did not end.
    pub(crate) async fn drain(&self, patience: Duration) -> Option<tokio::sync::RwLockWriteGuard<'_, ()>> {
        let guard = tokio::time::timeout(patience, self.admission.write()).await.ok()?;
        Some(guard)
    }

    /// From now on requests are refused; called while drained.
    pub(crate) fn set_released(&self) {
        self.released.store(true, Ordering::Release);
    }

    /// Requests may go on after all.
    pub(crate) fn unset_released(&self) {
        self.released.store(false, Ordering::Release);
    }

    /// Whether objects wait to be removed after a flush.
    pub(crate) fn has_doomed(&self) -> bool {
        !self.doomed.lock().is_empty()
    }

    /// Notes an object with a damaged copy for repair.
    pub(crate) fn heal_later(&self, name: ObjectRef) {
        self.damaged.lock().insert(name);
    }

    /// Objects with a damaged copy.
    pub(crate) fn take_damaged(&self) -> Vec<ObjectRef> {
        self.damaged.lock().drain().collect()
    }

    /// Runs `f` while nobody else touches an object of this VDI that exists.
    pub(crate) async fn with_object_alone<T>(&self, name: &ObjectRef, f: impl AsyncFnOnce() -> T) -> T {
        if name.oid().kind() == Some(wire::id::ObjectKind::Data) {
            let cell = self.cell(name.oid().index());
            let _alone = cell.gate.write().await;
            f().await
        } else {
            // A page of the map: nothing of the VDI moves meanwhile.
            let _alone = self.admission.write().await;
            f().await
        }
    }
}

/// Runs the parts of a change, several at once, all of them to their end: a write dropped half way would
/// stay unsettled. The first failure, if any failed.
async fn all_done<F>(parts: impl futures::Stream<Item = F>) -> Result<(), IoFailure>
where
    F: Future<Output = Result<(), IoFailure>>,
{
    use futures::StreamExt;
    parts
        .buffer_unordered(PARALLEL)
        .fold(Ok(()), |all: Result<(), IoFailure>, part| std::future::ready(all.and(part)))
        .await
}

/// Cuts a payload at object borders, and its checksums with it.
fn split(offset: u64, payload: Payload) -> Vec<(Span, Payload)> {
    let (data, crcs) = payload.into_parts();
    let mut parts = Vec::new();
    let (mut at, mut piece) = (0usize, 0usize);
    for span in spans(offset, data.len() as u64) {
        let bytes: Bytes = data.slice(at..at + span.len as usize);
        let pieces = wire::checksum::pieces(span.offset.into(), bytes.len()).count();
        let sums = crcs[piece..piece + pieces].to_vec();
        let part = Payload::with_crcs(span.offset.into(), bytes.clone(), sums)
            .unwrap_or_else(|| Payload::new(span.offset.into(), bytes));
        parts.push((span, part));
        at += span.len as usize;
        piece += pieces;
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_is_split_with_its_checksums() {
        let data: Bytes = (0..9_000_000u32).map(|i| i as u8).collect::<Vec<_>>().into();
        let offset = u64::from(OBJECT_SIZE) - 1000;
        let parts = split(offset, Payload::new(offset, data.clone()));
        assert_eq!(parts.len(), 4);
        let mut joined = Vec::new();
        for (span, part) in parts {
            assert_eq!(part.len(), span.len as usize);
            part.verify().expect("the checksums belong to the bytes");
            joined.extend_from_slice(part.data());
        }
        assert_eq!(joined, data);
    }
}
