//! Which nodes should hold an object: object to slot, slot to nodes.
//!
//! Called by the cluster state, which decides who *is* in sync, and by the gateway. All of it is a pure
//! function of its arguments: no clock, no files, no runtime, and the same answer on every node. What is
//! computed here is where copies belong; the cluster log says where they are.
//!
//! | file | holds |
//! |---|---|
//! | `slot` | object → slot |
//! | `ring` | slot → nodes, by consistent hashing |
//! | `table` | the nodes of every slot, worked out once per ring |

mod ring;
mod slot;
mod table;

pub use ring::{
    DEFAULT_VNODES, MAX_NODES, MAX_VNODES, MAX_VNODES_PER_NODE, Ring, RingError, RingNode, ZoneKey,
};
pub use slot::{SlotCount, SlotCountError, slot_of};
pub use table::PlacementTable;
