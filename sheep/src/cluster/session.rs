//! This node's session and its lease: whether what it reads alone is current.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use wire::id::{NodeId, Session};

use super::clock::Clock;
use super::lease::HeldLease;

/// The lease of this node's session.
pub(crate) struct Lease {
    held: Mutex<HeldLease>,
    /// When somebody first asked for it in vain since it was last there.
    missed: Mutex<Option<Duration>>,
    pub(crate) clock: Arc<dyn Clock>,
}

impl Lease {
    pub(crate) fn new(clock: Arc<dyn Clock>) -> Self {
        Self { held: Mutex::default(), missed: Mutex::default(), clock }
    }

    /// Whether nobody else can have been made owner in this node's place.
    pub(crate) fn is_valid(&self) -> bool {
        self.held.lock().is_valid(self.clock.now())
    }

    /// For how long there has been none: since it ended, or since it was first asked for. `None` while it is
    /// valid.
    pub(crate) fn missing_for(&self) -> Option<Duration> {
        let (now, held) = (self.clock.now(), *self.held.lock());
        let mut missed = self.missed.lock();
        if held.is_valid(now) {
            *missed = None;
            return None;
        }
        let asked = *missed.get_or_insert(now);
        let since = held.until().map_or(asked, |until| until.max(asked));
        Some(now.saturating_sub(since))
    }

    /// A renewal sent at `sent` was granted.
    pub(crate) fn granted(&self, sent: Duration) {
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
pub(crate) struct Me {
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

#[cfg(test)]
mod tests {
    use super::*;

    struct Dial(AtomicU64);

    impl Clock for Dial {
        fn now(&self) -> Duration {
            Duration::from_millis(self.0.load(Ordering::Relaxed))
        }
    }

    #[test]
    fn a_lease_is_missing_since_it_ended_or_since_it_was_first_asked_for() {
        let dial = Arc::new(Dial(AtomicU64::new(5_000)));
        let lease = Lease::new(dial.clone());
        let missing_at = |ms: u64| {
            dial.0.store(ms, Ordering::Relaxed);
            lease.missing_for().map(|time| time.as_millis())
        };
        assert_eq!(missing_at(5_000), Some(0), "whatever the clock says, nobody has waited yet");
        assert_eq!(missing_at(5_300), Some(300));
        lease.granted(Duration::from_millis(5_300));
        assert_eq!(missing_at(5_700), None);
        // It ended at 5790; that somebody missed it before it was granted does not count any more.
        assert_eq!(missing_at(5_800), Some(0));
        assert_eq!(missing_at(9_800), Some(4_000));
        lease.granted(Duration::from_millis(9_800));
        assert_eq!(missing_at(10_390), Some(100), "since its end, although nobody asked while it was there");
    }
}
