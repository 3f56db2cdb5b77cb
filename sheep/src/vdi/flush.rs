//! Flushes: what was answered before becomes durable at every copy that counts (rules 2 and 5).
//!
//! As a write, a flush is answered only while enough copies are in sync: who was one of them then, and comes
//! to be trusted again when the others have lost their memory, has all that was flushed on its disk.

use std::collections::HashSet;
use std::sync::atomic::Ordering;

use prost::Message;
use wire::frame::Payload;
use wire::id::{Session, SlotIndex};
use wire::peer::{VdiRequest, op};

use super::context::{LOOK_AGAIN, RETRY_DELAY};
use super::owner::{IoFailure, Owner};
use crate::mutant::{Mutant, planted};

/// What nodes have to make durable at the next flush.
#[derive(Default)]
pub(super) struct Dirty {
    pub(super) sessions: HashSet<Session>,
    /// Where it lies.
    pub(super) slots: HashSet<SlotIndex>,
    /// Nothing is known of what earlier generations left: the first flush goes to everybody (rule 5).
    pub(super) everybody: bool,
}

impl Dirty {
    /// Whom to ask, of all who may hold copies.
    fn targets(&self, holders: impl Iterator<Item = Session>) -> HashSet<Session> {
        let everybody = self.everybody && !planted(Mutant::FirstFlushSome);
        holders.filter(|s| everybody || self.sessions.contains(s)).collect()
    }
}

impl Owner {
    pub(crate) fn mark_dirty(&self, slot: SlotIndex, members: &[Session]) {
        let mut dirty = self.dirty.lock();
        dirty.slots.insert(slot);
        for member in members {
            if !dirty.sessions.contains(member) {
                dirty.sessions.insert(*member);
            }
        }
    }

    /// Makes everything durable that was answered before.
    pub(crate) async fn flush(&self) -> Result<(), IoFailure> {
        let _admitted = self.admission.read().await;
        self.served().await?;
        self.flush_admitted().await
    }

    pub(super) async fn flush_admitted(&self) -> Result<(), IoFailure> {
        // A flush that begins after this moment covers us, whoever asked for it.
        let ticket = self.flush_tickets.fetch_add(1, Ordering::AcqRel) + 1;
        let mut covered = self.flush.lock().await;
        if *covered >= ticket {
            return Ok(());
        }
        let covers = self.flush_tickets.load(Ordering::Acquire);
        let doomed = std::mem::take(&mut *self.doomed.lock());
        let dirty = {
            let mut dirty = self.dirty.lock();
            std::mem::take(&mut *dirty)
        };
        match self.flush_members(&dirty).await {
            Ok(()) => {
                *covered = covers;
                drop(covered);
                for name in doomed {
                    self.remove_object(name).await?;
                }
                Ok(())
            }
            Err(failure) => {
                let mut now = self.dirty.lock();
                now.everybody |= dirty.everybody;
                now.sessions.extend(dirty.sessions);
                now.slots.extend(dirty.slots);
                self.doomed.lock().extend(doomed);
                Err(failure)
            }
        }
    }

    async fn flush_members(&self, dirty: &Dirty) -> Result<(), IoFailure> {
        loop {
            let state = self.current()?;
            let targets = dirty.targets(state.holders());
            let skipped = usize::from(planted(Mutant::FlushSkips));
            let asked = targets.iter().skip(skipped).map(|to| self.flush_member(*to));
            futures::future::try_join_all(asked).await?;
            self.enough_copies_of(dirty).await?;
            // If one of them was taken out meanwhile, the others have to say it knowing that (slots.rs).
            let state = self.current()?;
            if targets.iter().all(|s| state.serves(*s)) {
                return Ok(());
            }
        }
    }

    /// Waits until every slot that is flushed has enough copies in sync. Whoever came to be one of them since
    /// was admitted with a durable copy.
    async fn enough_copies_of(&self, dirty: &Dirty) -> Result<(), IoFailure> {
        let mut waiting = None;
        loop {
            let state = self.current()?;
            let enough = if dirty.everybody {
                // A slot that never had a member has nothing to flush.
                let mut slots = state
                    .slots()
                    .filter(|(copies, _, config)| *copies == self.copies && !config.members.is_empty());
                slots.all(|(copies, _, config)| state.is_enough(copies, config))
            } else {
                let mut slots = dirty.slots.iter().filter_map(|slot| state.slot(self.copies, *slot));
                slots.all(|config| state.is_enough(self.copies, config))
            };
            if enough {
                return Ok(());
            }
            waiting.get_or_insert_with(|| self.waiting_for_copies());
            self.context.view.change(LOOK_AGAIN).await;
        }
    }

    /// Until it has flushed, or no longer counts: what it had, the others in sync have too.
    async fn flush_member(&self, to: Session) -> Result<(), IoFailure> {
        loop {
            if !self.current()?.serves(to) {
                return Ok(());
            }
            let fence = wire::peer::Fence { to_start: to.start, ..self.fence(0) };
            let meta = VdiRequest { fence }.encode_to_vec().into();
            let asked = self.context.ask(to, op::FLUSH, meta, Payload::empty());
            tokio::select! {
                // Dropping the question forgets it; a flush more does no harm.
                answer = asked => match answer {
                    Ok(_) => return Ok(()),
                    Err(_) => tokio::time::sleep(RETRY_DELAY).await,
                },
                () = self.gone(to) => {}
            }
        }
    }

    async fn gone(&self, session: Session) {
        self.context.view.until(|state| !state.serves(session) || !self.is_owner_in(state)).await;
    }
}

#[cfg(test)]
mod tests {
    use wire::id::NodeId;

    use super::*;
    use crate::mutant::plant;

    #[test]
    fn the_first_flush_of_a_generation_goes_to_everybody_and_others_to_whom_it_wrote() {
        let session = |node| Session { node: NodeId(node), start: 1 };
        let nodes = |dirty: &Dirty| {
            let mut nodes: Vec<u64> = dirty.targets((1..=3).map(session)).iter().map(|s| s.node.0).collect();
            nodes.sort_unstable();
            nodes
        };
        // 4 is gone.
        let mut dirty = Dirty { sessions: [2, 4].map(session).into(), everybody: true, ..Dirty::default() };
        assert_eq!(nodes(&dirty), [1, 2, 3]);
        plant(Some(Mutant::FirstFlushSome));
        assert_eq!(nodes(&dirty), [2], "the bug is one");
        plant(None);
        dirty.everybody = false;
        assert_eq!(nodes(&dirty), [2]);
    }
}
