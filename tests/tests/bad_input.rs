//! Hostile bytes on every port of a running ring, options and directories that cannot be, and what a sheep may take.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};
use tests::client::{Client, Command};
use tests::cluster::Ring;
use tests::load::Load;
use tests::process::Refusal;
use tests::tool;

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
fn a_hostile_crowd_at_one_sheep_costs_others_time_and_nothing_else() {
    let ring = Ring::formatted(3);
    ring.create("vol", "64M");
    ring.create("other", "64M");
    // Through the sheep that is beset, and through one that is not.
    let load = Load::new("other", vec![ring.nbd(0), ring.nbd(1)]).start();
    load.progress(100);
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/nbd/crowd.py");
    let (uri, port) = (ring.uri(0, "vol"), ring.nbd(0).port().to_string());
    let crowd = std::thread::spawn(move || {
        let args = ["-B", script, &uri, &port, "vol", "15"];
        tool::run(Duration::from_secs(120), "/usr/bin/python3", &args)
    });
    let mut other = ring.open(0, "other");
    other.set_read_timeout(Duration::from_secs(60));
    // One that needs no memory but its own, and one that has to wait for a part of what all share.
    let lens = [4096, 4 << 20];
    let (mut most, mut slowest, mut count) = (0, [Duration::ZERO; 2], 0);
    while !crowd.is_finished() {
        for (slowest, len) in slowest.iter_mut().zip(lens) {
            let began = Instant::now();
            other.write(32 << 20, &vec![5; len]).expect("others are served");
            *slowest = began.elapsed().max(*slowest);
        }
        most = most.max(ring[0].memory());
        count += 1;
    }
    let said = crowd.join().expect("it ran").ok();
    print!("{}", said.stdout);
    let [small, large] = slowest;
    println!(
        "beside it: {count} rounds, the slowest took {small:?} and {large:?}; {} MiB at most",
        most >> 20
    );
    assert!(said.stdout.ends_with("OK\n"), "{said}");
    assert!(most <= LOADED_MAX, "{} MiB", most >> 20);
    // Small requests wait for nobody's memory; large ones until those before them have moved, or are thrown out.
    assert!(small <= Duration::from_secs(10) && large <= Duration::from_secs(60), "{small:?}, {large:?}");
    load.progress(100);
    let outcome = load.stop(&[ring.nbd(0), ring.nbd(1), ring.nbd(2)]);
    outcome.assert_good("a hostile crowd");
    assert_eq!(outcome.broken, 0);
    ring.check(0).expect("the ring is whole");
    assert!(!ring[0].log().contains("panicked"), "{}", ring[0].tail());
}

#[test]
fn a_thousand_idle_clients_disturb_nobody_and_more_are_turned_away() {
    let files = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let raised = rustix::process::Rlimit { current: files.maximum, ..files };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, raised).expect("up to the hard limit");
    let ring = Ring::formatted(3);
    ring.create("vol", "64M");
    let idle: Vec<_> = (0..1_000).map(|_| ring.open(0, "vol")).collect();
    let mut other = ring.open(0, "vol");
    for block in 0..200u64 {
        other.write(block * 4096, &[2; 4096]).expect("others are served");
    }
    let memory = ring[0].memory();
    println!("with 1,000 idle clients: {} MiB", memory >> 20);
    assert!(memory <= LOADED_MAX, "{} MiB", memory >> 20);
    let more: Vec<_> = (0..60).map(|_| Client::connect(ring.nbd(0), "vol")).collect();
    let refused = more.iter().filter(|client| client.is_err()).count();
    assert!(refused >= 30, "{refused} of 60 beyond the limit of 1,024");
    other.write(0, &[3; 4096]).expect("still served");
    drop((idle, more));
    tests::wait::until(Duration::from_secs(10), "there is room again", || {
        Client::connect(ring.nbd(0), "vol")
    });
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
