//! Nodes that come, go and are forgotten. Pure.

use super::*;

impl ClusterState {
    pub(super) fn join(&mut self, index: u64, spec: &NodeSpec, now_ms: u64) -> Result<ClusterReply, Refusal> {
        let id = spec.session.node;
        if self.removed.contains(&id) {
            return Err(Refusal::NodeRemoved(id));
        }
        // Those that are away or drained may come back to their places.
        let others = self.nodes.values().filter(|n| n.spec.session.node != id);
        has_room(spec, others.map(|n| weight(&n.spec)).sum())?;
        let mut moved = true;
        match self.nodes.get(&id) {
            Some(known) if known.spec == *spec && known.status == NodeStatus::Up => {
                return Ok(ClusterReply::Done);
            }
            Some(known) if known.spec.session.start >= spec.session.start => {
                return Err(Refusal::StartNotHigher {
                    node: id,
                    start: spec.session.start,
                    seen: known.spec.session.start,
                });
            }
            Some(known) => {
                let same_place = known.spec.vnodes == spec.vnodes
                    && known.spec.zone == spec.zone
                    && known.spec.gateway == spec.gateway
                    && known.disk_failed.is_none()
                    && known.status != NodeStatus::Out;
                moved = !same_place;
                let (old, draining) = (known.spec.session, known.draining);
                self.end_session(old, now_ms);
                self.nodes.insert(id, Node { draining, ..new_node(spec, now_ms) });
            }
            None if self.nodes.len() >= MAX_NODES => {
                return Err(Refusal::TooManyNodes(MAX_NODES as u32));
            }
            None => {
                self.nodes.insert(id, new_node(spec, now_ms));
            }
        }
        self.membership_changed(index, moved);
        Ok(ClusterReply::Done)
    }

    /// Marks a live session as over and takes its VDIs from it.
    pub(super) fn end_session(&mut self, session: Session, now_ms: u64) {
        let Some(node) = self.nodes.get_mut(&session.node).filter(|n| n.spec.session == session) else {
            return;
        };
        if node.status == NodeStatus::Up {
            node.status = NodeStatus::Down;
            node.since_ms = now_ms;
        }
        self.disown(|owner| owner == session);
    }

    pub(super) fn remove(&mut self, index: u64, id: NodeId) -> Result<ClusterReply, Refusal> {
        let Some(node) = self.nodes.get(&id) else {
            return if self.removed.contains(&id) {
                Ok(ClusterReply::Done)
            } else {
                Err(Refusal::NoSuchNode(id))
            };
        };
        if node.status == NodeStatus::Up && !node.draining {
            return Err(Refusal::NodeInUse(id));
        }
        // What the node alone has in sync would be gone; while it is alive, whatever it still holds would be.
        let alive = node.status == NodeStatus::Up;
        let held = self
            .slots()
            .filter(|(_, _, config)| {
                let here = config.on_node(id).is_some_and(|m| m.state != MemberState::CatchingUp);
                if alive { here || config.is_eligible(id) } else { here && !self.has_live_copy(config) }
            })
            .count();
        if held > 0 {
            return Err(Refusal::LastCopies { node: id, slots: held as u32 });
        }
        let session = node.spec.session;
        self.end_session(session, 0);
        self.nodes.remove(&id);
        self.removed.insert(id);
        self.forget_eligible(id);
        self.membership_changed(index, true);
        Ok(ClusterReply::Done)
    }
}

/// A node's part of the ring's vnodes; gateways have none.
pub(super) fn weight(spec: &NodeSpec) -> u64 {
    if spec.gateway { 0 } else { spec.vnodes.into() }
}

/// Refuses a node with which the ring could not be laid out.
pub(super) fn has_room(spec: &NodeSpec, others: u64) -> Result<(), Refusal> {
    let sound = spec.gateway || (1..=MAX_VNODES_PER_NODE).contains(&spec.vnodes);
    if sound && others.saturating_add(weight(spec)) <= MAX_VNODES as u64 {
        return Ok(());
    }
    Err(Refusal::TooManyVnodes { node: spec.session.node, vnodes: spec.vnodes, others })
}

pub(super) fn new_node(spec: &NodeSpec, now_ms: u64) -> Node {
    Node {
        spec: spec.clone(),
        status: NodeStatus::Up,
        draining: false,
        ready: false,
        disk_failed: None,
        since_ms: now_ms,
    }
}
