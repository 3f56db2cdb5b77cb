//! Requests from other nodes.

use std::time::Duration;

use openraft::error::{Fatal, RaftError};
use openraft::raft::VoteRequest;
use serde::{Deserialize, Serialize};
use wire::id::NodeId;

use super::ClusterLog;
use super::blob::Blob;
use super::codec;
use super::error::{ProposeError, ReadError, RpcFailure};
use super::net::LogOp;
use super::transfer::{PieceAnswer, Received};
use super::types::{LogId, Machine};

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct ProposeRequest {
    pub(super) entry: Blob,
    /// How long the proposer still waits.
    pub(super) wait: Duration,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) enum ProposeAnswer {
    Applied { index: u64, reply: Blob },
    NotLeader,
    Refused(String),
    Timeout,
    Stopped(String),
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) enum BarrierAnswer {
    Index(u64),
    NotLeader,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct CanvassRequest {
    pub(super) candidate: NodeId,
    pub(super) last: Option<LogId>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct CanvassAnswer {
    pub(super) yes: bool,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct SucceedRequest {
    pub(super) leaving: NodeId,
}

impl<M: Machine> ClusterLog<M> {
    /// Serves a request that another node's [`LogNet`](super::LogNet) sent. The caller has made sure that
    /// the sender belongs to this ring.
    pub async fn handle_rpc(&self, op: LogOp, body: &[u8]) -> Result<Vec<u8>, RpcFailure> {
        let inner = &*self.inner;
        match op {
            LogOp::Append => {
                let request = codec::decode(body)?;
                let _gate = inner.contact.appending().await;
                let answer = inner.raft.append_entries(request).await.map_err(stopped)?;
                if !matches!(answer, openraft::raft::AppendEntriesResponse::HigherVote(_)) {
                    inner.contact.heard();
                }
                Ok(codec::encode(&answer))
            }
            LogOp::Vote => {
                let request: VoteRequest<u64> = codec::decode(body)?;
                let term = request.vote.leader_id.term;
                let _voting = inner.contact.voting();
                let leads = self.majority_confirmed(inner.config.leader_lease);
                if leads && !inner.contact.is_leaving() || inner.contact.refuses_votes() {
                    return Err(RpcFailure::Refused("this node leads, or has just handed over".to_owned()));
                }
                let answer = inner.raft.vote(request).await.map_err(stopped)?;
                if answer.vote_granted {
                    inner.contact.voted(term, inner.config.leader_lease);
                }
                Ok(codec::encode(&answer))
            }
            LogOp::Snapshot => {
                let answer = match inner.receiver.take(codec::decode(body)?)? {
                    Received::Want(offset) => PieceAnswer::Want(offset),
                    Received::Complete(vote, snapshot) => {
                        let installed = inner.raft.install_full_snapshot(vote, snapshot).await;
                        PieceAnswer::Done(installed.map_err(fatal)?.vote)
                    }
                };
                Ok(codec::encode(&answer))
            }
            LogOp::Propose => {
                let request: ProposeRequest = codec::decode(body)?;
                // What this version cannot apply it must not let into the log.
                let answer = match codec::decode::<M::Entry>(&request.entry.0) {
                    Err(error) => ProposeAnswer::Refused(error.to_string()),
                    Ok(_) => self.propose_as_leader(request.entry, request.wait).await,
                };
                Ok(codec::encode(&answer))
            }
            LogOp::Barrier => Ok(codec::encode(&self.barrier_as_leader().await?)),
            LogOp::Canvass => {
                let request: CanvassRequest = codec::decode(body)?;
                let yes = inner.contact.silence() > inner.config.leader_lease
                    && !self.majority_confirmed(inner.config.leader_lease)
                    && request.last >= inner.log_store.last()
                    && inner.contact.promise(request.candidate);
                Ok(codec::encode(&CanvassAnswer { yes }))
            }
            LogOp::Succeed => {
                let request: SucceedRequest = codec::decode(body)?;
                self.succeed(request.leaving).await?;
                Ok(codec::encode(&()))
            }
        }
    }
}

pub(super) fn stopped(error: RaftError<u64>) -> RpcFailure {
    match error {
        RaftError::APIError(never) => match never {},
        RaftError::Fatal(error) => fatal(error),
    }
}

pub(super) fn fatal(error: Fatal<u64>) -> RpcFailure {
    RpcFailure::Stopped(error.to_string())
}

impl From<RpcFailure> for ReadError {
    fn from(failure: RpcFailure) -> Self {
        Self::Stopped(failure.to_string())
    }
}

impl From<RpcFailure> for ProposeError {
    fn from(failure: RpcFailure) -> Self {
        Self::Stopped(failure.to_string())
    }
}
