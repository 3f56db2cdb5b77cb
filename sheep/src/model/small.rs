//! The model as the explorer sees it: every step from a state, and what is wrong with one.

use std::sync::Arc;

use wire::id::{Generation, Session};
use wire::peer::{Fence, Status};

use super::explore::Model;
use super::log::{Log, Point, SLOT, VDI, copies, place, session};
use super::promise::{Promise, rank, see_who_keeps};
use super::step::Step;
use super::world::*;
use crate::cluster::entry::ClusterEntry;
use crate::cluster::slots::MemberState;
use crate::mutant::{Mutant, planted};
use crate::replica::right::{Role, Standing};

/// What is explored.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scope {
    /// Failures, at most: a crash, a loss of power of any machines at once, a node that is cut off.
    pub(super) failures: u8,
    /// Writes, of three.
    pub(super) writes: usize,
    /// How many of them were acknowledged before the beginning, and not flushed.
    pub(super) begun: usize,
    /// Whether the client may ask for a flush, once.
    pub(super) flush: bool,
    /// Which failures there are.
    pub(super) kinds: Kinds,
    /// Who may be behind in the log; the others apply what is committed at once.
    pub(super) slow: Option<usize>,
}

/// Kinds of failures.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kinds {
    /// A process dies.
    pub(super) crash: bool,
    /// How many machines lose their power at one moment; none if zero.
    pub(super) power: u32,
    /// What they had not flushed is lost in any part, not only as a whole.
    pub(super) torn: bool,
    /// A copy is taken out by an owner that misses an answer of it.
    pub(super) demote: bool,
    /// A node is cut off from the log's leader until its lease has run out.
    pub(super) cut: bool,
}

/// The model.
pub(super) struct Small {
    pub(super) log: Log,
    pub(super) scope: Scope,
}

impl Small {
    pub(super) fn new(scope: Scope) -> Self {
        Self { log: Log::default(), scope }
    }

    /// What is committed.
    pub(super) fn head(&self, world: &World) -> Arc<Point> {
        self.log.at(*world.log.last().expect("never empty"))
    }

    /// What a node has applied.
    pub(super) fn view(&self, world: &World, node: usize) -> Arc<Point> {
        self.log.at(world.log[usize::from(world.nodes[node].view)])
    }

    /// Checks a request to a node as its replica does.
    pub(super) fn check(&self, world: &World, at: usize, fence: &Fence, slot: bool) -> Result<Role, Status> {
        let (node, view) = (&world.nodes[at], self.view(world, at));
        let standing = Standing { me: session(at, node.start), state: &view.state };
        standing.check(fence, Generation(node.sealed.into()), slot.then_some((copies(), SLOT)))
    }

    pub(super) fn role(&self, world: &World, at: usize) -> Role {
        let view = self.view(world, at);
        Standing { me: session(at, world.nodes[at].start), state: &view.state }.role(copies(), SLOT)
    }

    /// An entry is committed, if it changes anything; whether it admits somebody.
    pub(super) fn commit(&mut self, world: &mut World, entry: &ClusterEntry) -> Option<bool> {
        let head = *world.log.last().expect("never empty");
        let (next, admitted) = self.log.then(head, entry)?;
        world.log.push(next);
        Some(admitted)
    }

    /// What follows of itself from a step, at once. Nothing is lost by that: what is answered or read sooner is owed for
    /// longer, and a write that is sent again is only under way.
    fn settle_down(&mut self, world: &mut World) {
        loop {
            for at in (0..NODES).filter(|n| Some(*n) != self.scope.slow) {
                self.learn(world, at);
            }
            see_who_keeps(world, &self.log);
            self.follow_log(world);
            self.drop_refused(world);
            for owner in 0..OWNERS {
                self.begin_to_settle(world, owner);
                self.send_again(world, owner);
                self.answer(world, owner);
                self.read(world, owner);
            }
            if !self.tell_who_knows(world) {
                break;
            }
        }
        for at in 0..NODES {
            let catches_up = matches!(self.role(world, at), Role::CatchingUp(_));
            let node = &mut world.nodes[at];
            if !catches_up && node.pass == Pass::None {
                node.fill = Fill { since: 0, admitting: false, object: Progress::Unknown };
            }
        }
        if let Flush::Running { owner, generation, .. } = world.flush
            && world.owners[usize::from(owner)].as_ref().is_none_or(|o| o.generation != generation)
        {
            world.flush = Flush::Open;
        }
        let last = (world.log.len() - 1) as u8;
        world.nodes.iter_mut().filter(|n| !n.up).for_each(|n| n.view = last);
        let known = world.nodes.iter().map(|n| n.view).min().unwrap_or_default();
        world.log.drain(..usize::from(known));
        world.nodes.iter_mut().for_each(|n| n.view -= known);
        world.sent.sort_unstable();
    }

    /// Writes that are refused whenever they arrive.
    fn drop_refused(&self, world: &mut World) {
        let refused = |sent: &Sent| {
            let node = &world.nodes[usize::from(sent.to)];
            let never = [Status::WrongSession, Status::StaleConfig, Status::StaleGeneration];
            let check = self.check(world, sent.to.into(), &sent.fence(), true);
            !node.up || check.is_err_and(|status| never.contains(&status))
        };
        let kept: Vec<Sent> = world.sent.iter().filter(|s| !refused(s)).copied().collect();
        world.sent = kept;
    }

    /// What a read of a block would return at an owner, by copy that may be read.
    pub(super) fn reads(&self, world: &World, owner: usize, block: usize) -> Vec<(usize, u8)> {
        let Some(state) = world.owners[owner].as_ref().filter(|o| o.phase == Phase::Serving) else {
            return Vec::new();
        };
        if (0..WRITES).any(|w| BLOCK_OF[w] == block && state.writes[w].is_some()) {
            return Vec::new();
        }
        let view = self.view(world, owner);
        let members = || view.config.in_state(MemberState::InSync).filter(|m| view.state.serves(m.session));
        let own = self.role(world, owner) == Role::InSync;
        let answers = |s: &Session| {
            let at = place(*s);
            let fence = fence(&view, *s, state.generation);
            let here = world.nodes[at].up && self.check(world, at, &fence, true) == Ok(Role::InSync);
            if own { at == owner } else { here && at != owner }
        };
        let from: Vec<usize> = members().map(|m| m.session).filter(answers).map(place).collect();
        if from.is_empty() || !self.is_current(world, owner, &view, state.generation) {
            return Vec::new();
        }
        from.into_iter().map(|at| (at, world.nodes[at].memory.blocks[block])).collect()
    }

    /// Whether an owner may answer a read: by its lease, or because every in-sync member confirms it.
    fn is_current(&self, world: &World, owner: usize, view: &Point, generation: u8) -> bool {
        let confirms = |s: Session| {
            let at = place(s);
            world.nodes[at].up && self.check(world, at, &fence(view, s, generation), true).is_ok()
        };
        world.nodes[owner].lease != Lease::Lapsed
            || planted(Mutant::NoLeaseCheck)
            || view.config.in_state(MemberState::InSync).all(|m| confirms(m.session))
    }

    /// Whether nothing is under way and everybody knows everything.
    fn is_quiet(&self, world: &World) -> bool {
        let head = self.head(world);
        let serves = |o: &Owner| {
            o.generation == head.generation && o.phase == Phase::Serving && o.writes == [None; WRITES]
        };
        world.log.len() == 1 && world.sent.is_empty() && world.owners.iter().flatten().any(serves)
    }
}

/// What an owner's request to a session carries.
pub(super) fn fence(view: &Point, to: Session, generation: u8) -> Fence {
    Fence {
        to_start: to.start,
        vdi: VDI.0,
        generation: generation.into(),
        config: view.config.version,
        epoch: view.state.epoch().0,
    }
}

impl Model for Small {
    type State = World;
    type Step = Step;

    fn initial(&mut self) -> World {
        let node = Node {
            up: true,
            start: 1,
            process: 1,
            boot: 1,
            reached: Vec::new(),
            view: 0,
            knew: 0,
            lease: Lease::Held,
            sealed: 1,
            settled: 1,
            memory: Held::default(),
            disk: Held::default(),
            suspect: false,
            fill: Fill { since: 0, admitting: false, object: Progress::Unknown },
            pass: Pass::None,
            noticed: 1,
        };
        let owner = Owner {
            generation: 1,
            phase: Phase::Serving,
            sealed: [None; NODES],
            newest: Ver::default(),
            writes: [None; WRITES],
        };
        let (mut node, mut owner, mut promise) = (node, owner, Promise::new());
        for (write, block) in BLOCK_OF.iter().enumerate().take(self.scope.begun) {
            owner.newest = Ver { generation: 1, seq: owner.newest.seq + 1 };
            node.memory.version = owner.newest;
            node.memory.blocks[*block] = write as u8 + 1;
            promise.acknowledge(write, [true; NODES]);
        }
        World {
            log: vec![self.log.found()],
            nodes: [node.clone(), node.clone(), node],
            owners: [Some(owner), None],
            sent: Vec::new(),
            flush: if self.scope.flush { Flush::Open } else { Flush::Done },
            promise,
            failures: self.scope.failures,
        }
    }

    fn next(&mut self, world: &World, into: &mut Vec<(Step, World)>) {
        self.failures(world, into);
        self.log_steps(world, into);
        self.owner_steps(world, into);
        self.copy_steps(world, into);
        into.iter_mut().for_each(|(_, next)| self.settle_down(next));
    }

    fn wrong(&mut self, world: &World) -> Option<String> {
        for owner in 0..OWNERS {
            for block in 0..BLOCKS {
                let floor = world.promise.floor[block];
                let reads = self.reads(world, owner, block);
                if let Some((from, value)) = reads.into_iter().find(|(_, v)| rank(block, *v) < floor) {
                    return Some(format!(
                        "{} may answer a read of block {block} with {value} from the copy of {}, and rank {floor} is owed",
                        owner + 1,
                        from + 1
                    ));
                }
            }
        }
        if let [Some(one), Some(two)] = &world.owners
            && one.generation == two.generation
        {
            return Some(format!("two owners under generation {}", one.generation));
        }
        if self.is_quiet(world) {
            let head = self.head(world);
            let mut held = head
                .config
                .in_state(MemberState::InSync)
                .map(|m| (m.session, &world.nodes[place(m.session)]))
                .filter(|(s, node)| head.state.serves(*s) && node.up && s.start == u64::from(node.start))
                .map(|(_, node)| node.memory);
            if let Some(first) = held.next()
                && held.any(|other| other != first)
            {
                return Some("copies in sync differ although nothing is under way".to_owned());
            }
        }
        None
    }

    fn is_fault(&self, step: Step) -> bool {
        matches!(step, Step::Crash(_) | Step::Power { .. } | Step::Demote(_) | Step::Cut(_) | Step::Lapse(_))
    }

    fn is_goal(&mut self, world: &World) -> bool {
        let head = self.head(world);
        self.is_quiet(world)
            && head.state.is_fully_redundant(copies(), &head.config)
            && head.config.eligible.is_empty()
            && world.promise.acknowledged[..self.scope.writes].iter().all(|a| *a)
            && !matches!(world.flush, Flush::Running { .. })
            && world.nodes.iter().all(|n| n.up && n.lease == Lease::Held)
    }
}
