//! The file: tables, reading, and the check at opening.
//!
//! | table | key | record |
//! |---|---|---|
//! | `meta` | 0 owner, 1 vote, 2 committed, 3 purged | one value each |
//! | `entries` | index | a log entry |
//! | `snapshot` | 0, then 1… | description, then pieces of 1 MiB |
//!
//! Everything is read and verified once at opening; a node whose log is damaged must not vote with it.

use std::fmt;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::RwLock;
use redb::{
    Database, ReadTransaction, ReadableDatabase, ReadableTable, StorageBackend, TableDefinition,
    WriteTransaction,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use wire::id::NodeId;

use super::codec::{self, RecordKind};
use super::error::LogError;
use super::types::{Entry, LogId, SnapshotMeta, Vote};
use crate::store::io::LockGuard;
use crate::store::{File, FileSystem};

pub(super) const META: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("meta");
pub(super) const ENTRIES: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("entries");
pub(super) const SNAPSHOT: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("snapshot");

pub(super) const META_OWNER: u64 = 0;
pub(super) const META_VOTE: u64 = 1;
pub(super) const META_COMMITTED: u64 = 2;
pub(super) const META_PURGED: u64 = 3;

/// A snapshot's bytes are stored in pieces of this size.
pub(super) const PIECE: usize = 1 << 20;

/// redb's page cache. The log's tail is cached decoded, so this only serves late followers.
const CACHE_BYTES: usize = 8 << 20;

/// Record 0 of the snapshot table.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct SnapshotHeader {
    pub(super) meta: SnapshotMeta,
    pub(super) len: u64,
}

/// What the file held when it was opened.
#[derive(Debug, Default)]
pub(super) struct Loaded {
    pub(super) vote: Option<Vote>,
    pub(super) committed: Option<LogId>,
    pub(super) purged: Option<LogId>,
    pub(super) last: Option<LogId>,
    pub(super) snapshot: Option<(SnapshotMeta, Bytes)>,
}

/// The open file. Writing goes through `writer`.
pub(super) struct Store {
    path: PathBuf,
    /// `None` once closed. Locked only to begin a transaction.
    db: RwLock<Option<Open>>,
}

/// The database, and then what keeps other processes from the file.
struct Open {
    db: Database,
    _lock: LockGuard,
}

impl Store {
    /// Opens or creates `dir/log.redb` and verifies all of it. Blocking.
    pub(super) fn open(fs: &dyn FileSystem, dir: &Path, node: NodeId) -> Result<(Self, Loaded), LogError> {
        let path = dir.join("log.redb");
        let failed = |error: redb::Error| LogError::Database { path: path.clone(), source: Box::new(error) };
        let refused = |source| LogError::Io { path: path.clone(), source };
        let fresh = !fs.exists(&path).map_err(refused)?;
        let lock = fs.lock(&path).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => failed(redb::Error::DatabaseAlreadyOpen),
            _ => refused(error),
        })?;
        let file = LogFile(fs.open(&path).map_err(refused)?);
        let db = redb::Builder::new()
            .set_cache_size(CACHE_BYTES)
            .set_check_integrity_on_open(true)
            .create_with_backend(file)
            .map_err(|error| failed(error.into()))?;
        let store = Self { path: path.clone(), db: RwLock::new(Some(Open { db, _lock: lock })) };
        store.create_tables(node).map_err(failed)?;
        if fresh {
            // The file's name must survive a power cut before anything in it is promised.
            fs.sync_dir(dir).map_err(|source| LogError::Io { path: dir.to_owned(), source })?;
        }
        let loaded = store.load(node)?;
        Ok((store, loaded))
    }

    /// Closes the file and gives its lock back, however many handles are left.
    pub(super) fn close(&self) {
        self.db.write().take();
    }

    pub(super) fn begin_write(&self) -> Result<WriteTransaction, redb::Error> {
        Ok(self.db.read().as_ref().ok_or(redb::Error::DatabaseClosed)?.db.begin_write()?)
    }

    fn begin_read(&self) -> Result<ReadTransaction, redb::Error> {
        Ok(self.db.read().as_ref().ok_or(redb::Error::DatabaseClosed)?.db.begin_read()?)
    }

    fn create_tables(&self, node: NodeId) -> Result<(), redb::Error> {
        let txn = self.begin_write()?;
        {
            let mut meta = txn.open_table(META)?;
            if meta.get(META_OWNER)?.is_none() {
                let record = codec::seal(RecordKind::Meta, META_OWNER, &codec::encode(&node));
                meta.insert(META_OWNER, record.as_slice())?;
            }
            txn.open_table(ENTRIES)?;
            txn.open_table(SNAPSHOT)?;
        }
        txn.commit()?;
        Ok(())
    }

    fn load(&self, node: NodeId) -> Result<Loaded, LogError> {
        let owner = self.meta(META_OWNER, "the owner")?.ok_or_else(|| self.inconsistent("no owner"))?;
        if owner != node {
            return Err(LogError::WrongNode { path: self.path.clone(), found: owner, expected: node });
        }
        let mut loaded = Loaded {
            vote: self.meta(META_VOTE, "the vote")?,
            committed: self.meta(META_COMMITTED, "the commit mark")?,
            purged: self.meta(META_PURGED, "the purge mark")?,
            last: None,
            snapshot: self.snapshot()?,
        };
        loaded.last = self.check_entries(loaded.purged)?.or(loaded.purged);
        let snapshot_at = loaded.snapshot.as_ref().and_then(|(meta, _)| meta.last_log_id);
        if loaded.purged > snapshot_at {
            return Err(self.inconsistent("entries were purged that no snapshot holds"));
        }
        if loaded.committed > loaded.last.max(snapshot_at) {
            return Err(self.inconsistent("committed entries are missing"));
        }
        Ok(loaded)
    }

    /// Verifies every entry and that none is missing; returns the last one's id.
    fn check_entries(&self, purged: Option<LogId>) -> Result<Option<LogId>, LogError> {
        let mut last: Option<LogId> = None;
        for entry in self.read(0..u64::MAX)? {
            let expected = last.or(purged).map_or(0, |id| id.index + 1);
            if entry.log_id.index != expected {
                let what = format!("entry {expected} is missing, found {}", entry.log_id.index);
                return Err(self.inconsistent(&what));
            }
            last = Some(entry.log_id);
        }
        Ok(last)
    }

    /// The stored entries with an index in `range`. Blocking.
    pub(super) fn read(&self, range: Range<u64>) -> Result<Vec<Entry>, LogError> {
        let txn = self.begin_read().map_err(|error| self.failed(error))?;
        let table = txn.open_table(ENTRIES).map_err(|error| self.failed(error))?;
        let mut entries = Vec::new();
        for row in table.range(range).map_err(|error| self.failed(error))? {
            let (key, record) = row.map_err(|error| self.failed(error))?;
            let index = key.value();
            let what = || format!("entry {index}");
            let entry: Entry = self.decode(RecordKind::Entry, index, record.value(), what)?;
            if entry.log_id.index != index {
                return Err(self.inconsistent(&format!("entry {index} says it is {}", entry.log_id.index)));
            }
            entries.push(entry);
        }
        Ok(entries)
    }

    /// The stored snapshot. Blocking.
    pub(super) fn snapshot(&self) -> Result<Option<(SnapshotMeta, Bytes)>, LogError> {
        let txn = self.begin_read().map_err(|error| self.failed(error))?;
        let table = txn.open_table(SNAPSHOT).map_err(|error| self.failed(error))?;
        let mut header: Option<SnapshotHeader> = None;
        let mut bytes = Vec::new();
        for (expected, row) in (0..).zip(table.iter().map_err(|error| self.failed(error))?) {
            let (key, record) = row.map_err(|error| self.failed(error))?;
            let key = key.value();
            if key != expected {
                return Err(self.inconsistent(&format!("piece {expected} of the snapshot is missing")));
            }
            if key == 0 {
                header = Some(self.decode(RecordKind::Snapshot, key, record.value(), || {
                    "the snapshot's description".to_owned()
                })?);
                continue;
            }
            let piece = codec::unseal(RecordKind::Snapshot, key, record.value())
                .map_err(|source| self.damaged(format!("piece {key} of the snapshot"), source))?;
            bytes.extend_from_slice(piece);
        }
        match header {
            Some(header) if header.len != bytes.len() as u64 => {
                Err(self.inconsistent(&format!("snapshot of {} bytes has {}", header.len, bytes.len())))
            }
            Some(header) => Ok(Some((header.meta, bytes.into()))),
            None => Ok(None),
        }
    }

    fn meta<T: DeserializeOwned>(&self, key: u64, what: &str) -> Result<Option<T>, LogError> {
        let txn = self.begin_read().map_err(|error| self.failed(error))?;
        let table = txn.open_table(META).map_err(|error| self.failed(error))?;
        let Some(record) = table.get(key).map_err(|error| self.failed(error))? else {
            return Ok(None);
        };
        self.decode(RecordKind::Meta, key, record.value(), || what.to_owned()).map(Some)
    }

    fn decode<T: DeserializeOwned>(
        &self,
        kind: RecordKind,
        key: u64,
        record: &[u8],
        what: impl Fn() -> String,
    ) -> Result<T, LogError> {
        codec::unseal(kind, key, record)
            .and_then(codec::decode)
            .map_err(|source| self.damaged(what(), source))
    }

    fn damaged(&self, what: String, source: codec::CodecError) -> LogError {
        LogError::Damaged { path: self.path.clone(), what, source }
    }

    fn inconsistent(&self, what: &str) -> LogError {
        LogError::Inconsistent { path: self.path.clone(), what: what.to_owned() }
    }

    fn failed(&self, error: impl Into<redb::Error>) -> LogError {
        LogError::Database { path: self.path.clone(), source: Box::new(error.into()) }
    }
}

/// The file as redb wants to see it.
struct LogFile(Arc<dyn File>);

impl fmt::Debug for LogFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LogFile")
    }
}

impl StorageBackend for LogFile {
    fn len(&self) -> io::Result<u64> {
        self.0.size()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read_at(out, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_size(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write_at(data, offset)
    }
}
