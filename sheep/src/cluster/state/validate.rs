//! What holds after every entry. Pure.

use super::*;

impl ClusterState {
    /// Checks what must hold after every entry; the text names what does not.
    pub fn validate(&self) -> Result<(), String> {
        for (copies, slot, config) in self.slots() {
            let mut nodes: Vec<NodeId> = config.members.iter().map(|m| m.session.node).collect();
            nodes.sort_unstable();
            nodes.dedup();
            if nodes.len() != config.members.len() {
                return Err(format!("slot {copies}/{slot} has a node twice: {config:?}"));
            }
            if config.members.iter().any(|m| m.since > config.version) {
                return Err(format!("slot {copies}/{slot} has a member from the future: {config:?}"));
            }
            let in_set = config.members.iter().filter(|m| m.state != MemberState::CatchingUp);
            let mut trusted: Vec<NodeId> =
                in_set.map(|m| m.session.node).chain(config.eligible.iter().map(|e| e.node)).collect();
            let all = trusted.len();
            trusted.sort_unstable();
            trusted.dedup();
            let needless = |e: &super::super::slots::Eligible| match e.since {
                0 => self.is_enough(copies, config),
                _ => e.boot == 0,
            };
            if trusted.len() != all || config.eligible.iter().any(needless) {
                return Err(format!("slot {copies}/{slot} keeps nodes on record for nothing: {config:?}"));
            }
            let live = self.has_live_copy(config);
            for m in &config.members {
                let alive = self.serves(m.session);
                let fits = match m.state {
                    MemberState::InSync => alive || !live,
                    MemberState::CatchingUp => alive && live,
                    MemberState::Returned => alive && !live,
                };
                if !fits {
                    return Err(format!("slot {copies}/{slot} keeps {m:?} against the members: {config:?}"));
                }
            }
        }
        for vdi in self.vdis() {
            if self.names.get(&vdi.name) != Some(&vdi.id) || vdi.id.0 > self.last_vdi {
                return Err(format!("VDI {} is not listed under its name", vdi.id));
            }
            if vdi.owner.session.is_some_and(|s| !self.is_live(s)) {
                return Err(format!("VDI {} is owned by a session that is over", vdi.id));
            }
            if !self.slots.contains_key(&vdi.copies) {
                return Err(format!("VDI {} has no slots for its {} copies", vdi.id, vdi.copies));
            }
        }
        if self.names.len() != self.vdis.len() {
            return Err("names and VDIs differ in number".to_owned());
        }
        Ok(())
    }
}
