//! The slot configurations under random histories, against copies that remember what they hold.
//!
//! Not whole rings, which `sheep/src/sim/` simulates: the cluster state machine is the real one, the copies are
//! numbers. A copy holds the
//! version of the last write it applied, and of the last one that is durable. What must hold: whoever the
//! state calls in sync holds every acknowledged write as long as anybody has kept it in memory who was in sync,
//! and every flushed one for ever.
//!
//! `SEED=s` replays one history and prints it; `SEEDS=n FIRST=s` runs many. The last line counts.

use std::collections::{BTreeMap, BTreeSet};

use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use sheep::cluster::entry::{ClusterEntry, ClusterReply, NodeSpec, Reached};
use sheep::cluster::slots::{MemberState, SlotConfig};
use sheep::cluster::state::ClusterState;
use wire::id::{ClusterId, NodeId, Session, SlotIndex};
use wire::policy::Copies;

const NODES: u64 = 5;
const SLOTS: u32 = 16;
const STEPS: u32 = 400;
const MIN_COPIES: usize = 2;

/// A bug put in on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mutant {
    None,
    /// A copy is admitted without having caught up.
    AdmitEarly,
    /// A write is acknowledged when one member has it.
    AckAtOne,
    /// A restart keeps its place in the in-sync set whatever was lost.
    TrustRestart,
    /// A flush is answered though too few are in sync.
    FlushBelowMin,
    /// Nobody says how far its log had come when its process began.
    NobodyKnew,
}

#[derive(Debug, Clone, Copy, Default)]
struct Copy {
    written: u64,
    durable: u64,
}

struct Process {
    up: bool,
    start: u64,
    boot: u128,
    /// How far its log has come.
    reached: u64,
    /// How far it had when its processes began.
    before: Vec<Reached>,
}

#[derive(Debug, Default)]
struct Promise {
    next: u64,
    acknowledged: u64,
    flushed: u64,
    /// Who has kept in memory, or made durable since, all that is acknowledged and was ever in sync with it.
    keepers: BTreeSet<u64>,
    /// Those of them that are not in sync any more, and since when more may be acknowledged without them: not
    /// yet if 0.
    out: BTreeMap<u64, u64>,
}

struct World {
    rng: StdRng,
    mutant: Mutant,
    state: ClusterState,
    index: u64,
    processes: BTreeMap<u64, Process>,
    copies: BTreeMap<(u64, u32), Copy>,
    promises: BTreeMap<u32, Promise>,
    story: Vec<String>,
}

fn copies() -> Copies {
    Copies::new(3).expect("in range")
}

impl World {
    fn new(seed: u64, mutant: Mutant) -> Self {
        let mut world = Self {
            rng: StdRng::seed_from_u64(seed),
            mutant,
            state: ClusterState::default(),
            index: 0,
            processes: (1..=NODES)
                .map(|n| (n, Process { up: true, start: 1, boot: 1, reached: 0, before: Vec::new() }))
                .collect(),
            copies: BTreeMap::new(),
            promises: (0..SLOTS).map(|s| (s, Promise::default())).collect(),
            story: Vec::new(),
        };
        let nodes = (1..=NODES).map(|n| world.spec(n)).collect();
        let entry =
            ClusterEntry::Format { cluster: ClusterId(1), copies: copies(), slots: 256, nodes, now_ms: 0 };
        world.apply(entry);
        world
    }

    fn spec(&self, node: u64) -> NodeSpec {
        let process = &self.processes[&node];
        NodeSpec {
            session: Session { node: NodeId(node), start: process.start },
            process: process.start,
            nonce: 0,
            boot: process.boot,
            admin: format!("127.0.0.1:{}", 7000 + node),
            mesh: format!("127.0.0.1:{}", 8000 + node),
            zone: format!("z{}", node % 4),
            vnodes: 128,
            gateway: false,
            reached: if self.mutant == Mutant::NobodyKnew { Vec::new() } else { process.before.clone() },
        }
    }

    fn apply(&mut self, entry: ClusterEntry) -> ClusterReply {
        self.index += 1;
        let reply = self.state.apply_entry(self.index, &entry);
        self.processes.values_mut().filter(|p| p.up).for_each(|p| p.reached = self.index);
        for slot in 0..SLOTS {
            self.see_who_keeps(slot);
        }
        reply
    }

    /// Who was taken out keeps all that was acknowledged until more may be: until enough are in sync and each of
    /// them knows of it.
    fn see_who_keeps(&mut self, slot: u32) {
        let config = self.state.slot(copies(), SlotIndex(slot)).expect("formatted");
        let serving = config.in_state(MemberState::InSync).filter(|m| self.state.serves(m.session));
        let serving: BTreeSet<u64> = serving.map(|m| m.session.node.0).collect();
        if serving.is_empty() {
            return;
        }
        let enough = serving.len() >= MIN_COPIES;
        let promise = self.promises.get_mut(&slot).expect("known");
        let (index, processes) = (self.index, &self.processes);
        let out = &mut promise.out;
        out.retain(|n, _| !serving.contains(n));
        promise.keepers.retain(|node| {
            if serving.contains(node) {
                return true;
            }
            let since = *out.entry(*node).or_insert(if enough { index } else { 0 });
            let all_know = |since| serving.iter().all(|n| processes[n].reached >= since);
            match (since, enough) {
                (0, false) => true,
                (0, true) => {
                    !all_know(index) && {
                        out.insert(*node, index);
                        true
                    }
                }
                (since, _) => !all_know(since),
            }
        });
    }

    fn config(&self, slot: u32) -> SlotConfig {
        SlotConfig::clone(self.state.slot(copies(), SlotIndex(slot)).expect("formatted"))
    }

    /// Whether a member's process runs and is the session that the state means.
    fn answers(&self, session: Session) -> bool {
        let process = &self.processes[&session.node.0];
        process.up && process.start == session.start && self.state.serves(session)
    }

    fn in_sync(&self, slot: u32) -> Vec<u64> {
        let config = self.config(slot);
        config
            .in_state(MemberState::InSync)
            .filter(|m| self.answers(m.session))
            .map(|m| m.session.node.0)
            .collect()
    }

    fn copy(&mut self, node: u64, slot: u32) -> &mut Copy {
        self.copies.entry((node, slot)).or_default()
    }

    /// What a new owner does: the longest prefix goes to everybody who is in sync.
    fn settle(&mut self, slot: u32) {
        let members = self.in_sync(slot);
        let newest = members.iter().map(|n| self.copy(*n, slot).written).max().unwrap_or(0);
        members.iter().for_each(|n| self.copy(*n, slot).written = newest);
        let promise = self.promises.get_mut(&slot).expect("known");
        promise.next = promise.next.max(newest);
    }

    fn write(&mut self, slot: u32) {
        let config = self.config(slot);
        let serving = config.in_state(MemberState::InSync).filter(|m| self.state.serves(m.session)).count();
        if serving < MIN_COPIES {
            return;
        }
        self.settle(slot);
        let version = {
            let promise = self.promises.get_mut(&slot).expect("known");
            promise.next += 1;
            promise.next
        };
        let reaches_all = self.rng.random_bool(0.8);
        let (mut applied, mut missing) = (0, 0);
        for member in &config.members {
            let reached = self.answers(member.session) && (reaches_all || self.rng.random_bool(0.5));
            if reached && member.state == MemberState::InSync {
                self.copy(member.session.node.0, slot).written = version;
            }
            if reached { applied += 1 } else { missing += 1 }
        }
        if missing == 0 || (self.mutant == Mutant::AckAtOne && applied > 0) {
            let in_sync = config.in_state(MemberState::InSync).map(|m| m.session.node.0).collect();
            let promise = self.promises.get_mut(&slot).expect("known");
            (promise.acknowledged, promise.keepers) = (version, in_sync);
            promise.out.clear();
        }
    }

    fn flush(&mut self, slot: u32) {
        let config = self.config(slot);
        let serving = config.in_state(MemberState::InSync).filter(|m| self.state.serves(m.session)).count();
        let needed = if self.mutant == Mutant::FlushBelowMin { 1 } else { MIN_COPIES };
        if serving < needed || !config.members.iter().all(|m| self.answers(m.session)) {
            return;
        }
        self.settle(slot);
        for node in self.in_sync(slot) {
            let copy = self.copy(node, slot);
            copy.durable = copy.written;
        }
        let promise = self.promises.get_mut(&slot).expect("known");
        promise.flushed = promise.acknowledged;
    }

    fn restart(&mut self, node: u64, power_lost: bool) {
        let process = self.processes.get_mut(&node).expect("known");
        process.start += 1;
        process.before.push(Reached { before: process.start, index: process.reached });
        process.up = true;
        process.boot += u128::from(power_lost);
        if power_lost {
            for slot in 0..SLOTS {
                let copy = *self.copy(node, slot);
                let kept = self.rng.random_range(copy.durable..=copy.written.max(copy.durable));
                *self.copy(node, slot) = Copy { written: kept, durable: kept };
                let promise = self.promises.get_mut(&slot).expect("known");
                if promise.keepers.remove(&node) && promise.keepers.is_empty() {
                    promise.acknowledged = promise.flushed;
                }
            }
        }
        if self.mutant == Mutant::TrustRestart && power_lost {
            // It claims the boot that it no longer has.
            self.processes.get_mut(&node).expect("known").boot -= 1;
        }
        let spec = self.spec(node);
        let session = spec.session;
        self.apply(ClusterEntry::Join { node: spec, now_ms: 0 });
        self.apply(ClusterEntry::Ready { session });
        (0..SLOTS).for_each(|slot| self.settle(slot));
    }

    /// One dies, and before anybody has noticed another restarts and the rest lose their power; the first one last.
    fn all_at_once(&mut self, slot: u32) {
        let mut set = self.in_sync(slot);
        set.shuffle(&mut self.rng);
        let [dead, restarted, rest @ ..] = &set[..] else { return };
        self.processes.get_mut(dead).expect("known").up = false;
        self.restart(*restarted, false);
        rest.iter().for_each(|node| self.restart(*node, true));
        self.restart(*dead, true);
    }

    fn catch_up(&mut self, node: u64) {
        let session = Session { node: NodeId(node), start: self.processes[&node].start };
        if !self.answers(session) {
            return;
        }
        let seen = self.index;
        let mut ready = Vec::new();
        for slot in 0..256 {
            let config = SlotConfig::clone(self.state.slot(copies(), SlotIndex(slot)).expect("formatted"));
            let Some(member) = config.member(session).filter(|m| m.state == MemberState::CatchingUp) else {
                continue;
            };
            if slot < SLOTS {
                let Some(source) = self.in_sync(slot).first().copied() else { continue };
                if self.mutant != Mutant::AdmitEarly {
                    let copy = *self.copy(source, slot);
                    *self.copy(node, slot) = Copy { written: copy.written, durable: copy.written };
                }
            }
            ready.push((SlotIndex(slot), member.since));
        }
        self.apply(ClusterEntry::Admit { session, copies: copies(), slots: ready, seen });
        for slot in 0..SLOTS {
            let admitted = self.in_sync(slot).contains(&node);
            let promise = self.promises.get_mut(&slot).expect("known");
            if admitted && !promise.keepers.is_empty() {
                promise.keepers.insert(node);
            }
        }
    }

    /// What the leader says once it sees how far the others' logs have come.
    fn tell_who_knows(&mut self) {
        let index = self.index;
        let knows = |s: &Session| self.answers(*s) && self.processes[&s.node.0].reached >= index;
        let sessions = self.state.nodes().filter_map(|n| n.live_session()).filter(knows).collect();
        self.apply(ClusterEntry::Known { sessions, index });
    }

    fn step(&mut self) {
        let node = self.rng.random_range(1..=NODES);
        let slot = self.rng.random_range(0..SLOTS);
        let what = match self.rng.random_range(0..100) {
            0..45 => {
                self.write(slot);
                format!("write to slot {slot}")
            }
            45..58 => {
                self.flush(slot);
                format!("flush slot {slot}")
            }
            58..66 => {
                self.processes.get_mut(&node).expect("known").up = false;
                format!("kill {node}")
            }
            66..72 => {
                let dead: Vec<Session> = self
                    .state
                    .nodes()
                    .filter_map(|n| n.live_session())
                    .filter(|s| !self.answers(*s) && self.state.serves(*s))
                    .collect();
                let story = format!("evict {dead:?}");
                self.apply(ClusterEntry::Evict { sessions: dead, now_ms: 0 });
                if self.rng.random_bool(0.5) {
                    self.tell_who_knows();
                }
                story
            }
            72..84 => {
                let power_lost = self.rng.random_bool(0.3);
                self.restart(node, power_lost);
                format!("restart {node}, power lost: {power_lost}")
            }
            84..96 => {
                self.catch_up(node);
                format!("{node} catches up")
            }
            96 => {
                self.apply(ClusterEntry::Out { node: NodeId(node) });
                format!("{node} is out")
            }
            97 => {
                self.all_at_once(slot);
                format!("everybody of slot {slot} at once")
            }
            _ => {
                let on = self.rng.random_bool(0.5);
                self.apply(ClusterEntry::Drain { node: NodeId(node), on });
                format!("drain {node}: {on}")
            }
        };
        if let Ok(slot) = std::env::var("SLOT") {
            let slot = slot.parse().expect("SLOT is a number");
            let (config, promise) = (self.config(slot), &self.promises[&slot]);
            self.story.push(format!(
                "  {promise:?} {:?} {config:?}",
                self.copies.iter().filter(|((_, s), _)| *s == slot).collect::<Vec<_>>()
            ));
        }
        self.story.push(what);
    }

    fn check(&mut self) -> Result<(), String> {
        self.state.validate()?;
        for slot in 0..SLOTS {
            for node in self.in_sync(slot) {
                let held = self.copy(node, slot).written;
                let promise = &self.promises[&slot];
                if held < promise.acknowledged {
                    return Err(format!(
                        "slot {slot}: node {node} is in sync with write {held}, but {} was acknowledged",
                        promise.acknowledged
                    ));
                }
                if held < promise.flushed {
                    return Err(format!(
                        "slot {slot}: node {node} is in sync with write {held}, but {} was flushed",
                        promise.flushed
                    ));
                }
            }
        }
        Ok(())
    }

    /// Everything comes back: then every slot has its copies.
    fn heal(&mut self) -> Result<(), String> {
        for node in 1..=NODES {
            self.apply(ClusterEntry::Drain { node: NodeId(node), on: false });
            if !self.processes[&node].up || !self.answers(self.spec(node).session) {
                self.restart(node, false);
            }
        }
        for _ in 0..3 {
            (1..=NODES).for_each(|n| self.catch_up(n));
        }
        self.check()?;
        self.tell_who_knows();
        let remembered = self.state.slots().filter(|(_, _, s)| !s.eligible.is_empty()).count();
        if remembered > 0 {
            return Err(format!("{remembered} slots wait for nodes that nobody needs"));
        }
        let short = self.state.slots().filter(|(c, _, s)| !self.state.is_fully_redundant(*c, s)).count();
        if short > 0 { Err(format!("{short} slots lack copies after everything is back")) } else { Ok(()) }
    }
}

fn run(seed: u64, mutant: Mutant) -> Result<(), (String, Vec<String>)> {
    let mut world = World::new(seed, mutant);
    for _ in 0..STEPS {
        world.step();
        if let Err(problem) = world.check() {
            return Err((problem, world.story));
        }
    }
    world.heal().map_err(|problem| (problem, world.story))
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|v| v.parse().ok()).unwrap_or(default)
}

#[test]
fn who_is_in_sync_holds_what_was_promised() {
    if let Ok(seed) = std::env::var("SEED") {
        let seed = seed.parse().expect("SEED is a number");
        if let Err((problem, story)) = run(seed, Mutant::None) {
            story.iter().for_each(|line| println!("{line}"));
            panic!("seed {seed}: {problem}");
        }
        return;
    }
    let (first, count) = (number("FIRST", 1), number("SEEDS", 60));
    let failed: Vec<u64> = (first..first + count).filter(|s| run(*s, Mutant::None).is_err()).collect();
    println!("{} passed, {} failed", count - failed.len() as u64, failed.len());
    assert!(failed.is_empty(), "replay with SEED={}", failed[0]);
}

#[test]
fn bugs_put_in_on_purpose_are_caught() {
    for (mutant, within) in [
        (Mutant::AdmitEarly, 40),
        (Mutant::AckAtOne, 40),
        (Mutant::TrustRestart, 40),
        (Mutant::FlushBelowMin, 40),
        (Mutant::NobodyKnew, 40),
    ] {
        let caught = (1..=within).find(|seed| run(*seed, mutant).is_err());
        println!("{mutant:?}: {caught:?}");
        assert!(caught.is_some(), "{mutant:?} was not caught within {within} seeds");
    }
}
