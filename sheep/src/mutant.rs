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
}

#[cfg(test)]
impl Mutant {
    /// All of them.
    pub(crate) const ALL: [Self; 7] = [
        Self::AckAtOne,
        Self::NoSeal,
        Self::NoLeaseCheck,
        Self::FlushSkips,
        Self::AdmitEarly,
        Self::ApplyTwice,
        Self::BelieveAnyone,
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
