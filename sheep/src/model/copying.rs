//! A copy: takes writes, and catches up.

use bytes::Bytes;
use wire::id::{Birth, Generation, Oid, Version};
use wire::peer::{CatchUpRequest, Fence, Status, WriteRequest};

use super::log::{SLOT, VDI, copies, place, session};
use super::small::Small;
use super::step::Step;
use super::world::*;
use crate::cluster::entry::ClusterEntry;
use crate::cluster::slots::MemberState;
use crate::mutant::{Mutant, planted};
use crate::replica::fill::{Arrival, Kept, ObjectFill, SlotFill, newest};
use crate::replica::right::{Order, Role, Standing, order};

fn object() -> (Oid, Birth) {
    (Oid::data(VDI, 0), Birth(1))
}

impl Sent {
    /// What it says of who sent it.
    pub(super) fn fence(&self) -> Fence {
        Fence {
            to_start: self.start.into(),
            vdi: VDI.0,
            generation: self.version.generation.into(),
            config: self.config.into(),
            epoch: 0,
        }
    }

    fn request(&self) -> WriteRequest {
        WriteRequest {
            fence: self.fence(),
            predecessor: Version::from(self.predecessor).into(),
            version: Version::from(self.version).into(),
            number: self.write.into(),
            ..WriteRequest::default()
        }
    }

    fn of(request: &WriteRequest, to: u8) -> Self {
        Self {
            write: request.number as u8,
            to,
            start: request.fence.to_start as u8,
            config: request.fence.config as u8,
            version: Version::from(request.version).into(),
            predecessor: Version::from(request.predecessor).into(),
        }
    }

    fn kept(&self) -> Kept {
        Kept { request: self.request(), data: Bytes::new(), crcs: Vec::new() }
    }
}

impl Fill {
    /// The product's own, in this state.
    fn open(&self) -> SlotFill {
        let mut fill = SlotFill::new(self.since.into());
        match &self.object {
            Progress::Unknown => {}
            Progress::Unfilled(at_least) => fill.gap(object(), (*at_least).into()),
            Progress::Pulling { at_least, kept } => {
                fill.gap(object(), (*at_least).into());
                fill.begin(object(), Version::default(), None);
                for sent in kept {
                    fill.arrive(object(), sent.version.into(), || sent.kept());
                }
            }
            Progress::Filled => fill.created(object()),
        }
        fill.admitting = self.admitting;
        fill
    }

    /// The state that the product's is in.
    fn close(fill: &SlotFill, at: usize) -> Self {
        let object = match fill.object(object()) {
            None => Progress::Unknown,
            Some(ObjectFill::Unfilled(at_least)) => Progress::Unfilled((*at_least).into()),
            Some(ObjectFill::Pulling { at_least, kept, .. }) => {
                let kept = kept.iter().map(|k| Sent::of(&k.request, at as u8)).collect();
                Progress::Pulling { at_least: (*at_least).into(), kept }
            }
            Some(ObjectFill::Filled) => Progress::Filled,
        };
        Self { since: fill.since as u8, admitting: fill.admitting, object }
    }
}

impl Node {
    /// Runs `f` on the fill of a time of catching up.
    fn with_fill<T>(&mut self, at: usize, since: u8, f: impl FnOnce(&mut SlotFill) -> T) -> Option<T> {
        let mut fill = self.fill.open();
        let result = fill.at(since.into()).map(f);
        self.fill = Fill::close(&fill, at);
        result
    }

    /// Applies a write if it is its turn.
    fn apply(&mut self, sent: &Sent) -> Result<(), Status> {
        if order(self.memory.version.into(), &sent.request())? == Order::Next {
            self.memory.version = sent.version;
            self.memory.blocks[BLOCK_OF[usize::from(sent.write)]] = sent.write + 1;
        }
        Ok(())
    }
}

impl Small {
    /// Everything that may happen to copies.
    pub(super) fn copy_steps(&mut self, world: &World, into: &mut Vec<(Step, World)>) {
        for (index, sent) in world.sent.iter().enumerate() {
            let mut next = world.clone();
            next.sent.remove(index);
            if self.deliver(&mut next, sent).is_ok() {
                into.push((Step::Deliver(*sent), next));
            }
        }
        for at in (0..NODES).filter(|n| world.nodes[*n].up) {
            self.catch_up(world, at, into);
        }
    }

    /// A write arrives and is answered; an error if it is refused, and so sent again.
    fn deliver(&self, world: &mut World, sent: &Sent) -> Result<(), Status> {
        let at = usize::from(sent.to);
        let role = self.check(world, at, &sent.fence(), true)?;
        let node = &mut world.nodes[at];
        node.sealed = node.sealed.max(sent.version.generation);
        match role {
            Role::CatchingUp(since) => {
                let since = since as u8;
                let arrived = node.with_fill(at, since, |fill| {
                    let arrival = fill.arrive(object(), sent.version.into(), || sent.kept());
                    (arrival, !fill.admitting)
                });
                let (arrival, may_gap) = arrived.ok_or(Status::Busy)?;
                if arrival == Arrival::Apply {
                    match node.apply(sent) {
                        Err(Status::Gap) if may_gap => {
                            node.with_fill(at, since, |fill| fill.gap(object(), sent.version.into()));
                        }
                        result => result?,
                    }
                }
            }
            Role::InSync | Role::None => node.apply(sent)?,
        }
        let write = usize::from(sent.write);
        for owner in world.owners.iter_mut().flatten() {
            if let Some(numbered) = owner.writes[write].as_mut().filter(|n| n.version == sent.version) {
                numbered.answers[at] = Some((sent.start, sent.config));
            }
        }
        Ok(())
    }

    fn request(&self, turn: Turn, from: usize, world: &World) -> CatchUpRequest {
        CatchUpRequest {
            to_start: world.nodes[from].start.into(),
            copies: copies().get().into(),
            slot: SLOT.0,
            since: turn.since.into(),
            applied: turn.applied.into(),
            ..CatchUpRequest::default()
        }
    }

    /// Whether a node is a source that has settled.
    fn is_source(&self, world: &World, turn: Turn, from: usize) -> bool {
        let (node, view) = (&world.nodes[from], self.view(world, from));
        let standing = Standing { me: session(from, node.start), state: &view.state };
        node.up
            && standing.check_source(view.index, &self.request(turn, from, world)).is_ok()
            && standing.check_settled(VDI, Generation(node.settled.into())).is_ok()
    }

    fn catch_up(&mut self, world: &World, at: usize, into: &mut Vec<(Step, World)>) {
        let mut next = world.clone();
        match world.nodes[at].pass {
            Pass::None => self.list(world, at, into),
            Pass::Listed { turn, from, version } => {
                self.compare(&mut next, at, turn, from.into(), version);
                into.push((Step::Compare(at), next));
            }
            Pass::Pulled { turn, .. } if self.role(world, at) != Role::CatchingUp(turn.since.into()) => {
                next.nodes[at].pass = Pass::None;
                into.push((Step::Finish(at), next));
            }
            Pass::Pulled { turn, held } => {
                finish(&mut next.nodes[at], at, turn, held);
                make_durable(&mut next.nodes[at], at, turn);
                into.push((Step::Finish(at), next));
            }
            Pass::Compared { turn } => {
                make_durable(&mut next.nodes[at], at, turn);
                into.push((Step::Commit(at), next));
            }
            Pass::Ready { turn } => {
                self.admit(&mut next, at, turn);
                into.push((Step::Admit(at), next));
            }
            Pass::Asked { .. } => {}
        }
    }

    fn list(&self, world: &World, at: usize, into: &mut Vec<(Step, World)>) {
        let Role::CatchingUp(since) = self.role(world, at) else { return };
        let view = self.view(world, at);
        let owner = view.owner.map(|_| view.generation);
        let turn = Turn { since: since as u8, applied: view.index as u8, owner };
        let sources = view.config.in_state(MemberState::InSync).map(|m| m.session);
        for from in sources.filter(|s| view.state.serves(*s)) {
            if from.start != u64::from(world.nodes[place(from)].start) {
                continue;
            }
            let mut next = world.clone();
            let node = &mut next.nodes[at];
            if std::mem::replace(&mut node.noticed, view.generation) != view.generation {
                let mut fill = node.fill.open();
                fill.forget(VDI, Generation(view.generation.into()));
                node.fill = Fill::close(&fill, at);
            }
            let from = place(from);
            if planted(Mutant::AdmitEarly) {
                (node.disk, node.pass) = (node.memory, Pass::Ready { turn });
            } else if self.is_source(world, turn, from) {
                node.with_fill(at, turn.since, |_| ());
                let version = world.nodes[from].memory.version;
                node.pass = Pass::Listed { turn, from: from as u8, version };
            } else {
                continue;
            }
            into.push((Step::List { at, from }, next));
        }
    }

    fn compare(&self, world: &mut World, at: usize, turn: Turn, from: usize, listed: Ver) {
        let source = world.nodes[from].memory;
        let answers = self.is_source(world, turn, from);
        let owner = turn.owner.map(|generation| Generation(generation.into()));
        let node = &mut world.nodes[at];
        let equal = !node.suspect && node.memory.version == listed;
        let own = Version::from(node.memory.version);
        let pass = node.with_fill(at, turn.since, |fill| {
            if fill.is_filled(object()) {
                return Pass::Compared { turn };
            }
            if equal {
                fill.found_equal(object());
                if fill.is_filled(object()) {
                    return Pass::Compared { turn };
                }
            }
            let at_least = fill.begin(object(), own, owner);
            if answers && Version::from(source.version) >= at_least {
                return Pass::Pulled { turn, held: source };
            }
            fill.gap(object(), at_least);
            Pass::None
        });
        node.pass = pass.unwrap_or(Pass::None);
    }

    fn admit(&mut self, world: &mut World, at: usize, turn: Turn) {
        let session = session(at, world.nodes[at].start);
        let slots = vec![(SLOT, turn.since.into())];
        let entry = ClusterEntry::Admit { session, copies: copies(), slots, seen: turn.applied.into() };
        let committed = self.commit(world, &entry);
        if committed == Some(true) {
            world.promise.admitted(at);
        }
        // Who is refused has heard of it, the others when they have applied the entry.
        let index = if committed.is_some() { self.head(world).index as u8 } else { 0 };
        world.nodes[at].pass = Pass::Asked { turn, index };
        self.learned(world, at);
    }

    /// A node has applied an entry: perhaps the one that was to admit it.
    pub(super) fn learned(&self, world: &mut World, at: usize) {
        let (view, role) = (self.view(world, at), self.role(world, at));
        let node = &mut world.nodes[at];
        let Pass::Asked { turn, index } = node.pass else { return };
        if view.index < u64::from(index) {
            return;
        }
        node.pass = Pass::None;
        match role {
            Role::CatchingUp(since) if since == u64::from(turn.since) => {
                node.with_fill(at, turn.since, |fill| fill.admitting = false);
            }
            _ if node.fill.since > turn.since => {}
            _ => node.fill = Fill { since: 0, admitting: false, object: Progress::Unknown },
        }
    }
}

/// The end of a turn: if nothing is missing, what there is becomes durable.
fn make_durable(node: &mut Node, at: usize, turn: Turn) {
    node.pass = Pass::None;
    if node.with_fill(at, turn.since, |fill| fill.commit()) == Some(true) {
        (node.disk, node.pass) = (node.memory, Pass::Ready { turn });
    }
}

/// The copy has what was pulled, and what came meanwhile.
fn finish(node: &mut Node, at: usize, turn: Turn, held: Held) {
    (node.memory, node.suspect, node.pass) = (held, false, Pass::Compared { turn });
    let kept = node.with_fill(at, turn.since, |fill| fill.finish(object())).flatten().unwrap_or_default();
    let newest = newest(&kept);
    for write in kept {
        let sent = Sent::of(&write.request, at as u8);
        if sent.version <= held.version {
            continue;
        }
        if node.apply(&sent).is_err() {
            node.with_fill(at, turn.since, |fill| fill.gap(object(), newest));
            break;
        }
    }
}
