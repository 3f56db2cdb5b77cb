//! Placement at the largest ring: 6,144 nodes of 128 vnodes.
//!
//! Budgets: building it under 50 ms, one slot under 1 µs, all of 2^17 slots under 1 s.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use sheep::placement::{DEFAULT_VNODES, MAX_NODES, PlacementTable, Ring, RingNode, SlotCount, slot_of};
use wire::id::{NodeId, Oid, SlotIndex, VdiId};
use wire::policy::Copies;

/// Nodes of `zone_count` zones, the first of which has only one node.
fn nodes(zone_count: usize) -> Vec<RingNode> {
    let zone = |i: usize| if i == 0 { 0 } else { 1 + i % (zone_count - 1) };
    (0..MAX_NODES)
        .map(|i| RingNode {
            id: NodeId((i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)),
            zone: format!("zone-{}", zone(i)).into(),
            vnodes: DEFAULT_VNODES,
        })
        .collect()
}

fn ring(c: &mut Criterion) {
    let copies = Copies::new(3).expect("in range");
    let slots = SlotCount::new(1 << 17).expect("allowed");
    let many_zones = nodes(100);
    let ring = Ring::new(&many_zones).expect("valid");
    let table = PlacementTable::new(&ring, slots, copies);
    // Every slot needs the one node of the smallest zone: the worst case for a walk.
    let lopsided = Ring::new(&nodes(3)).expect("valid");
    let mut next = (0..slots.get()).map(|i| SlotIndex(i.wrapping_mul(40_503) % slots.get())).cycle();
    let mut slot = move || next.next().expect("endless");

    c.bench_function("slot_of", |b| {
        let mut index = 0;
        b.iter(|| {
            index += 1;
            slot_of(VdiId(7), Oid::data(VdiId(7), index), slots)
        });
    });
    c.bench_function("table lookup", |b| b.iter(|| table.get(black_box(slot())).map(|n| n[0])));
    c.bench_function("place one slot", |b| b.iter(|| ring.place(slot(), slots, copies)));
    let mut group = c.benchmark_group("6144 nodes");
    group.sample_size(10);
    group.bench_function("new ring", |b| b.iter(|| Ring::new(black_box(&many_zones))));
    group.bench_function("place all of 2^17 slots", |b| b.iter(|| PlacementTable::new(&ring, slots, copies)));
    group.bench_function("place all of 2^17 slots, one zone of one node", |b| {
        b.iter(|| PlacementTable::new(&lopsided, slots, copies));
    });
}

criterion_group!(benches, ring);
criterion_main!(benches);
