//! What files and directories hold, and what a power cut leaves of it.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::sync::Arc;

use rand::Rng;
use rand::rngs::StdRng;

use super::Names;

const SECTOR: u64 = 512;
/// How many contents of a sector since its last sync are remembered; the oldest go first.
const HISTORY_MAX: usize = 8;

type Bytes = [u8; SECTOR as usize];
/// Shared by all that remember the same contents.
type Sector = Arc<Bytes>;

fn zeros() -> Sector {
    Arc::new([0; SECTOR as usize])
}

/// A file: what it reads as, what is durable of it, and what came in between.
#[derive(Default)]
pub(super) struct FileNode {
    /// Sectors that are not zeros.
    now: BTreeMap<u64, Sector>,
    pub(super) len: u64,
    durable: BTreeMap<u64, Sector>,
    durable_len: u64,
    /// Lengths since the last sync, in order, and whether each was reached by writing on, sector by sector.
    lengths: Vec<(u64, bool)>,
    /// Contents of each sector changed since the last sync, in order.
    history: BTreeMap<u64, Vec<Sector>>,
}

/// A directory's names, as they read and as they are durable.
#[derive(Default)]
pub(super) struct DirNode {
    pub(super) now: Names,
    pub(super) durable: Names,
}

impl FileNode {
    /// What reads now, all of it durable.
    pub(super) fn settled(&self) -> Self {
        Self {
            now: self.now.clone(),
            len: self.len,
            durable: self.now.clone(),
            durable_len: self.len,
            ..Self::default()
        }
    }

    /// Flips a bit, as it reads and as it is durable.
    pub(super) fn flip(&mut self, bit: u64) {
        let (sector, at) = (bit / 8 / SECTOR, (bit / 8 % SECTOR) as usize);
        for side in [&mut self.now, &mut self.durable] {
            Arc::make_mut(side.entry(sector).or_insert_with(zeros))[at] ^= 1 << (bit % 8);
        }
    }

    /// Bytes of disk that it takes.
    pub(super) fn space(&self) -> u64 {
        self.now.len() as u64 * SECTOR
    }

    pub(super) fn read(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        if offset + buf.len() as u64 > self.len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut done = 0;
        while done < buf.len() {
            let at = offset + done as u64;
            let skip = (at % SECTOR) as usize;
            let step = (SECTOR as usize - skip).min(buf.len() - done);
            let part = &mut buf[done..done + step];
            match self.now.get(&(at / SECTOR)) {
                Some(sector) => part.copy_from_slice(&sector[skip..skip + step]),
                None => part.fill(0),
            }
            done += step;
        }
        Ok(())
    }

    /// Whether a range takes no space that the file does not have.
    pub(super) fn holds(&self, offset: u64, len: u64) -> bool {
        (offset / SECTOR..(offset + len).div_ceil(SECTOR)).all(|index| self.now.contains_key(&index))
    }

    pub(super) fn write(&mut self, data: &[u8], offset: u64) {
        let mut done = 0;
        while done < data.len() {
            let at = offset + done as u64;
            let skip = (at % SECTOR) as usize;
            let step = (SECTOR as usize - skip).min(data.len() - done);
            self.change(at / SECTOR, |sector| {
                sector[skip..skip + step].copy_from_slice(&data[done..done + step]);
            });
            done += step;
        }
        let end = offset + data.len() as u64;
        if end > self.len {
            self.len = end;
            self.lengths.push((end, true));
        }
    }

    pub(super) fn clear(&mut self, offset: u64, end: u64) {
        let touched: Vec<u64> =
            self.now.range(offset / SECTOR..end.div_ceil(SECTOR)).map(|(index, _)| *index).collect();
        for index in touched {
            let from = offset.saturating_sub(index * SECTOR).min(SECTOR) as usize;
            let upto = end.saturating_sub(index * SECTOR).min(SECTOR) as usize;
            self.change(index, |sector| sector[from..upto].fill(0));
        }
    }

    fn change(&mut self, index: u64, with: impl FnOnce(&mut Bytes)) {
        let sector = self.now.entry(index).or_insert_with(zeros);
        with(Arc::make_mut(sector));
        let history = self.history.entry(index).or_default();
        if history.len() == HISTORY_MAX {
            history.remove(0);
        }
        history.push(sector.clone());
    }

    pub(super) fn set_len(&mut self, len: u64) {
        if len < self.len {
            self.clear(len, self.len);
        }
        self.len = len;
        self.lengths.push((len, false));
    }

    /// A sync fails: every other sector is kept from the disk for ever, though it reads as before.
    pub(super) fn fail_sync(&mut self) {
        let mut changed = std::mem::take(&mut self.history);
        changed.retain(|index, _| index % 2 == 0);
        self.history = changed;
        self.lengths.clear();
    }

    pub(super) fn sync(&mut self) {
        for index in std::mem::take(&mut self.history).into_keys() {
            match self.now.get(&index) {
                Some(sector) if **sector != [0; SECTOR as usize] => {
                    self.durable.insert(index, sector.clone());
                }
                _ => {
                    self.now.remove(&index);
                    self.durable.remove(&index);
                }
            }
        }
        self.durable_len = self.len;
        self.lengths.clear();
    }

    pub(super) fn cut(&mut self, rng: &mut StdRng) {
        for (index, contents) in std::mem::take(&mut self.history) {
            let choice = rng.random_range(0..=contents.len());
            if choice > 0 {
                self.durable.insert(index, contents[choice - 1].clone());
            }
        }
        // A length that is set is there whole or not at all; writing on may have come part of the way.
        let reached = rng.random_range(0..=self.lengths.len());
        self.len = reached.checked_sub(1).map_or(self.durable_len, |last| self.lengths[last].0);
        if let Some((next, true)) = self.lengths.get(reached).copied() {
            let sectors = (next - self.len) / SECTOR;
            let from = self.len.next_multiple_of(SECTOR);
            self.len = (from + rng.random_range(0..=sectors) * SECTOR).min(next);
        }
        self.durable_len = self.len;
        self.now = self.durable.clone();
        self.clear(self.len, u64::MAX - SECTOR);
        self.sync();
    }
}

impl DirNode {
    pub(super) fn cut(&mut self, rng: &mut StdRng) {
        let names: HashSet<&String> = self.now.keys().chain(self.durable.keys()).collect();
        let mut names: Vec<String> = names.into_iter().cloned().collect();
        names.sort_unstable();
        for name in names {
            if self.now.get(&name) != self.durable.get(&name) && rng.random() {
                match self.now.get(&name) {
                    Some(ino) => self.durable.insert(name, *ino),
                    None => self.durable.remove(&name),
                };
            }
        }
        self.now = self.durable.clone();
    }
}
