//! Bugs put in on purpose, so that the simulation can be trusted once it has caught them.
//!
//! In the product [`planted`] is always false and what it guards is compiled away.

/// A bug put in on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Mutant {
    /// A write is acknowledged when one copy has it.
    AckAtOne,
    /// A takeover seals nobody, and so settles nothing.
    NoSeal,
    /// A read asks nobody although the lease has lapsed.
    NoLeaseCheck,
    /// A flush skips one of the sessions that were written to.
    FlushSkips,
    /// A copy is admitted although it has not caught up.
    AdmitEarly,
    /// A log entry is applied twice.
    ApplyTwice,
    /// A takeover believes what any copy says of applied requests, in sync or not.
    BelieveAnyone,
    /// A copy applies a write whatever it was to follow.
    AnyPredecessor,
    /// A copy takes requests of generations and configurations that have ended.
    NoFencing,
    /// A dead in-sync set is resumed by any of its members, whether or not its machine lost power since.
    AnyBoot,
    /// Data is written without marks of where it may differ after a crash.
    NoMarks,
    /// Marks are dropped before what they stand for is durable.
    MarksDropped,
    /// The first flush of a generation goes only to those that the generation has written to.
    FirstFlushSome,
    /// A read does not wait for the writes that it overlaps.
    ReadsOvertake,
    /// A client's earlier attach generations go on.
    LateWrites,
    /// Names are not made durable.
    NamesUnsynced,
    /// After a failed sync the store goes on, and so does the next process.
    SyncAgain,
    /// An object is removed before it is durable that the map no longer names it.
    DeleteEarly,
    /// An object that was discarded goes while a request that was applied to it may come again.
    ReclaimSoon,
    /// Data is served whatever its checksum says.
    CrcUnchecked,
    /// A copy that catches up keeps what its source does not list.
    KeepUnlisted,
    /// The ids of deleted VDIs are used again.
    IdsAgain,
    /// The objects of deleted VDIs stay.
    DeletedStays,
    /// A voter goes before its successor has the log.
    VotersFirst,
    /// A takeover takes the requests that it heard of for all, although copies are away.
    HeirToAll,
    /// Requests of all classes share one connection and its budget.
    OneBudget,
}

#[cfg(test)]
impl Mutant {
    /// All of them.
    pub(crate) const ALL: [Self; 26] = [
        Self::AckAtOne,
        Self::NoSeal,
        Self::NoLeaseCheck,
        Self::FlushSkips,
        Self::AdmitEarly,
        Self::ApplyTwice,
        Self::BelieveAnyone,
        Self::AnyPredecessor,
        Self::NoFencing,
        Self::AnyBoot,
        Self::NoMarks,
        Self::MarksDropped,
        Self::FirstFlushSome,
        Self::ReadsOvertake,
        Self::LateWrites,
        Self::NamesUnsynced,
        Self::SyncAgain,
        Self::DeleteEarly,
        Self::ReclaimSoon,
        Self::CrcUnchecked,
        Self::KeepUnlisted,
        Self::IdsAgain,
        Self::DeletedStays,
        Self::VotersFirst,
        Self::HeirToAll,
        Self::OneBudget,
    ];
}

/// Whether a bug has been put in.
#[cfg(not(test))]
pub(crate) const fn planted(_: Mutant) -> bool {
    false
}

#[cfg(test)]
pub(crate) use self::planting::{plant, planted};

#[cfg(test)]
mod planting {
    use std::cell::Cell;

    use super::Mutant;

    thread_local! {
        static PLANTED: Cell<Option<Mutant>> = const { Cell::new(None) };
    }

    /// Puts a bug in on this thread.
    pub(crate) fn plant(mutant: Option<Mutant>) {
        PLANTED.set(mutant);
    }

    /// Whether a bug has been put in.
    pub(crate) fn planted(mutant: Mutant) -> bool {
        PLANTED.get() == Some(mutant)
    }
}
