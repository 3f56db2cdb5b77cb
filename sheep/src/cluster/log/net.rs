//! How log messages reach other nodes, and what their answers prove.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use openraft::error::{RPCError, RaftError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{Backoff, RPCOption, RaftNetwork, RaftNetworkFactory};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, VoteRequest, VoteResponse,
};
use openraft::{EmptyNode, OptionalSend};
use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use wire::id::NodeId;

use super::codec;
use super::transfer;
use super::types::{Snapshot, Types, Vote};
use crate::cluster::clock::Clock;

/// What a log message asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[repr(u8)]
pub enum LogOp {
    /// Append entries, or show that the leader lives.
    Append = 1,
    /// Vote for the sender.
    Vote = 2,
    /// Take a piece of a snapshot.
    Snapshot = 3,
    /// Propose an entry, as leader.
    Propose = 4,
    /// Name an index that all earlier proposals are at or below, as leader.
    Barrier = 5,
    /// Would you vote for the sender? Changes nothing.
    Canvass = 6,
    /// Stand for election now: the leader is leaving.
    Succeed = 7,
}

impl TryFrom<u8> for LogOp {
    type Error = u8;

    fn try_from(byte: u8) -> Result<Self, u8> {
        Ok(match byte {
            1 => Self::Append,
            2 => Self::Vote,
            3 => Self::Snapshot,
            4 => Self::Propose,
            5 => Self::Barrier,
            6 => Self::Canvass,
            7 => Self::Succeed,
            other => return Err(other),
        })
    }
}

/// A message that got no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NetError {
    /// The message was certainly not delivered; no connection could be made, or no address is known. A
    /// proposal that fails so is sent again, so nothing that may have been delivered may be reported so.
    #[error("unreachable")]
    Unreachable,
    /// It may have been delivered: the time ran out, the connection broke, or the receiver refused.
    #[error("{0}")]
    Failed(String),
}

/// Carries log messages. One call is one request and its answer, which is what `ClusterLog::handle_rpc` of
/// node `to` returned.
#[async_trait]
pub trait LogNet: Send + Sync + 'static {
    /// Sends `body` and waits for the answer, at most `timeout`.
    async fn call(
        &self,
        to: NodeId,
        op: LogOp,
        body: Vec<u8>,
        timeout: Duration,
    ) -> Result<Vec<u8>, NetError>;
}

/// When each node last confirmed which leader: the newest *sending* time among messages it has accepted.
///
/// Kept here because openraft's own figure is a duration at an unknown moment, and a lease that is granted
/// on a stale one outlives the leader.
#[derive(Default)]
pub(super) struct Confirmations {
    by_node: Mutex<BTreeMap<u64, Confirmation>>,
}

#[derive(Clone, Copy)]
struct Confirmation {
    term: u64,
    sent: Duration,
}

impl Confirmations {
    fn record(&self, node: u64, term: u64, sent: Duration) {
        let mut by_node = self.by_node.lock();
        let entry = by_node.entry(node).or_insert(Confirmation { term, sent });
        if (entry.term, entry.sent) < (term, sent) {
            *entry = Confirmation { term, sent };
        }
    }

    /// When a majority of each of `configs` had last confirmed `me` as leader in `term`; `now` if that
    /// takes nobody else.
    pub(super) fn quorum<'a, C, V>(&self, configs: C, me: u64, term: u64, now: Duration) -> Option<Duration>
    where
        C: IntoIterator<Item = V>,
        V: IntoIterator<Item = &'a u64>,
    {
        let by_node = self.by_node.lock();
        let mut oldest = now;
        for voters in configs {
            let mut times: Vec<Option<Duration>> = voters
                .into_iter()
                .map(|node| {
                    let confirmed = by_node.get(node).filter(|entry| entry.term == term);
                    if *node == me { Some(now) } else { confirmed.map(|entry| entry.sent) }
                })
                .collect();
            times.sort_unstable_by(|a, b| b.cmp(a));
            let majority = times.get(times.len() / 2).copied().flatten()?;
            oldest = oldest.min(majority);
        }
        Some(oldest)
    }
}

/// Sends `request` and decodes the answer.
pub(super) async fn call<Q: Serialize, A: DeserializeOwned>(
    net: &dyn LogNet,
    to: NodeId,
    op: LogOp,
    request: &Q,
    timeout: Duration,
) -> Result<A, NetError> {
    let answer = tokio::time::timeout(timeout, net.call(to, op, codec::encode(request), timeout))
        .await
        .map_err(|_| NetError::Failed(format!("no answer within {timeout:?}")))??;
    codec::decode(&answer).map_err(|error| NetError::Failed(error.to_string()))
}

/// Makes openraft's connections.
#[derive(Clone)]
pub(super) struct Network {
    pub(super) net: Arc<dyn LogNet>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) confirmations: Arc<Confirmations>,
}

impl RaftNetworkFactory<Types> for Network {
    type Network = Peer;

    async fn new_client(&mut self, target: u64, _: &EmptyNode) -> Peer {
        Peer { network: self.clone(), to: NodeId(target) }
    }
}

/// openraft's connection to one node.
pub(super) struct Peer {
    network: Network,
    to: NodeId,
}

type Answer<T> = Result<T, RPCError<u64, EmptyNode, RaftError<u64>>>;

/// Everything counts as unreachable, because after any other error openraft tries again without a pause.
fn unreachable<E: std::error::Error + 'static>(error: &E) -> Unreachable {
    Unreachable::new(error)
}

/// Pause after a failed message. Short, because a node that has come back counts on hearing the leader
/// before it stands for election.
const RETRY_PAUSE: Duration = Duration::from_millis(50);

impl RaftNetwork<Types> for Peer {
    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<Types>,
        option: RPCOption,
    ) -> Answer<AppendEntriesResponse<u64>> {
        let sent = self.network.clock.now();
        let net = &*self.network.net;
        let answer: AppendEntriesResponse<u64> =
            call(net, self.to, LogOp::Append, &request, option.hard_ttl())
                .await
                .map_err(|error| unreachable(&error))?;
        if !matches!(answer, AppendEntriesResponse::HigherVote(_)) {
            self.network.confirmations.record(self.to.0, request.vote.leader_id.term, sent);
        }
        Ok(answer)
    }

    async fn vote(&mut self, request: VoteRequest<u64>, option: RPCOption) -> Answer<VoteResponse<u64>> {
        let net = &*self.network.net;
        let answer = call(net, self.to, LogOp::Vote, &request, option.hard_ttl()).await;
        Ok(answer.map_err(|error| unreachable(&error))?)
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _: RPCOption,
    ) -> Result<SnapshotResponse<u64>, StreamingError<Types, openraft::error::Fatal<u64>>> {
        tokio::select! {
            closed = cancel => Err(closed.into()),
            // Dropping it in between is fine: the receiver throws a partial snapshot away.
            sent = transfer::send(&*self.network.net, self.to, vote, snapshot) => {
                Ok(SnapshotResponse::new(sent.map_err(|error| unreachable(&error))?))
            }
        }
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(std::iter::repeat(RETRY_PAUSE))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    #[test]
    fn the_quorum_is_as_fresh_as_its_oldest_needed_member() {
        let confirmations = Confirmations::default();
        let three = [vec![1, 2, 3]];
        let quorum = |term| confirmations.quorum(three.iter(), 1, term, MS(100));
        assert_eq!(quorum(5), None);
        confirmations.record(2, 5, MS(40));
        assert_eq!(quorum(5), Some(MS(40)));
        confirmations.record(3, 5, MS(60));
        assert_eq!(quorum(5), Some(MS(60)));
        assert_eq!(quorum(6), None, "another term's confirmations do not count");
        confirmations.record(3, 5, MS(50));
        assert_eq!(quorum(5), Some(MS(60)), "a late answer takes nothing back");
    }

    #[test]
    fn both_sides_of_a_joint_membership_must_confirm() {
        let confirmations = Confirmations::default();
        confirmations.record(2, 1, MS(90));
        let joint = [vec![1, 2, 3], vec![3, 4, 5]];
        assert_eq!(confirmations.quorum(joint.iter(), 1, 1, MS(100)), None);
        confirmations.record(4, 1, MS(70));
        confirmations.record(5, 1, MS(80));
        assert_eq!(confirmations.quorum(joint.iter(), 1, 1, MS(100)), Some(MS(70)));
        assert_eq!(confirmations.quorum([vec![1]].iter(), 1, 1, MS(100)), Some(MS(100)));
    }
}
