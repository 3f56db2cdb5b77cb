//! What is told of a seed.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use parking_lot::Mutex;

/// What happened, told in lines; printed when one seed is run for its own sake.
#[derive(Clone)]
pub(super) struct Story(Arc<Mutex<Lines>>);

struct Lines {
    aloud: bool,
    now: Duration,
    crc: u32,
}

impl Story {
    pub(super) fn new(aloud: bool) -> Self {
        Self(Arc::new(Mutex::new(Lines { aloud, now: Duration::ZERO, crc: 0 })))
    }

    pub(super) fn tell(&self, line: impl AsRef<str>) {
        let mut story = self.0.lock();
        let line = format!("{:>9.3} {}", story.now.as_secs_f64(), line.as_ref());
        story.crc = crc32c::crc32c_append(story.crc, line.as_bytes());
        if story.aloud {
            println!("{line}");
        }
    }

    /// Tells whoever looks into this one seed something that is no part of the story.
    pub(super) fn aside(&self, line: impl AsRef<str>) {
        let story = self.0.lock();
        if story.aloud {
            println!("{:>9.3} ({})", story.now.as_secs_f64(), line.as_ref());
        }
    }

    /// A checksum of all of it.
    pub(super) fn sum(&self) -> u32 {
        self.0.lock().crc
    }

    /// Time has passed.
    pub(super) fn set_time(&self, now: Duration) {
        self.0.lock().now = now;
    }

    pub(super) fn time(&self) -> Duration {
        self.0.lock().now
    }
}

/// The sector that whoever looks into a seed wants to know of: `SECTOR=n`.
pub(super) fn watched_sector() -> Option<u64> {
    static WATCHED: LazyLock<Option<u64>> =
        LazyLock::new(|| std::env::var("SECTOR").ok().and_then(|text| text.parse().ok()));
    *WATCHED
}
