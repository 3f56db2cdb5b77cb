//! Where copies belong and who is in sync, as members come and go. Pure.

use std::collections::BTreeSet;

use super::*;

impl ClusterState {
    /// Brings every slot in line with the members; `moved` if the ring itself is another.
    pub(super) fn membership_changed(&mut self, index: u64, moved: bool) {
        self.epoch.0 += 1;
        if moved {
            self.placement = OrdMap::new();
        }
        let mut resumed = Vec::new();
        for copies in self.slots.keys().copied().collect::<Vec<_>>() {
            let table = self.table(copies);
            let mut slots = self.slots.get(&copies).cloned().unwrap_or_default();
            let mut changes = Vec::new();
            for (i, config) in slots.iter().enumerate() {
                let targets = table.get(SlotIndex(i as u32)).unwrap_or_default();
                let was_waiting = !config
                    .in_state(MemberState::InSync)
                    .any(|m| self.live_disk(m.session.node).is_some_and(|l| l.session == m.session));
                if let Some(next) = config.reconfigured(|n| self.live_disk(n), targets, copies, index) {
                    if was_waiting && self.has_live_copy(&next) && !resumed.contains(&copies) {
                        resumed.push(copies);
                    }
                    changes.push((i, next));
                }
            }
            for (i, mut next) in changes {
                // A set that has just resumed also gets its other targets.
                let targets = table.get(SlotIndex(i as u32)).unwrap_or_default();
                if let Some(more) = next.reconfigured(|n| self.live_disk(n), targets, copies, index) {
                    next = more;
                }
                slots.set(i, Arc::new(next));
            }
            self.slots.insert(copies, slots);
        }
        // Copies that had all been away may differ in what was never flushed: every VDI that may have some of
        // them is taken over anew, which settles them before the first read. By the same owner, so that nobody
        // else serves while that one does not know it yet.
        self.renew_owners(&resumed);
        self.owners_changed = index;
    }

    /// Where copies belong under the current ring.
    pub(super) fn table(&mut self, copies: Copies) -> Arc<PlacementTable> {
        if let Some(table) = self.placement.get(&copies) {
            return table.clone();
        }
        let nodes: Vec<RingNode> = self
            .nodes
            .values()
            .filter(|n| n.is_target())
            .map(|n| RingNode {
                id: n.spec.session.node,
                zone: n.spec.zone.as_str().into(),
                vnodes: n.spec.vnodes,
            })
            .collect();
        let ring = Ring::new(&nodes).expect("Join enforces the ring's limits");
        let table = Arc::new(PlacementTable::new(&ring, self.slot_count(), copies));
        self.placement.insert(copies, table.clone());
        table
    }

    /// Makes the slots of a policy; all are empty, so whoever should hold them is in sync.
    pub(super) fn use_policy(&mut self, copies: Copies) {
        if self.slots.contains_key(&copies) {
            return;
        }
        let table = self.table(copies);
        let version = self.format.as_ref().map_or(1, |f| f.first_version);
        let config = |targets: &[NodeId]| {
            Arc::new(SlotConfig::new(version, targets.iter().filter_map(|n| self.live_disk(*n))))
        };
        let slots = table.iter().map(|(_, targets)| config(targets)).collect();
        self.slots.insert(copies, slots);
    }

    pub(super) fn admit(
        &mut self,
        session: Session,
        copies: Copies,
        admitted: &[(SlotIndex, u64)],
        seen: u64,
        index: u64,
    ) -> u32 {
        if seen < self.owners_changed {
            return 0;
        }
        let table = self.table(copies);
        let Some(mut slots) = self.slots.get(&copies).cloned() else { return 0 };
        let mut count = 0;
        for &(slot, since) in admitted {
            let Some(config) = slots.get(slot.0 as usize) else { continue };
            let mut next = SlotConfig::clone(config);
            let Some(member) = next
                .members
                .iter_mut()
                .find(|m| m.session == session && m.state == MemberState::CatchingUp && m.since == since)
            else {
                continue;
            };
            next.version += 1;
            member.state = MemberState::InSync;
            member.since = next.version;
            count += 1;
            let enough = self.is_enough(copies, &next);
            next.admitted(enough);
            next.eligible.retain(|e| e.node != session.node);
            let targets = table.get(slot).unwrap_or_default();
            if let Some(trimmed) = next.reconfigured(|n| self.live_disk(n), targets, copies, index) {
                next = trimmed;
            }
            slots.set(slot.0 as usize, Arc::new(next));
        }
        self.slots.insert(copies, slots);
        count
    }

    pub(super) fn demote(&mut self, session: Session, copies: Copies, slot: SlotIndex, version: u64) {
        let Some(slots) = self.slots.get(&copies) else { return };
        let Some(config) = slots.get(slot.0 as usize) else { return };
        // Never the last one: better to wait than to forget where the data is.
        let others =
            config.in_state(MemberState::InSync).any(|m| m.session != session && self.serves(m.session));
        if config.version < version || !others {
            return;
        }
        let mut next = SlotConfig::clone(config);
        let Some(member) = next.members.iter_mut().find(|m| m.session == session) else { return };
        next.version += 1;
        member.state = MemberState::CatchingUp;
        member.since = next.version;
        next.eligible.retain(|e| e.node != session.node);
        let mut slots = slots.clone();
        slots.set(slot.0 as usize, Arc::new(next));
        self.slots.insert(copies, slots);
    }

    /// Whoever was taken out of a slot's set before `index` is no longer eligible, if all who are left know of it.
    /// No configuration gets another version: nobody but this state uses what is forgotten.
    pub(super) fn known(&mut self, sessions: &BTreeSet<Session>, index: u64) {
        for (copies, mut slots) in self.slots.clone() {
            for i in 0..slots.len() {
                if slots[i].known_by(sessions, index) {
                    let mut config = SlotConfig::clone(&slots[i]);
                    config.eligible.retain(|e| e.since == 0 || e.since > index);
                    slots.set(i, Arc::new(config));
                }
            }
            self.slots.insert(copies, slots);
        }
    }

    /// The highest index at which somebody became eligible because enough others were left, while that is on record.
    pub(crate) fn newest_eligible(&self) -> Option<u64> {
        let eligible = self.slots().flat_map(|(_, _, config)| &config.eligible);
        eligible.map(|e| e.since).max().filter(|since| *since > 0)
    }

    /// Whether it would change anything that `sessions` know the log up to `index`.
    pub(crate) fn is_news(&self, sessions: &BTreeSet<Session>, index: u64) -> bool {
        self.slots().any(|(_, _, config)| config.known_by(sessions, index))
    }

    /// What a node's failing disk had not written is gone, though its boot goes on.
    pub(super) fn distrust(&mut self, node: NodeId) {
        self.edit_slots(|config| {
            config.members.iter_mut().filter(|m| m.session.node == node).for_each(|m| m.boot = 0);
            config.eligible.iter_mut().filter(|e| e.node == node).for_each(|e| e.boot = 0);
            config.eligible.retain(|e| e.since == 0 || e.boot != 0);
        });
    }

    /// A node that is gone for good is waited for no longer.
    pub(super) fn forget_eligible(&mut self, node: NodeId) {
        self.edit_slots(|config| config.eligible.retain(|e| e.node != node));
    }

    /// Leaves the first slot of each policy alone, for a model that has one object and very many states.
    #[cfg(test)]
    pub(crate) fn keep_first_slot(&mut self) {
        for (copies, slots) in self.slots.clone() {
            self.slots.insert(copies, slots.take(1));
        }
    }

    fn edit_slots(&mut self, edit: impl Fn(&mut SlotConfig)) {
        for (copies, mut slots) in self.slots.clone() {
            for i in 0..slots.len() {
                let mut config = SlotConfig::clone(&slots[i]);
                edit(&mut config);
                if config != *slots[i] {
                    config.version += 1;
                    slots.set(i, Arc::new(config));
                }
            }
            self.slots.insert(copies, slots);
        }
    }
}
