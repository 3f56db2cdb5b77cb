//! Who is dead: the leader's judgement from renewals, reports and probes.
//!
//! Called by the leader's runtime, which feeds it what it sees, carries out the probes it asks for and
//! proposes the evictions. Pure: time comes in as boot time. It only advises; what evicts a session is the
//! log entry.
//!
//! ```text
//!            reset or refused, or no renewal for a lease
//!   trusted ───────────────────────────────────────────► suspected ──► probe every PROBE_EVERY
//!      ▲                                                     │
//!      ├── a renewal, or a probe that is accepted ◄──────────┤
//!      │                                                     ├── refused and lease expired ──► evict
//!      │                                                     └── silent for dead_after ──────► evict
//!      └── others do not reach it, and its lease expired ───────────────────────────────────► evict
//!   a newer start of the same node ───────────────────────────────────────────────────► evict at once
//! ```
//!
//! Invariants: no session is evicted while it can hold a lease, unless its process is proved dead; the
//! leader never evicts itself; time this process slept through does not count as others' silence; nor is
//! anybody taken for dead by silence alone until a majority has confirmed the leader for a lease without a
//! break: one that hears nobody is cut off itself, and those it could not hear come first once it hears again.

use std::collections::BTreeMap;
use std::time::Duration;

use wire::id::{NodeId, Session};

use super::lease::{Grants, LEASE, QUORUM_FRESH};
pub use crate::peer::Probe;

/// How long a silent node is waited for by default: long enough for a machine that swaps or a switch that
/// relearns, short enough for I/O to flow again within five seconds of a power loss.
pub const DEAD_AFTER: Duration = Duration::from_millis(2_500);

/// Probes of one node are this far apart.
pub const PROBE_EVERY: Duration = Duration::from_millis(50);

/// An eviction is advised again if it has not taken effect after this: the proposal may have failed.
pub const EVICT_AGAIN: Duration = Duration::from_millis(500);

/// A longer gap between two judgements means that this process slept.
pub const ASLEEP: Duration = Duration::from_millis(250);

/// What the leader should do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Try to connect, and report how it went.
    Probe(NodeId),
    /// Propose to take this session out of the ring.
    Evict(Session),
}

/// What is known of one session that is in the ring.
#[derive(Debug, Clone, Copy)]
struct Member {
    /// Last renewal, or when the session began to be watched.
    heard: Duration,
    suspected: Option<Duration>,
    refused: Option<Duration>,
    probed: Option<Duration>,
    proved_dead: bool,
    unwanted: bool,
    advised: Option<Duration>,
}

/// The leader's view of the ring; made anew for every term it leads.
#[derive(Debug, Clone)]
pub struct Detector {
    me: NodeId,
    dead_after: Duration,
    members: BTreeMap<Session, Member>,
    /// Silence before this does not count.
    awake_since: Duration,
    last_judged: Duration,
    /// Since when a majority has confirmed this leader without a break.
    confirmed_since: Option<Duration>,
}

impl Detector {
    /// A view that begins at `now`, of a ring without members yet.
    pub fn new(me: NodeId, dead_after: Duration, now: Duration) -> Self {
        Self {
            me,
            dead_after,
            members: BTreeMap::new(),
            awake_since: now,
            last_judged: now,
            confirmed_since: None,
        }
    }

    /// The sessions that are in the ring now. What is known of those that stay is kept.
    pub fn set_members(&mut self, up: impl IntoIterator<Item = Session>, now: Duration) {
        let mut members = BTreeMap::new();
        for session in up {
            let fresh = Member {
                heard: now,
                suspected: None,
                refused: None,
                probed: None,
                proved_dead: false,
                unwanted: false,
                advised: None,
            };
            members.insert(session, self.members.remove(&session).unwrap_or(fresh));
        }
        self.members = members;
    }

    /// `session` renewed its lease, whether or not that was granted.
    pub fn renewed(&mut self, session: Session, now: Duration) {
        if let Some(member) = self.members.get_mut(&session) {
            member.heard = now.max(member.heard);
            member.suspected = None;
            member.refused = None;
        }
    }

    /// `session` is to be taken out although it is alive. Its leases must end: see [`Grants::withhold`].
    pub fn unwanted(&mut self, session: Session) {
        if let Some(member) = self.members.get_mut(&session) {
            member.unwanted = true;
        }
    }

    /// Whether `session` has renewed its lease lately, or is this node's.
    pub fn hears(&self, session: Session, now: Duration) -> bool {
        session.node == self.me
            || self.members.get(&session).is_some_and(|m| now.saturating_sub(m.heard) <= LEASE)
    }

    /// A connection to `node` was reset or refused, here or at a peer.
    pub fn suspect(&mut self, node: NodeId, now: Duration) {
        for member in self.of_node(node) {
            member.suspected.get_or_insert(now);
        }
    }

    /// A probe of `node` that was begun at `begun` ended like this.
    pub fn probed(&mut self, node: NodeId, probe: Probe, begun: Duration) {
        for member in self.of_node(node) {
            match probe {
                // One that was under way when a renewal came proves nothing about later.
                Probe::Refused if begun >= member.heard => member.refused = Some(begun),
                Probe::Accepted if member.suspected.is_none_or(|suspected| begun >= suspected) => {
                    member.suspected = None;
                    member.refused = None;
                }
                Probe::Refused | Probe::Accepted | Probe::Silent => {}
            }
        }
    }

    /// A session of a node was seen on its host. The directory is locked by the process that serves it, so
    /// every earlier start of the node is proved dead, lease or not.
    pub fn seen(&mut self, newer: Session) {
        for (session, member) in &mut self.members {
            if session.node == newer.node && session.start < newer.start {
                member.proved_dead = true;
            }
        }
    }

    /// What to do now. To be called every 20 ms or so, and after every report. `quorum_acked_at` is
    /// `LogMetrics::quorum_acked_at`.
    pub fn judge(
        &mut self,
        grants: &Grants,
        quorum_acked_at: Option<Duration>,
        now: Duration,
    ) -> Vec<Verdict> {
        if now.saturating_sub(self.last_judged) > ASLEEP {
            self.awake_since = now;
        }
        self.last_judged = now;
        self.confirmed_since = quorum_acked_at
            .filter(|at| now.saturating_sub(*at) < QUORUM_FRESH)
            .map(|_| self.confirmed_since.unwrap_or(now));
        let would_hear = self.confirmed_since.is_some_and(|since| now.saturating_sub(since) >= LEASE);
        let (me, awake_since, dead_after) = (self.me, self.awake_since, self.dead_after);
        let mut verdicts = Vec::new();
        for (session, member) in &mut self.members {
            if session.node == me {
                continue;
            }
            let silent = now.saturating_sub(member.heard.max(awake_since));
            let gone = member.refused.is_some() || would_hear && silent >= dead_after || member.unwanted;
            if member.proved_dead || gone && grants.expired(*session, now) {
                if member.advised.is_none_or(|at| now.saturating_sub(at) >= EVICT_AGAIN) {
                    member.advised = Some(now);
                    verdicts.push(Verdict::Evict(*session));
                }
                continue;
            }
            let suspected = member.suspected.is_some() || silent > LEASE;
            let due = member.probed.is_none_or(|at| now.saturating_sub(at) >= PROBE_EVERY);
            if suspected && due {
                member.probed = Some(now);
                verdicts.push(Verdict::Probe(session.node));
            }
        }
        verdicts
    }

    fn of_node(&mut self, node: NodeId) -> impl Iterator<Item = &mut Member> {
        self.members.iter_mut().filter(move |(session, _)| session.node == node).map(|(_, member)| member)
    }
}

#[cfg(test)]
mod tests;
