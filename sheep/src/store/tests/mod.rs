//! Tests of the whole store: against an oracle, through power cuts, with faults, with damage, byte for byte.

mod damage;
mod faults;
mod golden;
mod on_disk;
mod oracle;
mod power;
mod steady;

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use wire::checksum::{self, BLOCK_SIZE};
use wire::id::{Birth, Generation, Oid, SlotIndex, VdiId, Version};
use wire::policy::Copies;

use super::{Error, FileSystem, LocalStore, ObjectKey, Options, SimFs, Write, WriteKind};

const BLOCK: u64 = BLOCK_SIZE as u64;
const DIR: &str = "/";

fn key(index: u64) -> ObjectKey {
    ObjectKey {
        copies: Copies::new(3).expect("fits"),
        slot: SlotIndex((index % 2) as u32),
        oid: Oid::data(VdiId(1 + index % 3), index),
        birth: Birth(1 << 24 | index),
    }
}

fn open_with(fs: &SimFs, options: Options) -> Result<LocalStore, Error> {
    LocalStore::open(Arc::new(fs.clone()), Path::new(DIR), options)
}

fn try_open(fs: &SimFs) -> Result<LocalStore, Error> {
    open_with(fs, Options { flush_threads: 1, ..Options::default() })
}

fn open(fs: &SimFs) -> LocalStore {
    try_open(fs).expect("opens")
}

fn version(seq: u64) -> Version {
    Version { generation: Generation(1), seq }
}

fn data(seq: u64, offset: u64, bytes: Vec<u8>) -> Write {
    let crcs = checksum::of_pieces(offset, &bytes);
    Write { version: version(seq), offset, kind: WriteKind::Data { data: bytes.into(), crcs } }
}

fn zero(seq: u64, offset: u64, len: u64, punch: bool) -> Write {
    Write { version: version(seq), offset, kind: WriteKind::Zero { len, punch } }
}

/// A block that differs from others.
fn block(byte: u8) -> Vec<u8> {
    (0..BLOCK_SIZE).map(|i| byte ^ (i / 512) as u8).collect()
}

fn read_all(store: &LocalStore, key: &ObjectKey) -> Result<Vec<u8>, Error> {
    let size = store.size(key)?;
    store.read(key, 0, size).map(|out| out.to_vec())
}

/// Settles all suspects as the only copy would.
fn settle(store: &LocalStore) {
    for (key, mask) in store.suspects() {
        let torn = store.settle_torn(&key, mask).expect("readable");
        store.accept_torn(&key, &torn).expect("torn, not damaged");
        store.clear_suspect(&key);
    }
}

fn object_path(key: &ObjectKey) -> std::path::PathBuf {
    key.path(&Path::new(DIR).join("objects"))
}

fn check_segments(out: &super::ReadOut, offset: u64) {
    let mut at = offset;
    for segment in &out.segments {
        if let super::Segment::Data { data, crcs } = segment {
            assert_eq!(*crcs, checksum::of_pieces(at, data));
            checksum::verify(at, &Bytes::clone(data), crcs).expect("pieces match");
        }
        at += segment.len();
    }
}

fn as_fs(fs: &SimFs) -> Arc<dyn FileSystem> {
    Arc::new(fs.clone())
}
