//! Drops what this node need not hold any more: slots that moved away, objects of deleted VDIs.

use std::collections::BTreeSet;
use std::sync::Arc;

use wire::id::VdiId;

use crate::cluster::state::ClusterState;
use crate::mutant::{Mutant, planted};
use crate::store::Error;

use super::Recovery;

/// Objects removed while writes to their slot stand still.
const DROPPED_AT_ONCE: usize = 16;

impl Recovery {
    /// Looks through the store once. What cannot be removed now is found again next time.
    pub(super) async fn sweep(self: Arc<Self>, state: Arc<ClusterState>) {
        if state.format().is_none() || !state.is_live(self.context.me()) {
            return;
        }
        let swept = crate::machine::blocking(move || self.sweep_blocking(&state)).await;
        if let Ok(Err(error)) = swept {
            tracing::warn!(%error, "what is no longer needed could not be removed");
        }
    }

    fn sweep_blocking(&self, state: &ClusterState) -> Result<(), Error> {
        let store = self.replica.store();
        for (copies, slot) in store.list_slots() {
            while !self.replica.drop_slot(copies, slot, DROPPED_AT_ONCE)? {}
        }
        // Whoever was sealed for a VDI need not have any of its objects.
        let known: BTreeSet<VdiId> = store.creators()?.into_iter().chain(store.sealed_vdis()).collect();
        for vdi in known {
            if !state.is_deleted(vdi) || planted(Mutant::DeletedStays) {
                continue;
            }
            for key in store.list_vdi(vdi)? {
                store.remove(&key)?;
            }
            store.forget_seal(vdi)?;
            self.replica.forget_vdi(vdi);
            tracing::info!(%vdi, "removed what there was of a deleted VDI");
        }
        Ok(())
    }
}
