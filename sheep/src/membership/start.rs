//! What a used directory asks its ring before its node's log starts: whether it is a copy, or rolled back.

use std::time::Duration;

use prost::Message;
use tokio::time::Instant;
use wire::frame::Payload;
use wire::id::{NodeId, Session};
use wire::peer::{IntroduceMessage, op};

use super::{INTRODUCE_EVERY, INTRODUCE_PATIENCE, JOIN_AGAIN, Membership, Told};
use crate::cluster::state::ClusterState;
use crate::peer::{Class, Peers};

/// Whoever finds no leader for this long starts its log without having been let in.
const NO_LEADER_AFTER: Duration = Duration::from_millis(1_500);

/// What the others make of a used directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    /// Nobody knows anything newer of its node.
    Newest,
    /// A copy made earlier, or one that another process has gone on from.
    Outdated,
}

/// Who is to answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    /// Whoever there is: where there is a leader, it will decide.
    Anybody,
    /// Those that have written down that this process began.
    WhoRemembers,
}

/// What came of asking to be let in.
enum Joining {
    Joined,
    Outdated,
    NoLeader,
}

impl Membership {
    /// Finds out whether a used directory, which holds the log up to `holds`, is the newest of its node, before the
    /// log starts: a copy must not vote (rule 3). Where there is a leader it lets the node in or not; where there
    /// is none, the log is needed to make one, and a majority of its voters, this node counted, has heard that
    /// this process began.
    ///
    /// An error says why the node must not start. Cancel-safe.
    pub(crate) async fn standing(&self, peers: &Peers, holds: u64) -> Result<Standing, String> {
        if self.start_seen(peers, holds, Asked::Anybody).await? == Some(Standing::Outdated) {
            return Ok(Standing::Outdated);
        }
        loop {
            match self.join_first(peers, holds).await? {
                Joining::Joined => return Ok(Standing::Newest),
                Joining::Outdated => return Ok(Standing::Outdated),
                Joining::NoLeader => {}
            }
            if let Some(standing) = self.start_seen(peers, holds, Asked::WhoRemembers).await? {
                return Ok(standing);
            }
        }
    }

    /// `None` if there is a leader by now.
    async fn start_seen(&self, peers: &Peers, holds: u64, asked: Asked) -> Result<Option<Standing>, String> {
        let mut fatal = self.fatal();
        tokio::select! {
            seen = self.ask_start_seen(peers, holds, asked) => Ok(seen),
            why = fatal.wait_for(Option::is_some) => Err(why.ok().and_then(|w| w.clone()).unwrap_or_default()),
        }
    }

    /// Asks to be let in before this node's log starts: while its last session is alive the directory is a
    /// copy.
    async fn join_first(&self, peers: &Peers, holds: u64) -> Result<Joining, String> {
        let mut heard = Instant::now();
        let mut told = Told::default();
        let mut warned = false;
        loop {
            let message = IntroduceMessage { holds: Some(holds), ..self.message_to_join(peers).await };
            let known: Vec<NodeId> = self.known.lock().keys().copied().collect();
            for node in known {
                let meta = message.encode_to_vec().into();
                let patience = Some(INTRODUCE_PATIENCE);
                let call = peers.call(node, Class::Control, op::JOIN, meta, Payload::empty(), patience);
                let Ok(reply) = call.await else { continue };
                let Ok(reply) = IntroduceMessage::decode(reply.meta) else { continue };
                if reply.me.session.node == 0 {
                    continue;
                }
                if reply.outdated {
                    return Ok(Joining::Outdated);
                }
                if !reply.refused.is_empty() {
                    return Err(reply.refused);
                }
                if reply.over {
                    // A request to join that seemed lost was answered after all.
                    self.next_session();
                    break;
                }
                if reply.joined {
                    return Ok(Joining::Joined);
                }
                // Any other answer comes from one that does not lead, or could not have it ordered.
                if reply.duplicate || !reply.wait.is_empty() {
                    heard = Instant::now();
                }
                if !reply.wait.is_empty() {
                    told.otherwise();
                    if !warned {
                        warned = true;
                        tracing::warn!(reason = reply.wait, "the ring does not let this node in yet");
                    }
                }
                if reply.duplicate && told.alive(Instant::now()) {
                    return Err(format!(
                        "node {} is running elsewhere: this directory is a copy; start with an empty one",
                        self.me.session().node
                    ));
                }
            }
            if heard.elapsed() > NO_LEADER_AFTER {
                return Ok(Joining::NoLeader);
            }
            tokio::time::sleep(JOIN_AGAIN).await;
        }
    }

    /// Asks the peers that the directory remembers what they have seen of this node, until enough have answered.
    async fn ask_start_seen(&self, peers: &Peers, holds: u64, asked: Asked) -> Option<Standing> {
        let identity = self.identity.lock().identity.clone();
        let Session { node: me, start } = self.me.session();
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
        let began = Instant::now();
        let mut told = false;
        let empty = ClusterState::default();
        loop {
            let message = IntroduceMessage {
                holds: Some(holds),
                remember: asked == Asked::WhoRemembers,
                ..self.message()
            };
            let questions = others
                .iter()
                .filter(|n| !answered.contains(n))
                .map(|n| async { (*n, self.introduce_to(*n, peers, &empty, message.clone()).await) });
            for (node, reply) in futures::future::join_all(questions.collect::<Vec<_>>()).await {
                let Some(reply) = reply else { continue };
                if reply.outdated || reply.start_seen >= start {
                    return Some(Standing::Outdated);
                }
                if asked == Asked::WhoRemembers && reply.duplicate {
                    return None;
                }
                answered.push(node);
            }
            let have = voters.iter().filter(|v| answered.contains(v)).count();
            // Killed before it knew the voters, it knew some nodes: any of them will do.
            let enough =
                if voters.is_empty() { answered.len() > 1 || others.is_empty() } else { have >= need };
            if enough {
                return Some(Standing::Newest);
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
