//! Fuzz targets of the cluster log: `log_messages`, what other nodes send, and `log_store`, what is on the disk.
//!
//! What must hold of messages: they come back from their bytes, and a snapshot in pieces is made of just these. Of
//! the file: one whose bytes were changed is refused, or holds what it held; one whose records are strange
//! is refused, or holds entries without a gap.

use std::path::Path;
use std::sync::LazyLock;

use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, VoteRequest, VoteResponse};
use openraft::{CommittedLeaderId, EntryPayload, StoredMembership};
use serde::Serialize;
use serde::de::DeserializeOwned;
use wire::id::NodeId;

use super::blob::Blob;
use super::codec::{self, RecordKind};
use super::rpc::{
    BarrierAnswer, CanvassAnswer, CanvassRequest, ProposeAnswer, ProposeRequest, SucceedRequest,
};
use super::store::{
    ENTRIES, Loaded, META, META_COMMITTED, META_PURGED, META_VOTE, SNAPSHOT, SnapshotHeader, Store,
};
use super::transfer::{Piece, PieceAnswer, Received, Receiver};
use super::types::{Entry, LogId, Machine, SnapshotMeta, Types, Vote};
use crate::cluster::entry::ClusterReply;
use crate::cluster::state::ClusterState;
use crate::fuzz::Source;
use crate::store::{FileSystem, SimFs};

const ME: NodeId = NodeId(1);
const DIR: &str = "/";

pub(crate) fn encoded<T: Serialize>(value: &T) -> Vec<u8> {
    codec::encode(value)
}

pub(crate) fn decoded<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    codec::decode(bytes).ok()
}

/// What can be read is the same when it is read again.
fn check<T: Serialize + DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    let text = encoded(&decoded::<T>(bytes)?);
    let again: T = decoded(&text).expect("what was encoded can be read");
    assert!(encoded(&again) == text, "a message is another one after it was read");
    Some(again)
}

pub(crate) fn messages(data: &[u8]) {
    let mut source = Source::new(data);
    let kind = source.u8();
    let rest = source.rest();
    match kind {
        0 => drop(check::<AppendEntriesRequest<Types>>(rest)),
        1 => drop(check::<AppendEntriesResponse<u64>>(rest)),
        2 => drop(check::<VoteRequest<u64>>(rest)),
        3 => drop(check::<VoteResponse<u64>>(rest)),
        4 => pieces(rest),
        5 => drop(check::<PieceAnswer>(rest)),
        6 => drop(check::<ProposeRequest>(rest)),
        7 => drop(check::<ProposeAnswer>(rest)),
        8 => drop(check::<BarrierAnswer>(rest)),
        9 => drop(check::<CanvassRequest>(rest)),
        10 => drop(check::<CanvassAnswer>(rest)),
        11 => drop(check::<SucceedRequest>(rest)),
        12 => drop(check::<Option<Blob>>(rest)),
        _ => drop(check::<ClusterReply>(rest)),
    }
}

/// Pieces one after another, as if each had come in a message of its own.
fn pieces(bytes: &[u8]) {
    let mut source = Source::new(bytes);
    let receiver = Receiver::default();
    let mut came: Vec<u8> = Vec::new();
    while !source.is_empty() {
        let Some(piece) = check::<Piece>(source.piece()) else { continue };
        let (len, offset, bytes) = (piece.len, piece.offset, piece.bytes.0.clone());
        if offset == 0 {
            came.clear();
        }
        match receiver.take(piece) {
            Ok(Received::Want(next))
                if next == offset + bytes.len() as u64 && offset == came.len() as u64 =>
            {
                came.extend_from_slice(&bytes);
            }
            Ok(Received::Want(next)) => assert!(next < len.max(1), "{next} of {len} wanted"),
            Ok(Received::Complete(_, snapshot)) => {
                assert_eq!(snapshot.snapshot.len() as u64, len);
                assert!(snapshot.snapshot.ends_with(&bytes), "it ends with the last piece");
            }
            Err(_) => {}
        }
    }
}

/// A log of a few entries, with a snapshot, and its disk.
static WRITTEN: LazyLock<SimFs> = LazyLock::new(|| {
    let fs = SimFs::new();
    let (store, _) = open(&fs).expect("a new log");
    // Several commits, so that there are earlier states in the file to fall back to.
    for term in 1..=3 {
        put(&store, META, RecordKind::Meta, META_VOTE, &encoded(&Vote::new(term, 1)));
    }
    let state = ClusterState::default().encode();
    let header = SnapshotHeader { meta: snapshot_meta(2), len: state.len() as u64 };
    put(&store, SNAPSHOT, RecordKind::Snapshot, 0, &encoded(&header));
    put(&store, SNAPSHOT, RecordKind::Snapshot, 1, &state);
    put(&store, META, RecordKind::Meta, META_PURGED, &encoded(&log_id(2)));
    for index in 3..=6 {
        let entry = Entry { log_id: log_id(index), payload: EntryPayload::Blank };
        put(&store, ENTRIES, RecordKind::Entry, index, &encoded(&entry));
    }
    put(&store, META, RecordKind::Meta, META_COMMITTED, &encoded(&log_id(5)));
    store.close();
    fs
});

fn log_id(index: u64) -> LogId {
    LogId::new(CommittedLeaderId::new(1, 1), index)
}

fn snapshot_meta(index: u64) -> SnapshotMeta {
    let last_membership = StoredMembership::default();
    SnapshotMeta { last_log_id: Some(log_id(index)), last_membership, snapshot_id: "s".to_owned() }
}

fn open(fs: &SimFs) -> Result<(Store, Loaded), super::LogError> {
    Store::open(fs, Path::new(DIR), ME)
}

fn put(
    store: &Store,
    table: redb::TableDefinition<'_, u64, &[u8]>,
    kind: RecordKind,
    key: u64,
    payload: &[u8],
) {
    put_record(store, table, key, &codec::seal(kind, key, payload));
}

fn put_record(store: &Store, table: redb::TableDefinition<'_, u64, &[u8]>, key: u64, record: &[u8]) {
    let txn = store.begin_write().expect("open");
    txn.open_table(table).expect("a table").insert(key, record).expect("inserted");
    txn.commit().expect("committed");
}

pub(crate) fn store(data: &[u8]) {
    let mut source = Source::new(data);
    let fs = WRITTEN.copy();
    if source.flag() { records(&fs, source) } else { bytes(&fs, source) }
}

/// Strange records under good checksums, or not even that.
fn records(fs: &SimFs, mut source: Source<'_>) {
    let (store, _) = open(fs).expect("as it was written");
    while !source.is_empty() {
        let (table, kind) = source.one_of(&[
            (META, RecordKind::Meta),
            (ENTRIES, RecordKind::Entry),
            (SNAPSHOT, RecordKind::Snapshot),
        ]);
        let (key, how) = (u64::from(source.below(12)), source.u8());
        match how {
            0 => put_record(&store, table, key, source.piece()),
            1 => {
                let txn = store.begin_write().expect("open");
                txn.open_table(table).expect("a table").remove(key).expect("removed");
                txn.commit().expect("committed");
            }
            // What is likely to be right, so that the rest is looked at.
            2 => put(&store, table, kind, key, &encoded(&Vote::new(source.u64(), source.u64()))),
            3 => put(&store, table, kind, key, &encoded(&log_id(source.below(12).into()))),
            4 => {
                let log_id = log_id(source.below(12).into());
                let payload = EntryPayload::Normal(Blob::from(source.piece().to_vec()));
                put(&store, table, kind, key, &encoded(&Entry { log_id, payload }));
            }
            5 => {
                let header =
                    SnapshotHeader { meta: snapshot_meta(source.below(12).into()), len: source.u8().into() };
                put(&store, table, kind, key, &encoded(&header));
            }
            _ => put(&store, table, kind, key, source.piece()),
        }
    }
    store.close();
    drop(store);
    let Ok((store, loaded)) = open(fs) else { return };
    let entries = store.read(0..u64::MAX).expect("they have been looked at");
    let first = loaded.purged.map_or(0, |id| id.index + 1);
    assert!((first..).zip(&entries).all(|(index, entry)| entry.log_id.index == index), "a gap: {entries:?}");
    let last = entries.last().map(|entry| entry.log_id).or(loaded.purged);
    assert_eq!(loaded.last, last);
    if let Some((_, state)) = &loaded.snapshot {
        // A state that this version cannot read is refused by whoever opens the log.
        _ = ClusterState::decode(state);
    }
}

/// Other bytes in the file.
fn bytes(fs: &SimFs, mut source: Source<'_>) {
    let path = Path::new(DIR).join("log.redb");
    let file = fs.open(&path).expect("there");
    let len = file.size().expect("a length");
    while !source.is_empty() {
        // Most of what matters is at the front.
        let at = if source.flag() { u64::from(source.u16()) } else { u64::from(source.u32()) } % len;
        match source.u8() {
            0 => file.set_size(at).expect("cut"),
            255 => {
                let mut byte = [0];
                if file.read_at(&mut byte, at).is_ok() {
                    file.write_at(&[byte[0] ^ 1 << source.below(8)], at).expect("written");
                }
            }
            count => {
                let data = source.bytes(usize::from(count % 16) + 1);
                file.write_at(data, at).expect("written");
            }
        }
    }
    // An empty one is for whoever knows that there was a log (`node/ground.rs`).
    let empty = file.size().expect("a length") == 0;
    let opened = open(fs);
    if let Ok((_, loaded)) = opened
        && !empty
    {
        let (_, written) = open(&WRITTEN.copy()).expect("as it was written");
        assert_eq!(format!("{loaded:?}"), format!("{written:?}"), "a damaged file was taken for a good one");
    }
}
