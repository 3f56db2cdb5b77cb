//! Client requests that were applied and may come again: kept until they cannot, whatever happens to the process.
//!
//! One file of records, each in a place of its own that is used again when its request can no longer come. It is
//! never synced: the death of a process leaves what it had written with the kernel. A loss of power does not, so
//! the file names the boot in which it was written, and what an earlier boot left does not count.
//!
//! Numbers are little endian:
//!
//! ```text
//! header, 128 bytes:  0 magic "SHEEPREQ"   8 format = 1 u32   12 zeros    16 boot u128    32 zeros   124 CRC32C of 0..124
//! record, 128 bytes:  0 oid u128          16 birth u64       24 copies u32   28 slot u32   32 size u32   36 offset u32
//!                    40 generation u64    48 seq u64         56 number u64
//!                    64 gateway's node u64   72 its start u64   80 the request's number u64   88 zeros
//!                   124 CRC32C of the record's place and 0..124; a record of zeros is none
//! ```

use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use wire::peer::{AppliedRequest, ObjectRef, RequestId, VersionRef};

use super::error::Error;
use super::io::{File, FileSystem};

const LEN: usize = 128;
const CRC_AT: usize = LEN - 4;
const FORMAT: u32 = 1;
const MAGIC: &[u8; 8] = b"SHEEPREQ";
/// More records than this are not read: an owner forgets what is answered within seconds.
const RECORDS_MAX: u64 = 1 << 20;

/// Where a record is kept.
pub(crate) type Place = u32;

/// The file, and which of its places are free.
pub(super) struct Requests {
    path: PathBuf,
    file: Arc<dyn File>,
    places: Mutex<Places>,
}

#[derive(Default)]
struct Places {
    free: Vec<Place>,
    count: u32,
}

impl Requests {
    /// Opens the file in `dir`, or makes it; returns what an earlier process of this boot left in it.
    pub(super) fn open(
        fs: &dyn FileSystem,
        dir: &Path,
        boot: u128,
    ) -> Result<(Self, Vec<(Place, AppliedRequest)>), Error> {
        let path = dir.join("requests");
        let io = |e| Error::io(&path, e);
        let file = if fs.exists(&path).map_err(io)? { fs.open(&path) } else { fs.create(&path) };
        let file = file.map_err(io)?;
        let size = file.size().map_err(io)?;
        let mut header = [0; LEN];
        let mut bytes = Vec::new();
        if size >= LEN as u64 {
            file.read_at(&mut header, 0).map_err(io)?;
        }
        if header == encode_header(boot) {
            let count = (size / LEN as u64 - 1).min(RECORDS_MAX);
            bytes.resize(count as usize * LEN, 0);
            file.read_at(&mut bytes, LEN as u64).map_err(io)?;
        } else {
            file.set_size(0).map_err(io)?;
            file.write_at(&encode_header(boot), 0).map_err(io)?;
        }
        let (mut places, mut found) = (Places::default(), Vec::new());
        for (place, record) in (0..).zip(bytes.chunks_exact(LEN)) {
            match decode(place, record) {
                Some(applied) => found.push((place, applied)),
                None => places.free.push(place),
            }
            places.count = place + 1;
        }
        Ok((Self { path: path.clone(), file, places: Mutex::new(places) }, found))
    }

    /// Keeps a request; it survives the process when this returns.
    pub(super) fn keep(&self, applied: &AppliedRequest) -> Result<Place, Error> {
        let place = {
            let mut places = self.places.lock();
            match places.free.pop() {
                Some(place) => place,
                None => {
                    places.count += 1;
                    places.count - 1
                }
            }
        };
        let kept = self.file.write_at(&encode(place, applied), at(place));
        kept.map(|()| place).map_err(|error| {
            self.places.lock().free.push(place);
            Error::io(&self.path, error)
        })
    }

    /// The request can no longer come: its place may be used again. Until then the record stays, and is true.
    pub(super) fn free(&self, places: impl IntoIterator<Item = Place>) {
        self.places.lock().free.extend(places);
    }

    /// The record is not true of the copy, or soon will not be.
    pub(super) fn erase(&self, place: Place) -> Result<(), Error> {
        self.file.write_at(&[0; LEN], at(place)).map_err(|e| Error::io(&self.path, e))?;
        self.free([place]);
        Ok(())
    }
}

fn at(place: Place) -> u64 {
    (u64::from(place) + 1) * LEN as u64
}

fn encode_header(boot: u128) -> [u8; LEN] {
    let mut bytes = [0; LEN];
    bytes[..8].copy_from_slice(MAGIC);
    bytes[8..12].copy_from_slice(&FORMAT.to_le_bytes());
    bytes[16..32].copy_from_slice(&boot.to_le_bytes());
    let crc = crc32c::crc32c(&bytes[..CRC_AT]);
    bytes[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
    bytes
}

fn record_crc(place: Place, body: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&place.to_le_bytes()), body)
}

fn encode(place: Place, applied: &AppliedRequest) -> [u8; LEN] {
    let (o, v, r) = (&applied.object, &applied.version, &applied.request);
    let mut bytes = [0; LEN];
    let long = [
        (0, o.oid_low),
        (8, o.oid_high),
        (16, o.birth),
        (40, v.generation),
        (48, v.seq),
        (56, applied.number),
        (64, r.node),
        (72, r.start),
        (80, r.number),
    ];
    for (at, number) in long {
        bytes[at..at + 8].copy_from_slice(&number.to_le_bytes());
    }
    for (at, number) in [(24, o.copies), (28, o.slot), (32, o.size), (36, applied.offset)] {
        bytes[at..at + 4].copy_from_slice(&number.to_le_bytes());
    }
    let crc = record_crc(place, &bytes[..CRC_AT]);
    bytes[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// The record in a place; `None` if there is none, or it is not as it was written.
fn decode(place: Place, bytes: &[u8]) -> Option<AppliedRequest> {
    let short = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    let long = |at: usize| Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
    if short(CRC_AT)? != record_crc(place, &bytes[..CRC_AT]) {
        return None;
    }
    Some(AppliedRequest {
        request: RequestId { node: long(64)?, start: long(72)?, number: long(80)? },
        object: ObjectRef {
            oid_low: long(0)?,
            oid_high: long(8)?,
            birth: long(16)?,
            copies: short(24)?,
            slot: short(28)?,
            size: short(32)?,
        },
        offset: short(36)?,
        version: VersionRef { generation: long(40)?, seq: long(48)? },
        number: long(56)?,
    })
}

#[cfg(test)]
mod tests {
    use super::super::sim::SimFs;
    use super::*;

    fn applied(number: u64) -> AppliedRequest {
        AppliedRequest {
            request: RequestId { node: 0x0102, start: 0x03, number },
            object: ObjectRef {
                oid_low: 0x04,
                oid_high: 0x05,
                birth: 0x06,
                copies: 7,
                slot: 0x08,
                size: 0x0900,
            },
            offset: 0x0a,
            version: VersionRef { generation: 0x0b, seq: 0x0c },
            number: 0x0d,
        }
    }

    fn open(fs: &SimFs, boot: u128) -> (Requests, Vec<u64>) {
        let (requests, found) = Requests::open(fs, Path::new("/d"), boot).expect("opens");
        (requests, found.into_iter().map(|(_, a)| a.request.number).collect())
    }

    fn disk() -> SimFs {
        let fs = SimFs::new();
        fs.create_dir(Path::new("/d")).expect("new");
        fs
    }

    #[test]
    fn a_record_has_these_bytes_for_ever() {
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let record = encode(0x21, &applied(0x0e));
        let golden = "0400000000000000050000000000000006000000000000000700000008000000000900000a0000000b000000\
                      000000000c000000000000000d00000000000000020100000000000003000000000000000e00000000000000";
        assert_eq!(hex(&record[..88]), golden);
        assert_eq!(decode(0x21, &record), Some(applied(0x0e)));
        assert_eq!(decode(0x22, &record), None, "it belongs to its place");
    }

    #[test]
    fn what_is_kept_outlives_the_process_and_not_the_boot() {
        let fs = disk();
        let (requests, found) = open(&fs, 7);
        assert!(found.is_empty());
        let places: Vec<Place> = (1..=3).map(|n| requests.keep(&applied(n)).expect("kept")).collect();
        requests.erase(places[1]).expect("erased");
        drop(requests);
        let (requests, found) = open(&fs, 7);
        assert_eq!(found, [1, 3]);
        assert_eq!(requests.keep(&applied(4)).expect("kept"), places[1], "its place is used again");
        assert_eq!(open(&fs, 7).1, [1, 4, 3]);
        assert!(open(&fs, 8).1.is_empty());
        assert!(open(&fs, 7).1.is_empty(), "gone for good");
    }

    #[test]
    fn what_can_no_longer_come_is_written_over() {
        let fs = disk();
        let (requests, _) = open(&fs, 7);
        let place = requests.keep(&applied(1)).expect("kept");
        requests.free([place]);
        assert_eq!(requests.keep(&applied(2)).expect("kept"), place);
        assert_eq!(open(&fs, 7).1, [2]);
    }
}
