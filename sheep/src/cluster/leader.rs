//! What the cluster log's leader does besides ordering entries: grants leases, takes out the dead, lets
//! nodes in, keeps the voters spread over zones.
//!
//! Every node runs this; it acts only while its node leads. What it knows of the others is made anew for
//! every term (rule 8).

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use wire::id::{NodeId, Session};

use super::clock::Clock;
use super::complaints::{Complaints, Heard};
use super::detector::{Detector, Verdict};
use super::entry::{ClusterEntry, ClusterReply, NodeSpec, Refusal};
use super::lease::Grants;
use super::log::{ClusterLog, ProposeError, Role};
use super::session::Me;
use super::state::{ClusterState, Node, NodeStatus};
use super::view::View;
use crate::machine::wall_ms;
use crate::peer::{Net, probe};

/// How often the leader looks at everybody.
const JUDGE_EVERY: Duration = Duration::from_millis(20);
/// How often it looks at voters and at nodes that have been away for long.
const TIDY_EVERY: Duration = Duration::from_millis(250);
/// How long to wait for the log.
const LOG_PATIENCE: Duration = Duration::from_secs(2);
/// How long a dead node's place is kept before others take it over. Restarts and reboots are shorter.
pub(crate) const OUT_AFTER: Duration = Duration::from_secs(30);
/// The most voters; more would make every entry slower and survive no likelier loss.
const VOTERS_MAX: usize = 5;

/// What the leader knows in its term.
struct Term {
    term: u64,
    grants: Grants,
    detector: Detector,
    /// How far sessions have applied the log, as they said themselves.
    heard: BTreeMap<Session, u64>,
    complaints: Complaints,
}

/// The leader's part of a node.
pub(crate) struct Leader {
    me: NodeId,
    /// The start counter with which this process began.
    process: u64,
    log: ClusterLog<ClusterState>,
    view: View,
    clock: Arc<dyn Clock>,
    net: Arc<dyn Net>,
    dead_after: Duration,
    term: Mutex<Option<Term>>,
    /// Up to where the directories of nodes have held the log, as this node saw while it led. That stays true.
    held: Mutex<BTreeMap<NodeId, u64>>,
    news: Notify,
}

/// Why a node was not let in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum JoinError {
    /// Somebody else leads, or nobody.
    #[error("not the leader")]
    NotLeader,
    /// Its last session may still be alive.
    #[error("the node's last session may still be alive")]
    StillAlive,
    /// It would hold up others again.
    #[error("{0}")]
    CutOff(String),
    /// The log refused.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The log did not answer.
    #[error("{0}")]
    Log(String),
}

impl Leader {
    pub(crate) fn new(
        me: &Me,
        log: ClusterLog<ClusterState>,
        view: View,
        clock: Arc<dyn Clock>,
        net: Arc<dyn Net>,
        dead_after: Duration,
    ) -> Arc<Self> {
        let (term, held, news) = (Mutex::new(None), Mutex::default(), Notify::new());
        let (me, process) = (me.session().node, me.process);
        Arc::new(Self { me, process, log, view, clock, net, dead_after, term, held, news })
    }

    /// Whether a node's directory has held more of the log than up to `index`, as far as this node knows: what
    /// holds no more now is a copy made earlier, and must not vote.
    pub(crate) fn is_outdated(&self, node: NodeId, index: u64) -> bool {
        self.note_held();
        self.held.lock().get(&node).is_some_and(|held| *held > index)
    }

    fn note_held(&self) {
        let seen = self.log.held();
        let mut held = self.held.lock();
        for (node, index) in seen {
            let known = held.entry(node).or_default();
            *known = index.max(*known);
        }
    }

    /// Runs `f` on this term's knowledge, if this node leads.
    fn with_term<T>(&self, f: impl FnOnce(&mut Term, Duration) -> T) -> Option<T> {
        let metrics = self.log.metrics();
        let mut term = self.term.lock();
        if metrics.role != Role::Leader {
            *term = None;
            return None;
        }
        let now = self.clock.now();
        if term.as_ref().is_none_or(|t| t.term != metrics.term) {
            let mut detector = Detector::new(self.me, self.dead_after, now);
            detector.set_members(live_sessions(&self.view.state()), now);
            *term = Some(Term {
                term: metrics.term,
                grants: Grants::new(now, metrics.silent_before),
                detector,
                heard: BTreeMap::new(),
                complaints: Complaints::default(),
            });
        }
        term.as_mut().map(|t| f(t, now))
    }

    /// A session asks to renew its lease, and says how far it has applied the log and whom it does not reach.
    /// Whether it got it.
    pub(crate) fn renew(&self, session: Session, applied: u64, unreached: &BTreeSet<NodeId>) -> bool {
        if !self.view.state().is_live(session) {
            return false;
        }
        // The majority's confirmation must be newer than the question.
        let confirmed = self.log.metrics().quorum_acked_at;
        self.with_term(|term, now| {
            term.detector.renewed(session, now);
            note_applied(&mut term.heard, session, applied);
            term.complaints.told(session, unreached, now);
            term.grants.renew(session, confirmed, now).is_ok()
        })
        .unwrap_or(false)
    }

    /// A connection to a node broke, here or at a peer.
    pub(crate) fn suspect(&self, node: NodeId) {
        let leads = self.with_term(|term, now| term.detector.suspect(node, now)).is_some();
        if leads {
            self.news.notify_one();
        }
    }

    /// Lets a node in that does not reach these others, or back in as a new session.
    pub(crate) async fn join(
        &self,
        node: NodeSpec,
        unreached: &BTreeSet<NodeId>,
        now_ms: u64,
    ) -> Result<u64, JoinError> {
        if node.session.node == self.me && node.process != self.process {
            return Err(JoinError::StillAlive);
        }
        let state = self.view.state();
        let term = self.reaches_all(node.session.node, unreached, &state)?;
        let last = state.node(node.session.node).and_then(Node::live_session);
        if let Some(last) = last.filter(|s| *s != node.session && s.node != self.me) {
            // It may be a copy of a directory that is in use: only a lapsed lease says that it is not.
            let over = self.with_term(|t, now| {
                t.detector.suspect(last.node, now);
                let expired = t.grants.expired(last, now);
                if expired {
                    t.grants.end(last);
                }
                (t.term == term).then_some(expired)
            });
            match over.flatten() {
                None => return Err(JoinError::NotLeader),
                Some(false) => return Err(JoinError::StillAlive),
                Some(true) => {}
            }
        }
        match self.order(term, ClusterEntry::Join { node, now_ms }).await {
            Ok((_, ClusterReply::Refused(Refusal::TermOver(_)))) | Err(ProposeError::NoLeader) => {
                Err(JoinError::NotLeader)
            }
            Ok((index, ClusterReply::Refused(refusal))) => {
                tracing::info!(index, %refusal, "a node was not let in");
                Err(refusal.into())
            }
            Ok((index, _)) => Ok(index),
            Err(error) => Err(JoinError::Log(error.to_string())),
        }
    }

    /// A node that does not reach members that are there, or was found so again and again, is not let in. Returns the
    /// term in which it is.
    fn reaches_all(
        &self,
        node: NodeId,
        unreached: &BTreeSet<NodeId>,
        state: &ClusterState,
    ) -> Result<u64, JoinError> {
        let answer = self.with_term(|term, now| {
            let is_there = |n: &NodeId| {
                let session = state.node(*n).and_then(Node::live_session);
                session.is_some_and(|session| term.detector.hears(session, now))
            };
            let other = unreached.iter().copied().find(is_there);
            (term.term, other, term.complaints.stays_out(node, now))
        });
        match answer {
            None => Err(JoinError::NotLeader),
            Some((_, Some(other), _)) => {
                Err(JoinError::CutOff(format!("it does not reach node {other}, which is in the ring")))
            }
            Some((_, None, wait)) if !wait.is_zero() => Err(JoinError::CutOff(format!(
                "others did not reach it several times; it has to wait for {} s yet",
                wait.as_secs() + 1
            ))),
            Some((term, None, _)) => Ok(term),
        }
    }

    /// Of two members that do not reach each other one is to go; its lease ends first.
    fn hear_complaints(&self) {
        let state = self.view.state();
        let whom = self.with_term(|term, now| {
            if term.complaints.is_empty() {
                return None;
            }
            let heard: Vec<Heard> = live_sessions(&state)
                .into_iter()
                .filter(|session| term.detector.hears(*session, now))
                .map(|session| {
                    let owns = state.vdis().filter(|v| v.owner.session == Some(session)).count();
                    Heard { session, stores: state.serves(session), owns }
                })
                .collect();
            let whom = term.complaints.whom(&heard, self.me, now);
            let harmless = whom.into_iter().find(|session| !stops_writes(&state, *session))?;
            term.grants.withhold(harmless);
            term.detector.unwanted(harmless);
            term.complaints.taken_out(harmless.node, now);
            Some(harmless)
        });
        if let Some(session) = whom.flatten() {
            tracing::warn!(%session, "others do not reach it; it is taken out until they do");
        }
    }

    /// Whether this node leads.
    pub(crate) fn leads(&self) -> bool {
        self.log.metrics().role == Role::Leader
    }

    /// Judges, evicts and tidies up until cancelled.
    pub(crate) async fn run(self: Arc<Self>, tasks: TaskTracker, cancel: CancellationToken) {
        let mut tidied = tokio::time::Instant::now();
        loop {
            tokio::select! {
                () = cancel.cancelled() => return,
                () = tokio::time::sleep(JUDGE_EVERY) => {}
                () = self.news.notified() => {}
            }
            let sessions = live_sessions(&self.view.state());
            let confirmed = self.log.metrics().quorum_acked_at;
            let verdicts = self.with_term(|term, now| {
                term.detector.set_members(sessions, now);
                (term.term, term.detector.judge(&term.grants, confirmed, now))
            });
            let Some((decided_in, verdicts)) = verdicts else { continue };
            let mut evict = Vec::new();
            for verdict in verdicts {
                match verdict {
                    Verdict::Probe(node) => {
                        let leader = self.clone();
                        tasks.spawn(async move { leader.probe(node).await });
                    }
                    Verdict::Evict(session) => {
                        // From now on it gets no lease: it might wake before the entry is committed.
                        let ended = self.with_term(|term, _| {
                            let same = term.term == decided_in;
                            same.then(|| term.grants.end(session))
                        });
                        evict.extend(ended.flatten().map(|()| session));
                    }
                }
            }
            if !evict.is_empty() {
                let leader = self.clone();
                tasks.spawn(async move { leader.evict(decided_in, evict).await });
            }
            if tidied.elapsed() >= TIDY_EVERY {
                tidied = tokio::time::Instant::now();
                self.hear_complaints();
                self.tidy().await;
            }
        }
    }

    async fn evict(&self, term: u64, sessions: Vec<Session>) {
        tracing::warn!(?sessions, term, "taking sessions for dead");
        let entry = ClusterEntry::Evict { sessions, now_ms: wall_ms() };
        // Who is still there is judged again before long.
        if let Err(error) = self.order(term, entry).await {
            tracing::warn!(%error, "could not evict yet");
        }
    }

    /// Orders what this node decided as the leader of `term`. It has no effect if that is over: another leader may
    /// have granted leases since to those whose leases ended in it.
    async fn order(&self, term: u64, entry: ClusterEntry) -> Result<(u64, ClusterReply), ProposeError> {
        let entry = ClusterEntry::InTerm { leader: self.me, term, entry: Box::new(entry) };
        self.log.propose_here(entry, LOG_PATIENCE).await
    }

    async fn probe(&self, node: NodeId) {
        let address = self.view.state().node(node).and_then(|n| n.spec.mesh.parse::<SocketAddr>().ok());
        let Some(address) = address else { return };
        let begun = self.clock.now();
        let probe = probe(&*self.net, address).await;
        self.with_term(|term, _| term.detector.probed(node, probe, begun));
        self.news.notify_one();
    }

    /// Voters and learners follow the members; who is away for long gives its place up.
    async fn tidy(&self) {
        let state = self.view.state();
        // A session that has a successor was waited for before that was let in.
        let replaced = |s: Session| state.node(s.node).is_some_and(|n| n.spec.session.start > s.start);
        self.with_term(|term, _| {
            term.grants.retain(|session| !replaced(session));
            term.heard.retain(|session, _| state.is_live(*session));
            term.complaints.retain(|session| state.is_live(session));
        });
        let metrics = self.log.metrics();
        let voters = choose_voters(&state, &metrics.voters, self.me);
        self.note_held();
        let members: BTreeSet<NodeId> = state.nodes().map(|n| n.spec.session.node).collect();
        self.held.lock().retain(|node, _| members.contains(node));
        let learners: BTreeSet<NodeId> = members.difference(&voters).copied().collect();
        if !voters.is_empty() && (voters != metrics.voters || learners != metrics.learners) {
            match self.log.set_members(voters, learners, LOG_PATIENCE).await {
                Ok(()) => {}
                Err(error) => tracing::debug!(%error, "the log's members are not changed yet"),
            }
        }
        self.tell_who_knows().await;
        let now = wall_ms();
        let away = |n: &&Node| {
            n.status == NodeStatus::Down && now.saturating_sub(n.since_ms) >= OUT_AFTER.as_millis() as u64
        };
        if let Some(node) = state.nodes().find(away) {
            let entry = ClusterEntry::Out { node: node.spec.session.node };
            if let Err(error) = self.log.propose(entry, LOG_PATIENCE).await {
                tracing::debug!(%error, "a node that is away keeps its place for now");
            }
        }
    }
}

impl Leader {
    /// Once all that are left in a set know of it, who was taken out needs to be remembered no longer.
    async fn tell_who_knows(&self) {
        let state = self.view.state();
        let Some(index) = state.newest_eligible() else { return };
        // Not by node: the log of a process that has not joined yet says nothing of the session before it.
        let sessions = self.with_term(|term, _| knowing(&term.heard, index)).unwrap_or_default();
        if !state.is_news(&sessions, index) {
            return;
        }
        let entry = ClusterEntry::Known { sessions: sessions.into_iter().collect(), index };
        if let Err(error) = self.log.propose(entry, LOG_PATIENCE).await {
            tracing::debug!(%error, "who was taken out is remembered for now");
        }
    }
}

/// A session says how far it has applied the log. Renewals come in any order.
fn note_applied(heard: &mut BTreeMap<Session, u64>, session: Session, applied: u64) {
    let known = heard.entry(session).or_default();
    *known = applied.max(*known);
}

/// The sessions that have said that they have applied the log up to `index`.
fn knowing(heard: &BTreeMap<Session, u64>, index: u64) -> BTreeSet<Session> {
    heard.iter().filter(|(_, applied)| **applied >= index).map(|(session, _)| *session).collect()
}

/// Whether some slot that has enough copies in sync for writes has too few without `session`.
fn stops_writes(state: &ClusterState, session: Session) -> bool {
    let mut without = state.clone();
    without.apply_entry(u64::MAX, &ClusterEntry::Evict { sessions: vec![session], now_ms: 0 });
    state.slots().any(|(copies, slot, config)| {
        state.is_enough(copies, config)
            && !without.slot(copies, slot).is_some_and(|after| without.is_enough(copies, after))
    })
}

fn live_sessions(state: &ClusterState) -> Vec<Session> {
    state.nodes().filter_map(Node::live_session).collect()
}

/// Who should vote: up to five nodes that are alive, over as many zones as possible, an odd number from
/// three on; whoever votes already stays if that is as good. A dead voter is kept while nobody can take
/// its place, so that a majority is never made of fewer machines than the ring was told to survive on.
fn choose_voters(state: &ClusterState, now: &BTreeSet<NodeId>, me: NodeId) -> BTreeSet<NodeId> {
    let eligible =
        |n: &&Node| !n.spec.gateway && !n.draining && n.disk_failed.is_none() && n.status != NodeStatus::Out;
    let mut candidates: Vec<&Node> = state.nodes().filter(eligible).collect();
    candidates.sort_by_key(|n| {
        let id = n.spec.session.node;
        (n.live_session().is_none(), id != me, !now.contains(&id), id)
    });
    let alive = candidates.iter().filter(|n| n.live_session().is_some()).count();
    // The dead never make it more: each of them would be a death that the others may not have any more.
    let count = match alive.min(VOTERS_MAX) {
        4 => 3,
        n => n,
    };
    // Shrinking because nodes are away for a moment would only mean growing again.
    let count = count.max(now.len().min(VOTERS_MAX).min(candidates.len()));
    // A voter of each zone, then a second one of each, and so on: the loss of a zone takes as few as it can.
    // First the living, then whoever there is.
    let mut chosen: Vec<&Node> = Vec::new();
    for pool in [&candidates[..alive], &candidates[..]] {
        for per_zone in 1..=VOTERS_MAX {
            for node in pool {
                let in_zone = chosen.iter().filter(|c| c.spec.zone == node.spec.zone).count();
                let taken = chosen.iter().any(|c| c.spec.session.node == node.spec.session.node);
                if chosen.len() < count && !taken && in_zone < per_zone {
                    chosen.push(node);
                }
            }
        }
    }
    chosen.iter().map(|n| n.spec.session.node).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use wire::id::ClusterId;

    #[test]
    fn what_a_session_knows_nobody_but_itself_can_say() {
        let (old, new) = (Session { node: NodeId(1), start: 1 }, Session { node: NodeId(1), start: 2 });
        let other = Session { node: NodeId(2), start: 1 };
        let heard = BTreeMap::from([(old, 29), (new, 40), (other, 35)]);
        assert_eq!(knowing(&heard, 35), BTreeSet::from([new, other]));
        assert_eq!(knowing(&heard, 36), BTreeSet::from([new]));
    }

    #[test]
    fn a_renewal_that_was_overtaken_takes_no_knowledge_back() {
        let one = Session { node: NodeId(1), start: 1 };
        let mut heard = BTreeMap::new();
        note_applied(&mut heard, one, 40);
        note_applied(&mut heard, one, 35);
        assert_eq!(knowing(&heard, 40), BTreeSet::from([one]));
    }

    #[test]
    fn nobody_is_taken_out_without_whom_writes_would_stop() {
        let mut state = ring_of(&["a", "b", "c", "d"], 3);
        let session = |node| Session { node: NodeId(node), start: 1 };
        assert!(!stops_writes(&state, session(2)), "two of three are left everywhere");
        kill(&mut state, 4);
        assert!(stops_writes(&state, session(2)), "one of three is left in some slots");
        assert!(stops_writes(&ring_of(&["a", "b"], 1), session(2)), "it has the only copies");
    }

    /// Nodes numbered from 1 in these zones, one copy.
    fn ring(zones: &[&str]) -> ClusterState {
        ring_of(zones, 1)
    }

    fn ring_of(zones: &[&str], copies: u64) -> ClusterState {
        let spec = |(id, zone): (u64, &&str)| NodeSpec {
            session: Session { node: NodeId(id), start: 1 },
            process: 1,
            boot: 1,
            admin: String::new(),
            mesh: String::new(),
            zone: (*zone).to_owned(),
            vnodes: 1,
            gateway: false,
            reached: Vec::new(),
            nonce: 0,
        };
        let nodes = (1..).zip(zones).map(spec).collect();
        let copies = wire::policy::Copies::new(copies).expect("in range");
        let mut state = ClusterState::default();
        let entry = ClusterEntry::Format { cluster: ClusterId(1), copies, slots: 256, nodes, now_ms: 0 };
        state.apply_entry(1, &entry);
        state
    }

    fn kill(state: &mut ClusterState, node: u64) {
        let sessions = vec![Session { node: NodeId(node), start: 1 }];
        state.apply_entry(9, &ClusterEntry::Evict { sessions, now_ms: 0 });
    }

    fn chosen(state: &ClusterState, now: &[u64]) -> Vec<u64> {
        let now = now.iter().copied().map(NodeId).collect();
        choose_voters(state, &now, NodeId(1)).into_iter().map(|n| n.0).collect()
    }

    #[test]
    fn no_zone_has_more_voters_than_it_must() {
        assert_eq!(chosen(&ring(&["a", "a", "a", "b", "b", "c"]), &[]), [1, 2, 4, 5, 6]);
        assert_eq!(chosen(&ring(&["a", "a", "a", "a", "b", "c"]), &[]), [1, 2, 3, 5, 6]);
        assert_eq!(chosen(&ring(&["a", "a", "b", "b"]), &[]), [1, 2, 3]);
        assert_eq!(chosen(&ring(&["a", "b", "c", "d", "e", "f", "g"]), &[]), [1, 2, 3, 4, 5]);
    }

    #[test]
    fn a_dead_voter_is_replaced_if_anybody_can_take_its_place() {
        let mut state = ring(&["a", "b", "c", "d", "e", "f"]);
        assert_eq!(chosen(&state, &[1, 2, 4, 5, 6]), [1, 2, 4, 5, 6], "who votes stays");
        kill(&mut state, 4);
        assert_eq!(chosen(&state, &[1, 2, 4, 5, 6]), [1, 2, 3, 5, 6]);
        let mut state = ring(&["a", "b", "c"]);
        kill(&mut state, 2);
        assert_eq!(chosen(&state, &[1, 2, 3]), [1, 2, 3], "two would survive no further death");

        // A machine that comes back as another node each time.
        let mut state = ring(&["a", "b", "c", "d", "e"]);
        kill(&mut state, 3);
        kill(&mut state, 4);
        assert_eq!(chosen(&state, &[1, 2, 4]), [1, 2, 5]);
        kill(&mut state, 5);
        assert_eq!(chosen(&state, &[1, 2, 5]), [1, 2, 5]);
    }
}
