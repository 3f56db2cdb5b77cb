//! A slot's configuration: who holds a copy, who of them is in sync, and how that follows membership.
//!
//! Pure. Called by [`super::state`] for every change of membership. What it keeps:
//!
//! - A configuration never loses its last in-sync set: when all of it is dead, it stays on record and the
//!   slot waits until continuity can be proved (rule 2, rule 3).
//! - While fewer are in sync than a write needs, nothing is acknowledged; so whoever was in sync when that
//!   began stays as good as who is left, and is kept on record as *eligible* until enough are in sync again.
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
//!
//! When all of the set are back and none of them has kept its memory, an eligible one that has goes first.

use serde::{Deserialize, Serialize};
use wire::id::{NodeId, Session};
use wire::policy::Copies;

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

/// A node that held every acknowledged write when too few were left in sync to acknowledge more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Eligible {
    /// Which.
    pub node: NodeId,
    /// The boot since which it has kept all that; zero once its memory was lost.
    pub boot: u128,
}

/// Who holds a slot.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SlotConfig {
    /// Raised by every change.
    pub version: u64,
    /// The members, in no particular order.
    pub members: Vec<Member>,
    /// Who besides the in-sync members may hold every acknowledged write. Empty while enough are in sync.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub eligible: Vec<Eligible>,
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
        Self { version, members: targets.into_iter().map(member).collect(), eligible: Vec::new() }
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

    /// Whether `node` may hold what nobody else has: on record in any way, by any session.
    pub fn is_on_record(&self, node: NodeId) -> bool {
        self.on_node(node).is_some() || self.is_eligible(node)
    }

    /// Whether `node` is eligible.
    pub fn is_eligible(&self, node: NodeId) -> bool {
        self.eligible.iter().any(|e| e.node == node)
    }

    /// The configuration after a change of membership, or `None` if nothing changes.
    ///
    /// `live` gives a node's current session while it is alive and its disk works; `targets` are the nodes
    /// that should hold the slot, best first; `copies` how many there should be.
    pub(crate) fn reconfigured(
        &self,
        live: impl Fn(NodeId) -> Option<Live>,
        targets: &[NodeId],
        copies: Copies,
    ) -> Option<Self> {
        let mut next = Self { version: self.version + 1, ..Self::default() };
        let is_live = |m: &Member| live(m.session.node).is_some_and(|l| l.session == m.session);
        if self.members.is_empty() {
            // Nobody was there when the slot was made, so it has never held anything.
            let first = Self::new(next.version, targets.iter().filter_map(|t| live(*t)));
            return (!first.members.is_empty()).then_some(first);
        }
        if self.in_state(MemberState::InSync).any(is_live) {
            self.keep_alive(&mut next.members, is_live, targets);
            for &target in targets {
                let known = next.on_node(target).is_some();
                if let (false, Some(l)) = (known, live(target)) {
                    next.members.push(Member {
                        session: l.session,
                        boot: l.boot,
                        state: MemberState::CatchingUp,
                        since: next.version,
                    });
                }
            }
            drop_extras(&mut next.members, targets, copies);
        } else {
            self.resume(&mut next, &live);
        }
        self.keep_eligible(&mut next, &live, copies);
        (next.members != self.members || next.eligible != self.eligible).then_some(next)
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
    fn resume(&self, next: &mut Self, live: &impl Fn(NodeId) -> Option<Live>) {
        let last: Vec<&Member> = self.members.iter().filter(|m| m.state != MemberState::CatchingUp).collect();
        let in_sync = |l: Live| Member {
            session: l.session,
            boot: l.boot,
            state: MemberState::InSync,
            since: next.version,
        };
        // With an unbroken boot the kernel still has all that the process had written, so one is enough.
        let unbroken = last.iter().find_map(|m| {
            let l = live(m.session.node)?;
            (m.state == MemberState::InSync && m.boot != 0 && l.boot == m.boot).then_some(l)
        });
        if let Some(l) = unbroken {
            next.members = vec![in_sync(l)];
            return;
        }
        let back: Option<Vec<Live>> = last.iter().map(|m| live(m.session.node)).collect();
        if let Some(mut back) = back {
            // The set itself has only what was flushed. What an eligible one has is no older than anything
            // acknowledged, and who saw more saw it from a set that has lost its memory since.
            let kept =
                self.eligible.iter().find_map(|e| live(e.node).filter(|l| e.boot != 0 && l.boot == e.boot));
            if let Some(l) = kept {
                next.members = vec![in_sync(l)];
                return;
            }
            let others = self.eligible.iter().filter(|e| last.iter().all(|m| m.session.node != e.node));
            let others: Option<Vec<Live>> = others.map(|e| live(e.node)).collect();
            if let Some(others) = others {
                back.extend(others);
                next.members = back.into_iter().map(in_sync).collect();
                return;
            }
        }
        for m in last {
            next.members.push(match live(m.session.node) {
                Some(l) => Member {
                    session: l.session,
                    boot: 0,
                    state: MemberState::Returned,
                    since: if m.session == l.session { m.since } else { next.version },
                },
                None if m.state == MemberState::Returned => {
                    Member { state: MemberState::InSync, boot: 0, ..m.clone() }
                }
                None => m.clone(),
            });
        }
    }

    /// Puts on record in `next` who is eligible beside its in-sync members.
    fn keep_eligible(&self, next: &mut Self, live: &impl Fn(NodeId) -> Option<Live>, copies: Copies) {
        let in_set =
            |config: &Self, node| config.on_node(node).is_some_and(|m| m.state != MemberState::CatchingUp);
        let serving = next
            .in_state(MemberState::InSync)
            .filter(|m| live(m.session.node).is_some_and(|l| l.session == m.session))
            .count();
        if serving >= usize::from(copies.min_default()) {
            return;
        }
        let set = self.members.iter().filter(|m| m.state != MemberState::CatchingUp);
        let fallen = set.map(|m| Eligible {
            node: m.session.node,
            boot: if m.state == MemberState::InSync { m.boot } else { 0 },
        });
        for mut one in self.eligible.iter().cloned().chain(fallen) {
            if in_set(next, one.node) || next.eligible.iter().any(|e| e.node == one.node) {
                continue;
            }
            if live(one.node).is_some_and(|l| l.boot != one.boot) {
                one.boot = 0;
            }
            next.eligible.push(one);
        }
    }
}

/// In-sync members that are no targets go once all copies that can be in place are, and writes need no more.
fn drop_extras(members: &mut Vec<Member>, targets: &[NodeId], copies: Copies) {
    let wanted = usize::from(copies.get()).min(targets.len()).max(copies.min_default().into());
    let in_place = members
        .iter()
        .filter(|m| m.state == MemberState::InSync && targets.contains(&m.session.node))
        .count();
    if in_place >= wanted {
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

    fn copies(count: u64) -> Copies {
        Copies::new(count).expect("in range")
    }

    fn eligible(config: &SlotConfig) -> Vec<(u64, u128)> {
        config.eligible.iter().map(|e| (e.node.0, e.boot)).collect()
    }

    const TARGETS: [NodeId; 3] = [NodeId(1), NodeId(2), NodeId(3)];
    use MemberState::{CatchingUp, InSync, Returned};

    #[test]
    fn a_dead_member_leaves_and_its_next_session_catches_up() {
        let config = SlotConfig::new(1, [live(1, 1, 7), live(2, 1, 7), live(3, 1, 7)]);
        let config =
            config.reconfigured(find(&[live(1, 1, 7), live(2, 1, 7)]), &TARGETS, copies(3)).expect("changed");
        assert_eq!(states(&config), [(1, 1, InSync), (2, 1, InSync)]);
        let all = [live(1, 1, 7), live(2, 1, 7), live(3, 2, 7)];
        let config = config.reconfigured(find(&all), &TARGETS, copies(3)).expect("changed");
        assert_eq!(states(&config), [(1, 1, InSync), (2, 1, InSync), (3, 2, CatchingUp)]);
        assert_eq!(config.version, 3);
        assert_eq!(config.reconfigured(find(&all), &TARGETS, copies(3)), None);
    }

    #[test]
    fn a_quick_restart_makes_a_member_catch_up() {
        let config = SlotConfig::new(1, [live(1, 1, 7), live(2, 1, 7)]);
        let config = config
            .reconfigured(find(&[live(1, 1, 7), live(2, 2, 7)]), &TARGETS[..2], copies(2))
            .expect("changed");
        assert_eq!(states(&config), [(1, 1, InSync), (2, 2, CatchingUp)]);
    }

    #[test]
    fn a_lost_set_waits_for_all_of_it_or_for_one_with_an_unbroken_boot() {
        let config = SlotConfig::new(1, [live(1, 1, 7), live(2, 1, 8)]);
        assert_eq!(config.reconfigured(find(&[]), &TARGETS[..2], copies(2)), None);
        // One is back after a power loss, and a stranger is there: neither counts.
        let one = config
            .reconfigured(find(&[live(1, 2, 70), live(3, 1, 9)]), &TARGETS, copies(2))
            .expect("changed");
        assert_eq!(states(&one), [(1, 2, Returned), (2, 1, InSync)]);
        let both = one
            .reconfigured(find(&[live(1, 2, 70), live(2, 2, 80)]), &TARGETS[..2], copies(2))
            .expect("changed");
        assert_eq!(states(&both), [(1, 2, InSync), (2, 2, InSync)]);
        // The other comes back from a mere restart: it alone is enough.
        let unbroken = one.reconfigured(find(&[live(1, 2, 70), live(2, 2, 8)]), &TARGETS[..2], copies(2));
        assert_eq!(states(&unbroken.expect("changed")), [(2, 2, InSync)]);
    }

    #[test]
    fn who_returned_from_a_power_loss_and_restarts_still_does_not_count_alone() {
        let config = SlotConfig::new(1, [live(1, 1, 7), live(2, 1, 8)]);
        let config = config.reconfigured(find(&[live(1, 2, 70)]), &TARGETS[..2], copies(2)).expect("changed");
        let config = config.reconfigured(find(&[]), &TARGETS[..2], copies(2)).expect("changed");
        let config = config.reconfigured(find(&[live(1, 3, 70)]), &TARGETS[..2], copies(2)).expect("changed");
        assert_eq!(states(&config), [(1, 3, Returned), (2, 1, InSync)]);
    }

    #[test]
    fn an_old_holder_goes_only_when_the_new_ones_are_in_sync() {
        let config = SlotConfig::new(1, [live(4, 1, 7)]);
        let all = [live(1, 1, 7), live(4, 1, 7)];
        let mut config = config.reconfigured(find(&all), &TARGETS[..1], copies(1)).expect("changed");
        assert_eq!(states(&config), [(1, 1, CatchingUp), (4, 1, InSync)]);
        config.members.iter_mut().for_each(|m| m.state = InSync);
        let config = config.reconfigured(find(&all), &TARGETS[..1], copies(1)).expect("changed");
        assert_eq!(states(&config), [(1, 1, InSync)]);
    }

    #[test]
    fn who_is_left_out_while_enough_stay_is_not_eligible() {
        let config = SlotConfig::new(1, [live(1, 1, 7), live(2, 1, 8), live(3, 1, 9)]);
        let two = config.reconfigured(find(&[live(1, 1, 7), live(2, 1, 8)]), &TARGETS, copies(3));
        assert_eq!(eligible(&two.expect("changed")), []);
        // With two copies one is enough for a write.
        let config = SlotConfig::new(1, [live(1, 1, 7), live(2, 1, 8)]);
        let one = config.reconfigured(find(&[live(1, 1, 7)]), &TARGETS[..2], copies(2));
        assert_eq!(eligible(&one.expect("changed")), []);
    }

    #[test]
    fn who_fell_out_when_writes_stopped_goes_before_a_set_without_memory() {
        let config = SlotConfig::new(1, [live(1, 1, 7), live(2, 1, 8), live(3, 1, 9)]);
        let one = config.reconfigured(find(&[live(1, 1, 7)]), &TARGETS, copies(3)).expect("changed");
        assert_eq!(eligible(&one), [(2, 8), (3, 9)]);
        // 2 comes back without its memory, 3 with it, and 1 loses its own.
        let back = [live(1, 1, 7), live(2, 2, 80), live(3, 2, 9)];
        let back = one.reconfigured(find(&back), &TARGETS, copies(3)).expect("changed");
        assert_eq!(states(&back), [(1, 1, InSync), (2, 2, CatchingUp), (3, 2, CatchingUp)]);
        assert_eq!(eligible(&back), [(2, 0), (3, 9)]);
        let others = [live(2, 2, 80), live(3, 2, 9)];
        let lost = back.reconfigured(find(&others), &TARGETS, copies(3)).expect("changed");
        // 1 may have shown more than was acknowledged: it is waited for.
        assert_eq!((states(&lost), eligible(&lost)), (vec![(1, 1, InSync)], vec![(2, 0), (3, 9)]));
        let all = [live(1, 2, 70), live(2, 2, 80), live(3, 2, 9)];
        let resumed = lost.reconfigured(find(&all), &TARGETS, copies(3)).expect("changed");
        assert_eq!(states(&resumed), [(3, 2, InSync)]);
        assert_eq!(eligible(&resumed), [(2, 0), (1, 0)]);
        // Once enough are in sync nobody else counts.
        let mut more = resumed.reconfigured(find(&all), &TARGETS, copies(3)).expect("changed");
        more.members.iter_mut().find(|m| m.session.node == NodeId(1)).expect("a target").state = InSync;
        let more = more.reconfigured(find(&all), &TARGETS, copies(3)).expect("changed");
        assert_eq!(eligible(&more), []);
    }

    #[test]
    fn a_set_without_memory_waits_for_the_eligible_and_then_counts_with_them() {
        let config = SlotConfig::new(1, [live(1, 1, 7), live(2, 1, 8)]);
        let one = config.reconfigured(find(&[live(1, 1, 7)]), &TARGETS[..2], copies(3)).expect("changed");
        let dark = one.reconfigured(find(&[live(1, 2, 70)]), &TARGETS[..2], copies(3)).expect("changed");
        assert_eq!((states(&dark), eligible(&dark)), (vec![(1, 2, Returned)], vec![(2, 8)]));
        let both = [live(1, 2, 70), live(2, 2, 80)];
        let both = dark.reconfigured(find(&both), &TARGETS[..2], copies(3)).expect("changed");
        assert_eq!((states(&both), eligible(&both)), (vec![(1, 2, InSync), (2, 2, InSync)], vec![]));
    }

    #[test]
    fn old_holders_stay_while_fewer_are_in_place_than_a_write_needs() {
        let config = SlotConfig::new(1, [live(1, 1, 7), live(4, 1, 7)]);
        let all = [live(1, 1, 7), live(4, 1, 7)];
        assert_eq!(config.reconfigured(find(&all), &TARGETS[..1], copies(3)), None);
    }
}
