//! Waiting: until something holds or a deadline, never for a fixed time.

use std::fmt::Display;
use std::thread::sleep;
use std::time::{Duration, Instant};

const STEP: Duration = Duration::from_millis(20);

/// Tries `look` until it succeeds; when that takes longer than `limit`, panics with the last state seen.
pub fn until<T, E: Display>(limit: Duration, what: &str, look: impl FnMut() -> Result<T, E>) -> T {
    match within(limit, look) {
        Ok(value) => value,
        Err(last) => panic!("not within {limit:?}: {what}; last seen: {last}"),
    }
}

/// Like [`until`], for the caller to judge: the last state seen is the error.
pub fn within<T, E>(limit: Duration, mut look: impl FnMut() -> Result<T, E>) -> Result<T, E> {
    let deadline = Instant::now() + limit;
    loop {
        let seen = look();
        if seen.is_ok() || Instant::now() >= deadline {
            return seen;
        }
        sleep(STEP);
    }
}

/// Holds a condition for `span`: panics as soon as `look` fails.
pub fn throughout<E: Display>(span: Duration, what: &str, mut look: impl FnMut() -> Result<(), E>) {
    let end = Instant::now() + span;
    while Instant::now() < end {
        if let Err(seen) = look() {
            panic!("no longer holds: {what}; seen: {seen}");
        }
        sleep(STEP);
    }
}
