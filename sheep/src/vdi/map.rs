//! The object map's layout: a radix tree of pages of 1,024 entries, and how entries are encoded. Pure.
//!
//! An entry is 16 bytes, little endian: the creator VDI and the birth, both zero when nothing is allocated.
//! It never straddles a disk sector, so a torn page holds old and new entries but no mixed one. The leaves
//! are level 0; the root's birth is in the cluster log.

use wire::id::{Birth, VdiId};

/// Entries in a page.
pub(crate) const FANOUT: u64 = 1024;
/// Bytes of an entry.
pub(crate) const ENTRY_LEN: usize = 16;
/// Bytes of a page.
pub(crate) const PAGE_SIZE: u32 = FANOUT as u32 * ENTRY_LEN as u32;

/// What a map entry says of an object or page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) creator: VdiId,
    pub(crate) birth: Birth,
}

/// An entry that is neither zero nor well formed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("map entry {position} is damaged: creator {creator}, birth {birth}")]
pub(crate) struct BadEntry {
    position: usize,
    creator: u64,
    birth: u64,
}

/// How many levels a map over `objects` objects has; at least 1.
pub(crate) fn levels(objects: u64) -> u8 {
    let mut levels = 1;
    let mut reach = FANOUT;
    while reach < objects {
        levels += 1;
        reach = reach.saturating_mul(FANOUT);
    }
    levels
}

/// The page and the position in it that hold what is at `index` one level below.
pub(crate) fn place(index: u64) -> (u64, usize) {
    (index / FANOUT, (index % FANOUT) as usize)
}

/// An entry's bytes.
pub(crate) fn encode(entry: Option<Entry>) -> [u8; ENTRY_LEN] {
    let mut bytes = [0; ENTRY_LEN];
    if let Some(entry) = entry {
        bytes[..8].copy_from_slice(&entry.creator.0.to_le_bytes());
        bytes[8..].copy_from_slice(&entry.birth.0.to_le_bytes());
    }
    bytes
}

/// The entries of a page's bytes; missing bytes are an error of the caller.
pub(crate) fn decode(page: &[u8]) -> Result<Vec<Option<Entry>>, BadEntry> {
    let number = |bytes: &[u8]| bytes.iter().rev().fold(0u64, |n, b| n << 8 | u64::from(*b));
    page.chunks_exact(ENTRY_LEN)
        .enumerate()
        .map(|(position, bytes)| match (number(&bytes[..8]), number(&bytes[8..])) {
            (0, 0) => Ok(None),
            (creator, birth) if creator == 0 || birth == 0 => Err(BadEntry { position, creator, birth }),
            (creator, birth) => Ok(Some(Entry { creator: VdiId(creator), birth: Birth(birth) })),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_is_as_high_as_it_must_be() {
        assert_eq!([1, 1024, 1025, 1 << 20, (1 << 20) + 1, 1 << 32].map(levels), [1, 1, 2, 2, 3, 4]);
        assert_eq!(place(1_025), (1, 1));
    }

    #[test]
    fn entries_are_sixteen_bytes_little_endian() {
        let entry = Entry { creator: VdiId(0x0102), birth: Birth(0x0304) };
        let bytes = encode(Some(entry));
        assert_eq!(bytes, [2, 1, 0, 0, 0, 0, 0, 0, 4, 3, 0, 0, 0, 0, 0, 0]);
        let page = [bytes, encode(None)].concat();
        assert_eq!(decode(&page), Ok(vec![Some(entry), None]));
        let mut half = page;
        half[8..16].fill(0);
        assert!(decode(&half).is_err());
    }
}
