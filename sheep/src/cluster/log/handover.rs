//! Giving leadership away before a planned stop.
//!
//! openraft 0.9 cannot transfer leadership, but it can be led to it: the leader goes quiet, asks the voter
//! that is furthest along to stand at once, and votes for it. With up to three voters those two are a
//! majority. (A leader younger than its lease still counts itself among those that must not vote, so it takes
//! until then.) With more, the others refuse until the lease they believe in has run out, so the successor
//! keeps standing until then: no quicker than a death, yet nothing in flight is lost.

use std::time::Duration;

use openraft::{LogIdOptionExt, ServerState};
use tokio::time::Instant;
use wire::id::NodeId;

use super::ClusterLog;
use super::error::RpcFailure;
use super::net::{self, LogOp};
use super::rpc::{SucceedRequest, fatal};
use super::types::{Machine, Metrics};

/// How long the successor may take to have everything.
const DRAIN: Duration = Duration::from_millis(500);
/// How long one attempt of the successor is given.
const ATTEMPT: Duration = Duration::from_millis(60);
const POLL: Duration = Duration::from_millis(5);

impl<M: Machine> ClusterLog<M> {
    /// Hands leadership to another voter, as well as that can be done; returns when another leads, or when
    /// it has become clear that none will. Does nothing on a node that does not lead, and on one without
    /// other voters. Proposals here are refused meanwhile; leases must not be granted any more, see
    /// [`LogMetrics::quorum_acked_at`](super::LogMetrics::quorum_acked_at).
    pub async fn step_down(&self) {
        let inner = &*self.inner;
        if !self.leads() {
            return;
        }
        inner.contact.set_leaving(true);
        let give_up = Instant::now() + inner.config.leader_lease * 2;
        if let Some(successor) = self.drain(Instant::now() + DRAIN).await {
            let request = SucceedRequest { leaving: inner.config.node };
            let wait = inner.config.leader_lease * 2;
            let asked: Result<(), _> =
                net::call(&*inner.net, successor, LogOp::Succeed, &request, wait).await;
            if let Err(error) = asked {
                tracing::warn!(%successor, %error, "the successor did not take over");
            }
            while self.leads() && Instant::now() < give_up {
                tokio::time::sleep(POLL).await;
            }
        }
        inner.contact.set_leaving(false);
    }

    /// Waits until some other voter has every entry, and names it; the furthest if none gets there.
    async fn drain(&self, until: Instant) -> Option<NodeId> {
        loop {
            let metrics = self.inner.raft.metrics().borrow().clone();
            let (successor, matched) = furthest_voter(&metrics, self.inner.config.node.0)?;
            if matched >= metrics.last_log_index || Instant::now() >= until {
                return Some(NodeId(successor));
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Stands for election until elected, or until somebody else is, on the leader's wish.
    pub(super) async fn succeed(&self, leaving: NodeId) -> Result<(), RpcFailure> {
        let inner = &*self.inner;
        let until = Instant::now() + inner.config.leader_lease * 2;
        tracing::info!(node = %inner.config.node, %leaving, "takes the lead over");
        while Instant::now() < until {
            inner.raft.trigger().elect().await.map_err(fatal)?;
            let attempt = Instant::now() + ATTEMPT;
            while Instant::now() < attempt {
                let leader = self.leader().map(|leader| leader.node);
                if leader.is_some_and(|leader| leader != leaving) {
                    return Ok(());
                }
                tokio::time::sleep(POLL).await;
            }
        }
        Err(RpcFailure::Refused("not elected".to_owned()))
    }

    fn leads(&self) -> bool {
        self.inner.raft.metrics().borrow().state == ServerState::Leader
    }
}

fn furthest_voter(metrics: &Metrics, me: u64) -> Option<(u64, Option<u64>)> {
    let replication = metrics.replication.as_ref()?;
    metrics
        .membership_config
        .voter_ids()
        .filter(|voter| *voter != me)
        .map(|voter| (voter, replication.get(&voter).copied().flatten().index()))
        .max_by_key(|(_, matched)| *matched)
}
