//! What clients were promised, sector by sector, and whether each read keeps it.
//!
//! Time is the order in which things happened in the simulation, one number per event. A value is what one
//! write put into a sector; all of them differ, but for zeros. A read may return value `w` unless another,
//! `v`, has certainly come between:
//!
//! - `v` is certainly there when the read begins: acknowledged, or returned by a read that has ended;
//! - `v` certainly came after `w`: it was begun, or a read that returned it was, when `w` was there for
//!   certain.
//!
//! After a loss of power of everybody who held a slot ("ruin") only what was flushed before is certain, and
//! what has been seen since. Where somebody still holds what was acknowledged, though not all that was seen
//! ("blur"), only what was seen and neither acknowledged nor flushed may go. Writes without an answer may
//! happen once, whenever; those of a client that has attached again since, only before that.

use std::collections::BTreeMap;

/// The unit in which values are told apart, and the disk tears them.
pub(super) const SECTOR: usize = 512;

/// The order of events.
pub(super) type Moment = u64;

/// Which write of which VDI a value is of; 0 stands for zeros, whoever wrote them.
pub(super) type Stamp = u64;

#[derive(Debug, Clone)]
struct Write {
    stamp: Stamp,
    from: Moment,
    acknowledged: Option<Moment>,
    /// A flush has made it certain.
    flushed: Option<Moment>,
    /// Reads that returned it.
    reads: Vec<(Moment, Moment)>,
    by: Option<Attached>,
    /// From when on it does not happen any more, if it has not yet.
    fenced: Option<Moment>,
}

/// A client with a name, and its attach generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Attached {
    pub(super) client: usize,
    pub(super) generation: u64,
}

/// When what was not flushed last became uncertain.
#[derive(Debug, Clone, Copy, Default)]
struct Losses {
    /// Everybody who held something lost power.
    ruin: Moment,
    /// So did everybody who held all that was seen; never before `ruin`.
    blur: Moment,
}

impl Write {
    fn new(stamp: Stamp, from: Moment, by: Option<Attached>) -> Self {
        Self { stamp, from, acknowledged: None, flushed: None, reads: Vec::new(), by, fenced: None }
    }

    /// When it was there for certain, if it ever was, as far as it matters after `losses`.
    fn there(&self, losses: Losses) -> Option<Moment> {
        let read = self.reads.iter().map(|(_, to)| *to).filter(|to| *to > losses.blur).min();
        self.acknowledged.into_iter().chain(read).chain(self.fenced).min()
    }

    /// Whether it has come between a value that was there at `there` and a read begun at `begun`.
    fn came_between(&self, there: Moment, begun: Moment, losses: Losses) -> bool {
        let certain = |at: Moment, lost: Moment| {
            at <= begun && (at > lost || self.flushed.is_some_and(|flushed| flushed <= lost))
        };
        let acknowledged = self.acknowledged.is_some_and(|at| certain(at, losses.ruin));
        // What was acknowledged and seen later than that is as certain as what was acknowledged.
        let lost = if acknowledged { losses.ruin } else { losses.blur };
        let seen = self.reads.iter().any(|(_, to)| certain(*to, lost));
        if self.from >= there && (acknowledged || seen) {
            return true;
        }
        self.reads.iter().any(|(from, to)| *from >= there && certain(*to, lost))
    }
}

/// All sectors of one VDI, and what was promised of them.
pub(super) struct Oracle {
    now: Moment,
    losses: Losses,
    sectors: BTreeMap<u64, Vec<Write>>,
    next_stamp: Stamp,
    pub(super) counts: Counts,
    /// What was broken, in words.
    pub(super) broken: Vec<String>,
}

/// How much was done.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Counts {
    pub(super) writes: u64,
    pub(super) reads: u64,
    pub(super) flushes: u64,
    pub(super) ruins: u64,
    pub(super) blurs: u64,
}

impl Counts {
    pub(super) fn add(&mut self, other: Self) {
        self.writes += other.writes;
        self.reads += other.reads;
        self.flushes += other.flushes;
        self.ruins += other.ruins;
        self.blurs += other.blurs;
    }
}

/// A write under way.
#[derive(Debug)]
pub(super) struct Begun {
    pub(super) stamp: Stamp,
    from: Moment,
    sectors: Vec<u64>,
}

impl Oracle {
    /// Of a VDI with a number of its own, from which its values follow.
    pub(super) fn new(vdi: u64) -> Self {
        Self {
            now: 1,
            losses: Losses::default(),
            sectors: BTreeMap::new(),
            next_stamp: vdi << 32 | 1,
            counts: Counts::default(),
            broken: Vec::new(),
        }
    }

    /// The next moment.
    pub(super) fn moment(&mut self) -> Moment {
        self.now += 1;
        self.now
    }

    fn sector(&mut self, index: u64) -> &mut Vec<Write> {
        let never = || Write { acknowledged: Some(0), flushed: Some(0), ..Write::new(0, 0, None) };
        self.sectors.entry(index).or_insert_with(|| vec![never()])
    }

    /// A write is sent; of zeros if `zeros`.
    pub(super) fn write(
        &mut self,
        sectors: impl IntoIterator<Item = u64>,
        zeros: bool,
        by: Option<Attached>,
    ) -> Begun {
        let from = self.moment();
        let stamp = if zeros { 0 } else { self.next_stamp };
        self.next_stamp += 1;
        let sectors: Vec<u64> = sectors.into_iter().collect();
        sectors.iter().for_each(|index| self.sector(*index).push(Write::new(stamp, from, by)));
        Begun { stamp, from, sectors }
    }

    /// A write is acknowledged; with `fua` it is durable too.
    pub(super) fn acknowledge(&mut self, begun: &Begun, fua: bool) {
        let now = self.moment();
        self.counts.writes += 1;
        for index in &begun.sectors {
            let own = self.sector(*index).iter_mut().find(|w| w.from == begun.from);
            if let Some(write) = own {
                write.acknowledged = Some(now);
                write.flushed = fua.then_some(now);
            }
        }
    }

    /// A client is attached: what its earlier generations have sent happens no more.
    pub(super) fn attached(&mut self, now: Attached) {
        let moment = self.moment();
        let earlier = |by: Attached| by.client == now.client && by.generation < now.generation;
        for write in self.sectors.values_mut().flatten().filter(|w| w.by.is_some_and(earlier)) {
            write.fenced.get_or_insert(moment);
        }
    }

    /// A flush that was sent at `from` is acknowledged.
    pub(super) fn flushed(&mut self, from: Moment) {
        let (now, losses) = (self.moment(), self.losses);
        self.counts.flushes += 1;
        if losses.blur > from {
            return;
        }
        for write in self.sectors.values_mut().flatten() {
            // Only what was surely there when the flush began, and not taken back since.
            let acknowledged = write.acknowledged.is_some_and(|at| at <= from && at > losses.ruin);
            let seen = write.reads.iter().any(|(_, to)| *to <= from && *to > losses.blur);
            if acknowledged || seen {
                write.flushed.get_or_insert(now);
            }
        }
    }

    /// Everybody who held something has lost power.
    pub(super) fn ruined(&mut self) {
        let now = self.moment();
        self.losses = Losses { ruin: now, blur: now };
        self.counts.ruins += 1;
    }

    /// Everybody who held all that was seen has lost power; somebody holds what was acknowledged.
    pub(super) fn blurred(&mut self) {
        self.losses.blur = self.moment();
        self.counts.blurs += 1;
    }

    /// A read that was sent at `from` returned `stamp` in a sector; `None` if that is no value at all.
    pub(super) fn read(&mut self, index: u64, stamp: Option<Stamp>, from: Moment) {
        let to = self.moment();
        // What happened to a read during a ruin is not looked into too closely.
        let (losses, straddles) = (self.losses, self.losses.blur > from);
        self.counts.reads += 1;
        let writes = self.sector(index);
        let Some(stamp) = stamp else {
            return self.broken.push(format!("sector {index}: bytes that nobody wrote"));
        };
        let candidates: Vec<&Write> = writes.iter().filter(|w| w.stamp == stamp).collect();
        if candidates.is_empty() {
            return self.broken.push(format!("sector {index}: the value {stamp} of another sector"));
        }
        let between = |w: &Write| {
            let there = w.there(losses)?;
            let later = |v: &&Write| v.from != w.from && v.came_between(there, from, losses);
            writes.iter().find(later).map(|v| (there, v.clone()))
        };
        let verdicts: Vec<Option<(Moment, Write)>> = candidates.iter().map(|w| between(w)).collect();
        if !straddles && verdicts.iter().all(Option::is_some) {
            let why = verdicts.into_iter().flatten().last();
            let text = why.map_or(String::new(), |(there, later)| {
                format!(
                    "was there at {there}, but then came {} (sent {}, acknowledged {:?}, flushed {:?}, \
                     read {:?})",
                    later.stamp,
                    later.from,
                    later.acknowledged,
                    later.flushed,
                    later.reads.last()
                )
            });
            let what = format!("sector {index}: a read from {from} to {to} returned {stamp}, which {text}");
            return self.broken.push(what);
        }
        if stamp != 0
            && let Some(write) = self.sector(index).iter_mut().find(|w| w.stamp == stamp)
        {
            write.reads.push((from, to));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn done(oracle: &mut Oracle, fua: bool) -> Stamp {
        let begun = oracle.write([7], false, None);
        oracle.acknowledge(&begun, fua);
        begun.stamp
    }

    fn read(oracle: &mut Oracle, stamp: Stamp) -> usize {
        let from = oracle.moment();
        oracle.read(7, Some(stamp), from);
        std::mem::take(&mut oracle.broken).len()
    }

    #[test]
    fn an_acknowledged_write_is_there_and_what_was_before_is_not() {
        let mut oracle = Oracle::new(1);
        assert_eq!(read(&mut oracle, 0), 0);
        let one = done(&mut oracle, false);
        assert_eq!(read(&mut oracle, 0), 1);
        let two = done(&mut oracle, false);
        assert_eq!(read(&mut oracle, one), 1);
        assert_eq!(read(&mut oracle, two), 0);
    }

    #[test]
    fn an_unacknowledged_write_happens_at_most_once() {
        let mut oracle = Oracle::new(1);
        let one = done(&mut oracle, false);
        let two = oracle.write([7], false, None).stamp;
        assert_eq!(read(&mut oracle, one), 0);
        assert_eq!(read(&mut oracle, two), 0);
        assert_eq!(read(&mut oracle, one), 1, "flips back");
        let three = done(&mut oracle, false);
        assert_eq!(read(&mut oracle, three), 0);
        assert_eq!(read(&mut oracle, two), 1, "happens twice");
    }

    #[test]
    fn a_ruin_takes_back_what_was_not_flushed_and_no_more() {
        let mut oracle = Oracle::new(1);
        let one = done(&mut oracle, false);
        let from = oracle.moment();
        oracle.flushed(from);
        let two = done(&mut oracle, false);
        let three = done(&mut oracle, false);
        oracle.ruined();
        assert_eq!(read(&mut oracle, 0), 1, "it was flushed over");
        assert_eq!(read(&mut oracle, two), 0);
        assert_eq!(read(&mut oracle, one), 1, "what the disks hold has been seen");
        let four = done(&mut oracle, true);
        oracle.ruined();
        assert_eq!(read(&mut oracle, three), 1);
        assert_eq!(read(&mut oracle, four), 0);
    }

    #[test]
    fn what_a_client_sent_before_it_attached_again_happens_no_more() {
        let mut oracle = Oracle::new(1);
        let by = |generation| Some(Attached { client: 1, generation });
        let late = oracle.write([7], false, by(1)).stamp;
        let other = oracle.write([7], false, None).stamp;
        oracle.attached(Attached { client: 1, generation: 2 });
        let one = done(&mut oracle, false);
        assert_eq!(read(&mut oracle, late), 1, "another was acknowledged");
        assert_eq!(read(&mut oracle, one), 0);
        assert_eq!(read(&mut oracle, other), 0, "without a name it may happen whenever");
        let early = oracle.write([7], false, by(2)).stamp;
        oracle.attached(Attached { client: 1, generation: 3 });
        assert_eq!(read(&mut oracle, early), 0, "it happened before");
    }

    #[test]
    fn a_blur_takes_back_what_was_only_seen() {
        let mut oracle = Oracle::new(1);
        let one = done(&mut oracle, false);
        let two = oracle.write([7], false, None).stamp;
        assert_eq!(read(&mut oracle, two), 0);
        oracle.blurred();
        assert_eq!(read(&mut oracle, 0), 1, "another was acknowledged");
        assert_eq!(read(&mut oracle, one), 0);
    }
}
