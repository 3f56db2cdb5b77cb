//! What a store in use costs: marks, descriptors, listings.

use super::super::{Created, RealFs, Segment, Verb};
use super::*;

#[test]
fn writes_to_marked_objects_pay_no_sync_and_three_calls() {
    let fs = SimFs::new();
    let store = open(&fs);
    store.create(&key(0), 1 << 20).expect("created");
    let (syncs, calls) = (fs.count(Verb::SyncData), fs.calls());
    for seq in 0..256 {
        assert!(store.is_quick_write(&key(0), seq * BLOCK, BLOCK));
        store.write(&key(0), &data(seq, seq * BLOCK, block(1))).expect("written");
    }
    assert_eq!(fs.count(Verb::SyncData), syncs);
    assert_eq!(fs.calls() - calls, 3 * 256);
    // A flush alone drops no mark.
    store.flush_all().expect("flushed");
    store.tick().expect("ticks");
    assert!(store.is_quick_write(&key(0), 0, BLOCK));
    assert!(!store.is_quick_write(&key(0), 1, 10), "a partial block is read first");
}

#[test]
fn marks_go_when_the_object_is_durable_and_idle_and_come_back_at_once() {
    let fs = SimFs::new();
    let store = open(&fs);
    store.create(&key(0), 1 << 20).expect("created");
    store.write(&key(0), &data(1, 0, block(1))).expect("written");
    let idle = |store: &LocalStore| (0..20).for_each(|_| store.tick().expect("ticks"));
    idle(&store);
    assert_eq!(store.intents(), [(key(0), u64::MAX)], "not flushed");
    store.flush_all().expect("flushed");
    idle(&store);
    assert_eq!(store.intents(), []);
    let syncs = fs.count(Verb::SyncData);
    store.write(&key(0), &data(2, 0, block(2))).expect("written");
    assert_eq!(store.intents(), [(key(0), 1)], "its region");
    store.write(&key(0), &data(3, 32 * BLOCK, block(2))).expect("written");
    assert_eq!(store.intents(), [(key(0), u64::MAX)], "all of it");
    store.write(&key(0), &data(4, 64 * BLOCK, block(2))).expect("written");
    assert_eq!(fs.count(Verb::SyncData), syncs + 2);
    drop(store);
    fs.process_kill();
    let store = open(&fs);
    assert_eq!(store.suspects(), [(key(0), u64::MAX)]);
    settle(&store);
    store.close().expect("closed");
    drop(store);
    assert_eq!(open(&fs).suspects(), [], "a clean stop leaves none");
}

#[test]
fn few_descriptors_serve_many_objects() {
    let fs = SimFs::new();
    let options = Options { open_objects_max: 4, flush_threads: 1, ..Options::default() };
    let store = open_with(&fs, options.clone()).expect("opens");
    for round in 1..4u64 {
        for index in 0..40 {
            store.create(&key(index), 8192).expect("created");
            store.write(&key(index), &data(round, 0, block(index as u8))).expect("written");
        }
    }
    for index in 0..40 {
        assert_eq!(read_all(&store, &key(index)).expect("read")[..4096], block(index as u8));
        assert_eq!(store.version(&key(index)).expect("whole"), version(3));
    }
    assert!(store.cache.len() <= 4);
    store.flush_all().expect("flushed");
    drop(store);
    fs.power_cut(1);
    let store = open_with(&fs, options).expect("opens");
    assert_eq!(store.suspects().len(), 40);
    for index in 0..40 {
        assert_eq!(read_all(&store, &key(index)).expect("read")[..4096], block(index as u8));
    }
}

#[test]
fn a_slot_and_a_vdi_are_listed_and_a_slot_removed() {
    let fs = SimFs::new();
    let store = open(&fs);
    for index in 0..6 {
        assert_eq!(store.create(&key(index), 4096).expect("created"), Created::New);
        assert_eq!(store.create(&key(index), 4096).expect("there"), Created::Existed);
    }
    let three = key(0).copies;
    assert_eq!(store.list_slots(), [(three, SlotIndex(0)), (three, SlotIndex(1))]);
    let oids: Vec<Oid> = store.list_slot(three, SlotIndex(0)).expect("lists").iter().map(|s| s.oid).collect();
    assert_eq!(oids, [key(0).oid, key(4).oid, key(2).oid]);
    assert_eq!(store.creators().expect("lists"), [VdiId(1), VdiId(2), VdiId(3)]);
    assert_eq!(store.list_vdi(VdiId(2)).expect("lists").len(), 2);
    assert!(store.remove(&key(1)).expect("removed"));
    assert!(!store.remove(&key(1)).expect("gone"));
    assert!(store.remove_slot(three, SlotIndex(0), 16).expect("removed"));
    drop(store);
    fs.power_cut(1);
    let store = open(&fs);
    assert_eq!(store.list_slot(three, SlotIndex(0)).expect("lists"), []);
    assert_eq!(store.list_slot(three, SlotIndex(1)).expect("lists").len(), 2);
    assert_eq!(store.suspects().len(), 2, "none of what was removed");
}

#[test]
fn seals_only_rise_and_are_kept_until_forgotten() {
    let fs = SimFs::new();
    let store = open(&fs);
    for (vdi, generation) in [(1, 5), (1, 3), (2, 1)] {
        store.seal(VdiId(vdi), Generation(generation)).expect("sealed");
    }
    store.forget_seal(VdiId(2)).expect("forgotten");
    for _ in 0..9_000 {
        store.seal(VdiId(1), Generation(4)).expect("sealed");
    }
    drop(store);
    fs.power_cut(1);
    let store = open(&fs);
    assert_eq!(store.sealed(VdiId(1)), Generation(5));
    assert_eq!(store.sealed(VdiId(2)), Generation(0));
    assert_eq!(store.sealed_vdis(), [VdiId(1)]);
}

#[test]
fn a_trim_gives_space_back_on_a_real_disk() {
    use std::os::unix::fs::MetadataExt;
    let dir = tempfile::tempdir().expect("tempdir");
    let store = LocalStore::open(Arc::new(RealFs), dir.path(), Options::default()).expect("opens");
    store.create(&key(0), 1 << 20).expect("created");
    let blocks = || {
        store.flush_all().expect("flushed");
        let path = key(0).path(&dir.path().join("objects"));
        std::fs::metadata(path).expect("there").blocks() * 512
    };
    let empty = blocks();
    store.write(&key(0), &data(1, 0, vec![7; 1 << 20])).expect("written");
    assert!(blocks() >= empty + (1 << 20));
    store.write(&key(0), &zero(2, 0, 1 << 20, true)).expect("trimmed");
    assert!(blocks() < empty + (1 << 18));
    let out = store.read(&key(0), 100, 5000).expect("read");
    assert_eq!(out.segments, [Segment::Hole(5000)]);
    store.write(&key(0), &zero(3, 0, 1 << 20, false)).expect("zeroed");
    assert!(blocks() >= empty + (1 << 20), "without punching the space is taken");
    assert!(store.space().expect("known").total > 1 << 20);
    let quick = store.read_nowait(&key(0), 0, 4096);
    assert!(quick.is_none_or(|out| out.expect("read").to_vec() == vec![0; 4096]));
}

#[test]
#[ignore = "prints times; run with --release --nocapture"]
fn speed_of_small_cached_blocks() {
    let dir = tempfile::tempdir().expect("tempdir");
    let store = LocalStore::open(Arc::new(RealFs), dir.path(), Options::default()).expect("opens");
    store.create(&key(0), 4 << 20).expect("created");
    store.write(&key(0), &data(1, 0, vec![7; 4 << 20])).expect("written");
    let write = data(2, 4096, block(1));
    let rounds = 100_000;
    let time = |name: &str, work: &dyn Fn()| {
        let start = std::time::Instant::now();
        (0..rounds).for_each(|_| work());
        println!("{name}: {:?} each", start.elapsed() / rounds);
    };
    time("write 4 KiB", &|| store.write(&key(0), &write).expect("written"));
    time("read 4 KiB", &|| assert!(store.read(&key(0), 4096, 4096).is_ok()));
    time("read_nowait 4 KiB", &|| assert!(store.read_nowait(&key(0), 4096, 4096).is_some()));
}
