//! What has to hold once all is well: every VDI reads as promised through every sheep, its copies are the same
//! and where they belong, nothing is left over, and everybody knows the same.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rand::Rng;
use wire::id::{Birth, Oid, SlotIndex, Version};
use wire::policy::Copies;

use super::client::{Client, Desk};
use super::disks::{Disk, Disks};
use super::net::Machine;
use super::process::{DIR, Running};
use super::world::World;
use crate::cluster::state::ClusterState;
use crate::store::{FileSystem, ObjectKey, ReadOut};

/// How long anything may take that only has to be asked for.
const PATIENCE: Duration = Duration::from_secs(20);

/// How often a VDI is tried to be checked, and how long to wait in between.
const TRIES: u32 = 10;
const AGAIN: Duration = Duration::from_millis(300);

/// An object, as a map names it.
type Name = (Copies, SlotIndex, Oid, Birth);

/// What a VDI's map names.
struct Stock {
    names: BTreeSet<Name>,
    /// How many of them are data.
    allocated: u64,
    /// What a check found besides, and removed.
    left_over: usize,
}

/// Looks at everything.
pub(super) fn look(world: &mut World, disks: &Disks) -> Result<(), String> {
    read_everywhere(world, disks)?;
    nobody_owns_any(world)?;
    let stocks = stocks_of_all(world, disks)?;
    compare_copies(world, stocks.into_iter().flat_map(|stock| stock.names).collect())?;
    spread(world)?;
    nothing_is_left_of(world, disks)
}

/// What is allocated is as much as the ring says. An object that was discarded may leave its map while it is looked at:
/// then everything is looked at once more.
fn stocks_of_all(world: &mut World, disks: &Disks) -> Result<Vec<Stock>, String> {
    let mut again = true;
    loop {
        let mut stocks = Vec::new();
        for disk in disks.there() {
            stocks.push(take_stock(world, disk)?);
        }
        nobody_owns_any(world)?;
        compare_states(world)?;
        let state = world.state().ok_or("no state")?;
        let said = |disk: &Disk| state.vdi(disk.id).map(|v| v.used_objects);
        let there = disks.there();
        let differs = there.iter().zip(&stocks).find(|(disk, stock)| said(disk) != Some(stock.allocated));
        match differs {
            None => return Ok(stocks),
            Some(_) if std::mem::take(&mut again) => {}
            Some((disk, stock)) => {
                let (there, said) = (stock.allocated, said(disk));
                return Err(format!("{} has {there} objects, and the ring says {said:?}", disk.name));
            }
        }
    }
}

/// VDIs that nobody uses are let go of.
fn nobody_owns_any(world: &mut World) -> Result<(), String> {
    let idle = |world: &mut World| {
        world.state().is_some_and(|state| state.vdis().all(|vdi| vdi.owner.session.is_none()))
    };
    if world.until(PATIENCE, idle) { Ok(()) } else { Err("a VDI is not let go of".to_owned()) }
}

fn read_everywhere(world: &mut World, disks: &Disks) -> Result<(), String> {
    for machine in world.present().collect::<Vec<_>>() {
        for disk in disks.there() {
            let running = world.running(machine).ok_or_else(|| format!("sheep {machine} has ended"))?;
            let desk = Desk { disk: disk.clone(), story: world.story.clone() };
            let read = world.ask(machine, PATIENCE, async move {
                let client =
                    Client::connect(desk, running, "the last one".to_owned(), None, Arc::default(), 0).await;
                client.ok_or("no connection")?.read_all().await.map_err(|_| "an error")
            });
            if read != Some(Ok(())) {
                return Err(format!("{} cannot be read at {machine} in the end: {read:?}", disk.name));
            }
        }
    }
    Ok(())
}

/// Has a VDI checked and what is left over of it removed, as `dog vdi check --repair` does: what a failover may
/// leave. Tells what its map names then.
fn take_stock(world: &mut World, disk: &Disk) -> Result<Stock, String> {
    let present: Vec<Machine> = world.present().collect();
    let mut counted = Err("nobody was asked".to_owned());
    for _ in 0..TRIES {
        let machine = present[world.rng.random_range(0..present.len())];
        let running = world.running(machine).ok_or_else(|| format!("sheep {machine} has ended"))?;
        let name = disk.name.clone();
        let asked = world.ask(machine, PATIENCE, async move { count(running, &name).await });
        counted = asked.unwrap_or_else(|| Err("no answer".to_owned()));
        if counted.is_ok() {
            break;
        }
        // Who has just let go of it may not know that yet.
        world.until(AGAIN, |_| false);
    }
    let stock = counted.map_err(|why| format!("{} cannot be checked: {why}", disk.name))?;
    world.left_over += stock.left_over as u64;
    if stock.left_over > 0 {
        world.story.tell(format!("{} things were left over of {}", stock.left_over, disk.name));
    }
    Ok(stock)
}

async fn count(at: Running, name: &str) -> Result<Stock, String> {
    let name = name.parse().map_err(|_| "no name")?;
    let handle = at.gateway.open(&name, "stock").await.map_err(|e| e.to_string())?;
    let owner = at.gateway.owners.get(handle.vdi);
    let counted = async {
        let owner = owner.ok_or("another sheep owns it")?;
        let failed = |failure| format!("{failure}");
        let left_over = owner.orphans(false).await.map_err(failed)?.len();
        owner.orphans(true).await.map_err(failed)?;
        let data = owner.allocated(0, owner.object_count).await.map_err(failed)?;
        let allocated = data.len() as u64;
        let mut objects = owner.pages().await.map_err(failed)?;
        objects.extend(data.into_iter().map(|(index, entry)| owner.data_name(index, entry)));
        let name = |o: wire::peer::ObjectRef| (owner.copies, SlotIndex(o.slot), o.oid(), o.birth());
        Ok(Stock { names: objects.into_iter().map(name).collect(), allocated, left_over })
    };
    let counted = counted.await;
    handle.close().await;
    counted
}

/// Everybody has applied the same log to the same state.
fn compare_states(world: &mut World) -> Result<(), String> {
    let states = |world: &World| -> Vec<_> {
        world.present().filter_map(|m| world.running(m).map(|r| (m, r.view().applied()))).collect()
    };
    let level = |world: &mut World| states(world).windows(2).all(|two| two[0].1.index == two[1].1.index);
    if !world.until(PATIENCE, level) {
        let at: Vec<_> = states(world).iter().map(|(m, applied)| (*m, applied.index)).collect();
        return Err(format!("not everybody has applied the log: {at:?}"));
    }
    let states = states(world);
    for (machine, applied) in &states[1..] {
        if applied.state.to_bytes() != states[0].1.state.to_bytes() {
            return Err(format!("the log has led to another state at {machine} than at {}", states[0].0));
        }
    }
    Ok(())
}

/// Every object that a map names lies where its slot's configuration says, and is the same everywhere. There are no others.
fn compare_copies(world: &World, mut named: BTreeSet<Name>) -> Result<(), String> {
    let state = world.state().ok_or("no state")?;
    let mut copies: BTreeMap<Name, Vec<(Machine, Version, ReadOut)>> = BTreeMap::new();
    for machine in world.present() {
        let Some(replica) = world.running(machine).and_then(|r| r.replica) else { continue };
        let store = replica.store();
        for (policy, slot) in store.list_slots() {
            for stat in store.list_slot(policy, slot).map_err(|e| e.to_string())? {
                let key = ObjectKey { copies: policy, slot, oid: stat.oid, birth: stat.birth };
                let (version, size) = stat.content.ok_or("a copy is damaged")?;
                let out = store.read(&key, 0, size).map_err(|e| format!("{machine}: {e}"))?;
                let name = (policy, slot, stat.oid, stat.birth);
                copies.entry(name).or_default().push((machine, version, out));
            }
        }
    }
    for (name, found) in copies {
        let (policy, slot, oid, birth) = name;
        let who: BTreeSet<Machine> = found.iter().map(|(m, ..)| *m).collect();
        if !named.remove(&name) {
            return Err(format!("{oid} of birth {birth} is left over at {who:?}"));
        }
        let config = state.slot(policy, slot).ok_or("a slot without a configuration")?;
        let right: BTreeSet<Machine> =
            config.members.iter().filter_map(|m| world.machine_of(m.session.node)).collect();
        if who != right {
            return Err(format!("{oid} of birth {birth} is at {who:?}, slot {slot} at {right:?}"));
        }
        for (machine, version, out) in &found[1..] {
            let (first, other) = (&found[0].2, &found[0].1);
            if version != other || out != first && out.to_vec() != first.to_vec() {
                let (a, b) = (out.to_vec(), first.to_vec());
                let at = a.iter().zip(&b).position(|(a, b)| a != b);
                return Err(format!(
                    "{oid} differs at {machine} and {}: {version} and {other}, first at byte {at:?}",
                    found[0].0
                ));
            }
        }
    }
    match named.first() {
        Some((_, slot, oid, birth)) => Err(format!("{oid} of birth {birth} in slot {slot} is nowhere")),
        None => Ok(()),
    }
}

/// No two copies share a zone while there is another.
fn spread(world: &World) -> Result<(), String> {
    let state = world.state().ok_or("no state")?;
    let zone = |node| zone_of(&state, node);
    let zones: BTreeSet<String> =
        world.storing().filter_map(|m| world.running(m)).filter_map(|r| zone(r.node)).collect();
    for (copies, slot, config) in state.slots() {
        let held: BTreeSet<String> = config.members.iter().filter_map(|m| zone(m.session.node)).collect();
        if held.len() < config.members.len().min(zones.len()) {
            return Err(format!("slot {slot} of {copies} copies is in the zones {held:?} of {zones:?}"));
        }
    }
    Ok(())
}

fn zone_of(state: &ClusterState, node: wire::id::NodeId) -> Option<String> {
    state.node(node).map(|n| n.spec.zone.clone())
}

/// Of VDIs that were deleted there is nothing, and no file is half made.
fn nothing_is_left_of(world: &World, disks: &Disks) -> Result<(), String> {
    for machine in world.present() {
        let Some(replica) = world.running(machine).and_then(|r| r.replica) else { continue };
        for disk in &disks.ended {
            let sealed = replica.store().sealed(disk.id);
            if sealed.0 > 0 {
                return Err(format!("{machine} still refuses owners of {}, which is deleted", disk.id));
            }
        }
        let unfinished = world.hosts[machine].drive().list(&Path::new(DIR).join("objects/tmp"));
        if !unfinished.as_ref().is_ok_and(Vec::is_empty) {
            return Err(format!("{machine} has files that are half made: {unfinished:?}"));
        }
    }
    Ok(())
}
