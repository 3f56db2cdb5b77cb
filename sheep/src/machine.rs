//! What a process takes from its machine everywhere, without being handed it: threads that may block,
//! chance, the wall clock, how much memory it takes.
//!
//! Called from all over. In the product these are one call each. A simulation (`crate::sim`, in tests only)
//! puts its own in their place on its thread, so that a seed decides everything.

use rand::Rng;
use rand::distr::{Distribution, StandardUniform};
use tokio::task::JoinHandle;

/// Runs `work`, which may wait for the disk, where it holds up nobody else.
pub(crate) fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    #[cfg(test)]
    if let Some(wait) = simulated::disk_time() {
        return tokio::spawn(async move {
            tokio::time::sleep(wait).await;
            work()
        });
    }
    tokio::task::spawn_blocking(work)
}

/// A value by chance: ids, nonces.
pub(crate) fn random<T>() -> T
where
    StandardUniform: Distribution<T>,
{
    #[cfg(test)]
    if let Some(value) = simulated::chance(|rng| rng.random()) {
        return value;
    }
    rand::random()
}

/// A number by chance between two others.
pub(crate) fn random_between(least: std::time::Duration, most: std::time::Duration) -> std::time::Duration {
    #[cfg(test)]
    if let Some(value) = simulated::chance(|rng| rng.random_range(least..most)) {
        return value;
    }
    rand::rng().random_range(least..most)
}

/// Milliseconds since 1970.
pub(crate) fn wall_ms() -> u64 {
    #[cfg(test)]
    if let Some(now) = simulated::wall_ms() {
        return now;
    }
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |d| d.as_millis() as u64)
}

/// Bytes of memory that the process holds.
pub(crate) fn resident_bytes() -> u64 {
    #[cfg(test)]
    if simulated::wall_ms().is_some() {
        return 0;
    }
    let pages = std::fs::read_to_string("/proc/self/statm")
        .ok()
        .and_then(|text| text.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()));
    pages.unwrap_or(0) * rustix::param::page_size() as u64
}

/// The machine that a simulation puts in place of the real one, on the thread that it runs on.
#[cfg(test)]
pub(crate) mod simulated {
    use std::cell::RefCell;
    use std::time::Duration;

    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    struct Machine {
        rng: StdRng,
        wall_ms: u64,
        /// The longest that the disk keeps a thread waiting.
        disk: Duration,
    }

    thread_local! {
        static MACHINE: RefCell<Option<Machine>> = const { RefCell::new(None) };
    }

    /// From here on this thread is simulated.
    pub(crate) fn begin(seed: u64) {
        let machine = Machine {
            rng: StdRng::seed_from_u64(seed),
            wall_ms: 1_700_000_000_000,
            disk: Duration::from_micros(300),
        };
        MACHINE.with_borrow_mut(|m| *m = Some(machine));
    }

    /// Sets the wall clock.
    pub(crate) fn set_wall_ms(now: u64) {
        MACHINE.with_borrow_mut(|m| m.as_mut().map_or((), |m| m.wall_ms = 1_700_000_000_000 + now));
    }

    /// Sets how slow the disk of the process that runs now is at most.
    pub(crate) fn set_disk(longest: Duration) {
        MACHINE.with_borrow_mut(|m| m.as_mut().map_or((), |m| m.disk = longest));
    }

    pub(super) fn wall_ms() -> Option<u64> {
        MACHINE.with_borrow(|m| m.as_ref().map(|m| m.wall_ms))
    }

    pub(super) fn chance<T>(draw: impl FnOnce(&mut StdRng) -> T) -> Option<T> {
        MACHINE.with_borrow_mut(|m| m.as_mut().map(|m| draw(&mut m.rng)))
    }

    /// How long a piece of work waits for the disk, if this thread is simulated.
    pub(crate) fn disk_time() -> Option<Duration> {
        MACHINE.with_borrow_mut(|m| {
            m.as_mut().map(|m| {
                let longest = m.disk.as_micros() as u64;
                Duration::from_micros(m.rng.random_range(0..=longest))
            })
        })
    }
}
