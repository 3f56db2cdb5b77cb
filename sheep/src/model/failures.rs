//! What fails, and how the log hears of it.

use std::time::Duration;

use super::log::{SLOT, VDI, copies, session, spec};
use super::small::Small;
use super::step::Step;
use super::world::*;
use crate::cluster::entry::ClusterEntry;
use crate::cluster::lease::{Grants, HeldLease, margin};

/// Whether a session may still hold its lease when the leader takes it for expired: renewed at the last moment, by a
/// clock that is as slow as it may be.
fn outlives_its_lease() -> bool {
    let ms = Duration::from_millis;
    let renewed = ms(10_000);
    let one = session(0, 1);
    let mut grants = Grants::new(Duration::ZERO, Duration::ZERO);
    grants.renew(one, Some(renewed), renewed).expect("a majority has just confirmed");
    let waits = (0..).map(ms).find(|waits| grants.expired(one, renewed + *waits)).expect("it expires");
    let mut held = HeldLease::default();
    held.granted(renewed);
    held.is_valid(renewed + waits.saturating_sub(margin(waits)))
}

impl Node {
    /// The process is gone; the kernel has what it wrote.
    fn die(&mut self, knew: u8) {
        if std::mem::take(&mut self.up) {
            self.knew = knew;
        }
        self.lease = Lease::Lapsed;
        self.settled = 0;
        self.noticed = 0;
        self.suspect |= self.memory != self.disk;
        self.pass = Pass::None;
        self.fill = Fill { since: 0, admitting: false, object: Progress::Unknown };
    }
}

/// What is left of a copy after a loss of power: `bits` say which parts memory had came to the disk in time.
fn torn(node: &Node, bits: u8) -> Held {
    let (memory, disk) = (node.memory, node.disk);
    let kept = |part: usize| bits & (1 << part) != 0;
    Held {
        version: if kept(0) { memory.version } else { disk.version },
        blocks: std::array::from_fn(|b| if kept(b + 1) { memory.blocks[b] } else { disk.blocks[b] }),
    }
}

impl Small {
    /// Every failure that may still happen.
    pub(super) fn failures(&mut self, world: &World, into: &mut Vec<(Step, World)>) {
        if world.failures == 0 {
            return;
        }
        let begin = || World { failures: world.failures - 1, ..world.clone() };
        for at in (0..NODES).filter(|n| world.nodes[*n].up) {
            if self.scope.kinds.crash {
                let mut next = begin();
                let knew = self.view(world, at).index as u8;
                next.nodes[at].die(knew);
                into.push((Step::Crash(at), next));
            }
            if self.scope.kinds.demote {
                let (mut next, session) = (begin(), session(at, world.nodes[at].start));
                let version = self.head(world).config.version;
                let entry = ClusterEntry::Demote { session, copies: copies(), slot: SLOT, version };
                if self.commit(&mut next, &entry).is_some() {
                    into.push((Step::Demote(at), next));
                }
            }
            if self.scope.kinds.cut
                && world.nodes[at].lease == Lease::Held
                && self.head(world).live[at] == Some(world.nodes[at].start)
            {
                let mut next = begin();
                next.nodes[at].lease = Lease::Fading;
                into.push((Step::Cut(at), next));
            }
        }
        let torn = self.scope.kinds.torn;
        let as_many = |mask: &u8| mask.count_ones() == self.scope.kinds.power;
        for mask in (1..1_u8 << NODES).filter(as_many) {
            let lost: [bool; NODES] = std::array::from_fn(|n| mask & (1 << n) != 0);
            let mut outcomes = vec![([0; NODES], begin())];
            for at in (0..NODES).filter(|n| lost[*n]) {
                let knew = self.view(world, at).index as u8;
                let lost = |(kept, next)| power_lost(at, torn, knew, kept, &next);
                outcomes = outcomes.into_iter().flat_map(lost).collect();
            }
            into.extend(outcomes.into_iter().map(|(kept, next)| (Step::Power { lost, kept }, next)));
        }
    }

    /// What the log's leader does, and what it lets nodes do.
    pub(super) fn log_steps(&mut self, world: &World, into: &mut Vec<(Step, World)>) {
        let head = self.head(world);
        let is_live = |at: usize| head.live[at] == Some(world.nodes[at].start);
        for at in 0..NODES {
            let node = &world.nodes[at];
            if node.lease != Lease::Held && node.up && is_live(at) {
                let mut next = world.clone();
                next.nodes[at].lease = Lease::Held;
                into.push((Step::Heal(at), next));
            }
            if node.lease == Lease::Fading {
                let mut next = world.clone();
                next.nodes[at].lease = Lease::Lapsed;
                into.push((Step::Lapse(at), next));
            }
            let mut next = world.clone();
            if self.learn(&mut next, at) {
                into.push((Step::Learn(at), next));
            }
            if !node.up || !is_live(at) {
                let mut next = world.clone();
                self.join(&mut next, at);
                into.push((Step::Join(at), next));
            }
            if at < OWNERS && node.up && is_live(at) {
                let mut next = world.clone();
                let entry = ClusterEntry::Acquire { vdi: VDI, session: session(at, node.start) };
                if self.commit(&mut next, &entry).is_some() {
                    into.push((Step::Acquire(at), next));
                }
            }
        }
        for mask in 1..1_u8 << NODES {
            let which: [bool; NODES] = std::array::from_fn(|n| mask & (1 << n) != 0);
            let is_over = |n: usize| is_live(n) && world.nodes[n].lease != Lease::Held;
            let all = (0..NODES).all(|n| which[n] == is_over(n));
            if all || mask.count_ones() == 1 && (0..NODES).all(|n| !which[n] || is_over(n)) {
                let mut next = world.clone();
                self.evict(&mut next, which);
                into.push((Step::Evict(which), next));
            }
        }
    }

    /// A node applies what is new in the log, if anything is.
    pub(super) fn learn(&self, world: &mut World, at: usize) -> bool {
        let last = (world.log.len() - 1) as u8;
        let node = &mut world.nodes[at];
        let is_news = node.up && node.view < last;
        if is_news {
            node.view = last;
            self.learned(world, at);
        }
        is_news
    }

    fn evict(&mut self, world: &mut World, which: [bool; NODES]) {
        let sessions = (0..NODES).filter(|n| which[*n]).map(|n| session(n, world.nodes[n].start)).collect();
        self.commit(world, &ClusterEntry::Evict { sessions, now_ms: 0 });
        for at in (0..NODES).filter(|n| which[*n]) {
            if !outlives_its_lease() {
                world.nodes[at].lease = Lease::Lapsed;
            }
        }
    }

    fn join(&mut self, world: &mut World, at: usize) {
        let node = &mut world.nodes[at];
        node.start += 1;
        if !node.up {
            node.up = true;
            node.process = node.start;
            node.reached.push((node.start, std::mem::take(&mut node.knew)));
        }
        node.lease = Lease::Held;
        let node = spec(at, node.start, node.process, node.boot, &node.reached);
        let session = node.session;
        self.commit(world, &ClusterEntry::Join { node, now_ms: 0 });
        self.commit(world, &ClusterEntry::Ready { session });
        // What came before is of no use to a session that was not there.
        world.nodes[at].view = (world.log.len() - 1) as u8;
        self.learned(world, at);
    }

    /// The leader says who knows who was taken out, if that is news; whether it was.
    pub(super) fn tell_who_knows(&mut self, world: &mut World) -> bool {
        let head = self.head(world);
        let Some(index) = head.state.newest_eligible() else { return false };
        let knows = |n: &usize| {
            let node = &world.nodes[*n];
            node.up && head.live[*n] == Some(node.start) && self.view(world, *n).index >= index
        };
        let sessions: Vec<_> = (0..NODES).filter(knows).map(|n| session(n, world.nodes[n].start)).collect();
        head.state.is_news(&sessions.iter().copied().collect(), index)
            && self.commit(world, &ClusterEntry::Known { sessions, index }).is_some()
    }
}

/// Every outcome for a node of a loss of power, each once.
fn power_lost(
    at: usize,
    any_part: bool,
    knew: u8,
    kept: [u8; NODES],
    world: &World,
) -> Vec<([u8; NODES], World)> {
    let mut outcomes: Vec<([u8; NODES], World)> = Vec::new();
    for bits in 0..if any_part { 1_u8 << (BLOCKS + 1) } else { 1 } {
        let held = torn(&world.nodes[at], bits);
        if outcomes.iter().any(|(_, known)| known.nodes[at].memory == held) {
            continue;
        }
        let mut next = world.clone();
        let node = &mut next.nodes[at];
        node.die(knew);
        node.boot += 1;
        (node.memory, node.disk) = (held, held);
        next.promise.memory_lost(at);
        let mut kept = kept;
        kept[at] = bits;
        outcomes.push((kept, next));
    }
    outcomes
}
