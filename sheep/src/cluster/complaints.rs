//! Ways that are cut between two members which both reach the leader: who of them is taken out.
//!
//! Fed by the leader's runtime with what members say when they renew, and asked by it whom to take out. Pure:
//! time comes in as boot time.
//!
//! Two nodes that do not reach each other hold up every write that needs both, for as long as both are members.
//! Neither is dead, so no silence shows it: they have to say so. One of them is taken out as if it were
//! dead, and is let in again when it reaches everybody.
//!
//! Invariants: nobody is taken out for what one member says of another that the leader does not hear either (that
//! is silence, see [`super::detector`]); the leader never takes out itself; whoever was taken out again and
//! again waits longer each time.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use wire::id::{NodeId, Session};

/// A way has to be cut for this long by the same member's word. Long enough for a switch that relearns,
/// short enough for I/O to flow again within five seconds.
pub const CUT_FOR: Duration = Duration::from_millis(1_500);

/// The second time in a row a node stays out for this long, and twice as long each time after that.
pub const STAY_OUT: Duration = Duration::from_secs(5);

/// The longest that a node stays out although it reaches everybody.
pub const STAY_OUT_MAX: Duration = Duration::from_secs(300);

/// What happened longer ago than this does not count as in a row.
const FORGET_AFTER: Duration = Duration::from_secs(900);

/// A member whom the leader hears.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heard {
    /// Its session.
    pub session: Session,
    /// Whether it stores copies.
    pub stores: bool,
    /// How many VDIs it owns.
    pub owns: usize,
}

/// What the leader was told in its term.
#[derive(Debug, Clone, Default)]
pub struct Complaints {
    /// Who does not reach whom, and since when.
    cut: BTreeMap<(Session, NodeId), Duration>,
    /// How often a node was taken out in a row, and when the last time.
    taken_out: BTreeMap<NodeId, (u32, Duration)>,
}

impl Complaints {
    /// `by` says that it reaches everybody but `unreached`.
    pub fn told(&mut self, by: Session, unreached: &BTreeSet<NodeId>, now: Duration) {
        self.cut.retain(|(session, node), _| *session != by || unreached.contains(node));
        for node in unreached {
            self.cut.entry((by, *node)).or_insert(now);
        }
    }

    /// Forgets what others than these said.
    pub fn retain(&mut self, is_member: impl Fn(Session) -> bool) {
        self.cut.retain(|(session, _), _| is_member(*session));
    }

    /// Whether nobody complains.
    pub fn is_empty(&self) -> bool {
        self.cut.is_empty()
    }

    /// Whom it would help to take out, the best first. `me` is the leader's node.
    pub fn whom(&self, heard: &[Heard], me: NodeId, now: Duration) -> Vec<Session> {
        let mut ways: BTreeMap<NodeId, BTreeSet<NodeId>> = BTreeMap::new();
        let is_heard = |node: NodeId| heard.iter().any(|h| h.session.node == node);
        for ((by, of), since) in &self.cut {
            let lasts = now.saturating_sub(*since) >= CUT_FOR;
            if lasts && *of != by.node && is_heard(*of) && heard.iter().any(|h| h.session == *by) {
                ways.entry(by.node).or_default().insert(*of);
                ways.entry(*of).or_default().insert(by.node);
            }
        }
        let cut_of = |h: &Heard| ways.get(&h.session.node).map_or(0, BTreeSet::len);
        let mut candidates: Vec<&Heard> =
            heard.iter().filter(|h| h.session.node != me && cut_of(h) > 0).collect();
        // Whose absence mends most; then who takes no copies away; then who has fewer clients, most likely.
        candidates.sort_by_key(|h| (Reverse(cut_of(h)), h.stores, h.owns, Reverse(h.session)));
        candidates.into_iter().map(|h| h.session).collect()
    }

    /// A node is being taken out.
    pub fn taken_out(&mut self, node: NodeId, now: Duration) {
        let (times, at) = self.taken_out.entry(node).or_insert((0, now));
        *times = if now.saturating_sub(*at) > FORGET_AFTER { 1 } else { times.saturating_add(1) };
        *at = now;
        // What is said of it from here on counts anew.
        self.cut.retain(|(by, of), _| by.node != node && *of != node);
    }

    /// For how long a node has to stay out yet, although it says that it reaches everybody.
    pub fn stays_out(&self, node: NodeId, now: Duration) -> Duration {
        let Some((times, at)) = self.taken_out.get(&node) else { return Duration::ZERO };
        let wait = match times.checked_sub(2) {
            None => Duration::ZERO,
            Some(more) => STAY_OUT.saturating_mul(1 << more.min(10)).min(STAY_OUT_MAX),
        };
        (*at + wait).saturating_sub(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    fn session(node: u64) -> Session {
        Session { node: NodeId(node), start: 1 }
    }

    /// 1 leads; 5 stores nothing.
    fn heard(owns: &[(u64, usize)]) -> Vec<Heard> {
        let of =
            |(node, owns): &(u64, usize)| Heard { session: session(*node), stores: *node != 5, owns: *owns };
        owns.iter().map(of).collect()
    }

    fn told(complaints: &mut Complaints, by: u64, of: &[u64], now: u64) {
        complaints.told(session(by), &of.iter().copied().map(NodeId).collect(), MS(now));
    }

    fn whom(complaints: &Complaints, heard: &[Heard], now: u64) -> Vec<u64> {
        complaints.whom(heard, NodeId(1), MS(now)).into_iter().map(|s| s.node.0).collect()
    }

    #[test]
    fn a_way_that_stays_cut_costs_one_of_two_its_place() {
        let all = heard(&[(1, 0), (2, 3), (3, 1)]);
        let mut complaints = Complaints::default();
        told(&mut complaints, 2, &[3], 100);
        assert_eq!(whom(&complaints, &all, 1_599), [0; 0], "not for a moment");
        told(&mut complaints, 2, &[3], 1_600);
        assert_eq!(whom(&complaints, &all, 1_600), [3, 2], "who owns less goes");
        told(&mut complaints, 2, &[], 1_700);
        assert_eq!(whom(&complaints, &all, 9_000), [0; 0]);
        told(&mut complaints, 2, &[3], 9_000);
        assert_eq!(whom(&complaints, &all, 10_000), [0; 0], "counted anew");
    }

    #[test]
    fn whoever_is_cut_off_from_more_goes_first_and_the_leader_never() {
        let all = heard(&[(1, 0), (2, 0), (3, 0), (4, 9)]);
        let mut complaints = Complaints::default();
        told(&mut complaints, 2, &[4], 0);
        told(&mut complaints, 3, &[4], 0);
        assert_eq!(whom(&complaints, &all, 2_000)[0], 4);
        let mut complaints = Complaints::default();
        told(&mut complaints, 2, &[1], 0);
        told(&mut complaints, 3, &[1], 0);
        assert_eq!(whom(&complaints, &all, 2_000), [3, 2]);
    }

    #[test]
    fn who_stores_nothing_goes_before_who_does() {
        let all = heard(&[(1, 0), (2, 0), (5, 9)]);
        let mut complaints = Complaints::default();
        told(&mut complaints, 2, &[5], 0);
        assert_eq!(whom(&complaints, &all, 2_000), [5, 2]);
    }

    #[test]
    fn who_is_not_heard_is_the_detectors_and_who_has_gone_says_nothing() {
        let mut complaints = Complaints::default();
        told(&mut complaints, 2, &[3], 0);
        assert_eq!(whom(&complaints, &heard(&[(1, 0), (2, 0)]), 2_000), [0; 0]);
        assert_eq!(whom(&complaints, &heard(&[(1, 0), (3, 0)]), 2_000), [0; 0]);
        complaints.retain(|session| session.node.0 != 2);
        assert_eq!(whom(&complaints, &heard(&[(1, 0), (2, 0), (3, 0)]), 2_000), [0; 0]);
    }

    #[test]
    fn whoever_comes_and_goes_stays_out_longer_each_time() {
        let mut complaints = Complaints::default();
        let node = NodeId(3);
        let mut waits = Vec::new();
        for at in [10_000, 20_000, 40_000, 80_000] {
            complaints.taken_out(node, MS(at));
            waits.push(complaints.stays_out(node, MS(at + 1_000)).as_millis());
        }
        assert_eq!(waits, [0, 4_000, 9_000, 19_000]);
        for at in 0..20 {
            complaints.taken_out(node, MS(100_000 + at));
        }
        assert_eq!(complaints.stays_out(node, MS(100_019)), STAY_OUT_MAX);
        complaints.taken_out(node, MS(2_000_000));
        assert_eq!(complaints.stays_out(node, MS(2_000_000)), MS(0), "long ago");
    }
}
