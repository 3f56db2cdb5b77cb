//! A slot's configuration: who holds a copy, who of them is in sync, and how that follows membership.
//!
//! Pure. Called by [`super::state`] for every change of membership. What it keeps:
//!
//! - A configuration never loses its last in-sync set: when all of it is dead, it stays on record and the
//!   slot waits until continuity can be proved (rule 2, rule 3).
//! - While fewer are in sync than a write needs, nothing is acknowledged; so whoever was in sync when that
//!   began stays as good as who is left, and is kept on record as *eligible* until enough are in sync again.
//! - Who is taken out while enough stay is as good as those until they have acknowledged something without it.
//!   They may only do so once each of them knows that it was taken out; so one of them whose log had not come
//!   that far when its process died proves that none has. Until somebody new is admitted it is eligible too.
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
//! When all of the set are back and none of them has kept its memory, an eligible one that has goes first. One that
//! is proved to lack nothing goes as soon as it is.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use wire::id::{NodeId, Session};
use wire::policy::Copies;

use super::entry::Reached;
use crate::mutant::{Mutant, planted};

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
    /// Of one that lost its memory: how far the log of the process had come that was in sync, if that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reached: Option<u64>,
}

/// A node that held every acknowledged write when too few were left in sync to acknowledge more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Eligible {
    /// Which.
    pub node: NodeId,
    /// The boot since which it has kept all that; zero once its memory was lost.
    pub boot: u128,
    /// The log index of its being taken out while enough stayed: what they acknowledged since it lacks. Zero if
    /// too few stayed.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub since: u64,
    /// The session in which it was in sync.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub start: u64,
    /// How far the log of that session's process had come when it died, once a later process has said so; until then zero.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub reached: u64,
}

impl Eligible {
    /// How far the log of its process had come, as a later session of the node tells it.
    fn reached_before(&self, later: Live<'_>) -> Option<u64> {
        self.has_said().or_else(|| later.reached_by(self.start).filter(|_| self.start > 0))
    }

    fn has_said(&self) -> Option<u64> {
        (self.reached > 0).then_some(self.reached)
    }
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// Who holds a slot.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SlotConfig {
    /// Raised by every change.
    pub version: u64,
    /// The members, in no particular order.
    pub members: Vec<Member>,
    /// Who besides the in-sync members may hold every acknowledged write. While enough are in sync, those taken
    /// out since the last admission.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub eligible: Vec<Eligible>,
}

/// A node's current session, as far as slots care.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Live<'a> {
    pub(crate) session: Session,
    pub(crate) boot: u128,
    /// How far the node's log had come when its last processes began.
    pub(crate) reached: &'a [Reached],
}

impl Live<'_> {
    /// How far the log of the process had come that was session `start`, if it has died since.
    fn reached_by(self, start: u64) -> Option<u64> {
        self.reached.iter().find(|r| r.before > start).map(|r| r.index)
    }

    fn in_state(self, state: MemberState, since: u64) -> Member {
        Member { session: self.session, boot: self.boot, state, since, reached: None }
    }
}

impl SlotConfig {
    /// A configuration of a slot that has never held anything: all `targets` are in sync.
    pub(crate) fn new<'a>(version: u64, targets: impl IntoIterator<Item = Live<'a>>) -> Self {
        let member = |live: Live<'a>| live.in_state(MemberState::InSync, version);
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

    /// Whether somebody was taken out at or before `index`, and all of the set left are among `sessions`. Who lost
    /// its memory since, or fell out when too few were left, may have died before it knew, whatever its present session
    /// knows.
    pub(crate) fn known_by(&self, sessions: &BTreeSet<Session>, index: u64) -> bool {
        let mut set = self.members.iter().filter(|m| m.state != MemberState::CatchingUp);
        self.eligible.iter().any(|e| (1..=index).contains(&e.since))
            && self.eligible.iter().all(|e| e.since > 0)
            && set.all(|m| m.state == MemberState::InSync && m.boot != 0 && sessions.contains(&m.session))
    }

    /// The configuration after a change of membership, or `None` if nothing changes.
    ///
    /// `live` gives a node's current session while it is alive and its disk works; `targets` are the nodes
    /// that should hold the slot, best first; `copies` how many there should be; `index` is the log's.
    pub(crate) fn reconfigured<'a>(
        &self,
        live: impl Fn(NodeId) -> Option<Live<'a>>,
        targets: &[NodeId],
        copies: Copies,
        index: u64,
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
                    next.members.push(l.in_state(MemberState::CatchingUp, next.version));
                }
            }
            drop_extras(&mut next.members, targets, copies);
        } else {
            self.resume(&mut next, &live);
        }
        self.keep_eligible(&mut next, &live, copies, index);
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
    fn resume<'a>(&self, next: &mut Self, live: &impl Fn(NodeId) -> Option<Live<'a>>) {
        let last: Vec<&Member> = self.members.iter().filter(|m| m.state != MemberState::CatchingUp).collect();
        let version = next.version;
        let in_sync = |l: Live<'_>| l.in_state(MemberState::InSync, version);
        // With an unbroken boot the kernel still has all that the process had written, so one is enough.
        let unbroken = last.iter().find_map(|m| {
            let l = live(m.session.node)?;
            let same = m.boot != 0 && l.boot == m.boot || planted(Mutant::AnyBoot);
            (m.state == MemberState::InSync && same).then_some(l)
        });
        if let Some(l) = unbroken {
            next.members = vec![in_sync(l)];
            return;
        }
        // So does who was taken out before anything was acknowledged without it, and it has all that they had.
        let kept = |e: &Eligible| live(e.node).filter(|l| e.boot != 0 && l.boot == e.boot);
        let proved = self.eligible.iter().filter(|e| e.since > 0 && self.is_proved(e, live));
        if let Some(l) = proved.clone().find_map(kept) {
            next.members = vec![in_sync(l)];
            return;
        }
        let awaited = proved.clone().any(|e| live(e.node).is_none());
        let back: Option<Vec<Live<'_>>> = last.iter().map(|m| live(m.session.node)).collect();
        if let Some(mut back) = back.filter(|_| !awaited) {
            // The set itself has only what was flushed. What an eligible one has is no older than anything
            // acknowledged, and who saw more saw it from a set that has lost its memory since.
            let eligible = self.eligible.iter().filter(|e| e.since == 0);
            if let Some(l) = eligible.clone().find_map(kept) {
                next.members = vec![in_sync(l)];
                return;
            }
            let others = eligible.filter(|e| last.iter().all(|m| m.session.node != e.node));
            let others: Option<Vec<Live<'_>>> = others.map(|e| live(e.node)).collect();
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
                    reached: m.reached_before(l),
                },
                None if m.state == MemberState::Returned => {
                    Member { state: MemberState::InSync, boot: 0, ..m.clone() }
                }
                None => m.clone(),
            });
        }
    }

    /// Whether nothing was acknowledged since one was taken out: one of those who were left never knew of it. Those are
    /// the lost set, and who was taken out of it when too few were left: nobody has acknowledged anything since.
    fn is_proved<'a>(&self, one: &Eligible, live: &impl Fn(NodeId) -> Option<Live<'a>>) -> bool {
        let set = self.members.iter().filter(|m| m.state != MemberState::CatchingUp);
        let of_set = set.filter_map(|m| match live(m.session.node) {
            Some(l) if l.session != m.session => m.reached_before(l),
            _ => m.reached,
        });
        let fallen = self.eligible.iter().filter(|e| e.since == 0);
        let of_fallen = fallen.filter_map(|e| match live(e.node) {
            Some(l) => e.reached_before(l),
            None => e.has_said(),
        });
        of_set.chain(of_fallen).any(|reached| reached < one.since)
    }

    /// Puts on record in `next` who is eligible beside its in-sync members.
    fn keep_eligible<'a>(
        &self,
        next: &mut Self,
        live: &impl Fn(NodeId) -> Option<Live<'a>>,
        copies: Copies,
        index: u64,
    ) {
        let in_set =
            |config: &Self, node| config.on_node(node).is_some_and(|m| m.state != MemberState::CatchingUp);
        let serving = next
            .in_state(MemberState::InSync)
            .filter(|m| live(m.session.node).is_some_and(|l| l.session == m.session))
            .count();
        // From here on those in `next` may acknowledge, if they are enough.
        let now = if serving >= usize::from(copies.min_default()) { index } else { 0 };
        let is_lost = |m: &Member| live(m.session.node).is_none_or(|l| l.session != m.session);
        let resumes = serving > 0 && self.in_state(MemberState::InSync).all(is_lost);
        let set = self.members.iter().filter(|m| m.state != MemberState::CatchingUp);
        // Who is there and is no longer needed, too: one of the others may be dead already.
        let fallen = set.map(|m| Eligible {
            node: m.session.node,
            boot: if m.state == MemberState::InSync { m.boot } else { 0 },
            since: now,
            start: m.session.start,
            reached: m.reached.unwrap_or_default(),
        });
        let known = self.eligible.iter().map(|e| Eligible {
            since: if e.since == 0 || resumes && self.is_proved(e, live) { now } else { e.since },
            ..e.clone()
        });
        for mut one in known.chain(fallen) {
            if in_set(next, one.node) || next.eligible.iter().any(|e| e.node == one.node) {
                continue;
            }
            if let Some(l) = live(one.node) {
                one.boot = if l.boot == one.boot { one.boot } else { 0 };
                // A process remembers a few that were before it, this is remembered for good.
                one.reached = one.reached_before(l).unwrap_or_default();
            }
            // One of those that acknowledge and has nothing but what it flushed has no more than they.
            if one.since == 0 || one.boot != 0 {
                next.eligible.push(one);
            }
        }
    }

    /// Somebody was admitted to the in-sync set: from here on others acknowledge than were there when those were
    /// taken out that it does without, and if they are enough, nobody else counts.
    pub(crate) fn admitted(&mut self, enough: bool) {
        self.eligible.retain(|e| e.since == 0 && !enough);
    }
}

impl Member {
    /// How far the log of the process of this session had come, as a later session of the node tells it.
    fn reached_before(&self, later: Live<'_>) -> Option<u64> {
        if self.state == MemberState::Returned || self.boot == 0 {
            return self.reached;
        }
        later.reached_by(self.session.start)
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

    fn live(node: u64, start: u64, boot: u128) -> Live<'static> {
        Live { session: Session { node: NodeId(node), start }, boot, reached: &[] }
    }

    fn find<'a>(all: &'a [Live<'a>]) -> impl Fn(NodeId) -> Option<Live<'a>> + 'a {
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

    /// Those that lack nothing.
    fn eligible(config: &SlotConfig) -> Vec<(u64, u128)> {
        config.eligible.iter().filter(|e| e.since == 0).map(|e| (e.node.0, e.boot)).collect()
    }

    /// Those taken out while enough stayed, and when.
    fn taken_out(config: &SlotConfig) -> Vec<(u64, u64)> {
        config.eligible.iter().filter(|e| e.since > 0).map(|e| (e.node.0, e.since)).collect()
    }

    /// Where the log is.
    const AT: u64 = 100;
    const TARGETS: [NodeId; 3] = [NodeId(1), NodeId(2), NodeId(3)];
    use MemberState::{CatchingUp, InSync, Returned};

    #[test]
    fn a_dead_member_leaves_and_its_next_session_catches_up() {
        let config = SlotConfig::new(1, [live(1, 1, 7), live(2, 1, 7), live(3, 1, 7)]);
        let config = config
            .reconfigured(find(&[live(1, 1, 7), live(2, 1, 7)]), &TARGETS, copies(3), AT)
            .expect("changed");
        assert_eq!(states(&config), [(1, 1, InSync), (2, 1, InSync)]);
        let all = [live(1, 1, 7), live(2, 1, 7), live(3, 2, 7)];
        let config = config.reconfigured(find(&all), &TARGETS, copies(3), AT).expect("changed");
        assert_eq!(states(&config), [(1, 1, InSync), (2, 1, InSync), (3, 2, CatchingUp)]);
        assert_eq!(config.version, 3);
        assert_eq!(config.reconfigured(find(&all), &TARGETS, copies(3), AT), None);
    }

    #[test]
    fn a_quick_restart_makes_a_member_catch_up() {
        let config = SlotConfig::new(1, [live(1, 1, 7), live(2, 1, 7)]);
        let config = config
            .reconfigured(find(&[live(1, 1, 7), live(2, 2, 7)]), &TARGETS[..2], copies(2), AT)
            .expect("changed");
        assert_eq!(states(&config), [(1, 1, InSync), (2, 2, CatchingUp)]);
    }

    #[test]
    fn a_lost_set_waits_for_all_of_it_or_for_one_with_an_unbroken_boot() {
        let config = SlotConfig::new(1, [live(1, 1, 7), live(2, 1, 8)]);
        assert_eq!(config.reconfigured(find(&[]), &TARGETS[..2], copies(2), AT), None);
        // One is back after a power loss, and a stranger is there: neither counts.
        let one = config
            .reconfigured(find(&[live(1, 2, 70), live(3, 1, 9)]), &TARGETS, copies(2), AT)
            .expect("changed");
        assert_eq!(states(&one), [(1, 2, Returned), (2, 1, InSync)]);
        let both = one
            .reconfigured(find(&[live(1, 2, 70), live(2, 2, 80)]), &TARGETS[..2], copies(2), AT)
            .expect("changed");
        assert_eq!(states(&both), [(1, 2, InSync), (2, 2, InSync)]);
        // The other comes back from a mere restart: it alone is enough.
        let unbroken = one.reconfigured(find(&[live(1, 2, 70), live(2, 2, 8)]), &TARGETS[..2], copies(2), AT);
        assert_eq!(states(&unbroken.expect("changed")), [(2, 2, InSync)]);
    }

    #[test]
    fn who_returned_from_a_power_loss_and_restarts_still_does_not_count_alone() {
        let config = SlotConfig::new(1, [live(1, 1, 7), live(2, 1, 8)]);
        let config =
            config.reconfigured(find(&[live(1, 2, 70)]), &TARGETS[..2], copies(2), AT).expect("changed");
        let config = config.reconfigured(find(&[]), &TARGETS[..2], copies(2), AT).expect("changed");
        let config =
            config.reconfigured(find(&[live(1, 3, 70)]), &TARGETS[..2], copies(2), AT).expect("changed");
        assert_eq!(states(&config), [(1, 3, Returned), (2, 1, InSync)]);
    }

    #[test]
    fn an_old_holder_goes_only_when_the_new_ones_are_in_sync() {
        let config = SlotConfig::new(1, [live(4, 1, 7)]);
        let all = [live(1, 1, 7), live(4, 1, 7)];
        let mut config = config.reconfigured(find(&all), &TARGETS[..1], copies(1), AT).expect("changed");
        assert_eq!(states(&config), [(1, 1, CatchingUp), (4, 1, InSync)]);
        config.members.iter_mut().for_each(|m| m.state = InSync);
        let config = config.reconfigured(find(&all), &TARGETS[..1], copies(1), AT).expect("changed");
        assert_eq!(states(&config), [(1, 1, InSync)]);
    }

    #[test]
    fn who_is_taken_out_while_enough_stay_is_eligible_since_then() {
        let config = SlotConfig::new(1, [live(1, 1, 7), live(2, 1, 8), live(3, 1, 9)]);
        let two = config.reconfigured(find(&[live(1, 1, 7), live(2, 1, 8)]), &TARGETS, copies(3), AT);
        let two = two.expect("changed");
        assert_eq!((eligible(&two), taken_out(&two)), (vec![], vec![(3, AT)]));
        // With two copies one is enough for a write.
        let config = SlotConfig::new(1, [live(1, 1, 7), live(2, 1, 8)]);
        let one = config.reconfigured(find(&[live(1, 1, 7)]), &TARGETS[..2], copies(2), AT);
        let one = one.expect("changed");
        assert_eq!((eligible(&one), taken_out(&one)), (vec![], vec![(2, AT)]));
        // Once somebody is admitted nobody else counts.
        let mut more = one.reconfigured(find(&[live(1, 1, 7), live(2, 2, 8)]), &TARGETS[..2], copies(2), AT);
        let more = more.as_mut().expect("changed");
        assert_eq!(taken_out(more), [(2, AT)]);
        more.admitted(true);
        assert_eq!(more.eligible, []);
    }

    /// 2 was taken out at AT, and then 1 lost its power.
    fn taken_out_before_a_loss_of_power() -> SlotConfig {
        let config = SlotConfig::new(1, [live(1, 1, 7), live(2, 1, 8)]);
        let one = config.reconfigured(find(&[live(1, 1, 7)]), &TARGETS[..2], copies(2), AT);
        let both = one.expect("changed").reconfigured(
            find(&[live(1, 1, 7), live(2, 2, 8)]),
            &TARGETS[..2],
            copies(2),
            AT + 1,
        );
        both.expect("changed")
    }

    /// One whose log had come to AT - 1, or to AT, when its second process began.
    fn knew(start: u64, boot: u128, of_it: bool) -> Live<'static> {
        const UNKNOWN: &[Reached] =
            &[Reached { before: 2, index: AT - 1 }, Reached { before: 3, index: AT + 3 }];
        const KNOWN: &[Reached] = &[Reached { before: 2, index: AT }];
        Live { reached: if of_it { KNOWN } else { UNKNOWN }, ..live(1, start, boot) }
    }

    #[test]
    fn who_was_taken_out_unknown_to_those_who_lost_their_memory_goes_before_them() {
        let config = taken_out_before_a_loss_of_power();
        let back = |of_it| [knew(3, 70, of_it), live(2, 2, 8)];
        let resumed = config.reconfigured(find(&back(false)), &TARGETS[..2], copies(2), AT + 2);
        let resumed = resumed.expect("changed");
        assert_eq!((states(&resumed), taken_out(&resumed)), (vec![(2, 2, InSync)], vec![]));
        // 1 knew that 2 was taken out, and may have acknowledged something alone.
        let alone = config.reconfigured(find(&back(true)), &TARGETS[..2], copies(2), AT + 2);
        assert_eq!(states(&alone.expect("changed")), [(1, 3, InSync)]);
        // Nobody knows what it knew.
        let unknown = [live(1, 2, 70), live(2, 2, 8)];
        let alone = config.reconfigured(find(&unknown), &TARGETS[..2], copies(2), AT + 2);
        assert_eq!(states(&alone.expect("changed")), [(1, 2, InSync)]);
    }

    #[test]
    fn who_was_taken_out_is_waited_for_if_those_left_did_not_know() {
        let config = taken_out_before_a_loss_of_power();
        let back = [knew(2, 70, false)];
        let waits = config.reconfigured(find(&back), &TARGETS[..2], copies(2), AT + 2).expect("changed");
        assert_eq!((states(&waits), taken_out(&waits)), (vec![(1, 2, Returned)], vec![(2, AT)]));
        // It restarts, and has heard of everything since: what its first process knew counts.
        let gone = waits.reconfigured(find(&[]), &TARGETS[..2], copies(2), AT + 3).expect("changed");
        let back = [knew(3, 70, false)];
        let waits = gone.reconfigured(find(&back), &TARGETS[..2], copies(2), AT + 4).expect("changed");
        assert_eq!(states(&waits), [(1, 3, Returned)]);
        let both = [knew(3, 70, false), live(2, 3, 8)];
        let resumed = waits.reconfigured(find(&both), &TARGETS[..2], copies(2), AT + 5).expect("changed");
        assert_eq!(states(&resumed), [(2, 3, InSync)]);
        // It has lost its memory as well: then the others have what was flushed, and are enough.
        let both = [knew(3, 70, false), live(2, 3, 80)];
        let resumed = waits.reconfigured(find(&both), &TARGETS[..2], copies(2), AT + 5).expect("changed");
        assert_eq!(states(&resumed), [(1, 3, InSync)]);
    }

    #[test]
    fn whoever_resumes_alone_may_not_live_to_acknowledge_anything() {
        let config = SlotConfig::new(1, [live(1, 1, 7), live(2, 1, 8)]);
        // Both restart; 1 is back first, and goes on alone.
        let one = config.reconfigured(find(&[live(1, 2, 7)]), &TARGETS[..2], copies(2), AT).expect("changed");
        assert_eq!((states(&one), taken_out(&one)), (vec![(1, 2, InSync)], vec![(2, AT)]));
        // It loses its power before it has heard that.
        const UNKNOWN: &[Reached] = &[Reached { before: 3, index: AT - 1 }];
        let back = [Live { reached: UNKNOWN, ..live(1, 3, 70) }, live(2, 2, 8)];
        let resumed = one.reconfigured(find(&back), &TARGETS[..2], copies(2), AT + 1).expect("changed");
        assert_eq!(states(&resumed), [(2, 2, InSync)]);
    }

    /// 3 was taken out at AT, then 2, whose log had come to `knew`, then all the others lost their power.
    fn one_after_the_other(knew: u64) -> SlotConfig {
        let config = SlotConfig::new(1, [live(1, 1, 7), live(2, 1, 8), live(3, 1, 9)]);
        let two = config.reconfigured(find(&[live(1, 1, 7), live(2, 1, 8)]), &TARGETS, copies(3), AT);
        let one = two.expect("changed").reconfigured(find(&[live(1, 1, 7)]), &TARGETS, copies(3), AT + 1);
        let one = one.expect("changed");
        assert_eq!((taken_out(&one), eligible(&one)), (vec![(3, AT)], vec![(2, 8)]));
        let first = [live(1, 1, 7), live(3, 2, 9)].map(|l| l.session).into_iter().collect();
        assert!(!one.known_by(&first, AT + 1), "2 is not heard, and may not have known");
        let reached: &[Reached] = &[Reached { before: 2, index: knew }, Reached { before: 3, index: AT + 9 }];
        let of_first: &[Reached] = &[Reached { before: 2, index: AT + 5 }];
        let back =
            [Live { reached: of_first, ..live(1, 2, 70) }, Live { reached, ..live(2, 3, 80) }, live(3, 2, 9)];
        one.reconfigured(find(&back), &TARGETS, copies(3), AT + 2).expect("changed")
    }

    #[test]
    fn who_fell_out_without_knowing_proves_that_nothing_was_acknowledged() {
        assert_eq!(states(&one_after_the_other(AT - 1)), [(3, 2, InSync)]);
        assert_eq!(states(&one_after_the_other(AT)), [(1, 2, InSync), (2, 3, InSync)]);
    }

    #[test]
    fn a_disk_that_failed_is_no_way_back() {
        let mut config = SlotConfig::new(1, [live(1, 1, 7), live(2, 1, 8)]);
        config.members[1].boot = 0;
        let one = config.reconfigured(find(&[live(1, 1, 7)]), &TARGETS[..2], copies(2), AT).expect("changed");
        assert_eq!(one.eligible, []);
    }

    #[test]
    fn who_is_not_needed_any_more_is_on_record_until_those_left_know() {
        let all = [live(1, 1, 7), live(2, 1, 8), live(3, 1, 9)];
        let config = SlotConfig::new(1, all);
        let two = config.reconfigured(find(&all), &TARGETS[..2], copies(2), AT).expect("changed");
        assert_eq!(states(&two), [(1, 1, InSync), (2, 1, InSync)]);
        assert_eq!(taken_out(&two), [(3, AT)]);
        let all = BTreeSet::from([all[0].session, all[1].session]);
        assert!(two.known_by(&all, AT) && !two.known_by(&all, AT - 1));
        assert!(!two.known_by(&BTreeSet::from([live(1, 1, 7).session, live(2, 2, 8).session]), AT));
        let mut back = two;
        back.members[1] = Member { boot: 0, state: MemberState::Returned, ..back.members[1].clone() };
        assert!(!back.known_by(&all, AT), "its session knows, but not the one that lost its memory");
    }

    #[test]
    fn who_fell_out_when_writes_stopped_goes_before_a_set_without_memory() {
        let config = SlotConfig::new(1, [live(1, 1, 7), live(2, 1, 8), live(3, 1, 9)]);
        let one = config.reconfigured(find(&[live(1, 1, 7)]), &TARGETS, copies(3), AT).expect("changed");
        assert_eq!(eligible(&one), [(2, 8), (3, 9)]);
        // 2 comes back without its memory, 3 with it, and 1 loses its own.
        let back = [live(1, 1, 7), live(2, 2, 80), live(3, 2, 9)];
        let back = one.reconfigured(find(&back), &TARGETS, copies(3), AT).expect("changed");
        assert_eq!(states(&back), [(1, 1, InSync), (2, 2, CatchingUp), (3, 2, CatchingUp)]);
        assert_eq!(eligible(&back), [(2, 0), (3, 9)]);
        let others = [live(2, 2, 80), live(3, 2, 9)];
        let lost = back.reconfigured(find(&others), &TARGETS, copies(3), AT).expect("changed");
        // 1 may have shown more than was acknowledged: it is waited for.
        assert_eq!((states(&lost), eligible(&lost)), (vec![(1, 1, InSync)], vec![(2, 0), (3, 9)]));
        let all = [live(1, 2, 70), live(2, 2, 80), live(3, 2, 9)];
        let resumed = lost.reconfigured(find(&all), &TARGETS, copies(3), AT).expect("changed");
        assert_eq!(states(&resumed), [(3, 2, InSync)]);
        assert_eq!(eligible(&resumed), [(2, 0), (1, 0)]);
        // Once enough are in sync nobody else counts.
        let mut more = resumed.reconfigured(find(&all), &TARGETS, copies(3), AT).expect("changed");
        more.members.iter_mut().find(|m| m.session.node == NodeId(1)).expect("a target").state = InSync;
        let more = more.reconfigured(find(&all), &TARGETS, copies(3), AT).expect("changed");
        assert_eq!(eligible(&more), []);
    }

    #[test]
    fn a_set_without_memory_waits_for_the_eligible_and_then_counts_with_them() {
        let config = SlotConfig::new(1, [live(1, 1, 7), live(2, 1, 8)]);
        let one = config.reconfigured(find(&[live(1, 1, 7)]), &TARGETS[..2], copies(3), AT).expect("changed");
        let dark = one.reconfigured(find(&[live(1, 2, 70)]), &TARGETS[..2], copies(3), AT).expect("changed");
        assert_eq!((states(&dark), eligible(&dark)), (vec![(1, 2, Returned)], vec![(2, 8)]));
        let both = [live(1, 2, 70), live(2, 2, 80)];
        let both = dark.reconfigured(find(&both), &TARGETS[..2], copies(3), AT).expect("changed");
        assert_eq!((states(&both), eligible(&both)), (vec![(1, 2, InSync), (2, 2, InSync)], vec![]));
    }

    #[test]
    fn old_holders_stay_while_fewer_are_in_place_than_a_write_needs() {
        let config = SlotConfig::new(1, [live(1, 1, 7), live(4, 1, 7)]);
        let all = [live(1, 1, 7), live(4, 1, 7)];
        assert_eq!(config.reconfigured(find(&all), &TARGETS[..1], copies(3), AT), None);
    }
}
