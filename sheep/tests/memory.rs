//! How much memory the state of the largest ring takes. A binary of its own, because it counts every byte.

#![allow(unsafe_code, reason = "an allocator can be written in no other way")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use sheep::cluster::entry::{ClusterEntry, ClusterReply, NodeSpec};
use sheep::cluster::state::ClusterState;
use sheep::placement::{DEFAULT_VNODES, MAX_NODES};
use wire::id::{ClusterId, NodeId, Session};
use wire::policy::Copies;

/// What is promised for 6,144 nodes and 2^17 slots of 3 copies.
const STATE_MAX: usize = 64 << 20;

static LIVE: AtomicUsize = AtomicUsize::new(0);

/// The system's allocator, with a count of what is allocated.
struct Counting;

// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LIVE.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps the same contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: `ptr` came from `alloc` above with this layout.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn spec(node: usize, start: u64) -> NodeSpec {
    let host = format!("sheep-{node}.sheepdog.example:");
    NodeSpec {
        session: session(node, start),
        process: start,
        nonce: 0,
        boot: u128::MAX,
        admin: format!("{host}7000"),
        mesh: format!("{host}7001"),
        zone: zone(node),
        vnodes: DEFAULT_VNODES,
        gateway: false,
        reached: Vec::new(),
    }
}

/// The first node is a zone of its own, so that every slot has a copy there.
fn zone(node: usize) -> String {
    let half = if node.is_multiple_of(2) { "left" } else { "right" };
    if node == 0 { "alone" } else { half }.to_owned()
}

fn session(node: usize, start: u64) -> Session {
    Session { node: NodeId((node as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)), start }
}

#[test]
fn the_state_of_the_largest_ring_fits() {
    let before = LIVE.load(Ordering::Relaxed);
    let mut state = ClusterState::default();
    let mut index = 0;
    let mut step = |what: &str, entry: ClusterEntry| {
        index += 1;
        assert_eq!(state.apply_entry(index, &entry), ClusterReply::Done, "{what}");
        drop(entry);
        let bytes = LIVE.load(Ordering::Relaxed) - before;
        println!("{what}: {} KiB", bytes >> 10);
        assert!(bytes < STATE_MAX, "{what}: {bytes} bytes");
    };
    let nodes = (0..MAX_NODES).map(|node| spec(node, 1)).collect();
    let copies = Copies::new(3).expect("in range");
    step("founded", ClusterEntry::Format { cluster: ClusterId(1), copies, slots: 1 << 17, nodes, now_ms: 0 });
    // Now every slot has a fourth member, which catches up, and keeps the first as long as it does.
    step("all slots moving", ClusterEntry::Drain { node: session(0, 1).node, on: true });
    let sessions = (1..MAX_NODES).step_by(3).map(|node| session(node, 1)).collect();
    step("a third of the nodes dead", ClusterEntry::Evict { sessions, now_ms: 0 });
    step("one of them back", ClusterEntry::Join { node: spec(1, 2), now_ms: 0 });
    step("and ready", ClusterEntry::Ready { session: session(1, 2) });
}
