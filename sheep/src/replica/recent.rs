//! Writes that a replica has applied and whose owner has not called them stable yet. Pure.
//!
//! When an owner dies, these are the only ones that some copies may have and others not, and the only
//! client requests that may be sent again; the next owner learns them when it seals (rules 6 and 9).

use std::collections::BTreeMap;
use std::ops::Bound;

use wire::id::{Birth, Generation, Oid, Version};
use wire::peer::{AppliedRequest, ObjectRef, RequestId};

use crate::store::Place;

/// An applied write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Recent {
    pub(crate) object: ObjectRef,
    pub(crate) offset: u32,
    pub(crate) version: Version,
    pub(crate) request: Option<RequestId>,
    /// Where the disk has the request.
    pub(crate) place: Option<Place>,
}

impl Recent {
    fn applied(&self, number: u64) -> Option<AppliedRequest> {
        self.request.map(|request| AppliedRequest {
            request,
            object: self.object,
            offset: self.offset,
            version: self.version.into(),
            number,
        })
    }
}

/// One VDI's recent writes by generation and number.
#[derive(Debug, Default)]
pub(crate) struct RecentWrites {
    writes: BTreeMap<(Generation, u64), Recent>,
}

impl RecentWrites {
    /// Notes an applied write, and drops what its owner calls stable: everything of its generation below
    /// `stable`, and with `inherited_done` everything of earlier generations. Returns the places that become free.
    pub(crate) fn note(
        &mut self,
        generation: Generation,
        number: u64,
        stable: u64,
        inherited_done: bool,
        write: Recent,
    ) -> Vec<Place> {
        let mut free = Vec::new();
        if inherited_done && self.writes.first_key_value().is_some_and(|((of, _), _)| *of < generation) {
            let rest = self.writes.split_off(&(generation, 0));
            let over = std::mem::replace(&mut self.writes, rest);
            free.extend(over.into_values().filter_map(|w| w.place));
        }
        free.extend(self.writes.insert((generation, number), write).and_then(|w| w.place));
        while let Some((key, _)) = self.writes.range((generation, 0)..(generation, stable)).next() {
            let key = *key;
            free.extend(self.writes.remove(&key).and_then(|w| w.place));
        }
        free
    }

    /// Notes what another copy, or an earlier process, has applied. Returns a place that becomes free.
    pub(crate) fn adopt(&mut self, applied: &AppliedRequest, place: Option<Place>) -> Option<Place> {
        let version = Version::from(applied.version);
        let write = Recent {
            object: applied.object,
            offset: applied.offset,
            version,
            request: Some(applied.request),
            place,
        };
        self.writes.insert((version.generation, applied.number), write).and_then(|w| w.place)
    }

    /// Takes out all writes to one object, and returns their places.
    pub(crate) fn take(&mut self, name: (Oid, Birth)) -> Vec<Place> {
        let mut places = Vec::new();
        self.writes.retain(|_, write| {
            let stays = (write.object.oid(), write.object.birth()) != name;
            places.extend(write.place.filter(|_| !stays));
            stays
        });
        places
    }

    /// All places in use.
    pub(crate) fn places(&self) -> Vec<Place> {
        self.writes.values().filter_map(|w| w.place).collect()
    }

    /// The client requests applied to one object.
    pub(crate) fn of_object(&self, name: (Oid, Birth)) -> Vec<AppliedRequest> {
        let writes = self.writes.iter().filter(|(_, w)| (w.object.oid(), w.object.birth()) == name);
        writes.filter_map(|((_, number), w)| w.applied(*number)).collect()
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.writes.len()
    }

    /// The objects written to, each once.
    pub(crate) fn objects(&self) -> Vec<ObjectRef> {
        let mut seen = std::collections::HashSet::new();
        self.writes.values().map(|w| w.object).filter(|o| seen.insert(*o)).collect()
    }

    /// Up to `max` of the client requests applied after position `after`, and the position of the last one
    /// if there are more.
    pub(crate) fn requests(
        &self,
        after: (Generation, u64),
        max: usize,
    ) -> (Vec<AppliedRequest>, Option<(Generation, u64)>) {
        let mut rest = self.writes.range((Bound::Excluded(after), Bound::Unbounded));
        let mut found = Vec::new();
        let mut last = after;
        for (key, write) in rest.by_ref().take(max) {
            last = *key;
            found.extend(write.applied(key.1));
        }
        (found, rest.next().map(|_| last))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(seq: u64) -> Recent {
        Recent {
            object: ObjectRef { oid_low: seq, ..ObjectRef::default() },
            offset: 0,
            version: Version { generation: Generation(1), seq },
            request: Some(RequestId { node: 1, start: 1, number: seq }),
            place: Some(seq as Place),
        }
    }

    fn numbers(recent: &RecentWrites) -> Vec<u64> {
        let (mut all, mut at) = (Vec::new(), Some((Generation(0), 0)));
        while let Some(after) = at {
            let (some, more) = recent.requests(after, 2);
            all.extend(some.iter().map(|r| r.request.number));
            at = more;
        }
        all
    }

    #[test]
    fn a_write_is_kept_until_its_owner_calls_it_stable() {
        let mut recent = RecentWrites::default();
        recent.note(Generation(1), 1, 1, true, write(1));
        recent.note(Generation(1), 3, 1, true, write(3));
        recent.note(Generation(1), 2, 1, true, write(2));
        assert_eq!(numbers(&recent), [1, 2, 3]);
        assert_eq!(recent.note(Generation(1), 4, 3, true, write(4)), [1, 2], "their places are free");
        assert_eq!(numbers(&recent), [3, 4]);
    }

    #[test]
    fn what_an_earlier_generation_left_goes_only_when_it_is_dealt_with() {
        let mut recent = RecentWrites::default();
        recent.note(Generation(1), 7, 1, true, write(1));
        recent.note(Generation(2), 1, 1, false, write(2));
        assert_eq!(numbers(&recent), [1, 2]);
        recent.note(Generation(2), 2, 2, false, write(3));
        assert_eq!(numbers(&recent), [1, 3], "its own go all the same");
        assert_eq!(recent.note(Generation(2), 3, 3, true, write(4)), [1, 3]);
        assert_eq!(numbers(&recent), [4]);
    }

    #[test]
    fn an_object_s_requests_go_with_it_and_come_with_its_pull() {
        let mut recent = RecentWrites::default();
        recent.note(Generation(1), 1, 1, true, write(1));
        recent.note(Generation(1), 2, 1, true, write(2));
        let name = |seq| (write(seq).object.oid(), write(seq).object.birth());
        let taken = recent.of_object(name(2));
        assert_eq!(taken.iter().map(|a| (a.request.number, a.number)).collect::<Vec<_>>(), [(2, 2)]);
        assert_eq!(recent.take(name(2)), [2]);
        assert_eq!(numbers(&recent), [1]);
        assert_eq!(recent.adopt(&taken[0], Some(9)), None);
        assert_eq!(recent.adopt(&taken[0], Some(10)), Some(9), "once, however often it comes");
        assert_eq!((numbers(&recent), recent.places()), (vec![1, 2], vec![1, 10]));
    }
}
