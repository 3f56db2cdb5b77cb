//! For how long a node has been told that its directory's last session is alive. Pure.

use std::time::Duration;

use tokio::time::Instant;

/// Whoever is told for this long that its directory's last session is alive has a copy of it.
const LONG: Duration = Duration::from_secs(5);
/// Between two answers no more than this counts: the process may have slept, or nobody may have answered.
const COUNTS: Duration = Duration::from_secs(1);

/// What the leader of the log has said of this node's last session.
#[derive(Debug, Default)]
pub(super) struct Told {
    last: Option<Instant>,
    long: Duration,
}

impl Told {
    /// The leader says that it is alive; whether it has for so long that this must be believed. A new leader says it
    /// once of everybody, until the leases of the one before are over.
    pub(super) fn alive(&mut self, now: Instant) -> bool {
        match self.last.replace(now).map(|last| now.saturating_duration_since(last)) {
            Some(gap) if gap <= LONG => self.long += gap.min(COUNTS),
            _ => self.long = Duration::ZERO,
        }
        self.long > LONG
    }

    /// The leader says something else.
    pub(super) fn otherwise(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn told_again_and_again_is_believed() {
        let began = Instant::now();
        let mut told = Told::default();
        for ms in (0..=5_000).step_by(100) {
            assert!(!told.alive(began + Duration::from_millis(ms)), "{ms}");
        }
        assert!(told.alive(began + Duration::from_millis(5_100)));
    }

    #[test]
    fn told_twice_with_a_sleep_in_between_is_not() {
        let began = Instant::now();
        let mut told = Told::default();
        assert!(!told.alive(began));
        assert!(!told.alive(began + Duration::from_secs(4)));
        assert!(!told.alive(began + Duration::from_secs(60)), "it begins anew");
        assert!(!told.alive(began + Duration::from_secs(64)));
    }

    #[test]
    fn once_otherwise_it_begins_anew() {
        let began = Instant::now();
        let mut told = Told::default();
        for ms in (0..=4_900).step_by(100) {
            assert!(!told.alive(began + Duration::from_millis(ms)));
        }
        told.otherwise();
        assert!(!told.alive(began + Duration::from_millis(5_000)));
        assert!(!told.alive(began + Duration::from_millis(5_500)));
    }
}
