//! Directories that are put back to what they were, or copied to other machines.

use std::time::Duration;

use rand::Rng;

use super::disks::Disks;
use super::fault::{Fault, heal, judge};
use super::net::Machine;
use super::world::World;
use crate::store::SimFs;

/// Whether a machine's directory may go back to its backup.
pub(super) fn can_roll_back(world: &World, victim: Machine) -> bool {
    world.can_lose_disk(victim) && is_outdated(world, victim)
}

/// Whether the others have seen a later process of a machine's node than the one that its backup is of.
pub(super) fn is_outdated(world: &World, machine: Machine) -> bool {
    let backup = world.hosts[machine].backup.as_ref().map(|(_, session)| *session);
    let later = |r: super::process::Running| {
        backup.is_some_and(|s| r.process.node == s.node && r.process.start > s.start)
    };
    world.running(machine).is_some_and(later)
}

/// Copies a machine's directory and starts its sheep again: a process later the copy is older than what the others
/// have seen of the node.
pub(super) fn back_up(world: &mut World, machine: Machine) {
    let session = world.running(machine).map(|r| r.process);
    world.hosts[machine].backup = session.map(|s| (world.hosts[machine].drive().copy(), s));
    world.kill(machine);
    let away = Duration::from_millis(world.rng.random_range(1..100));
    world.hosts[machine].back_at = Some(world.now + away);
}

/// Whether a directory may be copied to a machine: one that is not in use, or that the ring can spare.
pub(super) fn can_be_copied_to(world: &World, fault: Fault, victim: Machine) -> bool {
    let Some(state) = &world.known else { return false };
    // A directory that goes on elsewhere has lost what its machine's kernel had. The copies in the one that makes
    // room for it are lost too, and the third has to be enough.
    let many = fault == Fault::CopyDir || state.slots().all(|(copies, ..)| copies.get() > 2);
    let room = world.hosts[victim].absent || many && world.can_lose_disk(victim);
    room && !world.fragile && !to_copy(world, fault, victim).is_empty()
}

/// Whose directories may be copied. Of one in use only an old copy is found out: one that is older than its process.
fn to_copy(world: &World, fault: Fault, to: Machine) -> Vec<Machine> {
    let may = |m: &Machine| *m != to && world.running(*m).is_some();
    let may = |m: &Machine| may(m) && (fault == Fault::MoveDir || is_outdated(world, *m));
    world.storing().filter(may).collect()
}

/// Starts a copy of somebody's directory on a machine.
pub(super) fn copy_directory(world: &mut World, disks: &Disks, fault: Fault, to: Machine) {
    let from = to_copy(world, fault, to);
    let from = from[world.rng.random_range(0..from.len())];
    heal(world);
    world.story.tell(format!("the directory of {from} is copied to {to}"));
    let disk = if fault == Fault::MoveDir {
        world.kill(from);
        world.hosts[from].node = None;
        let away = Duration::from_millis(world.rng.random_range(1_000..8_000));
        world.hosts[from].back_at = Some(world.now + away);
        judge(world, disks);
        world.hosts[from].drive().copy()
    } else {
        let backup = world.hosts[from].backup.take();
        backup.map_or_else(SimFs::new, |(disk, _)| disk)
    };
    if world.hosts[to].absent {
        world.place_disk(to, disk);
        world.power_on(to);
    } else {
        world.lose_disk(to, disk);
        let away = Duration::from_millis(world.rng.random_range(1..500));
        world.hosts[to].back_at = Some(world.now + away);
    }
    world.hosts[to].copied = true;
}

/// A machine that is not there yet.
pub(super) fn unused(world: &World) -> Option<Machine> {
    world.hosts.iter().position(|h| h.absent)
}
