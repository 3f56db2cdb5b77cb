//! One seed: a ring is founded, clients work, things go wrong, all is healed, and everything is looked at.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rand::Rng;

use super::client::{Client, Desk};
use super::disks::Disks;
use super::fault::{self, Fault, Fired};
use super::last_look;
use super::net::Machine;
use super::operator;
use super::oracle::{Attached, Counts};
use super::story::Story;
use super::world::{Size, World};
use crate::admin::Host as _;
use crate::machine::simulated;
use crate::mutant::{Mutant, plant};
use wire::policy::Copies;

const SLOTS: u32 = 256;
/// How long a ring may take to be founded, and to be whole again once all is well.
const FOUNDING: Duration = Duration::from_secs(20);
const HEALING: Duration = Duration::from_secs(120);
/// Requests after which a client goes elsewhere.
const REQUESTS: u32 = 60;
/// Of so many milliseconds a client hangs up in one; of a twentieth where its sheep stands still.
const HANG_UP: u32 = 4_000;

/// What came of a seed.
#[derive(Debug, Clone, Default)]
pub(super) struct Outcome {
    pub(super) broken: Vec<String>,
    pub(super) fired: Fired,
    pub(super) counts: Counts,
    /// How often the membership changed three times while some copy caught up.
    pub(super) epochs_in_recovery: u64,
    /// What the last look found to be there for nobody.
    pub(super) left_over: u64,
    /// Checksums of the story and of everything on the network.
    pub(super) trace: (u32, u32, u64),
    pub(super) time: Duration,
}

/// What to run.
#[derive(Debug, Clone, Copy)]
pub(super) struct Run {
    pub(super) seed: u64,
    /// A bug, and the faults that bring it out.
    pub(super) mutant: Option<Mutant>,
    /// The faults alone: whatever goes wrong then is none of the mutant's.
    pub(super) spared: bool,
    /// Whether the story is printed.
    pub(super) aloud: bool,
}

/// Runs one seed on a fresh thread.
pub(super) fn run(Run { seed, mutant, spared, aloud }: Run) -> Outcome {
    let work = move || {
        super::chance::begin(seed);
        simulated::begin(seed);
        plant(mutant.filter(|_| !spared));
        let panics = Arc::new(Mutex::new(Vec::new()));
        let seen = panics.clone();
        let story = Story::new(aloud);
        let told = story.clone();
        std::panic::set_hook(Box::new(move |info| {
            told.aside(format!("a panic: {info}"));
            seen.lock().push(format!("a panic: {info}"));
        }));
        let mut outcome = Outcome::default();
        let whole = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            Simulation::found(seed, story.clone())
                .and_then(|mut s| s.live(&mut outcome, fault::faults_for(mutant)))
        }));
        match whole {
            Ok(Ok(())) | Err(_) => {}
            Ok(Err(why)) => outcome.broken.push(why),
        }
        _ = std::panic::take_hook();
        outcome.broken.extend(panics.lock().drain(..));
        outcome.time = story.time();
        outcome.trace.0 = story.sum();
        for line in &outcome.broken {
            story.tell(format!("BROKEN {line}"));
        }
        outcome
    };
    let thread = std::thread::Builder::new().stack_size(16 << 20).spawn(work);
    thread.expect("a thread").join().expect("panics are caught")
}

struct Simulation {
    world: World,
    disks: Disks,
    clients: Vec<Seat>,
    working: bool,
}

/// A client, and where it is at the moment.
struct Seat {
    name: String,
    at: Option<(Machine, tokio::task::JoinHandle<()>)>,
    hung_up: Arc<AtomicBool>,
    visits: u64,
    /// It says who it is, so that what it sent before happens no more once it is elsewhere.
    attaches: bool,
}

impl Simulation {
    fn found(seed: u64, story: Story) -> Result<Self, String> {
        let mut chance = <rand::rngs::StdRng as rand::SeedableRng>::seed_from_u64(seed);
        let size = Size {
            machines: [3, 3, 3, 4, 5][chance.random_range(0..5)],
            gateways: chance.random_range(0..2),
            absent: chance.random_range(0..2),
            zones: [0, 0, 2, 3][chance.random_range(0..4)],
        };
        let copies: u8 = if chance.random_bool(0.75) { 3 } else { 2 };
        let mut world = World::new(chance.random(), size, copies, story.clone());
        let copies = Copies::new(copies.into()).map_err(|e| e.to_string())?;
        let (machines, gateways) = (size.machines, size.gateways);
        let all = machines + gateways;
        let met = world.until(FOUNDING, |world| {
            (0..all).all(|m| world.running(m).is_some_and(|r| r.host.known_nodes().len() == all))
        });
        if !met {
            return Err("the sheep do not meet".to_owned());
        }
        let zones = size.zones;
        story.tell(format!(
            "{machines} sheep and {gateways} gateways have met; {copies} copies, {zones} zones"
        ));
        let running = world.running(0).ok_or("machine 0 has ended")?;
        let host = running.host.clone();
        let formatted = world.ask(0, FOUNDING, async move { host.format(copies, SLOTS, false).await });
        match formatted {
            Some(Ok(())) => {}
            other => return Err(format!("not formatted: {other:?}")),
        }
        let mut disks = Disks::new(copies);
        let created = world.until(FOUNDING, |world| {
            disks.look(world);
            disks.are_settled()
        });
        if !created {
            return Err("no VDI".to_owned());
        }
        if !world.until(FOUNDING, |world| world.is_whole()) {
            return Err("the new ring is not whole".to_owned());
        }
        story.tell("the ring is whole");
        let clients = (0..world.rng.random_range(2..=4))
            .map(|n| Seat {
                name: format!("client {n}"),
                at: None,
                hung_up: Arc::default(),
                visits: 0,
                attaches: n % 2 == 1,
            })
            .collect();
        Ok(Self { world, disks, clients, working: true })
    }

    fn live(&mut self, outcome: &mut Outcome, faults: &[Fault]) -> Result<(), String> {
        if faults.contains(&Fault::Create) && self.world.rng.random_bool(0.7) {
            self.disks.create(&mut self.world);
        }
        let done = self.suffer(&mut outcome.fired, faults).and_then(|()| self.heal());
        let done = done.and_then(|()| last_look::look(&mut self.world, &self.disks));
        for disk in self.disks.all() {
            let mut oracle = disk.oracle.lock();
            outcome.broken.extend(oracle.broken.drain(..).map(|what| format!("VDI {}: {what}", disk.id)));
            outcome.counts.add(oracle.counts);
        }
        outcome.epochs_in_recovery = self.world.epochs_in_recovery;
        outcome.left_over = self.world.left_over;
        let (crc, count) = self.world.wires.trace();
        (outcome.trace.1, outcome.trace.2) = (crc, count);
        done
    }

    /// A millisecond, and clients find seats.
    fn tick(&mut self) {
        self.world.tick();
        fault::finish(&mut self.world, &self.disks);
        operator::look(&mut self.world);
        self.disks.look(&mut self.world);
        for (number, seat) in self.clients.iter_mut().enumerate() {
            // It hangs up, whatever is under way, and whether or not its sheep can hear of that.
            let stands = |(m, _): &(Machine, _)| self.world.hosts[*m].stopped_until.is_some();
            let patience = if seat.at.as_ref().is_some_and(stands) { HANG_UP / 20 } else { HANG_UP };
            if self.world.rng.random_range(0..patience) == 0 && seat.at.take().is_some() {
                seat.hung_up.store(true, Ordering::Relaxed);
            }
            let gone = |(machine, task): &(Machine, tokio::task::JoinHandle<()>)| {
                task.is_finished() || !self.world.is_up(*machine)
            };
            if seat.at.as_ref().is_some_and(gone) {
                seat.at = None;
            }
            if seat.at.is_some() || !self.working {
                continue;
            }
            let machine = self.world.rng.random_range(0..self.world.hosts.len());
            let Some(running) = self.world.running(machine) else { continue };
            let Some(disk) = self.disks.choose(&mut self.world.rng) else { continue };
            seat.visits += 1;
            let name = format!("{} visit {} at {machine} of {}", seat.name, seat.visits, disk.id);
            let (desk, seed) = (Desk { disk, story: self.world.story.clone() }, self.world.rng.random());
            let attached = Attached { client: number, generation: seat.visits };
            let attached = Some(attached).filter(|_| seat.attaches);
            seat.hung_up = Arc::default();
            let hung_up = seat.hung_up.clone();
            let work = async move {
                if let Some(client) = Client::connect(desk, running, name, attached, hung_up, seed).await {
                    client.work(REQUESTS).await;
                }
            };
            let process = self.world.hosts[machine].process.as_ref();
            seat.at = process.map(|p| (machine, p.spawn(work)));
        }
    }

    fn pass(&mut self, time: Duration) -> Result<(), String> {
        let end = self.world.now + time;
        while self.world.now < end {
            self.tick();
            if let Some(wrong) = self.world.displaced.take() {
                return Err(wrong);
            }
            if self.disks.all().any(|disk| !disk.oracle.lock().broken.is_empty()) {
                return Err("stopped at the first broken promise".to_owned());
            }
        }
        Ok(())
    }

    fn suffer(&mut self, fired: &mut Fired, faults: &[Fault]) -> Result<(), String> {
        self.pass(Duration::from_millis(400))?;
        for _ in 0..self.world.rng.random_range(3..=6) {
            for _ in 0..self.world.rng.random_range(1..=3) {
                fault::strike(&mut self.world, &mut self.disks, fired, faults);
                let time = self.world.rng.random_range(0..1_500);
                self.pass(Duration::from_millis(time))?;
            }
            let time = self.world.rng.random_range(0..3_000);
            self.pass(Duration::from_millis(time))?;
            if self.world.rng.random_bool(0.7) {
                fault::heal(&mut self.world);
            }
            let time = self.world.rng.random_range(0..4_000);
            self.pass(Duration::from_millis(time))?;
        }
        Ok(())
    }

    /// All is well again; the ring has to become whole.
    fn heal(&mut self) -> Result<(), String> {
        fault::revive(&mut self.world);
        let end = self.world.now + HEALING;
        let mut looked = Duration::ZERO;
        while self.world.now < end {
            self.pass(Duration::from_millis(50))?;
            // Clients go on for a while, and then leave it in peace.
            if self.working && looked > Duration::from_secs(2) {
                self.working = false;
            }
            looked += Duration::from_millis(50);
            if !self.working && self.clients.iter().all(|c| c.at.is_none()) && self.is_well() {
                self.world.story.tell("the ring is whole again");
                return Ok(());
            }
        }
        Err(format!("not whole after {HEALING:?}: {}", self.what_is_missing()))
    }

    fn is_well(&self) -> bool {
        let world = &self.world;
        let sound = world.hosts.iter().all(|h| h.repair_at.is_none() && !h.drive().sync_has_failed());
        let sound = sound && world.rotten.is_none() && world.hosts.iter().all(|h| !h.copied);
        sound
            && self.disks.are_settled()
            && world.gone.is_empty()
            && world.retiring.is_none()
            && world.is_whole()
    }

    fn what_is_missing(&self) -> String {
        let mut text: Vec<String> = (0..self.world.hosts.len())
            .filter(|m| !self.world.hosts[*m].absent && self.world.running(*m).is_none())
            .map(|m| format!("sheep {m} does not run"))
            .collect();
        text.extend(self.clients.iter().filter_map(|c| c.at.as_ref().map(|_| format!("{} waits", c.name))));
        if !self.disks.are_settled() {
            text.push("a VDI is not created, or not deleted".to_owned());
        }
        text.push(format!("gone {:?}, retiring {:?}", self.world.gone, self.world.retiring));
        if let Some(state) = self.world.state() {
            let poor: Vec<_> =
                state.slots().filter(|(c, _, config)| !state.is_fully_redundant(*c, config)).collect();
            text.push(format!("{} slots lack copies", poor.len()));
            text.extend(poor.first().map(|(_, slot, config)| format!("slot {slot}: {config:?}")));
            text.extend(state.vdis().map(|v| format!("{} owner {:?}", v.name, v.owner)));
            text.push(format!(
                "nodes {:?}",
                state.nodes().map(|n| (n.spec.session, n.status)).collect::<Vec<_>>()
            ));
        }
        text.join("; ")
    }
}
