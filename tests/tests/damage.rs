//! Files that are damaged or deleted, while the sheep is down or runs: found, healed, and never other data.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};
use tests::client::{Client, Command};
use tests::cluster::Ring;
use tests::tool;
use tests::wait;

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

/// What the entry of a block that was written says is turned into something else.
fn damage_entry(path: &Path, block: u64) {
    let file = fs::OpenOptions::new().read(true).write(true).open(path).expect("opens");
    let mut byte = [0];
    file.read_exact_at(&mut byte, 4096 + block * 8).expect("read");
    file.write_all_at(&[byte[0] ^ 0x40], 4096 + block * 8).expect("flipped");
}

#[test]
fn a_damaged_block_table_on_any_one_copy_holds_up_nobody() {
    let mut ring = Ring::formatted(3);
    ring.create("vol", "64M");
    let mut client = ring.open(0, "vol");
    for object in 0..16u64 {
        client.write(object << 22, &DATA).expect("written");
    }
    // Half of the objects on one copy, half on another: whichever a new owner asks first, it meets some of them.
    for index in [1, 2] {
        ring[index].terminate();
        for path in data_files(&ring[index].dir).iter().skip(index - 1).step_by(2) {
            damage_entry(path, 5);
        }
        ring[index].start();
        ring.wait_full();
    }
    assert_eq!(ring.owner("vol"), Some(0));
    // Through another sheep, and all at once: nothing has told the copies yet that these are done, so the next
    // owner compares all of them.
    let mut other = ring.open(1, "vol");
    for object in 0..16u64 {
        other.send(Command::Write, 0, (object << 22) + (1 << 20), 4096, &[7; 4096]).expect("sent");
    }
    for _ in 0..16 {
        assert_eq!(other.receive().expect("answered").errno, 0);
    }
    ring[0].kill();
    let mut client = ring.open(1, "vol");
    client.set_read_timeout(Duration::from_secs(20));
    for object in 0..16u64 {
        assert_eq!(client.read(object << 22, DATA.len() as u32).expect("read"), DATA, "object {object}");
        assert_eq!(client.read((object << 22) + (1 << 20), 4096).expect("read"), [7; 4096]);
    }
    ring[0].start();
    ring.wait_full();
    ring.dog(0, &["vdi", "check", "vol", "--repair"]);
    ring.dog(0, &["cluster", "check", "--deep"]).ok();
}

/// As the check names the object that a file holds.
fn oid(path: &Path) -> String {
    let name = path.file_name().expect("a file").to_string_lossy();
    name.split('.').next().expect("a name").to_owned()
}

fn overwrite(path: &Path, at: u64, len: usize) {
    let file = fs::OpenOptions::new().write(true).open(path).expect("opens");
    file.write_all_at(&vec![0xa5; len], at).expect("written");
}

/// By a check of the VDI and by one of everything.
#[track_caller]
fn assert_found(ring: &Ring, oid: &str, what: &str) {
    for check in [&["vdi", "check", "vol"][..], &["cluster", "check", "--deep"]] {
        let found = ring.dog(0, check).exits(4);
        assert!(found.stdout.contains(oid), "{what} of {oid}: {found}");
    }
}

type Harm = (&'static str, fn(&Path));

const HARMS: [Harm; 6] = [
    ("deleted", |path| fs::remove_file(path).expect("removed")),
    ("another file", |path| {
        let copy = path.with_extension("copy");
        fs::copy(path, &copy).expect("copied");
        fs::rename(&copy, path).expect("renamed");
    }),
    ("header", |path| overwrite(path, 16, 8)),
    ("version", |path| overwrite(path, 512, 8)),
    ("block table", |path| overwrite(path, 4096, 64)),
    ("everything", |path| overwrite(path, 0, 65536)),
];

#[test]
fn what_is_done_to_files_of_a_running_sheep_is_found_and_mended() {
    let mut ring = Ring::formatted(3);
    ring.create("vol", "64M");
    let mut client = ring.open(0, "vol");
    for object in 0..4u64 {
        client.write(object << 22, &DATA).expect("written");
    }
    client.flush().expect("flushed");
    let good = ring.digest(0, "vol");
    ring.dog(0, &["cluster", "check", "--deep"]).ok();
    for (number, (what, harm)) in HARMS.into_iter().enumerate() {
        let path = &data_files(&ring[number % 3].dir)[number % 4];
        harm(path);
        assert_found(&ring, &oid(path), what);
        let repaired = ring.dog(0, &["vdi", "check", "vol", "--repair"]).ok();
        assert!(repaired.stdout.contains("[repaired]"), "{what}: {repaired}");
        ring.dog(0, &["cluster", "check", "--deep"]).ok();
        client.write((3 << 22) + 4096, &DATA[..4096]).expect("written");
    }
    drop(client);
    // What was put back is on disk.
    for index in 0..3 {
        ring[index].kill();
        ring[index].start();
        ring.wait_full();
    }
    for index in 0..3 {
        assert_eq!(ring.digest(index, "vol"), good, "through {index}");
    }
    ring.dog(0, &["cluster", "check", "--deep"]).ok();
}

#[test]
fn the_only_copy_is_put_back_from_memory() {
    let mut ring = Ring::local();
    ring.dog(0, &["cluster", "format", "-c", "1"]).ok();
    ring.create("vol", "64M");
    ring.open(0, "vol").write(0, &DATA).expect("written");
    for (what, harm) in &HARMS[..5] {
        let path = &data_files(&ring[0].dir)[0];
        harm(path);
        assert_found(&ring, &oid(path), what);
        ring.dog(0, &["vdi", "check", "vol", "--repair"]).ok();
        ring[0].kill();
        ring[0].start();
        assert_eq!(ring.open(0, "vol").read(0, DATA.len() as u32).expect("read"), DATA, "{what}");
        wait::until(Duration::from_secs(10), "clean, by a sheep that is sure of the ring", || {
            let output = ring.dog(0, &["cluster", "check", "--deep"]);
            if output.status == 0 { Ok(()) } else { Err(output) }
        });
    }
}

/// Two copies of an object, of which the second was away while something else in it was written, and so catches
/// up, once recovery is let go on. The numbers of their sheep.
fn one_in_sync(ring: &mut Ring) -> (usize, usize) {
    ring.dog(0, &["vdi", "create", "vol", "64M", "-c", "2"]).ok();
    let mut client = ring.open(0, "vol");
    client.write(0, &DATA).expect("written");
    drop(client);
    let holders: Vec<usize> = (0..3).filter(|index| !data_files(&ring[*index].dir).is_empty()).collect();
    let [stays, leaves] = holders[..] else { panic!("{holders:?}") };
    ring.dog(0, &["node", "recovery", "--pause"]).ok();
    ring[leaves].terminate();
    ring.open(stays, "vol").write(1 << 20, &[7; 4096]).expect("written");
    (stays, leaves)
}

fn assert_whole(ring: &Ring, expected: &[u8]) {
    ring.dog(0, &["node", "recovery", "--resume"]).ok();
    ring.wait_full();
    for index in 0..3 {
        let mut client = ring.open(index, "vol");
        assert_eq!(client.read(0, DATA.len() as u32).expect("read"), expected, "through {index}");
        assert_eq!(client.read(1 << 20, 4096).expect("read"), [7; 4096], "through {index}");
    }
    ring.dog(0, &["cluster", "check", "--deep"]).ok();
}

#[test]
fn a_copy_that_catches_up_lends_a_block_whose_entry_is_damaged() {
    let mut ring = Ring::formatted(3);
    let (stays, leaves) = one_in_sync(&mut ring);
    ring[stays].terminate();
    damage_entry(&data_files(&ring[stays].dir)[0], 5);
    ring.start_all();
    assert!(ring[stays].is_running() && ring[leaves].is_running());
    assert_whole(&ring, &DATA);
}

#[test]
fn a_copy_that_catches_up_lends_a_block_that_a_write_waits_for() {
    let mut ring = Ring::formatted(3);
    let (stays, leaves) = one_in_sync(&mut ring);
    overwrite(&data_files(&ring[stays].dir)[0], 12288 + 5 * 4096, 4096);
    ring[leaves].start();
    let mut client = ring.open(stays, "vol");
    // A part of the damaged block: the rest of it is nowhere but on the copy that catches up.
    client.send(Command::Write, 0, 5 * 4096, 512, &[9; 512]).expect("sent");
    std::thread::sleep(Duration::from_millis(500));
    ring.dog(0, &["node", "recovery", "--resume"]).ok();
    client.set_read_timeout(Duration::from_secs(20));
    assert_eq!(client.receive().expect("answered").errno, 0);
    let mut expected = DATA.to_vec();
    expected[5 * 4096..][..512].fill(9);
    assert_whole(&ring, &expected);
}

#[test]
fn what_a_crash_tore_everywhere_is_settled_although_nobody_opens_it() {
    let mut ring = Ring::formatted(3);
    ring.create("vol", "64M");
    let mut client = ring.open(0, "vol");
    client.write(0, &DATA).expect("written");
    (0..3).for_each(|index| ring[index].kill());
    for index in 0..3 {
        overwrite(&data_files(&ring[index].dir)[0], 12288 + 5 * 4096, 512);
    }
    ring.start_all();
    // Whoever came back first is in sync, and the others are to become equal to what it calls damaged.
    ring.wait_full();
    ring.dog(0, &["cluster", "check", "--deep"]).ok();
    let read = ring.open(1, "vol").read(0, DATA.len() as u32).expect("read");
    let (before, torn) = (&read[..5 * 4096], &read[5 * 4096..6 * 4096]);
    assert_eq!(before, &DATA[..5 * 4096]);
    assert_eq!((&torn[..512], &torn[512..]), (&[0xa5; 512][..], &DATA[5 * 4096 + 512..6 * 4096]));
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
    ring.wait_removed(0, &old);
    ring.wait_full();
    assert_eq!(ring.open(2, "vol").read(0, DATA.len() as u32).expect("read"), DATA);
    ring.assert_same_everywhere("vol");
}

#[test]
fn a_directory_in_which_a_sync_has_failed_is_refused_until_the_machine_restarts() {
    let mut ring = Ring::local();
    ring.dog(0, &["cluster", "format", "-c", "1"]).ok();
    ring.create("vol", "64M");
    ring[0].kill();
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").expect("read");
    let boot: String = boot.chars().filter(char::is_ascii_hexdigit).collect();
    let dir = ring[0].dir.clone();
    let note = dir.join(format!("sync-failed.{boot}"));
    fs::rename(dir.join("sync-note"), &note).expect("every start leaves one to be renamed");
    fs::write(&note, "objects: Input/output error\n").expect("written");
    let said = ring[0].try_start().expect_err("nobody knows what is on the disk").stderr;
    for part in [
        "objects: Input/output error",
        "restart the machine",
        "replace the disk",
        &note.display().to_string(),
    ] {
        assert!(said.contains(part), "{part:?} is not in {said}");
    }
    // As after a restart of the machine.
    let earlier = dir.join(format!("sync-failed.{}", "0".repeat(boot.len())));
    fs::rename(&note, &earlier).expect("renamed");
    ring[0].start();
    assert!(!earlier.exists() && dir.join("sync-note").exists());
    assert_eq!(ring.dog_json(0, &["vdi", "list"]).as_array().map(Vec::len), Some(1));
}
