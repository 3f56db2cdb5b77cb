//! How members are shown: status, space, slots. Pure but for asking nodes what they are doing.

use std::collections::BTreeMap;

use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use wire::address::Address;
use wire::admin::{self, NodeStatus, Space};
use wire::id::NodeId;
use wire::peer::NodeStatusReply;

use super::NODES_AT_ONCE;
use super::host::Host;
use crate::cluster::entry::NodeSpec;
use crate::cluster::slots::MemberState;
use crate::cluster::state::{self, ClusterState};

/// Slot configurations that a node has a part in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) in_sync: u64,
    pub(super) catching_up: u64,
}

impl Held {
    pub(super) fn any(self) -> bool {
        self.in_sync + self.catching_up > 0
    }
}

/// How many slots each node holds.
pub(super) fn held(state: &ClusterState) -> BTreeMap<NodeId, Held> {
    let mut all: BTreeMap<NodeId, Held> = BTreeMap::new();
    for (_, _, config) in state.slots() {
        for member in &config.members {
            let held = all.entry(member.session.node).or_default();
            match member.state {
                MemberState::InSync => held.in_sync += 1,
                MemberState::CatchingUp | MemberState::Returned => held.catching_up += 1,
            }
        }
        for one in config.eligible.iter().filter(|e| config.on_node(e.node).is_none()) {
            all.entry(one.node).or_default().catching_up += 1;
        }
    }
    all
}

/// A member's status.
pub(super) fn status(node: &state::Node, held: Held) -> NodeStatus {
    match node.status {
        state::NodeStatus::Down => NodeStatus::Down,
        state::NodeStatus::Out => NodeStatus::Out,
        state::NodeStatus::Up if !node.ready && !node.spec.gateway => NodeStatus::Starting,
        state::NodeStatus::Up if node.disk_failed.is_some() => NodeStatus::DiskFailed,
        state::NodeStatus::Up if node.draining && held.any() => NodeStatus::Draining,
        state::NodeStatus::Up if node.draining => NodeStatus::Drained,
        state::NodeStatus::Up => NodeStatus::Up,
    }
}

/// A node as it describes itself.
pub(super) fn described(spec: &NodeSpec, me: NodeId) -> admin::Node {
    let address: Option<Address> = spec.admin.parse().ok();
    admin::Node {
        id: spec.session.node.0,
        host: address.as_ref().map(|a| a.host().to_owned()).unwrap_or_default(),
        port: address.map_or(0, |a| a.port().into()),
        zone: spec.zone.clone(),
        vnodes: spec.vnodes,
        space: None,
        status: NodeStatus::Waiting.into(),
        self_: spec.session.node == me,
        gateway: spec.gateway,
        session: spec.session.start,
        since_ms: 0,
    }
}

/// A member.
pub(super) fn member(node: &state::Node, held: Held, me: NodeId) -> admin::Node {
    let status = status(node, held).into();
    admin::Node { status, since_ms: node.since_ms, ..described(&node.spec, me) }
}

/// What a node says of its disk.
pub(super) fn space(reply: &NodeStatusReply) -> Space {
    Space { total: reply.space_total, free: reply.space_free, used: reply.space_used }
}

/// Asks nodes what they are doing, several at once; who does not answer is left out.
pub(super) async fn ask(host: &dyn Host, nodes: Vec<NodeId>) -> BTreeMap<NodeId, NodeStatusReply> {
    let ask_one = |id| async move { (id, host.node_status(id).await) }.boxed();
    let asked: Vec<BoxFuture<'_, _>> = nodes.into_iter().map(ask_one).collect();
    let mut answers = futures::stream::iter(asked).buffer_unordered(NODES_AT_ONCE);
    let mut replies = BTreeMap::new();
    while let Some((id, answer)) = answers.next().await {
        if let Some(reply) = answer {
            replies.insert(id, reply);
        }
    }
    replies
}

/// The members that store and can be asked.
pub(super) fn storing(state: &ClusterState) -> Vec<NodeId> {
    state.nodes().filter(|n| !n.spec.gateway).filter_map(|n| n.live_session()).map(|s| s.node).collect()
}

/// The members that can be asked.
pub(super) fn up(state: &ClusterState) -> Vec<NodeId> {
    state.nodes().filter_map(|n| n.live_session()).map(|s| s.node).collect()
}

/// All nodes, ordered by id: the members, or before a format those that wait.
pub(super) async fn list(state: &ClusterState, host: &dyn Host) -> Vec<admin::Node> {
    let me = host.spec().session.node;
    if state.format().is_none() {
        let mut waiting = host.known_nodes();
        waiting.sort_by_key(|s| s.session.node);
        waiting.dedup_by_key(|s| s.session.node);
        let replies = ask(host, waiting.iter().map(|s| s.session.node).collect()).await;
        let show = |spec: &NodeSpec| {
            let space = replies.get(&spec.session.node).filter(|_| !spec.gateway).map(space);
            admin::Node { space, ..described(spec, me) }
        };
        return waiting.iter().map(show).collect();
    }
    let replies = ask(host, up(state)).await;
    let held = held(state);
    let show = |node: &state::Node| {
        let id = node.spec.session.node;
        let space = replies.get(&id).filter(|_| !node.spec.gateway).map(space);
        admin::Node { space, ..member(node, held.get(&id).copied().unwrap_or_default(), me) }
    };
    state.nodes().map(show).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use async_trait::async_trait;
    use wire::id::{ClusterId, Session};
    use wire::policy::Copies;

    use super::super::host::FormatError;
    use super::*;
    use crate::cluster::entry::{ClusterEntry, ClusterReply};

    pub(crate) fn spec(id: u64) -> NodeSpec {
        NodeSpec {
            process: 1,
            session: Session { node: NodeId(id), start: 1 },
            boot: u128::from(id),
            admin: format!("127.0.0.1:{}", 7000 + id),
            mesh: format!("127.0.0.1:{}", 8000 + id),
            zone: format!("z{id}"),
            vnodes: 128,
            gateway: false,
            reached: Vec::new(),
            nonce: 0,
        }
    }

    pub(crate) fn apply(mut state: ClusterState, entry: &ClusterEntry) -> ClusterState {
        let reply = state.apply_entry(state.epoch().0 + 10, entry);
        assert!(!matches!(reply, ClusterReply::Refused(_)), "{entry:?}: {reply:?}");
        assert_eq!(state.validate(), Ok(()));
        state
    }

    /// A ring of nodes 1 to `nodes`, with 256 slots.
    pub(crate) fn founded(nodes: u64, copies: u64) -> ClusterState {
        let copies = Copies::new(copies).expect("in range");
        let nodes = (1..=nodes).map(spec).collect();
        let entry = ClusterEntry::Format { cluster: ClusterId(9), copies, slots: 256, nodes, now_ms: 5 };
        apply(ClusterState::default(), &entry)
    }

    pub(crate) fn evicted(state: ClusterState, nodes: &[u64]) -> ClusterState {
        let sessions = nodes.iter().map(|id| spec(*id).session).collect();
        apply(state, &ClusterEntry::Evict { sessions, now_ms: 6 })
    }

    /// A node that knows what it is told.
    pub(crate) struct FakeHost {
        pub(crate) known: Vec<NodeSpec>,
        pub(crate) silent: Vec<NodeId>,
    }

    #[async_trait]
    impl Host for FakeHost {
        fn spec(&self) -> NodeSpec {
            spec(1)
        }
        fn known_nodes(&self) -> Vec<NodeSpec> {
            self.known.clone()
        }
        fn default_copies(&self) -> Copies {
            Copies::new(3).expect("in range")
        }
        fn driver(&self) -> &'static str {
            "sdcluster"
        }
        async fn format(&self, _: Copies, _: u32, _: bool) -> Result<(), FormatError> {
            Err(FormatError::AlreadyFormatted)
        }
        fn view_is_fresh(&self) -> bool {
            true
        }
        async fn view_settles(&self) {}
        async fn node_status(&self, node: NodeId) -> Option<NodeStatusReply> {
            let reply = NodeStatusReply { space_total: 100, space_free: 60, ..NodeStatusReply::default() };
            (!self.silent.contains(&node)).then_some(reply)
        }
        fn shutdown(&self) {}
    }

    fn statuses(nodes: &[admin::Node]) -> Vec<(u64, NodeStatus)> {
        nodes.iter().map(|n| (n.id, n.status())).collect()
    }

    #[tokio::test]
    async fn before_a_format_those_that_wait_are_listed_once_each_with_their_space() {
        let gateway = NodeSpec { gateway: true, ..spec(4) };
        let known = vec![spec(2), spec(1), spec(2), spec(3), gateway];
        let host = FakeHost { known, silent: vec![NodeId(3)] };
        let nodes = list(&ClusterState::default(), &host).await;
        let waiting = |id| (id, NodeStatus::Waiting);
        assert_eq!(statuses(&nodes), [1, 2, 3, 4].map(waiting));
        let spaces: Vec<Option<u64>> = nodes.iter().map(|n| n.space.as_ref().map(|s| s.free)).collect();
        assert_eq!(spaces, [Some(60), Some(60), None, None]);
        assert_eq!((nodes[0].self_, nodes[1].self_), (true, false));
        assert_eq!((nodes[1].host.as_str(), nodes[1].port), ("127.0.0.1", 7002));
    }

    #[tokio::test]
    async fn members_are_listed_with_their_space_and_the_dead_without() {
        let host = FakeHost { known: Vec::new(), silent: vec![NodeId(3)] };
        let state = evicted(founded(4, 3), &[2]);
        let state = apply(state, &ClusterEntry::Out { node: NodeId(2) });
        let failed = ClusterEntry::FailDisk { session: spec(4).session, reason: "EIO".into() };
        let nodes = list(&apply(state, &failed), &host).await;
        use NodeStatus::{DiskFailed, Out, Up};
        assert_eq!(statuses(&nodes), [(1, Up), (2, Out), (3, Up), (4, DiskFailed)]);
        let spaces: Vec<Option<u64>> = nodes.iter().map(|n| n.space.as_ref().map(|s| s.free)).collect();
        assert_eq!(spaces, [Some(60), None, None, Some(60)]);
    }

    #[test]
    fn a_draining_node_is_drained_once_it_holds_nothing() {
        let state = apply(founded(4, 3), &ClusterEntry::Drain { node: NodeId(2), on: true });
        let node = state.node(NodeId(2)).expect("a member");
        let here = held(&state).get(&NodeId(2)).copied().unwrap_or_default();
        assert!(here.any());
        assert_eq!(status(node, here), NodeStatus::Draining);
        assert_eq!(status(node, Held::default()), NodeStatus::Drained);
        let dead = evicted(state, &[2]);
        assert_eq!(status(dead.node(NodeId(2)).expect("kept"), Held::default()), NodeStatus::Down);
    }
}
