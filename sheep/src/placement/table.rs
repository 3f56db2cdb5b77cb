//! The nodes of every slot, worked out once per ring.

use wire::id::{NodeId, SlotIndex};
use wire::policy::Copies;

use super::ring::Ring;
use super::slot::SlotCount;

/// Where the copies of every slot belong under one ring.
///
/// A lookup is an index into a flat array; 2^17 slots with 3 copies take 3 MiB.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlacementTable {
    nodes: Vec<NodeId>,
    /// Nodes per slot: the copies asked for, or all nodes when there are fewer.
    width: usize,
    slots: SlotCount,
}

impl PlacementTable {
    /// Places `copies` copies of all slots on `ring`.
    pub fn new(ring: &Ring, slots: SlotCount, copies: Copies) -> Self {
        let width = ring.node_count().min(usize::from(copies.get()));
        let mut nodes = Vec::with_capacity(width * slots.get() as usize);
        for slot in slots.iter() {
            ring.place_into(slot, slots, copies, &mut nodes);
        }
        assert_eq!(nodes.len(), width * slots.get() as usize, "every slot has the same number of nodes");
        Self { nodes, width, slots }
    }

    /// The nodes of `slot`, best first; `None` for a slot the ring does not have.
    pub fn get(&self, slot: SlotIndex) -> Option<&[NodeId]> {
        let index = usize::try_from(slot.0).ok().filter(|_| slot.0 < self.slots.get())?;
        self.nodes.get(index * self.width..(index + 1) * self.width)
    }

    /// Every slot with its nodes, in order.
    pub fn iter(&self) -> impl Iterator<Item = (SlotIndex, &[NodeId])> {
        self.slots.iter().map(|slot| (slot, self.get(slot).unwrap_or_default()))
    }
}

#[cfg(test)]
mod tests {
    use super::super::ring::{DEFAULT_VNODES, RingNode};
    use super::*;

    #[test]
    fn a_table_says_what_the_ring_says() {
        let nodes: Vec<_> = (1..=5)
            .map(|id| RingNode {
                id: NodeId(id),
                zone: format!("z{}", id % 3).into(),
                vnodes: DEFAULT_VNODES,
            })
            .collect();
        let ring = Ring::new(&nodes).expect("valid");
        for copies in [1, 3, 5, 31] {
            let copies = Copies::new(copies).expect("in range");
            let slots = SlotCount::default();
            let table = PlacementTable::new(&ring, slots, copies);
            for (slot, nodes) in table.iter() {
                assert_eq!(nodes, ring.place(slot, slots, copies));
            }
            assert_eq!(table.get(SlotIndex(slots.get())), None);
        }
    }

    #[test]
    fn without_nodes_a_slot_has_none() {
        let ring = Ring::new(&[]).expect("valid");
        let table = PlacementTable::new(&ring, SlotCount::default(), Copies::new(3).expect("in range"));
        assert_eq!(table.get(SlotIndex(0)), Some(&[][..]));
    }
}
