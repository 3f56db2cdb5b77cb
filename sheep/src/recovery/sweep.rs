//! Drops what this node need not hold any more: slots that moved away, objects of deleted VDIs.

use std::sync::Arc;

use crate::cluster::state::ClusterState;
use crate::store::Error;

use super::Recovery;

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
        let me = self.context.me().node;
        for (copies, slot) in store.list_slots() {
            let Some(config) = state.slot(copies, slot) else { continue };
            // On record in any way, by this session or an earlier one, means that it may still count.
            if !config.is_on_record(me) && state.has_live_copy(config) {
                if !store.list_slot(copies, slot)?.is_empty() {
                    tracing::debug!(%copies, %slot, "dropping a slot that others hold now");
                    store.remove_slot(copies, slot)?;
                }
                self.replica.drop_fill(copies, slot);
            }
        }
        for vdi in store.creators()? {
            if !state.is_deleted(vdi) {
                continue;
            }
            for key in store.list_vdi(vdi)? {
                store.remove(&key)?;
            }
            store.forget_seal(vdi)?;
            self.replica.forget_vdi(vdi);
            tracing::info!(%vdi, "removed the objects of a deleted VDI");
        }
        Ok(())
    }
}
