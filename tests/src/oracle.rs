//! What a client was promised, and whether it was kept.
//!
//! Every write carries values of its own, so each block of the disk is a register whose values are unique,
//! and linearizability can be decided exactly (Gibbons and Korach, "Testing shared memories", 1997). All
//! that happened with one value, its write and the reads that returned it, is a cluster, with a zone of time
//! between the first end and the last begin of any of them:
//!
//! - end before begin: somewhere the value must have been the current one for all of the zone ("forward");
//! - otherwise all of them overlap at some moment ("backward").
//!
//! The history is linearizable exactly when no read comes before its write, no two forward zones overlap
//! and no backward zone lies within a forward one. A lost write, a stale read and a value that flips back
//! each break this. A write without an answer has no end: it may have happened once, at any time, or never.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

/// What a block holds that was never written.
pub const NEVER_WRITTEN: u64 = 0;
/// What a read returned if the block is not whole: no write ever has this stamp.
pub const GARBLED: u64 = u64::MAX;

/// Time since the history began, in nanoseconds.
pub type Moment = u64;
const NEVER: Moment = Moment::MAX;

/// The value of one write, in every block it covers.
pub type Stamp = u64;

/// What one client saw. Histories of several clients are merged.
#[derive(Debug, Clone)]
pub struct History {
    begin: Instant,
    blocks: BTreeMap<u64, BTreeMap<Stamp, Cluster>>,
}

#[derive(Debug, Clone)]
struct Cluster {
    write: Option<(Moment, Moment)>,
    reads: usize,
    first_read_end: Moment,
    last_read_begin: Moment,
}

impl Default for Cluster {
    fn default() -> Self {
        Self { write: None, reads: 0, first_read_end: NEVER, last_read_begin: 0 }
    }
}

/// A broken promise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Number of the block.
    pub block: u64,
    /// In words, with times.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "block {}: {}", self.block, self.what)
    }
}

impl History {
    /// An empty history whose time counts from `begin`. Those that are to be merged share it.
    pub fn new(begin: Instant) -> Self {
        Self { begin, blocks: BTreeMap::new() }
    }

    /// Now, for this history.
    pub fn now(&self) -> Moment {
        u64::try_from(self.begin.elapsed().as_nanos()).expect("a test takes less than 500 years")
    }

    /// A write of `stamp` to a block was sent at `from`, and acknowledged at `to` if it was.
    pub fn wrote(&mut self, block: u64, stamp: Stamp, from: Moment, to: Option<Moment>) {
        assert!(stamp != NEVER_WRITTEN && stamp != GARBLED, "reserved");
        let cluster = self.blocks.entry(block).or_default().entry(stamp).or_default();
        assert!(cluster.write.is_none(), "stamp {stamp:#x} is written twice");
        cluster.write = Some((from, to.unwrap_or(NEVER)));
    }

    /// A read of a block returned `stamp`.
    pub fn read(&mut self, block: u64, stamp: Stamp, from: Moment, to: Moment) {
        let cluster = self.blocks.entry(block).or_default().entry(stamp).or_default();
        cluster.reads += 1;
        cluster.first_read_end = cluster.first_read_end.min(to);
        cluster.last_read_begin = cluster.last_read_begin.max(from);
    }

    /// Takes in what another client saw.
    pub fn merge(&mut self, other: Self) {
        assert_eq!(self.begin, other.begin, "one clock");
        for (block, clusters) in other.blocks {
            let own = self.blocks.entry(block).or_default();
            for (stamp, cluster) in clusters {
                let merged = own.entry(stamp).or_default();
                assert!(merged.write.is_none() || cluster.write.is_none(), "{stamp:#x} is written twice");
                merged.write = merged.write.or(cluster.write);
                merged.reads += cluster.reads;
                merged.first_read_end = merged.first_read_end.min(cluster.first_read_end);
                merged.last_read_begin = merged.last_read_begin.max(cluster.last_read_begin);
            }
        }
    }

    /// Writes of blocks acknowledged, and reads of blocks.
    pub fn counts(&self) -> (usize, usize) {
        let clusters = || self.blocks.values().flat_map(BTreeMap::values);
        let acknowledged = clusters().filter(|c| c.write.is_some_and(|(_, end)| end != NEVER)).count();
        (acknowledged, clusters().map(|c| c.reads).sum())
    }

    /// Everything that no order of the operations explains.
    pub fn violations(&self) -> Vec<Violation> {
        self.blocks.iter().flat_map(|(block, clusters)| judge(*block, clusters)).collect()
    }

    /// Panics with what was broken.
    #[track_caller]
    pub fn assert_kept(&self) {
        let violations = self.violations();
        let some: Vec<_> = violations.iter().take(10).map(ToString::to_string).collect();
        assert!(violations.is_empty(), "{} promises broken:\n{}", violations.len(), some.join("\n"));
    }
}

/// A time during which a value was, or may have been at some moment, the current one.
#[derive(Debug, Clone, Copy)]
struct Zone {
    stamp: Stamp,
    from: Moment,
    to: Moment,
}

fn judge(block: u64, clusters: &BTreeMap<Stamp, Cluster>) -> Vec<Violation> {
    let mut found = Vec::new();
    let mut violation = |what: String| found.push(Violation { block, what });
    let (mut forward, mut backward) = (Vec::new(), Vec::new());
    for (&stamp, cluster) in clusters {
        let write = if stamp == NEVER_WRITTEN { Some((0, 0)) } else { cluster.write };
        let Some((write_begin, write_end)) = write else {
            let what = if stamp == GARBLED { "torn or damaged" } else { "never written here" };
            violation(format!(
                "a read that ended at {} returned {stamp:#x}, {what}",
                at(cluster.first_read_end)
            ));
            continue;
        };
        if cluster.first_read_end < write_begin {
            let (read, write) = (at(cluster.first_read_end), at(write_begin));
            violation(format!("{stamp:#x} was read by {read} and sent only at {write}"));
        }
        if write_end == NEVER && cluster.reads == 0 {
            continue; // it may never have happened
        }
        let first_end = write_end.min(cluster.first_read_end);
        let last_begin = write_begin.max(cluster.last_read_begin);
        if first_end < last_begin {
            forward.push(Zone { stamp, from: first_end, to: last_begin });
        } else {
            backward.push(Zone { stamp, from: last_begin, to: first_end });
        }
    }
    forward.sort_by_key(|zone| zone.from);
    for pair in forward.windows(2) {
        let (a, b) = (pair[0], pair[1]);
        if b.from < a.to {
            violation(format!(
                "{:#x} was there at {} and still, or again, at {}; but {:#x} was there at {} and at {}",
                a.stamp,
                at(a.from),
                at(a.to),
                b.stamp,
                at(b.from),
                at(b.to)
            ));
        }
    }
    for zone in backward {
        let before = forward.partition_point(|other| other.from < zone.from);
        let Some(other) = before.checked_sub(1).map(|index| forward[index]) else { continue };
        if zone.to < other.to {
            violation(format!(
                "{:#x} was there at some time from {} to {}; but {:#x} was there at {} and still, or again, at {}",
                zone.stamp,
                at(zone.from),
                at(zone.to),
                other.stamp,
                at(other.from),
                at(other.to)
            ));
        }
    }
    found
}

fn at(moment: Moment) -> String {
    format!("{:.6} s", Duration::from_nanos(moment).as_secs_f64())
}

/// Fills blocks with a stamp, so that a torn one shows.
pub fn fill(stamp: Stamp, block: u64, block_len: usize, count: u64) -> Vec<u8> {
    let mut data = Vec::with_capacity(block_len * count as usize);
    for number in block..block + count {
        for _ in 0..block_len / 16 {
            data.extend(stamp.to_le_bytes());
            data.extend(number.to_le_bytes());
        }
    }
    data
}

/// The stamp that a block holds, or [`GARBLED`] if it is not one whole block that belongs there.
pub fn stamp_of(data: &[u8], block: u64) -> Stamp {
    if data.iter().all(|byte| *byte == 0) {
        return NEVER_WRITTEN;
    }
    let stamp = u64::from_le_bytes(data[..8].try_into().expect("a block has at least 16 bytes"));
    let whole = fill(stamp, block, data.len(), 1) == data;
    if whole { stamp } else { GARBLED }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history() -> History {
        History::new(Instant::now())
    }

    #[test]
    fn what_happens_in_turn_is_kept() {
        let mut h = history();
        h.read(0, NEVER_WRITTEN, 1, 2);
        h.wrote(0, 7, 3, Some(4));
        h.read(0, 7, 5, 6);
        h.wrote(0, 8, 5, Some(9));
        h.read(0, 8, 6, 7);
        h.read(0, 8, 10, 11);
        assert_eq!(h.violations(), []);
        assert_eq!(h.counts(), (2, 4));
    }

    #[test]
    fn a_lost_write_is_found() {
        let mut h = history();
        h.wrote(0, 7, 1, Some(2));
        h.wrote(0, 8, 3, Some(4));
        h.read(0, 7, 5, 6);
        assert_eq!(h.violations().len(), 1);
        let mut zero = history();
        zero.wrote(0, 7, 1, Some(2));
        zero.read(0, NEVER_WRITTEN, 5, 6);
        assert_eq!(zero.violations().len(), 1);
    }

    #[test]
    fn a_read_older_than_one_before_is_found_though_nothing_was_acknowledged() {
        let mut h = history();
        h.wrote(0, 7, 1, Some(2));
        h.wrote(0, 8, 3, None);
        h.read(0, 8, 4, 5);
        h.read(0, 7, 6, 7);
        assert_eq!(h.violations().len(), 1);
    }

    #[test]
    fn an_unanswered_write_happens_late_or_never_but_does_not_come_back() {
        let mut h = history();
        h.wrote(0, 7, 1, None);
        h.wrote(0, 8, 2, Some(3));
        h.read(0, 8, 4, 5);
        assert_eq!(h.violations(), [], "never");
        h.read(0, 7, 6, 7);
        assert_eq!(h.violations(), [], "late");
        h.read(0, 8, 8, 9);
        assert_eq!(h.violations().len(), 1, "flipped back");
    }

    #[test]
    fn overlapping_operations_may_happen_in_any_order() {
        let mut h = history();
        h.wrote(0, 7, 1, Some(10));
        h.wrote(0, 8, 1, Some(10));
        h.read(0, 8, 2, 3);
        h.read(0, 7, 4, 5);
        assert_eq!(h.violations(), []);
        h.read(0, 8, 6, 7);
        assert_eq!(h.violations().len(), 1);
    }

    #[test]
    fn a_value_from_nowhere_or_torn_is_found() {
        let mut h = history();
        h.wrote(0, 7, 5, Some(6));
        h.read(0, 7, 1, 2);
        h.read(1, 9, 1, 2);
        h.read(2, GARBLED, 1, 2);
        assert_eq!(h.violations().len(), 3);
    }

    #[test]
    fn a_block_knows_its_stamp_and_its_place() {
        let data = fill(77, 3, 512, 2);
        assert_eq!(data.len(), 1024);
        assert_eq!(stamp_of(&data[512..], 4), 77);
        assert_eq!(stamp_of(&data[..512], 4), GARBLED);
        assert_eq!(stamp_of(&[0; 512], 4), NEVER_WRITTEN);
        let torn = [&fill(1, 0, 512, 1)[..256], &fill(2, 0, 512, 1)[256..]].concat();
        assert_eq!(stamp_of(&torn, 0), GARBLED);
    }
}
