//! Heartbeats and elections: when openraft, whose own timers are off, is told to do either.
//!
//! A voter that has heard nothing for the leader's lease and a random moment more asks the others whether
//! they would vote for it (a canvass) and stands only if a majority would. So a node that was cut off or
//! stalled does not come back with a higher term and topple a leader everybody else hears.
//!
//! ```text
//!             silence > lease + random
//!   follow ───────────────────────────► canvass ──majority──► stand ──► lead, or follow
//!     ▲                                     │                   │
//!     └──────── a sign of life ◄────────────┴── random pause ◄──┘
//! ```

use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use openraft::ServerState;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use wire::id::NodeId;

use super::ClusterLog;
use super::net::{self, LogOp};
use super::rpc::{CanvassAnswer, CanvassRequest};
use super::types::{Machine, Metrics};

/// How exactly times are kept.
const TICK: Duration = Duration::from_millis(10);
/// A tick this late means that this process, not the leader, was asleep.
const ASLEEP: Duration = Duration::from_millis(80);
/// Longest wait for the answers to a canvass.
const CANVASS_TIMEOUT: Duration = Duration::from_millis(150);
/// How long an election may take before the next: a vote is a round trip and a sync on both sides.
const ELECTION: Duration = Duration::from_millis(250);

/// Runs until `stop`.
pub(super) async fn run<M: Machine>(log: ClusterLog<M>, stop: CancellationToken) {
    tokio::select! {
        () = stop.cancelled() => {}
        // Nothing is held across its waits; a canvass that is dropped has changed nothing.
        () = Driver::new(log).run() => {}
    }
}

struct Driver<M: Machine> {
    log: ClusterLog<M>,
    /// No election before this.
    not_before: Instant,
    /// Drawn anew for every silence.
    patience: Duration,
    next_heartbeat: Instant,
}

impl<M: Machine> Driver<M> {
    fn new(log: ClusterLog<M>) -> Self {
        let now = Instant::now();
        let patience = patience(&log);
        Self { log, not_before: now, patience, next_heartbeat: now }
    }

    async fn run(mut self) {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut last = Instant::now();
        loop {
            ticks.tick().await;
            let now = Instant::now();
            if now.duration_since(last) > ASLEEP {
                // The leader's heartbeats may be waiting in our sockets: give them time to be read.
                self.not_before = self.not_before.max(now + self.log.inner.config.heartbeat * 2);
            }
            last = now;
            let metrics = self.log.inner.raft.metrics().borrow().clone();
            if metrics.running_state.is_err() {
                return;
            }
            match metrics.state {
                ServerState::Leader => self.lead(now).await,
                ServerState::Follower | ServerState::Candidate => self.follow(now, &metrics).await,
                ServerState::Learner | ServerState::Shutdown => {}
            }
            if self.log.inner.contact.silence() < self.log.inner.config.heartbeat {
                self.patience = patience(&self.log);
            }
        }
    }

    async fn lead(&mut self, now: Instant) {
        if now < self.next_heartbeat || self.log.inner.contact.is_leaving() {
            return;
        }
        self.next_heartbeat = now + self.log.inner.config.heartbeat;
        // It fails only when openraft has ended, which the next tick sees.
        drop(self.log.inner.raft.trigger().heartbeat().await);
    }

    async fn follow(&mut self, now: Instant, metrics: &Metrics) {
        let inner = &*self.log.inner;
        let me = inner.config.node.0;
        let voters: Vec<u64> = metrics.membership_config.voter_ids().collect();
        if now < self.not_before || !voters.contains(&me) {
            return;
        }
        let alone = voters == [me];
        if !alone {
            let wait = inner.config.leader_lease + self.patience;
            if inner.contact.silence() < wait || !inner.contact.promise(inner.config.node) {
                return;
            }
            if !self.canvass(metrics).await {
                self.log.inner.contact.unpromise(self.log.inner.config.node);
                let (least, most) = self.log.inner.config.stand_after;
                self.not_before = Instant::now() + crate::machine::random_between(least, most);
                return;
            }
        }
        self.not_before = Instant::now() + ELECTION + patience(&self.log);
        self.stand(alone).await;
    }

    /// Makes openraft a candidate, unless the leader has spoken up meanwhile. Appends wait until it is one.
    async fn stand(&self, alone: bool) {
        let inner = &*self.log.inner;
        let _gate = inner.contact.standing().await;
        if !alone && inner.contact.silence() <= inner.config.leader_lease {
            return;
        }
        // Both fail only when openraft has ended, which the next tick sees.
        drop(inner.raft.trigger().elect().await);
        if let Ok(vote) = inner.raft.with_raft_state(|state| *state.vote_ref()).await
            && vote.leader_id.node_id == inner.config.node.0
        {
            inner.contact.stood(vote.leader_id.term);
            tracing::info!(node = %inner.config.node, term = vote.leader_id.term, "stands for election");
        }
    }

    /// Whether a majority would vote for this node now.
    async fn canvass(&self, metrics: &Metrics) -> bool {
        let inner = &*self.log.inner;
        let me = inner.config.node.0;
        let request = CanvassRequest { candidate: inner.config.node, last: inner.log_store.last() };
        let mut asked: FuturesUnordered<_> = metrics
            .membership_config
            .voter_ids()
            .filter(|voter| *voter != me)
            .map(|voter| {
                let request = &request;
                async move {
                    let to = NodeId(voter);
                    let answer: Result<CanvassAnswer, _> =
                        net::call(&*inner.net, to, LogOp::Canvass, request, CANVASS_TIMEOUT).await;
                    (voter, answer.is_ok_and(|answer| answer.yes))
                }
            })
            .collect();
        let mut ayes = vec![me];
        let configs = metrics.membership_config.membership().get_joint_config();
        while let Some((voter, yes)) = asked.next().await {
            if yes {
                ayes.push(voter);
            }
            let won = configs.iter().all(|voters| {
                let for_us = voters.iter().filter(|voter| ayes.contains(voter)).count();
                for_us > voters.len() / 2
            });
            if won {
                return true;
            }
        }
        false
    }
}

fn patience<M: Machine>(log: &ClusterLog<M>) -> Duration {
    let (least, most) = log.inner.config.stand_after;
    crate::machine::random_between(least, most)
}
