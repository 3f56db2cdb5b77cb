//! What the admin API asks of the node besides the data path: founding a ring, how members are.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use prost::Message;
use tokio_util::sync::CancellationToken;
use wire::frame::Payload;
use wire::id::{ClusterId, NodeId};
use wire::peer::{NodeStatusReply, Status, op};
use wire::policy::Copies;

use crate::admin::{FormatError, Host};
use crate::cluster::entry::{ClusterEntry, ClusterReply, NodeSpec, Refusal};
use crate::cluster::log::LogError;
use crate::cluster::session::Me;
use crate::config::{ClusterConfig, Config};
use crate::gateway::Gateway;
use crate::machine::{blocking, random, resident_bytes, wall_ms};
use crate::membership::{Membership, Ring};
use crate::peer::Class;
use crate::recovery::Recovery;
use crate::vdi::context::Context;

/// How long to wait for the log in what an operator asked for.
const LOG_PATIENCE: Duration = Duration::from_secs(10);

/// How long an answer waits for a lease: an election and a renewal take a second.
const SETTLE_PATIENCE: Duration = Duration::from_secs(2);
/// How often it looks.
const SETTLE_POLL: Duration = Duration::from_millis(10);

/// What the admin API needs of this node.
pub(crate) struct NodeHost {
    pub(super) own: Weak<NodeHost>,
    pub(super) config: Config,
    pub(super) me: Arc<Me>,
    pub(super) membership: Arc<Membership>,
    pub(super) ring: Arc<Ring>,
    pub(super) context: Arc<Context>,
    pub(super) gateway: Arc<Gateway>,
    pub(super) recovery: Option<Arc<Recovery>>,
    pub(super) shutdown: CancellationToken,
    pub(super) dir: PathBuf,
    pub(super) used: DiskUse,
    pub(super) started_ms: u64,
    /// Where NBD listens, once it does.
    pub(super) nbd: OnceLock<Vec<String>>,
}

/// What the objects take on disk: counted when asked, but not more often than every few seconds.
#[derive(Default)]
pub(super) struct DiskUse(Mutex<Option<(std::time::Instant, u64)>>);

impl DiskUse {
    const FRESH: Duration = Duration::from_secs(2);

    /// Blocks.
    fn bytes(&self, dir: &Path) -> u64 {
        let mut counted = self.0.lock();
        match *counted {
            Some((when, bytes)) if when.elapsed() < Self::FRESH => bytes,
            _ => {
                let bytes = allocated_below(dir);
                *counted = Some((std::time::Instant::now(), bytes));
                bytes
            }
        }
    }
}

/// Bytes allocated to files below a directory; what vanishes meanwhile does not count.
fn allocated_below(dir: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let Ok(entries) = std::fs::read_dir(dir) else { return 0 };
    entries
        .flatten()
        .map(|entry| match entry.metadata() {
            Ok(meta) if meta.is_dir() => allocated_below(&entry.path()),
            Ok(meta) => meta.blocks() * 512,
            Err(_) => 0,
        })
        .sum()
}

impl NodeHost {
    /// Notes where NBD listens.
    pub(super) fn nbd_listens(&self, addresses: Vec<String>) {
        _ = self.nbd.set(addresses);
    }

    pub(super) fn own_status(&self) -> NodeStatusReply {
        let mut reply = NodeStatusReply {
            applied: self.context.view.applied().index,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started_ms: self.started_ms,
            nbd: self.nbd.get().cloned().unwrap_or_default(),
            connections: self.gateway.open_handles(),
            memory_bytes: resident_bytes(),
            ..Default::default()
        };
        if let Some(replica) = &self.context.replica {
            if let Ok(space) = replica.store().space() {
                reply.space_total = space.total;
                reply.space_free = space.free;
                reply.space_used = self.used.bytes(&self.dir.join("objects"));
            }
            let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
            let counters = &replica.counters;
            reply.counters = HashMap::from([
                ("sheep_replica_writes_total".to_owned(), count(&counters.writes)),
                ("sheep_replica_written_bytes_total".to_owned(), count(&counters.bytes_written)),
                ("sheep_replica_reads_total".to_owned(), count(&counters.reads)),
                ("sheep_replica_read_bytes_total".to_owned(), count(&counters.bytes_read)),
                ("sheep_replica_flushes_total".to_owned(), count(&counters.flushes)),
                ("sheep_replica_refused_total".to_owned(), count(&counters.refused)),
                ("sheep_replica_damaged_total".to_owned(), count(&counters.damaged)),
                ("sheep_replica_recent_writes".to_owned(), replica.recent_writes()),
            ]);
        }
        reply
            .counters
            .insert("sheep_gateway_longest_request_milliseconds".to_owned(), self.gateway.longest_ms());
        if let Some(recovery) = &self.recovery {
            let progress = &recovery.progress;
            reply.slots_left = progress.slots_left.load(Ordering::Relaxed);
            reply.slots_done = progress.slots_done.load(Ordering::Relaxed);
            reply.objects_done = progress.objects_done.load(Ordering::Relaxed);
            reply.bytes_done = progress.bytes_done.load(Ordering::Relaxed);
        }
        reply
    }
}

#[async_trait]
impl Host for NodeHost {
    fn spec(&self) -> NodeSpec {
        self.membership.spec()
    }

    fn default_copies(&self) -> Copies {
        self.config.copies
    }

    fn known_nodes(&self) -> Vec<NodeSpec> {
        self.membership.waiting()
    }

    fn driver(&self) -> &'static str {
        match self.config.cluster {
            ClusterConfig::Local => "local",
            ClusterConfig::Mesh { .. } => "sdcluster",
        }
    }

    async fn format(&self, copies: Copies, slots: u32, force: bool) -> Result<(), FormatError> {
        if let Some(format) = self.context.view.state().format() {
            if !force {
                return Err(FormatError::AlreadyFormatted);
            }
            tracing::warn!(cluster = %format.cluster, "the ring is formatted anew: its VDIs are deleted");
            return self.lay_out(ClusterEntry::Reformat { copies, slots, now_ms: wall_ms() }).await;
        }
        if let Some(other) = self.membership.known_in_ring() {
            return Err(FormatError::SeedInRing(other.admin));
        }
        let nodes = self.membership.waiting();
        let have = nodes.iter().filter(|n| !n.gateway).count();
        let need = usize::from(copies.get());
        if have == 0 || (have < need && !force) {
            return Err(FormatError::TooFewNodes { have, need: need.max(1) });
        }
        if crate::placement::SlotCount::new(slots).is_err() {
            return Err(FormatError::BadSlots(slots));
        }
        // Killed in the middle of a format, the directory may have a ring that is not formatted yet.
        let cluster = self.membership.cluster().unwrap_or_else(|| ClusterId(random()));
        self.membership.belong(cluster).await.map_err(FormatError::Log)?;
        match self.ring.log.found().await {
            Ok(()) | Err(LogError::AlreadyFounded) => {}
            Err(error) => return Err(FormatError::Log(error.to_string())),
        }
        let entry = ClusterEntry::Format { cluster, copies, slots, nodes, now_ms: wall_ms() };
        self.lay_out(entry).await
    }

    fn view_is_fresh(&self) -> bool {
        !self.knows_of_a_ring() || self.context.lease.is_valid()
    }

    async fn view_settles(&self) {
        let unsure = || self.knows_of_a_ring().then(|| self.context.lease.missing_for()).flatten();
        while unsure().is_some_and(|time| time < SETTLE_PATIENCE) {
            tokio::time::sleep(SETTLE_POLL).await;
        }
    }

    async fn node_status(&self, node: NodeId) -> Option<NodeStatusReply> {
        if node == self.me.session().node {
            let own = self.own.upgrade()?;
            return blocking(move || own.own_status()).await.ok();
        }
        let call = self.ring.peers.call(
            node,
            Class::Control,
            op::NODE_STATUS,
            prost::bytes::Bytes::new(),
            Payload::empty(),
            Some(Duration::from_secs(2)),
        );
        let reply = call.await.ok().filter(|r| r.status == Status::Ok as u16)?;
        NodeStatusReply::decode(reply.meta).ok()
    }

    fn shutdown(&self) {
        self.shutdown.cancel();
    }
}

impl NodeHost {
    /// Whether there is a ring that this node is in, or is about to join.
    fn knows_of_a_ring(&self) -> bool {
        self.membership.cluster().is_some()
            || self.context.view.state().format().is_some()
            || self.membership.known_in_ring().is_some()
    }

    /// Orders a format, the first or another one, and waits until the members know of it.
    async fn lay_out(&self, entry: ClusterEntry) -> Result<(), FormatError> {
        match self.ring.log.propose(entry, LOG_PATIENCE).await {
            Ok((_, ClusterReply::Refused(Refusal::AlreadyFormatted))) => Err(FormatError::AlreadyFormatted),
            Ok((_, ClusterReply::Refused(Refusal::InUse(node)))) => Err(FormatError::InUse(node)),
            Ok((_, ClusterReply::Refused(Refusal::BadSlots(slots)))) => Err(FormatError::BadSlots(slots)),
            Ok((_, ClusterReply::Refused(refusal))) => Err(FormatError::Log(refusal.to_string())),
            Ok((index, _)) => {
                self.context.view.reaches(index).await;
                self.wait_for_members(index).await;
                Ok(())
            }
            Err(error) => Err(FormatError::Log(error.to_string())),
        }
    }

    /// After format: until everybody who was counted in has the log, or a few seconds have passed.
    async fn wait_for_members(&self, index: u64) {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
        while tokio::time::Instant::now() < deadline {
            let state = self.context.view.state();
            let live: Vec<NodeId> = state.nodes().filter_map(|n| n.live_session()).map(|s| s.node).collect();
            let have = futures::future::join_all(live.iter().map(|n| self.node_status(*n))).await;
            let all = have.iter().all(|s| s.as_ref().is_some_and(|s| s.applied >= index));
            if all && self.view_is_fresh() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}
