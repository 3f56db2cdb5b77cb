//! Silence between hosts, one way or both, under load: nothing is lost, and whoever is cut off says nothing that is not so.

use std::time::Duration;

use tests::cluster::Ring;
use tests::load::{Load, Running};
use tests::wait;

/// Longer than it takes to be taken for dead.
const AWAY: Duration = Duration::from_secs(6);

fn ring(count: usize) -> Ring {
    let ring = Ring::on_hosts(count);
    ring.create("vol", "128M");
    ring
}

#[track_caller]
fn finish(ring: &Ring, load: Running, name: &str) {
    ring.wait_full();
    // Every worker gets its answers, through whichever sheep it asked.
    load.progress(500);
    let outcome = load.finish(ring, &ring.everywhere(), name);
    assert_eq!(outcome.broken, 0, "connections to sheep that ran all the time");
}

/// Cuts as `cut` says around whom `pick` names, while everybody has clients, and mends it.
#[track_caller]
fn cut_under_load(name: &str, pick: impl Fn(&Ring) -> usize, cut: impl Fn(&Ring, usize)) {
    let ring = ring(3);
    let load = Load::new("vol", ring.everywhere()).start();
    load.progress(300);
    let victim = pick(&ring);
    let epoch = ring.epoch();
    cut(&ring, victim);
    let other = (victim + 1) % 3;
    wait::until(Duration::from_secs(20), "it is taken for dead", || {
        let info = ring.dog_json(other, &["cluster", "info"]);
        if info["epoch"].as_u64() > Some(epoch) { Ok(()) } else { Err(info) }
    });
    load.progress(300);
    ring.hosts().mend();
    finish(&ring, load, name);
}

fn owner(ring: &Ring) -> usize {
    ring.owner("vol").expect("it is open")
}

#[test]
fn a_replica_is_cut_off() {
    cut_under_load(
        "a replica is cut off",
        |ring| ring.bystander("vol"),
        |ring, it| ring.hosts().isolate(&[it]),
    );
}

#[test]
fn the_owner_is_cut_off() {
    cut_under_load("the owner is cut off", owner, |ring, it| ring.hosts().isolate(&[it]));
}

#[test]
fn the_leader_of_the_log_is_cut_off() {
    cut_under_load("the leader is cut off", Ring::leader, |ring, it| ring.hosts().isolate(&[it]));
}

#[test]
fn nobody_hears_the_owner() {
    cut_under_load("nobody hears the owner", owner, |ring, it| ring.hosts().mute(&[it]));
}

#[test]
fn the_owner_hears_nobody() {
    cut_under_load("the owner hears nobody", owner, |ring, it| ring.hosts().deafen(&[it]));
}

#[test]
fn a_client_on_the_smaller_side_waits_and_sees_nothing_old() {
    let ring = ring(3);
    let mut client = ring.open(0, "vol");
    client.write(0, &[1; 4096]).expect("written");
    let mut other = ring.open(1, "vol");
    ring.hosts().isolate(&[0]);
    // While its lease lasts the owner may answer; what is written elsewhere by then is not acknowledged yet.
    other.set_read_timeout(Duration::from_secs(20));
    other.write(0, &[2; 4096]).expect("the larger side goes on");
    client.set_read_timeout(AWAY);
    let read = client.read(0, 4096);
    assert!(read.is_err(), "nobody over there can confirm it: {:?}", read.map(|data| data[0]));
    // Whoever asks there is told, and told that it may be old.
    for question in [&["node", "list"][..], &["cluster", "info"], &["vdi", "list"]] {
        let answer = ring.dog(0, question).ok();
        assert!(answer.stderr.contains("out of date"), "{answer}");
        let answer = ring.dog(1, question).ok();
        assert!(!answer.stderr.contains("out of date"), "{answer}");
    }
    ring.hosts().mend();
    let mut again = ring.open(0, "vol");
    again.set_read_timeout(Duration::from_secs(20));
    assert_eq!(again.read(0, 4096).expect("read"), [2; 4096]);
    ring.wait_full();
    ring.assert_same_everywhere("vol");
}

#[test]
fn without_a_majority_everything_waits_and_goes_on_by_itself() {
    let ring = ring(3);
    let load = Load::new("vol", ring.everywhere()).start();
    load.progress(300);
    (0..3).for_each(|index| ring.hosts().isolate(&[index]));
    std::thread::sleep(AWAY);
    let answer = ring.dog(2, &["cluster", "check"]).exits(1);
    assert!(answer.stdout.contains("no majority of the voters"), "{answer}");
    let info = ring.dog_json(2, &["cluster", "info"]);
    assert_eq!(info["silent"].as_array().map(Vec::len), Some(2), "{info:#}");
    ring.hosts().mend();
    finish(&ring, load, "everybody alone");
}

/// The owner and another do not reach each other, while the leader of the log reaches both.
#[track_caller]
fn a_way_between_two_is_cut(name: &str, cut: impl Fn(&Ring, usize, usize)) {
    let ring = ring(3);
    // So that the owner does not lead.
    let leader = ring.leader();
    let owner = (leader + 1) % 3;
    let _first = ring.open(owner, "vol");
    assert_eq!(ring.owner("vol"), Some(owner), "who opens first owns");
    let other = ring.bystander("vol");
    let load = Load::new("vol", ring.everywhere()).start();
    load.progress(300);
    let epoch = ring.epoch();
    cut(&ring, owner, other);
    wait::until(Duration::from_secs(20), "one of the two is taken out", || {
        if ring.epoch() > epoch { Ok(()) } else { Err("both are in") }
    });
    load.progress(300);
    // It asks to be let in all the time, and has to wait for as long as it does not reach everybody.
    let epoch = ring.epoch();
    std::thread::sleep(AWAY);
    assert_eq!(ring.epoch(), epoch);
    let nodes = ring.dog_json(leader, &["node", "list"]);
    let up = nodes.as_array().expect("a list").iter().filter(|node| node["status"] == "up").count();
    assert_eq!(up, 2, "{nodes:#}");
    ring.hosts().mend();
    finish(&ring, load, name);
}

#[test]
fn two_that_do_not_reach_each_other_hold_up_nobody() {
    a_way_between_two_is_cut("a way between two is cut", |ring, owner, other| {
        ring.hosts().cut(owner, other);
        ring.hosts().cut(other, owner);
    });
}

#[test]
fn one_way_from_the_owner_to_a_replica_is_cut() {
    a_way_between_two_is_cut("one way between two is cut", |ring, owner, other| {
        ring.hosts().cut(owner, other);
    });
}
