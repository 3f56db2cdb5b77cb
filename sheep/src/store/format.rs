//! The bytes of an object's file: header, version record and block table.
//!
//! All numbers are little endian. Offsets in bytes:
//!
//! ```text
//!     0  magic "SHEEPOBJ"            512  version: generation   u64
//!     8  format = 1        u32       520  version: seq          u64
//!    12  block size = 4096 u32       528  flags = 0             u32
//!    16  oid               u128      532  CRC32C of 512..532    u32
//!    32  birth             u64       536  zeros, to 4096
//!    40  copies            u8
//!    41  zeros             3 bytes  4096  block table: per block {crc u32, stamp u32}
//!    44  slot              u32            zeros, to the next multiple of 4096
//!    48  object size       u32
//!    52  zeros, to 508                 D  data, D = 4096 + table rounded up to 4096
//!   508  CRC32C of 0..508  u32            (12288 for an object of 4 MiB)
//! ```
//!
//! The version record has a sector of its own, so a torn write of it leaves the header alone. The table is
//! written in full when the object is created: a block that was never written has an entry that says so,
//! and an entry of zeros is damage.

use wire::checksum::BLOCK_SIZE;
use wire::id::{Birth, Generation, Oid, SlotIndex, Version};
use wire::policy::Copies;

use super::key::ObjectKey;

/// The largest object, in bytes. Bounds the table that is held in memory for each open object.
pub const OBJECT_SIZE_MAX: u32 = 64 << 20;

pub(super) const FORMAT: u32 = 1;
pub(super) const HEADER_LEN: usize = 4096;
pub(super) const VERSION_OFFSET: usize = 512;
pub(super) const VERSION_LEN: usize = 24;
pub(super) const TABLE_OFFSET: u64 = HEADER_LEN as u64;
pub(super) const ENTRY_LEN: usize = 8;
const MAGIC: &[u8; 8] = b"SHEEPOBJ";
const HEADER_CRC: usize = 508;
/// Makes the checksum of an absent block differ from that of any plausible data.
const ABSENT_SALT: &[u8; 8] = b"\xa5absent\x5a";
const PRESENT: u32 = 1 << 31;

/// What the table says of one block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BlockEntry {
    /// CRC32C of the block's data, or of the entry itself when the block is absent.
    pub crc: u32,
    /// Bit 31: the block has data. The rest: low bits of the sequence number of the last write to it.
    pub stamp: u32,
}

impl BlockEntry {
    /// A block with data whose CRC32C is `crc`, last written by write `seq`.
    pub fn present(crc: u32, seq: u64) -> Self {
        Self { crc, stamp: PRESENT | low_bits(seq) }
    }

    /// Block `index`, which reads as zeros, last written by write `seq`.
    pub fn absent(index: u32, seq: u64) -> Self {
        let stamp = low_bits(seq);
        Self { crc: absent_crc(index, stamp), stamp }
    }

    /// Whether the block has data.
    pub fn is_present(self) -> bool {
        self.stamp & PRESENT != 0
    }

    /// Whether the entry says, undamaged, that block `index` is absent.
    pub fn is_absent(self, index: u32) -> bool {
        !self.is_present() && self.crc == absent_crc(index, self.stamp)
    }

    pub(super) fn encode(self) -> [u8; ENTRY_LEN] {
        let mut bytes = [0; ENTRY_LEN];
        bytes[..4].copy_from_slice(&self.crc.to_le_bytes());
        bytes[4..].copy_from_slice(&self.stamp.to_le_bytes());
        bytes
    }
}

fn low_bits(seq: u64) -> u32 {
    (seq & u64::from(!PRESENT)) as u32
}

fn absent_crc(index: u32, stamp: u32) -> u32 {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(ABSENT_SALT);
    bytes[8..12].copy_from_slice(&index.to_le_bytes());
    bytes[12..].copy_from_slice(&stamp.to_le_bytes());
    crc32c::crc32c(&bytes)
}

/// Whether an object can have `size` bytes.
pub(super) fn size_fits(size: u32) -> bool {
    size > 0 && size <= OBJECT_SIZE_MAX && size.is_multiple_of(BLOCK_SIZE as u32)
}

pub(super) fn block_count(size: u32) -> u32 {
    size / BLOCK_SIZE as u32
}

/// Where the data of an object of `size` bytes begins in its file.
pub(super) fn data_offset(size: u32) -> u64 {
    let table = u64::from(block_count(size)) * ENTRY_LEN as u64;
    TABLE_OFFSET + table.next_multiple_of(BLOCK_SIZE as u64)
}

/// The whole file of a new object up to its data.
pub(super) fn encode_new(key: &ObjectKey, size: u32) -> Vec<u8> {
    let table: Vec<BlockEntry> = (0..block_count(size)).map(|index| BlockEntry::absent(index, 0)).collect();
    encode_head(key, size, Version::default(), &table)
}

/// The whole file of an object up to its data.
pub(super) fn encode_head(key: &ObjectKey, size: u32, version: Version, table: &[BlockEntry]) -> Vec<u8> {
    let mut bytes = vec![0; data_offset(size) as usize];
    bytes[..8].copy_from_slice(MAGIC);
    bytes[8..12].copy_from_slice(&FORMAT.to_le_bytes());
    bytes[12..16].copy_from_slice(&(BLOCK_SIZE as u32).to_le_bytes());
    bytes[16..32].copy_from_slice(&key.oid.0.to_le_bytes());
    bytes[32..40].copy_from_slice(&key.birth.0.to_le_bytes());
    bytes[40] = key.copies.get();
    bytes[44..48].copy_from_slice(&key.slot.0.to_le_bytes());
    bytes[48..52].copy_from_slice(&size.to_le_bytes());
    let crc = crc32c::crc32c(&bytes[..HEADER_CRC]);
    bytes[HEADER_CRC..HEADER_CRC + 4].copy_from_slice(&crc.to_le_bytes());
    bytes[VERSION_OFFSET..VERSION_OFFSET + VERSION_LEN].copy_from_slice(&encode_version(version));
    for (entry, place) in table.iter().zip(bytes[HEADER_LEN..].chunks_exact_mut(ENTRY_LEN)) {
        place.copy_from_slice(&entry.encode());
    }
    bytes
}

/// The object and its size, from the first sector; `None` when it is damaged or of a format not known.
pub(super) fn decode_header(bytes: &[u8]) -> Option<(ObjectKey, u32)> {
    let header = bytes.get(..HEADER_CRC + 4)?;
    let whole = crc32c::crc32c(&header[..HEADER_CRC]) == read_u32(header, HEADER_CRC)?;
    let known = &header[..8] == MAGIC
        && read_u32(header, 8)? == FORMAT
        && read_u32(header, 12)? == BLOCK_SIZE as u32
        && header[41..44] == [0; 3];
    let size = read_u32(header, 48)?;
    if !whole || !known || !size_fits(size) {
        return None;
    }
    let key = ObjectKey {
        copies: Copies::new(header[40].into()).ok()?,
        slot: SlotIndex(read_u32(header, 44)?),
        oid: Oid(u128::from_le_bytes(header.get(16..32)?.try_into().ok()?)),
        birth: Birth(read_u64(header, 32)?),
    };
    Some((key, size))
}

pub(super) fn encode_version(version: Version) -> [u8; VERSION_LEN] {
    let mut bytes = [0; VERSION_LEN];
    bytes[..8].copy_from_slice(&version.generation.0.to_le_bytes());
    bytes[8..16].copy_from_slice(&version.seq.to_le_bytes());
    let crc = crc32c::crc32c(&bytes[..20]);
    bytes[20..].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// The version, from its record; `None` when it is damaged.
pub(super) fn decode_version(bytes: &[u8]) -> Option<Version> {
    let record = bytes.get(..VERSION_LEN)?;
    let whole = crc32c::crc32c(&record[..20]) == read_u32(record, 20)? && read_u32(record, 16)? == 0;
    let version = Version { generation: Generation(read_u64(record, 0)?), seq: read_u64(record, 8)? };
    whole.then_some(version)
}

pub(super) fn decode_table(bytes: &[u8]) -> Vec<BlockEntry> {
    let number = |b: &[u8]| u32::from_le_bytes([b[0], b[1], b[2], b[3]]);
    bytes
        .chunks_exact(ENTRY_LEN)
        .map(|entry| BlockEntry { crc: number(&entry[..4]), stamp: number(&entry[4..]) })
        .collect()
}

fn read_u32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn read_u64(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}
