//! How a node finds its ring, joins it, stays in it and leaves it.
//!
//! Called by [`crate::node`]. One task introduces, joins and renews; what it knows of other nodes feeds
//! the address book of the peer transport.
//!
//! ```text
//!  no ring ──introduced to seeds, waits──▶ a ring is founded here or elsewhere
//!                                                 │
//!  used DIR ──asks the peers it remembers──▶ joins as a new session ──▶ renews its lease
//!                                                 ▲                         │ the ring evicted it
//!                                                 └───── the next session ◀─┘
//! ```

mod greeter;
mod join;
mod reach;
mod spec;
mod start;
mod told;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use prost::Message;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use wire::address::Address;
use wire::frame::Payload;
use wire::id::{ClusterId, NodeId, Session};
use wire::peer::{IntroduceMessage, NodeInfo, ReachedInfo, RenewRequest, Status, op};

use crate::cluster::entry::{ClusterEntry, NodeSpec};
use crate::cluster::leader::Leader;
use crate::cluster::log::ClusterLog;
use crate::cluster::session::{Lease, Me};
use crate::cluster::state::ClusterState;
use crate::cluster::view::View;
use crate::identity::IdentityFile;
use crate::introduce::Seeds;
use crate::machine::wall_ms;
use crate::peer::{Class, Peers};

pub(crate) use self::greeter::MeshGreeter;
use self::reach::Silent;
use self::spec::{bytes_of, info_of, reachable, spec_of};
pub(crate) use self::start::Standing;
use self::told::Told;

/// How often a waiting node introduces itself.
const INTRODUCE_EVERY: Duration = Duration::from_millis(300);
/// How long an introduction may take.
const INTRODUCE_PATIENCE: Duration = Duration::from_secs(1);
/// A waiting node that has not been heard of for this long is not there.
const HEARD_WITHIN: Duration = Duration::from_secs(2);
/// How often the lease is renewed: several times within it.
const RENEW_EVERY: Duration = Duration::from_millis(100);
/// How long a renewal may take; a later one counts from its own sending.
const RENEW_PATIENCE: Duration = Duration::from_millis(300);
/// How often to ask again to be let in.
const JOIN_AGAIN: Duration = Duration::from_millis(50);

struct Known {
    info: NodeInfo,
    heard: Option<Instant>,
}

/// This node as a member, or a member to be.
pub(crate) struct Membership {
    me: Arc<Me>,
    spec: Mutex<NodeSpec>,
    identity: Mutex<IdentityFile>,
    known: Mutex<BTreeMap<NodeId, Known>>,
    silent: Mutex<Silent>,
    seeds: Vec<Address>,
    reach: Arc<dyn Seeds>,
    local: bool,
    /// Set once this node leaves: the session that ends is not followed by another.
    leaving: AtomicBool,
    /// Why this node must not go on, once that is known.
    fatal: tokio::sync::watch::Sender<Option<String>>,
}

/// What membership needs once the log runs.
pub(crate) struct Ring {
    pub(crate) log: ClusterLog<ClusterState>,
    pub(crate) view: View,
    pub(crate) peers: Peers,
    pub(crate) lease: Arc<Lease>,
    pub(crate) leader: Arc<Leader>,
}

/// What a node is told that can never be let in again.
fn removed(node: NodeId) -> String {
    format!("node {node} was removed from its ring: start with an empty directory to join as a new node")
}

impl Membership {
    pub(crate) fn new(
        me: Arc<Me>,
        spec: NodeSpec,
        identity: IdentityFile,
        seeds: Vec<Address>,
        reach: Arc<dyn Seeds>,
        local: bool,
    ) -> Arc<Self> {
        let mut known = BTreeMap::new();
        for (id, mesh) in &identity.identity.peers {
            if let Ok(node) = id.parse::<NodeId>() {
                let session = Session { node, start: 0 };
                let info = NodeInfo { session: session.into(), mesh: mesh.clone(), ..NodeInfo::default() };
                known.insert(node, Known { info, heard: None });
            }
        }
        Arc::new(Self {
            me,
            spec: Mutex::new(spec),
            identity: Mutex::new(identity),
            known: Mutex::new(known),
            silent: Mutex::default(),
            seeds,
            reach,
            local,
            leaving: AtomicBool::new(false),
            fatal: tokio::sync::watch::channel(None).0,
        })
    }

    /// This node as it describes itself.
    pub(crate) fn spec(&self) -> NodeSpec {
        self.spec.lock().clone()
    }

    /// Says when the node must not go on, and why.
    pub(crate) fn fatal(&self) -> tokio::sync::watch::Receiver<Option<String>> {
        self.fatal.subscribe()
    }

    /// The ring that this node belongs to, once it does.
    pub(crate) fn cluster(&self) -> Option<ClusterId> {
        self.identity.lock().identity.cluster()
    }

    /// Takes part in a ring's log from here on, which the directory remembers before the log holds anything:
    /// so one without a ring has nothing in its log either, and what a copy of one with a ring may do is
    /// asked first. An error says why not.
    pub(crate) async fn belong(self: &Arc<Self>, cluster: ClusterId) -> Result<(), String> {
        match self.cluster() {
            Some(ours) if ours == cluster => return Ok(()),
            Some(ours) => return Err(format!("this node belongs to ring {ours}, not to {cluster}")),
            None => {}
        }
        let own = self.clone();
        let written = crate::machine::blocking(move || {
            let met = own.known.lock().iter().map(|(n, k)| (n.to_string(), k.info.mesh.clone())).collect();
            own.identity.lock().update(|i| {
                if i.cluster.is_none() {
                    i.cluster = Some(cluster.to_string());
                    i.local = own.local;
                    i.peers = met;
                }
            })
        });
        match written.await {
            Ok(Ok(())) if self.cluster() == Some(cluster) => Ok(()),
            Ok(Ok(())) => Err("this node has joined another ring".to_owned()),
            Ok(Err(error)) => Err(format!("the ring could not be remembered: {error}")),
            Err(error) => Err(error.to_string()),
        }
    }

    fn info(&self) -> NodeInfo {
        let cluster = self.cluster().map(|c| c.0.to_be_bytes().to_vec()).unwrap_or_default();
        let spec = self.spec();
        let reached = spec.reached.iter().map(|r| ReachedInfo { before: r.before, index: r.index }).collect();
        NodeInfo { cluster, reached, ..info_of(&spec) }
    }

    /// The nodes known before there is a ring, this one included: those that were heard of lately.
    pub(crate) fn waiting(&self) -> Vec<NodeSpec> {
        let known = self.known.lock();
        let fresh = known.values().filter(|k| k.heard.is_some_and(|h| h.elapsed() < HEARD_WITHIN));
        let mut specs: Vec<NodeSpec> = fresh.filter_map(|k| spec_of(&k.info)).collect();
        specs.push(self.spec());
        specs
    }

    /// A node that is known to be in a ring already, if any is.
    pub(crate) fn known_in_ring(&self) -> Option<NodeInfo> {
        self.known.lock().values().map(|k| &k.info).find(|i| !i.cluster.is_empty()).cloned()
    }

    fn message(&self) -> IntroduceMessage {
        let known = self.known.lock();
        let known = known.values().filter(|k| k.heard.is_some()).map(|k| k.info.clone()).collect();
        IntroduceMessage { me: self.info(), known, ..IntroduceMessage::default() }
    }

    /// Answers somebody's introduction; `from` is where it came from, for those who do not know.
    pub(crate) fn introduced(
        &self,
        message: &IntroduceMessage,
        from: Option<IpAddr>,
        peers: &Peers,
        state: &ClusterState,
        fresh: bool,
    ) -> IntroduceMessage {
        // While a ring with a leader has the node alive as another process, this one may be a copy of its
        // directory: nobody is to be led to it before the leader has let it in.
        let speaker = Session::from(message.me.session).node;
        let other = state
            .node(speaker)
            .is_some_and(|n| n.live_session().is_some() && n.spec.process != message.me.process);
        let doubtful = fresh && other;
        if !doubtful {
            self.learn(message, from, peers);
        }
        let them = Session::from(message.me.session);
        let mut identity = self.identity.lock();
        let id = them.node.to_string();
        let remembered = identity.identity.seen.get(&id).copied().unwrap_or_default();
        let (now, mut seen) = remembered.meet(them.start, message.me.nonce);
        if let Some(logged) = state.node(them.node).filter(|n| n.spec.process != message.me.process) {
            seen = seen.max(logged.spec.session.start);
        }
        if message.remember
            && !doubtful
            && now != remembered
            && let Err(error) = identity.update(|i| _ = i.seen.insert(id, now))
        {
            tracing::error!(%error, "a start counter could not be remembered");
        }
        drop(identity);
        let removed = state.is_removed(them.node);
        IntroduceMessage { start_seen: seen, duplicate: doubtful, removed, ..self.message() }
    }

    /// Takes over what somebody says of itself and of others.
    fn learn(&self, message: &IntroduceMessage, from: Option<IpAddr>, peers: &Peers) {
        let mut known = self.known.lock();
        let speaker = Session::from(message.me.session);
        for (info, direct) in
            std::iter::once((&message.me, true)).chain(message.known.iter().map(|i| (i, false)))
        {
            let session = Session::from(info.session);
            if session.node == self.me.session().node || session.node.0 == 0 {
                continue;
            }
            // Nobody else's to tell, and there may be thousands.
            let mut info = NodeInfo { reached: Vec::new(), ..info.clone() };
            if let (true, Some(ip)) = (direct, from) {
                info.mesh = reachable(&info.mesh, ip);
                info.admin = reachable(&info.admin, ip);
            }
            let Ok(mesh) = info.mesh.parse::<SocketAddr>() else { continue };
            let entry = known.entry(session.node).or_insert(Known { info: info.clone(), heard: None });
            if direct || session.start > entry.info.session.start {
                entry.info = info;
            }
            if direct {
                entry.heard = Some(Instant::now());
            }
            if direct || peers.address(session.node).is_none() {
                peers.set_address(session.node, mesh);
            }
        }
        tracing::trace!(%speaker, "introduced");
    }

    async fn introduce_to_seed(&self, seed: &Address, peers: &Peers, state: &ClusterState) -> Option<()> {
        let message = self.message();
        let asked = self.reach.introduce(seed, message);
        let (reply, ip) = tokio::time::timeout(INTRODUCE_PATIENCE * 2, asked).await.ok()??;
        self.learn(&reply, Some(ip), peers);
        self.heed(&reply, state);
        Some(())
    }

    async fn introduce_to(
        &self,
        node: NodeId,
        peers: &Peers,
        state: &ClusterState,
        message: IntroduceMessage,
    ) -> Option<IntroduceMessage> {
        let meta = message.encode_to_vec().into();
        let call =
            peers.call(node, Class::Control, op::INTRODUCE, meta, Payload::empty(), Some(INTRODUCE_PATIENCE));
        let reply = call.await.ok().filter(|r| r.status == Status::Ok as u16)?;
        let reply = IntroduceMessage::decode(reply.meta).ok()?;
        let ip = peers.address(node).map(|a| a.ip());
        self.learn(&reply, ip, peers);
        self.heed(&reply, state);
        Some(reply)
    }

    fn heed(&self, reply: &IntroduceMessage, state: &ClusterState) {
        if let Some(ours) = self.cluster().filter(|_| !reply.me.cluster.is_empty())
            && bytes_of(ours) != reply.me.cluster
        {
            self.stop(format!(
                "this directory belongs to ring {ours}, but the sheep at {} belongs to another ring; point \
                 --seed at its own ring, or start with an empty directory",
                reply.me.admin
            ));
        }
        let ours =
            reply.me.cluster.is_empty() || self.cluster().is_some_and(|c| bytes_of(c) == reply.me.cluster);
        if reply.removed && ours && state.node(self.me.session().node).is_none() {
            self.stop_removed();
        }
    }

    fn stop_removed(&self) {
        self.stop(removed(self.me.session().node));
    }

    fn stop(&self, why: String) {
        self.fatal.send_if_modified(|f| f.is_none() && f.replace(why).is_none());
    }

    /// What the directory remembers.
    pub(crate) fn identity(&self) -> &Mutex<IdentityFile> {
        &self.identity
    }

    /// Introduces, joins and renews until cancelled.
    pub(crate) async fn run(self: Arc<Self>, ring: Arc<Ring>, cancel: CancellationToken) {
        let keep = async {
            tokio::join!(
                self.keep_introduced(&ring),
                self.keep_joined(&ring),
                self.keep_renewed(&ring),
                self.keep_reaching(&ring)
            );
        };
        tokio::select! {
            () = cancel.cancelled() => {}
            () = keep => {}
        }
    }

    /// Keeps the address book, and before there is a ring the list of those who wait.
    async fn keep_introduced(&self, ring: &Ring) {
        loop {
            let state = ring.view.state();
            self.follow(&state, &ring.peers, &ring.log);
            let in_ring = state.is_live(self.me.session());
            if !in_ring && !self.local {
                for seed in &self.seeds {
                    _ = self.introduce_to_seed(seed, &ring.peers, &state).await;
                }
                let known: Vec<NodeId> = self.known.lock().keys().copied().collect();
                let asked = known.iter().map(|n| self.introduce_to(*n, &ring.peers, &state, self.message()));
                futures::future::join_all(asked).await;
                tokio::time::sleep(INTRODUCE_EVERY).await;
            } else {
                ring.view.change(Duration::from_secs(1)).await;
            }
        }
    }

    /// The state's addresses go to the transport, and with the voters and the newest processes to the directory.
    fn follow(&self, state: &ClusterState, peers: &Peers, log: &ClusterLog<ClusterState>) {
        let Some(format) = state.format() else { return };
        let me = self.me.session().node;
        let (mut addresses, mut processes) = (BTreeMap::new(), Vec::new());
        for node in state.nodes().filter(|n| n.spec.session.node != me) {
            let id = node.spec.session.node;
            addresses.insert(id.to_string(), node.spec.mesh.clone());
            processes.push((id.to_string(), node.spec.session.start, node.spec.nonce));
            if let Ok(address) = node.spec.mesh.parse()
                && peers.address(id) != Some(address)
            {
                peers.set_address(id, address);
            }
        }
        if state.node(me).is_none() {
            return;
        }
        let voters: Vec<String> = log.metrics().voters.iter().map(NodeId::to_string).collect();
        let result = self.identity.lock().update(|i| {
            i.cluster = Some(format.cluster.to_string());
            i.peers = addresses;
            i.voters = voters;
            for (id, start, nonce) in processes {
                let seen = i.seen.entry(id).or_default();
                *seen = seen.meet(start, nonce).0;
            }
            i.local = self.local;
        });
        if let Err(error) = result {
            tracing::error!(%error, "the ring's nodes could not be remembered");
        }
    }

    /// Renews the lease for as long as the session is in the ring.
    async fn keep_renewed(&self, ring: &Ring) {
        loop {
            let began = Instant::now();
            let session = self.me.session();
            if ring.view.state().is_live(session) && !self.leaving.load(Ordering::SeqCst) {
                // Counted from before the question was sent: the leader counts from when it came.
                let sent = ring.lease.clock.now();
                let renewed = self.renew(ring, session).await;
                if renewed && self.me.session() == session && !self.leaving.load(Ordering::SeqCst) {
                    ring.lease.granted(sent);
                }
            }
            tokio::time::sleep_until(began + RENEW_EVERY).await;
        }
    }

    async fn renew(&self, ring: &Ring, session: Session) -> bool {
        let applied = ring.view.applied().index;
        let unreached = self.silent.lock().to_tell();
        if ring.leader.leads() {
            return ring.leader.renew(session, applied, &unreached);
        }
        let Some(leader) = ring.log.leader().map(|l| l.node) else { return false };
        let unreached = unreached.iter().map(|node| node.0).collect();
        let meta = RenewRequest { session: session.into(), applied, unreached }.encode_to_vec().into();
        let call =
            ring.peers.call(leader, Class::Control, op::RENEW, meta, Payload::empty(), Some(RENEW_PATIENCE));
        call.await.is_ok_and(|r| r.status == Status::Ok as u16)
    }

    /// Leaves in order. Everything that this node holds must be durable.
    pub(crate) async fn leave(&self, ring: &Ring) {
        self.leaving.store(true, Ordering::SeqCst);
        ring.lease.give_up();
        let entry = ClusterEntry::Leave { session: self.me.session(), now_ms: wall_ms() };
        if let Err(error) = ring.log.propose(entry, Duration::from_secs(1)).await {
            tracing::warn!(%error, "could not leave the ring in order; it will notice");
        }
    }
}
