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
use wire::id::{Birth, Generation, Oid, VdiId, Version};
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

    /// The fill for catching up since a configuration version: this one, or a new one in its place. `None` if the
    /// node has begun anew since: what is known of that time is not given up for what an earlier one still does.
    pub(crate) fn at(&mut self, since: u64) -> Option<&mut Self> {
        if since > self.since {
            *self = Self::new(since);
        }
        (since == self.since).then_some(self)
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

    /// The object must be pulled again, in a version not below this: a write did not follow the copy's, or a pull
    /// came to nothing. Whatever was answered "deferred" meanwhile has to be in it too.
    pub(crate) fn gap(&mut self, object: (Oid, Birth), version: Version) {
        let at_least = version.max(self.owed(object));
        self.objects.insert(object, ObjectFill::Unfilled(at_least));
    }

    /// The newest version that was answered "deferred".
    fn owed(&self, object: (Oid, Birth)) -> Version {
        match self.objects.get(&object) {
            Some(ObjectFill::Unfilled(at_least)) => *at_least,
            Some(ObjectFill::Pulling { at_least, kept, .. }) => newest(kept).max(*at_least),
            Some(ObjectFill::Filled) | None => Version::default(),
        }
    }

    /// The object is gone.
    pub(crate) fn removed(&mut self, object: (Oid, Birth)) {
        self.objects.remove(&object);
    }

    /// Begins to pull an object; returns the version it must have at least. If `owner` is the generation of an owner
    /// that is there, what it has written to the `own` copy was answered, and is not given up for less.
    pub(crate) fn begin(&mut self, object: (Oid, Birth), own: Version, owner: Option<Generation>) -> Version {
        let owed = self.owed(object);
        let is_owed = owner.is_some_and(|generation| own.generation >= generation);
        let at_least = if is_owed { owed.max(own) } else { owed };
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

    /// Whether all that is known of is equal to the source. If so the admission is asked for: from now on every gap
    /// is told to the owner.
    pub(crate) fn commit(&mut self) -> bool {
        self.admitting = self.unfilled().is_empty();
        self.admitting
    }

    /// How far one object has come, if anything is known of it.
    #[cfg(test)]
    pub(crate) fn object(&self, object: (Oid, Birth)) -> Option<&ObjectFill> {
        self.objects.get(&object)
    }

    /// Forgets how far the objects of one VDI have come: its owner has changed, so they are compared again. What its
    /// present `generation` has written or created stays: that was answered, and whoever is asked next may not have
    /// it yet. What an earlier one had under way may never come to be.
    pub(crate) fn forget(&mut self, creator: VdiId, generation: Generation) {
        self.objects.retain(|(oid, birth), fill| {
            let is_owed = matches!(fill, ObjectFill::Unfilled(v) if v.generation >= generation);
            oid.creator() != creator || birth.generation() >= generation || is_owed
        });
    }
}

/// The newest version among writes that were kept.
pub(crate) fn newest(kept: &[Kept]) -> Version {
    kept.iter().map(|k| Version::from(k.request.version)).max().unwrap_or_default()
}

#[cfg(test)]
mod tests {
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
        assert_eq!(fill.begin(object(), Version::default(), None), version(7));
        assert_eq!(fill.arrive(object(), version(8), || kept(1)), Arrival::Deferred);
        assert_eq!(fill.finish(object()).map(|k| k.len()), Some(1));
        assert_eq!(fill.arrive(object(), version(9), || kept(1)), Arrival::Apply);
        assert!(fill.unfilled().is_empty());
    }

    #[test]
    fn an_earlier_time_of_catching_up_does_not_replace_a_later_one() {
        let mut fill = SlotFill::new(3);
        assert_eq!(fill.arrive(object(), version(5), || kept(1)), Arrival::Deferred);
        assert!(fill.at(2).is_none());
        assert_eq!(fill.at(3).map(|f| f.unfilled()), Some(vec![object()]));
        assert_eq!(fill.at(4).map(|f| f.unfilled()), Some(vec![]));
    }

    #[test]
    fn too_many_kept_writes_mean_another_pull() {
        let mut fill = SlotFill::new(1);
        fill.begin(object(), Version::default(), None);
        assert_eq!(fill.arrive(object(), version(3), || kept(KEPT_BYTES_MAX + 1)), Arrival::Deferred);
        assert!(fill.finish(object()).is_none());
        assert_eq!(fill.begin(object(), Version::default(), None), version(3));
    }

    #[test]
    fn a_gap_makes_an_object_unfilled_again() {
        let mut fill = SlotFill::new(1);
        fill.created(object());
        assert_eq!(fill.arrive(object(), version(1), || kept(1)), Arrival::Apply);
        fill.gap(object(), version(3));
        assert_eq!(fill.unfilled(), [object()]);
        assert_eq!(fill.begin(object(), Version::default(), None), version(3));
    }

    #[test]
    fn a_change_of_owner_forgets_what_the_earlier_one_had_under_way_and_no_more() {
        let early = |generation| Version { generation: Generation(generation), seq: 3 };
        let mut fill = SlotFill::new(1);
        assert_eq!(fill.arrive(object(), early(2), || kept(1)), Arrival::Deferred);
        fill.forget(VdiId(1), Generation(2));
        fill.found_equal(object());
        assert!(!fill.commit(), "the source was listed before it had the write");
        assert_eq!(fill.begin(object(), Version::default(), None), early(2));
        fill.gap(object(), early(2));
        fill.forget(VdiId(1), Generation(3));
        fill.found_equal(object());
        assert!(fill.commit());
    }

    #[test]
    fn what_an_owner_that_is_there_has_written_is_not_given_up_for_less() {
        let mut fill = SlotFill::new(1);
        let own = version(4);
        assert_eq!(fill.begin(object(), own, Some(Generation(1))), own);
        // Of an earlier owner, or one that is gone: that may never have been anywhere else.
        for owner in [Some(Generation(2)), None] {
            assert_eq!(SlotFill::new(1).begin(object(), own, owner), Version::default());
        }
    }

    #[test]
    fn what_the_present_owner_has_created_is_complete_after_a_change_of_owner() {
        let born = Birth::new(Generation(2), 1).expect("in range");
        let object = (Oid::data(VdiId(1), 1), born);
        let mut fill = SlotFill::new(1);
        fill.created(object);
        fill.forget(VdiId(1), Generation(2));
        assert!(fill.is_filled(object), "who is listed next may not have it yet");
        fill.forget(VdiId(1), Generation(3));
        assert!(!fill.is_filled(object));
    }

    #[test]
    fn a_pull_that_came_to_nothing_is_not_the_end_of_what_came_meanwhile() {
        let kept = |seq| {
            let request = WriteRequest { version: version(seq).into(), ..WriteRequest::default() };
            Kept { request, data: Bytes::new(), crcs: vec![] }
        };
        let mut fill = SlotFill::new(1);
        let at_least = fill.begin(object(), Version::default(), None);
        fill.arrive(object(), version(2), || kept(2));
        fill.arrive(object(), version(3), || kept(3));
        assert_eq!(newest(&[kept(3), kept(2)]), version(3));
        fill.gap(object(), at_least);
        assert_eq!(fill.begin(object(), Version::default(), None), version(3));
    }
}
