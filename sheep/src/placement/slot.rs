//! Objects to slots.
//!
//! A slot is the top bits of a fixed 64-bit hash. With twice as many slots, slot `s` becomes `2s` and
//! `2s + 1` and nothing crosses: so slots can be split while in use. The hash is part of the on-disk
//! format (files lie under their slot), hence the golden values in the tests.

use serde::{Deserialize, Serialize};
use twox_hash::XxHash64;
use wire::id::{Oid, SlotIndex, VdiId};

/// How many slots a ring has: a power of two from 2^8 to 2^20, fixed when it is founded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct SlotCount {
    bits: u32,
}

/// A number of slots that is not allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0} slots: must be a power of two from {min} to {max}", min = SlotCount::MIN, max = SlotCount::MAX)]
pub struct SlotCountError(pub u32);

impl SlotCount {
    /// The fewest slots; below it the copies spread badly over even a few nodes.
    pub const MIN: u32 = 1 << 8;
    /// The most slots; the cluster log keeps a configuration for each.
    pub const MAX: u32 = 1 << 20;

    /// `count` slots.
    pub fn new(count: u32) -> Result<Self, SlotCountError> {
        if count.is_power_of_two() && (Self::MIN..=Self::MAX).contains(&count) {
            Ok(Self { bits: count.trailing_zeros() })
        } else {
            Err(SlotCountError(count))
        }
    }

    /// The number of slots.
    pub fn get(self) -> u32 {
        1 << self.bits
    }

    /// Base-two logarithm of the number of slots.
    pub fn bits(self) -> u32 {
        self.bits
    }

    /// Every slot, in order.
    pub fn iter(self) -> impl ExactSizeIterator<Item = SlotIndex> {
        (0..self.get()).map(SlotIndex)
    }
}

impl Default for SlotCount {
    fn default() -> Self {
        Self { bits: 12 }
    }
}

impl TryFrom<u32> for SlotCount {
    type Error = SlotCountError;

    fn try_from(count: u32) -> Result<Self, Self::Error> {
        Self::new(count)
    }
}

impl From<SlotCount> for u32 {
    fn from(count: SlotCount) -> Self {
        count.get()
    }
}

/// The slot of `oid`, where `family` is the root of its VDI's snapshot and clone tree.
///
/// The creator is deliberately left out: an object and its copy-on-write successor in a clone fall into
/// the same slot, so the copy is made on each node locally.
pub fn slot_of(family: VdiId, oid: Oid, slots: SlotCount) -> SlotIndex {
    let kind = (oid.0 >> 120) as u8;
    let mut key = [0; 17];
    key[..8].copy_from_slice(&family.0.to_be_bytes());
    key[8] = kind;
    key[9..].copy_from_slice(&oid.index().to_be_bytes());
    let hash = XxHash64::oneshot(0, &key);
    let top = hash >> (64 - slots.bits);
    SlotIndex(u32::try_from(top).expect("a slot count has at most 20 bits"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn count(n: u32) -> SlotCount {
        SlotCount::new(n).expect("allowed")
    }

    #[test]
    fn slot_counts_are_powers_of_two_within_limits() {
        assert_eq!(SlotCount::default().get(), 4096);
        for bad in [0, 1, 128, 255, 257, 1 << 21, u32::MAX] {
            assert_eq!(SlotCount::new(bad), Err(SlotCountError(bad)));
        }
        assert_eq!(count(256).iter().len(), 256);
    }

    /// A change here moves every object of every ring: never change these values.
    #[test]
    fn slots_are_fixed_for_ever() {
        let max = count(SlotCount::MAX);
        let slot = |family, oid| slot_of(VdiId(family), oid, max).0;
        let found = [
            slot(1, Oid::data(VdiId(1), 0)),
            slot(1, Oid::data(VdiId(1), 1)),
            slot(1, Oid::map(VdiId(1), 0, 0)),
            slot(u64::MAX, Oid::data(VdiId(7), Oid::INDEX_MAX)),
        ];
        assert_eq!(found, GOLDEN);
    }

    const GOLDEN: [u32; 4] = [907_964, 1_041_284, 721_546, 483_504];

    #[test]
    fn objects_spread_evenly_over_slots() {
        let slots = count(256);
        let mut held = vec![0_u32; 256];
        for index in 0..256 * 400 {
            held[slot_of(VdiId(3), Oid::data(VdiId(3), index), slots).0 as usize] += 1;
        }
        // Five standard deviations of a binomial with mean 400.
        assert!(held.iter().all(|&n| (300..500).contains(&n)), "{held:?}");
    }

    proptest! {
        #[test]
        fn a_slot_splits_into_its_two_children(family: u64, index in 0..Oid::INDEX_MAX, bits in 8_u32..20) {
            let oid = Oid::data(VdiId(9), index);
            let parent = slot_of(VdiId(family), oid, count(1 << bits));
            let child = slot_of(VdiId(family), oid, count(1 << (bits + 1)));
            prop_assert_eq!(child.0 >> 1, parent.0);
        }

        #[test]
        fn a_clones_object_shares_its_parents_slot(family: u64, a: u64, b: u64, index in 0..Oid::INDEX_MAX) {
            let slot = |creator| slot_of(VdiId(family), Oid::data(VdiId(creator), index), SlotCount::default());
            prop_assert_eq!(slot(a), slot(b));
        }
    }
}
