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
//! `eligible` has who is kept on record beside the set, and who goes on once all of it is dead.
//! When all of the set are back and none of them has kept its memory, an eligible one that has goes first. One that
//! is proved to lack nothing goes as soon as it is.

mod eligible;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};
use wire::id::{NodeId, Session};
use wire::policy::Copies;

pub use self::eligible::Eligible;
use super::entry::Reached;

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
