//! What a request may do at a node, and whether it is a write's turn at a copy. Pure.
//!
//! Called by [`super::Replica`] in front of the store, and by the small model (`model/`), so that what is
//! explored there is what decides here.

use wire::id::{Generation, Session, SlotIndex, VdiId, Version};
use wire::peer::{CatchUpRequest, Fence, Status, WriteRequest};
use wire::policy::Copies;

use crate::cluster::slots::MemberState;
use crate::cluster::state::ClusterState;
use crate::mutant::{Mutant, planted};

/// What a node may do for a slot at present.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// Holds every acknowledged write.
    InSync,
    /// Catches up since a configuration version.
    CatchingUp(u64),
    /// No part in the slot.
    None,
}

/// A node as its newest applied state sees it.
#[derive(Clone, Copy)]
pub(crate) struct Standing<'a> {
    /// The node's present session.
    pub(crate) me: Session,
    /// The newest state it has applied.
    pub(crate) state: &'a ClusterState,
}

impl Standing<'_> {
    /// What the node may do for a slot.
    pub(crate) fn role(&self, copies: Copies, slot: SlotIndex) -> Role {
        match self.state.slot(copies, slot).and_then(|c| c.member(self.me)) {
            Some(m) if m.state == MemberState::InSync => Role::InSync,
            Some(m) if m.state == MemberState::CatchingUp => Role::CatchingUp(m.since),
            _ => Role::None,
        }
    }

    /// Checks a request's right; `slot` where it is about one. `sealed` is the generation recorded here.
    pub(crate) fn check(
        &self,
        fence: &Fence,
        sealed: Generation,
        slot: Option<(Copies, SlotIndex)>,
    ) -> Result<Role, Status> {
        if fence.to_start != self.me.start {
            return Err(Status::WrongSession);
        }
        let vdi = fence.vdi();
        // Known to the log is as good as sealed: the old owner's lease has ended by then.
        let known = self.state.vdi(vdi).map_or(Generation(0), |v| v.owner.generation);
        let ended = fence.generation() < known.max(sealed) && !planted(Mutant::NoFencing);
        if ended || self.state.is_deleted(vdi) {
            return Err(Status::StaleGeneration);
        }
        let Some((copies, slot)) = slot else { return Ok(Role::None) };
        let Some(config) = self.state.slot(copies, slot) else { return Err(Status::Busy) };
        if fence.config < config.version && !planted(Mutant::NoFencing) {
            return Err(Status::StaleConfig);
        }
        // Who answers under a configuration knows it, and so who was taken out (slots.rs).
        if fence.config > config.version {
            return Err(Status::Busy);
        }
        match self.role(copies, slot) {
            // The asker knows a configuration with us in it that has not reached us yet.
            Role::None => Err(Status::Busy),
            role => Ok(role),
        }
    }

    /// Whether the node may be read for an owner.
    pub(crate) fn check_read(
        &self,
        fence: &Fence,
        sealed: Generation,
        slot: (Copies, SlotIndex),
    ) -> Result<(), Status> {
        match self.check(fence, sealed, Some(slot))? {
            Role::InSync => Ok(()),
            Role::CatchingUp(_) | Role::None => Err(Status::Busy),
        }
    }

    /// Whether the node may serve as a source: in sync, and so far along in the log (`index`) that all it takes
    /// from now on is sent to the asker too.
    pub(crate) fn check_source(
        &self,
        index: u64,
        request: &CatchUpRequest,
    ) -> Result<(Copies, SlotIndex), Status> {
        if request.to_start != self.me.start {
            return Err(Status::WrongSession);
        }
        let copies = Copies::new(request.copies.into()).map_err(|_| Status::Invalid)?;
        let slot = SlotIndex(request.slot);
        let config = self.state.slot(copies, slot).ok_or(Status::Busy)?;
        let caught_up = index >= request.applied && config.version >= request.since;
        if !caught_up || self.role(copies, slot) != Role::InSync {
            return Err(Status::Busy);
        }
        Ok((copies, slot))
    }

    /// While an owner takes over, copies may still differ in what its predecessor left: nobody is to take
    /// one for equal. `settled` is the newest generation whose takeover is known here to be done.
    pub(crate) fn check_settled(&self, vdi: VdiId, settled: Generation) -> Result<(), Status> {
        let Some(owner) = self.state.vdi(vdi).map(|v| v.owner).filter(|o| o.session.is_some()) else {
            return Ok(());
        };
        if settled < owner.generation { Err(Status::Busy) } else { Ok(()) }
    }
}

/// What a write is to a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// It follows what the copy has.
    Next,
    /// The copy has it already.
    Done,
}

/// Whether it is a write's turn at a copy of version `have`; a gap is an error (rule 1).
pub(crate) fn order(have: Version, request: &WriteRequest) -> Result<Order, Status> {
    if have >= Version::from(request.version) {
        return Ok(Order::Done);
    }
    if have != Version::from(request.predecessor) && !planted(Mutant::AnyPredecessor) {
        return Err(Status::Gap);
    }
    Ok(Order::Next)
}
