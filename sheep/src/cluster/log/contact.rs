//! What this node has heard of its leader and promised to candidates, shared between the request side and
//! the driver.
//!
//! It also closes the gaps that openraft leaves in the rule leases rest on: *for one leader lease before a
//! leader is elected, no majority confirmed another one* (see `cluster::lease`). Voters keep it for others'
//! elections by themselves, but openraft's leader grants votes at any time, and a candidate votes for itself
//! at any time. So a leader with a majority behind it refuses votes, and grants no lease while one is being
//! decided; and a voter stands only while no append is being processed.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};
use tokio::time::Instant;
use wire::id::NodeId;

/// How long a yes in a canvass binds: enough for the vote that follows.
const PROMISE: Duration = Duration::from_millis(250);

/// Signs of life, promises, and whether this node is handing its leadership over.
pub(super) struct Contact {
    heard: Mutex<Instant>,
    leaving: AtomicBool,
    /// Votes being decided here.
    voting: AtomicUsize,
    /// Newest term in which this node voted for another.
    voted_in: AtomicU64,
    /// Newest term for which this node stood because of silence.
    stood_in: AtomicU64,
    /// Whom the last canvass here was promised to, and until when.
    promised: Mutex<Option<(NodeId, Instant)>>,
    /// After a handover, no votes for others until this.
    refuse_until: Mutex<Option<Instant>>,
    /// Appends hold it shared, standing for election holds it alone.
    gate: RwLock<()>,
}

impl Contact {
    /// Silence counts from the start: openraft refuses votes for one lease after it, too.
    pub(super) fn new() -> Self {
        Self {
            heard: Mutex::new(Instant::now()),
            leaving: AtomicBool::new(false),
            voting: AtomicUsize::new(0),
            voted_in: AtomicU64::new(0),
            stood_in: AtomicU64::new(0),
            promised: Mutex::new(None),
            refuse_until: Mutex::new(None),
            gate: RwLock::new(()),
        }
    }

    /// The leader gave a sign of life, or a candidate was given this node's vote. Called *after* openraft
    /// has processed it, so the silence counted here never ends after openraft's lease.
    pub(super) fn heard(&self) {
        *self.heard.lock() = Instant::now();
    }

    /// How long nothing has been heard.
    pub(super) fn silence(&self) -> Duration {
        self.heard.lock().elapsed()
    }

    /// Held while an append is processed.
    pub(super) async fn appending(&self) -> RwLockReadGuard<'_, ()> {
        self.gate.read().await
    }

    /// Held while this node turns itself into a candidate.
    pub(super) async fn standing(&self) -> RwLockWriteGuard<'_, ()> {
        self.gate.write().await
    }

    pub(super) fn is_leaving(&self) -> bool {
        self.leaving.load(Ordering::SeqCst)
    }

    pub(super) fn set_leaving(&self, leaving: bool) {
        self.leaving.store(leaving, Ordering::SeqCst);
    }

    /// Begins to decide on a vote; leases must not be granted until the guard is dropped.
    pub(super) fn voting(&self) -> Voting<'_> {
        self.voting.fetch_add(1, Ordering::SeqCst);
        Voting(self)
    }

    /// Whether a leader of `term` may count on its majority: not while it leaves, while it decides on a
    /// vote, or once it has voted for a successor that openraft has not reported yet.
    pub(super) fn may_lead(&self, term: u64) -> bool {
        !self.is_leaving()
            && self.voting.load(Ordering::SeqCst) == 0
            && self.voted_in.load(Ordering::SeqCst) <= term
    }

    /// This node voted for another in `term`.
    pub(super) fn voted(&self, term: u64, lease: Duration) {
        self.voted_in.fetch_max(term, Ordering::SeqCst);
        if self.is_leaving() {
            *self.refuse_until.lock() = Some(Instant::now() + lease);
        }
        self.heard();
    }

    /// Whether votes are refused because a successor was given one without waiting: a third node must not
    /// profit from that, as its election would look like one over silence.
    pub(super) fn refuses_votes(&self) -> bool {
        self.refuse_until.lock().is_some_and(|until| Instant::now() < until)
    }

    /// This node stood for `term` because of silence.
    pub(super) fn stood(&self, term: u64) {
        self.stood_in.fetch_max(term, Ordering::SeqCst);
    }

    pub(super) fn stood_in(&self, term: u64) -> bool {
        self.stood_in.load(Ordering::SeqCst) == term
    }

    /// Promises `node` not to support another for a moment, unless that is promised already.
    pub(super) fn promise(&self, node: NodeId) -> bool {
        let mut promised = self.promised.lock();
        let now = Instant::now();
        if promised.is_some_and(|(other, until)| other != node && now < until) {
            return false;
        }
        *promised = Some((node, now + PROMISE));
        true
    }

    /// Takes the promise to `node` back.
    pub(super) fn unpromise(&self, node: NodeId) {
        let mut promised = self.promised.lock();
        if promised.is_some_and(|(other, _)| other == node) {
            *promised = None;
        }
    }
}

/// A vote is being decided while this lives.
pub(super) struct Voting<'a>(&'a Contact);

impl Drop for Voting<'_> {
    fn drop(&mut self) {
        self.0.voting.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_candidate_at_a_time_is_promised_support() {
        let contact = Contact::new();
        assert!(contact.promise(NodeId(1)));
        assert!(contact.promise(NodeId(1)));
        assert!(!contact.promise(NodeId(2)));
        contact.unpromise(NodeId(2));
        assert!(!contact.promise(NodeId(2)));
        contact.unpromise(NodeId(1));
        assert!(contact.promise(NodeId(2)));
    }

    #[test]
    fn a_leader_counts_on_no_majority_once_a_vote_is_in_question() {
        let contact = Contact::new();
        assert!(contact.may_lead(5));
        let voting = contact.voting();
        assert!(!contact.may_lead(5));
        drop(voting);
        assert!(contact.may_lead(5));
        contact.voted(6, Duration::from_secs(1));
        assert!(!contact.may_lead(5));
        assert!(contact.may_lead(6));
        assert!(!contact.refuses_votes());
        contact.set_leaving(true);
        assert!(!contact.may_lead(6));
        contact.voted(7, Duration::from_secs(1));
        assert!(contact.refuses_votes());
    }
}
