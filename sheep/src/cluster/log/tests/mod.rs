//! Whole logs in one process: real files, a network in memory.

#![allow(clippy::unwrap_used, reason = "a test that fails may panic")]

mod durability;
mod elections;
mod entries;
mod golden;
mod membership;
mod ring;

use std::time::Duration;

use self::ring::{Put, Ring, WAIT};
use super::{ProposeError, Role};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_founded_node_orders_entries_alone() {
    let mut ring = Ring::new();
    let node = ring.start(1).await;
    assert!(!node.is_initialized());
    let unfounded = node.propose(Put::new("a", "1"), Duration::from_millis(60)).await;
    assert_eq!(unfounded, Err(ProposeError::NoLeader));
    node.found().await.expect("founded");
    assert!(node.is_initialized());
    assert!(node.found().await.is_err(), "founding twice");

    let (first, reply) = node.propose(Put::new("a", "1"), WAIT).await.expect("proposed");
    assert_eq!(reply, None);
    let (second, reply) = node.propose(Put::new("a", "2"), WAIT).await.expect("proposed");
    assert_eq!(reply, Some("1".to_owned()));
    assert!(second > first);
    assert_eq!(ring.read(1, "a"), Some("2".to_owned()));
    assert!(node.read_barrier(WAIT).await.expect("leads") >= second);
    assert_eq!(node.metrics().millis_since_quorum_ack, Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_node_proposes_and_reads_its_own_write() {
    let mut ring = Ring::founded(3).await;
    for id in [1, 2, 3] {
        let node = ring.node(id);
        let (index, _) = node.propose(Put::new(&format!("k{id}"), "v"), WAIT).await.expect("proposed");
        assert!(node.read_barrier(WAIT).await.expect("barrier") >= index);
        assert_eq!(ring.read(id, &format!("k{id}")), Some("v".to_owned()));
    }
    assert_eq!(ring.node(2).metrics().role, Role::Follower);
    ring.converged().await;
    ring.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_minority_side_of_a_partition_commits_nothing() {
    let ring = Ring::founded(3).await;
    let old = ring.leader().await;
    let others: Vec<u64> = [1, 2, 3].into_iter().filter(|id| *id != old).collect();
    ring.hub.isolate(old);
    let stuck = ring.node(old).propose(Put::new("minority", "x"), Duration::from_millis(400)).await;
    assert_eq!(stuck, Err(ProposeError::Timeout));
    ring.insist(others[0], Put::new("majority", "y")).await;
    assert_eq!(ring.read(old, "majority"), None);
    assert!(ring.node(old).read_barrier(Duration::from_millis(300)).await.is_err());
    let age = ring.node(old).metrics().millis_since_quorum_ack;
    assert!(age.is_some_and(|age| age > 500), "the old leader knows it is alone: {age:?}");

    ring.hub.heal();
    ring.node(old).read_barrier(WAIT).await.expect("heard of the new leader");
    assert_eq!(ring.read(old, "majority"), Some("y".to_owned()));
    assert_eq!(ring.read(old, "minority"), None);
    ring.converged().await;
}
