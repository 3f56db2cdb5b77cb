//! The log of the model: every history of entries that was tried, as the states it leads to.
//!
//! The states are the product's ([`ClusterState`]), for one slot. They are kept here once, and known by number, so that
//! millions of states of the model share them.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use wire::id::{ClusterId, Generation, NodeId, Session, SlotIndex, VdiId};
use wire::policy::Copies;

use super::world::NODES;
use crate::cluster::entry::{ClusterEntry, ClusterReply, NodeSpec, Reached};
use crate::cluster::slots::SlotConfig;
use crate::cluster::state::ClusterState;

/// The one slot.
pub(super) const SLOT: SlotIndex = SlotIndex(0);
/// The one VDI.
pub(super) const VDI: VdiId = VdiId(1);

/// The one policy.
pub(super) fn copies() -> Copies {
    Copies::new(3).expect("in range")
}

/// A node of the model by its number.
pub(super) fn id(node: usize) -> NodeId {
    NodeId(node as u64 + 1)
}

/// A session of the model.
pub(super) fn session(node: usize, start: u8) -> Session {
    Session { node: id(node), start: start.into() }
}

/// The node of a session.
pub(super) fn place(session: Session) -> usize {
    session.node.0 as usize - 1
}

/// A history of entries, by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct PointId(u32);

/// What a history of entries leads to.
pub(super) struct Point {
    /// The index of the last entry.
    pub(super) index: u64,
    pub(super) state: ClusterState,
    /// The slot's configuration.
    pub(super) config: Arc<SlotConfig>,
    /// The start of each node's live session.
    pub(super) live: [Option<u8>; NODES],
    /// Who owns the VDI, and under which generation.
    pub(super) owner: Option<Session>,
    pub(super) generation: u8,
}

/// All of them.
#[derive(Default)]
pub(super) struct Log {
    points: Vec<Arc<Point>>,
    known: HashMap<u64, PointId>,
    applied: HashMap<(PointId, u64), Option<(PointId, bool)>>,
}

impl Log {
    /// The first history: a ring of three, and a VDI owned by the first of them.
    pub(super) fn found(&mut self) -> PointId {
        let mut state = ClusterState::default();
        let nodes = (0..NODES).map(|node| spec(node, 1, 1, 1, &[])).collect();
        let format =
            ClusterEntry::Format { cluster: ClusterId(1), copies: copies(), slots: 256, nodes, now_ms: 0 };
        state.apply_entry(1, &format);
        state.keep_first_slot();
        let name = "disk".parse().expect("a name");
        state.apply_entry(2, &ClusterEntry::CreateVdi { name, size: 1 << 22, copies: None, now_ms: 0 });
        state.apply_entry(3, &ClusterEntry::Acquire { vdi: VDI, session: session(0, 1) });
        self.intern(3, state)
    }

    /// A history.
    pub(super) fn at(&self, id: PointId) -> Arc<Point> {
        self.points[id.0 as usize].clone()
    }

    /// A history with one entry more, and whether that admitted anybody. `None` if it changes nothing: the log would be
    /// longer, and all else as it was.
    pub(super) fn then(&mut self, id: PointId, entry: &ClusterEntry) -> Option<(PointId, bool)> {
        let mut hasher = DefaultHasher::new();
        // Entries have no hash of their own.
        format!("{entry:?}").hash(&mut hasher);
        let name = (id, hasher.finish());
        if let Some(known) = self.applied.get(&name) {
            return *known;
        }
        let point = self.at(id);
        let (mut state, index) = (point.state.clone(), point.index + 1);
        let reply = state.apply_entry(index, entry);
        assert_eq!(state.validate(), Ok(()), "after {entry:?}");
        let changed = state.to_bytes() != point.state.to_bytes();
        let next = changed.then(|| (self.intern(index, state), matches!(reply, ClusterReply::Admitted(1..))));
        self.applied.insert(name, next);
        next
    }

    fn intern(&mut self, index: u64, state: ClusterState) -> PointId {
        let mut hasher = DefaultHasher::new();
        (index, state.to_bytes()).hash(&mut hasher);
        let number = PointId(self.points.len() as u32);
        let known = *self.known.entry(hasher.finish()).or_insert(number);
        if known == number {
            let config = state.slot(copies(), SLOT).expect("formatted").clone();
            let start_of = |node| state.node(id(node)).and_then(|n| n.live_session()).map(|s| s.start as u8);
            let ownership = state.vdi(VDI).expect("created").owner;
            let Generation(generation) = ownership.generation;
            self.points.push(Arc::new(Point {
                index,
                config,
                live: std::array::from_fn(start_of),
                owner: ownership.session,
                generation: generation as u8,
                state,
            }));
        }
        known
    }
}

/// What a node says of itself when it joins; `reached` is how far its log had come before its starts.
pub(super) fn spec(node: usize, start: u8, process: u8, boot: u8, reached: &[(u8, u8)]) -> NodeSpec {
    let reached =
        reached.iter().map(|(before, index)| Reached { before: (*before).into(), index: (*index).into() });
    NodeSpec {
        session: session(node, start),
        process: process.into(),
        nonce: 0,
        boot: boot.into(),
        admin: String::new(),
        mesh: String::new(),
        zone: format!("z{node}"),
        vnodes: 1,
        gateway: false,
        reached: reached.collect(),
    }
}
