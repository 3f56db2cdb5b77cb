//! Clients: each writes, reads, zeroes and flushes at some sheep, and tells the oracle what it saw.
//!
//! A client lives in the process of the sheep it is connected to, in place of that sheep's NBD server, and
//! goes elsewhere when that dies: what it had under way then has no answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::oracle::{Attached, Oracle, SECTOR, Stamp};
use super::process::Running;
use super::world::{Story, watched_sector};
use crate::nbd::{ClientInfo, Export, Exports, IoError, Segment, WriteFlags, ZeroFlags};
use wire::name::ExportName;

/// The name of the VDI that everybody uses.
pub(super) const VDI: &str = "disk";
/// Its size: three objects and a bit.
pub(super) const SIZE: u64 = (12 << 20) + (1 << 19);
/// Where work is done: few sectors, so that clients meet, across the borders of objects and blocks.
const PLACES: [(u64, u64); 4] =
    [(0, 24), ((4 << 20) / 512 - 12, 24), ((8 << 20) / 512 + 96, 16), ((12 << 20) / 512 + 8, 8)];

/// What all clients share.
#[derive(Clone)]
pub(super) struct Desk {
    pub(super) oracle: Arc<Mutex<Oracle>>,
    pub(super) story: Story,
}

fn fill(stamp: Stamp, first: u64, count: u64) -> Bytes {
    let mut bytes = BytesMut::with_capacity(count as usize * SECTOR);
    for index in first..first + count {
        for _ in 0..SECTOR / 16 {
            bytes.put_u64(stamp);
            bytes.put_u64(index ^ 0x5eed_5eed_5eed_5eed);
        }
    }
    bytes.freeze()
}

/// The value of a sector, if it is one.
fn stamp_of(bytes: &[u8], index: u64) -> Option<Stamp> {
    if bytes.iter().all(|b| *b == 0) {
        return Some(0);
    }
    let stamp = u64::from_be_bytes(bytes[..8].try_into().ok()?);
    (stamp != 0 && bytes == &fill(stamp, index, 1)[..]).then_some(stamp)
}

/// One client at one sheep.
pub(super) struct Client {
    desk: Desk,
    export: Arc<dyn Export>,
    rng: StdRng,
    /// It only reads: one that writes is soon held up where nothing can be written.
    reader: bool,
    name: String,
    attached: Option<Attached>,
    /// It has hung up. What it had sent is done to its end, as by the NBD server, and nobody hears of it.
    hung_up: Arc<AtomicBool>,
}

impl Client {
    /// Connects; `None` if the sheep does not let it.
    pub(super) async fn connect(
        desk: Desk,
        at: Running,
        name: String,
        attached: Option<Attached>,
        hung_up: Arc<AtomicBool>,
        seed: u64,
    ) -> Option<Self> {
        let suffix = attached.map(|a| format!(",attach=client{}:{}", a.client, a.generation));
        let vdi: ExportName = format!("{VDI}{}", suffix.unwrap_or_default()).parse().ok()?;
        let info = ClientInfo { peer: name.clone() };
        let export = at.exports().open(&vdi, info).await.ok()?;
        if hung_up.load(Ordering::Relaxed) {
            export.close().await;
            return None;
        }
        if let Some(attached) = attached {
            desk.oracle.lock().attached(attached);
        }
        let mut rng = StdRng::seed_from_u64(seed);
        let reader = rng.random_bool(0.35);
        Some(Self { desk, export, rng, reader, name, attached, hung_up })
    }

    /// Works until it has had enough.
    pub(super) async fn work(mut self, requests: u32) {
        for _ in 0..requests {
            let pause = self.rng.random_range(0..15_000);
            tokio::time::sleep(Duration::from_micros(pause)).await;
            if let Err(error) = self.request().await {
                if self.hung_up.load(Ordering::Relaxed) {
                    break;
                }
                self.desk.story.tell(format!("{} ends: {error}", self.name));
                if matches!(error, IoError::Io | IoError::Invalid) {
                    self.desk.oracle.lock().broken.push(format!("a request failed: {error}"));
                }
                break;
            }
        }
        self.export.close().await;
    }

    /// What came of a request, if it is there to hear it.
    fn heard<T>(&self, result: Result<T, IoError>) -> Result<T, IoError> {
        if self.hung_up.load(Ordering::Relaxed) { Err(IoError::Shutdown) } else { result }
    }

    async fn request(&mut self) -> Result<(), IoError> {
        let (begin, room) = PLACES[self.rng.random_range(0..PLACES.len())];
        let count = self.rng.random_range(1..=room.min(12));
        let first = begin + self.rng.random_range(0..=room - count);
        let (offset, len) = (first * SECTOR as u64, count * SECTOR as u64);
        let what = if self.reader { 50 } else { self.rng.random_range(0..100) };
        match what {
            0..45 => self.write(first, count).await,
            45..82 => self.read(first, count).await,
            82..87 => {
                let begun = self.desk.oracle.lock().write(first, count, true, self.attached);
                let fua = self.rng.random();
                self.heard(self.export.trim(offset, len, fua).await)?;
                self.desk.oracle.lock().acknowledge(&begun, fua);
                Ok(())
            }
            87..92 => {
                let begun = self.desk.oracle.lock().write(first, count, true, self.attached);
                let fua = self.rng.random();
                let flags = ZeroFlags { fua, may_punch: self.rng.random(), fast: false };
                self.heard(self.export.write_zeroes(offset, len, flags).await)?;
                self.desk.oracle.lock().acknowledge(&begun, fua);
                Ok(())
            }
            _ => {
                let from = self.desk.oracle.lock().moment();
                self.heard(self.export.flush().await)?;
                self.desk.oracle.lock().flushed(from);
                Ok(())
            }
        }
    }

    async fn write(&mut self, first: u64, count: u64) -> Result<(), IoError> {
        let begun = self.desk.oracle.lock().write(first, count, false, self.attached);
        self.tell(first, count, || format!("sends {}", begun.stamp));
        let flags = WriteFlags { fua: self.rng.random_bool(0.1) };
        let data = fill(begun.stamp, first, count);
        self.heard(self.export.write(first * SECTOR as u64, data, flags).await)?;
        self.desk.oracle.lock().acknowledge(&begun, flags.fua);
        self.tell(first, count, || format!("has written {}", begun.stamp));
        Ok(())
    }

    /// Tells what is done to the sector that is watched.
    fn tell(&self, first: u64, count: u64, what: impl FnOnce() -> String) {
        if watched_sector().is_some_and(|s| (first..first + count).contains(&s)) {
            self.desk.story.aside(format!("{} {}", self.name, what()));
        }
    }

    /// Reads sectors and has the oracle judge them.
    pub(super) async fn read(&mut self, first: u64, count: u64) -> Result<(), IoError> {
        let from = self.desk.oracle.lock().moment();
        let read = self.export.read(first * SECTOR as u64, (count as usize * SECTOR) as u32).await;
        let segments = self.heard(read)?;
        let mut bytes = Vec::with_capacity(count as usize * SECTOR);
        for segment in &segments {
            match segment {
                Segment::Data(data) => bytes.extend_from_slice(data),
                Segment::Hole(len) => bytes.resize(bytes.len() + *len as usize, 0),
            }
        }
        let mut oracle = self.desk.oracle.lock();
        for (index, sector) in (first..).zip(bytes.chunks(SECTOR)) {
            self.tell(index, 1, || format!("has read {:?}", stamp_of(sector, index)));
            oracle.read(index, stamp_of(sector, index), from);
        }
        Ok(())
    }

    /// Reads everything that was ever touched.
    pub(super) async fn read_all(mut self) -> Result<(), IoError> {
        for (first, count) in PLACES {
            self.read(first, count).await?;
        }
        self.export.close().await;
        Ok(())
    }
}
