//! Which parts of a VDI hold data and which are holes.

use prost::Message;
use wire::id::Session;
use wire::peer::{ObjectRef, op};

use super::map::Entry;
use super::owner::{IoFailure, Owner};
use crate::cluster::state::OBJECT_SIZE;
use crate::replica;
use crate::store::BlockEntry;

/// Objects whose blocks are looked into for one BLOCK_STATUS.
const STATUS_OBJECTS_MAX: u64 = 64;
/// Runs after which the answer ends with the object at hand.
const STATUS_RUNS_ENOUGH: usize = 8;

impl Owner {
    /// Data and holes of a range, in turn; may end early.
    pub(crate) async fn status(&self, offset: u64, len: u64) -> Result<Vec<(u64, bool)>, IoFailure> {
        let _admitted = self.admission.read().await;
        self.served().await?;
        let object = u64::from(OBJECT_SIZE);
        let end = offset + len;
        let first = offset / object;
        let last = end.div_ceil(object);
        let there = self.allocated(first, last.min(first + (1 << 16))).await?;
        let end = end.min((first + (1 << 16)) * object);
        let mut runs: Vec<(u64, bool)> = Vec::new();
        let mut at = offset;
        for (looked, (index, entry)) in (0u64..).zip(there) {
            let start = (index * object).max(offset);
            let stop = ((index + 1) * object).min(end);
            push_run(&mut runs, start - at, true);
            // Clients ask again for the rest, and some for every run: looking further is work done twice.
            if looked == STATUS_OBJECTS_MAX || runs.len() >= STATUS_RUNS_ENOUGH {
                return Ok(runs);
            }
            for (from, to, hole) in self.holes(index, entry).await? {
                let (from, to) = (from + index * object, to + index * object);
                push_run(&mut runs, to.min(stop).saturating_sub(from.max(start)), hole);
            }
            at = stop;
        }
        push_run(&mut runs, end - at, true);
        Ok(runs)
    }

    /// An object's runs of blocks: from, to, whether it is a hole.
    async fn holes(&self, index: u64, entry: Entry) -> Result<Vec<(u64, u64, bool)>, IoFailure> {
        let block = wire::checksum::BLOCK_SIZE as u64;
        let mut runs: Vec<(u64, u64, bool)> = Vec::new();
        for (i, entry) in (0u32..).zip(self.table(self.data_name(index, entry)).await?) {
            // A damaged entry is no hole: whoever skips those must read this block, and hear that it is lost.
            let hole = entry.is_absent(i);
            let i = u64::from(i);
            match runs.last_mut() {
                Some(last) if last.2 == hole => last.1 += block,
                _ => runs.push((i * block, (i + 1) * block, hole)),
            }
        }
        Ok(runs)
    }

    /// An object's block table, from this node's own copy if that is in sync.
    pub(super) async fn table(&self, name: ObjectRef) -> Result<Vec<BlockEntry>, IoFailure> {
        let slot = wire::id::SlotIndex(name.slot);
        let state = self.current()?;
        let own = self.context.replica.as_ref();
        if let Some(replica) = own.filter(|r| r.role(&state, self.copies, slot) == replica::Role::InSync)
            && let Ok(key) = replica::key_of(&name)
            && let Ok(table) = replica.store().table(&key)
        {
            return Ok(table);
        }
        let meta = |to: Session, config| {
            let fence = wire::peer::Fence { to_start: to.start, ..self.fence(config) };
            wire::peer::ObjectRequest { fence, object: name, offset: 0, len: 0 }.encode_to_vec().into()
        };
        let (meta, _) = self.ask_in_sync(slot, op::TABLE, meta).await?;
        let reply = wire::peer::TableReply::decode(meta).map_err(|_| IoFailure::Io)?;
        let entry = |e: &[u32]| BlockEntry { crc: e[0], stamp: e[1] };
        Ok(reply.entries.chunks_exact(2).map(entry).collect())
    }
}

/// Adds a run; two of a kind become one.
fn push_run(runs: &mut Vec<(u64, bool)>, len: u64, hole: bool) {
    match runs.last_mut() {
        _ if len == 0 => {}
        Some(last) if last.1 == hole => last.0 += len,
        _ => runs.push((len, hole)),
    }
}
