//! The cluster log: a durable, ordered log of entries, agreed on by a few voters and learned by all nodes.
//!
//! Called by `cluster::runtime` and the admin API; requests of other nodes come in through
//! [`ClusterLog::handle_rpc`] and go out through [`LogNet`]. openraft decides, this module gives it a disk,
//! a network and a sense of time:
//!
//! | file | owns |
//! |---|---|
//! | `types` | what is ordered: the [`Machine`] |
//! | `propose` | proposals and read barriers from any node |
//! | `members` | changes of voters and learners |
//! | `driver`, `contact` | when to show life and when to stand for election |
//! | `handover` | leaving the lead on purpose |
//! | `rpc`, `net`, `transfer` | requests in, requests out, snapshots in pieces |
//! | `log_store`, `machine` | openraft's view of entries and state |
//! | `store`, `writer`, `codec` | the file, the thread that changes it, its bytes |
//!
//! Invariants: what is acknowledged to a leader, and every vote, is on disk; a damaged file is never opened;
//! a node that is no voter never stands for election; proposals reported as not applied never are.

mod blob;
mod codec;
mod config;
mod contact;
mod driver;
mod error;
#[cfg(any(test, feature = "fuzz"))]
pub(crate) mod fuzz;
mod handover;
mod log_store;
mod machine;
mod members;
mod net;
mod propose;
mod rpc;
mod store;
#[cfg(test)]
mod tests;
mod transfer;
mod types;
mod writer;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use openraft::error::{InitializeError, RaftError};
use openraft::{EmptyNode, ServerState};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use wire::id::NodeId;

pub use self::codec::CodecError;
pub use self::config::{LEADER_LEASE, LogConfig};
pub use self::error::{LogError, MembersError, ProposeError, ReadError, RpcFailure};
pub use self::net::{LogNet, LogOp, NetError};
pub use self::types::{Applied, Machine, Ordered};

use self::contact::Contact;
use self::log_store::LogStore;
use self::machine::MachineStore;
use self::net::{Confirmations, Network};
use self::store::{Loaded, Store};
use self::types::Raft;
use self::writer::Writer;
use super::clock::Clock;
use crate::store::FileSystem;

/// Who leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaderInfo {
    /// The leader.
    pub node: NodeId,
    /// Its term. A leader is leader once per term.
    pub term: u64,
}

/// What a node is to the log at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Receives entries without a vote; also a node that is in no log yet.
    Learner,
    /// A voter that hears, or waits for, a leader.
    Follower,
    /// A voter that stands for election.
    Candidate,
    /// Orders entries.
    Leader,
    /// The log has stopped.
    Stopped,
}

/// A look at the log from this node.
#[derive(Debug, Clone)]
pub struct LogMetrics {
    /// What this node is.
    pub role: Role,
    /// Newest term seen.
    pub term: u64,
    /// Who leads, as far as this node knows. May be dead.
    pub leader: Option<NodeId>,
    /// Index of the last entry held here.
    pub last_index: u64,
    /// Index of the last entry applied here.
    pub applied: u64,
    /// Index up to which entries have been replaced by a snapshot.
    pub purged: u64,
    /// Voters. In the middle of a change, old and new ones.
    pub voters: BTreeSet<NodeId>,
    /// Nodes that receive entries without a vote.
    pub learners: BTreeSet<NodeId>,
    /// On the leader: boot time at which the newest message that a majority has confirmed was *sent*.
    /// `None` elsewhere, before the first, and once this node is handing its leadership over.
    pub quorum_acked_at: Option<Duration>,
    /// On a leader that was elected because the one before it had gone silent: how long before its election
    /// no majority can have confirmed another leader. Zero on others, and on one that led already when its
    /// process was started.
    pub silent_before: Duration,
    /// The same as [`LogMetrics::quorum_acked_at`], as an age at the moment of the call.
    pub millis_since_quorum_ack: Option<u64>,
}

/// A handle to this node's cluster log; clones are the same log.
pub struct ClusterLog<M: Machine> {
    inner: Arc<Inner<M>>,
}

impl<M: Machine> Clone for ClusterLog<M> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone() }
    }
}

struct Inner<M> {
    config: LogConfig,
    raft: Raft,
    net: Arc<dyn LogNet>,
    clock: Arc<dyn Clock>,
    confirmations: Arc<Confirmations>,
    contact: Contact,
    receiver: transfer::Receiver,
    log_store: LogStore,
    writer: Arc<Writer>,
    published: watch::Receiver<Applied<M>>,
    cancel: CancellationToken,
    driver: Mutex<Option<JoinHandle<()>>>,
}

/// What a directory holds of the log, read and verified; nobody takes part yet.
pub struct OpenedLog<M> {
    dir: PathBuf,
    node: NodeId,
    store: Arc<Store>,
    loaded: Loaded,
    state: Option<M>,
}

impl<M: Machine> OpenedLog<M> {
    /// Opens the log of `node` in `dir` of `fs`, creating an empty one.
    pub async fn open(fs: Arc<dyn FileSystem>, dir: &Path, node: NodeId) -> Result<Self, LogError> {
        let path = dir.to_owned();
        let opened = crate::machine::blocking(move || open_blocking(&*fs, &path, node)).await;
        let (store, loaded, state) = opened.map_err(|error| LogError::Stopped(error.to_string()))??;
        Ok(Self { dir: dir.to_owned(), node, store, loaded, state })
    }

    /// The index up to which the directory holds the log, 0 if it is empty. No earlier process has applied
    /// anything beyond: what is applied is durable in the log first.
    pub fn reached(&self) -> u64 {
        let in_snapshot = self.loaded.snapshot.as_ref().and_then(|(meta, _)| meta.last_log_id);
        self.loaded.last.max(in_snapshot).map_or(0, |id| id.index)
    }
}

impl<M: Machine> ClusterLog<M> {
    /// Opens the log in `dir` of `fs`, creating an empty one, and begins to take part.
    pub async fn open(
        fs: Arc<dyn FileSystem>,
        dir: &Path,
        config: LogConfig,
        net: Arc<dyn LogNet>,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, LogError> {
        let opened = OpenedLog::open(fs, dir, config.node).await?;
        Self::start(opened, config, net, clock).await
    }

    /// Begins to take part: as a voter if the log says so, else waiting to be founded or to be added by a
    /// leader. The state is rebuilt from the last snapshot and the entries known to be committed; a little
    /// may be missing until a leader is heard.
    pub async fn start(
        opened: OpenedLog<M>,
        config: LogConfig,
        net: Arc<dyn LogNet>,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, LogError> {
        let raft_config = Arc::new(config.to_openraft()?);
        let OpenedLog { dir, node, store, mut loaded, state } = opened;
        let writer = Writer::start(store.clone()).map_err(|source| LogError::Io { path: dir, source })?;
        let writer = Arc::new(writer);
        let log_store = LogStore::new(store.clone(), writer.clone(), &loaded);
        let snapshot = loaded.snapshot.take().map(|(meta, _)| meta).zip(state);
        let (machine, published) = MachineStore::<M>::new(store, writer.clone(), snapshot);

        let confirmations = Arc::new(Confirmations::default());
        let network =
            Network { net: net.clone(), clock: clock.clone(), confirmations: confirmations.clone() };
        let raft = Raft::new(node.0, raft_config, network, log_store.clone(), machine)
            .await
            .map_err(|error| LogError::Stopped(error.to_string()))?;
        // Until openraft's task has begun its metrics are blank.
        raft.is_initialized().await.map_err(|error| LogError::Stopped(error.to_string()))?;

        let inner = Inner {
            config,
            raft,
            net,
            clock,
            confirmations,
            contact: Contact::new(),
            receiver: transfer::Receiver::default(),
            log_store,
            writer,
            published,
            cancel: CancellationToken::new(),
            driver: Mutex::new(None),
        };
        let log = Self { inner: Arc::new(inner) };
        let driver = tokio::spawn(driver::run(log.clone(), log.inner.cancel.clone()));
        *log.inner.driver.lock() = Some(driver);
        Ok(log)
    }

    /// Whether this node has been founded or has been given entries.
    pub fn is_initialized(&self) -> bool {
        self.inner.raft.metrics().borrow().last_log_index.is_some()
    }

    /// Founds the log with this node as its only voter, and waits until it leads.
    pub async fn found(&self) -> Result<(), LogError> {
        let me = self.inner.config.node.0;
        let members = BTreeMap::from([(me, EmptyNode {})]);
        match self.inner.raft.initialize(members).await {
            Ok(()) => {}
            Err(RaftError::APIError(InitializeError::NotAllowed(_))) => return Err(LogError::AlreadyFounded),
            Err(error) => return Err(LogError::Stopped(error.to_string())),
        }
        let mut metrics = self.inner.raft.metrics();
        metrics
            .wait_for(|metrics| metrics.current_leader == Some(me) || metrics.running_state.is_err())
            .await
            .map_err(|error| LogError::Stopped(error.to_string()))?
            .running_state
            .clone()
            .map_err(|error| LogError::Stopped(error.to_string()))
    }

    /// The newest applied state, and every later one. Slow readers miss states in between.
    pub fn watch(&self) -> watch::Receiver<Applied<M>> {
        self.inner.published.clone()
    }

    /// Who leads, as far as this node knows. After the leader's death this is the dead one until the next
    /// is elected.
    pub fn leader(&self) -> Option<LeaderInfo> {
        let metrics = self.inner.raft.metrics();
        let metrics = metrics.borrow();
        metrics.current_leader.map(|node| LeaderInfo { node: NodeId(node), term: metrics.current_term })
    }

    /// A look at the log.
    pub fn metrics(&self) -> LogMetrics {
        let metrics = self.inner.raft.metrics().borrow().clone();
        let membership = metrics.membership_config.membership();
        let voters: BTreeSet<NodeId> = membership.voter_ids().map(NodeId).collect();
        let term = metrics.current_term;
        let quorum_acked_at = self.confirmed_at(&metrics).filter(|_| self.inner.contact.may_lead(term));
        let leads = metrics.state == ServerState::Leader;
        let silent = leads && self.inner.contact.stood_in(term);
        let age = |at| self.inner.clock.now().saturating_sub(at).as_millis();
        LogMetrics {
            role: match metrics.state {
                ServerState::Learner => Role::Learner,
                ServerState::Follower => Role::Follower,
                ServerState::Candidate => Role::Candidate,
                ServerState::Leader => Role::Leader,
                ServerState::Shutdown => Role::Stopped,
            },
            term: metrics.current_term,
            leader: metrics.current_leader.map(NodeId),
            last_index: metrics.last_log_index.unwrap_or(0),
            applied: metrics.last_applied.map_or(0, |id| id.index),
            purged: metrics.purged.map_or(0, |id| id.index),
            learners: membership.learner_ids().map(NodeId).collect(),
            voters,
            quorum_acked_at,
            silent_before: if silent { self.inner.config.leader_lease } else { Duration::ZERO },
            millis_since_quorum_ack: quorum_acked_at.map(|at| u64::try_from(age(at)).unwrap_or(u64::MAX)),
        }
    }

    /// On the leader: up to where each other node has said that it holds the log durably, of what is certain to
    /// stay. Empty elsewhere.
    pub(crate) fn held(&self) -> BTreeMap<NodeId, u64> {
        let metrics = self.inner.raft.metrics();
        let metrics = metrics.borrow();
        let applied = metrics.last_applied.map_or(0, |id| id.index);
        let matched = metrics.replication.iter().flatten();
        matched.filter_map(|(node, id)| Some((NodeId(*node), id.as_ref()?.index.min(applied)))).collect()
    }

    /// The index of the newest entry here, committed or not; for who looks at every moment.
    #[cfg(test)]
    pub(crate) fn last_index(&self) -> u64 {
        self.inner.raft.metrics().borrow().last_log_index.unwrap_or(0)
    }

    /// Whether the voters have a majority without `node`, in each configuration that is in force.
    #[cfg(test)]
    pub(crate) fn can_spare(&self, node: NodeId) -> bool {
        let metrics = self.inner.raft.metrics().borrow().clone();
        let configs = metrics.membership_config.membership().get_joint_config();
        configs.iter().all(|voters| {
            let left = voters.iter().filter(|voter| **voter != node.0).count();
            left > voters.len() / 2
        })
    }

    /// When the newest message that a majority has confirmed was sent, whatever became of the lead since.
    fn confirmed_at(&self, metrics: &types::Metrics) -> Option<Duration> {
        if metrics.state != ServerState::Leader {
            return None;
        }
        let configs = metrics.membership_config.membership().get_joint_config();
        let (me, now) = (self.inner.config.node.0, self.inner.clock.now());
        self.inner.confirmations.quorum(configs, me, metrics.current_term, now)
    }

    /// Whether this node leads and a majority has confirmed that for a message sent within `lease`.
    fn majority_confirmed(&self, lease: Duration) -> bool {
        let metrics = self.inner.raft.metrics().borrow().clone();
        let confirmed = self.confirmed_at(&metrics);
        confirmed.is_some_and(|at| self.inner.clock.now().saturating_sub(at) <= lease)
    }

    /// Waits until the log has stopped and says why: after a failed write, an entry of a newer version, or
    /// [`ClusterLog::stop`]. A node whose log failed must be restarted; it cannot vote any more.
    pub async fn stopped(&self) -> LogError {
        let mut metrics = self.inner.raft.metrics();
        match metrics.wait_for(|metrics| metrics.running_state.is_err()).await {
            Ok(metrics) => match &metrics.running_state {
                Ok(()) => LogError::Stopped("without a reason".to_owned()),
                Err(error) => LogError::Stopped(error.to_string()),
            },
            Err(_) => LogError::Stopped("openraft has ended".to_owned()),
        }
    }

    /// Stops taking part and closes the file; other handles become useless. Returns when all is done, so
    /// that the directory can be opened again.
    pub async fn stop(self) {
        self.inner.cancel.cancel();
        let driver = self.inner.driver.lock().take();
        if let Some(driver) = driver
            && let Err(error) = driver.await
        {
            tracing::error!(%error, "the cluster log's driver failed");
        }
        if let Err(error) = self.inner.raft.shutdown().await {
            tracing::error!(%error, "the cluster log did not shut down in order");
        }
        self.inner.writer.stop().await;
    }
}

type Opened<M> = (Arc<Store>, Loaded, Option<M>);

fn open_blocking<M: Machine>(fs: &dyn FileSystem, dir: &Path, node: NodeId) -> Result<Opened<M>, LogError> {
    let (store, loaded) = Store::open(fs, dir, node)?;
    let state = match &loaded.snapshot {
        Some((_, bytes)) => Some(M::decode(bytes).map_err(|reason| LogError::Inconsistent {
            path: dir.to_owned(),
            what: format!("the snapshot does not decode: {reason}"),
        })?),
        None => None,
    };
    Ok((Arc::new(store), loaded, state))
}
