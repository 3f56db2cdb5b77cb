//! How far the copies of a slot that is catching up have come. Pure.
//!
//! ```text
//!  (unknown) ──write: too early, remember its version──▶ Unfilled ──pull begins──▶ Pulling
//!      │                                                    ▲                        │ writes are kept
//!      │ created while we listen                            └── a gap ── Filled ◀────┘ pulled, kept writes applied
//!      └────────────────────────────────────────────────────────────────▶ ▲
//! ```
//!
//! From the moment a node is catching up, every write of the slot reaches it. A write to an object that it
//! does not have yet is answered "deferred": the pull that follows takes a copy at least that new.

use std::collections::HashMap;

use bytes::Bytes;
use wire::id::{Birth, Oid, Version};
use wire::peer::WriteRequest;

/// Kept writes beyond this many bytes are dropped and pulled again instead.
pub(crate) const KEPT_BYTES_MAX: usize = 8 << 20;

/// A write that came while its object was being pulled.
#[derive(Debug, Clone)]
pub(crate) struct Kept {
    pub(crate) request: WriteRequest,
    pub(crate) data: Bytes,
    pub(crate) crcs: Vec<u32>,
}

/// How far one object has come.
#[derive(Debug)]
pub(crate) enum ObjectFill {
    /// To be pulled, in a version not below this.
    Unfilled(Version),
    /// Being pulled in a version not below `at_least`.
    Pulling { at_least: Version, kept: Vec<Kept>, bytes: usize },
    /// Equal to the source, and every later write is applied.
    Filled,
}

/// How far a slot has come.
#[derive(Debug, Default)]
pub(crate) struct SlotFill {
    /// The configuration version in which the catching up began.
    pub(crate) since: u64,
    /// The admission has been asked for: from now on a gap is an error that the owner must hear of.
    pub(crate) admitting: bool,
    objects: HashMap<(Oid, Birth), ObjectFill>,
}

/// What to do with a write.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Arrival {
    /// Apply it if it follows the copy's version.
    Apply,
    /// Answer "deferred"; it has been kept or will be pulled.
    Deferred,
}

impl SlotFill {
    pub(crate) fn new(since: u64) -> Self {
        Self { since, ..Self::default() }
    }

    /// A write arrives.
    pub(crate) fn arrive(
        &mut self,
        object: (Oid, Birth),
        version: Version,
        write: impl FnOnce() -> Kept,
    ) -> Arrival {
        let fill = self.objects.entry(object).or_insert(ObjectFill::Unfilled(version));
        match fill {
            ObjectFill::Filled => return Arrival::Apply,
            ObjectFill::Unfilled(at_least) => *at_least = version.max(*at_least),
            ObjectFill::Pulling { kept, bytes, at_least } => {
                let write = write();
                *bytes += write.data.len();
                if *bytes > KEPT_BYTES_MAX {
                    *fill = ObjectFill::Unfilled(version.max(*at_least));
                } else {
                    kept.push(write);
                }
            }
        }
        Arrival::Deferred
    }

    /// The object was created while we listen: it is complete, unless it was known already.
    pub(crate) fn created(&mut self, object: (Oid, Birth)) {
        self.objects.entry(object).or_insert(ObjectFill::Filled);
    }

    /// A write did not follow the copy's version: the object must be pulled again.
    pub(crate) fn gap(&mut self, object: (Oid, Birth), version: Version) {
        self.objects.insert(object, ObjectFill::Unfilled(version));
    }

    /// The object is gone.
    pub(crate) fn removed(&mut self, object: (Oid, Birth)) {
        self.objects.remove(&object);
    }

    /// Begins to pull an object; returns the version it must have at least. `None` if it is filled and the
    /// source's `version` does not say otherwise.
    pub(crate) fn begin(&mut self, object: (Oid, Birth)) -> Version {
        let at_least = match self.objects.get(&object) {
            Some(ObjectFill::Unfilled(v) | ObjectFill::Pulling { at_least: v, .. }) => *v,
            Some(ObjectFill::Filled) | None => Version::default(),
        };
        self.objects.insert(object, ObjectFill::Pulling { at_least, kept: Vec::new(), bytes: 0 });
        at_least
    }

    /// The pull has ended: the writes kept meanwhile, to be applied before anything else. `None` if they
    /// were too many or the object was removed, so that it must be pulled again.
    pub(crate) fn finish(&mut self, object: (Oid, Birth)) -> Option<Vec<Kept>> {
        match self.objects.get_mut(&object) {
            Some(fill @ ObjectFill::Pulling { .. }) => match std::mem::replace(fill, ObjectFill::Filled) {
                ObjectFill::Pulling { kept, .. } => Some(kept),
                ObjectFill::Filled | ObjectFill::Unfilled(_) => None,
            },
            _ => None,
        }
    }

    /// Whether an object is equal to its source as far as we know.
    pub(crate) fn is_filled(&self, object: (Oid, Birth)) -> bool {
        matches!(self.objects.get(&object), Some(ObjectFill::Filled))
    }

    /// Marks an object as equal that was found so without copying, unless a write has come too early for it.
    pub(crate) fn found_equal(&mut self, object: (Oid, Birth)) {
        self.objects.entry(object).or_insert(ObjectFill::Filled);
    }

    /// Objects that still have to be pulled, whether or not the source listed them.
    pub(crate) fn unfilled(&self) -> Vec<(Oid, Birth)> {
        self.objects.iter().filter(|(_, f)| !matches!(f, ObjectFill::Filled)).map(|(o, _)| *o).collect()
    }

    /// Forgets how far the objects of one VDI have come: its owner has changed, so they are compared again.
    pub(crate) fn forget(&mut self, creator: wire::id::VdiId) {
        self.objects.retain(|(oid, _), _| oid.creator() != creator);
    }
}

#[cfg(test)]
mod tests {
    use wire::id::{Generation, VdiId};

    use super::*;

    fn version(seq: u64) -> Version {
        Version { generation: Generation(1), seq }
    }

    fn object() -> (Oid, Birth) {
        (Oid::data(VdiId(1), 0), Birth(1))
    }

    fn kept(len: usize) -> Kept {
        Kept { request: WriteRequest::default(), data: Bytes::from(vec![0; len]), crcs: vec![] }
    }

    #[test]
    fn a_write_before_the_pull_sets_how_new_the_copy_must_be() {
        let mut fill = SlotFill::new(1);
        assert_eq!(fill.arrive(object(), version(5), || kept(1)), Arrival::Deferred);
        assert_eq!(fill.arrive(object(), version(7), || kept(1)), Arrival::Deferred);
        assert_eq!(fill.begin(object()), version(7));
        assert_eq!(fill.arrive(object(), version(8), || kept(1)), Arrival::Deferred);
        assert_eq!(fill.finish(object()).map(|k| k.len()), Some(1));
        assert_eq!(fill.arrive(object(), version(9), || kept(1)), Arrival::Apply);
        assert!(fill.unfilled().is_empty());
    }

    #[test]
    fn too_many_kept_writes_mean_another_pull() {
        let mut fill = SlotFill::new(1);
        fill.begin(object());
        assert_eq!(fill.arrive(object(), version(3), || kept(KEPT_BYTES_MAX + 1)), Arrival::Deferred);
        assert!(fill.finish(object()).is_none());
        assert_eq!(fill.begin(object()), version(3));
    }

    #[test]
    fn a_gap_makes_an_object_unfilled_again() {
        let mut fill = SlotFill::new(1);
        fill.created(object());
        assert_eq!(fill.arrive(object(), version(1), || kept(1)), Arrival::Apply);
        fill.gap(object(), version(3));
        assert_eq!(fill.unfilled(), [object()]);
        assert_eq!(fill.begin(object()), version(3));
    }
}
