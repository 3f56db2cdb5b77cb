//! Identifiers and their bit layouts.
//!
//! All of them are plain numbers with a fixed width on the wire and on disk; see `docs/format.md`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// An identifier that could not be parsed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not {expected}")]
pub struct ParseIdError {
    text: String,
    expected: &'static str,
}

macro_rules! number_id {
    ($(#[$meta:meta])* $name:ident) => {
        $(#[$meta])*
        #[derive(
            Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
        )]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number_id! {
    /// A virtual disk image. Ids start at 1, grow, and are never used twice in a ring's life.
    VdiId
}
number_id! {
    /// Version of the ring's membership. Every change of who is in raises it.
    Epoch
}
number_id! {
    /// Which ownership of a VDI a request belongs to; raised at every change of owner. At most 2^40 - 1.
    Generation
}

/// A node's identity: a random number kept in its directory, not its address.
///
/// Printed and parsed as 16 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NodeId(pub u64);

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeId({self})")
    }
}

impl FromStr for NodeId {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || ParseIdError { text: text.to_owned(), expected: "a node id (16 hexadecimal digits)" };
        if text.len() != 16 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(error());
        }
        u64::from_str_radix(text, 16).map(NodeId).map_err(|_| error())
    }
}

/// A ring's identity, drawn when it is founded. Printed as 32 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ClusterId(pub u128);

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClusterId({self})")
    }
}

impl FromStr for ClusterId {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        u128::from_str_radix(text, 16).ok().filter(|_| text.len() == 32).map(ClusterId).ok_or_else(|| {
            ParseIdError { text: text.to_owned(), expected: "a cluster id (32 hexadecimal digits)" }
        })
    }
}

/// A running instance of a node: one start of one process, on one boot of one machine.
///
/// In-sync membership and leases are bound to it, so a restarted sheep never inherits them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Session {
    /// The node.
    pub node: NodeId,
    /// How many times the node's directory has been started; starts at 1.
    pub start: u64,
}

impl fmt::Display for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.node, self.start)
    }
}

/// What an object holds; the top 8 bits of its id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum ObjectKind {
    /// A piece of a VDI's data.
    Data = 1,
    /// A page of a VDI's object map.
    Map = 2,
}

/// An object's id, 128 bits: kind 8, creator VDI 64, index 56 (from the top).
///
/// Printed and parsed as 32 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Oid(pub u128);

impl Oid {
    /// The largest index an oid can hold.
    pub const INDEX_MAX: u64 = (1 << 56) - 1;

    /// The id of the data object at `index` of `creator`.
    ///
    /// Panics if `index` is above [`Oid::INDEX_MAX`]; a VDI has at most 2^32 objects.
    pub fn data(creator: VdiId, index: u64) -> Self {
        Self::new(ObjectKind::Data, creator, index)
    }

    /// The id of the map page at `level` (0 is the leaves) and `page` within that level.
    ///
    /// Panics if `page` does not fit 48 bits.
    pub fn map(creator: VdiId, level: u8, page: u64) -> Self {
        assert!(page < 1 << 48, "map page {page} out of range");
        Self::new(ObjectKind::Map, creator, u64::from(level) << 48 | page)
    }

    fn new(kind: ObjectKind, creator: VdiId, index: u64) -> Self {
        assert!(index <= Self::INDEX_MAX, "object index {index} out of range");
        Self((kind as u128) << 120 | u128::from(creator.0) << 56 | u128::from(index))
    }

    /// What the object holds, or `None` for a kind this version does not know.
    pub fn kind(self) -> Option<ObjectKind> {
        match (self.0 >> 120) as u8 {
            1 => Some(ObjectKind::Data),
            2 => Some(ObjectKind::Map),
            _ => None,
        }
    }

    /// The VDI that created the object.
    pub fn creator(self) -> VdiId {
        VdiId((self.0 >> 56) as u64)
    }

    /// The object's index; for a map page its level and number.
    pub fn index(self) -> u64 {
        self.0 as u64 & Self::INDEX_MAX
    }
}

impl fmt::Display for Oid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for Oid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Oid({self})")
    }
}

impl FromStr for Oid {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        u128::from_str_radix(text, 16).ok().filter(|_| text.len() == 32).map(Oid).ok_or_else(|| {
            ParseIdError { text: text.to_owned(), expected: "an object id (32 hexadecimal digits)" }
        })
    }
}

/// Which creation of an object the map means, 64 bits: generation 40, counter 24 (from the top).
///
/// Never zero: a map entry of zero means "never allocated".
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Birth(pub u64);

impl Birth {
    /// The largest counter within one generation.
    const COUNTER_MAX: u64 = (1 << 24) - 1;

    /// A birth in `generation`; `None` when either number does not fit or both are zero.
    pub fn new(generation: Generation, counter: u64) -> Option<Self> {
        let fits = generation.0 < 1 << 40 && counter <= Self::COUNTER_MAX;
        let birth = Self(generation.0 << 24 | counter);
        (fits && birth.0 != 0).then_some(birth)
    }

    /// The generation of the owner that created the object.
    pub fn generation(self) -> Generation {
        Generation(self.0 >> 24)
    }

    /// The creation's number within its generation.
    pub fn counter(self) -> u64 {
        self.0 & Self::COUNTER_MAX
    }
}

impl fmt::Display for Birth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for Birth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Birth({self})")
    }
}

/// A write's place in its object's history: ordered by owner generation, then by number.
///
/// A copy's version is that of the last write it applied; every write names its predecessor, so equal
/// versions mean equal content. The zero version is that of an object just created.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Version {
    /// Generation of the owner that numbered the write.
    pub generation: Generation,
    /// Number of the write within the object's life.
    pub seq: u64,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.generation, self.seq)
    }
}

/// A group of objects that are placed and kept in sync together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SlotIndex(pub u32);

impl fmt::Display for SlotIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_oid_keeps_its_parts() {
        let oid = Oid::data(VdiId(u64::MAX), Oid::INDEX_MAX);
        assert_eq!(oid.kind(), Some(ObjectKind::Data));
        assert_eq!(oid.creator(), VdiId(u64::MAX));
        assert_eq!(oid.index(), Oid::INDEX_MAX);
        assert_eq!(oid.to_string().parse(), Ok(oid));
        assert_eq!(Oid::data(VdiId(5), 7).to_string(), "01000000000000000500000000000007");
        assert_eq!(Oid::map(VdiId(5), 2, 7).to_string(), "02000000000000000502000000000007");
    }

    #[test]
    fn a_birth_is_never_zero_and_keeps_its_parts() {
        assert_eq!(Birth::new(Generation(0), 0), None);
        assert_eq!(Birth::new(Generation(1 << 40), 0), None);
        assert_eq!(Birth::new(Generation(1), 1 << 24), None);
        let birth = Birth::new(Generation(3), 9).expect("fits");
        assert_eq!((birth.generation(), birth.counter()), (Generation(3), 9));
    }

    #[test]
    fn a_node_id_that_is_not_sixteen_hex_digits_is_refused() {
        assert_eq!("00000000000000ff".parse(), Ok(NodeId(255)));
        for bad in ["", "ff", "+0000000000000ff", "00000000000000fg", "00000000000000ff0"] {
            assert!(bad.parse::<NodeId>().is_err(), "{bad:?}");
        }
    }
}
