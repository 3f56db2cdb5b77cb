//! The one thread that changes the file.
//!
//! A commit is a sync and may take long on a busy disk, so it neither runs on the runtime's threads nor
//! waits for a free thread of the blocking pool, which the store's syncs may fill. Whatever is queued when
//! a commit ends shares the next one.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;

use bytes::Bytes;
use openraft::storage::LogFlushed;
use parking_lot::Mutex;
use redb::ReadableTable;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::sync::oneshot;

use super::codec::{self, RecordKind};
use super::store::{
    ENTRIES, META, META_COMMITTED, META_PURGED, META_VOTE, PIECE, SNAPSHOT, SnapshotHeader, Store,
};
use super::types::{LogId, SnapshotMeta, Types, Vote};

/// Changes waiting for a commit. openraft has at most one log write and one snapshot under way, so this is
/// never reached; a limit all the same.
const QUEUE: usize = 64;

/// A change to the file.
pub(super) enum Change {
    Vote(Vote),
    /// Entries as sealed records. The commit mark travels along for free: it only saves work at the next
    /// start, so it needs no sync of its own.
    Append {
        records: Vec<(u64, Vec<u8>)>,
        committed: Option<LogId>,
    },
    /// Removes entries from this index on.
    Truncate(u64),
    /// Removes entries up to and including this one, once a stored snapshot covers them: while a snapshot
    /// from the leader is being installed openraft purges first, and a crash in between must not leave a
    /// voter without entries it has acknowledged.
    Purge(LogId),
    /// Replaces the snapshot unless the one stored is newer.
    Snapshot(SnapshotMeta, Bytes),
}

enum Done {
    Flushed(LogFlushed<Types>),
    Signal(oneshot::Sender<Result<(), io::Error>>),
}

impl Done {
    fn tell(self, result: Result<(), io::Error>) {
        match self {
            Self::Flushed(flushed) => flushed.log_io_completed(result),
            // The asker has gone, which only happens when the log is being stopped.
            Self::Signal(signal) => drop(signal.send(result)),
        }
    }
}

/// Hands changes to the thread.
pub(super) struct Writer {
    queue: Mutex<Option<Sender<(Change, Done)>>>,
    worker: Mutex<Option<Worker>>,
}

enum Worker {
    Thread(JoinHandle<()>),
    /// In a simulation, which has one thread for everything.
    #[cfg(test)]
    Task(tokio::task::JoinHandle<()>),
}

impl Writer {
    pub(super) fn start(store: Arc<Store>) -> io::Result<Self> {
        let (queue, changes) = channel(QUEUE);
        let worker = Self::work(Changes { store, failure: None, purge: None }, changes)?;
        Ok(Self { queue: Mutex::new(Some(queue)), worker: Mutex::new(Some(worker)) })
    }

    fn work(mut todo: Changes, mut queue: Receiver<(Change, Done)>) -> io::Result<Worker> {
        #[cfg(test)]
        if crate::machine::simulated::disk_time().is_some() {
            return Ok(Worker::Task(tokio::spawn(async move {
                while let Some(first) = queue.recv().await {
                    if let Some(wait) = crate::machine::simulated::disk_time() {
                        tokio::time::sleep(wait).await;
                    }
                    todo.make(first, &mut queue);
                }
                todo.store.close();
            })));
        }
        let thread = std::thread::Builder::new().name("cluster-log".to_owned()).spawn(move || {
            while let Some(first) = queue.blocking_recv() {
                todo.make(first, &mut queue);
            }
            todo.store.close();
        });
        Ok(Worker::Thread(thread?))
    }

    /// Commits `change`; returns once it is durable.
    pub(super) async fn commit(&self, change: Change) -> io::Result<()> {
        let (signal, done) = oneshot::channel();
        self.send(change, Done::Signal(signal))?;
        done.await.unwrap_or_else(|_| Err(stopped()))
    }

    /// Queues `change`; `flushed` is told once it is durable.
    pub(super) fn append(&self, change: Change, flushed: LogFlushed<Types>) -> io::Result<()> {
        self.send(change, Done::Flushed(flushed))
    }

    fn send(&self, change: Change, done: Done) -> io::Result<()> {
        let guard = self.queue.lock();
        let queue = guard.as_ref().ok_or_else(stopped)?;
        queue.try_send((change, done)).map_err(|error| match error {
            TrySendError::Full(_) => io::Error::other("the cluster log's write queue is full"),
            TrySendError::Closed(_) => stopped(),
        })
    }

    /// Finishes what is queued and ends the thread.
    pub(super) async fn stop(&self) {
        self.queue.lock().take();
        let worker = self.worker.lock().take();
        let ended = match worker {
            Some(Worker::Thread(thread)) => {
                crate::machine::blocking(move || thread.join().is_ok()).await.unwrap_or_default()
            }
            #[cfg(test)]
            Some(Worker::Task(task)) => task.await.is_ok(),
            None => true,
        };
        if !ended {
            tracing::error!("the cluster log's writer panicked");
        }
    }
}

fn stopped() -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, "the cluster log's writer has stopped")
}

/// The file, and what has become of the changes to it.
struct Changes {
    store: Arc<Store>,
    /// After a failed commit nobody knows what is on disk, so a sync is never retried: every later change
    /// fails.
    failure: Option<String>,
    /// A purge that waits for its snapshot.
    purge: Option<LogId>,
}

impl Changes {
    /// Makes the first change and those that have queued up behind it. Blocking.
    fn make(&mut self, first: (Change, Done), queue: &mut Receiver<(Change, Done)>) {
        let mut batch = vec![first];
        while batch.len() <= QUEUE
            && let Ok(next) = queue.try_recv()
        {
            batch.push(next);
        }
        let (changes, waiting): (Vec<_>, Vec<_>) = batch.into_iter().unzip();
        if self.failure.is_none()
            && let Err(error) = commit(&self.store, changes, &mut self.purge)
        {
            tracing::error!(%error, "the cluster log cannot be written any more");
            self.failure = Some(error.to_string());
        }
        for done in waiting {
            done.tell(self.failure.clone().map_or(Ok(()), |text| Err(io::Error::other(text))));
        }
    }
}

/// Writes all changes in one transaction. Durable when it returns: an append's acknowledgement to the
/// leader, and a vote, rest on this. `purge` is a purge that waits for its snapshot.
fn commit(store: &Store, changes: Vec<Change>, purge: &mut Option<LogId>) -> Result<(), redb::Error> {
    let txn = store.begin_write()?;
    {
        let mut meta = txn.open_table(META)?;
        let mut put = |key, payload: &[u8]| -> Result<(), redb::Error> {
            meta.insert(key, codec::seal(RecordKind::Meta, key, payload).as_slice())?;
            Ok(())
        };
        let mut entries = txn.open_table(ENTRIES)?;
        let mut snapshot = txn.open_table(SNAPSHOT)?;
        for change in changes {
            match change {
                Change::Vote(vote) => put(META_VOTE, &codec::encode(&vote))?,
                Change::Append { records, committed } => {
                    for (index, record) in records {
                        entries.insert(index, record.as_slice())?;
                    }
                    if let Some(committed) = committed {
                        put(META_COMMITTED, &codec::encode(&committed))?;
                    }
                }
                Change::Truncate(since) => entries.retain_in(since.., |_, _| false)?,
                Change::Purge(upto) => *purge = (*purge).max(Some(upto)),
                Change::Snapshot(meta, bytes) => replace_snapshot(&mut snapshot, meta, &bytes)?,
            }
            if let Some(upto) = *purge
                && snapshot_at(&snapshot)? >= Some(upto)
            {
                entries.retain_in(..=upto.index, |_, _| false)?;
                put(META_PURGED, &codec::encode(&upto))?;
                *purge = None;
            }
        }
    }
    txn.commit()?;
    Ok(())
}

/// The last entry in the stored snapshot. It was verified at opening, so what does not decode is not there.
fn snapshot_at(table: &impl ReadableTable<u64, &'static [u8]>) -> Result<Option<LogId>, redb::Error> {
    Ok(table.get(0)?.and_then(|record| {
        let payload = codec::unseal(RecordKind::Snapshot, 0, record.value()).ok()?;
        codec::decode::<SnapshotHeader>(payload).ok()?.meta.last_log_id
    }))
}

/// A snapshot built here can be overtaken by a newer one from the leader; then the older is dropped.
fn replace_snapshot(
    table: &mut redb::Table<'_, u64, &'static [u8]>,
    meta: SnapshotMeta,
    bytes: &Bytes,
) -> Result<(), redb::Error> {
    if snapshot_at(table)? > meta.last_log_id {
        return Ok(());
    }
    table.retain(|_, _| false)?;
    let header = SnapshotHeader { meta, len: bytes.len() as u64 };
    table.insert(0, codec::seal(RecordKind::Snapshot, 0, &codec::encode(&header)).as_slice())?;
    for (key, piece) in (1..).zip(bytes.chunks(PIECE)) {
        table.insert(key, codec::seal(RecordKind::Snapshot, key, piece).as_slice())?;
    }
    Ok(())
}
