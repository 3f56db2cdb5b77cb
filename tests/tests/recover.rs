//! Nodes that never come back although slots wait for them: an operator gives them up, knowing what it may cost.

use std::ops::Range;
use std::time::Duration;

use serde_json::Value;
use tests::client::Client;
use tests::cluster::Ring;
use tests::wait;

const OBJECT: u64 = 4 << 20;
const EIO: Option<i32> = Some(5);

/// What `dog cluster recover` says a VDI may lose; nothing if it is not named.
fn ranges(plan: &Value, vdi: &str) -> Vec<Range<u64>> {
    let vdis = plan["vdis"].as_array().expect("a list");
    let Some(vdi) = vdis.iter().find(|v| v["name"] == vdi) else { return Vec::new() };
    let range = |r: &Value| {
        let offset = r["offset"].as_u64().expect("a number");
        offset..offset + r["length"].as_u64().expect("a number")
    };
    vdi["ranges"].as_array().expect("a list").iter().map(range).collect()
}

fn block(object: u64, round: u8) -> Vec<u8> {
    vec![object as u8 * 2 + round; 4096]
}

fn write_all(client: &mut Client, round: u8) {
    for object in 0..16 {
        client.write(object * OBJECT, &block(object, round)).expect("written");
    }
}

#[test]
fn what_only_a_dead_node_had_is_given_up_and_said_to_be_lost() {
    let mut ring = Ring::waiting(3);
    ring.format(1);
    let names: Vec<String> = (0..12).map(|n| format!("vol{n}")).collect();
    for name in &names {
        ring.create(name, "64M");
        write_all(&mut ring.open(0, name), 1);
    }
    let id = ring.id(2);
    ring[2].kill();
    ring.wait_degraded();
    let plan = ring.dog(0, &["-o", "json", "cluster", "recover"]).exits(1).json();
    assert_eq!(plan["nodes"], serde_json::json!([id]));
    let map_lost = |name: &str| {
        plan["vdis"].as_array().is_some_and(|vdis| vdis.iter().any(|v| v["name"] == name && v["map"] == true))
    };
    let (name, lost) = names
        .iter()
        .map(|name| (name, ranges(&plan, name)))
        .find(|(name, lost)| !map_lost(name) && !lost.is_empty())
        .expect("of twelve one has its map elsewhere and some object there");

    // Nothing is done unless somebody agrees.
    let refused = ring.dog(0, &["cluster", "recover", "--force"]).exits(1);
    assert!(refused.stderr.contains("nothing was done"), "{refused}");
    let alive = ring.id(1);
    let refused = ring.dog(0, &["cluster", "recover", "--force", "--yes", "--node", &alive]).exits(1);
    assert!(refused.stderr.contains("is alive"), "{refused}");
    let done = ring.dog(0, &["cluster", "recover", "--force", "--yes"]).ok();
    assert!(done.stdout.contains(&id) && done.stdout.contains(name.as_str()), "{done}");
    assert!(ring[0].log().contains("may lose this"), "it is logged");

    let mut client = ring.open(0, name);
    client.set_read_timeout(Duration::from_secs(20));
    for object in 0..16 {
        let at = object * OBJECT;
        let read = client.read(at, 4096);
        if lost.iter().any(|range| range.contains(&at)) {
            assert_eq!(read.expect_err("lost, and never zeros").raw_os_error(), EIO);
            let error = client.write(at, &block(object, 2)).expect_err("nothing to write into");
            assert_eq!(error.raw_os_error(), EIO);
            // Discarded, it can be used again.
            client.trim(at, OBJECT as u32).expect("trimmed");
            client.write(at, &block(object, 2)).expect("written");
            assert_eq!(client.read(at, 4096).expect("read"), block(object, 2));
        } else {
            assert_eq!(read.expect("untouched"), block(object, 1));
        }
    }
    ring.wait_full();
    ring.dog(0, &["vdi", "check", name]).ok();
    let again = ring.dog(1, &["cluster", "recover"]).ok();
    assert!(again.stdout.contains("nobody is waited for"), "{again}");
    // It came back after all, too late.
    let refused = ring[2].try_start().expect_err("given up for good");
    assert!(refused.stderr.contains("was removed"), "{refused:?}");
}

#[test]
fn an_older_copy_goes_on_in_the_place_of_one_that_never_comes_back() {
    let mut ring = Ring::waiting(3);
    ring.format(2);
    ring.create("vol", "64M");
    let mut client = ring.open(2, "vol");
    client.set_read_timeout(Duration::from_secs(30));
    write_all(&mut client, 0);
    ring[0].kill();
    write_all(&mut client, 1);
    // Now it is 1 that has the newest of what 0 and 1 share; the machine burns.
    ring[1].kill();
    ring[0].start();
    wait::until(Duration::from_secs(30), "slots wait for the one that is gone", || {
        let plan = ring.dog(0, &["-o", "json", "cluster", "recover"]);
        if plan.status == 1 && plan.stdout.contains("newest") { Ok(()) } else { Err(plan) }
    });
    ring.dog(0, &["cluster", "recover", "--force", "--yes"]).ok();
    for object in 0..16 {
        let read = client.read(object * OBJECT, 4096).expect("read");
        assert!(read == block(object, 0) || read == block(object, 1), "object {object}: {:?}", &read[..8]);
    }
    write_all(&mut client, 1);
    ring.wait_full();
    ring.dog(0, &["vdi", "check", "vol"]).ok();
    let refused = ring[1].try_start().expect_err("given up for good");
    assert!(refused.stderr.contains("was removed"), "{refused:?}");
}
