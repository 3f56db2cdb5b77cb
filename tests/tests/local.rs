//! One process, no set-up: the `local` driver.

use std::time::Duration;

use tests::cluster::{Ring, sdcluster};
use tests::tool::run;

const LIMIT: Duration = Duration::from_secs(60);

fn qemu_io(uri: &str, commands: &[&str]) {
    let mut args = vec!["-f", "raw"];
    for command in commands {
        args.extend(["-c", command]);
    }
    args.push(uri);
    let said = run(LIMIT, "qemu-io", &args).ok();
    assert!(!said.stdout.contains("failed"), "{said}");
}

fn formatted() -> Ring {
    let ring = Ring::local();
    ring.dog(0, &["cluster", "format", "-c", "1"]).ok();
    ring
}

#[test]
fn a_disk_survives_a_restart_and_a_kill() {
    let mut ring = formatted();
    ring.create("my-disk", "10G");
    let uri = ring.uri(0, "my-disk");
    qemu_io(&uri, &["write -P 0x11 0 4M", "write -P 0x22 5G 64k", "write -P 0x33 10485759k 1k", "flush"]);
    let written =
        ["read -P 0x11 0 4M", "read -P 0x22 5G 64k", "read -P 0 1G 4M", "read -P 0x33 10485759k 1k"];
    qemu_io(&uri, &written);

    let (status, _) = ring[0].terminate();
    assert!(status.success(), "{status}");
    ring[0].start();
    qemu_io(&uri, &written);

    qemu_io(&uri, &["write -P 0x44 4M 1M"]);
    ring[0].kill();
    ring[0].start();
    qemu_io(&uri, &written);
    qemu_io(&uri, &["read -P 0x44 4M 1M"]);
    ring.wait_full();
    ring.dog(0, &["vdi", "check", "my-disk"]).ok();
}

#[test]
fn before_a_format_it_says_so_and_afterwards_refuses_another() {
    let ring = Ring::local();
    let refused = ring.dog(0, &["vdi", "create", "early", "1G"]).exits(1);
    assert!(refused.stderr.contains("format"), "{refused}");
    assert_eq!(ring.dog_json(0, &["node", "list"]).as_array().map(Vec::len), Some(1));
    assert_eq!(ring.dog_json(0, &["cluster", "info"])["status"], "waiting");
    ring.dog(0, &["cluster", "check"]).exits(1);
    ring.dog(0, &["cluster", "format"]).exits(1); // three copies on one node
    ring.dog(0, &["cluster", "format", "-c", "1"]).ok();
    ring.dog(0, &["cluster", "format", "-c", "1"]).exits(1);
    assert_eq!(ring.dog_json(0, &["cluster", "info"])["driver"], "local");
}

#[test]
fn a_forced_format_serves_fewer_copies_and_says_degraded() {
    let ring = Ring::local();
    ring.dog(0, &["cluster", "format", "-c", "2", "--force"]).ok();
    ring.dog(0, &["cluster", "check"]).exits(1);
}

#[test]
fn its_directory_becomes_the_first_node_of_a_ring() {
    let mut ring = formatted();
    ring.create("old", "64M");
    qemu_io(&ring.uri(0, "old"), &["write -P 0x55 1M 9M"]);
    let id = ring.id(0);
    ring[0].terminate();

    let own = ring[0].ports.admin;
    ring[0].options = sdcluster([own].into_iter());
    ring[0].start();
    assert_eq!(ring.id(0), id);
    qemu_io(&ring.uri(0, "old"), &["read -P 0x55 1M 9M", "read -P 0 10M 54M"]);

    for _ in 0..2 {
        ring.join(&[]);
    }
    ring.wait_nodes(3, "up");
    ring.wait_full();
    qemu_io(&ring.uri(2, "old"), &["read -P 0x55 1M 9M", "read -P 0 10M 54M"]);
    ring.dog(0, &["vdi", "create", "new", "64M", "-c", "3"]).ok();
    qemu_io(&ring.uri(1, "new"), &["write -P 0x66 0 8M"]);
    ring.wait_full();
    ring.assert_same_everywhere("old");
    ring.assert_same_everywhere("new");
}

#[test]
fn a_kill_in_the_middle_of_writing_loses_nothing_acknowledged() {
    let mut ring = formatted();
    ring.create("busy", "256M");
    let load = tests::load::Load::new("busy", vec![ring.nbd(0)]).start();
    for _ in 0..3 {
        load.progress(500);
        ring[0].kill();
        ring[0].start();
    }
    load.progress(200);
    load.stop(&[ring.nbd(0)]).assert_good("one sheep, killed three times");
}
