//! openraft's view of the state machine.
//!
//! The state lives in memory; what is durable is the log and a snapshot now and then. At the start the
//! state is rebuilt from both, so applying an entry costs no sync of its own.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use openraft::storage::RaftStateMachine;
use openraft::{AnyError, EntryPayload, RaftSnapshotBuilder};
use tokio::sync::watch;
use wire::id::NodeId;

use super::blob::Blob;
use super::codec;
use super::log_store::snapshot_unreadable;
use super::store::Store;
use super::types::{
    Applied, Entry, LogId, Machine, Ordered, Snapshot, SnapshotMeta, StorageError, StorageIOError,
    StoredMembership, Types,
};
use super::writer::{Change, Writer};
use crate::mutant::{Mutant, planted};

/// The state, and where it is published after every change.
pub(super) struct MachineStore<M> {
    store: Arc<Store>,
    writer: Arc<Writer>,
    state: M,
    applied: Option<LogId>,
    membership: StoredMembership,
    published: watch::Sender<Applied<M>>,
}

impl<M: Machine> MachineStore<M> {
    /// Starts from a stored snapshot, or from nothing.
    pub(super) fn new(
        store: Arc<Store>,
        writer: Arc<Writer>,
        snapshot: Option<(SnapshotMeta, M)>,
    ) -> (Self, watch::Receiver<Applied<M>>) {
        let (meta, state) = snapshot.unwrap_or_else(|| (SnapshotMeta::default(), M::empty()));
        let first = Applied { index: index_of(meta.last_log_id), state: Arc::new(state.clone()) };
        let (published, receiver) = watch::channel(first);
        let (applied, membership) = (meta.last_log_id, meta.last_membership);
        (Self { store, writer, state, applied, membership, published }, receiver)
    }

    fn publish(&self) {
        let index = index_of(self.applied);
        self.published.send_replace(Applied { index, state: Arc::new(self.state.clone()) });
    }
}

fn index_of(id: Option<LogId>) -> u64 {
    id.map_or(0, |id| id.index)
}

impl<M: Machine> RaftStateMachine<Types> for MachineStore<M> {
    type SnapshotBuilder = Builder<M>;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), StorageError> {
        Ok((self.applied, self.membership.clone()))
    }

    /// An entry that does not decode was written by a newer version and cannot be skipped: the state would
    /// silently differ from the others'. The log stops instead.
    async fn apply<I>(&mut self, entries: I) -> Result<Vec<Option<Blob>>, StorageError>
    where
        I: IntoIterator<Item = Entry> + Send,
        I::IntoIter: Send,
    {
        let mut replies = Vec::new();
        for entry in entries {
            let reply = match entry.payload {
                EntryPayload::Blank => None,
                EntryPayload::Normal(blob) => {
                    let decoded: M::Entry = codec::decode(&blob.0)
                        .map_err(|error| StorageIOError::apply(entry.log_id, AnyError::new(&error)))?;
                    let ordered = Ordered {
                        index: entry.log_id.index,
                        term: entry.log_id.leader_id.term,
                        leader: NodeId(entry.log_id.leader_id.node_id),
                    };
                    let mut reply = self.state.apply(ordered, &decoded);
                    if planted(Mutant::ApplyTwice) {
                        reply = self.state.apply(ordered, &decoded);
                    }
                    Some(codec::encode(&reply).into())
                }
                EntryPayload::Membership(membership) => {
                    self.membership = StoredMembership::new(Some(entry.log_id), membership);
                    None
                }
            };
            self.applied = Some(entry.log_id);
            replies.push(reply);
        }
        self.publish();
        Ok(replies)
    }

    async fn get_snapshot_builder(&mut self) -> Builder<M> {
        Builder {
            writer: self.writer.clone(),
            state: self.state.clone(),
            applied: self.applied,
            membership: self.membership.clone(),
        }
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<Bytes>, StorageError> {
        Ok(Box::default())
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: Box<Bytes>,
    ) -> Result<(), StorageError> {
        let failed = |error| StorageIOError::write_snapshot(Some(meta.signature()), error);
        let bytes = (*snapshot).clone();
        let state = crate::machine::blocking(move || M::decode(&bytes))
            .await
            .map_err(|error| failed(AnyError::new(&error)))?
            .map_err(|reason| failed(AnyError::error(reason)))?;
        self.writer
            .commit(Change::Snapshot(meta.clone(), *snapshot))
            .await
            .map_err(|error: io::Error| failed(AnyError::new(&error)))?;
        self.state = state;
        self.applied = meta.last_log_id;
        self.membership = meta.last_membership.clone();
        self.publish();
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, StorageError> {
        let store = self.store.clone();
        let found = crate::machine::blocking(move || store.snapshot())
            .await
            .map_err(|error| StorageIOError::read_snapshot(None, AnyError::new(&error)))?
            .map_err(|error| snapshot_unreadable(&error))?;
        Ok(found.map(|(meta, bytes)| Snapshot { meta, snapshot: Box::new(bytes) }))
    }
}

/// Builds a snapshot of the state as it was when the builder was made, while entries go on being applied.
pub(super) struct Builder<M> {
    writer: Arc<Writer>,
    state: M,
    applied: Option<LogId>,
    membership: StoredMembership,
}

impl<M: Machine> RaftSnapshotBuilder<Types> for Builder<M> {
    async fn build_snapshot(&mut self) -> Result<Snapshot, StorageError> {
        let state = self.state.clone();
        let bytes = crate::machine::blocking(move || Bytes::from(state.encode()))
            .await
            .map_err(|error| StorageIOError::write_snapshot(None, AnyError::new(&error)))?;
        let snapshot_id = self.applied.map_or_else(String::new, |id| id.to_string());
        let meta =
            SnapshotMeta { last_log_id: self.applied, last_membership: self.membership.clone(), snapshot_id };
        self.writer
            .commit(Change::Snapshot(meta.clone(), bytes.clone()))
            .await
            .map_err(|error| StorageIOError::write_snapshot(Some(meta.signature()), AnyError::new(&error)))?;
        Ok(Snapshot { meta, snapshot: Box::new(bytes) })
    }
}
