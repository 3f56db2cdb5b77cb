//! How many rings run at once in one test binary: a machine of two cores carries few.

use parking_lot::{Condvar, Mutex};

const RINGS_MAX: usize = 2;

static RUNNING: Mutex<usize> = Mutex::new(0);
static FREED: Condvar = Condvar::new();

/// The right to run a ring, until dropped.
#[derive(Debug)]
pub struct Turn(usize);

/// Waits for room for one ring.
pub fn take() -> Turn {
    wait_for(1)
}

/// Waits until nothing else runs: for tests that measure time.
pub fn take_all() -> Turn {
    wait_for(RINGS_MAX)
}

fn wait_for(share: usize) -> Turn {
    let mut running = RUNNING.lock();
    while *running + share > RINGS_MAX {
        FREED.wait(&mut running);
    }
    *running += share;
    Turn(share)
}

impl Drop for Turn {
    fn drop(&mut self) {
        *RUNNING.lock() -= self.0;
        FREED.notify_all();
    }
}
