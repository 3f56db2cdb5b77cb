//! The clock that leases are counted on.
//!
//! `CLOCK_BOOTTIME` goes on while a machine is suspended, so a lease that was held when the lid closed
//! has run out when it opens; `CLOCK_MONOTONIC`, which is behind `Instant`, would say it is still good.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Time since the machine booted, suspensions included.
pub fn boottime_now() -> Duration {
    let now = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(now.tv_sec).expect("time since boot is not negative");
    let nanos = u32::try_from(now.tv_nsec).expect("nanoseconds are below a second");
    Duration::new(seconds, nanos)
}

/// Where lease code gets its time, so that tests can choose it.
pub trait Clock: Send + Sync + 'static {
    /// Time since an arbitrary origin that stays the same for the life of the process.
    fn now(&self) -> Duration;
}

/// The machine's own clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct RealClock;

impl Clock for RealClock {
    fn now(&self) -> Duration {
        boottime_now()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boot_time_does_not_run_backwards() {
        let before = boottime_now();
        assert!(boottime_now() >= before);
        assert!(before > Duration::ZERO);
    }
}
