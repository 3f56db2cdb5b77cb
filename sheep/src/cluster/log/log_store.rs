//! openraft's view of the stored entries and vote.
//!
//! The newest entries are kept decoded in memory, so that replicating and applying them reads no file. All
//! entries that are not durable yet are among them.

use std::collections::VecDeque;
use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;

use openraft::storage::{LogFlushed, RaftLogStorage};
use openraft::{LogState, RaftLogReader};
use parking_lot::Mutex;

use super::codec::{self, RecordKind};
use super::error::LogError;
use super::store::{Loaded, Store};
use super::types::{Entry, LogId, StorageError, StorageIOError, Types, Vote};
use super::writer::{Change, Writer};

/// Entries kept in memory. A follower further behind makes the leader read the file.
const TAIL_ENTRIES: usize = 1024;

/// Payload bytes sent to a follower at once; one entry goes however large it is.
const REPLICATE_BYTES: usize = 1 << 20;

/// What is known without reading the file. Held only for the moment of a lookup, never across a wait.
struct Memory {
    vote: Option<Vote>,
    committed: Option<LogId>,
    purged: Option<LogId>,
    last: Option<LogId>,
    tail: VecDeque<Entry>,
}

/// The entries and the vote. Clones share them.
#[derive(Clone)]
pub(super) struct LogStore {
    store: Arc<Store>,
    writer: Arc<Writer>,
    memory: Arc<Mutex<Memory>>,
}

impl LogStore {
    pub(super) fn new(store: Arc<Store>, writer: Arc<Writer>, loaded: &Loaded) -> Self {
        let memory = Memory {
            vote: loaded.vote,
            committed: loaded.committed,
            purged: loaded.purged,
            last: loaded.last,
            tail: VecDeque::new(),
        };
        Self { store, writer, memory: Arc::new(Mutex::new(memory)) }
    }

    /// Id of the last entry, stored or about to be.
    pub(super) fn last(&self) -> Option<LogId> {
        self.memory.lock().last
    }

    async fn read(&self, start: u64, end: u64) -> Result<Vec<Entry>, StorageError> {
        let (tail_start, mut newest) = {
            let memory = self.memory.lock();
            let tail_start = memory.tail.front().map_or(u64::MAX, |entry| entry.log_id.index);
            let skip = usize::try_from(start.saturating_sub(tail_start)).unwrap_or(usize::MAX);
            let newest: Vec<Entry> =
                memory.tail.iter().skip(skip).take_while(|entry| entry.log_id.index < end).cloned().collect();
            (tail_start, newest)
        };
        if start >= tail_start {
            return Ok(newest);
        }
        let store = self.store.clone();
        let mut entries = crate::machine::blocking(move || store.read(start..end.min(tail_start)))
            .await
            .map_err(|error| read_failed(&error))?
            .map_err(|error| read_failed(&error))?;
        entries.append(&mut newest);
        Ok(entries)
    }
}

fn read_failed<E: std::error::Error + 'static>(error: &E) -> StorageError {
    StorageIOError::read_logs(openraft::AnyError::new(error)).into()
}

fn write_failed(error: &io::Error) -> StorageError {
    StorageIOError::write_logs(openraft::AnyError::new(error)).into()
}

impl RaftLogReader<Types> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + Send>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, StorageError> {
        let start = match range.start_bound() {
            Bound::Included(&index) => index,
            Bound::Excluded(&index) => index.saturating_add(1),
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(&index) => index.saturating_add(1),
            Bound::Excluded(&index) => index,
            Bound::Unbounded => u64::MAX,
        };
        if start >= end {
            return Ok(Vec::new());
        }
        self.read(start, end).await
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, StorageError> {
        let mut entries = self.try_get_log_entries(start..end).await?;
        let mut bytes = 0;
        let fits = entries.iter().take_while(|entry| {
            bytes += payload_len(entry);
            bytes <= REPLICATE_BYTES
        });
        let count = fits.count().max(1);
        entries.truncate(count);
        Ok(entries)
    }
}

fn payload_len(entry: &Entry) -> usize {
    match &entry.payload {
        openraft::EntryPayload::Normal(blob) => blob.0.len(),
        openraft::EntryPayload::Blank | openraft::EntryPayload::Membership(_) => 0,
    }
}

impl RaftLogStorage<Types> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<Types>, StorageError> {
        let memory = self.memory.lock();
        Ok(LogState { last_purged_log_id: memory.purged, last_log_id: memory.last })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), StorageError> {
        self.writer.commit(Change::Vote(*vote)).await.map_err(|error| {
            StorageError::from(StorageIOError::write_vote(openraft::AnyError::new(&error)))
        })?;
        self.memory.lock().vote = Some(*vote);
        Ok(())
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, StorageError> {
        Ok(self.memory.lock().vote)
    }

    /// Written with the next append. Losing the last one costs the next start a little: what it would have
    /// applied at once it applies when a leader tells it how far commitment goes.
    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), StorageError> {
        self.memory.lock().committed = committed;
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, StorageError> {
        Ok(self.memory.lock().committed)
    }

    async fn append<I>(&mut self, entries: I, flushed: LogFlushed<Types>) -> Result<(), StorageError>
    where
        I: IntoIterator<Item = Entry> + Send,
        I::IntoIter: Send,
    {
        let mut records = Vec::new();
        let committed = {
            let mut memory = self.memory.lock();
            // openraft waits for one append before the next, so what is in memory now is durable.
            for entry in entries {
                let index = entry.log_id.index;
                records.push((index, codec::seal(RecordKind::Entry, index, &codec::encode(&entry))));
                memory.last = Some(entry.log_id);
                memory.tail.push_back(entry);
            }
            let spare = memory.tail.len().saturating_sub(TAIL_ENTRIES.max(records.len()));
            memory.tail.drain(..spare);
            memory.committed
        };
        self.writer
            .append(Change::Append { records, committed }, flushed)
            .map_err(|error| write_failed(&error))
    }

    async fn truncate(&mut self, since: LogId) -> Result<(), StorageError> {
        let before = match since.index.checked_sub(1) {
            Some(index) => self.read(index, since.index).await?.pop().map(|entry| entry.log_id),
            None => None,
        };
        {
            let mut memory = self.memory.lock();
            memory.tail.retain(|entry| entry.log_id.index < since.index);
            memory.last = before.or(memory.purged);
        }
        self.writer.commit(Change::Truncate(since.index)).await.map_err(|error| write_failed(&error))
    }

    async fn purge(&mut self, upto: LogId) -> Result<(), StorageError> {
        {
            let mut memory = self.memory.lock();
            memory.tail.retain(|entry| entry.log_id.index > upto.index);
            memory.purged = Some(upto);
            memory.last = memory.last.max(Some(upto));
        }
        self.writer.commit(Change::Purge(upto)).await.map_err(|error| write_failed(&error))
    }
}

/// Turns a failure to read the file into openraft's error.
pub(super) fn snapshot_unreadable(error: &LogError) -> StorageError {
    StorageIOError::read_snapshot(None, openraft::AnyError::new(error)).into()
}
