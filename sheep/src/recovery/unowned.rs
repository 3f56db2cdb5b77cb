//! Has VDIs taken over that a crash left unsettled and that nobody opens.
//!
//! After a crash the in-sync copies of an object may differ, or be torn, until an owner settles them
//! (`vdi/takeover.rs`). A VDI gets an owner when it is opened. Until then nobody could bring a copy up from
//! torn ones, and a check would find copies that differ. So a node that is in sync and has such copies of a VDI that stays
//! without an owner becomes its owner itself; with nobody to serve, it soon gives the VDI up again.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;
use wire::id::{Generation, VdiId};

use super::{LOG_PATIENCE, Recovery};
use crate::cluster::entry::ClusterEntry;
use crate::cluster::state::ClusterState;
use crate::replica::Role;

/// How often to look. A VDI that has no owner twice in a row is taken over.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// VDIs taken over after one look: whoever opens others meanwhile is not kept waiting.
const AT_ONCE: usize = 8;
/// When to take one over again that was not settled by that, as damage may prevent.
const TRY_AGAIN: Duration = Duration::from_secs(60);

impl Recovery {
    pub(super) async fn settle_unowned(&self) {
        let mut seen = BTreeMap::new();
        let mut tried: BTreeMap<VdiId, Instant> = BTreeMap::new();
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let unowned = self.unowned(&self.context.view.state());
            tried.retain(|_, at| at.elapsed() < TRY_AGAIN);
            let still = |(vdi, generation): &(&VdiId, &Generation)| seen.get(*vdi) == Some(*generation);
            let due = unowned.iter().filter(still).map(|(vdi, _)| *vdi);
            let due: Vec<VdiId> = due.filter(|vdi| !tried.contains_key(vdi)).take(AT_ONCE).collect();
            for vdi in due {
                tried.insert(vdi, Instant::now());
                let entry = ClusterEntry::Acquire { vdi, session: self.context.me() };
                match self.context.log.propose(entry, LOG_PATIENCE).await {
                    Ok((index, _)) => self.context.view.reaches(index).await,
                    Err(error) => {
                        tracing::debug!(%vdi, %error, "could not take over what a crash left yet");
                        tried.remove(&vdi);
                    }
                }
            }
            seen = unowned;
        }
    }

    /// The VDIs without an owner of which an in-sync copy here has not been settled since a crash.
    fn unowned(&self, state: &ClusterState) -> BTreeMap<VdiId, Generation> {
        let suspects = self.replica.store().suspects().into_iter().map(|(key, _)| key);
        let counting = suspects.filter(|key| self.replica.role(state, key.copies, key.slot) == Role::InSync);
        let vdis = counting.filter_map(|key| state.vdi(key.oid.creator()));
        vdis.filter(|v| v.owner.session.is_none()).map(|v| (v.id, v.owner.generation)).collect()
    }
}
