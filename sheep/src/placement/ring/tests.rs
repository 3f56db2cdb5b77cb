use proptest::prelude::*;

use super::super::PlacementTable;
use super::*;

fn node(id: u64, zone: u64, vnodes: u32) -> RingNode {
    RingNode { id: NodeId(id), zone: format!("zone-{zone}").into(), vnodes }
}

fn ring(nodes: &[RingNode]) -> Ring {
    Ring::new(nodes).expect("valid nodes")
}

fn copies(n: u64) -> Copies {
    Copies::new(n).expect("in range")
}

fn slots(n: u32) -> SlotCount {
    SlotCount::new(n).expect("allowed")
}

/// Takes nodes the obvious way: sort all points by distance and walk, first by zone, then by node.
fn oracle(nodes: &[RingNode], slot: SlotIndex, slots: SlotCount, copies: Copies) -> Vec<NodeId> {
    let from = place_of(slot, slots);
    let mut by_id = nodes.to_vec();
    by_id.sort_by_key(|n| n.id);
    let mut points: Vec<(u64, &RingNode)> = Vec::new();
    for (index, n) in by_id.iter().enumerate() {
        for v in 0..n.vnodes {
            points.push(((point(n.id, v) & !NODE_MASK | index as u64).wrapping_sub(from), n));
        }
    }
    points.sort_by_key(|(distance, _)| *distance);
    let mut taken: Vec<&RingNode> = Vec::new();
    for by_zone in [true, false] {
        for (_, n) in &points {
            let clash = |t: &&RingNode| t.id == n.id || by_zone && t.zone == n.zone;
            if taken.len() < usize::from(copies.get()) && !taken.iter().any(clash) {
                taken.push(n);
            }
        }
    }
    taken.iter().map(|n| n.id).collect()
}

fn arbitrary_nodes() -> impl Strategy<Value = Vec<RingNode>> {
    // Zones and weights are lopsided, so that some walks reach their limit.
    let vnodes = prop_oneof![1..4_u32, 100..200_u32, 900..1000_u32];
    let zone = prop_oneof![3 => 0..2_u64, 1 => 0..40_u64];
    prop::collection::btree_map(any::<u64>(), (zone, vnodes), 0..24)
        .prop_map(|m| m.into_iter().map(|(id, (zone, vnodes))| node(id, zone, vnodes)).collect())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn placement_agrees_with_the_oracle(nodes in arbitrary_nodes(), slot in 0..256_u32, n in 1..=31_u64) {
        let found = ring(&nodes).place(SlotIndex(slot), slots(256), copies(n));
        prop_assert_eq!(found, oracle(&nodes, SlotIndex(slot), slots(256), copies(n)));
    }

    #[test]
    fn copies_are_spread_over_zones_then_nodes(nodes in arbitrary_nodes(), slot in 0..256_u32, n in 1..=31_u64) {
        let found = ring(&nodes).place(SlotIndex(slot), slots(256), copies(n));
        let distinct = |of: Vec<&str>| of.into_iter().collect::<std::collections::HashSet<_>>().len();
        let zone_of = |id: &NodeId| &*nodes.iter().find(|n| n.id == *id).expect("a known node").zone;
        let zones = distinct(nodes.iter().map(|n| &*n.zone).collect());
        prop_assert_eq!(found.len(), nodes.len().min(n as usize));
        prop_assert_eq!(distinct(found.iter().map(zone_of).collect()), zones.min(n as usize));
    }

    #[test]
    fn the_order_of_nodes_does_not_matter(nodes in arbitrary_nodes().prop_shuffle(), slot in 0..256_u32) {
        let mut sorted = nodes.clone();
        sorted.sort_by_key(|n| n.id);
        let place = |nodes: &[RingNode]| ring(nodes).place(SlotIndex(slot), slots(256), copies(3));
        prop_assert_eq!(place(&nodes), place(&sorted));
    }

    #[test]
    fn a_removed_node_moves_only_what_it_held(nodes in arbitrary_nodes(), pick: prop::sample::Index, n in 1..6_u64) {
        prop_assume!(!nodes.is_empty());
        let mut fewer = nodes.clone();
        let gone = fewer.remove(pick.index(nodes.len())).id;
        let (before, after) = (ring(&nodes), ring(&fewer));
        for slot in slots(256).iter() {
            let old = before.place(slot, slots(256), copies(n));
            let new = after.place(slot, slots(256), copies(n));
            let kept = old.iter().filter(|id| **id != gone);
            prop_assert!(kept.clone().all(|id| new.contains(id)), "{old:?} became {new:?} without {gone}");
            if !old.contains(&gone) {
                prop_assert_eq!(old, new);
            }
        }
    }
}

#[test]
fn too_many_nodes_or_vnodes_are_refused() {
    let many = |count, vnodes| (1..=count).map(|id| node(id, id, vnodes)).collect::<Vec<_>>();
    assert_eq!(Ring::new(&many(6_145, 1)).err(), Some(RingError::TooManyNodes { count: 6_145 }));
    assert!(Ring::new(&many(6_144, 1)).is_ok());
    assert_eq!(Ring::new(&many(13, 65_536)).err(), Some(RingError::TooManyVnodes { count: 13 * 65_536 }));
    assert_eq!(Ring::new(&many(1, 0)).err(), Some(RingError::Vnodes { node: NodeId(1), vnodes: 0 }));
    let twice = [node(4, 1, 1), node(5, 1, 1), node(4, 2, 1)];
    assert_eq!(Ring::new(&twice).err(), Some(RingError::Duplicate { node: NodeId(4) }));
}

/// A change here moves data on every ring: never change these values.
#[test]
fn points_and_places_are_fixed_for_ever() {
    assert_eq!([point(NodeId(1), 0), point(NodeId(1), 1), point(NodeId(u64::MAX), 127)], GOLDEN_POINTS);
    let ring = ring(&(1..=9).map(|id| node(id, id % 3, 128)).collect::<Vec<_>>());
    let place = |slot| ring.place(SlotIndex(slot), SlotCount::default(), copies(3));
    let ids = |nodes: [u64; 3]| nodes.map(NodeId).to_vec();
    assert_eq!([place(0), place(1_000), place(4_095)], GOLDEN_PLACES.map(ids));
}

const GOLDEN_POINTS: [u64; 3] =
    [6_791_897_765_849_424_158, 17_405_687_883_870_564_846, 11_750_759_298_698_427_885];
const GOLDEN_PLACES: [[u64; 3]; 3] = [[3, 5, 4], [9, 1, 8], [3, 5, 4]];

#[test]
fn half_of_a_split_slot_stays_in_place() {
    let ring = ring(&(1..=20).map(|id| node(id, id % 5, 128)).collect::<Vec<_>>());
    for slot in 0..256 {
        let parent = ring.place(SlotIndex(slot), slots(256), copies(3));
        assert_eq!(ring.place(SlotIndex(slot * 2), slots(512), copies(3)), parent);
    }
}

/// Each of 1,000 nodes in turn joins a ring of 40. It should take its fair share, 1/41, and a slot's other
/// holders should stay.
#[test]
fn a_joining_node_moves_one_nth_on_average() {
    const NODES: u64 = 40;
    const JOINS: u64 = 1_000;
    let (slots, copies) = (slots(512), copies(3));
    let old: Vec<_> = (0..NODES).map(|id| node(mix(id), id, DEFAULT_VNODES)).collect();
    let before = PlacementTable::new(&ring(&old), slots, copies);
    let mut moved = 0_u64;
    for join in 0..JOINS {
        let id = mix(1_000_000 + join);
        let mut new = old.clone();
        new.push(node(id, NODES, DEFAULT_VNODES));
        let after = PlacementTable::new(&ring(&new), slots, copies);
        for ((slot, new), (_, old)) in after.iter().zip(before.iter()) {
            let came = new.iter().filter(|id| !old.contains(id)).count();
            assert!(
                came == 0 || came == 1 && new.contains(&NodeId(id)),
                "slot {slot}: {old:?} became {new:?}"
            );
            moved += came as u64;
        }
    }
    let share = moved as f64 / (JOINS * u64::from(slots.get()) * 3) as f64;
    let fair = 1.0 / (NODES + 1) as f64;
    assert!(share <= 1.1 * fair, "a join moved {share:.5} of all copies, fair is {fair:.5}");
    assert!(share >= 0.9 * fair, "a join moved {share:.5} of all copies, fair is {fair:.5}");
}

#[test]
fn equal_nodes_hold_about_the_same() {
    let ring = ring(&(0..30).map(|id| node(mix(id), id, DEFAULT_VNODES)).collect::<Vec<_>>());
    let table = PlacementTable::new(&ring, SlotCount::default(), copies(3));
    let mut held = HashMap::new();
    for (_, nodes) in table.iter() {
        nodes.iter().for_each(|n| *held.entry(*n).or_insert(0_usize) += 1);
    }
    let mean = 4096 * 3 / 30;
    assert!(held.values().all(|&n| (mean * 7 / 10..mean * 13 / 10).contains(&n)), "{held:?}");
}
