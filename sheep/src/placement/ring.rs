//! Consistent hashing: slots to nodes.
//!
//! Each node has a number of points (vnodes) on a ring of 64-bit numbers, in proportion to the share it
//! should hold; slots sit on the same ring at even distances. From its place a slot walks upwards and takes
//! the first node of each new zone, then, if there are fewer zones than copies, the first nodes not taken
//! yet. So a node that joins displaces at most one holder of a slot, and one that leaves moves only what it
//! held. The points depend on node ids alone, never on the order or number of nodes: they are part of the
//! ring's format, see the golden values in the tests.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use wire::id::{NodeId, SlotIndex};
use wire::policy::Copies;

use super::slot::SlotCount;

/// The name of a failure domain.
pub type ZoneKey = Arc<str>;

/// The most nodes of a ring.
pub const MAX_NODES: usize = 6_144;
/// The vnodes of a node of ordinary weight. More spread better and take longer to sort.
pub const DEFAULT_VNODES: u32 = 128;
/// The most vnodes of one node.
pub const MAX_VNODES_PER_NODE: u32 = 65_536;
/// The most vnodes of a ring: the largest ring with ordinary weights, 6 MiB of points.
pub const MAX_VNODES: usize = MAX_NODES * DEFAULT_VNODES as usize;

/// The low bits of a point hold its node's index, enough for [`MAX_NODES`].
const NODE_BITS: u32 = 13;
const NODE_MASK: u64 = (1 << NODE_BITS) - 1;
const _: () = assert!(MAX_NODES <= 1 << NODE_BITS);

/// How many points a walk looks at before it asks an index instead. Where weights are ordinary a walk sees
/// about ten; a small zone beside a large one could otherwise make it go round the ring for every slot.
const WALK_LIMIT: usize = 256;

/// A node that holds objects. Gateways without storage are not part of the ring.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RingNode {
    /// The node.
    pub id: NodeId,
    /// Its failure domain.
    pub zone: ZoneKey,
    /// Its weight, 1 to [`MAX_VNODES_PER_NODE`]; [`DEFAULT_VNODES`] is ordinary.
    pub vnodes: u32,
}

/// A set of nodes that cannot form a ring.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RingError {
    /// More than [`MAX_NODES`].
    #[error("{count} nodes: a ring has at most {MAX_NODES}")]
    TooManyNodes {
        /// How many were given.
        count: usize,
    },
    /// More than [`MAX_VNODES`] in all.
    #[error("{count} vnodes: a ring has at most {MAX_VNODES}")]
    TooManyVnodes {
        /// How many were asked for.
        count: usize,
    },
    /// A node with no vnodes or more than [`MAX_VNODES_PER_NODE`].
    #[error("node {node} has {vnodes} vnodes: must be 1 to {MAX_VNODES_PER_NODE}")]
    Vnodes {
        /// The node.
        node: NodeId,
        /// What it asked for.
        vnodes: u32,
    },
    /// The same node twice.
    #[error("node {node} is listed twice")]
    Duplicate {
        /// The node.
        node: NodeId,
    },
}

/// Index of a node in [`Ring::nodes`], below [`MAX_NODES`].
type NodeIndex = u16;
/// Index of a zone, below [`MAX_NODES`].
type ZoneIndex = u16;

/// The points of a set of nodes.
#[derive(Debug)]
pub struct Ring {
    /// By id, so that indices do not depend on the order in which nodes were given.
    nodes: Vec<NodeId>,
    /// The zone of each node.
    zones: Vec<ZoneIndex>,
    zone_count: usize,
    /// Ascending. The top bits are a hash, the bottom ones the node's index: one word per point keeps the
    /// sort fast, and the 51 bits left of the hash collide too seldom to matter.
    points: Vec<u64>,
    by_zone: OnceLock<Groups>,
    by_node: OnceLock<Groups>,
}

impl Ring {
    /// The ring of `nodes`; their order does not matter.
    pub fn new(nodes: &[RingNode]) -> Result<Self, RingError> {
        if nodes.len() > MAX_NODES {
            return Err(RingError::TooManyNodes { count: nodes.len() });
        }
        if let Some(bad) = nodes.iter().find(|n| !(1..=MAX_VNODES_PER_NODE).contains(&n.vnodes)) {
            return Err(RingError::Vnodes { node: bad.id, vnodes: bad.vnodes });
        }
        let count = nodes.iter().map(|n| n.vnodes as usize).sum();
        if count > MAX_VNODES {
            return Err(RingError::TooManyVnodes { count });
        }
        let mut sorted: Vec<&RingNode> = nodes.iter().collect();
        sorted.sort_unstable_by_key(|n| n.id);
        if let Some(pair) = sorted.windows(2).find(|pair| pair[0].id == pair[1].id) {
            return Err(RingError::Duplicate { node: pair[0].id });
        }
        let mut zone_of = HashMap::new();
        let mut zones = Vec::with_capacity(sorted.len());
        let mut points = Vec::with_capacity(count);
        for (index, node) in sorted.iter().enumerate() {
            let next = zone_of.len() as ZoneIndex;
            zones.push(*zone_of.entry(&*node.zone).or_insert(next));
            points.extend((0..node.vnodes).map(|v| point(node.id, v) & !NODE_MASK | index as u64));
        }
        Ok(Self {
            nodes: sorted.iter().map(|n| n.id).collect(),
            zones,
            zone_count: zone_of.len(),
            points: sorted_points(points),
            by_zone: OnceLock::new(),
            by_node: OnceLock::new(),
        })
    }

    /// The number of nodes.
    pub fn node_count(&self) -> usize {
        self.nodes.len()
    }

    /// The nodes that should hold `copies` copies of `slot`, best first: in distinct zones while there are
    /// enough zones, then on distinct nodes; fewer when there are fewer nodes.
    ///
    /// Panics if `slot` is not below `slots`.
    pub fn place(&self, slot: SlotIndex, slots: SlotCount, copies: Copies) -> Vec<NodeId> {
        let mut out = Vec::with_capacity(usize::from(copies.get()));
        self.place_into(slot, slots, copies, &mut out);
        out
    }

    /// As [`Ring::place`], appending to `out`.
    pub(super) fn place_into(
        &self,
        slot: SlotIndex,
        slots: SlotCount,
        copies: Copies,
        out: &mut Vec<NodeId>,
    ) {
        let from = place_of(slot, slots);
        let want = usize::from(copies.get()).min(self.nodes.len());
        let mut taken = Taken::default();
        self.take_zones(from, want.min(self.zone_count), &mut taken);
        self.take_nodes(from, want, &mut taken);
        out.extend(taken.nodes().iter().map(|&n| self.nodes[usize::from(n)]));
    }

    /// Takes the first node of each of the next zones until there are `want`.
    fn take_zones(&self, from: u64, want: usize, taken: &mut Taken) {
        let mut seen = [ZoneIndex::MAX; Copies::MAX as usize];
        for node in self.walk(from).take(WALK_LIMIT) {
            if taken.len == want {
                return;
            }
            let zone = self.zones[usize::from(node)];
            if !seen[..taken.len].contains(&zone) {
                seen[taken.len] = zone;
                taken.push(node);
            }
        }
        if taken.len < want {
            let seen = &seen[..taken.len];
            let zones = self.by_zone.get_or_init(|| {
                Groups::new(&self.points, self.zone_count, |node| self.zones[usize::from(node)])
            });
            zones.next(from, want - taken.len, |zone| !seen.contains(&zone)).for_each(|n| taken.push(n));
        }
    }

    /// Takes the next nodes that are not taken yet until there are `want`.
    fn take_nodes(&self, from: u64, want: usize, taken: &mut Taken) {
        if taken.len == want {
            return;
        }
        for node in self.walk(from).take(WALK_LIMIT) {
            if !taken.nodes().contains(&node) {
                taken.push(node);
                if taken.len == want {
                    return;
                }
            }
        }
        let nodes = self.by_node.get_or_init(|| Groups::new(&self.points, self.nodes.len(), |node| node));
        let before = *taken;
        let next = nodes.next(from, want - taken.len, |node| !before.nodes().contains(&node));
        next.for_each(|n| taken.push(n));
    }

    /// The nodes of all points, upwards from `from`, once round the ring.
    fn walk(&self, from: u64) -> impl Iterator<Item = NodeIndex> {
        let (below, above) = self.points.split_at(self.points.partition_point(|&p| p < from));
        above.iter().chain(below).map(|&p| node_of(p))
    }
}

/// The nodes chosen for one slot so far.
#[derive(Clone, Copy, Default)]
struct Taken {
    nodes: [NodeIndex; Copies::MAX as usize],
    len: usize,
}

impl Taken {
    fn push(&mut self, node: NodeIndex) {
        self.nodes[self.len] = node;
        self.len += 1;
    }

    fn nodes(&self) -> &[NodeIndex] {
        &self.nodes[..self.len]
    }
}

/// The points of each zone, or of each node, ascending: finds where a walk would first meet a group
/// without walking there.
#[derive(Debug)]
struct Groups {
    points: Vec<u64>,
    /// Group `g` has `points[starts[g]..starts[g + 1]]`.
    starts: Vec<usize>,
}

impl Groups {
    fn new(points: &[u64], group_count: usize, group_of: impl Fn(NodeIndex) -> u16) -> Self {
        let (points, starts) = distribute(points, group_count, |p| usize::from(group_of(node_of(p))));
        Self { points, starts }
    }

    /// The first nodes met, walking upwards from `from`, in the next `count` groups that `wanted` allows.
    fn next(&self, from: u64, count: usize, wanted: impl Fn(u16) -> bool) -> impl Iterator<Item = NodeIndex> {
        let mut found: Vec<(u64, NodeIndex)> = (0..)
            .zip(self.starts.windows(2))
            .filter(|(group, _)| wanted(*group))
            .map(|(_, range)| {
                let group = &self.points[range[0]..range[1]];
                let above = group.partition_point(|&p| p < from);
                let point = *group.get(above).unwrap_or(&group[0]);
                (point.wrapping_sub(from), node_of(point))
            })
            .collect();
        found.sort_unstable();
        found.truncate(count);
        found.into_iter().map(|(_, node)| node)
    }
}

fn node_of(point: u64) -> NodeIndex {
    (point & NODE_MASK) as NodeIndex
}

/// Where a slot sits on the ring. When slots are split the first half of a slot stays where it was.
fn place_of(slot: SlotIndex, slots: SlotCount) -> u64 {
    assert!(slot.0 < slots.get(), "slot {slot} of {}", slots.get());
    u64::from(slot.0) << (64 - slots.bits())
}

/// The ring point of a node's vnode.
fn point(node: NodeId, vnode: u32) -> u64 {
    const GOLDEN_RATIO: u64 = 0x9e37_79b9_7f4a_7c15;
    mix(mix(node.0).wrapping_add(u64::from(vnode).wrapping_mul(GOLDEN_RATIO)))
}

/// The output function of SplitMix64 (Steele, Lea, Flood 2014): a bijection that spreads every bit.
fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 31
}

/// Sorts `points`, whose top bits are a good hash: one pass distributes them over buckets of a few, which
/// are then sorted one by one. Three times as fast as a comparison sort of the whole.
fn sorted_points(points: Vec<u64>) -> Vec<u64> {
    let bits = points.len().max(8).ilog2() - 2;
    let (mut out, starts) = distribute(&points, 1 << bits, |p| (p >> (64 - bits)) as usize);
    for range in starts.windows(2) {
        out[range[0]..range[1]].sort_unstable();
    }
    out
}

/// Orders `points` by bucket, keeping their order within each; also returns where the buckets start.
fn distribute(points: &[u64], bucket_count: usize, bucket: impl Fn(u64) -> usize) -> (Vec<u64>, Vec<usize>) {
    let mut starts = vec![0; bucket_count + 1];
    for &p in points {
        starts[bucket(p) + 1] += 1;
    }
    for i in 0..bucket_count {
        starts[i + 1] += starts[i];
    }
    let mut next = starts.clone();
    let mut out = vec![0; points.len()];
    for &p in points {
        let at = &mut next[bucket(p)];
        out[*at] = p;
        *at += 1;
    }
    (out, starts)
}

#[cfg(test)]
mod tests;
