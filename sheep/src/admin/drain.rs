//! Moving everything off a node, and forgetting it.

use std::time::Duration;

use wire::admin::{AdminError, DrainEvent, ErrorKind, RemoveNodeReply};
use wire::id::NodeId;
use wire::size::count;

use super::stream::{Ended, Sink};
use super::{Admin, error};
use crate::cluster::entry::{ClusterEntry, Refusal};
use crate::cluster::state::{ClusterState, NodeStatus};

/// How often a drain is reported while it goes on.
const REPORT: Duration = Duration::from_millis(500);

/// Whether a node can be emptied: the others must be able to hold every slot.
pub(super) fn may_drain(state: &ClusterState, id: NodeId) -> Result<(), AdminError> {
    let node = state.node(id).ok_or(Refusal::NoSuchNode(id))?;
    if node.draining || node.spec.gateway {
        return Ok(());
    }
    let takes = |n: &&crate::cluster::state::Node| {
        n.spec.session.node != id
            && !n.spec.gateway
            && !n.draining
            && n.disk_failed.is_none()
            && n.status != NodeStatus::Out
    };
    let left = state.nodes().filter(takes).count();
    let need = state.slots().map(|(copies, _, _)| usize::from(copies.get())).max().unwrap_or(1);
    if left < need {
        let left = count(left as u64, "node is", "nodes are");
        let need = count(need as u64, "copy", "copies");
        let why = format!("without node {id}, {left} left for {need}");
        return Err(AdminError::new(ErrorKind::Refused, why)
            .hint("add a sheep first, or delete the VDIs that have that many copies"));
    }
    Ok(())
}

/// How many slots a node is still on record for, if only until those that took over know it.
fn slots_on(state: &ClusterState, id: NodeId) -> u64 {
    state.slots().filter(|(_, _, config)| config.is_on_record(id)).count() as u64
}

/// Why a drain does not advance, for people.
fn obstacle(state: &ClusterState, id: NodeId) -> String {
    if state.recovery().paused {
        return "recovery is paused: `dog node recovery --resume` lets it go on".to_owned();
    }
    let waiting = state.slots().filter(|(_, _, c)| c.is_on_record(id) && state.waits(c)).count();
    if waiting > 0 {
        return format!("{waiting} slots wait for copies on nodes that are down");
    }
    let down: Vec<String> = state
        .nodes()
        .filter(|n| n.status == NodeStatus::Down && !n.spec.gateway && n.spec.session.node != id)
        .map(|n| n.spec.session.node.to_string())
        .collect();
    match down.is_empty() {
        true => String::new(),
        false => format!("down, and to take some of it: {}", down.join(", ")),
    }
}

impl Admin {
    /// Marks a node as draining, and reports until it is empty.
    pub(super) async fn drain_node(&self, sink: &Sink<DrainEvent>, id: NodeId) -> Result<(), Ended> {
        let view = &self.gateway.context.view;
        let state = view.state();
        if state.node(id).is_some_and(|n| !n.draining) {
            self.propose(ClusterEntry::Drain { node: id, on: true }).await?;
        }
        let mut total = 0;
        let mut told = None;
        loop {
            let state = view.state();
            let node = state.node(id).ok_or_else(|| AdminError::from(Refusal::NoSuchNode(id)))?;
            if !node.draining {
                let why = format!("node {id} is no longer to be drained");
                return Err(AdminError::new(ErrorKind::Refused, why).into());
            }
            let left = slots_on(&state, id);
            total = left.max(total);
            let used = match left {
                0 => 0,
                _ => self.host.node_status(id).await.map_or(0, |r| r.space_used),
            };
            let share = u128::from(used) * u128::from(left) / u128::from(total.max(1));
            let event = DrainEvent {
                view: self.view(),
                slots_left: left,
                slots_total: total,
                bytes_left: u64::try_from(share).unwrap_or(u64::MAX),
                done: left == 0,
                waiting_for: if left == 0 { String::new() } else { obstacle(&state, id) },
            };
            let now = (event.slots_left, event.waiting_for.clone());
            if told.as_ref() != Some(&now) || left == 0 {
                sink.send(event).await?;
                told = Some(now);
            }
            if left == 0 {
                return Ok(());
            }
            tokio::time::sleep(REPORT).await;
        }
    }

    /// Takes a node out of the ring for good.
    pub(super) async fn remove_node(&self, id: NodeId) -> Result<RemoveNodeReply, AdminError> {
        if id == self.host.spec().session.node {
            let state = self.gateway.context.view.state();
            let alone = state.nodes().count() <= 1;
            if alone {
                let why = format!("node {id} is the only one of the ring");
                return Err(
                    AdminError::new(ErrorKind::Refused, why).hint("stop it with `dog cluster shutdown`")
                );
            }
        }
        self.propose(ClusterEntry::Remove { node: id }).await?;
        Ok(RemoveNodeReply { view: self.view() })
    }

    /// A member that must be known.
    pub(super) fn known(&self, state: &ClusterState, id: NodeId) -> Result<(), AdminError> {
        state.node(id).map(drop).ok_or_else(|| Refusal::NoSuchNode(id).into())
    }

    /// The error for a member that did not answer.
    pub(super) fn silent(&self, state: &ClusterState, id: NodeId) -> AdminError {
        error::silent(id, state.node(id).map(|n| n.spec.admin.as_str()).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::super::nodes::held;
    use super::super::nodes::tests::{apply, evicted, founded};
    use super::*;

    #[test]
    fn a_drain_that_leaves_too_few_nodes_is_refused_with_a_way_out() {
        let error = may_drain(&founded(3, 3), NodeId(1)).expect_err("three copies, two nodes");
        assert_eq!(error.kind, ErrorKind::Refused);
        assert!(error.message.contains("2 nodes are left for 3 copies"), "{}", error.message);
        assert!(!error.hint.is_empty());
        assert_eq!(may_drain(&founded(4, 3), NodeId(1)), Ok(()));
        let one = apply(founded(4, 3), &ClusterEntry::Drain { node: NodeId(1), on: true });
        assert_eq!(may_drain(&one, NodeId(1)), Ok(()), "asking again reports on");
        assert!(may_drain(&one, NodeId(2)).is_err());
        assert_eq!(may_drain(&one, NodeId(9)).expect_err("a stranger").kind, ErrorKind::NotFound);
    }

    #[test]
    fn a_node_is_not_empty_while_it_is_on_record() {
        let state = evicted(founded(4, 3), &[2]);
        let on_record: usize = state.slots().filter(|(_, _, config)| config.is_eligible(NodeId(2))).count();
        assert!(on_record > 0, "taken out of every slot, and nobody has said that it knows");
        assert!(state.slots().all(|(_, _, config)| config.on_node(NodeId(2)).is_none()));
        let shown = held(&state).get(&NodeId(2)).copied().unwrap_or_default();
        assert_eq!(slots_on(&state, NodeId(2)), on_record as u64);
        assert!(shown.any(), "`node info` says the same");
    }

    #[test]
    fn a_drain_that_stands_still_says_why() {
        let state = apply(founded(4, 3), &ClusterEntry::Drain { node: NodeId(1), on: true });
        assert!(slots_on(&state, NodeId(1)) > 0);
        assert_eq!(obstacle(&state, NodeId(1)), "");
        let paused = apply(state.clone(), &ClusterEntry::SetRecovery { paused: true, limit: None });
        assert!(obstacle(&paused, NodeId(1)).contains("paused"));
        assert!(obstacle(&evicted(state, &[2]), NodeId(1)).contains("0000000000000002"));
    }
}
