//! Hostile bytes on every port of a running ring, damaged and foreign files, and what a sheep may take.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};
use tests::client::{Client, Command};
use tests::cluster::Ring;
use tests::load::Load;
use tests::process::Refusal;
use tests::tool;
use tests::wait;

const IDLE_MAX: u64 = 64 << 20;
const LOADED_MAX: u64 = 256 << 20;

/// Whatever opens one of our protocols, followed by what does not belong there.
fn hostile_bytes() -> Vec<Vec<u8>> {
    let mut random = StdRng::seed_from_u64(8);
    let mut noise = |len: usize| {
        let mut bytes = vec![0; len];
        random.fill_bytes(&mut bytes);
        bytes
    };
    let http2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    // Settings, then headers or data of a length that never comes.
    let settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    let frame = |len: u32, kind: u8| [&len.to_be_bytes()[1..], &[kind, 0, 0, 0, 0, 1]].concat();
    let option = |number: u32, len: u32| {
        [&b"\0\0\0\x03IHAVEOPT"[..], &number.to_be_bytes(), &len.to_be_bytes()].concat()
    };
    vec![
        vec![],
        vec![0],
        vec![0xff; 1 << 20],
        noise(1 << 16),
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
        http2[..10].to_vec(),
        [&http2[..], &noise(4096)].concat(),
        [&http2[..], &settings, &frame(0x00ff_ffff, 0), &noise(100)].concat(),
        [&http2[..], &settings, &frame(16384, 1), &noise(16384)].concat(),
        [&b"SHPF"[..], &[1, 0], &[0xff; 34]].concat(),
        [&b"SHPF"[..], &[99; 36]].concat(),
        [&b"SHPF"[..], &noise(4096)].concat(),
        b"SHPF".to_vec(),
        lying_frame(),
        option(7, u32::MAX),
        option(7, 8),
        [option(7, 6), noise(6)].concat(),
        option(1, 1 << 20),
        [option(99, 4), vec![0; 4]].concat(),
        option(3, 0).repeat(2000),
        [b"\0\0\0\x03IHAVEOPT".to_vec(), noise(1 << 16)].concat(),
    ]
}

/// The head of a peer frame, correct in itself, that claims as much meta and data as numbers allow.
fn lying_frame() -> Vec<u8> {
    let mut head = [&b"SHPF\x01\0\0\0"[..], &[0; 8], &[0xff; 8], &[0; 12]].concat();
    let crc = wire::checksum::of_pieces(0, &head)[0];
    head.extend(crc.to_le_bytes());
    head
}

#[test]
fn hostile_bytes_on_any_port_disturb_nobody() {
    let ring = Ring::formatted(3);
    ring.create("vol", "64M");
    let load = Load::new("vol", vec![ring.nbd(1), ring.nbd(2)]).start();
    load.progress(100);
    let ports = ring[0].ports;
    let mut half = Vec::new();
    for port in [ports.admin, ports.admin + 1, ports.nbd] {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        for bytes in hostile_bytes() {
            for end in [true, false] {
                let mut stream = TcpStream::connect(address).expect("it listens");
                stream.set_write_timeout(Some(Duration::from_secs(2))).expect("set");
                // It may hang up before everything is sent: that is its right.
                let _ = stream.write_all(&bytes);
                if end {
                    let _ = stream.shutdown(Shutdown::Both);
                } else {
                    half.push(stream);
                }
            }
        }
    }
    load.progress(500);
    ring.check(0).expect("the ring is whole");
    let outcome = load.stop(&[ring.nbd(0), ring.nbd(1), ring.nbd(2)]);
    outcome.assert_good("hostile bytes");
    assert_eq!(outcome.broken, 0);
    for index in 0..3 {
        assert!(!ring[index].log().contains("panicked"), "{}", ring[index].tail());
        let memory = ring[index].memory();
        assert!(memory <= LOADED_MAX, "sheep {index}: {} MiB", memory >> 20);
    }
    // What never says a sensible word is dropped.
    for stream in &mut half {
        stream.set_read_timeout(Some(Duration::from_secs(20))).expect("set");
    }
    let nbd_silent = half.last_mut().expect("there are some");
    let mut rest = Vec::new();
    let ended = nbd_silent.read_to_end(&mut rest);
    assert!(ended.is_ok() || ended.is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionReset));
}

#[test]
fn hostile_requests_and_clients_that_never_read_are_bounded() {
    let ring = Ring::formatted(3);
    ring.create("vol", "64M");
    let mut flood = Vec::new();
    for _ in 0..16 {
        let mut client = ring.open(0, "vol");
        client.write(0, &[1; 1 << 20]).expect("written");
        client.set_write_timeout(Duration::from_millis(300));
        // Each asks for 32 MiB and reads nothing. The sheep stops reading when it has taken enough.
        while client.in_flight() < 200 && client.send(Command::Read, 0, 0, 32 << 20, &[]).is_ok() {}
        flood.push(client);
    }
    let mut other = ring.open(0, "vol");
    for block in 0..200u64 {
        other.write(block * 4096, &[2; 4096]).expect("others are served");
    }
    for index in 0..3 {
        let memory = ring[index].memory();
        println!("sheep {index}: {} MiB", memory >> 20);
        assert!(memory <= LOADED_MAX, "sheep {index}: {} MiB", memory >> 20);
    }
    drop(flood);
    let mut wild = ring.open(1, "vol");
    for (offset, len) in [(u64::MAX, 1), (u64::MAX - 511, 512), (1 << 63, 4096), (64 << 20, 1), (0, u32::MAX)]
    {
        wild.send(Command::Read, 0, offset, len, &[]).expect("sent");
        assert_ne!(wild.receive().expect("answered").errno, 0, "{offset} {len}");
    }
    wild.send(Command::Trim, 0, u64::MAX - 1, 4096, &[]).expect("sent");
    assert_ne!(wild.receive().expect("answered").errno, 0);
    assert_eq!(wild.read(0, 512).expect("it is still served"), [2; 512]);
}

#[test]
fn memory_is_bounded_idle_and_under_load() {
    let ring = Ring::alone(3);
    ring.create("vol", "16T");
    let idle: Vec<_> = (0..3).map(|index| ring[index].memory() >> 20).collect();
    println!("idle: {idle:?} MiB");
    assert!(idle.iter().all(|mib| *mib <= IDLE_MAX >> 20), "idle: {idle:?} MiB");
    let gateways: Vec<_> = (0..3).map(|index| ring.nbd(index)).collect();
    let mut load = Load::scattered("vol", gateways);
    load.blocks = 400;
    load.stride = 5 << 30; // all over the VDI: as many map pages as blocks
    load.depth = 16;
    load.rest = Duration::ZERO;
    let load = load.start();
    load.progress(5000);
    let mut streams: Vec<_> = (0..6).map(|n| ring.open(n % 3, "vol")).collect();
    for round in 0..8u64 {
        for (n, client) in (0..).zip(&mut streams) {
            client
                .send(Command::Write, 0, (1 << 40) + (round * 6 + n) * (8 << 20), 8 << 20, &vec![3; 8 << 20])
                .expect("sent");
        }
        for client in &mut streams {
            assert_eq!(client.receive().expect("answered").errno, 0);
        }
        let loaded: Vec<_> = (0..3).map(|index| ring[index].memory() >> 20).collect();
        println!("loaded: {loaded:?} MiB");
        assert!(loaded.iter().all(|mib| *mib <= LOADED_MAX >> 20), "loaded: {loaded:?} MiB");
    }
    load.stop(&[ring.nbd(0)]).assert_good("memory");
}

/// A refusal that an operator can act on.
#[track_caller]
fn assert_clear(refusal: &Refusal, names: &str) {
    assert!(refusal.stderr.contains(names), "names {names}: {refusal:?}");
    assert!(!refusal.stderr.contains("panicked"), "{refusal:?}");
    assert!(!refusal.status.success(), "{refusal:?}");
}

#[test]
fn a_port_in_use_and_a_directory_that_cannot_be_are_clear_errors() {
    let mut ring = Ring::local();
    for which in 0..2 {
        let index = ring.add(vec![]);
        let ports = ring[index].ports;
        let port = [ports.admin, ports.nbd][which];
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).expect("it was free");
        let refusal = ring[index].try_start().expect_err("the port is taken");
        assert_clear(&refusal, &port.to_string());
        drop(taken);
        ring[index].start();
        ring[index].kill();
    }
    let index = ring.add(vec![]);
    let file = ring.work().join("a-file");
    fs::write(&file, b"x").expect("written");
    for dir in [file.clone(), file.join("below")] {
        ring[index].dir = dir;
        assert_clear(&ring[index].try_start().expect_err("not a directory"), "a-file");
    }
    // A directory with something else in it is nobody's to take.
    let foreign = ring.work().join("foreign");
    fs::create_dir_all(foreign.join("objects")).expect("created");
    fs::write(foreign.join("objects/thesis.txt"), b"years of work").expect("written");
    ring[index].dir = foreign.clone();
    assert_clear(&ring[index].try_start().expect_err("foreign files"), "foreign");
    assert_eq!(fs::read(foreign.join("objects/thesis.txt")).expect("still there"), b"years of work");
}

#[test]
fn a_directory_without_permission_is_a_clear_error() {
    let ring = Ring::local();
    let dir = ring.work().join("forbidden");
    fs::create_dir(&dir).expect("created");
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o500)).expect("changed");
    let sheep = tool::binary("sheep").display().to_string();
    let dir = dir.display().to_string();
    let port = tests::port::allocate().admin.to_string();
    let own = [&sheep[..], "-p", &port, &dir];
    // To root without its capabilities permissions apply as to anyone.
    let output = if rustix::process::geteuid().is_root() {
        let args = [&["--bounding-set=-all", "--inh-caps=-all"][..], &own].concat();
        tool::run(Duration::from_secs(10), "setpriv", &args)
    } else {
        tool::run(Duration::from_secs(10), own[0], &own[1..])
    };
    assert!(output.status != 0 && output.status != 124, "{output}");
    assert!(output.stderr.contains("forbidden") && output.stderr.contains("ermission"), "{output}");
}

#[test]
fn options_that_cannot_be_are_clear_errors() {
    let ring = Ring::local();
    let sheep = tool::binary("sheep").display().to_string();
    let dir = ring.work().join("never-made").display().to_string();
    let config = ring.work().join("config.toml");
    fs::write(&config, "prot = 7000\n").expect("written");
    let config = config.display().to_string();
    for (args, names) in [
        (&["-p", "65536"][..], "65536"),
        (&["-p", "65535", "--cluster-driver", "sdcluster"], "65535"),
        (&["-v", "0"], "vnodes"),
        (&["-b", "0.0.0.0"], "--insecure"),
        (&["--nbd", "--nbd-bind", "0.0.0.0"], "--nbd-insecure"),
        (&["--seed", "127.0.0.1:7000"], "sdcluster"),
        (&["--cluster-driver", "sdcluster", "--seed", "nonsense"], "nonsense"),
        (&["--cluster-driver", "zookeeper"], "zookeeper"),
        (&["-c", "0"], "copies"),
        (&["--gateway"], "gateway"),
        (&["--config", &config], "prot"),
        (&["--config", "/nonexistent"], "/nonexistent"),
    ] {
        let output = tool::run(Duration::from_secs(10), &sheep, &[args, &[&dir]].concat());
        assert!(output.status != 0 && output.status != 124 && output.stderr.contains(names), "{output}");
        assert!(!Path::new(&dir).exists(), "a refused start leaves nothing behind: {output}");
    }
}

#[test]
fn a_refused_start_says_what_is_wrong_once() {
    let ring = Ring::local();
    let sheep = tool::binary("sheep").display().to_string();
    let config = ring.work().join("config.toml").display().to_string();
    fs::write(&config, "prot = 7000\n").expect("written");
    let taken = ring[0].ports.nbd.to_string();
    for (args, cause) in [
        (&["--config", &config][..], "unknown field"),
        (&["--config", "/nonexistent"], "No such file"),
        (&["--nbd", "-p", "0", "--nbd-port", &taken], "in use"),
        (&["-p", &ring[0].ports.admin.to_string()], "in use"),
    ] {
        let dir = ring.work().join("refused").display().to_string();
        let output = tool::run(Duration::from_secs(10), &sheep, &[args, &[&dir]].concat());
        assert!(output.status != 0 && output.stderr.matches(cause).count() == 1, "{output}");
    }
    let help = tool::run(Duration::from_secs(10), &sheep, &["--help"]).ok();
    assert!(help.stdout.contains("sheep [OPTIONS] <DIR>"), "{help}");
}

/// All files of a directory tree.
fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).expect("a directory") {
        let path = entry.expect("readable").path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push(path);
        }
    }
    found.sort();
    found
}

#[derive(Debug, Clone, Copy)]
enum Damage {
    Flipped,
    Halved,
    Emptied,
    Noise,
    Removed,
}

fn damage(path: &Path, how: Damage) {
    let file = fs::OpenOptions::new().read(true).write(true).open(path).expect("opens");
    let len = file.metadata().expect("metadata").len();
    match how {
        Damage::Flipped => {
            let at = len / 2;
            let mut bytes = vec![0; 64.min(len - at) as usize];
            file.read_exact_at(&mut bytes, at).expect("read");
            bytes.iter_mut().for_each(|byte| *byte ^= 0xff);
            file.write_all_at(&bytes, at).expect("written");
        }
        Damage::Halved => file.set_len(len / 2).expect("cut"),
        Damage::Emptied => file.set_len(0).expect("cut"),
        Damage::Noise => {
            let mut bytes = vec![0; len.min(65536) as usize];
            StdRng::seed_from_u64(len).fill_bytes(&mut bytes);
            file.write_all_at(&bytes, 0).expect("written");
        }
        Damage::Removed => fs::remove_file(path).expect("removed"),
    }
}

static DATA: [u8; 65536] = [0x5a; 65536];

/// With one copy nothing can be healed: each damage is a refused start, an I/O error, or harmless, and
/// never other data.
#[test]
fn no_damaged_file_ever_becomes_zeros() {
    let mut ring = Ring::local();
    ring.dog(0, &["cluster", "format", "-c", "1"]).ok();
    ring.create("vol", "64M");
    let mut client = ring.open(0, "vol");
    for object in 0..4u64 {
        client.write(object << 22, &DATA).expect("written");
    }
    client.flush().expect("flushed");
    drop(client);
    ring[0].terminate();
    let dir = ring[0].dir.clone();
    let good = ring.work().join("good");
    fs::rename(&dir, &good).expect("moved");
    let copy = |to: &Path| {
        let (from, to) = (good.display().to_string(), to.display().to_string());
        tool::run(Duration::from_secs(30), "rm", &["-rf", &to]).ok();
        tool::run(Duration::from_secs(30), "cp", &["-a", &from, &to]).ok();
    };
    let mut harmless = Vec::new();
    for file in files(&good) {
        let name = file.strip_prefix(&good).expect("below").to_owned();
        for how in [Damage::Flipped, Damage::Halved, Damage::Emptied, Damage::Noise, Damage::Removed] {
            copy(&dir);
            damage(&dir.join(&name), how);
            let case = format!("{} {how:?}", name.display());
            match ring[0].try_start() {
                Err(refusal) => {
                    assert!(
                        !refusal.stderr.is_empty() && !refusal.stderr.contains("panicked"),
                        "{case}: {refusal:?}"
                    );
                    println!("{case}: refused: {}", refusal.stderr.lines().last().unwrap_or_default());
                }
                Ok(()) => {
                    let wrong = (0..4u64).find_map(|object| read_after(&ring, object, &case));
                    println!("{case}: {}", wrong.as_deref().unwrap_or("harmless"));
                    if wrong.is_none() {
                        harmless.push(case);
                    }
                    assert!(!ring[0].log().contains("panicked"), "{}", ring[0].tail());
                    ring[0].kill();
                }
            }
        }
    }
    copy(&dir);
    ring[0].start();
    assert!((0..4).all(|object| read_after(&ring, object, "undamaged").is_none()), "undamaged");
}

/// Reads what was written; an error is an answer, other data is not.
fn read_after(ring: &Ring, object: u64, case: &str) -> Option<String> {
    let mut client = match Client::connect(ring.nbd(0), "vol") {
        Ok(client) => client,
        Err(error) => return Some(format!("not exported: {error}")),
    };
    client.set_read_timeout(Duration::from_secs(5));
    match client.read(object << 22, DATA.len() as u32) {
        Ok(data) => {
            assert!(data == DATA, "{case}: object {object} reads {:?}… instead of an error", &data[..4]);
            None
        }
        Err(error) => Some(format!("object {object}: {error}")),
    }
}

#[test]
fn damage_to_one_copy_is_healed_from_the_others() {
    let mut ring = Ring::formatted(3);
    ring.create("vol", "64M");
    let mut client = ring.open(0, "vol");
    for object in 0..8u64 {
        client.write(object << 22, &DATA).expect("written");
    }
    client.flush().expect("flushed");
    drop(client);
    let good = ring.digest(0, "vol");
    ring[1].kill();
    let objects: Vec<_> = files(&ring[1].dir.join("objects"));
    let objects = objects.iter().filter(|path| fs::metadata(path).is_ok_and(|meta| meta.len() > 65536));
    let mut count = 0;
    for path in objects {
        let file = fs::OpenOptions::new().write(true).open(path).expect("opens");
        file.write_all_at(&[0; 4096], 20480).expect("written");
        count += 1;
    }
    assert!(count >= 8, "{count} files of objects");
    ring[1].start();
    ring.wait_full();
    for index in 0..3 {
        assert_eq!(ring.digest(index, "vol"), good, "through {index}");
    }
    // A repair puts right what is left, and then all is well.
    let repaired = ring.dog(0, &["vdi", "check", "vol", "--repair"]);
    println!("{repaired}");
    wait::until(Duration::from_secs(30), "clean after the repair", || {
        let output = ring.dog(0, &["vdi", "check", "vol"]);
        if output.status == 0 { Ok(()) } else { Err(output) }
    });
    ring.dog(0, &["cluster", "check", "--deep"]).ok();
}

/// Files of data objects, each with its index; all are of one VDI, whose name begins with the kind.
fn data_files(dir: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = files(&dir.join("objects"));
    found.retain(|path| fs::metadata(path).is_ok_and(|meta| meta.len() > 1 << 20));
    found.sort_by_key(|path| path.file_name().map(ToOwned::to_owned));
    found
}

#[test]
fn a_wiped_block_table_is_damage_and_no_hole() {
    let mut ring = Ring::local();
    ring.dog(0, &["cluster", "format", "-c", "1"]).ok();
    ring.create("vol", "64M");
    ring.open(0, "vol").write(0, &DATA).expect("written");
    ring[0].kill();
    for path in data_files(&ring[0].dir) {
        let file = fs::OpenOptions::new().write(true).open(path).expect("opens");
        file.write_all_at(&[0; 8192], 4096).expect("wiped");
    }
    ring[0].start();
    // Whoever asks first what there is to read must not be told that there is nothing.
    let read = ring.dog(0, &["vdi", "read", "vol"]);
    assert_ne!(read.status, 0, "{} bytes", read.bytes.len());
    let error = ring.open(0, "vol").read(0, 4096).expect_err("it is lost");
    assert_eq!(error.raw_os_error(), Some(5), "{error}");
    ring.dog(0, &["vdi", "check", "vol"]).exits(4);
}

#[test]
fn a_damaged_header_of_the_only_copy_is_an_error_and_holds_up_nothing_else() {
    let mut ring = Ring::local();
    ring.dog(0, &["cluster", "format", "-c", "1"]).ok();
    ring.create("vol", "64M");
    let mut client = ring.open(0, "vol");
    for object in 0..3u64 {
        client.write(object << 22, &DATA).expect("written");
    }
    ring[0].kill();
    let paths = data_files(&ring[0].dir);
    assert_eq!(paths.len(), 3);
    // The header of one and the version of another.
    for (path, at) in paths.iter().zip([20, 513]) {
        let file = fs::OpenOptions::new().read(true).write(true).open(path).expect("opens");
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).expect("read");
        file.write_all_at(&[byte[0] ^ 0x40], at).expect("flipped");
    }
    ring[0].start();
    let mut client = ring.open(0, "vol");
    client.set_read_timeout(Duration::from_secs(10));
    let lost = |object: u64, client: &mut Client| match client.read(object << 22, 4096) {
        Ok(data) => {
            assert_eq!(data, DATA[..4096], "object {object}");
            false
        }
        Err(error) => {
            assert_eq!(error.raw_os_error(), Some(5), "object {object}: {error}");
            true
        }
    };
    let lost = (0..3).filter(|object| lost(*object, &mut client)).count();
    assert_eq!(lost, 2);
}

#[test]
fn a_damaged_block_table_on_any_one_copy_holds_up_nobody() {
    let mut ring = Ring::formatted(3);
    ring.create("vol", "64M");
    let mut client = ring.open(0, "vol");
    for object in 0..3u64 {
        client.write(object << 22, &DATA).expect("written");
    }
    let good = ring.digest(0, "vol");
    // Another object on each, so that each sheep is once the one that is wrong.
    for index in 0..3 {
        ring[index].terminate();
        let path = &data_files(&ring[index].dir)[index];
        let file = fs::OpenOptions::new().read(true).write(true).open(path).expect("opens");
        let mut byte = [0];
        file.read_exact_at(&mut byte, 4096 + 40).expect("read");
        file.write_all_at(&[byte[0] ^ 0x40], 4096 + 40).expect("flipped");
        ring[index].start();
        ring.wait_full();
    }
    for index in 0..3 {
        assert_eq!(ring.digest(index, "vol"), good, "through {index}");
    }
    ring.dog(0, &["vdi", "check", "vol", "--repair"]);
    ring.dog(0, &["cluster", "check", "--deep"]).ok();
}

#[test]
fn a_ring_whose_log_is_gone_is_not_taken_for_none() {
    let mut ring = Ring::local();
    ring.dog(0, &["cluster", "format", "-c", "1"]).ok();
    ring.create("vol", "64M");
    ring[0].kill();
    let log = ring[0].dir.join("log.redb");
    let was = fs::read(&log).expect("read");
    for how in [Damage::Emptied, Damage::Removed] {
        damage(&log, how);
        let refusal = ring[0].try_start().expect_err("its VDIs are not known");
        assert!(refusal.stderr.contains("log.redb") && refusal.stderr.contains("restore"), "{refusal:?}");
        fs::write(&log, &was).expect("restored");
    }
    ring[0].start();
    assert_eq!(ring.dog_json(0, &["vdi", "list"]).as_array().map(Vec::len), Some(1));
}

#[test]
fn a_damaged_log_names_a_way_out_that_works() {
    let mut ring = Ring::formatted(3);
    ring.create("vol", "64M");
    ring.open(0, "vol").write(0, &DATA).expect("written");
    let old = ring.id(2);
    ring[2].kill();
    damage(&ring[2].dir.join("log.redb"), Damage::Noise);
    let refusal = ring[2].try_start().expect_err("its log is damaged");
    let said = refusal.stderr.lines().last().unwrap_or_default();
    assert!(said.contains("log.redb") && said.contains("empty") && said.contains("node remove"), "{said}");
    assert_eq!(said.matches("cannot be read").count(), 1, "{said}");

    let aside = ring.work().join("aside");
    fs::rename(&ring[2].dir, &aside).expect("moved away");
    ring[2].start();
    wait::until(Duration::from_secs(20), "the old id is removed", || {
        let output = ring.dog(0, &["node", "remove", &old]);
        if output.status == 0 { Ok(()) } else { Err(output) }
    });
    ring.wait_full();
    assert_eq!(ring.open(2, "vol").read(0, DATA.len() as u32).expect("read"), DATA);
    ring.assert_same_everywhere("vol");
}
