//! Reads never overtake writes: who touches the same bytes of an object waits for its turn (rule 7).
//!
//! A read waits for the overlapping writes that came before it, since it might see a value that can still
//! vanish; a write waits for the overlapping reads that came before it. Writes do not wait for each other:
//! their sequence numbers order them on every copy. First come, first served, so nobody starves.

use std::sync::Arc;

use crate::mutant::{Mutant, planted};
use parking_lot::Mutex;
use tokio::sync::Notify;

/// What somebody wants to do with a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    Write,
}

#[derive(Debug)]
struct Waiting {
    id: u64,
    access: Access,
    start: u32,
    end: u32,
}

impl Waiting {
    fn conflicts(&self, access: Access, start: u32, end: u32) -> bool {
        self.access != access && self.start < end && start < self.end
    }
}

#[derive(Debug, Default)]
struct Queue {
    next: u64,
    waiting: Vec<Waiting>,
}

impl Queue {
    fn may_go(&self, id: u64) -> bool {
        let Some(position) = self.waiting.iter().position(|w| w.id == id) else { return true };
        let me = &self.waiting[position];
        !self.waiting[..position].iter().any(|w| w.conflicts(me.access, me.start, me.end))
    }
}

/// The turns of one object.
#[derive(Debug, Default)]
pub(crate) struct Turns {
    queue: Mutex<Queue>,
    ended: Notify,
}

/// A place in the queue; dropping it lets the next ones go.
#[derive(Debug)]
pub(crate) struct Turn {
    turns: Arc<Turns>,
    id: u64,
}

impl Turns {
    /// Takes a place in the queue for a range and waits for the turn. Dropping the future gives it up.
    pub(crate) async fn enter(self: &Arc<Self>, access: Access, offset: u32, len: u32) -> Turn {
        let (turn, free) = {
            let mut queue = self.queue.lock();
            queue.next += 1;
            let (id, end) = (queue.next, offset.saturating_add(len));
            let overtakes = access == Access::Read && planted(Mutant::ReadsOvertake);
            let free = overtakes || !queue.waiting.iter().any(|w| w.conflicts(access, offset, end));
            queue.waiting.push(Waiting { id, access, start: offset, end });
            (Turn { turns: self.clone(), id }, free)
        };
        if !free {
            loop {
                let ended = self.ended.notified();
                tokio::pin!(ended);
                ended.as_mut().enable();
                if self.queue.lock().may_go(turn.id) {
                    break;
                }
                ended.await;
            }
        }
        turn
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut queue = self.turns.queue.lock();
        queue.waiting.retain(|w| w.id != self.id);
        let others = !queue.waiting.is_empty();
        drop(queue);
        if others {
            self.turns.ended.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[tokio::test]
    async fn a_read_waits_for_the_writes_before_it_and_holds_up_those_after_it() {
        let turns = Arc::new(Turns::default());
        let first = turns.enter(Access::Write, 0, 10).await;
        let second = turns.enter(Access::Write, 5, 10).now_or_never().expect("writes do not wait");
        let mut read = Box::pin(turns.enter(Access::Read, 8, 1));
        assert!((&mut read).now_or_never().is_none());
        let mut late = Box::pin(turns.enter(Access::Write, 0, 10));
        assert!((&mut late).now_or_never().is_none());
        let _elsewhere = turns.enter(Access::Write, 20, 1).now_or_never().expect("no overlap");
        drop(first);
        assert!((&mut read).now_or_never().is_none());
        drop(second);
        let read = (&mut read).now_or_never().expect("both writes are done");
        assert!((&mut late).now_or_never().is_none());
        drop(read);
        late.now_or_never().expect("the read is done");
    }

    #[tokio::test]
    async fn who_gives_up_waiting_holds_up_nobody() {
        let turns = Arc::new(Turns::default());
        let write = turns.enter(Access::Write, 0, 10).await;
        let mut read = Box::pin(turns.enter(Access::Read, 0, 10));
        assert!((&mut read).now_or_never().is_none());
        drop(read);
        turns.enter(Access::Write, 0, 10).now_or_never().expect("nobody reads any more");
        drop(write);
    }
}
