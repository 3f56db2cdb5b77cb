//! How many copies an object has, and how many must be in sync for a write.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Full copies of every object, in distinct zones where there are enough.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
pub struct Copies(u8);

/// A number of copies outside 1 to 31.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0} copies: a VDI has 1 to {max} copies", max = Copies::MAX)]
pub struct CopiesOutOfRange(pub u64);

impl Copies {
    /// The most copies a VDI can have.
    pub const MAX: u8 = 31;

    /// `count` copies; refused outside 1 to [`Copies::MAX`].
    pub fn new(count: u64) -> Result<Self, CopiesOutOfRange> {
        u8::try_from(count)
            .ok()
            .filter(|c| (1..=Self::MAX).contains(c))
            .map(Self)
            .ok_or(CopiesOutOfRange(count))
    }

    /// The number of copies.
    pub fn get(self) -> u8 {
        self.0
    }

    /// How many copies must be in sync for a write to go ahead, unless a VDI says otherwise:
    /// copies less half of them, rounded down (3 → 2, 2 → 1).
    pub fn min_default(self) -> u8 {
        self.0 - self.0 / 2
    }
}

impl TryFrom<u8> for Copies {
    type Error = CopiesOutOfRange;

    fn try_from(count: u8) -> Result<Self, Self::Error> {
        Self::new(count.into())
    }
}

impl From<Copies> for u8 {
    fn from(copies: Copies) -> Self {
        copies.0
    }
}

impl fmt::Display for Copies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_outside_one_to_thirty_one_are_refused() {
        assert!(Copies::new(0).is_err());
        assert!(Copies::new(32).is_err());
        assert!(Copies::new(u64::MAX).is_err());
        assert_eq!(Copies::new(31).map(Copies::get), Ok(31));
    }

    #[test]
    fn most_of_the_copies_must_be_in_sync_for_a_write() {
        let min = |n| Copies::new(n).expect("in range").min_default();
        assert_eq!([min(1), min(2), min(3), min(4), min(5)], [1, 1, 2, 2, 3]);
    }
}
