//! What goes wrong, and when: drawn by chance, one episode after the other, sometimes into each other.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rand::Rng;

use super::directories;
use super::disks::{Disks, FIRST};
use super::net::Machine;
use super::operator;
use super::world::World;
use crate::cluster::slots::MemberState;
use crate::mutant::Mutant;
use crate::store::{SimFs, Verb};

/// Something that goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Fault {
    /// A process is killed and stays away for a while.
    Kill,
    /// A process is killed and is back before anybody notices.
    FastRestart,
    /// The process that leads the log is killed.
    KillLeader,
    /// The process that owns the VDI is killed.
    KillOwner,
    /// So it is, and all machines lose their power soon after its successor has begun. Only for mutants.
    KillOwnerThenPower,
    /// A process is asked to stop, and starts again.
    Stop,
    /// A process stands still.
    Pause,
    /// A machine loses its power.
    PowerLoss,
    /// A machine loses its power in the middle of what it does to its disk.
    PowerLossMidway,
    /// All processes that store are killed and started again, under gateways that stay.
    StorageRestart,
    /// All machines lose their power.
    RingPowerLoss,
    /// A machine is cut off from all others.
    Isolate,
    /// So is the one that owns the VDI.
    IsolateOwner,
    /// The ring falls into two parts.
    Split,
    /// One way between two machines is cut.
    OneWay,
    /// Nothing that a machine sends arrives, while it hears everything.
    Mute,
    /// Nothing arrives at a machine, while everybody hears it; often at the one that leads the log.
    Deaf,
    /// Everything on the network takes long.
    Delay,
    /// A disk is slow.
    SlowDisk,
    /// A call to a disk fails.
    DiskError,
    /// A sync fails, and the kernel keeps to itself some of what it should have written.
    SyncError,
    /// A disk has no space left for a while.
    FullDisk,
    /// A directory is lost, and its node begins with an empty one.
    Wipe,
    /// A directory is put back to what it was at some time.
    RollBack,
    /// A node is drained, removed, and begins with an empty directory.
    Retire,
    /// Another machine joins.
    Grow,
    /// A directory as it once was is started on another machine, while it is in use on the first.
    CopyDir,
    /// A directory is copied to another machine and goes on there; later the first is started again.
    MoveDir,
    /// A bit of an object on a disk flips.
    Rot,
    /// A VDI is created.
    Create,
    /// A VDI is deleted.
    Delete,
}

impl Fault {
    /// All that are not only for mutants.
    pub(super) const ALL: [Self; 30] = [
        Self::Kill,
        Self::FastRestart,
        Self::KillLeader,
        Self::KillOwner,
        Self::Stop,
        Self::Pause,
        Self::PowerLoss,
        Self::PowerLossMidway,
        Self::StorageRestart,
        Self::RingPowerLoss,
        Self::Isolate,
        Self::IsolateOwner,
        Self::Split,
        Self::OneWay,
        Self::Mute,
        Self::Deaf,
        Self::Delay,
        Self::SlowDisk,
        Self::DiskError,
        Self::SyncError,
        Self::FullDisk,
        Self::Wipe,
        Self::RollBack,
        Self::Retire,
        Self::Grow,
        Self::CopyDir,
        Self::MoveDir,
        Self::Rot,
        Self::Create,
        Self::Delete,
    ];
}

const EIO: i32 = 5;
/// More calls than a disk gets.
const NEVER: u64 = 1 << 40;

/// Which faults have happened, how often.
pub(super) type Fired = BTreeMap<Fault, u64>;

/// What may go wrong: all of it, or, so that a mutant shows soon, what it takes to bring it out.
pub(super) fn faults_for(mutant: Option<Mutant>) -> &'static [Fault] {
    const PAUSES: &[Fault] = &[Fault::Pause, Fault::IsolateOwner, Fault::Mute, Fault::Isolate];
    const KILLS: &[Fault] =
        &[Fault::Kill, Fault::KillOwner, Fault::StorageRestart, Fault::Pause, Fault::OneWay];
    const POWER: &[Fault] =
        &[Fault::PowerLoss, Fault::PowerLossMidway, Fault::RingPowerLoss, Fault::KillOwner];
    match mutant {
        Some(Mutant::BelieveAnyone | Mutant::NoFencing | Mutant::NoLeaseCheck | Mutant::LateWrites) => PAUSES,
        Some(Mutant::AnyPredecessor | Mutant::ReadsOvertake) => KILLS,
        Some(Mutant::AnyBoot | Mutant::NoMarks | Mutant::MarksDropped | Mutant::NamesUnsynced) => POWER,
        Some(Mutant::FirstFlushSome) => &[Fault::KillOwnerThenPower],
        Some(Mutant::ReclaimSoon) => &[Fault::KillOwner, Fault::IsolateOwner, Fault::Mute, Fault::Pause],
        Some(Mutant::DeleteEarly) => &[Fault::RingPowerLoss],
        Some(Mutant::CrcUnchecked) => &[Fault::Rot],
        Some(Mutant::KeepUnlisted) => &[Fault::Kill, Fault::PowerLoss, Fault::RollBack],
        Some(Mutant::IdsAgain | Mutant::DeletedStays) => {
            &[Fault::Create, Fault::Delete, Fault::Create, Fault::Delete, Fault::Kill]
        }
        Some(Mutant::HeirToAll) => {
            &[Fault::Kill, Fault::KillOwner, Fault::StorageRestart, Fault::Deaf, Fault::IsolateOwner]
        }
        Some(Mutant::SyncAgain) => &[Fault::SyncError, Fault::Kill, Fault::PowerLoss],
        _ => &Fault::ALL,
    }
}

/// Makes something go wrong now.
pub(super) fn strike(world: &mut World, disks: &mut Disks, fired: &mut Fired, among: &[Fault]) {
    let fault = among[world.rng.random_range(0..among.len())];
    let victim = match fault {
        Fault::KillLeader => leader(world),
        Fault::KillOwner | Fault::KillOwnerThenPower | Fault::IsolateOwner => owner(world),
        Fault::Deaf if world.rng.random() => leader(world),
        Fault::CopyDir | Fault::MoveDir => directories::unused(world),
        // What is rotten at the owner would be served by it.
        Fault::Rot if world.rng.random() => owner(world),
        _ => None,
    };
    let victim = victim.unwrap_or_else(|| world.rng.random_range(0..world.hosts.len()));
    if !applies(world, disks, fault, victim) {
        return;
    }
    *fired.entry(fault).or_default() += 1;
    world.story.tell(format!("{fault:?} at {victim}"));
    inflict(world, disks, fault, victim);
}

/// Whether the fault would change anything, and is one that the ring has to survive.
fn applies(world: &World, disks: &Disks, fault: Fault, victim: Machine) -> bool {
    if world.is_deceived() {
        return false;
    }
    if fault == Fault::Grow {
        return world.hosts.iter().any(|h| h.absent);
    }
    if fault == Fault::MoveDir {
        return disks.are_settled() && directories::can_be_copied_to(world, fault, victim);
    }
    if fault == Fault::CopyDir {
        return world.storing().any(|m| world.running(m).is_some());
    }
    if world.hosts[victim].absent {
        return false;
    }
    match fault {
        Fault::Isolate | Fault::IsolateOwner => true,
        Fault::Split | Fault::OneWay | Fault::Mute | Fault::Deaf | Fault::Delay | Fault::SlowDisk => true,
        // Until what was lost with a disk has been copied, the others are the last that have it.
        Fault::PowerLoss
        | Fault::PowerLossMidway
        | Fault::RingPowerLoss
        | Fault::KillOwnerThenPower
        | Fault::DiskError
        | Fault::SyncError
        | Fault::Wipe
        | Fault::RollBack
        | Fault::Rot
            if world.fragile =>
        {
            false
        }
        Fault::PowerLoss => world.hosts[victim].powered,
        Fault::RingPowerLoss => world.hosts.iter().any(|h| h.powered),
        // A VDI that is being created may get its copies from whom the ring does not know to be gone.
        Fault::Wipe => disks.are_settled() && world.can_lose_disk(victim),
        Fault::RollBack => world.hosts[victim].backup.is_none() || directories::can_roll_back(world, victim),
        Fault::Retire => world.can_lose_disk(victim) && operator::can_retire(world, victim),
        Fault::FullDisk => true,
        // What is lost of it on one machine must be there on another.
        Fault::Rot => {
            world.can_lose_disk(victim) && world.running(victim).is_some_and(|r| r.replica.is_some())
        }
        Fault::Create => disks.can_create() && !world.fragile,
        Fault::Delete => disks.can_delete(),
        Fault::StorageRestart => world.storing().any(|m| world.is_up(m)),
        Fault::Stop => world.running(victim).is_some() && world.hosts[victim].stopped_until.is_none(),
        _ => world.is_up(victim),
    }
}

fn inflict(world: &mut World, disks: &mut Disks, fault: Fault, victim: Machine) {
    let all = world.hosts.len();
    let for_ms = |world: &mut World, least, most| Duration::from_millis(world.rng.random_range(least..most));
    match fault {
        Fault::Kill | Fault::KillLeader | Fault::KillOwner => {
            world.kill(victim);
            let away = for_ms(world, 300, 8_000);
            world.hosts[victim].back_at = Some(world.now + away);
        }
        Fault::KillOwnerThenPower => {
            world.kill(victim);
            let time = for_ms(world, 300, 2_500);
            world.power_goes_at = Some(world.now + time);
        }
        Fault::FastRestart => {
            world.kill(victim);
            let away = for_ms(world, 1, 100);
            world.hosts[victim].back_at = Some(world.now + away);
        }
        Fault::Stop => {
            if let Some(running) = world.running(victim) {
                running.shutdown.cancel();
            }
        }
        Fault::Pause => {
            let time = for_ms(world, 100, 6_000);
            world.stand_still(victim, time);
        }
        Fault::PowerLoss => lose_power(world, disks, &[victim]),
        Fault::PowerLossMidway => {
            let calls = world.rng.random_range(0..60);
            world.hosts[victim].halt_disk_after(calls);
        }
        Fault::StorageRestart => {
            let storing: Vec<Machine> = world.storing().filter(|m| world.is_up(*m)).collect();
            for machine in storing {
                world.kill(machine);
                let away = for_ms(world, 1, 2_000);
                world.hosts[machine].back_at = Some(world.now + away);
            }
        }
        Fault::RingPowerLoss => lose_power(world, disks, &(0..all).collect::<Vec<_>>()),
        Fault::Isolate | Fault::IsolateOwner => (0..all).for_each(|m| both_ways(world, m, victim)),
        Fault::Split => {
            let side: Vec<bool> = (0..all).map(|_| world.rng.random()).collect();
            for a in 0..all {
                for b in (0..all).filter(|b| side[a] != side[*b]) {
                    world.wires.set_cut(a, b, true);
                }
            }
        }
        Fault::OneWay => {
            let to = (victim + 1 + world.rng.random_range(0..all - 1)) % all;
            world.wires.set_cut(victim, to, true);
        }
        Fault::Mute => (0..all).filter(|m| *m != victim).for_each(|m| world.wires.set_cut(victim, m, true)),
        Fault::Deaf => (0..all).filter(|m| *m != victim).for_each(|m| world.wires.set_cut(m, victim, true)),
        Fault::Delay => {
            let longest = for_ms(world, 5, 200);
            world.wires.set_delay(longest);
        }
        Fault::SlowDisk => {
            let longest = for_ms(world, 10, 400);
            world.hosts[victim].disk = longest;
        }
        Fault::DiskError => {
            let verb = Verb::ALL[world.rng.random_range(0..Verb::ALL.len())];
            let nth = world.rng.random_range(1..30);
            world.story.tell(format!("call {nth} of {verb:?} is to fail"));
            world.hosts[victim].drive().fail(verb, nth, EIO);
        }
        Fault::SyncError => {
            let nth = world.rng.random_range(1..30);
            world.hosts[victim].drive().fail(Verb::SyncData, nth, EIO);
        }
        Fault::FullDisk => world.hosts[victim].drive().set_full(true),
        Fault::Wipe => {
            heal(world);
            world.lose_disk(victim, SimFs::new());
            let away = for_ms(world, 1, 3_000);
            world.hosts[victim].back_at = Some(world.now + away);
        }
        Fault::RollBack => match world.hosts[victim].backup.take() {
            Some(backup) => {
                heal(world);
                world.lose_disk(victim, backup.disk);
                world.hosts[victim].copied = true;
                let away = for_ms(world, 1, 3_000);
                world.hosts[victim].back_at = Some(world.now + away);
            }
            None => directories::back_up(world, victim),
        },
        Fault::Retire => operator::retire(world, victim),
        Fault::CopyDir if !directories::can_be_copied_to(world, fault, victim) => {
            let up: Vec<Machine> = world.storing().filter(|m| world.running(*m).is_some()).collect();
            let of = up[world.rng.random_range(0..up.len())];
            directories::back_up(world, of);
        }
        Fault::CopyDir | Fault::MoveDir => directories::copy_directory(world, disks, fault, victim),
        Fault::Rot => {
            heal(world);
            operator::rot(world, victim);
        }
        Fault::Create => disks.create(world),
        Fault::Delete => disks.delete(world),
        Fault::Grow => {
            if let Some(machine) = world.hosts.iter().position(|h| h.absent) {
                world.power_on(machine);
            }
        }
    }
}

fn both_ways(world: &World, a: Machine, b: Machine) {
    if a != b {
        world.wires.set_cut(a, b, true);
        world.wires.set_cut(b, a, true);
    }
}

/// Machines whose disks have stopped in the middle lose their power now, and disks that fail have consequences.
pub(super) fn finish(world: &mut World, disks: &Disks) {
    let halted: Vec<Machine> = (0..world.hosts.len()).filter(|m| world.hosts[*m].has_halted()).collect();
    if !halted.is_empty() {
        world.story.tell(format!("the power goes in the middle at {halted:?}"));
        lose_power(world, disks, &halted);
    }
    if world.power_goes_at.take_if(|at| *at <= world.now).is_some() {
        world.story.tell("the power goes everywhere");
        lose_power(world, disks, &(0..world.hosts.len()).collect::<Vec<_>>());
    }
    for machine in 0..world.hosts.len() {
        let failed = world.hosts[machine].drive().sync_has_failed();
        if failed && !world.hosts[machine].doubted {
            world.hosts[machine].doubted = true;
            world.story.tell(format!("a sync fails at {machine}"));
            judge(world, disks);
        }
        let told = || world.known.as_ref()?.node(world.hosts[machine].node?)?.disk_failed.clone();
        let is_out = told().is_some();
        if world.hosts[machine].repair_at.is_none() && (failed || world.is_up(machine) && is_out) {
            let time = Duration::from_millis(world.rng.random_range(1_000..8_000));
            world.hosts[machine].repair_at = Some(world.now + time);
        }
        if world.hosts[machine].repair_at.is_some_and(|at| at <= world.now) {
            world.hosts[machine].repair_at = None;
            // The ring may have heard of a new process since.
            if !failed && !is_out {
                continue;
            }
            world.story.tell(format!("somebody starts machine {machine} again, whose disk failed"));
            lose_power(world, disks, &[machine]);
        }
    }
    if world.fragile && world.gone.is_empty() && world.is_whole() {
        world.fragile = false;
    }
}

/// Cuts the power of machines at one moment.
fn lose_power(world: &mut World, disks: &Disks, victims: &[Machine]) {
    for victim in victims.iter().copied() {
        if world.hosts[victim].absent {
            continue;
        }
        if world.hosts[victim].powered {
            world.power_off(victim);
        }
        let away = Duration::from_millis(world.rng.random_range(500..6_000));
        world.hosts[victim].back_at = Some(world.now + away);
    }
    judge(world, disks);
}

/// Where a slot has nobody left who still has what was in sync, the oracles are told what may be gone: all that was
/// not flushed, or, where an eligible one still has what was acknowledged, what was seen besides.
pub(super) fn judge(world: &World, disks: &Disks) {
    let Some(state) = world.known.clone() else { return };
    let (mut blurred, mut ruined) = (BTreeSet::new(), BTreeSet::new());
    for (copies, _, config) in state.slots() {
        let mut in_sync = config.members.iter().filter(|m| m.state == MemberState::InSync);
        let kept = in_sync.any(|m| {
            let spec = state.node(m.session.node).map(|n| &n.spec).filter(|s| s.session == m.session);
            let node = m.session.node;
            world.keeps(node, m.boot) || spec.is_some_and(|s| world.keeps(node, s.boot))
        });
        if !kept {
            let unknown = |since| {
                let mut set = config.members.iter().filter(|m| m.state == MemberState::InSync);
                set.any(|m| world.is_behind(m.session, since))
            };
            let mut eligible = config.eligible.iter().filter(|e| world.keeps(e.node, e.boot));
            let eligible = eligible.any(|e| e.since == 0 || unknown(e.since));
            if eligible {
                blurred.insert(copies)
            } else {
                ruined.insert(copies)
            };
        }
    }
    for copies in &ruined {
        world.story.tell(format!("nobody has kept all that was acknowledged, of {copies} copies"));
    }
    for copies in blurred.difference(&ruined) {
        world.story.tell(format!(
            "nobody has kept all that was in sync, but somebody all that was acknowledged, of {copies} copies"
        ));
    }
    for disk in disks.there() {
        if ruined.contains(&disk.copies) {
            disk.oracle.lock().ruined();
        } else if blurred.contains(&disk.copies) {
            disk.oracle.lock().blurred();
        }
    }
}

/// Everything that is wrong with the network and the disks ends.
pub(super) fn heal(world: &mut World) {
    world.wires.heal();
    world.wires.set_delay(Duration::from_millis(1));
    for host in &mut world.hosts {
        host.disk = Duration::from_micros(300);
        host.halt_disk_after(NEVER);
        host.drive().fail_no_more();
        host.drive().set_full(false);
    }
    world.story.tell("network and disks are well");
}

/// Everybody is to be there again.
pub(super) fn revive(world: &mut World) {
    heal(world);
    for machine in 0..world.hosts.len() {
        world.hosts[machine].repair_at = world.hosts[machine].repair_at.map(|at| at.min(world.now));
        world.hosts[machine].stopped_until = world.hosts[machine].stopped_until.map(|at| at.min(world.now));
        if !world.is_up(machine) && !world.hosts[machine].absent {
            world.power_on(machine);
        }
    }
}

fn leader(world: &World) -> Option<Machine> {
    (0..world.hosts.len()).find(|m| world.running(*m).is_some_and(|r| r.ring.leader.leads()))
}

fn owner(world: &World) -> Option<Machine> {
    let state = world.state()?;
    let owner = state.vdi_named(&FIRST.parse().ok()?)?.owner.session?;
    (0..world.hosts.len()).find(|m| world.running(*m).is_some_and(|r| r.node == owner.node))
}
