//! dog against a real ring: every verb in both formats, exit statuses, and what its answers promise.

use std::time::{Duration, Instant};

use tests::cluster::Ring;
use tests::oracle::fill;
use tests::tool::{self, Output};
use tests::wait;

#[track_caller]
fn has_columns(output: &Output, columns: &[&str]) {
    let head = output.stdout.lines().next().unwrap_or_default();
    for column in columns {
        assert!(head.contains(column), "{column} is not in the table's head: {output}");
    }
}

#[test]
fn the_cluster_verbs() {
    let ring = Ring::formatted(3);
    let info = ring.dog(1, &["cluster", "info"]).ok();
    for label in ["Status:", "Copies:", "Slots:", "Epoch:", "Leader:", "Voters:"] {
        assert!(info.stdout.contains(label), "{info}");
    }
    let json = ring.dog_json(1, &["cluster", "info"]);
    assert_eq!(
        (&json["slots"], &json["nodes_up"], &json["driver"]),
        (&4096.into(), &3.into(), &"sdcluster".into())
    );
    let check = ring.dog(2, &["cluster", "check"]).ok();
    assert!(check.stdout.starts_with("clean"), "{check}");
    assert_eq!(ring.dog_json(2, &["cluster", "check"])["status"], "clean");
    ring.create("vol", "64M");
    ring.open(0, "vol").write(0, &[1; 8 << 20]).expect("written");
    let deep = ring.dog_json(0, &["cluster", "check", "--deep"]);
    assert_eq!(deep["status"], "clean", "{deep}");
    assert!(deep["objects"].as_u64() >= Some(2) && deep["bytes_read"].as_u64() >= Some(8 << 20), "{deep}");
}

/// Asks, and neither fails nor warns that the answer may be old.
#[track_caller]
fn sure(ring: &Ring, index: usize, args: &[&str]) -> Output {
    let output = ring.dog(index, args).ok();
    assert_eq!(output.stderr, "", "{output}");
    output
}

#[test]
fn a_ring_that_is_not_founded_is_not_called_cut_off_and_shows_its_space() {
    let ring = Ring::waiting(3);
    ring.wait_nodes(3, "waiting");
    for index in 0..3 {
        sure(&ring, index, &["cluster", "info"]);
        sure(&ring, index, &["node", "list"]);
        let info = ring.dog_json(index, &["cluster", "info"]);
        assert_eq!((&info["status"], &info["possibly_stale"]), (&"waiting".into(), &false.into()), "{info}");
        for node in ring.dog_json(index, &["node", "list"]).as_array().expect("an array") {
            let id = node["id"].as_str().expect("text");
            let total = ring.dog_json(index, &["node", "info", id])["space"]["total"].clone();
            assert!(total.as_u64() > Some(0) && node["space"]["total"] == total, "{node}, {total}");
        }
    }
    sure(&ring, 1, &["cluster", "format"]);
    for index in 0..3 {
        // At once, at sheep that have just heard of it.
        sure(&ring, index, &["cluster", "check"]);
        sure(&ring, index, &["node", "list"]);
    }
}

#[test]
fn an_answer_waits_for_a_start_or_a_change_of_leader_before_it_warns() {
    let mut ring = Ring::formatted(3);
    ring[1].terminate();
    ring[1].start();
    sure(&ring, 1, &["cluster", "info"]);
    ring.wait_full();
    let leader = ring.leader();
    ring[leader].kill();
    let end = Instant::now() + Duration::from_secs(3);
    while Instant::now() < end {
        for index in (0..3).filter(|index| *index != leader) {
            sure(&ring, index, &["cluster", "info"]);
            let check = ring.dog(index, &["cluster", "check"]);
            assert!(!check.stdout.contains("unconfirmed") && check.stderr.is_empty(), "{check}");
        }
    }
    let check = ring.dog(ring.any(), &["cluster", "check"]).exits(1);
    assert_eq!(check.stdout.lines().count(), 2, "slots are summed up: {check}");
    assert!(check.stdout.starts_with("degraded: 4096 slots of 3 copies: 2 of 3 copies in sync"), "{check}");

    // Cut off for good it says so, and takes its time only once.
    let last = ring.any();
    for index in (0..3).filter(|index| *index != leader && *index != last) {
        ring[index].kill();
    }
    wait::until(Duration::from_secs(20), "it warns", || {
        let info = ring.dog(last, &["cluster", "info"]);
        if info.stderr.contains("cut off") { Ok(()) } else { Err(info) }
    });
    let begin = Instant::now();
    let check = ring.dog(last, &["cluster", "check"]).exits(1);
    assert!(check.stderr.contains("cut off") && begin.elapsed() < Duration::from_secs(1), "{check}");
}

#[test]
fn the_node_verbs() {
    let mut ring = Ring::formatted(3);
    has_columns(
        &ring.dog(0, &["node", "list"]).ok(),
        &["Id", "Host", "Port", "VNodes", "Zone", "Space", "Status"],
    );
    let nodes = ring.dog_json(0, &["node", "list"]);
    let nodes = nodes.as_array().expect("an array");
    assert!(nodes.iter().all(|node| node["status"] == "up" && node["vnodes"] == 128), "{nodes:?}");
    let (id, port) = (ring.id(2), ring[2].ports.admin);
    let address = format!("127.0.0.1:{port}");
    for name in [&id, &address] {
        let info = ring.dog_json(0, &["node", "info", name]);
        assert_eq!(
            (&info["id"], &info["port"], &info["answered"]),
            (&id.as_str().into(), &port.into(), &true.into())
        );
        assert!(info["memory_bytes"].as_u64() > Some(0), "{info}");
    }
    ring.dog(0, &["node", "info"]).ok();
    let stat = ring.dog_json(0, &["node", "stat", &id]);
    let counters = stat["counters"].as_array().expect("an array");
    assert!(
        !counters.is_empty()
            && counters.iter().all(|c| c["name"].as_str().is_some_and(|n| n.starts_with("sheep_"))),
        "{stat}"
    );
    ring.dog(0, &["node", "stat"]).ok();
    ring.dog(0, &["node", "info", "00000000000000ff"]).exits(1);
    ring.dog(0, &["node", "info", "127.0.0.1:1"]).exits(1);

    ring[2].kill();
    wait::until(Duration::from_secs(20), "it is listed as down", || {
        let nodes = ring.dog_json(0, &["node", "list"]);
        let down = nodes
            .as_array()
            .expect("an array")
            .iter()
            .any(|node| node["id"] == id.as_str() && node["status"] == "down");
        if down { Ok(()) } else { Err(nodes.to_string()) }
    });
    let info = ring.dog_json(0, &["node", "info", &id]);
    assert_eq!(info["answered"], false);
    ring.dog(0, &["cluster", "check"]).exits(1);
    assert_eq!(ring.dog_json(0, &["cluster", "info"])["status"], "degraded");
}

#[test]
fn recovery_can_be_paused_and_limited() {
    let mut ring = Ring::formatted(3);
    ring.create("vol", "64M");
    let mut client = ring.open(0, "vol");
    ring[2].kill();
    ring.wait_degraded();
    for object in 0..16u64 {
        client.write(object << 22, &fill(object + 1, 0, 65536, 8)).expect("written");
    }
    assert_eq!(ring.dog_json(0, &["node", "recovery", "--pause"])["paused"], true);
    ring[2].start();
    wait::throughout(Duration::from_secs(3), "paused recovery does not finish", || match ring.check(0) {
        Ok(()) => Err("clean"),
        Err(_) => Ok(()),
    });
    let shown = ring.dog(1, &["node", "recovery"]).ok();
    assert!(shown.stdout.contains("paused"), "{shown}");
    let limited = ring.dog_json(1, &["node", "recovery", "--resume", "--limit", "4M"]);
    assert_eq!((&limited["paused"], &limited["limit_bytes_per_second"]), (&false.into(), &(4 << 20).into()));
    let unlimited = ring.dog_json(1, &["node", "recovery", "--limit", "0"]);
    assert!(unlimited["limit_bytes_per_second"].is_null(), "{unlimited}");
    ring.wait_full();
    ring.assert_same_everywhere("vol");
}

#[test]
fn the_vdi_verbs() {
    let ring = Ring::formatted(3);
    let created = ring.dog(0, &["vdi", "create", "vol", "64M"]).ok();
    assert!(created.stdout.contains("vol created"), "{created}");
    ring.dog(1, &["vdi", "create", "vol", "64M"]).exits(1);
    let one = ring.dog_json(2, &["vdi", "create", "one", "1G", "-c", "1"]);
    assert_eq!(
        (&one["copies"], &one["min_copies"], &one["size"]),
        (&1.into(), &1.into(), &(1u64 << 30).into()),
        "{one}"
    );
    has_columns(
        &ring.dog(0, &["vdi", "list"]).ok(),
        &["Name", "Id", "Size", "Used", "Copies", "Owner", "Created"],
    );

    let data = fill(7, 0, 4096, 1500);
    let written = ring.dog_with(0, &["vdi", "write", "vol", "1M"], &data).ok();
    assert!(written.stdout.contains(&data.len().to_string()), "{written}");
    let len = data.len().to_string();
    for index in 0..3 {
        assert!(ring.dog(index, &["vdi", "read", "vol", "1M", &len]).ok().bytes == data, "through {index}");
        assert_eq!(ring.open(index, "vol").read(1 << 20, 4096).expect("read"), data[..4096]);
    }
    let whole = ring.dog(1, &["vdi", "read", "vol"]).ok().bytes;
    assert_eq!(whole.len(), 64 << 20);
    assert!(whole[1 << 20..][..data.len()] == data && whole[..1 << 20].iter().all(|byte| *byte == 0));
    ring.dog(0, &["vdi", "read", "vol", "65M", "1"]).exits(2);
    ring.dog_with(0, &["vdi", "write", "vol", "64M"], &[1; 512]).exits(2);
    let short = ring.dog_with(0, &["vdi", "write", "vol", "0", "1024"], &[1; 512]);
    assert_eq!(short.status, 1, "stdin ended early: {short}");

    let info = ring.dog_json(1, &["vdi", "info", "vol"]);
    assert_eq!((&info["objects_allocated"], &info["objects_degraded"]), (&2.into(), &0.into()), "{info}");
    ring.dog(1, &["vdi", "info", "vol"]).ok();
    let objects = ring.dog_json(1, &["vdi", "object", "vol"]);
    let objects = objects.as_array().expect("an array");
    assert_eq!(objects.len(), 2, "{objects:?}");
    for object in objects {
        let copies = object["copies"].as_array().expect("an array");
        assert!(copies.len() == 3 && copies.iter().all(|copy| copy["state"] == "in_sync"), "{object}");
    }
    let some = ring.dog_json(1, &["vdi", "object", "vol", "0", "7-9"]);
    assert_eq!(some.as_array().map(Vec::len), Some(4));
    ring.dog(1, &["vdi", "object", "vol"]).ok();
    assert_eq!(ring.dog_json(0, &["vdi", "check", "vol"])["status"], "clean");
    ring.dog(0, &["vdi", "check", "vol", "--repair"]).ok();

    let open = ring.open(0, "vol");
    ring.dog(1, &["vdi", "delete", "vol"]).exits(1);
    drop(open);
    wait::until(Duration::from_secs(10), "it can be deleted once it is closed", || {
        let output = ring.dog(1, &["vdi", "delete", "vol"]);
        if output.status == 0 { Ok(()) } else { Err(output) }
    });
    for verb in [
        &["vdi", "info", "vol"][..],
        &["vdi", "delete", "vol"],
        &["vdi", "read", "vol"],
        &["vdi", "check", "vol"],
    ] {
        let output = ring.dog(2, verb);
        assert_eq!(output.status, 1, "{output}");
    }
    let names = ring.dog_json(2, &["vdi", "list"]);
    assert_eq!(names.as_array().map(Vec::len), Some(1), "{names}");
}

#[test]
fn what_is_used_shrinks_with_a_trim_and_a_deletion_frees_the_disk() {
    let ring = Ring::formatted(3);
    ring.create("vol", "64M");
    let mut client = ring.open(0, "vol");
    let used = || ring.dog_json(1, &["vdi", "info", "vol"])["used"].as_u64().expect("a number");
    let stored = || ring.stored();
    assert_eq!(used(), 0);
    let empty = stored();
    client.write(0, &[1; 16 << 20]).expect("written");
    client.flush().expect("flushed");
    let soon = Duration::from_secs(20);
    let expect = |what: &str, ok: &dyn Fn(u64) -> bool, look: &dyn Fn() -> u64| {
        wait::until(soon, what, || {
            let now = look();
            if ok(now) { Ok(()) } else { Err(format!("{now} bytes")) }
        });
    };
    expect("16 MiB are used", &|now| now >= 16 << 20, &used);
    client.trim(4 << 20, 8 << 20).expect("trimmed");
    client.flush().expect("flushed");
    expect("8 MiB are used after a trim", &|now| now <= 9 << 20, &used);
    client.write_zeroes(0, 4 << 20).expect("zeroed");
    client.flush().expect("flushed");
    expect("4 MiB are used after writing zeros", &|now| now <= 5 << 20, &used);
    expect("the disks hold three times that", &|now| now >= empty + (12 << 20), &stored);
    drop(client);
    wait::until(soon, "deleted", || {
        let output = ring.dog(0, &["vdi", "delete", "vol"]);
        if output.status == 0 { Ok(()) } else { Err(output) }
    });
    expect("a deletion frees the disks", &|now| now <= empty + (1 << 20), &stored);
    ring.dog(0, &["cluster", "check", "--deep"]).ok();
}

#[test]
fn who_has_a_vdi_open_is_listed_and_can_be_thrown_out() {
    let ring = Ring::formatted(3);
    ring.create("vol", "64M");
    let mut named = ring.open(0, "vol,attach=node-1:4");
    let mut plain = ring.open(1, "vol");
    plain.write(0, &[1; 512]).expect("written");
    let locks = ring.dog_json(2, &["vdi", "lock", "list"]);
    let locks = locks.as_array().expect("an array").clone();
    assert_eq!(locks.len(), 2, "{locks:?}");
    assert!(
        locks.iter().any(|lock| lock["attach"]["client"] == "node-1" && lock["attach"]["generation"] == 4)
    );
    assert!(locks.iter().all(|lock| lock["vdi"] == "vol"));
    has_columns(&ring.dog(2, &["vdi", "lock", "list", "vol"]).ok(), &["VDI", "Client", "Node", "Attach"]);
    let nobody = ring.dog(2, &["vdi", "lock", "unlock", "vol", "node-2"]).exits(1);
    assert!(nobody.stderr.contains("node-2") && nobody.stderr.contains("lock list"), "{nobody}");
    named.write(0, &[1; 512]).expect("nobody else was thrown out");
    let closed = ring.dog_json(2, &["vdi", "lock", "unlock", "vol"]);
    assert_eq!(closed["closed"], 2, "{closed}");
    assert!(named.write(0, &[2; 512]).is_err());
    assert!(plain.write(0, &[2; 512]).is_err());
    assert_eq!(ring.dog_json(0, &["vdi", "lock", "list"]).as_array().map(Vec::len), Some(0));
    assert_eq!(ring.open(2, "vol").read(0, 512).expect("read"), [1; 512]);
}

#[test]
fn a_node_is_drained_and_removed() {
    let mut ring = Ring::formatted(4);
    ring.create("vol", "128M");
    let mut client = ring.open(0, "vol");
    for object in 0..32u64 {
        client.write(object << 22, &fill(object + 1, 0, 65536, 2)).expect("written");
    }
    let before = ring.digest(1, "vol");
    let id = ring.id(3);
    let refused = ring.dog(0, &["node", "remove", &id]).exits(1);
    assert!(refused.stderr.contains("drain"), "{refused}");
    let drained = ring.dog(0, &["node", "drain", &id]).ok();
    assert!(drained.stdout.contains("is empty"), "{drained}");
    assert_eq!(ring.dog_json(0, &["node", "info", &id])["status"], "drained");
    let objects = ring.dog_json(0, &["vdi", "object", "vol"]).to_string();
    assert!(!objects.contains(&id), "{objects}");
    ring.dog(0, &["node", "remove", &id]).ok();
    ring[3].kill();
    wait::until(Duration::from_secs(20), "it is no longer listed", || {
        let nodes = ring.dog_json(0, &["node", "list"]).to_string();
        if nodes.contains(&id) { Err(nodes) } else { Ok(()) }
    });
    ring.wait_full();
    assert_eq!(ring.digest(2, "vol"), before);
    // With three left, none can go without losing redundancy that nobody can hold.
    let other = ring.id(2);
    ring.dog(0, &["node", "remove", &other]).exits(1);
}

#[test]
fn a_ring_that_was_shut_down_comes_back_with_its_data() {
    let mut ring = Ring::formatted(3);
    ring.create("vol", "64M");
    ring.open(2, "vol").write(3 << 20, &[5; 2 << 20]).expect("written");
    let before = ring.digest(0, "vol");
    ring.dog(1, &["cluster", "shutdown"]).ok();
    for index in 0..3 {
        let status = ring[index].wait_end(Duration::from_secs(20));
        assert!(status.success(), "sheep {index}: {status}");
    }
    ring_unreachable(&ring);
    ring.start_all();
    ring.wait_full();
    assert_eq!(ring.digest(1, "vol"), before);
    ring.assert_same_everywhere("vol");
}

#[track_caller]
fn ring_unreachable(ring: &Ring) {
    let asked = ring.dog(0, &["node", "list"]);
    assert_eq!(asked.status, 3, "{asked}");
}

#[test]
fn a_large_vdi_is_made_at_once_and_takes_next_to_nothing() {
    let ring = Ring::alone(3);
    let stored = || ring.stored();
    let empty = stored();
    let begin = Instant::now();
    ring.create("large", "16T");
    let took = begin.elapsed();
    println!("16 TiB created in {took:?}, dog's own start included");
    assert!(took < Duration::from_millis(200), "{took:?}");
    let mut client = ring.open(2, "large");
    assert_eq!(client.size(), 16 << 40);
    client.write((16 << 40) - 512, &[7; 512]).expect("its last block");
    assert_eq!(ring.open(0, "large").read((16 << 40) - 512, 512).expect("read"), [7; 512]);
    let grown = stored().saturating_sub(empty);
    assert!(grown < 1 << 20, "{grown} bytes for one block");
    ring.create("largest", "16P");
    assert_eq!(ring.open(0, "largest").size(), 16 << 50);
}

#[test]
fn the_space_in_use_is_that_of_objects_and_not_of_the_file_system() {
    let ring = Ring::formatted(3);
    let used = || ring.dog_json(0, &["cluster", "info"])["space"]["used"].as_u64().expect("a number");
    assert!(used() < 1 << 20, "{} bytes in an empty ring", used());
    ring.create("vol", "64M");
    ring.open(0, "vol").write(0, &[1; 4 << 20]).expect("written");
    wait::until(Duration::from_secs(20), "three copies of 4 MiB", || {
        let now = used();
        if (12 << 20..14 << 20).contains(&now) { Ok(()) } else { Err(now) }
    });
}

#[test]
fn names_and_sizes_that_cannot_be_are_refused_by_dog_and_by_the_sheep() {
    let ring = Ring::formatted(1);
    let long = "n".repeat(256);
    for (name, size) in [
        ("a/b", "1G"),
        ("a,b", "1G"),
        ("a@b", "1G"),
        ("a\tb", "1G"),
        (" ", "1G"),
        ("a ", "1G"),
        (".", "1G"),
        ("..", "1G"),
        ("a\u{202e}b", "1G"),
        ("a\u{200b}b", "1G"),
        ("", "1G"),
        (long.as_str(), "1G"),
        ("a", "0"),
        ("a", "1000"),
        ("a", "17P"),
        ("a", "-5"),
        ("a", "99999999999999999999P"),
    ] {
        let refused = ring.dog(0, &["vdi", "create", name, size]);
        assert_eq!(refused.status, 2, "{name:?} {size}: {refused}");
    }
    let longest = "n".repeat(255);
    ring.dog(0, &["vdi", "create", &longest, "512"]).ok();
    assert_eq!(ring.open(0, &longest).size(), 512);
    let list = ring.dog(0, &["vdi", "list"]).ok();
    assert!(list.stdout.lines().all(|line| line.chars().count() < 150), "{list}");
    assert_eq!(ring.dog_json(0, &["vdi", "list"])[0]["name"], longest);
    ring.dog(0, &["vdi", "create", "Größe", "1M"]).ok();
    assert_eq!(ring.open(0, "Größe").size(), 1 << 20);
    let error = ring.dog(0, &["-o", "json", "vdi", "create", &longest, "512"]).exits(1);
    let error: serde_json::Value = serde_json::from_str(&error.stderr).expect("errors are JSON too");
    assert_eq!(error["kind"], "already_exists", "{error}");
}

#[test]
fn exit_statuses_say_what_happened() {
    let ring = Ring::formatted(1);
    let dog = tool::binary("dog").display().to_string();
    let limit = Duration::from_secs(30);
    let port = tests::port::allocate().admin.to_string();
    tool::run(limit, &dog, &["-p", &port, "node", "list"]).exits(3);
    tool::run(limit, &dog, &["no", "such", "verb"]).exits(2);
    tool::run(limit, &dog, &["--help"]).ok();
    tool::run(limit, &dog, &["--version"]).ok();
    let script = tool::run(limit, &dog, &["completions", "bash"]).ok();
    assert!(script.stdout.contains("complete"), "{script}");
    tool::run(limit, &dog, &["man"]).ok();
    ring.dog(0, &["-v", "node", "list"]).ok();
    let sheep = tool::binary("sheep").display().to_string();
    tool::run(limit, &sheep, &["--version"]).ok();
    tool::run(limit, &sheep, &["--generate-man"]).ok();
    tool::run(limit, &sheep, &[]).exits(2);
}
