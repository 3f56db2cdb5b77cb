//! Writes that a replica has applied and whose owner has not called them stable yet. Pure.
//!
//! When an owner dies, these are the only ones that some copies may have and others not, and the only
//! client requests that may be sent again; the next owner learns them when it seals (rules 6 and 9).

use std::collections::BTreeMap;
use std::ops::Bound;

use wire::id::{Generation, Version};
use wire::peer::{AppliedRequest, ObjectRef, RequestId};

/// An applied write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Recent {
    pub(crate) object: ObjectRef,
    pub(crate) offset: u32,
    pub(crate) version: Version,
    pub(crate) request: Option<RequestId>,
}

/// One VDI's recent writes by generation and number.
#[derive(Debug, Default)]
pub(crate) struct RecentWrites {
    writes: BTreeMap<(Generation, u64), Recent>,
}

impl RecentWrites {
    /// Notes an applied write, and drops what its owner calls stable: everything of its generation below
    /// `stable`, and with `inherited_done` everything of earlier generations.
    pub(crate) fn note(
        &mut self,
        generation: Generation,
        number: u64,
        stable: u64,
        inherited_done: bool,
        write: Recent,
    ) {
        if inherited_done && self.writes.first_key_value().is_some_and(|((of, _), _)| *of < generation) {
            self.writes = self.writes.split_off(&(generation, 0));
        }
        self.writes.insert((generation, number), write);
        while let Some((key, _)) = self.writes.range((generation, 0)..(generation, stable)).next() {
            let key = *key;
            self.writes.remove(&key);
        }
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
            found.extend(write.request.map(|request| AppliedRequest {
                request,
                object: write.object,
                offset: write.offset,
                version: write.version.into(),
            }));
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
        recent.note(Generation(1), 4, 3, true, write(4));
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
        recent.note(Generation(2), 3, 3, true, write(4));
        assert_eq!(numbers(&recent), [4]);
    }
}
