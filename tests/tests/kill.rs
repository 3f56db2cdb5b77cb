//! Kills, stops and restarts under load, with a client that knows what was acknowledged.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tests::cluster::Ring;
use tests::load::{Load, Running};
use tests::wait;

/// Kills sheep whose role `pick` names, three times, each time waiting for full redundancy again.
fn kill_under_load(name: &str, pick: impl Fn(&Ring) -> usize) {
    let mut ring = ring_with_vdi(3);
    let load = Load::new("vol", gateways(&ring)).start();
    load.progress(300);
    for _ in 0..3 {
        let victim = pick(&ring);
        ring[victim].kill();
        load.progress(300);
        ring[victim].start();
        ring.wait_full();
        load.progress(100);
    }
    finish(&ring, load, name);
}

fn ring_with_vdi(count: usize) -> Ring {
    let ring = Ring::formatted(count);
    ring.create("vol", "128M");
    ring
}

fn gateways(ring: &Ring) -> Vec<SocketAddr> {
    (0..ring.count()).map(|index| ring.nbd(index)).collect()
}

#[track_caller]
fn finish(ring: &Ring, load: Running, name: &str) {
    ring.wait_full();
    load.stop(&gateways(ring)).assert_good(name);
    ring.assert_same_everywhere("vol");
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
    kill_under_load("kill -9 a replica", |ring| {
        let (owner, leader) = (ring.owner("vol").expect("it is open"), ring.leader());
        (0..3).find(|index| *index != owner && *index != leader).expect("of three one is left")
    });
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
    finish(&ring, load, "kill -9 the client's own gateway");
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
    let outcome = load.stop(&gateways(&ring));
    outcome.assert_good("kill -9 a bystander");
    assert_eq!(outcome.broken, 0, "the clients' own sheep stayed");
    ring.assert_same_everywhere("vol");
}

#[test]
fn the_whole_ring() {
    let mut ring = ring_with_vdi(3);
    let load = Load::new("vol", gateways(&ring)).start();
    for _ in 0..2 {
        load.progress(500);
        for index in 0..3 {
            ring[index].kill();
        }
        ring.start_all();
        load.progress(100);
    }
    finish(&ring, load, "kill -9 the whole ring");
}

#[test]
fn a_restart_before_anybody_noticed() {
    let mut ring = ring_with_vdi(3);
    let load = Load::scattered("vol", gateways(&ring)).start();
    for round in 0..6 {
        load.progress(150);
        ring[round % 3].kill();
        ring[round % 3].start();
        load.progress(50);
        if round % 3 == 2 {
            ring.wait_full();
        }
    }
    finish(&ring, load, "kill -9 and at once back");
}

#[test]
fn one_after_the_other_without_waiting_is_survived_when_all_are_back() {
    let mut ring = ring_with_vdi(3);
    let load = Load::new("vol", gateways(&ring)).start();
    load.progress(300);
    ring[0].kill();
    load.progress(100);
    ring[1].kill();
    // One of three has no majority: everything waits.
    ring[0].start();
    load.progress(100);
    ring[1].start();
    finish(&ring, load, "two of three killed");
}

#[test]
fn a_wiped_node_comes_back_as_an_empty_one() {
    let mut ring = ring_with_vdi(3);
    let load = Load::new("vol", gateways(&ring)).start();
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
    finish(&ring, load, "wiped");
    assert_eq!(ring.dog_json(0, &["node", "list"]).as_array().map(Vec::len), Some(3));
}

#[test]
fn a_stop_of_half_a_second_changes_no_epoch() {
    let ring = Ring::alone(3);
    ring.create("vol", "128M");
    let load = Load::new("vol", gateways(&ring)).start();
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
    finish(&ring, load, "SIGSTOP 0.5 s, five times");
}

#[test]
fn a_long_stop_is_a_death_and_the_stopped_sheep_does_no_harm_when_it_wakes() {
    let ring = Ring::alone(3);
    ring.create("vol", "128M");
    let load = Load::new("vol", gateways(&ring)).start();
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
    finish(&ring, load, "the owner stopped until it was taken out");
}

#[test]
fn a_kill_pauses_io_for_a_second_at_most_and_a_planned_stop_for_half() {
    let mut ring = Ring::alone(3);
    let mut worst = [Duration::ZERO; 2];
    for round in 0..4 {
        let planned = round % 2 == 1;
        let vdi = format!("vol{round}");
        ring.create(&vdi, "128M");
        // The client is at a sheep that stays; the owner is one that goes.
        let victim = (0..3).find(|index| *index != ring.leader()).expect("of three two follow");
        let stays = (0..3).find(|index| *index != victim).expect("another");
        let hold = ring.open(victim, &vdi);
        let mut load = Load::new(&vdi, vec![ring.nbd(stays)]);
        load.workers = 2;
        load.depth = 1;
        let load = load.start();
        load.progress(100);
        assert_eq!(ring.owner(&vdi), Some(victim), "who opens first owns");
        if planned {
            let (status, took) = ring[victim].terminate();
            assert!(status.success(), "{status}");
            println!("SIGTERM: ended after {took:?}");
        } else {
            ring[victim].kill();
        }
        load.progress(100);
        let outcome = load.stop(&[ring.nbd(stays)]);
        let name = if planned { "SIGTERM of the owner" } else { "kill -9 of the owner" };
        outcome.assert_good(name);
        assert_eq!(outcome.broken, 0, "the client's own sheep stayed");
        worst[usize::from(planned)] = worst[usize::from(planned)].max(outcome.longest_wait);
        drop(hold);
        ring[victim].start();
        ring.wait_full();
    }
    println!(
        "longest pause: kill -9 {:.2} s, SIGTERM {:.2} s",
        worst[0].as_secs_f64(),
        worst[1].as_secs_f64()
    );
    assert!(worst[0] <= Duration::from_secs(1), "kill -9: {:?}", worst[0]);
    assert!(worst[1] <= Duration::from_millis(500), "SIGTERM: {:?}", worst[1]);
}

#[test]
fn a_restart_is_fast() {
    let mut ring = Ring::alone(3);
    ring.create("vol", "128M");
    let mut client = ring.open(0, "vol");
    for object in 0..32u64 {
        client.write(object << 22, &[1; 65536]).expect("written");
    }
    ring[2].kill();
    let begin = Instant::now();
    ring[2].start();
    let serves = begin.elapsed();
    ring.wait_full();
    println!("restart: serves after {serves:?}, full redundancy after {:?}", begin.elapsed());
    assert!(serves < Duration::from_secs(2), "{serves:?}");
    assert!(begin.elapsed() < Duration::from_secs(8), "{:?}", begin.elapsed());
}
