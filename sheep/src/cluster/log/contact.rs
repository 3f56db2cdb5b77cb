//! What this node has heard of its leader, shared between the request side and the driver.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// Signs of life, and whether this node is handing its leadership over.
pub(super) struct Contact {
    heard: Mutex<Instant>,
    leaving: AtomicBool,
}

impl Contact {
    /// Silence counts from the start: openraft refuses votes for one lease after it, too.
    pub(super) fn new() -> Self {
        Self { heard: Mutex::new(Instant::now()), leaving: AtomicBool::new(false) }
    }

    /// The leader gave a sign of life, or a candidate was given this node's vote. Called *after* openraft
    /// has processed it, so the silence counted here never ends after openraft's lease.
    pub(super) fn heard(&self) {
        *self.heard.lock() = Instant::now();
    }

    /// How long nothing has been heard.
    pub(super) fn silence(&self) -> Duration {
        self.heard.lock().elapsed()
    }

    pub(super) fn is_leaving(&self) -> bool {
        self.leaving.load(Ordering::Acquire)
    }

    pub(super) fn set_leaving(&self, leaving: bool) {
        self.leaving.store(leaving, Ordering::Release);
    }
}
