//! Clients: each writes, reads, zeroes and flushes at some sheep, and tells the oracle what it saw.
//!
//! A client lives in the process of the sheep it is connected to, in place of that sheep's NBD server, and
//! goes elsewhere when that dies: what it had under way then has no answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::disks::{Disk, FIRST};
use super::oracle::{Attached, SECTOR, Stamp};
use super::process::Running;
use super::story::{Story, watched_sector};
use crate::cluster::state::OBJECT_SIZE;
use crate::gateway::Handle;
use crate::nbd::{Export, IoError, Segment, WriteFlags, ZeroFlags};
use wire::name::ExportName;

/// Where a client works, and whom it tells of it.
#[derive(Clone)]
pub(super) struct Desk {
    pub(super) disk: Arc<Disk>,
    pub(super) story: Story,
}

fn fill(stamp: Stamp, first: u64, count: u64) -> Bytes {
    let mut bytes = BytesMut::with_capacity(count as usize * SECTOR);
    (first..first + count).for_each(|index| bytes.put_slice(&unit(stamp, index).repeat(SECTOR / 16)));
    bytes.freeze()
}

/// What a sector repeats.
fn unit(stamp: Stamp, index: u64) -> [u8; 16] {
    (u128::from(stamp) << 64 | u128::from(index ^ 0x5eed_5eed_5eed_5eed)).to_be_bytes()
}

/// The value of a sector, if it is one.
fn stamp_of(bytes: &[u8], index: u64) -> Option<Stamp> {
    if *bytes == [0; SECTOR] {
        return Some(0);
    }
    let stamp = u64::from_be_bytes(bytes[..8].try_into().ok()?);
    let unit = unit(stamp, index);
    (stamp != 0 && bytes.chunks(unit.len()).all(|part| *part == unit)).then_some(stamp)
}

/// One client at one sheep.
pub(super) struct Client {
    desk: Desk,
    export: Arc<Handle>,
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
        let vdi: ExportName = format!("{}{}", desk.disk.name, suffix.unwrap_or_default()).parse().ok()?;
        let export = at.gateway.open(&vdi, &name).await.ok()?;
        // A sheep that is behind may know another VDI by this name.
        if hung_up.load(Ordering::Relaxed) || export.vdi != desk.disk.id {
            export.close().await;
            return None;
        }
        if let Some(attached) = attached {
            desk.disk.oracle.lock().attached(attached);
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
                    self.desk.disk.oracle.lock().broken.push(format!("a request failed: {error}"));
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
        let places = self.desk.disk.places;
        let (begin, room) = places[self.rng.random_range(0..places.len())];
        let count = self.rng.random_range(1..=room.min(12));
        let first = begin + self.rng.random_range(0..=room - count);
        let (offset, len) = (first * SECTOR as u64, count * SECTOR as u64);
        let what = if self.reader { 500 } else { self.rng.random_range(0..1_000) };
        match what {
            0..450 => self.write(first, count).await,
            450..820 => self.read(first, count).await,
            820..850 => self.trim(offset, len).await,
            850..870 => {
                let object = u64::from(OBJECT_SIZE);
                let start = offset / object * object;
                self.trim(start, object.min(self.desk.disk.size - start)).await
            }
            870..920 => {
                let begun = self.desk.disk.oracle.lock().write(first..first + count, true, self.attached);
                self.tell(first, count, || "sends zeroes".to_owned());
                let fua = self.rng.random();
                let flags = ZeroFlags { fua, may_punch: self.rng.random(), fast: false };
                self.heard(self.export.write_zeroes(offset, len, flags).await)?;
                self.desk.disk.oracle.lock().acknowledge(&begun, fua);
                self.tell(first, count, || "has zeroed".to_owned());
                Ok(())
            }
            _ => {
                let from = self.desk.disk.oracle.lock().moment();
                self.heard(self.export.flush().await)?;
                self.desk.disk.oracle.lock().flushed(from);
                Ok(())
            }
        }
    }

    /// Trims some sectors, or a whole object.
    async fn trim(&mut self, offset: u64, len: u64) -> Result<(), IoError> {
        let (first, count) = (offset / SECTOR as u64, len / SECTOR as u64);
        let used = self.desk.disk.places.iter().flat_map(|(begin, room)| *begin..begin + room);
        let used = used.filter(|sector| (first..first + count).contains(sector));
        let begun = self.desk.disk.oracle.lock().write(used, true, self.attached);
        self.tell(first, count, || "sends a trim".to_owned());
        let fua = self.rng.random();
        self.heard(self.export.trim(offset, len, fua).await)?;
        self.desk.disk.oracle.lock().acknowledge(&begun, fua);
        self.tell(first, count, || "has trimmed".to_owned());
        Ok(())
    }

    async fn write(&mut self, first: u64, count: u64) -> Result<(), IoError> {
        let begun = self.desk.disk.oracle.lock().write(first..first + count, false, self.attached);
        self.tell(first, count, || format!("sends {}", begun.stamp));
        let flags = WriteFlags { fua: self.rng.random_bool(0.1) };
        let data = fill(begun.stamp, first, count);
        self.heard(self.export.write(first * SECTOR as u64, data, flags).await)?;
        self.desk.disk.oracle.lock().acknowledge(&begun, flags.fua);
        self.tell(first, count, || format!("has written {}", begun.stamp));
        Ok(())
    }

    /// Tells what is done to the sector that is watched.
    fn tell(&self, first: u64, count: u64, what: impl FnOnce() -> String) {
        let watched = || watched_sector().is_some_and(|s| (first..first + count).contains(&s));
        if self.desk.disk.name == FIRST && watched() {
            self.desk.story.aside(format!("{} {}", self.name, what()));
        }
    }

    /// Reads sectors and has the oracle judge them.
    pub(super) async fn read(&mut self, first: u64, count: u64) -> Result<(), IoError> {
        let from = self.desk.disk.oracle.lock().moment();
        let read = self.export.read(first * SECTOR as u64, (count as usize * SECTOR) as u32).await;
        let segments = self.heard(read)?;
        let mut bytes = Vec::with_capacity(count as usize * SECTOR);
        for segment in &segments {
            match segment {
                Segment::Data(data) => bytes.extend_from_slice(data),
                Segment::Hole(len) => bytes.resize(bytes.len() + *len as usize, 0),
            }
        }
        let mut oracle = self.desk.disk.oracle.lock();
        for (index, sector) in (first..).zip(bytes.chunks(SECTOR)) {
            self.tell(index, 1, || format!("has read {:?}", stamp_of(sector, index)));
            oracle.read(index, stamp_of(sector, index), from);
        }
        Ok(())
    }

    /// Reads everything that was ever touched.
    pub(super) async fn read_all(mut self) -> Result<(), IoError> {
        for (first, count) in self.desk.disk.places {
            self.read(*first, *count).await?;
        }
        self.export.close().await;
        Ok(())
    }
}
