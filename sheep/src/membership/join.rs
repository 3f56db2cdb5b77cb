//! Being let into the ring, and back in: this node's asking, and the leader's answer to others.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::time::Duration;

use prost::Message;
use tokio::time::Instant;
use wire::frame::Payload;
use wire::id::{NodeId, Session};
use wire::peer::{IntroduceMessage, Status, op};

use super::spec::{bytes_of, spec_of};
use super::{INTRODUCE_EVERY, INTRODUCE_PATIENCE, JOIN_AGAIN, Known, Membership, Ring, Told, reach, removed};
use crate::cluster::entry::{ClusterEntry, NodeSpec, Refusal};
use crate::cluster::leader::JoinError;
use crate::cluster::state::ClusterState;
use crate::machine::wall_ms;
use crate::peer::{Class, Peers};

/// How long to wait for the log.
const LOG_PATIENCE: Duration = Duration::from_secs(1);

fn unreached_by(message: &IntroduceMessage) -> BTreeSet<NodeId> {
    message.unreached.iter().copied().map(NodeId).collect()
}

impl Membership {
    /// Joins, and joins again when the ring has taken this node for dead.
    pub(super) async fn keep_joined(&self, ring: &Ring) {
        let mut told = Told::default();
        let mut waits_for: Option<String> = None;
        loop {
            let state = ring.view.state();
            let me = self.me.session();
            if state.is_live(me) || self.leaving.load(Ordering::SeqCst) {
                told.otherwise();
                waits_for = None;
                if state.awaits(me) {
                    self.say_ready(ring, me).await;
                    ring.view.change(JOIN_AGAIN).await;
                } else {
                    ring.view.change(Duration::from_secs(1)).await;
                }
                continue;
            }
            if let Some(known) = state.node(me.node) {
                let start = known.spec.session.start;
                if start > me.start {
                    self.stop(format!(
                        "node {} is running elsewhere as start {start}: this directory is a copy",
                        me.node
                    ));
                } else if start == me.start {
                    // The ring took this session for dead. What it held is only to be trusted as far as a
                    // new session may trust it.
                    if !self.next_session() {
                        // The node is about to end.
                        tokio::time::sleep(INTRODUCE_EVERY).await;
                    }
                    continue;
                }
            } else if state.is_removed(me.node) {
                self.stop_removed();
            }
            match self.ask_to_join(ring, &state).await {
                Some(reply) if reply.duplicate => {
                    if told.alive(Instant::now()) {
                        self.stop(format!(
                            "node {} is running elsewhere: this directory is a copy; remove it and start \
                             with an empty one",
                            me.node
                        ));
                    }
                }
                // The leader's answer; this node's own log may end before that.
                Some(reply) if reply.removed => self.stop_removed(),
                Some(reply) if !reply.refused.is_empty() => {
                    tracing::warn!(reason = reply.refused, "the ring does not let this node in");
                    tokio::time::sleep(INTRODUCE_EVERY).await;
                }
                Some(reply) if !reply.wait.is_empty() => {
                    if waits_for.as_ref() != Some(&reply.wait) {
                        tracing::warn!(reason = reply.wait, "the ring does not let this node in yet");
                    }
                    waits_for = Some(reply.wait);
                    tokio::time::sleep(INTRODUCE_EVERY).await;
                }
                Some(reply) if reply.joined => told.otherwise(),
                // It does not lead, or could not have that ordered.
                _ => {}
            }
            ring.view.change(JOIN_AGAIN).await;
        }
    }

    /// Once this session's log shows that it was let in, its copies may count: from then on others' writes wait for it.
    async fn say_ready(&self, ring: &Ring, session: Session) {
        match ring.log.propose(ClusterEntry::Ready { session }, LOG_PATIENCE).await {
            Ok((index, _)) => ring.view.reaches(index).await,
            Err(error) => tracing::debug!(%error, "could not say yet that this node has caught up"),
        }
    }

    /// Begins a new session of this process; false if the directory cannot remember it.
    pub(super) fn next_session(&self) -> bool {
        let mut identity = self.identity.lock();
        if let Err(error) = identity.update(|i| i.start += 1) {
            self.stop(format!("cannot begin a new session: {error}"));
            return false;
        }
        let start = identity.identity.start;
        drop(identity);
        tracing::warn!(start, "the ring took this node for dead; it joins again as a new session");
        self.me.renew(start);
        self.spec.lock().session = self.me.session();
        true
    }

    /// Asks the leader, here or through anybody known, to let this session in.
    async fn ask_to_join(&self, ring: &Ring, state: &ClusterState) -> Option<IntroduceMessage> {
        let message = self.message_to_join(&ring.peers).await;
        if state.format().is_some() && ring.leader.leads() {
            return Some(self.join_here(ring, self.spec(), &unreached_by(&message)).await);
        }
        // Before this node is in a ring, one that is must be known; then any of its members will do.
        let ring_known = self.cluster().is_some() || state.format().is_some();
        let known: Vec<NodeId> = {
            let known = self.known.lock();
            let member = |k: &Known| ring_known || !k.info.cluster.is_empty();
            known.iter().filter(|(_, k)| member(k)).map(|(n, _)| *n).collect()
        };
        let leader = ring.log.leader().map(|l| l.node).filter(|l| known.contains(l));
        for node in leader.into_iter().chain(known) {
            let meta = message.encode_to_vec().into();
            let call = ring.peers.call(
                node,
                Class::Control,
                op::JOIN,
                meta,
                Payload::empty(),
                Some(INTRODUCE_PATIENCE),
            );
            if let Ok(reply) = call.await
                && reply.status == Status::Ok as u16
                && let Ok(reply) = IntroduceMessage::decode(reply.meta)
            {
                self.learn(&reply, ring.peers.address(node).map(|a| a.ip()), &ring.peers);
                return Some(reply);
            }
        }
        None
    }

    /// The leader's side of a join, for a node that asked it.
    async fn join_here(&self, ring: &Ring, spec: NodeSpec, unreached: &BTreeSet<NodeId>) -> IntroduceMessage {
        let mut reply = self.message();
        let nonce = spec.nonce;
        match ring.leader.join(spec, unreached, wall_ms()).await {
            Ok(_) => reply.joined = true,
            Err(JoinError::NotLeader | JoinError::Log(_)) => {}
            Err(JoinError::StillAlive) => reply.duplicate = true,
            // Either another process is the node, or this one has not heard that it was let in, and taken for dead.
            Err(JoinError::Refused(Refusal::StartNotHigher { node, start, seen })) => {
                let state = ring.view.state();
                let same = state.node(node).is_some_and(|n| n.spec.nonce == nonce);
                reply.over = same && start == seen;
                reply.duplicate = !reply.over;
            }
            Err(JoinError::Refused(Refusal::NodeRemoved(node))) => {
                reply.removed = true;
                reply.refused = removed(node);
            }
            Err(JoinError::CutOff(why)) => reply.wait = why,
            Err(JoinError::Refused(refusal)) => reply.refused = refusal.to_string(),
        }
        reply
    }

    /// Answers JOIN at whichever member was asked: the leader decides.
    pub(crate) async fn join_asked(
        &self,
        ring: &Ring,
        message: IntroduceMessage,
    ) -> Option<IntroduceMessage> {
        let spec = spec_of(&message.me)?;
        ring.view.state().format()?;
        if !message.me.cluster.is_empty() && self.cluster().is_some_and(|c| bytes_of(c) != message.me.cluster)
        {
            return Some(IntroduceMessage {
                refused: "this is another ring: its directory belongs to a different one".to_owned(),
                ..self.message()
            });
        }
        if ring.leader.leads() {
            let outdated = message.holds.is_some_and(|at| ring.leader.is_outdated(spec.session.node, at));
            if outdated {
                return Some(IntroduceMessage { outdated, ..self.message() });
            }
            return Some(self.join_here(ring, spec, &unreached_by(&message)).await);
        }
        let leader = ring.log.leader()?.node;
        let meta = message.encode_to_vec().into();
        let call = ring.peers.call(
            leader,
            Class::Control,
            op::JOIN,
            meta,
            Payload::empty(),
            Some(INTRODUCE_PATIENCE),
        );
        let reply = call.await.ok().filter(|r| r.status == Status::Ok as u16)?;
        IntroduceMessage::decode(reply.meta).ok()
    }

    /// An introduction that asks to be let in, and says whom this node does not reach.
    pub(super) async fn message_to_join(&self, peers: &Peers) -> IntroduceMessage {
        let known: Vec<NodeId> = self.known.lock().keys().copied().collect();
        let unreached = reach::silent_of(peers, known).await;
        IntroduceMessage { unreached: unreached.iter().map(|node| node.0).collect(), ..self.message() }
    }
}
