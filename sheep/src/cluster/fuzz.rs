//! Fuzz target `cluster_entries`: entries of the log, in any order, and the states that they make.
//!
//! Either the bytes say which entries are applied, out of a small ring's; or they are an entry, or a snapshot,
//! as it might be read. What must hold: an entry and a state come back from their bytes; after every entry the
//! state is valid; and a node that begins from a snapshot ends where the others do.

use wire::id::{Birth, ClusterId, Generation, NodeId, Session, SlotIndex, VdiId};
use wire::name::VdiName;
use wire::policy::Copies;

use super::entry::{ClusterEntry, NodeSpec, Reached};
use super::log::fuzz::{decoded, encoded};
use super::state::ClusterState;
use crate::fuzz::Source;

/// The least that a ring may have: a state with more takes longer to look at.
const SLOTS: u32 = 256;
/// How many entries one input makes.
const ENTRIES_MAX: usize = 48;

pub(crate) fn run(data: &[u8]) {
    let mut source = Source::new(data);
    match source.below(4) {
        0 => raw_entry(source.rest()),
        1 => raw_state(source.rest()),
        _ => entries(source),
    }
}

fn raw_entry(bytes: &[u8]) {
    let Some(entry) = decoded::<ClusterEntry>(bytes) else { return };
    check_entry(&entry);
    if let ClusterEntry::Format { slots, .. } = &entry
        && *slots > SLOTS
    {
        // It takes longer to lay out than an input may.
        return;
    }
    let mut state = ClusterState::default();
    state.apply_entry(1, &entry);
    assert_eq!(state.validate(), Ok(()), "after {entry:?}");
}

fn check_entry(entry: &ClusterEntry) {
    let again: ClusterEntry = decoded(&encoded(entry)).expect("what was encoded can be read");
    assert_eq!(again, *entry);
}

fn raw_state(bytes: &[u8]) {
    let Ok(state) = ClusterState::from_bytes(bytes) else { return };
    let text = state.to_bytes();
    let again = ClusterState::from_bytes(&text).expect("what was encoded can be read");
    assert!(again.to_bytes() == text, "a state is another one after it was read");
    // Whatever it says, looking at it does no harm.
    _ = state.validate();
}

fn entries(mut source: Source<'_>) {
    let mut states = vec![ClusterState::default()];
    // Not all begin with a ring.
    let mut next = source.flag().then(|| founding(&mut source));
    for index in 1..=ENTRIES_MAX as u64 {
        if source.is_empty() {
            break;
        }
        let entry = next.take().unwrap_or_else(|| any_entry(&mut source, index));
        check_entry(&entry);
        for state in &mut states {
            state.apply_entry(index, &entry);
            assert_eq!(state.validate(), Ok(()), "after {entry:?}");
        }
        if states.len() < 2 && source.below(8) == 0 {
            let text = states[0].to_bytes();
            states.push(ClusterState::from_bytes(&text).expect("what was encoded can be read"));
        }
    }
    let first = states[0].to_bytes();
    assert!(
        states.iter().all(|state| state.to_bytes() == first),
        "a node that read a snapshot has another state"
    );
}

fn founding(source: &mut Source<'_>) -> ClusterEntry {
    let count = 1 + source.below(5);
    let nodes = (1..=count).map(|node| spec(source, node.into(), 1)).collect();
    ClusterEntry::Format { cluster: ClusterId(1), copies: copies(source), slots: SLOTS, nodes, now_ms: 1 }
}

/// Any number now and then, else one that may be right.
fn number(source: &mut Source<'_>, likely: u8) -> u64 {
    match source.u8() {
        255 => source.u64(),
        byte => u64::from(byte % likely),
    }
}

fn copies(source: &mut Source<'_>) -> Copies {
    let count = match source.u8() {
        255 => 1 + u64::from(source.below(Copies::MAX)),
        byte => 1 + u64::from(byte % 3),
    };
    Copies::new(count).expect("in range")
}

fn spec(source: &mut Source<'_>, node: u64, start: u64) -> NodeSpec {
    let shape = source.u8();
    let vnodes = match shape >> 4 {
        0 => source.u32(),
        few => 1 + u32::from(few),
    };
    NodeSpec {
        session: Session { node: NodeId(node), start },
        process: start,
        nonce: 0,
        boot: u128::from(shape >> 2 & 3),
        admin: String::new(),
        mesh: String::new(),
        zone: if shape & 2 == 0 { "a".to_owned() } else { node.to_string() },
        vnodes,
        gateway: shape & 1 == 1 && shape & 12 == 0,
        reached: match shape & 12 {
            0 => Vec::new(),
            _ => vec![Reached { before: number(source, 8), index: number(source, 50) }],
        },
    }
}

fn node(source: &mut Source<'_>) -> NodeId {
    NodeId(number(source, 7))
}

fn session(source: &mut Source<'_>) -> Session {
    Session { node: node(source), start: number(source, 6) }
}

fn some<T>(source: &mut Source<'_>, value: impl Fn(&mut Source<'_>) -> T) -> Vec<T> {
    (0..source.below(4)).map(|_| value(source)).collect()
}

fn any_entry(source: &mut Source<'_>, now_ms: u64) -> ClusterEntry {
    let vdi = |source: &mut Source<'_>| VdiId(number(source, 5));
    let owner_generation = |source: &mut Source<'_>| Generation(number(source, 6));
    let optional = |source: &mut Source<'_>| source.flag().then(|| number(source, 9));
    match source.below(24) {
        0 => founding(source),
        1 => ClusterEntry::Reformat {
            copies: copies(source),
            slots: if source.below(4) == 0 { source.u32() % 1025 } else { SLOTS },
            now_ms,
        },
        5 => ClusterEntry::Ready { session: session(source) },
        2..=4 => {
            let Session { node, start } = session(source);
            ClusterEntry::Join { node: spec(source, node.0, start), now_ms }
        }
        6 | 7 => ClusterEntry::Evict { sessions: some(source, session), now_ms },
        8 => ClusterEntry::Leave { session: session(source), now_ms },
        9 => ClusterEntry::Out { node: node(source) },
        10 => ClusterEntry::Drain { node: node(source), on: source.flag() },
        11 => ClusterEntry::Remove { node: node(source) },
        12 => ClusterEntry::FailDisk { session: session(source), reason: "why".to_owned() },
        13..=15 => {
            let (session, copies, seen) = (session(source), copies(source), number(source, 60));
            let since = number(source, 12);
            // All slots at once, as a node that has caught up does; or some.
            let slots = if source.flag() {
                (0..SLOTS).map(|slot| (SlotIndex(slot), since)).collect()
            } else {
                some(source, |source| (SlotIndex(source.u16().into()), number(source, 12)))
            };
            ClusterEntry::Admit { session, copies, slots, seen }
        }
        16 => ClusterEntry::Known { sessions: some(source, session), index: number(source, 60) },
        17 => ClusterEntry::Demote {
            session: session(source),
            copies: copies(source),
            slot: SlotIndex(source.u16().into()),
            version: number(source, 12),
        },
        18 => {
            let name: VdiName = format!("v{}", source.below(4)).parse().expect("a name");
            let size = number(source, 9).wrapping_mul(512);
            let copies = source.flag().then(|| copies(source));
            ClusterEntry::CreateVdi { name, size, copies, now_ms }
        }
        19 => ClusterEntry::DeleteVdi { vdi: vdi(source) },
        20 => ClusterEntry::Acquire { vdi: vdi(source), session: session(source) },
        21 => ClusterEntry::Release {
            vdi: vdi(source),
            generation: owner_generation(source),
            to: source.flag().then(|| session(source)),
            used: optional(source),
        },
        22 => match source.below(2) {
            0 => ClusterEntry::SetRoot {
                vdi: vdi(source),
                generation: owner_generation(source),
                root: Birth(source.u64()),
            },
            _ => ClusterEntry::SetRecovery { paused: source.flag(), limit: optional(source) },
        },
        _ => ClusterEntry::Attach {
            vdi: vdi(source),
            client: format!("c{}", source.below(3)),
            generation: number(source, 6),
        },
    }
}
