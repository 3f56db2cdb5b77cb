//! All machines, and time: one thread lets each process run a millisecond, in an order drawn anew each time.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};

use super::directories::Backup;
use super::net::{Machine, Wires};
use super::operator::{Retiring, Rotten};
use super::oracle::SECTOR;
use super::process::{Plan, Process, Running};
use super::story::{Story, watched_sector};
use crate::admin::Host as _;
use crate::cluster::slots::{MemberState, SlotConfig};
use crate::cluster::state::{ClusterState, OBJECT_SIZE};
use crate::machine::simulated;
use crate::store::SimFs;
use wire::id::{NodeId, Oid, Session, VdiId};

/// How long each process runs before the next.
pub(super) const TICK: Duration = Duration::from_millis(1);
/// How long a process's supervisor waits before it starts one again that has ended by itself.
const RESTART: Duration = Duration::from_millis(500);

/// How far simulated time has come, for whoever watches from outside.
pub(super) static MILLISECONDS: AtomicU64 = AtomicU64::new(0);

/// One machine.
pub(super) struct Host {
    plan: Plan,
    pub(super) process: Option<Process>,
    /// The process stands still until then.
    pub(super) stopped_until: Option<Duration>,
    stood: Duration,
    /// The power, or the process, comes back then.
    pub(super) back_at: Option<Duration>,
    pub(super) powered: bool,
    /// How slow its disk is at most.
    pub(super) disk: Duration,
    /// It is not there yet.
    pub(super) absent: bool,
    /// Who its sheep was when last seen.
    pub(super) node: Option<NodeId>,
    /// What its disk held at some time.
    pub(super) backup: Option<Backup>,
    /// A failed disk is seen to then.
    pub(super) repair_at: Option<Duration>,
    /// The oracle knows that a sync has failed.
    pub(super) doubted: bool,
    /// Its directory is a copy of another machine's, and its sheep does not run with it yet.
    pub(super) copied: bool,
}

impl Host {
    /// Lets so many calls through to the disk, and no more.
    pub(super) fn halt_disk_after(&self, calls: u64) {
        self.plan.disk.halt_after(calls);
    }

    /// Whether the disk lets no more calls through.
    pub(super) fn has_halted(&self) -> bool {
        self.plan.disk.has_halted()
    }

    /// Its disk.
    pub(super) fn drive(&self) -> &SimFs {
        &self.plan.disk
    }
}

/// Everything.
pub(super) struct World {
    pub(super) now: Duration,
    pub(super) rng: StdRng,
    pub(super) wires: Wires,
    pub(super) hosts: Vec<Host>,
    pub(super) story: Story,
    /// The newest state that anybody has ever applied.
    pub(super) known: Option<Arc<ClusterState>>,
    known_at: u64,
    /// How far the log of each process, named by its first session, had come when it was last looked at.
    reached: BTreeMap<Session, u64>,
    /// Nodes whose directories are no more; somebody has to remove them from the ring.
    pub(super) gone: Vec<NodeId>,
    /// The machine that an operator retires.
    pub(super) retiring: Option<Retiring>,
    pub(super) copies: u8,
    /// A disk was lost, and the ring has not been whole since.
    pub(super) fragile: bool,
    /// Something on a disk is not as it was written, and nobody has mended it yet.
    pub(super) rotten: Option<Rotten>,
    /// All machines lose their power then.
    pub(super) power_goes_at: Option<Duration>,
    /// A directory that was the newest of its node has been given up.
    pub(super) displaced: Option<String>,
    /// Nodes of which two directories may go on. Where both ask at once, nobody is let in.
    pub(super) moved: BTreeSet<NodeId>,
    /// How often the membership changed three times while some copy caught up.
    pub(super) epochs_in_recovery: u64,
    /// How often it has since no copy did.
    epochs: u64,
    /// What the last look found to be there for nobody.
    pub(super) left_over: u64,
    boot: u128,
    order: Vec<Machine>,
}

/// How many machines there are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Size {
    /// Those that store.
    pub(super) machines: usize,
    /// Those that only serve.
    pub(super) gateways: usize,
    /// Those that store, and come later.
    pub(super) absent: usize,
    /// Zones that they are spread over; 0 if each is one of its own.
    pub(super) zones: usize,
}

impl World {
    /// Machines that are switched on but for the absent ones, each with its sheep.
    pub(super) fn new(seed: u64, size: Size, copies: u8, story: Story) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let all = size.machines + size.gateways + size.absent;
        let wires = Wires::new(all, rng.random());
        let mut world = Self {
            now: Duration::ZERO,
            wires: wires.clone(),
            hosts: Vec::new(),
            story,
            known: None,
            known_at: 0,
            reached: BTreeMap::new(),
            gone: Vec::new(),
            retiring: None,
            copies,
            fragile: false,
            rotten: None,
            power_goes_at: None,
            displaced: None,
            moved: BTreeSet::new(),
            epochs_in_recovery: 0,
            epochs: 0,
            left_over: 0,
            boot: 0,
            order: (0..all).collect(),
            rng,
        };
        for machine in 0..all {
            let plan = Plan {
                machine,
                machines: all,
                card: wires.card(machine),
                disk: SimFs::new(),
                boot: world.next_boot(),
                drift: world.rng.random_range(-2_000..=2_000),
                copies,
                gateway_only: (size.machines..size.machines + size.gateways).contains(&machine),
                zone: machine.checked_rem(size.zones).map(|zone| format!("zone {zone}")),
            };
            let absent = machine >= size.machines + size.gateways;
            world.hosts.push(Host {
                process: None,
                stopped_until: None,
                stood: Duration::ZERO,
                back_at: None,
                powered: true,
                disk: Duration::from_micros(300),
                absent,
                node: None,
                backup: None,
                repair_at: None,
                doubted: false,
                copied: false,
                plan,
            });
            if !absent {
                world.start(machine);
            }
        }
        world
    }

    fn next_boot(&mut self) -> u128 {
        self.boot += 1;
        self.boot << 64 | u128::from(self.rng.random::<u64>())
    }

    /// Starts the sheep of a machine.
    pub(super) fn start(&mut self, machine: Machine) {
        let host = &mut self.hosts[machine];
        (host.stopped_until, host.stood, host.back_at) = (None, Duration::ZERO, None);
        host.absent = false;
        simulated::set_disk(host.disk);
        host.process = Some(Process::start(host.plan.clone()));
        self.story.tell(format!("{machine} starts"));
    }

    /// Ends the process of a machine at once; the kernel keeps what it had written.
    pub(super) fn kill(&mut self, machine: Machine) {
        let host = &mut self.hosts[machine];
        // First the disk, so that nothing which is dropped writes any more.
        host.plan.disk.process_kill();
        host.process = None;
    }

    /// Cuts a machine's power; what was not synced is lost as chance will have it.
    pub(super) fn power_off(&mut self, machine: Machine) {
        self.wires.power_off(machine);
        let (seed, boot) = (self.rng.random(), self.next_boot());
        let host = &mut self.hosts[machine];
        host.plan.disk.power_cut(seed);
        (host.plan.boot, host.doubted) = (boot, false);
        host.process = None;
        host.powered = false;
    }

    /// A machine's sheep is killed and gets another disk.
    pub(super) fn lose_disk(&mut self, machine: Machine, disk: SimFs) {
        self.kill(machine);
        let host = &mut self.hosts[machine];
        (host.plan.disk, host.backup, host.doubted) = (disk, None, false);
        self.gone.extend(host.node.take());
        self.fragile |= !host.plan.gateway_only;
        self.spare_disks();
    }

    /// What was to go wrong with disks would be one loss too many.
    pub(super) fn spare_disks(&self) {
        for host in &self.hosts {
            host.plan.disk.fail_no_more();
            if !host.has_halted() {
                host.halt_disk_after(1 << 40);
            }
        }
    }

    /// A machine that runs nothing gets another disk.
    pub(super) fn place_disk(&mut self, machine: Machine, disk: SimFs) {
        self.hosts[machine].plan.disk = disk;
    }

    /// Whether the ring still counts on somebody whose disk is lost. One more loss of anything is one too many.
    pub(super) fn is_deceived(&self) -> bool {
        if self.rotten.is_some() || self.hosts.iter().any(|h| h.copied) {
            return true;
        }
        let Some(state) = &self.known else { return false };
        self.gone.iter().any(|n| state.node(*n).is_some_and(|n| n.live_session().is_some()))
    }

    /// Whether the ring has to survive the loss of a machine's disk: everybody else is well, and knows all.
    pub(super) fn can_lose_disk(&self, machine: Machine) -> bool {
        let host = &self.hosts[machine];
        let sound = |h: &Host| {
            let runs = h.powered && h.process.is_some() && h.stopped_until.is_none();
            h.absent || runs && !h.plan.disk.sync_has_failed()
        };
        let voters = self.present().find_map(|m| {
            let running = self.running(m).filter(|r| r.ring.leader.leads())?;
            let spared = host.node.is_none_or(|node| running.ring.log.can_spare(node));
            Some((running.ring.log.metrics().voters, spared))
        });
        // A process that has just begun may not be in the ring yet, while the one before it seems to be.
        let state = self.state();
        let joined = self.present().all(|m| {
            let session = self.running(m).map(|r| r.host.spec().session);
            let known = session.and_then(|s| state.as_ref()?.node(s.node)?.live_session());
            session.is_some() && known == session
        });
        let here: Vec<NodeId> = self.present().filter_map(|m| self.running(m)).map(|r| r.node).collect();
        let all_vote =
            voters.is_some_and(|(voters, spared)| spared && voters.iter().all(|v| here.contains(v)));
        host.plan.gateway_only && !host.absent
            || all_vote && joined && self.gone.is_empty() && self.is_whole() && self.hosts.iter().all(sound)
    }

    /// The machine that a node runs on.
    pub(super) fn machine_of(&self, node: NodeId) -> Option<Machine> {
        self.hosts.iter().position(|h| h.node == Some(node))
    }

    /// Machines that are there.
    pub(super) fn present(&self) -> impl Iterator<Item = Machine> + '_ {
        (0..self.hosts.len()).filter(|m| !self.hosts[*m].absent)
    }

    /// Gives a machine its power, and starts its sheep.
    pub(super) fn power_on(&mut self, machine: Machine) {
        if !self.hosts[machine].powered {
            self.wires.power_on(machine);
            self.hosts[machine].powered = true;
        }
        self.start(machine);
    }

    /// The process stands still for a while.
    pub(super) fn stand_still(&mut self, machine: Machine, time: Duration) {
        self.hosts[machine].stopped_until = Some(self.now + time);
    }

    /// The machines that store.
    pub(super) fn storing(&self) -> impl Iterator<Item = Machine> + '_ {
        self.present().filter(|m| !self.hosts[*m].plan.gateway_only)
    }

    /// Whether a sheep runs on a machine, though it may stand still.
    pub(super) fn is_up(&self, machine: Machine) -> bool {
        self.hosts[machine].process.is_some()
    }

    /// What runs on a machine.
    pub(super) fn running(&self, machine: Machine) -> Option<Running> {
        self.hosts[machine].process.as_ref().and_then(Process::running)
    }

    /// One millisecond of everybody's life.
    pub(super) fn tick(&mut self) {
        self.now += TICK;
        self.story.set_time(self.now);
        MILLISECONDS.store(self.now.as_millis() as u64, Ordering::Relaxed);
        self.wires.step(self.now);
        self.order.shuffle(&mut self.rng);
        for at in 0..self.order.len() {
            let machine = self.order[at];
            let host = &mut self.hosts[machine];
            if host.back_at.is_some_and(|at| at <= self.now) {
                self.power_on(machine);
                continue;
            }
            let Some(process) = &host.process else { continue };
            let clock = self.now.as_millis() as u64 + machine as u64 * 7;
            simulated::set_wall_ms(clock);
            simulated::set_disk(host.disk);
            match host.stopped_until {
                Some(until) if until > self.now => {
                    host.stood += TICK;
                    continue;
                }
                Some(_) => {
                    host.stopped_until = None;
                    process.wake(std::mem::take(&mut host.stood));
                }
                None => {}
            }
            process.run(TICK);
            if let Some(why) = process.ended() {
                self.story.tell(format!("{machine} has ended: {why}"));
                self.kill(machine);
                let removed = why.contains("was removed from its ring");
                if removed || why.contains("this directory is a copy") {
                    // Its operator does what it says.
                    let host = &mut self.hosts[machine];
                    (host.plan.disk, host.backup, host.doubted) = (SimFs::new(), None, false);
                    host.copied = false;
                    host.node.take_if(|_| removed);
                }
                self.hosts[machine].back_at = Some(self.now + RESTART);
            }
        }
        self.note_state();
    }

    /// How far the log of a process had come when it was last seen.
    pub(super) fn last_index(&self, process: Session) -> u64 {
        self.reached.get(&process).copied().unwrap_or_default()
    }

    /// Whether a session's log has not come to `index`, as far as its process got.
    pub(super) fn is_behind(&self, session: Session, index: u64) -> bool {
        let first = Session { node: session.node, start: 0 };
        self.reached.range(first..=session).next_back().is_some_and(|(_, reached)| *reached < index)
    }

    /// Whether a machine still has all that a node wrote in a boot.
    pub(super) fn keeps(&self, node: NodeId, boot: u128) -> bool {
        self.hosts.iter().any(|h| {
            h.node == Some(node) && h.plan.boot == boot && h.powered && !h.plan.disk.sync_has_failed()
        })
    }

    fn note_state(&mut self) {
        for machine in 0..self.hosts.len() {
            let Some(process) = &self.hosts[machine].process else { continue };
            let seen = process.look(|r| (r.process, r.ring.log.last_index(), r.view().newer(self.known_at)));
            let Some((session, last_index, newer)) = seen else { continue };
            self.reached.insert(session, last_index);
            let before = self.hosts[machine].node.replace(session.node);
            if before.is_some_and(|node| node != session.node && !self.moved.contains(&node)) {
                self.displaced =
                    Some(format!("the directory of machine {machine} was the newest and is not used"));
            }
            self.hosts[machine].copied = false;
            if let Some(applied) = newer {
                self.tell_slot(&applied.state);
                self.count_epochs(&applied.state);
                (self.known, self.known_at) = (Some(applied.state), applied.index);
            }
        }
    }

    fn count_epochs(&mut self, state: &ClusterState) {
        let before = self.known.as_ref().map_or(0, |known| known.epoch().0);
        let passed = state.epoch().0 - before;
        let catching_up = |(_, _, config): (_, _, &Arc<SlotConfig>)| {
            config.in_state(MemberState::CatchingUp).next().is_some()
        };
        if !state.slots().any(catching_up) {
            self.epochs = 0;
        } else if passed > 0 {
            self.epochs += passed;
            self.epochs_in_recovery += u64::from(self.epochs >= 3 && self.epochs - passed < 3);
        }
    }

    /// Tells what becomes of the slot of a sector that whoever looks into a seed wants to know of: `SECTOR=n`.
    fn tell_slot(&self, state: &ClusterState) {
        let Some(sector) = watched_sector() else { return };
        let slot = state.slot_of(Oid::data(VdiId(1), sector * SECTOR as u64 / OBJECT_SIZE as u64));
        let of = |state: &ClusterState| {
            let config = state.slots().find(|(_, s, _)| *s == slot).map(|(_, _, config)| config.clone());
            let owners: Vec<_> = state.vdis().map(|v| (v.owner.session, v.owner.generation)).collect();
            (config, owners)
        };
        let now = of(state);
        if self.known.as_ref().is_none_or(|known| of(known) != now) {
            let config = now.0.as_deref();
            let members: Vec<String> = config
                .into_iter()
                .flat_map(|c| &c.members)
                .map(|m| format!("{} {:?} boot {} reached {:?}", m.session, m.state, m.boot >> 64, m.reached))
                .collect();
            let eligible: Vec<String> = config
                .into_iter()
                .flat_map(|c| &c.eligible)
                .map(|e| format!("{} boot {} since {}", e.node, e.boot >> 64, e.since))
                .collect();
            let version = config.map(|c| c.version);
            let nodes: Vec<_> =
                state.nodes().map(|n| (n.spec.session, n.status, n.spec.reached.clone())).collect();
            self.story.aside(format!("nodes {nodes:?}"));
            self.story.aside(format!(
                "slot {slot} {version:?}: {members:?} eligible {eligible:?} owners {:?}",
                now.1
            ));
        }
    }

    /// Lets time pass until something holds; whether it did in time.
    pub(super) fn until(&mut self, at_most: Duration, mut holds: impl FnMut(&mut Self) -> bool) -> bool {
        let end = self.now + at_most;
        while self.now < end {
            if holds(self) {
                return true;
            }
            self.tick();
        }
        holds(self)
    }

    /// Lets a task on a machine come to its end; `None` if it does not in time, or the process dies.
    pub(super) fn ask<T: Send + 'static>(
        &mut self,
        machine: Machine,
        at_most: Duration,
        task: impl Future<Output = T> + Send + 'static,
    ) -> Option<T> {
        let task = self.hosts[machine].process.as_ref()?.spawn(task);
        self.until(at_most, |world| task.is_finished() || !world.is_up(machine));
        if !task.is_finished() {
            task.abort();
            return None;
        }
        self.hosts[machine].process.as_ref()?.join(task)
    }

    /// The newest state that anybody has applied.
    pub(super) fn state(&self) -> Option<Arc<ClusterState>> {
        let running = (0..self.hosts.len()).filter_map(|m| self.running(m));
        running.map(|r| r.view().applied()).max_by_key(|a| a.index).map(|a| a.state)
    }

    /// Whether every slot has all its copies in sync, at sheep that run.
    pub(super) fn is_whole(&self) -> bool {
        let Some(state) = self.state() else { return false };
        let all_in = self.present().all(|m| {
            self.running(m).is_some_and(|r| {
                state
                    .node(r.node)
                    .and_then(|n| n.live_session())
                    .is_some_and(|s| state.serves(s) || r.replica.is_none())
            })
        });
        all_in
            && state.slots().all(|(copies, _, config)| {
                state.is_fully_redundant(copies, config)
                    && config.members.iter().all(|m| m.state == MemberState::InSync)
            })
    }
}
