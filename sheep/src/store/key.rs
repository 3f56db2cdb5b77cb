//! What names an object on one node, and the paths made of it.

use std::fmt;
use std::path::{Path, PathBuf};

use wire::id::{Birth, Oid, SlotIndex, VdiId};
use wire::policy::Copies;

/// One creation of one object, and the slot configuration it belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey {
    /// How many copies the creator VDI asks for.
    pub copies: Copies,
    /// The slot.
    pub slot: SlotIndex,
    /// The object.
    pub oid: Oid,
    /// Which creation of it.
    pub birth: Birth,
}

impl ObjectKey {
    /// The VDI that created the object.
    pub fn creator(&self) -> VdiId {
        self.oid.creator()
    }

    pub(super) fn file_name(&self) -> String {
        format!("{}.{}", self.oid, self.birth)
    }

    pub(super) fn path(&self, objects: &Path) -> PathBuf {
        slot_dir(objects, self.copies, self.slot).join(self.file_name())
    }

    /// The key of a file in a slot's directory; `None` when the name is not one this module gives.
    pub(super) fn from_file_name(copies: Copies, slot: SlotIndex, name: &str) -> Option<Self> {
        let (oid, birth) = name.split_once('.')?;
        let oid: Oid = oid.parse().ok()?;
        let birth = Birth(u64::from_str_radix(birth, 16).ok()?);
        let key = Self { copies, slot, oid, birth };
        // Upper case or a sign would parse too, and then two names would mean one object.
        (key.file_name() == name).then_some(key)
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "r{}/{:05}/{}.{}", self.copies, self.slot.0, self.oid, self.birth)
    }
}

pub(super) fn copies_dir(objects: &Path, copies: Copies) -> PathBuf {
    objects.join(format!("r{copies}"))
}

pub(super) fn slot_dir(objects: &Path, copies: Copies, slot: SlotIndex) -> PathBuf {
    copies_dir(objects, copies).join(format!("{:05}", slot.0))
}

pub(super) fn parse_copies_dir(name: &str) -> Option<Copies> {
    let copies = Copies::new(name.strip_prefix('r')?.parse().ok()?).ok()?;
    (format!("r{copies}") == name).then_some(copies)
}

pub(super) fn parse_slot_dir(name: &str) -> Option<SlotIndex> {
    let slot = SlotIndex(name.parse().ok()?);
    (format!("{:05}", slot.0) == name).then_some(slot)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_parsed_only_in_the_form_it_was_given() {
        let (copies, slot) = (Copies::new(3).expect("fits"), SlotIndex(7));
        let key = ObjectKey { copies, slot, oid: Oid::data(VdiId(1), 2), birth: Birth(0xab) };
        assert_eq!(ObjectKey::from_file_name(copies, slot, &key.file_name()), Some(key));
        let upper = key.file_name().to_uppercase();
        for bad in ["", "x", upper.as_str(), &format!("{}0", key.file_name())] {
            assert_eq!(ObjectKey::from_file_name(copies, slot, bad), None, "{bad:?}");
        }
        assert_eq!(parse_copies_dir("r3"), Some(copies));
        assert_eq!(parse_copies_dir("r03"), None);
        assert_eq!(parse_copies_dir("r32"), None);
        assert_eq!(parse_slot_dir("00007"), Some(slot));
        assert_eq!(parse_slot_dir("123456"), Some(SlotIndex(123_456)));
        assert_eq!(parse_slot_dir("7"), None);
    }
}
