//! Who looks after the ring: removes nodes whose directories are no more, retires machines, has rot mended.

use std::time::Duration;

use rand::Rng;

use super::net::Machine;
use super::world::World;
use crate::cluster::entry::ClusterEntry;
use crate::replica::{key_of, ref_of};
use crate::store::{ObjectKey, SimFs};
use wire::checksum::BLOCK_SIZE;
use wire::id::NodeId;
use wire::peer::ObjectRef;

/// How often the operator looks.
const EVERY_MS: u128 = 500;
/// How long to wait for the log.
const PATIENCE: Duration = Duration::from_secs(2);

/// A machine on its way out.
#[derive(Debug, Clone, Copy)]
pub(super) struct Retiring {
    machine: Machine,
    node: NodeId,
}

/// Whether a machine can be spared: others have room for its copies.
pub(super) fn can_retire(world: &World, machine: Machine) -> bool {
    let copies = world.copies as usize;
    let enough = world.storing().filter(|m| world.is_up(*m)).count() > copies;
    enough && world.retiring.is_none() && world.storing().any(|m| m == machine)
}

/// Begins to move everything off a machine.
pub(super) fn retire(world: &mut World, machine: Machine) {
    world.retiring = world.running(machine).map(|r| Retiring { machine, node: r.node });
}

/// Looks, and does the next thing that there is to do.
pub(super) fn look(world: &mut World) {
    if !world.now.as_millis().is_multiple_of(EVERY_MS) {
        return;
    }
    let Some(state) = world.known.clone() else { return };
    world.gone.retain(|node| state.node(*node).is_some());
    for node in world.gone.clone() {
        propose(world, ClusterEntry::Remove { node });
    }
    mend(world);
    let Some(Retiring { machine, node }) = world.retiring else { return };
    match state.node(node) {
        // Removed, or its machine has another disk by now.
        None => {
            world.retiring = None;
            if world.hosts[machine].node == Some(node) {
                world.story.tell(format!("machine {machine} is retired and begins anew"));
                world.lose_disk(machine, SimFs::new());
                world.hosts[machine].back_at = Some(world.now + PATIENCE);
            }
        }
        Some(_) if world.hosts[machine].node != Some(node) => world.retiring = None,
        Some(known) if !known.draining => propose(world, ClusterEntry::Drain { node, on: true }),
        Some(_) => {
            let held = state.slots().any(|(_, _, config)| config.on_node(node).is_some());
            if !held {
                propose(world, ClusterEntry::Remove { node });
            }
        }
    }
}

/// Something on a disk that is not as it was written.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rotten {
    machine: Machine,
    object: ObjectRef,
}

/// Flips a bit of a block that a machine stores.
pub(super) fn rot(world: &mut World, machine: Machine) {
    let Some(store) = world.running(machine).and_then(|r| r.replica).map(|r| r.store().clone()) else {
        return;
    };
    let mut blocks = Vec::new();
    for (copies, slot) in store.list_slots() {
        for stat in store.list_slot(copies, slot).unwrap_or_default() {
            let key = ObjectKey { copies, slot, oid: stat.oid, birth: stat.birth };
            let table = store.table(&key).unwrap_or_default();
            let there = (0u32..).zip(table).filter(|(_, entry)| entry.is_present());
            blocks.extend(there.map(|(index, _)| (key, index)));
        }
    }
    if blocks.is_empty() {
        return;
    }
    let (key, block) = blocks[world.rng.random_range(0..blocks.len())];
    let Ok((path, offset)) = store.place_of(&key, block) else { return };
    let bit = offset * 8 + world.rng.random_range(0..BLOCK_SIZE as u64 * 8);
    if world.hosts[machine].drive().flip_bit(&path, bit).is_ok() {
        world.story.tell(format!("a bit flips at {machine}, in block {block} of {key}"));
        let size = store.size(&key).unwrap_or_default();
        world.rotten = Some(Rotten { machine, object: ref_of(&key, size) });
    }
}

/// Sees whether what is rotten has been mended, and has it checked, as `dog vdi check --repair` does.
fn mend(world: &mut World) {
    let Some(Rotten { machine, object }) = world.rotten else { return };
    let Ok(key) = key_of(&object) else { return };
    let store = world.running(machine).and_then(|r| r.replica).map(|r| r.store().clone());
    let verified = store.map(|store| store.verify(&key));
    let gone = matches!(verified, None | Some(Err(crate::store::Error::NotFound(_))));
    if gone || verified.is_some_and(|found| found.is_ok_and(|damaged| damaged.is_empty())) {
        world.story.tell(format!("{key} at {machine} is mended"));
        world.rotten = None;
        return;
    }
    let Some(state) = world.known.clone() else { return };
    let Some(vdi) = state.vdi(key.oid.creator()) else { return };
    let Ok(name) = vdi.name.as_str().parse() else { return };
    let at = world.rng.random_range(0..world.hosts.len());
    let (Some(running), Some(process)) = (world.running(at), &world.hosts[at].process) else { return };
    drop(process.spawn(async move {
        let handle = running.gateway.open(&name, "check").await.ok()?;
        let owner = running.gateway.owners.get(handle.vdi);
        let checked = match owner {
            Some(owner) => Some(owner.check_object(object, true).await),
            None => None,
        };
        handle.close().await;
        checked
    }));
}

/// Asks any sheep that runs to do it; whether it did is seen in the ring's state.
pub(super) fn propose(world: &mut World, entry: ClusterEntry) {
    let machine = world.rng.random_range(0..world.hosts.len());
    let Some(running) = world.running(machine) else { return };
    let Some(process) = &world.hosts[machine].process else { return };
    let log = running.ring.log.clone();
    drop(process.spawn(async move { log.propose(entry, PATIENCE).await }));
}
