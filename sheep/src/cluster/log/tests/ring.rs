//! A few logs and the network between them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tempfile::TempDir;
use tokio::time::Instant;
use wire::id::NodeId;

use crate::cluster::clock::RealClock;
use crate::store::RealFs;

use super::super::{
    ClusterLog, LogConfig, LogError, LogNet, LogOp, Machine, NetError, Ordered, ProposeError, Role,
};

/// Longer than anything takes on a busy machine.
pub(super) const WAIT: Duration = Duration::from_secs(20);

/// Sets a key; the reply is its value before.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Put {
    key: String,
    value: String,
}

impl Put {
    pub(super) fn new(key: &str, value: &str) -> Self {
        Self { key: key.to_owned(), value: value.to_owned() }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Table(imbl::OrdMap<String, String>);

impl Machine for Table {
    type Entry = Put;
    type Reply = Option<String>;

    fn empty() -> Self {
        Self(imbl::OrdMap::new())
    }

    fn apply(&mut self, _: Ordered, entry: &Put) -> Option<String> {
        self.0.insert(entry.key.clone(), entry.value.clone())
    }

    fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(&self.0).unwrap()
    }

    fn decode(bytes: &[u8]) -> Result<Self, String> {
        serde_json::from_slice(bytes).map(Self).map_err(|error| error.to_string())
    }
}

pub(super) type Log = ClusterLog<Table>;

/// All nodes' inboxes, and what is wrong with the wires.
#[derive(Default)]
pub(super) struct Hub {
    nodes: Mutex<HashMap<u64, Log>>,
    isolated: Mutex<BTreeSet<u64>>,
    stalled: Mutex<BTreeSet<u64>>,
    delay: Mutex<Duration>,
    calls: Mutex<BTreeMap<(u64, u8), u64>>,
}

impl Hub {
    /// Messages of and to `id` get lost.
    pub(super) fn isolate(&self, id: u64) {
        self.isolated.lock().insert(id);
    }

    /// Messages of and to `id` wait, as if its process were stopped.
    pub(super) fn stall(&self, id: u64) {
        self.stalled.lock().insert(id);
    }

    pub(super) fn heal(&self) {
        self.isolated.lock().clear();
        self.stalled.lock().clear();
    }

    async fn pass_stall(&self, a: u64, b: u64) {
        let stalled = || {
            let stalled = self.stalled.lock();
            stalled.contains(&a) || stalled.contains(&b)
        };
        while stalled() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// How often `id` was asked for `op`.
    pub(super) fn calls(&self, id: u64, op: LogOp) -> u64 {
        self.calls.lock().get(&(id, op as u8)).copied().unwrap_or(0)
    }

    fn is_cut(&self, a: u64, b: u64) -> bool {
        let isolated = self.isolated.lock();
        isolated.contains(&a) || isolated.contains(&b)
    }
}

struct Port {
    hub: Arc<Hub>,
    from: u64,
}

#[async_trait]
impl LogNet for Port {
    async fn call(
        &self,
        to: NodeId,
        op: LogOp,
        body: Vec<u8>,
        timeout: Duration,
    ) -> Result<Vec<u8>, NetError> {
        let delay = *self.hub.delay.lock();
        tokio::time::sleep(delay).await;
        self.hub.pass_stall(self.from, to.0).await;
        if self.hub.is_cut(self.from, to.0) {
            tokio::time::sleep(timeout).await;
            return Err(NetError::Failed("lost".to_owned()));
        }
        let target = self.hub.nodes.lock().get(&to.0).cloned().ok_or(NetError::Unreachable)?;
        *self.hub.calls.lock().entry((to.0, op as u8)).or_default() += 1;
        // In a task of its own: giving up on an answer does not stop the receiver.
        let answer = tokio::spawn(async move { target.handle_rpc(op, &body).await }).await;
        tokio::time::sleep(delay).await;
        self.hub.pass_stall(self.from, to.0).await;
        if self.hub.is_cut(self.from, to.0) {
            tokio::time::sleep(timeout).await;
            return Err(NetError::Failed("lost".to_owned()));
        }
        answer.unwrap().map_err(|failure| NetError::Failed(failure.to_string()))
    }
}

pub(super) struct Ring {
    pub(super) hub: Arc<Hub>,
    dirs: TempDir,
    logs: BTreeMap<u64, Log>,
    pub(super) snapshot_every: u64,
    pub(super) keep_entries: u64,
}

impl Ring {
    pub(super) fn new() -> Self {
        Self {
            hub: Arc::new(Hub::default()),
            dirs: TempDir::new().unwrap(),
            logs: BTreeMap::new(),
            snapshot_every: 5_000,
            keep_entries: 2_000,
        }
    }

    /// A ring of `count` voters, numbered from 1, led by some node.
    pub(super) async fn founded(count: u64) -> Self {
        let mut ring = Self::new();
        ring.found(count).await;
        ring
    }

    pub(super) async fn found(&mut self, count: u64) {
        for id in 1..=count {
            self.start(id).await;
        }
        self.node(1).found().await.unwrap();
        self.set_voters(1..=count).await;
    }

    /// Makes the leader set these voters and no learners.
    pub(super) async fn set_voters(&self, voters: impl IntoIterator<Item = u64>) {
        let voters: BTreeSet<NodeId> = voters.into_iter().map(NodeId).collect();
        let leader = self.leader().await;
        self.node(leader).set_members(voters, BTreeSet::new(), WAIT).await.unwrap();
    }

    pub(super) fn dir(&self, id: u64) -> PathBuf {
        self.dirs.path().join(id.to_string())
    }

    pub(super) async fn open(&self, id: u64) -> Result<Log, LogError> {
        std::fs::create_dir_all(self.dir(id)).unwrap();
        let config = LogConfig {
            snapshot_every: self.snapshot_every,
            keep_entries: self.keep_entries,
            ..LogConfig::new(NodeId(id))
        };
        let net = Arc::new(Port { hub: self.hub.clone(), from: id });
        Log::open(Arc::new(RealFs), &self.dir(id), config, net, Arc::new(RealClock)).await
    }

    pub(super) async fn start(&mut self, id: u64) -> Log {
        let log = self.open(id).await.unwrap();
        self.hub.nodes.lock().insert(id, log.clone());
        self.logs.insert(id, log.clone());
        log
    }

    /// Takes a node off the network and stops it without a word to the others.
    pub(super) async fn kill(&mut self, id: u64) {
        self.hub.nodes.lock().remove(&id);
        self.logs.remove(&id).unwrap().stop().await;
    }

    pub(super) async fn stop_all(&mut self) {
        for id in self.logs.keys().copied().collect::<Vec<_>>() {
            self.kill(id).await;
        }
    }

    pub(super) fn node(&self, id: u64) -> Log {
        self.logs[&id].clone()
    }

    /// Proposes at `id` until it is known to have been applied.
    pub(super) async fn insist(&self, id: u64, entry: Put) {
        loop {
            match self.node(id).propose(entry.clone(), WAIT).await {
                Ok(_) => return,
                Err(ProposeError::Uncertain(_)) => {}
                Err(other) => panic!("{other}"),
            }
        }
    }

    pub(super) fn read(&self, id: u64, key: &str) -> Option<String> {
        self.logs[&id].watch().borrow().state.0.get(key).cloned()
    }

    /// A node that leads and that a majority of voters confirms.
    pub(super) async fn leader(&self) -> u64 {
        until("a leader", || {
            let leads = |log: &Log| {
                let metrics = log.metrics();
                let fresh = metrics.millis_since_quorum_ack.is_some_and(|age| age < 400);
                metrics.role == Role::Leader && fresh
            };
            self.logs.iter().find(|(_, log)| leads(log)).map(|(id, _)| *id)
        })
        .await
    }

    /// Waits until all nodes have applied the same entries, and checks that their states are equal.
    pub(super) async fn converged(&self) {
        until("all nodes to have applied everything", || {
            let applied: BTreeSet<u64> = self.logs.values().map(|log| log.metrics().applied).collect();
            let last: BTreeSet<u64> = self.logs.values().map(|log| log.metrics().last_index).collect();
            (applied.len() == 1 && applied == last).then_some(())
        })
        .await;
        let states: Vec<_> = self.logs.values().map(|log| log.watch().borrow().state.clone()).collect();
        assert!(states.windows(2).all(|pair| pair[0] == pair[1]), "states differ");
    }
}

/// Polls until `look` finds something.
pub(super) async fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let give_up = Instant::now() + WAIT;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < give_up, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
