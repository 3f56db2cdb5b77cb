//! Who leads after deaths, stalls and planned stops, and how soon.

use std::time::Duration;

use tokio::time::Instant;

use super::super::{LEADER_LEASE, LogOp, RpcFailure, codec};
use super::ring::{Put, Ring, WAIT, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_ring_goes_on_after_its_leader_dies() {
    let mut ring = Ring::founded(3).await;
    ring.node(2).propose(Put::new("before", "1"), WAIT).await.unwrap();
    let old = ring.leader().await;
    ring.kill(old).await;
    let new = ring.leader().await;
    assert_eq!(ring.node(new).metrics().silent_before, LEADER_LEASE);
    let alive = (1..=3).find(|id| *id != old).unwrap();
    ring.insist(alive, Put::new("after", "2")).await;
    assert_eq!(ring.read(alive, "before"), Some("1".to_owned()));
    ring.start(old).await;
    ring.converged().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_stalls_for_half_a_second_goes_on_leading() {
    let ring = Ring::founded(3).await;
    let leader = ring.leader().await;
    let term = ring.node(leader).metrics().term;
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(230)).await;
        ring.hub.stall(leader);
        tokio::time::sleep(Duration::from_millis(480)).await;
        ring.hub.heal();
    }
    ring.node(leader).propose(Put::new("a", "b"), WAIT).await.unwrap();
    assert_eq!(ring.leader().await, leader);
    assert_eq!(ring.node(leader).metrics().term, term);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_voter_that_was_cut_off_does_not_topple_the_leader() {
    let ring = Ring::founded(3).await;
    let leader = ring.leader().await;
    let term = ring.node(leader).metrics().term;
    let cut = (1..=3).find(|id| *id != leader).unwrap();
    ring.hub.isolate(cut);
    tokio::time::sleep(Duration::from_millis(2_000)).await;
    ring.hub.heal();
    tokio::time::sleep(Duration::from_millis(500)).await;
    ring.converged().await;
    assert_eq!(ring.node(leader).metrics().term, term);
    assert_eq!(ring.node(cut).metrics().term, term);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_steps_down_is_succeeded_at_once() {
    let mut ring = Ring::founded(3).await;
    let old = ring.leader().await;
    tokio::time::sleep(LEADER_LEASE).await;
    let started = Instant::now();
    ring.node(old).step_down().await;
    let took = started.elapsed();
    let new = ring.leader().await;
    assert_ne!(new, old);
    assert_eq!(ring.node(new).metrics().silent_before, Duration::ZERO, "the old one granted until just now");
    assert!(took < Duration::from_millis(500), "took {took:?}");
    ring.node(old).propose(Put::new("a", "b"), WAIT).await.unwrap();
    ring.kill(old).await;
    ring.node(new).propose(Put::new("a", "c"), WAIT).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_decides_on_a_vote_or_leaves_has_no_majority_to_show() {
    let ring = Ring::founded(3).await;
    let leader = ring.node(ring.leader().await);
    assert!(leader.metrics().quorum_acked_at.is_some());
    let voting = leader.inner.contact.voting();
    assert_eq!(leader.metrics().quorum_acked_at, None);
    drop(voting);
    leader.inner.contact.set_leaving(true);
    assert_eq!(leader.metrics().quorum_acked_at, None);
    leader.inner.contact.set_leaving(false);
    assert!(leader.metrics().quorum_acked_at.is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_with_a_majority_refuses_votes_for_others() {
    let ring = Ring::founded(3).await;
    let old = ring.leader().await;
    let leader = ring.node(old);
    // Past openraft's own lease of a new leader, which would hide the rule.
    tokio::time::sleep(LEADER_LEASE + Duration::from_millis(50)).await;
    let metrics = leader.metrics();
    let vote = openraft::Vote::new(metrics.term + 1, 9);
    let request = openraft::raft::VoteRequest::new(vote, leader.inner.log_store.last());
    let refused = leader.handle_rpc(LogOp::Vote, &codec::encode(&request)).await;
    assert!(matches!(refused, Err(RpcFailure::Refused(_))), "{refused:?}");
    assert_eq!(leader.metrics().term, metrics.term);
}

/// Prints figures; run with `--ignored --nocapture`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures"]
async fn measure_election_handover_and_propose_times() {
    let rounds = 40;
    let ring = Ring::founded(1).await;
    let start = Instant::now();
    for _ in 0..200 {
        ring.node(1).propose(Put::new("a", "b"), WAIT).await.unwrap();
    }
    println!("1 voter: a proposal takes {:?}", start.elapsed() / 200);
    for count in [3, 5] {
        let mut ring = Ring::founded(count).await;
        let (mut elected, mut handed, mut proposed) = (Vec::new(), Vec::new(), Vec::new());
        for round in 0..rounds {
            tokio::time::sleep(Duration::from_millis(300 + 17 * (round % 7))).await;
            let old = ring.leader().await;
            for _ in 0..5 {
                let start = Instant::now();
                ring.node(old).propose(Put::new("a", "b"), WAIT).await.unwrap();
                proposed.push(start.elapsed());
            }
            let start = Instant::now();
            ring.kill(old).await;
            let alive = (1..=count).find(|id| *id != old).unwrap();
            ring.leader().await;
            elected.push(start.elapsed());
            ring.insist(alive, Put::new("a", "c")).await;
            ring.start(old).await;
            ring.converged().await;
        }
        for _ in 0..rounds / 2 {
            // A leader younger than its lease would wait for that.
            tokio::time::sleep(Duration::from_millis(700)).await;
            let old = ring.leader().await;
            let start = Instant::now();
            ring.node(old).step_down().await;
            until("a new leader", || {
                let leader = ring.node(old).leader();
                leader.filter(|leader| leader.node.0 != old)
            })
            .await;
            handed.push(start.elapsed());
        }
        for (what, mut times) in [("elected", elected), ("handed over", handed), ("proposed", proposed)] {
            times.sort_unstable();
            let at = |percent: usize| times[(times.len() - 1) * percent / 100];
            println!(
                "{count} voters: {what} min {:?} p50 {:?} p90 {:?} max {:?} (n={})",
                at(0),
                at(50),
                at(90),
                at(100),
                times.len()
            );
        }
    }
}
