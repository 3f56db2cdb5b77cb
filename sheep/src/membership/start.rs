//! What a used directory asks its ring before its node's log starts: whether it is a copy, or rolled back.

use std::time::Duration;

use prost::Message;
use tokio::time::Instant;
use wire::frame::Payload;
use wire::id::NodeId;
use wire::peer::{IntroduceMessage, op};

use super::{DUPLICATE_AFTER, INTRODUCE_EVERY, INTRODUCE_PATIENCE, JOIN_AGAIN, Membership};
use crate::cluster::state::ClusterState;
use crate::peer::{Class, Peers};

/// Whoever finds no leader for this long starts its log without having been let in.
const NO_LEADER_AFTER: Duration = Duration::from_millis(1_500);

impl Membership {
    /// Asks the peers that a used directory remembers for the highest start counter seen of this node,
    /// until enough of them have answered: a majority of the log's voters, this node counted (rule 3).
    ///
    /// Returns the highest start seen; not below this node's own means that the directory was copied or
    /// rolled back. An error says why the node must not start.
    pub(crate) async fn start_seen(&self, peers: &Peers) -> Result<u64, String> {
        let mut fatal = self.fatal();
        tokio::select! {
            seen = self.ask_start_seen(peers) => Ok(seen),
            why = fatal.wait_for(Option::is_some) => Err(why.ok().and_then(|w| w.clone()).unwrap_or_default()),
        }
    }

    /// Asks to be let in before this node's log starts: while its last session is alive the directory is a
    /// copy, and a copy must not vote. Where no leader can say, the log is needed to make one.
    pub(crate) async fn join_first(&self, peers: &Peers) -> Result<(), String> {
        let mut began = Instant::now();
        let mut heard = began;
        let mut told = false;
        loop {
            let message = self.message_to_join(peers).await;
            let known: Vec<NodeId> = self.known.lock().keys().copied().collect();
            let mut answered = false;
            let mut waits = false;
            for node in known {
                let meta = message.encode_to_vec().into();
                let patience = Some(INTRODUCE_PATIENCE);
                let call = peers.call(node, Class::Control, op::JOIN, meta, Payload::empty(), patience);
                let Ok(reply) = call.await else { continue };
                let Ok(reply) = IntroduceMessage::decode(reply.meta) else { continue };
                if reply.me.session.node == 0 {
                    continue;
                }
                answered = true;
                if !reply.refused.is_empty() {
                    return Err(reply.refused);
                }
                if !reply.wait.is_empty() {
                    waits = true;
                    if !told {
                        told = true;
                        tracing::warn!(reason = reply.wait, "the ring does not let this node in yet");
                    }
                }
                if !reply.duplicate && reply.joined {
                    return Ok(());
                }
            }
            if answered {
                heard = Instant::now();
            }
            if waits {
                began = Instant::now();
            }
            if began.elapsed() > DUPLICATE_AFTER && answered {
                return Err(format!(
                    "node {} is running elsewhere: this directory is a copy; start with an empty one",
                    self.me.session().node
                ));
            }
            if heard.elapsed() > NO_LEADER_AFTER {
                return Ok(());
            }
            tokio::time::sleep(JOIN_AGAIN).await;
        }
    }

    async fn ask_start_seen(&self, peers: &Peers) -> u64 {
        let identity = self.identity.lock().identity.clone();
        let me = self.me.session().node;
        let voters: Vec<NodeId> = identity.voters.iter().filter_map(|v| v.parse().ok()).collect();
        let others: Vec<NodeId> = self.known.lock().keys().copied().filter(|n| *n != me).collect();
        // When the whole ring starts at once, nobody is there yet to tell where the others are.
        for (id, mesh) in &identity.peers {
            if let (Ok(node), Ok(address)) = (id.parse(), mesh.parse()) {
                peers.set_address(node, address);
            }
        }
        let need = voters.len() / 2 + 1;
        let mut answered: Vec<NodeId> = vec![me];
        let mut seen = 0;
        let began = Instant::now();
        let mut told = false;
        let empty = ClusterState::default();
        loop {
            let asked = others
                .iter()
                .filter(|n| !answered.contains(n))
                .map(|n| async move { (*n, self.introduce_to(*n, peers, &ClusterState::default()).await) });
            for (node, reply) in futures::future::join_all(asked.collect::<Vec<_>>()).await {
                if let Some(reply) = reply {
                    answered.push(node);
                    seen = seen.max(reply.start_seen);
                }
            }
            let have = voters.iter().filter(|v| answered.contains(v)).count();
            // Killed before it knew the voters, it knew some nodes: any of them will do.
            let enough =
                if voters.is_empty() { answered.len() > 1 || others.is_empty() } else { have >= need };
            if enough {
                return seen;
            }
            for seed in &self.seeds {
                // Peers may have moved: whoever is behind a seed tells where they are now.
                _ = self.introduce_to_seed(seed, peers, &empty).await;
            }
            if !told && began.elapsed() > Duration::from_secs(3) {
                told = true;
                tracing::warn!(have, need, "waiting for the ring's voters that this directory remembers");
            }
            tokio::time::sleep(INTRODUCE_EVERY).await;
        }
    }
}
