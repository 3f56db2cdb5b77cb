//! The cluster state as everyone on this node sees it: the newest applied, shared and awaitable.

use std::sync::Arc;

use tokio::sync::watch;

use super::log::Applied;
use super::state::ClusterState;

/// A handle on the newest applied state. Cheap to clone.
#[derive(Clone)]
pub(crate) struct View {
    applied: watch::Receiver<Applied<ClusterState>>,
}

impl View {
    pub(crate) fn new(applied: watch::Receiver<Applied<ClusterState>>) -> Self {
        Self { applied }
    }

    /// The newest state.
    pub(crate) fn state(&self) -> Arc<ClusterState> {
        self.applied.borrow().state.clone()
    }

    /// The newest state and the log index it includes.
    pub(crate) fn applied(&self) -> Applied<ClusterState> {
        self.applied.borrow().clone()
    }

    /// The newest state, if it includes an entry after `index`.
    #[cfg(test)]
    pub(crate) fn newer(&self, index: u64) -> Option<Applied<ClusterState>> {
        let applied = self.applied.borrow();
        (applied.index > index).then(|| applied.clone())
    }

    /// A receiver of its own, for waiting on changes.
    pub(crate) fn subscribe(&self) -> watch::Receiver<Applied<ClusterState>> {
        self.applied.clone()
    }

    /// Waits until the state includes the entry at `index`. Cancel-safe.
    pub(crate) async fn reaches(&self, index: u64) {
        let mut applied = self.applied.clone();
        // The sender lives as long as the node; when it goes, so does whoever waits.
        let _gone = applied.wait_for(|a| a.index >= index).await;
    }

    /// Waits until the state is as `holds` wants it; for ever once the log has ended. Cancel-safe.
    pub(crate) async fn until(&self, mut holds: impl FnMut(&ClusterState) -> bool) {
        let mut applied = self.applied.clone();
        if applied.wait_for(|a| holds(&a.state)).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Waits until the state changes, but not forever: what else could have changed is looked at too.
    pub(crate) async fn change(&self, at_most: std::time::Duration) {
        let mut applied = self.applied.clone();
        applied.mark_unchanged();
        let changed = async {
            if applied.changed().await.is_err() {
                // The log has ended: whoever asks in a loop is not to spin.
                std::future::pending::<()>().await;
            }
        };
        let _either = tokio::time::timeout(at_most, changed).await;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_waits_for_a_log_that_has_ended_does_not_spin() {
        let (publish, applied) =
            watch::channel(Applied { index: 0, state: Arc::new(ClusterState::default()) });
        let view = View::new(applied);
        drop(publish);
        let began = tokio::time::Instant::now();
        view.change(Duration::from_secs(1)).await;
        assert_eq!(began.elapsed(), Duration::from_secs(1));
        let until = view.until(|state| state.format().is_some());
        assert!(tokio::time::timeout(Duration::from_secs(1), until).await.is_err());
    }
}
