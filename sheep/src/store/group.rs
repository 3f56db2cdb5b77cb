//! One sync for all who wait for it.
//!
//! Used for the data of an object and for the names in a directory. A change is made first and then
//! [`note`](SyncGroup::note)d; [`sync`](SyncGroup::sync) returns when everything noted before the call is
//! durable. One caller syncs, those that come meanwhile wait and share the next one.

use std::io;

use parking_lot::{Condvar, Mutex};

use super::error::same;

#[derive(Default)]
pub(super) struct SyncGroup {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Changes made.
    noted: u64,
    /// Changes durable; at most `noted`.
    durable: u64,
    running: bool,
    /// Set once a sync has failed, for ever: the kernel may have dropped what it could not write.
    failed: Option<io::Error>,
}

impl SyncGroup {
    /// A group with a change of unknown age: what an earlier process did may not be durable.
    pub(super) fn unsynced() -> Self {
        Self { state: Mutex::new(State { noted: 1, ..State::default() }), changed: Condvar::new() }
    }

    /// Notes a change that has been made.
    pub(super) fn note(&self) {
        self.state.lock().noted += 1;
    }

    /// Whether all that was noted is durable.
    pub(super) fn is_clean(&self) -> bool {
        let state = self.state.lock();
        state.durable == state.noted
    }

    /// Returns when all that was noted before the call is durable, by calling `sync` if no other caller's does.
    pub(super) fn sync(&self, sync: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let mut state = self.state.lock();
        let wanted = state.noted;
        loop {
            if let Some(error) = &state.failed {
                return Err(same(error));
            }
            if state.durable >= wanted {
                return Ok(());
            }
            if !state.running {
                break;
            }
            self.changed.wait(&mut state);
        }
        state.running = true;
        let covered = state.noted;
        drop(state);
        let result = sync();
        let mut state = self.state.lock();
        state.running = false;
        match &result {
            Ok(()) => state.durable = covered,
            Err(error) => state.failed = Some(same(error)),
        }
        self.changed.notify_all();
        result
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_clean_group_does_not_sync_and_a_failure_is_never_retried() {
        let group = SyncGroup::default();
        group.sync(|| panic!("nothing to sync")).expect("clean");
        group.note();
        assert!(!group.is_clean());
        assert!(group.sync(|| Err(io::Error::from_raw_os_error(5))).is_err());
        let error = group.sync(|| panic!("retried")).expect_err("failed for ever");
        assert_eq!(error.raw_os_error(), Some(5));
    }

    #[test]
    fn many_waiters_share_few_syncs() {
        let (group, syncs) = (SyncGroup::default(), AtomicU32::new(0));
        std::thread::scope(|scope| {
            for _ in 0..32 {
                scope.spawn(|| {
                    group.note();
                    let sync = || {
                        syncs.fetch_add(1, Ordering::Relaxed);
                        std::thread::sleep(Duration::from_millis(20));
                        Ok(())
                    };
                    group.sync(sync).expect("no failure");
                });
            }
        });
        assert!(group.is_clean());
        assert!(syncs.into_inner() < 32);
    }
}
