//! How fast recovery may go: a budget that fills with time.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

#[derive(Debug)]
struct Budget {
    limit: Option<u64>,
    /// When what has been spent so far will have been earned.
    paid_until: Instant,
}

/// A limit in bytes a second over all that recovery reads from other nodes.
#[derive(Debug)]
pub(crate) struct Throttle(Mutex<Budget>);

impl Default for Throttle {
    fn default() -> Self {
        Self(Mutex::new(Budget { limit: None, paid_until: Instant::now() }))
    }
}

impl Throttle {
    /// Sets the limit; none if absent. At least 1 byte a second.
    pub(crate) fn set_limit(&self, bytes_per_second: Option<u64>) {
        self.0.lock().limit = bytes_per_second.map(|b| b.max(1));
    }

    /// Spends `bytes` and waits until they are earned. Cancel-safe: they stay spent.
    pub(crate) async fn spend(&self, bytes: u64) {
        let until = {
            let mut budget = self.0.lock();
            let Some(limit) = budget.limit else { return };
            let now = Instant::now();
            let cost = Duration::from_secs_f64(bytes as f64 / limit as f64);
            budget.paid_until = budget.paid_until.max(now) + cost;
            budget.paid_until
        };
        tokio::time::sleep_until(until).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_limit_is_kept_on_average() {
        let throttle = Throttle::default();
        throttle.spend(1 << 40).await;
        throttle.set_limit(Some(1000));
        let began = Instant::now();
        for _ in 0..5 {
            throttle.spend(500).await;
        }
        assert_eq!(began.elapsed().as_millis(), 2500);
    }
}
