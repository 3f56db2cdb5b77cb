//! This node's lease: whether what it reads alone is current.

use parking_lot::Mutex;
use std::sync::Arc;

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
