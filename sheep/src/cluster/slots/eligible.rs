//! Who besides the in-sync members may hold every acknowledged write, and who goes on when a set is dead. Pure.
//!
//! Called by [`super`]. The rules are there; `docs/decisions/` 0013 and 0014 say why.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use wire::id::{NodeId, Session};
use wire::policy::Copies;

use super::{Live, Member, MemberState, SlotConfig};
use crate::mutant::{Mutant, planted};

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

impl SlotConfig {
    /// Whether somebody was taken out at or before `index`, and all of the set left are among `sessions`. Who lost
    /// its memory since, or fell out when too few were left, may have died before it knew, whatever its present session
    /// knows.
    pub(crate) fn known_by(&self, sessions: &BTreeSet<Session>, index: u64) -> bool {
        let mut set = self.members.iter().filter(|m| m.state != MemberState::CatchingUp);
        self.eligible.iter().any(|e| (1..=index).contains(&e.since))
            && self.eligible.iter().all(|e| e.since > 0)
            && set.all(|m| m.state == MemberState::InSync && m.boot != 0 && sessions.contains(&m.session))
    }

    /// The last in-sync set is dead: see whether who is back proves continuity.
    pub(super) fn resume<'a>(&self, next: &mut Self, live: &impl Fn(NodeId) -> Option<Live<'a>>) {
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
    pub(super) fn keep_eligible<'a>(
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
