//! Who looks after the ring: removes nodes whose directories are no more, and retires machines.

use std::time::Duration;

use rand::Rng;

use super::net::Machine;
use super::world::World;
use crate::cluster::entry::ClusterEntry;
use crate::store::SimFs;
use wire::id::NodeId;

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

/// Asks any sheep that runs to do it; whether it did is seen in the ring's state.
fn propose(world: &mut World, entry: ClusterEntry) {
    let machine = world.rng.random_range(0..world.hosts.len());
    let Some(running) = world.running(machine) else { return };
    let Some(process) = &world.hosts[machine].process else { return };
    let log = running.ring.log.clone();
    drop(process.spawn(async move { log.propose(entry, PATIENCE).await }));
}
