//! How far this node's slots have come that catch up, and what may still land in them.
//!
//! Called by [`crate::recovery`], and by [`super`] for what owners send meanwhile. What comes from a source lands only
//! while the node still catches up since then (rule 2).

use std::collections::HashMap;
use std::sync::Arc;

use wire::id::{Generation, SlotIndex, VdiId};
use wire::peer::Status;
use wire::policy::Copies;

use super::{Replica, Role, SlotFill};
use crate::store::{self, ObjectKey};

impl Replica {
    /// Runs `f` on the slot's fill for a time of catching up; `None` if there has been a later one.
    pub(crate) fn with_fill<T>(
        &self,
        copies: Copies,
        slot: SlotIndex,
        since: u64,
        f: impl FnOnce(&mut SlotFill) -> T,
    ) -> Option<T> {
        self.fills.lock().entry((copies, slot)).or_default().at(since).map(f)
    }

    /// Drops a slot's fill for a time of catching up that is over, and any earlier one.
    pub(crate) fn drop_fill(&self, copies: Copies, slot: SlotIndex, since: u64) {
        let mut fills = self.fills.lock();
        if fills.get(&(copies, slot)).is_some_and(|fill| fill.since <= since) {
            fills.remove(&(copies, slot));
        }
    }

    /// Runs `f` in an object's lane, if the node still catches up since then: what comes from a source may otherwise
    /// take the place of what was written here afterwards. Cancel-safe: `f` runs, or it does not.
    pub(crate) async fn while_catching_up<T: Send + 'static>(
        self: &Arc<Self>,
        key: ObjectKey,
        since: u64,
        f: impl FnOnce(&Self) -> Result<T, Status> + Send + 'static,
    ) -> Result<T, Status> {
        let (done, result) = tokio::sync::oneshot::channel();
        let replica = self.clone();
        self.lanes.submit(key, false, move || {
            let role = replica.role(&replica.view.state(), key.copies, key.slot);
            let outcome = if role == Role::CatchingUp(since) { f(&replica) } else { Err(Status::Busy) };
            _ = done.send(outcome);
        });
        result.await.unwrap_or(Err(Status::Stopping))
    }

    /// Drops up to `limit` objects of a slot that this node has no part in; whether that was all. Blocks.
    pub(crate) fn drop_slot(
        &self,
        copies: Copies,
        slot: SlotIndex,
        limit: usize,
    ) -> Result<bool, store::Error> {
        // Whoever creates or writes here from now on does so under the newest state.
        let _gate = self.slot_gate(slot).write();
        let state = self.view.state();
        let Some(config) = state.slot(copies, slot) else { return Ok(true) };
        // On record in any way, by this session or an earlier one, means that it may still count.
        if config.is_on_record(self.me.session().node) || !state.has_live_copy(config) {
            return Ok(true);
        }
        self.drop_fill(copies, slot, config.version);
        self.store.remove_slot(copies, slot, limit)
    }

    /// Forgets how far one VDI's objects have come in all slots that catch up.
    pub(crate) fn forget_fills(&self, vdi: VdiId, generation: Generation) {
        self.fills.lock().values_mut().for_each(|f| f.forget(vdi, generation));
    }
}

/// The fill that a request of an owner belongs to; refused if there has been a later one.
pub(super) fn fill_of<'a>(
    fills: &'a mut HashMap<(Copies, SlotIndex), SlotFill>,
    key: &ObjectKey,
    since: u64,
) -> Result<&'a mut SlotFill, Status> {
    fills.entry((key.copies, key.slot)).or_default().at(since).ok_or(Status::Busy)
}
