//! Giving up nodes that will never come back although slots wait for them. Pure.
//!
//! What they alone had is lost, and somebody has decided so. Whoever is left then goes on with what it has: the rest
//! of the last in-sync set; if there is none, who was in sync before; if there is nobody either, whoever the slot
//! belongs to now, which may have nothing. Every VDI is taken over anew, which makes the copies that go on equal.

use std::collections::BTreeSet;

use super::*;
use crate::cluster::slots::{Live, Member};

/// What a slot loses when nodes are given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Loss {
    /// Acknowledged writes, perhaps: those go on who were in sync earlier, or have lost their memory since.
    Newest,
    /// Everything, perhaps: nobody who is on record is left.
    Everything,
}

impl ClusterState {
    /// What each slot would lose without `gone`; those that lose nothing are left out.
    pub fn losses(&self, gone: &BTreeSet<NodeId>) -> impl Iterator<Item = (Copies, SlotIndex, Loss)> {
        self.slots().filter_map(|(copies, slot, config)| {
            let (_, loss) = without(config, gone, |node| self.live_disk(node))?;
            Some((copies, slot, loss?))
        })
    }

    /// The nodes that are down and that slots wait for, or could.
    pub fn awaited(&self) -> BTreeSet<NodeId> {
        let waiting = self.slots().filter(|(_, _, config)| self.waits(config));
        let on_record = waiting.flat_map(|(_, _, config)| {
            let set = config.members.iter().map(|m| m.session.node);
            set.chain(config.eligible.iter().map(|e| e.node))
        });
        on_record.filter(|node| self.nodes.get(node).is_none_or(|n| n.live_session().is_none())).collect()
    }

    pub(super) fn abandon(&mut self, index: u64, nodes: &[NodeId]) -> Result<ClusterReply, Refusal> {
        let known = |id: &&NodeId| !self.removed.contains(*id);
        let gone: BTreeSet<NodeId> = nodes.iter().filter(known).copied().collect();
        for id in &gone {
            match self.nodes.get(id) {
                None => return Err(Refusal::NoSuchNode(*id)),
                Some(node) if node.status == NodeStatus::Up => return Err(Refusal::NodeInUse(*id)),
                Some(_) => {}
            }
        }
        if gone.is_empty() {
            return Ok(ClusterReply::Done);
        }
        let mut cut = Vec::new();
        for (copies, mut slots) in self.slots.clone() {
            for i in 0..slots.len() {
                let Some((next, loss)) = without(&slots[i], &gone, |node| self.live_disk(node)) else {
                    continue;
                };
                slots.set(i, Arc::new(next));
                if loss.is_some() && !cut.contains(&copies) {
                    cut.push(copies);
                }
            }
            self.slots.insert(copies, slots);
        }
        for id in gone {
            self.nodes.remove(&id);
            self.removed.insert(id);
        }
        self.membership_changed(index, true);
        self.renew_owners(&cut);
        Ok(ClusterReply::Done)
    }
}

/// The slot's configuration without `gone` and what that costs, or `None` if they have no part in it.
fn without<'a>(
    config: &SlotConfig,
    gone: &BTreeSet<NodeId>,
    live: impl Fn(NodeId) -> Option<Live<'a>>,
) -> Option<(SlotConfig, Option<Loss>)> {
    if !gone.iter().any(|node| config.is_on_record(*node)) {
        return None;
    }
    let mut next = config.clone();
    next.version += 1;
    next.members.retain(|m| !gone.contains(&m.session.node));
    next.eligible.retain(|e| !gone.contains(&e.node));
    let serves = |m: &&Member| live(m.session.node).is_some_and(|l| l.session == m.session);
    if config.in_state(MemberState::InSync).any(|m| serves(&m)) {
        return Some((next, None));
    }
    if next.members.iter().any(|m| m.state != MemberState::CatchingUp) {
        // They go on once all of them are back, as after a loss of power.
        return Some((next, Some(Loss::Newest)));
    }
    // Those that were in sync before, wherever they are now, are the set that the slot waits for.
    let version = next.version;
    let earlier = std::mem::take(&mut next.eligible);
    next.members = earlier
        .into_iter()
        .map(|e| Member {
            // One that is not there gets a session when it is back.
            session: live(e.node).map_or(Session { node: e.node, start: 0 }, |l| l.session),
            boot: e.boot,
            state: MemberState::InSync,
            since: version,
            reached: None,
        })
        .collect();
    let loss = if next.members.is_empty() { Loss::Everything } else { Loss::Newest };
    Some((next, Some(loss)))
}

#[cfg(test)]
mod tests {
    use super::super::tests::{founded, session, spec};
    use super::*;

    fn apply(state: &mut ClusterState, index: u64, entry: &ClusterEntry) -> ClusterReply {
        let reply = state.apply_entry(index, entry);
        assert_eq!(state.validate(), Ok(()), "after {entry:?}");
        reply
    }

    fn abandon(state: &mut ClusterState, index: u64, nodes: &[u64]) -> ClusterReply {
        let nodes = nodes.iter().copied().map(NodeId).collect();
        apply(state, index, &ClusterEntry::Abandon { nodes })
    }

    fn kill(state: &mut ClusterState, index: u64, node: u64) {
        apply(state, index, &ClusterEntry::Evict { sessions: vec![session(node, 1)], now_ms: 0 });
    }

    fn losses(state: &ClusterState, gone: &[u64]) -> Vec<Loss> {
        let gone = gone.iter().copied().map(NodeId).collect();
        state.losses(&gone).map(|(_, _, loss)| loss).collect()
    }

    #[test]
    fn the_living_are_not_given_up_and_who_is_not_waited_for_costs_nothing() {
        let mut state = founded(3, 3);
        assert_eq!(abandon(&mut state, 2, &[1]), ClusterReply::Refused(Refusal::NodeInUse(NodeId(1))));
        assert_eq!(abandon(&mut state, 3, &[9]), ClusterReply::Refused(Refusal::NoSuchNode(NodeId(9))));
        kill(&mut state, 4, 1);
        assert_eq!(state.awaited(), BTreeSet::new());
        assert_eq!(losses(&state, &[1]), []);
        assert_eq!(abandon(&mut state, 5, &[1]), ClusterReply::Done);
        assert_eq!(abandon(&mut state, 6, &[1]), ClusterReply::Done, "asked twice");
        assert!(state.is_removed(NodeId(1)));
        assert!(
            state
                .slots()
                .all(|(_, _, config)| !config.is_on_record(NodeId(1)) && state.has_live_copy(config))
        );
    }

    #[test]
    fn who_was_in_sync_before_goes_on_in_the_place_of_those_who_are_gone() {
        let mut state = founded(2, 2);
        apply(&mut state, 2, &ClusterEntry::Join { node: spec(3, 1, 1), now_ms: 0 });
        apply(&mut state, 2, &ClusterEntry::Ready { session: spec(3, 1, 1).session });
        let vdi = ClusterEntry::CreateVdi {
            name: "a".parse().expect("a name"),
            size: 512,
            copies: None,
            now_ms: 0,
        };
        apply(&mut state, 3, &vdi);
        apply(&mut state, 4, &ClusterEntry::Acquire { vdi: VdiId(1), session: session(3, 1) });
        // 1 goes first, 2 writes on alone, and then it is 2 that never comes back.
        kill(&mut state, 5, 1);
        kill(&mut state, 6, 2);
        apply(&mut state, 7, &ClusterEntry::Join { node: spec(1, 2, 1), now_ms: 0 });
        apply(&mut state, 7, &ClusterEntry::Ready { session: spec(1, 2, 1).session });
        assert_eq!(state.awaited(), BTreeSet::from([NodeId(2)]));
        let before = state.vdi(VdiId(1)).expect("created").owner.generation;
        let lost = losses(&state, &[2]);
        assert!(lost.len() == 256 && lost.iter().all(|loss| *loss == Loss::Newest), "{lost:?}");
        assert_eq!(abandon(&mut state, 8, &[2]), ClusterReply::Done);
        assert_eq!(state.awaited(), BTreeSet::new());
        for (_, _, config) in state.slots() {
            assert_eq!(config.member(session(1, 2)).map(|m| m.state), Some(MemberState::InSync));
        }
        assert!(state.vdi(VdiId(1)).expect("created").owner.generation > before, "copies may differ");
    }

    #[test]
    fn where_nobody_is_left_the_slot_begins_anew() {
        let mut state = founded(3, 1);
        kill(&mut state, 2, 1);
        let waiting = state.slots().filter(|(_, _, config)| state.waits(config)).count();
        assert!(waiting > 0);
        let lost = losses(&state, &[1]);
        assert!(lost.len() == waiting && lost.iter().all(|loss| *loss == Loss::Everything), "{lost:?}");
        abandon(&mut state, 3, &[1]);
        assert!(state.slots().all(|(_, _, config)| state.has_live_copy(config)));
    }

    #[test]
    fn others_of_the_set_are_still_waited_for_until_they_are_given_up_too() {
        let mut state = founded(2, 2);
        apply(&mut state, 2, &ClusterEntry::Join { node: spec(3, 1, 1), now_ms: 0 });
        apply(&mut state, 2, &ClusterEntry::Ready { session: spec(3, 1, 1).session });
        apply(
            &mut state,
            3,
            &ClusterEntry::Evict { sessions: vec![session(1, 1), session(2, 1)], now_ms: 0 },
        );
        assert_eq!(state.awaited(), BTreeSet::from([NodeId(1), NodeId(2)]));
        abandon(&mut state, 4, &[1]);
        assert_eq!(state.awaited(), BTreeSet::from([NodeId(2)]));
        // Its memory is gone, and it is all there is.
        apply(&mut state, 5, &ClusterEntry::Join { node: spec(2, 2, 7), now_ms: 0 });
        apply(&mut state, 5, &ClusterEntry::Ready { session: spec(2, 2, 7).session });
        assert_eq!(state.awaited(), BTreeSet::new());
        assert!(state.slots().all(|(_, _, config)| state.has_live_copy(config)));
    }
}
