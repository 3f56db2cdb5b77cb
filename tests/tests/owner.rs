//! What owners and copies remember of writes, and for how long.

use std::time::Duration;

use rustix::process::Signal;
use tests::client::{Client, Command};
use tests::cluster::Ring;
use tests::wait;

/// More writes than one answer about them can name.
const MANY: u64 = 20_000;
/// Writes that may be remembered on a quiet ring.
const FEW: u64 = 100;

fn write_many(client: &mut Client, count: u64) {
    for number in 0..count + 32 {
        if number < count {
            let offset = number * 512 % (8 << 20);
            client.send(Command::Write, 0, offset, 512, &[number as u8; 512]).expect("sent");
        }
        if number >= 32 {
            assert_eq!(client.receive().expect("answered").errno, 0);
        }
    }
}

fn remembered(ring: &Ring, index: usize) -> u64 {
    let stat = ring.dog_json(index, &["node", "stat"]);
    let counters = stat["counters"].as_array().expect("an array");
    let found = counters.iter().find(|counter| counter["name"] == "sheep_replica_recent_writes");
    found.and_then(|counter| counter["value"].as_u64()).expect("a number")
}

fn wait_few(ring: &Ring, writer: &mut Client) {
    wait::until(Duration::from_secs(10), "the copies forget", || {
        writer.write(0, &[1; 512]).map_err(|error| error.to_string())?;
        let counts: Vec<u64> = (0..3).map(|index| remembered(ring, index)).collect();
        if counts.iter().all(|count| *count < FEW) { Ok(()) } else { Err(format!("{counts:?}")) }
    });
}

#[test]
fn copies_forget_what_a_closed_disk_was_written() {
    let ring = Ring::formatted(3);
    ring.create("vol", "64M");
    // The second generation begins with requests of the first that its gateway might send again.
    for count in [10, MANY] {
        let mut client = ring.open(0, "vol");
        write_many(&mut client, count);
        drop(client);
        wait::until(Duration::from_secs(10), "it is given up", || match ring.owner("vol") {
            None => Ok(()),
            Some(owner) => Err(format!("{owner} has it")),
        });
    }
    let mut client = ring.open(0, "vol");
    assert_eq!(client.read(0, 512).expect("read").len(), 512);
    wait_few(&ring, &mut client);
}

#[test]
fn copies_forget_although_a_gateway_has_gone_quiet() {
    let ring = Ring::formatted(3);
    ring.create("vol", "64M");
    let mut busy = ring.open(0, "vol");
    busy.write(0, &[1; 512]).expect("written");
    let mut quiet = ring.open(1, "vol");
    quiet.write(0, &[2; 512]).expect("written");
    write_many(&mut busy, 1_000);
    wait_few(&ring, &mut busy);
    assert_eq!(quiet.read(0, 512).expect("read"), [1; 512]);
}

#[test]
fn a_takeover_learns_of_more_writes_than_one_answer_names() {
    let mut ring = Ring::formatted(3);
    ring.create("vol", "64M");
    let mut clients: Vec<Client> = (0..40).map(|_| ring.open(0, "vol")).collect();
    for object in 0..7 {
        clients[0].write(object << 22, &[1; 512]).expect("written");
    }
    // No write is done while a copy does not answer, so the other copies remember them all.
    ring[1].signal(Signal::STOP);
    for (number, client) in (0u64..).zip(&mut clients) {
        for block in 0..128 {
            let offset = (number * 128 + block) * 4096 + (4 << 20);
            client.send(Command::Write, 0, offset, 512, &[3; 512]).expect("sent");
        }
    }
    wait::until(Duration::from_secs(2), "a copy has them", || match remembered(&ring, 2) {
        count if count > 4_500 => Ok(()),
        count => Err(count.to_string()),
    });
    ring[0].kill();
    ring[1].signal(Signal::CONT);
    let mut next = ring.open(2, "vol");
    assert_eq!(next.read(0, 512).expect("read"), [1; 512]);
    drop(clients);
    ring[0].start();
    ring.wait_full();
    ring.assert_same_everywhere("vol");
}

#[test]
fn an_owner_whose_client_is_idle_holds_up_no_recovery() {
    let mut ring = Ring::formatted(3);
    ring.dog(0, &["vdi", "create", "pair", "256M", "-c", "2"]).ok();
    let mut client = ring.open(0, "pair");
    for object in 0..64u64 {
        client.write(object << 22, &[1; 512]).expect("written");
    }
    // Slots that 1 and 2 have together: 1 stays alone in sync, goes too, and they resume with it, under the next
    // generation of an owner that was there all the time.
    ring.dog(0, &["node", "recovery", "--pause"]).ok();
    ring[2].terminate();
    ring[2].start();
    wait::until(Duration::from_secs(15), "1 is alone in sync", || match ring.check(0) {
        Ok(()) => Err("all are in sync"),
        Err(_) => Ok(()),
    });
    ring[1].terminate();
    ring[1].start();
    // Nobody asks the owner for anything.
    ring.dog(0, &["node", "recovery", "--resume"]).ok();
    wait::until(Duration::from_secs(15), "full redundancy", || ring.check(0));
    for object in 0..64u64 {
        assert_eq!(client.read(object << 22, 512).expect("read"), [1; 512]);
    }
}

#[test]
fn a_flush_waits_while_what_it_covers_has_too_few_copies() {
    let mut ring = Ring::formatted(5);
    ring.create("vol", "256M");
    let mut client = ring.open(0, "vol");
    client.write(0, &[1; 512]).expect("written");
    let owner = ring.owner("vol");
    let mut victims = (1..5).filter(|index| Some(*index) != owner);
    let (one, two) = (victims.next().expect("two of four"), victims.next().expect("two of four"));
    // Objects in 64 slots: some have two of their three copies at these.
    for object in 0..64u64 {
        client.write(object << 22, &[1; 512]).expect("written");
    }
    ring[one].kill();
    ring[two].kill();
    wait::until(Duration::from_secs(10), "both are taken for dead", || {
        let nodes = ring.dog_json(0, &["node", "list"]);
        let down = nodes.as_array().expect("an array").iter().filter(|node| node["status"] != "up").count();
        if down == 2 { Ok(()) } else { Err(nodes) }
    });
    client.send(Command::Flush, 0, 0, 0, &[]).expect("sent");
    client.set_read_timeout(Duration::from_secs(3));
    let answer = client.receive();
    assert!(answer.is_err(), "with one copy of three it was answered: {answer:?}");
    ring[one].start();
    client.set_read_timeout(Duration::from_secs(30));
    assert_eq!(client.receive().expect("answered").errno, 0);
    ring[two].start();
    ring.wait_full();
}
