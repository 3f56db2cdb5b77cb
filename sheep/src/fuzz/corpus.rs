//! Every target over the files kept for it, and over mutations of them: the same ones each time.
//!
//! This is no search, which is what `make fuzz` does. It finds a target that has gone out of step with what it
//! drives, and keeps what a search has found found.

use std::path::{Path, PathBuf};
use std::{fs, thread};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::{TARGETS, Target};

/// More would be slow to look through, and to clone.
const FILES_MAX: usize = 100;
const FILE_LEN_MAX: u64 = 4096;
/// Mutations of each target's files: a few seconds' worth.
const MUTATIONS: u64 = 2000;
/// Of those whose inputs are calls to a whole node.
const MUTATIONS_OF_CALLS: u64 = 100;

fn target(name: &str) -> &'static Target {
    TARGETS.iter().find(|target| target.name == name).expect("it is in the table")
}

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(name)
}

/// The files kept for a target, in an order that does not depend on the file system.
fn kept(name: &str) -> Vec<Vec<u8>> {
    let folder = folder(name);
    let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("readable").path()).collect();
    paths.sort();
    assert!((1..FILES_MAX).contains(&paths.len()), "{} files in {}", paths.len(), folder.display());
    paths
        .iter()
        .map(|path| {
            let len = fs::metadata(path).expect("there").len();
            assert!(len <= FILE_LEN_MAX, "{} has {len} bytes", path.display());
            fs::read(path).expect("readable")
        })
        .collect()
}

/// Says which input it was, if it does not come to its end.
struct Shown<'a>(&'a Target, &'a [u8]);

impl Drop for Shown<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("{}: this input fails: \"{}\"", self.0.name, self.1.escape_ascii());
        }
    }
}

fn feed(target: &Target, input: &[u8]) {
    let _shown = Shown(target, input);
    (target.run)(input);
}

/// A few changes of one file, perhaps with a piece of another.
fn mutated(files: &[Vec<u8>], rng: &mut StdRng) -> Vec<u8> {
    let mut bytes = files[rng.random_range(0..files.len())].clone();
    for _ in 0..rng.random_range(1..5) {
        let at = rng.random_range(0..=bytes.len());
        let end = rng.random_range(at..=bytes.len().min(at + 16));
        match rng.random_range(0..6) {
            0 if at < bytes.len() => bytes[at] ^= 1 << rng.random_range(0..8),
            1 if at < bytes.len() => {
                bytes[at] = [0, 1, 0x7f, 0x80, 0xff, rng.random()][rng.random_range(0..6)]
            }
            2 => drop(bytes.drain(at..end)),
            3 => {
                let copy = bytes[at..end].to_vec();
                bytes.splice(at..at, copy);
            }
            4 => {
                let other = &files[rng.random_range(0..files.len())];
                let from = rng.random_range(0..=other.len());
                let to = rng.random_range(from..=other.len().min(from + 64));
                bytes.splice(at..end, other[from..to].iter().copied());
            }
            _ => {
                let number: [u8; 4] = rng.random();
                let len = rng.random_range(1..=4);
                bytes.splice(at..end, number[..len].iter().copied());
            }
        }
    }
    bytes.truncate(FILE_LEN_MAX as usize);
    bytes
}

fn run(name: &str, mutations: u64) {
    let (target, files) = (target(name), kept(name));
    feed(target, &[]);
    files.iter().for_each(|file| feed(target, file));
    for seed in 0..mutations {
        feed(target, &mutated(&files, &mut StdRng::seed_from_u64(seed)));
    }
}

macro_rules! over_its_corpus {
    ($($name:ident: $mutations:expr,)*) => {
        $(
            #[test]
            fn $name() {
                run(stringify!($name), $mutations);
            }
        )*

        #[test]
        fn every_target_has_a_test_and_a_corpus() {
            let tested = [$(stringify!($name)),*];
            assert!(TARGETS.iter().map(|target| target.name).eq(tested));
            let mut folders: Vec<_> = fs::read_dir(folder("")).expect("there").flatten().map(|e| e.file_name()).collect();
            let mut names = tested.map(std::ffi::OsString::from);
            folders.sort();
            names.sort();
            assert_eq!(folders, names);
        }
    };
}

over_its_corpus! {
    nbd_options: MUTATIONS,
    nbd_requests: MUTATIONS,
    peer_frames: MUTATIONS,
    peer_messages: MUTATIONS,
    peer_forwards: MUTATIONS_OF_CALLS,
    log_messages: MUTATIONS,
    log_store: MUTATIONS,
    cluster_entries: MUTATIONS,
    object_files: MUTATIONS,
    slot_files: MUTATIONS,
    admin_requests: MUTATIONS_OF_CALLS,
    identity: MUTATIONS,
}
