//! What the client was promised, and who has kept it.
//!
//! A block's values are ranked in the order in which they may be written; a read returns no value of a lower rank than was
//! acknowledged or read before it began. That stands as long as anybody has kept his memory who must know: who was in
//! sync at the last acknowledgement, and was not taken out since while enough others stay who know that. When all of
//! those have lost their power, what was flushed stands.

use super::log::{Log, copies, place};
use super::world::{BLOCK_OF, BLOCKS, NODES, WRITES, World};
use crate::cluster::slots::MemberState;

/// The values of each block, as they may follow each other.
const VALUES: [&[u8]; BLOCKS] = [&[0, 1, 3], &[0, 2]];

/// The rank of a value of a block.
pub(super) fn rank(block: usize, value: u8) -> u8 {
    VALUES[block].iter().position(|v| *v == value).expect("written there") as u8
}

/// What is owed to the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Promise {
    /// Writes that were acknowledged.
    pub(super) acknowledged: [bool; WRITES],
    /// The lowest rank that a read may return, by block.
    pub(super) floor: [u8; BLOCKS],
    /// Acknowledged ranks, without those that were only read.
    pub(super) written: [u8; BLOCKS],
    /// The lowest rank there may be after a loss of all memory.
    pub(super) flushed: [u8; BLOCKS],
    /// Who has kept all that was acknowledged.
    pub(super) keepers: [bool; NODES],
    /// Who is out of the set, and at which index enough others were left; zero if too few were.
    pub(super) out: [Option<u8>; NODES],
}

impl Promise {
    pub(super) fn new() -> Self {
        Self {
            acknowledged: [false; WRITES],
            floor: [0; BLOCKS],
            written: [0; BLOCKS],
            flushed: [0; BLOCKS],
            keepers: [true; NODES],
            out: [None; NODES],
        }
    }

    /// A node has lost what was not on its disk.
    pub(super) fn memory_lost(&mut self, node: usize) {
        if std::mem::take(&mut self.keepers[node]) {
            self.see_whether_any_is_left();
        }
    }

    /// A write was acknowledged by members of which these have kept it.
    pub(super) fn acknowledge(&mut self, write: usize, keepers: [bool; NODES]) {
        let block = BLOCK_OF[write];
        let rank = rank(block, write as u8 + 1);
        self.acknowledged[write] = true;
        self.floor[block] = self.floor[block].max(rank);
        self.written[block] = self.written[block].max(rank);
        self.keepers = keepers;
        self.see_whether_any_is_left();
    }

    /// A flush that covers these ranks was answered.
    pub(super) fn flush(&mut self, covers: [u8; BLOCKS]) {
        for (flushed, covered) in self.flushed.iter_mut().zip(covers) {
            *flushed = covered.max(*flushed);
        }
    }

    /// A node was admitted: what anybody has kept, it has too.
    pub(super) fn admitted(&mut self, node: usize) {
        self.keepers[node] = self.keepers != [false; NODES];
    }

    fn see_whether_any_is_left(&mut self) {
        if self.keepers == [false; NODES] {
            (self.floor, self.written) = (self.flushed, self.flushed);
        }
    }
}

/// After an entry, or after somebody has heard of one: who was taken out need not be asked any more once enough are left
/// and all of them know.
pub(super) fn see_who_keeps(world: &mut World, log: &Log) {
    let head = log.at(*world.log.last().expect("never empty"));
    let mut serving = [false; NODES];
    for member in head.config.in_state(MemberState::InSync).filter(|m| head.state.serves(m.session)) {
        serving[place(member.session)] = true;
    }
    if serving == [false; NODES] {
        return;
    }
    let enough = head.state.is_enough(copies(), &head.config);
    let knows = |node: usize| match &world.nodes[node] {
        node if node.up => log.at(world.log[usize::from(node.view)]).index,
        node => node.knew.into(),
    };
    let knowledge: [u64; NODES] = std::array::from_fn(knows);
    let all_know = |since: u64| (0..NODES).filter(|n| serving[*n]).all(|n| knowledge[n] >= since);
    let promise = &mut world.promise;
    for (node, serves) in serving.iter().enumerate() {
        if *serves {
            promise.out[node] = None;
            continue;
        }
        let since = match promise.out[node] {
            Some(0) | None if enough => head.index as u8,
            Some(since) => since,
            None => 0,
        };
        promise.out[node] = Some(since);
        if since > 0 && all_know(since.into()) {
            promise.keepers[node] = false;
        }
    }
}
