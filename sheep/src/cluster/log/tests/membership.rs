//! Growing, shrinking and replacing.

use std::collections::BTreeSet;
use std::time::Duration;

use wire::id::NodeId;

use crate::mutant::{Mutant, plant};

use super::super::{MembersError, Role};
use super::ring::{Put, Ring, WAIT, until};

fn ids(ids: impl IntoIterator<Item = u64>) -> BTreeSet<NodeId> {
    ids.into_iter().map(NodeId).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_grows_from_one_voter_to_three_to_five_and_replaces_one() {
    let mut ring = Ring::founded(1).await;
    for (from, to) in [(2, 3), (4, 5)] {
        for id in from..=to {
            ring.start(id).await;
        }
        ring.set_voters(1..=to).await;
        ring.node(to).propose(Put::new("voters", &to.to_string()), WAIT).await.unwrap();
        assert_eq!(ring.node(1).metrics().voters, ids(1..=to));
    }
    ring.start(6).await;
    ring.kill(3).await;
    ring.set_voters([1, 2, 4, 5, 6]).await;
    ring.set_voters([1, 2, 4, 5, 6]).await;
    ring.node(6).propose(Put::new("replaced", "3"), WAIT).await.unwrap();
    ring.converged().await;
    assert_eq!(ring.node(6).metrics().voters, ids([1, 2, 4, 5, 6]));
    assert_eq!(ring.node(6).metrics().role, Role::Follower);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_leader_can_be_replaced() {
    let mut ring = Ring::founded(3).await;
    ring.start(4).await;
    let leader = ring.leader().await;
    let rest: Vec<u64> = (1..=4).filter(|id| *id != leader).collect();
    ring.set_voters(rest.clone()).await;
    ring.kill(leader).await;
    ring.insist(rest[0], Put::new("a", "b")).await;
    ring.converged().await;
    assert_eq!(ring.node(ring.leader().await).metrics().voters, ids(rest));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_node_does_not_become_a_voter() {
    let ring = Ring::founded(1).await;
    let node = ring.node(1);
    let refused = node.set_members(ids([1, 2, 3]), ids([]), Duration::from_millis(300)).await;
    assert!(matches!(refused, Err(MembersError::NotReady(_))), "{refused:?}");
    node.propose(Put::new("still", "alive"), WAIT).await.unwrap();
    node.set_members(ids([1]), ids([]), WAIT).await.unwrap();
    until("the learners to be gone", || node.metrics().learners.is_empty().then_some(())).await;
    assert_eq!(node.set_members(ids([]), ids([1]), WAIT).await, Err(MembersError::NoVoters));
}

/// The voters that are left when one is to be replaced by a node that is not there.
async fn voters_left_by_a_replacement_that_is_dead() -> BTreeSet<NodeId> {
    let ring = Ring::founded(3).await;
    let leader = ring.leader().await;
    let stay: Vec<u64> = (1..=3).filter(|id| *id != 1 + leader % 3).collect();
    let wanted = ids(stay.iter().copied().chain([4]));
    let refused = ring.node(leader).set_members(wanted, ids([]), Duration::from_millis(300)).await;
    assert!(matches!(refused, Err(MembersError::NotReady(_))), "{refused:?}");
    ring.node(leader).metrics().voters
}

#[tokio::test]
async fn a_voter_stays_until_another_can_take_its_place() {
    assert_eq!(voters_left_by_a_replacement_that_is_dead().await, ids([1, 2, 3]));
    // The bug that this is for, put in on purpose: one failure more and the ring stands still.
    plant(Some(Mutant::VotersFirst));
    assert_eq!(voters_left_by_a_replacement_that_is_dead().await.len(), 2);
    plant(None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_leader_changes_members() {
    let mut ring = Ring::founded(3).await;
    ring.start(4).await;
    let leader = ring.leader().await;
    let follower = (1..=3).find(|id| *id != leader).unwrap();
    let refused = ring.node(follower).set_members(ids([1, 2, 3]), ids([4]), WAIT).await;
    assert_eq!(refused, Err(MembersError::NotLeader));
}
