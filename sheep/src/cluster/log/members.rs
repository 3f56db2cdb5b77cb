//! Changing who votes and who learns.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use openraft::error::{ChangeMembershipError, ClientWriteError, RaftError};
use openraft::{ChangeMembers, EmptyNode, LogIdOptionExt};
use tokio::time::Instant;
use wire::id::NodeId;

use super::ClusterLog;
use super::error::MembersError;
use super::types::Machine;
use crate::mutant::{Mutant, planted};

/// How far behind a node may be and become a voter. A voter that is far behind counts for the quorum while
/// it cannot yet confirm anything, so commits would wait for it.
const LAG_MAX: u64 = 256;

impl<M: Machine> ClusterLog<M> {
    /// Makes the log's members these: nodes in neither set are removed, new voters learn first and must
    /// have caught up. Only the leader may. Asking for what is already so does nothing, so a call that
    /// failed half-way, or whose leader died, is simply repeated.
    pub async fn set_members(
        &self,
        voters: BTreeSet<NodeId>,
        learners: BTreeSet<NodeId>,
        deadline: Duration,
    ) -> Result<(), MembersError> {
        if voters.is_empty() {
            return Err(MembersError::NoVoters);
        }
        let until = Instant::now() + deadline;
        match tokio::time::timeout_at(until, self.change_members(&voters, &learners, until)).await {
            Ok(result) => result,
            Err(_) => Err(MembersError::Timeout),
        }
    }

    async fn change_members(
        &self,
        voters: &BTreeSet<NodeId>,
        learners: &BTreeSet<NodeId>,
        until: Instant,
    ) -> Result<(), MembersError> {
        let wanted_voters: BTreeSet<u64> = voters.iter().map(|node| node.0).collect();
        let wanted: BTreeSet<u64> = voters.union(learners).map(|node| node.0).collect();

        let (_, _, known) = self.members();
        let missing: BTreeMap<u64, EmptyNode> =
            wanted.difference(&known).map(|node| (*node, EmptyNode {})).collect();
        if !missing.is_empty() {
            self.change(ChangeMembers::AddNodes(missing)).await?;
        }

        let (current, joint, _) = self.members();
        if joint || current != wanted_voters {
            let left: BTreeSet<u64> = current.intersection(&wanted_voters).copied().collect();
            if planted(Mutant::VotersFirst) && !left.is_empty() {
                self.change(ChangeMembers::ReplaceAllVoters(left)).await?;
            }
            for node in wanted_voters.difference(&current) {
                self.await_caught_up(*node, until).await?;
            }
            self.change(ChangeMembers::ReplaceAllVoters(wanted_voters.clone())).await?;
        }

        let (_, _, known) = self.members();
        let surplus: BTreeSet<u64> = known.difference(&wanted).copied().collect();
        if !surplus.is_empty() {
            self.change(ChangeMembers::RemoveNodes(surplus)).await?;
        }
        Ok(())
    }

    /// Voters, whether they are in the middle of a change, and everyone.
    fn members(&self) -> (BTreeSet<u64>, bool, BTreeSet<u64>) {
        let metrics = self.inner.raft.metrics();
        let metrics = metrics.borrow();
        let membership = metrics.membership_config.membership();
        let all = membership.nodes().map(|(node, _)| *node).collect();
        (membership.voter_ids().collect(), membership.get_joint_config().len() > 1, all)
    }

    async fn change(&self, change: ChangeMembers<u64, EmptyNode>) -> Result<(), MembersError> {
        let at = match self.inner.raft.change_membership(change, true).await {
            Ok(done) => done.log_id.index,
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(_))) => {
                return Err(MembersError::NotLeader);
            }
            Err(RaftError::APIError(ClientWriteError::ChangeMembershipError(error))) => {
                return Err(match error {
                    ChangeMembershipError::InProgress(_) => MembersError::InProgress,
                    ChangeMembershipError::EmptyMembership(_) => MembersError::NoVoters,
                    ChangeMembershipError::LearnerNotFound(error) => {
                        MembersError::NotReady(NodeId(error.node_id))
                    }
                });
            }
            Err(RaftError::Fatal(error)) => return Err(MembersError::Stopped(error.to_string())),
        };
        // The next step looks at the metrics, which follow a moment later.
        let mut metrics = self.inner.raft.metrics();
        let seen = metrics.wait_for(|metrics| metrics.membership_config.log_id().index() >= Some(at)).await;
        seen.map(drop).map_err(|_| MembersError::Stopped("raft has ended".to_owned()))
    }

    async fn await_caught_up(&self, node: u64, until: Instant) -> Result<(), MembersError> {
        let mut metrics = self.inner.raft.metrics();
        let near = metrics.wait_for(|metrics| {
            let Some(replication) = &metrics.replication else {
                return true;
            };
            let matched = replication.get(&node).copied().flatten();
            let last = metrics.last_log_index.unwrap_or(0);
            matched.is_some_and(|matched| matched.index + LAG_MAX >= last)
        });
        // A little before the caller's deadline, so that it hears which node it was.
        match tokio::time::timeout_at(until - GRACE, near).await {
            Err(_) => Err(MembersError::NotReady(NodeId(node))),
            Ok(Err(_)) => Err(MembersError::Stopped("raft has ended".to_owned())),
            Ok(Ok(metrics)) if metrics.replication.is_none() => Err(MembersError::NotLeader),
            Ok(Ok(_)) => Ok(()),
        }
    }
}

const GRACE: Duration = Duration::from_millis(20);
