//! Directories that are put back to what they were, or copied to other machines.

use std::time::Duration;

use rand::Rng;

use super::disks::Disks;
use super::fault::{Fault, heal, judge};
use super::net::Machine;
use super::world::World;
use crate::store::SimFs;
use wire::id::Session;

/// Whether a machine's directory may go back to its backup.
pub(super) fn can_roll_back(world: &World, victim: Machine) -> bool {
    world.can_lose_disk(victim) && is_outdated(world, victim)
}

/// What a directory was at some time.
pub(super) struct Backup {
    pub(super) disk: SimFs,
    /// The process that used it.
    session: Session,
    /// The index up to which it held the log, or a bit less.
    held: u64,
}

/// Whether the others can tell that a machine's backup is one: they have seen a later process of its node, or that
/// its directory held more of the log.
pub(super) fn is_outdated(world: &World, machine: Machine) -> bool {
    let Some(Backup { session, held, .. }) = &world.hosts[machine].backup else { return false };
    let Some(now) = world.running(machine).map(|r| r.process).filter(|p| p.node == session.node) else {
        return false;
    };
    let sees_more = |m| world.running(m).is_some_and(|r| r.ring.leader.is_outdated(now.node, *held));
    now.start > session.start || world.present().any(|m| m != machine && sees_more(m))
}

/// Copies a machine's directory, and may start its sheep again: a process later, or when its log has grown, the copy
/// is older than what the others have seen of the node.
pub(super) fn back_up(world: &mut World, machine: Machine) {
    let Some(session) = world.running(machine).map(|r| r.process) else { return };
    let held = world.last_index(session);
    world.hosts[machine].backup = Some(Backup { disk: world.hosts[machine].drive().copy(), session, held });
    if world.rng.random() {
        return;
    }
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
    let stores =
        fault == Fault::CopyDir || world.hosts[victim].absent || world.storing().any(|m| m == victim);
    let room = stores && (world.hosts[victim].absent || many && world.can_lose_disk(victim));
    room && !world.fragile && !to_copy(world, fault, victim).is_empty()
}

/// Whose directories may be copied. A copy of one in use is found out if it is old, or while the others see the sheep
/// that uses it: if its lease has lapsed, nobody can tell it from the copy.
fn to_copy(world: &World, fault: Fault, to: Machine) -> Vec<Machine> {
    let leased = |m| world.running(m).is_some_and(|r| r.ring.lease.is_valid());
    let found_out = |m| is_outdated(world, m) || leased(m) && world.can_lose_disk(m);
    let may = |m: &Machine| *m != to && world.running(*m).is_some();
    let may = |m: &Machine| may(m) && (fault == Fault::MoveDir || found_out(*m));
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
        let node = world.hosts[from].node.take();
        world.moved.extend(node);
        let away = Duration::from_millis(world.rng.random_range(1_000..8_000));
        world.hosts[from].back_at = Some(world.now + away);
        judge(world, disks);
        world.hosts[from].drive().copy()
    } else {
        let old = is_outdated(world, from).then(|| world.hosts[from].backup.take()).flatten();
        old.map_or_else(|| world.hosts[from].drive().copy(), |backup| backup.disk)
    };
    if world.hosts[to].absent {
        world.spare_disks();
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
