//! Leases: how long a node may answer reads alone, and when that is surely over.
//!
//! Every node session holds one lease, renewed with the cluster log's leader. All times are boot time of
//! whoever calls; nobody compares clocks, only durations, which may differ by [`margin`].
//!
//! The holder counts from when it *sent* a renewal, the grantor from when it *received* it, so the holder's
//! end comes first:
//!
//! ```text
//! holder    sent ────────────── LEASE − margin ──────────────┤ reads alone no more
//! grantor         received ──────────────── LEASE + margin ───────────────┤ expired
//! ```
//!
//! # A change of leader
//!
//! A new leader does not know what the old one granted. Two rules bound it.
//!
//! 1. A leader grants only while a majority has confirmed a message that it sent less than
//!    [`QUORUM_FRESH`] ago. Every voter in that majority refuses other candidates for [`LEADER_LEASE`] after
//!    it got that message, and any two majorities share a voter. So the old leader's last grant at *g* and
//!    the new one's election at *e* satisfy, by whoever's clock,
//!
//!    `e > g + LEADER_LEASE − QUORUM_FRESH − margin(LEADER_LEASE)`
//!
//!    and since `QUORUM_FRESH + margin(LEADER_LEASE) < LEADER_LEASE` (asserted below), *g < e*: an old
//!    leader has stopped granting when the new one begins.
//! 2. Therefore a new leader takes no session for expired within `LEASE + margin` after its election, less
//!    the head start in rule 1 where it knows that it was elected over voters' silence and not by a
//!    handover, whose leader grants until it asks for it.
//!
//! What this rests on: a process that is stopped may run on at any instruction, so a read that was begun
//! under a valid lease and is finished after a stop longer than the margin can return what has been
//! overwritten since. Readers check the lease after reading, too. A virtual machine that is frozen together
//! with its boot clock is outside the model.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use wire::id::Session;

use super::log::LEADER_LEASE;

/// How long a grant lasts. Short, because a dead node's lease delays the ring by this much.
pub const LEASE: Duration = Duration::from_millis(500);

/// How recently a majority must have confirmed a leader that grants: two heartbeats and some.
pub const QUORUM_FRESH: Duration = Duration::from_millis(250);

/// By how much two clocks may differ over `span`: 1 % and 5 ms for their grain.
pub const fn margin(span: Duration) -> Duration {
    Duration::from_micros(span.as_micros() as u64 / 100 + 5_000)
}

const fn micros(span: Duration) -> u128 {
    span.as_micros()
}

/// How long the holder counts on a renewal, from sending it.
pub const HELD: Duration = Duration::from_micros((micros(LEASE) - micros(margin(LEASE))) as u64);

/// How long the grantor waits, from its last grant.
pub const EXPIRY: Duration = Duration::from_micros((micros(LEASE) + micros(margin(LEASE))) as u64);

const _: () = assert!(
    micros(QUORUM_FRESH) + micros(margin(LEADER_LEASE)) < micros(LEADER_LEASE),
    "an old leader must stop granting before a new one can be elected"
);

/// The holder's side.
#[derive(Debug, Clone, Copy, Default)]
pub struct HeldLease {
    until: Option<Duration>,
}

impl HeldLease {
    /// A renewal sent at `sent` was granted. Answers may come in any order.
    pub fn granted(&mut self, sent: Duration) {
        self.until = self.until.max(Some(sent + HELD));
    }

    /// Gives the lease up, as before a planned stop. Renewals still under way must be ignored after it.
    pub fn give_up(&mut self) {
        self.until = None;
    }

    /// Whether reads may be answered alone at `now`.
    pub fn is_valid(&self, now: Duration) -> bool {
        self.until.is_some_and(|until| now < until)
    }

    /// When the lease ends unless renewed; `None` without one.
    pub fn until(&self) -> Option<Duration> {
        self.until
    }
}

/// A renewal that was not granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RenewError {
    /// This node does not lead, or no majority has confirmed lately that it does.
    #[error("no majority behind this leader")]
    NoQuorum,
    /// The session was released, is proved dead, is about to be evicted, or has been.
    #[error("session {0} has ended")]
    Ended(Session),
}

/// The grantor's side: the leader's table, made anew for every term it leads.
#[derive(Debug, Clone)]
pub struct Grants {
    /// From here on nothing granted by an earlier leader is left.
    knows_all_from: Duration,
    last: BTreeMap<Session, Duration>,
    ended: BTreeSet<Session>,
    withheld: BTreeSet<Session>,
}

impl Grants {
    /// A table for a leader elected at or before `now`. `silent_before` is how long before its election no
    /// other leader can have been confirmed by a majority, as `LogMetrics::silent_before` tells; zero when
    /// that is not known.
    pub fn new(now: Duration, silent_before: Duration) -> Self {
        let head_start = silent_before.saturating_sub(QUORUM_FRESH + margin(silent_before));
        Self {
            knows_all_from: now + EXPIRY.saturating_sub(head_start),
            last: BTreeMap::new(),
            ended: BTreeSet::new(),
            withheld: BTreeSet::new(),
        }
    }

    /// Grants `session` a lease, if this leader may at `now`. `quorum_acked_at` is
    /// `LogMetrics::quorum_acked_at`, read after the renewal was received.
    pub fn renew(
        &mut self,
        session: Session,
        quorum_acked_at: Option<Duration>,
        now: Duration,
    ) -> Result<(), RenewError> {
        if self.ended.contains(&session) || self.withheld.contains(&session) {
            return Err(RenewError::Ended(session));
        }
        if quorum_acked_at.is_none_or(|at| now.saturating_sub(at) >= QUORUM_FRESH) {
            return Err(RenewError::NoQuorum);
        }
        let last = self.last.entry(session).or_insert(now);
        *last = now.max(*last);
        Ok(())
    }

    /// `session` reads alone no more: it said so itself, or its process is proved dead. It gets no lease
    /// any more.
    pub fn end(&mut self, session: Session) {
        self.last.remove(&session);
        self.ended.insert(session);
    }

    /// `session` gets no lease any more; what it was granted lasts as long as it does.
    pub fn withhold(&mut self, session: Session) {
        self.withheld.insert(session);
    }

    /// Whether `session` surely holds no lease at `now`, whoever granted it.
    pub fn expired(&self, session: Session, now: Duration) -> bool {
        if self.ended.contains(&session) {
            return true;
        }
        let own = self.last.get(&session).is_none_or(|last| now.saturating_sub(*last) > EXPIRY);
        own && now > self.knows_all_from
    }

    /// When this leader last granted `session` a lease.
    pub fn last_grant(&self, session: Session) -> Option<Duration> {
        self.last.get(&session).copied()
    }

    /// Forgets all sessions but these, so that the table does not grow with every restart in the ring.
    pub fn retain(&mut self, keep: impl Fn(Session) -> bool) {
        self.last.retain(|session, _| keep(*session));
        self.ended.retain(|session| keep(*session));
        self.withheld.retain(|session| keep(*session));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wire::id::NodeId;

    const MS: fn(u64) -> Duration = Duration::from_millis;
    const ONE: Session = Session { node: NodeId(1), start: 1 };

    #[test]
    fn a_holder_counts_from_sending_and_stops_before_the_grantor() {
        assert_eq!((HELD, EXPIRY), (MS(490), MS(510)));
        let mut held = HeldLease::default();
        assert!(!held.is_valid(MS(0)));
        held.granted(MS(100));
        assert!(held.is_valid(MS(589)));
        assert!(!held.is_valid(MS(590)));
        held.granted(MS(50));
        assert!(held.is_valid(MS(589)), "a late answer to an older renewal takes nothing back");
        held.give_up();
        assert!(!held.is_valid(MS(100)));
    }

    #[test]
    fn a_session_expires_after_lease_and_margin() {
        let mut grants = Grants::new(MS(0), MS(0));
        grants.renew(ONE, Some(MS(990)), MS(1_000)).expect("granted");
        assert_eq!(grants.last_grant(ONE), Some(MS(1_000)));
        assert!(!grants.expired(ONE, MS(1_510)));
        assert!(grants.expired(ONE, MS(1_511)));
    }

    #[test]
    fn a_leader_without_a_fresh_majority_grants_nothing() {
        let mut grants = Grants::new(MS(0), MS(0));
        assert_eq!(grants.renew(ONE, None, MS(1_000)), Err(RenewError::NoQuorum));
        assert_eq!(grants.renew(ONE, Some(MS(750)), MS(1_000)), Err(RenewError::NoQuorum));
        assert_eq!(grants.renew(ONE, Some(MS(751)), MS(1_000)), Ok(()));
    }

    #[test]
    fn a_new_leader_waits_out_what_the_old_one_may_have_granted() {
        let cautious = Grants::new(MS(1_000), MS(0));
        assert!(!cautious.expired(ONE, MS(1_510)));
        assert!(cautious.expired(ONE, MS(1_511)));
        // Elected after 600 ms of silence: 250 ms of it may have seen grants, 11 ms are margin.
        let informed = Grants::new(MS(1_000), LEADER_LEASE);
        assert!(!informed.expired(ONE, MS(1_171)));
        assert!(informed.expired(ONE, MS(1_172)));
    }

    #[test]
    fn an_ended_session_is_expired_at_once_and_for_good() {
        let mut grants = Grants::new(MS(0), MS(0));
        grants.renew(ONE, Some(MS(100)), MS(100)).expect("granted");
        grants.end(ONE);
        assert!(grants.expired(ONE, MS(100)));
        assert_eq!(grants.renew(ONE, Some(MS(101)), MS(101)), Err(RenewError::Ended(ONE)));
        grants.retain(|session| session != ONE);
        assert_eq!(grants.last_grant(ONE), None);
    }

    #[test]
    fn a_lease_that_is_withheld_ends_by_itself() {
        let mut grants = Grants::new(MS(0), MS(0));
        grants.renew(ONE, Some(MS(1_000)), MS(1_000)).expect("granted");
        grants.withhold(ONE);
        assert_eq!(grants.renew(ONE, Some(MS(1_100)), MS(1_100)), Err(RenewError::Ended(ONE)));
        assert!(!grants.expired(ONE, MS(1_510)) && grants.expired(ONE, MS(1_511)));
    }
}
