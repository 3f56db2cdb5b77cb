//! Kills, stops and restarts under load, with a client that knows what was acknowledged.

use std::time::Duration;

use rustix::process::Signal;
use tests::cluster::Ring;
use tests::load::Load;
use tests::wait;

/// Kills sheep whose role `pick` names, three times, each time waiting for full redundancy again.
fn kill_under_load(name: &str, pick: impl Fn(&Ring) -> usize) {
    let mut ring = ring_with_vdi(3);
    let load = Load::new("vol", ring.everywhere()).start();
    load.progress(300);
    for _ in 0..3 {
        let victim = pick(&ring);
        ring[victim].kill();
        load.progress(300);
        ring[victim].start();
        ring.wait_full();
        load.progress(100);
    }
    load.finish(&ring, &ring.everywhere(), name);
}

fn ring_with_vdi(count: usize) -> Ring {
    let ring = Ring::formatted(count);
    ring.create("vol", "128M");
    ring
}

#[test]
fn the_owner() {
    kill_under_load("kill -9 the owner", |ring| ring.owner("vol").expect("it is open"));
}

#[test]
fn the_leader_of_the_log() {
    kill_under_load("kill -9 the leader", Ring::leader);
}

#[test]
fn a_replica_that_is_neither_owner_nor_leader() {
    kill_under_load("kill -9 a replica", |ring| ring.bystander("vol"));
}

#[test]
fn a_gateway_that_stores_nothing() {
    let mut ring = Ring::with_options(&[&[], &[], &[], &["--gateway"]]);
    ring.format(3);
    ring.create("vol", "128M");
    let load = Load::new("vol", vec![ring.nbd(3), ring.nbd(0)]).start();
    load.progress(300);
    for _ in 0..2 {
        ring[3].kill();
        load.progress(300);
        ring[3].start();
        load.progress(100);
    }
    load.finish(&ring, &ring.everywhere(), "kill -9 the client's own gateway");
}

#[test]
fn a_bystander_that_holds_copies_and_no_clients() {
    let mut ring = ring_with_vdi(4);
    let load = Load::scattered("vol", vec![ring.nbd(0), ring.nbd(1)]).start();
    load.progress(300);
    for _ in 0..2 {
        ring[3].kill();
        load.progress(300);
        ring[3].start();
        ring.wait_full();
    }
    ring.wait_full();
    let outcome = load.stop(&ring.everywhere());
    outcome.assert_good("kill -9 a bystander");
    assert_eq!(outcome.broken, 0, "the clients' own sheep stayed");
    ring.assert_same_everywhere("vol");
}

#[test]
fn the_whole_ring() {
    let mut ring = ring_with_vdi(3);
    let load = Load::new("vol", ring.everywhere()).start();
    for _ in 0..2 {
        load.progress(500);
        for index in 0..3 {
            ring[index].kill();
        }
        ring.start_all();
        load.progress(100);
    }
    load.finish(&ring, &ring.everywhere(), "kill -9 the whole ring");
}

/// The leader cannot let them in without them, so they have to start their logs without having been let in.
#[test]
fn all_but_the_leader() {
    let mut ring = ring_with_vdi(3);
    let leader = ring.leader();
    let others: Vec<usize> = (0..3).filter(|index| *index != leader).collect();
    let load = Load::new("vol", ring.everywhere()).start();
    for away in [0, 3_000] {
        load.progress(200);
        others.iter().for_each(|index| ring[*index].kill());
        std::thread::sleep(Duration::from_millis(away));
        ring.start_all();
        ring.wait_full();
    }
    load.finish(&ring, &ring.everywhere(), "kill -9 all but the leader");
}

#[test]
fn a_restart_before_anybody_noticed() {
    let mut ring = ring_with_vdi(3);
    let load = Load::scattered("vol", ring.everywhere()).start();
    for round in 0..6 {
        load.progress(150);
        ring[round % 3].kill();
        ring[round % 3].start();
        load.progress(50);
        if round % 3 == 2 {
            ring.wait_full();
        }
    }
    load.finish(&ring, &ring.everywhere(), "kill -9 and at once back");
}

#[test]
fn one_after_the_other_without_waiting_is_survived_when_all_are_back() {
    let mut ring = ring_with_vdi(3);
    let load = Load::new("vol", ring.everywhere()).start();
    load.progress(300);
    ring[0].kill();
    load.progress(100);
    ring[1].kill();
    // One of three has no majority: everything waits.
    ring[0].start();
    load.progress(100);
    ring[1].start();
    load.finish(&ring, &ring.everywhere(), "two of three killed");
}

#[test]
fn a_wiped_node_comes_back_as_an_empty_one() {
    let mut ring = ring_with_vdi(3);
    let load = Load::new("vol", ring.everywhere()).start();
    load.progress(300);
    let id = ring.id(2);
    ring[2].kill();
    load.progress(100);
    ring[2].wipe();
    ring[2].start();
    wait::until(Duration::from_secs(30), "it is a new node", || {
        let now = ring.id(2);
        if now == id { Err(now) } else { Ok(()) }
    });
    ring.dog(0, &["node", "remove", &id]).ok();
    load.finish(&ring, &ring.everywhere(), "wiped");
    assert_eq!(ring.dog_json(0, &["node", "list"]).as_array().map(Vec::len), Some(3));
}

#[test]
fn a_stop_of_half_a_second_changes_no_epoch() {
    let ring = Ring::alone(3);
    ring.create("vol", "128M");
    let load = Load::new("vol", ring.everywhere()).start();
    load.progress(300);
    let victims = [ring.owner("vol").expect("it is open"), ring.leader(), 0, 1, 2];
    let before = ring.epoch();
    for victim in victims {
        ring[victim].signal(Signal::STOP);
        // The stall is the fault itself, so its length is a time.
        std::thread::sleep(Duration::from_millis(500));
        ring[victim].signal(Signal::CONT);
        load.progress(200);
    }
    assert_eq!(ring.epoch(), before);
    load.finish(&ring, &ring.everywhere(), "SIGSTOP 0.5 s, five times");
}

#[test]
fn a_long_stop_is_a_death_and_the_stopped_sheep_does_no_harm_when_it_wakes() {
    let ring = Ring::alone(3);
    ring.create("vol", "128M");
    let load = Load::new("vol", ring.everywhere()).start();
    load.progress(300);
    let victim = ring.owner("vol").expect("it is open");
    let asked = (victim + 1) % 3;
    ring[victim].signal(Signal::STOP);
    wait::until(Duration::from_secs(20), "its death is noticed", || match ring.check(asked) {
        Ok(()) => Err("clean"),
        Err(_) => Ok(()),
    });
    load.progress(100);
    ring[victim].signal(Signal::CONT);
    load.finish(&ring, &ring.everywhere(), "the owner stopped until it was taken out");
}
