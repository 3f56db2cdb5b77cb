//! Write intents: which regions of which objects may differ from what is durable.
//!
//! A region is a 64th of an object, at least a block. Before a byte of a region is written its mark is
//! durable in the log, so after a crash everything unmarked is as it was, and a block with a bad checksum in
//! a marked region may be a torn write rather than rot.
//!
//! A mark costs a sync, so they are made ahead and dropped late: creation marks the whole object, the second
//! write outside the marks marks all of it, and marks are dropped only when an object is durable and
//! was not written for [`IDLE_TICKS`]. Dropping is a matter of memory; the log forgets when it is rewritten.
//!
//! The log's record bodies:
//!
//! ```text
//! 0 oid u128   16 birth u64   24 mask u64   32 slot u32   36 copies u8   37 zeros, to 56
//! ```

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;
use wire::id::{Birth, Oid, SlotIndex};
use wire::policy::Copies;

use super::error::Error;
use super::io::FileSystem;
use super::key::ObjectKey;
use super::log::{AppendLog, BODY_LEN, Body, LogKind, Ticket};
use crate::mutant::{Mutant, planted};

/// Marks all regions.
pub(super) const ALL: u64 = u64::MAX;
/// Calls of [`Intents::tick`] that an object's marks outlive its last write by: a minute, at one each 5 s.
const IDLE_TICKS: u64 = 12;
/// The log is rewritten when it has this many records (2 MiB) more than twice those that live.
const SLACK_RECORDS: usize = 32_768;

/// The regions that `count` blocks from `first` of an object of `total` blocks lie in.
pub(super) fn regions(total: u32, first: u32, count: u32) -> u64 {
    let blocks = total.div_ceil(64).max(1);
    let (low, high) = (first / blocks, (first + count.max(1) - 1) / blocks);
    let upto = |n: u32| if n >= 63 { ALL } else { (1 << (n + 1)) - 1 };
    upto(high) & !if low == 0 { 0 } else { upto(low - 1) }
}

/// The blocks of an object of `total` blocks that lie in the regions of `mask`.
pub(super) fn blocks_in(total: u32, mask: u64) -> impl Iterator<Item = u32> {
    let blocks = total.div_ceil(64).max(1);
    (0..total).filter(move |index| mask >> (index / blocks) & 1 == 1)
}

#[derive(Debug, Default)]
struct Mark {
    /// Regions whose marks are durable.
    durable: u64,
    /// Regions whose marks were handed to the log; covers `durable`.
    logged: u64,
    /// Regions marked when the store was opened and not settled since.
    suspect: u64,
    /// Writes that needed a mark that was not there.
    misses: u32,
    /// Writes under way, or waiting for their mark.
    active: u32,
    /// Writes that have ended.
    ended: u64,
    /// Value of `ended` up to which data is durable.
    synced: u64,
    /// Tick of the last write.
    touched: u64,
}

impl Mark {
    fn can_be_dropped(&self, now: u64) -> bool {
        let rests = self.synced == self.ended && now.saturating_sub(self.touched) >= IDLE_TICKS;
        self.active == 0 && self.suspect == 0 && (rests || planted(Mutant::MarksDropped))
    }
}

#[derive(Default)]
struct Live {
    marks: HashMap<ObjectKey, Mark>,
    tick: u64,
}

pub(super) struct Intents {
    log: AppendLog,
    live: Mutex<Live>,
}

/// A write whose regions are marked; keeps the marks until it is dropped.
pub(super) struct Marked<'a> {
    intents: &'a Intents,
    key: ObjectKey,
    /// Whether the object may have been changed under this mark.
    wrote: bool,
}

impl Drop for Marked<'_> {
    fn drop(&mut self) {
        if let Some(mark) = self.intents.live.lock().marks.get_mut(&self.key) {
            mark.active -= 1;
            mark.ended += u64::from(self.wrote);
        }
    }
}

impl Intents {
    /// Starts log `number` with the marks an earlier process left.
    pub(super) fn open(
        fs: Arc<dyn FileSystem>,
        dir: &Path,
        number: u64,
        suspects: HashMap<ObjectKey, u64>,
    ) -> Result<Self, Error> {
        let marks: HashMap<_, _> = suspects
            .into_iter()
            .map(|(key, mask)| {
                // `ended` is ahead of `synced`: what the earlier process wrote may not be durable.
                (key, Mark { durable: mask, logged: mask, suspect: mask, ended: 1, ..Mark::default() })
            })
            .collect();
        let live = Live { marks, tick: 0 };
        let log = AppendLog::start(fs, dir, LogKind::Intents, number, &snapshot(&live))?;
        Ok(Self { log, live: Mutex::new(live) })
    }

    /// Begins a write if its regions are marked already.
    pub(super) fn try_begin(&self, key: &ObjectKey, regions: u64) -> Option<Marked<'_>> {
        let mut live = self.live.lock();
        let now = live.tick;
        let mark = live
            .marks
            .get_mut(key)
            .filter(|mark| mark.durable & regions == regions || planted(Mutant::NoMarks))?;
        mark.active += 1;
        mark.touched = now;
        Some(Marked { intents: self, key: *key, wrote: true })
    }

    /// Begins a write, and marks its regions first if they are not.
    pub(super) fn begin(&self, key: &ObjectKey, regions: u64) -> Result<Marked<'_>, Error> {
        if let Some(marked) = self.try_begin(key, regions) {
            return Ok(marked);
        }
        let pending = self.announce(key, regions);
        let mut marked = self.wait(key, pending)?;
        marked.wrote = true;
        Ok(marked)
    }

    /// Hands marks to the log without waiting; durable once [`Self::wait`] has returned. Nothing may be written
    /// under them but by a write that begins after that.
    pub(super) fn announce(&self, key: &ObjectKey, regions: u64) -> Pending<'_> {
        let mut live = self.live.lock();
        let now = live.tick;
        let mark = live.marks.entry(*key).or_default();
        mark.active += 1;
        mark.touched = now;
        mark.misses = mark.misses.saturating_add(1);
        let mask = if mark.misses > 1 { ALL } else { regions };
        mark.logged |= mask;
        // Appended under the lock, so that a snapshot of the marks covers all that was appended before it.
        let mask = if planted(Mutant::NoMarks) { 0 } else { mask };
        let ticket = self.log.append(encode(key, mask));
        Pending { ticket, mask, marked: Marked { intents: self, key: *key, wrote: false } }
    }

    /// Returns when the announced marks are durable.
    pub(super) fn wait<'a>(&'a self, key: &ObjectKey, pending: Pending<'a>) -> Result<Marked<'a>, Error> {
        self.log.wait(&pending.ticket).map_err(|e| Error::io(&self.log.path(), e))?;
        let (records, count) = {
            let mut live = self.live.lock();
            if let Some(mark) = live.marks.get_mut(key) {
                mark.durable |= pending.mask;
            }
            (self.log.record_count(), live.marks.len())
        };
        if records > 2 * count + SLACK_RECORDS
            && let Err(error) = self.rewrite()
        {
            // The mark is durable all the same, and a full disk shall not stop a write in place.
            match self.failure() {
                Some(_) => return Err(error),
                None => tracing::warn!(%error, "the log of write intents keeps growing"),
            }
        }
        Ok(pending.marked)
    }

    /// Whether a write to the regions would find them marked.
    pub(super) fn covers(&self, key: &ObjectKey, regions: u64) -> bool {
        self.live.lock().marks.get(key).is_some_and(|mark| mark.durable & regions == regions)
    }

    /// Taken before an object is synced and given to [`Self::synced`] after.
    pub(super) fn ended(&self, key: &ObjectKey) -> u64 {
        self.live.lock().marks.get(key).map_or(0, |mark| mark.ended)
    }

    /// Writes that had ended at `ended` are durable.
    pub(super) fn synced(&self, key: &ObjectKey, ended: u64) {
        if let Some(mark) = self.live.lock().marks.get_mut(key) {
            mark.synced = mark.synced.max(ended.min(mark.ended));
        }
    }

    /// The object is gone, and durably so.
    pub(super) fn forget(&self, key: &ObjectKey) {
        let mut live = self.live.lock();
        if live.marks.get(key).is_some_and(|mark| mark.active == 0) {
            live.marks.remove(key);
        }
    }

    /// All marks.
    pub(super) fn all(&self) -> Vec<(ObjectKey, u64)> {
        self.live.lock().marks.iter().map(|(key, mark)| (*key, mark.logged)).collect()
    }

    /// Marks found when the store was opened and not settled since.
    pub(super) fn suspects(&self) -> Vec<(ObjectKey, u64)> {
        let live = self.live.lock();
        live.marks.iter().filter(|(_, m)| m.suspect != 0).map(|(key, m)| (*key, m.suspect)).collect()
    }

    pub(super) fn suspect(&self, key: &ObjectKey) -> u64 {
        self.live.lock().marks.get(key).map_or(0, |mark| mark.suspect)
    }

    pub(super) fn clear_suspect(&self, key: &ObjectKey) {
        if let Some(mark) = self.live.lock().marks.get_mut(key) {
            mark.suspect = 0;
        }
    }

    /// Counts time, and drops what has been durable and idle long enough.
    pub(super) fn tick(&self) -> Result<(), Error> {
        let (count, records) = {
            let mut live = self.live.lock();
            live.tick += 1;
            let now = live.tick;
            live.marks.retain(|_, mark| !mark.can_be_dropped(now));
            (live.marks.len(), self.log.record_count())
        };
        // Rewritten sooner than for its size alone, because after a crash every mark costs a look at its object.
        let long = records > 2 * count + SLACK_RECORDS / 32 || planted(Mutant::MarksDropped);
        if long { self.rewrite() } else { Ok(()) }
    }

    /// Drops everything durable, at once: for a clean stop.
    pub(super) fn close(&self) -> Result<(), Error> {
        let mut live = self.live.lock();
        live.tick += IDLE_TICKS;
        let now = live.tick;
        live.marks.retain(|_, mark| !mark.can_be_dropped(now));
        drop(live);
        self.rewrite()
    }

    pub(super) fn failure(&self) -> Option<io::Error> {
        self.log.failure()
    }

    fn rewrite(&self) -> Result<(), Error> {
        self.log.rewrite(|| snapshot(&self.live.lock())).map_err(|e| Error::io(&self.log.path(), e))
    }
}

/// Marks handed to the log.
pub(super) struct Pending<'a> {
    ticket: Ticket,
    mask: u64,
    marked: Marked<'a>,
}

fn snapshot(live: &Live) -> Vec<Body> {
    live.marks.iter().map(|(key, mark)| encode(key, mark.logged)).collect()
}

fn encode(key: &ObjectKey, mask: u64) -> Body {
    let mut body = [0; BODY_LEN];
    body[..16].copy_from_slice(&key.oid.0.to_le_bytes());
    body[16..24].copy_from_slice(&key.birth.0.to_le_bytes());
    body[24..32].copy_from_slice(&mask.to_le_bytes());
    body[32..36].copy_from_slice(&key.slot.0.to_le_bytes());
    body[36] = key.copies.get();
    body
}

/// The object and mask of a record; `None` for one no store has written.
pub(super) fn decode(body: &Body) -> Option<(ObjectKey, u64)> {
    let number = |at: usize| Some(u64::from_le_bytes(body.get(at..at + 8)?.try_into().ok()?));
    let key = ObjectKey {
        copies: Copies::new(body[36].into()).ok()?,
        slot: SlotIndex(u32::from_le_bytes(body.get(32..36)?.try_into().ok()?)),
        oid: Oid(u128::from_le_bytes(body.get(..16)?.try_into().ok()?)),
        birth: Birth(number(16)?),
    };
    Some((key, number(24)?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use wire::id::VdiId;

    use super::*;

    #[test]
    fn an_intent_has_these_bytes_for_ever() {
        let key = ObjectKey {
            copies: Copies::new(3).expect("fits"),
            slot: SlotIndex(0x0a0b),
            oid: Oid::data(VdiId(0x11), 0x22),
            birth: Birth(0x0102_0304_0506_0708),
        };
        let mut golden = [0; BODY_LEN];
        golden[0] = 0x22;
        golden[7] = 0x11;
        golden[15] = 1;
        golden[16..24].copy_from_slice(&[8, 7, 6, 5, 4, 3, 2, 1]);
        golden[24..32].copy_from_slice(&[5, 0, 0, 0, 0, 0, 0, 0x80]);
        golden[32..34].copy_from_slice(&[0x0b, 0x0a]);
        golden[36] = 3;
        assert_eq!(encode(&key, 1 << 63 | 5), golden);
        assert_eq!(decode(&golden), Some((key, 1 << 63 | 5)));
    }

    proptest! {
        #[test]
        fn regions_cover_exactly_their_blocks(total in 1u32..3000, a in 0u32..3000, n in 0u32..3000) {
            let first = a % total;
            let count = (n % (total - first)).max(1);
            let mask = regions(total, first, count);
            let blocks = total.div_ceil(64).max(1);
            let oracle = (first..first + count).fold(0u64, |mask, b| mask | 1 << (b / blocks));
            prop_assert_eq!(mask, oracle);
            let inside: Vec<u32> = blocks_in(total, mask).collect();
            prop_assert!((first..first + count).all(|b| inside.contains(&b)));
        }
    }
}
