//! Whom this node does not reach, which it tells the leader: a way may be cut between two members only.
//!
//! Looks at the connections that answer nothing, and knocks where they lead. Silence there may be a cut way or a
//! dead machine; the leader knows which, by whether it hears the other ([`crate::cluster::complaints`]).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::future::join_all;
use tokio::time::Instant;
use wire::id::NodeId;

use super::{Membership, Ring};
use crate::peer::{Peers, Probe, Stalled};

/// How often the connections are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Silence for this long is told: two probes at least.
const TELL_AFTER: Duration = Duration::from_millis(500);

/// Who is silent, since when.
#[derive(Debug, Default)]
pub(super) struct Silent(BTreeMap<NodeId, Instant>);

impl Silent {
    /// What probes of some nodes showed; all others are as good as reached.
    fn probed(&mut self, silent: &BTreeSet<NodeId>, began: Instant) {
        self.0.retain(|node, _| silent.contains(node));
        for node in silent {
            self.0.entry(*node).or_insert(began);
        }
    }

    /// Whom the leader should hear of.
    pub(super) fn to_tell(&self) -> BTreeSet<NodeId> {
        self.0.iter().filter(|(_, since)| since.elapsed() >= TELL_AFTER).map(|(node, _)| *node).collect()
    }
}

/// Those of `nodes` that do not answer a probe.
pub(super) async fn silent_of(peers: &Peers, nodes: impl IntoIterator<Item = NodeId>) -> BTreeSet<NodeId> {
    let probes = nodes.into_iter().map(|node| async move { (node, peers.probe(node).await) });
    let probed = join_all(probes).await.into_iter();
    probed.filter(|(_, probe)| *probe == Some(Probe::Silent)).map(|(node, _)| node).collect()
}

impl Membership {
    /// Keeps the list of whom this node does not reach.
    pub(super) async fn keep_reaching(&self, ring: &Ring) {
        let mut stalled = Stalled::default();
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let state = ring.view.state();
            let mut asked = ring.peers.stalled(&mut stalled);
            asked.extend(self.silent.lock().0.keys());
            asked.retain(|node| state.node(*node).is_some_and(|n| n.live_session().is_some()));
            let began = Instant::now();
            let silent = silent_of(&ring.peers, asked).await;
            self.silent.lock().probed(&silent, began);
        }
    }
}
