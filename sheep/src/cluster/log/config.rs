//! Timing and limits of the log.

use std::time::Duration;

use wire::id::NodeId;

use super::error::LogError;

/// Default of [`LogConfig::leader_lease`]; what leases are granted on rests on it.
pub const LEADER_LEASE: Duration = Duration::from_millis(600);

/// How a node's log behaves. All voters of a ring should agree on the times.
#[derive(Debug, Clone)]
pub struct LogConfig {
    /// This node.
    pub node: NodeId,
    /// How often the leader shows that it lives. Default 100 ms.
    pub heartbeat: Duration,
    /// How long after the leader's last sign of life a voter refuses to elect another. Default 600 ms: a
    /// stall of 500 ms plus one heartbeat is not a death.
    pub leader_lease: Duration,
    /// How long after that a voter waits before it stands, at random between these. Default 30 to 120 ms:
    /// the spread keeps two voters from splitting the vote, the minimum absorbs late messages.
    pub stand_after: (Duration, Duration),
    /// How long one append may take before it is sent again; a follower's sync is part of it. Default 300 ms.
    pub append_timeout: Duration,
    /// Entries between snapshots: a node that starts applies as many at most, a millisecond each or so. Default 1,000.
    pub snapshot_every: u64,
    /// Entries kept behind a snapshot, for followers that are a little late. Default 2,000.
    pub keep_entries: u64,
}

impl LogConfig {
    /// The defaults for `node`.
    pub fn new(node: NodeId) -> Self {
        Self {
            node,
            heartbeat: Duration::from_millis(100),
            leader_lease: LEADER_LEASE,
            stand_after: (Duration::from_millis(30), Duration::from_millis(120)),
            append_timeout: Duration::from_millis(300),
            snapshot_every: 1_000,
            keep_entries: 2_000,
        }
    }

    /// openraft's view. Its own timers for heartbeats and elections stay off: they tick once per one and a
    /// half append timeouts and draw an election timeout once per process, which is slow and lets two voters
    /// collide for ever; `driver` does both instead. What remains in force is the vote lease.
    pub(super) fn to_openraft(&self) -> Result<openraft::Config, LogError> {
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let refuse = |reason: &str| Err(LogError::Config(reason.to_owned()));
        if self.leader_lease < self.heartbeat * 3 {
            return refuse("leader_lease must be at least three heartbeats");
        }
        if self.stand_after.0 >= self.stand_after.1 {
            return refuse("stand_after must be a range");
        }
        if self.append_timeout >= self.leader_lease {
            return refuse("append_timeout must be below leader_lease");
        }
        if self.snapshot_every == 0 {
            return refuse("snapshot_every must not be zero");
        }
        openraft::Config {
            cluster_name: "sheepdog".to_owned(),
            heartbeat_interval: millis(self.append_timeout),
            election_timeout_min: millis(self.leader_lease).saturating_sub(1),
            election_timeout_max: millis(self.leader_lease),
            enable_heartbeat: false,
            enable_elect: false,
            max_payload_entries: 256,
            replication_lag_threshold: self.snapshot_every + self.keep_entries,
            snapshot_policy: openraft::SnapshotPolicy::LogsSinceLast(self.snapshot_every),
            max_in_snapshot_log_to_keep: self.keep_entries,
            purge_batch_size: 1,
            ..openraft::Config::default()
        }
        .validate()
        .map_err(|error| LogError::Config(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_accepted_and_nonsense_is_not() {
        let config = LogConfig::new(NodeId(1));
        config.to_openraft().expect("defaults hold");
        let flapping = LogConfig { leader_lease: Duration::from_millis(150), ..config.clone() };
        assert!(flapping.to_openraft().is_err());
        assert!(LogConfig { snapshot_every: 0, ..config }.to_openraft().is_err());
    }
}
