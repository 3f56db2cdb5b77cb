//! What a file keeps, and what happens to one that was damaged.

use std::collections::BTreeSet;

use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use wire::id::NodeId;

use super::super::blob::Blob;
use super::super::codec::{self, RecordKind};
use super::super::store::Store;
use super::super::types::Entry;
use super::super::{LogError, LogOp, Ordered};
use super::ring::{Put, Ring, WAIT, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_single_node_keeps_its_state_over_a_restart() {
    let mut ring = Ring::founded(1).await;
    for n in 0..20 {
        ring.node(1).propose(Put::new("n", &n.to_string()), WAIT).await.unwrap();
    }
    ring.kill(1).await;
    let node = ring.start(1).await;
    assert!(node.is_initialized());
    node.read_barrier(WAIT).await.unwrap();
    assert_eq!(ring.read(1, "n"), Some("19".to_owned()));
    node.propose(Put::new("n", "20"), WAIT).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_with_an_old_log_catches_up() {
    let mut ring = Ring::founded(3).await;
    ring.kill(3).await;
    for n in 0..50 {
        ring.node(1).propose(Put::new("n", &n.to_string()), WAIT).await.unwrap();
    }
    ring.start(3).await;
    ring.converged().await;
    assert_eq!(ring.read(3, "n"), Some("49".to_owned()));
    assert_eq!(ring.hub.calls(3, LogOp::Snapshot), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_learner_far_behind_gets_a_snapshot_in_pieces() {
    let mut ring = Ring::new();
    (ring.snapshot_every, ring.keep_entries) = (40, 5);
    ring.found(1).await;
    let long = "x".repeat(40 << 10);
    for n in 0..100 {
        ring.node(1).propose(Put::new(&format!("k{n}"), &long), WAIT).await.unwrap();
    }
    until("the log to be compacted", || (ring.node(1).metrics().purged > 50).then_some(())).await;
    ring.start(2).await;
    let learners = BTreeSet::from([NodeId(2)]);
    ring.node(1).set_members(BTreeSet::from([NodeId(1)]), learners, WAIT).await.unwrap();
    ring.converged().await;
    assert!(ring.hub.calls(2, LogOp::Snapshot) > 2, "3 MB took several pieces");
    assert_eq!(ring.read(2, "k7"), Some(long.clone()));

    ring.kill(2).await;
    ring.start(2).await;
    assert_eq!(ring.read(2, "k7"), Some(long), "the snapshot was kept");
    ring.node(1).propose(Put::new("after", "1"), WAIT).await.unwrap();
    ring.converged().await;
    ring.kill(1).await;
    ring.start(1).await;
    ring.node(1).read_barrier(WAIT).await.unwrap();
    ring.converged().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flipped_bit_anywhere_in_the_file_never_passes_for_data() {
    let mut ring = Ring::founded(1).await;
    for n in 0..30 {
        ring.node(1).propose(Put::new(&format!("key-{n}"), "some value"), WAIT).await.unwrap();
    }
    ring.kill(1).await;
    let path = ring.dir(1).join("log.redb");
    let good = std::fs::read(&path).unwrap();
    let text = b"some value";
    let at = good.windows(text.len()).position(|window| window == text).expect("the entry is in the file");
    for position in [at, at + 4, at + 200] {
        let mut bad = good.clone();
        bad[position] ^= 0x10;
        std::fs::write(&path, &bad).unwrap();
        match ring.open(1).await {
            Err(LogError::Damaged { .. } | LogError::Database { .. } | LogError::Inconsistent { .. }) => {}
            Err(other) => panic!("unexpected error {other}"),
            Ok(log) => {
                // The bit was in a page that is not in use: then everything must be there.
                log.read_barrier(WAIT).await.unwrap();
                assert_eq!(log.watch().borrow().state.clone(), ring_state(30));
                log.stop().await;
            }
        }
    }
    std::fs::write(&path, b"this is not a database at all").unwrap();
    assert!(matches!(ring.open(1).await, Err(LogError::Database { .. })));
}

fn ring_state(count: u32) -> std::sync::Arc<super::ring::Table> {
    use super::super::Machine;
    let mut table = super::ring::Table::empty();
    for n in 0..count {
        table.apply(Ordered::default(), &Put::new(&format!("key-{n}"), "some value"));
    }
    std::sync::Arc::new(table)
}

/// Damage that the database cannot know of: a whole record that is wrong.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_or_missing_record_stops_the_node_from_opening() {
    type Damage = fn(&mut redb::Table<'_, u64, &'static [u8]>);
    let flip: Damage = |table| {
        let mut record = table.get(5).unwrap().unwrap().value().to_vec();
        *record.last_mut().unwrap() ^= 1;
        table.insert(5, record.as_slice()).unwrap();
    };
    let remove: Damage = |table| {
        table.remove(5).unwrap();
    };
    let misplace: Damage = |table| {
        let record = table.get(6).unwrap().unwrap().value().to_vec();
        table.insert(5, record.as_slice()).unwrap();
    };
    let newer: Damage = |table| {
        let mut record = table.get(5).unwrap().unwrap().value().to_vec();
        record[0] = 99;
        table.insert(5, record.as_slice()).unwrap();
    };
    for (damage, says) in [
        (flip, "entry 5 is damaged: checksum mismatch"),
        (remove, "entry 5 is missing"),
        (misplace, "entry 5 is damaged: checksum mismatch"),
        (newer, "entry 5 is damaged: format version 99 is not known"),
    ] {
        let mut ring = Ring::founded(1).await;
        for n in 0..10 {
            ring.node(1).propose(Put::new("n", &n.to_string()), WAIT).await.unwrap();
        }
        ring.kill(1).await;
        let db = Database::open(ring.dir(1).join("log.redb")).unwrap();
        let txn = db.begin_write().unwrap();
        let definition: TableDefinition<'_, u64, &'static [u8]> = TableDefinition::new("entries");
        damage(&mut txn.open_table(definition).unwrap());
        txn.commit().unwrap();
        drop(db);
        let error = ring.open(1).await.err().expect("not opened").to_string();
        assert!(error.contains(says), "{error}");
    }
}

/// An entry this version cannot apply must not be skipped: the state would silently differ from others'.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_entry_that_does_not_decode_is_refused_and_if_logged_stops_the_node() {
    let ring = Ring::founded(1).await;
    let node = ring.node(1);
    let bad = Blob::from(codec::encode(&"not a put"));
    let request =
        super::super::rpc::ProposeRequest { entry: bad.clone(), wait: std::time::Duration::from_secs(1) };
    let answer = node.handle_rpc(LogOp::Propose, &codec::encode(&request)).await.unwrap();
    let answer = codec::decode(&answer).unwrap();
    assert!(matches!(answer, super::super::rpc::ProposeAnswer::Refused(_)), "{answer:?}");
    node.propose(Put::new("goes", "on"), WAIT).await.unwrap();

    assert!(node.inner.raft.client_write(bad).await.is_err());
    let error = node.stopped().await.to_string();
    assert!(error.contains("malformed"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_nodes_file_is_refused() {
    let mut ring = Ring::founded(1).await;
    ring.kill(1).await;
    std::fs::create_dir_all(ring.dir(2)).unwrap();
    std::fs::copy(ring.dir(1).join("log.redb"), ring.dir(2).join("log.redb")).unwrap();
    assert!(matches!(ring.open(2).await, Err(LogError::WrongNode { found: NodeId(1), .. })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_is_open_cannot_be_opened_twice() {
    let ring = Ring::founded(1).await;
    assert!(matches!(ring.open(1).await, Err(LogError::Database { .. })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_purge_waits_until_a_snapshot_covers_it() {
    use super::super::types::SnapshotMeta;
    use super::super::writer::{Change, Writer};
    let dir = tempfile::TempDir::new().unwrap();
    let (store, _) = Store::open(&crate::store::RealFs, dir.path(), NodeId(1)).unwrap();
    let store = std::sync::Arc::new(store);
    let writer = Writer::start(store.clone()).unwrap();
    let id = |index| openraft::LogId::new(openraft::CommittedLeaderId::new(1, 1), index);
    let records = (0..10)
        .map(|index| {
            let entry = Entry { log_id: id(index), payload: openraft::EntryPayload::Blank };
            (index, codec::seal(RecordKind::Entry, index, &codec::encode(&entry)))
        })
        .collect();
    writer.commit(Change::Append { records, committed: None }).await.unwrap();
    writer.commit(Change::Purge(id(5))).await.unwrap();
    assert_eq!(store.read(0..u64::MAX).unwrap().len(), 10, "nothing covers the entries yet");
    let meta = SnapshotMeta { last_log_id: Some(id(7)), ..SnapshotMeta::default() };
    writer.commit(Change::Snapshot(meta, vec![1, 2, 3].into())).await.unwrap();
    assert_eq!(store.read(0..u64::MAX).unwrap().len(), 4);
    let older = SnapshotMeta { last_log_id: Some(id(6)), ..SnapshotMeta::default() };
    writer.commit(Change::Snapshot(older, vec![9].into())).await.unwrap();
    assert_eq!(&store.snapshot().unwrap().unwrap().1[..], [1, 2, 3], "an older snapshot replaces none");
    writer.stop().await;
    assert!(store.read(0..1).is_err(), "closed");
    let db = Database::open(dir.path().join("log.redb")).unwrap();
    drop(db.begin_read().unwrap());
}
