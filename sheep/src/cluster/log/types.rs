//! What the log orders, and the types openraft is built from.

use std::fmt::Debug;
use std::sync::Arc;

use bytes::Bytes;
use openraft::{EmptyNode, TokioRuntime};
use serde::Serialize;
use serde::de::DeserializeOwned;
use wire::id::NodeId;

use super::blob::Blob;

/// A deterministic state machine: every node that applies the same entries gets the same state.
///
/// Pure: no clock, no files, no randomness.
pub trait Machine: Clone + Send + Sync + 'static {
    /// What is proposed. A variant this version does not know stops the node when it comes up for applying,
    /// so new variants wait for the ring's feature level.
    type Entry: Clone + Debug + Serialize + DeserializeOwned + Send + Sync + 'static;
    /// What applying it says to the proposer.
    type Reply: Clone + Debug + Serialize + DeserializeOwned + Send + Sync + 'static;

    /// The state before the first entry.
    fn empty() -> Self;
    /// Applies the entry that was ordered so.
    fn apply(&mut self, ordered: Ordered, entry: &Self::Entry) -> Self::Reply;
    /// The whole state as bytes, which name their own version.
    fn encode(&self) -> Vec<u8>;
    /// Reads what [`Machine::encode`] of this version or the one before wrote.
    fn decode(bytes: &[u8]) -> Result<Self, String>;
}

/// Where an entry stands in the log, and by whom it was put there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Ordered {
    /// Indexes grow but are not consecutive: the log has entries of its own.
    pub index: u64,
    /// The term of the leader that ordered it.
    pub term: u64,
    /// That leader.
    pub leader: NodeId,
}

/// A state, and the index of the last entry in it.
#[derive(Debug)]
pub struct Applied<M> {
    /// Index of the last log entry applied; 0 when there is none.
    pub index: u64,
    /// The state after it.
    pub state: Arc<M>,
}

impl<M> Clone for Applied<M> {
    fn clone(&self) -> Self {
        Self { index: self.index, state: self.state.clone() }
    }
}

openraft::declare_raft_types!(
    /// Entries, replies and snapshots pass through openraft as bytes, so that one log implementation serves
    /// every machine and forwarding an entry does not decode it.
    pub(super) Types:
        D = Blob,
        R = Option<Blob>,
        NodeId = u64,
        Node = EmptyNode,
        Entry = openraft::Entry<Types>,
        SnapshotData = Bytes,
        AsyncRuntime = TokioRuntime,
);

pub(super) type Raft = openraft::Raft<Types>;
pub(super) type Entry = openraft::Entry<Types>;
pub(super) type LogId = openraft::LogId<u64>;
pub(super) type Vote = openraft::Vote<u64>;
pub(super) type Metrics = openraft::RaftMetrics<u64, EmptyNode>;
pub(super) type StoredMembership = openraft::StoredMembership<u64, EmptyNode>;
pub(super) type SnapshotMeta = openraft::SnapshotMeta<u64, EmptyNode>;
pub(super) type Snapshot = openraft::Snapshot<Types>;
pub(super) type StorageError = openraft::StorageError<u64>;
pub(super) type StorageIOError = openraft::StorageIOError<u64>;
