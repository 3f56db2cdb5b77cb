//! Brings this node's copies in line with the log: fetches what is behind, drops what is no longer here.
//!
//! One task, woken by every change of state. It calls in-sync holders through the peer transport and this
//! node's own copies directly. Nothing is admitted before it is equal and durable (rules 2, 5), nothing is
//! dropped before others have it in sync (guarantee 5).
//!
//! | file | holds |
//! |---|---|
//! | `slot` | one slot: list, compare, pull |
//! | `throttle` | how fast; pure |
//! | `sweep` | slots and VDIs that are no longer here |
//! | `unowned` | VDIs that a crash left unsettled and nobody opens |

mod slot;
mod sweep;
mod throttle;
mod unowned;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use futures::StreamExt;
use tokio_util::sync::CancellationToken;
use wire::id::{Generation, SlotIndex, VdiId};
use wire::policy::Copies;

use crate::cluster::entry::{ClusterEntry, ClusterReply};
use crate::cluster::log::Applied;
use crate::cluster::slots::MemberState;
use crate::cluster::state::ClusterState;
use crate::replica::{Replica, Role};
use crate::vdi::context::Context;
use throttle::Throttle;

/// Slots brought up together and admitted by one entry.
const BATCH: usize = 512;
/// Slots of a batch at once.
const PARALLEL: usize = 8;
/// How long to rest when nothing could be done, or nothing changes.
const REST: Duration = Duration::from_millis(100);
/// How often to look for what is no longer here.
const SWEEP_EVERY: Duration = Duration::from_secs(1);
/// How long to wait for the log.
const LOG_PATIENCE: Duration = Duration::from_secs(2);

/// How far recovery has come since the node started, for `dog node recovery`.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    pub(crate) slots_left: AtomicU64,
    pub(crate) slots_done: AtomicU64,
    pub(crate) objects_done: AtomicU64,
    pub(crate) bytes_done: AtomicU64,
}

/// The recovery of one node.
pub(crate) struct Recovery {
    context: Arc<Context>,
    replica: Arc<Replica>,
    pub(crate) progress: Progress,
    throttle: Throttle,
    failing: AtomicBool,
    turns: AtomicUsize,
}

impl Recovery {
    pub(crate) fn new(context: Arc<Context>, replica: Arc<Replica>) -> Arc<Self> {
        Arc::new(Self {
            context,
            replica,
            progress: Progress::default(),
            throttle: Throttle::default(),
            failing: AtomicBool::new(false),
            turns: AtomicUsize::new(0),
        })
    }

    /// Works until cancelled.
    pub(crate) async fn run(self: Arc<Self>, cancel: CancellationToken) {
        tokio::select! {
            () = cancel.cancelled() => {}
            () = self.work() => {}
            () = self.watch_disk() => {}
            () = self.settle_unowned() => {}
        }
    }

    async fn work(self: &Arc<Self>) {
        let mut generations = HashMap::new();
        let mut swept = tokio::time::Instant::now();
        let mut looked_at = 0;
        loop {
            let applied = self.context.view.applied();
            self.notice_owners(&applied.state, &mut generations);
            let todo = self.todo(&applied.state);
            self.progress.slots_left.store(todo.len() as u64, Ordering::Relaxed);
            let limit = applied.state.recovery();
            self.throttle.set_limit(limit.bytes_per_second);
            let mut moved = false;
            if !limit.paused && !todo.is_empty() {
                moved = self.batch(&applied, todo).await;
            }
            if swept.elapsed() >= SWEEP_EVERY && applied.index != looked_at {
                looked_at = applied.index;
                swept = tokio::time::Instant::now();
                self.clone().sweep(applied.state.clone()).await;
            }
            if !moved {
                self.context.view.change(REST).await;
            }
        }
    }

    /// Beside the work, which may hang on the very disk.
    async fn watch_disk(&self) {
        loop {
            self.report_failure(&self.context.view.state()).await;
            tokio::time::sleep(REST).await;
        }
    }

    /// A failed disk is taken out through the log; the node goes on as a gateway.
    async fn report_failure(&self, state: &ClusterState) {
        let Some(reason) = self.replica.failure().borrow().clone() else { return };
        let session = self.context.me();
        if !state.serves(session) {
            return;
        }
        if !self.failing.swap(true, Ordering::Relaxed) {
            tracing::error!(reason, "the disk failed: taking this node's copies out of the ring");
        }
        let entry = ClusterEntry::FailDisk { session, reason };
        if let Err(error) = self.context.log.propose(entry, LOG_PATIENCE).await {
            tracing::warn!(%error, "the failed disk could not be reported yet");
        }
    }

    /// A VDI that has another owner is compared anew: what an earlier one had under way may have gone
    /// either way.
    fn notice_owners(&self, state: &ClusterState, known: &mut HashMap<VdiId, Generation>) {
        for vdi in state.vdis() {
            if known.insert(vdi.id, vdi.owner.generation) != Some(vdi.owner.generation) {
                self.replica.forget_fills(vdi.id, vdi.owner.generation);
            }
        }
        known.retain(|vdi, _| state.vdi(*vdi).is_some());
    }

    /// The slots in which this node catches up, with the version since which it does.
    fn todo(&self, state: &ClusterState) -> Vec<(Copies, SlotIndex, u64)> {
        let me = self.context.me();
        state
            .slots()
            .filter_map(|(copies, slot, config)| {
                let member = config.member(me).filter(|m| m.state == MemberState::CatchingUp)?;
                Some((copies, slot, member.since))
            })
            .collect()
    }

    /// Brings up to a batch of slots up and has them admitted. Whether anything was.
    async fn batch(
        self: &Arc<Self>,
        applied: &Applied<ClusterState>,
        todo: Vec<(Copies, SlotIndex, u64)>,
    ) -> bool {
        let first = todo[0].0;
        let batch = todo.into_iter().filter(|(copies, ..)| *copies == first).take(BATCH);
        let ready: Vec<(SlotIndex, u64)> = futures::stream::iter(batch)
            .map(|(copies, slot, since)| {
                let recovery = self.clone();
                async move {
                    let equal = recovery.catch_up(applied, copies, slot, since).await;
                    equal.then_some((slot, since))
                }
            })
            .buffer_unordered(PARALLEL)
            .filter_map(std::future::ready)
            .collect()
            .await;
        if ready.is_empty() {
            return false;
        }
        let slots: Vec<SlotIndex> = ready.iter().map(|(slot, _)| *slot).collect();
        let store = self.replica.store().clone();
        let flushed = crate::machine::blocking(move || {
            slots.iter().try_for_each(|slot| store.flush_slot(first, *slot))
        });
        match flushed.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                _ = self.replica.status(error);
                return false;
            }
            Err(_) => return false,
        }
        self.admit(applied, first, ready).await
    }

    async fn admit(
        &self,
        applied: &Applied<ClusterState>,
        copies: Copies,
        slots: Vec<(SlotIndex, u64)>,
    ) -> bool {
        let session = self.context.me();
        let entry = ClusterEntry::Admit { session, copies, slots: slots.clone(), seen: applied.index };
        let admitted = match self.context.log.propose(entry, LOG_PATIENCE).await {
            Ok((index, ClusterReply::Admitted(count))) => {
                self.context.view.reaches(index).await;
                u64::from(count)
            }
            Ok((_, reply)) => {
                tracing::debug!(?reply, "copies were not admitted");
                0
            }
            Err(error) => {
                tracing::debug!(%error, "copies could not be admitted yet");
                0
            }
        };
        let state = self.context.view.state();
        for (slot, since) in slots {
            match self.replica.role(&state, copies, slot) {
                Role::CatchingUp(now) if now == since => {
                    // Not admitted after all: an owner need not wait for us to have everything.
                    _ = self.replica.with_fill(copies, slot, since, |fill| fill.admitting = false);
                }
                _ => self.replica.drop_fill(copies, slot, since),
            }
        }
        self.progress.slots_done.fetch_add(admitted, Ordering::Relaxed);
        admitted > 0
    }
}
