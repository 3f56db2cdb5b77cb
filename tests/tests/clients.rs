//! Other people's clients against a ring, with a sheep killed under them where they can stand it: those
//! that hold one connection use a sheep that stays, and one that owns or stores their disk is killed.

use std::thread;
use std::time::Duration;

use tests::cluster::Ring;
use tests::tool::{Output, run, run_with};
use tests::wait;

const LIMIT: Duration = Duration::from_secs(120);
const SIZE: u64 = 64 << 20;

/// Three sheep and a VDI.
fn ring_with_vdi() -> Ring {
    let ring = Ring::formatted(3);
    ring.create("vol", "64M");
    ring
}

#[track_caller]
fn tool(program: &str, args: &[&str]) -> Output {
    run(LIMIT, program, args).ok()
}

/// A sparse file with data that does not repeat.
fn image(ring: &Ring) -> String {
    use std::os::unix::fs::FileExt;
    let path = ring.work().join("image");
    let file = std::fs::File::create(&path).expect("created");
    file.set_len(SIZE).expect("room");
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for at in [0, 1 << 20, 5 << 20, (5 << 20) + 12_288, 33 << 20, SIZE - (1 << 20)] {
        let mut noise = Vec::with_capacity(1 << 20);
        while noise.len() < 1 << 20 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            noise.extend(state.to_le_bytes());
        }
        file.write_all_at(&noise, at).expect("written");
    }
    path.display().to_string()
}

/// Kills sheep `victim` while `work` is under way, and brings it back.
fn killed_meanwhile<T: Send>(ring: &mut Ring, victim: usize, work: impl FnOnce() -> T + Send) -> T {
    let result = thread::scope(|scope| {
        let working = scope.spawn(work);
        let before = ring[victim].written();
        wait::until(LIMIT, "the sheep to be killed is in the middle of it", || {
            let now = ring[victim].written() - before;
            if now > 1 << 20 || working.is_finished() { Ok(()) } else { Err(format!("{now} bytes written")) }
        });
        ring[victim].kill();
        working.join()
    });
    ring[victim].start();
    ring.wait_full();
    result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

#[test]
fn qemu_img_creates_converts_compares_maps_and_informs() {
    let mut ring = ring_with_vdi();
    let image = image(&ring);
    let uris: Vec<_> = (0..3).map(|index| ring.uri(index, "vol")).collect();
    // "Creates" on what is there already: it checks the size.
    tool("qemu-img", &["create", "-f", "raw", &uris[0], "64M"]);
    let info = tool("qemu-img", &["info", "--output=json", "-f", "raw", &uris[1]]).json();
    assert_eq!(info["virtual-size"], SIZE);
    killed_meanwhile(&mut ring, 1, || {
        tool("qemu-img", &["convert", "-n", "-W", "-m", "16", "-f", "raw", "-O", "raw", &image, &uris[0]]);
        tool("qemu-img", &["compare", "-f", "raw", "-F", "raw", &image, &uris[0]])
    });
    for uri in &uris {
        tool("qemu-img", &["compare", "-f", "raw", "-F", "raw", &image, uri]);
        let map = tool("qemu-img", &["map", "--output=json", "-f", "raw", uri]).json();
        let extents = map.as_array().expect("an array");
        let hole = extents.iter().any(|extent| extent["data"] == false && extent["zero"] == true);
        assert!(hole, "{map}");
    }
    let copy = ring.work().join("copy.qcow2").display().to_string();
    tool("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", &uris[2], &copy]);
    tool("qemu-img", &["compare", "-f", "raw", "-F", "qcow2", &image, &copy]);
    let none = run(LIMIT, "qemu-img", &["info", &ring.uri(0, "none")]);
    assert!(none.status != 0 && none.stderr.contains("none"), "{none}");
    ring.assert_same_everywhere("vol");
}

#[test]
fn qemu_io_writes_at_odd_offsets_discards_zeroes_and_forces() {
    let ring = ring_with_vdi();
    let write = [
        "write -P 0x11 0 1M",
        "write -P 0x22 1023 5003",
        "write -P 0x66 4190000 9000", // across two objects
        "write -f -P 0x33 65537 1",
        "write -z 131071 70001",
        "write -z -u 262144 65536",
        "discard 524288 65536",
        "aio_write -P 0x44 8M 4M",
        "aio_write -P 0x55 16M 4M",
        "aio_flush",
        "discard 17M 1M",
        "flush",
    ];
    let read = [
        "read -P 0x11 0 1023",
        "read -P 0x22 1023 5003",
        "read -P 0x11 6026 1000",
        "read -P 0x33 65537 1",
        "read -P 0 131071 70001",
        "read -P 0x11 131070 1",
        "read -P 0x11 201072 1",
        "read -P 0 262144 65536",
        "read -P 0 524288 65536",
        "read -P 0x66 4190000 9000",
        "read -P 0x44 8M 4M",
        "read -P 0x55 16M 1M",
        "read -P 0 17M 1M",
        "read -P 0x55 18M 2M",
        "read -P 0 40M 1M",
    ];
    let script = |index: usize, lines: &[&str]| {
        let uri = ring.uri(index, "vol");
        let mut args = vec!["-f", "raw", "-t", "none", "-d", "unmap"];
        for line in lines {
            args.extend(["-c", line]);
        }
        args.push(&uri);
        let said = tool("qemu-io", &args);
        assert!(!said.stdout.contains("failed"), "through {index}: {said}");
    };
    script(0, &write);
    for index in 0..3 {
        script(index, &read);
    }
    ring.assert_same_everywhere("vol");
}

#[test]
fn every_export_is_listed_with_its_abilities() {
    let ring = ring_with_vdi();
    ring.create("another", "1T");
    for index in 0..3 {
        let port = ring[index].ports.nbd.to_string();
        let list = tool("qemu-nbd", &["--list", "-b", "127.0.0.1", "-p", &port]).stdout;
        assert!(list.contains("exports available: 2") && list.contains("base:allocation"), "{list}");
        let all = tool("nbdinfo", &["--json", "--list", &ring.uri(index, "")]).json();
        let mut names: Vec<_> = all["exports"].as_array().expect("an array").iter().collect();
        names.sort_by_key(|export| export["export-name"].to_string());
        assert_eq!(names[0]["export-name"], "another");
        assert_eq!(names[0]["export-size"], 1u64 << 40);
        let info = tool("nbdinfo", &["--json", &ring.uri(index, "vol")]).json();
        assert_eq!(
            (&info["protocol"], &info["structured"]),
            (&"newstyle-fixed".into(), &true.into()),
            "{info}"
        );
        let export = &info["exports"][0];
        assert_eq!(export["export-size"], SIZE);
        for ability in ["cache", "df", "fast_zero", "flush", "fua", "multi_conn", "trim", "zero"] {
            assert_eq!(export[format!("can_{ability}")], true, "{ability}");
        }
        let limits = ["block_size_minimum", "block_size_preferred", "block_size_maximum"]
            .map(|key| export[key].as_u64());
        assert_eq!(limits, [Some(1), Some(4096), Some(32 << 20)]);
    }
}

#[test]
fn a_vdi_is_exported_everywhere_when_its_creation_returns_and_nowhere_after_its_deletion() {
    let ring = Ring::formatted(3);
    for round in 0..10 {
        let name = format!("vol{round}");
        ring.dog(round % 3, &["vdi", "create", &name, "8M"]).ok();
        for index in 0..3 {
            ring.open(index, &name).write(0, &[1; 512]).expect("written");
        }
        ring.dog((round + 1) % 3, &["vdi", "delete", &name]).ok();
        for index in 0..3 {
            assert!(
                tests::client::Client::connect(ring.nbd(index), &name).is_err(),
                "{name} through {index}"
            );
        }
    }
}

#[test]
fn nbdcopy_copies_over_several_connections_and_between_sheep() {
    let mut ring = ring_with_vdi();
    ring.create("second", "64M");
    let from = image(&ring);
    let to = ring.work().join("to").display().to_string();
    let parallel = ["--connections=4", "--threads=2", "--requests=16"];
    let (first, second, through) = (ring.uri(0, "vol"), ring.uri(1, "second"), ring.uri(0, "second"));
    tool("nbdcopy", &[&parallel[..], &["--flush", &from, &first]].concat());
    // From one sheep to another, while the third, which holds a copy of both, is killed.
    killed_meanwhile(&mut ring, 2, || tool("nbdcopy", &[&parallel[..], &[&first, &second]].concat()));
    tool("nbdcopy", &[&parallel[..], &[&through, &to]].concat());
    assert!(std::fs::read(&from).expect("read") == std::fs::read(&to).expect("read"), "the copy differs");
    let map = tool("nbdinfo", &["--map", "--json", &second]).json();
    let holes = map.as_array().expect("an array").iter().filter(|extent| extent["type"] == 3);
    let holes: u64 = holes.filter_map(|extent| extent["length"].as_u64()).sum();
    assert!(holes > SIZE / 2, "{map}");
    ring.assert_same_everywhere("second");
}

#[test]
fn fio_verifies_what_it_wrote_across_kills() {
    let mut ring = ring_with_vdi();
    let uri = format!("--uri={}", ring.uri(0, "vol"));
    // The idle connection makes sheep 1 the owner, which is killed; then 2, which stores.
    let hold = ring.open(1, "vol");
    for (victim, pattern) in [(1, "randwrite"), (2, "randrw")] {
        let rw = format!("--rw={pattern}");
        let args = [
            "--name=verify",
            "--ioengine=nbd",
            &uri,
            &rw,
            "--bsrange=512-64k",
            "--blockalign=512",
            "--size=32m",
            "--io_size=24m",
            "--iodepth=16",
            "--rate=6m,6m",
            "--fsync=200",
            "--verify=crc32c",
            "--verify_fatal=1",
            "--verify_state_save=0",
        ];
        killed_meanwhile(&mut ring, victim, || tool("fio", &args));
    }
    drop(hold);
    ring.assert_same_everywhere("vol");
}

#[test]
fn libnbd_sends_what_others_do_not() {
    let ring = ring_with_vdi();
    run(LIMIT, "/usr/bin/python3", &["-c", "import nbd"]).ok();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/nbd/odd.py");
    let [a, b, c] = [0, 1, 2].map(|index| ring.uri(index, "vol"));
    let said = run_with(LIMIT, "/usr/bin/python3", &["-B", script, &a, &b, &c], &[]).ok();
    assert!(said.stdout.ends_with("OK\n"), "{said}");
    ring.assert_same_everywhere("vol");
}

#[test]
fn a_read_only_export_is_read_and_never_written() {
    let ring = ring_with_vdi();
    let image = image(&ring);
    let (vol, frozen) = (ring.uri(0, "vol"), ring.uri(1, "vol,ro=1"));
    tool("nbdcopy", &["--flush", &image, &vol]);

    let export = &tool("nbdinfo", &["--json", &frozen]).json()["exports"][0];
    assert_eq!((&export["is_read_only"], &export["export-size"]), (&true.into(), &SIZE.into()), "{export}");
    assert_eq!((&export["can_trim"], &export["can_zero"]), (&false.into(), &false.into()), "{export}");
    assert_eq!(tool("nbdinfo", &["--json", &vol]).json()["exports"][0]["is_read_only"], false);

    let refused = run(LIMIT, "qemu-io", &["-f", "raw", "-c", "write 0 4k", &frozen]);
    assert!(refused.status != 0 && refused.stderr.contains("Permission denied"), "{refused}");
    let read = tool("qemu-io", &["-r", "-f", "raw", "-c", "read -P 0 40M 1M", &frozen]);
    assert!(!read.stdout.contains("failed"), "{read}");
    let copied = run(LIMIT, "nbdcopy", &[&image, &frozen]);
    assert_ne!(copied.status, 0, "{copied}");

    // A client that writes all the same.
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/nbd/readonly.py");
    for name in ["vol,ro=1", "vol,attach=reader:3,ro=1"] {
        let said = run_with(LIMIT, "/usr/bin/python3", &["-B", script, &ring.uri(1, name), &vol], &[]).ok();
        assert!(said.stdout.ends_with("OK\n"), "{said}");
    }
    let to = ring.work().join("to").display().to_string();
    tool("nbdcopy", &["--connections=4", &frozen, &to]);
    assert!(std::fs::read(&image).expect("read") == std::fs::read(&to).expect("read"), "the VDI has changed");

    let (reader, _writer) = (ring.open(1, "vol,ro=1,attach=reader:4"), ring.open(0, "vol"));
    let locks = ring.dog_json(2, &["vdi", "lock", "list"]);
    let flags: Vec<_> = locks.as_array().expect("an array").iter().map(|lock| &lock["read_only"]).collect();
    assert!(flags.len() == 2 && flags.contains(&&true.into()) && flags.contains(&&false.into()), "{locks}");
    let table = ring.dog(2, &["vdi", "lock", "list"]).ok();
    let row = table.stdout.lines().find(|line| line.contains("reader:4")).unwrap_or_default();
    assert!(row.ends_with("yes"), "{table}");
    drop(reader);
}
