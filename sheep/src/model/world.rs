//! A state of the model: three nodes with a copy each, two of which may be the owner, what is under way between
//! them, and what the client was promised.
//!
//! Everything is a small number, so that a state can be hashed and kept by the million. Write *n* writes the value
//! *n*; a block holds the number of the write that it has, or zero.

use wire::id::{Generation, Version};

use super::log::PointId;
use super::promise::Promise;

/// Nodes, each with a copy.
pub(super) const NODES: usize = 3;
/// The first of them that may own the VDI.
pub(super) const OWNERS: usize = 2;
/// Blocks of the object.
pub(super) const BLOCKS: usize = 2;
/// Writes.
pub(super) const WRITES: usize = 3;
/// Which block each write goes to: the first two overtake each other at will, the third replaces the first.
pub(super) const BLOCK_OF: [usize; WRITES] = [0, 1, 0];

/// A write's version, as [`Version`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub(super) struct Ver {
    pub(super) generation: u8,
    pub(super) seq: u8,
}

impl From<Ver> for Version {
    fn from(ver: Ver) -> Self {
        Self { generation: Generation(ver.generation.into()), seq: ver.seq.into() }
    }
}

impl From<Version> for Ver {
    fn from(version: Version) -> Self {
        Self { generation: version.generation.0 as u8, seq: version.seq as u8 }
    }
}

/// What a copy holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(super) struct Held {
    pub(super) version: Ver,
    pub(super) blocks: [u8; BLOCKS],
}

/// A node's lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Lease {
    /// Renewed all the time.
    Held,
    /// The leader does not hear of the node, but it is not over yet.
    Fading,
    /// It has run out.
    Lapsed,
}

/// How far the object has come at a node that catches up: [`ObjectFill`](crate::replica::fill::ObjectFill).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Progress {
    Unknown,
    Unfilled(Ver),
    Pulling { at_least: Ver, kept: Vec<Sent> },
    Filled,
}

/// How far the slot has come there: [`SlotFill`](crate::replica::fill::SlotFill).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Fill {
    pub(super) since: u8,
    pub(super) admitting: bool,
    pub(super) object: Progress,
}

/// One turn of catching up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Pass {
    None,
    /// A source has told the version it has.
    Listed {
        turn: Turn,
        from: u8,
        version: Ver,
    },
    /// A source has sent what it has.
    Pulled {
        turn: Turn,
        held: Held,
    },
    /// The copy is equal, as far as was seen.
    Compared {
        turn: Turn,
    },
    /// It is durable too, and the admission is to be asked for.
    Ready {
        turn: Turn,
    },
    /// The log has taken that at an index.
    Asked {
        turn: Turn,
        index: u8,
    },
}

/// What a turn of catching up began with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Turn {
    /// The version of the configuration in which the node began to catch up.
    pub(super) since: u8,
    /// How far its log had come.
    pub(super) applied: u8,
    /// The owner's generation, if there was an owner.
    pub(super) owner: Option<u8>,
}

/// A node.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Node {
    /// Whether its process runs.
    pub(super) up: bool,
    /// The start of its present session, or of the last one.
    pub(super) start: u8,
    /// The start with which the process began.
    pub(super) process: u8,
    pub(super) boot: u8,
    /// How far its log had come when its processes began: (start, index).
    pub(super) reached: Vec<(u8, u8)>,
    /// How far it has applied the log: a place in [`World::log`], at its end where there is no process.
    pub(super) view: u8,
    /// Without a process: the index of the last entry that was applied.
    pub(super) knew: u8,
    pub(super) lease: Lease,
    /// The generation recorded here, durably.
    pub(super) sealed: u8,
    /// The generation whose takeover it knows to be done.
    pub(super) settled: u8,
    /// Its copy as the kernel has it.
    pub(super) memory: Held,
    /// Its copy as the disk has it.
    pub(super) disk: Held,
    /// A crash may have touched the copy, and nobody has compared it since.
    pub(super) suspect: bool,
    pub(super) fill: Fill,
    pub(super) pass: Pass,
    /// The generation that recovery has noticed.
    pub(super) noticed: u8,
}

/// A write on its way to a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Sent {
    /// Which write, from 0.
    pub(super) write: u8,
    pub(super) to: u8,
    pub(super) start: u8,
    pub(super) config: u8,
    pub(super) version: Ver,
    pub(super) predecessor: Ver,
}

/// A write at its owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Numbered {
    pub(super) version: Ver,
    pub(super) predecessor: Ver,
    /// Who has answered: its start, and under which configuration.
    pub(super) answers: [Option<(u8, u8)>; NODES],
}

/// How far an owner has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Phase {
    Sealing,
    Settling,
    Serving,
}

/// A VDI at its owner.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Owner {
    pub(super) generation: u8,
    pub(super) phase: Phase,
    /// Who has answered the seal: its start, and whether its copy is suspect.
    pub(super) sealed: [Option<(u8, bool)>; NODES],
    /// The version of the last write that was numbered.
    pub(super) newest: Ver,
    pub(super) writes: [Option<Numbered>; WRITES],
}

/// A flush.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Flush {
    /// Nobody has asked for it yet.
    Open,
    /// At an owner of a generation: what it covers, whom it asks (their starts) and who has done it.
    Running {
        owner: u8,
        generation: u8,
        covers: [u8; BLOCKS],
        asked: [Option<u8>; NODES],
        done: [bool; NODES],
    },
    /// Answered, or not to be asked for.
    Done,
}

/// A state of the model.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct World {
    /// The log from the entry on that somebody has applied last; what is committed is at its end.
    pub(super) log: Vec<PointId>,
    pub(super) nodes: [Node; NODES],
    pub(super) owners: [Option<Owner>; OWNERS],
    /// Writes under way, in order of their fields: they arrive in any.
    pub(super) sent: Vec<Sent>,
    pub(super) flush: Flush,
    pub(super) promise: Promise,
    /// Failures that are still to come, at most.
    pub(super) failures: u8,
}
