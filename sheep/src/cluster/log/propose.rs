//! Proposals and read barriers, from any node.

use std::time::Duration;

use openraft::error::{CheckIsLeaderError, ClientWriteError, RaftError};
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use super::blob::Blob;
use super::codec;
use super::error::{ProposeError, ReadError, RpcFailure};
use super::net::{self, LogOp, NetError};
use super::rpc::{BarrierAnswer, ProposeAnswer, ProposeRequest};
use super::types::Machine;
use super::{ClusterLog, LeaderInfo};

/// Pause before asking again who leads; a change of leader ends it early.
const RETRY: Duration = Duration::from_millis(25);

impl<M: Machine> ClusterLog<M> {
    /// Orders `entry` and returns its index and the machine's reply, once it is committed and applied at
    /// the leader. Any node may: the entry is forwarded. Tries again while there is no leader, until
    /// `deadline` from now. Dropping the future does not take the entry back.
    pub async fn propose(
        &self,
        entry: M::Entry,
        deadline: Duration,
    ) -> Result<(u64, M::Reply), ProposeError> {
        let until = Instant::now() + deadline;
        let entry = Blob::from(codec::encode(&entry));
        let mut tried = false;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() && tried {
                return Err(ProposeError::NoLeader);
            }
            tried = true;
            let answer = match self.leader() {
                None => ProposeAnswer::NotLeader,
                Some(leader) if leader.node == self.inner.config.node => {
                    self.propose_as_leader(entry.clone(), left).await
                }
                Some(leader) => self.propose_at(leader, entry.clone(), left).await?,
            };
            match answer {
                ProposeAnswer::NotLeader => self.await_leader_change(until).await?,
                answer => return answered(answer),
            }
        }
    }

    /// Orders `entry` if this node leads, and forwards nothing: for what only a leader knows. Otherwise as
    /// [`ClusterLog::propose`].
    pub async fn propose_here(
        &self,
        entry: M::Entry,
        deadline: Duration,
    ) -> Result<(u64, M::Reply), ProposeError> {
        let entry = Blob::from(codec::encode(&entry));
        answered(self.propose_as_leader(entry, deadline).await)
    }

    /// Proposes here; `NotLeader` only when the entry has no chance of being applied.
    pub(super) async fn propose_as_leader(&self, entry: Blob, wait: Duration) -> ProposeAnswer {
        if self.inner.contact.is_leaving() {
            return ProposeAnswer::NotLeader;
        }
        let written = tokio::time::timeout(wait, self.inner.raft.client_write(entry)).await;
        match written {
            Err(_) => ProposeAnswer::Timeout,
            Ok(Ok(done)) => {
                ProposeAnswer::Applied { index: done.log_id.index, reply: done.data.unwrap_or_default() }
            }
            Ok(Err(RaftError::APIError(ClientWriteError::ForwardToLeader(_)))) => ProposeAnswer::NotLeader,
            Ok(Err(RaftError::APIError(error))) => ProposeAnswer::Refused(error.to_string()),
            Ok(Err(RaftError::Fatal(error))) => ProposeAnswer::Stopped(error.to_string()),
        }
    }

    /// Forwards the entry. A leader that has been replaced may never answer, so the wait for it ends when
    /// its successor is known.
    async fn propose_at(
        &self,
        leader: LeaderInfo,
        entry: Blob,
        wait: Duration,
    ) -> Result<ProposeAnswer, ProposeError> {
        let request = ProposeRequest { entry, wait };
        let asked = net::call(&*self.inner.net, leader.node, LogOp::Propose, &request, wait);
        let mut metrics = self.inner.raft.metrics();
        let replaced = metrics.wait_for(|metrics| {
            metrics.current_term > leader.term && metrics.current_leader.is_some()
                || metrics.running_state.is_err()
        });
        let answer = tokio::select! {
            answer = asked => answer,
            // The entry is on its way or in somebody's log; dropping the call takes nothing back.
            _ = replaced => Err(NetError::Failed("the leader was replaced".to_owned())),
        };
        match answer {
            Ok(answer) => Ok(answer),
            Err(NetError::Unreachable) => Ok(ProposeAnswer::NotLeader),
            Err(NetError::Failed(reason)) => Err(ProposeError::Uncertain(reason)),
        }
    }

    async fn await_leader_change(&self, until: Instant) -> Result<(), ProposeError> {
        let mut metrics = self.inner.raft.server_metrics();
        metrics.mark_unchanged();
        let pause = RETRY.min(until.saturating_duration_since(Instant::now()));
        match tokio::time::timeout(pause, metrics.changed()).await {
            Ok(Err(_)) => Err(ProposeError::Stopped("raft has ended".to_owned())),
            Ok(Ok(())) | Err(_) => Ok(()),
        }
    }

    /// Waits until this node's state holds everything that was committed anywhere before the call, and
    /// returns the index that ensures it: reads of [`ClusterLog::watch`] after it are linearizable.
    pub async fn read_barrier(&self, deadline: Duration) -> Result<u64, ReadError> {
        let until = Instant::now() + deadline;
        loop {
            let answer = match self.leader() {
                None => BarrierAnswer::NotLeader,
                Some(leader) if leader.node == self.inner.config.node => self.barrier_as_leader().await?,
                Some(leader) => {
                    let wait = until.saturating_duration_since(Instant::now()).min(BARRIER_TIMEOUT);
                    let asked = net::call(&*self.inner.net, leader.node, LogOp::Barrier, &(), wait).await;
                    // Asking twice is harmless, so every failure is one to try again.
                    asked.unwrap_or(BarrierAnswer::NotLeader)
                }
            };
            if let BarrierAnswer::Index(index) = answer {
                self.wait_applied(index, until.saturating_duration_since(Instant::now())).await?;
                return Ok(index);
            }
            if Instant::now() >= until {
                return Err(ReadError::NoLeader);
            }
            self.await_leader_change(until).await.map_err(|error| ReadError::Stopped(error.to_string()))?;
        }
    }

    pub(super) async fn barrier_as_leader(&self) -> Result<BarrierAnswer, RpcFailure> {
        match self.inner.raft.get_read_log_id().await {
            Ok((read, _)) => Ok(BarrierAnswer::Index(read.map_or(0, |id| id.index))),
            Err(RaftError::APIError(
                CheckIsLeaderError::ForwardToLeader(_) | CheckIsLeaderError::QuorumNotEnough(_),
            )) => Ok(BarrierAnswer::NotLeader),
            Err(RaftError::Fatal(error)) => Err(RpcFailure::Stopped(error.to_string())),
        }
    }

    /// Waits until this node has applied the entry at `index`.
    async fn wait_applied(&self, index: u64, deadline: Duration) -> Result<(), ReadError> {
        let mut watch = self.watch();
        let reached = watch.wait_for(|applied| applied.index >= index);
        match tokio::time::timeout(deadline, reached).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(ReadError::Stopped("the state machine has ended".to_owned())),
            Err(_) => Err(ReadError::Timeout { wanted: index, applied: self.watch().borrow().index }),
        }
    }
}

/// What an answer comes to.
fn answered<R: DeserializeOwned>(answer: ProposeAnswer) -> Result<(u64, R), ProposeError> {
    match answer {
        ProposeAnswer::Applied { index, reply } => {
            let reply =
                codec::decode(&reply.0).map_err(|error| ProposeError::Uncertain(error.to_string()))?;
            Ok((index, reply))
        }
        ProposeAnswer::Refused(reason) => Err(ProposeError::Refused(reason)),
        ProposeAnswer::Timeout => Err(ProposeError::Timeout),
        ProposeAnswer::Stopped(reason) => Err(ProposeError::Uncertain(reason)),
        ProposeAnswer::NotLeader => Err(ProposeError::NoLeader),
    }
}

/// How long one attempt at a barrier may take before the leader is looked up again.
const BARRIER_TIMEOUT: Duration = Duration::from_millis(500);
