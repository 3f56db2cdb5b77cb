//! The VDIs: what clients were promised of each, and who creates and deletes them.
//!
//! The first is there from the founding to the end. Others come and go under faults, with names that are used
//! again. Whoever asks for a creation or deletion asks again until the ring's state shows it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rand::Rng;
use wire::id::VdiId;
use wire::policy::Copies;

use super::operator::propose;
use super::oracle::Oracle;
use super::world::World;
use crate::cluster::entry::ClusterEntry;
use crate::machine::wall_ms;

/// How often somebody asks again.
const EVERY_MS: u128 = 400;
/// How long to wait for the log.
const PATIENCE: Duration = Duration::from_secs(2);
/// More are not created.
const DISKS_MAX: usize = 3;
/// The name of the one that is never deleted.
pub(super) const FIRST: &str = "disk";
/// Those of the others.
const OTHERS: [&str; 2] = ["other", "third"];

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// What a VDI may be like: its size in bytes, and where work is done: first sector and how many. Few
/// sectors, so that clients meet, across the borders of objects, blocks and pages of the map.
struct Shape {
    size: u64,
    places: &'static [(u64, u64)],
}

/// Three objects and a bit.
const MIDDLE: Shape = Shape {
    size: 12 * MIB + 512 * KIB,
    places: &[(0, 24), (4 * MIB / 512 - 12, 24), (8 * MIB / 512 + 96, 16), (12 * MIB / 512 + 8, 8)],
};
/// Its map has two levels.
const LARGE: Shape = Shape {
    size: 4 * GIB + 9 * MIB,
    places: &[(0, 12), (4 * GIB / 512 - 8, 16), (4 * GIB / 512 + 8 * MIB / 512 + 3, 9)],
};
/// Less than an object.
const SMALL: Shape = Shape { size: MIB + 512, places: &[(0, 12), (MIB / 512 - 7, 8)] };
const SHAPES: [&Shape; 3] = [&MIDDLE, &LARGE, &SMALL];

/// One VDI.
pub(super) struct Disk {
    pub(super) id: VdiId,
    pub(super) name: String,
    pub(super) size: u64,
    pub(super) copies: Copies,
    pub(super) places: &'static [(u64, u64)],
    pub(super) oracle: Mutex<Oracle>,
}

struct Wanted {
    name: String,
    shape: &'static Shape,
    copies: Copies,
}

/// All VDIs.
pub(super) struct Disks {
    there: Vec<Arc<Disk>>,
    creating: Option<Wanted>,
    deleting: Option<Arc<Disk>>,
    /// Those that have been deleted.
    pub(super) ended: Vec<Arc<Disk>>,
}

impl Disks {
    /// Only the first.
    pub(super) fn new(copies: Copies) -> Self {
        let creating = Some(Wanted { name: FIRST.to_owned(), shape: &MIDDLE, copies });
        Self { there: Vec::new(), creating, deleting: None, ended: Vec::new() }
    }

    /// Those that are there.
    pub(super) fn there(&self) -> &[Arc<Disk>] {
        &self.there
    }

    /// All that ever were.
    pub(super) fn all(&self) -> impl Iterator<Item = &Arc<Disk>> {
        self.there.iter().chain(&self.ended)
    }

    /// One that a client may go to. The first is preferred: there clients meet.
    pub(super) fn choose(&self, rng: &mut impl Rng) -> Option<Arc<Disk>> {
        let deleting = self.deleting.as_ref().map(|d| d.id);
        let open: Vec<_> = self.there.iter().filter(|d| Some(d.id) != deleting).collect();
        let first = open.len() > 1 && rng.random_bool(0.4);
        let at = if first || open.is_empty() { 0 } else { rng.random_range(0..open.len()) };
        open.get(at).map(|disk| (*disk).clone())
    }

    /// Whether nothing is being created or deleted.
    pub(super) fn are_settled(&self) -> bool {
        self.creating.is_none() && self.deleting.is_none()
    }

    pub(super) fn can_create(&self) -> bool {
        self.are_settled() && self.there.len() < DISKS_MAX
    }

    pub(super) fn can_delete(&self) -> bool {
        self.are_settled() && self.there.len() > 1
    }

    /// Somebody wants another VDI.
    pub(super) fn create(&mut self, world: &mut World) {
        let taken: BTreeSet<&str> = self.there.iter().map(|d| d.name.as_str()).collect();
        let free = OTHERS.into_iter().find(|name| !taken.contains(name));
        let shape = SHAPES[world.rng.random_range(0..SHAPES.len())];
        let copies = if world.rng.random() { world.copies } else { world.rng.random_range(2..=3) };
        let copies = Copies::new(copies.into()).expect("a few copies");
        self.creating = free.map(|name| Wanted { name: name.to_owned(), shape, copies });
    }

    /// Somebody wants to be rid of a VDI, whoever is at work there.
    pub(super) fn delete(&mut self, world: &mut World) {
        let at = world.rng.random_range(1..self.there.len());
        world.story.tell(format!("VDI {} is to be deleted", self.there[at].id));
        self.deleting = Some(self.there[at].clone());
    }

    /// Sees whether what was wanted has come about, and asks for it again.
    pub(super) fn look(&mut self, world: &mut World) {
        let Some(state) = world.known.clone() else { return };
        let again = world.now.as_millis().is_multiple_of(EVERY_MS);
        if self.are_settled() && !again {
            return;
        }
        // One that was asked for twice may come about twice, if it was deleted in between.
        for vdi in state.vdis().filter(|v| !self.there.iter().any(|d| d.id == v.id)).collect::<Vec<_>>() {
            world.story.tell(format!("VDI {} is there: {}, {} copies", vdi.id, vdi.name, vdi.copies));
            let places = SHAPES.iter().find(|s| s.size == vdi.size).map_or(&[][..], |shape| shape.places);
            let (id, name, size) = (vdi.id, vdi.name.to_string(), vdi.size);
            let oracle = Mutex::new(Oracle::new(id.0));
            self.creating.take_if(|wanted| wanted.name == name);
            self.there.push(Arc::new(Disk { id, name, size, copies: vdi.copies, places, oracle }));
        }
        if let Some(Wanted { name, shape, copies }) = self.creating.as_ref().filter(|_| again) {
            let (name, size, copies) = (name.parse().expect("a name"), shape.size, Some(*copies));
            propose(world, ClusterEntry::CreateVdi { name, size, copies, now_ms: wall_ms() });
        }
        let Some(id) = self.deleting.as_ref().map(|d| d.id) else { return };
        if state.is_deleted(id) {
            world.story.tell(format!("VDI {id} is deleted"));
            self.there.retain(|d| d.id != id);
            self.ended.extend(self.deleting.take());
        } else if again {
            delete(world, id);
        }
    }
}

/// As `dog vdi delete`, but for asking first who has it open.
fn delete(world: &mut World, vdi: VdiId) {
    let machine = world.rng.random_range(0..world.hosts.len());
    let Some(running) = world.running(machine) else { return };
    let Some(process) = &world.hosts[machine].process else { return };
    drop(process.spawn(async move {
        if running.gateway.release(vdi).await.is_ok() {
            _ = running.ring.log.propose(ClusterEntry::DeleteVdi { vdi }, PATIENCE).await;
        }
    }));
}
