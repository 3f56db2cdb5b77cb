//! Power cuts at any point: flushed data stays, the rest is old or new per sector, nothing is unreadable.

use std::collections::{HashMap, HashSet};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::super::Created;
use super::*;

const BLOCKS: u64 = 66;

/// What each sector, and the version, of one object may be.
#[derive(Clone)]
struct Model {
    now: Vec<u8>,
    sectors: Vec<HashSet<Vec<u8>>>,
    versions: HashSet<u64>,
}

impl Model {
    fn new() -> Self {
        let now = vec![0; (BLOCKS * BLOCK) as usize];
        let mut model = Self { now, sectors: Vec::new(), versions: HashSet::new() };
        model.settle_at(0);
        model
    }

    /// Only what it is now, from now on.
    fn settle_at(&mut self, seq: u64) {
        self.sectors = self.now.chunks(512).map(|sector| HashSet::from([sector.to_vec()])).collect();
        self.versions = HashSet::from([seq]);
    }

    fn write(&mut self, write: &Write) {
        let range = write.offset as usize..(write.offset + write.len()) as usize;
        match &write.kind {
            WriteKind::Data { data, .. } => self.now[range.clone()].copy_from_slice(data),
            WriteKind::Zero { .. } => self.now[range.clone()].fill(0),
        }
        for index in range.start / 512..range.end.div_ceil(512) {
            self.sectors[index].insert(self.now[index * 512..][..512].to_vec());
        }
        self.versions.insert(write.version.seq);
    }

    fn check(&self, bytes: &[u8], seq: u64) {
        for (index, sector) in bytes.chunks(512).enumerate() {
            assert!(self.sectors[index].contains(sector), "sector {index}");
        }
        assert!(self.versions.contains(&seq), "version {seq} is none of {:?}", self.versions);
    }
}

fn random_write(rng: &mut StdRng, seq: u64) -> Write {
    let size = BLOCKS * BLOCK;
    let (offset, len) = if rng.random() {
        (rng.random_range(0..BLOCKS) * BLOCK, rng.random_range(1..5) * BLOCK)
    } else {
        (rng.random_range(0..size), rng.random_range(1..9000))
    };
    let len = len.min(size - offset);
    match rng.random_range(0..4) {
        0 => zero(seq, offset, len, rng.random()),
        _ => data(seq, offset, (0..len).map(|_| rng.random()).collect()),
    }
}

fn cut_and_check(seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let fs = SimFs::new();
    let mut store = open(&fs);
    let keys: Vec<ObjectKey> = (0..3).map(key).collect();
    let mut models: HashMap<ObjectKey, Model> = HashMap::new();
    let mut seq = 0;
    for round in 0..4u64 {
        for key in &keys {
            store.create(key, (BLOCKS * BLOCK) as u32).expect("created");
            models.entry(*key).or_insert_with(Model::new);
        }
        for _ in 0..rng.random_range(1..20) {
            let key = keys[rng.random_range(0..keys.len())];
            let model = models.get_mut(&key).expect("created");
            if rng.random_range(0..6) == 0 {
                store.flush_objects(&[key]).expect("flushed");
                let seq = store.version(&key).expect("whole").seq;
                model.settle_at(seq);
            } else {
                seq += 1;
                let write = random_write(&mut rng, seq);
                model.write(&write);
                store.write(&key, &write).expect("written");
            }
            if rng.random_range(0..8) == 0 {
                (0..20).for_each(|_| store.tick().expect("ticks"));
            }
        }
        drop(store);
        fs.power_cut(seed ^ round);
        store = open(&fs);
        settle(&store);
        for (key, model) in &mut models {
            let bytes = read_all(&store, key).expect("readable once settled");
            let found = store.version(key).expect("whole").seq;
            model.check(&bytes, found);
            assert_eq!(store.verify(key).expect("readable"), [0u32; 0]);
            model.now = bytes;
            store.flush_objects(&[*key]).expect("flushed");
            model.settle_at(found);
        }
        if rng.random() {
            // All is durable and idle, so the next writes find no marks.
            (0..20).for_each(|_| store.tick().expect("ticks"));
            assert_eq!(store.intents(), []);
        }
    }
}

#[test]
fn flushed_data_survives_and_the_rest_is_old_or_new_per_sector() {
    for seed in 0..40 {
        cut_and_check(seed);
    }
}

/// What a run had acknowledged when the machine stopped.
#[derive(Default)]
struct Acked {
    created: Vec<ObjectKey>,
    flushed: bool,
    removed: bool,
    sealed: u64,
}

fn script(fs: &SimFs, acked: &mut Acked) -> Result<(), Error> {
    let store = try_open(fs)?;
    for index in 0..2 {
        store.create(&key(index), 8192)?;
        acked.created.push(key(index));
    }
    store.write(&key(0), &data(1, 0, block(1)))?;
    store.seal(VdiId(1), Generation(7))?;
    acked.sealed = 7;
    store.write(&key(1), &data(1, 4096, block(2)))?;
    store.flush_all()?;
    acked.flushed = true;
    store.write(&key(0), &data(2, 0, block(3)))?;
    store.create(&key(2), 8192)?;
    acked.created.push(key(2));
    store.remove(&key(2))?;
    acked.removed = true;
    (0..20).try_for_each(|_| store.tick())?;
    store.close()
}

#[test]
fn every_crash_point_leaves_what_was_acknowledged() {
    let fs = SimFs::new();
    script(&fs, &mut Acked::default()).expect("runs");
    let calls = fs.calls();
    assert!(calls > 60, "{calls}");
    for point in 0..calls {
        for seed in 0..6 {
            let fs = SimFs::new();
            let mut acked = Acked::default();
            fs.halt_after(point);
            script(&fs, &mut acked).expect_err("stopped");
            fs.power_cut(seed);
            // The power may fail again while the store comes up.
            fs.halt_after(seed * 5);
            drop(try_open(&fs));
            fs.power_cut(seed + 1);
            check(&fs, &acked);
        }
    }
}

fn check(fs: &SimFs, acked: &Acked) {
    let store = open(fs);
    assert_eq!(store.intent_damage(), None);
    settle(&store);
    let removing = acked.created.len() == 3;
    for key in acked.created.iter().take(2) {
        assert!(store.exists(key).expect("listed"), "{key} is gone");
    }
    if acked.removed {
        assert!(!store.exists(&key(2)).expect("listed"), "removed for good");
    }
    for index in 0..3 {
        // Whole or not there.
        match read_all(&store, &key(index)) {
            Ok(bytes) => assert_eq!(bytes.len(), 8192),
            Err(Error::NotFound(_)) => {
                assert!(index == 2 && removing || acked.created.len() <= index as usize)
            }
            Err(error) => panic!("{error}"),
        }
    }
    if acked.flushed {
        assert_eq!(read_all(&store, &key(1)).expect("flushed")[4096..], block(2));
        let first = read_all(&store, &key(0)).expect("flushed");
        for (at, sector) in first[..4096].chunks(512).enumerate() {
            assert!([&block(1)[at * 512..][..512], &block(3)[at * 512..][..512]].contains(&sector));
        }
    }
    assert!(store.sealed(VdiId(1)).0 >= acked.sealed);
    // What a crash left of a creation does not stand in its way.
    for index in 0..3 {
        store.create(&key(index), 8192).expect("created");
    }
}

#[test]
fn a_flush_covers_what_an_earlier_process_wrote() {
    let fs = SimFs::new();
    let store = open(&fs);
    store.create(&key(0), 8192).expect("created");
    store.write(&key(0), &data(1, 0, block(1))).expect("written");
    drop(store);
    fs.process_kill();
    let store = open(&fs);
    store.flush_vdi(key(0).creator()).expect("flushed");
    drop(store);
    fs.power_cut(3);
    let store = open(&fs);
    assert_eq!(read_all(&store, &key(0)).expect("read")[..4096], block(1));
    assert_eq!(store.version(&key(0)).expect("whole"), version(1));
}

#[test]
fn a_creation_that_a_killed_process_left_is_durable_once_repeated() {
    // The kill comes between the rename and the sync of the directory, for one of these points.
    for point in 0..80 {
        for seed in 0..4 {
            let fs = SimFs::new();
            let store = open(&fs);
            fs.halt_after(point);
            if store.create(&key(0), 8192).is_ok() {
                continue;
            }
            drop(store);
            fs.process_kill();
            let store = open(&fs);
            let created = store.create(&key(0), 8192).expect("created");
            assert!(matches!(created, Created::New | Created::Existed));
            drop(store);
            fs.power_cut(seed);
            assert!(open(&fs).exists(&key(0)).expect("listed"), "point {point}");
        }
    }
}

#[test]
fn the_simulated_disk_loses_what_was_not_flushed() {
    // Otherwise the tests above would prove nothing.
    let lost = (0..20).any(|seed| {
        let fs = SimFs::new();
        let store = open(&fs);
        store.create(&key(0), 8192).expect("created");
        store.write(&key(0), &data(1, 0, block(1))).expect("written");
        drop(store);
        fs.power_cut(seed);
        let store = open(&fs);
        settle(&store);
        read_all(&store, &key(0)).expect("readable")[..4096] != block(1)
    });
    assert!(lost);
}
