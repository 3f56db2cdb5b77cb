//! Files that are damaged, replaced or removed while the store has them open.

use super::super::{Astray, BlockCopy, BlockEntry, Part};
use super::damage::filled;
use super::*;

/// An object in use, as [`filled`] leaves it.
fn in_use() -> (SimFs, LocalStore, Vec<u8>) {
    let fs = SimFs::new();
    let (store, expected) = filled(&fs);
    assert!(store.on_disk(&key(0)).expect("readable").is_same());
    (fs, store, expected)
}

fn removed(fs: &SimFs) {
    as_fs(fs).remove(&object_path(&key(0))).expect("removed");
}

fn replaced(fs: &SimFs) {
    removed(fs);
    as_fs(fs).create(&object_path(&key(0))).expect("created");
}

fn flipped(fs: &SimFs, byte: u64) {
    fs.flip_bit(&object_path(&key(0)), byte * 8).expect("flipped");
}

#[test]
fn what_the_disk_lost_is_put_back_durably() {
    type Harm = fn(&SimFs);
    let harms: [(Harm, Option<Astray>, &[u32]); 5] = [
        (removed, Some(Astray::Gone), &[]),
        (replaced, Some(Astray::Other), &[]),
        (|fs| flipped(fs, 20), Some(Astray::Other), &[]),
        (|fs| flipped(fs, 513), Some(Astray::Other), &[]),
        (|fs| flipped(fs, 4096 + 2 * 8), None, &[2]),
    ];
    for (number, (harm, astray, blocks)) in harms.into_iter().enumerate() {
        let (fs, store, mut expected) = in_use();
        harm(&fs);
        let found = store.on_disk(&key(0)).expect("readable");
        assert_eq!((found.astray, &found.blocks[..]), (astray, blocks), "{number}");
        // Reads and writes go on, and what is written is put back too.
        assert!(read_all(&store, &key(0)).expect("from the open file") == expected, "{number}");
        store.write(&key(0), &data(3, 4096, block(3))).expect("written");
        expected[4096..8192].copy_from_slice(&block(3));
        // What is put back is durable with that.
        if !store.reinstate(&key(0)).expect("put back") {
            assert_eq!(number, 3, "only a version is mended by the write itself");
            store.flush_all().expect("flushed");
        }
        assert!(!store.reinstate(&key(0)).expect("nothing to do"));
        assert!(store.on_disk(&key(0)).expect("readable").is_same());
        drop(store);
        fs.power_cut(number as u64);
        let store = open(&fs);
        assert!(read_all(&store, &key(0)).expect("durable") == expected, "{number}");
        assert_eq!(store.version(&key(0)).expect("durable"), version(3));
    }
}

#[test]
fn a_damaged_block_stays_damaged_when_its_file_is_put_back() {
    let (fs, store, _) = in_use();
    flipped(&fs, 8192);
    removed(&fs);
    assert!(store.reinstate(&key(0)).expect("put back"));
    assert_eq!(store.verify(&key(0)).expect("readable"), [0]);
}

#[test]
fn a_removed_file_in_use_is_still_listed_and_its_object_can_be_made_anew() {
    let (fs, store, _) = in_use();
    removed(&fs);
    let listed = store.list_slot(key(0).copies, key(0).slot).expect("lists");
    assert_eq!(listed.len(), 1, "whoever catches up must not take it for deleted");
    assert!(!store.remove(&key(0)).expect("gone already"));
    assert!(store.list_slot(key(0).copies, key(0).slot).expect("lists").is_empty());
    store.create(&key(0), 3 * 4096).expect("created");
    assert!(store.on_disk(&key(0)).expect("readable").is_same());
    assert_eq!(read_all(&store, &key(0)).expect("empty"), vec![0; 3 * 4096]);
}

/// The store with a byte flipped, and blocks 0 and 2 as another copy has them.
fn damaged_at(bytes: &[u64]) -> (LocalStore, Vec<BlockCopy>, Vec<u8>) {
    let (fs, store, expected) = in_use();
    let lent = store.read_blocks(&key(0), &[0, 2]).expect("whole");
    drop(store);
    bytes.iter().for_each(|byte| flipped(&fs, *byte));
    (open(&fs), lent, expected)
}

fn borrow(store: &LocalStore, offered: &[BlockCopy]) -> u32 {
    store.borrow(&key(0), offered).expect("readable")
}

#[test]
fn a_damaged_block_is_borrowed_where_entry_or_bytes_say_that_it_is_the_same() {
    for byte in [8192, 4096] {
        let (store, lent, expected) = damaged_at(&[byte]);
        assert_eq!(borrow(&store, &lent), 1, "the other is sound");
        assert_eq!(read_all(&store, &key(0)).expect("whole"), expected);
        assert_eq!(store.version(&key(0)).expect("kept"), version(2));
        assert_eq!(borrow(&store, &lent), 0);
    }
}

#[test]
fn a_block_that_may_be_an_older_one_is_not_borrowed() {
    let older = |seq: u64, byte: u8| {
        let bytes = block(byte);
        BlockCopy {
            index: 0,
            entry: BlockEntry::present(crc32c::crc32c(&bytes), seq),
            data: Some(bytes.into()),
        }
    };
    // Another write, another writer's write of the same number, and absent; the data damaged, the entry, and both.
    for bytes in [&[8192][..], &[4096], &[4096, 8192]] {
        let (store, lent, _) = damaged_at(bytes);
        let absent = BlockCopy { index: 0, entry: BlockEntry::absent(0, 0), data: None };
        let mut torn = lent[0].clone();
        torn.data = Some(block(9).into());
        for offered in [older(0, 1), older(1, 7), absent, torn] {
            let expected = u32::from(bytes == [4096] && offered.data.as_deref() == Some(&block(1)[..]));
            if expected == 0 {
                assert_eq!(
                    borrow(&store, std::slice::from_ref(&offered)),
                    0,
                    "{bytes:?} {:?}",
                    offered.entry
                );
                let error = read_all(&store, &key(0)).expect_err("damaged still");
                assert!(matches!(error, Error::Damaged { part: Part::Block(0), .. }), "{error}");
            }
        }
    }
    let (store, lent, _) = damaged_at(&[4096, 8192]);
    assert_eq!(borrow(&store, &lent), 0, "neither entry nor bytes are left to tell");
}
