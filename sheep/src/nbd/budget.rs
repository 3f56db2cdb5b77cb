//! How much memory requests may hold: per connection, and over all connections.
//!
//! A request is charged before its payload is read or its data fetched, and the charge is given back when
//! its reply has been written. A connection whose charge must wait stops reading, which is what slows its
//! client down.
//!
//! Every connection has a small reserve of its own, so that connections that wait for a stuck VDI, holding
//! all of the shared budget, never stop the small requests of the others.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::server::PAYLOAD_LEN_MAX;

/// Charged for every request besides its payload: its futures and its reply's head.
pub(super) const REQUEST_COST: u32 = 1024;

/// What a connection may hold without asking the shared budget. Times the default limit of connections it is
/// 32 MiB, and it fits a few of the 4 KiB requests that must not wait.
const RESERVE: u32 = 32 << 10;

/// What one connection may hold in all: one largest request, so that no single client takes all of the
/// shared budget.
const CONNECTION_MAX: u32 = PAYLOAD_LEN_MAX + REQUEST_COST;

/// A read buffer for a connection with something to read. One read takes a queue of 31 writes of 4 KiB.
const BUFFER_LEN: usize = 128 << 10;

/// Read buffers of the large size in use at once, over all connections: 16 MiB.
const BUFFERS_MAX: usize = 128;

/// Read buffers kept for the next connection that wakes up. More would only be memory that was needed once.
const BUFFERS_KEPT: usize = 32;

/// A read buffer when all large ones are lent: reading goes on, with more system calls.
const BUFFER_LEN_SMALL: usize = 4 << 10;

/// What all connections of a server share.
#[derive(Debug)]
pub(super) struct Budget {
    bytes: Arc<Semaphore>,
    /// Connections that wait for shared bytes.
    waiting: AtomicUsize,
    /// Guards a vector and a count; held for a push or a pop.
    buffers: Mutex<Buffers>,
}

#[derive(Debug, Default)]
struct Buffers {
    kept: Vec<Vec<u8>>,
    lent_count: usize,
}

impl Budget {
    /// `bytes` is raised to what the largest request needs.
    pub(super) fn new(bytes: usize) -> Arc<Self> {
        let bytes = bytes.clamp(CONNECTION_MAX as usize, Semaphore::MAX_PERMITS);
        Arc::new(Self {
            bytes: Arc::new(Semaphore::new(bytes)),
            waiting: AtomicUsize::new(0),
            buffers: Mutex::default(),
        })
    }

    /// Whether somebody waits for what others hold.
    pub(super) fn is_short(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0
    }

    /// An empty buffer whose capacity is what should be read into it.
    pub(super) fn lend_buffer(&self) -> Vec<u8> {
        let mut buffers = self.buffers.lock();
        if buffers.lent_count == BUFFERS_MAX {
            return Vec::with_capacity(BUFFER_LEN_SMALL);
        }
        buffers.lent_count += 1;
        buffers.kept.pop().unwrap_or_else(|| Vec::with_capacity(BUFFER_LEN))
    }

    /// Takes back what [`Budget::lend_buffer`] gave.
    pub(super) fn return_buffer(&self, mut buffer: Vec<u8>) {
        if buffer.capacity() < BUFFER_LEN {
            return;
        }
        buffer.clear();
        let mut buffers = self.buffers.lock();
        buffers.lent_count -= 1;
        if buffers.kept.len() < BUFFERS_KEPT {
            buffers.kept.push(buffer);
        }
    }
}

/// What one request holds. Plain data: its [`Ledger`] takes it back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "a charge is given back with Ledger::release"]
pub(super) struct Charge {
    bytes: u32,
    shared: bool,
}

/// What one connection holds. Given back in full when dropped, whatever happened to the charges.
pub(super) struct Ledger {
    budget: Arc<Budget>,
    reserved: u32,
    shared: u32,
    waiting: Option<Waiting>,
}

impl Ledger {
    pub(super) fn new(budget: Arc<Budget>) -> Self {
        Self { budget, reserved: 0, shared: 0, waiting: None }
    }

    /// Whether it holds what others may be waiting for.
    pub(super) fn holds_shared(&self) -> bool {
        self.shared > 0
    }

    /// Charges `bytes`, which must not be more than the largest request's. While pending, the task is woken
    /// when shared bytes are there for it; that its own requests give some back it knows itself.
    pub(super) fn poll_charge(&mut self, cx: &mut Context<'_>, bytes: u32) -> Poll<Charge> {
        debug_assert!(bytes <= CONNECTION_MAX, "{bytes} can never be charged");
        if self.reserved + bytes <= RESERVE {
            self.waiting = None;
            self.reserved += bytes;
            return Poll::Ready(Charge { bytes, shared: false });
        }
        if bytes > CONNECTION_MAX - self.shared {
            return Poll::Pending;
        }
        if self.waiting.is_none() {
            match self.budget.bytes.try_acquire_many(bytes) {
                Ok(permit) => permit.forget(),
                Err(_) => self.waiting = Some(Waiting::new(Arc::clone(&self.budget), bytes)),
            }
        }
        if let Some(waiting) = &mut self.waiting {
            ready!(waiting.poll(cx));
            self.waiting = None;
        }
        self.shared += bytes;
        Poll::Ready(Charge { bytes, shared: true })
    }

    /// Gives up waiting.
    pub(super) fn stop_waiting(&mut self) {
        self.waiting = None;
    }

    pub(super) fn release(&mut self, charge: Charge) {
        if charge.shared {
            self.shared -= charge.bytes;
            self.budget.bytes.add_permits(charge.bytes as usize);
        } else {
            self.reserved -= charge.bytes;
        }
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        self.budget.bytes.add_permits(self.shared as usize);
    }
}

/// A place in the queue for shared bytes.
struct Waiting {
    budget: Arc<Budget>,
    acquire: Pin<Box<dyn Future<Output = Option<OwnedSemaphorePermit>> + Send>>,
}

impl Waiting {
    fn new(budget: Arc<Budget>, bytes: u32) -> Self {
        budget.waiting.fetch_add(1, Ordering::Relaxed);
        let semaphore = Arc::clone(&budget.bytes);
        let acquire = Box::pin(async move { semaphore.acquire_many_owned(bytes).await.ok() });
        Self { budget, acquire }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let permit = ready!(self.acquire.as_mut().poll(cx));
        permit.expect("the budget's semaphore is never closed").forget();
        Poll::Ready(())
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.budget.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::future::poll_fn;

    use futures::FutureExt;

    use super::*;

    fn charge(ledger: &mut Ledger, bytes: u32) -> Option<Charge> {
        poll_fn(|cx| ledger.poll_charge(cx, bytes)).now_or_never()
    }

    #[test]
    fn small_requests_go_on_while_others_hold_the_shared_budget() {
        let budget = Budget::new(0);
        let (mut hog, mut other) = (Ledger::new(budget.clone()), Ledger::new(budget.clone()));
        let large = charge(&mut hog, CONNECTION_MAX).unwrap();
        assert_eq!(charge(&mut other, RESERVE + 1), None);
        assert!(budget.is_short());
        let small = charge(&mut other, RESERVE).unwrap();
        assert!(!budget.is_short());
        hog.release(large);
        let shared = charge(&mut other, CONNECTION_MAX).unwrap();
        assert!(other.holds_shared());
        other.release(small);
        other.release(shared);
        assert!(!other.holds_shared());
    }

    #[test]
    fn a_waiting_connection_gets_what_another_gives_back_or_takes_with_it() {
        let budget = Budget::new(0);
        let (mut hog, mut other) = (Ledger::new(budget.clone()), Ledger::new(budget.clone()));
        let _leaked = charge(&mut hog, CONNECTION_MAX).unwrap();
        assert_eq!(charge(&mut other, CONNECTION_MAX), None);
        drop(hog);
        assert!(charge(&mut other, CONNECTION_MAX).is_some());
        assert!(!budget.is_short());
    }

    #[test]
    fn one_connection_is_limited_however_large_the_budget() {
        let budget = Budget::new(1 << 30);
        let mut ledger = Ledger::new(budget.clone());
        assert!(charge(&mut ledger, CONNECTION_MAX).is_some());
        assert_eq!(charge(&mut ledger, RESERVE + 1), None);
        assert!(!budget.is_short(), "its own limit is nobody else's fault");
    }

    #[test]
    fn read_buffers_get_small_when_too_many_are_lent() {
        let budget = Budget::new(0);
        let lent: Vec<_> = (0..BUFFERS_MAX).map(|_| budget.lend_buffer()).collect();
        assert_eq!(budget.lend_buffer().capacity(), BUFFER_LEN_SMALL);
        lent.into_iter().for_each(|buffer| budget.return_buffer(buffer));
        assert_eq!(budget.lend_buffer().capacity(), BUFFER_LEN);
        assert!(budget.buffers.lock().kept.len() <= BUFFERS_KEPT);
    }
}
