//! Fuzz targets of the store: `object_files`, an object's header, version, table and data; `slot_files`, everything
//! beside them: intents, seals, requests, and what lies in the directories of slots.
//!
//! The bytes say what is changed in a store that was closed in order: bytes, lengths, checksums put right, other
//! files. What must hold: the store opens or says why not; what it then gives to read is as its checksums say, and
//! where no checksum was put right it is what was written; what is written after that is read back.

use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use wire::checksum::{self, BLOCK_SIZE};
use wire::id::{Birth, Generation, Oid, SlotIndex, VdiId, Version};
use wire::peer::{AppliedRequest, ObjectRef, RequestId, VersionRef};
use wire::policy::Copies;

use super::format::{HEADER_LEN, TABLE_OFFSET, VERSION_LEN, VERSION_OFFSET, data_offset};
use super::{File, FileSystem, LocalStore, ObjectKey, Options, Segment, SimFs, Write, WriteKind};
use crate::fuzz::Source;

const DIR: &str = "/";
const SIZE: u32 = 4 * BLOCK_SIZE as u32;
const BOOT: u128 = 7;
const VDI: VdiId = VdiId(1);
const CHANGES_MAX: usize = 32;

fn key(index: u64) -> ObjectKey {
    ObjectKey {
        copies: Copies::new(3).expect("in range"),
        slot: SlotIndex(5),
        oid: Oid::data(VDI, index),
        birth: Birth(1 << 24 | index),
    }
}

/// What is in every object: a block of data, a hole, a block and a half of data.
fn content() -> Vec<u8> {
    let mut bytes = vec![0; SIZE as usize];
    bytes[..BLOCK_SIZE].fill(1);
    bytes[2 * BLOCK_SIZE..3 * BLOCK_SIZE + 2048].fill(2);
    bytes
}

fn write(
    store: &LocalStore,
    key: &ObjectKey,
    seq: u64,
    offset: u64,
    data: Vec<u8>,
) -> Result<(), super::Error> {
    let kind = WriteKind::Data { crcs: checksum::of_pieces(offset, &data), data: data.into() };
    let version = Version { generation: Generation(1), seq };
    store.write(key, &Write { version, offset, kind })
}

/// A store with two objects that is closed, one request kept, a seal; and one that was not closed, so that its
/// intents count.
static STORES: LazyLock<[SimFs; 2]> = LazyLock::new(|| {
    [true, false].map(|closed| {
        let fs = SimFs::new();
        let store = open(&fs).expect("a new store");
        for index in 0..2 {
            store.create(&key(index), SIZE).expect("created");
            write(&store, &key(index), 1, 0, content()[..BLOCK_SIZE].to_vec()).expect("written");
            let from = 2 * BLOCK_SIZE;
            let rest = content()[from..from + BLOCK_SIZE + 2048].to_vec();
            write(&store, &key(index), 2, from as u64, rest).expect("written");
        }
        store.seal(VDI, Generation(1)).expect("sealed");
        store.seal(VdiId(2), Generation(9)).expect("sealed");
        store.forget_seal(VdiId(2)).expect("forgotten");
        store.keep_request(&applied(1)).expect("kept");
        if closed {
            store.close().expect("closed");
        }
        fs
    })
});

fn applied(number: u64) -> AppliedRequest {
    AppliedRequest {
        request: RequestId { node: 9, start: 1, number },
        object: ObjectRef::new(key(0).oid, key(0).birth, key(0).copies, key(0).slot, SIZE),
        offset: 0,
        version: VersionRef { generation: 1, seq: 1 },
        number,
    }
}

fn open(fs: &SimFs) -> Result<LocalStore, super::Error> {
    let options = Options { boot: BOOT, flush_threads: 1, ..Options::default() };
    LocalStore::open(Arc::new(fs.clone()), Path::new(DIR), options)
}

pub(crate) fn object_files(data: &[u8]) {
    let mut source = Source::new(data);
    let fs = STORES[usize::from(source.below(2))].copy();
    let path = key(0).path(&Path::new(DIR).join("objects"));
    let file = fs.open(&path).expect("there");
    let mut forged = false;
    for _ in 0..CHANGES_MAX {
        if source.is_empty() {
            break;
        }
        forged |= change_object(&*file, &mut source);
    }
    drop(file);
    let store = open(&fs).expect("objects are not read to open a store");
    look(&store, &key(0), forged);
    look(&store, &key(1), false);
    go_on(&store);
}

/// Changes an object's file; says whether a checksum was made to fit what is there.
fn change_object(file: &dyn File, source: &mut Source<'_>) -> bool {
    let how = source.u8();
    let at = match source.below(4) {
        0 => u64::from(source.u8()) % HEADER_LEN as u64,
        1 => VERSION_OFFSET as u64 + u64::from(source.u8()) % VERSION_LEN as u64,
        2 => TABLE_OFFSET + u64::from(source.u8()) % 32,
        _ => u64::from(source.u16()) % (data_offset(SIZE) + u64::from(SIZE)),
    };
    match how % 8 {
        0 => file.set_size(at).expect("cut"),
        1 => put_crc(file, 0, 508),
        2 => put_crc(file, VERSION_OFFSET as u64, 20),
        3 => {
            // A table entry for what is in the block.
            let index = at % 4;
            let mut block = vec![0; BLOCK_SIZE];
            if file.read_at(&mut block, data_offset(SIZE) + index * BLOCK_SIZE as u64).is_ok() {
                let entry = super::BlockEntry::present(crc32c::crc32c(&block), 1).encode();
                file.write_at(&entry, TABLE_OFFSET + index * 8).expect("written");
            }
        }
        _ => {
            let data = source.bytes(1 + usize::from(how >> 3));
            file.write_at(data, at).expect("written");
        }
    }
    (1..=3).contains(&(how % 8))
}

fn put_crc(file: &dyn File, at: u64, len: usize) {
    let mut bytes = vec![0; len];
    if file.read_at(&mut bytes, at).is_ok() {
        file.write_at(&crc32c::crc32c(&bytes).to_le_bytes(), at + len as u64).expect("written");
    }
}

/// Everything that is asked of an object gets an answer, and no bytes but those that were written.
fn look(store: &LocalStore, key: &ObjectKey, forged: bool) {
    let version = store.version(key);
    let Ok(size) = store.size(key) else { return };
    let damaged = store.verify(key);
    for block in 0..size.div_ceil(BLOCK_SIZE as u32).min(64) {
        let offset = u64::from(block) * BLOCK_SIZE as u64;
        let Ok(out) = store.read(key, offset, BLOCK_SIZE as u32) else { continue };
        assert!(
            damaged.as_ref().is_ok_and(|damaged| !damaged.contains(&block)),
            "block {block} is read, and damaged"
        );
        for segment in &out.segments {
            if let Segment::Data { data, crcs } = segment {
                checksum::verify(offset, data, crcs).expect("as its checksums say");
            }
        }
        let expected = &content()[block as usize * BLOCK_SIZE..][..BLOCK_SIZE];
        assert!(forged || out.to_vec() == expected, "block {block} reads as what was never written");
    }
    assert!(forged || size == SIZE, "{size} bytes");
    if !forged && let Ok(version) = version {
        assert_eq!(version, Version { generation: Generation(1), seq: 2 });
    }
    _ = store.table(key);
    _ = store.on_disk(key);
    let suspects = store.suspects();
    if let Some((_, mask)) = suspects.iter().find(|(suspect, _)| suspect == key)
        && let Ok(torn) = store.settle_torn(key, *mask)
    {
        store.accept_torn(key, &torn).expect("torn, and not damaged");
        store.clear_suspect(key);
    }
}

/// A store that has opened takes writes, and gives them back to the next process.
fn go_on(store: &LocalStore) {
    let new = ObjectKey { birth: Birth(0x77), ..key(7) };
    store.create(&new, SIZE).expect("created");
    write(store, &new, 1, 512, vec![3; 5000]).expect("written");
    store.flush_all().expect("flushed");
    let out = store.read(&new, 512, 5000).expect("read");
    assert_eq!(out.to_vec(), [3; 5000]);
}

pub(crate) fn slot_files(data: &[u8]) {
    let mut source = Source::new(data);
    let fs = STORES[usize::from(source.below(2))].copy();
    let mut forged = false;
    for _ in 0..CHANGES_MAX {
        if source.is_empty() {
            break;
        }
        forged |= change_files(&fs, &mut source);
    }
    let Ok(store) = open(&fs) else { return };
    // Seals are promises: they are as they were, or the store does not open.
    assert!(forged || store.sealed(VDI) == Generation(1), "a seal is forgotten");
    for (_, request) in store.take_found_requests() {
        assert!(forged || request == applied(1), "a request that nobody made: {request:?}");
    }
    for vdi in store.creators().expect("listed") {
        store.list_vdi(vdi).expect("listed").iter().for_each(|key| look(&store, key, forged));
    }
    for (copies, slot) in store.list_slots() {
        store.list_slot(copies, slot).expect("listed");
    }
    go_on(&store);
    store.seal(VdiId(3), Generation(4)).expect("sealed");
    store.keep_request(&applied(2)).expect("kept");
    drop(store);
    let again = open(&fs).expect("a store that has opened opens again");
    assert_eq!(again.sealed(VdiId(3)), Generation(4));
    assert!(again.take_found_requests().iter().any(|(_, request)| *request == applied(2)), "forgotten");
}

/// Changes files beside the objects'; says whether what is there could have been written by a store.
fn change_files(fs: &SimFs, source: &mut Source<'_>) -> bool {
    let root = Path::new(DIR);
    let names = ["seals.1", "intents.1", "intents.2", "requests", "objects/format"];
    let path = root.join(source.one_of(&names));
    let how = source.u8();
    match how % 8 {
        0 => {
            let text = String::from_utf8_lossy(source.piece()).replace(['/', '\0'], "_");
            let dir = source.one_of(&["", "objects", "objects/r3", "objects/r3/00005", "objects/tmp"]);
            // A file whose name no store gives is refused, one with such a name may count.
            make(fs, &root.join(dir), &text, source.flag())
        }
        1 => {
            _ = fs.remove(&path);
            true
        }
        _ => {
            let Ok(file) = fs.open(&path) else { return false };
            change_records(&*file, how, source)
        }
    }
}

/// Makes a file or a directory.
fn make(fs: &SimFs, dir: &Path, name: &str, is_dir: bool) -> bool {
    let path: PathBuf = dir.join(name);
    if name.is_empty() || name == "." || name == ".." {
        return false;
    }
    if is_dir { fs.create_dir(&path).is_ok() } else { fs.create(&path).is_ok() }
}

/// Changes a file of records of 64 or 128 bytes; says whether a checksum was put right.
fn change_records(file: &dyn File, how: u8, source: &mut Source<'_>) -> bool {
    let len = file.size().expect("a length");
    let at = u64::from(source.u16());
    match how % 8 {
        2 => {
            file.set_size(at % (len + 200)).expect("cut");
            // What ends early may be what a crash left.
            true
        }
        3 => {
            // A record of a log, with its checksum: number 1 or 2, at its index.
            let number = u64::from(source.below(3));
            let index = at as u32 % 8;
            let mut rest = [0; 60];
            let given = source.bytes(60);
            rest[..given.len()].copy_from_slice(given);
            let place = [&number.to_le_bytes()[..], &index.to_le_bytes()].concat();
            let crc = crc32c::crc32c_append(crc32c::crc32c(&place), &rest);
            file.write_at(&crc.to_le_bytes(), (u64::from(index) + 1) * 64).expect("written");
            file.write_at(&rest, (u64::from(index) + 1) * 64 + 4).expect("written");
            true
        }
        4 => {
            // A header with its checksum, of a log or of the requests.
            let len = if source.flag() { 64 } else { 128 };
            put_crc(file, 0, len - 4);
            true
        }
        5 => {
            // A request with its checksum.
            let place = at as u32 % 4;
            let mut record = [0; 124];
            let given = source.bytes(124);
            record[..given.len()].copy_from_slice(given);
            let crc = crc32c::crc32c_append(crc32c::crc32c(&place.to_le_bytes()), &record);
            let at = (u64::from(place) + 1) * 128;
            file.write_at(&record, at).expect("written");
            file.write_at(&crc.to_le_bytes(), at + 124).expect("written");
            true
        }
        _ => {
            let data = source.bytes(1 + usize::from(how >> 3));
            file.write_at(data, at % (len + 8)).expect("written");
            // In the last batch of a log, that is what a crash may leave.
            true
        }
    }
}
