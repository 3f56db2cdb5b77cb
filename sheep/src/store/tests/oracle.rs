//! Any sequence of writes, trims and reads gives what an array of bytes would.

use proptest::prelude::*;

use super::super::RealFs;
use super::*;

#[derive(Debug, Clone)]
enum Op {
    Data { offset: u64, len: u64, byte: u8 },
    Zero { offset: u64, len: u64, punch: bool },
    Read { offset: u64, len: u64 },
    Flush,
    Reopen { power: Option<u64> },
    Verify,
}

const BLOCKS: u64 = 70;
const SIZE: u64 = BLOCKS * BLOCK;

fn range() -> impl Strategy<Value = (u64, u64)> {
    let aligned = (0..BLOCKS, 0..6u64).prop_map(|(first, n)| (first * BLOCK, n * BLOCK));
    let any = (0..SIZE, 0..3 * BLOCK);
    prop_oneof![aligned, any].prop_map(|(offset, len)| (offset, len.min(SIZE - offset)))
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (range(), any::<u8>()).prop_map(|((offset, len), byte)| Op::Data { offset, len, byte }),
        2 => (range(), any::<bool>()).prop_map(|((offset, len), punch)| Op::Zero { offset, len, punch }),
        4 => range().prop_map(|(offset, len)| Op::Read { offset, len }),
        1 => Just(Op::Flush),
        1 => Just(Op::Reopen { power: None }),
        1 => any::<u64>().prop_map(|seed| Op::Reopen { power: Some(seed) }),
        1 => Just(Op::Verify),
    ]
}

/// Runs the operations; `reopen` ends the process, with the power if a seed is given, and starts another.
fn run(ops: &[Op], mut reopen: impl FnMut(Option<LocalStore>, Option<u64>) -> LocalStore) {
    let mut store = reopen(None, None);
    let key = key(0);
    store.create(&key, SIZE as u32).expect("created");
    let mut model = vec![0u8; SIZE as usize];
    let mut seq = 0;
    for op in ops {
        match *op {
            Op::Data { offset, len, byte } => {
                seq += 1;
                let bytes: Vec<u8> = (0..len).map(|i| byte.wrapping_add(i as u8)).collect();
                model[offset as usize..][..len as usize].copy_from_slice(&bytes);
                store.write(&key, &data(seq, offset, bytes)).expect("written");
            }
            Op::Zero { offset, len, punch } => {
                seq += 1;
                model[offset as usize..][..len as usize].fill(0);
                store.write(&key, &zero(seq, offset, len, punch)).expect("written");
            }
            Op::Read { offset, len } => {
                let out = store.read(&key, offset, len as u32).expect("read");
                check_segments(&out, offset);
                assert_eq!(out.to_vec(), model[offset as usize..][..len as usize]);
                if let Some(quick) = store.read_nowait(&key, offset, len as u32) {
                    assert_eq!(quick.expect("read"), out);
                }
            }
            Op::Flush => store.flush_vdi(key.creator()).expect("flushed"),
            Op::Reopen { power } => {
                if power.is_some() {
                    store.flush_vdi(key.creator()).expect("flushed");
                }
                store = reopen(Some(store), power);
                settle(&store);
            }
            Op::Verify => assert_eq!(store.verify(&key).expect("readable"), [0u32; 0]),
        }
        assert_eq!(store.version(&key).expect("whole").seq, seq);
    }
    assert_eq!(read_all(&store, &key).expect("read"), model);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn an_object_reads_like_an_array(ops in prop::collection::vec(op(), 1..60)) {
        let fs = SimFs::new();
        run(&ops, |old, power| {
            drop(old);
            match power {
                Some(seed) => fs.power_cut(seed),
                None => fs.process_kill(),
            }
            open(&fs)
        });
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8, ..ProptestConfig::default() })]

    #[test]
    fn it_does_on_a_real_disk_too(ops in prop::collection::vec(op(), 1..60)) {
        let dir = tempfile::tempdir().expect("tempdir");
        run(&ops, |old, _| {
            drop(old);
            LocalStore::open(Arc::new(RealFs), dir.path(), Options::default()).expect("opens")
        });
    }
}

#[test]
fn readers_and_writers_of_one_object_do_not_see_each_others_halves() {
    let dir = tempfile::tempdir().expect("tempdir");
    let store = LocalStore::open(Arc::new(RealFs), dir.path(), Options::default()).expect("opens");
    let key = key(0);
    store.create(&key, 64 << 12).expect("created");
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let store = &store;
            scope.spawn(move || {
                for round in 0..200 {
                    let offset = (thread * 16 + round % 16) * BLOCK;
                    let bytes = block(round as u8);
                    store.write(&key, &data(round, offset, bytes.clone())).expect("written");
                    assert_eq!(store.read(&key, offset, 4096).expect("read").to_vec(), bytes);
                    read_all(store, &key).expect("no half-written block is taken for damage");
                    if round % 50 == 0 {
                        store.flush_all().expect("flushed");
                    }
                }
            });
        }
    });
    assert_eq!(store.verify(&key).expect("readable"), [0u32; 0]);
}

#[test]
fn what_does_not_fit_or_match_is_refused_and_changes_nothing() {
    let fs = SimFs::new();
    let store = open(&fs);
    let key = key(0);
    for size in [0, 1, 4095, 4097, super::super::OBJECT_SIZE_MAX + 4096, u32::MAX] {
        assert!(matches!(store.create(&key, size), Err(Error::Invalid { .. })), "{size}");
    }
    assert!(matches!(store.version(&key), Err(Error::NotFound(_))));
    assert!(matches!(store.write(&key, &zero(1, 0, 4096, true)), Err(Error::NotFound(_))));
    store.create(&key, 8192).expect("created");
    assert!(matches!(store.create(&key, 4096), Err(Error::Invalid { .. })));
    for (offset, len) in [(0, 8193), (8192, 1), (u64::MAX, 1), (1, u64::MAX), (8193, 0)] {
        assert!(matches!(store.write(&key, &zero(1, offset, len, true)), Err(Error::Invalid { .. })));
    }
    assert!(matches!(store.read(&key, 8000, 1000), Err(Error::Invalid { .. })));
    let mut bad = data(1, 0, block(1));
    if let WriteKind::Data { crcs, .. } = &mut bad.kind {
        crcs[0] ^= 1;
    }
    assert!(matches!(store.write(&key, &bad), Err(Error::Payload { .. })));
    assert_eq!(store.version(&key).expect("whole"), Version::default());
    assert_eq!(read_all(&store, &key).expect("read"), vec![0; 8192]);
}
