//! This node's session and its lease: whether what it reads alone is current.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use wire::id::{NodeId, Session};

use super::clock::Clock;
use super::lease::HeldLease;

/// The lease of this node's session.
pub(crate) struct Lease {
    held: Mutex<HeldLease>,
    pub(crate) clock: Arc<dyn Clock>,
}

impl Lease {
    pub(crate) fn new(clock: Arc<dyn Clock>) -> Self {
        Self { held: Mutex::default(), clock }
    }

    /// Whether nobody else can have been made owner in this node's place.
    pub(crate) fn is_valid(&self) -> bool {
        self.held.lock().is_valid(self.clock.now())
    }

    /// A renewal sent at `sent` was granted.
    pub(crate) fn granted(&self, sent: std::time::Duration) {
        self.held.lock().granted(sent);
    }

    /// The session ends in order.
    pub(crate) fn give_up(&self) {
        self.held.lock().give_up();
    }
}

/// Who this node is at the moment.
///
/// The session changes when the ring has evicted it and it joins anew; the process stays the same, and so
/// do its clients' requests.
#[derive(Debug)]
pub struct Me {
    node: NodeId,
    start: AtomicU64,
    /// The start counter with which the process began; names it in request ids.
    pub(crate) process: u64,
    /// The machine's boot.
    pub(crate) boot: u128,
}

impl Me {
    pub(crate) fn new(session: Session, boot: u128) -> Arc<Self> {
        Arc::new(Self {
            node: session.node,
            start: AtomicU64::new(session.start),
            process: session.start,
            boot,
        })
    }

    /// The present session.
    pub(crate) fn session(&self) -> Session {
        Session { node: self.node, start: self.start.load(Ordering::Acquire) }
    }

    /// A new session of the same process begins.
    pub(crate) fn renew(&self, start: u64) {
        self.start.fetch_max(start, Ordering::AcqRel);
    }
}
