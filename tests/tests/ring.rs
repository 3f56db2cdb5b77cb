//! Founding, joining, and which directory is whose.

use std::fs;
use std::time::Duration;

use serde_json::Value;
use tests::cluster::{Ring, sdcluster};
use tests::oracle::fill;
use tests::wait;

#[test]
fn a_format_needs_as_many_nodes_as_copies_and_happens_once() {
    let ring = Ring::waiting(2);
    ring.wait_nodes(2, "waiting");
    for index in 0..2 {
        let nodes = ring.dog_json(index, &["node", "list"]);
        let nodes = nodes.as_array().expect("an array");
        assert!(nodes.iter().all(|node| node["status"] == "waiting"), "{nodes:?}");
        assert_eq!(nodes.iter().filter(|node| node["self"] == true).count(), 1);
        for key in ["id", "host", "port", "zone", "vnodes", "space"] {
            assert!(nodes.iter().all(|node| !node[key].is_null()), "{key}: {nodes:?}");
        }
    }
    let refused = ring.dog(0, &["cluster", "format", "-c", "3"]).exits(1);
    assert!(refused.stderr.contains("--force"), "{refused}");
    ring.dog(0, &["cluster", "format", "-c", "3", "--force"]).ok();
    ring.dog(0, &["cluster", "check"]).exits(1);
    for index in 0..2 {
        ring.dog(index, &["cluster", "format", "-c", "2"]).exits(1);
    }
}

#[test]
fn a_forced_second_format_deletes_everything_everywhere() {
    let mut ring = Ring::formatted(3);
    ring.create("vol", "64M");
    let mut client = ring.open(0, "vol");
    for object in 0..8 {
        client.write(object << 22, &[7; 65536]).expect("written");
    }
    let again: &[&str] = &["cluster", "format", "-c", "2", "--slots", "512"];
    let refused = ring.dog(1, again).exits(1);
    assert!(refused.stderr.contains("--force"), "{refused}");
    let forced = [again, &["--force"]].concat();
    let refused = ring.dog(1, &forced).exits(1);
    assert!(refused.stderr.contains("in use"), "{refused}");
    drop(client);
    wait::until(Duration::from_secs(10), "nobody has it open", || match ring.owner("vol") {
        None => Ok(()),
        Some(owner) => Err(format!("{owner} has it")),
    });

    // One that is not there has to forget what it holds when it comes back.
    ring[2].kill();
    let formatted = wait::until(Duration::from_secs(10), "a leader is there", || {
        let output = ring.dog(1, &forced);
        if output.status == 0 { Ok(output) } else { Err(output.to_string()) }
    });
    let said = &formatted.stdout;
    assert!(said.contains("512 slots") && said.contains("anew") && !said.contains("founded"), "{formatted}");
    assert_eq!(ring.dog_json(0, &["vdi", "list"]), serde_json::json!([]));
    ring.create("vol", "64M");
    let mut client = ring.open(0, "vol");
    assert_eq!(client.read(4 << 20, 65536).expect("read"), [0; 65536]);
    client.write(0, &[9; 512]).expect("written");
    ring[2].start();
    ring.wait_full();
    ring.assert_same_everywhere("vol");
    wait::until(Duration::from_secs(20), "what was deleted is gone from every disk", || {
        match ring.stored() {
            stored if stored < 4 * (8 * 65536) => Ok(()),
            stored => Err(format!("{stored} bytes are stored")),
        }
    });
}

#[test]
fn every_sheep_shows_the_same_ring_and_the_same_data() {
    let ring = Ring::formatted(3);
    ring.create("vol", "64M");
    let mut client = ring.open(1, "vol");
    for block in 0..40 {
        client.write(block * (1 << 20) + 512, &fill(block + 1, block, 4096, 17)).expect("written");
    }
    drop(client);
    ring.assert_same_everywhere("vol");

    let seen = |index: usize| {
        let mut info = ring.dog_json(index, &["cluster", "info"]);
        let space = info.as_object_mut().and_then(|info| info.remove("space"));
        assert!(space.is_some());
        info
    };
    wait::until(Duration::from_secs(10), "cluster info is the same everywhere", || {
        let all = [seen(0), seen(1), seen(2)];
        if all[0] == all[1] && all[1] == all[2] { Ok(()) } else { Err(format!("{all:?}")) }
    });
    let info = seen(0);
    assert_eq!(
        (&info["status"], &info["nodes"], &info["copies"]),
        (&"ok".into(), &3.into(), &3.into()),
        "{info}"
    );
    assert_eq!(info["voters"].as_array().map(Vec::len), Some(3), "{info}");
    let ids = |index: usize| -> Vec<Value> {
        let nodes = ring.dog_json(index, &["node", "list"]);
        nodes.as_array().expect("an array").iter().map(|node| node["id"].clone()).collect()
    };
    assert_eq!(ids(0), ids(2));
}

#[test]
fn a_seed_may_be_down_and_may_be_the_sheep_itself() {
    let mut ring = Ring::waiting(2);
    let down = ring.add(vec![]);
    let all: Vec<_> = (0..3).map(|index| ring[index].ports.admin).collect();
    for index in 0..3 {
        ring[index].options = sdcluster(all.iter().copied());
    }
    for index in 0..2 {
        ring[index].kill();
        ring[index].start();
    }
    ring.wait_nodes(2, "waiting");
    ring.dog(0, &["cluster", "format", "-c", "2"]).ok();
    ring.wait_full();
    ring[down].start();
    ring.wait_nodes(3, "up");
    ring.wait_full();
}

#[test]
fn a_fourth_node_takes_its_share() {
    let mut ring = Ring::formatted(3);
    ring.create("vol", "256M");
    let mut client = ring.open(0, "vol");
    for object in 0..64u64 {
        client.write(object << 22, &fill(object + 1, object, 65536, 1)).expect("written");
    }
    drop(client);
    let before = ring.digest(0, "vol");
    let new = ring.join(&[]);
    ring.wait_nodes(4, "up");
    let id = ring.id(new);
    wait::until(Duration::from_secs(60), "the fourth node holds objects", || {
        ring.check(0)?;
        let objects = ring.dog_json(0, &["vdi", "object", "vol"]);
        let held = objects.as_array().expect("an array").iter();
        let held = held.filter(|object| object["copies"].to_string().contains(&id)).count();
        if held > 10 { Ok(()) } else { Err(format!("{held} of 64 objects")) }
    });
    assert_eq!(ring.digest(new, "vol"), before);
    ring.assert_same_everywhere("vol");
    // Redundancy is full long before: the old holders stay until the new one has all of it.
    wait::until(Duration::from_secs(60), "it has caught up", || {
        let info = ring.dog_json(new, &["node", "info"]);
        if info["slots_catching_up"] == 0 { Ok(()) } else { Err(info.to_string()) }
    });
    ring.check(0).expect("still full");
}

#[test]
fn a_node_keeps_its_identity_at_another_address() {
    let mut ring = Ring::formatted(3);
    ring.create("vol", "64M");
    ring.open(0, "vol").write(0, &[7; 4096]).expect("written");
    let id = ring.id(2);
    ring[2].terminate();
    let other = tests::port::allocate();
    ring[2].ports = other;
    ring[2].start();
    wait::until(Duration::from_secs(30), "the new address is known", || {
        let nodes = ring.dog_json(0, &["node", "list"]);
        let nodes = nodes.as_array().expect("an array").clone();
        let found = nodes
            .iter()
            .any(|node| node["id"] == id.as_str() && node["port"] == other.admin && node["status"] == "up");
        if found && nodes.len() == 3 { Ok(()) } else { Err(format!("{nodes:?}")) }
    });
    ring.wait_full();
    ring.assert_same_everywhere("vol");
}

#[test]
fn a_node_of_another_ring_is_refused_with_its_directory_unharmed() {
    let ring = Ring::formatted(1);
    ring.create("mine", "64M");
    let mut other = Ring::formatted(1);
    other.create("theirs", "64M");
    other.open(0, "theirs").write(0, &[9; 4096]).expect("written");
    other[0].terminate();
    let own = other[0].options.clone();
    other[0].options = sdcluster([ring[0].ports.admin].into_iter());
    // Whether it refuses to start or serves its own ring alone, it says what is wrong and joins nothing.
    match other[0].try_start() {
        Err(refusal) => assert!(refusal.stderr.contains("ring"), "{refusal:?}"),
        Ok(()) => wait::until(Duration::from_secs(10), "it says so", || {
            if other[0].log().contains("another ring") { Ok(()) } else { Err(other[0].tail()) }
        }),
    }
    assert_eq!(ring.dog_json(0, &["node", "list"]).as_array().map(Vec::len), Some(1));
    other[0].kill();
    other[0].options = own;
    other[0].start();
    assert_eq!(other.open(0, "theirs").read(0, 4096).expect("read"), [9; 4096]);
}

#[test]
fn a_directory_has_one_sheep() {
    let mut ring = Ring::formatted(1);
    let second = ring.add(vec![]);
    ring[second].dir = ring[0].dir.clone();
    let refusal = ring[second].try_start().expect_err("it is locked");
    assert!(!refusal.status.success());
    let holder = ring[0].pid().to_string();
    assert!(refusal.stderr.contains(&holder), "names the process {holder}: {refusal:?}");
    ring.check(0).expect("the first is not disturbed");
}

#[test]
fn a_node_killed_as_soon_as_it_is_in_a_ring_knows_that_it_is() {
    for _ in 0..3 {
        let mut ring = Ring::waiting(3);
        ring.wait_nodes(3, "waiting");
        ring.dog(0, &["cluster", "format", "-c", "3"]).ok();
        ring[2].kill();
        let identity = fs::read_to_string(ring[2].dir.join("identity")).expect("its identity");
        assert!(identity.contains("cluster = "), "{identity}");
        assert!(identity.contains("[peers]"), "{identity}");
    }
}

#[test]
fn a_copied_directory_is_not_taken_for_the_node() {
    let mut ring = Ring::formatted(3);
    ring.create("vol", "64M");
    let mut client = ring.open(0, "vol");
    client.write(0, &[1; 8192]).expect("written");
    let id = ring.id(2);
    ring[2].kill();
    let copy = ring.work().join("copy");
    let (from, to) = (ring[2].dir.display().to_string(), copy.display().to_string());
    tests::tool::run(Duration::from_secs(30), "cp", &["-a", &from, &to]).ok();
    ring[2].start();
    ring.wait_full();
    client.write(0, &[2; 8192]).expect("written");

    // The copy beside the original: either it does not start or it is another, empty node.
    let options = ring[2].options.clone();
    let fourth = ring.add(options);
    ring[fourth].dir.clone_from(&copy);
    if let Err(refusal) = ring[fourth].try_start() {
        assert!(!refusal.stderr.is_empty(), "{refusal:?}");
    } else {
        assert_ne!(ring.id(fourth), id);
    }
    assert_eq!(ring.id(2), id);
    for index in 0..3 {
        let data = ring.open(index, "vol").read(0, 8192).expect("read");
        assert_eq!(data, [2; 8192], "through {index}");
    }
    ring[fourth].kill();

    // The copy instead of the original, which went on meanwhile: a rolled-back disk.
    ring[2].kill();
    let original = ring.work().join("original");
    fs::rename(&ring[2].dir, &original).expect("moved");
    fs::rename(&copy, &ring[2].dir).expect("moved");
    let started = ring[2].try_start();
    client.write(16384, &[3; 512]).expect("written");
    if started.is_ok() {
        wait::until(Duration::from_secs(30), "it serves what is current", || {
            let mut other = ring.open(2, "vol");
            match other.read(0, 8192) {
                Ok(data) if data == [2; 8192] => Ok(()),
                // Old data is never right, not even for a moment.
                Ok(data) => panic!("rolled back: {:?}", &data[..4]),
                Err(error) => Err(error),
            }
        });
    }
    for index in 0..2 {
        assert_eq!(ring.open(index, "vol").read(0, 8192).expect("read"), [2; 8192], "through {index}");
    }
}

#[test]
fn the_copy_of_a_directory_in_use_is_turned_away_and_the_original_goes_on() {
    let mut ring = Ring::formatted(3);
    ring.create("vol", "64M");
    ring.open(0, "vol").write(0, &[1; 8192]).expect("written");
    let leader = ring.leader();
    for original in [leader, (leader + 1) % 3] {
        let id = ring.id(original);
        let copy = ring.work().join(format!("copy{original}"));
        let (from, to) = (ring[original].dir.display().to_string(), copy.display().to_string());
        tests::tool::run(Duration::from_secs(30), "cp", &["-a", &from, &to]).ok();
        let options = ring[original].options.clone();
        let other = ring.add(options);
        ring[other].dir.clone_from(&copy);
        // As often as a supervisor tries.
        for _ in 0..3 {
            let Err(refusal) = ring[other].try_start() else {
                // The original's log has grown meanwhile: the copy is an older one, and another node.
                let new = ring.id(other);
                assert_ne!(new, id);
                ring[other].kill();
                ring.wait_removed(leader, &new);
                break;
            };
            assert!(refusal.stderr.contains("is running elsewhere: this directory is a copy"), "{refusal:?}");
        }
        ring.open(0, "vol").write(0, &[2; 8192]).expect("written");
        ring[original].kill();
        ring[original].start();
        assert_eq!(ring.id(original), id, "the next process of the original is the node");
        ring.wait_full();
    }
    let read = ring.open(leader, "vol").read(0, 8192).expect("read");
    assert_eq!(read, [2; 8192]);
}

#[test]
fn a_directory_that_is_put_back_while_its_ring_goes_on_is_not_taken_for_the_node() {
    let mut ring = Ring::formatted(3);
    let victim = (ring.leader() + 1) % 3;
    let id = ring.id(victim);
    let (dir, copy) = (ring[victim].dir.clone(), ring.work().join("copy"));
    let (from, to) = (dir.display().to_string(), copy.display().to_string());
    tests::tool::run(Duration::from_secs(30), "cp", &["-a", &from, &to]).ok();
    // The same process goes on: only its log tells that it was later than the copy.
    ring.create("vol", "64M");
    let mut client = ring.open(0, "vol");
    client.write(0, &[1; 8192]).expect("written");
    wait::until(Duration::from_secs(10), "it has heard of the VDI", || {
        let output = ring.dog(victim, &["vdi", "list"]);
        if output.stdout.contains("vol") { Ok(()) } else { Err(output) }
    });
    ring[victim].kill();
    fs::rename(&dir, ring.work().join("newer")).expect("moved");
    fs::rename(&copy, &dir).expect("moved");
    ring[victim].start();
    assert_ne!(ring.id(victim), id);
    assert!(ring[victim].log().contains("older than what the ring has seen of it"));
    ring.wait_removed(victim, &id);
    ring.wait_full();
    let read = ring.open(victim, "vol").read(0, 8192).expect("read");
    assert_eq!(read, [1; 8192]);
}

#[test]
fn a_removed_node_ends_although_its_own_log_still_has_it() {
    let mut ring = Ring::formatted(4);
    let id = ring.id(3);
    ring[3].kill();
    ring.wait_removed(0, &id);
    (0..3).for_each(|index| ring[index].kill());
    // Nobody can tell it yet, so it goes on with what it knows.
    ring[3].launch();
    std::thread::sleep(Duration::from_secs(1));
    assert!(ring[3].is_running());
    (0..3).for_each(|index| ring[index].launch());
    let status = ring[3].wait_end(Duration::from_secs(20));
    assert!(!status.success());
    let log = ring[3].log();
    assert!(log.contains("was removed from its ring: start with an empty directory"), "{log}");
}

#[test]
fn a_newer_format_is_refused() {
    let mut ring = Ring::formatted(1);
    ring[0].terminate();
    let format = ring[0].dir.join("objects/format");
    let was = fs::read_to_string(&format).expect("the store's format file");
    fs::write(&format, was.replace('1', "7")).expect("written");
    let refusal = ring[0].try_start().expect_err("a format it does not know");
    assert!(refusal.stderr.contains("format"), "{refusal:?}");
    assert_eq!(fs::read_to_string(&format).expect("still there"), was.replace('1', "7"));
    fs::write(&format, was).expect("written");
    ring[0].start();
    ring.wait_full();
}

#[test]
fn zones_hold_one_copy_each_while_there_are_enough() {
    let mut ring = Ring::with_options(&[&["-z", "a"], &["-z", "a"], &["-z", "b"], &["-z", "b"]]);
    ring.format(2);
    ring.create("vol", "128M");
    let mut client = ring.open(0, "vol");
    for object in 0..32u64 {
        client.write(object << 22, &[1; 512]).expect("written");
    }
    let nodes = ring.dog_json(0, &["node", "list"]);
    let zone = |id: &Value| {
        let found = nodes.as_array().expect("an array").iter().find(|node| node["id"] == *id);
        found.expect("a listed node")["zone"].clone()
    };
    let objects = ring.dog_json(0, &["vdi", "object", "vol"]);
    let objects = objects.as_array().expect("an array");
    assert_eq!(objects.len(), 32);
    for object in objects {
        let copies = object["copies"].as_array().expect("an array");
        assert_eq!(copies.len(), 2, "{object}");
        assert_ne!(zone(&copies[0]["node"]), zone(&copies[1]["node"]), "{object}");
    }
}

#[test]
fn a_gateway_stores_nothing_and_serves_everything() {
    let mut ring = Ring::with_options(&[&[], &[], &["--gateway"]]);
    ring.format(2);
    ring.create("vol", "64M");
    ring.open(2, "vol").write(5 << 20, &[4; 65536]).expect("written");
    assert_eq!(ring.open(0, "vol").read(5 << 20, 65536).expect("read"), [4; 65536]);
    let id = ring.id(2);
    let info = ring.dog_json(2, &["cluster", "info"]);
    assert!(!info["voters"].to_string().contains(&id), "{info}");
    let objects = ring.dog_json(2, &["vdi", "object", "vol"]);
    assert!(!objects.to_string().contains(&id), "{objects}");
    ring[2].kill();
    ring.check(0).expect("a gateway's death costs no redundancy");
}
