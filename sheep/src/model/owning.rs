//! An owner: takes over, numbers writes, answers.

use wire::id::{Generation, Session};

use super::log::{SLOT, copies, place, session};
use super::promise::rank;
use super::small::{Small, fence};
use super::step::Step;
use super::world::*;
use crate::cluster::slots::MemberState;
use crate::mutant::{Mutant, planted};
use crate::replica::right::{Role, Standing};
use crate::store::BlockEntry;
use crate::vdi::answers::Answers;
use crate::vdi::settle::{Copy, Finding, Forward, compare};

/// A copy as its holder describes it: what a block holds stands for its checksum.
fn describe(session: Session, held: &Held) -> Copy {
    Copy {
        session,
        version: held.version.into(),
        table: held.blocks.iter().map(|value| BlockEntry { crc: (*value).into(), stamp: 0 }).collect(),
        damaged: Default::default(),
    }
}

impl Numbered {
    fn answers(&self) -> Answers {
        let mut answers = Answers::default();
        for (at, answer) in self.answers.iter().enumerate() {
            if let Some((start, config)) = *answer {
                answers.note(session(at, start), config.into());
            }
        }
        answers
    }
}

impl Small {
    /// An owner is there exactly while its node's view says so.
    pub(super) fn follow_log(&self, world: &mut World) {
        for at in 0..OWNERS {
            let (view, node) = (self.view(world, at), &world.nodes[at]);
            if !node.up || view.owner != Some(session(at, node.start)) {
                world.owners[at] = None;
            } else if world.owners[at].as_ref().is_none_or(|o| o.generation != view.generation) {
                world.owners[at] = Some(Owner {
                    generation: view.generation,
                    phase: Phase::Sealing,
                    sealed: [None; NODES],
                    newest: Ver::default(),
                    writes: [None; WRITES],
                });
                if planted(Mutant::NoSeal) {
                    self.serve_unsealed(world, at);
                }
            }
        }
    }

    /// Without a seal nobody tells of anything to settle, and the version is whatever the first copy has.
    fn serve_unsealed(&self, world: &mut World, at: usize) {
        let members = self.in_sync(world, at);
        let first = members.iter().find(|m| place(**m) == at).or(members.first()).map(|m| place(*m));
        let newest = first.map(|n| world.nodes[n].memory.version);
        if let (Some(owner), Some(newest)) = (&mut world.owners[at], newest) {
            (owner.phase, owner.newest) = (Phase::Serving, newest);
        }
    }

    /// Once all who may hold a copy have sealed, the copies are compared.
    pub(super) fn begin_to_settle(&self, world: &mut World, at: usize) {
        let view = self.view(world, at);
        let Some(owner) = world.owners[at].as_mut().filter(|o| o.phase == Phase::Sealing) else { return };
        let has_sealed =
            |s: Session| owner.sealed[place(s)].is_some_and(|(start, _)| s.start == u64::from(start));
        if view.state.holders().all(has_sealed) {
            owner.phase = Phase::Settling;
        }
    }

    /// The in-sync sessions in a node's view that serve.
    fn in_sync(&self, world: &World, at: usize) -> Vec<Session> {
        let view = self.view(world, at);
        let members = view.config.in_state(MemberState::InSync).map(|m| m.session);
        members.filter(|s| view.state.serves(*s)).collect()
    }

    /// Everything that the owners may do.
    pub(super) fn owner_steps(&mut self, world: &World, into: &mut Vec<(Step, World)>) {
        for at in 0..OWNERS {
            let Some(owner) = &world.owners[at] else { continue };
            match owner.phase {
                Phase::Sealing => self.seal(world, at, owner, into),
                Phase::Settling => self.settle(world, at, owner, into),
                Phase::Serving => {
                    self.tell(world, at, into);
                    self.write(world, at, owner, into);
                    self.flush(world, at, owner, into);
                }
            }
        }
    }

    fn seal(&self, world: &World, at: usize, owner: &Owner, into: &mut Vec<(Step, World)>) {
        let view = self.view(world, at);
        for to in view.state.holders() {
            let holder = place(to);
            let fence = fence(&view, to, owner.generation);
            let asked = owner.sealed[holder].is_none_or(|(start, _)| to.start != u64::from(start));
            if asked && world.nodes[holder].up && self.check(world, holder, &fence, false).is_ok() {
                let mut next = world.clone();
                let node = &mut next.nodes[holder];
                node.sealed = node.sealed.max(owner.generation);
                let answer = (node.start, node.suspect);
                if let Some(owner) = &mut next.owners[at] {
                    owner.sealed[holder] = Some(answer);
                }
                into.push((Step::Seal { owner: at, at: holder }, next));
            }
        }
    }

    fn settle(&self, world: &World, at: usize, owner: &Owner, into: &mut Vec<(Step, World)>) {
        let view = self.view(world, at);
        let members = self.in_sync(world, at);
        let answers = |to: &Session| {
            let fence = fence(&view, *to, owner.generation);
            let (node, holder) = (&world.nodes[place(*to)], self.view(world, place(*to)));
            let standing = Standing { me: session(place(*to), node.start), state: &holder.state };
            let sealed = Generation(node.sealed.into());
            node.up && standing.check_read(&fence, sealed, (copies(), SLOT)).is_ok()
        };
        if members.is_empty() || !members.iter().all(answers) {
            return;
        }
        let described: Vec<Copy> =
            members.iter().map(|s| describe(*s, &world.nodes[place(*s)].memory)).collect();
        let told = owner.sealed.iter().enumerate();
        let suspects: Vec<Session> =
            told.filter_map(|(n, told)| told.filter(|t| t.1).map(|t| session(n, t.0))).collect();
        let mut patch = |to: &Copy, version, blocks| {
            let mut next = world.clone();
            let holder = place(to.session);
            next.nodes[holder].memory = Held { version, blocks };
            into.push((Step::Patch { owner: at, at: holder }, next));
        };
        match compare(&described, &suspects, Generation(owner.generation.into())) {
            Finding::Nothing => {}
            Finding::Same(version) => {
                let mut next = world.clone();
                if let Some(owner) = &mut next.owners[at] {
                    (owner.phase, owner.newest) = (Phase::Serving, version.into());
                }
                for holder in 0..NODES {
                    self.tell_one(&mut next, at, holder);
                }
                into.push((Step::Serve(at), next));
            }
            Finding::Touched(_, own) => {
                described
                    .iter()
                    .for_each(|c| patch(c, own.into(), world.nodes[place(c.session)].memory.blocks));
            }
            Finding::Differ => {
                let Some(forward) = Forward::new(&described) else { return };
                for copy in &described {
                    let mut held = world.nodes[place(copy.session)].memory;
                    for index in forward.differing() {
                        if let Some((_, entry)) = forward.sources(index).next()
                            && copy.lacks(index, entry)
                        {
                            held.blocks[index as usize] = entry.crc as u8;
                        }
                    }
                    held.version = forward.best.version.into();
                    if held != world.nodes[place(copy.session)].memory {
                        patch(copy, held.version, held.blocks);
                    }
                }
            }
        }
    }

    fn tell(&self, world: &World, at: usize, into: &mut Vec<(Step, World)>) {
        for holder in 0..NODES {
            let mut next = world.clone();
            if self.tell_one(&mut next, at, holder) {
                into.push((Step::Tell { owner: at, at: holder }, next));
            }
        }
    }

    /// Tells a holder that the takeover is done, if it does not know and can be told.
    fn tell_one(&self, world: &mut World, at: usize, holder: usize) -> bool {
        let (view, node) = (self.view(world, at), &world.nodes[holder]);
        let Some(generation) = world.owners[at].as_ref().map(|o| o.generation) else { return false };
        let Some(to) = view.state.holders().find(|s| place(*s) == holder) else { return false };
        let fence = fence(&view, to, generation);
        if node.settled >= generation || !node.up || self.check(world, holder, &fence, false).is_err() {
            return false;
        }
        let in_sync = self.role(world, holder) == Role::InSync;
        let node = &mut world.nodes[holder];
        node.settled = generation;
        node.suspect &= !in_sync;
        true
    }

    /// Numbers the next write and sends it.
    fn write(&self, world: &World, at: usize, owner: &Owner, into: &mut Vec<(Step, World)>) {
        let view = self.view(world, at);
        let open = |w: &usize| owner.writes[*w].is_none() && !world.promise.acknowledged[*w];
        let Some(write) = (0..self.scope.writes).find(open) else { return };
        let replaces = |w: usize| BLOCK_OF[w] == BLOCK_OF[write];
        let follows = (0..write).all(|w| !replaces(w) || world.promise.acknowledged[w]);
        if !follows || !view.state.is_enough(copies(), &view.config) {
            return;
        }
        let version = Ver { generation: owner.generation, seq: owner.newest.seq + 1 };
        let mut next = world.clone();
        if let Some(owner) = &mut next.owners[at] {
            let numbered = Numbered { version, predecessor: owner.newest, answers: [None; NODES] };
            (owner.newest, owner.writes[write]) = (version, Some(numbered));
        }
        self.send_again(&mut next, at);
        into.push((Step::Number { owner: at, write }, next));
    }

    /// Sends every write to the members that have not answered under the present configuration, unless it is under
    /// way to them.
    pub(super) fn send_again(&self, world: &mut World, at: usize) {
        let view = self.view(world, at);
        let Some(owner) = &world.owners[at] else { return };
        let config = view.config.version;
        for (write, numbered) in owner.writes.iter().enumerate() {
            let Some(Numbered { version, predecessor, .. }) = *numbered else { continue };
            let answers = numbered.as_ref().map(Numbered::answers).unwrap_or_default();
            for to in view.config.members.iter().map(|m| m.session).filter(|s| !answers.counts(*s, config)) {
                let (start, to) = (to.start as u8, place(to) as u8);
                let sent = Sent { write: write as u8, to, start, config: config as u8, version, predecessor };
                let is_it = |s: &Sent| (s.version, s.to, s.start) == (version, to, start);
                if !world.sent.iter().any(is_it) {
                    world.sent.push(sent);
                }
            }
        }
    }

    /// Answers every write that all members have.
    pub(super) fn answer(&self, world: &mut World, at: usize) {
        let view = self.view(world, at);
        let Some(owner) = &mut world.owners[at] else { return };
        if !view.state.is_enough(copies(), &view.config) {
            return;
        }
        for (write, numbered) in owner.writes.iter_mut().enumerate() {
            if numbered.take_if(|n| n.answers().all_of(&view.config)).is_none()
                || world.promise.acknowledged[write]
            {
                continue;
            }
            let mut keepers = [false; NODES];
            for member in view.config.in_state(MemberState::InSync) {
                let node = place(member.session);
                keepers[node] = member.boot == u128::from(world.nodes[node].boot);
            }
            world.promise.acknowledge(write, keepers);
        }
    }

    /// Reads all that can be read: from then on it is owed.
    pub(super) fn read(&self, world: &mut World, at: usize) {
        for block in 0..BLOCKS {
            for (_, value) in self.reads(world, at, block) {
                let floor = &mut world.promise.floor[block];
                *floor = rank(block, value).max(*floor);
            }
        }
    }

    fn flush(&self, world: &World, at: usize, owner: &Owner, into: &mut Vec<(Step, World)>) {
        let view = self.view(world, at);
        let asked: [Option<u8>; NODES] = std::array::from_fn(|n| view.live[n]);
        match world.flush {
            Flush::Open if world.promise.written != world.promise.flushed => {
                let mut next = world.clone();
                let (generation, covers) = (owner.generation, world.promise.written);
                next.flush =
                    Flush::Running { owner: at as u8, generation, covers, asked, done: [false; NODES] };
                into.push((Step::Flush(at), next));
            }
            Flush::Running { owner: by, generation, covers, asked: were, done } if usize::from(by) == at => {
                let serves = |n: usize| were[n].is_some_and(|start| view.state.serves(session(n, start)));
                let waits = (0..NODES).any(|n| serves(n) && !done[n]);
                if !waits && view.state.is_enough(copies(), &view.config) {
                    let mut next = world.clone();
                    if (0..NODES).all(|n| were[n].is_none() || serves(n)) {
                        next.flush = Flush::Done;
                        next.promise.flush(covers);
                    } else {
                        let done = [false; NODES];
                        next.flush = Flush::Running { owner: by, generation, covers, asked, done };
                    }
                    into.push((Step::Flushed, next));
                }
                for to in (0..NODES).filter(|n| serves(*n) && !done[*n]) {
                    let fence = fence(&view, session(to, were[to].unwrap_or_default()), generation);
                    let knows = self.view(world, to).state.epoch().0 >= fence.epoch;
                    if world.nodes[to].up && knows && self.check(world, to, &fence, false).is_ok() {
                        let mut next = world.clone();
                        next.nodes[to].disk = next.nodes[to].memory;
                        if let Flush::Running { done, .. } = &mut next.flush {
                            done[to] = true;
                        }
                        into.push((Step::FlushAt(to), next));
                    }
                }
            }
            Flush::Open | Flush::Running { .. } | Flush::Done => {}
        }
    }
}
