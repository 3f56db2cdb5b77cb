//! Which slots have all their copies, from the cluster state alone. Pure.

use std::collections::BTreeSet;

use wire::admin::{CheckSummary, Finding, FindingKind, Severity};
use wire::id::{NodeId, SlotIndex};
use wire::policy::Copies;

use crate::cluster::slots::{MemberState, SlotConfig};
use crate::cluster::state::{ClusterState, NodeStatus};

/// How the slots of all policies are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct SlotCounts {
    /// All there are.
    pub(super) total: u64,
    /// Without all their copies; the waiting ones included.
    pub(super) degraded: u64,
    /// Without any copy that may be read.
    pub(super) waiting: u64,
}

/// Counts slots by redundancy.
pub(super) fn count(state: &ClusterState) -> SlotCounts {
    let mut counts = SlotCounts::default();
    for (copies, _, config) in state.slots() {
        counts.total += 1;
        counts.degraded += u64::from(!state.is_fully_redundant(copies, config));
        counts.waiting += u64::from(!state.has_live_copy(config));
    }
    counts
}

/// What is wrong with each slot, in order. Slots that lack the same have the same text, so that they can be
/// summed up.
pub(super) fn findings(state: &ClusterState) -> impl Iterator<Item = Finding> {
    let zones: BTreeSet<&str> = storing(state).map(|n| n.spec.zone.as_str()).collect();
    let zones = zones.len();
    state.slots().filter_map(move |(copies, slot, config)| finding(state, zones, copies, slot, config))
}

fn storing(state: &ClusterState) -> impl Iterator<Item = &crate::cluster::state::Node> {
    state.nodes().filter(|n| !n.spec.gateway && n.status != NodeStatus::Out)
}

fn finding(
    state: &ClusterState,
    zones: usize,
    copies: Copies,
    slot: SlotIndex,
    config: &SlotConfig,
) -> Option<Finding> {
    let of = |kind: FindingKind, severity: Severity, text: String| Finding {
        kind: kind.into(),
        severity: severity.into(),
        text,
        copies: copies.get().into(),
        slot: slot.0,
        ..Finding::default()
    };
    let in_sync: Vec<_> = config.in_state(MemberState::InSync).filter(|m| state.serves(m.session)).collect();
    if in_sync.is_empty() {
        let last: Vec<String> = config
            .members
            .iter()
            .filter(|m| m.state != MemberState::CatchingUp)
            .map(|m| m.session.node)
            .chain(config.eligible.iter().map(|e| e.node))
            .map(|node| node.to_string())
            .collect();
        let text = match last.is_empty() {
            true => "never given to a node: none was there".to_owned(),
            false => format!("waits for its last holders: {}", last.join(", ")),
        };
        // What it held is where it was: degraded, not damaged.
        return Some(of(FindingKind::NoCopy, Severity::Degraded, text));
    }
    if !state.is_fully_redundant(copies, config) {
        let mut text = format!("{} of {copies} copies in sync", in_sync.len());
        if !state.is_enough(copies, config) {
            text += &format!(", too few for writes: they wait for {}", whom_writes_wait_for(config));
        }
        return Some(of(FindingKind::TooFewCopies, Severity::Degraded, text));
    }
    let used: BTreeSet<&str> =
        in_sync.iter().filter_map(|m| state.node(m.session.node)).map(|n| n.spec.zone.as_str()).collect();
    if used.len() < zones.min(usize::from(copies.get())) {
        let text = format!("copies in {} zones of {zones}", used.len());
        return Some(of(FindingKind::SharedZone, Severity::Note, text));
    }
    None
}

/// That the log's voters are too few to decide anything, as these do not answer.
pub(super) fn no_majority(silent: &[NodeId]) -> Finding {
    let whom: Vec<String> = silent.iter().map(ToString::to_string).collect();
    Finding {
        kind: FindingKind::NoMajority.into(),
        severity: Severity::Degraded.into(),
        text: format!("no majority of the voters: everything waits until {} answers", whom.join(" or ")),
        ..Finding::default()
    }
}

/// The nodes that a slot with too few copies in sync can get them back from, for people.
fn whom_writes_wait_for(config: &SlotConfig) -> String {
    let catching_up = config.in_state(MemberState::CatchingUp).map(|m| m.session.node);
    let any: BTreeSet<NodeId> = catching_up.chain(config.eligible.iter().map(|e| e.node)).collect();
    // Whoever else takes a copy will do, once it has caught up.
    let names = any.iter().map(ToString::to_string).chain(["another node to take a copy".to_owned()]);
    names.collect::<Vec<_>>().join(" or ")
}

/// The worse of two severities.
pub(super) fn worse(a: Severity, b: Severity) -> Severity {
    if (b as i32) > (a as i32) { b } else { a }
}

/// The summary of a check that looked at the slots only.
pub(super) fn summary(state: &ClusterState) -> CheckSummary {
    let counts = count(state);
    let worst = if counts.degraded > 0 { Severity::Degraded } else { Severity::Note };
    CheckSummary {
        worst: worst.into(),
        slots: counts.total,
        slots_degraded: counts.degraded,
        ..CheckSummary::default()
    }
}

#[cfg(test)]
mod tests {
    use super::super::nodes::tests::{evicted, founded};
    use super::*;

    #[test]
    fn a_new_ring_is_whole() {
        let state = founded(3, 3);
        assert_eq!(count(&state), SlotCounts { total: 256, degraded: 0, waiting: 0 });
        assert_eq!(findings(&state).count(), 0);
        assert_eq!(summary(&state).worst(), Severity::Note);
    }

    #[test]
    fn a_dead_node_degrades_every_slot_that_it_held() {
        let state = evicted(founded(3, 3), &[2]);
        assert_eq!(count(&state), SlotCounts { total: 256, degraded: 256, waiting: 0 });
        assert!(findings(&state).all(|f| f.text == "2 of 3 copies in sync"));
        let first = findings(&state).next().expect("degraded");
        assert_eq!((first.kind(), first.copies, first.slot), (FindingKind::TooFewCopies, 3, 0));
        assert_eq!(summary(&state).worst(), Severity::Degraded);
    }

    #[test]
    fn slots_with_too_few_copies_for_writes_name_whom_they_wait_for() {
        let state = evicted(founded(3, 3), &[2, 3]);
        let first = findings(&state).next().expect("degraded");
        assert_eq!((first.kind(), first.severity()), (FindingKind::TooFewCopies, Severity::Degraded));
        let text = "1 of 3 copies in sync, too few for writes: they wait for 0000000000000002 or 0000000000000003 \
                    or another node to take a copy";
        assert_eq!(first.text, text);
        assert_eq!(whom_writes_wait_for(&SlotConfig::default()), "another node to take a copy");
    }

    #[test]
    fn slots_without_a_copy_name_whom_they_wait_for() {
        let state = evicted(founded(1, 1), &[1]);
        assert_eq!(count(&state), SlotCounts { total: 256, degraded: 256, waiting: 256 });
        let first = findings(&state).next().expect("waiting");
        assert_eq!(first.kind(), FindingKind::NoCopy);
        assert!(first.text.contains("0000000000000001"), "{}", first.text);
    }

    #[test]
    fn a_ring_with_fewer_nodes_than_copies_is_degraded() {
        assert_eq!(summary(&founded(2, 3)).slots_degraded, 256);
    }
}
