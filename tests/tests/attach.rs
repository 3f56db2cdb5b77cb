//! Clients that name themselves and an attach generation: the higher fences the lower.

use std::io;
use std::time::Duration;

use rustix::process::Signal;
use tests::client::{Client, Command};
use tests::cluster::Ring;
use tests::wait;

type Call = fn(&mut Client, u64, u32) -> io::Result<()>;

fn ring_with_vdi() -> Ring {
    let ring = Ring::formatted(3);
    ring.create("vol", "64M");
    ring
}

/// A client that was fenced gets an error or a closed connection, and nothing it wrote lands.
fn assert_fenced(client: &mut Client, offset: u64) {
    let answer = client.write(offset, &[0xee; 4096]);
    assert!(answer.is_err(), "a fenced write was acknowledged");
}

#[test]
fn a_higher_generation_fences_the_lower_at_the_same_sheep_and_at_others() {
    let ring = ring_with_vdi();
    let mut first = ring.open(0, "vol,attach=node-1:1");
    first.write(0, &[1; 4096]).expect("written");
    let mut second = ring.open(0, "vol,attach=node-1:2");
    assert_fenced(&mut first, 0);
    second.write(0, &[2; 4096]).expect("written");
    let mut third = ring.open(2, "vol,attach=node-1:3");
    assert_fenced(&mut second, 0);
    third.write(0, &[3; 4096]).expect("written");
    for index in 0..3 {
        assert_eq!(ring.open(index, "vol").read(0, 4096).expect("read"), [3; 4096], "through {index}");
    }
}

#[test]
fn trims_and_zeroes_are_fenced_like_writes() {
    let ring = ring_with_vdi();
    // Through the owner's own sheep, and through one that forwards.
    for (old, new) in [(0, 0), (1, 2)] {
        let mut owner = ring.open(0, "vol");
        for (client, forget) in [("trims", Client::trim as Call), ("zeroes", Client::write_zeroes)] {
            let mut first = ring.open(old, &format!("vol,attach={client}-{old}:1"));
            first.write(0, &[1; 4096]).expect("written");
            let mut second = ring.open(new, &format!("vol,attach={client}-{old}:2"));
            forget(&mut first, 0, 4096).expect_err("fenced");
            assert_eq!(second.read(0, 4096).expect("read"), [1; 4096]);
        }
        assert_eq!(owner.read(0, 4096).expect("read"), [1; 4096]);
    }
}

#[test]
fn an_old_generation_is_not_let_in_again() {
    let ring = ring_with_vdi();
    let mut newer = ring.open(1, "vol,attach=node-1:5");
    newer.write(0, &[5; 512]).expect("written");
    for index in 0..3 {
        let refused = Client::connect(ring.nbd(index), "vol,attach=node-1:4")
            .and_then(|mut old| old.write(0, &[4; 512]));
        assert!(refused.is_err(), "through {index}");
    }
    drop(newer);
    let late =
        Client::connect(ring.nbd(0), "vol,attach=node-1:4").and_then(|mut old| old.write(0, &[4; 512]));
    assert!(late.is_err(), "a fence outlives the connection that raised it");
    ring.open(2, "vol,attach=node-1:6").write(512, &[6; 512]).expect("a higher one goes on");
    assert_eq!(ring.open(0, "vol").read(0, 512).expect("read"), [5; 512]);
}

#[test]
fn other_clients_are_not_fenced() {
    let ring = ring_with_vdi();
    let mut other = ring.open(0, "vol,attach=node-2:1");
    let mut nameless = ring.open(1, "vol");
    let _newer = ring.open(2, "vol,attach=node-1:9");
    other.write(0, &[1; 512]).expect("another client's generation is its own");
    nameless.write(512, &[2; 512]).expect("a client without one is not fenced");
}

#[test]
fn several_connections_of_one_generation_work_together() {
    let ring = ring_with_vdi();
    let mut all: Vec<_> = (0..3).map(|index| ring.open(index, "vol,attach=node-1:1")).collect();
    for (offset, client) in (0..).zip(&mut all) {
        client.write(offset * 512, &[9; 512]).expect("written");
    }
    assert_eq!(all[0].read(0, 1536).expect("read"), [9; 1536]);
}

#[test]
fn late_writes_of_a_stopped_sheep_never_land() {
    let ring = Ring::alone(3);
    ring.create("vol", "64M");
    // Whoever opens first owns: the client's sheep is not the owner and has to forward.
    let owner = ring.open(0, "vol");
    let mut old = ring.open(1, "vol,attach=node-1:1");
    old.write(0, &[1; 4096]).expect("written");
    ring[1].signal(Signal::STOP);
    // These wait in the socket of the stopped sheep.
    for _ in 0..64 {
        old.send(Command::Write, 0, 0, 4096, &[0xee; 4096]).expect("the kernel takes it");
    }
    let mut new = ring.open(2, "vol,attach=node-1:2");
    new.write(0, &[2; 4096]).expect("written");
    ring[1].signal(Signal::CONT);
    let fenced: io::Result<()> = (0..64).try_for_each(|_| match old.receive()?.errno {
        0 => panic!("a late write was acknowledged"),
        errno => Err(io::Error::from_raw_os_error(errno.cast_signed())),
    });
    assert!(fenced.is_err());
    wait::throughout(Duration::from_millis(500), "the newer write stays", || {
        let data = new.read(0, 4096).map_err(|error| error.to_string())?;
        if data == [2; 4096] { Ok(()) } else { Err(format!("{:?}", &data[..4])) }
    });
    drop(owner);
    ring.wait_full();
    ring.assert_same_everywhere("vol");
}

#[test]
fn a_fence_survives_the_owner() {
    let mut ring = ring_with_vdi();
    let mut newer = ring.open(0, "vol,attach=node-1:2");
    newer.write(0, &[2; 512]).expect("written");
    assert_eq!(ring.owner("vol"), Some(0));
    ring[0].kill();
    let mut newer = ring.open(1, "vol,attach=node-1:2");
    newer.write(512, &[3; 512]).expect("written");
    let old = Client::connect(ring.nbd(2), "vol,attach=node-1:1").and_then(|mut old| old.write(0, &[1; 512]));
    assert!(old.is_err());
    assert_eq!(newer.read(0, 512).expect("read"), [2; 512]);
}

#[test]
fn what_is_no_generation_is_refused() {
    let ring = Ring::formatted(1);
    ring.create("vol", "64M");
    for export in [
        "vol,attach=",
        "vol,attach=a",
        "vol,attach=a:x",
        "vol,attach=a:1,attach=a:1",
        "vol,other=1",
        "vol,ro=0",
        "vol,attach=a:1,ro=true",
        "vol@tag",
        "none",
    ] {
        let error = Client::connect(ring.nbd(0), export).expect_err(export);
        assert!(error.kind() == io::ErrorKind::Other && !error.to_string().is_empty(), "{export}: {error:?}");
    }
}
