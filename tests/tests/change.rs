//! The ring grows, shrinks and loses parts of itself for good, under load.

use std::time::Duration;

use rustix::process::Signal;
use tests::client::Command;
use tests::cluster::{Ring, sdcluster};
use tests::load::{Load, Running};
use tests::wait;

/// Ends the load, of clients at `which`, none of whom has noticed anything.
#[track_caller]
fn finish(ring: &Ring, load: Running, which: &[usize], name: &str) {
    ring.wait_full();
    load.progress(100);
    let outcome = load.finish(ring, &ring.nbds(which), name);
    assert_eq!(outcome.broken, 0, "the clients' own sheep stayed");
}

fn nodes(ring: &Ring) -> usize {
    ring.dog_json(ring.any(), &["node", "list"]).as_array().map_or(0, Vec::len)
}

#[test]
fn a_node_is_drained_and_removed_under_load() {
    let mut ring = Ring::formatted(4);
    ring.create("vol", "128M");
    let load = Load::scattered("vol", ring.nbds(&[0, 1])).start();
    load.progress(300);
    for victim in [3, 2] {
        if victim == 2 {
            ring.join(&[]);
            ring.wait_nodes(4, "up");
        }
        let id = ring.id(victim);
        ring.dog(0, &["node", "drain", &id]).ok();
        load.progress(100);
        ring.dog(0, &["node", "remove", &id]).ok();
        // Who was removed ends by itself, as it would come to nothing.
        assert!(!ring[victim].wait_end(Duration::from_secs(20)).success());
        load.progress(100);
    }
    assert_eq!(nodes(&ring), 3);
    finish(&ring, load, &[0, 1], "drained and removed");
}

#[test]
fn five_join_at_once_under_load() {
    let mut ring = Ring::formatted(3);
    ring.create("vol", "128M");
    let load = Load::scattered("vol", ring.nbds(&[0, 1, 2])).start();
    load.progress(300);
    let options = sdcluster((0..3).map(|index| ring[index].ports.admin));
    (0..5).for_each(|_| _ = ring.add(options.clone()));
    ring.start_all();
    ring.wait_nodes(8, "up");
    load.progress(300);
    finish(&ring, load, &[0, 1, 2], "five more at once");
    let objects = ring.dog_json(0, &["vdi", "object", "vol"]).to_string();
    let used = (3..8).filter(|index| objects.contains(&ring.id(*index))).count();
    assert!(used > 0, "none of the new ones holds anything");
}

#[test]
fn a_ring_of_five_in_three_zones_loses_a_zone() {
    let zones: [&[&str]; 5] = [&["-z", "a"], &["-z", "a"], &["-z", "b"], &["-z", "b"], &["-z", "c"]];
    let mut ring = Ring::with_options(&zones);
    ring.format(3);
    ring.create("vol", "128M");
    let load = Load::scattered("vol", ring.nbds(&[2, 4])).start();
    load.progress(300);
    ring[0].kill();
    ring[1].kill();
    load.progress(300);
    ring.start_all();
    finish(&ring, load, &[2, 4], "a zone is lost");
}

#[test]
fn a_machine_that_is_lost_is_replaced_under_load() {
    let mut ring = Ring::formatted(3);
    ring.create("vol", "128M");
    let load = Load::scattered("vol", ring.nbds(&[0, 1])).start();
    load.progress(300);
    let id = ring.id(2);
    ring[2].kill();
    ring[2].wipe();
    ring.wait_degraded();
    let seeds = ring.join(&[]);
    ring.dog(seeds, &["node", "remove", &id]).ok();
    load.progress(300);
    assert_eq!(nodes(&ring), 3);
    finish(&ring, load, &[0, 1], "a machine is replaced");
}

#[test]
fn a_stop_of_a_minute_is_survived() {
    let ring = Ring::formatted(3);
    ring.create("vol", "128M");
    let victim = ring.leader();
    let others: Vec<usize> = (0..3).filter(|index| *index != victim).collect();
    let load = Load::new("vol", ring.nbds(&others)).start();
    load.progress(300);
    ring[victim].signal(Signal::STOP);
    // The stall is the fault itself, so its length is a time.
    wait::throughout(Duration::from_secs(60), "requests are answered", || {
        load.progress(20);
        Ok::<(), &str>(())
    });
    ring[victim].signal(Signal::CONT);
    finish(&ring, load, &others, "SIGSTOP 60 s");
}

#[test]
fn an_object_short_of_copies_waits_and_dog_says_for_whom() {
    let mut ring = Ring::formatted(5);
    ring.create("vol", "64M");
    let mut client = ring.open(0, "vol");
    for object in 0..16u64 {
        client.write(object << 22, &[1; 4096]).expect("written");
    }
    client.flush().expect("flushed");
    ring.dog(0, &["node", "recovery", "--pause"]).ok();
    // An object with two copies elsewhere: those two go, and a majority stays.
    let mine = ring.id(0);
    let objects = ring.dog_json(0, &["vdi", "object", "vol"]);
    let copies = |object: usize| {
        let copies = objects[object]["copies"].as_array().expect("an array").iter();
        copies.filter_map(|copy| copy["node"].as_str().map(str::to_owned)).collect::<Vec<_>>()
    };
    let object = (0..16).find(|object| copies(*object).contains(&mine)).expect("one of sixteen");
    let gone: Vec<String> = copies(object).into_iter().filter(|id| *id != mine).collect();
    let victims: Vec<usize> = gone.iter().map(|id| ring.by_id(id).expect("it runs")).collect();
    victims.iter().for_each(|victim| ring[*victim].kill());
    let offset = (object as u64) << 22;
    client.send(Command::Write, 0, offset, 4096, &[2; 4096]).expect("sent");
    client.set_read_timeout(Duration::from_secs(6));
    assert!(client.receive().is_err(), "too few are left");
    let told = ring.dog(0, &["cluster", "check"]).exits(1).stdout;
    // Who was taken out while two were left is no longer on record once those two know of it.
    let line = told.lines().find(|line| gone.iter().any(|id| line.contains(id.as_str())));
    assert!(line.is_some_and(|line| line.contains("too few for writes")), "{gone:?} in {told}");
    ring[victims[0]].start();
    client.set_read_timeout(Duration::from_secs(30));
    ring.dog(0, &["node", "recovery", "--resume"]).ok();
    assert_eq!(client.receive().expect("it goes on by itself").errno, 0);
    assert_eq!(client.read(offset, 4096).expect("read"), [2; 4096]);
    ring[victims[1]].start();
    ring.wait_full();
    ring.assert_same_everywhere("vol");
}
