//! A slot's configuration: who holds a copy, who of them is in sync, and how that follows membership.
//!
//! Pure. Called by [`super::state`] for every change of membership. What it keeps:
//!
//! - A configuration never loses its last in-sync set: when all of it is dead, it stays on record and the
//!   slot waits until continuity can be proved (rule 2, rule 3).
//! - A holder that should no longer hold the slot goes only when every target is in sync (guarantee 5).
//! - Every change raises the version, and replicas refuse requests that name a lower one.
//!
//! ```text
//!            target, alive                     admitted: equal and durable
//!  (none) ─────────────────▶ CatchingUp ─────────────────────────────────────▶ InSync
//!                                 ▲  session over: gone                          │
//!                                 └───────── session over, others in sync ───────┤
//!                                                                                │ session over, nobody else in sync
//!     in sync again: same boot, or all of the set are back ◀── Returned ◀── (InSync on record, dead)
//! ```

use serde::{Deserialize, Serialize};
use wire::id::{NodeId, Session};

/// How far a member's copy of a slot is to be trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum MemberState {
    /// Holds every acknowledged write; may be read. If its session is over, the slot waits for it.
    InSync,
    /// Is sent every write, but may lack older ones.
    CatchingUp,
    /// Was in the last in-sync set, lost its memory (another boot) and is back; waits for the others.
    Returned,
}

/// One node's part in a slot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// The session whose copy it is.
    pub session: Session,
    /// The boot under which it was last in sync without a break; zero if there was a break.
    pub boot: u128,
    /// How far it is to be trusted.
    pub state: MemberState,
    /// The configuration version in which it got its state.
    pub since: u64,
}

/// Who holds a slot.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SlotConfig {
    /// Raised by every change.
    pub version: u64,
    /// The members, in no particular order.
    pub members: Vec<Member>,
}

/// A node's current session, as far as slots care.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Live {
    pub(crate) session: Session,
    pub(crate) boot: u128,
}

impl SlotConfig {
    /// A configuration of a slot that has never held anything: all `targets` are in sync.
    pub(crate) fn new(version: u64, targets: impl IntoIterator<Item = Live>) -> Self {
        let member = |live: Live| Member {
            session: live.session,
            boot: live.boot,
            state: MemberState::InSync,
            since: version,
        };
        Self { version, members: targets.into_iter().map(member).collect() }
    }

    /// The members in a state.
    pub fn in_state(&self, state: MemberState) -> impl Iterator<Item = &Member> {
        self.members.iter().filter(move |m| m.state == state)
    }

    /// The member that is `session`.
    pub fn member(&self, session: Session) -> Option<&Member> {
        self.members.iter().find(|m| m.session == session)
    }

    /// The member on `node`, whichever session.
    pub fn on_node(&self, node: NodeId) -> Option<&Member> {
        self.members.iter().find(|m| m.session.node == node)
    }

    /// The configuration after a change of membership, or `None` if nothing changes.
    ///
    /// `live` gives a node's current session while it is alive and its disk works; `targets` are the nodes
    /// that should hold the slot, best first; `copies` how many there should be.
    pub(crate) fn reconfigured(
        &self,
        live: impl Fn(NodeId) -> Option<Live>,
        targets: &[NodeId],
        copies: usize,
    ) -> Option<Self> {
        let next_version = self.version + 1;
        let is_live = |m: &Member| live(m.session.node).is_some_and(|l| l.session == m.session);
        let in_sync_alive = self.in_state(MemberState::InSync).any(is_live);
        let mut members = Vec::with_capacity(self.members.len() + 1);
        if self.members.is_empty() {
            // Nobody was there when the slot was made, so it has never held anything.
            let first = Self::new(next_version, targets.iter().filter_map(|t| live(*t)));
            return (!first.members.is_empty()).then_some(first);
        }
        if in_sync_alive {
            self.keep_alive(&mut members, is_live, targets);
            for &target in targets {
                let known = members.iter().any(|m| m.session.node == target);
                if let (false, Some(l)) = (known, live(target)) {
                    members.push(Member {
                        session: l.session,
                        boot: l.boot,
                        state: MemberState::CatchingUp,
                        since: next_version,
                    });
                }
            }
            drop_extras(&mut members, targets, copies);
        } else {
            self.resume(&mut members, &live, next_version);
        }
        (members != self.members).then_some(Self { version: next_version, members })
    }

    /// In-sync members that are alive stay, and catching-up ones that are alive and still targets.
    fn keep_alive(&self, members: &mut Vec<Member>, is_live: impl Fn(&Member) -> bool, targets: &[NodeId]) {
        members.extend(
            self.members
                .iter()
                .filter(|m| is_live(m))
                .filter(|m| match m.state {
                    MemberState::InSync => true,
                    MemberState::CatchingUp => targets.contains(&m.session.node),
                    MemberState::Returned => false,
                })
                .cloned(),
        );
    }

    /// The last in-sync set is dead: see whether who is back proves continuity.
    fn resume(&self, members: &mut Vec<Member>, live: &impl Fn(NodeId) -> Option<Live>, version: u64) {
        let last: Vec<&Member> = self.members.iter().filter(|m| m.state != MemberState::CatchingUp).collect();
        // With an unbroken boot the kernel still has all that the process had written, so one is enough.
        let unbroken = last.iter().find_map(|m| {
            let l = live(m.session.node)?;
            (m.state == MemberState::InSync && m.boot != 0 && l.boot == m.boot).then_some(l)
        });
        if let Some(l) = unbroken {
            members.push(Member {
                session: l.session,
                boot: l.boot,
                state: MemberState::InSync,
                since: version,
            });
            return;
        }
        let all_back = last.iter().all(|m| live(m.session.node).is_some());
        for m in last {
            members.push(match live(m.session.node) {
                Some(l) if all_back => {
                    Member { session: l.session, boot: l.boot, state: MemberState::InSync, since: version }
                }
                Some(l) => Member {
                    session: l.session,
                    boot: 0,
                    state: MemberState::Returned,
                    since: if m.session == l.session { m.since } else { version },
                },
                None if m.state == MemberState::Returned => {
                    Member { state: MemberState::InSync, boot: 0, ..m.clone() }
                }
                None => m.clone(),
            });
        }
    }
}

/// In-sync members that are no targets go once `copies` targets are in sync (or all there are).
fn drop_extras(members: &mut Vec<Member>, targets: &[NodeId], copies: usize) {
    let wanted = copies.min(targets.len());
    let in_place = members
        .iter()
        .filter(|m| m.state == MemberState::InSync && targets.contains(&m.session.node))
        .count();
    if wanted > 0 && in_place >= wanted {
        members.retain(|m| targets.contains(&m.session.node));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn live(node: u64, start: u64, boot: u128) -> Live {
        Live { session: Session { node: NodeId(node), start }, boot }
    }

    fn find(all: &[Live]) -> impl Fn(NodeId) -> Option<Live> + '_ {
        |node| all.iter().copied().find(|l| l.session.node == node)
    }

    fn states(config: &SlotConfig) -> Vec<(u64, u64, MemberState)> {
        let mut all: Vec<_> =
            config.members.iter().map(|m| (m.session.node.0, m.session.start, m.state)).collect();
        all.sort_by_key(|m| m.0);
        all
    }

    const TARGETS: [NodeId; 3] = [NodeId(1), NodeId(2), NodeId(3)];
    use MemberState::{CatchingUp, InSync, Returned};

    #[test]
    fn a_dead_member_leaves_and_its_next_session_catches_up() {
        let config = SlotConfig::new(1, [live(1, 1, 7), live(2, 1, 7), live(3, 1, 7)]);
        let config =
            config.reconfigured(find(&[live(1, 1, 7), live(2, 1, 7)]), &TARGETS, 3).expect("changed");
        assert_eq!(states(&config), [(1, 1, InSync), (2, 1, InSync)]);
        let all = [live(1, 1, 7), live(2, 1, 7), live(3, 2, 7)];
        let config = config.reconfigured(find(&all), &TARGETS, 3).expect("changed");
        assert_eq!(states(&config), [(1, 1, InSync), (2, 1, InSync), (3, 2, CatchingUp)]);
        assert_eq!(config.version, 3);
        assert_eq!(config.reconfigured(find(&all), &TARGETS, 3), None);
    }

    #[test]
    fn a_quick_restart_makes_a_member_catch_up() {
        let config = SlotConfig::new(1, [live(1, 1, 7), live(2, 1, 7)]);
        let config =
            config.reconfigured(find(&[live(1, 1, 7), live(2, 2, 7)]), &TARGETS[..2], 2).expect("changed");
        assert_eq!(states(&config), [(1, 1, InSync), (2, 2, CatchingUp)]);
    }

    #[test]
    fn a_lost_set_waits_for_all_of_it_or_for_one_with_an_unbroken_boot() {
        let config = SlotConfig::new(1, [live(1, 1, 7), live(2, 1, 8)]);
        assert_eq!(config.reconfigured(find(&[]), &TARGETS[..2], 2), None);
        // One is back after a power loss, and a stranger is there: neither counts.
        let one = config.reconfigured(find(&[live(1, 2, 70), live(3, 1, 9)]), &TARGETS, 2).expect("changed");
        assert_eq!(states(&one), [(1, 2, Returned), (2, 1, InSync)]);
        let both =
            one.reconfigured(find(&[live(1, 2, 70), live(2, 2, 80)]), &TARGETS[..2], 2).expect("changed");
        assert_eq!(states(&both), [(1, 2, InSync), (2, 2, InSync)]);
        // The other comes back from a mere restart: it alone is enough.
        let unbroken = one.reconfigured(find(&[live(1, 2, 70), live(2, 2, 8)]), &TARGETS[..2], 2);
        assert_eq!(states(&unbroken.expect("changed")), [(2, 2, InSync)]);
    }

    #[test]
    fn who_returned_from_a_power_loss_and_restarts_still_does_not_count_alone() {
        let config = SlotConfig::new(1, [live(1, 1, 7), live(2, 1, 8)]);
        let config = config.reconfigured(find(&[live(1, 2, 70)]), &TARGETS[..2], 2).expect("changed");
        let config = config.reconfigured(find(&[]), &TARGETS[..2], 2).expect("changed");
        let config = config.reconfigured(find(&[live(1, 3, 70)]), &TARGETS[..2], 2).expect("changed");
        assert_eq!(states(&config), [(1, 3, Returned), (2, 1, InSync)]);
    }

    #[test]
    fn an_old_holder_goes_only_when_the_new_ones_are_in_sync() {
        let config = SlotConfig::new(1, [live(4, 1, 7)]);
        let all = [live(1, 1, 7), live(4, 1, 7)];
        let mut config = config.reconfigured(find(&all), &TARGETS[..1], 1).expect("changed");
        assert_eq!(states(&config), [(1, 1, CatchingUp), (4, 1, InSync)]);
        config.members.iter_mut().for_each(|m| m.state = InSync);
        let config = config.reconfigured(find(&all), &TARGETS[..1], 1).expect("changed");
        assert_eq!(states(&config), [(1, 1, InSync)]);
    }
}
