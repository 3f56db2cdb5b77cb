//! Requests to other nodes.

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::RwLock;
use tokio::runtime::Handle;
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use wire::frame::{Frame, Kind, Payload};
use wire::id::{NodeId, Session};

use super::call::{CallError, PendingReply, Permit, Reply};
use super::class::Class;
use super::hello::Greeter;
use super::link::{Link, LostReason};
use super::net::Net;
use super::probe::{Probe, probe};
use crate::mutant::{Mutant, planted};

/// Events a subscriber may lag behind before it misses some; it sees that it has and can look at the
/// cluster's state instead.
const EVENTS: usize = 4096;

/// What happens to connections; for failure detection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeerEvent {
    /// A connection is up.
    Connected {
        /// The peer.
        node: NodeId,
        /// What the connection is for.
        class: Class,
        /// Which start of the peer it is.
        session: Session,
    },
    /// A connection was lost, or an attempt to make one failed; attempts go on.
    Lost {
        /// The peer.
        node: NodeId,
        /// What the connection was for.
        class: Class,
        /// What happened.
        reason: LostReason,
    },
}

/// What [`Peers::stalled`] saw when it looked last.
#[derive(Debug, Default)]
pub struct Stalled(HashMap<(NodeId, Class), u64>);

/// The other nodes, by id. Connections are made when first needed and then kept up.
#[derive(Clone)]
pub struct Peers(Arc<Shared>);

pub(super) struct Shared {
    pub(super) net: Arc<dyn Net>,
    pub(super) greeter: Arc<dyn Greeter>,
    pub(super) tasks: TaskTracker,
    runtime: Handle,
    events: broadcast::Sender<PeerEvent>,
    addresses: RwLock<HashMap<NodeId, SocketAddr>>,
    links: RwLock<HashMap<(NodeId, Class), Arc<Link>>>,
    stop: CancellationToken,
}

impl Shared {
    pub(super) fn address(&self, node: NodeId) -> Option<SocketAddr> {
        self.addresses.read().get(&node).copied()
    }

    pub(super) fn emit(&self, event: PeerEvent) {
        // Nobody may be listening.
        let _ = self.events.send(event);
    }
}

impl Peers {
    /// Knows nobody yet. Must be called within a runtime, which runs the connections; afterwards requests
    /// can be started from any thread.
    pub fn new(net: Arc<dyn Net>, greeter: Arc<dyn Greeter>) -> Self {
        Self(Arc::new(Shared {
            net,
            greeter,
            tasks: TaskTracker::new(),
            runtime: Handle::current(),
            events: broadcast::channel(EVENTS).0,
            addresses: RwLock::default(),
            links: RwLock::default(),
            stop: CancellationToken::new(),
        }))
    }

    /// Where to reach `node` from now on. A connection that is up stays.
    pub fn set_address(&self, node: NodeId, address: SocketAddr) {
        let old = self.0.addresses.write().insert(node, address);
        if old.is_some_and(|old| old != address) {
            let links = self.0.links.read();
            Class::ALL.iter().filter_map(|class| links.get(&(node, *class))).for_each(|link| link.want());
        }
    }

    /// Where `node` is reached.
    pub fn address(&self, node: NodeId) -> Option<SocketAddr> {
        self.0.address(node)
    }

    /// Forgets `node` and closes its connections; requests under way fail.
    pub fn remove(&self, node: NodeId) {
        self.0.addresses.write().remove(&node);
        let mut links = self.0.links.write();
        for class in Class::ALL {
            if let Some(link) = links.remove(&(node, class)) {
                link.stop.cancel();
            }
        }
    }

    /// What happens to connections from now on.
    pub fn events(&self) -> broadcast::Receiver<PeerEvent> {
        self.0.events.subscribe()
    }

    /// Waits until fewer requests are under way to `node` than its budget allows. Give the permit to
    /// [`PendingReply::holding`]. Cancel safe.
    pub async fn reserve(&self, node: NodeId, class: Class, bytes: usize) -> Permit {
        self.link(node, class).reserve(bytes).await
    }

    /// Sends a request. It is queued before this returns: requests to the same node and class go out in the
    /// order of these calls. Does not wait for the budget, see [`Peers::reserve`].
    ///
    /// Without a connection the request waits for one attempt to make it.
    pub fn start(&self, node: NodeId, class: Class, op: u16, meta: Bytes, payload: Payload) -> PendingReply {
        let frame = Frame { kind: Kind::Request, code: op, flags: 0, id: 0, meta, payload };
        self.link(node, class).start(frame)
    }

    /// Sends a request within the budget and waits for the answer, until `deadline` from now.
    pub async fn call(
        &self,
        node: NodeId,
        class: Class,
        op: u16,
        meta: Bytes,
        payload: Payload,
        deadline: Option<Duration>,
    ) -> Result<Reply, CallError> {
        let call = async {
            let permit = self.reserve(node, class, meta.len() + payload.len()).await;
            self.start(node, class, op, meta, payload).holding(permit).await
        };
        match deadline {
            None => call.await,
            Some(deadline) => {
                tokio::time::timeout(deadline, call).await.unwrap_or(Err(CallError::Timeout { node }))
            }
        }
    }

    /// Whether somebody listens where `node` should be; `None` if its address is not known. Cancel safe.
    pub async fn probe(&self, node: NodeId) -> Option<Probe> {
        let address = self.address(node)?;
        Some(probe(&*self.0.net, address).await)
    }

    /// The nodes that have been waited for since the last look, in which nothing came from them.
    pub fn stalled(&self, last: &mut Stalled) -> BTreeSet<NodeId> {
        let now: HashMap<(NodeId, Class), u64> =
            self.0.links.read().iter().filter_map(|(key, link)| Some((*key, link.waits()?))).collect();
        let before = std::mem::replace(&mut last.0, now);
        let same = last.0.iter().filter(|(key, replies)| before.get(*key) == Some(*replies));
        same.map(|((node, _), _)| *node).collect()
    }

    /// Closes all connections, fails what is under way and returns when all tasks have ended.
    pub async fn stop(&self) {
        self.0.stop.cancel();
        self.0.tasks.close();
        self.0.tasks.wait().await;
    }

    fn link(&self, node: NodeId, class: Class) -> Arc<Link> {
        let class = if planted(Mutant::OneBudget) { Class::Forward } else { class };
        if let Some(link) = self.0.links.read().get(&(node, class)) {
            return Arc::clone(link);
        }
        let mut links = self.0.links.write();
        let link = links.entry((node, class)).or_insert_with(|| {
            let link = Link::new(node, class, self.0.stop.child_token());
            self.0.tasks.spawn_on(Arc::clone(&link).run(Arc::clone(&self.0)), &self.0.runtime);
            link
        });
        Arc::clone(link)
    }
}
