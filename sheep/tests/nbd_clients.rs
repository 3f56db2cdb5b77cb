//! The NBD server driven by other people's clients, over a disk in memory.
//!
//! A client that is not installed fails its test and names the Debian package: a skipped test proves nothing.

#![allow(clippy::unwrap_used)]

use std::io::ErrorKind;
use std::path::PathBuf;
use std::process::Output;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;
use sheep::nbd::memory::{MemoryDisk, MemoryExports};
use sheep::nbd::{Config, Server};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio::time::timeout;

const SIZE: u64 = 64 << 20;

struct Rig {
    server: Server,
    disk: Arc<MemoryDisk>,
    dir: TempDir,
}

impl Rig {
    async fn start() -> Self {
        Self::with(Config::default()).await
    }

    async fn with(config: Config) -> Self {
        let exports = MemoryExports::default();
        let disk = exports.add("vol", SIZE, false);
        exports.add("frozen", SIZE, true);
        let dir = tempfile::tempdir().unwrap();
        let tcp = vec!["127.0.0.1:0".parse().unwrap()];
        let config = Config { tcp, unix: Some(dir.path().join("nbd.sock")), ..config };
        let server = Server::start(config, Arc::new(exports)).await.unwrap();
        Self { server, disk, dir }
    }

    fn port(&self) -> u16 {
        self.server.addresses()[0].port()
    }

    fn tcp(&self, name: &str) -> String {
        format!("nbd://127.0.0.1:{}/{name}", self.port())
    }

    fn unix(&self, name: &str) -> String {
        format!("nbd+unix:///{name}?socket={}", self.socket().display())
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("nbd.sock")
    }

    fn file(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.server.addresses()[0]).await.unwrap()
    }

    /// A connection in the transmission phase.
    async fn open(&self) -> TcpStream {
        self.try_open().await.unwrap()
    }

    async fn try_open(&self) -> std::io::Result<TcpStream> {
        let mut socket = self.connect().await;
        socket.read_exact(&mut [0; 18]).await?;
        socket.write_all(b"\0\0\0\x03IHAVEOPT\0\0\0\x01\0\0\0\x03vol").await?;
        socket.read_exact(&mut [0; 10]).await?;
        Ok(socket)
    }

    /// Every export that was opened is closed once its clients are gone.
    async fn closed(&self) {
        let deadline = Instant::now() + Duration::from_secs(5);
        while self.disk.close_count() != self.disk.open_count() {
            assert!(
                Instant::now() < deadline,
                "opened {}, closed {}",
                self.disk.open_count(),
                self.disk.close_count()
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

fn package(tool: &str) -> &'static str {
    match tool {
        "nbdinfo" | "nbdcopy" => "libnbd-bin",
        "qemu-img" | "qemu-io" | "qemu-nbd" => "qemu-utils",
        "/usr/bin/python3" => "python3-libnbd",
        _ => "fio",
    }
}

async fn output(tool: &str, args: &[&str]) -> Output {
    let mut command = Command::new(tool);
    command.args(args).kill_on_drop(true);
    match timeout(Duration::from_secs(60), command.output()).await {
        Ok(Ok(output)) => output,
        Ok(Err(error)) if error.kind() == ErrorKind::NotFound => {
            panic!("{tool} is missing: install the Debian package {}", package(tool))
        }
        Ok(Err(error)) => panic!("{tool}: {error}"),
        Err(_) => panic!("{tool} {args:?} hangs"),
    }
}

async fn run(tool: &str, args: &[&str]) -> String {
    let output = output(tool, args).await;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{tool} {args:?}\n{text}\n{errors}");
    text
}

async fn json(tool: &str, args: &[&str]) -> Value {
    serde_json::from_str(&run(tool, args).await).unwrap()
}

/// A sparse file with data that does not repeat.
fn image(path: &str) {
    use std::os::unix::fs::FileExt;
    let file = std::fs::File::create(path).unwrap();
    file.set_len(SIZE).unwrap();
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for at in [0, 1 << 20, 5 << 20, (5 << 20) + 12_288, 33 << 20, SIZE - (1 << 20)] {
        let mut noise = Vec::new();
        while noise.len() < 1 << 20 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            noise.extend(state.to_le_bytes());
        }
        file.write_all_at(&noise, at).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nbdinfo_sees_what_is_offered() {
    let rig = Rig::start().await;
    for uri in [rig.tcp("vol"), rig.unix("vol"), rig.tcp("vol,attach=node-1:3")] {
        let info = json("nbdinfo", &["--json", &uri]).await;
        assert_eq!(info["protocol"], "newstyle-fixed");
        assert_eq!(info["structured"], true);
        let export = &info["exports"][0];
        assert_eq!(export["export-size"], SIZE);
        assert_eq!(export["description"], "vol in memory");
        assert_eq!(export["contexts"][0], "base:allocation");
        assert_eq!(export["is_read_only"], false);
        for ability in ["cache", "df", "fast_zero", "flush", "fua", "multi_conn", "trim", "zero"] {
            assert_eq!(export[format!("can_{ability}")], true, "{ability}");
        }
        assert_eq!(export["block_size_minimum"], 1);
        assert_eq!(export["block_size_preferred"], 4096);
        assert_eq!(export["block_size_maximum"], 32 << 20);
    }
    let list = json("nbdinfo", &["--json", "--list", &rig.tcp("")]).await;
    let mut names: Vec<_> =
        list["exports"].as_array().unwrap().iter().map(|e| e["export-name"].clone()).collect();
    names.sort_by_key(Value::to_string);
    assert_eq!(names, ["frozen", "vol"]);
    let none = output("qemu-img", &["info", &rig.tcp("none")]).await;
    assert!(!none.status.success());
    assert!(String::from_utf8_lossy(&none.stderr).contains("there is no VDI \"none\""), "{none:?}");
    rig.closed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nbdcopy_copies_both_ways_over_several_connections_and_keeps_holes() {
    let rig = Rig::start().await;
    let (from, to) = (rig.file("from"), rig.file("to"));
    image(&from);
    run("nbdcopy", &["--connections=4", "--threads=4", "--requests=32", "--flush", &from, &rig.tcp("vol")])
        .await;
    assert!(rig.disk.open_count() >= 4, "multi-conn was used");
    assert!(rig.disk.flush_count() > 0);
    run("nbdcopy", &["--connections=4", "--threads=4", &rig.unix("vol"), &to]).await;
    assert!(std::fs::read(&from).unwrap() == std::fs::read(&to).unwrap());
    let map = json("nbdinfo", &["--map", "--json", &rig.tcp("vol")]).await;
    let holes = map.as_array().unwrap().iter().filter(|extent| extent["type"] == 3);
    let holes: u64 = holes.map(|extent| extent["length"].as_u64().unwrap()).sum();
    assert!(holes > SIZE / 2, "{map}");
    rig.closed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn qemu_img_converts_maps_and_compares() {
    let rig = Rig::start().await;
    let from = rig.file("from");
    image(&from);
    let uri = rig.unix("vol");
    let info = json("qemu-img", &["info", "--output=json", &uri]).await;
    assert_eq!(info["virtual-size"], SIZE);
    run("qemu-img", &["convert", "-n", "-W", "-m", "16", "-f", "raw", "-O", "raw", &from, &uri]).await;
    run("qemu-img", &["compare", "-f", "raw", "-F", "raw", &from, &uri]).await;
    let map = json("qemu-img", &["map", "--output=json", "-f", "raw", &uri]).await;
    let extents = map.as_array().unwrap();
    assert!(extents.iter().any(|extent| extent["data"] == false && extent["zero"] == true), "{map}");
    let copy = rig.file("copy.qcow2");
    run("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", &rig.tcp("vol"), &copy]).await;
    run("qemu-img", &["compare", "-f", "raw", "-F", "qcow2", &from, &copy]).await;
    let list = run("qemu-nbd", &["--list", "-b", "127.0.0.1", "-p", &rig.port().to_string()]).await;
    assert!(list.contains("exports available: 2") && list.contains("base:allocation"), "{list}");
    rig.closed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn qemu_io_writes_at_odd_offsets_discards_zeroes_and_forces() {
    let rig = Rig::start().await;
    let uri = rig.unix("vol");
    let mut args = vec!["-f", "raw", "-t", "none", "-d", "unmap"];
    let script = [
        "write -P 0x11 0 1M",
        "write -P 0x22 1023 5003",
        "read -P 0x11 0 1023",
        "read -P 0x22 1023 5003",
        "read -P 0x11 6026 1000",
        "write -f -P 0x33 65537 1",
        "read -P 0x33 65537 1",
        "write -z 131071 70001",
        "read -P 0 131071 70001",
        "read -P 0x11 131070 1",
        "read -P 0x11 201072 1",
        "write -z -u 262144 65536",
        "read -P 0 262144 65536",
        "discard 524288 65536",
        "read -P 0 524288 65536",
        "aio_write -P 0x44 2M 4M",
        "aio_write -P 0x55 8M 4M",
        "aio_flush",
        "read -P 0x44 2M 4M",
        "read -P 0x55 8M 4M",
        "flush",
    ];
    for line in &script {
        args.extend(["-c", line]);
    }
    args.push(&uri);
    let said = run("qemu-io", &args).await;
    assert!(!said.contains("failed") && !said.contains("Pattern verification"), "{said}");
    assert!(rig.disk.flush_count() >= 2, "FUA and flush reached the disk");
    let refused = output("qemu-io", &["-f", "raw", "-c", "write 0 512", &rig.unix("frozen")]).await;
    assert!(!refused.status.success(), "{refused:?}");
    rig.closed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fio_verifies_what_it_wrote() {
    let rig = Rig::start().await;
    let uri = format!("--uri={}", rig.unix("vol"));
    let args = [
        "--name=verify",
        "--ioengine=nbd",
        &uri,
        "--rw=randwrite",
        "--bsrange=512-128k",
        "--blockalign=512",
        "--size=24m",
        "--iodepth=32",
        "--verify=crc32c",
        "--verify_fatal=1",
        "--verify_state_save=0",
        "--group_reporting",
    ];
    run("fio", &args).await;
    let mixed = [
        "--name=mixed",
        "--ioengine=nbd",
        &uri,
        "--rw=randrw",
        "--bs=4k",
        "--size=16m",
        "--iodepth=64",
        "--verify=crc32c",
        "--verify_backlog=256",
        "--verify_fatal=1",
        "--fsync=500",
        "--verify_state_save=0",
    ];
    run("fio", &mixed).await;
    assert!(rig.disk.flush_count() > 0);
    rig.closed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_requests_get_their_errno_and_harm_nobody() {
    let rig = Rig::start().await;
    let library = output("/usr/bin/python3", &["-c", "import nbd"]).await;
    assert!(library.status.success(), "install the Debian package python3-libnbd");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/nbd/hostile.py");
    // -B: nothing is to be left in the source tree.
    run("/usr/bin/python3", &["-B", script, &rig.port().to_string()]).await;
    rig.closed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn half_a_handshake_is_dropped_within_the_deadline() {
    let rig = Rig::start().await;
    let begin = Instant::now();
    let mut half = Vec::new();
    for sent in [&b""[..], b"\0\0\0\x03", b"\0\0\0\x03IHAVEOPT\0\0\0\x07\0\0\x01\0half"] {
        let mut socket = rig.connect().await;
        socket.write_all(sent).await.unwrap();
        half.push(socket);
    }
    for socket in &mut half {
        let mut rest = Vec::new();
        timeout(Duration::from_secs(14), socket.read_to_end(&mut rest)).await.expect("dropped").unwrap();
        assert_eq!(rest, b"NBDMAGICIHAVEOPT\0\x03");
    }
    assert!(begin.elapsed() > Duration::from_secs(8), "slow clients get their time");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_idle_connections_do_not_keep_others_out_but_one_too_many_is_closed() {
    let rig = Rig::with(Config { connections_max: 1001, ..Config::default() }).await;
    raise_file_limit();
    let mut idle = Vec::new();
    for _ in 0..1000 {
        idle.push(rig.open().await);
    }
    let begin = Instant::now();
    run("nbdinfo", &["--size", &rig.tcp("vol")]).await;
    assert!(begin.elapsed() < Duration::from_secs(5));
    // The place that nbdinfo had is free a moment after it left.
    let last = loop {
        match rig.try_open().await {
            Ok(socket) => break socket,
            Err(_) => assert!(begin.elapsed() < Duration::from_secs(10), "its place was not given back"),
        }
    };
    let mut surplus = rig.connect().await;
    assert!(matches!(surplus.read(&mut [0; 18]).await, Ok(0) | Err(_)));
    drop((idle, last));
    rig.closed().await;
}

/// The test holds both ends of every connection.
fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).unwrap();
}

fn request(kind: u8, cookie: u8, offset: u64, len: u32) -> Vec<u8> {
    let mut bytes = vec![0x25, 0x60, 0x95, 0x13, 0, 0, 0, kind, 0, 0, 0, 0, 0, 0, 0, cookie];
    bytes.extend(offset.to_be_bytes());
    bytes.extend(len.to_be_bytes());
    bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_reads_no_replies_does_not_hold_up_another() {
    let rig = Rig::start().await;
    let mut silent = Vec::new();
    for _ in 0..4 {
        let mut socket = rig.open().await;
        let reads: Vec<u8> = (0..200).flat_map(|cookie| request(0, cookie, 0, 8 << 20)).collect();
        // The window may fill before all of it is taken.
        let _ = timeout(Duration::from_millis(300), socket.write_all(&reads)).await;
        silent.push(socket);
    }
    let begin = Instant::now();
    let mut other = rig.open().await;
    for cookie in 0..100 {
        other.write_all(&request(0, cookie, 4096, 4096)).await.unwrap();
        let mut reply = vec![0; 16 + 4096];
        other.read_exact(&mut reply).await.unwrap();
        assert_eq!(reply[15], cookie);
    }
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    drop(silent);
    drop(other);
    rig.closed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_finishes_what_is_in_flight_and_removes_the_socket() {
    let rig = Rig::start().await;
    let mut busy = rig.open().await;
    let mut idle = rig.open().await;
    rig.disk.set_delay(Duration::from_millis(700));
    let write = [request(1, 9, 0, 3), b"abc".to_vec(), request(3, 10, 0, 0)].concat();
    busy.write_all(&write).await.unwrap();
    while rig.disk.running_count() < 2 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let (address, socket) = (rig.server.addresses()[0], rig.socket());
    let begin = Instant::now();
    rig.server.stop().await;
    assert!(begin.elapsed() < Duration::from_secs(5));
    assert!(!socket.exists());
    assert!(TcpStream::connect(address).await.is_err());
    let mut replies = Vec::new();
    busy.read_to_end(&mut replies).await.unwrap();
    assert_eq!(replies.len(), 32, "both were answered");
    assert_eq!(idle.read(&mut [0]).await.unwrap(), 0);
    assert_eq!(rig.disk.close_count(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_outlive_their_socket_and_only_then_is_the_export_closed() {
    let rig = Rig::start().await;
    let mut socket = rig.open().await;
    rig.disk.set_delay(Duration::from_millis(600));
    socket.write_all(&[request(1, 9, 0, 3), b"abc".to_vec()].concat()).await.unwrap();
    while rig.disk.running_count() < 1 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    drop(socket);
    while rig.disk.running_count() > 0 {
        assert_eq!(rig.disk.close_count(), 0);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    rig.closed().await;
    rig.disk.set_delay(Duration::ZERO);
    let said = run("qemu-io", &["-f", "raw", "-c", "read -v 0 3", &rig.tcp("vol")]).await;
    assert!(said.contains("61 62 63"), "{said}");
}
