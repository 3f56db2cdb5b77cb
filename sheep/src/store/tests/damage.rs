//! Damage anywhere is found, and never served.

use super::super::Part;
use super::*;

/// Three blocks: data, never written, data.
pub(super) fn filled(fs: &SimFs) -> (LocalStore, Vec<u8>) {
    let store = open(fs);
    let key = key(0);
    store.create(&key, 3 * 4096).expect("created");
    store.write(&key, &data(1, 0, block(1))).expect("written");
    store.write(&key, &data(2, 8192, block(2))).expect("written");
    store.close().expect("closed");
    (store, [block(1), vec![0; 4096], block(2)].concat())
}

#[test]
fn a_flipped_bit_is_never_served() {
    let fs = SimFs::new();
    let (store, expected) = filled(&fs);
    drop(store);
    let path = object_path(&key(0));
    let table = 4096..4096 + 3 * 8;
    let data = 8192 + 3 * 4096;
    let bytes = (0..540).chain(table.clone()).chain((8192..data).step_by(97));
    for byte in bytes {
        for bit in [0, 3, 7] {
            fs.flip_bit(&path, byte * 8 + bit).expect("flipped");
            let store = open(&fs);
            assert_eq!(store.suspects(), []);
            let in_hole = (8192 + 4096..8192 + 8192).contains(&byte);
            let unused = (536..540).contains(&byte) || in_hole;
            match byte {
                512..536 => {
                    let error = store.version(&key(0)).expect_err("damaged");
                    assert!(matches!(error, Error::Damaged { part: Part::Version, .. }), "{byte}: {error}");
                    assert_eq!(store.list_slot(key(0).copies, key(0).slot).expect("lists")[0].content, None);
                }
                _ if unused => {}
                0..512 => {
                    let error = store.version(&key(0)).expect_err("damaged");
                    assert!(matches!(error, Error::Damaged { part: Part::Header, .. }), "{byte}: {error}");
                }
                _ => {
                    let block = if byte >= 8192 { (byte - 8192) / 4096 } else { (byte - 4096) / 8 };
                    // The low bits of a stamp say only who wrote a present block last.
                    let stamp = table.contains(&byte) && byte % 8 >= 4 && block != 1;
                    if !stamp {
                        let damaged = store.verify(&key(0)).expect("readable");
                        assert_eq!(damaged, [block as u32], "byte {byte} bit {bit}");
                        let error = read_all(&store, &key(0)).expect_err("damaged");
                        assert!(matches!(error, Error::Damaged { part: Part::Block(_), .. }), "{error}");
                        assert!(store.read_nowait(&key(0), 0, 3 * 4096).is_none_or(|r| r.is_err()));
                    }
                }
            }
            if let Ok(found) = read_all(&store, &key(0)) {
                assert_eq!(found, expected, "byte {byte} bit {bit}");
            }
            drop(store);
            fs.flip_bit(&path, byte * 8 + bit).expect("flipped back");
        }
    }
    assert_eq!(read_all(&open(&fs), &key(0)).expect("whole again"), expected);
}

#[test]
fn damage_is_not_spread_by_a_partial_write_and_is_mended_by_a_patch() {
    let fs = SimFs::new();
    let (store, expected) = filled(&fs);
    let good = store.read_blocks(&key(0), &[0, 1, 2]).expect("whole");
    drop(store);
    for byte in [8192, 4096, 4096 + 8] {
        fs.flip_bit(&object_path(&key(0)), byte * 8).expect("flipped");
    }
    let store = open(&fs);
    for offset in [1, 4097] {
        let error = store.write(&key(0), &data(3, offset, vec![9; 10])).expect_err("damaged");
        assert!(matches!(error, Error::Damaged { .. }), "{error}");
    }
    let mut bad = good.clone();
    bad[2].entry.crc ^= 1;
    assert!(matches!(store.patch(&key(0), &bad), Err(Error::Invalid { .. })));
    assert_eq!(store.verify(&key(0)).expect("readable"), [0, 1]);
    store.patch(&key(0), &good).expect("patched");
    assert_eq!(read_all(&store, &key(0)).expect("whole"), expected);
    assert_eq!(store.version(&key(0)).expect("kept"), version(2));
}

#[test]
fn a_file_that_ends_early_is_damage_and_no_failure_of_the_disk() {
    let fs = SimFs::new();
    let store = open(&fs);
    store.create(&key(0), 3 * 4096).expect("created");
    store.write(&key(0), &data(1, 0, block(1))).expect("written");
    store.write(&key(0), &data(2, 8192, block(2))).expect("written");
    drop(store);
    as_fs(&fs)
        .open(&object_path(&key(0)))
        .and_then(|file| file.set_size(8192 + 2 * 4096 + 100))
        .expect("cut");
    let store = open(&fs);
    // Not closed in order, so it is a suspect; but no torn write makes a file shorter.
    let (suspect, mask) = store.suspects()[0];
    assert_eq!((suspect, store.settle_torn(&suspect, mask).expect("readable")), (key(0), vec![]));
    let lost = |error| matches!(error, Error::Damaged { part: Part::Block(2), .. });
    assert!(lost(store.accept_torn(&key(0), &[2]).expect_err("there is nothing to accept")));
    assert!(lost(store.write(&key(0), &data(3, 8193, vec![9; 10])).expect_err("the rest is not known")));
    assert_eq!(store.verify(&key(0)).expect("readable"), [2]);
    store.write(&key(0), &data(3, 8192, block(3))).expect("a whole block is not read first");
    assert_eq!(read_all(&store, &key(0)).expect("whole"), [block(1), vec![0; 4096], block(3)].concat());
}

#[test]
fn a_damaged_version_is_mended_by_setting_it() {
    let fs = SimFs::new();
    drop(filled(&fs));
    fs.flip_bit(&object_path(&key(0)), 512 * 8).expect("flipped");
    let store = open(&fs);
    store.set_version(&key(0), version(9)).expect("set");
    assert_eq!(store.version(&key(0)).expect("mended"), version(9));
    store.flush_all().expect("flushed");
    drop(store);
    fs.power_cut(1);
    assert_eq!(open(&fs).version(&key(0)).expect("durable"), version(9));
}

#[test]
fn rot_outside_the_marked_regions_is_not_accepted_as_torn() {
    let fs = SimFs::new();
    drop(filled(&fs));
    fs.flip_bit(&object_path(&key(0)), 8192 * 8).expect("flipped");
    let store = open(&fs);
    assert!(matches!(store.accept_torn(&key(0), &[0]), Err(Error::Damaged { .. })));
}

#[test]
fn lost_intents_make_every_object_a_suspect_and_lost_seals_are_refused() {
    let fs = SimFs::new();
    let (store, _) = filled(&fs);
    store.create(&key(1), 4096).expect("created");
    store.seal(VdiId(1), Generation(1)).expect("sealed");
    drop(store);
    let log = |stem: &str| {
        let names = as_fs(&fs).list(Path::new(DIR)).expect("lists");
        let entry = names.into_iter().find(|e| e.name.starts_with(stem)).expect("there is one");
        Path::new(DIR).join(entry.name)
    };
    fs.flip_bit(&log("intents."), 8 * 8).expect("flipped");
    let store = open(&fs);
    assert!(store.intent_damage().is_some());
    assert_eq!(store.suspects().len(), 2);
    assert!(store.suspects().iter().all(|(_, mask)| *mask == u64::MAX));
    drop(store);
    as_fs(&fs).remove(&log("intents.")).expect("removed");
    assert!(open(&fs).intent_damage().is_some());
    fs.flip_bit(&log("seals."), 8 * 8).expect("flipped");
    let error = try_open(&fs).map(drop).expect_err("refused").to_string();
    assert!(error.contains("seals."), "{error}");
    as_fs(&fs).remove(&log("seals.")).expect("removed");
    assert!(matches!(try_open(&fs), Err(Error::Format { .. })));
}

#[test]
fn a_directory_of_something_else_is_refused_by_name() {
    let fs = SimFs::new();
    drop(filled(&fs));
    for name in ["objects/notes.txt", "objects/r3/x", "objects/r3/00000/core"] {
        let path = Path::new(DIR).join(name);
        as_fs(&fs).create(&path).expect("created");
        let error = try_open(&fs).map(drop).expect_err("refused").to_string();
        assert!(error.contains(name) && error.contains("move it away"), "{error}");
        as_fs(&fs).remove(&path).expect("removed");
    }
    fs.flip_bit(&Path::new(DIR).join("objects/format"), 17 * 8).expect("flipped");
    let error = try_open(&fs).map(drop).expect_err("refused").to_string();
    assert!(error.contains("sheepdog objects 0") && error.contains("version of sheep"), "{error}");
    let fs = SimFs::new();
    as_fs(&fs).create_dir(&Path::new(DIR).join("objects")).expect("created");
    as_fs(&fs).create_dir(&Path::new(DIR).join("objects/r3")).expect("created");
    assert!(matches!(try_open(&fs), Err(Error::Format { .. })));
}
