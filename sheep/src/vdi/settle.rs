//! What makes the in-sync copies of an object the same: which is ahead, which blocks differ, where they come
//! from. Pure.
//!
//! Called by [`super::takeover`], which asks and patches, and by the small model (`model/`).

use std::collections::{BTreeMap, HashSet};

use wire::id::{Generation, Session, Version};
use wire::peer::AppliedRequest;

use crate::mutant::{Mutant, planted};
use crate::store::BlockEntry;

/// One copy as its holder describes it.
#[derive(Debug, Clone)]
pub(crate) struct Copy {
    /// Whose it is.
    pub(crate) session: Session,
    /// The version of the last write that it has.
    pub(crate) version: Version,
    /// What its blocks are.
    pub(crate) table: Vec<BlockEntry>,
    /// Blocks that are not as they were written.
    pub(crate) damaged: HashSet<u32>,
}

/// What comparing copies shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Finding {
    /// There is none.
    Nothing,
    /// All have this version and the same blocks.
    Same(Version),
    /// All have this version and the same blocks, but a crash may have taken something from one of them: they get
    /// the second version, so that no copy outside the set passes for equal because it has the first.
    Touched(Version, Version),
    /// They have to be made the same.
    Differ,
}

/// Compares all in-sync copies of an object for the owner of `generation`. `suspects` are the holders whose copies a
/// crash may have touched.
pub(crate) fn compare(copies: &[Copy], suspects: &[Session], generation: Generation) -> Finding {
    let same = copies.windows(2).all(|w| w[0].version == w[1].version && w[0].table == w[1].table);
    let sound = copies.iter().all(|c| c.damaged.is_empty());
    if !same || !(sound || suspects.is_empty()) {
        return Finding::Differ;
    }
    let Some(version) = copies.iter().map(|c| c.version).max() else { return Finding::Nothing };
    let touched = copies.iter().any(|c| suspects.contains(&c.session));
    if touched && version.generation < generation {
        Finding::Touched(version, Version { generation, seq: version.seq + 1 })
    } else {
        Finding::Same(version)
    }
}

/// The client requests that were applied to an object: those that an in-sync copy names, up to the version that these
/// had. What another copy has may be nowhere else: a write that an owner which stood still sent to whoever was out.
pub(crate) fn believed(
    told: &[(Session, AppliedRequest)],
    in_sync: impl Fn(Session) -> bool,
    had: Version,
) -> Vec<AppliedRequest> {
    let counts = |holder| in_sync(holder) || planted(Mutant::BelieveAnyone);
    let of_them = told.iter().filter(|(holder, one)| counts(*holder) && Version::from(one.version) <= had);
    let named = of_them.map(|(_, one)| {
        let id = one.request;
        ((id.node, id.start, id.number, one.offset), *one)
    });
    named.collect::<BTreeMap<_, _>>().into_values().collect()
}

/// Where the blocks of copies that differ are to come from.
pub(crate) struct Forward<'a> {
    copies: &'a [Copy],
    /// The copy with the longest prefix of the writes.
    pub(crate) best: &'a Copy,
    newest_first: Vec<&'a Copy>,
}

impl<'a> Forward<'a> {
    /// `None` if there is no copy.
    pub(crate) fn new(copies: &'a [Copy]) -> Option<Self> {
        let best = copies.iter().max_by_key(|c| c.version)?;
        let mut newest_first: Vec<&Copy> =
            copies.iter().filter(|c| c.table.len() == best.table.len()).collect();
        newest_first.sort_by_key(|c| std::cmp::Reverse(c.version));
        Some(Self { copies, best, newest_first })
    }

    /// The blocks that are not the same and sound everywhere.
    pub(crate) fn differing(&self) -> impl Iterator<Item = u32> {
        (0..self.best.table.len() as u32).filter(|index| {
            let entry_of = |c: &Copy| c.table.get(*index as usize).copied();
            let agrees = |c: &Copy| entry_of(c) == entry_of(self.best) && !c.damaged.contains(index);
            !self.copies.iter().all(agrees)
        })
    }

    /// The copies that a block may come from, the best first: two copies of one version may differ too, and only
    /// reading tells whose entry belongs to its data.
    pub(crate) fn sources(&self, index: u32) -> impl Iterator<Item = (&'a Copy, BlockEntry)> {
        let sound = self.newest_first.iter().filter(move |c| !c.damaged.contains(&index));
        sound.map(move |c| (*c, c.table[index as usize]))
    }
}

impl Copy {
    /// Whether it lacks a block. What has the right entry and yet does not read is found by its checksum, and healed.
    pub(crate) fn lacks(&self, index: u32, entry: BlockEntry) -> bool {
        self.table.get(index as usize) != Some(&entry) || self.damaged.contains(&index)
    }
}

#[cfg(test)]
mod tests {
    use wire::id::NodeId;
    use wire::peer::RequestId;

    use super::*;
    use crate::mutant::plant;

    fn copy(node: u64, version: (u64, u64), blocks: &[u32]) -> Copy {
        Copy {
            session: Session { node: NodeId(node), start: 1 },
            version: Version { generation: Generation(version.0), seq: version.1 },
            table: blocks.iter().map(|crc| BlockEntry { crc: *crc, stamp: 1 }).collect(),
            damaged: HashSet::new(),
        }
    }

    #[test]
    fn copies_of_one_version_are_the_same_only_if_their_blocks_are() {
        let (one, two) = (copy(1, (1, 4), &[1, 2]), copy(2, (1, 4), &[1, 3]));
        let version = one.version;
        assert_eq!(compare(&[], &[], Generation(2)), Finding::Nothing);
        assert_eq!(compare(&[one.clone(), two], &[], Generation(2)), Finding::Differ);
        let same = [one.clone(), Copy { session: copy(2, (1, 4), &[]).session, ..one }];
        assert_eq!(compare(&same, &[], Generation(2)), Finding::Same(version));
        // What a crash may have touched gets a version of its own, once.
        let own = Version { generation: Generation(2), seq: 5 };
        let suspects = [same[1].session];
        assert_eq!(compare(&same, &suspects, Generation(2)), Finding::Touched(version, own));
        let touched = same.map(|c| Copy { version: own, ..c });
        assert_eq!(compare(&touched, &suspects, Generation(2)), Finding::Same(own));
    }

    #[test]
    fn only_copies_in_sync_are_believed_about_requests_and_only_as_far_as_they_went() {
        let session = |node| Session { node: NodeId(node), start: 1 };
        let version = |seq| Version { generation: Generation(1), seq };
        let applied = |number, seq| AppliedRequest {
            request: RequestId { number, ..RequestId::default() },
            version: version(seq).into(),
            ..AppliedRequest::default()
        };
        let told = [
            (session(1), applied(1, 4)),
            (session(2), applied(1, 4)),
            (session(2), applied(2, 6)),
            // It was out of the set, and got a write of an owner that stood still.
            (session(3), applied(3, 4)),
        ];
        let numbers = || {
            let list = believed(&told, |s| s.node.0 < 3, version(5));
            list.iter().map(|one| one.request.number).collect::<Vec<_>>()
        };
        assert_eq!(numbers(), [1]);
        plant(Some(Mutant::BelieveAnyone));
        assert_eq!(numbers(), [1, 3], "the bug is one");
        plant(None);
    }

    #[test]
    fn what_differs_comes_from_the_newest_sound_copy() {
        let mut newest = copy(1, (1, 9), &[7, 8, 9]);
        newest.damaged.insert(2);
        let copies = [copy(2, (1, 8), &[7, 5, 9]), newest];
        let forward = Forward::new(&copies).expect("two copies");
        assert_eq!(forward.best.session.node, NodeId(1));
        assert_eq!(forward.differing().collect::<Vec<_>>(), [1, 2]);
        let from = |index| forward.sources(index).map(|(c, e)| (c.session.node.0, e.crc)).collect::<Vec<_>>();
        assert_eq!(from(1), [(1, 8), (2, 5)]);
        assert_eq!(from(2), [(2, 9)]);
        let (_, entry) = forward.sources(1).next().expect("a source");
        assert!(copies[0].lacks(1, entry) && !copies[1].lacks(1, entry));
        let (_, entry) = forward.sources(2).next().expect("a source");
        assert!(copies[1].lacks(2, entry), "it has the entry and not the data");
    }
}
